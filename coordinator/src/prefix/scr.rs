//! A prefix that SCR has written: what is in it, and taking one of its datasets in.
//!
//! Only read. A dataset is taken in when SCR says that it is complete, when `rank2file` and its parts say
//! which files it has, and when these are there, as many and with as many bytes as SCR noted.
//!
//! When all of them lie in one directory of the prefix that holds nothing else, it is adopted like any other
//! directory (see `adopt`), whose name is the dataset's from then on. So is one that has the dataset's name, with
//! whatever else is in it. Else a directory is made of them (see `gather`).

use super::adopt::Added;
use super::error::PrefixError;
use super::{Prefix, StepHook};
use crate::part::{Tree, file_type};
use nix::sys::stat::SFlag;
use scrfs::config::Class;
use scrfs::id::DatasetId;
use scrfs::layout::scr::{Rank2File, ScrDataset, ScrError, ScrIndex};
use scrfs::name::{Name, RelPath};
use scrfs::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::iter::successors;
use std::os::unix::ffi::OsStrExt;
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
    /// It is not complete, or its files are not those that SCR noted, or its name is taken.
    pub fn add_scr(
        &self,
        name: &Name,
        class: Option<Class>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Option<(Name, Added)>, PrefixError> {
        self.add_scr_with(name, class, progress, &|_| Ok(()))
    }

    pub(super) fn add_scr_with(
        &self,
        name: &Name,
        class: Option<Class>,
        progress: &dyn Fn(u64, u64),
        step: StepHook<'_>,
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
        self.check_scr_files(found, &Tree::open(self.paths.root())?, files.iter())?;
        let class = class.unwrap_or(scr_class(found));
        Ok(Some(match self.directory_of(name, &files)? {
            Some(directory) => {
                let added = self.add_with(&directory, class, progress, step)?;
                (directory, added)
            }
            None => {
                let added = self.gather(found, &files, class, progress, step)?;
                (name.clone(), added)
            }
        }))
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
        let is_reserved = |file: &&RelPath| {
            let path = self.paths.root().join(file.as_path());
            path.starts_with(self.paths.scr()) || path.starts_with(self.paths.control())
        };
        let lacks = files.is_empty().then_some(ScrError::Lacks("files"));
        let reserved = files.iter().find(is_reserved);
        let wrong = lacks.or(reserved.map(|file| ScrError::Reserved(file.to_string())));
        match wrong {
            Some(source) => Err(PrefixError::Scr {
                path: directory.join("rank2file"),
                source,
            }),
            None => Ok(files),
        }
    }

    /// The directory of the prefix that is the dataset as it lies there, if there is one.
    fn directory_of(
        &self,
        name: &Name,
        files: &BTreeSet<RelPath>,
    ) -> Result<Option<Name>, PrefixError> {
        let top = |path: &RelPath| successors(path.parent(), RelPath::parent).last();
        let mut tops: BTreeSet<_> = files.iter().map(top).collect();
        let (Some(Some(top)), true) = (tops.pop_first(), tops.is_empty()) else {
            return Ok(None);
        };
        let is_it = top.as_bytes() == name.as_bytes() || self.holds_only(&top, files)?;
        Ok(Name::new(top.as_bytes()).ok().filter(|_| is_it))
    }

    /// Whether a directory holds these files and, but for directories, nothing else.
    fn holds_only(
        &self,
        directory: &RelPath,
        files: &BTreeSet<RelPath>,
    ) -> Result<bool, PrefixError> {
        let mut todo = vec![directory.clone()];
        while let Some(directory) = todo.pop() {
            let path = self.paths.root().join(directory.as_path());
            let list = || PrefixError::io_at("list", &path);
            for entry in fs::read_dir(&path).map_err(list())? {
                let entry = entry.map_err(list())?;
                let is_directory = entry.file_type().map_err(list())?.is_dir();
                match directory.join(entry.file_name().as_bytes()) {
                    Ok(below) if is_directory => todo.push(below),
                    Ok(file) if files.contains(&file) => {}
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// That the files are there, as many as SCR noted and with as many bytes.
    pub(super) fn check_scr_files<'a>(
        &self,
        dataset: &ScrDataset,
        tree: &Tree,
        files: impl Iterator<Item = &'a RelPath>,
    ) -> Result<(), PrefixError> {
        let (mut count, mut bytes) = (0u64, 0u64);
        for path in files {
            let found = tree.stat(path)?;
            if file_type(&found) != SFlag::S_IFREG {
                return Err(PrefixError::Incomplete {
                    dataset: DatasetId(dataset.id),
                    path: tree.path_of(path),
                    what: "type",
                    expected: "a file".to_owned(),
                    found: "something else".to_owned(),
                });
            }
            count += 1;
            bytes = bytes.saturating_add(u64::try_from(found.st_size).unwrap_or(0));
        }
        let differ = |what, expected: Option<u64>, found: u64| match expected {
            Some(expected) if expected != found => Err(PrefixError::Incomplete {
                dataset: DatasetId(dataset.id),
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
