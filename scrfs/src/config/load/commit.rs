//! `[commit]`: what a rename waits for, temporary names, profiles and `[[commit.trigger]]`.

use super::{Loader, from_table, pattern, patterns, text};
use crate::config::document::{Table, nearest};
use crate::config::pattern::{PathPattern, PatternError};
use crate::config::trigger::pointer_name;
use crate::config::trigger::{NameTemplate, PROFILES, Profile, RemovedMarker, Tier, Trigger, When};
use crate::config::value::{self, ConfigError, Raw, Setting};
use crate::config::{CommitConfig, Pattern};

/// Names that are not final unless the configuration says otherwise.
const TEMPORARY: [&str; 7] = [
    "*.tmp",
    "*.temp",
    "*.partial",
    "tmp-*",
    ".*",
    "*-tmp*",
    "*.orbax-checkpoint-tmp*",
];

/// The keys of which a trigger has exactly one.
const SIGNS: [&str; 5] = [
    "commit.trigger.marker",
    "commit.trigger.pointer",
    "commit.trigger.removed",
    "commit.trigger.next",
    "commit.trigger.quiet_seconds",
];

impl Loader<'_> {
    pub(super) fn commit(&mut self) -> Result<CommitConfig, ConfigError> {
        let wait = self.get("commit.wait", text("sealed"), value::wait)?;
        let grace_seconds = self.get("commit.grace_seconds", Raw::Integer(30), value::count)?;
        let settle_seconds = self.get("commit.settle_seconds", Raw::Integer(10), value::count)?;
        let quiet_seconds = self.get("commit.quiet_seconds", Raw::Integer(60), value::interval)?;
        let mut temporary = self.temporary()?;
        let key = "commit.profiles";
        let found = self.find(key, Raw::List(Vec::new()), profiles)?;
        let origin = found.setting.origin.clone();
        let names: Vec<&str> = found.value.iter().map(|profile| profile.name).collect();
        self.note(key, format!("{names:?}"), &origin);
        let mut triggers = self.triggers(settle_seconds)?;
        for profile in found.value {
            let wrong = |error: PatternError| found.setting.bad(key, error.to_string());
            for pattern in profile.temporary {
                let pattern = Pattern::new(pattern).map_err(wrong)?;
                if !temporary.contains(&pattern) {
                    temporary.push(pattern);
                }
            }
            let own = profile.triggers(settle_seconds, quiet_seconds);
            for trigger in own.map_err(wrong)? {
                self.note(
                    format!("commit.trigger[{}]", triggers.len()),
                    &trigger,
                    &origin,
                );
                triggers.push(trigger);
            }
        }
        Ok(CommitConfig {
            wait,
            grace_seconds,
            temporary,
            triggers,
        })
    }

    fn temporary(&mut self) -> Result<Vec<Pattern>, ConfigError> {
        let key = "commit.temporary";
        let default = Raw::List(TEMPORARY.iter().map(|pattern| text(pattern)).collect());
        let found = self.find(key, default, patterns)?;
        let words: Vec<String> = found
            .value
            .iter()
            .map(|p| format!("{:?}", p.as_str()))
            .collect();
        self.note(
            key,
            format!("[{}]", words.join(", ")),
            &found.setting.origin,
        );
        Ok(found.value)
    }

    fn triggers(&mut self, settle_seconds: u64) -> Result<Vec<Trigger>, ConfigError> {
        let in_force = self.tables("commit.trigger").len();
        let files = self
            .files
            .iter()
            .filter_map(|file| file.tables.get("commit.trigger"));
        let all: Vec<Table> = files.flatten().cloned().collect();
        let mut triggers = Vec::new();
        for (index, table) in all.iter().enumerate() {
            let trigger = read_trigger(table, settle_seconds)?;
            if index < in_force {
                self.note(format!("commit.trigger[{index}]"), &trigger, &table.origin);
                triggers.push(trigger);
            }
        }
        Ok(triggers)
    }
}

