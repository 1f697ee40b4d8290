//! Runs a test of this very binary as a child, and stops it before and after each of its system calls.

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where the child finds its world.
const WORLD: &str = "SCRFS_TRACED_WORLD";

/// A system call of the child, with its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Fate {
    Goes,
    /// The child is killed before it.
    Killed,
    /// It does nothing, and fails.
    Refused(Errno),
}

/// Who looks on, and decides.
pub(super) trait Watch {
    /// A thread is about to make a call.
    fn enters(&mut self, thread: Pid, call: &Call) -> Fate;

    /// It has made one.
    fn leaves(&mut self, _thread: Pid, _call: &Call, _result: i64) {}
}

/// For the child: where its world is, when it is traced. `None` in a plain run of all tests.
pub(super) fn traced_world() -> Option<PathBuf> {
    let root = std::env::var_os(WORLD).map(PathBuf::from)?;
    println!("ready");
    // Until it is traced.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    Some(root)
}

/// Lets the test `name` run to its end on the world at `root`; what it said. `None`: this user may not trace,
/// and nobody has asked for all tests (`SCRFS_REQUIRE_ALL`).
pub(super) fn trace(name: &str, root: &Path, watch: &mut dyn Watch) -> Option<String> {
    Some(Traced::begin(name, root, watch)?.run())
}

struct Traced<'a> {
    child: Child,
    /// By thread, the call that it is inside of, and what becomes of that.
    threads: BTreeMap<i32, Option<(Call, Fate)>>,
    watch: &'a mut dyn Watch,
}

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

impl<'a> Traced<'a> {
    fn begin(name: &str, root: &Path, watch: &'a mut dyn Watch) -> Option<Self> {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
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
            watch,
        };
        let pid = traced.child.id() as i32;
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let name = task.unwrap().file_name();
            let thread = Pid::from_raw(name.to_str().unwrap().parse().unwrap());
            if let Err(errno) = ptrace::seize(thread, options) {
                let required = std::env::var_os("SCRFS_REQUIRE_ALL").is_some();
                assert!(
                    !required,
                    "SCRFS_REQUIRE_ALL is set, and this user may not trace ({errno})"
                );
                eprintln!("skipped: this user may not trace ({errno})");
                return None;
            }
            ptrace::interrupt(thread).unwrap();
            traced.threads.insert(thread.as_raw(), None);
        }
        drop(traced.child.stdin.take());
        Some(traced)
    }

    fn run(mut self) -> String {
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
        said
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
                let next = match self.threads.get(&thread).copied().unwrap() {
                    None => self.enters(pid),
                    Some((call, fate)) => self.leaves(pid, &call, fate),
                };
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

    fn enters(&mut self, thread: Pid) -> Option<(Call, Fate)> {
        let registers = ptrace::getregs(thread);
        let number = registers.map_or(-1, |registers| registers.orig_rax as i64);
        let arguments =
            registers.map_or([0; 6], |it| [it.rdi, it.rsi, it.rdx, it.r10, it.r8, it.r9]);
        let call = Call { number, arguments };
        let Ok(mut registers) = registers else {
            return Some((call, Fate::Goes));
        };
        let fate = self.watch.enters(thread, &call);
        match fate {
            Fate::Goes => {}
            Fate::Killed => self.child.kill().unwrap(),
            Fate::Refused(_) => {
                registers.orig_rax = u64::MAX;
                ptrace::setregs(thread, registers).unwrap();
            }
        }
        Some((call, fate))
    }

    fn leaves(&mut self, thread: Pid, call: &Call, fate: Fate) -> Option<(Call, Fate)> {
        let mut registers = ptrace::getregs(thread).ok()?;
        match fate {
            Fate::Goes => self.watch.leaves(thread, call, registers.rax as i64),
            Fate::Killed => {}
            Fate::Refused(errno) => {
                registers.rax = (-(errno as i64)) as u64;
                ptrace::setregs(thread, registers).unwrap();
            }
        }
        None
    }
}
