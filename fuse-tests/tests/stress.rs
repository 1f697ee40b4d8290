//! Many processes do everything at once in one open dataset while others are committed beside it;
//! afterwards every byte that anybody was told is written must be there, and none besides.
//!
//! How it is known: a file is made of blocks, each owned by one process. A block says in which inode,
//! where, by whom and in which turn it was written, all of it, so that bytes that went astray or are
//! torn are found wherever they are. Each process keeps a list of what it wrote last where.
//!
//! `SCRFS_STRESS_OPERATIONS` is how many operations each process does, `SCRFS_SEED` what they draw from.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, FallocateFlags, FcntlArg, Flock, FlockArg, OFlag, RenameFlags, renameat2,
};
use nix::sys::stat::Mode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs_fuse_tests::coordinator::Manners;
use scrfs_fuse_tests::mounted::{DATA_PATHS, Place};
use scrfs_mount::sys;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Processes at once.
const PROCESSES: u64 = 8;
/// Bytes of a block: several of different owners share a page.
const BLOCK: usize = 512;
/// Blocks of a file.
const BLOCKS: u64 = 12 * PROCESSES;
/// Files that always stay and are never cut: some written by calls, some through maps.
const KEPT: usize = 4;
/// Entries that always stay in a directory whose others come and go.
const FIXED: usize = 40;
/// Longest that all of it may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// What one process is to do, passed in its environment.
#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    me: u64,
    seed: u64,
    operations: u32,
    /// Where it leaves its [`Story`].
    story: PathBuf,
}

const TASK: &str = "SCRFS_STRESS_TASK";

/// What a process says it has done.
#[derive(Default, Serialize, Deserialize)]
struct Story {
    /// Inode, block, and the turn in which it was last written; 0 if it was punched out.
    written: Vec<(u64, u64, u64)>,
    /// Inodes that were cut, or were going to be.
    cut: BTreeSet<u64>,
    /// Turns in which something was appended.
    appended: Vec<u64>,
    /// Times it counted, under each kind of lock.
    counted: [u64; 2],
    /// Operations that did something.
    granted: u32,
}

/// The bytes of a block.
fn block(inode: u64, at: u64, writer: u64, turn: u64) -> Vec<u8> {
    let mut words = vec![0x5ca1_ab1e_u64, inode, at, writer, turn];
    let mut state = words.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |hash, word| {
        (hash ^ word).wrapping_mul(0x0100_0000_01b3)
    });
    while words.len() < BLOCK / 8 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        words.push(state);
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A name in the part of the dataset where everything may happen.
fn free_name(random: &mut StdRng) -> String {
    let file = random.random_range(0..10);
    match random.random_range(0..8) {
        directory @ 0..3 => format!("free/d{directory}/n{file}"),
        _ => format!("free/n{file}"),
    }
}

struct Worker {
    task: Task,
    random: StdRng,
    story: Story,
    written: BTreeMap<(u64, u64), u64>,
    turn: u64,
}

fn add_one(file: &File) {
    let mut number = [0; 8];
    file.read_exact_at(&mut number, 0).unwrap();
    let more = u64::from_le_bytes(number) + 1;
    file.write_all_at(&more.to_le_bytes(), 0).unwrap();
}

/// What others may have done meanwhile is no failure.
fn unless_overtaken<T>(result: Result<T, Errno>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(
            Errno::ENOENT
            | Errno::EEXIST
            | Errno::ENOTEMPTY
            | Errno::ENOTDIR
            | Errno::EISDIR
            | Errno::EPERM
            // A link to itself came between a look and what follows it.
            | Errno::ELOOP,
        ) => None,
        Err(errno) => panic!("{errno}"),
    }
}

