//! What a scavenge does in the prefix beyond a flush: the files of slots that no node has are made again.
//!
//! Beside the files of an attempt, nodes put what these are made from into `inflight/<key>/<epoch>.kept/`:
//! the parity of the members of the set, and names and checksums of the lost slots. Everything is
//! held against its checksums when it is read in a cache, when it is read in the prefix, and, made again,
//! once more before it counts. Memory is bounded by streams times a piece.
//!
//! Order, for parity: bytes, durable -> checksums, which say that it is whole. For a slot that is made again
//! it is that of a flush, so that [`Prefix::complete_flush`] cannot tell them apart.

use super::done::Done;
use super::error::PrefixError;
use super::flush::piece_bytes;
use super::outgoing::{Earlier, Outgoing};
use super::streams::{Job, run};
use super::{FlushLimits, Prefix, StepHook};
use crate::part::records::{decode_manifest, decode_sums, encode_manifest};
use crate::part::remove_tree;
use crate::part::{Log, Part, PartError, PartId, SealedPart, StoredManifest, Tree, Units};
use scrfs::codec::combine;
use scrfs::id::{Epoch, Slot};
use scrfs::layout::envelope::{Kind, crc32c, seal};
use scrfs::layout::manifest::{LogIndex, Sums};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::{Extent, Stream};
use scrfs::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// Ends the name of what is kept beside an attempt.
const KEPT: &str = ".kept";

impl Prefix {
    /// Makes room for an attempt: earlier ones that nobody will complete are removed.
    pub fn begin_salvage(&self, record: &DatasetRecord) -> Result<(), PrefixError> {
        let inflight = self.paths.inflight(record.key());
        for name in self.store.list(&inflight)? {
            let text = name.to_str().unwrap_or_default();
            let number = text.strip_suffix(KEPT).unwrap_or(text).parse();
            if number.map(Epoch).is_ok_and(|epoch| epoch < record.epoch) {
                remove_tree(&inflight.join(&name))?;
            }
        }
        let job = self.paths.inflight_job(record.key());
        Ok(self.store.put(&job, self.job.as_bytes())?)
    }

    /// Keeps what a node knows of a lost slot; both must be what was sealed.
    pub fn keep_metadata(
        &self,
        record: &DatasetRecord,
        stored: &StoredManifest,
        sums: &Sums,
    ) -> Result<(), PrefixError> {
        let slot = stored.manifest.slot;
        let sealed = SealedPart::of(record, slot)?;
        let (manifest_path, sums_path) = self.kept_metadata(record, slot);
        sealed.check_manifest(&manifest_path, stored)?;
        sealed.check_sums(&sums_path, sums)?;
        self.store.put(&sums_path, &seal(Kind::Sums, sums))?;
        let bytes = encode_manifest(&stored.manifest).0;
        Ok(self.store.put(&manifest_path, &bytes)?)
    }

    fn kept_metadata(&self, record: &DatasetRecord, slot: Slot) -> (PathBuf, PathBuf) {
        let (key, epoch) = (record.key(), record.epoch);
        let sums = self.paths.kept_sums(key, epoch, slot, Stream::Data);
        (self.paths.kept_manifest(key, epoch, slot), sums)
    }

    fn kept_parity(&self, record: &DatasetRecord, slot: Slot) -> (PathBuf, PathBuf) {
        let (key, epoch) = (record.key(), record.epoch);
        let sums = self.paths.kept_sums(key, epoch, slot, Stream::Parity);
        (self.paths.kept_parity(key, epoch, slot), sums)
    }

