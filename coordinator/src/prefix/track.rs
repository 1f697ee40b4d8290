//! What people do to datasets of the prefix: choose one, mark it failed, delete, drop, put back.
//!
//! Nothing here takes a lock: jobs and commands on any machine may do all of it at once (ADR 12). Each
//! operation is decided by one rename or one link, and what follows it can be done again by anybody:
//!
//! ```text
//! delete   <name> -> trash/<key>.deleted      then: gone/<key>, no entry, no manifests, no files
//! drop     index/<key> -> dropped/<key>
//! add      index/<key> is written             then: no dropped/<key>; see also `adopt`
//! fail     failed/<key> is made
//! choose   current is replaced; it holds until a newer checkpoint is complete
//! ```
//!
//! A dataset is deleted when its files are in the trash under that name. A crash before leaves it as it
//! was, a crash after is finished by [`Prefix::reconcile`].

use super::error::PrefixError;
use super::publish::make_movable;
use super::{Prefix, StepHook, inode};
use crate::part::Tree;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use scrfs::id::DatasetKey;
use scrfs::layout::index::{Choice, EntryState, IndexEntry};
use scrfs::name::Name;
use scrfs::store::posix::sync_directory;
use scrfs::store::{Store, StoreError};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Marks of deleted datasets that are kept: more than any cache remembers, and the highest number.
const GONE_MAX: usize = 4096;

