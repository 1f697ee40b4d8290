//! The commit: propose, vote, confirm, seal.
//!
//! - Any program's trigger only proposes. Identical proposals join; another name is refused.
//! - A proposal may ask every node to be quiet for a while before it votes, because whoever made it
//!   only guesses that all is written. One that asks for less knows better and takes its place.
//! - Every member votes with the summary of a manifest that is durable on its node.
//! - When all votes stand, a second round freezes every node at its voted generation. If one cannot,
//!   all are released and voting goes on.
//! - When all are frozen, the seal is persisted here: **that is the decision**. Then every member
//!   persists it, and only when all have, the programs that proposed are answered.
//! - Before the decision, the deadline ends the proposal: all are released, the programs get
//!   `EBUSY`, the dataset stays open. After it, nothing can.
//!
//! A crash before the decision leaves the dataset open everywhere. A crash after it leaves the seal
//! on at least one node, and frozen, durable votes on all: the next epoch rolls it forward.

use super::{Asker, Leader, Led, Purpose};
use crate::config::{Class, CommitWait};
use crate::control::{Level, Refusal};
use crate::id::{DatasetId, Rank, Slot};
use crate::layout::record::{PartSummary, Phase, Seal, UNIT_BYTES};
use crate::name::Name;
use crate::protocol::Now;
use crate::protocol::message::{Failure, Message, Order};
use crate::protocol::step::Step;
use crate::redundancy::Scheme;
use crate::topology;
use std::collections::BTreeMap;

/// A commit that is being agreed on.
#[derive(Debug)]
pub(super) struct Proposal {
    number: u64,
    to: Name,
    /// How long every node must be quiet before it votes.
    settle_ms: u64,
    pub(super) askers: Vec<Asker>,
    deadline: u64,
    votes: BTreeMap<Rank, PartSummary>,
    confirming: bool,
}

impl Proposal {
    /// When it ends, if it has not been decided.
    pub(super) fn deadline(&self) -> Option<u64> {
        // While frozen it cannot expire: the answer is a matter of milliseconds.
        (!self.confirming).then_some(self.deadline)
    }

    /// Whether one that settles for so long takes its place.
    pub(super) fn yields_to(&self, settle_ms: u64) -> bool {
        !self.confirming && settle_ms < self.settle_ms
    }

    /// The name it is to give.
    pub(super) fn name(&self) -> &Name {
        &self.to
    }

    /// Whether members are freezing, or frozen.
    pub(super) fn is_confirming(&self) -> bool {
        self.confirming
    }

    /// Whether it is to give this name.
    pub(super) fn is_for(&self, name: &Name) -> bool {
        self.to == *name
    }
}

impl Leader {
    /// How far a commit waits. Without a prefix, protected is as far as anything comes.
    fn commit_level(&self) -> Level {
        match self.config.commit.wait {
            CommitWait::Sealed => Level::Sealed,
            CommitWait::Flushed if self.prefix.is_some() => Level::Flushed,
            CommitWait::Protected | CommitWait::Flushed => Level::Protected,
        }
    }

