//! Sums over GF(2^8) with vector instructions, chosen when the program runs.
//!
//! One loop for all processors, over a `Vector` of theirs: every source is read once, every
//! destination written once, and the sums of up to `DESTINATIONS_MAX` destinations stay in
//! registers while all sources go by. Multiplying by a constant is linear over the bits of a byte: with
//! GFNI one instruction does it for 64 bytes, elsewhere two look-ups in tables of 16 bytes do, one for
//! each half of a byte.
//!
//! Invariants: all kernels give the same bytes as the reference, for any length and alignment; a
//! [`Kernel`] exists only where the processor can run it. Nothing is allocated.
//!
//! `unsafe` is here because vector instructions take pointers, and must not run on a processor that
//! lacks them.
#![allow(unsafe_code)]

use reed_solomon_erasure::galois_8;
use std::sync::OnceLock;

/// Sources that go by in one pass: about as many streams as hardware follows.
const SOURCES_MAX: usize = 16;
/// Destinations of one pass: their sums fit the registers.
const DESTINATIONS_MAX: usize = 4;
/// Where several passes are needed, bytes of each destination that all of them finish before the next
/// ones are begun: they stay in the first-level cache.
const BLOCK_BYTES: usize = 4 << 10;

/// A way to compute sums that this processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Gfni,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// One source of a pass, and its factor for each destination.
#[derive(Clone, Copy)]
struct Term<'a, const M: usize> {
    bytes: &'a [u8],
    factors: [u8; M],
}

impl Kernel {
    /// Byte by byte, through the tables of the `reed_solomon_erasure` crate: the reference that the
    /// others are held against.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// All that this processor has, the fastest first, the reference last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512bw") {
                found.push(Self(Kind::Gfni));
            }
            if is_x86_feature_detected!("avx2") {
                found.push(Self(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            found.push(Self(Kind::Neon));
        }
        found.push(Self::SCALAR);
        found
    }

    /// The fastest that this processor has.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// Its name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::Gfni => "GFNI",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
        }
    }

    /// What [`combine`](super::combine) and [`add`](super::add) do, with this kernel: `keep` says
    /// whether the sums are added to what the destinations hold.
    ///
    /// # Panics
    ///
    /// As they do.
    pub fn sum(
        self,
        destinations: &mut [&mut [u8]],
        rows: &[&[u8]],
        sources: &[&[u8]],
        keep: bool,
    ) {
        let length = check(destinations, rows, sources);
        let is_one_pass = destinations.len() <= DESTINATIONS_MAX && sources.len() <= SOURCES_MAX;
        let block_bytes = if is_one_pass { length } else { BLOCK_BYTES };
        let mut start = 0;
        while start < length {
            // A block ends where a source does.
            let end = sources
                .iter()
                .map(|source| source.len())
                .filter(|&end| end > start)
                .fold(length.min(start + block_bytes), usize::min);
            let groups = destinations.chunks_mut(DESTINATIONS_MAX);
            for (group, rows) in groups.zip(rows.chunks(DESTINATIONS_MAX)) {
                match (group, rows) {
                    ([a], [r]) => self.block([&mut a[start..end]], [r], sources, start, keep),
                    ([a, b], [r, s]) => {
                        let to = [a, b].map(|d| &mut d[start..end]);
                        self.block(to, [r, s], sources, start, keep);
                    }
                    ([a, b, c], [r, s, t]) => {
                        let to = [a, b, c].map(|d| &mut d[start..end]);
                        self.block(to, [r, s, t], sources, start, keep);
                    }
                    ([a, b, c, d], [r, s, t, u]) => {
                        let to = [a, b, c, d].map(|d| &mut d[start..end]);
                        self.block(to, [r, s, t, u], sources, start, keep);
                    }
                    _ => unreachable!("chunks of as many rows as destinations, at most four"),
                }
            }
            start = end;
        }
    }

    /// One block: `to` are the bytes of the destinations from `start` on, and every source ends before
    /// them or reaches beyond them.
    fn block<const M: usize>(
        self,
        mut to: [&mut [u8]; M],
        rows: [&&[u8]; M],
        sources: &[&[u8]],
        start: usize,
        mut keep: bool,
    ) {
        let end = start + to[0].len();
        let nothing = Term {
            bytes: &[][..],
            factors: [0; M],
        };
        let mut terms = [nothing; SOURCES_MAX];
        let mut count = 0;
        for (index, source) in sources.iter().enumerate() {
            if source.len() < end {
                continue;
            }
            if count == SOURCES_MAX {
                self.pass(&mut to, &terms, keep);
                (count, keep) = (0, true);
            }
            terms[count] = Term {
                bytes: &source[start..end],
                factors: rows.map(|row| row[index]),
            };
            count += 1;
        }
        if count > 0 {
            self.pass(&mut to, &terms[..count], keep);
        } else if !keep {
            to.iter_mut().for_each(|d| d.fill(0));
        }
    }

    /// All destinations and terms have the same length.
    fn pass<const M: usize>(self, to: &mut [&mut [u8]; M], terms: &[Term<'_, M>], keep: bool) {
        let length = to[0].len();
        assert!(to.iter().all(|d| d.len() == length));
        assert!(terms.iter().all(|term| term.bytes.len() == length));
        let is_plain = terms.iter().all(|term| term.factors == [1; M]);
        let pass: unsafe fn(&mut [&mut [u8]; M], &[Term<'_, M>], bool) = match (self.0, is_plain) {
            (Kind::Scalar, _) => scalar,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, true) => x86::avx2::<M, true>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, false) => x86::avx2::<M, false>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Gfni, true) => x86::gfni::<M, true>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Gfni, false) => x86::gfni::<M, false>,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, true) => arm::neon::<M, true>,
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, false) => arm::neon::<M, false>,
        };
        // SAFETY: a `Kernel` other than the reference is made only by `available`, which has asked
        // the processor; the lengths are equal, see above.
        unsafe { pass(to, terms, keep) }
    }
}

