//! The simulation against itself, and each model against the simulation where its assumptions hold.

use super::*;

fn kind(mtbf: f64, recovery_seconds: f64) -> Kind {
    Kind {
        failures_per_second: 1.0 / mtbf,
        recovery_seconds,
    }
}

/// The mean efficiency of eight runs, each long enough for some failures of the rarest kind.
fn simulated(job: Job, schedule: Schedule, waiting_max: u64) -> Mean {
    let rarest = job
        .losses
        .kinds()
        .iter()
        .map(|kind| kind.failures_per_second)
        .filter(|rate| *rate > 0.0)
        .fold(f64::INFINITY, f64::min);
    let simulation = Simulation::new(job, schedule, waiting_max, 1000.0 / rarest).expect("a job");
    let runs: Vec<f64> = (1..=8)
        .map(|seed| simulation.run(seed).efficiency())
        .collect();
    Mean::of(&runs).expect("eight")
}

/// Within 8 % of the waste that was simulated, and the simulation itself surer than that.
#[track_caller]
fn agrees(efficiency: f64, simulated: Mean) {
    let waste = 1.0 - simulated.mean;
    assert!(
        simulated.half_width < 0.04 * waste,
        "{simulated:?} says too little"
    );
    let off = ((1.0 - efficiency) / waste - 1.0).abs();
    assert!(
        off < 0.08,
        "waste {} is {:.1} % off {waste}",
        1.0 - efficiency,
        100.0 * off
    );
}

fn every(interval_seconds: f64, flush_every: u64) -> Schedule {
    Schedule {
        interval_seconds,
        flush_every,
    }
}

#[test]
fn one_level_agrees_with_the_simulation() {
    for (cost, restart, mtbf) in [
        (300.0, 600.0, 86_400.0),
        (300.0, 600.0, 21_600.0),
        (300.0, 600.0, 900.0),
    ] {
        let model = single(cost, restart, mtbf);
        let losses = Losses {
            cache: kind(mtbf, restart),
            ..Losses::default()
        };
        let job = Job {
            stall_seconds: cost,
            losses,
            ..Job::default()
        };
        for interval in [0.5, 1.0, 2.0].map(|factor| factor * model.optimum_seconds()) {
            let expected = model.efficiency(interval).expect("an interval");
            agrees(expected, simulated(job, every(interval, 1), 1));
        }
        // Young's and Daly's intervals are as good as the best, where they hold.
        let best = simulated(job, every(model.optimum_seconds(), 1), 1).mean;
        let daly = simulated(job, every(model.daly_seconds(), 1), 1).mean;
        near(daly / best, 1.0, 0.01);
        if cost < mtbf / 50.0 {
            let young = model.young_seconds().expect("cheap");
            near(simulated(job, every(young, 1), 1).mean / best, 1.0, 0.01);
        }
    }
}

#[test]
fn latency_agrees_with_the_simulation() {
    let latency = 900.0;
    let model = single(30.0, 60.0, 86_400.0)
        .with_latency(30.0 + latency)
        .expect("later");
    let losses = Losses {
        parity: kind(86_400.0, 60.0),
        ..Losses::default()
    };
    let job = Job {
        stall_seconds: 30.0,
        encode_seconds: latency,
        // Or the prefix had it sooner.
        flush_seconds: 1e12,
        losses,
        ..Job::default()
    };
    let interval = model.optimum_seconds();
    agrees(
        model.efficiency(interval).expect("an interval"),
        simulated(job, every(interval, 100), 1000),
    );
}

