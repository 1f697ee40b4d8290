//! Whether a tree still is what its manifest says, as far as a stat of each entry tells.
//!
//! Content is not read: a flipped bit is found by its checksum, when the unit is read.

use super::error::PartError;
use super::log::Log;
use super::tree::{file_type, mtime};
use nix::sys::stat::SFlag;
use scrfs::layout::manifest::EntryKind;

impl Log {
    /// Every entry is there with its kind; files with their size and time, hard links with the inode
    /// of their first name.
    pub(super) fn verify_against_tree(&self) -> Result<(), PartError> {
        let manifest = self.manifest();
        for entry in &manifest.entries {
            let failed = |error| self.part().store(error);
            let found = self.tree().stat(&entry.path).map_err(failed)?;
            let differs = |what, expected: String, found: String| PartError::Differs {
                part: self.part(),
                path: self.tree().path_of(&entry.path),
                what,
                expected,
                found,
            };
            let kind = file_type(&found);
            let wanted = match &entry.kind {
                EntryKind::HardLink { to } => {
                    let first = self.tree().stat(to).map_err(failed)?;
                    if (first.st_dev, first.st_ino) != (found.st_dev, found.st_ino) {
                        let (first, found) = (first.st_ino.to_string(), found.st_ino.to_string());
                        return Err(differs("inode", first, found));
                    }
                    continue;
                }
                EntryKind::File { size, .. } => {
                    let length = u64::try_from(found.st_size).unwrap_or(0);
                    if kind == SFlag::S_IFREG && length != *size {
                        return Err(differs("size", size.to_string(), length.to_string()));
                    }
                    if kind == SFlag::S_IFREG && mtime(&found) != entry.mtime {
                        let (wanted, found) = (entry.mtime, mtime(&found));
                        let text = |(seconds, nanos): (i64, u32)| format!("{seconds}.{nanos:09}");
                        return Err(differs("modification time", text(wanted), text(found)));
                    }
                    SFlag::S_IFREG
                }
                EntryKind::Directory => SFlag::S_IFDIR,
                EntryKind::Symlink { .. } => SFlag::S_IFLNK,
                EntryKind::Node(node) => {
                    let (wanted, number) = super::attributes::node_type(*node);
                    if found.st_rdev != number {
                        let (wanted, found) = (number.to_string(), found.st_rdev.to_string());
                        return Err(differs("device number", wanted, found));
                    }
                    wanted
                }
            };
            if kind != wanted {
                return Err(differs("type", format!("{wanted:?}"), format!("{kind:?}")));
            }
        }
        Ok(())
    }
}
