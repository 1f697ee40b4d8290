//! What a member hands on for others: from the leader down the [`Tree`], and up to it.
//!
//! Down, everything goes on as it came. Up, what all members say alike is told once for the whole subtree,
//! when all of it has said so: that an order is carried out, that the epoch has begun; votes and
//! inventories are gathered into one message. What only one has to say goes up at once, with all that
//! waits; progress and what is not urgent wait for the next message or tick.
//!
//! Invariants: what one member says reaches the leader in the order in which it was said, but that a vote
//! which is withdrawn on the way never does; a failure is told before the subtree is said to have ended;
//! what is kept here is bounded by the subtree and the orders under way. Nothing is decided.

use super::message::{Hellos, Inventory, Message, Word};
use super::tree::Tree;
use crate::control::{Activity, Pressure};
use crate::findings::Findings;
use crate::id::{DatasetId, Rank};
use crate::layout::record::PartSummary;
use std::collections::{BTreeMap, BTreeSet};

/// An order that not all of the subtree has carried out.
#[derive(Debug, Default)]
struct Gathering {
    came: BTreeSet<Rank>,
    findings: Option<Box<Findings>>,
}

/// The votes of the subtree on one proposal.
#[derive(Debug, Default)]
struct Ballot {
    proposal: u64,
    held: BTreeMap<Rank, PartSummary>,
    /// Whose votes were handed on and stand.
    sent: BTreeSet<Rank>,
}

/// What is on its way to the leader here.
#[derive(Debug)]
pub(super) struct Relay {
    tree: Tree,
    me: Rank,
    /// Ranks of the subtree.
    below: usize,
    /// This rank and its children: who speaks for the subtree.
    speakers: BTreeSet<Rank>,
    hellos: Vec<(Rank, Inventory)>,
    begun: BTreeSet<Rank>,
    orders: BTreeMap<u64, Gathering>,
    ballots: BTreeMap<DatasetId, Ballot>,
    advanced: BTreeMap<(DatasetId, Activity), BTreeMap<Rank, u64>>,
    /// Of which progress is to be told.
    due: BTreeSet<(DatasetId, Activity)>,
    words: Vec<Word>,
    urgent: bool,
}

impl Relay {
    pub(super) fn new(tree: Tree, me: Rank) -> Self {
        Self {
            tree,
            me,
            below: tree.count(me),
            speakers: tree.children(me).chain([me]).collect(),
            hellos: Vec::new(),
            begun: BTreeSet::new(),
            orders: BTreeMap::new(),
            ballots: BTreeMap::new(),
            advanced: BTreeMap::new(),
            due: BTreeSet::new(),
            words: Vec::new(),
            urgent: false,
        }
    }

    pub(super) fn tree(&self) -> Tree {
        self.tree
    }

    /// The member on this rank says something to the leader.
    pub(super) fn own(&mut self, message: Message) {
        self.take(self.me, self.me, message);
    }

    /// A child hands on what its subtree says.
    pub(super) fn child(&mut self, child: Rank, words: Vec<Word>) {
        for Word { from, message } in believed(self.tree, child, words) {
            self.take(child, from, message);
        }
    }

    /// Whether something waits for the next tick.
    pub(super) fn holds(&self) -> bool {
        !self.words.is_empty() || !self.due.is_empty()
    }

    /// What goes up now; all there is when `all`, else only if somebody waits for some of it.
    pub(super) fn flush(&mut self, all: bool) -> Option<Vec<Word>> {
        if !self.holds() || !(all || self.urgent) {
            return None;
        }
        self.urgent = false;
        for (dataset, activity) in std::mem::take(&mut self.due) {
            let of = self.advanced.get(&(dataset, activity));
            let bytes = of.map_or(0, |of| {
                of.values().fold(0, |sum: u64, it| sum.saturating_add(*it))
            });
            self.put(
                self.me,
                Message::Advanced {
                    dataset,
                    activity,
                    bytes,
                },
            );
        }
        Some(std::mem::take(&mut self.words))
    }

    fn put(&mut self, from: Rank, message: Message) {
        self.words.push(Word { from, message });
    }

    fn put_at_once(&mut self, from: Rank, message: Message) {
        self.put(from, message);
        self.urgent = true;
    }

