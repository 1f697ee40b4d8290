//! Pointer files: plain files and symbolic links at the top, the same on every node.
//!
//! Programs keep small files there that name a dataset (`latest`). One is replaced as a whole, and every
//! change has a version, so that the newer of two is known wherever they meet: after the loss of
//! nodes, when a node was away, in the prefix. A removed one stays known as removed, for the
//! same reason.
//!
//! Invariant: a version is given out once. Each epoch's leader takes a term above all it hears of, and
//! every member has put that term down before the first version of it is given out.

use crate::id::DatasetId;
use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest content of one, in bytes.
pub const POINTER_BYTES_MAX: usize = 1 << 20;
/// Content of all of them, in bytes.
pub const POINTERS_BYTES_MAX: usize = 16 << 20;
/// How many names, removed ones too.
pub const POINTERS_MAX: usize = 4096;

/// Which of two is newer.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Version {
    /// Of the leader that gave it out.
    pub term: u64,
    /// Counts in the term.
    pub number: u64,
}

impl Version {
    /// Of what another job has written, whose versions say nothing here: newer than nothing, older than all of ours.
    pub const OF_OTHERS: Self = Self { term: 0, number: 1 };
}

/// What one holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// A regular file's bytes.
    File(Vec<u8>),
    /// What a symbolic link says, unchecked: it is never followed by scrfs.
    Link(Vec<u8>),
}

impl Content {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::File(bytes) | Self::Link(bytes) => bytes.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A pointer file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pointer {
    /// What it holds.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since the Unix epoch.
    pub mtime: (i64, u32),
}

/// What is known under one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PointerRecord {
    /// Since when.
    pub version: Version,
    /// The newest dataset that was sealed before.
    pub after: Option<DatasetId>,
    /// The file; `None` when it was removed.
    pub pointer: Option<Pointer>,
}

impl PointerRecord {
    /// Whether this is what a name is to have that has `there`: a newer version, and, where another job has written
    /// that, a file of a later time. Of a removal no time is known.
    pub fn outdoes(&self, there: Option<&Self>) -> bool {
        let Some(there) = there else { return true };
        let when = |record: &Self| record.pointer.as_ref().map(|pointer| pointer.mtime);
        let is_of_another = there.version == Version::OF_OTHERS;
        self.version > there.version && (!is_of_another || when(self) > when(there))
    }
}

/// All pointer files a node, or the prefix, knows of.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Pointers {
    /// No leader of a lower term gives out versions any more.
    pub term: u64,
    /// By name.
    pub all: BTreeMap<Name, PointerRecord>,
}

impl Pointers {
    /// The file of that name.
    pub fn live(&self, name: &Name) -> Option<&Pointer> {
        self.all.get(name)?.pointer.as_ref()
    }

    /// The version known under that name; the lowest of all when none is.
    pub fn version(&self, name: &Name) -> Version {
        self.all
            .get(name)
            .map_or_else(Version::default, |known| known.version)
    }

    /// Takes one in, if it is newer than what is known; says whether it was.
    pub fn learn(&mut self, name: Name, record: PointerRecord) -> bool {
        let newer = record.version > self.version(&name);
        if newer {
            self.term = self.term.max(record.version.term);
            self.all.insert(name, record);
        }
        newer
    }

    /// Takes in everything that is newer.
    pub fn merge(&mut self, other: &Self) {
        self.term = self.term.max(other.term);
        for (name, record) in &other.all {
            self.learn(name.clone(), record.clone());
        }
    }

    /// Content of all of them, in bytes.
    pub fn bytes(&self) -> usize {
        let live = self.all.values().filter_map(|known| known.pointer.as_ref());
        live.map(|pointer| pointer.content.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(version: Version, mtime: Option<i64>) -> PointerRecord {
        PointerRecord {
            version,
            after: None,
            pointer: mtime.map(|seconds| Pointer {
                content: Content::File(Vec::new()),
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: (seconds, 0),
            }),
        }
    }

    #[test]
    fn in_a_job_versions_count_and_between_jobs_times() {
        let ours = |number, mtime| record(Version { term: 1, number }, mtime);
        let theirs = |mtime| record(Version::OF_OTHERS, mtime);
        assert!(ours(1, Some(5)).outdoes(None));
        assert!(ours(2, Some(4)).outdoes(Some(&ours(1, Some(5)))));
        assert!(ours(2, None).outdoes(Some(&ours(1, Some(5)))));
        assert!(!ours(1, Some(5)).outdoes(Some(&ours(1, Some(4)))));
        assert!(ours(1, Some(5)).outdoes(Some(&theirs(Some(4)))));
        assert!(!ours(1, Some(5)).outdoes(Some(&theirs(Some(5)))));
        assert!(!ours(1, None).outdoes(Some(&theirs(Some(5)))));
        assert!(!theirs(Some(6)).outdoes(Some(&theirs(Some(5)))));
    }

    fn records() -> impl Strategy<Value = Pointers> {
        let record = (0..4u64, 0..4u64, any::<Option<u8>>()).prop_map(|(term, number, byte)| {
            PointerRecord {
                version: Version { term, number },
                after: None,
                // One content a version, as leaders give them out.
                pointer: byte.map(|_| Pointer {
                    content: Content::File(vec![term as u8, number as u8]),
                    mode: 0o644,
                    uid: 0,
                    gid: 0,
                    mtime: (0, 0),
                }),
            }
        });
        proptest::collection::btree_map("[ab]", record, 0..3).prop_map(|all| Pointers {
            term: 4,
            all: all
                .into_iter()
                .filter_map(|(name, record)| Some((Name::new(name.as_bytes()).ok()?, record)))
                .collect(),
        })
    }

    proptest! {
        #[test]
        fn merging_keeps_the_newest_of_each_in_any_order(all in proptest::collection::vec(records(), 1..5)) {
            let mut forward = Pointers::default();
            all.iter().for_each(|one| forward.merge(one));
            let mut backward = Pointers::default();
            all.iter().rev().for_each(|one| backward.merge(one));
            for (name, record) in &forward.all {
                prop_assert_eq!(record.version, backward.version(name));
                for one in &all {
                    prop_assert!(one.version(name) <= record.version);
                }
            }
            prop_assert_eq!(forward.all.len(), backward.all.len());
        }
    }
}
