//! Scavenge: what of the caches that are left goes to the prefix, and which node copies what of it.
//!
//! A pure function of what the nodes have (as an epoch would hear of it) and of what the prefix has. Rules:
//!
//! - What there is, is decided as an epoch decides it ([`recover`](super::recover)).
//! - Outputs first, in ascending order. Then one checkpoint: the newest that can be had, unless the
//!   prefix has one that is newer. Where an output is lost, only checkpoints before it count: a restart
//!   from one makes that output again.
//! - Every file of a slot comes from one node. What no node has is rebuilt in the prefix: for that the nodes
//!   copy the parity it is made from, and what the set knows of it.
//!
//! What turns out to be damaged when it is read is [spoilt](spoil): it counts as not there, and the plan is
//! made anew. Each time something is spoilt or given up, so that this ends.

use super::message::{Inventory, PrefixView};
use super::recover::{Found, decide};
use crate::id::{DatasetId, DatasetKey, Epoch, Rank, Slot};
use crate::layout::pointer::Pointers;
use crate::layout::record::{DatasetRecord, Phase, Seal};
use crate::redundancy::{SetGeometry, Stream};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What each node has, by its name.
pub type Catalogs = BTreeMap<String, Inventory>;

/// How one dataset comes into the prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Salvage {
    /// As the index will have it; its epoch is the attempt.
    pub record: DatasetRecord,
    /// Slots whose files are copied, and who does it.
    pub data: Vec<(Slot, String)>,
    /// Slots whose files are made again.
    pub lost: Vec<Slot>,
    /// Slots whose parity is needed for that, and who copies it.
    pub parity: Vec<(Slot, String)>,
    /// Who knows names and checksums of the lost slots.
    pub metadata: Vec<(Slot, String)>,
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// One a dataset.
    pub salvages: Vec<Salvage>,
}

/// What a node could not copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Of which dataset.
    pub key: DatasetKey,
    /// Of which slot.
    pub slot: Slot,
    /// What of it the cache does not have as it was stored; `None` when the cache is not to blame.
    pub spoilt: Option<Stream>,
    /// What happened, for people.
    pub why: String,
}

/// What a node says when it has copied all it could.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What it could not.
    pub problems: Vec<Problem>,
}

/// A dataset that should be saved, and cannot be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beyond {
    /// Which.
    pub record: DatasetRecord,
    /// Why not, for people.
    pub why: String,
}

/// Decides. `given_up` are datasets with which it was tried in vain; `attempt` is above every epoch there
/// was.
pub fn plan(
    catalogs: &Catalogs,
    prefix: &PrefixView,
    given_up: &BTreeMap<DatasetKey, String>,
    attempt: Epoch,
) -> (Plan, Vec<Beyond>) {
    let names: Vec<&str> = catalogs.keys().map(String::as_str).collect();
    let inventories: BTreeMap<Rank, Inventory> =
        (0..).map(Rank).zip(catalogs.values().cloned()).collect();
    let beginning = decide(&inventories, Some(prefix), attempt, true);
    let datasets = &beginning.datasets;
    let mut plan = Plan::default();
    let mut beyond = Vec::new();
    let mut is_saved = |found: &Found| {
        let made = match given_up.get(&found.record.key()) {
            Some(why) => Err(why.clone()),
            None => salvage(found, catalogs, &names, attempt),
        };
        let saved = made.is_ok();
        match made {
            Ok(made) => plan.salvages.push(made),
            Err(why) => beyond.push(Beyond {
                record: found.record.clone(),
                why,
            }),
        }
        saved
    };
    let mut first_lost: Option<DatasetId> = None;
    let mut outputs = BTreeSet::new();
    for (&id, found) in datasets {
        let record = &found.record;
        let is_wanted =
            record.class.is_output() && record.seal.is_some() && !is_succeeded(record, datasets);
        if !is_wanted {
            continue;
        }
        if record.flushed.is_some() || is_saved(found) {
            outputs.insert(id);
        } else {
            first_lost.get_or_insert(id);
        }
    }
    let checkpoints = datasets.values().rev().filter(|found| {
        let record = &found.record;
        let is_offered = !matches!(
            record.phase,
            Phase::Failed | Phase::Removed { overtaken: false }
        );
        let is_before = first_lost.is_none_or(|lost| record.id < lost);
        record.class.is_checkpoint() && record.seal.is_some() && is_offered && is_before
    });
    for found in checkpoints {
        let is_safe = found.record.flushed.is_some() || outputs.contains(&found.record.id);
        if is_safe || is_saved(found) {
            break;
        }
    }
    (plan, beyond)
}

/// Whether a program has removed it, and there is a newer one of its name.
fn is_succeeded(record: &DatasetRecord, datasets: &BTreeMap<DatasetId, Found>) -> bool {
    let mut newer = datasets.range(record.id..).skip(1);
    record.is_removed() && newer.any(|(_, newer)| newer.record.name == record.name)
}

