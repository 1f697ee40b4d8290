//! The session itself: rounds of plan, copy and finish, until all that can be saved is.

use super::crew::{Crew, Task};
use crate::effects::chain;
use crate::journal::{Journal, Place, Places};
use crate::part::report;
use crate::prefix::{Cause, Prefix};
use anyhow::{Context, Result, bail, ensure};
use scrfs::bar::Bar;
use scrfs::config::{Class, LogConfig};
use scrfs::id::{DatasetKey, Epoch, Slot};
use scrfs::layout::envelope::{Kind, open, seal};
use scrfs::layout::index::IndexEntry;
use scrfs::layout::pointer::Pointers;
use scrfs::layout::record::{DatasetRecord, millis};
use scrfs::protocol::message::{Inventory, PrefixView};
use scrfs::protocol::scavenge::{Catalogs, Report, Salvage, plan, pointers_due, spoil};
use scrfs::status::size;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

/// Records of sessions that were killed are kept so long, for whoever wants to know.
const SESSIONS_KEPT_MS: u64 = 24 * 3600 * 1000;

/// A dataset that is in the prefix now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Saved {
    id: u64,
    name: String,
    class: Class,
    bytes: u64,
    files: u64,
    /// Slots that no node had.
    rebuilt: Vec<u32>,
}

/// One that should be, and cannot be saved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Lost {
    id: u64,
    name: String,
    class: Class,
    reason: String,
}

/// A node that did not take part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Absent {
    node: String,
    reason: String,
}

/// What came of it; the fields are a promise to users.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub(super) saved: Vec<Saved>,
    pub(super) lost: Vec<Lost>,
    pub(super) absent: Vec<Absent>,
    /// What the next run restarts from, when no cache has anything newer.
    pub(super) restart: Option<String>,
    /// Output that cannot be saved, and that a restart from there never makes again.
    pub(super) restart_without: Vec<String>,
    /// Datasets that any node knows.
    #[serde(skip)]
    pub(super) known: usize,
}

impl Outcome {
    /// Whether all that should be in the prefix is. Where nobody told of any dataset, those who took no part may
    /// have some.
    pub(crate) fn is_all_safe(&self) -> bool {
        self.lost.is_empty() && (self.known > 0 || self.absent.is_empty())
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for Absent { node, reason } in &self.absent {
            lines.push(format!("{node} took no part: {reason}"));
        }
        for saved in &self.saved {
            let how = match saved.rebuilt.len() {
                0 => String::new(),
                1 => ", the files of 1 slot rebuilt".to_owned(),
                count => format!(", the files of {count} slots rebuilt"),
            };
            let (name, bytes, files) = (&saved.name, size(saved.bytes), saved.files);
            lines.push(format!(
                "{name} is in the prefix: {bytes}, {files} files{how}"
            ));
        }
        for Lost { name, reason, .. } in &self.lost {
            lines.push(format!("{name} cannot be saved: {reason}"));
        }
        if self.saved.is_empty() && self.lost.is_empty() && self.known > 0 {
            lines.push("nothing is left to be saved".to_owned());
        }
        if let Some(name) = &self.restart {
            lines.push(format!("the next run restarts from {name}"));
            if !self.restart_without.is_empty() {
                let lost = self.restart_without.join(", ");
                lines.push(format!(
                    "{name} is newer than output that is lost, and a run from there never makes that again                      ({lost}): `scrfs list` shows older checkpoints, `scrfs current NAME` chooses one"
                ));
            }
        }
        lines
    }
}

/// One session.
pub(super) struct Scavenge<'a> {
    pub(super) prefix: &'a Prefix,
    pub(super) log: &'a LogConfig,
    /// Its number, that of its attempts too: the time, which is above every epoch.
    pub(super) session: Epoch,
    pub(super) say: &'a dyn Fn(&str),
    /// Where standard error is a terminal.
    pub(super) shows_bars: bool,
}

