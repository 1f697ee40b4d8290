//! What the datasets of a mount tell about the job: when each was begun, sealed, protected, flushed.
//!
//! Medians, so that one checkpoint that met a busy file system does not count for more than one. Times
//! are those of the leader's clock, to the millisecond. A stall is from the making of the directory to the seal: a program
//! that makes the directory long before it writes seems to wait longer than it does.

use crate::layout::record::{DatasetRecord, UnixMillis};
use serde::Serialize;

/// When what happened to a checkpoint, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// The directory was made.
    pub created: UnixMillis,
    /// It was committed.
    pub sealed: Option<UnixMillis>,
    /// It survives the loss of nodes.
    pub protected: Option<UnixMillis>,
    /// The prefix has it.
    pub flushed: Option<UnixMillis>,
}

impl Times {
    /// Of the dataset of this record.
    #[must_use]
    pub fn of(record: &DatasetRecord) -> Self {
        Self {
            created: record.created,
            sealed: record.sealed,
            protected: record.protected,
            flushed: record.flushed,
        }
    }
}

/// What was measured; `None` where nothing was there to measure.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Measured {
    /// Checkpoints looked at.
    pub checkpoints: usize,
    /// The program waited so long for one.
    pub stall_seconds: Option<f64>,
    /// From there until it was protected.
    pub encode_seconds: Option<f64>,
    /// From the seal until it was flushed, waiting for earlier ones included.
    pub flush_seconds: Option<f64>,
    /// From one seal to the beginning of the next checkpoint.
    pub interval_seconds: Option<f64>,
    /// From the first beginning to the last thing that happened.
    pub span_seconds: f64,
}

/// Shortest time that is believed; clocks tell milliseconds.
const SECONDS_MIN: f64 = 0.001;

fn seconds(from: UnixMillis, to: UnixMillis) -> Option<f64> {
    Some((to.checked_sub(from)? as f64 / 1000.0).max(SECONDS_MIN))
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values.get(low)? + values.get(high)?) / 2.0)
}

/// A job's end takes so much besides.
const END_SECONDS: f64 = 10.0;

impl Measured {
    /// From the wish that a program ends until all it has made is flushed, as far as that can be told: it computes
    /// up to its next checkpoint, makes it, and looks after that; it may find the flush before still at work.
    /// `None` before the first checkpoint.
    #[must_use]
    pub fn end_seconds(&self) -> Option<f64> {
        let until_sealed = self.interval_seconds.unwrap_or(0.0) + self.stall_seconds?;
        let flush = self.flush_seconds.or(self.encode_seconds).unwrap_or(0.0);
        Some(until_sealed + 2.0 * flush + END_SECONDS)
    }

    /// Of the checkpoints of a job, in any order.
    #[must_use]
    pub fn of(times: &[Times]) -> Self {
        let mut times = times.to_vec();
        times.sort_by_key(|times| times.created);
        let between = |from: fn(&Times) -> Option<UnixMillis>,
                       to: fn(&Times) -> Option<UnixMillis>| {
            let each = times.iter();
            median(each.filter_map(|it| seconds(from(it)?, to(it)?)).collect())
        };
        let pairs = times.iter().zip(times.iter().skip(1));
        let intervals = pairs.filter_map(|(one, next)| seconds(one.sealed?, next.created));
        let events = times
            .iter()
            .flat_map(|it| [Some(it.created), it.sealed, it.protected, it.flushed])
            .flatten();
        let first = times.first().map_or(0, |first| first.created);
        let last = events.max().unwrap_or(first);
        Self {
            checkpoints: times.iter().filter(|it| it.sealed.is_some()).count(),
            stall_seconds: between(|it| Some(it.created), |it| it.sealed),
            encode_seconds: between(|it| it.sealed, |it| it.protected),
            flush_seconds: between(|it| it.sealed, |it| it.flushed),
            interval_seconds: median(intervals.collect()),
            span_seconds: last.saturating_sub(first) as f64 / 1000.0,
        }
    }
}
