//! Inodes the kernel knows, by number.
//!
//! The number is the backing inode's own, so that it stays the same over a restart of the daemon; above
//! it ([`DEVICE_SHIFT`]) which of the stores' devices it is on, in their order: 0 for the first, and for all that
//! lie on the same. [`super::descriptors`] finds the file, whatever its names are; while an inode is open its descriptor
//! is kept, so that a deleted file stays what it is. The top has number 1; virtual entries have
//! [`VIRTUAL_BIT`] set.
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
/// Below it the number that the store gave, above it which device it is on. Filesystems that number
/// inodes beyond this (none of tmpfs, ext4, xfs, btrfs does) cannot be one of several stores.
pub const DEVICE_SHIFT: u32 = 56;
const DEVICE_MASK: u64 = !VIRTUAL_BIT & !((1 << DEVICE_SHIFT) - 1);

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

/// The number of a file as its store gives it.
pub fn number_in_store(ino: u64) -> u64 {
    ino & !DEVICE_MASK
}

impl Inode {
    /// Takes an `O_PATH` descriptor.
    pub fn new(fd: OwnedFd, dataset: DatasetId, descriptors: &Arc<Descriptors>) -> FsResult<Self> {
        let stat = sys::stat(fd.as_fd())?;
        let Some(ino) = number(&stat, descriptors.devices_of_stores()) else {
            tracing::error!(
                ino = stat.st_ino,
                device = stat.st_dev,
                "the cache uses an inode number reserved here, or a device that is no store's"
            );
            return Err(FsError::Broken);
        };
        let opens = Opens {
            count: 0,
            kept: None,
            path: DataPath::Served,
        };
        Ok(Self {
            ino,
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

    /// The number of what a listing of this directory shows with the number `ino` of the store.
    pub fn number_of(&self, ino: u64) -> u64 {
        ino | self.ino & DEVICE_MASK
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

/// The number of an inode of one of these devices; `None` when it would be taken for another.
fn number(stat: &libc::stat, devices: &[u64]) -> Option<u64> {
    let ino = stat.st_ino;
    if ino == ROOT || ino & VIRTUAL_BIT != 0 {
        return None;
    }
    match devices {
        // All the numbers there are.
        [] | [_] => Some(ino),
        _ => {
            let device = devices.iter().position(|device| *device == stat.st_dev)?;
            let above = u64::try_from(device).ok()?.checked_mul(1 << DEVICE_SHIFT)?;
            (ino & DEVICE_MASK == 0 && above & VIRTUAL_BIT == 0).then_some(above | ino)
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
        let descriptors = Descriptors::new(64, Vec::new());
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
    fn numbers_of_two_devices_differ_and_none_is_taken_for_another() {
        let (file, _) = inode();
        let mut stat = sys::stat(file.as_file().as_fd()).expect("stat");
        let of = |stat: &libc::stat, devices: &[u64]| number(stat, devices);
        stat.st_ino = 77;
        stat.st_dev = 5;
        assert_eq!(of(&stat, &[5]), Some(77));
        assert_eq!(of(&stat, &[5, 6]), Some(77));
        assert_eq!(of(&stat, &[6, 5]), Some(1 << DEVICE_SHIFT | 77));
        assert_eq!(of(&stat, &[6, 7]), None, "of no store");
        stat.st_ino = 1 << DEVICE_SHIFT | 77;
        assert_eq!(of(&stat, &[5]), Some(stat.st_ino), "as it is");
        assert_eq!(
            of(&stat, &[5, 6]),
            None,
            "it would be one of the other device"
        );
        stat.st_ino = ROOT;
        assert_eq!(of(&stat, &[6, 5]), None);
        let many: Vec<u64> = (1000..1127).chain([5]).collect();
        stat.st_ino = 77;
        assert_eq!(of(&stat, &many).map(|ino| ino >> DEVICE_SHIFT), Some(127));
        let many: Vec<u64> = (1000..1128).chain([5]).collect();
        assert_eq!(of(&stat, &many), None, "too many");
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
