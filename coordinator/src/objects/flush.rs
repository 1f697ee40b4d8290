//! Flush: one slot's files become objects; then, when all slots' are there, the entry is put.
//!
//! Order: marker -> objects -> read back -> checksums -> manifest; by rank 0: all manifests -> all objects with
//! their sizes -> entry -> marker removed. A file of more than a part is put in parts, from several threads;
//! holes become zeros, for an object has none. Memory is bounded by streams times a part.

use super::store::Upload;
use super::{ObjectPrefix, Objects, data, file_key, manifest_key, marker, sums_key};
use crate::part::records::encode_manifest;
use crate::part::{Part, PartId, SealedPart, Units, lock};
use crate::prefix::streams::{Job, run};
use crate::prefix::{Cause, FlushLimits, FlushSummary, PrefixError, Verify};
use object_store::multipart::PartId as UploadedPart;
use scrfs::id::{Epoch, Slot};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::index::{EntryState, IndexEntry};
use scrfs::layout::manifest::{DataExtent, EntryKind, Manifest};
use scrfs::layout::record::{DatasetRecord, millis};
use scrfs::name::RelPath;
use scrfs::protocol::step::Presence;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// What is put at once; every store takes parts of that size.
const PART_BYTES: u64 = 8 << 20;
/// Parts of an object: stores take ten thousand.
const PARTS_MAX: u64 = 9_000;
/// Of all parts that are on their way.
const MEMORY_BYTES: u64 = 128 << 20;

/// An object on its way.
#[derive(Debug)]
struct Outgoing {
    key: String,
    size: u64,
    /// Where its data is in the part log.
    log_offset: u64,
    extents: Vec<DataExtent>,
    part_bytes: u64,
    upload: Mutex<Option<Upload>>,
    parts: Mutex<BTreeMap<usize, UploadedPart>>,
}

/// All objects of a slot, and the pieces they are put in.
#[derive(Debug)]
struct Outbox {
    objects: Arc<Objects>,
    units: Units,
    files: Vec<Outgoing>,
    pieces: Vec<(usize, usize)>,
    /// Bytes of the log that were put.
    done: AtomicU64,
}

impl Outgoing {
    fn part_count(&self) -> u64 {
        self.size.div_ceil(self.part_bytes).max(1)
    }

    fn range(&self, index: usize) -> Range<u64> {
        let begin = index as u64 * self.part_bytes;
        begin..self.size.min(begin + self.part_bytes)
    }

    /// The bytes of a range of the file: data where it has any, zeros elsewhere.
    fn read(&self, units: &Units, range: &Range<u64>) -> Result<(Vec<u8>, u64), PrefixError> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        let (mut log, mut data) = (self.log_offset, 0);
        for extent in &self.extents {
            let end = extent.offset + extent.len;
            let (from, to) = (extent.offset.max(range.start), end.min(range.end));
            if from < to {
                let at = log + (from - extent.offset);
                let read = read_log(units, at, to - from)?;
                let target = usize::try_from(from - range.start).unwrap_or(usize::MAX);
                bytes[target..target + read.len()].copy_from_slice(&read);
                data += read.len() as u64;
            }
            log += extent.len;
        }
        Ok((bytes, data))
    }
}

/// Any range of the log. Whole units are read, for these have checksums.
fn read_log(units: &Units, offset: u64, len: u64) -> Result<Vec<u8>, PrefixError> {
    let unit = u64::from(units.unit_bytes());
    let begin = offset / unit * unit;
    let end = (offset + len).next_multiple_of(unit);
    let bytes = units.read(begin, end - begin)?;
    let skipped = usize::try_from(offset - begin).unwrap_or(usize::MAX);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let end = bytes.len().min(skipped.saturating_add(len));
    Ok(bytes[skipped.min(end)..end].to_vec())
}

impl Outbox {
    fn new(objects: &Arc<Objects>, units: Units, data: &str) -> Self {
        let manifest = Arc::clone(units.log().manifest());
        let mut files = Vec::new();
        let by_path: HashMap<&RelPath, usize> = (manifest.entries.iter())
            .enumerate()
            .map(|(index, entry)| (&entry.path, index))
            .collect();
        for entry in &manifest.entries {
            // A second name is a second object: there are no links.
            let source = match &entry.kind {
                EntryKind::File { .. } => Some(entry),
                EntryKind::HardLink { to } => by_path.get(to).map(|&at| &manifest.entries[at]),
                _ => None,
            };
            if let Some(EntryKind::File {
                size,
                log_offset,
                extents,
            }) = source.map(|entry| &entry.kind)
            {
                let even = size.div_ceil(PARTS_MAX).next_multiple_of(1 << 20);
                files.push(Outgoing {
                    key: file_key(data, &entry.path),
                    size: *size,
                    log_offset: *log_offset,
                    extents: extents.clone(),
                    part_bytes: even.max(PART_BYTES),
                    upload: Mutex::default(),
                    parts: Mutex::default(),
                });
            }
        }
        let parts = |(file, outgoing): (usize, &Outgoing)| {
            let count = usize::try_from(outgoing.part_count()).unwrap_or(usize::MAX);
            (0..count).map(move |part| (file, part))
        };
        let pieces = files.iter().enumerate().flat_map(parts).collect();
        Self {
            objects: Arc::clone(objects),
            units,
            files,
            pieces,
            done: AtomicU64::new(0),
        }
    }

