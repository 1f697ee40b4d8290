//! Signs between programs and who watches them: signs of life one way, the wish that they end the other.
//!
//! Programs see them in `.scr`: whoever writes to `heartbeat`, or touches it, lives; `should_exit` says
//! `1` when they are to end. Both are in memory only: a new daemon is told anew.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The signs of one mount.
#[derive(Debug, Default)]
pub struct Signs {
    beats: AtomicU64,
    should_exit: AtomicBool,
}

impl Signs {
    /// The application lives.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has said so.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Whether programs are to end.
    pub fn should_exit(&self) -> bool {
        self.should_exit.load(Ordering::Relaxed)
    }

    /// They are, or not any more. Returns what was said before.
    pub fn tell_exit(&self, should_exit: bool) -> bool {
        self.should_exit.swap(should_exit, Ordering::Relaxed)
    }
}
