//! What people do to datasets, and what a crash left: as in a directory, by single objects.
//!
//! ```text
//! delete   gone/<key> is put               then: no entry, no objects, no manifests, no other marks
//! drop     dropped/<key> is put, index/<key> removed: with both it is not dropped
//! add      index/<key> is put, dropped/<key> removed
//! fail, choose                             one object
//! ```
//!
//! A dataset must be in one of the two lists. So nobody else removes `dropped/<key>`, which is all that a drop
//! that is under way has left; and who removes one looks for the other after, and puts it back if somebody who
//! wanted the contrary at the same moment has removed it: then the dataset is there.

use super::{CONTROL, ObjectPrefix, mark, marker};
use crate::part::report;
use crate::prefix::{Added, PrefixError, current_of, superfluous};
use scrfs::config::DEFAULT_JOB;
use scrfs::id::{DatasetKey, Epoch};
use scrfs::layout::index::{Choice, EntryState, IndexEntry};
use scrfs::layout::record::DatasetRecord;
use scrfs::name::Name;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// What other jobs have begun is theirs until nothing of it has changed for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

impl ObjectPrefix {
    pub(super) fn keys_in(&self, kind: &str) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        let listed = self.objects.list(&format!("{CONTROL}/{kind}"))?;
        let keys = listed
            .iter()
            .filter_map(|found| DatasetKey::parse(found.key.rsplit('/').next()?));
        Ok(keys.collect())
    }

    pub(crate) fn failed(&self) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        self.keys_in("failed")
    }

    pub(crate) fn gone(&self) -> Result<BTreeSet<DatasetKey>, PrefixError> {
        let mut gone = self.keys_in("gone")?;
        let index = self.keys_in("index")?;
        let dropped = self.keys_in("dropped")?;
        gone.extend(dropped.into_iter().filter(|key| !index.contains(key)));
        Ok(gone)
    }

    pub(crate) fn dropped(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        let index = self.keys_in("index")?;
        let mut dropped = self.entries_below("dropped")?;
        dropped.retain(|entry| !index.contains(&entry.key()));
        Ok(dropped)
    }

    pub(crate) fn choice(&self) -> Result<Option<Choice>, PrefixError> {
        let Some(bytes) = self.objects.get(&format!("{CONTROL}/current"))? else {
            return Ok(None);
        };
        match Choice::decode(&bytes) {
            Ok(choice) => Ok(Some(choice)),
            Err(error) => {
                tracing::error!(%error, "what was chosen is not known any more");
                Ok(None)
            }
        }
    }

    pub(crate) fn current<'a>(
        &self,
        entries: &'a [IndexEntry],
    ) -> Result<Option<&'a IndexEntry>, PrefixError> {
        Ok(current_of(entries, &self.failed()?, self.choice()?))
    }

    fn no_such(&self, name: &Name) -> PrefixError {
        PrefixError::NoSuch {
            name: name.clone(),
            prefix: self.objects.url().into(),
        }
    }

    fn in_use(&self, name: &Name, why: &'static str) -> PrefixError {
        PrefixError::InUse {
            name: name.clone(),
            prefix: self.objects.url().into(),
            why,
        }
    }

    fn find<'a>(
        &self,
        entries: &'a [IndexEntry],
        name: &Name,
    ) -> Result<&'a IndexEntry, PrefixError> {
        let mut found = entries.iter().rev();
        found
            .find(|entry| entry.record.name == *name)
            .ok_or_else(|| self.no_such(name))
    }

    pub(crate) fn choose(
        &self,
        name: &Name,
        asked: Option<(String, Name)>,
    ) -> Result<DatasetKey, PrefixError> {
        let entries = self.list()?;
        let entry = self.find(&entries, name)?;
        if !entry.record.class.is_checkpoint() {
            return Err(self.in_use(name, "is an output, and nothing to restart from"));
        }
        let key = entry.key();
        let choice = Choice {
            key,
            newest: entries.last().map_or(key, IndexEntry::key),
            asked: match asked {
                Some(asked) => Some(asked),
                None => self.choice()?.and_then(|last| last.asked),
            },
        };
        self.objects
            .put(&format!("{CONTROL}/current"), choice.encode())?;
        self.objects.remove(&mark("failed", key))?;
        Ok(key)
    }

    pub(crate) fn fail(&self, key: DatasetKey) -> Result<(), PrefixError> {
        self.objects.put(&mark("failed", key), Vec::new())
    }

    pub(crate) fn drop_entry(&self, name: &Name) -> Result<DatasetKey, PrefixError> {
        let entries = self.list()?;
        let entry = self.find(&entries, name)?;
        let key = entry.key();
        self.objects.put(&mark("dropped", key), entry.encode())?;
        self.objects.remove(&mark("index", key))?;
        self.keep_in_one(key, "dropped", entry)?;
        Ok(key)
    }

    /// After an entry was removed from the one list: it is in the other still, unless it was deleted.
    pub(super) fn keep_in_one(
        &self,
        key: DatasetKey,
        list: &str,
        entry: &IndexEntry,
    ) -> Result<(), PrefixError> {
        let is_there = self.objects.head(&mark(list, key))?.is_some();
        if is_there || self.objects.head(&mark("gone", key))?.is_some() {
            return Ok(());
        }
        self.objects.put(&mark(list, key), entry.encode())
    }

    /// Puts a dropped dataset back. What others put there is not taken in.
    pub(crate) fn add(&self, name: &Name) -> Result<Added, PrefixError> {
        if self.find(&self.list()?, name).is_ok() {
            return Ok(Added::Already);
        }
        let dropped = self.dropped()?;
        let entry = self.find(&dropped, name)?;
        self.check(&entry.record, entry.attempt)?;
        self.objects
            .put(&mark("index", entry.key()), entry.encode())?;
        self.objects.remove(&mark("dropped", entry.key()))?;
        self.keep_in_one(entry.key(), "index", entry)?;
        Ok(Added::PutBack)
    }

    pub(crate) fn delete(&self, name: &Name, force: bool) -> Result<DatasetKey, PrefixError> {
        let entries = self.list()?;
        let dropped = self.dropped()?;
        let entry = self
            .find(&entries, name)
            .or_else(|error| self.find(&dropped, name).map_err(|_| error))?;
        let key = entry.key();
        if self.current(&entries)?.map(IndexEntry::key) == Some(key) && !force {
            return Err(self.in_use(
                name,
                "is the checkpoint to restart from (--force deletes it)",
            ));
        }
        self.objects.put(&mark("gone", key), Vec::new())?;
        self.finish_deletion(entry)?;
        Ok(key)
    }

    fn finish_deletion(&self, entry: &IndexEntry) -> Result<(), PrefixError> {
        let key = entry.key();
        // While there is an entry, it is known what else there is.
        self.remove_attempt(&entry.record.name, key, entry.attempt)?;
        for kind in ["failed", "dropped", "index"] {
            self.objects.remove(&mark(kind, key))?;
        }
        Ok(())
    }

    pub(crate) fn retain(
        &self,
        keep: u64,
        spare: &BTreeSet<DatasetKey>,
    ) -> Result<Vec<DatasetKey>, PrefixError> {
        let entries = self.list()?;
        let failed = self.failed()?;
        let current = self.current(&entries)?.map(IndexEntry::key);
        let mut removed = Vec::new();
        for entry in superfluous(&entries, &failed, current, keep, spare) {
            self.objects.put(&mark("gone", entry.key()), Vec::new())?;
            self.finish_deletion(entry)?;
            removed.push(entry.key());
        }
        Ok(removed)
    }

    /// After a dataset has its entry: others of its name go, and what is left of attempts. What cannot be
    /// removed now is by [`Self::reconcile`].
    pub(super) fn tidy_after(&self, record: &DatasetRecord) {
        let tidied = self.remove_replaced().and_then(|()| {
            let Some(own) = self.entry(record.key())? else {
                return Ok(());
            };
            for attempt in self.attempts(own.key())? {
                if attempt != own.attempt {
                    self.remove_attempt(&record.name, own.key(), attempt)?;
                }
            }
            self.objects.remove(&marker(own.key(), own.attempt))
        });
        if let Err(error) = tidied {
            report("what nobody needs any more cannot be removed", &error);
        }
    }

    /// Removes what is complete, but not of the newest of its name.
    fn remove_replaced(&self) -> Result<(), PrefixError> {
        let gone = self.keys_in("gone")?;
        let listed: BTreeSet<DatasetKey> = self.list()?.iter().map(IndexEntry::key).collect();
        for old in self.entries_below("index")? {
            let key = old.key();
            if !listed.contains(&key) && !gone.contains(&key) {
                self.remove_attempt(&old.record.name, key, old.attempt)?;
                for kind in ["dropped", "index"] {
                    self.objects.remove(&mark(kind, key))?;
                }
            }
        }
        Ok(())
    }

    /// Attempts of a dataset that have a marker.
    fn attempts(&self, key: DatasetKey) -> Result<Vec<Epoch>, PrefixError> {
        let listed = self.objects.list(&mark("inflight", key))?;
        let number = |key: &str| key.rsplit('/').next()?.parse().ok();
        Ok(listed
            .iter()
            .filter_map(|found| number(&found.key))
            .map(Epoch)
            .collect())
    }

    /// Removes what earlier epochs left; attempts of the datasets in `keep` stay.
    pub(crate) fn reconcile(&self, keep: &BTreeSet<DatasetKey>) -> Result<(), PrefixError> {
        let gone = self.keys_in("gone")?;
        for kind in ["index", "dropped"] {
            for entry in self.entries_below(kind)? {
                if gone.contains(&entry.key()) {
                    self.finish_deletion(&entry)?;
                }
            }
        }
        self.remove_replaced()?;
        for found in self.objects.list(&format!("{CONTROL}/inflight"))? {
            let Some(bytes) = self.objects.get(&found.key)? else {
                continue;
            };
            let begun = match IndexEntry::decode(&bytes) {
                Ok(begun) if begun.state == EntryState::Flushing => begun,
                _ => {
                    tracing::error!(key = found.key, "not the record of a flush");
                    continue;
                }
            };
            let key = begun.key();
            let entry = self.entry(key)?;
            if entry.is_some_and(|entry| entry.attempt == begun.attempt) {
                self.objects.remove(&found.key)?;
                continue;
            }
            // Any number of jobs may be without an id of their own.
            let is_theirs = begun.job != self.job || self.job == DEFAULT_JOB;
            if keep.contains(&key) || is_theirs && !self.is_abandoned(&begun)? {
                continue;
            }
            self.remove_attempt(&begun.record.name, key, begun.attempt)?;
        }
        self.tidy_pointers()
    }

    /// What has not changed since then, nobody is at work on. By the store's clock.
    pub(super) fn abandoned_before(&self) -> Result<Option<SystemTime>, PrefixError> {
        let clock = format!("{CONTROL}/clock");
        self.objects.put(&clock, Vec::new())?;
        let now = self.objects.head(&clock)?.map(|found| found.modified);
        Ok(now.and_then(|now| now.checked_sub(ABANDONED_AFTER)))
    }

    /// Whether nothing of an attempt has changed for long.
    fn is_abandoned(&self, begun: &IndexEntry) -> Result<bool, PrefixError> {
        let Some(then) = self.abandoned_before()? else {
            return Ok(false);
        };
        let (key, attempt) = (begun.key(), begun.attempt);
        let mut all = self
            .objects
            .list(&super::data(&begun.record.name, key, attempt))?;
        all.extend(self.objects.head(&marker(key, attempt))?);
        Ok(all.iter().all(|found| found.modified < then))
    }
}
