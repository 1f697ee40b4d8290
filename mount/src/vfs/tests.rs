//! The filesystem without a kernel, on a temporary directory, with a coordinator played by hand.
//!
//! Not tested here: what only a kernel does (passthrough, lifetimes, locks); see `fuse-tests`.

mod closed;
mod shelf;

use super::attr::SetAttr;
use super::requests::Settled;
use super::*;
use scrfs::config::{Class, CommitWait, NameTemplate, Pattern, Tier, Trigger, When};
use scrfs::control::{DirectoryChange, Refusal, Request};
use scrfs::id::{Epoch, Slot};
use scrfs::interval::Verdict;
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::name::Name;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{self, Receiver};

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

struct World {
    _directory: tempfile::TempDir,
    vfs: Arc<Vfs>,
    said: Receiver<FromDaemon>,
}

fn me() -> Caller {
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    Caller { uid, gid, ..ME }
}

thread_local! {
    /// What time it is for the mount of this test.
    static CLOCK: std::cell::Cell<u64> = const { std::cell::Cell::new(1_000) };
    /// Whether callers open what they look up.
    static REACHES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn rules() -> scrfs::interval::Rules {
    let env = |_: &str| None;
    let sources = scrfs::config::Sources {
        env: &env,
        user: Some((
            "user.toml".into(),
            "prefix = \"/p\"\n[advice]\ninterval = 3\nseconds = 60".into(),
        )),
        system: None,
        cli: Vec::new(),
    };
    let (config, _) = scrfs::config::Config::load(&sources).expect("a configuration");
    scrfs::interval::Rules::of(&config)
}

fn record(id: u64, name: &str, phase: Phase, from: Option<&str>) -> DatasetRecord {
    DatasetRecord {
        id: DatasetId(id),
        name: Name::new(name.as_bytes()).expect("a name"),
        committed_from: from.map(|from| Name::new(from.as_bytes()).expect("a name")),
        class: Class::Checkpoint,
        checkpoint: None,
        phase,
        epoch: Epoch(1),
        created: 1,
        sealed: None,
        protected: None,
        flushing: false,
        flushed: None,
        seal: None,
        error: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    }
}

impl World {
    fn new(is_renaming: fn(u32) -> Option<bool>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let vfs = Vfs::new(Settings {
            files: 1024,
            in_place: None,
            space: Arc::new(crate::space::Spaces::unlimited(CachePaths::at(
                directory.path(),
            ))),
            cache: CachePaths::at(directory.path()),
            commit: CommitConfig {
                wait: CommitWait::Sealed,
                grace_seconds: 60,
                temporary: vec![Pattern::new("*.tmp").expect("a pattern")],
                triggers: vec![Trigger {
                    pattern: Pattern::new("global_step*").expect("a pattern"),
                    when: When::Pointer {
                        file: Name::new(b"latest").expect("a name"),
                        names: NameTemplate::new("{content}").expect("a template"),
                    },
                    settle_seconds: 7,
                    tier: Tier::Profile,
                }],
            },
            grace: Duration::from_secs(60),
            config_text: "config\n".into(),
            daemon_text: "daemon\n".into(),
            top: (0, 0, 0o755),
            rules: rules(),
            clock: || CLOCK.with(std::cell::Cell::get),
            asker: |_| scrfs::interval::Asker::UNSEEN,
            is_renaming,
            is_removing: |_| None,
            is_reaching: |_, _| Some(REACHES.get()),
        });
        let (outbox, said) = mpsc::channel();
        vfs.requests().connect(outbox, |_| Settled::Unknown);
        Self {
            _directory: directory,
            vfs,
            said,
        }
    }

    /// A dataset as the coordinator would publish it.
    fn publish(&self, id: u64, name: &str, phase: Phase, from: Option<&str>) {
        self.put(record(id, name, phase, from));
    }

    fn put(&self, record: DatasetRecord) {
        let tree = self.vfs.settings().cache.tree(record.id, Slot(0));
        std::fs::create_dir_all(&tree).expect("a tree");
        self.vfs.publish(record);
    }

    fn lookup(&self, path: &str) -> FsResult<Entry> {
        let mut parent = ROOT;
        let mut found = Err(FsError::Missing);
        for part in path.split('/') {
            let entry = wait(|answer| self.vfs.lookup(me(), parent, OsStr::new(part), answer))?;
            parent = entry.attr.ino;
            found = Ok(entry);
        }
        found
    }

    fn ino(&self, path: &str) -> u64 {
        self.lookup(path).expect("it is there").attr.ino
    }

    fn create(&self, parent: u64, name: &str) -> FsResult<u64> {
        wait(|answer| {
            let flags = libc::O_WRONLY | libc::O_CREAT;
            self.vfs
                .create(me(), (parent, OsStr::new(name)), 0o644, flags, answer);
        })
        .map(|(_, handle)| handle)
    }

    fn read(&self, handle: u64, offset: u64, size: usize) -> Vec<u8> {
        wait(|answer| {
            let answer = |bytes: FsResult<&[u8]>| answer(bytes.map(<[u8]>::to_vec));
            self.vfs.read(handle, offset, size, answer);
        })
        .expect("read")
    }

    fn asked(&self) -> (u64, Request) {
        loop {
            match self
                .said
                .recv_timeout(Duration::from_secs(10))
                .expect("a request")
            {
                FromDaemon::Request { request, what } => return (request, what),
                _ => continue,
            }
        }
    }
}

fn wait<T: Send + 'static>(begin: impl FnOnce(Box<dyn FnOnce(FsResult<T>) + Send>)) -> FsResult<T> {
    let (done, result) = mpsc::channel();
    begin(Box::new(move |answer| {
        let _ = done.send(answer);
    }));
    result
        .recv_timeout(Duration::from_secs(10))
        .expect("an answer")
}

