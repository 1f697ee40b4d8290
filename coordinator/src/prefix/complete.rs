//! Completing a flush: from all slots' files in an attempt to one dataset under its name.
//!
//! Run by rank 0 when all slots have reported. Order: every manifest is the one that was sealed, with
//! all its checksums -> no two slots have the same file -> every file has its size -> directories get
//! their attributes and are made durable, deepest first -> the index entry says `Flushing` -> the rest is
//! `publish`. Up to the entry nothing is visible, and a crash leaves only what the next attempt removes.
//!
//! Memory grows with the names of the dataset: one path each. Names that no manifest has are not
//! looked for: an attempt's directory is made new for each epoch.

use super::error::PrefixError;
use super::streams::{Job, run};
use super::{Prefix, StepHook, inode};
use crate::part::records::{decode_manifest, decode_sums};
use crate::part::{PartId, SealedPart, Tree, attributes, file_type};
use nix::sys::stat::SFlag;
use nix::unistd::{Gid, Uid};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::index::{EntryState, IndexEntry, Replaced};
use scrfs::layout::manifest::{Entry, EntryKind, Manifest, Node, Sums};
use scrfs::layout::record::{DatasetRecord, millis};
use scrfs::name::RelPath;
use scrfs::redundancy::Stream;
use scrfs::store::{Store, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

/// Entries that one stream looks at in a row.
const ENTRIES: u64 = 512;
/// Streams that look.
const STREAMS: usize = 8;

/// What all slots together say of a tree that was found as it should be.
pub(super) struct Checked {
    /// Directories, parents before what is in them.
    directories: BTreeMap<RelPath, Entry>,
    /// The newest time any slot has of the top directory.
    pub(super) root_mtime: (i64, u32),
}

/// What makes two slots' entries of the same path the same thing.
#[derive(PartialEq, Eq)]
enum Shared {
    Directory,
    Symlink(Vec<u8>),
    Node(Node),
    /// Never: bytes would be lost.
    Not(Slot),
}

impl Prefix {
    /// Makes a flushed dataset visible: all or nothing. `record` must be the one that the slots
    /// were flushed with. Blocks; not to be called from async code.
    ///
    /// # Errors
    ///
    /// A slot is missing or damaged, two slots have the same file, or the name is taken by something
    /// that is not ours; nothing is visible then, and nothing of others was touched. When the name
    /// has been taken and something fails afterwards, [`Self::reconcile`] finishes it.
    pub fn complete_flush(&self, record: &DatasetRecord) -> Result<(), PrefixError> {
        self.complete_flush_with(record, &|_| Ok(()))
    }

    pub(crate) fn complete_flush_with(
        &self,
        record: &DatasetRecord,
        step: StepHook<'_>,
    ) -> Result<(), PrefixError> {
        self.check_usable()?;
        if self.published(record)? {
            return Ok(());
        }
        self.occupant(record)?;
        let attempt = self.paths.attempt(record.key(), record.epoch);
        let step = |name| step(name).map_err(PrefixError::io_at(name, &attempt));
        let tree = Arc::new(Tree::open(&attempt)?);
        step("check")?;
        let checked = self.check_tree(record, &tree)?;
        step("finish directories")?;
        finish_directories(&tree, record, &checked)?;
        step("write the flushing entry")?;
        let seal = record
            .seal
            .as_ref()
            .ok_or(PrefixError::NotSealed { dataset: record.id })?;
        let inode = inode(&attempt).ok_or_else(|| PrefixError::NotThere {
            dataset: record.id,
            path: attempt.clone(),
        })?;
        let entry = IndexEntry {
            record: record.clone(),
            state: EntryState::Flushing,
            attempt: record.epoch,
            inode,
            replaces: self.occupant(record)?,
            flushed: millis(SystemTime::now()),
            bytes: seal.bytes(),
            files: seal.files(),
            job: self.job.clone(),
            adopted: false,
        };
        self.store
            .put(&self.paths.entry(record.key()), &entry.encode())?;
        self.publish(entry, checked.root_mtime, &step)
    }

    /// What has the name of a dataset: nothing, or one of ours. Ours is what the index knows by its
    /// inode, or, in a prefix that was copied, what has all files of the dataset it says it is.
    pub(super) fn occupant(&self, record: &DatasetRecord) -> Result<Option<Replaced>, PrefixError> {
        let path = self.paths.dataset(&record.name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(PrefixError::io_at("stat", &path))?,
        };
        let not_ours = || PrefixError::NotOurs {
            path: path.clone(),
            name: record.name.clone(),
        };
        let found = inode(&path).ok_or_else(not_ours)?;
        let mut entries = self.all_entries()?;
        // What was adopted is still somebody else's: nobody asked us to replace it.
        entries.retain(|entry| entry.record.name == record.name && !entry.adopted);
        let known = entries
            .iter()
            .find(|entry| entry.inode == found)
            .or_else(|| entries.iter().rfind(|entry| self.is_all_of(entry)));
        let entry = known.ok_or_else(not_ours)?;
        Ok(Some(Replaced {
            key: entry.key(),
            inode: found,
        }))
    }

    /// The manifest of a slot as the prefix has it, which must be the one that was sealed.
    pub(super) fn manifest(
        &self,
        record: &DatasetRecord,
        slot: Slot,
    ) -> Result<crate::part::StoredManifest, PrefixError> {
        let path = self.paths.manifest(record.key(), slot);
        let bytes = self
            .store
            .get(&path)?
            .ok_or_else(|| PrefixError::NotThere {
                dataset: record.id,
                path: path.clone(),
            })?;
        let stored = decode_manifest(
            PartId {
                dataset: record.id,
                slot,
            },
            &path,
            &bytes,
        )?;
        SealedPart::of(record, slot)?.check_manifest(&path, &stored)?;
        Ok(stored)
    }

    /// The checksums of a slot's part log as the prefix has them, all of them known.
    pub(super) fn sums(&self, record: &DatasetRecord, slot: Slot) -> Result<Sums, PrefixError> {
        let path = self.paths.sums(record.key(), slot);
        let not_there = || PrefixError::NotThere {
            dataset: record.id,
            path: path.clone(),
        };
        let bytes = self.store.get(&path)?.ok_or_else(not_there)?;
        let part = PartId {
            dataset: record.id,
            slot,
        };
        let sums = decode_sums(part, Stream::Data, &path, &bytes)?;
        SealedPart::of(record, slot)?.check_sums(&path, &sums)?;
        if sums.is_complete() {
            Ok(sums)
        } else {
            Err(not_there())
        }
    }

    /// That a tree has everything of a dataset: names, kinds and sizes; no content is read.
    pub(super) fn check_tree(
        &self,
        record: &DatasetRecord,
        tree: &Arc<Tree>,
    ) -> Result<Checked, PrefixError> {
        let dataset = record.id;
        let seal = record
            .seal
            .as_ref()
            .ok_or(PrefixError::NotSealed { dataset })?;
        let mut checked = Checked {
            directories: BTreeMap::new(),
            root_mtime: (i64::MIN, 0),
        };
        let mut names: HashMap<RelPath, (Slot, Shared)> = HashMap::new();
        for slot in (0u32..).take(seal.parts.len()).map(Slot) {
            let manifest = Arc::new(self.manifest(record, slot)?.manifest);
            self.sums(record, slot)?;
            checked.root_mtime = checked.root_mtime.max(manifest.root_mtime);
            for entry in &manifest.entries {
                note(&mut names, &mut checked.directories, dataset, slot, entry)?;
            }
            check_entries(dataset, tree, &manifest)?;
        }
        Ok(checked)
    }
}

/// Enters a name; an error when another slot has it as something else.
fn note(
    names: &mut HashMap<RelPath, (Slot, Shared)>,
    directories: &mut BTreeMap<RelPath, Entry>,
    dataset: DatasetId,
    slot: Slot,
    entry: &Entry,
) -> Result<(), PrefixError> {
    let shared = match &entry.kind {
        EntryKind::Directory => Shared::Directory,
        EntryKind::Symlink { target } => Shared::Symlink(target.clone()),
        EntryKind::Node(node) => Shared::Node(*node),
        EntryKind::File { .. } | EntryKind::HardLink { .. } => Shared::Not(slot),
    };
    if shared == Shared::Directory {
        // Changed on all nodes alike; the one that was changed last knows best.
        let known = directories
            .entry(entry.path.clone())
            .or_insert_with(|| entry.clone());
        if known.mtime < entry.mtime {
            *known = entry.clone();
        }
    }
    match names.get(&entry.path) {
        Some((first, known)) if *known != shared => Err(PrefixError::Collision {
            dataset,
            path: entry.path.clone(),
            first: *first,
            second: slot,
        }),
        Some(_) => Ok(()),
        None => {
            names.insert(entry.path.clone(), (slot, shared));
            Ok(())
        }
    }
}

pub(super) fn check_entries(
    dataset: DatasetId,
    tree: &Arc<Tree>,
    manifest: &Arc<Manifest>,
) -> Result<(), PrefixError> {
    let never = AtomicBool::new(false);
    let total = manifest.entries.len() as u64;
    let job = Job {
        dataset,
        total,
        piece: ENTRIES,
        streams: STREAMS,
        pace: None,
        skip: None,
        files: Some(&|_, count| count),
        gentle: false,
        cancel: &never,
    };
    let (tree, manifest) = (Arc::clone(tree), Arc::clone(manifest));
    run(&job, &|_| {}, move |first, count| {
        let range = first as usize..(first + count) as usize;
        manifest.entries[range]
            .iter()
            .try_for_each(|entry| check_entry(&tree, dataset, entry))
    })
}

fn check_entry(tree: &Tree, dataset: DatasetId, entry: &Entry) -> Result<(), PrefixError> {
    let wanted = match &entry.kind {
        EntryKind::File { size, .. } => return check_size(tree, dataset, &entry.path, *size),
        EntryKind::Directory => Some(SFlag::S_IFDIR),
        EntryKind::Symlink { .. } => Some(SFlag::S_IFLNK),
        EntryKind::HardLink { .. } => None,
        // Where the prefix has none, the manifest remembers them.
        EntryKind::Node(_) => return Ok(()),
    };
    let found = there(tree.stat(&entry.path), tree, dataset, &entry.path)?;
    match wanted {
        Some(wanted) if wanted != file_type(&found) => Err(differs(
            tree,
            dataset,
            &entry.path,
            "type",
            wanted,
            file_type(&found),
        )),
        _ => Ok(()),
    }
}

/// That a path is a regular file of this size.
pub(super) fn check_size(
    tree: &Tree,
    dataset: DatasetId,
    path: &RelPath,
    size: u64,
) -> Result<(), PrefixError> {
    let found = there(tree.stat(path), tree, dataset, path)?;
    let kind = file_type(&found);
    let length = u64::try_from(found.st_size).unwrap_or(0);
    if kind != SFlag::S_IFREG {
        return Err(differs(tree, dataset, path, "type", SFlag::S_IFREG, kind));
    }
    if length != size {
        return Err(differs(tree, dataset, path, "size", size, length));
    }
    Ok(())
}

fn there<T>(
    found: Result<T, StoreError>,
    tree: &Tree,
    dataset: DatasetId,
    path: &RelPath,
) -> Result<T, PrefixError> {
    found.map_err(|error| match error.source.kind() {
        std::io::ErrorKind::NotFound => PrefixError::NotThere {
            dataset,
            path: tree.path_of(path),
        },
        _ => error.into(),
    })
}

fn differs(
    tree: &Tree,
    dataset: DatasetId,
    path: &RelPath,
    what: &'static str,
    expected: impl std::fmt::Debug,
    found: impl std::fmt::Debug,
) -> PrefixError {
    let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
    PrefixError::Incomplete {
        dataset,
        path: tree.path_of(path),
        what,
        expected,
        found,
    }
}

/// Gives directories their attributes and makes them durable, deepest first. The top one stays
/// writable to its owner until it has its name: a directory that is not cannot be moved.
fn finish_directories(
    tree: &Tree,
    record: &DatasetRecord,
    checked: &Checked,
) -> Result<(), PrefixError> {
    for (path, entry) in checked.directories.iter().rev() {
        let directory = tree.open_directory(Some(path))?;
        let whole = tree.path_of(path);
        attributes::apply(&directory, entry, &whole)?;
        directory
            .sync_all()
            .map_err(PrefixError::io_at("sync", &whole))?;
    }
    let root = tree.open_directory(None)?;
    let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
    attributes::apply_owner(&root, uid, gid, tree.path())?;
    attributes::apply_mode_and_time(&root, record.mode | 0o700, checked.root_mtime, tree.path())?;
    root.sync_all()
        .map_err(PrefixError::io_at("sync", tree.path()))
}
