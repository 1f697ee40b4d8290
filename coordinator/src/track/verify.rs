//! `scrfs verify`: what is kept of datasets, held against its checksums.
//!
//! With a mount its coordinators read what the caches have, and the prefix's copies of it, and repair what
//! they can; what only the prefix has is read here. Without one it is all read here, and nothing is
//! repaired but from a cache of this node.

use super::{FAILED, NOTHING, Where, name_of, print};
use crate::link::Link;
use crate::part::{Leisure, Part};
use crate::prefix::{Prefix, PrefixError};
use crate::target::Target;
use anyhow::{Context, Result};
use scrfs::bar::{Bar, Mark};
use scrfs::findings::{Findings, Kept, Problem};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::{DatasetRecord, State};
use scrfs::name::Name;
use scrfs::status::{DatasetStatus, size};
use scrfs::store::posix::PosixStore;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

/// Where it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Cache,
    Prefix,
}

/// One dataset; the fields are a promise to users.
#[derive(Debug, Serialize)]
struct Report {
    id: u64,
    name: String,
    #[serde(rename = "where")]
    place: Place,
    /// Everything is as it was stored, now.
    sound: bool,
    bytes: u64,
    units: u64,
    unknown: u64,
    damaged: u64,
    repaired: u64,
    problems: Vec<Told>,
}

/// One thing that was damaged.
#[derive(Debug, Serialize)]
struct Told {
    slot: u32,
    kept: Kept,
    path: String,
    offset: Option<u64>,
    repaired: bool,
    words: String,
}

impl From<Problem> for Told {
    fn from(problem: Problem) -> Self {
        let Problem {
            slot: Slot(slot),
            kept,
            path,
            offset,
            repaired,
            words,
        } = problem;
        Self {
            slot,
            kept,
            path,
            offset,
            repaired,
            words,
        }
    }
}

impl Report {
    fn of((id, name): (DatasetId, String), place: Place, findings: Findings) -> Self {
        Self {
            id: id.0,
            name,
            place,
            sound: findings.is_sound(),
            bytes: findings.bytes,
            units: findings.units,
            unknown: findings.unknown,
            damaged: findings.damaged,
            repaired: findings.repaired,
            problems: findings.problems.into_iter().map(Told::from).collect(),
        }
    }
}

/// Verifies the datasets of these names, all when none is given.
pub(super) fn verify(
    at: &Where,
    socket: Option<&Path>,
    names: &[OsString],
    json: bool,
) -> Result<u8> {
    let names: Vec<Name> = names.iter().map(name_of).collect::<Result<_>>()?;
    let wanted = |name: &str| names.is_empty() || names.iter().any(|it| it.to_string() == name);
    let mut reports = Vec::new();
    let mut seen: BTreeSet<DatasetId> = BTreeSet::new();
    if let Some(socket) = socket {
        for status in statuses(socket)? {
            let is_cached = matches!(
                status.state,
                State::Sealed | State::Protected | State::Flushing | State::Flushed
            );
            if is_cached && wanted(&status.name) {
                let id = DatasetId(status.id);
                let findings = in_cache(socket, &status, &Bar::new(!json))?;
                seen.insert(id);
                reports.push(Report::of((id, status.name), Place::Cache, findings));
            }
        }
    }
    match open(&at.prefix) {
        Ok(target) => {
            let directory = target.directory();
            if directory.is_none() {
                let prefix = at.prefix.display();
                eprintln!("scrfs: {prefix}: objects are not verified until they are fetched");
            }
            let entries = directory.map_or_else(|| Ok(Vec::new()), Prefix::list)?;
            for (prefix, entry) in directory.into_iter().cycle().zip(entries) {
                let record = &entry.record;
                let name = record.name.to_string();
                if entry.is_complete() && wanted(&name) && !seen.contains(&record.id) {
                    let bytes = record.seal.as_ref().map_or(0, |seal| seal.bytes());
                    let bar = Bar::bytes(!json, &name, bytes);
                    let findings = in_prefix(prefix, record, at, &bar);
                    reports.push(Report::of((record.id, name), Place::Prefix, findings));
                }
            }
        }
        // The caches alone are something.
        Err(error) if socket.is_some() => eprintln!("scrfs: {error}"),
        Err(error) => return Err(error.into()),
    }
    for name in &names {
        if !reports.iter().any(|report| report.name == name.to_string()) {
            eprintln!("scrfs: there is no dataset {name} that could be verified");
        }
    }
    print(&if json {
        serde_json::to_string_pretty(&reports)? + "\n"
    } else {
        table(&reports)
    })?;
    let all_there = |name: &Name| reports.iter().any(|it| it.name == name.to_string());
    Ok(if !reports.iter().all(|report| report.sound) {
        FAILED
    } else if !names.iter().all(all_there) {
        NOTHING
    } else {
        0
    })
}

