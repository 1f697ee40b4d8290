//! Which job has written which version of a pointer file to the prefix, and in what order: names of files.
//!
//! ```text
//! <prefix>/.scrfs/turns/<name>/<number>.<term>.<number of the version>.<job>.begun   it is about to be there
//! <prefix>/.scrfs/turns/<name>/<number>.<term>.<number of the version>.<job>         it was there
//! ```
//!
//! Versions say which of two is newer in one job; jobs that do not know of each other give the same ones
//! out. So a job that writes a name takes a *turn* at it, with a number above all that it sees there, and what
//! was begun last is what the prefix is to have: between jobs the later write counts, as in any
//! directory. In a job it is the higher version, whenever it was written, so that a coordinator that was
//! declared dead changes nothing. Of two turns of one number that of the higher job counts: any
//! order will do, if all have the same.
//!
//! A file here is made whole and never changed, but for the end of its name. That there is any says that the name
//! is ours. Pure: no I/O.

use super::envelope::crc32c;
use super::pointer::Version;
use std::collections::BTreeSet;
use std::fmt;

/// Ends the name of a turn of which nobody knows yet that the file is there.
const BEGUN: &str = ".begun";

/// So many jobs later the last turn of a job may go.
const JOBS_KEPT: usize = 64;

/// One job's writing of one version of a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Turn {
    /// Above all turns at this name that its job saw when it was taken.
    pub number: u64,
    /// The job: [`job_number`] of its name.
    pub job: u32,
    /// In that job.
    pub version: Version,
}

/// What stands for a job in names of turns.
pub fn job_number(job: &str) -> u32 {
    crc32c(job.as_bytes())
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { term, number } = self.version;
        write!(f, "{}.{term}.{number}.{:08x}", self.number, self.job)
    }
}

impl Turn {
    /// Its file's name, and that until the file it tells of is there.
    pub fn names(self) -> (String, String) {
        (self.to_string(), format!("{self}{BEGUN}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split('.');
        let mut next = || words.next();
        let turn = Self {
            number: next()?.parse().ok()?,
            version: Version {
                term: next()?.parse().ok()?,
                number: next()?.parse().ok()?,
            },
            job: u32::from_str_radix(next()?, 16).ok()?,
        };
        (turn.to_string() == text).then_some(turn)
    }
}

/// All turns at one name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Turns {
    begun: BTreeSet<Turn>,
    ended: BTreeSet<Turn>,
}

impl Turns {
    /// What names of files say. Others than those of turns say nothing.
    pub fn read<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut turns = Self::default();
        for name in names {
            match name.strip_suffix(BEGUN) {
                Some(turn) => turns.begun.extend(Turn::parse(turn)),
                None => turns.ended.extend(Turn::parse(name)),
            }
        }
        turns
    }

    /// Whether nobody has taken one.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.ended.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Turn> + Clone {
        self.begun.union(&self.ended)
    }

    /// Those that have begun, and nobody says more.
    pub fn begun(&self) -> BTreeSet<Turn> {
        &self.begun - &self.ended
    }

    /// The highest term of a version.
    pub fn term(&self) -> u64 {
        let terms = self.all().map(|turn| turn.version.term);
        terms.max().unwrap_or(0)
    }

    /// Without these.
    #[must_use]
    pub fn without(mut self, these: &BTreeSet<Turn>) -> Self {
        self.begun.retain(|turn| !these.contains(turn));
        self.ended.retain(|turn| !these.contains(turn));
        self
    }

    /// The one that counts: whose file the prefix is to have.
    pub fn newest(&self) -> Option<Turn> {
        newest(self.all())
    }

    /// The one that counts of those whose file was there.
    pub fn newest_ended(&self) -> Option<Turn> {
        newest(self.ended.iter())
    }

    /// Whether a job has had this version there, or a newer one.
    pub fn has_written(&self, job: u32, version: Version) -> bool {
        let mut ended = self.ended.iter();
        ended.any(|turn| turn.job == job && turn.version >= version)
    }

    /// The turn of a job at writing this version: the one that it has begun, or one after all others.
    pub fn take(&self, job: u32, version: Version) -> Turn {
        let is_it = |turn: &&Turn| turn.job == job && turn.version == version;
        let last = self.all().map(|turn| turn.number).max().unwrap_or(0);
        let new = Turn {
            number: last.saturating_add(1),
            job,
            version,
        };
        self.all().find(is_it).copied().unwrap_or(new)
    }

    /// Those of jobs that have had a newer version there: they tell nothing any more.
    pub fn outdone(&self) -> Vec<Turn> {
        let is_outdone = |turn: &&Turn| {
            let mut ended = self.ended.iter();
            ended.any(|other| other.job == turn.job && is_before(turn, other))
        };
        self.all().filter(is_outdone).copied().collect()
    }

    /// The last turns of jobs, after which very many others have ended theirs. A job that goes on after so
    /// many is taken for one that has written nothing yet; no clock says that it will not.
    pub fn beyond(&self) -> Vec<Turn> {
        let may_go = |turn: &&Turn| {
            let mut of_it = self.all().filter(|other| other.job == turn.job);
            let of_others = self.ended.iter().filter(|other| other.job != turn.job);
            let is_last = of_it.all(|other| other == *turn);
            let after: BTreeSet<u32> = of_others
                .filter(|other| is_before(turn, other))
                .map(|other| other.job)
                .collect();
            is_last && after.len() >= JOBS_KEPT && self.newest() != Some(**turn)
        };
        self.all().filter(may_go).copied().collect()
    }
}