/// The common length of the destinations.
fn check(destinations: &[&mut [u8]], rows: &[&[u8]], sources: &[&[u8]]) -> usize {
    let length = destinations.first().map_or(0, |d| d.len());
    for destination in destinations {
        let found = destination.len();
        assert!(
            found == length,
            "destinations of {length} and {found} bytes in one sum"
        );
    }
    for source in sources {
        let found = source.len();
        assert!(
            found <= length,
            "a source of {found} bytes does not fit a destination of {length}"
        );
    }
    let (found, wanted) = (rows.len(), destinations.len());
    assert!(
        found == wanted,
        "{found} rows of coefficients for {wanted} destinations"
    );
    for row in rows {
        let (found, wanted) = (row.len(), sources.len());
        assert!(found == wanted, "{found} coefficients for {wanted} sources");
    }
    length
}

fn scalar<const M: usize>(to: &mut [&mut [u8]; M], terms: &[Term<'_, M>], keep: bool) {
    for (m, destination) in to.iter_mut().enumerate() {
        if !keep {
            destination.fill(0);
        }
        for term in terms {
            match term.factors[m] {
                0 => {}
                1 => destination
                    .iter_mut()
                    .zip(term.bytes)
                    .for_each(|(d, s)| *d ^= s),
                factor => galois_8::mul_slice_xor(factor, term.bytes, destination),
            }
        }
    }
}

/// Bytes that a processor works on at once. All of it is inlined into functions that have the
/// instructions enabled.
///
/// # Safety
///
/// Every method: the processor has these instructions. `load` and `store`: `BYTES` bytes from the
/// pointer on may be read, or written; it need not be aligned.
trait Vector: Copy {
    const BYTES: usize;
    /// A constant, as multiplication wants it.
    type Factor: Copy;

    unsafe fn zero() -> Self;
    unsafe fn load(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut u8);
    unsafe fn xor(self, other: Self) -> Self;
    unsafe fn factor(coefficient: u8) -> Self::Factor;
    unsafe fn times(self, factor: Self::Factor) -> Self;
}

/// A pass: `WIDE` vectors of each destination at a time, then single ones, then what is shorter.
///
/// # Safety
///
/// The processor has the instructions of `V`; destinations and terms are of one length.
#[inline(always)]
unsafe fn run<V: Vector, const M: usize, const WIDE: usize, const PLAIN: bool>(
    to: &mut [&mut [u8]; M],
    terms: &[Term<'_, M>],
    keep: bool,
) {
    let length = to[0].len();
    let mut at = 0;
    while at + WIDE * V::BYTES <= length {
        // SAFETY: `WIDE` vectors from `at` on lie in each slice.
        unsafe {
            let targets = to.each_mut().map(|d| d.as_mut_ptr().add(at));
            let sources = terms.iter().map(|t| (t.bytes.as_ptr().add(at), t.factors));
            step::<V, M, WIDE, PLAIN>(targets, sources, keep);
        }
        at += WIDE * V::BYTES;
    }
    while at + V::BYTES <= length {
        // SAFETY: one vector from `at` on lies in each slice.
        unsafe {
            let targets = to.each_mut().map(|d| d.as_mut_ptr().add(at));
            let sources = terms.iter().map(|t| (t.bytes.as_ptr().add(at), t.factors));
            step::<V, M, 1, PLAIN>(targets, sources, keep);
        }
        at += V::BYTES;
    }
    if at < length {
        let rest = length - at;
        let mut sums = [[0; PADDED_BYTES]; M];
        for (sum, d) in sums.iter_mut().zip(to.iter()) {
            sum[..rest].copy_from_slice(&d[at..]);
        }
        let mut source = [0; PADDED_BYTES];
        // SAFETY: the padded copies are as long as any vector; a source's is read before the next one
        // takes its place.
        unsafe {
            let targets = sums.each_mut().map(|sum| sum.as_mut_ptr());
            let sources = terms.iter().map(|t| {
                source[..rest].copy_from_slice(&t.bytes[at..]);
                (source.as_ptr(), t.factors)
            });
            step::<V, M, 1, PLAIN>(targets, sources, keep);
        }
        for (sum, d) in sums.iter().zip(to.iter_mut()) {
            d[at..].copy_from_slice(&sum[..rest]);
        }
    }
}

/// The longest vector.
const PADDED_BYTES: usize = 64;

/// `WIDE` vectors of each destination.
///
/// # Safety
///
/// The processor has the instructions of `V`; `WIDE` vectors may be read at each source when the
/// iterator gives it, and read and written at each target.
#[inline(always)]
unsafe fn step<V: Vector, const M: usize, const WIDE: usize, const PLAIN: bool>(
    to: [*mut u8; M],
    from: impl Iterator<Item = (*const u8, [u8; M])>,
    keep: bool,
) {
    // SAFETY: the caller's promises are those that each call asks for.
    unsafe {
        let mut sums = [[V::zero(); WIDE]; M];
        if keep {
            for (sums, to) in sums.iter_mut().zip(to) {
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(to.add(w * V::BYTES));
                }
            }
        }
        for (source, factors) in from {
            let mut loaded = [V::zero(); WIDE];
            for (w, loaded) in loaded.iter_mut().enumerate() {
                *loaded = V::load(source.add(w * V::BYTES));
            }
            for (sums, factor) in sums.iter_mut().zip(factors) {
                if PLAIN {
                    for (sum, loaded) in sums.iter_mut().zip(loaded) {
                        *sum = sum.xor(loaded);
                    }
                } else {
                    let factor = V::factor(factor);
                    for (sum, loaded) in sums.iter_mut().zip(loaded) {
                        *sum = sum.xor(loaded.times(factor));
                    }
                }
            }
        }
        for (sums, to) in sums.iter().zip(to) {
            for (w, sum) in sums.iter().enumerate() {
                sum.store(to.add(w * V::BYTES));
            }
        }
    }
}

/// `a * b`, by shifting, reduced by x^8 + x^4 + x^3 + x^2 + 1.
const fn product(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ (if a & 0x80 != 0 { 0x1d } else { 0 });
        b >>= 1;
    }
    product
}

