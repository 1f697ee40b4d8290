//! How an epoch begins: from what every node found in its cache, what there is.
//!
//! A pure function of all inventories. Rules:
//!
//! - Nodes of the newest epoch know every dataset there is. What only nodes of older epochs have
//!   was removed while they were away, and goes.
//! - Any record of a seal decides: the seal was given only after every vote was durable and frozen.
//!   An open dataset without one was never acknowledged: in a new run it becomes incomplete. So it
//!   does when a node is missing that may have held a part of it: nothing says what was written
//!   there, and a commit of the rest would be a torn one.
//! - A slot's part counts when its files are intact and its manifest is the one that was sealed; who
//!   holds it, and under which epoch, does not matter, for a sealed part never changes.
//! - A dataset with lost slots is rebuildable when it was protected and no set lost more than its
//!   scheme tolerates; otherwise the prefix must have it, else it is lost. A slot without its parity
//!   is as good as lost then; when all files are there, only its parity is made again.
//! - What the prefix does not have any more is not flushed, whatever its record says; but what was
//!   deleted there on purpose is done with: it is not flushed again, and if only the prefix had it,
//!   it is no more.
//! - What was marked failed in the prefix is failed, and nothing else is.
//! - Two live datasets of one name: one was being removed when the last epoch ended, and that was
//!   begun before the other got the name. An open one says on the leader's node that it is, so that
//!   of an open and a sealed one it is the sealed one; of two sealed ones, the one sealed first.
//! - What programs removed stays removed, and is kept as long as it could be brought back; whether it
//!   is is decided when it is known what can be restarted from.

use super::message::{Inventory, PrefixView};
use crate::id::{DatasetId, DatasetKey, Epoch, Rank, Slot};
use crate::layout::record::{DatasetRecord, Phase, Seal};
use crate::name::Name;
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
    /// Slots that are whole, but whose parity is not, though the dataset was protected.
    pub unguarded: BTreeSet<Slot>,
    /// It has no parity and needs none: the prefix has it.
    pub is_by_prefix: bool,
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

/// Decides what there is. `prefix` is what the prefix says; `None` when that is not known.
pub fn decide(
    inventories: &BTreeMap<Rank, Inventory>,
    prefix: Option<&PrefixView>,
    epoch: Epoch,
    new_run: bool,
) -> Beginning {
    let newest = inventories
        .values()
        .map(|found| found.epoch.epoch)
        .max()
        .unwrap_or_default();
    let current = || {
        inventories
            .values()
            .filter(|found| found.epoch.epoch == newest)
    };
    let mut records: BTreeMap<DatasetId, &DatasetRecord> = BTreeMap::new();
    for entry in current().flat_map(|found| &found.datasets) {
        let record: &DatasetRecord = &entry.record;
        records
            .entry(record.id)
            .and_modify(|known| *known = better(known, record))
            .or_insert(record);
    }
    let records: BTreeMap<DatasetId, DatasetRecord> = records
        .into_iter()
        .map(|(id, record)| (id, record.clone()))
        .collect();
    let mut beginning = Beginning::default();
    for seen in inventories.values().map(|found| &found.epoch) {
        beginning.last_dataset = beginning.last_dataset.max(seen.last_dataset);
        beginning.last_checkpoint = beginning.last_checkpoint.max(seen.last_checkpoint);
    }
    // Also what is to go: a number that anybody here has seen is not given out again.
    let seen = inventories
        .values()
        .flat_map(|found| &found.datasets)
        .map(|entry| &*entry.record);
    let complete = prefix.map(|prefix| &prefix.complete);
    for record in seen.chain(complete.into_iter().flatten()) {
        beginning.last_dataset = beginning.last_dataset.max(record.id.0);
        let number = record.checkpoint.unwrap_or(0);
        beginning.last_checkpoint = beginning.last_checkpoint.max(number);
    }
    let marked = |marks: fn(&PrefixView) -> &BTreeSet<DatasetKey>, key| {
        prefix.map(|prefix| marks(prefix).contains(&key))
    };
    let last_gone = prefix.and_then(|prefix| prefix.gone.last());
    let last_gone = last_gone.map_or(0, |key| key.id.0);
    beginning.last_dataset = beginning.last_dataset.max(last_gone);
    for (id, mut record) in records {
        record.epoch = epoch;
        let was_removed = record.is_removed();
        let is_gone = marked(|prefix| &prefix.gone, record.key()) == Some(true);
        let same = |known: &&DatasetRecord| is_same(known, &record);
        if let (Some(complete), true) = (complete, record.seal.is_some()) {
            // One that was lost from the prefix is not safe there any more.
            let flushed = complete.iter().find(same);
            let flushed = flushed.map(|flushed| record.flushed.or(flushed.flushed).unwrap_or(0));
            let kept = is_gone.then(|| record.flushed.unwrap_or(0));
            record.flushed = flushed.or(kept);
        }
        match marked(|prefix| &prefix.failed, record.key()) {
            Some(true) if record.seal.is_some() => record.phase = Phase::Failed,
            Some(false) if record.phase == Phase::Failed => record.phase = Phase::Sealed,
            _ => {}
        }
        record.flushing = false;
        let found = match record.seal.clone() {
            None => {
                let torn = new_run || is_torn(&record, inventories, newest);
                unsealed(record, torn)
            }
            Some(seal) => sealed(record, &seal, inventories),
        };
        // What was removed and could not be brought back is missed by nobody.
        let is_missed = !was_removed || found.record.is_removed();
        if is_missed && !(is_gone && found.record.phase == Phase::Evicted) {
            beginning.datasets.insert(id, found);
        }
    }
    settle_names(&mut beginning.datasets);
    beginning
}

