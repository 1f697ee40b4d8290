//! Which host holds which position of the job, and who takes the place of one that is lost.
//!
//! A spare takes exactly the position of the host it replaces, so that every other rank stays where
//! its files are. A host that was lost never comes back. With no spare left a position stays empty
//! and the hosts behind it move up. Pure.

use super::hosts::Host;
use scrfs::layout::run::RunHost;
use std::collections::VecDeque;

/// Positions and spares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    positions: Vec<Option<Host>>,
    spares: VecDeque<Host>,
}

/// A position that changed hands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Who held it.
    pub lost: String,
    /// Who holds it now, if there was a spare.
    pub spare: Option<String>,
}

impl Placement {
    /// The first `needed` hosts hold a position each; the others are spares, in their order.
    pub fn new(hosts: Vec<Host>, needed: usize) -> Self {
        let mut spares = VecDeque::from(hosts);
        let positions = spares.drain(..needed.min(spares.len())).map(Some).collect();
        Self { positions, spares }
    }

    /// Goes on from what was kept.
    pub fn restore(positions: &[Option<RunHost>], spares: &[RunHost]) -> Self {
        let host = |(name, slots): &RunHost| Host {
            name: name.clone(),
            slots: *slots,
        };
        Self {
            positions: positions
                .iter()
                .map(|kept| kept.as_ref().map(host))
                .collect(),
            spares: spares.iter().map(host).collect(),
        }
    }

    /// To be kept: who has which position, and who waits for one.
    pub fn keep(&self) -> (Vec<Option<RunHost>>, Vec<RunHost>) {
        let kept = |host: &Host| (host.name.clone(), host.slots);
        let positions = self.positions.iter();
        let positions = positions.map(|host| host.as_ref().map(kept)).collect();
        (positions, self.spares.iter().map(kept).collect())
    }

    /// Puts spares in the place of hosts that are down.
    pub fn replace(&mut self, is_down: impl Fn(&str) -> bool) -> Vec<Change> {
        self.spares.retain(|host| !is_down(&host.name));
        let mut changes = Vec::new();
        for position in &mut self.positions {
            let Some(host) = position.take_if(|host| is_down(&host.name)) else {
                continue;
            };
            *position = self.spares.pop_front();
            let spare = position.as_ref().map(|spare| spare.name.clone());
            changes.push(Change {
                lost: host.name,
                spare,
            });
        }
        changes
    }

    /// Hosts with a position, in order.
    pub fn hosts(&self) -> Vec<Host> {
        self.positions.iter().flatten().cloned().collect()
    }

    /// Whether a host has a position.
    pub fn holds(&self, name: &str) -> bool {
        self.positions
            .iter()
            .flatten()
            .any(|host| host.name == name)
    }

    /// Spares that are left.
    pub fn spares(&self) -> usize {
        self.spares.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(count: usize, needed: usize) -> Placement {
        let host = |number| Host {
            name: format!("node{number}"),
            slots: None,
        };
        Placement::new((1..=count).map(host).collect(), needed)
    }

    fn names(placement: &Placement) -> Vec<String> {
        placement
            .hosts()
            .into_iter()
            .map(|host| host.name)
            .collect()
    }

    #[test]
    fn a_spare_takes_the_place_of_the_lost_host() {
        let mut placement = placement(6, 4);
        let changes = placement.replace(|name| name == "node3");
        assert_eq!(
            changes,
            [Change {
                lost: "node3".into(),
                spare: Some("node5".into())
            }]
        );
        assert_eq!(names(&placement), ["node1", "node2", "node5", "node4"]);
        placement.replace(|name| name == "node3" || name == "node5");
        assert_eq!(names(&placement), ["node1", "node2", "node6", "node4"]);
        assert_eq!(placement.spares(), 0);
    }

    #[test]
    fn without_a_spare_the_others_move_up() {
        let mut placement = placement(3, 3);
        let changes = placement.replace(|name| name == "node2");
        assert_eq!(
            changes,
            [Change {
                lost: "node2".into(),
                spare: None
            }]
        );
        assert_eq!(names(&placement), ["node1", "node3"]);
        assert!(placement.replace(|name| name == "node2").is_empty());
    }

    #[test]
    fn what_was_kept_is_what_there_was() {
        let mut placement = placement(4, 3);
        placement.replace(|name| ["node1", "node2"].contains(&name));
        let (positions, spares) = placement.keep();
        assert_eq!(Placement::restore(&positions, &spares), placement);
        assert_eq!(positions.len(), 3);
    }

    #[test]
    fn a_spare_that_is_down_takes_no_place() {
        let mut placement = placement(6, 4);
        placement.replace(|name| ["node1", "node5"].contains(&name));
        assert_eq!(names(&placement), ["node6", "node2", "node3", "node4"]);
        assert!(!placement.holds("node1"));
    }
}
