//! Which nodes live: a state machine over heartbeats, with the time as an argument.
//!
//! ```text
//! expected --first beat--> alive --silent for dead_after--> down      (for the rest of the job)
//!     `--it could not be started------------------------------^
//! ```
//!
//! Invariants: a node that is down stays down, whatever it says later; only a node that was heard once
//! can die of silence. A beat overtaken by a later one changes nothing.

use scrfs::control::Beat;
use scrfs::id::Epoch;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// All nodes that were ever asked to take part.
#[derive(Debug)]
pub struct Membership {
    dead_after: Duration,
    nodes: BTreeMap<String, State>,
}

#[derive(Debug)]
enum State {
    Expected,
    Alive(Box<Life>),
    Down { why: String, was_heard: bool },
}

/// What is known of a node that lives.
#[derive(Clone, Debug)]
pub struct Life {
    /// When its last beat came.
    pub heard: Instant,
    /// That beat.
    pub beat: Beat,
    /// Where from, to send orders to.
    pub from: SocketAddr,
}

/// What a beat meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// From a node that takes part.
    Member,
    /// From a node that was given up: it must hold no epoch any more.
    Outcast,
    /// From a node nobody asked.
    Stranger,
}

/// A node that fell silent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Death {
    /// Which.
    pub node: String,
    /// For how long it had been silent when that was found.
    pub silence: Duration,
}

impl Membership {
    /// With nobody in it.
    pub fn new(dead_after: Duration) -> Self {
        Self {
            dead_after,
            nodes: BTreeMap::new(),
        }
    }

    /// A node is being started. One that is known already stays as it is.
    pub fn expect(&mut self, node: &str) {
        self.nodes.entry(node.to_owned()).or_insert(State::Expected);
    }

    /// A beat came.
    pub fn hear(&mut self, beat: Beat, from: SocketAddr, now: Instant) -> Heard {
        match self.nodes.get_mut(&beat.node) {
            None => Heard::Stranger,
            Some(State::Down { .. }) => Heard::Outcast,
            Some(State::Alive(life)) => {
                // A daemon that was started anew counts from one again, but its clock went on.
                let newer = beat.sequence > life.beat.sequence || beat.clock > life.beat.clock;
                if newer {
                    **life = Life {
                        heard: now,
                        beat,
                        from,
                    };
                }
                Heard::Member
            }
            Some(state @ State::Expected) => {
                *state = State::Alive(Box::new(Life {
                    heard: now,
                    beat,
                    from,
                }));
                Heard::Member
            }
        }
    }

    /// Gives up nodes that were silent for too long.
    pub fn expire(&mut self, now: Instant) -> Vec<Death> {
        let mut deaths = Vec::new();
        for (node, state) in &mut self.nodes {
            let State::Alive(life) = state else { continue };
            let silence = now.saturating_duration_since(life.heard);
            if silence >= self.dead_after {
                let why = format!("no heartbeat for {:.1} s", silence.as_secs_f64());
                *state = State::Down {
                    why,
                    was_heard: true,
                };
                deaths.push(Death {
                    node: node.clone(),
                    silence,
                });
            }
        }
        deaths
    }

    /// Gives a node up for another reason.
    pub fn give_up(&mut self, node: &str, why: String) {
        let was_heard = match self.nodes.get(node) {
            Some(State::Alive(_)) => true,
            Some(State::Down { was_heard, .. }) => *was_heard,
            Some(State::Expected) | None => false,
        };
        let state = State::Down { why, was_heard };
        self.nodes.insert(node.to_owned(), state);
    }

    /// Gives a node up that another supervisor has given up.
    pub fn restore(&mut self, node: &str, why: String, was_heard: bool) {
        let state = State::Down { why, was_heard };
        self.nodes.insert(node.to_owned(), state);
    }

