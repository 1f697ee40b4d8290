//! When a program that asks is told to checkpoint.
//!
//! From the configuration, and the times of datasets. It is no while nothing is due; it becomes yes at one moment; and it is
//! no again when a checkpoint is begun. The leader decides ([`super::Rounds`]), for it must be the same for all who ask;
//! how often is best is told by every node.
//!
//! Time is counted from the newest of: a checkpoint was begun, one was committed, recovery ended. So one that is begun and never
//! committed puts the next off by one interval, not for ever.

use super::inputs::{Given, InputError, Inputs};
use super::{Advice, Learnt, Measured, Times};
use crate::config::{AdviceConfig, CommitWait, Config, Mtbf};
use crate::layout::record::UnixMillis;
use std::fmt::Write as _;

/// While nobody knows what a checkpoint costs, one that was begun is taken for abandoned after so long.
const ABANDONED_SECONDS: f64 = 600.0;

/// What a configuration says of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Rules {
    advice: AdviceConfig,
    wait: CommitWait,
    /// `None`: nothing is flushed, or that is left to the advice.
    flush_every: Option<u64>,
    scheme: String,
}

impl Rules {
    /// Those of this one.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            advice: config.advice.clone(),
            wait: config.commit.wait,
            flush_every: Some(config.flush.every).filter(|&every| every > 0),
            scheme: config.redundancy.scheme.to_string(),
        }
    }

    /// Whether none of the three is set, so that the computed optimum holds.
    fn is_computed(&self) -> bool {
        let AdviceConfig {
            interval,
            seconds,
            overhead_percent,
            ..
        } = self.advice;
        interval == 0 && seconds == 0 && overhead_percent == 0.0
    }
}

/// What is known.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What holds.
    pub rules: &'a Rules,
    /// The checkpoints there are.
    pub checkpoints: &'a [Times],
    /// Nodes that take part.
    pub nodes: u32,
    /// When recovery last ended.
    pub recovered: UnixMillis,
    /// What failed before.
    pub learnt: Learnt,
}

impl Situation<'_> {
    /// Since when time, and questions, are counted.
    #[must_use]
    pub fn since(&self) -> UnixMillis {
        let begun = self.checkpoints.iter().map(|it| it.created);
        let sealed = self.checkpoints.iter().filter_map(|it| it.sealed);
        begun.chain(sealed).fold(self.recovered, UnixMillis::max)
    }

    fn inputs(&self, measured: &Measured) -> Result<Inputs, InputError> {
        let mtbf_seconds = match self.rules.advice.mtbf {
            Mtbf::Seconds(seconds) => Some(seconds),
            Mtbf::Auto => None,
        };
        let given = Given {
            mtbf_seconds,
            ..Given::default()
        };
        let (seen, recoveries) = self.learnt.open();
        let mut inputs = Inputs::new(&given, measured, &seen, &recoveries, self.nodes)?;
        inputs.job = inputs.job.waiting_for(self.rules.wait);
        Ok(inputs)
    }

    /// Computing between two checkpoints that is best.
    ///
    /// # Errors
    ///
    /// When no checkpoint was measured yet, or nothing would ever be finished.
    pub fn best_seconds(&self) -> Result<f64, InputError> {
        let job = self.inputs(&Measured::of(self.checkpoints))?.job;
        let schedule = match self.rules.flush_every {
            Some(every) => job.best_interval(every.min(super::FLUSH_EVERY_MAX))?,
            None => job.best()?,
        };
        Ok(schedule.interval_seconds)
    }

    /// Whether a checkpoint is due, asked for the `asked`-th time since [`Self::since`].
    #[must_use]
    pub fn is_due(&self, now: UnixMillis, asked: u64) -> bool {
        let advice = &self.rules.advice;
        let seconds = now.saturating_sub(self.since()) as f64 / 1000.0;
        // What one costs is learnt from the first.
        let is_first = || self.since() == self.recovered || seconds >= ABANDONED_SECONDS;
        if self.rules.is_computed() {
            return match self.best_seconds() {
                Ok(best) => seconds >= best,
                Err(InputError::NoCost) => is_first(),
                // Where nothing would ever be finished, any checkpoint helps.
                Err(InputError::Model(_)) => true,
            };
        }
        let by_cost = || match Measured::of(self.checkpoints).stall_seconds {
            Some(cost) => 100.0 * cost / (seconds + cost) < advice.overhead_percent,
            None => is_first(),
        };
        (advice.interval > 0 && asked >= advice.interval)
            || (advice.seconds > 0 && seconds >= advice.seconds as f64)
            || (advice.overhead_percent > 0.0 && by_cost())
    }

    /// For people, and a `name value` line for each number.
    #[must_use]
    pub fn text(&self) -> String {
        let measured = Measured::of(self.checkpoints);
        let advice = self.inputs(&measured).and_then(|inputs| {
            let every = self
                .rules
                .flush_every
                .map(|every| every.min(super::FLUSH_EVERY_MAX));
            Ok(Advice::of(&inputs.job, every, None, inputs.likely)?)
        });
        match advice {
            Ok(advice) => {
                let mut text = format!("{}\n", advice.words(&self.rules.scheme));
                let numbers = [
                    (
                        "interval_seconds",
                        format!("{:.3}", advice.schedule.interval_seconds),
                    ),
                    ("flush_every", advice.schedule.flush_every.to_string()),
                    ("waste", format!("{:.6}", advice.waste)),
                ];
                for (name, value) in numbers {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, "{name} {value}");
                }
                text
            }
            Err(error) => format!("{error}\n"),
        }
    }
}
