//! The manifest of a part: what files a slot contributes, and where their bytes lie in its log.
//!
//! The *part log* is the concatenation of the data extents of all regular files, in the order of their log
//! offsets, without gaps; holes are not part of it. Offsets are bytes. The manifest is written before the vote and never
//! changes; checksums ([`Sums`]) come with the first encode.

use super::envelope::{self, EnvelopeError, Kind, crc32c};
use super::record::PartSummary;
use crate::id::{DatasetId, Epoch, Slot};
use crate::name::RelPath;
use crate::redundancy::Stream;
use serde::{Deserialize, Serialize};

/// A run of data in a file, `offset..offset + len` of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DataExtent {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EntryKind {
    /// A directory; its entries follow it.
    Directory,
    /// A regular file of `size` bytes, holes outside `extents`.
    File {
        /// Its length.
        size: u64,
        /// Where in the part log its first extent begins; the others follow.
        log_offset: u64,
        /// Its data, ascending and disjoint.
        extents: Vec<DataExtent>,
    },
    /// Another name of a file that came before.
    HardLink {
        /// The first name.
        to: RelPath,
    },
    /// A symbolic link.
    Symlink {
        /// What it says, unchecked: it is never followed by scrfs.
        target: Vec<u8>,
    },
    /// A name that holds nothing.
    Node(Node),
}

/// What is known by its name alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Node {
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device, as the kernel numbers it (`st_rdev`); only root makes these.
    CharDevice(u64),
    /// A block device, likewise.
    BlockDevice(u64),
}

/// One name below the dataset's root.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub path: RelPath,
    /// What.
    pub kind: EntryKind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Everything a slot contributes to a dataset, but the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Whose part.
    pub slot: Slot,
    /// The epoch in which it was voted.
    pub epoch: Epoch,
    /// Modification time of the dataset's top directory here.
    pub root_mtime: (i64, u32),
    /// All names, parents before their entries.
    pub entries: Vec<Entry>,
    /// Length of the part log.
    pub log_bytes: u64,
}

/// Why a manifest that decodes is not believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ManifestError {
    /// An extent begins before the one before it ends, lies outside its file, or overflows.
    #[error("extents of `{0}` overlap or lie outside the file")]
    Extents(RelPath),
    /// A file's log offset is not where the file before it in the log ended.
    #[error("`{path}` lies at {found} of the part log, {wanted} was expected")]
    LogOffset {
        /// The file.
        path: RelPath,
        /// Offset in the manifest.
        found: u64,
        /// Where the file before it ends.
        wanted: u64,
    },
    /// The log is not as long as its files.
    #[error("the part log has {found} bytes, its files {wanted}")]
    LogLength {
        /// In the manifest.
        found: u64,
        /// Sum of the files.
        wanted: u64,
    },
    /// Of another dataset or slot.
    #[error("manifest of dataset {0}, {1} where another was expected")]
    Identity(DatasetId, Slot),
    /// Its record is not whole.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Whole, and not what was sealed.
    #[error("{what} {found}, where {wanted} was sealed")]
    NotSealed {
        /// What differs.
        what: &'static str,
        /// In the manifest.
        found: u64,
        /// In the seal.
        wanted: u64,
    },
}

/// What a seal calls `manifest_crc`: the checksum that the envelope ends with. Not one over *all*
/// bytes: a CRC of something that ends with its own CRC is the same number for everything.
pub fn manifest_crc(bytes: &[u8]) -> u32 {
    crc32c(&bytes[..bytes.len().saturating_sub(envelope::CHECKSUM_BYTES)])
}

