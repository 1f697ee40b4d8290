//! What one node has, found out from its disk alone, at the start of an epoch.
//!
//! What is reported can be believed: records are whole and of the dataset and slot whose place they
//! are in. What cannot be believed is logged with its path and left out; which of two nodes is right
//! is decided elsewhere. Looking costs a stat for each entry of each manifest; no file content is
//! read, so that `intact` says nothing of single bits, unless a read has found them before.
//!
//! Only one coordinator runs on a node, and the daemon makes a dataset's directory after its record:
//! so what is on its way in, out, or without a record is what a crash left, and is removed. A dataset
//! whose record is there but damaged is left alone: other nodes know the record, and with
//! [`inventory_of`] what is here can still be used.

use super::error::PartError;
use super::files::{Part, has_parity, parent, sums_that_fit};
use super::records::{SealedPart, load_manifest};
use super::report;
use super::tree::remove_tree;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::envelope::{Kind, open};
use scrfs::layout::path::{CachePaths, Keep, parse_dataset_directory, parse_slot_directory};
use scrfs::layout::record::{DatasetRecord, EpochRecord};
use scrfs::protocol::message::{InventoryEntry, PartState};
use scrfs::redundancy::Stream;
use scrfs::store::posix::sync_directory;
use scrfs::store::{Store, StoreError};
use scrfs::stores::{Settled, Stores};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Everything one node has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    /// The newest epoch that began here; the default on a new node.
    pub epoch: EpochRecord,
    /// Datasets, ascending by number.
    pub datasets: Vec<InventoryEntry>,
}

/// Looks at everything in the stores, and removes what a crash left behind.
///
/// # Errors
///
/// Only when the directories themselves cannot be listed; what is wrong inside is logged.
pub fn take_inventory(store: &dyn Store, stores: &Stores) -> Result<Inventory, StoreError> {
    for one in stores.iter() {
        remove_temporaries(store, one.root())?;
    }
    let Settled {
        begun: epoch,
        doubtful,
    } = stores.settle()?;
    let cache = stores.home();
    let mut datasets = Vec::new();
    for name in store.list(&cache.datasets())? {
        let Some(id) = name.to_str().and_then(parse_dataset_directory) else {
            tracing::warn!(path = ?cache.datasets().join(&name), "not a dataset; left alone");
            continue;
        };
        remove_temporaries(store, &cache.dataset(id))?;
        match read::<DatasetRecord>(store, Kind::Dataset, &cache.record(id)) {
            Ok(Some(record)) if record.id == id => {
                let mut entry = inventory_of(store, cache, record)?;
                if doubtful.contains(&id) {
                    doubt(&mut entry);
                }
                datasets.push(entry);
            }
            Ok(Some(record)) => {
                let path = cache.record(id);
                tracing::error!(?path, found = %record.id, "the record of another dataset");
            }
            Ok(None) => {
                tracing::info!(dataset = %id, "removed what a crash left behind");
                stores.remove(id)?;
            }
            Err(()) => {}
        }
    }
    datasets.sort_by_key(|entry| entry.record.id);
    Ok(Inventory { epoch, datasets })
}

/// Checksums are put down after the bytes are durable; before that a crash of the machine may have taken
/// some, of a file that looks whole.
fn doubt(entry: &mut InventoryEntry) {
    for part in &mut entry.parts {
        if part.intact && !part.sums {
            tracing::error!(dataset = %entry.record.id, slot = %part.slot, "it may have lost bytes: not believed");
            part.intact = false;
        }
    }
}

/// Looks at everything in the stores, and changes nothing: no epoch begins, and somebody may yet want what
/// looks like left behind. Also gives the paths that lead to each dataset.
pub fn look(
    store: &dyn Store,
    stores: &Stores,
) -> Result<(Inventory, BTreeMap<DatasetId, CachePaths>), StoreError> {
    let surveyed = stores.survey()?;
    let mut datasets = Vec::new();
    for (&id, cache) in &surveyed.places {
        let path = cache.record(id);
        match read::<DatasetRecord>(store, Kind::Dataset, &path) {
            Ok(Some(record)) if record.id == id => {
                let mut entry = entry_of(store, cache, record, false)?;
                if surveyed.doubtful.contains(&id) {
                    doubt(&mut entry);
                }
                datasets.push(entry);
            }
            Ok(Some(record)) => {
                tracing::error!(?path, found = %record.id, "the record of another dataset");
            }
            Ok(None) | Err(()) => {}
        }
    }
    let epoch = surveyed.begun;
    Ok((Inventory { epoch, datasets }, surveyed.places))
}

/// Looks at one dataset whose record is known, from here or from another node.
pub fn inventory_of(
    store: &dyn Store,
    cache: &CachePaths,
    record: DatasetRecord,
) -> Result<InventoryEntry, StoreError> {
    entry_of(store, cache, record, true)
}

