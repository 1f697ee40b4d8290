//! Who asks on one node, and in which round: each process counts for itself.
//!
//! Ranks ask as often as each other, so that the n-th question of one belongs with the n-th of every other,
//! on whichever node. A script that reads with `cat` asks with a new process each time: one that has asked once and
//! ended is followed by the next child of the same parent. Any other new process begins at round 1; when nobody lives
//! any more who asked before, it is a new program.
//!
//! Answers are kept for the next leader ([`super::Rounds::recall`]), and for [`FRESH_MS`] for the other processes
//! of this node, which ask in the same round: a node asks the leader once a round.
//!
//! Pure: what lives is told, as is the time.

use super::{Question, Verdict, Verdicts};
use std::collections::{BTreeMap, VecDeque};

/// For so many milliseconds an answer is passed on without asking again.
pub const FRESH_MS: u64 = 1000;

/// A process: its number, and when it was started, for numbers come again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it was started.
    pub start: u64,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The process.
    pub process: Process,
    /// Its parent, where that can be seen.
    pub parent: Option<Process>,
}

impl Asker {
    /// All who cannot be seen count as one process that never ends.
    pub const UNSEEN: Self = Self {
        process: Process { pid: 0, start: 0 },
        parent: None,
    };
}

#[derive(Clone, Copy, Debug)]
struct Line {
    parent: Option<Process>,
    /// Of its last question.
    round: u64,
    /// The process has asked more than once: it is no `cat`.
    stays: bool,
}

/// What a process is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// This, which another one here was told a moment ago.
    Known(bool),
    /// What the leader answers to this.
    Ask(Question),
}

/// The processes of one node.
#[derive(Clone, Debug, Default)]
pub struct Askers {
    lines: BTreeMap<Process, Line>,
    verdicts: Verdicts,
    /// Round, answer, and when it came.
    fresh: VecDeque<(u64, bool, u64)>,
}

impl Askers {
    /// Somebody asks, at a time in milliseconds.
    pub fn ask(
        &mut self,
        now_ms: u64,
        asker: Asker,
        is_alive: impl Fn(Process) -> bool,
        should_exit: bool,
    ) -> Asked {
        let Asker { process, parent } = asker;
        let mut after = None;
        let round = if let Some(line) = self.lines.get_mut(&process) {
            line.stays = true;
            line.round = line.round.saturating_add(1);
            line.round
        } else {
            let lives = |process: Process| process == Asker::UNSEEN.process || is_alive(process);
            let before = self.lines.iter().find(|(before, line)| {
                parent.is_some() && line.parent == parent && !line.stays && !lives(**before)
            });
            let before = before.map(|(before, line)| (*before, line.round));
            let round = match before {
                Some((before, round)) => {
                    self.lines.remove(&before);
                    round.saturating_add(1)
                }
                None => {
                    self.lines.retain(|process, line| {
                        lives(*process) || (!line.stays && line.parent.is_some_and(lives))
                    });
                    if self.lines.is_empty() {
                        after = Some(self.verdicts.generation);
                        self.fresh.clear();
                    }
                    1
                }
            };
            let line = Line {
                parent,
                round,
                stays: false,
            };
            self.lines.insert(process, line);
            round
        };
        self.fresh
            .retain(|(_, _, came)| now_ms.saturating_sub(*came) < FRESH_MS);
        let known = self.fresh.iter().find(|(of, _, _)| *of == round);
        match known {
            Some((_, is_due, _)) => Asked::Known(*is_due),
            None => Asked::Ask(Question {
                round,
                after,
                should_exit,
            }),
        }
    }

    /// The leader has answered the question for a round.
    pub fn told(&mut self, now_ms: u64, round: u64, verdict: Verdict) {
        let Verdict { generation, is_due } = verdict;
        if generation == 0 || generation < self.verdicts.generation {
            return;
        }
        if generation > self.verdicts.generation {
            self.verdicts = Verdicts::of(generation);
            self.fresh.clear();
        }
        self.verdicts.remember(round, is_due);
        self.fresh.push_back((round, is_due, now_ms));
    }

    /// What the next leader must know.
    #[must_use]
    pub fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// Programs start anew, everywhere.
    pub fn begin_anew(&mut self) {
        *self = Self::default();
    }
}
