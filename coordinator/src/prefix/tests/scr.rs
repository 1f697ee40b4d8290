//! Datasets of SCR's: taken in as they lie, or gathered.

use super::*;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use scrfs::config::Class;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

/// A tree of keys as SCR packs it: how many, then each with what is below it.
fn tree(below: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = (below.len() as u32).to_be_bytes().to_vec();
    for (key, below) in below {
        bytes.extend([key.as_bytes(), b"\0", below].concat());
    }
    bytes
}

fn value(text: &str) -> Vec<u8> {
    tree(&[(text, tree(&[]))])
}

fn put_scr(path: &Path, tree: &[u8]) {
    let mut bytes = b"\x95\x1f\xc3\xf5\0\x01\0\x01".to_vec();
    bytes.extend((20 + tree.len() as u64).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(tree);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A prefix as SCR leaves it: `step 6` with two files in `ckpt.6/`, whose map is in two parts; and one
/// that it did not finish.
fn of_scr(world: &World) -> PathBuf {
    let root = world.prefix.paths().root().to_owned();
    let facts = |name: &str| {
        tree(&[
            ("NAME", value(name)),
            ("FLAG_CKPT", value("1")),
            ("FLAG_OUTPUT", value("1")),
            ("FILES", value("2")),
            ("SIZE", value("9")),
        ])
    };
    let six = tree(&[("COMPLETE", value("1")), ("DSET", facts("step 6"))]);
    let seven = tree(&[("COMPLETE", value("0")), ("DSET", facts("step 7"))]);
    let index = tree(&[("DSET", tree(&[("6", six), ("7", seven)]))]);
    put_scr(&root.join(".scr/index.scr"), &index);
    let map = root.join(".scr/scr.dataset.6/rank2file");
    let rank = |file: &str| tree(&[("FILE", value(file)), ("OFFSET", value("0"))]);
    let ranks = tree(&[("0", rank(".0.0")), ("1", rank(".0.1"))]);
    put_scr(&map, &tree(&[("LEVEL", value("1")), ("RANK", ranks)]));
    for (number, file) in [("0", "ckpt.6/a"), ("1", "ckpt.6/deep/b")] {
        let ranks = tree(&[(number, rank(file))]);
        let leaf = tree(&[("LEVEL", value("0")), ("RANK", ranks)]);
        put_scr(
            &root.join(format!(".scr/scr.dataset.6/rank2file.0.{number}")),
            &leaf,
        );
    }
    fs::create_dir_all(root.join("ckpt.6/deep")).unwrap();
    fs::write(root.join("ckpt.6/a"), b"four").unwrap();
    fs::write(root.join("ckpt.6/deep/b"), b"fives").unwrap();
    root
}

#[test]
fn a_complete_dataset_of_scr_is_taken_in() {
    let world = World::new();
    let root = of_scr(&world);
    let index = world.prefix.scr_index().unwrap().unwrap();
    let all: Vec<_> = index
        .datasets
        .iter()
        .map(|it| (it.id, it.complete))
        .collect();
    assert_eq!(all, [(6, true), (7, false)]);
    let six = Name::new(b"step 6").unwrap();
    let (name, added) = world
        .prefix
        .add_scr(&six, None, &|_, _| {})
        .unwrap()
        .unwrap();
    assert_eq!((name.as_bytes(), added), (&b"ckpt.6"[..], Added::Adopted));
    let record = world.only();
    assert_eq!(record.class, Class::Both);
    let cache = CachePaths::at(&world.root.path().join("other"));
    world
        .prefix
        .fetch_part(&record, Slot(0), &cache, &|_| {}, &GO)
        .unwrap();
    assert_eq!(
        describe(&cache.tree(record.id, Slot(0))),
        describe(&root.join("ckpt.6"))
    );
    let seven = Name::new(b"step 7").unwrap();
    let error = world.prefix.add_scr(&seven, None, &|_, _| {}).unwrap_err();
    assert!(error.to_string().contains("not complete"), "{error}");
    let other = Name::new(b"step 8").unwrap();
    assert_eq!(
        world.prefix.add_scr(&other, None, &|_, _| {}).unwrap(),
        None
    );
}

#[test]
fn what_is_not_as_scr_left_it_is_not_taken_in() {
    type Harm = fn(&Path);
    let harms: [(Harm, &str); 6] = [
        (
            |root| fs::remove_file(root.join("ckpt.6/a")).unwrap(),
            "ckpt.6/a",
        ),
        (
            |root| fs::write(root.join("ckpt.6/a"), b"longer").unwrap(),
            "bytes",
        ),
        (
            |root| fs::remove_file(root.join(".scr/scr.dataset.6/rank2file.0.1")).unwrap(),
            "0.1",
        ),
        (
            |root| fs::write(root.join(".scr/scr.dataset.6/rank2file"), b"x").unwrap(),
            "rank2file",
        ),
        (
            // A map that leads to itself.
            |root| {
                let map = root.join(".scr/scr.dataset.6/rank2file");
                fs::copy(&map, root.join(".scr/scr.dataset.6/rank2file.0.0")).unwrap();
            },
            "rank2file.0.",
        ),
        (
            |root| {
                fs::remove_file(root.join("ckpt.6/a")).unwrap();
                symlink("/etc/passwd", root.join("ckpt.6/a")).unwrap();
            },
            "something else",
        ),
    ];
    for (harm, what) in harms {
        let world = World::new();
        let root = of_scr(&world);
        harm(&root);
        let six = Name::new(b"step 6").unwrap();
        let error = world.prefix.add_scr(&six, None, &|_, _| {}).unwrap_err();
        assert!(
            crate::effects::chain(&error).contains(what),
            "{what}: {error}"
        );
        assert_eq!(world.ids(), []);
    }
}

/// Files of one dataset, by their paths in the prefix.
type Files<'a> = &'a [(&'a str, &'a [u8])];

const IN_RANKS: Files<'_> = &[
    ("rank_0/ckpt.5", b"zero"),
    ("rank_1/ckpt.5", b"one"),
    ("rank_1/deep/ckpt.5.meta", b"more of one"),
];

/// Each at the path that it has in the prefix.
fn as_they_lie<'a>(files: Files<'a>) -> Vec<(&'a str, &'a str)> {
    files.iter().map(|(path, _)| (*path, *path)).collect()
}

