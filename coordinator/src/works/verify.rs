//! Verify: what this node keeps of a dataset, held against its checksums and put right.
//!
//! Of the files: *survey* of the record, of manifests and checksums, own ones and copies -> *asking* peers
//! for those that are damaged -> for each slot *looking* over its files -> *mending* what is damaged, unit by
//! unit, made by plan of the rest of the set -> what cannot be made, from the prefix -> done. Of the parity
//! the same without the beginning; of the prefix, looking and mending from this node's files.
//!
//! Invariants: nothing is written but what matches the checksum of what was stored; a source that is
//! damaged is done without, as long as the scheme allows; one unit a slot is in memory at once. That
//! something is damaged is no failure: it is told. Stopped at any moment, it has done no harm.

mod survey;

use super::{Context, Jobs, Turn, check, keep, seal_of};
use crate::effects::chain;
use crate::part::{Leisure, Looked, Part};
use crate::target::Target;
use crate::tasks::Event;
use crate::transfer::{JobId, TransferError};
use crate::works::TaskEnd;
use bytes::Bytes;
use scrfs::control::{Activity, Refusal};
use scrfs::findings::{Findings, Kept, Problem};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::path::Keep;
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::message::{Checking, Failure, Message, Metadata};
use scrfs::protocol::step::Outcome;
use scrfs::redundancy::{Extent, Stream};
use scrfs::store::posix::PosixStore;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use survey::Damaged;

/// What a step on another thread leaves for its end.
type Left<T> = Arc<Mutex<Option<T>>>;

fn left<T>() -> (Left<T>, Left<T>) {
    let left: Left<T> = Arc::default();
    (Arc::clone(&left), left)
}

fn put<T>(into: &Left<T>, value: T) {
    *crate::part::lock(into) = Some(value);
}

fn take<T>(from: &Left<T>) -> Option<T> {
    crate::part::lock(from).take()
}

/// A record of a slot that is asked for of peers.
#[derive(Debug)]
struct Asking {
    damaged: Damaged,
    at: Rank,
    left: VecDeque<Rank>,
}

/// Units of a slot that are being put right.
#[derive(Debug)]
struct Mending {
    part: Arc<Part>,
    queue: VecDeque<(usize, String)>,
    /// The one whose turn it is, its job, and what it is made without.
    at: Option<(usize, String)>,
    job: Option<JobId>,
    without: BTreeSet<Slot>,
    /// What could not be made of the set.
    left: Vec<(usize, String)>,
    /// What was left was looked for in the prefix.
    asked_prefix: bool,
    /// How the last one was written, or how the prefix served what was left.
    written: Left<Vec<(usize, String, bool)>>,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    /// Until it has been read: the part, what was found of it; or why it cannot be read at all.
    Looking(Left<Result<(Arc<Part>, Looked), String>>),
    Mending(Box<Mending>),
    Writing(Box<Mending>),
    Prefix(Left<Findings>),
    Done,
}

/// One order to verify.
#[derive(Debug)]
pub(super) struct Verify {
    record: DatasetRecord,
    what: Checking,
    holders: BTreeMap<Slot, Rank>,
    lost: BTreeSet<Slot>,
    survey: Option<Left<Vec<Damaged>>>,
    asking: Vec<Asking>,
    slots: BTreeMap<Slot, Stage>,
    findings: Findings,
    leisure: Leisure,
}

impl Drop for Verify {
    fn drop(&mut self) {
        self.leisure.stop();
    }
}

