//! The transfer engine: carries out redundancy plans, the one hot loop of scrfs.
//!
//! A job makes bytes of this node: parity, a lost part, a range to read. For each combination of
//! its plan the engine *pulls* the units it is made of from the nodes that hold them, within a
//! window; when the last is in, one fused pass makes the destination, and the store writes it or,
//! of a read, it is handed out. Reads go before all other jobs: somebody waits for them. Any
//! order, no lock step. Answering others is stateless: the same request gets the same answer, also
//! again, and a node that only answers needs no job.
//!
//! It does no I/O by itself: bytes go through a [`PartStore`], messages through `poll_send` and
//! `handle`, all on [`Lane::Data`](scrfs::fabric::Lane), in order for each peer; time is an
//! argument. Payloads are handed on as they are, never copied: out from what the store gave, in as
//! the slice the fabric gave.
//!
//! Invariants:
//!
//! - No byte is used unless its crc32c was verified: against its sender's (damage on the way, asked
//!   for again a few times) and against the one on record, where there is one (damage at rest, the
//!   job fails: repairing it is another plan).
//! - Nothing from the wire is believed that was not asked for, in these words, of that rank.
//! - Units in flight or gathered stay below [`Limits::window_bytes`], but for one combination;
//!   units handed to the fabric below [`Limits::serve_bytes`], but for one.
//! - Every job ends: `Done`, `Failed`, or cancelled. A source silent for [`Limits::silence`] fails
//!   the jobs that wait for it.
//!
//! It deliberately knows nothing of sets, files, epochs or the protocol: messages of another epoch
//! do not reach it, since its fabric lives for one.

mod error;
mod job;
pub(crate) mod source;
mod wire;

pub use error::TransferError;
pub use job::{JobEvent, JobId, Limits};
pub use wire::{Reason, WireError};

use bytes::Bytes;
use job::HandOut;
use scrfs::codec;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::envelope::crc32c;
use scrfs::redundancy::{Combination, Extent, Term};
use source::{Owed, Source, read_verified};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};
use wire::{Message, REQUEST_UNITS_MAX};

/// The longest unit that is served; plans use far shorter ones.
pub const UNIT_BYTES_MAX: u32 = 64 << 20;

/// Destination bytes made from local sources alone before the engine lets messages pass.
const LOCAL_STRETCH_BYTES: u64 = 16 << 20;

/// Destination bytes between two `Progress` events of a job.
const PROGRESS_BYTES: u64 = 64 << 20;

/// While the fabric still holds all it may, how soon to look again.
const SERVE_AGAIN: Duration = Duration::from_micros(500);

/// Where extents are read and written: the parts and parities this node keeps.
pub trait PartStore {
    /// The bytes of an extent this node holds, exactly `extent.len` of them; they must not change
    /// while the result lives. `Missing` when it does not hold them.
    fn read(&self, dataset: DatasetId, extent: Extent) -> Result<Bytes, TransferError>;

    /// Keeps what a job made, `crc` being the crc32c of `bytes`.
    fn write(
        &mut self,
        dataset: DatasetId,
        extent: Extent,
        bytes: &[u8],
        crc: u32,
    ) -> Result<(), TransferError>;

    /// What a job is about to make `destination` of: extents and their crc32c.
    fn made_of(&mut self, dataset: DatasetId, destination: Extent, sources: &[(Extent, u32)]) {
        let _ = (dataset, destination, sources);
    }

    /// The crc32c on record for exactly this extent, of this node or another.
    fn expected_crc(&self, dataset: DatasetId, extent: Extent) -> Option<u32>;

    /// An extent of this node was read, for itself or another, and had no crc32c on record.
    fn served(&mut self, dataset: DatasetId, extent: Extent, crc: u32);

    /// An extent of this node was read and is not what its crc32c on record says.
    fn damaged(&mut self, dataset: DatasetId, extent: Extent);
}

