//! Deleting, dropping, adding, choosing and keeping: right, and right after a crash at every step.

use super::*;
use crate::bench::limits::cpu_time;
use scrfs::config::Class;
use std::cell::Cell;
use std::collections::BTreeSet;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Runs `operation`, which dies at step `at`; whether it got that far.
fn dies_at<T>(
    at: usize,
    operation: impl FnOnce(StepHook<'_>) -> Result<T, PrefixError>,
) -> Option<&'static str> {
    let (count, died) = (Cell::new(0), Cell::new(None));
    let result = operation(&|step| {
        count.set(count.get() + 1);
        if count.get() > at {
            died.set(Some(step));
            return Err(io::Error::other("crashed"));
        }
        Ok(())
    });
    assert_eq!(result.is_err(), died.get().is_some(), "{:?}", result.err());
    died.get()
}

impl World {
    fn current(&self) -> Option<u64> {
        let entries = self.prefix.list().unwrap();
        let current = self.prefix.current(&entries).unwrap();
        current.map(|entry| entry.record.id.0)
    }

    fn complete(&self) -> Vec<u64> {
        let entries = self.prefix.list().unwrap();
        let complete = entries.iter().filter(|entry| entry.is_complete());
        complete.map(|entry| entry.record.id.0).collect()
    }

    fn restart(&self) {
        self.prefix.reconcile(&BTreeSet::new()).unwrap();
    }

    /// Flushed checkpoints `ckpt.<id>`, and outputs `out.<id>`.
    fn flushed(&self, ids: std::ops::RangeInclusive<u64>, outputs: &[u64]) -> Vec<DatasetRecord> {
        ids.map(|id| {
            let is_output = outputs.contains(&id);
            let kind = if is_output { "out" } else { "ckpt" };
            let content = format!("content of {id}");
            let mut record = self.files(id, &format!("{kind}.{id}"), &[("a", content.as_bytes())]);
            if is_output {
                record.class = Class::Output;
            }
            self.flush(&record);
            record
        })
        .collect()
    }

    /// That nothing but its tombstone is left of a dataset.
    fn is_deleted(&self, record: &DatasetRecord) -> bool {
        let paths = self.prefix.paths();
        let key = record.key();
        let left = [
            paths.dataset(&record.name),
            paths.entry(key),
            paths.dropped_entry(key),
            paths.manifests(key),
            paths.deleted(key),
            paths.failed_mark(key),
        ];
        left.iter().all(|path| !path.exists()) && paths.gone_mark(key).exists()
    }
}

#[test]
fn invariant_a_deleted_dataset_is_whole_or_gone() {
    let mut steps = vec![];
    for dropped in [false, true] {
        for at in 0.. {
            let world = World::new();
            let all = world.flushed(1..=3, &[]);
            world.prefix.fail(all[1].key()).unwrap();
            if dropped {
                world.prefix.drop_entry(&name("ckpt.2")).unwrap();
            }
            let delete =
                |step: StepHook<'_>| world.prefix.delete_with(&name("ckpt.2"), false, step);
            let Some(step) = dies_at(at, delete) else {
                assert!(world.is_deleted(&all[1]));
                break;
            };
            steps.push(step);
            let visible = world.published("ckpt.2").exists();
            assert!(!visible || world.has_all_of(&all[1]), "torn after `{step}`");
            world.restart();
            assert_eq!(world.has_all_of(&all[1]), visible, "`{step}`");
            assert_eq!(world.is_deleted(&all[1]), !visible, "`{step}`");
            assert_eq!(world.leftovers(), [""; 0], "`{step}`");
            let listed: &[u64] = if visible && !dropped {
                &[1, 2, 3]
            } else {
                &[1, 3]
            };
            assert_eq!(world.complete(), listed, "`{step}`");
            assert!(world.has_all_of(&all[0]) && world.has_all_of(&all[2]));
            if visible {
                world.prefix.delete(&name("ckpt.2"), false).unwrap();
                assert!(world.is_deleted(&all[1]));
            }
            // The name is free.
            let again = world.files(9, "ckpt.2", &[("b", b"new")]);
            world.flush(&again);
            world.restart();
            assert_eq!(world.complete(), [1, 3, 9]);
        }
    }
    assert_eq!(steps.len(), 2 * 4, "{steps:?}");
}