impl Prefix {
    /// The keys that name the files of a directory.
    fn keys_in(&self, directory: &Path) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        let names = self.store.list(directory)?;
        let keys = names
            .iter()
            .filter_map(|name| DatasetKey::parse(name.to_str()?));
        Ok(keys.collect())
    }

    /// Datasets from which no restart worked; some may only be in caches.
    pub fn failed(&self) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        self.keys_in(&self.paths.failed())
    }

    /// Datasets that are not listed any more because somebody wanted it so.
    pub fn gone(&self) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        let mut gone = self.keys_in(&self.paths.gone())?;
        gone.append(&mut self.keys_in(&self.paths.dropped())?);
        for key in self.keys_in(&self.paths.index())? {
            gone.remove(&key);
        }
        Ok(gone)
    }

    /// What was dropped, ascending.
    pub fn dropped(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        let mut entries = Vec::new();
        for key in self.keys_in(&self.paths.dropped())? {
            entries.extend(self.read_entry(&self.paths.dropped_entry(key), key)?);
        }
        Ok(entries)
    }

    /// The highest number that anything here has, or had.
    pub(super) fn highest_number(&self) -> Result<u64, PrefixError> {
        let all = [
            self.keys_in(&self.paths.index())?,
            self.failed()?,
            self.gone()?,
        ];
        let last = all.iter().filter_map(|keys| keys.last()).max();
        Ok(last.map_or(0, |key| key.id.0))
    }

    /// The checkpoint to restart from when no cache has one: what somebody chose, until a newer one is
    /// complete; else the newest. What was adopted comes last: its number says when it was added, not
    /// how far it is. `entries` is what [`Self::list`] gave.
    pub fn current<'a>(
        &self,
        entries: &'a [IndexEntry],
    ) -> Result<Option<&'a IndexEntry>, PrefixError> {
        Ok(current_of(entries, &self.failed()?, self.choice()?))
    }

    /// What was chosen last, whether or not it still holds; `None` when it cannot be believed.
    pub fn choice(&self) -> Result<Option<Choice>, PrefixError> {
        let path = self.paths.choice();
        let Some(bytes) = self.store.get(&path)? else {
            return Ok(None);
        };
        match Choice::decode(&bytes) {
            Ok(choice) => Ok(Some(choice)),
            Err(error) => {
                tracing::error!(?path, %error, "what was chosen is not known any more");
                Ok(None)
            }
        }
    }

    /// Makes a complete checkpoint the one to restart from; it is not failed any more. `asked`: the job
    /// whose configuration wants it, and by which name.
    ///
    /// # Errors
    ///
    /// There is none of that name, or it is an output, or not complete.
    pub fn choose(
        &self,
        name: &Name,
        asked: Option<(String, Name)>,
    ) -> Result<DatasetKey, PrefixError> {
        let entries = self.list()?;
        let entry = self.find(&entries, name)?;
        if !entry.is_complete() {
            return Err(self.in_use(name, "is being flushed"));
        }
        if !entry.record.class.is_checkpoint() {
            return Err(self.in_use(name, "is an output, and nothing to restart from"));
        }
        let key = entry.key();
        let choice = Choice {
            key,
            newest: entries
                .iter()
                .rfind(|entry| !entry.adopted)
                .map_or(key, IndexEntry::key),
            asked: match asked {
                Some(asked) => Some(asked),
                None => self.choice()?.and_then(|last| last.asked),
            },
        };
        self.store.put(&self.paths.choice(), &choice.encode())?;
        self.store.remove(&self.paths.failed_mark(key))?;
        Ok(key)
    }

    /// Notes that no restart works from a dataset: it is not offered again, in no cache either, until
    /// somebody chooses it.
    pub fn fail(&self, key: DatasetKey) -> Result<(), PrefixError> {
        Ok(self.store.put(&self.paths.failed_mark(key), b"")?)
    }

    /// Takes a dataset out of the index; its files stay. [`Self::add`] puts it back.
    ///
    /// # Errors
    ///
    /// There is none of that name, or it is being flushed.
    pub fn drop_entry(&self, name: &Name) -> Result<DatasetKey, PrefixError> {
        self.drop_entry_with(name, &|_| Ok(()))
    }

    pub(super) fn drop_entry_with(
        &self,
        name: &Name,
        step: StepHook<'_>,
    ) -> Result<DatasetKey, PrefixError> {
        let entries = self.list()?;
        let entry = self.find(&entries, name)?;
        let key = self.at_rest(&entries, entry)?;
        let (from, to) = (self.paths.entry(key), self.paths.dropped_entry(key));
        step("drop the entry").map_err(PrefixError::io_at("drop", &from))?;
        self.moved(&from, &to)?;
        Ok(key)
    }

    /// Puts a dropped dataset back, if its files are all there.
    pub(super) fn put_back(&self, name: &Name, step: StepHook<'_>) -> Result<bool, PrefixError> {
        let dropped = self.dropped()?;
        let Some(entry) = dropped.iter().rfind(|entry| entry.record.name == *name) else {
            return Ok(false);
        };
        let key = entry.key();
        let path = self.paths.dataset(name);
        let inode = self
            .own_directory(entry)?
            .ok_or_else(|| PrefixError::NotThere {
                dataset: key.id,
                path: path.clone(),
            })?;
        self.check_tree(&entry.record, &Arc::new(Tree::open(&path)?))?;
        let entry = IndexEntry {
            inode,
            state: EntryState::Complete,
            replaces: None,
            ..entry.clone()
        };
        let step = |name| step(name).map_err(PrefixError::io_at(name, &path));
        step("write the entry")?;
        self.store.put(&self.paths.entry(key), &entry.encode())?;
        step("remove the dropped entry")?;
        self.store.remove(&self.paths.dropped_entry(key))?;
        Ok(true)
    }

    /// Removes a dataset, also one that was dropped: files, manifests and entry. `force`: also the
    /// one to restart from.
    ///
    /// # Errors
    ///
    /// There is none of that name; it is being flushed; it is the one to restart from; something that is
    /// not ours has its name. Then nothing was removed.
    pub fn delete(&self, name: &Name, force: bool) -> Result<DatasetKey, PrefixError> {
        self.delete_with(name, force, &|_| Ok(()))
    }

    pub(super) fn delete_with(
        &self,
        name: &Name,
        force: bool,
        step: StepHook<'_>,
    ) -> Result<DatasetKey, PrefixError> {
        let entries = self.list()?;
        let dropped = self.dropped()?;
        let entry = match self.find(&entries, name) {
            Ok(entry) => entry,
            Err(error) => dropped
                .iter()
                .rfind(|entry| entry.record.name == *name)
                .ok_or(error)?,
        };
        let key = self.at_rest(&entries, entry)?;
        let current = self.current(&entries)?.map(IndexEntry::key);
        if current == Some(key) && !force {
            return Err(self.in_use(
                name,
                "is the checkpoint to restart from (--force deletes it)",
            ));
        }
        self.remove(entry, step)?;
        Ok(key)
    }

    /// Removes the oldest checkpoints beyond `keep`: never an output, what was adopted, the one to
    /// restart from, nor what is in `spare`. Failed ones do not count.
    pub fn retain(
        &self,
        keep: u64,
        spare: &BTreeSet<DatasetKey>,
    ) -> Result<Vec<DatasetKey>, PrefixError> {
        self.retain_with(keep, spare, &|_| Ok(()))
    }

    pub(super) fn retain_with(
        &self,
        keep: u64,
        spare: &BTreeSet<DatasetKey>,
        step: StepHook<'_>,
    ) -> Result<Vec<DatasetKey>, PrefixError> {
        let entries = self.list()?;
        let failed = self.failed()?;
        let current = self.current(&entries)?.map(IndexEntry::key);
        let mut removed = Vec::new();
        for entry in superfluous(&entries, &failed, current, keep, spare) {
            self.remove(entry, step)?;
            removed.push(entry.key());
        }
        Ok(removed)
    }

    fn remove(&self, entry: &IndexEntry, step: StepHook<'_>) -> Result<(), PrefixError> {
        let key = entry.key();
        if let Some(inode) = self.own_directory(entry)? {
            let path = self.paths.dataset(&entry.record.name);
            step("set the files aside").map_err(PrefixError::io_at("set aside", &path))?;
            self.set_aside(&path, inode, key)?;
        }
        self.finish_removal(key, step)
    }

    /// What follows when the files of a dataset are in the trash, or are nowhere.
    pub(super) fn finish_removal(
        &self,
        key: DatasetKey,
        step: StepHook<'_>,
    ) -> Result<(), PrefixError> {
        let entry = self.paths.entry(key);
        let step = |name| step(name).map_err(PrefixError::io_at(name, &entry));
        step("mark it gone")?;
        self.store.put(&self.paths.gone_mark(key), b"")?;
        step("remove the entry")?;
        self.store.remove(&entry)?;
        self.store.remove(&self.paths.dropped_entry(key))?;
        step("remove what is left")?;
        self.tidy(&self.paths.failed_mark(key));
        self.tidy(&self.paths.manifests(key));
        self.tidy(&self.paths.deleted(key));
        Ok(())
    }

    /// Forgets the oldest marks of deleted datasets when there are very many.
    pub(super) fn prune_gone(&self) -> Result<(), PrefixError> {
        let gone = self.keys_in(&self.paths.gone())?;
        let excess = gone.len().saturating_sub(GONE_MAX);
        for key in gone.into_iter().take(excess) {
            self.tidy(&self.paths.gone_mark(key));
        }
        Ok(())
    }

    fn set_aside(&self, path: &Path, own: u64, key: DatasetKey) -> Result<(), PrefixError> {
        let aside = self.paths.deleted(key);
        // Of an attempt that crashed, and put back by hand since.
        self.tidy(&aside);
        make_movable(path)?;
        self.moved(path, &aside)?;
        if inode(&aside) == Some(own) {
            return Ok(());
        }
        // Between our look and the rename another took the name: it gets it back.
        let free = RenameFlags::RENAME_NOREPLACE;
        renameat2(AT_FDCWD, &aside, AT_FDCWD, path, free)
            .map_err(io::Error::from)
            .map_err(PrefixError::io_at("put back", &aside))?;
        sync_directory(self.paths.root())?;
        Err(PrefixError::Changed {
            path: path.to_owned(),
        })
    }

    /// Renames durably. A rename that an NFS server carried out and answered twice says that there is
    /// nothing to rename: what counts is where it is now.
    pub(super) fn moved(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let Err(error) = self.store.rename(from, to) else {
            return Ok(());
        };
        let is_there = fs::symlink_metadata(to).is_ok();
        let is_gone =
            fs::symlink_metadata(from).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if error.source.kind() == io::ErrorKind::NotFound && is_there && is_gone {
            sync_directory(to.parent().unwrap_or(Path::new("/")))?;
            return sync_directory(from.parent().unwrap_or(Path::new("/")));
        }
        Err(error)
    }

    /// Inode number of the directory under an entry's name, if it is the entry's; `None` when nothing
    /// is there.
    pub(super) fn own_directory(&self, entry: &IndexEntry) -> Result<Option<u64>, PrefixError> {
        let path = self.paths.dataset(&entry.record.name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(PrefixError::io_at("stat", &path))?,
        };
        let found = inode(&path).filter(|&found| found == entry.inode || self.is_all_of(entry));
        found.map(Some).ok_or_else(|| PrefixError::NotOurs {
            path,
            name: entry.record.name.clone(),
        })
    }

    /// Whether what has the entry's name has all of its files: so it is in a prefix that was copied.
    pub(super) fn is_all_of(&self, entry: &IndexEntry) -> bool {
        let path = self.paths.dataset(&entry.record.name);
        entry.is_complete()
            && Tree::open(&path)
                .is_ok_and(|tree| self.check_tree(&entry.record, &Arc::new(tree)).is_ok())
    }

    /// The newest of a name.
    pub fn find<'a>(
        &self,
        entries: &'a [IndexEntry],
        name: &Name,
    ) -> Result<&'a IndexEntry, PrefixError> {
        let found = entries.iter().rfind(|entry| entry.record.name == *name);
        found.ok_or_else(|| PrefixError::NoSuch {
            name: name.clone(),
            prefix: self.paths.root().to_owned(),
        })
    }

    /// The key of a dataset whose name nothing is being flushed to.
    fn at_rest(
        &self,
        entries: &[IndexEntry],
        entry: &IndexEntry,
    ) -> Result<DatasetKey, PrefixError> {
        let name = &entry.record.name;
        let is_coming = |other: &IndexEntry| other.record.name == *name && !other.is_complete();
        if entries.iter().any(is_coming) {
            return Err(self.in_use(name, "is being flushed"));
        }
        Ok(entry.key())
    }

    pub(super) fn in_use(&self, name: &Name, why: &'static str) -> PrefixError {
        PrefixError::InUse {
            name: name.clone(),
            prefix: self.paths.root().to_owned(),
            why,
        }
    }
}

