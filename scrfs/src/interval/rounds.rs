//! Questions in rounds: whoever asks for the n-th time is told what all others are told who ask for the n-th time.
//!
//! The leader answers the first who asks for a round by the rule, and remembers. A question names its round; a node
//! counts for each of its processes ([`super::Askers`]). What was answered is remembered on the node that asked,
//! too, so that a leader that follows another while programs run says the same: each node tells it all it
//! remembers before it asks ([`Rounds::recall`]).
//!
//! Programs that are started anew count from one again, and what others were told does not concern them: a node on
//! which all have ended that ever asked says so ([`Question::after`]), and a *generation* of answers ends. The first
//! to say so ends it; those who say it later of the same generation join the next.
//!
//! Invariants: within a generation a round that is remembered has one answer; memory is bounded, and who is further behind than
//! it reaches is answered by the rule.

use super::Situation;
use crate::layout::record::UnixMillis;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Rounds that are remembered.
pub const ROUNDS_MAX: usize = 256;

/// A process asks whether to checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// How often it has asked, from 1.
    pub round: u64,
    /// All who asked on this node before have ended: answers up to this generation concern nobody here.
    pub after: Option<u64>,
    /// This node knows that programs are to end.
    pub should_exit: bool,
}

/// What it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Of which generation; 0: of none, and not to be remembered.
    pub generation: u64,
    /// Whether to checkpoint.
    pub is_due: bool,
}

impl Verdict {
    /// To processes of a run that has ended.
    pub const NONE: Self = Self {
        generation: 0,
        is_due: false,
    };
}

/// The latest answers of one generation.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdicts {
    /// Which; 0 before the first.
    pub generation: u64,
    /// By round, in the order they were given.
    by_round: VecDeque<(u64, bool)>,
}

impl Verdicts {
    /// A generation without answers.
    #[must_use]
    pub fn of(generation: u64) -> Self {
        let by_round = VecDeque::new();
        Self {
            generation,
            by_round,
        }
    }

    /// What was said in this round.
    #[must_use]
    pub fn get(&self, round: u64) -> Option<bool> {
        // Most ask for the latest.
        let mut latest = self.by_round.iter().rev();
        latest.find(|(of, _)| *of == round).map(|(_, due)| *due)
    }

    /// Remembers, and forgets what was said longest ago.
    pub fn remember(&mut self, round: u64, is_due: bool) {
        if self.get(round).is_some() {
            return;
        }
        while self.by_round.len() >= ROUNDS_MAX {
            self.by_round.pop_front();
        }
        self.by_round.push_back((round, is_due));
    }
}

/// What begins the count of questions anew: the moment, and how many checkpoints were begun and committed, for
/// several may be within one millisecond.
type Mark = (UnixMillis, usize, usize);

/// The leader's side.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    verdicts: Verdicts,
    since: Mark,
    /// Rounds begun since.
    asked: u64,
}

impl Rounds {
    /// What a node remembers of a leader before this one.
    pub fn recall(&mut self, theirs: &Verdicts) {
        if theirs.generation > self.verdicts.generation {
            self.verdicts = Verdicts::of(theirs.generation);
        }
        if theirs.generation == self.verdicts.generation {
            let latest = theirs.by_round.iter().rev().take(ROUNDS_MAX).rev();
            latest.for_each(|(round, due)| self.verdicts.remember(*round, *due));
        }
    }

    /// Answers one question.
    pub fn answer(
        &mut self,
        question: Question,
        situation: &Situation<'_>,
        now: UnixMillis,
    ) -> Verdict {
        let generation = self.verdicts.generation;
        let ended = question.after.filter(|after| *after >= generation);
        if ended.is_some() || generation == 0 {
            let next = ended.unwrap_or(generation).saturating_add(1);
            self.verdicts = Verdicts::of(next);
        }
        let is_due = match self.verdicts.get(question.round) {
            Some(known) => known,
            None => {
                let mark = situation.mark();
                if self.since != mark {
                    (self.since, self.asked) = (mark, 0);
                }
                self.asked += 1;
                // A program that is to end has one chance to keep its work.
                let is_due = situation.is_due(now, self.asked) || question.should_exit;
                self.verdicts.remember(question.round, is_due);
                is_due
            }
        };
        Verdict {
            generation: self.verdicts.generation,
            is_due,
        }
    }
}

impl Situation<'_> {
    fn mark(&self) -> Mark {
        let sealed = self.checkpoints.iter().filter(|it| it.sealed.is_some());
        (self.since(), self.checkpoints.len(), sealed.count())
    }
}
