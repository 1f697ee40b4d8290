//! What programs ask: directories, names, removal, waiting. Commits are in `agree`.
//!
//! Every request is answered once: at once, when an order has been carried out, or when the dataset
//! has come as far as was asked, or never will. Nothing is decided before the epoch has begun; what
//! concerns a dataset that is being made, or changes one that is being frozen, waits until it is
//! known what becomes of it.

use super::agree::Proposal;
use super::{Asker, Leader, Led, Purpose};
use crate::control::{Activity, DirectoryChange, Level, Refusal, Request};
use crate::id::DatasetId;
use crate::layout::record::{DatasetRecord, Phase};
use crate::name::Name;
use crate::protocol::Now;
use crate::protocol::message::Order;
use crate::protocol::step::{Step, Write};

impl Leader {
    pub(super) fn asked(&mut self, now: Now, asker: Asker, what: Request, step: &mut Step) {
        if !self.has_begun() {
            // Daemons ask again what the last epoch left unanswered, as soon as they are connected.
            self.early.push_back((asker, what));
            return;
        }
        let about = match &what {
            Request::Create { .. }
            | Request::Point { .. }
            | Request::Fetch { .. }
            | Request::End => None,
            Request::Change { dataset, .. }
            | Request::Rename { dataset, .. }
            | Request::Commit { dataset, .. }
            | Request::Remove { dataset }
            | Request::Wait { dataset, .. }
            | Request::Flush { dataset }
            | Request::Verify { dataset } => self.datasets.get_mut(dataset),
        };
        if let Some(led) = about.filter(|led| led.defers(&what)) {
            led.deferred.push((asker, what));
            return;
        }
        match what {
            Request::Create {
                name,
                mode,
                uid,
                gid,
            } => {
                self.create(now, asker, name, (mode, uid, gid), step);
            }
            Request::Change { dataset, change } => match self.may_change(dataset, &change) {
                Ok(()) => {
                    self.order(
                        Order::Change { dataset, change },
                        Purpose::Change { asker },
                        step,
                    );
                }
                Err(refusal) => Self::reply(asker, Err(refusal), step),
            },
            Request::Rename { dataset, to } => self.rename(asker, dataset, to, step),
            Request::Commit {
                dataset,
                to,
                settle_ms,
            } => self.propose(now, asker, dataset, (to, settle_ms), step),
            Request::Remove { dataset } => self.remove(asker, dataset, step),
            Request::Point { changes, absent } => {
                self.point(asker, changes, absent.as_ref(), step);
            }
            Request::Wait { dataset, level } => self.wait(asker, dataset, level, step),
            Request::Fetch { name } => self.fetch_asked(asker, name, step),
            Request::End => {
                self.end(now, step);
                Self::reply(asker, Ok(()), step);
            }
            Request::Verify { dataset } => self.verify(now, asker, dataset, step),
            Request::Flush { dataset } => {
                let prefix = self.prefix.is_some();
                match self.datasets.get_mut(&dataset) {
                    Some(led) if led.leaving => Self::reply(asker, Err(Refusal::Missing), step),
                    Some(led) if led.record.seal.is_some() && prefix => {
                        led.flush_now = true;
                        led.retry.remove(&Activity::Flush);
                        self.wait(asker, dataset, Level::Flushed, step);
                        self.schedule(now, step);
                    }
                    Some(_) if prefix => Self::reply(asker, Err(Refusal::Busy), step),
                    Some(_) => Self::reply(asker, Err(Refusal::Failed), step),
                    None => Self::reply(asker, Err(Refusal::Missing), step),
                }
            }
        }
    }

    fn may_change(&self, dataset: DatasetId, change: &DirectoryChange) -> Result<(), Refusal> {
        if !change.is_of_sealed() {
            return self.open_dataset(dataset);
        }
        match self.datasets.get(&dataset) {
            Some(led) if led.leaving => Err(Refusal::Missing),
            Some(led) if led.record.phase == Phase::Sealed => Ok(()),
            _ => Err(Refusal::Missing),
        }
    }

