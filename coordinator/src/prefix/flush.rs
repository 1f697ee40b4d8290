//! Flush, one slot's share: cache to `.scrfs/inflight/<id>/<epoch>/`.
//!
//! Order: files, each durable when it is whole -> hard links -> sizes; what was taken over, or all of it, is
//! read back -> checksums -> manifest. The
//! manifest says "this slot's files are here, durable and right", so it is removed before the first
//! file is touched and written after the last. Directory names are made durable by `complete`.
//!
//! An attempt is that of one epoch, taken from the record. A coordinator of an earlier epoch that
//! was declared dead and writes on writes into another directory, which is emptied under its feet
//! and never published. What attempts before have finished and noted as durable (see `done`) is not
//! copied again: a retry in the same epoch leaves it where it is, a later epoch moves file by file into its
//! own directory; nobody writes into a finished file. The rest is replaced one by one (see
//! `outgoing`). A slot removes its own files from earlier attempts, the directories go when the
//! dataset is complete.

use super::done::{self, Done};
use super::error::{Cause, PrefixError};
use super::outgoing::{Earlier, Outgoing};
use super::streams::{Job, run};
use super::{FlushLimits, FlushSummary, Prefix, Verify};
use crate::part::records::encode_manifest;
use crate::part::{Log, Part, SealedPart, Tree, file_type, lock, report};
use nix::sys::stat::SFlag;
use scrfs::id::{DatasetKey, Epoch, Slot};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::manifest::{EntryKind, Manifest};
use scrfs::layout::record::DatasetRecord;
use scrfs::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What attempts have noted as finished: entries, and the inode numbers of their files.
type Noted = Vec<(Tree, Epoch, BTreeMap<usize, u64>)>;

/// Bytes of one request, rounded up to whole units.
const PIECE_BYTES: u64 = 4 << 20;

