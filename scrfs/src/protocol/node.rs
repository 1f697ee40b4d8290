//! One coordinator: a member, a relay for others, and on rank 0 the leader too. Dispatches, and decides
//! nothing.

use super::Now;
use super::leader::Leader;
use super::member::{LEADER, Member};
use super::message::{Inventory, Message, Order, PrefixView, Word};
use super::relay::{Relay, believed};
use super::step::{EVERYONE, Outcome, Step};
use super::tree::Tree;
use crate::config::Config;
use crate::control::FromDaemon;
use crate::id::{DatasetId, Epoch, Rank, Slot};
use crate::layout::record::{DatasetRecord, Phase};
use bytes::Bytes;
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
    /// With how many others each of them speaks, besides one: [`super::tree::FAN`].
    pub fan: u32,
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
    relay: Relay,
}

impl Node {
    /// A coordinator on a node with this inventory. Its first step greets the leader.
    pub fn start(start: Start, inventory: Inventory) -> (Self, Step) {
        let tree = Tree::new(start.size, start.fan);
        let member = Member::new(
            start.epoch,
            Slot(start.me.0),
            start.me == LEADER,
            &inventory,
        );
        let leader = (start.me == LEADER).then(|| {
            Leader::new(
                start.epoch,
                tree,
                start.size,
                start.new_run,
                start.config,
                start.prefix,
            )
        });
        let mut node = Self {
            me: start.me,
            member,
            leader,
            relay: Relay::new(tree, start.me),
        };
        let mut step = Step::default();
        step.send(LEADER, Message::Hello(Box::new(inventory)));
        node.route(&mut step);
        (node, step)
    }

    /// Sends what a step says on its way: what the leader says down the tree, what a member says up.
    fn route(&mut self, step: &mut Step) {
        let tree = self.relay.tree();
        for (to, message) in step.take_sends() {
            if self.leader.is_none() {
                // A member speaks with the leader alone.
                self.relay.own(message);
            } else if to == EVERYONE {
                let mut children = tree.children(self.me).peekable();
                if children.peek().is_some() {
                    let bytes = message.pack();
                    for child in children {
                        let bytes = bytes.clone();
                        step.send(child, Message::Down { to: None, bytes });
                    }
                }
                step.send(self.me, message);
            } else if let Some(next) = tree.towards(self.me, to) {
                let (to, bytes) = (Some(to), message.pack());
                step.send(next, Message::Down { to, bytes });
            } else {
                step.send(to, message);
            }
        }
        self.speak(false, step);
    }

    /// Tells the parent what is due, or all there is.
    fn speak(&mut self, all: bool, step: &mut Step) {
        let parent = self.relay.tree().parent(self.me);
        if let (Some(parent), Some(words)) = (parent, self.relay.flush(all)) {
            step.send(parent, Message::Up(words));
        }
    }

    /// Takes a peer's message, possibly one's own.
    pub fn handle_message(&mut self, now: Now, from: Rank, message: Message) -> Step {
        let mut step = Step::default();
        let parent = self.relay.tree().parent(self.me);
        match message {
            Message::Down { to, bytes } if Some(from) == parent => self.down(to, bytes, &mut step),
            Message::Up(words) if self.relay.tree().parent(from) == Some(self.me) => {
                self.up(now, from, words, &mut step);
            }
            // The leader's own member, and what the leader says to it.
            message if from == self.me => match &mut self.leader {
                Some(leader) if is_to_leader(&message) => {
                    leader.handle_message(now, from, message, &mut step);
                }
                Some(_) => self.member.handle_message(message, &mut step),
                None => {}
            },
            // Orders come down the tree only, and only the leader is asked.
            _ => tracing::warn!(me = %self.me, %from, "message not meant for this rank"),
        }
        self.route(&mut step);
        step
    }

    /// Something comes from the leader: it is handed on, and taken if it is for this member, too.
    fn down(&mut self, to: Option<Rank>, bytes: Bytes, step: &mut Step) {
        let tree = self.relay.tree();
        match to {
            None => {
                for child in tree.children(self.me) {
                    let bytes = bytes.clone();
                    step.hand_on(child, Message::Down { to: None, bytes });
                }
            }
            Some(rank) if rank != self.me => {
                match tree.towards(self.me, rank) {
                    Some(next) => step.hand_on(next, Message::Down { to, bytes }),
                    None => tracing::warn!(me = %self.me, %rank, "no way leads there"),
                }
                return;
            }
            Some(_) => {}
        }
        let Some(message) = Message::unpack(&bytes) else {
            tracing::error!(me = %self.me, "what the leader says does not decode");
            return;
        };
        match &message {
            Message::Release {
                dataset,
                again: false,
                ..
            }
            | Message::Order {
                order: Order::Forget(dataset),
                ..
            } => self.relay.settled(*dataset),
            Message::Order {
                order: Order::Update(record) | Order::Amend(record),
                ..
            } if record.phase != Phase::Open => self.relay.settled(record.id),
            Message::Order { order, .. } => {
                if let Some(dataset) = order.works_on() {
                    self.relay.work_begins(dataset);
                }
            }
            _ => {}
        }
        if !is_to_leader(&message) {
            self.member.handle_message(message, step);
        }
    }

    /// A child says something to the leader.
    fn up(&mut self, now: Now, child: Rank, words: Vec<Word>, step: &mut Step) {
        let tree = self.relay.tree();
        let Some(leader) = &mut self.leader else {
            return self.relay.child(child, words);
        };
        for Word { from, message } in believed(tree, child, words) {
            leader.handle_message(now, from, message, step);
        }
        leader.handle_pressures(now, step);
    }

    /// Takes a word of this node's daemon.
    pub fn handle_daemon(&mut self, word: FromDaemon) -> Step {
        let mut step = Step::default();
        self.member.handle_daemon(word, &mut step);
        self.route(&mut step);
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
                | Outcome::Learnt(_)
                | Outcome::PrefixSeen { .. }
                | Outcome::PrefixHolds { .. },
            ) => {
                leader.handle_outcome(now, outcome, &mut step);
            }
            _ => self.member.handle_outcome(outcome, &mut step),
        }
        self.route(&mut step);
        step
    }

    /// Looks at the clock.
    pub fn handle_tick(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        if let Some(leader) = &mut self.leader {
            leader.handle_tick(now, &mut step);
        }
        self.route(&mut step);
        self.speak(true, &mut step);
        step
    }

    /// The job ends here: what is left for the prefix goes there now.
    pub fn end(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        if let Some(leader) = &mut self.leader {
            leader.end(now, &mut step);
        }
        self.route(&mut step);
        step
    }

    /// When `handle_tick` has something to do next.
    pub fn deadline(&self) -> Option<u64> {
        let waits = self.relay.holds().then_some(0);
        let leader = self.leader.as_ref().and_then(Leader::deadline);
        leader.into_iter().chain(waits).min()
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

/// What a member says, and only the leader hears.
fn is_to_leader(message: &Message) -> bool {
    matches!(
        message,
        Message::Hello(_)
            | Message::Hellos(_)
            | Message::Begun
            | Message::Asked { .. }
            | Message::Question { .. }
            | Message::Verdicts(_)
            | Message::Done { .. }
            | Message::Vote { .. }
            | Message::Votes { .. }
            | Message::Withdraw { .. }
            | Message::Advanced { .. }
            | Message::Stuck { .. }
            | Message::Pressure(_)
    )
}
