//! In which store of this node a dataset shall lie: decided when it is made here, and when it is brought back.
//!
//! - A new one goes where the rule says that its checkpoint will get: `[[checkpoint]] store`, or that of the
//!   rule for output. Its number is given at the commit; the one that is expected next decides. When
//!   several are open at once the guess may be wrong: then it has the scheme of its number in another store.
//! - Without a rule, or when one is brought back: the first store with room for it, a new one being taken to be as
//!   large as the last one was; where none has, the one with most.
//!
//! What room there is the daemon knows, and is asked. If it does not answer, home will do.

use crate::link::Link;
use crate::part::remove_tree;
use scrfs::config::Config;
use scrfs::control::Room;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::path::{Keep, parse_slot_directory};
use scrfs::layout::record::{DatasetRecord, EpochRecord, Phase};
use scrfs::protocol::step::Write;
use scrfs::store::posix::PosixStore;
use scrfs::store::{Store, StoreError};
use scrfs::stores::Stores;
use std::path::PathBuf;
use std::sync::Arc;

/// What is needed to decide.
#[derive(Debug)]
pub(crate) struct Placing {
    socket: PathBuf,
    config: Arc<Config>,
    stores: Stores,
    /// The highest checkpoint number known here.
    last_checkpoint: u64,
}

/// The first that has room for `bytes`, else the one with most.
fn fit(available: &[u64], bytes: u64) -> usize {
    let first = available.iter().position(|room| *room >= bytes.max(1));
    let most = || {
        let all = available.iter().enumerate();
        // The first of equals.
        all.rev()
            .max_by_key(|(_, room)| **room)
            .map(|(index, _)| index)
    };
    first.or_else(most).unwrap_or(0)
}

impl Placing {
    /// For the stores of the node whose daemon answers at `socket`.
    pub(crate) fn new(
        socket: PathBuf,
        config: Arc<Config>,
        stores: Stores,
        begun: &EpochRecord,
    ) -> Self {
        Self {
            socket,
            config,
            stores,
            last_checkpoint: begun.last_checkpoint,
        }
    }

    fn room(&self) -> Option<Room> {
        match Link::ask_room(&self.socket) {
            Ok(room) if room.available.len() == self.stores.count() => Some(room),
            Ok(room) => {
                tracing::error!(?room, stores = self.stores.count(), "it does not match");
                None
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the daemon does not tell its room"
                );
                None
            }
        }
    }

    /// Before a record is put down: a dataset that is new here gets its place, and numbers are noted.
    pub(crate) fn before(&mut self, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Dataset(record) => {
                let number = record.checkpoint.unwrap_or(0);
                self.last_checkpoint = self.last_checkpoint.max(number);
                if self.stores.count() > 1
                    && record.phase == Phase::Open
                    && !self.stores.home().dataset(record.id).exists()
                {
                    self.stores.begin(record.id, self.for_new(record))?;
                }
                Ok(())
            }
            Write::Epoch(record) => {
                self.last_checkpoint = self.last_checkpoint.max(record.last_checkpoint);
                Ok(())
            }
            Write::Pointers(_) | Write::Forget(_) => Ok(()),
        }
    }

    fn ruled(&self, record: &DatasetRecord) -> Option<usize> {
        let next = record.checkpoint.unwrap_or(self.last_checkpoint + 1);
        self.config.store_for(record.class, Some(next))
    }

    fn for_new(&self, record: &DatasetRecord) -> usize {
        if let Some(index) = self.ruled(record) {
            return index;
        }
        let room = self.room();
        room.map_or(0, |room| fit(&room.available, room.last_bytes))
    }

    /// Before parts of a sealed dataset are brought back here: gives it a place where they fit, unless it has
    /// parts in one already.
    pub(crate) fn before_restore(
        &self,
        record: &DatasetRecord,
        parts: impl Iterator<Item = (Slot, Rank)>,
        me: Rank,
    ) -> Result<(), StoreError> {
        let Some(seal) = record.seal.as_ref().filter(|_| self.stores.count() > 1) else {
            return Ok(());
        };
        let mine = parts.filter(|(_, rank)| *rank == me);
        let bytes: u64 = mine
            .map(|(slot, _)| {
                let data = seal.part(slot).map_or(0, |part| part.log_bytes);
                let parity = seal
                    .geometry_of(slot)
                    .map_or(0, |geometry| geometry.parity_len(slot));
                data.saturating_add(parity)
            })
            .sum();
        let from = self.stores.store_of(record.id);
        if bytes == 0 || from.is_some_and(|from| from > 0) || self.has_parts(record.id)? {
            return Ok(());
        }
        let Some(room) = self.room() else {
            return Ok(());
        };
        let ruled = self.ruled(record);
        let fits = |index: &usize| room.available.get(*index).is_some_and(|it| *it >= bytes);
        let index = ruled.filter(fits);
        let index = index.unwrap_or_else(|| fit(&room.available, bytes));
        match (index, from) {
            (0, _) => Ok(()),
            (_, None) => self.stores.begin(record.id, index),
            (_, Some(_)) => self.take_records_to(record.id, index),
        }
    }

    fn has_parts(&self, id: DatasetId) -> Result<bool, StoreError> {
        let names = PosixStore::new().list(&self.stores.home().dataset(id))?;
        let own = |name: &std::ffi::OsString| {
            matches!(
                name.to_str().and_then(parse_slot_directory),
                Some((_, Keep::Own))
            )
        };
        Ok(names.iter().any(own))
    }

    /// A dataset of which nothing but records is here goes to another store.
    fn take_records_to(&self, id: DatasetId, index: usize) -> Result<(), StoreError> {
        let Some(target) = self.stores.get(index) else {
            return Ok(());
        };
        let store = PosixStore::new();
        let (old, new) = (self.stores.home().dataset(id), target.moving().dataset(id));
        remove_tree(&new)?;
        let mut left = vec![PathBuf::new()];
        while let Some(below) = left.pop() {
            for name in store.list(&old.join(&below))? {
                let path = below.join(name);
                if old.join(&path).is_dir() {
                    left.push(path);
                } else if let Some(bytes) = store.get(&old.join(&path))? {
                    store.put(&new.join(&path), &bytes)?;
                }
            }
        }
        let aside = self.stores.switch(id, index, &|_| Ok(()))?;
        remove_tree(&aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_store_with_room_else_the_one_with_most() {
        assert_eq!(fit(&[10, 100], 5), 0);
        assert_eq!(fit(&[10, 100], 10), 0);
        assert_eq!(fit(&[10, 100], 11), 1);
        assert_eq!(fit(&[10, 100, 1000], 500), 2);
        assert_eq!(fit(&[10, 100], 500), 1);
        assert_eq!(fit(&[100, 10], 500), 0);
        // Nothing is known of its size: any room will do, none will not.
        assert_eq!(fit(&[1, 100], 0), 0);
        assert_eq!(fit(&[0, 100], 0), 1);
        assert_eq!(fit(&[0, 0], 0), 0);
        assert_eq!(fit(&[], 7), 0);
    }
}
