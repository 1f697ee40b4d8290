//! `[[store]]`: the cache directories.
//!
//! Paths of the command line or the environment replace the list of the files, but a path that a
//! file describes keeps its description. Devices are not looked at.

use super::{Found, Loader, from_table, parse, text};
use crate::config::StoreConfig;
use crate::config::document::Table;
use crate::config::value::{self, ConfigError, Origin, Raw, Read, Setting};
use std::path::PathBuf;

impl Loader<'_> {
    /// Also the tables that are overridden must make sense.
    fn check_all_stores(&self) -> Result<(), ConfigError> {
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

    pub(super) fn stores(&mut self) -> Result<Vec<StoreConfig>, ConfigError> {
        self.check_all_stores()?;
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

    pub(super) fn store_path(&self, key: &str, setting: &Setting) -> Result<PathBuf, ConfigError> {
        let given = parse(key, setting, value::path)?;
        if given == "tmpfs" {
            Ok(given.into())
        } else {
            self.path(key, setting, &given)
        }
    }

    pub(super) fn add_store(
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
            key,
            value: parse(key, &setting, read)?,
            setting,
        })
    }
}
