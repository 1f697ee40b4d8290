//! What people want held against its checksums: one dataset at a time, behind what programs wait for. Also
//! one whose protection cannot be restored because something of it is damaged: what is repaired can be
//! made parity of.
//!
//! Three rounds of all members: the files, with records and manifests; then the parity, which is made of
//! the files; then the files in the prefix, where it has them. Members repair what they can, unit by
//! unit, and tell what they have found. What no member could repair is taken for what it is: files are
//! lost, and rebuilt where the scheme tolerates that, parity is still to be made. A dataset of which more
//! is damaged than can be rebuilt is lost, or only in the prefix, and not offered any more.
//!
//! A verify that an epoch interrupts has done no harm: what was repaired is what was stored, what was
//! not is found again. It is not begun anew by itself; a program that waits asks again.

use super::work::Working;
use super::{Asker, Leader, Led};
use crate::control::{Activity, Level, Progress, Refusal};
use crate::findings::Findings;
use crate::id::{DatasetId, Rank, Slot};
use crate::layout::record::Phase;
use crate::protocol::Now;
use crate::protocol::message::{Checking, Failure, Message, Order};
use crate::protocol::step::Step;
use std::collections::BTreeMap;

impl Led {
    fn wants_verify(&self) -> bool {
        (self.is_damaged || !self.verifiers.is_empty()) && self.has_reached(Level::Sealed)
    }

    /// Whether no set has lost more than the scheme tolerates.
    fn is_rebuildable(&self) -> bool {
        let seal = self.record.seal.as_ref();
        self.record.protected.is_some()
            && seal.is_some_and(|seal| {
                let tolerated = seal.scheme.tolerates() as usize;
                let lost = |set: &Vec<Slot>| set.iter().filter(|it| self.lost.contains(it)).count();
                seal.sets.iter().all(|set| lost(set) <= tolerated)
            })
    }
}

impl Leader {
    /// Somebody wants a dataset verified; who asks while it is going on gets what that finds.
    pub(super) fn verify(&mut self, now: Now, asker: Asker, dataset: DatasetId, step: &mut Step) {
        match self.datasets.get_mut(&dataset).filter(|led| !led.leaving) {
            None => Self::reply(asker, Err(Refusal::Missing), step),
            Some(led) if led.record.phase == Phase::Open => {
                Self::reply(asker, Err(Refusal::Busy), step);
            }
            Some(led) if led.record.phase != Phase::Sealed => {
                Self::reply(asker, Err(Refusal::Missing), step);
            }
            Some(led) => {
                led.verifiers.push(asker);
                self.schedule(now, step);
            }
        }
    }

    /// Begins the next one, if none is under way and nothing that is wanted of it comes first.
    pub(super) fn schedule_verify(&mut self, step: &mut Step) {
        for led in self.datasets.values_mut() {
            // It went before its turn came.
            if led.record.phase != Phase::Sealed && led.is_resting() {
                for asker in std::mem::take(&mut led.verifiers) {
                    Self::reply(asker, Err(Refusal::Missing), step);
                }
            }
        }
        let verifying = |led: &Led| matches!(led.working, Some(Working::Verify { .. }));
        if self.datasets.values().any(verifying) {
            return;
        }
        let next = self
            .datasets
            .iter()
            .find(|(_, led)| led.is_resting() && led.wants_verify());
        if let Some((&dataset, _)) = next {
            self.check(dataset, Checking::Files, Findings::default(), step);
        }
    }

    fn check(&mut self, dataset: DatasetId, what: Checking, findings: Findings, step: &mut Step) {
        let Some(led) = self.datasets.get(&dataset) else {
            return;
        };
        let order = Order::Verify {
            dataset,
            holders: led.holders_list(),
            lost: led.lost.iter().copied().collect(),
            what,
        };
        self.begin_work(dataset, Working::Verify { what, findings }, order, step);
    }

    /// A round has ended on all members.
    pub(super) fn verified(
        &mut self,
        dataset: DatasetId,
        failures: &BTreeMap<Rank, Failure>,
        found: Findings,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let Some(Working::Verify { what, mut findings }) = led.working.take() else {
            return;
        };
        findings.add(found);
        if led.leaving {
            // Its end answers who waits.
            return;
        }
        let next = match what {
            Checking::Files => Some(Checking::Parity),
            Checking::Parity if led.record.flushed.is_some() => Some(Checking::Prefix),
            Checking::Parity | Checking::Prefix => None,
        };
        if let Some(failure) = failures.values().next() {
            tracing::error!(%dataset, %failure, "verify failed");
            self.end_verify(dataset, Err(failure.refusal), findings, step);
        } else if let Some(next) = next {
            self.check(dataset, next, findings, step);
        } else {
            self.judge(dataset, &findings, step);
            self.end_verify(dataset, Ok(()), findings, step);
        }
    }

    /// What becomes of a dataset of which something could not be repaired.
    fn judge(&mut self, dataset: DatasetId, findings: &Findings, step: &mut Step) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let held = |slot: &&Slot| led.holders.contains_key(slot);
        let spoilt: Vec<Slot> = findings.spoilt.iter().filter(held).copied().collect();
        let bare: Vec<Slot> = findings.unguarded.iter().filter(held).copied().collect();
        if spoilt.is_empty() && (bare.is_empty() || led.record.protected.is_none()) {
            return;
        }
        if led.record.protected.is_some() {
            led.unguarded.extend(bare);
        }
        for slot in &spoilt {
            led.holders.remove(slot);
            led.unguarded.remove(slot);
            led.lost.insert(*slot);
        }
        if !led.lost.is_empty() && !led.is_rebuildable() {
            if led.record.is_removed() {
                return self.forget(dataset, None, step);
            }
            let flushed = led.record.flushed.is_some();
            let slots: Vec<String> = led.lost.iter().map(ToString::to_string).collect();
            led.record.error = Some(format!("damaged beyond repair: {}", slots.join(", ")));
            led.record.phase = match flushed {
                true => Phase::Evicted,
                false => Phase::Lost,
            };
            if flushed {
                led.holders.clear();
            }
        }
        if led.record.flushed.is_none() {
            led.everywhere = led.everywhere.min(Some(Level::Sealed));
        }
        if let Some(led) = self
            .datasets
            .get(&dataset)
            .filter(|led| led.record.is_cached())
        {
            self.tell_losses(dataset, led, step);
        }
        self.update_reached(dataset, step);
    }

    fn end_verify(
        &mut self,
        dataset: DatasetId,
        result: Result<(), Refusal>,
        findings: Findings,
        step: &mut Step,
    ) {
        let Some(led) = self.datasets.get_mut(&dataset) else {
            return;
        };
        let total_bytes = led.record.seal.as_ref().map_or(0, |seal| seal.bytes());
        let ended = Progress {
            dataset,
            activity: Activity::Verify,
            done_bytes: total_bytes,
            total_bytes,
        };
        led.is_damaged = false;
        let findings = Box::new(findings);
        for asker in std::mem::take(&mut led.verifiers) {
            let findings = findings.clone();
            step.send(asker.0, Message::Verified { dataset, findings });
            Self::reply(asker, result, step);
        }
        step.cast(Message::Progress(ended));
    }
}
