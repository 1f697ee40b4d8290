//! The deletion fence: what programs remove must not be what a restart would have needed.
//!
//! A *promise* is the newest checkpoint that was protected on every node and that no program had
//! turned away from. It stands until a newer one takes its place, whatever programs remove; every
//! restart must be from it or from a newer one, as long as no more nodes were lost than its scheme
//! survives. It is taken from the disks alone.

use crate::checker::slots_of;
use crate::disk::Disk;
use crate::world::World;
use scrfs::config::Class;
use scrfs::control::Request;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::record::{DatasetRecord, Phase};
use std::collections::BTreeSet;

/// The newest protected checkpoint, and the nodes lost since it was last whole.
#[derive(Default, Debug)]
pub struct Promise {
    pub dataset: Option<DatasetId>,
    losses: u32,
    /// Datasets that a program removed, and that came back; for statistics.
    pub returned: u64,
    /// Datasets that went after they had been removed; for statistics.
    pub lifted: u64,
}

/// Whether a restart may need it, as the record says.
fn counts(record: &DatasetRecord) -> bool {
    let kept = matches!(
        record.phase,
        Phase::Sealed | Phase::Removed { overtaken: true }
    );
    kept && record.class != Class::Output && record.protected.is_some()
}

/// Whether one survives fewer losses than another, and is not in the prefix.
pub fn is_weaker(one: &DatasetRecord, other: &DatasetRecord) -> bool {
    let tolerates = |record: &DatasetRecord| {
        let seal = record.seal.as_ref();
        seal.map_or(0, |seal| seal.scheme.tolerates())
    };
    tolerates(one) < tolerates(other) && one.flushed.is_none()
}

impl World {
    /// Whether every member says so, and all of it is on their disks with its parity.
    fn is_guarded(&self, dataset: DatasetId, counts: impl Fn(&DatasetRecord) -> bool) -> bool {
        let said = |disk: &Disk| disk.records.get(&dataset).is_some_and(&counts);
        let record = self.disk_of(0).records.get(&dataset);
        let Some(seal) = record.and_then(|record| record.seal.as_ref()) else {
            return false;
        };
        let guards = |disk: &Disk, slot: Slot| {
            let part = disk.parts.get(&(dataset, slot));
            let record = disk.records.get(&dataset);
            part.is_some_and(|part| part.sums && part.parity)
                && record.is_some_and(|record| disk.has_whole(record, slot))
        };
        let guarded = |slot: Slot| self.members().any(|disk| guards(disk, slot));
        self.members().all(said) && slots_of(seal).all(guarded)
    }

    fn is_promised(&self, dataset: DatasetId) -> bool {
        let record = self.disk_of(0).records.get(&dataset);
        let slots = record
            .and_then(|record| record.seal.as_ref())
            .map_or(0, |it| it.parts.len());
        // Each on its own node: a loss takes one slot of each set.
        let at_home = |slot: usize| {
            let disk = self.members().nth(slot);
            let place = (dataset, Slot(slot as u32));
            disk.is_some_and(|disk| disk.parts.contains_key(&place))
        };
        !self.checker.leaving.contains(&dataset)
            && (0..slots).all(at_home)
            && self.is_guarded(dataset, counts)
    }

    /// After a record was put down.
    pub fn promise(&mut self, at: usize, record: &DatasetRecord) {
        let id = record.id;
        if self.checker.promise.dataset.is_none() {
            self.keep_promise();
        }
        if self.checker.promise.dataset.is_none_or(|known| known < id) && self.is_promised(id) {
            self.checker.promise.dataset = Some(id);
            self.checker.promise.losses = 0;
        }
        // Programs turned away from it, or it went for the sake of one that could not go on; or it
        // is another one of this number.
        let born = self.checker.births.get(&id) != Some(&record.created);
        if at == 0 && self.checker.promise.dataset == Some(id) && (!counts(record) || born) {
            self.checker.promise.dataset = None;
        }
    }

    /// Before anything is lost.
    pub fn keep_promise(&mut self) {
        let ids: BTreeSet<DatasetId> = self
            .members()
            .flat_map(|disk| disk.records.keys().copied())
            .collect();
        let newest = ids.into_iter().rev().find(|id| self.is_promised(*id));
        if newest.is_some() && newest >= self.checker.promise.dataset {
            self.checker.promise.dataset = newest;
            self.checker.promise.losses = 0;
        }
    }