fn is_before(turn: &Turn, other: &Turn) -> bool {
    match turn.job == other.job {
        true => turn.version < other.version,
        false => turn < other,
    }
}

fn newest<'a>(turns: impl Iterator<Item = &'a Turn> + Clone) -> Option<Turn> {
    let of_their_jobs = turns.clone().filter(|turn| {
        let mut others = turns.clone();
        !others.any(|other| other.job == turn.job && is_before(turn, other))
    });
    of_their_jobs.max().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn turns() -> impl Strategy<Value = Turns> {
        let turn = (1..5u64, 1..3u32, 1..4u64, any::<bool>());
        proptest::collection::vec(turn, 0..7).prop_map(|all| {
            let names = all.into_iter().map(|(number, job, version, has_ended)| {
                let version = Version {
                    term: 1,
                    number: version,
                };
                let (ended, begun) = Turn {
                    number,
                    job,
                    version,
                }
                .names();
                if has_ended { ended } else { begun }
            });
            let names: Vec<String> = names.collect();
            Turns::read(names.iter().map(String::as_str))
        })
    }

    #[test]
    fn names_are_read_as_they_are_written_and_others_are_not() {
        let turn = Turn {
            number: 3,
            job: 0x1f,
            version: Version { term: 4, number: 1 },
        };
        let (ended, begun) = turn.names();
        assert_eq!(ended, "3.4.1.0000001f");
        assert_eq!(begun, "3.4.1.0000001f.begun");
        let others = [
            ".3.4.1.0000001f.new",
            "3.4.1",
            "3.4.1.1f",
            "03.4.1.0000001f",
        ];
        let all = Turns::read([ended.as_str()].into_iter().chain(others));
        assert_eq!(all.newest_ended(), Some(turn));
        assert_eq!(all.begun, BTreeSet::new());
        assert_eq!(Turns::read(others.into_iter()), Turns::default());
        assert_eq!(
            Turns::read([begun.as_str()].into_iter()).newest_ended(),
            None
        );
    }

    #[test]
    fn between_jobs_the_later_counts_and_in_one_the_newer() {
        let read = |names: &[&str]| Turns::read(names.iter().copied());
        let newest = |names: &[&str]| read(names).newest().map(|turn| turn.to_string());
        let later = newest(&["1.9.9.0000000a", "2.1.1.0000000b"]);
        assert_eq!(later.as_deref(), Some("2.1.1.0000000b"));
        let newer = newest(&["1.5.7.0000000a", "2.5.6.0000000a.begun"]);
        assert_eq!(newer.as_deref(), Some("1.5.7.0000000a"));
        // The late one of a job does not bring that job before another either.
        let late = ["1.5.7.0000000a", "2.1.1.0000000b", "3.5.6.0000000a"];
        assert_eq!(newest(&late).as_deref(), Some("2.1.1.0000000b"));
    }

    #[test]
    fn turns_of_very_many_jobs_are_not_kept() {
        let name = |job: u64| format!("{job}.1.1.{job:08x}");
        let names: Vec<String> = (1..=70).map(name).collect();
        let all = Turns::read(names.iter().map(String::as_str));
        assert_eq!(all.outdone(), []);
        let beyond: Vec<u32> = all.beyond().iter().map(|turn| turn.job).collect();
        assert_eq!(beyond, [1, 2, 3, 4, 5, 6]);
        // One that counts, or of which more is there, stays.
        let newer = "1.2.1.00000001".to_owned();
        let two = names.iter().chain([&newer]).map(String::as_str);
        assert!(Turns::read(two).beyond().iter().all(|turn| turn.job != 1));
    }

    proptest! {
        #[test]
        fn what_is_taken_next_counts_and_what_is_outdone_says_nothing(all in turns(), job in 1..3u32) {
            let version = Version { term: 2, number: 1 };
            let mut with = all.clone();
            let turn = all.take(job, version);
            with.begun.insert(turn);
            prop_assert_eq!(with.newest(), Some(turn));
            prop_assert_eq!(with.take(job, version), turn);
            let rest = all.clone().without(&all.outdone().into_iter().collect());
            prop_assert_eq!(rest.newest_ended(), all.newest_ended());
            prop_assert_eq!(rest.newest(), all.newest());
            prop_assert_eq!(rest.is_empty(), all.is_empty());
        }
    }
}
