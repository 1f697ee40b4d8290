//! Pieces of slots that nobody holds: made of the rest of their set, while the rebuild runs.
//!
//! For each piece: *waiting* for room -> *asking* who holds the set, one after the other, for the
//! checksums of the slot -> *making* by plan, which the transfer engine carries out before its other
//! work -> answered. A source that is damaged or silent is done without, as long as the scheme allows.
//!
//! Invariants: every unit that was made is held against the checksum that the slot's own node gave to
//! its set; what does not match is never answered. Buffers stay below [`MADE_BYTES_MAX`], but for one
//! piece; who asks meanwhile waits. A piece is answered once.
//!
//! What it does not do: keep anything that was made. The kernel's page cache of the reader does.

use super::{Result, Todo, Wanted};
use crate::parts::Parts;
use crate::transfer::{JobId, TransferError};
use crate::works;
use bytes::Bytes;
use scrfs::control::{Piece, Refusal};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::envelope::crc32c;
use scrfs::layout::manifest::Sums;
use scrfs::protocol::message::{Message, Metadata};
use scrfs::redundancy::{Extent, Plan, Stream};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Bytes of pieces being made at once.
const MADE_BYTES_MAX: u64 = 8 << 20;
/// Jobs of reads have numbers from here on, those of works below.
const FIRST_JOB: u64 = 1 << 63;

/// Who has what of a dataset that is not whole.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Losses {
    holders: BTreeMap<Slot, Rank>,
    lost: BTreeSet<Slot>,
}

/// Checksums of a lost slot's part log.
#[derive(Debug)]
enum Known {
    /// Asked for, of this rank; then of those left.
    Asking {
        at: Rank,
        left: VecDeque<Rank>,
    },
    Here(Arc<Sums>),
}

/// A piece that is being made.
#[derive(Debug)]
struct Making {
    ticket: u64,
    wanted: Wanted,
    /// What it must be.
    sums: Arc<Sums>,
    /// Where its first unit begins, and whole units from there.
    from: u64,
    bytes: Vec<u8>,
    /// Slots that were found damaged or silent on the way.
    without: BTreeSet<Slot>,
}

/// A read for the engine.
#[derive(Debug)]
pub(crate) struct Read {
    /// Its number.
    pub(crate) job: JobId,
    /// Of which dataset.
    pub(crate) dataset: DatasetId,
    /// What to make of what.
    pub(crate) plan: Plan,
    /// Who holds which slot.
    pub(crate) holders: BTreeMap<Slot, Rank>,
}

/// All slots that are lost, and the pieces of them under way on this node.
#[derive(Debug)]
pub(super) struct Lost {
    datasets: BTreeMap<DatasetId, Losses>,
    sums: BTreeMap<(DatasetId, Slot), Known>,
    queue: VecDeque<(u64, Wanted)>,
    making: BTreeMap<JobId, Making>,
    bytes: u64,
    bytes_max: u64,
    jobs: u64,
}

impl Default for Lost {
    fn default() -> Self {
        Self {
            datasets: BTreeMap::new(),
            sums: BTreeMap::new(),
            queue: VecDeque::new(),
            making: BTreeMap::new(),
            bytes: 0,
            bytes_max: MADE_BYTES_MAX,
            jobs: 0,
        }
    }
}

impl Lost {
    /// The leader says what is lost of a dataset, and who has the rest; nothing lost: it is whole again.
    pub(super) fn learn(
        &mut self,
        dataset: DatasetId,
        holders: BTreeMap<Slot, Rank>,
        lost: BTreeSet<Slot>,
        parts: &Parts,
        todo: &mut Todo,
    ) {
        self.sums
            .retain(|(of, slot), _| *of != dataset || lost.contains(slot));
        if lost.is_empty() {
            self.datasets.remove(&dataset);
        } else {
            self.datasets.insert(dataset, Losses { holders, lost });
        }
        self.go_on(parts, todo);
    }

    /// Whether a slot is known to be lost.
    pub(super) fn is_lost(&self, dataset: DatasetId, slot: Slot) -> bool {
        let losses = self.datasets.get(&dataset);
        losses.is_some_and(|losses| losses.lost.contains(&slot))
    }

    /// Who keeps copies of the metadata of a lost slot.
    pub(super) fn keepers(&self, wanted: &Wanted, parts: &Parts) -> Vec<Rank> {
        let losses = self.datasets.get(&wanted.dataset);
        let record = parts.record(wanted.dataset);
        let seal = record.and_then(|record| record.seal.as_ref());
        let (Some(losses), Some(seal)) = (losses, seal) else {
            return Vec::new();
        };
        let set = seal.set_of(wanted.slot).unwrap_or(&[]);
        set.iter()
            .filter_map(|member| losses.holders.get(member).copied())
            .collect()
    }

