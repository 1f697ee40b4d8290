//! For tests: trees of every kind of thing, a comparer that shares no code with what it judges, and
//! datasets that are sealed.

#![allow(clippy::unwrap_used)]

use super::records::{encode_manifest, store_manifest};
use super::scan_part;
use nix::sys::stat::{Mode, SFlag};
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs::config::Class;
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use scrfs::name::Name;
use scrfs::redundancy::Scheme;
use scrfs::store::posix::PosixStore;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

pub(crate) const UNIT_BYTES: u32 = 8192;
pub(crate) const EPOCH: Epoch = Epoch(3);

/// Everything about one name.
#[derive(PartialEq, Eq, Debug, Clone)]
pub(crate) struct Described {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    /// Sockets, devices and links too.
    mtime: (i64, i64),
    content: Vec<u8>,
    /// First bytes and lengths of data, as the kernel tells them.
    data: Vec<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first of the names of the same inode.
    first_name: Option<PathBuf>,
}

/// Everything below `root`, by path.
pub(crate) fn describe(root: &Path) -> BTreeMap<PathBuf, Described> {
    let mut all = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    describe_below(root, root, &mut all);
    // The map is sorted: the first name is the same whatever order the disk lists them in.
    for (path, described) in &mut all {
        let found = fs::symlink_metadata(root.join(path)).unwrap();
        if found.nlink() > 1 && !found.is_dir() {
            let first = inodes.entry(found.ino()).or_insert_with(|| path.clone());
            described.first_name = Some(first.clone());
        }
    }
    all
}

fn describe_below(root: &Path, directory: &Path, all: &mut BTreeMap<PathBuf, Described>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let (name, content, data) = if kind.is_file() {
            ("file", fs::read(&path).unwrap(), data_of(&path))
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            ("link", target.as_os_str().as_bytes().to_vec(), vec![])
        } else if kind.is_dir() {
            describe_below(root, &path, all);
            ("directory", vec![], vec![])
        } else if kind.is_fifo() {
            ("fifo", vec![], vec![])
        } else if kind.is_socket() {
            ("socket", vec![], vec![])
        } else {
            let number = found.rdev().to_le_bytes().to_vec();
            (
                ["character", "block"][usize::from(kind.is_block_device())],
                number,
                vec![],
            )
        };
        let xattrs = if kind.is_file() || kind.is_dir() {
            super::xattr::read_all(File::open(&path).unwrap()).unwrap()
        } else {
            vec![]
        };
        all.insert(
            path.strip_prefix(root).unwrap().to_owned(),
            Described {
                kind: name,
                mode: found.mode(),
                owner: (found.uid(), found.gid()),
                mtime: (found.mtime(), found.mtime_nsec()),
                content,
                data,
                xattrs,
                first_name: None,
            },
        );
    }
}

fn data_of(path: &Path) -> Vec<(i64, i64)> {
    use nix::unistd::{Whence, lseek};
    let file = File::open(path).unwrap();
    let mut data = vec![];
    let mut at = 0;
    while let Ok(from) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, from, Whence::SeekHole).unwrap();
        data.push((from, at - from));
    }
    data
}

/// Names that programs really use, and some that they do not.
const NAMES: [&[u8]; 8] = [
    b"rank.%d",
    b"a b",
    b"new\nline",
    b"\xff\xfe not utf8",
    b"-rf",
    b"*?[x]",
    b".hidden",
    b"'\"\\$HOME",
];

