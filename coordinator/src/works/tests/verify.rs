//! One flipped bit anywhere is found, and either repaired or told; nothing false is ever written.

use super::*;
use crate::part::testing::describe;
use scrfs::findings::Kept;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Flips one bit, and leaves the time of the file as it was.
fn flip(path: &Path, offset: u64) {
    let found = fs::metadata(path).unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    crate::part::testing::set_mtime(path, found.mtime(), found.mtime_nsec());
}

fn contents(world: &World, size: usize) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
    let of = |node: usize| {
        let slot = Slot(u32::try_from(node).unwrap());
        let paths = world.paths(node);
        let read = |path: PathBuf| fs::read(path).ok();
        let kept = |keep, slot| {
            (
                read(paths.manifest(ID, slot, keep)),
                read(paths.sums(ID, slot, Stream::Data, keep)),
                read(paths.sums(ID, slot, Stream::Parity, keep)),
            )
        };
        let copies: Vec<_> = (0..size)
            .map(|it| kept(Keep::Copy, Slot(u32::try_from(it).unwrap())))
            .collect();
        (
            describe(&paths.tree(ID, slot)),
            read(paths.parity(ID, slot)),
            kept(Keep::Own, slot),
            copies,
            read(paths.record(ID)),
            paths.damage(ID, slot, Stream::Data).exists(),
            paths.damage(ID, slot, Stream::Parity).exists(),
        )
    };
    (0..size).map(of).collect()
}

fn large(world: &World, node: usize) -> PathBuf {
    let slot = Slot(u32::try_from(node).unwrap());
    world
        .paths(node)
        .tree(ID, slot)
        .join(format!("large.{node}"))
}

fn parity(world: &World, node: usize) -> PathBuf {
    let slot = Slot(u32::try_from(node).unwrap());
    world.paths(node).parity(ID, slot)
}

const SCHEMES: [Scheme; 4] = [
    Scheme::Xor,
    Scheme::Partner { copies: 1 },
    Scheme::Partner { copies: 2 },
    Scheme::ReedSolomon { parities: 2 },
];

#[test]
fn what_is_sound_is_found_sound_and_left_alone() {
    for scheme in SCHEMES {
        let mut world = World::new(4, scheme);
        world.flush();
        let before = contents(&world, 4);
        let found = world.verify();
        assert_eq!((found.damaged, found.unknown), (0, 0), "{found:?}");
        let seal = world.record.seal.clone().unwrap();
        let parity: u64 = (0..4)
            .map(|slot| seal.geometry_of(Slot(slot)).unwrap().parity_len(Slot(slot)))
            .sum();
        assert_eq!(found.bytes, 2 * seal.bytes() + parity);
        assert_eq!(contents(&world, 4), before);
    }
}

#[test]
fn a_flipped_bit_of_data_or_parity_is_found_and_repaired_from_the_set() {
    for scheme in SCHEMES {
        let mut world = World::new(4, scheme);
        let before = contents(&world, 4);
        flip(&large(&world, 1), 100_003);
        flip(&parity(&world, 2), 9);
        assert_ne!(contents(&world, 4), before);
        let found = world.verify();
        assert_eq!((found.damaged, found.repaired), (2, 2), "{found:?}");
        let kinds: Vec<Kept> = found.problems.iter().map(|problem| problem.kept).collect();
        assert_eq!(kinds, [Kept::Data, Kept::Parity]);
        assert!(found.problems[0].path.ends_with("/large.1"), "{found:?}");
        assert_eq!(contents(&world, 4), before, "{scheme:?}");
        assert_eq!(world.verify().damaged, 0);
    }
}

#[test]
fn records_manifests_checksums_and_copies_are_repaired_from_each_other() {
    let mut world = World::new(4, Scheme::Xor);
    let before = contents(&world, 4);
    let of = |node: usize, slot: u32, keep| world.paths(node).manifest(ID, Slot(slot), keep);
    flip(&of(1, 1, Keep::Own), 40);
    flip(&of(2, 0, Keep::Copy), 40);
    fs::remove_file(of(2, 3, Keep::Copy)).unwrap();
    flip(
        &world.paths(3).sums(ID, Slot(3), Stream::Data, Keep::Own),
        30,
    );
    flip(
        &world.paths(0).sums(ID, Slot(1), Stream::Parity, Keep::Copy),
        30,
    );
    flip(&world.paths(0).record(ID), 30);
    // None of it is in memory.
    world.restart();
    let found = world.verify();
    assert_eq!((found.damaged, found.repaired), (6, 6), "{found:?}");
    assert!(found.problems.iter().any(|it| it.kept == Kept::Record));
    assert_eq!(contents(&world, 4), before);
}

#[test]
fn many_units_on_every_node_are_repaired_where_no_stripe_lost_too_much() {
    for scheme in SCHEMES {
        let mut world = World::new(4, scheme);
        let before = contents(&world, 4);
        // Chunks are 64 KiB: of each stripe one member at most.
        let seal = world.record.seal.clone().unwrap();
        let unit = u64::from(seal.unit_bytes);
        for at in [0, 3, 7] {
            flip(&large(&world, 0), at * unit);
        }
        let found = world.verify();
        assert!(found.is_sound() && found.damaged >= 3, "{found:?}");
        assert_eq!(contents(&world, 4), before, "{scheme:?}");
    }
}

