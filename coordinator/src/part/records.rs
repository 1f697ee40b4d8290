//! Manifests and checksums of parts, as records in the cache.
//!
//! A record is believed when its envelope is whole, it is of the dataset and slot that its place
//! says, and it does not contradict itself; once the dataset is sealed, also only when it is what was
//! sealed. Anything else is an error that names the file. A record that is not there is `None`.

use super::error::{PartError, PartId};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::envelope::{Kind, open, seal};
use scrfs::layout::manifest::{Manifest, ManifestError, Sums, manifest_crc};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::{DatasetRecord, PartSummary, Seal};
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use std::path::Path;

/// A manifest as it lies on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredManifest {
    /// What it says.
    pub manifest: Manifest,
    /// What a seal calls `manifest_crc`: CRC-32C of its envelope, without the checksum at its end.
    pub crc: u32,
}

/// The bytes of a manifest, and what a vote says of them.
pub fn encode_manifest(manifest: &Manifest) -> (Vec<u8>, PartSummary) {
    let bytes = seal(Kind::Manifest, manifest);
    let summary = PartSummary {
        log_bytes: manifest.log_bytes,
        files: manifest.files(),
        manifest_crc: manifest_crc(&bytes),
    };
    (bytes, summary)
}

/// Decodes and checks the manifest that was found at `path`.
pub fn decode_manifest(
    part: PartId,
    path: &Path,
    bytes: &[u8],
) -> Result<StoredManifest, PartError> {
    let manifest: Manifest = open(Kind::Manifest, bytes).map_err(|source| PartError::Envelope {
        part,
        path: path.to_owned(),
        source,
    })?;
    let contradicts = |source| PartError::Manifest {
        part,
        path: path.to_owned(),
        source,
    };
    if (manifest.dataset, manifest.slot) != (part.dataset, part.slot) {
        return Err(contradicts(ManifestError::Identity(
            manifest.dataset,
            manifest.slot,
        )));
    }
    manifest.check().map_err(contradicts)?;
    Ok(StoredManifest {
        manifest,
        crc: manifest_crc(bytes),
    })
}

/// Decodes and checks the checksums that were found at `path`.
pub fn decode_sums(
    part: PartId,
    stream: Stream,
    path: &Path,
    bytes: &[u8],
) -> Result<Sums, PartError> {
    let sums: Sums = open(Kind::Sums, bytes).map_err(|source| PartError::Envelope {
        part,
        path: path.to_owned(),
        source,
    })?;
    if (sums.dataset, sums.slot, sums.stream) != (part.dataset, part.slot, stream) {
        let source = ManifestError::Identity(sums.dataset, sums.slot);
        return Err(PartError::Manifest {
            part,
            path: path.to_owned(),
            source,
        });
    }
    Ok(sums)
}

fn part(id: DatasetId, slot: Slot) -> PartId {
    PartId { dataset: id, slot }
}

/// Puts a manifest into the cache; the summary is what the node votes with.
pub fn store_manifest(
    store: &dyn Store,
    cache: &CachePaths,
    manifest: &Manifest,
    keep: Keep,
) -> Result<PartSummary, PartError> {
    let (bytes, summary) = encode_manifest(manifest);
    let path = cache.manifest(manifest.dataset, manifest.slot, keep);
    store
        .put(&path, &bytes)
        .map_err(|error| part(manifest.dataset, manifest.slot).store(error))?;
    Ok(summary)
}