/// Carries out this node's jobs and answers those of others.
pub struct Engine {
    me: Rank,
    limits: Limits,
    jobs: BTreeMap<JobId, Job>,
    /// The job that opened a combination last: the next one's turn is after it.
    turn: JobId,
    /// Units asked for and not yet in, by number. Numbers are never used again.
    pending: HashMap<u64, Pending>,
    units: u64,
    /// Bytes of remote units of all open combinations.
    window: u64,
    /// Units to be asked for; those no longer pending are skipped.
    wanted: BTreeMap<Rank, Vec<u64>>,
    /// Announced units whose payload is the next message of that rank.
    announced: HashMap<Rank, Announced>,
    /// When something useful last came from a rank.
    heard: HashMap<Rank, Instant>,
    /// What is owed to others.
    source: Source,
    /// Made and not yet polled; a unit and its payload stay together.
    outbox: VecDeque<(Rank, Bytes)>,
    events: VecDeque<JobEvent>,
    /// When `tick` has something to look at; `None` while nothing is pending.
    check_at: Option<Instant>,
    /// Local work was cut short to let messages pass.
    hungry: bool,
    /// Where destinations are made.
    scratch: Vec<u8>,
}

struct Job {
    dataset: DatasetId,
    plan: Box<dyn Iterator<Item = Combination> + Send>,
    /// Drawn from the plan, waiting for room in the window.
    next: Option<Combination>,
    exhausted: bool,
    /// What it makes is handed out and not written; it goes before others.
    reads: bool,
    holders: BTreeMap<Slot, Rank>,
    /// Combinations that wait for units, by a number of their own.
    open: HashMap<u64, Gathering>,
    opened: u64,
    bytes: u64,
    reported: u64,
}

/// A combination on its way.
struct Gathering {
    destination: Extent,
    terms: Vec<Term>,
    /// For each term its bytes once they are in, and their crc32c; a local source is read last.
    units: Vec<Option<(Bytes, u32)>>,
    /// Terms that are remote and not in.
    missing: usize,
    /// Its share of the window.
    bytes: u64,
}

struct Pending {
    job: JobId,
    gathering: u64,
    term: usize,
    dataset: DatasetId,
    extent: Extent,
    from: Rank,
    first_asked: Instant,
    asked: Instant,
    attempts: u32,
}

struct Announced {
    unit: u64,
    crc: u32,
    /// Whether the announcement matched something pending.
    believed: bool,
}

impl Engine {
    /// An engine of rank `me` with nothing to do.
    pub fn new(me: Rank, limits: Limits) -> Self {
        Self {
            me,
            limits,
            jobs: BTreeMap::new(),
            turn: JobId(0),
            pending: HashMap::new(),
            units: 0,
            window: 0,
            wanted: BTreeMap::new(),
            announced: HashMap::new(),
            heard: HashMap::new(),
            source: Source::new(me, limits.serve_bytes),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            check_at: None,
            hungry: false,
            scratch: Vec::new(),
        }
    }

    /// Begins to carry out `plan`. `holders` says which rank keeps the streams of which slot; a
    /// slot held by this rank is read from its own store. A running job of that number is
    /// cancelled first.
    pub fn start(
        &mut self,
        job: JobId,
        dataset: DatasetId,
        plan: Box<dyn Iterator<Item = Combination> + Send>,
        holders: BTreeMap<Slot, Rank>,
    ) {
        self.begin(job, dataset, plan, holders, false);
    }

    /// As [`Self::start`], but what is made comes as [`JobEvent::Made`], in any order, and before
    /// what other jobs make.
    pub fn read(
        &mut self,
        job: JobId,
        dataset: DatasetId,
        plan: Box<dyn Iterator<Item = Combination> + Send>,
        holders: BTreeMap<Slot, Rank>,
    ) {
        self.begin(job, dataset, plan, holders, true);
    }

