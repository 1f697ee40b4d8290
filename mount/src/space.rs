//! How much of the store may be used: the budget, and in it the space that parity will need.
//!
//! Programs may write what leaves room for the parity of all that was accepted. With `budget` bytes in
//! all, parity costing `c` bytes for a byte of data, and `owed` bytes of parity that sealed datasets
//! have yet to get, what is available is
//!
//! ```text
//! (budget - used - owed - c * unsealed) / (1 + c)
//! ```
//!
//! It does not change when parity is written, and falls by one byte for each byte that a program writes.
//!
//! - On a private tmpfs the bound is the size of the tmpfs: the kernel refuses the first byte beyond, also
//!   of writes that the daemon never sees. The size is `used + available`, so that it has to be set
//!   only when something is sealed, encoded or removed, not while programs write.
//! - On any other directory the device knows nothing of it: the daemon compares before it creates, opens
//!   for writing, or writes. What the kernel writes by itself goes on as far as the device.
//!
//! When a dataset is sealed its parity gets its *room* before anything else may have the space: a file
//! of as many bytes, allocated, which the coordinator takes when it encodes. Where a program has filled all
//! that it may have, the size grows by a step before the room does; what is stolen in between is at
//! most a step each time.
//!
//! Memory: the size of a private tmpfs never promises more than the machine, or the control group, has
//! left; it is looked at every second.
//!
//! Simple now: parts of one set are taken to be about equal in size; a node with much less data than the others
//! may have to hold more parity than it kept room for, and then the dataset stays unprotected until
//! there is space, with the error in its record. Space of records and manifests is not counted one by one:
//! `slack` is kept for them.
//!
//! Locks: `saying`, in which names and handles are looked at; `Inner`, a leaf.

mod memory;

use memory::memory_left;
pub use memory::private_bytes;

use crate::store::{self, Place};
use crate::sys;
use crate::vfs::Vfs;
use scrfs::config::{Capacity, Config, RedundancyConfig};
use scrfs::control::{FromDaemon, Pressure};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::path::{CachePaths, Keep, parse_slot_directory};
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked at without being asked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A directory is measured file by file at most this part of the time.
const MEASURE_SHARE: u32 = 20;
/// A room grows by so much at a time, in bytes.
const STEP_BYTES: u64 = 16 << 20;
/// Most that is kept for records and manifests, in bytes.
const SLACK_BYTES_MAX: u64 = 8 << 20;
/// Part of the budget that is kept for them.
const SLACK_SHARE: u64 = 64;
const PAGE: u64 = 4096;

/// Bytes of parity for a byte of data, as a fraction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    parity: u64,
    data: u64,
}

impl Cost {
    /// Of the dearest scheme that a dataset may get among `nodes` nodes.
    fn of(rules: &[RedundancyConfig], nodes: u32) -> Self {
        let none = Self { parity: 0, data: 1 };
        let cost = |rule: &RedundancyConfig| {
            let members = rule.set_size.min(nodes);
            let scheme = rule.scheme.fitted_to(members);
            let parity = u64::from(scheme.parity_count());
            match scheme {
                scrfs::redundancy::Scheme::Partner { .. } => Self { parity, data: 1 },
                _ => Self {
                    parity,
                    data: u64::from(members).saturating_sub(parity).max(1),
                },
            }
        };
        let dearer = |one: Self, other: Self| {
            if other.parity * one.data > one.parity * other.data {
                other
            } else {
                one
            }
        };
        rules.iter().map(cost).fold(none, dearer)
    }

    fn on(self, bytes: u64) -> u64 {
        let parity = u128::from(bytes) * u128::from(self.parity);
        u64::try_from(parity.div_ceil(u128::from(self.data))).unwrap_or(u64::MAX)
    }

    /// How much data fits into `bytes` together with its parity.
    fn data_in(self, bytes: u64) -> u64 {
        let data = u128::from(bytes) * u128::from(self.data);
        u64::try_from(data / u128::from(self.data + self.parity)).unwrap_or(u64::MAX)
    }
}

