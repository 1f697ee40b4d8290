//! The space of one store: what is measured there, the bound that is set, the rooms of parity.
//!
//! Datasets are found by their paths at home, and count here when they lie here.
//!
//! Lock: `Inner`, a leaf.

use super::budget::{Cost, Measure, PAGE, page_up, short_of};
use super::memory::{
    group_memory_left, is_in_memory, memory_left, memory_left_for_records, private_bytes,
};
use super::{Figures, LOOK_AGAIN};
use crate::store::{self, Place};
use crate::sys;
use crate::vfs::Vfs;
use scrfs::config::{Capacity, RedundancyConfig};
use scrfs::control::StorePressure;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::path::{CachePaths, Keep, parse_slot_directory};
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use scrfs::stores::Stores;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How much there is to write is looked at anew when this part of it was written: the memory of a control
/// group goes to others, too.
const LOOK_SHARE: u64 = 8;
/// A directory is measured file by file at most this part of the time.
const MEASURE_SHARE: u32 = 20;
/// A room grows by so much at a time, in bytes.
const STEP_BYTES: u64 = 16 << 20;
/// Most that is kept for records and manifests, in bytes.
const SLACK_BYTES_MAX: u64 = 8 << 20;
/// Part of the budget that is kept for them.
const SLACK_SHARE: u64 = 64;

#[derive(Debug, Default)]
struct Inner {
    nodes: u32,
    /// Programs may have started: until then all space is for recovery.
    ready: bool,
    /// Datasets that are voted on: records are about to be written.
    voting: BTreeSet<DatasetId>,
    /// Open datasets that have a room for parity.
    ahead: BTreeMap<DatasetId, Slot>,
    budget: u64,
    available: u64,
    /// What is kept for records now.
    slack: u64,
    /// Of the tmpfs, as it was last set.
    size: u64,
    /// Bytes in the directory, and used on its device, when it was last measured file by file.
    measured: u64,
    device_used: u64,
    measure_next: Option<Instant>,
    /// What `available` comes from, and the bytes used on the device at that time.
    measure: Measure,
    bound_used: u64,
    /// Of it, what is in datasets that are not sealed, records and all.
    unsealed: u64,
    /// The device takes more than the daemon's control group has memory for.
    outgrows_group: bool,
    /// Why the bound could not be set, when it was last tried.
    failed: Option<String>,
}

impl Inner {
    /// Bytes in the directory while its device has `device_used`: what came and went since the last measurement is
    /// taken to be of it.
    fn ours(&self, device_used: u64) -> u64 {
        let came = device_used.saturating_sub(self.device_used);
        let went = self.device_used.saturating_sub(device_used);
        self.measured.saturating_add(came).saturating_sub(went)
    }

    /// Parity of unsealed data has its room from now on, or has not: it is not taken for something that programs wrote.
    fn count_ahead(&mut self, change: impl Fn(u64) -> u64) {
        let Measure {
            used,
            covered,
            ahead,
            ..
        } = self.measure;
        let measure = Measure {
            used: change(used),
            covered: change(covered),
            ahead: change(ahead),
            ..self.measure
        };
        let bound_used = change(self.bound_used);
        self.set_measure(measure, bound_used);
    }

    fn set_measure(&mut self, measure: Measure, device_used: u64) {
        self.measure = measure;
        self.budget = measure.budget;
        self.unsealed = measure.used.saturating_sub(measure.covered);
        self.available = measure.available();
        self.bound_used = device_used;
    }
}

/// The space of one store.
#[derive(Debug)]
pub(super) struct Space {
    stores: Stores,
    index: usize,
    /// Where all datasets are found.
    cache: CachePaths,
    /// This store.
    root: CachePaths,
    is_private: bool,
    /// Its device is the memory of the machine.
    is_in_memory: bool,
    capacity: Capacity,
    rules: Vec<RedundancyConfig>,
    inner: Mutex<Inner>,
    wake: Sender<()>,
}

/// Bytes allocated below a directory; what vanishes meanwhile does not count.
fn measure(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.is_dir() {
                left.push(entry.path());
            } else {
                // A file of several names counts once in all.
                bytes += found.blocks() * 512 / found.nlink().max(1);
            }
        }
    }
    bytes
}

fn allocated(path: &Path) -> Option<u64> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some(found.blocks() * 512)
}

