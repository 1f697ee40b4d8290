//! Flush and fetch against an independent comparer, damage, crashes at every step, and filesystems
//! that refuse.

#![allow(clippy::unwrap_used)]

mod adoption;
mod crashes;
mod jobs;
#[cfg(target_arch = "x86_64")]
mod power;
mod refusals;
mod resume;
mod scr;
#[cfg(target_arch = "x86_64")]
mod traced;
#[cfg(target_arch = "x86_64")]
mod tracer;
mod tracking;

use super::*;
use crate::part::testing::{describe, random_tree, sealed};
use crate::part::{Part, PartError};
use proptest::prelude::*;
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::path::CachePaths;
use scrfs::name::Name;
use scrfs::redundancy::Stream;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

static GO: AtomicBool = AtomicBool::new(false);

/// A cache with sealed datasets, and a prefix.
struct World {
    root: tempfile::TempDir,
    cache: CachePaths,
    prefix: Prefix,
    /// Something is mounted on the prefix.
    mounted: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        if self.mounted {
            let root = self.prefix.paths().root();
            nix::mount::umount2(root, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
}

impl World {
    fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(directory: &Path) -> Self {
        let root = tempfile::tempdir_in(directory).unwrap();
        let cache = CachePaths::at(&root.path().join("cache"));
        let path = root.path().join("prefix");
        fs::create_dir(&path).unwrap();
        let prefix = Prefix::open(&path).unwrap();
        Self {
            root,
            cache,
            prefix,
            mounted: false,
        }
    }

    /// A dataset with a random tree a slot.
    fn dataset(&self, id: u64, name: &str, slots: u32, seed: u64) -> DatasetRecord {
        for slot in 0..slots {
            let tree = self.cache.tree(DatasetId(id), Slot(slot));
            random_tree(&tree, slot, seed.wrapping_add(u64::from(slot)));
        }
        sealed(&self.cache, id, name, slots)
    }

    /// A dataset of one slot with these files.
    fn files(&self, id: u64, name: &str, files: &[(&str, &[u8])]) -> DatasetRecord {
        let tree = self.cache.tree(DatasetId(id), Slot(0));
        fs::create_dir_all(&tree).unwrap();
        for (file, bytes) in files {
            fs::write(tree.join(file), bytes).unwrap();
        }
        sealed(&self.cache, id, name, 1)
    }

    fn part(&self, record: &DatasetRecord, slot: u32) -> Part {
        Part::open(&PosixStore::new(), &self.cache, record, Slot(slot)).unwrap()
    }

    fn flush_slot(&self, record: &DatasetRecord, slot: u32) -> Result<FlushSummary, PrefixError> {
        let part = self.part(record, slot);
        self.prefix
            .flush_part(record, &part, FlushLimits::default(), &|_| {}, &GO)
    }

    fn flush_slots(&self, record: &DatasetRecord) {
        for slot in 0..record.seal.as_ref().unwrap().parts.len() {
            self.flush_slot(record, slot as u32).unwrap();
        }
    }

    fn flush(&self, record: &DatasetRecord) {
        self.flush_slots(record);
        self.prefix.complete_flush(record).unwrap();
    }

    fn published(&self, name: &str) -> PathBuf {
        self.prefix.paths().root().join(name)
    }

    /// Whether the prefix has all of a dataset under its name, as it is in the cache.
    fn has_all_of(&self, record: &DatasetRecord) -> bool {
        let root = self.prefix.paths().dataset(&record.name);
        if !root.exists() {
            return false;
        }
        let flushed = describe(&root);
        let mut names = std::collections::BTreeSet::new();
        for slot in 0..record.seal.as_ref().unwrap().parts.len() {
            let tree = self.cache.tree(record.id, Slot(slot as u32));
            for (path, cached) in describe(&tree) {
                // Directories of several slots have the attributes of one of them.
                let is_directory = tree.join(&path).is_dir();
                match flushed.get(&path) {
                    Some(found) if is_directory || *found == cached => {}
                    other => {
                        eprintln!("{path:?}: {other:?} instead of {cached:?}");
                        return false;
                    }
                }
                names.insert(path);
            }
        }
        names.len() == flushed.len()
    }

    /// That a fetch brings back each slot's tree as it was.
    fn fetches_all_of(&self, record: &DatasetRecord) {
        let other = CachePaths::at(&self.root.path().join("other"));
        for slot in (0..record.seal.as_ref().unwrap().parts.len() as u32).map(Slot) {
            self.prefix
                .fetch_part(record, slot, &other, &|_| {}, &GO)
                .unwrap();
            self.prefix.verify_part(record, slot, &|_| {}, &GO).unwrap();
            let (from, to) = (
                self.cache.tree(record.id, slot),
                other.tree(record.id, slot),
            );
            assert_eq!(describe(&from), describe(&to));
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            assert_eq!(time(&from), time(&to));
            let part = Part::open(&PosixStore::new(), &other, record, slot).unwrap();
            part.verify_against_tree().unwrap();
            assert!(part.sums(Stream::Data).is_complete());
        }
        fs::remove_dir_all(other.root()).unwrap();
    }

    fn leftovers(&self) -> Vec<String> {
        let paths = self.prefix.paths();
        let names = |path: &Path| self.prefix.store.list(path).unwrap();
        [names(&paths.inflights()), names(&paths.trash())]
            .concat()
            .into_iter()
            .map(|name| name.into_string().unwrap())
            .collect()
    }

    fn ids(&self) -> Vec<(u64, EntryState)> {
        let entries = self.prefix.list().unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.record.id.0, entry.state))
            .collect()
    }
}

