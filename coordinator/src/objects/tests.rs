//! The whole life of datasets in an object store in memory, cut at every operation that changes something.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::part::testing::{describe, random_tree, sealed};
use crate::part::{Part, PartError};
use crate::prefix::{Added, FlushLimits};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId as UploadedPart};
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use scrfs::config::Class;
use scrfs::id::DatasetId;
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::path::CachePaths;
use scrfs::layout::pointer::{Content, Pointer, PointerRecord, Pointers, Version};
use scrfs::protocol::step::Presence;
use scrfs::store::posix::PosixStore;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

mod events;

static GO: AtomicBool = AtomicBool::new(false);

/// Takes so many changes, then none.
struct Cut {
    inner: InMemory,
    left: AtomicI64,
    /// What somebody else does before the change of this number.
    between: Mutex<Option<(i64, Between)>>,
}

type Between = Box<dyn FnOnce() + Send>;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Cut {
    fn change(&self) -> object_store::Result<()> {
        let mut between = self.between.lock().unwrap();
        let act = between.take_if(|(changes, _)| {
            *changes -= 1;
            *changes < 0
        });
        drop(between);
        if let Some((_, act)) = act {
            // A thread of its own: this one is at work for somebody.
            std::thread::spawn(act).join().unwrap();
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(object_store::Error::Generic {
            store: "cut",
            source: "power is gone".into(),
        })
    }
}

#[async_trait::async_trait]
impl ObjectStore for Cut {
    async fn put_opts(
        &self,
        at: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.change()?;
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(
        &self,
        at: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        all: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        match self.change() {
            Ok(()) => self.inner.delete_stream(all),
            Err(error) => Box::pin(futures_util::stream::iter([Err(error)])),
        }
    }

    fn list(
        &self,
        below: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(below)
    }

    async fn list_with_delimiter(
        &self,
        below: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[async_trait::async_trait]
impl MultipartStore for Cut {
    async fn create_multipart(&self, at: &ObjectPath) -> object_store::Result<MultipartId> {
        self.change()?;
        self.inner.create_multipart(at).await
    }

    async fn put_part(
        &self,
        at: &ObjectPath,
        id: &MultipartId,
        index: usize,
        data: PutPayload,
    ) -> object_store::Result<UploadedPart> {
        self.change()?;
        self.inner.put_part(at, id, index, data).await
    }

    async fn complete_multipart(
        &self,
        at: &ObjectPath,
        id: &MultipartId,
        parts: Vec<UploadedPart>,
    ) -> object_store::Result<PutResult> {
        self.change()?;
        self.inner.complete_multipart(at, id, parts).await
    }

    async fn abort_multipart(&self, at: &ObjectPath, id: &MultipartId) -> object_store::Result<()> {
        self.inner.abort_multipart(at, id).await
    }
}

/// An empty prefix.
pub(super) fn in_memory() -> ObjectPrefix {
    let store = Arc::new(InMemory::new());
    let objects = Objects::with(store.clone(), store, "a/path", "s3://b/a/path");
    ObjectPrefix::over(objects.unwrap())
}

struct World {
    root: tempfile::TempDir,
    cache: CachePaths,
    store: Arc<Cut>,
    prefix: ObjectPrefix,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let cache = CachePaths::at(&root.path().join("cache"));
        let store = Arc::new(Cut {
            inner: InMemory::new(),
            left: AtomicI64::new(i64::MAX),
            between: Mutex::default(),
        });
        let objects = Objects::with(store.clone(), store.clone(), "a/path", "s3://b/a/path");
        let prefix = ObjectPrefix::over(objects.unwrap()).of_job("job");
        Self {
            root,
            cache,
            store,
            prefix,
        }
    }

    fn dataset(&self, id: u64, name: &str, slots: u32) -> DatasetRecord {
        for slot in 0..slots {
            let tree = self.cache.tree(DatasetId(id), Slot(slot));
            random_tree(&tree, slot, id * 10 + u64::from(slot));
        }
        sealed(&self.cache, id, name, slots)
    }

    fn flush(&self, record: &DatasetRecord) -> Result<(), PrefixError> {
        for slot in (0..record.seal.as_ref().unwrap().parts.len() as u32).map(Slot) {
            let part = Part::open(&PosixStore::new(), &self.cache, record, slot).unwrap();
            let limits = FlushLimits::default();
            self.prefix
                .flush_part(record, &part, limits, &|_| {}, &GO)?;
        }
        self.prefix.complete_flush(record)
    }

    /// That a fetch brings back each slot's tree as it was.
    fn fetches_all_of(&self, record: &DatasetRecord) {
        let other = CachePaths::at(&self.root.path().join("other"));
        for slot in (0..record.seal.as_ref().unwrap().parts.len() as u32).map(Slot) {
            let prefix = &self.prefix;
            prefix
                .fetch_part(record, slot, &other, &|_| {}, &GO)
                .unwrap();
            let (from, to) = (
                self.cache.tree(record.id, slot),
                other.tree(record.id, slot),
            );
            assert_eq!(describe(&from), describe(&to));
        }
        fs::remove_dir_all(other.root()).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let listed = self.prefix.list().unwrap();
        let names = listed.iter().map(|entry| entry.record.name.to_string());
        names.collect()
    }

    /// Keys of all objects but those of `.scrfs`.
    fn data(&self) -> Vec<String> {
        let all = self.prefix.objects.list("").unwrap();
        let keys = all.into_iter().map(|found| found.key);
        keys.filter(|key| !key.starts_with(CONTROL)).collect()
    }

    fn cut_after(&self, changes: i64) {
        self.store.left.store(changes, Ordering::SeqCst);
    }

    fn mend(&self) {
        self.cut_after(i64::MAX);
    }
}

#[test]
fn the_page_on_the_layout_has_the_keys() {
    let page = include_str!("../../../docs/layout.md");
    let block = page.split_once("```objects\n").unwrap().1;
    let block = block.split_once("```").unwrap().0;
    let said: Vec<&str> = block
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let key = DatasetKey {
        id: DatasetId(5),
        created: 1000,
    };
    let (attempt, slot) = (Epoch(3), Slot(2));
    let file = RelPath::new(b"rank_0").unwrap();
    let made = [
        file_key(&data(&name("ckpt.5"), key, attempt), &file),
        mark("index", key),
        manifest_key(key, attempt, slot),
        sums_key(key, attempt, slot),
        marker(key, attempt),
        super::events::page_key(1000, 0x1f),
    ];
    assert_eq!(said, made);
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

#[test]
fn what_was_flushed_is_listed_fetched_and_read_by_anybody() {
    let world = World::new();
    let record = world.dataset(1, "ckpt.1", 3);
    assert_eq!(world.names(), [""; 0]);
    world.flush(&record).unwrap();
    assert_eq!(world.names(), ["ckpt.1"]);
    world.fetches_all_of(&record);
    let plain = world.prefix.objects.get("ckpt.1/1.1.3/data.2").unwrap();
    assert_eq!(plain.unwrap(), vec![2; 100]);
    // Again is nothing.
    world.flush(&record).unwrap();
    let before = world.data();
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(world.data(), before);
    assert_eq!(world.prefix.objects.list(".scrfs/inflight").unwrap(), []);
}

#[test]
fn large_and_sparse_files_go_in_parts_and_come_back() {
    let world = World::new();
    let tree = world.cache.tree(DatasetId(1), Slot(0));
    fs::create_dir_all(&tree).unwrap();
    let bytes: Vec<u8> = (0..20_000_001u32).map(|at| (at % 251) as u8).collect();
    fs::write(tree.join("large"), &bytes).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 9_000_000).unwrap();
    sparse.set_len(18_000_000).unwrap();
    let record = sealed(&world.cache, 1, "ckpt.1", 1);
    world.flush(&record).unwrap();
    let read = world
        .prefix
        .objects
        .get("ckpt.1/1.1.3/large")
        .unwrap()
        .unwrap();
    assert!(read == bytes);
    let read = world
        .prefix
        .objects
        .get("ckpt.1/1.1.3/sparse")
        .unwrap()
        .unwrap();
    assert_eq!(read.len(), 18_000_000);
    assert_eq!(&read[9_000_000..9_000_013], b"in the middle");
    world.fetches_all_of(&record);
}

#[test]
fn changed_objects_are_noticed() {
    let world = World::new();
    let record = world.dataset(1, "ckpt.1", 1);
    world.flush(&record).unwrap();
    let key = "ckpt.1/1.1.3/data.0";
    world.prefix.objects.put(key, vec![9; 100]).unwrap();
    let other = CachePaths::at(&world.root.path().join("other"));
    let fetched = world
        .prefix
        .fetch_part(&record, Slot(0), &other, &|_| {}, &GO);
    let error = fetched.unwrap_err();
    let is_it = matches!(error, PrefixError::Part(PartError::Checksum { .. }));
    assert!(is_it, "{error}");
    world.prefix.objects.put(key, vec![0; 7]).unwrap();
    let fetched = world
        .prefix
        .fetch_part(&record, Slot(0), &other, &|_| {}, &GO);
    assert!(fetched.is_err());
}

#[test]
fn what_somebody_removed_from_the_store_is_gone_and_flushed_again() {
    let world = World::new();
    let record = world.dataset(1, "ckpt.1", 2);
    world.flush(&record).unwrap();
    let presence = || world.prefix.presence(&record).unwrap();
    assert_eq!(presence(), Presence::Settled);
    world.prefix.objects.remove("ckpt.1/1.1.3/data.1").unwrap();
    assert_eq!(presence(), Presence::Gone);
    world.flush(&record).unwrap();
    assert_eq!(presence(), Presence::Settled);
    world.fetches_all_of(&record);
    for key in world.data() {
        world.prefix.objects.remove(&key).unwrap();
    }
    assert_eq!(presence(), Presence::Gone);
    world.flush(&record).unwrap();
    world.fetches_all_of(&record);
    world.prefix.delete(&record.name, true).unwrap();
    assert_eq!(presence(), Presence::Gone);
}

#[test]
fn choosing_dropping_adding_and_deleting_work_as_in_a_directory() {
    let world = World::new();
    let prefix = &world.prefix;
    for id in 1..=3 {
        let record = world.dataset(id, &format!("ckpt.{id}"), 1);
        world.flush(&record).unwrap();
    }
    let current = || {
        let listed = prefix.list().unwrap();
        let current = prefix.current(&listed).unwrap();
        current.map(|entry| entry.record.name.to_string())
    };
    assert_eq!(current().as_deref(), Some("ckpt.3"));
    prefix.choose(&name("ckpt.1"), None).unwrap();
    assert_eq!(current().as_deref(), Some("ckpt.1"));
    assert!(prefix.delete(&name("ckpt.1"), false).is_err());
    prefix.drop_entry(&name("ckpt.2")).unwrap();
    assert_eq!(world.names(), ["ckpt.1", "ckpt.3"]);
    assert_eq!(prefix.add(&name("ckpt.2")).unwrap(), Added::PutBack);
    assert_eq!(prefix.add(&name("ckpt.2")).unwrap(), Added::Already);
    let key = prefix.delete(&name("ckpt.2"), false).unwrap();
    assert_eq!(world.names(), ["ckpt.1", "ckpt.3"]);
    assert!(prefix.gone().unwrap().contains(&key));
    assert!(!world.data().iter().any(|key| key.starts_with("ckpt.2/")));
    let error = prefix.delete(&name("ckpt.2"), false).unwrap_err();
    assert!(matches!(error, PrefixError::NoSuch { .. }), "{error}");
    let newest = prefix.list().unwrap().pop().unwrap().key();
    prefix.fail(newest).unwrap();
    assert_eq!(prefix.failed().unwrap(), BTreeSet::from([newest]));
    prefix.choose(&name("ckpt.3"), None).unwrap();
    assert_eq!(prefix.failed().unwrap(), BTreeSet::new());
    prefix.retain(1, &BTreeSet::new()).unwrap();
    assert_eq!(world.names(), ["ckpt.3"]);
}

type Act = fn(&ObjectPrefix);

/// What one does while another is stopped before each of its changes, and what is made of it after.
fn beside(prepare: Act, first: Act, second: Act, check: &dyn Fn(&World)) {
    for changes in 0.. {
        let world = World::new();
        let record = world.dataset(1, "ckpt.1", 1);
        world.flush(&record).unwrap();
        prepare(&world.prefix);
        let store = world.store.clone();
        let act = move || {
            let objects = Objects::with(store.clone(), store, "a/path", "s3://b/a/path");
            second(&ObjectPrefix::over(objects.unwrap()).of_job("another"));
        };
        *world.store.between.lock().unwrap() = Some((changes, Box::new(act)));
        first(&world.prefix);
        let is_over = world.store.between.lock().unwrap().take().is_some();
        if is_over {
            second(&world.prefix);
        }
        check(&world);
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        check(&world);
        if is_over {
            assert!(changes > 0);
            return;
        }
    }
}

#[test]
fn invariant_what_is_dropped_beside_anything_is_in_one_of_the_lists() {
    let drops: Act = |prefix| {
        prefix.drop_entry(&name("ckpt.1")).ok();
    };
    let adds: Act = |prefix| {
        prefix.add(&name("ckpt.1")).ok();
    };
    let starts: Act = |prefix| prefix.reconcile(&BTreeSet::new()).unwrap();
    let nothing: Act = |_| {};
    let is_somewhere = |world: &World| {
        let dropped = world.prefix.dropped().unwrap();
        let there = world.names().len() + dropped.len();
        assert_eq!(there, 1, "{:?} {dropped:?}", world.names());
    };
    let is_dropped = |world: &World| {
        assert_eq!(world.prefix.dropped().unwrap().len(), 1);
        assert_eq!(world.names(), [""; 0]);
    };
    beside(nothing, drops, starts, &is_dropped);
    beside(nothing, drops, adds, &is_somewhere);
    beside(drops, adds, drops, &is_somewhere);
    beside(drops, adds, starts, &is_somewhere);
    // The two halves of an add, around the beginning of a drop.
    let half: Act = |prefix| {
        prefix.drop_entry(&name("ckpt.1")).unwrap();
        let entry = prefix.dropped().unwrap().remove(0);
        let key = mark("index", entry.key());
        prefix.objects.put(&key, entry.encode()).unwrap();
    };
    let rest: Act = |prefix| {
        let entry = prefix.entries_below("dropped").unwrap().remove(0);
        let key = mark("dropped", entry.key());
        prefix.objects.remove(&key).unwrap();
        prefix.keep_in_one(entry.key(), "index", &entry).unwrap();
    };
    beside(half, drops, rest, &is_somewhere);
}

#[test]
fn a_start_of_a_job_leaves_a_drop_that_is_under_way_alone() {
    let world = World::new();
    let record = world.dataset(1, "ckpt.1", 1);
    world.flush(&record).unwrap();
    world.cut_after(1);
    world.prefix.drop_entry(&record.name).unwrap_err();
    world.mend();
    world.prefix.reconcile(&BTreeSet::new()).unwrap();
    assert_eq!(world.names(), ["ckpt.1"]);
    // The rest of it.
    let entry = mark("index", record.key());
    world.prefix.objects.remove(&entry).unwrap();
    assert_eq!(world.prefix.dropped().unwrap().len(), 1);
    // Replaced by another of its name, nothing is left of either.
    world.prefix.add(&record.name).unwrap();
    world.cut_after(1);
    world.prefix.drop_entry(&record.name).unwrap_err();
    world.mend();
    let new = world.dataset(2, "ckpt.1", 1);
    world.flush(&new).unwrap();
    assert_eq!(world.prefix.dropped().unwrap().len(), 0);
    assert_eq!(world.names(), ["ckpt.1"]);
}

#[test]
fn a_newer_one_of_the_same_name_takes_its_place_and_the_old_goes() {
    let world = World::new();
    let old = world.dataset(1, "ckpt", 1);
    world.flush(&old).unwrap();
    let new = world.dataset(2, "ckpt", 2);
    world.flush(&new).unwrap();
    assert_eq!(world.prefix.list().unwrap()[0].key(), new.key());
    assert_eq!(world.names(), ["ckpt"]);
    world.fetches_all_of(&new);
    assert!(
        world
            .data()
            .iter()
            .all(|key| key.starts_with("ckpt/2.1.3/"))
    );
}

#[test]
fn what_two_slots_have_is_not_published() {
    let world = World::new();
    for slot in [0, 1].map(Slot) {
        let tree = world.cache.tree(DatasetId(1), slot);
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("same"), [slot.0 as u8]).unwrap();
    }
    let record = sealed(&world.cache, 1, "ckpt.1", 2);
    let error = world.flush(&record).unwrap_err();
    assert!(matches!(error, PrefixError::Collision { .. }), "{error}");
    assert_eq!(world.names(), [""; 0]);
}

/// Does something after `before`, cut after each number of changes; then `after` it is as if it was never begun
/// or has ended.
fn cut_everywhere(
    prepare: impl Fn(&World) -> DatasetRecord,
    act: impl Fn(&World, &DatasetRecord) -> Result<(), PrefixError>,
    check: impl Fn(&World, &DatasetRecord),
) {
    let mut changes = 0;
    loop {
        let world = World::new();
        let record = prepare(&world);
        world.cut_after(changes);
        let acted = act(&world, &record);
        // What tidies up behind may have been cut, and is not said.
        let was_cut = world.store.left.load(Ordering::SeqCst) < 0;
        world.mend();
        check(&world, &record);
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        check(&world, &record);
        // Nothing is left of what is not listed.
        let listed = world.prefix.list().unwrap();
        let kept: Vec<String> = listed
            .iter()
            .map(|entry| data(&entry.record.name, entry.key(), entry.attempt))
            .collect();
        let orphan = |key: &String| !kept.iter().any(|kept| key.starts_with(kept.as_str()));
        assert_eq!(
            world.data().into_iter().find(orphan),
            None,
            "after {changes}"
        );
        act(&world, &record).ok();
        check(&world, &record);
        if !was_cut {
            acted.unwrap();
            break;
        }
        changes += 1;
    }
    assert!(changes > 4, "{changes}");
}

#[test]
fn a_flush_that_is_cut_anywhere_shows_nothing_or_all() {
    cut_everywhere(
        |world| world.dataset(1, "ckpt.1", 2),
        |world, record| world.flush(record),
        |world, record| {
            if !world.names().is_empty() {
                world.fetches_all_of(record);
            }
        },
    );
}

#[test]
fn replacing_that_is_cut_anywhere_shows_the_old_or_the_new() {
    cut_everywhere(
        |world| {
            let old = world.dataset(1, "ckpt", 1);
            world.flush(&old).unwrap();
            world.dataset(2, "ckpt", 1)
        },
        |world, record| world.flush(record),
        |world, _| {
            let listed = world.prefix.list().unwrap();
            assert_eq!(listed.len(), 1);
            world.fetches_all_of(&listed[0].record);
        },
    );
}

#[test]
fn a_deletion_that_is_cut_anywhere_leaves_all_or_nothing() {
    cut_everywhere(
        |world| {
            let record = world.dataset(1, "ckpt.1", 1);
            world.flush(&record).unwrap();
            record
        },
        |world, record| match world.prefix.delete(&record.name, true) {
            Err(PrefixError::NoSuch { .. }) => Ok(()),
            other => other.map(drop),
        },
        |world, record| {
            if !world.names().is_empty() {
                world.fetches_all_of(record);
            }
        },
    );
}

#[test]
fn outputs_are_nothing_to_restart_from() {
    let world = World::new();
    let mut record = world.dataset(1, "out.1", 1);
    record.class = Class::Output;
    world.flush(&record).unwrap();
    assert!(world.prefix.choose(&record.name, None).is_err());
    assert!(
        world
            .prefix
            .current(&world.prefix.list().unwrap())
            .unwrap()
            .is_none()
    );
}

fn pointers(number: u64, says: &str) -> Pointers {
    let mut due = Pointers::default();
    let record = PointerRecord {
        version: Version { term: 1, number },
        after: None,
        pointer: Some(Pointer {
            content: Content::File(says.into()),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
        }),
    };
    due.learn(Name::new(b"la%test").unwrap(), record);
    due
}

#[test]
fn pointer_files_of_two_jobs_and_of_one_object() {
    let mut world = World::new();
    let old = pointers(3, "old");
    let bytes = seal(Kind::Pointers, &old);
    let objects = &world.prefix.objects;
    objects.put(&format!("{CONTROL}/pointers"), bytes).unwrap();
    let said = |world: &World| {
        let bytes = world.prefix.objects.get("la%25test").unwrap();
        bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(world.prefix.pointers().unwrap(), old);
    world.prefix.write_pointers(&pointers(3, "late")).unwrap();
    assert_eq!(said(&world), None);
    for (job, number, says) in [
        ("one", 9, "one 9"),
        ("two", 4, "two 4"),
        ("two", 5, "two 5"),
    ] {
        world.prefix = world.prefix.of_job(job);
        world
            .prefix
            .write_pointers(&pointers(number, says))
            .unwrap();
        assert_eq!(said(&world).as_deref(), Some(says));
        let here = world.prefix.pointers().unwrap();
        assert_eq!(here.all, pointers(number, says).all);
    }
    // What was written before another's is not written again, and what was outdone goes.
    world.prefix = world.prefix.of_job("one");
    world.prefix.write_pointers(&pointers(9, "one 9")).unwrap();
    assert_eq!(said(&world).as_deref(), Some("two 5"));
    let turns = world.prefix.objects.list(&format!("{CONTROL}/turns"));
    assert_eq!(turns.unwrap().len(), 2);
}

#[test]
fn a_pointer_file_that_is_cut_anywhere_is_the_old_or_the_new_one() {
    for changes in 0.. {
        let world = World::new();
        world.prefix.write_pointers(&pointers(1, "old")).unwrap();
        world.cut_after(changes);
        let written = world.prefix.write_pointers(&pointers(2, "new"));
        world.mend();
        let said = || {
            let bytes = world.prefix.objects.get("la%25test").unwrap().unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        assert!(["old", "new"].contains(&said().as_str()));
        let turns = world.prefix.objects.list(&format!("{CONTROL}/turns"));
        let mut turns = turns.unwrap().into_iter();
        let has_begun = turns.any(|turn| turn.key.contains("/2.1.2."));
        world.prefix.reconcile(&BTreeSet::new()).unwrap();
        assert_eq!(said() == "new", has_begun, "{changes}");
        let here = world.prefix.pointers().unwrap();
        assert_eq!(
            here.live(&Name::new(b"la%test").unwrap()).unwrap().content,
            Content::File(said().into())
        );
        world.prefix.write_pointers(&pointers(2, "new")).unwrap();
        assert_eq!(said(), "new");
        if written.is_ok() {
            assert!(changes > 3, "{changes}");
            break;
        }
    }
}
