//! What must hold when an epoch begins: what the disks can give is found again, and nothing else.

use crate::checker::slots_of;
use crate::disk::{Disk, Prefix};
use crate::world::World;
use scrfs::config::Class;
use scrfs::control::Request;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::pointer::Version;
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    Cached,
    Prefix,
}

impl World {
    /// The prefix, unless it did not answer when the epoch began.
    fn seen_at_first(&self) -> Option<&Prefix> {
        self.prefix.as_ref().filter(|_| !self.is_late)
    }

    /// Before an epoch begins: what it must find, from the disks alone.
    pub fn expect_of_epoch(&mut self, new_run: bool) {
        let newest = self
            .members()
            .map(|disk| disk.epoch.epoch)
            .max()
            .unwrap_or_default();
        let complete = self.seen_at_first().map(|prefix| &prefix.complete);
        let flushed = complete
            .and_then(|it| it.keys().last())
            .map_or(0, |id| id.0);
        let floor = (
            self.members()
                .map(|disk| disk.seen.0)
                .max()
                .unwrap_or(0)
                .max(flushed),
            self.members().map(|disk| disk.seen.1).max().unwrap_or(0),
        );
        let mut found: BTreeMap<DatasetId, Vec<DatasetRecord>> = BTreeMap::new();
        for disk in self.members().filter(|disk| disk.epoch.epoch == newest) {
            for record in disk.records.values().filter(|record| record.seal.is_some()) {
                found.entry(record.id).or_default().push(record.clone());
            }
        }
        let mut expected = BTreeMap::new();
        let mut seals_found = BTreeMap::new();
        for (id, records) in found {
            let Some(seal) = records[0].seal.clone() else {
                continue;
            };
            let in_prefix = self.seen_at_first().is_some_and(|it| {
                let complete = it.complete.get(&id);
                complete.is_some_and(|(it, _)| it.created == records[0].created)
            });
            // What was dropped for the prefix, and is still here when that has it no more, counts again.
            let settled = records.iter().any(|it| match it.phase {
                // Of what the prefix has nothing is known while it does not answer.
                Phase::Evicted => in_prefix || self.is_late,
                phase => phase == Phase::Failed,
            });
            let protected = records.iter().any(|it| it.protected.is_some());
            let removed = records.iter().any(DatasetRecord::is_removed);
            if !settled && self.is_recoverable(&records[0], &seal, protected) {
                expected.insert(id, Expected::Cached);
            } else if removed && !settled {
                // Nobody will miss it.
            } else if in_prefix {
                expected.insert(id, Expected::Prefix);
            }
            seals_found.insert(id, seal);
        }
        let brought = self.members().flat_map(|disk| disk.records.values());
        let flushed = self
            .prefix
            .iter()
            .flat_map(|it| it.complete.values().map(|(it, _)| it));
        let brought = brought
            .chain(flushed)
            .map(|record| (record.id, record.created))
            .collect();
        let stale = (0..self.coords.len()).filter(|at| self.disk_of(*at).epoch.epoch < newest);
        let stale = stale.collect();
        let terms = self.members().map(|disk| disk.pointers.term);
        let term = terms.max().unwrap_or(0);
        let checker = &mut self.checker;
        (checker.newest, checker.floor, checker.new_run) = (newest, floor, new_run);
        (checker.stale, checker.expected, checker.seals_found) = (stale, expected, seals_found);
        checker.brought = brought;
        (checker.term, checker.pointed) = (term, Version::default());
        checker.failed_recovery.clear();
        checker.not_made.clear();
        checker.urgent = false;
        checker.in_use.clear();
        checker.born_now.clear();
        checker.begun.clear();
        checker.numbered_now.clear();
    }

    pub fn is_recoverable(&self, record: &DatasetRecord, seal: &Seal, protected: bool) -> bool {
        // Files without a record do not count, as after a fetch whose end a node did not live to see:
        // they are taken away.
        let knows = || {
            self.members()
                .filter(|disk| disk.records.contains_key(&record.id))
        };
        let whole = |slot: Slot| knows().any(|disk| disk.has_whole(record, slot));
        if slots_of(seal).all(whole) {
            return true;
        }
        let guards = |disk: &Disk, slot: Slot| {
            let part = disk.parts.get(&(record.id, slot));
            disk.has_whole(record, slot) && part.is_some_and(|part| part.sums && part.parity)
        };
        let guarded = |slot: Slot| knows().any(|disk| guards(disk, slot));
        // What is gone is held against checksums that somebody in its set has.
        let known = |set: &[Slot], slot: Slot| {
            let place = (record.id, slot);
            let sums = |disk: &Disk| disk.parts.get(&place).is_some_and(|part| part.sums);
            knows().any(|disk| {
                let left = set.iter().any(|member| guards(disk, *member));
                left && (disk.copies.contains(&place) || sums(disk))
            })
        };
        protected
            && seal.sets.iter().all(|set| {
                let gone: Vec<Slot> = set.iter().copied().filter(|slot| !guarded(*slot)).collect();
                gone.len() <= seal.scheme.tolerates() as usize
                    && gone.into_iter().all(|slot| known(set, slot))
            })
    }

