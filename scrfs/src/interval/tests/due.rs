//! When a program that asks is told to checkpoint: each rule, and what restarts the count.

use super::*;
use crate::config::{Config, Sources};

pub(super) fn rules(advice: &str) -> Rules {
    let env = |_: &str| None;
    let text = format!("prefix = \"/p\"\njob = \"j\"\n[flush]\nevery = 4\n[advice]\n{advice}\n");
    let sources = Sources {
        env: &env,
        user: Some(("user.toml".into(), text)),
        system: None,
        cli: Vec::new(),
    };
    Rules::of(&Config::load(&sources).expect("a configuration").0)
}

/// Ten minutes apart from one million milliseconds on, two seconds each.
fn checkpoints(count: u64) -> Vec<Times> {
    (0..count)
        .map(|number| {
            let created = 1_000_000 + number * 602_000;
            Times {
                created,
                sealed: Some(created + 2000),
                protected: Some(created + 3000),
                flushed: Some(created + 32_000),
            }
        })
        .collect()
}

pub(super) fn situation<'a>(rules: &'a Rules, checkpoints: &'a [Times]) -> Situation<'a> {
    Situation {
        rules,
        checkpoints,
        nodes: 4,
        recovered: 500_000,
        learnt: Learnt::default(),
    }
}

#[test]
fn every_nth_question_counts_from_the_newest_checkpoint() {
    let rules = rules("interval = 3");
    let none = situation(&rules, &[]);
    let answers: Vec<bool> = (1..=5).map(|asked| none.is_due(u64::MAX, asked)).collect();
    assert_eq!(answers, [false, false, true, true, true]);
}

#[test]
fn seconds_count_from_what_happened_last() {
    let rules = rules("seconds = 60");
    let none = situation(&rules, &[]);
    assert!(!none.is_due(559_999, 9));
    assert!(none.is_due(560_000, 1));
    // A clock that was set back is no reason.
    assert!(!none.is_due(0, 1));
    let made = checkpoints(2);
    let some = situation(&rules, &made);
    assert_eq!(some.since(), 1_604_000);
    assert!(!some.is_due(1_663_999, 1));
    assert!(some.is_due(1_664_000, 1));
    // The next one is begun: not before it had time to end.
    let mut begun = made.clone();
    begun.push(Times {
        created: 1_700_000,
        sealed: None,
        protected: None,
        flushed: None,
    });
    let writing = situation(&rules, &begun);
    assert!(!writing.is_due(1_700_001, 1));
    assert!(writing.is_due(1_760_000, 1), "it never was committed");
    let relaunched = Situation {
        recovered: 1_900_000,
        ..writing
    };
    assert!(!relaunched.is_due(1_959_999, 1));
}

#[test]
fn overhead_is_that_of_the_measured_cost() {
    let rules = rules("overhead = 4.0");
    assert!(
        situation(&rules, &[]).is_due(500_001, 1),
        "what one costs is not known"
    );
    let made = checkpoints(3);
    let some = situation(&rules, &made);
    let sealed = some.since();
    // Two seconds are 4 % of fifty.
    assert!(!some.is_due(sealed + 48_000, 1));
    assert!(some.is_due(sealed + 48_001, 1));
}

#[test]
fn with_no_rule_the_optimum_holds() {
    let rules = rules("mtbf = \"6h\"");
    let none = situation(&rules, &[]);
    assert!(
        none.is_due(500_001, 1),
        "what one costs is learnt from the first"
    );
    assert_eq!(
        none.text(),
        "no checkpoint was measured yet, and nobody says what one costs\n"
    );
    let begun = [Times {
        created: 600_000,
        sealed: None,
        protected: None,
        flushed: None,
    }];
    let first = situation(&rules, &begun);
    assert!(!first.is_due(600_001, 1), "it is being made");
    assert!(
        first.is_due(600_000 + 600_000, 1),
        "or it never was committed"
    );

    let made = checkpoints(3);
    let some = situation(&rules, &made);
    let best = some.best_seconds().expect("measured");
    // Young: the square root of two times two seconds times six hours.
    near(best, (2.0 * 2.0 * 6.0 * HOUR).sqrt(), 15.0);
    let at = some.since() + (best * 1000.0) as u64;
    assert!(!some.is_due(at - 1, 1));
    assert!(some.is_due(at + 1, 1));
    let text = some.text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with(
            "checkpoint every 5.1 min to cache (xor), flush every 4th; expected waste 1."
        ),
        "{text}"
    );
    assert_eq!(lines[1], format!("interval_seconds {best:.3}"));
    assert_eq!(lines[2], "flush_every 4");
    assert!(lines[3].starts_with("waste 0.01"), "{text}");
}

#[test]
fn any_of_several_rules_is_enough() {
    let rules = rules("interval = 5\nseconds = 60");
    let none = situation(&rules, &[]);
    assert!(!none.is_due(559_999, 4));
    assert!(none.is_due(559_999, 5));
    assert!(none.is_due(560_000, 1));
}

/// Failures in two hours of running: enough of them outweigh what is believed.
#[test]
fn what_failed_before_counts() {
    let rules = rules("");
    let made = checkpoints(3);
    let believed = situation(&rules, &made);
    let seen = |failures| Exposure {
        seconds: 2.0 * HOUR,
        failures,
    };
    let learnt = |failures| {
        let seen = Seen {
            process: seen(0),
            node: seen(failures),
            beyond: seen(0),
        };
        let recoveries = Recoveries {
            parity_seconds: Some(0.0004),
            ..Recoveries::default()
        };
        Learnt::of(&(seen, recoveries))
    };
    let best = |failures| {
        let situation = Situation {
            learnt: learnt(failures),
            ..believed
        };
        situation.best_seconds().expect("measured")
    };
    assert!(best(100) < 0.5 * believed.best_seconds().expect("measured"));
    assert!(best(400) < 0.7 * best(100));
    // As it is told, it comes back.
    let (seen, recoveries) = learnt(2).open();
    assert_eq!(Learnt::of(&(seen, recoveries)), learnt(2));
    assert_eq!((seen.node.failures, seen.node.seconds), (2, 2.0 * HOUR));
    assert_eq!(recoveries.parity_seconds, Some(0.001), "a time must pass");
    let nonsense = Exposure {
        seconds: f64::NAN,
        failures: 1,
    };
    let nonsense = Seen {
        process: nonsense,
        ..Seen::default()
    };
    let opened = Learnt::of(&(nonsense, Recoveries::default())).open();
    assert_eq!(opened.0.process.seconds, 0.0);
}