/// Which checkpoint of a prefix a restart reads, of what is listed, marked failed and chosen.
pub(crate) fn current_of<'a>(
    entries: &'a [IndexEntry],
    failed: &BTreeSet<DatasetKey>,
    choice: Option<Choice>,
) -> Option<&'a IndexEntry> {
    let fits = |entry: &&IndexEntry| {
        entry.is_complete() && entry.record.class.is_checkpoint() && !failed.contains(&entry.key())
    };
    let own = |entry: &&IndexEntry| fits(entry) && !entry.adopted;
    let newest = entries.iter().rfind(own);
    let newest = newest.or_else(|| entries.iter().rfind(fits));
    let Some(choice) = choice else {
        return newest;
    };
    let is_newer = |newest: &&IndexEntry| !newest.adopted && newest.key() > choice.newest;
    let moved_on = newest.filter(is_newer).is_some();
    let chosen = entries
        .iter()
        .find(|entry| entry.key() == choice.key && fits(entry));
    chosen.filter(|_| !moved_on).or(newest)
}

/// What retention removes, newest first.
pub(crate) fn superfluous<'a>(
    entries: &'a [IndexEntry],
    failed: &BTreeSet<DatasetKey>,
    current: Option<DatasetKey>,
    keep: u64,
    spare: &BTreeSet<DatasetKey>,
) -> Vec<&'a IndexEntry> {
    let mut good = 0;
    let complete = entries.iter().rev().filter(|entry| entry.is_complete());
    let superfluous = complete.filter(|entry| {
        let key = entry.key();
        let counts = entry.record.class.is_checkpoint() && !failed.contains(&key);
        let is_kept = keep == 0 || good < keep;
        good += u64::from(counts && !entry.adopted);
        let stays = is_kept
            || entry.adopted
            || entry.record.class.is_output()
            || current == Some(key)
            || spare.contains(&key);
        !stays
    });
    superfluous.collect()
}
