//! What the protocol's effects do to this node's cache and to the prefix.

use crate::ahead::Closed;
use crate::part::{self, PartError};
use crate::parts::Parts;
use crate::prefix::{Cause, PrefixError};
use crate::target::Target;
use nix::unistd::{Gid, Uid, chown};
use scrfs::config::Config;
use scrfs::control::Refusal;
use scrfs::id::{DatasetId, DatasetKey, Epoch, Slot};
use scrfs::interval::{History, Learnt};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::index::IndexEntry;
use scrfs::layout::path::CachePaths;
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::{DatasetRecord, PartSummary};
use scrfs::name::Name;
use scrfs::protocol::message::{Failure, PrefixView};
use scrfs::protocol::step::{Presence, Write};
use scrfs::store::posix::{PosixStore, sync_directory};
use scrfs::store::{Store, StoreError};
use scrfs::stores::Stores;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Puts one record down.
pub(crate) fn put(
    store: &PosixStore,
    stores: &Stores,
    parts: &mut Parts,
    write: &Write,
) -> Result<(), StoreError> {
    let paths = stores.home();
    match write {
        Write::Dataset(record) => {
            store.put(&paths.record(record.id), &seal(Kind::Dataset, record))?;
            parts.learn(record);
            Ok(())
        }
        Write::Pointers(pointers) => {
            store.put(&paths.pointers(), &seal(Kind::Pointers, pointers.as_ref()))
        }
        Write::Forget(dataset) => store.remove(&paths.record(*dataset)),
        Write::Epoch(record) => stores.put_epoch(store, record),
    }
}

/// Which failures and recoveries the events of a prefix tell of. What cannot be read tells of none.
pub(crate) fn learn(prefix: &Target) -> Learnt {
    let mut history = History::default();
    if let Err(error) = prefix.events(&mut |line| history.line(line)) {
        tracing::warn!(error = %chain(&error), "not all events are learnt from");
    }
    Learnt::of(&history.learnt())
}

/// Everything an error was caused by, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

fn refusal(error: Option<&io::Error>) -> Refusal {
    match error.map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Refusal::NoSpace,
        _ => Refusal::Failed,
    }
}

/// A part's trouble, for the protocol.
pub(crate) fn part_failure(error: &PartError) -> Failure {
    Failure::new(refusal(error.io()), chain(error))
}

/// A record's trouble, for the protocol.
pub(crate) fn store_failure(error: &StoreError) -> Failure {
    Failure::new(refusal(Some(&error.source)), chain(error))
}

/// Makes the empty tree of this node's slot, with the owner and mode that were asked for. It being
/// there already is fine.
pub(crate) fn make_part(
    paths: &CachePaths,
    record: &DatasetRecord,
    slot: Slot,
) -> Result<(), Failure> {
    let tree = paths.tree(record.id, slot);
    let make = || -> io::Result<()> {
        if tree.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&tree)?;
        chown(
            &tree,
            Some(Uid::from_raw(record.uid)),
            Some(Gid::from_raw(record.gid)),
        )?;
        fs::set_permissions(&tree, fs::Permissions::from_mode(record.mode & 0o7777))
    };
    make().map_err(|source| {
        store_failure(&StoreError {
            verb: "make",
            path: tree.clone(),
            source,
        })
    })?;
    sync_directory(&paths.dataset(record.id)).map_err(|error| store_failure(&error))
}

/// Describes this node's part and puts the manifest down: what a vote stands on. Gives what the part holds, and how much
/// of its log is as `order` says.
pub(crate) fn scan(
    paths: &CachePaths,
    store: &PosixStore,
    dataset: DatasetId,
    slot: Slot,
    epoch: Epoch,
    order: &[Closed],
) -> Result<(PartSummary, u64), Failure> {
    let tree = paths.tree(dataset, slot);
    let (manifest, kept) = part::scan_part_as(&tree, dataset, slot, epoch, order)
        .map_err(|error| part_failure(&error))?;
    let (bytes, summary) = part::records::encode_manifest(&manifest);
    let path = paths.manifest(dataset, slot, scrfs::layout::path::Keep::Own);
    store
        .put(&path, &bytes)
        .map_err(|error| store_failure(&error))?;
    Ok((summary, kept))
}

/// Why a flush failed, for the protocol: of the prefix, which fails others as well and may be had later, or of
/// what was flushed.
pub(crate) fn flush_failure(error: &PrefixError) -> Failure {
    let refusal = match error.cause() {
        Cause::NoSpace => Refusal::NoSpace,
        Cause::Unavailable | Cause::ReadOnly => Refusal::Unavailable,
        Cause::Cancelled => Refusal::Again,
        // What is gone there is copied again.
        Cause::Damaged if !matches!(error, PrefixError::Part(_)) => Refusal::Unavailable,
        Cause::Denied | Cause::Damaged | Cause::Conflict | Cause::Other => Refusal::Failed,
    };
    Failure::new(refusal, chain(error))
}

