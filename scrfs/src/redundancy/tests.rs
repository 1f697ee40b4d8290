//! Properties of plans, by carrying them out in memory: `rebuild(encode(parts) - lost) == parts`.
//!
//! Chunks are small so that a few hundred kilobytes make many bands. Every read of a source is
//! checked: it must lie in its stream, and must not belong to a lost member.

use super::*;
use crate::codec::add;
use crate::id::Slot;
use proptest::prelude::*;
use std::collections::BTreeMap;

const CHUNK: u64 = CHUNK_BYTES_MIN;

/// What the members of a set hold.
#[derive(Clone, PartialEq)]
struct World {
    streams: BTreeMap<(Slot, Stream), Vec<u8>>,
}

impl World {
    fn new(geometry: &SetGeometry) -> Self {
        let mut streams = BTreeMap::new();
        for &slot in geometry.members() {
            let salt = u64::from(slot.0) * 0x9e37_79b9 + 77;
            let data = (0..geometry.data_len(slot))
                .map(|i| ((i + salt).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u8)
                .collect();
            streams.insert((slot, Stream::Data), data);
        }
        Self { streams }
    }

    fn without(&self, lost: &[Slot]) -> Self {
        let mut world = self.clone();
        world.streams.retain(|(slot, _), _| !lost.contains(slot));
        world
    }

    /// The bytes `from..from + len` of a stream of `target` as `plan` makes them.
    fn carry_out(
        &self,
        plan: impl Iterator<Item = Combination>,
        (slot, stream): (Slot, Stream),
        from: u64,
        len: u64,
        unit_bytes: u32,
    ) -> Vec<u8> {
        let mut made = vec![0; usize::try_from(len).expect("small")];
        let mut next = from;
        for Combination { destination, terms } in plan {
            assert_eq!((destination.slot, destination.stream), (slot, stream));
            assert_eq!(destination.offset, next, "each byte once, ascending");
            next += u64::from(destination.len);
            assert!(destination.len > 0 && destination.len <= unit_bytes);
            inside_a_chunk(destination);
            let unit_of = |at: u64| at % CHUNK / u64::from(unit_bytes);
            assert_eq!(
                unit_of(destination.offset),
                unit_of(next - 1),
                "units lie on a grid"
            );
            let start = (destination.offset - from) as usize;
            let target = &mut made[start..start + destination.len as usize];
            for (
                i,
                Term {
                    coefficient,
                    source,
                },
            ) in terms.iter().enumerate()
            {
                assert!(*coefficient != 0 && source.len > 0 && source.len <= destination.len);
                assert!(terms[..i].iter().all(|t| t.source.slot != source.slot));
                inside_a_chunk(*source);
                let bytes = self.streams.get(&(source.slot, source.stream));
                let bytes = bytes.expect("a plan never reads what is lost");
                let start = source.offset as usize;
                let bytes = &bytes[start..start + source.len as usize];
                add(&mut [&mut *target], &[&[*coefficient]], &[bytes]);
            }
        }
        assert_eq!(next, from + len, "each byte once, to the end");
        made
    }

    fn encode(&mut self, geometry: &SetGeometry, slot: Slot, unit_bytes: u32) {
        let (key, len) = ((slot, Stream::Parity), geometry.parity_len(slot));
        let made = self.carry_out(geometry.encode(slot, unit_bytes), key, 0, len, unit_bytes);
        self.streams.insert(key, made);
    }
}

fn inside_a_chunk(extent: Extent) {
    let last = extent.offset + u64::from(extent.len) - 1;
    assert_eq!(
        extent.offset / CHUNK,
        last / CHUNK,
        "{extent:?} crosses a chunk border"
    );
}

fn encoded(geometry: &SetGeometry, unit_bytes: u32) -> World {
    let mut world = World::new(geometry);
    for &slot in geometry.members() {
        world.encode(geometry, slot, unit_bytes);
    }
    world
}

fn geometry(scheme: Scheme, lengths: &[u64]) -> SetGeometry {
    // Slots are neither dense nor in order: positions must not be taken for slots.
    let members = lengths.iter().enumerate();
    let members = members
        .map(|(i, &len)| (Slot(1000 - 7 * i as u32), len))
        .collect();
    SetGeometry::new(scheme, members, CHUNK).expect("a valid set")
}

fn part_len() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0),
        1 => Just(1),
        2 => (0..20_u64).prop_map(|chunks| chunks * CHUNK),
        4 => 0..20 * CHUNK,
        1 => 40 * CHUNK..80 * CHUNK,
    ]
}

