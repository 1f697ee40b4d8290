//! Halt conditions: when a job is to end by itself, in time to keep what it has computed.
//!
//! ```text
//! <prefix>/.scrfs/halt/checkpoints   after so many more checkpoints     seconds   when so little time is left
//!                      before        so that it has ended by then       soon      at the next occasion
//!                      after         once it is later than that         now       at once
//!                      base          where counting of checkpoints began
//! ```
//!
//! Each condition is a file of its own, replaced whole, and any of them may hold: they combine. So
//! commands on several machines need no lock and lose nothing: of two that give the same condition the later
//! counts, wholly. Nobody reads a condition in order to write it: counting down is done by noting, once,
//! the number of the newest checkpoint when a request was first seen (`base`, written by the job that
//! obeys, which is one).
//!
//! A file that cannot be understood holds, because somebody wanted to halt. [`Conditions::holds`] is
//! pure; what stands above it reads and writes files, and knows no clock.

use crate::layout::record::UnixMillis;
use crate::store::posix::PosixStore;
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Conditions there are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// End at once, by force if need be.
    Now,
    /// End at the next occasion.
    Soon,
    /// End after so many more checkpoints.
    Checkpoints,
    /// Have ended by this time, in seconds since the Unix epoch.
    Before,
    /// End once it is later than this time, in seconds since the Unix epoch.
    After,
    /// End when no more than so many seconds of the allocation are left.
    Seconds,
}

impl Kind {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 6] = [
        Self::Now,
        Self::Soon,
        Self::Checkpoints,
        Self::Before,
        Self::After,
        Self::Seconds,
    ];

    /// Its name, which is its file's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Soon => "soon",
            Self::Checkpoints => "checkpoints",
            Self::Before => "before",
            Self::After => "after",
            Self::Seconds => "seconds",
        }
    }
}

/// One condition, as it was given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Condition {
    /// What its kind says; 0 where that says nothing.
    pub value: u64,
    /// Tells it from every other one, also from the same given again.
    pub id: u64,
    /// Who gave it, for people.
    pub by: String,
    /// When it was given, by the clock there.
    pub set: UnixMillis,
}

/// Where counting began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Base {
    /// Of which request.
    pub id: u64,
    /// The newest checkpoint's number then; 0 when there was none.
    pub checkpoint: u64,
}

/// All conditions of a prefix. `None`: there is a file, and it is not understood.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    found: BTreeMap<Kind, Option<Condition>>,
    base: Option<Base>,
}

/// What conditions are compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Situation {
    /// Seconds since the Unix epoch.
    pub time: u64,
    /// The number of the newest sealed checkpoint; 0 when there is none.
    pub checkpoint: u64,
    /// What is left of the allocation, if it ends.
    pub left: Option<Duration>,
    /// How much of it is wanted for the end, where no condition says.
    pub lead: Duration,
}

/// A condition that holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Halt {
    /// Which. `None`: the end of the allocation comes near, which needs no condition.
    pub kind: Option<Kind>,
    /// For people.
    pub why: String,
}

