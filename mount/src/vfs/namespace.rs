//! Which datasets there are, under which names, and what the coordinator says of them.
//!
//! Invariants: a name at the top is held by at most one dataset, open or sealed; the name index is
//! derived from the records at every change. A dataset's top directory is pinned while it is known, so
//! that its inode number stays the same. What is sealed here stays sealed whatever comes later.

use super::control_dir::status_of;
use super::gates::{GateCell, Herald};
use super::hidden::Hidden;
use super::inode::Inode;
use super::requests::Settled;
use super::shelf::{self, Shelf};
use super::view::ViewCell;
use super::{FsError, FsResult, Vfs};
use crate::gate::Gate;
use crate::sys;
use scrfs::control::{Activity, DirectoryChange, NodeStatus, Progress, Request};
use scrfs::event::{Event, Recent, events};
use scrfs::findings::Findings;
use scrfs::id::{DatasetId, Slot};
use scrfs::interval::Learnt;
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::path::{Keep, parse_dataset_directory, parse_slot_directory};
use scrfs::layout::record::{DatasetRecord, EpochRecord, Phase, UnixMillis, millis};
use scrfs::name::Name;
use scrfs::redundancy::Scheme;
use scrfs::status::DatasetStatus;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime};

/// One dataset.
#[derive(Debug)]
pub struct Dataset {
    /// What the coordinator last said.
    pub record: DatasetRecord,
    /// Its top directory on this node; `None` when this node has none of it.
    pub tree: Option<Arc<Inode>>,
    /// All parts of it on this node, this node's own slot first.
    pub trees: Vec<(Slot, Arc<Inode>)>,
    /// All of it, once somebody looked into it.
    pub view: Arc<ViewCell>,
    /// Names of it that programs have removed here while it may not change.
    pub hidden: Arc<Hidden>,
    /// How often hidden names came back. The kernel takes a directory that it has removed for dead as
    /// long as anybody is in it: one that comes back must be another.
    pub returns: u64,
    /// Who may change it.
    pub gate: Arc<GateCell>,
    /// When this daemon learned that it is sealed; `None` when it was sealed before.
    pub sealed_here: Option<Instant>,
    /// Slots that nobody holds: what is read of them is made of the rest.
    pub missing: Vec<Slot>,
    /// It was protected, and something of it is still to be made again.
    pub weak: bool,
    /// Slots whose files came back after the dataset was shown without them.
    pub late: Vec<Slot>,
    /// Long work on it.
    pub progress: BTreeMap<Activity, Progress>,
    /// Since when its flush is seen to go on, and how many bytes it had done then.
    pub flushing_since: Option<(Instant, u64)>,
    /// What was last found when somebody here wanted it verified.
    pub findings: Option<Box<Findings>>,
}

/// All datasets, and what else the coordinator told.
#[derive(Debug, Default)]
pub struct Names {
    datasets: BTreeMap<DatasetId, Dataset>,
    by_name: HashMap<Name, DatasetId>,
    /// The dataset to restart from; newer checkpoints sealed here replace it.
    restart: Option<DatasetId>,
    /// The same where only the prefix has it: it is read there.
    in_place: Option<DatasetId>,
    /// Nodes of this epoch.
    pub nodes: Vec<NodeStatus>,
    /// What the prefix is to have and has not.
    pub due: BTreeSet<DatasetId>,
    /// What only the prefix has and this job never had.
    pub(super) shelf: Shelf,
    /// When recovery last ended.
    pub recovered: UnixMillis,
    /// Which failures this job has had.
    pub learnt: Learnt,
    slot: Option<Slot>,
    /// What happened since the daemon was started.
    pub events: Recent,
}

impl Names {
    /// The dataset of that number.
    pub fn get(&self, id: DatasetId) -> Option<&Dataset> {
        self.datasets.get(&id)
    }

