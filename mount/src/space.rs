//! How much of the stores may be used: the budget of each, and in it the space that parity will need.
//!
//! Programs may write what leaves room for the parity of all that was accepted. With `budget` bytes in
//! all, parity costing `c` bytes for a byte of data, and `owed` bytes of parity that sealed datasets
//! have yet to get, what is available is
//!
//! ```text
//! (budget - used - owed - c * unsealed) / (1 + c)
//! ```
//!
//! Parity that unsealed data has already, made before the commit, is no part of `unsealed` and lessens `c * unsealed`.
//! What is available does not change when parity is written, and falls by one byte for each byte that a program writes.
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
//! Memory: no budget promises more than the machine, or the control group, has left, in a private tmpfs as
//! in a directory of another one; it is looked at every second.
//!
//! Several stores (ADR 16): each is held to its own budget; `statfs` shows the sum. Where a faster one is short
//! of space, what was sealed there and is not in the prefix is to move to the next one that has space for
//! it: the coordinator does it, one dataset at a time, when it is told.
//!
//! Simple now: parts of one set are taken to be about equal in size; a node with much less data than the others
//! may have to hold more parity than it kept room for, and then the dataset stays unprotected until
//! there is space, with the error in its record. Space of records and manifests is not counted one by one:
//! `slack` is kept for them.
//!
//! Locks: `saying`, in which names and handles are looked at; `told`, then one of a store, each a leaf.

mod budget;
mod memory;
mod store;

pub use memory::private_bytes;

use crate::store::Place;
use crate::vfs::Vfs;
use scrfs::config::{Capacity, Config, RedundancyConfig};
use scrfs::control::{FromDaemon, Pressure, Room};
use scrfs::id::DatasetId;
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use scrfs::stores::Stores;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::Space;

/// How often it is looked at without being asked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a store is short of space before what the prefix has is moved, and not left to be evicted.
const EVICTION_PATIENCE: Duration = Duration::from_secs(4);

/// How long a new dataset waits for room that is on its way.
const ROOM_PATIENCE: Duration = Duration::from_secs(60);
/// For how long after the last sign of it room may still come: rank 0 has yet to say what may go.
const ROOM_GRACE: Duration = Duration::from_millis(250);
/// How often that is looked at.
const ROOM_LOOK: Duration = Duration::from_millis(20);

/// Space as `statfs` reports it, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Figures {
    /// The budget.
    pub total: u64,
    /// Used of it, by data, parity and records.
    pub used: u64,
    /// What programs may still write.
    pub available: u64,
}

/// What the coordinator was last told.
#[derive(Debug, Default)]
struct Told {
    pressure: Option<(Pressure, Instant)>,
    /// Since when a store is short of space.
    short_since: BTreeMap<usize, Instant>,
}

/// The space of all stores.
#[derive(Debug)]
pub struct Spaces {
    stores: Stores,
    all: Vec<Space>,
    told: Mutex<Told>,
    /// Held from looking at what is open until that is said: the last word is the newest.
    saying: Mutex<()>,
    /// Parity may be made before the commit.
    is_ahead: bool,
    wake: Sender<()>,
    woken: Mutex<Option<Receiver<()>>>,
}

impl Spaces {
    /// The space of the stores at `places`; `None` when there is none.
    pub fn new(places: &[Place], config: &Config) -> Option<Self> {
        let others = config.checkpoint.iter().map(|rule| rule.redundancy.clone());
        let rules = others.chain([config.redundancy.clone()]).collect();
        let mut spaces = Self::of(places, rules)?;
        spaces.is_ahead = config.ahead_percent > 0;
        Some(spaces)
    }

    fn of(places: &[Place], rules: Vec<RedundancyConfig>) -> Option<Self> {
        let (home, further) = places.split_first()?;
        let further = further.iter().map(|place| place.cache.clone());
        let stores = Stores::new(home.cache.clone(), further.collect());
        let (wake, woken) = channel();
        let all = places.iter().enumerate();
        let all = all
            .map(|(index, place)| Space::new(&stores, index, place, rules.clone(), wake.clone()));
        Some(Self {
            all: all.collect(),
            stores,
            told: Mutex::default(),
            saying: Mutex::default(),
            is_ahead: false,
            wake,
            woken: Mutex::new(Some(woken)),
        })
    }