/// A piece of the part log inside one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPiece<'a> {
    /// The file.
    pub path: &'a RelPath,
    /// Index of its entry.
    pub entry: usize,
    /// Where in the file.
    pub file_offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Manifest {
    /// Checks what decoding cannot: that extents are ascending and the log is gapless.
    pub fn check(&self) -> Result<(), ManifestError> {
        let mut files = Vec::new();
        for entry in &self.entries {
            let EntryKind::File {
                size,
                log_offset,
                extents,
            } = &entry.kind
            else {
                continue;
            };
            let (mut end, mut bytes) = (0u64, 0u64);
            for extent in extents {
                let next = extent.offset.checked_add(extent.len);
                match next {
                    Some(next) if extent.offset >= end && next <= *size && extent.len > 0 => {
                        end = next;
                    }
                    _ => return Err(ManifestError::Extents(entry.path.clone())),
                }
                // Disjoint, and below the size.
                bytes += extent.len;
            }
            files.push((*log_offset, bytes, &entry.path));
        }
        // Files of no bytes before one that begins where they are.
        files.sort_unstable();
        let mut log = 0u64;
        for (found, bytes, path) in files {
            let path = || path.clone();
            if found != log {
                let (path, wanted) = (path(), log);
                return Err(ManifestError::LogOffset {
                    path,
                    found,
                    wanted,
                });
            }
            log = log
                .checked_add(bytes)
                .ok_or_else(|| ManifestError::Extents(path()))?;
        }
        if log != self.log_bytes {
            return Err(ManifestError::LogLength {
                found: self.log_bytes,
                wanted: log,
            });
        }
        Ok(())
    }

    /// Decodes the manifest of a sealed part; what is returned is what was sealed.
    ///
    /// # Errors
    ///
    /// Bytes that are not the record, or not the one the seal has the checksum of.
    pub fn open_sealed(
        bytes: &[u8],
        dataset: DatasetId,
        slot: Slot,
        summary: &PartSummary,
    ) -> Result<Self, ManifestError> {
        let same = |what, found: u64, wanted: u64| {
            let differ = ManifestError::NotSealed {
                what,
                found,
                wanted,
            };
            if found == wanted { Ok(()) } else { Err(differ) }
        };
        // First: then nothing is decoded but what a node of ours has voted with.
        let crc = manifest_crc(bytes);
        same("checksum", crc.into(), summary.manifest_crc.into())?;
        let manifest: Self = envelope::open(Kind::Manifest, bytes)?;
        if (manifest.dataset, manifest.slot) != (dataset, slot) {
            return Err(ManifestError::Identity(manifest.dataset, manifest.slot));
        }
        manifest.check()?;
        same("log length", manifest.log_bytes, summary.log_bytes)?;
        same("number of files", manifest.files(), summary.files)?;
        Ok(manifest)
    }

    /// Regular files in the part.
    pub fn files(&self) -> u64 {
        self.entries
            .iter()
            .filter(|e| matches!(e.kind, EntryKind::File { .. }))
            .count() as u64
    }
}

/// Finds files by log offset; built once for a manifest.
#[derive(Debug)]
pub struct LogIndex {
    /// (log offset, entry, file offset, length) of every extent, ascending by log offset.
    extents: Vec<(u64, usize, u64, u64)>,
}

impl LogIndex {
    /// Index of a checked manifest.
    pub fn new(manifest: &Manifest) -> Self {
        let mut extents = Vec::new();
        for (index, entry) in manifest.entries.iter().enumerate() {
            if let EntryKind::File {
                log_offset,
                extents: runs,
                ..
            } = &entry.kind
            {
                let mut log = *log_offset;
                for run in runs {
                    extents.push((log, index, run.offset, run.len));
                    log += run.len;
                }
            }
        }
        extents.sort_unstable();
        Self { extents }
    }

    /// The pieces that `offset..offset + len` of the log consists of; shorter than `len` when the
    /// log ends first.
    pub fn pieces<'a>(
        &'a self,
        manifest: &'a Manifest,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = LogPiece<'a>> {
        let end = offset.saturating_add(len);
        let first = self
            .extents
            .partition_point(|&(log, _, _, run)| log + run <= offset);
        self.extents[first..]
            .iter()
            .take_while(move |&&(log, ..)| log < end)
            .map(move |&(log, entry, file_offset, run)| {
                let from = offset.max(log);
                let to = end.min(log + run);
                LogPiece {
                    path: &manifest.entries[entry].path,
                    entry,
                    file_offset: file_offset + (from - log),
                    len: to - from,
                }
            })
    }

