//! Bands and stripes: which member of a redundancy set keeps which chunk.
//!
//! Streams are cut into chunks of `chunk_bytes`. XOR and Reed-Solomon, n members and k parities:
//! a *band* is n stripes; stripe s has its k parity chunks on the members s, s+1 .. s+k-1 (mod n)
//! of the set, parity j on member s+j, and one data chunk of each other member. So a band takes
//! n-k data chunks of each member's part log, and k chunks of its parity stream, both in ascending
//! order of the stripes. n = 4, k = 1 (Dm.c: chunk c of member m; P: parity):
//!
//! ```text
//!             member 0   member 1   member 2   member 3
//!   stripe 0  P0         D1.0       D2.0       D3.0
//!   stripe 1  D0.0       P1         D2.1       D3.1
//!   stripe 2  D0.1       D1.1       P2         D3.2
//!   stripe 3  D0.2       D1.2       D2.2       P3
//! ```
//!
//! Partner with c copies: a band is one data chunk and c parity chunks a member; parity chunk j
//! is the copy of the same band's data chunk of the (j+1)th neighbour to the left.
//!
//! Invariants: places do not depend on lengths. A parity stream ends where the last stripe that
//! has any data in it ends: the padding beyond is never stored. With uneven parts a stripe before
//! that end may have no data at all; its parity is zeros that nobody reads. Lengths are bounded
//! when a geometry is made, so that no offset overflows after that.

use crate::codec::field::{Code, CodeError};
use crate::id::Slot;
use crate::redundancy::plan::{BeyondTolerance, Job, Plan, ReadError, Stream};
use crate::redundancy::scheme::Scheme;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The smallest chunk: a page.
pub const CHUNK_BYTES_MIN: u64 = 4096;

/// The largest chunk: 1 GiB.
pub const CHUNK_BYTES_MAX: u64 = 1 << 30;

/// The longest part log that is believed: 8 PiB. With 255 parities its offsets still fit 63 bits.
pub const PART_BYTES_MAX: u64 = 1 << 53;

/// Why there is no such redundancy set.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeometryError {
    /// No members at all.
    #[error("a redundancy set needs members")]
    NoMembers,
    /// A slot is listed twice.
    #[error("{0} is in its redundancy set twice")]
    Duplicate(Slot),
    /// Too few members for the scheme.
    #[error(
        "{scheme} with {parities} parities or copies needs more than {parities} members, \
         not {members}"
    )]
    TooFewMembers {
        /// The scheme.
        scheme: Scheme,
        /// Its parities or copies.
        parities: u32,
        /// Members of the set.
        members: usize,
    },
    /// Partner or Reed-Solomon with nothing to keep.
    #[error("{0} with no parities or copies protects nothing")]
    NoParity(Scheme),
    /// A chunk size that is not a power of two in [`CHUNK_BYTES_MIN`]..=[`CHUNK_BYTES_MAX`].
    #[error(
        "a chunk of {0} bytes is not a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}"
    )]
    BadChunk(u64),
    /// A part longer than [`PART_BYTES_MAX`].
    #[error("{slot} claims a part of {len} bytes, more than the {PART_BYTES_MAX} believed")]
    PartTooLong {
        /// Whose part.
        slot: Slot,
        /// The length it claims, in bytes.
        len: u64,
    },
    /// The code has no such shape.
    #[error("no such code")]
    Code(#[from] CodeError),
}

/// One source chunk of a destination chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source {
    /// Set position.
    pub(super) member: usize,
    pub(super) stream: Stream,
    /// Chunk of that stream. In the rows of a rebuild: of its first band.
    pub(super) chunk: u64,
    pub(super) coefficient: u8,
}

/// How chunks are placed.
#[derive(Debug)]
enum Placement {
    /// No parity.
    Bare,
    /// Whole copies on the right neighbours.
    Mirrored,
    /// Bands of stripes.
    Striped(Box<Code>),
}

/// The validated values that all plans of a set share.
#[derive(Debug)]
pub(super) struct Shape {
    scheme: Scheme,
    placement: Placement,
    /// Parity chunks a band of each member: k.
    parities: usize,
    slots: Vec<Slot>,
    lengths: Vec<u64>,
    parity_lengths: Vec<u64>,
    chunk_bytes: u64,
}

