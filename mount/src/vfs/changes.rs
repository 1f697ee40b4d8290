//! Changes of directories in open datasets, as the coordinators want them on every node: carried out here, and
//! recognised when they were.
//!
//! A change may be asked for again, of the next coordinator, after some nodes have done it. Making and removing
//! do no harm twice. A rename could move what came after it, and an exchange undo itself: the
//! directory that moves is marked before it does.
//!
//! No symbolic link is ever followed.

use super::dir::open_path;
use super::inode::Inode;
use super::{FsError, FsResult, attr};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::{DirectoryChange, Refusal};
use scrfs::name::RelPath;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Opens the directory that holds `path`, one component at a time, following no link; returns it with
/// the last component.
pub(super) fn walk(tree: &Inode, path: &RelPath) -> FsResult<(OwnedFd, OsString)> {
    let mut parts: Vec<&[u8]> = path.as_bytes().split(|&byte| byte == b'/').collect();
    let last = parts.pop().unwrap_or_default();
    let mut fd = sys::duplicate(&tree.fd()?.as_fd()).map_err(|_| FsError::Broken)?;
    for part in parts {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        fd = sys::open_at(fd.as_fd(), OsStr::from_bytes(part), flags, 0)?;
    }
    Ok((fd, OsString::from_vec(last.to_vec())))
}

pub(super) fn exists(tree: &Inode, path: &RelPath) -> bool {
    walk(tree, path)
        .and_then(|(dir, name)| open_path(dir.as_fd(), &name))
        .is_ok()
}

/// Carries out a change of directories below `tree`.
pub fn carry_out(tree: &Inode, change: &DirectoryChange) -> FsResult<()> {
    match change {
        DirectoryChange::Make {
            path,
            mode,
            uid,
            gid,
        } => {
            let (dir, name) = walk(tree, path)?;
            sys::mkdir_at(dir.as_fd(), &name, 0o700)?;
            let made = open_path(dir.as_fd(), &name)?;
            attr::give(made.as_fd(), dir.as_fd(), *uid, *gid, Some(*mode))
        }
        DirectoryChange::Remove { path } => {
            let (dir, name) = walk(tree, path)?;
            Ok(sys::unlink_at(dir.as_fd(), &name, true)?)
        }
        DirectoryChange::Rename { from, to, token } => rename(tree, from, to, *token),
        DirectoryChange::Exchange { one, other, token } => exchange(tree, one, other, *token),
        // Nothing of it is in the tree.
        DirectoryChange::TellHidden | DirectoryChange::Hide { .. } => Err(FsError::Invalid),
    }
}

/// Which rename or exchange moved this directory last. Not among the attributes that programs see or that
/// are kept with a dataset. It goes along with the directory in one step: so it tells, whatever happened in
/// between, whether that change was done.
const MOVED_XATTR: &str = "trusted.scrfs.moved";

/// Whether a change has moved this directory, and none after it.
fn is_moved_by(directory: BorrowedFd<'_>, token: u64) -> bool {
    let found = sys::get_xattr(directory, OsStr::new(MOVED_XATTR));
    found.is_ok_and(|found| found == token.to_le_bytes())
}

fn mark_moved(directory: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
    sys::set_xattr(directory, OsStr::new(MOVED_XATTR), &token.to_le_bytes(), 0)
}

fn is_directory(fd: BorrowedFd<'_>) -> FsResult<bool> {
    Ok(sys::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn rename(tree: &Inode, from: &RelPath, to: &RelPath, token: u64) -> FsResult<()> {
    let (to_dir, to_name) = walk(tree, to)?;
    let there = open_path(to_dir.as_fd(), &to_name);
    if there.is_ok_and(|there| is_moved_by(there.as_fd(), token)) {
        return Ok(());
    }
    let (dir, name) = walk(tree, from)?;
    let moved = open_path(dir.as_fd(), &name)?;
    if is_directory(moved.as_fd())? {
        // Without the privilege to mark it, what it looks like must tell (`done_here`).
        let _ = mark_moved(moved.as_fd(), token);
    }
    Ok(sys::rename_at(
        dir.as_fd(),
        &name,
        to_dir.as_fd(),
        &to_name,
        0,
    )?)
}

fn exchange(tree: &Inode, one: &RelPath, other: &RelPath, token: u64) -> FsResult<()> {
    let ((dir, name), (other_dir, other_name)) = (walk(tree, one)?, walk(tree, other)?);
    let other_is = open_path(other_dir.as_fd(), &other_name)?;
    if is_moved_by(other_is.as_fd(), token) {
        return Ok(());
    }
    let one_is = open_path(dir.as_fd(), &name)?;
    if !is_directory(one_is.as_fd())? || !is_directory(other_is.as_fd())? {
        return Err(FsError::NotDirectory);
    }
    // Without the privilege to mark it, it could not be known whether it was done.
    mark_moved(one_is.as_fd(), token).map_err(|_| FsError::Invalid)?;
    Ok(sys::rename_at(
        dir.as_fd(),
        &name,
        other_dir.as_fd(),
        &other_name,
        libc::RENAME_EXCHANGE,
    )?)
}

/// What this node says to a change that it has carried out already, as far as the tree looks like it; `None`
/// when it has not, or would say nothing.
pub fn done_here(tree: &Inode, change: &DirectoryChange) -> Option<Refusal> {
    match change {
        DirectoryChange::Make { path, .. } => exists(tree, path).then_some(Refusal::Exists),
        DirectoryChange::Remove { path } => (!exists(tree, path)).then_some(Refusal::Missing),
        DirectoryChange::Rename { from, to, .. } => {
            (!exists(tree, from) && exists(tree, to)).then_some(Refusal::Missing)
        }
        DirectoryChange::Exchange { .. }
        | DirectoryChange::TellHidden
        | DirectoryChange::Hide { .. } => None,
    }
}
