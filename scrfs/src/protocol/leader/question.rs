//! Whether a program that asks is to checkpoint: answered by [`Rounds`], once recovery has ended.

use super::{Asker, Leader};
use crate::config::Config;
use crate::interval::{Learnt, Question, Rounds, Rules, Situation, Times, Verdict, Verdicts};
use crate::layout::record::{Phase, UnixMillis};
use crate::protocol::Now;
use crate::protocol::message::Message;
use crate::protocol::step::Step;

/// What the leader knows of questions.
#[derive(Debug)]
pub(super) struct Questions {
    rules: Rules,
    rounds: Rounds,
    /// When recovery ended.
    recovered: UnixMillis,
    learnt: Learnt,
    /// Asked before that.
    early: Vec<(Asker, Question)>,
}

impl Questions {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            rules: Rules::of(config),
            rounds: Rounds::default(),
            recovered: 0,
            learnt: Learnt::default(),
            early: Vec::new(),
        }
    }
}

impl Leader {
    /// What the programs of a node were told before this epoch: where they go on, so does that.
    pub(super) fn recall(&mut self, verdicts: &Verdicts) {
        if !self.new_run && !self.ready {
            self.questions.rounds.recall(verdicts);
        }
    }

    /// What failed before; daemons tell how often is best by the same.
    pub(super) fn learnt(&mut self, learnt: Learnt, step: &mut Step) {
        self.questions.learnt = learnt;
        step.cast(Message::Learnt(learnt));
    }

    pub(super) fn questioned(
        &mut self,
        now: Now,
        asker: Asker,
        question: Question,
        step: &mut Step,
    ) {
        match (self.ready, self.new_run) {
            (true, _) => self.pronounce(now, asker, question, step),
            (false, false) => self.questions.early.push((asker, question)),
            // Of a program of the run before.
            (false, true) => Self::tell(asker, Verdict::NONE, step),
        }
    }

    /// Recovery has ended.
    pub(super) fn answer_questions(&mut self, now: Now, step: &mut Step) {
        self.questions.recovered = now.wall;
        for (asker, question) in std::mem::take(&mut self.questions.early) {
            self.pronounce(now, asker, question, step);
        }
    }

    fn pronounce(&mut self, now: Now, asker: Asker, question: Question, step: &mut Step) {
        let records = self.datasets.values().map(|led| &led.record);
        let of_programs = records.filter(|record| {
            // What an earlier run left behind was never finished, and costs nobody anything now.
            record.class.is_checkpoint() && record.phase != Phase::Incomplete
        });
        let checkpoints: Vec<Times> = of_programs.map(Times::of).collect();
        let Questions {
            rules,
            rounds,
            recovered,
            learnt,
            ..
        } = &mut self.questions;
        let situation = Situation {
            rules,
            checkpoints: &checkpoints,
            nodes: self.size.max(1),
            recovered: *recovered,
            learnt: *learnt,
        };
        let verdict = rounds.answer(question, &situation, now.wall);
        Self::tell(asker, verdict, step);
    }

    fn tell((rank, request): Asker, verdict: Verdict, step: &mut Step) {
        step.send(rank, Message::Verdict { request, verdict });
    }
}
