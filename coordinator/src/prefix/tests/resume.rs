//! A flush that is begun again does not copy again what is finished, and trusts nothing else.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

const FILES: [(&str, &[u8]); 3] = [
    ("a", &[1; 5_000_000]),
    ("b", &[2; 5_000_000]),
    ("c", &[3; 5_000_000]),
];

impl World {
    /// Flushes one slot until about so many bytes are copied, then stops as a kill would.
    fn flush_until(&self, record: &DatasetRecord, bytes: u64) {
        let stop = AtomicBool::new(false);
        let limits = FlushLimits {
            streams: 1,
            ..FlushLimits::default()
        };
        let progress = |done| stop.store(done >= bytes, Ordering::Relaxed);
        let part = self.part(record, 0);
        let error = self
            .prefix
            .flush_part(record, &part, limits, &progress, &stop)
            .unwrap_err();
        assert_eq!(error.cause(), Cause::Cancelled);
    }

    fn resumed(&self, record: &DatasetRecord) -> u64 {
        self.flush_slot(record, 0).unwrap().resumed
    }

    fn attempt(&self, record: &DatasetRecord) -> PathBuf {
        self.prefix.paths().attempt(record.key(), record.epoch)
    }
}

fn inode_of(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn what_is_finished_is_not_copied_again_in_this_epoch_nor_in_the_next() {
    for next in [0, 1] {
        let world = World::new();
        let mut record = world.files(1, "c", &FILES);
        world.flush_until(&record, 9_000_000);
        let before = world.attempt(&record);
        let first = inode_of(&before.join("a"));
        assert!(!before.join("c").exists(), "removed, for it is not whole");
        record.epoch.0 += next;
        assert!((1..3).contains(&world.resumed(&record)));
        assert_eq!(inode_of(&world.attempt(&record).join("a")), first);
        // All of it now.
        assert_eq!(world.resumed(&record), 3);
        world.prefix.complete_flush(&record).unwrap();
        assert!(world.has_all_of(&record));
        assert_eq!(world.leftovers(), [""; 0]);
        world.fetches_all_of(&record);
    }
}

#[test]
fn what_was_not_noted_after_its_sync_is_copied_again() {
    let world = World::new();
    let record = world.files(1, "c", &FILES);
    assert_eq!(world.resumed(&record), 0);
    let noted = world
        .prefix
        .paths()
        .done(record.key(), record.epoch, Slot(0));
    // Whole, but nothing says that it is durable.
    fs::remove_file(&noted).unwrap();
    let a = world.attempt(&record).join("a");
    let first = inode_of(&a);
    fs::hard_link(&a, world.root.path().join("kept")).unwrap();
    assert_eq!(world.resumed(&record), 0);
    assert_ne!(inode_of(&a), first);
    // Another file has its name; while the first lives, not its number.
    fs::rename(&a, world.root.path().join("also kept")).unwrap();
    fs::write(&a, vec![9; 5_000_000]).unwrap();
    assert_eq!(world.resumed(&record), 2);
    // It is not as long as it should be.
    File::options()
        .write(true)
        .open(&a)
        .unwrap()
        .set_len(7)
        .unwrap();
    assert_eq!(world.resumed(&record), 2);
    world.flush(&record);
    assert!(world.has_all_of(&record));
}

#[test]
fn what_is_damaged_is_found_and_not_taken_over_for_ever() {
    let world = World::new();
    let mut record = world.files(1, "c", &FILES);
    world.flush_slots(&record);
    flip(&world.attempt(&record).join("b"), 4_000_000);
    record.epoch.0 += 1;
    let error = world.flush_slot(&record, 0).unwrap_err();
    assert_eq!(error.cause(), Cause::Damaged, "{error}");
    assert_eq!(world.resumed(&record), 0);
    world.prefix.complete_flush(&record).unwrap();
    assert!(world.has_all_of(&record));
}

#[test]
fn random_trees_are_taken_over_by_the_next_epoch() {
    for seed in 0..8 {
        let world = World::new();
        let mut record = world.dataset(5, "ckpt.5", 2, seed);
        world.flush_slots(&record);
        let before = world.attempt(&record);
        // As far as modes: what comes next must be able to move files out of read-only directories.
        let stop = |step: &'static str| match step {
            "write the flushing entry" => Err(io::Error::other("crashed")),
            _ => Ok(()),
        };
        assert!(world.prefix.complete_flush_with(&record, &stop).is_err());
        record.epoch.0 += 1;
        let files = record.seal.as_ref().unwrap().files();
        let resumed = (0..2).map(|slot| world.flush_slot(&record, slot).unwrap().resumed);
        assert_eq!(resumed.sum::<u64>(), files);
        let left = describe(&before);
        assert!(
            left.keys().all(|path| !before.join(path).is_file()),
            "{left:?}"
        );
        world.prefix.complete_flush(&record).unwrap();
        assert!(world.has_all_of(&record));
        assert_eq!(world.leftovers(), [""; 0]);
        world.fetches_all_of(&record);
    }
}

