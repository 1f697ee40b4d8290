//! From all sources to one configuration: precedence and defaults.
//!
//! Every candidate of a key is read, the first is taken and its origin noted. What has structure
//! of its own is in `stores`, `redundancy` and `commit`.

mod commit;
mod redundancy;
mod stores;

use crate::config::document::{Document, KEYS, Table, unknown_key};
use crate::config::value::{self, ConfigError, Origin, Raw, Read, Setting};
use crate::config::{
    AdviceConfig, Config, DatasetRule, FlushConfig, Known, LogConfig, Pattern, Provenance,
    RestartConfig, Sources,
};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Where resource managers leave the job's id: what a configuration depends on beyond `SCR_` and `SCRFS_`. Each
/// step of a job of Flux has one of its own; that of the job goes before it.
pub const JOB_VARIABLES: [&str; 5] = [
    "SLURM_JOB_ID",
    "FLUX_ENCLOSING_ID",
    "FLUX_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn user_file(
    option: Option<&Path>,
    prefix: Option<&Path>,
    env: Env<'_>,
) -> (PathBuf, bool) {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(file) = option {
        return (file.to_owned(), true);
    }
    if let Some(file) = set("SCR_CONF_FILE") {
        let expanded = value::expand_variables(&file, env).unwrap_or(file);
        return (PathBuf::from(expanded), true);
    }
    let prefix = prefix.map(Path::to_owned).or_else(|| {
        let text = set("SCRFS_PREFIX").or_else(|| set("SCR_PREFIX"));
        let expanded = text.map(|text| value::expand_variables(&text, env).unwrap_or(text));
        expanded.or_else(|| set("PWD")).map(PathBuf::from)
    });
    (prefix.unwrap_or_default().join(".scrfs.toml"), false)
}

pub(super) fn load(sources: &Sources<'_>) -> Result<(Config, Provenance), ConfigError> {
    let read = |file: &Option<(PathBuf, String)>| match file {
        Some((path, text)) => Document::parse(path, text),
        None => Ok(Document::default()),
    };
    let files = [read(&sources.user)?, read(&sources.system)?];
    for (key, _) in &sources.cli {
        let single = !key.starts_with("dataset.") && key != "groups";
        if !(single && KEYS.iter().any(|known| known.path == key)) {
            return Err(unknown_key(Origin::CommandLine, key.clone()));
        }
    }
    let provenance = Provenance::default();
    let mut loader = Loader {
        env: sources.env,
        cli: &sources.cli,
        files,
        provenance,
    };
    let config = loader.config()?;
    Ok((config, loader.provenance))
}

struct Loader<'a> {
    env: Env<'a>,
    cli: &'a [(String, String)],
    /// The user's, the system's.
    files: [Document; 2],
    provenance: Provenance,
}

/// A value and where it came from.
#[derive(Clone)]
struct Found<T> {
    /// The key under which it stands there.
    key: &'static str,
    value: T,
    setting: Setting,
}

impl<T> Found<T> {
    fn bad(&self, expected: String) -> ConfigError {
        self.setting.bad(self.key, expected)
    }
}

