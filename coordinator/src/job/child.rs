//! Processes that the supervisor starts, and their ends.
//!
//! A launcher has children of its own (remote shells). The supervisor is their *subreaper*: when the
//! launcher is killed they become the supervisor's children, and can be found and killed without any
//! doubt whose they are: a process id of our own unreaped child is never anybody else's.
//!
//! A daemon that was started on this machine without a remote shell is adopted like them. It is to outlive
//! launches, and the supervisor: such processes have [`STAYS`] in their environment.
//!
//! Invariants: only our own children are signalled here, and processes held by a pidfd that was opened
//! before they were looked at; children start with no signal blocked.

#![expect(unsafe_code, reason = "an empty signal mask in children, and pidfds")]

use super::launcher::{LAUNCH_VARIABLE, MARK_OPTION};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use scrfs::process::{Held, parent};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often a process that is ending is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Who has this variable is left alone.
pub(super) const STAYS: &str = "SCRFS_STAYS";

/// Orphans of our children become ours from now on.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Starts a process that has no signal blocked, whatever this one has.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    let unblock = || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe,
    // and touches no memory of other threads.
    unsafe { command.pre_exec(unblock) };
    command.spawn()
}

/// Kills a child and waits for its end, which for SIGKILL comes at once, unless the kernel holds it, for a file system
/// that does not answer: then until it can do nothing any more.
pub(super) fn kill_child(child: &mut Child) {
    // Fails when it has ended already: as good.
    let _ = child.kill();
    let mut held = Held::default();
    let mut is_held = |pid: u32| i32::try_from(pid).is_ok_and(|pid| held.look(pid, Instant::now()));
    while matches!(child.try_wait(), Ok(None)) && !is_held(child.id()) {
        std::thread::park_timeout(LOOK);
    }
}

/// Kills a child that leads a process group of its own, and all of that group.
pub(super) fn kill_group(child: &mut Child) {
    // While it is not reaped its number is nobody else's.
    if matches!(child.try_wait(), Ok(None))
        && let Ok(pid) = i32::try_from(child.id())
    {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    kill_child(child);
}

/// Passes a signal on. A child that was reaped is left alone.
pub(super) fn signal(child: &mut Child, signal: Signal) {
    if matches!(child.try_wait(), Ok(None))
        && let Ok(pid) = i32::try_from(child.id())
        && let Err(errno) = kill(Pid::from_raw(pid), signal)
    {
        tracing::debug!(%errno, %signal, "cannot pass the signal on");
    }
}

/// A process's end as a shell gives it.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// A process's end in words.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(Ok(signal))) => format!("killed by {signal}"),
        (None, _) => "ended in an unknown way".into(),
    }
}

/// Kills all children of ours but those to keep, and theirs, until none is left that can do anything.
pub(super) fn kill_orphans(keep: &[u32]) {
    let keep: HashSet<i32> = keep
        .iter()
        .filter_map(|pid| i32::try_from(*pid).ok())
        .collect();
    let mut left = HashSet::new();
    loop {
        let orphans: Vec<i32> = children()
            .into_iter()
            .filter(|pid| !keep.contains(pid) && !left.contains(pid))
            .collect();
        if orphans.is_empty() {
            return;
        }
        for pid in orphans {
            let pid = Pid::from_raw(pid);
            let _ = kill(pid, Signal::SIGKILL);
            // Its children are ours by the time it has ended.
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            let mut held = Held::default();
            while waitpid(pid, Some(flags)) == Ok(WaitStatus::StillAlive) {
                if held.look(pid.as_raw(), Instant::now()) {
                    left.insert(pid.as_raw());
                    break;
                }
                std::thread::park_timeout(LOOK);
            }
        }
    }
}

fn children() -> Vec<i32> {
    let stays = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut entries = environment.split(|byte| *byte == 0);
        entries.any(|entry| entry.strip_prefix(STAYS.as_bytes()) == Some(b"=1"))
    };
    let me = std::process::id();
    let is_mine = |pid: &i32| u32::try_from(*pid).ok().and_then(parent) == Some(me);
    let mine = processes().filter(is_mine);
    mine.filter(|pid| !stays(pid)).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process that is held: its number cannot become another's.
pub(super) struct Marked {
    /// Its number.
    pub(super) pid: i32,
    handle: OwnedFd,
}