#[test]
fn two_levels_agree_with_the_simulation() {
    for (c1, l1, c2, l2) in [
        (10.0, 1.0 / 21600.0, 120.0, 1.0 / 604800.0),
        (2.0, 1.0 / 7200.0, 60.0, 1.0 / 86400.0),
        (15.4, 3.38e-6, 300.0, 9.46e-7),
        (9.1, 7.78e-6, 439.0, 5.19e-7),
        (4.5, 2.01e-6, 1051.0, 4.02e-7),
        (180.0, 2.01e-6, 2500.0, 4.02e-7),
    ] {
        let two = TwoLevel {
            first: level(c1, l1),
            second: level(c2, l2),
        };
        let best = two.best().expect("failures");
        let losses = Losses {
            cache: kind(1.0 / l1, 0.0),
            prefix: kind(1.0 / l2, 0.0),
            ..Losses::default()
        };
        let job = Job {
            stall_seconds: c1,
            flush_stall_seconds: c2,
            losses,
            ..Job::default()
        };
        let interval = best.length_seconds / best.segments as f64;
        let found = simulated(job, every(interval, best.segments), 1);
        // The overhead is time lost over time used.
        agrees(1.0 / (1.0 + best.overhead), found);
        agrees(
            job.efficiency(every(interval, best.segments))
                .expect("numbers"),
            found,
        );
        let (_, levels) = Levels::new(vec![two.first, two.second])
            .expect("two")
            .best_seconds();
        agrees(1.0 / (1.0 + levels), found);
    }
}

#[test]
fn the_markov_model_agrees_with_the_simulation() {
    for (first, second, count, interval_seconds) in [
        ([10.0, 30.0, 21600.0], [120.0, 600.0, 604800.0], 18, 662.0),
        ([2.0, 15.0, 7200.0], [60.0, 300.0, 86400.0], 19, 169.6),
        ([5.0, 20.0, 3600.0], [90.0, 400.0, 43200.0], 10, 200.0),
    ] {
        let markov = two_level_markov(first, second);
        let losses = Losses {
            cache: kind(first[2], first[1]),
            prefix: kind(second[2], second[1]),
            ..Losses::default()
        };
        let job = Job {
            stall_seconds: first[0],
            flush_stall_seconds: second[0],
            losses,
            ..Job::default()
        };
        let rhythm = Rhythm {
            interval_seconds,
            counts: vec![count],
        };
        let found = simulated(job, every(interval_seconds, count), 1);
        agrees(markov.efficiency(&rhythm).expect("a rhythm"), found);
        agrees(
            job.efficiency(every(interval_seconds, count))
                .expect("numbers"),
            found,
        );
    }
}

/// What scrfs is like: a short stall, encode and flush in the background, both slowing down.
#[test]
fn the_model_of_a_job_agrees_with_the_simulation() {
    let losses = Losses {
        cache: kind(40_000.0, 20.0),
        parity: kind(60_000.0, 40.0),
        prefix: kind(500_000.0, 300.0),
    };
    let job = Job {
        stall_seconds: 4.0,
        encode_seconds: 15.0,
        encode_slowdown: 0.2,
        flush_seconds: 600.0,
        flush_slowdown: 0.05,
        flush_stall_seconds: 0.0,
        losses,
    };
    let best = job.best().expect("a job");
    for schedule in [
        best,
        every(best.interval_seconds * 2.0, 1),
        every(best.interval_seconds / 2.0, 8),
    ] {
        agrees(
            job.efficiency(schedule).expect("numbers"),
            simulated(job, schedule, 4),
        );
    }
}

/// The simulation has its best where the model says: nothing nearby is better by more than chance.
#[test]
fn nothing_nearby_is_better_in_the_simulation() {
    let losses = Losses {
        cache: kind(40_000.0, 20.0),
        parity: kind(60_000.0, 40.0),
        prefix: kind(500_000.0, 300.0),
    };
    let job = Job {
        stall_seconds: 4.0,
        encode_seconds: 15.0,
        flush_seconds: 300.0,
        losses,
        ..Job::default()
    };
    let best = job.best().expect("a job");
    let reached = simulated(job, best, 4);
    for schedule in [0.5, 2.0].map(|factor| every(best.interval_seconds * factor, best.flush_every))
    {
        let other = simulated(job, schedule, 4);
        assert!(
            other.mean < reached.mean,
            "{schedule:?} {other:?} {reached:?}"
        );
    }
}

