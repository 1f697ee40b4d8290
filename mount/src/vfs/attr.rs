//! Attributes: what `stat` shows, and what `chmod`, `utimes`, `truncate` and xattrs change.
//!
//! Changes are made by the daemon's own, often privileged, identity: the kernel has checked the
//! caller's permission before (`default_permissions`). What an unprivileged write or truncate
//! would clear (set-user-id bits) is cleared by doing it without `CAP_FSETID`.

use super::inode::Inode;
use super::{FsError, FsResult};
use crate::sys::{self, SetTime};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// What the kernel is told of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Length.
    pub size: u64,
    /// Space used, in 512 bytes.
    pub blocks: u64,
    /// Seconds and nanoseconds of last access.
    pub atime: (i64, u32),
    /// Of the last modification.
    pub mtime: (i64, u32),
    /// Of the last change of the inode.
    pub ctime: (i64, u32),
    /// Type and permission bits.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of a device.
    pub rdev: u32,
    /// Best size of a read.
    pub blksize: u32,
}

fn nanos(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

impl Attr {
    /// Of what only its name is known of.
    pub const NOTHING: Self = Self {
        rdev: 0,
        ino: 0,
        size: 0,
        blocks: 0,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
        mode: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        blksize: 4096,
    };

    /// From what the store says; the number is the store's own.
    fn of(stat: &libc::stat) -> Self {
        Self {
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            atime: (stat.st_atime, nanos(stat.st_atime_nsec)),
            mtime: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            ctime: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            // The kernel's numbers have 32 bits, which lie in the lower half here.
            rdev: stat.st_rdev as u32,
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        }
    }
}

/// What a program wants changed; `None` leaves it.
#[derive(Clone, Copy, Default, Debug)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// Attributes of an inode as they are now.
pub fn get(inode: &Inode) -> FsResult<Attr> {
    let found = Attr::of(&sys::stat(inode.fd()?.as_fd())?);
    let ino = inode.ino;
    Ok(Attr { ino, ..found })
}

/// Changes them. `open` is a descriptor open for writing, when the program has one; `privileged`
/// says that the caller is root.
pub fn set(
    inode: &Inode,
    wanted: &SetAttr,
    open: Option<BorrowedFd<'_>>,
    privileged: bool,
) -> FsResult<Attr> {
    if let Some(size) = wanted.size {
        let resize = || match open {
            Some(fd) => sys::truncate(fd, size),
            None => inode
                .fd()
                .and_then(|fd| sys::reopen(fd.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK))
                .and_then(|fd| sys::truncate(fd.as_fd(), size)),
        };
        if privileged {
            resize()
        } else {
            sys::without_fsetid(resize)
        }?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        sys::chown(inode.fd()?.as_fd(), wanted.uid, wanted.gid)?;
    }
    if let Some(mode) = wanted.mode {
        sys::chmod(inode.fd()?.as_fd(), mode)?;
    }
    if wanted.atime.is_some() || wanted.mtime.is_some() {
        let atime = wanted.atime.unwrap_or(SetTime::Leave);
        sys::set_times(
            inode.fd()?.as_fd(),
            atime,
            wanted.mtime.unwrap_or(SetTime::Leave),
        )?;
    }
    get(inode)
}

/// Gives a new inode to its maker: owner, group of a set-group-id parent, and the permission bits
/// that changing the owner may have cleared.
pub fn give(
    inode: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    uid: u32,
    gid: u32,
    mode: Option<u32>,
) -> FsResult<()> {
    let parent = sys::stat(parent)?;
    let inherits = parent.st_mode & libc::S_ISGID != 0;
    let gid = if inherits { parent.st_gid } else { gid };
    let made = sys::stat(inode)?;
    if made.st_uid != uid || made.st_gid != gid {
        sys::chown(inode, Some(uid), Some(gid))?;
    }
    if let Some(mode) = mode {
        let directory = made.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let inherited = if inherits && directory {
            libc::S_ISGID
        } else {
            0
        };
        sys::chmod(inode, mode | inherited)?;
    }
    Ok(())
}

/// Only names a program may use: others need privileges on the cache that it has not.
fn check_xattr(inode: &Inode, name: &OsStr) -> FsResult<()> {
    if !name.as_bytes().starts_with(b"user.") {
        return Err(FsError::NotSupported);
    }
    if inode.is_directory() || inode.kind == libc::S_IFREG {
        return Ok(());
    }
    Err(FsError::NotPermitted)
}

/// Value of an extended attribute. `security.capability` is asked for at every first write: no
/// dataset has any, so the cache is not troubled with it.
pub fn get_xattr(inode: &Inode, name: &OsStr) -> FsResult<Vec<u8>> {
    if check_xattr(inode, name).is_err() {
        return Err(FsError::NoAttribute);
    }
    Ok(sys::get_xattr(inode.fd()?.as_fd(), name)?)
}

/// Names of the extended attributes that programs may use, each ended by a NUL.
pub fn list_xattrs(inode: &Inode) -> FsResult<Vec<u8>> {
    if inode.kind == libc::S_IFLNK {
        return Ok(Vec::new());
    }
    let all = sys::list_xattrs(inode.fd()?.as_fd())?;
    Ok(all
        .split_inclusive(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .flatten()
        .copied()
        .collect())
}

/// Sets an extended attribute.
pub fn set_xattr(inode: &Inode, name: &OsStr, value: &[u8], flags: i32) -> FsResult<()> {
    check_xattr(inode, name)?;
    Ok(sys::set_xattr(inode.fd()?.as_fd(), name, value, flags)?)
}

/// Removes an extended attribute.
pub fn remove_xattr(inode: &Inode, name: &OsStr) -> FsResult<()> {
    check_xattr(inode, name)?;
    Ok(sys::remove_xattr(inode.fd()?.as_fd(), name)?)
}
