//! What would happen: a job that computes, checkpoints, encodes, flushes, fails and recovers, event by event.
//!
//! It does what [`super::job`] describes, and what the formula there leaves out: encode and flush go one at a time, the
//! newest checkpoint is encoded first and the oldest flushed first, every failure begins them anew, a
//! cache has room for so many checkpoints that are not flushed yet (the program waits for it), and
//! failures come at any moment, also one upon the other.
//!
//! One run is one seed: the same seed gives the same failures at the same times, whatever the
//! schedule, so that schedules are compared under the same weather. Memory is a few numbers and the queue of flushes;
//! time is bounded by [`EVENTS_MAX`]. Every second is accounted for once ([`Account`]).

use super::job::{Job, Losses, Schedule};
use super::{ModelError, count, time};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::collections::VecDeque;

/// Longest run, in events.
pub const EVENTS_MAX: u64 = 20_000_000;
/// Most checkpoints that wait for their flush.
const WAITING_MAX: u64 = 1000;

/// A job under one schedule for some time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Simulation {
    job: Job,
    schedule: Schedule,
    waiting_max: usize,
    seconds: f64,
}

/// Where the time went, in seconds. All but `elapsed_seconds` add up to it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Account {
    /// In all.
    pub elapsed_seconds: f64,
    /// Work that stands at the end.
    pub useful_seconds: f64,
    /// Work that a failure undid.
    pub undone_seconds: f64,
    /// What encode and flush slowed down.
    pub slowed_seconds: f64,
    /// Waiting for checkpoints.
    pub stalled_seconds: f64,
    /// Waiting for room in the cache.
    pub waited_seconds: f64,
    /// Recovering.
    pub recovering_seconds: f64,
    /// Checkpoints that were sealed.
    pub checkpoints: u64,
    /// Checkpoints that reached the prefix.
    pub flushes: u64,
    /// Failures by where the program came back from: cache, parity, prefix.
    pub failures: [u64; 3],
}

impl Account {
    /// The share of time that was useful.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        self.useful_seconds / self.elapsed_seconds
    }
}

/// What the program does.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Doing {
    Computing,
    /// Until the cache has room for a checkpoint that is to be flushed.
    Waiting,
    Stalled,
    /// From the kind of this index.
    Recovering(usize),
}

/// Work that a checkpoint holds.
type Work = f64;

#[derive(Debug)]
struct World<'a> {
    simulation: &'a Simulation,
    now: f64,
    work: Work,
    doing: Doing,
    /// When it is over.
    until: f64,
    sealed: Work,
    protected: Work,
    flushed: Work,
    /// Checkpoints given a number.
    number: u64,
    encoding: Option<(Work, f64)>,
    /// Oldest first; the first is being flushed.
    queue: VecDeque<Work>,
    flush_until: f64,
    account: Account,
}

impl Simulation {
    /// A job under a schedule, for so many seconds, with room for `waiting_max` checkpoints that are
    /// to be flushed and are not yet.
    ///
    /// # Errors
    ///
    /// When a number makes no sense, or there would be more than [`EVENTS_MAX`] events.
    pub fn new(
        job: Job,
        schedule: Schedule,
        waiting_max: u64,
        seconds: f64,
    ) -> Result<Self, ModelError> {
        let job = job.checked()?;
        let schedule = schedule.checked()?;
        let simulation = Self {
            job,
            schedule,
            waiting_max: count(
                "the room for checkpoints that wait",
                waiting_max,
                WAITING_MAX,
            )? as usize,
            seconds: time("the time to simulate", seconds)?,
        };
        // Saturates, so that any number is refused in words.
        count(
            "the number of events",
            simulation.events() as u64,
            EVENTS_MAX,
        )?;
        Ok(simulation)
    }

    /// About how many events a run has.
    #[must_use]
    pub fn events(&self) -> f64 {
        let segments = self.seconds / (self.schedule.interval_seconds + self.job.stall_seconds);
        let failures = self.seconds * self.job.losses.failures_per_second();
        1.0 + 4.0 * segments + 3.0 * failures
    }

    /// One run.
    #[must_use]
    pub fn run(&self, seed: u64) -> Account {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World {
            simulation: self,
            now: 0.0,
            work: 0.0,
            doing: Doing::Computing,
            until: self.schedule.interval_seconds,
            sealed: 0.0,
            protected: 0.0,
            flushed: 0.0,
            number: 0,
            encoding: None,
            queue: VecDeque::new(),
            flush_until: f64::INFINITY,
            account: Account::default(),
        };
        let mut failure = self.after(&mut random);
        while world.now < self.seconds {
            let encoded = world.encoding.map_or(f64::INFINITY, |(_, until)| until);
            let next = world
                .until
                .min(encoded)
                .min(world.flush_until)
                .min(failure)
                .min(self.seconds);
            world.pass(next);
            if encoded <= next {
                world.encoded();
            } else if world.flush_until <= next {
                world.flushed();
            } else if world.until <= next {
                world.go_on();
            } else if failure <= next {
                world.fail(kind(&self.job.losses, &mut random));
                failure += self.after(&mut random);
            }
        }
        Account {
            elapsed_seconds: world.now,
            useful_seconds: world.work,
            ..world.account
        }
    }

    /// Time until the next failure.
    fn after(&self, random: &mut StdRng) -> f64 {
        let uniform: f64 = random.random();
        // Infinite when nothing ever fails.
        -(-uniform).ln_1p() / self.job.losses.failures_per_second()
    }

