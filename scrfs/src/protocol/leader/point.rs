//! Pointer files: every change gets a version, is put down everywhere, then answered; and goes to
//! the prefix in order.
//!
//! Order: a pointer file may name any dataset that was sealed before it was written. It is written to
//! the prefix when none of those is still on its way there and the newest of them has arrived. If
//! that one will never be there, neither will this version of the file: the one before it stays,
//! which names what is there.

use super::work::Retry;
use super::{Asker, Leader, Purpose};
use crate::control::{PointerChange, Refusal};
use crate::id::DatasetId;
use crate::layout::pointer::{
    POINTER_BYTES_MAX, POINTERS_BYTES_MAX, POINTERS_MAX, PointerRecord, Pointers, Version,
};
use crate::name::Name;
use crate::protocol::Now;
use crate::protocol::message::{Failure, Order};
use crate::protocol::step::{Effect, Step, Write};

/// The leader's view of pointer files.
#[derive(Debug, Default)]
pub(super) struct Pointing {
    pub(super) known: Pointers,
    /// Of the versions that are given out.
    term: u64,
    number: u64,
    /// What the prefix has.
    written: Pointers,
    writing: bool,
    retry: Option<Retry>,
}

impl Pointing {
    /// Begins a term above all there is.
    pub(super) fn begin<'a>(
        found: impl Iterator<Item = &'a Pointers>,
        mut written: Pointers,
    ) -> Self {
        let mut known = written.clone();
        found.for_each(|one| known.merge(one));
        known.term += 1;
        settle(&mut written, &known);
        Self {
            term: known.term,
            known,
            written,
            ..Self::default()
        }
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.retry.as_ref().and_then(Retry::deadline)
    }
}

/// What another job has written since stays: ours, known here, counts as written.
fn settle(written: &mut Pointers, known: &Pointers) {
    for (name, there) in &mut written.all {
        let ours = known.all.get(name);
        let is_older =
            |ours: &&PointerRecord| ours.version > there.version && !ours.outdoes(Some(there));
        if let Some(ours) = ours.filter(is_older) {
            *there = ours.clone();
        }
    }
}

impl Leader {
    pub(super) fn point(
        &mut self,
        asker: Asker,
        changes: Vec<PointerChange>,
        absent: Option<&Name>,
        step: &mut Step,
    ) {
        if let Err(refusal) = self.check_point(&changes, absent) {
            return Self::reply(asker, Err(refusal), step);
        }
        let after = self.newest_sealed();
        let mut records = Vec::new();
        for PointerChange { name, pointer } in changes {
            self.pointing.number += 1;
            let version = Version {
                term: self.pointing.term,
                number: self.pointing.number,
            };
            let record = PointerRecord {
                version,
                after,
                pointer,
            };
            self.pointing.known.learn(name.clone(), record.clone());
            records.push((name, record));
        }
        step.write(Write::Pointers(Box::new(self.pointing.known.clone())));
        self.order(Order::Point(records), Purpose::Point { asker }, step);
    }

    fn check_point(&self, changes: &[PointerChange], absent: Option<&Name>) -> Result<(), Refusal> {
        let known = &self.pointing.known;
        if absent.is_some_and(|name| known.live(name).is_some()) {
            return Err(Refusal::Exists);
        }
        let (mut bytes, mut names) = (known.bytes(), known.all.len());
        for PointerChange { name, pointer } in changes {
            match pointer {
                Some(_) if self.is_dataset(name) => return Err(Refusal::Exists),
                Some(pointer) if pointer.content.len() > POINTER_BYTES_MAX => {
                    return Err(Refusal::NoSpace);
                }
                Some(pointer) => bytes += pointer.content.len(),
                None => {}
            }
            bytes -= known.live(name).map_or(0, |old| old.content.len());
            names += usize::from(!known.all.contains_key(name));
        }
        if bytes > POINTERS_BYTES_MAX || names > POINTERS_MAX {
            return Err(Refusal::NoSpace);
        }
        Ok(())
    }

    fn newest_sealed(&self) -> Option<DatasetId> {
        let mut sealed = self.datasets.iter().rev();
        sealed
            .find(|(_, led)| led.record.seal.is_some() && !led.record.is_removed())
            .map(|(id, _)| *id)
    }