impl Loader<'_> {
    fn config(&mut self) -> Result<Config, ConfigError> {
        let prefix = self.prefix()?;
        let job = self.job()?;
        let groups = self.groups()?;
        let mut store = self.stores()?;
        let (redundancy, chosen) = self.redundancy(&groups)?;
        let checkpoint = self.checkpoints(&redundancy, &chosen, &groups, &mut store)?;
        let ahead_percent = self.ahead()?;
        let commit = self.commit()?;
        let dataset = self.datasets()?;
        let flush = FlushConfig {
            every: self.get("flush.every", Raw::Integer(1), value::count)?,
            width: self.get("flush.width", Raw::Integer(256), value::positive)?,
            bandwidth: self.get("flush.bandwidth", text("unlimited"), value::bandwidth)?,
            keep: self.get("flush.keep", Raw::Integer(0), value::count)?,
            backlog: self.get("flush.backlog", Raw::Integer(2), value::count)?,
        };
        let bypass = self.find("restart.bypass", Raw::Bool(false), value::flag)?;
        if bypass.value && super::is_object_url(&prefix) {
            return Err(bypass.bad("false, as nothing is read in place in an object store".into()));
        }
        self.note("restart.bypass", bypass.value, &bypass.setting.origin);
        let restart = RestartConfig {
            fetch: self.get("restart.fetch", Raw::Bool(true), value::flag)?,
            current: self.get("restart.current", text(""), value::text)?,
            rebuild_first: self.get("restart.rebuild_first", Raw::Bool(false), value::flag)?,
            bypass: bypass.value,
        };
        let advice = AdviceConfig {
            interval: self.get("advice.interval", Raw::Integer(0), value::count)?,
            seconds: self.get("advice.seconds", Raw::Integer(0), value::count)?,
            overhead_percent: self.get("advice.overhead", Raw::Float(0.0), value::percent)?,
            mtbf: self.get("advice.mtbf", text("auto"), value::mtbf)?,
        };
        let log = LogConfig {
            events: self.get("log.events", Raw::Bool(true), value::flag)?,
            syslog: self.get("log.syslog", Raw::Bool(false), value::flag)?,
        };
        Ok(Config {
            prefix,
            job,
            store,
            redundancy,
            ahead_percent,
            checkpoint,
            commit,
            dataset,
            flush,
            restart,
            advice,
            groups,
            log,
        })
    }

    /// What command line and environment say about `key`, first things first.
    fn spoken(&self, key: &str) -> Vec<Setting> {
        let cli = self
            .cli
            .iter()
            .rev()
            .filter(|(name, _)| name == key)
            .map(|(_, value)| Setting {
                raw: Raw::Text(value.clone()),
                origin: Origin::CommandLine,
            });
        let own = format!("SCRFS_{}", key.to_ascii_uppercase().replace('.', "_"));
        let scr = KEYS
            .iter()
            .find(|known| known.path == key)
            .and_then(|known| known.scr);
        let names = std::iter::once(own).chain(scr.map(str::to_owned));
        let env = names.filter_map(|name| {
            let raw = Raw::Text((self.env)(&name).filter(|value| !value.is_empty())?);
            Some(Setting {
                raw,
                origin: Origin::Environment(name),
            })
        });
        // SCR's word for "as the descriptors in the files say".
        let to_files = |setting: &Setting| {
            key == "redundancy.scheme"
                && matches!(setting.origin, Origin::Environment(_))
                && matches!(&setting.raw, Raw::Text(t) if t.eq_ignore_ascii_case("file"))
        };
        cli.chain(env)
            .filter(|setting| !to_files(setting))
            .collect()
    }

    /// The first value of `key`, after all of them were checked.
    fn find<T>(
        &self,
        key: &'static str,
        default: Raw,
        read: Read<T>,
    ) -> Result<Found<T>, ConfigError> {
        let mut settings = self.spoken(key);
        settings.extend(
            self.files
                .iter()
                .filter_map(|file| file.settings.get(key).cloned()),
        );
        settings.push(Setting {
            raw: default,
            origin: Origin::Default,
        });
        let mut first = None;
        for setting in settings {
            let value = parse(key, &setting, read)?;
            first.get_or_insert(Found {
                key,
                value,
                setting,
            });
        }
        Ok(first.expect("the default is always among the settings"))
    }

    fn get<T: Display>(
        &mut self,
        key: &'static str,
        default: Raw,
        read: Read<T>,
    ) -> Result<T, ConfigError> {
        let Found { value, setting, .. } = self.find(key, default, read)?;
        self.note(key, &value, &setting.origin);
        Ok(value)
    }

    fn note(&mut self, key: impl Into<String>, value: impl Display, origin: &Origin) {
        let (key, value, origin) = (key.into(), value.to_string(), origin.clone());
        self.provenance.entries.push(Known { key, value, origin });
    }

    /// Expands variables and makes the path absolute.
    fn path(&self, key: &str, setting: &Setting, text: &str) -> Result<PathBuf, ConfigError> {
        let expanded = value::expand_variables(text, self.env)
            .map_err(|expected| setting.bad(key, expected))?;
        if expanded.is_empty() || expanded.contains('\0') {
            return Err(setting.bad(key, "a path"));
        }
        let path = PathBuf::from(expanded);
        if path.is_absolute() || key == "prefix" && super::is_object_url(&path) {
            return Ok(path);
        }
        let here = (self.env)("PWD")
            .map(PathBuf::from)
            .filter(|here| here.is_absolute());
        here.map(|here| here.join(path))
            .ok_or_else(|| setting.bad(key, "an absolute path"))
    }

    fn prefix(&mut self) -> Result<PathBuf, ConfigError> {
        let found = self.find("prefix", text("$PWD"), value::path)?;
        let path = self.path("prefix", &found.setting, &found.value)?;
        self.note("prefix", path.display(), &found.setting.origin);
        Ok(path)
    }

    fn job(&mut self) -> Result<String, ConfigError> {
        let Found {
            mut value,
            mut setting,
            ..
        } = self.find("job", text("auto"), value::text)?;
        if value == "auto" {
            let set = |name: &&str| (self.env)(name).filter(|id| !id.is_empty());
            let detected = JOB_VARIABLES
                .iter()
                .find_map(|name| Some((name, set(name)?)));
            if let Some((name, id)) = detected {
                setting = Setting {
                    raw: Raw::Text(id.clone()),
                    origin: Origin::Environment((*name).to_owned()),
                };
                value = id;
            } else {
                value = super::DEFAULT_JOB.into();
            }
        }
        let component = !matches!(value.as_str(), "" | "." | "..") && value.len() <= 255;
        if !component || value.contains(['/', '\0']) {
            return Err(setting.bad("job", "a name without slashes, at most 255 bytes"));
        }
        self.note("job", &value, &setting.origin);
        Ok(value)
    }

    /// The tables of a section in the first file that has any.
    fn tables(&self, section: &str) -> Vec<Table> {
        let mut files = self
            .files
            .iter()
            .filter_map(|file| file.tables.get(section));
        files
            .find(|tables| !tables.is_empty())
            .cloned()
            .unwrap_or_default()
    }

    fn datasets(&mut self) -> Result<Vec<DatasetRule>, ConfigError> {
        let in_force = self.tables("dataset").len();
        let files = self
            .files
            .iter()
            .filter_map(|file| file.tables.get("dataset"));
        let all: Vec<Table> = files.flatten().cloned().collect();
        let mut rules = Vec::new();
        for (index, table) in all.iter().enumerate() {
            let pattern = from_table(table, "dataset.match", None, pattern)?.value;
            let class = from_table(table, "dataset.class", None, value::class)?.value;
            if index < in_force {
                let rule = format!("{:?} is {class}", pattern.as_str());
                self.note(format!("dataset[{index}]"), rule, &table.origin);
                rules.push(DatasetRule { pattern, class });
            }
        }
        Ok(rules)
    }
}