/// One redundancy set of one dataset: its members, the lengths of their parts, and so the place
/// and the making of every byte of parity. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SetGeometry {
    shape: Arc<Shape>,
}

impl SetGeometry {
    /// The geometry of `members` in set order, each with the length of its part log in bytes.
    ///
    /// # Errors
    ///
    /// [`GeometryError`]: no members, one listed twice, fewer than the scheme needs, a chunk that
    /// is not a power of two of at least a page, or a length beyond [`PART_BYTES_MAX`].
    pub fn new(
        scheme: Scheme,
        members: Vec<(Slot, u64)>,
        chunk_bytes: u64,
    ) -> Result<Self, GeometryError> {
        if members.is_empty() {
            return Err(GeometryError::NoMembers);
        }
        if !chunk_bytes.is_power_of_two()
            || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes)
        {
            return Err(GeometryError::BadChunk(chunk_bytes));
        }
        let mut seen = BTreeSet::new();
        for &(slot, len) in &members {
            if !seen.insert(slot) {
                return Err(GeometryError::Duplicate(slot));
            }
            if len > PART_BYTES_MAX {
                return Err(GeometryError::PartTooLong { slot, len });
            }
        }
        let parities = scheme.parity_count() as usize;
        if parities == 0 && scheme != Scheme::Single {
            return Err(GeometryError::NoParity(scheme));
        }
        if members.len() <= parities {
            let (parities, members) = (scheme.parity_count(), members.len());
            return Err(GeometryError::TooFewMembers {
                scheme,
                parities,
                members,
            });
        }
        let placement = match scheme {
            Scheme::Single => Placement::Bare,
            Scheme::Partner { .. } => Placement::Mirrored,
            Scheme::Xor | Scheme::ReedSolomon { .. } => {
                Placement::Striped(Box::new(Code::new(members.len() - parities, parities)?))
            }
        };
        let (slots, lengths): (Vec<Slot>, Vec<u64>) = members.into_iter().unzip();
        let parity_lengths = Vec::new();
        let mut shape = Shape {
            scheme,
            placement,
            parities,
            slots,
            lengths,
            parity_lengths,
            chunk_bytes,
        };
        shape.parity_lengths = (0..shape.slots.len())
            .map(|m| shape.parity_extent(m))
            .collect();
        Ok(Self {
            shape: Arc::new(shape),
        })
    }

    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.shape.scheme
    }

    /// The members in set order.
    #[must_use]
    pub fn members(&self) -> &[Slot] {
        &self.shape.slots
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.shape.chunk_bytes
    }

    /// Bytes of a member's part log; 0 for others.
    #[must_use]
    pub fn data_len(&self, slot: Slot) -> u64 {
        self.position(slot).map_or(0, |m| self.shape.lengths[m])
    }

    /// Bytes of a member's parity stream, 0 for others: up to the end of the last stripe in which
    /// any other member has data, so at most as the largest of them asks for.
    #[must_use]
    pub fn parity_len(&self, slot: Slot) -> u64 {
        self.position(slot)
            .map_or(0, |m| self.shape.parity_lengths[m])
    }

    /// Everything that makes the parity stream of `owner`: each of its `parity_len` bytes once,
    /// ascending. Nothing when `owner` is not a member. `unit_bytes` is clamped to 1..=chunk.
    pub fn encode(&self, owner: Slot, unit_bytes: u32) -> Plan {
        let shape = self.shape.clone();
        match self.position(owner) {
            Some(member) => {
                let range = 0..shape.parity_lengths[member];
                Plan::new(
                    shape,
                    Job::Encode,
                    member,
                    Stream::Parity,
                    range,
                    unit_bytes,
                )
            }
            None => Plan::empty(shape),
        }
    }

    /// The same for `len` bytes from `offset` of that stream; nothing of what lies behind its end.
    pub fn parity(&self, owner: Slot, offset: u64, len: u64, unit_bytes: u32) -> Plan {
        let shape = self.shape.clone();
        let Some(member) = self.position(owner) else {
            return Plan::empty(shape);
        };
        let end = offset.saturating_add(len);
        let range = offset..end.min(shape.parity_lengths[member]);
        let (job, stream) = (Job::Encode, Stream::Parity);
        Plan::new(shape, job, member, stream, range, unit_bytes)
    }

    /// Bytes of the parity stream of `owner`, in whole chunks from its beginning, that do not change when
    /// parts grow: those whose data chunks are all there. Looks from the chunk at `from` bytes on.
    #[must_use]
    pub fn settled_parity(&self, owner: Slot, from: u64) -> u64 {
        let shape = &self.shape;
        let Some(member) = self.position(owner) else {
            return 0;
        };
        let chunks = |bytes: u64| bytes / shape.chunk_bytes;
        let mut sources = Vec::new();
        let mut chunk = chunks(from);
        while chunk < chunks(shape.parity_lengths[member]) {
            sources.clear();
            shape.parity_sources(member, chunk, &mut sources);
            let is_there = |source: &Source| source.chunk < chunks(shape.lengths[source.member]);
            if !sources.iter().all(is_there) {
                break;
            }
            chunk += 1;
        }
        chunk * shape.chunk_bytes
    }

    /// Everything that makes the part log of `target` again, from data and parity of members that
    /// are neither `target` nor in `lost`: each of its bytes once, ascending. Its parity is then
    /// made by [`Self::encode`]. Slots of other sets in `lost` do not matter. An empty part is
    /// rebuilt by an empty plan whatever was lost.
    ///
    /// # Errors
    ///
    /// [`BeyondTolerance`] when the survivors do not determine it, or it is not a member.
    pub fn rebuild(
        &self,
        lost: &[Slot],
        target: Slot,
        unit_bytes: u32,
    ) -> Result<Plan, BeyondTolerance> {
        match self.position(target) {
            Some(member) => {
                let range = 0..self.shape.lengths[member];
                self.recover(lost, member, range, unit_bytes)
            }
            None => Err(BeyondTolerance {
                target,
                lost: vec![target],
                tolerates: 0,
            }),
        }
    }

    /// Everything that makes `len` bytes from `offset` of the part log of `target`: a plain copy,
    /// or when it is in `lost` the same as [`Self::rebuild`], for this range only.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: not a member, a range that does not lie in the part, or too much lost.
    pub fn read(
        &self,
        lost: &[Slot],
        target: Slot,
        offset: u64,
        len: u64,
        unit_bytes: u32,
    ) -> Result<Plan, ReadError> {
        let member = self.position(target).ok_or(ReadError::NotAMember(target))?;
        let part_len = self.shape.lengths[member];
        let range = match offset.checked_add(len) {
            Some(end) if end <= part_len => offset..end,
            _ => {
                return Err(ReadError::OutOfRange {
                    target,
                    offset,
                    len,
                    part_len,
                });
            }
        };
        if lost.contains(&target) {
            return Ok(self.recover(lost, member, range, unit_bytes)?);
        }
        let shape = self.shape.clone();
        Ok(Plan::new(
            shape,
            Job::Copy,
            member,
            Stream::Data,
            range,
            unit_bytes,
        ))
    }

    fn position(&self, slot: Slot) -> Option<usize> {
        self.shape.slots.iter().position(|&s| s == slot)
    }

    fn recover(
        &self,
        lost: &[Slot],
        member: usize,
        range: std::ops::Range<u64>,
        unit_bytes: u32,
    ) -> Result<Plan, BeyondTolerance> {
        let shape = self.shape.clone();
        if range.is_empty() {
            return Ok(Plan::empty(shape));
        }
        let lost: BTreeSet<Slot> = lost.iter().copied().collect();
        let gone: Vec<bool> = shape
            .slots
            .iter()
            .enumerate()
            .map(|(m, slot)| m == member || lost.contains(slot))
            .collect();
        let rows = shape
            .rebuild_rows(&gone, member, &range)
            .ok_or_else(|| BeyondTolerance {
                target: shape.slots[member],
                lost: shape
                    .slots
                    .iter()
                    .zip(&gone)
                    .filter(|(_, gone)| **gone)
                    .map(|(s, _)| *s)
                    .collect(),
                tolerates: shape.scheme.tolerates(),
            })?;
        Ok(Plan::new(
            shape,
            Job::Rebuild(rows),
            member,
            Stream::Data,
            range,
            unit_bytes,
        ))
    }
}

