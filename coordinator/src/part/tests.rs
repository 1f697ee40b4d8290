//! Parts against an independent comparer, and against damage.

#![allow(clippy::unwrap_used)]

use super::testing::{EPOCH, UNIT_BYTES, describe, random_tree, sealed, set_mtime};
use super::*;
use proptest::prelude::*;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::manifest::EntryKind;
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::{DatasetRecord, EpochRecord};
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use scrfs::stores::Stores;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

mod moves;

const ID: DatasetId = DatasetId(7);
const SLOT: Slot = Slot(0);

fn cache_with(root: &Path, seed: u64) -> (CachePaths, DatasetRecord) {
    let cache = CachePaths::at(root);
    random_tree(&cache.tree(ID, SLOT), 0, seed);
    let record = sealed(&cache, ID.0, "ckpt.7", 1);
    (cache, record)
}

fn one_file(root: &Path, bytes: &[u8]) -> (CachePaths, DatasetRecord) {
    let cache = CachePaths::at(root);
    let tree = cache.tree(ID, SLOT);
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("file"), bytes).unwrap();
    let record = sealed(&cache, ID.0, "ckpt.7", 1);
    (cache, record)
}

fn stored(cache: &CachePaths) -> StoredManifest {
    records::load_manifest(&PosixStore::new(), cache, ID, SLOT, Keep::Own)
        .unwrap()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_part_copied_through_its_log_is_the_same_tree(seed: u64, step in 1u32..100_000) {
        let root = tempfile::tempdir().unwrap();
        let store = PosixStore::new();
        let (cache, record) = cache_with(root.path(), seed);
        let tree = cache.tree(ID, SLOT);
        let before = describe(&tree);
        let top = fs::metadata(&tree).unwrap().modified().unwrap();
        let part = Part::open(&store, &cache, &record, SLOT).unwrap();
        part.verify_against_tree().unwrap();
        prop_assert!(part.manifest().log_bytes > 0);

        let restored =
            Part::begin_restore(&store, &cache, &record, stored(&cache), None, None).unwrap();
        let mut at = 0;
        while at < part.manifest().log_bytes {
            let bytes = part.read_data(at, step).unwrap();
            restored.write_data(at, &bytes).unwrap();
            at += bytes.len() as u64;
        }
        restored.fill_missing_sums(Stream::Data).unwrap();
        restored.finish_restore(&store).unwrap();
        restored.finish_restore(&store).unwrap();
        prop_assert_eq!(before, describe(&tree));
        prop_assert_eq!(top, fs::metadata(&tree).unwrap().modified().unwrap());
        restored.verify_stream(Stream::Data).unwrap();
        restored.verify_against_tree().unwrap();
        let again = Part::open(&store, &cache, &record, SLOT).unwrap();
        prop_assert!(again.sums(Stream::Data).is_complete());
        again.verify_stream(Stream::Data).unwrap();
        // The files that were there before are others, with the same bytes.
        part.verify_stream(Stream::Data).unwrap();
        prop_assert!(!cache.tree_new(ID, SLOT).exists() && !cache.tree_old(ID, SLOT).exists());
    }

    #[test]
    fn the_log_is_the_data_of_all_files(seed: u64) {
        let root = tempfile::tempdir().unwrap();
        let (cache, record) = cache_with(root.path(), seed);
        let part = Part::open(&PosixStore::new(), &cache, &record, SLOT).unwrap();
        let mut log = vec![];
        for entry in &part.manifest().entries {
            let EntryKind::File { size, extents, .. } = &entry.kind else { continue };
            let bytes = fs::read(cache.tree(ID, SLOT).join(entry.path.as_path())).unwrap();
            prop_assert_eq!(bytes.len() as u64, *size);
            let mut end = 0;
            for extent in extents {
                let (from, to) = (extent.offset as usize, (extent.offset + extent.len) as usize);
                prop_assert!(bytes[end..from].iter().all(|&byte| byte == 0), "data in a hole");
                log.extend_from_slice(&bytes[from..to]);
                end = to;
            }
        }
        prop_assert_eq!(log.len() as u64, part.manifest().log_bytes);
        let read = part.read_data(0, u32::MAX).unwrap();
        prop_assert!(read[..] == log[..]);
        prop_assert_eq!(part.read_data(log.len() as u64 + 1, 5).unwrap().len(), 0);
    }
}

#[test]
fn a_hundred_thousand_files_are_fine() {
    let root = tempfile::tempdir_in(if Path::new("/dev/shm").exists() {
        "/dev/shm"
    } else {
        "."
    })
    .unwrap();
    for directory in 0..100 {
        let path = root.path().join(directory.to_string());
        fs::create_dir(&path).unwrap();
        for file in 0..1000 {
            File::create(path.join(file.to_string()))
                .unwrap()
                .write_all_at(b"x", 0)
                .unwrap();
        }
    }
    let manifest = scan_part(root.path(), ID, SLOT, EPOCH).unwrap();
    assert_eq!(manifest.files(), 100_000);
    assert_eq!(manifest.log_bytes, 100_000);
}

