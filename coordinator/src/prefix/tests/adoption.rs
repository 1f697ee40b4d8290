//! Taking in what somebody else wrote.

use super::*;
use crate::part::testing::random_tree;
use scrfs::config::Class;
use scrfs::layout::manifest::Sums;
use std::cell::Cell;
use std::collections::BTreeSet;

impl World {
    fn theirs(&self) -> (Name, PathBuf) {
        let path = self.published("theirs");
        random_tree(&path, 0, 4711);
        (Name::new(b"theirs").unwrap(), path)
    }

    fn adopt(&self, name: &Name) -> Result<Added, PrefixError> {
        self.prefix.add(name, Class::Checkpoint, &|_, _| {})
    }

    pub(super) fn only(&self) -> DatasetRecord {
        let mut entries = self.prefix.list().unwrap();
        assert_eq!(entries.len(), 1);
        entries.remove(0).record
    }
}

#[test]
fn what_was_adopted_is_untouched_and_comes_back_as_it_is() {
    let world = World::new();
    let (name, path) = world.theirs();
    let before = describe(&path);
    let told = Cell::new((0, 0));
    let added = world
        .prefix
        .add(&name, Class::Both, &|bytes, all| told.set((bytes, all)))
        .unwrap();
    assert_eq!(added, Added::Adopted);
    assert_eq!(describe(&path), before);
    let record = world.only();
    assert_eq!(
        (record.name.clone(), record.class),
        (name.clone(), Class::Both)
    );
    let bytes = record.seal.as_ref().unwrap().bytes();
    assert_eq!(told.get(), (bytes, bytes));
    let cache = CachePaths::at(&world.root.path().join("other"));
    world
        .prefix
        .fetch_part(&record, Slot(0), &cache, &|_| {}, &GO)
        .unwrap();
    assert_eq!(describe(&cache.tree(record.id, Slot(0))), before);
    let entries = world.prefix.list().unwrap();
    assert_eq!(world.prefix.current(&entries).unwrap(), Some(&entries[0]));
    assert_eq!(world.adopt(&name).unwrap(), Added::Already);
}

#[test]
fn every_byte_of_what_was_adopted_is_summed() {
    let world = World::new();
    let (name, path) = world.theirs();
    fs::write(path.join("big"), vec![3; 700_000]).unwrap();
    world.adopt(&name).unwrap();
    let record = world.only();
    let sums: Sums = world.prefix.sums(&record, Slot(0)).unwrap();
    assert!(sums.is_complete() && sums.crcs.len() > 2);
    let cache = CachePaths::at(&world.root.path().join("other"));
    for at in [0, 300_000, 699_999] {
        flip(&path.join("big"), at);
        let fetched = world
            .prefix
            .fetch_part(&record, Slot(0), &cache, &|_| {}, &GO);
        assert_eq!(fetched.unwrap_err().cause(), Cause::Damaged);
        flip(&path.join("big"), at);
    }
    world
        .prefix
        .fetch_part(&record, Slot(0), &cache, &|_| {}, &GO)
        .unwrap();
}

#[test]
fn invariant_an_adoption_that_dies_leaves_no_dataset_or_a_whole_one() {
    let mut steps = vec![];
    for at in 0.. {
        let world = World::new();
        let (name, path) = world.theirs();
        let before = describe(&path);
        let count = Cell::new(0);
        let hook = |step: &'static str| {
            count.set(count.get() + 1);
            if count.get() > at {
                steps.push(step);
                return Err(io::Error::other("crashed"));
            }
            Ok(())
        };
        let hook = std::cell::RefCell::new(hook);
        let died = world
            .prefix
            .add_with(&name, Class::Checkpoint, &|_, _| {}, &|step| {
                (hook.borrow_mut())(step)
            })
            .is_err();
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        assert_eq!(world.ids().is_empty(), died);
        assert_eq!(describe(&path), before);
        assert_eq!(
            world.adopt(&name).unwrap(),
            if died { Added::Adopted } else { Added::Already }
        );
        world
            .prefix
            .verify_part(&world.only(), Slot(0), &|_| {}, &GO)
            .unwrap();
        // What was left goes when it is old.
        let manifests = world.prefix.paths().all_manifests();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(4000);
        for entry in fs::read_dir(&manifests).unwrap() {
            let path = entry.unwrap().path();
            for below in fs::read_dir(&path).unwrap() {
                let file = File::open(below.unwrap().path()).unwrap();
                file.set_modified(long_ago).unwrap();
            }
            File::open(&path).unwrap().set_modified(long_ago).unwrap();
        }
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        assert_eq!(fs::read_dir(&manifests).unwrap().count(), 1);
        world
            .prefix
            .verify_part(&world.only(), Slot(0), &|_| {}, &GO)
            .unwrap();
        if !died {
            break;
        }
    }
    assert_eq!(steps.len(), 5, "{steps:?}");
}

#[test]
fn what_changes_while_it_is_read_is_not_adopted() {
    let world = World::new();
    let (name, path) = world.theirs();
    let change = |step: &'static str| match step {
        "read the files" => fs::write(path.join("late"), b"late"),
        _ => Ok(()),
    };
    let error = world
        .prefix
        .add_with(&name, Class::Checkpoint, &|_, _| {}, &change)
        .unwrap_err();
    assert!(matches!(error, PrefixError::Changed { .. }), "{error}");
    assert_eq!(world.ids(), []);
}

#[test]
fn what_is_no_directory_is_not_adopted() {
    let world = World::new();
    fs::write(world.published("file"), b"").unwrap();
    symlink("/", world.published("link")).unwrap();
    for name in ["file", "link", "nothing", ".scrfs"] {
        let name = Name::new(name.as_bytes()).unwrap();
        assert!(matches!(
            world.adopt(&name),
            Err(PrefixError::NoSuch { .. })
        ));
    }
}

#[test]
fn what_was_adopted_is_not_replaced_by_a_flush() {
    let world = World::new();
    let (name, path) = world.theirs();
    let before = describe(&path);
    world.adopt(&name).unwrap();
    let record = world.files(9, "theirs", &[("a", b"new")]);
    world.flush_slots(&record);
    let error = world.prefix.complete_flush(&record).unwrap_err();
    assert!(matches!(error, PrefixError::NotOurs { .. }), "{error}");
    assert_eq!(describe(&path), before);
    // Deleted when somebody says so, though.
    world.prefix.delete(&name, true).unwrap();
    assert!(!path.exists());
}