#[test]
fn a_dataset_is_made_by_the_coordinator_and_then_found() {
    let world = World::new(|_| Some(false));
    let (done, result) = mpsc::channel();
    world
        .vfs
        .mkdir(me(), ROOT, OsStr::new("a.tmp"), 0o750, move |made| {
            let _ = done.send(made);
        });
    let (request, what) = world.asked();
    assert!(
        matches!(what, Request::Create { name, mode: 0o750, .. } if name.as_bytes() == b"a.tmp")
    );
    assert!(
        result.try_recv().is_err(),
        "not before the coordinator says so"
    );
    world.publish(1, "a.tmp", Phase::Open, None);
    world.vfs.requests().reply(request, Ok(()));
    let made = result.recv().expect("an answer").expect("made");
    assert_eq!(made.attr.ino, world.ino("a.tmp"));
    assert_eq!(
        made.entry_ttl,
        Duration::ZERO,
        "names at the top are never cached"
    );
}

#[test]
fn renaming_to_a_temporary_name_does_not_commit() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let rename = |from: &str, to: &str| {
        let (from, to) = ((ROOT, OsStr::new(from)), (ROOT, OsStr::new(to)));
        world.vfs.rename(from, to, 0, |_| ());
    };
    rename("a.tmp", "b.tmp");
    assert!(matches!(world.asked().1, Request::Rename { .. }));
    rename("a.tmp", "b");
    assert!(matches!(world.asked().1, Request::Commit { .. }));
}

#[test]
fn a_sealed_dataset_refuses_every_change_and_is_read() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let top = world.ino("a.tmp");
    let handle = world.create(top, "f").expect("created");
    assert_eq!(world.vfs.write(handle, 0, b"bytes", true), Ok(5));
    world.vfs.release(handle);
    world.publish(1, "a", Phase::Sealed, Some("a.tmp"));
    assert_eq!(world.create(top, "g"), Err(FsError::Sealed));
    let file = world.ino("a/f");
    let opened = wait(|answer| world.vfs.open(me(), file, libc::O_RDWR, answer));
    assert_eq!(opened, Err(FsError::Sealed));
    assert_eq!(
        wait(|answer| world.vfs.link(file, top, OsStr::new("h"), answer)),
        Err(FsError::Sealed)
    );
    let wanted = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let changed = wait(|answer| world.vfs.setattr(me(), file, None, wanted, answer));
    assert_eq!(changed, Err(FsError::Sealed));
    let handle = wait(|answer| world.vfs.open(me(), file, libc::O_RDONLY, answer)).expect("open");
    assert_eq!(world.read(handle, 1, 100), b"ytes");
}