impl Space {
    pub(super) fn new(
        stores: &Stores,
        index: usize,
        place: &Place,
        rules: Vec<RedundancyConfig>,
        wake: Sender<()>,
    ) -> Self {
        Self {
            stores: stores.clone(),
            index,
            cache: stores.home().clone(),
            is_in_memory: place.is_private || is_in_memory(place.cache.root()),
            root: place.cache.clone(),
            is_private: place.is_private,
            capacity: place.capacity,
            rules,
            inner: Mutex::default(),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Nobody listens any more when the daemon ends.
        let _ = self.wake.send(());
    }

    /// How many nodes there are: sets of so many at most.
    pub(super) fn set_nodes(&self, nodes: usize) {
        self.lock().nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    }

    /// Programs may start.
    pub(super) fn set_ready(&self) {
        self.lock().ready = true;
    }

    /// A dataset is voted on: what is kept for records may be used, from before this returns.
    pub(super) fn voting(&self, dataset: DatasetId) {
        let mut inner = self.lock();
        inner.voting.insert(dataset);
        let slack = std::mem::take(&mut inner.slack);
        drop(inner);
        if let Err(error) = self.grow(slack) {
            tracing::warn!(%dataset, %error, "no space for its records");
        }
    }

    /// It is no longer.
    pub(super) fn voted(&self, dataset: DatasetId) {
        if self.lock().voting.remove(&dataset) {
            self.wake();
        }
    }

    /// Total and used bytes of the device.
    fn device(&self) -> io::Result<(u64, u64, u64)> {
        let root = File::open(self.root.root())?;
        let found = sys::statvfs(root.as_fd())?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        Ok((bytes(found.f_blocks), used, bytes(found.f_bavail)))
    }

    /// As `statfs` reports it.
    pub(super) fn figures(&self) -> io::Result<Figures> {
        let (total, used, free) = self.device()?;
        let mut inner = self.lock();
        if self.is_private {
            return Ok(Figures {
                total: inner.budget.max(used),
                used,
                available: inner.size.saturating_sub(used),
            });
        }
        if inner.measure_next.is_none() {
            let total = self.budget(total, 0);
            return Ok(Figures {
                total,
                used: 0,
                available: free.min(total),
            });
        }
        // This is asked before every write that is served: only now and then it reads the figures of memory.
        let since = used.saturating_sub(inner.bound_used);
        let went = inner.bound_used.saturating_sub(used);
        if since > inner.available / LOOK_SHARE || went > 0 {
            let ours = inner.ours(used);
            let budget = self.budget(total, ours);
            let measure = Measure {
                budget,
                used: ours,
                // What was removed may have been sealed: what is not keeps all that its parity will need.
                covered: inner.measure.covered.saturating_sub(went),
                ..inner.measure
            };
            inner.set_measure(measure, used);
        }
        let since = used.saturating_sub(inner.bound_used);
        let ours = inner.ours(used);
        Ok(Figures {
            total: inner.budget.max(ours),
            used: ours,
            available: inner.available.saturating_sub(since).min(free),
        })
    }

    /// Bytes of the store that are ours, as they were last measured.
    pub(super) fn held_bytes(&self) -> u64 {
        if self.is_private {
            return self.device().map_or(0, |(_, used, _)| used);
        }
        self.lock().measured
    }

    /// What programs may still write; `None` where the device itself holds the bound.
    pub(super) fn left(&self) -> Option<u64> {
        let is_held =
            !self.is_private && (self.is_in_memory || self.capacity != Capacity::Unlimited);
        is_held
            .then(|| self.figures().ok())?
            .map(|found| found.available)
    }

    /// Whether what the kernel writes by itself ends before the memory of the daemon's control group does: there
    /// somebody would be killed.
    pub(super) fn has_end(&self) -> bool {
        !self.lock().outgrows_group
    }

    fn budget(&self, device: u64, used: u64) -> u64 {
        if self.is_private {
            return private_bytes(self.capacity, used);
        }
        let budget = match self.capacity {
            Capacity::Percent(percent) => device / 100 * u64::from(percent),
            Capacity::Bytes(bytes) => bytes.min(device),
            Capacity::Unlimited => device,
        };
        match self.is_in_memory {
            // What is promised and not there would end with somebody killed.
            true => budget.min(memory_left().saturating_add(used)),
            false => budget,
        }
    }

    /// Whether a dataset lies in this store.
    pub(super) fn holds(&self, dataset: DatasetId) -> bool {
        self.stores.store_of(dataset) == Some(self.index)
    }

    /// Bytes of data that a sealed dataset has here, and of its parity.
    pub(super) fn bytes_of(&self, dataset: DatasetId, seal: &Seal) -> (u64, u64) {
        let slots = self.slots(dataset);
        let data = slots
            .iter()
            .filter_map(|slot| Some(seal.part(*slot)?.log_bytes));
        let parity = slots.iter().map(|slot| Self::parity_bytes(seal, *slot));
        (data.sum(), parity.sum())
    }

    /// The slots of a dataset whose files are here.
    fn slots(&self, dataset: DatasetId) -> Vec<Slot> {
        if !self.holds(dataset) {
            return Vec::new();
        }
        let Ok(entries) = std::fs::read_dir(self.cache.dataset(dataset)) else {
            return Vec::new();
        };
        let own = entries.flatten().filter_map(|entry| {
            match parse_slot_directory(entry.file_name().to_str()?) {
                Some((slot, Keep::Own)) => Some(slot),
                _ => None,
            }
        });
        own.filter(|slot| self.cache.tree(dataset, *slot).exists())
            .collect()
    }

    fn parity_bytes(seal: &Seal, slot: Slot) -> u64 {
        seal.geometry_of(slot)
            .map_or(0, |geometry| geometry.parity_len(slot))
    }

    /// A dataset is now as `record` says: when it is sealed and without parity, its parity gets a room,
    /// which is filled at leisure. Called before anybody may begin to encode it.
    pub(super) fn publish(&self, record: &DatasetRecord) {
        if let (true, Some(seal)) = (record.is_cached(), &record.seal) {
            for slot in self.slots(record.id) {
                if let Err(error) = self.make_room(record.id, slot, Self::parity_bytes(seal, slot))
                {
                    tracing::warn!(dataset = %record.id, %slot, %error, "no room for parity yet");
                }
            }
        }
        if record.phase != Phase::Open {
            let mut inner = self.lock();
            inner.voting.remove(&record.id);
            inner.ahead.remove(&record.id);
        }
    }

    /// Whether parity of what is written here goes to this store.
    pub(super) fn has_parity(&self) -> bool {
        let nodes = self.lock().nodes;
        nodes > 1 && Cost::of(&self.rules, nodes).on(PAGE) > 0
    }

    /// Keeps room for the parity of so many bytes of an open dataset, in one file that grows.
    pub(super) fn keep_ahead(&self, dataset: DatasetId, bytes: u64) -> io::Result<()> {
        let slot = self.slots(dataset).into_iter().next();
        let slot = slot.ok_or(io::ErrorKind::NotFound)?;
        let wanted = page_up(Cost::of(&self.rules, self.lock().nodes).on(bytes));
        let room = self.cache.parity_room(dataset, slot);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&room)?;
        let found = file.metadata()?;
        let before = found.blocks() * 512;
        if before >= wanted {
            return Ok(());
        }
        let grown = wanted - before;
        // Programs are writing: what is allocated here is theirs until the bound has followed, and near the end they
        // would find the store full.
        if self.figures()?.available / 2 < grown.saturating_add(STEP_BYTES) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut inner = self.lock();
        inner.ahead.insert(dataset, slot);
        inner.count_ahead(|counted| counted.saturating_add(grown));
        drop(inner);
        // Never shorter: parity may be in it as far as it is allocated.
        file.set_len(wanted.max(found.len()))?;
        let filled = self.fill_room(&room, before / STEP_BYTES * STEP_BYTES, false);
        if filled.is_err() {
            self.lock()
                .count_ahead(|counted| counted.saturating_sub(grown));
        }
        filled
    }

