//! The codec's kernels beside what the machine does at best: `cargo bench -p scrfs --bench codec`.
//!
//! Bytes counted are those of all sources, over the processor time of the thread, so that other work
//! on the machine moves the figures less. Buffers of 64 KiB and 1 MiB lie in a core's caches, those
//! of 32 MiB do not lie in its own.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use scrfs::codec::kernels::Kernel;
use std::hint::black_box;
use std::time::Duration;

const LENGTHS: [usize; 3] = [64 << 10, 1 << 20, 32 << 20];

/// Data and parity shards of the fused sums.
const SHAPES: [(usize, usize); 4] = [(3, 1), (4, 2), (6, 2), (8, 3)];

fn buffers(count: usize, length: usize) -> Vec<Vec<u8>> {
    let byte = |seed: usize, i: usize| (seed + i).wrapping_mul(0x9e37_79b9) as u8;
    (0..count)
        .map(|seed| (0..length).map(|i| byte(seed, i)).collect())
        .collect()
}

fn label(length: usize) -> String {
    format!("{} KiB", length >> 10)
}

/// One source: a copy, a plain sum, a multiple.
fn single(c: &mut Criterion<CpuTime>) {
    for length in LENGTHS {
        let sources = buffers(1, length);
        let mut to = vec![1; length];
        let mut group = c.benchmark_group(format!("one source, {}", label(length)));
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function("memcpy", |b| {
            b.iter(|| black_box(&mut to).copy_from_slice(black_box(&sources[0])));
        });
        for kernel in Kernel::available() {
            for (name, coefficient) in [("xor", 1), ("multiply and add", 29)] {
                group.bench_function(BenchmarkId::new(name, kernel.name()), |b| {
                    b.iter(|| {
                        let to = black_box(&mut to).as_mut_slice();
                        kernel.sum(&mut [to], &[&[coefficient]], &[&sources[0]], true);
                    });
                });
            }
        }
        group.finish();
    }
}

/// All sources and destinations in one pass, and one pass for each pair.
fn fused(c: &mut Criterion<CpuTime>) {
    for length in LENGTHS {
        for (data, parity) in SHAPES {
            let sources = buffers(data, length);
            let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
            let mut made = vec![vec![0; length]; parity];
            let rows: Vec<Vec<u8>> = (0..parity)
                .map(|p| (0..data).map(|d| (2 + p * data + d) as u8).collect())
                .collect();
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            let name = format!("{data} data, {parity} parity, {}", label(length));
            let mut group = c.benchmark_group(name);
            group.throughput(Throughput::Bytes((data * length) as u64));
            for kernel in Kernel::available() {
                group.bench_function(BenchmarkId::new("fused", kernel.name()), |b| {
                    b.iter(|| {
                        let mut to: Vec<&mut [u8]> = black_box(&mut made)
                            .iter_mut()
                            .map(Vec::as_mut_slice)
                            .collect();
                        kernel.sum(&mut to, &rows, &sources, false);
                    });
                });
                group.bench_function(BenchmarkId::new("a pass each", kernel.name()), |b| {
                    b.iter(|| {
                        for (to, row) in black_box(&mut made).iter_mut().zip(&rows) {
                            for (index, source) in sources.iter().enumerate() {
                                let row = &row[index..=index];
                                kernel.sum(&mut [to], &[row], &[source], index > 0);
                            }
                        }
                    });
                });
            }
            if parity == 1 {
                let ones = vec![1; data];
                for kernel in Kernel::available() {
                    group.bench_function(BenchmarkId::new("xor", kernel.name()), |b| {
                        b.iter(|| {
                            let to = black_box(&mut made[0]).as_mut_slice();
                            kernel.sum(&mut [to], &[&ones], &sources, false);
                        });
                    });
                }
            }
            group.finish();
        }
    }
}

/// The processor time of the measuring thread.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
        Duration::from(time.expect("every thread has such a clock"))
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = single, fused
}
criterion_main!(benches);