#[test]
fn a_late_rename_finds_the_dataset_and_nobody_else_does() {
    let renaming = World::new(|_| Some(true));
    renaming.publish(1, "a.tmp", Phase::Open, None);
    renaming.publish(1, "a", Phase::Sealed, Some("a.tmp"));
    assert_eq!(
        renaming.ino("a.tmp"),
        renaming.ino("a"),
        "rename of an inode to itself succeeds"
    );
    let other = wait(|answer| {
        let (from, to) = ((ROOT, OsStr::new("a.tmp")), (ROOT, OsStr::new("c")));
        renaming.vfs.rename(from, to, 0, answer);
    });
    assert_eq!(other, Err(FsError::Missing));
    renaming.publish(2, "a.tmp", Phase::Open, None);
    assert_ne!(
        renaming.ino("a.tmp"),
        renaming.ino("a"),
        "a new dataset takes the name"
    );

    let making = World::new(|_| Some(false));
    making.publish(1, "a.tmp", Phase::Open, None);
    making.publish(1, "a", Phase::Sealed, Some("a.tmp"));
    assert_eq!(making.lookup("a.tmp"), Err(FsError::Missing));
}

#[test]
fn changes_of_directories_are_asked_and_carried_out_once() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let top = world.ino("a.tmp");
    world.vfs.mkdir(me(), top, OsStr::new("d"), 0o755, |_| ());
    let Request::Change { dataset, change } = world.asked().1 else {
        panic!("a change")
    };
    assert_eq!(
        world.lookup("a.tmp/d"),
        Err(FsError::System(Errno::ENOENT)),
        "not done yet"
    );
    assert_eq!(world.vfs.carry_out(dataset, &change), Ok(()));
    assert!(world.lookup("a.tmp/d").is_ok());
    assert_eq!(
        world.vfs.carry_out(dataset, &change),
        Err(FsError::System(Errno::EEXIST))
    );
    assert_eq!(
        world.vfs.settled(&Request::Change { dataset, change }),
        Settled::Here(Refusal::Exists),
        "others may lack it"
    );

    let inner = world.ino("a.tmp/d");
    world.vfs.mkdir(me(), inner, OsStr::new("e"), 0o755, |_| ());
    let Request::Change { change, .. } = world.asked().1 else {
        panic!("a change")
    };
    let DirectoryChange::Make { path, .. } = &change else {
        panic!("mkdir")
    };
    assert_eq!(path.as_bytes(), b"d/e", "paths are below the dataset");
}

#[test]
fn an_exchange_asked_twice_is_done_once() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let dataset = DatasetId(1);
    let path = |path: &[u8]| scrfs::name::RelPath::new(path).expect("a path");
    for name in [b"one".as_slice(), b"two", b"one/first"] {
        let change = DirectoryChange::Make {
            path: path(name),
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        assert_eq!(world.vfs.carry_out(dataset, &change), Ok(()));
    }
    let exchange = |token| {
        let change = DirectoryChange::Exchange {
            one: path(b"one"),
            other: path(b"two"),
            token,
        };
        world.vfs.carry_out(dataset, &change)
    };
    let first_is_in = |name: &str| world.lookup(&format!("a.tmp/{name}/first")).is_ok();
    for token in [7, 7] {
        assert_eq!(exchange(token), Ok(()));
        assert!(first_is_in("two") && !first_is_in("one"), "{token}");
    }
    for token in [8, 8] {
        assert_eq!(exchange(token), Ok(()));
        assert!(first_is_in("one") && !first_is_in("two"), "{token}");
    }
    let top = world.ino("a.tmp");
    let names = [OsStr::new("one"), OsStr::new("two")];
    world.vfs.rename(
        (top, names[0]),
        (top, names[1]),
        libc::RENAME_EXCHANGE,
        |_| (),
    );
    let asked = world.asked().1;
    assert_eq!(world.vfs.settled(&asked), Settled::Unknown);
    assert!(matches!(
        asked,
        Request::Change {
            change: DirectoryChange::Exchange { .. },
            ..
        }
    ));
}

