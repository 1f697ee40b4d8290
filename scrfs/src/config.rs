//! The configuration: text in, validated values out.
//!
//! Precedence: command line, environment, user file, system file, default; every value
//! remembers where it came from ([`Provenance`]). `[[store]]`, `[[checkpoint]]`, `[[dataset]]`,
//! `[[commit.trigger]]`, `commit.profiles` and `commit.temporary` are taken whole from the first of these that has any; `[groups]` is merged
//! kind by kind.
//!
//! Invariants: a [`Config`] is complete and consistent, no field means "default"; paths are
//! expanded and absolute; units are in the names. Every value given anywhere is checked, also one
//! that is overridden. No file is opened, no environment read, no job looked up here: text and
//! environment are arguments. It does not know how large a device is, nor which nodes exist.

mod document;
mod help;
mod hostlist;
mod load;
mod pattern;
mod trigger;
mod value;

pub use help::{KeyHelp, keys};
pub use hostlist::{HOST_BYTES_MAX, HOSTS_MAX, HostlistError, expand_hostlist};
pub use load::JOB_VARIABLES;
pub use pattern::{PathPattern, Pattern, PatternError};
pub use trigger::{NameTemplate, PROFILES, Profile, RemovedMarker, Tier, Trigger, When};
pub use value::{ConfigError, Origin, expand_variables, parse_seconds, parse_size};

use crate::redundancy::Scheme;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a dataset is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// One can restart from it; it may be dropped unflushed when newer ones are safe.
    Checkpoint,
    /// Somebody wants it: always flushed, never dropped before. No restart from it.
    Output,
    /// Both: restarted from, and always flushed.
    Both,
}

impl Class {
    /// Whether a restart may read it.
    #[must_use]
    pub fn is_checkpoint(self) -> bool {
        self != Self::Output
    }

    /// Whether it is always flushed.
    #[must_use]
    pub fn is_output(self) -> bool {
        self != Self::Checkpoint
    }
}

/// What `rename` waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitWait {
    /// Every node has sealed it.
    Sealed,
    /// It survives the loss of nodes.
    Protected,
    /// It is in the prefix.
    Flushed,
}

/// How much of a store may be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capacity {
    /// Percent of the device, 1..=100.
    Percent(u8),
    /// Bytes, more than 0.
    Bytes(u64),
    /// All of the device.
    Unlimited,
}

/// How fast a node may write to the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bandwidth {
    /// As fast as it goes.
    Unlimited,
    /// Bytes per second, more than 0.
    BytesPerSecond(u64),
}

/// The mean time between failures.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mtbf {
    /// Learned from the failures that were seen.
    Auto,
    /// Seconds, more than 0.
    Seconds(f64),
}

/// One cache directory, `[[store]]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreConfig {
    /// Where, absolute; or the word `tmpfs`.
    pub path: PathBuf,
    /// How much of it may be used.
    pub capacity: Capacity,
    /// Sealed datasets kept at most; at least 1.
    pub count: u32,
}

/// Whether a prefix is a path in an object store, such as `s3://bucket/path`, and no directory.
#[must_use]
pub fn is_object_url(prefix: &Path) -> bool {
    let scheme = prefix.to_str().and_then(|text| text.split_once("://"));
    scheme.is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

impl StoreConfig {
    /// Whether scrfs mounts a private tmpfs itself instead of using a directory.
    #[must_use]
    pub fn is_private_tmpfs(&self) -> bool {
        self.path == Path::new("tmpfs")
    }
}

/// `[redundancy]`, or that of one `[[checkpoint]]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RedundancyConfig {
    /// The scheme, with its copies or parities.
    pub scheme: Scheme,
    /// Members a redundancy set has at least where there are enough nodes; at least 2.
    pub set_size: u32,
    /// The kind of failure group that members of a set must not share: `node` or a key of
    /// `[groups]`.
    pub group: String,
    /// Bytes of a chunk on disk: a power of two from 4 KiB to 1 GiB.
    pub chunk_bytes: u64,
}

/// `[[checkpoint]]`: another redundancy or store for every so many-th checkpoint, or for output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckpointConfig {
    /// It applies to checkpoints whose number this divides; 0 to none.
    pub interval: u64,
    /// It applies to output, whatever its number; of one at most.
    pub output: bool,
    /// What they get; unset keys are those of `[redundancy]`.
    pub redundancy: RedundancyConfig,
    /// Where they are cached: the path of one of `Config::store`; `None`: wherever there is room.
    pub store: Option<PathBuf>,
}