    pub fn check_begin(&mut self, records: &[DatasetRecord]) {
        self.invariant_names_are_unique(records.to_vec());
        let by_id: BTreeMap<DatasetId, &DatasetRecord> =
            records.iter().map(|record| (record.id, record)).collect();
        for (id, expected) in self.checker.expected.clone() {
            let known = by_id.get(&id).map(|record| record.phase);
            let good = match expected {
                Expected::Cached => {
                    matches!(known, Some(Phase::Sealed | Phase::Removed { .. }))
                }
                Expected::Prefix => matches!(known, Some(Phase::Evicted | Phase::Failed)),
            };
            let leaving = self.checker.leaving.contains(&id);
            if !good && !leaving && !self.checker.forgotten.contains(&id) {
                let text = format!("{id} is there ({expected:?}), but found {known:?}");
                self.violate("invariant_committed_survives", text);
            }
        }
        for record in records {
            let sealed = self.checker.seals_found.get(&record.id);
            if sealed.is_some() && record.seal.as_ref() != sealed {
                self.violate(
                    "invariant_committed_survives",
                    format!("seal ignored: {record:?}"),
                );
            }
            let gone = self.checker.gone.get(&record.id).copied();
            let same = self.checker.births.get(&record.id) == Some(&record.created);
            if same && gone.is_some_and(|epoch| epoch <= self.checker.newest) {
                self.violate("invariant_deleted_stays_deleted", format!("{record:?}"));
            }
            // Everybody who knew that it was gone is gone, too.
            if gone.is_some() {
                self.checker.gone.remove(&record.id);
                self.checker.forgotten.remove(&record.id);
            }
            if self.checker.new_run && record.phase == Phase::Open {
                self.violate("invariant_unsealed_is_left_behind", format!("{record:?}"));
            }
        }
    }

    pub fn invariant_restart_is_the_newest(&mut self, restart: Option<DatasetId>) {
        let name = "invariant_restart_is_the_newest";
        if let Some(id) = restart {
            let Some(record) = self.disk_of(0).records.get(&id).cloned() else {
                return self.violate(name, format!("{id} has no record"));
            };
            let in_place = self.config.restart.bypass && record.phase == Phase::Evicted;
            let may_be = |_: &&Seal| record.is_restartable() || in_place;
            let Some(seal) = record.seal.as_ref().filter(may_be) else {
                return self.violate(name, format!("no restart from {record:?}"));
            };
            let mut complete = self.prefix.iter().flat_map(|it| it.complete.values());
            let there = complete.any(|(it, _)| it.key() == record.key());
            // Somebody may have removed it there since it was looked at.
            if in_place && !there && !self.people.ever.contains(&id) {
                return self.violate(name, format!("{id} is not in the prefix"));
            }
            let whole = |slot| self.members().any(|disk| disk.has_whole(&record, slot));
            let protected = record.protected.is_some() && !self.config.restart.rebuild_first;
            if !in_place
                && !slots_of(seal).all(whole)
                && !self.is_recoverable(&record, seal, protected)
            {
                return self.violate(name, format!("{id} is not whole"));
            }
        }
        if !self.all_alive() {
            return;
        }
        let usable = |id: &DatasetId| {
            !self.checker.forgotten.contains(id) && !self.checker.failed_recovery.contains(id)
        };
        let cached = self
            .checker
            .expected
            .iter()
            .filter(|(_, it)| **it == Expected::Cached);
        let is_checkpoint = |id: &DatasetId| {
            self.disk_of(0)
                .records
                .get(id)
                .is_some_and(|it| it.class != Class::Output && !it.is_removed())
        };
        let best = cached
            .map(|(id, _)| *id)
            .filter(|id| usable(id) && is_checkpoint(id))
            .max();
        if best > restart {
            return self.violate(name, format!("{best:?} could be had, not {restart:?}"));
        }
        let names: Vec<_> = self.live_datasets();
        // A name that somebody wants to commit under is not fetched into.
        let daemons = self
            .coords
            .iter()
            .map(|coord| &self.machines[coord.machine].daemon);
        let asked = daemons.flat_map(|daemon| daemon.pending.values());
        let wanted: BTreeSet<_> = asked
            .filter_map(|pending| match &pending.what {
                Request::Commit { to, .. } => Some(to.clone()),
                _ => None,
            })
            .collect();
        let held = |record: &DatasetRecord| {
            names.iter().any(|id| {
                self.disk_of(0)
                    .records
                    .get(id)
                    .is_some_and(|live| live.name == record.name)
            })
        };
        let fetchable = self
            .seen_at_first()
            .into_iter()
            .flat_map(|prefix| prefix.complete.values());
        let mut fetchable = fetchable.filter(|(record, _)| {
            let known = self.disk_of(0).records.get(&record.id);
            let strange =
                known.is_some_and(|known| known.created != record.created || known.is_removed());
            record.class != Class::Output
                && usable(&record.id)
                && !held(record)
                && !wanted.contains(&record.name)
                && !self.checker.not_made.contains(&record.name)
                && !strange
        });
        let fetchable = fetchable.next().is_some();
        if restart.is_none() && self.config.restart.fetch && fetchable {
            self.violate(name, "the prefix has one");
        }
    }
}
