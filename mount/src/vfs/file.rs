//! Bytes and listings: opening, reading, writing and closing.
//!
//! With passthrough the kernel moves the bytes itself and nothing of it is seen here but the open and
//! the release. Otherwise the daemon serves reads and writes on a descriptor of its own, opened with
//! the handle's access mode.
//!
//! Invariant: a writable handle is counted in the gate before the program knows its open has succeeded,
//! and is counted out exactly once, at the kernel's release.

use super::control_dir::ControlNode;
use super::far::Reader;
use super::handle::{Listed, Open, Whole, WholeListing};
use super::hidden::Hiding;
use super::inode::{Backing, Inode, ROOT};
use super::view::View;
use super::{Caller, Entry, FsError, FsResult, Node, Vfs};
use crate::sys;
use crate::vfs::attr::{self, Attr, SetAttr};
use nix::errno::Errno;
use nix::sys::uio;
use scrfs::layout::record::Phase;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// One entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Inode number.
    pub ino: u64,
    /// `S_IFMT` bits.
    pub kind: u32,
    /// Name.
    pub name: Vec<u8>,
    /// Where to go on after it.
    pub next: u64,
}

/// Bytes copied by one `copy_file_range` at most: the kernel's limit for one call.
const COPY_BYTES_MAX: u64 = 1 << 30;

