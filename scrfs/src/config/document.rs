//! A configuration file as settings with their lines.
//!
//! Here is the list of all keys, with the variables of the environment that stand for them.
//! Invariant: what comes out has only keys of that list; everything else is refused with file,
//! line and the nearest valid key. Values are not judged here, only their TOML types.

use crate::config::value::{ConfigError, Origin, Raw, Setting};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

/// A key and SCR's variable for it; the other variable is `SCRFS_` and the key in capitals.
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) scr: Option<&'static str>,
}

const fn key(path: &'static str, scr: &'static str) -> Key {
    Key {
        path,
        scr: Some(scr),
    }
}

const fn own(path: &'static str) -> Key {
    Key { path, scr: None }
}

/// Keys that exist once, and those of `[[store]]`, which the environment can set for all stores.
pub(super) const KEYS: [Key; 35] = [
    key("prefix", "SCR_PREFIX"),
    key("job", "SCR_JOB_ID"),
    key("store.path", "SCR_CACHE_BASE"),
    own("store.capacity"),
    key("store.count", "SCR_CACHE_SIZE"),
    key("redundancy.scheme", "SCR_COPY_TYPE"),
    key("redundancy.set_size", "SCR_SET_SIZE"),
    key("redundancy.failures", "SCR_SET_FAILURES"),
    key("redundancy.group", "SCR_GROUP"),
    own("redundancy.chunk"),
    own("redundancy.ahead"),
    own("commit.wait"),
    own("commit.grace_seconds"),
    own("commit.settle_seconds"),
    own("commit.quiet_seconds"),
    own("commit.temporary"),
    own("commit.profiles"),
    key("flush.every", "SCR_FLUSH"),
    key("flush.width", "SCR_FLUSH_WIDTH"),
    own("flush.bandwidth"),
    key("flush.keep", "SCR_PREFIX_SIZE"),
    own("flush.backlog"),
    key("restart.fetch", "SCR_FETCH"),
    key("restart.current", "SCR_CURRENT"),
    own("restart.rebuild_first"),
    key("restart.bypass", "SCR_FETCH_BYPASS"),
    key("advice.interval", "SCR_CHECKPOINT_INTERVAL"),
    key("advice.seconds", "SCR_CHECKPOINT_SECONDS"),
    key("advice.overhead", "SCR_CHECKPOINT_OVERHEAD"),
    own("advice.mtbf"),
    own("log.events"),
    own("log.syslog"),
    // Tables of files only.
    own("dataset.match"),
    own("dataset.class"),
    own("groups"),
];

/// Keys of `[[checkpoint]]`, files only.
const CHECKPOINT_KEYS: [&str; 7] = [
    "checkpoint.interval",
    "checkpoint.output",
    "checkpoint.scheme",
    "checkpoint.store",
    "checkpoint.set_size",
    "checkpoint.failures",
    "checkpoint.group",
];

/// Keys of `[[commit.trigger]]`, files only.
const TRIGGER_KEYS: [&str; 8] = [
    "commit.trigger.match",
    "commit.trigger.marker",
    "commit.trigger.pointer",
    "commit.trigger.names",
    "commit.trigger.removed",
    "commit.trigger.next",
    "commit.trigger.quiet_seconds",
    "commit.trigger.settle_seconds",
];

pub(super) fn all_keys() -> impl Iterator<Item = &'static str> {
    let single = KEYS.iter().map(|key| key.path);
    single.chain(CHECKPOINT_KEYS).chain(TRIGGER_KEYS)
}

/// The settings of one `[[...]]` by their keys, and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) origin: Origin,
    pub(super) settings: BTreeMap<&'static str, Setting>,
}

/// One file.
#[derive(Clone, Debug, Default)]
pub(super) struct Document {
    /// Keys that exist once.
    pub(super) settings: BTreeMap<&'static str, Setting>,
    /// `store`, `checkpoint`, `dataset` and `commit.trigger`.
    pub(super) tables: BTreeMap<&'static str, Vec<Table>>,
    /// Kind, name, host list.
    pub(super) groups: BTreeMap<String, BTreeMap<String, Setting>>,
}

