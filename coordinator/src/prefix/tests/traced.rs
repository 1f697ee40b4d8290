//! Killed, or refused, at every single system call that changes something.
//!
//! A child does one of everything: flushes a dataset, completes it, retires an old one, deletes one, drops one
//! and adds it again, chooses one, writes a pointer file. It is traced: before its n-th call that would change a file it
//! is killed, or that call fails with an error of a file system that is in trouble. Afterwards the prefix must
//! show datasets that are complete, and the same work, done again, must come to its end.
//!
//! Some of the calls are tried, others each time; all of them with `SCRFS_TRACE_ALL=1`, which takes minutes.

use super::tracer::{Call, Fate, Watch, trace, traced_world};
use super::*;
use nix::errno::Errno;
use nix::unistd::Pid;
use scrfs::layout::envelope::{Kind, open, seal};
use scrfs::layout::pointer::{Content, Pointer, PointerRecord, Pointers, Version};
use std::collections::BTreeSet;

const CHILD: &str = "prefix::tests::traced::the_child";

/// Calls that change what is on disk, or make sure of it.
const CHANGING: [i64; 27] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mknodat,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_copy_file_range,
    libc::SYS_openat,
    libc::SYS_openat2,
];

/// Everything, each part of it as far as it has not been done.
fn work(prefix: &Prefix, cache: &CachePaths, record: &DatasetRecord) -> Result<(), PrefixError> {
    let limits = FlushLimits {
        streams: 2,
        ..FlushLimits::default()
    };
    prefix.reconcile(&BTreeSet::from([record.key()]))?;
    for slot in 0..2 {
        let part = Part::open(&PosixStore::new(), cache, record, Slot(slot))?;
        prefix.flush_part(record, &part, limits, &|_| {}, &GO)?;
    }
    prefix.complete_flush(record)?;
    prefix.retain(1, &BTreeSet::new())?;
    let name = |text: &[u8]| Name::new(text).unwrap();
    let missing_is_fine = |result: Result<DatasetKey, PrefixError>| match result {
        Err(PrefixError::NoSuch { .. }) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    missing_is_fine(prefix.delete(&name(b"ckpt.3"), false))?;
    missing_is_fine(prefix.drop_entry(&name(b"ckpt.2")))?;
    prefix.add(&name(b"ckpt.2"), scrfs::config::Class::Output, &|_, _| {})?;
    prefix.choose(&name(b"ckpt.5"), None)?;
    prefix.write_pointers(&latest())
}

/// The pointer file `latest`, which says `ckpt.5`.
fn latest() -> Pointers {
    let mut due = Pointers::default();
    let pointer = PointerRecord {
        version: Version { term: 2, number: 1 },
        after: None,
        pointer: Some(Pointer {
            content: Content::File(b"ckpt.5".into()),
            mode: 0o640,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            mtime: (1_000_000_000, 5),
        }),
    };
    due.learn(Name::new(b"latest").unwrap(), pointer);
    due
}

#[test]
fn the_child() {
    let Some(root) = traced_world() else { return };
    let record = fs::read(root.join("record")).unwrap();
    let record: DatasetRecord = open(Kind::Dataset, &record).unwrap();
    let prefix = Prefix::at(&root.join("prefix")).of_job("job");
    let cache = CachePaths::at(&root.join("cache"));
    for try_again in [true, false] {
        match work(&prefix, &cache, &record) {
            Ok(()) => return,
            Err(error) if try_again => println!("refused: {error:?}"),
            Err(error) => panic!("again: {error:?}"),
        }
    }
}

/// What happens at the n-th call that changes something; counts them.
struct Nth {
    count: usize,
    at: usize,
    fate: Fate,
}

impl Nth {
    fn new(at: usize, fate: Fate) -> Self {
        let count = 0;
        Self { count, at, fate }
    }
}

impl Watch for Nth {
    fn enters(&mut self, _thread: Pid, call: &Call) -> Fate {
        let makes = match call.number {
            // To stdout and stderr.
            libc::SYS_write => call.arguments[0] > 2,
            libc::SYS_openat => call.arguments[2] as i32 & libc::O_CREAT != 0,
            // How it is opened is in memory: all of them.
            number => CHANGING.contains(&number),
        };
        self.count += usize::from(makes);
        match makes && self.count == self.at {
            true => self.fate,
            false => Fate::Goes,
        }
    }
}

/// A world with ckpt.2 to ckpt.4 flushed and ckpt.5 to be flushed.
fn world() -> (World, DatasetRecord) {
    let mut world = World::new();
    world.prefix.job = "job".into();
    for (id, class) in [
        (2, scrfs::config::Class::Output),
        (3, scrfs::config::Class::Output),
        (4, scrfs::config::Class::Checkpoint),
    ] {
        let mut old = world.files(id, &format!("ckpt.{id}"), &[("a", b"old")]);
        old.class = class;
        world.flush(&old);
    }
    for slot in 0..2 {
        let tree = world.cache.tree(DatasetId(5), Slot(slot));
        fs::create_dir_all(tree.join("shared")).unwrap();
        fs::write(
            tree.join(format!("shared/rank_{slot}")),
            [slot as u8; 300_000],
        )
        .unwrap();
        fs::write(tree.join(format!("empty_{slot}")), b"").unwrap();
        symlink("empty_0", tree.join(format!("link_{slot}"))).unwrap();
        fs::hard_link(
            tree.join(format!("shared/rank_{slot}")),
            tree.join(format!("twin_{slot}")),
        )
        .unwrap();
    }
    let record = sealed(&world.cache, 5, "ckpt.5", 2);
    let bytes = seal(Kind::Dataset, &record);
    fs::write(world.root.path().join("record"), bytes).unwrap();
    (world, record)
}

/// That what is shown is whole, and that the work comes to its end.
fn check(world: &World, record: &DatasetRecord, at: usize, said: &str) {
    let root = world.prefix.paths().root();
    let is_whole = |name: &str| fs::read(root.join(name).join("a")).is_ok_and(|it| it == b"old");
    assert!(
        is_whole("ckpt.2"),
        "{at}: ckpt.2 was only dropped and added; {said}"
    );
    for name in ["ckpt.3", "ckpt.4"] {
        let gone = !root.join(name).exists();
        assert!(
            gone || is_whole(name),
            "{at}: half of {name} is there; {said}"
        );
    }
    let latest = fs::read(root.join("latest"));
    let is_whole = latest.as_ref().is_ok_and(|said| said == b"ckpt.5");
    assert!(is_whole || latest.is_err(), "{at}: {latest:?}; {said}");
    let shown = root.join("ckpt.5").exists();
    assert!(
        !shown || world.has_all_of(record),
        "{at}: half of ckpt.5 is there; {said}"
    );
    work(&world.prefix, &world.cache, record)
        .unwrap_or_else(|error| panic!("{at}: {error:?}; {said}"));
    assert!(world.has_all_of(record), "{at}: {said}");
    assert_eq!(
        world.ids(),
        [(2, EntryState::Complete), (5, EntryState::Complete)],
        "{at}: {said}"
    );
    let gone: Vec<_> = world
        .prefix
        .gone()
        .unwrap()
        .iter()
        .map(|key| key.id.0)
        .collect();
    assert_eq!(gone, [3, 4], "{at}: {said}");
    assert!(!root.join("ckpt.3").exists() && !root.join("ckpt.4").exists());
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(world.leftovers(), [""; 0], "{at}: {said}");
    let current = world.prefix.choice().unwrap().map(|choice| choice.key);
    assert_eq!(current, Some(record.key()));
    let name = Name::new(b"latest").unwrap();
    let turns: Vec<_> = fs::read_dir(world.prefix.paths().turns(&name))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let told: Vec<_> = turns.iter().filter(|it| !it.starts_with('.')).collect();
    let has_ended = matches!(told[..], [one] if !one.ends_with("begun"));
    assert!(has_ended, "{at}: {turns:?}; {said}");
    assert_eq!(fs::read(root.join("latest")).unwrap(), b"ckpt.5");
}

/// Which of so many calls are tried.
fn tried(calls: usize) -> impl Iterator<Item = usize> {
    const STEP: usize = 9;
    let all = std::env::var_os("SCRFS_TRACE_ALL").is_some();
    let first = if all {
        0
    } else {
        std::process::id() as usize % STEP
    };
    (1 + first..=calls).step_by(if all { 1 } else { STEP })
}

/// How often the work changes something when nothing happens to it.
fn calls() -> Option<usize> {
    let (world, record) = world();
    let mut watch = Nth::new(0, Fate::Goes);
    let said = trace(CHILD, world.root.path(), &mut watch)?;
    let count = watch.count;
    assert!(said.contains("test result: ok"), "{said}");
    assert!(world.has_all_of(&record));
    assert!(count > 100, "{count}");
    Some(count)
}

#[test]
fn invariant_killed_at_any_call_nothing_is_half_visible_and_nothing_lost() {
    let Some(calls) = calls() else { return };
    for at in tried(calls) {
        let (world, record) = world();
        let mut watch = Nth::new(at, Fate::Killed);
        let Some(said) = trace(CHILD, world.root.path(), &mut watch) else {
            return;
        };
        check(&world, &record, at, &said);
    }
}

#[test]
fn invariant_refused_at_any_call_the_next_try_comes_to_its_end() {
    let Some(calls) = calls() else { return };
    let troubles = [Errno::EIO, Errno::ENOSPC, Errno::ESTALE, Errno::EROFS];
    let mut refused = 0;
    for (at, errno) in tried(calls).zip(troubles.into_iter().cycle()) {
        let (world, record) = world();
        let mut watch = Nth::new(at, Fate::Refused(errno));
        let Some(said) = trace(CHILD, world.root.path(), &mut watch) else {
            return;
        };
        assert!(said.contains("test result: ok"), "{at} {errno}: {said}");
        if let Some(error) = said.lines().find(|line| line.starts_with("refused: ")) {
            refused += 1;
            let root = world.root.path().to_str().unwrap();
            assert!(error.contains(root), "no path in {error}");
        }
        check(&world, &record, at, &said);
    }
    let all = tried(calls).count();
    assert!(refused > all / 2, "{refused} of {all}");
}
