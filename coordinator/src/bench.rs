//! Measures the transfer engine beside what the machine can do at all: `scrfs bench` prints it.
//!
//! Data are files in a directory of the caller's choice, best a tmpfs, one part a rank, each run
//! makes all parity of one redundancy set, checksums included. GB/s are 10^9 bytes of *data* of
//! all ranks over the time from the first rank's start to the last rank's end; the first run, which
//! makes new pages for the parity, is left out, and the median of the others is given.
//!
//! Limits are taken in the same run on the same cores, because a machine's figures differ by a
//! factor of two from one hour to the next. Not measured here: a disk, a network, the prefix.

use crate::transfer::{Engine, JobEvent, JobId, Limits, PartStore, TransferError};
use bytes::Bytes;
use scrfs::codec;
use scrfs::fabric::{Fabric, FabricError, Lane, local};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::envelope::crc32c;
use scrfs::redundancy::{Extent, GeometryError, Scheme, SetGeometry, Stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const DATASET: DatasetId = DatasetId(1);
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes of a buffer of the limits, or of a part if that is less: beyond the caches of one core, times the number of sources.
const LIMIT_BYTES: usize = 64 << 20;
/// How long a rank waits for the others at the start and the end of a run.
const PATIENCE: Duration = Duration::from_secs(120);

/// One measured number.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Of `value` and `limit`.
    pub unit: String,
    /// What the machine does at best, from the same run; `None` for a limit itself.
    pub limit: Option<f64>,
    /// `value / limit`.
    pub ratio: Option<f64>,
    /// How many runs the median is of.
    pub runs: u32,
}

/// What to measure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Encode {
    /// The redundancy scheme of the set of all ranks.
    pub scheme: Scheme,
    /// Bytes of each rank's part.
    pub part_bytes: u64,
    /// Bytes of a unit of the plan.
    pub unit_bytes: u32,
    /// Runs that count.
    pub runs: u32,
    /// Bounds of the engine.
    pub limits: Limits,
}

