//! System calls that no safe crate wraps, each as a safe function, and nothing else.
//!
//! Everything here takes borrowed descriptors and slices; no raw descriptor leaves it. `O_PATH`
//! descriptors are reached through `/proc/self/fd`, whose magic links lead to the very inode.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The path that leads to the inode behind a descriptor, `O_PATH` or not.
pub fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// A name without NUL, as the kernel wants it.
pub fn c_name(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Opens anew what `fd` stands for, with `flags` such as `O_RDWR`.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
    let path = proc_path(fd);
    // SAFETY: `path` is NUL-terminated and lives across the call; a new descriptor is owned by us.
    unsafe {
        let raw = Errno::result(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

/// `openat` of one component, never following a symbolic link.
pub fn open_at(dir: BorrowedFd<'_>, name: &OsStr, flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
    let name = c_name(name)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `name` is NUL-terminated and lives across the call; a new descriptor is owned by us.
    unsafe {
        let raw = Errno::result(libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

/// `fstat`, also of an `O_PATH` descriptor.
pub fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat, Errno> {
    // SAFETY: an all-zero `stat` is valid; the call fills it and keeps no pointer.
    unsafe {
        let mut out: libc::stat = std::mem::zeroed();
        Errno::result(libc::fstat(fd.as_raw_fd(), &mut out))?;
        Ok(out)
    }
}

/// `fstatvfs`, also of an `O_PATH` descriptor.
pub fn statvfs(fd: BorrowedFd<'_>) -> Result<libc::statvfs, Errno> {
    // SAFETY: an all-zero `statvfs` is valid; the call fills it and keeps no pointer.
    unsafe {
        let mut out: libc::statvfs = std::mem::zeroed();
        Errno::result(libc::fstatvfs(fd.as_raw_fd(), &mut out))?;
        Ok(out)
    }
}

/// Owner and group of the inode itself, a symbolic link included. `None` leaves it.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the empty name is a static C string; with AT_EMPTY_PATH it means the descriptor.
    unsafe {
        Errno::result(libc::fchownat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            uid,
            gid,
            flags,
        ))
        .map(drop)
    }
}

/// Permission bits of anything but a symbolic link.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let path = proc_path(fd);
    // SAFETY: `path` is NUL-terminated and lives across the call.
    unsafe { Errno::result(libc::chmod(path.as_ptr(), mode & 0o7777)).map(drop) }
}

/// A time to set: leave, now, or seconds and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// As it is.
    Leave,
    /// The time of the call.
    Now,
    /// This time.
    To(i64, i64),
}

impl SetTime {
    fn spec(self) -> libc::timespec {
        match self {
            Self::Leave => libc::timespec {
                tv_sec: 0,
                tv_nsec: libc::UTIME_OMIT,
            },
            Self::Now => libc::timespec {
                tv_sec: 0,
                tv_nsec: libc::UTIME_NOW,
            },
            Self::To(tv_sec, tv_nsec) => libc::timespec { tv_sec, tv_nsec },
        }
    }
}

/// Access and modification time of the inode itself.
pub fn set_times(fd: BorrowedFd<'_>, atime: SetTime, mtime: SetTime) -> Result<(), Errno> {
    let times = [atime.spec(), mtime.spec()];
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: two timespecs, as the call reads; the empty name is a static C string.
    unsafe {
        Errno::result(libc::utimensat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            times.as_ptr(),
            flags,
        ))
        .map(drop)
    }
}

/// Truncates through a descriptor open for writing.
pub fn truncate(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    // SAFETY: takes a descriptor and a number.
    unsafe { Errno::result(libc::ftruncate(fd.as_raw_fd(), size)).map(drop) }
}

/// `mkdirat`, `mknodat`, `symlinkat` and `linkat` take one component each.
pub fn mkdir_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    let name = c_name(name)?;
    // SAFETY: `name` is NUL-terminated and lives across the call.
    unsafe { Errno::result(libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode)).map(drop) }
}

/// Makes a file, pipe, socket or the device of that number; `mode` includes the type.
pub fn mknod_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32, rdev: u32) -> Result<(), Errno> {
    let name = c_name(name)?;
    // SAFETY: `name` is NUL-terminated and lives across the call.
    unsafe {
        Errno::result(libc::mknodat(
            dir.as_raw_fd(),
            name.as_ptr(),
            mode,
            rdev.into(),
        ))
        .map(drop)
    }
}

