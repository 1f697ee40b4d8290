//! Several streams of blocking copies at once, on tokio, at a bounded pace.
//!
//! The work is `0..total`, cut into pieces that are handed to the next free stream in ascending order;
//! pieces may end in any order. Memory is bounded by streams times piece. The caller's thread waits,
//! tells progress, and looks at the cancel flag before each piece: what has begun is finished. The
//! first error ends it.
//!
//! A piece that takes very long says that the file system is busy: then half as many are on their way at
//! once, and more again, one by one, when pieces are quick. Work that programs do not wait for runs at a lower
//! priority than they do.

use super::error::PrefixError;
use crate::part::lock;
use scrfs::id::DatasetId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A wait for the pace looks at the cancel flag this often.
const NAP: Duration = Duration::from_millis(100);

/// A piece that takes longer shows a file system that is busy.
const SLOW: Duration = Duration::from_secs(2);
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

    /// A piece took so long.
    fn learn(&mut self, took: Duration) {
        let is_known = self.known > 0;
        self.known = self.known.saturating_sub(1);
        if took >= SLOW {
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
    let mut running: JoinSet<(u64, Duration, Result<(), PrefixError>)> = JoinSet::new();
    let mut width = Width::new(streams);
    let mut outcome = Ok(());
    let (mut next, mut done) = (0, 0);
    let piece = job.piece.max(1);
    loop {
        while outcome.is_ok() && next < job.total && running.len() < width.now {
            let len = piece.min(job.total - next);
            if job.skip.is_some_and(|skip| skip(next, len)) {
                next += len;
                done += len;
                progress(done);
                continue;
            }
            if !may_begin(job, len).await {
                outcome = Err(PrefixError::Cancelled {
                    dataset: job.dataset,
                });
                break;
            }
            let (offset, work) = (next, Arc::clone(&work));
            running.spawn_blocking(move || {
                let begun = Instant::now();
                let result = work(offset, len);
                (len, begun.elapsed(), result)
            });
            next += len;
        }
        match running.join_next().await {
            None => return outcome,
            Some(Ok((len, took, Ok(())))) => {
                width.learn(took);
                done += len;
                progress(done);
            }
            Some(Ok((_, _, Err(error)))) => outcome = outcome.and(Err(error)),
            Some(Err(error)) => {
                // A bug in the work: let it be seen as one.
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

/// Waits for the pace; whether it is still wanted.
async fn may_begin(job: &Job<'_>, len: u64) -> bool {
    let turn = job
        .pace
        .and_then(|(pace, bandwidth)| pace.turn(len, Some(bandwidth)));
    loop {
        if job.cancel.load(Ordering::Relaxed) {
            return false;
        }
        let rest = turn.map_or(Duration::ZERO, |turn| {
            turn.saturating_duration_since(Instant::now())
        });
        if rest.is_zero() {
            return true;
        }
        tokio::time::sleep(rest.min(NAP)).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn job(cancel: &AtomicBool) -> Job<'_> {
        let (dataset, total, piece, streams) = (DatasetId(1), 1000, 64, 3);
        Job {
            dataset,
            total,
            piece,
            streams,
            pace: None,
            skip: None,
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
        let (slow, quick) = (SLOW, SLOW / 2);
        let mut width = Width::new(8);
        (0..8).for_each(|_| width.learn(slow));
        assert_eq!(width.now, 4, "those on their way say nothing new");
        (0..4).for_each(|_| width.learn(slow));
        (0..100).for_each(|_| width.learn(slow));
        assert_eq!(width.now, 1);
        (0..3).for_each(|_| width.learn(quick));
        width.learn(slow);
        (0..3).for_each(|_| width.learn(quick));
        assert_eq!(width.now, 1);
        width.learn(quick);
        assert_eq!(width.now, 2);
        (0..1000).for_each(|_| width.learn(quick));
        assert_eq!(width.now, 8);
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