    /// Copies the parity of one slot. Blocks; not to be called from async code.
    ///
    /// # Errors
    ///
    /// It is not all there, or not what was stored; or the prefix does not take it.
    pub fn keep_parity(
        &self,
        record: &DatasetRecord,
        part: &Arc<Part>,
        limits: FlushLimits,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<(), PrefixError> {
        let id = part.id();
        let (path, sums_path) = self.kept_parity(record, id.slot);
        let sums = part.sums(Stream::Parity);
        if !sums.is_complete() {
            let dataset = record.id;
            return Err(PrefixError::NotThere {
                dataset,
                path: sums_path,
            });
        }
        self.store.remove(&sums_path)?;
        let kept = self.paths.kept(record.key(), record.epoch);
        self.store.make_directories(&kept)?;
        self.store.remove(&path)?;
        let make = || {
            let mut options = File::options();
            options.write(true).create_new(true).mode(0o600);
            options.open(&path)
        };
        let file = Arc::new(make().map_err(PrefixError::io_at("make", &path))?);
        let unit_bytes = u64::from(part.unit_bytes());
        let job = Job {
            dataset: record.id,
            total: sums.stream_bytes,
            piece: piece_bytes(part.unit_bytes()),
            streams: limits.streams,
            pace: limits.bandwidth.map(|bandwidth| (&self.pace, bandwidth)),
            skip: None,
            files: None,
            gentle: false,
            cancel,
        };
        let (from, to, name) = (Arc::clone(part), Arc::clone(&file), path.clone());
        run(&job, progress, move |offset, len| {
            let mut at = offset;
            while at < offset + len {
                let unit = usize::try_from(at / unit_bytes).unwrap_or(usize::MAX);
                let bytes = from.read_unit(Stream::Parity, unit)?;
                to.write_all_at(&bytes, at)
                    .map_err(PrefixError::io_at("write", &name))?;
                at += unit_bytes;
            }
            Ok(())
        })?;
        file.sync_all().map_err(PrefixError::io_at("sync", &path))?;
        Ok(self.store.put(&sums_path, &seal(Kind::Sums, &sums))?)
    }

    /// Makes the files of a lost slot again from those of the others, which must be in this attempt, and
    /// from the parity that was kept. Blocks; not to be called from async code.
    ///
    /// # Errors
    ///
    /// Something that is needed is not there or damaged, or more is lost than the scheme tolerates.
    pub fn rebuild_part(
        &self,
        record: &DatasetRecord,
        lost: &[Slot],
        slot: Slot,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
    ) -> Result<(), PrefixError> {
        self.rebuild_part_with(record, lost, slot, progress, cancel, &|_| Ok(()))
    }

    pub(crate) fn rebuild_part_with(
        &self,
        record: &DatasetRecord,
        lost: &[Slot],
        slot: Slot,
        progress: &dyn Fn(u64),
        cancel: &AtomicBool,
        step: StepHook<'_>,
    ) -> Result<(), PrefixError> {
        let dataset = record.id;
        if self.published(record)? {
            return Ok(());
        }
        let seal_of = record.seal.as_ref();
        let sealed = seal_of.ok_or(PrefixError::NotSealed { dataset })?;
        let part = PartId { dataset, slot };
        let geometry = sealed
            .geometry_of(slot)
            .map_err(|source| PartError::Geometry { part, source })?;
        let (stored, sums) = self.known_of(record, slot)?;
        let manifest = Arc::new(stored.manifest);
        let attempt = self.paths.attempt(record.key(), record.epoch);
        let sources = Sources::open(self, record, geometry.members(), lost)?;
        let manifest_path = self.paths.manifest(record.key(), slot);
        let step = |name| step(name).map_err(PrefixError::io_at(name, &attempt));
        step("begin a slot")?;
        self.store.remove(&manifest_path)?;
        self.store.make_directories(&attempt)?;
        let done_path = self.paths.done(record.key(), record.epoch, slot);
        let crc = encode_manifest(&manifest).1.manifest_crc;
        let (tree, none) = (Tree::open(&attempt)?, Earlier::new());
        let outgoing = Outgoing::begin(tree, &manifest, BTreeMap::new(), &none, |taken| {
            Done::begin(&self.store, &done_path, crc, taken)
        })?;
        let outgoing = Arc::new(outgoing);
        step("make the files of a slot")?;
        let index = LogIndex::new(&manifest);
        let job = Job {
            dataset,
            total: manifest.log_bytes,
            piece: piece_bytes(sealed.unit_bytes),
            streams: FlushLimits::default().streams,
            pace: None,
            skip: None,
            files: Some(&|offset, len| index.files(offset, len)),
            gentle: false,
            cancel,
        };
        let (to, unit_bytes, gone) = (Arc::clone(&outgoing), sealed.unit_bytes, lost.to_vec());
        run(&job, progress, move |offset, len| {
            let plan = geometry
                .read(&gone, slot, offset, len, unit_bytes)
                .map_err(|source| PrefixError::Beyond { dataset, source })?;
            let mut made = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            for combination in plan {
                let at = combination.destination.offset - offset;
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let target = &mut made[at..at + combination.destination.len as usize];
                let terms = &combination.terms;
                let row: Vec<u8> = terms.iter().map(|term| term.coefficient).collect();
                let read = terms.iter().map(|term| sources.read(term.source));
                let read = read.collect::<Result<Vec<_>, _>>()?;
                let bytes: Vec<&[u8]> = read.iter().map(Vec::as_slice).collect();
                combine(&mut [target], &[&row], &bytes);
            }
            Ok(to.write_at(offset, &made)?)
        })?;
        outgoing.finish()?;
        step("read a slot back")?;
        let log = Log::new(Arc::clone(&manifest), Tree::open(&attempt)?, false);
        let copy = Units::new(Arc::new(log), Arc::new(Mutex::new(sums.clone())));
        run(&job, &|_| {}, move |offset, len| {
            Ok(copy.read(offset, len).map(drop)?)
        })?;
        step("write the checksums of a slot")?;
        let sums_path = self.paths.sums(record.key(), slot);
        self.store.put(&sums_path, &seal(Kind::Sums, &sums))?;
        step("write the manifest of a slot")?;
        let bytes = encode_manifest(&manifest).0;
        Ok(self.store.put(&manifest_path, &bytes)?)
    }

    /// What was kept of a lost slot.
    fn known_of(
        &self,
        record: &DatasetRecord,
        slot: Slot,
    ) -> Result<(StoredManifest, Sums), PrefixError> {
        let dataset = record.id;
        let part = PartId { dataset, slot };
        let sealed = SealedPart::of(record, slot)?;
        let (manifest_path, sums_path) = self.kept_metadata(record, slot);
        let get = |path: &PathBuf| {
            let path = path.clone();
            let found = self.store.get(&path)?;
            found.ok_or(PrefixError::NotThere { dataset, path })
        };
        let stored = decode_manifest(part, &manifest_path, &get(&manifest_path)?)?;
        sealed.check_manifest(&manifest_path, &stored)?;
        let sums = decode_sums(part, Stream::Data, &sums_path, &get(&sums_path)?)?;
        sealed.check_sums(&sums_path, &sums)?;
        if !sums.is_complete() {
            let path = sums_path;
            return Err(PrefixError::NotThere { dataset, path });
        }
        Ok((stored, sums))
    }
}

/// Parity in the prefix, and what it must be.
#[derive(Debug)]
struct KeptParity {
    part: PartId,
    path: PathBuf,
    file: File,
    sums: Sums,
}

/// What lost slots are made from: the others' files and the parity, as they lie in the prefix.
#[derive(Debug)]
struct Sources {
    data: BTreeMap<Slot, Units>,
    parity: BTreeMap<Slot, KeptParity>,
}

impl Sources {
    fn open(
        prefix: &Prefix,
        record: &DatasetRecord,
        members: &[Slot],
        lost: &[Slot],
    ) -> Result<Self, PrefixError> {
        let mut sources = Self {
            data: BTreeMap::new(),
            parity: BTreeMap::new(),
        };
        let attempt = prefix.paths.attempt(record.key(), record.epoch);
        let lost: BTreeSet<Slot> = lost.iter().copied().collect();
        for &slot in members.iter().filter(|slot| !lost.contains(slot)) {
            let manifest = prefix.manifest(record, slot)?.manifest;
            let sums = prefix.sums(record, slot)?;
            let log = Log::new(Arc::new(manifest), Tree::open(&attempt)?, false);
            let units = Units::new(Arc::new(log), Arc::new(Mutex::new(sums)));
            sources.data.insert(slot, units);
            let parity = KeptParity::open(prefix, record, slot)?;
            sources.parity.extend(parity.map(|parity| (slot, parity)));
        }
        Ok(sources)
    }

