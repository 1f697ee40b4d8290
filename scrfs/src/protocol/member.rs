//! A member: carries out the leader's orders on its node, and votes for its part.
//!
//! Voting, for one dataset: `Collect` → quiesce the daemon → *quiet* → scan → vote. A disturbance
//! after the scan began voids it; after the vote, it is withdrawn. `Confirm` freezes the dataset at the
//! voted generation or fails. A vote that was not withdrawn therefore describes exactly what is
//! on disk, from the scan until the seal.

use super::message::{Failure, Inventory, Message, Order};
use super::step::{Effect, Outcome, Step, Write};
use crate::control::{FromDaemon, Refusal, ToDaemon};
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::record::{DatasetRecord, EpochRecord, Phase};
use std::collections::{BTreeMap, BTreeSet};

/// The leader's rank.
pub const LEADER: Rank = Rank(0);

/// Ticket of a part that is made because an epoch begins; nobody waits for it.
const NO_TICKET: u64 = 0;

/// What to do when the daemon answers a sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Then {
    /// Answer this ticket with the daemon's result.
    Answer(u64),
    /// Answer this ticket; a refusal also voids the vote.
    Freeze { ticket: u64, dataset: DatasetId },
    /// The dataset is out of sight: its files may go, then the ticket is answered.
    Drop { ticket: u64, dataset: DatasetId },
    /// One thing less to be shown before this member has begun.
    Begin,
}

/// One dataset this member is asked to vote on.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Voting {
    proposal: u64,
    /// Generation of the daemon's last `Quiet`, while it holds.
    quiet: Option<u64>,
    /// Generation being scanned.
    scanning: Option<u64>,
    /// Generation that was voted for, while the vote holds.
    voted: Option<u64>,
}

/// A coordinator's part in what all of them do.
#[derive(Debug)]
pub struct Member {
    epoch: Epoch,
    slot: Slot,
    /// All datasets, as the leader last told.
    catalog: BTreeMap<DatasetId, DatasetRecord>,
    /// Slots whose files were found here when the epoch began.
    found: BTreeMap<DatasetId, Vec<Slot>>,
    voting: BTreeMap<DatasetId, Voting>,
    then: BTreeMap<u64, Then>,
    making: BTreeMap<u64, DatasetRecord>,
    next_sequence: u64,
    /// Things the daemon has yet to show before this member has begun.
    to_show: Option<usize>,
}

impl Member {
    /// A member that has not begun, on a node with this inventory.
    pub fn new(epoch: Epoch, slot: Slot, inventory: &Inventory) -> Self {
        let entries = || inventory.datasets.iter();
        Self {
            epoch,
            slot,
            catalog: entries().map(|entry| (entry.record.id, entry.record.clone())).collect(),
            found: entries()
                .map(|entry| (entry.record.id, entry.parts.iter().map(|part| part.slot).collect()))
                .collect(),
            voting: BTreeMap::new(),
            then: BTreeMap::new(),
            making: BTreeMap::new(),
            next_sequence: 1,
            to_show: None,
        }
    }

    /// All datasets, as this member knows them.
    pub fn catalog(&self) -> &BTreeMap<DatasetId, DatasetRecord> {
        &self.catalog
    }