fn knows(found: &Inventory, record: &DatasetRecord) -> bool {
    found
        .datasets
        .iter()
        .any(|entry| is_same(&entry.record, record))
}

/// Whether two records are of one dataset. Nodes that were never together again may have given a
/// number twice.
pub(super) fn is_same(one: &DatasetRecord, other: &DatasetRecord) -> bool {
    one.key() == other.key()
}

/// Whether a node may be missing that programs wrote on, or has another place now. One that was
/// there and does not know the dataset never made its part: the last epoch ended in between.
fn is_torn(record: &DatasetRecord, inventories: &BTreeMap<Rank, Inventory>, newest: Epoch) -> bool {
    inventories.iter().any(|(rank, found)| {
        let at_home = found.epoch.slot == Some(Slot(rank.0));
        !at_home || !(knows(found, record) || found.epoch.epoch == newest)
    })
}

/// Leaves one live dataset of each name: the last by this order.
fn settle_names(datasets: &mut BTreeMap<DatasetId, Found>) {
    let is_live = |found: &Found| matches!(found.record.phase, Phase::Open | Phase::Sealed);
    let claim = |found: &Found| (found.record.seal.is_none(), found.record.sealed);
    let mut by_name: BTreeMap<Name, Vec<(_, DatasetId)>> = BTreeMap::new();
    for (&id, found) in datasets.iter().filter(|(_, found)| is_live(found)) {
        by_name
            .entry(found.record.name.clone())
            .or_default()
            .push((claim(found), id));
    }
    for claims in by_name.values_mut() {
        claims.sort();
        claims.pop();
        for (_, id) in claims {
            match datasets.get_mut(id) {
                Some(found) if found.record.seal.is_none() => {
                    found.record.phase = Phase::Incomplete;
                }
                Some(found) => found.record.phase = Phase::Removed { overtaken: true },
                None => {}
            }
        }
    }
}

/// Of two records of one dataset, the one that knows more.
fn better<'a>(one: &'a DatasetRecord, other: &'a DatasetRecord) -> &'a DatasetRecord {
    let knows = |record: &DatasetRecord| {
        let settled = matches!(record.phase, Phase::Evicted | Phase::Failed);
        let known = [
            record.seal.is_some(),
            settled,
            record.phase == Phase::Incomplete,
            record.is_removed(),
            record.protected.is_some(),
            record.flushed.is_some(),
        ];
        (known, record.epoch)
    };
    if knows(other) > knows(one) {
        other
    } else {
        one
    }
}

fn unsealed(mut record: DatasetRecord, torn: bool) -> Found {
    if torn || record.phase != Phase::Open {
        record.phase = Phase::Incomplete;
    }
    Found {
        record,
        holders: BTreeMap::new(),
        lost: BTreeSet::new(),
        unguarded: BTreeSet::new(),
        is_by_prefix: false,
    }
}

