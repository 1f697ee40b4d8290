//! The provisional log of one node, and the parity that was made of the logs of its set.

use super::{Closed, LogOrder, SLICE_BYTES, Settled, TELL_EVERY};
use crate::part::{Tree, extents};
use crate::transfer::JobId;
use bytes::Bytes;
use lru::LruCache;
use nix::fcntl::OFlag;
use scrfs::buffers;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::Seal;
use scrfs::name::RelPath;
use scrfs::redundancy::{Extent, SetGeometry, Stream};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Instant;

/// Files of one log that are open at once.
const FILES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);

/// A file in a provisional log.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) file: Closed,
    pub(super) path: RelPath,
    pub(super) at: u64,
}

/// Parity that was made: the crc32c of it, and of what.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) len: u32,
    pub(super) crc: u32,
    pub(super) sources: Vec<(Extent, u32)>,
}

/// A dataset that is being written.
#[derive(Debug)]
pub(super) struct Foreseen {
    pub(super) own: Slot,
    pub(super) seal: Seal,
    pub(super) tree: Option<Tree>,
    pub(super) log: Vec<Placed>,
    pub(super) bytes: u64,
    /// Raised whenever the log loses something.
    pub(super) version: u64,
    /// How much of the log the last scan has placed as it is here, by the version it began with.
    pub(super) kept: Option<(u64, u64)>,
    /// Of whole units of the log that were read.
    pub(super) sums: Vec<Option<u32>>,
    pub(super) files: RefCell<LruCache<u64, Arc<File>>>,
    /// How far the logs of the set reach, in whole chunks.
    pub(super) reach: BTreeMap<Slot, u64>,
    /// To where the log was cut since that was told.
    pub(super) cut_to: Option<u64>,
    pub(super) told_at: Instant,
    pub(super) room: Option<File>,
    pub(super) made: BTreeMap<u64, Made>,
    /// Parity before this was made, or tried.
    pub(super) next: u64,
    pub(super) goal: u64,
    pub(super) job: Option<JobId>,
    pub(super) begun: Instant,
    pub(super) rests_until: Instant,
    pub(super) failures: u32,
}

impl Foreseen {
    /// How a scan is to place files.
    pub(super) fn order(&self) -> LogOrder {
        LogOrder {
            version: self.version,
            files: self.log.iter().map(|placed| placed.file.clone()).collect(),
        }
    }

    /// Nothing is written yet.
    pub(super) fn new(own: Slot, seal: Seal) -> Self {
        Self {
            own,
            seal,
            tree: None,
            log: Vec::new(),
            bytes: 0,
            version: 0,
            kept: None,
            sums: Vec::new(),
            files: RefCell::new(LruCache::new(FILES_MAX)),
            reach: BTreeMap::new(),
            cut_to: None,
            told_at: Instant::now(),
            room: None,
            made: BTreeMap::new(),
            next: 0,
            goal: 0,
            job: None,
            begun: Instant::now(),
            rests_until: Instant::now(),
            failures: 0,
        }
    }

    /// Whether a seal is what was foreseen.
    pub(super) fn is_of(&self, seal: &Seal) -> bool {
        let key = |seal: &Seal| (seal.scheme, seal.chunk_bytes, seal.unit_bytes);
        key(&self.seal) == key(seal) && self.seal.set_of(self.own) == seal.set_of(self.own)
    }

    pub(super) fn unit_of(&self, extent: Extent) -> Option<usize> {
        let unit = u64::from(self.seal.unit_bytes);
        let is_unit = extent.slot == self.own
            && extent.stream == Stream::Data
            && extent.len == self.seal.unit_bytes
            && extent.offset.is_multiple_of(unit)
            && extent.offset.checked_add(unit)? <= self.bytes;
        is_unit.then(|| usize::try_from(extent.offset / unit).ok())?
    }

    pub(super) fn append(
        &mut self,
        paths: &CachePaths,
        (dataset, own): (DatasetId, Slot),
        ino: u64,
        path: RelPath,
    ) -> io::Result<()> {
        // Said twice: the first word is as good.
        if self
            .log
            .iter()
            .rev()
            .take(2)
            .any(|placed| placed.file.ino == ino)
        {
            return Ok(());
        }
        let tree = match &mut self.tree {
            Some(tree) => tree,
            none => {
                let opened = Tree::open(&paths.tree(dataset, own)).map_err(|error| error.source)?;
                none.insert(opened)
            }
        };
        let file = open_as(tree, &path, ino)?;
        let size = file.metadata()?.len();
        let file_of = Closed {
            ino,
            size,
            extents: extents(&file, size)?,
        };
        self.files.get_mut().put(ino, Arc::new(file));
        self.place(file_of, path);
        Ok(())
    }

    pub(super) fn place(&mut self, file: Closed, path: RelPath) {
        let at = self.bytes;
        self.bytes = at.saturating_add(file.bytes());
        self.log.push(Placed { file, path, at });
    }

    pub(super) fn reopened(&mut self, ino: u64) {
        let Some(at) = self.log.iter().position(|placed| placed.file.ino == ino) else {
            return;
        };
        let after = self.log.split_off(at);
        self.cut(after.first().map_or(self.bytes, |placed| placed.at));
        self.files.get_mut().pop(&ino);
        for placed in after.into_iter().skip(1) {
            self.place(placed.file, placed.path);
        }
    }

    /// The log ends here now.
    pub(super) fn cut(&mut self, at: u64) {
        self.version += 1;
        self.bytes = at;
        self.cut_to = Some(self.cut_to.map_or(at, |before| before.min(at)));
        self.log.retain(|placed| placed.at < at);
        let units = at / u64::from(self.seal.unit_bytes.max(1));
        self.sums
            .truncate(usize::try_from(units).unwrap_or(usize::MAX));
    }

