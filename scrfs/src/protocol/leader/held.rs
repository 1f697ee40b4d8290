//! Whether the prefix still holds what was flushed there: asked before the caches let go of it.
//!
//! People own the prefix and may remove what they like with `rm -r`, which no record tells of. So `flushed`
//! in a record is a memory, good enough to show; it is no reason to drop the last other copy. Before that the
//! prefix is asked, and only its answer counts, and only for what is decided in the moment it comes. What it does
//! not hold any more, and nobody deleted by `scrfs`, is not flushed: it stays and is flushed again, unless
//! another dataset has taken its name: two jobs that write the same names would take them from each other for
//! ever. A prefix that gives no answer is asked again after a pause; one that hangs is asked once.
//!
//! The prefix is also asked for what a newer look at it does not show, so that it is flushed again soon.

use super::work::Retry;
use super::{Leader, Led, Purpose};
use crate::id::DatasetId;
use crate::layout::record::Phase;
use crate::protocol::Now;
use crate::protocol::message::Failure;
use crate::protocol::step::{Effect, Presence, Step};
use std::collections::BTreeMap;

/// What was asked of a dataset.
#[derive(Debug)]
enum Asked {
    /// No answer yet; after failures before it.
    Waiting(Option<Retry>),
    /// It is there, just now.
    Holds,
    /// It is not, which its record says as soon as nothing else is being said of it; or another has its name.
    Gone { replaced: bool },
    /// Nobody knows.
    Unknown(Retry),
}

/// The questions that are under way.
#[derive(Debug, Default)]
pub(super) struct Held {
    asked: BTreeMap<DatasetId, Asked>,
}

/// What is known in this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    /// The prefix has it.
    Yes,
    /// It was asked, and an answer may come.
    Asked,
    /// It does not answer; it is asked again later.
    Unknown,
}

impl Held {
    fn gone(&mut self, dataset: DatasetId, replaced: bool) {
        self.asked.insert(dataset, Asked::Gone { replaced });
    }

    /// Whether the prefix has said that it is not there.
    pub(super) fn is_gone(&self, dataset: DatasetId) -> bool {
        matches!(self.asked.get(&dataset), Some(Asked::Gone { .. }))
    }

    /// When a pause ends.
    pub(super) fn deadline(&self) -> Option<u64> {
        let pauses = self.asked.values().filter_map(|asked| match asked {
            Asked::Unknown(retry) => retry.deadline(),
            Asked::Waiting(_) | Asked::Holds | Asked::Gone { .. } => None,
        });
        pauses.min()
    }

    /// What was decided with is not believed any longer.
    pub(super) fn forget_answers(&mut self) {
        self.asked.retain(|_, asked| !matches!(asked, Asked::Holds));
    }
}

impl Leader {
    /// Whether the prefix holds a dataset that was flushed; it is asked when that is not known.
    pub(super) fn prefix_holds(&mut self, dataset: DatasetId, step: &mut Step) -> Holds {
        let before = match self.held.asked.get(&dataset) {
            Some(Asked::Holds) => return Holds::Yes,
            Some(Asked::Waiting(_)) => return Holds::Asked,
            Some(Asked::Unknown(retry)) if retry.deadline().is_some() => return Holds::Unknown,
            Some(Asked::Gone { .. }) => return Holds::Unknown,
            Some(Asked::Unknown(retry)) => Some(*retry),
            None => None,
        };
        let Some(led) = self.datasets.get(&dataset) else {
            return Holds::Unknown;
        };
        let record = Box::new(led.record.clone());
        step.effect(Effect::AskPrefix { record });
        self.held.asked.insert(dataset, Asked::Waiting(before));
        Holds::Asked
    }

    /// Asks for what was flushed, lies in the caches and was not seen in the prefix.
    pub(super) fn ask_for_missing(&mut self, step: &mut Step) {
        let Some(prefix) = &self.prefix else { return };
        let missing = |led: &Led| {
            let key = led.record.key();
            let is_seen = || prefix.complete.iter().any(|seen| seen.key() == key);
            let was_flushed = led.record.phase == Phase::Sealed && led.record.flushed.is_some();
            was_flushed && !prefix.gone.contains(&key) && !is_seen()
        };
        let missing = self.datasets.iter().filter(|(_, led)| missing(led));
        let missing: Vec<DatasetId> = missing.map(|(id, _)| *id).collect();
        for dataset in missing {
            self.prefix_holds(dataset, step);
        }
    }

    /// The prefix has answered.
    pub(super) fn prefix_answered(
        &mut self,
        now: Now,
        dataset: DatasetId,
        result: Result<Presence, Failure>,
        step: &mut Step,
    ) {
        let Some(Asked::Waiting(before)) = self.held.asked.remove(&dataset) else {
            return;
        };
        match result {
            Ok(Presence::Settled) => drop(self.held.asked.insert(dataset, Asked::Holds)),
            Ok(Presence::Replaced) => self.held.gone(dataset, true),
            Ok(Presence::Gone) => self.held.gone(dataset, false),
            Err(failure) => {
                tracing::warn!(%dataset, %failure, "the prefix does not say whether it has it: it stays in the caches");
                let retry = Retry::after(before.as_ref(), now);
                self.held.asked.insert(dataset, Asked::Unknown(retry));
            }
        }
        self.schedule(now, step);
        self.held.forget_answers();
    }

    /// Asks again where there was no answer. What the prefix has no more is not flushed any more.
    pub(super) fn heed_answers(&mut self, now: Now, step: &mut Step) {
        let mut again = Vec::new();
        let mut gone = Vec::new();
        for (&dataset, asked) in &mut self.held.asked {
            match asked {
                Asked::Unknown(retry) => again.extend(retry.is_due(now).then_some(dataset)),
                Asked::Gone { replaced } => gone.push((dataset, *replaced)),
                Asked::Waiting(_) | Asked::Holds => {}
            }
        }
        for dataset in again {
            let led = self.datasets.get(&dataset);
            match led.is_some_and(|led| led.record.is_cached() && led.record.flushed.is_some()) {
                true => drop(self.prefix_holds(dataset, step)),
                false => drop(self.held.asked.remove(&dataset)),
            }
        }
        for (dataset, replaced) in gone {
            let is_being_said = self.tickets.values().any(|ticket| {
                matches!(ticket.purpose, Purpose::Reached { dataset: of, .. } if of == dataset)
            });
            let led = self.datasets.get_mut(&dataset);
            match led.filter(|led| led.record.is_cached() && led.record.flushed.is_some()) {
                Some(led) if is_being_said || !led.is_resting() => continue,
                Some(led) => {
                    tracing::warn!(%dataset, name = %led.record.name,
                        replaced, "it was flushed, and is not in the prefix any more: it stays in the caches, \
                        and is flushed again unless another has taken its name");
                    led.record.flushed = None;
                    if std::mem::take(&mut led.is_by_prefix) {
                        led.record.protected = None;
                    }
                    led.everywhere = led.everywhere.min(led.level());
                    led.is_replaced = replaced;
                    self.update(dataset, Purpose::Noted, step);
                }
                None => {}
            }
            self.held.asked.remove(&dataset);
        }
    }
}
