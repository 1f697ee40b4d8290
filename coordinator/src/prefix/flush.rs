//! Flush, one slot's share: cache to `.scrfs/inflight/<id>/<epoch>/`.
//!
//! Order: files, each durable when it is whole -> hard links -> read back -> checksums -> manifest. The
//! manifest says "this slot's files are here, durable and right", so it is removed before the first
//! file is touched and written after the last. Directory names are made durable by `complete`.
//!
//! An attempt is that of one epoch, taken from the record. A coordinator of an earlier epoch that
//! was declared dead and writes on writes into another directory, which is removed under its feet
//! and never published. A retry in the same epoch replaces its files one by one (see `outgoing`); a
//! later epoch begins anew.

use super::error::PrefixError;
use super::outgoing::Outgoing;
use super::streams::{Job, run};
use super::{FlushLimits, FlushSummary, Prefix, Verify};
use crate::part::records::encode_manifest;
use crate::part::{Log, Part, SealedPart, Tree, remove_tree, report};
use scrfs::id::{Epoch, Slot};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::manifest::EntryKind;
use scrfs::layout::record::DatasetRecord;
use scrfs::store::Store;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Bytes of one request, rounded up to whole units.
const PIECE_BYTES: u64 = 4 << 20;

/// Pieces of whole units.
pub(super) fn piece_bytes(unit_bytes: u32) -> u64 {
    PIECE_BYTES.next_multiple_of(u64::from(unit_bytes.max(1)))
}

impl Prefix {
    /// Copies one slot's files to the prefix, where they wait for [`Self::complete_flush`]. `record`
    /// must be that of the present epoch, the same on all nodes. `progress` gets the bytes of the part
    /// log copied so far, on the caller's thread. Blocks; not to be called from async code.
    ///
    /// Doing it again is safe at any time; a dataset that is complete in the prefix is left alone.
    pub fn flush_part(
        &self,
        record: &DatasetRecord,
        part: &Part,
        limits: FlushLimits,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<FlushSummary, PrefixError> {
        let id = part.id();
        let sealed = SealedPart::of(record, id.slot)?;
        let units = part.units();
        let manifest = Arc::clone(units.log().manifest());
        let summary = FlushSummary {
            bytes: manifest.log_bytes,
            files: manifest.files(),
            already_there: self.published(record)?,
        };
        if summary.already_there {
            progress(manifest.log_bytes);
            return Ok(summary);
        }
        if id.slot == Slot(0) {
            self.remove_earlier_attempts(record);
            self.store
                .put(&self.paths.inflight_job(record.key()), self.job.as_bytes())?;
        }
        let manifest_path = self.paths.manifest(record.key(), id.slot);
        self.store.remove(&manifest_path)?;
        let attempt = self.paths.attempt(record.key(), record.epoch);
        make_directories(&attempt)?;

        let outgoing = Arc::new(Outgoing::begin(Tree::open(&attempt)?, &manifest)?);
        let job = Job {
            dataset: record.id,
            total: manifest.log_bytes,
            piece: piece_bytes(part.unit_bytes()),
            streams: limits.streams,
            pace: limits.bandwidth.map(|bandwidth| (&self.pace, bandwidth)),
            cancel,
        };
        let (from, to) = (units.clone(), Arc::clone(&outgoing));
        let copied = run(&job, progress, move |offset, len| {
            let bytes = from.read(offset, len)?;
            Ok(to.write_at(offset, &bytes)?)
        });
        let copied = copied
            .and_then(|()| outgoing.finish())
            .and_then(|()| match limits.verify {
                Verify::ReadBack => {
                    let log = Log::new(Arc::clone(&manifest), Tree::open(&attempt)?, false);
                    let copy = units.over(log);
                    let unpaced = Job { pace: None, ..job };
                    run(&unpaced, &|_| {}, move |offset, len| {
                        Ok(copy.read(offset, len).map(drop)?)
                    })
                }
                Verify::Sizes => check_sizes(&Tree::open(&attempt)?, record, &manifest.entries),
            });
        if let Err(error) = copied {
            outgoing.remove();
            return Err(error);
        }
        let sums = units.sums();
        sealed.check_sums(&self.paths.sums(record.key(), id.slot), &sums)?;
        self.store.put(
            &self.paths.sums(record.key(), id.slot),
            &seal(Kind::Sums, &sums),
        )?;
        self.store
            .put(&manifest_path, &encode_manifest(&manifest).0)?;
        Ok(summary)
    }

    /// Gives back the space of attempts that nobody will complete.
    fn remove_earlier_attempts(&self, record: &DatasetRecord) {
        let inflight = self.paths.inflight(record.key());
        for name in self.store.list(&inflight).unwrap_or_default() {
            let epoch = name.to_str().and_then(|name| name.parse().ok()).map(Epoch);
            if epoch.is_some_and(|epoch| epoch < record.epoch)
                && let Err(error) = remove_tree(&inflight.join(&name))
            {
                report("an earlier attempt to flush cannot be removed", &error);
            }
        }
    }
}

fn make_directories(path: &Path) -> Result<(), PrefixError> {
    fs::create_dir_all(path).map_err(PrefixError::io_at("make the directory", path))
}

/// That every file has its size.
fn check_sizes(
    tree: &Tree,
    record: &DatasetRecord,
    entries: &[scrfs::layout::manifest::Entry],
) -> Result<(), PrefixError> {
    for entry in entries {
        if let EntryKind::File { size, .. } = &entry.kind {
            super::complete::check_size(tree, record.id, &entry.path, *size)?;
        }
    }
    Ok(())
}
