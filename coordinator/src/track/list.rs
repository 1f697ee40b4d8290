//! All datasets of a prefix and of caches, each once, as people and programs see them.
//!
//! Of a dataset that is in both, the cache knows how far it has come and the prefix whether it is there.
//! What SCR wrote and nobody has added is shown, too. Records only: no manifest is read.

use crate::part::report;
use crate::prefix::{PrefixError, scr_class};
use crate::target::Target;
use scrfs::id::{DatasetId, DatasetKey};
use scrfs::layout::envelope::{Kind, open};
use scrfs::layout::index::IndexEntry;
use scrfs::layout::path::{CachePaths, parse_dataset_directory};
use scrfs::layout::record::{DatasetRecord, Phase, State};
use scrfs::layout::scr::{ScrDataset, ScrIndex};
use scrfs::name::Name;
use scrfs::status::{DatasetStatus, local_time, rfc3339, size};
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Who wrote a dataset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Origin {
    /// We did.
    Scrfs,
    /// Somebody else; it was added.
    Adopted,
    /// SCR; it can be added.
    Scr,
}

/// One line; the fields are a promise to users.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    pub(super) status: DatasetStatus,
    /// The prefix has all of it.
    complete: bool,
    /// A cache of this node knows it.
    cached: bool,
    origin: Origin,
}

/// Everything that is known of datasets.
#[derive(Debug)]
pub(super) struct Catalog {
    entries: Vec<IndexEntry>,
    cached: BTreeMap<DatasetKey, DatasetRecord>,
    failed: BTreeSet<DatasetKey>,
    current: Option<DatasetKey>,
    scr: ScrIndex,
}

impl Catalog {
    /// Reads the index, and the records of caches. What cannot be believed is reported and left out.
    pub(super) fn read(prefix: &Target, caches: &[PathBuf]) -> Result<Self, PrefixError> {
        let entries = prefix.list()?;
        let current = prefix.current(&entries)?.map(IndexEntry::key);
        let scr = prefix.scr_index().unwrap_or_else(|error| {
            report("what SCR wrote is not shown", &error);
            None
        });
        let mut cached = BTreeMap::new();
        for cache in caches {
            for record in cached_records(&CachePaths::at(cache))? {
                cached.insert(record.key(), record);
            }
        }
        Ok(Self {
            failed: prefix.failed()?,
            scr: scr.unwrap_or_default(),
            entries,
            cached,
            current,
        })
    }

    /// The newest dataset of a name, wherever it is.
    pub(super) fn find(&self, name: &Name) -> Option<DatasetKey> {
        let cached = self.cached.values();
        let entries = self.entries.iter().map(|entry| &entry.record);
        let named = cached.chain(entries).filter(|record| record.name == *name);
        named.map(DatasetRecord::key).max()
    }

    fn restartable(&self) -> impl Iterator<Item = &DatasetRecord> {
        let usable = |record: &&DatasetRecord| {
            record.is_restartable() && !self.failed.contains(&record.key())
        };
        self.cached.values().filter(usable)
    }

    /// Names of checkpoints that caches have and a restart would prefer.
    pub(super) fn cached_newer_than(&self, key: DatasetKey) -> impl Iterator<Item = &Name> {
        let newer = self.restartable().filter(move |record| record.key() > key);
        newer.map(|record| &record.name)
    }

    /// All of it, by number.
    pub(super) fn shown(&self) -> Vec<Shown> {
        let cached = self.restartable().last().map(DatasetRecord::key);
        let current = cached.or(self.current);
        let mut all: BTreeMap<DatasetKey, Shown> = BTreeMap::new();
        for (key, record) in &self.cached {
            let mut record = record.clone();
            if self.failed.contains(key) {
                record.phase = Phase::Failed;
            }
            let shown = Shown {
                status: DatasetStatus::of(&record, current == Some(*key)),
                complete: false,
                cached: true,
                origin: Origin::Scrfs,
            };
            all.insert(*key, shown);
        }
        for entry in &self.entries {
            let key = entry.key();
            let is_failed = self.failed.contains(&key);
            let here = shown_entry(entry, is_failed, current == Some(key));
            let shown = all.entry(key).or_insert_with(|| here.clone());
            shown.complete = here.complete;
            shown.origin = here.origin;
            if here.complete {
                shown.status.flushed = here.status.flushed;
                shown.status.flushed_bytes = here.status.flushed_bytes;
                shown.status.restartable |= here.status.restartable;
            }
        }
        let mut all: Vec<Shown> = all.into_values().collect();
        for dataset in &self.scr.datasets {
            let known = |entry: &IndexEntry| entry.record.name == dataset.name;
            if !self.entries.iter().any(known) {
                all.push(shown_scr(dataset));
            }
        }
        all
    }
}

