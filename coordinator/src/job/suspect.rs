//! Whether the dataset that the application restarts from is to blame when it dies.
//!
//! Rule: an application that twice died by itself before its next commit, both times restarted from the same
//! dataset, is not started from that one a third time: the dataset is marked failed, and the next
//! older one is offered. But only one dataset is blamed until something is committed again: when the
//! application dies from the next one as well, it is the application. Pure; nothing is marked here.

use scrfs::layout::run::RunSuspect;
use scrfs::name::Name;

/// Deaths from one dataset that make it the suspect.
const DEATHS_MAX: u32 = 2;

/// What is known of the dataset that was restarted from last.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspect(pub(super) RunSuspect);

impl Suspect {
    /// The application would be started from `restart`: the name of the dataset to blame instead, if
    /// that is the one.
    pub(super) fn blame(&mut self, restart: Option<&Name>) -> Option<Name> {
        if restart == self.0.from.as_ref() {
            let is_it = self.0.deaths >= DEATHS_MAX && !self.0.has_blamed;
            let blamed = self.0.from.take_if(|_| is_it)?;
            (self.0.deaths, self.0.has_blamed) = (0, true);
            return Some(blamed);
        }
        // After one was blamed, what comes first is the older one, and then what was committed.
        self.0.has_blamed &= self.0.from.is_none();
        self.0.from = restart.cloned();
        self.0.deaths = 0;
        None
    }

    /// The application has died, and no node with it.
    pub(super) fn died(&mut self) {
        self.0.deaths += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).expect("a name")
    }

    /// Launches from these in turn, each of which ends in a death; who is blamed before which.
    fn blamed(launches: &[&str]) -> Vec<(usize, String)> {
        let mut suspect = Suspect::default();
        let mut blamed = Vec::new();
        for (at, from) in launches.iter().enumerate() {
            if let Some(name) = suspect.blame(Some(&name(from))) {
                blamed.push((at, name.to_string()));
            } else {
                suspect.died();
            }
        }
        blamed
    }

    #[test]
    fn two_deaths_from_one_dataset_are_enough() {
        assert_eq!(blamed(&["b", "b", "b"]), [(2, "b".into())]);
        assert_eq!(blamed(&["a", "b", "a", "b", "a"]), []);
    }

    #[test]
    fn only_one_is_blamed_until_something_is_committed() {
        let without = ["c", "c", "c", "b", "b", "b", "b"];
        assert_eq!(blamed(&without), [(2, "c".into())]);
        let with = ["c", "c", "c", "b", "d", "d", "d", "b"];
        assert_eq!(blamed(&with), [(2, "c".into()), (6, "d".into())]);
    }

    #[test]
    fn no_dataset_is_to_blame_for_what_dies_without_one_or_with_its_node() {
        let mut suspect = Suspect::default();
        for _ in 0..4 {
            assert_eq!(suspect.blame(None), None);
            suspect.died();
        }
        // A node was lost each time.
        for _ in 0..4 {
            assert_eq!(suspect.blame(Some(&name("a"))), None);
        }
    }
}
