//! A prefix in an object store: the same datasets, index and commands, with objects where there were files.
//!
//! There is no rename, no directory and no fsync there; but an object is whole or absent, durable when it was
//! put, and may be put only if there is none. So (ADR 24):
//!
//! ```text
//! <name>/<key>.<attempt>/<path>            the files of a dataset
//! .scrfs/manifests/<key>/<attempt>/<slot>.manifest, .sums
//! .scrfs/inflight/<key>/<attempt>          IndexEntry: somebody makes these objects
//! .scrfs/index/<key>                       IndexEntry: the dataset is complete, and which attempt it is
//! .scrfs/dropped/<key>, failed/<key>, gone/<key>, current     as in a directory
//! .scrfs/turns/<name>/<turn>               who has written a pointer file
//! .scrfs/events/<begun>.<writer>.jsonl     lines of events
//! ```
//!
//! Invariants: every attempt has objects of its own, so that nothing is ever changed that somebody may read. A
//! dataset is there from the moment that its entry is put, which is the last thing a flush does; it is deleted
//! from the moment that it is marked gone. What has neither is what [`ObjectPrefix::reconcile`] removes.

pub(crate) mod events;
mod fetch;
mod flush;
mod pointers;
mod store;
#[cfg(test)]
mod tests;
mod track;

use crate::part::records::{decode_manifest, decode_sums};
use crate::part::{PartId, SealedPart, StoredManifest};
use crate::prefix::PrefixError;
use crate::prefix::streams::Pace;
use scrfs::id::{DatasetKey, Epoch, Slot};
use scrfs::layout::index::IndexEntry;
use scrfs::layout::manifest::Sums;
use scrfs::layout::record::DatasetRecord;
use scrfs::name::{Name, RelPath};
use scrfs::redundancy::Stream;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::{Objects, encode, key_of};

/// Where everything of ours is.
const CONTROL: &str = ".scrfs";

/// An opened prefix in an object store.
#[derive(Debug)]
pub struct ObjectPrefix {
    objects: Arc<Objects>,
    pace: Pace,
    job: String,
}

fn mark(kind: &str, key: DatasetKey) -> String {
    format!("{CONTROL}/{kind}/{key}")
}

fn marker(key: DatasetKey, attempt: Epoch) -> String {
    format!("{CONTROL}/inflight/{key}/{}", attempt.0)
}

fn manifests(key: DatasetKey, attempt: Epoch) -> String {
    format!("{CONTROL}/manifests/{key}/{}", attempt.0)
}

fn manifest_key(key: DatasetKey, attempt: Epoch, slot: Slot) -> String {
    format!("{}/{}.manifest", manifests(key, attempt), slot.0)
}

fn sums_key(key: DatasetKey, attempt: Epoch, slot: Slot) -> String {
    format!("{}/{}.sums", manifests(key, attempt), slot.0)
}

/// Above all files of an attempt.
fn data(name: &Name, key: DatasetKey, attempt: Epoch) -> String {
    let name = encode(name.as_bytes());
    format!("{name}/{key}.{}", attempt.0)
}

fn file_key(data: &str, path: &RelPath) -> String {
    format!("{data}/{}", key_of(path))
}

impl ObjectPrefix {
    /// The prefix at a URL. Asks nothing of the store.
    pub(crate) fn open(url: &Path) -> Result<Self, PrefixError> {
        let url = url.to_str().unwrap_or_default();
        Ok(Self::over(Objects::open(url)?))
    }

    fn over(objects: Objects) -> Self {
        Self {
            objects: Arc::new(objects),
            pace: Pace::default(),
            job: String::new(),
        }
    }

    /// The same, for what `job` does there.
    pub(crate) fn of_job(mut self, job: &str) -> Self {
        job.clone_into(&mut self.job);
        self
    }

    /// That the store answers.
    pub(crate) fn check_usable(&self) -> Result<(), PrefixError> {
        self.objects.head(&format!("{CONTROL}/clock")).map(drop)
    }

