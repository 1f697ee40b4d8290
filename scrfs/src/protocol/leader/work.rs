//! Which work comes next: fetch and rebuild for a restart first, then protection, then the prefix.
//!
//! Before programs may start there is the newest checkpoint that can be had, see `restart`. After that, one rebuild or encode at a time, newest first
//! but for output that flushes wait for, beside one flush at a time, oldest first. Failed work is tried again with growing pauses, and
//! its error shown in the record meanwhile. What goes to make room is chosen in `room`.

use super::{LEADER, Leader, Led, Purpose};
use crate::control::{Activity, Level, Progress, Refusal};
use crate::findings::Findings;
use crate::id::{DatasetId, Rank, Slot};
use crate::layout::record::Phase;
use crate::name::Name;
use crate::protocol::Now;
use crate::protocol::message::{Checking, Failure, Message, Order};
use crate::protocol::recover;
use crate::protocol::step::{Effect, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Work on a dataset that is under way.
#[derive(Clone, Debug)]
pub(super) enum Working {
    Encode,
    Rebuild {
        assigned: Vec<(Slot, Rank)>,
    },
    /// The parity of what was rebuilt.
    Restore,
    Flush {
        /// Whose turn has not come: no more than `flush.width` nodes write at once.
        rest: Vec<(Slot, Rank)>,
    },
    Fetch {
        assigned: Vec<(Slot, Rank)>,
    },
    /// Whether programs may read it in the prefix.
    CheckInPlace,
    Verify {
        what: Checking,
        findings: Findings,
    },
}

impl Working {
    pub(super) fn activity(&self) -> Activity {
        match self {
            Self::Encode => Activity::Encode,
            Self::Rebuild { .. } | Self::Restore => Activity::Rebuild,
            Self::Flush { .. } => Activity::Flush,
            Self::Fetch { .. } | Self::CheckInPlace => Activity::Fetch,
            Self::Verify { .. } => Activity::Verify,
        }
    }

    /// Whether protection of other datasets waits for it.
    fn is_urgent(&self) -> bool {
        let can_wait = matches!(
            self,
            Self::Flush { .. } | Self::Fetch { .. } | Self::CheckInPlace | Self::Verify { .. }
        );
        !can_wait
    }
}

/// Failed work that is to be tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    at: u64,
    times: u32,
    /// The pause is over; whatever it waits for now, it is not the clock.
    due: bool,
}

impl Retry {
    /// After another failure.
    pub(super) fn after(last: Option<&Self>, now: Now) -> Self {
        let times = last.map_or(0, |last| last.times);
        let pause = (RETRY_MS << times.min(10)).min(RETRY_MS_MAX);
        Self {
            at: now.tick.saturating_add(pause),
            times: times.saturating_add(1),
            due: false,
        }
    }

    /// Whether the pause is over.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        self.due |= self.at <= now.tick;
        self.due
    }

    /// When the pause ends.
    pub(super) fn deadline(&self) -> Option<u64> {
        (!self.due).then_some(self.at)
    }
}

/// How often a rebuild is tried before what it was for is given up.
const REBUILD_TRIES: u32 = 3;
/// How often a fetch is tried again, over half a minute, before an older one is, or who wants it hears of it.
pub(super) const FETCH_TRIES: u32 = 5;
/// Pause before failed work is tried for the first time again, in milliseconds; doubles each time.
const RETRY_MS: u64 = 1_000;
/// Longest pause.
const RETRY_MS_MAX: u64 = 30_000;

impl Led {
    pub(super) fn may_try(&self, activity: Activity) -> bool {
        self.retry.get(&activity).is_none_or(|retry| retry.due)
    }

    pub(super) fn is_resting(&self) -> bool {
        self.working.is_none() && !self.leaving
    }

    fn wants_encode(&self) -> bool {
        self.record.is_cached() && self.record.protected.is_none() && self.lost.is_empty()
    }

