//! `[redundancy]`, `[[checkpoint]]` and `[groups]`: who protects whom, and what must fit together.
//!
//! A `[[checkpoint]]` inherits what it does not say, with its origin, so that an error points at
//! the line to change. Which nodes exist is not known here.

use super::{Found, Loader, from_table, parse, text};
use crate::config::document::Table;
use crate::config::value::{self, ConfigError, Origin, Raw, Read, SchemeName};
use crate::config::{CheckpointConfig, RedundancyConfig, StoreConfig, expand_hostlist};
use crate::redundancy::Scheme;
use std::collections::BTreeMap;

/// The largest `set_size` of Reed-Solomon: a set may become nearly twice as large when nodes are
/// divided evenly, and a stripe can have 256 members.
const RS_SET_SIZE_MAX: u32 = 128;

/// Kind, name, nodes.
pub(super) type Groups = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The parts of a redundancy, each with where it stands.
pub(super) struct Chosen {
    /// The section they were chosen for, with its dot.
    section: &'static str,
    scheme: Found<SchemeName>,
    set_size: Found<u32>,
    failures: Found<u8>,
    group: Found<String>,
}

impl Chosen {
    /// The redundancy, if its parts fit together.
    fn checked(&self, groups: &Groups, chunk_bytes: u64) -> Result<RedundancyConfig, ConfigError> {
        let (set_size, failures) = (self.set_size.value, self.failures.value);
        let scheme = match self.scheme.value {
            SchemeName::Single => Scheme::Single,
            SchemeName::Partner => Scheme::Partner { copies: failures },
            SchemeName::Xor => Scheme::Xor,
            SchemeName::Rs => Scheme::ReedSolomon { parities: failures },
        };
        if scheme.tolerates() >= set_size {
            return Err(if self.blames_set_size() {
                let least = scheme.tolerates() + 1;
                self.set_size
                    .bad(format!("at least {least}, to survive {failures} failures"))
            } else {
                self.failures
                    .bad(format!("fewer failures than the set_size of {set_size}"))
            });
        }
        if matches!(scheme, Scheme::ReedSolomon { .. }) && set_size > RS_SET_SIZE_MAX {
            return Err(self
                .set_size
                .bad(format!("at most {RS_SET_SIZE_MAX} with scheme rs")));
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
            return Err(self.group.bad(expected));
        };
        Ok(RedundancyConfig {
            scheme,
            set_size,
            group,
            chunk_bytes,
        })
    }

    /// Of two values that do not fit, the one to change: given rather than default, and of this
    /// section rather than inherited.
    fn blames_set_size(&self) -> bool {
        let set_size_is_own = self.set_size.key.starts_with(self.section);
        let failures_is_own = self.failures.key.starts_with(self.section);
        self.failures.setting.origin == Origin::Default || set_size_is_own && !failures_is_own
    }
}

