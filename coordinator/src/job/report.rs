//! What the supervisor tells people: lines as things happen, and a summary at the end.
//!
//! All of it goes to standard error: standard output is the application's. Times are seconds since the
//! supervisor began.

use super::tally::{Cause, Tally};
use scrfs::layout::run::{RunLaunch, RunRecord};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// The story of one `scrfs run`.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    stages: Vec<Stage>,
    launches: u64,
    epochs: u64,
    tally: Tally,
}

#[derive(Debug)]
struct Stage {
    at: Duration,
    what: String,
}

impl Report {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            stages: Vec::new(),
            launches: 0,
            epochs: 0,
            tally: Tally::default(),
        }
    }

    /// Goes on with the story that another supervisor has begun so long ago.
    pub fn resume(&mut self, record: &RunRecord, ago: Duration) {
        self.begun = self.begun.checked_sub(ago).unwrap_or(self.begun);
        self.launches = record.launches.len() as u64;
        self.epochs = record.epochs;
        self.tally.restore(ago, record.launches.clone());
    }

    /// How many epochs were begun.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    /// All launches, to be kept.
    pub fn kept(&self) -> &[RunLaunch] {
        self.tally.launches()
    }

    /// Checkpoints of all launches.
    pub fn checkpoints(&self) -> u64 {
        self.tally.checkpoints()
    }

    /// For people, now.
    pub fn say(&self, words: &str) {
        let line = format!(
            "scrfs run: +{:.2} s  {words}\n",
            self.begun.elapsed().as_secs_f64()
        );
        // Nobody there to read it is no reason to stop.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// For people, now and again in the summary.
    pub fn stage(&mut self, words: &str) {
        self.say(words);
        self.stages.push(Stage {
            at: self.begun.elapsed(),
            what: words.to_owned(),
        });
    }

    /// One more epoch was begun.
    pub fn count_epoch(&mut self) {
        self.epochs += 1;
    }

    /// One more launch; its number, from one. `checkpoint` is the newest one's number.
    pub fn count_launch(&mut self, checkpoint: u64) -> u64 {
        self.launches += 1;
        self.tally.begin(self.begun.elapsed(), checkpoint);
        self.launches
    }

    /// The newest checkpoint is this one.
    pub fn see_checkpoint(&mut self, checkpoint: u64) {
        self.tally.see(self.begun.elapsed(), checkpoint);
    }

    /// The launch has ended.
    pub fn end_launch(&mut self, cause: Cause) {
        self.tally.end(self.begun.elapsed(), cause);
    }

    /// Launches so far.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    /// All stages, each with what it took since the one before.
    pub fn summary<'a>(&self, down: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let mut text = format!(
            "scrfs run: summary: {}, {}, {}\n",
            count(self.launches, "launch", "launches"),
            count(self.epochs, "epoch", "epochs"),
            count(self.tally.checkpoints(), "checkpoint", "checkpoints")
        );
        text += &self.tally.summary(self.begun.elapsed());
        for (node, why) in down {
            let _ = writeln!(text, "  not used any more: {node}: {why}");
        }
        let mut before = Duration::ZERO;
        for stage in &self.stages {
            let step = stage.at.saturating_sub(before);
            let _ = writeln!(
                text,
                "  {:>8.2} s  (+{:.2})  {}",
                stage.at.as_secs_f64(),
                step.as_secs_f64(),
                stage.what
            );
            before = stage.at;
        }
        text
    }

    /// Prints the summary.
    pub fn finish<'a>(&self, down: impl Iterator<Item = (&'a str, &'a str)>) {
        let _ = std::io::stderr().write_all(self.summary(down).as_bytes());
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {many}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_every_stage_and_every_lost_node() {
        let mut report = Report::new();
        report.count_epoch();
        report.count_epoch();
        report.stages.push(Stage {
            at: Duration::from_millis(1500),
            what: "launched".into(),
        });
        report.stages.push(Stage {
            at: Duration::from_millis(1750),
            what: "ended".into(),
        });
        let summary = report.summary([("node3", "no heartbeat")].into_iter());
        let expected = "scrfs run: summary: 0 launches, 2 epochs, 0 checkpoints\n\
            \x20 not used any more: node3: no heartbeat\n\
            \x20     1.50 s  (+1.50)  launched\n\
            \x20     1.75 s  (+0.25)  ended\n";
        assert_eq!(summary, expected);
    }
}
