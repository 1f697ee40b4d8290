//! Stores as a crash leaves them: after settling, each name means one complete copy, or there is none.
#![expect(clippy::unwrap_used, reason = "a test fails where it breaks")]

use super::*;
use crate::id::Slot;

const ID: DatasetId = DatasetId(7);

struct World {
    _root: tempfile::TempDir,
    stores: Stores,
}

fn world(count: usize) -> World {
    let root = tempfile::tempdir().unwrap();
    let at = |index: usize| CachePaths::at(&root.path().join(index.to_string()));
    let stores = Stores::new(at(0), (1..count).map(at).collect());
    for store in stores.iter() {
        fs::create_dir(store.root()).unwrap();
    }
    World {
        _root: root,
        stores,
    }
}

impl World {
    fn begin_epoch(&self, epoch: u64) {
        let record = EpochRecord {
            epoch: Epoch(epoch),
            slot: Some(Slot(3)),
            last_dataset: 40 + epoch,
            last_checkpoint: epoch,
        };
        self.stores.put_epoch(&PosixStore::new(), &record).unwrap();
    }

    /// A dataset whose record says `text`.
    fn dataset(&self, index: usize, text: &str) {
        self.stores.begin(ID, index).unwrap();
        let record = self.stores.home().record(ID);
        PosixStore::new().put(&record, text.as_bytes()).unwrap();
    }

    fn copy(&self, to: usize, text: &str) {
        let record = self.stores.get(to).unwrap().moving().record(ID);
        PosixStore::new().put(&record, text.as_bytes()).unwrap();
    }

    /// What the one record says; panics when there is more than one place that counts.
    fn said(&self) -> Option<String> {
        let index = self.stores.store_of(ID)?;
        for (other, store) in self.stores.iter().enumerate().skip(1) {
            let is_there = fs::symlink_metadata(store.dataset(ID)).is_ok();
            assert_eq!(is_there, other == index, "store {other}");
        }
        Some(fs::read_to_string(self.stores.home().record(ID)).unwrap())
    }

    fn lose(&self, index: usize) {
        let root = self.stores.get(index).unwrap().root().to_owned();
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
    }
}

#[test]
fn a_dataset_lies_where_it_was_begun_and_goes_from_there() {
    for index in 0..3 {
        let world = world(3);
        assert_eq!(world.stores.store_of(ID), None);
        world.dataset(index, "here");
        assert_eq!(world.stores.store_of(ID), Some(index));
        let real = world.stores.get(index).unwrap();
        assert_eq!(fs::read_to_string(real.record(ID)).unwrap(), "here");
        world.stores.begin(ID, (index + 1) % 3).unwrap();
        assert_eq!(world.stores.store_of(ID), Some(index), "it keeps its place");
        let trash = world.stores.trash_of(ID);
        assert_eq!(trash, real.trash());
        fs::create_dir(&trash).unwrap();
        world.stores.set_aside(ID, &trash.join("old")).unwrap();
        assert_eq!(world.stores.store_of(ID), None);
        assert!(trash.join("old/record").exists());
        assert!(fs::symlink_metadata(world.stores.home().dataset(ID)).is_err());
    }
}

#[test]
fn at_any_crash_of_a_move_the_name_means_one_complete_copy() {
    let crash = || StoreError::of("go on", Path::new("/"))(io::Error::other("crash"));
    for (from, to) in [(0, 1), (0, 2), (1, 2)] {
        for lost_home in [false, true] {
            for stop in 0..4 {
                let world = world(3);
                world.begin_epoch(1);
                world.dataset(from, "one");
                world.copy(to, "one");
                let steps = std::cell::Cell::new(0);
                let step = |_: &'static str| {
                    steps.set(steps.get() + 1);
                    (steps.get() != stop).then_some(()).ok_or_else(crash)
                };
                let moved = match stop {
                    // Before it.
                    0 => Err(crash()),
                    _ => world.stores.switch(ID, to, &step),
                };
                assert!(moved.is_err(), "there are three steps");
                let named = stop == 3;
                if lost_home {
                    world.lose(0);
                }
                world.stores.settle().unwrap();
                let said = world.said();
                match lost_home && from == 0 && stop == 0 {
                    true => assert_eq!(said, None, "it was in home alone"),
                    false => assert_eq!(said.as_deref(), Some("one"), "{from} {to} {stop}"),
                }
                if !lost_home {
                    let at = if named { to } else { from };
                    assert_eq!(world.stores.store_of(ID), Some(at), "{from} {to} {stop}");
                }
                for store in world.stores.iter() {
                    assert!(!store.moving().root().exists());
                }
                // Twice is once.
                world.stores.settle().unwrap();
                assert_eq!(world.said(), said);
            }
        }
    }
}

