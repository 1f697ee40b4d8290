//! Field arithmetic on slices: the one hot operation of scrfs.
//!
//! Encoding, rebuilding, degraded reads and copies are all
//! `destination = sum of coefficient * source` over GF(2^8), polynomial 0x11d; addition is XOR.
//! [`multiply_add`] adds one term, [`xor_all`] writes a whole sum of coefficient 1.
//!
//! Invariants: a source is never longer than its destination, and what it is short of counts as
//! zeros; nothing is allocated; the result does not depend on the order of the terms.
//! Coefficients come from [`field`]. There is no I/O here, no bytes on disk, and no checksum.

pub mod field;

use reed_solomon_erasure::galois_8;

/// Bytes that [`xor_all`] finishes before it goes on: they stay in the first-level cache.
const BLOCK_BYTES: usize = 8 << 10;

/// Adds `coefficient * source` to `destination`, byte by byte: `destination ^= coefficient *
/// source`.
///
/// Destination bytes beyond `source.len()` are left alone. Coefficient 0 changes nothing,
/// coefficient 1 is plain XOR at nearly the speed of a copy.
///
/// # Panics
///
/// When `source` is longer than `destination`: the plan that asked for it is broken.
pub fn multiply_add(destination: &mut [u8], coefficient: u8, source: &[u8]) {
    let destination = covered(destination, source);
    match coefficient {
        0 => {}
        1 => xor1(destination, source),
        _ => galois_8::mul_slice_xor(coefficient, source, destination),
    }
}

/// Sets `destination` to the XOR of all `sources` in one pass; what it held before does not
/// matter. The first source is copied, the others are added while the bytes are in cache.
///
/// No sources, and bytes beyond every source's end, give zeros.
///
/// # Panics
///
/// When a source is longer than `destination`: the plan that asked for it is broken.
pub fn xor_all(destination: &mut [u8], sources: &[&[u8]]) {
    for source in sources {
        covered(destination, source);
    }
    let Some((first, others)) = sources.split_first() else {
        destination.fill(0);
        return;
    };
    let length = destination.len();
    for start in (0..length).step_by(BLOCK_BYTES) {
        let end = length.min(start + BLOCK_BYTES);
        let block = &mut destination[start..end];
        let head = clip(first, start, end);
        let (copied, rest) = block.split_at_mut(head.len());
        copied.copy_from_slice(head);
        rest.fill(0);
        for group in others.chunks(3) {
            match group {
                [a, b, c] => xor_group(block, [a, b, c].map(|s| clip(s, start, end))),
                _ => group
                    .iter()
                    .for_each(|s| xor_group(block, [clip(s, start, end)])),
            }
        }
    }
}

/// The part of `destination` that `source` reaches.
fn covered<'d>(destination: &'d mut [u8], source: &[u8]) -> &'d mut [u8] {
    assert!(
        source.len() <= destination.len(),
        "a source of {} bytes does not fit a destination of {}",
        source.len(),
        destination.len()
    );
    &mut destination[..source.len()]
}

/// The bytes `start..end` of `source` as far as it has them.
fn clip(source: &[u8], start: usize, end: usize) -> &[u8] {
    &source[start.min(source.len())..end.min(source.len())]
}

/// Adds all of `sources` in one pass over `block` where they are of full length.
fn xor_group<const N: usize>(block: &mut [u8], sources: [&[u8]; N]) {
    if N == 3 && sources.iter().all(|s| s.len() == block.len()) {
        xor3(block, sources[0], sources[1], sources[2]);
    } else {
        for source in sources {
            xor1(&mut block[..source.len()], source);
        }
    }
}

/// Plain loops over equal lengths: the compiler turns them into vector instructions. With zipped
/// slices it sees that no index can be out of bounds.
fn xor1(destination: &mut [u8], source: &[u8]) {
    for (d, s) in destination.iter_mut().zip(source) {
        *d ^= s;
    }
}

fn xor3(destination: &mut [u8], a: &[u8], b: &[u8], c: &[u8]) {
    for (((d, a), b), c) in destination.iter_mut().zip(a).zip(b).zip(c) {
        *d ^= a ^ b ^ c;
    }
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

    #[test]
    fn all_products_agree_with_the_reference() {
        let every: Vec<u8> = (0..=255).collect();
        for c in 0..=255_u8 {
            let mut destination = vec![0_u8; 256];
            multiply_add(&mut destination, c, &every);
            let expected: Vec<u8> = every.iter().map(|&x| reference_product(c, x)).collect();
            assert_eq!(destination, expected, "coefficient {c}");
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_source_longer_than_its_destination_is_refused() {
        multiply_add(&mut [0; 3], 0, &[1; 4]);
    }

    proptest! {
        #[test]
        fn multiply_add_adds_the_product_and_leaves_the_tail(
            mut destination in proptest::collection::vec(any::<u8>(), 0..600),
            source in proptest::collection::vec(any::<u8>(), 0..600),
            c in any::<u8>(),
        ) {
            let source = &source[..source.len().min(destination.len())];
            let expected: Vec<u8> = destination.iter().enumerate()
                .map(|(i, d)| d ^ source.get(i).map_or(0, |&s| reference_product(c, s)))
                .collect();
            multiply_add(&mut destination, c, source);
            prop_assert_eq!(&destination, &expected);
        }

        #[test]
        fn adding_the_same_term_twice_changes_nothing(
            before in proptest::collection::vec(any::<u8>(), 300),
            source in proptest::collection::vec(any::<u8>(), 0..=300),
            c in any::<u8>(),
        ) {
            let mut destination = before.clone();
            multiply_add(&mut destination, c, &source);
            multiply_add(&mut destination, c, &source);
            prop_assert_eq!(destination, before);
        }

        #[test]
        fn xor_all_is_the_sum_of_its_sources(
            len in 0_usize..3 * BLOCK_BYTES,
            cuts in proptest::collection::vec((any::<u64>(), any::<bool>()), 0..9),
        ) {
            let sources: Vec<Vec<u8>> = cuts.iter().map(|&(seed, whole)| {
                let own = if whole { len } else { seed as usize % (len + 1) };
                (0..own).map(|i| (seed.wrapping_mul(i as u64 | 1) >> 29) as u8).collect()
            }).collect();
            let mut expected = vec![0; len];
            for source in &sources {
                for (e, s) in expected.iter_mut().zip(source) {
                    *e ^= s;
                }
            }
            let mut destination = vec![0xa5; len];
            let slices: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
            xor_all(&mut destination, &slices);
            prop_assert!(destination == expected);
        }
    }

    /// `cargo test --release -p scrfs codec::tests::speed -- --ignored --nocapture`
    #[test]
    #[ignore = "prints figures, checks nothing"]
    #[allow(clippy::disallowed_methods)]
    fn speed() {
        let bytes = 256 << 10;
        let sources: Vec<Vec<u8>> = (1..=4).map(|i| vec![i; bytes]).collect();
        let slices: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
        let mut destination = vec![0; bytes];
        let mut time = |name: &str, moved: usize, run: &dyn Fn(&mut [u8])| {
            let mut best = f64::MAX;
            for _ in 0..400 {
                let start = std::time::Instant::now();
                run(std::hint::black_box(&mut destination));
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!("{name:12} {:6.1} GB/s", moved as f64 / best / 1e9);
        };
        time("copy", bytes, &|d| d.copy_from_slice(&sources[0]));
        time("xor", bytes, &|d| multiply_add(d, 1, &sources[0]));
        time("xor_all of 4", 4 * bytes, &|d| xor_all(d, &slices));
        time("times 7", bytes, &|d| multiply_add(d, 7, &sources[0]));
    }
}