    /// Whether the prefix is to have what was written after `after`.
    fn is_in_turn(&self, after: Option<DatasetId>) -> bool {
        let Some(after) = after else { return true };
        let arrived = self
            .datasets
            .get(&after)
            .is_some_and(|led| led.record.flushed.is_some());
        let mut before = self.datasets.range(..=after);
        arrived && !before.any(|(_, led)| self.wants_flush(led))
    }

    /// Whether a pointer file can come to the prefix only while it is known that the dataset has.
    pub(super) fn is_awaited(&self, dataset: DatasetId) -> bool {
        let Pointing { known, written, .. } = &self.pointing;
        let mut all = known.all.iter();
        all.any(|(name, it)| it.after == Some(dataset) && it.version > written.version(name))
    }

    /// What the prefix is to have and has not; `None` when that is nothing.
    fn pointers_due(&self) -> Option<Pointers> {
        self.prefix.as_ref()?;
        let Pointing { known, written, .. } = &self.pointing;
        let mut due = Pointers {
            term: known.term,
            ..Pointers::default()
        };
        for (name, record) in &known.all {
            if record.version > written.version(name) && self.is_in_turn(record.after) {
                due.learn(name.clone(), record.clone());
            }
        }
        (!due.all.is_empty()).then_some(due)
    }

    /// Whether pointer files are on their way to the prefix and have not failed.
    pub(super) fn has_pointers_due(&self) -> bool {
        self.pointing.writing || (self.pointing.retry.is_none() && self.pointers_due().is_some())
    }

    /// Writes what may be written now.
    pub(super) fn schedule_pointers(&mut self, now: Now, step: &mut Step) {
        let waits = self
            .pointing
            .retry
            .as_mut()
            .is_some_and(|retry| !retry.is_due(now));
        if self.pointing.writing || waits {
            return;
        }
        if let Some(due) = self.pointers_due() {
            self.pointing.writing = true;
            step.effect(Effect::WritePointers { due: Box::new(due) });
        }
    }

    /// What the prefix has, when that was not known before. This term may be no higher than those of before then:
    /// a higher one begins.
    pub(super) fn learn_written(&mut self, written: &Pointers, step: &mut Step) {
        let Pointing {
            known,
            written: there,
            ..
        } = &mut self.pointing;
        there.merge(written);
        settle(there, known);
        let mut names = there.all.iter();
        let is_newer = names.any(|(name, it)| it.version > known.version(name));
        if is_newer || there.term >= known.term {
            let term = known.term.max(there.term) + 1;
            known.term = term;
            step.write(Write::Pointers(Box::new(known.clone())));
            self.order(Order::Raise(term), Purpose::Raise { term }, step);
        }
    }

    /// All members know of a higher term: what was given out in this epoch is newer than all there is, of the rest the
    /// newer counts.
    pub(super) fn raised(&mut self, now: Now, term: u64, step: &mut Step) {
        let before = std::mem::replace(&mut self.pointing.term, term);
        let mut records = Vec::new();
        for (name, there) in self.pointing.written.all.clone() {
            let ours = self.pointing.known.all.get(&name);
            let is_new = ours.is_some_and(|ours| ours.version.term == before);
            let record = match ours {
                Some(ours) if ours.version > there.version || *ours == there => continue,
                Some(ours) if is_new => {
                    self.pointing.number += 1;
                    let number = self.pointing.number;
                    PointerRecord {
                        version: Version { term, number },
                        ..ours.clone()
                    }
                }
                Some(ours) if ours.version == there.version => continue,
                None if self.is_dataset(&name) => continue,
                _ => there,
            };
            self.pointing.known.learn(name.clone(), record.clone());
            records.push((name, record));
        }
        if !records.is_empty() {
            step.write(Write::Pointers(Box::new(self.pointing.known.clone())));
            self.order(Order::Point(records), Purpose::Noted, step);
        }
        self.schedule(now, step);
    }

    /// The prefix has them, or not.
    pub(super) fn pointers_written(
        &mut self,
        now: Now,
        due: &Pointers,
        result: &Result<(), Failure>,
        step: &mut Step,
    ) {
        self.pointing.writing = false;
        match result {
            Ok(()) => {
                self.pointing.retry = None;
                self.pointing.written.merge(due);
            }
            Err(failure) => {
                tracing::error!(%failure, "cannot write pointer files to the prefix; will try again");
                self.pointing.retry = Some(Retry::after(self.pointing.retry.as_ref(), now));
            }
        }
        // What was kept for them may go, too.
        self.schedule(now, step);
    }
}
