//! The copy of one slot's files, on its way into the prefix.
//!
//! A file is made when its first bytes come and finished (length, owner, attributes, mode, time,
//! fsync) when its last have come, so that each is opened once however many there are; on a parallel
//! filesystem an open costs more than a small file. Pieces of one file may come in any order and
//! from several threads.
//!
//! Files are made with `O_EXCL` after removing what has the name: nothing is ever written into a
//! file that was there, and a hard link or symbolic link of an earlier attempt cannot lead the bytes
//! elsewhere. What has the name is an earlier copy of the same file by the same slot (a retry), or the
//! file of another slot: then `complete` finds both in the manifests and publishes neither.

use super::direct::Direct;
use super::done::Done;
use super::error::PrefixError;
use crate::part::{Log, PartError, PartId, Tree, attributes, file_type, lock, report};
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::SFlag;
use scrfs::layout::manifest::{Entry, EntryKind, LogPiece, Manifest, Node};
use scrfs::name::RelPath;
use scrfs::store::StoreError;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Files of fewer bytes go by way of the page cache.
const DIRECT_BYTES_MIN: u64 = 1 << 20;
/// Files whose making waits for each other: few enough to be small, many enough to be rare.
const SHARDS: usize = 64;

/// The copy of one slot's files.
#[derive(Debug)]
pub(super) struct Outgoing {
    log: Log,
    /// Bytes that are still to come, by entry.
    missing: Vec<AtomicU64>,
    /// Entries whose file was made.
    made: Vec<Mutex<HashSet<usize>>>,
    /// Files that are being written, open a second time; none where the filesystem cannot do it.
    direct: Mutex<HashMap<usize, Arc<Direct>>>,
    has_direct: AtomicBool,
    /// Entries that an attempt before has finished.
    taken: BTreeMap<usize, u64>,
    done: Done,
}

/// What attempts before have finished, and may be taken over: trees, and in each of them entries.
pub(super) type Earlier = Vec<(Tree, BTreeMap<usize, u64>)>;

pub(super) fn refused(error: &StoreError) -> bool {
    matches!(
        error.source.raw_os_error(),
        Some(
            libc::EPERM | libc::ENOTSUP | libc::ENOSYS | libc::EINVAL | libc::EMLINK | libc::EXDEV
        )
    )
}

