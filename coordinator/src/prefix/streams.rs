//! Several streams of blocking copies at once, on tokio, at a bounded pace.
//!
//! The work is `0..total`, cut into one lane a stream, and these into pieces. A free stream takes the next piece
//! of the lane that has the fewest on their way, so that streams are in several files where there are several:
//! one file is written by one at a time in most file systems. Pieces may end in any order. Memory is
//! bounded by streams times piece. The caller's thread waits,
//! tells progress, and looks at the cancel flag before each piece: what has begun is finished. The
//! first error ends it.
//!
//! A piece that takes very long for its bytes and files says that the file system is busy: then half as many
//! are on their way at once, and more again, one by one, when pieces are quick. Work that programs do not wait for runs at a lower
//! priority than they do.

use super::error::PrefixError;
use crate::part::lock;
use scrfs::id::DatasetId;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinSet};

/// A wait for the pace looks at the cancel flag this often.
const NAP: Duration = Duration::from_millis(100);

/// A piece of so many bytes that takes longer shows a file system that is busy,
const SLOW: Duration = Duration::from_secs(2);
const SLOW_BYTES: u64 = 4 << 20;
/// where it has one file. Each further one may take so long to make, sync and close: ten times what it takes where
/// nothing is busy.
const SLOW_FILE: Duration = Duration::from_millis(50);
/// So many quick pieces a stream, one after the other, allow for one stream more.
const QUICK_PIECES: usize = 4;
/// Added to the niceness of threads that programs do not wait for.
const NICENESS: i32 = 5;

/// How many pieces are on their way at once.
#[derive(Debug)]
struct Width {
    now: usize,
    max: usize,
    quick: usize,
    /// Pieces on their way when it was halved: that they are slow, too, is nothing new.
    known: usize,
}

impl Width {
    fn new(max: usize) -> Self {
        Self {
            now: max,
            max,
            quick: 0,
            known: 0,
        }
    }

    /// A piece took so long, and as long as this is not slow.
    fn learn(&mut self, took: Duration, slow: Duration) {
        let is_known = self.known > 0;
        self.known = self.known.saturating_sub(1);
        if took >= slow {
            self.quick = 0;
            if !is_known && self.now > 1 {
                self.known = self.now - 1;
                self.now /= 2;
                tracing::info!(streams = self.now, ?took, "the prefix is busy");
            }
        } else {
            self.quick += 1;
            if self.quick >= QUICK_PIECES * self.now {
                self.quick = 0;
                self.now = self.max.min(self.now + 1);
            }
        }
    }
}

/// From when on a piece is slow.
fn slow(len: u64, files: u64) -> Duration {
    let times =
        |time: Duration, count: u64| time.saturating_mul(count.try_into().unwrap_or(u32::MAX));
    let further = files.saturating_sub(1);
    times(SLOW, len.div_ceil(SLOW_BYTES).max(1)).saturating_add(times(SLOW_FILE, further))
}

/// A stretch of the work, taken from its beginning on.
#[derive(Debug)]
struct Lane {
    rest: Range<u64>,
    /// Pieces on their way.
    running: usize,
}

/// What is still to be handed out.
#[derive(Debug)]
struct Lanes {
    lanes: Vec<Lane>,
    piece: u64,
}

impl Lanes {
    /// As many as there are streams, of whole pieces each.
    fn new(total: u64, piece: u64, streams: usize) -> Self {
        let piece = piece.max(1);
        let pieces = total.div_ceil(piece);
        let count = u64::try_from(streams).unwrap_or(1).clamp(1, pieces.max(1));
        let start = |lane: u64| {
            let before = u128::from(pieces) * u128::from(lane) / u128::from(count);
            let before = u64::try_from(before).unwrap_or(u64::MAX);
            before.saturating_mul(piece).min(total)
        };
        let lane = |at: u64| Lane {
            rest: start(at)..start(at + 1),
            running: 0,
        };
        let lanes = (0..count).map(lane).collect();
        Self { lanes, piece }
    }