impl Conditions {
    /// What there is, by kind.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, Option<&Condition>)> {
        self.found
            .iter()
            .map(|(kind, condition)| (*kind, condition.as_ref()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn get(&self, kind: Kind) -> Option<&Condition> {
        self.found.get(&kind)?.as_ref()
    }

    /// The number of the checkpoint from which they are counted, once a job has noted it.
    pub fn checkpoints_base(&self) -> Option<u64> {
        let condition = self.get(Kind::Checkpoints)?;
        let base = self.base.filter(|base| base.id == condition.id)?;
        Some(base.checkpoint)
    }

    /// Checkpoints to come before the job ends, if they are counted.
    pub fn checkpoints_left(&self, newest: u64) -> Option<u64> {
        let condition = self.get(Kind::Checkpoints)?;
        let begun = self.checkpoints_base().unwrap_or(newest);
        let made = newest.saturating_sub(begun);
        Some(condition.value.saturating_sub(made))
    }

    /// What is to be noted before checkpoints can be counted.
    pub fn base_wanted(&self, newest: u64) -> Option<Base> {
        let condition = self.get(Kind::Checkpoints)?;
        self.checkpoints_base().is_none().then_some(Base {
            id: condition.id,
            checkpoint: newest,
        })
    }

    /// Whether seconds before an end are given, and nothing says when that is.
    pub fn wants_end(&self, is_known: bool) -> bool {
        !is_known && self.get(Kind::Seconds).is_some() && self.get(Kind::Before).is_none()
    }

    /// The most urgent condition that holds.
    pub fn holds(&self, now: &Situation) -> Option<Halt> {
        let lead = match self.get(Kind::Seconds) {
            Some(condition) => Duration::from_secs(condition.value),
            None => now.lead,
        };
        let is_near = now.left.is_some_and(|left| left <= lead) && !lead.is_zero();
        for (kind, condition) in &self.found {
            let Some(condition) = condition else {
                let why = format!("the condition `{}` cannot be read", kind.name());
                return Some(Halt {
                    kind: Some(*kind),
                    why,
                });
            };
            let (holds, why) = match kind {
                Kind::Now => (true, "to end now".to_owned()),
                Kind::Soon => (true, "to end".to_owned()),
                Kind::Checkpoints => {
                    let left = self.checkpoints_left(now.checkpoint);
                    let why = format!("to end after {} more checkpoints", condition.value);
                    (left == Some(0), why)
                }
                Kind::Before => {
                    let holds = now.time.saturating_add(lead.as_secs()) >= condition.value;
                    let why = format!("to end before a time, with {} s for it", lead.as_secs());
                    (holds, why)
                }
                Kind::After => (
                    now.time >= condition.value,
                    "to end after a time".to_owned(),
                ),
                Kind::Seconds => (is_near, format!("to end with {} s left", condition.value)),
            };
            if holds {
                return Some(Halt {
                    kind: Some(*kind),
                    why: format!("{} asked it {why}", condition.by),
                });
            }
        }
        is_near.then(|| Halt {
            kind: None,
            why: format!(
                "no more than {} s of the allocation are left",
                lead.as_secs()
            ),
        })
    }
}

/// Where a prefix keeps its conditions.
#[derive(Clone, Debug)]
pub struct HaltFiles {
    directory: PathBuf,
}

const BASE: &str = "base";

impl HaltFiles {
    /// Those of the prefix at `prefix`.
    pub fn new(prefix: &Path) -> Self {
        Self {
            directory: crate::layout::path::PrefixPaths::new(prefix).halt(),
        }
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.directory.join(kind.name())
    }

    /// Reads all.
    ///
    /// # Errors
    ///
    /// When a file cannot be read; one that is not understood is in the result.
    pub fn read(&self) -> Result<Conditions, StoreError> {
        let store = PosixStore::new();
        let mut conditions = Conditions::default();
        for kind in Kind::ALL {
            if let Some(bytes) = store.get(&self.path(kind))? {
                conditions
                    .found
                    .insert(kind, serde_json::from_slice(&bytes).ok());
            }
        }
        if conditions.found.contains_key(&Kind::Checkpoints) {
            let bytes = store.get(&self.directory.join(BASE))?;
            conditions.base = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        }
        Ok(conditions)
    }

    /// Gives a condition.
    ///
    /// # Errors
    ///
    /// When it cannot be written; the one before stays.
    pub fn give(&self, kind: Kind, condition: &Condition) -> Result<(), StoreError> {
        self.put(&self.path(kind), condition)
    }

    /// Notes where counting began.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn note(&self, base: &Base) -> Result<(), StoreError> {
        self.put(&self.directory.join(BASE), base)
    }

    /// Takes a condition back; none there is no error.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn clear(&self, kind: Kind) -> Result<(), StoreError> {
        PosixStore::new().remove(&self.path(kind))
    }

