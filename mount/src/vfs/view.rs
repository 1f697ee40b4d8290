//! Sealed datasets of several parts, shown whole on every node.
//!
//! The tree is [`Merged`] from the manifests of all parts, each held against the checksum in the seal;
//! those that are not in this node's cache are fetched through the coordinator, once, when the dataset is
//! first looked into. Of what the tree names, what lies in this node's cache is the cache's own
//! inode, read by passthrough; everything else is *remote*: an inode with the attributes of its manifest,
//! whose bytes [`super::far`] fetches.
//!
//! Invariants: a listing is whole or an error, never the part of it that happens to be here. What two
//! parts have under one path and cannot be one thing is an error to whoever looks at it (see
//! [`scrfs::layout::merge`]). The number of a remote inode follows from dataset and manifests alone, so
//! that it is the same for the life of the daemon, and on all nodes.
//!
//! Whoever needs a view that is not there yet is answered when it is, on the thread that loads it; the
//! threads that read the kernel's requests and the coordinator's messages never wait.
//!
//! What it does not do: change anything; all of it is read-only.

use super::attr::Attr;
use super::changes::walk;
use super::dir::open_path;
use super::far::FarFile;
use super::handle::Listed;
use super::inode::{Inode, ROOT, VIRTUAL_BIT};
use super::namespace::Dataset;
use super::requests::Wanted;
use super::{Caller, Entry, FsError, FsResult, TTL, Vfs};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::{FRAME_BYTES_MAX, Piece, Shelved};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::manifest::{EntryKind, Manifest, Node};
use scrfs::layout::merge::{self, Found, Merged, Source};
use scrfs::layout::path::Keep;
use scrfs::layout::record::{DatasetRecord, PartSummary};
use scrfs::name::RelPath;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Set, with [`VIRTUAL_BIT`], in the numbers of remote inodes.
pub(super) const REMOTE_BIT: u64 = 1 << 62;
/// Below it the number within the dataset, above it the dataset's.
const DATASET_SHIFT: u32 = 36;
/// Manifests asked for at once.
const MANIFESTS_IN_FLIGHT: usize = 16;

const _: () = assert!((merge::ENTRIES_MAX as u64) < 1 << DATASET_SHIFT);

/// An inode of a sealed dataset that has no file in this node's cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Its dataset.
    pub dataset: DatasetId,
    /// Its number in the merged tree; 0 is the dataset's top.
    pub number: u64,
}

impl Remote {
    /// The top of a dataset.
    pub fn top(dataset: DatasetId) -> Self {
        Self { dataset, number: 0 }
    }

    /// Its inode number; `None` for a dataset whose number is too high.
    pub fn ino(self) -> Option<u64> {
        let fits = self.dataset.0 < 1 << (62 - DATASET_SHIFT) && self.number < 1 << DATASET_SHIFT;
        let above = self.dataset.0 << DATASET_SHIFT;
        fits.then_some(VIRTUAL_BIT | REMOTE_BIT | above | self.number)
    }

    /// What an inode number stands for.
    pub fn of(ino: u64) -> Option<Self> {
        let mark = VIRTUAL_BIT | REMOTE_BIT;
        (ino & mark == mark).then_some(Self {
            dataset: DatasetId((ino & !mark) >> DATASET_SHIFT),
            number: ino & ((1 << DATASET_SHIFT) - 1),
        })
    }
}

/// One dataset as a whole.
#[derive(Debug)]
pub struct View {
    /// Which.
    pub dataset: DatasetId,
    /// Its tree.
    pub merged: Merged,
    /// Conflicts that the log has been told of.
    told: Mutex<HashSet<usize>>,
}

type Waiter = Box<dyn FnOnce(FsResult<Arc<View>>) + Send>;

#[derive(Default)]
enum State {
    #[default]
    Absent,
    Loading(Vec<Waiter>),
    Ready(Arc<View>),
}

