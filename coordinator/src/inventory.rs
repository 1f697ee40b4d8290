//! What this node brings into an epoch, in the protocol's words.

use crate::part;
use anyhow::{Context, Result};
use scrfs::id::Epoch;
use scrfs::layout::envelope::{Kind, open};
use scrfs::layout::path::CachePaths;
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::EpochRecord;
use scrfs::protocol::message::Inventory;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;

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