    /// `hop` is who handed it here, `from` who said it.
    fn take(&mut self, hop: Rank, from: Rank, message: Message) {
        match message {
            Message::Hello(inventory) => {
                self.hellos.push((from, *inventory));
                self.greet_if_all();
            }
            Message::Hellos(bundle) => {
                self.hellos.extend(bundle.open());
                self.greet_if_all();
            }
            Message::Begun => {
                self.begun.insert(hop);
                if self.begun == self.speakers {
                    self.put_at_once(self.me, Message::Begun);
                }
            }
            Message::Done {
                ticket,
                result: Ok(()),
                findings,
            } => self.gather(ticket, hop, findings),
            failed @ Message::Done { .. } => {
                let Message::Done { ticket, .. } = failed else {
                    return;
                };
                self.put_at_once(from, failed);
                if from == self.me {
                    self.gather(ticket, from, None);
                }
            }
            Message::Vote {
                dataset,
                proposal,
                part: Ok(part),
            } => self.vote(dataset, proposal, [(from, part)]),
            Message::Votes {
                dataset,
                proposal,
                votes,
            } => self.vote(dataset, proposal, votes),
            Message::Withdraw { dataset, proposal } => self.withdraw(from, dataset, proposal),
            Message::Advanced {
                dataset,
                activity,
                bytes,
            } => {
                let key = (dataset, activity);
                self.advanced.entry(key).or_default().insert(hop, bytes);
                self.due.insert(key);
            }
            Message::Pressure(pressure) if !wants(&pressure) => {
                self.put(from, Message::Pressure(pressure));
            }
            other => self.put_at_once(from, other),
        }
    }

    fn greet_if_all(&mut self) {
        if self.hellos.len() == self.below {
            let hellos = Hellos::of(std::mem::take(&mut self.hellos));
            self.put_at_once(self.me, Message::Hellos(Box::new(hellos)));
        }
    }

    fn gather(&mut self, ticket: u64, from: Rank, findings: Option<Box<Findings>>) {
        let order = self.orders.entry(ticket).or_default();
        order.came.insert(from);
        if let Some(found) = findings {
            order.findings.get_or_insert_default().add(*found);
        }
        if order.came == self.speakers {
            let findings = self.orders.remove(&ticket).and_then(|it| it.findings);
            let done = Message::Done {
                ticket,
                result: Ok(()),
                findings,
            };
            self.put_at_once(self.me, done);
        }
    }

    fn vote(
        &mut self,
        dataset: DatasetId,
        proposal: u64,
        votes: impl IntoIterator<Item = (Rank, PartSummary)>,
    ) {
        let ballot = self.ballots.entry(dataset).or_default();
        if ballot.proposal > proposal {
            return;
        }
        if ballot.proposal < proposal {
            *ballot = Ballot {
                proposal,
                ..Ballot::default()
            };
        }
        for (rank, part) in votes {
            ballot.sent.remove(&rank);
            ballot.held.insert(rank, part);
        }
        if ballot.held.len() + ballot.sent.len() < self.below {
            return;
        }
        let votes: Vec<(Rank, PartSummary)> =
            std::mem::take(&mut ballot.held).into_iter().collect();
        ballot.sent.extend(votes.iter().map(|(rank, _)| *rank));
        let votes = Message::Votes {
            dataset,
            proposal,
            votes,
        };
        self.put_at_once(self.me, votes);
    }

    fn withdraw(&mut self, from: Rank, dataset: DatasetId, proposal: u64) {
        let Some(ballot) = self.ballots.get_mut(&dataset) else {
            return;
        };
        if ballot.proposal != proposal || ballot.held.remove(&from).is_some() {
            return;
        }
        if ballot.sent.remove(&from) {
            self.put_at_once(from, Message::Withdraw { dataset, proposal });
        }
    }

    /// The leader has decided on a dataset: nobody votes on it any more.
    pub(super) fn settled(&mut self, dataset: DatasetId) {
        self.ballots.remove(&dataset);
    }

    /// Work on a dataset begins: what was told of it before is over.
    pub(super) fn work_begins(&mut self, dataset: DatasetId) {
        self.advanced.retain(|(of, _), _| *of != dataset);
        self.due.retain(|(of, _)| *of != dataset);
    }
}

/// Of the words that a child hands on, those of its own subtree: nobody speaks for others.
pub(super) fn believed(tree: Tree, child: Rank, words: Vec<Word>) -> impl Iterator<Item = Word> {
    words.into_iter().filter(move |word| {
        let mut ranks = word.speakers().into_iter().chain([word.from]);
        let stranger = ranks.find(|rank| !tree.has(child, *rank));
        if let Some(stranger) = stranger {
            tracing::error!(%child, from = %word.from, %stranger, "speaks for somebody else");
        }
        stranger.is_none()
    })
}