/// Where a dataset's view is once somebody wanted it. A leaf in the lock order.
#[derive(Default)]
pub struct ViewCell {
    state: Mutex<State>,
}

impl std::fmt::Debug for ViewCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ViewCell").finish_non_exhaustive()
    }
}

impl ViewCell {
    fn ready(&self) -> Option<Arc<View>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Ready(view) => Some(Arc::clone(view)),
            State::Absent | State::Loading(_) => None,
        }
    }

    /// The view if it is there; else `waiter` is kept. Returns whether somebody must load it.
    fn get_or_wait(&self, waiter: Waiter) -> (Option<(Arc<View>, Waiter)>, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Ready(view) => (Some((Arc::clone(view), waiter)), false),
            State::Loading(waiters) => {
                waiters.push(waiter);
                (None, false)
            }
            State::Absent => {
                *state = State::Loading(vec![waiter]);
                (None, true)
            }
        }
    }

    fn settle(&self, result: &FsResult<Arc<View>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match result {
            Ok(view) => State::Ready(Arc::clone(view)),
            // The next one to look tries again.
            Err(_) => State::Absent,
        };
        let before = std::mem::replace(&mut *state, next);
        drop(state);
        if let State::Loading(waiters) = before {
            for waiter in waiters {
                waiter(result.clone());
            }
        }
    }
}

impl Dataset {
    /// Whether there is more of it than lies in `tree`.
    pub fn is_merged(&self) -> bool {
        let seal = self.record.seal.as_ref();
        let several = seal.is_some_and(|seal| seal.parts.len() > 1 || self.tree.is_none());
        self.record.is_cached() && several
    }

    /// The number of its top directory.
    pub fn top_ino(&self) -> Option<u64> {
        match &self.tree {
            Some(tree) => Some(tree.ino),
            None if self.is_merged() => Remote::top(self.record.id).ino(),
            None => None,
        }
    }
}

/// Attributes of the top of a dataset of which nothing is here.
pub(super) fn top_attr(record: &DatasetRecord) -> FsResult<Attr> {
    top_attr_of(&Shelved::of(record))
}

/// The same of one that only the prefix has.
pub(super) fn top_attr_of(top: &Shelved) -> FsResult<Attr> {
    let ino = Remote::top(top.id).ino().ok_or(FsError::Missing)?;
    let time = super::control_dir::to_timespec(top.sealed);
    Ok(Attr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        mode: libc::S_IFDIR | (top.mode & 0o7777),
        nlink: 1,
        uid: top.uid,
        gid: top.gid,
        blksize: 4096,
        rdev: 0,
    })
}

fn type_bits(kind: &EntryKind) -> u32 {
    match kind {
        EntryKind::Directory => libc::S_IFDIR,
        EntryKind::File { .. } | EntryKind::HardLink { .. } => libc::S_IFREG,
        EntryKind::Symlink { .. } => libc::S_IFLNK,
        EntryKind::Node(Node::Fifo) => libc::S_IFIFO,
        EntryKind::Node(Node::Socket) => libc::S_IFSOCK,
        EntryKind::Node(Node::CharDevice(_)) => libc::S_IFCHR,
        EntryKind::Node(Node::BlockDevice(_)) => libc::S_IFBLK,
    }
}

impl View {
    fn ino(&self, place: usize) -> FsResult<u64> {
        let number = self.merged.number(place);
        let remote = Remote {
            dataset: self.dataset,
            number,
        };
        remote.ino().ok_or(FsError::Broken)
    }

