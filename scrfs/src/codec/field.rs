//! Coefficients of the parity code: which multiples of which shards make a parity shard, and
//! which multiples of the survivors make a lost one.
//!
//! A *stripe* has `data` data shards, numbered `0..data`, and `parity` parity shards, numbered
//! `data..data + parity`. Any `data` of them determine the others. The field, the matrix and its
//! inversion are those of `reed_solomon_erasure`, read out by shards of one byte: the row of a
//! parity shard is what it becomes when one data shard is 1 and the others are 0.
//!
//! Invariants: the rows depend on the two counts alone, never on time or machine, because parity
//! on disk outlives the program; a single parity is plain XOR, all coefficients 1, for any number
//! of data shards. No slices of data are touched here.

use reed_solomon_erasure::galois_8::ReedSolomon;
use std::fmt;

/// Shards that one stripe of more than one parity can have: the field has no more elements.
pub const STRIPE_SHARDS_MAX: usize = 256;

/// Why there are no such coefficients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodeError {
    /// A stripe needs at least one data and one parity shard.
    #[error("a stripe of {data} data and {parity} parity shards protects nothing")]
    Empty {
        /// Data shards asked for.
        data: usize,
        /// Parity shards asked for.
        parity: usize,
    },
    /// More shards than the field has elements.
    #[error(
        "{data} data and {parity} parity shards are more than {STRIPE_SHARDS_MAX}, \
         the most that GF(2^8) can tell apart"
    )]
    TooManyShards {
        /// Data shards asked for.
        data: usize,
        /// Parity shards asked for.
        parity: usize,
    },
    /// A shard number outside the stripe, or one listed both as present and as wanted.
    #[error("shard {shard} cannot be used in a stripe of {shards}")]
    BadShard {
        /// The shard in question.
        shard: usize,
        /// Shards of the stripe.
        shards: usize,
    },
    /// The shards present do not determine the one wanted.
    #[error("{present} shards are present, {needed} are needed")]
    TooFewShards {
        /// Distinct shards present.
        present: usize,
        /// Shards needed: as many as there are data shards.
        needed: usize,
    },
}

/// The code of one stripe shape.
pub struct Code {
    data: usize,
    parity: usize,
    /// One row of `data` coefficients for each parity shard; empty for a single parity.
    rows: Vec<Vec<u8>>,
    /// None for a single parity, which is XOR and needs no matrix.
    matrix: Option<ReedSolomon>,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Code")
            .field("data", &self.data)
            .field("parity", &self.parity)
            .finish_non_exhaustive()
    }
}

impl Code {
    /// The code of `data` data shards and `parity` parity shards.
    ///
    /// # Errors
    ///
    /// [`CodeError::Empty`] when either is 0; [`CodeError::TooManyShards`] when more than one
    /// parity is asked for and both together are more than [`STRIPE_SHARDS_MAX`].
    pub fn new(data: usize, parity: usize) -> Result<Self, CodeError> {
        if data == 0 || parity == 0 {
            return Err(CodeError::Empty { data, parity });
        }
        if parity == 1 {
            return Ok(Self {
                data,
                parity,
                rows: Vec::new(),
                matrix: None,
            });
        }
        let too_many = CodeError::TooManyShards { data, parity };
        if data
            .checked_add(parity)
            .is_none_or(|all| all > STRIPE_SHARDS_MAX)
        {
            return Err(too_many);
        }
        let matrix = ReedSolomon::new(data, parity).map_err(|_| too_many)?;
        let mut rows = vec![vec![0; data]; parity];
        for column in 0..data {
            let unit: Vec<[u8; 1]> = (0..data).map(|i| [u8::from(i == column)]).collect();
            let mut made = vec![[0_u8]; parity];
            matrix.encode_sep(&unit, &mut made).map_err(|_| too_many)?;
            for (row, [coefficient]) in rows.iter_mut().zip(made) {
                row[column] = coefficient;
            }
        }
        Ok(Self {
            data,
            parity,
            rows,
            matrix: Some(matrix),
        })
    }

    /// Data shards of a stripe.
    #[must_use]
    pub fn data_count(&self) -> usize {
        self.data
    }

    /// Parity shards of a stripe.
    #[must_use]
    pub fn parity_count(&self) -> usize {
        self.parity
    }

    /// The factor of data shard `data` in parity shard `parity`, both counted from 0 in their
    /// own kind; 0 for shards that do not exist.
    #[must_use]
    pub fn encode_coefficient(&self, parity: usize, data: usize) -> u8 {
        if self.matrix.is_none() {
            return u8::from(parity == 0 && data < self.data);
        }
        self.rows
            .get(parity)
            .and_then(|row| row.get(data))
            .copied()
            .unwrap_or(0)
    }