fn sealed(
    mut record: DatasetRecord,
    seal: &Seal,
    inventories: &BTreeMap<Rank, Inventory>,
) -> Found {
    let mut holders: BTreeMap<Slot, Rank> = BTreeMap::new();
    let mut guarded: BTreeSet<Slot> = BTreeSet::new();
    for (&rank, found) in inventories {
        let entries = found
            .datasets
            .iter()
            .filter(|entry| entry.record.id == record.id);
        for part in entries.flat_map(|entry| &entry.parts) {
            let sealed = seal.part(part.slot).map(|summary| summary.manifest_crc);
            if !part.intact || sealed != Some(part.manifest_crc) {
                continue;
            }
            // One with parity is better than one without, then a slot's own rank, then the first.
            let guards = part.sums && part.parity;
            let better = match holders.get(&part.slot) {
                None => true,
                Some(_) if guards != guarded.contains(&part.slot) => guards,
                Some(_) => rank.0 == part.slot.0,
            };
            if better {
                holders.insert(part.slot, rank);
            }
            if guards {
                guarded.insert(part.slot);
            }
        }
    }
    let slots = (0..seal.parts.len()).map(|slot| Slot(u32::try_from(slot).unwrap_or(u32::MAX)));
    let mut lost: BTreeSet<Slot> = slots.filter(|slot| !holders.contains_key(slot)).collect();
    let mut unguarded: BTreeSet<Slot> = BTreeSet::new();
    let mut is_by_prefix = false;
    if record.protected.is_some() {
        unguarded.extend(holders.keys().filter(|slot| !guarded.contains(slot)));
        if !lost.is_empty() {
            holders.retain(|slot, _| guarded.contains(slot));
            lost.append(&mut unguarded);
        } else if record.flushed.is_some() {
            // One that was fetched onto fewer nodes has none, and needs none.
            is_by_prefix = !std::mem::take(&mut unguarded).is_empty();
        }
    }
    let mut too_many = false;
    let tolerated = seal.sets.iter().all(|set| {
        let gone = || set.iter().filter(|slot| lost.contains(slot));
        // Without names and checksums there is nothing to hold what is recomputed against.
        let known = |slot: &Slot| {
            let mut left = set.iter().filter_map(|member| holders.get(member));
            left.any(|rank| {
                let found = inventories.get(rank);
                found.is_some_and(|found| found.has_sums(&record, seal, *slot))
            })
        };
        too_many |= gone().count() > seal.scheme.tolerates() as usize;
        !too_many && gone().all(known)
    });
    let rebuildable = record.protected.is_some() && tolerated;
    record.phase = match record.phase {
        // Evicted says where it is, failed what it is worth; neither changes with an epoch.
        Phase::Evicted if record.flushed.is_some() => Phase::Evicted,
        Phase::Failed => Phase::Failed,
        removed @ Phase::Removed { .. } if lost.is_empty() || rebuildable => removed,
        _ if lost.is_empty() || rebuildable => Phase::Sealed,
        _ if record.flushed.is_some() => Phase::Evicted,
        _ => Phase::Lost,
    };
    if record.phase == Phase::Lost {
        let slots: Vec<String> = lost.iter().map(|slot| slot.0.to_string()).collect();
        let why = match record.protected {
            None => "unprotected",
            Some(_) if too_many => "more than its scheme tolerates",
            Some(_) => "nobody has their checksums any more",
        };
        record.error = Some(format!("lost with slots {}: {why}", slots.join(", ")));
    }
    Found {
        record,
        holders,
        lost,
        unguarded,
        is_by_prefix,
    }
}

