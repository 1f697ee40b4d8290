//! Field arithmetic on slices: the one hot operation of scrfs.
//!
//! Encoding, rebuilding, degraded reads and copies are all
//! `destination = sum of coefficient * source` over GF(2^8), polynomial 0x11d; addition is XOR.
//! [`combine`] makes such sums, [`add`] adds them to what is there: any number of sources and
//! destinations in one pass, with the fastest of the [`kernels`] that the processor has.
//!
//! Invariants: a source is never longer than its destination, and what it is short of counts as
//! zeros; nothing is allocated; the result does not depend on the order of the terms, nor on the
//! kernel. Coefficients come from [`field`]. There is no I/O here, no bytes on disk, and no checksum.

pub mod field;
pub mod kernels;

use kernels::Kernel;

/// Sets each destination to its sum: `destinations[d] = sum over s of rows[d][s] * sources[s]`. What
/// they held before does not matter; without sources, and beyond the end of all of them, a sum is zeros.
///
/// Every source is read once, for all destinations. Coefficients of 1 alone are plain XOR, at nearly the
/// speed of a copy.
///
/// # Panics
///
/// When destinations differ in length, a source is longer than they are, or there is not one row for each
/// destination with one coefficient for each source: the plan that asked for it is broken.
pub fn combine(destinations: &mut [&mut [u8]], rows: &[&[u8]], sources: &[&[u8]]) {
    Kernel::best().sum(destinations, rows, sources, false);
}

