//! Fetch: objects to cache, by ranges. Every unit is held against the checksums that were sealed before a
//! byte of it is written.

use super::{ObjectPrefix, Objects, data, file_key};
use crate::part::{Part, PartError, PartId, remove_tree, report};
use crate::prefix::flush::piece_bytes;
use crate::prefix::streams::{Job, run};
use crate::prefix::{FlushLimits, PrefixError};
use scrfs::id::{Epoch, Slot};
use scrfs::layout::envelope::crc32c;
use scrfs::layout::manifest::{LogIndex, Manifest, Sums};
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::Stream;
use scrfs::store::posix::PosixStore;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A part log over objects.
#[derive(Debug)]
struct Reader {
    objects: Arc<Objects>,
    manifest: Manifest,
    index: LogIndex,
    sums: Sums,
    data: String,
}

impl Reader {
    /// Whole units, all of them as they were sealed.
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, PrefixError> {
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        for piece in self.index.pieces(&self.manifest, offset, len) {
            let range = piece.file_offset..piece.file_offset + piece.len;
            let key = file_key(&self.data, piece.path);
            bytes.extend_from_slice(&self.objects.get_range(&key, range)?);
        }
        let unit_bytes = u64::from(self.sums.unit_bytes);
        let chunk = usize::try_from(unit_bytes).unwrap_or(usize::MAX);
        for (unit, bytes) in (offset / unit_bytes..).zip(bytes.chunks(chunk)) {
            let found = crc32c(bytes);
            let index = usize::try_from(unit).unwrap_or(usize::MAX);
            let expected = self.sums.crcs.get(index).copied().flatten();
            if expected == Some(found) {
                continue;
            }
            let at = unit * unit_bytes;
            let first = self.index.pieces(&self.manifest, at, 1).next();
            let key = first.map_or_else(
                || self.data.clone(),
                |piece| file_key(&self.data, piece.path),
            );
            let (dataset, slot) = (self.manifest.dataset, self.manifest.slot);
            return Err(PrefixError::Part(PartError::Checksum {
                part: PartId { dataset, slot },
                stream: Stream::Data,
                offset: at,
                path: self.objects.name_of(&key),
                expected: expected.unwrap_or(0),
                found,
            }));
        }
        Ok(bytes)
    }
}

impl ObjectPrefix {
    /// The attempt that a dataset of the index is.
    fn attempt_of(&self, record: &DatasetRecord) -> Result<Epoch, PrefixError> {
        let entry = self.entry(record.key())?;
        let attempt = entry.map(|entry| entry.attempt);
        attempt.ok_or_else(|| PrefixError::NotThere {
            dataset: record.id,
            path: self.objects.name_of(&super::mark("index", record.key())),
        })
    }

    /// As [`crate::prefix::Prefix::fetch_part`].
    pub(crate) fn fetch_part(
        &self,
        record: &DatasetRecord,
        slot: Slot,
        cache: &CachePaths,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<(), PrefixError> {
        let attempt = self.attempt_of(record)?;
        let (stored, sums) = self.stored(record, attempt, slot)?;
        let data = data(&record.name, record.key(), attempt);
        let manifest = stored.manifest.clone();
        let store = PosixStore::new();
        let part = Part::begin_restore(&store, cache, record, stored, Some(sums.clone()), None)?;
        let part = Arc::new(part);
        let to = Arc::clone(&part);
        let fetched = self
            .verify(
                &manifest,
                &sums,
                &data,
                progress,
                cancel,
                move |offset, bytes| Ok(to.write_data(offset, bytes)?),
            )
            .and_then(|()| Ok(part.finish_restore(&store)?));
        if fetched.is_err()
            && let Err(error) = remove_tree(&cache.tree_new(record.id, slot))
        {
            report("a part that was not fetched cannot be removed", &error);
        }
        fetched
    }

    /// Reads all of a part, and gives what was read to `take`.
    pub(super) fn verify(
        &self,
        manifest: &Manifest,
        sums: &Sums,
        data: &str,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
        take: impl Fn(u64, &[u8]) -> Result<(), PrefixError> + Send + Sync + 'static,
    ) -> Result<(), PrefixError> {
        let index = LogIndex::new(manifest);
        let job = Job {
            dataset: manifest.dataset,
            total: manifest.log_bytes,
            piece: piece_bytes(sums.unit_bytes),
            streams: FlushLimits::default().streams,
            pace: None,
            skip: None,
            files: Some(&|offset, len| index.files(offset, len)),
            gentle: false,
            cancel,
        };
        let reader = Reader {
            objects: Arc::clone(&self.objects),
            index: LogIndex::new(manifest),
            manifest: manifest.clone(),
            sums: sums.clone(),
            data: data.to_owned(),
        };
        run(&job, progress, move |offset, len| {
            take(offset, &reader.read(offset, len)?)
        })
    }
}
