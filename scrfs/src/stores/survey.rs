//! Looking at the stores of a node without an epoch: nothing is changed, and nothing needs to run.

use super::{Stores, names};
use crate::id::DatasetId;
use crate::layout::path::CachePaths;
use crate::layout::record::EpochRecord;
use crate::store::StoreError;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What [`Stores::survey`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Surveyed {
    /// As [`Settled::begun`](super::Settled::begun).
    pub begun: EpochRecord,
    /// As [`Settled::doubtful`](super::Settled::doubtful).
    pub doubtful: BTreeSet<DatasetId>,
    /// The paths that lead to each dataset that counts: those of home, or, when home was lost, of the
    /// store it lies in.
    pub places: BTreeMap<DatasetId, CachePaths>,
}

impl Stores {
    /// What [`Self::settle`] would find, with everything left as it is.
    pub fn survey(&self) -> Result<Surveyed, StoreError> {
        let own = self.home_epoch();
        let known: Vec<EpochRecord> = self.further.iter().map(Self::seen_by).collect();
        let newest = match &own {
            Some(own) => own.epoch,
            None => known.iter().map(|it| it.epoch).max().unwrap_or_default(),
        };
        let mut begun = own.clone().unwrap_or_default();
        if own.is_none() {
            // Nobody settles it, and what it has is wanted.
            begun.epoch = newest;
        }
        let mut found = Surveyed {
            begun,
            ..Surveyed::default()
        };
        let has_rebooted = self.has_rebooted();
        for id in names(&self.home)? {
            if self.store_of(id).is_some() && self.home.dataset(id).exists() {
                found.places.insert(id, self.home.clone());
                if has_rebooted {
                    found.doubtful.insert(id);
                }
            }
        }
        for (store, known) in self.further.iter().zip(&known) {
            for id in names(store)? {
                let is_free = fs::symlink_metadata(self.home.dataset(id)).is_err();
                let is_whole = store.record(id).exists()
                    && fs::symlink_metadata(store.dataset(id)).is_ok_and(|found| found.is_dir());
                if is_free && is_whole && known.epoch >= newest {
                    found.places.entry(id).or_insert_with(|| store.clone());
                    found.doubtful.insert(id);
                }
            }
        }
        Ok(found)
    }
}