impl Default for Encode {
    fn default() -> Self {
        Self {
            scheme: Scheme::Xor,
            part_bytes: 256 << 20,
            unit_bytes: 128 << 10,
            runs: 5,
            limits: Limits::default(),
        }
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The files cannot be made.
    #[error("cannot prepare the files to measure with")]
    Prepare(#[from] io::Error),
    /// There is no such redundancy set.
    #[error("cannot form the redundancy set")]
    Geometry(#[from] GeometryError),
    /// The fabric failed.
    #[error("the fabric failed")]
    Fabric(#[from] FabricError),
    /// The transfer failed.
    #[error("the encode failed")]
    Transfer(#[from] TransferError),
    /// Another rank did not get as far.
    #[error("{0} waited for the others in vain")]
    Alone(Rank),
    /// A thread of the measurement panicked.
    #[error("a measuring thread panicked")]
    Panicked,
}

/// Encodes among `ranks` threads of this process over the local fabric, files in `directory`, and
/// measures the limits.
pub fn bench_encode(ranks: u32, directory: &Path, what: Encode) -> Result<Vec<Figure>, BenchError> {
    let results: Vec<Result<Vec<f64>, BenchError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = local::cluster(ranks, 1)
            .into_iter()
            .map(|mut fabric| scope.spawn(move || encode_rank(&mut fabric, directory, what)))
            .collect();
        let joined = threads
            .into_iter()
            .map(|t| t.join().unwrap_or(Err(BenchError::Panicked)));
        joined.collect()
    });
    let mut seconds = Vec::new();
    for (rank, result) in results.into_iter().enumerate() {
        let result = result?;
        if rank == 0 {
            seconds = result;
        }
    }
    Ok(figures("local", ranks, what, seconds))
}

/// The part of one rank in a measurement over any fabric; all ranks call it alike. The seconds of
/// each run that counts, by this rank's clock; rank 0 goes on with [`figures`].
pub fn encode_rank<F: Fabric>(
    fabric: &mut F,
    directory: &Path,
    what: Encode,
) -> Result<Vec<f64>, BenchError> {
    let (me, size) = (fabric.me(), fabric.size());
    let members = (0..size)
        .map(|rank| (Slot(rank), what.part_bytes))
        .collect();
    let geometry = SetGeometry::new(what.scheme, members, CHUNK_BYTES)?;
    let holders: BTreeMap<Slot, Rank> = (0..size).map(|n| (Slot(n), Rank(n))).collect();
    let store = FileStore::new(directory, Slot(me.0), what.part_bytes)?;
    let engine = Engine::new(me, what.limits);
    let mut run = Run {
        fabric,
        engine,
        store,
        met: vec![0; size as usize],
        meetings: 0,
    };
    run.meet()?;
    let mut seconds = Vec::new();
    for count in 0..=what.runs {
        let start = Instant::now();
        let plan = geometry.encode(Slot(me.0), what.unit_bytes);
        let job = JobId(u64::from(count));
        run.engine
            .start(job, DATASET, Box::new(plan), holders.clone());
        run.drive(job)?;
        run.meet()?;
        if count > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

/// What the seconds of one rank say, with the limits of this machine.
pub fn figures(fabric: &str, ranks: u32, what: Encode, mut seconds: Vec<f64>) -> Vec<Figure> {
    let runs = u32::try_from(seconds.len()).unwrap_or(u32::MAX);
    let rate = f64::from(ranks) * what.part_bytes as f64 / 1e9 / median(&mut seconds);
    let sources = (ranks as usize)
        .saturating_sub(what.scheme.parity_count() as usize)
        .max(1);
    let [copy, xor, limit] = limits(sources, ranks, what);
    let plain = |name: String, value| {
        let unit = "GB/s".to_owned();
        Figure {
            name,
            value,
            unit,
            limit: None,
            ratio: None,
            runs: LIMIT_RUNS,
        }
    };
    let name = format!("encode {} over {fabric}, {ranks} ranks", what.scheme);
    vec![
        plain("memory copy, all cores".to_owned(), copy),
        plain(format!("xor of {sources}, all cores"), xor),
        plain(
            format!("copy, check and xor of {sources}, no transfer, all cores"),
            limit,
        ),
        Figure {
            limit: Some(limit),
            ratio: Some(rate / limit),
            runs,
            ..plain(name, rate)
        },
    ]
}

const LIMIT_RUNS: u32 = 3;

/// What one core does with its sources and its output.
type Work<'a> = dyn Fn(&[Vec<u8>], &mut [u8]) + Sync + 'a;

/// GB/s of all cores, up to one a rank: a copy, a xor of `sources`, and the work of an encode
/// without its messages: each unit copied and checked once, one xor, the parity checked.
fn limits(sources: usize, ranks: u32, what: Encode) -> [f64; 3] {
    let unit = what.unit_bytes as usize;
    let length = usize::try_from(what.part_bytes)
        .unwrap_or(LIMIT_BYTES)
        .min(LIMIT_BYTES);
    let cores = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(ranks as usize);
    let fill = |seed: usize| {
        (0..length)
            .map(|i| (i * 31 + seed) as u8)
            .collect::<Vec<u8>>()
    };
    let source_sets: Vec<Vec<Vec<u8>>> = (0..cores)
        .map(|_| (0..sources).map(fill).collect())
        .collect();
    let rate = |work: &Work<'_>| {
        let mut rates: Vec<f64> = (0..LIMIT_RUNS)
            .map(|_| {
                let mut outputs = vec![vec![1_u8; length]; cores];
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for (set, output) in source_sets.iter().zip(&mut outputs) {
                        scope.spawn(move || work(set, output));
                    }
                });
                let bytes = cores * sources * length;
                bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
            })
            .collect();
        median(&mut rates)
    };
    let copy = rate(&|set, output| {
        for source in set {
            output.copy_from_slice(source);
            black_box(&output);
        }
    });
    let xor = rate(&|set, output| {
        for (index, out) in output.chunks_mut(unit).enumerate() {
            let start = index * unit;
            let parts: Vec<&[u8]> = set.iter().map(|s| &s[start..start + out.len()]).collect();
            codec::combine(&mut [out], &[&vec![1; parts.len()]], &parts);
        }
    });
    let whole = rate(&|set, output| {
        let mut copies = vec![vec![0; unit]; set.len()];
        for (index, out) in output.chunks_mut(unit).enumerate() {
            let start = index * unit;
            for (copy, source) in copies.iter_mut().zip(set) {
                let source = &source[start..start + out.len()];
                black_box(crc32c(source));
                copy[..out.len()].copy_from_slice(source);
                black_box(crc32c(&copy[..out.len()]));
            }
            let parts: Vec<&[u8]> = copies.iter().map(|c| &c[..out.len()]).collect();
            codec::combine(&mut [out], &[&vec![1; parts.len()]], &parts);
            black_box(crc32c(out));
        }
    });
    [copy, xor, whole]
}

/// 0 for nothing.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// One rank of a measurement.
struct Run<'f, F> {
    fabric: &'f mut F,
    engine: Engine,
    store: FileStore,
    /// How often each rank has announced that it got to a meeting.
    met: Vec<u32>,
    meetings: u32,
}

impl<F: Fabric> Run<'_, F> {
    /// Until `job` is done, answering others.
    fn drive(&mut self, job: JobId) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.step(until)?;
            match self.engine.poll_event() {
                Some(JobEvent::Done { job: done, .. }) if done == job => return Ok(()),
                Some(JobEvent::Failed { error, .. }) => return Err(error.into()),
                _ => {}
            }
        }
    }

    /// Until all ranks are here, answering them meanwhile.
    fn meet(&mut self) -> Result<(), BenchError> {
        self.meetings += 1;
        for rank in 0..self.fabric.size() {
            self.fabric
                .send(Rank(rank), Lane::Control, Bytes::from_static(b"here"))?;
        }
        let until = Instant::now() + PATIENCE;
        while self.met.iter().any(|&met| met < self.meetings) {
            self.step(until)?;
        }
        Ok(())
    }

    /// Sends what there is, waits for one message and takes it in.
    fn step(&mut self, until: Instant) -> Result<(), BenchError> {
        let now = Instant::now();
        while let Some((to, bytes)) = self.engine.poll_send(now, &mut self.store) {
            self.fabric.send(to, Lane::Data, bytes)?;
        }
        if now > until {
            return Err(BenchError::Alone(self.fabric.me()));
        }
        let soon = now + Duration::from_millis(100);
        let wait = self.engine.next_deadline(now).unwrap_or(soon).min(soon);
        if let Some(envelope) = self.fabric.poll(wait)? {
            match envelope.lane {
                Lane::Data => {
                    let (from, bytes) = (envelope.from, envelope.bytes);
                    if let Err(error) = self.engine.handle(now, from, bytes, &mut self.store) {
                        tracing::warn!(%error, %from, "dropped a message");
                    }
                }
                Lane::Control => {
                    if let Some(met) = self.met.get_mut(envelope.from.0 as usize) {
                        *met += 1;
                    }
                }
            }
        }
        self.engine.tick(now);
        Ok(())
    }
}

