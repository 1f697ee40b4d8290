//! A flush that ends at any step leaves no dataset of that name or a complete one.

use super::*;
use std::cell::Cell;
use std::collections::BTreeSet;

/// Completes a flush and dies at step `at`; whether it got that far.
fn dies_at(world: &World, record: &DatasetRecord, at: usize) -> Option<&'static str> {
    let (count, died) = (Cell::new(0), Cell::new(None));
    let result = world.prefix.complete_flush_with(record, &|step| {
        count.set(count.get() + 1);
        if count.get() > at {
            died.set(Some(step));
            return Err(io::Error::other("crashed"));
        }
        Ok(())
    });
    assert_eq!(result.is_err(), died.get().is_some());
    died.get()
}

fn keep(record: &DatasetRecord, kept: bool) -> BTreeSet<DatasetKey> {
    if kept {
        BTreeSet::from([record.key()])
    } else {
        BTreeSet::new()
    }
}

#[test]
fn invariant_a_new_dataset_is_whole_or_absent() {
    let mut steps = vec![];
    for kept in [false, true] {
        for at in 0.. {
            let world = World::new();
            let mut record = world.dataset(5, "ckpt.5", 2, 77);
            world.flush_slots(&record);
            let Some(step) = dies_at(&world, &record, at) else {
                break;
            };
            steps.push(step);
            let visible = world.published("ckpt.5").exists();
            assert!(!visible || world.has_all_of(&record), "torn after `{step}`");
            world.prefix.reconcile(&keep(&record, kept)).unwrap();
            let after = world.published("ckpt.5").exists();
            assert!(
                !after || world.has_all_of(&record),
                "torn after `{step}` and reconcile"
            );
            assert!(after || !visible, "`{step}`: reconcile took it away");
            let listed = if after {
                vec![(5, EntryState::Complete)]
            } else {
                vec![]
            };
            assert_eq!(world.ids(), listed, "after `{step}`");
            assert!(
                after || kept || world.leftovers().is_empty(),
                "after `{step}`"
            );
            // The next epoch gets there.
            record.epoch.0 += 1;
            world.flush(&record);
            assert!(world.has_all_of(&record), "after `{step}` and a retry");
            assert_eq!(world.ids(), [(5, EntryState::Complete)]);
            assert_eq!(world.leftovers(), [""; 0], "after `{step}` and a retry");
            world.fetches_all_of(&record);
        }
    }
    assert_eq!(steps.len(), 2 * 8, "{steps:?}");
}

#[test]
fn invariant_a_replaced_dataset_is_the_old_or_the_new_one() {
    let mut died = 0;
    for at in 0.. {
        let world = World::new();
        let old = world.dataset(5, "ckpt", 1, 77);
        world.flush(&old);
        let mut new = world.dataset(6, "ckpt", 2, 99);
        world.flush_slots(&new);
        let Some(step) = dies_at(&world, &new, at) else {
            break;
        };
        died += 1;
        let (is_old, is_new) = (world.has_all_of(&old), world.has_all_of(&new));
        assert!(is_old || is_new, "neither after `{step}`");
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        let flushed_before = world.prefix.entry(new.key()).unwrap().is_some();
        assert_eq!(world.has_all_of(&new), flushed_before, "after `{step}`");
        assert_eq!(world.has_all_of(&old), !flushed_before, "after `{step}`");
        let id = if flushed_before { 6 } else { 5 };
        assert_eq!(world.ids(), [(id, EntryState::Complete)], "after `{step}`");
        assert_eq!(world.leftovers(), [""; 0], "after `{step}`");
        assert_eq!(
            world.prefix.paths().manifests(old.key()).exists(),
            !flushed_before,
            "`{step}`"
        );
        new.epoch.0 += 1;
        world.flush(&new);
        assert!(world.has_all_of(&new));
        assert_eq!(world.ids(), [(6, EntryState::Complete)]);
        world.fetches_all_of(&new);
    }
    assert_eq!(died, 9);
}