impl Loader<'_> {
    pub(super) fn redundancy(
        &mut self,
        groups: &Groups,
    ) -> Result<(RedundancyConfig, Chosen), ConfigError> {
        let scheme = self.find("redundancy.scheme", text("xor"), value::scheme)?;
        let set_size = self.find("redundancy.set_size", Raw::Integer(8), value::set_size)?;
        let failures = self.find("redundancy.failures", Raw::Integer(2), value::failures)?;
        let group = self.find("redundancy.group", text("node"), value::text)?;
        let chunk = self.find("redundancy.chunk", text("1MiB"), value::chunk)?;
        let section = "redundancy.";
        let chosen = Chosen {
            section,
            scheme,
            set_size,
            failures,
            group,
        };
        let redundancy = chosen.checked(groups, chunk.value.0)?;
        self.note(
            "redundancy.scheme",
            redundancy.scheme,
            &chosen.scheme.setting.origin,
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

    /// `redundancy.ahead`, in percent.
    pub(super) fn ahead(&mut self) -> Result<u64, ConfigError> {
        self.get("redundancy.ahead", Raw::Integer(50), value::share)
    }

    /// `[[checkpoint]]`. A scheme of the command line or the environment sets them aside, as
    /// `SCR_COPY_TYPE` does with SCR's descriptors.
    pub(super) fn checkpoints(
        &mut self,
        base: &RedundancyConfig,
        chosen: &Chosen,
        groups: &Groups,
        stores: &mut Vec<StoreConfig>,
    ) -> Result<Vec<CheckpointConfig>, ConfigError> {
        let aside = !matches!(
            chosen.scheme.setting.origin,
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
            let no = Some(Raw::Bool(false));
            let output = from_table(table, "checkpoint.output", no, value::flag)?.value;
            let one = Some(Raw::Integer(1));
            let interval = from_table(table, "checkpoint.interval", one, value::interval)?.value;
            // Reserved: without a word of checkpoints it is for none of them.
            let is_reserved = output && !table.settings.contains_key("checkpoint.interval");
            let interval = if is_reserved { 0 } else { interval };
            if output
                && checkpoints
                    .iter()
                    .any(|known: &CheckpointConfig| known.output)
            {
                let setting = from_table(table, "checkpoint.output", None, value::flag)?.setting;
                return Err(setting.bad("checkpoint.output", "true for one [[checkpoint]] only"));
            }
            let own = Chosen {
                section: "checkpoint.",
                scheme: inherit(table, "checkpoint.scheme", &chosen.scheme, value::scheme)?,
                set_size: inherit(
                    table,
                    "checkpoint.set_size",
                    &chosen.set_size,
                    value::set_size,
                )?,
                failures: inherit(
                    table,
                    "checkpoint.failures",
                    &chosen.failures,
                    value::failures,
                )?,
                group: inherit(table, "checkpoint.group", &chosen.group, value::text)?,
            };
            let store = table.settings.get("checkpoint.store");
            if let Some(setting) = store {
                parse("checkpoint.store", setting, value::path)?;
            }
            if aside || index >= in_force {
                continue;
            }
            let redundancy = own.checked(groups, base.chunk_bytes)?;
            let store = match store {
                Some(setting) => {
                    let path = self.store_path("checkpoint.store", setting)?;
                    if !stores.iter().any(|known| known.path == path) {
                        self.add_store(stores, path.clone(), setting, None)?;
                    }
                    Some(path)
                }
                None => None,
            };
            let every = match (interval, output) {
                (0, _) => "output".to_owned(),
                (interval, false) => format!("every {interval}"),
                (interval, true) => format!("every {interval} and output"),
            };
            let place = store.as_ref().map_or_else(
                || "where there is room".to_owned(),
                |path| format!("on {}", path.display()),
            );
            let value = format!(
                "{} of set_size {}, failures {}, group {}, {every} {place}",
                redundancy.scheme,
                redundancy.set_size,
                redundancy.scheme.tolerates(),
                redundancy.group,
            );
            self.note(format!("checkpoint[{index}]"), value, &table.origin);
            checkpoints.push(CheckpointConfig {
                interval,
                output,
                redundancy,
                store,
            });
        }
        Ok(checkpoints)
    }

    pub(super) fn groups(&mut self) -> Result<Groups, ConfigError> {
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

fn hosts(raw: &Raw) -> Result<Vec<String>, String> {
    let list = value::text(raw).map_err(|_| "a host list such as \"node[0-15]\"".to_owned())?;
    expand_hostlist(&list).map_err(|e| format!("a host list such as \"node[0-15]\": {e}"))
}

/// A value of a table, else that of `base` with where it stands.
fn inherit<T: Clone>(
    table: &Table,
    key: &'static str,
    base: &Found<T>,
    read: Read<T>,
) -> Result<Found<T>, ConfigError> {
    match table.settings.get(key) {
        Some(_) => from_table(table, key, None, read),
        None => Ok(base.clone()),
    }
}
