//! `scrfs halt`: when the job of a prefix is to end by itself.
//!
//! Works on the prefix alone, from any machine that has it, whether a job runs or not.

use super::config::ConfigOptions;
use super::{Failure, print};
use crate::heartbeat::now_millis;
use anyhow::anyhow;
use jiff::civil::{DateTime, Time};
use jiff::{Span, Timestamp, Zoned};
use scrfs::halt::{Condition, Conditions, HaltFiles, Kind};
use scrfs::store::StoreError;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;

#[derive(clap::Args, Debug)]
pub(super) struct HaltArgs {
    /// After so many more checkpoints
    #[arg(long, short, value_name = "N")]
    checkpoints: Option<u64>,
    /// So that it has ended by TIME: `2026-11-25T18:00`, `18:00`, `+90min`; `--seconds` are left for it
    #[arg(long, short, value_name = "TIME")]
    before: Option<String>,
    /// Once it is later than TIME
    #[arg(long, short, value_name = "TIME")]
    after: Option<String>,
    /// When no more than N seconds are left of the allocation, or to `--before`; where no resource
    /// manager says when the allocation ends, give that, too
    #[arg(long, short, value_name = "N")]
    seconds: Option<u64>,
    /// At once: programs are asked to end, and ended by force when they do not
    #[arg(long, short = 'i', alias = "immediate")]
    now: bool,
    /// Show the conditions, after what else is asked for
    #[arg(long, short)]
    list: bool,
    /// As JSON
    #[arg(long, requires = "list")]
    json: bool,
    /// Take conditions back: checkpoints, before, after, seconds, soon, now, all
    #[arg(long, value_name = "WHICH", value_delimiter = ',', num_args = 1..)]
    clear: Vec<String>,
    #[command(flatten)]
    config: ConfigOptions,
}

pub(super) fn run(args: &HaltArgs) -> Result<(), Failure> {
    let (config, _) = args.config.load()?;
    let prefix = &config.prefix;
    if scrfs::config::is_object_url(prefix) {
        return Err(Failure::nothing(format!(
            "{} is in an object store, which has no halt conditions; `scrfs run` heeds signals: \
             `kill -USR1`",
            prefix.display()
        )));
    }
    // Not into any directory that happens to be the current one.
    let control = scrfs::layout::path::PrefixPaths::new(prefix).control();
    if !args.config.names_prefix() && !control.is_dir() {
        return Err(Failure::nothing(format!(
            "{} has no .scrfs, so no job has used it; name the job's prefix with --prefix",
            prefix.display()
        )));
    }
    let files = HaltFiles::new(prefix);
    let failed = |error: StoreError| Failure::failed(error.into());
    let cleared = kinds(&args.clear)?;
    let now = Zoned::now();
    let given = given(args, &now)?;
    for kind in &cleared {
        files.clear(*kind).map_err(failed)?;
    }
    for (kind, value) in &given {
        let condition = Condition {
            value: *value,
            id: RandomState::new().hash_one(now_millis()),
            by: me(),
            set: now_millis(),
        };
        files.give(*kind, &condition).map_err(failed)?;
    }
    if args.list {
        let conditions = files.read().map_err(failed)?;
        let text = if args.json {
            json(&conditions).map_err(Failure::failed)?
        } else {
            list(&conditions, prefix)
        };
        print(&text)?;
    }
    Ok(())
}

/// Conditions that are given; with nothing else to do, to end at the next occasion.
fn given(args: &HaltArgs, now: &Zoned) -> Result<Vec<(Kind, u64)>, Failure> {
    let time = |text: &Option<String>| -> Result<Option<u64>, Failure> {
        text.as_deref().map(|text| when(text, now)).transpose()
    };
    let all = [
        (Kind::Checkpoints, args.checkpoints),
        (Kind::Before, time(&args.before)?),
        (Kind::After, time(&args.after)?),
        (Kind::Seconds, args.seconds),
        (Kind::Now, args.now.then_some(0)),
    ];
    let mut given: Vec<(Kind, u64)> = all
        .into_iter()
        .filter_map(|(kind, value)| Some((kind, value?)))
        .collect();
    if given.is_empty() && !args.list && args.clear.is_empty() {
        given.push((Kind::Soon, 0));
    }
    Ok(given)
}

fn kinds(names: &[String]) -> Result<Vec<Kind>, Failure> {
    let mut found = Vec::new();
    for name in names {
        match Kind::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => found.push(kind),
            None if name == "all" => found.extend(Kind::ALL),
            None => {
                let known = Kind::ALL.map(Kind::name).join(", ");
                return Err(Failure::usage(format!(
                    "--clear {name}: there are {known} and all"
                )));
            }
        }
    }
    Ok(found)
}

