//! A directory tree that nothing leads out of.
//!
//! Invariant: every path is resolved below the directory that was opened, and no component of it,
//! the last one included, is followed when it is a symbolic link: a file may be swapped for one at
//! any moment. Where the kernel has `openat2` (5.6) it does this in one call; elsewhere the path is
//! walked component by component. Paths in errors are whole, for people; they are not used for
//! opening. Nothing here knows of manifests.

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use scrfs::name::RelPath;
use scrfs::store::StoreError;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An open directory, and what lies below it.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// The directory a path's last component lies in.
enum Parent<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => fd.as_fd(),
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

/// Turns an errno into an error that names the path.
pub(crate) fn fail(
    verb: &'static str,
    path: &Path,
) -> impl FnOnce(nix::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |errno| StoreError {
        verb,
        path,
        source: io::Error::from(errno),
    }
}

fn walk(root: BorrowedFd<'_>, path: &[u8], flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let mut components = path.split(|&byte| byte == b'/').peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(component) = components.next() {
        let last = components.peek().is_none();
        let (flags, mode) = if last {
            (flags, mode)
        } else {
            (
                OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
        };
        let from = at.as_ref().map_or(root, |fd| fd.as_fd());
        let name = OsStr::from_bytes(component);
        at = Some(nix::fcntl::openat(
            from,
            name,
            flags | OFlag::O_NOFOLLOW,
            mode,
        )?);
    }
    at.ok_or(nix::Error::ENOENT)
}

fn open_beneath(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlag,
    mode: Mode,
) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW)
        .mode(mode)
        .resolve(resolve);
    match nix::fcntl::openat2(root, OsStr::from_bytes(path), how) {
        // An old kernel, a sandbox that does not know the call, a path too long for one call.
        Err(nix::Error::ENOSYS | nix::Error::EPERM | nix::Error::ENAMETOOLONG) => {
            walk(root, path, flags, mode)
        }
        other => other,
    }
}

/// The path of the directory an entry lies in, and its name there.
fn split(path: &RelPath) -> (&[u8], &OsStr) {
    let bytes = path.as_bytes();
    match bytes.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&bytes[..at], OsStr::from_bytes(&bytes[at + 1..])),
        None => (&[], OsStr::from_bytes(bytes)),
    }
}

impl Tree {
    /// The tree at `path`, whose own components are trusted up to the last.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(fail("open", path))?;
        Ok(Self {
            root,
            path: path.to_owned(),
        })
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole path of an entry, for people.
    pub(crate) fn path_of(&self, entry: &RelPath) -> PathBuf {
        self.path.join(entry.as_path())
    }

    fn at(&self, directory: Option<&RelPath>) -> PathBuf {
        directory.map_or_else(|| self.path.clone(), |entry| self.path_of(entry))
    }

    fn parent<'a, 'p>(&'a self, path: &'p RelPath) -> Result<(Parent<'a>, &'p OsStr), StoreError> {
        let (directory, name) = split(path);
        if directory.is_empty() {
            return Ok((Parent::Root(self.root.as_fd()), name));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let fd = open_beneath(self.root.as_fd(), directory, flags, Mode::empty())
            .map_err(fail("find", &self.path_of(path)))?;
        Ok((Parent::Below(fd), name))
    }

    /// Opens a file. The caller checks what it is.
    pub(crate) fn open_file(
        &self,
        path: &RelPath,
        flags: OFlag,
        mode: u32,
    ) -> Result<File, StoreError> {
        // A pipe that was put in a file's place must not make us wait for its other end.
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mode = Mode::from_bits_truncate(mode);
        open_beneath(self.root.as_fd(), path.as_bytes(), flags, mode)
            .map(File::from)
            .map_err(fail("open", &self.path_of(path)))
    }

    /// Opens a directory below the root, or the root itself.
    pub(crate) fn open_directory(&self, path: Option<&RelPath>) -> Result<File, StoreError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match path {
            Some(path) => open_beneath(self.root.as_fd(), path.as_bytes(), flags, Mode::empty()),
            None => nix::fcntl::openat(&self.root, ".", flags, Mode::empty()),
        }
        .map(File::from)
        .map_err(fail("open", &self.at(path)))
    }