    /// A node is taken out with its disk.
    pub fn lose_one(&mut self) {
        self.checker.promise.losses += 1;
    }

    /// The leader lets something go.
    pub fn invariant_what_is_promised_stays(&mut self, before: &DatasetRecord) {
        if before.is_removed() {
            self.checker.promise.lifted += 1;
        }
        if self.checker.promise.dataset != Some(before.id) {
            return;
        }
        let newer = self.disk_of(0).records.range(DatasetId(before.id.0 + 1)..);
        let is_safe = |newer: &DatasetRecord| {
            let there = newer.is_restartable() || newer.phase == Phase::Evicted;
            let flushed = newer.class != Class::Output && there && newer.flushed.is_some();
            flushed || self.is_guarded(newer.id, counts)
        };
        let elsewhere = before.flushed.is_some() || newer.map(|(_, newer)| newer).any(is_safe);
        self.checker.promise.dataset = None;
        let beyond = self.checker.promise.losses > 0;
        if !elsewhere && !beyond {
            self.violate("invariant_deletion_fence", format!("it went: {before:?}"));
        }
    }

    /// Programs are about to start.
    pub fn invariant_deletion_fence(&mut self, restart: Option<DatasetId>) {
        let Some(promised) = self.checker.promise.dataset else {
            return;
        };
        let losses = self.checker.promise.losses;
        let truth = self.checker.truths.get(&promised);
        let tolerates = truth.map_or(0, |truth| truth.seal.scheme.tolerates());
        let excused = losses > tolerates
            || !self.all_alive()
            || !self.checker.failed_recovery.is_empty()
            || self.is_named_anew(promised);
        if restart >= Some(promised) {
            return;
        }
        self.checker.promise.dataset = None;
        if !excused {
            let text = format!("{promised} was protected, {losses} lost since: not {restart:?}");
            self.violate("invariant_deletion_fence", text);
        }
    }

    /// Whether something else has its name, or is about to.
    fn is_named_anew(&self, dataset: DatasetId) -> bool {
        let disk = self.disk_of(0);
        let Some(name) = disk.records.get(&dataset).map(|it| it.name.clone()) else {
            return false;
        };
        let live = self.live_datasets();
        let mut named = live.iter().filter_map(|id| disk.records.get(id));
        let daemons = self
            .coords
            .iter()
            .map(|coord| &self.machines[coord.machine].daemon);
        let mut asked = daemons.flat_map(|daemon| daemon.pending.values());
        named.any(|it| it.name == name)
            || disk.pointers.live(&name).is_some()
            || asked.any(|it| matches!(&it.what, Request::Commit { to, .. } if *to == name))
    }

    /// A program was told that it is removed.
    pub fn invariant_removed_is_gone(&mut self, dataset: DatasetId) {
        let live = |disk: &Disk| {
            let record = disk.records.get(&dataset);
            record.is_some_and(|it| matches!(it.phase, Phase::Open | Phase::Sealed))
        };
        // Before programs may start, what is needed comes back at once.
        if self.ready && self.members().any(live) {
            self.violate("invariant_removed_is_gone", format!("{dataset} is there"));
        }
    }

    /// What is removed and still there has a reason to be.
    pub fn invariant_fences_are_lifted_at_rest(&mut self) {
        let all: Vec<DatasetRecord> = self.disk_of(0).records.values().cloned().collect();
        for (at, record) in all.iter().enumerate().filter(|(_, it)| it.is_removed()) {
            let is_safer =
                |newer: &DatasetRecord| newer.is_restartable() && !is_weaker(newer, record);
            let spare = all[at + 1..].iter().any(is_safer);
            let open = self
                .checker
                .in_use
                .values()
                .any(|it| it.contains(&record.id));
            let to_come = record.class != Class::Checkpoint && record.flushed.is_none();
            if spare && !open && !to_come {
                self.violate("invariant_fences_are_lifted_at_rest", format!("{record:?}"));
                return;
            }
        }
    }
}
