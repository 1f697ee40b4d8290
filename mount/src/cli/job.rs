//! The job that `scrfs advise` and `scrfs simulate` speak of: from options, from a running mount, or from what
//! `scrfs status --json` printed.

use super::{Failure, ask, daemon_at};
use anyhow::Context;
use scrfs::config::{CommitWait, Config, Mtbf, is_object_url, parse_seconds};
use scrfs::control::Command;
use scrfs::interval::{
    Exposure, From, Given, History, Input, InputError, Inputs, Measured, Recoveries, Schedule,
    Seen, Times, duration_words,
};
use scrfs::layout::path::PrefixPaths;
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Where a mount is looked for when nobody says where.
const MOUNTPOINT: &str = "/scr";
/// A daemon that does not answer for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 256 << 20;

#[derive(clap::Args, Debug)]
pub(super) struct JobOptions {
    /// Measure the mount here [default: /scr, if there is one]
    #[arg(long = "mount", value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    /// Measure what `scrfs status --json` printed into this file; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "mountpoint")]
    from: Option<PathBuf>,
    /// Learn failures and recoveries from the events in this prefix [default: that of the mount]
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Mean time between failures of the job; times are such as 30s, 11min, 2d, 5y
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    mtbf: Option<f64>,
    /// The same, of failures that leave the cache whole
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    mtbf_process: Option<f64>,
    /// The same, of nodes lost within what the scheme tolerates
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    mtbf_node: Option<f64>,
    /// The same, of losses beyond that
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    mtbf_beyond: Option<f64>,
    /// Nodes of the job, where nothing was measured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// What the program waits for one checkpoint
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    cost: Option<f64>,
    /// From there until it is protected
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    encode: Option<f64>,
    /// From the commit until it is in the prefix
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    flush: Option<f64>,
    /// How much slower the program is while parity is made
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    encode_slowdown: Option<f64>,
    /// How much slower it is during a flush
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    flush_slowdown: Option<f64>,
    /// From a failure until the program computes again
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    recover: Option<f64>,
    /// So much more when lost parts are rebuilt
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    rebuild: Option<f64>,
    /// So much more when all comes from the prefix
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    fetch: Option<f64>,
}

/// Everything known of a job.
pub(super) struct Known {
    pub(super) inputs: Inputs,
    pub(super) measured: Measured,
    pub(super) seen: Seen,
    pub(super) recoveries: Recoveries,
    /// The configuration of the mount, if there is one.
    pub(super) config: Option<Config>,
    pub(super) scheme: String,
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    parse_seconds(text).ok_or_else(|| "expected a time such as 30s, 11min, 2d or 5y".into())
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim_end();
    match number.parse::<f64>() {
        Ok(number) if (0.0..100.0).contains(&number) => Ok(number / 100.0),
        _ => Err("expected a number of percent from 0 to below 100".into()),
    }
}

/// What is read of `scrfs status --json`.
#[derive(Deserialize, Debug, Default)]
struct Status {
    #[serde(default)]
    datasets: Vec<Dataset>,
    #[serde(default)]
    nodes: Vec<serde_json::Value>,
}

#[derive(Deserialize, Debug)]
struct Dataset {
    class: String,
    created: Option<jiff::Timestamp>,
    sealed: Option<jiff::Timestamp>,
    protected: Option<jiff::Timestamp>,
    flushed: Option<jiff::Timestamp>,
    scheme: Option<String>,
}

fn millis(time: jiff::Timestamp) -> Option<u64> {
    u64::try_from(time.as_millisecond()).ok()
}

impl Dataset {
    fn times(&self) -> Option<Times> {
        Some(Times {
            created: self.created.and_then(millis)?,
            sealed: self.sealed.and_then(millis),
            protected: self.protected.and_then(millis),
            flushed: self.flushed.and_then(millis),
        })
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let words = || format!("cannot read {}", path.display());
    let mut file: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(words)?)
    };
    let mut text = String::new();
    let limited = file
        .by_ref()
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text);
    let bytes = limited.with_context(words)? as u64;
    anyhow::ensure!(
        bytes <= FILE_BYTES_MAX,
        "{}: longer than {FILE_BYTES_MAX} bytes",
        path.display()
    );
    Ok(text)
}

