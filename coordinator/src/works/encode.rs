//! Encode: the parity of this node's slots, their checksums, and copies of both to the set.
//!
//! For each slot: *waiting* for the room that the daemon keeps for the parity -> *computing* its parity by plan, while peers pull this slot's data for theirs ->
//! *summing*: until every unit of the log has been read by somebody and so has its checksum ->
//! *storing* parity and checksums durably -> *sharing* manifest and checksums with the set -> done.

use super::{Context, Jobs, Turn, seal_of};
use crate::effects::part_failure;
use crate::part::Part;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::path::Keep;
use scrfs::protocol::message::{Failure, Message};
use scrfs::redundancy::Stream;
use scrfs::store::posix::PosixStore;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    Computing,
    Summing,
    Storing,
    /// Until these ranks keep a copy.
    Sharing(BTreeSet<Rank>),
    Done,
}

/// One order to encode.
#[derive(Debug)]
pub(super) struct Encode {
    dataset: DatasetId,
    holders: BTreeMap<Slot, Rank>,
    stages: BTreeMap<Slot, Stage>,
}

impl Encode {
    /// Begins to make the parity of those of `slots` that this node holds.
    pub(super) fn begin(
        me: Rank,
        ticket: u64,
        dataset: DatasetId,
        slots: &[Slot],
        holders: &[(Slot, Rank)],
        context: &mut Context<'_>,
    ) -> Result<Self, Failure> {
        let holders: BTreeMap<Slot, Rank> = holders.iter().copied().collect();
        let mut stages = BTreeMap::new();
        for &slot in slots.iter().filter(|slot| holders.get(slot) == Some(&me)) {
            let part = context
                .parts
                .open(dataset, slot)
                .map_err(|error| part_failure(&error))?;
            stages.insert(slot, Stage::Waiting);
            context.spawn(ticket, slot, move || {
                part.await_room();
                Ok(None)
            });
        }
        Ok(Self {
            dataset,
            holders,
            stages,
        })
    }

    /// The parity has its room: it can be computed.
    fn compute(
        &mut self,
        ticket: u64,
        slot: Slot,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Turn {
        let begun = context.record(self.dataset).and_then(|record| {
            let seal = seal_of(&record)?;
            let geometry = seal.geometry_of(slot).map_err(|error| {
                Failure::new(scrfs::control::Refusal::Failed, error.to_string())
            })?;
            let plan = geometry.encode(slot, seal.unit_bytes);
            let job = jobs.begin(ticket, slot);
            context
                .engine
                .start(job, self.dataset, Box::new(plan), self.holders.clone());
            self.stages.insert(slot, Stage::Computing);
            // With nobody to pull it, the data is read here, for its checksums.
            if geometry.members().len() == 1 || seal.scheme.parity_count() == 0 {
                let part = context
                    .parts
                    .open(self.dataset, slot)
                    .map_err(|error| part_failure(&error))?;
                Self::sum_alone(ticket, slot, part, context);
            }
            Ok(())
        });
        match begun {
            Ok(()) => Turn::GoesOn,
            Err(failure) => Turn::Ends(Err(failure)),
        }
    }

    fn sum_alone(ticket: u64, slot: Slot, part: Arc<Part>, context: &Context<'_>) {
        context.spawn(ticket, slot, move || {
            part.fill_missing_sums(Stream::Data)
                .map_err(|error| part_failure(&error))?;
            Ok(None)
        });
    }

    pub(super) fn dataset(&self) -> DatasetId {
        self.dataset
    }

    pub(super) fn is_done(&self) -> bool {
        self.stages.values().all(|stage| *stage == Stage::Done)
    }

    /// The parity of a slot is written.
    pub(super) fn computed(&mut self, ticket: u64, slot: Slot, context: &mut Context<'_>) -> Turn {
        self.stages.insert(slot, Stage::Summing);
        self.summed(ticket, context)
    }

    /// Looks whether checksums have become complete.
    pub(super) fn summed(&mut self, ticket: u64, context: &mut Context<'_>) -> Turn {
        let dataset = self.dataset;
        for (&slot, stage) in &mut self.stages {
            if *stage != Stage::Summing || !context.parts.is_summed(dataset, slot) {
                continue;
            }
            *stage = Stage::Storing;
            let part = match context.parts.open(dataset, slot) {
                Ok(part) => part,
                Err(error) => return Turn::Ends(Err(part_failure(&error))),
            };
            context.spawn(ticket, slot, move || {
                let store = PosixStore::new();
                part.fill_missing_sums(Stream::Parity)
                    .and_then(|()| part.commit_parity())
                    .and_then(|()| part.store_sums(&store, Stream::Data))
                    .and_then(|()| part.store_sums(&store, Stream::Parity))
                    .map_err(|error| part_failure(&error))?;
                Ok(None)
            });
        }
        Turn::GoesOn
    }

    /// A step on another thread has ended well: parity and checksums of a slot are durable, or its
    /// data has been read alone.
    pub(super) fn task_ended(
        &mut self,
        me: Rank,
        ticket: u64,
        slot: Slot,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Turn {
        if self.stages.get(&slot) == Some(&Stage::Waiting) {
            return self.compute(ticket, slot, jobs, context);
        }
        if self.stages.get(&slot) != Some(&Stage::Storing) {
            context.parts.recount(self.dataset, slot);
            return self.summed(ticket, context);
        }
        let dataset = self.dataset;
        let record = match context.record(dataset) {
            Ok(record) => record,
            Err(failure) => return Turn::Ends(Err(failure)),
        };
        let set = record
            .seal
            .as_ref()
            .and_then(|seal| seal.set_of(slot))
            .unwrap_or(&[]);
        let peers: BTreeSet<Rank> = set
            .iter()
            .filter_map(|member| self.holders.get(member).copied())
            .filter(|rank| *rank != me)
            .collect();
        if peers.is_empty() {
            self.stages.insert(slot, Stage::Done);
            return Turn::GoesOn;
        }
        let Some(metadata) = super::metadata_of(dataset, slot, context) else {
            let path = context.parts.paths().slot(dataset, slot, Keep::Own);
            let text = format!(
                "what was just written to {} does not read back",
                path.display()
            );
            return Turn::Ends(Err(Failure::new(scrfs::control::Refusal::Failed, text)));
        };
        for &peer in &peers {
            context.send(peer, Message::Keep(Box::new(metadata.clone())));
        }
        self.stages.insert(slot, Stage::Sharing(peers));
        Turn::GoesOn
    }

    /// A peer keeps a copy, or cannot.
    pub(super) fn kept(
        &mut self,
        from: Rank,
        dataset: DatasetId,
        slot: Slot,
        result: Result<(), Failure>,
    ) -> Turn {
        if dataset != self.dataset {
            return Turn::GoesOn;
        }
        let Some(Stage::Sharing(missing)) = self.stages.get_mut(&slot) else {
            return Turn::GoesOn;
        };
        if let Err(failure) = result {
            return Turn::Ends(Err(failure));
        }
        missing.remove(&from);
        if missing.is_empty() {
            self.stages.insert(slot, Stage::Done);
        }
        Turn::GoesOn
    }
}