/// `tidy`: what a crash left behind is removed.
fn entry_of(
    store: &dyn Store,
    cache: &CachePaths,
    record: DatasetRecord,
    tidy: bool,
) -> Result<InventoryEntry, StoreError> {
    let record = Arc::new(record);
    let mut entry = InventoryEntry {
        record: Arc::clone(&record),
        parts: Vec::new(),
        copies: Vec::new(),
    };
    let record = &*record;
    for name in store.list(&cache.dataset(record.id))? {
        let Some((slot, keep)) = name.to_str().and_then(parse_slot_directory) else {
            continue;
        };
        if tidy {
            remove_temporaries(store, &cache.slot(record.id, slot, keep))?;
        }
        match keep {
            Keep::Own => {
                if tidy {
                    remove_leftovers(store, cache, record.id, slot)?;
                }
                let state = part_state(store, cache, record, slot).unwrap_or_else(|error| {
                    report("a part is not believed", &error);
                    None
                });
                entry.parts.extend(state);
            }
            Keep::Copy => match has_copy(store, cache, record, slot) {
                Ok(true) => entry.copies.push(slot),
                Ok(false) => {}
                Err(error) => report("a copied manifest is not believed", &error),
            },
        }
    }
    entry.parts.sort_by_key(|part| part.slot);
    entry.copies.sort();
    Ok(entry)
}

/// A record, `None` when there is none, `Err` when there is one that cannot be believed (logged).
fn read<T: DeserializeOwned>(store: &dyn Store, kind: Kind, path: &Path) -> Result<Option<T>, ()> {
    match store.get(path) {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => open(kind, &bytes).map(Some).map_err(|error| {
            tracing::error!(?path, %error, "a record is damaged");
        }),
        Err(error) => {
            report("a record cannot be read", &error);
            Err(())
        }
    }
}

fn part_state(
    store: &dyn Store,
    cache: &CachePaths,
    record: &DatasetRecord,
    slot: Slot,
) -> Result<Option<PartState>, PartError> {
    let Some(stored) = load_manifest(store, cache, record.id, slot, Keep::Own)? else {
        return Ok(None);
    };
    let mut state = PartState {
        slot,
        manifest_crc: stored.crc,
        intact: false,
        sums: false,
        parity: false,
    };
    if record.seal.is_none() {
        // A vote: only what it says counts, until it is decided.
        return Ok(Some(state));
    }
    let sealed = SealedPart::of(record, slot)?;
    sealed.check_manifest(&cache.manifest(record.id, slot, Keep::Own), &stored)?;
    // Each counts alone: the parity of a node that lost its files still serves the others.
    let spoilt = |stream| cache.damage(record.id, slot, stream).exists();
    state.parity = has_parity(cache, &sealed) && !spoilt(Stream::Parity);
    state.sums = has_all_sums(store, cache, &sealed, Keep::Own);
    match Part::open(store, cache, record, slot).and_then(|part| part.verify_against_tree()) {
        Ok(()) => state.intact = !spoilt(Stream::Data),
        Err(error) => report("a part is not as it was sealed", &error),
    }
    Ok(Some(state))
}

fn has_all_sums(store: &dyn Store, cache: &CachePaths, sealed: &SealedPart, keep: Keep) -> bool {
    [Stream::Data, Stream::Parity].iter().all(|&stream| {
        sums_that_fit(store, cache, sealed, stream, keep).is_some_and(|sums| sums.is_complete())
    })
}

fn has_copy(
    store: &dyn Store,
    cache: &CachePaths,
    record: &DatasetRecord,
    slot: Slot,
) -> Result<bool, PartError> {
    let Some(stored) = load_manifest(store, cache, record.id, slot, Keep::Copy)? else {
        return Ok(false);
    };
    let sealed = SealedPart::of(record, slot)?;
    sealed.check_manifest(&cache.manifest(record.id, slot, Keep::Copy), &stored)?;
    Ok(has_all_sums(store, cache, &sealed, Keep::Copy))
}

/// Removes a tree that nobody needs; that it cannot be is logged, and nothing else.
fn remove(path: &Path) {
    tracing::info!(?path, "removed what a crash left behind");
    if let Err(error) = remove_tree(path).and_then(|()| sync_directory(parent(path))) {
        report("what a crash left behind cannot be removed", &error);
    }
}

fn remove_leftovers(
    store: &dyn Store,
    cache: &CachePaths,
    id: DatasetId,
    slot: Slot,
) -> Result<(), StoreError> {
    let leftovers = [
        cache.tree_new(id, slot),
        cache.tree_old(id, slot),
        cache.parity_new(id, slot),
    ];
    let names = store.list(&cache.slot(id, slot, Keep::Own))?;
    for path in leftovers {
        if names.iter().any(|name| path.file_name() == Some(name)) {
            remove(&path);
        }
    }
    Ok(())
}

/// Removes the temporary files of records that were being replaced: `.<name>.<pid>.new`.
fn remove_temporaries(store: &dyn Store, directory: &Path) -> Result<(), StoreError> {
    for name in store.list(directory)? {
        let bytes = name.as_encoded_bytes();
        let path = directory.join(&name);
        // The daemon lives on and may be replacing its own records: those of a live process stay.
        let pid = name
            .to_str()
            .and_then(|name| name.strip_suffix(".new")?.rsplit('.').next());
        let alive = pid.is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if bytes.starts_with(b".") && bytes.ends_with(b".new") && !alive {
            remove(&path);
        }
    }
    Ok(())
}
