//! Files of open datasets that nobody writes any more: told to the coordinator, so that they can be encoded before the
//! commit.
//!
//! A file counts as closed when its last writable handle was released and the cache says that nothing else can write it
//! (see [`writers`](super::writers)). Whatever could change its bytes comes by here first: opening it for writing, cutting
//! it by its name, and removing its last one. Each such word has a number; a file that got another one while it was looked at is not
//! told of.
//!
//! Invariant: after [`FromDaemon::Closed`] no byte of a file changes before [`FromDaemon::Reopened`] was handed to the
//! same outbox. Both are handed over with the table locked, and the second before the program's operation begins.
//!
//! Small files are left to the encode after the commit: a word for each would cost more than it saves. Room for
//! the parity is kept before the word is given. Both wait for a moment in which programs open and close nothing: while
//! they write one file after the other the machine is theirs.

use super::inode::{Inode, number_in_store};
use super::{Vfs, view};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::FromDaemon;
use scrfs::id::DatasetId;
use scrfs::name::RelPath;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Files with fewer bytes of data are not told of.
const BYTES_MIN: u64 = 256 << 10;
/// The kernel lets go of a file a little after its release was said: it is looked at so often, with pauses that
/// double.
const LOOKS: u32 = 7;
/// The first of these pauses.
const PAUSE: Duration = Duration::from_millis(2);
/// Nothing is looked at before nothing was opened for writing or closed for so long.
const CALM: Duration = Duration::from_millis(50);
/// Without anything to look at, how soon to see whether the mount is still there.
const IDLE: Duration = Duration::from_secs(1);

/// What is known of one file.
#[derive(Debug, Default)]
struct State {
    /// Writable handles.
    writers: u32,
    /// Of the last word about it.
    number: u64,
    /// It was told of, with so many bytes.
    told: Option<u64>,
}

/// A file to look at, which is not held: what is removed meanwhile gives its space back.
#[derive(Debug)]
struct Look {
    key: (DatasetId, u64),
    inode: Weak<Inode>,
    number: u64,
    looks: u32,
    at: Instant,
}

#[derive(Debug, Default)]
struct Table {
    files: HashMap<(DatasetId, u64), State>,
    /// Bytes that were told of, by dataset.
    told: HashMap<DatasetId, u64>,
    numbers: u64,
    /// When a file was opened for writing or closed last.
    changed: Option<Instant>,
    looks: Option<Sender<Look>>,
}

impl Table {
    fn told_mut(&mut self, dataset: DatasetId) -> &mut u64 {
        self.told.entry(dataset).or_default()
    }
}

/// Which files are closed. A leaf in the lock order, but for the outbox of the requests.
#[derive(Debug, Default)]
pub struct ClosedFiles {
    table: Mutex<Table>,
}

impl ClosedFiles {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is known of any file.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().files.is_empty()
    }

    /// A dataset is not written any more.
    pub(super) fn forget(&self, dataset: DatasetId) {
        let mut table = self.lock();
        table.files.retain(|(of, _), _| *of != dataset);
        table.told.remove(&dataset);
    }
}

impl Vfs {
    /// The bytes of a file may change from now on; `writable` when a handle stays, whose release follows.
    pub(super) fn reopening(&self, inode: &Inode, writable: bool) {
        if inode.kind == libc::S_IFREG {
            self.word(inode.dataset, inode.ino, writable);
        }
    }

    /// The file of this name in the directory `parent` is about to lose it: with the last one its bytes go.
    pub(super) fn removing(&self, parent: &Inode, name: &OsStr) {
        let dataset = parent.dataset;
        if self
            .closed
            .lock()
            .told
            .get(&dataset)
            .is_none_or(|told| *told == 0)
        {
            return;
        }
        let found = parent.fd().and_then(|fd| {
            let flags = libc::O_PATH | libc::O_NOFOLLOW;
            let child = sys::open_at(fd.as_fd(), name, flags, 0)?;
            sys::stat(child.as_fd())
        });
        if let Ok(found) = found
            && found.st_mode & libc::S_IFMT == libc::S_IFREG
            && found.st_nlink == 1
        {
            self.word(dataset, parent.number_of(found.st_ino), false);
        }
    }

    fn word(&self, dataset: DatasetId, ino: u64, writable: bool) {
        // Whether or not there is anybody now: others may come while it is open.
        if !self.settings().space.watches_closed() {
            return;
        }
        let mut table = self.closed.lock();
        table.numbers += 1;
        table.changed = Some(Instant::now());
        let (key, number) = ((dataset, ino), table.numbers);
        let state = table.files.entry(key).or_default();
        state.number = number;
        state.writers += u32::from(writable);
        let told = state.told.take();
        if state.writers == 0 {
            table.files.remove(&key);
        }
        if let Some(bytes) = told {
            let all = table.told_mut(dataset);
            *all = all.saturating_sub(bytes);
            let ino = number_in_store(ino);
            self.requests().tell(FromDaemon::Reopened { dataset, ino });
        }
    }

