//! The prefix as the leader sees it: what is due there, and what people did there.
//!
//! What is due: output; every `flush.every`-th checkpoint; what somebody asked for; when the job ends,
//! the latest checkpoint as well. When more than `flush.backlog` checkpoints wait, older ones are left out for
//! good: newest wins, output never is. Members are told what is due, so that whoever ends a job knows
//! what it waits for.
//!
//! What people did: the driver looks at the prefix now and then, and at once when a fetch is asked for.
//! Only marks count that say something: failed, gone. That a dataset is not seen there may be the file
//! system that does not show it: the prefix is asked for that one (`held`).

use super::work::FETCH_TRIES;
use super::{Asker, Leader, Led, Purpose};
use crate::config::Class;
use crate::control::{Activity, Level, Refusal, Shelved};
use crate::id::{DatasetId, DatasetKey, Rank};
use crate::layout::record::{DatasetRecord, Phase};
use crate::name::Name;
use crate::protocol::Now;
use crate::protocol::message::{Failure, Message, PrefixView};
use crate::protocol::recover;
use crate::protocol::step::{Effect, Step};
use std::collections::BTreeSet;

/// What the leader knows of its looks at the prefix.
#[derive(Debug, Default)]
pub(super) struct Looking {
    /// Seen before every member had begun.
    early: Option<PrefixView>,
    /// Checkpoints that a restart may fetch and has not tried, ascending.
    pub(super) candidates: Option<Vec<DatasetRecord>>,
    /// The one of them that programs are to read in the prefix, where its files were seen to be.
    pub(super) in_place: Option<DatasetId>,
    /// Who wants what fetched, once programs may start and the prefix was looked at.
    asked: Vec<(Asker, Name)>,
    /// What members were told is due.
    told: Option<Vec<DatasetId>>,
    /// Programs have ended.
    pub(super) ending: bool,
    /// Members may not know of what the prefix was last seen to have.
    pub(super) is_untold: bool,
    /// What members were told that only the prefix has.
    shelf: Option<Vec<Shelved>>,
    /// What programs have removed in this epoch: nobody looks for it any more.
    pub(super) removed: BTreeSet<DatasetKey>,
    /// Why the last look failed, unless one has ended well since.
    trouble: Option<String>,
    /// How many looks have failed since one ended well.
    failures: u32,
}

impl Led {
    /// Its flush goes on, or can: that it did not is said no longer.
    pub(super) fn clear_obstacle(&mut self) {
        if std::mem::take(&mut self.is_stuck) {
            self.record.error = None;
        }
    }
}

/// No more of what only the prefix has is told of, newest first.
const SHELF_MAX: usize = 10_000;

impl Leader {
    /// Whether the prefix is to have it. That it was removed meanwhile changes nothing: a flush would
    /// otherwise depend on whether it was faster than who removes the one before the last.
    pub(super) fn is_due(&self, led: &Led) -> bool {
        self.is_wanted(led) && !self.is_succeeded(led)
    }

    /// The same, whether or not there is another of its name. While the prefix is away, older checkpoints
    /// need not wait for it.
    pub(super) fn is_wanted(&self, led: &Led) -> bool {
        self.prefix.is_some() && self.is_asked_for(led)
    }

    fn is_asked_for(&self, led: &Led) -> bool {
        let every = self.config.flush.every;
        let due = match led.record.checkpoint {
            Some(number) if every > 0 => {
                number.is_multiple_of(every) || (self.looking.ending && self.is_latest(led))
            }
            _ => false,
        };
        led.flush_now
            || (!led.is_replaced && (led.record.class.is_output() || (due && !led.left_out)))
    }

    /// Whether it is the newest checkpoint that the caches have.
    fn is_latest(&self, led: &Led) -> bool {
        let mut newest_first = self.datasets.values().rev();
        let newest = newest_first.find(|led| led.record.is_restartable() && !led.leaving);
        newest.is_some_and(|newest| newest.record.id == led.record.id)
    }

    /// Programs have ended: what is left for the prefix is due now.
    pub fn end(&mut self, now: Now, step: &mut Step) {
        self.looking.ending = true;
        self.schedule(now, step);
    }

