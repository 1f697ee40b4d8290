//! What programs restart from: the newest checkpoint that can be had.
//!
//! From the cache, though some of it be lost: what the scheme tolerates is read by making it of the
//! rest, while it is rebuilt behind the programs (with `restart.rebuild_first` before they start, an
//! older one when that fails, or when the prefix does not give one at several tries); else from the prefix, fetched, or with `restart.bypass` where it is. What programs have removed comes back, under its
//! name, when what was newer then is gone: before anything older is taken. What was the newest when it
//! was removed comes back only in a new run, and only when there is nothing else: whoever removed
//! it wanted to go back to another one.

use super::agree::Proposal;
use super::work::Working;
use super::{Leader, Led, Purpose, Ticket};
use crate::config::Class;
use crate::control::Activity;
use crate::id::{DatasetId, Rank, Slot};
use crate::layout::record::{DatasetRecord, Phase};
use crate::name::Name;
use crate::protocol::Now;
use crate::protocol::message::{Message, Order};
use crate::protocol::recover;
use crate::protocol::step::Step;
use std::collections::BTreeSet;

impl Led {
    /// The name it has, and the one it is to have.
    fn names(&self) -> impl Iterator<Item = &Name> {
        [&self.record.name]
            .into_iter()
            .chain(self.proposal.as_ref().map(Proposal::name))
    }
}

impl Leader {
    /// One step towards a dataset to restart from; when there is one, or none to be had, programs
    /// may start.
    pub(super) fn recover(&mut self, now: Now, step: &mut Step) {
        if self.datasets.values().any(|led| led.working.is_some()) {
            return;
        }
        // One that was just given up is dropped on every node before it may be fetched.
        let telling = |ticket: &Ticket| {
            let Ticket { purpose, .. } = ticket;
            matches!(
                purpose,
                Purpose::Noted | Purpose::Record { .. } | Purpose::Reached { .. }
            )
        };
        if self.tickets.values().any(telling) {
            return;
        }
        let in_place = self.looking.in_place;
        if let Some(dataset) = in_place.filter(|dataset| self.datasets.contains_key(dataset)) {
            return self.be_ready(now, Some(dataset), step);
        }
        let again = |led: &Led| {
            led.record.phase == Phase::Evicted && led.retry.contains_key(&Activity::Fetch)
        };
        let mut newest_first = self.datasets.iter().rev();
        if let Some((&dataset, led)) = newest_first.find(|(_, led)| again(led)) {
            if !led.may_try(Activity::Fetch) {
                return;
            }
            // Somebody may have taken its name meanwhile.
            if !self.is_taken(&led.record.name, dataset) {
                return self.take_from_prefix(dataset, step);
            }
            if let Some(led) = self.datasets.get_mut(&dataset) {
                led.retry.remove(&Activity::Fetch);
                led.record.error = Some("not fetched: its name was taken".into());
            }
            return self.update_reached(dataset, step);
        }
        let cached = self
            .datasets
            .iter()
            .rev()
            .find(|(_, led)| led.record.is_restartable() && !led.leaving)
            .map(|(&id, led)| (id, led.lost.is_empty()));
        let fenced = self.fenced(true);
        if fenced > cached.map(|(dataset, _)| dataset) {
            return match self.fetchable(fenced) {
                Some(dataset) => self.take_from_prefix(dataset, step),
                None => self.bring_back(fenced, step),
            };
        }
        match cached {
            Some((dataset, false)) if self.config.restart.rebuild_first => {
                return self.rebuild(dataset, step);
            }
            Some((dataset, _)) => return self.be_ready(now, Some(dataset), step),
            None => {}
        }
        if let Some(dataset) = self.fetchable(None) {
            return self.take_from_prefix(dataset, step);
        }
        match self.fenced(false).filter(|_| self.new_run) {
            None => self.be_ready(now, None, step),
            dataset => self.bring_back(dataset, step),
        }
    }

    /// The newest checkpoint behind the deletion fence that can have its name again.
    fn fenced(&self, overtaken: bool) -> Option<DatasetId> {
        let mut newest_first = self.datasets.values().rev();
        let found = newest_first.find(|led| {
            led.record.phase == Phase::Removed { overtaken } && self.can_come_back(led)
        });
        found.map(|led| led.record.id)
    }

    /// Whether a restart could bring back what was removed: not while another has its name.
    pub(super) fn can_come_back(&self, led: &Led) -> bool {
        led.record.is_removed()
            && led.record.class.is_checkpoint()
            && !led.leaving
            && !self.is_taken(&led.record.name, led.record.id)
    }

