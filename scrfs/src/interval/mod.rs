//! How often to checkpoint, and how often to flush: models, a simulation to check them with, what is
//! learnt from a job, and the advice that follows.
//!
//! ```text
//! single    one kind of checkpoint: Young, Daly, the exact optimum, Vaidya's latency
//! pattern   several kinds, to first order: Vaidya's two levels, Benoit's k levels
//! markov    several kinds, exactly: Moody's model
//! job       what scrfs does: stall, encode and flush in the background, three kinds of failure
//! simulate  the same, event by event, from a seed
//! estimate  rates of failure from few failures
//! history   failures and recoveries, from the events of a job
//! learnt    what they tell, as it is told to all nodes
//! measured  costs and present habits, from the times of datasets
//! inputs    what is given, measured and assumed, put together
//! advice    the best schedule in words and numbers
//! due       when a program that asks is told to checkpoint
//! rounds    all who ask for the n-th time are told the same
//! askers    who asks on a node, and for the how-manieth time
//! ```
//!
//! Everything is pure: no I/O, no clock; randomness is a seed. Times are seconds, rates are failures a
//! second, both `f64`. Every number that comes in is checked once, by the type it makes
//! ([`ModelError`]); what comes out is finite and never NaN. Failures come without memory
//! (exponential) and independently, in every model here; none knows of failures in bursts.

mod advice;
mod askers;
mod due;
mod estimate;
mod history;
mod inputs;
mod job;
mod learnt;
mod markov;
mod measured;
mod pattern;
mod rounds;
mod search;
mod simulate;
mod single;

pub use advice::{Advice, Present, duration_words};
pub use askers::{Asked, Asker, Askers, FRESH_MS, Process};
pub use due::{Rules, Situation};
pub use estimate::{Exposure, Prior, RateEstimate};
pub use history::{History, Recoveries};
pub use inputs::{From, Given, Input, InputError, Inputs, RECOVER_SECONDS, Seen};
pub use job::{FLUSH_EVERY_MAX, Job, Kind, Losses, Schedule};
pub use learnt::Learnt;
pub use markov::{Markov, MarkovLevel, Rhythm};
pub use measured::{Measured, Times};
pub use pattern::{Level, Levels, Pattern, TwoLevel};
pub use rounds::{Question, ROUNDS_MAX, Rounds, Verdict, Verdicts};
pub use simulate::{Account, EVENTS_MAX, Mean, Simulation};
pub use single::Single;

/// Shortest time that is taken for one, in seconds.
const SECONDS_MIN: f64 = 1e-9;
/// Longest, about thirty million years.
const SECONDS_MAX: f64 = 1e15;

/// A number that a model cannot work with.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ModelError {
    /// A time that must pass.
    #[error("{what} is {value}: a number of seconds from 1e-9 to 1e15 is needed")]
    NoTime {
        /// Which.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// A time that may be none.
    #[error("{what} is {value}: 0, or a number of seconds from 1e-9 to 1e15 is needed")]
    NoDelay {
        /// Which.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// A rate.
    #[error("{what} is {value}: 0, or a number of failures a second from 1e-15 to 1e9 is needed")]
    NoRate {
        /// Which.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// A share.
    #[error("{what} is {value}: a number from 0 up to, but not, 1 is needed")]
    NoShare {
        /// Which.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// A count that must be within bounds.
    #[error("{what} is {value}: from 1 to {max} are possible")]
    NoCount {
        /// Which.
        what: &'static str,
        /// What it is.
        value: u64,
        /// The most.
        max: u64,
    },
    /// Outside of what the formula was made for.
    #[error(
        "a checkpoint costs {cost_seconds} s and failures come every {mtbf_seconds} s: this formula \
         needs checkpoints that cost less"
    )]
    CostTooLarge {
        /// The cost.
        cost_seconds: f64,
        /// The mean time between failures.
        mtbf_seconds: f64,
    },
    /// A checkpoint is complete before the program has waited for it.
    #[error("it is complete after {latency_seconds} s, but the program waits {cost_seconds} s")]
    LatencyTooSmall {
        /// When it is complete.
        latency_seconds: f64,
        /// What the program waits.
        cost_seconds: f64,
    },
    /// The expected time is beyond any number.
    #[error("failures come so often that nothing would ever be finished")]
    Hopeless,
}

fn time(what: &'static str, value: f64) -> Result<f64, ModelError> {
    if (SECONDS_MIN..=SECONDS_MAX).contains(&value) {
        Ok(value)
    } else {
        Err(ModelError::NoTime { what, value })
    }
}

fn delay(what: &'static str, value: f64) -> Result<f64, ModelError> {
    if value == 0.0 || (SECONDS_MIN..=SECONDS_MAX).contains(&value) {
        // Not a negative zero.
        Ok(value.abs())
    } else {
        Err(ModelError::NoDelay { what, value })
    }
}

fn rate(what: &'static str, value: f64) -> Result<f64, ModelError> {
    if value == 0.0 || (1.0 / SECONDS_MAX..=1.0 / SECONDS_MIN).contains(&value) {
        Ok(value.abs())
    } else {
        Err(ModelError::NoRate { what, value })
    }
}

fn share(what: &'static str, value: f64) -> Result<f64, ModelError> {
    if (0.0..1.0).contains(&value) {
        Ok(value.abs())
    } else {
        Err(ModelError::NoShare { what, value })
    }
}

fn count(what: &'static str, value: u64, max: u64) -> Result<u64, ModelError> {
    if (1..=max).contains(&value) {
        Ok(value)
    } else {
        Err(ModelError::NoCount { what, value, max })
    }
}

#[cfg(test)]
mod tests;
