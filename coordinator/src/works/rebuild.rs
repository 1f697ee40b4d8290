//! Rebuild: the files of lost slots that this node shall have, from the rest of their sets.
//!
//! For each slot: *asking* peers for its manifest and checksums, and for those of the sources ->
//! *preparing* empty files -> *computing* the data by plan, every unit held against its checksum ->
//! *finishing*: metadata, fsync, into place -> done. The parity is a later encode. A source that turns
//! out to be damaged is done without, as long as the scheme allows.

use super::{Context, Jobs, Turn, check, keep, seal_of};
use crate::effects::part_failure;
use crate::part::{Part, remove_tree};
use scrfs::control::Refusal;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::path::Keep;
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::message::{Failure, Message, Metadata};
use scrfs::store::posix::PosixStore;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug)]
enum Stage {
    Asking {
        /// Ranks that may know the lost slot's metadata and have not answered.
        lost: BTreeSet<Rank>,
        /// What they know, when one has answered well.
        found: Option<Box<Metadata>>,
        /// Slots whose metadata is still to come.
        sources: BTreeSet<Slot>,
    },
    Preparing,
    Computing(Arc<Part>),
    Finishing,
    Done,
}

/// One order to rebuild.
#[derive(Debug)]
pub(super) struct Rebuild {
    record: DatasetRecord,
    holders: BTreeMap<Slot, Rank>,
    lost: BTreeSet<Slot>,
    stages: BTreeMap<Slot, Stage>,
    /// For each slot, those that it is made without, because something of them is damaged.
    without: BTreeMap<Slot, BTreeSet<Slot>>,
}

impl Rebuild {
    /// Begins to rebuild those of the `lost` slots that this node shall have.
    pub(super) fn begin(
        me: Rank,
        dataset: DatasetId,
        holders: &[(Slot, Rank)],
        lost: &[(Slot, Rank)],
        context: &mut Context<'_>,
    ) -> Result<Self, Failure> {
        let record = context.record(dataset)?;
        let seal = seal_of(&record)?;
        let holders: BTreeMap<Slot, Rank> = holders.iter().copied().collect();
        let mut stages = BTreeMap::new();
        for &(slot, _) in lost.iter().filter(|(_, rank)| *rank == me) {
            let set = seal.set_of(slot).unwrap_or(&[]);
            let survivors: BTreeMap<Slot, Rank> = set
                .iter()
                .filter_map(|member| Some((*member, *holders.get(member)?)))
                .collect();
            let ranks: BTreeSet<Rank> = survivors.values().copied().collect();
            for &rank in &ranks {
                context.send(rank, Message::WantMetadata { dataset, slot });
            }
            for (&member, &rank) in &survivors {
                context.send(
                    rank,
                    Message::WantMetadata {
                        dataset,
                        slot: member,
                    },
                );
            }
            if ranks.is_empty() {
                return Err(no_metadata(&record, slot));
            }
            let sources = survivors.keys().copied().collect();
            stages.insert(
                slot,
                Stage::Asking {
                    lost: ranks,
                    found: None,
                    sources,
                },
            );
        }
        let lost = lost.iter().map(|(slot, _)| *slot).collect();
        Ok(Self {
            record,
            holders,
            lost,
            stages,
            without: BTreeMap::new(),
        })
    }

    /// It has failed: what it has put down gives its space back, which records may need.
    pub(super) fn discard(self, context: &mut Context<'_>) {
        let dataset = self.record.id;
        for (slot, stage) in self.stages {
            let unfinished = matches!(stage, Stage::Preparing | Stage::Computing(_));
            drop(stage);
            if !unfinished {
                continue;
            }
            context.parts.forget(dataset, &[slot]);
            let path = context.parts.paths().tree_new(dataset, slot);
            if let Err(error) = remove_tree(&path) {
                tracing::error!(?path, %error, "what was not rebuilt cannot be removed");
            }
        }
    }

