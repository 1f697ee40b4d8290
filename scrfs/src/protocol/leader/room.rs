//! Making room in the caches: which datasets go, and why they may.
//!
//! Three reasons. **Removal**: what programs have removed is out of sight, and goes as soon as it may. **Count**: of
//! the sealed datasets beyond `store.count`, the oldest go; where there are several stores, of those that lie in
//! one store, on any node. **Pressure**: a node says how many bytes a store of it is short of before the next
//! dataset will fit; then what was removed goes, and the least recently used that lie in it until that many are
//! free there.
//!
//! What may go:
//! - by pressure, before anything else: what was not committed or is lost, and no program has open;
//! - what is complete in the prefix, which is asked before (`held`): it becomes evicted;
//! - not by pressure: a checkpoint that is not to be flushed, once a newer one is protected at least as
//!   well. It is forgotten;
//! - what was removed and is in the prefix is forgotten: by pressure at once, else when anything newer can
//!   be restarted from. What was removed and is to be flushed is flushed before;
//! - by pressure alone: what somebody wanted to have fetched, however old it is;
//! - never what is lost in part and about to be rebuilt, for programs may be reading it;
//! - never what work is going on with, nor, but by count, what programs have open on any node; nor
//!   the newest checkpoint, but when a node says that a dataset that is being written will not fit otherwise.
//!
//! What a node is short of is taken for settled as soon as enough was told to go: the node speaks up again when
//! that was not so.

use super::held::Holds;
use super::{Leader, Led, Purpose};
use crate::control::{Level, Pressure, StorePressure};
use crate::id::{DatasetId, Rank};
use crate::layout::record::Phase;
use crate::protocol::step::Step;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What nodes say of their caches, and when datasets were last used.
#[derive(Debug)]
pub(super) struct Room {
    pressure: BTreeMap<Rank, Pressure>,
    /// Something was said of it that nothing has followed from yet.
    pressed: bool,
    /// Least recently used last.
    used: lru::LruCache<DatasetId, ()>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            pressure: BTreeMap::new(),
            pressed: false,
            used: lru::LruCache::unbounded(),
        }
    }
}

impl Room {
    /// A dataset was made, fetched or opened.
    pub(super) fn touch(&mut self, dataset: DatasetId) {
        self.used.put(dataset, ());
    }

    /// Whether something was said since this was last asked.
    pub(super) fn take_pressed(&mut self) -> bool {
        std::mem::take(&mut self.pressed)
    }

    /// What the stores of all nodes have said.
    fn stores_mut(&mut self) -> impl Iterator<Item = &mut StorePressure> {
        let nodes = self.pressure.values_mut();
        nodes.flat_map(|pressure| &mut pressure.stores)
    }

    fn is_open(&self, dataset: DatasetId) -> bool {
        let mut nodes = self.pressure.values();
        nodes.any(|pressure| pressure.in_use.contains(&dataset))
    }
}

impl Led {
    /// Bytes that a node gets back when the dataset goes: its data there, and their parity.
    fn bytes_on(&self, rank: Rank) -> u64 {
        let Some(seal) = &self.record.seal else {
            return 0;
        };
        let here = self.holders.iter().filter(|(_, holder)| **holder == rank);
        here.map(|(&slot, _)| {
            let data = seal.part(slot).map_or(0, |part| part.log_bytes);
            let parity = seal
                .geometry_of(slot)
                .map_or(0, |geometry| geometry.parity_len(slot));
            data.saturating_add(parity)
        })
        .fold(0, u64::saturating_add)
    }

    fn tolerates(&self) -> u32 {
        let seal = self.record.seal.as_ref();
        seal.map_or(0, |seal| seal.scheme.tolerates())
    }
}

impl Leader {
    /// A node says how its cache fares.
    pub(super) fn pressed(&mut self, from: Rank, pressure: Pressure) {
        if from.0 >= self.size || !self.ready {
            // Before programs start there is nothing that could not wait: nodes speak up again.
            return;
        }
        for &dataset in &pressure.in_use {
            if self.datasets.contains_key(&dataset) {
                self.room.touch(dataset);
            }
        }
        self.room.pressure.insert(from, pressure);
        self.room.pressed = true;
    }

    /// Makes room wherever some is needed.
    pub(super) fn make_room(&mut self, step: &mut Step) {
        self.lift_fences(step);
        self.hold_the_count(step);
        self.drop_useless(step);
        for rank in self.ranks() {
            let stores = self.room.pressure.get(&rank);
            for store in 0..stores.map_or(0, |pressure| pressure.stores.len()) {
                self.relieve(rank, store, step);
            }
        }
    }

