//! Questions in rounds: whoever asks for the n-th time is told the same, in whatever order questions and answers
//! travel, leaders change, and programs are started again.

use super::due::{rules, situation};
use super::*;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

fn process(pid: u32) -> Process {
    Process { pid, start: 10 }
}

fn rank(pid: u32) -> Asker {
    let parent = Some(process(1));
    Asker {
        process: process(pid),
        parent,
    }
}

fn question(asked: Asked) -> Question {
    match asked {
        Asked::Ask(question) => question,
        Asked::Known(_) => panic!("known"),
    }
}

/// Asks the leader whatever is not known, at one moment after the other.
struct One<'a> {
    askers: Askers,
    rounds: Rounds,
    rules: &'a Rules,
    now: u64,
}

impl One<'_> {
    fn ask(&mut self, asker: Asker, living: &[Process]) -> bool {
        self.now += FRESH_MS;
        let is_alive = |process: Process| living.contains(&process);
        match self.askers.ask(self.now, asker, is_alive, false) {
            Asked::Known(is_due) => is_due,
            Asked::Ask(question) => {
                let situation = situation(self.rules, &[]);
                let verdict = self.rounds.answer(question, &situation, self.now);
                self.askers.told(self.now, question.round, verdict);
                verdict.is_due
            }
        }
    }
}

fn one(rules: &Rules) -> One<'_> {
    One {
        askers: Askers::default(),
        rounds: Rounds::default(),
        rules,
        now: 0,
    }
}

#[test]
fn ranks_of_a_node_are_told_the_same_however_they_take_turns() {
    let rules = rules("interval = 2");
    let mut one = one(&rules);
    let living = [process(2), process(3)];
    let (a, b) = (rank(2), rank(3));
    assert_eq!(
        [a, a, a].map(|it| one.ask(it, &living)),
        [false, true, true]
    );
    assert_eq!([b, b].map(|it| one.ask(it, &living)), [false, true]);
    assert!(one.ask(b, &living));
    assert_eq!([b, a].map(|it| one.ask(it, &living)), [true, true]);
}

#[test]
fn a_script_that_reads_with_cat_asks_on_and_a_rank_beside_it_is_not_disturbed() {
    let rules = rules("interval = 2");
    let mut one = one(&rules);
    let script = process(100);
    let cat = |pid| Asker {
        process: process(pid),
        parent: Some(script),
    };
    let living = |more| [script, process(2), process(more)];
    assert!(!one.ask(rank(2), &living(2)));
    assert!(!one.ask(cat(7), &living(7)), "its first");
    assert!(one.ask(cat(8), &living(8)));
    assert!(one.ask(rank(2), &living(2)), "its second");
    // One that asks more than once is not followed by the next child: that is another rank.
    let mut one = self::one(&rules);
    let both = [script, process(7)];
    assert_eq!([0; 2].map(|_| one.ask(cat(7), &both)), [false, true]);
    one.ask(cat(8), &[script, process(8)]);
    assert_eq!(one.askers.verdicts().generation, 2, "a new program");
}

#[test]
fn what_a_program_was_told_does_not_concern_the_next() {
    let rules = rules("seconds = 60");
    let mut nodes = [Askers::default(), Askers::default()];
    let mut rounds = Rounds::default();
    let answer =
        |rounds: &mut Rounds, question, now| rounds.answer(question, &situation(&rules, &[]), now);
    let mut ask = |rounds: &mut Rounds, node: usize, pid: u32, now| {
        let is_alive = |process: Process| process.pid == pid;
        let asker = Asker {
            parent: Some(process(100 + pid)),
            ..rank(pid)
        };
        let asked = nodes[node].ask(now, asker, is_alive, false);
        let question = question(asked);
        let verdict = answer(rounds, question, now);
        nodes[node].told(now, question.round, verdict);
        (question.round, verdict.is_due)
    };
    // Recovery ended at 500 s: due at 560 s.
    let (early, late) = (510_000, 570_000);
    assert_eq!(ask(&mut rounds, 0, 5, early), (1, false));
    assert_eq!(ask(&mut rounds, 1, 5, late), (1, false), "the same round");
    assert_eq!(ask(&mut rounds, 1, 5, late), (2, true));
    // The next program: either node may be the first to ask.
    assert_eq!(ask(&mut rounds, 0, 6, late), (1, true));
    assert_eq!(ask(&mut rounds, 1, 6, late), (1, true));
    assert_eq!(ask(&mut rounds, 1, 6, early), (2, false), "not as before");
    assert_eq!(ask(&mut rounds, 0, 6, late), (2, false));
}

