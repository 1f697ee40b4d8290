//! A dataset copied from one store to another: every unit is held against its checksum before it is written,
//! and all is durable when this returns.
//!
//! Only what is complete is copied: a part whose files are as they were sealed, with its parity and all checksums.
//! What is being encoded or rebuilt is not. The record is the caller's, for it may change meanwhile. The copy
//! is made anew each time: what an earlier attempt left is removed.

use super::error::{PartError, PartId};
use super::files::Part;
use super::records::load_manifest;
use super::tree::remove_tree;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::path::{CachePaths, Keep, parse_slot_directory};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::Stream;
use scrfs::store::{Store, StoreError};
use std::io;

/// Called between what has been done and what not yet; its error ends the copy there.
pub(crate) type Step<'a> = &'a dyn Fn(&'static str) -> Result<(), StoreError>;

/// Copies all that a dataset consists of, but for its record, to the same place below `to`.
pub(crate) fn copy_dataset(
    store: &dyn Store,
    from: &CachePaths,
    to: &CachePaths,
    record: &DatasetRecord,
    step: Step<'_>,
) -> Result<(), PartError> {
    let id = record.id;
    let whole = |slot| PartId { dataset: id, slot };
    let plain = |error| whole(Slot(0)).store(error);
    remove_tree(to.root()).map_err(plain)?;
    step("nothing is there").map_err(plain)?;
    for name in store.list(&from.dataset(id)).map_err(plain)? {
        match name.to_str().and_then(parse_slot_directory) {
            Some((slot, Keep::Own)) => copy_part(store, from, to, record, slot, step)?,
            Some((slot, Keep::Copy)) => {
                copy_records(store, from, to, id, slot, step).map_err(|e| whole(slot).store(e))?;
            }
            None => {}
        }
    }
    Ok(())
}

/// The metadata that is kept of another member: small records, checked by whoever reads them.
fn copy_records(
    store: &dyn Store,
    from: &CachePaths,
    to: &CachePaths,
    id: DatasetId,
    slot: Slot,
    step: Step<'_>,
) -> Result<(), StoreError> {
    let (old, new) = (
        from.slot(id, slot, Keep::Copy),
        to.slot(id, slot, Keep::Copy),
    );
    for name in store.list(&old)? {
        if let Some(bytes) = store.get(&old.join(&name))? {
            store.put(&new.join(&name), &bytes)?;
        }
        step("a record of another member")?;
    }
    Ok(())
}

fn copy_part(
    store: &dyn Store,
    from: &CachePaths,
    to: &CachePaths,
    record: &DatasetRecord,
    slot: Slot,
    step: Step<'_>,
) -> Result<(), PartError> {
    let part = Part::open(store, from, record, slot)?;
    part.verify_against_tree()?;
    let (data, parity) = (part.sums(Stream::Data), part.sums(Stream::Parity));
    let path = from.slot(record.id, slot, Keep::Own);
    let id = part.id();
    if !data.is_complete() || !parity.is_complete() || !part.has_parity() {
        let words = io::Error::other("it has no parity or checksums yet");
        return Err(id.io("copy", &path)(words));
    }
    let missing = || PartError::Missing {
        part: id,
        path: from.manifest(record.id, slot, Keep::Own),
    };
    let manifest = load_manifest(store, from, record.id, slot, Keep::Own)?.ok_or_else(missing)?;
    let copy = Part::begin_restore(
        store,
        to,
        record,
        manifest,
        Some(data.clone()),
        Some(parity.clone()),
    )?;
    let step = |what| step(what).map_err(|error| id.store(error));
    step("the names of a part")?;
    let unit_bytes = u64::from(part.unit_bytes());
    for unit in 0..data.crcs.len() {
        let bytes = part.read_unit(Stream::Data, unit)?;
        copy.write_data(unit as u64 * unit_bytes, &bytes)?;
        step("a unit of data")?;
    }
    copy.finish_restore(store)?;
    step("the files of a part")?;
    for unit in 0..parity.crcs.len() {
        let bytes = part.read_unit(Stream::Parity, unit)?;
        copy.write_parity(unit as u64 * unit_bytes, &bytes)?;
        step("a unit of parity")?;
    }
    copy.commit_parity()?;
    step("the parity of a part")?;
    copy.store_sums(store, Stream::Parity)?;
    step("a part")
}
