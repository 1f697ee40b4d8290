//! The leader: rank 0's view of all datasets, and every decision about them.
//!
//! It holds nothing that is not in the members' records: a dataset's life is a chain of orders,
//! each begun when all members have answered the one before, and each resumable by the next epoch.
//! Work on datasets (rebuild, encode, flush) is chosen in `work` and, before programs may start, in
//! `restart`; what is due for the prefix, and what people did there, in `prefix`; whether it still has what was
//! flushed, in `held`; when a program that asks is to
//! checkpoint, in `question`; the commit is in
//! `agree`, what else programs ask in `ask`, what goes to make room in `room`, what people have verified
//! in `verify`.

mod agree;
mod ask;
mod begin;
mod held;
mod point;
mod prefix;
mod question;
mod restart;
mod room;
mod verify;
mod work;

use super::Now;
use super::member::LEADER;
use super::message::{Failure, Inventory, Message, Order, PrefixView};
use super::step::{Outcome, Step, Write};
use super::tree::Tree;
use crate::config::Config;
use crate::control::{Activity, Level, Refusal, Request};
use crate::findings::Findings;
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::record::{DatasetRecord, Phase};
use crate::name::Name;
use agree::Proposal;
use held::Held;
use point::Pointing;
use prefix::Looking;
use question::Questions;
use room::Room;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use work::{Retry, Working};

/// A program that waits for an answer: the rank it is on, and its request there.
type Asker = (Rank, u64);

/// A dataset as the leader sees it.
#[derive(Debug)]
struct Led {
    record: DatasetRecord,
    holders: BTreeMap<Slot, Rank>,
    lost: BTreeSet<Slot>,
    /// Slots that are whole, but whose parity is still to be made again.
    unguarded: BTreeSet<Slot>,
    proposal: Option<Proposal>,
    /// Askers that found the name taken while the dataset was still being made.
    creating: Option<Vec<Asker>>,
    /// What programs asked meanwhile and has to wait until it is made, or not frozen any more.
    deferred: Vec<(Asker, Request)>,
    waiters: Vec<(Level, Asker)>,
    /// How far it has come on every node, durably and for programs to see.
    everywhere: Option<Level>,
    working: Option<Working>,
    /// Bytes done of the present work, by who speaks of it.
    advanced: BTreeMap<Rank, u64>,
    /// In how many hundredths that was told.
    told_percent: u128,
    /// Somebody asked for it to be flushed whatever the configuration says.
    flush_now: bool,
    /// Flushes fell behind: newer checkpoints go to the prefix instead of this one.
    left_out: bool,
    /// The error in its record is that its flush makes no headway, or cannot begin.
    is_stuck: bool,
    /// Its flush has failed for a reason of its own, which no other dataset has: newer ones do not wait for it.
    is_passed: bool,
    /// Another dataset has taken its name in the prefix.
    is_replaced: bool,
    /// Who wants it fetched.
    fetchers: Vec<Asker>,
    /// Somebody wanted it fetched: it goes when its space is needed, and not by count.
    is_fetched: bool,
    retry: BTreeMap<Activity, Retry>,
    /// Who wants it verified.
    verifiers: Vec<Asker>,
    /// Something of it was found damaged, which keeps its protection from being restored.
    is_damaged: bool,
    /// It has no parity: that the prefix has it is all that its record calls protected.
    is_by_prefix: bool,
    /// It is being removed: nothing more is begun on it.
    leaving: bool,
}

impl Led {
    fn new(record: DatasetRecord) -> Self {
        Self {
            record,
            holders: BTreeMap::new(),
            lost: BTreeSet::new(),
            unguarded: BTreeSet::new(),
            proposal: None,
            creating: None,
            deferred: Vec::new(),
            waiters: Vec::new(),
            everywhere: None,
            working: None,
            advanced: BTreeMap::new(),
            told_percent: 0,
            flush_now: false,
            left_out: false,
            is_stuck: false,
            is_passed: false,
            is_replaced: false,
            fetchers: Vec::new(),
            is_fetched: false,
            retry: BTreeMap::new(),
            verifiers: Vec::new(),
            is_damaged: false,
            is_by_prefix: false,
            leaving: false,
        }
    }

