//! Launches in vain: the application failed soon or stood still, and nothing was committed.
//!
//! One alone is launched again at once. More in a row get time to pass, as a filesystem that is away does. In a job that
//! never made a checkpoint they are most likely a mistake in the command, and are given up where nobody has said how
//! many launches there may be. Lost nodes do not count. Pure.

use super::tally::Cause;
use std::time::Duration;

/// Longer than this, and something was done.
const SOON: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// With the pauses between them, three minutes.
const HOPELESS: u32 = 10;

/// How many there were in a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Vain(u32);

impl Vain {
    /// A launch has ended, with so many checkpoints and after so long.
    pub(super) fn ended(&mut self, cause: &Cause, checkpoints: u64, took: Duration) {
        let was_vain = match cause {
            Cause::Failed(_) | Cause::Launcher(_) => took < SOON,
            Cause::Hung(_) => true,
            _ => false,
        };
        if was_vain && checkpoints == 0 {
            self.0 = self.0.saturating_add(1);
        } else {
            self.0 = 0;
        }
    }

    /// How many.
    pub(super) fn count(&self) -> u32 {
        self.0
    }

    /// How long to wait before the next launch.
    pub(super) fn pause(&self) -> Duration {
        match self.0 {
            0 | 1 => Duration::ZERO,
            count => Duration::from_secs(1 << (count - 2).min(6)).min(PAUSE_MAX),
        }
    }

    /// No launch would be any better: of all of the job, none made a checkpoint.
    pub(super) fn is_hopeless(&self, checkpoints: u64) -> bool {
        self.0 >= HOPELESS && checkpoints == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Cause {
        Cause::Failed("exit code 2".into())
    }

    fn s(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn pauses_grow_until_it_is_hopeless() {
        let mut vain = Vain::default();
        let mut pauses = Vec::new();
        while !vain.is_hopeless(0) {
            let hung = vain.count() % 2 == 1;
            let cause = if hung { Cause::Hung(s(600)) } else { failed() };
            vain.ended(&cause, 0, if hung { s(620) } else { s(3) });
            pauses.push(vain.pause().as_secs());
        }
        assert!(!vain.is_hopeless(1), "it was worth it before");
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn what_did_something_is_not_in_vain() {
        let lost = Cause::NodeLost("node3".into());
        let ends = [(&failed(), 1, 3), (&failed(), 0, 60), (&lost, 0, 3)];
        for (cause, checkpoints, took) in ends {
            let mut vain = Vain::default();
            vain.ended(&Cause::Launcher("exit code 127".into()), 0, s(1));
            vain.ended(&failed(), 0, s(1));
            assert_eq!(vain.count(), 2);
            vain.ended(cause, checkpoints, s(took));
            assert_eq!((vain.count(), vain.pause()), (0, Duration::ZERO));
        }
    }
}
