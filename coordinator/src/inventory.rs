//! What this node brings into an epoch, in the protocol's words.

use crate::part;
use anyhow::{Context, Result};
use scrfs::id::{DatasetId, Epoch};
use scrfs::layout::envelope::{Kind, open};
use scrfs::layout::path::{CachePaths, parse_dataset_directory};
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::EpochRecord;
use scrfs::protocol::message::Inventory;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::collections::BTreeSet;

/// The newest epoch that began on this node; zero on a new one.
pub(crate) fn last_epoch(paths: &CachePaths) -> Result<Epoch> {
    let path = paths.epoch();
    match PosixStore::new().get(&path)? {
        None => Ok(Epoch::default()),
        Some(bytes) => {
            let record: EpochRecord = open(Kind::Epoch, &bytes)
                .with_context(|| format!("{} is damaged; remove the cache", path.display()))?;
            Ok(record.epoch)
        }
    }
}

/// The numbers of all datasets that have a directory here.
pub(crate) fn dataset_ids(paths: &CachePaths) -> BTreeSet<DatasetId> {
    let names = PosixStore::new()
        .list(&paths.datasets())
        .unwrap_or_default();
    names
        .iter()
        .filter_map(|name| parse_dataset_directory(name.to_str()?))
        .collect()
}

/// Everything in the cache at `paths`, of the node called `node` in failure group `group`.
pub(crate) fn take(paths: &CachePaths, node: String, group: String) -> Result<Inventory> {
    crate::effects::clean_aside(paths);
    let part::Inventory { epoch, datasets } =
        part::take_inventory(&PosixStore::new(), paths).context("cannot look at the cache")?;
    let free_bytes = nix::sys::statvfs::statvfs(paths.root())
        .map_or(0, |found| found.blocks_available() * found.fragment_size());
    let path = paths.pointers();
    let pointers = match PosixStore::new().get(&path)? {
        None => Pointers::default(),
        Some(bytes) => open(Kind::Pointers, &bytes)
            .with_context(|| format!("{} is damaged; remove the cache", path.display()))?,
    };
    Ok(Inventory {
        pointers,
        node,
        group,
        free_bytes,
        epoch,
        datasets,
    })
}
