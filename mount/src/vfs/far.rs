//! Bytes of sealed files that lie on other nodes.
//!
//! They are fetched through the coordinator in blocks of [`BLOCK_BYTES`] of a part log, and handed to
//! the kernel, whose page cache keeps them: sealed bytes never change, and the kernel gives that memory
//! back when it is needed. Here only the blocks last used are kept, so that a block is not fetched
//! anew for each of the kernel's requests. A reader that goes through a file in order has the next
//! blocks fetched ahead of it.
//!
//! Invariants: a read is answered once, with exactly the bytes of the file, or with an error; holes are
//! zeros and are never fetched. A block is fetched once at a time, however many wait for it. Memory is
//! bounded: `KEPT` blocks kept, `IN_FLIGHT_MAX` on their way, and what each waiting read asked for.
//!
//! What it does not do: checksums. The coordinator has checked what it brings against those of the
//! seal; here only its length is.
//!
//! Lock: the state, a leaf; nothing is asked or answered with it held.

use super::requests::{Requests, Wanted};
use super::{FsError, FsResult};
use lru::LruCache;
use scrfs::control::{PIECE_BYTES_MAX, Piece, Refusal};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::merge::Run;
use scrfs::name::RelPath;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What is fetched at once; the last block of a log is shorter.
pub const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks kept after they have come.
const KEPT: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");
/// Blocks on their way at once.
const IN_FLIGHT_MAX: usize = 32;
/// Blocks fetched ahead of a reader at the most.
const AHEAD_MAX: u64 = 8;

const _: () = assert!(BLOCK_BYTES <= PIECE_BYTES_MAX as u64);

/// Runs when the bytes are there.
pub type Answer = Box<dyn FnOnce(FsResult<Vec<u8>>) + Send>;

/// Names a block of a part log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    dataset: DatasetId,
    slot: Slot,
    block: u64,
}

/// A regular file of another node's part.
#[derive(Debug)]
pub struct FarFile {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Whose part.
    pub slot: Slot,
    /// For the log.
    pub path: RelPath,
    /// Length.
    pub size: u64,
    /// Its data, ascending in the file as in the log.
    pub runs: Vec<Run>,
    /// Length of the part log.
    pub log_bytes: u64,
}

impl FarFile {
    fn key(&self, block: u64) -> Key {
        Key {
            dataset: self.dataset,
            slot: self.slot,
            block,
        }
    }

    /// The blocks that a range of the file lies in, and where in them.
    fn wants(&self, offset: u64, end: u64) -> Vec<Want> {
        let first = self
            .runs
            .partition_point(|run| run.offset + run.len <= offset);
        let mut wants = Vec::new();
        for run in self.runs[first..].iter().take_while(|run| run.offset < end) {
            let from = run.offset.max(offset);
            let to = (run.offset + run.len).min(end);
            let mut log = run.log + (from - run.offset);
            let mut at = from - offset;
            while at < to - offset {
                let inside = log % BLOCK_BYTES;
                let len = (to - offset - at).min(BLOCK_BYTES - inside);
                wants.push(Want {
                    block: log / BLOCK_BYTES,
                    from: inside as usize,
                    len: len as usize,
                    at: at as usize,
                });
                log += len;
                at += len;
            }
        }
        wants
    }

    /// The last block that has bytes of it.
    fn last_block(&self) -> u64 {
        let end = self.runs.last().map_or(0, |run| run.log + run.len);
        end.saturating_sub(1) / BLOCK_BYTES
    }

    /// Where the next data or hole is, as `lseek` says it; `None` beyond the end.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let next = self
            .runs
            .partition_point(|run| run.offset + run.len <= offset);
        let mut at = offset;
        for run in &self.runs[next..] {
            match (run.offset <= at, hole) {
                (true, false) => return Some(at),
                (false, false) => return Some(run.offset),
                (false, true) => return Some(at),
                // Runs may touch.
                (true, true) => at = run.offset + run.len,
            }
        }
        hole.then_some(at)
    }
}

/// A part of a read that lies in one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Want {
    block: u64,
    /// Offset in the block.
    from: usize,
    len: usize,
    /// Offset in the answer.
    at: usize,
}

/// How far a reader has come.
#[derive(Debug, Default)]
struct Progress {
    /// The last block it asked for.
    last: Option<u64>,
    /// How many more it is taken to want next.
    window: u64,
}

