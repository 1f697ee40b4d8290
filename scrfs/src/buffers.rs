//! Large buffers that are used again: what bulk data is read and received into.
//!
//! A fresh buffer of this size costs a page fault for every page of it, more than the bytes that
//! come into it. So a buffer goes back to its pool when its last user drops it, and the next one
//! of about the same size is taken from there, warm in the cache as likely as not.
//!
//! Invariants: a buffer begins at a cache line, which vector instructions like, or at the place of a
//! page that was asked for; what it holds is whatever it held before, never memory that was not
//! written; at most `IDLE_BYTES_MAX` lie idle, and buffers below `POOLED_BYTES_MIN` are the
//! allocator's business. One pool a process, [`take`] takes from it.

use bytes::Bytes;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Buffers of at least so many bytes are used again.
const POOLED_BYTES_MIN: usize = 32 << 10;
/// So many bytes of idle buffers are kept.
const IDLE_BYTES_MAX: usize = 32 << 20;
/// What the first byte of a buffer is aligned to.
const ALIGNMENT: usize = 64;
/// What places are told within.
const PAGE: usize = 4096;

/// Where buffers wait to be used again.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    bytes: usize,
    /// The one used last at the end.
    blocks: Vec<Vec<u8>>,
}

/// Bytes of one owner, back in its pool when dropped.
pub struct Buffer {
    block: Vec<u8>,
    start: usize,
    len: usize,
    pool: Pool,
}

static POOL: LazyLock<Pool> = LazyLock::new(Pool::default);

/// A buffer of the process's pool, see [`Pool::take`].
#[must_use]
pub fn take(len: usize) -> Buffer {
    POOL.take(len)
}

/// A buffer of the process's pool, see [`Pool::take_at`].
#[must_use]
pub fn take_at(place: u64, len: usize) -> Buffer {
    POOL.take_at(place, len)
}

impl Pool {
    /// A buffer of `len` bytes that hold anything.
    #[must_use]
    pub fn take(&self, len: usize) -> Buffer {
        self.take_in(ALIGNMENT, 0, len)
    }

    /// The same, whose address is `place` modulo 4096: blocks of a file that are read to where they lie in it can be
    /// written from there directly.
    #[must_use]
    pub fn take_at(&self, place: u64, len: usize) -> Buffer {
        let place = usize::try_from(place % PAGE as u64).unwrap_or(0);
        self.take_in(PAGE, place, len)
    }

    fn take_in(&self, alignment: usize, place: usize, len: usize) -> Buffer {
        let wanted = len + 2 * alignment;
        let fits = |block: &Vec<u8>| block.len() >= wanted && block.len() <= 2 * wanted;
        let mut idle = self.idle();
        let found = match len >= POOLED_BYTES_MIN {
            true => idle.blocks.iter().rposition(fits),
            false => None,
        };
        let reused = found.map(|index| idle.blocks.remove(index));
        idle.bytes -= reused.as_ref().map_or(0, Vec::len);
        drop(idle);
        let block = reused.unwrap_or_else(|| vec![0; wanted]);
        let start = block.as_ptr().align_offset(alignment);
        Buffer {
            // An offset that cannot be told is allowed to be usize::MAX.
            start: if start < alignment { start + place } else { 0 },
            block,
            len,
            pool: self.clone(),
        }
    }

    /// Valid between any two statements, also when a holder panicked.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Cuts it off behind `len` bytes; never makes it longer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The bytes as they are now, to be shared and sliced.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.block[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.block[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {} bytes", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let block = std::mem::take(&mut self.block);
        if block.len() < POOLED_BYTES_MIN {
            return;
        }
        let mut idle = self.pool.idle();
        if idle.bytes + block.len() <= IDLE_BYTES_MAX {
            idle.bytes += block.len();
            idle.blocks.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_when_nobody_holds_it() {
        let pool = Pool::default();
        let mut buffer = pool.take(1 << 20);
        let address = buffer.as_ptr();
        buffer.fill(7);
        let bytes = buffer.freeze();
        let slice = bytes.slice(5..9);
        drop(bytes);
        let other = pool.take(1 << 20);
        assert_ne!(other.as_ptr(), address, "a slice still holds the buffer");
        assert_eq!(&slice[..], [7; 4]);
        drop(slice);
        let again = pool.take((1 << 20) - 5);
        assert_eq!((again.as_ptr(), again.len()), (address, (1 << 20) - 5));
    }

    #[test]
    fn buffers_have_their_length_and_begin_at_a_cache_line() {
        let pool = Pool::default();
        for len in [0, 1, 100, POOLED_BYTES_MIN, 100_000, 1 << 20] {
            let mut buffer = pool.take(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
            buffer.truncate(len + 1);
            assert_eq!(buffer.len(), len);
            buffer.truncate(len / 2);
            assert_eq!(buffer.freeze().len(), len / 2);
        }
    }

    #[test]
    fn buffers_lie_at_the_place_that_is_asked_for() {
        let pool = Pool::default();
        for place in [0, 1, 511, 512, 4095, 4096, 10_000_000_007] {
            for len in [0, 1, 100_000, 1 << 20] {
                let buffer = pool.take_at(place, len);
                let expected = (len, place % PAGE as u64);
                let address = buffer.as_ptr() as u64;
                assert_eq!((buffer.len(), address % PAGE as u64), expected);
            }
        }
    }

    #[test]
    fn what_lies_idle_is_bounded_and_of_about_the_size_asked_for() {
        let pool = Pool::default();
        let many: Vec<Buffer> = (0..40).map(|_| pool.take(1 << 20)).collect();
        drop(many);
        let idle = pool.idle().bytes;
        assert!((30 << 20..=IDLE_BYTES_MAX).contains(&idle), "{idle}");
        let small = pool.take(POOLED_BYTES_MIN);
        assert!(
            small.block.len() < 1 << 20,
            "a large one is not spent on it"
        );
        assert_eq!(pool.idle().bytes, idle);
    }
}
