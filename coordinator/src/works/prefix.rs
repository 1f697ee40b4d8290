//! Flush and fetch: this node's slots, to the prefix and from it, or looked at there, each on a thread of its own.

use super::{Context, Turn};
use crate::effects::{fetch_failure, flush_failure, part_failure};
use crate::part::Part;
use crate::prefix::FlushLimits;
use crate::target::Target;
use crate::tasks::Event;
use crate::works::TaskEnd;
use scrfs::config::Bandwidth;
use scrfs::control::Activity;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::message::Failure;
use scrfs::protocol::step::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A copy that nothing is heard of for so long makes no headway.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(60);
/// Progress is told this often, not more.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// One order to flush or fetch.
#[derive(Debug)]
pub(super) struct Copying {
    dataset: DatasetId,
    activity: Activity,
    missing: BTreeSet<Slot>,
    cancel: Arc<AtomicBool>,
    meter: Arc<Meter>,
    /// Where it writes to or reads from.
    place: PathBuf,
    /// It was told that it makes no headway.
    is_stuck: bool,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Adds up what the slots of one order report, and tells it now and then.
#[derive(Debug)]
struct Meter {
    dataset: DatasetId,
    activity: Activity,
    slots: Mutex<BTreeMap<Slot, u64>>,
    total: AtomicU64,
    told: Mutex<Instant>,
    /// When a slot last said anything.
    heard: Mutex<Instant>,
}

impl Meter {
    fn advance(&self, slot: Slot, bytes: u64, report: &dyn Fn(Event)) {
        if let Ok(mut heard) = self.heard.lock() {
            *heard = Instant::now();
        }
        let Ok(mut slots) = self.slots.lock() else {
            return;
        };
        slots.insert(slot, bytes);
        let sum = slots.values().sum();
        drop(slots);
        self.total.store(sum, Ordering::Relaxed);
        let Ok(mut told) = self.told.lock() else {
            return;
        };
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            let (dataset, activity) = (self.dataset, self.activity);
            report(Event::Outcome(Outcome::Advanced {
                dataset,
                activity,
                bytes: sum,
            }));
        }
    }
}

impl Copying {
    fn new(dataset: DatasetId, activity: Activity) -> (Self, Arc<Meter>) {
        let meter = Arc::new(Meter {
            dataset,
            activity,
            slots: Mutex::default(),
            total: AtomicU64::new(0),
            told: Mutex::new(Instant::now()),
            heard: Mutex::new(Instant::now()),
        });
        let copying = Self {
            dataset,
            activity,
            missing: BTreeSet::new(),
            cancel: Arc::default(),
            meter: Arc::clone(&meter),
            place: PathBuf::new(),
            is_stuck: false,
        };
        (copying, meter)
    }

    /// Says once that a copy makes no headway, and once that it does again.
    pub(super) fn stuck(&mut self) -> Option<Outcome> {
        let heard = self.meter.heard.lock().ok()?;
        let silent = heard.elapsed();
        drop(heard);
        let is_stuck = silent >= STUCK_AFTER;
        if is_stuck == self.is_stuck {
            return None;
        }
        self.is_stuck = is_stuck;
        let (dataset, place) = (self.dataset, self.place.display());
        let text = match (is_stuck, self.activity) {
            (false, _) => String::new(),
            (true, Activity::Flush) => {
                format!("flush: nothing could be written to {place} for {silent:.0?}")
            }
            (true, _) => format!("fetch: nothing could be read from {place} for {silent:.0?}"),
        };
        Some(Outcome::Stuck { dataset, text })
    }

