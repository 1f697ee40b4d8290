//! Which failures a job has had, how long it ran meanwhile, and how long it took to come back: from the
//! events that its runs have written.
//!
//! A launch that ended in a failure is one failure, of the kind that tells where the program came back from:
//! the prefix, when a checkpoint was fetched or found lost before the next launch; parity, when it ended because a
//! node was lost; else the cache. All that ran counts as time in which each kind could have come, however it ended
//! (censored). A failure of the launcher itself is none of the machine's. A launch whose end nobody has noted ran
//! until the newest line before another job wrote one, and did not fail.
//!
//! Recovery is from the failure, the silence before it was noticed included, until the next launch. What the
//! program then needs to read its checkpoint is not seen.
//!
//! Lines come from a file that anybody may have cut or changed: what is not understood is left out. Several jobs
//! may have written to it at the same time.

use super::inputs::Seen;
use super::measured::median;
use crate::config::Class;
use crate::event::EndCause;
use crate::layout::record::UnixMillis;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, BufRead};

/// Longest time that is believed of one launch, or one recovery: a hundred years.
const MILLIS_MAX: u64 = 100 * 366 * 86_400_000;

/// Bytes of one file that are read.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// How long it took from failures until the next launch; `None` where there were none.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Recoveries {
    /// With all in the cache, median.
    pub cache_seconds: Option<f64>,
    /// With nodes lost, within what the scheme tolerates.
    pub parity_seconds: Option<f64>,
    /// From the prefix.
    pub prefix_seconds: Option<f64>,
}

impl Recoveries {
    /// From a failure until the program computes again with all in the cache; what takes longer is a bound for it.
    #[must_use]
    pub fn recover_seconds(&self) -> Option<f64> {
        self.cache_seconds
            .or(self.parity_seconds)
            .or(self.prefix_seconds)
    }
}

/// What is read of a line. Unknown events are of no interest.
#[derive(Deserialize)]
struct Line {
    time: Option<jiff::Timestamp>,
    event: String,
    job: Option<String>,
    class: Option<Class>,
    duration_ms: Option<u64>,
    cause: Option<EndCause>,
}

/// Where a program comes back from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Cache,
    Parity,
    Prefix,
}

/// A failure that is not counted yet, for the line that tells more of it may come late.
#[derive(Clone, Copy, Debug)]
struct Failure {
    source: Source,
    /// Until the next launch, once there is one.
    took: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Running { since: UnixMillis, silence: u64 },
    Down { since: UnixMillis },
    Idle,
}

#[derive(Debug)]
struct Job {
    state: State,
    failure: Option<Failure>,
    newest: UnixMillis,
}

/// Collects lines, oldest first.
#[derive(Debug, Default)]
pub struct History {
    jobs: HashMap<String, Job>,
    /// Whose line was the newest: lines of datasets say nothing of jobs.
    last: String,
    /// Milliseconds of running.
    ran: u64,
    failures: [u64; 3],
    recoveries: [Vec<f64>; 3],
}

impl History {
    /// All lines of a file; the older of two goes first.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&mut self, from: impl BufRead) -> io::Result<()> {
        for line in from.take(FILE_BYTES_MAX).split(b'\n') {
            self.line(&line?);
        }
        Ok(())
    }

    /// One more line.
    pub fn line(&mut self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            return;
        };
        let time = line.time.map(jiff::Timestamp::as_millisecond);
        let Some(time) = time.and_then(|time| UnixMillis::try_from(time).ok()) else {
            return;
        };
        if let Some(name) = &line.job {
            let mut job = self.jobs.remove(name).unwrap_or(Job {
                state: State::Idle,
                failure: None,
                newest: time,
            });
            self.of_job(&mut job, &line, time);
            job.newest = job.newest.max(time);
            self.last.clone_from(name);
            if job.failure.is_some() || !matches!(job.state, State::Idle) {
                self.jobs.insert(name.clone(), job);
            }
        } else if matches!(line.event.as_str(), "fetched" | "lost")
            && line.class != Some(Class::Output)
        {
            for job in self.jobs.values_mut() {
                let is_of_it = match job.state {
                    State::Running { since, .. } => time <= since,
                    State::Down { since } => time >= since,
                    State::Idle => false,
                };
                if is_of_it && let Some(failure) = &mut job.failure {
                    failure.source = Source::Prefix;
                }
            }
        } else if let Some(job) = self.jobs.get_mut(&self.last) {
            // A sign of life.
            job.newest = job.newest.max(time);
        }
    }

    fn of_job(&mut self, job: &mut Job, line: &Line, time: UnixMillis) {
        match (line.event.as_str(), job.state) {
            ("launched", state) => {
                match (state, &mut job.failure) {
                    (State::Down { since }, Some(failure)) => {
                        failure.took = Some(time.saturating_sub(since));
                    }
                    (State::Running { .. }, _) => self.close(job),
                    _ => {}
                }
                job.state = State::Running {
                    since: time,
                    silence: 0,
                };
            }
            ("node_lost", State::Running { since, silence }) => {
                let silence = silence.max(line.duration_ms.unwrap_or(0));
                job.state = State::Running { since, silence };
            }
            ("launch_ended", State::Running { since, silence }) => {
                self.count(job);
                self.run(line.duration_ms.unwrap_or(time.saturating_sub(since)));
                let source = match line.cause {
                    Some(EndCause::NodeLost) => Some(Source::Parity),
                    Some(EndCause::Failed | EndCause::Hung | EndCause::NoEpoch) => {
                        Some(Source::Cache)
                    }
                    _ => None,
                };
                job.failure = source.map(|source| Failure { source, took: None });
                job.state = match source {
                    Some(_) => State::Down {
                        since: time.saturating_sub(silence),
                    },
                    None => State::Idle,
                };
            }
            ("job_began" | "job_ended", _) => {
                self.close(job);
                job.state = State::Idle;
            }
            _ => {}
        }
    }

    /// Nobody has noted the end of what ran.
    fn close(&mut self, job: &mut Job) {
        self.count(job);
        if let State::Running { since, .. } = job.state {
            self.run(job.newest.saturating_sub(since));
        }
    }

    fn run(&mut self, millis: u64) {
        self.ran = self.ran.saturating_add(millis.min(MILLIS_MAX));
    }

    fn count(&mut self, job: &mut Job) {
        let Some(failure) = job.failure.take() else {
            return;
        };
        let at = failure.source as usize;
        self.failures[at] += 1;
        if let Some(took) = failure.took {
            // Clocks tell milliseconds, and a time must pass.
            let seconds = took.clamp(1, MILLIS_MAX) as f64 / 1000.0;
            self.recoveries[at].push(seconds);
        }
    }

    /// All that was seen.
    #[must_use]
    pub fn learnt(mut self) -> (Seen, Recoveries) {
        let mut jobs = std::mem::take(&mut self.jobs);
        for job in jobs.values_mut() {
            self.close(job);
        }
        let seconds = (self.ran as f64 / 1000.0).min(MILLIS_MAX as f64);
        let seen = |source: Source| super::Exposure {
            seconds,
            failures: self.failures[source as usize],
        };
        let seen = Seen {
            process: seen(Source::Cache),
            node: seen(Source::Parity),
            beyond: seen(Source::Prefix),
        };
        let [cache, parity, prefix] = self.recoveries.map(median);
        let recoveries = Recoveries {
            cache_seconds: cache,
            parity_seconds: parity,
            prefix_seconds: prefix,
        };
        (seen, recoveries)
    }
}
