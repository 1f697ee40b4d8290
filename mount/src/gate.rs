//! The gate of one dataset: who is writing, whether anything changed, whether changes may go on.
//!
//! A pure state machine: no locks, threads or clock. The caller holds a lock around it, delivers
//! what it returns, and parks the operations it is told to park.
//!
//! Invariants:
//! - The *generation* grows with every change: each mutating operation raises it when it begins, and
//!   each writable handle when it is released. So what was read while the generation stood still,
//!   without writers, is what is there.
//! - *Quiet* is said only with no writable handle open and no mutating operation under way.
//! - A frozen gate admits nothing, and stays frozen until thawed or sealed: losing the coordinator
//!   does not thaw it, because other nodes may know that the dataset is sealed.
//! - A sealed gate never opens again.
//!
//! What it deliberately does not do: it does not see writes. A writable handle counts from open
//! until the kernel's RELEASE. With passthrough that does not wait for memory maps, and writers that
//! a crashed daemon left behind are not counted at all: so before [`Notice::Quiet`] is passed on, the
//! cache is asked too ([`crate::vfs::writers`]).

/// What the gate lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Door {
    Open,
    Frozen,
    Sealed,
}

/// Answer to an operation that wants to change the dataset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Go on; [`Gate::leave`] must follow.
    Admitted,
    /// Wait until the gate is thawed or sealed, and ask again.
    Park,
    /// The dataset is sealed.
    Sealed,
}

/// What the coordinator is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// No writers, nothing under way, at this generation.
    Quiet(u64),
    /// Changed after a `Quiet`; the generation now.
    Disturbed(u64),
}

/// State of one dataset's gate. Lives in memory only: after a restart of the daemon it is open, or
/// sealed when the record says so.
#[derive(Debug)]
pub struct Gate {
    door: Door,
    generation: u64,
    /// Writable handles open.
    writers: u64,
    /// Mutating operations admitted and not yet left.
    active: u64,
    /// The coordinator wants to hear of quiet.
    quiescing: bool,
    /// It has heard, and nothing has changed since.
    told_quiet: bool,
}

impl Gate {
    /// The gate of a dataset that programs write.
    pub fn new_open() -> Self {
        Self {
            door: Door::Open,
            generation: 0,
            writers: 0,
            active: 0,
            quiescing: false,
            told_quiet: false,
        }
    }

    /// The gate of a dataset that never changes again.
    pub fn new_sealed() -> Self {
        Self {
            door: Door::Sealed,
            ..Self::new_open()
        }
    }

    /// An operation wants to change something.
    pub fn enter(&mut self) -> (Admission, Option<Notice>) {
        match self.door {
            Door::Sealed => (Admission::Sealed, None),
            Door::Frozen => (Admission::Park, None),
            Door::Open => {
                self.active += 1;
                (Admission::Admitted, self.changed())
            }
        }
    }

    /// The operation is over; `opened_writable` when it leaves a writable handle behind.
    pub fn leave(&mut self, opened_writable: bool) -> Option<Notice> {
        self.active = self.active.saturating_sub(1);
        if opened_writable {
            self.writers += 1;
        }
        self.quiet()
    }

    /// A writable handle was released.
    pub fn release_writer(&mut self) -> Option<Notice> {
        self.writers = self.writers.saturating_sub(1);
        self.changed().or_else(|| self.quiet())
    }

    /// The coordinator wants to know when it is quiet, from now on.
    pub fn quiesce(&mut self) -> Option<Notice> {
        self.quiescing = true;
        self.told_quiet = false;
        self.quiet()
    }

    /// Let nothing change from now on, if nothing has since `generation`. Idempotent.
    pub fn freeze(&mut self, generation: u64) -> bool {
        let unchanged = self.generation == generation && self.writers == 0 && self.active == 0;
        match self.door {
            Door::Sealed => false,
            Door::Frozen => self.generation == generation,
            Door::Open if unchanged => {
                self.door = Door::Frozen;
                true
            }
            Door::Open => false,
        }
    }

    /// Ends [`Self::quiesce`] and [`Self::freeze`]; parked operations may go on.
    pub fn thaw(&mut self) {
        self.quiescing = false;
        self.told_quiet = false;
        if self.door == Door::Frozen {
            self.door = Door::Open;
        }
    }