/// A tree of every kind of thing, the same for the same seed. `tag` keeps the file names of several
/// slots apart; directories are shared.
pub(crate) fn random_tree(root: &Path, tag: u32, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    fs::create_dir_all(root).unwrap();
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = vec![];
    for depth in 0..3 {
        let below = directories[rng.random_range(0..directories.len())].join(format!("dir{depth}"));
        fs::create_dir_all(&below).unwrap();
        directories.push(below);
    }
    // Whatever else there is: some data.
    fs::write(root.join(format!("data.{tag}")), vec![tag as u8; 100]).unwrap();
    for index in 0..rng.random_range(6..20u32) {
        let mut name = NAMES[rng.random_range(0..NAMES.len())].to_vec();
        name.extend_from_slice(format!(".{index}.{tag}").as_bytes());
        let directory = &directories[rng.random_range(0..directories.len())];
        let path = directory.join(OsStr::from_bytes(&name));
        match rng.random_range(0..12) {
            0 => symlink("../nowhere/\n", &path).unwrap(),
            1 => nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o640)).unwrap(),
            2 => {
                let mode = Mode::from_bits_truncate(0o600);
                // Only root makes devices.
                let kinds = if nix::unistd::geteuid().is_root() {
                    3
                } else {
                    1
                };
                let (kind, number) = [
                    (SFlag::S_IFSOCK, 0),
                    (SFlag::S_IFCHR, nix::sys::stat::makedev(4000, 3)),
                    (SFlag::S_IFBLK, nix::sys::stat::makedev(7, 70_000)),
                ][rng.random_range(0..kinds)];
                nix::sys::stat::mknod(&path, kind, mode, number).unwrap();
            }
            3 | 4 if !files.is_empty() => {
                fs::hard_link(&files[rng.random_range(0..files.len())], &path).unwrap();
            }
            5 => {
                fs::create_dir(&path).unwrap();
                set_xattr(&path, "user.of-a-directory", b"v");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
            }
            6 => {
                sparse_file(&path, &mut rng);
                files.push(path.clone());
            }
            7 => {
                File::create(&path).unwrap();
                files.push(path.clone());
            }
            _ => {
                let mut bytes = vec![0; rng.random_range(1..40_000)];
                rng.fill(&mut bytes[..]);
                fs::write(&path, &bytes).unwrap();
                let mode = [0o644, 0o600, 0o4755, 0o400][rng.random_range(0..4)];
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                if rng.random() {
                    set_xattr(&path, "user.note", b"\0binary\xff");
                }
                files.push(path.clone());
            }
        }
        if rng.random() && fs::symlink_metadata(&path).unwrap().is_file() {
            nix::unistd::chown(&path, Some(1234.into()), Some(5678.into())).ok();
        }
    }
    age(root, &mut rng);
}

fn sparse_file(path: &Path, rng: &mut StdRng) {
    let file = File::create(path).unwrap();
    for page in 0..rng.random_range(0..6u64) {
        let mut bytes = vec![0; rng.random_range(1..9000)];
        rng.fill(&mut bytes[..]);
        file.write_all_at(&bytes, page * 65_536 + rng.random_range(0..3) * 4096)
            .unwrap();
    }
    file.set_len(rng.random_range(500_000..600_000)).unwrap();
}

/// A filesystem may have none.
fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    super::xattr::write(File::open(path).unwrap(), name.as_bytes(), value).ok();
}

/// Gives everything a time of its own, directories last.
fn age(directory: &Path, rng: &mut StdRng) {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    for path in names {
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            age(&path, rng);
        }
        set_mtime(
            &path,
            rng.random_range(0..2_000_000_000),
            rng.random_range(0..1_000_000_000),
        );
    }
    set_mtime(directory, rng.random_range(0..2_000_000_000), 7);
}

pub(crate) fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let mtime = TimeSpec::new(seconds, nanos);
    let how = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    let at = nix::fcntl::AT_FDCWD;
    nix::sys::stat::utimensat(at, path, &TimeSpec::UTIME_OMIT, &mtime, how).unwrap();
}

/// A sealed dataset whose parts are the trees at `cache.tree(id, 0..slots)`: manifests and record are
/// stored.
pub(crate) fn sealed(cache: &CachePaths, id: u64, name: &str, slots: u32) -> DatasetRecord {
    let id = DatasetId(id);
    let store = PosixStore::new();
    let parts = (0..slots)
        .map(|slot| {
            let tree = cache.tree(id, Slot(slot));
            let manifest = scan_part(&tree, id, Slot(slot), EPOCH).unwrap();
            let summary = store_manifest(&store, cache, &manifest, Keep::Own).unwrap();
            assert_eq!(summary, encode_manifest(&manifest).1);
            summary
        })
        .collect();
    let scheme = if slots == 1 {
        Scheme::Single
    } else {
        Scheme::Xor
    };
    DatasetRecord {
        id,
        name: Name::new(name.as_bytes()).unwrap(),
        committed_from: None,
        checkpoint: None,
        class: Class::Checkpoint,
        phase: Phase::Sealed,
        epoch: EPOCH,
        created: 1,
        sealed: Some(2),
        protected: None,
        flushing: false,
        flushed: None,
        seal: Some(Seal {
            epoch: EPOCH,
            scheme,
            chunk_bytes: 65_536,
            unit_bytes: UNIT_BYTES,
            sets: vec![(0..slots).map(Slot).collect()],
            parts,
        }),
        error: None,
        mode: 0o551,
        uid: nix::unistd::Uid::effective().as_raw(),
        gid: nix::unistd::Gid::effective().as_raw(),
    }
}
