//! The models against values computed elsewhere, against each other where one contains the other, and against what
//! their formulas say must hold. The simulation is in `simulated`.

use super::*;
use proptest::prelude::*;

mod due;
mod history;
mod rounds;
mod simulated;

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;

#[track_caller]
fn near(value: f64, expected: f64, tolerance: f64) {
    assert!(
        (value - expected).abs() <= tolerance,
        "{value} is not within {tolerance} of {expected}"
    );
}

fn single(cost: f64, restart: f64, mtbf: f64) -> Single {
    Single::new(cost, restart, mtbf).expect("in the domain")
}

fn level(cost: f64, failures: f64) -> Level {
    Level::new(cost, failures).expect("in the domain")
}

/// What Daly published for his figures, a job of 500 h with checkpoints of 5 min and restarts of 10
/// min, and what the formulas give with more digits.
#[test]
fn the_intervals_are_those_of_the_papers() {
    let rows = [
        (24.0 * HOUR, 120.0, 116.69, 116.69, 117.0, 0.91261),
        (6.0 * HOUR, 60.0, 56.713, 56.714, 57.0, 0.81938),
        (15.0 * MINUTE, 12.247, 9.141, 9.167, 9.1, 0.19967),
    ];
    for (mtbf, young, daly, best, published, efficiency) in rows {
        let model = single(5.0 * MINUTE, 10.0 * MINUTE, mtbf);
        near(model.young_seconds().expect("cheap") / MINUTE, young, 5e-4);
        near(model.daly_seconds() / MINUTE, daly, 5e-3);
        near(model.daly_seconds() / MINUTE, published, 0.5);
        near(model.optimum_seconds() / MINUTE, best, 5e-3);
        let reached = model.efficiency(model.daly_seconds()).expect("an interval");
        near(reached, efficiency, 5e-6);
        let hours = 500.0 / reached;
        near(
            hours,
            [547.88, 610.22, 2504.2][usize::from(mtbf < 24.0 * HOUR) + usize::from(mtbf < HOUR)],
            0.06,
        );
    }
}

/// Two levels; the last column of each row is what one level alone would lose.
#[test]
fn two_levels_are_those_of_the_table() {
    let rows = [
        (
            10.0,
            1.0 / 21600.0,
            120.0,
            1.0 / 604800.0,
            [18.33, 657.3, 12047.9, 5.0350],
            (18, 11916.2, 5.0351),
            10.73,
        ),
        (
            2.0,
            1.0 / 7200.0,
            60.0,
            1.0 / 86400.0,
            [18.97, 169.7, 3219.9, 6.0838],
            (19, 3221.7, 6.0838),
            13.44,
        ),
        (
            15.4,
            3.38e-6,
            300.0,
            9.46e-7,
            [8.34, 3018.7, 25184.3, 3.4027],
            (8, 24869.4, 3.4034),
            5.09,
        ),
        (
            9.1,
            7.78e-6,
            439.0,
            5.19e-7,
            [26.89, 1529.5, 41130.5, 3.3246],
            (27, 41189.7, 3.3246),
            8.54,
        ),
        (
            4.5,
            2.01e-6,
            1051.0,
            4.02e-7,
            [34.17, 2116.0, 72310.8, 3.3322],
            (34, 72264.1, 3.3322),
            7.12,
        ),
        (
            180.0,
            2.01e-6,
            2500.0,
            4.02e-7,
            [8.33, 13383.0, 111524.9, 7.1733],
            (8, 109830.6, 7.1747),
            10.98,
        ),
    ];
    for (c1, l1, c2, l2, [segments, inner, outer, exact], best, alone) in rows {
        let two = TwoLevel {
            first: level(c1, l1),
            second: level(c2, l2),
        };
        near(two.segments_exactly(), segments, 6e-3);
        let levels = Levels::new(vec![two.first, two.second]).expect("two");
        let (periods, overhead) = levels.best_seconds();
        near(periods[0].expect("worth it"), inner, 0.06);
        near(periods[1].expect("worth it"), outer, 0.06);
        near(100.0 * overhead, exact, 1e-4);
        let found = two.best().expect("failures");
        assert_eq!(found.segments, best.0);
        near(found.length_seconds, best.1, 0.06);
        near(100.0 * found.overhead, best.2, 1e-4);
        let again = two
            .overhead(found.segments, found.length_seconds)
            .expect("a pattern");
        near(again, found.overhead, 1e-12);
        let one = Levels::new(vec![level(c2, l1 + l2)])
            .expect("one")
            .best_seconds()
            .1;
        near(100.0 * one, alone, 6e-3);
    }
}