    /// What lies at a place, as its manifest has it; a conflict is an error, and logged once.
    fn entry(&self, place: usize) -> FsResult<(Source, &scrfs::layout::manifest::Entry)> {
        if let Some(source) = self.merged.shown(place) {
            return Ok((source, self.merged.entry(source)));
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(place)
            && let [one, other, ..] = self.merged.sources(place)
            && let Some(path) = self.merged.path(place)
        {
            tracing::error!(
                dataset = %self.dataset, %path, first = %one.slot, second = %other.slot,
                "two slots wrote different things under one path: it cannot be opened"
            );
        }
        Err(FsError::Broken)
    }

    /// Attributes of a remote inode.
    pub fn attr(&self, place: usize) -> FsResult<Attr> {
        let (source, entry) = self.entry(place)?;
        let (size, data) = match &entry.kind {
            EntryKind::File { size, extents, .. } => {
                (*size, extents.iter().map(|extent| extent.len).sum::<u64>())
            }
            EntryKind::Symlink { target } => (target.len() as u64, 0),
            _ => (0, 0),
        };
        let rdev = match &entry.kind {
            // As the cache has them: the kernel's numbers have 32 bits.
            EntryKind::Node(Node::CharDevice(rdev) | Node::BlockDevice(rdev)) => *rdev as u32,
            _ => 0,
        };
        let mtime = (entry.mtime.0, entry.mtime.1.min(999_999_999));
        Ok(Attr {
            ino: self.ino(place)?,
            size,
            blocks: data.div_ceil(512),
            atime: mtime,
            mtime,
            ctime: mtime,
            mode: type_bits(&entry.kind) | (entry.mode & 0o7777),
            nlink: self.merged.links(source),
            uid: entry.uid,
            gid: entry.gid,
            blksize: 4096,
            rdev,
        })
    }

    /// What stands for a conflict to who removes it; opening it is an error all the same.
    fn stand_in(&self, place: usize) -> FsResult<Entry> {
        let attr = Attr {
            ino: self.ino(place)?,
            size: 0,
            blocks: 0,
            atime: (0, 0),
            mtime: (0, 0),
            ctime: (0, 0),
            mode: libc::S_IFREG,
            nlink: 1,
            uid: 0,
            gid: 0,
            blksize: 4096,
            rdev: 0,
        };
        Ok(Entry {
            attr,
            generation: 0,
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
        })
    }

    /// Whether a directory lies at a place.
    fn is_directory(&self, place: usize) -> bool {
        let shown = self.merged.shown(place);
        shown.is_some_and(|source| matches!(self.merged.entry(source).kind, EntryKind::Directory))
    }

    /// A remote regular file, to be read.
    pub fn far_file(&self, place: usize) -> FsResult<FarFile> {
        let (source, entry) = self.entry(place)?;
        let EntryKind::File {
            size,
            log_offset,
            extents,
        } = &entry.kind
        else {
            return Err(FsError::Invalid);
        };
        let part = self.merged.parts().get(source.slot.0 as usize);
        Ok(FarFile {
            dataset: self.dataset,
            slot: source.slot,
            path: entry.path.clone(),
            size: *size,
            runs: merge::runs(*log_offset, extents),
            log_bytes: part.map_or(0, |part| part.log_bytes),
        })
    }

    /// What a remote symbolic link says.
    pub fn link_target(&self, place: usize) -> FsResult<Vec<u8>> {
        match &self.entry(place)?.1.kind {
            EntryKind::Symlink { target } => Ok(target.clone()),
            _ => Err(FsError::Invalid),
        }
    }

    /// Extended attributes of a remote inode that programs may see.
    pub fn xattrs(&self, place: usize) -> FsResult<impl Iterator<Item = (&[u8], &[u8])>> {
        let xattrs = match place {
            0 => &[],
            place => self.entry(place)?.1.xattrs.as_slice(),
        };
        let visible = xattrs.iter().filter(|(name, _)| name.starts_with(b"user."));
        Ok(visible.map(|(name, value)| (name.as_slice(), value.as_slice())))
    }

    /// The place of a remote inode.
    pub fn place(&self, remote: Remote) -> FsResult<usize> {
        self.merged.place(remote.number).ok_or(FsError::Missing)
    }
}

/// The parts of a dataset that lie in this node's cache, this node's own first.
type Trees = Vec<(Slot, Arc<Inode>)>;

impl Vfs {
    /// Hands the view of a merged dataset to `then`, now or when it is loaded; `None` when what the
    /// cache has is all there is.
    pub fn with_view(
        self: &Arc<Self>,
        dataset: DatasetId,
        then: impl FnOnce(FsResult<Option<Arc<View>>>) + Send + 'static,
    ) {
        let cell = {
            let names = self.read_names();
            let found = names.get(dataset).filter(|found| found.is_merged());
            found.map(|found| Arc::clone(&found.view))
        };
        match cell {
            Some(cell) => self.with_cell(dataset, cell, move |view| then(view.map(Some))),
            None => then(Ok(None)),
        }
    }

