//! Redundancy schemes: what each survives, and what it costs.
//!
//! A scheme applies to one redundancy set of n members. Invariant: `tolerates` holds for *any*
//! members of the set; Partner may survive more when the lost ones are far apart. Placement is
//! the business of `geometry`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How the parts of a redundancy set protect each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Scheme {
    /// No redundancy: a lost node's part is lost.
    Single,
    /// Whole copies of each part on the next `copies` members to the right.
    Partner {
        /// Copies besides the original; at least 1, less than the members of the set.
        copies: u8,
    },
    /// One parity: the XOR of the other members' chunks.
    Xor,
    /// Reed-Solomon code over GF(2^8).
    ReedSolomon {
        /// Parities; at least 1, less than the members of the set. One is the same as XOR.
        parities: u8,
    },
}

impl Scheme {
    /// How many members of a set, whichever they are, can be lost without losing data.
    #[must_use]
    pub fn tolerates(&self) -> u32 {
        match self {
            Self::Single => 0,
            Self::Partner { copies } => u32::from(*copies),
            Self::Xor => 1,
            Self::ReedSolomon { parities } => u32::from(*parities),
        }
    }

    /// Parity chunks each member keeps a band: copies for Partner, parities otherwise.
    #[must_use]
    pub fn parity_count(&self) -> u32 {
        self.tolerates()
    }

    /// Bytes of parity that a set of `members` keeps for one byte of data, when all parts are of
    /// equal length: copies for Partner, k/(n-k) otherwise; infinite when the set is too small.
    #[must_use]
    pub fn storage_cost(&self, members: u32) -> f64 {
        let parity = self.parity_count();
        match self {
            Self::Single => 0.0,
            _ if parity >= members => f64::INFINITY,
            Self::Partner { .. } => f64::from(parity),
            Self::Xor | Self::ReedSolomon { .. } => f64::from(parity) / f64::from(members - parity),
        }
    }

    /// The nearest scheme that a set of `members` can carry: a set of one is Single, and no more
    /// copies or parities than there are other members. The caller reports the difference.
    #[must_use]
    pub fn fitted_to(self, members: u32) -> Self {
        let others = u8::try_from(members.saturating_sub(1)).unwrap_or(u8::MAX);
        match self {
            _ if others == 0 => Self::Single,
            Self::Single | Self::Xor => self,
            Self::Partner { copies } => Self::Partner {
                copies: copies.min(others),
            },
            Self::ReedSolomon { parities } => Self::ReedSolomon {
                parities: parities.min(others),
            },
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Single => "single",
            Self::Partner { .. } => "partner",
            Self::Xor => "xor",
            Self::ReedSolomon { .. } => "rs",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_and_tolerances() {
        let rs = Scheme::ReedSolomon { parities: 2 };
        assert_eq!(
            (rs.tolerates(), rs.parity_count(), rs.to_string()),
            (2, 2, "rs".into())
        );
        assert!((rs.storage_cost(6) - 0.5).abs() < 1e-9);
        assert!((Scheme::Xor.storage_cost(9) - 0.125).abs() < 1e-9);
        assert!(Scheme::Xor.storage_cost(1).is_infinite());
        assert!((Scheme::Partner { copies: 2 }.storage_cost(8) - 2.0).abs() < 1e-9);
        assert!(Scheme::Single.storage_cost(1).abs() < 1e-9);
    }

    #[test]
    fn a_small_set_gets_what_it_can_carry() {
        let rs = Scheme::ReedSolomon { parities: 3 };
        assert_eq!(rs.fitted_to(1), Scheme::Single);
        assert_eq!(rs.fitted_to(0), Scheme::Single);
        assert_eq!(rs.fitted_to(3), Scheme::ReedSolomon { parities: 2 });
        assert_eq!(rs.fitted_to(1000), rs);
        assert_eq!(
            Scheme::Partner { copies: 2 }.fitted_to(2),
            Scheme::Partner { copies: 1 }
        );
        assert_eq!(Scheme::Xor.fitted_to(2), Scheme::Xor);
    }
}
