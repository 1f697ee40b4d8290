//! What coordinators say to each other, and how it looks on the wire.
//!
//! Every message is an [`Packet`] in an envelope: versioned, checksummed, marked with its epoch. A
//! packet of another epoch is refused by the receiver.

use crate::control::{
    Activity, DirectoryChange, NodeStatus, Piece, Pressure, Progress, Refusal, Request, Shelved,
};
use crate::findings::Findings;
use crate::id::{DatasetId, DatasetKey, Epoch, Rank, Slot};
use crate::interval::{Learnt, Question, Verdict, Verdicts};
use crate::layout::envelope::{self, EnvelopeError, Kind};
use crate::layout::pointer::{PointerRecord, Pointers};
use crate::layout::record::{DatasetRecord, EpochRecord, PartSummary, Seal};
use crate::name::Name;
use crate::redundancy::Scheme;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Why something was not done: for programs an errno, for people words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// What a program is told.
    pub refusal: Refusal,
    /// What a person is told: with paths and values.
    pub text: String,
}

impl Failure {
    /// A failure in words.
    pub fn new(refusal: Refusal, text: impl Into<String>) -> Self {
        Self {
            refusal,
            text: text.into(),
        }
    }

    /// Of a flush: whether another dataset would have been copied. Else it is the prefix that has no space or
    /// cannot be had, or somebody said stop.
    pub fn is_its_own(&self) -> bool {
        !matches!(
            self.refusal,
            Refusal::NoSpace | Refusal::Unavailable | Refusal::Again
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What one node holds of one slot of a dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartState {
    /// Which slot.
    pub slot: Slot,
    /// CRC-32C of the manifest's encoding, as in [`PartSummary`].
    pub manifest_crc: u32,
    /// The files are there and are as the manifest says.
    pub intact: bool,
    /// All checksums are there.
    pub sums: bool,
    /// The parity is there.
    pub parity: bool,
}

/// What one node holds of one dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InventoryEntry {
    /// The record, as this node has it; mostly it is the same on all.
    pub record: Arc<DatasetRecord>,
    /// The slots whose files are here.
    pub parts: Vec<PartState>,
    /// The slots whose metadata is kept here for others.
    pub copies: Vec<Slot>,
}

/// What one node found in its cache when an epoch began.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// The node's name.
    pub node: String,
    /// Its failure group.
    pub group: String,
    /// Bytes free in its cache.
    pub free_bytes: u64,
    /// The epoch it was last part of.
    pub epoch: EpochRecord,
    /// Its datasets.
    pub datasets: Vec<InventoryEntry>,
    /// Its pointer files.
    pub pointers: Pointers,
}

impl Inventory {
    /// Whether the node has names and checksums of a sealed slot, with its files or as a copy for their
    /// holder.
    pub(super) fn has_sums(&self, record: &DatasetRecord, seal: &Seal, slot: Slot) -> bool {
        let sealed = seal.part(slot).map(|part| part.manifest_crc);
        let mut entries = self.datasets.iter();
        entries.any(|entry| {
            let own = |part: &PartState| {
                part.slot == slot && Some(part.manifest_crc) == sealed && part.sums
            };
            entry.record.key() == record.key()
                && (entry.copies.contains(&slot) || entry.parts.iter().any(own))
        })
    }
}

/// What the leader tells every member to do. Answered by [`Message::Done`] with its ticket, when
/// it is done and durable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Make a new open dataset.
    Create(Box<DatasetRecord>),
    /// The dataset is now as the record says.
    Update(Box<DatasetRecord>),
    /// The same, of a sealed dataset: the record comes without its seal, which every member has and which
    /// never changes, for it grows with the number of nodes.
    Amend(Box<DatasetRecord>),
    /// The dataset is no more.
    Forget(DatasetId),
    /// These pointer files are now as the records say.
    Point(Vec<(Name, PointerRecord)>),
    /// Leaders of lower terms give out no versions of pointer files any more.
    Raise(u64),
    /// Change directories of an open dataset.
    Change {
        /// Of which dataset.
        dataset: DatasetId,
        /// What.
        change: DirectoryChange,
    },
    /// Freeze the dataset if the vote still holds.
    Confirm {
        /// Which dataset.
        dataset: DatasetId,
        /// Of which proposal.
        proposal: u64,
    },
    /// Make the parity of some slots, and give copies of manifests and checksums to the set.
    Encode {
        /// Of which dataset.
        dataset: DatasetId,
        /// Whose parity is to be made: all slots, or those that were rebuilt.
        #[serde(with = "super::runs::slots")]
        slots: Vec<Slot>,
        /// Who holds which slot.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
    },
    /// Recompute the files of lost slots; their parity is a later `Encode`.
    Rebuild {
        /// Of which dataset.
        dataset: DatasetId,
        /// Who holds which slot, without the lost.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
        /// Which slots are lost, and who shall have them.
        lost: Vec<(Slot, Rank)>,
    },
    /// Copy to the prefix.
    Flush {
        /// Which dataset.
        dataset: DatasetId,
        /// Who holds which slot.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
    },
    /// Copy from the prefix.
    Fetch {
        /// The dataset, as the prefix knows it.
        record: Box<DatasetRecord>,
        /// Who shall have which slot.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
    },
    /// See that the prefix has the files of a dataset as they were sealed, by type and size: programs are to
    /// read them there.
    CheckInPlace {
        /// The dataset, as the prefix knows it.
        record: Box<DatasetRecord>,
        /// Who looks at which slot.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
    },
    /// Read what is kept of a dataset here, hold it against its checksums, and repair what can be. That
    /// something is damaged is no failure: it is told with the answer.
    Verify {
        /// Which dataset.
        dataset: DatasetId,
        /// Who holds which slot.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
        /// Which slots nobody holds.
        lost: Vec<Slot>,
        /// What of it. Parity comes after the files that it is made of.
        what: Checking,
    },
}

