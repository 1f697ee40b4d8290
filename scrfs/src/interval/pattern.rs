//! Several kinds of checkpoint, each against failures that the cheaper ones do not survive, to first order.
//!
//! A pattern of length `W` has `n` segments of equal length; each ends with a checkpoint of level 1, the last with
//! one of level 2 as well. To first order in the rates, with recovery left out, the overhead (time
//! lost over time used) is `H(n, W) = (n C1 + C2)/W + l1 W/(2n) + l2 W/2`.
//!
//! - N. H. Vaidya, *A case for two-level recovery schemes*, IEEE TC 47(6), 1998.
//! - A. Benoit, A. Cavelan, V. Le Fevre, Y. Robert, H. Sun, *Towards optimal multi-level
//!   checkpointing*, IEEE TC 66(7), 2017: with `k` levels, each has its own Young period,
//!   and `H = sum of sqrt(2 l C)`; levels that are not worth their cost are left out.

use super::{ModelError, count, rate, time};

/// A kind of checkpoint, and the failures that need it or a better one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Level {
    cost_seconds: f64,
    failures_per_second: f64,
}

impl Level {
    /// A checkpoint that costs so much, against failures that come so often.
    ///
    /// # Errors
    ///
    /// When it costs nothing, or the rate is negative.
    pub fn new(cost_seconds: f64, failures_per_second: f64) -> Result<Self, ModelError> {
        Ok(Self {
            cost_seconds: time("the cost of a checkpoint", cost_seconds)?,
            failures_per_second: rate("the rate of failures", failures_per_second)?,
        })
    }
}

/// A pattern of two levels.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pattern {
    /// Segments, each with a checkpoint of level 1.
    pub segments: u64,
    /// Work from one checkpoint of level 2 to the next.
    pub length_seconds: f64,
    /// Time lost over time used.
    pub overhead: f64,
}

/// Two levels: failures that the first survives, and those that need the second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TwoLevel {
    /// Cheap, and often.
    pub first: Level,
    /// Dear, and rare.
    pub second: Level,
}

/// Most segments of a pattern.
const SEGMENTS_MAX: u64 = 1_000_000;

impl TwoLevel {
    fn checkpoints_seconds(&self, segments: u64) -> f64 {
        segments as f64 * self.first.cost_seconds + self.second.cost_seconds
    }

    fn lost_per_second(&self, segments: u64) -> f64 {
        self.first.failures_per_second / (2.0 * segments as f64)
            + self.second.failures_per_second / 2.0
    }

    /// `H(n, W)`.
    ///
    /// # Errors
    ///
    /// When there are no segments, or they have no length.
    pub fn overhead(&self, segments: u64, length_seconds: f64) -> Result<f64, ModelError> {
        let segments = count("the number of segments", segments, SEGMENTS_MAX)?;
        let length = time("the length of a pattern", length_seconds)?;
        Ok(self.checkpoints_seconds(segments) / length + self.lost_per_second(segments) * length)
    }

    /// The best pattern of so many segments.
    ///
    /// # Errors
    ///
    /// When there are no segments, or no failures at all.
    pub fn best_of(&self, segments: u64) -> Result<Pattern, ModelError> {
        let segments = count("the number of segments", segments, SEGMENTS_MAX)?;
        let (cost, lost) = (
            self.checkpoints_seconds(segments),
            self.lost_per_second(segments),
        );
        if lost == 0.0 {
            return Err(ModelError::NoRate {
                what: "the rate of all failures",
                value: 0.0,
            });
        }
        Ok(Pattern {
            segments,
            length_seconds: (cost / lost).sqrt(),
            overhead: 2.0 * (cost * lost).sqrt(),
        })
    }

    /// The best number of segments before it is made whole: `sqrt(l1 C2 / (l2 C1))`.
    #[must_use]
    pub fn segments_exactly(&self) -> f64 {
        let (first, second) = (self.first, self.second);
        let ratio = first.failures_per_second * second.cost_seconds
            / (second.failures_per_second * first.cost_seconds);
        // No failures at all; or none of the second kind, which makes it infinite.
        let ratio = if ratio.is_nan() { 1.0 } else { ratio };
        ratio.sqrt().clamp(1.0, SEGMENTS_MAX as f64)
    }

    /// The best pattern.
    ///
    /// # Errors
    ///
    /// When there are no failures at all.
    pub fn best(&self) -> Result<Pattern, ModelError> {
        let exactly = self.segments_exactly();
        let below = self.best_of(exactly.floor() as u64)?;
        let above = self.best_of(exactly.ceil() as u64)?;
        Ok(if above.overhead < below.overhead {
            above
        } else {
            below
        })
    }
}

/// Any number of levels, cheapest first.
#[derive(Clone, PartialEq, Debug)]
pub struct Levels {
    levels: Vec<Level>,
}

/// Most levels.
const LEVELS_MAX: usize = 64;

impl Levels {
    /// These levels; each survives what those before it survive.
    ///
    /// # Errors
    ///
    /// When there are none, or too many.
    pub fn new(levels: Vec<Level>) -> Result<Self, ModelError> {
        count(
            "the number of levels",
            levels.len() as u64,
            LEVELS_MAX as u64,
        )?;
        Ok(Self { levels })
    }

    /// The best period of work of each level, and the overhead of all. `None`: the level is left
    /// out, for what needs it is served better by the next one that is not, or never happens.
    ///
    /// A level takes over the failures of those left out below it, so the best choice that ends with
    /// a level is that level with the best choice that ends with an earlier one.
    #[must_use]
    pub fn best_seconds(&self) -> (Vec<Option<f64>>, f64) {
        // Of choices whose last level is this one: the overhead, and the level before it.
        let mut choices: Vec<(f64, Option<usize>)> = Vec::with_capacity(self.levels.len());
        for (index, level) in self.levels.iter().enumerate() {
            let cost = level.cost_seconds;
            let (mut failures, mut best) = (0.0, (f64::INFINITY, None));
            for below in (0..=index).rev() {
                failures += self.levels[below].failures_per_second;
                let before = below.checked_sub(1);
                let overhead =
                    (2.0 * failures * cost).sqrt() + before.map_or(0.0, |before| choices[before].0);
                if overhead < best.0 {
                    best = (overhead, before);
                }
            }
            choices.push(best);
        }
        let mut periods = vec![None; self.levels.len()];
        let mut last = self.levels.len().checked_sub(1);
        while let Some(index) = last {
            let before = choices[index].1;
            let from = before.map_or(0, |before| before + 1);
            let failures: f64 = self.levels[from..=index]
                .iter()
                .map(|level| level.failures_per_second)
                .sum();
            if failures > 0.0 {
                periods[index] = Some((2.0 * self.levels[index].cost_seconds / failures).sqrt());
            }
            last = before;
        }
        (periods, choices.last().map_or(0.0, |choice| choice.0))
    }
}
