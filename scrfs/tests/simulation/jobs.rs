//! Work as the transfer engine would leave it on disk: what is there after it, or why not.
//!
//! Contents are modelled by information: a rebuild gives the sealed files exactly when every set
//! has lost no more than its scheme tolerates, a copy of the manifest survives, and the rest is
//! whole with its parity. Everything is checked on the disks, nothing taken from the protocol.

use crate::disk::{Content, Part, summary_of};
use crate::world::World;
use rand::Rng;
use scrfs::control::Refusal;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::message::{Failure, Order};
use scrfs::protocol::step::{Outcome, Presence};

/// Something a coordinator has begun.
#[derive(Debug)]
pub struct Job {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    MakePart {
        ticket: u64,
        record: Box<DatasetRecord>,
    },
    Scan {
        dataset: DatasetId,
        generation: u64,
        before: Option<Content>,
    },
    Work {
        ticket: u64,
        order: Order,
    },
    CompleteFlush {
        record: Box<DatasetRecord>,
    },
    WritePointers {
        due: Box<Pointers>,
    },
    AskPrefix {
        record: Box<DatasetRecord>,
    },
    Look,
}

type Holders = [(Slot, scrfs::id::Rank)];

fn failed(text: impl Into<String>) -> Failure {
    Failure::new(Refusal::Failed, text)
}

impl World {
    /// A job ends; its outcome goes to its coordinator.
    pub fn end_job(&mut self, job: Job) {
        let Job { at, kind } = job;
        self.note(|| format!("{at} ends {kind:?}"));
        // Who looks, looks again.
        let unlucky = match &kind {
            Kind::Look => None,
            Kind::Work { order, .. } => {
                let from_prefix = matches!(order, Order::Fetch { .. } | Order::CheckInPlace { .. });
                self.unlucky().map(|mut failure| {
                    // Another try may go well, or not.
                    if from_prefix && failure.refusal == Refusal::Failed {
                        failure.refusal = Refusal::Unavailable;
                    }
                    failure
                })
            }
            _ => self.unlucky(),
        };
        // What fails may have done half of its work, or all.
        let half = unlucky.is_some() && self.percent(50);
        let result = match &unlucky {
            Some(failure) if !half => Err(failure.clone()),
            _ => self.perform(at, &kind),
        };
        if unlucky.is_some() {
            self.checker.injected(&kind);
        }
        let result = match unlucky {
            Some(failure) => Err(failure),
            None => result,
        };
        if let Err(failure) = &result {
            self.note(|| format!("  failed: {failure}"));
        }
        if let (Kind::CompleteFlush { .. }, Ok(_)) = (&kind, &result) {
            self.look_soon();
        }
        let outcome = match kind {
            Kind::MakePart { ticket, .. } | Kind::Work { ticket, .. } => Outcome::Worked {
                ticket,
                result: result.map(drop),
            },
            Kind::Scan {
                dataset,
                generation,
                ..
            } => {
                let slot = Slot(at as u32);
                let result =
                    result.map(|content| summary_of(dataset, slot, &content.unwrap_or_default()));
                Outcome::Scanned {
                    dataset,
                    generation,
                    result,
                }
            }
            Kind::WritePointers { due } => Outcome::PointersWritten {
                due,
                result: result.map(drop),
            },
            Kind::Look => Outcome::PrefixSeen {
                result: result.map(|_| self.view().map(Box::new)),
            },
            Kind::AskPrefix { record } => Outcome::PrefixHolds {
                dataset: record.id,
                result: result.map(|_| self.presence(&record)),
            },
            Kind::CompleteFlush { record } => Outcome::FlushCompleted {
                dataset: record.id,
                result: result.map(drop),
            },
        };
        self.input(at, |node, now| node.handle_outcome(now, outcome));
    }

    /// Work is stopped because it failed elsewhere; that is the driver's business, not the node's.
    pub fn abandon(&mut self, at: usize, ticket: u64) {
        let is_it = |job: &Job| {
            job.at == at && matches!(&job.kind, Kind::Work { ticket: its, .. } if *its == ticket)
        };
        let Some(job) = self.jobs.iter().position(is_it) else {
            return;
        };
        let Job { kind, .. } = self.jobs.swap_remove(job);
        self.checker.injected(&kind);
        let result = Err(Failure::new(Refusal::Again, "failed elsewhere"));
        let outcome = Outcome::Worked { ticket, result };
        self.input(at, |node, now| node.handle_outcome(now, outcome));
    }