/// `[commit]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitConfig {
    /// What `rename` waits for.
    pub wait: CommitWait,
    /// Seconds a rename waits for writers before it fails with EBUSY.
    pub grace_seconds: u64,
    /// Names that are not final: renaming to them commits nothing, and no trigger either.
    pub temporary: Vec<Pattern>,
    /// What proposes a commit besides a rename.
    pub triggers: Vec<Trigger>,
}

impl CommitConfig {
    /// Whether `name`, a top-level name as bytes, still looks temporary.
    #[must_use]
    pub fn is_temporary(&self, name: &[u8]) -> bool {
        self.temporary.iter().any(|pattern| pattern.matches(name))
    }

    /// The triggers of the dataset `name`: those of the first [`Tier`] that matches it; none when
    /// it looks temporary.
    pub fn triggers_of(&self, name: &[u8]) -> impl Iterator<Item = &Trigger> {
        let matching = move |trigger: &&Trigger| trigger.pattern.matches(name);
        let first = self
            .triggers
            .iter()
            .filter(matching)
            .map(|it| it.tier)
            .min();
        let first = first.filter(|_| !self.is_temporary(name));
        let all = self.triggers.iter().filter(matching);
        all.filter(move |trigger| Some(trigger.tier) == first)
    }
}

/// `[[dataset]]`: the class of datasets by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetRule {
    /// Which names.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// What they are.
    pub class: Class,
}

/// `[flush]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlushConfig {
    /// Every so many-th checkpoint is flushed; 0 none. Output always is.
    pub every: u64,
    /// Nodes writing at once; at least 1.
    pub width: u32,
    /// What each of them may take.
    pub bandwidth: Bandwidth,
    /// Checkpoints kept in the prefix; 0 all. Output is always kept.
    pub keep: u64,
    /// Checkpoints that wait for their flush at most, beside the one that is being flushed: older
    /// ones are left out. 0: however many.
    pub backlog: u64,
}

/// `[restart]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RestartConfig {
    /// Whether to fetch from the prefix when the cache has nothing.
    pub fetch: bool,
    /// The dataset to restart from; empty: the newest that is good.
    pub current: String,
    /// Whether programs wait until what is lost is rebuilt. Otherwise they read it while it is.
    pub rebuild_first: bool,
    /// Whether they are shown where a checkpoint is in the prefix, a directory, instead of having it fetched. What they
    /// read there is held against no checksum.
    pub bypass: bool,
}

/// `[advice]`: when a program that asks is told to checkpoint. All three 0: the optimum computed
/// from costs and failures.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AdviceConfig {
    /// Every so many-th question.
    pub interval: u64,
    /// So many seconds after the last.
    pub seconds: u64,
    /// As long as checkpointing takes at most so many percent of the time.
    pub overhead_percent: f64,
    /// The mean time between failures.
    pub mtbf: Mtbf,
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogConfig {
    /// JSON lines in the prefix.
    pub events: bool,
    /// The same to syslog.
    pub syslog: bool,
}

/// The job's id outside a batch system, when nobody gives one: any number of jobs may have it at once.
pub const DEFAULT_JOB: &str = "default";

/// What a job is called in a prefix. Without an id of its own it goes by the number of its `scrfs run`, where there is one.
#[must_use]
pub fn job_in_prefix(job: &str, run: Option<u64>) -> String {
    match run {
        Some(run) if job == DEFAULT_JOB => format!("{job}.{run:016x}"),
        _ => job.to_owned(),
    }
}

/// The effective configuration of one mount.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The directory on the parallel file system, absolute.
    pub prefix: PathBuf,
    /// The job's id: one path component.
    pub job: String,
    /// Cache directories, fastest first; at least one, no path twice.
    pub store: Vec<StoreConfig>,
    /// The redundancy of checkpoints that no `[[checkpoint]]` claims, and of output.
    pub redundancy: RedundancyConfig,
    /// Part of the time that encoding may take before the commit, in percent; 0: none is done then.
    pub ahead_percent: u64,
    /// Exceptions by checkpoint number.
    pub checkpoint: Vec<CheckpointConfig>,
    /// Commits.
    pub commit: CommitConfig,
    /// Classes by name, first match wins.
    pub dataset: Vec<DatasetRule>,
    /// Copies to the prefix.
    pub flush: FlushConfig,
    /// Restarts.
    pub restart: RestartConfig,
    /// Advice on intervals.
    pub advice: AdviceConfig,
    /// Failure groups beyond `node`: kind, name, nodes. A node is in at most one of a kind.
    pub groups: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// Logs.
    pub log: LogConfig,
}