fn two_level_markov(first: [f64; 3], second: [f64; 3]) -> Markov {
    let of = |[cost, recovery, mtbf]: [f64; 3]| {
        MarkovLevel::new(cost, recovery, 1.0 / mtbf).expect("in the domain")
    };
    Markov::new(vec![of(first), of(second)]).expect("two")
}

#[test]
fn cycles_are_those_of_the_markov_model() {
    let rows = [
        (
            [10.0, 30.0, 21600.0],
            [120.0, 600.0, 604800.0],
            18,
            662.0,
            12568.622,
            0.948075,
            Some((18, 648.6, 0.948085)),
        ),
        (
            [2.0, 15.0, 7200.0],
            [60.0, 300.0, 86400.0],
            19,
            169.6,
            3446.956,
            0.934854,
            Some((19, 165.5, 0.934871)),
        ),
        (
            [5.0, 20.0, 3600.0],
            [90.0, 400.0, 43200.0],
            10,
            200.0,
            2298.429,
            0.870159,
            None,
        ),
    ];
    for (first, second, count, interval_seconds, seconds, efficiency, best) in rows {
        let markov = two_level_markov(first, second);
        let rhythm = Rhythm {
            interval_seconds,
            counts: vec![count],
        };
        near(
            markov.cycle_seconds(&rhythm).expect("a rhythm"),
            seconds,
            1e-3,
        );
        near(
            markov.efficiency(&rhythm).expect("a rhythm"),
            efficiency,
            1e-6,
        );
        let start = Rhythm {
            interval_seconds: 300.0,
            counts: vec![4],
        };
        let (found, reached) = markov.best(&start).expect("a rhythm");
        assert!(reached >= efficiency);
        if let Some((count, interval, efficiency)) = best {
            assert_eq!(found.counts, [count]);
            near(found.interval_seconds, interval, 0.06);
            near(reached, efficiency, 1e-6);
        }
    }
}

/// A level that is neither cheaper nor needed less is left out, and the next has its failures.
#[test]
fn a_level_that_is_not_worth_its_cost_is_left_out() {
    let levels = [level(10.0, 1e-5), level(9.0, 1e-4), level(100.0, 1e-7)];
    let (periods, overhead) = Levels::new(levels.to_vec()).expect("three").best_seconds();
    assert_eq!(periods[0], None);
    near(periods[1].expect("kept"), (18.0 / 1.1e-4_f64).sqrt(), 1e-9);
    let rest = Levels::new(vec![level(9.0, 1.1e-4), level(100.0, 1e-7)]).expect("two");
    near(overhead, rest.best_seconds().1, 1e-15);
    let never = Levels::new(vec![level(1.0, 0.0)])
        .expect("one")
        .best_seconds();
    assert_eq!(never, (vec![None], 0.0));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for cost in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e16, 1e-10] {
        assert!(
            matches!(Single::new(cost, 0.0, 1.0), Err(ModelError::NoTime { .. })),
            "{cost}"
        );
        assert!(
            matches!(Level::new(cost, 0.0), Err(ModelError::NoTime { .. })),
            "{cost}"
        );
    }
    for bad in [-1.0, f64::NAN, f64::INFINITY, 1e-16] {
        assert!(
            matches!(Single::new(1.0, bad, 1.0), Err(ModelError::NoDelay { .. })),
            "{bad}"
        );
        assert!(
            matches!(Level::new(1.0, bad), Err(ModelError::NoRate { .. })),
            "{bad}"
        );
    }
    let dear = single(10.0, 0.0, 10.0).young_seconds();
    assert_eq!(
        dear,
        Err(ModelError::CostTooLarge {
            cost_seconds: 10.0,
            mtbf_seconds: 10.0
        })
    );
    near(single(21.0, 0.0, 10.0).daly_seconds(), 10.0, 0.0);
    assert!(matches!(
        single(10.0, 0.0, 99.0).with_latency(9.0),
        Err(ModelError::LatencyTooSmall { .. })
    ));
    let markov = two_level_markov([1.0, 1.0, 1e-3], [1.0, 1e9, 1e-3]);
    let rhythm = Rhythm {
        interval_seconds: 1e9,
        counts: vec![2],
    };
    assert_eq!(markov.cycle_seconds(&rhythm), Err(ModelError::Hopeless));
    for counts in [vec![], vec![0], vec![u64::MAX], vec![2, 2]] {
        let rhythm = Rhythm {
            interval_seconds: 1.0,
            counts,
        };
        assert!(matches!(
            markov.cycle_seconds(&rhythm),
            Err(ModelError::NoCount { .. })
        ));
    }
    let job = Job {
        stall_seconds: 1.0,
        encode_slowdown: 1.0,
        ..Job::default()
    };
    assert!(matches!(job.best(), Err(ModelError::NoShare { .. })));
    let job = Job {
        stall_seconds: 1.0,
        ..Job::default()
    };
    assert!(
        matches!(job.best(), Err(ModelError::NoRate { .. })),
        "nothing ever fails"
    );
    let kind = Kind {
        failures_per_second: 1e6,
        recovery_seconds: 1e12,
    };
    let job = Job {
        losses: Losses {
            cache: kind,
            ..Losses::default()
        },
        ..job
    };
    assert_eq!(job.best(), Err(ModelError::Hopeless));
}