    /// Where the files of an attempt are, for people.
    pub(crate) fn place_of(&self, record: &DatasetRecord) -> std::path::PathBuf {
        let data = data(&record.name, record.key(), record.epoch);
        self.objects.name_of(&data)
    }

    /// What the index says of one dataset; `None` when nothing that can be believed.
    fn entry(&self, key: DatasetKey) -> Result<Option<IndexEntry>, PrefixError> {
        let bytes = self.objects.get(&mark("index", key))?;
        Ok(bytes.and_then(|bytes| self.decode(key, &bytes)))
    }

    fn decode(&self, key: DatasetKey, bytes: &[u8]) -> Option<IndexEntry> {
        match IndexEntry::decode(bytes) {
            Ok(entry) if entry.key() == key => return Some(entry),
            Ok(entry) => {
                tracing::error!(%key, found = %entry.key(), "an entry of another dataset");
            }
            Err(error) => tracing::error!(%key, %error, "an entry of the index is damaged"),
        }
        None
    }

    fn entries_below(&self, kind: &str) -> Result<Vec<IndexEntry>, PrefixError> {
        let listed = self.objects.list(&format!("{CONTROL}/{kind}"))?;
        let keys: Vec<(DatasetKey, String)> = listed
            .into_iter()
            .filter_map(|found| {
                let name = found.key.rsplit('/').next()?;
                Some((DatasetKey::parse(name)?, found.key))
            })
            .collect();
        let read = self
            .objects
            .get_all(keys.iter().map(|(_, at)| at.clone()))?;
        let decoded = keys.iter().zip(read);
        let mut entries: Vec<IndexEntry> = decoded
            .filter_map(|((key, _), bytes)| self.decode(*key, &bytes?))
            .collect();
        entries.sort_by_key(IndexEntry::key);
        Ok(entries)
    }

    /// All complete datasets, ascending by number; of several of one name the one that was flushed last.
    pub(crate) fn list(&self) -> Result<Vec<IndexEntry>, PrefixError> {
        let gone = self.keys_in("gone")?;
        let mut entries = self.entries_below("index")?;
        entries.retain(|entry| !gone.contains(&entry.key()));
        let mut newest: BTreeMap<Name, (u64, DatasetKey)> = BTreeMap::new();
        for entry in &entries {
            let claim = (entry.flushed, entry.key());
            let known = newest.entry(entry.record.name.clone()).or_insert(claim);
            *known = (*known).max(claim);
        }
        entries
            .retain(|entry| newest.get(&entry.record.name) == Some(&(entry.flushed, entry.key())));
        Ok(entries)
    }

    fn stored(
        &self,
        record: &DatasetRecord,
        attempt: Epoch,
        slot: Slot,
    ) -> Result<(StoredManifest, Sums), PrefixError> {
        let dataset = record.id;
        let part = PartId { dataset, slot };
        let sealed = SealedPart::of(record, slot)?;
        let get = |key: &str| {
            let path = self.objects.name_of(key);
            let found = self.objects.get(key)?;
            found.ok_or(PrefixError::NotThere { dataset, path })
        };
        let at = manifest_key(record.key(), attempt, slot);
        let path = self.objects.name_of(&at);
        let stored = decode_manifest(part, &path, &get(&at)?)?;
        sealed.check_manifest(&path, &stored)?;
        let at = sums_key(record.key(), attempt, slot);
        let path = self.objects.name_of(&at);
        let sums = decode_sums(part, Stream::Data, &path, &get(&at)?)?;
        sealed.check_sums(&path, &sums)?;
        if !sums.is_complete() {
            return Err(PrefixError::NotThere { dataset, path });
        }
        Ok((stored, sums))
    }

    /// Removes what an attempt consists of, but for its entry; its marker last, which tells of the rest.
    fn remove_attempt(
        &self,
        name: &Name,
        key: DatasetKey,
        attempt: Epoch,
    ) -> Result<(), PrefixError> {
        self.objects.remove_all(&data(name, key, attempt))?;
        self.objects.remove_all(&manifests(key, attempt))?;
        self.objects.remove(&marker(key, attempt))
    }
}
