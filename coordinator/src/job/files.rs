//! The records of supervisors in the prefix: found, taken, replaced, removed.
//!
//! Invariants: a number is taken by one only, because making its file fails when it is there; what is
//! read is whole; a record is replaced whole and durably. Whoever has the highest number of a mark has
//! the run, and one whose own file is gone has not. No lock, no clock is compared.

use super::heart;
use anyhow::{Context, Result, bail};
use scrfs::layout::path::PrefixPaths;
use scrfs::layout::run::{RunKey, RunRecord};
use scrfs::store::Store;
use scrfs::store::posix::{PosixStore, sync_directory};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Longest record that is read.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// The directory they are in.
#[derive(Clone, Debug)]
pub(super) struct RunFiles {
    paths: PrefixPaths,
    store: PosixStore,
}

impl RunFiles {
    /// That of the prefix at `prefix`.
    pub(super) fn new(prefix: &Path) -> Self {
        let paths = PrefixPaths::new(prefix);
        Self {
            store: PosixStore::at_home(paths.control()),
            paths,
        }
    }

    fn keys(&self) -> Result<Vec<RunKey>> {
        let names = PosixStore::new().list(&self.paths.runs())?;
        let keys = names
            .iter()
            .filter_map(|name| RunKey::parse(name.to_str()?));
        Ok(keys.collect())
    }

