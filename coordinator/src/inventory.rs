//! What this node brings into an epoch, in the protocol's words.

use crate::part;
use anyhow::{Context, Result};
use scrfs::layout::envelope::{Kind, open};
use scrfs::layout::path::CachePaths;
use scrfs::layout::pointer::Pointers;
use scrfs::protocol::message::Inventory;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use scrfs::stores::Stores;

/// Everything in the stores of the node called `node` in failure group `group`.
pub(crate) fn take(stores: &Stores, node: String, group: String) -> Result<Inventory> {
    crate::effects::clean_aside(stores);
    let part::Inventory { epoch, datasets } =
        part::take_inventory(&PosixStore::new(), stores).context("cannot look at the cache")?;
    let free = |store: &CachePaths| {
        nix::sys::statvfs::statvfs(store.root())
            .map_or(0, |found| found.blocks_available() * found.fragment_size())
    };
    let free_bytes = stores.iter().map(free).sum();
    let path = stores.home().pointers();
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
