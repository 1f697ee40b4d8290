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
        // The prefix may have had more in an earlier look.
        self.last_dataset = self.last_dataset.max(last_dataset);
        self.last_checkpoint = self.last_checkpoint.max(last_checkpoint);
        for (
            id,
            Found {
                record,
                holders,
                lost,
                unguarded,
                is_by_prefix,
            },
        ) in datasets
        {
            let mut led = Led::new(record);
            (led.holders, led.lost, led.unguarded) = (holders, lost, unguarded);
            led.is_by_prefix = is_by_prefix;
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
        step.cast(Message::Begin {
            records,
            spare: self.ranks().flat_map(|rank| self.spare_of(rank)).collect(),
            last_dataset: self.last_dataset,
            last_checkpoint: self.last_checkpoint,
            pointers: self.pointing.known.clone(),
            groups: self.numbered_groups(),
        });
        self.beginning = Some(self.ranks().collect());
    }

    /// What `rank` has and shall not keep: slots that it does not hold, but its own part of what was never
    /// sealed.
    fn spare_of(&self, rank: Rank) -> Vec<(Rank, DatasetId, Slot)> {
        let found = self
            .hellos
            .get(&rank)
            .into_iter()
            .flat_map(|hello| &hello.datasets);
        let mut spare = Vec::new();
        for entry in found {
            let Some(led) = self.datasets.get(&entry.record.id) else {
                continue;
            };
            // What no restart works from is not worth the space, where it is safe elsewhere.
            let is_failed = led.record.phase == Phase::Failed && led.record.flushed.is_some();
            let useless =
                (is_failed && self.prefix.is_some()) || led.record.phase == Phase::Evicted;
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
                if useless || !(held || (whole && led.lost.contains(&part.slot))) {
                    spare.push((rank, entry.record.id, part.slot));
                }
            }
        }
        spare
    }

    pub(super) fn begun(&mut self, now: Now, from: Rank, step: &mut Step) {
        let spoken_for = self.spoken_for(from);
        let Some(missing) = self.beginning.as_mut().filter(|it| !it.is_empty()) else {
            return;
        };
        for rank in spoken_for {
            missing.remove(&rank);
        }
        if !missing.is_empty() {
            return;
        }
        let nodes = self.hellos.iter().map(|(&rank, hello)| NodeStatus {
            node: hello.node.clone(),
            rank,
            slot: Slot(rank.0),
            free_bytes: hello.free_bytes,
        });
        let nodes = Message::Nodes(nodes.collect());
        step.cast(nodes);
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