/// What the budget is compared with, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Measure {
    /// All that may be used.
    budget: u64,
    /// All that is used.
    used: u64,
    /// The part of it that needs no parity any more: data of sealed datasets, parity, records.
    covered: u64,
    /// Parity that sealed datasets have yet to get.
    owed: u64,
    /// Kept for records and manifests.
    slack: u64,
    cost: Cost,
}

impl Measure {
    /// What programs may still write.
    fn available(&self) -> u64 {
        let unsealed = self.used.saturating_sub(self.covered);
        let promised = [self.owed, self.cost.on(unsealed), self.slack];
        let left = promised
            .iter()
            .fold(self.budget.saturating_sub(self.used), |left, bytes| {
                left.saturating_sub(*bytes)
            });
        self.cost.data_in(left) / PAGE * PAGE
    }
}

#[derive(Debug, Default)]
struct Inner {
    nodes: u32,
    /// Programs may have started: until then all space is for recovery.
    ready: bool,
    /// Datasets that are voted on: records are about to be written.
    voting: BTreeSet<DatasetId>,
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
    /// Of it, what is in datasets that are not sealed, records and all.
    unsealed: u64,
    /// What the coordinator was last told, and when.
    told: Option<(Pressure, Instant)>,
    /// Why the bound could not be set, when it was last tried.
    failed: Option<String>,
}

/// The space of one store.
#[derive(Debug)]
pub struct Space {
    cache: CachePaths,
    is_private: bool,
    capacity: Capacity,
    rules: Vec<RedundancyConfig>,
    inner: Mutex<Inner>,
    /// Held from looking at what is open until that is said: the last word is the newest.
    saying: Mutex<()>,
    wake: Sender<()>,
    woken: Mutex<Option<Receiver<()>>>,
}

/// Space as `statfs` reports it, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Figures {
    /// The budget.
    pub total: u64,
    /// Used of it, by data, parity and records.
    pub used: u64,
    /// What programs may still write.
    pub available: u64,
}

/// What a cache with `available` of `budget` bytes is short of, and whether a dataset that is being
/// written, with `unsealed` bytes so far, will not fit otherwise. The next dataset is taken to be as
/// large as the last one.
fn short_of((budget, available): (u64, u64), last: u64, unsealed: Option<u64>) -> (u64, bool) {
    let to_come = last.saturating_sub(unsealed.unwrap_or(0));
    let wanted = match last {
        0 => budget / 5,
        _ => (to_come / 5).saturating_add(to_come).max(budget / 20),
    };
    let urgent = unsealed.is_some() && available < to_come.max(budget / 50);
    (wanted.saturating_sub(available), urgent)
}

