//! From a tree to its manifest.
//!
//! Entries come sorted: all names of a directory, then those of its subdirectories, so that parents
//! precede what is in them, and the same tree gives the same manifest. Holes stay holes: the part log
//! has only what `SEEK_DATA` finds. Files lie in it in the order of their entries, but for those that are wanted first: what
//! was encoded before stays where it is. Sizes and offsets are bytes. One directory is open at a time.
//!
//! The tree must be at rest (no writable handle is open, the daemon has frozen it). That is checked
//! as well as it can be: a file or directory whose size, times or inode differ between the beginning
//! and the end of its scan is an error. Nothing here reads file content.

use super::error::{PartError, PartId};
use super::tree::{Tree, file_type, mtime};
use super::xattr;
use crate::ahead::Closed;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};
use nix::unistd::Whence;
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::manifest::{DataExtent, Entry, EntryKind, Manifest, Node};
use scrfs::name::RelPath;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;

/// Describes the tree at `tree` as the part of `slot`.
///
/// # Errors
///
/// A device, a name longer than scrfs keeps, something that changes meanwhile, or what the operating
/// system refuses; each with the path.
pub fn scan_part(
    tree: &Path,
    dataset: DatasetId,
    slot: Slot,
    epoch: Epoch,
) -> Result<Manifest, PartError> {
    scan_part_as(tree, dataset, slot, epoch, &[]).map(|(manifest, _)| manifest)
}

/// The same, with the files that are in `order` first in the part log, as they come there. Returns how many bytes of the
/// log are just what that order says: up to the first file that is not there any more or is not what it was.
pub(crate) fn scan_part_as(
    tree: &Path,
    dataset: DatasetId,
    slot: Slot,
    epoch: Epoch,
    order: &[Closed],
) -> Result<(Manifest, u64), PartError> {
    let part = PartId { dataset, slot };
    let tree = Tree::open(tree).map_err(|error| part.store(error))?;
    let mut scan = Scan {
        part,
        tree,
        entries: Vec::new(),
        first_names: HashMap::new(),
        files: Vec::new(),
    };
    let root = scan.tree.stat_root().map_err(|error| part.store(error))?;
    let mut todo = vec![None];
    while let Some(directory) = todo.pop() {
        let below = scan.directory(directory.as_ref())?;
        // The last is taken first.
        todo.extend(below.into_iter().rev().map(Some));
    }
    let (log_bytes, kept) = scan.place(order);
    let manifest = Manifest {
        dataset,
        slot,
        epoch,
        root_mtime: mtime(&root),
        entries: scan.entries,
        log_bytes,
    };
    Ok((manifest, kept))
}

struct Scan {
    part: PartId,
    tree: Tree,
    entries: Vec<Entry>,
    /// The first name of each inode that has several.
    first_names: HashMap<(u64, u64), RelPath>,
    /// Regular files: their inodes, and the indices of their entries.
    files: Vec<(u64, usize)>,
}

/// Extended attributes, name and value.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What changes whenever the content does.
fn fingerprint(found: &FileStat) -> (u64, u64, i64, (i64, u32), (i64, i64)) {
    let changed = (found.st_ctime, found.st_ctime_nsec);
    (
        found.st_dev,
        found.st_ino,
        found.st_size,
        mtime(found),
        changed,
    )
}

impl Scan {
    /// Takes all names of a directory; returns those that are directories.
    fn directory(&mut self, path: Option<&RelPath>) -> Result<Vec<RelPath>, PartError> {
        let part = self.part;
        let whole = path.map_or_else(|| self.tree.path().to_owned(), |at| self.tree.path_of(at));
        let open = self
            .tree
            .open_directory(path)
            .map_err(|error| part.store(error))?;
        let before = self.stat_open(&open, &whole)?;
        let names = self
            .tree
            .names(&open, path)
            .map_err(|error| part.store(error))?;
        let mut below = Vec::new();
        for name in &names {
            let name = name.to_bytes();
            let entry = match path {
                Some(path) => path.join(name),
                None => RelPath::new(name),
            };
            let entry = entry.map_err(|source| PartError::Name {
                part,
                path: whole.clone(),
                source,
            })?;
            if self.entry(entry.clone())? {
                below.push(entry);
            }
        }
        if fingerprint(&self.stat_open(&open, &whole)?) != fingerprint(&before) {
            return Err(PartError::Changed { part, path: whole });
        }
        Ok(below)
    }

    fn stat_open(&self, file: &File, path: &Path) -> Result<FileStat, PartError> {
        nix::sys::stat::fstat(file)
            .map_err(io::Error::from)
            .map_err(self.part.io("stat", path))
    }