#[test]
fn one_part_is_flushed_by_one_attempt_at_a_time() {
    let world = World::new();
    let record = world.files(1, "c", &FILES);
    let part = world.part(&record, 0);
    let seen = std::cell::RefCell::new(Vec::new());
    let again = |_| {
        let error = world.flush_slot(&record, 0).unwrap_err();
        seen.borrow_mut().push(error);
    };
    world
        .prefix
        .flush_part(&record, &part, FlushLimits::default(), &again, &GO)
        .unwrap();
    let error = seen.take().remove(0);
    assert!(matches!(error, PrefixError::Hanging { .. }), "{error}");
    assert!(error.is_retryable() && error.to_string().contains("inflight"));
    assert_eq!(world.resumed(&record), 3);
}

#[test]
fn a_prefix_that_was_removed_is_not_made_again() {
    let world = World::new();
    let record = world.files(1, "c", &FILES);
    let root = world.prefix.paths().root().to_owned();
    fs::remove_dir_all(&root).unwrap();
    for error in [
        world.flush_slot(&record, 0).unwrap_err(),
        world.prefix.complete_flush(&record).unwrap_err(),
        world
            .prefix
            .write_pointers(&Default::default())
            .unwrap_err(),
    ] {
        assert!(matches!(error, PrefixError::Missing { .. }), "{error}");
        assert!(error.to_string().contains(root.to_str().unwrap()));
    }
    assert!(!root.exists());
    // Underneath, while it is under way.
    fs::create_dir(&root).unwrap();
    let part = world.part(&record, 0);
    let gone = |_| fs::remove_dir_all(&root).unwrap_or_default();
    let result = world
        .prefix
        .flush_part(&record, &part, FlushLimits::default(), &gone, &GO);
    assert!(result.is_err());
    fs::create_dir_all(&root).unwrap();
    world.flush(&record);
    assert!(world.has_all_of(&record));
}

#[test]
fn what_was_cut_off_and_then_left_out_goes_when_the_job_ends() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job("one");
    let older = world.files(47, "ckpt.47", &FILES);
    let mut newer = world.files(48, "ckpt.48", &[("a", b"new")]);
    world.flush_until(&older, 9_000_000);
    // The next epoch still has both in its caches, and flushes one of them.
    world
        .prefix
        .reconcile(&[older.key(), newer.key()].into())
        .unwrap();
    newer.epoch.0 += 1;
    world.flush(&newer);
    assert_eq!(world.leftovers(), [older.key().to_string()]);
    world.prefix.end_job(newer.epoch).unwrap();
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(!world.prefix.paths().manifests(older.key()).exists());
    assert!(world.has_all_of(&newer));
    world.fetches_all_of(&newer);
}

#[test]
fn the_end_of_a_job_takes_nothing_from_others_nor_from_who_goes_on() {
    let mut world = World::new();
    let root = world.prefix.paths().root().to_owned();
    world.prefix = Prefix::open(&root).unwrap().of_job("one");
    let mut later = world.files(1, "later", &[("a", b"1")]);
    let last = later.epoch;
    // Of a supervisor that was taken for dead, beside that of the one that has the job now.
    world.flush_slots(&later);
    later.epoch.0 += 1000;
    world.flush_slots(&later);
    let publishing = world.files(2, "publishing", &[("a", b"2")]);
    world.flush_slots(&publishing);
    let stopped = world
        .prefix
        .complete_flush_with(&publishing, &|step| match step {
            "take the name" => Err(io::Error::other("stopped")),
            _ => Ok(()),
        });
    assert!(stopped.is_err());
    let strange = world.prefix.paths().inflights().join("what is this");
    fs::create_dir(&strange).unwrap();
    world.prefix = Prefix::open(&root).unwrap().of_job("two");
    let theirs = world.files(3, "theirs", &[("a", b"3")]);
    world.flush_slots(&theirs);
    let one = Prefix::open(&root).unwrap().of_job("one");
    one.end_job(last).unwrap();
    assert!(strange.exists());
    for record in [&later, &publishing, &theirs] {
        world.prefix.complete_flush(record).unwrap();
        assert!(world.has_all_of(record));
        world.fetches_all_of(record);
    }
}