    /// The dataset shown at the top under that name.
    pub fn find(&self, name: &Name) -> Option<&Dataset> {
        self.by_name.get(name).and_then(|id| self.datasets.get(id))
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Dataset> {
        self.datasets.values()
    }

    /// Those shown at the top.
    pub fn shown(&self) -> impl Iterator<Item = &Dataset> {
        self.iter().filter(|dataset| dataset.is_shown())
    }

    /// The gate of a dataset.
    pub fn gate(&self, id: DatasetId) -> Option<Arc<GateCell>> {
        self.get(id).map(|dataset| Arc::clone(&dataset.gate))
    }

    /// What `.scr/restart` names: an older one when that one has been removed.
    pub fn restart(&self) -> Option<&Dataset> {
        let mut older = self.datasets.range(..=self.restart?).rev();
        let found =
            older.find(|(_, found)| found.record.is_restartable() || self.is_in_place(found));
        found.map(|(_, found)| found)
    }

    /// Whether a restart reads it in the prefix.
    pub fn is_in_place(&self, dataset: &Dataset) -> bool {
        let record = &dataset.record;
        self.in_place == Some(record.id) && shelf::is_evicted(record)
    }

    /// The number of the newest checkpoint that was ever sealed; 0 when there was none.
    pub fn newest_checkpoint(&self) -> u64 {
        let sealed = self.iter().filter(|found| found.record.sealed.is_some());
        let numbers = sealed.filter_map(|found| found.record.checkpoint);
        numbers.max().unwrap_or(0)
    }

    fn index(&mut self) {
        self.by_name = self
            .datasets
            .values()
            .filter(|dataset| dataset.is_shown())
            .map(|dataset| (dataset.record.name.clone(), dataset.record.id))
            .collect();
    }
}

impl Dataset {
    /// Whether it is listed at the top.
    pub fn is_shown(&self) -> bool {
        matches!(self.record.phase, Phase::Open | Phase::Sealed) && self.top_ino().is_some()
    }

    /// Hidden names come back.
    fn show_all(&mut self) {
        if self.record.is_removed() || !self.hidden.is_empty() {
            self.returns += 1;
        }
        self.hidden = Arc::default();
    }

    /// Whether a rename, or an fsync of its directory, has something to wait for.
    pub fn is_unprotected(&self) -> bool {
        let single = |scheme: &Scheme| matches!(scheme, Scheme::Single);
        self.record.is_cached()
            && (self.record.protected.is_none() || self.weak)
            && self.record.flushed.is_none()
            && !self
                .record
                .seal
                .as_ref()
                .is_some_and(|seal| single(&seal.scheme))
    }
}

impl Vfs {
    pub(crate) fn read_names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_names(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tree_by_ino(&self, ino: u64) -> Option<Arc<Inode>> {
        let names = self.read_names();
        names
            .iter()
            .filter_map(|dataset| dataset.tree.as_ref())
            .find(|tree| tree.ino == ino)
            .cloned()
    }

    /// Reads every record in the cache. One that cannot be believed is logged and left alone: the
    /// coordinator decides what becomes of it.
    pub fn load(&self) -> std::io::Result<()> {
        let cache = &self.settings().cache;
        if let Ok(bytes) = std::fs::read(cache.epoch()) {
            match envelope::open::<EpochRecord>(Kind::Epoch, &bytes) {
                Ok(epoch) => self.write_names().slot = epoch.slot,
                Err(error) => tracing::error!(%error, "the epoch record cannot be believed"),
            }
        }
        self.load_pointers()?;
        let entries = match std::fs::read_dir(cache.datasets()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(parse_dataset_directory) else {
                continue;
            };
            let path = cache.record(id);
            let record = std::fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| {
                    envelope::open::<DatasetRecord>(Kind::Dataset, &bytes)
                        .map_err(|error| error.to_string())
                });
            match record {
                Ok(record) if record.id == id => self.publish_loaded(record),
                Ok(record) => {
                    tracing::error!(dataset = %id, found = %record.id, "a record of another dataset");
                }
                Err(error) => {
                    tracing::error!(dataset = %id, path = %path.display(), %error, "no record");
                }
            }
        }
        // They happened before.
        self.write_names().events = Recent::default();
        Ok(())
    }