/// What was dropped.
pub(super) fn dropped(prefix: &Target) -> Result<Vec<Shown>, PrefixError> {
    let failed = prefix.failed()?;
    let shown = |entry: &IndexEntry| shown_entry(entry, failed.contains(&entry.key()), false);
    Ok(prefix.dropped()?.iter().map(shown).collect())
}

fn cached_records(cache: &CachePaths) -> Result<Vec<DatasetRecord>, PrefixError> {
    let store = PosixStore::new();
    let mut records = Vec::new();
    for name in store.list(&cache.datasets())? {
        let Some(id) = name.to_str().and_then(parse_dataset_directory) else {
            continue;
        };
        records.extend(read_record(&store, &cache.record(id))?);
    }
    Ok(records)
}

fn read_record(store: &PosixStore, path: &Path) -> Result<Option<DatasetRecord>, PrefixError> {
    let Some(bytes) = store.get(path)? else {
        return Ok(None);
    };
    let record = open::<DatasetRecord>(Kind::Dataset, &bytes);
    Ok(record
        .inspect_err(|error| tracing::error!(?path, %error, "a record of the cache is damaged"))
        .ok())
}

/// What a cache knows of one dataset.
pub(super) fn cached_record(cache: &CachePaths, id: DatasetId) -> Option<DatasetRecord> {
    read_record(&PosixStore::new(), &cache.record(id)).ok()?
}

fn shown_entry(entry: &IndexEntry, is_failed: bool, current: bool) -> Shown {
    let complete = entry.is_complete();
    let mut record = entry.record.clone();
    record.phase = if is_failed {
        Phase::Failed
    } else {
        Phase::Sealed
    };
    record.flushed = complete.then_some(entry.flushed);
    record.flushing = !complete;
    Shown {
        status: DatasetStatus::of(&record, current),
        complete,
        cached: false,
        origin: if entry.adopted {
            Origin::Adopted
        } else {
            Origin::Scrfs
        },
    }
}

fn shown_scr(dataset: &ScrDataset) -> Shown {
    let complete = dataset.complete && !dataset.failed;
    let bytes = dataset.bytes.unwrap_or(0);
    let status = DatasetStatus {
        id: dataset.id,
        name: dataset.name.to_string(),
        class: scr_class(dataset),
        state: match (dataset.failed, dataset.complete) {
            (true, _) => State::Failed,
            (false, true) => State::Flushed,
            (false, false) => State::Incomplete,
        },
        created: rfc3339(dataset.created_us.map(|micros| micros / 1000)),
        sealed: None,
        protected: None,
        flushed: dataset.flushed.as_deref().and_then(local_time),
        bytes,
        files: dataset.files.unwrap_or(0),
        remaining_seconds: None,
        flushed_bytes: if complete { bytes } else { 0 },
        protected_bytes: 0,
        verifying_bytes: None,
        fetching_bytes: None,
        scheme: None,
        set_size: None,
        failures: None,
        nodes: None,
        missing_nodes: Vec::new(),
        // Not before it is added.
        restartable: false,
        current: false,
        error: None,
    };
    Shown {
        status,
        complete,
        cached: false,
        origin: Origin::Scr,
    }
}

/// For people.
pub(super) fn table(all: &[Shown]) -> String {
    if all.is_empty() {
        return "no datasets\n".to_owned();
    }
    let width = all.iter().map(|shown| shown.status.name.chars().count());
    let width = width.max().unwrap_or(0).max(4);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{:>5} {:<width$} {:<10} {:<10} {:>10} {:>8} {:<8} {:<20} CURRENT",
        "ID", "NAME", "CLASS", "STATE", "SIZE", "FILES", "COMPLETE", "FLUSHED"
    );
    for shown in all {
        let status = &shown.status;
        let class = format!("{:?}", status.class).to_lowercase();
        let class = match shown.origin {
            Origin::Scr => class + "/scr",
            _ => class,
        };
        let flushed = status.flushed.as_deref().unwrap_or("-");
        // To the second is enough.
        let flushed = flushed.split_once('.').map_or(flushed, |(head, _)| head);
        let line = format!(
            "{:>5} {:<width$} {class:<10} {:<10} {:>10} {:>8} {:<8} {:<20} {}",
            status.id,
            status.name,
            status.state.to_string(),
            size(status.bytes),
            status.files,
            if shown.complete { "yes" } else { "no" },
            flushed.trim_end_matches('Z'),
            if status.current { "*" } else { "" }
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}