    /// The supervisor that counts for each run, and what it knows, the oldest run first. What cannot be read
    /// is left out: of a newer scrfs, perhaps.
    pub(super) fn all(&self) -> Result<Vec<(RunKey, RunRecord)>> {
        let mut keys = self.keys()?;
        keys.sort();
        let mut found = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let is_last = keys.get(at + 1).is_none_or(|next| next.mark != key.mark);
            if is_last && let Some(record) = self.read(*key)? {
                found.push((*key, record));
            }
        }
        found.sort_by_key(|(key, record)| (record.begun, *key));
        Ok(found)
    }

    fn read(&self, key: RunKey) -> Result<Option<RunRecord>> {
        let path = self.paths.run(key);
        match std::fs::metadata(&path) {
            Ok(found) if found.len() > RECORD_BYTES_MAX => {
                bail!("{} is longer than a record can be", path.display())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let Some(bytes) = PosixStore::new().get(&path)? else {
            return Ok(None);
        };
        match RunRecord::decode(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "left out");
                Ok(None)
            }
        }
    }

    /// For its owner only: there is an environment in it.
    fn make(&self, directory: &Path) -> Result<()> {
        let words = || format!("cannot make {}", directory.display());
        std::fs::create_dir_all(self.paths.control()).with_context(words)?;
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(error).with_context(words)
            }
            _ => Ok(()),
        }
    }

    /// Takes the first number from `number` on that is above all of the run, with this record.
    pub(super) fn claim(&self, mark: u64, number: u64, record: &RunRecord) -> Result<RunKey> {
        let directory = self.paths.runs();
        self.make(&directory)?;
        let taken = self.keys()?.into_iter().filter(|key| key.mark == mark);
        let above = taken.map(|key| key.number + 1).max();
        let mut key = RunKey {
            mark,
            number: number.max(above.unwrap_or(0)),
        };
        // Named so that it is no key, and no other's, also of one on another host that is called the same.
        let unique = heart::random().context("no random numbers")?;
        let draft = directory.join(format!(".{key}.{unique:016x}.claim"));
        let store = &self.store;
        store.put(&draft, &record.encode())?;
        let linked = loop {
            match std::fs::hard_link(&draft, self.paths.run(key)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => key.number += 1,
                other => break other,
            }
        };
        let removed = store.remove(&draft);
        linked.with_context(|| format!("cannot make {}", self.paths.run(key).display()))?;
        removed?;
        sync_directory(&directory)?;
        Ok(key)
    }

    /// Replaces the record of a supervisor that has the run.
    pub(super) fn put(&self, key: RunKey, record: &RunRecord) -> Result<()> {
        Ok(self.store.put(&self.paths.run(key), &record.encode())?)
    }

    /// The run is no longer this supervisor's: who has it now, if that can be told.
    pub(super) fn successor(&self, key: RunKey) -> Result<Option<String>> {
        let keys = self.keys()?;
        let later = keys.iter().filter(|other| other.mark == key.mark);
        match later.max() {
            Some(last) if *last == key => Ok(None),
            Some(last) if last.number > key.number => {
                let record = self.read(*last)?.unwrap_or_default();
                Ok(Some(format!(
                    "process {} on {} has taken this job over",
                    record.process, record.host
                )))
            }
            _ => Ok(Some("somebody has ended this job meanwhile".to_owned())),
        }
    }

    /// The run is over: forgets all its supervisors up to this one.
    pub(super) fn forget(&self, key: RunKey) -> Result<()> {
        self.remove_drafts(key)?;
        // The highest last: whoever looks meanwhile does not find an older one alone.
        let mut keys = self.keys()?;
        keys.retain(|other| other.mark == key.mark && other.number <= key.number);
        keys.sort();
        for key in keys {
            PosixStore::new().remove(&self.paths.run(key))?;
        }
        Ok(())
    }

    /// What supervisors up to this one were writing when they were killed.
    fn remove_drafts(&self, key: RunKey) -> Result<()> {
        let directory = self.paths.runs();
        for name in PosixStore::new().list(&directory)? {
            let Some(draft) = name.to_str().and_then(|name| name.strip_prefix('.')) else {
                continue;
            };
            let mut pieces = draft.trim_start_matches('.').split('.');
            let mark = pieces.next().map(|mark| u64::from_str_radix(mark, 16));
            let number = pieces.next().map(str::parse::<u64>);
            if let (Some(Ok(mark)), Some(Ok(number))) = (mark, number)
                && mark == key.mark
                && number <= key.number
            {
                PosixStore::new().remove(&directory.join(name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str) -> RunRecord {
        RunRecord {
            host: host.into(),
            arguments: vec!["--".into(), "app".into()],
            ..RunRecord::default()
        }
    }

    #[test]
    fn the_highest_number_has_the_run_and_the_others_know() {
        let prefix = tempfile::tempdir().expect("a directory");
        let files = RunFiles::new(prefix.path());
        assert!(files.all().expect("nothing there").is_empty());
        let first = files.claim(7, 100, &record("a")).expect("free");
        assert_eq!((first.mark, first.number), (7, 100));
        assert_eq!(files.successor(first).expect("read"), None);
        // A clock that is behind takes a higher number all the same.
        let second = files.claim(7, 50, &record("b")).expect("free");
        assert_eq!(second.number, 101);
        assert!(
            files
                .successor(first)
                .expect("read")
                .is_some_and(|who| who.contains("on b"))
        );
        assert_eq!(files.successor(second).expect("read"), None);
        let other = files.claim(8, 50, &record("c")).expect("free");
        assert_eq!(files.successor(second).expect("read"), None);
        let all = files.all().expect("read");
        assert_eq!(all.len(), 2);
        assert!(
            all.iter()
                .any(|(key, record)| *key == second && record.host == "b")
        );
        files.put(second, &record("b2")).expect("mine");
        assert!(
            files
                .all()
                .expect("read")
                .iter()
                .any(|(_, record)| record.host == "b2")
        );
        // Killed while they wrote; the last one is of somebody who takes over.
        let runs = prefix.path().join(".scrfs/run");
        for draft in [
            ".0000000000000007.100.a1.12.new",
            "..0000000000000007.101.b2.claim.c3.12.new",
            ".0000000000000008.50.d4.claim",
            ".0000000000000007.102.e5.12.new",
        ] {
            std::fs::write(runs.join(draft), b"").expect("writable");
        }
        files.forget(second).expect("mine");
        assert!(files.successor(first).expect("read").is_some());
        assert!(files.successor(second).expect("read").is_some());
        files.forget(other).expect("mine");
        let left = PosixStore::new().list(&runs).expect("there");
        assert_eq!(left, [".0000000000000007.102.e5.12.new"]);
    }

    #[test]
    fn of_many_that_claim_at_once_each_gets_another_number() {
        let prefix = tempfile::tempdir().expect("a directory");
        let files = RunFiles::new(prefix.path());
        let keys: Vec<RunKey> = std::thread::scope(|scope| {
            let claim = |_| scope.spawn(|| files.claim(7, 100, &record("a")).expect("free"));
            let threads: Vec<_> = (0..8).map(claim).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        let ahead = |key: &&RunKey| files.successor(**key).expect("read").is_none();
        assert_eq!(keys.iter().filter(ahead).count(), 1, "{keys:?}");
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn what_is_no_record_is_left_out() {
        let prefix = tempfile::tempdir().expect("a directory");
        let files = RunFiles::new(prefix.path());
        let key = files.claim(7, 100, &record("a")).expect("free");
        std::fs::write(
            prefix.path().join(".scrfs/run/0000000000000008.1"),
            b"noise",
        )
        .expect("writable");
        std::fs::write(prefix.path().join(".scrfs/run/README"), b"noise").expect("writable");
        let all = files.all().expect("read");
        assert_eq!(all.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key]);
    }
}
