//! From all sources to one configuration: precedence, defaults, and what must fit together.

use crate::config::document::{Document, KEYS, Table, unknown_key};
use crate::config::value::{self, ConfigError, Origin, Raw, Read, SchemeName, Setting};
use crate::config::{
    AdviceConfig, CheckpointConfig, CommitConfig, Config, DatasetRule, FlushConfig, Known,
    LogConfig, Pattern, Provenance, RedundancyConfig, RestartConfig, Sources, StoreConfig,
    expand_hostlist,
};
use crate::redundancy::Scheme;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

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

/// Where resource managers leave the job's id.
const JOB_VARIABLES: [&str; 4] = ["SLURM_JOB_ID", "FLUX_JOB_ID", "PBS_JOBID", "LSB_JOBID"];

/// The largest `set_size` of Reed-Solomon: a set may become nearly twice as large when nodes are
/// divided evenly, and a stripe can have 256 members.
const RS_SET_SIZE_MAX: u32 = 128;

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
struct Found<T> {
    value: T,
    setting: Setting,
}

impl Loader<'_> {
    fn config(&mut self) -> Result<Config, ConfigError> {
        let prefix = self.prefix()?;
        let job = self.job()?;
        let groups = self.groups()?;
        let mut store = self.stores()?;
        let (redundancy, scheme) = self.redundancy(&groups)?;
        let checkpoint = self.checkpoints(&redundancy, &scheme, &groups, &mut store)?;
        let commit = CommitConfig {
            wait: self.get("commit.wait", text("sealed"), value::wait)?,
            grace_seconds: self.get("commit.grace_seconds", Raw::Integer(30), value::count)?,
            temporary: self.temporary()?,
        };
        let dataset = self.datasets()?;
        let flush = FlushConfig {
            every: self.get("flush.every", Raw::Integer(1), value::count)?,
            width: self.get("flush.width", Raw::Integer(256), value::positive)?,
            bandwidth: self.get("flush.bandwidth", text("unlimited"), value::bandwidth)?,
            keep: self.get("flush.keep", Raw::Integer(0), value::count)?,
        };
        let restart = RestartConfig {
            fetch: self.get("restart.fetch", Raw::Bool(true), value::flag)?,
            current: self.get("restart.current", text(""), value::text)?,
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
    fn find<T>(&self, key: &str, default: Raw, read: Read<T>) -> Result<Found<T>, ConfigError> {
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
            first.get_or_insert(Found { value, setting });
        }
        Ok(first.expect("the default is always among the settings"))
    }

    fn get<T: Display>(
        &mut self,
        key: &str,
        default: Raw,
        read: Read<T>,
    ) -> Result<T, ConfigError> {
        let Found { value, setting } = self.find(key, default, read)?;
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
        if path.is_absolute() {
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
                value = "default".into();
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

    /// Also the tables that are overridden must make sense.
    fn check_overridden(&self) -> Result<(), ConfigError> {
        for table in self
            .files
            .iter()
            .filter_map(|file| file.tables.get("store"))
            .flatten()
        {
            from_table(table, "store.path", Some(text("/")), value::path)?;
            from_table(table, "store.capacity", Some(text("50%")), value::capacity)?;
            from_table(table, "store.count", Some(Raw::Integer(2)), value::positive)?;
        }
        Ok(())
    }

    fn stores(&mut self) -> Result<Vec<StoreConfig>, ConfigError> {
        self.check_overridden()?;
        let tables = self.tables("store");
        let mut wanted: Vec<(Setting, Option<&Table>)> = Vec::new();
        let spoken = self.spoken("store.path");
        let on_command_line = |setting: &&Setting| setting.origin == Origin::CommandLine;
        let from_cli: Vec<&Setting> = spoken.iter().filter(on_command_line).collect();
        if !from_cli.is_empty() {
            // `spoken` has the last option first, for keys of which the last one wins.
            wanted.extend(
                from_cli
                    .into_iter()
                    .rev()
                    .map(|setting| (setting.clone(), None)),
            );
        } else if let Some(setting) = spoken.first() {
            let paths = parse("store.path", setting, value::path)?;
            wanted.extend(
                paths
                    .split(':')
                    .filter(|path| !path.is_empty())
                    .map(|path| {
                        (
                            Setting {
                                raw: text(path),
                                origin: setting.origin.clone(),
                            },
                            None,
                        )
                    }),
            );
        }
        if wanted.is_empty() {
            for table in &tables {
                let path = from_table(table, "store.path", None, value::path)?;
                wanted.push((path.setting, Some(table)));
            }
        }
        if wanted.is_empty() {
            wanted.push((
                Setting {
                    raw: text("/dev/shm"),
                    origin: Origin::Default,
                },
                None,
            ));
        }
        let mut stores = Vec::new();
        for (setting, table) in wanted {
            let path = self.store_path("store.path", &setting)?;
            // A path from elsewhere may be one that a file describes.
            let table = table.or_else(|| {
                tables.iter().find(|table| {
                    let described = table.settings.get("store.path");
                    described
                        .is_some_and(|s| self.store_path("store.path", s).is_ok_and(|p| p == path))
                })
            });
            self.add_store(&mut stores, path, &setting, table)?;
        }
        Ok(stores)
    }

    fn store_path(&self, key: &str, setting: &Setting) -> Result<PathBuf, ConfigError> {
        let given = parse(key, setting, value::path)?;
        if given == "tmpfs" {
            Ok(given.into())
        } else {
            self.path(key, setting, &given)
        }
    }

    fn add_store(
        &mut self,
        stores: &mut Vec<StoreConfig>,
        path: PathBuf,
        setting: &Setting,
        table: Option<&Table>,
    ) -> Result<(), ConfigError> {
        if stores.iter().any(|store| store.path == path) {
            return Err(setting.bad("store.path", "a path that no other store has"));
        }
        let index = stores.len();
        self.note(
            format!("store[{index}].path"),
            path.display(),
            &setting.origin,
        );
        let capacity = self.store_value("store.capacity", table, text("50%"), value::capacity)?;
        self.note(
            format!("store[{index}].capacity"),
            capacity.value,
            &capacity.setting.origin,
        );
        let count = self.store_value("store.count", table, Raw::Integer(2), value::positive)?;
        self.note(
            format!("store[{index}].count"),
            count.value,
            &count.setting.origin,
        );
        stores.push(StoreConfig {
            path,
            capacity: capacity.value,
            count: count.value,
        });
        Ok(())
    }

    /// A value of one store: from the environment for all of them, else from its table.
    fn store_value<T>(
        &self,
        key: &'static str,
        table: Option<&Table>,
        default: Raw,
        read: Read<T>,
    ) -> Result<Found<T>, ConfigError> {
        let described = table.and_then(|table| table.settings.get(key).cloned());
        let first = self.spoken(key).into_iter().chain(described).next();
        let setting = first.unwrap_or(Setting {
            raw: default,
            origin: Origin::Default,
        });
        Ok(Found {
            value: parse(key, &setting, read)?,
            setting,
        })
    }

    fn redundancy(&mut self, groups: &Groups) -> Result<(RedundancyConfig, Base), ConfigError> {
        let name = self.find("redundancy.scheme", text("xor"), value::scheme)?;
        let set_size = self.find("redundancy.set_size", Raw::Integer(8), value::set_size)?;
        let failures = self.find("redundancy.failures", Raw::Integer(2), value::failures)?;
        let group = self.find("redundancy.group", text("node"), value::text)?;
        let chunk = self.find("redundancy.chunk", text("1MiB"), value::chunk)?;
        let chosen = Chosen {
            key: "redundancy",
            name,
            set_size,
            failures,
            group,
        };
        let redundancy = chosen.checked(groups, chunk.value.0)?;
        self.note(
            "redundancy.scheme",
            redundancy.scheme,
            &chosen.name.setting.origin,
        );
        self.note(
            "redundancy.set_size",
            chosen.set_size.value,
            &chosen.set_size.setting.origin,
        );
        self.note(
            "redundancy.failures",
            chosen.failures.value,
            &chosen.failures.setting.origin,
        );
        self.note(
            "redundancy.group",
            &redundancy.group,
            &chosen.group.setting.origin,
        );
        self.note("redundancy.chunk", chunk.value, &chunk.setting.origin);
        Ok((redundancy, chosen))
    }

    /// `[[checkpoint]]`. A scheme of the command line or the environment sets them aside, as
    /// `SCR_COPY_TYPE` does with SCR's descriptors.
    fn checkpoints(
        &mut self,
        base: &RedundancyConfig,
        chosen: &Base,
        groups: &Groups,
        stores: &mut Vec<StoreConfig>,
    ) -> Result<Vec<CheckpointConfig>, ConfigError> {
        let aside = !matches!(
            chosen.name.setting.origin,
            Origin::Default | Origin::File { .. }
        );
        let in_force = self.tables("checkpoint").len();
        let all: Vec<Table> = self
            .files
            .iter()
            .filter_map(|file| file.tables.get("checkpoint"))
            .flatten()
            .cloned()
            .collect();
        let mut checkpoints = Vec::new();
        for (index, table) in all.iter().enumerate() {
            let interval = from_table(
                table,
                "checkpoint.interval",
                Some(Raw::Integer(1)),
                value::interval,
            )?;
            let or = |raw: &Setting| Some(raw.raw.clone());
            let own = Chosen {
                key: "checkpoint",
                name: from_table(
                    table,
                    "checkpoint.scheme",
                    or(&chosen.name.setting),
                    value::scheme,
                )?,
                set_size: from_table(
                    table,
                    "checkpoint.set_size",
                    or(&chosen.set_size.setting),
                    value::set_size,
                )?,
                failures: from_table(
                    table,
                    "checkpoint.failures",
                    or(&chosen.failures.setting),
                    value::failures,
                )?,
                group: from_table(
                    table,
                    "checkpoint.group",
                    or(&chosen.group.setting),
                    value::text,
                )?,
            };
            let redundancy = own.checked(groups, base.chunk_bytes)?;
            let store = table.settings.get("checkpoint.store");
            if let Some(setting) = store {
                parse("checkpoint.store", setting, value::path)?;
            }
            if aside || index >= in_force {
                continue;
            }
            let store = match store {
                Some(setting) => {
                    let path = self.store_path("checkpoint.store", setting)?;
                    if !stores.iter().any(|known| known.path == path) {
                        self.add_store(stores, path.clone(), setting, None)?;
                    }
                    path
                }
                None => stores
                    .first()
                    .map(|store| store.path.clone())
                    .unwrap_or_default(),
            };
            let value = format!(
                "{} of set_size {}, failures {}, group {}, every {} on {}",
                redundancy.scheme,
                redundancy.set_size,
                redundancy.scheme.tolerates(),
                redundancy.group,
                interval.value,
                store.display()
            );
            self.note(format!("checkpoint[{index}]"), value, &table.origin);
            checkpoints.push(CheckpointConfig {
                interval: interval.value,
                redundancy,
                store,
            });
        }
        Ok(checkpoints)
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

    fn groups(&mut self) -> Result<Groups, ConfigError> {
        let mut all = Groups::new();
        let mut notes = Vec::new();
        for file in &self.files {
            for (kind, named) in &file.groups {
                let mut groups = BTreeMap::new();
                let mut owner: BTreeMap<String, &str> = BTreeMap::new();
                for (name, setting) in named {
                    let key = format!("groups.{kind}.{name}");
                    if kind == "node" {
                        return Err(
                            setting.bad(&key, "another kind: \"node\" is each node by itself")
                        );
                    }
                    let hosts = parse(&key, setting, hosts)?;
                    for host in &hosts {
                        if let Some(other) = owner.insert(host.clone(), name) {
                            let expected =
                                format!("{host} in one {kind} only, it is in {other} too");
                            return Err(setting.bad(&key, expected));
                        }
                    }
                    if !all.contains_key(kind) {
                        notes.push((key, setting.clone()));
                    }
                    groups.insert(name.clone(), hosts);
                }
                all.entry(kind.clone()).or_insert(groups);
            }
        }
        for (key, setting) in notes {
            self.note(key, &setting.raw, &setting.origin);
        }
        Ok(all)
    }
}

type Groups = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The parts of a redundancy, with where they came from.
struct Chosen {
    /// The section, for messages.
    key: &'static str,
    name: Found<SchemeName>,
    set_size: Found<u32>,
    failures: Found<u8>,
    group: Found<String>,
}

/// That of `[redundancy]`, from which others inherit.
type Base = Chosen;

impl Chosen {
    /// The redundancy, if its parts fit together.
    fn checked(&self, groups: &Groups, chunk_bytes: u64) -> Result<RedundancyConfig, ConfigError> {
        let (set_size, failures) = (self.set_size.value, self.failures.value);
        let scheme = match self.name.value {
            SchemeName::Single => Scheme::Single,
            SchemeName::Partner => Scheme::Partner { copies: failures },
            SchemeName::Xor => Scheme::Xor,
            SchemeName::Rs => Scheme::ReedSolomon { parities: failures },
        };
        let key = |name: &str| format!("{}.{name}", self.key);
        if scheme.tolerates() >= set_size {
            // Blame the value that somebody gave.
            let failures_given = self.failures.setting.origin != Origin::Default;
            return Err(if failures_given {
                let expected = format!("fewer failures than the set_size of {set_size}");
                self.failures.setting.bad(&key("failures"), expected)
            } else {
                let expected = format!("a set of more than the {failures} failures to survive");
                self.set_size.setting.bad(&key("set_size"), expected)
            });
        }
        if matches!(scheme, Scheme::ReedSolomon { .. }) && set_size > RS_SET_SIZE_MAX {
            let expected = format!("at most {RS_SET_SIZE_MAX} with scheme rs");
            return Err(self.set_size.setting.bad(&key("set_size"), expected));
        }
        let given = &self.group.value;
        let group = if groups.contains_key(given) {
            given.clone()
        } else if given.eq_ignore_ascii_case("node") {
            "node".into()
        } else {
            let kinds: Vec<&str> = std::iter::once("node")
                .chain(groups.keys().map(String::as_str))
                .collect();
            let expected = format!("one of {}, or a table for it in [groups]", kinds.join(", "));
            return Err(self.group.setting.bad(&key("group"), expected));
        };
        Ok(RedundancyConfig {
            scheme,
            set_size,
            group,
            chunk_bytes,
        })
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

fn hosts(raw: &Raw) -> Result<Vec<String>, String> {
    let list = value::text(raw).map_err(|_| "a host list such as \"node[0-15]\"".to_owned())?;
    expand_hostlist(&list).map_err(|e| format!("a host list such as \"node[0-15]\": {e}"))
}