/// A map of such files as SCR has it, each of another rank.
pub(super) fn put_map(root: &Path, id: u64, files: &[&[u8]]) {
    let mut ranks = (files.len() as u32).to_be_bytes().to_vec();
    for (number, file) in files.iter().enumerate() {
        ranks.extend(format!("{number}\0").bytes());
        // How many; FILE, of one value, which has nothing below it.
        ranks.extend([b"\0\0\0\x01FILE\0\0\0\0\x01", *file, b"\0\0\0\0\0"].concat());
    }
    let map = root.join(format!(".scr/scr.dataset.{id}/rank2file"));
    put_scr(&map, &tree(&[("LEVEL", value("0")), ("RANK", ranks)]));
}

/// What SCR says of its datasets, all of them complete, and their files.
pub(super) fn written_by_scr(root: &Path, all: &[(u64, &str, Files<'_>)]) {
    let mut datasets = vec![];
    for (id, name, files) in all {
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let facts = [
            ("NAME", value(name)),
            ("FLAG_CKPT", value("1")),
            ("FILES", value(&files.len().to_string())),
            ("SIZE", value(&bytes.to_string())),
        ];
        let complete = ("COMPLETE", value("1"));
        datasets.push((id.to_string(), tree(&[complete, ("DSET", tree(&facts))])));
        let paths: Vec<_> = files.iter().map(|(path, _)| path.as_bytes()).collect();
        put_map(root, *id, &paths);
        for (number, (path, bytes)) in files.iter().enumerate() {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            // A second name, so that the number of names tells nothing in what `describe` finds.
            fs::create_dir_all(root.join("kept")).unwrap();
            fs::hard_link(&path, root.join(format!("kept/{id}.{number}"))).unwrap();
        }
    }
    let datasets: Vec<_> = datasets
        .iter()
        .map(|(id, dataset)| (id.as_str(), dataset.clone()))
        .collect();
    let index = tree(&[("DSET", tree(&datasets))]);
    put_scr(&root.join(".scr/index.scr"), &index);
}

impl World {
    fn of_scr(all: &[(u64, &str, Files<'_>)]) -> Self {
        let world = Self::new();
        written_by_scr(world.prefix.paths().root(), all);
        world
    }

    fn add_scr(&self, name: &str) -> Result<Added, PrefixError> {
        self.add_scr_with(name, &|_| Ok(()))
    }

    fn add_scr_with(&self, name: &str, step: StepHook<'_>) -> Result<Added, PrefixError> {
        let name = Name::new(name.as_bytes()).unwrap();
        let added = self.prefix.add_scr_with(&name, None, &|_, _| {}, step)?;
        Ok(added.unwrap().1)
    }

    /// That a dataset is these files and no others, as SCR wrote them, and a restart gets them.
    fn has_gathered(&self, name: &str, files: &[(&str, &str)]) {
        let root = self.published(name);
        let mut found = describe(&root);
        found.retain(|path, _| !root.join(path).is_dir());
        let paths: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, files.iter().map(|it| it.0).collect::<Vec<_>>());
        for (place, file) in files {
            let [new, old] = [root.join(place), self.published(file)];
            assert_eq!(fs::read(&new).unwrap(), fs::read(&old).unwrap());
            let [new, old] = [new, old].map(|path| fs::metadata(path).unwrap());
            assert_eq!((new.ino(), new.dev()), (old.ino(), old.dev()), "{place}");
        }
        let name = Name::new(name.as_bytes()).unwrap();
        let entries = self.prefix.list().unwrap();
        let entry = self.prefix.find(&entries, &name).unwrap();
        assert!(entry.is_complete() && entry.adopted);
        assert_eq!(entry.files, files.len() as u64);
        let other = CachePaths::at(&self.root.path().join("other"));
        self.prefix
            .fetch_part(&entry.record, Slot(0), &other, &|_| {}, &GO)
            .unwrap();
        let fetched = other.tree(entry.record.id, Slot(0));
        for (place, file) in files {
            let bytes = fs::read(fetched.join(place)).unwrap();
            assert_eq!(bytes, fs::read(self.published(file)).unwrap());
        }
    }

    fn verify_only(&self) -> Result<(), PrefixError> {
        let record = self.only();
        self.prefix.verify_part(&record, Slot(0), &|_| {}, &GO)
    }

    /// That nothing was added, and nothing is left of the attempt.
    fn has_added_nothing(&self) {
        assert_eq!(self.ids(), []);
        assert_eq!(self.leftovers(), [""; 0]);
        let manifests = self.prefix.paths().all_manifests();
        assert_eq!(self.prefix.store.list(&manifests).unwrap().len(), 0);
    }
}

#[test]
fn files_in_several_directories_are_gathered() {
    let world = World::of_scr(&[
        (5, "ckpt.5", IN_RANKS),
        (
            6,
            "ckpt.6",
            &[("rank_0/ckpt.6", b"0"), ("rank_1/ckpt.6", b"1")],
        ),
    ]);
    let ranks = ["rank_0", "rank_1"].map(|name| world.published(name));
    fs::set_permissions(&ranks[1], fs::Permissions::from_mode(0o710)).unwrap();
    crate::part::testing::set_mtime(&ranks[1], 1_000_000_000, 7);
    let theirs = || ["kept", "rank_0", "rank_1"].map(|name| describe(&world.published(name)));
    let before = theirs();
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Gathered);
    let files = as_they_lie(IN_RANKS);
    world.has_gathered("ckpt.5", &files);
    assert_eq!(theirs(), before);
    let rank = world.published("ckpt.5/rank_1");
    let mut gathered = before[2].clone();
    gathered.remove(Path::new("ckpt.6"));
    assert_eq!(describe(&rank), gathered);
    let [new, old] = [&rank, &ranks[1]].map(|path| fs::metadata(path).unwrap());
    assert_eq!((new.mode(), new.mtime()), (old.mode(), old.mtime()));
    assert_eq!(world.leftovers(), [""; 0]);
    // Again, dropped, deleted.
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Already);
    let name = Name::new(b"ckpt.5").unwrap();
    world.prefix.drop_entry(&name).unwrap();
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::PutBack);
    world.prefix.delete(&name, true).unwrap();
    assert!(!world.published("ckpt.5").exists());
    assert_eq!(theirs(), before);
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Gathered);
    world.has_gathered("ckpt.5", &files);
}

