//! Which datasets are saved, and from where.

use super::*;
use crate::config::Class;
use crate::layout::pointer::{Content, Pointer, PointerRecord, Version};
use crate::layout::record::{EpochRecord, PartSummary};
use crate::name::Name;
use crate::protocol::message::{InventoryEntry, PartState};
use crate::redundancy::Scheme;

const SLOTS: u32 = 4;

fn record(id: u64, class: Class) -> DatasetRecord {
    let part = |slot: u32| PartSummary {
        log_bytes: 100_000 + u64::from(slot),
        files: 1,
        manifest_crc: 7 + slot,
    };
    DatasetRecord {
        id: DatasetId(id),
        name: Name::new(format!("d.{id}").as_bytes()).expect("a name"),
        committed_from: None,
        class,
        checkpoint: None,
        phase: Phase::Sealed,
        epoch: Epoch(3),
        created: id,
        sealed: Some(id),
        protected: Some(id),
        flushing: true,
        flushed: None,
        seal: Some(Seal {
            epoch: Epoch(3),
            scheme: Scheme::Xor,
            chunk_bytes: 4096,
            unit_bytes: 4096,
            sets: vec![(0..SLOTS).map(Slot).collect()],
            parts: (0..SLOTS).map(part).collect(),
        }),
        error: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    }
}

fn node(slot: u32) -> String {
    format!("n{slot}")
}

/// Each slot on its node, with copies of its neighbours' metadata.
fn catalogs(records: &[DatasetRecord]) -> Catalogs {
    let of = |slot: u32| {
        let entry = |record: &DatasetRecord| InventoryEntry {
            record: record.clone().into(),
            parts: vec![PartState {
                slot: Slot(slot),
                manifest_crc: 7 + slot,
                intact: true,
                sums: true,
                parity: true,
            }],
            copies: vec![Slot((slot + 1) % SLOTS), Slot((slot + 3) % SLOTS)],
        };
        let inventory = Inventory {
            node: node(slot),
            epoch: EpochRecord {
                epoch: Epoch(3),
                slot: Some(Slot(slot)),
                ..EpochRecord::default()
            },
            datasets: records.iter().map(entry).collect(),
            ..Inventory::default()
        };
        (node(slot), inventory)
    };
    (0..SLOTS).map(of).collect()
}

fn planned(catalogs: &Catalogs) -> (Vec<u64>, Vec<u64>) {
    with(catalogs, &PrefixView::default(), &BTreeMap::new())
}

/// What is saved, in order, and what should be and cannot.
fn with(
    catalogs: &Catalogs,
    prefix: &PrefixView,
    given_up: &BTreeMap<DatasetKey, String>,
) -> (Vec<u64>, Vec<u64>) {
    let (plan, beyond) = plan(catalogs, prefix, given_up, Epoch(99));
    let ids = plan.salvages.iter().map(|salvage| salvage.record.id.0);
    let lost = beyond.iter().map(|beyond| beyond.record.id.0);
    (ids.collect(), lost.collect())
}

#[test]
fn outputs_come_first_in_order_then_the_newest_checkpoint() {
    let all = [
        record(1, Class::Output),
        record(2, Class::Checkpoint),
        record(3, Class::Output),
        record(4, Class::Checkpoint),
    ];
    assert_eq!(planned(&catalogs(&all)), (vec![1, 3, 4], vec![]));
    // Both in one: nothing older is needed.
    let both = [all[1].clone(), record(5, Class::Both)];
    assert_eq!(planned(&catalogs(&both)), (vec![5], vec![]));
    // One that is given up brings the next older one.
    let given_up = BTreeMap::from([(all[3].key(), "damaged".to_owned())]);
    let prefix = PrefixView::default();
    let found = with(&catalogs(&all), &prefix, &given_up);
    assert_eq!(found, (vec![1, 3, 2], vec![4]));
}

#[test]
fn what_the_prefix_has_is_not_copied_again_nor_anything_older() {
    let all = [record(1, Class::Output), record(2, Class::Checkpoint)];
    let mut flushed = record(3, Class::Checkpoint);
    flushed.flushed = Some(9);
    let mut prefix = PrefixView {
        complete: vec![flushed],
        ..PrefixView::default()
    };
    let all = [&all[..], &[record(3, Class::Checkpoint)]].concat();
    let none = BTreeMap::new();
    assert_eq!(with(&catalogs(&all), &prefix, &none), (vec![1], vec![]));
    // One that no restart works from is no reason to keep nothing else.
    prefix.failed.insert(all[2].key());
    assert_eq!(with(&catalogs(&all), &prefix, &none), (vec![1, 2], vec![]));
}