    fn may_encode(&self) -> bool {
        self.is_resting()
            && self.wants_encode()
            // Members pull from each other: all must know of the seal.
            && self.has_reached(Level::Sealed)
            && self.may_try(Activity::Encode)
    }

    fn may_flush(&self) -> bool {
        let is_guarded =
            self.record.protected.is_some() || self.retry.contains_key(&Activity::Encode);
        self.is_resting() && is_guarded && self.lost.is_empty()
    }

    fn may_rebuild(&self) -> bool {
        self.is_resting() && self.wants_rebuild() && self.may_try(Activity::Rebuild)
    }

    fn wants_rebuild(&self) -> bool {
        self.record.is_cached() && self.is_weak()
    }
}

impl Leader {
    pub(super) fn wants_flush(&self, led: &Led) -> bool {
        led.record.is_cached()
            && led.record.flushed.is_none()
            && led.lost.is_empty()
            && self.is_due(led)
    }

    /// Whether nothing newer is to be in the prefix before it: a restart from that would never make it again. What
    /// has failed of itself, or of what it is made from, is passed: it may fail for ever.
    fn comes_first(&self, led: &Led) -> bool {
        let is_lost = !led.lost.is_empty() && led.retry.contains_key(&Activity::Rebuild);
        led.record.class.is_output()
            && led.record.is_cached()
            && led.record.flushed.is_none()
            && self.is_due(led)
            && !(led.leaving || led.is_passed || is_lost)
    }

    /// The oldest that may be flushed now; or output before it that cannot yet.
    fn next_to_flush(&self) -> Option<(&DatasetId, &Led)> {
        self.datasets.iter().find(|(_, led)| {
            let may = || led.may_flush() && led.may_try(Activity::Flush);
            self.comes_first(led) || (self.wants_flush(led) && may())
        })
    }

    /// Output whose flush has failed, so that nothing newer comes into the prefix.
    pub(super) fn failed_before_others(&self) -> Option<(DatasetId, &Name)> {
        let mut all = self.datasets.iter();
        let failed = |led: &Led| led.retry.contains_key(&Activity::Flush) && self.comes_first(led);
        let (&id, led) = all.find(|(_, led)| failed(led))?;
        Some((id, &led.record.name))
    }

    /// Output that must be whole and protected before something newer, which is, may be flushed.
    fn holds_up_flushes(&self) -> Option<(&DatasetId, &Led)> {
        let (first, led) = self.next_to_flush().filter(|(_, led)| !led.may_flush())?;
        let mut newer = self.datasets.range(first..).skip(1);
        newer
            .any(|(_, led)| led.may_flush() && self.wants_flush(led))
            .then_some((first, led))
    }

    /// Whether a program has removed it, and the prefix has, or is to have, another one of its name.
    pub(super) fn is_succeeded(&self, led: &Led) -> bool {
        let successor = |(_, newer): (&DatasetId, &Led)| {
            let record = &newer.record;
            let comes = record.is_cached() && self.is_wanted(newer);
            record.name == led.record.name && !newer.leaving && (record.flushed.is_some() || comes)
        };
        let mut newer = self.datasets.range(led.record.id..).skip(1);
        led.record.is_removed() && newer.any(successor)
    }

    /// Whether anything is left to protect or flush that has not failed.
    pub(super) fn has_work(&self, _now: Now) -> bool {
        let failed = self.failed_before_others().map(|(failed, _)| failed);
        self.datasets.values().any(|led| {
            (led.wants_encode() && !led.retry.contains_key(&Activity::Encode))
                || (self.prefix.is_some()
                    && self.wants_flush(led)
                    && !led.retry.contains_key(&Activity::Flush)
                    && failed.is_none_or(|failed| led.record.id < failed))
                || (led.wants_rebuild() && !led.retry.contains_key(&Activity::Rebuild))
        })
    }