#[test]
fn a_rename_asked_again_is_done_where_it_was_not_and_once() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let dataset = DatasetId(1);
    let path = |path: &[u8]| scrfs::name::RelPath::new(path).expect("a path");
    let make = |name: &[u8]| DirectoryChange::Make {
        path: path(name),
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    for name in [b"old".as_slice(), b"old/first"] {
        assert_eq!(world.vfs.carry_out(dataset, &make(name)), Ok(()));
    }
    let top = world.ino("a.tmp");
    let names = [OsStr::new("old"), OsStr::new("new")];
    let ask = || {
        let (from, to) = ((top, names[0]), (top, names[1]));
        world.vfs.rename(from, to, 0, |_| ());
        world.asked().1
    };
    let asked = ask();
    let Request::Change { change, .. } = &asked else {
        panic!("a change")
    };
    // A node that has not done it, when its coordinator went.
    assert_eq!(world.vfs.settled(&asked), Settled::Unknown);
    assert_eq!(world.vfs.carry_out(dataset, change), Ok(()));
    assert!(world.lookup("a.tmp/new/first").is_ok());
    // One that has: the others are still to be asked.
    assert_eq!(world.vfs.settled(&asked), Settled::Here(Refusal::Missing));
    assert_eq!(world.vfs.carry_out(dataset, change), Ok(()));
    // What another program has made of the old name meanwhile is not what was meant.
    assert_eq!(world.vfs.carry_out(dataset, &make(b"old")), Ok(()));
    assert_eq!(world.vfs.settled(&asked), Settled::Unknown);
    assert_eq!(world.vfs.carry_out(dataset, change), Ok(()));
    assert!(world.lookup("a.tmp/old").is_ok() && world.lookup("a.tmp/new/first").is_ok());
    // It is not taken for another rename of the same names.
    let change = DirectoryChange::Remove {
        path: path(b"new/first"),
    };
    assert_eq!(world.vfs.carry_out(dataset, &change), Ok(()));
    let Request::Change { change, .. } = ask() else {
        panic!("a change")
    };
    assert_eq!(world.vfs.carry_out(dataset, &change), Ok(()));
    assert!(world.lookup("a.tmp/old").is_err());
}

#[test]
fn a_change_does_not_follow_links_out_of_the_dataset() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let top = world.ino("a.tmp");
    let target = OsStr::from_bytes(b"/tmp");
    let made = wait(|answer| {
        world
            .vfs
            .symlink(me(), top, OsStr::new("out"), target, answer)
    });
    made.expect("a link");
    let path = scrfs::name::RelPath::new(b"out/evil").expect("a path");
    let change = DirectoryChange::Make {
        path,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    assert!(world.vfs.carry_out(DatasetId(1), &change).is_err());
    assert!(!std::path::Path::new("/tmp/evil").exists());
}

#[test]
fn writers_are_counted_from_create_to_release() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let gate = world.vfs.gate(DatasetId(1)).expect("a gate");
    let handle = world.create(world.ino("a.tmp"), "f").expect("created");
    assert_eq!(gate.writers(), 1);
    gate.quiesce(Duration::ZERO);
    assert!(world.said.try_recv().is_err(), "not quiet");
    world.vfs.release(handle);
    assert_eq!(gate.writers(), 0);
    let said = world.said.recv().expect("quiet");
    let FromDaemon::Quiet { generation, .. } = said else {
        panic!("{said:?}")
    };
    assert!(gate.freeze(generation));
}

#[test]
fn a_writer_that_no_handle_stands_for_delays_quiet() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let tree = world.vfs.settings().cache.tree(DatasetId(1), Slot(0));
    std::fs::create_dir(tree.join("d")).expect("a directory");
    let behind = std::fs::File::create(tree.join("d/f")).expect("a file");
    let inode = world.vfs.inode(world.ino("a.tmp")).expect("its top");
    assert_eq!(writers::is_written(&inode), Ok(true));
    world
        .vfs
        .gate(DatasetId(1))
        .expect("a gate")
        .quiesce(Duration::ZERO);
    let silence = world.said.recv_timeout(Duration::from_millis(300));
    assert!(silence.is_err(), "{silence:?}");
    drop(behind);
    let said = world.said.recv_timeout(Duration::from_secs(10));
    assert!(matches!(said, Ok(FromDaemon::Quiet { .. })), "{said:?}");
}

