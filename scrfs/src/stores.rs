//! The stores of one node as one cache: in which of them a dataset lies (ADR 16).
//!
//! The first store is *home*. Every dataset has a name there, and what has that name is where all of
//! the dataset is: its record, its parts and their parity, and the copies of other members' metadata.
//!
//! ```text
//! <home>/datasets/7/                            it lies in the first store
//! <home>/datasets/8 -> <second>/datasets/8      it lies in the second
//! ```
//!
//! So every path of [`CachePaths`] of home leads to a dataset's files wherever they are, and moving one
//! ends with one rename of its name: at any crash the name means exactly one complete copy.
//!
//! Invariants, and the orders that keep them:
//!
//! - A directory of a further store counts only by its name at home. It is made before the name
//!   ([`Stores::begin`], [`Stores::switch`]) and goes out of the way before it ([`Stores::set_aside`]), so
//!   that one without a name is on its way in, or home was lost: only then it gets its name back
//!   ([`Stores::settle`]).
//! - A further store that was not there when a later epoch began knows nothing that counts: what it has
//!   without a name goes, as what a node has that was away.
//!
//! Only the coordinator changes anything here; the daemon looks. What lies in a dataset is not looked at.

use crate::id::{DatasetId, Epoch};
use crate::layout::envelope::{Kind, open, seal};
use crate::layout::path::{CachePaths, parse_dataset_directory};
use crate::layout::record::EpochRecord;
use crate::store::posix::{PosixStore, sync_directory};
use crate::store::{Store, StoreError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The stores of one job on one node, in order of the configuration: fastest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stores {
    home: CachePaths,
    further: Arc<[CachePaths]>,
}

/// What [`Stores::settle`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// What this node took part in, and knows the datasets of. Where home was lost it knows no more than
    /// numbers.
    pub begun: EpochRecord,
    /// Datasets of which what is not synced may be gone, though it looks whole: the machine has been
    /// started anew since they were written.
    pub doubtful: BTreeSet<DatasetId>,
}

impl Stores {
    /// The first store, and the others in their order.
    pub fn new(home: CachePaths, further: Vec<CachePaths>) -> Self {
        Self {
            home,
            further: further.into(),
        }
    }

    /// The first store: its paths lead to every dataset.
    pub fn home(&self) -> &CachePaths {
        &self.home
    }

    /// All of them, home first.
    pub fn iter(&self) -> impl Iterator<Item = &CachePaths> {
        std::iter::once(&self.home).chain(self.further.iter())
    }

    /// How many there are; never 0.
    pub fn count(&self) -> usize {
        1 + self.further.len()
    }

    /// The store of that place in the order.
    pub fn get(&self, index: usize) -> Option<&CachePaths> {
        match index {
            0 => Some(&self.home),
            _ => self.further.get(index - 1),
        }
    }

    /// Where a dataset lies; `None` when there is none, or its link leads nowhere known.
    pub fn store_of(&self, id: DatasetId) -> Option<usize> {
        let name = self.home.dataset(id);
        let found = fs::symlink_metadata(&name).ok()?;
        if found.is_dir() {
            return Some(0);
        }
        let target = fs::read_link(&name).ok()?;
        let leads = |store: &CachePaths| store.dataset(id) == target;
        Some(1 + self.further.iter().position(leads)?)
    }

    /// Gives a new dataset its place; one that has one keeps it.
    pub fn begin(&self, id: DatasetId, index: usize) -> Result<(), StoreError> {
        let name = self.home.dataset(id);
        let store = match self.get(index) {
            Some(store) if index > 0 && fs::symlink_metadata(&name).is_err() => store,
            _ => return Ok(()),
        };
        let target = store.dataset(id);
        make_directory(&target)?;
        sync_directory(&store.datasets())?;
        self.name(id, &target)
    }

    /// Gives what lies in a further store its name at home.
    fn name(&self, id: DatasetId, target: &Path) -> Result<(), StoreError> {
        make_directory(&self.home.datasets())?;
        let name = self.home.dataset(id);
        symlink(target, &name).map_err(StoreError::of("link", &name))?;
        sync_directory(&self.home.datasets())
    }