/// Makes a symbolic link.
pub fn symlink_at(target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let (target, name) = (c_name(target)?, c_name(name)?);
    // SAFETY: both strings are NUL-terminated and live across the call.
    unsafe {
        Errno::result(libc::symlinkat(
            target.as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
        ))
        .map(drop)
    }
}

/// Gives the inode behind `fd` another name.
pub fn link_at(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let (path, name) = (proc_path(fd), c_name(name)?);
    // SAFETY: both strings are NUL-terminated and live across the call.
    unsafe {
        Errno::result(libc::linkat(
            libc::AT_FDCWD,
            path.as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        ))
        .map(drop)
    }
}

/// Removes a name; a directory with `directory`.
pub fn unlink_at(dir: BorrowedFd<'_>, name: &OsStr, directory: bool) -> Result<(), Errno> {
    let name = c_name(name)?;
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: `name` is NUL-terminated and lives across the call.
    unsafe { Errno::result(libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags)).map(drop) }
}

/// `renameat2`.
pub fn rename_at(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
    flags: u32,
) -> Result<(), Errno> {
    let (name, new_name) = (c_name(name)?, c_name(new_name)?);
    // SAFETY: both strings are NUL-terminated and live across the call.
    unsafe {
        Errno::result(libc::renameat2(
            from.as_raw_fd(),
            name.as_ptr(),
            to.as_raw_fd(),
            new_name.as_ptr(),
            flags,
        ))
        .map(drop)
    }
}

/// What a symbolic link opened with `O_PATH | O_NOFOLLOW` says.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is as long as is said; the empty name means the descriptor itself.
    let length = unsafe {
        Errno::result(libc::readlinkat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        ))?
    };
    buffer.truncate(length as usize);
    Ok(buffer)
}

/// One entry of a directory as the backing filesystem has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the next entry is.
    pub next: i64,
    /// `DT_*`.
    pub kind: u8,
    /// Name.
    pub name: Vec<u8>,
}

/// Reads entries from `offset` on, about 32 KiB of them; empty at the end.
pub fn read_directory(fd: BorrowedFd<'_>, offset: i64) -> Result<Vec<RawEntry>, Errno> {
    let mut buffer = vec![0u64; 4096];
    let bytes = buffer.len() * 8;
    // SAFETY: lseek takes numbers; getdents64 writes at most `bytes` into the aligned buffer.
    let filled = unsafe {
        Errno::result(libc::lseek(fd.as_raw_fd(), offset, libc::SEEK_SET))?;
        let call = libc::SYS_getdents64;
        Errno::result(libc::syscall(
            call,
            fd.as_raw_fd(),
            buffer.as_mut_ptr(),
            bytes,
        ))?
    } as usize;
    let raw: Vec<u8> = buffer
        .iter()
        .flat_map(|word| native_bytes(*word))
        .take(filled)
        .collect();
    Ok(parse_entries(&raw))
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel's structures are in host order"
)]
fn native_bytes(word: u64) -> [u8; 8] {
    word.to_ne_bytes()
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel's structures are in host order"
)]
fn parse_entries(mut raw: &[u8]) -> Vec<RawEntry> {
    // struct linux_dirent64: ino u64, off i64, reclen u16, type u8, name, NUL.
    const NAME_AT: usize = 19;
    let mut entries = Vec::new();
    while let Some((head, _)) = raw.split_at_checked(NAME_AT) {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        let length = usize::from(u16::from_ne_bytes([head[16], head[17]]));
        let Some((record, rest)) = raw.split_at_checked(length) else {
            break;
        };
        let Some(name) = record.get(NAME_AT..) else {
            break;
        };
        let name = CStr::from_bytes_until_nul(name).map_or(name, CStr::to_bytes);
        entries.push(RawEntry {
            ino: word(0),
            next: word(8) as i64,
            kind: head[18],
            name: name.to_vec(),
        });
        raw = rest;
    }
    entries
}

/// Value of an extended attribute.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let (path, name) = (proc_path(fd), c_name(name)?);
    sized(|buffer, length| {
        // SAFETY: strings are NUL-terminated, the buffer is as long as is said, or null with 0.
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), length) }
    })
}

/// Names of extended attributes, each ended by a NUL.
pub fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = proc_path(fd);
    sized(|buffer, length| {
        // SAFETY: the string is NUL-terminated, the buffer is as long as is said, or null with 0.
        unsafe { libc::listxattr(path.as_ptr(), buffer.cast(), length) }
    })
}