#[test]
fn what_is_needed_or_not_ours_is_not_deleted() {
    let world = World::new();
    let all = world.flushed(1..=2, &[]);
    let refused = |text: &str, what: &str| {
        let error = world.prefix.delete(&name(text), false).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    };
    refused("ckpt.2", "restart from");
    refused("ckpt.7", "no dataset `ckpt.7`");
    // Another comes, to take the name.
    let new = world.files(5, "ckpt.1", &[("a", b"new")]);
    world.flush_slots(&new);
    let coming = |step: StepHook<'_>| world.prefix.complete_flush_with(&new, step);
    assert_eq!(dies_at(3, coming), Some("take the name"));
    refused("ckpt.1", "being flushed");
    let error = world.prefix.drop_entry(&name("ckpt.1")).unwrap_err();
    assert!(error.to_string().contains("being flushed"), "{error}");
    world.restart();
    assert_eq!(world.complete(), [2, 5]);
    world.prefix.choose(&name("ckpt.2"), None).unwrap();
    // Somebody has put something else there.
    fs::rename(world.published("ckpt.1"), world.published("mine")).unwrap();
    fs::create_dir(world.published("ckpt.1")).unwrap();
    fs::write(world.published("ckpt.1/precious"), b"theirs").unwrap();
    refused("ckpt.1", "not ours");
    assert_eq!(
        fs::read(world.published("ckpt.1/precious")).unwrap(),
        b"theirs"
    );
    // Only when told.
    world.prefix.delete(&name("ckpt.2"), true).unwrap();
    assert!(world.is_deleted(&all[1]));
}

#[test]
fn what_takes_the_name_at_the_last_moment_gets_it_back() {
    let world = World::new();
    world.flushed(1..=2, &[]);
    let path = world.published("ckpt.1");
    let swap = |step: &'static str| {
        if step == "set the files aside" {
            fs::rename(&path, world.published("old"))?;
            fs::create_dir(&path)?;
            fs::write(path.join("precious"), b"theirs")?;
        }
        Ok(())
    };
    let error = world
        .prefix
        .delete_with(&name("ckpt.1"), false, &swap)
        .unwrap_err();
    assert!(matches!(error, PrefixError::Changed { .. }), "{error}");
    assert_eq!(fs::read(path.join("precious")).unwrap(), b"theirs");
    world.restart();
    assert_eq!(fs::read(path.join("precious")).unwrap(), b"theirs");
}

#[test]
fn what_lies_in_the_trash_and_is_not_what_was_deleted_stays() {
    let world = World::new();
    let all = world.flushed(1..=1, &[]);
    let aside = world.prefix.paths().deleted(all[0].key());
    fs::create_dir_all(&aside).unwrap();
    fs::write(aside.join("precious"), b"theirs").unwrap();
    world.restart();
    assert_eq!(fs::read(aside.join("precious")).unwrap(), b"theirs");
    assert_eq!(world.complete(), [1]);
}

#[test]
fn invariant_dropped_and_put_back_the_files_stay_as_they_are() {
    let (mut drops, mut adds) = (0, 0);
    for at in 0.. {
        let world = World::new();
        let all = world.flushed(1..=2, &[]);
        let two = name("ckpt.2");
        let drop = |step: StepHook<'_>| world.prefix.drop_entry_with(&two, step);
        let died = dies_at(at, drop).is_some();
        drops += usize::from(died);
        world.restart();
        assert_eq!(world.complete(), if died { vec![1, 2] } else { vec![1] });
        if died {
            world.prefix.drop_entry(&two).unwrap();
        }
        assert!(world.has_all_of(&all[1]));
        assert_eq!(world.current(), Some(1));
        assert!(world.prefix.gone().unwrap().contains(&all[1].key()));
        // Its name is not free for another.
        let other = world.files(7, "ckpt.2", &[("a", b"new")]);
        world.flush_slots(&other);
        let error = world.prefix.complete_flush(&other).unwrap_err();
        assert!(matches!(error, PrefixError::NotOurs { .. }), "{error}");
        let add = |step: StepHook<'_>| {
            world
                .prefix
                .add_with(&two, Class::Checkpoint, &|_, _| {}, step)
        };
        adds += usize::from(dies_at(at, add).is_some());
        world.restart();
        let added = world
            .prefix
            .add(&two, Class::Checkpoint, &|_, _| {})
            .unwrap();
        assert!(
            matches!(added, Added::Already | Added::PutBack),
            "{added:?}"
        );
        assert_eq!(world.complete(), [1, 2]);
        assert_eq!(world.current(), Some(2));
        assert_eq!(world.prefix.dropped().unwrap(), []);
        assert_eq!(world.prefix.gone().unwrap(), BTreeSet::new());
        world.fetches_all_of(&all[1]);
        if at > 3 {
            break;
        }
    }
    assert_eq!((drops, adds), (1, 2));
}