    /// The next piece, and its lane, which must be told when the piece has ended.
    fn take(&mut self) -> Option<(usize, u64, u64)> {
        let free = self.lanes.iter_mut().enumerate();
        let free = free.filter(|(_, lane)| !lane.rest.is_empty());
        let (at, lane) = free.min_by_key(|(_, lane)| lane.running)?;
        let offset = lane.rest.start;
        let len = self.piece.min(lane.rest.end - offset);
        lane.rest.start += len;
        lane.running += 1;
        Some((at, offset, len))
    }

    fn ended(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.running = lane.running.saturating_sub(1);
        }
    }
}

/// Keeps all streams of a node together below a bandwidth. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// When the next piece may begin.
    next: Arc<Mutex<Option<Instant>>>,
}

impl Pace {
    /// Takes a turn for `bytes`; returns when it is.
    pub(crate) fn turn(&self, bytes: u64, bandwidth: Option<u64>) -> Option<Instant> {
        let bandwidth = bandwidth.filter(|&bandwidth| bandwidth > 0)?;
        let now = Instant::now();
        let mut next = lock(&self.next);
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + Duration::from_secs_f64(bytes as f64 / bandwidth as f64));
        Some(turn)
    }
}

/// What is to be done, and how much of it at once.
pub(crate) struct Job<'a> {
    pub(crate) dataset: DatasetId,
    pub(crate) total: u64,
    pub(crate) piece: u64,
    pub(crate) streams: usize,
    pub(crate) pace: Option<(&'a Pace, u64)>,
    /// What need not be done.
    pub(crate) skip: Option<&'a dyn Fn(u64, u64) -> bool>,
    /// Of how many files a piece is, where there may be more than one.
    pub(crate) files: Option<&'a dyn Fn(u64, u64) -> u64>,
    /// Programs do not wait for it.
    pub(crate) gentle: bool,
    pub(crate) cancel: &'a AtomicBool,
}

/// Does `work(offset, len)` for all pieces. `progress` gets the sum of the pieces that have ended.
pub(crate) fn run(
    job: &Job<'_>,
    progress: &dyn Fn(u64),
    work: impl Fn(u64, u64) -> Result<(), PrefixError> + Send + Sync + 'static,
) -> Result<(), PrefixError> {
    let streams = job.streams.max(1);
    let gentle = job.gentle;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(streams)
        .on_thread_start(move || {
            // Of this thread alone, on Linux. Not being allowed to is no harm.
            let _ = gentle.then(|| rustix::process::nice(NICENESS));
        })
        .build()
        .map_err(PrefixError::io_at(
            "start threads for",
            std::path::Path::new("the prefix"),
        ))?;
    runtime.block_on(copy(job, streams, progress, Arc::new(work)))
}

async fn copy<W>(
    job: &Job<'_>,
    streams: usize,
    progress: &dyn Fn(u64),
    work: Arc<W>,
) -> Result<(), PrefixError>
where
    W: Fn(u64, u64) -> Result<(), PrefixError> + Send + Sync + 'static,
{
    let mut running: JoinSet<Ended> = JoinSet::new();
    let mut copy = Copying {
        width: Width::new(streams),
        lanes: Lanes::new(job.total, job.piece, streams),
        outcome: Ok(()),
        done: 0,
        files: job.files,
        progress,
    };
    loop {
        while copy.outcome.is_ok() && running.len() < copy.width.now {
            let Some((lane, offset, len)) = copy.lanes.take() else {
                break;
            };
            if job.skip.is_some_and(|skip| skip(offset, len)) {
                copy.lanes.ended(lane);
                copy.advance(len);
                continue;
            }
            copy.wait_for_turn(job, len, &mut running).await;
            if copy.outcome.is_err() {
                break;
            }
            let work = Arc::clone(&work);
            running.spawn_blocking(move || {
                let begun = Instant::now();
                let result = work(offset, len);
                (lane, offset..offset + len, begun.elapsed(), result)
            });
        }
        match running.join_next().await {
            None => return copy.outcome,
            Some(joined) => copy.ended(joined),
        }
    }
}

/// A piece that has ended: its lane, its bytes, how long it took, what came of it.
type Ended = (usize, Range<u64>, Duration, Result<(), PrefixError>);

