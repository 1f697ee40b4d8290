//! Writers that no handle stands for.
//!
//! With passthrough a shared memory map belongs to the backing file: the kernel releases ours as soon as
//! the last descriptor is closed, while the map can still be written. And when a daemon dies, files
//! that were open for writing stay so, unknown to its successor. The cache's filesystem knows both: it
//! grants no read lease on a file that is open for writing. So every file of a dataset is asked
//! before the coordinator hears that it is quiet.
//!
//! That is enough: a new map needs a writable open, which raises the generation. Costs one open a
//! file and commit. What cannot be asked (no leases here, a file of another user without
//! `CAP_LEASE`) counts as not written, and is logged.

use super::gates::GateCell;
use super::inode::Inode;
use super::{FsResult, Vfs};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::FromDaemon;
use scrfs::id::DatasetId;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Whether a file below `tree` is open for writing.
pub fn is_written(tree: &Inode) -> FsResult<bool> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let mut directories = vec![sys::reopen(tree.fd()?.as_fd(), flags)?];
    while let Some(directory) = directories.pop() {
        if scan(&directory, &mut directories)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn scan(directory: &OwnedFd, found: &mut Vec<OwnedFd>) -> FsResult<bool> {
    let mut offset = 0;
    loop {
        let entries = sys::read_directory(directory.as_fd(), offset)?;
        let Some(last) = entries.last() else {
            return Ok(false);
        };
        offset = last.next;
        for entry in entries {
            let name = OsStr::from_bytes(&entry.name);
            let flags = match entry.kind {
                libc::DT_REG => libc::O_RDONLY | libc::O_NONBLOCK,
                libc::DT_DIR if !matches!(entry.name.as_slice(), b"." | b"..") => {
                    libc::O_RDONLY | libc::O_DIRECTORY
                }
                _ => continue,
            };
            let fd = match sys::open_at(directory.as_fd(), name, flags, 0) {
                Ok(fd) => fd,
                // Removed meanwhile, which raised the generation.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if entry.kind == libc::DT_DIR {
                found.push(fd);
                continue;
            }
            match sys::is_open_for_writing(fd.as_fd()) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(errno) => {
                    tracing::warn!(ino = entry.ino, %errno, "cannot tell whether it is written");
                }
            }
        }
    }
}

impl Vfs {
    /// Tells the coordinator that a dataset is quiet once nobody writes it behind our back, for as
    /// long as is wanted. On a thread of its own, one a dataset; `false` when there is none.
    pub(super) fn tell_quiet(self: &Arc<Self>, dataset: DatasetId) -> bool {
        let vfs = Arc::clone(self);
        let watch = move || {
            let Some(gate) = vfs.gate(dataset) else {
                return;
            };
            let tree = vfs
                .read_names()
                .get(dataset)
                .and_then(|found| found.tree.clone());
            match tree {
                Some(tree) => vfs.watch_quiet(&gate, &tree, dataset),
                None => gate.unwatch(),
            }
        };
        let thread = std::thread::Builder::new().name("quiet".into());
        let spawned = thread.spawn(watch).inspect_err(|error| {
            tracing::error!(%dataset, %error, "no thread to look for writers: no commit");
        });
        spawned.is_ok()
    }

    fn watch_quiet(&self, gate: &GateCell, tree: &Inode, dataset: DatasetId) {
        let mut pause = PAUSE_MIN;
        while let Some((generation, left)) = gate.settling() {
            if !left.is_zero() {
                std::thread::park_timeout(left.min(PAUSE_MAX));
                continue;
            }
            match is_written(tree) {
                Ok(false) => {
                    let quiet = FromDaemon::Quiet {
                        dataset,
                        generation,
                    };
                    if gate.if_settled_at(generation, || self.requests().tell(quiet)) {
                        return;
                    }
                    continue;
                }
                Ok(true) => {
                    if pause == PAUSE_MIN {
                        tracing::info!(%dataset, "still written through a memory map or an old handle");
                    }
                    gate.unsettle();
                }
                Err(error) => {
                    tracing::error!(%dataset, %error, "cannot look for writers: no commit");
                    return gate.unwatch();
                }
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
