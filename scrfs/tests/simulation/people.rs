//! What people do with the prefix while the job runs, in some of all lives: they remove datasets with `rm -r`, and
//! want others fetched.
//!
//! What is drawn here is drawn apart, so that lives without it stay the story they were.

use crate::jobs::{Job, Kind};
use crate::recovery::Expected;
use crate::world::World;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs::control::Request;
use scrfs::id::DatasetId;
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::name::Name;
use scrfs::protocol::message::PrefixView;
use std::collections::{BTreeMap, BTreeSet};

/// One of so many lives has them remove; one of so many, fetch.
const REMOVING: u64 = 3;
const FETCHING: u64 = 5;
/// One of so many moves of programs.
const MOVES: u32 = 40;

/// They, and what they did.
#[derive(Debug)]
pub struct People {
    draw: StdRng,
    removes: bool,
    fetches: bool,
    /// Datasets that were removed, for statistics.
    pub removed: u64,
    /// All of them.
    pub ever: BTreeSet<DatasetId>,
    /// Fetches that were asked for in this epoch.
    pub fetched: BTreeSet<Name>,
    /// Fetches that were granted, for statistics.
    pub granted: u64,
}

impl People {
    pub fn of(seed: u64) -> Self {
        Self {
            draw: StdRng::seed_from_u64(seed ^ 0x000b_adba_d000),
            removes: seed.is_multiple_of(REMOVING),
            fetches: seed.is_multiple_of(FETCHING),
            removed: 0,
            ever: BTreeSet::new(),
            fetched: BTreeSet::new(),
            granted: 0,
        }
    }

    pub fn has_removed(&self, dataset: DatasetId) -> bool {
        self.ever.contains(&dataset)
    }
}

impl World {
    /// Perhaps they do something.
    pub fn meddle(&mut self, machine: usize) {
        if self.people.removes && self.people.draw.random_range(0..MOVES) == 0 {
            self.remove_by_hand();
        }
        if self.people.fetches && self.people.draw.random_range(0..MOVES) == 0 {
            self.want_fetched(machine);
        }
    }

    fn any_complete(&mut self) -> Option<DatasetId> {
        let complete = &self.prefix.as_ref()?.complete;
        let draw = &mut self.people.draw;
        let place = (!complete.is_empty()).then(|| draw.random_range(0..complete.len()))?;
        complete.keys().nth(place).copied()
    }

    fn want_fetched(&mut self, machine: usize) {
        let Some(dataset) = self.any_complete() else {
            return;
        };
        let prefix = self.prefix.as_ref();
        let entry = prefix.and_then(|prefix| prefix.complete.get(&dataset));
        if let Some(name) = entry.map(|(record, _)| record.name.clone()) {
            self.people.fetched.insert(name.clone());
            self.ask(machine, Request::Fetch { name });
        }
    }

    /// What people wanted is forgotten with the epoch, but for what they still wait for.
    pub fn keep_wanted(&mut self) {
        let daemons = self.machines.iter().map(|machine| &machine.daemon);
        let asked = daemons.flat_map(|daemon| daemon.pending.values());
        let wanted = asked.filter_map(|pending| match &pending.what {
            Request::Fetch { name } => Some(name.clone()),
            _ => None,
        });
        self.people.fetched = wanted.collect();
    }

    /// Somebody is to look at the prefix.
    pub fn look(&mut self) {
        let looks = |job: &Job| matches!(job.kind, Kind::Look);
        if self.coords.iter().all(|coord| coord.node.is_some()) && !self.jobs.iter().any(looks) {
            let kind = Kind::Look;
            self.jobs.push(Job { at: 0, kind });
        }
    }

    /// The prefix has changed, which is seen some time. Where nobody meddles nothing follows from it.
    pub fn look_soon(&mut self) {
        if self.people.fetches {
            self.look();
        }
    }

    fn remove_by_hand(&mut self) {
        let Some(dataset) = self.any_complete() else {
            return;
        };
        if let Some(prefix) = &mut self.prefix {
            prefix.complete.remove(&dataset);
        }
        self.people.removed += 1;
        self.people.ever.insert(dataset);
        // Nobody can fetch it any more, nor evict for what it was.
        self.checker.failed_recovery.insert(dataset);
        if self.checker.expected.get(&dataset) == Some(&Expected::Prefix) {
            self.checker.expected.remove(&dataset);
        }
        self.note(|| format!("somebody removes {dataset} from the prefix"));
        self.look();
    }

    /// What a look at the prefix shows.
    pub fn view(&self) -> Option<PrefixView> {
        let prefix = self.prefix.as_ref()?;
        let complete = prefix.complete.values().map(|(record, _)| record.clone());
        Some(PrefixView {
            complete: complete.collect(),
            pointers: prefix.pointers.clone(),
            ..PrefixView::default()
        })
    }

    /// What is shown as flushed is in the prefix, since somebody has looked.
    pub fn invariant_flushed_is_there_at_rest(
        &mut self,
        catalog: &BTreeMap<DatasetId, DatasetRecord>,
    ) {
        let gone = catalog.values().find(|record| {
            let shown = record.phase == Phase::Sealed && record.flushed.is_some();
            shown && !self.is_published(record)
        });
        if let Some(gone) = gone {
            self.violate("invariant_flushed_is_there_at_rest", format!("{gone:?}"));
        }
    }
}