/// As [`combine`], but adds the sums to what the destinations hold.
///
/// # Panics
///
/// As [`combine`].
pub fn add(destinations: &mut [&mut [u8]], rows: &[&[u8]], sources: &[&[u8]]) {
    Kernel::best().sum(destinations, rows, sources, true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Multiplication by the book: shift, and reduce by x^8 + x^4 + x^3 + x^2 + 1.
    fn reference_product(a: u8, b: u8) -> u8 {
        let (mut a, mut product) = (u16::from(a), 0_u16);
        for bit in 0..8 {
            if b >> bit & 1 == 1 {
                product ^= a;
            }
            a <<= 1;
            if a & 0x100 != 0 {
                a ^= 0x11d;
            }
        }
        u8::try_from(product).expect("reduced below 256 after every shift")
    }

    /// One sum, byte by byte.
    fn reference_sum(before: &[u8], row: &[u8], sources: &[&[u8]]) -> Vec<u8> {
        let mut sum = before.to_vec();
        for (&coefficient, source) in row.iter().zip(sources) {
            for (made, &byte) in sum.iter_mut().zip(*source) {
                *made ^= reference_product(coefficient, byte);
            }
        }
        sum
    }

    /// Bytes that look random and differ by `seed`.
    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let word = |i: usize| (seed + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..length).map(|i| (word(i) >> 40) as u8).collect()
    }

    #[test]
    fn what_the_processor_has_is_used() {
        let kernels = Kernel::available();
        assert_eq!(kernels.last(), Some(&Kernel::SCALAR));
        assert_eq!(kernels.first(), Some(&Kernel::best()));
        #[cfg(target_arch = "x86_64")]
        {
            let has = |name| kernels.iter().any(|kernel| kernel.name() == name);
            assert_eq!(has("AVX2"), is_x86_feature_detected!("avx2"));
            let wide = is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512bw");
            assert_eq!(has("GFNI"), wide);
        }
        #[cfg(target_arch = "aarch64")]
        assert_eq!(kernels.len(), 2, "every such processor has NEON");
    }

    #[test]
    fn every_kernel_knows_all_products() {
        let every: Vec<u8> = (0..=255).collect();
        for kernel in Kernel::available() {
            for c in 0..=255_u8 {
                let mut made = vec![0_u8; 256];
                kernel.sum(&mut [&mut made], &[&[c]], &[&every], false);
                let expected: Vec<u8> = every.iter().map(|&x| reference_product(c, x)).collect();
                assert_eq!(made, expected, "{kernel:?}, coefficient {c}");
            }
        }
    }

    /// Every length up to beyond several vectors, at every place within one, and not a byte beside.
    #[test]
    fn every_kernel_does_every_length_at_every_alignment() {
        const AROUND: usize = 64;
        let (one, two) = (bytes(1, 700), bytes(2, 700));
        for kernel in Kernel::available() {
            for length in 0..=300 {
                for (row, keep) in [([1, 1], false), ([1, 1], true), ([7, 200], false)] {
                    let (at, from) = (length * 7 % AROUND, length * 13 % AROUND);
                    let sources = [&one[from..from + length], &two[at..at + length]];
                    let mut made = bytes(3, length + 2 * AROUND);
                    let before = made.clone();
                    let target = &mut made[at..at + length];
                    kernel.sum(&mut [target], &[&row], &sources, keep);
                    let start = match keep {
                        true => before[at..at + length].to_vec(),
                        false => vec![0; length],
                    };
                    let expected = reference_sum(&start, &row, &sources);
                    let case = format!("{kernel:?}, {length} bytes at {at} from {from}, {row:?}");
                    assert_eq!(made[at..at + length], expected, "{case}");
                    assert_eq!(made[..at], before[..at], "{case}");
                    assert_eq!(made[at + length..], before[at + length..], "{case}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a source of 4 bytes does not fit a destination of 3")]
    fn a_source_longer_than_its_destination_is_refused() {
        combine(&mut [&mut [0; 3]], &[&[0]], &[&[1; 4]]);
    }

    #[test]
    #[should_panic(expected = "destinations of 3 and 4 bytes")]
    fn destinations_of_several_lengths_are_refused() {
        combine(&mut [&mut [0; 3], &mut [0; 4]], &[&[1], &[1]], &[&[1; 3]]);
    }

    #[test]
    #[should_panic(expected = "1 coefficients for 2 sources")]
    fn a_row_too_short_is_refused() {
        combine(&mut [&mut [0; 3]], &[&[1]], &[&[1; 3], &[2; 3]]);
    }

    #[test]
    #[should_panic(expected = "2 rows of coefficients for 1 destinations")]
    fn a_row_too_many_is_refused() {
        combine(&mut [&mut [0; 3]], &[&[1], &[2]], &[&[1; 3]]);
    }

    proptest! {
        /// More sources and destinations than one pass takes, of any lengths.
        #[test]
        fn every_kernel_makes_the_sums_of_the_reference(
            length in prop_oneof![0_usize..600, 4000_usize..9000],
            ends in proptest::collection::vec(any::<Option<u16>>(), 0..40),
            coefficients in proptest::collection::vec(any::<u8>(), 240),
            plain in any::<bool>(),
            targets in 1_usize..6,
            keep in any::<bool>(),
            offset in 0_usize..64,
        ) {
            let all: Vec<Vec<u8>> = (0..).zip(&ends)
                .map(|(seed, end)| {
                    let own = end.map_or(length, |end| usize::from(end) % (length + 1));
                    bytes(seed, offset + own)
                })
                .collect();
            let sources: Vec<&[u8]> = all.iter().map(|source| &source[offset..]).collect();
            let coefficient = |c: u8| if plain { 1 } else { c };
            let rows: Vec<Vec<u8>> = (0..targets)
                .map(|t| (0..sources.len()).map(|s| coefficient(coefficients[t * 40 + s])).collect())
                .collect();
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            let before: Vec<Vec<u8>> = (0..targets).map(|t| bytes(t as u64 + 99, length)).collect();
            let expected: Vec<Vec<u8>> = before.iter().zip(&rows)
                .map(|(before, row)| match keep {
                    true => reference_sum(before, row, &sources),
                    false => reference_sum(&vec![0; length], row, &sources),
                })
                .collect();
            for kernel in Kernel::available() {
                let mut made = before.clone();
                let mut to: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
                kernel.sum(&mut to, &rows, &sources, keep);
                prop_assert!(made == expected, "{:?}", kernel);
            }
        }

        #[test]
        fn adding_the_same_term_twice_changes_nothing(
            before in proptest::collection::vec(any::<u8>(), 300),
            source in proptest::collection::vec(any::<u8>(), 0..=300),
            c in any::<u8>(),
        ) {
            let mut made = before.clone();
            add(&mut [&mut made], &[&[c]], &[&source]);
            add(&mut [&mut made], &[&[c]], &[&source]);
            prop_assert_eq!(made, before);
        }
    }
}