#[test]
fn what_other_nodes_hide_counts_when_a_directory_is_removed() {
    let world = World::new(|_| Some(false));
    let dataset = DatasetId(1);
    let tree = world.vfs.settings().cache.tree(dataset, Slot(0));
    std::fs::create_dir_all(tree.join("d")).expect("a directory");
    for name in ["d/own", "d/theirs"] {
        std::fs::write(tree.join(name), name).expect("written");
    }
    world.publish(1, "a", Phase::Sealed, None);
    let status = |rank| scrfs::control::NodeStatus {
        node: format!("n{rank}"),
        rank: scrfs::id::Rank(rank),
        slot: Slot(rank),
        free_bytes: 0,
    };
    world.vfs.set_nodes(vec![status(0), status(1)]);
    let (top, directory) = (world.ino("a"), world.ino("a/d"));
    let path = |path: &[u8]| scrfs::name::RelPath::new(path).expect("a path");
    let own = OsStr::new("own");
    assert_eq!(
        wait(|answer| world.vfs.unlink(directory, own, answer)),
        Ok(())
    );
    // This node is asked what it hides, says so, and only once.
    let (done, told) = mpsc::channel();
    for turn in 0..2 {
        let done = done.clone();
        world.vfs.tell_hidden(dataset, move |result| {
            let _ = done.send(result);
        });
        if turn == 0 {
            let (request, asked) = world.asked();
            let names = vec![path(b"d/own")];
            let change = DirectoryChange::Hide { names };
            assert_eq!(asked, Request::Change { dataset, change });
            assert!(told.try_recv().is_err(), "before others know");
            world.vfs.requests().reply(request, Ok(()));
        }
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Ok(())));
    }
    // What is not there hides nothing; what is, all of it.
    for (hidden, expected) in [
        (None, Err(FsError::NotEmpty)),
        (Some("d/none"), Err(FsError::NotEmpty)),
        (Some("d/theirs"), Ok(())),
    ] {
        let (done, result) = mpsc::channel();
        world.vfs.rmdir(top, OsStr::new("d"), move |answer| {
            let _ = done.send(answer);
        });
        let (request, asked) = world.asked();
        let change = DirectoryChange::TellHidden;
        assert_eq!(asked, Request::Change { dataset, change });
        if let Some(hidden) = hidden {
            let names = vec![path(hidden.as_bytes())];
            let (done, told) = mpsc::channel();
            world.vfs.hide_all(dataset, names, move |result| {
                let _ = done.send(result);
            });
            assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Ok(())));
        }
        world.vfs.requests().reply(request, Ok(()));
        let result = result.recv_timeout(Duration::from_secs(10));
        assert_eq!(result, Ok(expected), "{hidden:?}");
    }
    assert!(world.lookup("a/d").is_err());
}

#[test]
fn reading_goes_on_where_it_stopped_while_entries_come_and_go() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let top = world.ino("a.tmp");
    for number in 0..3000 {
        let handle = world
            .create(top, &format!("file-{number:0>40}"))
            .expect("created");
        world.vfs.release(handle);
    }
    let handle = world.vfs.opendir(top).expect("open");
    let (mut offset, mut seen) = (0, std::collections::BTreeSet::new());
    loop {
        let items = wait(|answer| world.vfs.readdir(top, handle, offset, answer)).expect("read");
        let Some(last) = items.get(10).or(items.last()) else {
            break;
        };
        offset = last.next;
        for item in items.iter().take(11) {
            assert!(seen.insert(item.name.clone()), "twice");
        }
    }
    assert_eq!(seen.len(), 3002);
}

