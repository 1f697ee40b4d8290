//! Identifiers, each its own type, so that no integer is ever taken for another.
//!
//! *Rank* and *epoch* live for one incarnation of the coordinators; *slot*, *node* and *dataset*
//! outlive it. All are plain values; none knows where it is stored.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A dataset's number: positive, growing by agreement for the life of a prefix, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DatasetId(pub u64);

/// What tells a dataset from every other of a prefix, also from one that another job, which never
/// heard of this one, gave the same number. Ordered by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DatasetKey {
    /// Its number.
    pub id: DatasetId,
    /// When its directory was made, in milliseconds since the Unix epoch.
    pub created: u64,
}

impl DatasetKey {
    /// From what [`fmt::Display`] makes of it, and from nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, created) = text.split_once('.')?;
        let key = Self {
            id: DatasetId(id.parse().ok()?),
            created: created.parse().ok()?,
        };
        (key.to_string() == text).then_some(key)
    }
}

/// One incarnation of the coordinators. Later epochs win over earlier ones.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// A coordinator's number within one epoch, `0..size`. Rank 0 decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Rank(pub u32);

/// A logical node position. A dataset's parts belong to slots; a spare takes over a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Slot(pub u32);

impl fmt::Display for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for DatasetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.created)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_comes_back_from_its_text(id: u64, created: u64) {
            let key = DatasetKey { id: DatasetId(id), created };
            prop_assert_eq!(DatasetKey::parse(&key.to_string()), Some(key));
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in [
            "",
            "5",
            "5.",
            ".5",
            "05.7",
            "5.+7",
            "5.7.1",
            "x.7",
            ".5.7.12.new",
            "5.-1",
        ] {
            assert_eq!(DatasetKey::parse(text), None, "{text}");
        }
    }
}