    fn publish_loaded(&self, record: DatasetRecord) {
        let id = record.id;
        self.publish(record);
        if let Some(dataset) = self.write_names().datasets.get_mut(&id) {
            dataset.sealed_here = None;
        }
    }

    /// The directories with the dataset's files on this node, one a slot, its own first.
    fn open_trees(
        &self,
        id: DatasetId,
        own: Option<Slot>,
    ) -> std::io::Result<Vec<(Slot, Arc<Inode>)>> {
        let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let cache = &self.settings().cache;
        let mut slots = Vec::new();
        match std::fs::read_dir(cache.dataset(id)) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry?.file_name();
                    if let Some((slot, Keep::Own)) = name.to_str().and_then(parse_slot_directory) {
                        slots.push(slot);
                    }
                }
            }
            Err(error) if absent(&error) => {}
            Err(error) => return Err(error),
        }
        slots.sort_by_key(|slot| (Some(*slot) != own, *slot));
        let mut trees = Vec::new();
        for slot in slots {
            let path = cache.tree(id, slot);
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let fd = std::fs::File::open(parent)
                .and_then(|parent| Ok(sys::open_at(parent.as_fd(), name, flags, 0)?));
            match fd {
                Ok(fd) => {
                    let inode = Inode::new(fd, id, &self.descriptors);
                    let inode = inode.map_err(|error| {
                        std::io::Error::from_raw_os_error(crate::errno::errno_of(&error))
                    })?;
                    trees.push((slot, Arc::new(inode)));
                }
                Err(error) if absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(trees)
    }

    /// A dataset is now as `record` says.
    pub fn publish(&self, record: DatasetRecord) {
        let id = record.id;
        self.settings().space.publish(&record);
        let own = self.read_names().slot;
        let known = self
            .read_names()
            .get(id)
            .map(|dataset| dataset.trees.clone())
            .unwrap_or_default();
        // Since it was last told of, its files may have been dropped and brought back: then another
        // directory stands in their place.
        let trees = match self.open_trees(id, own) {
            Ok(found) if found.is_empty() && record.phase == Phase::Open => known,
            Ok(mut found) => {
                for (_, tree) in &mut found {
                    if let Some((_, same)) = known.iter().find(|(_, old)| old.ino == tree.ino) {
                        *tree = Arc::clone(same);
                    }
                }
                found
            }
            Err(error) => {
                tracing::error!(dataset = %id, name = %record.name, %error, "cannot open its files");
                known
            }
        };
        let tree = trees.first().map(|(_, tree)| Arc::clone(tree));
        if tree.is_none() && matches!(record.phase, Phase::Open | Phase::Sealed) {
            tracing::info!(dataset = %id, name = %record.name, "no files of it on this node");
        }
        let herald: Herald = self.herald();
        let sealed = record.phase != Phase::Open;
        if sealed {
            self.closed.forget(id);
        }
        let name = record.name.clone();
        let evicted = record.phase == Phase::Evicted;
        let mut names = self.write_names();
        let restartable = record.is_restartable();
        let before = names.datasets.get(&id).map(|dataset| &dataset.record);
        let happened = events(before, &record, millis(SystemTime::now()));
        for event in happened {
            names.events.push(&event);
        }
        let newly_sealed;
        match names.datasets.get_mut(&id) {
            Some(dataset) => {
                newly_sealed = sealed && dataset.record.phase == Phase::Open;
                if dataset.record.phase != record.phase {
                    dataset.show_all();
                }
                if newly_sealed {
                    dataset.sealed_here = Some(Instant::now());
                }
                // Programs know its directories by the numbers they had without what was rebuilt.
                let shown = dataset.record.phase == Phase::Sealed && record.phase == Phase::Sealed;
                let new = |slot: &Slot| !dataset.trees.iter().any(|(had, _)| had == slot);
                let here: Vec<Slot> = trees.iter().map(|(slot, _)| *slot).collect();
                let late = here.iter().copied().filter(|slot| shown && new(slot));
                let late: Vec<Slot> = late.chain(dataset.late.iter().copied()).collect();
                dataset.late = late
                    .into_iter()
                    .filter(|slot| here.contains(slot))
                    .collect();
                let first = trees.iter().find(|(slot, _)| !dataset.late.contains(slot));
                dataset.tree = first.map(|(_, tree)| Arc::clone(tree));
                if record.is_cached() {
                    dataset.progress.remove(&Activity::Fetch);
                }
                dataset.record = record;
                dataset.trees = trees;
            }
            None => {
                newly_sealed = sealed;
                let gate = if sealed {
                    Gate::new_sealed()
                } else {
                    Gate::new_open()
                };
                let gate = GateCell::new(id, gate, herald);
                let sealed_here = sealed.then(Instant::now);
                let progress = BTreeMap::new();
                let dataset = Dataset {
                    record,
                    tree,
                    trees,
                    view: Arc::default(),
                    hidden: Arc::default(),
                    returns: 0,
                    gate,
                    sealed_here,
                    missing: Vec::new(),
                    weak: false,
                    late: Vec::new(),
                    progress,
                    flushing_since: None,
                    findings: None,
                };
                names.datasets.insert(id, dataset);
            }
        }
        if newly_sealed && restartable && names.restart.is_none_or(|restart| restart < id) {
            names.restart = Some(id);
        }
        names.index();
        let gate = names.gate(id);
        drop(names);
        // After the names: parked operations look them up.
        if let (true, Some(gate)) = (sealed, gate) {
            gate.seal();
        }
        self.watch_dataset(id, &name, !sealed);
        if evicted {
            self.descriptors.let_go();
        }
    }

    /// The files of a dataset lie in another store now: others stand in their place.
    pub fn moved(&self, id: DatasetId) {
        let record = self.read_names().get(id).map(|found| found.record.clone());
        if let Some(record) = record {
            self.publish(record);
        }
        // Who has a file open keeps it; nobody else keeps it from being freed.
        self.descriptors.let_go();
    }

    /// A dataset is no more.
    pub fn forget_dataset(&self, id: DatasetId) {
        let mut names = self.write_names();
        let gone = names.datasets.remove(&id);
        if let Some(dataset) = &gone {
            let removed = Event::removed(&dataset.record, millis(SystemTime::now()));
            names.events.push(&removed);
        }
        names.index();
        drop(names);
        self.unwatch_dataset(id);
        if let Some(dataset) = gone {
            dataset.gate.seal();
        }
        self.closed.forget(id);
        self.descriptors.let_go();
        self.settings().space.forget(id);
    }

    /// Recovery has ended. Programs that start anew see what there is, whatever those before them had
    /// begun to remove.
    pub fn ready(&self, restart: Option<DatasetId>, new_run: bool) {
        self.settings().space.set_ready();
        let recovered = (self.settings().clock)();
        if new_run {
            self.forget_askers();
        }
        let mut names = self.write_names();
        names.restart = restart;
        names.in_place = restart.filter(|_| self.settings().in_place.is_some());
        names.recovered = recovered;
        for dataset in names.datasets.values_mut().filter(|_| new_run) {
            dataset.show_all();
        }
    }

    /// For `.scr/nodes`.
    pub fn set_nodes(&self, nodes: Vec<NodeStatus>) {
        self.settings().space.set_nodes(nodes.len());
        self.write_names().nodes = nodes;
    }

    /// Which failures this job has had.
    pub fn set_learnt(&self, learnt: Learnt) {
        self.write_names().learnt = learnt;
    }

    /// What the prefix is to have and has not.
    pub fn set_due(&self, due: Vec<DatasetId>) {
        self.write_names().due = due.into_iter().collect();
    }

    /// The slot this node holds.
    pub fn set_slot(&self, slot: Slot) {
        self.write_names().slot = Some(slot);
    }

    /// These slots are lost and not rebuilt yet; `weak` says that something is to be made again.
    pub fn set_missing(&self, id: DatasetId, slots: Vec<Slot>, weak: bool) {
        if let Some(dataset) = self.write_names().datasets.get_mut(&id) {
            (dataset.missing, dataset.weak) = (slots, weak);
        }
    }

    /// What a verify has found.
    pub fn set_findings(&self, id: DatasetId, findings: Box<Findings>) {
        if let Some(dataset) = self.write_names().datasets.get_mut(&id) {
            dataset.findings = Some(findings);
        }
    }

    /// How far long work has come.
    pub fn set_progress(&self, progress: Progress) {
        let mut names = self.write_names();
        let Some(dataset) = names.datasets.get_mut(&progress.dataset) else {
            return;
        };
        if progress.activity == Activity::Flush {
            let goes_on = |&(_, bytes): &(Instant, u64)| progress.done_bytes > bytes;
            let began = dataset.flushing_since.filter(goes_on);
            dataset.flushing_since = began.or(Some((Instant::now(), progress.done_bytes)));
        }
        if progress.done_bytes >= progress.total_bytes {
            dataset.progress.remove(&progress.activity);
        } else {
            dataset.progress.insert(progress.activity, progress);
        }
    }

    /// No coordinator listens any more. What is frozen stays so.
    pub fn coordinator_gone(&self) {
        self.requests().disconnect();
        for dataset in self.write_names().datasets.values_mut() {
            // The next epoch says anew what is missing.
            dataset.missing.clear();
            dataset.weak = false;
            dataset.gate.coordinator_gone();
        }
    }

    /// Carries out a change of directories for all nodes; doing it twice does no harm.
    pub fn carry_out(&self, id: DatasetId, change: &DirectoryChange) -> FsResult<()> {
        let (gate, tree) = {
            let names = self.read_names();
            let dataset = names.get(id).ok_or(FsError::Missing)?;
            let tree = dataset.tree.clone().ok_or(FsError::Missing)?;
            (Arc::clone(&dataset.gate), tree)
        };
        let _pass = gate.try_enter()?;
        super::changes::carry_out(&tree, change)
    }

    /// What is known of a request that an earlier coordinator may have carried out.
    pub fn settled(&self, what: &Request) -> Settled {
        let names = self.read_names();
        let came = |yes: bool| match yes {
            true => Settled::Answer(Ok(())),
            false => Settled::Unknown,
        };
        match what {
            Request::Create { name, .. } => came(
                names
                    .find(name)
                    .is_some_and(|found| found.record.phase == Phase::Open),
            ),
            Request::Rename { dataset, to } => came(
                names
                    .get(*dataset)
                    .is_some_and(|found| found.record.name == *to),
            ),
            Request::Commit { dataset, to, .. } => came(names.get(*dataset).is_some_and(|found| {
                found.record.phase == Phase::Sealed && found.record.name == *to
            })),
            Request::Remove { dataset } => {
                let found = names.get(*dataset);
                came(found.is_none_or(|found| found.record.is_removed()))
            }
            // Also where it was done here, other nodes may lack it.
            Request::Change { dataset, change } => {
                let tree = names.get(*dataset).and_then(|found| found.tree.clone());
                drop(names);
                tree.and_then(|tree| super::changes::done_here(&tree, change))
                    .map_or(Settled::Unknown, Settled::Here)
            }
            Request::Point { changes, .. } => {
                drop(names);
                came(self.has_pointed(changes))
            }
            // These can be asked any number of times.
            Request::Wait { .. }
            | Request::Flush { .. }
            | Request::Fetch { .. }
            | Request::Verify { .. }
            | Request::End => Settled::Unknown,
        }
    }

    /// All datasets as `status` shows them.
    pub fn statuses(&self) -> Vec<DatasetStatus> {
        let names = self.read_names();
        let current = names.restart().map(|dataset| dataset.record.id);
        names
            .iter()
            .map(|dataset| status_of(dataset, current))
            .collect()
    }
}
