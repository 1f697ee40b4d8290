//! Flush and fetch: this node's slots, to the prefix and from it, each on a thread of its own.

use super::{Context, Turn};
use crate::driver::Event;
use crate::effects::{chain, part_failure};
use crate::part::Part;
use crate::prefix::{FlushLimits, Prefix};
use crate::works::TaskEnd;
use scrfs::config::Bandwidth;
use scrfs::control::{Activity, Refusal};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::message::Failure;
use scrfs::protocol::step::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Progress is told this often, not more.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// One order to flush or fetch.
#[derive(Debug)]
pub(super) struct Copying {
    dataset: DatasetId,
    activity: Activity,
    missing: BTreeSet<Slot>,
    cancel: Arc<AtomicBool>,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Adds up what the slots of one order report, and tells it now and then.
struct Meter {
    dataset: DatasetId,
    activity: Activity,
    slots: Mutex<BTreeMap<Slot, u64>>,
    total: AtomicU64,
    told: Mutex<Instant>,
}

impl Meter {
    fn advance(&self, slot: Slot, bytes: u64, report: &dyn Fn(Event)) {
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
        let copying = Self {
            dataset,
            activity,
            missing: BTreeSet::new(),
            cancel: Arc::default(),
        };
        let meter = Meter {
            dataset,
            activity,
            slots: Mutex::default(),
            total: AtomicU64::new(0),
            told: Mutex::new(Instant::now()),
        };
        (copying, Arc::new(meter))
    }

    fn prefix(context: &Context<'_>) -> Result<Arc<Prefix>, Failure> {
        context.prefix.map(Arc::clone).ok_or_else(|| {
            let path = context.config.prefix.display();
            Failure::new(
                Refusal::Failed,
                format!("the prefix {path} cannot be used on this node"),
            )
        })
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
        let prefix = Self::prefix(context)?;
        let (mut copying, meter) = Self::new(dataset, Activity::Flush);
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
        let prefix = Self::prefix(context)?;
        context.parts.forget(record.id, &[]);
        context.parts.learn(record);
        let (mut copying, meter) = Self::new(record.id, Activity::Fetch);
        for &(slot, _) in holders.iter().filter(|(_, rank)| *rank == me) {
            copying.missing.insert(slot);
            let (prefix, meter) = (Arc::clone(&prefix), Arc::clone(&meter));
            let (record, cancel) = (record.clone(), Arc::clone(&copying.cancel));
            let paths = context.parts.paths().clone();
            context.tasks.spawn(move |report| {
                let progress = |bytes| meter.advance(slot, bytes, report);
                let done = prefix
                    .fetch_part(&record, slot, &paths, &progress, &cancel)
                    .map_err(|error| Failure::new(Refusal::Failed, chain(&error)));
                Event::Task(TaskEnd {
                    ticket,
                    slot,
                    result: done.map(|()| None),
                })
            });
        }
        Ok(copying)
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
    prefix: &Prefix,
    record: &DatasetRecord,
    part: &Part,
    limits: FlushLimits,
    progress: &dyn Fn(u64),
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    prefix
        .flush_part(record, part, limits, progress, cancel)
        .map(drop)
        .map_err(|error| Failure::new(Refusal::Failed, chain(&error)))
}