    /// One directory all of which may be used, for tests of what is above.
    pub fn unlimited(cache: CachePaths) -> Self {
        let place = Place {
            cache,
            is_private: false,
            capacity: Capacity::Unlimited,
            words: String::new(),
        };
        let rule = RedundancyConfig {
            scheme: scrfs::redundancy::Scheme::Xor,
            set_size: 8,
            group: "node".into(),
            chunk_bytes: 1 << 20,
        };
        #[expect(clippy::expect_used, reason = "there is one place")]
        let mut spaces = Self::of(&[place], vec![rule]).expect("a store");
        spaces.is_ahead = true;
        spaces
    }

    /// Where everything lies.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Nobody listens any more when the daemon ends.
        let _ = self.wake.send(());
    }

    /// How many nodes there are: sets of so many at most.
    pub fn set_nodes(&self, nodes: usize) {
        self.all.iter().for_each(|space| space.set_nodes(nodes));
        self.wake();
    }

    /// Programs may start.
    pub fn set_ready(&self) {
        self.all.iter().for_each(Space::set_ready);
        // This coordinator has heard nothing yet.
        self.told().pressure = None;
        self.wake();
    }

    /// A dataset is voted on: what is kept for records may be used, from before this returns.
    pub fn voting(&self, dataset: DatasetId) {
        self.all.iter().for_each(|space| space.voting(dataset));
    }

    /// It is no longer.
    pub fn voted(&self, dataset: DatasetId) {
        self.all.iter().for_each(|space| space.voted(dataset));
    }

    /// Of each store.
    pub fn each(&self) -> impl Iterator<Item = io::Result<Figures>> {
        self.all.iter().map(Space::figures)
    }

    /// All stores together, as `statfs` reports it.
    pub fn figures(&self) -> io::Result<Figures> {
        self.each().try_fold(Figures::default(), |sum, one| {
            let one = one?;
            Ok(Figures {
                total: sum.total.saturating_add(one.total),
                used: sum.used.saturating_add(one.used),
                available: sum.available.saturating_add(one.available),
            })
        })
    }

    /// Bytes of the stores that are ours, as they were last measured: they change while programs write,
    /// also by passthrough.
    pub fn held_bytes(&self) -> u64 {
        self.all.iter().map(Space::held_bytes).sum()
    }

    fn holder(&self, dataset: DatasetId) -> Option<&Space> {
        let index = match self.all.len() {
            1 => Some(0),
            _ => self.stores.store_of(dataset),
        };
        self.all.get(index?)
    }

    /// What programs may still write to a dataset; `None` where the device itself holds the bound.
    pub fn left(&self, dataset: DatasetId) -> Option<u64> {
        self.holder(dataset)?.left()
    }

    /// Whether the kernel may write to a dataset by itself: not where it would go on until the memory of the
    /// control group ends.
    pub fn has_end(&self, dataset: DatasetId) -> bool {
        self.holder(dataset).is_none_or(Space::has_end)
    }

    /// Whether it is to be known which files are closed.
    pub fn watches_closed(&self) -> bool {
        self.is_ahead
    }

    /// Whether parity may be made before the commit: there are others to share it with.
    pub fn encodes_ahead(&self) -> bool {
        self.is_ahead && self.all.first().is_some_and(Space::has_parity)
    }

    /// Keeps room for the parity of so many bytes of an open dataset.
    ///
    /// # Errors
    ///
    /// There is none, or little left for programs.
    pub fn keep_ahead(&self, dataset: DatasetId, bytes: u64) -> io::Result<()> {
        let space = self.holder(dataset).ok_or(io::ErrorKind::NotFound)?;
        space.keep_ahead(dataset, bytes)
    }

    /// A dataset is now as `record` says: when it is sealed and without parity, its parity gets a room,
    /// which is filled at leisure. Called before anybody may begin to encode it.
    pub fn publish(&self, record: &DatasetRecord) {
        self.all.iter().for_each(|space| space.publish(record));
        self.wake();
    }

    /// A dataset is no more.
    pub fn forget(&self, dataset: DatasetId) {
        self.all.iter().for_each(|space| space.forget(dataset));
        self.wake();
    }

    fn sealed(vfs: &Vfs) -> Vec<(DatasetId, Seal)> {
        vfs.read_names()
            .iter()
            .filter(|dataset| dataset.record.is_cached())
            .filter_map(|dataset| Some((dataset.record.id, dataset.record.seal.clone()?)))
            .collect()
    }

    fn open(vfs: &Vfs) -> Vec<DatasetId> {
        let names = vfs.read_names();
        let open = names
            .iter()
            .filter(|dataset| dataset.record.phase == Phase::Open);
        open.map(|dataset| dataset.record.id).collect()
    }

    /// Bytes that the dataset sealed last has on this node.
    fn last_bytes(&self, sealed: &[(DatasetId, Seal)]) -> u64 {
        let bytes = |(dataset, seal): &(DatasetId, Seal)| {
            let all = self
                .all
                .iter()
                .map(|space| space.bytes_of(*dataset, seal).0);
            all.sum::<u64>()
        };
        sealed.last().map_or(0, bytes)
    }

    /// Measures, and sets the bounds.
    pub fn bound(&self, vfs: &Vfs) {
        let sealed = Self::sealed(vfs);
        self.all.iter().for_each(|space| space.bound(&sealed));
    }

    /// Looks at everything, and says what comes of it.
    fn look(&self, vfs: &Vfs) {
        let sealed = Self::sealed(vfs);
        self.all.iter().for_each(|space| space.look(&sealed));
        let last = self.last_bytes(&sealed);
        let stores: Option<Vec<_>> = self
            .all
            .iter()
            .map(|space| space.pressure(vfs, last))
            .collect();
        let Some(stores) = stores else { return };
        let saying = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = vfs.in_use();
        let pressure = Pressure { stores, in_use };
        let moved = self.to_move(vfs, &pressure, &sealed);
        self.press(vfs, pressure);
        drop(saying);
        if let Some((dataset, to)) = moved {
            let to = u32::try_from(to).unwrap_or(u32::MAX);
            vfs.requests().tell(FromDaemon::Move { dataset, to });
        }
    }

    /// What is to move, and where to, as no store but the last may stay short of space: of those that lie in
    /// it the oldest, first what nobody has open, and of that what the prefix does not have. What it has goes by
    /// itself, as far as the coordinators let it; only when that does not help for a while it moves, too.
    fn to_move(
        &self,
        vfs: &Vfs,
        pressure: &Pressure,
        sealed: &[(DatasetId, Seal)],
    ) -> Option<(DatasetId, usize)> {
        let those = |which: fn(&DatasetRecord) -> bool| -> BTreeSet<DatasetId> {
            let names = vfs.read_names();
            let found = names.iter().filter(|dataset| which(&dataset.record));
            found.map(|dataset| dataset.record.id).collect()
        };
        let flushed = those(|record| record.flushed.is_some());
        // What has its parity and checksums yet to come is not to be copied.
        let settled = those(|record| record.protected.is_some());
        let last = self.all.len() - 1;
        let mut told = self.told();
        for (from, (space, short)) in self.all.iter().zip(&pressure.stores).enumerate() {
            let since = told.short_since.entry(from).or_insert_with(Instant::now);
            if short.wanted_bytes == 0 || from == last {
                told.short_since.remove(&from);
                continue;
            }
            let waits = since.elapsed() < EVICTION_PATIENCE;
            let is_here = |id: &DatasetId| short.holds.contains(id) && settled.contains(id);
            let here = sealed.iter().filter(|(id, _)| is_here(id));
            let mut here: Vec<_> = here
                .map(|(id, seal)| {
                    let (data, parity) = space.bytes_of(*id, seal);
                    let order = (pressure.in_use.contains(id), flushed.contains(id), *id);
                    (order, data.saturating_add(parity))
                })
                .collect();
            here.sort_unstable();
            let going: u64 = here
                .iter()
                .filter(|((in_use, flushed, _), _)| *flushed && !in_use)
                .map(|(_, bytes)| bytes)
                .sum();
            if waits && going >= short.wanted_bytes {
                continue;
            }
            for ((_, is_flushed, id), bytes) in here {
                let target = (from + 1..=last).find(|to| self.all[*to].has_room(bytes));
                if bytes == 0 || (waits && is_flushed) {
                    continue;
                }
                if let Some(to) = target {
                    return Some((id, to));
                }
            }
        }
        None
    }

    /// Says how this node's stores fare, when that is news, or while one wants anything.
    fn press(&self, vfs: &Vfs, pressure: Pressure) {
        let wants = |pressure: &Pressure| {
            let stores = pressure.stores.iter();
            stores.map(|it| it.wanted_bytes > 0).collect::<Vec<_>>()
        };
        let urgent = |pressure: &Pressure| {
            let stores = pressure.stores.iter();
            stores.map(|it| it.urgent).collect::<Vec<_>>()
        };
        let holds = |pressure: &Pressure| {
            let stores = pressure.stores.iter();
            stores.map(|it| it.holds.clone()).collect::<Vec<_>>()
        };
        let mut told = self.told();
        let news = told.pressure.as_ref().is_none_or(|(told, at)| {
            let again = wants(&pressure).contains(&true) && at.elapsed() >= LOOK_AGAIN;
            again
                || told.in_use != pressure.in_use
                || urgent(told) != urgent(&pressure)
                || wants(told) != wants(&pressure)
                || (pressure.stores.len() > 1 && holds(told) != holds(&pressure))
        });
        if news {
            told.pressure = Some((pressure.clone(), Instant::now()));
            drop(told);
            vfs.requests().tell(FromDaemon::Pressure(pressure));
        }
    }

    /// Says what programs have open now, if the coordinator does not know.
    pub fn tell_in_use(&self, vfs: &Vfs) {
        let _saying = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = vfs.in_use();
        let mut told = self.told();
        let Some((pressure, _)) = told
            .pressure
            .as_mut()
            .filter(|(told, _)| told.in_use != in_use)
        else {
            return;
        };
        pressure.in_use = in_use;
        let pressure = pressure.clone();
        drop(told);
        vfs.requests().tell(FromDaemon::Pressure(pressure));
    }

    /// What there is for another dataset.
    pub fn room(&self, vfs: &Vfs) -> Room {
        let last_bytes = self.last_bytes(&Self::sealed(vfs));
        let open = Self::open(vfs);
        let room = |space: &Space| {
            let open = open.iter().filter(|dataset| space.holds(**dataset)).count();
            space.room(open as u64, last_bytes)
        };
        Room {
            last_bytes,
            available: self.all.iter().map(room).collect(),
        }
    }

    /// Waits until there is room here for a new dataset that becomes as large as the last one, for as long as some
    /// is on its way. Programs that checkpoint without a pause would otherwise find the store full of what is being
    /// protected, and of what may go then. Gives how long it has waited.
    pub fn wait_for_room(&self, vfs: &Vfs, dataset: DatasetId) -> Duration {
        let begun = Instant::now();
        let mut last_sign = begun;
        while self.lacks_room(vfs, dataset) && begun.elapsed() < ROOM_PATIENCE {
            match self.is_room_coming(vfs, dataset) {
                true => last_sign = Instant::now(),
                false if last_sign.elapsed() >= ROOM_GRACE => break,
                false => {}
            }
            std::thread::park_timeout(ROOM_LOOK);
        }
        begun.elapsed()
    }

    /// Whether the store of a new dataset has less than the last one took.
    pub fn lacks_room(&self, vfs: &Vfs, dataset: DatasetId) -> bool {
        let last = self.last_bytes(&Self::sealed(vfs));
        let Some(space) = self.holder(dataset) else {
            return false;
        };
        let others = Self::open(vfs);
        let others = others
            .iter()
            .filter(|it| **it != dataset && space.holds(**it));
        space.room(others.count() as u64, last) < last
    }

    /// Whether something is being removed from its store, or being protected or flushed, so that something older may
    /// be. What makes no headway does not count.
    fn is_room_coming(&self, vfs: &Vfs, dataset: DatasetId) -> bool {
        let Some(space) = self.holder(dataset) else {
            return false;
        };
        let (mut is_moving, mut evicted) = (false, Vec::new());
        for known in vfs.read_names().iter() {
            let record = &known.record;
            let waits = record.protected.is_none() || record.flushing;
            is_moving |= record.is_cached() && waits && record.error.is_none();
            evicted.extend((record.phase == Phase::Evicted).then_some(record.id));
        }
        evicted.retain(|id| space.holds(*id));
        is_moving || space.is_emptying(evicted)
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
