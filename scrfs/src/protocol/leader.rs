//! The leader: rank 0's view of all datasets, and every decision about them.
//!
//! It holds nothing that is not in the members' records: a dataset's life is a chain of orders,
//! each begun when all members have answered the one before, and each resumable by the next epoch.
//! Work on datasets (rebuild, encode, flush) is chosen in [`work`]; the commit is in [`agree`].

mod agree;
mod begin;
mod work;

use super::Now;
use super::member::LEADER;
use super::message::{Failure, Inventory, Message, Order, PrefixView};
use super::step::{Outcome, Step, Write};
use crate::config::Config;
use crate::control::{Activity, Level, Refusal, Request};
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::record::{DatasetRecord, Phase};
use crate::name::Name;
use agree::Proposal;
use std::collections::{BTreeMap, BTreeSet};
use work::Working;

/// A program that waits for an answer: the rank it is on, and its request there.
type Asker = (Rank, u64);

/// A dataset as the leader sees it.
#[derive(Debug)]
struct Led {
    record: DatasetRecord,
    holders: BTreeMap<Slot, Rank>,
    lost: BTreeSet<Slot>,
    rebuildable: bool,
    proposal: Option<Proposal>,
    /// Askers that found the name taken while the dataset was still being made.
    creating: Option<Vec<Asker>>,
    waiters: Vec<(Level, Asker)>,
    working: Option<Working>,
    /// Bytes done of the present work, by rank.
    advanced: BTreeMap<Rank, u64>,
    /// Somebody asked for it to be flushed whatever the configuration says.
    flush_now: bool,
    /// When failed work is tried again, and how often it failed.
    retry: BTreeMap<Activity, (u64, u32)>,
    /// It is being removed: nothing more is begun on it.
    leaving: bool,
}

impl Led {
    fn new(record: DatasetRecord) -> Self {
        Self {
            record,
            holders: BTreeMap::new(),
            lost: BTreeSet::new(),
            rebuildable: false,
            proposal: None,
            creating: None,
            waiters: Vec::new(),
            working: None,
            advanced: BTreeMap::new(),
            flush_now: false,
            retry: BTreeMap::new(),
            leaving: false,
        }
    }

    fn is_live(&self) -> bool {
        matches!(self.record.phase, Phase::Open | Phase::Sealed) && !self.leaving
    }

    fn holders_list(&self) -> Vec<(Slot, Rank)> {
        self.holders.iter().map(|(&slot, &rank)| (slot, rank)).collect()
    }

    fn has_reached(&self, level: Level) -> bool {
        match level {
            Level::Sealed => self.record.seal.is_some(),
            Level::Protected => self.record.protected.is_some() || self.record.flushed.is_some(),
            Level::Flushed => self.record.flushed.is_some(),
        }
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
    /// An open dataset has another name.
    Rename { asker: Asker },
    /// A dataset was removed.
    Forget { dataset: DatasetId, asker: Option<Asker> },
    /// All are frozen, or not.
    Confirm { dataset: DatasetId, proposal: u64 },
    /// A record that somebody may wait for is everywhere.
    Reached { dataset: DatasetId },
    /// Work on a dataset has ended.
    Work { dataset: DatasetId, activity: Activity },
}

/// An order under way.
#[derive(Debug)]
struct Ticket {
    purpose: Purpose,
    waiting: BTreeSet<Rank>,
    failures: BTreeMap<Rank, Failure>,
}

/// The leader's state.
#[derive(Debug)]
pub struct Leader {
    epoch: Epoch,
    size: u32,
    new_run: bool,
    config: Config,
    prefix: Option<PrefixView>,
    hellos: BTreeMap<Rank, Inventory>,
    /// Ranks that have yet to begin; `None` before the beginning is decided.
    beginning: Option<BTreeSet<Rank>>,
    ready: bool,
    datasets: BTreeMap<DatasetId, Led>,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    next_proposal: u64,
    last_dataset: u64,
    last_checkpoint: u64,
}

impl Leader {
    /// The leader of an epoch of `size` members. `prefix` is what the prefix holds, if there is one.
    pub fn new(
        epoch: Epoch,
        size: u32,
        new_run: bool,
        config: Config,
        prefix: Option<PrefixView>,
    ) -> Self {
        Self {
            epoch,
            size,
            new_run,
            config,
            prefix,
            hellos: BTreeMap::new(),
            beginning: None,
            ready: false,
            datasets: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 1,
            next_proposal: 1,
            last_dataset: 0,
            last_checkpoint: 0,
        }
    }

    fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.size).map(Rank)
    }

    fn tell_all(&self, message: &Message, step: &mut Step) {
        for rank in self.ranks() {
            step.send(rank, message.clone());
        }
    }

    fn order(&mut self, order: Order, purpose: Purpose, step: &mut Step) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let waiting = self.ranks().collect();
        self.tickets.insert(ticket, Ticket { purpose, waiting, failures: BTreeMap::new() });
        self.tell_all(&Message::Order { ticket, order }, step);
    }

    fn reply((rank, request): Asker, result: Result<(), Refusal>, step: &mut Step) {
        step.send(rank, Message::Reply { request, result });
    }

    /// Makes a changed record durable here and everywhere.
    fn update(&mut self, dataset: DatasetId, purpose: Purpose, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else { return };
        led.record.epoch = self.epoch;
        let record = Box::new(led.record.clone());
        step.write(Write::Dataset(record.clone()));
        self.order(Order::Update(record), purpose, step);
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
            Message::Begun => self.begun(now, from, step),
            Message::Asked { request, what } => self.asked(now, (from, request), what, step),
            Message::Done { ticket, result } => self.done(now, from, ticket, result, step),
            Message::Vote { dataset, proposal, part } => {
                self.vote(now, from, (dataset, proposal), part, step);
            }
            Message::Withdraw { dataset, proposal } => self.withdrawn(from, dataset, proposal),
            Message::Advanced { dataset, activity, bytes } => {
                self.advanced(from, dataset, activity, bytes, step);
            }
            // What only members have a use for.
            Message::Begin { .. }
            | Message::Reply { .. }
            | Message::Order { .. }
            | Message::Collect { .. }
            | Message::Release { .. }
            | Message::Progress(_)
            | Message::Nodes(_)
            | Message::Ready { .. }
            | Message::Keep(_)
            | Message::Kept { .. }
            | Message::WantMetadata { .. }
            | Message::HaveMetadata { .. } => {}
        }
    }

    /// Takes the outcome of an effect of the leader's.
    pub fn handle_outcome(&mut self, now: Now, outcome: Outcome, step: &mut Step) {
        if let Outcome::FlushCompleted { dataset, result } = outcome {
            self.flush_completed(now, dataset, result, step);
        }
    }

    /// Looks at the clock.
    pub fn handle_tick(&mut self, now: Now, step: &mut Step) {
        self.expire_proposals(now, step);
        self.schedule(now, step);
    }

    /// When `handle_tick` has something to do next.
    pub fn deadline(&self) -> Option<u64> {
        let proposals = self.datasets.values().filter_map(|led| led.proposal.as_ref());
        let retries = self.datasets.values().flat_map(|led| led.retry.values().map(|(at, _)| *at));
        proposals.map(Proposal::deadline).chain(retries).min()
    }

    /// Whether nothing is under way and nothing is left to protect or flush.
    pub fn is_idle(&self, now: Now) -> bool {
        self.ready
            && self.tickets.is_empty()
            && self.datasets.values().all(|led| led.working.is_none() && led.proposal.is_none())
            && !self.has_work(now)
    }

    fn asked(&mut self, now: Now, asker: Asker, what: Request, step: &mut Step) {
        match what {
            Request::Create { name, mode, uid, gid } => {
                self.create(now, asker, name, (mode, uid, gid), step);
            }
            Request::Change { dataset, change } => match self.open_dataset(dataset) {
                Ok(()) => {
                    self.order(Order::Change { dataset, change }, Purpose::Change { asker }, step);
                }
                Err(refusal) => Self::reply(asker, Err(refusal), step),
            },
            Request::Rename { dataset, to } => self.rename(asker, dataset, to, step),
            Request::Commit { dataset, to } => self.propose(now, asker, dataset, to, step),
            Request::Remove { dataset } => match self.open_dataset(dataset) {
                Ok(()) => self.forget(dataset, Some(asker), step),
                Err(refusal) => Self::reply(asker, Err(refusal), step),
            },
            Request::Wait { dataset, level } => self.wait(asker, dataset, level, step),
            Request::Flush { dataset } => {
                let prefix = self.prefix.is_some();
                match self.datasets.get_mut(&dataset) {
                    Some(led) if led.record.seal.is_some() && prefix => {
                        led.flush_now = true;
                        led.retry.remove(&Activity::Flush);
                        self.wait(asker, dataset, Level::Flushed, step);
                        self.schedule(now, step);
                    }
                    Some(_) if prefix => Self::reply(asker, Err(Refusal::Busy), step),
                    Some(_) => Self::reply(asker, Err(Refusal::Failed), step),
                    None => Self::reply(asker, Err(Refusal::Missing), step),
                }
            }
        }
    }

    fn open_dataset(&self, dataset: DatasetId) -> Result<(), Refusal> {
        match self.datasets.get(&dataset) {
            Some(led) if led.leaving => Err(Refusal::Missing),
            Some(led) if led.record.phase == Phase::Open => Ok(()),
            Some(_) => Err(Refusal::ReadOnly),
            None => Err(Refusal::Missing),
        }
    }

    fn create(
        &mut self,
        now: Now,
        asker: Asker,
        name: Name,
        (mode, uid, gid): (u32, u32, u32),
        step: &mut Step,
    ) {
        if let Some(taken) = self.live_by_name(&name) {
            // Not before the directory is there for the asker, too: it goes on to write in it.
            match self.datasets.get_mut(&taken).and_then(|led| led.creating.as_mut()) {
                Some(waiting) => waiting.push(asker),
                None => Self::reply(asker, Err(Refusal::Exists), step),
            }
            return;
        }
        self.last_dataset += 1;
        let id = DatasetId(self.last_dataset);
        let record = DatasetRecord {
            id,
            class: self.config.class_of(name.as_bytes()),
            name,
            committed_from: None,
            checkpoint: None,
            phase: Phase::Open,
            epoch: self.epoch,
            created: now.wall,
            sealed: None,
            protected: None,
            flushing: false,
            flushed: None,
            seal: None,
            error: None,
            mode,
            uid,
            gid,
        };
        let mut led = Led::new(record.clone());
        led.creating = Some(Vec::new());
        self.datasets.insert(id, led);
        step.write(Write::Dataset(Box::new(record.clone())));
        let purpose = Purpose::Create { dataset: id, asker };
        self.order(Order::Create(Box::new(record)), purpose, step);
    }

    fn rename(&mut self, asker: Asker, dataset: DatasetId, to: Name, step: &mut Step) {
        if let Err(refusal) = self.open_dataset(dataset) {
            return Self::reply(asker, Err(refusal), step);
        }
        if self.live_by_name(&to).is_some_and(|other| other != dataset) {
            return Self::reply(asker, Err(Refusal::Exists), step);
        }
        let Some(led) = self.datasets.get_mut(&dataset) else { return };
        if led.proposal.is_some() {
            return Self::reply(asker, Err(Refusal::Busy), step);
        }
        led.record.class = self.config.class_of(to.as_bytes());
        led.record.name = to;
        self.update(dataset, Purpose::Rename { asker }, step);
    }

    fn forget(&mut self, dataset: DatasetId, asker: Option<Asker>, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else { return };
        led.leaving = true;
        if let Some(proposal) = led.proposal.take() {
            for waiter in proposal.askers {
                Self::reply(waiter, Err(Refusal::Missing), step);
            }
        }
        step.write(Write::Forget(dataset));
        self.order(Order::Forget(dataset), Purpose::Forget { dataset, asker }, step);
    }

    fn wait(&mut self, asker: Asker, dataset: DatasetId, level: Level, step: &mut Step) {
        match self.datasets.get_mut(&dataset) {
            None => Self::reply(asker, Err(Refusal::Missing), step),
            Some(led) if led.has_reached(level) => Self::reply(asker, Ok(()), step),
            Some(led) => led.waiters.push((level, asker)),
        }
    }

    /// Answers those who waited for what the dataset has now reached.
    fn answer_waiters(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else { return };
        let waiters = std::mem::take(&mut led.waiters);
        for (level, asker) in waiters {
            if led.has_reached(level) {
                Self::reply(asker, Ok(()), step);
            } else {
                led.waiters.push((level, asker));
            }
        }
    }

    fn done(
        &mut self,
        now: Now,
        from: Rank,
        ticket: u64,
        result: Result<(), Failure>,
        step: &mut Step,
    ) {
        let Some(open) = self.tickets.get_mut(&ticket) else { return };
        if !open.waiting.remove(&from) {
            return;
        }
        if let Err(failure) = result {
            open.failures.insert(from, failure);
        }
        if !open.waiting.is_empty() {
            return;
        }
        let Some(Ticket { purpose, failures, .. }) = self.tickets.remove(&ticket) else { return };
        self.finish(now, purpose, failures, step);
        self.schedule(now, step);
    }

    /// All members have answered.
    fn finish(
        &mut self,
        now: Now,
        purpose: Purpose,
        failures: BTreeMap<Rank, Failure>,
        step: &mut Step,
    ) {
        let first = failures.values().next().map(|failure| failure.refusal);
        match purpose {
            Purpose::Noted => {}
            Purpose::Create { dataset, asker } => self.created(dataset, asker, first, step),
            Purpose::Change { asker } => {
                let full = failures.values().find(|failure| failure.refusal == Refusal::NoSpace);
                let own = failures.get(&asker.0).or(full);
                Self::reply(asker, own.map_or(Ok(()), |failure| Err(failure.refusal)), step);
            }
            Purpose::Rename { asker } => Self::reply(asker, first.map_or(Ok(()), Err), step),
            Purpose::Forget { dataset, asker } => {
                if let Some(led) = self.datasets.remove(&dataset) {
                    for (_, waiter) in led.waiters {
                        Self::reply(waiter, Err(Refusal::Missing), step);
                    }
                }
                if let Some(asker) = asker {
                    Self::reply(asker, Ok(()), step);
                }
            }
            Purpose::Confirm { dataset, proposal } => {
                self.confirmed(now, dataset, proposal, first.is_none(), step);
            }
            Purpose::Reached { dataset } => self.answer_waiters(dataset, step),
            Purpose::Work { dataset, activity } => {
                self.worked(now, dataset, activity, &failures, step);
            }
        }
    }

    fn created(
        &mut self,
        dataset: DatasetId,
        asker: Asker,
        refusal: Option<Refusal>,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else { return };
        let late = led.creating.take().unwrap_or_default();
        match refusal {
            None => {
                Self::reply(asker, Ok(()), step);
                for waiter in late {
                    Self::reply(waiter, Err(Refusal::Exists), step);
                }
            }
            Some(refusal) => {
                for waiter in late.into_iter().chain([asker]) {
                    Self::reply(waiter, Err(refusal), step);
                }
                self.forget(dataset, None, step);
            }
        }
    }
}