    pub(super) fn drop_cached(&mut self, dataset: DatasetId, step: &mut Step) {
        if let Some(led) = self.datasets.get_mut(&dataset) {
            led.record.phase = Phase::Evicted;
            led.holders.clear();
        }
        self.update(dataset, Purpose::Noted, step);
    }

    /// Losses that the best scheme of the configuration survives on as many nodes as there are now.
    fn tolerable(&self) -> u32 {
        let rules = self.config.checkpoint.iter().map(|rule| &rule.redundancy);
        rules
            .chain([&self.config.redundancy])
            .map(|rule| rule.scheme.fitted_to(self.size).tolerates())
            .max()
            .unwrap_or(0)
    }

    /// Whether a newer checkpoint is as safe as this one, so that nobody will need it: by its parity, or because the
    /// prefix, which is asked, has it.
    fn is_spare(&mut self, dataset: DatasetId, step: &mut Step) -> bool {
        let Some(led) = self.datasets.get(&dataset) else {
            return false;
        };
        // What is in the prefix is safe itself, and goes when anything newer can be restarted from.
        let survives = match led.record.flushed {
            Some(_) => 0,
            None => led.tolerates().min(self.tolerable()),
        };
        let unwanted = Phase::Removed { overtaken: false };
        let can_return = |newer: &Led| match newer.record.phase {
            Phase::Removed { overtaken } => {
                (overtaken || led.record.phase == unwanted) && self.can_come_back(newer)
            }
            _ => newer.record.is_restartable(),
        };
        let newer = self.datasets.range(dataset..).skip(1);
        let newer = newer.filter(|(_, newer)| {
            can_return(newer) && newer.lost.is_empty() && newer.has_reached(Level::Protected)
        });
        let is_guarded = |(_, newer): (_, &Led)| {
            let has_parity = newer.level_in_caches() == Some(Level::Protected);
            has_parity && !newer.is_by_prefix && newer.tolerates() >= survives
        };
        if newer.clone().any(is_guarded) {
            return true;
        }
        let flushed = newer.filter(|(_, newer)| newer.record.flushed.is_some());
        let flushed = flushed.map(|(id, _)| *id).last();
        flushed.is_some_and(|newer| self.prefix_holds(newer, step) == Holds::Yes)
    }

    /// Forgets what was removed and may go.
    fn lift_fences(&mut self, step: &mut Step) {
        if self.room.pressure.len() < self.size as usize {
            // Not all nodes have said what programs have open there.
            return;
        }
        let removed = self.datasets.iter().filter(|(id, led)| {
            let ends = |purpose: &Purpose| matches!(purpose, Purpose::Record { dataset, .. } if dataset == *id);
            let told = !self.tickets.values().any(|ticket| ends(&ticket.purpose));
            led.record.is_removed() && led.is_resting() && told
        });
        let removed: Vec<DatasetId> = removed.map(|(id, _)| *id).collect();
        for dataset in removed {
            let Some(led) = self.datasets.get(&dataset) else {
                continue;
            };
            let class = led.record.class;
            let arrived = led.record.flushed.is_some() || self.is_succeeded(led);
            let to_come = class.is_output() || self.is_due(led);
            if (arrived || !to_come)
                && self.is_unused(dataset)
                && (!class.is_checkpoint() || self.is_spare(dataset, step))
            {
                self.forget(dataset, None, step);
            }
        }
    }

    /// Whether neither a program has it open nor a pointer file waits for it.
    fn is_unused(&self, dataset: DatasetId) -> bool {
        let flushed = |led: &Led| led.record.flushed.is_some();
        let awaited = self.datasets.get(&dataset).is_some_and(flushed) && self.is_awaited(dataset);
        !awaited && !self.room.is_open(dataset)
    }

    /// Sealed and failed datasets beyond the count of the store they lie in, newest first; never the newest of one.
    fn beyond_count(&self) -> BTreeSet<Reverse<DatasetId>> {
        let sealed = |dataset: &DatasetId| {
            let led = self.datasets.get(dataset);
            let is_kept = |led: &Led| led.record.is_cached() || led.record.phase == Phase::Failed;
            led.is_some_and(|led| is_kept(led) && !led.leaving)
        };
        let beyond = |held: Vec<DatasetId>, count: u32| {
            let mut held: Vec<DatasetId> = held.into_iter().filter(sealed).collect();
            held.sort_unstable();
            held.into_iter().rev().skip(count.max(1) as usize)
        };
        let counts: Vec<u32> = self.config.store.iter().map(|store| store.count).collect();
        if let [count] = counts[..] {
            let all = self.datasets.keys().copied().collect();
            return beyond(all, count).map(Reverse).collect();
        }
        let nodes = self.room.pressure.values();
        nodes
            .flat_map(|pressure| pressure.stores.iter().zip(&counts))
            .flat_map(|(store, count)| beyond(store.holds.clone(), *count))
            .map(Reverse)
            .collect()
    }