impl Scavenge<'_> {
    /// Saves all that can be.
    pub(super) fn run(&self, crew: &mut dyn Crew) -> Result<Outcome> {
        let done = self.rounds(crew);
        self.tidy();
        done
    }

    fn rounds(&self, crew: &mut dyn Crew) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let names = crew.names();
        for name in &names {
            check_name(name)?;
        }
        let mut catalogs = self.look(crew, &names, &mut outcome)?;
        let entries = catalogs.values().flat_map(|found| &found.datasets);
        let keys: BTreeSet<DatasetKey> = entries.map(|entry| entry.record.key()).collect();
        outcome.known = keys.len();
        if keys.is_empty() {
            return Ok(outcome);
        }
        self.prefix.reconcile(&keys)?;
        let place = Place::below(self.prefix.paths());
        let places = Places::wanted(self.log, Some(place));
        let mut journal = Journal::begin(places).context("no thread to write events")?;
        let mut given_up: BTreeMap<DatasetKey, String> = BTreeMap::new();
        let mut done = BTreeSet::new();
        // Each round completes something, or something less is believed in the next.
        loop {
            let view = self.view()?;
            let (wanted, beyond) = plan(&catalogs, &view, &given_up, self.session);
            outcome.lost = beyond
                .iter()
                .map(|beyond| Lost {
                    id: beyond.record.id.0,
                    name: beyond.record.name.to_string(),
                    class: beyond.record.class,
                    reason: beyond.why.clone(),
                })
                .collect();
            if wanted.salvages.is_empty() {
                break;
            }
            for salvage in &wanted.salvages {
                let name = &salvage.record.name;
                (self.say)(&match salvage.lost.len() {
                    0 => format!("{name} is copied"),
                    lost => format!("{name} is copied, {lost} slots are rebuilt"),
                });
                self.prefix.begin_salvage(&salvage.record)?;
            }
            let path = self.prefix.paths().scavenge_plan(self.session);
            PosixStore::new().put(&path, &seal(Kind::ScavengePlan, &wanted))?;
            let failed = self.copy(crew, &mut catalogs, &mut given_up, &mut outcome)?;
            for salvage in &wanted.salvages {
                let (name, key) = (&salvage.record.name, salvage.record.key());
                if failed.contains(&key) || !has_all_nodes(salvage, &catalogs) {
                    continue;
                }
                match self.finish(salvage, &mut journal)? {
                    Ok(()) if !done.insert(key) => {
                        bail!("{name} was completed, and the prefix does not list it");
                    }
                    Ok(()) => outcome.saved.push(saved(salvage)),
                    Err(why) => {
                        (self.say)(&format!("{name}: {why}"));
                        given_up.insert(key, why);
                    }
                }
            }
        }
        self.end(&catalogs, &mut outcome)?;
        Ok(outcome)
    }

    /// What each node has.
    fn look(
        &self,
        crew: &mut dyn Crew,
        names: &[String],
        outcome: &mut Outcome,
    ) -> Result<Catalogs> {
        let mut catalogs = Catalogs::new();
        for (node, result) in crew.each(self.prefix, self.session, Task::Look, names)? {
            let path = self.prefix.paths().scavenge_catalog(self.session, &node);
            let read = result.and_then(|()| self.read::<Inventory>(Kind::Catalog, &path));
            match read {
                Ok(catalog) => {
                    catalogs.insert(node, catalog);
                }
                Err(reason) => outcome.absent.push(Absent { node, reason }),
            }
        }
        Ok(catalogs)
    }

    /// Has the plan carried out. Gives the datasets of which something could not be copied.
    fn copy(
        &self,
        crew: &mut dyn Crew,
        catalogs: &mut Catalogs,
        given_up: &mut BTreeMap<DatasetKey, String>,
        outcome: &mut Outcome,
    ) -> Result<BTreeSet<DatasetKey>> {
        let nodes: Vec<String> = catalogs.keys().cloned().collect();
        let mut failed = BTreeSet::new();
        let store = PosixStore::new();
        for node in &nodes {
            let path = self.prefix.paths().scavenge_report(self.session, node);
            store.remove(&path)?;
        }
        for (node, result) in crew.each(self.prefix, self.session, Task::Copy, &nodes)? {
            let path = self.prefix.paths().scavenge_report(self.session, &node);
            let read = result.and_then(|()| self.read::<Report>(Kind::ScavengeReport, &path));
            let report = match read {
                Ok(report) => report,
                Err(reason) => {
                    (self.say)(&format!("{node} is lost: {reason}"));
                    catalogs.remove(&node);
                    outcome.absent.push(Absent { node, reason });
                    continue;
                }
            };
            for problem in report.problems {
                let (slot, why) = (problem.slot, &problem.why);
                (self.say)(&format!("{node}, {slot}: {why}"));
                failed.insert(problem.key);
                match problem.spoilt {
                    Some(stream) => spoil(catalogs, &node, problem.key, slot, stream),
                    None => {
                        given_up.insert(problem.key, format!("{node}, {slot}: {why}"));
                    }
                }
            }
        }
        Ok(failed)
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        path: &std::path::Path,
    ) -> Result<T, String> {
        let bytes = PosixStore::new().get(path).map_err(|error| chain(&error))?;
        let bytes = bytes.ok_or_else(|| {
            let (prefix, name) = (self.prefix.paths().root(), path.display());
            format!(
                "it wrote no {name}: is {} the same there?",
                prefix.display()
            )
        })?;
        open(kind, &bytes).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Rebuilds what nobody has, and makes the dataset visible; in words, what is wrong with it. An error
    /// is one that every other dataset would meet with, too.
    fn finish(&self, salvage: &Salvage, journal: &mut Journal) -> Result<Result<(), String>> {
        let record = &salvage.record;
        let never = AtomicBool::new(false);
        let parts = record.seal.as_ref().map_or(&[][..], |seal| &seal.parts);
        let mut lost = salvage.lost.iter();
        let done = lost
            .try_for_each(|&slot| {
                let bytes = parts.get(slot.0 as usize).map_or(0, |part| part.log_bytes);
                let what = format!("{}, {slot}", record.name);
                let bar = Bar::bytes(self.shows_bars, &what, bytes);
                let progress = |done| bar.set(done);
                self.prefix
                    .rebuild_part(record, &salvage.lost, slot, &progress, &never)
            })
            .and_then(|()| self.prefix.complete_flush(record));
        if let Err(error) = done {
            let words = chain(&error);
            return match error.cause() {
                Cause::NoSpace | Cause::ReadOnly | Cause::Denied | Cause::Unavailable => bail!(
                    "{}: {words}; do it again when the prefix can be used",
                    record.name
                ),
                _ => Ok(Err(words)),
            };
        }
        let now = millis(SystemTime::now());
        let flushed = DatasetRecord {
            flushed: Some(now),
            ..record.clone()
        };
        journal.changed(Some(record), &flushed, now);
        Ok(Ok(()))
    }

    /// What the prefix has.
    fn view(&self) -> Result<PrefixView> {
        let entries = self.prefix.list()?;
        let pointers = self.prefix.pointers().unwrap_or_else(|error| {
            report(
                "what the prefix says of pointer files is not believed",
                &error,
            );
            Pointers::default()
        });
        let current = self.prefix.current(&entries)?.map(IndexEntry::key);
        let complete = entries.into_iter().filter(IndexEntry::is_complete);
        Ok(PrefixView {
            complete: complete
                .map(|entry| DatasetRecord {
                    flushed: Some(entry.flushed),
                    ..entry.record
                })
                .collect(),
            pointers,
            current,
            failed: self.prefix.failed()?,
            gone: self.prefix.gone()?,
        })
    }

    fn end(&self, catalogs: &Catalogs, outcome: &mut Outcome) -> Result<()> {
        let view = self.view()?;
        let due = pointers_due(catalogs, &view);
        if let Err(error) = self.prefix.write_pointers(&due) {
            (self.say)(&format!("pointer files: {}", chain(&error)));
        }
        let current = view
            .complete
            .iter()
            .find(|record| Some(record.key()) == view.current);
        outcome.restart = current.map(|record| record.name.to_string());
        let is_missing =
            |lost: &&Lost| lost.class.is_output() && current.is_some_and(|it| lost.id < it.id.0);
        let missing = outcome.lost.iter().filter(is_missing);
        outcome.restart_without = missing.map(|lost| lost.name.clone()).collect();
        Ok(())
    }

    /// Removes the records of this session, and those of old ones.
    fn tidy(&self) {
        let store = PosixStore::new();
        let root = self.prefix.paths().scavenges();
        let old = self.session.0.saturating_sub(SESSIONS_KEPT_MS);
        for name in store.list(&root).unwrap_or_default() {
            let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_some_and(|number| number == self.session.0 || number < old)
                && let Err(error) = store.remove(&root.join(&name))
            {
                report("the records of a scavenge cannot be removed", &error);
            }
        }
    }
}

/// A node's name names files.
fn check_name(name: &str) -> Result<()> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    ensure!(
        name.bytes().all(is_fit) && !name.starts_with('.') && !name.is_empty(),
        "`{name}` cannot be the name of a node"
    );
    Ok(())
}

/// Whether no node of a plan was lost while it copied.
fn has_all_nodes(salvage: &Salvage, catalogs: &Catalogs) -> bool {
    let all = [&salvage.data, &salvage.parity, &salvage.metadata];
    let mut nodes = all.into_iter().flatten().map(|(_, node)| node);
    nodes.all(|node| catalogs.contains_key(node))
}

fn saved(salvage: &Salvage) -> Saved {
    let record = &salvage.record;
    let seal = record.seal.as_ref();
    Saved {
        id: record.id.0,
        name: record.name.to_string(),
        class: record.class,
        bytes: seal.map_or(0, |seal| seal.bytes()),
        files: seal.map_or(0, |seal| seal.files()),
        rebuilt: salvage.lost.iter().map(|Slot(slot)| *slot).collect(),
    }
}
