//! The filesystem, callable without a kernel.
//!
//! [`Vfs`] owns the namespace of one mount: which datasets there are and under which name, the inodes
//! the kernel knows, open handles, gates, and the requests that wait for the coordinator. It never
//! writes a record: it reads them when it starts ([`Vfs::load`]) and is told of changes
//! ([`Vfs::publish`]).
//!
//! - [`namespace`] datasets by name, and what the coordinator says of them
//! - [`dir`] names inside datasets and at the top, [`rename`] their renames; [`changes`] of directories on all nodes; `file` bytes; [`attr`] attributes
//! - [`control_dir`] the virtual `.scr`, [`advice`] when it says to checkpoint; [`alias`] renames that come after the commit
//! - [`hidden`] names that are removed where nothing may change
//! - [`view`] sealed datasets of several nodes as a whole, and [`far`] the bytes of other nodes
//! - [`closed`] files that nobody writes any more, before the commit
//! - `shelf` what only the prefix has, for who opens it
//! - [`triggers`] commits that no program asks for
//! - [`pointers`] plain files at the top; [`signs`] signs of life and the wish that programs end
//! - `room` how much may be written; [`gates`] and [`writers`] who changes a dataset now; [`requests`] what the coordinator must decide
//!
//! Lock order: names, then inodes, gate, requests or handles, each of which is a leaf. No lock is
//! held while a program is answered, while the cache is read or written for long, or while anything
//! is awaited. Kernel caches are never invalidated from here: names at the top and of directories in
//! open datasets have a lifetime of zero instead, because an invalidation needs the very lock
//! that the kernel holds while it waits for our answer to a rename.

pub mod advice;
pub mod alias;
pub mod attr;
pub mod changes;
pub mod closed;
pub mod control_dir;
pub mod descriptors;
pub mod dir;
pub mod far;
pub mod file;
pub mod gates;
pub mod handle;
pub mod hidden;
pub mod inode;
pub mod namespace;
pub mod pointers;
pub mod rename;
pub mod requests;
mod room;
mod shelf;
pub mod signs;
pub mod triggers;
pub mod view;
pub mod writers;

#[cfg(test)]
mod tests;

use crate::gate::Notice;
use attr::Attr;
use control_dir::ControlNode;
use descriptors::Descriptors;
use gates::{GateCell, PassGuard};
use handle::Handles;
use inode::{Inode, Inodes, ROOT};
use nix::errno::Errno;
use requests::Requests;
use scrfs::config::CommitConfig;
use scrfs::control::{FromDaemon, Refusal};
use scrfs::id::DatasetId;
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::UnixMillis;
use scrfs::name::Name;
use scrfs::stores::Stores;
use scrfs::trigger::Triggers;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

/// Why an operation fails. [`crate::errno`] says what programs see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FsError {
    /// What the cache's filesystem answered.
    #[error("{0}")]
    System(Errno),
    /// No such name or inode.
    #[error("no such file or directory")]
    Missing,
    /// The name is taken.
    #[error("it exists")]
    Exists,
    /// The dataset is sealed.
    #[error("the dataset is sealed")]
    Sealed,
    /// Frozen, or otherwise in use.
    #[error("busy")]
    Busy,
    /// A directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// The directory is not empty.
    #[error("not empty")]
    NotEmpty,
    /// Makes no sense here.
    #[error("invalid")]
    Invalid,
    /// A name or path is too long.
    #[error("name too long")]
    NameTooLong,
    /// Not for programs to change.
    #[error("not permitted")]
    NotPermitted,
    /// Across two datasets.
    #[error("across datasets")]
    OtherDataset,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// Not supported here.
    #[error("not supported")]
    NotSupported,
    /// The caller's buffer is too small.
    #[error("buffer too small")]
    BufferTooSmall,
    /// No space.
    #[error("no space")]
    NoSpace,
    /// The cache contradicts itself, or a request was lost; the log says which.
    #[error("i/o error")]
    Broken,
    /// It lies on another node, and nobody could bring it; the log says why.
    #[error("out of reach")]
    Unreachable,
    /// The coordinators said no.
    #[error("refused: {0:?}")]
    Refused(Refusal),
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl From<scrfs::name::NameError> for FsError {
    fn from(error: scrfs::name::NameError) -> Self {
        match error {
            scrfs::name::NameError::TooLong { .. } => Self::NameTooLong,
            scrfs::name::NameError::Malformed(_) => Self::Invalid,
            scrfs::name::NameError::Reserved => Self::NotPermitted,
        }
    }
}