/// This node does not need a range any more, of length 0: all from `offset` on. What is dirty, the kernel begins to
/// write to the disk: one that waits for the end of the file stands idle until then, and in the way of programs. What is
/// clean it forgets, so that reading it back reads what the server has.
fn let_go(file: &File, offset: u64, len: u64) {
    let range = i64::try_from(offset).ok().zip(i64::try_from(len).ok());
    if let Some((offset, len)) = range {
        // Advice: where it does nothing, what is read back is what this node has, which is better than nothing.
        let _ = posix_fadvise(file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

impl Outgoing {
    /// Makes everything below `tree` that has no data: directories, links, pipes, empty files; and
    /// takes over what is `taken`, from `earlier` trees where it is not here already. What was taken is noted
    /// by `note` before anything is made: a file that gets the number of one that went is not that one.
    pub(super) fn begin(
        tree: Tree,
        manifest: &Arc<Manifest>,
        mut taken: BTreeMap<usize, u64>,
        earlier: &Earlier,
        note: impl FnOnce(&BTreeMap<usize, u64>) -> Result<Done, PrefixError>,
    ) -> Result<Self, PrefixError> {
        for (index, entry) in manifest.entries.iter().enumerate() {
            if entry.kind == EntryKind::Directory {
                // By several nodes at once; mode and time come when all have written into it.
                tree.make_directory(&entry.path, 0o700)?;
                for tree in earlier.iter().map(|(tree, _)| tree).chain([&tree]) {
                    open_up(tree, &entry.path)?;
                }
            }
            let mut having = earlier.iter();
            if taken.contains_key(&index)
                && let Some((from, _)) = having.find(|(_, found)| found.contains_key(&index))
                && let Err(error) = tree.take_from(from, &entry.path)
            {
                report("copied again", &error);
                taken.remove(&index);
            }
        }
        let done = note(&taken)?;
        let missing = manifest
            .entries
            .iter()
            .map(|entry| match &entry.kind {
                EntryKind::File { extents, .. } => extents.iter().map(|extent| extent.len).sum(),
                _ => 0,
            })
            .map(AtomicU64::new)
            .collect();
        let made = (0..SHARDS).map(|_| Mutex::default()).collect();
        let outgoing = Self {
            log: Log::new(Arc::clone(manifest), tree, true),
            missing,
            made,
            direct: Mutex::default(),
            has_direct: AtomicBool::new(true),
            taken,
            done,
        };
        for (index, entry) in manifest.entries.iter().enumerate() {
            if !outgoing.taken.contains_key(&index) {
                outgoing.make_without_data(index, entry)?;
            }
        }
        outgoing.remove_from(earlier);
        Ok(outgoing)
    }

    /// Gives back the space of what earlier attempts have of this slot and was not taken.
    fn remove_from(&self, earlier: &Earlier) {
        for (tree, _) in earlier {
            for entry in self.log.manifest().entries.iter().filter(has_data) {
                if let Err(error) = tree.unlink(&entry.path) {
                    tracing::debug!(%error, "left by an attempt before");
                }
            }
        }
    }

    /// Whether all of a range was finished by an attempt before.
    pub(super) fn has(&self, offset: u64, len: u64) -> bool {
        let mut pieces = self.log.pieces(offset, len);
        !self.taken.is_empty() && pieces.all(|piece| self.taken.contains_key(&piece.entry))
    }

    /// Whether some of a range was finished by an attempt before.
    pub(super) fn has_some(&self, offset: u64, len: u64) -> bool {
        let mut pieces = self.log.pieces(offset, len);
        !self.taken.is_empty() && pieces.any(|piece| self.taken.contains_key(&piece.entry))
    }

    /// Files that an attempt before has finished.
    pub(super) fn taken(&self) -> u64 {
        self.taken.len() as u64
    }

    fn part(&self) -> PartId {
        self.log.part()
    }

    fn failed(&self, error: StoreError) -> PartError {
        self.part().store(error)
    }

    fn make_without_data(&self, index: usize, entry: &Entry) -> Result<(), PrefixError> {
        let tree = self.log.tree();
        let path = &entry.path;
        match &entry.kind {
            // Made already.
            EntryKind::Directory => {}
            EntryKind::File { .. } if self.missing[index].load(Ordering::Relaxed) == 0 => {
                self.make_file(index)?;
                self.finish_file(index)?;
            }
            // When its first bytes come; links to it when it is whole.
            EntryKind::File { .. } | EntryKind::HardLink { .. } => {}
            EntryKind::Symlink { target } => {
                tree.unlink(path)?;
                tree.make_link(path, target)?;
                attributes::apply_unopened(tree, entry)?;
            }
            EntryKind::Node(node) => self.make_node(entry, *node)?,
        }
        Ok(())
    }

    /// Pipes, sockets and devices hold nothing; where the prefix has none, the manifest remembers them.
    fn make_node(&self, entry: &Entry, node: Node) -> Result<(), PrefixError> {
        let tree = self.log.tree();
        tree.unlink(&entry.path)?;
        match tree.make_node(&entry.path, attributes::node_type(node), 0o600) {
            Err(error) if refused(&error) => {
                tracing::warn!(path = ?error.path, "the prefix has no pipes, sockets or devices");
                return Ok(());
            }
            other => other?,
        }
        tree.set_mode(&entry.path, entry.mode)?;
        Ok(attributes::apply_unopened(tree, entry)?)
    }

    fn create(&self, path: &RelPath) -> Result<File, StoreError> {
        let tree = self.log.tree();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        match tree.open_file(path, flags, 0o600) {
            Err(error) if error.source.raw_os_error() == Some(libc::EEXIST) => {
                tree.unlink(path)?;
                tree.open_file(path, flags, 0o600)
            }
            other => other,
        }
    }

    /// Makes the file of an entry, unless this was done.
    fn make_file(&self, index: usize) -> Result<(), PartError> {
        let mut made = lock(&self.made[index % SHARDS]);
        if !made.contains(&index) {
            let path = &self.log.manifest().entries[index].path;
            let file = self.create(path).map_err(|error| self.failed(error))?;
            self.log.remember(index, Arc::new(file));
            if self.missing[index].load(Ordering::Relaxed) >= DIRECT_BYTES_MIN
                && self.has_direct.load(Ordering::Relaxed)
            {
                match Direct::open(self.log.tree(), path) {
                    Some(direct) => drop(lock(&self.direct).insert(index, Arc::new(direct))),
                    None => self.has_direct.store(false, Ordering::Relaxed),
                }
            }
            made.insert(index);
        }
        Ok(())
    }

    /// Writes `bytes` from `offset` of the log on; finishes files that are whole by it.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), PartError> {
        self.log.check_range(offset, bytes.len() as u64)?;
        let mut done = 0;
        for piece in self.log.pieces(offset, bytes.len() as u64) {
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            if self.taken.contains_key(&piece.entry) {
                done += len;
                continue;
            }
            self.make_file(piece.entry)?;
            self.write_piece(&piece, &bytes[done..done + len])?;
            done += len;
            let before = self.missing[piece.entry].fetch_sub(piece.len, Ordering::AcqRel);
            if before == piece.len {
                self.finish_file(piece.entry)?;
            }
        }
        Ok(())
    }

    fn write_piece(&self, piece: &LogPiece<'_>, bytes: &[u8]) -> Result<(), PartError> {
        let offset = piece.file_offset;
        let path = self.log.tree().path_of(piece.path);
        let failed = || self.part().io("write", &path);
        let direct = lock(&self.direct).get(&piece.entry).cloned();
        let mut body = 0..0;
        if let Some(direct) = direct {
            body = direct.blocks_in(offset, bytes.len());
            match direct.write_at(&bytes[body.clone()], offset + body.start as u64) {
                // It asks for more than it said. What has come there comes again.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    self.has_direct.store(false, Ordering::Relaxed);
                    lock(&self.direct).clear();
                    body = 0..0;
                }
                other => other.map_err(failed())?,
            }
        }
        let file = self.log.file(piece.entry)?;
        for edge in [0..body.start, body.end..bytes.len()] {
            let at = offset + edge.start as u64;
            file.write_all_at(&bytes[edge], at).map_err(failed())?;
        }
        if body.is_empty() {
            let_go(&file, offset, piece.len);
        }
        Ok(())
    }

    /// Gives a whole file its length and attributes, and makes it durable.
    fn finish_file(&self, index: usize) -> Result<(), PartError> {
        let entry = &self.log.manifest().entries[index];
        let path = self.log.tree().path_of(&entry.path);
        let file = self.log.file(index)?;
        if let EntryKind::File { size, .. } = &entry.kind {
            file.set_len(*size)
                .map_err(self.part().io("set the length of", &path))?;
        }
        attributes::apply(&file, entry, &path).map_err(|error| self.failed(error))?;
        file.sync_all().map_err(self.part().io("sync", &path))?;
        let found = file.metadata().map_err(self.part().io("stat", &path))?;
        self.done.note(index, found.ino());
        let_go(&file, 0, 0);
        self.log.forget(index);
        lock(&self.direct).remove(&index);
        Ok(())
    }

    /// Makes the hard links, when all files are whole.
    pub(super) fn finish(&self) -> Result<(), PrefixError> {
        let tree = self.log.tree();
        let manifest = Arc::clone(self.log.manifest());
        for entry in &manifest.entries {
            let EntryKind::HardLink { to } = &entry.kind else {
                continue;
            };
            tree.unlink(&entry.path)?;
            match tree.make_hard_link(&entry.path, to) {
                Err(error) if refused(&error) => {
                    tracing::warn!(path = ?error.path, "the prefix has no hard links: copied");
                    self.copy(entry, to)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// A second copy of a file, where there are no hard links.
    fn copy(&self, entry: &Entry, to: &RelPath) -> Result<(), PrefixError> {
        let tree = self.log.tree();
        let path = tree.path_of(&entry.path);
        let mut from = tree.open_file(to, OFlag::O_RDONLY, 0)?;
        let mut copy = self.create(&entry.path)?;
        std::io::copy(&mut from, &mut copy).map_err(PrefixError::io_at("copy to", &path))?;
        attributes::apply(&copy, entry, &path)?;
        copy.sync_all().map_err(PrefixError::io_at("sync", &path))
    }

    /// Removes files, to give back the space of a flush that did not end well: all of them, or those
    /// that are not finished. Directories stay: others may be writing into them.
    pub(super) fn remove(&self, all: bool) {
        self.log.forget_all();
        lock(&self.direct).clear();
        for (index, entry) in self.log.manifest().entries.iter().enumerate() {
            let is_begun = self.missing[index].load(Ordering::Acquire) > 0;
            let goes = all || (is_begun && !self.taken.contains_key(&index));
            if goes
                && has_data(&entry)
                && let Err(error) = self.log.tree().unlink(&entry.path)
            {
                tracing::debug!(%error, "not removed after a failed flush");
            }
        }
    }
}

/// A directory that an attempt before gave its mode may refuse what is to come.
fn open_up(tree: &Tree, path: &RelPath) -> Result<(), PrefixError> {
    let found = match tree.stat(path) {
        Ok(found) => found,
        Err(error) if error.source.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if file_type(&found) == SFlag::S_IFDIR && found.st_mode & 0o700 != 0o700 {
        tree.set_mode(path, 0o700)?;
    }
    Ok(())
}

fn has_data(entry: &&Entry) -> bool {
    matches!(
        entry.kind,
        EntryKind::File { .. } | EntryKind::HardLink { .. }
    )
}
