//! What is asked of the engine, and what it says of it.

use super::{PartStore, TransferError};
use bytes::Bytes;
use scrfs::id::DatasetId;
use scrfs::redundancy::Extent;
use std::fmt;
use std::time::Duration;

/// A running transfer on this node. Unique on its node within an epoch; means nothing elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// Bounds of memory and patience.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of units asked for or gathered.
    pub window_bytes: u64,
    /// Bytes of units read for others that the fabric has not let go of.
    pub serve_bytes: u64,
    /// How long a source may say nothing while it owes a unit.
    pub silence: Duration,
    /// How often one unit is asked for before its job fails; the time between is `silence`
    /// divided by this, or none where it came damaged.
    pub attempts: u32,
}

impl Default for Limits {
    /// Few units at a time, so that they are still in the processor's cache when they are used; and so few
    /// wait at a source that even a slow one answers in time.
    fn default() -> Self {
        Self {
            window_bytes: 4 << 20,
            serve_bytes: 2 << 20,
            silence: Duration::from_secs(10),
            attempts: 4,
        }
    }
}

/// What became of a job. `bytes` are destination bytes written so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobEvent {
    /// A read has made these bytes; whether they are right is for the reader to check.
    Made {
        /// Which.
        job: JobId,
        /// Where they belong.
        extent: Extent,
        /// All of them.
        bytes: Bytes,
    },
    /// It goes on.
    Progress {
        /// Which.
        job: JobId,
        /// How far.
        bytes: u64,
    },
    /// All of its plan is written.
    Done {
        /// Which.
        job: JobId,
        /// How much.
        bytes: u64,
    },
    /// It was given up; what it wrote so far stands and may be written again.
    Failed {
        /// Which.
        job: JobId,
        /// Why.
        error: TransferError,
    },
}

/// A store that keeps nothing: what a read makes is handed out.
pub(super) struct HandOut<'a> {
    pub(super) store: &'a mut dyn PartStore,
    pub(super) made: Option<(Extent, Bytes)>,
}

impl PartStore for HandOut<'_> {
    fn read(&self, dataset: DatasetId, extent: Extent) -> Result<Bytes, TransferError> {
        self.store.read(dataset, extent)
    }

    fn write(
        &mut self,
        _: DatasetId,
        extent: Extent,
        bytes: &[u8],
        _: u32,
    ) -> Result<(), TransferError> {
        self.made = Some((extent, Bytes::copy_from_slice(bytes)));
        Ok(())
    }

    fn expected_crc(&self, dataset: DatasetId, extent: Extent) -> Option<u32> {
        self.store.expected_crc(dataset, extent)
    }

    fn served(&mut self, dataset: DatasetId, extent: Extent, crc: u32) {
        self.store.served(dataset, extent, crc);
    }

    fn damaged(&mut self, dataset: DatasetId, extent: Extent) {
        self.store.damaged(dataset, extent);
    }
}
