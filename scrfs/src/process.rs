//! What the kernel says of processes of this machine: whether one lives, and whether one that was killed can still do
//! anything.
//!
//! A thread that waits for a file system which does not answer cannot be ended: the process it is of stays, its first
//! thread a zombie, with all its descriptors open, and nobody can wait for it in the usual way. What matters is
//! that its program never runs on: see [`is_beyond_return`].
//!
//! What cannot be seen counts as living, and as able to run.

use crate::interval::Process;
use procfs::process::{Stat, StatFlags, Task};
use procfs::{ProcError, ProcResult};

/// A process that has not ended, and its parent's number.
pub fn look(pid: u32) -> Option<(Process, u32)> {
    let stat = stat(pid)?;
    let start = stat.starttime;
    let parent = u32::try_from(stat.ppid).unwrap_or_default();
    (!is_over(stat.state)).then_some((Process { pid, start }, parent))
}

/// The parent of a process, which may have ended.
pub fn parent(pid: u32) -> Option<u32> {
    u32::try_from(stat(pid)?.ppid).ok()
}

fn stat(pid: u32) -> Option<Stat> {
    let process = procfs::process::Process::new(i32::try_from(pid).ok()?);
    process.and_then(|process| process.stat()).ok()
}

/// Whether it has not ended. A zombie has.
pub fn is_alive(of: Process) -> bool {
    look(of.pid).is_some_and(|(process, _)| process == of)
}

/// The process that a thread belongs to.
pub fn of_thread(thread: u32) -> Option<u32> {
    let process = procfs::process::Process::new(i32::try_from(thread).ok()?);
    let status = process.and_then(|process| process.status()).ok()?;
    u32::try_from(status.tgid).ok()
}

/// Whether a process never runs its program again, though it may not be gone: each of its threads is dead, is ending,
/// or has SIGKILL to take as soon as what it waits for in the kernel is over. One call of each to a file system may
/// still be carried out.
pub fn is_beyond_return(pid: i32) -> bool {
    let Ok(process) = procfs::process::Process::new(pid) else {
        return false;
    };
    let Ok(mut threads) = process.tasks() else {
        return false;
    };
    threads.all(
        |thread| match thread.and_then(|thread| is_ending(&thread)) {
            Ok(is_ending) => is_ending,
            Err(ProcError::NotFound(_)) => true,
            Err(_) => false,
        },
    )
}

fn is_ending(thread: &Task) -> ProcResult<bool> {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let stat = thread.stat()?;
    let exits = StatFlags::from_bits_retain(stat.flags).contains(StatFlags::PF_EXITING);
    Ok(is_over(stat.state) || exits || thread.status()?.sigpnd & SIGKILL != 0)
}

fn is_over(state: char) -> bool {
    matches!(state, 'Z' | 'X')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn who_runs_may_return_and_who_was_killed_may_not() {
        let me = std::process::id();
        let (mine, parent) = look(me).expect("this process");
        assert_eq!(parent, std::os::unix::process::parent_id());
        assert!(is_alive(mine));
        let of_before = Process {
            start: mine.start + 1,
            ..mine
        };
        assert!(!is_alive(of_before), "the number came again");
        let thread = std::thread::spawn(|| {
            let thread = nix::unistd::gettid().as_raw();
            of_thread(u32::try_from(thread).expect("a number"))
        });
        assert_eq!(thread.join().expect("a thread"), Some(me));
        assert!(!is_beyond_return(nix::unistd::getpid().as_raw()));
        let mut cat = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat runs");
        let number = i32::try_from(cat.id()).expect("a number");
        let (its, parent) = look(cat.id()).expect("it runs");
        assert_eq!(parent, me);
        assert!(!is_beyond_return(number));
        cat.kill().expect("killed");
        // A zombie until it is waited for.
        while is_alive(its) || !is_beyond_return(number) {
            std::thread::yield_now();
        }
        cat.wait().expect("waited for");
        assert!(look(cat.id()).is_none());
    }
}
