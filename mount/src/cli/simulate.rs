//! `scrfs simulate`: what a job would lose under other settings.

mod plot;

use super::job::{self, JobOptions};
use super::{Failure, print};
use anyhow::{Context, anyhow};
use scrfs::bar::Bar;
use scrfs::interval::{Account, FLUSH_EVERY_MAX, Job, Mean, Schedule, Simulation, duration_words};
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Most events of one run, where nobody says how long it is.
const EVENTS: f64 = 400_000.0;
/// Failures of the rarest kind in a run that nobody bounds.
const RARE_FAILURES: f64 = 30.0;
/// Most runs of one command.
const RUNS_MAX: usize = 100_000;

#[derive(clap::Args, Debug)]
pub(super) struct SimulateArgs {
    #[command(flatten)]
    job: JobOptions,
    /// Intervals to try, separated by commas [default: about the best]
    #[arg(long, value_name = "TIME,..", value_parser = job::seconds, value_delimiter = ',')]
    interval: Vec<f64>,
    /// One flush in how many checkpoints to try, separated by commas [default: about the best]
    #[arg(long, value_name = "N,..", value_parser = clap::value_parser!(u64).range(1..=FLUSH_EVERY_MAX), value_delimiter = ',')]
    flush_every: Vec<u64>,
    /// How long the job runs [default: long enough to see rare failures]
    #[arg(long, value_name = "TIME", value_parser = job::seconds)]
    duration: Option<f64>,
    /// Checkpoints that wait for their flush, at most [default: store.count, else 2]
    #[arg(long, value_name = "N")]
    room: Option<u64>,
    /// Runs of each, with different failures
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    runs: u32,
    /// The first seed; the same seeds give the same failures
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Draw efficiency against interval into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// One schedule; the fields are stable.
#[derive(Serialize, Debug)]
struct Cell {
    #[serde(flatten)]
    schedule: Schedule,
    /// Share of time that was useful, over the runs.
    efficiency: Mean,
    /// What the formula says.
    model: f64,
    /// All runs together.
    account: Account,
}

fn add(sum: &mut Account, one: &Account) {
    sum.elapsed_seconds += one.elapsed_seconds;
    sum.useful_seconds += one.useful_seconds;
    sum.undone_seconds += one.undone_seconds;
    sum.slowed_seconds += one.slowed_seconds;
    sum.stalled_seconds += one.stalled_seconds;
    sum.waited_seconds += one.waited_seconds;
    sum.recovering_seconds += one.recovering_seconds;
    sum.checkpoints += one.checkpoints;
    sum.flushes += one.flushes;
    for (sum, one) in sum.failures.iter_mut().zip(one.failures) {
        *sum += one;
    }
}

/// About the best: half octaves of the interval, and up to four times as many or few flushes.
fn around(args: &SimulateArgs, best: Schedule) -> Vec<Schedule> {
    let mut every = args.flush_every.clone();
    if every.is_empty() {
        every = vec![
            1,
            best.flush_every / 4,
            best.flush_every,
            best.flush_every * 4,
        ];
    }
    every.retain(|every| (1..=FLUSH_EVERY_MAX).contains(every));
    every.sort_unstable();
    every.dedup();
    let mut intervals = args.interval.clone();
    if intervals.is_empty() {
        let octaves = (-6..=6).map(|half| 2_f64.powf(f64::from(half) / 2.0));
        intervals = octaves
            .map(|factor| factor * best.interval_seconds)
            .collect();
    }
    intervals.sort_by(f64::total_cmp);
    intervals.dedup();
    let grid = every.iter().flat_map(|&flush_every| {
        intervals.iter().map(move |&interval_seconds| Schedule {
            interval_seconds,
            flush_every,
        })
    });
    grid.collect()
}

/// How long to simulate, so that what is rare is seen and the end as well.
fn duration(job: &Job, grid: &[Schedule]) -> f64 {
    let rates = job.losses.kinds().map(|kind| kind.failures_per_second);
    let rarest = rates
        .into_iter()
        .filter(|&rate| rate > 0.0)
        .fold(f64::INFINITY, f64::min);
    let shortest = grid
        .iter()
        .map(|it| it.interval_seconds)
        .fold(f64::INFINITY, f64::min);
    let segment = shortest + job.stall_seconds;
    let all = job.losses.failures_per_second();
    (RARE_FAILURES / rarest).min(EVENTS / (4.0 / segment + 3.0 * all))
}

pub(super) fn run(args: &SimulateArgs) -> Result<(), Failure> {
    let known = args.job.known()?;
    let job = known.inputs.job;
    let best = job.best().map_err(Failure::usage)?;
    let grid = around(args, best);
    let runs = args.runs as usize;
    if grid.len() * runs > RUNS_MAX {
        return Err(Failure::usage(format!(
            "{} schedules of {runs} runs each: at most {RUNS_MAX} runs in all",
            grid.len()
        )));
    }
    let seconds = args.duration.unwrap_or_else(|| duration(&job, &grid));
    let count = known
        .config
        .as_ref()
        .and_then(|config| config.store.first());
    let room = args
        .room
        .or(count.map(|store| u64::from(store.count)))
        .unwrap_or(2);
    let simulations = grid
        .iter()
        .map(|&schedule| Simulation::new(job, schedule, room, seconds))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::usage)?;
    let bar = Bar::steps(!args.json, "simulating", (grid.len() * runs) as u64);
    let mut cells = Vec::with_capacity(grid.len());
    for (schedule, simulation) in grid.into_iter().zip(&simulations) {
        let mut account = Account::default();
        let mut efficiencies = Vec::with_capacity(runs);
        for seed in 0..u64::from(args.runs) {
            let one = simulation.run(args.seed.wrapping_add(seed));
            efficiencies.push(one.efficiency());
            add(&mut account, &one);
            bar.step();
        }
        cells.push(Cell {
            schedule,
            efficiency: Mean::of(&efficiencies).context("too few runs")?,
            model: job.efficiency(schedule).map_err(Failure::usage)?,
            account,
        });
    }
    drop(bar);
    if let Some(path) = &args.svg {
        let picture = plot::svg(&cells, best)?;
        std::fs::write(path, picture)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        let value = json!({
            "job": job,
            "inputs": known.inputs.inputs,
            "seconds": seconds,
            "runs": args.runs,
            "seed": args.seed,
            "room": room,
            "best": best,
            "schedules": cells,
        });
        let text = serde_json::to_string_pretty(&value).map_err(|error| anyhow!(error))?;
        return print(&format!("{text}\n"));
    }
    let mut text = table(&cells);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\n{runs} runs of {} each; +- with 95 % confidence; all in % of the time\n\nthe job:\n{}",
        duration_words(seconds),
        known.table()
    );
    print(&text)
}