    fn with_cell(
        self: &Arc<Self>,
        dataset: DatasetId,
        cell: Arc<ViewCell>,
        then: impl FnOnce(FsResult<Arc<View>>) + Send + 'static,
    ) {
        let waiter: Waiter = Box::new(then);
        let (ready, load) = cell.get_or_wait(waiter);
        if let Some((view, waiter)) = ready {
            return waiter(Ok(view));
        }
        if load {
            let (vfs, loading) = (Arc::clone(self), Arc::clone(&cell));
            let work = move || loading.settle(&vfs.load_view(dataset));
            if let Err(error) = std::thread::Builder::new().name("view".into()).spawn(work) {
                tracing::error!(%dataset, %error, "no thread to load the manifests");
                cell.settle(&Err(FsError::Broken));
            }
        }
    }

    /// As [`Self::with_view`], of a dataset that has remote inodes. It may be in the prefix only, and is
    /// fetched then.
    pub fn with_remote<T: 'static>(
        self: &Arc<Self>,
        remote: Remote,
        answer: impl FnOnce(FsResult<T>) + Send + 'static,
        work: impl FnOnce(&Arc<Self>, &Arc<View>, usize) -> FsResult<T> + Send + 'static,
    ) {
        let vfs = Arc::clone(self);
        self.with_fetched(remote, move |fetched| {
            let cell = fetched.and_then(|()| {
                let names = vfs.read_names();
                let found = names.get(remote.dataset);
                // Also when all of it lies here by now.
                let found = found.filter(|found| found.record.is_cached());
                let cell = found.map(|found| Arc::clone(&found.view));
                cell.ok_or(FsError::Missing)
            });
            let cell = match cell {
                Ok(cell) => cell,
                Err(error) => return answer(Err(error)),
            };
            let of = Arc::clone(&vfs);
            vfs.with_cell(remote.dataset, cell, move |view| {
                answer(view.and_then(|view| work(&of, &view, view.place(remote)?)));
            });
        });
    }

    /// The view of a dataset, if it is loaded.
    pub(super) fn ready_view(&self, dataset: DatasetId) -> Option<Arc<View>> {
        let names = self.read_names();
        let cell = names.get(dataset).map(|found| Arc::clone(&found.view));
        drop(names);
        cell?.ready()
    }

    /// Whether a dataset is more than this node's part of it.
    pub(super) fn is_merged(&self, dataset: DatasetId) -> bool {
        self.read_names()
            .get(dataset)
            .is_some_and(Dataset::is_merged)
    }

    fn trees(&self, dataset: DatasetId) -> Trees {
        let names = self.read_names();
        names
            .get(dataset)
            .map(|found| found.trees.clone())
            .unwrap_or_default()
    }

    /// Slots whose trees came after the dataset was shown without them.
    fn late(&self, dataset: DatasetId) -> Vec<Slot> {
        let names = self.read_names();
        let found = names.get(dataset);
        found.map(|found| found.late.clone()).unwrap_or_default()
    }