    fn is_due(&self, number: u64) -> bool {
        number.is_multiple_of(self.schedule.flush_every)
    }
}

/// Which kind the failure is of.
fn kind(losses: &Losses, random: &mut StdRng) -> usize {
    let [cache, parity, _] = losses.kinds().map(|kind| kind.failures_per_second);
    let at = random.random::<f64>() * losses.failures_per_second();
    if at < cache {
        0
    } else if at < cache + parity {
        1
    } else {
        2
    }
}

const PARITY: usize = 1;
const PREFIX: usize = 2;

impl World<'_> {
    /// Lets time pass in which nothing happens.
    fn pass(&mut self, next: f64) {
        let job = &self.simulation.job;
        let seconds = next - self.now;
        self.now = next;
        match self.doing {
            Doing::Computing => {
                let mut speed = 1.0;
                if self.encoding.is_some() {
                    speed *= 1.0 - job.encode_slowdown;
                }
                if !self.queue.is_empty() {
                    speed *= 1.0 - job.flush_slowdown;
                }
                self.work += seconds * speed;
                self.account.slowed_seconds += seconds * (1.0 - speed);
            }
            Doing::Waiting => self.account.waited_seconds += seconds,
            Doing::Stalled => self.account.stalled_seconds += seconds,
            Doing::Recovering(_) => self.account.recovering_seconds += seconds,
        }
    }

    fn compute(&mut self) {
        self.doing = Doing::Computing;
        self.until = self.now + self.simulation.schedule.interval_seconds;
    }

    fn encode_newest(&mut self) {
        let until = self.now + self.simulation.job.encode_seconds;
        self.encoding = (self.sealed > self.protected).then_some((self.sealed, until));
    }

    fn flush_oldest(&mut self) {
        self.flush_until = match self.queue.front() {
            Some(_) => self.now + self.simulation.job.flush_seconds,
            None => f64::INFINITY,
        };
    }

    fn encoded(&mut self) {
        if let Some((work, _)) = self.encoding {
            self.protected = self.protected.max(work);
        }
        self.encode_newest();
    }

    fn flushed(&mut self) {
        if let Some(work) = self.queue.pop_front() {
            self.flushed = self.flushed.max(work);
            self.account.flushes += 1;
        }
        self.flush_oldest();
        if self.doing == Doing::Waiting {
            self.stall();
        }
    }

    fn stall(&mut self) {
        let job = &self.simulation.job;
        let is_due = self.simulation.is_due(self.number + 1);
        if is_due && self.queue.len() >= self.simulation.waiting_max {
            self.doing = Doing::Waiting;
            self.until = f64::INFINITY;
            return;
        }
        self.doing = Doing::Stalled;
        let more = if is_due { job.flush_stall_seconds } else { 0.0 };
        self.until = self.now + job.stall_seconds + more;
    }

    /// What the program does is over, and it does the next thing.
    fn go_on(&mut self) {
        match self.doing {
            Doing::Computing => self.stall(),
            Doing::Recovering(_) | Doing::Waiting => self.compute(),
            Doing::Stalled => {
                self.number += 1;
                self.account.checkpoints += 1;
                self.sealed = self.work;
                if self.encoding.is_none() {
                    self.encode_newest();
                }
                if self.simulation.is_due(self.number) {
                    self.queue.push_back(self.work);
                    if self.queue.len() == 1 {
                        self.flush_oldest();
                    }
                }
                self.compute();
            }
        }
    }

    fn fail(&mut self, kind: usize) {
        self.account.failures[kind] += 1;
        let mut source = kind;
        if kind == PARITY {
            if self.flushed > self.protected {
                source = PREFIX;
            }
            self.sealed = self.protected.max(self.flushed);
        } else if kind == PREFIX {
            self.sealed = self.flushed;
        }
        if kind != 0 {
            // What is made whole again is protected again.
            self.protected = self.sealed;
            let sealed = self.sealed;
            self.queue.retain(|work| kind == PARITY && *work <= sealed);
        }
        if let Doing::Recovering(before) = self.doing {
            source = source.max(before);
        }
        self.account.undone_seconds += self.work - self.sealed;
        self.work = self.sealed;
        self.encode_newest();
        self.flush_oldest();
        let recovery = self.simulation.job.losses.kinds()[source].recovery_seconds;
        self.doing = Doing::Recovering(source);
        self.until = self.now + recovery;
    }
}

/// A mean of independent runs, and how sure it is.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// With 95 % confidence it is not further off than this.
    pub half_width: f64,
}

/// Fewest runs that say how sure they are.
const RUNS_MIN: usize = 4;

impl Mean {
    /// Of the results of at least four runs; `None` of fewer.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.len() < RUNS_MIN {
            return None;
        }
        let runs = values.len() as f64;
        let mean = values.iter().sum::<f64>() / runs;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (runs - 1.0)).sqrt();
        Some(Self {
            mean,
            half_width: student(runs - 1.0) * deviation / runs.sqrt(),
        })
    }
}

/// Student's t for 95 %, two-sided, from three degrees of freedom on within 1 %: the expansion about
/// the normal quantile (Abramowitz and Stegun, 26.7.5).
fn student(freedom: f64) -> f64 {
    let z = 1.959_964_f64;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
    ];
    terms
        .iter()
        .rev()
        .fold(0.0, |sum, term| (sum + term) / freedom)
        + z
}
