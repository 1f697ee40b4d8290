//! Plans: what is to be combined from where into where.
//!
//! A plan is a lazy list of [`Combination`]s in ascending order of their destination: together
//! they produce each byte of it exactly once. A unit never crosses a chunk border, at either end.
//! All offsets and lengths are bytes of a stream. A plan is values only: executing it, checking
//! what is read, and repeating it after a failure belong to the transfer engine.

use crate::id::Slot;
use crate::redundancy::geometry::{Shape, Source};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One of the two byte streams that a slot keeps for a dataset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Stream {
    /// Its part log: the slot's own files.
    Data,
    /// Its parity file: what it keeps for the other members of its set.
    Parity,
}

/// A range of one slot's stream. Never empty in a plan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// Whose stream.
    pub slot: Slot,
    /// Which of its streams.
    pub stream: Stream,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// One summand of a combination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Term {
    /// The factor, over GF(2^8); never 0.
    pub coefficient: u8,
    /// What is multiplied. Not longer than the destination; what it is short of counts as zeros.
    pub source: Extent,
}

/// `destination = sum of coefficient * source`.
///
/// Without terms the destination is zeros: a gap in a parity stream, which no plan ever reads; a
/// file extended by truncation already holds it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Combination {
    /// What is produced. For a read it names the bytes wanted; where they go is the reader's.
    pub destination: Extent,
    /// What it is made of, at most one term a slot, in no particular order.
    pub terms: Vec<Term>,
}

/// Too many members are lost to make this one's data again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{target} cannot be rebuilt: {} of its redundancy set are lost ({lost:?}), {tolerates} can be",
    lost.len()
)]
pub struct BeyondTolerance {
    /// Whose data was asked for.
    pub target: Slot,
    /// The lost members of its set, in set order; the target alone when it is not a member.
    pub lost: Vec<Slot>,
    /// How many the scheme survives.
    pub tolerates: u32,
}

/// Why a range cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The slot is lost, and so are too many of its set.
    #[error(transparent)]
    BeyondTolerance(#[from] BeyondTolerance),
    /// The slot is not of this set.
    #[error("{0} is not a member of this redundancy set")]
    NotAMember(Slot),
    /// The range ends behind the end of the part.
    #[error("bytes {offset} to {offset} + {len} do not lie in the {part_len} bytes of {target}")]
    OutOfRange {
        /// Whose part.
        target: Slot,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes it has.
        part_len: u64,
    },
}

/// What decides the sources of a destination chunk.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// The parity of a member, from the data of others.
    Encode,
    /// The data of a lost member: for each stripe of a band, its row.
    Rebuild(Vec<Option<Vec<Source>>>),
    /// The data of a member, from itself.
    Copy,
}

/// A lazy list of combinations; its memory does not depend on the lengths.
#[derive(Clone, Debug)]
pub struct Plan {
    shape: Arc<Shape>,
    job: Job,
    /// Set position and stream of all destinations.
    member: usize,
    stream: Stream,
    /// Next destination byte, and where to stop.
    position: u64,
    end: u64,
    unit_bytes: u64,
    /// The chunk that `sources` was made for.
    chunk: Option<u64>,
    sources: Vec<Source>,
}

impl Plan {
    /// The plan of `job` for the bytes `range` of a stream of `member`. Units are clamped to
    /// 1..=chunk.
    pub(super) fn new(
        shape: Arc<Shape>,
        job: Job,
        member: usize,
        stream: Stream,
        range: std::ops::Range<u64>,
        unit_bytes: u32,
    ) -> Self {
        let unit_bytes = u64::from(unit_bytes).clamp(1, shape.chunk_bytes());
        let (position, end) = (range.start, range.end);
        let (chunk, sources) = (None, Vec::new());
        Self {
            shape,
            job,
            member,
            stream,
            position,
            end,
            unit_bytes,
            chunk,
            sources,
        }
    }

    /// A plan of nothing.
    pub(super) fn empty(shape: Arc<Shape>) -> Self {
        Self::new(shape, Job::Copy, 0, Stream::Data, 0..0, 1)
    }

    /// Makes `sources` those of destination chunk `index`.
    fn enter(&mut self, index: u64) {
        if self.chunk == Some(index) {
            return;
        }
        self.chunk = Some(index);
        self.sources.clear();
        match &self.job {
            Job::Encode => self
                .shape
                .parity_sources(self.member, index, &mut self.sources),
            Job::Rebuild(rows) => {
                self.shape
                    .rebuild_sources(rows, self.member, index, &mut self.sources);
            }
            Job::Copy => self.sources.push(Source {
                member: self.member,
                stream: self.stream,
                chunk: index,
                coefficient: 1,
            }),
        }
    }
}

impl Iterator for Plan {
    type Item = Combination;

    fn next(&mut self) -> Option<Combination> {
        if self.position >= self.end {
            return None;
        }
        let chunk_bytes = self.shape.chunk_bytes();
        let (index, within) = (self.position / chunk_bytes, self.position % chunk_bytes);
        self.enter(index);
        let len = (self.unit_bytes - within % self.unit_bytes)
            .min(chunk_bytes - within)
            .min(self.end - self.position);
        let terms = self
            .sources
            .iter()
            .filter_map(|source| {
                let offset = source.chunk * chunk_bytes + within;
                let left = self
                    .shape
                    .stream_len(source.member, source.stream)
                    .checked_sub(offset);
                let clipped = left.filter(|&left| left > 0)?.min(len);
                Some(Term {
                    coefficient: source.coefficient,
                    source: extent(&self.shape, source.member, source.stream, offset, clipped),
                })
            })
            .collect();
        let destination = extent(&self.shape, self.member, self.stream, self.position, len);
        self.position += len;
        Some(Combination { destination, terms })
    }
}

/// An extent of at most one chunk, whose length therefore fits.
fn extent(shape: &Shape, member: usize, stream: Stream, offset: u64, len: u64) -> Extent {
    let len = u32::try_from(len).expect("a unit is no longer than a chunk, at most 1 GiB");
    Extent {
        slot: shape.slot(member),
        stream,
        offset,
        len,
    }
}
