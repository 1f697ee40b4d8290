//! What the kernel says of processes of this machine: whether one lives, and whether one that was killed can still do
//! anything.
//!
//! A thread that waits for a file system which does not answer cannot be ended: the process it is of stays, its first
//! thread a zombie, with all its descriptors open, and nobody can wait for it in the usual way. What matters is
//! that its program never runs on: see [`Held`].
//!
//! What cannot be seen counts as living, and as able to run.

use crate::interval::Process;
use procfs::process::{Stat, StatFlags, Task};
use procfs::{ProcError, ProcResult};
use std::time::{Duration, Instant};

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

/// One that is ending takes a moment, and longer to give its memory back; who waits uninterruptibly for so long is held.
const HELD_AFTER: Duration = Duration::from_secs(1);

/// Whether a process that was killed is held by the kernel, from one look to the next.
#[derive(Clone, Copy, Default, Debug)]
pub struct Held {
    since: Option<Instant>,
}

impl Held {
    /// Whether it never runs its program again, and has not gone for a while: one call of each of its threads to a file
    /// system may still be carried out. To be asked again and again until it has gone.
    pub fn look(&mut self, pid: i32, now: Instant) -> bool {
        if !is_stuck(pid) {
            self.since = None;
            return false;
        }
        now.saturating_duration_since(*self.since.get_or_insert(now)) >= HELD_AFTER
    }
}

/// Whether each thread is dead, or waits uninterruptibly and is ending or has SIGKILL to take after that.
fn is_stuck(pid: i32) -> bool {
    let Ok(process) = procfs::process::Process::new(pid) else {
        return false;
    };
    let Ok(mut threads) = process.tasks() else {
        return false;
    };
    threads.all(
        |thread| match thread.and_then(|thread| is_thread_stuck(&thread)) {
            Ok(is_stuck) => is_stuck,
            Err(ProcError::NotFound(_)) => true,
            Err(_) => false,
        },
    )
}

fn is_thread_stuck(thread: &Task) -> ProcResult<bool> {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let stat = thread.stat()?;
    let exits = StatFlags::from_bits_retain(stat.flags).contains(StatFlags::PF_EXITING);
    if stat.state != 'D' {
        return Ok(is_over(stat.state));
    }
    Ok(exits || thread.status()?.sigpnd & SIGKILL != 0)
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
        assert!(!is_stuck(nix::unistd::getpid().as_raw()));
        let mut cat = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat runs");
        let number = i32::try_from(cat.id()).expect("a number");
        let (its, parent) = look(cat.id()).expect("it runs");
        assert_eq!(parent, me);
        let (mut held, now) = (Held::default(), Instant::now());
        assert!(!held.look(number, now) && !held.look(number, now + HELD_AFTER));
        cat.kill().expect("killed");
        // A zombie until it is waited for.
        while is_alive(its) || !is_stuck(number) {
            std::thread::yield_now();
        }
        assert!(!held.look(number, now), "it may go yet");
        assert!(held.look(number, now + HELD_AFTER));
        cat.wait().expect("waited for");
        assert!(look(cat.id()).is_none());
    }
}
