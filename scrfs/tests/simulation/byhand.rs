//! Somebody removes datasets from the prefix with `rm -r` while the job runs, in some of all lives.
//!
//! What is drawn here is drawn apart, so that lives without it stay the story they were.

use crate::jobs::{Job, Kind};
use crate::recovery::Expected;
use crate::world::World;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs::id::DatasetId;
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::protocol::message::PrefixView;
use std::collections::{BTreeMap, BTreeSet};

/// One of so many lives.
const LIVES: u64 = 3;
/// One of so many moves of programs.
const MOVES: u32 = 40;

/// Who removes them.
#[derive(Debug)]
pub struct ByHand {
    draw: Option<StdRng>,
    /// For statistics.
    pub removed: u64,
    /// All that were.
    ever: BTreeSet<DatasetId>,
}

impl ByHand {
    pub fn of(seed: u64) -> Self {
        let draw = seed.is_multiple_of(LIVES);
        Self {
            draw: draw.then(|| StdRng::seed_from_u64(seed ^ 0x000b_adba_d000)),
            removed: 0,
            ever: BTreeSet::new(),
        }
    }

    pub fn has_removed(&self, dataset: DatasetId) -> bool {
        self.ever.contains(&dataset)
    }
}

impl World {
    /// Perhaps something is removed.
    pub fn remove_by_hand(&mut self) {
        let Some(draw) = &mut self.by_hand.draw else {
            return;
        };
        if draw.random_range(0..MOVES) > 0 {
            return;
        }
        let Some(prefix) = &mut self.prefix else {
            return;
        };
        let all: Vec<DatasetId> = prefix.complete.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let dataset = all[draw.random_range(0..all.len())];
        prefix.complete.remove(&dataset);
        self.by_hand.removed += 1;
        self.by_hand.ever.insert(dataset);
        // Nobody can fetch it any more, nor evict for what it was.
        self.checker.failed_recovery.insert(dataset);
        if self.checker.expected.get(&dataset) == Some(&Expected::Prefix) {
            self.checker.expected.remove(&dataset);
        }
        self.note(|| format!("somebody removes {dataset} from the prefix"));
        let looks = |job: &Job| matches!(job.kind, Kind::Look);
        if self.coords.iter().all(|coord| coord.node.is_some()) && !self.jobs.iter().any(looks) {
            let kind = Kind::Look;
            self.jobs.push(Job { at: 0, kind });
        }
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