    /// The bytes of an extent, which begins with a unit and may end within it. The unit is read as a
    /// whole: it has one checksum.
    fn read(&self, extent: Extent) -> Result<Vec<u8>, PrefixError> {
        let mut bytes = match extent.stream {
            Stream::Data => match self.data.get(&extent.slot) {
                Some(units) => units
                    .read(extent.offset, units.unit_bytes().into())?
                    .to_vec(),
                None => Vec::new(),
            },
            Stream::Parity => match self.parity.get(&extent.slot) {
                Some(parity) => parity.read(extent.offset)?,
                None => Vec::new(),
            },
        };
        let wanted = extent.len as usize;
        if bytes.len() < wanted {
            return Err(PrefixError::Source {
                slot: extent.slot,
                stream: extent.stream,
            });
        }
        bytes.truncate(wanted);
        Ok(bytes)
    }
}

impl KeptParity {
    fn open(
        prefix: &Prefix,
        record: &DatasetRecord,
        slot: Slot,
    ) -> Result<Option<Self>, PrefixError> {
        let (path, sums_path) = prefix.kept_parity(record, slot);
        let Some(bytes) = prefix.store.get(&sums_path)? else {
            return Ok(None);
        };
        let dataset = record.id;
        let part = PartId { dataset, slot };
        let sums = decode_sums(part, Stream::Parity, &sums_path, &bytes)?;
        SealedPart::of(record, slot)?.check_sums(&sums_path, &sums)?;
        let file = File::open(&path).map_err(PrefixError::io_at("open", &path))?;
        Ok(Some(Self {
            part,
            path,
            file,
            sums,
        }))
    }

    fn read(&self, offset: u64) -> Result<Vec<u8>, PrefixError> {
        let unit_bytes = u64::from(self.sums.unit_bytes);
        let rest = self.sums.stream_bytes.saturating_sub(offset);
        let len = u32::try_from(unit_bytes.min(rest)).unwrap_or(u32::MAX);
        let mut bytes = vec![0; len as usize];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(PrefixError::io_at("read", &self.path))?;
        let found = crc32c(&bytes);
        let unit = self.sums.unit_at(offset, len);
        let expected = unit.and_then(|unit| self.sums.crcs.get(unit).copied().flatten());
        match expected {
            Some(expected) if expected == found => Ok(bytes),
            Some(expected) => Err(PrefixError::Part(PartError::Checksum {
                part: self.part,
                stream: Stream::Parity,
                offset,
                path: self.path.clone(),
                expected,
                found,
            })),
            None => Err(PrefixError::Io {
                verb: "check",
                path: self.path.clone(),
                source: io::Error::other("no checksum is known"),
            }),
        }
    }
}
