//! Where datasets are flushed to and fetched from: a directory, or a path in an object store (ADR 24).
//!
//! Which of them, the prefix's name says: `s3://bucket/path` and the like, or anything else. Both do
//! the same; nothing here but the choice.

use crate::journal::Place;
#[cfg(feature = "objects")]
use crate::objects::ObjectPrefix;
use crate::part::Part;
use crate::prefix::{Added, FlushLimits, FlushSummary, Prefix, PrefixError};
use scrfs::config::{Class, is_object_url};
use scrfs::id::{DatasetKey, Epoch, Slot};
use scrfs::layout::index::{Choice, IndexEntry};
use scrfs::layout::path::{CachePaths, PrefixPaths};
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::DatasetRecord;
use scrfs::layout::scr::ScrIndex;
use scrfs::name::Name;
use scrfs::protocol::step::Presence;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An opened prefix of either kind.
#[derive(Debug)]
pub enum Target {
    /// On a file system.
    Directory(Prefix),
    /// In an object store.
    #[cfg(feature = "objects")]
    Bucket(ObjectPrefix),
    /// No prefix at all: a URL of nothing that is known.
    Unusable {
        /// As it was given.
        url: String,
        /// Why not.
        why: String,
    },
}

macro_rules! either {
    ($target:expr, $prefix:ident => $call:expr) => {
        match $target {
            Target::Directory($prefix) => $call,
            #[cfg(feature = "objects")]
            Target::Bucket($prefix) => $call,
            Target::Unusable { url, why } => unusable(url, why),
        }
    };
}

fn unusable<T>(url: &str, why: &str) -> Result<T, PrefixError> {
    Err(PrefixError::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    })
}

impl Target {
    /// The prefix of that name, whatever is there now: it may not answer.
    pub fn at(path: &Path) -> Self {
        if !is_object_url(path) {
            return Self::Directory(Prefix::at(path));
        }
        Self::open_url(path).unwrap_or_else(|error| {
            let url = path.display().to_string();
            match error {
                PrefixError::Url { why, .. } => Self::Unusable { url, why },
                other => Self::Unusable {
                    url,
                    why: other.to_string(),
                },
            }
        })
    }

    /// To flush to and fetch from.
    pub fn open(path: &Path) -> Result<Self, PrefixError> {
        match is_object_url(path) {
            true => Self::open_url(path),
            false => Prefix::open(path).map(Self::Directory),
        }
    }

    /// To list and fetch from.
    pub fn open_to_read(path: &Path) -> Result<Self, PrefixError> {
        match is_object_url(path) {
            true => Self::open_url(path),
            false => Prefix::open_to_read(path).map(Self::Directory),
        }
    }

    #[cfg(feature = "objects")]
    fn open_url(url: &Path) -> Result<Self, PrefixError> {
        ObjectPrefix::open(url).map(Self::Bucket)
    }

    #[cfg(not(feature = "objects"))]
    fn open_url(url: &Path) -> Result<Self, PrefixError> {
        Err(PrefixError::Url {
            url: url.display().to_string(),
            why: "this scrfs was built without object stores (the feature `objects`)".into(),
        })
    }

    /// Remembers what directory that is, on a thread which nobody waits for: it may hang.
    ///
    /// # Errors
    ///
    /// There is no thread.
    pub(crate) fn see(self: &Arc<Self>) -> io::Result<()> {
        let target = Arc::clone(self);
        let see = move || {
            if let Self::Directory(prefix) = &*target {
                prefix.see();
            }
        };
        std::thread::Builder::new()
            .name("see".into())
            .spawn(see)
            .map(drop)
    }

