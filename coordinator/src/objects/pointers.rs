//! Pointer files in an object store: each is an object of its content, a link one of what it says.
//!
//! Who has written one, and what, are objects below `.scrfs/turns/<name>/`, as in a directory ([`crate::pointing`]);
//! a turn has ended when there is an object that says so, and that of its beginning is removed then. Once it was one
//! object, `.scrfs/pointers`, which is only read.

use super::store::{Meta, encode};
use super::{CONTROL, ObjectPrefix};
use crate::part::report;
use crate::pointing::{self, Pointed};
use crate::prefix::PrefixError;
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::pointer::{Content, PointerRecord, Pointers};
use scrfs::layout::turn::{Turn, Turns, job_number};
use scrfs::name::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Above all turns.
const TURNS: &str = "turns";
/// How often a record that is on its way from one key to another is looked for.
const LOOKS: usize = 8;

pub(super) fn turns_of(name: &Name) -> String {
    format!("{CONTROL}/{TURNS}/{}", encode(name.as_bytes()))
}

/// The key of a turn that has ended, and of one that has begun.
fn keys_of(name: &Name, turn: Turn) -> [String; 2] {
    let (ended, begun) = turn.names();
    let below = turns_of(name);
    [format!("{below}/{ended}"), format!("{below}/{begun}")]
}

/// The name that [`encode`] has made a component of.
fn name_of(component: &str) -> Option<Name> {
    let mut bytes = Vec::with_capacity(component.len());
    let mut rest = component;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend(plain.as_bytes());
        bytes.push(u8::from_str_radix(coded.get(..2)?, 16).ok()?);
        rest = coded.get(2..)?;
    }
    bytes.extend(rest.as_bytes());
    let is_it = encode(&bytes) == component;
    is_it.then(|| Name::new(&bytes).ok())?
}

fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

fn read(found: &[Meta]) -> Turns {
    Turns::read(found.iter().map(|found| last(&found.key)))
}

impl ObjectPrefix {
    pub(crate) fn pointers(&self) -> Result<Pointers, PrefixError> {
        let mut here = self.old_pointers()?;
        for (name, found) in self.all_turns()? {
            self.add_pointer(&mut here, &name, read(&found))?;
        }
        Ok(here)
    }

    /// As it was kept in one object.
    fn old_pointers(&self) -> Result<Pointers, PrefixError> {
        let at = format!("{CONTROL}/pointers");
        match self.objects.get(&at)? {
            None => Ok(Pointers::default()),
            Some(bytes) => {
                envelope::open(Kind::Pointers, &bytes).map_err(|source| PrefixError::Damaged {
                    path: self.objects.name_of(&at),
                    source,
                })
            }
        }
    }

    /// What says who has written each name.
    fn all_turns(&self) -> Result<BTreeMap<Name, Vec<Meta>>, PrefixError> {
        let mut all: BTreeMap<Name, Vec<Meta>> = BTreeMap::new();
        for found in self.objects.list(&format!("{CONTROL}/{TURNS}"))? {
            let name = found.key.rsplit('/').nth(1).and_then(name_of);
            if let Some(name) = name {
                all.entry(name).or_default().push(found);
            }
        }
        Ok(all)
    }