    /// Leaves checkpoints out when too many wait.
    pub(super) fn leave_out(&mut self) {
        let Ok(backlog @ 1..) = usize::try_from(self.config.flush.backlog) else {
            return;
        };
        let waiting = self.datasets.iter().rev().filter(|(_, led)| {
            led.record.class == Class::Checkpoint
                && led.record.protected.is_some()
                && led.is_resting()
                && !led.flush_now
                && self.wants_flush(led)
        });
        let beyond: Vec<DatasetId> = waiting.skip(backlog).map(|(id, _)| *id).collect();
        for dataset in beyond {
            let Some(led) = self.datasets.get_mut(&dataset) else {
                continue;
            };
            let awaited = |(level, _): &(Level, Asker)| *level == Level::Flushed;
            if !led.waiters.iter().any(awaited) {
                tracing::warn!(%dataset, name = %led.record.name, backlog,
                    "flushes fall behind: left out for newer checkpoints (flush.backlog)");
                led.left_out = true;
            }
        }
    }

    /// Tells every member what the prefix is to have and has not, when that has changed.
    pub(super) fn tell_due(&mut self, step: &mut Step) {
        let due = self.datasets.iter().filter(|(_, led)| {
            led.record.is_cached()
                && led.record.flushed.is_none()
                && !led.leaving
                && self.is_asked_for(led)
                && !self.is_succeeded(led)
        });
        let due: Vec<DatasetId> = due.map(|(id, _)| *id).collect();
        if self.looking.told.as_ref() == Some(&due) {
            return;
        }
        step.cast(Message::Due(due.clone()));
        let before = self.looking.told.replace(due.clone());
        for dataset in before.into_iter().flatten() {
            // Left out, or another of its name was faster: nothing comes of what somebody may wait for.
            if !due.contains(&dataset) {
                self.answer_waiters(dataset, step);
            }
        }
    }

    /// Says at what is due for the prefix why its flush cannot begin, as long as that is so.
    pub(super) fn show_obstacles(&mut self, step: &mut Step) {
        let away = self
            .looking
            .trouble
            .as_ref()
            .filter(|_| self.prefix.is_none());
        let away = away.map(|trouble| format!("flush cannot begin: {trouble}"));
        let failed = self.failed_before_others().map(|(failed, name)| {
            let text = format!("flush waits for `{name}`, output that comes before it and failed");
            (failed, text)
        });
        let mut changed = Vec::new();
        for (&dataset, led) in &self.datasets {
            if !led.is_resting() || led.record.seal.is_none() {
                continue;
            }
            let is_due = led.record.is_cached()
                && led.record.flushed.is_none()
                && self.is_asked_for(led)
                && !self.is_succeeded(led);
            let before = failed.as_ref().filter(|(failed, _)| *failed < dataset);
            let obstacle = away
                .as_ref()
                .or(before.map(|(_, text)| text))
                .filter(|_| is_due);
            let may_say = led.record.error.is_none() || led.is_stuck;
            match obstacle {
                Some(text) if may_say && led.record.error.as_ref() != Some(text) => {
                    changed.push((dataset, Some(text.clone())));
                }
                None if led.is_stuck => changed.push((dataset, None)),
                _ => {}
            }
        }
        for (dataset, obstacle) in changed {
            if let Some(led) = self.datasets.get_mut(&dataset) {
                led.clear_obstacle();
                led.is_stuck = obstacle.is_some();
                led.record.error = obstacle.or(led.record.error.take());
            }
            self.update(dataset, Purpose::Noted, step);
        }
    }

    /// A member's flush makes no headway, or does again.
    pub(super) fn stuck(&mut self, from: Rank, dataset: DatasetId, text: &str, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        if !led.record.flushing {
            // Of a fetch, whose record cannot be changed now: nobody could read it yet.
            if !text.is_empty() {
                tracing::error!(%dataset, name = %led.record.name, "{from}: {text}");
            }
            return;
        }
        if led.is_stuck != text.is_empty() {
            return;
        }
        led.is_stuck = !text.is_empty();
        led.record.error = led.is_stuck.then(|| format!("{from}: {text}"));
        self.update(dataset, Purpose::Noted, step);
    }

    /// Somebody looked at the prefix.
    pub(super) fn prefix_seen(
        &mut self,
        now: Now,
        result: Result<Option<Box<PrefixView>>, Failure>,
        step: &mut Step,
    ) {
        match &result {
            Ok(_) => (self.looking.trouble, self.looking.failures) = (None, 0),
            Err(failure) => {
                self.looking.trouble = Some(failure.text.clone());
                self.looking.failures = self.looking.failures.saturating_add(1);
            }
        }
        match result {
            Ok(Some(view)) if self.beginning.is_none() => {
                if let Some(before) = self.prefix.replace(*view) {
                    self.learn_numbers(&before);
                }
            }
            Ok(Some(view)) if !self.has_begun() => self.looking.early = Some(*view),
            Ok(Some(view)) => self.learn_prefix(*view, step),
            Ok(None) => {}
            Err(failure) => {
                tracing::error!(%failure, "the prefix cannot be looked at; it will be tried again");
                let passes = failure.refusal == Refusal::Unavailable;
                if !passes || self.looking.failures > FETCH_TRIES {
                    for (asker, _) in self.take_asked() {
                        Self::reply(asker, Err(Refusal::Failed), step);
                    }
                }
                return self.schedule(now, step);
            }
        }
        for (asker, name) in self.take_asked() {
            self.fetch_named(asker, name, step);
        }
        self.schedule(now, step);
    }