#[test]
fn what_leads_out_of_the_tree_is_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let outside = root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"secret").unwrap();
    let cache = CachePaths::at(&root.path().join("cache"));
    let tree = cache.tree(ID, SLOT);
    fs::create_dir_all(tree.join("dir")).unwrap();
    fs::write(tree.join("dir/file"), b"public").unwrap();
    fs::write(tree.join("file"), b"public").unwrap();
    let record = sealed(&cache, ID.0, "ckpt.7", 1);
    let part = Part::open(&PosixStore::new(), &cache, &record, SLOT).unwrap();
    fs::remove_file(tree.join("file")).unwrap();
    symlink(outside.join("file"), tree.join("file")).unwrap();
    fs::remove_dir_all(tree.join("dir")).unwrap();
    symlink(&outside, tree.join("dir")).unwrap();
    let error = part.read_data(0, 6).unwrap_err();
    assert!(error.to_string().contains("cannot open"), "{error}");
    assert!(part.read_data(6, 6).is_err());
    assert!(part.verify_against_tree().is_err());
    let scanned = scan_part(&tree, ID, SLOT, EPOCH).unwrap();
    assert_eq!((scanned.entries.len(), scanned.log_bytes), (2, 0));
}

#[test]
fn one_flipped_byte_is_found_and_named() {
    let root = tempfile::tempdir().unwrap();
    let store = PosixStore::new();
    let (cache, record) = one_file(root.path(), &vec![5; 3 * UNIT_BYTES as usize + 11]);
    let part = Part::open(&store, &cache, &record, SLOT).unwrap();
    part.fill_missing_sums(Stream::Data).unwrap();
    let path = cache.tree(ID, SLOT).join("file");
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[6], u64::from(UNIT_BYTES) * 3 + 10)
        .unwrap();
    part.read_unit(Stream::Data, 2).unwrap();
    let error = part.verify_stream(Stream::Data).unwrap_err();
    let PartError::Checksum {
        path: named,
        offset,
        expected,
        found,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((named, *offset), (&path, 3 * u64::from(UNIT_BYTES)));
    assert_ne!(expected, found);
    assert!(
        error.is_damage() && error.to_string().contains("dataset 7, slot 0"),
        "{error}"
    );
}

#[test]
fn a_short_file_is_an_error_with_both_sizes() {
    let root = tempfile::tempdir().unwrap();
    let (cache, record) = one_file(root.path(), &[1; 1000]);
    let part = Part::open(&PosixStore::new(), &cache, &record, SLOT).unwrap();
    let path = cache.tree(ID, SLOT).join("file");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(900)
        .unwrap();
    let error = part.read_data(0, 1000).unwrap_err();
    assert!(
        matches!(
            error,
            PartError::Short {
                expected: 1000,
                found: 900,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("file"), "{error}");
    let error = part.verify_against_tree().unwrap_err();
    assert!(
        matches!(error, PartError::Differs { what: "size", .. }),
        "{error}"
    );
}

#[test]
fn a_damaged_or_foreign_record_is_refused_by_path() {
    let root = tempfile::tempdir().unwrap();
    let store = PosixStore::new();
    let (cache, record) = one_file(root.path(), &[1; 1000]);
    let path = cache.manifest(ID, SLOT, Keep::Own);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[30] ^= 1;
    fs::write(&path, &bad).unwrap();
    let error = Part::open(&store, &cache, &record, SLOT).unwrap_err();
    assert!(
        matches!(&error, PartError::Envelope { path: named, .. } if *named == path),
        "{error}"
    );
    // Whole, and of a later vote.
    let mut other = stored_from(&good);
    other.epoch.0 += 1;
    fs::write(&path, seal(Kind::Manifest, &other)).unwrap();
    let error = Part::open(&store, &cache, &record, SLOT).unwrap_err();
    assert!(
        matches!(
            error,
            PartError::NotSealed {
                what: "checksum",
                ..
            }
        ),
        "{error}"
    );
    let inventory = take_inventory(&store, &Stores::new(cache.clone(), Vec::new())).unwrap();
    assert_eq!(inventory, Inventory::default(), "no record was ever stored");
}

fn stored_from(bytes: &[u8]) -> scrfs::layout::manifest::Manifest {
    scrfs::layout::envelope::open(Kind::Manifest, bytes).unwrap()
}

#[test]
fn parity_counts_from_its_commit_on() {
    let root = tempfile::tempdir().unwrap();
    let store = PosixStore::new();
    let cache = CachePaths::at(root.path());
    for slot in 0..2 {
        let tree = cache.tree(ID, Slot(slot));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), vec![slot as u8 + 1; 20_000]).unwrap();
    }
    let record = sealed(&cache, ID.0, "ckpt.7", 2);
    let part = Part::open(&store, &cache, &record, SLOT).unwrap();
    let length = part.stream_bytes(Stream::Parity);
    assert!(length >= 20_000 && !part.has_parity());
    part.write_parity(length - 1, &[9]).unwrap();
    assert_eq!(part.read_parity(length - 2, 10).unwrap()[..], [0, 9]);
    assert!(!part.has_parity());
    assert!(matches!(
        part.write_parity(length, &[1]),
        Err(PartError::Range { .. })
    ));
    part.commit_parity().unwrap();
    part.commit_parity().unwrap();
    assert!(part.has_parity());
    assert_eq!(part.read_parity(length - 2, 10).unwrap()[..], [0, 9]);
    let again = Part::open(&store, &cache, &record, SLOT).unwrap();
    assert_eq!(again.read_parity(length - 1, 1).unwrap()[..], [9]);
    assert!(matches!(
        again.write_data(0, &[1]),
        Err(PartError::NotRestoring { .. })
    ));
}

