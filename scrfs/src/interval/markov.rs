//! Several kinds of checkpoint, exactly: the Markov model of SCR.
//!
//! A. Moody, G. Bronevetsky, K. Mohror, B. R. de Supinski, *Design, modeling, and evaluation of a
//! scalable multi-level checkpointing system*, SC'10. A cycle is a row of segments of `t` seconds of work, each
//! with a checkpoint of some level at its end. A failure of level `i` goes back to the newest
//! checkpoint of that level or a higher one, which takes `r_i`; another failure meanwhile of level `j <= i`
//! begins that anew, one of `j > i` goes back further. Failures of all levels together come at rate `L`; a
//! state of length `t` ends well with probability `e^{-Lt}`, and takes `(1 - e^{-Lt})/L` on average either way.
//!
//! States only ever go back, and come forward again one segment at a time. So the linear system of
//! expected times is solved in one pass, segment by segment, in positive terms only.

use super::search::{minimize, minimize_count};
use super::{ModelError, count, delay, rate, time};

/// Longest cycle, in segments.
const SEGMENTS_MAX: u64 = 1 << 20;
/// Most levels.
const LEVELS_MAX: u64 = 16;
/// Longest cycle that [`Markov::best`] considers: its time grows with it.
const SEARCHED_MAX: u64 = 1 << 14;

/// A kind of checkpoint with the failures that need it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MarkovLevel {
    cost_seconds: f64,
    recovery_seconds: f64,
    failures_per_second: f64,
}

impl MarkovLevel {
    /// A level. `cost_seconds` is what it costs more than a checkpoint of the level below.
    ///
    /// # Errors
    ///
    /// When a time or the rate is negative, or no number.
    pub fn new(
        cost_seconds: f64,
        recovery_seconds: f64,
        failures_per_second: f64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            cost_seconds: delay("the cost of a checkpoint", cost_seconds)?,
            recovery_seconds: delay("the time to recover", recovery_seconds)?,
            failures_per_second: rate("the rate of failures", failures_per_second)?,
        })
    }
}

/// When which checkpoint is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Rhythm {
    /// Work from one checkpoint to the next.
    pub interval_seconds: f64,
    /// How many checkpoints of a level make up one of the next: one number less than there are levels.
    pub counts: Vec<u64>,
}

/// The model.
#[derive(Clone, PartialEq, Debug)]
pub struct Markov {
    levels: Vec<MarkovLevel>,
    failures_per_second: f64,
}

impl Markov {
    /// With these levels, cheapest first.
    ///
    /// # Errors
    ///
    /// When there are no levels, or too many.
    pub fn new(levels: Vec<MarkovLevel>) -> Result<Self, ModelError> {
        count("the number of levels", levels.len() as u64, LEVELS_MAX)?;
        let failures_per_second = levels.iter().map(|level| level.failures_per_second).sum();
        Ok(Self {
            levels,
            failures_per_second,
        })
    }

    /// Expected time in a state of this length, whether it ends well or not.
    fn mean_seconds(&self, length: f64) -> f64 {
        let failures = self.failures_per_second;
        if failures == 0.0 {
            length
        } else {
            -(-failures * length).exp_m1() / failures
        }
    }

