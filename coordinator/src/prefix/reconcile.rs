//! What a crash left in the prefix: finished where all of it is there, removed where not.
//!
//! Run by rank 0 at the start of an epoch, before anything is flushed in it. An entry `Flushing` was
//! written after every file had been checked: the dataset is all there, and is given its name now.
//! What has no entry is an attempt that did not end. A dataset whose name is taken by something that is
//! not ours waits, with its entry, until that is moved away.

use super::error::{Cause, PrefixError};
use super::{Prefix, inode};
use crate::part::{Tree, report};
use scrfs::id::DatasetKey;
use scrfs::layout::index::{EntryState, IndexEntry};
use scrfs::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

impl Prefix {
    /// Finishes or removes what earlier epochs left. Attempts of the datasets in `keep` stay; their
    /// next flush removes them. Blocks; not to be called from async code.
    ///
    /// # Errors
    ///
    /// Only when the index cannot be listed; what is wrong with single datasets is reported.
    pub fn reconcile(&self, keep: &BTreeSet<DatasetKey>) -> Result<(), PrefixError> {
        let entries = self.all_entries()?;
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
            let stays = key.is_some_and(|key| {
                waiting.contains(&key) || keep.contains(&key) && !complete.contains(&key)
            });
            if stays {
                continue;
            }
            self.tidy(&self.paths.inflights().join(&name));
            if let Some(key) = key.filter(|key| !complete.contains(key) && !keep.contains(key)) {
                self.tidy(&self.paths.manifests(key));
            }
        }
        // What a waiting dataset has set aside is needed should it be given up.
        let needed: BTreeSet<_> = entries
            .iter()
            .filter(|entry| waiting.contains(&entry.key()))
            .filter_map(|entry| Some(self.aside(entry.replaces?)))
            .collect();
        for name in self.store.list(&self.paths.trash())? {
            let path = self.paths.trash().join(name);
            if !needed.contains(&path) {
                self.tidy(&path);
            }
        }
        Ok(())
    }

    fn finish(&self, entry: &IndexEntry) -> Result<(), PrefixError> {
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
