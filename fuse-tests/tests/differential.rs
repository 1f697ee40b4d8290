//! The same random operations on the mount and on a tmpfs: every result, every errno, every byte and,
//! at the end, the whole trees must be the same. Several users take turns, one of whom may do some
//! things only by a supplementary group.
//!
//! `SCRFS_SEED=s` replays one life, `SCRFS_SEEDS=n` runs n of them on each way to the bytes.
//! `SCRFS_LOOK=1` compares all attributes after each operation, to find the one that made a difference
//! which is seen only later.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, FcntlArg, FlockArg, OFlag, RenameFlags};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::Whence;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::leave_out;
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place};
use scrfs_mount::sys;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const OPERATIONS: u32 = 1500;
/// Few names, so that they meet.
const NAMES: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/d", "d/e"];

/// One operation, with everything that was drawn for it.
#[derive(Clone, Debug)]
enum Op {
    Open(&'static str, i32, u32, usize),
    Close(usize),
    Write(usize, Vec<u8>),
    WriteAt(usize, i64, Vec<u8>),
    Read(usize, usize),
    ReadAt(usize, i64, usize),
    Seek(usize, i64, u8),
    Truncate(&'static str, i64),
    TruncateOpen(usize, i64),
    Allocate(usize, u8, i64, i64),
    CopyRange(usize, i64, usize, i64, usize),
    MapWrite(usize, Vec<u8>),
    Sync(usize),
    Flock(usize, u8),
    Lock(usize, u8, i64, i64),
    Mkdir(&'static str, u32),
    Rmdir(&'static str),
    Unlink(&'static str),
    Rename(&'static str, &'static str, u8),
    Link(&'static str, &'static str),
    Symlink(&'static str, &'static str),
    ReadLink(&'static str),
    Node(&'static str, u8, u32),
    Chmod(&'static str, u32),
    Chown(&'static str, u32, u32),
    Times(&'static str, i64, i64),
    SetXattr(&'static str, u8, Vec<u8>, i32),
    GetXattr(&'static str, u8),
    RemoveXattr(&'static str, u8),
    ListXattrs(&'static str),
    Stat(&'static str),
    List(&'static str),
}

const HANDLES: usize = 4;

/// Who does it: user, group, supplementary groups.
type Person = (u32, u32, &'static [u32]);
const ROOT: Person = (0, 0, &[]);
/// Root is drawn by half.
const OTHERS: [Person; 3] = [(1, 1, &[]), (2, 2, &[1]), (1, 2, &[0, 2])];

/// Does it as somebody else would; only this thread changes.
fn done_by<T>((uid, gid, groups): Person, work: impl FnOnce() -> T) -> T {
    become_effective(gid, uid, groups);
    let result = work();
    become_effective(0, 0, &[]);
    result
}

#[expect(unsafe_code, reason = "libraries change all threads at once")]
fn become_effective(gid: u32, uid: u32, groups: &[u32]) {
    const KEEP: u32 = u32::MAX;
    // SAFETY: numbers, and an array that outlives the call; each call changes this thread alone.
    let results = unsafe {
        [
            // Back to root first, who may change the others.
            libc::syscall(libc::SYS_setresuid, KEEP, 0, KEEP),
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP),
            libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP),
        ]
    };
    assert_eq!(results, [0; 4], "{}", Errno::last());
}

/// The next operation, on a handle that is open rather than not.
fn draw(random: &mut StdRng, open: &[usize]) -> Op {
    let mut name = || NAMES[random.random_range(0..NAMES.len())];
    let (one, other) = (name(), name());
    let mut handle = || match open.len() {
        0 => random.random_range(0..HANDLES),
        known => open[random.random_range(0..known)],
    };
    let (h, g) = (handle(), handle());
    let at = random.random_range(0..200_000);
    let length = random.random_range(0..40_000);
    let byte: u8 = random.random_range(0..4);
    let mode = random.random_range(0..0o10000) | [0o700, 0][usize::from(byte == 0)];
    let bytes = vec![random.random(); random.random_range(0..20_000)];
    match random.random_range(0..48) {
        0..=7 => {
            let access = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR];
            let mut flags = access[random.random_range(0..3)] | libc::O_NONBLOCK;
            for (flag, percent) in [
                (libc::O_CREAT, 70),
                (libc::O_EXCL, 15),
                (libc::O_TRUNC, 15),
                (libc::O_APPEND, 15),
                (libc::O_NOFOLLOW, 20),
                (libc::O_DIRECTORY, 5),
            ] {
                if random.random_range(0..100) < percent {
                    flags |= flag;
                }
            }
            Op::Open(one, flags, mode & 0o777, at as usize % HANDLES)
        }
        8 => Op::Close(h),
        9..=11 => Op::Write(h, bytes),
        12..=13 => Op::WriteAt(h, at, bytes),
        14 => Op::Read(h, length as usize),
        15..=16 => Op::ReadAt(h, at, length as usize),
        17..=18 => Op::Seek(h, at, random.random_range(0..5)),
        19 => Op::Truncate(one, at),
        20 => Op::TruncateOpen(h, at),
        21..=22 => Op::Allocate(h, byte, at, i64::from(length)),
        23 => Op::CopyRange(h, at, g, i64::from(length), length as usize),
        24 => Op::MapWrite(h, bytes),
        25 => Op::Sync(h),
        26 => Op::Flock(h, byte % 3),
        27 => Op::Lock(h, byte % 3, at, i64::from(length)),
        28 => Op::Mkdir(one, mode),
        29 => Op::Rmdir(one),
        30 => Op::Unlink(one),
        31..=32 => Op::Rename(one, other, byte % 3),
        33 => Op::Link(one, other),
        34 => Op::Symlink(one, other),
        35 => Op::ReadLink(one),
        36 => Op::Node(one, byte, mode & 0o777),
        // Set-group-id without the group's execute is no right, and who clears it differs.
        37 if mode & 0o2000 != 0 => Op::Chmod(one, mode | 0o010),
        37 => Op::Chmod(one, mode),
        38 => Op::Chown(one, at as u32 % 3, length as u32 % 3),
        39 => Op::Times(one, at, i64::from(length)),
        40 => Op::SetXattr(
            one,
            byte,
            bytes[..bytes.len().min(200)].to_vec(),
            i32::from(byte % 3),
        ),
        41 => match byte {
            0 => Op::RemoveXattr(one, byte),
            1 => Op::ListXattrs(one),
            _ => Op::GetXattr(one, byte),
        },
        42 => Op::List(one),
        43 => Op::Unlink(one),
        44..=46 => Op::Mkdir(["d", "e", one][byte as usize % 3], mode),
        _ => Op::Stat(one),
    }
}

/// One of the two places, with what is open there.
struct Side {
    root: PathBuf,
    handles: Vec<Option<File>>,
}

type Outcome = Result<Vec<u8>, Errno>;

fn number(value: impl TryInto<i64>) -> Outcome {
    Ok(value.try_into().unwrap_or(-1).to_le_bytes().to_vec())
}

fn io<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

impl Side {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            handles: (0..HANDLES).map(|_| None).collect(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn handle(&self, handle: usize) -> Result<&File, Errno> {
        self.handles[handle].as_ref().ok_or(Errno::EBADF)
    }

    fn at(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        Ok(nix::fcntl::open(&self.path(name), flags, Mode::empty())?.into())
    }

    fn run(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open(name, flags, mode, handle) => {
                self.handles[*handle] = None;
                let flags = OFlag::from_bits_retain(*flags);
                let mode = Mode::from_bits_truncate(*mode);
                let opened = nix::fcntl::open(&self.path(name), flags, mode)?;
                self.handles[*handle] = Some(opened.into());
                Ok(Vec::new())
            }
            Op::Close(handle) => {
                self.handles[*handle] = None;
                Ok(Vec::new())
            }
            Op::Write(handle, bytes) => number(nix::unistd::write(self.handle(*handle)?, bytes)?),
            Op::WriteAt(handle, at, bytes) => {
                number(nix::sys::uio::pwrite(self.handle(*handle)?, bytes, *at)?)
            }
            Op::Read(handle, length) => {
                let mut bytes = vec![0; *length];
                let read = nix::unistd::read(self.handle(*handle)?, &mut bytes)?;
                bytes.truncate(read);
                Ok(bytes)
            }
            Op::ReadAt(handle, at, length) => {
                let mut bytes = vec![0; *length];
                let read = nix::sys::uio::pread(self.handle(*handle)?, &mut bytes, *at)?;
                bytes.truncate(read);
                Ok(bytes)
            }
            Op::Seek(handle, at, whence) => {
                let whence = [
                    Whence::SeekSet,
                    Whence::SeekCur,
                    Whence::SeekEnd,
                    Whence::SeekData,
                    Whence::SeekHole,
                ][usize::from(*whence)];
                number(nix::unistd::lseek(self.handle(*handle)?, *at, whence)?)
            }
            Op::Truncate(name, length) => {
                nix::unistd::truncate(&self.path(name), *length)?;
                Ok(Vec::new())
            }
            Op::TruncateOpen(handle, length) => {
                nix::unistd::ftruncate(self.handle(*handle)?, *length)?;
                Ok(Vec::new())
            }
            Op::Allocate(handle, kind, at, length) => {
                let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let flags = [
                    FallocateFlags::empty(),
                    keep,
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep,
                    FallocateFlags::FALLOC_FL_ZERO_RANGE,
                ][usize::from(*kind)];
                nix::fcntl::fallocate(self.handle(*handle)?, flags, *at, *length)?;
                Ok(Vec::new())
            }
            Op::CopyRange(from, from_at, to, to_at, length) => {
                let (from, to) = (self.handle(*from)?, self.handle(*to)?);
                let (mut from_at, mut to_at) = (*from_at, *to_at);
                let copied = nix::fcntl::copy_file_range(
                    from,
                    Some(&mut from_at),
                    to,
                    Some(&mut to_at),
                    *length,
                )?;
                number(copied)
            }
            Op::MapWrite(handle, bytes) => {
                let file = self.handle(*handle)?;
                let length = io(file.metadata())?.len() as usize;
                if length == 0 {
                    return Ok(Vec::new());
                }
                let mut map = io(sys::map_shared(file))?;
                let length = bytes.len().min(length);
                map[..length].copy_from_slice(&bytes[..length]);
                Ok(Vec::new())
            }
            Op::Sync(handle) => {
                nix::unistd::fsync(self.handle(*handle)?)?;
                Ok(Vec::new())
            }
            Op::Flock(handle, kind) => {
                let kind = [
                    FlockArg::Unlock,
                    FlockArg::LockSharedNonblock,
                    FlockArg::LockExclusiveNonblock,
                ][usize::from(*kind)];
                let file = self.handle(*handle)?.as_raw_fd();
                #[expect(deprecated, reason = "its successor unlocks when it is dropped")]
                nix::fcntl::flock(file, kind)?;
                Ok(Vec::new())
            }
            Op::Lock(handle, kind, at, length) => {
                let kind = [libc::F_UNLCK, libc::F_RDLCK, libc::F_WRLCK][usize::from(*kind)];
                let lock = libc::flock {
                    l_type: kind as i16,
                    l_whence: libc::SEEK_SET as i16,
                    l_start: *at,
                    l_len: *length,
                    l_pid: 0,
                };
                nix::fcntl::fcntl(self.handle(*handle)?, FcntlArg::F_OFD_SETLK(&lock))?;
                Ok(Vec::new())
            }
            Op::Mkdir(name, mode) => {
                let mode = Mode::from_bits_truncate(*mode);
                nix::unistd::mkdir(&self.path(name), mode)?;
                Ok(Vec::new())
            }
            Op::Rmdir(name) => io(fs::remove_dir(self.path(name))).map(|()| Vec::new()),
            Op::Unlink(name) => {
                nix::unistd::unlink(&self.path(name))?;
                Ok(Vec::new())
            }
            Op::Rename(from, to, kind) => {
                let flags = [
                    RenameFlags::empty(),
                    RenameFlags::RENAME_NOREPLACE,
                    RenameFlags::RENAME_EXCHANGE,
                ][usize::from(*kind)];
                let here = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(here, &self.path(from), here, &self.path(to), flags)?;
                Ok(Vec::new())
            }
            Op::Link(from, to) => {
                io(fs::hard_link(self.path(from), self.path(to))).map(|()| vec![])
            }
            Op::Symlink(target, name) => {
                nix::unistd::symlinkat(*target, nix::fcntl::AT_FDCWD, &self.path(name))?;
                Ok(Vec::new())
            }
            Op::ReadLink(name) => {
                let said = nix::fcntl::readlink(&self.path(name))?;
                Ok(said.as_bytes().to_vec())
            }
            Op::Node(name, kind, mode) => {
                let (kind, device) = [
                    (SFlag::S_IFREG, 0),
                    (SFlag::S_IFIFO, 0),
                    (SFlag::S_IFSOCK, 0),
                    (SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3)),
                ][usize::from(*kind)];
                let mode = Mode::from_bits_truncate(*mode);
                nix::sys::stat::mknod(&self.path(name), kind, mode, device)?;
                Ok(Vec::new())
            }
            Op::Chmod(name, mode) => {
                let mode = Mode::from_bits_truncate(*mode);
                let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
                let here = nix::fcntl::AT_FDCWD;
                nix::sys::stat::fchmodat(here, &self.path(name), mode, follow)?;
                Ok(Vec::new())
            }
            Op::Chown(name, uid, gid) => {
                let (uid, gid) = ((*uid).into(), (*gid).into());
                let here = nix::fcntl::AT_FDCWD;
                let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                nix::unistd::fchownat(here, &self.path(name), Some(uid), Some(gid), flags)?;
                Ok(Vec::new())
            }
            Op::Times(name, seconds, nanos) => {
                let time = TimeSpec::new(*seconds, *nanos);
                let flags = UtimensatFlags::NoFollowSymlink;
                let here = nix::fcntl::AT_FDCWD;
                nix::sys::stat::utimensat(here, &self.path(name), &time, &time, flags)?;
                let found = io(fs::symlink_metadata(self.path(name)))?;
                Ok(format!("{}.{}", found.mtime(), found.mtime_nsec()).into_bytes())
            }
            Op::SetXattr(name, which, value, flags) => {
                let at = self.at(name)?;
                let attribute = format!("user.x{which}");
                sys::set_xattr(at.as_fd(), attribute.as_ref(), value, *flags)?;
                Ok(Vec::new())
            }
            Op::GetXattr(name, which) => {
                let attribute = format!("user.x{which}");
                sys::get_xattr(self.at(name)?.as_fd(), attribute.as_ref())
            }
            Op::RemoveXattr(name, which) => {
                let attribute = format!("user.x{which}");
                sys::remove_xattr(self.at(name)?.as_fd(), attribute.as_ref())?;
                Ok(Vec::new())
            }
            Op::ListXattrs(name) => {
                let listed = sys::list_xattrs(self.at(name)?.as_fd())?;
                let mut names: Vec<_> = listed.split(|byte| *byte == 0).collect();
                names.sort_unstable();
                Ok(names.join(&b' '))
            }
            Op::Stat(name) => Ok(describe(&self.path(name))?.into_bytes()),
            Op::List(name) => {
                let mut names = Vec::new();
                for entry in io(fs::read_dir(self.path(name)))? {
                    let entry = io(entry)?;
                    let kind = io(entry.file_type())?;
                    names.push(format!("{:?} {kind:?}", entry.file_name()));
                }
                names.sort();
                Ok(names.join("\n").into_bytes())
            }
        }
    }
}

/// What is there, as far as it must be the same.
fn describe(path: &Path) -> Result<String, Errno> {
    let found = io(fs::symlink_metadata(path))?;
    let size = if found.is_dir() { 0 } else { found.size() };
    let (mode, links) = (found.mode(), found.nlink());
    let (uid, gid, device) = (found.uid(), found.gid(), found.rdev());
    Ok(format!("{mode:o} {links} {uid} {gid} {size} {device}"))
}

type Tree = BTreeMap<PathBuf, (String, Option<Vec<u8>>)>;

fn compare(expected: &Tree, found: &Tree, words: &str) {
    for (path, wanted) in expected {
        let (place, is) = (path.display(), found.get(path));
        let equal = is.is_some_and(|is| is.1 == wanted.1);
        let (wanted, is) = (&wanted.0, is.map(|is| &is.0));
        assert!(
            equal && is == Some(wanted),
            "{words}: {place} is {is:?}, not {wanted}, its bytes are {}",
            if equal { "the same" } else { "others" }
        );
    }
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{words}");
}

fn tree(root: &Path) -> Tree {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let content = kind.is_file().then(|| fs::read(&path).unwrap());
            if kind.is_dir() {
                directories.push(path.clone());
            }
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, (describe(&path).unwrap(), content));
        }
    }
    found
}

/// The handle whose file has bits of set-user-id or set-group-id that `op` may take.
fn takes_id_bits(raw: &Side, op: &Op) -> Option<usize> {
    let handle = match op {
        Op::Write(handle, _)
        | Op::WriteAt(handle, ..)
        | Op::TruncateOpen(handle, _)
        | Op::Allocate(handle, ..)
        | Op::CopyRange(_, _, handle, ..) => *handle,
        _ => return None,
    };
    let found = raw.handle(handle).ok()?.metadata().ok()?;
    (found.mode() & 0o6000 != 0).then_some(handle)
}

/// Whether the two must not be compared: what scrfs leaves out, with the reason in docs/semantics.md.
fn is_left_out(raw: &Side, op: &Op, person: Person, path_name: &str) -> bool {
    let is_directory = |name: &str| {
        raw.path(name)
            .symlink_metadata()
            .is_ok_and(|it| it.is_dir())
    };
    let is_device = |name: &str| {
        let followed = raw.path(name).metadata();
        followed.is_ok_and(|it| it.file_type().is_char_device())
    };
    match op {
        // What root writes by passthrough clears these bits, as what others write does.
        _ if person == ROOT && path_name == "passthrough" && takes_id_bits(raw, op).is_some() => {
            true
        }
        // Places in directories are each filesystem's own.
        Op::Seek(handle, ..) => {
            let found = raw
                .handle(*handle)
                .ok()
                .and_then(|file| file.metadata().ok());
            found.is_some_and(|it| it.is_dir())
        }
        // It is mounted with `nodev`.
        Op::Open(name, ..) => is_device(name),
        // A directory, which all nodes have, is not exchanged for a file, which one has.
        Op::Rename(from, to, 2) => is_directory(from) != is_directory(to),
        _ => false,
    }
}

fn live(place: &Place, seed: u64, path_name: &str) {
    println!("SCRFS_SEED={seed}, {path_name}");
    let mut random = StdRng::seed_from_u64(seed);
    let open = place.mnt().join(format!("life.{seed}.tmp"));
    fs::create_dir(&open).unwrap();
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    for top in [tmpfs.path(), &open] {
        fs::set_permissions(top, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut raw = Side::new(tmpfs.path().to_owned());
    let mut ours = Side::new(open.clone());
    let mut history = Vec::new();
    let looks = number_of("SCRFS_LOOK").is_some();
    let mut granted = 0;
    for step in 0..OPERATIONS {
        let open: Vec<_> = (0..HANDLES)
            .filter(|&handle| raw.handles[handle].is_some())
            .collect();
        let op = draw(&mut random, &open);
        let person = match random.random_range(0..2 * OTHERS.len()) {
            other if other < OTHERS.len() => OTHERS[other],
            _ => ROOT,
        };
        if is_left_out(&raw, &op, person, path_name) {
            continue;
        }
        let without_bits = takes_id_bits(&raw, &op);
        let expected = done_by(person, || raw.run(&op));
        let found = done_by(person, || ours.run(&op));
        if let Some(Ok(file)) = without_bits.map(|handle| ours.handle(handle)) {
            // The kernel believes them to be there until somebody looks, a second at most.
            file.metadata().unwrap();
        }
        granted += u32::from(expected.is_ok());
        let words = format!("{person:?} {op:?}");
        history.push(format!(
            "{:.100} -> {:?}",
            words,
            expected.as_ref().map(Vec::len)
        ));
        assert!(
            expected == found,
            "SCRFS_SEED={seed}, {path_name}, step {step}: {words:.200}\ntmpfs {:?}\nscrfs {:?}\nafter\n{}",
            expected.map(|it| String::from_utf8_lossy(&it[..it.len().min(80)]).into_owned()),
            found.map(|it| String::from_utf8_lossy(&it[..it.len().min(80)]).into_owned()),
            history[history.len().saturating_sub(40)..].join("\n")
        );
        for name in NAMES.iter().filter(|_| looks) {
            let (expected, found) = (describe(&raw.path(name)), describe(&ours.path(name)));
            assert_eq!(
                expected, found,
                "SCRFS_SEED={seed}, {path_name}: {name} after {words:.200}"
            );
        }
    }
    assert!(
        granted > OPERATIONS / 10,
        "only {granted} operations did something"
    );
    let expected = tree(&raw.root);
    let words = format!("SCRFS_SEED={seed}, {path_name}, at the end");
    compare(&expected, &tree(&ours.root), &words);
    // And what was seen is what is sealed.
    drop(ours);
    let sealed = place.mnt().join(format!("life.{seed}"));
    fs::rename(&open, &sealed).unwrap();
    compare(&expected, &tree(&sealed), &format!("{words}, sealed"));
}

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_a_program_does_is_as_on_tmpfs() {
    if !nix::unistd::geteuid().is_root() {
        leave_out("only root may become other users");
        return;
    }
    let seeds: Vec<u64> = match number_of("SCRFS_SEED") {
        Some(seed) => vec![seed],
        None => (0..number_of("SCRFS_SEEDS").unwrap_or(40))
            .map(|_| rand::random())
            .collect(),
    };
    for path in DATA_PATHS {
        let Some(place) = Place::on_path(512 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        for &seed in &seeds {
            live(&place, seed, path.0);
        }
        // The daemon kept nothing of the lives that are over.
        let daemon = place.daemon().unwrap();
        let opened = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
        println!("{opened} descriptors, {} lives", seeds.len());
        assert!(
            opened < 100 + 20 * seeds.len(),
            "{opened} descriptors are open"
        );
    }
}