/// The optimum keeps its digits where checkpoints cost next to nothing, and where they cost all.
#[test]
fn the_optimum_is_right_at_both_ends() {
    for exponent in 3..24 {
        let cost = 10_f64.powi(-exponent);
        let found = single(cost * 1e15, 0.0, 1e15).optimum_seconds() / 1e15;
        // tau/M = s - s^2/3 + s^3/36 + .. with s = sqrt(2 C/M).
        let s = (2.0 * cost).sqrt();
        near(
            found / (s - s * s / 3.0 + s.powi(3) / 36.0),
            1.0,
            (2.0 * s.powi(3)).max(1e-13),
        );
    }
    near(single(1e3, 0.0, 1.0).optimum_seconds(), 1.0, 1e-15);
    near(
        single(30.1, 0.0, 1.0).optimum_seconds(),
        single(29.9, 0.0, 1.0).optimum_seconds(),
        1e-13,
    );
}

fn parts() -> impl Strategy<Value = (f64, f64, f64)> {
    // Cost, restart, mean time between failures.
    (0.01..1e3_f64, 0.0..1e3_f64, 1.0..1e7_f64).prop_map(|(c, r, m)| (c, r.floor(), m))
}

proptest! {
    #[test]
    fn intervals_grow_with_cost_and_with_the_time_between_failures((c, r, m) in parts(), more in 1.001..3.0_f64) {
        let (model, dearer, rarer) = (single(c, r, m), single(c * more, r, m), single(c, r, m * more));
        prop_assert!(dearer.optimum_seconds() > model.optimum_seconds());
        prop_assert!(rarer.optimum_seconds() > model.optimum_seconds());
        prop_assert!(dearer.daly_seconds() >= model.daly_seconds());
        prop_assert!(rarer.daly_seconds() >= model.daly_seconds());
        if let (Ok(here), Ok(there)) = (model.young_seconds(), dearer.young_seconds()) {
            prop_assert!(there > here);
        }
        let best = |model: &Single| model.efficiency(model.optimum_seconds()).expect("an interval");
        prop_assert!(best(&dearer) < best(&model));
        prop_assert!(best(&rarer) > best(&model));
    }

    #[test]
    fn the_optimum_beats_its_neighbours((c, r, m) in parts(), off in prop_oneof![0.3..0.97_f64, 1.03..4.0_f64]) {
        let model = single(c, r, m);
        let at = |interval: f64| model.efficiency(interval).expect("an interval");
        let best = model.optimum_seconds();
        prop_assert!(at(best) > at(best * off));
        let late = model.with_latency(c + 5.0).expect("later");
        let at = |interval: f64| late.efficiency(interval).expect("an interval");
        prop_assert!(at(best) > at(best * off), "nor does latency move it");
    }

    #[test]
    fn daly_is_near_the_optimum_where_checkpoints_are_cheap((c, r, m) in parts()) {
        prop_assume!(c < m / 10.0);
        let model = single(c, r, m);
        near(model.daly_seconds() / model.optimum_seconds(), 1.0, 1e-3);
        near(model.young_seconds().expect("cheap") / (model.optimum_seconds() + c), 1.0, 0.15);
    }

    #[test]
    fn one_level_of_several_is_the_single_one((c, r, m) in parts(), interval in 1.0..1e5_f64) {
        let expected = single(c, r, m).efficiency(interval).expect("an interval");
        let one = MarkovLevel::new(c, r, 1.0 / m).expect("in the domain");
        let free = MarkovLevel::new(0.0, 0.0, 0.0).expect("in the domain");
        let rhythm = |counts| Rhythm { interval_seconds: interval, counts };
        let alone = Markov::new(vec![one]).expect("one");
        let found = alone.efficiency(&rhythm(vec![])).unwrap_or(0.0);
        near(found, expected, 1e-9 * expected + 1e-12);
        let idle = Markov::new(vec![one, free]).expect("two");
        near(idle.efficiency(&rhythm(vec![7])).unwrap_or(0.0), found, 1e-9 * found + 1e-12);
        let kind = Kind { failures_per_second: 1.0 / m, recovery_seconds: r };
        for losses in [
            Losses { cache: kind, ..Losses::default() },
            Losses { parity: kind, ..Losses::default() },
            Losses { prefix: kind, ..Losses::default() },
        ] {
            let job = Job { stall_seconds: c, losses, ..Job::default() };
            let schedule = Schedule { interval_seconds: interval, flush_every: 1 };
            near(job.efficiency(schedule).expect("numbers"), expected, 1e-9 * expected + 1e-12);
        }
    }

    #[test]
    fn latency_is_that_of_vaidya((c, r, m) in parts(), interval in 1e3..1e5_f64, latency in 0.0..900.0_f64) {
        // Where nothing interrupts it, the time to flush is the latency.
        prop_assume!(m > 1e6);
        let latency = latency.floor();
        let expected = single(c, r, m).with_latency(c + latency).expect("later");
        let kind = Kind { failures_per_second: 1.0 / m, recovery_seconds: r };
        let losses = Losses { prefix: kind, ..Losses::default() };
        let job = Job { stall_seconds: c, flush_seconds: latency, losses, ..Job::default() };
        let schedule = Schedule { interval_seconds: interval, flush_every: 1 };
        near(
            job.efficiency(schedule).expect("numbers"),
            expected.efficiency(interval).expect("an interval"),
            1e-5,
        );
    }

    #[test]
    fn the_best_pattern_beats_its_neighbours(
        c1 in 0.1..100.0_f64, more in 1.0..100.0_f64, l1 in 1e-6..1e-3_f64, fewer in 1.0..100.0_f64,
        off in 0.5..2.0_f64, by in 1..5_u64,
    ) {
        let two = TwoLevel { first: level(c1, l1), second: level(c1 * more, l1 / fewer) };
        let best = two.best().expect("failures");
        let at = |segments, length| two.overhead(segments, length).expect("a pattern");
        prop_assert!(best.overhead <= at(best.segments, best.length_seconds * off) + 1e-12);
        for segments in [best.segments + by, best.segments.saturating_sub(by).max(1)] {
            prop_assert!(best.overhead <= two.best_of(segments).expect("failures").overhead + 1e-12);
        }
        let (_, exact) = Levels::new(vec![two.first, two.second]).expect("two").best_seconds();
        prop_assert!(exact <= best.overhead + 1e-12, "whole numbers cannot be better");
        let alone = Levels::new(vec![two.first]).expect("one").best_seconds();
        near(alone.0[0].expect("fails"), single(c1, 0.0, 1.0 / l1).young_seconds().unwrap_or((2.0 * c1 / l1).sqrt()), 1e-6);
    }

    #[test]
    fn the_best_schedule_beats_its_neighbours(job in jobs(), off in 0.5..2.0_f64, by in 1..5_u64) {
        let best = job.best().expect("a job");
        let at = |schedule| job.efficiency(schedule).expect("a schedule");
        let reached = at(best);
        prop_assert!((0.0..1.0).contains(&reached));
        let longer = Schedule { interval_seconds: best.interval_seconds * off, ..best };
        prop_assert!(reached >= at(longer) - 1e-9);
        for flush_every in [best.flush_every + by, best.flush_every.saturating_sub(by).max(1)] {
            let other = job.best_interval(flush_every.min(FLUSH_EVERY_MAX)).expect("a job");
            prop_assert!(reached >= at(other) - 1e-9);
        }
        // Less to lose, less lost.
        let rarer = Job { losses: job.losses.times(0.5), ..job };
        prop_assert!(rarer.efficiency(rarer.best().expect("a job")).expect("a schedule") > reached);
        let cheaper = Job { stall_seconds: job.stall_seconds / 2.0, ..job };
        prop_assert!(cheaper.efficiency(cheaper.best().expect("a job")).expect("a schedule") > reached);
    }

    #[test]
    fn nothing_is_ever_not_a_number(
        numbers in prop::collection::vec(prop_oneof![
            Just(0.0), Just(1e-9), Just(1e15), Just(f64::NAN), Just(f64::INFINITY), 1e-9..1e15_f64, 0.0..1.0_f64,
        ], 12),
        every in 0..2000_u64,
    ) {
        let kind = |at: usize| Kind { failures_per_second: numbers[at], recovery_seconds: numbers[at + 1] };
        let job = Job {
            stall_seconds: numbers[6],
            encode_seconds: numbers[7],
            encode_slowdown: numbers[8].min(0.99),
            flush_seconds: numbers[9],
            flush_slowdown: 0.5,
            flush_stall_seconds: numbers[10],
            losses: Losses { cache: kind(0), parity: kind(2), prefix: kind(4) },
        };
        let schedule = Schedule { interval_seconds: numbers[11], flush_every: every };
        if let Ok(efficiency) = job.efficiency(schedule) {
            prop_assert!((0.0..=1.0).contains(&efficiency), "{efficiency}");
        }
        if let Ok(best) = job.best() {
            prop_assert!(best.interval_seconds.is_finite());
        }
        if let Ok(model) = Single::new(numbers[0], numbers[1], numbers[2]) {
            prop_assert!(model.optimum_seconds().is_finite() && model.daly_seconds().is_finite());
            if let Ok(efficiency) = model.efficiency(numbers[3]) {
                prop_assert!((0.0..=1.0).contains(&efficiency), "{efficiency}");
            }
        }
        let of = |at: usize| MarkovLevel::new(numbers[at], numbers[at + 1], numbers[at + 2]);
        if let (Ok(first), Ok(second)) = (of(0), of(3)) {
            let markov = Markov::new(vec![first, second]).expect("two");
            let rhythm = Rhythm { interval_seconds: numbers[6], counts: vec![every.min(20)] };
            if let Ok(efficiency) = markov.efficiency(&rhythm) {
                prop_assert!((0.0..=1.0 + 1e-9).contains(&efficiency), "{efficiency}");
            }
        }
    }
}