fn read_trigger(table: &Table, settle_seconds: u64) -> Result<Trigger, ConfigError> {
    let pattern = from_table(table, "commit.trigger.match", None, pattern)?.value;
    let signs: Vec<&'static str> = SIGNS
        .into_iter()
        .filter(|sign| table.settings.contains_key(sign))
        .collect();
    let [sign] = signs[..] else {
        let setting = Setting {
            raw: match signs.last().and_then(|sign| table.settings.get(sign)) {
                Some(setting) => setting.raw.clone(),
                None => Raw::Other("nothing"),
            },
            origin: table.origin.clone(),
        };
        let one_of = "exactly one of marker, pointer, removed, next, quiet_seconds";
        return Err(setting.bad("commit.trigger", one_of));
    };
    let when = match sign {
        "commit.trigger.marker" => When::Marker(from_table(table, sign, None, path_pattern)?.value),
        "commit.trigger.pointer" => When::Pointer {
            file: from_table(table, sign, None, |raw| read(raw, pointer_name))?.value,
            names: from_table(
                table,
                "commit.trigger.names",
                Some(text("{content}")),
                |raw| read(raw, NameTemplate::new),
            )?
            .value,
        },
        "commit.trigger.removed" => {
            When::Removed(from_table(table, sign, None, |raw| read(raw, RemovedMarker::new))?.value)
        }
        "commit.trigger.next" => {
            from_table(table, sign, None, |raw| match value::flag(raw)? {
                true => Ok(()),
                false => Err("true, or another sign".into()),
            })?;
            When::Next
        }
        _ => When::Quiet {
            seconds: from_table(table, sign, None, value::interval)?.value,
        },
    };
    for (key, fits) in [
        ("commit.trigger.names", matches!(when, When::Pointer { .. })),
        (
            "commit.trigger.settle_seconds",
            !matches!(when, When::Quiet { .. }),
        ),
    ] {
        if let (Some(setting), false) = (table.settings.get(key), fits) {
            let word = sign.rsplit('.').next().unwrap_or(sign);
            return Err(setting.bad(key, format!("no such key beside {word}")));
        }
    }
    let settle_seconds = match when {
        When::Quiet { .. } => 0,
        _ => {
            let default = Raw::Integer(i64::try_from(settle_seconds).unwrap_or(i64::MAX));
            let key = "commit.trigger.settle_seconds";
            from_table(table, key, Some(default), value::count)?.value
        }
    };
    Ok(Trigger {
        pattern,
        when,
        settle_seconds,
        tier: Tier::Configured,
    })
}

fn read<T>(raw: &Raw, make: fn(&str) -> Result<T, PatternError>) -> Result<T, String> {
    make(&value::text(raw)?).map_err(|error| error.reason)
}

fn path_pattern(raw: &Raw) -> Result<PathPattern, String> {
    read(raw, PathPattern::new).map_err(|reason| format!("a path in the dataset: {reason}"))
}

/// A list of profiles; from the environment, separated by commas.
fn profiles(raw: &Raw) -> Result<Vec<&'static Profile>, String> {
    let names = match raw {
        Raw::List(items) => items.iter().map(value::text).collect::<Result<_, _>>()?,
        Raw::Text(words) => words
            .split(',')
            .map(|word| word.trim().to_owned())
            .collect::<Vec<_>>(),
        _ => return Err("a list of profiles such as [\"orbax\"]".into()),
    };
    names.iter().map(|name| profile(name)).collect()
}

fn profile(name: &str) -> Result<&'static Profile, String> {
    let known = || PROFILES.iter().map(|profile| profile.name);
    PROFILES
        .iter()
        .find(|profile| profile.name == name)
        .ok_or_else(|| {
            let all: Vec<&str> = known().collect();
            let nearest = nearest(name, known()).unwrap_or_default();
            format!(
                "profiles among {}; the nearest to {name:?} is {nearest:?}",
                all.join(", ")
            )
        })
}