/// A far file, open.
#[derive(Debug)]
pub struct Reader {
    /// Which.
    pub file: Arc<FarFile>,
    progress: Mutex<Progress>,
}

impl Reader {
    /// A reader that has read nothing.
    pub fn new(file: Arc<FarFile>) -> Self {
        Self {
            file,
            progress: Mutex::default(),
        }
    }

    /// The blocks to fetch ahead of one who reads `first..=last` now.
    fn ahead(&self, offset: u64, first: u64, last: u64) -> std::ops::RangeInclusive<u64> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match progress.last {
            None if offset == 0 => progress.window = 2,
            // The kernel may have several requests under way, out of order.
            Some(before) if (before.saturating_sub(1)..=before + 1).contains(&first) => {
                if last > before {
                    progress.window = (progress.window * 2).clamp(1, AHEAD_MAX);
                }
            }
            _ => progress.window = 0,
        }
        progress.last = Some(last);
        let end = last
            .saturating_add(progress.window)
            .min(self.file.last_block());
        last + 1..=end
    }
}

struct JobState {
    bytes: Vec<u8>,
    /// Blocks that have not come, and one for who set it up.
    left: usize,
    answer: Option<Answer>,
}

/// A read that waits.
struct Job {
    file: Arc<FarFile>,
    wants: Vec<Want>,
    state: Mutex<JobState>,
}

impl Job {
    /// Takes what it wants of a block; answers when that was the last.
    fn take(&self, block: u64, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for want in self.wants.iter().filter(|want| want.block == block) {
            let found = bytes.get(want.from..want.from + want.len);
            let place = state.bytes.get_mut(want.at..want.at + want.len);
            match (place, found) {
                (Some(place), Some(found)) => place.copy_from_slice(found),
                _ => {
                    drop(state);
                    return self.fail("a block that is too short");
                }
            }
        }
        self.one_less(state);
    }

    fn one_less(&self, mut state: MutexGuard<'_, JobState>) {
        state.left = state.left.saturating_sub(1);
        if state.left > 0 {
            return;
        }
        let bytes = std::mem::take(&mut state.bytes);
        let answer = state.answer.take();
        drop(state);
        if let Some(answer) = answer {
            answer(Ok(bytes));
        }
    }

    fn fail(&self, why: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = state.answer.take();
        state.bytes = Vec::new();
        drop(state);
        if let Some(answer) = answer {
            let FarFile {
                dataset,
                slot,
                path,
                ..
            } = &*self.file;
            tracing::error!(%dataset, %slot, %path, why, "cannot read a file of another node");
            answer(Err(FsError::Unreachable));
        }
    }
}

/// A block on its way.
struct Coming {
    bytes: u32,
    jobs: Vec<Arc<Job>>,
}

struct State {
    kept: LruCache<Key, Arc<Vec<u8>>>,
    /// Asked for, or in the queue.
    coming: HashMap<Key, Coming>,
    in_flight: usize,
    queue: VecDeque<Key>,
}

impl State {
    /// A block is wanted by `job`, or ahead of anybody. Returns whether it is to be asked for now.
    fn want(&mut self, key: Key, log_bytes: u64, job: Option<&Arc<Job>>) -> bool {
        if let Some(coming) = self.coming.get_mut(&key) {
            coming.jobs.extend(job.cloned());
            return false;
        }
        let free = self.in_flight < IN_FLIGHT_MAX;
        if !free && job.is_none() {
            return false;
        }
        let left = log_bytes.saturating_sub(key.block * BLOCK_BYTES);
        let coming = Coming {
            bytes: left.min(BLOCK_BYTES) as u32,
            jobs: job.cloned().into_iter().collect(),
        };
        self.coming.insert(key, coming);
        if free {
            self.in_flight += 1;
        } else {
            self.queue.push_back(key);
        }
        free
    }
}

/// All far files of a mount.
pub struct Far {
    me: Weak<Self>,
    requests: Arc<Requests>,
    state: Mutex<State>,
}