    /// Numbers that were given out, also of what is not there any more.
    fn learn_numbers(&mut self, view: &PrefixView) {
        let records = view.complete.iter();
        let numbers = records.map(|record| (record.id.0, record.checkpoint.unwrap_or(0)));
        let marks = view.gone.iter().map(|key| (key.id.0, 0));
        for (dataset, checkpoint) in numbers.chain(marks) {
            self.last_dataset = self.last_dataset.max(dataset);
            self.last_checkpoint = self.last_checkpoint.max(checkpoint);
        }
    }

    fn learn_prefix(&mut self, view: PrefixView, step: &mut Step) {
        self.learn_numbers(&view);
        if self.prefix.is_none() {
            self.learn_written(&view.pointers, step);
        }
        self.prefix = Some(view);
        self.looking.is_untold = true;
        self.ask_for_missing(step);
    }

    /// Tells every member what only the prefix has, when a look has shown that it changed. What this job has had,
    /// members know.
    pub(super) fn tell_shelf(&mut self, step: &mut Step) {
        if !std::mem::take(&mut self.looking.is_untold) {
            return;
        }
        let Some(prefix) = &self.prefix else { return };
        let strange = prefix.complete.iter().filter(|record| {
            let key = record.key();
            let known = self.datasets.contains_key(&record.id);
            let unwanted = prefix.failed.contains(&key) || self.looking.removed.contains(&key);
            !known && !unwanted && record.seal.is_some()
        });
        let shelf: Vec<Shelved> = strange.rev().take(SHELF_MAX).map(Shelved::of).collect();
        if self.looking.shelf.as_ref() != Some(&shelf) {
            step.cast(Message::Shelf(shelf.clone()));
            self.looking.shelf = Some(shelf);
        }
    }

    /// Does what people said of datasets in the prefix.
    pub(super) fn heed_prefix(&mut self, step: &mut Step) {
        if let Some(view) = self.looking.early.take() {
            self.learn_prefix(view, step);
        }
        let Some(prefix) = &self.prefix else { return };
        let mut changed = Vec::new();
        for (&dataset, led) in &self.datasets {
            let key = led.record.key();
            if led.record.seal.is_none() || !led.is_resting() || led.proposal.is_some() {
                continue;
            }
            let failed = prefix.failed.contains(&key);
            let gone = prefix.gone.contains(&key);
            // Before it is dropped from the caches, for nobody was to restart from it and files may be gone.
            let is_to_drop = led.record.flushed.is_some();
            let is_there = || prefix.complete.iter().any(|seen| seen.key() == key);
            let differs = match led.record.phase {
                Phase::Evicted => failed || gone,
                Phase::Sealed => failed,
                Phase::Failed => !failed && (!is_to_drop || is_there()),
                Phase::Open | Phase::Incomplete | Phase::Lost | Phase::Removed { .. } => false,
            };
            if differs {
                changed.push((dataset, failed));
            }
        }
        for (dataset, failed) in changed {
            let Some(led) = self.datasets.get_mut(&dataset) else {
                continue;
            };
            let (name, phase) = (&led.record.name, led.record.phase);
            match phase {
                Phase::Evicted if !failed => {
                    tracing::info!(%dataset, %name, "deleted from the prefix, where all of it was");
                    self.forget(dataset, None, step);
                }
                Phase::Failed if led.record.flushed.is_some() => {
                    tracing::info!(%dataset, %name, "chosen, so not failed any more");
                    self.drop_cached(dataset, step);
                }
                Phase::Failed => {
                    led.record.phase = Phase::Sealed;
                    self.update(dataset, Purpose::Noted, step);
                }
                _ => {
                    tracing::warn!(%dataset, %name, "marked failed: it is not offered again");
                    led.record.phase = Phase::Failed;
                    self.update(dataset, Purpose::Noted, step);
                }
            }
            self.answer_waiters(dataset, step);
        }
    }

    /// A dataset of the prefix is wanted in the caches.
    pub(super) fn fetch_asked(&mut self, asker: Asker, name: Name, step: &mut Step) {
        self.looking.asked.push((asker, name));
        if self.ready {
            step.effect(Effect::LookAtPrefix);
        }
    }

