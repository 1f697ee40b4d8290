//! Why a part cannot be scanned, read, written or believed.
//!
//! Every variant says whose part it is and names the path. Operating system errors keep their code:
//! what to do about a full device is not what to do about a damaged one.

use scrfs::id::{DatasetId, Slot};
use scrfs::layout::envelope::EnvelopeError;
use scrfs::layout::manifest::ManifestError;
use scrfs::name::NameError;
use scrfs::redundancy::{GeometryError, Stream};
use scrfs::store::StoreError;
use std::io;
use std::path::{Path, PathBuf};

/// Whose part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartId {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Of which slot.
    pub slot: Slot,
}

impl std::fmt::Display for PartId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "dataset {}, {}", self.dataset, self.slot)
    }
}

/// Why a part cannot be scanned, read, written or believed.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The operating system refused.
    #[error("{part}: cannot {verb} {path:?}")]
    Io {
        /// Whose part.
        part: PartId,
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody writes to it still.
    #[error("{part}: {path:?} changed while it was read")]
    Changed {
        /// Whose part.
        part: PartId,
        /// What changed.
        path: PathBuf,
    },
    /// A device, or something newer: nothing that can be brought back.
    #[error("{part}: {path:?} is of a kind that cannot be kept (mode {mode:o})")]
    Unsupported {
        /// Whose part.
        part: PartId,
        /// What.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// A name too long, or not a name.
    #[error("{part}: {path:?} has an entry that cannot be named")]
    Name {
        /// Whose part.
        part: PartId,
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: NameError,
    },
    /// A file ends before its manifest says so.
    #[error("{part}: {path:?} has {found} bytes, {expected} were expected")]
    Short {
        /// Whose part.
        part: PartId,
        /// Which file.
        path: PathBuf,
        /// Where it should reach at least.
        expected: u64,
        /// Where it ends.
        found: u64,
    },
    /// Bytes are not those that were summed.
    #[error(
        "{part}: checksum {found:08x} instead of {expected:08x} at {offset} of its {stream:?} \
         stream, in {path:?}"
    )]
    Checksum {
        /// Whose part.
        part: PartId,
        /// Which stream.
        stream: Stream,
        /// Where in the stream the unit begins.
        offset: u64,
        /// The file, or the first of several that the unit covers.
        path: PathBuf,
        /// Checksum of the unit when it was computed first.
        expected: u32,
        /// Checksum of the bytes at hand.
        found: u32,
    },
    /// The tree is not what the manifest says.
    #[error("{part}: {path:?} has {what} {found}, {expected} was expected")]
    Differs {
        /// Whose part.
        part: PartId,
        /// What differs.
        path: PathBuf,
        /// In which respect.
        what: &'static str,
        /// In the manifest.
        expected: String,
        /// In the tree.
        found: String,
    },
    /// A range that is not of the stream, or a unit that is not of the sums.
    #[error("{part}: {offset}+{len} does not lie in its {stream:?} stream of {stream_bytes} bytes")]
    Range {
        /// Whose part.
        part: PartId,
        /// Which stream.
        stream: Stream,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Length of the stream.
        stream_bytes: u64,
    },
    /// A record that should be there is not.
    #[error("{part}: there is no {path:?}")]
    Missing {
        /// Whose part.
        part: PartId,
        /// Which.
        path: PathBuf,
    },
    /// A record that does not decode.
    #[error("{part}: {path:?} is damaged")]
    Envelope {
        /// Whose part.
        part: PartId,
        /// Which.
        path: PathBuf,
        /// How.
        source: EnvelopeError,
    },
    /// A manifest that decodes and contradicts itself.
    #[error("{part}: {path:?} contradicts itself")]
    Manifest {
        /// Whose part.
        part: PartId,
        /// Which.
        path: PathBuf,
        /// How.
        source: ManifestError,
    },
    /// A record of another part, or not the one that was sealed.
    #[error("{part}: {path:?} has {what} {found}, the seal says {expected}")]
    NotSealed {
        /// Whose part.
        part: PartId,
        /// Which record.
        path: PathBuf,
        /// In which respect.
        what: &'static str,
        /// In the seal.
        expected: u64,
        /// In the record.
        found: u64,
    },
    /// The dataset has no seal, or none for this slot.
    #[error("{part}: not in the seal of the dataset")]
    NoSeal {
        /// Whose part.
        part: PartId,
    },
    /// The seal contradicts itself.
    #[error("{part}: the seal of the dataset contradicts itself")]
    Geometry {
        /// Whose part.
        part: PartId,
        /// How.
        source: GeometryError,
    },
    /// The part is complete: nothing is written into it.
    #[error("{part}: is not being restored, {path:?} is not written")]
    NotRestoring {
        /// Whose part.
        part: PartId,
        /// Its tree.
        path: PathBuf,
    },
}

impl PartError {
    /// The operating system's error, when that is what it was.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether bytes or records are there and wrong: the part must be rebuilt or fetched.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Short { .. }
            | Self::Checksum { .. }
            | Self::Differs { .. }
            | Self::Missing { .. }
            | Self::Envelope { .. }
            | Self::Manifest { .. }
            | Self::NotSealed { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Changed { .. }
            | Self::Unsupported { .. }
            | Self::Name { .. }
            | Self::Range { .. }
            | Self::NoSeal { .. }
            | Self::Geometry { .. }
            | Self::NotRestoring { .. } => false,
        }
    }
}

impl PartId {
    /// For `map_err` on what the operating system answers.
    pub(crate) fn io(self, verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PartError {
        let path = path.to_owned();
        move |source| PartError::Io {
            part: self,
            verb,
            path,
            source,
        }
    }

    /// For `map_err` on what a tree or store answers.
    pub(crate) fn store(self, error: StoreError) -> PartError {
        PartError::Io {
            part: self,
            verb: error.verb,
            path: error.path,
            source: error.source,
        }
    }
}