    fn load_view(&self, dataset: DatasetId) -> FsResult<Arc<View>> {
        let seal = {
            let names = self.read_names();
            let found = names.get(dataset).ok_or(FsError::Missing)?;
            found.record.seal.clone().ok_or(FsError::Missing)?
        };
        let mut parts: Vec<Option<Arc<Manifest>>> = Vec::new();
        let mut away = Vec::new();
        for (slot, summary) in (0u32..).map(Slot).zip(&seal.parts) {
            let here = self.manifest_here(dataset, slot, summary);
            if here.is_none() {
                away.push(slot);
            }
            parts.push(here.map(Arc::new));
        }
        self.fetch_manifests(dataset, &away, |slot, bytes| {
            let at = slot.0 as usize;
            let summary = seal.parts.get(at).ok_or(FsError::Broken)?;
            let manifest = Manifest::open_sealed(&bytes, dataset, slot, summary);
            let manifest = manifest.map_err(|error| {
                tracing::error!(%dataset, %slot, %error, "the coordinator brought a wrong manifest");
                FsError::Broken
            })?;
            parts[at] = Some(Arc::new(manifest));
            Ok(())
        })?;
        let parts: Option<Vec<Arc<Manifest>>> = parts.into_iter().collect();
        let merged = Merged::new(parts.ok_or(FsError::Broken)?).map_err(|error| {
            tracing::error!(%dataset, %error, "the manifests do not make a tree");
            FsError::Broken
        })?;
        let conflicts = merged.conflicts().count();
        if let Some((path, _)) = merged.conflicts().next() {
            tracing::warn!(
                %dataset, conflicts, %path,
                "slots wrote different things under one path; these paths cannot be opened"
            );
        }
        tracing::info!(%dataset, entries = merged.len() - 1, fetched = away.len(), "whole view");
        Ok(Arc::new(View {
            dataset,
            merged,
            told: Mutex::default(),
        }))
    }

    /// A manifest that this node's cache has, as its own or for another slot, if it is the sealed one.
    fn manifest_here(
        &self,
        dataset: DatasetId,
        slot: Slot,
        summary: &PartSummary,
    ) -> Option<Manifest> {
        [Keep::Own, Keep::Copy].into_iter().find_map(|keep| {
            let path = self.settings().cache.manifest(dataset, slot, keep);
            let bytes = match std::fs::metadata(&path) {
                Ok(found) if found.len() <= FRAME_BYTES_MAX as u64 => std::fs::read(&path).ok()?,
                _ => return None,
            };
            match Manifest::open_sealed(&bytes, dataset, slot, summary) {
                Ok(manifest) => Some(manifest),
                Err(error) => {
                    tracing::warn!(%dataset, %slot, path = %path.display(), %error, "not used");
                    None
                }
            }
        })
    }

    /// Asks for the manifests of `slots`, some at a time, and hands each to `take`; stops at the
    /// first that is not to be had.
    fn fetch_manifests(
        &self,
        dataset: DatasetId,
        slots: &[Slot],
        mut take: impl FnMut(Slot, Vec<u8>) -> FsResult<()>,
    ) -> FsResult<()> {
        let (done, results) = mpsc::channel();
        let ask = |slot: Slot| {
            let done = done.clone();
            let wanted = Wanted {
                dataset,
                slot,
                piece: Piece::Manifest,
            };
            let answer = move |result| {
                // Nobody listens once another one has failed.
                let _ = done.send((slot, result));
            };
            self.requests().fetch(wanted, Box::new(answer));
        };
        let (first, rest) = slots.split_at(slots.len().min(MANIFESTS_IN_FLIGHT));
        let mut rest = rest.iter().copied();
        first.iter().copied().for_each(ask);
        for _ in slots {
            let (slot, result) = results.recv().map_err(|_| FsError::Broken)?;
            let bytes = result.map_err(|refusal| {
                tracing::error!(%dataset, %slot, ?refusal, "no manifest: it cannot be listed");
                FsError::Unreachable
            })?;
            take(slot, bytes)?;
            rest.by_ref().take(1).for_each(ask);
        }
        Ok(())
    }