fn system<T>(result: io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

impl Worker {
    fn path(&self, name: &str) -> PathBuf {
        self.task.dir.join(name)
    }

    /// A block of this process's own.
    fn own_block(&mut self) -> u64 {
        let row = self.random.random_range(0..BLOCKS / PROCESSES);
        row * PROCESSES + self.task.me
    }

    fn kept(&mut self, kind: &str) -> File {
        let number = self.random.random_range(0..KEPT);
        let path = self.path(&format!("{kind}-{number}"));
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn free_file(&mut self) -> Option<File> {
        let name = free_name(&mut self.random);
        let path = self.path(&name);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        match nix::fcntl::open(&path, flags, Mode::from_bits_truncate(0o666)) {
            // A link is there.
            Err(Errno::ELOOP) => None,
            opened => unless_overtaken(opened).map(File::from),
        }
    }

    fn write(&mut self, file: &File) {
        let (inode, at) = (file.metadata().unwrap().ino(), self.own_block());
        let bytes = block(inode, at, self.task.me, self.turn);
        file.write_all_at(&bytes, at * BLOCK as u64).unwrap();
        self.written.insert((inode, at), self.turn);
    }

    /// Reads back what it wrote last itself, which nobody else may have changed.
    fn read_own(&mut self, file: &File) {
        let (inode, at) = (file.metadata().unwrap().ino(), self.own_block());
        let mut found = vec![0; BLOCK];
        file.read_exact_at(&mut found, at * BLOCK as u64).unwrap();
        let expected = match self.written.get(&(inode, at)) {
            Some(&turn) => block(inode, at, self.task.me, turn),
            None => vec![0; BLOCK],
        };
        assert!(found == expected, "own block {at} of inode {inode}");
    }

    /// Adds one to a number that all add to, with a lock around it.
    fn count(&mut self, kind: usize) {
        let path = self.path(["counter-posix", "counter-flock"][kind]);
        let file = File::options().read(true).write(true).open(path).unwrap();
        if kind == 0 {
            let lock = libc::flock {
                l_type: libc::F_WRLCK as i16,
                l_whence: libc::SEEK_SET as i16,
                l_start: 0,
                l_len: 8,
                l_pid: 0,
            };
            nix::fcntl::fcntl(&file, FcntlArg::F_SETLKW(&lock)).unwrap();
            add_one(&file);
        } else {
            let locked = Flock::lock(file, FlockArg::LockExclusive);
            add_one(&locked.map_err(|(_, errno)| errno).unwrap());
        }
        self.story.counted[kind] += 1;
    }

    fn list(&mut self) {
        let names: Vec<_> = fs::read_dir(self.path("fixed"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let stay = names
            .iter()
            .filter(|name| name.as_encoded_bytes().starts_with(b"stays"));
        assert_eq!(stay.count(), FIXED, "of those that stay");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    fn copy(&mut self) {
        let bytes = vec![self.turn as u8; self.random.random_range(1..100_000)];
        let (from, to) = ["from", "to"]
            .map(|name| self.path(&format!("{name}-{}", self.task.me)))
            .into();
        fs::write(&from, &bytes).unwrap();
        let (from, copy) = (File::open(&from).unwrap(), File::create(&to).unwrap());
        let mut left = bytes.len();
        while left > 0 {
            left -= nix::fcntl::copy_file_range(&from, None, &copy, None, left).unwrap();
        }
        assert!(fs::read(&to).unwrap() == bytes, "a copy");
    }

    /// One operation; `None` where somebody was faster.
    fn step(&mut self) -> Option<()> {
        self.turn += 1;
        let (one, other) = (free_name(&mut self.random), free_name(&mut self.random));
        let (one, other) = (self.path(&one), self.path(&other));
        let mut directory = || format!("free/d{}", self.random.random_range(0..3));
        let (dir, to_dir) = (directory(), directory());
        let (dir, to_dir) = (self.path(&dir), self.path(&to_dir));
        match self.random.random_range(0..36) {
            0..=4 => {
                let file = self.free_file()?;
                self.write(&file);
            }
            5..=8 => {
                let file = self.kept("kept");
                self.write(&file);
            }
            9..=10 => {
                let file = self.kept("mapped");
                let (inode, at) = (file.metadata().unwrap().ino(), self.own_block());
                let mut map = sys::map_shared(&file).unwrap();
                let start = at as usize * BLOCK;
                let bytes = block(inode, at, self.task.me, self.turn);
                map[start..start + BLOCK].copy_from_slice(&bytes);
                self.written.insert((inode, at), self.turn);
            }
            11..=13 => {
                let kind = ["kept", "mapped"][self.random.random_range(0..2)];
                let file = self.kept(kind);
                self.read_own(&file);
            }
            14 => {
                let file = self.free_file()?;
                self.story.cut.insert(file.metadata().unwrap().ino());
                let blocks = self.random.random_range(0..BLOCKS);
                file.set_len(blocks * BLOCK as u64).unwrap();
            }
            15 => {
                let file = self.free_file()?;
                let (inode, at) = (file.metadata().unwrap().ino(), self.own_block());
                let flags =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let (start, length) = ((at * BLOCK as u64) as i64, BLOCK as i64);
                nix::fcntl::fallocate(&file, flags, start, length).unwrap();
                self.written.insert((inode, at), 0);
            }
            16..=18 => {
                let flags = [
                    RenameFlags::empty(),
                    RenameFlags::RENAME_NOREPLACE,
                    RenameFlags::RENAME_EXCHANGE,
                ][self.random.random_range(0..3)];
                unless_overtaken(renameat2(AT_FDCWD, &one, AT_FDCWD, &other, flags))?;
            }
            19..=20 => unless_overtaken(system(fs::hard_link(&one, &other)))?,
            21..=22 => unless_overtaken(system(fs::remove_file(&one)))?,
            23 => unless_overtaken(system(fs::create_dir(&dir)))?,
            24 => unless_overtaken(system(fs::remove_dir(&dir)))?,
            25 => unless_overtaken(system(fs::rename(&dir, &to_dir)))?,
            26 => {
                unless_overtaken(system(std::os::unix::fs::symlink("n0", &one)))?;
            }
            27 => self.count(0),
            28 => self.count(1),
            29..=30 => {
                let path = self.path("appended");
                let mut file = File::options().append(true).open(path).unwrap();
                file.write_all(&block(0, 0, self.task.me, self.turn))
                    .unwrap();
                self.story.appended.push(self.turn);
            }
            31 => self.list(),
            32 => {
                let name = format!("fixed/goes-{}", self.random.random_range(0..200));
                let path = self.path(&name);
                if unless_overtaken(system(fs::remove_file(&path))).is_none() {
                    unless_overtaken(system(File::create_new(&path)))?;
                }
            }
            33 => self.copy(),
            34 => {
                let file = self.kept("kept");
                let name = format!("user.by{}", self.task.me);
                let (name, value) = (OsStr::new(&name), self.turn.to_le_bytes());
                sys::set_xattr(file.as_fd(), name, &value, 0).unwrap();
                assert_eq!(sys::get_xattr(file.as_fd(), name).unwrap(), value);
            }
            _ => {
                let mode = fs::Permissions::from_mode(0o600 | self.random.random_range(0..0o200));
                if !unless_overtaken(system(fs::symlink_metadata(&one)))?.is_symlink() {
                    unless_overtaken(system(fs::set_permissions(&one, mode)))?;
                }
            }
        }
        Some(())
    }
}

/// What the processes of this file run.
#[test]
#[ignore = "run by the other test, in processes of their own"]
fn acts_as_a_process() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let task: Task = serde_json::from_str(&task).unwrap();
    let mut worker = Worker {
        random: StdRng::seed_from_u64(task.seed),
        task,
        story: Story::default(),
        written: BTreeMap::new(),
        turn: 0,
    };
    for _ in 0..worker.task.operations {
        worker.story.granted += u32::from(worker.step().is_some());
    }
    let Worker {
        task,
        mut story,
        written,
        ..
    } = worker;
    story.written = written
        .into_iter()
        .map(|((inode, at), turn)| (inode, at, turn))
        .collect();
    fs::write(&task.story, serde_json::to_vec(&story).unwrap()).unwrap();
}

/// Started processes; none of them is left behind.
struct Workers(Vec<Child>);

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn prepare(dir: &Path) {
    for name in ["free", "fixed"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for number in 0..FIXED {
        fs::write(dir.join(format!("fixed/stays-{number}")), [number as u8]).unwrap();
    }
    for number in 0..KEPT {
        for kind in ["kept", "mapped"] {
            let file = File::create(dir.join(format!("{kind}-{number}"))).unwrap();
            file.set_len(BLOCKS * BLOCK as u64).unwrap();
        }
    }
    for name in ["counter-posix", "counter-flock"] {
        fs::write(dir.join(name), [0; 8]).unwrap();
    }
    File::create(dir.join("appended")).unwrap();
}

/// Commits datasets until all processes have ended; how many.
fn commit_beside(mnt: &Path, workers: &mut Workers, random: &mut StdRng) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let mut committed = Vec::new();
    loop {
        let mut bytes = vec![0; random.random_range(1..300_000)];
        random.fill(&mut bytes[..]);
        let name = format!("beside-{}", committed.len());
        let open = mnt.join(format!("{name}.tmp"));
        fs::create_dir_all(open.join("d")).unwrap();
        fs::write(open.join("d/f"), &bytes).unwrap();
        fs::rename(&open, mnt.join(&name)).unwrap();
        committed.push((name, bytes));
        let ended = workers.0.iter_mut().map(|child| child.try_wait().unwrap());
        let ended: Vec<_> = ended.flatten().collect();
        assert!(ended.iter().all(|status| status.success()), "one failed");
        if ended.len() == workers.0.len() {
            break;
        }
        assert!(Instant::now() < deadline, "it takes too long");
    }
    for (name, bytes) in &committed {
        assert!(
            fs::read(mnt.join(name).join("d/f")).unwrap() == *bytes,
            "{name}"
        );
    }
    committed.len()
}

/// All regular files below, by path: inode and bytes.
fn files(top: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let (path, kind) = entry
                .map(|it| (it.path(), it.file_type().unwrap()))
                .unwrap();
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                let mut file = File::open(&path).unwrap();
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                let inode = file.metadata().unwrap().ino();
                found.insert(path.strip_prefix(top).unwrap().to_owned(), (inode, bytes));
            }
        }
    }
    found
}

/// That every byte is what somebody was told is written, and the last of it.
fn check(found: &BTreeMap<PathBuf, (u64, Vec<u8>)>, stories: &[Story]) {
    let mut expected = BTreeMap::new();
    for (writer, story) in (0_u64..).zip(stories) {
        for &(inode, at, turn) in &story.written {
            expected.insert((inode, at), (writer, turn));
        }
    }
    let cut: BTreeSet<u64> = stories
        .iter()
        .flat_map(|story| &story.cut)
        .copied()
        .collect();
    let mut blocks = 0;
    for (path, (inode, bytes)) in found {
        let name = path.to_str().unwrap();
        if !["free", "kept", "mapped"]
            .iter()
            .any(|kind| name.starts_with(kind))
        {
            continue;
        }
        for at in 0..BLOCKS {
            let start = (at as usize * BLOCK).min(bytes.len());
            let is = &bytes[start..(start + BLOCK).min(bytes.len())];
            let is_nothing = is.iter().all(|byte| *byte == 0);
            let right = match expected.get(&(*inode, at)) {
                None | Some((_, 0)) => is_nothing,
                Some(&(writer, turn)) => {
                    blocks += 1;
                    *is == block(*inode, at, writer, turn) || is_nothing && cut.contains(inode)
                }
            };
            assert!(right, "{name}: block {at} of inode {inode} is wrong");
        }
    }
    println!("{blocks} blocks in {} files", found.len());
    let read = |name: &str| &found[Path::new(name)].1;
    for number in 0..FIXED {
        assert_eq!(*read(&format!("fixed/stays-{number}")), [number as u8]);
    }
    for (kind, name) in ["counter-posix", "counter-flock"].iter().enumerate() {
        let sum: u64 = stories.iter().map(|story| story.counted[kind]).sum();
        assert_eq!(*read(name), sum.to_le_bytes(), "{name}");
    }
    // Each in whole, once, and in the order of who appended it.
    let mut appended = vec![Vec::new(); stories.len()];
    for bytes in read("appended").chunks(BLOCK) {
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..][..8].try_into().unwrap());
        let (writer, turn) = (word(3), word(4));
        assert!(*bytes == block(0, 0, writer, turn), "appended");
        appended[writer as usize].push(turn);
    }
    for (writer, story) in stories.iter().enumerate() {
        assert!(appended[writer] == story.appended, "what {writer} appended");
    }
}

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn many_processes_at_once_lose_no_byte_and_find_no_other() {
    let seed = number_of("SCRFS_SEED").unwrap_or_else(rand::random);
    let operations = number_of("SCRFS_STRESS_OPERATIONS").unwrap_or(2000) as u32;
    println!("SCRFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for path in DATA_PATHS {
        let Some(place) = Place::on_path(512 * MIB, path) else {
            continue;
        };
        let _coordinator = place.coordinator(1, Manners::default());
        let dir = place.mnt().join("all.tmp");
        fs::create_dir(&dir).unwrap();
        prepare(&dir);
        let stories = tempfile::tempdir().unwrap();
        let story = |me: u64| stories.path().join(me.to_string());
        let mut workers = Workers(Vec::new());
        for me in 0..PROCESSES {
            let task = Task {
                dir: dir.clone(),
                me,
                seed: random.random(),
                operations,
                story: story(me),
            };
            let child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "acts_as_a_process",
                    "--include-ignored",
                    "--nocapture",
                ])
                .env(TASK, serde_json::to_string(&task).unwrap())
                .stdout(Stdio::null())
                .spawn();
            workers.0.push(child.unwrap());
        }
        let committed = commit_beside(&place.mnt(), &mut workers, &mut random);
        let stories: Vec<Story> = (0..PROCESSES)
            .map(|me| serde_json::from_slice(&fs::read(story(me)).unwrap()).unwrap())
            .collect();
        let granted: u32 = stories.iter().map(|story| story.granted).sum();
        println!(
            "{}: {granted} operations did something, {committed} commits",
            path.0
        );
        assert!(granted > operations * PROCESSES as u32 / 2);
        let found = files(&dir);
        check(&found, &stories);
        // And that is what is sealed.
        let sealed = place.mnt().join("all");
        fs::rename(&dir, &sealed).unwrap();
        assert!(files(&sealed) == found, "it is sealed as it was");
    }
}