/// For each constant its products with 0..16, then with the multiples of 16: those of the two halves
/// of a byte.
static HALVES: [[u8; 32]; 256] = {
    let mut tables = [[0; 32]; 256];
    let mut constant = 0;
    while constant < 256 {
        let mut half = 0;
        while half < 16 {
            tables[constant][half] = product(constant as u8, half as u8);
            tables[constant][16 + half] = product(constant as u8, (half << 4) as u8);
            half += 1;
        }
        constant += 1;
    }
    tables
};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{HALVES, Term, Vector, product, run};
    use std::arch::x86_64::*;

    /// # Safety
    ///
    /// The processor has GFNI and AVX-512 BW; destinations and terms are of one length.
    #[target_feature(enable = "gfni,avx512f,avx512bw")]
    pub(super) unsafe fn gfni<const M: usize, const PLAIN: bool>(
        to: &mut [&mut [u8]; M],
        terms: &[Term<'_, M>],
        keep: bool,
    ) {
        // SAFETY: as the caller promises.
        unsafe { run::<Bytes64, M, 4, PLAIN>(to, terms, keep) }
    }

    /// # Safety
    ///
    /// The processor has AVX2; destinations and terms are of one length.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2<const M: usize, const PLAIN: bool>(
        to: &mut [&mut [u8]; M],
        terms: &[Term<'_, M>],
        keep: bool,
    ) {
        // With more than two destinations, two vectors of each are all that registers hold.
        // SAFETY: as the caller promises.
        unsafe {
            if M > 2 {
                run::<Bytes32, M, 2, PLAIN>(to, terms, keep);
            } else {
                run::<Bytes32, M, 4, PLAIN>(to, terms, keep);
            }
        }
    }

    /// For each constant its multiplication as a matrix of bits, as `vgf2p8affineqb` wants it: the
    /// row that makes bit i of the product is byte 7 - i.
    static MATRICES: [u64; 256] = {
        let mut matrices = [0; 256];
        let mut constant = 0;
        while constant < 256 {
            let mut from = 0;
            while from < 8 {
                let column = product(constant as u8, 1 << from);
                let mut bit = 0;
                while bit < 8 {
                    if column >> bit & 1 != 0 {
                        matrices[constant] |= 1_u64 << (8 * (7 - bit) + from);
                    }
                    bit += 1;
                }
                from += 1;
            }
            constant += 1;
        }
        matrices
    };

    #[derive(Clone, Copy)]
    struct Bytes64(__m512i);

    impl Vector for Bytes64 {
        const BYTES: usize = 64;
        type Factor = __m512i;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as the trait demands, here and below.
            Self(unsafe { _mm512_setzero_si512() })
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_loadu_si512(from.cast()) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_si512(to.cast(), self.0) }
        }
        #[inline(always)]
        unsafe fn xor(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_xor_si512(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn factor(coefficient: u8) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_set1_epi64(MATRICES[usize::from(coefficient)] as i64) }
        }
        #[inline(always)]
        unsafe fn times(self, factor: __m512i) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_gf2p8affine_epi64_epi8::<0>(self.0, factor) })
        }
    }

    #[derive(Clone, Copy)]
    struct Bytes32(__m256i);

    impl Vector for Bytes32 {
        const BYTES: usize = 32;
        /// The tables of the low and the high halves.
        type Factor = (__m256i, __m256i);

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as the trait demands, here and below.
            Self(unsafe { _mm256_setzero_si256() })
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_loadu_si256(from.cast()) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: see above.
            unsafe { _mm256_storeu_si256(to.cast(), self.0) }
        }
        #[inline(always)]
        unsafe fn xor(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_xor_si256(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn factor(coefficient: u8) -> Self::Factor {
            let table = HALVES[usize::from(coefficient)].as_ptr().cast::<__m128i>();
            // SAFETY: a table is two of these, and loads need no alignment.
            unsafe {
                (
                    _mm256_broadcastsi128_si256(_mm_loadu_si128(table)),
                    _mm256_broadcastsi128_si256(_mm_loadu_si128(table.add(1))),
                )
            }
        }
        #[inline(always)]
        unsafe fn times(self, (low, high): Self::Factor) -> Self {
            // SAFETY: see above.
            unsafe {
                let half = _mm256_set1_epi8(0x0f);
                let lower = _mm256_and_si256(self.0, half);
                let upper = _mm256_and_si256(_mm256_srli_epi64::<4>(self.0), half);
                Self(_mm256_xor_si256(
                    _mm256_shuffle_epi8(low, lower),
                    _mm256_shuffle_epi8(high, upper),
                ))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{HALVES, Term, Vector, run};
    use std::arch::aarch64::*;

    /// # Safety
    ///
    /// The processor has NEON; destinations and terms are of one length.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn neon<const M: usize, const PLAIN: bool>(
        to: &mut [&mut [u8]; M],
        terms: &[Term<'_, M>],
        keep: bool,
    ) {
        // SAFETY: as the caller promises.
        unsafe { run::<Bytes16, M, 4, PLAIN>(to, terms, keep) }
    }

    #[derive(Clone, Copy)]
    struct Bytes16(uint8x16_t);

    impl Vector for Bytes16 {
        const BYTES: usize = 16;
        /// The tables of the low and the high halves.
        type Factor = (uint8x16_t, uint8x16_t);

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as the trait demands, here and below.
            Self(unsafe { vdupq_n_u8(0) })
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self {
            // SAFETY: see above.
            Self(unsafe { vld1q_u8(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: see above.
            unsafe { vst1q_u8(to, self.0) }
        }
        #[inline(always)]
        unsafe fn xor(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { veorq_u8(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn factor(coefficient: u8) -> Self::Factor {
            let table = HALVES[usize::from(coefficient)].as_ptr();
            // SAFETY: a table is two vectors long.
            unsafe { (vld1q_u8(table), vld1q_u8(table.add(16))) }
        }
        #[inline(always)]
        unsafe fn times(self, (low, high): Self::Factor) -> Self {
            // SAFETY: see above.
            unsafe {
                let lower = vandq_u8(self.0, vdupq_n_u8(0x0f));
                let upper = vshrq_n_u8::<4>(self.0);
                Self(veorq_u8(vqtbl1q_u8(low, lower), vqtbl1q_u8(high, upper)))
            }
        }
    }
}