/// Every process that has `NAME=value` in its environment, or the launcher's option [`MARK_OPTION`] with that
/// value among its words, but for this one. `all`: also those of which the value only begins so, up to a dot.
pub(super) fn marked(name: &str, value: &str, all: bool) -> Vec<Marked> {
    let is_value = |text: &[u8]| match text.strip_prefix(value.as_bytes()) {
        Some([]) => true,
        Some([b'.', ..]) => all,
        _ => false,
    };
    let is_entry = |entry: &[u8]| {
        let found = entry.strip_prefix(name.as_bytes());
        found
            .and_then(|rest| rest.strip_prefix(b"="))
            .is_some_and(is_value)
    };
    let has_words = |line: &[u8]| {
        // A shell that starts such a helper has all of it in one word, in quotes.
        let is_between = |byte: &u8| [0, b' ', b'"', b'\''].contains(byte);
        let mut words = line.split(is_between).filter(|word| !word.is_empty());
        words.any(|word| word == MARK_OPTION.as_bytes()) && words.next().is_some_and(is_value)
    };
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = Vec::new();
    for pid in processes().filter(|&pid| pid != me) {
        let Ok(handle) = open_process(pid) else {
            continue;
        };
        let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let is_it = read("environ").split(|&byte| byte == 0).any(is_entry);
        if is_it || (name == LAUNCH_VARIABLE && has_words(&read("cmdline"))) {
            found.push(Marked { pid, handle });
        }
    }
    found
}

/// Signals every process that is marked so. Returns how many there were; zero when it may be sure that
/// there is none left.
pub(super) fn signal_marked(name: &str, value: &str, all: bool, signal: Signal) -> usize {
    let found = marked(name, value, all);
    for process in &found {
        let _ = signal_process(&process.handle, signal);
    }
    found.len()
}

fn open_process(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers and gives a new descriptor or an error.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn signal_process(process: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    let call = libc::SYS_pidfd_send_signal;
    // SAFETY: the descriptor is open as long as it is borrowed; a null siginfo is allowed.
    let sent = unsafe { libc::syscall(call, process.as_raw_fd(), signal as i32, no_info, 0) };
    Errno::result(sent).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn who_is_killed_is_gone_and_waited_for_when_that_returns() {
        for _ in 0..20 {
            let mut sleep = spawn(Command::new("sleep").arg("1000")).expect("sleep can be run");
            let pid = sleep.id();
            kill_child(&mut sleep);
            assert_eq!(parent(pid), None, "it is still there");
        }
    }

    #[test]
    fn the_marked_are_killed_and_nobody_else() {
        let sleeper = |value: &str| {
            let mut command = Command::new("sleep");
            command
                .arg("1000")
                .env("SCRFS_TEST_MARK", value)
                .stdin(Stdio::null());
            spawn(&mut command).expect("sleep can be run")
        };
        let run = std::process::id().to_string();
        let mine = format!("{run}.1");
        let kill = |value: &str, all| {
            while signal_marked("SCRFS_TEST_MARK", value, all, Signal::SIGKILL) > 0 {}
        };
        let (mut one, mut other) = (sleeper(&mine), sleeper(&format!("{run}.12")));
        let mut third = sleeper(&format!("{run}2.1"));
        kill(&mine, false);
        let ended = one.wait().expect("ours to wait for");
        assert_eq!(describe(ended), "killed by SIGKILL");
        assert_eq!(exit_code(ended), 137);
        assert!(other.try_wait().expect("ours to ask").is_none());
        kill(&run, true);
        assert_eq!(exit_code(other.wait().expect("ours to wait for")), 137);
        assert!(third.try_wait().expect("ours to ask").is_none());
        kill_child(&mut third);
        // A launcher's helper, which has the words and not the variable.
        let line = format!("read wait; : --mca {MARK_OPTION} \"{mine}\" --more");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::piped());
        let mut helper = spawn(&mut command).expect("a shell can be run");
        while signal_marked(LAUNCH_VARIABLE, &run, false, Signal::SIGKILL) > 0 {}
        assert!(helper.try_wait().expect("ours to ask").is_none());
        while signal_marked(LAUNCH_VARIABLE, &mine, false, Signal::SIGKILL) > 0 {}
        assert_eq!(exit_code(helper.wait().expect("ours to wait for")), 137);
    }
}