    /// Whether its name is taken; also while it is being fetched.
    fn is_live(&self) -> bool {
        let is_there = matches!(self.record.phase, Phase::Open | Phase::Sealed);
        (is_there || self.is_being_fetched()) && !self.leaving
    }

    /// Whether it is on its way here, or will be when its fetch is tried again.
    fn is_being_fetched(&self) -> bool {
        let is_waited_for = !self.fetchers.is_empty() && self.record.phase == Phase::Evicted;
        is_waited_for || matches!(self.working, Some(Working::Fetch { .. }))
    }

    fn holders_list(&self) -> Vec<(Slot, Rank)> {
        self.holders
            .iter()
            .map(|(&slot, &rank)| (slot, rank))
            .collect()
    }

    /// How far it has come as the record says, on this node at least. What is lost and not rebuilt
    /// yet survives no more losses than are left.
    fn level(&self) -> Option<Level> {
        let flushed = self.record.flushed.map(|_| Level::Flushed);
        flushed.max(self.level_in_caches())
    }

    /// The same, as if there were no prefix.
    fn level_in_caches(&self) -> Option<Level> {
        match &self.record {
            record if record.protected.is_some() && !self.is_weak() => Some(Level::Protected),
            record => record.seal.as_ref().map(|_| Level::Sealed),
        }
    }

    /// Whether something is still to be made again of what was protected.
    fn is_weak(&self) -> bool {
        !(self.lost.is_empty() && self.unguarded.is_empty())
    }

    /// Whether programs may read all of it, though not all of it is there.
    fn is_degraded(&self) -> bool {
        self.record.phase == Phase::Sealed && !self.lost.is_empty()
    }

    /// Whether that holds on every node.
    fn has_reached(&self, level: Level) -> bool {
        self.everywhere >= Some(level)
    }

    /// Whether what is asked now must wait: the directory is not there yet, or it is frozen and may
    /// be thawed again.
    fn defers(&self, what: &Request) -> bool {
        self.creating.is_some()
            || (matches!(what, Request::Change { .. })
                && self.proposal.as_ref().is_some_and(Proposal::is_confirming))
    }
}

/// What to do when all members have answered a ticket.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Purpose {
    /// Nothing further.
    Noted,
    /// A dataset was made.
    Create { dataset: DatasetId, asker: Asker },
    /// Directories changed; the result of the asker's own node counts.
    Change { asker: Asker },
    /// A record says what was asked: an open dataset has another name, or a sealed one is removed.
    Record { dataset: DatasetId, asker: Asker },
    /// A dataset was removed.
    Forget {
        dataset: DatasetId,
        asker: Option<Asker>,
    },
    /// Pointer files changed.
    Point { asker: Asker },
    /// No member takes a version of a lower term any more for a new one.
    Raise { term: u64 },
    /// All are frozen, or not.
    Confirm { dataset: DatasetId, proposal: u64 },
    /// A record that somebody may wait for is everywhere, and what it says is reached.
    Reached {
        dataset: DatasetId,
        level: Option<Level>,
    },
    /// Work on a dataset has ended.
    Work {
        dataset: DatasetId,
        activity: Activity,
    },
}

/// An order under way.
#[derive(Debug)]
struct Ticket {
    purpose: Purpose,
    /// Members drop what they have of this one.
    evicts: Option<DatasetId>,
    waiting: BTreeSet<Rank>,
    failures: BTreeMap<Rank, Failure>,
    findings: Findings,
}

/// The leader's state.
#[derive(Debug)]
pub struct Leader {
    epoch: Epoch,
    tree: Tree,
    size: u32,
    new_run: bool,
    config: Config,
    prefix: Option<PrefixView>,
    looking: Looking,
    held: Held,
    hellos: BTreeMap<Rank, Inventory>,
    /// Ranks that have yet to begin; `None` before the beginning is decided.
    beginning: Option<BTreeSet<Rank>>,
    ready: bool,
    /// What was asked before it was known what there is.
    early: VecDeque<(Asker, Request)>,
    datasets: BTreeMap<DatasetId, Led>,
    tickets: BTreeMap<u64, Ticket>,
    room: Room,
    next_ticket: u64,
    next_proposal: u64,
    last_dataset: u64,
    last_checkpoint: u64,
    pointing: Pointing,
    questions: Questions,
}