    /// Programs see it again.
    fn bring_back(&mut self, dataset: Option<DatasetId>, step: &mut Step) {
        let Some(dataset) = dataset else { return };
        if let Some(led) = self.datasets.get_mut(&dataset) {
            tracing::warn!(%dataset, name = %led.record.name, "removed, and back: what was newer is lost");
            led.record.phase = Phase::Sealed;
        }
        self.update(dataset, Purpose::Noted, step);
    }

    /// Tells every member what is lost of a dataset, and who has the rest.
    pub(super) fn tell_losses(&self, dataset: DatasetId, led: &Led, step: &mut Step) {
        let message = Message::Losses {
            dataset,
            holders: led.holders_list(),
            lost: led.lost.iter().copied().collect(),
            weak: led.is_weak(),
        };
        step.cast(message);
    }

    fn be_ready(&mut self, now: Now, restart: Option<DatasetId>, step: &mut Step) {
        self.ready = true;
        let lost = |led: &&Led| led.record.class.is_output() && led.record.phase == Phase::Lost;
        for led in self.datasets.values().filter(lost) {
            if restart.is_some_and(|restart| led.record.id < restart) {
                tracing::error!(dataset = %led.record.id, name = %led.record.name,
                    "output that is lost, and older than what programs restart from: they do not make it again");
            }
        }
        // Programs that start now may open what only the prefix has.
        self.looking.is_untold = true;
        self.tell_shelf(step);
        // What came back may have been removed from the prefix since it was looked at first.
        self.ask_for_missing(step);
        let new_run = self.new_run;
        step.cast(Message::Ready { restart, new_run });
        self.fetch_asked_before(step);
        self.answer_questions(now, step);
        self.schedule(now, step);
    }

    /// The newest checkpoint that only the prefix has, of those that were not tried in vain; only
    /// one that is newer than `than`.
    fn fetchable(&mut self, than: Option<DatasetId>) -> Option<DatasetId> {
        if !self.config.restart.fetch {
            return None;
        }
        let live: BTreeSet<Name> = self
            .datasets
            .values()
            .filter(|led| led.is_live() || led.proposal.is_some())
            .flat_map(|led| led.names().cloned())
            .collect();
        let prefix = self.prefix.as_ref()?;
        let candidates = self.looking.candidates.get_or_insert_with(|| {
            // Newer ones than the one that was chosen are not wanted.
            let is_wanted = |record: &&DatasetRecord| {
                prefix.current.is_none_or(|current| record.key() <= current)
            };
            let complete = prefix.complete.iter().filter(is_wanted);
            let mut candidates: Vec<DatasetRecord> = complete.cloned().collect();
            candidates.sort_by_key(DatasetRecord::key);
            candidates
        });
        let is_newer = |record: &DatasetRecord| than.is_none_or(|than| record.id > than);
        while let Some(record) = candidates.pop_if(|record| is_newer(record)) {
            let id = record.id;
            let spoilt = self.datasets.get(&id).is_some_and(|led| {
                led.record.phase == Phase::Failed
                    || led.record.is_removed()
                    || led.leaving
                    || !recover::is_same(&led.record, &record)
            }) || prefix.failed.contains(&record.key());
            if record.class == Class::Output || record.seal.is_none() || spoilt {
                continue;
            }
            // Somebody writes under its name now, and is not to find another's files there.
            if live.contains(&record.name) {
                continue;
            }
            let mut led = Led::new(record);
            led.record.phase = Phase::Evicted;
            led.record.flushing = false;
            led.record.error = None;
            if let Some(known) = self.datasets.remove(&id) {
                (led.waiters, led.everywhere) = (known.waiters, known.everywhere);
            }
            self.datasets.insert(id, led);
            return Some(id);
        }
        None
    }

    /// Into the caches; or programs find it where it is, once its files are seen to be there.
    fn take_from_prefix(&mut self, dataset: DatasetId, step: &mut Step) {
        if !self.config.restart.bypass {
            return self.fetch(dataset, step);
        }
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        let order = Order::CheckInPlace {
            record: Box::new(led.record.clone()),
            holders: self.dealt_out(led),
        };
        self.begin_work(dataset, Working::CheckInPlace, order, step);
    }

    pub(super) fn fetch(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        let assigned = self.dealt_out(led);
        let order = Order::Fetch {
            record: Box::new(led.record.clone()),
            holders: assigned.clone(),
        };
        self.begin_work(dataset, Working::Fetch { assigned }, order, step);
    }

    /// The slots of a dataset of the prefix, to all in turn.
    fn dealt_out(&self, led: &Led) -> Vec<(Slot, Rank)> {
        let parts = led.record.seal.as_ref().map_or(0, |seal| seal.parts.len());
        let slots = 0..u32::try_from(parts).unwrap_or(u32::MAX);
        slots
            .map(|slot| (Slot(slot), Rank(slot % self.size)))
            .collect()
    }
}