    /// How `wanted`, a data shard, is made from the shards `present`: pairs of shard number and
    /// non-zero coefficient, ascending. At most as many shards as there are data shards are used,
    /// data shards before parity shards.
    ///
    /// # Errors
    ///
    /// [`CodeError::BadShard`] when `wanted` is no data shard or is itself present, or a present
    /// one is outside the stripe; [`CodeError::TooFewShards`] when they do not suffice.
    pub fn rebuild_row(
        &self,
        present: &[usize],
        wanted: usize,
    ) -> Result<Vec<(usize, u8)>, CodeError> {
        let shards = self.data + self.parity;
        let mut chosen = present.to_vec();
        chosen.sort_unstable();
        chosen.dedup();
        if let Some(&shard) = chosen.iter().find(|&&s| s >= shards || s == wanted) {
            return Err(CodeError::BadShard { shard, shards });
        }
        if wanted >= self.data {
            return Err(CodeError::BadShard {
                shard: wanted,
                shards,
            });
        }
        let too_few = CodeError::TooFewShards {
            present: chosen.len(),
            needed: self.data,
        };
        if chosen.len() < self.data {
            return Err(too_few);
        }
        chosen.truncate(self.data);
        let Some(matrix) = &self.matrix else {
            return Ok(chosen.into_iter().map(|shard| (shard, 1)).collect());
        };
        let mut row = Vec::with_capacity(chosen.len());
        for &unit in &chosen {
            let mut stripe: Vec<Option<[u8; 1]>> = vec![None; shards];
            for &shard in &chosen {
                stripe[shard] = Some([u8::from(shard == unit)]);
            }
            let mut stripe: Vec<Option<Vec<u8>>> = stripe
                .into_iter()
                .map(|shard| shard.map(Vec::from))
                .collect();
            matrix.reconstruct_data(&mut stripe).map_err(|_| too_few)?;
            let made = stripe[wanted].as_ref().and_then(|shard| shard.first());
            match made.copied().ok_or(too_few)? {
                0 => {}
                coefficient => row.push((unit, coefficient)),
            }
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::add;
    use proptest::prelude::*;

    #[test]
    fn a_single_parity_is_xor_for_any_width() {
        let code = Code::new(1000, 1).expect("valid");
        assert!((0..1000).all(|i| code.encode_coefficient(0, i) == 1));
        assert_eq!(code.encode_coefficient(0, 1000), 0);
        let present: Vec<usize> = (0..=1000).filter(|&i| i != 7).collect();
        let row = code.rebuild_row(&present, 7).expect("enough shards");
        assert_eq!(row, present.iter().map(|&i| (i, 1)).collect::<Vec<_>>());
    }

    /// Parity on disk depends on these numbers: a change of the crate must not change them.
    #[test]
    fn rows_are_those_on_disk() {
        let code = Code::new(6, 2).expect("valid");
        let row = |p| {
            (0..6)
                .map(|d| code.encode_coefficient(p, d))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (row(0), row(1)),
            (vec![7, 6, 5, 4, 3, 2], vec![6, 7, 4, 5, 2, 3])
        );
    }

    #[test]
    fn impossible_codes_are_refused() {
        assert!(matches!(Code::new(0, 1), Err(CodeError::Empty { .. })));
        assert!(matches!(Code::new(3, 0), Err(CodeError::Empty { .. })));
        assert!(matches!(
            Code::new(255, 2),
            Err(CodeError::TooManyShards { .. })
        ));
        assert!(matches!(
            Code::new(usize::MAX, 2),
            Err(CodeError::TooManyShards { .. })
        ));
        Code::new(254, 2).expect("as many as the field tells apart");
        let code = Code::new(3, 2).expect("valid");
        for (present, wanted) in [(vec![0, 1, 2], 2), (vec![0, 1, 9], 2), (vec![0, 1, 2], 3)] {
            assert!(matches!(
                code.rebuild_row(&present, wanted),
                Err(CodeError::BadShard { .. })
            ));
        }
        let few = code.rebuild_row(&[0, 3, 3], 2);
        assert_eq!(
            few,
            Err(CodeError::TooFewShards {
                present: 2,
                needed: 3
            })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_lost_shard_is_the_sum_its_row_says(
            data in 1_usize..12,
            parity in 1_usize..5,
            bytes in proptest::collection::vec(any::<u8>(), 12),
            order in Just((0..16_usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let code = Code::new(data, parity).expect("valid");
            let mut shards = bytes[..data].to_vec();
            for p in 0..parity {
                let mut made = [0];
                for (d, &shard) in shards.iter().enumerate().take(data) {
                    add(&mut [&mut made], &[&[code.encode_coefficient(p, d)]], &[&[shard]]);
                }
                shards.push(made[0]);
            }
            let (lost, present): (Vec<usize>, Vec<usize>) = order.into_iter()
                .filter(|&s| s < data + parity)
                .enumerate()
                .fold((vec![], vec![]), |(mut lost, mut present), (i, s)| {
                    if i < parity { lost.push(s) } else { present.push(s) }
                    (lost, present)
                });
            for &wanted in lost.iter().filter(|&&s| s < data) {
                let mut made = [0];
                for (shard, c) in code.rebuild_row(&present, wanted).expect("enough") {
                    prop_assert!(present.contains(&shard) && c != 0);
                    add(&mut [&mut made], &[&[c]], &[&[shards[shard]]]);
                }
                prop_assert_eq!(made[0], shards[wanted]);
            }
        }
    }
}
