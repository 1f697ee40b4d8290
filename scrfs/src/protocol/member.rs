//! A member: carries out the leader's orders on its node, and votes for its part.
//!
//! Voting, for one dataset: `Collect` -> quiesce the daemon -> *quiet* -> scan -> vote. A disturbance
//! after the scan began voids it; after the vote, it is withdrawn. `Confirm` freezes the dataset at the
//! voted generation or fails. A vote that was not withdrawn therefore describes exactly what is
//! on disk, from the scan until the seal.

mod begin;

use super::message::{Failure, Inventory, Message, Order};
use super::step::{Effect, Outcome, Step, Write};
use crate::control::{FromDaemon, Refusal, ToDaemon};
use crate::findings::Findings;
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::pointer::Pointers;
use crate::layout::record::{DatasetRecord, EpochRecord, Phase, Seal};
use crate::topology::redundancy_sets;
use begin::Beginning;
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
    /// The same, and its record goes first.
    Forget { ticket: u64, dataset: DatasetId },
    /// One dataset less to be out of sight before this member begins.
    Clear,
    /// One thing less to be shown before this member has begun.
    Begin,
}

/// One dataset this member is asked to vote on.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Voting {
    proposal: u64,
    /// How long the dataset must be quiet before it is voted on.
    settle_ms: u64,
    /// Generation of the daemon's last `Quiet`, while it holds.
    quiet: Option<u64>,
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
    /// All pointer files, as the leader last told.
    pointers: Pointers,
    /// The failure groups of all ranks: who has the same one is in the same.
    groups: Vec<String>,
    voting: BTreeMap<DatasetId, Voting>,
    /// Datasets being scanned. It outlives the voting it was begun for: two scans at once would
    /// leave the manifest of the slower one, whatever was voted.
    scanning: BTreeSet<DatasetId>,
    then: BTreeMap<u64, Then>,
    making: BTreeMap<u64, DatasetRecord>,
    /// What verifies that have not ended have found, by their tickets.
    findings: BTreeMap<u64, Box<Findings>>,
    next_sequence: u64,
    /// Things the daemon has yet to show before this member has begun.
    to_show: Option<usize>,
    /// What to begin with, once the daemon has put out of sight what is not among it.
    beginning: Option<Beginning>,
    /// The leader is on this node, too, and has put a record down before it gives an order. Then the
    /// record of an order that is carried out late is an old one, and not put down again.
    leads: bool,
    /// The epoch record, as it is on disk.
    begun: EpochRecord,
    /// Highest dataset number seen here.
    last_dataset: u64,
    /// Highest checkpoint number seen here.
    last_checkpoint: u64,
}