#[test]
fn reed_solomon_does_without_a_damaged_source() {
    let mut world = World::new(4, Scheme::ReedSolomon { parities: 2 });
    let before = contents(&world, 4);
    // The same stripe of two members: each is made without the other.
    flip(&large(&world, 0), 10);
    flip(&large(&world, 1), 10);
    flip(&large(&world, 0), 100_000);
    flip(&large(&world, 1), 100_000);
    let found = world.verify();
    assert!(found.is_sound() && found.damaged == 4, "{found:?}");
    assert_eq!(contents(&world, 4), before);
}

/// Every unit of two nodes: no scheme with one parity has that again.
fn ruin(world: &World) {
    for node in [0, 1] {
        let path = large(world, node);
        for at in (0..fs::metadata(&path).unwrap().len()).step_by(4096) {
            flip(&path, at);
        }
    }
}

#[test]
fn what_is_beyond_repair_is_told_marked_and_not_written() {
    let mut world = World::new(3, Scheme::Xor);
    ruin(&world);
    let ruined = [large(&world, 0), large(&world, 1)].map(|path| fs::read(path).unwrap());
    let found = world.verify();
    assert!(!found.is_sound(), "{found:?}");
    let both = [Slot(0), Slot(1)].into();
    assert_eq!(found.spoilt, both);
    for (node, bytes) in ruined.iter().enumerate() {
        // Some units can be made, where the other's chunk of the stripe is parity or sound.
        let now = fs::read(large(&world, node)).unwrap();
        let sound: Vec<u8> = (0..200_000u32)
            .map(|at| (at * (node as u32 + 7) % 251) as u8)
            .collect();
        for ((now, bad), good) in now.iter().zip(bytes).zip(&sound) {
            assert!(now == bad || now == good, "a third thing was written");
        }
        let slot = Slot(u32::try_from(node).unwrap());
        assert!(world.paths(node).damage(ID, slot, Stream::Data).exists());
    }
}

#[test]
fn the_prefix_repairs_what_the_set_cannot_and_is_repaired_from_the_cache() {
    let mut world = World::new(3, Scheme::Xor);
    world.flush();
    let before = contents(&world, 3);
    let in_prefix = describe(&world.prefix_path());
    ruin(&world);
    let found = world.verify();
    assert!(found.is_sound() && found.damaged > 10, "{found:?}");
    assert_eq!(contents(&world, 3), before);
    // Whichever of the three it is of, it is the only file of that name there.
    let files: Vec<PathBuf> = (0..3)
        .map(|slot| world.prefix_path().join(format!("data.{slot}")))
        .collect();
    flip(&files[1], 5);
    let found = world.verify();
    assert_eq!((found.damaged, found.repaired), (1, 1), "{found:?}");
    assert_eq!(found.problems[0].kept, Kept::Prefix);
    assert_eq!(describe(&world.prefix_path()), in_prefix);
}

#[test]
fn a_file_that_is_gone_or_cut_is_told_and_nothing_is_put_in_its_place() {
    let mut world = World::new(3, Scheme::Xor);
    fs::remove_file(large(&world, 1)).unwrap();
    let found = world.verify();
    assert_eq!(found.spoilt, [Slot(1)].into(), "{found:?}");
    assert!(!large(&world, 1).exists());
    assert!(world.paths(1).damage(ID, Slot(1), Stream::Data).exists());
}

#[test]
fn a_missing_parity_is_told() {
    let mut world = World::new(3, Scheme::Xor);
    fs::remove_file(parity(&world, 2)).unwrap();
    let found = world.verify();
    assert_eq!(found.unguarded, [Slot(2)].into(), "{found:?}");
    assert!(found.spoilt.is_empty());
}

#[test]
fn stopped_at_any_moment_it_has_done_no_harm() {
    let mut stopped = 0;
    for turns in 0.. {
        let mut world = World::new(3, Scheme::Xor);
        let before = contents(&world, 3);
        flip(&large(&world, 1), 100_003);
        flip(&large(&world, 2), 17);
        let ticket = world.begin(world.verifying(Checking::Files));
        world.run_for(ticket, turns);
        let is_over = world.has_ended(ticket);
        world.abandon(ticket);
        let _ = world.result(ticket);
        world.restart();
        let found = world.verify();
        assert!(found.is_sound(), "{found:?}");
        // Marks of what was found by a read stay until all is known to be sound.
        assert_eq!(contents(&world, 3), before, "stopped after {turns} turns");
        if is_over {
            break;
        }
        stopped += 1;
    }
    // More or fewer, as tasks end together or apart.
    assert!(stopped >= 3, "it was stopped {stopped} times only");
}

#[test]
fn a_peer_that_gives_wrong_metadata_is_not_believed() {
    let mut world = World::new(3, Scheme::Xor);
    let own = world.paths(1).manifest(ID, Slot(1), Keep::Own);
    flip(&own, 40);
    let flipped = fs::read(&own).unwrap();
    // Cut on its way, or by who gives it.
    world.forge = |message| {
        if let Message::HaveMetadata {
            metadata: Some(given),
            ..
        } = message
        {
            given.manifest.truncate(50);
        }
    };
    world.restart();
    let found = world.verify();
    assert!(!found.is_sound(), "{found:?}");
    assert_eq!(fs::read(&own).unwrap(), flipped, "it was believed");
    assert!(found.spoilt.contains(&Slot(1)), "{found:?}");
    let metadata = found.problems.iter().find(|it| it.kept == Kept::Metadata);
    assert!(metadata.is_some_and(|it| !it.repaired), "{found:?}");
}
