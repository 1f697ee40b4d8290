//! The kernel's side: every request is handed to the [`Vfs`], every result back to the kernel.
//!
//! The only file that names `fuser`. Nothing is decided here but what the kernel must be told about
//! caching and passthrough. Operations that may have to wait keep their reply object and give the
//! thread back; a reply that is dropped unanswered is EIO.
//!
//! Passthrough: one backing id per inode while it is open (see [`crate::vfs::inode`]), registered
//! without `CAP_FSETID`, because the kernel keeps the credentials of that moment for every write.
//! Never together with the writeback cache, which switches it off for the whole connection.

use crate::errno::errno_of;
use crate::sys::{self, SetTime};
use crate::vfs::attr::{Attr, SetAttr};
use crate::vfs::file::Item;
use crate::vfs::inode::Backing;
use crate::vfs::{Caller, Entry, FsError, FsResult, Vfs};
use fuser::{
    BackingId, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};
use std::any::Any;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How the mount is made.
#[derive(Clone, Debug, Default)]
pub struct MountSettings {
    /// `-o` options, as other FUSE filesystems take them.
    pub options: Vec<String>,
    /// Serve all bytes, whatever the kernel can do.
    pub no_passthrough: bool,
}

/// Longest write that the kernel hands over at once, in bytes: what it takes at most by default.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// Longest read, in bytes. The kernel cuts a longer one into requests that several threads serve at the
/// same time; cut shorter, the cost of each shows.
const READ_BYTES_MAX: u32 = 512 << 10;

struct Kernel {
    vfs: Arc<Vfs>,
    wants_passthrough: bool,
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

fn errno(error: FsError) -> Errno {
    if error == FsError::Broken {
        tracing::error!("a request failed with EIO");
    }
    Errno::from_i32(errno_of(&error))
}

fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(nanos));
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
    }
}