#[test]
fn files_among_those_of_others_are_gathered() {
    let world = World::of_scr(&[
        (5, "ckpt.5", &[("ckpt_5_0", b"zero"), ("ckpt_5_1", b"one")]),
        (6, "ckpt.6", &[("ckpt_6_0", b"six")]),
        (7, "ckpt.7", &[("run/7/a", b"a"), ("run/7/below/b", b"b")]),
        (8, "ckpt.8", &[("run/8/a", b"eight")]),
    ]);
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Gathered);
    let (zero, one) = ("ckpt_5_0", "ckpt_5_1");
    world.has_gathered("ckpt.5", &[(zero, zero), (one, one)]);
    assert_eq!(world.add_scr("ckpt.6").unwrap(), Added::Gathered);
    world.has_gathered("ckpt.6", &[("ckpt_6_0", "ckpt_6_0")]);
    assert_eq!(world.add_scr("ckpt.7").unwrap(), Added::Gathered);
    world.has_gathered("ckpt.7", &[("a", "run/7/a"), ("below/b", "run/7/below/b")]);
    assert_eq!(world.ids().len(), 3);
    // Alone in it, it is taken in as it lies.
    fs::remove_dir_all(world.published("run/7")).unwrap();
    let name = Name::new(b"ckpt.8").unwrap();
    let added = world.prefix.add_scr(&name, None, &|_, _| {}).unwrap();
    let directory = Name::new(b"run").unwrap();
    assert_eq!(added, Some((directory, Added::Adopted)));
    assert!(!world.published("ckpt.8").exists());
}