/// Changes one byte and leaves everything else as it was.
fn flip(path: &Path, at: u64) {
    let found = fs::metadata(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.set_modified(found.modified().unwrap()).unwrap();
    fs::set_permissions(path, found.permissions()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_was_flushed_is_there_and_comes_back(seed: u64, slots in 1u32..4) {
        let world = World::new();
        let record = world.dataset(5, "ckpt.5", slots, seed);
        world.flush_slots(&record);
        prop_assert!(!world.published("ckpt.5").exists(), "visible before it is complete");
        world.prefix.complete_flush(&record).unwrap();
        prop_assert!(world.has_all_of(&record));
        let root = fs::metadata(world.published("ckpt.5")).unwrap();
        prop_assert_eq!(root.permissions().mode() & 0o7777, 0o551);
        let times = (0..slots).map(|slot| {
            let tree = world.cache.tree(record.id, Slot(slot));
            fs::metadata(tree).unwrap().modified().unwrap()
        });
        prop_assert_eq!(root.modified().unwrap(), times.max().unwrap());
        prop_assert_eq!(world.ids(), [(5, EntryState::Complete)]);
        prop_assert_eq!(world.leftovers(), [""; 0]);
        world.fetches_all_of(&record);
        // All of it again changes nothing.
        prop_assert!(world.flush_slot(&record, 0).unwrap().already_there);
        world.prefix.complete_flush(&record).unwrap();
        world.prefix.reconcile(&Default::default()).unwrap();
        prop_assert!(world.has_all_of(&record));
        let newest = world.prefix.newest_complete().unwrap().unwrap();
        prop_assert_eq!((newest.bytes, newest.files),
            (record.seal.as_ref().unwrap().bytes(), record.seal.as_ref().unwrap().files()));
    }
}

#[test]
fn progress_ends_at_the_length_of_the_log_and_a_cancel_leaves_no_half_files() {
    let world = World::new();
    let record = world.files(1, "c", &[("a", &[1; 100_000]), ("b", &[2; 9_000_000])]);
    let part = world.part(&record, 0);
    let told = std::cell::Cell::new(0);
    let cancel = AtomicBool::new(false);
    let limits = FlushLimits {
        streams: 1,
        ..FlushLimits::default()
    };
    let stop = |bytes| {
        told.set(bytes);
        cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let error = world
        .prefix
        .flush_part(&record, &part, limits, &stop, &cancel)
        .unwrap_err();
    assert_eq!(
        (error.cause(), error.is_retryable()),
        (Cause::Cancelled, true)
    );
    assert!(told.get() > 0 && told.get() < 9_100_000);
    let attempt = world.prefix.paths().attempt(record.key(), record.epoch);
    assert!(!attempt.join("b").exists());
    assert!(world.prefix.complete_flush(&record).is_err());
    let tell = |bytes| told.set(bytes);
    world
        .prefix
        .flush_part(&record, &part, limits, &tell, &GO)
        .unwrap();
    assert_eq!(told.get(), 9_100_000);
    world.prefix.complete_flush(&record).unwrap();
    assert!(world.has_all_of(&record));
}

#[test]
fn a_flipped_byte_in_the_cache_is_not_flushed() {
    let world = World::new();
    let record = world.files(1, "c", &[("a", &[1; 50_000])]);
    let part = world.part(&record, 0);
    part.fill_missing_sums(Stream::Data).unwrap();
    part.store_sums(&PosixStore::new(), Stream::Data).unwrap();
    let path = world.cache.tree(record.id, Slot(0)).join("a");
    flip(&path, 49_999);
    let error = world.flush_slot(&record, 0).unwrap_err();
    let PrefixError::Part(PartError::Checksum {
        path: named,
        expected,
        found,
        ..
    }) = &error
    else {
        panic!("{error}");
    };
    assert!(*named == path && expected != found, "{error}");
    assert_eq!(
        (error.cause(), error.is_retryable()),
        (Cause::Damaged, false)
    );
    assert!(world.prefix.complete_flush(&record).is_err());
}

#[test]
fn a_flipped_byte_in_the_prefix_is_found_and_named() {
    let world = World::new();
    let record = world.files(1, "c", &[("a", &[1; 50_000]), ("b", &[2; 10])]);
    world.flush(&record);
    let other = CachePaths::at(&world.root.path().join("other"));
    let fetch = || {
        world
            .prefix
            .fetch_part(&record, Slot(0), &other, &|_| {}, &GO)
    };
    let paths = world.prefix.paths();
    let file = world.published("c").join("a");
    let all = [
        (file, 40_000),
        (paths.manifest(record.key(), Slot(0)), 40),
        (paths.sums(record.key(), Slot(0)), 30),
    ];
    for (path, at) in all {
        flip(&path, at);
        let error = fetch().unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(error.cause(), Cause::Damaged);
        assert!(!other.tree(record.id, Slot(0)).exists());
        assert!(!other.tree_new(record.id, Slot(0)).exists());
        flip(&path, at);
    }
    fetch().unwrap();
    // A file cut off, and one removed.
    File::options()
        .write(true)
        .open(world.published("c/a"))
        .unwrap()
        .set_len(49_999)
        .unwrap();
    let error = fetch().unwrap_err();
    let short = |error: &PrefixError| {
        matches!(
            error,
            PrefixError::Part(PartError::Short {
                expected: 50_000,
                found: 49_999,
                ..
            })
        )
    };
    assert!(short(&error), "{error}");
    fs::remove_file(world.published("c/a")).unwrap();
    assert!(fetch().unwrap_err().to_string().contains("c/a"));
    // The cache still has what was fetched before.
    assert_eq!(
        fs::read(other.tree(record.id, Slot(0)).join("a")).unwrap(),
        [1; 50_000]
    );
}

#[test]
fn a_damaged_entry_is_skipped_and_a_removed_dataset_not_listed() {
    let world = World::new();
    let first = world.files(1, "one", &[("a", b"1")]);
    let second = world.files(2, "two", &[("a", b"2")]);
    let third = world.files(3, "three", &[("a", b"3")]);
    for record in [&first, &second, &third] {
        world.flush(record);
    }
    flip(&world.prefix.paths().entry(second.key()), 20);
    fs::remove_dir_all(world.published("three")).unwrap();
    assert_eq!(world.ids(), [(1, EntryState::Complete)]);
    assert_eq!(
        world.prefix.newest_complete().unwrap().unwrap().record.id,
        DatasetId(1)
    );
    // What is gone can be flushed again.
    assert!(!world.flush_slot(&third, 0).unwrap().already_there);
    world.prefix.complete_flush(&third).unwrap();
    assert!(world.has_all_of(&third));
}

#[test]
fn two_slots_with_the_same_file_are_refused() {
    let world = World::new();
    for slot in 0..2 {
        let tree = world.cache.tree(DatasetId(4), Slot(slot));
        fs::create_dir_all(tree.join("shared")).unwrap();
        symlink("same", tree.join("link")).unwrap();
        fs::write(tree.join("shared/file"), format!("from {slot}")).unwrap();
    }
    let record = sealed(&world.cache, 4, "c", 2);
    world.flush_slots(&record);
    let error = world.prefix.complete_flush(&record).unwrap_err();
    assert_eq!(
        error.to_string(),
        "dataset 4: both slot 0 and slot 1 have `shared/file`"
    );
    assert!(!error.is_retryable() && !world.published("c").exists());
    assert_eq!(world.ids(), []);
}

#[test]
fn a_retry_replaces_whatever_an_attempt_left() {
    let world = World::new();
    let mut record = world.files(1, "c", &[("a", &[1; 50_000]), ("b", b"bee"), ("e", b"")]);
    let attempt = world.prefix.paths().attempt(record.key(), record.epoch);
    let elsewhere = world.root.path().join("elsewhere");
    fs::write(&elsewhere, b"keep me").unwrap();
    fs::create_dir_all(&attempt).unwrap();
    symlink(&elsewhere, attempt.join("a")).unwrap();
    fs::hard_link(&elsewhere, attempt.join("b")).unwrap();
    fs::write(attempt.join("e"), b"longer than it should be").unwrap();
    fs::set_permissions(attempt.join("e"), fs::Permissions::from_mode(0o400)).unwrap();
    world.flush_slots(&record);
    world.flush(&record);
    assert!(world.has_all_of(&record));
    assert_eq!(fs::read(&elsewhere).unwrap(), b"keep me");
    // A later epoch needs what an earlier one left to be made its own.
    record = world.files(2, "d", &[("a", &[1; 50_000])]);
    world.flush_slots(&record);
    record.epoch = Epoch(9);
    let late = world.prefix.paths().attempt(record.key(), Epoch(3));
    assert!(late.exists());
    assert!(world.prefix.complete_flush(&record).is_err());
    world.flush_slots(&record);
    assert!(!late.join("a").exists());
    world.prefix.complete_flush(&record).unwrap();
    assert!(world.has_all_of(&record));
}

#[test]
fn what_is_to_be_read_in_place_is_there_and_as_long_as_it_was() {
    let world = World::new();
    let flushed = |id, name: &str| {
        let record = world.files(id, name, &[("a", &[1; 50_000]), ("b", &[2; 7])]);
        world.flush(&record);
        world.prefix.check_part(&record, Slot(0)).unwrap();
        (record, world.published(name))
    };
    let check = |record: &DatasetRecord| {
        let found = world.prefix.check_part(record, Slot(0));
        found
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let (record, place) = flushed(1, "cut");
    let file = File::options().write(true).open(place.join("a"));
    file.unwrap().set_len(49_999).unwrap();
    let text = check(&record);
    assert!(
        text.contains("/cut/a\"") && text.contains("49999"),
        "{text}"
    );
    let (record, place) = flushed(2, "less");
    fs::remove_file(place.join("b")).unwrap();
    let text = check(&record);
    assert!(text.contains("/less/b\""), "{text}");
    let (record, place) = flushed(3, "away");
    fs::remove_dir_all(place).unwrap();
    assert!(check(&record).contains("there is no"));
    // A directory of the same name and sizes that another has put there.
    let (record, _) = flushed(4, "taken");
    let other = world.files(5, "taken", &[("a", &[3; 50_000]), ("b", &[4; 7])]);
    world.flush(&other);
    assert!(check(&record).contains("there is no"));
    world.prefix.check_part(&other, Slot(0)).unwrap();
}

#[test]
fn sizes_alone_can_be_looked_at() {
    let world = World::new();
    let record = world.files(1, "c", &[("a", &[1; 50_000])]);
    let limits = FlushLimits {
        verify: Verify::Sizes,
        ..FlushLimits::default()
    };
    let part = world.part(&record, 0);
    world
        .prefix
        .flush_part(&record, &part, limits, &|_| {}, &GO)
        .unwrap();
    let file = world
        .prefix
        .paths()
        .attempt(record.key(), record.epoch)
        .join("a");
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(49_999)
        .unwrap();
    let error = world.prefix.complete_flush(&record).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("50000") && text.contains("49999") && text.contains("/a\""),
        "{text}"
    );
}

#[test]
fn what_was_written_is_read_back() {
    let world = World::new();
    let record = world.files(1, "c", &[("a", &[1; 50_000])]);
    let attempt = world.prefix.paths().attempt(record.key(), record.epoch);
    let path = attempt.join("a");
    let part = world.part(&record, 0);
    // A disk that lies: the byte changes when everything has been copied.
    let lie = |_| flip(&path, 7);
    let limits = FlushLimits {
        verify: Verify::ReadBack,
        ..FlushLimits::default()
    };
    let error = world
        .prefix
        .flush_part(&record, &part, limits, &lie, &GO)
        .unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn the_name_of_our_own_directory_is_not_a_dataset() {
    let world = World::new();
    let mut record = world.files(1, "c", &[("a", b"1")]);
    record.name = Name::new(b".scrfs").unwrap();
    world.flush_slots(&record);
    let error = world.prefix.complete_flush(&record).unwrap_err();
    assert!(matches!(error, PrefixError::NotOurs { .. }), "{error}");
}

/// Files whose pieces of the log begin at no block of theirs, with holes, and one that is only half written.
#[test]
fn large_files_go_to_the_device_and_come_back() {
    let world = World::new();
    let tree = world.cache.tree(DatasetId(1), Slot(0));
    fs::create_dir_all(&tree).unwrap();
    let bytes = |len: u32, salt: u32| -> Vec<u8> {
        (0..len)
            .map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ salt) as u8)
            .collect()
    };
    for (file, len) in [
        (0, 17),
        (1, 9_000_001),
        (2, 1),
        (3, 4 << 20),
        (4, 5_242_879),
    ] {
        fs::write(tree.join(format!("file{file}")), bytes(len, file)).unwrap();
    }
    let sparse = File::create(tree.join("sparse")).unwrap();
    for (at, len) in [(4095, 2_000_000), (5_000_001, 300_000), (7 << 20, 1 << 20)] {
        sparse.write_all_at(&bytes(len, len), at).unwrap();
    }
    sparse.set_len(9_999_999).unwrap();
    let record = sealed(&world.cache, 1, "large", 1);
    let part = world.part(&record, 0);
    // Cut off in the middle of a file, then all of it.
    let cancel = AtomicBool::new(false);
    let stop = |done| cancel.store(done > 6_000_000, std::sync::atomic::Ordering::Relaxed);
    let limits = FlushLimits {
        streams: 1,
        ..FlushLimits::default()
    };
    let cut = world
        .prefix
        .flush_part(&record, &part, limits, &stop, &cancel);
    assert_eq!(cut.unwrap_err().cause(), Cause::Cancelled);
    world.flush(&record);
    assert!(world.has_all_of(&record));
    world.fetches_all_of(&record);
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let held = blocks(&world.published("large").join("sparse"));
    assert!(held < 5 << 20, "the holes are filled: {held} bytes");
    let tree = crate::part::Tree::open(&world.published("large")).unwrap();
    if direct::Direct::open(&tree, &scrfs::name::RelPath::new(b"file1").unwrap()).is_none() {
        eprintln!("SKIPPED: this filesystem has no direct I/O, or does not say how");
    }
}