    fn begin(
        &mut self,
        job: JobId,
        dataset: DatasetId,
        plan: Box<dyn Iterator<Item = Combination> + Send>,
        holders: BTreeMap<Slot, Rank>,
        reads: bool,
    ) {
        self.cancel(job);
        let state = Job {
            dataset,
            plan,
            next: None,
            exhausted: false,
            reads,
            holders,
            open: HashMap::new(),
            opened: 0,
            bytes: 0,
            reported: 0,
        };
        self.jobs.insert(job, state);
        self.hungry = true;
    }

    /// Forgets a job, without an event. What comes for it later is dropped.
    pub fn cancel(&mut self, job: JobId) {
        if let Some(gone) = self.jobs.remove(&job) {
            self.window -= gone.open.values().map(|g| g.bytes).sum::<u64>();
            self.pending.retain(|_, pending| pending.job != job);
        }
    }

    /// Takes a message of the data lane from `from`. An error means that it was dropped; the
    /// engine goes on, and what depended on the message is asked for again in time.
    pub fn handle(
        &mut self,
        now: Instant,
        from: Rank,
        bytes: Bytes,
        store: &mut dyn PartStore,
    ) -> Result<(), WireError> {
        if let Some(announced) = self.announced.remove(&from) {
            return self.handle_payload(now, from, announced, bytes, store);
        }
        match Message::decode(&bytes)? {
            Message::Request {
                job,
                dataset,
                units,
            } => {
                for (unit, extent) in units {
                    let owed = Owed {
                        to: from,
                        job,
                        dataset,
                        unit,
                        extent,
                    };
                    self.outbox.extend(self.source.ask(owed));
                }
                Ok(())
            }
            Message::Unit {
                job,
                unit,
                extent,
                crc,
            } => {
                let believed = self.awaits(from, job, unit, extent);
                self.announced.insert(
                    from,
                    Announced {
                        unit,
                        crc,
                        believed,
                    },
                );
                if believed {
                    Ok(())
                } else {
                    Err(WireError::NotAwaited { job, unit })
                }
            }
            Message::Refused {
                job,
                unit,
                extent,
                reason,
            } => {
                if !self.awaits(from, job, unit, extent) {
                    return Err(WireError::NotAwaited { job, unit });
                }
                self.heard.insert(from, now);
                if let Some(Pending { dataset, .. }) = self.pending.get(&unit) {
                    let dataset = *dataset;
                    let error = TransferError::Refused {
                        dataset,
                        extent,
                        from,
                        reason,
                    };
                    match reason {
                        Reason::Busy => self.ask_again(now, unit, error),
                        _ => self.fail(job, error),
                    }
                }
                Ok(())
            }
        }
    }

    /// The next message for the data lane. Calls it until `None` whenever anything happened: it
    /// is also where jobs move on.
    pub fn poll_send(&mut self, now: Instant, store: &mut dyn PartStore) -> Option<(Rank, Bytes)> {
        loop {
            if let Some(message) = self.outbox.pop_front() {
                return Some(message);
            }
            self.pump(now, store);
            if !self.ask() && !self.source.answer(store, &mut self.outbox) {
                return None;
            }
        }
    }

    /// What became of jobs, in the order in which it happened.
    pub fn poll_event(&mut self) -> Option<JobEvent> {
        self.events.pop_front()
    }