fn text(text: &str) -> Raw {
    Raw::Text(text.to_owned())
}

fn parse<T>(
    key: &str,
    setting: &Setting,
    read: impl Fn(&Raw) -> Result<T, String>,
) -> Result<T, ConfigError> {
    read(&setting.raw).map_err(|expected| setting.bad(key, expected))
}

/// A value of a table; without default it must be there.
fn from_table<T>(
    table: &Table,
    key: &'static str,
    default: Option<Raw>,
    read: Read<T>,
) -> Result<Found<T>, ConfigError> {
    let setting = match (table.settings.get(key), default) {
        (Some(setting), _) => setting.clone(),
        (None, Some(raw)) => Setting {
            raw,
            origin: Origin::Default,
        },
        (None, None) => {
            let nothing = Setting {
                raw: Raw::Other("nothing"),
                origin: table.origin.clone(),
            };
            return Err(nothing.bad(key, "a value"));
        }
    };
    Ok(Found {
        key,
        value: parse(key, &setting, read)?,
        setting,
    })
}

fn pattern(raw: &Raw) -> Result<Pattern, String> {
    let text = value::text(raw)?;
    Pattern::new(&text).map_err(|e| format!("a pattern such as \"out.*\": {}", e.reason))
}

/// A list of patterns; from the environment, separated by commas.
fn patterns(raw: &Raw) -> Result<Vec<Pattern>, String> {
    match raw {
        Raw::List(items) => items.iter().map(pattern).collect(),
        Raw::Text(words) => words
            .split(',')
            .map(|word| pattern(&text(word.trim())))
            .collect(),
        _ => Err("a list of patterns such as [\"*.tmp\"]".into()),
    }
}
