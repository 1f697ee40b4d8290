//! Sealed datasets of several nodes, on a real mount: one node lists all files and reads them all.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use nix::unistd::Whence;
use scrfs::config::Class;
use scrfs::control::{Piece, Refusal};
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::manifest::{EntryKind, Node};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::name::Name;
use scrfs_fuse_tests::coordinator::{Coordinator, Manners, seal_of};
use scrfs_fuse_tests::elsewhere::{Elsewhere, How, Part};
use scrfs_fuse_tests::mounted::Place;
use scrfs_fuse_tests::until;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .map(Errno::from_raw)
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len)
        .map(|at| ((at * 31 + seed * 17 + at / 4093) % 251) as u8)
        .collect()
}

/// A mount, a coordinator that knows of other nodes, and a dataset `ckpt` that was just committed with
/// `d/own` in it.
struct Scene {
    place: Place,
    elsewhere: Elsewhere,
    coordinator: Option<Coordinator>,
}

impl Scene {
    fn new(parts: Vec<Part>) -> Self {
        let place = Place::new(64 * MIB);
        place.mount(&[]);
        let elsewhere = Elsewhere::new(parts);
        let mut scene = Self {
            place,
            elsewhere,
            coordinator: None,
        };
        scene.connect(1);
        let open = scene.place.mnt().join("ckpt.tmp");
        fs::create_dir(&open).unwrap();
        fs::create_dir(open.join("d")).unwrap();
        fs::write(open.join("d/own"), b"own bytes").unwrap();
        fs::rename(&open, scene.top()).unwrap();
        scene
    }

    fn connect(&mut self, epoch: u64) {
        let manners = Manners {
            elsewhere: Some(self.elsewhere.clone()),
            ..Manners::default()
        };
        self.coordinator = Some(self.place.coordinator(epoch, manners));
    }

    fn top(&self) -> PathBuf {
        self.place.mnt().join("ckpt")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.job().join("daemon.log")).unwrap()
    }

    fn asked_for_log(&self) -> usize {
        let asked = self.elsewhere.asked();
        let log = |(_, piece): &&(Slot, Piece)| matches!(piece, Piece::Log { .. });
        asked.iter().filter(log).count()
    }
}

/// All names below a directory, and what they are; each directory's entries as `readdir` and as `stat`
/// see them must agree.
fn walk(top: &Path) -> BTreeMap<String, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let stat = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(entry.ino(), stat.ino(), "{:?}", entry.path());
            assert_eq!(entry.file_type().unwrap(), stat.file_type());
            if stat.is_dir() {
                todo.push(entry.path());
            }
            let below = entry.path().strip_prefix(top).unwrap().to_owned();
            found.insert(below.to_str().unwrap().to_owned(), stat);
        }
    }
    found
}

fn names(top: &Path) -> Vec<String> {
    walk(top).into_keys().collect()
}

