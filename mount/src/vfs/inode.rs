//! Inodes the kernel knows, by number.
//!
//! The number is the backing inode's own, so that it stays the same over a restart of the daemon.
//! [`super::descriptors`] finds the file, whatever its names are; while an inode is open its descriptor
//! is kept, so that a deleted file stays what it is. All cache files lie on one filesystem, so numbers are unique. The top has number
//! 1; virtual entries have [`VIRTUAL_BIT`] set.
//!
//! Invariant: *one data path per inode while it is open*. The kernel refuses to mix passthrough with
//! other opens of the same inode, so the first open decides and the last release forgets.
//!
//! What it does not do: it does not know names or parents.

use super::descriptors::{Descriptors, Place};
use super::{FsError, FsResult};
use crate::sys;
use nix::errno::Errno;
use scrfs::id::DatasetId;
use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The number of the top directory.
pub const ROOT: u64 = 1;
/// Set in the numbers of entries that have no backing file.
pub const VIRTUAL_BIT: u64 = 1 << 63;

/// What the kernel was given to reach a backing file by itself; opaque here.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// How an inode's bytes travel while it is open.
#[derive(Debug)]
enum DataPath {
    /// The kernel reads and writes the backing file itself.
    Passthrough(Weak<dyn Any + Send + Sync>),
    /// The daemon does.
    Served,
}

#[derive(Debug)]
struct Opens {
    count: u64,
    /// Of a file that is open: it may have no name any more.
    kept: Option<Arc<OwnedFd>>,
    path: DataPath,
}

/// One file, directory or other thing of a dataset.
#[derive(Debug)]
pub struct Inode {
    /// Its number, here and in the cache.
    pub ino: u64,
    /// `S_IFMT` part of its mode.
    pub kind: u32,
    /// The dataset it belongs to; never changes, because nothing moves between datasets.
    pub dataset: DatasetId,
    place: Place,
    descriptors: Arc<Descriptors>,
    opens: Mutex<Opens>,
}

impl Inode {
    /// Takes an `O_PATH` descriptor.
    pub fn new(fd: OwnedFd, dataset: DatasetId, descriptors: &Arc<Descriptors>) -> FsResult<Self> {
        let stat = sys::stat(fd.as_fd())?;
        if stat.st_ino == ROOT || stat.st_ino & VIRTUAL_BIT != 0 {
            tracing::error!(
                ino = stat.st_ino,
                "the cache uses an inode number reserved here"
            );
            return Err(FsError::Broken);
        }
        let opens = Opens {
            count: 0,
            kept: None,
            path: DataPath::Served,
        };
        Ok(Self {
            ino: stat.st_ino,
            kind: stat.st_mode & libc::S_IFMT,
            dataset,
            place: descriptors.place(fd, &stat),
            descriptors: Arc::clone(descriptors),
            opens: Mutex::new(opens),
        })
    }

    /// An inode of the same dataset, by its `O_PATH` descriptor.
    pub fn sibling(&self, fd: OwnedFd) -> FsResult<Self> {
        Self::new(fd, self.dataset, &self.descriptors)
    }

    /// An `O_PATH` descriptor of it; ESTALE when it was deleted and nobody has it open.
    pub fn fd(&self) -> Result<Arc<OwnedFd>, Errno> {
        let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &opens.kept {
            return Ok(Arc::clone(kept));
        }
        drop(opens);
        self.descriptors.get(&self.place)
    }

