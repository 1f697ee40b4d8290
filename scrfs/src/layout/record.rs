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
    /// Sealed, and removed by a program: not shown, its name is free; kept as it is until a newer
    /// checkpoint is as safe.
    Removed {
        /// A newer checkpoint was there then. If not, it was the newest itself, and whoever removed
        /// it did not want to go back to it.
        overtaken: bool,
    },
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
    /// Removed by a program, and kept until a newer checkpoint is as safe.
    Removed,
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
            Self::Removed => "removed",
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
            Phase::Removed { .. } => State::Removed,
            Phase::Sealed if self.flushed.is_some() => State::Flushed,
            Phase::Sealed if self.flushing => State::Flushing,
            Phase::Sealed if self.protected.is_some() => State::Protected,
            Phase::Sealed => State::Sealed,
        }
    }

    /// Whether a program has removed it.
    pub fn is_removed(&self) -> bool {
        matches!(self.phase, Phase::Removed { .. })
    }

    /// Whether all of it is to be in the caches, for programs to see or behind the deletion fence.
    pub fn is_cached(&self) -> bool {
        self.phase == Phase::Sealed || self.is_removed()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::envelope::{Kind, crc32c, open, seal};

    fn record(phase: Phase) -> DatasetRecord {
        DatasetRecord {
            id: DatasetId(7),
            name: Name::new(b"ckpt.7").expect("a name"),
            committed_from: None,
            class: Class::Checkpoint,
            checkpoint: Some(3),
            phase,
            epoch: Epoch(2),
            created: 1,
            sealed: Some(2),
            protected: None,
            flushing: false,
            flushed: None,
            seal: None,
            error: None,
            mode: 0o755,
            uid: 0,
            gid: 0,
        }
    }

    fn golden(version: u8, phase: &[u8]) -> Vec<u8> {
        let before = b"\x07\x06ckpt.7\x00\x00\x01\x03";
        let after = b"\x02\x01\x01\x02\x00\x00\x00\x00\x00\xed\x03\x00\x00";
        let payload = [before, phase, after].concat();
        let mut bytes = b"SCRFS\n\x01".to_vec();
        bytes.push(version);
        bytes.extend((payload.len() as u64).to_le_bytes());
        bytes.extend(payload);
        let sum = crc32c(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    #[test]
    fn golden_bytes_of_a_record() {
        let removed = record(Phase::Removed { overtaken: true });
        assert_eq!(seal(Kind::Dataset, &removed), golden(2, b"\x06\x01"));
    }

    #[test]
    fn what_version_1_wrote_is_read() {
        for (phase, byte) in [
            (Phase::Open, b"\x00"),
            (Phase::Sealed, b"\x01"),
            (Phase::Evicted, b"\x05"),
        ] {
            let read = open::<DatasetRecord>(Kind::Dataset, &golden(1, byte));
            assert_eq!(read, Ok(record(phase)));
        }
    }
}