/// Jobs as they might be.
fn jobs() -> impl Strategy<Value = Job> {
    let kinds = [1e-6..1e-4_f64, 1e-6..1e-4_f64, 1e-8..1e-5_f64];
    let times = (0.05..30.0_f64, 0.0..60.0_f64, 0.0..600.0_f64, 0.0..60.0_f64);
    let slow = (0.0..0.3_f64, 0.0..0.3_f64);
    (kinds, times, slow).prop_map(|(rates, (stall, encode, flush, wait), slow)| {
        let kind = |at: usize, recovery_seconds| Kind {
            failures_per_second: rates[at],
            recovery_seconds,
        };
        Job {
            stall_seconds: stall,
            encode_seconds: encode.floor(),
            encode_slowdown: slow.0,
            flush_seconds: flush.floor(),
            flush_slowdown: slow.1,
            flush_stall_seconds: wait.floor(),
            losses: Losses {
                cache: kind(0, 30.0),
                parity: kind(1, 60.0),
                prefix: kind(2, 300.0),
            },
        }
    })
}

#[test]
fn few_failures_are_learnt_from_slowly_and_many_decide() {
    let prior = Prior::node(1000);
    let prior_rate = prior.failures / prior.seconds;
    near(1.0 / prior_rate, 5.0 * 365.25 * 86_400.0 / 1000.0, 1e-6);
    let nothing = Exposure::default().rate(prior);
    near(nothing.per_second() / prior_rate, 1.0, 1e-12);
    // A quiet week makes failures less likely, but not impossible.
    let mut quiet = Exposure::default();
    quiet.add(7.0 * 86_400.0, false).expect("a time");
    let rate = quiet.rate(prior).per_second();
    assert!(rate > 0.0 && rate < prior_rate, "{rate}");
    near(rate, 0.5 / (prior.seconds + 7.0 * 86_400.0), 1e-18);
    // A hundred failures, each after an hour, outweigh what was believed.
    let mut stormy = quiet;
    for _ in 0..100 {
        stormy.add(3600.0, true).expect("a time");
    }
    let rate = stormy.rate(Prior::process());
    near(
        rate.per_second(),
        100.5 / (7.0 * 86_400.0 + 360_000.0 + 0.5 * 365.25 * 86_400.0 / 12.0),
        1e-12,
    );
    let (low, high) = rate.range_per_second();
    assert!(low < rate.per_second() && rate.per_second() < high);
    // 80 % of Gamma(100.5) is from 87.84 to 113.5.
    near(low / rate.per_second(), 87.84 / 100.5, 5e-3);
    near(high / rate.per_second(), 113.5 / 100.5, 5e-3);
    assert!(quiet.clone().add(f64::NAN, false).is_err());
}