    /// A source of a slot is damaged: makes it of the others, where they are enough.
    pub(super) fn make_without(
        &mut self,
        ticket: u64,
        (slot, source): (Slot, Slot),
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Result<(), Failure> {
        let without = self.without.entry(slot).or_default();
        if source == slot || !without.insert(source) {
            let text = format!("{source} cannot be done without");
            return Err(Failure::new(Refusal::Failed, text));
        }
        self.compute(ticket, slot, jobs, context)
    }

    pub(super) fn dataset(&self) -> DatasetId {
        self.record.id
    }

    pub(super) fn is_done(&self) -> bool {
        self.stages
            .values()
            .all(|stage| matches!(stage, Stage::Done))
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
        for (&target, stage) in &mut self.stages {
            let Stage::Asking {
                lost,
                found,
                sources,
            } = stage
            else {
                continue;
            };
            if slot == target {
                lost.remove(&from);
                if let (None, Some(given)) = (&found, trusted) {
                    *found = Some(Box::new(given.clone()));
                }
                if lost.is_empty() && found.is_none() {
                    return Turn::Ends(Err(no_metadata(&self.record, target)));
                }
            } else if sources.contains(&slot) && self.holders.get(&slot) == Some(&from) {
                let Some(given) = trusted else {
                    let text = format!(
                        "{from} cannot vouch for {slot} of dataset {} ({})",
                        self.record.id, self.record.name
                    );
                    return Turn::Ends(Err(Failure::new(Refusal::Failed, text)));
                };
                if let Err(failure) = keep(given, Keep::Copy, context) {
                    return Turn::Ends(Err(failure));
                }
                sources.remove(&slot);
            }
            if sources.is_empty()
                && let Some(given) = found.take()
            {
                *stage = Stage::Preparing;
                prepare(ticket, target, self.record.clone(), *given, context);
            }
        }
        Turn::GoesOn
    }

    /// A step on another thread has ended well.
    pub(super) fn task_ended(
        &mut self,
        ticket: u64,
        slot: Slot,
        made: Option<Arc<Part>>,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Turn {
        let next = match (self.stages.get(&slot), made) {
            (Some(Stage::Preparing), Some(part)) => {
                context.parts.insert(Arc::clone(&part));
                if let Err(failure) = self.compute(ticket, slot, jobs, context) {
                    return Turn::Ends(Err(failure));
                }
                Stage::Computing(part)
            }
            (Some(Stage::Finishing), _) => Stage::Done,
            _ => return Turn::GoesOn,
        };
        self.stages.insert(slot, next);
        Turn::GoesOn
    }

    fn compute(
        &self,
        ticket: u64,
        slot: Slot,
        jobs: &mut Jobs,
        context: &mut Context<'_>,
    ) -> Result<(), Failure> {
        let failed = |text: String| Failure::new(Refusal::Failed, text);
        let seal = seal_of(&self.record)?;
        let geometry = seal
            .geometry_of(slot)
            .map_err(|error| failed(error.to_string()))?;
        let lost: Vec<Slot> = geometry
            .members()
            .iter()
            .copied()
            .filter(|member| {
                let without = self.without.get(&slot);
                self.lost.contains(member) || without.is_some_and(|it| it.contains(member))
            })
            .collect();
        let plan = geometry
            .rebuild(&lost, slot, seal.unit_bytes)
            .map_err(|error| failed(error.to_string()))?;
        let job = jobs.begin(ticket, slot);
        context
            .engine
            .start(job, self.record.id, Box::new(plan), self.holders.clone());
        Ok(())
    }

    /// The data of a slot is written.
    pub(super) fn computed(&mut self, ticket: u64, slot: Slot, context: &mut Context<'_>) -> Turn {
        if let Some(Stage::Computing(part)) = self.stages.insert(slot, Stage::Finishing) {
            context.spawn(ticket, slot, move || {
                part.finish_restore(&PosixStore::new())
                    .map_err(|error| part_failure(&error))?;
                Ok(None)
            });
        }
        Turn::GoesOn
    }
}

/// Makes the empty files of a lost slot, on another thread.
fn prepare(
    ticket: u64,
    slot: Slot,
    record: DatasetRecord,
    metadata: Metadata,
    context: &Context<'_>,
) {
    let paths = context.parts.paths().clone();
    context.spawn(ticket, slot, move || {
        let checked = check(&record, &metadata)?;
        let part = Part::begin_restore(
            &PosixStore::new(),
            &paths,
            &record,
            checked.manifest,
            Some(checked.data_sums),
            Some(checked.parity_sums),
        )
        .map_err(|error| part_failure(&error))?;
        Ok(Some(Arc::new(part)))
    });
}

fn no_metadata(record: &DatasetRecord, slot: Slot) -> Failure {
    let text = format!(
        "nobody has a trustworthy manifest of {slot} of dataset {} ({})",
        record.id, record.name
    );
    Failure::new(Refusal::Failed, text)
}