#[test]
fn a_directory_of_its_name_is_taken_in_with_what_else_is_in_it() {
    let world = World::of_scr(&[(5, "ckpt.5", &[("ckpt.5/0", b"zero")])]);
    fs::write(world.published("ckpt.5/notes"), b"by hand").unwrap();
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Adopted);
    assert_eq!(world.prefix.list().unwrap()[0].files, 2);
}

#[test]
fn a_name_that_is_taken_is_not_touched() {
    let take: [fn(&World, &Path); 4] = [
        |_, path| fs::create_dir(path).unwrap(),
        |_, path| fs::write(path, b"theirs").unwrap(),
        |_, path| symlink("/nowhere", path).unwrap(),
        |world, _| world.flush(&world.files(9, "ckpt.5", &[("a", b"ours")])),
    ];
    for take in take {
        let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
        let path = world.published("ckpt.5");
        take(&world, &path);
        let ids = world.ids();
        let before = describe(world.prefix.paths().root());
        let error = world.add_scr("ckpt.5").unwrap_err();
        assert!(matches!(error, PrefixError::Taken { .. }), "{error}");
        let words = error.to_string();
        assert!(words.contains("`ckpt.5`") && words.contains(path.to_str().unwrap()));
        assert_eq!(describe(world.prefix.paths().root()), before);
        assert_eq!(world.ids(), ids);
    }
    let world = World::of_scr(&[(5, ".scrfs", IN_RANKS)]);
    let error = world.add_scr(".scrfs").unwrap_err();
    assert!(matches!(error, PrefixError::Taken { .. }), "{error}");
    world.has_added_nothing();
}