#[test]
fn what_was_dropped_and_is_not_all_there_is_not_put_back() {
    let world = World::new();
    world.flushed(1..=1, &[]);
    world.prefix.drop_entry(&name("ckpt.1")).unwrap();
    fs::write(world.published("ckpt.1/a"), b"longer than it was before").unwrap();
    let error = world
        .prefix
        .add(&name("ckpt.1"), Class::Checkpoint, &|_, _| {})
        .unwrap_err();
    assert_eq!(error.cause(), Cause::Damaged, "{error}");
    assert_eq!(world.complete(), [0; 0]);
}

#[test]
fn current_moves_forward_by_itself_and_back_only_when_told() {
    let world = World::new();
    world.flushed(1..=3, &[3]);
    assert_eq!(world.current(), Some(2));
    world.prefix.choose(&name("ckpt.1"), None).unwrap();
    assert_eq!(world.current(), Some(1));
    // An output is no checkpoint, an older one that comes late is not newer.
    world.flushed(5..=5, &[5]);
    assert_eq!(world.current(), Some(1));
    world.flushed(6..=6, &[]);
    assert_eq!(world.current(), Some(6));
    for (wrong, why) in [("out.3", "output"), ("ckpt.9", "no dataset")] {
        let error = world.prefix.choose(&name(wrong), None).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // What was chosen and is gone does not hold.
    world.prefix.choose(&name("ckpt.2"), None).unwrap();
    world.prefix.delete(&name("ckpt.2"), true).unwrap();
    assert_eq!(world.current(), Some(6));
    // Nor what is not to be read.
    world.prefix.choose(&name("ckpt.1"), None).unwrap();
    flip(&world.prefix.paths().choice(), 20);
    assert_eq!(world.current(), Some(6));
}

#[test]
fn a_failed_one_is_not_offered_until_somebody_chooses_it() {
    let world = World::new();
    let all = world.flushed(1..=3, &[]);
    world.prefix.fail(all[2].key()).unwrap();
    assert_eq!(world.current(), Some(2));
    world.prefix.choose(&name("ckpt.3"), None).unwrap();
    assert_eq!(world.current(), Some(3));
    assert_eq!(world.prefix.failed().unwrap(), BTreeSet::new());
}

#[test]
fn invariant_the_newest_are_kept_at_any_crash() {
    let mut steps = vec![];
    for at in 0.. {
        let world = World::new();
        // The fourth was chosen, the second is being fetched, the ninth is worth nothing.
        let all = world.flushed(1..=9, &[3, 7]);
        world.prefix.fail(all[8].key()).unwrap();
        let spare = BTreeSet::from([all[1].key()]);
        world.prefix.choose(&name("ckpt.4"), None).unwrap();
        let retain = |step: StepHook<'_>| world.prefix.retain_with(2, &spare, step);
        let died = dies_at(at, retain);
        steps.extend(died);
        world.restart();
        for id in [2, 3, 4, 6, 7, 8, 9] {
            assert!(world.has_all_of(&all[id - 1]), "{id} after {died:?}");
        }
        for record in &all {
            assert_ne!(
                world.has_all_of(record),
                world.is_deleted(record),
                "after {died:?}"
            );
        }
        world.prefix.retain(2, &spare).unwrap();
        assert_eq!(world.complete(), [2, 3, 4, 6, 7, 8, 9], "after {died:?}");
        assert_eq!(world.leftovers(), [""; 0]);
        if died.is_none() {
            break;
        }
    }
    assert_eq!(steps.len(), 2 * 4, "{steps:?}");
}

#[test]
fn with_no_limit_all_are_kept_and_what_was_adopted_always() {
    let world = World::new();
    fs::create_dir(world.published("theirs")).unwrap();
    fs::write(world.published("theirs/a"), b"theirs").unwrap();
    world
        .prefix
        .add(&name("theirs"), Class::Checkpoint, &|_, _| {})
        .unwrap();
    world.flushed(2..=4, &[]);
    assert_eq!(world.prefix.retain(0, &BTreeSet::new()).unwrap(), []);
    world.prefix.retain(1, &BTreeSet::new()).unwrap();
    assert_eq!(world.complete(), [1, 4]);
}

#[test]
fn numbers_of_deleted_datasets_are_not_given_again() {
    let world = World::new();
    let all = world.flushed(1..=2, &[]);
    world.prefix.delete(&name("ckpt.2"), true).unwrap();
    assert_eq!(world.prefix.highest_number().unwrap(), 2);
    assert!(world.prefix.gone().unwrap().contains(&all[1].key()));
    fs::create_dir(world.published("theirs")).unwrap();
    world
        .prefix
        .add(&name("theirs"), Class::Checkpoint, &|_, _| {})
        .unwrap();
    assert_eq!(world.complete(), [1, 3]);
}

/// What a job with this environment finds when its epoch begins.
fn current_of_job(world: &World, job: &str, wanted: &str, epoch: u64) -> Option<u64> {
    let environment = |variable: &str| match variable {
        "SCR_CURRENT" => Some(wanted.to_owned()),
        "SCR_JOB_ID" => Some(job.to_owned()),
        _ => None,
    };
    let root = world.prefix.paths().root().display().to_string();
    let sources = scrfs::config::Sources {
        env: &environment,
        user: None,
        system: None,
        cli: vec![("prefix".into(), root)],
    };
    let (config, _) = scrfs::config::Config::load(&sources).unwrap();
    let target = crate::target::Target::at(world.prefix.paths().root());
    crate::effects::choose_current(&target, &config, Epoch(epoch));
    let view = crate::effects::prefix_view(&target).unwrap();
    view.current.map(|key| key.id.0)
}

#[test]
fn scr_current_is_followed_once_a_job_and_undoes_nothing_newer() {
    let world = World::new();
    world.flushed(1..=3, &[]);
    assert_eq!(current_of_job(&world, "a", "", 1), Some(3));
    assert_eq!(current_of_job(&world, "a", "ckpt.1", 1), Some(1));
    assert_eq!(current_of_job(&world, "a", "ckpt.1", 2), Some(1));
    world.flushed(4..=4, &[]);
    assert_eq!(current_of_job(&world, "a", "ckpt.1", 3), Some(4));
    // What a person chooses since, holds; another job, or another wish, is followed.
    world.prefix.choose(&name("ckpt.3"), None).unwrap();
    assert_eq!(current_of_job(&world, "a", "ckpt.1", 4), Some(3));
    assert_eq!(current_of_job(&world, "a", "ckpt.2", 5), Some(2));
    assert_eq!(current_of_job(&world, "b", "ckpt.1", 6), Some(1));
    // The next job of the same name begins with epoch 1.
    world.flushed(5..=5, &[]);
    assert_eq!(current_of_job(&world, "b", "ckpt.1", 1), Some(1));
    // One that is not there changes nothing.
    assert_eq!(current_of_job(&world, "c", "ckpt.9", 1), Some(1));
}

/// How many datasets the large index has, besides the first.
const MANY: u64 = 1000;

/// The median of what a few runs take of this thread's processor: other programs do not count.
fn median_cpu(mut run: impl FnMut()) -> std::time::Duration {
    let mut all: Vec<_> = (0..5)
        .map(|_| {
            let begun = cpu_time();
            run();
            cpu_time() - begun
        })
        .collect();
    all.sort_unstable();
    all[2]
}

impl World {
    /// Enters many datasets of a thousand files each, whose manifests cannot be read: `ckpt.2` and on.
    fn enter_many(&self, record: &DatasetRecord) {
        let paths = self.prefix.paths();
        let entry = self.prefix.entry(record.key()).unwrap().unwrap();
        let manifest = paths.manifest(record.key(), Slot(0));
        let mut sealed = record.seal.clone().unwrap();
        sealed.parts[0].files = 1000;
        for id in 2..=MANY {
            let mut entry = entry.clone();
            entry.record.id = DatasetId(id);
            entry.record.name = name(&format!("ckpt.{id}"));
            entry.record.seal = Some(sealed.clone());
            (entry.files, entry.replaces) = (1000, None);
            let key = entry.key();
            fs::write(paths.entry(key), entry.encode()).unwrap();
            fs::create_dir(paths.manifests(key)).unwrap();
            symlink(&manifest, paths.manifest(key, Slot(1))).unwrap();
            fs::write(paths.manifest(key, Slot(0)), b"not a manifest").unwrap();
            fs::create_dir(paths.dataset(&entry.record.name)).unwrap();
        }
    }
}

/// A million files, in a thousand datasets: what a list costs beside reading the entries as plain files.
/// Measured: 1.3 to 1.7. Their manifests cannot be read.
const LIST_RATIO_MAX: f64 = 3.0;

#[test]
fn a_thousand_datasets_are_listed_at_the_cost_of_reading_their_entries() {
    let world = World::new();
    let record = world.flushed(1..=1, &[]).remove(0);
    world.enter_many(&record);
    let index = world.prefix.paths().index();
    let plain = median_cpu(|| {
        for entry in fs::read_dir(&index).unwrap() {
            std::hint::black_box(fs::read(entry.unwrap().path()).unwrap());
        }
    });
    let listed = median_cpu(|| {
        let entries = world.prefix.list().unwrap();
        let current = world.prefix.current(&entries).unwrap();
        assert_eq!(current.unwrap().record.id, DatasetId(MANY));
        assert_eq!(entries.len() as u64, MANY);
    });
    let ratio = listed.as_secs_f64() / plain.as_secs_f64();
    eprintln!("listed in {listed:?}, {ratio:.1} times reading the files");
    assert!(ratio < LIST_RATIO_MAX, "{listed:?} beside {plain:?}");
}

/// What completing a flush costs beside a thousand datasets, against an empty prefix. Measured: 0.7 to 1.7.
const COMMIT_RATIO_MAX: f64 = 3.0;

#[test]
fn a_commit_does_not_know_how_many_there_are() {
    let (empty, full) = (World::new(), World::new());
    let record = full.flushed(1..=1, &[]).remove(0);
    full.enter_many(&record);
    let commit = |world: &World, id: u64| {
        let record = world.files(id, &format!("ckpt.{id}"), &[("a", b"content")]);
        world.flush_slots(&record);
        let begun = cpu_time();
        world.prefix.complete_flush(&record).unwrap();
        cpu_time() - begun
    };
    let [alone, beside] = [&empty, &full].map(|world| {
        let mut all: Vec<_> = (1..=9).map(|at| commit(world, MANY + at)).collect();
        all.sort_unstable();
        all[4]
    });
    let ratio = beside.as_secs_f64() / alone.as_secs_f64();
    eprintln!("{beside:?} beside {MANY}, {ratio:.1} times alone");
    assert!(ratio < COMMIT_RATIO_MAX, "{beside:?} and {alone:?} alone");
}

#[test]
fn what_is_adopted_is_restarted_from_only_when_somebody_says_so() {
    let world = World::new();
    world.flushed(1..=1, &[]);
    for theirs in ["theirs", "others"] {
        fs::create_dir(world.published(theirs)).unwrap();
        world
            .prefix
            .add(&name(theirs), Class::Checkpoint, &|_, _| {})
            .unwrap();
    }
    assert_eq!(
        (world.complete(), world.current()),
        (vec![1, 2, 3], Some(1))
    );
    world.prefix.choose(&name("theirs"), None).unwrap();
    assert_eq!(world.current(), Some(2));
    // A job that runs does not know of their numbers.
    let mut late = world.files(2, "ckpt.2", &[("a", b"new")]);
    late.created = u64::MAX;
    world.flush(&late);
    let entries = world.prefix.list().unwrap();
    let current = world.prefix.current(&entries).unwrap().unwrap();
    assert_eq!(current.record.name, name("ckpt.2"));
}
