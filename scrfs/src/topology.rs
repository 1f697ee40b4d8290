//! Redundancy sets: which slots protect each other.
//!
//! A *failure group* is what dies together: a node, or a switch, rack or power supply as the
//! configuration says. Members of one set never share a failure group, so that the loss of a
//! group costs each set one member at most.
//!
//! Invariants: every slot is in exactly one set; sizes differ by one at most; the answer depends
//! on the arguments alone, so every node finds the same. A set is smaller than asked for only
//! when there are too few slots, or when a group is so large that more sets are needed to keep
//! its slots apart. Names are only compared; schemes and their tolerances are not known here.

use crate::id::Slot;
use std::collections::BTreeMap;

/// Why there are no such sets.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopologyError {
    /// A set of less than two protects nothing.
    #[error(
        "a redundancy set of {0} protects nothing: set redundancy.set_size to 2 or more, \
         or redundancy.scheme to \"single\""
    )]
    SetSize(u32),
    /// One failure group has so many of the slots that they cannot all be protected by others.
    #[error(
        "failure group {group:?} has {in_group} of {slots} nodes, more than half, so that not \
         each of them finds a partner outside: use a finer redundancy.group (\"node\"), \
         or add nodes of other groups"
    )]
    GroupTooLarge {
        /// The group.
        group: String,
        /// How many slots are in it.
        in_group: usize,
        /// How many slots there are.
        slots: usize,
    },
    /// More slots than slot numbers.
    #[error("{0} slots are more than can be numbered")]
    TooManySlots(usize),
}

/// The redundancy sets of the slots `0..groups.len()`, where `groups[i]` is the failure group of
/// slot i; members of each set in ascending order of slots, which is their set order. By default
/// each node is its own group: pass node names.
///
/// One slot alone is a set of one; its scheme can only be single.
///
/// # Errors
///
/// [`TopologyError`] when `set_size` is less than 2, or a group has more than half of the slots.
pub fn redundancy_sets<G: AsRef<str>>(
    groups: &[G],
    set_size: u32,
) -> Result<Vec<Vec<Slot>>, TopologyError> {
    if set_size < 2 {
        return Err(TopologyError::SetSize(set_size));
    }
    let slots = groups.len();
    if u32::try_from(slots).is_err() {
        return Err(TopologyError::TooManySlots(slots));
    }
    if slots <= 1 {
        return Ok((0..slots).map(|_| vec![Slot(0)]).collect());
    }
    // Groups in the order of their first slot: names may sort differently than nodes are numbered.
    let mut number_of: BTreeMap<&str, usize> = BTreeMap::new();
    let mut members: Vec<Vec<Slot>> = Vec::new();
    for (slot, group) in (0..).map(Slot).zip(groups) {
        let number = *number_of.entry(group.as_ref()).or_insert_with(|| {
            members.push(Vec::new());
            members.len() - 1
        });
        members[number].push(slot);
    }
    let largest = members.iter().map(Vec::len).max().unwrap_or(0);
    let wanted = slots / usize::try_from(set_size).unwrap_or(usize::MAX);
    let count = wanted.max(largest).max(1);
    if slots / count < 2 {
        let group = members
            .iter()
            .find(|group| group.len() == largest)
            .and_then(|group| groups.get(usize::try_from(group.first()?.0).ok()?));
        let group = group.map_or_else(String::new, |group| group.as_ref().to_owned());
        return Err(TopologyError::GroupTooLarge {
            group,
            in_group: largest,
            slots,
        });
    }
    // Dealt out like cards, group after group: a group has at most `count` slots, and any `count`
    // in a row go to different sets.
    let mut sets = vec![Vec::with_capacity(slots / count + 1); count];
    for (turn, slot) in members.into_iter().flatten().enumerate() {
        sets[turn % count].push(slot);
    }
    sets.iter_mut().for_each(|set| set.sort_unstable());
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("node{i}")).collect()
    }

    #[test]
    fn nodes_by_themselves_are_divided_evenly() {
        let sizes = |n, set_size| -> Vec<usize> {
            let sets = redundancy_sets(&nodes(n), set_size).expect("valid");
            sets.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(0, 8), Vec::<usize>::new());
        assert_eq!(sizes(1, 8), [1]);
        assert_eq!(sizes(3, 8), [3]);
        assert_eq!(sizes(15, 8), [15]);
        assert_eq!(sizes(16, 8), [8, 8]);
        assert_eq!(sizes(35, 8), [9, 9, 9, 8]);
    }

    #[test]
    fn a_large_group_makes_more_and_smaller_sets() {
        let groups = ["a", "a", "a", "b", "b", "c"];
        let sets = redundancy_sets(&groups, 6).expect("half of the slots is possible");
        let slots = |set: &[u32]| set.iter().copied().map(Slot).collect::<Vec<_>>();
        assert_eq!(sets, [slots(&[0, 3]), slots(&[1, 4]), slots(&[2, 5])]);
    }

    #[test]
    fn the_impossible_says_what_to_do() {
        let error = redundancy_sets(&["a", "a", "b"], 2).expect_err("more than half");
        let too_large = TopologyError::GroupTooLarge {
            group: "a".into(),
            in_group: 2,
            slots: 3,
        };
        assert_eq!(error, too_large);
        assert!(error.to_string().contains("redundancy.group"));
        for set_size in [0, 1] {
            let refused = redundancy_sets(&nodes(4), set_size);
            assert_eq!(refused, Err(TopologyError::SetSize(set_size)));
        }
    }

    proptest! {
        #[test]
        fn sets_are_total_even_and_keep_groups_apart(
            groups in proptest::collection::vec(0..12_u8, 0..80),
            set_size in 2..20_u32,
        ) {
            let names: Vec<String> = groups.iter().map(u8::to_string).collect();
            let largest = (0..12).map(|g| groups.iter().filter(|&&x| x == g).count()).max();
            let largest = largest.unwrap_or(0);
            match redundancy_sets(&names, set_size) {
                Err(e) => {
                    prop_assert!(groups.len() > 1 && 2 * largest > groups.len(), "{}", e);
                }
                Ok(sets) => {
                    let mut all: Vec<Slot> = sets.concat();
                    all.sort_unstable();
                    prop_assert_eq!(all, (0..groups.len() as u32).map(Slot).collect::<Vec<_>>());
                    for set in &sets {
                        let mut kinds: Vec<u8> = set.iter().map(|s| groups[s.0 as usize]).collect();
                        kinds.sort_unstable();
                        kinds.dedup();
                        prop_assert_eq!(kinds.len(), set.len());
                        prop_assert!(set.is_sorted());
                    }
                    let sizes = sets.iter().map(Vec::len);
                    let (low, high) = (sizes.clone().min(), sizes.max());
                    prop_assert!(high.unwrap_or(0) - low.unwrap_or(0) <= 1);
                    if sets.len() > 1 && sets.len() > largest {
                        prop_assert!(low.unwrap_or(0) >= set_size as usize);
                    }
                    prop_assert_eq!(redundancy_sets(&names, set_size), Ok(sets));
                }
            }
        }
    }
}