    fn unlucky(&mut self) -> Option<Failure> {
        let failing = self.failing;
        let refusal = match self.percent(50) {
            true => Refusal::NoSpace,
            false => Refusal::Failed,
        };
        self.percent(failing)
            .then(|| Failure::new(refusal, "drawn"))
    }

    /// Whether the prefix has it now.
    pub fn is_published(&self, record: &DatasetRecord) -> bool {
        let prefix = self.prefix.as_ref();
        let entry = prefix.and_then(|it| it.complete.get(&record.id));
        entry.is_some_and(|(it, _)| it.created == record.created)
    }

    fn presence(&self, record: &DatasetRecord) -> Presence {
        let prefix = self.prefix.as_ref();
        let mut complete = prefix.iter().flat_map(|prefix| prefix.complete.values());
        match self.is_published(record) {
            true => Presence::Settled,
            false if complete.any(|(it, _)| it.name == record.name) => Presence::Replaced,
            false => Presence::Gone,
        }
    }

    /// What the job leaves on disk. A scan also gives what it found.
    pub fn perform(&mut self, at: usize, kind: &Kind) -> Result<Option<Content>, Failure> {
        let slot = Slot(at as u32);
        let machine = self.coords[at].machine;
        match kind {
            Kind::MakePart { record, .. } => {
                self.machines[machine]
                    .disk
                    .parts
                    .entry((record.id, slot))
                    .or_default();
                Ok(None)
            }
            Kind::Scan {
                dataset, before, ..
            } => {
                let now = self.machines[machine].disk.parts.get(&(*dataset, slot));
                let now = now.map(|part| part.tree.clone());
                let (Some(before), Some(now)) = (before, now) else {
                    return Err(failed("no part"));
                };
                // Not a picture of one moment: each file is seen then or now.
                let mut found = Content::new();
                for path in before.keys().chain(now.keys()) {
                    let early = self.rng.random_bool(0.5);
                    let version = if early {
                        before.get(path)
                    } else {
                        now.get(path)
                    };
                    if let Some(version) = version {
                        found.insert(path.clone(), *version);
                    }
                }
                if let Some(part) = self.machines[machine].disk.parts.get_mut(&(*dataset, slot)) {
                    part.manifest = Some(found.clone());
                }
                Ok(Some(found))
            }
            Kind::WritePointers { due } => {
                if let Some(prefix) = &mut self.prefix {
                    prefix.pointers.merge(due);
                }
                Ok(None)
            }
            Kind::AskPrefix { .. } | Kind::Look => Ok(None),
            Kind::Work { order, .. } => self.work(at, order).map(|()| None),
            Kind::CompleteFlush { record } => {
                let epoch = self.epoch;
                let prefix = self.prefix.as_mut().ok_or(failed("no prefix"))?;
                prefix
                    .complete(record, epoch)
                    .map_err(failed)
                    .map(|()| None)
            }
        }
    }

    fn work(&mut self, at: usize, order: &Order) -> Result<(), Failure> {
        match order {
            Order::Encode {
                dataset,
                slots,
                holders,
            } => self.encode(at, *dataset, slots, holders),
            Order::Rebuild {
                dataset,
                holders,
                lost,
            } => self.rebuild(at, *dataset, holders, lost),
            Order::Flush { dataset, holders } => {
                let epoch = self.epoch;
                for slot in held_by(at, holders) {
                    let part = self.whole(at, *dataset, slot)?;
                    let prefix = self.prefix.as_mut().ok_or(failed("no prefix"))?;
                    let attempt = prefix.inflight.entry((*dataset, epoch)).or_default();
                    attempt.insert(slot, part.tree);
                }
                Ok(())
            }
            Order::Fetch { record, holders } => {
                for slot in held_by(at, holders) {
                    let prefix = self.prefix.as_ref().ok_or(failed("no prefix"))?;
                    let (_, contents) = prefix
                        .complete
                        .get(&record.id)
                        .ok_or(failed("not in the prefix"))?;
                    let content = contents
                        .get(slot.0 as usize)
                        .ok_or(failed("no such slot"))?;
                    let part = restored(content.clone());
                    let machine = self.coords[at].machine;
                    self.machines[machine]
                        .disk
                        .parts
                        .insert((record.id, slot), part);
                }
                Ok(())
            }
            Order::CheckInPlace { record, .. } => {
                let prefix = self.prefix.as_ref().ok_or(failed("no prefix"))?;
                let there = prefix.complete.contains_key(&record.id);
                there.then_some(()).ok_or(failed("not in the prefix"))
            }
            other => Err(failed(format!("not work: {other:?}"))),
        }
    }

