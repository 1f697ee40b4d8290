//! Open files and directories, by the number the kernel gives back with every request.
//!
//! A writable handle counts in its dataset's gate from open until release. Its backing file is
//! opened in the daemon only when something other than reading or writing is asked of it, or when
//! the daemon serves the bytes itself.

use super::FsResult;
use super::far::Reader;
use super::gates::GateCell;
use super::inode::{Backing, Inode};
use super::pointers::PointerFile;
use super::view::{Remote, View};
use crate::sys;
use scrfs::id::DatasetId;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An entry of a listing that is not in the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Inode number.
    pub ino: u64,
    /// `S_IFMT` bits.
    pub kind: u32,
    /// Name.
    pub name: Vec<u8>,
}

/// A directory of a sealed dataset as all nodes have it, listed when reading it began.
#[derive(Debug)]
pub struct WholeListing {
    /// Of which tree.
    pub view: Arc<View>,
    /// Which directory.
    pub place: usize,
    /// What is in it, `.` and `..` first.
    pub listed: Vec<Listed>,
}

/// The listing of a directory of a sealed dataset, once reading it has begun.
pub type Whole = Mutex<Option<Arc<WholeListing>>>;

/// What is open.
#[derive(Debug)]
pub enum Open {
    /// A regular file of a dataset.
    File {
        /// Which.
        inode: Arc<Inode>,
        /// Where its writers are counted.
        gate: Arc<GateCell>,
        /// Whether it counts as one.
        writable: bool,
        /// Access mode and status flags to open the backing file with.
        flags: i32,
        /// The backing file, once needed.
        file: OnceLock<OwnedFd>,
        /// Keeps passthrough alive; set before the open is answered.
        backing: Mutex<Option<Backing>>,
    },
    /// A directory of a dataset.
    Directory {
        /// Which.
        inode: Arc<Inode>,
        /// Open for reading; the lock is around its position.
        fd: Mutex<OwnedFd>,
        /// Once the dataset is sealed: what all nodes have in it.
        whole: Whole,
    },
    /// A directory of a dataset that is on other nodes only.
    RemoteDirectory {
        /// Which.
        remote: Remote,
        /// What is in it.
        whole: Whole,
    },
    /// A regular file of another node.
    Far(Reader),
    /// The file that programs write to show that they live.
    Heartbeat,
    /// A pointer file.
    Pointer {
        /// Which.
        file: Arc<PointerFile>,
        /// Whether it may be written.
        writable: bool,
        /// Whether it is written at its end only.
        append: bool,
    },
    /// The top or a virtual directory: what it held when reading began.
    Listing(Mutex<Vec<Listed>>),
    /// A virtual file, as it was when it was opened.
    Content(Vec<u8>),
}

impl Open {
    /// The backing file, opened with the handle's own access mode.
    pub fn file(&self) -> FsResult<&OwnedFd> {
        let Self::File {
            inode, flags, file, ..
        } = self
        else {
            // Nothing of ours: whoever wants to copy inside the cache must read it instead.
            return Err(super::FsError::NotSupported);
        };
        if let Some(fd) = file.get() {
            return Ok(fd);
        }
        // Two threads may both open it; the second descriptor is closed at once.
        let opened = sys::reopen(inode.fd()?.as_fd(), *flags)?;
        Ok(file.get_or_init(|| opened))
    }
}

/// All open handles. A leaf in the lock order.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    table: Mutex<HashMap<u64, Arc<Open>>>,
}

impl Handles {
    /// Gives it a number.
    pub fn insert(&self, open: Open) -> (u64, Arc<Open>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let open = Arc::new(open);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(number, Arc::clone(&open));
        (number, open)
    }

    /// The handle of that number.
    pub fn get(&self, number: u64) -> FsResult<Arc<Open>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&number).cloned().ok_or(super::FsError::Invalid)
    }

    /// Datasets of which something is open.
    pub fn in_use(&self) -> BTreeSet<DatasetId> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |open: &Arc<Open>| match &**open {
            Open::File { inode, .. } | Open::Directory { inode, .. } => Some(inode.dataset),
            Open::Far(reader) => Some(reader.file.dataset),
            Open::RemoteDirectory { .. }
            | Open::Listing(_)
            | Open::Content(_)
            | Open::Heartbeat
            | Open::Pointer { .. } => None,
        };
        table.values().filter_map(of).collect()
    }

    /// Takes it out.
    pub fn remove(&self, number: u64) -> Option<Arc<Open>> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number)
    }
}
