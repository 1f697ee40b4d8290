//! Bringing back a part: a skeleton from the manifest, then its bytes, then its name.
//!
//! [`Part::begin_restore`] makes `tree.new` with every name and size and no data;
//! [`Part::write_data`] fills it, in any order; [`Part::finish_restore`] gives everything its owner,
//! mode, attributes and time, makes it durable and renames it to `tree`. Invariants:
//!
//! - `tree` is the old one or the whole new one, and its manifest is there before it.
//! - A `tree.new` that a crash left behind is removed by the next attempt, never continued.
//! - Directories get mode and time last, deepest first: a directory without write permission could
//!   not be filled, and filling one moves its time.
//!
//! Whether the bytes are right is not known here: who writes them checks them.

use super::attributes;
use super::error::{PartError, PartId};
use super::files::{Part, own_sums, parent, remove_if_there};
use super::log::Log;
use super::records::{SealedPart, StoredManifest};
use super::tree::{Tree, fail, remove_tree};
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::sys::time::TimeSpec;
use scrfs::layout::manifest::{Entry, EntryKind, Manifest, Sums};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::Stream;
use scrfs::store::posix::sync_directory;
use scrfs::store::{Store, StoreError};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Part {
    /// Begins to bring back the part that `stored` describes, which must be the one that was sealed.
    /// `data_sums` are those of another member of the set, or of the prefix, when the slot has none
    /// of its own; with neither they are unknown.
    pub fn begin_restore(
        store: &dyn Store,
        cache: &CachePaths,
        record: &DatasetRecord,
        stored: StoredManifest,
        data_sums: Option<Sums>,
        parity_sums: Option<Sums>,
    ) -> Result<Self, PartError> {
        let slot = stored.manifest.slot;
        let sealed = SealedPart::of(record, slot)?;
        let part = sealed.part;
        sealed.check_manifest(&cache.manifest(record.id, slot, Keep::Own), &stored)?;
        for sums in [&data_sums, &parity_sums].into_iter().flatten() {
            sealed.check_sums(&cache.sums(record.id, slot, sums.stream, Keep::Own), sums)?;
        }
        let data = data_sums.or_else(|| own_sums(store, cache, &sealed, Stream::Data));
        let parity = parity_sums.or_else(|| own_sums(store, cache, &sealed, Stream::Parity));
        let path = cache.tree_new(record.id, slot);
        let tree = skeleton(&path, &stored.manifest).map_err(|error| part.store(error))?;
        let log = Log::new(Arc::new(stored.manifest), tree, true);
        Ok(Self::assemble(log, cache, sealed, true, data, parity))
    }

    /// Ends it: the part is complete and under its name, durably. Stores the manifest, and the data
    /// checksums as far as they are known, before. Doing it twice is doing it once.
    pub fn finish_restore(&self, store: &dyn Store) -> Result<(), PartError> {
        if !self.is_restoring() {
            return Ok(());
        }
        let part = self.id();
        self.log.end_writing();
        finish(self.log.tree(), self.manifest()).map_err(|error| part.store(error))?;
        self.store_manifest(store)?;
        self.store_sums(store, Stream::Data)?;
        let PartId { dataset, slot } = part;
        put_in_place(
            &self.cache.tree_new(dataset, slot),
            &self.cache.tree(dataset, slot),
            &self.cache.tree_old(dataset, slot),
        )
        .map_err(|error| part.store(error))?;
        remove_if_there(&self.cache.damage(dataset, slot, Stream::Data))
            .map_err(part.io("remove", &self.cache.damage(dataset, slot, Stream::Data)))?;
        self.restoring.store(false, Ordering::Release);
        Ok(())
    }
}

/// Makes every name and size of a manifest below `path`, which is emptied first.
fn skeleton(path: &Path, manifest: &Manifest) -> Result<Tree, StoreError> {
    remove_tree(path)?;
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::of("make the directory", path))?;
    let tree = Tree::open(path)?;
    for entry in &manifest.entries {
        make(&tree, entry)?;
    }
    Ok(tree)
}

fn make(tree: &Tree, entry: &Entry) -> Result<(), StoreError> {
    match &entry.kind {
        EntryKind::Directory => tree.make_directory(&entry.path, 0o700),
        EntryKind::File { size, .. } => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let file = tree.open_file(&entry.path, flags, 0o600)?;
            file.set_len(*size).map_err(StoreError::of(
                "set the length of",
                &tree.path_of(&entry.path),
            ))
        }
        EntryKind::HardLink { to } => tree.make_hard_link(&entry.path, to),
        EntryKind::Symlink { target } => tree.make_link(&entry.path, target),
        EntryKind::Node(node) => tree.make_node(&entry.path, attributes::node_type(*node), 0o600),
    }
}

/// Gives everything its attributes and makes it durable.
fn finish(tree: &Tree, manifest: &Manifest) -> Result<(), StoreError> {
    let is_directory = |entry: &&Entry| matches!(entry.kind, EntryKind::Directory);
    for entry in manifest.entries.iter().filter(|entry| !is_directory(entry)) {
        let path = tree.path_of(&entry.path);
        match &entry.kind {
            EntryKind::File { .. } => {
                let file = tree.open_file(&entry.path, OFlag::O_RDWR, 0)?;
                attributes::apply(&file, entry, &path)?;
                file.sync_all().map_err(StoreError::of("sync", &path))?;
            }
            // Its first name has them.
            EntryKind::HardLink { .. } | EntryKind::Directory => {}
            EntryKind::Symlink { .. } => attributes::apply_unopened(tree, entry)?,
            EntryKind::Node(_) => {
                tree.set_mode(&entry.path, entry.mode)?;
                attributes::apply_unopened(tree, entry)?;
            }
        }
    }
    // Parents precede their entries, so that backwards is deepest first.
    for entry in manifest.entries.iter().filter(is_directory).rev() {
        let directory = tree.open_directory(Some(&entry.path))?;
        let path = tree.path_of(&entry.path);
        attributes::apply(&directory, entry, &path)?;
        directory
            .sync_all()
            .map_err(StoreError::of("sync", &path))?;
    }
    let root = tree.open_directory(None)?;
    let mtime = TimeSpec::new(manifest.root_mtime.0, manifest.root_mtime.1.into());
    nix::sys::stat::futimens(&root, &TimeSpec::UTIME_OMIT, &mtime)
        .map_err(fail("set the time of", tree.path()))?;
    root.sync_all().map_err(StoreError::of("sync", tree.path()))
}

/// Renames `new` to `name`, durably. What has the name goes by way of `old`.
fn put_in_place(new: &Path, name: &Path, old: &Path) -> Result<(), StoreError> {
    let rename = |from: &Path, to: &Path, flags| {
        renameat2(AT_FDCWD, from, AT_FDCWD, to, flags).map_err(fail("rename", from))
    };
    let exists = fs::symlink_metadata(name).is_ok();
    if !exists {
        fs::rename(new, name).map_err(StoreError::of("rename", new))?;
    } else {
        remove_tree(old)?;
        match rename(new, name, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => fs::rename(new, old).map_err(StoreError::of("rename", new))?,
            // A filesystem that cannot exchange: for a moment there is none, which is no worse
            // than the damaged one that was there.
            Err(error) if is_invalid(&error.source) => {
                fs::rename(name, old).map_err(StoreError::of("rename", name))?;
                fs::rename(new, name).map_err(StoreError::of("rename", new))?;
            }
            Err(error) => return Err(error),
        }
    }
    sync_directory(parent(name))?;
    remove_tree(old)
}

fn is_invalid(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP)
    )
}