/// One slot's part and parity as two files without names; buffers are used again.
struct FileStore {
    slot: Slot,
    data: File,
    parity: File,
    idle: Idle,
}

type Idle = Arc<Mutex<Vec<Vec<u8>>>>;

/// A read buffer that returns to the store when it was sent or used.
struct Lent {
    buffer: Vec<u8>,
    idle: Idle,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(buffer);
    }
}

impl FileStore {
    fn new(directory: &Path, slot: Slot, bytes: u64) -> io::Result<Self> {
        let file = |name: &str| -> io::Result<File> {
            let path = directory.join(format!("bench.{}.{}.{name}", std::process::id(), slot.0));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        };
        let (data, parity) = (file("data")?, file("parity")?);
        let mut state = u64::from(slot.0) + 1;
        let mut block = vec![0_u8; CHUNK_BYTES as usize];
        let mut offset = 0;
        while offset < bytes {
            for word in block.chunks_exact_mut(8) {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                word.copy_from_slice(&state.to_le_bytes());
            }
            let length = usize::try_from(bytes - offset)
                .unwrap_or(usize::MAX)
                .min(block.len());
            data.write_all_at(&block[..length], offset)?;
            offset += length as u64;
        }
        Ok(Self {
            slot,
            data,
            parity,
            idle: Idle::default(),
        })
    }

    fn file(&self, stream: Stream) -> &File {
        match stream {
            Stream::Data => &self.data,
            Stream::Parity => &self.parity,
        }
    }
}