/// Why a fetch failed, for the protocol.
pub(crate) fn fetch_failure(error: &PrefixError) -> Failure {
    let refusal = match error.cause() {
        Cause::NoSpace => Refusal::NoSpace,
        Cause::Unavailable => Refusal::Unavailable,
        Cause::ReadOnly
        | Cause::Denied
        | Cause::Damaged
        | Cause::Conflict
        | Cause::Cancelled
        | Cause::Other => Refusal::Failed,
    };
    Failure::new(refusal, chain(error))
}

/// Whether the prefix has a dataset that was flushed.
pub(crate) fn prefix_holds(prefix: &Target, record: &DatasetRecord) -> Result<Presence, Failure> {
    let presence = || -> Result<Presence, PrefixError> {
        prefix.check_usable()?;
        match prefix.presence(record)? {
            Presence::Gone if prefix.gone()?.contains(&record.key()) => Ok(Presence::Settled),
            presence => Ok(presence),
        }
    };
    presence().map_err(|error| Failure::new(Refusal::Failed, chain(&error)))
}

pub(crate) fn write_pointers(prefix: &Target, due: &Pointers) -> Result<(), Failure> {
    prefix
        .write_pointers(due)
        .map_err(|error| Failure::new(Refusal::Failed, chain(&error)))
}

/// Removes checkpoints from the prefix that `flush.keep` newer ones have made superfluous. What cannot
/// be removed now is tried again after the next flush.
pub(crate) fn retain(prefix: &Target, keep: u64, spare: &BTreeSet<DatasetKey>) {
    if keep == 0 {
        return;
    }
    match prefix.retain(keep, spare) {
        Ok(removed) => {
            for key in removed {
                tracing::info!(dataset = %key.id, keep, "removed from the prefix");
            }
        }
        Err(error) => {
            tracing::error!(error = %chain(&error), "cannot remove old checkpoints from the prefix");
        }
    }
}

/// What the leader must know of the prefix.
pub(crate) fn prefix_view(prefix: &Target) -> Result<PrefixView, PrefixError> {
    let entries = prefix.list()?;
    let pointers = prefix.pointers().unwrap_or_else(|error| {
        tracing::error!(%error, "what it says of pointer files is not believed");
        Pointers::default()
    });
    let current = prefix.current(&entries)?.map(IndexEntry::key);
    let complete = entries.into_iter().filter(IndexEntry::is_complete);
    Ok(PrefixView {
        pointers,
        current,
        complete: complete
            .map(|entry| DatasetRecord {
                flushed: Some(entry.flushed),
                ..entry.record
            })
            .collect(),
        failed: prefix.failed()?,
        gone: prefix.gone()?,
    })
}

/// Follows `restart.current`: once a job, so that a relaunch goes on from what was flushed since. The
/// first epoch of all is that of a job that begins, whatever it is called.
pub(crate) fn choose_current(prefix: &Target, config: &Config, epoch: Epoch) {
    let Ok(name) = Name::new(config.restart.current.as_bytes()) else {
        return;
    };
    let asked = (config.job.clone(), name);
    let chosen = || -> Result<(), PrefixError> {
        let last = prefix.choice()?.and_then(|choice| choice.asked);
        if epoch > Epoch(1) && last.as_ref() == Some(&asked) {
            return Ok(());
        }
        let name = asked.1.clone();
        prefix.choose(&name, Some(asked.clone())).map(drop)
    };
    if let Err(error) = chosen() {
        tracing::error!(error = %chain(&error), "restart.current (SCR_CURRENT) cannot be followed");
    }
}

/// Renames the files of a dataset out of the way, so that they can be removed at leisure.
pub(crate) fn set_aside(
    stores: &Stores,
    dataset: DatasetId,
    slots: &[Slot],
) -> Result<PathBuf, StoreError> {
    let paths = stores.home();
    let root = stores.trash_of(dataset);
    fs::create_dir_all(&root).map_err(StoreError::of("make", &root))?;
    let mut aside = root.clone();
    for number in 0u64.. {
        aside = root.join(format!("{dataset}.{number}"));
        match fs::create_dir(&aside) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::of("make", &aside)(error)),
        }
    }
    let directory = paths.dataset(dataset);
    let store = PosixStore::new();
    for name in store.list(&directory)? {
        let slot = name
            .to_str()
            .and_then(scrfs::layout::path::parse_slot_directory);
        let Some((slot, _)) = slot else { continue };
        if slots.is_empty() || slots.contains(&slot) {
            let from = directory.join(&name);
            fs::rename(&from, aside.join(&name)).map_err(StoreError::of("rename", &from))?;
        }
    }
    if !paths.record(dataset).exists() {
        stores.set_aside(dataset, &aside.join("dataset"))?;
    }
    Ok(aside)
}

/// Removes what was set aside.
pub(crate) fn remove_aside(aside: &Path) {
    if let Err(error) = fs::remove_dir_all(aside) {
        tracing::error!(path = %aside.display(), %error, "cannot free space");
    }
}

/// Removes what an earlier epoch set aside.
pub(crate) fn clean_aside(stores: &Stores) {
    for root in stores.iter().map(CachePaths::trash) {
        if root.exists() {
            remove_aside(&root);
        }
    }
}