    fn open_dataset(&self, dataset: DatasetId) -> Result<(), Refusal> {
        match self.datasets.get(&dataset) {
            Some(led) if led.leaving => Err(Refusal::Missing),
            Some(led) if led.record.phase == Phase::Open => Ok(()),
            Some(_) => Err(Refusal::ReadOnly),
            None => Err(Refusal::Missing),
        }
    }

    fn create(
        &mut self,
        now: Now,
        asker: Asker,
        name: Name,
        (mode, uid, gid): (u32, u32, u32),
        step: &mut Step,
    ) {
        if let Some(taken) = self.live_by_name(&name) {
            // Not before the directory is there for the asker, too: it goes on to write in it.
            match self
                .datasets
                .get_mut(&taken)
                .and_then(|led| led.creating.as_mut())
            {
                Some(waiting) => waiting.push(asker),
                None => Self::reply(asker, Err(Refusal::Exists), step),
            }
            return;
        }
        if self.is_taken(&name, DatasetId(0)) {
            return Self::reply(asker, Err(Refusal::Exists), step);
        }
        self.last_dataset += 1;
        let id = DatasetId(self.last_dataset);
        let record = DatasetRecord {
            id,
            class: self.config.class_of(name.as_bytes()),
            name,
            committed_from: None,
            checkpoint: None,
            phase: Phase::Open,
            epoch: self.epoch,
            created: now.wall,
            sealed: None,
            protected: None,
            flushing: false,
            flushed: None,
            seal: None,
            error: None,
            mode,
            uid,
            gid,
        };
        let mut led = Led::new(record.clone());
        led.creating = Some(Vec::new());
        self.datasets.insert(id, led);
        step.write(Write::Dataset(Box::new(record.clone())));
        let purpose = Purpose::Create { dataset: id, asker };
        self.order(Order::Create(Box::new(record)), purpose, step);
    }

    fn rename(&mut self, asker: Asker, dataset: DatasetId, to: Name, step: &mut Step) {
        if let Err(refusal) = self.open_dataset(dataset) {
            return Self::reply(asker, Err(refusal), step);
        }
        if self.is_taken(&to, dataset) {
            return Self::reply(asker, Err(Refusal::Exists), step);
        }
        // What a trigger guessed stands in no program's way.
        let guessed = |proposal: &Proposal| proposal.yields_to(0);
        if self.standing_proposal(dataset).is_some_and(guessed) {
            self.give_up(dataset, Refusal::Busy, step);
        }
        if self.standing_proposal(dataset).is_some() {
            return Self::reply(asker, Err(Refusal::Busy), step);
        }
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        led.record.class = self.config.class_of(to.as_bytes());
        led.record.name = to;
        self.update(dataset, Purpose::Record { dataset, asker }, step);
    }

    fn remove(&mut self, asker: Asker, dataset: DatasetId, step: &mut Step) {
        let found = self.datasets.get(&dataset).filter(|led| !led.leaving);
        match found.map(|led| led.record.phase) {
            None => Self::reply(asker, Err(Refusal::Missing), step),
            // By another program at the same time, or by this one before an epoch ended.
            Some(Phase::Removed { .. }) => {
                self.update(dataset, Purpose::Record { dataset, asker }, step);
            }
            // Who asks before programs may start belongs to the run before.
            Some(Phase::Sealed) if self.new_run && !self.ready => {
                Self::reply(asker, Err(Refusal::Busy), step);
            }
            Some(Phase::Sealed) => self.fence(asker, dataset, step),
            // The prefix is not the mount's to remove anything from.
            Some(Phase::Evicted) => Self::reply(asker, Err(Refusal::ReadOnly), step),
            Some(Phase::Open | Phase::Incomplete | Phase::Lost | Phase::Failed) => {
                self.forget(dataset, Some(asker), step);
            }
        }
    }