/// What is verified at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Checking {
    /// Records, manifests, checksums, and files.
    Files,
    /// Parity and copies.
    Parity,
    /// Files in the prefix.
    Prefix,
}

impl Order {
    /// The dataset whose bytes it moves.
    pub fn works_on(&self) -> Option<DatasetId> {
        match self {
            Self::Encode { dataset, .. }
            | Self::Rebuild { dataset, .. }
            | Self::Flush { dataset, .. }
            | Self::Verify { dataset, .. } => Some(*dataset),
            Self::Fetch { record, .. } | Self::CheckInPlace { record, .. } => Some(record.id),
            _ => None,
        }
    }
}

/// Manifest and checksums of a slot, as they lie on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Metadata {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Of which slot.
    pub slot: Slot,
    /// The encoded manifest.
    pub manifest: Vec<u8>,
    /// The encoded checksums of its part log.
    pub data_sums: Vec<u8>,
    /// The encoded checksums of its parity.
    pub parity_sums: Vec<u8>,
}

/// What coordinators say to each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Member to leader, first of all: what is here.
    Hello(Box<Inventory>),
    /// The same, of a whole subtree.
    Hellos(Box<Hellos>),
    /// From the leader, along the tree of ranks: to all, or to one.
    Down {
        /// To whom; to all when to nobody.
        to: Option<Rank>,
        /// The message, as [`Message::pack`] gives it: handed on as it is.
        bytes: Bytes,
    },
    /// To the leader, along the tree of ranks.
    Up(Vec<Word>),
    /// Leader to member: what the epoch begins with. Other datasets are to go.
    Begin {
        /// All datasets.
        records: Vec<DatasetRecord>,
        /// Slots of them that a member has and is not to keep.
        spare: Vec<(Rank, DatasetId, Slot)>,
        /// Highest dataset number given out.
        last_dataset: u64,
        /// Highest checkpoint number given out.
        last_checkpoint: u64,
        /// All pointer files, and the leader's term.
        pointers: Pointers,
        /// The failure groups of all ranks, by numbers: who has the same one is in the same.
        groups: Vec<u32>,
    },
    /// Member to leader: begun, durable, and shown to programs; of an inner member, by all of its subtree.
    Begun,
    /// Member to leader: a program asks.
    Asked {
        /// Of this member.
        request: u64,
        /// What.
        what: Request,
    },
    /// Leader to member: the answer.
    Reply {
        /// Of which request.
        request: u64,
        /// What to tell the program.
        result: Result<(), Refusal>,
    },
    /// Member to leader: a program asks whether to checkpoint.
    Question {
        /// Of this member.
        request: u64,
        /// In which round.
        question: Question,
    },
    /// Leader to member: the answer to `Question`.
    Verdict {
        /// Of which request.
        request: u64,
        /// What the program is told.
        verdict: Verdict,
    },
    /// Member to leader: what programs here were told by leaders before.
    Verdicts(Verdicts),
    /// Leader to member: do this.
    Order {
        /// To be answered with.
        ticket: u64,
        /// What.
        order: Order,
    },
    /// Member to leader: done; of an inner member, by all of its subtree that has not told of a failure.
    Done {
        /// Of which order.
        ticket: u64,
        /// How it went.
        result: Result<(), Failure>,
        /// What a verify has found.
        findings: Option<Box<Findings>>,
    },
    /// Leader to member: how a new dataset would be sealed now. What is encoded before the commit is encoded so, and
    /// thrown away when the seal is another.
    Foresee {
        /// Of which dataset.
        dataset: DatasetId,
        /// By which scheme.
        scheme: Scheme,
        /// In sets of how many members at least; who they are follows from the failure groups.
        set_size: u32,
        /// Bytes of a chunk on disk.
        chunk_bytes: u64,
        /// Bytes of a unit.
        unit_bytes: u32,
    },
    /// Member to the members of its set: so many bytes of its part log are written, as far as it knows, and can be had.
    Reach {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
        /// Bytes.
        bytes: u64,
    },
    /// Member to the members of its set, after the seal: checksums of units of its part log that it knows from before.
    Foreknown {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
        /// One for each unit from the first on.
        crcs: Vec<Option<u32>>,
    },
    /// Leader to member: vote as soon as nobody writes.
    Collect {
        /// On which dataset.
        dataset: DatasetId,
        /// On which proposal.
        proposal: u64,
        /// For how many milliseconds nobody must have written.
        settle_ms: u64,
    },
    /// Member to leader: my part is complete and its manifest durable.
    Vote {
        /// On which dataset.
        dataset: DatasetId,
        /// On which proposal.
        proposal: u64,
        /// What the part holds, or why there is no part.
        part: Result<PartSummary, Failure>,
    },
    /// The same, of members that have nothing to say against it.
    Votes {
        /// On which dataset.
        dataset: DatasetId,
        /// On which proposal.
        proposal: u64,
        /// What their parts hold.
        votes: Vec<(Rank, PartSummary)>,
    },
    /// Member to leader: my vote no longer holds.
    Withdraw {
        /// On which dataset.
        dataset: DatasetId,
        /// On which proposal.
        proposal: u64,
    },
    /// Leader to member: let programs go on.
    Release {
        /// Which dataset.
        dataset: DatasetId,
        /// Of which proposal.
        proposal: u64,
        /// The proposal still stands: vote again when nobody writes.
        again: bool,
    },
    /// Leader to member: another member failed at this work, so it cannot end well; stop, and say
    /// that it failed here, too.
    Abandon {
        /// Of the order.
        ticket: u64,
    },
    /// Member to leader: work has come this far here; of an inner member, in all of its subtree.
    Advanced {
        /// On which dataset.
        dataset: DatasetId,
        /// What is being done.
        activity: Activity,
        /// Bytes so far.
        bytes: u64,
    },
    /// Member to leader: a flush makes no headway here.
    Stuck {
        /// Of which dataset.
        dataset: DatasetId,
        /// Since when, and at what: empty when it goes on.
        text: String,
    },
    /// Member to leader: how the cache here fares.
    Pressure(Pressure),
    /// Leader to member: work has come this far everywhere.
    Progress(Progress),
    /// Leader to member: what the prefix is to have and has not.
    Due(Vec<DatasetId>),
    /// Leader to member: what only the prefix has and this job never had.
    Shelf(Vec<Shelved>),
    /// Leader to member: which failures and recoveries this job has had.
    Learnt(Learnt),
    /// Leader to member: what a verify has found that was asked for there; the answer comes next.
    Verified {
        /// Of which dataset.
        dataset: DatasetId,
        /// What.
        findings: Box<Findings>,
    },
    /// Leader to member: who takes part.
    Nodes(Vec<NodeStatus>),
    /// Leader to member: what is lost of a dataset, and who has the rest. Until it is rebuilt, reads
    /// of the lost slots are made of the rest; nothing lost: it is whole again.
    Losses {
        /// Of which dataset.
        dataset: DatasetId,
        /// Who holds which slot.
        #[serde(with = "super::runs::held")]
        holders: Vec<(Slot, Rank)>,
        /// Which slots nobody holds.
        lost: Vec<Slot>,
        /// Something of it is still to be made again, if only parity.
        weak: bool,
    },
    /// Leader to member: programs may start.
    Ready {
        /// The dataset to restart from.
        restart: Option<DatasetId>,
        /// They start anew.
        new_run: bool,
    },
    /// Member to member: keep this for me.
    Keep(Box<Metadata>),
    /// The answer to `Keep`.
    Kept {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// Member to member: what do you know of this slot?
    WantMetadata {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
    },
    /// The answer to `WantMetadata`; `None` when nothing trustworthy is here.
    HaveMetadata {
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
        /// What is known.
        metadata: Option<Box<Metadata>>,
    },
    /// Member to member: a program on my node reads what your node may have.
    WantPiece {
        /// To be answered with.
        ticket: u64,
        /// Of which dataset.
        dataset: DatasetId,
        /// Of which slot.
        slot: Slot,
        /// What.
        piece: Piece,
    },
    /// The answer to `WantPiece`.
    HavePiece {
        /// Of which question.
        ticket: u64,
        /// Exactly what was asked for, or why it is not to be had here.
        result: Result<Bytes, Refusal>,
    },
}