/// What the runs of a prefix have written down of their failures.
fn learn(prefix: &Path, is_named: bool) -> anyhow::Result<(Seen, Recoveries)> {
    if is_object_url(prefix) {
        return match learn_from_objects(prefix) {
            // Who asks may not have the credentials that the daemon has.
            Err(error) if !is_named => {
                eprintln!("scrfs: nothing is learnt from events: {error:#}");
                Ok(Default::default())
            }
            learnt => learnt,
        };
    }
    if is_named {
        std::fs::metadata(prefix).with_context(|| format!("cannot read {}", prefix.display()))?;
    }
    let paths = PrefixPaths::new(prefix);
    let mut history = History::default();
    scrfs::event::pages::read(&paths, &mut |line| history.line(line))?;
    Ok(history.learnt())
}

/// The coordinator's program is the one that reads object stores.
fn learn_from_objects(prefix: &Path) -> anyhow::Result<(Seen, Recoveries)> {
    const PROGRAM: &str = "scrfs-coordinator";
    let program = crate::daemon::find_program(PROGRAM)
        .with_context(|| format!("{PROGRAM} is neither beside this program nor on the PATH"))?;
    let mut reader = std::process::Command::new(&program)
        .args(["events".as_ref(), "--prefix".as_ref(), prefix.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let mut history = History::default();
    let read = match reader.stdout.take() {
        Some(lines) => history.read(BufReader::new(lines)),
        None => Ok(()),
    };
    let status = reader.wait().context("the end of what reads events")?;
    let words = || format!("cannot read the events of {}", prefix.display());
    read.with_context(words)?;
    anyhow::ensure!(status.success(), "{}: {status}", words());
    Ok(history.learnt())
}

impl JobOptions {
    /// The status to measure, and the configuration, if they are to be had.
    fn source(&self) -> Result<(Option<Status>, Option<Config>), Failure> {
        let (text, config) = if let Some(path) = &self.from {
            (read(path)?, None)
        } else {
            let at = self.mountpoint.as_deref();
            let daemon = match (at, daemon_at(at.unwrap_or(Path::new(MOUNTPOINT)))) {
                (_, Ok(daemon)) => daemon,
                (Some(_), Err(failure)) => return Err(failure),
                (None, Err(_)) => return Ok((None, None)),
            };
            let config = crate::control::configuration(&daemon.socket, PATIENCE);
            let config = config.context("asking the daemon for its configuration")?;
            (
                ask(&daemon, &Command::Status, Some(PATIENCE))?,
                Some(config),
            )
        };
        let status = serde_json::from_str(&text).map_err(|error| {
            let name = match &self.from {
                Some(path) => path.display().to_string(),
                None => "the daemon's status".to_owned(),
            };
            Failure::usage(format!(
                "{name}: not what `scrfs status --json` prints: {error}"
            ))
        })?;
        Ok((Some(status), config))
    }

    /// What is known of the job.
    pub(super) fn known(&self) -> Result<Known, Failure> {
        let (status, config) = self.source()?;
        let status = status.unwrap_or_default();
        let checkpoints = status
            .datasets
            .iter()
            .filter(|dataset| dataset.class != "output");
        let times: Vec<Times> = checkpoints.filter_map(Dataset::times).collect();
        let measured = Measured::of(&times);
        let configured = match config.as_ref().map(|config| config.advice.mtbf) {
            Some(Mtbf::Seconds(seconds)) => Some(seconds),
            Some(Mtbf::Auto) | None => None,
        };
        let given = Given {
            mtbf_seconds: self.mtbf.or(configured),
            mtbf_process_seconds: self.mtbf_process,
            mtbf_node_seconds: self.mtbf_node,
            mtbf_beyond_seconds: self.mtbf_beyond,
            stall_seconds: self.cost,
            encode_seconds: self.encode,
            encode_slowdown: self.encode_slowdown,
            flush_seconds: self.flush,
            flush_slowdown: self.flush_slowdown,
            flush_stall_seconds: None,
            recover_seconds: self.recover,
            rebuild_seconds: self.rebuild,
            fetch_seconds: self.fetch,
        };
        let there = u32::try_from(status.nodes.len())
            .ok()
            .filter(|&nodes| nodes > 0);
        let nodes = self.nodes.or(there).unwrap_or(1);
        let configured = config.as_ref().map(|config| config.prefix.as_path());
        let (seen, recoveries) = match self.prefix.as_deref().or(configured) {
            Some(prefix) => learn(prefix, self.prefix.is_some())?,
            None => Default::default(),
        };
        let mut inputs = Inputs::new(&given, &measured, &seen, &recoveries, nodes).map_err(
            |error| match error {
                InputError::NoCost => Failure::usage(format!(
                    "{error}: --cost TIME, --mount MOUNTPOINT of a job that has made some, or \
                     --from FILE"
                )),
                InputError::Model(error) => Failure::usage(error),
            },
        )?;
        let wait = config
            .as_ref()
            .map_or(CommitWait::Sealed, |config| config.commit.wait);
        inputs.job = inputs.job.waiting_for(wait);
        let sealed = status
            .datasets
            .iter()
            .rev()
            .find_map(|dataset| dataset.scheme.clone());
        let set = config
            .as_ref()
            .map(|config| config.redundancy.scheme.to_string());
        Ok(Known {
            inputs,
            measured,
            seen,
            recoveries,
            scheme: sealed.or(set).unwrap_or_else(|| "xor".to_owned()),
            config,
        })
    }
}

impl Known {
    /// What the job does now, as far as it was measured.
    pub(super) fn present(&self) -> Option<Schedule> {
        let config = self.config.as_ref()?;
        Some(Schedule {
            interval_seconds: self.measured.interval_seconds?,
            flush_every: Some(config.flush.every).filter(|&every| every > 0)?,
        })
    }

    /// What was looked at for it.
    fn measured_from(&self, name: &str) -> String {
        let failures = |count: u64| match count {
            0 => "no failure".to_owned(),
            1 => "1 failure".to_owned(),
            more => format!("{more} failures"),
        };
        let seen = |kind: Exposure| {
            let ran = duration_words(kind.seconds);
            format!("learnt: {} in {ran} of running", failures(kind.failures))
        };
        let Seen {
            process,
            node,
            beyond,
        } = self.seen;
        match name {
            "mtbf_process_seconds" => seen(process),
            "mtbf_node_seconds" => seen(node),
            "mtbf_beyond_seconds" => seen(beyond),
            "recover_seconds" | "rebuild_seconds" | "fetch_seconds" => {
                let all = process.failures + node.failures + beyond.failures;
                format!("measured, after {}", failures(all))
            }
            _ => format!("measured, {} checkpoints", self.measured.checkpoints),
        }
    }

    /// A line for each number and where it comes from.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for Input { name, value, from } in &self.inputs.inputs {
            let words = match *name {
                "stall_seconds" => "the program waits for a checkpoint",
                "encode_seconds" => "from there until it is protected",
                "flush_seconds" => "from there until it is in the prefix",
                "encode_slowdown" => "encode slows the program down by",
                "flush_slowdown" => "a flush slows the program down by",
                "recover_seconds" => "from a failure until it computes again",
                "rebuild_seconds" => "more, when lost parts are rebuilt",
                "fetch_seconds" => "more, when all comes from the prefix",
                "mtbf_process_seconds" => "between failures that leave the cache whole",
                "mtbf_node_seconds" => "between losses that parity makes good",
                "mtbf_beyond_seconds" => "between losses beyond that",
                other => other,
            };
            let value = match name.strip_suffix("_slowdown") {
                Some(_) => format!("{:.0} %", 100.0 * value),
                None => duration_words(*value),
            };
            let from = match from {
                From::Given => "given".to_owned(),
                From::Measured => self.measured_from(name),
                From::Assumed => "assumed".to_owned(),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {words:<44} {value:>8}  {from}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_strictly() {
        assert_eq!(percent("5"), Ok(0.05));
        assert_eq!(percent("12.5 %"), Ok(0.125));
        for text in ["", "%", "-1", "100", "nan", "5 percent"] {
            assert!(percent(text).is_err(), "{text}");
        }
        assert_eq!(seconds("11min"), Ok(660.0));
        assert!(seconds("soon").is_err());
    }

    /// What an older or newer scrfs prints is read as far as it is understood.
    #[test]
    fn a_status_is_read_as_far_as_it_is_there() {
        let status: Status = serde_json::from_str(
            r#"{"node": "n0", "datasets": [
                {"id": 1, "name": "a", "class": "both", "created": "2026-01-02T03:04:05.250Z",
                 "sealed": "2026-01-02T03:04:07.750Z", "protected": null, "new": true},
                {"class": "checkpoint"}]}"#,
        )
        .expect("a status");
        let times: Vec<Times> = status.datasets.iter().filter_map(Dataset::times).collect();
        assert_eq!(times.len(), 1);
        assert_eq!(Measured::of(&times).stall_seconds, Some(2.5));
        for nonsense in [
            "",
            "3",
            r#"{"datasets": [{"class": "both", "created": "yesterday"}]}"#,
        ] {
            assert!(
                serde_json::from_str::<Status>(nonsense).is_err(),
                "{nonsense}"
            );
        }
    }
}