/// A time, in seconds since the Unix epoch: with its zone, or of the local one.
fn when(text: &str, now: &Zoned) -> Result<u64, Failure> {
    let bad = || {
        Failure::usage(format!(
            "{text:?} is no time: give 2026-11-25T18:00, 18:00, +90min, or one with its zone"
        ))
    };
    let seconds = |time: Timestamp| u64::try_from(time.as_second()).map_err(|_| bad());
    if let Some(span) = text.strip_prefix('+') {
        let span: Span = span.parse().map_err(|_| bad())?;
        return seconds(now.checked_add(span).map_err(|_| bad())?.timestamp());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return seconds(time);
    }
    let zone = now.time_zone().clone();
    if let (Ok(time), false) = (text.parse::<Time>(), text.contains('-')) {
        // The next time that it is so late.
        let today = now
            .date()
            .to_datetime(time)
            .to_zoned(zone)
            .map_err(|_| bad())?;
        let time = if today > *now {
            today
        } else {
            today.tomorrow().map_err(|_| bad())?
        };
        return seconds(time.timestamp());
    }
    let time: DateTime = text.parse().map_err(|_| bad())?;
    seconds(time.to_zoned(zone).map_err(|_| bad())?.timestamp())
}

fn me() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let user = user.ok().flatten().map(|user| user.name);
    let user = user.unwrap_or_else(|| nix::unistd::geteuid().to_string());
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{user}@{}", host.display())
}

fn shown(time: u64) -> String {
    let time = i64::try_from(time)
        .ok()
        .and_then(|time| Timestamp::from_second(time).ok());
    time.map_or_else(
        || "a time out of reach".to_owned(),
        |time| {
            time.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%F %T %Z")
                .to_string()
        },
    )
}

fn list(conditions: &Conditions, prefix: &Path) -> String {
    if conditions.is_empty() {
        return format!("no halt conditions in {}\n", prefix.display());
    }
    let mut text = format!(
        "halt conditions in {}, any of which may hold:\n",
        prefix.display()
    );
    for (kind, condition) in conditions.iter() {
        let Some(condition) = condition else {
            text += &format!("  {}: cannot be read, and so holds\n", kind.name());
            continue;
        };
        let value = condition.value;
        let what = match kind {
            Kind::Now => "at once".to_owned(),
            Kind::Soon => "at the next occasion".to_owned(),
            Kind::Checkpoints => match conditions.checkpoints_base() {
                Some(base) => format!("after {value} more checkpoints, from number {base} on"),
                None => format!("after {value} more checkpoints, from when a job sees this"),
            },
            Kind::Before => format!("before {}", shown(value)),
            Kind::After => format!("after {}", shown(value)),
            Kind::Seconds => format!("with {value} s left of the allocation, if its end is known"),
        };
        let set = shown(condition.set / 1000);
        text += &format!("  {}: {what} (by {}, {set})\n", kind.name(), condition.by);
    }
    text
}

fn json(conditions: &Conditions) -> anyhow::Result<String> {
    let one = |(kind, condition): (Kind, Option<&Condition>)| {
        let time = condition.and_then(|condition| i64::try_from(condition.set).ok());
        let set = time.and_then(|time| Timestamp::from_millisecond(time).ok());
        serde_json::json!({
            "condition": kind.name(),
            "value": condition.map(|condition| condition.value),
            "by": condition.map(|condition| &condition.by),
            "set": set.map(|set| set.to_string()),
        })
    };
    let all: Vec<_> = conditions.iter().map(one).collect();
    let mut text = serde_json::to_string_pretty(&all).map_err(|error| anyhow!(error))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<String> {
        let now: Zoned = "2026-11-25T12:00:00+01:00[Europe/Paris]"
            .parse()
            .expect("a time");
        let time = i64::try_from(when(text, &now).ok()?).expect("near");
        Some(Timestamp::from_second(time).expect("near").to_string())
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let noon = Some("2026-11-25T11:00:00Z".to_owned());
        assert_eq!(at("2026-11-25T12:00:00"), noon);
        assert_eq!(at("2026-11-25T12:00"), noon);
        assert_eq!(at("2026-11-25 12:00"), noon);
        assert_eq!(at("2026-11-25T11:00:00Z"), noon);
        assert_eq!(at("13:30"), Some("2026-11-25T12:30:00Z".into()));
        // Today's has passed.
        assert_eq!(at("11:59:30"), Some("2026-11-26T10:59:30Z".into()));
        assert_eq!(at("+90min"), Some("2026-11-25T12:30:00Z".into()));
        assert_eq!(at("+1d"), Some("2026-11-26T11:00:00Z".into()));
        for bad in ["", "noon", "+", "25:00", "2026-13-01T00:00", "+90"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn conditions_are_cleared_by_name() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            kinds(&names).map(|kinds| kinds.len())
        };
        assert_eq!(names(&["before", "now"]).expect("known"), 2);
        assert_eq!(names(&["all"]).expect("known"), Kind::ALL.len());
        assert!(names(&["never"]).is_err());
    }
}
