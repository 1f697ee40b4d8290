//! Making room in the caches: which datasets go, and why they may.
//!
//! Two reasons. **Count**: of the sealed datasets beyond `store.count`, the oldest go. **Pressure**: a node says
//! how many bytes it is short of before the next dataset will fit; then the least recently used go until
//! that many are free there.
//!
//! What may go:
//! - what is complete in the prefix: it becomes evicted;
//! - by count only: a checkpoint that is not to be flushed, once a newer one is protected at least as
//!   well. It is forgotten;
//! - never what work is going on with, nor, under pressure, what programs have open on any node; nor
//!   the newest checkpoint, but when a node says that a dataset that is being written will not fit otherwise.
//!
//! What a node is short of is taken for settled as soon as enough was told to go: the node speaks up again when
//! that was not so.

use super::{Leader, Led, Purpose};
use crate::control::{Level, Pressure};
use crate::id::{DatasetId, Rank};
use crate::layout::record::Phase;
use crate::protocol::step::Step;
use std::collections::BTreeMap;

/// What nodes say of their caches, and when datasets were last used.
#[derive(Debug)]
pub(super) struct Room {
    pressure: BTreeMap<Rank, Pressure>,
    /// Least recently used last.
    used: lru::LruCache<DatasetId, ()>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            pressure: BTreeMap::new(),
            used: lru::LruCache::unbounded(),
        }
    }
}

impl Room {
    /// A dataset was made, fetched or opened.
    pub(super) fn touch(&mut self, dataset: DatasetId) {
        self.used.put(dataset, ());
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
    }

    /// Makes room wherever some is needed.
    pub(super) fn make_room(&mut self, step: &mut Step) {
        self.hold_the_count(step);
        for rank in self.ranks() {
            self.relieve(rank, step);
        }
    }

    fn drop_cached(&mut self, dataset: DatasetId, step: &mut Step) {
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

    fn hold_the_count(&mut self, step: &mut Step) {
        let tolerable = self.tolerable();
        let count = self.config.store.first().map_or(1, |store| store.count) as usize;
        let sealed: Vec<DatasetId> = self
            .datasets
            .iter()
            .rev()
            .filter(|(_, led)| matches!(led.record.phase, Phase::Sealed | Phase::Failed))
            .filter(|(_, led)| !led.leaving)
            .map(|(id, _)| *id)
            .collect();
        for (place, dataset) in sealed.into_iter().enumerate().skip(count.max(1)) {
            debug_assert!(place >= 1, "the newest is never evicted");
            let Some(led) = self.datasets.get(&dataset) else {
                continue;
            };
            let is_safe = |newer: &Led, survives: u32| {
                newer.record.is_restartable()
                    && newer.lost.is_empty()
                    && newer.has_reached(Level::Protected)
                    && (newer.tolerates() >= survives || newer.record.flushed.is_some())
            };
            let flushed = led.record.flushed.is_some();
            // What is in the prefix is safe itself, and goes when anything newer can be restarted from.
            let survives = match flushed {
                true => 0,
                false => led.tolerates().min(tolerable),
            };
            let mut newer = self.datasets.range(dataset..).skip(1);
            if !led.is_resting() || !newer.any(|(_, newer)| is_safe(newer, survives)) {
                continue;
            }
            if flushed {
                self.drop_cached(dataset, step);
            } else if !led.record.class.is_output()
                && (!self.is_due(led) || led.record.phase == Phase::Failed)
            {
                self.forget(dataset, None, step);
            }
        }
    }

    /// Evicts until a node has what it is short of.
    fn relieve(&mut self, rank: Rank, step: &mut Step) {
        let Some((mut wanted, urgent)) = self
            .room
            .pressure
            .get(&rank)
            .map(|pressure| (pressure.wanted_bytes, pressure.urgent))
        else {
            return;
        };
        if wanted == 0 || self.prefix.is_none() {
            return;
        }
        let newest = self
            .datasets
            .iter()
            .rfind(|(_, led)| led.record.is_restartable() && led.lost.is_empty())
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
        for dataset in order {
            if wanted == 0 {
                break;
            }
            let Some(led) = self.datasets.get(&dataset) else {
                continue;
            };
            let bytes = led.bytes_on(rank);
            let may_go = led.record.phase == Phase::Sealed
                && led.record.flushed.is_some()
                && led.has_reached(Level::Flushed)
                && led.is_resting()
                && !self.room.is_open(dataset);
            if may_go && bytes > 0 {
                self.drop_cached(dataset, step);
                wanted = wanted.saturating_sub(bytes);
            }
        }
        // What is left could not be had now; it is tried again when something changes.
        if let Some(pressure) = self.room.pressure.get_mut(&rank) {
            pressure.wanted_bytes = wanted;
        }
    }
}