    /// Whether there is anything to be told or made.
    pub(super) fn has_more(&self) -> bool {
        let chunk = self.seal.chunk_bytes;
        let told = self.reach.get(&self.own).copied().unwrap_or(0);
        let settled = |geometry: SetGeometry| geometry.settled_parity(self.own, self.next);
        self.cut_to.is_some()
            || self.bytes / chunk * chunk > told
            || (told > 0 && self.geometry().is_some_and(|it| settled(it) > self.next))
    }

    /// What is to be told of how far the log reaches: to where it was cut, and, when it is quiet, how far it reaches now.
    pub(super) fn new_reach(&mut self, now: Instant, is_quiet: bool) -> Vec<u64> {
        let chunk = self.seal.chunk_bytes;
        let told = self.reach.get(&self.own).copied().unwrap_or(0);
        let cut = self.cut_to.take().map(|at| at / chunk * chunk);
        let cut = cut.filter(|at| *at < told);
        let reach = self.bytes / chunk * chunk;
        let is_news = reach > cut.unwrap_or(told);
        let is_due = is_quiet && is_news && now >= self.told_at + TELL_EVERY;
        let all: Vec<u64> = cut.into_iter().chain(is_due.then_some(reach)).collect();
        for bytes in &all {
            self.reaches(self.own, *bytes);
            self.told_at = now;
        }
        all
    }

    /// The log of a member reaches so far now. Parity of what it has lost is to be made again.
    pub(super) fn reaches(&mut self, slot: Slot, bytes: u64) {
        let before = self.reach.insert(slot, bytes).unwrap_or(0);
        if bytes < before
            && let Some(geometry) = self.geometry()
        {
            let settled = geometry.settled_parity(self.own, 0);
            self.next = self.next.min(settled);
            self.goal = self.goal.min(settled);
        }
    }

    pub(super) fn geometry(&self) -> Option<SetGeometry> {
        let set = self.seal.set_of(self.own)?;
        let reach = |slot: &Slot| (*slot, self.reach.get(slot).copied().unwrap_or(0));
        let members = set.iter().map(reach).collect();
        SetGeometry::new(self.seal.scheme, members, self.seal.chunk_bytes).ok()
    }

    /// Which parity can be made now, from and to, in bytes of the stream.
    pub(super) fn next_slice(&mut self, room: &std::path::Path) -> Option<(u64, u64, SetGeometry)> {
        let chunk = self.seal.chunk_bytes;
        let geometry = self.geometry()?;
        let settled = geometry.settled_parity(self.own, self.next);
        if settled <= self.next {
            return None;
        }
        if self.room.is_none() {
            let mut options = File::options();
            options.write(true).custom_flags(libc::O_NOFOLLOW);
            self.room = options.open(room).ok();
        }
        let found = self.room.as_ref()?.metadata().ok()?;
        // No more than is allocated: the rest of the store is not ours to fill.
        let allocated = found.len().min(found.blocks() * 512) / chunk * chunk;
        let end = settled
            .min(allocated)
            .min(self.next.saturating_add(SLICE_BYTES.max(chunk)));
        (end > self.next).then_some((self.next, end, geometry))
    }

    /// The first file that reaches beyond an offset.
    pub(super) fn first_at(&self, offset: u64) -> usize {
        let ends = |placed: &Placed| placed.at + placed.file.bytes() <= offset;
        self.log.partition_point(ends)
    }

    pub(super) fn read(&self, extent: Extent) -> io::Result<Bytes> {
        let mut buffer = buffers::take(extent.len as usize);
        let end = extent.offset + u64::from(extent.len);
        let first = self.first_at(extent.offset);
        let mut done = 0;
        for placed in self.log[first..]
            .iter()
            .take_while(|placed| placed.at < end)
        {
            let file = self.file(placed)?;
            let mut at = placed.at;
            for run in &placed.file.extents {
                let (from, to) = (extent.offset.max(at), end.min(at + run.len));
                if from < to {
                    let len = usize::try_from(to - from).unwrap_or(usize::MAX);
                    let target = &mut buffer[done..done + len];
                    file.read_exact_at(target, run.offset + (from - at))?;
                    done += len;
                }
                at += run.len;
            }
        }
        match done == buffer.len() {
            true => Ok(buffer.freeze()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(super) fn file(&self, placed: &Placed) -> io::Result<Arc<File>> {
        let mut files = self.files.borrow_mut();
        if let Some(file) = files.get(&placed.file.ino) {
            return Ok(Arc::clone(file));
        }
        let tree = self.tree.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let file = Arc::new(open_as(tree, &placed.path, placed.file.ino)?);
        files.put(placed.file.ino, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn settle(self) -> Settled {
        let (version, kept) = self.kept.unwrap_or_default();
        let kept = if version == self.version { kept } else { 0 };
        let units = kept / u64::from(self.seal.unit_bytes.max(1));
        let mut sums = self.sums;
        sums.truncate(usize::try_from(units).unwrap_or(usize::MAX));
        Settled {
            sums,
            made: self.made,
            room: self.room,
        }
    }
}

/// A file that must have this number.
fn open_as(tree: &Tree, path: &RelPath, ino: u64) -> io::Result<File> {
    let file = tree
        .open_file(path, OFlag::O_RDONLY, 0)
        .map_err(|error| error.source)?;
    let found = file.metadata()?;
    match found.is_file() && found.ino() == ino {
        true => Ok(file),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}