    /// Looks for sources that are silent and units that were lost.
    pub fn tick(&mut self, now: Instant) {
        if self.check_at.is_none_or(|at| now < at) {
            return;
        }
        let (silence, lapse) = (self.limits.silence, self.lapse());
        let late = |p: &Pending| now.saturating_duration_since(p.asked) >= lapse;
        let mut overdue: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, p)| late(p))
            .map(|(&unit, _)| unit)
            .collect();
        overdue.sort_unstable();
        for unit in overdue {
            // Gone when its job failed for an earlier one.
            let Some(pending) = self.pending.get(&unit) else {
                continue;
            };
            let Pending {
                job,
                dataset,
                extent,
                from,
                first_asked,
                ..
            } = *pending;
            let waited = now.saturating_duration_since(first_asked);
            let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            let error = TransferError::Silent {
                dataset,
                extent,
                from,
                waited_ms,
            };
            let since = self
                .heard
                .get(&from)
                .map_or(first_asked, |&heard| heard.max(first_asked));
            if now.saturating_duration_since(since) >= silence {
                self.fail(job, error);
            } else {
                // Lost, or slow: asking twice is harmless.
                self.ask_again(now, unit, error);
            }
        }
        self.check_at = self.pending.values().map(|p| p.asked + lapse).min();
    }

    /// How long after it was asked for a unit is taken for lost.
    fn lapse(&self) -> Duration {
        self.limits.silence / self.limits.attempts.max(1)
    }

    /// When to call `poll_send`, `poll_event` and `tick` again although nothing has arrived.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let events = !self.events.is_empty();
        if self.hungry || events || !self.outbox.is_empty() || self.asks_wait() {
            return Some(now);
        }
        let again = self.source.owes().then(|| now + SERVE_AGAIN);
        [again, self.check_at].into_iter().flatten().min()
    }

    /// Whether anything is left to do: jobs to carry out, or answers owed to others.
    pub fn has_work(&self) -> bool {
        !self.jobs.is_empty() || self.source.owes() || !self.outbox.is_empty()
    }

    /// Bytes of units that are in flight or gathered: the part of the window in use.
    pub fn window_bytes(&self) -> u64 {
        self.window
    }

    /// Bytes of units lent to the fabric for others.
    pub fn lent_bytes(&self) -> u64 {
        self.source.lent_bytes()
    }

    fn asks_wait(&self) -> bool {
        self.wanted.values().any(|units| !units.is_empty())
    }

    fn awaits(&self, from: Rank, job: JobId, unit: u64, extent: Extent) -> bool {
        self.pending
            .get(&unit)
            .is_some_and(|p| (p.from, p.job, p.extent) == (from, job, extent))
    }

    fn handle_payload(
        &mut self,
        now: Instant,
        from: Rank,
        announced: Announced,
        bytes: Bytes,
        store: &mut dyn PartStore,
    ) -> Result<(), WireError> {
        let Announced {
            unit,
            crc,
            believed,
        } = announced;
        let pending = self
            .pending
            .get(&unit)
            .filter(|p| believed && p.from == from);
        // Nothing to say when it is missing: its announcement has been reported, or its job ended.
        let Some(pending) = pending else {
            return Ok(());
        };
        let Pending {
            job,
            dataset,
            extent,
            gathering,
            term,
            ..
        } = *pending;
        self.heard.insert(from, now);
        if bytes.len() != extent.len as usize {
            let error = TransferError::Length {
                dataset,
                extent,
                from,
                found: bytes.len(),
            };
            self.ask_again(now, unit, error);
            return Ok(());
        }
        let found = crc32c(&bytes);
        if found != crc {
            let error = TransferError::Checksum {
                dataset,
                extent,
                from,
                expected: crc,
                found,
            };
            self.ask_again(now, unit, error);
            return Ok(());
        }
        if let Some(expected) = store.expected_crc(dataset, extent).filter(|&e| e != found) {
            let error = TransferError::Checksum {
                dataset,
                extent,
                from,
                expected,
                found,
            };
            self.fail(job, error);
            return Ok(());
        }
        self.pending.remove(&unit);
        if self.pending.is_empty() {
            self.check_at = None;
        }
        let open = self.jobs.get_mut(&job).map(|j| &mut j.open);
        let Some(open) = open else { return Ok(()) };
        if let Some(gathered) = open.get_mut(&gathering) {
            gathered.units[term] = Some((bytes, found));
            gathered.missing -= 1;
            if gathered.missing == 0
                && let Some(complete) = open.remove(&gathering)
            {
                self.combine(job, complete, store);
            }
        }
        Ok(())
    }

    /// Asks for a unit once more, or fails its job with `error` when that was tried enough.
    fn ask_again(&mut self, now: Instant, unit: u64, error: TransferError) {
        let Some(pending) = self.pending.get_mut(&unit) else {
            return;
        };
        if pending.attempts >= self.limits.attempts {
            let job = pending.job;
            self.fail(job, error);
            return;
        }
        tracing::warn!(%error, attempt = pending.attempts, "asking for a unit again");
        pending.attempts += 1;
        pending.asked = now;
        self.wanted.entry(pending.from).or_default().push(unit);
    }

    fn fail(&mut self, job: JobId, error: TransferError) {
        if self.jobs.contains_key(&job) {
            self.cancel(job);
            self.events.push_back(JobEvent::Failed { job, error });
        }
    }

    /// Opens combinations, jobs in turn, while the window has room.
    fn pump(&mut self, now: Instant, store: &mut dyn PartStore) {
        self.hungry = false;
        // Not at the first free byte: so that requests name several units each.
        let hurries = self.jobs.values().any(|job| job.reads && !job.exhausted);
        if self.window > self.limits.window_bytes / 4 * 3 && !hurries {
            return;
        }
        let mut stretch = 0;
        while stretch < LOCAL_STRETCH_BYTES {
            let after = (
                std::ops::Bound::Excluded(self.turn),
                std::ops::Bound::Unbounded,
            );
            let ready = |(_, job): &(&JobId, &Job)| !job.exhausted;
            let mut turns = self.jobs.range(after).chain(self.jobs.range(..=self.turn));
            let first = turns.clone().find(|turn| ready(turn) && turn.1.reads);
            let Some(id) = first.or_else(|| turns.find(ready)).map(|(&id, _)| id) else {
                return;
            };
            self.turn = id;
            let Some(job) = self.jobs.get_mut(&id) else {
                return;
            };
            let Some(combination) = job.next.take().or_else(|| job.plan.next()) else {
                job.exhausted = true;
                self.finish_if_done(id);
                continue;
            };
            let bytes: u64 = combination
                .terms
                .iter()
                .filter(|term| job.holders.get(&term.source.slot) != Some(&self.me))
                .map(|term| u64::from(term.source.len))
                .sum();
            if self.window > 0 && self.window + bytes > self.limits.window_bytes {
                job.next = Some(combination);
                return;
            }
            stretch += u64::from(combination.destination.len);
            self.open(now, id, combination, bytes, store);
        }
        self.hungry = true;
    }

    /// Wants the remote units of a combination of which `bytes` are remote; makes it at once when
    /// there are none.
    fn open(
        &mut self,
        now: Instant,
        id: JobId,
        combination: Combination,
        bytes: u64,
        store: &mut dyn PartStore,
    ) {
        let Combination { destination, terms } = combination;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let dataset = job.dataset;
        let broken = |t: &Term| t.source.len == 0 || t.source.len > destination.len;
        if destination.len == 0 || terms.iter().any(broken) {
            return self.fail(
                id,
                TransferError::BrokenPlan {
                    dataset,
                    extent: destination,
                },
            );
        }
        let gathering = job.opened;
        job.opened += 1;
        let mut missing = 0;
        for (index, term) in terms.iter().enumerate() {
            let extent = term.source;
            match job.holders.get(&extent.slot) {
                Some(&from) if from == self.me => {}
                Some(&from) => {
                    let unit = self.units;
                    self.units += 1;
                    missing += 1;
                    let pending = Pending {
                        job: id,
                        gathering,
                        term: index,
                        dataset,
                        extent,
                        from,
                        first_asked: now,
                        asked: now,
                        attempts: 1,
                    };
                    self.pending.insert(unit, pending);
                    self.wanted.entry(from).or_default().push(unit);
                }
                None => return self.fail(id, TransferError::NoHolder { dataset, extent }),
            }
        }
        let units = vec![None; terms.len()];
        let gathered = Gathering {
            destination,
            terms,
            units,
            missing,
            bytes,
        };
        self.window += bytes;
        if missing == 0 {
            self.combine(id, gathered, store);
        } else {
            job.open.insert(gathering, gathered);
            let lapse = self.lapse();
            self.check_at.get_or_insert(now + lapse);
        }
    }

    /// Makes the destination of a combination whose remote units are in.
    fn combine(&mut self, id: JobId, gathered: Gathering, store: &mut dyn PartStore) {
        self.window -= gathered.bytes;
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let (dataset, reads) = (job.dataset, job.reads);
        let mut handed = HandOut { store, made: None };
        let store: &mut dyn PartStore = if reads { &mut handed } else { handed.store };
        let made = make(self.me, dataset, &gathered, &mut scratch, store);
        self.scratch = scratch;
        if let Err(error) = made {
            return self.fail(id, error);
        }
        if let Some((extent, bytes)) = handed.made {
            self.events.push_back(JobEvent::Made {
                job: id,
                extent,
                bytes,
            });
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.bytes += u64::from(gathered.destination.len);
        if job.bytes - job.reported >= PROGRESS_BYTES {
            job.reported = job.bytes;
            self.events.push_back(JobEvent::Progress {
                job: id,
                bytes: job.bytes,
            });
        }
        self.finish_if_done(id);
    }

    fn finish_if_done(&mut self, id: JobId) {
        let done = |job: &Job| job.exhausted && job.open.is_empty();
        if let Some(bytes) = self
            .jobs
            .get(&id)
            .filter(|job| done(job))
            .map(|job| job.bytes)
        {
            self.jobs.remove(&id);
            self.events.push_back(JobEvent::Done { job: id, bytes });
        }
    }

    /// Puts one request into the outbox; false when there is nothing to ask for.
    fn ask(&mut self) -> bool {
        while let Some(mut entry) = self.wanted.first_entry() {
            let (to, units) = (*entry.key(), entry.get_mut());
            // Units of one request are of one job; mostly all are.
            let mut asked = Vec::new();
            let mut key = None;
            let mut rest = Vec::new();
            for unit in units.drain(..) {
                let Some(pending) = self.pending.get(&unit) else {
                    continue;
                };
                let own = (pending.job, pending.dataset);
                if asked.len() < REQUEST_UNITS_MAX && *key.get_or_insert(own) == own {
                    asked.push((unit, pending.extent));
                } else {
                    rest.push(unit);
                }
            }
            if rest.is_empty() {
                entry.remove();
            } else {
                *units = rest;
            }
            if let Some((job, dataset)) = key {
                let request = Message::Request {
                    job,
                    dataset,
                    units: asked,
                };
                self.outbox.push_back((to, request.encode().into()));
                return true;
            }
        }
        false
    }
}

