//! Whether an application still moves, and how one is ended: two state machines, with the time as an
//! argument.
//!
//! ```text
//! moving --nothing new for --hang-timeout--> hung
//! hung or unwanted: [save stacks] --> ask (SIGTERM) --patience--> kill (SIGKILL)
//! ```
//!
//! What moves is told by the nodes: the state of any dataset, bytes in the cache, the application's own
//! heartbeat. A flush is allowed longer silence, because programs wait for it. Invariant: a hang is told
//! from *nobody's* progress only; one node that moves is enough to go on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Signs of progress of one launch.
#[derive(Debug)]
pub struct Watchdog {
    /// Longest silence. `None`: nobody watches.
    patience: Option<Duration>,
    /// The same while something is flushed.
    patience_flush: Duration,
    seen: BTreeMap<String, u64>,
    moved: Instant,
}

/// What one node says.
#[derive(Clone, Copy, Debug)]
pub struct Sign<'a> {
    /// Which node.
    pub node: &'a str,
    /// A number that changes with every progress there.
    pub activity: u64,
    /// Something is being flushed.
    pub flushing: bool,
}

impl Watchdog {
    /// Begins to watch. A flush gets at least as long as everything else.
    pub fn new(patience: Option<Duration>, patience_flush: Duration, now: Instant) -> Self {
        Self {
            patience,
            patience_flush: patience_flush.max(patience.unwrap_or_default()),
            seen: BTreeMap::new(),
            moved: now,
        }
    }

    /// For how long nothing has moved, once that is too long.
    pub fn look<'a>(
        &mut self,
        now: Instant,
        signs: impl IntoIterator<Item = Sign<'a>>,
    ) -> Option<Duration> {
        let patience = self.patience?;
        let mut flushing = false;
        for sign in signs {
            flushing |= sign.flushing;
            match self.seen.get_mut(sign.node) {
                Some(seen) if *seen == sign.activity => continue,
                Some(seen) => *seen = sign.activity,
                None => {
                    self.seen.insert(sign.node.to_owned(), sign.activity);
                }
            }
            self.moved = now;
        }
        let allowed = if flushing {
            self.patience_flush
        } else {
            patience
        };
        let silence = now.saturating_duration_since(self.moved);
        (silence >= allowed).then_some(silence)
    }
}

/// Why an application is ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nothing moved.
    Hung,
    /// The job is to end.
    Halted,
}

/// What is to be done about an application that is being ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Save where its processes stand.
    Save,
    /// SIGTERM.
    Ask,
    /// SIGKILL, and be done.
    Kill,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Begun,
    Saving,
    Asked(Instant),
}

/// An application on its way to its end.
#[derive(Debug)]
pub struct Ending {
    /// Why.
    pub why: Why,
    stage: Stage,
    patience: Duration,
}

impl Ending {
    /// After `patience` from the asking on it is killed.
    pub fn new(why: Why, patience: Duration) -> Self {
        Self {
            why,
            stage: Stage::Begun,
            patience,
        }
    }

    /// What to do now, each once. `saved`: nothing is being saved (any more).
    pub fn next(&mut self, now: Instant, saved: bool) -> Option<Act> {
        match self.stage {
            Stage::Begun if self.why == Why::Hung => {
                self.stage = Stage::Saving;
                Some(Act::Save)
            }
            Stage::Saving if !saved => None,
            Stage::Begun | Stage::Saving => {
                self.stage = Stage::Asked(now);
                Some(Act::Ask)
            }
            Stage::Asked(at) => {
                let late = now.saturating_duration_since(at) >= self.patience;
                late.then_some(Act::Kill)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn sign(node: &str, activity: u64, flushing: bool) -> Sign<'_> {
        Sign {
            node,
            activity,
            flushing,
        }
    }

    #[test]
    fn nobody_moving_is_a_hang_and_one_node_moving_is_none() {
        let start = Instant::now();
        let mut dog = Watchdog::new(Some(s(10)), s(30), start);
        let both = |a, b| [sign("a", a, false), sign("b", b, false)];
        assert_eq!(dog.look(start + s(1), both(1, 1)), None);
        assert_eq!(dog.look(start + s(10), both(1, 1)), None);
        assert_eq!(dog.look(start + s(10), both(1, 2)), None);
        assert_eq!(dog.look(start + s(19), both(1, 2)), None);
        assert_eq!(dog.look(start + s(20), both(1, 2)), Some(s(10)));
        // A number seen before is progress too: bytes were freed and written.
        assert_eq!(dog.look(start + s(20), both(1, 1)), None);
    }

    #[test]
    fn a_flush_may_be_silent_for_longer() {
        let start = Instant::now();
        let mut dog = Watchdog::new(Some(s(10)), s(30), start);
        dog.look(start, [sign("a", 1, true)]);
        assert_eq!(dog.look(start + s(29), [sign("a", 1, true)]), None);
        assert_eq!(dog.look(start + s(29), [sign("a", 1, false)]), Some(s(29)));
        assert_eq!(dog.look(start + s(30), [sign("a", 1, true)]), Some(s(30)));
        let mut dog = Watchdog::new(Some(s(10)), s(1), start);
        assert_eq!(dog.look(start + s(9), [sign("a", 1, true)]), None);
    }

    #[test]
    fn nobody_asked_and_nobody_watches() {
        let start = Instant::now();
        let mut dog = Watchdog::new(None, s(1), start);
        assert_eq!(dog.look(start + s(1_000_000), [sign("a", 1, false)]), None);
    }

    #[test]
    fn stacks_come_first_then_the_asking_then_the_kill() {
        let start = Instant::now();
        let mut hung = Ending::new(Why::Hung, s(5));
        assert_eq!(hung.next(start, true), Some(Act::Save));
        assert_eq!(hung.next(start, false), None);
        assert_eq!(hung.next(start + s(1), true), Some(Act::Ask));
        assert_eq!(hung.next(start + s(5), true), None);
        assert_eq!(hung.next(start + s(6), true), Some(Act::Kill));
        let mut halted = Ending::new(Why::Halted, s(5));
        assert_eq!(halted.next(start, true), Some(Act::Ask));
        assert_eq!(halted.next(start + s(5), true), Some(Act::Kill));
    }
}
