//! One kind of checkpoint.
//!
//! A program computes for `tau` seconds, waits `C` for a checkpoint, and again. Failures come every
//! `M` seconds on average, also while it waits or recovers; after one it needs `R` to be running again from the newest
//! checkpoint that is complete.
//!
//! - J. W. Young, *A first order approximation to the optimum checkpoint interval*, CACM 17(9), 1974.
//! - J. T. Daly, *A higher order estimate of the optimum checkpoint interval for restart dumps*,
//!   FGCS 22(3), 2006.
//! - N. H. Vaidya, *Impact of checkpoint latency on overhead ratio of a checkpointing scheme*, IEEE
//!   TC 46(8), 1997: a checkpoint that is complete only `L >= C` after it was begun.

use super::{ModelError, delay, time};

/// A program that makes one kind of checkpoint.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Single {
    cost_seconds: f64,
    latency_seconds: f64,
    restart_seconds: f64,
    mtbf_seconds: f64,
}

impl Single {
    /// Checkpoints that cost so much, are complete then, and failures every `mtbf_seconds`.
    ///
    /// # Errors
    ///
    /// When a cost or a mean time is not above 0, or a restart takes less than nothing.
    pub fn new(
        cost_seconds: f64,
        restart_seconds: f64,
        mtbf_seconds: f64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            cost_seconds: time("the cost of a checkpoint", cost_seconds)?,
            latency_seconds: cost_seconds,
            restart_seconds: delay("the time to restart", restart_seconds)?,
            mtbf_seconds: time("the mean time between failures", mtbf_seconds)?,
        })
    }

    /// The same, but a checkpoint is of use only so long after it was begun.
    ///
    /// # Errors
    ///
    /// When that is less than what the program waits for it.
    pub fn with_latency(self, latency_seconds: f64) -> Result<Self, ModelError> {
        if time("the latency of a checkpoint", latency_seconds)? < self.cost_seconds {
            return Err(ModelError::LatencyTooSmall {
                latency_seconds,
                cost_seconds: self.cost_seconds,
            });
        }
        Ok(Self {
            latency_seconds,
            ..self
        })
    }

    /// Young's interval, `sqrt(2 C M)`.
    ///
    /// # Errors
    ///
    /// When `C >= M`, where it says nothing.
    pub fn young_seconds(&self) -> Result<f64, ModelError> {
        if self.cost_seconds >= self.mtbf_seconds {
            return Err(ModelError::CostTooLarge {
                cost_seconds: self.cost_seconds,
                mtbf_seconds: self.mtbf_seconds,
            });
        }
        Ok((2.0 * self.cost_seconds * self.mtbf_seconds).sqrt())
    }

    /// Daly's interval of higher order: with `x = sqrt(C / 2M)`,
    /// `sqrt(2 C M) (1 + x/3 + x^2/9) - C` while `C < 2M`, and `M` beyond.
    #[must_use]
    pub fn daly_seconds(&self) -> f64 {
        let (cost, mtbf) = (self.cost_seconds, self.mtbf_seconds);
        if cost >= 2.0 * mtbf {
            return mtbf;
        }
        let x = (cost / (2.0 * mtbf)).sqrt();
        (2.0 * cost * mtbf).sqrt() * (1.0 + x / 3.0 + x * x / 9.0) - cost
    }

    /// The interval that is best in this model, exactly: `M (1 + W(-exp(-(C/M + 1))))` with the
    /// principal branch of Lambert's function. It depends on neither `R` nor `L`.
    ///
    /// Solved as `-ln(1 - x) - x = C/M` for `x = tau/M` instead, which is the same: where checkpoints are
    /// cheap the argument of `W` is rounded to its branch point, and nothing would be left of `C`.
    #[must_use]
    pub fn optimum_seconds(&self) -> f64 {
        let cost = self.cost_seconds / self.mtbf_seconds;
        let far = 1.0 - (-(1.0 + cost)).exp();
        if cost > 30.0 {
            // x differs from 1 by less than the numbers tell.
            return far * self.mtbf_seconds;
        }
        // Right of the root, where Newton's steps on a convex function only go left.
        let mut x = far.min((2.0 * cost).sqrt());
        for _ in 0..64 {
            let step = (log_excess(x) - cost) * (1.0 - x) / x;
            x -= step;
            if step.abs() <= f64::EPSILON * x {
                break;
            }
        }
        x * self.mtbf_seconds
    }

    /// The share of time that is useful when checkpoints are so far apart: the inverse of Daly's
    /// expected run time over work, `M/tau e^{(L - C + R)/M} (e^{(tau + C)/M} - 1)`.
    ///
    /// # Errors
    ///
    /// When the interval is not above 0.
    pub fn efficiency(&self, interval_seconds: f64) -> Result<f64, ModelError> {
        let interval = time("the interval", interval_seconds)?;
        let mtbf = self.mtbf_seconds;
        let delay = (self.latency_seconds - self.cost_seconds + self.restart_seconds) / mtbf;
        let segment = (interval + self.cost_seconds) / mtbf;
        Ok((-((mtbf / interval).ln() + delay + ln_exp_m1(segment))).exp())
    }
}

/// `-ln(1 - x) - x` for `0 < x < 1`, also where the two nearly cancel.
fn log_excess(x: f64) -> f64 {
    if x < 1e-2 {
        // Terms x^2/2 + x^3/3 + ..; the ninth is below the last bit.
        return (2..=9)
            .rev()
            .fold(0.0, |sum, power| (sum + 1.0 / f64::from(power)) * x)
            * x;
    }
    -(-x).ln_1p() - x
}

/// `ln(e^x - 1)` for `x > 0`, without the overflow.
pub(super) fn ln_exp_m1(x: f64) -> f64 {
    if x > 1.0 {
        x + (-(-x).exp()).ln_1p()
    } else {
        x.exp_m1().ln()
    }
}