/// Reads the local sources, makes the destination in one pass, and writes it.
fn make(
    me: Rank,
    dataset: DatasetId,
    gathered: &Gathering,
    scratch: &mut Vec<u8>,
    store: &mut dyn PartStore,
) -> Result<(), TransferError> {
    let Gathering {
        destination, terms, ..
    } = gathered;
    let mut sources = Vec::with_capacity(terms.len());
    for (term, unit) in terms.iter().zip(&gathered.units) {
        sources.push(match unit {
            Some(verified) => verified.clone(),
            None => read_verified(me, dataset, term.source, store)?,
        });
    }
    let made_of: Vec<(Extent, u32)> = terms
        .iter()
        .zip(&sources)
        .map(|(term, (_, crc))| (term.source, *crc))
        .collect();
    store.made_of(dataset, *destination, &made_of);
    if let (
        [
            Term {
                coefficient: 1,
                source,
            },
        ],
        [(bytes, crc)],
    ) = (&terms[..], &sources[..])
        && source.len == destination.len
    {
        return store.write(dataset, *destination, bytes, *crc);
    }
    let length = destination.len as usize;
    if scratch.len() < length {
        scratch.resize(length, 0);
    }
    let made = &mut scratch[..length];
    let sources: Vec<&[u8]> = sources.iter().map(|(bytes, _)| &bytes[..]).collect();
    let row: Vec<u8> = terms.iter().map(|term| term.coefficient).collect();
    codec::combine(&mut [&mut *made], &[&row], &sources);
    store.write(dataset, *destination, made, crc32c(made))
}

#[cfg(test)]
mod tests;