/// Who shall have the lost slots: the rank of the same number if there is one, else those that hold
/// least, lowest first.
pub fn assign(
    lost: &BTreeSet<Slot>,
    holders: &BTreeMap<Slot, Rank>,
    size: u32,
) -> Vec<(Slot, Rank)> {
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
            load.iter()
                .min_by_key(|&(rank, count)| (*count, *rank))
                .map_or(home, |(rank, _)| *rank)
        };
        *load.entry(rank).or_default() += 1;
        assigned.push((slot, rank));
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Class;
    use crate::layout::record::PartSummary;
    use crate::protocol::message::{InventoryEntry, PartState};
    use crate::redundancy::Scheme;

    /// A dataset that was flushed, then evicted on its only node.
    fn evicted() -> DatasetRecord {
        DatasetRecord {
            id: DatasetId(1),
            name: Name::new(b"ckpt.1").expect("a name"),
            committed_from: None,
            class: Class::Checkpoint,
            checkpoint: Some(1),
            phase: Phase::Evicted,
            epoch: Epoch(1),
            created: 1,
            sealed: Some(2),
            protected: Some(3),
            flushing: false,
            flushed: Some(4),
            seal: Some(Seal {
                epoch: Epoch(1),
                scheme: Scheme::Single,
                chunk_bytes: 4096,
                unit_bytes: 4096,
                sets: vec![vec![Slot(0)]],
                parts: vec![PartSummary {
                    log_bytes: 1,
                    files: 1,
                    manifest_crc: 7,
                }],
            }),
            error: None,
            mode: 0o755,
            uid: 0,
            gid: 0,
        }
    }

    fn found_with(prefix: Option<&PrefixView>) -> Option<DatasetRecord> {
        let entry = InventoryEntry {
            record: std::sync::Arc::new(evicted()),
            parts: Vec::new(),
            copies: Vec::new(),
        };
        let inventory = Inventory {
            datasets: vec![entry],
            ..Inventory::default()
        };
        let all = BTreeMap::from([(Rank(0), inventory)]);
        let mut beginning = decide(&all, prefix, Epoch(2), false);
        assert_eq!(beginning.last_dataset, 1);
        let found = beginning.datasets.remove(&DatasetId(1));
        found.map(|found| found.record)
    }

    fn begun_with(prefix: Option<&PrefixView>) -> DatasetRecord {
        found_with(prefix).expect("known")
    }

    fn having(complete: &[DatasetRecord]) -> PrefixView {
        PrefixView {
            complete: complete.to_vec(),
            ..PrefixView::default()
        }
    }

    #[test]
    fn what_was_taken_out_of_the_prefix_is_not_safe_there_any_more() {
        let kept = begun_with(Some(&having(&[evicted()])));
        assert_eq!((kept.phase, kept.flushed), (Phase::Evicted, Some(4)));
        let removed = begun_with(Some(&having(&[])));
        assert_eq!((removed.phase, removed.flushed), (Phase::Lost, None));
        // A prefix that cannot be read says nothing.
        let unknown = begun_with(None);
        assert_eq!((unknown.phase, unknown.flushed), (Phase::Evicted, Some(4)));
    }

    #[test]
    fn what_was_deleted_on_purpose_is_not_lost_but_no_more() {
        let mut prefix = having(&[]);
        prefix.gone.insert(evicted().key());
        assert_eq!(found_with(Some(&prefix)), None);
        // Another one of that number is not meant.
        prefix.gone = BTreeSet::from([DatasetKey {
            created: 9,
            ..evicted().key()
        }]);
        assert_eq!(begun_with(Some(&prefix)).phase, Phase::Lost);
    }

    #[test]
    fn failed_is_what_is_marked_so() {
        let mut prefix = having(&[evicted()]);
        prefix.failed.insert(evicted().key());
        let failed = begun_with(Some(&prefix));
        assert_eq!((failed.phase, failed.flushed), (Phase::Failed, Some(4)));
    }

    #[test]
    fn what_nobody_has_the_checksums_of_is_lost_though_its_parity_is_there() {
        let mut record = evicted();
        (record.phase, record.flushed) = (Phase::Sealed, None);
        record.protected = Some(3);
        let part = record.seal.as_ref().expect("sealed").parts[0].clone();
        let seal = Seal {
            scheme: Scheme::Xor,
            sets: vec![vec![Slot(0), Slot(1)]],
            parts: vec![part.clone(), part],
            ..record.seal.clone().expect("sealed")
        };
        record.seal = Some(seal);
        let found = |copies: &[Slot]| {
            let whole = PartState {
                slot: Slot(0),
                manifest_crc: 7,
                intact: true,
                sums: true,
                parity: true,
            };
            let entry = InventoryEntry {
                record: std::sync::Arc::new(record.clone()),
                parts: vec![whole],
                copies: copies.to_vec(),
            };
            let inventory = Inventory {
                datasets: vec![entry],
                ..Inventory::default()
            };
            let all = BTreeMap::from([(Rank(0), inventory)]);
            let mut beginning = decide(&all, None, Epoch(2), false);
            beginning.datasets.remove(&DatasetId(1)).expect("known")
        };
        let known = found(&[Slot(1)]);
        assert_eq!(known.record.phase, Phase::Sealed);
        assert_eq!(known.lost, BTreeSet::from([Slot(1)]));
        let unknown = found(&[]).record;
        assert_eq!(unknown.phase, Phase::Lost);
        let error = unknown.error.unwrap_or_default();
        assert!(error.contains("checksums"), "{error}");
    }
}
