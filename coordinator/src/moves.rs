//! Datasets on their way from a faster store of this node to a slower one.
//!
//! The daemon says which, and where to, for it knows who is short of space. Here it is done, one at a time:
//! *copying* on another thread, into `moving` of the store -> *switched* on the driver's thread, which puts the record
//! down there and renames the name ([`Stores::switch`]) -> *leaving*: the old files stay in the trash until
//! nobody of this process reads from them; programs that have one open keep it as the kernel does.
//!
//! Invariants: nothing is moved that work goes on with, and work that begins meanwhile makes the copy
//! worthless ([`Moves::disturb`]); a record is never written between the copy of it and the switch.
//! What fails is logged, and asked for again by the daemon.

use crate::effects;
use crate::part::{Log, PartError, copy_dataset, remove_tree, report};
use crate::parts::Parts;
use crate::tasks::{Event, Tasks};
use scrfs::id::DatasetId;
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::DatasetRecord;
use scrfs::store::posix::PosixStore;
use scrfs::store::{Store, StoreError};
use scrfs::stores::Stores;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long what could not be moved is left alone.
const PAUSE: Duration = Duration::from_secs(10);

/// A dataset that is being copied.
#[derive(Debug)]
struct Moving {
    dataset: DatasetId,
    to: usize,
    is_void: Arc<AtomicBool>,
}

/// Files that are the dataset no longer.
#[derive(Debug)]
struct Leaving {
    aside: PathBuf,
    readers: Vec<Weak<Log>>,
}

/// How a copy ended.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) dataset: DatasetId,
    result: Result<(), PartError>,
}

/// What moves on this node.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    moving: Option<Moving>,
    leaving: Vec<Leaving>,
    /// What failed, and when.
    failed: BTreeMap<DatasetId, Instant>,
}

impl Moves {
    /// The daemon wants a dataset moved; nothing happens when that cannot be done now.
    pub(crate) fn begin(
        &mut self,
        (dataset, to): (DatasetId, usize),
        parts: &Parts,
        stores: &Stores,
        tasks: &Tasks,
    ) {
        let is_paused = |failed: &Instant| failed.elapsed() < PAUSE;
        let sealed = parts
            .record(dataset)
            .filter(|record| record.is_cached() && record.seal.is_some());
        let (Some(record), Some(target)) = (sealed.cloned(), stores.get(to)) else {
            return;
        };
        let is_above = stores.store_of(dataset).is_some_and(|from| from < to);
        if self.moving.is_some() || !is_above || self.failed.get(&dataset).is_some_and(is_paused) {
            return;
        }
        tracing::info!(%dataset, name = %record.name, to = %target.root().display(), "moving");
        let is_void = Arc::new(AtomicBool::new(false));
        self.moving = Some(Moving {
            dataset,
            to,
            is_void: Arc::clone(&is_void),
        });
        let (from, target) = (stores.home().clone(), target.moving());
        tasks.spawn(move |_| {
            let step = |_: &'static str| match is_void.load(Ordering::Relaxed) {
                true => Err(given_up(&target)),
                false => Ok(()),
            };
            let store = PosixStore::new();
            let result = copy_dataset(&store, &from, &target, &record, &step);
            if result.is_err()
                && let Err(error) = remove_tree(target.root())
            {
                report("what was not moved cannot be removed", &error);
            }
            Event::Copied(Copied { dataset, result })
        });
    }

    /// Something begins that changes the dataset, or what is kept of it.
    pub(crate) fn disturb(&mut self, dataset: DatasetId) {
        if let Some(moving) = self.moving.as_ref().filter(|it| it.dataset == dataset) {
            moving.is_void.store(true, Ordering::Relaxed);
        }
    }

    /// A copy has ended. True when the dataset lies elsewhere now.
    pub(crate) fn copied(
        &mut self,
        Copied { dataset, result }: Copied,
        parts: &mut Parts,
        stores: &Stores,
        store: &PosixStore,
    ) -> bool {
        let Some(moving) = self.moving.take_if(|it| it.dataset == dataset) else {
            return false;
        };
        if moving.is_void.load(Ordering::Relaxed) {
            tracing::info!(%dataset, "not moved: other work on it has begun");
            // The next attempt begins anew.
            return false;
        }
        let readers = parts.readers(dataset);
        let switched = result
            .map_err(|error| effects::chain(&error))
            .and_then(|()| {
                let record = parts.record(dataset).ok_or("it is not known any more")?;
                switch(record, moving.to, stores, store).map_err(|error| effects::chain(&error))
            });
        match switched {
            Ok(aside) => {
                tracing::info!(%dataset, "moved");
                parts.forget(dataset, &[]);
                self.failed.remove(&dataset);
                self.leaving.push(Leaving { aside, readers });
                true
            }
            Err(error) => {
                tracing::error!(%dataset, error, "not moved");
                self.failed.insert(dataset, Instant::now());
                false
            }
        }
    }

    /// Removes what nobody reads any more.
    pub(crate) fn sweep(&mut self, tasks: &Tasks) {
        let is_read = |leaving: &mut Leaving| {
            leaving.readers.retain(|log| log.strong_count() > 0);
            !leaving.readers.is_empty()
        };
        for Leaving { aside, .. } in self.leaving.extract_if(.., |it| !is_read(it)) {
            tasks.spawn(move |_| {
                if let Err(error) = remove_tree(&aside) {
                    report("what was moved away cannot be removed", &error);
                }
                Event::Swept
            });
        }
    }
}

fn given_up(target: &CachePaths) -> StoreError {
    StoreError::of("go on with", target.root())(io::Error::other("given up"))
}

/// Puts the record beside the copy, as it is now, and makes that the dataset.
fn switch(
    record: &DatasetRecord,
    to: usize,
    stores: &Stores,
    store: &PosixStore,
) -> Result<PathBuf, StoreError> {
    if let Some(target) = stores.get(to) {
        let path = target.moving().record(record.id);
        store.put(&path, &seal(Kind::Dataset, record))?;
    }
    stores.switch(record.id, to, &|_| Ok(()))
}
