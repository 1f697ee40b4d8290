//! What a traced child changed below a directory, and what it made sure of: a list, in order.
//!
//! Calls are read when they return, by what they led to: numbers of inodes, and what is in memory and
//! in files then. That nothing is missing here is seen by doing it all again, see [`Log::all`].

use super::super::tracer::{Call, Fate, Watch};
use super::model::{Change, Id, Inode, Kind, Model};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The disk writes so much at once, or not.
const BLOCK_BYTES: usize = 4096;

/// Something that comes to pass as a whole, or not.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) words: String,
    pub(super) changes: Vec<(Id, Change)>,
    /// What cannot be undone where this was done: a name is moved, or removed, from where it had come to.
    pub(super) needs: Vec<usize>,
    /// Inodes that take it along when they are synced.
    synced_with: Vec<Id>,
}

/// What happened, in order.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Done(usize),
    /// These are durable.
    Synced(Vec<usize>),
    /// To standard output.
    Said(String),
}

/// What happened below one directory.
pub(super) struct Log {
    /// Before it; with all inodes that were made later, but without their names.
    pub(super) before: Model,
    pub(super) operations: Vec<Operation>,
    pub(super) events: Vec<Event>,
}

/// Writes the log while the child runs.
pub(super) struct Recorder {
    log: Log,
    now: Model,
    device: u64,
    numbers: BTreeMap<u64, Id>,
    /// The operation that gave a name to what has it.
    named: BTreeMap<(Id, OsString), usize>,
    /// By thread that is syncing: operations up to here are covered.
    syncing: BTreeMap<i32, usize>,
    /// The filesystem knows no flags of renames.
    plain: bool,
}

/// A name in a directory, and a path that leads there.
struct Place {
    directory: Id,
    name: OsString,
    path: PathBuf,
}

impl Log {
    /// What is there when these operations have come to pass, with all that they need.
    pub(super) fn after(&self, done: impl IntoIterator<Item = usize>) -> Model {
        let mut model = self.before.clone();
        for at in self.closed(done) {
            for (id, change) in &self.operations[at].changes {
                model.apply(*id, change);
            }
        }
        model
    }

    /// These, and all that they need.
    pub(super) fn closed(&self, done: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let mut closed = BTreeSet::new();
        let mut todo: Vec<usize> = done.into_iter().collect();
        while let Some(at) = todo.pop() {
            if closed.insert(at) {
                todo.extend(&self.operations[at].needs);
            }
        }
        closed
    }

    pub(super) fn all(&self) -> Model {
        self.after(0..self.operations.len())
    }
}

impl Recorder {
    pub(super) fn new(root: &Path, plain: bool) -> Self {
        let now = Model::read(root);
        let numbers = now.inodes.iter().enumerate();
        let numbers = numbers.map(|(id, inode)| (inode.number, id)).collect();
        Self {
            log: Log {
                before: now.clone(),
                operations: Vec::new(),
                events: Vec::new(),
            },
            now,
            device: fs::metadata(root).unwrap().dev(),
            numbers,
            named: BTreeMap::new(),
            syncing: BTreeMap::new(),
            plain,
        }
    }

    pub(super) fn log(self) -> Log {
        self.log
    }

    fn do_together(&mut self, words: String, changes: Vec<(Id, Change)>, synced_with: Vec<Id>) {
        let at = self.log.operations.len();
        let mut needs = Vec::new();
        for (id, change) in &changes {
            if let Change::Name(name, to) = change {
                let given = self.named.remove(&(*id, name.clone()));
                let had = self.now.names(*id).and_then(|names| names.get(name));
                let goes_on = |(_, other): &(Id, Change)| matches!(other, Change::Name(_, Some(it)) if Some(it) == had);
                // What is only replaced may never have come there.
                needs.extend(given.filter(|_| to.is_none() || changes.iter().any(goes_on)));
            }
        }
        for (id, change) in &changes {
            if let Change::Name(name, Some(_)) = change {
                self.named.insert((*id, name.clone()), at);
            }
            self.now.apply(*id, change);
        }
        self.log.operations.push(Operation {
            words,
            changes,
            needs,
            synced_with,
        });
        self.log.events.push(Event::Done(at));
    }