/// To repair from caches it must be writable; to read it need not be.
fn open(path: &Path) -> Result<Target, PrefixError> {
    Target::open(path).or_else(|_| Target::open_to_read(path))
}

fn statuses(socket: &Path) -> Result<Vec<DatasetStatus>> {
    let text = Link::ask(socket, &scrfs::control::Command::Status)?;
    let mut status: serde_json::Value = serde_json::from_str(&text)?;
    let datasets = status.get_mut("datasets").map(serde_json::Value::take);
    serde_json::from_value(datasets.unwrap_or_default())
        .context("the daemon speaks of datasets in another way")
}

/// Has the coordinators verify a dataset.
fn in_cache(socket: &Path, status: &DatasetStatus, bar: &Bar) -> Result<Findings> {
    let look = || {
        let now = statuses(socket).ok()?;
        let found = now.into_iter().find(|it| it.id == status.id)?;
        Some(Mark {
            what: status.name.clone(),
            done_bytes: found.verifying_bytes?,
            total_bytes: status.bytes,
        })
    };
    let command = scrfs::control::Command::Verify {
        dataset: DatasetId(status.id),
    };
    let text = bar
        .during(look, || Link::ask(socket, &command))
        .with_context(|| format!("{} cannot be verified", status.name))?;
    serde_json::from_str(&text).context("the daemon spoke nonsense")
}

/// Reads all that the prefix has of a dataset.
fn in_prefix(prefix: &Prefix, record: &DatasetRecord, at: &Where, bar: &Bar) -> Findings {
    let progress = |bytes| bar.set(bytes);
    let leisure = Leisure::default();
    let mut findings = Findings::default();
    let slots = record.seal.as_ref().map_or(0, |seal| seal.parts.len());
    for slot in (0u32..).take(slots).map(Slot) {
        let part = at
            .cache
            .iter()
            .find_map(|cache| cached(cache, record, slot));
        let found = prefix.look_over(record, slot, part.as_ref(), &leisure, &progress);
        findings.add(found);
    }
    findings
}

/// A slot as a cache of this node has it, where it does.
fn cached(cache: &Path, record: &DatasetRecord, slot: Slot) -> Option<Part> {
    let paths = CachePaths::at(cache);
    let known = super::list::cached_record(&paths, record.id)?;
    let same = known.key() == record.key() && known.seal == record.seal;
    let sums_known = |part: &Part| part.sums(scrfs::redundancy::Stream::Data).is_complete();
    let part = same.then(|| Part::open(&PosixStore::new(), &paths, record, slot).ok())?;
    part.filter(sums_known)
}

fn table(reports: &[Report]) -> String {
    if reports.is_empty() {
        return "nothing to verify\n".into();
    }
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{:>5} {:<28} {:<7} {:>10} {:>8} {:>8}  STATE",
        "ID", "NAME", "WHERE", "READ", "DAMAGED", "REPAIRED"
    );
    for report in reports {
        let place = match report.place {
            Place::Cache => "cache",
            Place::Prefix => "prefix",
        };
        let state = match (report.sound, report.damaged) {
            (true, 0) => "sound",
            (true, _) => "repaired",
            (false, _) => "damaged",
        };
        let _ = writeln!(
            out,
            "{:>5} {:<28} {place:<7} {:>10} {:>8} {:>8}  {state}",
            report.id,
            report.name,
            size(report.bytes),
            report.damaged,
            report.repaired
        );
        for told in &report.problems {
            let offset = told.offset.map_or(String::new(), |at| format!(" at {at}"));
            let became = if told.repaired {
                "repaired"
            } else {
                "NOT REPAIRED"
            };
            let _ = writeln!(
                out,
                "      {} of slot {}{offset}, {}: {} ({became})",
                told.kept, told.slot, told.path, told.words
            );
        }
        if report.unknown > 0 {
            let _ = writeln!(
                out,
                "      {} units have no checksum yet: it was not encoded",
                report.unknown
            );
        }
    }
    out
}