#[test]
fn who_comes_to_the_name_first_keeps_it() {
    let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
    let path = world.published("ckpt.5");
    let error = world.add_scr_with("ckpt.5", &|step| match step {
        "take the name" => fs::create_dir(&path),
        _ => Ok(()),
    });
    assert!(matches!(error, Err(PrefixError::Taken { .. })), "{error:?}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    world.has_added_nothing();
}

#[test]
fn what_scr_says_of_its_files_is_not_trusted() {
    let long = [b'x'; 300];
    let deep = b"x/".repeat(2500);
    let cases: [(&[u8], &str); 12] = [
        (b"../outside", "../outside"),
        (b"rank_0/../../outside", "outside"),
        (b"/etc/passwd", "/etc/passwd"),
        (b"", "does not lie"),
        (b"rank_0//ckpt.5", "rank_0//ckpt.5"),
        (&long, "does not lie"),
        (&deep[..4999], "does not lie"),
        (b".scr/index.scr", "no file of a dataset"),
        (b".scrfs/clock", "no file of a dataset"),
        (b"out/passwd", "out/passwd"),
        (b"rank_1", "something else"),
        (b"rank_0/ckpt.5/below", "rank_0/ckpt.5/below"),
    ];
    for (path, words) in cases {
        let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
        symlink("/etc", world.published("out")).unwrap();
        fs::write(world.root.path().join("outside"), b"out").unwrap();
        let root = world.prefix.paths().root();
        put_map(root, 5, &[b"rank_0/ckpt.5", b"rank_1/ckpt.5", path]);
        let error = world.add_scr("ckpt.5").unwrap_err();
        let chain = crate::effects::chain(&error);
        assert!(chain.contains(words), "{words}: {chain}");
        world.has_added_nothing();
        assert!(!world.published("ckpt.5").exists());
    }
    // One file twice is one file.
    let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
    let [zero, one]: [&[u8]; 2] = [b"rank_0/ckpt.5", b"rank_1/ckpt.5"];
    put_map(world.prefix.paths().root(), 5, &[zero, one, one]);
    let error = world.add_scr("ckpt.5").unwrap_err();
    assert!(error.to_string().contains("files 2, 3"), "{error}");
    put_map(world.prefix.paths().root(), 5, &[]);
    assert!(world.add_scr("ckpt.5").is_err());
    world.has_added_nothing();
}

#[test]
fn a_file_that_is_exchanged_meanwhile_is_noticed() {
    let exchange: [fn(&Path); 3] = [
        |path| fs::write(path, b"longer than it was").unwrap(),
        |path| symlink("/etc/passwd", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
    ];
    for exchange in exchange {
        let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
        let path = world.published("rank_1/ckpt.5");
        let error = world.add_scr_with("ckpt.5", &|step| {
            if step == "link the files" {
                fs::remove_file(&path)?;
                exchange(&path);
            }
            Ok(())
        });
        error.unwrap_err();
        world.has_added_nothing();
        assert!(!world.published("ckpt.5").exists());
    }
}

#[test]
fn who_writes_to_a_file_of_scr_later_is_noticed() {
    let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
    world.add_scr("ckpt.5").unwrap();
    world.verify_only().unwrap();
    flip(&world.published("rank_0/ckpt.5"), 2);
    let error = world.verify_only().unwrap_err();
    assert_eq!(error.cause(), Cause::Damaged, "{error}");
}

#[test]
fn a_dataset_that_is_gathered_is_no_more_open_than_it_was() {
    let files: Files<'_> = &[("private/run/5/0", b"zero"), ("private/run/5/1", b"one")];
    let world = World::of_scr(&[(5, "ckpt.5", files), (6, "6", &[("private/run/6", b"")])]);
    for (path, mode) in [
        ("private/run/5", 0o755),
        ("private/run", 0o775),
        ("private", 0o700),
    ] {
        fs::set_permissions(world.published(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mode = || fs::metadata(world.published("ckpt.5")).unwrap().mode() & 0o7777;
    let attempt = Cell::new(0);
    let look = |step: &'static str| {
        if step == "link the files" {
            let inflight = world.prefix.paths().inflights();
            let key = fs::read_dir(inflight)?.next().unwrap()?;
            attempt.set(fs::metadata(key.path().join("0"))?.mode() & 0o7777);
        }
        Ok(())
    };
    world.add_scr_with("ckpt.5", &look).unwrap();
    assert_eq!((mode(), attempt.get()), (0o700, 0o700));
    let name = Name::new(b"ckpt.5").unwrap();
    world.prefix.delete(&name, true).unwrap();
    for path in ["private", "private/run/5"] {
        let mode = fs::Permissions::from_mode(0o550);
        fs::set_permissions(world.published(path), mode).unwrap();
    }
    world.add_scr("ckpt.5").unwrap();
    assert_eq!(mode(), 0o550);
}

#[test]
fn what_was_removed_by_hand_is_gathered_anew() {
    let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
    world.add_scr("ckpt.5").unwrap();
    fs::remove_dir_all(world.published("ckpt.5")).unwrap();
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Gathered);
    world.has_gathered("ckpt.5", &as_they_lie(IN_RANKS));
    world.verify_only().unwrap();
}

#[test]
fn where_links_are_refused_files_are_copied() {
    let world = World::of_scr(&[(5, "ckpt.5", &[("rank_0/ckpt.5", b"zero")])]);
    let other = world.published("rank_1");
    fs::create_dir(&other).unwrap();
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let prepared = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(nothing, "/", nothing, private, nothing))
        .and_then(|()| {
            mount(
                Some("rank_1"),
                &other,
                Some("tmpfs"),
                MsFlags::empty(),
                nothing,
            )
        });
    if let Err(error) = prepared {
        eprintln!("skipped: no mount namespace for this user ({error})");
        return;
    }
    let mut bytes = vec![7; 300_000];
    bytes[8192..200_000].fill(0);
    let files: Files<'_> = &[
        ("rank_0/ckpt.5", b"zero again"),
        ("rank_1/dense", &[3; 100_000]),
        ("rank_1/empty", b""),
        ("rank_1/sparse", &bytes),
    ];
    for (path, bytes) in &files[1..] {
        fs::write(world.published(path), bytes).unwrap();
    }
    let sparse = File::create(other.join("sparse")).unwrap();
    sparse.write_all_at(&bytes[..8192], 0).unwrap();
    sparse.write_all_at(&bytes[200_000..], 200_000).unwrap();
    crate::part::xattr::write(&sparse, b"user.note", b"value").ok();
    fs::set_permissions(other.join("dense"), fs::Permissions::from_mode(0o440)).unwrap();
    for name in ["dense", "sparse"] {
        crate::part::testing::set_mtime(&other.join(name), 1_000_000_000, 7);
    }
    let before = describe(&other);
    // The files are there; the second names that this makes are not possible.
    let root = world.root.path().join("elsewhere");
    fs::create_dir(&root).unwrap();
    written_by_scr(&root, &[(5, "ckpt.5", files)]);
    for record in ["index.scr", "scr.dataset.5/rank2file"] {
        let record = Path::new(".scr").join(record);
        fs::copy(root.join(&record), world.published("").join(&record)).unwrap();
    }
    fs::write(world.published("rank_0/ckpt.5"), b"zero again").unwrap();
    assert_eq!(world.add_scr("ckpt.5").unwrap(), Added::Gathered);
    assert_eq!(describe(&other), before);
    assert_eq!(describe(&world.published("ckpt.5/rank_1")), before);
    let inode = |path: &str| fs::metadata(world.published(path)).unwrap().ino();
    assert_eq!(inode("ckpt.5/rank_0/ckpt.5"), inode("rank_0/ckpt.5"));
    world.verify_only().unwrap();
    nix::mount::umount2(&other, nix::mount::MntFlags::MNT_DETACH).unwrap();
    // It does not need them any more.
    world.verify_only().unwrap();
}

#[test]
fn invariant_gathering_that_dies_leaves_no_dataset_or_a_whole_one() {
    let mut steps = vec![];
    for settled in [false, true] {
        for at in 0.. {
            let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
            let before = describe(&world.published("rank_1"));
            let count = Cell::new(0);
            let died = RefCell::new(None);
            let result = world.add_scr_with("ckpt.5", &|step| {
                count.set(count.get() + 1);
                if count.get() > at {
                    died.borrow_mut().get_or_insert(step);
                    return Err(io::Error::other("crashed"));
                }
                Ok(())
            });
            let died = *died.borrow();
            assert_eq!(result.is_err(), died.is_some());
            let whole = |when: &str| {
                let is_there = world.published("ckpt.5").exists();
                let rank = world.published("ckpt.5/rank_1");
                let is_whole = is_there && describe(&rank) == before;
                assert!(!is_there || is_whole, "torn after {died:?}{when}");
                assert_eq!(describe(&world.published("rank_1")), before);
                is_there
            };
            let was_there = whole("");
            if settled {
                world.prefix.reconcile(&BTreeSet::new()).unwrap();
                let is_there = whole(" and reconcile");
                assert!(is_there || !was_there, "taken away after {died:?}");
                assert_eq!(world.ids().len(), usize::from(is_there), "after {died:?}");
                assert_eq!(world.leftovers(), [""; 0], "after {died:?}");
            }
            world.add_scr("ckpt.5").unwrap();
            world.has_gathered("ckpt.5", &as_they_lie(IN_RANKS));
            world.verify_only().unwrap();
            world.prefix.reconcile(&BTreeSet::new()).unwrap();
            world.verify_only().unwrap();
            assert_eq!(world.leftovers(), [""; 0], "after {died:?}");
            let manifests = world.prefix.paths().all_manifests();
            assert_eq!(fs::read_dir(manifests).unwrap().count(), 1);
            let Some(step) = died else { break };
            steps.push(step);
        }
    }
    assert_eq!(steps.len(), 2 * 12, "{steps:?}");
}

#[test]
fn other_jobs_leave_what_is_being_gathered_alone_until_it_is_abandoned() {
    let world = World::of_scr(&[(5, "ckpt.5", IN_RANKS)]);
    let root = world.prefix.paths().root();
    let theirs = Prefix::open(root).unwrap().of_job("another");
    let settle = |step: &'static str| {
        theirs.reconcile(&BTreeSet::new()).unwrap();
        theirs.end_job(Epoch(9)).unwrap();
        match step {
            "write the flushing entry" => Err(io::Error::other("crashed")),
            "remove what is left" => Err(io::Error::other("crashed")),
            _ => Ok(()),
        }
    };
    let error = world.add_scr_with("ckpt.5", &settle).unwrap_err();
    assert!(crate::effects::chain(&error).contains("crashed"), "{error}");
    assert_eq!(world.leftovers().len(), 1);
    let key = world.prefix.paths().inflights().join(&world.leftovers()[0]);
    let long_ago = SystemTime::now() - Duration::from_secs(4000);
    for path in [key.join("0"), key.join("job"), key] {
        File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    theirs.reconcile(&BTreeSet::new()).unwrap();
    world.has_added_nothing();
}
