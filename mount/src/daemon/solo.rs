//! The coordinator of a cluster of one: a program of its own, kept running until the daemon ends.

use super::Running;
use crate::sys;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest pause before one that died is started again.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

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
        match command.status() {
            Ok(status) if running.ending.load(Ordering::Relaxed) => {
                tracing::info!(%status, "the coordinator has ended");
                return;
            }
            Ok(status) => tracing::error!(%status, "the coordinator died; starting another"),
            Err(error) => tracing::error!(program = %program.display(), %error, "cannot start"),
        }
        if began.elapsed() > BACKOFF_MAX {
            pause = Duration::from_millis(100);
        }
        pause_unless_ending(running, pause);
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

fn pause_unless_ending(running: &Running, pause: Duration) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !running.ending.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