    /// The part of a slot on the disk of a rank whose coordinator can serve it, if it is whole.
    fn whole(&self, at: usize, dataset: DatasetId, slot: Slot) -> Result<Part, Failure> {
        let coord = self.coords.get(at).filter(|coord| coord.node.is_some());
        let coord = coord.ok_or(failed(format!("rank {at} does not answer")))?;
        let disk = &self.machines[coord.machine].disk;
        let record = disk.records.get(&dataset).ok_or(failed("no record"))?;
        match disk.parts.get(&(dataset, slot)) {
            Some(part) if disk.has_whole(record, slot) => Ok(part.clone()),
            _ => Err(failed(format!("{slot} of {dataset} is not whole on {at}"))),
        }
    }

    fn encode(
        &mut self,
        at: usize,
        dataset: DatasetId,
        slots: &[Slot],
        holders: &Holders,
    ) -> Result<(), Failure> {
        let record = self.disk_of(at).records.get(&dataset).cloned();
        let seal = record
            .and_then(|record| record.seal)
            .ok_or(failed("not sealed"))?;
        for slot in held_by(at, holders) {
            self.whole(at, dataset, slot)?;
            if !slots.contains(&slot) {
                continue;
            }
            let set = seal.set_of(slot).ok_or(failed("in no set"))?.to_vec();
            let mut others = Vec::new();
            for member in set {
                let (_, rank) = holders
                    .iter()
                    .find(|(held, _)| *held == member)
                    .ok_or(failed(format!("nobody holds {member}")))?;
                self.whole(rank.0 as usize, dataset, member)?;
                if rank.0 as usize != at {
                    others.push(rank.0 as usize);
                }
            }
            for other in others {
                let machine = self.coords[other].machine;
                self.machines[machine].disk.copies.insert((dataset, slot));
            }
            let machine = self.coords[at].machine;
            if let Some(part) = self.machines[machine].disk.parts.get_mut(&(dataset, slot)) {
                (part.sums, part.parity) = (true, true);
            }
        }
        Ok(())
    }

    fn rebuild(
        &mut self,
        at: usize,
        dataset: DatasetId,
        holders: &Holders,
        lost: &[(Slot, scrfs::id::Rank)],
    ) -> Result<(), Failure> {
        let record = self.disk_of(at).records.get(&dataset).cloned();
        let seal = record
            .and_then(|record| record.seal)
            .ok_or(failed("not sealed"))?;
        for slot in held_by(at, lost) {
            let set = seal.set_of(slot).ok_or(failed("in no set"))?;
            let mut vouched = Vec::new();
            let mut gone = 0;
            let mut known = false;
            for member in set {
                let holder = holders.iter().find(|(held, _)| held == member);
                let part = holder.and_then(|(_, rank)| {
                    let rank = rank.0 as usize;
                    let disk = self.disk_of(rank);
                    let own = disk.parts.get(&(dataset, slot)).filter(|part| part.sums);
                    known |= disk.copies.contains(&(dataset, slot)) || own.is_some();
                    self.whole(rank, dataset, *member).ok()
                });
                if part.is_some_and(|part| part.sums && part.parity) {
                    vouched.push((dataset, *member));
                } else {
                    gone += 1;
                }
            }
            if gone > seal.scheme.tolerates() || !known {
                return Err(failed(format!("{slot} of {dataset} cannot be recomputed")));
            }
            let content = self
                .checker
                .content(dataset, slot)
                .ok_or(failed("never sealed"))?;
            let machine = self.coords[at].machine;
            let disk = &mut self.machines[machine].disk;
            disk.parts.insert((dataset, slot), restored(content));
            // What it read from the others' metadata it keeps.
            disk.copies.extend(vouched);
        }
        Ok(())
    }
}

fn restored(content: Content) -> Part {
    Part {
        tree: content.clone(),
        manifest: Some(content),
        sums: true,
        parity: false,
    }
}

fn held_by(at: usize, holders: &Holders) -> Vec<Slot> {
    holders
        .iter()
        .filter(|(_, rank)| rank.0 as usize == at)
        .map(|(slot, _)| *slot)
        .collect()
}