    /// That it is there and may be written to.
    pub fn check_usable(&self) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.check_usable())
    }

    /// Where a flush puts a dataset's files, for people.
    pub fn place_of(&self, record: &DatasetRecord) -> PathBuf {
        match self {
            Self::Directory(prefix) => prefix.paths().attempt(record.key(), record.epoch),
            #[cfg(feature = "objects")]
            Self::Bucket(prefix) => prefix.place_of(record),
            Self::Unusable { url, .. } => url.into(),
        }
    }

    /// Where a dataset's files are when it is complete, for people.
    pub fn home_of(&self, record: &DatasetRecord) -> PathBuf {
        match self {
            Self::Directory(prefix) => prefix.paths().dataset(&record.name),
            #[cfg(feature = "objects")]
            Self::Bucket(prefix) => prefix.place_of(record),
            Self::Unusable { url, .. } => url.into(),
        }
    }

    /// The same, for what `job` does there.
    #[must_use]
    pub fn of_job(self, job: &str) -> Self {
        match self {
            Self::Directory(prefix) => Self::Directory(prefix.of_job(job)),
            #[cfg(feature = "objects")]
            Self::Bucket(prefix) => Self::Bucket(prefix.of_job(job)),
            Self::Unusable { .. } => self,
        }
    }

    /// Where everything lies, in a directory.
    pub fn paths(&self) -> Option<&PrefixPaths> {
        match self {
            Self::Directory(prefix) => Some(prefix.paths()),
            #[cfg(feature = "objects")]
            Self::Bucket(_) => None,
            Self::Unusable { .. } => None,
        }
    }

    /// What is on a file system, where single units can be read and put right.
    pub(crate) fn directory(&self) -> Option<&Prefix> {
        match self {
            Self::Directory(prefix) => Some(prefix),
            #[cfg(feature = "objects")]
            Self::Bucket(_) => None,
            Self::Unusable { .. } => None,
        }
    }

    /// Where events are written.
    pub(crate) fn event_place(&self) -> Option<Place> {
        match self {
            Self::Directory(prefix) => Some(Place::below(prefix.paths())),
            #[cfg(feature = "objects")]
            Self::Bucket(prefix) => Some(Place::Pages(prefix.event_pages())),
            Self::Unusable { .. } => None,
        }
    }

    /// What happened: all lines of events, without their ends, oldest first.
    pub fn events(&self, each: &mut dyn FnMut(&[u8])) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.events(each))
    }

    /// All datasets of the index, ascending by number, without those whose name another has taken.
    pub fn list(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        either!(self, prefix => prefix.list())
    }

    /// The checkpoint to restart from when no cache has one.
    pub fn current<'a>(
        &self,
        entries: &'a [IndexEntry],
    ) -> Result<Option<&'a IndexEntry>, PrefixError> {
        either!(self, prefix => prefix.current(entries))
    }

    /// What was chosen last.
    pub fn choice(&self) -> Result<Option<Choice>, PrefixError> {
        either!(self, prefix => prefix.choice())
    }

    /// Makes a complete checkpoint the one to restart from.
    pub fn choose(
        &self,
        name: &Name,
        asked: Option<(String, Name)>,
    ) -> Result<DatasetKey, PrefixError> {
        either!(self, prefix => prefix.choose(name, asked))
    }

    /// Datasets from which no restart worked.
    pub fn failed(&self) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        either!(self, prefix => prefix.failed())
    }

    /// Notes that no restart works from a dataset.
    pub fn fail(&self, key: DatasetKey) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.fail(key))
    }

    /// Datasets that are not listed any more because somebody wanted it so.
    pub fn gone(&self) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        either!(self, prefix => prefix.gone())
    }

    /// What was dropped, ascending.
    pub fn dropped(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        either!(self, prefix => prefix.dropped())
    }

    /// Takes a dataset out of the index; its files stay.
    pub fn drop_entry(&self, name: &Name) -> Result<DatasetKey, PrefixError> {
        either!(self, prefix => prefix.drop_entry(name))
    }

    /// Removes a dataset, also one that was dropped.
    pub fn delete(&self, name: &Name, force: bool) -> Result<DatasetKey, PrefixError> {
        either!(self, prefix => prefix.delete(name, force))
    }

    /// Removes the oldest checkpoints beyond `keep`.
    pub fn retain(
        &self,
        keep: u64,
        spare: &BTreeSet<DatasetKey>,
    ) -> Result<Vec<DatasetKey>, PrefixError> {
        either!(self, prefix => prefix.retain(keep, spare))
    }

    /// Puts a dropped dataset back; takes in what others wrote into a directory.
    pub fn add(
        &self,
        name: &Name,
        class: Class,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Added, PrefixError> {
        match self {
            Self::Directory(prefix) => prefix.add(name, class, progress),
            #[cfg(feature = "objects")]
            Self::Bucket(prefix) => prefix.add(name),
            Self::Unusable { url, why } => unusable(url, why),
        }
    }

    /// Takes in a dataset of SCR's, which never wrote into an object store.
    pub fn add_scr(
        &self,
        name: &Name,
        class: Option<Class>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Option<(Name, Added)>, PrefixError> {
        match self {
            Self::Directory(prefix) => prefix.add_scr(name, class, progress),
            #[cfg(feature = "objects")]
            Self::Bucket(_) => Ok(None),
            Self::Unusable { url, why } => unusable(url, why),
        }
    }

    /// What SCR says of it.
    pub fn scr_index(&self) -> Result<Option<ScrIndex>, PrefixError> {
        match self {
            Self::Directory(prefix) => prefix.scr_index(),
            #[cfg(feature = "objects")]
            Self::Bucket(_) => Ok(None),
            Self::Unusable { url, why } => unusable(url, why),
        }
    }

    /// Finishes or removes what earlier epochs left; attempts of the datasets in `keep` stay.
    pub fn reconcile(&self, keep: &BTreeSet<DatasetKey>) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.reconcile(keep))
    }

    /// The job is over: removes what flushes of its epochs up to `last` have left that nobody will end. In
    /// an object store that waits for the next start of the job.
    pub fn end_job(&self, last: Epoch) -> Result<(), PrefixError> {
        match self {
            Self::Directory(prefix) => prefix.end_job(last),
            #[cfg(feature = "objects")]
            Self::Bucket(_) => Ok(()),
            Self::Unusable { url, why } => unusable(url, why),
        }
    }

    /// The pointer files that were written here.
    pub fn pointers(&self) -> Result<Pointers, PrefixError> {
        either!(self, prefix => prefix.pointers())
    }

    /// Writes those that are newer than what is here.
    pub fn write_pointers(&self, due: &Pointers) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.write_pointers(due))
    }

    /// Copies one slot's files, which wait for [`Self::complete_flush`].
    pub fn flush_part(
        &self,
        record: &DatasetRecord,
        part: &Part,
        limits: FlushLimits,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<FlushSummary, PrefixError> {
        either!(self, prefix => prefix.flush_part(record, part, limits, progress, cancel))
    }

    /// Makes a flushed dataset visible: all or nothing.
    pub fn complete_flush(&self, record: &DatasetRecord) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.complete_flush(record))
    }

    /// Whether what was flushed is there. That somebody had it deleted is not asked.
    pub fn presence(&self, record: &DatasetRecord) -> Result<Presence, PrefixError> {
        either!(self, prefix => prefix.presence(record))
    }

    /// That one slot's files are there, by type and size, to be read where they are.
    pub fn check_part(&self, record: &DatasetRecord, slot: Slot) -> Result<(), PrefixError> {
        match self {
            Target::Directory(prefix) => prefix.check_part(record, slot),
            #[cfg(feature = "objects")]
            Target::Bucket(_) => {
                unusable("the prefix", "nothing is read in place in an object store")
            }
            Target::Unusable { url, why } => unusable(url, why),
        }
    }

    /// Brings one slot's files back into the cache.
    pub fn fetch_part(
        &self,
        record: &DatasetRecord,
        slot: Slot,
        cache: &CachePaths,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<(), PrefixError> {
        either!(self, prefix => prefix.fetch_part(record, slot, cache, progress, cancel))
    }
}
