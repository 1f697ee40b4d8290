//! Which of many inodes have an open descriptor.
//!
//! The kernel may know a hundred thousand inodes at once; a process may have far fewer files open. So
//! an inode is named by its *file handle*, with which the kernel's filesystem finds it again whatever
//! its names are, and a bounded number of `O_PATH` descriptors is kept, the last used. A handle
//! names one inode for ever: when a number is used again for another file, the handle differs.
//!
//! Finding an inode by its handle needs a filesystem that can and a privilege (`CAP_DAC_READ_SEARCH`).
//! Where one is missing every inode keeps its descriptor, and the limit of open files is the limit of
//! inodes.
//!
//! What it does not do: a deleted inode that nobody has open is gone (ESTALE); whoever still needs
//! it keeps the descriptor.

use crate::sys::{self, FileHandle};
use lru::LruCache;
use nix::errno::Errno;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Descriptors kept at the least and at the most, as far as the limit of open files allows.
const KEPT: (u64, u64) = (16, 4096);

/// How an inode is found.
#[derive(Debug)]
pub(super) enum Place {
    /// By a descriptor of its own.
    Held(Arc<OwnedFd>),
    /// By its handle.
    Named {
        /// What it is.
        handle: Handle,
        /// Whether a descriptor is kept on behalf of this very object.
        keeps: AtomicBool,
    },
}

impl Place {
    /// Tells inodes apart that have one number, one after the other. A descriptor keeps its number
    /// from being used again.
    pub(super) fn generation(&self) -> u64 {
        match self {
            Self::Held(_) => 0,
            Self::Named { handle, .. } => handle.file.generation(),
        }
    }
}

/// Names one inode of one device.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Handle {
    device: u64,
    file: FileHandle,
}

/// The descriptors of all inodes of a mount. A leaf in the lock order.
#[derive(Debug)]
pub struct Descriptors {
    /// A descriptor on each device; `None` where handles do not work.
    devices: Mutex<HashMap<u64, Option<Arc<OwnedFd>>>>,
    kept: Mutex<LruCache<Handle, Arc<OwnedFd>>>,
    /// The devices of the stores, each once, in order.
    of_stores: Vec<u64>,
}

impl Descriptors {
    /// For a process that may have `files` open; a quarter of them go here. `of_stores`: the devices
    /// of the stores.
    pub fn new(files: u64, of_stores: Vec<u64>) -> Arc<Self> {
        let kept = (files / 4).clamp(KEPT.0, KEPT.1);
        let kept = NonZeroUsize::new(kept as usize).unwrap_or(NonZeroUsize::MIN);
        Arc::new(Self {
            devices: Mutex::default(),
            kept: Mutex::new(LruCache::new(kept)),
            of_stores,
        })
    }

    /// The devices of the stores, each once, in order.
    pub(super) fn devices_of_stores(&self) -> &[u64] {
        &self.of_stores
    }

    /// Takes an `O_PATH` descriptor of an inode that has this status.
    pub(super) fn place(&self, fd: OwnedFd, stat: &libc::stat) -> Place {
        let fd = Arc::new(fd);
        let device = stat.st_dev;
        let Ok(file) = sys::file_handle(fd.as_fd()) else {
            return Place::Held(fd);
        };
        let handle = Handle { device, file };
        if self.device(&handle, &fd, stat).is_none() {
            return Place::Held(fd);
        }
        let keeps = AtomicBool::new(self.keep(&handle, fd));
        Place::Named { handle, keeps }
    }

