//! Why a transfer failed: which bytes of which dataset, whose, and both values of a mismatch.
//!
//! A failed job says nothing about the dataset: whether its bytes can be made in another way is for
//! whoever asked for the job.

use super::Reason;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::redundancy::Extent;
use std::fmt;

/// Why a job failed. `extent` is the source's, or the destination's where that is what failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// This node does not hold these bytes.
    #[error("dataset {dataset}: {} are not kept here", Name(extent))]
    Missing {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
    },
    /// Reading or writing failed.
    #[error(
        "dataset {dataset}: {} cannot be read or written: os error {errno}",
        Name(extent)
    )]
    Io {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
        /// What the system said; 5 (EIO) when it did not.
        errno: i32,
    },
    /// Bytes are not those on record, or kept arriving damaged.
    #[error(
        "dataset {dataset}: {} from {from} have crc32c {found:08x} instead of {expected:08x}",
        Name(extent)
    )]
    Checksum {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
        /// Who sent them.
        from: Rank,
        /// The checksum on record, or the one the sender gave.
        expected: u32,
        /// The checksum of what there is.
        found: u32,
    },
    /// A unit of the wrong length.
    #[error(
        "dataset {dataset}: {} from {from} came as {found} bytes",
        Name(extent)
    )]
    Length {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
        /// Who sent them.
        from: Rank,
        /// How many bytes there were.
        found: usize,
    },
    /// The source refused.
    #[error("dataset {dataset}: {from} refuses {}: {reason}", Name(extent))]
    Refused {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
        /// Who refused.
        from: Rank,
        /// Why.
        reason: Reason,
    },
    /// The source owes a unit and said nothing for too long.
    #[error(
        "dataset {dataset}: waited {waited_ms} ms for {} from {from}",
        Name(extent)
    )]
    Silent {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
        /// Who is silent.
        from: Rank,
        /// For how long.
        waited_ms: u64,
    },
    /// Nobody was named as the holder of a source.
    #[error("dataset {dataset}: no rank holds {}", Name(extent))]
    NoHolder {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which bytes.
        extent: Extent,
    },
    /// The plan asks for what cannot be: an empty unit, or a source longer than its destination.
    #[error("dataset {dataset}: the plan for {} is broken", Name(extent))]
    BrokenPlan {
        /// Of which dataset.
        dataset: DatasetId,
        /// The destination of the broken combination.
        extent: Extent,
    },
}

impl TransferError {
    /// The slot whose bytes cannot be had, when others of its set may do instead.
    pub fn spoilt(&self) -> Option<Slot> {
        match self {
            Self::Missing { extent, .. }
            | Self::Io { extent, .. }
            | Self::Checksum { extent, .. }
            | Self::Length { extent, .. }
            | Self::Refused { extent, .. }
            | Self::Silent { extent, .. }
            | Self::NoHolder { extent, .. } => Some(extent.slot),
            Self::BrokenPlan { .. } => None,
        }
    }

    /// Whether what is kept is not what was stored.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Checksum { .. }
                | Self::Refused {
                    reason: Reason::Damaged { .. },
                    ..
                }
        )
    }
}

/// An extent for people.
struct Name<'a>(&'a Extent);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Extent {
            slot,
            stream,
            offset,
            len,
        } = self.0;
        write!(f, "{len} bytes at {offset} of the {stream:?} of {slot}")
    }
}