    /// What is at `<to>/moving` is complete and durable: from now on it is the dataset. Returns where the
    /// old one is now, in the trash, to be removed when nobody reads it any more. `step` is called
    /// between what may be done and what not; its error ends this.
    pub fn switch(
        &self,
        id: DatasetId,
        to: usize,
        step: &dyn Fn(&'static str) -> Result<(), StoreError>,
    ) -> Result<PathBuf, StoreError> {
        let name = self.home.dataset(id);
        let refuse = |words: &str| StoreError::of("move", &name)(io::Error::other(words));
        let from = self
            .store_of(id)
            .ok_or_else(|| refuse("it has no known place"))?;
        let (Some(old), Some(new)) = (self.get(from), self.get(to)) else {
            return Err(refuse("there is no such store"));
        };
        if to <= from {
            return Err(refuse("it would not be further down"));
        }
        let target = new.dataset(id);
        remove(&target)?;
        make_directory(&new.datasets())?;
        let incoming = new.moving().dataset(id);
        fs::rename(&incoming, &target).map_err(StoreError::of("rename", &incoming))?;
        sync_directory(&new.datasets())?;
        step("the copy is in its place")?;
        make_directory(&self.home.trash())?;
        let aside = self.home.trash().join(format!("{id}.moved"));
        remove(&aside)?;
        symlink(&target, &aside).map_err(StoreError::of("link", &aside))?;
        step("the link is made")?;
        let exchange = match from {
            0 => RenameFlags::RENAME_EXCHANGE,
            _ => RenameFlags::empty(),
        };
        renameat2(AT_FDCWD, &aside, AT_FDCWD, &name, exchange)
            .map_err(|errno: Errno| StoreError::of("rename", &aside)(errno.into()))?;
        sync_directory(&self.home.datasets())?;
        step("the name means the copy")?;
        if from == 0 {
            return Ok(aside);
        }
        make_directory(&old.trash())?;
        let aside = old.trash().join(format!("{id}.moved"));
        remove(&aside)?;
        let gone = old.dataset(id);
        fs::rename(&gone, &aside).map_err(StoreError::of("rename", &gone))?;
        sync_directory(&old.datasets())?;
        Ok(aside)
    }

    /// Puts a dataset out of the way, into its store's trash: first the files, then the name.
    pub fn set_aside(&self, id: DatasetId, into: &Path) -> Result<(), StoreError> {
        let index = self.store_of(id);
        if let Some(store) = index.and_then(|index| self.get(index)) {
            rename_if_there(&store.dataset(id), into, &store.datasets())?;
        }
        match index {
            Some(0) => Ok(()),
            _ => remove(&self.home.dataset(id)),
        }
    }

    /// The trash of the store that a dataset lies in: renaming its files there moves no bytes.
    pub fn trash_of(&self, id: DatasetId) -> PathBuf {
        let store = self.store_of(id).and_then(|index| self.get(index));
        store.unwrap_or(&self.home).trash()
    }

    /// Removes a dataset whatever is left of it.
    pub fn remove(&self, id: DatasetId) -> Result<(), StoreError> {
        if let Some(store) = self
            .store_of(id)
            .filter(|index| *index > 0)
            .and_then(|index| self.get(index))
        {
            remove(&store.dataset(id))?;
        }
        remove(&self.home.dataset(id))
    }

    /// Before an epoch begins: makes the names agree with what there is, whatever a crash left behind.
    pub fn settle(&self) -> Result<Settled, StoreError> {
        let own = self.home_epoch();
        let known: Vec<EpochRecord> = self.further.iter().map(Self::seen_by).collect();
        let newest = match &own {
            Some(own) => own.epoch,
            None => known.iter().map(|it| it.epoch).max().unwrap_or_default(),
        };
        let mut begun = own.unwrap_or_default();
        for record in &known {
            begun.last_dataset = begun.last_dataset.max(record.last_dataset);
            begun.last_checkpoint = begun.last_checkpoint.max(record.last_checkpoint);
        }
        let mut doubtful = BTreeSet::new();
        if self.has_rebooted() {
            doubtful.extend(names(&self.home)?);
        }
        for id in names(&self.home)? {
            let name = self.home.dataset(id);
            if self.store_of(id).is_none() || !name.exists() {
                tracing::error!(path = %name.display(), "this dataset is not where it was: it is lost here");
                remove(&name)?;
            }
        }
        for (store, known) in self.further.iter().zip(&known) {
            remove(store.moving().root())?;
            for id in names(store)? {
                let path = store.dataset(id);
                let is_named = fs::read_link(self.home.dataset(id)).is_ok_and(|it| it == path);
                if is_named {
                    continue;
                }
                let is_free = fs::symlink_metadata(self.home.dataset(id)).is_err();
                let is_whole = store.record(id).exists()
                    && fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
                if is_free && is_whole && known.epoch >= newest {
                    tracing::info!(path = %path.display(), "a dataset that the first store has lost");
                    self.name(id, &path)?;
                    doubtful.insert(id);
                } else {
                    tracing::info!(path = %path.display(), "removed what does not count any more");
                    remove(&path)?;
                }
            }
        }
        Ok(Settled { begun, doubtful })
    }

    /// The newest epoch of any store.
    pub fn last_epoch(&self) -> Result<Epoch, StoreError> {
        let home = self.home.epoch();
        let damaged = |error| StoreError::of("believe", &home)(io::Error::other(error));
        let own: Option<EpochRecord> = match PosixStore::new().get(&home)? {
            Some(bytes) => Some(open(Kind::Epoch, &bytes).map_err(damaged)?),
            None => None,
        };
        let seen = self.further.iter().map(|store| Self::seen_by(store).epoch);
        let own = own.map(|record| record.epoch);
        Ok(seen.chain(own).max().unwrap_or_default())
    }

    /// An epoch begins, with all that it has put down before. The further stores first: one that is
    /// behind home is one that was away.
    pub fn put_epoch(&self, store: &PosixStore, record: &EpochRecord) -> Result<(), StoreError> {
        let bytes = seal(Kind::Epoch, record);
        for further in self.further.iter() {
            store.put(&further.seen(), &bytes)?;
        }
        store.put(&self.home.epoch(), &bytes)?;
        match fs::read(BOOT_ID) {
            Ok(boot) => store.put(&self.home.boot(), &boot),
            Err(_) => Ok(()),
        }
    }

    fn home_epoch(&self) -> Option<EpochRecord> {
        let bytes = fs::read(self.home.epoch()).ok()?;
        open(Kind::Epoch, &bytes).ok()
    }

    /// What a further store took part in; also what it did when it was the first.
    fn seen_by(store: &CachePaths) -> EpochRecord {
        let read = |path: PathBuf| open(Kind::Epoch, &fs::read(path).ok()?).ok();
        let records: [Option<EpochRecord>; 2] = [read(store.seen()), read(store.epoch())];
        let newest = records
            .into_iter()
            .flatten()
            .max_by_key(|record| record.epoch);
        newest.unwrap_or_default()
    }

    /// Whether the machine was started anew since an epoch began here.
    fn has_rebooted(&self) -> bool {
        let then = fs::read(self.home.boot()).ok();
        let now = fs::read(BOOT_ID).ok();
        then.is_some() && now.is_some() && then != now
    }
}

fn names(store: &CachePaths) -> Result<Vec<DatasetId>, StoreError> {
    let names = PosixStore::new().list(&store.datasets())?;
    let id = |name: &std::ffi::OsString| parse_dataset_directory(name.to_str()?);
    Ok(names.iter().filter_map(id).collect())
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(StoreError::of("make", path))
}

fn rename_if_there(from: &Path, to: &Path, directory: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Ok(()) => sync_directory(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::of("rename", from)(error)),
    }
}

/// Removes a link, or a whole directory, durably; a link is not followed. Nothing there is fine.
fn remove(path: &Path) -> Result<(), StoreError> {
    PosixStore::new().remove(path)
}

pub mod owner;
mod survey;
#[cfg(test)]
mod tests;

pub use survey::Surveyed;