/// What one member has to say to the leader, or one for all of its subtree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Word {
    /// Who says it.
    pub from: Rank,
    /// What.
    pub message: Message,
}

impl Word {
    /// The ranks it speaks for: who says it, or all whose words it brings together.
    pub(super) fn speakers(&self) -> Vec<Rank> {
        match &self.message {
            Message::Hellos(bundle) => bundle.hellos.iter().map(|it| it.rank).collect(),
            Message::Votes { votes, .. } => votes.iter().map(|(rank, _)| *rank).collect(),
            _ => vec![self.from],
        }
    }
}

/// An inventory whose records are told once for all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Slim {
    rank: Rank,
    /// Without datasets.
    rest: Inventory,
    /// For each dataset, the place of its record, and what else there is to say.
    datasets: Vec<(u32, Vec<PartState>, Vec<Slot>)>,
}

/// Inventories of many members, each different record once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hellos {
    records: Vec<Arc<DatasetRecord>>,
    hellos: Vec<Slim>,
}

impl Hellos {
    /// Puts inventories together.
    pub fn of(hellos: Vec<(Rank, Inventory)>) -> Self {
        let mut records: Vec<Arc<DatasetRecord>> = Vec::new();
        let mut places: BTreeMap<DatasetId, Vec<u32>> = BTreeMap::new();
        let mut place = |record: Arc<DatasetRecord>| {
            let known = places.entry(record.id).or_default();
            let same = |at: &&u32| records.get(**at as usize) == Some(&record);
            if let Some(at) = known.iter().find(same) {
                return *at;
            }
            let at = u32::try_from(records.len()).unwrap_or(u32::MAX);
            known.push(at);
            records.push(record);
            at
        };
        let mut slim = |(rank, mut rest): (Rank, Inventory)| {
            let entries = std::mem::take(&mut rest.datasets);
            let entry = |it: InventoryEntry| (place(it.record), it.parts, it.copies);
            let datasets = entries.into_iter().map(entry).collect();
            Slim {
                rank,
                rest,
                datasets,
            }
        };
        let hellos = hellos.into_iter().map(&mut slim).collect();
        Self { records, hellos }
    }

