//! Writing past the page cache, where the filesystem says how (ADR 29).
//!
//! Nobody reads soon what is flushed, and copying it into fresh pages takes longer than all else that a flush does;
//! they also push out what programs have in memory. So the whole blocks of a large range go to the device directly,
//! and only its edges by way of the page cache: ranges of the log do not begin where blocks of a file do.
//!
//! Invariant: no block, of the device, the page cache or the filesystem, is written in both ways. One at an edge is shared with the range beside it, for which
//! it is at an edge, too.
//!
//! What it does not do: make anything durable. That is the fsync of the file, which is for both ways.

use crate::part::Tree;
use nix::fcntl::OFlag;
use rustix::fs::{AtFlags, StatxFlags};
use scrfs::buffers;
use scrfs::name::RelPath;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Less is not worth a second request.
const BYTES_MIN: usize = 128 << 10;
/// No device asks for more.
const ALIGNMENT_MAX: u32 = 64 << 10;

/// A file, open a second time.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// What offsets and lengths are multiples of, see [`kept_apart`].
    block: u64,
    /// What addresses are multiples of.
    memory: usize,
}

impl Direct {
    /// For a file that is there; `None` where its filesystem does not say how, as those that are nothing but page cache.
    pub(super) fn open(tree: &Tree, path: &RelPath) -> Option<Self> {
        let flags = OFlag::O_WRONLY | OFlag::O_DIRECT;
        let file = tree.open_file(path, flags, 0).ok()?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let found = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
        let (block, memory) = (found.stx_dio_offset_align, found.stx_dio_mem_align);
        let is_usable = |it: u32| it.is_power_of_two() && it <= ALIGNMENT_MAX;
        let known = found.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        (known && is_usable(block) && is_usable(memory)).then(|| Self {
            file,
            block: kept_apart(block, found.stx_blksize),
            memory: memory as usize,
        })
    }

    /// Which of `len` bytes at `offset` of the file are whole blocks, if they are worth it.
    pub(super) fn blocks_in(&self, offset: u64, len: usize) -> Range<usize> {
        whole_blocks(self.block, offset, len)
    }

    /// Writes whole blocks, from where they are if they lie as in the file, else from a copy.
    ///
    /// # Errors
    ///
    /// Of the filesystem; [`io::ErrorKind::InvalidInput`] where it asks for more than it said.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if bytes.as_ptr().addr().is_multiple_of(self.memory) {
            return self.file.write_all_at(bytes, offset);
        }
        let mut buffer = buffers::take(bytes.len() + self.memory);
        let start = buffer.as_ptr().align_offset(self.memory);
        let aligned = buffer.get_mut(start..start.saturating_add(bytes.len()));
        let aligned = aligned.ok_or(io::ErrorKind::InvalidInput)?;
        aligned.copy_from_slice(bytes);
        self.file.write_all_at(aligned, offset)
    }
}

/// A device asks for whole sectors, but the page cache goes by pages, and filesystems by their blocks: what of one of
/// these is in the page cache could be written over what went to the device. So the largest of them is a block.
fn kept_apart(sector: u32, block: u32) -> u64 {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
    let block = block.min(ALIGNMENT_MAX).next_power_of_two();
    u64::from(sector.max(block)).max(page)
}

fn whole_blocks(block: u64, offset: u64, len: usize) -> Range<usize> {
    let end = offset.saturating_add(len as u64);
    let (from, to) = (offset.next_multiple_of(block), end / block * block);
    let place = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
    let range = place(from)..place(to);
    if range.len() < BYTES_MIN { 0..0 } else { range }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_is_a_page_at_least() {
        let page = u64::try_from(rustix::param::page_size()).expect("a number");
        assert_eq!(kept_apart(512, 512), page);
        assert_eq!(kept_apart(512, 0), page);
        assert_eq!(kept_apart(512, 16 << 10), page.max(16 << 10));
        assert_eq!(kept_apart(32 << 10, 4096), page.max(32 << 10));
        // What is best for requests, on some network filesystems.
        assert_eq!(kept_apart(4096, 4 << 20), u64::from(ALIGNMENT_MAX));
    }

    proptest! {
        /// Beside each other, whatever the ranges: no block is written in both ways, and none is left out.
        #[test]
        fn no_block_is_written_in_both_ways(
            cuts in proptest::collection::btree_set(0u64..4_000_000, 2..6),
            block in prop_oneof![Just(512u64), Just(4096), Just(65536)],
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let mut direct = std::collections::BTreeSet::new();
            let mut cached = std::collections::BTreeSet::new();
            for pair in cuts.windows(2) {
                let (offset, len) = (pair[0], (pair[1] - pair[0]) as usize);
                let body = whole_blocks(block, offset, len);
                prop_assert!(body.end <= len);
                let at = |place: usize| offset + place as u64;
                if !body.is_empty() {
                    prop_assert_eq!((at(body.start) % block, at(body.end) % block), (0, 0));
                    prop_assert!(body.len() >= BYTES_MIN);
                    prop_assert!((body.start as u64) < block && ((len - body.end) as u64) < block);
                    direct.extend(at(body.start) / block..at(body.end) / block);
                }
                let edges = [at(0)..at(body.start), at(body.end)..at(len)];
                for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
                    cached.extend(edge.start / block..edge.end.div_ceil(block));
                }
            }
            prop_assert!(direct.is_disjoint(&cached));
        }
    }
}
