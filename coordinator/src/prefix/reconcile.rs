//! What a crash left in the prefix: finished where all of it is there, removed where not. What other jobs
//! are at work on is left alone; what they have abandoned is not.
//!
//! Run by rank 0 at the start of an epoch, before anything is flushed in it. An entry `Flushing` was
//! written after every file had been checked: the dataset is all there, and is given its name now.
//! What has no entry is an attempt that did not end; jobs without an id of their own leave each other's alone. A dataset whose name is taken by something that is
//! not ours waits, with its entry, until that is moved away.

use super::error::{Cause, PrefixError};
use super::{Prefix, inode};
use crate::part::{Tree, report};
use scrfs::config::DEFAULT_JOB;
use scrfs::id::{DatasetKey, Epoch};
use scrfs::layout::index::{EntryState, IndexEntry};
use scrfs::layout::path::parse_deleted;
use scrfs::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What other jobs have begun is theirs until it has not changed for so long. Should one that lives be
/// slower, it begins its flush again.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

impl Prefix {
    /// Finishes or removes what earlier epochs left. Attempts of the datasets in `keep` stay; their
    /// next flush removes them. Blocks; not to be called from async code.
    ///
    /// # Errors
    ///
    /// Only when the index cannot be listed; what is wrong with single datasets is reported.
    pub fn reconcile(&self, keep: &BTreeSet<DatasetKey>) -> Result<(), PrefixError> {
        if fs::symlink_metadata(self.paths.control()).is_err() {
            return Ok(());
        }
        let entries = self.all_entries()?;
        let abandoned = self.abandoned_before();
        let mut waiting = BTreeSet::new();
        let mut complete = BTreeSet::new();
        for entry in &entries {
            let key = entry.key();
            match (entry.state, entry.replaces) {
                (EntryState::Complete, replaced) => {
                    complete.insert(key);
                    if let Some(replaced) = replaced {
                        self.remove_replaced(entry, replaced);
                    }
                }
                (EntryState::Flushing, _)
                    if entry.job != self.job && !is_older(&self.paths.entry(key), abandoned) =>
                {
                    waiting.insert(key);
                }
                (EntryState::Flushing, _) => match self.finish(entry) {
                    Ok(()) => {
                        complete.insert(key);
                        tracing::info!(dataset = %key.id, name = %entry.record.name,
                            "finished a flush that was interrupted");
                    }
                    Err(error) => {
                        report("a flush that was interrupted cannot be finished", &error);
                        if error.cause() == Cause::Damaged {
                            self.give_up(entry);
                        } else {
                            waiting.insert(key);
                        }
                    }
                },
            }
        }
        for name in self.store.list(&self.paths.inflights())? {
            let key = name.to_str().and_then(DatasetKey::parse);
            let Some(key) = key else {
                self.tidy(&self.paths.inflights().join(&name));
                continue;
            };
            if !waiting.contains(&key) && (complete.contains(&key) || !keep.contains(&key)) {
                self.clear_attempts(key, abandoned, keep.contains(&key));
            }
        }
        // What a waiting dataset has set aside is needed should it be given up.
        let needed: BTreeSet<_> = entries
            .iter()
            .filter(|entry| waiting.contains(&entry.key()))
            .filter_map(|entry| Some(self.aside(entry.replaces?)))
            .collect();
        for name in self.store.list(&self.paths.trash())? {
            let path = self.paths.trash().join(&name);
            if let Some(key) = name.to_str().and_then(parse_deleted) {
                self.finish_deletion(key, &path);
                continue;
            }
            if !needed.contains(&path) {
                self.tidy(&path);
            }
        }
        for entry in self.dropped()? {
            // Put back, but for this.
            if self.entry(entry.key())?.is_some() {
                self.tidy(&self.paths.dropped_entry(entry.key()));
            }
        }
        self.tidy_pointers(abandoned)?;
        self.remove_orphans(keep, abandoned)?;
        self.prune_gone()
    }

    /// The job is over, and nothing is left to be flushed: removes attempts that nobody will end. Those
    /// are of datasets that were left out, lost or forgotten after their flush was cut off. What other
    /// jobs have begun stays, and so does what later epochs than `last` have: they are of whoever has
    /// the job now.
    ///
    /// # Errors
    ///
    /// Only when attempts cannot be listed; what is wrong with single ones is reported.
    pub fn end_job(&self, last: Epoch) -> Result<(), PrefixError> {
        for name in self.store.list(&self.paths.inflights())? {
            let Some(key) = name.to_str().and_then(DatasetKey::parse) else {
                continue;
            };
            let is_publishing = match self.entry(key) {
                Ok(entry) => entry.is_some_and(|entry| entry.state == EntryState::Flushing),
                Err(error) => {
                    report("what a flush has left stays", &error);
                    continue;
                }
            };
            let path = self.paths.inflight(key);
            let is_of_later = |name: &std::ffi::OsString| {
                let number = name.to_str().and_then(|name| name.split('.').next());
                let epoch = number.and_then(|number| number.parse().ok().map(Epoch));
                epoch.is_some_and(|epoch| epoch > last)
            };
            let goes_on = self.store.list(&path)?.iter().any(is_of_later);
            if !is_publishing && !goes_on {
                self.clear_attempts(key, None, false);
            }
        }
        Ok(())
    }

