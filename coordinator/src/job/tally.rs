//! What a job was worth: its launches, how each ended, and which part of the time was kept. Pure.
//!
//! Time counts as kept when nothing of it is computed again: up to the end of a launch that ended well, else
//! up to its last checkpoint. Times are since the supervisor began.

use std::fmt::Write as _;
use std::time::Duration;

/// How a launch ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// By itself, and well.
    Finished,
    /// Because the job was to end.
    Halted(String),
    /// The application failed.
    Failed(String),
    /// A node was lost.
    NodeLost(String),
    /// Nothing moved any more.
    Hung(Duration),
    /// The launcher could not start it, or broke by itself.
    Launcher(String),
    /// The coordinators could not be kept.
    NoEpoch,
}

impl Cause {
    fn is_well(&self) -> bool {
        matches!(self, Self::Finished | Self::Halted(_))
    }

    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Self::Finished => "finished".into(),
            Self::Halted(why) => format!("halted: {why}"),
            Self::Failed(how) => format!("the application failed: {how}"),
            Self::NodeLost(which) => format!("node lost: {which}"),
            Self::Hung(silence) => {
                format!("hung: nothing moved for {} s", silence.as_secs())
            }
            Self::Launcher(how) => format!("launcher error: {how}"),
            Self::NoEpoch => "no coordinators to be had".into(),
        }
    }
}

#[derive(Debug)]
struct Launch {
    began: Duration,
    ended: Option<(Duration, Cause)>,
    checkpoints: u64,
    last: Option<Duration>,
}

/// All launches of a job.
#[derive(Debug, Default)]
pub struct Tally {
    launches: Vec<Launch>,
    newest: Option<u64>,
}

impl Tally {
    /// A launch begins, with `checkpoint` as the newest one's number.
    pub fn begin(&mut self, now: Duration, checkpoint: u64) {
        self.newest = Some(checkpoint);
        self.launches.push(Launch {
            began: now,
            ended: None,
            checkpoints: 0,
            last: None,
        });
    }

    /// The newest checkpoint is this one.
    pub fn see(&mut self, now: Duration, checkpoint: u64) {
        let Some(launch) = self.launches.last_mut() else {
            return;
        };
        let newest = self.newest.unwrap_or(checkpoint);
        if launch.ended.is_none() && checkpoint > newest {
            launch.checkpoints += checkpoint - newest;
            launch.last = Some(now);
            self.newest = Some(checkpoint);
        }
    }

    /// The launch has ended.
    pub fn end(&mut self, now: Duration, cause: Cause) {
        if let Some(launch) = self.launches.last_mut()
            && launch.ended.is_none()
        {
            launch.ended = Some((now, cause));
        }
    }

    /// Checkpoints of all launches.
    pub fn checkpoints(&self) -> u64 {
        self.launches.iter().map(|launch| launch.checkpoints).sum()
    }

    /// In words, a line a launch; `total` is how long all of it took.
    pub fn summary(&self, total: Duration) -> String {
        let mut lines = String::new();
        let (mut ran, mut kept) = (Duration::ZERO, Duration::ZERO);
        for (launch, number) in self.launches.iter().zip(1u64..) {
            let (end, how, well) = match &launch.ended {
                Some((end, cause)) => (*end, cause.describe(), cause.is_well()),
                None => (total, "not ended".into(), false),
            };
            let took = end.saturating_sub(launch.began);
            let until = if well {
                end
            } else {
                launch.last.unwrap_or(launch.began)
            };
            let worth = until.saturating_sub(launch.began).min(took);
            ran += took;
            kept += worth;
            let _ = write!(
                lines,
                "  launch {number}: {:.1} s, {} checkpoints, {how}",
                took.as_secs_f64(),
                launch.checkpoints
            );
            let again = took.saturating_sub(worth);
            if !again.is_zero() {
                let _ = write!(lines, "; {:.1} s to be computed again", again.as_secs_f64());
            }
            lines.push('\n');
        }
        if self.launches.is_empty() {
            return lines;
        }
        let percent = 100.0 * kept.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        let _ = writeln!(
            lines,
            "  kept {:.1} s of {:.1} s: efficiency {percent:.1} %; lost {:.1} s in launches and {:.1} s between \
             and around them",
            kept.as_secs_f64(),
            total.as_secs_f64(),
            ran.saturating_sub(kept).as_secs_f64(),
            total.saturating_sub(ran).as_secs_f64(),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn what_is_computed_again_is_not_kept() {
        let mut tally = Tally::default();
        tally.begin(s(10), 3);
        tally.see(s(30), 3);
        tally.see(s(40), 4);
        tally.see(s(60), 5);
        tally.end(s(80), Cause::NodeLost("node3".into()));
        tally.see(s(81), 6);
        tally.begin(s(90), 5);
        tally.see(s(95), 6);
        tally.end(s(100), Cause::Finished);
        assert_eq!(tally.checkpoints(), 3);
        let expected = "  launch 1: 70.0 s, 2 checkpoints, node lost: node3; 20.0 s to be computed again\n  \
                        launch 2: 10.0 s, 1 checkpoints, finished\n  \
                        kept 60.0 s of 120.0 s: efficiency 50.0 %; lost 20.0 s in launches and 40.0 s \
                        between and around them\n";
        assert_eq!(tally.summary(s(120)), expected);
    }

    #[test]
    fn without_a_checkpoint_nothing_is_kept() {
        let mut tally = Tally::default();
        assert_eq!(tally.summary(s(9)), "");
        tally.begin(s(0), 0);
        tally.end(s(8), Cause::Hung(s(4)));
        let summary = tally.summary(s(10));
        assert!(
            summary.contains("hung: nothing moved for 4 s; 8.0 s to be"),
            "{summary}"
        );
        assert!(
            summary.contains("kept 0.0 s of 10.0 s: efficiency 0.0 %"),
            "{summary}"
        );
    }
}