    fn put(&self, path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
        let mut bytes = serde_json::to_vec(value)
            .map_err(|error| StoreError::of("encode", path)(error.into()))?;
        bytes.push(b'\n');
        PosixStore::new().put(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(value: u64, id: u64) -> Condition {
        Condition {
            value,
            id,
            by: "me@here".into(),
            set: 5,
        }
    }

    fn of(given: &[(Kind, u64)]) -> Conditions {
        Conditions {
            found: given
                .iter()
                .map(|(kind, value)| (*kind, Some(condition(*value, 1))))
                .collect(),
            base: None,
        }
    }

    fn at(time: u64, left: Option<u64>) -> Situation {
        Situation {
            time,
            left: left.map(Duration::from_secs),
            ..Situation::default()
        }
    }

    fn kind(halt: Option<Halt>) -> Option<Kind> {
        halt.map(|halt| halt.kind.expect("a condition"))
    }

    #[test]
    fn each_condition_holds_in_its_time() {
        assert_eq!(of(&[]).holds(&at(100, Some(0))), None);
        let before = of(&[(Kind::Before, 100)]);
        assert_eq!(before.holds(&at(99, None)), None);
        assert_eq!(kind(before.holds(&at(100, None))), Some(Kind::Before));
        let led = Situation {
            lead: Duration::from_secs(10),
            ..at(90, None)
        };
        assert_eq!(kind(before.holds(&led)), Some(Kind::Before));
        assert_eq!(before.holds(&Situation { time: 89, ..led }), None);
        // What was asked for wins over what the run was started with.
        let both = of(&[(Kind::Before, 100), (Kind::Seconds, 5)]);
        assert_eq!(both.holds(&led), None);
        assert_eq!(kind(both.holds(&at(95, None))), Some(Kind::Before));
        let after = of(&[(Kind::After, 100)]);
        assert_eq!(after.holds(&led), None);
        assert_eq!(kind(after.holds(&at(100, None))), Some(Kind::After));
        assert!(!both.wants_end(false) && !before.wants_end(false));
        let seconds = of(&[(Kind::Seconds, 60)]);
        assert!(seconds.wants_end(false) && !seconds.wants_end(true));
        assert_eq!(seconds.holds(&at(0, None)), None);
        assert_eq!(seconds.holds(&at(0, Some(61))), None);
        assert_eq!(kind(seconds.holds(&at(0, Some(60)))), Some(Kind::Seconds));
        assert_eq!(
            kind(of(&[(Kind::Soon, 0)]).holds(&at(0, None))),
            Some(Kind::Soon)
        );
        let all = of(&[(Kind::Soon, 0), (Kind::Now, 0)]);
        assert_eq!(kind(all.holds(&at(0, None))), Some(Kind::Now));
    }

    #[test]
    fn the_end_of_the_allocation_needs_no_condition() {
        let near = Situation {
            lead: Duration::from_secs(30),
            ..at(0, Some(30))
        };
        let halt = of(&[]).holds(&near).expect("near");
        assert_eq!(halt.kind, None);
        let later = Situation {
            left: Some(Duration::from_secs(31)),
            ..near
        };
        assert_eq!(of(&[]).holds(&later), None);
        // Ten seconds are enough, says who was asked later.
        assert_eq!(of(&[(Kind::Seconds, 10)]).holds(&near), None);
    }

    #[test]
    fn checkpoints_are_counted_from_when_they_were_asked_for() {
        let mut conditions = of(&[(Kind::Checkpoints, 2)]);
        let seen = |number| Situation {
            checkpoint: number,
            ..Situation::default()
        };
        assert_eq!(conditions.holds(&seen(7)), None);
        let base = conditions.base_wanted(7).expect("not noted");
        assert_eq!(
            base,
            Base {
                id: 1,
                checkpoint: 7
            }
        );
        conditions.base = Some(base);
        assert_eq!(conditions.base_wanted(8), None);
        assert_eq!(conditions.checkpoints_left(8), Some(1));
        assert_eq!(conditions.holds(&seen(8)), None);
        assert_eq!(kind(conditions.holds(&seen(9))), Some(Kind::Checkpoints));
        // Asked again: counting begins anew, whatever was noted.
        let again = condition(2, 2);
        conditions.found.insert(Kind::Checkpoints, Some(again));
        assert_eq!(conditions.holds(&seen(9)), None);
        assert_eq!(conditions.base_wanted(9).map(|base| base.id), Some(2));
        assert_eq!(
            kind(of(&[(Kind::Checkpoints, 0)]).holds(&seen(3))),
            Some(Kind::Checkpoints)
        );
    }

    #[test]
    fn what_is_given_is_read_back_and_nonsense_holds() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = HaltFiles::new(directory.path());
        assert!(files.read().expect("none").is_empty());
        let given = condition(3, 9);
        files.give(Kind::Checkpoints, &given).expect("written");
        files
            .give(Kind::Seconds, &condition(60, 10))
            .expect("written");
        files
            .note(&Base {
                id: 9,
                checkpoint: 4,
            })
            .expect("written");
        let read = files.read().expect("readable");
        assert_eq!(read.get(Kind::Checkpoints), Some(&given));
        assert_eq!(read.checkpoints_left(5), Some(2));
        files.clear(Kind::Checkpoints).expect("there");
        files.clear(Kind::Checkpoints).expect("none is no error");
        assert_eq!(files.read().expect("readable").iter().count(), 1);
        std::fs::write(files.path(Kind::After), "{").expect("written");
        let read = files.read().expect("readable");
        let halt = read.holds(&Situation::default()).expect("holds");
        assert!(halt.why.contains("`after` cannot be read"), "{}", halt.why);
    }

    /// Writers that know nothing of each other, all at once: each reader sees whole files only.
    #[test]
    fn writers_at_once_leave_whole_conditions() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = HaltFiles::new(directory.path());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let files = &files;
                scope.spawn(move || {
                    for round in 0..40 {
                        let kind = Kind::ALL[(writer % 2) as usize + 2];
                        files
                            .give(kind, &condition(1000 + round, writer))
                            .expect("written");
                    }
                });
            }
            for _ in 0..200 {
                let read = files.read().expect("readable");
                assert!(read.iter().all(|(_, condition)| condition.is_some()));
            }
        });
        assert_eq!(files.read().expect("readable").iter().count(), 2);
    }
}
