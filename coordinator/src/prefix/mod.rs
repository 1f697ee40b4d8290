//! The prefix: the directory on the parallel filesystem that datasets are flushed to and fetched from.
//!
//! Users see `<prefix>/<name>/`, whole or not at all; everything else is below `<prefix>/.scrfs/`.
//! Invariants:
//!
//! - A directory gets its name when every file in it is durable and has been checked against its
//!   manifest, and the index knows it.
//! - What is not ours is never touched, replaced or removed.
//! - What is read is checked against the checksums that were sealed.
//! - In the mount point of a prefix that was unmounted since this process first looked nothing is made.
//! - A crash at any point leaves no dataset of that name or a complete one; [`Prefix::reconcile`]
//!   finishes or removes what it left.
//!
//! All of it is synchronous and blocks; streams run on tokio's blocking threads. The wall clock is
//! read here, to say when a flush ended. Which datasets are flushed or fetched, and when, is decided
//! elsewhere; agreement between nodes too.

mod adopt;
mod complete;
mod direct;
mod done;
mod error;
mod events;
mod fetch;
pub(crate) mod flush;
mod gather;
mod outgoing;
mod pointers;
mod publish;
mod reconcile;
mod salvage;
mod scr;
mod split;
pub(crate) mod streams;
mod track;
mod verify;

#[cfg(test)]
mod tests;

pub use adopt::Added;
pub use error::{Cause, PrefixError};
use nix::unistd::AccessFlags;
pub use scr::scr_class;
use scrfs::id::{DatasetKey, Slot};
use scrfs::layout::index::{EntryState, IndexEntry};
use scrfs::layout::path::PrefixPaths;
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::step::Presence;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use streams::Pace;
#[cfg(feature = "objects")]
pub(crate) use track::{current_of, superfluous};

/// How a flush makes sure of what it wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Every byte is read back and held against its checksum.
    ReadBack,
    /// Every file has its size; what an attempt before has copied is read back. What is copied now was
    /// held against its checksum before it was written, and its fsync has succeeded.
    #[default]
    Sizes,
}

/// How much of the machine a flush may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushLimits {
    /// Requests at once; each holds about 4 MiB of memory.
    pub streams: usize,
    /// Bytes a second, of all flushes through one [`Prefix`] together.
    pub bandwidth: Option<u64>,
    /// How it makes sure.
    pub verify: Verify,
}

impl Default for FlushLimits {
    fn default() -> Self {
        Self {
            streams: 8,
            bandwidth: None,
            verify: Verify::default(),
        }
    }
}

/// What a flush of one part did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushSummary {
    /// Length of the part log.
    pub bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Nothing was copied: the prefix has the dataset.
    pub already_there: bool,
    /// Files that an attempt before had copied.
    pub resumed: u64,
}

/// An opened prefix.
#[derive(Debug)]
pub struct Prefix {
    paths: PrefixPaths,
    store: PosixStore,
    pace: Pace,
    /// Parts that are being flushed.
    busy: Mutex<HashSet<(DatasetKey, Slot)>>,
    job: String,
}

