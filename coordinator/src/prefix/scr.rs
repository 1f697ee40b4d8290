//! A prefix that SCR has written: what is in it, and taking one of its datasets in.
//!
//! Only read. A dataset is taken in when SCR says that it is complete, when `rank2file` and its parts say
//! which files it has, and when these are there, as many and with as many bytes as SCR noted. Then it is
//! adopted like any other directory (see `adopt`): its files must lie in one directory of the prefix, and
//! that directory's name is the dataset's name from then on.

use super::Prefix;
use super::adopt::Added;
use super::error::PrefixError;
use crate::part::{Tree, file_type};
use nix::sys::stat::SFlag;
use scrfs::config::Class;
use scrfs::layout::scr::{Rank2File, ScrDataset, ScrError, ScrIndex};
use scrfs::name::{Name, RelPath};
use scrfs::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that say which files there are: more than a million ranks need.
const MAPS_MAX: usize = 10_000;
/// Larger than any file of SCR's.
const RECORD_BYTES_MAX: u64 = 64 << 20;

impl Prefix {
    /// What SCR says of the prefix; `None` when it has never been here.
    pub fn scr_index(&self) -> Result<Option<ScrIndex>, PrefixError> {
        let path = self.paths.scr().join("index.scr");
        let read = self.read_scr(&path)?;
        read.map(|bytes| {
            ScrIndex::decode(&bytes).map_err(|source| PrefixError::Scr { path, source })
        })
        .transpose()
    }

    /// Takes in a dataset of SCR's; its name from now on, or `None` when SCR has none of that name.
    /// `class` overrides what SCR says it is.
    ///
    /// # Errors
    ///
    /// It is not complete, or its files are not those that SCR noted, or not in one directory.
    pub fn add_scr(
        &self,
        name: &Name,
        class: Option<Class>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Option<(Name, Added)>, PrefixError> {
        let Some(index) = self.scr_index()? else {
            return Ok(None);
        };
        let found = index.datasets.iter().rfind(|found| found.name == *name);
        let Some(found) = found else {
            return Ok(None);
        };
        if !found.complete || found.failed {
            return Err(self.in_use(name, "is not complete, or failed, says SCR"));
        }
        let files = self.scr_files(found)?;
        let directory = self.common_directory(name, &files)?;
        self.check_scr_files(found, &files)?;
        let class = class.unwrap_or(scr_class(found));
        let added = self.add(&directory, class, progress)?;
        Ok(Some((directory, added)))
    }

    fn read_scr(&self, path: &Path) -> Result<Option<Vec<u8>>, PrefixError> {
        let length = fs::metadata(path).map_or(0, |found| found.len());
        if length > RECORD_BYTES_MAX {
            return Err(PrefixError::Scr {
                path: path.to_owned(),
                source: ScrError::Length {
                    found: length,
                    said: RECORD_BYTES_MAX,
                },
            });
        }
        Ok(self.store.get(path)?)
    }

    fn scr_files(&self, dataset: &ScrDataset) -> Result<BTreeSet<RelPath>, PrefixError> {
        let directory = self.paths.scr().join(format!("scr.dataset.{}", dataset.id));
        let mut todo = vec![String::new()];
        let mut seen = BTreeSet::new();
        let mut files = BTreeSet::new();
        while let Some(suffix) = todo.pop() {
            let path = directory.join(format!("rank2file{suffix}"));
            let fail = |source| PrefixError::Scr {
                path: path.clone(),
                source,
            };
            if !seen.insert(suffix) || seen.len() > MAPS_MAX {
                return Err(fail(ScrError::Lacks("end")));
            }
            let bytes = self.read_scr(&path)?;
            let bytes = bytes.ok_or_else(|| fail(ScrError::Lacks("content")))?;
            match Rank2File::decode(&bytes).map_err(fail)? {
                Rank2File::Below(suffixes) => todo.extend(suffixes),
                Rank2File::Files(found) => files.extend(found),
            }
        }
        Ok(files)
    }

    fn common_directory(
        &self,
        name: &Name,
        files: &BTreeSet<RelPath>,
    ) -> Result<Name, PrefixError> {
        let first = |path: &RelPath| {
            let mut parts = path.as_bytes().splitn(2, |&byte| byte == b'/');
            let first = parts.next().map(<[u8]>::to_vec);
            first.filter(|_| parts.next().is_some())
        };
        let tops: BTreeSet<_> = files.iter().map(first).collect();
        let mut tops = tops.into_iter();
        match (tops.next(), tops.next()) {
            (Some(Some(top)), None) => Name::new(&top).ok(),
            _ => None,
        }
        .ok_or_else(|| {
            self.in_use(
                name,
                "does not lie in one directory: move its files into one",
            )
        })
    }

    /// That the files are there, as many as SCR noted and with as many bytes.
    fn check_scr_files(
        &self,
        dataset: &ScrDataset,
        files: &BTreeSet<RelPath>,
    ) -> Result<(), PrefixError> {
        let tree = Tree::open(self.paths.root())?;
        let mut bytes = 0;
        for path in files {
            let found = tree.stat(path)?;
            if file_type(&found) != SFlag::S_IFREG {
                return Err(self.in_use(&dataset.name, "has something else where SCR had a file"));
            }
            bytes += u64::try_from(found.st_size).unwrap_or(0);
        }
        let count = files.len() as u64;
        let differ = |what, expected: Option<u64>, found: u64| match expected {
            Some(expected) if expected != found => Err(PrefixError::Incomplete {
                dataset: scrfs::id::DatasetId(dataset.id),
                path: PathBuf::from(dataset.name.as_os_str()),
                what,
                expected: expected.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(()),
        };
        differ("files", dataset.files, count)?;
        differ("bytes in its files", dataset.bytes, bytes)
    }
}

/// What a dataset is for, in our words.
pub fn scr_class(dataset: &ScrDataset) -> Class {
    match (dataset.checkpoint, dataset.output) {
        (true, true) => Class::Both,
        (false, true) => Class::Output,
        _ => Class::Checkpoint,
    }
}
