//! `scrfs advise`: how often to checkpoint and to flush.

use super::job::{self, JobOptions, Known};
use super::{Failure, print};
use anyhow::anyhow;
use scrfs::interval::{
    Advice, FLUSH_EVERY_MAX, Level, Levels, Markov, MarkovLevel, ModelError, Rhythm, Schedule,
    Single, TwoLevel, duration_words,
};
use serde_json::json;
use std::fmt::Write as _;

#[derive(clap::Args, Debug)]
pub(super) struct AdviseArgs {
    #[command(flatten)]
    job: JobOptions,
    /// Flush every so many-th checkpoint, instead of as often as is best
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=FLUSH_EVERY_MAX))]
    flush_every: Option<u64>,
    /// Computing between checkpoints at present, where it was not measured
    #[arg(long, value_name = "TIME", value_parser = job::seconds)]
    interval: Option<f64>,
    /// Also what the textbook models say
    #[arg(long)]
    models: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &AdviseArgs) -> Result<(), Failure> {
    let known = args.job.known()?;
    let present = match args.interval {
        Some(interval_seconds) => {
            let configured = known.config.as_ref().map(|config| config.flush.every);
            let every = configured.filter(|&every| every > 0).or(args.flush_every);
            Some(Schedule {
                interval_seconds,
                flush_every: every.unwrap_or(1),
            })
        }
        None => known.present(),
    };
    let inputs = &known.inputs;
    let advice = Advice::of(&inputs.job, args.flush_every, present, inputs.likely);
    let advice = advice.map_err(Failure::usage)?;
    let words = advice.words(&known.scheme);
    let models = textbook(&known, advice.schedule);
    if args.json {
        let value = json!({
            "advice": advice,
            "words": words,
            "scheme": known.scheme,
            "job": inputs.job,
            "inputs": inputs.inputs,
            "measured": known.measured,
            "seen": known.seen,
            "recoveries": known.recoveries,
            "models": models,
        });
        let text = serde_json::to_string_pretty(&value).map_err(|error| anyhow!(error))?;
        return print(&format!("{text}\n"));
    }
    let mut text = format!("{words}\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "from {} to {} it is nearly as good\n\nwhat this rests on:\n{}",
        duration_words(advice.good_seconds.0),
        duration_words(advice.good_seconds.1),
        known.table()
    );
    text.truncate(text.trim_end().len());
    text.push('\n');
    if args.models {
        text += "\nwhat the models say:\n";
        for model in &models {
            let _ = writeln!(text, "  {}", model.words());
        }
    }
    print(&text)
}

/// What one model advises.
#[derive(serde::Serialize)]
struct Opinion {
    model: &'static str,
    interval_seconds: Option<f64>,
    flush_every: Option<u64>,
    /// In its own eyes: those of first order do not know recovery, nor latency.
    waste: Option<f64>,
    /// Why it says nothing.
    error: Option<String>,
}

impl Opinion {
    fn words(&self) -> String {
        let mut text = format!("{:<12}", self.model);
        if let Some(seconds) = self.interval_seconds {
            let _ = write!(text, " every {}", duration_words(seconds));
        }
        if let Some(every) = self.flush_every {
            let _ = write!(text, ", one flush in {every}");
        }
        if let Some(waste) = self.waste {
            let _ = write!(text, ", waste {:.1} %", 100.0 * waste);
        }
        if let Some(error) = &self.error {
            let _ = write!(text, " {error}");
        }
        text
    }
}

/// An interval, one flush in how many, and the waste.
type Said = (f64, Option<u64>, Option<f64>);

/// The same job in the eyes of the models that know less of it: the stall is the cost of a checkpoint, what a flush slows
/// down is the cost of a flush, and there are failures that the cache survives and failures that it does not.
fn textbook(known: &Known, start: Schedule) -> Vec<Opinion> {
    let job = &known.inputs.job;
    let losses = job.losses;
    let stall = job.stall_seconds + job.encode_slowdown * job.encode_seconds;
    let flush = job.flush_stall_seconds + job.flush_slowdown * job.flush_seconds;
    let near = losses.cache.failures_per_second + losses.parity.failures_per_second;
    let far = losses.prefix.failures_per_second;
    let one = |ask: &dyn Fn(&Single) -> Result<f64, ModelError>| {
        let single = Single::new(stall, losses.parity.recovery_seconds, 1.0 / (near + far))?;
        let interval = ask(&single)?;
        Ok((interval, None, Some(1.0 - single.efficiency(interval)?)))
    };
    let two = || -> Result<TwoLevel, ModelError> {
        let first = Level::new(stall, near)?;
        let second = Level::new(flush, far)?;
        Ok(TwoLevel { first, second })
    };
    let opinion = |model, said: Result<Said, ModelError>| match said {
        Ok((seconds, flush_every, waste)) => Opinion {
            model,
            interval_seconds: Some(seconds),
            flush_every,
            waste,
            error: None,
        },
        Err(error) => Opinion {
            model,
            interval_seconds: None,
            flush_every: None,
            waste: None,
            error: Some(error.to_string()),
        },
    };
    let vaidya = || {
        let best = two()?.best()?;
        let interval = best.length_seconds / best.segments as f64;
        let waste = best.overhead / (1.0 + best.overhead);
        Ok((interval, Some(best.segments), Some(waste)))
    };
    let benoit = || {
        // A flush without its checkpoint is no level that could stand alone.
        let second = Level::new(stall + flush, far)?;
        let levels = Levels::new(vec![Level::new(stall, near)?, second])?;
        let (periods, overhead) = levels.best_seconds();
        let inner = periods.iter().flatten().next();
        let interval = *inner.ok_or(ModelError::Hopeless)?;
        let every = match periods[..] {
            [Some(inner), Some(outer)] => Some((outer / inner).round().max(1.0) as u64),
            _ => None,
        };
        Ok((interval, every, Some(overhead / (1.0 + overhead))))
    };
    let moody = || {
        let recovery = (
            losses.parity.recovery_seconds,
            losses.prefix.recovery_seconds,
        );
        let markov = Markov::new(vec![
            MarkovLevel::new(stall, recovery.0, near)?,
            MarkovLevel::new(flush, recovery.1, far)?,
        ])?;
        let start = Rhythm {
            interval_seconds: start.interval_seconds,
            counts: vec![start.flush_every],
        };
        let (best, efficiency) = markov.best(&start)?;
        let every = best.counts.first().copied();
        Ok((best.interval_seconds, every, Some(1.0 - efficiency)))
    };
    vec![
        opinion("young", one(&Single::young_seconds)),
        opinion("daly", one(&|single| Ok(single.daly_seconds()))),
        opinion("exponential", one(&|single| Ok(single.optimum_seconds()))),
        opinion("vaidya", vaidya()),
        opinion("benoit", benoit()),
        opinion("moody", moody()),
    ]
}
