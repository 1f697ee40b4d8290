//! Datasets that only the prefix has, found by who opens something in them.
//!
//! What was evicted, and what earlier jobs left in the prefix, is not listed at the top, and its name is free:
//! programs that begin anew write the same names again, and must not find old datasets in their way. But who
//! opens a file in one wants it. So the top of such a dataset is found *from inside a system call that
//! opens something in it, or asks for something below it* ([`super::alias::is_reaching`]), as an inode
//! of which nothing is here; and only who then looks into it waits while the dataset is fetched. The lookup
//! at the top never waits: the kernel holds the lock on the top directory meanwhile, and with it every
//! program that makes or renames a dataset.
//!
//! What it does not do: guess. Where the caller's system call cannot be found out, there is nothing.

use super::namespace::Names;
use super::view::{Remote, top_attr_of};
use super::{Caller, Entry, FsError, FsResult, Vfs};
use scrfs::control::{Request, Shelved};
use scrfs::id::DatasetId;
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::name::Name;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What the prefix has and this job never had.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    by_name: HashMap<Name, DatasetId>,
    all: HashMap<DatasetId, Shelved>,
}

impl Shelf {
    fn of(shelved: Vec<Shelved>) -> Self {
        let mut shelf = Self::default();
        for it in shelved {
            let newest = shelf.by_name.entry(it.name.clone()).or_insert(it.id);
            *newest = it.id.max(*newest);
            shelf.all.insert(it.id, it);
        }
        shelf
    }
}

pub(super) fn is_evicted(record: &DatasetRecord) -> bool {
    record.phase == Phase::Evicted && record.flushed.is_some()
}

impl Names {
    /// What only the prefix has under that name; the newest of several.
    fn find_in_prefix(&self, name: &Name) -> Option<Shelved> {
        let is_it = |record: &&DatasetRecord| is_evicted(record) && record.name == *name;
        let records = self.iter().map(|dataset| &dataset.record);
        let evicted = records.filter(is_it).last().map(Shelved::of);
        let strange = self.shelf.by_name.get(name).copied();
        let strange = strange.filter(|id| self.get(*id).is_none());
        let strange = strange.and_then(|id| self.shelf.all.get(&id).cloned());
        evicted.into_iter().chain(strange).max_by_key(|it| it.id)
    }

    /// A dataset that only the prefix has.
    pub(super) fn in_prefix(&self, dataset: DatasetId) -> Option<Shelved> {
        match self.get(dataset).map(|found| &found.record) {
            Some(record) => is_evicted(record).then(|| Shelved::of(record)),
            None => self.shelf.all.get(&dataset).cloned(),
        }
    }
}

impl Vfs {
    /// What only the prefix has, instead of what was said before.
    pub fn set_shelf(&self, shelved: Vec<Shelved>) {
        self.write_names().shelf = Shelf::of(shelved);
    }

    /// The top of a dataset that only the prefix has, for a caller that opens something in it.
    pub(super) fn shelved_entry(&self, caller: Caller, name: &Name) -> FsResult<Entry> {
        let found = self.read_names().find_in_prefix(name);
        let found = found.ok_or(FsError::Missing)?;
        if (self.settings().is_reaching)(caller.pid, name) != Some(true) {
            return Err(FsError::Missing);
        }
        Ok(Entry {
            attr: top_attr_of(&found)?,
            generation: self.returns(found.id),
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
        })
    }

    /// Goes on when the dataset of a remote inode is in the caches, which may need a fetch.
    pub(super) fn with_fetched(
        self: &Arc<Self>,
        remote: Remote,
        then: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let found = self.read_names().in_prefix(remote.dataset);
        let Some(Shelved { id, name, .. }) = found else {
            return then(Ok(()));
        };
        tracing::info!(dataset = %id, %name, "opened, and only the prefix has it: it is fetched");
        let vfs = Arc::clone(self);
        self.ask(Request::Fetch { name: name.clone() }, move |result| {
            // Another of its name may have been newer, or it is gone already.
            let is_here = result.and_then(|()| match vfs.read_names().in_prefix(id) {
                Some(_) => Err(FsError::Missing),
                None => Ok(()),
            });
            if let Err(error) = &is_here {
                tracing::error!(dataset = %id, %name, %error, "not fetched from the prefix");
            }
            then(is_here);
        });
    }
}