/// Everything a configuration is made of.
pub struct Sources<'a> {
    /// The environment: value of a variable, if set. Empty counts as not set.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The user's file: its name for messages, and its text.
    pub user: Option<(PathBuf, String)>,
    /// The system's file.
    pub system: Option<(PathBuf, String)>,
    /// Options as keys and values, such as `("prefix", "/p/job")`. `store.path` may be repeated.
    pub cli: Vec<(String, String)>,
}

/// Where one effective value came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// The key, such as `redundancy.set_size` or `store[0].path`.
    pub key: String,
    /// The effective value as text.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where every effective value came from; displayed as `scrfs config` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// One entry a key.
    pub entries: Vec<Known>,
}

impl Provenance {
    /// What is known of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Known> {
        self.entries.iter().find(|known| known.key == key)
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Known { key, value, origin } in &self.entries {
            writeln!(f, "{:<40}# {origin}", format!("{key} = {value}"))?;
        }
        Ok(())
    }
}

/// A node that no group of the wanted kind lists.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "node {node:?} is in no group of kind {kind:?}: add it to [groups] {kind}, \
     or set redundancy.group = \"node\""
)]
pub struct UnlistedNode {
    /// The node.
    pub node: String,
    /// The kind of group.
    pub kind: String,
}

impl Config {
    /// The effective configuration, and where each value came from.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: text that is not TOML, an unknown key, or a value that makes no sense by
    /// itself or with the others; with file and line, and the nearest valid key.
    pub fn load(sources: &Sources<'_>) -> Result<(Self, Provenance), ConfigError> {
        load::load(sources)
    }

    /// The user's file: `option`, else `$SCR_CONF_FILE`, else `.scrfs.toml` in the prefix as far
    /// as option or environment tell it. True when it was named, and so must exist.
    #[must_use]
    pub fn user_file(
        option: Option<&Path>,
        prefix: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> (PathBuf, bool) {
        load::user_file(option, prefix, env)
    }

    /// The rule for a dataset: that for output, where there is one and it is output; else the
    /// `[[checkpoint]]` with the largest interval that divides its number, the first of equals.
    fn rule_for(&self, class: Class, checkpoint: Option<u64>) -> Option<&CheckpointConfig> {
        let for_output = self
            .checkpoint
            .iter()
            .find(|rule| rule.output && class.is_output());
        if for_output.is_some() {
            return for_output;
        }
        let number = checkpoint.filter(|_| class.is_checkpoint())?;
        let mut best: Option<&CheckpointConfig> = None;
        for rule in &self.checkpoint {
            let applies = number.checked_rem(rule.interval) == Some(0);
            if applies && best.is_none_or(|best| rule.interval > best.interval) {
                best = Some(rule);
            }
        }
        best
    }

    /// The redundancy of a dataset of that class and checkpoint number, if it has one.
    #[must_use]
    pub fn redundancy_for(&self, class: Class, checkpoint: Option<u64>) -> &RedundancyConfig {
        self.rule_for(class, checkpoint)
            .map_or(&self.redundancy, |rule| &rule.redundancy)
    }

    /// The store, as an index of `Config::store`, that a rule names for such a dataset.
    #[must_use]
    pub fn store_for(&self, class: Class, checkpoint: Option<u64>) -> Option<usize> {
        let path = self.rule_for(class, checkpoint)?.store.as_ref()?;
        self.store.iter().position(|store| store.path == *path)
    }

    /// The class of the dataset `name`: that of the first rule that matches, else checkpoint.
    #[must_use]
    pub fn class_of(&self, name: &[u8]) -> Class {
        let rule = self.dataset.iter().find(|rule| rule.pattern.matches(name));
        rule.map_or(Class::Checkpoint, |rule| rule.class)
    }

    /// The failure group of `node` for redundancy of `kind`: itself for `node`.
    ///
    /// # Errors
    ///
    /// [`UnlistedNode`] when `[groups]` does not say.
    pub fn failure_group(&self, kind: &str, node: &str) -> Result<String, UnlistedNode> {
        if kind == "node" {
            return Ok(node.to_owned());
        }
        self.groups
            .get(kind)
            .and_then(|groups| {
                groups
                    .iter()
                    .find(|(_, nodes)| nodes.iter().any(|n| n == node))
            })
            .map(|(name, _)| name.clone())
            .ok_or_else(|| UnlistedNode {
                node: node.to_owned(),
                kind: kind.to_owned(),
            })
    }

    /// The text of `.scr/config`: the values, and where each came from, as JSON.
    #[must_use]
    pub fn to_json(&self, provenance: &Provenance) -> serde_json::Value {
        serde_json::json!({ "config": self, "sources": provenance.entries })
    }
}

#[cfg(test)]
mod tests;