impl Shape {
    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    pub(super) fn slot(&self, member: usize) -> Slot {
        self.slots[member]
    }

    pub(super) fn stream_len(&self, member: usize, stream: Stream) -> u64 {
        match stream {
            Stream::Data => self.lengths[member],
            Stream::Parity => self.parity_lengths[member],
        }
    }

    /// Data and parity chunks that a band takes of each member.
    fn band_chunks(&self) -> (u64, u64) {
        let parities = self.parities as u64;
        match self.placement {
            Placement::Bare | Placement::Mirrored => (1, parities),
            Placement::Striped(_) => (self.slots.len() as u64 - parities, parities),
        }
    }

    /// Member `member + steps` of the ring.
    fn right_of(&self, member: usize, steps: usize) -> usize {
        (member + steps) % self.slots.len()
    }

    /// Steps to the right from `from` to `to`.
    fn steps(&self, from: usize, to: usize) -> usize {
        (to + self.slots.len() - from) % self.slots.len()
    }

    /// Stripes below `stripe` in which `member` keeps parity: those of `member - k + 1 ..=
    /// member`, modulo n.
    fn parity_stripes_below(&self, member: usize, stripe: usize) -> usize {
        let (n, k) = (self.slots.len(), self.parities);
        let upper = stripe.min(member + 1);
        match (member + 1).checked_sub(k) {
            Some(first) => upper.saturating_sub(first),
            None => upper + stripe.saturating_sub(n + member + 1 - k),
        }
    }