fn page_up(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE).saturating_mul(PAGE)
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
    /// The space of `place`, which is the first store of `config`.
    pub fn new(place: &Place, config: &Config) -> Self {
        let others = config.checkpoint.iter().map(|rule| rule.redundancy.clone());
        Self {
            is_private: place.is_private,
            capacity: config
                .store
                .first()
                .map_or(Capacity::Unlimited, |store| store.capacity),
            rules: others.chain([config.redundancy.clone()]).collect(),
            ..Self::unlimited(place.cache.clone())
        }
    }

    /// A directory all of which may be used, for tests of what is above.
    pub fn unlimited(cache: CachePaths) -> Self {
        let (wake, woken) = channel();
        Self {
            cache,
            is_private: false,
            capacity: Capacity::Unlimited,
            rules: Vec::new(),
            inner: Mutex::default(),
            saying: Mutex::default(),
            wake,
            woken: Mutex::new(Some(woken)),
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
    pub fn set_nodes(&self, nodes: usize) {
        self.lock().nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        self.wake();
    }

    /// Programs may start.
    pub fn set_ready(&self) {
        let mut inner = self.lock();
        inner.ready = true;
        // This coordinator has heard nothing yet.
        inner.told = None;
        drop(inner);
        self.wake();
    }

    /// A dataset is voted on: what is kept for records may be used, from before this returns.
    pub fn voting(&self, dataset: DatasetId) {
        let mut inner = self.lock();
        inner.voting.insert(dataset);
        let slack = std::mem::take(&mut inner.slack);
        drop(inner);
        if let Err(error) = self.grow(slack) {
            tracing::warn!(%dataset, %error, "no space for its records");
        }
    }

    /// It is no longer.
    pub fn voted(&self, dataset: DatasetId) {
        if self.lock().voting.remove(&dataset) {
            self.wake();
        }
    }

    /// Total and used bytes of the device.
    fn device(&self) -> io::Result<(u64, u64, u64)> {
        let root = File::open(self.cache.root())?;
        let found = sys::statvfs(root.as_fd())?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        Ok((bytes(found.f_blocks), used, bytes(found.f_bavail)))
    }

    /// As `statfs` reports it.
    pub fn figures(&self) -> io::Result<Figures> {
        let (total, used, free) = self.device()?;
        let inner = self.lock();
        if self.is_private {
            return Ok(Figures {
                total: inner.budget.max(used),
                used,
                available: inner.size.saturating_sub(used),
            });
        }
        let since = used.saturating_sub(inner.device_used);
        let budget = self.budget(total, 0);
        let used = match inner.measure_next {
            Some(_) => inner.measured.saturating_add(since),
            None => 0,
        };
        let gone = since.min(inner.available);
        Ok(Figures {
            total: budget.max(used),
            used,
            available: match inner.measure_next {
                Some(_) => (inner.available - gone).min(free),
                None => free,
            },
        })
    }

    /// Bytes of the store that are ours, as they were last measured: they change while programs write,
    /// also by passthrough.
    pub fn held_bytes(&self) -> u64 {
        if self.is_private {
            return self.device().map_or(0, |(_, used, _)| used);
        }
        self.lock().measured
    }

    /// Whether a program may write now; always where the device itself holds the bound.
    pub fn is_full(&self) -> bool {
        !self.is_private
            && self.capacity != Capacity::Unlimited
            && self.figures().is_ok_and(|figures| figures.available == 0)
    }

    fn budget(&self, device: u64, used: u64) -> u64 {
        if self.is_private {
            return private_bytes(self.capacity, used);
        }
        match self.capacity {
            Capacity::Percent(percent) => device / 100 * u64::from(percent),
            Capacity::Bytes(bytes) => bytes.min(device),
            Capacity::Unlimited => device,
        }
    }

    /// The slots of a dataset whose files are here.
    fn slots(&self, dataset: DatasetId) -> Vec<Slot> {
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
    pub fn publish(&self, record: &DatasetRecord) {
        if let (true, Some(seal)) = (record.is_cached(), &record.seal) {
            for slot in self.slots(record.id) {
                if let Err(error) = self.make_room(record.id, slot, Self::parity_bytes(seal, slot))
                {
                    tracing::warn!(dataset = %record.id, %slot, %error, "no room for parity yet");
                }
            }
        }
        if record.phase != Phase::Open {
            self.lock().voting.remove(&record.id);
        }
        self.wake();
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
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Allocates a room. Where all that programs may have is taken, the tmpfs grows before it.
    fn fill_room(&self, path: &Path) -> io::Result<()> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let length = file.metadata()?.len();
        if page_up(length) <= file.metadata()?.blocks() * 512 {
            return Ok(());
        }
        let mut at = 0;
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
                Err(nix::errno::Errno::ENOSPC) if self.is_private && memory_left() > step => {
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
        store::resize(self.cache.root(), size)?;
        inner.size = size;
        Ok(())
    }

    /// Looks at everything, fills rooms, sets the bound.
    fn look(&self, vfs: &Vfs) {
        let sealed = Self::sealed(vfs);
        for (dataset, _) in &sealed {
            for slot in self.slots(*dataset) {
                let room = self.cache.parity_room(*dataset, slot);
                match self.fill_room(&room) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(%dataset, %slot, %error, "no room for parity yet");
                    }
                    _ => {}
                }
            }
        }
        self.bound(vfs);
        self.press(vfs);
    }

    /// A dataset is no more.
    pub fn forget(&self, dataset: DatasetId) {
        self.lock().voting.remove(&dataset);
        self.wake();
    }

    fn sealed(vfs: &Vfs) -> Vec<(DatasetId, Seal)> {
        vfs.read_names()
            .iter()
            .filter(|dataset| dataset.record.is_cached())
            .filter_map(|dataset| Some((dataset.record.id, dataset.record.seal.clone()?)))
            .collect()
    }

    /// Says how this cache fares, when that is news, or while it wants anything.
    fn press(&self, vfs: &Vfs) {
        let of_phase = |phase: Phase| {
            let names = vfs.read_names();
            names
                .iter()
                .filter(|dataset| dataset.record.phase == phase)
                .map(|dataset| dataset.record.id)
                .collect::<BTreeSet<_>>()
        };
        let has_open = !of_phase(Phase::Open).is_empty();
        let last_bytes = Self::sealed(vfs).last().map_or(0, |(dataset, seal)| {
            let slots = self.slots(*dataset).into_iter();
            slots
                .filter_map(|slot| Some(seal.part(slot)?.log_bytes))
                .sum()
        });
        // What is on its way out will be free soon.
        let coming = measure(&self.cache.trash()) > 0
            || of_phase(Phase::Evicted)
                .iter()
                .any(|dataset| !self.slots(*dataset).is_empty());
        let saying = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = vfs.in_use();
        let mut inner = self.lock();
        if !inner.ready {
            return;
        }
        let cost = Cost::of(&self.rules, inner.nodes);
        let (wanted, urgent) = match coming {
            true => (0, false),
            false => short_of(
                (inner.budget, inner.available),
                last_bytes,
                has_open.then_some(inner.unsealed),
            ),
        };
        let pressure = Pressure {
            wanted_bytes: wanted.saturating_add(cost.on(wanted)),
            urgent,
            in_use,
        };
        let news = inner.told.as_ref().is_none_or(|(told, at)| {
            let again = pressure.wanted_bytes > 0 && at.elapsed() >= LOOK_AGAIN;
            again
                || told.in_use != pressure.in_use
                || told.urgent != pressure.urgent
                || (told.wanted_bytes == 0) != (pressure.wanted_bytes == 0)
        });
        if news {
            inner.told = Some((pressure.clone(), Instant::now()));
            drop(inner);
            vfs.requests().tell(FromDaemon::Pressure(pressure));
        }
        drop(saying);
    }

    /// Says what programs have open now, if the coordinator does not know.
    pub fn tell_in_use(&self, vfs: &Vfs) {
        let _saying = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = vfs.in_use();
        let mut inner = self.lock();
        let Some((told, _)) = inner
            .told
            .as_mut()
            .filter(|(told, _)| told.in_use != in_use)
        else {
            return;
        };
        told.in_use = in_use;
        let pressure = told.clone();
        drop(inner);
        vfs.requests().tell(FromDaemon::Pressure(pressure));
    }

    /// Measures, and sets the bound.
    pub fn bound(&self, vfs: &Vfs) {
        let failed = self.try_bound(&Self::sealed(vfs)).err();
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
        covered += allocated(&self.cache.reserve()).unwrap_or(0);
        let (device, used, _) = self.device()?;
        let mut inner = self.lock();
        let budget = self.budget(device, used);
        let used = match self.is_private {
            true => used,
            false => self.measured(&mut inner, used),
        };
        let is_kept = self.is_private && inner.ready && !settling && inner.voting.is_empty();
        let slack = match is_kept {
            true => (budget / SLACK_SHARE).min(SLACK_BYTES_MAX),
            false => 0,
        };
        let measure = Measure {
            budget,
            used,
            covered,
            owed,
            slack,
            cost: match inner.ready {
                true => Cost::of(&self.rules, inner.nodes),
                false => Cost::of(&[], 0),
            },
        };
        inner.budget = budget;
        inner.slack = slack;
        inner.unsealed = used.saturating_sub(covered);
        inner.available = measure.available();
        if self.is_private {
            let size = page_up(used).saturating_add(inner.available).max(PAGE);
            if size != inner.size {
                // Refused when more was written since: then it is as full as it was.
                match store::resize(self.cache.root(), size) {
                    Ok(()) => inner.size = size,
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.wake(),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn measured(&self, inner: &mut Inner, device_used: u64) -> u64 {
        let now = Instant::now();
        if inner.measure_next.is_none_or(|next| next <= now) {
            inner.measured = measure(self.cache.root());
            inner.measure_next = Some(now + (now.elapsed() * MEASURE_SHARE).max(LOOK_AGAIN));
            inner.device_used = device_used;
        }
        inner.measured
    }

    /// Looks at once, again when something changes, and every second, until `ending` says so.
    pub fn run(&self, vfs: &Vfs, ending: impl Fn() -> bool) {
        let woken = self
            .woken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(woken) = woken else { return };
        while !ending() {
            self.look(vfs);
            match woken.recv_timeout(LOOK_AGAIN) {
                Ok(()) => while woken.try_recv().is_ok() {},
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrfs::redundancy::Scheme;

    const GIB: u64 = 1 << 30;

    fn rule(scheme: Scheme) -> RedundancyConfig {
        RedundancyConfig {
            scheme,
            set_size: 8,
            group: "node".into(),
            chunk_bytes: 1 << 20,
        }
    }

    fn empty(cost: Cost) -> Measure {
        Measure {
            budget: GIB,
            used: 0,
            covered: 0,
            owed: 0,
            slack: 0,
            cost,
        }
    }

    #[test]
    fn parity_of_what_is_accepted_always_fits() {
        for (scheme, nodes) in [
            (Scheme::Single, 4),
            (Scheme::Xor, 4),
            (Scheme::Xor, 100),
            (Scheme::ReedSolomon { parities: 3 }, 9),
            (Scheme::Partner { copies: 2 }, 5),
        ] {
            let cost = Cost::of(&[rule(Scheme::Single), rule(scheme)], nodes);
            let mut measure = empty(cost);
            let first = measure.available();
            assert!(first + cost.on(first) <= GIB, "{scheme} on {nodes}");
            assert!(
                first + cost.on(first) + 3 * PAGE > GIB,
                "{scheme} on {nodes}"
            );
            // Written to the last byte, sealed, its parity written bit by bit.
            measure.used = first;
            assert_eq!(measure.available(), 0, "{scheme} on {nodes}");
            measure.covered = first;
            measure.owed = cost.on(first);
            assert!(measure.available() < 2 * PAGE, "{scheme} on {nodes}");
            while measure.owed > 0 {
                let step = measure.owed.min(50 << 20);
                measure.owed -= step;
                measure.used += step;
                measure.covered += step;
                assert!(measure.used <= GIB, "{scheme} on {nodes}");
                assert!(measure.available() < 2 * PAGE, "{scheme} on {nodes}");
            }
        }
    }

    #[test]
    fn every_byte_written_is_one_less_and_parity_takes_nothing() {
        let mut measure = empty(Cost::of(&[rule(Scheme::Xor)], 4));
        let whole = measure.available();
        measure.used = 30 * PAGE;
        assert!(whole - 30 * PAGE - measure.available() <= PAGE);
        measure.covered = measure.used;
        measure.owed = 10 * PAGE;
        let sealed = measure.available();
        assert!(whole - 30 * PAGE - sealed <= PAGE);
        (measure.used, measure.covered, measure.owed) = (40 * PAGE, 40 * PAGE, 0);
        assert_eq!(measure.available(), sealed);
    }

    #[test]
    fn the_next_dataset_is_taken_to_be_as_large_as_the_last() {
        let free = |available| (1000, available);
        assert_eq!(short_of(free(300), 0, None), (0, false));
        assert_eq!(short_of(free(100), 0, None), (100, false));
        assert_eq!(short_of(free(400), 400, None), (80, false));
        assert_eq!(short_of(free(480), 400, None), (0, false));
        // A fourth of it is written, and there is room for less than the rest.
        assert_eq!(short_of(free(300), 400, Some(100)), (60, false));
        assert_eq!(short_of(free(299), 400, Some(100)), (61, true));
        // It is larger than the last one was.
        assert_eq!(short_of(free(10), 400, Some(500)), (40, true));
    }

    #[test]
    fn one_node_needs_no_parity() {
        let cost = Cost::of(&[rule(Scheme::ReedSolomon { parities: 2 })], 1);
        assert_eq!(empty(cost).available(), GIB);
    }

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
