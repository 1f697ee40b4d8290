//! How long lists of slots and ranks look on the wire: as runs, so that a list of all of them, the common
//! one, costs a few bytes whatever their number is.

use crate::id::{Rank, Slot};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Entries that are believed of one list.
const ENTRIES_MAX: u64 = 1 << 20;

/// Where two ascending numbers begin, and how many follow: each one more than the last.
type Run = (u32, u32, u32);

fn pack(entries: impl Iterator<Item = (u32, u32)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (one, other) in entries {
        if let Some((first, second, count)) = runs.last_mut()
            && first.checked_add(*count) == Some(one)
            && second.checked_add(*count) == Some(other)
        {
            *count += 1;
        } else {
            runs.push((one, other, 1));
        }
    }
    runs
}

fn unpack<E: Error>(runs: &[Run]) -> Result<Vec<(u32, u32)>, E> {
    let total: u64 = runs.iter().map(|run| u64::from(run.2)).sum();
    let fits = |run: &Run| {
        run.0
            .max(run.1)
            .checked_add(run.2.saturating_sub(1))
            .is_some()
    };
    if total > ENTRIES_MAX || !runs.iter().all(fits) {
        return Err(E::custom("a list that is too long"));
    }
    let entries = |run: &Run| {
        let (first, second, count) = *run;
        (0..count).map(move |at| (first + at, second + at))
    };
    Ok(runs.iter().flat_map(entries).collect())
}

/// Lists of slots and who has them.
pub(super) mod held {
    use super::{Deserialize, Deserializer, Rank, Run, Serialize, Serializer, Slot, pack, unpack};

    pub(crate) fn serialize<S: Serializer>(
        list: &[(Slot, Rank)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        pack(list.iter().map(|(slot, rank)| (slot.0, rank.0))).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Slot, Rank)>, D::Error> {
        let list = unpack(&Vec::<Run>::deserialize(deserializer)?)?;
        Ok(list
            .into_iter()
            .map(|(slot, rank)| (Slot(slot), Rank(rank)))
            .collect())
    }
}

/// Lists of slots.
pub(super) mod slots {
    use super::{Deserialize, Deserializer, Run, Serialize, Serializer, Slot, pack, unpack};

    pub(crate) fn serialize<S: Serializer>(
        list: &[Slot],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        pack(list.iter().map(|slot| (slot.0, slot.0))).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Slot>, D::Error> {
        let list = unpack(&Vec::<Run>::deserialize(deserializer)?)?;
        Ok(list.into_iter().map(|(slot, _)| Slot(slot)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Lists {
        #[serde(with = "held")]
        holders: Vec<(Slot, Rank)>,
        #[serde(with = "slots")]
        slots: Vec<Slot>,
    }

    fn coded(lists: &Lists) -> usize {
        let bytes = postcard::to_allocvec(lists).expect("it can be encoded");
        let back: Lists = postcard::from_bytes(&bytes).expect("it decodes");
        assert_eq!(back, *lists);
        bytes.len()
    }

    #[test]
    fn all_of_any_number_cost_a_few_bytes_and_any_list_comes_back() {
        let all = |size: u32| Lists {
            holders: (0..size).map(|at| (Slot(at), Rank(at))).collect(),
            slots: (0..size).map(Slot).collect(),
        };
        assert!(coded(&all(4096)) < 12);
        coded(&all(0));
        let mixed = Lists {
            holders: vec![(Slot(3), Rank(0)), (Slot(1), Rank(1)), (Slot(2), Rank(2))],
            slots: vec![Slot(u32::MAX), Slot(5), Slot(5), Slot(6), Slot(4)],
        };
        coded(&mixed);
    }

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        for runs in [vec![(0u32, 0u32, 1u32 << 21)], vec![(u32::MAX, 0, 2)]] {
            let bytes = postcard::to_allocvec(&(runs.clone(), runs)).expect("it can be encoded");
            assert!(postcard::from_bytes::<Lists>(&bytes).is_err());
        }
    }
}
