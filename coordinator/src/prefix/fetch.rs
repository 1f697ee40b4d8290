//! Fetch, one slot's share: prefix to cache.
//!
//! Every unit is held against the checksums that were sealed before a byte of it is written; owner,
//! mode, time and attributes come from the manifest, not from the prefix, where people may have
//! touched them. The part appears in the cache whole or not at all. Its parity is a later encode.

use super::complete::check_entries;
use super::error::PrefixError;
use super::flush::piece_bytes;
use super::streams::{Job, run};
use super::{FlushLimits, Prefix};
use crate::part::{Log, Part, Tree, Units, remove_tree, report};
use scrfs::id::Slot;
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::step::Presence;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

impl Prefix {
    /// Brings one slot's files back into the cache. `record` is that of the index entry. `progress`
    /// gets the bytes of the part log copied so far, on the caller's thread. Blocks; not to be called
    /// from async code.
    pub fn fetch_part(
        &self,
        record: &DatasetRecord,
        slot: Slot,
        cache: &CachePaths,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<(), PrefixError> {
        self.check_there()?;
        let (units, stored) = self.opened(record, slot)?;
        let sums = Some(units.sums());
        let part = Part::begin_restore(&self.store, cache, record, stored, sums, None)?;
        let part = Arc::new(part);
        let to = Arc::clone(&part);
        let fetched = self
            .read_all(record, units, progress, cancel, move |offset, bytes| {
                Ok(to.write_data(offset, bytes)?)
            })
            .and_then(|()| Ok(part.finish_restore(&self.store)?));
        if fetched.is_err()
            && let Err(error) = remove_tree(&cache.tree_new(record.id, slot))
        {
            report("a part that was not fetched cannot be removed", &error);
        }
        fetched
    }

    /// That one slot's files are there, by type and size: they are to be read where they are. That the
    /// directory is the dataset's own is seen first.
    pub fn check_part(&self, record: &DatasetRecord, slot: Slot) -> Result<(), PrefixError> {
        self.check_there()?;
        let path = self.paths.dataset(&record.name);
        if self.presence(record)? != Presence::Settled {
            let dataset = record.id;
            return Err(PrefixError::NotThere { dataset, path });
        }
        let stored = self.manifest(record, slot)?;
        let tree = Tree::open(&path)?;
        check_entries(record.id, &Arc::new(tree), &Arc::new(stored.manifest))
    }

    /// Reads all of one slot's files in the prefix and holds them against their checksums.
    pub fn verify_part(
        &self,
        record: &DatasetRecord,
        slot: Slot,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<(), PrefixError> {
        let (units, _) = self.opened(record, slot)?;
        self.read_all(record, units, progress, cancel, |_, _| Ok(()))
    }

    pub(super) fn opened(
        &self,
        record: &DatasetRecord,
        slot: Slot,
    ) -> Result<(Units, crate::part::StoredManifest), PrefixError> {
        let stored = self.manifest(record, slot)?;
        let sums = self.sums(record, slot)?;
        let tree = Tree::open(&self.paths.dataset(&record.name))?;
        let log = Log::new(Arc::new(stored.manifest.clone()), tree, false);
        Ok((
            Units::new(Arc::new(log), Arc::new(Mutex::new(sums))),
            stored,
        ))
    }

    fn read_all(
        &self,
        record: &DatasetRecord,
        units: Units,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
        take: impl Fn(u64, &[u8]) -> Result<(), PrefixError> + Send + Sync + 'static,
    ) -> Result<(), PrefixError> {
        let job = Job {
            dataset: record.id,
            total: units.log().manifest().log_bytes,
            piece: piece_bytes(units.unit_bytes()),
            streams: FlushLimits::default().streams,
            pace: None,
            skip: None,
            files: Some(&|offset, len| units.log().files(offset, len)),
            gentle: false,
            cancel,
        };
        let from = units.clone();
        run(&job, progress, move |offset, len| {
            take(offset, &from.read(offset, len)?)
        })
    }
}