fn sized(call: impl Fn(*mut u8, usize) -> isize) -> Result<Vec<u8>, Errno> {
    loop {
        let needed = Errno::result(call(std::ptr::null_mut(), 0))? as usize;
        if needed == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; needed];
        match Errno::result(call(buffer.as_mut_ptr(), needed)) {
            Ok(length) => {
                buffer.truncate(length as usize);
                return Ok(buffer);
            }
            // It grew in between.
            Err(Errno::ERANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Sets an extended attribute.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Errno> {
    let (path, name) = (proc_path(fd), c_name(name)?);
    // SAFETY: strings are NUL-terminated; the value is as long as is said.
    unsafe {
        Errno::result(libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        ))
        .map(drop)
    }
}

/// Removes an extended attribute.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let (path, name) = (proc_path(fd), c_name(name)?);
    // SAFETY: both strings are NUL-terminated and live across the call.
    unsafe { Errno::result(libc::removexattr(path.as_ptr(), name.as_ptr())).map(drop) }
}

/// `fallocate` with the caller's mode.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
    // SAFETY: takes a descriptor and numbers.
    unsafe { Errno::result(libc::fallocate(fd.as_raw_fd(), mode, offset, length)).map(drop) }
}

/// `lseek`; the position itself is nobody's business here.
pub fn seek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<i64, Errno> {
    // SAFETY: takes a descriptor and numbers.
    unsafe { Errno::result(libc::lseek(fd.as_raw_fd(), offset, whence)) }
}

/// `copy_file_range` at explicit offsets.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    length: usize,
) -> Result<usize, Errno> {
    let mut from_at = i64::try_from(from_offset).map_err(|_| Errno::EINVAL)?;
    let mut to_at = i64::try_from(to_offset).map_err(|_| Errno::EFBIG)?;
    // SAFETY: both offsets live across the call, which updates them.
    let copied = unsafe {
        Errno::result(libc::copy_file_range(
            from.as_raw_fd(),
            &mut from_at,
            to.as_raw_fd(),
            &mut to_at,
            length,
            0,
        ))?
    };
    Ok(copied as usize)
}

/// Whether anybody has the file open for writing, a memory map that outlived its descriptor
/// included: then the kernel grants no read lease. The lease is given back at once; whoever opens the
/// file in between waits that long, and SIGIO, which tells the holder, must not be fatal.
pub fn is_open_for_writing(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    // SAFETY: takes descriptors and numbers.
    let lease = |kind: i32| unsafe {
        Errno::result(libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind)).map(drop)
    };
    match lease(libc::F_RDLCK) {
        Ok(()) => lease(libc::F_UNLCK).map(|()| false),
        Err(Errno::EAGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

const CAP_FSETID: u32 = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Runs `work` without `CAP_FSETID` in this thread, so that what it opens or truncates clears
/// set-user-id bits as it would for an ordinary user. Nothing to do when the thread has it not.
pub fn without_fsetid<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(Option<[CapData; 2]>);
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(data) = &self.0 {
                set_caps(data);
            }
        }
    }
    let before = caps().filter(|data| data[0].effective & (1 << CAP_FSETID) != 0);
    if let Some(mut data) = before {
        data[0].effective &= !(1 << CAP_FSETID);
        set_caps(&data);
    }
    let _restore = Restore(before);
    work()
}

fn caps() -> Option<[CapData; 2]> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 fills two data structures of this layout; pid 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) };
    (result == 0).then_some(data)
}

fn set_caps(data: &[CapData; 2]) {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    // SAFETY: version 3 reads two data structures of this layout. Only effective bits that are
    // permitted are ever asked for, so that it cannot fail.
    unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) };
}

/// Raises the limit of open files to the hard limit, and that as far as is permitted; returns it.
pub fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1 << 20);
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    for limit in [most, hard] {
        if setrlimit(Resource::RLIMIT_NOFILE, limit, limit.max(hard)).is_ok() {
            return limit;
        }
    }
    1024
}

/// A descriptor that stands for a process, also after its number is used again.
pub fn open_process(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers; a new descriptor is owned by us.
    unsafe {
        let raw = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(raw as i32))
    }
}

