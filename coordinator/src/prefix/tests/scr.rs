//! Datasets of SCR's.

use super::*;
use scrfs::config::Class;

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