    fn name(&mut self, verb: &str, place: &Place, to: Option<Id>) {
        let directory = self.now.path_of(place.directory);
        let words = format!("{verb} {}", directory.join(&place.name).display());
        let change = Change::Name(place.name.clone(), to);
        self.do_together(
            words,
            vec![(place.directory, change)],
            vec![place.directory],
        );
    }

    fn change(&mut self, id: Id, what: &str, change: Change) {
        let words = format!("{what} of {}", self.now.path_of(id).display());
        self.do_together(words, vec![(id, change)], self.synced_with(id));
    }

    /// Links and pipes cannot be synced: their directories take them along.
    fn synced_with(&self, id: Id) -> Vec<Id> {
        if !matches!(self.now.inodes[id].kind, Kind::Link(_) | Kind::Pipe) {
            return vec![id];
        }
        let has = |directory: &Id| {
            let names = self.now.names(*directory);
            names.is_some_and(|names| names.values().any(|it| *it == id))
        };
        (0..self.now.inodes.len()).filter(has).collect()
    }

    /// Something new that has no name yet.
    fn born(&mut self, path: &Path) -> Id {
        let inode = Inode::of(path);
        let id = self.now.inodes.len();
        self.numbers.insert(inode.number, id);
        self.now.inodes.push(inode.clone());
        self.log.before.inodes.push(inode);
        id
    }

    fn id(&self, found: std::io::Result<fs::Metadata>) -> Option<Id> {
        let found = found.ok().filter(|found| found.dev() == self.device)?;
        self.numbers.get(&found.ino()).copied()
    }

    fn at(&self, place: &Place) -> Option<Id> {
        self.now.names(place.directory)?.get(&place.name).copied()
    }

    fn place(&self, thread: Pid, directory: u64, path: u64) -> Option<Place> {
        let path = path_of(thread, directory, path);
        let directory = self.id(fs::metadata(path.parent()?))?;
        let name = path.file_name()?.to_owned();
        Some(Place {
            directory,
            name,
            path,
        })
    }

    /// What a descriptor leads to, if it is ours, and a path to that.
    fn opened(&self, thread: Pid, fd: u64) -> Option<(Id, PathBuf)> {
        let path = PathBuf::from(format!("/proc/{thread}/fd/{fd}"));
        Some((self.id(fs::metadata(&path))?, path))
    }