    /// The dataset is sealed; parked operations fail.
    pub fn seal(&mut self) {
        self.door = Door::Sealed;
        self.quiescing = false;
    }

    /// The coordinator is gone: nobody waits for quiet. What is frozen stays so.
    pub fn coordinator_gone(&mut self) {
        self.quiescing = false;
        self.told_quiet = false;
    }

    /// The generation of the `Quiet` that still holds, while the coordinator wants to know.
    pub fn told_quiet_at(&self) -> Option<u64> {
        (self.quiescing && self.told_quiet).then_some(self.generation)
    }

    /// Writable handles open now.
    pub fn writers(&self) -> u64 {
        self.writers
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.door == Door::Frozen
    }

    fn changed(&mut self) -> Option<Notice> {
        self.generation += 1;
        let disturbed = self.told_quiet;
        self.told_quiet = false;
        disturbed.then_some(Notice::Disturbed(self.generation))
    }

    fn quiet(&mut self) -> Option<Notice> {
        let quiet = self.quiescing && !self.told_quiet && self.writers == 0 && self.active == 0;
        if quiet && self.door != Door::Sealed {
            self.told_quiet = true;
            return Some(Notice::Quiet(self.generation));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(gate: &mut Gate) -> Option<Notice> {
        let (admission, notice) = gate.enter();
        assert_eq!(admission, Admission::Admitted);
        notice
    }

    #[test]
    fn quiet_waits_for_the_last_writer_and_is_said_once() {
        let mut gate = Gate::new_open();
        admitted(&mut gate);
        assert_eq!(gate.leave(true), None);
        admitted(&mut gate);
        assert_eq!(gate.leave(true), None);
        assert_eq!(gate.quiesce(), None);
        assert_eq!(gate.release_writer(), None);
        assert_eq!(gate.release_writer(), Some(Notice::Quiet(4)));
        assert_eq!(gate.leave(false), None, "not said twice");
    }

    #[test]
    fn quiet_waits_for_operations_under_way() {
        let mut gate = Gate::new_open();
        admitted(&mut gate);
        assert_eq!(gate.quiesce(), None);
        assert_eq!(gate.leave(false), Some(Notice::Quiet(1)));
    }

    #[test]
    fn a_change_after_quiet_disturbs_once_and_quiet_comes_anew() {
        let mut gate = Gate::new_open();
        assert_eq!(gate.quiesce(), Some(Notice::Quiet(0)));
        assert_eq!(admitted(&mut gate), Some(Notice::Disturbed(1)));
        assert_eq!(admitted(&mut gate), None);
        assert_eq!(gate.leave(false), None);
        assert_eq!(gate.leave(false), Some(Notice::Quiet(2)));
    }

    #[test]
    fn freeze_fails_after_a_change_and_with_a_writer() {
        let mut gate = Gate::new_open();
        assert_eq!(gate.quiesce(), Some(Notice::Quiet(0)));
        admitted(&mut gate);
        assert!(!gate.freeze(0), "changed");
        assert!(!gate.freeze(1), "under way");
        gate.leave(true);
        assert!(!gate.freeze(1), "a writer");
        assert_eq!(gate.release_writer(), Some(Notice::Quiet(2)));
        assert!(!gate.freeze(1));
        assert!(gate.freeze(2));
        assert!(gate.freeze(2), "idempotent");
    }

    #[test]
    fn frozen_outlives_the_coordinator_and_thaws_or_seals() {
        let mut gate = Gate::new_open();
        gate.quiesce();
        assert!(gate.freeze(0));
        assert_eq!(gate.enter(), (Admission::Park, None));
        gate.coordinator_gone();
        assert!(gate.is_frozen());
        assert_eq!(
            gate.quiesce(),
            Some(Notice::Quiet(0)),
            "a new coordinator starts afresh"
        );
        gate.thaw();
        admitted(&mut gate);
        assert_eq!(gate.leave(false), None, "thaw ends quiesce too");
        gate.quiesce();
        assert!(gate.freeze(1));
        gate.seal();
        assert_eq!(gate.enter(), (Admission::Sealed, None));
        gate.thaw();
        assert_eq!(gate.enter(), (Admission::Sealed, None), "sealed for good");
    }
}
