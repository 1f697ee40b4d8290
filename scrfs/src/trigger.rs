//! Which datasets to propose for a commit, and when: the triggers of one node at work.
//!
//! A pure state machine. The daemon tells it what programs of its node do to open datasets and to
//! plain files at the top, and what became of proposals; it says what to propose. Time is in
//! milliseconds of any clock that does not go back.
//!
//! Invariants:
//! - Only datasets that are open, and do not look temporary, are proposed, under the name they have.
//! - What was proposed is not proposed again before it is answered, unless a sign came since
//!   that asks for less settling. Refused because somebody writes, it is proposed again and again,
//!   ever less often, for as long as the dataset is open.
//! - `next` and `quiet` propose only what this node has written something to: an empty directory is no
//!   checkpoint.
//!
//! What it does not do: it decides nothing. A proposal that comes too early waits in the vote, or is
//! refused there. And it forgets all when the daemon ends: what was not proposed by then needs
//! `scrfs commit`.

use crate::config::{CommitConfig, RemovedMarker, When};
use crate::control::Refusal;
use crate::id::DatasetId;
use crate::name::{Name, RelPath};
use std::collections::BTreeMap;

/// The first pause before a refused proposal is made again; it doubles each time.
const PAUSE_MIN_MS: u64 = 1000;
/// The longest.
const PAUSE_MAX_MS: u64 = 60_000;
/// How long the first proposal of a quiet dataset waits, so that a burst of files makes one.
const CALM_MS: u64 = 1000;

/// To be sent as [`crate::control::Request::Commit`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Which.
    pub dataset: DatasetId,
    /// The name it has.
    pub name: Name,
    /// How long the vote must see nobody write.
    pub settle_ms: u64,
    /// To be given back with the answer.
    pub ticket: u64,
    /// How often it was refused before.
    pub refusals: u32,
}

/// A commit that is wanted.
#[derive(Debug)]
struct Wanted {
    settle_ms: u64,
    due_ms: u64,
    refusals: u32,
    /// What was proposed and is not answered yet.
    asked: Option<u64>,
}

/// An open dataset that has triggers.
#[derive(Debug)]
struct Watched {
    name: Name,
    /// Where in the configuration they are.
    triggers: Vec<usize>,
    /// A program of this node has written to it.
    touched: bool,
    wanted: Option<Wanted>,
}

/// The triggers of one node.
#[derive(Debug)]
pub struct Triggers {
    config: CommitConfig,
    watched: BTreeMap<DatasetId, Watched>,
    newest: Option<DatasetId>,
    last_ticket: u64,
}

impl Watched {
    fn want(&mut self, due_ms: u64, settle_ms: u64) {
        match &mut self.wanted {
            Some(wanted) if settle_ms < wanted.settle_ms => {
                wanted.settle_ms = settle_ms;
                wanted.due_ms = wanted.due_ms.min(due_ms);
                if wanted.asked.take().is_some() {
                    wanted.due_ms = due_ms;
                }
            }
            Some(wanted) if wanted.asked.is_none() => wanted.due_ms = wanted.due_ms.min(due_ms),
            Some(_) => {}
            None => {
                self.wanted = Some(Wanted {
                    settle_ms,
                    due_ms,
                    refusals: 0,
                    asked: None,
                });
            }
        }
    }
}

impl Triggers {
    /// Nothing is watched yet.
    #[must_use]
    pub fn new(config: CommitConfig) -> Self {
        Self {
            config,
            watched: BTreeMap::new(),
            newest: None,
            last_ticket: 0,
        }
    }

    /// A dataset is now open under this name, or not open any more. One with a higher number than
    /// all before has just been begun.
    pub fn dataset(&mut self, now_ms: u64, id: DatasetId, name: &Name, open: bool) {
        let begun = self.newest.is_none_or(|newest| newest < id);
        self.newest = self.newest.max(Some(id));
        if !open {
            self.watched.remove(&id);
            return;
        }
        if self.watched.get(&id).is_some_and(|it| it.name == *name) {
            return;
        }
        let of_name: Vec<_> = self.config.triggers_of(name.as_bytes()).collect();
        let all = self.config.triggers.iter().enumerate();
        let triggers: Vec<usize> = all
            .filter(|(_, trigger)| of_name.iter().any(|it| std::ptr::eq(*it, *trigger)))
            .map(|(index, _)| index)
            .collect();
        if begun {
            self.next_begun(now_ms, &triggers);
        }
        let touched = self.watched.remove(&id).is_some_and(|it| it.touched);
        if !triggers.is_empty() {
            let watched = Watched {
                name: name.clone(),
                triggers,
                touched,
                wanted: None,
            };
            self.watched.insert(id, watched);
        }
    }