impl Far {
    /// None fetched yet.
    pub fn new(requests: Arc<Requests>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            requests,
            state: Mutex::new(State {
                kept: LruCache::new(KEPT),
                coming: HashMap::new(),
                in_flight: 0,
                queue: VecDeque::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `size` bytes from `offset` on, fewer at the end; answers now or when they have come.
    pub fn read(&self, reader: &Reader, offset: u64, size: usize, answer: Answer) {
        let file = &reader.file;
        let end = offset.saturating_add(size as u64).min(file.size);
        if offset >= end {
            return answer(Ok(Vec::new()));
        }
        let wants = file.wants(offset, end);
        let mut blocks: Vec<u64> = wants.iter().map(|want| want.block).collect();
        blocks.dedup();
        let ahead = match (blocks.first(), blocks.last()) {
            (Some(&first), Some(&last)) => Some(reader.ahead(offset, first, last)),
            _ => None,
        };
        let job = Arc::new(Job {
            file: Arc::clone(file),
            wants,
            state: Mutex::new(JobState {
                bytes: vec![0; (end - offset) as usize],
                left: blocks.len() + 1,
                answer: Some(answer),
            }),
        });
        let mut here = Vec::new();
        let mut ask = Vec::new();
        let mut state = self.lock();
        for block in blocks {
            let key = file.key(block);
            if let Some(bytes) = state.kept.get(&key) {
                here.push((block, Arc::clone(bytes)));
            } else if state.want(key, file.log_bytes, Some(&job)) {
                ask.push(key);
            }
        }
        for block in ahead.into_iter().flatten() {
            let key = file.key(block);
            if !state.kept.contains(&key) && state.want(key, file.log_bytes, None) {
                ask.push(key);
            }
        }
        let ask = Self::with_length(&state, ask);
        drop(state);
        self.ask(ask);
        for (block, bytes) in here {
            job.take(block, &bytes);
        }
        job.one_less(job.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn with_length(state: &State, keys: Vec<Key>) -> Vec<(Key, u32)> {
        let length = |key: Key| Some((key, state.coming.get(&key)?.bytes));
        keys.into_iter().filter_map(length).collect()
    }

    fn ask(&self, blocks: Vec<(Key, u32)>) {
        for (key, len) in blocks {
            let wanted = Wanted {
                dataset: key.dataset,
                slot: key.slot,
                piece: Piece::Log {
                    offset: key.block * BLOCK_BYTES,
                    len,
                },
            };
            let far = Weak::clone(&self.me);
            let answer = move |result| {
                if let Some(far) = far.upgrade() {
                    far.come(key, result);
                }
            };
            self.requests.fetch(wanted, Box::new(answer));
        }
    }

    /// A block has come, or is not to be had.
    fn come(&self, key: Key, result: Result<Vec<u8>, Refusal>) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        let Some(coming) = state.coming.remove(&key) else {
            return;
        };
        let result = match result {
            Ok(bytes) if bytes.len() == coming.bytes as usize => Ok(Arc::new(bytes)),
            Ok(bytes) => Err(format!(
                "{} bytes came where {} were asked for",
                bytes.len(),
                coming.bytes
            )),
            Err(refusal) => Err(format!("refused: {refusal:?}")),
        };
        if let Ok(bytes) = &result {
            state.kept.put(key, Arc::clone(bytes));
        }
        let mut next = Vec::new();
        while state.in_flight < IN_FLIGHT_MAX
            && let Some(key) = state.queue.pop_front()
        {
            state.in_flight += 1;
            next.push(key);
        }
        let next = Self::with_length(&state, next);
        drop(state);
        self.ask(next);
        match result {
            Ok(bytes) => coming
                .jobs
                .iter()
                .for_each(|job| job.take(key.block, &bytes)),
            Err(why) => {
                if coming.jobs.is_empty() {
                    tracing::warn!(?key, why, "what was to be read next cannot be fetched");
                }
                coming.jobs.iter().for_each(|job| job.fail(&why));
            }
        }
    }
}

impl std::fmt::Debug for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Far").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrfs::control::FromDaemon;
    use std::sync::mpsc::{self, Receiver};

    const LOG_BYTES: u64 = 20 * BLOCK_BYTES + 777;

    fn byte(log: u64) -> u8 {
        (log % 251) as u8
    }

    /// A file with a hole in front, one in the middle that is no multiple of anything, and one behind.
    fn file() -> Arc<FarFile> {
        let run = |offset, len, log| Run { offset, len, log };
        Arc::new(FarFile {
            dataset: DatasetId(4),
            slot: Slot(2),
            path: RelPath::new(b"d/f").expect("a path"),
            size: 30 * BLOCK_BYTES,
            runs: vec![
                run(4096, 3 * BLOCK_BYTES, 100),
                run(5 * BLOCK_BYTES, 10 * BLOCK_BYTES, 100 + 3 * BLOCK_BYTES),
            ],
            log_bytes: LOG_BYTES,
        })
    }

    fn expected(file: &FarFile, offset: u64, size: usize) -> Vec<u8> {
        let end = (offset + size as u64).min(file.size).max(offset);
        (offset..end)
            .map(|at| {
                let run = file
                    .runs
                    .iter()
                    .find(|run| (run.offset..run.offset + run.len).contains(&at));
                run.map_or(0, |run| byte(run.log + at - run.offset))
            })
            .collect()
    }

    struct World {
        requests: Arc<Requests>,
        far: Arc<Far>,
        said: Receiver<FromDaemon>,
    }

    impl World {
        fn new() -> Self {
            let requests = Arc::new(Requests::default());
            let (outbox, said) = mpsc::channel();
            requests.connect(outbox, |_| crate::vfs::requests::Settled::Unknown);
            let far = Far::new(Arc::clone(&requests));
            Self {
                requests,
                far,
                said,
            }
        }

        fn read(&self, reader: &Reader, offset: u64, size: usize) -> Receiver<FsResult<Vec<u8>>> {
            let (done, result) = mpsc::channel();
            let answer = move |bytes| {
                let _ = done.send(bytes);
            };
            self.far.read(reader, offset, size, Box::new(answer));
            result
        }

        /// What was asked for since the last time, as (request, offset, length).
        fn asked(&self) -> Vec<(u64, u64, u32)> {
            let asked = self.said.try_iter().map(|said| match said {
                FromDaemon::Fetch {
                    request,
                    dataset: DatasetId(4),
                    slot: Slot(2),
                    piece: Piece::Log { offset, len },
                } => (request, offset, len),
                other => panic!("{other:?}"),
            });
            asked.collect()
        }

        fn bring(&self, (request, offset, len): (u64, u64, u32)) {
            assert!(offset + u64::from(len) <= LOG_BYTES, "beyond the log");
            let bytes = (offset..offset + u64::from(len)).map(byte).collect();
            self.requests.reply_piece(request, Ok(bytes));
        }
    }

    #[test]
    fn any_range_has_its_bytes_and_holes_are_zeros() {
        let (world, file) = (World::new(), file());
        let reader = Reader::new(Arc::clone(&file));
        let mib = BLOCK_BYTES;
        for (offset, size) in [
            (0, 10),
            (4090, 20),
            (0, 2 * BLOCK_BYTES as usize),
            (3 * mib + 4000, 200),
            (5 * mib - 1, 2),
            (15 * mib - 3, 6),
            (29 * mib, 2 * BLOCK_BYTES as usize),
            (30 * mib, 5),
            (u64::MAX, 5),
        ] {
            let result = world.read(&reader, offset, size);
            let mut late = world.asked();
            // Whatever the order they come in.
            late.reverse();
            late.into_iter().for_each(|asked| world.bring(asked));
            let bytes = result.try_recv().expect("answered").expect("read");
            let end = offset.saturating_add(size as u64).min(file.size);
            let want = if offset < end {
                expected(&file, offset, size)
            } else {
                Vec::new()
            };
            assert!(bytes == want, "{size} bytes from {offset}");
            assert!(result.try_recv().is_err(), "once");
        }
    }

    #[test]
    fn a_hole_is_read_without_asking_anybody() {
        let world = World::new();
        let reader = Reader::new(file());
        let result = world.read(&reader, 20 * BLOCK_BYTES, 4096);
        assert_eq!(result.try_recv(), Ok(Ok(vec![0; 4096])));
        assert!(world.asked().is_empty());
    }

    #[test]
    fn a_block_is_fetched_once_for_all_who_wait_and_kept() {
        let world = World::new();
        let (one, other) = (Reader::new(file()), Reader::new(file()));
        let at = 5 * BLOCK_BYTES;
        let first = world.read(&one, at, 10);
        let asked = world.asked();
        assert_eq!(asked.len(), 1, "one block, nothing ahead");
        let second = world.read(&other, at + 100, 10);
        assert!(world.asked().is_empty(), "it is on its way");
        world.bring(asked[0]);
        assert_eq!(first.try_recv(), Ok(Ok(expected(&one.file, at, 10))));
        assert_eq!(second.try_recv(), Ok(Ok(expected(&one.file, at + 100, 10))));
        let third = world.read(&other, at, 10);
        assert_eq!(third.try_recv(), Ok(Ok(expected(&one.file, at, 10))));
        assert!(world.asked().is_empty(), "it was kept");
    }

    #[test]
    fn one_who_reads_in_order_is_fetched_for_ahead_within_bounds() {
        let world = World::new();
        let reader = Reader::new(file());
        let mut most = 0;
        let mut offset = 0;
        while offset < reader.file.size {
            let result = world.read(&reader, offset, 128 << 10);
            let asked = world.asked();
            most = most.max(asked.len());
            assert!(asked.len() <= AHEAD_MAX as usize + 1, "{asked:?}");
            asked.into_iter().for_each(|asked| world.bring(asked));
            let bytes = result.try_recv().expect("answered").expect("read");
            assert!(bytes == expected(&reader.file, offset, 128 << 10));
            offset += 128 << 10;
        }
        assert!(most > 2, "several blocks at once: {most}");
    }

    #[test]
    fn blocks_on_their_way_are_bounded_and_nobody_is_forgotten() {
        let world = World::new();
        let mut big = Arc::into_inner(file()).expect("ours");
        let blocks = 3 * IN_FLIGHT_MAX as u64;
        big.size = blocks * BLOCK_BYTES;
        big.log_bytes = big.size;
        big.runs = vec![Run {
            offset: 0,
            len: big.size,
            log: 0,
        }];
        let big = Arc::new(big);
        let results: Vec<_> = (0..blocks)
            .map(|block| {
                let reader = Reader::new(Arc::clone(&big));
                let at = block * BLOCK_BYTES + 5;
                (at, world.read(&reader, at, 3))
            })
            .collect();
        let mut served = 0;
        loop {
            let asked = world.asked();
            assert!(asked.len() <= IN_FLIGHT_MAX, "{}", asked.len());
            if asked.is_empty() {
                break;
            }
            served += asked.len() as u64;
            for (request, offset, len) in asked {
                let bytes = (offset..offset + u64::from(len)).map(byte).collect();
                world.requests.reply_piece(request, Ok(bytes));
            }
        }
        assert_eq!(served, blocks);
        for (at, result) in results {
            assert_eq!(result.try_recv(), Ok(Ok(expected(&big, at, 3))));
        }
    }

    #[test]
    fn what_is_refused_or_has_the_wrong_length_is_an_error_and_can_be_tried_again() {
        let world = World::new();
        let reader = Reader::new(file());
        let at = 6 * BLOCK_BYTES;
        type Said = fn(u32) -> Result<Vec<u8>, Refusal>;
        let answers: [Said; 4] = [
            |_| Err(Refusal::Failed),
            |len| Ok(vec![1; len as usize - 1]),
            |len| Ok(vec![1; len as usize + 1]),
            |_| Ok(Vec::new()),
        ];
        for answer in answers {
            let result = world.read(&reader, at, 8);
            let asked = world.asked();
            let (request, _, len) = asked[0];
            world.requests.reply_piece(request, answer(len));
            assert_eq!(result.try_recv(), Ok(Err(FsError::Unreachable)));
            for later in &asked[1..] {
                world.bring(*later);
            }
        }
        let result = world.read(&reader, at, 8);
        world
            .asked()
            .into_iter()
            .for_each(|asked| world.bring(asked));
        assert_eq!(result.try_recv(), Ok(Ok(expected(&reader.file, at, 8))));
    }

    #[test]
    fn data_and_holes_are_where_the_manifest_says() {
        let file = file();
        let mib = BLOCK_BYTES;
        assert_eq!(file.seek(0, false), Some(4096));
        assert_eq!(file.seek(0, true), Some(0));
        assert_eq!(file.seek(5000, false), Some(5000));
        assert_eq!(file.seek(5000, true), Some(4096 + 3 * mib));
        assert_eq!(file.seek(4 * mib, false), Some(5 * mib));
        assert_eq!(file.seek(16 * mib, false), None, "a hole to the end");
        assert_eq!(file.seek(16 * mib, true), Some(16 * mib));
        assert_eq!(file.seek(30 * mib, true), None, "at the end");
    }
}