    fn opens(&mut self, thread: Pid, directory: u64, path: u64, flags: u64, fd: i64) -> Option<()> {
        let flags = flags as i32;
        if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
            return None;
        }
        let place = self.place(thread, directory, path)?;
        match self.at(&place) {
            None => {
                let through = fs::read_link(format!("/proc/{thread}/fd/{fd}")).ok()?;
                let id = self.born(&through);
                self.name("make", &place, Some(id));
            }
            Some(id) if flags & libc::O_TRUNC != 0 => {
                self.change(id, "truncation", Change::Length(0));
            }
            Some(_) => {}
        }
        Some(())
    }

    fn makes(&mut self, thread: Pid, directory: u64, path: u64) -> Option<()> {
        let place = self.place(thread, directory, path)?;
        let id = self.born(&place.path);
        self.name("make", &place, Some(id));
        Some(())
    }

    fn removes(&mut self, thread: Pid, directory: u64, path: u64) -> Option<()> {
        let place = self.place(thread, directory, path)?;
        self.name("remove", &place, None);
        Some(())
    }

    fn links(&mut self, thread: Pid, [from, old, to, new]: [u64; 4]) -> Option<()> {
        let old = self.place(thread, from, old)?;
        let new = self.place(thread, to, new)?;
        let id = self.at(&old)?;
        self.name("link", &new, Some(id));
        Some(())
    }

    fn renames(&mut self, thread: Pid, [from, old, to, new]: [u64; 4], flags: u64) -> Option<()> {
        let old = self.place(thread, from, old)?;
        let new = self.place(thread, to, new)?;
        let exchange = flags as u32 & libc::RENAME_EXCHANGE != 0;
        let (moved, back) = (self.at(&old)?, self.at(&new).filter(|_| exchange));
        let whole = |place: &Place| self.now.path_of(place.directory).join(&place.name);
        let verb = if exchange { "exchange" } else { "rename" };
        let words = format!(
            "{verb} {} to {}",
            whole(&old).display(),
            whole(&new).display()
        );
        let new_directory = new.directory;
        let changes = vec![
            (old.directory, Change::Name(old.name, back)),
            (new.directory, Change::Name(new.name, Some(moved))),
        ];
        self.do_together(words, changes, vec![new_directory]);
        Some(())
    }

    /// The disk has the new length or has not, and of the bytes some blocks.
    fn writes(&mut self, thread: Pid, fd: u64, offset: Option<u64>, count: i64) -> Option<()> {
        let (id, path) = self.opened(thread, fd)?;
        let count = usize::try_from(count).ok().filter(|count| *count > 0)?;
        let offset = match offset {
            Some(offset) => offset,
            None => position(thread, fd)?.checked_sub(count as u64)?,
        };
        let mut bytes = vec![0; count];
        File::open(path)
            .unwrap()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        let end = offset + count as u64;
        self.change(id, "length", Change::Reaches(end));
        let half = (count / 2).next_multiple_of(BLOCK_BYTES).min(count);
        for (from, to) in [(0, half), (half, count)] {
            if from < to {
                let offset = offset + from as u64;
                let words = format!("{} bytes at {offset}", to - from);
                let bytes: Arc<[u8]> = bytes[from..to].into();
                self.change(id, &words, Change::Bytes(offset, bytes));
            }
        }
        Some(())
    }

    fn sets_mode(&mut self, path: &Path) -> Option<()> {
        let found = fs::metadata(path);
        let mode = found.as_ref().ok()?.mode() & 0o7777;
        let id = self.id(found)?;
        self.change(id, "mode", Change::Mode(mode));
        Some(())
    }

    fn sets_time(&mut self, found: std::io::Result<fs::Metadata>) -> Option<()> {
        let time = found
            .as_ref()
            .ok()
            .map(|it| (it.mtime(), it.mtime_nsec()))?;
        let id = self.id(found)?;
        self.change(id, "time", Change::Time(time.0, time.1));
        Some(())
    }

    fn syncs(&mut self, thread: Pid, id: Option<Id>) {
        let covered = self.syncing.remove(&thread.as_raw()).unwrap_or_default();
        let synced = self.log.operations[..covered].iter().enumerate();
        let synced = synced.filter(|(_, it)| id.is_none_or(|id| it.synced_with.contains(&id)));
        let synced = synced.map(|(at, _)| at).collect();
        self.log.events.push(Event::Synced(synced));
    }

    fn returned(&mut self, thread: Pid, call: &Call, result: i64) -> Option<()> {
        const HERE: u64 = libc::AT_FDCWD as u64;
        let [a, b, c, d, e, _] = call.arguments;
        match call.number {
            libc::SYS_open => self.opens(thread, HERE, a, b, result),
            libc::SYS_openat => self.opens(thread, a, b, c, result),
            libc::SYS_openat2 => {
                let flags = memory::<8>(thread, c);
                self.opens(thread, a, b, u64::from_le_bytes(flags), result)
            }
            libc::SYS_write if a == 1 => {
                let said = (0..result.cast_unsigned()).map(|at| memory::<1>(thread, b + at)[0]);
                let said = String::from_utf8_lossy(&said.collect::<Vec<_>>()).into_owned();
                self.log.events.push(Event::Said(said));
                None
            }
            libc::SYS_write => self.writes(thread, a, None, result),
            libc::SYS_pwrite64 => self.writes(thread, a, Some(d), result),
            libc::SYS_copy_file_range if d == 0 => self.writes(thread, c, None, result),
            libc::SYS_ftruncate => {
                let (id, _) = self.opened(thread, a)?;
                self.change(id, "length", Change::Length(b));
                None
            }
            libc::SYS_mkdir | libc::SYS_mknod => self.makes(thread, HERE, a),
            libc::SYS_mkdirat | libc::SYS_mknodat => self.makes(thread, a, b),
            libc::SYS_symlink => self.makes(thread, HERE, b),
            libc::SYS_symlinkat => self.makes(thread, b, c),
            libc::SYS_unlink | libc::SYS_rmdir => self.removes(thread, HERE, a),
            libc::SYS_unlinkat => self.removes(thread, a, b),
            libc::SYS_link => self.links(thread, [HERE, a, HERE, b]),
            libc::SYS_linkat => self.links(thread, [a, b, c, d]),
            libc::SYS_rename => self.renames(thread, [HERE, a, HERE, b], 0),
            libc::SYS_renameat => self.renames(thread, [a, b, c, d], 0),
            libc::SYS_renameat2 => self.renames(thread, [a, b, c, d], e),
            libc::SYS_chmod => self.sets_mode(&path_of(thread, HERE, a)),
            libc::SYS_fchmodat => self.sets_mode(&path_of(thread, a, b)),
            libc::SYS_fchmod => self.sets_mode(&path_of_fd(thread, a)),
            libc::SYS_utimensat if b == 0 => self.sets_time(fs::metadata(path_of_fd(thread, a))),
            libc::SYS_utimensat => self.sets_time(fs::symlink_metadata(path_of(thread, a, b))),
            libc::SYS_fsetxattr => {
                let (id, path) = self.opened(thread, a)?;
                let all = crate::part::xattr::read_all(File::open(path).ok()?).ok()?;
                let name = string(thread, b);
                let (name, value) = all.into_iter().find(|it| it.0 == name)?;
                self.change(id, "an attribute", Change::Attribute(name, value));
                None
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                let (id, _) = self.opened(thread, a)?;
                self.syncs(thread, Some(id));
                None
            }
            libc::SYS_syncfs => {
                self.syncs(thread, None);
                None
            }
            _ => None,
        }
    }
}

