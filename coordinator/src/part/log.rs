//! The part log over the files it consists of.
//!
//! A log is a manifest and a tree that has its files: the cached one, one that is being restored, or
//! the copy in the prefix. Offsets and lengths are bytes of the log. Reading never goes beyond what
//! the manifest says a file has; a file that ends earlier is an error, as what would be read is not
//! what was sealed. At most [`FILES_MAX`] files are open, least recently used closed first. Checksums
//! are the caller's.

use super::error::{PartError, PartId};
use super::tree::Tree;
use lru::LruCache;
use nix::fcntl::OFlag;
use scrfs::layout::manifest::{EntryKind, LogIndex, LogPiece, Manifest};
use scrfs::redundancy::Stream;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files of one log that are open at once.
pub const FILES_MAX: usize = 64;

/// Takes a lock whose holder may have panicked; what it guards is valid between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A part log and the tree its bytes lie in.
#[derive(Debug)]
pub(crate) struct Log {
    part: PartId,
    manifest: Arc<Manifest>,
    index: LogIndex,
    tree: Arc<Tree>,
    /// Files are opened for writing too. A file whose mode has been given back to it may refuse.
    writable: AtomicBool,
    open: Mutex<LruCache<usize, Arc<File>>>,
}

impl Log {
    /// The log of a checked manifest over `tree`.
    pub(crate) fn new(manifest: Arc<Manifest>, tree: Tree, writable: bool) -> Self {
        let part = PartId {
            dataset: manifest.dataset,
            slot: manifest.slot,
        };
        let index = LogIndex::new(&manifest);
        let capacity = NonZeroUsize::new(FILES_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            part,
            manifest,
            index,
            tree: Arc::new(tree),
            writable: AtomicBool::new(writable),
            open: Mutex::new(LruCache::new(capacity)),
        }
    }

    pub(crate) fn part(&self) -> PartId {
        self.part
    }

    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The same, to be kept.
    pub(crate) fn tree_shared(&self) -> Arc<Tree> {
        Arc::clone(&self.tree)
    }

    /// The pieces that a range consists of.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = LogPiece<'_>> {
        self.index.pieces(&self.manifest, offset, len)
    }

    /// How many files a range is of.
    pub(crate) fn files(&self, offset: u64, len: u64) -> u64 {
        self.index.files(offset, len)
    }

    /// The file that a range begins in, for errors; the tree itself where there is none.
    pub(crate) fn path_at(&self, offset: u64, len: u64) -> PathBuf {
        self.pieces(offset, len).next().map_or_else(
            || self.tree.path().to_owned(),
            |piece| self.tree.path_of(piece.path),
        )
    }

    /// The open file of an entry. It is a regular file, or an error.
    pub(crate) fn file(&self, entry: usize) -> Result<Arc<File>, PartError> {
        if let Some(file) = lock(&self.open).get(&entry) {
            return Ok(Arc::clone(file));
        }
        let flags = if self.writable.load(Ordering::Acquire) {
            OFlag::O_RDWR
        } else {
            OFlag::O_RDONLY
        };
        let path = &self.manifest.entries[entry].path;
        let file = self
            .tree
            .open_file(path, flags, 0)
            .map_err(|error| self.part.store(error))?;
        let whole = self.tree.path_of(path);
        let found = file.metadata().map_err(self.part.io("stat", &whole))?;
        if !found.is_file() {
            return Err(PartError::Differs {
                part: self.part,
                path: whole,
                what: "type",
                expected: "regular file".into(),
                found: format!("{:?}", found.file_type()),
            });
        }
        let file = Arc::new(file);
        lock(&self.open).put(entry, Arc::clone(&file));
        Ok(file)
    }

    /// Keeps a file open that the caller has opened.
    pub(crate) fn remember(&self, entry: usize, file: Arc<File>) {
        lock(&self.open).put(entry, file);
    }

    /// Closes a file, as soon as nobody uses it.
    pub(crate) fn forget(&self, entry: usize) {
        lock(&self.open).pop(&entry);
    }

    /// Nothing is written any more.
    pub(crate) fn end_writing(&self) {
        self.writable.store(false, Ordering::Release);
        self.forget_all();
    }

    /// Closes all files, as soon as nobody uses them.
    pub(crate) fn forget_all(&self) {
        lock(&self.open).clear();
    }

    /// Fills the beginning of `buffer` from `offset` on; returns how far the log reaches in it.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, PartError> {
        let mut done = 0;
        for piece in self.pieces(offset, buffer.len() as u64) {
            let file = self.file(piece.entry)?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let target = &mut buffer[done..done + len];
            if let Err(error) = file.read_exact_at(target, piece.file_offset) {
                return Err(self.read_error(&file, &piece, error));
            }
            done += len;
        }
        Ok(done)
    }

    fn read_error(&self, file: &File, piece: &LogPiece<'_>, error: std::io::Error) -> PartError {
        let path = self.tree.path_of(piece.path);
        if error.kind() != std::io::ErrorKind::UnexpectedEof {
            return self.part.io("read", &path)(error);
        }
        let expected = match &self.manifest.entries[piece.entry].kind {
            EntryKind::File { size, .. } => *size,
            _ => piece.file_offset + piece.len,
        };
        let found = file.metadata().map_or(0, |found| found.len());
        PartError::Short {
            part: self.part,
            path,
            expected,
            found,
        }
    }

    /// Writes `bytes` from `offset` on. They must lie in the log.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), PartError> {
        self.check_range(offset, bytes.len() as u64)?;
        let mut done = 0;
        for piece in self.pieces(offset, bytes.len() as u64) {
            let file = self.file(piece.entry)?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            file.write_all_at(&bytes[done..done + len], piece.file_offset)
                .map_err(self.part.io("write", &self.tree.path_of(piece.path)))?;
            done += len;
        }
        Ok(())
    }

    /// An error when the range does not lie in the log.
    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), PartError> {
        let stream_bytes = self.manifest.log_bytes;
        check_range(self.part, Stream::Data, offset, len, stream_bytes)
    }
}

/// An error when the range does not lie in a stream of `stream_bytes`.
pub(crate) fn check_range(
    part: PartId,
    stream: Stream,
    offset: u64,
    len: u64,
    stream_bytes: u64,
) -> Result<(), PartError> {
    match offset.checked_add(len) {
        Some(end) if end <= stream_bytes => Ok(()),
        _ => Err(PartError::Range {
            part,
            stream,
            offset,
            len,
            stream_bytes,
        }),
    }
}
