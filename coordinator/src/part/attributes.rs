//! Owner, mode, extended attributes and time of what is brought to a place.
//!
//! The order matters: changing the owner clears set-user-id bits, extended attributes need write
//! permission, and everything but the access time moves the modification time. So: owner,
//! attributes, mode, time.

use super::tree::{Tree, fail};
use super::xattr;
use nix::sys::stat::{Mode, SFlag};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};
use scrfs::layout::manifest::{Entry, Node};
use scrfs::store::StoreError;
use std::fs::File;
use std::io;
use std::path::Path;

/// Somebody who is not root can give files to nobody else. They keep what is theirs, as with `cp`.
fn unless_not_permitted(result: nix::Result<()>, path: &Path) -> nix::Result<()> {
    match result {
        Err(nix::Error::EPERM) if !Uid::effective().is_root() => {
            tracing::debug!(?path, "the owner cannot be kept by this user");
            Ok(())
        }
        other => other,
    }
}

/// Applies the owner, attributes, mode and time of `entry` to an open file or directory.
pub(crate) fn apply(file: &File, entry: &Entry, path: &Path) -> Result<(), StoreError> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    apply_owner(file, uid, gid, path)?;
    for (name, value) in &entry.xattrs {
        match xattr::write(file, name, value) {
            // The manifest has it for the next place. Without it a restart is possible, without
            // the file it is not.
            Err(error) if is_refused(&error) => {
                tracing::warn!(?path, %error, "an extended attribute cannot be kept here");
            }
            other => other.map_err(StoreError::of("set an extended attribute of", path))?,
        }
    }
    apply_mode_and_time(file, entry.mode, entry.mtime, path)
}

/// A filesystem may have none, few, or only short ones.
fn is_refused(error: &io::Error) -> bool {
    xattr::is_unsupported(error)
        || matches!(
            error.raw_os_error(),
            Some(libc::E2BIG | libc::ERANGE | libc::EPERM | libc::EINVAL)
        )
}

/// Gives an open file or directory its owner.
pub(crate) fn apply_owner(file: &File, uid: Uid, gid: Gid, path: &Path) -> Result<(), StoreError> {
    let found = nix::sys::stat::fstat(file).map_err(fail("stat", path))?;
    if (found.st_uid, found.st_gid) == (uid.as_raw(), gid.as_raw()) {
        return Ok(());
    }
    unless_not_permitted(nix::unistd::fchown(file, Some(uid), Some(gid)), path)
        .map_err(fail("set the owner of", path))
}

/// Gives an open file or directory its mode and time.
pub(crate) fn apply_mode_and_time(
    file: &File,
    mode: u32,
    mtime: (i64, u32),
    path: &Path,
) -> Result<(), StoreError> {
    nix::sys::stat::fchmod(file, Mode::from_bits_truncate(mode))
        .map_err(fail("set the mode of", path))?;
    let mtime = TimeSpec::new(mtime.0, mtime.1.into());
    nix::sys::stat::futimens(file, &TimeSpec::UTIME_OMIT, &mtime)
        .map_err(fail("set the time of", path))
}

/// The type and device number of a node.
pub(crate) fn node_type(node: Node) -> (SFlag, u64) {
    match node {
        Node::Fifo => (SFlag::S_IFIFO, 0),
        Node::Socket => (SFlag::S_IFSOCK, 0),
        Node::CharDevice(number) => (SFlag::S_IFCHR, number),
        Node::BlockDevice(number) => (SFlag::S_IFBLK, number),
    }
}

/// Applies owner and time of `entry` to what is not opened: a link, pipe, socket or device, whose mode was
/// given when it was made (links have none).
pub(crate) fn apply_unopened(tree: &Tree, entry: &Entry) -> Result<(), StoreError> {
    let found = tree.stat(&entry.path)?;
    if (found.st_uid, found.st_gid) != (entry.uid, entry.gid) {
        match tree.set_owner(&entry.path, entry.uid, entry.gid) {
            Err(error)
                if error.source.raw_os_error() == Some(libc::EPERM)
                    && !Uid::effective().is_root() => {}
            other => other?,
        }
    }
    tree.set_mtime(&entry.path, entry.mtime)
}