#[test]
fn what_datasets_tell_is_the_median_of_each() {
    let at = |created: u64, sealed: u64, protected: u64, flushed: Option<u64>| Times {
        created,
        sealed: Some(sealed),
        protected: Some(protected),
        flushed,
    };
    let times = [
        at(100_000, 102_000, 103_000, Some(110_000)),
        at(700_000, 702_500, 703_000, None),
        at(1_300_000, 1_302_000, 1_402_000, None),
        // Being written.
        Times {
            created: 1_900_000,
            sealed: None,
            protected: None,
            flushed: None,
        },
    ];
    let measured = Measured::of(&[times[2], times[0], times[3], times[1]]);
    assert_eq!(measured.checkpoints, 3);
    assert_eq!(measured.stall_seconds, Some(2.0));
    assert_eq!(measured.encode_seconds, Some(1.0));
    assert_eq!(measured.flush_seconds, Some(8.0));
    assert_eq!(measured.interval_seconds, Some(598.0));
    assert_eq!(measured.span_seconds, 1800.0);
    assert_eq!(Measured::of(&[]), Measured::default());
    assert_eq!(Measured::default().end_seconds(), None);
    let slow = Measured {
        interval_seconds: Some(600.0),
        stall_seconds: Some(5.0),
        encode_seconds: Some(7.0),
        flush_seconds: Some(100.0),
        ..Measured::default()
    };
    assert_eq!(slow.end_seconds(), Some(600.0 + 5.0 + 2.0 * 100.0 + 10.0));
    // A clock that was set back is no measurement.
    let back = Times {
        created: 5000,
        sealed: Some(4000),
        protected: None,
        flushed: None,
    };
    assert_eq!(Measured::of(&[back]).stall_seconds, None);
}