    /// The stripe of a band that holds the `index`-th parity chunk of `member`.
    fn parity_stripe(&self, member: usize, index: usize) -> usize {
        let (n, k) = (self.slots.len(), self.parities);
        match (member + 1).checked_sub(k) {
            Some(first) => first + index,
            None if index <= member => index,
            None => n - k + index,
        }
    }

    /// The stripe of a band that holds the `index`-th data chunk of `member`.
    fn data_stripe(&self, member: usize, index: usize) -> usize {
        let k = self.parities;
        match (member + 1).checked_sub(k) {
            Some(first) if index < first => index,
            Some(_) => index + k,
            None => index + member + 1,
        }
    }

    /// The data chunk of its band that `member` has in `stripe`.
    fn data_index(&self, member: usize, stripe: usize) -> u64 {
        (stripe - self.parity_stripes_below(member, stripe)) as u64
    }

    /// What parity chunk `chunk` of `owner` is made of.
    pub(super) fn parity_sources(&self, owner: usize, chunk: u64, sources: &mut Vec<Source>) {
        let (data_chunks, parity_chunks) = self.band_chunks();
        let stream = Stream::Data;
        match &self.placement {
            Placement::Bare => {}
            Placement::Mirrored => {
                let copy = (chunk % parity_chunks) as usize;
                let member = self.steps(copy + 1, self.slots.len() + owner);
                let chunk = chunk / parity_chunks;
                sources.push(Source {
                    member,
                    stream,
                    chunk,
                    coefficient: 1,
                });
            }
            Placement::Striped(code) => {
                let (band, index) = (chunk / parity_chunks, (chunk % parity_chunks) as usize);
                let stripe = self.parity_stripe(owner, index);
                let parity = self.steps(stripe, owner);
                sources.extend((0..code.data_count()).map(|shard| {
                    let member = self.right_of(stripe, self.parities + shard);
                    let chunk = band * data_chunks + self.data_index(member, stripe);
                    let coefficient = code.encode_coefficient(parity, shard);
                    Source {
                        member,
                        stream,
                        chunk,
                        coefficient,
                    }
                }));
            }
        }
    }