    /// Begins to make a piece of a part log.
    pub(super) fn begin(&mut self, ticket: u64, wanted: Wanted, parts: &Parts, todo: &mut Todo) {
        self.queue.push_back((ticket, wanted));
        self.go_on(parts, todo);
    }

    /// Makes what waits, as far as there is room and the checksums are known.
    fn go_on(&mut self, parts: &Parts, todo: &mut Todo) {
        let mut kept = VecDeque::new();
        while let Some((ticket, wanted)) = self.queue.pop_front() {
            let has_room = self.bytes < self.bytes_max;
            if !self.is_lost(wanted.dataset, wanted.slot) {
                // Rebuilt meanwhile: it is to be asked for anew.
                todo.made.push((ticket, Err(Refusal::Again)));
                continue;
            }
            match self.sums_of(&wanted, parts, todo) {
                Ok(Some(sums)) if has_room => self.make(ticket, wanted, sums, parts, todo),
                Ok(_) => kept.push_back((ticket, wanted)),
                Err(refusal) => todo.made.push((ticket, Err(refusal))),
            }
        }
        self.queue = kept;
    }

    /// The checksums of the slot; `None` while they are on their way.
    fn sums_of(
        &mut self,
        wanted: &Wanted,
        parts: &Parts,
        todo: &mut Todo,
    ) -> Result<Option<Arc<Sums>>> {
        let Wanted { dataset, slot, .. } = *wanted;
        match self.sums.get(&(dataset, slot)) {
            Some(Known::Here(sums)) => return Ok(Some(Arc::clone(sums))),
            Some(Known::Asking { .. }) => return Ok(None),
            None => {}
        }
        let copy = parts.copy(dataset, slot, Stream::Data);
        if let Some(sums) = copy.filter(|sums| sums.is_complete()) {
            let known = Known::Here(Arc::clone(&sums));
            self.sums.insert((dataset, slot), known);
            return Ok(Some(sums));
        }
        let left = self.keepers(wanted, parts).into();
        self.ask(dataset, slot, left, todo).map(|()| None)
    }

    /// Asks the next rank for metadata.
    fn ask(
        &mut self,
        dataset: DatasetId,
        slot: Slot,
        mut left: VecDeque<Rank>,
        todo: &mut Todo,
    ) -> Result<()> {
        let Some(at) = left.pop_front() else {
            tracing::error!(%dataset, %slot, "nobody has its checksums: it cannot be read");
            self.sums.remove(&(dataset, slot));
            return Err(Refusal::Failed);
        };
        todo.messages
            .push((at, Message::WantMetadata { dataset, slot }));
        self.sums
            .insert((dataset, slot), Known::Asking { at, left });
        Ok(())
    }

    /// A peer says what it knows of a slot.
    pub(super) fn told(
        &mut self,
        from: Rank,
        (dataset, slot): (DatasetId, Slot),
        metadata: Option<&Metadata>,
        parts: &Parts,
        todo: &mut Todo,
    ) {
        let Some(Known::Asking { at, left }) = self.sums.get(&(dataset, slot)) else {
            return;
        };
        if *at != from {
            return;
        }
        let left = left.clone();
        let record = parts.record(dataset);
        let given = metadata.filter(|given| (given.dataset, given.slot) == (dataset, slot));
        let sums = record
            .zip(given)
            .and_then(|(record, given)| works::data_sums(record, given))
            .filter(Sums::is_complete);
        match sums {
            Some(sums) => {
                self.sums
                    .insert((dataset, slot), Known::Here(Arc::new(sums)));
            }
            None => {
                if let Err(refusal) = self.ask(dataset, slot, left, todo) {
                    let is_it = |wanted: &Wanted| (wanted.dataset, wanted.slot) == (dataset, slot);
                    let (gone, kept) = std::mem::take(&mut self.queue)
                        .into_iter()
                        .partition(|(_, wanted)| is_it(wanted));
                    self.queue = kept;
                    let gone: VecDeque<(u64, Wanted)> = gone;
                    let refused = gone.into_iter().map(|(ticket, _)| (ticket, Err(refusal)));
                    todo.made.extend(refused);
                }
            }
        }
        self.go_on(parts, todo);
    }

    fn make(
        &mut self,
        ticket: u64,
        wanted: Wanted,
        sums: Arc<Sums>,
        parts: &Parts,
        todo: &mut Todo,
    ) {
        let Piece::Log { offset, len } = wanted.piece else {
            return todo.made.push((ticket, Err(Refusal::Failed)));
        };
        let unit = u64::from(sums.unit_bytes).max(1);
        let from = offset / unit * unit;
        let end = (offset + u64::from(len))
            .next_multiple_of(unit)
            .min(sums.stream_bytes);
        let making = Making {
            ticket,
            wanted,
            sums,
            from,
            bytes: vec![0; usize::try_from(end.saturating_sub(from)).unwrap_or(0)],
            without: BTreeSet::new(),
        };
        self.bytes += making.bytes.len() as u64;
        self.start(making, parts, todo);
    }