    /// Where a directory of this node's cache is in the tree.
    pub(super) fn place_of(&self, view: &View, directory: &Inode) -> FsResult<usize> {
        let trees = self.trees(view.dataset);
        if trees.iter().any(|(_, tree)| tree.ino == directory.ino) {
            return Ok(0);
        }
        for (_, tree) in &trees {
            if let Ok(path) = path_below(tree, directory) {
                return view
                    .merged
                    .find(path.as_os_str().as_bytes())
                    .ok_or(FsError::Missing);
            }
        }
        Err(FsError::Missing)
    }

    /// What `name` in a directory of the tree is; counts one reference by the kernel.
    pub(super) fn lookup_in(&self, view: &View, place: usize, name: &OsStr) -> FsResult<Entry> {
        self.entry_at(view, self.child_of(view, place, name)?)
    }

    /// The same for a caller that may be about to remove it.
    pub(super) fn lookup_for(
        &self,
        caller: Caller,
        view: &View,
        place: usize,
        name: &OsStr,
    ) -> FsResult<Entry> {
        let child = self.child_of(view, place, name)?;
        let is_removing = || (self.settings().is_removing)(caller.pid) == Some(true);
        match view.merged.found(child) {
            Found::Conflict if is_removing() => view.stand_in(child),
            _ => self.entry_at(view, child),
        }
    }

    fn child_of(&self, view: &View, place: usize, name: &OsStr) -> FsResult<usize> {
        self.check_shown(view, place, name)?;
        let child = view.merged.child(place, name.as_bytes());
        child.ok_or(FsError::Missing)
    }

    /// What lies at a place: this node's own file if it has one.
    pub(super) fn entry_at(&self, view: &View, place: usize) -> FsResult<Entry> {
        let Some(path) = view.merged.path(place) else {
            return Err(FsError::Invalid);
        };
        // First: in a conflict nothing may be opened, not even what is here.
        view.entry(place)?;
        let is_directory = view.is_directory(place);
        let late = self.late(view.dataset);
        for (slot, tree) in self.trees(view.dataset) {
            let has = |source: &Source| source.slot == slot;
            // A directory keeps the number it was shown with: somebody may be in it.
            let moved = is_directory && late.contains(&slot);
            if moved || !view.merged.sources(place).iter().any(has) {
                continue;
            }
            match open_below(&tree, path) {
                Ok(inode) => return self.entry(inode),
                Err(error) => {
                    let dataset = view.dataset;
                    tracing::warn!(%dataset, %slot, %path, %error, "not in the cache: read as remote");
                }
            }
        }
        let attr = view.attr(place)?;
        let generation = match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => self.returns(view.dataset),
            _ => 0,
        };
        Ok(Entry {
            attr,
            generation,
            entry_ttl: TTL,
            attr_ttl: TTL,
        })
    }

    /// All entries of a directory of the tree, `.` and `..` first.
    pub(super) fn list_at(&self, view: &View, place: usize, own: u64) -> FsResult<Vec<Listed>> {
        let trees = self.trees(view.dataset);
        let late = self.late(view.dataset);
        let mut near: HashMap<Vec<u8>, u64> = HashMap::new();
        for (slot, tree) in &trees {
            // A part need not have this directory.
            if let Ok(entries) = names_below(tree, view.merged.path(place)) {
                for entry in entries {
                    let child = view.merged.child(place, &entry.name);
                    if late.contains(slot) && child.is_none_or(|child| view.is_directory(child)) {
                        continue;
                    }
                    near.entry(entry.name).or_insert(tree.number_of(entry.ino));
                }
            }
        }
        let above = if place == 0 {
            ROOT
        } else {
            near.get(&b".."[..])
                .copied()
                .map_or_else(|| view.ino(view.merged.parent(place)), Ok)?
        };
        let special = |ino, name: &[u8]| Listed {
            ino,
            kind: libc::S_IFDIR,
            name: name.to_vec(),
        };
        let mut listed = vec![special(own, b"."), special(above, b"..")];
        let hiding = self.hiding(view.dataset);
        let path = view
            .merged
            .path(place)
            .map_or(&[][..], |path| path.as_bytes());
        for &child in view.merged.children(place) {
            let name = view.merged.name(child).to_vec();
            if hiding
                .as_ref()
                .is_some_and(|hiding| hiding.has(path, &name))
            {
                continue;
            }
            let kind = match (view.merged.found(child), view.merged.shown(child)) {
                // So that programs which remove it need not look it up for that.
                (Found::Conflict, _) | (_, None) => libc::S_IFREG,
                (_, Some(shown)) => type_bits(&view.merged.entry(shown).kind),
            };
            let ino = near.get(&name).copied();
            let ino = ino.map_or_else(|| view.ino(child), Ok)?;
            listed.push(Listed { ino, kind, name });
        }
        Ok(listed)
    }

    /// Attributes of a remote inode.
    pub(super) fn remote_attr(&self, remote: Remote) -> FsResult<(Attr, Duration)> {
        if remote.number == 0 {
            let names = self.read_names();
            let top = match names.get(remote.dataset) {
                Some(found) => Shelved::of(&found.record),
                None => names.in_prefix(remote.dataset).ok_or(FsError::Missing)?,
            };
            return Ok((top_attr_of(&top)?, Duration::ZERO));
        }
        let view = self.ready_view(remote.dataset).ok_or(FsError::Missing)?;
        Ok((view.attr(view.place(remote)?)?, TTL))
    }
}