    /// Begins whatever can begin now.
    pub(super) fn schedule(&mut self, now: Now, step: &mut Step) {
        if !self.has_begun() || !self.early.is_empty() {
            return;
        }
        for retry in self
            .datasets
            .values_mut()
            .flat_map(|led| led.retry.values_mut())
        {
            retry.is_due(now);
        }
        self.heed_answers(now, step);
        self.heed_prefix(step);
        self.leave_out();
        self.tell_due(step);
        if !self.ready {
            return self.recover(now, step);
        }
        self.tell_shelf(step);
        self.schedule_pointers(now, step);
        self.make_room(step);
        self.fetch_again(step);
        let busy = |led: &Led| led.working.as_ref().is_some_and(Working::is_urgent);
        if !self.datasets.values().any(busy) {
            let may_be_made_safe =
                |(_, led): &(&DatasetId, &Led)| led.may_rebuild() || led.may_encode();
            let next = self.datasets.iter().rev().find(may_be_made_safe);
            let held_up = self.holds_up_flushes().filter(may_be_made_safe);
            if let Some((&dataset, led)) = held_up.or(next) {
                if led.may_rebuild() {
                    self.rebuild(dataset, step);
                } else {
                    self.encode(dataset, step);
                }
            }
        }
        let flushing = |led: &Led| matches!(led.working, Some(Working::Flush { .. }));
        if self.prefix.is_some() && !self.datasets.values().any(flushing) {
            let may = |led: &Led| led.may_flush() && led.may_try(Activity::Flush);
            let next = self.next_to_flush();
            if let Some((&dataset, _)) = next.filter(|(_, led)| may(led)) {
                self.flush(dataset, step);
            }
        }
        self.show_obstacles(step);
        self.schedule_verify(step);
    }

    pub(super) fn begin_work(
        &mut self,
        dataset: DatasetId,
        working: Working,
        order: Order,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let activity = working.activity();
        led.working = Some(working);
        led.advanced.clear();
        led.told_percent = 0;
        self.order(order, Purpose::Work { dataset, activity }, step);
    }

    fn encode(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        let slots = led.holders.keys().copied().collect();
        let order = Order::Encode {
            dataset,
            slots,
            holders: led.holders_list(),
        };
        self.begin_work(dataset, Working::Encode, order, step);
    }

    pub(super) fn rebuild(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        if led.lost.is_empty() {
            return self.restore(dataset, step);
        }
        let assigned = recover::assign(&led.lost, &led.holders, self.size);
        let holders = led.holders_list();
        let order = Order::Rebuild {
            dataset,
            holders,
            lost: assigned.clone(),
        };
        self.begin_work(dataset, Working::Rebuild { assigned }, order, step);
    }

    fn restore(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        let slots = led.unguarded.iter().copied().collect();
        let order = Order::Encode {
            dataset,
            slots,
            holders: led.holders_list(),
        };
        self.begin_work(dataset, Working::Restore, order, step);
    }

    fn flush(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        led.record.flushing = true;
        led.clear_obstacle();
        led.advanced.clear();
        let holders = led.holders_list();
        self.update(dataset, Purpose::Noted, step);
        self.flush_turn(dataset, holders, step);
    }

    /// Lets as many nodes write as may at once.
    fn flush_turn(&mut self, dataset: DatasetId, holders: Vec<(Slot, Rank)>, step: &mut Step) {
        let width = usize::try_from(self.config.flush.width).unwrap_or(usize::MAX);
        let mut ranks = BTreeSet::new();
        let (holders, rest) = holders.into_iter().partition(|(_, rank)| {
            let joins = ranks.contains(rank) || ranks.len() < width.max(1);
            if joins {
                ranks.insert(*rank);
            }
            joins
        });
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        led.working = Some(Working::Flush { rest });
        let activity = Activity::Flush;
        let order = Order::Flush { dataset, holders };
        self.order(order, Purpose::Work { dataset, activity }, step);
    }