    /// Those that were given up after they had lived: something of ours may be left there.
    pub fn lost(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|(node, state)| match state {
            State::Down {
                was_heard: true, ..
            } => Some(node.as_str()),
            _ => None,
        })
    }

    /// What is known of a node, if it lives.
    pub fn life(&self, node: &str) -> Option<&Life> {
        match self.nodes.get(node) {
            Some(State::Alive(life)) => Some(life),
            _ => None,
        }
    }

    /// All that live.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        self.nodes.values().filter_map(|state| match state {
            State::Alive(life) => Some(&**life),
            _ => None,
        })
    }

    /// Given up.
    pub fn is_down(&self, node: &str) -> bool {
        matches!(self.nodes.get(node), Some(State::Down { .. }))
    }

    /// All that were given up, and why.
    pub fn down(&self) -> impl Iterator<Item = (&str, &str)> {
        self.nodes.iter().filter_map(|(node, state)| match state {
            State::Down { why, .. } => Some((node.as_str(), why.as_str())),
            _ => None,
        })
    }

    /// The newest epoch that began on any node that lives.
    pub fn epoch_last(&self) -> Epoch {
        self.lives()
            .map(|life| life.beat.epoch_last)
            .max()
            .unwrap_or_default()
    }

    /// Whether every one of `nodes` that still lives was heard after `since`: then nobody can have died before
    /// it without being found.
    pub fn heard_since<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a str>,
        since: Instant,
    ) -> bool {
        nodes
            .into_iter()
            .filter_map(|node| self.life(node))
            .all(|life| life.heard > since)
    }

    /// Whether all of `nodes` hold `epoch`, recovered.
    pub fn is_ready<'a>(&self, nodes: impl IntoIterator<Item = &'a str>, epoch: Epoch) -> bool {
        nodes.into_iter().all(|node| {
            self.life(node)
                .is_some_and(|life| life.beat.epoch == Some(epoch) && life.beat.ready)
        })
    }

    /// Whether any of `nodes` holds an epoch before this one.
    pub fn holds_before<'a>(&self, nodes: impl IntoIterator<Item = &'a str>, epoch: Epoch) -> bool {
        let mut lives = nodes.into_iter().filter_map(|node| self.life(node));
        lives.any(|life| life.beat.epoch.is_some_and(|held| held < epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_AFTER: Duration = Duration::from_millis(1000);

    fn beat(node: &str, sequence: u64) -> Beat {
        Beat {
            token: 1,
            node: node.into(),
            sequence,
            epoch: None,
            epoch_last: Epoch(0),
            ready: false,
            restart: None,
            restart_at: None,
            newest_sealed: None,
            pending: 0,
            lost: None,
            checkpoint: 0,
            activity: 0,
            flushing: false,
            end_ms: None,
            clock: 1_000_000 + sequence * 100,
        }
    }

    fn from() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7))
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn two() -> (Membership, Instant) {
        let mut all = Membership::new(DEAD_AFTER);
        let start = Instant::now();
        for node in ["a", "b"] {
            all.expect(node);
            assert_eq!(all.hear(beat(node, 1), from(), start), Heard::Member);
        }
        (all, start)
    }

    #[test]
    fn silence_is_death_and_death_is_for_ever() {
        let (mut all, start) = two();
        all.hear(beat("b", 2), from(), start + ms(900));
        assert!(all.expire(start + ms(999)).is_empty());
        let deaths = all.expire(start + ms(1000));
        assert_eq!(
            deaths,
            [Death {
                node: "a".into(),
                silence: ms(1000)
            }]
        );
        assert!(all.expire(start + ms(1001)).is_empty());
        assert_eq!(
            all.hear(beat("a", 3), from(), start + ms(1100)),
            Heard::Outcast
        );
        assert!(all.is_down("a") && !all.is_down("b"));
        assert_eq!(
            all.down().collect::<Vec<_>>(),
            [("a", "no heartbeat for 1.0 s")]
        );
    }

    #[test]
    fn who_was_never_heard_does_not_die_of_silence() {
        let mut all = Membership::new(DEAD_AFTER);
        all.expect("a");
        assert!(all.expire(Instant::now() + ms(60_000)).is_empty());
        assert_eq!(
            all.hear(beat("x", 1), from(), Instant::now()),
            Heard::Stranger
        );
        all.give_up("a", "refused".into());
        assert_eq!(all.lost().count(), 0);
        assert_eq!(
            all.hear(beat("a", 1), from(), Instant::now()),
            Heard::Outcast
        );
    }

    #[test]
    fn an_overtaken_beat_changes_nothing_but_a_new_daemon_does() {
        let (mut all, start) = two();
        all.hear(beat("a", 9), from(), start + ms(100));
        all.hear(beat("a", 8), from(), start + ms(200));
        assert_eq!(all.life("a").expect("alive").heard, start + ms(100));
        let mut anew = beat("a", 1);
        anew.clock += 5_000;
        all.hear(anew, from(), start + ms(300));
        assert_eq!(all.life("a").expect("alive").beat.sequence, 1);
    }

    #[test]
    fn an_epoch_is_ready_when_every_node_says_so() {
        let (mut all, start) = two();
        let say = |all: &mut Membership, node: &str, sequence, epoch, ready| {
            let mut beat = beat(node, sequence);
            beat.epoch = Some(Epoch(epoch));
            beat.epoch_last = Epoch(epoch);
            beat.ready = ready;
            all.hear(beat, from(), start + ms(sequence * 100));
        };
        say(&mut all, "a", 2, 5, true);
        say(&mut all, "b", 2, 4, true);
        assert!(!all.is_ready(["a", "b"], Epoch(5)));
        assert!(all.holds_before(["a", "b"], Epoch(5)));
        assert_eq!(all.epoch_last(), Epoch(5));
        say(&mut all, "b", 3, 5, false);
        assert!(!all.is_ready(["a", "b"], Epoch(5)));
        say(&mut all, "b", 4, 5, true);
        assert!(all.is_ready(["a", "b"], Epoch(5)));
        assert!(!all.holds_before(["a", "b"], Epoch(5)));
        assert!(!all.is_ready(["a", "b", "c"], Epoch(5)));
    }

    #[test]
    fn heard_since_waits_for_the_living_only() {
        let (mut all, start) = two();
        all.hear(beat("b", 2), from(), start + ms(500));
        assert!(!all.heard_since(["a", "b"], start + ms(100)));
        all.give_up("a", "gone".into());
        assert_eq!(all.lost().collect::<Vec<_>>(), ["a"]);
        assert!(all.heard_since(["a", "b"], start + ms(100)));
    }
}