fn table(cells: &[Cell]) -> String {
    let best = cells
        .iter()
        .map(|cell| cell.efficiency.mean)
        .fold(0.0, f64::max);
    let mut text = format!(
        "{:>9} {:>6} {:>10} {:>5} {:>6}  {:>7} {:>7} {:>7} {:>7} {:>7}\n",
        "INTERVAL",
        "FLUSH",
        "EFFICIENCY",
        "+-",
        "MODEL",
        "STALL",
        "SLOWED",
        "WAITED",
        "UNDONE",
        "RECOVER"
    );
    let mut before = None;
    for cell in cells {
        let Schedule {
            interval_seconds,
            flush_every,
        } = cell.schedule;
        if before.is_some_and(|before| before != flush_every) {
            text.push('\n');
        }
        before = Some(flush_every);
        let account = &cell.account;
        let share = |seconds: f64| 100.0 * seconds / account.elapsed_seconds;
        let mark = if cell.efficiency.mean >= best {
            "  best"
        } else {
            ""
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>9} {:>6} {:>10.2} {:>5.2} {:>6.2}  {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>7.2}{mark}",
            duration_words(interval_seconds),
            format!("1/{flush_every}"),
            100.0 * cell.efficiency.mean,
            100.0 * cell.efficiency.half_width,
            100.0 * cell.model,
            share(account.stalled_seconds),
            share(account.slowed_seconds),
            share(account.waited_seconds),
            share(account.undone_seconds),
            share(account.recovering_seconds),
        );
    }
    text
}
