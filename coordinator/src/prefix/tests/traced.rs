//! Killed, or refused, at every single system call that changes something.
//!
//! A child does one of everything: flushes a dataset, completes it, retires an old one, deletes one, drops one
//! and adds it again, chooses one. It is traced: before its n-th call that would change a file it
//! is killed, or that call fails with an error of a file system that is in trouble. Afterwards the prefix must
//! show datasets that are complete, and the same work, done again, must come to its end.
//!
//! Some of the calls are tried, others each time; all of them with `SCRFS_TRACE_ALL=1`, which takes minutes.

use super::*;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use scrfs::layout::envelope::{Kind, open, seal};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// Where the child finds its world.
const WORLD: &str = "SCRFS_TRACED_WORLD";
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

/// What happens at the n-th call.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Killed,
    Refused(Errno),
}

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
    prefix.choose(&name(b"ckpt.5"), None).map(drop)
}

#[test]
fn the_child() {
    let Some(root) = std::env::var_os(WORLD).map(PathBuf::from) else {
        return;
    };
    let record = fs::read(root.join("record")).unwrap();
    let record: DatasetRecord = open(Kind::Dataset, &record).unwrap();
    let prefix = Prefix::at(&root.join("prefix")).of_job("job");
    let cache = CachePaths::at(&root.join("cache"));
    println!("ready");
    // Until it is traced.
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    for try_again in [true, false] {
        match work(&prefix, &cache, &record) {
            Ok(()) => return,
            Err(error) if try_again => println!("refused: {error:?}"),
            Err(error) => panic!("again: {error:?}"),
        }
    }
}

/// Waits for one thread of the child, if it has something to say.
fn heard(thread: Pid) -> Option<WaitStatus> {
    match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) => None,
        Ok(status) => Some(status),
        Err(_) => Some(WaitStatus::Exited(thread, 0)),
    }
}

struct Traced {
    child: Child,
    /// By thread, whether it is inside of a call, and whether that is to fail.
    threads: BTreeMap<i32, (bool, bool)>,
    count: usize,
    at: usize,
    fate: Fate,
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Traced {
    fn begin(root: &Path, at: usize, fate: Fate) -> Option<Self> {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([CHILD, "--exact", "--nocapture", "--test-threads=1"])
            .env(WORLD, root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(
                said.read_line(&mut line).unwrap() > 0,
                "the child has ended"
            );
        }
        // What it says from now on fits into the pipe.
        child.stdout = Some(said.into_inner());
        let mut traced = Self {
            child,
            threads: BTreeMap::new(),
            count: 0,
            at,
            fate,
        };
        let pid = traced.child.id() as i32;
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let name = task.unwrap().file_name();
            let thread = Pid::from_raw(name.to_str().unwrap().parse().unwrap());
            if let Err(errno) = ptrace::seize(thread, options) {
                eprintln!("skipped: this user may not trace ({errno})");
                return None;
            }
            ptrace::interrupt(thread).unwrap();
            traced.threads.insert(thread.as_raw(), (false, false));
        }
        drop(traced.child.stdin.take());
        Some(traced)
    }

    /// Lets it go on to its end; how often it changed something, and what it said.
    fn run(mut self) -> (usize, String) {
        let pid = self.child.id() as i32;
        while !self.threads.is_empty() {
            let mut quiet = true;
            for thread in self.threads.keys().copied().collect::<Vec<_>>() {
                if let Some(status) = heard(Pid::from_raw(thread)) {
                    quiet = false;
                    self.turn(thread, status);
                }
            }
            if quiet {
                std::thread::yield_now();
            }
            if !self.threads.contains_key(&pid) {
                break;
            }
        }
        let mut said = String::new();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        (self.count, said)
    }

    fn turn(&mut self, thread: i32, status: WaitStatus) {
        let pid = Pid::from_raw(thread);
        let mut deliver = None;
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                self.threads.remove(&thread);
                return;
            }
            WaitStatus::PtraceSyscall(_) => {
                let (inside, fails) = self.threads.get(&thread).copied().unwrap();
                let next = match inside {
                    false => (true, self.enters(pid)),
                    true => (false, false),
                };
                if let (true, true, Fate::Refused(errno)) = (inside, fails, self.fate) {
                    let mut registers = ptrace::getregs(pid).unwrap();
                    registers.rax = (-(errno as i64)) as u64;
                    ptrace::setregs(pid, registers).unwrap();
                }
                self.threads.insert(thread, next);
            }
            WaitStatus::PtraceEvent(_, _, event) if event == libc::PTRACE_EVENT_CLONE => {
                let new = ptrace::getevent(pid).unwrap() as i32;
                self.threads.entry(new).or_default();
            }
            WaitStatus::Stopped(_, signal)
                if !matches!(signal, Signal::SIGSTOP | Signal::SIGTRAP) =>
            {
                deliver = Some(signal);
            }
            _ => {}
        }
        // One that was killed meanwhile is heard of next.
        let _ = ptrace::syscall(pid, deliver);
    }

    /// A thread is about to make a call; whether that is to fail.
    fn enters(&mut self, thread: Pid) -> bool {
        let Ok(mut registers) = ptrace::getregs(thread) else {
            return false;
        };
        let call = registers.orig_rax as i64;
        let makes = match call {
            // To stdout and stderr.
            libc::SYS_write => registers.rdi > 2,
            libc::SYS_openat => registers.rdx as i32 & libc::O_CREAT != 0,
            // How it is opened is in memory: all of them.
            _ => CHANGING.contains(&call),
        };
        if !makes {
            return false;
        }
        self.count += 1;
        if self.count != self.at {
            return false;
        }
        match self.fate {
            Fate::Killed => {
                self.child.kill().unwrap();
                false
            }
            Fate::Refused(_) => {
                registers.orig_rax = u64::MAX;
                ptrace::setregs(thread, registers).unwrap();
                true
            }
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
    let traced = Traced::begin(world.root.path(), 0, Fate::Killed)?;
    let (count, said) = traced.run();
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
        let Some(traced) = Traced::begin(world.root.path(), at, Fate::Killed) else {
            return;
        };
        let (_, said) = traced.run();
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
        let Some(traced) = Traced::begin(world.root.path(), at, Fate::Refused(errno)) else {
            return;
        };
        let (_, said) = traced.run();
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