impl Member {
    /// A member that has not begun, on a node with this inventory.
    pub fn new(epoch: Epoch, slot: Slot, leads: bool, inventory: &Inventory) -> Self {
        let entries = || inventory.datasets.iter();
        Self {
            epoch,
            slot,
            catalog: entries()
                .map(|entry| (entry.record.id, (*entry.record).clone()))
                .collect(),
            found: entries()
                .map(|entry| {
                    (
                        entry.record.id,
                        entry.parts.iter().map(|part| part.slot).collect(),
                    )
                })
                .collect(),
            pointers: Pointers::default(),
            groups: Vec::new(),
            voting: BTreeMap::new(),
            scanning: BTreeSet::new(),
            then: BTreeMap::new(),
            making: BTreeMap::new(),
            findings: BTreeMap::new(),
            next_sequence: 1,
            to_show: None,
            beginning: None,
            leads,
            begun: inventory.epoch.clone(),
            last_dataset: 0,
            last_checkpoint: 0,
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

    /// Takes note of numbers given out, and of the record.
    fn learn(&mut self, record: &DatasetRecord) {
        self.last_dataset = self.last_dataset.max(record.id.0);
        self.last_checkpoint = self.last_checkpoint.max(record.checkpoint.unwrap_or(0));
        self.catalog.insert(record.id, record.clone());
    }

    fn put(&self, record: &DatasetRecord, step: &mut Step) {
        if !self.leads {
            step.write(Write::Dataset(Box::new(record.clone())));
        }
    }

    /// Makes the numbers durable before a record that shows them goes, so that none comes twice.
    fn keep_numbers(&mut self, step: &mut Step) {
        let known = (self.begun.last_dataset, self.begun.last_checkpoint);
        if (self.last_dataset, self.last_checkpoint) != known {
            self.begun.last_dataset = self.last_dataset;
            self.begun.last_checkpoint = self.last_checkpoint;
            step.write(Write::Epoch(self.begun.clone()));
        }
    }

    fn publish(&mut self, record: DatasetRecord, then: Then, step: &mut Step) {
        let sequence = self.sequence(then);
        step.daemon(ToDaemon::Dataset {
            sequence,
            record: Box::new(record),
        });
    }

    fn answer(ticket: u64, result: Result<(), Failure>, step: &mut Step) {
        let findings = None;
        let done = Message::Done {
            ticket,
            result,
            findings,
        };
        step.send(LEADER, done);
    }

    /// Takes a message of the leader.
    pub fn handle_message(&mut self, message: Message, step: &mut Step) {
        match message {
            Message::Begin {
                records,
                spare,
                last_dataset,
                last_checkpoint,
                pointers,
                groups,
            } => {
                self.groups = groups.iter().map(ToString::to_string).collect();
                (self.last_dataset, self.last_checkpoint) = (last_dataset, last_checkpoint);
                self.pointers = pointers;
                self.clear(records, spare, step);
            }
            Message::Foresee {
                dataset,
                scheme,
                set_size,
                chunk_bytes,
                unit_bytes,
            } => {
                let sets = redundancy_sets(&self.groups, set_size).unwrap_or_default();
                let own = sets.into_iter().find(|set| set.contains(&self.slot));
                let seal = Box::new(Seal {
                    epoch: self.epoch,
                    scheme,
                    chunk_bytes,
                    unit_bytes,
                    sets: own.into_iter().collect(),
                    parts: Vec::new(),
                });
                step.effect(Effect::Foresee { dataset, seal });
            }
            Message::Abandon { ticket } => step.effect(Effect::Abandon { ticket }),
            Message::Reply { request, result } => step.daemon(ToDaemon::Reply { request, result }),
            Message::Verdict { request, verdict } => {
                step.daemon(ToDaemon::Verdict { request, verdict });
            }
            Message::Order { ticket, order } => self.obey(ticket, order, step),
            Message::Collect {
                dataset,
                proposal,
                settle_ms,
            } => {
                let voting = Voting {
                    proposal,
                    settle_ms,
                    quiet: None,
                    voted: None,
                };
                self.voting.insert(dataset, voting);
                step.daemon(ToDaemon::Quiesce { dataset, settle_ms });
            }
            Message::Release {
                dataset,
                proposal,
                again,
            } => {
                let held = self.voting.get(&dataset);
                let Some(voting) = held.filter(|voting| voting.proposal == proposal) else {
                    return;
                };
                let settle_ms = voting.settle_ms;
                step.daemon(ToDaemon::Thaw { dataset });
                if again {
                    step.daemon(ToDaemon::Quiesce { dataset, settle_ms });
                } else {
                    self.voting.remove(&dataset);
                }
            }
            Message::Progress(progress) => step.daemon(ToDaemon::Progress(progress)),
            Message::Due(datasets) => step.daemon(ToDaemon::Due(datasets)),
            Message::Shelf(shelf) => step.daemon(ToDaemon::Shelf(shelf)),
            Message::Learnt(learnt) => step.daemon(ToDaemon::Learnt(learnt)),
            Message::Nodes(nodes) => step.daemon(ToDaemon::Nodes(nodes)),
            Message::Verified { dataset, findings } => {
                step.daemon(ToDaemon::Verified { dataset, findings });
            }
            Message::Losses {
                dataset,
                holders,
                lost,
                weak,
            } => {
                step.effect(Effect::Losses {
                    dataset,
                    holders,
                    lost: lost.clone(),
                });
                step.daemon(ToDaemon::Missing {
                    dataset,
                    slots: lost,
                    weak,
                });
            }
            Message::Ready { restart, new_run } => {
                step.daemon(ToDaemon::Ready { restart, new_run })
            }
            // What only the leader, or the driver, has a use for.
            Message::Hello(_)
            | Message::Begun
            | Message::Asked { .. }
            | Message::Question { .. }
            | Message::Verdicts(_)
            | Message::Done { .. }
            | Message::Vote { .. }
            | Message::Withdraw { .. }
            | Message::Advanced { .. }
            | Message::Stuck { .. }
            | Message::Pressure(_)
            | Message::Keep(_)
            | Message::Kept { .. }
            | Message::Reach { .. }
            | Message::Foreknown { .. }
            | Message::WantMetadata { .. }
            | Message::Hellos(_)
            | Message::Votes { .. }
            | Message::Down { .. }
            | Message::Up(_)
            | Message::HaveMetadata { .. }
            | Message::WantPiece { .. }
            | Message::HavePiece { .. } => {}
        }
    }

    fn obey(&mut self, ticket: u64, order: Order, step: &mut Step) {
        match order {
            Order::Create(record) => {
                self.put(&record, step);
                self.last_dataset = self.last_dataset.max(record.id.0);
                self.making.insert(ticket, (*record).clone());
                step.effect(Effect::MakePart { ticket, record });
            }
            Order::Amend(mut record) => {
                let known = self
                    .catalog
                    .get(&record.id)
                    .filter(|it| it.key() == record.key());
                match known.and_then(|known| known.seal.clone()) {
                    Some(seal) => {
                        record.seal = Some(seal);
                        self.obey(ticket, Order::Update(record), step);
                    }
                    None => {
                        let text = format!("nothing is known here of the seal of {}", record.id);
                        Self::answer(ticket, Err(Failure::new(Refusal::Failed, text)), step);
                    }
                }
            }
            Order::Update(record) => {
                self.put(&record, step);
                if record.phase != Phase::Open {
                    self.voting.remove(&record.id);
                }
                self.learn(&record);
                let then = match record.phase {
                    Phase::Evicted => Then::Drop {
                        ticket,
                        dataset: record.id,
                    },
                    _ => Then::Answer(ticket),
                };
                self.publish(*record, then, step);
            }
            Order::Forget(dataset) => {
                self.catalog.remove(&dataset);
                self.voting.remove(&dataset);
                let sequence = self.sequence(Then::Forget { ticket, dataset });
                step.daemon(ToDaemon::Forget { sequence, dataset });
            }
            Order::Point(records) => {
                for (name, record) in &records {
                    self.pointers.learn(name.clone(), record.clone());
                }
                if !self.leads {
                    step.write(Write::Pointers(Box::new(self.pointers.clone())));
                }
                let sequence = self.sequence(Then::Answer(ticket));
                step.daemon(ToDaemon::Pointers {
                    sequence,
                    all: false,
                    records,
                });
            }
            Order::Raise(term) => {
                self.pointers.term = self.pointers.term.max(term);
                if !self.leads {
                    step.write(Write::Pointers(Box::new(self.pointers.clone())));
                }
                Self::answer(ticket, Ok(()), step);
            }
            Order::Change { dataset, change } => {
                let sequence = self.sequence(Then::Answer(ticket));
                step.daemon(ToDaemon::Change {
                    sequence,
                    dataset,
                    change,
                });
            }
            Order::Confirm { dataset, proposal } => {
                let voting = self
                    .voting
                    .get(&dataset)
                    .filter(|held| held.proposal == proposal);
                match voting.and_then(|held| held.voted) {
                    Some(generation) => {
                        let sequence = self.sequence(Then::Freeze { ticket, dataset });
                        step.daemon(ToDaemon::Freeze {
                            sequence,
                            dataset,
                            generation,
                        });
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
            | Order::Fetch { .. }
            | Order::CheckInPlace { .. }
            | Order::Verify { .. }) => step.effect(Effect::Work { ticket, order }),
        }
    }

    /// Takes a word of this node's daemon.
    pub fn handle_daemon(&mut self, word: FromDaemon, step: &mut Step) {
        match word {
            FromDaemon::Request { request, what } => {
                step.send(LEADER, Message::Asked { request, what });
            }
            FromDaemon::Question { request, question } => {
                step.send(LEADER, Message::Question { request, question });
            }
            FromDaemon::Verdicts(verdicts) => step.send(LEADER, Message::Verdicts(verdicts)),
            FromDaemon::Done { sequence, result } => self.daemon_done(sequence, result, step),
            FromDaemon::Quiet {
                dataset,
                generation,
            } => {
                let Some(voting) = self.voting.get_mut(&dataset) else {
                    return;
                };
                voting.quiet = Some(generation);
                if voting.voted == Some(generation) {
                    return;
                }
                Self::withdraw(dataset, voting, step);
                if self.scanning.insert(dataset) {
                    step.effect(Effect::Scan {
                        dataset,
                        generation,
                    });
                }
            }
            FromDaemon::Disturbed { dataset, .. } => {
                if let Some(voting) = self.voting.get_mut(&dataset) {
                    voting.quiet = None;
                    Self::withdraw(dataset, voting, step);
                }
            }
            FromDaemon::Pressure(pressure) => step.send(LEADER, Message::Pressure(pressure)),
            // The driver's business.
            FromDaemon::Stop { .. }
            | FromDaemon::Fetch { .. }
            | FromDaemon::Closed { .. }
            | FromDaemon::Reopened { .. }
            | FromDaemon::Move { .. } => {}
        }
    }

    fn withdraw(dataset: DatasetId, voting: &mut Voting, step: &mut Step) {
        if voting.voted.take().is_some() {
            step.send(
                LEADER,
                Message::Withdraw {
                    dataset,
                    proposal: voting.proposal,
                },
            );
        }
    }

    fn daemon_done(&mut self, sequence: u64, result: Result<(), Refusal>, step: &mut Step) {
        let result = result.map_err(|refusal| {
            Failure::new(
                refusal,
                format!("the daemon of {} answered {refusal:?}", self.slot),
            )
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
                step.effect(Effect::DropData {
                    dataset,
                    slots: Vec::new(),
                });
                Self::answer(ticket, result, step);
            }
            Some(Then::Forget { ticket, dataset }) => {
                self.keep_numbers(step);
                step.write(Write::Forget(dataset));
                step.effect(Effect::DropData {
                    dataset,
                    slots: Vec::new(),
                });
                Self::answer(ticket, result, step);
            }
            Some(Then::Clear) => {
                if let Some(beginning) = &mut self.beginning {
                    beginning.shown = beginning.shown.saturating_sub(1);
                }
                self.begin_if_clear(step);
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
            Outcome::Worked {
                ticket: NO_TICKET, ..
            } => {}
            Outcome::Worked { ticket, result } => match (self.making.remove(&ticket), result) {
                (Some(record), Ok(())) => {
                    self.learn(&record);
                    self.publish(record, Then::Answer(ticket), step);
                }
                (_, result) => {
                    let findings = self.findings.remove(&ticket);
                    let done = Message::Done {
                        ticket,
                        result,
                        findings,
                    };
                    step.send(LEADER, done);
                }
            },
            Outcome::Found { ticket, findings } => {
                self.findings.insert(ticket, findings);
            }
            Outcome::Scanned {
                dataset,
                generation,
                result,
            } => {
                self.scanning.remove(&dataset);
                let Some(voting) = self.voting.get_mut(&dataset) else {
                    return;
                };
                match voting.quiet {
                    Some(quiet) if quiet == generation => {
                        voting.voted = Some(generation);
                        let proposal = voting.proposal;
                        step.send(
                            LEADER,
                            Message::Vote {
                                dataset,
                                proposal,
                                part: result,
                            },
                        );
                    }
                    Some(quiet) => {
                        self.scanning.insert(dataset);
                        step.effect(Effect::Scan {
                            dataset,
                            generation: quiet,
                        });
                    }
                    None => {}
                }
            }
            Outcome::Advanced {
                dataset,
                activity,
                bytes,
            } => {
                step.send(
                    LEADER,
                    Message::Advanced {
                        dataset,
                        activity,
                        bytes,
                    },
                );
            }
            Outcome::Stuck { dataset, text } => {
                step.send(LEADER, Message::Stuck { dataset, text });
            }
            // The leader's business.
            Outcome::FlushCompleted { .. }
            | Outcome::PointersWritten { .. }
            | Outcome::Learnt(_)
            | Outcome::PrefixSeen { .. }
            | Outcome::PrefixHolds { .. } => {}
        }
    }
}