    /// Names in an open directory, sorted.
    pub(crate) fn names(
        &self,
        directory: &File,
        path: Option<&RelPath>,
    ) -> Result<Vec<CString>, StoreError> {
        let failed = || fail("list", &self.at(path));
        let copy = directory
            .try_clone()
            .map_err(StoreError::of("list", &self.at(path)))?;
        let mut open = Dir::from_fd(copy.into()).map_err(failed())?;
        let mut names = Vec::new();
        for entry in open.iter() {
            let entry = entry.map_err(failed())?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What an entry is, not following it.
    pub(crate) fn stat(&self, path: &RelPath) -> Result<FileStat, StoreError> {
        let (parent, name) = self.parent(path)?;
        nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(fail("stat", &self.path_of(path)))
    }

    /// What the root is.
    pub(crate) fn stat_root(&self) -> Result<FileStat, StoreError> {
        nix::sys::stat::fstat(&self.root).map_err(fail("stat", &self.path))
    }

    /// What a symbolic link says.
    pub(crate) fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, StoreError> {
        let (parent, name) = self.parent(path)?;
        nix::fcntl::readlinkat(parent, name)
            .map(|target| target.as_bytes().to_vec())
            .map_err(fail("read the link", &self.path_of(path)))
    }

    /// Makes a directory; one that is there already is fine.
    pub(crate) fn make_directory(&self, path: &RelPath, mode: u32) -> Result<(), StoreError> {
        let (parent, name) = self.parent(path)?;
        match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(mode)) {
            Err(nix::Error::EEXIST) => {
                let found = nix::sys::stat::fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
                match found {
                    Ok(found) if file_type(&found) == SFlag::S_IFDIR => Ok(()),
                    Ok(_) => Err(nix::Error::ENOTDIR),
                    Err(errno) => Err(errno),
                }
            }
            other => other,
        }
        .map_err(fail("make the directory", &self.path_of(path)))
    }

    /// Makes a symbolic link.
    pub(crate) fn make_link(&self, path: &RelPath, target: &[u8]) -> Result<(), StoreError> {
        let (parent, name) = self.parent(path)?;
        nix::unistd::symlinkat(OsStr::from_bytes(target), parent, name)
            .map_err(fail("make the link", &self.path_of(path)))
    }

    /// Makes a named pipe, a socket's name, or the device of that number.
    pub(crate) fn make_node(
        &self,
        path: &RelPath,
        (kind, number): (SFlag, u64),
        mode: u32,
    ) -> Result<(), StoreError> {
        let (parent, name) = self.parent(path)?;
        nix::sys::stat::mknodat(parent, name, kind, Mode::from_bits_truncate(mode), number)
            .map_err(fail("make the node", &self.path_of(path)))
    }

    /// Gives what is at `to` another name.
    pub(crate) fn make_hard_link(&self, path: &RelPath, to: &RelPath) -> Result<(), StoreError> {
        self.link_from(self, to, path)
    }

    /// Gives what is at `from` in another tree a name in this one.
    pub(crate) fn link_from(
        &self,
        other: &Self,
        from: &RelPath,
        path: &RelPath,
    ) -> Result<(), StoreError> {
        let (new_parent, new_name) = self.parent(path)?;
        let (old_parent, old_name) = other.parent(from)?;
        nix::unistd::linkat(old_parent, old_name, new_parent, new_name, AtFlags::empty())
            .map_err(fail("make the hard link", &self.path_of(path)))
    }

    /// Takes a file out of another tree, under the same path.
    pub(crate) fn take_from(&self, other: &Self, path: &RelPath) -> Result<(), StoreError> {
        let (old_parent, name) = other.parent(path)?;
        let (new_parent, _) = self.parent(path)?;
        nix::fcntl::renameat(old_parent, name, new_parent, name)
            .map_err(fail("move here", &self.path_of(path)))
    }

    /// Removes a name that is not a directory's; nothing there is fine.
    pub(crate) fn unlink(&self, path: &RelPath) -> Result<(), StoreError> {
        let (parent, name) = self.parent(path)?;
        match nix::unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Err(nix::Error::ENOENT) => Ok(()),
            other => other,
        }
        .map_err(fail("remove", &self.path_of(path)))
    }

    /// Sets owner and group of what is not opened: links, pipes, sockets, devices.
    pub(crate) fn set_owner(&self, path: &RelPath, uid: u32, gid: u32) -> Result<(), StoreError> {
        let (parent, name) = self.parent(path)?;
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        nix::unistd::fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(fail("set the owner of", &self.path_of(path)))
    }

    /// Sets the mode of what is not opened: a pipe, socket or device.
    pub(crate) fn set_mode(&self, path: &RelPath, mode: u32) -> Result<(), StoreError> {
        let whole = self.path_of(path);
        let node = open_beneath(
            self.root.as_fd(),
            path.as_bytes(),
            OFlag::O_PATH,
            Mode::empty(),
        )
        .map_err(fail("open", &whole))?;
        set_mode_of_handle(&node, mode).map_err(StoreError::of("set the mode of", &whole))
    }

    /// Sets the modification time of what is not opened.
    pub(crate) fn set_mtime(&self, path: &RelPath, mtime: (i64, u32)) -> Result<(), StoreError> {
        let (parent, name) = self.parent(path)?;
        let mtime = TimeSpec::new(mtime.0, mtime.1.into());
        let how = UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(parent, name, &TimeSpec::UTIME_OMIT, &mtime, how)
            .map_err(fail("set the time of", &self.path_of(path)))
    }
}

/// The type bits of what was found.
pub(crate) fn file_type(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

/// The modification time of what was found, in seconds and nanoseconds.
pub(crate) fn mtime(found: &FileStat) -> (i64, u32) {
    (
        found.st_mtime,
        u32::try_from(found.st_mtime_nsec).unwrap_or(0),
    )
}

/// An `O_PATH` descriptor takes no fchmod; its name in /proc leads to what was opened, whatever has
/// its name by now. Not for links: they have no mode, and this one would be followed.
fn set_mode_of_handle(handle: &OwnedFd, mode: u32) -> io::Result<()> {
    let found = nix::sys::stat::fstat(handle)?;
    if file_type(&found) == SFlag::S_IFLNK {
        return Err(nix::Error::ELOOP.into());
    }
    let through = format!("/proc/self/fd/{}", handle.as_raw_fd());
    std::fs::set_permissions(through, std::fs::Permissions::from_mode(mode))
}

/// Removes a whole tree, also one with directories that its owner may not write to. Nothing there
/// is fine. The result is not durable until the parent is synced.
pub(crate) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            std::fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        other => other,
    }
    .or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
    .map_err(StoreError::of("remove", path))
}

/// Lets the owner write to every directory at and below `path`.
fn open_up(path: &Path) -> Result<(), StoreError> {
    let mut todo = vec![path.to_owned()];
    while let Some(directory) = todo.pop() {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = nix::fcntl::open(&directory, flags, Mode::empty());
        let Ok(opened) = opened else { continue };
        set_mode_of_handle(&opened, 0o700).map_err(StoreError::of("open up", &directory))?;
        for entry in std::fs::read_dir(&directory).map_err(StoreError::of("list", &directory))? {
            let entry = entry.map_err(StoreError::of("list", &directory))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
        }
    }
    Ok(())
}