    /// A writable handle was released.
    pub(super) fn closing(&self, inode: &Arc<Inode>) {
        if !self.settings().space.watches_closed() {
            return;
        }
        let is_small = inode.fd().is_ok_and(|fd| is_small(fd.as_fd()));
        let mut table = self.closed.lock();
        let key = (inode.dataset, inode.ino);
        let Some(state) = table.files.get_mut(&key) else {
            return;
        };
        state.writers = state.writers.saturating_sub(1);
        if state.writers > 0 {
            return;
        }
        if is_small {
            table.files.remove(&key);
            return;
        }
        let look = Look {
            key,
            inode: Arc::downgrade(inode),
            number: state.number,
            looks: 0,
            at: Instant::now(),
        };
        table.changed = Some(look.at);
        if table.looks.is_none() {
            table.looks = self.begin_to_look();
        }
        let is_looked_at = table
            .looks
            .as_ref()
            .is_some_and(|looks| looks.send(look).is_ok());
        if !is_looked_at {
            table.files.remove(&key);
        }
    }

    fn begin_to_look(&self) -> Option<Sender<Look>> {
        let (looks, queue) = channel();
        let vfs = Weak::clone(&self.me);
        let thread = std::thread::Builder::new().name("closed".into());
        let spawned = thread.spawn(move || look_at_all(&vfs, &queue));
        spawned
            .map(|_| looks)
            .inspect_err(
                |error| tracing::error!(%error, "no thread: nothing is encoded before commits"),
            )
            .ok()
    }

    /// Looks at a file that was closed; returns it when it is to be looked at again.
    fn look_at(&self, mut look: Look) -> Option<Look> {
        let inode = look.inode.upgrade();
        let told = inode.map_or(Err(Errno::ENOENT), |it| self.tell_closed(&it, look.number));
        match told {
            Ok(true) => return None,
            Ok(false) if look.looks < LOOKS => {
                look.at = Instant::now() + PAUSE * (1 << look.looks);
                look.looks += 1;
                return Some(look);
            }
            Ok(false) => {}
            Err(errno) => {
                let (_, ino) = look.key;
                tracing::debug!(ino, %errno, "a closed file is not encoded before the commit");
            }
        }
        let mut table = self.closed.lock();
        let is_same = |state: &State| state.number == look.number && state.told.is_none();
        if table.files.get(&look.key).is_some_and(is_same) {
            table.files.remove(&look.key);
        }
        None
    }

    /// Tells of a file if nobody can write it; `false` when somebody still can.
    fn tell_closed(&self, inode: &Inode, number: u64) -> Result<bool, Errno> {
        let dataset = inode.dataset;
        let fd = inode.fd()?;
        let bytes = bytes_of(fd.as_fd())?;
        let tree = self
            .read_names()
            .get(dataset)
            .and_then(|it| it.tree.clone());
        let tree = tree.ok_or(Errno::ENOENT)?;
        let space = &self.settings().space;
        if bytes < BYTES_MIN || self.is_fixed(dataset) || !space.encodes_ahead() {
            return Err(Errno::ENODATA);
        }
        let open = sys::reopen(fd.as_fd(), libc::O_RDONLY | libc::O_NONBLOCK)?;
        if sys::is_open_for_writing(open.as_fd())? {
            return Ok(false);
        }
        let path = view::path_below(&tree, inode).map_err(|_| Errno::ENOENT)?;
        let path = RelPath::new(path.as_os_str().as_bytes()).map_err(|_| Errno::ENAMETOOLONG)?;
        let total = self.closed.lock().told.get(&dataset).copied().unwrap_or(0);
        let kept = space.keep_ahead(dataset, total.saturating_add(bytes));
        kept.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        let mut table = self.closed.lock();
        let state = table.files.get_mut(&(dataset, inode.ino));
        let state = state.filter(|state| state.number == number && state.writers == 0);
        let Some(state) = state else {
            // Opened again meanwhile: its next release comes here, too.
            return Ok(true);
        };
        state.told = Some(bytes);
        let all = table.told_mut(dataset);
        *all = all.saturating_add(bytes);
        let ino = number_in_store(inode.ino);
        self.requests()
            .tell(FromDaemon::Closed { dataset, ino, path });
        Ok(true)
    }
}

/// Bytes of data of a file.
fn bytes_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let found = sys::stat(fd)?;
    let size = u64::try_from(found.st_size).unwrap_or(0);
    Ok(size.min(u64::try_from(found.st_blocks).unwrap_or(0) * 512))
}

fn is_small(fd: BorrowedFd<'_>) -> bool {
    bytes_of(fd).is_ok_and(|bytes| bytes < BYTES_MIN)
}

/// Until the mount is gone.
fn look_at_all(vfs: &Weak<Vfs>, queue: &Receiver<Look>) {
    let mut again: VecDeque<Look> = VecDeque::new();
    let mut calm_at = Instant::now();
    loop {
        let now = Instant::now();
        let first = again.iter().map(|look| look.at).min();
        let next = first.map(|at| at.max(calm_at).saturating_duration_since(now));
        let look = match queue.recv_timeout(next.unwrap_or(IDLE)) {
            Ok(look) => Some(look),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Some(vfs) = vfs.upgrade() else { return };
        let now = Instant::now();
        calm_at = vfs
            .closed
            .lock()
            .changed
            .map_or(now, |changed| changed + CALM);
        if now < calm_at {
            again.extend(look);
            continue;
        }
        let (due, later): (Vec<Look>, Vec<Look>) =
            again.drain(..).chain(look).partition(|look| look.at <= now);
        again.extend(later);
        again.extend(due.into_iter().filter_map(|look| vfs.look_at(look)));
    }
}