    /// Work on a dataset has ended on all members.
    pub(super) fn worked(
        &mut self,
        now: Now,
        dataset: DatasetId,
        activity: Activity,
        failures: &BTreeMap<Rank, Failure>,
        step: &mut Step,
    ) {
        // Who was told to stop knows less than who failed.
        let failed = failures
            .iter()
            .min_by_key(|(_, failure)| failure.refusal == Refusal::Again);
        let full = failed.is_some_and(|(_, failure)| failure.refusal == Refusal::NoSpace);
        let damaged = failed.is_some_and(|(_, failure)| failure.refusal == Refusal::Damaged);
        let passes = failures
            .values()
            .all(|failure| matches!(failure.refusal, Refusal::Unavailable | Refusal::Again));
        let error = failed.map(|(rank, failure)| format!("{rank}: {failure}"));
        let parts = self
            .datasets
            .get(&dataset)
            .and_then(|led| led.record.seal.as_ref());
        let resized = parts.is_some_and(|seal| seal.parts.len() != self.size as usize);
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let working = led.working.take();
        let tries = |led: &Led| led.retry.get(&activity).map_or(0, |retry| retry.times) + 1;
        if led.leaving {
            return self.fetched(dataset, Err(Refusal::Missing), step);
        }
        led.is_damaged |= damaged && matches!(working, Some(Working::Restore));
        match (working, error) {
            (Some(Working::Encode), None) => {
                led.record.protected = Some(now.wall);
                led.record.error = None;
                led.retry.remove(&activity);
                self.update_reached(dataset, step);
            }
            (Some(Working::Rebuild { assigned }), None) => {
                led.lost.clear();
                led.unguarded.extend(assigned.iter().map(|(slot, _)| *slot));
                led.holders.extend(assigned);
                if let Some(led) = self.datasets.get(&dataset) {
                    self.tell_losses(dataset, led, step);
                }
                self.restore(dataset, step);
            }
            (Some(Working::Restore), None) => {
                led.unguarded.clear();
                led.record.error = None;
                led.retry.remove(&activity);
                if let Some(led) = self.datasets.get(&dataset) {
                    self.tell_losses(dataset, led, step);
                }
                self.update_reached(dataset, step);
            }
            // For a restart what is older is second best; who wants this one can wait.
            (Some(Working::Fetch { .. } | Working::CheckInPlace), Some(error))
                if passes
                    && (!self.ready || !led.fetchers.is_empty())
                    && tries(led) <= FETCH_TRIES =>
            {
                self.failed(now, dataset, activity, error, step);
            }
            (Some(Working::Fetch { assigned }), None) => {
                led.retry.remove(&activity);
                led.holders.extend(assigned);
                led.record.phase = Phase::Sealed;
                self.room.touch(dataset);
                // Protected again once its parity is back; on other nodes than it was made for, its
                // sets would not hold, but the prefix does.
                led.record.protected = resized.then_some(now.wall);
                led.is_by_prefix = resized;
                led.is_fetched = !led.fetchers.is_empty();
                led.record.flushing = false;
                self.update_reached(dataset, step);
                self.fetched(dataset, Ok(()), step);
                // It may have been removed from the prefix meanwhile.
                self.ask_for_missing(step);
            }
            (Some(Working::Flush { rest }), None) if !rest.is_empty() => {
                self.flush_turn(dataset, rest, step);
            }
            (Some(Working::Flush { .. }), None) => {
                // Still flushing until it is verified and visible.
                led.working = Some(Working::Flush { rest: Vec::new() });
                let mut record = Box::new(led.record.clone());
                // Whether it was removed here is nothing the prefix is to remember.
                record.phase = Phase::Sealed;
                step.effect(Effect::CompleteFlush { record });
            }
            (Some(Working::Rebuild { .. }), Some(error)) => {
                // Without space for it, it is as good to read as it was.
                if tries(led) < REBUILD_TRIES || (self.ready && full) {
                    return self.failed(now, dataset, activity, error, step);
                }
                let flushed = led.record.flushed.is_some();
                led.record.phase = if flushed { Phase::Evicted } else { Phase::Lost };
                led.record.error = Some(format!("rebuild failed: {error}"));
                if flushed {
                    led.holders.clear();
                }
                led.retry.clear();
                self.update_reached(dataset, step);
            }
            (Some(Working::CheckInPlace), result) => {
                led.retry.remove(&activity);
                // Everybody is told of it first.
                self.looking.in_place = result.is_none().then_some(dataset);
                led.record.error = result.map(|error| format!("not restarted from: {error}"));
                self.update_reached(dataset, step);
            }
            (Some(Working::Fetch { .. }), Some(error)) => {
                led.retry.remove(&activity);
                led.record.error = Some(format!("fetch failed: {error}"));
                self.update_reached(dataset, step);
                let refusal = if full {
                    Refusal::NoSpace
                } else {
                    Refusal::Failed
                };
                self.fetched(dataset, Err(refusal), step);
            }
            // Every file is there: what failed can be done again at leisure.
            (Some(Working::Flush { .. }), Some(error)) => {
                led.is_passed = failures.values().any(Failure::is_its_own);
                self.failed(now, dataset, activity, error, step);
            }
            (Some(Working::Encode | Working::Restore), Some(error)) => {
                self.failed(now, dataset, activity, error, step);
            }
            // Ends elsewhere.
            (Some(Working::Verify { .. }) | None, _) => {}
        }
    }

