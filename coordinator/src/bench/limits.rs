//! What one core does at best: speeds of memory and codec, and the bounds that follow from them.
//!
//! Speeds are bytes over processor time, so that a machine shared with others still shows its own.

use super::{Work, median};
use nix::time::{ClockId, clock_gettime};
use scrfs::codec;
use scrfs::redundancy::Scheme;
use std::hint::black_box;
use std::time::Duration;

/// Bytes of a buffer that lies beyond a core's own caches.
const FAR_BYTES: usize = 64 << 20;
/// Bytes of a buffer that lies within them.
const NEAR_BYTES: usize = 128 << 10;
/// Sources of the sum.
const SOURCES: usize = 3;

/// Processor time of this thread.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// GB/s of one core, each byte counted once where it is read.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Speeds {
    /// A copy within the caches.
    near_copy: f64,
    /// The sum of three sources within the caches.
    near_xor: f64,
    /// From memory into the caches.
    load: f64,
    /// From the caches into memory.
    store: f64,
}

/// Buffers to take speeds with.
pub(super) struct Bench {
    far: Vec<u8>,
    near: Vec<Vec<u8>>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let near = (0..=SOURCES as u8).map(|i| vec![i; NEAR_BYTES]);
        Self {
            far: vec![1; FAR_BYTES],
            near: near.collect(),
        }
    }

    /// Takes all speeds once.
    pub(super) fn speeds(&mut self) -> Speeds {
        let Self { far, near } = self;
        let Some((to, from)) = near.split_first_mut() else {
            return Speeds::default();
        };
        let times = FAR_BYTES / NEAR_BYTES;
        Speeds {
            near_copy: rate(FAR_BYTES, || {
                (0..times).for_each(|_| black_box(&mut *to).copy_from_slice(&from[0]));
            }),
            near_xor: rate(FAR_BYTES * SOURCES, || {
                let sources: Vec<&[u8]> = from.iter().map(Vec::as_slice).collect();
                let row = [1; SOURCES];
                (0..times).for_each(|_| {
                    codec::combine(&mut [black_box(&mut *to)], &[&row], &sources);
                });
            }),
            load: rate(FAR_BYTES, || {
                for block in far.chunks_exact(NEAR_BYTES) {
                    black_box(&mut *to).copy_from_slice(block);
                }
            }),
            store: rate(FAR_BYTES, || {
                for block in far.chunks_exact_mut(NEAR_BYTES) {
                    black_box(block).copy_from_slice(to);
                }
            }),
        }
    }
}

fn rate(bytes: usize, work: impl FnOnce()) -> f64 {
    let start = cpu_time();
    work();
    bytes as f64 / 1e9 / (cpu_time() - start).as_secs_f64()
}

impl Speeds {
    pub(super) fn medians(all: &[Self]) -> Self {
        let of = |speed: fn(&Self) -> f64| median(all.iter().map(speed).collect());
        Self {
            near_copy: of(|s| s.near_copy),
            near_xor: of(|s| s.near_xor),
            load: of(|s| s.load),
            store: of(|s| s.store),
        }
    }

    pub(super) fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("memcpy in cache", self.near_copy),
            ("xor of 3 in cache", self.near_xor),
            ("copy from memory into cache", self.load),
            ("copy from cache into memory", self.store),
        ]
    }

    /// GB/s of data that one core can protect or rebuild when memory alone takes time: every unit is read
    /// from memory where it is kept, every destination is written to memory, and all between happens in
    /// caches, at no cost. With L and S for the speeds of loading and storing it is
    /// `1 / (loaded / L + stored / S)`; XOR among 4 ranks has 1 byte loaded and 1/3 stored for each byte of
    /// data.
    pub(super) fn bound(&self, moved: Moved) -> f64 {
        1.0 / (moved.loaded / self.load + moved.stored / self.store)
    }
}

/// Bytes that have to be moved for each byte of data of the whole dataset.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Moved {
    pub(super) loaded: f64,
    pub(super) stored: f64,
}

impl Moved {
    /// For parts of equal length. A parity byte is the sum of as many units as a stripe has data shards; so
    /// is a rebuilt one.
    pub(super) fn by(work: Work, scheme: Scheme, ranks: u32) -> Self {
        let parity = scheme.storage_cost(ranks);
        let shards = match scheme {
            Scheme::Single | Scheme::Partner { .. } => 1.0,
            _ => f64::from(ranks - scheme.parity_count()),
        };
        let (loaded, stored) = match work {
            Work::Encode => (parity * shards, parity),
            Work::Rebuild => {
                let lost = (1.0 + parity) / f64::from(ranks);
                (lost * shards, lost)
            }
        };
        Self { loaded, stored }
    }
}
