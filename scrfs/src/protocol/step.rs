//! A step of the state machine: what must be durable first, and what may be done then.
//!
//! Invariant I-3 by type: the effects of a step come out only of [`Step::persisted_by`], which has
//! put every record down before.

use super::message::{Failure, Message, Order, PrefixView};
use crate::control::ToDaemon;
use crate::findings::Findings;
use crate::id::{DatasetId, Rank, Slot};
use crate::interval::Learnt;
use crate::layout::pointer::Pointers;
use crate::layout::record::{DatasetRecord, EpochRecord, PartSummary, Seal};

/// A record to put down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// The record of a dataset; replaces the one before.
    Dataset(Box<DatasetRecord>),
    /// The dataset is no more: its record goes first, its files follow.
    Forget(DatasetId),
    /// All pointer files.
    Pointers(Box<Pointers>),
    /// The epoch record.
    Epoch(EpochRecord),
}

/// For effects inside the protocol: to every member.
pub(super) const EVERYONE: Rank = Rank(u32::MAX);

/// Something to do. Effects of one step are carried out in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send to a peer, or to oneself.
    Send {
        /// To whom.
        to: Rank,
        /// What.
        message: Message,
    },
    /// Tell the daemon.
    Daemon(ToDaemon),
    /// Make this node's empty part of a new dataset; answered by [`Outcome::Worked`].
    MakePart {
        /// To be answered with.
        ticket: u64,
        /// Of which dataset.
        record: Box<DatasetRecord>,
    },
    /// Scan this node's part and put its manifest down; answered by [`Outcome::Scanned`].
    Scan {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of the daemon's `Quiet`.
        generation: u64,
    },
    /// Move bytes: encode, rebuild, flush, fetch, verify. Answered by [`Outcome::Worked`].
    Work {
        /// To be answered with.
        ticket: u64,
        /// What.
        order: Order,
    },
    /// Another member failed at work that was begun here, so it cannot end well: stop it, and answer it as
    /// failed. Not answered itself.
    Abandon {
        /// Of the work.
        ticket: u64,
    },
    /// From now on, make what is read of the `lost` slots of a dataset of what the `holders` have.
    /// Not answered.
    Losses {
        /// Of which dataset.
        dataset: DatasetId,
        /// Who holds which slot.
        holders: Vec<(Slot, Rank)>,
        /// Which slots nobody holds; none: it is whole again.
        lost: Vec<Slot>,
    },
    /// Verify what all nodes have flushed and make it visible in the prefix; answered by
    /// [`Outcome::FlushCompleted`].
    CompleteFlush {
        /// Of which dataset.
        record: Box<DatasetRecord>,
    },
    /// What the seal of a new dataset would be: what is closed may be encoded. Not answered.
    Foresee {
        /// Of which dataset.
        dataset: DatasetId,
        /// The seal, without parts, and with this node's set alone.
        seal: Box<Seal>,
    },
    /// Write pointer files to the prefix; answered by [`Outcome::PointersWritten`].
    WritePointers {
        /// Those that changed.
        due: Box<Pointers>,
    },
    /// See what the prefix has now; answered by [`Outcome::PrefixSeen`].
    LookAtPrefix,
    /// Ask whether the prefix has the dataset; answered by [`Outcome::PrefixHolds`].
    AskPrefix {
        /// Which.
        record: Box<DatasetRecord>,
    },
    /// Remove the files of a dataset; its record may stay. Not answered.
    DropData {
        /// Of which dataset.
        dataset: DatasetId,
        /// Only these slots; all of them when empty.
        slots: Vec<Slot>,
    },
}

/// Whether the prefix has what was flushed there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It has, or somebody had it deleted by `scrfs`: nothing is to be done about it.
    Settled,
    /// Another dataset has taken its name.
    Replaced,
    /// It is gone, and nobody said that it should.
    Gone,
}

/// How an effect ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A part was made or work was done.
    Worked {
        /// Of the effect.
        ticket: u64,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// What a verify has found here; the end of its work comes after it.
    Found {
        /// Of the effect.
        ticket: u64,
        /// What.
        findings: Box<Findings>,
    },
    /// A manifest was put down.
    Scanned {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of the effect.
        generation: u64,
        /// What the part holds.
        result: Result<PartSummary, Failure>,
    },
    /// The prefix has the dataset, or not.
    FlushCompleted {
        /// Which.
        dataset: DatasetId,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// The prefix has the pointer files, or not.
    PointersWritten {
        /// Which.
        due: Box<Pointers>,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// Which failures and recoveries the events of the prefix tell of; said unasked.
    Learnt(Learnt),
    /// Somebody looked at the prefix, also unasked.
    PrefixSeen {
        /// What it has; `None` when that has not changed since.
        result: Result<Option<Box<PrefixView>>, Failure>,
    },
    /// Whether the prefix has the dataset.
    PrefixHolds {
        /// Which.
        dataset: DatasetId,
        /// An error when that cannot be known now.
        result: Result<Presence, Failure>,
    },
    /// A flush makes no headway on this node, or does again.
    Stuck {
        /// Of which dataset.
        dataset: DatasetId,
        /// Since when, and at what: empty when it goes on.
        text: String,
    },
    /// Work on a dataset has come this far on this node.
    Advanced {
        /// On which dataset.
        dataset: DatasetId,
        /// What is being done.
        activity: crate::control::Activity,
        /// Bytes so far.
        bytes: u64,
    },
}

/// What follows from one input.
#[derive(Default, Debug)]
#[must_use = "a step that is not carried out is a lost decision"]
pub struct Step {
    handed_on: Vec<(Rank, Message)>,
    writes: Vec<Write>,
    effects: Vec<Effect>,
}

impl Step {
    pub(super) fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn send(&mut self, to: Rank, message: Message) {
        self.effect(Effect::Send { to, message });
    }

    /// To every member, this one too.
    pub(super) fn cast(&mut self, message: Message) {
        self.send(EVERYONE, message);
    }

    /// Hands on what another has said: it waits for nothing that is put down here.
    pub(super) fn hand_on(&mut self, to: Rank, message: Message) {
        self.handed_on.push((to, message));
    }

    /// Takes out what is sent; what stays keeps its order.
    pub(super) fn take_sends(&mut self) -> Vec<(Rank, Message)> {
        let mut sends = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send { to, message } => sends.push((to, message)),
                other => self.effects.push(other),
            }
        }
        sends
    }

    /// What only passes through here, to be sent at once, before anything is put down.
    pub fn take_handed_on(&mut self) -> Vec<(Rank, Message)> {
        std::mem::take(&mut self.handed_on)
    }

    pub(super) fn daemon(&mut self, message: ToDaemon) {
        self.effect(Effect::Daemon(message));
    }

    /// Puts every record down with `put`, then hands out the effects. At the first failure nothing
    /// is handed out: the caller must stop being a member, for it can no longer keep its word.
    pub fn persisted_by<E>(
        self,
        mut put: impl FnMut(&Write) -> Result<(), E>,
    ) -> Result<Vec<Effect>, E> {
        for write in &self.writes {
            put(write)?;
        }
        Ok(self.effects)
    }
}
