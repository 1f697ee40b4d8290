//! What the events of jobs tell of failures: counted by hand.

use super::*;
use crate::event::{EndCause, JobEvent, JobWhat};

/// 2026-01-02T03:04:05Z.
const START: u64 = 1_767_323_045_000;

#[derive(Default)]
struct Log(Vec<Vec<u8>>);

impl Log {
    fn job(&mut self, job: &str, at: u64, what: JobWhat, fill: impl FnOnce(&mut JobEvent)) {
        let mut event = JobEvent::new(what, job, START + 1000 * at);
        fill(&mut event);
        self.0.push(event.line());
    }

    fn launched(&mut self, at: u64) {
        self.job("j", at, JobWhat::Launched, |_| ());
    }

    fn ended(&mut self, at: u64, ran: u64, cause: EndCause) {
        self.job("j", at, JobWhat::LaunchEnded, |event| {
            event.duration_ms = Some(1000 * ran);
            event.cause = Some(cause);
        });
    }

    fn dataset(&mut self, at: u64, what: &str, class: &str) {
        let time = crate::status::rfc3339(Some(START + 1000 * at)).expect("a time");
        let line = format!(
            r#"{{"time":"{time}","event":"{what}","id":1,"name":"a","class":"{class}","epoch":1}}"#
        );
        self.0.push(format!("{line}\n").into_bytes());
    }

    fn learnt(&self) -> (Seen, Recoveries) {
        let mut history = History::default();
        for line in &self.0 {
            history.line(line);
        }
        history.learnt()
    }
}

fn counts(seen: &Seen) -> [u64; 3] {
    [seen.process, seen.node, seen.beyond].map(|kind| kind.failures)
}

#[test]
fn failures_are_counted_by_what_they_came_back_from() {
    let mut log = Log::default();
    log.job("j", 0, JobWhat::JobBegan, |_| ());
    // The recovery of the first launch is none from a failure.
    log.dataset(3, "fetched", "checkpoint");
    log.launched(10);
    log.ended(1010, 1000, EndCause::Failed);
    log.launched(1014);
    // Silent for 2 s before anybody knew; 6 s until the next launch.
    log.job("j", 2016, JobWhat::NodeLost, |event| {
        event.duration_ms = Some(2000)
    });
    log.ended(2016, 1002, EndCause::NodeLost);
    log.launched(2020);
    // More than it tolerates. The line of the other writer comes late.
    log.ended(3020, 1000, EndCause::NodeLost);
    log.launched(3050);
    log.dataset(3049, "fetched", "checkpoint");
    // What is fetched while it runs is nothing that failed.
    log.dataset(3500, "fetched", "checkpoint");
    log.ended(4050, 1000, EndCause::Hung);
    log.dataset(4051, "lost", "output");
    log.launched(4058);
    log.ended(5058, 1000, EndCause::Finished);
    log.job("j", 5060, JobWhat::JobEnded, |_| ());
    let (seen, recoveries) = log.learnt();
    assert_eq!(counts(&seen), [2, 1, 1]);
    for kind in [seen.process, seen.node, seen.beyond] {
        near(kind.seconds, 5002.0, 1e-9);
    }
    assert_eq!(
        recoveries,
        Recoveries {
            cache_seconds: Some(6.0),
            parity_seconds: Some(6.0),
            prefix_seconds: Some(30.0),
        }
    );
    // Into the advice: the mean of the Gamma belief, by hand, and the times of recovery.
    let measured = Measured {
        stall_seconds: Some(2.0),
        ..Measured::default()
    };
    let inputs = Inputs::new(&Given::default(), &measured, &seen, &recoveries, 4).expect("a cost");
    let losses = inputs.job.losses;
    let month = 365.25 * 86_400.0 / 12.0;
    near(
        losses.cache.failures_per_second,
        2.5 / (0.5 * month + 5002.0),
        1e-15,
    );
    near(
        losses.prefix.failures_per_second,
        1.5 / (0.5 * 150.0 * month + 5002.0),
        1e-15,
    );
    assert_eq!(
        losses.kinds().map(|kind| kind.recovery_seconds),
        [6.0, 6.0, 30.0]
    );
}

#[test]
fn what_did_not_fail_counts_as_time() {
    for cause in [EndCause::Finished, EndCause::Halted, EndCause::Launcher] {
        let mut log = Log::default();
        log.launched(0);
        log.ended(500, 500, cause);
        log.launched(501);
        log.dataset(601, "committed", "checkpoint");
        // Nobody knows what became of the first; another job has the prefix now.
        log.job("k", 900, JobWhat::Launched, |_| ());
        log.dataset(1000, "committed", "checkpoint");
        let (seen, recoveries) = log.learnt();
        assert_eq!(counts(&seen), [0; 3], "{cause:?}");
        near(seen.node.seconds, 500.0 + 100.0 + 100.0, 1e-9);
        assert_eq!(recoveries, Recoveries::default());
    }
}

#[test]
fn a_last_failure_counts_without_a_recovery() {
    let mut log = Log::default();
    log.launched(0);
    log.ended(100, 100, EndCause::NodeLost);
    log.dataset(101, "lost", "both");
    let (seen, recoveries) = log.learnt();
    assert_eq!((counts(&seen), seen.node.seconds), ([0, 0, 1], 100.0));
    assert_eq!(recoveries, Recoveries::default());
}

#[test]
fn a_longer_recovery_bounds_what_was_not_seen() {
    let measured = Measured {
        stall_seconds: Some(2.0),
        ..Measured::default()
    };
    let recoveries = Recoveries {
        parity_seconds: Some(3.0),
        ..Recoveries::default()
    };
    let seen = Seen::default();
    let inputs = Inputs::new(&Given::default(), &measured, &seen, &recoveries, 4).expect("a cost");
    let kinds = inputs.job.losses.kinds().map(|kind| kind.recovery_seconds);
    assert_eq!(kinds, [3.0, 3.0, 3.0 + 40.0]);
}

proptest! {
    /// Lines may be cut, mixed and changed by anybody.
    #[test]
    fn nonsense_is_left_out(lines in prop::collection::vec(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (any::<i64>(), any::<u64>(), 0..6_usize).prop_map(|(time, duration, what)| {
            let what = ["launched", "launch_ended", "node_lost", "job_began", "fetched", "x"][what];
            let time = jiff::Timestamp::from_millisecond(time % 200_000_000_000_000);
            let time = time.map(|time| time.to_string()).unwrap_or_default();
            format!(
                r#"{{"time":"{time}","event":"{what}","job":"j","duration_ms":{duration},"cause":"failed"}}"#
            ).into_bytes()
        }),
    ], 0..30)) {
        let (seen, recoveries) = Log(lines).learnt();
        let measured = Measured { stall_seconds: Some(2.0), ..Measured::default() };
        let inputs = Inputs::new(&Given::default(), &measured, &seen, &recoveries, 4);
        prop_assert!(inputs.is_ok(), "{inputs:?}");
    }
}