    fn streams(&self, wanted: usize) -> usize {
        let largest = self.files.iter().map(|file| file.part_bytes).max();
        let fit = MEMORY_BYTES / largest.unwrap_or(PART_BYTES).max(1);
        wanted.clamp(1, usize::try_from(fit.max(1)).unwrap_or(1))
    }

    fn put(&self, piece: usize) -> Result<u64, PrefixError> {
        let Some(&(file, index)) = self.pieces.get(piece) else {
            return Ok(0);
        };
        let file = &self.files[file];
        let (bytes, data) = file.read(&self.units, &file.range(index))?;
        let count = file.part_count();
        if count == 1 {
            self.objects.put(&file.key, bytes)?;
        } else {
            let upload = {
                let mut upload = lock(&file.upload);
                match &*upload {
                    Some(upload) => upload.clone(),
                    None => upload.insert(self.objects.begin(&file.key)?).clone(),
                }
            };
            let part = self.objects.part(&file.key, &upload, index, bytes)?;
            let whole = {
                let mut parts = lock(&file.parts);
                parts.insert(index, part);
                (parts.len() as u64 == count).then(|| std::mem::take(&mut *parts))
            };
            if let Some(parts) = whole {
                let parts = parts.into_values().collect();
                self.objects.end(&file.key, &upload, parts)?;
                lock(&file.upload).take();
            }
        }
        self.done.fetch_add(data, Ordering::Relaxed);
        Ok(data)
    }

    fn abort(&self) {
        for file in &self.files {
            if let Some(upload) = lock(&file.upload).take() {
                self.objects.abort(&upload);
            }
        }
    }
}

impl ObjectPrefix {
    /// As [`crate::prefix::Prefix::presence`]: each dataset has objects of its own, whatever its name.
    pub(crate) fn presence(&self, record: &DatasetRecord) -> Result<Presence, PrefixError> {
        Ok(match self.published(record)? {
            true => Presence::Settled,
            false => Presence::Gone,
        })
    }