    /// How many files have bytes in a range.
    pub fn files(&self, offset: u64, len: u64) -> u64 {
        let end = offset.saturating_add(len);
        let runs = |&(log, _, _, run): &(u64, usize, u64, u64)| log + run <= offset;
        let first = self.extents.partition_point(runs);
        let inside = self.extents[first..].iter();
        let inside = inside.take_while(|&&(log, ..)| log < end);
        let mut last = None;
        let is_new =
            |&&(_, entry, ..): &&(u64, usize, u64, u64)| last.replace(entry) != Some(entry);
        inside.filter(is_new).count() as u64
    }
}

/// Checksums of one stream of a part: CRC-32C of each unit, the last one of what there is of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sums {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Whose part.
    pub slot: Slot,
    /// Part log or parity.
    pub stream: Stream,
    /// Bytes a checksum covers.
    pub unit_bytes: u32,
    /// Length of the stream.
    pub stream_bytes: u64,
    /// One a unit; `None` while it has not been computed.
    pub crcs: Vec<Option<u32>>,
}

impl Sums {
    /// Sums of a stream whose checksums are not known yet.
    pub fn unknown(
        dataset: DatasetId,
        slot: Slot,
        stream: Stream,
        unit_bytes: u32,
        stream_bytes: u64,
    ) -> Self {
        let units = stream_bytes.div_ceil(u64::from(unit_bytes));
        let crcs = vec![None; usize::try_from(units).unwrap_or(0)];
        Self {
            dataset,
            slot,
            stream,
            unit_bytes,
            stream_bytes,
            crcs,
        }
    }

    /// Index of the unit that is exactly `offset..offset + len`, if one is.
    pub fn unit_at(&self, offset: u64, len: u32) -> Option<usize> {
        let unit = u64::from(self.unit_bytes);
        let whole = unit.min(self.stream_bytes.checked_sub(offset)?);
        (offset.is_multiple_of(unit) && u64::from(len) == whole)
            .then(|| usize::try_from(offset / unit).ok())
            .flatten()
            .filter(|&index| index < self.crcs.len())
    }

    /// Whether every unit has its checksum.
    pub fn is_complete(&self) -> bool {
        self.crcs.iter().all(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn files_of_a_range_are_those_of_its_pieces(
            runs in proptest::collection::vec(proptest::collection::vec(1..9u64, 0..3), 0..6),
            (offset, len) in (0..60u64, 0..60u64),
            turn in 0..6usize,
        ) {
            // Files lie in the log in another order than their entries.
            let mut places = vec![0; runs.len()];
            let mut log_bytes = 0;
            for at in (0..runs.len()).map(|at| (at + turn) % runs.len()).rev() {
                places[at] = log_bytes;
                log_bytes += runs[at].iter().sum::<u64>();
            }
            let entry = |(number, runs): (usize, Vec<u64>)| Entry {
                path: RelPath::new(format!("{number}").as_bytes()).expect("a path"),
                kind: EntryKind::File {
                    size: 1000,
                    log_offset: places[number],
                    extents: runs
                        .iter()
                        .enumerate()
                        .map(|(at, &len)| DataExtent { offset: at as u64 * 10, len })
                        .collect(),
                },
                mode: 0o600,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: vec![],
            };
            let mut manifest = Manifest {
                dataset: DatasetId(1),
                slot: Slot(0),
                epoch: Epoch(1),
                root_mtime: (0, 0),
                entries: runs.into_iter().enumerate().map(entry).collect(),
                log_bytes,
            };
            prop_assert_eq!(manifest.check(), Ok(()));
            let index = LogIndex::new(&manifest);
            let pieces: Vec<_> = index.pieces(&manifest, offset, len).collect();
            let bytes: u64 = pieces.iter().map(|piece| piece.len).sum();
            prop_assert_eq!(bytes, (offset + len).min(log_bytes).saturating_sub(offset));
            let of: BTreeSet<usize> = pieces.iter().map(|piece| piece.entry).collect();
            prop_assert_eq!(index.files(offset, len), of.len() as u64);
            // One that lies where another does, or nowhere near.
            let moved = manifest.entries.iter_mut().find_map(|entry| match &mut entry.kind {
                EntryKind::File { log_offset, extents, .. } if !extents.is_empty() => Some(log_offset),
                _ => None,
            });
            if let Some(log_offset) = moved {
                *log_offset += 1;
                prop_assert!(manifest.check().is_err());
            }
        }
    }
}
