//! What a verify has found: how much was read, what was damaged, and what became of it.
//!
//! Findings of several nodes add up, in any order. Their size is bounded: of what is damaged the first
//! [`PROBLEMS_MAX`] are told by place, the others only counted; of slots that could not be repaired all
//! are named, for what becomes of the dataset is decided by them.

use crate::id::Slot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Damage that is told by place.
pub const PROBLEMS_MAX: usize = 64;

/// What is kept of a dataset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// Files of a slot.
    Data,
    /// Its parity, or the copies that it has of a partner.
    Parity,
    /// Its manifest and checksums.
    Metadata,
    /// Manifest and checksums that are kept for another slot.
    Copy,
    /// The record of the dataset.
    Record,
    /// Files of a slot in the prefix.
    Prefix,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Parity => "parity",
            Self::Metadata => "metadata",
            Self::Copy => "copy",
            Self::Record => "record",
            Self::Prefix => "prefix",
        })
    }
}

/// Something that is not what was stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Of which slot.
    pub slot: Slot,
    /// What it is.
    pub kept: Kept,
    /// The file, on the node that has it.
    pub path: String,
    /// Where in the stream, in bytes; none where it is all of the file.
    pub offset: Option<u64>,
    /// It is again what was stored.
    pub repaired: bool,
    /// What was found, in words.
    pub words: String,
}

/// What a verify has found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// Bytes that were held against a checksum.
    pub bytes: u64,
    /// In so many units.
    pub units: u64,
    /// Units that have no checksum yet: nothing can be said of them.
    pub unknown: u64,
    /// Units and records that were not what was stored.
    pub damaged: u64,
    /// Of them, those that are again.
    pub repaired: u64,
    /// The first of them.
    pub problems: Vec<Problem>,
    /// Slots of which files are still damaged.
    pub spoilt: BTreeSet<Slot>,
    /// Slots of which parity is still damaged.
    pub unguarded: BTreeSet<Slot>,
}

impl Findings {
    /// Notes something damaged.
    pub fn note(&mut self, problem: Problem) {
        self.damaged += 1;
        self.repaired += u64::from(problem.repaired);
        if !problem.repaired {
            match problem.kept {
                Kept::Data => self.spoilt.insert(problem.slot),
                Kept::Parity => self.unguarded.insert(problem.slot),
                Kept::Metadata | Kept::Copy | Kept::Record | Kept::Prefix => false,
            };
        }
        self.tell(problem);
    }

    /// What is still damaged is told before what is not.
    fn tell(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else if !problem.repaired
            && let Some(other) = self.problems.iter_mut().find(|other| other.repaired)
        {
            *other = problem;
        }
    }

    /// Takes in what somebody else has found.
    pub fn add(&mut self, other: Self) {
        let sums = [
            (&mut self.bytes, other.bytes),
            (&mut self.units, other.units),
            (&mut self.unknown, other.unknown),
            (&mut self.damaged, other.damaged),
            (&mut self.repaired, other.repaired),
        ];
        for (sum, more) in sums {
            *sum = sum.saturating_add(more);
        }
        for problem in other.problems {
            self.tell(problem);
        }
        self.spoilt.extend(other.spoilt);
        self.unguarded.extend(other.unguarded);
    }

    /// Whether everything is as it was stored, now.
    pub fn is_sound(&self) -> bool {
        self.damaged == self.repaired
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(slot: u32, kept: Kept, repaired: bool) -> Problem {
        Problem {
            slot: Slot(slot),
            kept,
            path: "/a".into(),
            offset: Some(0),
            repaired,
            words: "damaged".into(),
        }
    }

    #[test]
    fn findings_add_up_in_any_order_and_stay_small() {
        let mut one = Findings::default();
        for _ in 0..100 {
            one.note(problem(1, Kept::Data, true));
        }
        let mut other = Findings::default();
        other.note(problem(2, Kept::Data, false));
        other.note(problem(3, Kept::Parity, false));
        let (mut sum, mut mus) = (one.clone(), other.clone());
        sum.add(other);
        mus.add(one);
        for found in [sum, mus] {
            assert_eq!((found.damaged, found.repaired), (102, 100));
            assert!(!found.is_sound());
            assert_eq!(found.problems.len(), PROBLEMS_MAX);
            assert_eq!(found.problems.iter().filter(|it| !it.repaired).count(), 2);
            assert_eq!(found.spoilt, BTreeSet::from([Slot(2)]));
            assert_eq!(found.unguarded, BTreeSet::from([Slot(3)]));
        }
    }
}