/// The manifest of a slot, its own or a copy; `None` when there is none.
pub fn load_manifest(
    store: &dyn Store,
    cache: &CachePaths,
    id: DatasetId,
    slot: Slot,
    keep: Keep,
) -> Result<Option<StoredManifest>, PartError> {
    let path = cache.manifest(id, slot, keep);
    let part = part(id, slot);
    match store.get(&path).map_err(|error| part.store(error))? {
        Some(bytes) => decode_manifest(part, &path, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Puts the checksums of a stream into the cache.
pub fn store_sums(
    store: &dyn Store,
    cache: &CachePaths,
    sums: &Sums,
    keep: Keep,
) -> Result<(), PartError> {
    let path = cache.sums(sums.dataset, sums.slot, sums.stream, keep);
    store
        .put(&path, &seal(Kind::Sums, sums))
        .map_err(|error| part(sums.dataset, sums.slot).store(error))
}

/// The checksums of a stream, its own or a copy; `None` when there are none.
pub fn load_sums(
    store: &dyn Store,
    cache: &CachePaths,
    id: DatasetId,
    slot: Slot,
    stream: Stream,
    keep: Keep,
) -> Result<Option<Sums>, PartError> {
    let path = cache.sums(id, slot, stream, keep);
    let part = part(id, slot);
    match store.get(&path).map_err(|error| part.store(error))? {
        Some(bytes) => decode_sums(part, stream, &path, &bytes).map(Some),
        None => Ok(None),
    }
}

/// What a seal says of one part; everything that is read of it is held against this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedPart {
    /// Whose.
    pub part: PartId,
    /// What it contributed.
    pub summary: PartSummary,
    /// Bytes a checksum covers.
    pub unit_bytes: u32,
    /// Length of its parity stream.
    pub parity_bytes: u64,
}

impl SealedPart {
    /// What the seal of `record` says of `slot`.
    pub fn of(record: &DatasetRecord, slot: Slot) -> Result<Self, PartError> {
        let part = part(record.id, slot);
        let no_seal = || PartError::NoSeal { part };
        let seal: &Seal = record.seal.as_ref().ok_or_else(no_seal)?;
        let summary = seal.part(slot).ok_or_else(no_seal)?.clone();
        let geometry = seal
            .geometry_of(slot)
            .map_err(|source| PartError::Geometry { part, source })?;
        if seal.unit_bytes == 0 {
            return Err(no_seal());
        }
        let parity_bytes = geometry.parity_len(slot);
        Ok(Self {
            part,
            summary,
            unit_bytes: seal.unit_bytes,
            parity_bytes,
        })
    }

    /// Length of a stream.
    pub fn stream_bytes(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Data => self.summary.log_bytes,
            Stream::Parity => self.parity_bytes,
        }
    }

    /// Checksums of a stream, none of them known yet.
    pub fn unknown_sums(&self, stream: Stream) -> Sums {
        let PartId { dataset, slot } = self.part;
        Sums::unknown(
            dataset,
            slot,
            stream,
            self.unit_bytes,
            self.stream_bytes(stream),
        )
    }

    /// That a manifest is the one that was sealed.
    pub fn check_manifest(&self, path: &Path, stored: &StoredManifest) -> Result<(), PartError> {
        let wanted = &self.summary;
        self.same(
            path,
            "checksum",
            wanted.manifest_crc.into(),
            stored.crc.into(),
        )?;
        self.same(
            path,
            "log length",
            wanted.log_bytes,
            stored.manifest.log_bytes,
        )
    }

    /// That checksums are those of this part's stream, in the units of the seal.
    pub fn check_sums(&self, path: &Path, sums: &Sums) -> Result<(), PartError> {
        let bytes = self.stream_bytes(sums.stream);
        let units = bytes.div_ceil(self.unit_bytes.into());
        self.same(
            path,
            "unit size",
            self.unit_bytes.into(),
            sums.unit_bytes.into(),
        )?;
        self.same(path, "stream length", bytes, sums.stream_bytes)?;
        self.same(path, "number of units", units, sums.crcs.len() as u64)
    }

    fn same(
        &self,
        path: &Path,
        what: &'static str,
        expected: u64,
        found: u64,
    ) -> Result<(), PartError> {
        if expected == found {
            return Ok(());
        }
        let path = path.to_owned();
        Err(PartError::NotSealed {
            part: self.part,
            path,
            what,
            expected,
            found,
        })
    }
}
