//! What lies on other nodes, for tests of one node: parts with their bytes, served by the test's
//! coordinator as the real one would serve them, or not.

use scrfs::control::{Piece, Refusal};
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::manifest::{DataExtent, Entry, EntryKind, Manifest, Node, manifest_crc};
use scrfs::layout::record::PartSummary;
use scrfs::name::RelPath;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The part of another node.
#[derive(Clone, Default, Debug)]
pub struct Part {
    entries: Vec<Entry>,
    log: Vec<u8>,
}

/// How pieces are asked for and brought.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum How {
    /// As they are.
    #[default]
    Well,
    /// Not at all.
    Never,
    /// With one bit of each manifest turned.
    DamagedManifests,
    /// With the manifest of the next slot in place of each.
    OtherManifests,
    /// One byte short.
    Short,
    /// One byte too long.
    Long,
    /// Refused.
    Refused(Refusal),
}

#[derive(Default, Debug)]
struct Table {
    parts: Vec<Part>,
    how: How,
    asked: Vec<(Slot, Piece)>,
}

/// All that lies elsewhere; its clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Elsewhere(Arc<Mutex<Table>>);

fn path(path: &str) -> RelPath {
    RelPath::new(path.as_bytes()).expect("a path")
}

impl Part {
    /// One more entry.
    pub fn entry(mut self, at: &str, kind: EntryKind) -> Self {
        self.entries.push(Entry {
            path: path(at),
            kind,
            mode: 0o640,
            uid: 1001,
            gid: 1002,
            mtime: (1_700_000_000 + self.entries.len() as i64, 123_456_789),
            xattrs: Vec::new(),
        });
        self
    }

    /// Changes the entry made last.
    pub fn with(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        change(self.entries.last_mut().expect("an entry"));
        self
    }

    /// A directory.
    pub fn directory(self, at: &str) -> Self {
        self.entry(at, EntryKind::Directory)
            .with(|entry| entry.mode = 0o755)
    }

    /// A file without holes.
    pub fn file(self, at: &str, bytes: &[u8]) -> Self {
        let data: &[(u64, &[u8])] = &[(0, bytes)];
        let data = if bytes.is_empty() { &[] } else { data };
        self.sparse(at, bytes.len() as u64, data)
    }

    /// A file of `size` bytes with data at some offsets.
    pub fn sparse(mut self, at: &str, size: u64, data: &[(u64, &[u8])]) -> Self {
        let log_offset = self.log.len() as u64;
        let extent = |(offset, bytes): &(u64, &[u8])| DataExtent {
            offset: *offset,
            len: bytes.len() as u64,
        };
        let extents = data.iter().map(extent).collect();
        for (_, bytes) in data {
            self.log.extend_from_slice(bytes);
        }
        let kind = EntryKind::File {
            size,
            log_offset,
            extents,
        };
        self.entry(at, kind)
    }

    /// Another name of a file.
    pub fn link(self, at: &str, to: &str) -> Self {
        self.entry(at, EntryKind::HardLink { to: path(to) })
    }

    /// A symbolic link.
    pub fn symlink(self, at: &str, target: &str) -> Self {
        let target = target.as_bytes().to_vec();
        self.entry(at, EntryKind::Symlink { target })
    }

    fn manifest(&self, dataset: DatasetId, slot: Slot) -> Manifest {
        Manifest {
            dataset,
            slot,
            epoch: Epoch(1),
            root_mtime: (1_700_000_000, 0),
            entries: self.entries.clone(),
            log_bytes: self.log.len() as u64,
        }
    }
}

/// The record of a manifest, and what a seal says of it.
pub fn encode(manifest: &Manifest) -> (Vec<u8>, PartSummary) {
    let bytes = envelope::seal(Kind::Manifest, manifest);
    let summary = PartSummary {
        log_bytes: manifest.log_bytes,
        files: manifest.files(),
        manifest_crc: manifest_crc(&bytes),
    };
    (bytes, summary)
}

