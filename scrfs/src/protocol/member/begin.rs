//! How a member begins an epoch: first it clears away, then it puts down what there is, then it
//! shows that.

use super::LEADER;
use super::{Member, NO_TICKET, Then};
use crate::control::ToDaemon;
use crate::id::{DatasetId, Rank, Slot};
use crate::layout::record::{DatasetRecord, EpochRecord, Phase};
use crate::protocol::message::Message;
use crate::protocol::recover;
use crate::protocol::step::{Effect, Step, Write};

/// What an epoch begins with, for one member.
#[derive(Debug)]
pub(super) struct Beginning {
    records: Vec<DatasetRecord>,
    /// Slots that members have and are not to keep.
    spare: Vec<(Rank, DatasetId, Slot)>,
    /// Datasets that are to go.
    gone: Vec<DatasetId>,
    /// How many of them the daemon still shows.
    pub(super) shown: usize,
}

impl Member {
    /// First what is not known any more goes out of sight: a record may go only when the daemon
    /// shows nothing of it, for the daemon outlives this coordinator, and its records are all that
    /// the next one knows of what is shown.
    pub(super) fn clear(
        &mut self,
        records: Vec<DatasetRecord>,
        spare: Vec<(Rank, DatasetId, Slot)>,
        step: &mut Step,
    ) {
        let is_known =
            |known: &DatasetRecord| records.iter().any(|record| recover::is_same(record, known));
        let strange = self.catalog.values().filter(|record| !is_known(record));
        let gone: Vec<DatasetId> = strange.map(|record| record.id).collect();
        for &dataset in &gone {
            self.catalog.remove(&dataset);
            self.found.remove(&dataset);
            let sequence = self.sequence(Then::Clear);
            step.daemon(ToDaemon::Forget { sequence, dataset });
        }
        let shown = gone.len();
        self.beginning = Some(Beginning {
            records,
            spare,
            gone,
            shown,
        });
        self.begin_if_clear(step);
    }

    pub(super) fn begin_if_clear(&mut self, step: &mut Step) {
        let Some(Beginning {
            records,
            spare: unwanted,
            gone,
            ..
        }) = self.beginning.take_if(|beginning| beginning.shown == 0)
        else {
            return;
        };
        if !gone.is_empty() {
            self.keep_numbers(step);
        }
        for &dataset in &gone {
            step.write(Write::Forget(dataset));
            step.effect(Effect::DropData {
                dataset,
                slots: Vec::new(),
            });
        }
        for record in &records {
            step.write(Write::Dataset(Box::new(record.clone())));
        }
        step.write(Write::Pointers(Box::new(self.pointers.clone())));
        // Last: a node whose epoch record says so has everything this epoch began with.
        self.begun = EpochRecord {
            epoch: self.epoch,
            slot: Some(self.slot),
            last_dataset: self.last_dataset,
            last_checkpoint: self.last_checkpoint,
        };
        step.write(Write::Epoch(self.begun.clone()));
        self.to_show = Some(records.len() + 1);
        let sequence = self.sequence(Then::Begin);
        let pointers = self.pointers.all.iter();
        step.daemon(ToDaemon::Pointers {
            sequence,
            all: true,
            records: pointers
                .map(|(name, record)| (name.clone(), record.clone()))
                .collect(),
        });
        let me = Rank(self.slot.0);
        for record in records {
            let held = self.found.get(&record.id).cloned().unwrap_or_default();
            let spare: Vec<Slot> = held
                .iter()
                .copied()
                .filter(|slot| unwanted.contains(&(me, record.id, *slot)))
                .collect();
            if !spare.is_empty() {
                step.effect(Effect::DropData {
                    dataset: record.id,
                    slots: spare,
                });
            }
            let (dataset, open) = (record.id, record.phase == Phase::Open);
            if open {
                // It is there already, unless the last epoch ended in between.
                let part = Box::new(record.clone());
                step.effect(Effect::MakePart {
                    ticket: NO_TICKET,
                    record: part,
                });
            }
            self.learn(&record);
            self.publish(record, Then::Begin, step);
            if open {
                // The last epoch may have frozen it and then not come to a decision.
                step.daemon(ToDaemon::Thaw { dataset });
            }
        }
        self.begun_if_shown(step);
    }

    pub(super) fn begun_if_shown(&mut self, step: &mut Step) {
        if self.to_show == Some(0) {
            self.to_show = None;
            step.send(LEADER, Message::Begun);
        }
    }
}