fn set_time(wanted: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(wanted) = wanted else {
        return SetTime::Now;
    };
    match wanted.duration_since(UNIX_EPOCH) {
        Ok(since) => SetTime::To(since.as_secs() as i64, i64::from(since.subsec_nanos())),
        Err(before) => {
            // fuser gives seconds before 1970 with the nanoseconds subtracted too: undo that.
            let before = before.duration();
            SetTime::To(-(before.as_secs() as i64), i64::from(before.subsec_nanos()))
        }
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

fn answer_entry(reply: ReplyEntry) -> impl FnOnce(FsResult<Entry>) + Send {
    move |result| match result {
        Ok(entry) => reply.entry_with_ttls(
            &entry.attr_ttl,
            &entry.entry_ttl,
            &file_attr(&entry.attr),
            Generation(entry.generation),
        ),
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_empty(reply: ReplyEmpty) -> impl FnOnce(FsResult<()>) + Send {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_xattr(reply: ReplyXattr, size: u32, result: FsResult<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(errno(FsError::BufferTooSmall)),
        Err(error) => reply.error(errno(error)),
    }
}

fn register(
    open: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
) -> impl FnOnce(BorrowedFd<'_>) -> io::Result<Backing> {
    move |fd| {
        let id = sys::without_fsetid(|| open(fd))?;
        Ok(Arc::new(id) as Arc<dyn Any + Send + Sync>)
    }
}

/// Flags of a file whose bytes the daemon serves.
fn served() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO
        | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
        | FopenFlags::FOPEN_NOFLUSH
}

/// Flags of a file whose bytes the kernel may keep for ever.
fn kept() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
}

fn answer_open(vfs: &Arc<Vfs>, reply: ReplyOpen, handle: u64) {
    match vfs.attach(handle, register(|fd| reply.open_backing(fd))) {
        Ok(backing) => match backing
            .as_ref()
            .and_then(|any| any.downcast_ref::<BackingId>())
        {
            Some(id) => reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, id),
            None if vfs.is_pointer_handle(handle) => {
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            None if vfs.is_kept_by_kernel(handle) => reply.opened(FileHandle(handle), kept()),
            None => reply.opened(FileHandle(handle), served()),
        },
        Err(error) => {
            vfs.release(handle);
            reply.error(errno(error));
        }
    }
}

fn answer_create(vfs: &Arc<Vfs>, reply: ReplyCreate, entry: &Entry, handle: u64) {
    let attr = file_attr(&entry.attr);
    let (number, generation) = (FileHandle(handle), Generation(entry.generation));
    let ttl = &entry.entry_ttl;
    match vfs.attach(handle, register(|fd| reply.open_backing(fd))) {
        Ok(backing) => match backing
            .as_ref()
            .and_then(|any| any.downcast_ref::<BackingId>())
        {
            Some(id) => {
                let flags = FopenFlags::FOPEN_NOFLUSH;
                reply.created_passthrough(ttl, &attr, generation, number, flags, id);
            }
            None if vfs.is_pointer_handle(handle) => {
                reply.created(ttl, &attr, generation, number, FopenFlags::empty());
            }
            None => reply.created(ttl, &attr, generation, number, served()),
        },
        Err(error) => {
            vfs.release(handle);
            vfs.forget(entry.attr.ino, 1);
            reply.error(errno(error));
        }
    }
}

/// Answers `readdirplus` with what fits.
fn list_plus(
    vfs: &Vfs,
    caller: Caller,
    (ino, handle): (u64, u64),
    items: Vec<Item>,
    mut reply: ReplyDirectoryPlus,
) {
    for item in items {
        let name = OsStr::from_bytes(&item.name);
        let dots = matches!(item.name.as_slice(), b"." | b"..");
        let entry = if dots {
            None
        } else {
            vfs.entry_of_item(caller, handle, ino, &item)
        };
        let full = match &entry {
            Some(entry) => {
                let attr = file_attr(&entry.attr);
                reply.add(
                    attr.ino,
                    item.next,
                    name,
                    &entry.entry_ttl,
                    &attr,
                    Generation(entry.generation),
                )
            }
            // Dots are not looked up; and what vanished meanwhile is only a name. Number 0
            // tells the kernel that no lookup was made.
            None => {
                let attr = file_attr(&Attr {
                    ino: item.ino,
                    mode: item.kind,
                    ..Attr::NOTHING
                });
                reply.add(
                    INodeNo(0),
                    item.next,
                    name,
                    &Duration::ZERO,
                    &attr,
                    Generation(0),
                )
            }
        };
        if full {
            if let Some(entry) = entry {
                vfs.forget(entry.attr.ino, 1);
            }
            break;
        }
    }
    reply.ok();
}

impl Filesystem for Kernel {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without atomic O_TRUNC: a program that is being run would be emptied before its open is refused.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        // Only what the kernel offers, so that it cannot refuse.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let mut offered = false;
        if self.wants_passthrough {
            offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
                && config.set_max_stack_depth(1).is_ok();
        }
        let words = match (self.wants_passthrough, offered) {
            (true, true) => "passthrough",
            (true, false) => "served by the daemon: the kernel has no passthrough (Linux 6.9 has)",
            (false, _) => "served by the daemon: passthrough is switched off (no_passthrough)",
        };
        self.vfs.set_data_path(offered, words);
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.vfs
            .lookup(caller(request), parent.0, name, answer_entry(reply));
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.vfs.forget(ino.0, lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.vfs.getattr(ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let wanted = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let handle = fh.map(|fh| fh.0);
        self.vfs.setattr(
            caller(request),
            ino.0,
            handle,
            wanted,
            move |result| match result {
                Ok(attr) => reply.attr(&crate::vfs::TTL, &file_attr(&attr)),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.vfs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = (mode, rdev);
        self.vfs
            .mknod(caller(request), parent.0, name, kind, answer_entry(reply));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.vfs.mkdir(
            caller(request),
            parent.0,
            name,
            mode & 0o7777,
            answer_entry(reply),
        );
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.vfs.unlink(parent.0, name, answer_empty(reply));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.vfs.rmdir(parent.0, name, answer_empty(reply));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str();
        self.vfs
            .symlink(caller(request), parent.0, name, target, answer_entry(reply));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let to = (new_parent.0, new_name);
        self.vfs
            .rename((parent.0, name), to, flags.bits(), answer_empty(reply));
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.vfs
            .link(ino.0, new_parent.0, new_name, answer_entry(reply));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let vfs = Arc::clone(&self.vfs);
        self.vfs.open(
            caller(request),
            ino.0,
            flags.0,
            move |result| match result {
                Ok(handle) => answer_open(&vfs, reply, handle),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let vfs = Arc::clone(&self.vfs);
        let place = (parent.0, name);
        self.vfs.create(
            caller(request),
            place,
            mode,
            flags,
            move |result| match result {
                Ok((entry, handle)) => answer_create(&vfs, reply, &entry, handle),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = move |result: FsResult<&[u8]>| match result {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(errno(error)),
        };
        self.vfs.read(fh.0, offset, size as usize, answer);
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self
            .vfs
            .write(fh.0, offset, data, !kill && request.uid() == 0)
        {
            Ok(written) => reply.written(written as u32),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.vfs.release(fh.0);
        reply.ok();
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.vfs.flush(fh.0, answer_empty(reply));
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.vfs.fsync(fh.0, datasync, answer_empty(reply));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.vfs.opendir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let answer = move |result: FsResult<Vec<Item>>| match result {
            Ok(items) => {
                for item in items {
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(INodeNo(item.ino), item.next, file_type(item.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        };
        self.vfs.readdir(ino.0, fh.0, offset, answer);
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (vfs, caller) = (Arc::clone(&self.vfs), caller(request));
        let answer = move |result: FsResult<Vec<Item>>| match result {
            Ok(items) => list_plus(&vfs, caller, (ino.0, fh.0), items, reply),
            Err(error) => reply.error(errno(error)),
        };
        self.vfs.readdir(ino.0, fh.0, offset, answer);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.release(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.vfs.sync_directory(ino.0, answer_empty(reply));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.vfs.statfs() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                space.f_bsize as u32,
                scrfs::name::NAME_BYTES_MAX as u32,
                space.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.vfs
            .setxattr(ino.0, name, value, flags, answer_empty(reply));
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        answer_xattr(reply, size, self.vfs.getxattr(ino.0, name));
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer_xattr(reply, size, self.vfs.listxattr(ino.0));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.vfs.removexattr(ino.0, name, answer_empty(reply));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (file, answer) = ((ino.0, fh.0), answer_empty(reply));
        self.vfs
            .fallocate(caller(request), file, mode, offset, length, answer);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.vfs.lseek(fh.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let to = (ino_out.0, fh_out.0, offset_out);
        let from = (fh_in.0, offset_in);
        self.vfs
            .copy_range(caller(request), from, to, len, move |result| match result {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(errno(error)),
            });
    }
}

/// An option as fuser has it; who may come in is not one of them.
fn mount_option(option: &str) -> Option<MountOption> {
    Some(match option {
        "allow_other" => return None,
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        other => MountOption::CUSTOM(other.to_owned()),
    })
}

/// A mounted filesystem; [`Mounted::run`] serves it.
pub struct Mounted {
    session: Session<Kernel>,
}

impl Mounted {
    /// Mounts `vfs` at `mountpoint` and settles how data travels: passthrough is tried once on a
    /// file of the cache.
    pub fn new(vfs: &Arc<Vfs>, mountpoint: &Path, settings: &MountSettings) -> io::Result<Self> {
        let mut config = Config::default();
        // Other users may come in where the mount is root's; a user's own is theirs alone unless they
        // say otherwise, for which /etc/fuse.conf must have `user_allow_other`.
        let asked = settings
            .options
            .iter()
            .any(|option| option == "allow_other");
        config.acl = match nix::unistd::geteuid().is_root() || asked {
            true => SessionACL::All,
            false => SessionACL::Owner,
        };
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        config.n_threads = Some(cores.clamp(2, 4));
        config.clone_fd = true;
        config.mount_options = vec![
            MountOption::FSName("scrfs".into()),
            MountOption::Subtype("scrfs".into()),
            MountOption::DefaultPermissions,
        ];
        let longest = format!("max_read={READ_BYTES_MAX}");
        config.mount_options.push(MountOption::CUSTOM(longest));
        let options = settings.options.iter();
        config
            .mount_options
            .extend(options.filter_map(|option| mount_option(option)));
        let wants_passthrough = !settings.no_passthrough;
        let kernel = Kernel {
            vfs: Arc::clone(vfs),
            wants_passthrough,
        };
        let session = Session::new(kernel, mountpoint, &config)?;
        if vfs.has_passthrough()
            && let Err(why) = probe(vfs, &session)
        {
            vfs.set_data_path(false, &format!("served by the daemon: {why}"));
        }
        if vfs.has_passthrough() {
            tracing::info!("data goes by passthrough");
        } else {
            tracing::warn!("data is {}", vfs.data_path());
        }
        let mountpoint = mountpoint.to_owned();
        // It asks the mount, which is served only after this returns.
        std::thread::spawn(move || crate::mountpoint::raise_readahead(&mountpoint));
        Ok(Self { session })
    }

    /// Serves until it is unmounted.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Tries passthrough on a file of each store; says in words why it works in none. Where it works in some, the
/// files of the others are served, each as it is opened.
fn probe(vfs: &Vfs, session: &Session<Kernel>) -> Result<(), String> {
    let mut why = Vec::new();
    for store in vfs.settings().space.stores().iter() {
        match probe_store(store.root(), session) {
            Ok(()) => {}
            Err(words) => {
                tracing::warn!(store = %store.root().display(), "{words}");
                why.push(words);
            }
        }
    }
    match why.len() < vfs.settings().space.stores().count() {
        true => Ok(()),
        false => Err(why.swap_remove(0)),
    }
}

fn probe_store(root: &Path, session: &Session<Kernel>) -> Result<(), String> {
    let path = root.join(".passthrough-probe");
    let file = std::fs::File::create(&path).map_err(|error| format!("no probe file: {error}"))?;
    let _ = std::fs::remove_file(&path);
    match BackingId::create_raw(session, file.as_fd()) {
        // It is closed with the connection: one id, of an unlinked empty file.
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "passthrough needs CAP_SYS_ADMIN in the initial user namespace".to_owned()
            }
            _ => format!("passthrough does not work on this cache: {error}"),
        }),
    }
}