    /// Begins to flush the slots this node holds.
    pub(super) fn flush(
        me: Rank,
        ticket: u64,
        dataset: DatasetId,
        holders: &[(Slot, Rank)],
        context: &mut Context<'_>,
    ) -> Result<Self, Failure> {
        let record = context.record(dataset)?;
        let prefix = Arc::clone(context.prefix);
        let (mut copying, meter) = Self::new(dataset, Activity::Flush);
        copying.place = prefix.place_of(&record);
        let bandwidth = match context.config.flush.bandwidth {
            Bandwidth::Unlimited => None,
            Bandwidth::BytesPerSecond(bytes) => Some(bytes),
        };
        for &(slot, _) in holders.iter().filter(|(_, rank)| *rank == me) {
            let part = context
                .parts
                .open(dataset, slot)
                .map_err(|error| part_failure(&error))?;
            copying.missing.insert(slot);
            let (prefix, meter) = (Arc::clone(&prefix), Arc::clone(&meter));
            let (record, cancel) = (record.clone(), Arc::clone(&copying.cancel));
            context.tasks.spawn(move |report| {
                let limits = FlushLimits {
                    bandwidth,
                    ..FlushLimits::default()
                };
                let progress = |bytes| meter.advance(slot, bytes, report);
                let done = flush_slot(&prefix, &record, &part, limits, &progress, &cancel);
                Event::Task(TaskEnd {
                    ticket,
                    slot,
                    result: done.map(|()| None),
                })
            });
        }
        Ok(copying)
    }

    /// Begins to fetch the slots this node shall have.
    pub(super) fn fetch(
        me: Rank,
        ticket: u64,
        record: &DatasetRecord,
        holders: &[(Slot, Rank)],
        context: &mut Context<'_>,
    ) -> Result<Self, Failure> {
        let prefix = Arc::clone(context.prefix);
        context.parts.forget(record.id, &[]);
        context.parts.learn(record);
        let (mut copying, meter) = Self::new(record.id, Activity::Fetch);
        copying.place = prefix.home_of(record);
        for &(slot, _) in holders.iter().filter(|(_, rank)| *rank == me) {
            copying.missing.insert(slot);
            let (prefix, meter) = (Arc::clone(&prefix), Arc::clone(&meter));
            let (record, cancel) = (record.clone(), Arc::clone(&copying.cancel));
            let paths = context.parts.paths().clone();
            context.tasks.spawn(move |report| {
                let progress = |bytes| meter.advance(slot, bytes, report);
                let done = prefix
                    .fetch_part(&record, slot, &paths, &progress, &cancel)
                    .map_err(|error| fetch_failure(&error));
                Event::Task(TaskEnd {
                    ticket,
                    slot,
                    result: done.map(|()| None),
                })
            });
        }
        Ok(copying)
    }

    /// Begins to look at the slots of this node's share, where programs are to read them in the prefix.
    pub(super) fn check_in_place(
        me: Rank,
        ticket: u64,
        record: &DatasetRecord,
        holders: &[(Slot, Rank)],
        context: &mut Context<'_>,
    ) -> Self {
        let (mut copying, _) = Self::new(record.id, Activity::Fetch);
        copying.place = context.prefix.home_of(record);
        for &(slot, _) in holders.iter().filter(|(_, rank)| *rank == me) {
            copying.missing.insert(slot);
            let (prefix, record) = (Arc::clone(context.prefix), record.clone());
            context.tasks.spawn(move |_| {
                let result = prefix
                    .check_part(&record, slot)
                    .map_err(|error| fetch_failure(&error));
                Event::Task(TaskEnd {
                    ticket,
                    slot,
                    result: result.map(|()| None),
                })
            });
        }
        copying
    }

    pub(super) fn what(&self) -> (DatasetId, Activity) {
        (self.dataset, self.activity)
    }

    pub(super) fn is_done(&self) -> bool {
        self.missing.is_empty()
    }

    /// A slot has been copied.
    pub(super) fn copied(&mut self, slot: Slot) -> Turn {
        self.missing.remove(&slot);
        Turn::GoesOn
    }
}

fn flush_slot(
    prefix: &Target,
    record: &DatasetRecord,
    part: &Part,
    limits: FlushLimits,
    progress: &dyn Fn(u64),
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    prefix
        .flush_part(record, part, limits, progress, cancel)
        .map(drop)
        .map_err(|error| flush_failure(&error))
}
