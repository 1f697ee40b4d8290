//! What is remembered of a dataset, and of the epoch that last ran here.
//!
//! A [`DatasetRecord`] is the same on every node; it is written by the coordinator only, whole and
//! atomically, and the daemon shows what it says. What can be derived is derived: the state users
//! see is [`DatasetRecord::state`]. Times are milliseconds since the Unix epoch, UTC.

use crate::config::Class;
use crate::id::{DatasetId, DatasetKey, Epoch, Slot};
use crate::name::Name;
use crate::redundancy::{GeometryError, Scheme, SetGeometry};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMillis = u64;

/// A time of the clock as records have it.
pub fn millis(time: SystemTime) -> UnixMillis {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Checksums cover units of this many bytes where chunks are not smaller; also the size of a unit on the
/// wire.
pub const UNIT_BYTES: u32 = 256 << 10;

/// How far the life of a dataset has come, as far as it cannot be derived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Being written; never offered for restart.
    Open,
    /// Committed on every node; never changes again.
    Sealed,
    /// Was open when its run ended; not shown at the top, and never offered.
    Incomplete,
    /// Sealed, but more of it is gone than its scheme can rebuild, and the prefix has none.
    Lost,
    /// A restart from it did not work.
    Failed,
    /// Only the prefix has it.
    Evicted,
}

/// What one slot contributes to a sealed dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartSummary {
    /// Length of the part log, in bytes.
    pub log_bytes: u64,
    /// Regular files in it.
    pub files: u64,
    /// CRC-32C of the manifest's envelope up to the checksum at its end (with it, it would be the
    /// same for all): which manifest was voted with.
    pub manifest_crc: u32,
}

/// What was agreed when a dataset was sealed. Everything about its redundancy follows from this,
/// whatever the configuration says later.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// The epoch that decided.
    pub epoch: Epoch,
    /// How it is protected.
    pub scheme: Scheme,
    /// Parity is laid out in chunks of this many bytes.
    pub chunk_bytes: u64,
    /// Checksums are kept for units of this many bytes, a divisor of `chunk_bytes`.
    pub unit_bytes: u32,
    /// The redundancy sets, members in set order; every slot is in exactly one.
    pub sets: Vec<Vec<Slot>>,
    /// One a slot, in slot order.
    pub parts: Vec<PartSummary>,
}

impl Seal {
    /// The members of the set that `slot` belongs to.
    pub fn set_of(&self, slot: Slot) -> Option<&[Slot]> {
        self.sets
            .iter()
            .map(Vec::as_slice)
            .find(|set| set.contains(&slot))
    }

    /// The geometry of the set that `slot` belongs to; an error when the seal contradicts itself.
    pub fn geometry_of(&self, slot: Slot) -> Result<SetGeometry, GeometryError> {
        let set = self.set_of(slot).unwrap_or(&[]);
        let members = set
            .iter()
            .map(|&member| (member, self.part(member).map_or(0, |part| part.log_bytes)))
            .collect();
        SetGeometry::new(self.scheme, members, self.chunk_bytes)
    }

    /// What `slot` contributed.
    pub fn part(&self, slot: Slot) -> Option<&PartSummary> {
        self.parts.get(slot.0 as usize)
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts
            .iter()
            .fold(0, |sum, part| sum.saturating_add(part.log_bytes))
    }

    /// Regular files of all parts.
    pub fn files(&self) -> u64 {
        self.parts
            .iter()
            .fold(0, |sum, part| sum.saturating_add(part.files))
    }
}

/// Everything remembered of one dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// Its number.
    pub id: DatasetId,
    /// Its name: the temporary one while open, the committed one afterwards.
    pub name: Name,
    /// The name it was committed from, when that was another.
    pub committed_from: Option<Name>,
    /// Whether it may be dropped unflushed.
    pub class: Class,
    /// Which checkpoint it is, counting from 1 over the life of the prefix; given at the commit,
    /// `None` before it and for what is not a checkpoint.
    pub checkpoint: Option<u64>,
    /// How far it has come.
    pub phase: Phase,
    /// The epoch of the newest change of this record.
    pub epoch: Epoch,
    /// When the directory was made.
    pub created: UnixMillis,
    /// When it was sealed.
    pub sealed: Option<UnixMillis>,
    /// When every part survived the loss of others.
    pub protected: Option<UnixMillis>,
    /// Whether the prefix is being written now.
    pub flushing: bool,
    /// When the prefix had all of it.
    pub flushed: Option<UnixMillis>,
    /// What was agreed at the commit; present from `Sealed` on.
    pub seal: Option<Seal>,
    /// What last went wrong, for people.
    pub error: Option<String>,
    /// Mode, owner and group of its top directory.
    pub mode: u32,
    /// Owner of its top directory.
    pub uid: u32,
    /// Group of its top directory.
    pub gid: u32,
}

/// The state that users see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being written.
    Open,
    /// Left behind by a run that ended.
    Incomplete,
    /// Committed.
    Sealed,
    /// Survives what its scheme promises.
    Protected,
    /// Being copied to the prefix.
    Flushing,
    /// Complete in the prefix.
    Flushed,
    /// Only in the prefix.
    Evicted,
    /// Gone beyond repair.
    Lost,
    /// Restarting from it did not work.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Incomplete => "incomplete",
            Self::Sealed => "sealed",
            Self::Protected => "protected",
            Self::Flushing => "flushing",
            Self::Flushed => "flushed",
            Self::Evicted => "evicted",
            Self::Lost => "lost",
            Self::Failed => "failed",
        })
    }
}

impl DatasetRecord {
    /// What tells it from every other.
    pub fn key(&self) -> DatasetKey {
        DatasetKey {
            id: self.id,
            created: self.created,
        }
    }

    /// The state that users see.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Open => State::Open,
            Phase::Incomplete => State::Incomplete,
            Phase::Lost => State::Lost,
            Phase::Failed => State::Failed,
            Phase::Evicted => State::Evicted,
            Phase::Sealed if self.flushed.is_some() => State::Flushed,
            Phase::Sealed if self.flushing => State::Flushing,
            Phase::Sealed if self.protected.is_some() => State::Protected,
            Phase::Sealed => State::Sealed,
        }
    }

    /// Whether a program may restart from it: sealed in the cache, and a checkpoint.
    pub fn is_restartable(&self) -> bool {
        self.phase == Phase::Sealed && self.class != Class::Output
    }
}

/// What an epoch left on a node: who may be believed when two nodes disagree.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The newest epoch that began here.
    pub epoch: Epoch,
    /// The slot this node held in it.
    pub slot: Option<Slot>,
    /// The highest dataset number ever given out, as known here.
    pub last_dataset: u64,
    /// The highest checkpoint number ever given out, as known here.
    pub last_checkpoint: u64,
}