    /// Tells inodes apart that have one number, one after the other.
    pub fn generation(&self) -> u64 {
        self.place.generation()
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// One more open: decides the data path if it is the first. `register` hands the file to the
    /// kernel; `None` for it where passthrough is not to be had. Returns what the handle must keep.
    pub fn attach(
        &self,
        register: Option<impl FnOnce(BorrowedFd<'_>) -> std::io::Result<Backing>>,
    ) -> FsResult<Option<Backing>> {
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = match &opens.kept {
            Some(kept) => Arc::clone(kept),
            None => self.descriptors.get(&self.place)?,
        };
        let known = match &opens.path {
            DataPath::Passthrough(weak) => weak.upgrade(),
            DataPath::Served => None,
        };
        let backing = match (known, register) {
            (Some(backing), _) => Some(backing),
            (None, Some(register)) if opens.count == 0 => match register(fd.as_fd()) {
                Ok(backing) => Some(backing),
                Err(error) => {
                    tracing::warn!(ino = self.ino, %error, "no passthrough for this file");
                    None
                }
            },
            (None, _) => None,
        };
        opens.path = match &backing {
            Some(backing) => DataPath::Passthrough(Arc::downgrade(backing)),
            None => DataPath::Served,
        };
        opens.kept = Some(fd);
        opens.count += 1;
        Ok(backing)
    }

    /// One open less.
    pub fn detach(&self) {
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        opens.count = opens.count.saturating_sub(1);
        if opens.count == 0 {
            opens.path = DataPath::Served;
            opens.kept = None;
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.descriptors.forget(&self.place);
    }
}

#[derive(Debug)]
struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

/// All inodes the kernel has a reference to. A leaf in the lock order.
#[derive(Debug, Default)]
pub struct Inodes {
    table: Mutex<HashMap<u64, Known>>,
}

impl Inodes {
    /// The inode of that number, if the kernel may know it.
    pub fn get(&self, ino: u64) -> Option<Arc<Inode>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&ino).map(|known| Arc::clone(&known.inode))
    }

    /// The kernel is about to be told of `inode`: counts a lookup, and returns the one object that
    /// stands for it. A number that another inode had before now stands for the new one; the kernel
    /// tells them apart by their generation.
    pub fn remember(&self, inode: Arc<Inode>) -> Arc<Inode> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.entry(inode.ino).or_insert_with(|| Known {
            inode: Arc::clone(&inode),
            lookups: 0,
        });
        known.lookups += 1;
        if known.inode.generation() != inode.generation() {
            known.inode = inode;
        }
        Arc::clone(&known.inode)
    }

    /// The kernel gave back `lookups` references.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = table.get_mut(&ino).is_some_and(|known| {
            known.lookups = known.lookups.saturating_sub(lookups);
            known.lookups == 0
        });
        let dropped = if gone { table.remove(&ino) } else { None };
        // Closing a descriptor of a deleted file frees its space: not under the lock.
        drop(table);
        drop(dropped);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    fn inode() -> (tempfile::NamedTempFile, Arc<Inode>) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let fd = nix::fcntl::open(file.path(), OFlag::O_PATH, nix::sys::stat::Mode::empty());
        let descriptors = Descriptors::new(64);
        let inode = Inode::new(fd.expect("open"), DatasetId(1), &descriptors).expect("an inode");
        (file, Arc::new(inode))
    }

    #[test]
    fn an_inode_is_kept_until_every_lookup_is_forgotten() {
        let (_file, inode) = inode();
        let inodes = Inodes::default();
        inodes.remember(Arc::clone(&inode));
        inodes.remember(Arc::clone(&inode));
        inodes.forget(inode.ino, 1);
        assert!(inodes.get(inode.ino).is_some());
        inodes.forget(inode.ino, 1);
        assert!(inodes.get(inode.ino).is_none());
        inodes.forget(inode.ino, 7);
    }

    #[test]
    fn the_first_open_decides_the_data_path_and_the_last_release_forgets_it() {
        type Register = fn(BorrowedFd<'_>) -> std::io::Result<Backing>;
        let yes: Register = |_| Ok(Arc::new(5u32));
        let never: Register = |_| panic!("registered twice");
        let (_file, inode) = inode();
        let first = inode.attach(Some(yes)).expect("open").expect("passthrough");
        let second = inode
            .attach(Some(never))
            .expect("open")
            .expect("passthrough");
        assert!(Arc::ptr_eq(&first, &second));
        drop((first, second));
        inode.detach();
        inode.detach();
        assert!(inode.attach(None::<Register>).expect("open").is_none());
        assert!(
            inode.attach(Some(never)).expect("open").is_none(),
            "served until closed"
        );
        inode.detach();
        inode.detach();
        assert!(inode.attach(Some(yes)).expect("open").is_some());
    }
}