/// What an operation returns.
pub type FsResult<T> = Result<T, FsError>;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, as seen from the daemon; 0 when it cannot be seen.
    pub pid: u32,
}

impl Caller {
    /// Does to a file's bytes what this caller asked for: it clears set-user-id bits, unless by root.
    fn change_bytes<T>(self, work: impl FnOnce() -> T) -> T {
        if self.uid == 0 {
            work()
        } else {
            crate::sys::without_fsetid(work)
        }
    }
}

/// What an answer to a lookup says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Attributes, the inode number among them.
    pub attr: Attr,
    /// Tells inodes apart that have one number, one after the other.
    pub generation: u64,
    /// How long the kernel may believe the name.
    pub entry_ttl: Duration,
    /// How long it may believe the attributes.
    pub attr_ttl: Duration,
}

/// How long the kernel may believe what cannot change behind its back.
pub const TTL: Duration = Duration::from_secs(1);

/// What the daemon knows when it starts and the filesystem needs.
pub struct Settings {
    /// The first store: its paths lead to every dataset.
    pub cache: CachePaths,
    /// All stores, and how much of them may be used.
    pub space: Arc<crate::space::Spaces>,
    /// Which names do not commit, and what else does.
    pub commit: CommitConfig,
    /// How long requests wait for a coordinator, and late renames are still answered.
    pub grace: Duration,
    /// Text of `.scr/config`.
    pub config_text: String,
    /// Text of `.scr/daemon`.
    pub daemon_text: String,
    /// Where checkpoints that only the prefix has are restarted from without a fetch (`restart.bypass`).
    pub in_place: Option<std::path::PathBuf>,
    /// How many files this process may have open.
    pub files: u64,
    /// Owner, group and mode of the top directory.
    pub top: (u32, u32, u32),
    /// When a program that asks is told to checkpoint.
    pub rules: scrfs::interval::Rules,
    /// Milliseconds since the Unix epoch.
    pub clock: fn() -> UnixMillis,
    /// Whose thread it is: [`advice::asker`].
    pub asker: fn(u32) -> scrfs::interval::Asker,
    /// Tells whether a thread is inside `rename`.
    pub is_renaming: fn(u32) -> Option<bool>,
    /// The same of removing a name: [`alias::is_removing`].
    pub is_removing: fn(u32) -> Option<bool>,
    /// The same of opening something below a name: [`alias::is_reaching`].
    pub is_reaching: fn(u32, &Name) -> Option<bool>,
}

/// A thing with an inode number.
#[derive(Clone, Debug)]
pub enum Node {
    /// The top directory.
    Root,
    /// In `.scr`.
    Control(ControlNode),
    /// A pointer file.
    Pointer(Arc<pointers::PointerFile>),
    /// In a dataset.
    File(Arc<Inode>),
    /// In a sealed dataset, on other nodes.
    Remote(view::Remote),
}

/// One mount's filesystem.
pub struct Vfs {
    me: Weak<Self>,
    settings: Settings,
    watch: Arc<triggers::Watch>,
    names: RwLock<namespace::Names>,
    inodes: Inodes,
    descriptors: Arc<Descriptors>,
    handles: Handles,
    pointers: pointers::PointerFiles,
    closed: closed::ClosedFiles,
    requests: Arc<Requests>,
    far: Arc<far::Far>,
    questions: Mutex<advice::Questions>,
    /// How the bytes travel, for people; set once when mounted.
    data_path: Mutex<String>,
    passthrough: std::sync::atomic::AtomicBool,
    signs: signs::Signs,
    started: Instant,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs")
            .field("cache", &self.settings.cache)
            .finish_non_exhaustive()
    }
}

/// The devices of the stores, each once, in order.
fn devices_of(stores: &Stores) -> Vec<u64> {
    let mut devices = Vec::new();
    for store in stores.iter() {
        match std::fs::metadata(store.root()) {
            Ok(found) if devices.contains(&found.dev()) => {}
            Ok(found) => devices.push(found.dev()),
            Err(error) => tracing::error!(store = %store.root().display(), %error, "no store"),
        }
    }
    devices
}