    fn next_begun(&mut self, now_ms: u64, triggers: &[usize]) {
        for index in triggers {
            let trigger = &self.config.triggers[*index];
            if trigger.when != When::Next {
                continue;
            }
            let settle_ms = trigger.settle_ms();
            let older = self.watched.values_mut();
            for watched in older.filter(|it| it.touched && it.triggers.contains(index)) {
                watched.want(now_ms, settle_ms);
            }
        }
    }

    /// A dataset is no more.
    pub fn forget(&mut self, id: DatasetId) {
        self.watched.remove(&id);
    }

    /// Whether anybody wants to know what is written in the dataset.
    #[must_use]
    pub fn watches(&self, id: DatasetId) -> bool {
        self.watched.contains_key(&id)
    }

    /// A file of the dataset was closed after writing, or given this name.
    pub fn written(&mut self, now_ms: u64, id: DatasetId, path: &RelPath) {
        let Some(watched) = self.watched.get_mut(&id) else {
            return;
        };
        watched.touched = true;
        for index in watched.triggers.clone() {
            let trigger = &self.config.triggers[index];
            match &trigger.when {
                When::Marker(marker) if marker.matches(path.as_bytes()) => {
                    watched.want(now_ms, trigger.settle_ms());
                }
                When::Quiet { .. } if watched.wanted.is_none() => {
                    watched.want(now_ms.saturating_add(CALM_MS), trigger.settle_ms());
                }
                _ => {}
            }
        }
    }

    /// A file of the dataset was removed, or renamed away from this path.
    pub fn removed(&mut self, now_ms: u64, id: DatasetId, path: &RelPath) {
        let Some(watched) = self.watched.get_mut(&id) else {
            return;
        };
        for index in watched.triggers.clone() {
            let trigger = &self.config.triggers[index];
            if let When::Removed(RemovedMarker::Inside(marker)) = &trigger.when
                && marker.matches(path.as_bytes())
            {
                watched.want(now_ms, trigger.settle_ms());
            }
        }
    }

    /// A plain file at the top became visible, with this content.
    pub fn pointer_written(&mut self, now_ms: u64, pointer: &Name, content: &[u8]) {
        self.at_top(now_ms, |when, name| match when {
            When::Pointer { file, names } => {
                file == pointer && names.fill(content).as_ref() == Some(name)
            }
            _ => false,
        });
    }

    /// A plain file at the top was removed, or renamed away.
    pub fn pointer_removed(&mut self, now_ms: u64, pointer: &Name) {
        self.at_top(now_ms, |when, name| match when {
            When::Removed(marker) => marker.is_beside(pointer.as_bytes(), name.as_bytes()),
            _ => false,
        });
    }

    fn at_top(&mut self, now_ms: u64, is_meant: impl Fn(&When, &Name) -> bool) {
        for watched in self.watched.values_mut() {
            for index in watched.triggers.clone() {
                let trigger = &self.config.triggers[index];
                if is_meant(&trigger.when, &watched.name) {
                    watched.want(now_ms, trigger.settle_ms());
                }
            }
        }
    }

    /// What is to be proposed now; [`Self::answered`] must follow for each.
    pub fn poll(&mut self, now_ms: u64) -> Vec<Proposal> {
        let mut proposals = Vec::new();
        for (&dataset, watched) in &mut self.watched {
            let Some(wanted) = &mut watched.wanted else {
                continue;
            };
            if wanted.asked.is_some() || wanted.due_ms > now_ms {
                continue;
            }
            self.last_ticket += 1;
            wanted.asked = Some(self.last_ticket);
            proposals.push(Proposal {
                dataset,
                name: watched.name.clone(),
                settle_ms: wanted.settle_ms,
                ticket: self.last_ticket,
                refusals: wanted.refusals,
            });
        }
        proposals
    }

    /// What became of a proposal.
    pub fn answered(&mut self, now_ms: u64, proposal: &Proposal, result: Result<(), Refusal>) {
        let Some(watched) = self.watched.get_mut(&proposal.dataset) else {
            return;
        };
        let Some(wanted) = &mut watched.wanted else {
            return;
        };
        if wanted.asked != Some(proposal.ticket) {
            return;
        }
        match result {
            Ok(()) | Err(Refusal::Missing | Refusal::ReadOnly) => {
                self.watched.remove(&proposal.dataset);
            }
            Err(
                Refusal::Busy
                | Refusal::Exists
                | Refusal::NotEmpty
                | Refusal::NoSpace
                | Refusal::Failed
                | Refusal::Damaged
                | Refusal::Unavailable
                | Refusal::Again,
            ) => {
                let pause = PAUSE_MIN_MS
                    .checked_shl(wanted.refusals)
                    .unwrap_or(PAUSE_MAX_MS);
                wanted.due_ms = now_ms.saturating_add(pause.min(PAUSE_MAX_MS));
                wanted.refusals = wanted.refusals.saturating_add(1).min(32);
                wanted.asked = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