/// Called before each step that a crash could separate from the next; tests make it fail.
pub(crate) type StepHook<'a> = &'a dyn Fn(&'static str) -> io::Result<()>;

impl Prefix {
    /// The prefix at `path`, to flush to and fetch from. Makes nothing.
    ///
    /// # Errors
    ///
    /// It is not there, not a directory, on a read-only filesystem, or not writable.
    pub fn open(path: &Path) -> Result<Self, PrefixError> {
        let prefix = Self::at(path);
        prefix.check_usable()?;
        Ok(prefix)
    }

    /// The prefix at `path`, to list and fetch from.
    pub fn open_to_read(path: &Path) -> Result<Self, PrefixError> {
        let prefix = Self::at(path);
        prefix.check_there()?;
        Ok(prefix)
    }

    /// The prefix at `path`, whatever is there now: it may not answer.
    pub fn at(path: &Path) -> Self {
        let paths = PrefixPaths::new(path);
        Self {
            store: PosixStore::at_home(paths.control()),
            paths,
            pace: Pace::default(),
            busy: Mutex::default(),
            job: String::new(),
        }
    }

    /// That it is there and may be written to. Before anything is made in it: a prefix that is not
    /// mounted, or was removed, is not made anew.
    pub fn check_usable(&self) -> Result<(), PrefixError> {
        self.check_there()?;
        let path = self.paths.root();
        let write = AccessFlags::W_OK | AccessFlags::X_OK;
        nix::unistd::access(path, write)
            .map_err(io::Error::from)
            .map_err(PrefixError::io_at("write to", path))
    }

    /// Remembers what lies there, before anything is made in it. May hang.
    pub(crate) fn see(&self) {
        self.store.see_home();
    }

    fn check_there(&self) -> Result<(), PrefixError> {
        let path = self.paths.root();
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(PrefixError::NotADirectory {
                    path: path.to_owned(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PrefixError::Missing {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(PrefixError::io_at("open", path)(error)),
        }
        Ok(())
    }

    /// The same, for what `job` does there.
    #[must_use]
    pub fn of_job(mut self, job: &str) -> Self {
        job.clone_into(&mut self.job);
        self
    }

    /// Where everything lies.
    pub fn paths(&self) -> &PrefixPaths {
        &self.paths
    }

    /// What the index says of one dataset; `None` when nothing that can be believed.
    pub fn entry(&self, key: DatasetKey) -> Result<Option<IndexEntry>, PrefixError> {
        self.read_entry(&self.paths.entry(key), key)
    }

    fn read_entry(&self, path: &Path, key: DatasetKey) -> Result<Option<IndexEntry>, PrefixError> {
        let Some(bytes) = self.store.get(path)? else {
            return Ok(None);
        };
        match IndexEntry::decode(&bytes) {
            Ok(entry) if entry.key() == key => return Ok(Some(entry)),
            Ok(entry) => {
                tracing::error!(?path, found = %entry.record.id, "an entry of another dataset");
            }
            Err(error) => tracing::error!(?path, %error, "an entry of the index is damaged"),
        }
        Ok(None)
    }

    /// All datasets of the index, ascending by number, without those whose name another has taken.
    /// What cannot be believed is reported and left out: damaged entries, and complete ones whose
    /// directory somebody has removed.
    pub fn list(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        let mut entries = self.all_entries()?;
        let replaced: Vec<_> = entries
            .iter()
            .filter(|entry| entry.is_complete() || self.has_its_name(entry))
            .filter_map(|entry| Some((entry.key(), entry.replaces?.key, entry.flushed)))
            .filter(|(by, id, _)| by != id)
            .collect();
        entries.retain(|entry| {
            !replaced
                .iter()
                .any(|&(_, id, at)| id == entry.key() && entry.flushed <= at)
        });
        entries.retain(|entry| {
            let path = self.paths.dataset(&entry.record.name);
            let gone = entry.is_complete() && inode(&path).is_none();
            if gone {
                tracing::error!(?path, dataset = %entry.record.id, "in the index, and not there");
            }
            !gone
        });
        Ok(entries)
    }

    fn all_entries(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        let mut entries = Vec::new();
        for name in self.store.list(&self.paths.index())? {
            match name.to_str().and_then(DatasetKey::parse) {
                Some(key) => entries.extend(self.entry(key)?),
                // Records on their way in, hidden until they are whole.
                None => tracing::debug!(?name, "not an entry of the index"),
            }
        }
        entries.sort_by_key(IndexEntry::key);
        Ok(entries)
    }

    /// The newest checkpoint that is complete in the prefix.
    pub fn newest_complete(&self) -> Result<Option<IndexEntry>, PrefixError> {
        let fits = |entry: &IndexEntry| entry.is_complete() && entry.record.class.is_checkpoint();
        Ok(self.list()?.into_iter().rfind(fits))
    }

    /// Whether the index has it complete and its directory is there.
    fn published(&self, record: &DatasetRecord) -> Result<bool, PrefixError> {
        let entry = self.entry(record.key())?;
        Ok(entry.is_some_and(|entry| {
            entry.state == EntryState::Complete
                && entry.record.name == record.name
                && inode(&self.paths.dataset(&record.name)).is_some()
        }))
    }

    /// Whether what was flushed is there still.
    pub(crate) fn presence(&self, record: &DatasetRecord) -> Result<Presence, PrefixError> {
        let path = self.paths.dataset(&record.name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => found.ino(),
            Ok(_) => return Ok(Presence::Gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Presence::Gone);
            }
            // Not seen is not gone.
            Err(error) => return Err(PrefixError::io_at("stat", &path)(error)),
        };
        let is_it = |entry: &IndexEntry| entry.is_complete() && entry.record.name == record.name;
        let entry = self.entry(record.key())?.filter(is_it);
        if entry.as_ref().is_some_and(|entry| entry.inode == found) {
            return Ok(Presence::Settled);
        }
        // Another directory: of another dataset, or the prefix was copied to where it is now. One that is
        // still being flushed has taken the name once the directory is its own.
        let others = self.all_entries()?;
        let is_taken = others.iter().any(|other| {
            let of_another = other.key() != record.key() && other.record.name == record.name;
            of_another && (other.is_complete() || other.inode == found)
        });
        Ok(match (is_taken, entry) {
            (true, _) => Presence::Replaced,
            (false, Some(_)) => Presence::Settled,
            (false, None) => Presence::Gone,
        })
    }

    /// Whether the directory under the entry's name is the one the entry was written for.
    fn has_its_name(&self, entry: &IndexEntry) -> bool {
        inode(&self.paths.dataset(&entry.record.name)) == Some(entry.inode)
    }
}

/// Inode number of a directory; `None` when there is none, or something else.
fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path)
        .ok()
        .filter(fs::Metadata::is_dir)
        .map(|found| found.ino())
}