    /// For each stripe of a band that `range` of the part of `member` touches, how its data chunk
    /// there is made from members that are not `gone`; None when one cannot be. Chunk numbers are
    /// those of the first band.
    fn rebuild_rows(
        &self,
        gone: &[bool],
        member: usize,
        range: &std::ops::Range<u64>,
    ) -> Option<Vec<Option<Vec<Source>>>> {
        match &self.placement {
            Placement::Bare => None,
            Placement::Mirrored => {
                let copy = (0..self.parities).find(|c| !gone[self.right_of(member, c + 1)])?;
                let (stream, chunk, coefficient) = (Stream::Parity, copy as u64, 1);
                let member = self.right_of(member, copy + 1);
                Some(vec![Some(vec![Source {
                    member,
                    stream,
                    chunk,
                    coefficient,
                }])])
            }
            Placement::Striped(code) => {
                let mut rows = vec![None; self.slots.len()];
                let first = range.start / self.chunk_bytes;
                let chunks = (range.end - 1) / self.chunk_bytes - first + 1;
                let (data_chunks, _) = self.band_chunks();
                for chunk in first..first + chunks.min(data_chunks) {
                    let stripe = self.data_stripe(member, (chunk % data_chunks) as usize);
                    rows[stripe] = Some(self.rebuild_row(code, gone, member, stripe)?);
                }
                Some(rows)
            }
        }
    }

    /// How the data chunk of `member` in `stripe` of the first band is made.
    fn rebuild_row(
        &self,
        code: &Code,
        gone: &[bool],
        member: usize,
        stripe: usize,
    ) -> Option<Vec<Source>> {
        let (n, k) = (self.slots.len(), self.parities);
        // Shards of a stripe: data from member s+k on, then parity from member s on.
        let shard_of = |m: usize| (self.steps(stripe, m) + n - k) % n;
        let present: Vec<usize> = (0..n).filter(|&m| !gone[m]).map(shard_of).collect();
        let row = code.rebuild_row(&present, shard_of(member)).ok()?;
        let sources = row.into_iter().map(|(shard, coefficient)| {
            let member = self.right_of(stripe, (shard + k) % n);
            let (stream, chunk) = if shard < n - k {
                (Stream::Data, self.data_index(member, stripe))
            } else {
                (
                    Stream::Parity,
                    self.parity_stripes_below(member, stripe) as u64,
                )
            };
            Source {
                member,
                stream,
                chunk,
                coefficient,
            }
        });
        Some(sources.collect())
    }

    /// What data chunk `chunk` of lost `member` is made of, by the rows of [`Self::rebuild_rows`].
    pub(super) fn rebuild_sources(
        &self,
        rows: &[Option<Vec<Source>>],
        member: usize,
        chunk: u64,
        sources: &mut Vec<Source>,
    ) {
        let (data_chunks, parity_chunks) = self.band_chunks();
        let band = chunk / data_chunks;
        let stripe = match self.placement {
            Placement::Bare | Placement::Mirrored => 0,
            Placement::Striped(_) => self.data_stripe(member, (chunk % data_chunks) as usize),
        };
        let row = rows[stripe]
            .as_ref()
            .expect("rows are made for every stripe of the range");
        sources.extend(row.iter().map(|source| {
            let band_chunks = match source.stream {
                Stream::Data => data_chunks,
                Stream::Parity => parity_chunks,
            };
            Source {
                chunk: band * band_chunks + source.chunk,
                ..*source
            }
        }));
    }

    /// Where the parity stream of `owner` ends.
    fn parity_extent(&self, owner: usize) -> u64 {
        let (data_chunks, parity_chunks) = self.band_chunks();
        let mut end = 0;
        let mut first_band = Vec::new();
        for parity in 0..parity_chunks {
            first_band.clear();
            self.parity_sources(owner, parity, &mut first_band);
            for source in &first_band {
                // The last band in which this source has any bytes, and how many there.
                let Some(last_byte) = self.lengths[source.member].checked_sub(1) else {
                    continue;
                };
                let last_chunk = last_byte / self.chunk_bytes;
                let Some(beyond) = last_chunk.checked_sub(source.chunk) else {
                    continue;
                };
                let bytes = match beyond % data_chunks {
                    0 => last_byte % self.chunk_bytes + 1,
                    _ => self.chunk_bytes,
                };
                let chunk = beyond / data_chunks * parity_chunks + parity;
                end = end.max(chunk * self.chunk_bytes + bytes);
            }
        }
        end
    }
}