#[test]
fn no_checkpoint_is_newer_than_a_lost_output() {
    let mut lost = record(3, Class::Output);
    lost.protected = None;
    let all = [
        record(2, Class::Checkpoint),
        lost,
        record(4, Class::Checkpoint),
        record(5, Class::Output),
    ];
    let mut catalogs = catalogs(&all);
    catalogs.remove(&node(1));
    // The output after it is worth having all the same.
    assert_eq!(planned(&catalogs), (vec![5, 2], vec![3]));
}

#[test]
fn lost_slots_are_rebuilt_within_the_scheme_and_an_older_one_is_taken_beyond_it() {
    let mut safe = record(1, Class::Checkpoint);
    let all = [safe.clone(), record(2, Class::Checkpoint)];
    let mut left = catalogs(&all);
    left.remove(&node(2));
    let (plan, beyond) = plan(&left, &PrefixView::default(), &BTreeMap::new(), Epoch(99));
    assert_eq!(beyond, []);
    let [salvage] = plan.salvages.as_slice() else {
        panic!("{plan:?}")
    };
    assert_eq!(salvage.lost, [Slot(2)]);
    assert_eq!(salvage.metadata, [(Slot(2), node(1))]);
    let others = [0, 1, 3].map(|slot| (Slot(slot), node(slot)));
    assert_eq!(salvage.data, others);
    assert_eq!(salvage.parity, others);
    assert_eq!(
        (salvage.record.epoch, salvage.record.flushing),
        (Epoch(99), false)
    );
    left.remove(&node(1));
    assert_eq!(planned(&left), (vec![], vec![2, 1]));
    // Two slots gone, and nothing of them in the older one.
    if let Some(seal) = &mut safe.seal {
        seal.sets.pop();
        seal.sets
            .extend([vec![Slot(0), Slot(3)], vec![Slot(1), Slot(2)]]);
        seal.scheme = Scheme::Partner { copies: 1 };
    }
    let mut left = catalogs(&[safe, all[1].clone()]);
    left.remove(&node(1));
    assert_eq!(planned(&left), (vec![2], vec![]));
    spoil(&mut left, &node(0), all[1].key(), Slot(0), Stream::Data);
    assert_eq!(planned(&left), (vec![1], vec![2]));
}

#[test]
fn only_the_parity_that_is_needed_is_copied() {
    let mut partner = record(1, Class::Checkpoint);
    if let Some(seal) = &mut partner.seal {
        seal.scheme = Scheme::Partner { copies: 1 };
    }
    let mut left = catalogs(&[partner]);
    left.remove(&node(2));
    let (plan, _) = plan(&left, &PrefixView::default(), &BTreeMap::new(), Epoch(99));
    assert_eq!(plan.salvages[0].parity, [(Slot(3), node(3))]);
}

#[test]
fn of_what_nobody_knows_the_names_nothing_is_promised() {
    let mut left = catalogs(&[record(1, Class::Checkpoint)]);
    left.remove(&node(2));
    for inventory in left.values_mut() {
        inventory.datasets[0].copies.clear();
    }
    assert_eq!(planned(&left), (vec![], vec![1]));
}

#[test]
fn what_programs_removed_is_the_last_resort() {
    let mut removed = record(1, Class::Checkpoint);
    removed.phase = Phase::Removed { overtaken: true };
    let mut lost = record(2, Class::Checkpoint);
    lost.protected = None;
    let mut left = catalogs(&[removed.clone(), lost]);
    assert_eq!(planned(&left), (vec![2], vec![]));
    left.remove(&node(0));
    assert_eq!(planned(&left), (vec![1], vec![2]));
    removed.phase = Phase::Removed { overtaken: false };
    assert_eq!(planned(&catalogs(&[removed])), (vec![], vec![]));
}

#[test]
fn pointer_files_follow_what_they_name() {
    let mut catalogs = catalogs(&[record(1, Class::Checkpoint), record(2, Class::Checkpoint)]);
    for (number, (name, after)) in [("latest", 2), ("first", 1)].into_iter().enumerate() {
        let pointer = PointerRecord {
            version: Version {
                term: 1,
                number: number as u64,
            },
            after: Some(DatasetId(after)),
            pointer: Some(Pointer {
                content: Content::File(b"x".to_vec()),
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
            }),
        };
        let name = Name::new(name.as_bytes()).expect("a name");
        let inventory = catalogs.get_mut("n0").expect("a node");
        inventory.pointers.learn(name, pointer);
    }
    let mut prefix = PrefixView {
        complete: vec![record(1, Class::Checkpoint)],
        ..PrefixView::default()
    };
    let names = |prefix: &PrefixView| -> Vec<String> {
        let due = pointers_due(&catalogs, prefix);
        due.all.keys().map(ToString::to_string).collect()
    };
    assert_eq!(names(&prefix), ["first"]);
    // Another dataset of that number is not meant.
    prefix.complete[0].created = 77;
    assert_eq!(names(&prefix), [""; 0]);
}
