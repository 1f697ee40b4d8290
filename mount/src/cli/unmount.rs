//! `scrfs unmount`.

use super::watch::{ask_watched, of_flushes};
use super::{Failure, daemon_at};
use crate::mountpoint::{self, Found};
use scrfs::control::Command;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the daemon's process may take to end after its answer.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How long the mount of a daemon that does not answer may take to be dead.
const DEATH_PATIENCE: Duration = Duration::from_secs(1);

#[derive(clap::Args, Debug)]
pub(super) struct UnmountArgs {
    /// Which
    #[arg(default_value = "/scr")]
    mountpoint: PathBuf,
    /// Do not wait for pending flushes
    #[arg(long)]
    now: bool,
    /// Empty the cache as well
    #[arg(long)]
    purge: bool,
}

pub(super) fn run(args: &UnmountArgs) -> Result<(), Failure> {
    let path =
        mountpoint::absolute(&args.mountpoint).map_err(|error| Failure::failed(error.into()))?;
    if is_dead(&path)? {
        return mountpoint::unmount(&path, true).map_err(|error| Failure::failed(error.into()));
    }
    let unmount = Command::Unmount {
        finish_flushes: !args.now,
        purge: args.purge,
    };
    let asked = daemon_at(&path).and_then(|daemon| {
        let words = ask_watched(&daemon, &unmount, None, of_flushes())?;
        if !words.is_empty() {
            eprintln!("scrfs: {words}");
        }
        Ok(daemon)
    });
    let daemon = match asked {
        Ok(daemon) => daemon,
        Err(failure) => {
            // Killed a moment ago: its mount is dead when its last thread is gone.
            let deadline = Instant::now() + DEATH_PATIENCE;
            while Instant::now() < deadline {
                if is_dead(&path)? {
                    return mountpoint::unmount(&path, true)
                        .map_err(|error| Failure::failed(error.into()));
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            return Err(failure);
        }
    };
    // It still puts its lock away; the next mount must not meet it.
    let deadline = Instant::now() + END_PATIENCE;
    while daemon.socket.with_file_name("daemon.lock").exists()
        && scrfs::process::look(daemon.pid).is_some()
        && Instant::now() < deadline
    {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}

fn is_dead(path: &Path) -> Result<bool, Failure> {
    let found = mountpoint::look(path).map_err(|error| Failure::failed(error.into()))?;
    Ok(found == Found::DeadScrfs)
}