#[test]
fn advice_is_one_sentence_and_says_what_the_present_costs() {
    let kind = |mtbf: f64, recovery_seconds| Kind {
        failures_per_second: 1.0 / mtbf,
        recovery_seconds,
    };
    let job = Job {
        stall_seconds: 10.0,
        flush_stall_seconds: 120.0,
        losses: Losses {
            cache: kind(21600.0, 0.0),
            prefix: kind(604800.0, 0.0),
            ..Losses::default()
        },
        ..Job::default()
    };
    let present = Schedule {
        interval_seconds: 3600.0,
        flush_every: 1,
    };
    let advice = Advice::of(&job, None, Some(present), None).expect("a job");
    assert_eq!(
        advice.words("xor"),
        "checkpoint every 11 min to cache (xor), flush every 18th; expected waste 4.9 %, you are at 11.4 %"
    );
    let (low, high) = advice.good_seconds;
    let best = advice.schedule.interval_seconds;
    assert!(low < 0.8 * best && 1.2 * best < high, "{low} {best} {high}");
    for edge in [low, high] {
        let waste = 1.0
            - job
                .efficiency(Schedule {
                    interval_seconds: edge,
                    ..advice.schedule
                })
                .expect("near");
        near(waste / advice.waste, 1.1, 1e-6);
    }
    let likely = (job.losses.times(0.5), job.losses.times(2.0));
    let given = Advice::of(&job, Some(1), None, Some(likely)).expect("a job");
    assert_eq!(given.schedule.flush_every, 1);
    let (rare, frequent) = given.waste_range.expect("asked for");
    assert!(rare < given.waste && given.waste < frequent);
    assert!(
        given
            .words("rs")
            .starts_with("checkpoint every 37 min to cache (rs), flush all; expected waste 10.")
    );
}

