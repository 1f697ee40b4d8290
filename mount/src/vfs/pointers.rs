//! Pointer files: plain files and symbolic links at the top, the same on every node.
//!
//! One is held in memory and replaced as a whole. While a program writes it, the change is this node's
//! own; when the handle is closed or synced, every node gets it, and the close returns after that. Of
//! several who write at once, the one who closes last has the last word. A file that was only made or
//! emptied is given out when its last handle is gone, and nobody waits: a shell closes a copy of its
//! handle before it writes, and nobody shall read the empty file in between.
//! A new content that comes from elsewhere, or by a rename, gets a new inode, as a file that is
//! replaced does: who has the old one open goes on with the old one.
//!
//! Lock order: the table, then one file; both leaves otherwise. What it does not do: it puts nothing
//! down, the coordinator does; no hard links, no attributes, no holes.

use super::attr::{Attr, SetAttr};
use super::handle::{Listed, Open};
use super::inode::VIRTUAL_BIT;
use super::{Caller, Entry, FsError, FsResult, Vfs};
use crate::sys::SetTime;
use nix::errno::Errno;
use scrfs::control::{PointerChange, Request};
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::pointer::{Content, POINTER_BYTES_MAX, Pointer, PointerRecord, Pointers};
use scrfs::name::Name;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Set, with [`VIRTUAL_BIT`], in the numbers of pointer files.
const POINTER_BIT: u64 = 1 << 61;

/// One inode.
#[derive(Debug)]
pub struct PointerFile {
    ino: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once it was removed or replaced by a rename.
    name: Option<Name>,
    pointer: Pointer,
    atime: (i64, u32),
    ctime: (i64, u32),
    /// What other nodes do not have yet.
    change: Change,
    /// Requests under way that give it to them.
    asked: u32,
    /// Handles that may write.
    writers: u32,
}

/// How far the content here is ahead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Change {
    None,
    /// Made, or emptied.
    Emptied,
    /// Anything else.
    Written,
}

impl State {
    /// Whether a program of this node is not done with it.
    fn is_held(&self) -> bool {
        self.change > Change::None || self.asked > 0 || self.writers > 0
    }
}

impl PointerFile {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self, pointer: &Pointer) -> bool {
        self.lock().pointer == *pointer
    }

    fn attr(&self) -> Attr {
        let state = self.lock();
        let Pointer {
            content,
            mode,
            uid,
            gid,
            mtime,
        } = &state.pointer;
        let kind = match content {
            Content::File(_) => libc::S_IFREG,
            Content::Link(_) => libc::S_IFLNK,
        };
        let size = content.len() as u64;
        Attr {
            ino: self.ino,
            size,
            blocks: size.div_ceil(512),
            atime: state.atime,
            mtime: *mtime,
            ctime: state.ctime,
            mode: kind | (mode & 0o7777),
            nlink: u32::from(state.name.is_some()),
            uid: *uid,
            gid: *gid,
            rdev: 0,
            blksize: 4096,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_name: BTreeMap<Name, Arc<PointerFile>>,
    /// What the kernel may ask for, with its lookups.
    by_ino: HashMap<u64, (Arc<PointerFile>, u64)>,
}

impl Table {
    fn make(&mut self, name: &Name, pointer: Pointer, change: Change) -> Arc<PointerFile> {
        self.next += 1;
        let file = Arc::new(PointerFile {
            ino: VIRTUAL_BIT | POINTER_BIT | self.next,
            state: Mutex::new(State {
                name: Some(name.clone()),
                atime: pointer.mtime,
                ctime: now(),
                pointer,
                change,
                asked: 0,
                writers: 0,
            }),
        });
        self.by_name.insert(name.clone(), Arc::clone(&file));
        file
    }

    /// Another file takes the name, or none. Who writes the old one keeps it, and will replace what
    /// is there then.
    fn unbind(&mut self, name: &Name) -> Option<Arc<PointerFile>> {
        let file = self.by_name.remove(name)?;
        let mut state = file.lock();
        if !state.is_held() {
            state.name = None;
        }
        drop(state);
        Some(file)
    }
}

/// All pointer files of a mount.
#[derive(Debug, Default)]
pub struct PointerFiles {
    table: Mutex<Table>,
}

impl PointerFiles {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of that name.
    pub fn find(&self, name: &Name) -> Option<Arc<PointerFile>> {
        self.lock().by_name.get(name).cloned()
    }

    /// The file behind an inode number, if the kernel may know it.
    pub fn get(&self, ino: u64) -> Option<Arc<PointerFile>> {
        self.lock()
            .by_ino
            .get(&ino)
            .map(|(file, _)| Arc::clone(file))
    }

    /// The kernel gave back references.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut table = self.lock();
        if let Some((_, count)) = table.by_ino.get_mut(&ino) {
            *count = count.saturating_sub(lookups);
            if *count == 0 {
                table.by_ino.remove(&ino);
            }
        }
    }

    /// For the listing of the top.
    pub(super) fn list(&self) -> Vec<Listed> {
        let table = self.lock();
        let listed = table.by_name.iter().map(|(name, file)| Listed {
            ino: file.ino,
            kind: file.attr().mode & libc::S_IFMT,
            name: name.as_bytes().to_vec(),
        });
        listed.collect()
    }

    /// The kernel is about to be told of it.
    fn entry(&self, file: &Arc<PointerFile>) -> Entry {
        let mut table = self.lock();
        let known = table
            .by_ino
            .entry(file.ino)
            .or_insert_with(|| (Arc::clone(file), 0));
        known.1 += 1;
        drop(table);
        Entry {
            attr: file.attr(),
            generation: 0,
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
        }
    }
}

