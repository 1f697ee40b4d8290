//! Writing pointer files to a prefix of either kind that other jobs write to as well, without a lock.
//!
//! Each job takes turns at a name ([`scrfs::layout::turn`]), and what was begun last is what the prefix is to
//! have:
//!
//! ```text
//! take    the turn is put down, with all of the pointer file: from now on the name is ours
//! write   the pointer file of the turn that counts, until none came meanwhile that counts more
//! end     the turns that were written say that they were there
//! tidy    turns of this job go that a newer version has outdone
//! ```
//!
//! Whoever writes looks *after* it: of all who write at once the last to write has seen the turns of the
//! others, which were put down before they wrote, and so what counts is what stays, whole. Whoever is
//! killed in between leaves a turn that has begun: the next start of its job, or of any after some time, writes
//! what counts then.

use crate::part::report;
use crate::prefix::{Cause, PrefixError};
use scrfs::layout::envelope::{self, EnvelopeError, Kind};
use scrfs::layout::pointer::{PointerRecord, Pointers, Version};
use scrfs::layout::turn::{Turn, Turns, job_number};
use scrfs::name::Name;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// How often what counts may change while it is written.
const CHANGES_MAX: usize = 64;

/// Where pointer files lie, with what says who wrote them.
pub(crate) trait Pointed {
    /// Where the file is, for people.
    fn place(&self, name: &Name) -> PathBuf;
    /// Who has written that name, or is about to.
    fn turns(&self, name: &Name) -> Result<Turns, PrefixError>;
    /// Puts a turn down, durably: it has begun.
    fn begin(&self, name: &Name, turn: Turn, record: &PointerRecord) -> Result<(), PrefixError>;
    /// What a turn is to write; `None` when there is no such turn any more.
    fn record(&self, name: &Name, turn: Turn) -> Result<Option<PointerRecord>, PrefixError>;
    /// Puts the file in its place, or removes it, as a whole and durably.
    fn write(&self, name: &Name, record: &PointerRecord) -> Result<(), PrefixError>;
    /// Says that the file of a turn was there. It being said, or the turn being gone, is fine.
    fn end(&self, name: &Name, turn: Turn) -> Result<(), PrefixError>;
    /// Removes a turn. None is fine.
    fn forget(&self, name: &Name, turn: Turn) -> Result<(), PrefixError>;
}

/// What a turn puts down: a record of that one name.
pub(crate) fn encode(term: u64, name: &Name, record: &PointerRecord) -> Vec<u8> {
    let all = [(name.clone(), record.clone())].into();
    envelope::seal(Kind::Pointers, &Pointers { term, all })
}

/// Reads what [`encode`] wrote of that name.
pub(crate) fn decode(bytes: &[u8], name: &Name) -> Result<Pointers, EnvelopeError> {
    let stored: Pointers = envelope::open(Kind::Pointers, bytes)?;
    let is_it = stored.all.len() == 1 && stored.all.contains_key(name);
    let of_others = || EnvelopeError::Decode("it is of another name".into());
    is_it.then_some(stored).ok_or_else(of_others)
}

/// What a turn has put down, as a job sees it: to others its versions, and its datasets' numbers, say nothing.
pub(crate) fn seen_by(job: &str, turn: Turn, stored: Pointers) -> Pointers {
    if turn.job == job_number(job) {
        return stored;
    }
    let all = stored.all.into_iter().map(|(name, record)| {
        let record = PointerRecord {
            version: Version::OF_OTHERS,
            after: None,
            ..record
        };
        (name, record)
    });
    Pointers {
        all: all.collect(),
        ..stored
    }
}

/// Writes one version of a pointer file of a job, if the job has not had it there. Who may have the name was
/// looked at before.
pub(crate) fn write(
    at: &(impl Pointed + ?Sized),
    job: &str,
    name: &Name,
    record: &PointerRecord,
) -> Result<(), PrefixError> {
    let job = job_number(job);
    let turns = at.turns(name)?;
    if turns.has_written(job, record.version) {
        return Ok(());
    }
    let own = turns.take(job, record.version);
    at.begin(name, own, record)?;
    if !settle(at, name)? {
        // Somebody has just removed everything; what was put down cannot be read when it is so again.
        at.begin(name, own, record)?;
        if !settle(at, name)? {
            let path = at.place(name);
            return Err(PrefixError::Changed { path });
        }
    }
    at.end(name, own)?;
    let turns = at.turns(name)?;
    forget(at, name, &turns, &|turn| turn.job == job)
}

/// Writes the file of the turn that counts, and of those that come to count meanwhile. False: there is none.
pub(crate) fn settle(at: &(impl Pointed + ?Sized), name: &Name) -> Result<bool, PrefixError> {
    let mut written = None;
    let mut damaged = BTreeSet::new();
    for _ in 0..CHANGES_MAX {
        let Some(turn) = at.turns(name)?.without(&damaged).newest() else {
            return Ok(false);
        };
        if written == Some(turn) {
            at.end(name, turn)?;
            return Ok(true);
        }
        match at.record(name, turn) {
            Ok(Some(record)) => {
                at.write(name, &record)?;
                written = Some(turn);
            }
            // Ended or outdone since: look again.
            Ok(None) => {}
            Err(error) if error.cause() == Cause::Damaged => {
                report("what a pointer file should be is left out", &error);
                damaged.insert(turn);
            }
            Err(error) => return Err(error),
        }
    }
    Err(PrefixError::Changed {
        path: at.place(name),
    })
}

/// Removes turns that tell nothing any more.
fn forget(
    at: &(impl Pointed + ?Sized),
    name: &Name,
    turns: &Turns,
    is_ours: &dyn Fn(Turn) -> bool,
) -> Result<(), PrefixError> {
    let outdone = turns.outdone().into_iter();
    let outdone = outdone.filter(|turn| is_ours(*turn));
    for turn in outdone.chain(turns.beyond()) {
        at.forget(name, turn)?;
    }
    Ok(())
}

/// What a start of a job does: writes what one that was killed has left undone, and removes what nobody needs.
/// `is_ours`: whether nobody else is at work on a turn. What cannot be done now is by the next start.
pub(crate) fn tidy(at: &(impl Pointed + ?Sized), name: &Name, is_ours: &dyn Fn(Turn) -> bool) {
    let tidied = || -> Result<(), PrefixError> {
        let begun = at.turns(name)?.begun();
        let left = begun.into_iter().filter(|turn| is_ours(*turn));
        let left: Vec<Turn> = left.collect();
        if !left.is_empty() && settle(at, name)? {
            for turn in left {
                at.end(name, turn)?;
            }
        }
        forget(at, name, &at.turns(name)?, is_ours)
    };
    if let Err(error) = tidied() {
        report("a pointer file is not as it should be", &error);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
