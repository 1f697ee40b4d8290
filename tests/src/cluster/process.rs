//! The processes of a node, found by their network namespace, and the signals they get.
//!
//! Invariants: a signal goes only to a process that was seen in the namespace *after* a handle on
//! it (a pidfd) was taken, so a reused process id is never hit. Whoever names a namespace here
//! holds it open, else its inode number could by now belong to somebody else's.
//!
//! Control groups would do as well where they can be made; namespaces are always there, and leave
//! nothing behind to remove.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::wait_until;

/// A process stuck in the kernel for longer than this is a failure of the test.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A network namespace, held open: it and its number live as long as this does.
#[derive(Debug)]
pub(crate) struct NetworkNamespace {
    _held: File,
    inode: u64,
}

impl NetworkNamespace {
    /// That of a process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let held = File::open(&path).with_context(|| format!("opening {path}"))?;
        let inode = held
            .metadata()
            .with_context(|| format!("reading {path}"))?
            .ino();
        Ok(Self { _held: held, inode })
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Process ids in it.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").context("listing processes")? {
            let entry = entry.context("listing processes")?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if is_in(pid, self.inode) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    fn members(&self) -> Result<Vec<Process>> {
        let mut members = Vec::new();
        for pid in self.pids()? {
            if let Some(process) = Process::open(pid)?
                && is_in(pid, self.inode)
            {
                members.push(process);
            }
        }
        Ok(members)
    }

    /// Kills every process in it but `spared`; returns when none is left.
    pub(crate) fn kill_all(&self, spared: Option<u32>) -> Result<()> {
        let deadline = Instant::now() + SIGNAL_TIMEOUT;
        // One look is not enough: process ids wrap around, so a child may get a number that the
        // look has passed already while its parent ends before the look gets there.
        let mut looks_empty = 0;
        while looks_empty < 2 {
            let mut members = self.members()?;
            members.retain(|process| Some(process.pid) != spared);
            looks_empty = if members.is_empty() {
                looks_empty + 1
            } else {
                0
            };
            for process in &members {
                process.signal(Signal::SIGKILL)?;
            }
            for process in &members {
                if !process.wait_dead(deadline.saturating_duration_since(Instant::now()))? {
                    bail!("process {} does not die", process.pid);
                }
            }
        }
        Ok(())
    }

    /// Stops every process in it; returns when all stand still.
    pub(crate) fn stop_all(&self) -> Result<()> {
        let mut told = HashSet::new();
        wait_until(SIGNAL_TIMEOUT, "all processes of the node to stop", || {
            let mut still = true;
            for process in self.members()? {
                if !process.stands_still(told.contains(&process.pid))? {
                    still = false;
                    process.signal(Signal::SIGSTOP)?;
                    told.insert(process.pid);
                }
            }
            Ok(still.then_some(()))
        })
    }

    /// Lets every process in it go on.
    pub(crate) fn continue_all(&self) -> Result<()> {
        for process in self.members()? {
            process.signal(Signal::SIGCONT)?;
        }
        Ok(())
    }
}

fn is_in(pid: u32, inode: u64) -> bool {
    let is = |path: &Path| fs::metadata(path).map(|link| link.ino() == inode);
    match is(Path::new(&format!("/proc/{pid}/ns/net"))) {
        Ok(found) => found,
        // Gone, a zombie, or a process whose first thread has ended before the others.
        Err(_) => fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| {
            threads
                .flatten()
                .any(|thread| is(&thread.path().join("ns/net")).unwrap_or(false))
        }),
    }
}

/// A handle on one process, which stays its own when the process id is reused.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// None if there is no such process (any more).
    pub(crate) fn open(pid: u32) -> Result<Option<Self>> {
        #[allow(unsafe_code)] // neither std nor nix has it
        // SAFETY: takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // EINVAL is a number that now belongs to a thread.
                Some(libc::ESRCH | libc::EINVAL) => Ok(None),
                _ => Err(error).with_context(|| format!("getting hold of process {pid}")),
            };
        }
        let fd = i32::try_from(fd).context("a file descriptor is an int")?;
        #[allow(unsafe_code)] // as above
        // SAFETY: the call above has just made this descriptor, and nobody else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Some(Self { pid, pidfd }))
    }

    /// A process that is gone gets no signal, and that is no error.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        #[allow(unsafe_code)] // neither std nor nix has it
        // SAFETY: the descriptor is open, and a null siginfo is allowed: plain kill(2).
        let status = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if status < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ESRCH) {
                return Err(error).with_context(|| format!("sending {signal} to {}", self.pid));
            }
        }
        Ok(())
    }

    /// Whether it has ended, all its files closed, within `timeout`. A zombie has.
    pub(crate) fn wait_dead(&self, timeout: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut handles = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut handles, timeout).context("waiting for a process to end")?;
        Ok(ready > 0)
    }

    /// Whether no thread of it can run a program. One that sleeps in the kernel and was `told` to
    /// stop cannot: it stops before it is back. It may never come to that while all others stand
    /// still, as a parent in vfork, or a reader whose FUSE daemon has stopped.
    fn stands_still(&self, told: bool) -> Result<bool> {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return Ok(true); // gone
        };
        for thread in threads.flatten() {
            let path = thread.path().join("stat");
            let Ok(stat) = fs::read_to_string(&path) else {
                continue;
            };
            // The name, in parentheses, may itself hold blanks and parentheses.
            let state = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.trim_start().chars().next());
            match state {
                Some('T' | 't' | 'Z' | 'X') => {}
                Some('D') if told => {}
                Some(_) => return Ok(false),
                None => bail!("{} reads {stat:?}", path.display()),
            }
        }
        Ok(true)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
