//! The arithmetic of a budget: what programs may write, and when a store is short of space. Pure; bytes.

use scrfs::config::RedundancyConfig;

pub(super) const PAGE: u64 = 4096;

/// Bytes of parity for a byte of data, as a fraction; none by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cost {
    parity: u64,
    data: u64,
}

impl Default for Cost {
    fn default() -> Self {
        Self { parity: 0, data: 1 }
    }
}

impl Cost {
    /// Of the dearest scheme that a dataset may get among `nodes` nodes.
    pub(super) fn of(rules: &[RedundancyConfig], nodes: u32) -> Self {
        let cost = |rule: &RedundancyConfig| {
            let members = rule.set_size.min(nodes);
            let scheme = rule.scheme.fitted_to(members);
            let parity = u64::from(scheme.parity_count());
            match scheme {
                scrfs::redundancy::Scheme::Partner { .. } => Self { parity, data: 1 },
                _ => Self {
                    parity,
                    data: u64::from(members).saturating_sub(parity).max(1),
                },
            }
        };
        let dearer = |one: Self, other: Self| {
            if other.parity * one.data > one.parity * other.data {
                other
            } else {
                one
            }
        };
        rules.iter().map(cost).fold(Self::default(), dearer)
    }

    pub(super) fn on(self, bytes: u64) -> u64 {
        let parity = u128::from(bytes) * u128::from(self.parity);
        u64::try_from(parity.div_ceil(u128::from(self.data))).unwrap_or(u64::MAX)
    }

    /// How much data fits into `bytes` together with its parity.
    fn data_in(self, bytes: u64) -> u64 {
        let data = u128::from(bytes) * u128::from(self.data);
        u64::try_from(data / u128::from(self.data + self.parity)).unwrap_or(u64::MAX)
    }
}

/// What the budget is compared with, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Measure {
    /// All that may be used.
    pub(super) budget: u64,
    /// All that is used.
    pub(super) used: u64,
    /// The part of it that needs no parity any more: data of sealed datasets, parity, records.
    pub(super) covered: u64,
    /// Parity that sealed datasets have yet to get.
    pub(super) owed: u64,
    /// Parity that data has which is not sealed; it is covered.
    pub(super) ahead: u64,
    /// Kept for records and manifests.
    pub(super) slack: u64,
    pub(super) cost: Cost,
}

impl Measure {
    /// What programs may still write.
    pub(super) fn available(&self) -> u64 {
        let unsealed = self.used.saturating_sub(self.covered);
        let to_come = self.cost.on(unsealed).saturating_sub(self.ahead);
        let promised = [self.owed, to_come, self.slack];
        let left = promised
            .iter()
            .fold(self.budget.saturating_sub(self.used), |left, bytes| {
                left.saturating_sub(*bytes)
            });
        self.cost.data_in(left) / PAGE * PAGE
    }
}

/// What a cache with `available` of `budget` bytes is short of, and whether a dataset that is being
/// written, with `unsealed` bytes so far, will not fit otherwise. The next dataset is taken to be as
/// large as the last one.
pub(super) fn short_of(
    (budget, available): (u64, u64),
    last: u64,
    unsealed: Option<u64>,
) -> (u64, bool) {
    let to_come = last.saturating_sub(unsealed.unwrap_or(0));
    let wanted = match last {
        0 => budget / 5,
        _ => (to_come / 5).saturating_add(to_come).max(budget / 20),
    };
    let urgent = unsealed.is_some() && available < to_come.max(budget / 50);
    (wanted.saturating_sub(available), urgent)
}

pub(super) fn page_up(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE).saturating_mul(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrfs::redundancy::Scheme;

    const GIB: u64 = 1 << 30;

    fn rule(scheme: Scheme) -> RedundancyConfig {
        RedundancyConfig {
            scheme,
            set_size: 8,
            group: "node".into(),
            chunk_bytes: 1 << 20,
        }
    }

    fn empty(cost: Cost) -> Measure {
        Measure {
            budget: GIB,
            used: 0,
            covered: 0,
            owed: 0,
            ahead: 0,
            slack: 0,
            cost,
        }
    }

    #[test]
    fn parity_that_is_made_before_the_commit_changes_nothing_for_programs() {
        for scheme in [Scheme::Xor, Scheme::ReedSolomon { parities: 2 }] {
            let cost = Cost::of(&[rule(scheme)], 4);
            let data = 240 << 20;
            let written = Measure {
                used: data,
                ..empty(cost)
            };
            let parity = cost.on(data / 2);
            let made = Measure {
                used: data + parity,
                covered: parity,
                ahead: parity,
                ..empty(cost)
            };
            assert_eq!(made.available(), written.available());
            assert!(made.available() > 0);
        }
    }

    #[test]
    fn parity_of_what_is_accepted_always_fits() {
        for (scheme, nodes) in [
            (Scheme::Single, 4),
            (Scheme::Xor, 4),
            (Scheme::Xor, 100),
            (Scheme::ReedSolomon { parities: 3 }, 9),
            (Scheme::Partner { copies: 2 }, 5),
        ] {
            let cost = Cost::of(&[rule(Scheme::Single), rule(scheme)], nodes);
            let mut measure = empty(cost);
            let first = measure.available();
            assert!(first + cost.on(first) <= GIB, "{scheme} on {nodes}");
            assert!(
                first + cost.on(first) + 3 * PAGE > GIB,
                "{scheme} on {nodes}"
            );
            // Written to the last byte, sealed, its parity written bit by bit.
            measure.used = first;
            assert_eq!(measure.available(), 0, "{scheme} on {nodes}");
            measure.covered = first;
            measure.owed = cost.on(first);
            assert!(measure.available() < 2 * PAGE, "{scheme} on {nodes}");
            while measure.owed > 0 {
                let step = measure.owed.min(50 << 20);
                measure.owed -= step;
                measure.used += step;
                measure.covered += step;
                assert!(measure.used <= GIB, "{scheme} on {nodes}");
                assert!(measure.available() < 2 * PAGE, "{scheme} on {nodes}");
            }
        }
    }

    #[test]
    fn every_byte_written_is_one_less_and_parity_takes_nothing() {
        let mut measure = empty(Cost::of(&[rule(Scheme::Xor)], 4));
        let whole = measure.available();
        measure.used = 30 * PAGE;
        assert!(whole - 30 * PAGE - measure.available() <= PAGE);
        measure.covered = measure.used;
        measure.owed = 10 * PAGE;
        let sealed = measure.available();
        assert!(whole - 30 * PAGE - sealed <= PAGE);
        (measure.used, measure.covered, measure.owed) = (40 * PAGE, 40 * PAGE, 0);
        assert_eq!(measure.available(), sealed);
    }

    #[test]
    fn the_next_dataset_is_taken_to_be_as_large_as_the_last() {
        let free = |available| (1000, available);
        assert_eq!(short_of(free(300), 0, None), (0, false));
        assert_eq!(short_of(free(100), 0, None), (100, false));
        assert_eq!(short_of(free(400), 400, None), (80, false));
        assert_eq!(short_of(free(480), 400, None), (0, false));
        // A fourth of it is written, and there is room for less than the rest.
        assert_eq!(short_of(free(300), 400, Some(100)), (60, false));
        assert_eq!(short_of(free(299), 400, Some(100)), (61, true));
        // It is larger than the last one was.
        assert_eq!(short_of(free(10), 400, Some(500)), (40, true));
    }

    #[test]
    fn one_node_needs_no_parity() {
        let cost = Cost::of(&[rule(Scheme::ReedSolomon { parities: 2 })], 1);
        assert_eq!(empty(cost).available(), GIB);
    }
}