    /// Takes a sealed dataset out of sight; [`super::room`] lets it go.
    fn fence(&mut self, asker: Asker, dataset: DatasetId, step: &mut Step) {
        // Also one that is lost by now: whoever asks may not know.
        let is_newer = |newer: &Led| match newer.record.phase {
            Phase::Open | Phase::Incomplete | Phase::Failed => false,
            Phase::Removed { overtaken } => overtaken,
            Phase::Sealed | Phase::Lost | Phase::Evicted => true,
        };
        let mut newer = self.datasets.range(dataset..).skip(1);
        let overtaken = newer.any(|(_, newer)| {
            newer.record.class.is_checkpoint() && !newer.leaving && is_newer(newer)
        });
        if let Some(led) = self.datasets.get_mut(&dataset) {
            led.record.phase = Phase::Removed { overtaken };
            self.update(dataset, Purpose::Record { dataset, asker }, step);
        }
    }

    pub(super) fn forget(&mut self, dataset: DatasetId, asker: Option<Asker>, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        led.leaving = true;
        if let Some(proposal) = led.proposal.take() {
            for waiter in proposal.askers {
                Self::reply(waiter, Err(Refusal::Missing), step);
            }
        }
        if led.record.phase == Phase::Open {
            // Half of it may soon be gone: whatever happens, nobody is to commit the rest.
            led.record.phase = Phase::Incomplete;
            led.record.epoch = self.epoch;
            step.write(Write::Dataset(Box::new(led.record.clone())));
        }
        self.order(
            Order::Forget(dataset),
            Purpose::Forget { dataset, asker },
            step,
        );
    }

    pub(super) fn wait(&mut self, asker: Asker, dataset: DatasetId, level: Level, step: &mut Step) {
        match self.datasets.get_mut(&dataset) {
            None => Self::reply(asker, Err(Refusal::Missing), step),
            Some(led) => {
                led.waiters.push((level, asker));
                self.answer_waiters(dataset, step);
            }
        }
    }

    /// Whether a dataset will never come so far, as things are.
    fn is_hopeless(&self, led: &Led, level: Level) -> bool {
        match led.record.phase {
            Phase::Open => level == Level::Flushed && self.prefix.is_none(),
            Phase::Incomplete => true,
            Phase::Sealed | Phase::Removed { .. } => {
                level == Level::Flushed && led.record.flushed.is_none() && !self.is_due(led)
            }
            Phase::Lost | Phase::Failed | Phase::Evicted => led.level() < Some(level),
        }
    }

    /// Answers those who waited for what the dataset has now reached.
    pub(super) fn answer_waiters(&mut self, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let waiters = std::mem::take(&mut led.waiters);
        let mut left = Vec::new();
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        for (level, asker) in waiters {
            if led.has_reached(level) {
                Self::reply(asker, Ok(()), step);
            } else if self.is_hopeless(led, level) && !led.leaving {
                Self::reply(asker, Err(Refusal::Failed), step);
            } else {
                left.push((level, asker));
            }
        }
        if let Some(led) = self.datasets.get_mut(&dataset) {
            led.waiters = left;
        }
    }

    /// Takes up again what had to wait.
    pub(super) fn resume(&mut self, now: Now, dataset: DatasetId, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        for (asker, what) in std::mem::take(&mut led.deferred) {
            self.asked(now, asker, what, step);
        }
    }

    pub(super) fn created(
        &mut self,
        dataset: DatasetId,
        asker: Asker,
        refusal: Option<Refusal>,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let late = led.creating.take().unwrap_or_default();
        match refusal {
            None => {
                self.foresee(dataset, step);
                Self::reply(asker, Ok(()), step);
                for waiter in late {
                    Self::reply(waiter, Err(Refusal::Exists), step);
                }
            }
            Some(refusal) => {
                for waiter in late.into_iter().chain([asker]) {
                    Self::reply(waiter, Err(refusal), step);
                }
                self.forget(dataset, None, step);
            }
        }
    }
}