/// Pieces of whole units.
pub(crate) fn piece_bytes(unit_bytes: u32) -> u64 {
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
        let mut summary = FlushSummary {
            bytes: manifest.log_bytes,
            files: manifest.files(),
            already_there: self.published(record)?,
            resumed: 0,
        };
        if summary.already_there {
            progress(manifest.log_bytes);
            return Ok(summary);
        }
        self.check_usable()?;
        let _busy = self.busy_with(record, id.slot)?;
        if id.slot == Slot(0) {
            self.store
                .put(&self.paths.inflight_job(record.key()), self.job.as_bytes())?;
        }
        let manifest_path = self.paths.manifest(record.key(), id.slot);
        self.store.remove(&manifest_path)?;
        let attempt = self.paths.attempt(record.key(), record.epoch);
        self.store.make_directories(&attempt)?;

        let tree = Tree::open(&attempt)?;
        let crc = encode_manifest(&manifest).1.manifest_crc;
        let earlier = self.earlier_attempts(record, id.slot, crc)?;
        let (taken, earlier) = finished(&tree, record.epoch, earlier, &manifest);
        let done_path = self.paths.done(record.key(), record.epoch, id.slot);
        let note = |taken: &_| Done::begin(&self.store, &done_path, crc, taken);
        let outgoing = Outgoing::begin(tree, &manifest, taken, &earlier, note)?;
        drop(earlier);
        let outgoing = Arc::new(outgoing);
        summary.resumed = outgoing.taken();
        let (there, known) = (Arc::clone(&outgoing), units.clone());
        // What is taken over must not tell what it should be.
        let skip = move |offset, len| there.has(offset, len) && known.knows(offset, len);
        let job = Job {
            dataset: record.id,
            total: manifest.log_bytes,
            piece: piece_bytes(part.unit_bytes()),
            streams: limits.streams,
            pace: limits.bandwidth.map(|bandwidth| (&self.pace, bandwidth)),
            skip: Some(&skip),
            files: Some(&|offset, len| units.log().files(offset, len)),
            gentle: true,
            cancel,
        };
        let (from, to) = (units.clone(), Arc::clone(&outgoing));
        let copied = run(&job, progress, move |offset, len| {
            let bytes = from.read_in_place(offset, len)?;
            Ok(to.write_at(offset, &bytes)?)
        });
        let copied = copied.and_then(|()| outgoing.finish()).and_then(|()| {
            let tree = Tree::open(&attempt)?;
            check_sizes(&tree, record, &manifest.entries)?;
            let copied_now = |offset, len| !outgoing.has_some(offset, len);
            let copy = units.over(Log::new(Arc::clone(&manifest), tree, false));
            let verify = Job {
                pace: None,
                skip: match limits.verify {
                    Verify::ReadBack => None,
                    Verify::Sizes => Some(&copied_now),
                },
                ..job
            };
            let goes_on = |_| progress(manifest.log_bytes);
            run(&verify, &goes_on, move |offset, len| {
                Ok(copy.read(offset, len).map(drop)?)
            })
        });
        if let Err(error) = copied {
            // What is wrong is not to be taken over, and who is short of space gets all of it.
            let all = matches!(error.cause(), Cause::NoSpace | Cause::Damaged);
            if all && let Err(error) = self.store.remove(&done_path) {
                report("what was copied stays", &error);
            } else {
                outgoing.remove(all);
            }
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

    /// Only one at a time: an attempt that was given up may hang in the file system still.
    fn busy_with(&self, record: &DatasetRecord, slot: Slot) -> Result<Busy<'_>, PrefixError> {
        let what = (record.key(), slot);
        match lock(&self.busy).insert(what) {
            true => Ok(Busy { prefix: self, what }),
            false => Err(PrefixError::Hanging {
                dataset: record.id,
                path: self.paths.attempt(record.key(), record.epoch),
            }),
        }
    }

    /// Attempts up to this one, newest first, and what each has noted of a slot.
    fn earlier_attempts(
        &self,
        record: &DatasetRecord,
        slot: Slot,
        manifest_crc: u32,
    ) -> Result<Noted, PrefixError> {
        let names = self.store.list(&self.paths.inflight(record.key()))?;
        let epochs = names
            .iter()
            .filter_map(|name| name.to_str()?.parse().ok().map(Epoch));
        let mut epochs: Vec<Epoch> = epochs.filter(|&epoch| epoch <= record.epoch).collect();
        epochs.sort_unstable_by(|one, other| other.cmp(one));
        let mut found = Vec::new();
        for epoch in epochs {
            let path = self.paths.done(record.key(), epoch, slot);
            let noted = done::read(&self.store, &path, manifest_crc)?;
            let tree = Tree::open(&self.paths.attempt(record.key(), epoch))?;
            found.push((tree, epoch, noted));
        }
        Ok(found)
    }
}

/// Held while a part is being flushed.
struct Busy<'a> {
    prefix: &'a Prefix,
    what: (DatasetKey, Slot),
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.prefix.busy).remove(&self.what);
    }
}

/// What of it is still there as it was noted: what is taken over, and from which earlier attempts.
fn finished(
    tree: &Tree,
    epoch: Epoch,
    noted: Noted,
    manifest: &Manifest,
) -> (BTreeMap<usize, u64>, Earlier) {
    let mut taken = BTreeMap::new();
    let mut earlier = Earlier::new();
    for (from, of, mut found) in noted {
        let tree = if of == epoch { tree } else { &from };
        found.retain(|entry, inode| {
            !taken.contains_key(entry) && is_there(tree, manifest, *entry, *inode)
        });
        taken.extend(found.iter().map(|(entry, inode)| (*entry, *inode)));
        if of != epoch {
            earlier.push((from, found));
        }
    }
    (taken, earlier)
}

/// Whether a file that was noted is there, as long as it should be.
fn is_there(tree: &Tree, manifest: &Manifest, entry: usize, inode: u64) -> bool {
    let Some(entry) = manifest.entries.get(entry) else {
        return false;
    };
    let EntryKind::File { size, .. } = entry.kind else {
        return false;
    };
    tree.stat(&entry.path).is_ok_and(|found| {
        file_type(&found) == SFlag::S_IFREG
            && found.st_ino == inode
            && u64::try_from(found.st_size) == Ok(size)
    })
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