#[test]
fn a_whole_move_leaves_the_old_copy_in_its_own_trash() {
    for (from, to) in [(0, 1), (1, 2)] {
        let world = world(3);
        world.dataset(from, "old");
        world.copy(to, "new");
        let aside = world.stores.switch(ID, to, &|_| Ok(())).unwrap();
        assert_eq!(world.said().as_deref(), Some("new"));
        let trash = world.stores.get(from).unwrap().trash();
        assert!(aside.starts_with(trash));
        assert_eq!(fs::read_to_string(aside.join("record")).unwrap(), "old");
        assert!(
            world.stores.switch(ID, from, &|_| Ok(())).is_err(),
            "only down"
        );
        assert_eq!(world.said().as_deref(), Some("new"));
    }
}

#[test]
fn a_node_that_lost_its_first_store_knows_numbers_and_what_the_others_have() {
    let world = world(2);
    world.begin_epoch(5);
    world.dataset(1, "kept");
    let settled = world.stores.settle().unwrap();
    assert_eq!((settled.begun.epoch, settled.doubtful.len()), (Epoch(5), 0));
    world.lose(0);
    let settled = world.stores.settle().unwrap();
    assert_eq!(world.said().as_deref(), Some("kept"));
    assert_eq!(settled.doubtful, BTreeSet::from([ID]));
    // It must not be taken for a node that knows all there is, nor give a number twice.
    assert_eq!((settled.begun.epoch, settled.begun.slot), (Epoch(0), None));
    assert_eq!(settled.begun.last_dataset, 45);
    assert_eq!(settled.begun.last_checkpoint, 5);
    assert_eq!(world.stores.last_epoch().unwrap(), Epoch(5));
}

#[test]
fn a_store_that_was_away_knows_nothing_that_counts() {
    let world = world(2);
    world.begin_epoch(5);
    world.dataset(1, "stale");
    let away = world.stores.get(1).unwrap().root().to_owned();
    let elsewhere = away.with_file_name("elsewhere");
    fs::rename(&away, &elsewhere).unwrap();
    fs::create_dir(&away).unwrap();
    world.stores.settle().unwrap();
    assert_eq!(world.said(), None, "a link that leads nowhere goes");
    world.begin_epoch(6);
    fs::remove_dir_all(&away).unwrap();
    fs::rename(&elsewhere, &away).unwrap();
    world.stores.settle().unwrap();
    assert_eq!(world.said(), None);
    assert!(!world.stores.get(1).unwrap().dataset(ID).exists());
}

#[test]
fn what_home_has_itself_wins_and_what_is_no_dataset_goes() {
    let world = world(2);
    world.begin_epoch(1);
    world.dataset(0, "home");
    let further = world.stores.get(1).unwrap();
    PosixStore::new()
        .put(&further.record(ID), b"other")
        .unwrap();
    // Begun, and no record yet.
    fs::create_dir_all(further.dataset(DatasetId(8))).unwrap();
    // From a time when this store was the first of others.
    symlink("/elsewhere", further.dataset(DatasetId(9))).unwrap();
    world.stores.settle().unwrap();
    assert_eq!(world.said().as_deref(), Some("home"));
    assert_eq!(names(further).unwrap(), []);
    assert_eq!(names(world.stores.home()).unwrap(), [ID]);
}

#[test]
fn what_was_there_before_the_machine_was_started_is_doubtful() {
    let world = world(2);
    world.begin_epoch(1);
    world.dataset(1, "old");
    assert_eq!(world.stores.settle().unwrap().doubtful.len(), 0);
    fs::write(world.stores.home().boot(), "another boot").unwrap();
    let doubtful = world.stores.settle().unwrap().doubtful;
    assert_eq!(doubtful, BTreeSet::from([ID]));
    assert_eq!(world.said().as_deref(), Some("old"));
}