impl Watch for Recorder {
    fn enters(&mut self, thread: Pid, call: &Call) -> Fate {
        match call.number {
            libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_syncfs => {
                let covered = self.log.operations.len();
                self.syncing.insert(thread.as_raw(), covered);
                Fate::Goes
            }
            libc::SYS_renameat2 if self.plain => Fate::Refused(Errno::EINVAL),
            _ => Fate::Goes,
        }
    }

    fn leaves(&mut self, thread: Pid, call: &Call, result: i64) {
        if result >= 0 {
            self.returned(thread, call, result);
        }
    }
}

fn path_of_fd(thread: Pid, fd: u64) -> PathBuf {
    format!("/proc/{thread}/fd/{fd}").into()
}

/// A path that leads us where the thread is led.
fn path_of(thread: Pid, directory: u64, path: u64) -> PathBuf {
    let path = PathBuf::from(OsString::from_vec(string(thread, path)));
    if let Ok(below) = path.strip_prefix("/proc/self") {
        return Path::new(&format!("/proc/{thread}")).join(below);
    }
    let base = match directory as i32 {
        libc::AT_FDCWD => format!("/proc/{thread}/cwd").into(),
        fd => path_of_fd(thread, fd.cast_unsigned().into()),
    };
    base.join(path)
}

fn memory<const N: usize>(thread: Pid, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let memory = File::open(format!("/proc/{thread}/mem")).unwrap();
    memory.read_exact_at(&mut bytes, address).unwrap();
    bytes
}

/// Up to its NUL.
fn string(thread: Pid, address: u64) -> Vec<u8> {
    let memory = File::open(format!("/proc/{thread}/mem")).unwrap();
    let mut found = vec![0; libc::PATH_MAX as usize];
    // Fewer where the memory ends.
    let count = memory.read_at(&mut found, address).unwrap();
    found.truncate(count);
    let end = found.iter().position(|byte| *byte == 0).unwrap();
    found.truncate(end);
    found
}

/// Where the next byte would be written.
fn position(thread: Pid, fd: u64) -> Option<u64> {
    let told = fs::read_to_string(format!("/proc/{thread}/fdinfo/{fd}")).ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("pos:"))?;
    line.trim().parse().ok()
}
