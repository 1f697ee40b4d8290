//! A filesystem as a table of inodes: read from a directory, changed step by step, and made again as a directory.
//!
//! Directories name inodes by their place in the table, so that a change says the same whatever other
//! changes came to pass: what was put into a directory is there when the directory has its name, early or
//! late. What no name leads to is not made.

use crate::part::xattr;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An inode, by its place in the table.
pub(super) type Id = usize;
/// The top directory.
pub(super) const ROOT: Id = 0;

/// What a name may lead to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Directory(BTreeMap<OsString, Id>),
    /// Its length, and what was written where, in this order; the rest are holes.
    File(u64, Vec<(u64, Arc<[u8]>)>),
    Link(PathBuf),
    Pipe,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// In the directory that was traced.
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    /// What it was set to; `None` when writing moved it.
    pub(super) mtime: Option<(i64, i64)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What happens to one inode at once.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A name of a directory leads there now, or nowhere.
    Name(OsString, Option<Id>),
    Length(u64),
    /// At least so long: what was appended, without its bytes.
    Reaches(u64),
    Bytes(u64, Arc<[u8]>),
    Mode(u32),
    Time(i64, i64),
    Attribute(Vec<u8>, Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) inodes: Vec<Inode>,
}

impl Inode {
    /// As it is found; nothing that is in it.
    pub(super) fn of(path: &Path) -> Self {
        let found = fs::symlink_metadata(path).unwrap();
        let kind = found.file_type();
        let kind = if kind.is_dir() {
            Kind::Directory(BTreeMap::new())
        } else if kind.is_symlink() {
            Kind::Link(fs::read_link(path).unwrap())
        } else if kind.is_fifo() {
            Kind::Pipe
        } else {
            assert!(kind.is_file(), "{path:?}");
            Kind::File(0, Vec::new())
        };
        Self {
            number: found.ino(),
            kind,
            mode: found.mode() & 0o7777,
            mtime: None,
            xattrs: BTreeMap::new(),
        }
    }
}

impl Model {
    /// What lies at `path` now, all of it.
    pub(super) fn read(path: &Path) -> Self {
        let mut model = Self { inodes: Vec::new() };
        model.read_below(path, &mut BTreeMap::new());
        model
    }

    fn read_below(&mut self, path: &Path, known: &mut BTreeMap<u64, Id>) -> Id {
        let found = fs::symlink_metadata(path).unwrap();
        if let Some(&id) = known.get(&found.ino()) {
            return id;
        }
        let id = self.inodes.len();
        known.insert(found.ino(), id);
        let mut inode = Inode::of(path);
        inode.mtime = Some((found.mtime(), found.mtime_nsec()));
        self.inodes.push(inode.clone());
        match &mut inode.kind {
            Kind::Directory(names) => {
                for entry in fs::read_dir(path).unwrap() {
                    let entry = entry.unwrap();
                    let below = self.read_below(&entry.path(), known);
                    names.insert(entry.file_name(), below);
                }
            }
            Kind::File(length, data) => (*length, *data) = (found.len(), data_of(path)),
            Kind::Link(_) | Kind::Pipe => {}
        }
        if found.is_dir() || found.is_file() {
            let all = xattr::read_all(File::open(path).unwrap()).unwrap();
            inode.xattrs = all.into_iter().collect();
        }
        self.inodes[id] = inode;
        id
    }