impl Document {
    /// Reads `text`; `path` is for messages.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let reader = Reader::new(path, text);
        let table = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
            origin: reader.origin(&e.span().unwrap_or(0..0)),
            message: e.message().to_owned(),
        })?;
        let mut document = Self::default();
        for (name, value) in table.get_ref() {
            document.section(&reader, name, value)?;
        }
        Ok(document)
    }

    fn section(
        &mut self,
        reader: &Reader<'_>,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        match name.get_ref().as_ref() {
            "prefix" | "job" => self.settings.extend([reader.setting("", name, value)?]),
            section @ ("redundancy" | "commit" | "flush" | "restart" | "advice" | "log") => {
                for (key, value) in reader.table(section, value)? {
                    if (section, key.get_ref().as_ref()) == ("commit", "trigger") {
                        self.add_tables(reader, "commit.trigger", value)?;
                        continue;
                    }
                    self.settings.extend([reader.setting(section, key, value)?]);
                }
            }
            "store" => self.add_tables(reader, "store", value)?,
            "checkpoint" => self.add_tables(reader, "checkpoint", value)?,
            "dataset" => self.add_tables(reader, "dataset", value)?,
            "groups" => {
                for (kind, groups) in reader.table("groups", value)? {
                    let kind = kind.get_ref().to_string();
                    let mut named = BTreeMap::new();
                    for (name, hosts) in reader.table(&format!("groups.{kind}"), groups)? {
                        named.insert(name.get_ref().to_string(), reader.value(hosts));
                    }
                    self.groups.insert(kind, named);
                }
            }
            _ => return Err(reader.unknown("", name)),
        }
        Ok(())
    }

    fn add_tables(
        &mut self,
        reader: &Reader<'_>,
        section: &'static str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let Some(array) = value.get_ref().as_array() else {
            let expected = format!("a list of tables, each headed [[{section}]]");
            return Err(reader.value(value).bad(section, expected));
        };
        let mut tables = Vec::new();
        for item in array {
            let mut settings = BTreeMap::new();
            for (key, value) in reader.table(section, item)? {
                settings.extend([reader.setting(section, key, value)?]);
            }
            tables.push(Table {
                origin: reader.origin(&item.span()),
                settings,
            });
        }
        self.tables.insert(section, tables);
        Ok(())
    }
}

/// What is needed to tell lines.
struct Reader<'a> {
    path: &'a Path,
    /// Offsets at which lines after the first begin.
    lines: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            path,
            lines: breaks.map(|(at, _)| at + 1).collect(),
        }
    }

    fn origin(&self, span: &Range<usize>) -> Origin {
        let line = self.lines.partition_point(|&begin| begin <= span.start) + 1;
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Setting {
        Setting {
            raw: raw(value.get_ref()),
            origin: self.origin(&value.span()),
        }
    }

    fn table<'v, 'i>(
        &self,
        key: &str,
        value: &'v Spanned<DeValue<'i>>,
    ) -> Result<&'v DeTable<'i>, ConfigError> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.value(value).bad(key, "a table"))
    }

    fn setting(
        &self,
        section: &str,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(&'static str, Setting), ConfigError> {
        let path = join(section, name.get_ref());
        match all_keys().find(|key| *key == path) {
            Some(key) => Ok((key, self.value(value))),
            None => Err(self.unknown(section, name)),
        }
    }

    fn unknown(&self, section: &str, name: &Spanned<DeString<'_>>) -> ConfigError {
        unknown_key(self.origin(&name.span()), join(section, name.get_ref()))
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("integer that is too large"), Raw::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(Raw::Other("float"), Raw::Float),
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Array(items) => list(items),
        DeValue::Datetime(_) => Raw::Other("datetime"),
        DeValue::Table(_) => Raw::Other("table"),
    }
}

/// Nested lists are no value of any key: they are not followed.
fn list(items: &DeArray<'_>) -> Raw {
    let item = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::Array(_) => Raw::Other("array"),
        other => raw(other),
    };
    Raw::List(items.iter().map(item).collect())
}

/// The error for a key that does not exist.
pub(super) fn unknown_key(origin: Origin, key: String) -> ConfigError {
    let nearest = nearest_key(&key).to_owned();
    ConfigError::UnknownKey {
        origin,
        key,
        nearest,
    }
}

/// The key most like `key`: in full, or its last word alone, for keys in the wrong table.
fn nearest_key(key: &str) -> &'static str {
    fn last(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    let distance = |known: &&'static str| {
        let elsewhere = edit_distance(last(key), last(known)) + 1;
        let section = known
            .split_once('.')
            .map_or(usize::MAX, |(s, _)| edit_distance(key, s));
        edit_distance(key, known).min(elsewhere).min(section)
    };
    all_keys().min_by_key(distance).unwrap_or("prefix")
}

/// The word most like `typed`.
pub(super) fn nearest(
    typed: &str,
    words: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    words.min_by_key(|word| edit_distance(typed, word))
}

/// Insertions, deletions and substitutions from `a` to `b`; of long texts, of their beginning.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }

    #[test]
    fn the_nearest_key_is_the_one_meant() {
        for (typed, meant) in [
            ("redundancy.setsize", "redundancy.set_size"),
            ("set_size", "redundancy.set_size"),
            ("flush.widht", "flush.width"),
            ("redundnacy.scheme", "redundancy.scheme"),
            ("checkpoint.intervall", "checkpoint.interval"),
            ("perfix", "prefix"),
        ] {
            assert_eq!(nearest_key(typed), meant, "{typed}");
        }
    }
}