#[test]
fn programs_show_that_they_live_and_see_that_they_are_to_end() {
    let world = World::new(|_| Some(false));
    let read = |name: &str| {
        let ino = world.ino(name);
        let handle = wait(|answer| world.vfs.open(me(), ino, libc::O_RDONLY, answer));
        let handle = handle.expect("open");
        world.read(handle, 0, 100)
    };
    assert_eq!(read(".scr/should_exit"), b"0\n");
    world.vfs.signs().tell_exit(true);
    assert_eq!(read(".scr/should_exit"), b"1\n");
    let file = world.ino(".scr/should_exit");
    let opened = wait(|answer| world.vfs.open(me(), file, libc::O_WRONLY, answer));
    assert_eq!(opened, Err(FsError::NotPermitted));
    let file = world.ino(".scr/heartbeat");
    let handle = wait(|answer| world.vfs.open(me(), file, libc::O_WRONLY, answer));
    let handle = handle.expect("open");
    assert_eq!(world.vfs.write(handle, 7, b"alive\n", false), Ok(6));
    assert_eq!(world.vfs.signs().beats(), 1);
    // As `touch` and `>` do.
    let wanted = SetAttr::default();
    let touched = wait(|answer| world.vfs.setattr(me(), file, None, wanted, answer));
    assert_eq!(touched.expect("allowed").mode & 0o777, 0o666);
    assert_eq!(read(".scr/heartbeat"), b"2\n");
}

#[test]
fn the_control_directory_tells_states_and_is_not_writable() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a", Phase::Sealed, None);
    world.publish(2, "b.tmp", Phase::Open, None);
    world.publish(3, "c.tmp", Phase::Incomplete, None);
    assert!(world.lookup(".scr/status/a.sealed").is_ok());
    assert!(world.lookup(".scr/status/b.tmp.open").is_ok());
    assert!(world.lookup(".scr/incomplete/c.tmp").is_ok());
    assert_eq!(
        world.lookup("c.tmp"),
        Err(FsError::Missing),
        "not shown at the top"
    );
    let restart = world.ino(".scr/restart");
    assert_eq!(world.vfs.readlink(restart).expect("a link"), b"../a");
    let file = world.ino(".scr/status/a.sealed");
    let opened = wait(|answer| world.vfs.open(me(), file, libc::O_WRONLY, answer));
    assert_eq!(opened, Err(FsError::NotPermitted));
    let handle = wait(|answer| world.vfs.open(me(), file, libc::O_RDONLY, answer)).expect("open");
    let text = world.read(handle, 0, 1 << 20);
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(json["state"], "sealed");
    assert_eq!(json["current"], true);
}

#[test]
fn forgotten_datasets_give_back_their_inodes() {
    let world = World::new(|_| Some(false));
    world.publish(1, "a.tmp", Phase::Open, None);
    let top = world.ino("a.tmp");
    world.vfs.forget(top, 1);
    assert!(world.vfs.inodes.is_empty());
    assert!(
        world.vfs.node(top).is_ok(),
        "the top of a dataset stays known"
    );
    world.vfs.forget_dataset(DatasetId(1));
    assert_eq!(world.lookup("a.tmp"), Err(FsError::Missing));
    assert!(world.vfs.node(top).is_err());
}

#[test]
fn files_that_were_dropped_and_brought_back_are_found_where_they_are_now() {
    let world = World::new(|_| Some(false));
    let tree = world.vfs.settings().cache.tree(DatasetId(1), Slot(0));
    world.publish(1, "a", Phase::Sealed, None);
    std::fs::write(tree.join("old"), "").expect("a file");
    assert!(world.lookup("a/old").is_ok());
    world.publish(1, "a", Phase::Evicted, None);
    assert!(matches!(world.lookup("a"), Err(FsError::Missing)));
    // As the coordinator drops them: out of the way first, removed at leisure.
    let aside = world.vfs.settings().cache.root().join("aside");
    std::fs::rename(&tree, &aside).expect("set aside");
    std::fs::create_dir(&tree).expect("a new tree");
    std::fs::write(tree.join("new"), "").expect("a file");
    world.publish(1, "a", Phase::Sealed, None);
    assert!(world.lookup("a/new").is_ok());
    assert!(world.lookup("a/old").is_err());
}