    fn failed(
        &mut self,
        now: Now,
        dataset: DatasetId,
        activity: Activity,
        error: String,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let retry = Retry::after(led.retry.get(&activity), now);
        led.retry.insert(activity, retry);
        let verb = match activity {
            Activity::Encode => "encode",
            Activity::Rebuild => "rebuild",
            Activity::Flush => "flush",
            Activity::Fetch => "fetch",
            Activity::Verify => "verify",
        };
        led.record.error = Some(format!("{verb} failed, will be tried again: {error}"));
        led.record.flushing = false;
        led.is_stuck = false;
        self.update(dataset, Purpose::Noted, step);
    }

    /// The prefix has the dataset, or not.
    pub(super) fn flush_completed(
        &mut self,
        now: Now,
        dataset: DatasetId,
        result: Result<(), Failure>,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        led.working = None;
        match result {
            Ok(()) => {
                led.record.flushing = false;
                led.record.flushed = Some(now.wall);
                led.record.error = None;
                led.is_stuck = false;
                led.retry.remove(&Activity::Flush);
                self.update_reached(dataset, step);
            }
            Err(failure) => {
                led.is_passed = failure.is_its_own();
                let error = format!("{LEADER}: {failure}");
                self.failed(now, dataset, Activity::Flush, error, step);
            }
        }
        self.schedule(now, step);
    }

    pub(super) fn advanced(
        &mut self,
        from: Rank,
        dataset: DatasetId,
        activity: Activity,
        bytes: u64,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        if led.working.as_ref().map(Working::activity) != Some(activity) {
            return;
        }
        led.advanced.insert(from, bytes);
        let done_bytes = led
            .advanced
            .values()
            .fold(0u64, |sum, part| sum.saturating_add(*part));
        let total_bytes = led.record.seal.as_ref().map_or(0, |seal| seal.bytes());
        // To all; so not whenever somebody has moved on.
        let percent = u128::from(done_bytes) * 100 / u128::from(total_bytes.max(1));
        if percent <= led.told_percent {
            return;
        }
        led.told_percent = percent;
        let progress = Progress {
            dataset,
            activity,
            // Complete is said by the record, never by progress.
            done_bytes: done_bytes.min(total_bytes.saturating_sub(1)),
            total_bytes,
        };
        step.cast(Message::Progress(progress));
    }
}
