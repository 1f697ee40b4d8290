//! File systems that somebody else wrote, for a prefix to lie on: one that can be made to hang or to go,
//! and one that fails when it is told to and counts what is read of it.
//!
//! Invariants: only processes that were started here are signalled, by their own handle; none outlives its owner, nor
//! does one stand still for longer than [`HANG_MAX`], so that a product that waits for ever fails its test.
//! Mounts are a node's own, and gone with it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::cluster::Process;
use crate::{Cluster, wait_until};

const LOOPBACK: &str = include_str!("loopback.py");
/// For a program of Python to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// No test has anything stand still for longer.
const HANG_MAX: Duration = Duration::from_secs(150);

/// What can be wrong with a [`Foreign::loopback`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO of each write.
    Write,
    /// EIO of each fsync, of files and of directories.
    Sync,
    /// ESTALE of each open and stat.
    Stale,
    /// No call is answered, and who waits for one that was taken cannot be ended.
    Hang,
}

impl Fault {
    fn file(self) -> &'static str {
        match self {
            Self::Write => "eio-write",
            Self::Sync => "eio-sync",
            Self::Stale => "estale",
            Self::Hang => "hang",
        }
    }
}

/// A file system over a directory, in a node, served by a process of its own.
#[derive(Debug)]
pub struct Foreign {
    server: Child,
    /// What tells it of faults.
    control: PathBuf,
}

/// A file system that hangs; it goes on when this is dropped.
#[derive(Debug)]
pub struct Hanging {
    go_on: Option<Sender<()>>,
    /// Says whether the file system hung for too long.
    watch: Option<JoinHandle<bool>>,
}

impl Foreign {
    /// `bindfs` of a directory at another, in a node.
    pub fn bindfs(cluster: &Cluster, node: usize, of: &Path, at: &Path) -> Result<Self> {
        let mut command = cluster.command(node, "bindfs");
        command.arg("-f").args([of, at]);
        Self::begin(cluster, node, command, at, PathBuf::new())
    }

    /// The one that fails when it is told to, by files in `control`, which several nodes may share.
    pub fn loopback(
        cluster: &Cluster,
        node: usize,
        of: &Path,
        at: &Path,
        control: &Path,
    ) -> Result<Self> {
        let program = control.join("loopback.py");
        if !program.exists() {
            fs::write(&program, LOOPBACK)
                .with_context(|| format!("writing {}", program.display()))?;
        }
        // Debian's, which has the packages that .ci/deps installs.
        let mut command = cluster.command(node, "/usr/bin/python3");
        command.arg(&program).args([of, at, control]);
        Self::begin(cluster, node, command, at, control.to_owned())
    }

    /// Says, before [`Self::loopback`], that reads are to be counted.
    pub fn count_reads(control: &Path) -> Result<()> {
        let log = control.join("reads");
        File::create(&log)
            .map(drop)
            .with_context(|| format!("making {}", log.display()))
    }

    /// Bytes and path of each read so far.
    pub fn reads(control: &Path) -> Result<Vec<(u64, String)>> {
        let log = fs::read_to_string(control.join("reads")).context("reading what was read")?;
        let read = |line: &str| {
            let (bytes, path) = line.split_once(' ').context("no path")?;
            Ok((bytes.parse()?, path.to_owned()))
        };
        log.lines().map(read).collect()
    }

    fn begin(
        cluster: &Cluster,
        node: usize,
        mut command: Command,
        at: &Path,
        control: PathBuf,
    ) -> Result<Self> {
        let server = command
            .stdin(Stdio::null())
            .spawn()
            .context("starting a file system")?;
        let mut started = Self { server, control };
        let what = format!("a file system at {}", at.display());
        wait_until(START_MAX, &what, || {
            if let Some(status) = started.server.try_wait()? {
                bail!("its server has ended: {status}");
            }
            let mut look = cluster.command(node, "mountpoint");
            Ok(look.arg("-q").arg(at).status()?.success().then_some(()))
        })?;
        Ok(started)
    }

    fn process(&self) -> Result<Process> {
        // Not waited for: its number is nobody else's.
        Process::open(self.server.id())?.context("the file system has ended")
    }

    /// Whether it stands still, with no request taken and not answered: who waits for it can be killed, as with a
    /// server at the other end of a network. That it has one thread is [`Self::bindfs`]'s.
    fn is_idle(&self) -> Result<bool> {
        let of = PathBuf::from(format!("/proc/{}", self.server.id()));
        let status = fs::read_to_string(of.join("status")).context("looking at a file system")?;
        if !status.contains("State:\tT") {
            return Ok(false);
        }
        let call = fs::read_to_string(of.join("syscall")).context("looking at a file system")?;
        let mut words = call.split_whitespace();
        let is_read = words.next() == Some(&libc::SYS_read.to_string());
        let file = words.next().and_then(|word| word.strip_prefix("0x"));
        let file = file.and_then(|word| u64::from_str_radix(word, 16).ok());
        let file = file.map(|file| fs::read_link(of.join("fd").join(file.to_string())));
        Ok(is_read && matches!(file, Some(Ok(path)) if path == Path::new("/dev/fuse")))
    }

    /// Lets every access hang, until what is given back is dropped. For [`Self::bindfs`] only.
    pub fn hang(&self) -> Result<Hanging> {
        let process = self.process()?;
        wait_until(START_MAX, "a file system to hang", || {
            process.signal(Signal::SIGSTOP)?;
            // It stops within an instant.
            for _ in 0..100 {
                if self.is_idle()? {
                    return Ok(Some(()));
                }
            }
            process.signal(Signal::SIGCONT)?;
            Ok(None)
        })?;
        let (go_on, told) = channel();
        let watch = std::thread::spawn(move || {
            let was_long = told.recv_timeout(HANG_MAX) == Err(RecvTimeoutError::Timeout);
            if let Err(error) = process.signal(Signal::SIGCONT) {
                eprintln!("a file system hangs for ever: {error:#}");
            }
            was_long
        });
        Ok(Hanging {
            go_on: Some(go_on),
            watch: Some(watch),
        })
    }

    /// Ends its server, so that every access fails: what is mounted is nobody's any more.
    pub fn kill(mut self) -> Result<()> {
        self.server.kill()?;
        self.server.wait().map(drop).context("ending a file system")
    }

    /// Switches a fault on.
    pub fn fail(&self, fault: Fault) -> Result<()> {
        ensure!(!self.control.as_os_str().is_empty(), "it cannot fail");
        File::create(self.control.join(fault.file()))
            .map(drop)
            .context("switching a fault on")
    }

    /// Waits until a call is held by [`Fault::Hang`].
    pub fn wait_held(&self) -> Result<()> {
        let held = self.control.join("held");
        wait_until(START_MAX, "a call to be held", || {
            Ok(held.exists().then_some(()))
        })
    }

    /// Switches it off again.
    pub fn mend(&self, fault: Fault) -> Result<()> {
        match fs::remove_file(self.control.join(fault.file())) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("switching a fault off")
            }
            _ => Ok(()),
        }
    }
}

impl Hanging {
    fn end(&mut self) -> bool {
        drop(self.go_on.take());
        let watch = self.watch.take();
        watch.is_some_and(|watch| watch.join().unwrap_or(true))
    }

    /// Goes on; an error when somebody has waited for it.
    pub fn go_on(mut self) -> Result<()> {
        ensure!(!self.end(), "it hung for more than {HANG_MAX:?}");
        Ok(())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have been killed; a stopped one dies as well.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
