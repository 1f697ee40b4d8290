//! Moving a dataset to another store, stopped at every step; and what is believed after a crash of the machine.

use super::*;
use scrfs::store::StoreError;

/// Changes one bit.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Moves a dataset of two parts, stopping at a step; says how many steps were taken.
fn moved(stores: &Stores, record: &DatasetRecord, stop: usize) -> (usize, bool) {
    let steps = std::cell::Cell::new(0);
    let step = |_: &'static str| {
        steps.set(steps.get() + 1);
        match steps.get() == stop {
            true => Err(StoreError::of("go on", Path::new("/"))(
                std::io::Error::other("crash"),
            )),
            false => Ok(()),
        }
    };
    let store = PosixStore::new();
    let target = stores.get(1).unwrap().moving();
    let done = copy_dataset(&store, stores.home(), &target, record, &step).is_ok();
    let done = done && {
        let bytes = seal(Kind::Dataset, record);
        store.put(&target.record(record.id), &bytes).unwrap();
        step("the record").is_ok() && stores.switch(record.id, 1, &step).is_ok()
    };
    (steps.get(), done)
}

#[test]
fn a_crash_at_any_step_of_a_move_leaves_one_whole_copy_that_counts() {
    let mut stop = 1;
    loop {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| CachePaths::at(&root.path().join(name));
        let stores = Stores::new(at("fast"), vec![at("slow")]);
        let home = stores.home().clone();
        fs::create_dir_all(home.root()).unwrap();
        fs::create_dir_all(stores.get(1).unwrap().root()).unwrap();
        let store = PosixStore::new();
        stores.put_epoch(&store, &EpochRecord::default()).unwrap();
        for slot in 0..2 {
            random_tree(&home.tree(ID, Slot(slot)), slot, 77);
        }
        let record = sealed(&home, ID.0, "ckpt", 2);
        store
            .put(&home.record(ID), &seal(Kind::Dataset, &record))
            .unwrap();
        for slot in 0..2 {
            let part = Part::open(&store, &home, &record, Slot(slot)).unwrap();
            part.fill_missing_sums(Stream::Data).unwrap();
            let (unit_bytes, all) = (part.unit_bytes(), part.stream_bytes(Stream::Parity));
            assert!(all > 0);
            for (unit, at) in (0..all).step_by(unit_bytes as usize).enumerate() {
                let length = u64::from(unit_bytes).min(all - at) as usize;
                let byte = (unit as u8).wrapping_mul(2).wrapping_add(slot as u8 + 1);
                part.write_parity(at, &vec![byte; length]).unwrap();
            }
            part.commit_parity().unwrap();
            part.fill_missing_sums(Stream::Parity).unwrap();
            part.store_sums(&store, Stream::Data).unwrap();
            part.store_sums(&store, Stream::Parity).unwrap();
        }
        let before = [0, 1].map(|slot| describe(&home.tree(ID, Slot(slot))));
        let (steps, done) = moved(&stores, &record, stop);
        // As the next epoch finds it, with the first store or without.
        let lost = stop % 2 == 0;
        if lost {
            fs::remove_dir_all(home.root()).unwrap();
            fs::create_dir_all(home.root()).unwrap();
        }
        let found = take_inventory(&store, &stores).unwrap();
        let offered: Vec<_> = found.datasets.iter().flat_map(|it| &it.parts).collect();
        let index = stores.store_of(ID);
        if lost && index.is_none() {
            assert!(!done, "a copy that counts is whole");
            assert!(offered.is_empty());
        } else {
            assert_eq!(found.datasets.len(), 1, "step {stop}");
            assert_eq!(offered.len(), 2, "step {stop}: two slots, each once");
            assert!(offered.iter().all(|it| it.intact && it.sums && it.parity));
            for slot in 0..2 {
                let part = Part::open(&store, &home, &record, Slot(slot)).unwrap();
                part.verify_stream(Stream::Data).unwrap();
                part.verify_stream(Stream::Parity).unwrap();
                assert_eq!(describe(&home.tree(ID, Slot(slot))), before[slot as usize]);
            }
        }
        assert!(!stores.get(1).unwrap().moving().root().exists());
        let real = stores.get(1).unwrap().dataset(ID).exists();
        assert_eq!(real, index == Some(1), "step {stop}: nothing is left over");
        if done {
            assert!(steps > 10, "{steps}: every part was gone through");
            assert_eq!(index, Some(1));
            break;
        }
        stop += 1;
    }
}

#[test]
fn what_is_damaged_or_not_complete_is_not_moved() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| CachePaths::at(&root.path().join(name));
    let stores = Stores::new(at("fast"), vec![at("slow")]);
    let home = stores.home().clone();
    let store = PosixStore::new();
    let (_, record) = cache_with(home.root(), 12);
    store
        .put(&home.record(ID), &seal(Kind::Dataset, &record))
        .unwrap();
    assert!(!moved(&stores, &record, 0).1, "it has no checksums");
    let part = Part::open(&store, &home, &record, SLOT).unwrap();
    part.fill_missing_sums(Stream::Data).unwrap();
    part.commit_parity().unwrap();
    part.store_sums(&store, Stream::Data).unwrap();
    part.store_sums(&store, Stream::Parity).unwrap();
    let entries = &part.manifest().entries;
    let file = entries
        .iter()
        .find(|it| matches!(it.kind, EntryKind::File { size, .. } if size > 0))
        .unwrap();
    let path = home.tree(ID, SLOT).join(file.path.as_path());
    flip(&path, 0);
    set_mtime(&path, file.mtime.0, file.mtime.1.into());
    assert!(!moved(&stores, &record, 0).1, "a flipped bit");
    assert_eq!(stores.store_of(ID), Some(0));
    flip(&path, 0);
    set_mtime(&path, file.mtime.0, file.mtime.1.into());
    assert!(moved(&stores, &record, 0).1, "as it was");
    assert_eq!(stores.store_of(ID), Some(1));
}

#[test]
fn what_was_not_synced_before_the_machine_went_is_not_believed() {
    let root = tempfile::tempdir().unwrap();
    let store = PosixStore::new();
    let (cache, record) = cache_with(root.path(), 13);
    let stores = Stores::new(cache.clone(), Vec::new());
    stores.put_epoch(&store, &EpochRecord::default()).unwrap();
    store
        .put(&cache.record(ID), &seal(Kind::Dataset, &record))
        .unwrap();
    let part = Part::open(&store, &cache, &record, SLOT).unwrap();
    let is_intact = || take_inventory(&store, &stores).unwrap().datasets[0].parts[0].intact;
    assert!(is_intact());
    fs::write(cache.boot(), "another boot").unwrap();
    assert!(!is_intact(), "what looks whole may have lost bytes");
    part.fill_missing_sums(Stream::Data).unwrap();
    part.commit_parity().unwrap();
    part.store_sums(&store, Stream::Data).unwrap();
    part.store_sums(&store, Stream::Parity).unwrap();
    assert!(is_intact(), "checksums are put down when it is durable");
}
