//! What must hold when nothing is under way any more.

use crate::daemon::Door;
use crate::fence::is_weaker;
use crate::world::World;
use scrfs::config::Class;
use scrfs::control::Request;
use scrfs::id::DatasetId;
use scrfs::layout::record::{DatasetRecord, Phase};
use std::collections::BTreeMap;

impl World {
    /// When nothing is under way any more.
    pub fn check_rest(&mut self) {
        let Some(node) = self.coords[0].node.as_ref() else {
            return;
        };
        let catalog = node.catalog().clone();
        if !node.is_idle(self.now) {
            self.violate("invariant_comes_to_rest", "nothing to do, and not idle");
        }
        for at in 0..self.coords.len() {
            let machine = &self.machines[self.coords[at].machine];
            // Who waits for a commit that nobody asks for waits in vain.
            let open = |dataset: &DatasetId| {
                catalog
                    .get(dataset)
                    .is_some_and(|record| record.phase == Phase::Open)
            };
            let forgotten = machine
                .daemon
                .pending
                .values()
                .find(|pending| match &pending.what {
                    Request::Wait { dataset, .. } => !open(dataset),
                    _ => true,
                });
            if let Some(pending) = forgotten {
                let text = format!("{:?} on {at}", pending.what);
                return self.violate("invariant_every_request_is_answered", text);
            }
            let frozen = machine
                .daemon
                .gates
                .iter()
                .find(|(id, gate)| gate.door == Door::Frozen && catalog.contains_key(id));
            if let Some((id, _)) = frozen {
                let text = format!("{id} is frozen for good on {at}");
                return self.violate("invariant_every_request_is_answered", text);
            }
            if machine.disk.records != catalog || machine.daemon.shown != catalog {
                let text = format!("{at}: {:?}\nnot {catalog:?}", machine.disk.records);
                return self.violate("invariant_all_agree_at_rest", text);
            }
        }
        self.check_pointers_at_rest();
        self.invariant_all_is_safe_at_rest(&catalog);
        self.invariant_flushed_is_there_at_rest(&catalog);
        self.invariant_fences_are_lifted_at_rest();
    }

    fn invariant_all_is_safe_at_rest(&mut self, catalog: &BTreeMap<DatasetId, DatasetRecord>) {
        let name = "invariant_all_is_safe_at_rest";
        let every = self.config.flush.every;
        let sealed = || {
            catalog
                .values()
                .filter(|record| record.phase == Phase::Sealed)
        };
        for record in sealed() {
            let due = record
                .checkpoint
                .is_some_and(|it| every > 0 && it % every == 0);
            let due = due || record.class != Class::Checkpoint;
            let lost = (0..self.coords.len()).any(|at| self.told_lost(at, record.id) > 0);
            if lost {
                return self.violate(name, format!("not rebuilt: {record:?}"));
            }
            if record.protected.is_none() || record.flushing {
                return self.violate(name, format!("not protected: {record:?}"));
            }
            // When more wait than may, older checkpoints are left out.
            let mut newer = catalog.range(record.id..).skip(1);
            let left_out = record.class == Class::Checkpoint
                && self.config.flush.backlog > 0
                && newer.any(|(_, newer)| newer.class == Class::Checkpoint && newer.seal.is_some());
            if due && !left_out && self.prefix.is_some() && record.flushed.is_none() {
                return self.violate(name, format!("not flushed: {record:?}"));
            }
        }
        // Of several, which it lies in is told by the nodes when they like.
        let [store] = &self.config.store[..] else {
            return;
        };
        let count = store.count as usize;
        let kept: Vec<&DatasetRecord> = sealed().collect();
        for (place, record) in kept.iter().rev().enumerate().skip(count) {
            let newer = kept
                .iter()
                .rev()
                .take(place)
                .any(|newer| newer.is_restartable() && !is_weaker(newer, record));
            let output = record.class != Class::Checkpoint && record.flushed.is_none();
            if newer && !output && !self.people.fetched.contains(&record.name) {
                return self.violate(name, format!("not evicted: {record:?}"));
            }
        }
    }
}
