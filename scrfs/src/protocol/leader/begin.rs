//! The beginning of an epoch: hear everyone, decide what there is, say it, then recover.

use super::point::Pointing;
use super::{Leader, Led};
use crate::control::NodeStatus;
use crate::id::{DatasetId, Rank, Slot};
use crate::layout::record::Phase;
use crate::protocol::Now;
use crate::protocol::message::{Inventory, Message};
use crate::protocol::recover::{self, Beginning, Found};
use crate::protocol::step::Step;

impl Leader {
    pub(super) fn hello(&mut self, from: Rank, inventory: Inventory, step: &mut Step) {
        if self.beginning.is_some() || from.0 >= self.size {
            return;
        }
        self.hellos.insert(from, inventory);
        if self.hellos.len() < self.size as usize {
            return;
        }
        let Beginning {
            datasets,
            last_dataset,
            last_checkpoint,
        } = recover::decide(&self.hellos, self.prefix.as_ref(), self.epoch, self.new_run);
        self.last_dataset = last_dataset;
        self.last_checkpoint = last_checkpoint;
        for (
            id,
            Found {
                record,
                holders,
                lost,
                unguarded,
            },
        ) in datasets
        {
            let mut led = Led::new(record);
            (led.holders, led.lost, led.unguarded) = (holders, lost, unguarded);
            self.datasets.insert(id, led);
        }
        let written = self.prefix.as_ref().map(|prefix| prefix.pointers.clone());
        let found = self.hellos.values().map(|hello| &hello.pointers);
        self.pointing = Pointing::begin(found, written.unwrap_or_default());
        let records: Vec<_> = self
            .datasets
            .values()
            .map(|led| led.record.clone())
            .collect();
        for rank in self.ranks() {
            let message = Message::Begin {
                records: records.clone(),
                keep: self.kept_by(rank),
                last_dataset,
                last_checkpoint,
                pointers: self.pointing.known.clone(),
            };
            step.send(rank, message);
        }
        self.beginning = Some(self.ranks().collect());
    }

    /// What `rank` shall keep: the slots it holds, and its own part of what was never sealed.
    fn kept_by(&self, rank: Rank) -> Vec<(DatasetId, Slot)> {
        let found = self
            .hellos
            .get(&rank)
            .into_iter()
            .flat_map(|hello| &hello.datasets);
        let mut kept = Vec::new();
        for entry in found {
            let Some(led) = self.datasets.get(&entry.record.id) else {
                continue;
            };
            // What no restart works from is not worth the space, where it is safe elsewhere.
            let useless = led.record.phase == Phase::Failed && led.record.flushed.is_some();
            if useless || led.record.phase == Phase::Evicted {
                continue;
            }
            for part in &entry.parts {
                let held = led.record.seal.is_none() || led.holders.get(&part.slot) == Some(&rank);
                // Whole but for its parity: nobody relies on it, but it may be where the only
                // manifest of the slot is, without which it cannot be rebuilt.
                let sealed = led
                    .record
                    .seal
                    .as_ref()
                    .and_then(|seal| seal.part(part.slot));
                let whole =
                    part.intact && sealed.is_some_and(|it| it.manifest_crc == part.manifest_crc);
                if held || (whole && led.lost.contains(&part.slot)) {
                    kept.push((entry.record.id, part.slot));
                }
            }
        }
        kept
    }

    pub(super) fn begun(&mut self, now: Now, from: Rank, step: &mut Step) {
        let Some(missing) = &mut self.beginning else {
            return;
        };
        if !missing.remove(&from) || !missing.is_empty() {
            return;
        }
        let nodes = self.hellos.iter().map(|(&rank, hello)| NodeStatus {
            node: hello.node.clone(),
            rank,
            slot: Slot(rank.0),
            free_bytes: hello.free_bytes,
        });
        let nodes = Message::Nodes(nodes.collect());
        self.tell_all(&nodes, step);
        for led in self.datasets.values_mut() {
            led.everywhere = led.level();
        }
        for (&dataset, led) in &self.datasets {
            if led.record.is_cached() && led.is_weak() {
                self.tell_losses(dataset, led, step);
            }
        }
        while let Some((asker, what)) = self.early.pop_front() {
            self.asked(now, asker, what, step);
        }
        self.schedule(now, step);
    }

    /// Whether every member has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.beginning
            .as_ref()
            .is_some_and(|missing| missing.is_empty())
    }
}