/// How a dataset can be saved; in words, why it cannot.
fn salvage(
    found: &Found,
    catalogs: &Catalogs,
    names: &[&str],
    attempt: Epoch,
) -> Result<Salvage, String> {
    let seal = found.record.seal.as_ref().ok_or("it is not sealed")?;
    if !found.lost.is_empty() && found.record.protected.is_none() {
        return Err(format!("{} lost: it was not protected", words(&found.lost)));
    }
    let holder = |slot: &Slot| {
        let rank = found.holders.get(slot)?;
        Some((*slot, (*names.get(rank.0 as usize)?).to_owned()))
    };
    let lost: Vec<Slot> = found.lost.iter().copied().collect();
    let mut helpers = BTreeSet::new();
    let mut metadata = Vec::new();
    for &slot in &lost {
        let geometry = seal.geometry_of(slot).map_err(|error| error.to_string())?;
        helpers.extend(parities(&geometry, &lost, slot)?);
        let knows = knower(catalogs, &found.record, seal, slot);
        metadata.push((
            slot,
            knows
                .ok_or_else(|| format!("nobody knows what {slot} had"))?
                .to_owned(),
        ));
    }
    let mut record = found.record.clone();
    record.phase = Phase::Sealed;
    record.epoch = attempt;
    record.error = None;
    Ok(Salvage {
        record,
        data: found.holders.keys().filter_map(holder).collect(),
        parity: helpers.iter().filter_map(holder).collect(),
        lost,
        metadata,
    })
}

/// The members whose parity is needed to rebuild a slot.
fn parities(geometry: &SetGeometry, lost: &[Slot], slot: Slot) -> Result<Vec<Slot>, String> {
    let chunk = geometry.chunk_bytes();
    // All bands are alike but for their ends, where there is less.
    let band = chunk.saturating_mul(geometry.members().len() as u64);
    let bytes = geometry.data_len(slot).min(band);
    let unit = u32::try_from(chunk).unwrap_or(u32::MAX);
    let plan = geometry
        .read(lost, slot, 0, bytes, unit)
        .map_err(|error| error.to_string())?;
    let sources = plan.flat_map(|combination| combination.terms);
    let parity = sources.filter(|term| term.source.stream == Stream::Parity);
    Ok(parity.map(|term| term.source.slot).collect())
}

/// A node that has names and checksums of a slot.
fn knower<'a>(
    catalogs: &'a Catalogs,
    record: &DatasetRecord,
    seal: &Seal,
    slot: Slot,
) -> Option<&'a str> {
    let mut nodes = catalogs.iter();
    nodes
        .find(|(_, inventory)| inventory.has_sums(record, seal, slot))
        .map(|(name, _)| name.as_str())
}

fn words(slots: &BTreeSet<Slot>) -> String {
    let all: Vec<String> = slots.iter().map(ToString::to_string).collect();
    match all.len() {
        1 => format!("{} is", all[0]),
        _ => format!("{} are", all.join(", ")),
    }
}

/// What a node has of a slot is not what was stored.
pub fn spoil(catalogs: &mut Catalogs, node: &str, key: DatasetKey, slot: Slot, stream: Stream) {
    let entries = catalogs.get_mut(node).map(|found| &mut found.datasets);
    for entry in entries.into_iter().flatten() {
        if entry.record.key() != key {
            continue;
        }
        for part in entry.parts.iter_mut().filter(|part| part.slot == slot) {
            match stream {
                Stream::Data => part.intact = false,
                Stream::Parity => part.parity = false,
            }
        }
    }
}

/// The pointer files that the prefix is to have: newer than those it has, and written when what the
/// prefix has was the newest. What another job has written there since stays.
pub fn pointers_due(catalogs: &Catalogs, prefix: &PrefixView) -> Pointers {
    let mut known = Pointers::default();
    let mut keys: BTreeMap<DatasetId, DatasetKey> = BTreeMap::new();
    for inventory in catalogs.values() {
        known.merge(&inventory.pointers);
        let records = inventory.datasets.iter().map(|entry| &entry.record);
        keys.extend(records.map(|record| (record.id, record.key())));
    }
    let has = |id: DatasetId| {
        let mut complete = prefix.complete.iter().map(DatasetRecord::key);
        complete.any(|key| key.id == id && keys.get(&id).is_none_or(|known| *known == key))
    };
    let mut due = Pointers {
        term: known.term,
        ..Pointers::default()
    };
    for (name, record) in &known.all {
        let there = prefix.pointers.all.get(name);
        if record.outdoes(there) && record.after.is_none_or(has) {
            due.learn(name.clone(), record.clone());
        }
    }
    due
}

#[cfg(test)]
mod tests;