    fn make_room(&self, dataset: DatasetId, slot: Slot, bytes: u64) -> io::Result<()> {
        let room = self.cache.parity_room(dataset, slot);
        // In this order: the coordinator renames a room to the new one, and that to the parity.
        let being_written = self.cache.parity_new(dataset, slot).exists();
        if self.cache.parity(dataset, slot).exists() {
            match std::fs::remove_file(&room) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(()),
            }
        }
        if being_written || bytes == 0 {
            return Ok(());
        }
        let made = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&room);
        match made {
            Ok(file) => file.set_len(bytes),
            // Of parity that was made before the commit, or of an epoch before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => File::options()
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&room)?
                .set_len(bytes),
            Err(error) => Err(error),
        }
    }

    /// Allocates a room, from an offset on. Where all that programs may have is taken, the tmpfs grows before it if it
    /// `must` be: somebody who writes at that moment takes what it grows by.
    fn fill_room(&self, path: &Path, from: u64, must: bool) -> io::Result<()> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let length = file.metadata()?.len();
        if page_up(length) <= file.metadata()?.blocks() * 512 {
            return Ok(());
        }
        let mut at = from;
        while at < length {
            let step = STEP_BYTES.min(length - at);
            let before = self.device()?.1;
            match sys::fallocate(file.as_fd(), 0, at, step) {
                Ok(()) => {
                    at += step;
                    // What was allocated was promised before: programs may have as much as before.
                    let grown = self.device()?.1.saturating_sub(before).min(page_up(step));
                    self.grow(grown)?;
                }
                Err(nix::errno::Errno::ENOSPC)
                    if must && self.is_private && memory_left() > step =>
                {
                    self.grow(page_up(step))?;
                    if sys::fallocate(file.as_fd(), 0, at, step).is_ok() {
                        at += step;
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        if !self.is_private || bytes == 0 {
            return Ok(());
        }
        let mut inner = self.lock();
        let size = inner.size.saturating_add(bytes);
        store::resize(self.root.root(), size)?;
        inner.size = size;
        Ok(())
    }

    /// Fills the rooms of what is sealed, and sets the bound.
    pub(super) fn look(&self, sealed: &[(DatasetId, Seal)]) {
        for (dataset, _) in sealed {
            for slot in self.slots(*dataset) {
                let room = self.cache.parity_room(*dataset, slot);
                match self.fill_room(&room, 0, true) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(%dataset, %slot, %error, "no room for parity yet");
                    }
                    _ => {}
                }
            }
        }
        self.bound(sealed);
    }

    /// A dataset is no more.
    pub(super) fn forget(&self, dataset: DatasetId) {
        let mut inner = self.lock();
        inner.voting.remove(&dataset);
        inner.ahead.remove(&dataset);
    }

    /// How this store fares, when programs may have started; the next dataset is taken to be of `last` bytes.
    pub(super) fn pressure(&self, vfs: &Vfs, last: u64) -> Option<StorePressure> {
        let those = |which: fn(&DatasetRecord) -> bool| {
            let names = vfs.read_names();
            names
                .iter()
                .filter(|dataset| which(&dataset.record))
                .map(|dataset| dataset.record.id)
                .filter(|dataset| self.holds(*dataset))
                .collect::<Vec<_>>()
        };
        let has_open = !those(|record| record.phase == Phase::Open).is_empty();
        let coming = self.is_emptying(those(|record| record.phase == Phase::Evicted));
        let holds = those(|record| record.is_cached() || record.phase == Phase::Failed);
        let inner = self.lock();
        if !inner.ready {
            return None;
        }
        let cost = Cost::of(&self.rules, inner.nodes);
        let (wanted, urgent) = match coming {
            true => (0, false),
            false => short_of(
                (inner.budget, inner.available),
                last,
                has_open.then_some(inner.unsealed),
            ),
        };
        Some(StorePressure {
            wanted_bytes: wanted.saturating_add(cost.on(wanted)),
            urgent,
            holds,
        })
    }

    /// Whether something is on its way out, so that its space will be free soon; `evicted` is what caches are to
    /// let go of.
    pub(super) fn is_emptying(&self, evicted: impl IntoIterator<Item = DatasetId>) -> bool {
        let mut evicted = evicted.into_iter();
        measure(&self.root.trash()) > 0 || evicted.any(|dataset| !self.slots(dataset).is_empty())
    }

    /// Whether so many bytes, of data with its parity, may come here from another store.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let available = self.figures().map_or(0, |figures| figures.available);
        let cost = Cost::of(&self.rules, self.lock().nodes);
        // Until it is in its place, parity is kept for it as for what is being written.
        available.saturating_add(cost.on(available)) > bytes.saturating_add(cost.on(bytes))
    }

    /// What another dataset may write here, when those that are `open` here become `last` bytes long.
    pub(super) fn room(&self, open: u64, last: u64) -> u64 {
        let available = self.figures().map_or(0, |figures| figures.available);
        let to_come = open
            .saturating_mul(last)
            .saturating_sub(self.lock().unsealed);
        available.saturating_sub(to_come)
    }

    /// Measures, and sets the bound.
    pub(super) fn bound(&self, sealed: &[(DatasetId, Seal)]) {
        let failed = self.try_bound(sealed).err();
        let failed = failed.map(|error| error.to_string());
        let mut inner = self.lock();
        // Once, not every second.
        if let Some(error) = failed.as_ref().filter(|_| failed != inner.failed) {
            tracing::error!(%error, "cannot hold the cache to its budget");
        }
        inner.failed = failed;
    }

    fn try_bound(&self, sealed: &[(DatasetId, Seal)]) -> io::Result<()> {
        let (mut covered, mut owed, mut settling) = (0u64, 0u64, false);
        for (dataset, seal) in sealed {
            for slot in self.slots(*dataset) {
                let data = seal.part(slot).map_or(0, |part| part.log_bytes);
                let done = allocated(&self.cache.parity(*dataset, slot));
                settling |= done.is_none();
                let on_its_way = [
                    self.cache.parity_new(*dataset, slot),
                    self.cache.parity_room(*dataset, slot),
                ];
                let parity = done.unwrap_or_else(|| {
                    let found = on_its_way.iter().find_map(|path| allocated(path));
                    found.unwrap_or(0)
                });
                covered = covered.saturating_add(data).saturating_add(parity);
                if done.is_none() {
                    owed += page_up(Self::parity_bytes(seal, slot)).saturating_sub(parity);
                }
            }
        }
        covered += allocated(&self.root.reserve()).unwrap_or(0);
        let rooms = self.lock().ahead.clone().into_iter();
        let rooms = rooms.map(|(dataset, slot)| self.cache.parity_room(dataset, slot));
        let ahead: u64 = rooms.filter_map(|room| allocated(&room)).sum();
        covered += ahead;
        let (device, used, free) = self.device()?;
        let outgrows = self.is_in_memory
            && !self.is_private
            && group_memory_left().is_some_and(|left| left < free);
        let mut inner = self.lock();
        if outgrows && !inner.outgrows_group {
            let store = self.root.root().display();
            tracing::warn!(
                %store,
                "the control group has less memory than this store has room: files are written through the \
                 daemon, which stops in time; a private tmpfs (store.path = \"tmpfs\") is written by passthrough"
            );
        }
        inner.outgrows_group = outgrows;
        let (used, device_used) = match self.is_private {
            true => (used, used),
            false => self.measured(&mut inner, used),
        };
        let budget = self.budget(device, used);
        let is_kept = self.is_private && inner.ready && !settling && inner.voting.is_empty();
        let for_records = (budget / SLACK_SHARE).min(SLACK_BYTES_MAX);
        // What programs are refused, or, when records are about to be written, what those get in any case.
        let (slack, spare) = match is_kept {
            true => (for_records, 0),
            false => (0, for_records.min(memory_left_for_records())),
        };
        let measure = Measure {
            budget,
            used,
            covered,
            owed,
            ahead,
            slack,
            cost: match inner.ready {
                true => Cost::of(&self.rules, inner.nodes),
                false => Cost::of(&[], 0),
            },
        };
        inner.slack = slack;
        inner.set_measure(measure, device_used);
        if self.is_private {
            let free = inner.available.max(spare);
            let size = page_up(used).saturating_add(free).max(PAGE);
            if size != inner.size {
                // Refused when more was written since: then it is as full as it was.
                match store::resize(self.root.root(), size) {
                    Ok(()) => inner.size = size,
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.wake(),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Bytes in the directory, and used on its device at that time, which were `device_used` a moment ago.
    fn measured(&self, inner: &mut Inner, device_used: u64) -> (u64, u64) {
        let now = Instant::now();
        if inner.measure_next.is_none_or(|next| next <= now) {
            inner.measured = measure(self.root.root());
            inner.measure_next = Some(now + (now.elapsed() * MEASURE_SHARE).max(LOOK_AGAIN));
            // Whether what came or went meanwhile was seen is not known: programs are not refused for it.
            let after = self.device().map_or(device_used, |(_, used, _)| used);
            inner.device_used = device_used.max(after);
            return (inner.ours(after), after);
        }
        (inner.ours(device_used), device_used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_measured_with_hard_links_once() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let file = root.path().join("file");
        std::fs::create_dir(root.path().join("sub")).expect("a directory");
        std::fs::write(&file, vec![1; 100_000]).expect("written");
        std::fs::hard_link(&file, root.path().join("sub/link")).expect("a link");
        let bytes = measure(root.path());
        assert!((100_000..150_000).contains(&bytes), "{bytes}");
    }
}