    pub(super) fn names(&self, directory: Id) -> Option<&BTreeMap<OsString, Id>> {
        match &self.inodes.get(directory)?.kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(super) fn apply(&mut self, id: Id, change: &Change) {
        let inode = &mut self.inodes[id];
        if !matches!(change, Change::Mode(_) | Change::Attribute(..)) {
            inode.mtime = None;
        }
        match (change, &mut inode.kind) {
            (Change::Name(name, Some(to)), Kind::Directory(names)) => {
                names.insert(name.clone(), *to);
            }
            (Change::Name(name, None), Kind::Directory(names)) => {
                names.remove(name);
            }
            (Change::Length(new), Kind::File(length, data)) => {
                *length = *new;
                data.retain(|(offset, _)| *offset < *new);
                for (offset, bytes) in data {
                    let left = usize::try_from(*new - *offset).unwrap().min(bytes.len());
                    if left < bytes.len() {
                        *bytes = bytes[..left].into();
                    }
                }
            }
            (Change::Reaches(new), Kind::File(length, _)) => *length = (*length).max(*new),
            (Change::Bytes(offset, bytes), Kind::File(length, data)) => {
                *length = (*length).max(offset + bytes.len() as u64);
                data.push((*offset, Arc::clone(bytes)));
            }
            (Change::Mode(mode), _) => inode.mode = *mode,
            (Change::Time(seconds, nanos), _) => inode.mtime = Some((*seconds, *nanos)),
            (Change::Attribute(name, value), _) => {
                inode.xattrs.insert(name.clone(), value.clone());
            }
            (change, kind) => panic!("{change:?} of {kind:?}"),
        }
    }

    /// Every path, in order, parents first.
    pub(super) fn paths(&self) -> Vec<(PathBuf, Id)> {
        let mut all = vec![(PathBuf::new(), ROOT)];
        let mut at = 0;
        while let Some((path, id)) = all.get(at).cloned() {
            let names = self.names(id).into_iter().flatten();
            all.extend(names.map(|(name, to)| (path.join(name), *to)));
            at += 1;
            assert!(all.len() < 100_000, "a directory is in itself");
        }
        all
    }

    /// A path that leads to an inode, for people.
    pub(super) fn path_of(&self, id: Id) -> PathBuf {
        let all = self.paths();
        let found = all.into_iter().find(|(_, it)| *it == id);
        found.map_or_else(|| "(nowhere)".into(), |(path, _)| path)
    }

    /// The same for all that look the same.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, id) in self.paths() {
            let inode = &self.inodes[id];
            (path, id, inode.mode, inode.mtime, &inode.xattrs).hash(&mut hasher);
            match &inode.kind {
                Kind::Directory(_) => {}
                // Bytes that were written once are the same bytes.
                Kind::File(length, data) => {
                    length.hash(&mut hasher);
                    for (offset, bytes) in data {
                        (offset, Arc::as_ptr(bytes).addr(), bytes.len()).hash(&mut hasher);
                    }
                }
                other => other.hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    /// Where this differs from what was found, but for times that were not set.
    pub(super) fn differs_from(&self, found: &Self) -> Option<String> {
        let (ours, theirs) = (self.paths(), found.paths());
        let names = |all: &[(PathBuf, Id)]| all.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
        if names(&ours) != names(&theirs) {
            return Some(format!("{:?}\n{:?}", names(&ours), names(&theirs)));
        }
        ours.iter()
            .zip(&theirs)
            .find_map(|((path, one), (_, other))| {
                let (one, other) = (&self.inodes[*one], &found.inodes[*other]);
                let same = one.number == other.number
                    && one.mode == other.mode
                    && (one.mtime.is_none() || one.mtime == other.mtime)
                    && one.xattrs == other.xattrs
                    && match (&one.kind, &other.kind) {
                        (Kind::Directory(_), Kind::Directory(_)) => true,
                        (Kind::File(..), Kind::File(..)) => one.content() == other.content(),
                        (one, other) => one == other,
                    };
                (!same).then(|| format!("{path:?}: {one:?}\n{other:?}"))
            })
    }

    /// Makes it at `root`, which is not there. By number, the number each inode has now.
    pub(super) fn make(&self, root: &Path) -> BTreeMap<u64, u64> {
        let mut made: BTreeMap<Id, PathBuf> = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let all = self.paths();
        for (path, id) in &all {
            let inode = &self.inodes[*id];
            let path = root.join(path);
            if let Some(first) = made.get(id) {
                assert!(
                    self.names(*id).is_none(),
                    "a directory has two names: {path:?}"
                );
                fs::hard_link(first, &path).unwrap();
                continue;
            }
            match &inode.kind {
                Kind::Directory(_) => fs::create_dir(&path).unwrap(),
                Kind::File(length, data) => {
                    let file = File::create_new(&path).unwrap();
                    for (offset, bytes) in data {
                        file.write_all_at(bytes, *offset).unwrap();
                    }
                    file.set_len(*length).unwrap();
                    for (name, value) in &inode.xattrs {
                        xattr::write(&file, name, value).unwrap();
                    }
                }
                Kind::Link(target) => symlink(target, &path).unwrap(),
                Kind::Pipe => mknod(&path, SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap(),
            }
            numbers.insert(inode.number, fs::symlink_metadata(&path).unwrap().ino());
            made.insert(*id, path);
        }
        // What is in them first: it moves the times of directories, and may not be allowed later.
        for (path, id) in all.iter().rev() {
            self.finish(*id, &root.join(path));
        }
        numbers
    }

    fn finish(&self, id: Id, path: &Path) {
        let inode = &self.inodes[id];
        if let (Kind::Directory(_), false) = (&inode.kind, inode.xattrs.is_empty()) {
            let directory = File::open(path).unwrap();
            for (name, value) in &inode.xattrs {
                xattr::write(&directory, name, value).unwrap();
            }
        }
        if !matches!(inode.kind, Kind::Link(_)) {
            fs::set_permissions(path, Permissions::from_mode(inode.mode)).unwrap();
        }
        if let Some((seconds, nanos)) = inode.mtime {
            crate::part::testing::set_mtime(path, seconds, nanos);
        }
    }
}

impl Inode {
    fn content(&self) -> Vec<u8> {
        let Kind::File(length, data) = &self.kind else {
            return Vec::new();
        };
        let mut content = vec![0; usize::try_from(*length).unwrap()];
        for (offset, bytes) in data {
            let from = usize::try_from(*offset).unwrap();
            content[from..from + bytes.len()].copy_from_slice(bytes);
        }
        content
    }
}

/// What is not holes.
fn data_of(path: &Path) -> Vec<(u64, Arc<[u8]>)> {
    let file = File::open(path).unwrap();
    let (mut at, mut data) = (0, Vec::new());
    while let Ok(from) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, from, Whence::SeekHole).unwrap();
        let mut bytes = vec![0; usize::try_from(at - from).unwrap()];
        file.read_exact_at(&mut bytes, from.cast_unsigned())
            .unwrap();
        data.push((from.cast_unsigned(), bytes.into()));
    }
    data
}