#[test]
fn every_file_of_every_node_is_listed_and_read_with_its_attributes() {
    let big = pattern(1, 3 * MIB + 17);
    let deep: Vec<String> = (1..=60).map(|depth| vec!["n"; depth].join("/")).collect();
    let mut second = Part::default();
    for path in &deep {
        second = second.directory(path);
    }
    let bottom = format!("{}/bottom", deep[59]);
    let parts = vec![
        Part::default()
            .directory("d")
            .file("d/far", &big)
            .with(|entry| {
                entry.xattrs = vec![
                    (b"user.step".to_vec(), b"12".to_vec()),
                    (b"trusted.secret".to_vec(), b"x".to_vec()),
                ];
            })
            .link("d/again", "d/far")
            .symlink("d/latest", "far")
            .entry("d/pipe", EntryKind::Node(Node::Fifo))
            .file("empty", b""),
        second.file(&bottom, b"deep"),
    ];
    let scene = Scene::new(parts);
    let top = scene.top();
    let found = walk(&top);
    let mut expected: BTreeSet<String> = deep.into_iter().collect();
    let others = [
        "d", "d/own", "d/far", "d/again", "d/latest", "d/pipe", "empty", &bottom,
    ];
    expected.extend(others.map(str::to_owned));
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), expected);

    assert_eq!(fs::read(top.join("d/own")).unwrap(), b"own bytes");
    assert!(fs::read(top.join("d/far")).unwrap() == big);
    assert!(fs::read(top.join("d/latest")).unwrap() == big, "a link");
    assert!(fs::read(top.join("d/again")).unwrap() == big);
    assert_eq!(fs::read(top.join("empty")).unwrap(), b"");
    assert_eq!(fs::read(top.join(&bottom)).unwrap(), b"deep");

    let far = &found["d/far"];
    assert_eq!(
        (far.uid(), far.gid(), far.mode() & 0o7777),
        (1001, 1002, 0o640)
    );
    assert_eq!(
        (far.mtime(), far.mtime_nsec()),
        (1_700_000_001, 123_456_789)
    );
    assert_eq!((far.len(), far.nlink()), (big.len() as u64, 2));
    assert_eq!(far.ino(), found["d/again"].ino());
    assert!(found["d/pipe"].file_type().is_fifo());
    assert_eq!(
        fs::read_link(top.join("d/latest")).unwrap(),
        Path::new("far")
    );
    let file = File::open(top.join("d/far")).unwrap();
    let through = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let said = std::process::Command::new("getfattr")
        .args(["--dump", "-m", "-", "--absolute-names"])
        .arg(top.join("d/far"))
        .output();
    if let Ok(said) = said {
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.contains("user.step=\"12\""), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
    assert!(fs::metadata(through).unwrap().is_file());

    for (path, what) in [("d/far", "a far file"), ("n", "a far directory")] {
        let path = top.join(path);
        let open = File::options().write(true).open(&path);
        assert!(open.is_err(), "{what}");
        assert_eq!(
            errno(fs::rename(&path, top.join("x"))),
            Some(Errno::EROFS),
            "{what}"
        );
        assert_eq!(
            errno(fs::set_permissions(
                &path,
                std::os::unix::fs::PermissionsExt::from_mode(0o600)
            )),
            Some(Errno::EROFS),
            "{what}"
        );
    }
    assert_eq!(errno(fs::remove_dir(top.join("n"))), Some(Errno::ENOTEMPTY));
    assert_eq!(errno(fs::create_dir(top.join("n/new"))), Some(Errno::EROFS));
    assert_eq!(errno(File::create(top.join("n/new"))), Some(Errno::EROFS));
    assert_eq!(
        errno(File::options().write(true).open(top.join("d/far"))),
        Some(Errno::EROFS)
    );
    assert_eq!(errno(fs::metadata(top.join("d/none"))), Some(Errno::ENOENT));
    assert_eq!(errno(fs::metadata(top.join("n/none"))), Some(Errno::ENOENT));
}

#[test]
fn who_was_inside_when_it_was_sealed_sees_all_of_it() {
    let place = Place::new(64 * MIB);
    place.mount(&[]);
    let elsewhere = Elsewhere::new(vec![Part::default().directory("d").file("d/far", b"far")]);
    let manners = Manners {
        elsewhere: Some(elsewhere),
        ..Manners::default()
    };
    let _coordinator = place.coordinator(1, manners);
    let open = place.mnt().join("ckpt.tmp");
    fs::create_dir_all(open.join("d")).unwrap();
    fs::write(open.join("d/own"), b"own").unwrap();
    let inside = File::open(open.join("d")).unwrap();
    let through = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
    assert_eq!(names(&through), ["own"]);
    assert_eq!(errno(fs::read(through.join("far"))), Some(Errno::ENOENT));
    fs::rename(&open, place.mnt().join("ckpt")).unwrap();
    assert_eq!(names(&through), ["far", "own"]);
    assert_eq!(fs::read(through.join("far")).unwrap(), b"far");
}

