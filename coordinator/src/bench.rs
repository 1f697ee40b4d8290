//! Measures encode and rebuild beside what the machine can do at all: `scrfs bench` prints it.
//!
//! Data are files in a directory of the caller's choice, best a tmpfs, one part a rank, all ranks one
//! redundancy set, checksums included. GB/s are 10^9 bytes of *data* of all ranks, over the time
//! from the first rank's start to the last rank's end; *a core* means over the processor time of all ranks
//! together, which other work on the machine moves less. The first run does not count, the median of the
//! others is given.
//!
//! - *Encode* makes the parity of all ranks, into files that have their pages, as the daemon
//!   allocates the room for parity when it seals.
//! - *Rebuild* makes the data and the parity of one lost rank, into new files, and compares the
//!   data with what was lost.
//!
//! Limits are taken between the runs, because a machine's figures differ by a factor of two from one hour
//! to the next. The bound of a scheme is arithmetic on two of them, see `limits::Speeds::bound`. Not
//! measured here: a disk, a network, the prefix, records.

pub mod launch;
pub(crate) mod limits;
mod run;
mod store;

use crate::transfer::{Limits, TransferError};
use limits::{Moved, Speeds};
pub use run::measure;
use scrfs::fabric::{FabricError, local};
use scrfs::id::Rank;
use scrfs::layout::record::UNIT_BYTES;
use scrfs::redundancy::{BeyondTolerance, GeometryError, Scheme};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// What is measured, in this order.
pub const SCHEMES: [Scheme; 4] = [
    Scheme::Partner { copies: 1 },
    Scheme::Xor,
    Scheme::ReedSolomon { parities: 2 },
    Scheme::ReedSolomon { parities: 3 },
];

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

/// The work of a measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Work {
    /// All parity of all ranks
    Encode,
    /// The data and the parity of one lost rank
    Rebuild,
}

/// What to measure.
#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    /// The work.
    pub work: Work,
    /// Where the files lie.
    pub directory: PathBuf,
    /// Bytes of each rank's part.
    pub part_bytes: u64,
    /// Bytes of a unit of the plan.
    pub unit_bytes: u32,
    /// Runs that count.
    pub runs: u32,
    /// Bounds of the engine.
    pub limits: Limits,
}

impl Task {
    /// As jobs do it.
    pub fn new(work: Work, directory: PathBuf, part_bytes: u64, runs: u32) -> Self {
        Self {
            work,
            directory,
            part_bytes,
            unit_bytes: UNIT_BYTES,
            runs,
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
    /// A rank that cannot be rebuilt.
    #[error("cannot plan the rebuild")]
    Plan(#[from] BeyondTolerance),
    /// The fabric failed.
    #[error("the fabric failed")]
    Fabric(#[from] FabricError),
    /// The transfer failed.
    #[error("the transfer failed")]
    Transfer(#[from] TransferError),
    /// What was rebuilt is not what was lost.
    #[error("the bytes rebuilt by {scheme} with {parities} parities differ from those lost")]
    Differs {
        /// The scheme.
        scheme: Scheme,
        /// Its parities or copies.
        parities: u32,
    },
    /// Another rank did not get as far.
    #[error("{0} waited for the others in vain")]
    Alone(Rank),
    /// A thread of the measurement panicked.
    #[error("a measuring thread panicked")]
    Panicked,
    /// The ranks over MPI ended badly.
    #[error("the ranks over MPI: {0}")]
    Launch(String),
}

/// What one run took.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Sample {
    seconds: f64,
    /// Processor time of all ranks.
    cpu_seconds: f64,
}

/// What a rank has measured. All ranks have the same samples; only rank 0 has limits.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Measured {
    schemes: Vec<(Scheme, Vec<Sample>)>,
    fabric: Vec<Sample>,
    speeds: Vec<Speeds>,
}

/// Measures among `ranks` threads of this process over the local fabric.
pub fn bench_local(ranks: u32, task: &Task) -> Result<Vec<Figure>, BenchError> {
    let results: Vec<Result<Measured, BenchError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = local::cluster(ranks, 1)
            .into_iter()
            .map(|mut fabric| scope.spawn(move || measure(&mut fabric, task)))
            .collect();
        let joined = threads
            .into_iter()
            .map(|t| t.join().unwrap_or(Err(BenchError::Panicked)));
        joined.collect()
    });
    let all = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    let first = all.first().ok_or(BenchError::Panicked)?;
    Ok(figures("in one process", ranks, task, first))
}

/// What rank 0 has measured, beside its bounds.
pub fn figures(place: &str, ranks: u32, task: &Task, measured: &Measured) -> Vec<Figure> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cores = (cores as u32).min(ranks);
    let speeds = Speeds::medians(&measured.speeds);
    let runs = u32::try_from(measured.speeds.len()).unwrap_or(u32::MAX);
    let mut figures: Vec<Figure> = speeds
        .named()
        .map(|(name, value)| plain(format!("{name}, a core"), value, runs))
        .into();
    let bytes = f64::from(ranks) * task.part_bytes as f64;
    let name = format!("fabric {place}, {ranks} ranks each to the next");
    figures.extend(rates(&name, bytes, &measured.fabric, None));
    let work = match task.work {
        Work::Encode => "encode",
        Work::Rebuild => "rebuild",
    };
    for (scheme, samples) in &measured.schemes {
        let scheme_name = match scheme {
            Scheme::ReedSolomon { parities } => format!("rs {parities}"),
            other => other.to_string(),
        };
        let name = format!("{work} {scheme_name}, {ranks} ranks {place}");
        let moved = Moved::by(task.work, *scheme, ranks);
        let bound = speeds.bound(moved);
        let bounds = Some((bound * f64::from(cores), bound));
        figures.extend(rates(&name, bytes, samples, bounds));
    }
    figures
}

/// A rate in total and one a core, with their limits where there are any.
fn rates(name: &str, bytes: f64, samples: &[Sample], limits: Option<(f64, f64)>) -> [Figure; 2] {
    let runs = u32::try_from(samples.len()).unwrap_or(u32::MAX);
    let rate = |time: fn(&Sample) -> f64| {
        let times = samples.iter().map(time).collect();
        bytes / 1e9 / median(times)
    };
    let figure = |name, value, limit: Option<f64>| Figure {
        limit,
        ratio: limit.map(|limit| value / limit),
        ..plain(name, value, runs)
    };
    [
        figure(name.to_owned(), rate(|s| s.seconds), limits.map(|l| l.0)),
        figure(
            format!("{name}, a core"),
            rate(|s| s.cpu_seconds),
            limits.map(|l| l.1),
        ),
    ]
}

fn plain(name: String, value: f64, runs: u32) -> Figure {
    Figure {
        name,
        value,
        unit: "GB/s".to_owned(),
        limit: None,
        ratio: None,
        runs,
    }
}

/// Not a number for nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests;
