//! Whether programs of this node write. Then the machine is theirs, and nothing is made before the commit: two processors
//! that write as fast as they can would write at 0.6 of their speed beside it.
//!
//! What is seen: files that are opened again, and the space of the store that is in use, which grows while programs
//! write by passthrough. Not seen: writes over what is there.

use std::time::{Duration, Instant};

/// It is quiet when nothing was seen for so long.
pub(super) const QUIET: Duration = Duration::from_millis(50);
/// The store is looked at no more often.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What a store grows by between two looks without anybody writing a checkpoint: records, logs, other programs.
const GROWTH_MAX: u64 = 1 << 20;

/// When programs were last seen writing.
#[derive(Debug)]
pub(super) struct Quiet {
    since: Instant,
    looked: Option<Instant>,
    used: u64,
}

impl Quiet {
    /// As if they were writing at this moment.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            looked: None,
            used: 0,
        }
    }

    /// What is used from now on counts.
    pub(super) fn begin(&mut self, used: Option<u64>) {
        self.used = used.unwrap_or(self.used);
    }

    /// They are.
    pub(super) fn disturb(&mut self, now: Instant) {
        self.since = self.since.max(now);
    }

    /// Whether they are not; `used` says how many bytes of the store are in use.
    pub(super) fn is_quiet(&mut self, now: Instant, used: impl FnOnce() -> Option<u64>) -> bool {
        let is_due = |looked| now.saturating_duration_since(looked) >= LOOK_EVERY;
        if self.looked.is_none_or(is_due) {
            self.looked = Some(now);
            let used = used().unwrap_or(self.used);
            if used > self.used.saturating_add(GROWTH_MAX) {
                self.disturb(now);
            }
            self.used = used;
        }
        now.saturating_duration_since(self.since) >= QUIET
    }

    /// The earliest time at which it may be.
    pub(super) fn may_be_at(&self) -> Instant {
        self.since + QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_is_quiet_when_nothing_was_opened_closed_or_written_for_a_while() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut quiet = Quiet::new(begun);
        assert!(!quiet.is_quiet(at(0), || Some(100 * MIB)));
        assert!(!quiet.is_quiet(at(49), || Some(100 * MIB)));
        assert!(quiet.is_quiet(at(60), || Some(100 * MIB)));
        assert!(quiet.is_quiet(at(70), || Some(101 * MIB)), "a little");
        assert!(!quiet.is_quiet(at(80), || Some(103 * MIB)));
        assert_eq!(quiet.may_be_at(), at(130));
        assert!(!quiet.is_quiet(at(129), || Some(103 * MIB)));
        assert!(quiet.is_quiet(at(140), || Some(103 * MIB)));
        quiet.disturb(at(141));
        assert!(!quiet.is_quiet(at(150), || Some(103 * MIB)));
        // What is removed, or cannot be seen, is nobody writing.
        assert!(quiet.is_quiet(at(200), || Some(MIB)));
        assert!(quiet.is_quiet(at(210), || None));
        quiet.begin(Some(500 * MIB));
        assert!(quiet.is_quiet(at(230), || Some(500 * MIB)));
        quiet.begin(None);
        assert!(quiet.is_quiet(at(245), || Some(500 * MIB)));
        // Not looked at so soon after.
        assert!(quiet.is_quiet(at(250), || unreachable!()));
    }
}