#[test]
fn what_is_given_goes_before_what_is_measured_and_that_before_what_is_assumed() {
    let none = Seen::default();
    let nothing = Inputs::new(
        &Given::default(),
        &Measured::default(),
        &none,
        &Recoveries::default(),
        4,
    );
    assert_eq!(nothing, Err(InputError::NoCost));
    let measured = Measured {
        stall_seconds: Some(2.0),
        flush_seconds: Some(50.0),
        ..Measured::default()
    };
    let given = Given {
        flush_seconds: Some(70.0),
        ..Given::default()
    };
    let found = Inputs::new(&given, &measured, &none, &Recoveries::default(), 4).expect("a cost");
    let from = |name: &str| {
        let input = found
            .inputs
            .iter()
            .find(|input| input.name == name)
            .expect(name);
        (input.value, input.from)
    };
    assert_eq!(from("stall_seconds"), (2.0, From::Measured));
    assert_eq!(from("flush_seconds"), (70.0, From::Given));
    assert_eq!(from("encode_seconds"), (2.0, From::Assumed));
    assert_eq!(
        found.job.losses.parity.recovery_seconds,
        RECOVER_SECONDS + 2.0
    );
    assert_eq!(
        found.job.losses.prefix.recovery_seconds,
        RECOVER_SECONDS + 70.0
    );
    let (mtbf, source) = from("mtbf_node_seconds");
    near(mtbf, 5.0 * 365.25 * 86_400.0 / 4.0, 1e-3);
    assert_eq!(source, From::Assumed);
    let (low, high) = found.likely.expect("nobody said how often");
    let all = found.job.losses.failures_per_second();
    assert!(low.failures_per_second() < all && all < high.failures_per_second());

    // One number for all failures keeps their shares; one of a kind is taken as it is.
    let given = Given {
        mtbf_seconds: Some(3600.0),
        ..given
    };
    let all = Inputs::new(&given, &measured, &none, &Recoveries::default(), 4).expect("a cost");
    near(all.job.losses.failures_per_second(), 1.0 / 3600.0, 1e-15);
    near(
        all.job.losses.parity.failures_per_second / all.job.losses.prefix.failures_per_second,
        10.0,
        1e-9,
    );
    assert_eq!(all.likely, None);
    let given = Given {
        mtbf_beyond_seconds: Some(7200.0),
        ..given
    };
    let one = Inputs::new(&given, &measured, &none, &Recoveries::default(), 4).expect("a cost");
    assert_eq!(one.job.losses.prefix.failures_per_second, 1.0 / 7200.0);
    for bad in [0.0, -1.0, f64::NAN] {
        let given = Given {
            mtbf_seconds: Some(bad),
            ..given
        };
        assert!(
            Inputs::new(&given, &measured, &none, &Recoveries::default(), 4).is_err(),
            "{bad}"
        );
    }

    // What was seen counts.
    let node = Exposure {
        seconds: 86_400.0,
        failures: 20,
    };
    let seen = Inputs::new(
        &Given::default(),
        &measured,
        &Seen { node, ..none },
        &Recoveries::default(),
        4,
    )
    .expect("a cost");
    let input = seen
        .inputs
        .iter()
        .find(|input| input.name == "mtbf_node_seconds")
        .expect("there");
    assert_eq!(input.from, From::Measured);
    near(
        seen.job.losses.parity.failures_per_second,
        20.5 / (0.5 * 5.0 * 365.25 * 86_400.0 / 4.0 + 86_400.0),
        1e-12,
    );
}

#[test]
fn times_are_said_as_people_say_them() {
    for (seconds, words) in [
        (0.35, "350 ms"),
        (1.0, "1 s"),
        (9.96, "10 s"),
        (40.4, "40 s"),
        (116.0, "116 s"),
        (120.0, "2 min"),
        (657.0, "11 min"),
        (5400.0, "90 min"),
        (9000.0, "2.5 h"),
        (259_200.0, "3 d"),
    ] {
        assert_eq!(duration_words(seconds), words);
    }
}