    /// The inventories; of what does not belong together, nothing.
    pub fn open(self) -> Vec<(Rank, Inventory)> {
        let Self { records, hellos } = self;
        let whole = |slim: Slim| {
            let entry = |(at, parts, copies): (u32, Vec<PartState>, Vec<Slot>)| {
                Some(InventoryEntry {
                    record: Arc::clone(records.get(at as usize)?),
                    parts,
                    copies,
                })
            };
            let datasets = slim.datasets.into_iter().filter_map(entry).collect();
            let inventory = Inventory {
                datasets,
                ..slim.rest
            };
            (slim.rank, inventory)
        };
        hellos.into_iter().map(whole).collect()
    }
}

impl Message {
    /// As it goes down the tree.
    pub fn pack(&self) -> Bytes {
        // It is encoded into memory, and has no map or sequence of unknown length.
        let bytes = postcard::to_allocvec(self);
        Bytes::from(bytes.expect("a message can be encoded"))
    }

    /// The opposite of [`Self::pack`]; `None` for anything else.
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

/// A message with the epoch it belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Packet {
    /// The epoch.
    pub epoch: Epoch,
    /// The message.
    pub message: Message,
}

impl Packet {
    /// For the wire.
    pub fn encode(&self) -> Vec<u8> {
        envelope::seal(Kind::Message, self)
    }

    /// From the wire; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        envelope::open(Kind::Message, bytes)
    }
}

/// What the prefix holds, as far as the leader must know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrefixView {
    /// Complete datasets, by their records.
    pub complete: Vec<DatasetRecord>,
    /// The pointer files that were written there.
    pub pointers: Pointers,
    /// The checkpoint to restart from, if the caches have none.
    pub current: Option<DatasetKey>,
    /// Datasets from which no restart worked, wherever they are.
    pub failed: BTreeSet<DatasetKey>,
    /// Datasets that the prefix does not have any more because somebody wanted it so.
    pub gone: BTreeSet<DatasetKey>,
}
