//! What a prefix remembers of each dataset in it.
//!
//! One entry a dataset, at `<prefix>/.scrfs/index/<key>`. It is the truth about the prefix: a
//! directory without an entry is not ours, whatever it is called. An entry is written *before* the
//! dataset's directory gets its name ([`EntryState::Flushing`], when every byte has been checked)
//! and again after it ([`EntryState::Complete`]), so that a crash between the two can be finished
//! by anybody who reads it. Times are milliseconds since the Unix epoch, UTC.

use super::envelope::{EnvelopeError, Kind, open, seal};
use super::record::{DatasetRecord, UnixMillis};
use crate::id::{DatasetKey, Epoch};
use crate::name::Name;
use serde::{Deserialize, Serialize};

/// How far the prefix has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EntryState {
    /// All of it is in the prefix and checked, but may not have its name yet.
    Flushing,
    /// Under its name, whole.
    Complete,
}

/// The dataset that had the name before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// Which it is.
    pub key: DatasetKey,
    /// Inode number of its directory.
    pub inode: u64,
}

/// One dataset of the prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexEntry {
    /// As it was when it was flushed, with its seal: what is needed to bring it back.
    pub record: DatasetRecord,
    /// How far the prefix has it.
    pub state: EntryState,
    /// The epoch whose attempt it is: which directory below `inflight/<key>/` it came from.
    pub attempt: Epoch,
    /// Inode number of its directory, which a rename keeps: tells our directory from another that
    /// was put under its name. Another number is no proof against it: prefixes are copied.
    pub inode: u64,
    /// What it takes the name from, while the exchange is under way.
    pub replaces: Option<Replaced>,
    /// When all of it was in the prefix.
    pub flushed: UnixMillis,
    /// Bytes of all part logs.
    pub bytes: u64,
    /// Regular files of all parts.
    pub files: u64,
    /// The job that flushed it.
    pub job: String,
    /// Written by somebody else, and taken in as it lay there: never removed unasked.
    pub adopted: bool,
}

/// The checkpoint that somebody chose to restart from: it holds until a newer one is complete.
///
/// So nothing has to be written when a checkpoint is flushed for the restart to move forward, and two
/// jobs that flush at once cannot move it back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Which.
    pub key: DatasetKey,
    /// The newest dataset that was flushed when it was chosen.
    pub newest: DatasetKey,
    /// The last job whose configuration chose one, and which: it does so once.
    pub asked: Option<(String, Name)>,
}

impl Choice {
    /// As it lies on disk.
    pub fn encode(&self) -> Vec<u8> {
        seal(Kind::Choice, self)
    }

    /// From what lies on disk.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        open(Kind::Choice, bytes)
    }
}

impl IndexEntry {
    /// Which dataset it is.
    pub fn key(&self) -> DatasetKey {
        self.record.key()
    }

    /// As it lies on disk.
    pub fn encode(&self) -> Vec<u8> {
        seal(Kind::IndexEntry, self)
    }

    /// From what lies on disk.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        open(Kind::IndexEntry, bytes)
    }

    /// Whether a restart may read it from the prefix.
    pub fn is_complete(&self) -> bool {
        self.state == EntryState::Complete
    }
}