impl Verify {
    /// Begins to verify what this node keeps.
    pub(super) fn begin(
        me: Rank,
        ticket: u64,
        dataset: DatasetId,
        (holders, lost): (&[(Slot, Rank)], &[Slot]),
        what: Checking,
        context: &mut Context<'_>,
    ) -> Result<Self, Failure> {
        let record = context.record(dataset)?;
        let seal = seal_of(&record)?;
        let holders: BTreeMap<Slot, Rank> = holders.iter().copied().collect();
        let mine = holders.iter().filter(|(_, rank)| **rank == me);
        let slots: BTreeMap<Slot, Stage> = mine.map(|(slot, _)| (*slot, Stage::Waiting)).collect();
        let mut verify = Self {
            survey: None,
            asking: Vec::new(),
            findings: Findings::default(),
            leisure: Leisure::default(),
            lost: lost.iter().copied().collect(),
            what,
            holders,
            slots,
            record: record.clone(),
        };
        if what == Checking::Files {
            let guarded = record.protected.is_some();
            let sets = seal.sets.iter().filter(|_| guarded);
            let near = sets.filter(|set| set.iter().any(|slot| verify.slots.contains_key(slot)));
            let copies: BTreeSet<Slot> = near
                .flatten()
                .filter(|slot| verify.holders.get(slot).is_some_and(|rank| *rank != me))
                .copied()
                .collect();
            let own = verify.slots.keys().copied().collect();
            verify.survey(me, ticket, own, copies, context);
        } else {
            verify.look(ticket, context);
        }
        Ok(verify)
    }

    pub(super) fn what(&self) -> (DatasetId, Activity) {
        (self.record.id, Activity::Verify)
    }

    pub(super) fn is_done(&self) -> bool {
        let done = |stage: &Stage| matches!(stage, Stage::Done);
        self.survey.is_none() && self.asking.is_empty() && self.slots.values().all(done)
    }

    /// What was found; nothing of it is left.
    pub(super) fn take_findings(&mut self) -> Findings {
        std::mem::take(&mut self.findings)
    }

    fn stream(&self) -> Stream {
        match self.what {
            Checking::Files | Checking::Prefix => Stream::Data,
            Checking::Parity => Stream::Parity,
        }
    }

    fn kept(&self) -> Kept {
        match self.what {
            Checking::Files => Kept::Data,
            Checking::Parity => Kept::Parity,
            Checking::Prefix => Kept::Prefix,
        }
    }

    /// Looks at the records, on another thread.
    fn survey(
        &mut self,
        me: Rank,
        ticket: u64,
        own: Vec<Slot>,
        copies: BTreeSet<Slot>,
        context: &mut Context<'_>,
    ) {
        self.mend_record(context);
        let (result, ours) = left();
        self.survey = Some(ours);
        let (paths, record) = (context.parts.paths().clone(), self.record.clone());
        context.spawn(ticket, Slot(me.0), move || {
            put(&result, survey::damaged(&paths, &record, &own, &copies));
            Ok(None)
        });
    }

    /// The record lies beside what it describes; this coordinator knows what it says.
    fn mend_record(&mut self, context: &mut Context<'_>) {
        let Some(words) = survey::record_trouble(context.parts.paths(), &self.record) else {
            return;
        };
        let path = context.parts.paths().record(self.record.id);
        let repaired = survey::put_record(context.store, &path, &self.record);
        let slot = self.slots.keys().next().copied().unwrap_or(Slot(0));
        self.findings.note(Problem {
            slot,
            kept: Kept::Record,
            path: path.display().to_string(),
            offset: None,
            repaired,
            words,
        });
    }

    /// What of the records is damaged is known: it is had from the part that is open, or from peers.
    fn surveyed(
        &mut self,
        me: Rank,
        ticket: u64,
        damaged: Vec<Damaged>,
        context: &mut Context<'_>,
    ) {
        for damaged in damaged {
            let slot = damaged.slot;
            if damaged.keep == Keep::Own && survey::put_from_memory(&self.record, slot, context) {
                self.note_metadata(&damaged, true);
                continue;
            }
            let seal = self.record.seal.as_ref();
            let set = seal.and_then(|seal| seal.set_of(slot)).unwrap_or(&[]);
            let holder = self.holders.get(&slot).copied();
            let others = set.iter().filter_map(|it| self.holders.get(it).copied());
            let mut left: VecDeque<Rank> = VecDeque::new();
            for rank in holder.into_iter().chain(others) {
                if rank != me && !left.contains(&rank) {
                    left.push_back(rank);
                }
            }
            let mut asking = Asking {
                damaged,
                at: me,
                left,
            };
            match self.ask(&mut asking, context) {
                true => self.asking.push(asking),
                false => self.note_metadata(&asking.damaged, false),
            }
        }
        self.look_if_known(ticket, context);
    }