#[test]
fn a_pointer_file_proposes_the_dataset_it_names_until_it_is_sealed() {
    let world = World::new(|_| None);
    world.publish(1, "global_step10", Phase::Open, None);
    world.publish(2, "global_step20", Phase::Open, None);
    let latest = Name::new(b"latest").expect("a name");
    world.vfs.tell_pointer_written(&latest, b"global_step10\n");
    let (request, what) = world.asked();
    let wanted = Request::Commit {
        dataset: DatasetId(1),
        to: Name::new(b"global_step10").expect("a name"),
        settle_ms: 7000,
    };
    assert_eq!(what, wanted);
    world.vfs.propose();
    world.vfs.tell_pointer_written(&latest, b"global_step10\n");
    world.vfs.requests().reply(request, Err(Refusal::Busy));
    // Not at once: somebody writes.
    world.vfs.propose();
    assert!(world.said.try_recv().is_err());
    world.vfs.tell_pointer_written(&latest, b"global_step10\n");
    assert_eq!(world.asked().1, wanted, "a new sign does not wait");
    world.publish(1, "global_step10", Phase::Sealed, None);
    world.vfs.tell_pointer_written(&latest, b"global_step10\n");
    assert!(world.said.try_recv().is_err(), "sealed");
}

#[test]
fn a_question_is_an_opening_and_all_of_a_round_are_told_the_same() {
    let world = World::new(|_| Some(false));
    world.vfs.ready(None, true);
    let ino = world.ino(".scr/need_checkpoint");
    let open = || {
        let (done, told) = mpsc::channel();
        world.vfs.open(me(), ino, libc::O_RDONLY, move |opened| {
            let _ = done.send(opened);
        });
        told
    };
    let asked = || match world.said.try_recv() {
        Ok(FromDaemon::Question { request, question }) => (request, question),
        other => panic!("no question but {other:?}"),
    };
    let tell = |request, is_due| {
        let verdict = Verdict {
            generation: 7,
            is_due,
        };
        world.vfs.requests().reply_verdict(request, verdict);
    };
    let read = |told: &Receiver<FsResult<u64>>| {
        let handle = told.recv().expect("answered").expect("open");
        let bytes = world.read(handle, 0, 16);
        assert_eq!(world.read(handle, 0, 16), bytes, "one handle, one answer");
        String::from_utf8(bytes).expect("text")
    };
    let size = |path| world.lookup(path).expect("there").attr.size;
    assert_eq!(size(".scr/need_checkpoint"), 2);
    assert!(world.said.try_recv().is_err(), "to look is not to ask");
    let first = open();
    let (request, question) = asked();
    assert_eq!((question.round, question.after), (1, Some(0)));
    assert!(first.try_recv().is_err(), "nobody knows yet");
    tell(request, true);
    assert_eq!(read(&first), "1\n");
    // It is to end, and to keep its work before.
    world.vfs.signs().tell_exit(true);
    let second = open();
    let (request, question) = asked();
    assert_eq!((question.round, question.after), (2, None));
    assert!(question.should_exit);
    tell(request, false);
    assert_eq!(read(&second), "0\n");
    let Some(FromDaemon::Verdicts(verdicts)) = world.vfs.verdicts() else {
        panic!("verdicts")
    };
    assert_eq!(verdicts.generation, 7);
    assert_eq!(
        [1, 2, 3].map(|it| verdicts.get(it)),
        [Some(true), Some(false), None]
    );
    // Its coordinator is replaced while it waits: what the old one says late is not heard.
    let third = open();
    let (request, _) = asked();
    world.vfs.requests().disconnect();
    tell(request, true);
    assert!(third.try_recv().is_err());
    let (outbox, said) = mpsc::channel();
    world.vfs.requests().connect(outbox, |_| Settled::Unknown);
    let again = said.try_recv().expect("asked again");
    assert!(matches!(again, FromDaemon::Question { request: same, .. } if same == request));
    tell(request, false);
    assert_eq!(read(&third), "0\n");
    // Programs start anew.
    world.vfs.ready(None, true);
    let fourth = open();
    let Ok(FromDaemon::Question { request, question }) = said.try_recv() else {
        panic!("no question")
    };
    assert_eq!((question.round, question.after), (1, Some(0)));
    tell(request, true);
    assert_eq!(read(&fourth), "1\n");
    let text = world.ino(".scr/interval");
    let text = wait(|answer| world.vfs.open(me(), text, libc::O_RDONLY, answer)).expect("open");
    let text = world.read(text, 0, 4096);
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("no checkpoint was measured yet"), "{text}");
}