/// The prefix between the two renames that stand in for an exchange.
fn set_aside(world: &World, old: &DatasetRecord, new: &DatasetRecord) {
    world.flush(old);
    world.flush_slots(new);
    let step = dies_at(world, new, 3);
    assert_eq!(step, Some("take the name"));
    let entry = world.prefix.entry(new.key()).unwrap().unwrap();
    let attempt = world.prefix.paths().attempt(new.key(), new.epoch);
    let name = world.prefix.paths().dataset(&new.name);
    let crash = |_| Err(PrefixError::NotSealed { dataset: new.id });
    let replaced = entry.replaces.unwrap();
    assert!(
        world
            .prefix
            .exchange_in_two_steps(&attempt, &name, replaced, &crash)
            .is_err()
    );
    assert!(!name.exists());
}

#[test]
fn where_nothing_can_be_exchanged_a_crash_is_finished() {
    let world = World::new();
    let old = world.dataset(5, "ckpt", 1, 7);
    let new = world.dataset(6, "ckpt", 1, 9);
    set_aside(&world, &old, &new);
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert!(world.has_all_of(&new));
    assert_eq!(world.ids(), [(6, EntryState::Complete)]);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn what_was_set_aside_comes_back_when_the_new_one_is_not_whole() {
    let world = World::new();
    let old = world.dataset(5, "ckpt", 1, 7);
    let new = world.files(6, "ckpt", &[("a", b"new")]);
    set_aside(&world, &old, &new);
    let attempt = world.prefix.paths().attempt(new.key(), new.epoch);
    fs::remove_file(attempt.join("a")).unwrap();
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert!(world.has_all_of(&old));
    assert_eq!(world.ids(), [(5, EntryState::Complete)]);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let world = World::new();
    let record = world.files(5, "results", &[("a", b"new")]);
    let theirs = world.published("results");
    for make in [
        (|path: &Path| fs::create_dir(path)) as fn(&Path) -> io::Result<()>,
        |path| fs::write(path, b"a file"),
        |path| symlink("/nowhere", path),
    ] {
        make(&theirs).unwrap();
        world.flush_slots(&record);
        let error = world.prefix.complete_flush(&record).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("is not ours: move it away"), "{text}");
        assert_eq!(
            (error.cause(), error.is_retryable()),
            (Cause::Conflict, false)
        );
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        assert_eq!(world.ids(), []);
        let found = fs::symlink_metadata(&theirs).unwrap();
        if found.is_dir() {
            fs::remove_dir(&theirs)
        } else {
            fs::remove_file(&theirs)
        }
        .unwrap();
    }
    world.flush(&record);
    assert!(world.has_all_of(&record));
}

#[test]
fn what_comes_between_check_and_rename_is_not_touched_either() {
    let world = World::new();
    let record = world.files(5, "results", &[("a", b"new")]);
    let theirs = world.published("results");
    world.flush_slots(&record);
    let result = world
        .prefix
        .complete_flush_with(&record, &|step| match step {
            "take the name" => fs::create_dir(&theirs),
            _ => Ok(()),
        });
    assert!(
        matches!(result, Err(PrefixError::NotOurs { .. })),
        "{result:?}"
    );
    // It waits, with nobody keeping it, until the name is free.
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(world.ids(), [(5, EntryState::Flushing)]);
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
    assert_eq!(world.prefix.newest_complete().unwrap(), None);
    fs::remove_dir(&theirs).unwrap();
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert!(world.has_all_of(&record));
    assert_eq!(world.ids(), [(5, EntryState::Complete)]);
}

#[test]
fn a_copied_prefix_is_still_ours() {
    let world = World::new();
    let old = world.files(5, "results", &[("a", b"old")]);
    world.flush(&old);
    // The same files under other inode numbers.
    let (path, copy) = (world.published("results"), world.published("copy"));
    fs::create_dir(&copy).unwrap();
    fs::copy(path.join("a"), copy.join("a")).unwrap();
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&copy, &path).unwrap();
    world.fetches_all_of(&old);
    let new = world.files(6, "results", &[("a", b"newer")]);
    world.flush(&new);
    assert!(world.has_all_of(&new));
    assert_eq!(world.ids(), [(6, EntryState::Complete)]);
}