#[test]
fn who_cannot_be_seen_is_counted_and_memory_is_bounded() {
    let rules = rules("interval = 1000000");
    let mut one = one(&rules);
    for _ in 0..3 * ROUNDS_MAX {
        assert!(!one.ask(Asker::UNSEEN, &[]));
    }
    let rounds = 3 * ROUNDS_MAX as u64;
    let verdicts = one.askers.verdicts();
    let known = (1..=rounds).filter(|round| verdicts.get(*round).is_some());
    assert_eq!(known.count(), ROUNDS_MAX);
    assert!(verdicts.get(rounds).is_some());
    assert_eq!(verdicts.generation, 1, "they go on");
    // Who is that far behind is answered by the rule, and so are those behind it.
    let question = Question {
        round: 1,
        after: None,
        should_exit: true,
    };
    let situation = situation(&rules, &[]);
    assert!(one.rounds.answer(question, &situation, 0).is_due);
    let other = Question {
        should_exit: false,
        ..question
    };
    assert!(one.rounds.answer(other, &situation, 0).is_due);
}

#[test]
fn a_hostile_number_harms_nobody() {
    let rules = rules("interval = 1");
    let mut rounds = Rounds::default();
    for after in [Some(u64::MAX), None, Some(0), Some(u64::MAX)] {
        let question = Question {
            round: u64::MAX,
            after,
            should_exit: false,
        };
        let verdict = rounds.answer(question, &situation(&rules, &[]), 0);
        assert_eq!(verdict.generation, u64::MAX);
        Askers::default().told(0, u64::MAX, verdict);
    }
}

/// What is on its way, each way in order.
#[derive(Default)]
struct Node {
    askers: Askers,
    /// Questions that are not answered yet.
    asking: VecDeque<Question>,
    heard: VecDeque<(u64, Verdict)>,
    /// Ranks that wait, and for which round.
    waiting: BTreeMap<u32, u64>,
}

proptest! {
    /// Ranks on several nodes ask at moments of their own, never more than some rounds apart; the rule changes its mind at
    /// every question; leaders are replaced, and know what nodes remember.
    #[test]
    fn all_who_ask_in_a_round_are_told_the_same(
        nodes in 1usize..4,
        ranks in 1u32..4,
        turns in proptest::collection::vec((0u8..12, any::<u16>(), any::<bool>()), 1..400),
    ) {
        let living: BTreeSet<Process> = (0..ranks).map(|pid| process(pid + 2)).collect();
        let rules = rules("interval = 1000000");
        let mut all: Vec<Node> = (0..nodes).map(|_| Node::default()).collect();
        let mut rounds = Rounds::default();
        let mut said: BTreeMap<u64, bool> = BTreeMap::new();
        let mut counts = vec![vec![0u64; ranks as usize]; nodes];
        let now = Cell::new(0u64);
        let mut check = |round: u64, is_due: bool| {
            let first = *said.entry(round).or_insert(is_due);
            prop_assert_eq!(first, is_due, "round {}", round);
            Ok(())
        };
        for (kind, which, flag) in turns {
            now.set(now.get() + u64::from(which) % 700);
            let at = usize::from(which) % nodes;
            match kind {
                // A rank asks.
                0..=4 => {
                    let of = u32::from(which >> 8) % ranks;
                    let node = &mut all[at];
                    let slowest = *counts.iter().flatten().min().expect("ranks");
                    let count = &mut counts[at][of as usize];
                    if node.waiting.contains_key(&of) || *count > slowest + 5 {
                        continue;
                    }
                    *count += 1;
                    let is_alive = |process: Process| living.contains(&process);
                    match node.askers.ask(now.get(), rank(of + 2), is_alive, flag) {
                        Asked::Known(is_due) => check(*count, is_due)?,
                        Asked::Ask(question) => {
                            prop_assert_eq!(question.round, *count);
                            node.waiting.insert(of, question.round);
                            node.asking.push_back(question);
                        }
                    }
                }
                // The leader answers a node; the rule says what it likes.
                5..=7 => {
                    if let Some(question) = all[at].asking.pop_front() {
                        let question = Question { should_exit: flag, ..question };
                        let verdict = rounds.answer(question, &situation(&rules, &[]), now.get());
                        all[at].heard.push_back((question.round, verdict));
                    }
                }
                // The answer comes.
                8..=10 => {
                    let node = &mut all[at];
                    if let Some((round, verdict)) = node.heard.pop_front() {
                        node.askers.told(now.get(), round, verdict);
                        let here: Vec<u32> = node.waiting.iter()
                            .filter(|(_, of)| **of == round).map(|(rank, _)| *rank).collect();
                        for rank in here {
                            node.waiting.remove(&rank);
                            check(round, verdict.is_due)?;
                        }
                    }
                }
                // Another leader: what was under way is lost, and asked again.
                _ => {
                    rounds = Rounds::default();
                    for node in &mut all {
                        rounds.recall(node.askers.verdicts());
                        node.heard.clear();
                        node.asking = node.waiting.values().map(|&round| Question {
                            round,
                            after: (node.askers.verdicts().generation == 0).then_some(0),
                            should_exit: flag,
                        }).collect();
                    }
                }
            }
        }
    }
}