fn failed(dataset: DatasetId, extent: Extent) -> impl FnOnce(io::Error) -> TransferError {
    move |e| TransferError::Io {
        dataset,
        extent,
        errno: e.raw_os_error().unwrap_or(libc::EIO),
    }
}

impl PartStore for FileStore {
    fn read(&self, dataset: DatasetId, extent: Extent) -> Result<Bytes, TransferError> {
        if extent.slot != self.slot {
            return Err(TransferError::Missing { dataset, extent });
        }
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut buffer = idle.unwrap_or_default();
        buffer.resize(extent.len as usize, 0);
        let read = self
            .file(extent.stream)
            .read_exact_at(&mut buffer, extent.offset);
        read.map_err(failed(dataset, extent))?;
        Ok(Bytes::from_owner(Lent {
            buffer,
            idle: self.idle.clone(),
        }))
    }

    fn write(
        &mut self,
        dataset: DatasetId,
        extent: Extent,
        bytes: &[u8],
        _crc: u32,
    ) -> Result<(), TransferError> {
        let written = self.file(extent.stream).write_all_at(bytes, extent.offset);
        written.map_err(failed(dataset, extent))
    }

    fn expected_crc(&self, _: DatasetId, _: Extent) -> Option<u32> {
        None
    }

    fn served(&mut self, _: DatasetId, _: Extent, crc: u32) {
        black_box(crc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_can_be_measured() {
        let directory = tempfile::tempdir().expect("a test may have a directory");
        let schemes = [
            Scheme::Xor,
            Scheme::Partner { copies: 1 },
            Scheme::ReedSolomon { parities: 2 },
        ];
        for scheme in schemes {
            let what = Encode {
                scheme,
                part_bytes: 3_000_000,
                runs: 1,
                ..Encode::default()
            };
            let figures = bench_encode(3, directory.path(), what).expect("it runs");
            let last = figures.last().expect("the encode itself is the last");
            assert!(
                last.name
                    .starts_with(&format!("encode {scheme} over local, 3 ranks"))
            );
            assert!(
                figures.iter().all(|f| f.value > 0.0 && f.unit == "GB/s"),
                "{figures:?}"
            );
            let limit = last.limit.expect("an encode has a limit");
            assert_eq!(last.ratio, Some(last.value / limit));
        }
        let left = std::fs::read_dir(directory.path())
            .expect("it exists")
            .count();
        assert_eq!(left, 0, "files have no names while they are measured");
    }

    /// Parity as the engine writes it into files is the XOR of the parts.
    #[test]
    fn a_measured_encode_makes_real_parity() {
        let directory = tempfile::tempdir().expect("a test may have a directory");
        let bytes = 100_000;
        let stores = [0, 1].map(|n| FileStore::new(directory.path(), Slot(n), bytes));
        let [own, other] = stores.map(|store| store.expect("the files can be made"));
        let mut fabric = local::solo();
        let members = vec![(Slot(0), bytes), (Slot(1), bytes)];
        let geometry = SetGeometry::new(Scheme::Xor, members, 1 << 20).expect("a sound set");
        // Rank 0 alone: the plan for slot 0, its source read from slot 1's own store.
        let engine = Engine::new(Rank(0), Limits::default());
        let mut run = Run {
            fabric: &mut fabric,
            engine,
            store: other,
            met: vec![0],
            meetings: 0,
        };
        let plan = geometry.encode(Slot(0), 4096).map(|mut combination| {
            combination.destination.slot = Slot(1);
            combination
        });
        let holders = BTreeMap::from([(Slot(1), Rank(0))]);
        run.engine.start(JobId(1), DATASET, Box::new(plan), holders);
        run.drive(JobId(1)).expect("it runs");
        let whole = |stream, store: &FileStore| {
            let extent = Extent {
                slot: store.slot,
                stream,
                offset: 0,
                len: bytes as u32,
            };
            store.read(DATASET, extent).expect("it is there")
        };
        assert_eq!(
            whole(Stream::Parity, &run.store),
            whole(Stream::Data, &run.store)
        );
        assert_ne!(whole(Stream::Data, &own), whole(Stream::Data, &run.store));
    }
}
