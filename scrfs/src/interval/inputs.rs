//! From what is given, measured and seen to a job that can be computed with.
//!
//! Each number comes from the first that has it: what the user gives, what was measured, what is
//! assumed. Which it was is kept beside it, for advice that rests on assumptions must say so. Only what a checkpoint costs
//! is never assumed.

use super::estimate::{Exposure, Prior, RateEstimate};
use super::history::Recoveries;
use super::job::{Job, Kind, Losses};
use super::{Measured, ModelError, time};
use serde::Serialize;

/// From a failure until the program computes again, with all in the cache.
pub const RECOVER_SECONDS: f64 = 30.0;
/// Encoding takes so many times what the program waits.
const ENCODE_STALLS: f64 = 1.0;
/// Flushing takes so many times what the program waits.
const FLUSH_STALLS: f64 = 20.0;
/// The share of its speed that a program loses while parity is made.
const ENCODE_SLOWDOWN: f64 = 0.1;
/// The same, while the prefix is written.
const FLUSH_SLOWDOWN: f64 = 0.02;

/// What a user may say; `None`: nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Given {
    /// Between failures of any kind.
    pub mtbf_seconds: Option<f64>,
    /// Between failures that leave the cache whole.
    pub mtbf_process_seconds: Option<f64>,
    /// Between losses of nodes that the scheme tolerates.
    pub mtbf_node_seconds: Option<f64>,
    /// Between losses beyond that.
    pub mtbf_beyond_seconds: Option<f64>,
    /// See [`Job`], as the next five.
    pub stall_seconds: Option<f64>,
    /// Until it is protected.
    pub encode_seconds: Option<f64>,
    /// A share.
    pub encode_slowdown: Option<f64>,
    /// Until it is flushed.
    pub flush_seconds: Option<f64>,
    /// A share.
    pub flush_slowdown: Option<f64>,
    /// More that the program waits for a checkpoint that is flushed.
    pub flush_stall_seconds: Option<f64>,
    /// From a failure until the program computes again, with all in the cache.
    pub recover_seconds: Option<f64>,
    /// So much more when lost parts are rebuilt.
    pub rebuild_seconds: Option<f64>,
    /// So much more when all comes from the prefix.
    pub fetch_seconds: Option<f64>,
}

/// Which failures were seen, by where the program came back from.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Seen {
    /// From the cache.
    pub process: Exposure,
    /// From parity.
    pub node: Exposure,
    /// From the prefix.
    pub beyond: Exposure,
}

/// Where a number comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// The user, or the configuration.
    Given,
    /// This job.
    Measured,
    /// Nobody knows better.
    Assumed,
}

/// A number of a job; the fields and names are stable.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Input {
    /// Which.
    pub name: &'static str,
    /// What it is.
    pub value: f64,
    /// Where it comes from.
    pub from: From,
}

/// A job, and where each of its numbers comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct Inputs {
    /// The job.
    pub job: Job,
    /// Its numbers, in the order people read them.
    pub inputs: Vec<Input>,
    /// Rates as low and as high as is still likely, unless they were given.
    pub likely: Option<(Losses, Losses)>,
}

/// Why there is no job.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum InputError {
    /// Nobody says what a checkpoint costs.
    #[error("no checkpoint was measured yet, and nobody says what one costs")]
    NoCost,
    /// A number that makes no sense.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Remembers where numbers come from.
#[derive(Default)]
struct Ledger(Vec<Input>);

impl Ledger {
    fn note(&mut self, name: &'static str, value: f64, from: From) -> f64 {
        self.0.push(Input { name, value, from });
        value
    }

    fn take(
        &mut self,
        name: &'static str,
        given: Option<f64>,
        measured: Option<f64>,
        assumed: f64,
    ) -> f64 {
        match (given, measured) {
            (Some(value), _) => self.note(name, value, From::Given),
            (None, Some(value)) => self.note(name, value, From::Measured),
            (None, None) => self.note(name, assumed, From::Assumed),
        }
    }
}