impl Leader {
    /// The leader of an epoch of `size` members. `prefix` is what the prefix holds, if there is one.
    pub fn new(
        epoch: Epoch,
        tree: Tree,
        size: u32,
        new_run: bool,
        config: Config,
        prefix: Option<PrefixView>,
    ) -> Self {
        let questions = Questions::of(&config);
        Self {
            epoch,
            tree,
            size,
            new_run,
            config,
            prefix,
            looking: Looking::default(),
            held: Held::default(),
            hellos: BTreeMap::new(),
            beginning: None,
            ready: false,
            early: VecDeque::new(),
            datasets: BTreeMap::new(),
            tickets: BTreeMap::new(),
            room: Room::default(),
            next_ticket: 1,
            next_proposal: 1,
            last_dataset: 0,
            last_checkpoint: 0,
            pointing: Pointing::default(),
            questions,
        }
    }

    fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.size).map(Rank)
    }

    /// For whom a rank speaks that says that all is well.
    fn spoken_for(&self, from: Rank) -> Vec<Rank> {
        match from {
            LEADER => vec![LEADER],
            child => self.tree.subtree(child).collect(),
        }
    }

    fn order(&mut self, order: Order, purpose: Purpose, step: &mut Step) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let waiting = self.ranks().collect();
        let evicts = match &order {
            Order::Amend(record) | Order::Update(record) => {
                (record.phase == Phase::Evicted).then_some(record.id)
            }
            _ => None,
        };
        self.tickets.insert(
            ticket,
            Ticket {
                purpose,
                evicts,
                waiting,
                failures: BTreeMap::new(),
                findings: Findings::default(),
            },
        );
        step.cast(Message::Order { ticket, order });
    }

    fn reply((rank, request): Asker, result: Result<(), Refusal>, step: &mut Step) {
        step.send(rank, Message::Reply { request, result });
    }

    /// Makes a changed record durable here and everywhere.
    fn update(&mut self, dataset: DatasetId, purpose: Purpose, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        if led.leaving {
            // An update after it was forgotten would bring it back.
            return;
        }
        led.record.epoch = self.epoch;
        let is_known = led.has_reached(Level::Sealed);
        let mut record = Box::new(led.record.clone());
        step.write(Write::Dataset(record.clone()));
        let order = match is_known {
            true => {
                record.seal = None;
                Order::Amend(record)
            }
            false => Order::Update(record),
        };
        self.order(order, purpose, step);
    }

    /// The same, and those who wait for what it says are answered when it is everywhere.
    fn update_reached(&mut self, dataset: DatasetId, step: &mut Step) {
        let level = self.datasets.get(&dataset).and_then(Led::level);
        self.update(dataset, Purpose::Reached { dataset, level }, step);
    }

    /// Whether a pointer file or another dataset has this name, or is being committed under it.
    fn is_taken(&self, name: &Name, by_other_than: DatasetId) -> bool {
        self.pointing.known.live(name).is_some() || self.is_dataset_but(name, by_other_than)
    }

    fn is_dataset(&self, name: &Name) -> bool {
        self.is_dataset_but(name, DatasetId(0))
    }

    fn is_dataset_but(&self, name: &Name, by_other_than: DatasetId) -> bool {
        self.datasets
            .iter()
            .filter(|(id, _)| **id != by_other_than)
            .any(|(_, led)| {
                (led.is_live() && led.record.name == *name)
                    || led
                        .proposal
                        .as_ref()
                        .is_some_and(|proposal| proposal.is_for(name))
            })
    }

    fn live_by_name(&self, name: &Name) -> Option<DatasetId> {
        self.datasets
            .iter()
            .find(|(_, led)| led.is_live() && led.record.name == *name)
            .map(|(id, _)| *id)
    }

    /// Takes a message of a member.
    pub fn handle_message(&mut self, now: Now, from: Rank, message: Message, step: &mut Step) {
        match message {
            Message::Hello(inventory) => self.hello(from, *inventory, step),
            Message::Hellos(hellos) => {
                for (rank, inventory) in hellos.open() {
                    self.hello(rank, inventory, step);
                }
            }
            Message::Begun => self.begun(now, from, step),
            Message::Asked { request, what } => self.asked(now, (from, request), what, step),
            Message::Question { request, question } => {
                self.questioned(now, (from, request), question, step);
            }
            Message::Verdicts(verdicts) => self.recall(&verdicts),
            Message::Done {
                ticket,
                result,
                findings,
            } => self.done(now, from, ticket, (result, findings), step),
            Message::Vote {
                dataset,
                proposal,
                part,
            } => {
                self.vote(now, from, (dataset, proposal), part, step);
            }
            Message::Votes {
                dataset,
                proposal,
                votes,
            } => {
                for (rank, part) in votes {
                    self.vote(now, rank, (dataset, proposal), Ok(part), step);
                }
            }
            Message::Withdraw { dataset, proposal } => self.withdrawn(from, dataset, proposal),
            Message::Advanced {
                dataset,
                activity,
                bytes,
            } => {
                self.advanced(from, dataset, activity, bytes, step);
            }
            Message::Pressure(pressure) => {
                self.pressed(from, pressure);
                if from == LEADER {
                    self.handle_pressures(now, step);
                }
            }
            Message::Stuck { dataset, text } => self.stuck(from, dataset, &text, step),
            // What only members have a use for.
            Message::Down { .. }
            | Message::Up(_)
            | Message::Begin { .. }
            | Message::Reply { .. }
            | Message::Verdict { .. }
            | Message::Order { .. }
            | Message::Foresee { .. }
            | Message::Reach { .. }
            | Message::Foreknown { .. }
            | Message::Collect { .. }
            | Message::Release { .. }
            | Message::Progress(_)
            | Message::Due(_)
            | Message::Shelf(_)
            | Message::Learnt(_)
            | Message::Nodes(_)
            | Message::Verified { .. }
            | Message::Losses { .. }
            | Message::Ready { .. }
            | Message::Abandon { .. }
            | Message::Keep(_)
            | Message::Kept { .. }
            | Message::WantMetadata { .. }
            | Message::HaveMetadata { .. }
            | Message::WantPiece { .. }
            | Message::HavePiece { .. } => {}
        }
    }

    /// Does what follows from what nodes have said of their caches.
    pub fn handle_pressures(&mut self, now: Now, step: &mut Step) {
        if self.room.take_pressed() {
            self.schedule(now, step);
        }
    }

    /// Takes the outcome of an effect of the leader's.
    pub fn handle_outcome(&mut self, now: Now, outcome: Outcome, step: &mut Step) {
        match outcome {
            Outcome::FlushCompleted { dataset, result } => {
                self.flush_completed(now, dataset, result, step);
            }
            Outcome::PointersWritten { due, result } => {
                self.pointers_written(now, &due, &result, step);
            }
            Outcome::Learnt(learnt) => self.learnt(learnt, step),
            Outcome::PrefixSeen { result } => self.prefix_seen(now, result, step),
            Outcome::PrefixHolds { dataset, result } => {
                self.prefix_answered(now, dataset, result, step);
            }
            // The member's business.
            Outcome::Worked { .. }
            | Outcome::Found { .. }
            | Outcome::Scanned { .. }
            | Outcome::Advanced { .. }
            | Outcome::Stuck { .. } => {}
        }
    }

    /// Looks at the clock.
    pub fn handle_tick(&mut self, now: Now, step: &mut Step) {
        self.expire_proposals(now, step);
        self.schedule(now, step);
    }

    /// When `handle_tick` has something to do next.
    pub fn deadline(&self) -> Option<u64> {
        let proposals = self
            .datasets
            .values()
            .filter_map(|led| led.proposal.as_ref());
        let retries = self.datasets.values().flat_map(|led| led.retry.values());
        proposals
            .filter_map(Proposal::deadline)
            .chain(retries.filter_map(Retry::deadline))
            .chain(self.pointing.deadline())
            .chain(self.held.deadline())
            .min()
    }

    /// Whether nothing is under way and nothing is left to protect or flush.
    pub fn is_idle(&self, now: Now) -> bool {
        self.ready
            && self.tickets.is_empty()
            && self
                .datasets
                .values()
                .all(|led| led.working.is_none() && led.proposal.is_none())
            && !self.has_pointers_due()
            && !self.has_work(now)
    }

    fn done(
        &mut self,
        now: Now,
        from: Rank,
        ticket: u64,
        (result, findings): (Result<(), Failure>, Option<Box<Findings>>),
        step: &mut Step,
    ) {
        let spoken_for = match &result {
            Ok(()) => self.spoken_for(from),
            Err(_) => vec![from],
        };
        let Some(open) = self.tickets.get_mut(&ticket) else {
            return;
        };
        for rank in spoken_for {
            open.waiting.remove(&rank);
        }
        if let Some(findings) = findings {
            open.findings.add(*findings);
        }
        if let Err(failure) = result {
            // The others may wait for what this one will never give them.
            let first = open.failures.insert(from, failure).is_none() && open.failures.len() == 1;
            if first && matches!(open.purpose, Purpose::Work { .. }) && !open.waiting.is_empty() {
                step.cast(Message::Abandon { ticket });
            }
        }
        if !open.waiting.is_empty() {
            return;
        }
        let Some(Ticket {
            purpose,
            evicts,
            failures,
            findings,
            ..
        }) = self.tickets.remove(&ticket)
        else {
            return;
        };
        if evicts.is_some() {
            self.fetch_asked_before(step);
        }
        self.finish(now, purpose, (failures, findings), step);
        self.schedule(now, step);
    }

    /// All members have answered.
    fn finish(
        &mut self,
        now: Now,
        purpose: Purpose,
        (failures, findings): (BTreeMap<Rank, Failure>, Findings),
        step: &mut Step,
    ) {
        let first = failures.values().next().map(|failure| failure.refusal);
        match purpose {
            Purpose::Noted => {}
            Purpose::Create { dataset, asker } => {
                self.created(dataset, asker, first, step);
                self.resume(now, dataset, step);
            }
            Purpose::Change { asker } => {
                let full = failures
                    .values()
                    .find(|failure| failure.refusal == Refusal::NoSpace);
                let own = failures.get(&asker.0).or(full);
                Self::reply(
                    asker,
                    own.map_or(Ok(()), |failure| Err(failure.refusal)),
                    step,
                );
            }
            Purpose::Record { asker, .. } | Purpose::Point { asker } => {
                Self::reply(asker, first.map_or(Ok(()), Err), step)
            }
            Purpose::Raise { term } => match failures.values().next() {
                None => self.raised(now, term, step),
                Some(failure) => {
                    tracing::error!(%failure, "pointer files of before are in the prefix; these do not replace them");
                }
            },
            Purpose::Forget { dataset, asker } => {
                if let Some(led) = self.datasets.remove(&dataset) {
                    if led.record.is_removed() {
                        self.looking.removed.insert(led.record.key());
                    }
                    let waiting = led.waiters.into_iter().map(|(_, asker)| asker);
                    let waiting = waiting.chain(led.verifiers).chain(led.fetchers);
                    for asker in waiting.chain(led.deferred.into_iter().map(|(asker, _)| asker)) {
                        Self::reply(asker, Err(Refusal::Missing), step);
                    }
                }
                if let Some(asker) = asker {
                    Self::reply(asker, Ok(()), step);
                }
            }
            Purpose::Confirm { dataset, proposal } => {
                self.confirmed(now, dataset, proposal, first.is_none(), step);
                self.resume(now, dataset, step);
            }
            Purpose::Reached { dataset, level } => {
                let is_gone = self.held.is_gone(dataset);
                if let Some(led) = self.datasets.get_mut(&dataset) {
                    let level = match is_gone {
                        true => level.min(led.level_in_caches()),
                        false => level,
                    };
                    led.everywhere = led.everywhere.max(level);
                }
                self.answer_waiters(dataset, step);
            }
            Purpose::Work {
                dataset,
                activity: Activity::Verify,
            } => self.verified(dataset, &failures, findings, step),
            Purpose::Work { dataset, activity } => {
                self.worked(now, dataset, activity, &failures, step);
            }
        }
    }
}