/// Whether a node is short of something.
fn wants(pressure: &Pressure) -> bool {
    pressure.stores.iter().any(|store| store.wanted_bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Refusal;
    use crate::protocol::message::Failure;

    const ID: DatasetId = DatasetId(1);

    /// Rank 1 of a chain of four: it speaks for 1, 2 and 3, of which it hears by 2.
    fn relay() -> Relay {
        Relay::new(Tree::new(4, 1), Rank(1))
    }

    fn word(from: u32, message: Message) -> Word {
        let from = Rank(from);
        Word { from, message }
    }

    fn done(ticket: u64) -> Message {
        Message::Done {
            ticket,
            result: Ok(()),
            findings: None,
        }
    }

    fn failed(ticket: u64) -> Message {
        Message::Done {
            ticket,
            result: Err(Failure::new(Refusal::Failed, "no")),
            findings: None,
        }
    }

    fn part(files: u64) -> PartSummary {
        PartSummary {
            log_bytes: 1,
            files,
            manifest_crc: 7,
        }
    }

    fn vote(files: u64) -> Message {
        Message::Vote {
            dataset: ID,
            proposal: 5,
            part: Ok(part(files)),
        }
    }

    fn votes(of: &[(u32, u64)]) -> Message {
        Message::Votes {
            dataset: ID,
            proposal: 5,
            votes: of
                .iter()
                .map(|(rank, files)| (Rank(*rank), part(*files)))
                .collect(),
        }
    }

    fn withdraw() -> Message {
        Message::Withdraw {
            dataset: ID,
            proposal: 5,
        }
    }

    #[test]
    fn what_all_say_is_told_once_and_not_before_all_have_said_it() {
        for message in [Message::Begun, done(3)] {
            let mut relay = relay();
            relay.own(message.clone());
            assert_eq!(relay.flush(true), None);
            relay.child(Rank(2), vec![word(2, message.clone())]);
            assert_eq!(relay.flush(false), Some(vec![word(1, message.clone())]));
            let mut relay = self::relay();
            relay.child(Rank(2), vec![word(2, message.clone())]);
            assert_eq!(relay.flush(true), None);
            relay.own(message.clone());
            assert_eq!(relay.flush(false), Some(vec![word(1, message)]));
        }
    }

    #[test]
    fn a_failure_goes_at_once_and_before_the_subtree_has_ended() {
        let mut relay = relay();
        relay.own(failed(3));
        assert_eq!(relay.flush(false), Some(vec![word(1, failed(3))]));
        relay.child(Rank(2), vec![word(3, failed(3))]);
        assert_eq!(relay.flush(false), Some(vec![word(3, failed(3))]));
        relay.child(Rank(2), vec![word(2, done(3))]);
        assert_eq!(relay.flush(false), Some(vec![word(1, done(3))]));
    }

    #[test]
    fn votes_go_together_and_a_withdrawn_one_only_if_it_stands_again() {
        let mut relay = relay();
        relay.own(vote(1));
        relay.own(withdraw());
        relay.child(Rank(2), vec![word(2, votes(&[(2, 2), (3, 3)]))]);
        // Nothing was handed on that could be withdrawn, and one vote is missing.
        assert_eq!(relay.flush(true), None);
        relay.own(vote(4));
        let all = votes(&[(1, 4), (2, 2), (3, 3)]);
        assert_eq!(relay.flush(false), Some(vec![word(1, all)]));
        relay.child(Rank(2), vec![word(3, withdraw())]);
        assert_eq!(relay.flush(false), Some(vec![word(3, withdraw())]));
        relay.child(Rank(2), vec![word(2, votes(&[(3, 9)]))]);
        assert_eq!(relay.flush(false), Some(vec![word(1, votes(&[(3, 9)]))]));
        // Of a proposal that is over.
        relay.settled(ID);
        relay.child(Rank(2), vec![word(3, withdraw())]);
        assert_eq!(relay.flush(true), None);
    }

    #[test]
    fn nobody_speaks_for_others_and_progress_is_added_up() {
        let mut relay = relay();
        let advanced = |bytes| Message::Advanced {
            dataset: ID,
            activity: Activity::Encode,
            bytes,
        };
        relay.child(Rank(2), vec![word(0, vote(1)), word(1, failed(2))]);
        // Nor in words that bring several together.
        relay.own(vote(1));
        relay.child(Rank(2), vec![word(2, votes(&[(2, 2), (0, 3)]))]);
        let hellos = [2, 0].map(|rank| (Rank(rank), Inventory::default()));
        let bundle = Message::Hellos(Box::new(Hellos::of(hellos.into())));
        relay.own(Message::Hello(Box::default()));
        relay.child(Rank(2), vec![word(2, bundle)]);
        assert_eq!(relay.flush(true), None);
        relay.own(advanced(5));
        relay.child(Rank(2), vec![word(2, advanced(7))]);
        relay.child(Rank(2), vec![word(2, advanced(9))]);
        assert!(relay.holds() && relay.flush(false).is_none());
        assert_eq!(relay.flush(true), Some(vec![word(1, advanced(14))]));
    }
}
