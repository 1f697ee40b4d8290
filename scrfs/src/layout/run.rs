//! What a supervisor must know to go on with a job that another one began: one small record in the prefix.
//!
//! The file of a run is named after its *mark*, a random number that all its launches carry, and the
//! *number* of the supervisor. Each supervisor of a run has a higher number than the one before, and
//! the highest is the one that counts; who finds one above its own ends. Numbers are taken by making
//! the file, which only one can.
//!
//! A record without `arguments` is a *tombstone*: the run is over, and somebody else has its nodes.

use super::envelope::{self, EnvelopeError, Kind};
use super::record::UnixMillis;
use crate::id::Epoch;
use crate::name::Name;
use serde::{Deserialize, Serialize};

/// Which supervisor of which run: the name of its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RunKey {
    /// Of the run.
    pub mark: u64,
    /// Of the supervisor; later ones have higher ones.
    pub number: u64,
}

impl std::fmt::Display for RunKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}.{}", self.mark, self.number)
    }
}

impl RunKey {
    /// Reads what [`std::fmt::Display`] wrote, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let (mark, number) = text.split_once('.')?;
        let key = Self {
            mark: u64::from_str_radix(mark, 16).ok()?,
            number: number.parse().ok()?,
        };
        (key.to_string() == text).then_some(key)
    }
}

/// A host and the processes its host file gives it.
pub type RunHost = (String, Option<u32>);

/// A launch of the application. Times are milliseconds since the run began.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunLaunch {
    /// It began.
    pub began: u64,
    /// It ended, and how.
    pub ended: Option<RunEnd>,
    /// Checkpoints it has made.
    pub checkpoints: u64,
    /// The last of them was seen.
    pub last: Option<u64>,
}

/// How a launch ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunEnd {
    /// When.
    pub at: u64,
    /// In words.
    pub how: String,
    /// Nothing of it is to be computed again.
    pub is_well: bool,
}

/// The dataset that deaths are counted for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RunSuspect {
    /// Which.
    pub from: Option<Name>,
    /// How many.
    pub deaths: u32,
    /// One was blamed, and nothing has been committed since.
    pub has_blamed: bool,
}

/// All that a supervisor goes on from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RunRecord {
    /// The job.
    pub job: String,
    /// Where the supervisor runs, and as which process: for people.
    pub host: String,
    /// See `host`.
    pub process: u32,
    /// The run began, by the clock of its first supervisor.
    pub begun: UnixMillis,
    /// The words behind `scrfs run`. None: a tombstone.
    pub arguments: Vec<String>,
    /// Where they were said.
    pub directory: String,
    /// The environment that belongs to them.
    pub environment: Vec<(String, String)>,
    /// The newest epoch that was begun, or is about to be.
    pub epoch: Epoch,
    /// How many were.
    pub epochs: u64,
    /// Who has which position.
    pub positions: Vec<Option<RunHost>>,
    /// Who waits for one.
    pub spares: Vec<RunHost>,
    /// Hosts the user does not want.
    pub excluded: Vec<String>,
    /// Hosts that were given up, why, and whether they had lived before.
    pub down: Vec<(String, String, bool)>,
    /// All launches so far.
    pub launches: Vec<RunLaunch>,
    /// The newest checkpoint's number; 0 when there is none.
    pub newest: u64,
    /// Whom to blame for deaths.
    pub suspect: RunSuspect,
    /// The last launch's exit code.
    pub code: Option<u8>,
    /// There is no further launch: what is left is to flush.
    pub is_over: bool,
}

impl RunRecord {
    /// As it is on disk.
    pub fn encode(&self) -> Vec<u8> {
        envelope::seal(Kind::Run, self)
    }

    /// Reads what [`Self::encode`] made.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        envelope::open(Kind::Run, bytes)
    }

    /// Nobody is to go on with it.
    pub fn is_tombstone(&self) -> bool {
        self.arguments.is_empty()
    }

    /// All hosts it may use, or has given up.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let placed = self.positions.iter().flatten().chain(&self.spares);
        let down = self.down.iter().map(|(host, ..)| host.as_str());
        placed.map(|(host, _)| host.as_str()).chain(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let key = RunKey {
            mark: 0x1f,
            number: 7,
        };
        assert_eq!(key.to_string(), "000000000000001f.7");
        assert_eq!(RunKey::parse("000000000000001f.7"), Some(key));
        for other in [
            "",
            "1f.7",
            "000000000000001F.7",
            "000000000000001f.07",
            "000000000000001f.+7",
            "000000000000001f",
            "000000000000001f.7.new",
            ".000000000000001f.7",
        ] {
            assert_eq!(RunKey::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>) {
            let _ = RunRecord::decode(&bytes);
            let _ = envelope::open::<RunRecord>(Kind::Run, &envelope::seal(Kind::Run, &bytes));
        }

        #[test]
        fn what_was_written_comes_back(job: String, arguments: Vec<String>, newest: u64, down: Vec<(String, String, bool)>) {
            let record = RunRecord { job, arguments, newest, down, ..RunRecord::default() };
            prop_assert_eq!(RunRecord::decode(&record.encode()), Ok(record));
        }
    }
}