/// SIGKILL to the process behind a descriptor.
pub fn kill_process(process: BorrowedFd<'_>) -> Result<(), Errno> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null info means the same as kill() would send.
    unsafe {
        let call = libc::SYS_pidfd_send_signal;
        Errno::result(libc::syscall(
            call,
            process.as_raw_fd(),
            libc::SIGKILL,
            info,
            0,
        ))
        .map(drop)
    }
}

/// Splits the process in two before it has any thread; the child leads a session of its own.
/// `None` in the child.
pub fn fork_daemon() -> Result<Option<nix::unistd::Pid>, Errno> {
    // SAFETY: called by `main` while there is one thread, so that the child's locks are all free.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
        nix::unistd::ForkResult::Child => {
            nix::unistd::setsid()?;
            Ok(None)
        }
    }
}

/// Lets a child begin with no signal blocked: the daemon waits for its own on one thread.
pub fn unblock_signals_in_child(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: only one async-signal-safe call happens between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::sys::signal::SigSet::empty()
                .thread_set_mask()
                .map_err(std::io::Error::from)
        });
    }
}

/// Maps a whole file, shared: stores go to the file.
///
/// For files of the caller's own only: a file that another process cuts short ends this one.
pub fn map_shared(file: &std::fs::File) -> std::io::Result<memmap2::MmapMut> {
    // SAFETY: the bytes are plain data, and by this function's contract nobody else changes the file.
    unsafe { memmap2::MmapMut::map_mut(file) }
}

/// What a filesystem needs to find an inode again, whatever its names are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

impl FileHandle {
    /// A number that differs, as well as 32 bits can, between two inodes that had one number.
    pub fn generation(&self) -> u64 {
        u64::from(scrfs::layout::envelope::crc32c(&self.bytes))
    }
}

/// The kernel's `struct file_handle` with the most bytes it may have.
#[repr(C)]
struct RawHandle {
    length: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

const HANDLE_BYTES_MAX: usize = 128;

/// The handle of an inode; EOPNOTSUPP where the filesystem has none.
pub fn file_handle(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    let mut raw = RawHandle {
        length: HANDLE_BYTES_MAX as u32,
        kind: 0,
        bytes: [0; HANDLE_BYTES_MAX],
    };
    let mut mount = 0;
    // SAFETY: the path is a C string, `raw` has room for as many bytes as it says.
    unsafe {
        Errno::result(libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        ))?;
    }
    let bytes = raw.bytes.get(..raw.length as usize).ok_or(Errno::EIO)?;
    Ok(FileHandle {
        kind: raw.kind,
        bytes: bytes.into(),
    })
}

/// Opens the inode of a handle; `device` is anything on its filesystem, not `O_PATH`. ESTALE when it
/// is gone, EPERM without `CAP_DAC_READ_SEARCH`.
pub fn open_handle(
    device: BorrowedFd<'_>,
    handle: &FileHandle,
    flags: i32,
) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle {
        length: handle.bytes.len() as u32,
        kind: handle.kind,
        bytes: [0; HANDLE_BYTES_MAX],
    };
    let room = raw.bytes.get_mut(..handle.bytes.len());
    room.ok_or(Errno::EINVAL)?.copy_from_slice(&handle.bytes);
    // SAFETY: `raw` holds as many bytes as it says; a new descriptor is owned by us.
    unsafe {
        let raw = Errno::result(libc::open_by_handle_at(
            device.as_raw_fd(),
            (&raw mut raw).cast(),
            flags | libc::O_CLOEXEC,
        ))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

/// Duplicates a descriptor.
pub fn duplicate(fd: &impl AsFd) -> std::io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_directory_is_read_in_pieces_and_names_come_whole() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for number in 0..2000 {
            std::fs::write(root.path().join(format!("file-{number:0>60}")), b"").expect("write");
        }
        let dir = std::fs::File::open(root.path()).expect("open");
        let (mut offset, mut names) = (0, std::collections::BTreeSet::new());
        loop {
            let entries = read_directory(dir.as_fd(), offset).expect("read");
            let Some(last) = entries.last() else { break };
            offset = last.next;
            names.extend(entries.into_iter().map(|entry| entry.name));
        }
        assert_eq!(names.len(), 2002);
        assert!(names.contains(format!("file-{:0>60}", 1999).as_bytes()));
    }

    #[test]
    fn a_cut_directory_buffer_is_not_read_past_its_end() {
        for length in 0..40 {
            let _ = parse_entries(&vec![0xff; length]);
            assert_eq!(parse_entries(&vec![0; length]).len(), 0);
        }
    }
}