    /// Asks the next peer; whether there is one.
    fn ask(&self, asking: &mut Asking, context: &mut Context<'_>) -> bool {
        let Some(rank) = asking.left.pop_front() else {
            return false;
        };
        asking.at = rank;
        let (dataset, slot) = (self.record.id, asking.damaged.slot);
        context.send(rank, Message::WantMetadata { dataset, slot });
        true
    }

    fn note_metadata(&mut self, damaged: &Damaged, repaired: bool) {
        let kept = match damaged.keep {
            Keep::Own => Kept::Metadata,
            Keep::Copy => Kept::Copy,
        };
        self.findings.note(Problem {
            slot: damaged.slot,
            kept,
            path: damaged.path.display().to_string(),
            offset: None,
            repaired,
            words: damaged.words.clone(),
        });
    }

    /// A peer has told what it knows of a slot.
    pub(super) fn told(
        &mut self,
        ticket: u64,
        from: Rank,
        slot: Slot,
        metadata: Option<&Metadata>,
        context: &mut Context<'_>,
    ) -> Turn {
        let trusted = metadata.filter(|given| {
            given.dataset == self.record.id
                && given.slot == slot
                && check(&self.record, given).is_ok()
        });
        for mut asking in std::mem::take(&mut self.asking) {
            if asking.damaged.slot != slot || asking.at != from {
                self.asking.push(asking);
                continue;
            }
            let kept = trusted.map(|given| keep(given, asking.damaged.keep, context));
            match kept {
                Some(Ok(())) => {
                    if asking.damaged.keep == Keep::Own {
                        // What was read of it before may have lacked something.
                        context.parts.forget(self.record.id, &[slot]);
                    }
                    self.note_metadata(&asking.damaged, true);
                }
                other => {
                    if let Some(Err(failure)) = other {
                        tracing::error!(%slot, %failure, "what a peer gave cannot be kept");
                    }
                    match self.ask(&mut asking, context) {
                        true => self.asking.push(asking),
                        false => self.note_metadata(&asking.damaged, false),
                    }
                }
            }
        }
        self.look_if_known(ticket, context);
        Turn::GoesOn
    }

    fn look_if_known(&mut self, ticket: u64, context: &mut Context<'_>) {
        if self.survey.is_none() && self.asking.is_empty() {
            self.look(ticket, context);
        }
    }

    /// Begins to look over the slots, each on another thread.
    fn look(&mut self, ticket: u64, context: &mut Context<'_>) {
        let waiting =
            |(slot, stage): (&Slot, &Stage)| matches!(stage, Stage::Waiting).then_some(*slot);
        let slots: Vec<Slot> = self.slots.iter().filter_map(waiting).collect();
        for slot in slots {
            let stage = match self.what {
                Checking::Prefix => self.look_at_prefix(ticket, slot, context),
                Checking::Files | Checking::Parity => self.look_at_part(ticket, slot, context),
            };
            self.slots.insert(slot, stage);
        }
    }

    fn look_at_part(&self, ticket: u64, slot: Slot, context: &Context<'_>) -> Stage {
        let (result, ours) = left();
        let (paths, record) = (context.parts.paths().clone(), self.record.clone());
        let (stream, leisure) = (self.stream(), self.leisure.clone());
        let tells = self.what == Checking::Files;
        context.tasks.spawn(move |report| {
            let dataset = record.id;
            let progress = |bytes| {
                if tells {
                    report(advanced(dataset, bytes));
                }
            };
            // Opened anew, so that it is what lies there now.
            let opened = Part::open(&PosixStore::new(), &paths, &record, slot);
            let looked = opened.and_then(|part| {
                match stream {
                    Stream::Data => part.verify_against_tree()?,
                    Stream::Parity if !part.has_parity() => {
                        return Err(crate::part::PartError::Missing {
                            part: part.id(),
                            path: paths.parity(dataset, slot),
                        });
                    }
                    Stream::Parity => {}
                }
                let looked = part.look_over(stream, &leisure, &progress);
                Ok((Arc::new(part), looked))
            });
            put(&result, looked.map_err(|error| chain(&error)));
            ended(ticket, slot)
        });
        Stage::Looking(ours)
    }

