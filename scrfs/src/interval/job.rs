//! What scrfs makes of checkpoints, and the best schedule for it.
//!
//! The program computes for `T`, then waits `C` for the cache to have its checkpoint. What makes that
//! safer happens while it computes on: after `E` the checkpoint is protected, and every `n`-th is in
//! the prefix after `F`. Three things may happen, told apart by where the program comes back from:
//!
//! | source | what failed | it goes on from |
//! | --- | --- | --- |
//! | cache | a process, a daemon | the newest sealed checkpoint |
//! | parity | no more nodes than the scheme tolerates | the newest protected one |
//! | prefix | more | the newest flushed one |
//!
//! The expected time is that of [`super::Single`] twice, one in the other: `n` segments, each lengthened by what
//! cache and parity repair, are the work that failures of the third kind interrupt. With rates
//! `lc, lp, lx`, and `l1 = lc + lp`,
//!
//! ```text
//! G1 = e^(lc Rc + lp (Rp + E)) (e^(l1 (T + C)) - 1) / l1      one segment
//! W  = max(n G1 + Cf, F)                                      one pattern; flushes go one at a time
//! G  = e^(lx (Rx + F)) (e^(lx W) - 1) / lx                    one pattern, with all failures
//! efficiency = n (T - what encode and flush slow down) / G
//! ```
//!
//! To first order this is Benoit's two levels, and with one kind of failure it is Vaidya's latency. Left out: that two
//! failures of different kinds may overlap in recovery. Every failure ends an epoch, and encode and flush begin anew: `E` and `F`
//! above are `(e^(l E) - 1)/l`, the time until so long a time has passed without one.

use super::search::{minimize, minimize_count};
use super::{ModelError, count, delay, rate, share, time};
use crate::config::CommitWait;
use serde::Serialize;

/// Most checkpoints to one flush that are considered.
pub const FLUSH_EVERY_MAX: u64 = 1000;

/// Failures that a program comes back from in one way.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Kind {
    /// How often.
    pub failures_per_second: f64,
    /// From the failure until the program computes again.
    pub recovery_seconds: f64,
}

/// Failures by where the program comes back from; later is worse.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Losses {
    /// The cache still had all of it.
    pub cache: Kind,
    /// What nodes took with them was rebuilt.
    pub parity: Kind,
    /// Only the prefix had it.
    pub prefix: Kind,
}

impl Losses {
    /// All three, in order.
    #[must_use]
    pub fn kinds(&self) -> [Kind; 3] {
        [self.cache, self.parity, self.prefix]
    }

    /// Failures of any kind.
    #[must_use]
    pub fn failures_per_second(&self) -> f64 {
        self.kinds()
            .iter()
            .map(|kind| kind.failures_per_second)
            .sum()
    }

    /// The same with every rate so many times as high.
    #[must_use]
    pub fn times(mut self, factor: f64) -> Self {
        for kind in [&mut self.cache, &mut self.parity, &mut self.prefix] {
            kind.failures_per_second *= factor;
        }
        self
    }
}

/// What checkpoints cost a job, and what happens to it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Job {
    /// The program waits so long for each checkpoint: from when it begins to write to the return of the rename.
    pub stall_seconds: f64,
    /// From there until it is protected.
    pub encode_seconds: f64,
    /// The share of its speed that the program loses meanwhile, from 0 to below 1.
    pub encode_slowdown: f64,
    /// From the return of the rename until it is flushed.
    pub flush_seconds: f64,
    /// The share of its speed that the program loses meanwhile.
    pub flush_slowdown: f64,
    /// The program waits so much longer for a checkpoint that is flushed (`commit.wait = "flushed"`).
    pub flush_stall_seconds: f64,
    /// What fails.
    pub losses: Losses,
}

/// How often.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Schedule {
    /// Computing between two checkpoints.
    pub interval_seconds: f64,
    /// Every so many-th is flushed; at least 1.
    pub flush_every: u64,
}

impl Schedule {
    pub(super) fn checked(self) -> Result<Self, ModelError> {
        time("the interval", self.interval_seconds)?;
        count("flush every", self.flush_every, FLUSH_EVERY_MAX)?;
        Ok(self)
    }
}

/// `(e^(l t) - 1) / l`.
fn stretched(rate: f64, seconds: f64) -> f64 {
    if rate == 0.0 {
        seconds
    } else {
        (rate * seconds).exp_m1() / rate
    }
}

impl Job {
    /// The same, where a rename waits for more than the seal.
    #[must_use]
    pub fn waiting_for(self, wait: CommitWait) -> Self {
        match wait {
            CommitWait::Sealed => self,
            CommitWait::Protected => Self {
                stall_seconds: self.stall_seconds + self.encode_seconds,
                encode_seconds: 0.0,
                ..self
            },
            CommitWait::Flushed => Self {
                flush_stall_seconds: self.flush_stall_seconds + self.flush_seconds,
                flush_seconds: 0.0,
                ..self
            },
        }
    }

