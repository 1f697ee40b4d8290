//! How often things fail, learnt from few failures.
//!
//! Failures of one kind come at an unknown constant rate. Before anything is seen, the rate is believed
//! to be about that of a *prior*, which counts as having seen `failures` of them in `seconds`. After `f` failures in
//! `t` seconds of running, the belief is a Gamma distribution with shape `failures + f` and rate `seconds + t`; its
//! mean is the estimate. So a job without any failure yet is not believed to never fail, and ten failures outweigh any prior.
//!
//! Time counts while the program runs, to the second at which it ends. *How* it ends matters only for
//! `f`: the end of an allocation, a halt and a program that has finished are not failures, and their time counts
//! all the same (censored). Time while nothing runs counts for nobody.

use super::{ModelError, time};
use serde::Serialize;

/// What is believed before anything is seen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prior {
    /// As if so many failures had been seen; above 0.
    pub failures: f64,
    /// In so many seconds; above 0.
    pub seconds: f64,
}

/// Seconds of a year.
const YEAR_SECONDS: f64 = 365.25 * 86_400.0;
/// Seconds of a month.
const MONTH_SECONDS: f64 = YEAR_SECONDS / 12.0;
/// A node is lost once in so many years.
const NODE_YEARS: f64 = 5.0;
/// Of so many losses of nodes, one is more than the scheme tolerates.
const BEYOND: f64 = 10.0;
/// How much these count for: half a failure seen.
const WEIGHT: f64 = 0.5;

impl Prior {
    /// `WEIGHT` failures, one in `seconds`.
    fn once_in(seconds: f64) -> Self {
        Self {
            failures: WEIGHT,
            seconds: WEIGHT * seconds,
        }
    }

    /// A process of the job fails once a month.
    #[must_use]
    pub fn process() -> Self {
        Self::once_in(MONTH_SECONDS)
    }

    /// A node is lost once in five years of its own.
    #[must_use]
    pub fn node(nodes: u32) -> Self {
        Self::once_in(NODE_YEARS * YEAR_SECONDS / f64::from(nodes.max(1)))
    }

    /// One loss of ten is beyond what the scheme tolerates.
    #[must_use]
    pub fn beyond(nodes: u32) -> Self {
        Self::once_in(BEYOND * NODE_YEARS * YEAR_SECONDS / f64::from(nodes.max(1)))
    }
}

/// What was seen.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Exposure {
    /// Seconds that could have had a failure.
    pub seconds: f64,
    /// Failures in them.
    pub failures: u64,
}

impl Exposure {
    /// Adds a stretch of running that ended in a failure of this kind, or in some other way.
    ///
    /// # Errors
    ///
    /// When the time is no time.
    pub fn add(&mut self, seconds: f64, failed: bool) -> Result<(), ModelError> {
        self.seconds += if seconds == 0.0 {
            0.0
        } else {
            time("a time of running", seconds)?
        };
        self.failures += u64::from(failed);
        Ok(())
    }

    /// What is believed after it.
    #[must_use]
    pub fn rate(&self, prior: Prior) -> RateEstimate {
        RateEstimate {
            shape: prior.failures + self.failures as f64,
            seconds: prior.seconds + self.seconds,
        }
    }
}

/// What is believed of a rate: a Gamma distribution.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RateEstimate {
    shape: f64,
    seconds: f64,
}

impl RateEstimate {
    /// The mean, in failures a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.shape / self.seconds
    }

    /// Between these it is with 80 %: the tenth and the ninetieth part in a hundred, by the cube root
    /// that is nearly normal (Wilson and Hilferty), within 5 % from a shape of 1 on.
    #[must_use]
    pub fn range_per_second(&self) -> (f64, f64) {
        let z = 1.281_552_f64;
        let ninth = 1.0 / (9.0 * self.shape);
        let at = |z: f64| {
            let root = (1.0 - ninth + z * ninth.sqrt()).max(0.0);
            self.shape * root.powi(3) / self.seconds
        };
        (at(-z), at(z))
    }
}