    fn look_at_prefix(&self, ticket: u64, slot: Slot, context: &mut Context<'_>) -> Stage {
        let Ok(part) = context.parts.open(self.record.id, slot) else {
            // It was told of when the files were looked over.
            return Stage::Done;
        };
        let prefix = Arc::clone(context.prefix);
        let (result, ours) = left();
        let (record, leisure) = (self.record.clone(), self.leisure.clone());
        context.tasks.spawn(move |_| {
            let prefix = prefix.directory();
            let found = prefix
                .map(|prefix| prefix.look_over(&record, slot, Some(&part), &leisure, &|_| {}));
            put(&result, found.unwrap_or_default());
            ended(ticket, slot)
        });
        Stage::Prefix(ours)
    }

    /// A step on another thread has ended.
    pub(super) fn task_ended(
        &mut self,
        me: Rank,
        ticket: u64,
        slot: Slot,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Turn {
        if let Some(survey) = self.survey.take() {
            let damaged = take(&survey).unwrap_or_default();
            self.surveyed(me, ticket, damaged, context);
            return Turn::GoesOn;
        }
        let stage = self.slots.insert(slot, Stage::Done);
        match stage {
            Some(Stage::Looking(looked)) => self.looked(ticket, slot, take(&looked), jobs, context),
            Some(Stage::Writing(mending)) => {
                for (unit, words, repaired) in take(&mending.written).unwrap_or_default() {
                    self.note_unit(&mending.part, slot, unit, words, repaired);
                }
                self.mend(ticket, slot, mending, jobs, context);
            }
            Some(Stage::Prefix(found)) => self.findings.add(take(&found).unwrap_or_default()),
            Some(stage) => {
                self.slots.insert(slot, stage);
            }
            None => {
                self.slots.remove(&slot);
            }
        }
        Turn::GoesOn
    }

    fn looked(
        &mut self,
        ticket: u64,
        slot: Slot,
        looked: Option<Result<(Arc<Part>, Looked), String>>,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) {
        let stream = self.stream();
        let (part, looked) = match looked {
            Some(Ok(looked)) => looked,
            Some(Err(words)) => return self.spoil(slot, words, context),
            None => return self.spoil(slot, "it was not looked at".into(), context),
        };
        self.findings.bytes += looked.bytes;
        self.findings.units += looked.units;
        self.findings.unknown += looked.unknown;
        if looked.has_more {
            let words = format!("more than {} units are damaged", looked.bad.len());
            return self.spoil(slot, words, context);
        }
        if looked.bad.is_empty() {
            // Somebody may have found some before it was put right.
            if let Err(error) = part.clear_damage(stream) {
                crate::part::report("a mark of damage cannot be removed", &error);
            }
            return;
        }
        let mending = Mending {
            part,
            queue: looked.bad.into(),
            at: None,
            job: None,
            without: BTreeSet::new(),
            left: Vec::new(),
            asked_prefix: false,
            written: Left::default(),
        };
        self.mend(ticket, slot, Box::new(mending), jobs, context);
    }

    /// All of a stream has to be made again.
    fn spoil(&mut self, slot: Slot, words: String, context: &mut Context<'_>) {
        let paths = context.parts.paths();
        let path = match self.what {
            Checking::Files | Checking::Prefix => paths.tree(self.record.id, slot),
            Checking::Parity => paths.parity(self.record.id, slot),
        };
        if self.what == Checking::Parity && self.record.protected.is_none() {
            return;
        }
        context
            .parts
            .note_damage(self.record.id, slot, self.stream());
        self.findings.note(Problem {
            slot,
            kept: self.kept(),
            path: path.display().to_string(),
            offset: None,
            repaired: false,
            words,
        });
    }

    fn note_unit(&mut self, part: &Part, slot: Slot, unit: usize, words: String, repaired: bool) {
        let path = part.path_of_unit(self.stream(), unit);
        self.findings.note(Problem {
            slot,
            kept: self.kept(),
            path: path.display().to_string(),
            offset: Some(unit as u64 * u64::from(part.unit_bytes())),
            repaired,
            words,
        });
    }

    /// Has the next unit made; when there is none, sees what is left.
    fn mend(
        &mut self,
        ticket: u64,
        slot: Slot,
        mut mending: Box<Mending>,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) {
        while let Some((unit, words)) = mending.queue.pop_front() {
            mending.without.clear();
            mending.at = Some((unit, words.clone()));
            if self.make(ticket, slot, &mut mending, jobs, context) {
                self.slots.insert(slot, Stage::Mending(mending));
                return;
            }
            mending.left.push((unit, words));
        }
        let from_prefix = self.what == Checking::Files && self.record.flushed.is_some();
        if from_prefix && !mending.left.is_empty() && !mending.asked_prefix {
            mending.asked_prefix = true;
            let prefix = Arc::clone(context.prefix);
            let units = std::mem::take(&mut mending.left);
            let (written, ours) = left();
            mending.written = ours;
            let (record, part) = (self.record.clone(), Arc::clone(&mending.part));
            context.tasks.spawn(move |_| {
                put(&written, mend_from_prefix(&prefix, &record, &part, units));
                ended(ticket, slot)
            });
            self.slots.insert(slot, Stage::Writing(mending));
            return;
        }
        for (unit, words) in std::mem::take(&mut mending.left) {
            self.note_unit(&mending.part, slot, unit, words, false);
        }
        self.mended(slot, &mending.part, context);
    }

    /// Everything was tried.
    fn mended(&mut self, slot: Slot, part: &Part, context: &mut Context<'_>) {
        let stream = self.stream();
        let still = match stream {
            Stream::Data => &self.findings.spoilt,
            Stream::Parity => &self.findings.unguarded,
        };
        if still.contains(&slot) {
            context.parts.note_damage(self.record.id, slot, stream);
        } else if let Err(error) = part.clear_damage(stream) {
            crate::part::report("a mark of damage cannot be removed", &error);
        }
        context.parts.forget(self.record.id, &[slot]);
        self.slots.insert(slot, Stage::Done);
    }

    /// Has the engine make the unit whose turn it is; whether that can be.
    fn make(
        &self,
        ticket: u64,
        slot: Slot,
        mending: &mut Mending,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> bool {
        let Some((unit, _)) = mending.at else {
            return false;
        };
        let stream = self.stream();
        let seal = self.record.seal.as_ref();
        let Some((seal, geometry)) =
            seal.and_then(|seal| Some((seal, seal.geometry_of(slot).ok()?)))
        else {
            return false;
        };
        let offset = unit as u64 * u64::from(seal.unit_bytes);
        let len = mending.part.unit_len(stream, unit);
        let gone: Vec<Slot> = (self.lost.iter().chain(&mending.without).copied())
            .chain([slot])
            .collect();
        let plan = match stream {
            Stream::Data => match geometry.read(&gone, slot, offset, len, seal.unit_bytes) {
                Ok(plan) => plan,
                Err(error) => {
                    tracing::warn!(%slot, offset, %error, "cannot be made of its set");
                    return false;
                }
            },
            Stream::Parity => geometry.parity(slot, offset, len, seal.unit_bytes),
        };
        let job = jobs.begin(ticket, slot);
        mending.job = Some(job);
        let holders = self.holders.clone();
        context
            .engine
            .read(job, self.record.id, Box::new(plan), holders);
        true
    }

    /// The engine has made a unit.
    pub(super) fn made(
        &mut self,
        ticket: u64,
        (job, slot): (JobId, Slot),
        extent: Extent,
        bytes: Bytes,
        context: &mut Context<'_>,
    ) -> Turn {
        let stage = self.slots.insert(slot, Stage::Done);
        let Some(Stage::Mending(mut mending)) = stage else {
            if let Some(stage) = stage {
                self.slots.insert(slot, stage);
            }
            return Turn::GoesOn;
        };
        let offset = |unit: usize| unit as u64 * u64::from(mending.part.unit_bytes());
        let (stream, at) = (self.stream(), mending.at.take());
        let is_it = |unit: usize| extent.offset == offset(unit) && extent.stream == stream;
        let Some((unit, words)) = at.filter(|at| mending.job == Some(job) && is_it(at.0)) else {
            self.slots.insert(slot, Stage::Mending(mending));
            return Turn::Ends(Err(Failure::new(
                Refusal::Failed,
                format!("{job} made what was not asked for"),
            )));
        };
        let (written, ours) = left();
        mending.written = ours;
        let part = Arc::clone(&mending.part);
        context.tasks.spawn(move |_| {
            let done = part.mend(stream, unit, &bytes);
            if let Err(error) = &done {
                crate::part::report("a unit cannot be put right", error);
            }
            put(&written, vec![(unit, words, done.is_ok())]);
            ended(ticket, slot)
        });
        self.slots.insert(slot, Stage::Writing(mending));
        Turn::GoesOn
    }

    /// The engine cannot make a unit: it is tried without the source that is to blame.
    pub(super) fn unmade(
        &mut self,
        ticket: u64,
        slot: Slot,
        error: &TransferError,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Turn {
        let stage = self.slots.insert(slot, Stage::Done);
        let Some(Stage::Mending(mut mending)) = stage else {
            if let Some(stage) = stage {
                self.slots.insert(slot, stage);
            }
            return Turn::GoesOn;
        };
        let source = error.spoilt().filter(|_| self.what == Checking::Files);
        let again = source.is_some_and(|it| it != slot && mending.without.insert(it));
        if again && self.make(ticket, slot, &mut mending, jobs, context) {
            tracing::warn!(%slot, %error, "making a unit without it");
            self.slots.insert(slot, Stage::Mending(mending));
            return Turn::GoesOn;
        }
        tracing::error!(%slot, %error, "a unit cannot be made of the set");
        mending.left.extend(mending.at.take());
        self.mend(ticket, slot, mending, jobs, context);
        Turn::GoesOn
    }
}

fn advanced(dataset: DatasetId, bytes: u64) -> Event {
    Event::Outcome(Outcome::Advanced {
        dataset,
        activity: Activity::Verify,
        bytes,
    })
}

fn ended(ticket: u64, slot: Slot) -> Event {
    Event::Task(TaskEnd {
        ticket,
        slot,
        result: Ok(None),
    })
}

/// Puts units right from what the prefix has.
fn mend_from_prefix(
    prefix: &Target,
    record: &DatasetRecord,
    part: &Part,
    units: Vec<(usize, String)>,
) -> Vec<(usize, String, bool)> {
    let source = prefix.directory();
    let source = source.map(|prefix| prefix.units_of(record, part.id().slot));
    if let Some(Err(error)) = &source {
        crate::part::report("nothing can be put right from the prefix", error);
    }
    let mend = |unit: usize| {
        let source = source.as_ref()?.as_ref().ok()?;
        let offset = unit as u64 * u64::from(part.unit_bytes());
        let bytes = source
            .read(offset, part.unit_len(Stream::Data, unit))
            .ok()?;
        part.mend(Stream::Data, unit, &bytes).ok()
    };
    let mended = |(unit, words)| (unit, words, mend(unit).is_some());
    units.into_iter().map(mended).collect()
}
