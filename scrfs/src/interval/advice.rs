//! The advice: the best schedule of a job, what it costs, and what the present one costs.

use super::ModelError;
use super::job::{Job, Losses, Schedule};
use serde::Serialize;
use std::fmt::Write as _;

/// How a job does at present.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Present {
    /// What it does.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// The share of time that is lost by it.
    pub waste: f64,
}

/// What a job should do; the fields are stable.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Advice {
    /// Checkpoint and flush so often.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// The share of time that is lost then: checkpoints, undone work, recovery.
    pub waste: f64,
    /// The same, were failures as rare, and as frequent, as is still likely.
    pub waste_range: Option<(f64, f64)>,
    /// Intervals from here to there lose at most a tenth more.
    pub good_seconds: (f64, f64),
    /// What the job does now.
    pub present: Option<Present>,
}

/// Waste that is as good as the best, times it.
const AS_GOOD: f64 = 1.1;
/// Halvings of the bracket in which waste becomes too much.
const BISECTIONS: u32 = 40;

impl Advice {
    /// For a job that does `present` now, of which failures may as well be as rare or as frequent
    /// as in `likely`. `flush_every` is taken as given when it is.
    ///
    /// # Errors
    ///
    /// When a number makes no sense, nothing fails, or nothing would ever be finished.
    pub fn of(
        job: &Job,
        flush_every: Option<u64>,
        present: Option<Schedule>,
        likely: Option<(Losses, Losses)>,
    ) -> Result<Self, ModelError> {
        let schedule = match flush_every {
            Some(every) => job.best_interval(every)?,
            None => job.best()?,
        };
        let waste = |job: &Job, schedule| Ok(1.0 - job.efficiency(schedule)?);
        let with = |losses| waste(&Job { losses, ..*job }, schedule);
        let best = waste(job, schedule)?;
        let edge = |end: f64| {
            // Intervals by ratio; the nearer one is good, the further one is not.
            let (mut near, mut far) = (schedule.interval_seconds.ln(), end.ln());
            for _ in 0..BISECTIONS {
                let middle = (near + far) / 2.0;
                let there = Schedule {
                    interval_seconds: middle.exp(),
                    ..schedule
                };
                let is_good = waste(job, there).is_ok_and(|there| there <= AS_GOOD * best);
                *(if is_good { &mut near } else { &mut far }) = middle;
            }
            near.exp()
        };
        let around = (
            edge(schedule.interval_seconds / 1e4),
            edge(schedule.interval_seconds * 1e4),
        );
        Ok(Self {
            schedule,
            waste: best,
            waste_range: match likely {
                Some((rare, frequent)) => Some((with(rare)?, with(frequent)?)),
                None => None,
            },
            good_seconds: around,
            present: match present {
                Some(schedule) => Some(Present {
                    schedule,
                    waste: waste(job, schedule)?,
                }),
                None => None,
            },
        })
    }

    /// One sentence, without an end of line: `checkpoint every 11 min to cache (xor), flush every 18th; expected
    /// waste 5.0 %, you are at 9.3 %`.
    #[must_use]
    pub fn words(&self, scheme: &str) -> String {
        let mut text = format!(
            "checkpoint every {} to cache ({scheme}), {}; expected waste {}",
            duration_words(self.schedule.interval_seconds),
            flush_words(self.schedule.flush_every),
            percent_words(self.waste)
        );
        // Writing to a string cannot fail.
        if let Some((rare, frequent)) = self.waste_range {
            let _ = write!(
                text,
                " ({} to {})",
                percent_words(rare),
                percent_words(frequent)
            );
        }
        if let Some(present) = &self.present {
            let _ = write!(text, ", you are at {}", percent_words(present.waste));
        }
        text
    }
}

fn flush_words(every: u64) -> String {
    let ending = match (every % 100, every % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    match every {
        1 => "flush all".to_owned(),
        _ => format!("flush every {every}{ending}"),
    }
}

fn percent_words(share: f64) -> String {
    let percent = 100.0 * share;
    if percent >= 0.1 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.2} %")
    }
}

/// A time as people say it, with about two digits: `350 ms`, `40 s`, `11 min`, `2.5 h`, `3 d`.
#[must_use]
pub fn duration_words(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    let (unit, name) = UNITS
        .into_iter()
        .find(|(unit, name)| seconds >= if *name == "s" { 1.0 } else { 1.95 * unit })
        .unwrap_or((0.001, "ms"));
    let number = seconds / unit;
    let digits = format!("{number:.1}");
    let short = match digits.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None if number >= 9.95 => format!("{number:.0}"),
        None => digits,
    };
    format!("{short} {name}")
}