    /// Takes one name; returns whether it is a directory.
    fn entry(&mut self, path: RelPath) -> Result<bool, PartError> {
        let part = self.part;
        let failed = |error| part.store(error);
        let found = self.tree.stat(&path).map_err(failed)?;
        let kind = file_type(&found);
        let mut xattrs = Vec::new();
        let is_directory = kind == SFlag::S_IFDIR;
        let shared = found.st_nlink > 1 && !is_directory;
        let first = shared
            .then(|| self.first_names.get(&(found.st_dev, found.st_ino)))
            .flatten();
        let described = if let Some(first) = first {
            EntryKind::HardLink { to: first.clone() }
        } else if kind == SFlag::S_IFREG {
            let (described, found_xattrs) = self.file(&path, &found)?;
            xattrs = found_xattrs;
            described
        } else if is_directory {
            let open = self.tree.open_directory(Some(&path)).map_err(failed)?;
            xattrs = self.xattrs(&open, &path)?;
            EntryKind::Directory
        } else if kind == SFlag::S_IFLNK {
            EntryKind::Symlink {
                target: self.tree.read_link(&path).map_err(failed)?,
            }
        } else if kind == SFlag::S_IFIFO {
            EntryKind::Node(Node::Fifo)
        } else if kind == SFlag::S_IFSOCK {
            EntryKind::Node(Node::Socket)
        } else if kind == SFlag::S_IFCHR {
            EntryKind::Node(Node::CharDevice(found.st_rdev))
        } else if kind == SFlag::S_IFBLK {
            EntryKind::Node(Node::BlockDevice(found.st_rdev))
        } else {
            let path = self.tree.path_of(&path);
            return Err(PartError::Unsupported {
                part,
                path,
                mode: found.st_mode,
            });
        };
        if shared {
            self.first_names
                .entry((found.st_dev, found.st_ino))
                .or_insert_with(|| path.clone());
        }
        self.entries.push(Entry {
            path,
            kind: described,
            mode: found.st_mode & 0o7777,
            uid: found.st_uid,
            gid: found.st_gid,
            mtime: mtime(&found),
            xattrs,
        });
        Ok(is_directory)
    }

    fn xattrs(&self, file: &File, path: &RelPath) -> Result<Xattrs, PartError> {
        let whole = self.tree.path_of(path);
        xattr::read_all(file).map_err(self.part.io("read the extended attributes of", &whole))
    }

    /// Describes a regular file.
    fn file(&mut self, path: &RelPath, found: &FileStat) -> Result<(EntryKind, Xattrs), PartError> {
        let part = self.part;
        let whole = self.tree.path_of(path);
        let open = self.tree.open_file(path, OFlag::O_RDONLY, 0);
        let open = open.map_err(|error| part.store(error))?;
        if fingerprint(&self.stat_open(&open, &whole)?) != fingerprint(found) {
            return Err(PartError::Changed { part, path: whole });
        }
        let size = u64::try_from(found.st_size).unwrap_or(0);
        let extents = extents(&open, size).map_err(part.io("find the data of", &whole))?;
        let xattrs = self.xattrs(&open, path)?;
        if fingerprint(&self.stat_open(&open, &whole)?) != fingerprint(found) {
            return Err(PartError::Changed { part, path: whole });
        }
        self.files.push((found.st_ino, self.entries.len()));
        // Its place comes when all are known.
        let kind = EntryKind::File {
            size,
            log_offset: 0,
            extents,
        };
        Ok((kind, xattrs))
    }

    /// Gives all files their places in the part log, which is returned with its length; and how much of it is as `order`
    /// says.
    fn place(&mut self, order: &[Closed]) -> (u64, u64) {
        let mut log = 0;
        let mut kept = None;
        if !order.is_empty() {
            let by_inode: HashMap<u64, usize> = self.files.iter().copied().collect();
            let mut placed = HashSet::new();
            for closed in order {
                let found = by_inode.get(&closed.ino);
                let is_same = found.is_some_and(|&entry| match &self.entries[entry].kind {
                    EntryKind::File { size, extents, .. } => {
                        (*size, extents) == (closed.size, &closed.extents)
                    }
                    _ => false,
                });
                match found.filter(|entry| is_same && placed.insert(**entry)) {
                    Some(&entry) => self.put(entry, &mut log),
                    None => {
                        kept.get_or_insert(log);
                    }
                }
            }
            self.files.retain(|(_, entry)| !placed.contains(entry));
        }
        let kept = kept.unwrap_or(log);
        for (_, entry) in std::mem::take(&mut self.files) {
            self.put(entry, &mut log);
        }
        (log, kept)
    }

    fn put(&mut self, entry: usize, log: &mut u64) {
        if let EntryKind::File {
            log_offset,
            extents,
            ..
        } = &mut self.entries[entry].kind
        {
            *log_offset = *log;
            *log += extents.iter().map(|extent| extent.len).sum::<u64>();
        }
    }
}

/// Where a file has data. Filesystems that do not know say: everywhere.
pub(crate) fn extents(file: &File, size: u64) -> io::Result<Vec<DataExtent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(offset) = seek(file, at, Whence::SeekData)? else {
            break;
        };
        // The kernel rounds to pages and may answer from beyond an end that has just moved.
        let offset = offset.max(at);
        let end = seek(file, offset, Whence::SeekHole)?
            .unwrap_or(size)
            .min(size);
        if offset >= end {
            break;
        }
        extents.push(DataExtent {
            offset,
            len: end - offset,
        });
        at = end;
    }
    Ok(extents)
}

/// `None` when there is no more of it.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    match nix::unistd::lseek(file, from, whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