    /// Itself, when all its numbers make sense.
    ///
    /// # Errors
    ///
    /// The first that does not.
    pub fn checked(self) -> Result<Self, ModelError> {
        time("the stall of a checkpoint", self.stall_seconds)?;
        delay("the time to encode", self.encode_seconds)?;
        delay("the time to flush", self.flush_seconds)?;
        delay("the stall of a flush", self.flush_stall_seconds)?;
        share("the slowdown by encode", self.encode_slowdown)?;
        share("the slowdown by flush", self.flush_slowdown)?;
        for kind in self.losses.kinds() {
            rate("a rate of failures", kind.failures_per_second)?;
            delay("a time to recover", kind.recovery_seconds)?;
        }
        rate(
            "the rate of all failures",
            self.losses.failures_per_second(),
        )?;
        Ok(self)
    }

    /// The share of time that is useful; 0 when nothing would be finished within any time.
    ///
    /// # Errors
    ///
    /// When a number of the job or the schedule makes no sense.
    pub fn efficiency(&self, schedule: Schedule) -> Result<f64, ModelError> {
        self.checked()?;
        Ok(self.efficiency_of(schedule.checked()?))
    }

    fn efficiency_of(&self, schedule: Schedule) -> f64 {
        let Losses {
            cache,
            parity,
            prefix,
        } = self.losses;
        let all = self.losses.failures_per_second();
        let near = cache.failures_per_second + parity.failures_per_second;
        let (encode, flush) = (
            stretched(all, self.encode_seconds),
            stretched(all, self.flush_seconds),
        );
        let every = schedule.flush_every as f64;
        let segment = schedule.interval_seconds + self.stall_seconds;

        // Encodes go one at a time, too: what comes too soon waits for the one before it.
        let unprotected = encode + ((encode - segment) / 2.0).max(0.0);
        let repair = cache.failures_per_second * cache.recovery_seconds
            + parity.failures_per_second * (parity.recovery_seconds + unprotected);
        let one = repair.exp() * stretched(near, segment);
        let waited = stretched(near, self.flush_stall_seconds);
        let pattern = (every * one + waited).max(flush);
        let again = (prefix.failures_per_second * (prefix.recovery_seconds + flush)).exp();
        let expected = again * stretched(prefix.failures_per_second, pattern);

        let encoding = (encode / schedule.interval_seconds).min(1.0);
        let flushing = (flush / (every * segment)).min(1.0);
        let speed =
            (1.0 - self.encode_slowdown * encoding) * (1.0 - self.flush_slowdown * flushing);
        let efficiency = every * schedule.interval_seconds * speed / expected;
        // Several infinities meet where nothing is ever finished.
        if efficiency.is_finite() {
            efficiency
        } else {
            0.0
        }
    }

    /// The best interval when every `flush_every`-th checkpoint is flushed.
    ///
    /// # Errors
    ///
    /// When a number makes no sense, there are no failures at all (then there is no reason to
    /// checkpoint), or nothing would ever be finished.
    pub fn best_interval(&self, flush_every: u64) -> Result<Schedule, ModelError> {
        self.checked()?;
        count("flush every", flush_every, FLUSH_EVERY_MAX)?;
        self.needs_failures()?;
        let schedule = self.best_interval_of(flush_every);
        self.hopeful(schedule)
    }

    /// The best schedule. Of equals, the one that flushes more often.
    ///
    /// # Errors
    ///
    /// As [`Self::best_interval`].
    pub fn best(&self) -> Result<Schedule, ModelError> {
        self.checked()?;
        self.needs_failures()?;
        let waste = |every: u64| -self.efficiency_of(self.best_interval_of(every));
        let every = minimize_count(1, FLUSH_EVERY_MAX, waste);
        self.hopeful(self.best_interval_of(every))
    }

    fn best_interval_of(&self, flush_every: u64) -> Schedule {
        let all = self.losses.failures_per_second();
        let with = |interval_seconds| Schedule {
            interval_seconds,
            flush_every,
        };
        let known = self.stall_seconds
            + self.encode_seconds
            + self.flush_seconds
            + self.flush_stall_seconds;
        let young = (2.0 * (self.stall_seconds + self.flush_stall_seconds) / all).sqrt();
        let low = (self.stall_seconds / 100.0).max(super::SECONDS_MIN);
        let high = (100.0 * (young + known)).min(super::SECONDS_MAX);
        with(minimize(low, high, |interval| {
            -self.efficiency_of(with(interval))
        }))
    }

    fn needs_failures(&self) -> Result<(), ModelError> {
        if self.losses.failures_per_second() == 0.0 {
            return Err(ModelError::NoRate {
                what: "the rate of all failures",
                value: 0.0,
            });
        }
        Ok(())
    }

    fn hopeful(&self, schedule: Schedule) -> Result<Schedule, ModelError> {
        if self.efficiency_of(schedule) > 0.0 {
            Ok(schedule)
        } else {
            Err(ModelError::Hopeless)
        }
    }
}