    /// Whether the index has it complete, and its objects are all there: no directory would show that somebody
    /// has removed them.
    fn published(&self, record: &DatasetRecord) -> Result<bool, PrefixError> {
        let is_it = |entry: &IndexEntry| entry.is_complete() && entry.record.name == record.name;
        let Some(entry) = self.entry(record.key())?.filter(is_it) else {
            return Ok(false);
        };
        match self.check(record, entry.attempt) {
            Ok(()) => Ok(true),
            Err(error) if error.cause() == Cause::Damaged => {
                tracing::error!(%error, "in the index, and not all there");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn entry_of(&self, record: &DatasetRecord, state: EntryState, flushed: u64) -> IndexEntry {
        let seal = record.seal.as_ref();
        IndexEntry {
            record: record.clone(),
            state,
            attempt: record.epoch,
            inode: 0,
            replaces: None,
            flushed,
            bytes: seal.map_or(0, |seal| seal.bytes()),
            files: seal.map_or(0, |seal| seal.files()),
            job: self.job.clone(),
            adopted: false,
        }
    }

    /// As [`crate::prefix::Prefix::flush_part`].
    pub(crate) fn flush_part(
        &self,
        record: &DatasetRecord,
        part: &Part,
        limits: FlushLimits,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<FlushSummary, PrefixError> {
        let PartId { slot, .. } = part.id();
        let sealed = SealedPart::of(record, slot)?;
        let (key, attempt) = (record.key(), record.epoch);
        let units = part.units();
        let manifest = Arc::clone(units.log().manifest());
        let summary = FlushSummary {
            bytes: manifest.log_bytes,
            files: manifest.files(),
            already_there: self.published(record)?,
            resumed: 0,
        };
        if summary.already_there {
            progress(manifest.log_bytes);
            return Ok(summary);
        }
        let begun = self.entry_of(record, EntryState::Flushing, 0);
        self.objects.put(&marker(key, attempt), begun.encode())?;
        self.objects.remove(&manifest_key(key, attempt, slot))?;
        let data = data(&record.name, key, attempt);
        let outbox = Arc::new(Outbox::new(&self.objects, units.clone(), &data));
        let job = Job {
            dataset: record.id,
            total: outbox.pieces.len() as u64,
            piece: 1,
            streams: outbox.streams(limits.streams),
            pace: None,
            skip: None,
            files: None,
            gentle: true,
            cancel,
        };
        let (to, pace) = (Arc::clone(&outbox), self.pace.clone());
        let told = |_| progress(outbox.done.load(Ordering::Relaxed));
        let copied = run(&job, &told, move |piece, _| {
            let piece = usize::try_from(piece).unwrap_or(usize::MAX);
            let bytes = to.put(piece)?;
            // After it: its length is known only then, and the next one waits.
            let turn = pace.turn(bytes, limits.bandwidth);
            let rest = turn.map_or(Duration::ZERO, |turn| {
                turn.saturating_duration_since(Instant::now())
            });
            std::thread::park_timeout(rest);
            Ok(())
        });
        if let Err(error) = copied {
            outbox.abort();
            return Err(error);
        }
        if limits.verify == Verify::ReadBack {
            self.verify(&manifest, &units.sums(), &data, &|_| {}, cancel, |_, _| {
                Ok(())
            })?;
        }
        let sums = units.sums();
        let at = sums_key(key, attempt, slot);
        sealed.check_sums(&self.objects.name_of(&at), &sums)?;
        self.objects.put(&at, seal(Kind::Sums, &sums))?;
        let at = manifest_key(key, attempt, slot);
        self.objects.put(&at, encode_manifest(&manifest).0)?;
        Ok(summary)
    }

    /// Makes a flushed dataset visible: all or nothing.
    pub(crate) fn complete_flush(&self, record: &DatasetRecord) -> Result<(), PrefixError> {
        if self.published(record)? {
            return Ok(());
        }
        self.check(record, record.epoch)?;
        let now = millis(SystemTime::now());
        let entry = self.entry_of(record, EntryState::Complete, now);
        let at = super::mark("index", record.key());
        if !self.objects.create(&at, entry.encode())? && !self.published(record)? {
            // Ours is complete, and what is there cannot be believed.
            self.objects.put(&at, entry.encode())?;
        }
        self.tidy_after(record);
        Ok(())
    }

    /// That all slots' manifests are there as they were sealed, and all their objects.
    pub(super) fn check(&self, record: &DatasetRecord, attempt: Epoch) -> Result<(), PrefixError> {
        let dataset = record.id;
        let sealed = record.seal.as_ref();
        let sealed = sealed.ok_or(PrefixError::NotSealed { dataset })?;
        let data = data(&record.name, record.key(), attempt);
        let listed = self.objects.list(&data)?;
        let sizes: HashMap<&str, u64> = listed
            .iter()
            .map(|found| (found.key.as_str(), found.size))
            .collect();
        let mut names = HashMap::new();
        for slot in (0u32..).take(sealed.parts.len()).map(Slot) {
            let manifest = self.stored(record, attempt, slot)?.0.manifest;
            for entry in &manifest.entries {
                let is_file = matches!(
                    entry.kind,
                    EntryKind::File { .. } | EntryKind::HardLink { .. }
                );
                let first = names
                    .entry(entry.path.clone())
                    .or_insert_with(|| (slot, is_file, std::mem::discriminant(&entry.kind)));
                let differ = first.2 != std::mem::discriminant(&entry.kind);
                if first.0 != slot && (is_file || first.1 || differ) {
                    return Err(PrefixError::Collision {
                        dataset,
                        path: entry.path.clone(),
                        first: first.0,
                        second: slot,
                    });
                }
            }
            self.check_sizes(record, &manifest, &data, &sizes)?;
        }
        Ok(())
    }

    fn check_sizes(
        &self,
        record: &DatasetRecord,
        manifest: &Manifest,
        data: &str,
        sizes: &HashMap<&str, u64>,
    ) -> Result<(), PrefixError> {
        let dataset = record.id;
        for entry in &manifest.entries {
            let EntryKind::File { size, .. } = &entry.kind else {
                continue;
            };
            let key = file_key(data, &entry.path);
            let path = self.objects.name_of(&key);
            match sizes.get(key.as_str()) {
                Some(found) if found == size => {}
                Some(found) => {
                    return Err(PrefixError::Incomplete {
                        dataset,
                        path,
                        what: "size",
                        expected: size.to_string(),
                        found: found.to_string(),
                    });
                }
                None => return Err(PrefixError::NotThere { dataset, path }),
            }
        }
        Ok(())
    }
}
