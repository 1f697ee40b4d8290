//! The tree of ranks along which the leader reaches all members, and they it.
//!
//! In heap order: rank 0 is the root, and the children of rank r are the `fan` ranks from `r * fan + 1` on.
//! Every rank knows all of it from the number of ranks alone. It lives as long as the epoch: an inner
//! member that dies ends that, as every other does.

use crate::id::Rank;
use std::ops::Range;

/// Children of a member. With 8, four steps reach 4,681 ranks.
pub const FAN: u32 = 8;

/// The tree of an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tree {
    size: u32,
    fan: u32,
}

impl Tree {
    /// The tree of so many ranks, each with at most `fan` children, and one at least.
    pub fn new(size: u32, fan: u32) -> Self {
        let fan = fan.max(1);
        Self { size, fan }
    }

    /// Whose child a rank is; nobody's, if it is the root.
    pub fn parent(&self, rank: Rank) -> Option<Rank> {
        rank.0.checked_sub(1).map(|below| Rank(below / self.fan))
    }

    fn clamp(&self, rank: u64) -> u32 {
        u32::try_from(rank).map_or(self.size, |rank| rank.min(self.size))
    }

    /// The ranks that follow the range `of` in the tree, one level down.
    fn below(&self, of: &Range<u32>) -> Range<u32> {
        let fan = u64::from(self.fan);
        let first = u64::from(of.start) * fan + 1;
        let end = u64::from(of.end) * fan + 1;
        self.clamp(first)..self.clamp(end)
    }

    /// The children of a rank, ascending.
    pub fn children(&self, rank: Rank) -> impl Iterator<Item = Rank> + use<> {
        self.below(&(rank.0..rank.0.saturating_add(1))).map(Rank)
    }

    /// A rank and all below it, level by level.
    pub fn subtree(&self, root: Rank) -> impl Iterator<Item = Rank> + use<> {
        let tree = *self;
        let first = root.0..root.0.saturating_add(1);
        let next = move |level: &Range<u32>| Some(tree.below(level)).filter(|it| !it.is_empty());
        std::iter::successors(Some(first), next).flatten().map(Rank)
    }

    /// How many ranks a subtree has.
    pub fn count(&self, root: Rank) -> usize {
        self.subtree(root).count()
    }

    /// The child of `at` below which `to` is, or which it is.
    pub fn towards(&self, at: Rank, to: Rank) -> Option<Rank> {
        let mut step = to;
        while let Some(parent) = self.parent(step).filter(|_| to.0 < self.size) {
            if parent == at {
                return Some(step);
            }
            step = parent;
        }
        None
    }

    /// Whether a rank is `root` or below it.
    pub fn has(&self, root: Rank, rank: Rank) -> bool {
        root == rank || self.towards(root, rank).is_some()
    }

    /// Steps from the root to the rank that is farthest from it.
    pub fn depth(&self) -> u32 {
        let last = Rank(self.size.saturating_sub(1));
        let up = std::iter::successors(Some(last), |rank| self.parent(*rank));
        u32::try_from(up.count()).map_or(u32::MAX, |ranks| ranks - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rank_has_one_way_to_the_root() {
        for (size, fan) in [(1, 8), (2, 8), (9, 8), (10, 8), (100, 3), (7, 1), (4096, 8)] {
            let tree = Tree::new(size, fan);
            let mut seen = BTreeSet::from([Rank(0)]);
            for rank in (0..size).map(Rank) {
                for child in tree.children(rank) {
                    assert_eq!(tree.parent(child), Some(rank));
                    assert!(seen.insert(child), "{child:?} has two parents");
                }
                assert!(tree.children(rank).count() <= fan as usize);
            }
            assert_eq!(seen.len(), size as usize);
            let all: BTreeSet<Rank> = tree.subtree(Rank(0)).collect();
            assert_eq!(all, seen);
            let below: usize = tree.children(Rank(0)).map(|child| tree.count(child)).sum();
            assert_eq!(below + 1, size as usize);
        }
        assert_eq!(Tree::new(4096, 8).depth(), 4);
        assert_eq!(Tree::new(4681, 8).depth(), 4);
        assert_eq!(Tree::new(4682, 8).depth(), 5);
        assert_eq!(Tree::new(1, 8).depth(), 0);
    }

    #[test]
    fn the_way_down_leads_there() {
        let tree = Tree::new(50, 3);
        for to in (1..50).map(Rank) {
            let mut at = Rank(0);
            let mut steps = 0;
            while at != to {
                at = tree.towards(at, to).expect("a way");
                steps += 1;
            }
            assert!(steps <= tree.depth());
            assert!(tree.has(Rank(0), to) && tree.has(to, to));
        }
        assert_eq!(tree.towards(Rank(1), Rank(2)), None);
        assert_eq!(tree.towards(Rank(0), Rank(50)), None);
        assert!(!tree.has(Rank(1), Rank(0)));
    }
}