    /// Has the engine make it of what is left; the answer when too little is.
    fn start(&mut self, making: Making, parts: &Parts, todo: &mut Todo) {
        let Wanted { dataset, slot, .. } = making.wanted;
        let plan = self.plan(&making, parts);
        match plan {
            Ok((plan, holders)) => {
                self.jobs += 1;
                let job = JobId(FIRST_JOB + self.jobs);
                self.making.insert(job, making);
                todo.reads.push(Read {
                    job,
                    dataset,
                    plan,
                    holders,
                });
            }
            Err(why) => {
                tracing::error!(%dataset, %slot, offset = making.from, why, "cannot be read");
                self.end(making, Err(Refusal::Failed), todo);
            }
        }
    }

    fn plan(
        &self,
        making: &Making,
        parts: &Parts,
    ) -> std::result::Result<(Plan, BTreeMap<Slot, Rank>), String> {
        let Wanted { dataset, slot, .. } = making.wanted;
        let losses = self.datasets.get(&dataset);
        let losses = losses.ok_or("nothing is lost of it any more")?;
        let record = parts.record(dataset);
        let seal = record.and_then(|record| record.seal.as_ref());
        let seal = seal.ok_or("it is not sealed")?;
        let geometry = seal.geometry_of(slot).map_err(|error| error.to_string())?;
        let gone: Vec<Slot> = losses.lost.union(&making.without).copied().collect();
        let len = making.bytes.len() as u64;
        let plan = geometry
            .read(&gone, slot, making.from, len, seal.unit_bytes)
            .map_err(|error| error.to_string())?;
        Ok((plan, losses.holders.clone()))
    }

    fn end(&mut self, making: Making, result: Result<()>, todo: &mut Todo) {
        self.bytes = self.bytes.saturating_sub(making.bytes.len() as u64);
        let Making {
            ticket,
            wanted,
            from,
            bytes,
            ..
        } = making;
        let cut = result.and_then(|()| match wanted.piece {
            Piece::Log { offset, len } => {
                let start = (offset - from) as usize;
                let bytes = Bytes::from(bytes);
                let end = start.saturating_add(len as usize);
                (end <= bytes.len())
                    .then(|| bytes.slice(start..end))
                    .ok_or(Refusal::Failed)
            }
            Piece::Manifest => Err(Refusal::Failed),
        });
        todo.made.push((ticket, cut));
    }

    /// The engine has made some bytes of a read.
    pub(super) fn made(
        &mut self,
        job: JobId,
        extent: Extent,
        bytes: &[u8],
        parts: &Parts,
        todo: &mut Todo,
    ) {
        let Some(making) = self.making.get_mut(&job) else {
            return;
        };
        let Wanted { dataset, slot, .. } = making.wanted;
        let unit = making.sums.unit_at(extent.offset, extent.len);
        let unit = unit.and_then(|unit| making.sums.crcs.get(unit).copied().flatten());
        let found = crc32c(bytes);
        let place = extent
            .offset
            .checked_sub(making.from)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| making.bytes.get_mut(at..at.checked_add(bytes.len())?));
        match (unit, place) {
            (Some(expected), Some(place)) if expected == found => place.copy_from_slice(bytes),
            (expected, _) => {
                let offset = extent.offset;
                tracing::error!(
                    %dataset, %slot, offset, ?expected, found,
                    "what was made of the others is not what was lost: it is not served"
                );
                todo.cancelled.push(job);
                if let Some(making) = self.making.remove(&job) {
                    self.end(making, Err(Refusal::Failed), todo);
                }
                self.go_on(parts, todo);
            }
        }
    }

    /// A read has ended in the engine.
    pub(super) fn ended(
        &mut self,
        job: JobId,
        result: std::result::Result<(), TransferError>,
        parts: &Parts,
        todo: &mut Todo,
    ) {
        let Some(mut making) = self.making.remove(&job) else {
            return;
        };
        let Wanted { dataset, slot, .. } = making.wanted;
        match result {
            Ok(()) => self.end(making, Ok(()), todo),
            Err(error) => match error.spoilt() {
                Some(source) if source != slot && making.without.insert(source) => {
                    tracing::warn!(%dataset, %slot, %error, "making it without {source}");
                    self.start(making, parts, todo);
                }
                _ => {
                    tracing::error!(%dataset, %slot, offset = making.from, %error, "cannot be read");
                    self.end(making, Err(Refusal::Failed), todo);
                }
            },
        }
        self.go_on(parts, todo);
    }

    /// Whether a job of the engine is one of these.
    pub(super) fn owns(job: JobId) -> bool {
        job.0 >= FIRST_JOB
    }

    /// Another bound of memory.
    #[cfg(test)]
    pub(super) fn limit(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// Bytes of pieces being made.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