    pub(super) fn propose(
        &mut self,
        now: Now,
        asker: Asker,
        dataset: DatasetId,
        (to, settle_ms): (Name, u64),
        step: &mut Step,
    ) {
        let wait = self.commit_level();
        let taken = self.is_taken(&to, dataset);
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return Self::reply(asker, Err(Refusal::Missing), step);
        };
        if led.leaving {
            return Self::reply(asker, Err(Refusal::Missing), step);
        }
        match led.record.phase {
            Phase::Open => {}
            Phase::Removed { .. } => return Self::reply(asker, Err(Refusal::Missing), step),
            // The identical rename of another process, however late it comes.
            _ if led.record.seal.is_some() && led.record.name == to => {
                led.flush_now |= wait == Level::Flushed;
                self.wait(asker, dataset, wait, step);
                return self.schedule(now, step);
            }
            _ => return Self::reply(asker, Err(Refusal::ReadOnly), step),
        }
        if taken {
            return Self::reply(asker, Err(Refusal::Exists), step);
        }
        let mut askers = vec![asker];
        match &mut led.proposal {
            Some(standing) if standing.yields_to(settle_ms) => {
                if standing.to == to {
                    askers.append(&mut standing.askers);
                }
                self.give_up(dataset, Refusal::Busy, step);
            }
            Some(standing) if standing.to == to => return standing.askers.push(asker),
            Some(_) => return Self::reply(asker, Err(Refusal::Busy), step),
            None => {}
        }
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let number = self.next_proposal;
        self.next_proposal += 1;
        let patience_ms = self.config.commit.grace_seconds.saturating_mul(1000);
        led.proposal = Some(Proposal {
            number,
            to,
            settle_ms,
            askers,
            deadline: now
                .tick
                .saturating_add(patience_ms)
                .saturating_add(settle_ms),
            votes: BTreeMap::new(),
            confirming: false,
        });
        let collect = Message::Collect {
            dataset,
            proposal: number,
            settle_ms,
        };
        step.cast(collect);
    }

    pub(super) fn standing_proposal(&self, dataset: DatasetId) -> Option<&Proposal> {
        self.datasets.get(&dataset)?.proposal.as_ref()
    }

    fn standing(&mut self, dataset: DatasetId, number: u64) -> Option<&mut Led> {
        self.datasets.get_mut(&dataset).filter(|led| {
            led.proposal
                .as_ref()
                .is_some_and(|held| held.number == number)
        })
    }

    pub(super) fn vote(
        &mut self,
        now: Now,
        from: Rank,
        (dataset, number): (DatasetId, u64),
        part: Result<PartSummary, Failure>,
        step: &mut Step,
    ) {
        let Some(led) = self.standing(dataset, number) else {
            return;
        };
        match (part, led.proposal.as_mut()) {
            (Ok(part), Some(proposal)) => {
                proposal.votes.insert(from, part);
                self.confirm_if_unanimous(dataset, step);
            }
            (Err(failure), _) => {
                led.record.error = Some(format!("commit refused by {from}: {failure}"));
                self.give_up(dataset, failure.refusal, step);
                self.update(dataset, Purpose::Noted, step);
            }
            (Ok(_), None) => {}
        }
        self.expire_proposals(now, step);
    }

    pub(super) fn withdrawn(&mut self, from: Rank, dataset: DatasetId, number: u64) {
        let proposal = self
            .standing(dataset, number)
            .and_then(|led| led.proposal.as_mut());
        if let Some(proposal) = proposal {
            proposal.votes.remove(&from);
        }
    }

    fn confirm_if_unanimous(&mut self, dataset: DatasetId, step: &mut Step) {
        let size = self.size as usize;
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let Some(proposal) = &mut led.proposal else {
            return;
        };
        if proposal.confirming || proposal.votes.len() < size {
            return;
        }
        proposal.confirming = true;
        let proposal = proposal.number;
        let purpose = Purpose::Confirm { dataset, proposal };
        self.order(Order::Confirm { dataset, proposal }, purpose, step);
    }

    pub(super) fn confirmed(
        &mut self,
        now: Now,
        dataset: DatasetId,
        number: u64,
        frozen: bool,
        step: &mut Step,
    ) {
        let size = self.size as usize;
        let Some(led) = self.standing(dataset, number) else {
            return;
        };
        let Some(proposal) = &mut led.proposal else {
            return;
        };
        proposal.confirming = false;
        // Frozen everywhere at voted generations: then no vote can have been withdrawn.
        if frozen && proposal.votes.len() == size {
            return self.decide(now, dataset, step);
        }
        let again = now.tick < proposal.deadline;
        if again {
            step.cast(Message::Release {
                dataset,
                proposal: number,
                again,
            });
            self.confirm_if_unanimous(dataset, step);
        } else {
            self.give_up(dataset, Refusal::Busy, step);
        }
    }

    fn decide(&mut self, now: Now, dataset: DatasetId, step: &mut Step) {
        let Some(proposal) = self
            .datasets
            .get_mut(&dataset)
            .and_then(|led| led.proposal.take())
        else {
            return;
        };
        let Proposal {
            to, askers, votes, ..
        } = proposal;
        let class = self.config.class_of(to.as_bytes());
        let checkpoint = class.is_checkpoint().then(|| self.last_checkpoint + 1);
        let (seal, warning) = self.seal((class, checkpoint), votes.into_values().collect());
        self.last_checkpoint = checkpoint.unwrap_or(self.last_checkpoint);
        let replaced: Vec<DatasetId> = self
            .datasets
            .iter()
            .filter(|(id, led)| {
                let kept = led.record.phase == Phase::Open || led.record.is_removed();
                **id != dataset && led.record.name == to && !kept
            })
            .map(|(id, _)| *id)
            .collect();
        let wait = self.commit_level();
        let ranks = self.ranks();
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let from = std::mem::replace(&mut led.record.name, to);
        led.record.committed_from = (from != led.record.name).then_some(from);
        led.record.class = class;
        led.record.checkpoint = checkpoint;
        led.record.phase = Phase::Sealed;
        led.record.sealed = Some(now.wall);
        led.record.seal = Some(seal);
        led.record.error = warning;
        led.holders = ranks.map(|rank| (Slot(rank.0), rank)).collect();
        led.flush_now |= wait == Level::Flushed;
        led.waiters
            .extend(askers.into_iter().map(|asker| (wait, asker)));
        self.room.touch(dataset);
        self.update_reached(dataset, step);
        for gone in replaced {
            self.forget(gone, None, step);
        }
        // What an earlier run left unfinished or lost has been overtaken.
        let overtaken: Vec<DatasetId> = self
            .datasets
            .iter()
            .filter(|(_, led)| {
                matches!(led.record.phase, Phase::Incomplete | Phase::Lost) && !led.leaving
            })
            .map(|(id, _)| *id)
            .collect();
        for gone in overtaken {
            self.forget(gone, None, step);
        }
    }

    /// Tells every member what the seal of a dataset that is about to be written would be now. Its class may come
    /// to be another with the name that it gets.
    pub(super) fn foresee(&self, dataset: DatasetId, step: &mut Step) {
        if self.config.ahead_percent == 0 {
            return;
        }
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        let class = self.config.class_of(led.record.name.as_bytes());
        let checkpoint = class.is_checkpoint().then(|| self.last_checkpoint + 1);
        let (seal, _) = self.seal((class, checkpoint), Vec::new());
        if seal.scheme.parity_count() > 0 {
            step.cast(Message::Foresee {
                dataset,
                scheme: seal.scheme,
                set_size: self.config.redundancy_for(class, checkpoint).set_size,
                chunk_bytes: seal.chunk_bytes,
                unit_bytes: seal.unit_bytes,
            });
        }
    }

    /// The failure groups of all ranks, numbered as they come.
    pub(super) fn numbered_groups(&self) -> Vec<u32> {
        let mut numbers = BTreeMap::new();
        let groups = self.groups().into_iter();
        let numbered = groups.map(|group| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            *numbers.entry(group).or_insert(next)
        });
        numbered.collect()
    }

    /// The failure groups of all ranks.
    fn groups(&self) -> Vec<&str> {
        let group = |rank| {
            self.hellos
                .get(&rank)
                .map_or("", |hello| hello.group.as_str())
        };
        self.ranks().map(group).collect()
    }

    fn seal(
        &self,
        (class, checkpoint): (Class, Option<u64>),
        parts: Vec<PartSummary>,
    ) -> (Seal, Option<String>) {
        let groups = self.groups();
        let redundancy = self.config.redundancy_for(class, checkpoint);
        let chunk_bytes = redundancy.chunk_bytes;
        let mut seal = Seal {
            epoch: self.epoch,
            scheme: redundancy.scheme,
            chunk_bytes,
            unit_bytes: u32::try_from(chunk_bytes)
                .unwrap_or(u32::MAX)
                .min(UNIT_BYTES),
            sets: vec![self.ranks().map(|rank| Slot(rank.0)).collect()],
            parts,
        };
        let mut warning = None;
        if self.size == 1 {
            seal.scheme = Scheme::Single;
        } else {
            match topology::redundancy_sets(&groups, redundancy.set_size) {
                Ok(sets) => seal.sets = sets,
                Err(error) => {
                    seal.scheme = Scheme::Single;
                    warning = Some(format!("kept without redundancy: {error}"));
                }
            }
        }
        let impossible = seal
            .sets
            .iter()
            .filter_map(|set| seal.geometry_of(*set.first()?).err())
            .next();
        if let Some(error) = impossible {
            warning = Some(format!("kept without redundancy: {error}"));
            seal.scheme = Scheme::Single;
        }
        (seal, warning)
    }

    /// Ends a proposal without a decision.
    pub(super) fn give_up(&mut self, dataset: DatasetId, refusal: Refusal, step: &mut Step) {
        let Some(proposal) = self
            .datasets
            .get_mut(&dataset)
            .and_then(|led| led.proposal.take())
        else {
            return;
        };
        let release = Message::Release {
            dataset,
            proposal: proposal.number,
            again: false,
        };
        step.cast(release);
        for asker in proposal.askers {
            Self::reply(asker, Err(refusal), step);
        }
    }

    pub(super) fn expire_proposals(&mut self, now: Now, step: &mut Step) {
        let expired: Vec<DatasetId> = self
            .datasets
            .iter()
            .filter(|(_, led)| {
                led.proposal
                    .as_ref()
                    .is_some_and(|proposal| proposal.deadline().is_some_and(|at| at <= now.tick))
            })
            .map(|(id, _)| *id)
            .collect();
        for dataset in expired {
            self.give_up(dataset, Refusal::Busy, step);
        }
    }
}