/// Where a directory is below the top of its tree.
pub(super) fn path_below(tree: &Inode, directory: &Inode) -> FsResult<PathBuf> {
    let fd = directory.fd()?;
    // A removed directory has no path; the kernel would append ` (deleted)` to its old one.
    if sys::stat(fd.as_fd())?.st_nlink == 0 {
        return Err(FsError::Missing);
    }
    // ENAMETOOLONG when it is so deep that no path can say it.
    let path = |fd: BorrowedFd<'_>| {
        std::fs::read_link(OsStr::from_bytes(sys::proc_path(fd).as_bytes()))
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    let (top, here) = (path(tree.fd()?.as_fd())?, path(fd.as_fd())?);
    let below = here.strip_prefix(&top).map_err(|_| FsError::Missing)?;
    Ok(below.to_owned())
}

/// The inode at a path below a tree.
fn open_below(tree: &Inode, path: &RelPath) -> FsResult<Arc<Inode>> {
    let (dir, name) = walk(tree, path)?;
    let fd = open_path(dir.as_fd(), &name)?;
    Ok(Arc::new(tree.sibling(fd)?))
}

/// All names of a directory below a tree, `.` and `..` among them.
fn names_below(tree: &Inode, path: Option<&RelPath>) -> FsResult<Vec<sys::RawEntry>> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let fd = match path {
        Some(path) => {
            let (dir, name) = walk(tree, path)?;
            sys::open_at(dir.as_fd(), &name, flags, 0)?
        }
        None => sys::reopen(tree.fd()?.as_fd(), flags)?,
    };
    let mut all: Vec<sys::RawEntry> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |last| last.next);
        let more = sys::read_directory(fd.as_fd(), offset)?;
        if more.is_empty() {
            return Ok(all);
        }
        all.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_remote_inodes_come_back_and_are_no_others() {
        for (dataset, number) in [(0, 0), (1, 0), (7, 123_456), ((1 << 26) - 1, (1 << 36) - 1)] {
            let remote = Remote {
                dataset: DatasetId(dataset),
                number,
            };
            let ino = remote.ino().expect("it fits");
            assert_eq!(Remote::of(ino), Some(remote));
            assert!(super::super::control_dir::ControlNode::of(ino).is_none());
        }
        assert_eq!(Remote::top(DatasetId(1 << 26)).ino(), None);
        assert_eq!(Remote::of(ROOT), None);
        let control = super::super::control_dir::ControlNode::DatasetFile(DatasetId(3));
        assert_eq!(Remote::of(control.ino()), None);
    }
}