fn any_set() -> impl Strategy<Value = (Scheme, Vec<u64>)> {
    (1_usize..8).prop_flat_map(|n| {
        let most = (n - 1).max(1) as u8;
        let scheme = prop_oneof![
            Just(Scheme::Single),
            Just(Scheme::Xor),
            (1..=most).prop_map(|copies| Scheme::Partner { copies }),
            (1..=most).prop_map(|parities| Scheme::ReedSolomon { parities }),
        ];
        let scheme = scheme.prop_map(move |scheme| scheme.fitted_to(n as u32));
        (scheme, proptest::collection::vec(part_len(), n))
    })
}

fn unit() -> impl Strategy<Value = u32> {
    prop_oneof![Just(4096), Just(1024), 700_u32..6000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_tolerated_loss_is_rebuilt(
        (scheme, lengths) in any_set(),
        unit_bytes in unit(),
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        fewer in 0..4_usize,
    ) {
        let geometry = geometry(scheme, &lengths);
        let original = encoded(&geometry, unit_bytes);
        let tolerated = (scheme.tolerates() as usize).saturating_sub(fewer);
        let lost: Vec<Slot> = order.into_iter()
            .filter_map(|i| geometry.members().get(i).copied())
            .take(tolerated)
            .collect();
        let mut world = original.without(&lost);
        let survivors = world.clone();
        for &slot in &lost {
            let (key, len) = ((slot, Stream::Data), geometry.data_len(slot));
            let plan = geometry.rebuild(&lost, slot, unit_bytes).expect("tolerated");
            let made = survivors.carry_out(plan, key, 0, len, unit_bytes);
            prop_assert!(made == original.streams[&key]);
            world.streams.insert(key, made);
        }
        for &slot in &lost {
            world.encode(&geometry, slot, unit_bytes);
        }
        prop_assert!(world == original);
    }

    #[test]
    fn more_than_tolerated_is_an_error_or_still_right(
        (scheme, lengths) in any_set(),
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        more in 1..4_usize,
    ) {
        let geometry = geometry(scheme, &lengths);
        let original = encoded(&geometry, 4096);
        let count = scheme.tolerates() as usize + more;
        let members = geometry.members();
        let lost: Vec<Slot> =
            order.into_iter().filter_map(|i| members.get(i).copied()).take(count).collect();
        if lost.len() < count {
            return Ok(());
        }
        let survivors = original.without(&lost);
        for &slot in &lost {
            let (key, len) = ((slot, Stream::Data), geometry.data_len(slot));
            match geometry.rebuild(&lost, slot, 4096) {
                Ok(plan) => {
                    // Only nothing, or a copy that luckily survived.
                    let lucky = matches!(scheme, Scheme::Partner { .. });
                    prop_assert!(lucky || len == 0);
                    let made = survivors.carry_out(plan, key, 0, len, 4096);
                    prop_assert!(made == original.streams[&key]);
                }
                Err(e) => {
                    prop_assert_eq!((e.target, e.tolerates), (slot, scheme.tolerates()));
                    prop_assert_eq!(e.lost.len(), count);
                }
            }
        }
    }

    #[test]
    fn any_range_reads_as_it_was_written(
        (scheme, lengths) in any_set(),
        unit_bytes in unit(),
        (a, b) in (0..=1000_u64, 0..=1000_u64),
        losses in proptest::collection::vec(any::<prop::sample::Index>(), 0..3),
        target in any::<prop::sample::Index>(),
    ) {
        let geometry = geometry(scheme, &lengths);
        let original = encoded(&geometry, unit_bytes);
        let mut lost: Vec<Slot> = losses.iter().map(|i| *i.get(geometry.members())).collect();
        lost.sort_unstable();
        lost.dedup();
        lost.truncate(scheme.tolerates() as usize);
        let survivors = original.without(&lost);
        let slot = *target.get(geometry.members());
        let key = (slot, Stream::Data);
        let whole = geometry.data_len(slot);
        let (from, to) = (whole * a.min(b) / 1000, whole * a.max(b) / 1000);
        let plan = geometry.read(&lost, slot, from, to - from, unit_bytes).expect("tolerated");
        let made = survivors.carry_out(plan, key, from, to - from, unit_bytes);
        prop_assert!(made == original.streams[&key][from as usize..to as usize]);
    }

    #[test]
    fn parity_never_exceeds_what_the_largest_part_asks_for((scheme, lengths) in any_set()) {
        let geometry = geometry(scheme, &lengths);
        let largest = lengths.iter().copied().max().unwrap_or(0);
        let k = u64::from(scheme.parity_count());
        let (n, chunks) = (lengths.len() as u64, largest.div_ceil(CHUNK));
        let most = match scheme {
            Scheme::Single => 0,
            Scheme::Partner { .. } => k * chunks * CHUNK,
            _ => chunks.div_ceil(n - k) * k * CHUNK,
        };
        for &slot in geometry.members() {
            prop_assert!(geometry.parity_len(slot) <= most);
        }
        // What is stored last is the parity of something.
        for &slot in geometry.members() {
            if let Some(last) = geometry.encode(slot, 4096).last() {
                let full = last.terms.iter().any(|t| t.source.len == last.destination.len);
                prop_assert!(full);
            }
        }
    }

    /// Encoding while the part grows: what was placed stays where it is.
    #[test]
    fn places_do_not_depend_on_lengths((scheme, lengths) in any_set(), more in part_len()) {
        let small = geometry(scheme, &lengths);
        let large = geometry(scheme, &lengths.iter().map(|l| l + more).collect::<Vec<_>>());
        for &slot in small.members() {
            for (before, after) in small.encode(slot, 4096).zip(large.encode(slot, 4096)) {
                prop_assert_eq!(before.destination.offset, after.destination.offset);
                for term in before.terms {
                    let key = |t: &Term| (t.coefficient, t.source.slot, t.source.offset);
                    let kept = after.terms.iter().any(|t| key(t) == key(&term));
                    prop_assert!(kept);
                }
            }
        }
    }

    #[test]
    fn hostile_values_are_refused_or_planned_without_panic(
        scheme in prop_oneof![
            Just(Scheme::Single), Just(Scheme::Xor),
            any::<u8>().prop_map(|copies| Scheme::Partner { copies }),
            any::<u8>().prop_map(|parities| Scheme::ReedSolomon { parities }),
        ],
        members in proptest::collection::vec(
            (0..12_u32, prop_oneof![any::<u64>(), (0..=53_u32).prop_map(|b| (1 << b) - 1)]), 0..9),
        chunk in prop_oneof![any::<u64>(), (0..64_u32).prop_map(|b| 1 << b)],
        (offset, len) in (any::<u64>(), any::<u64>()),
        unit_bytes in any::<u32>(),
    ) {
        let members = members.into_iter().map(|(s, l)| (Slot(s), l)).collect();
        let Ok(geometry) = SetGeometry::new(scheme, members, chunk) else { return Ok(()) };
        for &slot in geometry.members() {
            prop_assert!(geometry.encode(slot, unit_bytes).take(20).count() <= 20);
            if let Ok(plan) = geometry.rebuild(&[slot], slot, unit_bytes) {
                prop_assert!(plan.take(20).count() <= 20);
            }
            prop_assert!(
                geometry.read(&[slot], slot, offset, len, unit_bytes).is_err()
                    || len <= geometry.data_len(slot)
            );
            let last = geometry.data_len(slot).saturating_sub(1);
            let _ = geometry.read(&[slot], slot, last, 1, unit_bytes).map(|p| p.count());
        }
    }
}

/// Parts of a few MiB with the chunk size of production, one of them far larger.
#[test]
fn parts_of_megabytes_survive_two_losses() {
    let scheme = Scheme::ReedSolomon { parities: 2 };
    let members = [3 << 20, 5, 0, (9 << 20) + 77, 1 << 20]
        .iter()
        .enumerate()
        .map(|(i, &len)| (Slot(i as u32), len))
        .collect();
    let geometry = SetGeometry::new(scheme, members, 1 << 20).expect("valid");
    let streams = World::new(&geometry).streams;
    let mut world = streams.clone();
    let run = |world: &BTreeMap<(Slot, Stream), Vec<u8>>, plan: Plan, len: u64| {
        let mut made = vec![0; len as usize];
        for Combination {
            destination: d,
            terms,
        } in plan
        {
            let target = &mut made[d.offset as usize..][..d.len as usize];
            for Term {
                coefficient,
                source: s,
            } in terms
            {
                let bytes = &world[&(s.slot, s.stream)][s.offset as usize..][..s.len as usize];
                add(&mut [&mut *target], &[&[coefficient]], &[bytes]);
            }
        }
        made
    };
    for slot in (0..5).map(Slot) {
        let made = run(
            &streams,
            geometry.encode(slot, 128 << 10),
            geometry.parity_len(slot),
        );
        world.insert((slot, Stream::Parity), made);
    }
    let lost = [Slot(3), Slot(0)];
    world.retain(|(slot, _), _| !lost.contains(slot));
    for slot in lost {
        let plan = geometry
            .rebuild(&lost, slot, 128 << 10)
            .expect("two of two");
        assert!(run(&world, plan, geometry.data_len(slot)) == streams[&(slot, Stream::Data)]);
    }
}

/// The picture in `geometry`.
#[test]
fn four_members_one_parity_lie_as_drawn() {
    let geometry = geometry(Scheme::Xor, &[3 * CHUNK; 4]);
    let place = |slot: Slot| {
        let at = |s: Slot| {
            geometry
                .members()
                .iter()
                .position(|&m| m == s)
                .expect("a member")
        };
        let stripe = geometry
            .encode(slot, CHUNK as u32)
            .next()
            .expect("one chunk of parity");
        let terms = stripe.terms.iter();
        let mut terms: Vec<_> = terms
            .map(|t| (at(t.source.slot), t.source.offset / CHUNK))
            .collect();
        terms.sort_unstable();
        terms
    };
    let stripes: Vec<_> = geometry.members().iter().map(|&slot| place(slot)).collect();
    assert_eq!(stripes[0], [(1, 0), (2, 0), (3, 0)]);
    assert_eq!(stripes[1], [(0, 0), (2, 1), (3, 1)]);
    assert_eq!(stripes[2], [(0, 1), (1, 1), (3, 2)]);
    assert_eq!(stripes[3], [(0, 2), (1, 2), (2, 2)]);
    assert!(
        geometry
            .members()
            .iter()
            .all(|&slot| geometry.parity_len(slot) == CHUNK)
    );
}

#[test]
fn impossible_sets_are_refused() {
    let slots = |n: u32| (0..n).map(|i| (Slot(i), 5)).collect::<Vec<_>>();
    let new = |scheme, members, chunk| SetGeometry::new(scheme, members, chunk).err();
    let rs = Scheme::ReedSolomon { parities: 3 };
    assert_eq!(
        new(Scheme::Single, vec![], CHUNK),
        Some(GeometryError::NoMembers)
    );
    assert_eq!(
        new(Scheme::Xor, vec![(Slot(3), 1), (Slot(3), 1)], CHUNK),
        Some(GeometryError::Duplicate(Slot(3)))
    );
    for (scheme, n) in [
        (Scheme::Xor, 1),
        (rs, 3),
        (Scheme::Partner { copies: 2 }, 2),
    ] {
        let refused = new(scheme, slots(n), CHUNK);
        assert!(
            matches!(refused, Some(GeometryError::TooFewMembers { .. })),
            "{scheme} of {n}"
        );
        assert_eq!(new(scheme, slots(n + 1), CHUNK), None);
    }
    for scheme in [
        Scheme::Partner { copies: 0 },
        Scheme::ReedSolomon { parities: 0 },
    ] {
        assert_eq!(
            new(scheme, slots(4), CHUNK),
            Some(GeometryError::NoParity(scheme))
        );
    }
    for chunk in [0, 1, 2048, 4095, 12288, 1 << 31, u64::MAX] {
        assert_eq!(
            new(Scheme::Xor, slots(4), chunk),
            Some(GeometryError::BadChunk(chunk))
        );
    }
    let long = vec![(Slot(0), 1), (Slot(1), PART_BYTES_MAX + 1)];
    assert!(matches!(
        new(Scheme::Xor, long, CHUNK),
        Some(GeometryError::PartTooLong { .. })
    ));
    assert!(matches!(
        new(rs, slots(257), CHUNK),
        Some(GeometryError::Code(_))
    ));
    assert_eq!(new(Scheme::Xor, slots(300), CHUNK), None);
}

#[test]
fn strangers_and_bad_ranges_are_refused() {
    let geometry = geometry(Scheme::Xor, &[10, 20, 30]);
    let (stranger, member) = (Slot(5), geometry.members()[0]);
    assert_eq!(geometry.encode(stranger, 4096).count(), 0);
    assert_eq!(
        (geometry.parity_len(stranger), geometry.data_len(stranger)),
        (0, 0)
    );
    assert!(geometry.rebuild(&[], stranger, 4096).is_err());
    assert_eq!(
        geometry.read(&[], stranger, 0, 0, 1).err(),
        Some(ReadError::NotAMember(stranger))
    );
    for (offset, len) in [(0, 11), (11, 0), (10, 1), (u64::MAX, 1), (1, u64::MAX)] {
        let refused = geometry.read(&[], member, offset, len, 4096).err();
        assert!(
            matches!(refused, Some(ReadError::OutOfRange { .. })),
            "{offset} + {len}"
        );
    }
    assert_eq!(
        geometry.read(&[], member, 10, 0, 4096).map(|p| p.count()),
        Ok(0)
    );
    // Losses elsewhere do not matter.
    assert!(
        geometry
            .rebuild(&[stranger, Slot(6), Slot(7)], member, 4096)
            .is_ok()
    );
}

/// A plan of terabytes costs nothing until it is walked, and can move to another thread.
#[test]
fn a_plan_is_lazy() {
    fn movable<T: Send + 'static>(plan: T) -> T {
        plan
    }
    let members = (0..8).map(|i| (Slot(i), 1 << 45)).collect();
    let geometry = SetGeometry::new(Scheme::Xor, members, 1 << 20).expect("valid");
    assert_eq!(
        movable(geometry.encode(Slot(0), 1 << 17)).take(100).count(),
        100
    );
    let plan = geometry
        .rebuild(&[Slot(3)], Slot(3), 1 << 17)
        .expect("one of one");
    assert_eq!(movable(plan).take(100).count(), 100);
}