    /// The chance that a state of this length ends in a failure, and of each level.
    fn fails(&self, length: f64) -> impl Iterator<Item = f64> + '_ {
        let all = self.failures_per_second;
        let fails = -(-all * length).exp_m1();
        self.levels.iter().map(move |level| {
            if all == 0.0 {
                0.0
            } else {
                fails * level.failures_per_second / all
            }
        })
    }

    /// The expected time of one cycle.
    ///
    /// # Errors
    ///
    /// When the rhythm does not fit, or the time is beyond any number.
    pub fn cycle_seconds(&self, rhythm: &Rhythm) -> Result<f64, ModelError> {
        let interval = time("the interval", rhythm.interval_seconds)?;
        let segments = self.segments(&rhythm.counts)?;
        // When the checkpoint after so many segments is the newest of a level: of each level, which
        // it is; and the time from the start of the cycle until that many are done.
        let mut newest = vec![0_usize; self.levels.len()];
        let mut until = vec![0.0_f64];
        // What a recovery of each level from `newest` takes until its segment can go on.
        let mut recovered = self.recovered(&newest, &until);
        for segment in 1..=segments {
            let level = self.level_of(segment, &rhythm.counts);
            let cost: f64 = self.levels[..=level]
                .iter()
                .map(|level| level.cost_seconds)
                .sum();
            let length = interval + cost;
            let done = (segment - 1) as usize;
            let mut expected = self.mean_seconds(length);
            for (index, fails) in self.fails(length).enumerate() {
                expected += fails * (recovered[index] + until[done] - until[newest[index]]);
            }
            let expected = expected / (-self.failures_per_second * length).exp();
            let total = until[done] + expected;
            if !total.is_finite() {
                return Err(ModelError::Hopeless);
            }
            until.push(total);
            for newest in &mut newest[..=level] {
                *newest = segment as usize;
            }
            recovered = self.recovered(&newest, &until);
        }
        until.last().copied().ok_or(ModelError::Hopeless)
    }

    /// For each level, the time from the beginning of its recovery until the program goes on where
    /// its newest checkpoint is. A failure of a higher level goes back further, and all between is done again.
    fn recovered(&self, newest: &[usize], until: &[f64]) -> Vec<f64> {
        let mut recovered = vec![0.0; self.levels.len()];
        for index in (0..self.levels.len()).rev() {
            let length = self.levels[index].recovery_seconds;
            let (mut again, mut expected) = (0.0, self.mean_seconds(length));
            for (other, fails) in self.fails(length).enumerate() {
                if other <= index {
                    again += fails;
                } else {
                    let further = until[newest[index]] - until[newest[other]];
                    expected += fails * (recovered[other] + further);
                }
            }
            recovered[index] = expected / (1.0 - again);
        }
        recovered
    }

    fn segments(&self, counts: &[u64]) -> Result<u64, ModelError> {
        if counts.len() + 1 != self.levels.len() {
            return Err(ModelError::NoCount {
                what: "the number of counts, one less than there are levels,",
                value: counts.len() as u64,
                max: self.levels.len() as u64 - 1,
            });
        }
        let segments = counts
            .iter()
            .fold(1_u64, |product, &next| product.saturating_mul(next));
        count("the number of segments", segments, SEGMENTS_MAX)
    }

    /// The level of the checkpoint after so many segments, from 1.
    fn level_of(&self, segment: u64, counts: &[u64]) -> usize {
        let mut period = 1;
        let mut level = 0;
        for &next in counts {
            period *= next;
            if !segment.is_multiple_of(period) {
                break;
            }
            level += 1;
        }
        level
    }

    /// The share of time that is useful.
    ///
    /// # Errors
    ///
    /// As [`Self::cycle_seconds`].
    pub fn efficiency(&self, rhythm: &Rhythm) -> Result<f64, ModelError> {
        let segments = self.segments(&rhythm.counts)? as f64;
        Ok(segments * rhythm.interval_seconds / self.cycle_seconds(rhythm)?)
    }

    /// The best rhythm: from the counts of `start`, one after the other, until none gets better; each
    /// with the interval that is best for all of them, within a factor of a hundred of `start`.
    ///
    /// # Errors
    ///
    /// When `start` does not fit, or nothing would ever be finished.
    pub fn best(&self, start: &Rhythm) -> Result<(Rhythm, f64), ModelError> {
        self.efficiency(start)?;
        let waste = |rhythm: &Rhythm| self.efficiency(rhythm).map_or(f64::INFINITY, |e| -e);
        let at = start.interval_seconds;
        let paced = |counts: &[u64]| {
            let with = |interval_seconds| Rhythm {
                interval_seconds,
                counts: counts.to_vec(),
            };
            let best = with(minimize(at / 100.0, at * 100.0, |interval| {
                waste(&with(interval))
            }));
            let waste = waste(&best);
            (best, waste)
        };
        let (mut best, mut reached) = paced(&start.counts);
        loop {
            let before = reached;
            for index in 0..best.counts.len() {
                let with = |count: u64| {
                    let mut counts = best.counts.clone();
                    counts[index] = count;
                    counts
                };
                let others = with(1)
                    .iter()
                    .fold(1, |product: u64, &count| product.saturating_mul(count));
                let max = (SEARCHED_MAX / others).max(1);
                let count = minimize_count(best.counts[index], max, |count| paced(&with(count)).1);
                (best, reached) = paced(&with(count));
            }
            if reached >= before - 1e-12 {
                return Ok((best, -reached));
            }
        }
    }
}
