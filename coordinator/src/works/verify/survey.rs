//! Records, manifests and checksums: whether they are there, whole, and of what was sealed.

use crate::effects::chain;
use crate::part::{Part, PartId, SealedPart, records};
use crate::works::Context;
use scrfs::id::Slot;
use scrfs::layout::envelope::{Kind, open, seal};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Manifest and checksums of a slot that are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Damaged {
    pub(super) slot: Slot,
    pub(super) keep: Keep,
    /// The first file of them that is to blame.
    pub(super) path: PathBuf,
    pub(super) words: String,
}

/// Looks at the records of this node's `own` slots and at the `copies` it keeps for others.
pub(super) fn damaged(
    paths: &CachePaths,
    record: &DatasetRecord,
    own: &[Slot],
    copies: &BTreeSet<Slot>,
) -> Vec<Damaged> {
    let own = own.iter().map(|slot| (*slot, Keep::Own));
    let copies = copies.iter().map(|slot| (*slot, Keep::Copy));
    let trouble = |(slot, keep)| {
        let (path, words) = trouble(paths, record, slot, keep)?;
        Some(Damaged {
            slot,
            keep,
            path,
            words,
        })
    };
    own.chain(copies).filter_map(trouble).collect()
}

/// What is wrong with manifest and checksums of a slot.
fn trouble(
    paths: &CachePaths,
    record: &DatasetRecord,
    slot: Slot,
    keep: Keep,
) -> Option<(PathBuf, String)> {
    let store = PosixStore::new();
    let manifest = paths.manifest(record.id, slot, keep);
    let sealed = match SealedPart::of(record, slot) {
        Ok(sealed) => sealed,
        Err(error) => return Some((manifest, chain(&error))),
    };
    let found = records::load_manifest(&store, paths, record.id, slot, keep);
    let sound = found.and_then(|stored| match stored {
        Some(stored) => sealed.check_manifest(&manifest, &stored),
        None => Err(missing(&sealed, &manifest)),
    });
    if let Err(error) = sound {
        return Some((manifest, chain(&error)));
    }
    // Checksums come with the first encode.
    record.protected?;
    [Stream::Data, Stream::Parity]
        .into_iter()
        .find_map(|stream| {
            let path = paths.sums(record.id, slot, stream, keep);
            let found = records::load_sums(&store, paths, record.id, slot, stream, keep);
            let sound = found.and_then(|sums| match sums {
                Some(sums) => sealed.check_sums(&path, &sums).map(|()| sums.is_complete()),
                None => Err(missing(&sealed, &path)),
            });
            match sound {
                Ok(true) => None,
                Ok(false) => Some((path, "some checksums are not there".to_owned())),
                Err(error) => Some((path, chain(&error))),
            }
        })
}

fn missing(sealed: &SealedPart, path: &Path) -> crate::part::PartError {
    crate::part::PartError::Missing {
        part: sealed.part,
        path: path.to_owned(),
    }
}

/// What is wrong with the record of a dataset on disk.
pub(super) fn record_trouble(paths: &CachePaths, record: &DatasetRecord) -> Option<String> {
    let path = paths.record(record.id);
    match PosixStore::new().get(&path) {
        Ok(None) => Some("is not there".into()),
        Ok(Some(bytes)) => match open::<DatasetRecord>(Kind::Dataset, &bytes) {
            Ok(found) if found.key() == record.key() && found.seal == record.seal => None,
            Ok(_) => Some("is not of what was sealed".into()),
            Err(error) => Some(chain(&error)),
        },
        Err(error) => Some(chain(&error)),
    }
}

/// Puts the record down again; whether that went well.
pub(super) fn put_record(store: &PosixStore, path: &Path, record: &DatasetRecord) -> bool {
    let put = store.put(path, &seal(Kind::Dataset, record));
    if let Err(error) = &put {
        crate::part::report("a record cannot be put right", error);
    }
    put.is_ok()
}

/// Puts manifest and checksums of an own slot down again from the part that is open, where all of them
/// are known; whether that went well.
pub(super) fn put_from_memory(
    record: &DatasetRecord,
    slot: Slot,
    context: &mut Context<'_>,
) -> bool {
    let Some(part) = context.parts.opened(record.id, slot) else {
        return false;
    };
    let store = PosixStore::new();
    let put = |part: &Part| {
        part.store_manifest(&store)?;
        for stream in [Stream::Data, Stream::Parity] {
            let sums = part.sums(stream);
            if sums.is_complete() {
                records::store_sums(&store, context.parts.paths(), &sums, Keep::Own)?;
            }
        }
        Ok::<_, crate::part::PartError>(())
    };
    if let Err(error) = put(&part) {
        crate::part::report("metadata cannot be put right", &error);
        return false;
    }
    let PartId { slot, .. } = part.id();
    trouble(context.parts.paths(), record, slot, Keep::Own).is_none()
}