    fn hold_the_count(&mut self, step: &mut Step) {
        for Reverse(dataset) in self.beyond_count() {
            let Some(led) = self.datasets.get(&dataset) else {
                continue;
            };
            // Somebody may have restarted from a degraded one, and the rest is what its lost files are made of.
            let in_use = led.record.is_removed() || led.is_degraded() || led.is_fetched;
            let stays = in_use || !led.is_resting();
            let is_flushed = led.record.flushed.is_some();
            let is_to_come = led.record.class.is_output()
                || (self.is_due(led) && led.record.phase != Phase::Failed);
            if stays || (is_to_come && !is_flushed) || !self.is_spare(dataset, step) {
                continue;
            }
            if !is_flushed {
                self.forget(dataset, None, step);
            } else if self.prefix_holds(dataset, step) == Holds::Yes {
                self.drop_cached(dataset, step);
            }
        }
    }

    /// Forgets what nobody can restart from and nobody has open, where anything is short. How much that gives only
    /// the nodes know: what they are short of then, they say again.
    fn drop_useless(&mut self, step: &mut Step) {
        let useless = self.datasets.iter().filter(|(id, led)| {
            let is_useless = matches!(led.record.phase, Phase::Incomplete | Phase::Lost);
            is_useless && led.is_resting() && !self.room.is_open(**id)
        });
        let useless: Vec<DatasetId> = useless.map(|(id, _)| *id).collect();
        let is_short = self.room.stores_mut().any(|store| store.wanted_bytes > 0);
        if useless.is_empty() || !is_short {
            return;
        }
        for dataset in useless {
            self.forget(dataset, None, step);
        }
        for store in self.room.stores_mut() {
            store.wanted_bytes = 0;
        }
    }

    /// Evicts until a node has what a store of it is short of.
    fn relieve(&mut self, rank: Rank, store: usize, step: &mut Step) {
        let pressure = self.room.pressure.get(&rank);
        let Some(pressure) = pressure.and_then(|pressure| pressure.stores.get(store)) else {
            return;
        };
        let (wanted, urgent) = (pressure.wanted_bytes, pressure.urgent);
        if wanted == 0 {
            return;
        }
        let mut holds: BTreeSet<DatasetId> = pressure.holds.iter().copied().collect();
        if self.config.store.len() == 1 {
            holds.extend(self.datasets.keys());
        }
        let newest = self
            .datasets
            .iter()
            .rfind(|(_, led)| led.record.is_restartable())
            .map(|(id, _)| *id);
        let mut order: Vec<DatasetId> = self.room.used.iter().rev().map(|(id, ())| *id).collect();
        // Not known to have been used since the epoch began: before all others, oldest first.
        let known: Vec<DatasetId> = self.datasets.keys().copied().collect();
        order.splice(
            0..0,
            known.into_iter().filter(|id| !self.room.used.contains(id)),
        );
        let (last, mut order): (Vec<_>, Vec<_>) =
            order.into_iter().partition(|id| Some(*id) == newest);
        if urgent {
            order.extend(last);
        }
        // What nobody sees any more goes first.
        let removed = |id: &DatasetId| {
            let found = self.datasets.get(id);
            !found.is_some_and(|led| led.record.is_removed())
        };
        order.sort_by_key(removed);
        if self.prefix.is_none() {
            order.clear();
        }
        // Bytes of what goes now, and of what goes when the prefix says that it has it.
        let (mut freed, mut hoped) = (0u64, 0u64);
        for dataset in order {
            if freed.saturating_add(hoped) >= wanted {
                break;
            }
            let Some(led) = self.datasets.get(&dataset) else {
                continue;
            };
            let bytes = led.bytes_on(rank);
            let may_go = led.record.is_cached()
                && led.record.flushed.is_some()
                && led.has_reached(Level::Flushed)
                && led.is_resting()
                && !led.is_degraded()
                && self.is_unused(dataset);
            if !may_go || bytes == 0 || !holds.contains(&dataset) {
                continue;
            }
            let is_removed = led.record.is_removed();
            match self.prefix_holds(dataset, step) {
                Holds::Yes => {
                    match is_removed {
                        true => self.forget(dataset, None, step),
                        false => self.drop_cached(dataset, step),
                    }
                    freed = freed.saturating_add(bytes);
                }
                Holds::Asked => hoped = hoped.saturating_add(bytes),
                Holds::Unknown => {}
            }
        }
        // What is left could not be had now; it is tried again when something changes.
        let pressure = self.room.pressure.get_mut(&rank);
        if let Some(pressure) = pressure.and_then(|pressure| pressure.stores.get_mut(store)) {
            pressure.wanted_bytes = wanted.saturating_sub(freed);
        }
    }
}