    /// Nobody needs that inode any more: a deleted file must not hold its space.
    pub(super) fn forget(&self, place: &Place) {
        if let Place::Named { handle, keeps } = place
            && keeps.load(Ordering::Relaxed)
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let dropped = kept.pop(handle);
            drop(kept);
            drop(dropped);
        }
    }

    /// A dataset is being dropped: what is deleted must not be kept from being freed by a descriptor
    /// that nobody uses. What is needed again is found by its handle.
    pub(super) fn let_go(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = Vec::new();
        while let Some((_, fd)) = kept.pop_lru() {
            dropped.push(fd);
        }
        drop(kept);
    }

    /// The descriptor of that inode.
    ///
    /// # Errors
    /// ESTALE when the inode is gone, EMFILE when too many files are open.
    pub(super) fn get(&self, place: &Place) -> Result<Arc<OwnedFd>, Errno> {
        let (handle, keeps) = match place {
            Place::Held(fd) => return Ok(Arc::clone(fd)),
            Place::Named { handle, keeps } => (handle, keeps),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = kept.get(handle) {
            return Ok(Arc::clone(fd));
        }
        drop(kept);
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let device = devices.get(&handle.device).cloned().flatten();
        drop(devices);
        let device = device.ok_or(Errno::ESTALE)?;
        let fd = sys::open_handle(device.as_fd(), &handle.file, libc::O_PATH)?;
        let fd = Arc::new(fd);
        if self.keep(handle, Arc::clone(&fd)) {
            keeps.store(true, Ordering::Relaxed);
        }
        Ok(fd)
    }

    /// Keeps a descriptor, if there is none yet, and says whether there was none.
    fn keep(&self, handle: &Handle, fd: Arc<OwnedFd>) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(handle).is_some() {
            return false;
        }
        let dropped = kept.push(handle.clone(), fd);
        // Closing may free a deleted file: not under the lock.
        drop(kept);
        drop(dropped);
        true
    }

    /// A descriptor on the device, made when the first directory of it is seen.
    fn device(&self, handle: &Handle, fd: &OwnedFd, stat: &libc::stat) -> Option<Arc<OwnedFd>> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = devices.get(&handle.device) {
            return known.clone();
        }
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return None;
        }
        let device = sys::reopen(fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)
            .and_then(|device| {
                sys::open_handle(device.as_fd(), &handle.file, libc::O_PATH)?;
                Ok(Arc::new(device))
            })
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "the cache's files cannot be found by handle: every file that the kernel \
                     knows of needs an open descriptor; `ulimit -n` must be large enough"
                );
            })
            .ok();
        devices.insert(handle.device, device.clone());
        device
    }

    /// How many are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn place(descriptors: &Descriptors, path: &Path) -> Place {
        let parent = fs::File::open(path.parent().expect("a parent")).expect("open");
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let name = path.file_name().expect("a name");
        let fd = sys::open_at(parent.as_fd(), name, flags, 0).expect("open");
        let stat = sys::stat(fd.as_fd()).expect("stat");
        descriptors.place(fd, &stat)
    }

    #[test]
    fn more_inodes_than_descriptors_are_all_found_again() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let descriptors = Descriptors::new(64, Vec::new());
        let top = place(&descriptors, dir.path());
        let places: Vec<_> = (0..100)
            .map(|number| {
                let path = dir.path().join(number.to_string());
                fs::write(&path, "x").expect("write");
                let ino = fs::metadata(&path).expect("stat").ino();
                (place(&descriptors, &path), ino)
            })
            .collect();
        assert_eq!(descriptors.len(), 16);
        // Names do not matter.
        fs::rename(dir.path().join("7"), dir.path().join("seven")).expect("rename");
        for (place, ino) in &places {
            let fd = descriptors.get(place).expect("found");
            assert_eq!(sys::stat(fd.as_fd()).expect("stat").st_ino, *ino);
        }
        assert_eq!(descriptors.len(), 16);
        drop(top);
    }

    #[test]
    fn a_deleted_inode_is_stale_and_never_another_one() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let descriptors = Descriptors::new(64, Vec::new());
        let _top = place(&descriptors, dir.path());
        let path = dir.path().join("file");
        fs::write(&path, "old").expect("write");
        let old = place(&descriptors, &path);
        let held = descriptors.get(&old).expect("found");
        fs::remove_file(&path).expect("remove");
        drop(held);
        descriptors.forget(&old);
        for number in 0..32 {
            let other = dir.path().join(number.to_string());
            fs::write(&other, "new").expect("write");
            place(&descriptors, &other);
        }
        assert_eq!(descriptors.get(&old).map(drop), Err(Errno::ESTALE));
    }
}
