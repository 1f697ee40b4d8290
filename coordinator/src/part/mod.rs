//! Parts: what one slot has of a dataset, on this node's disk.
//!
//! - [`scan_part`] makes the manifest of a tree, for the vote.
//! - [`Part`] reads and writes the part log and the parity; `restore` brings a lost part back.
//! - [`records`] keeps manifests and checksums, [`take_inventory`] finds out what is there.
//!
//! Invariants: nothing is opened outside the tree, whatever lies in it; what a record says is
//! believed only after its checksum, identity and, once sealed, the seal agree; what cannot be
//! believed is reported and treated as absent. All of it is synchronous and may be called from any
//! thread. Nothing here talks to other nodes or knows which part ought to be where.

pub(crate) mod attributes;
mod copy;
mod error;
mod files;
mod inventory;
mod log;
mod mend;
pub mod records;
mod restore;
mod scan;
mod tree;
mod units;
mod verify;
pub(crate) mod xattr;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use copy::copy_dataset;
pub use error::{PartError, PartId};
pub use files::{Part, sums_that_fit};
pub use inventory::{Inventory, inventory_of, look, take_inventory};
pub use log::FILES_MAX;
pub(crate) use log::{Log, lock};
pub(crate) use mend::{Leisure, Looked, UNITS_MENDED_MAX, mend_log};
pub use records::{SealedPart, StoredManifest};
pub(crate) use scan::extents;
pub use scan::scan_part;
pub(crate) use scan::scan_part_as;
pub(crate) use tree::{Tree, file_type, mtime, remove_tree};
pub(crate) use units::Units;

/// Logs an error with all that led to it.
pub(crate) fn report(what: &str, error: &(dyn std::error::Error + 'static)) {
    let mut chain = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        chain.push_str(": ");
        chain.push_str(&next.to_string());
        cause = next.source();
    }
    tracing::error!(error = %chain, "{what}");
}
