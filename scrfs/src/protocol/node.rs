//! One coordinator: a member, and on rank 0 the leader too. Dispatches, and decides nothing.

use super::Now;
use super::leader::Leader;
use super::member::{LEADER, Member};
use super::message::{Inventory, Message, PrefixView};
use super::step::{Outcome, Step};
use crate::config::Config;
use crate::control::FromDaemon;
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::record::DatasetRecord;
use std::collections::BTreeMap;

/// How an epoch is to begin, for one coordinator.
#[derive(Debug)]
pub struct Start {
    /// The epoch.
    pub epoch: Epoch,
    /// This coordinator's rank.
    pub me: Rank,
    /// How many there are.
    pub size: u32,
    /// Programs start anew: what is open now was left behind by a run that ended.
    pub new_run: bool,
    /// The effective configuration.
    pub config: Config,
    /// What the prefix holds; only rank 0 needs it.
    pub prefix: Option<PrefixView>,
}

/// One coordinator.
#[derive(Debug)]
pub struct Node {
    me: Rank,
    member: Member,
    leader: Option<Leader>,
}

impl Node {
    /// A coordinator on a node with this inventory. Its first step greets the leader.
    pub fn start(start: Start, inventory: Inventory) -> (Self, Step) {
        let member = Member::new(
            start.epoch,
            Slot(start.me.0),
            start.me == LEADER,
            &inventory,
        );
        let leader = (start.me == LEADER).then(|| {
            Leader::new(
                start.epoch,
                start.size,
                start.new_run,
                start.config,
                start.prefix,
            )
        });
        let mut step = Step::default();
        step.send(LEADER, Message::Hello(Box::new(inventory)));
        (
            Self {
                me: start.me,
                member,
                leader,
            },
            step,
        )
    }

    /// Takes a peer's message, possibly one's own.
    pub fn handle_message(&mut self, now: Now, from: Rank, message: Message) -> Step {
        let mut step = Step::default();
        let to_leader = matches!(
            message,
            Message::Hello(_)
                | Message::Begun
                | Message::Asked { .. }
                | Message::Done { .. }
                | Message::Vote { .. }
                | Message::Withdraw { .. }
                | Message::Advanced { .. }
                | Message::Stuck { .. }
                | Message::Pressure(_)
        );
        match &mut self.leader {
            Some(leader) if to_leader => leader.handle_message(now, from, message, &mut step),
            _ if !to_leader && from == LEADER => self.member.handle_message(message, &mut step),
            // Orders come from the leader only, and only the leader is asked.
            _ => tracing::warn!(me = %self.me, %from, "message not meant for this rank"),
        }
        step
    }

    /// Takes a word of this node's daemon.
    pub fn handle_daemon(&mut self, word: FromDaemon) -> Step {
        let mut step = Step::default();
        self.member.handle_daemon(word, &mut step);
        step
    }

    /// Takes the outcome of an effect.
    pub fn handle_outcome(&mut self, now: Now, outcome: Outcome) -> Step {
        let mut step = Step::default();
        match (&mut self.leader, &outcome) {
            (
                Some(leader),
                Outcome::FlushCompleted { .. }
                | Outcome::PointersWritten { .. }
                | Outcome::PrefixSeen { .. },
            ) => {
                leader.handle_outcome(now, outcome, &mut step);
            }
            _ => self.member.handle_outcome(outcome, &mut step),
        }
        step
    }

    /// Looks at the clock.
    pub fn handle_tick(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        if let Some(leader) = &mut self.leader {
            leader.handle_tick(now, &mut step);
        }
        step
    }

    /// The job ends here: what is left for the prefix goes there now.
    pub fn end(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        if let Some(leader) = &mut self.leader {
            leader.end(now, &mut step);
        }
        step
    }

    /// When `handle_tick` has something to do next.
    pub fn deadline(&self) -> Option<u64> {
        self.leader.as_ref().and_then(Leader::deadline)
    }

    /// Whether this coordinator leads and nothing is left to do.
    pub fn is_idle(&self, now: Now) -> bool {
        self.leader
            .as_ref()
            .is_none_or(|leader| leader.is_idle(now))
    }

    /// All datasets, as this node knows them.
    pub fn catalog(&self) -> &BTreeMap<DatasetId, DatasetRecord> {
        self.member.catalog()
    }
}