/// How far it has come.
struct Copying<'a> {
    width: Width,
    lanes: Lanes,
    outcome: Result<(), PrefixError>,
    done: u64,
    /// Of how many files a piece is.
    files: Option<&'a dyn Fn(u64, u64) -> u64>,
    progress: &'a dyn Fn(u64),
}

impl Copying<'_> {
    fn advance(&mut self, len: u64) {
        self.done += len;
        (self.progress)(self.done);
    }

    fn ended(&mut self, joined: Result<Ended, JoinError>) {
        match joined {
            Ok((lane, Range { start, end }, took, Ok(()))) => {
                self.lanes.ended(lane);
                let len = end - start;
                let files = self.files.map_or(1, |files| files(start, len));
                self.width.learn(took, slow(len, files));
                self.advance(len);
            }
            Ok((.., Err(error))) if self.outcome.is_ok() => self.outcome = Err(error),
            Ok(_) => {}
            // A bug in the work: let it be seen as one.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Waits until the pace allows for a piece, it is wanted no longer, or another has failed. Meanwhile it is told
    /// of what has ended: with a narrow pace all streams but one are for ever waiting for the next turn.
    async fn wait_for_turn(&mut self, job: &Job<'_>, len: u64, running: &mut JoinSet<Ended>) {
        let turn = job
            .pace
            .and_then(|(pace, bandwidth)| pace.turn(len, Some(bandwidth)));
        loop {
            while let Some(joined) = running.try_join_next() {
                self.ended(joined);
            }
            if self.outcome.is_ok() && job.cancel.load(Ordering::Relaxed) {
                self.outcome = Err(PrefixError::Cancelled {
                    dataset: job.dataset,
                });
            }
            let rest = turn.map_or(Duration::ZERO, |turn| {
                turn.saturating_duration_since(Instant::now())
            });
            if self.outcome.is_err() || rest.is_zero() {
                return;
            }
            tokio::time::sleep(rest.min(NAP)).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn job(cancel: &AtomicBool) -> Job<'_> {
        let (dataset, total, piece, streams) = (DatasetId(1), 1000, 64, 3);
        Job {
            dataset,
            total,
            piece,
            streams,
            pace: None,
            skip: None,
            files: None,
            gentle: false,
            cancel,
        }
    }

    #[test]
    fn every_piece_is_done_once_and_told() {
        let cancel = AtomicBool::new(false);
        let done = Arc::new(Mutex::new(vec![0u8; 1000]));
        let told = std::cell::Cell::new(0);
        let marks = Arc::clone(&done);
        run(
            &job(&cancel),
            &|bytes| told.set(bytes),
            move |offset, len| {
                for at in offset..offset + len {
                    lock(&marks)[at as usize] += 1;
                }
                Ok(())
            },
        )
        .unwrap();
        assert!(lock(&done).iter().all(|&count| count == 1));
        assert_eq!(told.get(), 1000);
    }

    #[test]
    fn streams_are_apart_and_all_is_handed_out_once() {
        for (total, piece, streams) in [
            (1000, 64, 3),
            (1, 64, 4),
            (0, 64, 4),
            (64, 64, 1),
            (129, 64, 8),
        ] {
            let mut lanes = Lanes::new(total, piece, streams);
            let mut taken = Vec::new();
            let first: Vec<_> = std::iter::from_fn(|| lanes.take()).take(streams).collect();
            let mut of: Vec<usize> = first.iter().map(|(lane, ..)| *lane).collect();
            of.dedup();
            assert_eq!(of.len(), streams.min(total.div_ceil(piece) as usize));
            taken.extend(first);
            while let Some(piece) = lanes.take() {
                taken.push(piece);
                lanes.ended(piece.0);
            }
            taken.sort_by_key(|(_, offset, _)| *offset);
            let end = taken.iter().fold(0, |end, (_, offset, len)| {
                assert_eq!((*offset, offset % piece), (end, 0));
                offset + len
            });
            assert_eq!(end, total);
        }
    }

    #[test]
    fn an_error_or_a_cancel_ends_it() {
        let cancel = AtomicBool::new(false);
        let fail = |offset, _| match offset {
            192 => Err(PrefixError::NotSealed {
                dataset: DatasetId(9),
            }),
            _ => Ok(()),
        };
        let error = run(&job(&cancel), &|_| {}, fail).unwrap_err();
        assert!(
            matches!(
                error,
                PrefixError::NotSealed {
                    dataset: DatasetId(9)
                }
            ),
            "{error}"
        );
        cancel.store(true, Ordering::Relaxed);
        let error = run(&job(&cancel), &|_| {}, |_, _| unreachable!("cancelled")).unwrap_err();
        assert!(matches!(error, PrefixError::Cancelled { .. }), "{error}");
    }

    #[test]
    fn a_busy_file_system_gets_half_and_a_quick_one_more_again() {
        let (busy, quick) = (SLOW, SLOW / 2);
        let mut width = Width::new(8);
        (0..8).for_each(|_| width.learn(busy, SLOW));
        assert_eq!(width.now, 4, "those on their way say nothing new");
        (0..4).for_each(|_| width.learn(busy, SLOW));
        (0..100).for_each(|_| width.learn(busy, SLOW));
        assert_eq!(width.now, 1);
        (0..3).for_each(|_| width.learn(quick, SLOW));
        width.learn(busy, SLOW);
        (0..3).for_each(|_| width.learn(quick, SLOW));
        assert_eq!(width.now, 1);
        width.learn(quick, SLOW);
        assert_eq!(width.now, 2);
        (0..1000).for_each(|_| width.learn(quick, SLOW));
        assert_eq!(width.now, 8);
    }

    /// Else who looks takes a slow copy for one that stands still, and its end comes as a surprise.
    #[test]
    fn what_is_done_is_told_while_the_next_piece_waits_for_its_turn() {
        let (cancel, pace) = (AtomicBool::new(false), Pace::default());
        let slow = Job {
            streams: 8,
            // 32 ms a piece.
            pace: Some((&pace, 2000)),
            ..job(&cancel)
        };
        let [told, begun, untold] = [0; 3].map(|none| Arc::new(AtomicU64::new(none)));
        let seen = [&told, &begun, &untold].map(Arc::clone);
        let progress = |bytes| told.store(bytes, Ordering::Relaxed);
        run(&slow, &progress, move |_, len| {
            let [told, begun, untold] = &seen;
            let before = begun.fetch_add(len, Ordering::Relaxed);
            untold.fetch_max(before - told.load(Ordering::Relaxed), Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        let untold = untold.load(Ordering::Relaxed);
        assert!(untold <= 3 * 64, "{untold} bytes were not told of");
    }

    #[test]
    fn many_small_files_are_no_busy_file_system() {
        assert_eq!(slow(1, 1), SLOW);
        assert_eq!(slow(SLOW_BYTES, 0), SLOW);
        assert_eq!(slow(4 * SLOW_BYTES, 1), 4 * SLOW);
        assert_eq!(slow(SLOW_BYTES, 1001), SLOW + 1000 * SLOW_FILE);
        assert_eq!(slow(1, u64::MAX), SLOW + SLOW_FILE * u32::MAX);
    }

    #[test]
    fn a_piece_is_judged_by_the_files_in_it() {
        let cancel = AtomicBool::new(false);
        let asked = Mutex::new(Vec::new());
        let files = |offset, len| {
            lock(&asked).push((offset, len));
            100
        };
        let job = Job {
            files: Some(&files),
            ..job(&cancel)
        };
        run(&job, &|_| {}, |_, _| Ok(())).unwrap();
        let mut asked = lock(&asked).clone();
        asked.sort_unstable();
        let pieces = (0..16).map(|at| (at * 64, 64.min(1000 - at * 64)));
        assert_eq!(asked, pieces.collect::<Vec<_>>());
    }

    #[test]
    fn the_pace_is_kept() {
        let cancel = AtomicBool::new(false);
        let pace = Pace::default();
        let begun = Instant::now();
        let paced = Job {
            pace: Some((&pace, 10_000)),
            ..job(&cancel)
        };
        run(&paced, &|_| {}, |_, _| Ok(())).unwrap();
        // 1000 bytes at 10,000 a second; the last piece of 40 is not waited for.
        assert!(
            begun.elapsed() >= Duration::from_millis(90),
            "{:?}",
            begun.elapsed()
        );
    }
}