    fn sequence(&mut self, then: Then) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.then.insert(sequence, then);
        sequence
    }

    fn publish(&mut self, record: DatasetRecord, then: Then, step: &mut Step) {
        let sequence = self.sequence(then);
        step.daemon(ToDaemon::Dataset { sequence, record: Box::new(record) });
    }

    fn answer(ticket: u64, result: Result<(), Failure>, step: &mut Step) {
        step.send(LEADER, Message::Done { ticket, result });
    }

    /// Takes a message of the leader.
    pub fn handle_message(&mut self, message: Message, step: &mut Step) {
        match message {
            Message::Begin { records, keep, last_dataset, last_checkpoint } => {
                let counters = (last_dataset, last_checkpoint);
                self.begin(records, &keep, counters, step);
            }
            Message::Reply { request, result } => step.daemon(ToDaemon::Reply { request, result }),
            Message::Order { ticket, order } => self.obey(ticket, order, step),
            Message::Collect { dataset, proposal } => {
                let voting = Voting { proposal, quiet: None, scanning: None, voted: None };
                self.voting.insert(dataset, voting);
                step.daemon(ToDaemon::Quiesce { dataset });
            }
            Message::Release { dataset, proposal, again } => {
                if self.voting.get(&dataset).is_none_or(|voting| voting.proposal != proposal) {
                    return;
                }
                step.daemon(ToDaemon::Thaw { dataset });
                if again {
                    step.daemon(ToDaemon::Quiesce { dataset });
                } else {
                    self.voting.remove(&dataset);
                }
            }
            Message::Progress(progress) => step.daemon(ToDaemon::Progress(progress)),
            Message::Nodes(nodes) => step.daemon(ToDaemon::Nodes(nodes)),
            Message::Ready { restart } => step.daemon(ToDaemon::Ready { restart }),
            // What only the leader, or the driver, has a use for.
            Message::Hello(_)
            | Message::Begun
            | Message::Asked { .. }
            | Message::Done { .. }
            | Message::Vote { .. }
            | Message::Withdraw { .. }
            | Message::Advanced { .. }
            | Message::Keep(_)
            | Message::Kept { .. }
            | Message::WantMetadata { .. }
            | Message::HaveMetadata { .. } => {}
        }
    }

    fn begin(
        &mut self,
        records: Vec<DatasetRecord>,
        keep: &[(DatasetId, Slot)],
        (last_dataset, last_checkpoint): (u64, u64),
        step: &mut Step,
    ) {
        let known: BTreeSet<DatasetId> = records.iter().map(|record| record.id).collect();
        let gone: Vec<DatasetId> =
            self.catalog.keys().copied().filter(|id| !known.contains(id)).collect();
        for &dataset in &gone {
            step.write(Write::Forget(dataset));
        }
        for record in &records {
            step.write(Write::Dataset(Box::new(record.clone())));
        }
        // Last: a node whose epoch record says so has everything this epoch began with.
        step.write(Write::Epoch(EpochRecord {
            epoch: self.epoch,
            slot: Some(self.slot),
            last_dataset,
            last_checkpoint,
        }));
        self.to_show = Some(gone.len() + records.len());
        for dataset in gone {
            let sequence = self.sequence(Then::Begin);
            step.daemon(ToDaemon::Forget { sequence, dataset });
            step.effect(Effect::DropData { dataset, slots: Vec::new() });
        }
        for record in records {
            let held = self.found.get(&record.id).cloned().unwrap_or_default();
            let spare: Vec<Slot> =
                held.iter().copied().filter(|slot| !keep.contains(&(record.id, *slot))).collect();
            if !spare.is_empty() {
                step.effect(Effect::DropData { dataset: record.id, slots: spare });
            }
            if record.phase == Phase::Open && held.is_empty() {
                let part = Box::new(record.clone());
                step.effect(Effect::MakePart { ticket: NO_TICKET, record: part });
            }
            self.catalog.insert(record.id, record.clone());
            self.publish(record, Then::Begin, step);
        }
        self.catalog.retain(|id, _| known.contains(id));
        self.begun_if_shown(step);
    }

    fn begun_if_shown(&mut self, step: &mut Step) {
        if self.to_show == Some(0) {
            self.to_show = None;
            step.send(LEADER, Message::Begun);
        }
    }

    fn obey(&mut self, ticket: u64, order: Order, step: &mut Step) {
        match order {
            Order::Create(record) => {
                step.write(Write::Dataset(record.clone()));
                self.making.insert(ticket, (*record).clone());
                step.effect(Effect::MakePart { ticket, record });
            }
            Order::Update(record) => {
                step.write(Write::Dataset(record.clone()));
                if record.phase != Phase::Open {
                    self.voting.remove(&record.id);
                }
                self.catalog.insert(record.id, (*record).clone());
                let then = match record.phase {
                    Phase::Evicted => Then::Drop { ticket, dataset: record.id },
                    _ => Then::Answer(ticket),
                };
                self.publish(*record, then, step);
            }
            Order::Forget(dataset) => {
                step.write(Write::Forget(dataset));
                self.catalog.remove(&dataset);
                self.voting.remove(&dataset);
                let sequence = self.sequence(Then::Drop { ticket, dataset });
                step.daemon(ToDaemon::Forget { sequence, dataset });
            }
            Order::Change { dataset, change } => {
                let sequence = self.sequence(Then::Answer(ticket));
                step.daemon(ToDaemon::Change { sequence, dataset, change });
            }
            Order::Confirm { dataset, proposal } => {
                let voting = self.voting.get(&dataset).filter(|held| held.proposal == proposal);
                match voting.and_then(|held| held.voted) {
                    Some(generation) => {
                        let sequence = self.sequence(Then::Freeze { ticket, dataset });
                        step.daemon(ToDaemon::Freeze { sequence, dataset, generation });
                    }
                    None => {
                        let text = format!("the vote on dataset {dataset} was withdrawn");
                        Self::answer(ticket, Err(Failure::new(Refusal::Busy, text)), step);
                    }
                }
            }
            order @ (Order::Encode { .. }
            | Order::Rebuild { .. }
            | Order::Flush { .. }
            | Order::Fetch { .. }) => step.effect(Effect::Work { ticket, order }),
        }
    }

    /// Takes a word of this node's daemon.
    pub fn handle_daemon(&mut self, word: FromDaemon, step: &mut Step) {
        match word {
            FromDaemon::Request { request, what } => {
                step.send(LEADER, Message::Asked { request, what });
            }
            FromDaemon::Done { sequence, result } => self.daemon_done(sequence, result, step),
            FromDaemon::Quiet { dataset, generation } => {
                let Some(voting) = self.voting.get_mut(&dataset) else { return };
                voting.quiet = Some(generation);
                if voting.voted != Some(generation) && voting.scanning.is_none() {
                    voting.scanning = Some(generation);
                    step.effect(Effect::Scan { dataset, generation });
                }
            }
            FromDaemon::Disturbed { dataset, .. } => {
                if let Some(voting) = self.voting.get_mut(&dataset) {
                    voting.quiet = None;
                    Self::withdraw(dataset, voting, step);
                }
            }
            // The driver's business.
            FromDaemon::Stop { .. } => {}
        }
    }

    fn withdraw(dataset: DatasetId, voting: &mut Voting, step: &mut Step) {
        if voting.voted.take().is_some() {
            step.send(LEADER, Message::Withdraw { dataset, proposal: voting.proposal });
        }
    }

    fn daemon_done(&mut self, sequence: u64, result: Result<(), Refusal>, step: &mut Step) {
        let result = result.map_err(|refusal| {
            Failure::new(refusal, format!("the daemon of {} answered {refusal:?}", self.slot))
        });
        match self.then.remove(&sequence) {
            Some(Then::Answer(ticket)) => Self::answer(ticket, result, step),
            Some(Then::Freeze { ticket, dataset }) => {
                if let (Err(_), Some(voting)) = (&result, self.voting.get_mut(&dataset)) {
                    Self::withdraw(dataset, voting, step);
                }
                Self::answer(ticket, result, step);
            }
            Some(Then::Drop { ticket, dataset }) => {
                step.effect(Effect::DropData { dataset, slots: Vec::new() });
                Self::answer(ticket, result, step);
            }
            Some(Then::Begin) => {
                if let Some(left) = &mut self.to_show {
                    *left = left.saturating_sub(1);
                }
                self.begun_if_shown(step);
            }
            None => {}
        }
    }

    /// Takes the outcome of an effect of this member.
    pub fn handle_outcome(&mut self, outcome: Outcome, step: &mut Step) {
        match outcome {
            Outcome::Worked { ticket: NO_TICKET, .. } => {}
            Outcome::Worked { ticket, result } => match (self.making.remove(&ticket), result) {
                (Some(record), Ok(())) => {
                    self.catalog.insert(record.id, record.clone());
                    self.publish(record, Then::Answer(ticket), step);
                }
                (_, result) => Self::answer(ticket, result, step),
            },
            Outcome::Scanned { dataset, generation, result } => {
                let Some(voting) = self.voting.get_mut(&dataset) else { return };
                voting.scanning = None;
                match voting.quiet {
                    Some(quiet) if quiet == generation => {
                        voting.voted = Some(generation);
                        let proposal = voting.proposal;
                        step.send(LEADER, Message::Vote { dataset, proposal, part: result });
                    }
                    Some(quiet) => {
                        voting.scanning = Some(quiet);
                        step.effect(Effect::Scan { dataset, generation: quiet });
                    }
                    None => {}
                }
            }
            Outcome::Advanced { dataset, activity, bytes } => {
                step.send(LEADER, Message::Advanced { dataset, activity, bytes });
            }
            // The leader's business.
            Outcome::FlushCompleted { .. } => {}
        }
    }
}