impl Inputs {
    /// Of a job on so many nodes.
    ///
    /// # Errors
    ///
    /// When nobody knows what a checkpoint costs, or a number makes no sense.
    pub fn new(
        given: &Given,
        measured: &Measured,
        seen: &Seen,
        recoveries: &Recoveries,
        nodes: u32,
    ) -> Result<Self, InputError> {
        let mut ledger = Ledger::default();
        let stall = given
            .stall_seconds
            .or(measured.stall_seconds)
            .ok_or(InputError::NoCost)?;
        let stall = ledger.take(
            "stall_seconds",
            given.stall_seconds,
            measured.stall_seconds,
            stall,
        );
        let encode = (given.encode_seconds, measured.encode_seconds);
        let encode = ledger.take("encode_seconds", encode.0, encode.1, ENCODE_STALLS * stall);
        let flush = (given.flush_seconds, measured.flush_seconds);
        let flush = ledger.take("flush_seconds", flush.0, flush.1, FLUSH_STALLS * stall);
        let mut job = Job {
            stall_seconds: stall,
            encode_seconds: encode,
            flush_seconds: flush,
            encode_slowdown: ledger.take(
                "encode_slowdown",
                given.encode_slowdown,
                None,
                ENCODE_SLOWDOWN,
            ),
            flush_slowdown: ledger.take(
                "flush_slowdown",
                given.flush_slowdown,
                None,
                FLUSH_SLOWDOWN,
            ),
            // None, unless the configuration makes renames wait for it.
            flush_stall_seconds: given.flush_stall_seconds.unwrap_or(0.0),
            losses: Losses::default(),
        };
        let recover = ledger.take(
            "recover_seconds",
            given.recover_seconds,
            recoveries.recover_seconds(),
            RECOVER_SECONDS,
        );
        let more = |all: Option<f64>| all.map(|all| (all - recover).max(0.0));
        let rebuild = more(recoveries.parity_seconds);
        let rebuild = ledger.take("rebuild_seconds", given.rebuild_seconds, rebuild, encode);
        let fetch = more(recoveries.prefix_seconds);
        let fetch = ledger.take("fetch_seconds", given.fetch_seconds, fetch, flush);
        let recovery = [recover, recover + rebuild, recover + fetch];
        let estimates = [
            seen.process.rate(Prior::process()),
            seen.node.rate(Prior::node(nodes)),
            seen.beyond.rate(Prior::beyond(nodes)),
        ];
        let exact = [
            given.mtbf_process_seconds,
            given.mtbf_node_seconds,
            given.mtbf_beyond_seconds,
        ];
        for seconds in exact.into_iter().chain([given.mtbf_seconds]).flatten() {
            time("the mean time between failures", seconds)?;
        }
        let total: f64 = estimates.iter().map(RateEstimate::per_second).sum();
        let scale = given.mtbf_seconds.map(|seconds| 1.0 / (seconds * total));
        let names = [
            "mtbf_process_seconds",
            "mtbf_node_seconds",
            "mtbf_beyond_seconds",
        ];
        let exposures = [seen.process, seen.node, seen.beyond];
        let losses = |rate: &dyn Fn(usize) -> f64| {
            let kind = |at: usize| Kind {
                failures_per_second: exact[at].map_or_else(|| rate(at), |seconds| 1.0 / seconds),
                recovery_seconds: recovery[at],
            };
            Losses {
                cache: kind(0),
                parity: kind(1),
                prefix: kind(2),
            }
        };
        job.losses = losses(&|at| estimates[at].per_second() * scale.unwrap_or(1.0));
        for (at, kind) in job.losses.kinds().into_iter().enumerate() {
            let from = if exact[at].is_some() || scale.is_some() {
                From::Given
            } else if exposures[at].seconds > 0.0 {
                From::Measured
            } else {
                From::Assumed
            };
            ledger.note(names[at], 1.0 / kind.failures_per_second, from);
        }
        let is_given = scale.is_some() || exact.iter().all(Option::is_some);
        let likely = (!is_given).then(|| {
            (
                losses(&|at| estimates[at].range_per_second().0),
                losses(&|at| estimates[at].range_per_second().1),
            )
        });
        Ok(Self {
            job: job.checked()?,
            inputs: ledger.0,
            likely,
        })
    }
}
