//! What a job was worth: its launches, how each ended, and which part of the time was kept. Pure.
//!
//! Time counts as kept when nothing of it is computed again: up to the end of a launch that ended well, else
//! up to its last checkpoint. Times are since the supervisor began.

use scrfs::event::EndCause;
use scrfs::layout::run::{RunEnd, RunLaunch};
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
    /// Its supervisor was lost, and another one goes on with the job.
    Orphaned,
}

impl Cause {
    fn is_well(&self) -> bool {
        matches!(self, Self::Finished | Self::Halted(_))
    }

    /// For programs; `is_asked`: somebody had wanted an end.
    pub fn end(&self, is_asked: bool) -> Option<EndCause> {
        Some(match self {
            Self::Finished => EndCause::Finished,
            Self::Halted(_) => EndCause::Halted,
            Self::Failed(_) if is_asked => EndCause::Halted,
            Self::Failed(_) => EndCause::Failed,
            Self::NodeLost(_) => EndCause::NodeLost,
            Self::Hung(_) => EndCause::Hung,
            Self::Launcher(_) => EndCause::Launcher,
            Self::NoEpoch => EndCause::NoEpoch,
            Self::Orphaned => return None,
        })
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
            Self::Orphaned => "the supervisor was lost".into(),
        }
    }
}

/// All launches of a job.
#[derive(Debug, Default)]
pub struct Tally {
    launches: Vec<RunLaunch>,
    newest: Option<u64>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Tally {
    /// A launch begins, with `checkpoint` as the newest one's number.
    pub fn begin(&mut self, now: Duration, checkpoint: u64) {
        self.newest = Some(checkpoint);
        self.launches.push(RunLaunch {
            began: millis(now),
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
            launch.last = Some(millis(now));
            self.newest = Some(checkpoint);
        }
    }

    /// The launch has ended.
    pub fn end(&mut self, now: Duration, cause: Cause) {
        if let Some(launch) = self.launches.last_mut()
            && launch.ended.is_none()
        {
            launch.ended = Some(RunEnd {
                at: millis(now),
                how: cause.describe(),
                is_well: cause.is_well(),
            });
        }
    }

    /// All launches, to be kept.
    pub fn launches(&self) -> &[RunLaunch] {
        &self.launches
    }

    /// Goes on from what was kept; a launch that had not ended then has ended now.
    pub fn restore(&mut self, now: Duration, launches: Vec<RunLaunch>) {
        self.launches = launches;
        self.end(now, Cause::Orphaned);
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
            let began = Duration::from_millis(launch.began);
            let (end, how, well) = match &launch.ended {
                Some(end) => (Duration::from_millis(end.at), end.how.as_str(), end.is_well),
                None => (total, "not ended", false),
            };
            let took = end.saturating_sub(began);
            let until = match launch.last.map(Duration::from_millis) {
                _ if well => end,
                last => last.unwrap_or(began),
            };
            let worth = until.saturating_sub(began).min(took);
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
    fn what_was_kept_of_another_supervisor_counts_on() {
        let mut first = Tally::default();
        first.begin(s(10), 3);
        first.see(s(40), 4);
        let mut second = Tally::default();
        second.restore(s(60), first.launches().to_vec());
        second.begin(s(70), 4);
        second.end(s(90), Cause::Finished);
        let summary = second.summary(s(100));
        assert!(
            summary
                .contains("launch 1: 50.0 s, 1 checkpoints, the supervisor was lost; 20.0 s to be"),
            "{summary}"
        );
        assert!(summary.contains("kept 50.0 s of 100.0 s"), "{summary}");
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