    fn take_asked(&mut self) -> Vec<(Asker, Name)> {
        match self.ready {
            true => std::mem::take(&mut self.looking.asked),
            false => Vec::new(),
        }
    }

    /// Looks for who waits until programs may start, or until what they want has been dropped.
    pub(super) fn fetch_asked_before(&mut self, step: &mut Step) {
        if !self.looking.asked.is_empty() {
            step.effect(Effect::LookAtPrefix);
        }
    }

    fn fetch_named(&mut self, asker: Asker, name: Name, step: &mut Step) {
        let evicted = self.tickets.values().filter_map(|ticket| ticket.evicts);
        let mut evicted = evicted.filter_map(|dataset| self.datasets.get(&dataset));
        if evicted.any(|led| led.record.name == name) {
            // What is dropped late would be what was fetched.
            return self.looking.asked.push((asker, name));
        }
        if let Some(led) = self
            .live_by_name(&name)
            .and_then(|dataset| self.datasets.get_mut(&dataset))
        {
            match led.record.phase {
                Phase::Sealed => Self::reply(asker, Ok(()), step),
                // It is being fetched.
                Phase::Evicted => led.fetchers.push(asker),
                _ => Self::reply(asker, Err(Refusal::Exists), step),
            }
            return;
        }
        match self.fetchable_by_name(&name) {
            Ok(record) => {
                let dataset = record.id;
                let mut led = Led::new(record);
                led.record.phase = Phase::Evicted;
                led.record.flushing = false;
                led.record.error = None;
                led.fetchers.push(asker);
                if let Some(known) = self.datasets.remove(&dataset) {
                    (led.waiters, led.everywhere) = (known.waiters, known.everywhere);
                }
                self.datasets.insert(dataset, led);
                self.fetch(dataset, step);
            }
            Err(refusal) => Self::reply(asker, Err(refusal), step),
        }
    }

    /// The newest of a name that is complete in the prefix and may be had.
    fn fetchable_by_name(&self, name: &Name) -> Result<DatasetRecord, Refusal> {
        let prefix = self.prefix.as_ref().ok_or(Refusal::Failed)?;
        if self.is_taken(name, DatasetId(0)) {
            return Err(Refusal::Exists);
        }
        // One that was removed here, and is to replace what the prefix has.
        let mut named = self
            .datasets
            .values()
            .filter(|led| led.record.name == *name);
        let is_to_come = |led: &Led| led.record.flushed.is_none() && self.is_due(led);
        if named.any(|led| led.record.is_removed() && is_to_come(led)) {
            return Err(Refusal::Busy);
        }
        let named = prefix.complete.iter().filter(|it| it.name == *name);
        let record = named.max_by_key(|it| it.key()).ok_or(Refusal::Missing)?;
        if prefix.failed.contains(&record.key()) || record.seal.is_none() {
            return Err(Refusal::Failed);
        }
        match self.datasets.get(&record.id) {
            // Of another job that gave the same number.
            Some(led) if !recover::is_same(&led.record, record) => Err(Refusal::Exists),
            Some(led) if led.leaving || !led.is_resting() || led.record.is_cached() => {
                Err(Refusal::Busy)
            }
            _ => Ok(record.clone()),
        }
    }

    /// Tries fetches again that somebody waits for; or says that nothing comes of them.
    pub(super) fn fetch_again(&mut self, step: &mut Step) {
        let is_told = |dataset| {
            let mut tickets = self.tickets.values();
            !tickets.any(|ticket| ticket.evicts == Some(dataset))
        };
        let due = self.datasets.iter().filter(|(dataset, led)| {
            let may = led.may_try(Activity::Fetch) || !led.is_being_fetched();
            !led.fetchers.is_empty() && led.is_resting() && may && is_told(**dataset)
        });
        let due: Vec<DatasetId> = due.map(|(dataset, _)| *dataset).collect();
        for dataset in due {
            let Some(led) = self.datasets.get(&dataset) else {
                continue;
            };
            if !led.is_being_fetched() {
                self.fetched(dataset, Err(Refusal::Failed), step);
            } else if self.is_taken(&led.record.name, dataset) {
                self.fetched(dataset, Err(Refusal::Exists), step);
            } else {
                self.fetch(dataset, step);
            }
        }
    }

    /// A fetch has ended.
    pub(super) fn fetched(
        &mut self,
        dataset: DatasetId,
        result: Result<(), Refusal>,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        for asker in std::mem::take(&mut led.fetchers) {
            Self::reply(asker, result, step);
        }
    }
}
