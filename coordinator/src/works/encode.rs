//! Encode: the parity of this node's slots, their checksums, and copies of both to the set.
//!
//! For each slot: *waiting* for the room that the daemon keeps for the parity -> where some of it was made before the commit,
//! *hearing* from the set what holds of it (see `ahead`) -> *computing* the rest by plan, while peers pull this slot's data for theirs ->
//! *summing*: until every unit of the log has been read by somebody and so has its checksum ->
//! *storing* parity and checksums durably -> *sharing* manifest and checksums with the set -> done.

use super::{Context, Jobs, Turn, seal_of};
use crate::ahead::Settled;
use crate::effects::part_failure;
use crate::part::{Part, PartId};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::path::Keep;
use scrfs::protocol::message::{Failure, Message};
use scrfs::redundancy::{Extent, SetGeometry, Stream};
use scrfs::store::posix::PosixStore;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    Hearing,
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
    /// The slot that this node wrote itself.
    own: Slot,
    holders: BTreeMap<Slot, Rank>,
    stages: BTreeMap<Slot, Stage>,
    /// What was made before the commit, for this node's own slot.
    before: Settled,
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
        let mut before = Settled::default();
        for &slot in slots.iter().filter(|slot| holders.get(slot) == Some(&me)) {
            let part = context
                .parts
                .open(dataset, slot)
                .map_err(|error| part_failure(&error))?;
            if slot == Slot(me.0) && context.parts.ahead.was_foreseen(dataset) {
                before = Self::tell_foreknown(&part, &holders, me, context)?;
            }
            stages.insert(slot, Stage::Waiting);
            context.spawn(ticket, slot, move || {
                part.await_room();
                Ok(None)
            });
        }
        Ok(Self {
            dataset,
            own: Slot(me.0),
            holders,
            stages,
            before,
        })
    }

    /// Takes what was made before the commit, and tells the set what is known of this node's log from then. Every time: who
    /// waits for it may have begun anew.
    fn tell_foreknown(
        part: &Part,
        holders: &BTreeMap<Slot, Rank>,
        me: Rank,
        context: &mut Context<'_>,
    ) -> Result<Settled, Failure> {
        let PartId { dataset, slot } = part.id();
        let before = context.parts.ahead.take(dataset).unwrap_or_default();
        for (unit, crc) in before.sums.iter().enumerate() {
            if let Some(crc) = *crc {
                part.set_sum(Stream::Data, unit, crc);
            }
        }
        context.parts.recount(dataset, slot);
        let record = context.record(dataset)?;
        let set = seal_of(&record)?.set_of(slot).unwrap_or(&[]);
        let crcs = part.sums(Stream::Data).crcs;
        for peer in set.iter().filter_map(|member| holders.get(member)) {
            if *peer != me {
                let crcs = crcs.clone();
                let known = Message::Foreknown {
                    dataset,
                    slot,
                    crcs,
                };
                context.send(*peer, known);
            }
        }
        Ok(before)
    }

    /// Whether every member of the set has told what it knows from before.
    fn has_heard(&self, slot: Slot, context: &Context<'_>) -> Result<bool, Failure> {
        let record = context.record(self.dataset)?;
        let set = seal_of(&record)?.set_of(slot).unwrap_or(&[]);
        let ahead = &context.parts.ahead;
        let mut others = set.iter().filter(|member| **member != slot);
        Ok(others.all(|member| ahead.heard(self.dataset, *member).is_some()))
    }

    /// A member has told what it knows from before.
    pub(super) fn heard(
        &mut self,
        ticket: u64,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Turn {
        let mut hearing = self.stages.iter();
        let slot = hearing.find(|(_, stage)| **stage == Stage::Hearing);
        let Some(slot) = slot.map(|(slot, _)| *slot) else {
            return Turn::GoesOn;
        };
        match self.has_heard(slot, context) {
            Ok(true) => self.compute(ticket, slot, jobs, context),
            Ok(false) => Turn::GoesOn,
            Err(failure) => Turn::Ends(Err(failure)),
        }
    }

    /// Where in the parity what was made before the commit is what it should be; its checksums are noted.
    fn made_before(
        before: &Settled,
        part: &Part,
        geometry: &SetGeometry,
        context: &Context<'_>,
    ) -> BTreeSet<u64> {
        let PartId { dataset, slot } = part.id();
        if before.is_empty() || !part.has_room(before.room()) {
            return BTreeSet::new();
        }
        let unit_bytes = u64::from(part.unit_bytes());
        let unit = |offset: u64| usize::try_from(offset / unit_bytes).unwrap_or(usize::MAX);
        let known = |source: Extent| {
            let crcs = context.parts.ahead.heard(dataset, source.slot)?;
            *crcs.get(unit(source.offset))?
        };
        let mut holds = BTreeSet::new();
        let mut bytes = 0;
        for combination in geometry.encode(slot, part.unit_bytes()) {
            let destination = combination.destination;
            if let Some(crc) = before.holds(&combination, known) {
                part.set_sum(Stream::Parity, unit(destination.offset), crc);
                holds.insert(destination.offset);
                bytes += u64::from(destination.len);
            }
        }
        let of = part.stream_bytes(Stream::Parity);
        tracing::info!(%dataset, %slot, bytes, of, "encoded before the commit");
        holds
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
            let part = context
                .parts
                .open(self.dataset, slot)
                .map_err(|error| part_failure(&error))?;
            let before = match slot == self.own {
                true => std::mem::take(&mut self.before),
                false => Settled::default(),
            };
            let made = Self::made_before(&before, &part, &geometry, context);
            if slot == self.own {
                context.parts.ahead.unhear(self.dataset);
            }
            let plan = geometry.encode(slot, seal.unit_bytes);
            let plan = plan.filter(move |it| !made.contains(&it.destination.offset));
            let job = jobs.begin(ticket, slot);
            context
                .engine
                .start(job, self.dataset, Box::new(plan), self.holders.clone());
            self.stages.insert(slot, Stage::Computing);
            // With nobody to pull it, the data is read here, for its checksums.
            if geometry.members().len() == 1 || seal.scheme.parity_count() == 0 {
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
            let waits = slot == self.own && !self.before.is_empty();
            match self.has_heard(slot, context) {
                Ok(false) if waits => {
                    self.stages.insert(slot, Stage::Hearing);
                    return Turn::GoesOn;
                }
                Ok(_) => return self.compute(ticket, slot, jobs, context),
                Err(failure) => return Turn::Ends(Err(failure)),
            }
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