thread_local! {
    /// What a thread reads into on the way to the kernel: as long as its longest request, which the
    /// kernel bounds. New memory for each would cost more than the reading.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn is_writable(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Entries given to the kernel at once: it takes far fewer.
const ITEMS_MAX: usize = 1024;

fn begun(whole: &Whole) -> Option<Arc<WholeListing>> {
    whole.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn items(listed: &[Listed], offset: u64) -> Vec<Item> {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let numbered = listed.iter().zip(1u64..).skip(from).take(ITEMS_MAX);
    numbered
        .map(|(listed, next)| {
            let Listed { ino, kind, name } = listed.clone();
            Item {
                ino,
                kind,
                name,
                next,
            }
        })
        .collect()
}

impl Vfs {
    /// Opens a file. The answer is the handle's number; [`Self::attach`] must follow.
    pub fn open(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        flags: i32,
        answer: impl FnOnce(FsResult<u64>) + Send + 'static,
    ) {
        let inode = match self.node(ino) {
            // By a name that the kernel still believes.
            Ok(Node::File(inode)) if self.is_gone(inode.dataset) => {
                return answer(Err(FsError::Missing));
            }
            Ok(Node::Remote(remote)) if self.is_gone(remote.dataset) => {
                return answer(Err(FsError::Missing));
            }
            Ok(Node::File(inode)) => inode,
            Ok(Node::Control(ControlNode::Heartbeat)) if is_writable(flags) => {
                return answer(Ok(self.handles.insert(Open::Heartbeat).0));
            }
            Ok(Node::Control(_)) if is_writable(flags) => {
                return answer(Err(FsError::NotPermitted));
            }
            Ok(Node::Control(ControlNode::NeedCheckpoint)) => {
                return self.ask_need_checkpoint(caller, answer);
            }
            Ok(Node::Control(control)) => {
                let content = self.control_content(control);
                return answer(content.map(|bytes| self.handles.insert(Open::Content(bytes)).0));
            }
            Ok(Node::Remote(_)) if is_writable(flags) || flags & libc::O_TRUNC != 0 => {
                return answer(Err(FsError::Sealed));
            }
            Ok(Node::Remote(remote)) => {
                return self.with_remote(remote, answer, |vfs, view, place| {
                    let file = Arc::new(view.far_file(place)?);
                    Ok(vfs.handles.insert(Open::Far(Reader::new(file))).0)
                });
            }
            Ok(Node::Pointer(file)) => return answer(self.open_pointer(file, flags)),
            Ok(Node::Root) => return answer(Err(FsError::Invalid)),
            Err(error) => return answer(Err(error)),
        };
        if !is_writable(flags) && flags & libc::O_TRUNC == 0 {
            let gate = self.gate(inode.dataset).ok_or(FsError::Missing);
            return answer(gate.map(|gate| self.file_handle(inode, gate, flags)));
        }
        let dataset = inode.dataset;
        self.change(
            dataset,
            move |vfs, pass| {
                vfs.reopening(&inode, is_writable(flags));
                if flags & libc::O_TRUNC != 0 {
                    let wanted = SetAttr {
                        size: Some(0),
                        ..SetAttr::default()
                    };
                    attr::set(&inode, &wanted, None, caller.uid == 0)?;
                }
                pass.opened_writable = is_writable(flags);
                Ok(vfs.file_handle(inode, Arc::clone(pass.cell()), flags))
            },
            answer,
        );
    }

    /// Makes a file, or finds it, and opens it. [`Self::attach`] must follow.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        (parent, name): (u64, &OsStr),
        mode: u32,
        flags: i32,
        answer: impl FnOnce(FsResult<(Entry, u64)>) + Send + 'static,
    ) {
        if parent == ROOT {
            return self.create_pointer(caller, name, mode, flags, answer);
        }
        let name = name.to_owned();
        let vfs = Arc::clone(self);
        self.change_in(parent, answer, move |parent, pass| {
            let is_full = vfs.settings().space.left(parent.dataset) == Some(0);
            let made = match sys::mknod_at(parent.fd()?.as_fd(), &name, libc::S_IFREG | 0o600, 0) {
                Ok(()) if is_full => {
                    sys::unlink_at(parent.fd()?.as_fd(), &name, false)?;
                    return Err(FsError::NoSpace);
                }
                Ok(()) => vfs.made(parent, &name, caller, Some(mode & 0o7777))?,
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => {
                    let found = vfs.lookup_listed(parent, &name)?;
                    if flags & libc::O_TRUNC != 0 {
                        let wanted = SetAttr {
                            size: Some(0),
                            ..SetAttr::default()
                        };
                        let inode = vfs.inode(found.attr.ino)?;
                        vfs.reopening(&inode, false);
                        attr::set(&inode, &wanted, None, caller.uid == 0)?;
                    }
                    found
                }
                Err(errno) => return Err(errno.into()),
            };
            let inode = vfs.inode(made.attr.ino)?;
            if inode.kind != libc::S_IFREG {
                vfs.forget(made.attr.ino, 1);
                return Err(FsError::Exists);
            }
            if is_writable(flags) {
                vfs.reopening(&inode, true);
            }
            pass.opened_writable = is_writable(flags);
            Ok((made, vfs.file_handle(inode, Arc::clone(pass.cell()), flags)))
        });
    }

    fn file_handle(&self, inode: Arc<Inode>, gate: Arc<super::gates::GateCell>, flags: i32) -> u64 {
        let keep = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC;
        let open = Open::File {
            inode,
            gate,
            writable: is_writable(flags),
            flags: flags & keep,
            file: OnceLock::new(),
            backing: Mutex::new(None),
        };
        self.handles.insert(open).0
    }

    /// Whether a handle is of a pointer file, whose close is waited for.
    pub fn is_pointer_handle(&self, handle: u64) -> bool {
        matches!(
            self.handles.get(handle).as_deref(),
            Ok(Open::Pointer { .. })
        )
    }

    /// Whether a handle is of a file whose bytes can never change and are the kernel's to keep.
    pub fn is_kept_by_kernel(&self, handle: u64) -> bool {
        matches!(self.handles.get(handle).as_deref(), Ok(Open::Far(_)))
    }

    /// Decides how the bytes of a new handle travel. `Some`: by the kernel, with this. What is not
    /// a file of a dataset is served.
    pub fn attach(
        &self,
        handle: u64,
        register: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<Backing>,
    ) -> FsResult<Option<Backing>> {
        let open = self.handles.get(handle)?;
        let Open::File { inode, backing, .. } = &*open else {
            return Ok(None);
        };
        // What is sealed is only read.
        let is_bounded = || {
            let dataset = inode.dataset;
            self.settings().space.has_end(dataset) || self.is_fixed(dataset)
        };
        let may = self.has_passthrough() && is_bounded();
        let given = inode.attach(may.then_some(register))?;
        backing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&given);
        Ok(given)
    }

    /// A handle is gone.
    pub fn release(self: &Arc<Self>, handle: u64) {
        let Some(open) = self.handles.remove(handle) else {
            return;
        };
        if let Open::Pointer { file, writable, .. } = &*open {
            self.release_pointer(file, *writable);
        }
        if let Open::File {
            inode,
            gate,
            writable,
            backing,
            ..
        } = &*open
        {
            let given = backing
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            drop(given);
            let path = writable.then(|| self.path_if_watched(inode)).flatten();
            inode.detach();
            if *writable {
                self.closing(inode);
                gate.release_writer();
                self.tell_written(inode.dataset, path);
            }
        }
    }

    /// Reads, where the daemon serves; answers when bytes of another node have come.
    pub fn read(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        answer: impl FnOnce(FsResult<&[u8]>) + Send + 'static,
    ) {
        match self.handles.get(handle).as_deref() {
            Ok(Open::Far(reader)) => {
                let answer = |result: FsResult<Vec<u8>>| {
                    answer(result.as_deref().map_err(|error| *error));
                };
                self.far.read(reader, offset, size, Box::new(answer));
            }
            Ok(Open::Content(bytes)) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let end = start.saturating_add(size).min(bytes.len());
                answer(Ok(&bytes[start..end]));
            }
            Ok(Open::Pointer { file, .. }) => answer(Ok(&Self::read_pointer(file, offset, size))),
            Ok(open) => BUFFER.with_borrow_mut(|buffer| {
                answer(Self::read_here(open, offset, size, buffer));
            }),
            Err(error) => answer(Err(*error)),
        }
    }

    fn read_here<'a>(
        open: &Open,
        offset: u64,
        size: usize,
        buffer: &'a mut Vec<u8>,
    ) -> FsResult<&'a [u8]> {
        let at = i64::try_from(offset).map_err(|_| FsError::Invalid)?;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let read = uio::pread(open.file()?, &mut buffer[..size], at)?;
        Ok(&buffer[..read])
    }

    /// Writes, where the daemon serves. The handle counts as a writer, so that the gate is open.
    pub fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        privileged: bool,
    ) -> FsResult<usize> {
        let open = self.handles.get(handle)?;
        if matches!(&*open, Open::Heartbeat) {
            self.signs().beat();
            return Ok(data.len());
        }
        if let Open::Pointer { file, append, .. } = &*open {
            return Self::write_pointer(file, offset, data, *append);
        }
        let at = i64::try_from(offset).map_err(|_| FsError::System(Errno::EFBIG))?;
        let Open::File { inode, .. } = &*open else {
            return Err(FsError::NotSupported);
        };
        let file = open.file()?;
        self.check_write(inode.dataset, file.as_fd(), (offset, data.len() as u64))?;
        let write = || uio::pwrite(file, data, at);
        Ok(if privileged {
            write()
        } else {
            sys::without_fsetid(write)
        }?)
    }

    /// Makes a file's bytes durable in this node's cache; of a pointer file, on every node.
    pub fn fsync(
        self: &Arc<Self>,
        handle: u64,
        data_only: bool,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        match self.handles.get(handle).as_deref() {
            Ok(Open::Pointer { file, .. }) => self.commit_pointer(file, answer),
            Ok(open) => answer(Self::fsync_here(open, data_only)),
            Err(error) => answer(Err(*error)),
        }
    }

    fn fsync_here(open: &Open, data_only: bool) -> FsResult<()> {
        let Open::File { .. } = open else {
            return Ok(());
        };
        let file = open.file()?;
        Ok(if data_only {
            nix::unistd::fdatasync(file)
        } else {
            nix::unistd::fsync(file)
        }?)
    }

    /// Changes attributes.
    pub fn setattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        handle: Option<u64>,
        wanted: SetAttr,
        answer: impl FnOnce(FsResult<Attr>) + Send + 'static,
    ) {
        if let Ok(Node::Control(heartbeat @ ControlNode::Heartbeat)) = self.node(ino) {
            // Emptied before it is written, or touched. It keeps its mode and owner.
            self.signs().beat();
            return answer(self.control_attr(heartbeat));
        }
        if let Ok(Node::Pointer(file)) = self.node(ino) {
            return self.set_pointer_attr(&file, &wanted, handle.is_none(), answer);
        }
        let open = handle.and_then(|handle| self.handles.get(handle).ok());
        let vfs = Arc::clone(self);
        self.change_in(ino, answer, move |inode, _| {
            if wanted.size.is_some() {
                vfs.reopening(inode, false);
            }
            let fd = open
                .as_ref()
                .and_then(|open| open.file().ok())
                .map(AsFd::as_fd);
            let fd = if wanted.size.is_some() { fd } else { None };
            attr::set(inode, &wanted, fd, caller.uid == 0)
        });
    }

    /// Reserves or punches.
    pub fn fallocate(
        self: &Arc<Self>,
        caller: Caller,
        (ino, handle): (u64, u64),
        mode: i32,
        offset: u64,
        length: u64,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let open = self.handles.get(handle);
        let vfs = Arc::clone(self);
        self.change_in(ino, answer, move |inode, _| {
            let open = open?;
            let fd = open.file()?.as_fd();
            let allocates = mode & libc::FALLOC_FL_PUNCH_HOLE == 0;
            if allocates && vfs.allowed(inode.dataset, fd, (offset, length))? < length {
                return Err(FsError::NoSpace);
            }
            Ok(caller.change_bytes(|| sys::fallocate(fd, mode, offset, length))?)
        });
    }

    /// Finds data or holes.
    pub fn lseek(&self, handle: u64, offset: i64, whence: i32) -> FsResult<i64> {
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(FsError::Invalid);
        }
        let open = self.handles.get(handle)?;
        if let Open::Far(reader) = &*open {
            let from = u64::try_from(offset).ok();
            let found = from.and_then(|from| reader.file.seek(from, whence == libc::SEEK_HOLE));
            let found = found.and_then(|at| i64::try_from(at).ok());
            return found.ok_or(FsError::System(Errno::ENXIO));
        }
        Ok(sys::seek(open.file()?.as_fd(), offset, whence)?)
    }

    /// Copies inside the cache.
    pub fn copy_range(
        self: &Arc<Self>,
        caller: Caller,
        (from, from_offset): (u64, u64),
        (to_ino, to, to_offset): (u64, u64, u64),
        length: u64,
        answer: impl FnOnce(FsResult<usize>) + Send + 'static,
    ) {
        let opens = self
            .handles
            .get(from)
            .and_then(|from| Ok((from, self.handles.get(to)?)));
        let vfs = Arc::clone(self);
        self.change_in(to_ino, answer, move |inode, _| {
            let (from, to) = opens?;
            let (from, to) = (from.file()?.as_fd(), to.file()?.as_fd());
            let range = (to_offset, length.min(COPY_BYTES_MAX));
            let length = vfs.allowed(inode.dataset, to, range)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let copy = || sys::copy_range(from, from_offset, to, to_offset, length);
            Ok(caller.change_bytes(copy)?)
        });
    }

    /// Opens a directory for reading.
    pub fn opendir(&self, ino: u64) -> FsResult<u64> {
        let open = match self.node(ino)? {
            Node::Pointer(_) => return Err(FsError::NotDirectory),
            Node::Root => Open::Listing(Mutex::new(self.list_top())),
            Node::Control(control) => Open::Listing(Mutex::new(self.list_control(control)?)),
            Node::File(inode) => {
                let fd = sys::reopen(inode.fd()?.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
                Open::Directory {
                    inode,
                    fd: Mutex::new(fd),
                    whole: Mutex::default(),
                }
            }
            Node::Remote(remote) => Open::RemoteDirectory {
                remote,
                whole: Mutex::default(),
            },
        };
        Ok(self.handles.insert(open).0)
    }

    /// Entries from `offset` on; empty at the end. Offsets in open datasets are the cache's own and stay
    /// valid while entries come and go; a virtual directory, and one of a sealed dataset of several
    /// nodes, is listed as it was when reading it began.
    pub fn readdir(
        self: &Arc<Self>,
        ino: u64,
        handle: u64,
        offset: u64,
        answer: impl FnOnce(FsResult<Vec<Item>>) + Send + 'static,
    ) {
        let open = match self.handles.get(handle) {
            Ok(open) => open,
            Err(error) => return answer(Err(error)),
        };
        let dataset = match &*open {
            Open::Directory { inode, .. } => inode.dataset,
            Open::RemoteDirectory { remote, .. } => remote.dataset,
            Open::Listing(_)
            | Open::File { .. }
            | Open::Content(_)
            | Open::Far(_)
            | Open::Heartbeat
            | Open::Pointer { .. } => {
                return answer(self.readdir_here(ino, &open, offset));
            }
        };
        if offset != 0 {
            return answer(self.readdir_here(ino, &open, offset));
        }
        if let Open::RemoteDirectory { remote, .. } = *open {
            return self.with_remote(remote, answer, move |vfs, view, place| {
                if let Open::RemoteDirectory { whole, .. } = &*open {
                    vfs.begin_listing(whole, view, place, ino)?;
                }
                vfs.readdir_here(ino, &open, 0)
            });
        }
        // Only here: who began to read while the dataset was open goes on in this node's part.
        let vfs = Arc::clone(self);
        self.with_view(dataset, move |view| {
            let begun = view.and_then(|view| match (&*open, view) {
                (Open::Directory { inode, whole, .. }, Some(view)) => {
                    let place = vfs.place_of(&view, inode)?;
                    vfs.begin_listing(whole, &view, place, ino)
                }
                _ => Ok(()),
            });
            answer(begun.and_then(|()| vfs.readdir_here(ino, &open, 0)));
        });
    }

    fn begin_listing(
        &self,
        whole: &Whole,
        view: &Arc<View>,
        place: usize,
        own: u64,
    ) -> FsResult<()> {
        let listed = self.list_at(view, place, own)?;
        *whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(WholeListing {
            view: Arc::clone(view),
            place,
            listed,
        }));
        Ok(())
    }

    fn readdir_here(&self, ino: u64, open: &Open, offset: u64) -> FsResult<Vec<Item>> {
        match open {
            Open::Listing(listing) => {
                let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
                if offset == 0 {
                    *listing = match self.node(ino)? {
                        Node::Root => self.list_top(),
                        Node::Control(control) => self.list_control(control)?,
                        Node::File(_) | Node::Remote(_) | Node::Pointer(_) => {
                            return Err(FsError::Invalid);
                        }
                    };
                }
                Ok(items(&listing, offset))
            }
            Open::Directory { inode, fd, whole } => {
                if let Some(whole) = begun(whole) {
                    return Ok(items(&whole.listed, offset));
                }
                let fd = fd.lock().unwrap_or_else(PoisonError::into_inner);
                let entries = self.read_shown(inode, fd.as_fd(), offset as i64)?;
                let top = self.tree_by_ino(inode.ino).is_some();
                let item = |entry: sys::RawEntry| Item {
                    ino: if top && entry.name == b".." {
                        ROOT
                    } else {
                        inode.number_of(entry.ino)
                    },
                    kind: u32::from(entry.kind) << 12,
                    name: entry.name,
                    next: entry.next as u64,
                };
                Ok(entries.into_iter().map(item).collect())
            }
            Open::RemoteDirectory { whole, .. } => {
                let whole = begun(whole).ok_or(FsError::Invalid)?;
                Ok(items(&whole.listed, offset))
            }
            Open::File { .. }
            | Open::Content(_)
            | Open::Far(_)
            | Open::Heartbeat
            | Open::Pointer { .. } => Err(FsError::NotDirectory),
        }
    }

    /// The next entries of a directory of the cache of which at least one is shown; none at the end.
    fn read_shown(
        &self,
        directory: &Inode,
        fd: BorrowedFd<'_>,
        mut offset: i64,
    ) -> FsResult<Vec<sys::RawEntry>> {
        let Some(hiding) = self.hiding(directory.dataset) else {
            return Ok(sys::read_directory(fd, offset)?);
        };
        let path = match hiding {
            Hiding::All => Vec::new(),
            Hiding::Names(_) => self.path_of(directory)?,
        };
        let dots = |name: &[u8]| matches!(name, b"." | b"..");
        loop {
            let mut entries = sys::read_directory(fd, offset)?;
            let Some(last) = entries.last() else {
                return Ok(entries);
            };
            offset = last.next;
            entries.retain(|entry| dots(&entry.name) || !hiding.has(&path, &entry.name));
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// The entry that `readdirplus` shows for an item; counts one reference by the kernel, except
    /// for `.` and `..`.
    pub fn entry_of_item(
        &self,
        caller: Caller,
        handle: u64,
        ino: u64,
        item: &Item,
    ) -> Option<Entry> {
        let name = OsStr::from_bytes(&item.name);
        let open = self.handles.get(handle).ok()?;
        if let Open::Directory { whole, .. } | Open::RemoteDirectory { whole, .. } = &*open
            && let Some(whole) = begun(whole)
        {
            return self.lookup_in(&whole.view, whole.place, name).ok();
        }
        match &*open {
            Open::Directory { inode, .. } => self.lookup_listed(inode, name).ok(),
            Open::Listing(_) => self.lookup_virtual(caller, ino, name).ok(),
            Open::RemoteDirectory { .. }
            | Open::File { .. }
            | Open::Content(_)
            | Open::Far(_)
            | Open::Heartbeat
            | Open::Pointer { .. } => None,
        }
    }

    fn list_top(&self) -> Vec<Listed> {
        let directory = |ino: u64, name: &[u8]| Listed {
            ino,
            kind: libc::S_IFDIR,
            name: name.to_vec(),
        };
        let mut listing = vec![directory(ROOT, b"."), directory(ROOT, b"..")];
        listing.push(directory(
            ControlNode::Top.ino(),
            scrfs::name::CONTROL_DIRECTORY,
        ));
        for dataset in self.read_names().shown() {
            if let Some(ino) = dataset.top_ino() {
                listing.push(directory(ino, dataset.record.name.as_bytes()));
            }
        }
        listing.extend(self.pointers.list());
        listing
    }

    /// Space in the cache: the budget, and inodes of the device.
    pub fn statfs(&self) -> FsResult<libc::statvfs> {
        let settings = self.settings();
        let broken = |error: std::io::Error| {
            tracing::error!(%error, cache = %settings.cache.root().display(), "cache gone");
            FsError::Broken
        };
        let cache = std::fs::File::open(settings.cache.root()).map_err(broken)?;
        let mut space = sys::statvfs(cache.as_fd())?;
        let figures = settings.space.figures().map_err(broken)?;
        let blocks = |bytes: u64| bytes / space.f_frsize.max(1);
        let (total, free) = (blocks(figures.total), blocks(figures.total - figures.used));
        let available = blocks(figures.available);
        (space.f_blocks, space.f_bfree, space.f_bavail) = (total, free, available);
        Ok(space)
    }

    /// Sets an extended attribute.
    pub fn setxattr(
        self: &Arc<Self>,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        match self.commit_by_attribute(ino, name, value) {
            Some(Ok(what)) => return self.ask(what, answer),
            Some(Err(error)) => return answer(Err(error)),
            None => {}
        }
        let (name, value) = (name.to_owned(), value.to_vec());
        self.change_in(ino, answer, move |inode, _| {
            attr::set_xattr(inode, &name, &value, flags)
        });
    }

    /// Removes an extended attribute.
    pub fn removexattr(
        self: &Arc<Self>,
        ino: u64,
        name: &OsStr,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let name = name.to_owned();
        self.change_in(ino, answer, move |inode, _| {
            attr::remove_xattr(inode, &name)
        });
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, ino: u64, name: &OsStr) -> FsResult<Vec<u8>> {
        match self.node(ino)? {
            Node::File(inode) => attr::get_xattr(&inode, name),
            Node::Remote(remote) => {
                let view = self
                    .ready_view(remote.dataset)
                    .ok_or(FsError::NoAttribute)?;
                let mut xattrs = view.xattrs(view.place(remote)?)?;
                let found = xattrs.find(|(known, _)| *known == name.as_bytes());
                found
                    .map(|(_, value)| value.to_vec())
                    .ok_or(FsError::NoAttribute)
            }
            Node::Root | Node::Control(_) | Node::Pointer(_) => Err(FsError::NoAttribute),
        }
    }

    /// Names of extended attributes.
    pub fn listxattr(&self, ino: u64) -> FsResult<Vec<u8>> {
        match self.node(ino)? {
            Node::File(inode) => attr::list_xattrs(&inode),
            Node::Remote(remote) => {
                let Some(view) = self.ready_view(remote.dataset) else {
                    return Ok(Vec::new());
                };
                let names = view.xattrs(view.place(remote)?)?;
                Ok(names
                    .flat_map(|(name, _)| name.iter().copied().chain([0]))
                    .collect())
            }
            Node::Root | Node::Control(_) | Node::Pointer(_) => Ok(Vec::new()),
        }
    }

    /// Writable handles open, and whether any dataset is still being written.
    pub fn writers(&self) -> u64 {
        let names = self.read_names();
        let open = names
            .iter()
            .filter(|dataset| dataset.record.phase == Phase::Open);
        open.map(|dataset| dataset.gate.writers()).sum()
    }
}
