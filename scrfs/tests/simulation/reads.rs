//! What programs read of a sealed dataset while some of it is lost: what was sealed, or an error, and
//! no error where enough is left.
//!
//! As with all work, contents are modelled by information: a lost slot can be made exactly when, of
//! its set, as many as the scheme asks for are whole with their parity at the ranks that the leader
//! has named, and one of those knows its checksums.

use crate::checker::slots_of;
use crate::disk::Content;
use crate::world::World;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::record::{DatasetRecord, Phase, Seal};

impl World {
    /// All slots of a dataset, read on one node.
    pub fn invariant_what_is_read_is_what_was_sealed(&mut self, at: usize, record: &DatasetRecord) {
        let name = "invariant_what_is_read_is_what_was_sealed";
        let Some(seal) = record.seal.clone() else {
            return self.violate(name, format!("{record:?} has no seal"));
        };
        let stays = self.stays(record);
        for slot in slots_of(&seal) {
            let truth = self.checker.content(record.id, slot);
            match self.read_slot(at, record, &seal, slot) {
                Some(content) if Some(&content) == truth.as_ref() => self.checker.reads += 1,
                Some(content) => {
                    let text = format!("{slot} of {}: {content:?}, not {truth:?}", record.id);
                    return self.violate(name, text);
                }
                None if stays => {
                    let losses = self.coords[at].losses.get(&record.id);
                    let text = format!("{slot} of {} on {at}: {losses:?}", record.id);
                    return self.violate("invariant_what_is_lost_can_be_read", text);
                }
                None => {}
            }
        }
    }

    /// After each event somebody reads all that is sealed, on a node that programs run on, while some of
    /// it is lost. Draws nothing: lives stay what they were.
    pub fn read_what_is_lost(&mut self) {
        let at = self.now.wall as usize % self.coords.len().max(1);
        let Some(coord) = self.coords.get(at) else {
            return;
        };
        let daemon = &self.machines[coord.machine].daemon;
        if !daemon.ready || self.violation.is_some() {
            return;
        }
        let lost = |record: &&DatasetRecord| {
            let seal = record
                .seal
                .as_ref()
                .filter(|_| record.phase == Phase::Sealed);
            let whole = |slot| self.members().any(|disk| disk.has_whole(record, slot));
            seal.is_some_and(|seal| !slots_of(seal).all(whole))
        };
        let all: Vec<DatasetRecord> = daemon.shown.values().filter(lost).cloned().collect();
        for record in all {
            self.invariant_what_is_read_is_what_was_sealed(at, &record);
        }
    }

    /// Whether the dataset is there to be read: nobody has died, and it is not on its way out.
    fn stays(&self, record: &DatasetRecord) -> bool {
        let id = record.id;
        let decided = self.disk_of(0).records.get(&id);
        let leaves = self.checker.forgotten.contains(&id) || self.checker.leaving.contains(&id);
        self.all_alive() && !leaves && decided.is_some_and(|it| it.phase == Phase::Sealed)
    }

    fn read_slot(
        &mut self,
        at: usize,
        record: &DatasetRecord,
        seal: &Seal,
        slot: Slot,
    ) -> Option<Content> {
        let told = self.coords[at].losses.get(&record.id).cloned();
        let lost = told.filter(|(_, lost)| lost.contains(&slot));
        let Some((holders, lost)) = lost else {
            // Whoever has it, as long as it answers.
            let ranks = 0..self.coords.len();
            let mut found = ranks.filter_map(|rank| self.served(rank, record, slot));
            return found.next();
        };
        self.checker.degraded_reads += 1;
        let set = seal.set_of(slot)?;
        let mut sources = 0;
        let mut known = false;
        for member in set.iter().filter(|member| !lost.contains(member)) {
            let Some(rank) = holders.get(member) else {
                continue;
            };
            let rank = rank.0 as usize;
            let Some(coord) = self.coords.get(rank).filter(|coord| coord.node.is_some()) else {
                continue;
            };
            let disk = &self.machines[coord.machine].disk;
            let part = disk.parts.get(&(record.id, *member));
            let guards = part.is_some_and(|part| part.sums && part.parity);
            sources += usize::from(guards && disk.has_whole(record, *member));
            let own = disk.parts.get(&(record.id, slot));
            known |= disk.copies.contains(&(record.id, slot)) || own.is_some_and(|own| own.sums);
        }
        let enough = set.len() - sources <= seal.scheme.tolerates() as usize;
        if !(enough && known) {
            return None;
        }
        self.checker.content(record.id, slot)
    }

    /// What a rank serves of a slot.
    fn served(&self, rank: usize, record: &DatasetRecord, slot: Slot) -> Option<Content> {
        let coord = self.coords.get(rank).filter(|coord| coord.node.is_some())?;
        let disk = &self.machines[coord.machine].disk;
        let part = disk.parts.get(&(record.id, slot))?;
        disk.has_whole(record, slot).then(|| part.tree.clone())
    }

    /// Whether a slot of a dataset that only the cache has is not whole anywhere, or has no parity.
    pub fn has_losses(&self, dataset: DatasetId) -> bool {
        let Some(record) = self.disk_of(0).records.get(&dataset) else {
            return false;
        };
        let seal = record.seal.as_ref().filter(|_| record.flushed.is_none());
        let guarded = |slot: Slot| {
            self.members().any(|disk| {
                let part = disk.parts.get(&(dataset, slot));
                disk.has_whole(record, slot) && part.is_some_and(|part| part.sums && part.parity)
            })
        };
        self.all_alive() && seal.is_some_and(|seal| !slots_of(seal).all(guarded))
    }

    /// How many slots of a dataset nobody holds, as a rank was told.
    pub fn told_lost(&self, at: usize, dataset: DatasetId) -> usize {
        let told = self.coords[at].losses.get(&dataset);
        told.map_or(0, |(_, lost)| lost.len())
    }
}