impl Vfs {
    /// A filesystem with nothing in it.
    pub fn new(settings: Settings) -> Arc<Self> {
        let requests: Arc<Requests> = Arc::default();
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            far: far::Far::new(Arc::clone(&requests)),
            descriptors: Descriptors::new(settings.files, devices_of(settings.space.stores())),
            watch: Arc::new(triggers::Watch::new(Triggers::new(settings.commit.clone()))),
            settings,
            names: RwLock::default(),
            inodes: Inodes::default(),
            handles: Handles::default(),
            pointers: pointers::PointerFiles::default(),
            closed: closed::ClosedFiles::default(),
            requests,
            questions: Mutex::default(),
            data_path: Mutex::default(),
            passthrough: std::sync::atomic::AtomicBool::new(false),
            signs: signs::Signs::default(),
            started: Instant::now(),
        })
    }

    /// What the daemon knew when it started.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sealed datasets of which programs have something open.
    pub fn in_use(&self) -> Vec<DatasetId> {
        let opened = self.handles.in_use();
        let names = self.read_names();
        let sealed = |id: &DatasetId| names.get(*id).is_some_and(|it| it.record.is_cached());
        opened.into_iter().filter(sealed).collect()
    }

    /// What waits for the coordinator.
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// What passes between programs and who watches them.
    pub fn signs(&self) -> &signs::Signs {
        &self.signs
    }

    /// Since when it runs.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How the bytes travel, in words.
    pub fn data_path(&self) -> String {
        self.data_path
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Whether the kernel forwards reads and writes by itself.
    pub fn has_passthrough(&self) -> bool {
        self.passthrough.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Set once, before the first request.
    pub fn set_data_path(&self, passthrough: bool, words: &str) {
        self.passthrough
            .store(passthrough, std::sync::atomic::Ordering::Relaxed);
        words.clone_into(
            &mut self
                .data_path
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    /// What stands behind an inode number.
    pub fn node(&self, ino: u64) -> FsResult<Node> {
        if ino == ROOT {
            return Ok(Node::Root);
        }
        if let Some(control) = ControlNode::of(ino) {
            return Ok(Node::Control(control));
        }
        if pointers::is_pointer(ino) {
            return self
                .pointers
                .get(ino)
                .map(Node::Pointer)
                .ok_or(FsError::Missing);
        }
        if let Some(remote) = view::Remote::of(ino) {
            return Ok(Node::Remote(remote));
        }
        // A dataset's top may be asked for after the kernel gave its references back.
        self.inodes
            .get(ino)
            .or_else(|| self.tree_by_ino(ino))
            .map(Node::File)
            .ok_or(FsError::Missing)
    }

    /// The inode of a dataset behind a number; what is not in one cannot be changed.
    pub(crate) fn inode(&self, ino: u64) -> FsResult<Arc<Inode>> {
        match self.node(ino)? {
            Node::File(inode) => Ok(inode),
            Node::Remote(_) => Err(FsError::Sealed),
            Node::Pointer(_) => Err(FsError::NotSupported),
            Node::Root | Node::Control(_) => Err(FsError::NotPermitted),
        }
    }

    /// The kernel gave back references.
    pub fn forget(&self, ino: u64, lookups: u64) {
        if pointers::is_pointer(ino) {
            return self.pointers.forget(ino, lookups);
        }
        self.inodes.forget(ino, lookups);
    }

    /// Carries out `operation` when the dataset's gate lets it, then hands its result to `answer`,
    /// with the pass already given back.
    pub fn change<T: 'static>(
        self: &Arc<Self>,
        dataset: DatasetId,
        operation: impl FnOnce(&Arc<Self>, &mut PassGuard) -> FsResult<T> + Send + 'static,
        answer: impl FnOnce(FsResult<T>) + Send + 'static,
    ) {
        let Some(gate) = self.gate(dataset) else {
            return answer(Err(FsError::Missing));
        };
        let vfs = Arc::clone(self);
        gate.enter(move |pass| {
            let result = pass.and_then(|mut pass| operation(&vfs, &mut pass));
            answer(result);
        });
    }

    /// The gate of a dataset.
    pub fn gate(&self, dataset: DatasetId) -> Option<Arc<GateCell>> {
        self.read_names().gate(dataset)
    }

    fn herald(&self) -> gates::Herald {
        let vfs = Weak::clone(&self.me);
        Arc::new(move |dataset, notice| {
            let Some(vfs) = vfs.upgrade() else {
                return false;
            };
            match notice {
                Notice::Quiet(_) => vfs.tell_quiet(dataset),
                Notice::Disturbed(generation) => {
                    vfs.requests.tell(FromDaemon::Disturbed {
                        dataset,
                        generation,
                    });
                    true
                }
            }
        })
    }
}