/// The manifest of a tree on this node; its bytes are nobody's concern here.
pub fn scan(tree: &Path, dataset: DatasetId, slot: Slot) -> std::io::Result<Manifest> {
    let mut entries = Vec::new();
    let mut log_bytes = 0;
    let mut todo = vec![tree.to_owned()];
    while let Some(directory) = todo.pop() {
        for found in std::fs::read_dir(&directory)? {
            let found = found?.path();
            let stat = std::fs::symlink_metadata(&found)?;
            let below = found.strip_prefix(tree).map_err(std::io::Error::other)?;
            let below = below.as_os_str().as_encoded_bytes();
            let kind = if stat.is_dir() {
                todo.push(found.clone());
                EntryKind::Directory
            } else if stat.is_symlink() {
                let target = std::fs::read_link(&found)?;
                EntryKind::Symlink {
                    target: target.into_os_string().into_encoded_bytes(),
                }
            } else if stat.file_type().is_fifo() {
                EntryKind::Node(Node::Fifo)
            } else {
                let (size, log_offset) = (stat.len(), log_bytes);
                log_bytes += size;
                let whole = DataExtent {
                    offset: 0,
                    len: size,
                };
                EntryKind::File {
                    size,
                    log_offset,
                    extents: Vec::from_iter((size > 0).then_some(whole)),
                }
            };
            entries.push(Entry {
                path: RelPath::new(below).map_err(std::io::Error::other)?,
                kind,
                mode: stat.mode() & 0o7777,
                uid: stat.uid(),
                gid: stat.gid(),
                mtime: (stat.mtime(), stat.mtime_nsec() as u32),
                xattrs: Vec::new(),
            });
        }
    }
    Ok(Manifest {
        dataset,
        slot,
        epoch: Epoch(1),
        root_mtime: (1, 0),
        entries,
        log_bytes,
    })
}

impl Elsewhere {
    /// The parts of slots 1, 2 and so on.
    pub fn new(parts: Vec<Part>) -> Self {
        let elsewhere = Self::default();
        elsewhere.table(|table| table.parts = parts);
        elsewhere
    }

    fn table<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on.
    pub fn bring(&self, how: How) {
        self.table(|table| table.how = how);
    }

    /// What was asked for so far.
    pub fn asked(&self) -> Vec<(Slot, Piece)> {
        self.table(|table| table.asked.clone())
    }

    /// What a seal says of slots 1, 2 and so on.
    pub fn summaries(&self, dataset: DatasetId) -> Vec<PartSummary> {
        self.table(|table| {
            let parts = (1u32..).map(Slot).zip(&table.parts);
            parts
                .map(|(slot, part)| encode(&part.manifest(dataset, slot)).1)
                .collect()
        })
    }

    /// The answer to a fetch; `None`: there is none.
    pub fn answer(
        &self,
        dataset: DatasetId,
        slot: Slot,
        piece: &Piece,
    ) -> Option<Result<Vec<u8>, Refusal>> {
        self.table(|table| {
            table.asked.push((slot, piece.clone()));
            let index = |slot: u32| (slot as usize).checked_sub(1);
            let part = |slot: u32| index(slot).and_then(|at| table.parts.get(at));
            let mut bytes = match (piece, part(slot.0)) {
                (_, None) => return Some(Err(Refusal::Missing)),
                (Piece::Manifest, Some(_)) if table.how == How::OtherManifests => {
                    let next = slot.0 % table.parts.len() as u32 + 1;
                    encode(&part(next)?.manifest(dataset, Slot(next))).0
                }
                (Piece::Manifest, Some(part)) => encode(&part.manifest(dataset, slot)).0,
                (Piece::Log { offset, len }, Some(part)) => {
                    let from = usize::try_from(*offset).ok()?;
                    match part.log.get(from..from + *len as usize) {
                        Some(bytes) => bytes.to_vec(),
                        None => return Some(Err(Refusal::Failed)),
                    }
                }
            };
            match (table.how, piece) {
                (How::Never, _) => return None,
                (How::Refused(refusal), _) => return Some(Err(refusal)),
                (How::DamagedManifests, Piece::Manifest) => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }
                (How::Short, _) => bytes.truncate(bytes.len() - 1),
                (How::Long, _) => bytes.push(0),
                (How::Well | How::OtherManifests | How::DamagedManifests, _) => {}
            }
            Some(Ok(bytes))
        })
    }
}