fn busy() -> Job {
    Job {
        stall_seconds: 3.0,
        encode_seconds: 20.0,
        encode_slowdown: 0.3,
        flush_seconds: 400.0,
        flush_slowdown: 0.1,
        flush_stall_seconds: 1.0,
        losses: Losses {
            cache: kind(2000.0, 10.0),
            parity: kind(3000.0, 30.0),
            prefix: kind(20_000.0, 100.0),
        },
    }
}

#[test]
fn every_second_is_accounted_for_once() {
    for (schedule, waiting_max) in [
        (every(100.0, 1), 1),
        (every(100.0, 3), 2),
        (every(7.0, 1), 3),
        (every(1e4, 1), 1),
    ] {
        for seed in 0..20 {
            let account = Simulation::new(busy(), schedule, waiting_max, 1e5)
                .expect("a job")
                .run(seed);
            let sum = account.useful_seconds
                + account.undone_seconds
                + account.slowed_seconds
                + account.stalled_seconds
                + account.waited_seconds
                + account.recovering_seconds;
            near(sum, 1e5, 1e-4);
            near(account.elapsed_seconds, 1e5, 0.0);
            assert!(account.useful_seconds >= 0.0 && account.undone_seconds >= 0.0);
            assert!(account.flushes * schedule.flush_every <= account.checkpoints);
            let failures = account.failures;
            assert!(failures.iter().sum::<u64>() > 50, "{failures:?}");
        }
    }
}

#[test]
fn one_seed_gives_one_run_and_the_same_failures_under_every_schedule() {
    let run = |interval, seed| {
        let schedule = every(interval, 2);
        Simulation::new(busy(), schedule, 2, 1e5)
            .expect("a job")
            .run(seed)
    };
    assert_eq!(run(100.0, 7), run(100.0, 7));
    assert_ne!(run(100.0, 7), run(100.0, 8));
    assert_eq!(run(100.0, 7).failures, run(300.0, 7).failures);
}

#[test]
fn a_flush_that_cannot_keep_up_makes_the_program_wait() {
    let job = Job {
        losses: Losses::default(),
        ..busy()
    };
    let account = Simulation::new(job, every(50.0, 1), 2, 1e5)
        .expect("a job")
        .run(1);
    // One checkpoint each 400 s is all that the prefix takes.
    near(account.checkpoints as f64, 1e5 / 400.0, 4.0);
    assert!(account.waited_seconds > 0.8 * 1e5, "{account:?}");
    let rare = Simulation::new(job, every(50.0, 20), 2, 1e5)
        .expect("a job")
        .run(1);
    assert_eq!(rare.waited_seconds, 0.0);
    assert_eq!(rare.undone_seconds, 0.0);
}

#[test]
fn a_simulation_that_would_not_end_is_refused() {
    let job = busy();
    assert!(matches!(
        Simulation::new(job, every(1e-3, 1), 1, 1e9),
        Err(ModelError::NoCount { .. })
    ));
    assert!(Simulation::new(job, every(1.0, 0), 1, 1e3).is_err());
    assert!(Simulation::new(job, every(1.0, 1), 0, 1e3).is_err());
    assert!(Simulation::new(job, every(1.0, 1), 1, f64::NAN).is_err());
}

/// Confidence means what it says: of two hundred sets of runs about one in twenty is further off.
#[test]
fn confidence_is_kept() {
    assert_eq!(Mean::of(&[1.0, 2.0, 3.0]), None);
    let known = Mean::of(&[1.0, 2.0, 3.0, 4.0]).expect("four");
    // Student's t is 3.1824 with three degrees of freedom.
    near(
        known.half_width,
        3.1824 * (5.0_f64 / 3.0).sqrt() / 2.0,
        0.03,
    );
    let simulation = Simulation::new(busy(), every(100.0, 2), 2, 2e4).expect("a job");
    let values: Vec<f64> = (0..1600)
        .map(|seed| simulation.run(seed).efficiency())
        .collect();
    let truth = values.iter().sum::<f64>() / values.len() as f64;
    let missed = values
        .chunks(8)
        .map(|runs| Mean::of(runs).expect("eight"))
        .filter(|mean| (mean.mean - truth).abs() > mean.half_width)
        .count();
    assert!((2..=22).contains(&missed), "{missed} of 200");
}