    /// Removes attempts, and with them the manifests, of a dataset that the index did not have when it was
    /// read. Another job may have completed it since: what says whose an attempt is goes after its entry
    /// has come, so that the entry is looked for once that is gone.
    pub(super) fn clear_attempts(
        &self,
        key: DatasetKey,
        abandoned: Option<SystemTime>,
        is_kept: bool,
    ) {
        let path = self.paths.inflight(key);
        match self.is_of_another_job(key) {
            Ok(false) => {}
            Ok(true) if is_older(&path, abandoned) => {}
            Ok(true) => return,
            Err(error) => {
                report(
                    "whose an attempt in the prefix is, is not known: it stays",
                    &error,
                );
                return;
            }
        }
        let owners = [self.paths.entry(key), self.paths.dropped_entry(key)];
        let is_owned = owners.iter().any(|path| !is_missing(path));
        self.tidy(&path);
        if !is_owned && !is_kept {
            self.tidy(&self.paths.manifests(key));
        }
    }

    /// Manifests that belong to nothing, and records that never came to their place.
    fn remove_orphans(
        &self,
        keep: &BTreeSet<DatasetKey>,
        abandoned: Option<SystemTime>,
    ) -> Result<(), PrefixError> {
        let paths = &self.paths;
        for name in self.store.list(&paths.all_manifests())? {
            let path = paths.all_manifests().join(&name);
            let key = name.to_str().and_then(DatasetKey::parse);
            let belongs = key.is_some_and(|key| {
                let owners = [
                    paths.entry(key),
                    paths.dropped_entry(key),
                    paths.inflight(key),
                ];
                keep.contains(&key) || owners.iter().any(|path| !is_missing(path))
            });
            if !belongs && is_older(&path, abandoned) {
                self.tidy(&path);
            }
        }
        let mut all = vec![paths.index(), paths.dropped(), paths.gone(), paths.failed()];
        let turns = self.names_with_turns()?;
        all.extend(turns.iter().map(|name| paths.turns(name)));
        for directory in all {
            for name in self.store.list(&directory)? {
                let path = directory.join(&name);
                if name.as_encoded_bytes().starts_with(b".") && is_older(&path, abandoned) {
                    self.tidy(&path);
                }
            }
        }
        Ok(())
    }

    /// Whether somebody else may be at work on it.
    fn is_of_another_job(&self, key: DatasetKey) -> Result<bool, PrefixError> {
        let job = self.store.get(&self.paths.inflight_job(key))?;
        let is_nameless = self.job == DEFAULT_JOB;
        Ok(job.is_some_and(|job| is_nameless || job != self.job.as_bytes()))
    }

    /// What has not changed since then, nobody is at work on. By the file server's clock, which stamps
    /// what we compare it with; `None` when it does not tell.
    fn abandoned_before(&self) -> Option<SystemTime> {
        let clock = self.paths.clock();
        let told = self.store.put(&clock, b"").is_ok();
        let now = fs::metadata(&clock).and_then(|found| found.modified());
        now.ok().filter(|_| told)?.checked_sub(ABANDONED_AFTER)
    }

    /// Ends what a crash interrupted, if it is what was to be deleted that lies there.
    fn finish_deletion(&self, key: DatasetKey, aside: &Path) {
        let entry = self.entry(key).and_then(|entry| match entry {
            None => self.read_entry(&self.paths.dropped_entry(key), key),
            entry => Ok(entry),
        });
        let ended = entry.and_then(|entry| {
            let strange = entry.filter(|entry| {
                inode(aside) != Some(entry.inode)
                    && !Tree::open(aside)
                        .is_ok_and(|tree| self.check_tree(&entry.record, &Arc::new(tree)).is_ok())
            });
            match strange {
                Some(entry) => Err(PrefixError::NotOurs {
                    path: aside.to_owned(),
                    name: entry.record.name,
                }),
                None => self.finish_removal(key, &|_| Ok(())),
            }
        });
        if let Err(error) = ended {
            report("a deletion that was interrupted cannot be finished", &error);
        }
    }

    /// Gives a dataset its name that had all but that.
    pub(super) fn finish(&self, entry: &IndexEntry) -> Result<(), PrefixError> {
        let attempt = self.paths.attempt(entry.key(), entry.attempt);
        let path = if self.has_its_name(entry) {
            self.paths.dataset(&entry.record.name)
        } else if inode(&attempt) == Some(entry.inode) {
            attempt
        } else {
            return Err(PrefixError::NotThere {
                dataset: entry.record.id,
                path: attempt,
            });
        };
        let checked = self.check_tree(&entry.record, &Arc::new(Tree::open(&path)?))?;
        self.publish(entry.clone(), checked.root_mtime, &|_| Ok(()))
    }

    /// Forgets an entry whose dataset is not all there; what it was about to replace stays, or comes
    /// back.
    fn give_up(&self, entry: &IndexEntry) {
        if self.has_its_name(entry) {
            // Another has finished it meanwhile.
            return;
        }
        let name = self.paths.dataset(&entry.record.name);
        if let Some(replaced) = entry.replaces {
            let aside = self.aside(replaced);
            if fs::symlink_metadata(&name).is_err()
                && inode(&aside).is_some()
                && let Err(error) = self.store.rename(&aside, &name)
            {
                report(
                    "the dataset that was to be replaced cannot be put back",
                    &error,
                );
            }
        }
        self.tidy(&self.paths.entry(entry.key()));
    }
}

/// Whether there is certainly nothing.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether neither a file or directory nor anything directly in it has changed since `then`.
pub(super) fn is_older(path: &Path, then: Option<SystemTime>) -> bool {
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    let all = below.map(|entry| entry.path()).chain([path.to_owned()]);
    let times = all.map(|path| fs::symlink_metadata(&path).and_then(|found| found.modified()));
    then.is_some_and(|then| {
        times
            .into_iter()
            .all(|time| time.is_ok_and(|time| time < then))
    })
}