#[test]
fn any_range_is_read_in_any_way() {
    let (one, two) = (pattern(2, 2 * MIB + 5), pattern(3, 5 * MIB));
    let (at_one, at_two, size) = (8192, 4 * MIB, 11 * MIB + 3);
    let part = Part::default()
        .file("before", &pattern(9, 12345))
        .sparse("f", size, &[(at_one, &one), (at_two, &two)])
        .file("after", b"after");
    let mut expected = vec![0; size as usize];
    expected[at_one as usize..][..one.len()].copy_from_slice(&one);
    expected[at_two as usize..][..two.len()].copy_from_slice(&two);
    let scene = Scene::new(vec![part]);
    let path = scene.top().join("f");
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut state = 12345u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let direct = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    for round in 0..200 {
        let (offset, len) = (random(size + 5000), random(300_000) as usize);
        let mut buffer = vec![7; len];
        let from = if round % 2 == 0 { &file } else { &direct };
        // A short read may come before the end; `read_at` says how much.
        let mut read = 0;
        while read < len {
            match from
                .read_at(&mut buffer[read..], offset + read as u64)
                .unwrap()
            {
                0 => break,
                more => read += more,
            }
        }
        let start = (offset as usize).min(expected.len());
        let end = (start + len).min(expected.len());
        assert_eq!(read, end - start, "{len} bytes from {offset}");
        assert!(
            buffer[..read] == expected[start..end],
            "{len} bytes from {offset}"
        );
    }
    assert_eq!(file.read_at(&mut [0; 10], size).unwrap(), 0, "at the end");
    assert_eq!(
        file.read_at(&mut [0; 10], size - 4).unwrap(),
        4,
        "over the end"
    );

    assert!(fs::read(&path).unwrap() == expected);
    // SAFETY: the file is sealed; nobody can change or truncate it.
    #[expect(unsafe_code, reason = "memory maps have no safe interface")]
    let map = unsafe { memmap2::Mmap::map(&File::open(&path).unwrap()).unwrap() };
    assert!(map[..] == expected[..], "mapped");
    let mut copy = tempfile::tempfile().unwrap();
    let sent = nix::sys::sendfile::sendfile64(&copy, &file, Some(&mut 0), 1 << 20).unwrap();
    assert!(sent > 0);
    let mut back = vec![0; sent];
    copy.seek(SeekFrom::Start(0)).unwrap();
    copy.read_exact(&mut back).unwrap();
    assert!(back == expected[..sent], "sendfile");
    let target = scene.place.mnt().join("other.tmp");
    fs::create_dir(&target).unwrap();
    fs::copy(&path, target.join("copy")).unwrap();
    assert!(
        fs::read(target.join("copy")).unwrap() == expected,
        "copied in the mount"
    );

    let seek = |offset: u64, whence| {
        let found = nix::unistd::lseek(&file, offset as i64, whence);
        found.map(|at| at as u64)
    };
    assert_eq!(seek(0, Whence::SeekData), Ok(at_one));
    assert_eq!(
        seek(at_one, Whence::SeekHole),
        Ok(at_one + one.len() as u64)
    );
    assert_eq!(seek(3 * MIB, Whence::SeekData), Ok(at_two));
    assert_eq!(
        seek(at_two + 1, Whence::SeekHole),
        Ok(at_two + two.len() as u64)
    );
    assert_eq!(seek(10 * MIB, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(seek(size, Whence::SeekHole), Err(Errno::ENXIO));
}

#[test]
fn bytes_are_fetched_once_and_kept_by_the_kernel() {
    let bytes = pattern(4, 40 * MIB);
    let scene = Scene::new(vec![Part::default().file("f", &bytes)]);
    let path = scene.top().join("f");
    assert!(fs::read(&path).unwrap() == bytes);
    let asked = scene.asked_for_log();
    assert_eq!(asked, 40, "each MiB once");
    // The kernel may have had to give some of it back meanwhile.
    until("all of it is read from memory", || {
        let before = scene.asked_for_log();
        assert!(fs::read(&path).unwrap() == bytes);
        scene.asked_for_log() == before
    });
}

#[test]
fn wrong_manifests_are_an_error_and_never_a_listing() {
    let parts = vec![
        Part::default().file("one", b"1"),
        Part::default().file("two", b"2"),
    ];
    let scene = Scene::new(parts);
    let hows = [
        How::DamagedManifests,
        How::OtherManifests,
        How::Short,
        How::Long,
        How::Refused(Refusal::Failed),
        How::Refused(Refusal::Missing),
    ];
    for how in hows {
        scene.elsewhere.bring(how);
        let listing: std::io::Result<Vec<_>> =
            fs::read_dir(scene.top()).and_then(|names| names.collect());
        assert_eq!(errno(listing), Some(Errno::EIO), "{how:?}");
        for name in ["one", "d", "none"] {
            let found = fs::symlink_metadata(scene.top().join(name));
            assert_eq!(errno(found), Some(Errno::EIO), "{name}: {how:?}");
        }
    }
    assert!(scene.top().is_dir(), "the top itself is known");
    scene.elsewhere.bring(How::Well);
    assert_eq!(names(&scene.top()), ["d", "d/own", "one", "two"]);
}

#[test]
fn wrong_bytes_are_an_error_and_the_next_reader_tries_again() {
    let bytes = pattern(5, 3 * MIB);
    let scene = Scene::new(vec![Part::default().file("f", &bytes)]);
    assert_eq!(names(&scene.top()), ["d", "d/own", "f"]);
    for how in [How::Short, How::Long, How::Refused(Refusal::Failed)] {
        scene.elsewhere.bring(how);
        assert_eq!(
            errno(fs::read(scene.top().join("f"))),
            Some(Errno::EIO),
            "{how:?}"
        );
        assert_eq!(fs::read(scene.top().join("d/own")).unwrap(), b"own bytes");
    }
    let log = scene.log();
    assert!(log.contains("cannot read a file of another node"), "{log}");
    scene.elsewhere.bring(How::Well);
    assert!(fs::read(scene.top().join("f")).unwrap() == bytes);
}

#[test]
fn a_read_waits_for_the_next_coordinator() {
    let bytes = pattern(6, 5 * MIB);
    let mut scene = Scene::new(vec![Part::default().file("f", &bytes)]);
    assert_eq!(names(&scene.top()), ["d", "d/own", "f"]);
    scene.elsewhere.bring(How::Never);
    let path = scene.top().join("f");
    let readers: Vec<_> = (0..12u64)
        .map(|reader| {
            let path = path.clone();
            std::thread::spawn(move || {
                let file = File::open(path).unwrap();
                let mut bytes = vec![0; 100_000];
                let from = reader * 400_000;
                file.read_exact_at(&mut bytes, from).unwrap();
                (from as usize, bytes)
            })
        })
        .collect();
    until("pieces are asked for", || scene.asked_for_log() >= 5);
    // All of them wait, and nobody else does.
    assert_eq!(fs::read(scene.top().join("d/own")).unwrap(), b"own bytes");
    fs::create_dir(scene.place.mnt().join("next.tmp")).unwrap();
    assert_eq!(scene.place.status()["epoch"], 1);

    drop(scene.coordinator.take());
    scene.elsewhere.bring(How::Refused(Refusal::Again));
    scene.connect(2);
    let before = scene.asked_for_log();
    until("they are asked for again", || {
        scene.asked_for_log() > before
    });
    scene.elsewhere.bring(How::Well);
    for reader in readers {
        let (from, found) = reader.join().unwrap();
        assert!(found == bytes[from..from + found.len()], "from {from}");
    }
}

#[test]
fn without_a_coordinator_a_read_fails_after_the_grace_time() {
    let bytes = pattern(7, 2 * MIB);
    let mut scene = Scene::new(vec![Part::default().file("f", &bytes)]);
    assert_eq!(names(&scene.top()), ["d", "d/own", "f"]);
    drop(scene.coordinator.take());
    let began = Instant::now();
    assert_eq!(errno(fs::read(scene.top().join("f"))), Some(Errno::EIO));
    assert!(began.elapsed() >= Duration::from_secs(2), "it waited");
    assert_eq!(fs::read(scene.top().join("d/own")).unwrap(), b"own bytes");
    scene.connect(2);
    assert!(fs::read(scene.top().join("f")).unwrap() == bytes);
}

#[test]
fn one_path_of_two_slots_is_listed_and_cannot_be_opened() {
    let parts = vec![
        Part::default()
            .directory("d")
            .file("d/own", b"not the same")
            .file("shared", b"1111")
            .symlink("link", "there"),
        Part::default()
            .directory("d")
            .file("d/good", b"good")
            .file("shared", b"2222")
            .symlink("link", "there"),
    ];
    let scene = Scene::new(parts);
    let listed = |path: &str| {
        let entries = fs::read_dir(scene.top().join(path)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(
        listed(""),
        ["d", "link", "shared"].map(str::to_owned).into()
    );
    assert_eq!(listed("d"), ["good", "own"].map(str::to_owned).into());
    // Not even the node that has one of them may take it for the file.
    until("the kernel forgets what it knew before the seal", || {
        errno(File::open(scene.top().join("d/own"))) == Some(Errno::EIO)
    });
    assert_eq!(
        errno(File::open(scene.top().join("shared"))),
        Some(Errno::EIO)
    );
    assert_eq!(fs::read(scene.top().join("d/good")).unwrap(), b"good");
    assert_eq!(
        fs::read_link(scene.top().join("link")).unwrap(),
        Path::new("there")
    );
    let log = scene.log();
    let said = log
        .lines()
        .find(|line| line.contains("two slots wrote") && line.contains("shared"));
    let said = said.unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains("slot 1") && said.contains("slot 2"), "{said}");
}

#[test]
fn files_that_come_to_this_node_or_leave_it_are_found_where_they_are() {
    let bytes = pattern(10, MIB + 3);
    let part = Part::default()
        .directory("d")
        .directory("d/below")
        .file("d/below/far", &bytes);
    let mut scene = Scene::new(vec![part]);
    let path = scene.top().join("d/below/far");
    let all = ["d", "d/below", "d/below/far", "d/own"];
    assert_eq!(names(&scene.top()), all);
    let inside = File::open(scene.top().join("d/below")).unwrap();
    let through = PathBuf::from(format!("/proc/self/fd/{}", inside.as_raw_fd()));
    let before = fs::metadata(&path).unwrap().ino();

    // A recovery has put the other slot here as well.
    let cache = CachePaths::at(&scene.place.job());
    let tree = cache.tree(DatasetId(1), Slot(1));
    fs::create_dir_all(tree.join("d/below")).unwrap();
    fs::write(tree.join("d/below/far"), &bytes).unwrap();
    scene.connect(2);
    let here = fs::metadata(tree.join("d/below/far")).unwrap().ino();
    until("it is this node's own file", || {
        fs::metadata(&path).unwrap().ino() == here
    });
    let asked = scene.asked_for_log();
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(scene.asked_for_log(), asked, "nothing is fetched any more");
    assert_eq!(names(&scene.top()), all);
    assert_eq!(names(&through), ["far"], "for who is inside");

    fs::remove_dir_all(cache.slot(DatasetId(1), Slot(1), Keep::Own)).unwrap();
    scene.connect(3);
    until("it is elsewhere again", || {
        fs::metadata(&path).unwrap().ino() == before
    });
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(names(&scene.top()), all);
    assert_eq!(names(&through), ["far"], "for who is inside");
}

#[test]
fn ten_thousand_far_files_are_listed() {
    let mut part = Part::default().directory("many");
    for index in 0..10_000 {
        part = part.file(&format!("many/f{index:05}"), format!("{index}").as_bytes());
    }
    let scene = Scene::new(vec![part]);
    let many = scene.top().join("many");
    let found = walk(&many);
    assert_eq!(found.len(), 10_000);
    let numbers: BTreeSet<u64> = found.values().map(MetadataExt::ino).collect();
    assert_eq!(numbers.len(), 10_000, "one number each");
    for index in [0, 1, 4999, 9999] {
        let path = many.join(format!("f{index:05}"));
        assert_eq!(fs::read_to_string(path).unwrap(), index.to_string());
    }
    assert_eq!(scene.asked_for_log(), 1, "small files share a block");
    let again = walk(&many);
    let same = found
        .iter()
        .zip(&again)
        .all(|(one, other)| one.0 == other.0 && one.1.ino() == other.1.ino());
    assert!(same, "numbers stay");
}

#[test]
fn a_node_that_has_nothing_of_it_shows_all_of_it() {
    let place = Place::new(64 * MIB);
    let own = Part::default().file("zero", b"0");
    let elsewhere = Elsewhere::new(vec![
        own,
        Part::default()
            .directory("d")
            .file("d/one", &pattern(8, MIB + 1)),
    ]);
    // This node came after the seal: it has the record, and no part. Slot 0 was another node's.
    let id = DatasetId(1);
    let cache = CachePaths::at(&place.job());
    let nothing = scrfs_fuse_tests::elsewhere::encode(&scrfs::layout::manifest::Manifest {
        dataset: id,
        slot: Slot(0),
        epoch: Epoch(1),
        root_mtime: (0, 0),
        entries: Vec::new(),
        log_bytes: 0,
    });
    let mut parts = vec![nothing.1];
    parts.extend(elsewhere.summaries(id));
    let record = DatasetRecord {
        id,
        name: Name::new(b"ckpt").unwrap(),
        committed_from: None,
        class: Class::Checkpoint,
        checkpoint: Some(1),
        phase: Phase::Sealed,
        epoch: Epoch(1),
        created: 1,
        sealed: Some(1_700_000_000_500),
        protected: None,
        flushing: false,
        flushed: None,
        seal: Some(seal_of(Epoch(1), parts)),
        error: None,
        mode: 0o750,
        uid: 1001,
        gid: 1002,
    };
    let copy = cache.slot(id, Slot(0), Keep::Copy);
    use std::os::unix::fs::DirBuilderExt;
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(&copy).unwrap();
    fs::write(copy.join("manifest"), nothing.0).unwrap();
    fs::write(cache.record(id), envelope::seal(Kind::Dataset, &record)).unwrap();
    place.mount(&[]);
    let manners = Manners {
        elsewhere: Some(elsewhere.clone()),
        ..Manners::default()
    };
    let _coordinator = place.coordinator(1, manners);
    let top = place.mnt().join("ckpt");
    let stat = fs::metadata(&top).unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.uid(), stat.gid()),
        (0o750, 1001, 1002)
    );
    assert_eq!(
        (stat.mtime(), stat.mtime_nsec()),
        (1_700_000_000, 500_000_000)
    );
    assert_eq!(names(&top), ["d", "d/one", "zero"]);
    let listed: Vec<_> = fs::read_dir(place.mnt())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() == "ckpt")
        .map(|entry| entry.ino())
        .collect();
    assert_eq!(listed, [stat.ino()]);
    assert!(fs::read(top.join("d/one")).unwrap() == pattern(8, MIB + 1));
    assert_eq!(errno(File::create(top.join("new"))), Some(Errno::EROFS));
    File::open(&top).unwrap().sync_all().unwrap();
    let manifests = elsewhere.asked();
    let manifests = manifests
        .iter()
        .filter(|(_, piece)| *piece == Piece::Manifest);
    let slots: Vec<u32> = manifests.map(|(slot, _)| slot.0).collect();
    assert_eq!(slots, [1, 2], "once each, and not the one that lies here");
}
