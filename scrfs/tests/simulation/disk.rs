//! What outlives coordinators: the cache of one node, and the prefix.
//!
//! Files are versions by path; a manifest is a copy of them with a digest. A write of a record is
//! atomic and durable, as the store promises. `intact` means what `PartState` says: the files are
//! as the manifest says, sealed or not.

use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::{DatasetRecord, EpochRecord, PartSummary};
use scrfs::protocol::message::{Inventory, InventoryEntry, PartState};
use scrfs::protocol::step::Write;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Files of a part: path to version.
pub type Content = BTreeMap<String, u64>;

/// The digest that stands for a manifest's checksum.
pub fn crc_of(dataset: DatasetId, slot: Slot, content: &Content) -> u32 {
    // Its keys are fixed: the same on every run.
    let mut hasher = DefaultHasher::new();
    (dataset, slot, content).hash(&mut hasher);
    hasher.finish() as u32
}

pub fn summary_of(dataset: DatasetId, slot: Slot, content: &Content) -> PartSummary {
    PartSummary {
        log_bytes: content.len() as u64 * 100,
        files: content.len() as u64,
        manifest_crc: crc_of(dataset, slot, content),
    }
}

#[derive(Clone, Default, Debug)]
pub struct Part {
    pub tree: Content,
    pub manifest: Option<Content>,
    pub sums: bool,
    pub parity: bool,
}

/// The cache directory of one node.
#[derive(Clone, Default, Debug)]
pub struct Disk {
    pub epoch: EpochRecord,
    pub records: BTreeMap<DatasetId, DatasetRecord>,
    pub parts: BTreeMap<(DatasetId, Slot), Part>,
    pub copies: BTreeSet<(DatasetId, Slot)>,
    pub pointers: Pointers,
    /// Highest dataset and checkpoint that were ever durable here: for the checker only.
    pub seen: (u64, u64),
}

impl Disk {
    pub fn put(&mut self, write: &Write) {
        match write {
            Write::Dataset(record) => {
                self.seen.0 = self.seen.0.max(record.id.0);
                self.seen.1 = self.seen.1.max(record.checkpoint.unwrap_or(0));
                self.records.insert(record.id, (**record).clone());
            }
            Write::Forget(dataset) => drop(self.records.remove(dataset)),
            Write::Pointers(pointers) => self.pointers = (**pointers).clone(),
            Write::Epoch(record) => {
                self.seen.0 = self.seen.0.max(record.last_dataset);
                self.seen.1 = self.seen.1.max(record.last_checkpoint);
                self.epoch = record.clone();
            }
        }
    }

    /// Removes the files of some slots, of all when none are named.
    pub fn drop_data(&mut self, dataset: DatasetId, slots: &[Slot]) {
        let goes = |id: DatasetId, slot: Slot| {
            id == dataset && (slots.is_empty() || slots.contains(&slot))
        };
        self.parts.retain(|&(id, slot), _| !goes(id, slot));
        self.copies.retain(|&(id, slot)| !goes(id, slot));
    }

    /// Whether the files of a slot are here as they were sealed.
    pub fn has_whole(&self, record: &DatasetRecord, slot: Slot) -> bool {
        let sealed = record.seal.as_ref().and_then(|seal| seal.part(slot));
        self.parts.get(&(record.id, slot)).is_some_and(|part| {
            part.manifest.as_ref() == Some(&part.tree)
                && sealed.map(|sealed| sealed.manifest_crc)
                    == Some(crc_of(record.id, slot, &part.tree))
        })
    }

    /// What a coordinator finds when it starts; what has no record is removed.
    pub fn inventory(&mut self, node: &str) -> Inventory {
        let records = &self.records;
        self.parts.retain(|(id, _), _| records.contains_key(id));
        self.copies.retain(|(id, _)| records.contains_key(id));
        let datasets = self
            .records
            .values()
            .map(|record| self.entry(record))
            .collect();
        Inventory {
            node: node.to_owned(),
            group: node.to_owned(),
            free_bytes: 1 << 30,
            epoch: self.epoch.clone(),
            datasets,
            pointers: self.pointers.clone(),
        }
    }

    fn entry(&self, record: &DatasetRecord) -> InventoryEntry {
        let of_it = |id: DatasetId| id == record.id;
        let mut parts = Vec::new();
        for (&(id, slot), part) in &self.parts {
            let Some(manifest) = part.manifest.as_ref().filter(|_| of_it(id)) else {
                continue;
            };
            let manifest_crc = crc_of(id, slot, manifest);
            let sealed = record.seal.as_ref().map(|seal| seal.part(slot));
            // A manifest that is not the sealed one is not believed at all.
            if sealed.is_some_and(|part| part.map(|part| part.manifest_crc) != Some(manifest_crc)) {
                continue;
            }
            let encoded = record.seal.is_some();
            parts.push(PartState {
                slot,
                manifest_crc,
                intact: part.tree == *manifest,
                sums: encoded && part.sums,
                parity: encoded && part.parity,
            });
        }
        let copies = self
            .copies
            .iter()
            .filter(|(id, _)| of_it(*id))
            .map(|(_, slot)| *slot);
        InventoryEntry {
            record: std::sync::Arc::new(record.clone()),
            parts,
            copies: copies.collect(),
        }
    }
}

/// The prefix directory.
#[derive(Clone, Default, Debug)]
pub struct Prefix {
    pub inflight: BTreeMap<(DatasetId, Epoch), BTreeMap<Slot, Content>>,
    pub complete: BTreeMap<DatasetId, (DatasetRecord, Vec<Content>)>,
    /// All that ever were complete, also those whose name another took.
    pub ever: BTreeSet<DatasetId>,
    pub pointers: Pointers,
}

impl Prefix {
    /// Verifies an attempt and gives it its name.
    pub fn complete(&mut self, record: &DatasetRecord, epoch: Epoch) -> Result<(), String> {
        let seal = record.seal.as_ref().ok_or("not sealed")?;
        let attempt = self
            .inflight
            .remove(&(record.id, epoch))
            .ok_or("no attempt")?;
        let mut contents = Vec::new();
        for (slot, part) in seal.parts.iter().enumerate() {
            let slot = Slot(slot as u32);
            let content = attempt.get(&slot).ok_or(format!("no {slot}"))?;
            if crc_of(record.id, slot, content) != part.manifest_crc {
                return Err(format!("{slot} is not as sealed"));
            }
            contents.push(content.clone());
        }
        self.complete
            .retain(|_, (other, _)| other.name != record.name);
        let mut record = record.clone();
        record.flushed = Some(1);
        self.ever.insert(record.id);
        self.complete.insert(record.id, (record, contents));
        Ok(())
    }
}