/// Whether an inode number is a pointer file's.
pub fn is_pointer(ino: u64) -> bool {
    let mask = VIRTUAL_BIT | super::view::REMOTE_BIT | POINTER_BIT;
    ino & mask == VIRTUAL_BIT | POINTER_BIT
}

fn now() -> (i64, u32) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        since.subsec_nanos(),
    )
}

fn change(name: Name, pointer: Option<Pointer>) -> PointerChange {
    PointerChange { name, pointer }
}

impl Vfs {
    /// Reads what the cache knows of them.
    pub(super) fn load_pointers(&self) -> std::io::Result<()> {
        let path = self.settings().cache.pointers();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match envelope::open::<Pointers>(Kind::Pointers, &bytes) {
            Ok(pointers) => self.publish_pointers(true, pointers.all.into_iter().collect()),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "no pointer files can be believed");
            }
        }
        Ok(())
    }

    /// They are now as the records say; if `all`, there are no others.
    pub fn publish_pointers(&self, all: bool, records: Vec<(Name, PointerRecord)>) {
        let news = if all { Vec::new() } else { records.clone() };
        self.show_pointers(all, records);
        for (name, record) in news {
            match record.pointer.map(|pointer| pointer.content) {
                Some(Content::File(bytes) | Content::Link(bytes)) => {
                    self.tell_pointer_written(&name, &bytes);
                }
                None => self.tell_pointer_removed(&name),
            }
        }
    }

    fn show_pointers(&self, all: bool, records: Vec<(Name, PointerRecord)>) {
        let mut table = self.pointers.lock();
        let mut gone: Vec<Name> = Vec::new();
        if all {
            let listed = |name: &Name| records.iter().any(|(known, _)| known == name);
            let strange = table.by_name.iter().filter(|(name, file)| {
                // What nobody has been given yet is nobody else's business.
                !listed(name) && !file.lock().is_held()
            });
            gone.extend(strange.map(|(name, _)| name.clone()));
        }
        let removed = records
            .iter()
            .filter(|(_, record)| record.pointer.is_none());
        gone.extend(removed.map(|(name, _)| name.clone()));
        let mut moved: Vec<Arc<PointerFile>> = Vec::new();
        for name in &gone {
            moved.extend(table.unbind(name));
        }
        for (name, record) in records {
            let Some(pointer) = record.pointer else {
                continue;
            };
            match table.by_name.get(&name) {
                Some(file) if file.holds(&pointer) => continue,
                Some(_) => drop(table.unbind(&name)),
                None => {}
            }
            // A rename: the same inode under another name.
            let same = moved.iter().position(|file| file.holds(&pointer));
            match same.map(|at| moved.swap_remove(at)) {
                Some(file) => {
                    let mut state = file.lock();
                    state.name = Some(name.clone());
                    state.ctime = now();
                    drop(state);
                    table.by_name.insert(name, file);
                }
                None => drop(table.make(&name, pointer, Change::None)),
            }
        }
    }

    /// Whether all nodes have these changes already, as far as this one knows.
    pub(super) fn has_pointed(&self, changes: &[PointerChange]) -> bool {
        changes.iter().all(|PointerChange { name, pointer }| {
            match (self.pointers.find(name), pointer) {
                (None, None) => true,
                (Some(file), Some(pointer)) => {
                    file.holds(pointer) && file.lock().change == Change::None
                }
                _ => false,
            }
        })
    }

    pub(super) fn pointer_entry(&self, file: &Arc<PointerFile>) -> Entry {
        self.pointers.entry(file)
    }

    /// Attributes of one.
    pub(super) fn pointer_attr(file: &PointerFile) -> Attr {
        file.attr()
    }

    fn pointer_handle(&self, file: Arc<PointerFile>, flags: i32) -> u64 {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writable {
            file.lock().writers += 1;
        }
        let append = flags & libc::O_APPEND != 0;
        let open = Open::Pointer {
            file,
            writable,
            append,
        };
        self.handles.insert(open).0
    }

    /// Opens one.
    pub(super) fn open_pointer(&self, file: Arc<PointerFile>, flags: i32) -> FsResult<u64> {
        if flags & libc::O_TRUNC != 0 {
            let mut state = file.lock();
            let before = state.change;
            resize(&mut state, 0)?;
            state.change = before.max(Change::Emptied);
            state.pointer.mtime = now();
        }
        Ok(self.pointer_handle(file, flags))
    }

    /// Makes one, or finds it, and opens it. Exclusively made, it is on every node when this
    /// returns; otherwise when it is closed.
    pub(super) fn create_pointer(
        self: &Arc<Self>,
        caller: Caller,
        name: &OsStr,
        mode: u32,
        flags: i32,
        answer: impl FnOnce(FsResult<(Entry, u64)>) + Send + 'static,
    ) {
        let name = match self.free_name(name) {
            Ok(name) => name,
            Err(error) => return answer(Err(error)),
        };
        let pointer = Pointer {
            content: Content::File(Vec::new()),
            mode: mode & 0o7777,
            uid: caller.uid,
            gid: caller.gid,
            mtime: now(),
        };
        if flags & libc::O_EXCL != 0 {
            let vfs = Arc::clone(self);
            let made = move |result: FsResult<Arc<PointerFile>>| {
                answer(result.map(|file| {
                    let entry = vfs.pointer_entry(&file);
                    (entry, vfs.pointer_handle(file, flags))
                }));
            };
            return self.make_pointer(name, pointer, made);
        }
        let mut table = self.pointers.lock();
        let file = match table.by_name.get(&name) {
            Some(file) => Arc::clone(file),
            None => table.make(&name, pointer, Change::Emptied),
        };
        drop(table);
        let opened = self
            .open_pointer(Arc::clone(&file), flags)
            .map(|handle| (self.pointer_entry(&file), handle));
        answer(opened);
    }

    /// A name at the top that no dataset has.
    fn free_name(&self, name: &OsStr) -> FsResult<Name> {
        let name = Name::new(name.as_bytes())?;
        match self.read_names().find(&name) {
            Some(_) => Err(FsError::Exists),
            None => Ok(name),
        }
    }

    /// Makes one on every node, of a name that must be free.
    fn make_pointer(
        self: &Arc<Self>,
        name: Name,
        pointer: Pointer,
        answer: impl FnOnce(FsResult<Arc<PointerFile>>) + Send + 'static,
    ) {
        if self.pointers.find(&name).is_some() {
            return answer(Err(FsError::Exists));
        }
        let what = Request::Point {
            changes: vec![change(name.clone(), Some(pointer))],
            absent: Some(name.clone()),
        };
        let vfs = Arc::clone(self);
        self.ask(what, move |result| {
            let made = result.and_then(|()| vfs.pointers.find(&name).ok_or(FsError::Missing));
            answer(made);
        });
    }

    /// `mknod` of a regular file, or `symlink`, at the top.
    pub(super) fn make_at_top(
        self: &Arc<Self>,
        caller: Caller,
        name: &OsStr,
        content: Content,
        mode: u32,
        answer: impl FnOnce(FsResult<Entry>) + Send + 'static,
    ) {
        let name = match self.free_name(name) {
            Ok(name) => name,
            Err(error) => return answer(Err(error)),
        };
        let pointer = Pointer {
            content,
            mode: mode & 0o7777,
            uid: caller.uid,
            gid: caller.gid,
            mtime: now(),
        };
        let vfs = Arc::clone(self);
        self.make_pointer(name, pointer, move |made| {
            answer(made.map(|file| vfs.pointer_entry(&file)));
        });
    }

    pub(super) fn read_pointer(file: &PointerFile, offset: u64, size: usize) -> Vec<u8> {
        let state = file.lock();
        let (Content::File(bytes) | Content::Link(bytes)) = &state.pointer.content;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let end = start.saturating_add(size).min(bytes.len());
        bytes[start..end].to_vec()
    }

    pub(super) fn write_pointer(
        file: &PointerFile,
        offset: u64,
        data: &[u8],
        append: bool,
    ) -> FsResult<usize> {
        let mut state = file.lock();
        let length = state.pointer.content.len();
        let start = if append {
            length
        } else {
            usize::try_from(offset).unwrap_or(usize::MAX)
        };
        let end = start.saturating_add(data.len());
        if end > length {
            resize(&mut state, end as u64)?;
        }
        let Content::File(bytes) = &mut state.pointer.content else {
            return Err(FsError::Invalid);
        };
        bytes[start..end].copy_from_slice(data);
        state.pointer.mtime = now();
        state.change = Change::Written;
        Ok(data.len())
    }

    /// Gives every node what was written, if anything was.
    pub(super) fn commit_pointer(
        self: &Arc<Self>,
        file: &Arc<PointerFile>,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let mut state = file.lock();
        let changed = state.change;
        let Some(name) = state.name.clone().filter(|_| changed > Change::None) else {
            drop(state);
            return answer(Ok(()));
        };
        state.change = Change::None;
        state.asked += 1;
        let pointer = state.pointer.clone();
        drop(state);
        let what = Request::Point {
            changes: vec![change(name, Some(pointer))],
            absent: None,
        };
        let file = Arc::clone(file);
        self.ask(what, move |result| {
            let mut state = file.lock();
            state.asked = state.asked.saturating_sub(1);
            if result.is_err() {
                state.change = state.change.max(changed);
            }
            drop(state);
            answer(result);
        });
    }

    /// A handle is closed, or a copy of it.
    pub fn flush(
        self: &Arc<Self>,
        handle: u64,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        match self.handles.get(handle).as_deref() {
            Ok(Open::Pointer {
                file,
                writable: true,
                ..
            }) if file.lock().change == Change::Written => self.commit_pointer(file, answer),
            _ => answer(Ok(())),
        }
    }

    /// The last copy of a handle is gone.
    pub(super) fn release_pointer(self: &Arc<Self>, file: &Arc<PointerFile>, writable: bool) {
        if writable {
            let mut state = file.lock();
            state.writers = state.writers.saturating_sub(1);
            drop(state);
            self.commit_pointer(file, |result| {
                if let Err(error) = result {
                    tracing::error!(%error, "a file at the top was made or emptied on this node only");
                }
            });
        }
    }

    /// Changes attributes: with everything else that a writer has not closed yet, or at once. `by_name` when it is
    /// not by a handle: so comes what `O_TRUNC` does, right after the open.
    pub(super) fn set_pointer_attr(
        self: &Arc<Self>,
        file: &Arc<PointerFile>,
        wanted: &SetAttr,
        by_name: bool,
        answer: impl FnOnce(FsResult<Attr>) + Send + 'static,
    ) {
        let mut state = file.lock();
        if let Some(size) = wanted.size {
            if let Err(error) = resize(&mut state, size) {
                drop(state);
                return answer(Err(error));
            }
            state.pointer.mtime = now();
        }
        let pointer = &mut state.pointer;
        pointer.mode = wanted.mode.map_or(pointer.mode, |mode| mode & 0o7777);
        pointer.uid = wanted.uid.unwrap_or(pointer.uid);
        pointer.gid = wanted.gid.unwrap_or(pointer.gid);
        let time = |old, wanted: Option<SetTime>| match wanted {
            Some(SetTime::To(seconds, nanos)) => {
                (seconds, u32::try_from(nanos).unwrap_or_default())
            }
            Some(SetTime::Now) => now(),
            Some(SetTime::Leave) | None => old,
        };
        pointer.mtime = time(pointer.mtime, wanted.mtime);
        state.atime = time(state.atime, wanted.atime);
        state.ctime = now();
        let later = state.writers > 0;
        // Who emptied it is about to write; shells close a copy of the handle before they do.
        let is_emptied = later && by_name && wanted.size == Some(0);
        state.change = match is_emptied {
            true => state.change.max(Change::Emptied),
            false => Change::Written,
        };
        drop(state);
        let attr = file.attr();
        if later {
            return answer(Ok(attr));
        }
        self.commit_pointer(file, move |result| answer(result.map(|()| attr)));
    }

    /// Removes one on every node.
    pub(super) fn unlink_at_top(
        self: &Arc<Self>,
        name: &OsStr,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let name = match Name::new(name.as_bytes()) {
            Ok(name) => name,
            Err(error) => return answer(Err(error.into())),
        };
        let Some(file) = self.pointers.find(&name) else {
            let found = self.read_names().find(&name).is_some();
            let error = if found { Errno::EISDIR } else { Errno::ENOENT };
            return answer(Err(error.into()));
        };
        let what = Request::Point {
            changes: vec![change(name.clone(), None)],
            absent: None,
        };
        let vfs = Arc::clone(self);
        self.ask(what, move |result| {
            if result.is_ok() {
                // Also what was never closed, which the coordinators do not know.
                let mut table = vfs.pointers.lock();
                table.by_name.retain(|_, known| !Arc::ptr_eq(known, &file));
                drop(table);
                file.lock().name = None;
            }
            answer(result);
        });
    }

    /// What a rename of a pointer file asks for; `None` when `from` is none.
    pub(super) fn rename_pointer(
        &self,
        from: &Name,
        to: &Name,
        flags: u32,
    ) -> FsResult<Option<Request>> {
        let target = self.pointers.find(to);
        let Some(file) = self.pointers.find(from) else {
            let is_dataset = self.read_names().find(from).is_some();
            return match target {
                Some(_) if is_dataset && flags & libc::RENAME_NOREPLACE != 0 => {
                    Err(FsError::Exists)
                }
                Some(_) if is_dataset => Err(FsError::NotDirectory),
                _ => Ok(None),
            };
        };
        if self.read_names().find(to).is_some() {
            let error = match flags & libc::RENAME_NOREPLACE {
                0 => Errno::EISDIR,
                _ => Errno::EEXIST,
            };
            return Err(error.into());
        }
        let pointer = file.lock().pointer.clone();
        let absent = (flags & libc::RENAME_NOREPLACE != 0).then(|| to.clone());
        let back = if flags & libc::RENAME_EXCHANGE != 0 {
            let other = target.ok_or(FsError::Missing)?;
            Some(other.lock().pointer.clone())
        } else {
            None
        };
        Ok(Some(Request::Point {
            changes: vec![
                change(to.clone(), Some(pointer)),
                change(from.clone(), back),
            ],
            absent,
        }))
    }

    /// What a symbolic link at the top says.
    pub(super) fn read_pointer_link(file: &PointerFile) -> FsResult<Vec<u8>> {
        match &file.lock().pointer.content {
            Content::Link(target) => Ok(target.clone()),
            Content::File(_) => Err(FsError::Invalid),
        }
    }
}

fn resize(state: &mut State, size: u64) -> FsResult<()> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > POINTER_BYTES_MAX {
        return Err(Errno::EFBIG.into());
    }
    let Content::File(bytes) = &mut state.pointer.content else {
        return Err(FsError::Invalid);
    };
    bytes.resize(size, 0);
    state.change = Change::Written;
    Ok(())
}
