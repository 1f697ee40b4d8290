//! The coordinator of a cluster of one: a program of its own, kept running until the daemon ends.

use super::Running;
use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use scrfs::process::Held;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest pause before one that died is started again.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK_MS: u8 = 200;

/// Finds a program that belongs to scrfs: beside this one, else where the shell would.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    beside
        .into_iter()
        .chain(on_path)
        .find(|path| path.is_file())
}

/// Keeps it running until the daemon ends.
pub(super) fn solo(running: &Running, socket: &Path) {
    const PROGRAM: &str = "scrfs-coordinator";
    let mut pause = Duration::from_millis(100);
    while !running.ending.load(Ordering::Relaxed) {
        let Some(program) = find_program(PROGRAM) else {
            tracing::error!(
                "{PROGRAM} is neither beside this program nor on the PATH: nothing can be \
                 created or committed until it is installed"
            );
            pause_unless_ending(running, BACKOFF_MAX);
            continue;
        };
        let began = Instant::now();
        let mut command = Command::new(&program);
        command.arg("serve").arg("--socket").arg(socket);
        sys::unblock_signals_in_child(&mut command);
        match command.spawn().and_then(wait) {
            Ok(status) if running.ending.load(Ordering::Relaxed) => {
                tracing::info!(?status, "the coordinator has ended");
                return;
            }
            Ok(None) => tracing::error!("the coordinator was killed; starting another"),
            Ok(Some(status)) => {
                tracing::error!(%status, "the coordinator died; starting another");
            }
            Err(error) => tracing::error!(program = %program.display(), %error, "cannot start"),
        }
        if began.elapsed() > BACKOFF_MAX {
            pause = Duration::from_millis(100);
        }
        pause_unless_ending(running, pause);
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Waits for the end of a process; `None` when it was killed and does not go, for the kernel holds it.
fn wait(mut child: Child) -> io::Result<Option<ExitStatus>> {
    let number = i32::try_from(child.id()).map_err(io::Error::other)?;
    let process = sys::open_process(number)?;
    let mut held = Held::default();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if held.look(number, Instant::now()) {
            // It may have gone meanwhile.
            return child.try_wait();
        }
        // Interrupted or not, it is looked at.
        let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ended, PollTimeout::from(LOOK_MS));
    }
}

fn pause_unless_ending(running: &Running, pause: Duration) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !running.ending.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