    fn add_pointer(
        &self,
        here: &mut Pointers,
        name: &Name,
        mut turns: Turns,
    ) -> Result<(), PrefixError> {
        for _ in 0..LOOKS {
            here.term = here.term.max(turns.term());
            let Some(turn) = turns.newest_ended() else {
                return Ok(());
            };
            match self.told(name, turn) {
                Ok(Some(stored)) => {
                    here.term = here.term.max(stored.term);
                    let seen = pointing::seen_by(&self.job, turn, stored);
                    here.all.extend(seen.all);
                    return Ok(());
                }
                // Outdone since.
                Ok(None) => turns = self.turns(name)?,
                Err(error @ PrefixError::Damaged { .. }) => {
                    report("what a pointer file is, is not believed", &error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let path = self.objects.name_of(&turns_of(name));
        Err(PrefixError::Changed { path })
    }

    /// What a turn has put down, while there is one.
    fn told(&self, name: &Name, turn: Turn) -> Result<Option<Pointers>, PrefixError> {
        for key in keys_of(name, turn) {
            let Some(bytes) = self.objects.get(&key)? else {
                continue;
            };
            let path = self.objects.name_of(&key);
            return match pointing::decode(&bytes, name) {
                Ok(stored) => Ok(Some(stored)),
                Err(source) => Err(PrefixError::Damaged { path, source }),
            };
        }
        Ok(None)
    }

    /// Writes those that this job has not had there. Goes on after one that is refused; its error is what is
    /// returned.
    pub(crate) fn write_pointers(&self, due: &Pointers) -> Result<(), PrefixError> {
        let old = self.old_pointers()?;
        let at = At {
            prefix: self,
            term: due.term,
        };
        let mut first = Ok(());
        for (name, record) in &due.all {
            if record.version > old.version(name) {
                first = first.and(pointing::write(&at, &self.job, name, record));
            }
        }
        first
    }

    /// Finishes or removes what jobs have left that were killed while they wrote pointer files.
    pub(super) fn tidy_pointers(&self) -> Result<(), PrefixError> {
        let all = self.all_turns()?;
        if all.is_empty() {
            return Ok(());
        }
        let abandoned = self.abandoned_before()?;
        let job = job_number(&self.job);
        // The term is for turns that begin; here none does.
        let at = At {
            prefix: self,
            term: 0,
        };
        for (name, found) in all {
            let is_old = |found: &&Meta| abandoned.is_some_and(|then| found.modified < then);
            let old = found.iter().filter(is_old);
            let old: BTreeSet<&str> = old.map(|found| last(&found.key)).collect();
            let is_ours = |turn: Turn| {
                let (ended, begun) = turn.names();
                turn.job == job || old.contains(&*ended) || old.contains(&*begun)
            };
            pointing::tidy(&at, &name, &is_ours);
        }
        Ok(())
    }

    fn turns(&self, name: &Name) -> Result<Turns, PrefixError> {
        Ok(read(&self.objects.list(&turns_of(name))?))
    }
}

/// A prefix, where a leader of this term writes.
struct At<'a> {
    prefix: &'a ObjectPrefix,
    term: u64,
}

impl Pointed for At<'_> {
    fn place(&self, name: &Name) -> PathBuf {
        self.prefix.objects.name_of(&encode(name.as_bytes()))
    }

    fn turns(&self, name: &Name) -> Result<Turns, PrefixError> {
        self.prefix.turns(name)
    }

    fn begin(&self, name: &Name, turn: Turn, record: &PointerRecord) -> Result<(), PrefixError> {
        let [_, begun] = keys_of(name, turn);
        let bytes = pointing::encode(self.term, name, record);
        self.prefix.objects.put(&begun, bytes)
    }

    fn record(&self, name: &Name, turn: Turn) -> Result<Option<PointerRecord>, PrefixError> {
        let stored = self.prefix.told(name, turn)?;
        Ok(stored.and_then(|mut stored| stored.all.remove(name)))
    }

    fn write(&self, name: &Name, record: &PointerRecord) -> Result<(), PrefixError> {
        let key = encode(name.as_bytes());
        match record.pointer.as_ref().map(|pointer| &pointer.content) {
            Some(Content::File(bytes) | Content::Link(bytes)) => {
                self.prefix.objects.put(&key, bytes.clone())
            }
            None => self.prefix.objects.remove(&key),
        }
    }

    fn end(&self, name: &Name, turn: Turn) -> Result<(), PrefixError> {
        let [ended, begun] = keys_of(name, turn);
        let objects = &self.prefix.objects;
        if let Some(bytes) = objects.get(&begun)? {
            objects.put(&ended, bytes.to_vec())?;
            objects.remove(&begun)?;
        }
        Ok(())
    }

    fn forget(&self, name: &Name, turn: Turn) -> Result<(), PrefixError> {
        keys_of(name, turn)
            .iter()
            .try_for_each(|key| self.prefix.objects.remove(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_in_keys() {
        for bytes in [&b"latest"[..], b"a%FF", b"a\xff\n", "\u{e9} x\\".as_bytes()] {
            let name = Name::new(bytes).ok();
            assert!(name.is_some());
            assert_eq!(name_of(&encode(bytes)), name);
        }
        assert_eq!(name_of("a%F"), None);
        assert_eq!(name_of("a%+F"), None);
    }

    #[test]
    fn invariant_of_two_that_write_at_once_what_counts_is_there() {
        pointing::tests::invariant_what_counts_is_what_is_there(&|each| {
            let prefix = super::super::tests::in_memory();
            let at = At {
                prefix: &prefix,
                term: 1,
            };
            let read = || prefix.objects.get("latest").ok().flatten();
            each(&at, &|| read().unwrap_or_default().to_vec());
        });
    }
}
