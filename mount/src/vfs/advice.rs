//! `.scr/need_checkpoint` and `.scr/interval`: what [`scrfs::interval`] says of this mount.
//!
//! Each opening of `need_checkpoint` is a question, answered then: what is read of one handle does not change.
//! Questions are counted on this node only, from the newest checkpoint on.
//!
//! Lock: the questions, a leaf.

use super::Vfs;
use super::namespace::Names;
use scrfs::interval::{Situation, Times};
use scrfs::layout::record::{Phase, UnixMillis};
use std::sync::PoisonError;

/// Length of an answer: a digit and the end of the line.
pub(super) const ANSWER_BYTES: usize = 2;

/// What begins the count anew: the moment, and how many checkpoints were begun and committed, for
/// several may be within one millisecond.
type Mark = (UnixMillis, usize, usize);

/// How often programs of this node asked.
#[derive(Debug, Default)]
pub(super) struct Questions {
    since: Mark,
    asked: u64,
}

/// When what happened to the checkpoints of programs.
pub(crate) fn checkpoint_times(names: &Names) -> Vec<Times> {
    let records = names.iter().map(|dataset| &dataset.record);
    let of_programs = records.filter(|record| {
        // What an earlier run left behind was never finished, and costs nobody anything now.
        record.class.is_checkpoint() && record.phase != Phase::Incomplete
    });
    let times = of_programs.map(|record| Times {
        created: record.created,
        sealed: record.sealed,
        protected: record.protected,
        flushed: record.flushed,
    });
    times.collect()
}

impl Vfs {
    fn with_situation<T>(&self, tell: impl FnOnce(&Situation<'_>) -> T) -> T {
        let names = self.read_names();
        let checkpoints = checkpoint_times(&names);
        let nodes = u32::try_from(names.nodes.len()).unwrap_or(u32::MAX).max(1);
        let recovered = names.recovered;
        drop(names);
        tell(&Situation {
            rules: &self.settings().rules,
            checkpoints: &checkpoints,
            nodes,
            recovered,
        })
    }

    /// A program asks whether it shall checkpoint: `1` or `0`, and an end of line.
    pub(super) fn ask_need_checkpoint(&self) -> Vec<u8> {
        let now = (self.settings().clock)();
        let is_due = self.with_situation(|situation| {
            let begun = situation.checkpoints.len();
            let sealed = situation.checkpoints.iter();
            let sealed = sealed.filter(|times| times.sealed.is_some()).count();
            let since = (situation.since(), begun, sealed);
            let asked = {
                let mut questions = self
                    .questions
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if questions.since != since {
                    *questions = Questions { since, asked: 0 };
                }
                questions.asked += 1;
                questions.asked
            };
            situation.is_due(now, asked)
        });
        // A program that is to end has one chance to keep its work.
        let is_due = is_due || self.signs().should_exit();
        let answer: [u8; ANSWER_BYTES] = if is_due { *b"1\n" } else { *b"0\n" };
        answer.to_vec()
    }

    /// How often is best.
    pub(super) fn interval_text(&self) -> String {
        self.with_situation(|situation| situation.text())
    }
}