#[test]
fn the_inventory_has_what_can_be_believed_and_cleans_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let store = PosixStore::new();
    let (cache, record) = cache_with(root.path(), 11);
    let epoch = EpochRecord {
        last_dataset: 7,
        ..EpochRecord::default()
    };
    store
        .put(&cache.epoch(), &seal(Kind::Epoch, &epoch))
        .unwrap();
    store
        .put(&cache.record(ID), &seal(Kind::Dataset, &record))
        .unwrap();
    let part = Part::open(&store, &cache, &record, SLOT).unwrap();
    part.fill_missing_sums(Stream::Data).unwrap();
    part.store_sums(&store, Stream::Data).unwrap();

    let found = take_inventory(&store, &Stores::new(cache.clone(), Vec::new())).unwrap();
    assert_eq!((found.epoch.last_dataset, found.datasets.len()), (7, 1));
    let state = &found.datasets[0].parts[0];
    assert!(state.intact && state.parity && !state.sums, "{state:?}");
    part.store_sums(&store, Stream::Parity).unwrap();
    // A copy, whole; leftovers of every kind.
    for name in ["manifest", "sums.data", "sums.parity"] {
        let copy = cache.slot(ID, SLOT, Keep::Copy);
        fs::create_dir_all(&copy).unwrap();
        fs::copy(cache.slot(ID, SLOT, Keep::Own).join(name), copy.join(name)).unwrap();
    }
    fs::create_dir_all(cache.tree_new(ID, SLOT).join("x")).unwrap();
    fs::write(cache.parity_new(ID, SLOT), b"").unwrap();
    let temporary = cache.dataset(ID).join(".record.0.new");
    fs::write(&temporary, b"").unwrap();
    fs::create_dir_all(cache.tree(DatasetId(9), SLOT)).unwrap();
    let damaged = cache.record(DatasetId(8));
    store.put(&damaged, b"SCRFS\nrubbish").unwrap();

    let found = take_inventory(&store, &Stores::new(cache.clone(), Vec::new())).unwrap();
    assert_eq!(found.datasets.len(), 1);
    assert!(found.datasets[0].parts[0].sums);
    assert_eq!(found.datasets[0].copies, [SLOT]);
    assert!(!cache.tree_new(ID, SLOT).exists() && !cache.parity_new(ID, SLOT).exists());
    assert!(!temporary.exists() && !cache.dataset(DatasetId(9)).exists());
    assert!(damaged.exists(), "what is damaged may still be of use");

    // A file that was touched is no longer what was sealed.
    let first = part
        .manifest()
        .entries
        .iter()
        .find(|e| matches!(e.kind, EntryKind::File { .. }));
    set_mtime(
        &cache.tree(ID, SLOT).join(first.unwrap().path.as_path()),
        1,
        1,
    );
    let found = take_inventory(&store, &Stores::new(cache.clone(), Vec::new())).unwrap();
    assert!(!found.datasets[0].parts[0].intact && found.datasets[0].parts[0].sums);
}

#[test]
fn a_restore_that_crashed_is_begun_anew() {
    let root = tempfile::tempdir().unwrap();
    let store = PosixStore::new();
    let (cache, record) = cache_with(root.path(), 5);
    fs::create_dir_all(cache.tree_new(ID, SLOT).join("old")).unwrap();
    let part = Part::begin_restore(&store, &cache, &record, stored(&cache), None, None).unwrap();
    assert!(!cache.tree_new(ID, SLOT).join("old").exists());
    assert!(part.is_restoring());
}
