//! How an epoch begins: from what every node found in its cache, what there is.
//!
//! A pure function of all inventories. Rules:
//!
//! - Nodes of the newest epoch know every dataset there is. What only nodes of older epochs have
//!   was removed while they were away, and goes.
//! - Any record of a seal decides: the seal was given only after every vote was durable and frozen.
//!   An open dataset without one was never acknowledged: in a new run it becomes incomplete.
//! - A slot's part counts when its files are intact and its manifest is the one that was sealed; who
//!   holds it, and under which epoch, does not matter, for a sealed part never changes.
//! - A dataset with lost slots is rebuildable when it was protected and no set lost more than its
//!   scheme tolerates; otherwise the prefix must have it, else it is lost.

use super::message::Inventory;
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::record::{DatasetRecord, Phase, Seal};
use std::collections::{BTreeMap, BTreeSet};

/// A dataset as the epoch begins with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What is known of it.
    pub record: DatasetRecord,
    /// Who holds which slot, whole.
    pub holders: BTreeMap<Slot, Rank>,
    /// Sealed slots that nobody holds.
    pub lost: BTreeSet<Slot>,
    /// Whether the lost can be recomputed.
    pub rebuildable: bool,
}

/// What an epoch begins with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Beginning {
    /// All datasets.
    pub datasets: BTreeMap<DatasetId, Found>,
    /// The highest dataset number ever given out.
    pub last_dataset: u64,
    /// The highest checkpoint number ever given out.
    pub last_checkpoint: u64,
}

/// Decides what there is. `complete` are the datasets that the prefix has.
pub fn decide(
    inventories: &BTreeMap<Rank, Inventory>,
    complete: &[DatasetRecord],
    epoch: Epoch,
    new_run: bool,
) -> Beginning {
    let newest = inventories.values().map(|found| found.epoch.epoch).max().unwrap_or_default();
    let current = || inventories.values().filter(|found| found.epoch.epoch == newest);
    let mut records: BTreeMap<DatasetId, DatasetRecord> = BTreeMap::new();
    for entry in current().flat_map(|found| &found.datasets) {
        records
            .entry(entry.record.id)
            .and_modify(|known| *known = better(known, &entry.record).clone())
            .or_insert_with(|| entry.record.clone());
    }
    let mut beginning = Beginning::default();
    let in_cache = inventories.values().map(|found| &found.epoch);
    for seen in in_cache {
        beginning.last_dataset = beginning.last_dataset.max(seen.last_dataset);
        beginning.last_checkpoint = beginning.last_checkpoint.max(seen.last_checkpoint);
    }
    for record in records.values().chain(complete) {
        beginning.last_dataset = beginning.last_dataset.max(record.id.0);
        let number = record.checkpoint.unwrap_or(0);
        beginning.last_checkpoint = beginning.last_checkpoint.max(number);
    }
    for (id, mut record) in records {
        record.epoch = epoch;
        if let Some(flushed) = complete.iter().find(|known| known.id == id) {
            record.flushed = record.flushed.or(flushed.flushed).or(Some(0));
        }
        record.flushing = false;
        let found = match record.seal.clone() {
            None => unsealed(record, new_run),
            Some(seal) => sealed(record, &seal, inventories),
        };
        beginning.datasets.insert(id, found);
    }
    beginning
}

/// Of two records of one dataset, the one that knows more.
fn better<'a>(one: &'a DatasetRecord, other: &'a DatasetRecord) -> &'a DatasetRecord {
    let knows = |record: &DatasetRecord| {
        let settled = matches!(record.phase, Phase::Evicted | Phase::Failed);
        let known = [
            record.seal.is_some(),
            settled,
            record.protected.is_some(),
            record.flushed.is_some(),
        ];
        (known, record.epoch)
    };
    if knows(other) > knows(one) { other } else { one }
}

fn unsealed(mut record: DatasetRecord, new_run: bool) -> Found {
    if new_run || record.phase != Phase::Open {
        record.phase = Phase::Incomplete;
    }
    Found { record, holders: BTreeMap::new(), lost: BTreeSet::new(), rebuildable: false }
}

fn sealed(
    mut record: DatasetRecord,
    seal: &Seal,
    inventories: &BTreeMap<Rank, Inventory>,
) -> Found {
    let mut holders = BTreeMap::new();
    for (&rank, found) in inventories {
        let entries = found.datasets.iter().filter(|entry| entry.record.id == record.id);
        for part in entries.flat_map(|entry| &entry.parts) {
            let sealed = seal.part(part.slot).map(|summary| summary.manifest_crc);
            let guarded = record.protected.is_none() || (part.sums && part.parity);
            if part.intact && guarded && sealed == Some(part.manifest_crc) {
                // A slot's own rank is its best holder; else the first one.
                let at_home = rank.0 == part.slot.0;
                if at_home || !holders.contains_key(&part.slot) {
                    holders.insert(part.slot, rank);
                }
            }
        }
    }
    let lost: BTreeSet<Slot> = (0..seal.parts.len())
        .map(|slot| Slot(u32::try_from(slot).unwrap_or(u32::MAX)))
        .filter(|slot| !holders.contains_key(slot))
        .collect();
    let tolerated = seal.sets.iter().all(|set| {
        let gone = set.iter().filter(|slot| lost.contains(slot)).count();
        gone <= seal.scheme.tolerates() as usize
    });
    let rebuildable = record.protected.is_some() && tolerated;
    record.phase = match record.phase {
        // Evicted says where it is, failed what it is worth; neither changes with an epoch.
        Phase::Evicted => Phase::Evicted,
        Phase::Failed => Phase::Failed,
        _ if lost.is_empty() || rebuildable => Phase::Sealed,
        _ if record.flushed.is_some() => Phase::Evicted,
        _ => Phase::Lost,
    };
    if record.phase == Phase::Lost {
        let slots: Vec<String> = lost.iter().map(|slot| slot.0.to_string()).collect();
        let why = if record.protected.is_some() { "more than its scheme tolerates" } else { "unprotected" };
        record.error = Some(format!("lost with slots {}: {why}", slots.join(", ")));
    }
    Found { record, holders, lost, rebuildable }
}

/// Who shall have the lost slots: the rank of the same number if there is one, else those that hold
/// least, lowest first.
pub fn assign(lost: &BTreeSet<Slot>, holders: &BTreeMap<Slot, Rank>, size: u32) -> Vec<(Slot, Rank)> {
    let mut load: BTreeMap<Rank, u32> = (0..size).map(|rank| (Rank(rank), 0)).collect();
    for rank in holders.values() {
        *load.entry(*rank).or_default() += 1;
    }
    let mut assigned = Vec::new();
    for &slot in lost {
        let home = Rank(slot.0);
        let rank = if load.get(&home) == Some(&0) {
            home
        } else {
            load.iter().min_by_key(|&(rank, count)| (*count, *rank)).map_or(home, |(rank, _)| *rank)
        };
        *load.entry(rank).or_default() += 1;
        assigned.push((slot, rank));
    }
    assigned
}
