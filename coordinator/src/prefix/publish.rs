//! Giving a checked dataset its name.
//!
//! Everything here is decided by what is found, so that it can be begun again after a crash at any
//! point, by the same epoch or a later one:
//!
//! ```text
//! entry      at <name>            at inflight/<id>/<epoch>   next
//! Flushing   nothing              the new one                rename
//! Flushing   the one it replaces  the new one                exchange (or: old to trash, rename)
//! Flushing   the new one          the old one, or nothing    mode and time, entry Complete
//! Complete   the new one          the old one, or nothing    remove the old one and its entry
//! Flushing   something else       the new one                error: not ours
//! ```
//!
//! "The new one" and "the one it replaces" are told by the inode numbers in the entry. Between "old to
//! trash" and "rename" there is no dataset of the name for a moment: only where the filesystem cannot
//! exchange, and the crash that falls into it is finished by `reconcile`.

use super::error::PrefixError;
use super::{Prefix, inode};
use crate::part::{Tree, attributes, remove_tree, report};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use scrfs::layout::index::{EntryState, IndexEntry, Replaced};
use scrfs::store::Store;
use scrfs::store::posix::sync_directory;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// [`super::StepHook`], with the path in its error.
pub(super) type Step<'a> = &'a dyn Fn(&'static str) -> Result<(), PrefixError>;

impl Prefix {
    /// Carries an entry from wherever it is to `Complete`, and tidies up behind it.
    pub(super) fn publish(
        &self,
        mut entry: IndexEntry,
        root_mtime: (i64, u32),
        step: Step<'_>,
    ) -> Result<(), PrefixError> {
        let name = self.paths.dataset(&entry.record.name);
        // Whoever made these may not have made their names durable. Should the power go, a dataset that has
        // its name and no entry would be nobody's, and in the way.
        sync_directory(&self.paths.control())?;
        sync_if_there(&self.paths.all_manifests())?;
        sync_directory(self.paths.root())?;
        if inode(&name) != Some(entry.inode) {
            self.take_name(&entry, &name, step)?;
        }
        step("sync the name")?;
        sync_directory(self.paths.root())?;
        sync_if_there(&self.paths.inflight(entry.key()))?;
        step("finish the top directory")?;
        let tree = Tree::open(&name)?;
        let root = tree.open_directory(None)?;
        attributes::apply_mode_and_time(&root, entry.record.mode, root_mtime, &name)?;
        root.sync_all().map_err(PrefixError::io_at("sync", &name))?;
        step("write the complete entry")?;
        entry.state = EntryState::Complete;
        self.store
            .put(&self.paths.entry(entry.key()), &entry.encode())?;
        if let Some(replaced) = entry.replaces {
            step("remove the replaced entry")?;
            self.remove_replaced(&entry, replaced);
        }
        step("remove what is left")?;
        self.tidy(&self.paths.inflight(entry.key()));
        Ok(())
    }

    fn take_name(
        &self,
        entry: &IndexEntry,
        name: &Path,
        step: Step<'_>,
    ) -> Result<(), PrefixError> {
        let attempt = self.paths.attempt(entry.key(), entry.attempt);
        if inode(&attempt) != Some(entry.inode) {
            return Err(PrefixError::NotThere {
                dataset: entry.record.id,
                path: attempt,
            });
        }
        let not_ours = || PrefixError::NotOurs {
            path: name.to_owned(),
            name: entry.record.name.clone(),
        };
        step("take the name")?;
        match (fs::symlink_metadata(name), entry.replaces) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
                match rename(&attempt, name, RenameFlags::RENAME_NOREPLACE) {
                    // Cannot promise it: what is checked just before is the best there is.
                    Err(error) if is_unknown(&error) => fs::rename(&attempt, name),
                    other => other,
                }
                .map_err(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => not_ours(),
                    _ => PrefixError::io_at("give its name to", &attempt)(error),
                })
            }
            (Ok(_), Some(old)) if inode(name) == Some(old.inode) => {
                self.exchange(&attempt, name, old, step)
            }
            (Ok(_), _) => Err(not_ours()),
            (Err(error), _) => Err(PrefixError::io_at("stat", name)(error)),
        }
    }

    fn exchange(
        &self,
        attempt: &Path,
        name: &Path,
        old: Replaced,
        step: Step<'_>,
    ) -> Result<(), PrefixError> {
        make_movable(name)?;
        match rename(attempt, name, RenameFlags::RENAME_EXCHANGE) {
            Err(error) if is_unknown(&error) => {}
            other => return other.map_err(PrefixError::io_at("exchange", name)),
        }
        self.exchange_in_two_steps(attempt, name, old, step)
    }

    /// For filesystems that cannot exchange.
    pub(super) fn exchange_in_two_steps(
        &self,
        attempt: &Path,
        name: &Path,
        old: Replaced,
        step: Step<'_>,
    ) -> Result<(), PrefixError> {
        let aside = self.aside(old);
        let trash = self.paths.trash();
        self.store.make_directories(&trash)?;
        fs::rename(name, &aside).map_err(PrefixError::io_at("set aside", name))?;
        // Its name may be gone for good from here on, so it must be there.
        sync_directory(&trash)?;
        step("rename after setting aside")?;
        fs::rename(attempt, name).map_err(PrefixError::io_at("give its name to", attempt))
    }

    /// Where a replaced dataset waits to be removed, when it could not be exchanged.
    pub(super) fn aside(&self, old: Replaced) -> PathBuf {
        self.paths
            .trash()
            .join(format!("{}.{}", old.key, old.inode))
    }

    /// Removes the entry, manifests and directory of what `entry` has replaced. What cannot be
    /// removed is reported, and tried again by `reconcile`.
    pub(super) fn remove_replaced(&self, entry: &IndexEntry, replaced: Replaced) {
        self.tidy(&self.aside(replaced));
        if replaced.key == entry.key() {
            return;
        }
        // Its number may have been flushed anew since, under another name.
        let is_older =
            |old: &IndexEntry| old.record.name == entry.record.name && old.flushed <= entry.flushed;
        if self
            .entry(replaced.key)
            .is_ok_and(|old| old.as_ref().is_some_and(is_older))
        {
            self.tidy(&self.paths.entry(replaced.key));
            self.tidy(&self.paths.manifests(replaced.key));
        }
    }

    pub(super) fn tidy(&self, path: &Path) {
        let parent = path.parent().unwrap_or(Path::new("."));
        if fs::symlink_metadata(path).is_err() {
            return;
        }
        if let Err(error) = remove_tree(path).and_then(|()| sync_directory(parent)) {
            report(
                "something that is no longer needed cannot be removed",
                &error,
            );
        }
    }
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

/// Whether the filesystem or kernel does not know how.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP)
    )
}

/// A directory that its owner may not write to cannot be moved. It is about to go.
pub(super) fn make_movable(path: &Path) -> Result<(), PrefixError> {
    let found = fs::symlink_metadata(path).map_err(PrefixError::io_at("stat", path))?;
    let mode = found.permissions().mode();
    if mode & 0o200 != 0 || nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700))
        .map_err(PrefixError::io_at("open up", path))
}

fn sync_if_there(path: &Path) -> Result<(), PrefixError> {
    match sync_directory(path) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}
