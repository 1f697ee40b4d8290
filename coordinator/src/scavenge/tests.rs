//! Whole sessions over caches of several nodes, with nodes lost and bytes damaged.

#![allow(clippy::unwrap_used)]

use super::crew::{Crew, Done, Roots, Task};
use super::finish::{Outcome, Scavenge};
use crate::part::records::{load_manifest, load_sums, store_manifest};
use crate::part::testing::{Described, describe, random_tree};
use crate::part::{Part, scan_part};
use crate::prefix::{FlushLimits, Prefix};
use anyhow::Result;
use scrfs::codec::combine;
use scrfs::config::{Class, Config, LogConfig, Sources};
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::{DatasetRecord, EpochRecord, Phase, Seal};
use scrfs::name::Name;
use scrfs::redundancy::{Extent, Scheme, Stream};
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use scrfs::stores::Stores;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const UNIT_BYTES: u32 = 4096;
const CHUNK_BYTES: u64 = 16_384;
const EPOCH: Epoch = Epoch(3);

/// What a file tree has, of all slots together.
type Tree = BTreeMap<PathBuf, Described>;

/// Caches of several nodes, and a prefix.
struct World {
    root: tempfile::TempDir,
    nodes: u32,
}

impl World {
    fn new(nodes: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("prefix")).unwrap();
        let world = Self { root, nodes };
        for slot in (0..nodes).map(Slot) {
            let cache = world.cache(slot);
            fs::create_dir_all(cache.root()).unwrap();
            File::create(cache.lock()).unwrap();
            let epoch = EpochRecord {
                epoch: EPOCH,
                slot: Some(slot),
                ..EpochRecord::default()
            };
            Stores::new(cache, vec![])
                .put_epoch(&PosixStore::new(), &epoch)
                .unwrap();
        }
        world
    }

    fn cache(&self, slot: Slot) -> CachePaths {
        CachePaths::at(&self.root.path().join(format!("n{}", slot.0)))
    }

    fn prefix(&self) -> Prefix {
        Prefix::open(&self.root.path().join("prefix"))
            .unwrap()
            .of_job("job")
    }

    fn lose(&self, slot: u32) {
        fs::remove_dir_all(self.cache(Slot(slot)).root()).unwrap();
    }

    fn roots(&self) -> Roots {
        let all = (0..self.nodes).map(|slot| self.cache(Slot(slot)).root().to_owned());
        let config = Config::load(&Sources {
            env: &|_| None,
            user: None,
            system: None,
            cli: vec![("prefix".into(), "/p".into())],
        });
        Roots::new(all.collect(), &config.unwrap().0, false)
    }

    fn scavenge_with(&self, session: u64, crew: &mut dyn Crew) -> Result<Outcome> {
        let log = LogConfig {
            events: true,
            syslog: false,
        };
        Scavenge {
            prefix: &self.prefix(),
            log: &log,
            session: Epoch(session),
            say: &|words| eprintln!("{words}"),
            shows_bars: false,
        }
        .run(crew)
    }

    fn scavenge(&self) -> Outcome {
        self.scavenge_with(1_000_000, &mut self.roots()).unwrap()
    }

    /// A dataset that is sealed and protected on all nodes; what its files are.
    fn dataset(&self, id: u64, class: Class, scheme: Scheme) -> (DatasetRecord, Tree) {
        let id = DatasetId(id);
        let store = PosixStore::new();
        let slots: Vec<Slot> = (0..self.nodes).map(Slot).collect();
        let mut files = Tree::new();
        let mut parts = Vec::new();
        for &slot in &slots {
            let cache = self.cache(slot);
            let tree = cache.tree(id, slot);
            random_tree(&tree, slot.0, id.0 * 100 + u64::from(slot.0));
            // Directories of several slots have the attributes of one of them.
            let all = describe(&tree).into_iter();
            files.extend(all.filter(|(path, _)| !tree.join(path).is_dir()));
            let manifest = scan_part(&tree, id, slot, EPOCH).unwrap();
            parts.push(store_manifest(&store, &cache, &manifest, Keep::Own).unwrap());
        }
        let record = DatasetRecord {
            id,
            name: Name::new(format!("d.{id}").as_bytes()).unwrap(),
            committed_from: None,
            class,
            checkpoint: Some(id.0),
            phase: Phase::Sealed,
            epoch: EPOCH,
            created: 10 + id.0,
            sealed: Some(20 + id.0),
            protected: Some(30 + id.0),
            flushing: false,
            flushed: None,
            seal: Some(Seal {
                epoch: EPOCH,
                scheme,
                chunk_bytes: CHUNK_BYTES,
                unit_bytes: UNIT_BYTES,
                sets: vec![slots.clone()],
                parts,
            }),
            error: None,
            mode: 0o751,
            uid: nix::unistd::Uid::effective().as_raw(),
            gid: nix::unistd::Gid::effective().as_raw(),
        };
        for &slot in &slots {
            let path = self.cache(slot).record(id);
            store.put(&path, &seal(Kind::Dataset, &record)).unwrap();
        }
        self.encode(&record);
        (record, files)
    }

    /// Parity, checksums, and copies of metadata with two neighbours.
    fn encode(&self, record: &DatasetRecord) {
        let store = PosixStore::new();
        let open = |slot: u32| Part::open(&store, &self.cache(Slot(slot)), record, Slot(slot));
        let parts: Vec<Part> = (0..self.nodes).map(|slot| open(slot).unwrap()).collect();
        let geometry = record.seal.as_ref().unwrap().geometry_of(Slot(0)).unwrap();
        let read = |extent: Extent| {
            let part = &parts[extent.slot.0 as usize];
            part.read_data(extent.offset, extent.len).unwrap()
        };
        for part in &parts {
            let slot = part.id().slot;
            part.fill_missing_sums(Stream::Data).unwrap();
            for combination in geometry.encode(slot, UNIT_BYTES) {
                let mut made = vec![0; combination.destination.len as usize];
                let terms = &combination.terms;
                let row: Vec<u8> = terms.iter().map(|term| term.coefficient).collect();
                let bytes: Vec<_> = terms.iter().map(|term| read(term.source)).collect();
                let bytes: Vec<&[u8]> = bytes.iter().map(AsRef::as_ref).collect();
                combine(&mut [&mut made], &[&row], &bytes);
                part.write_parity(combination.destination.offset, &made)
                    .unwrap();
            }
            part.commit_parity().unwrap();
            part.fill_missing_sums(Stream::Parity).unwrap();
            part.store_sums(&store, Stream::Data).unwrap();
            part.store_sums(&store, Stream::Parity).unwrap();
            let own = self.cache(slot);
            for step in 1..self.nodes.min(4) {
                let other = self.cache(Slot((slot.0 + step) % self.nodes));
                let copy = other.slot(record.id, slot, Keep::Copy);
                fs::create_dir_all(&copy).unwrap();
                let from = own.slot(record.id, slot, Keep::Own);
                for name in ["manifest", "sums.data", "sums.parity"] {
                    fs::copy(from.join(name), copy.join(name)).unwrap();
                }
            }
        }
    }

    /// Names of the datasets that a user sees, and those the index has.
    fn visible(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.prefix().paths().root()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let seen: BTreeSet<String> = names.filter(|name| name != ".scrfs").collect();
        let listed = self.prefix().list().unwrap();
        let listed = listed.iter().filter(|entry| entry.is_complete());
        let listed: BTreeSet<_> = listed.map(|entry| entry.record.name.to_string()).collect();
        assert_eq!(seen, listed);
        seen
    }

    fn check(&self, name: &str, files: &Tree) {
        let root = self.prefix().paths().root().join(name);
        let mut found = describe(&root);
        found.retain(|path, _| !root.join(path).is_dir());
        assert_eq!(found.len(), files.len());
        for (path, described) in files {
            assert_eq!(
                found.get(path),
                Some(described),
                "{name}/{}",
                path.display()
            );
        }
    }
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|&name| name.to_owned()).collect()
}

/// Changes a byte of a file in place, and nothing that `stat` tells.
fn damage(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(modified))
        .unwrap();
}

#[test]
fn outputs_and_the_newest_checkpoint_are_saved_and_lost_slots_rebuilt() {
    for (scheme, lost) in [
        (Scheme::Xor, vec![]),
        (Scheme::Xor, vec![2]),
        (Scheme::Partner { copies: 1 }, vec![0]),
        (Scheme::ReedSolomon { parities: 2 }, vec![0, 3]),
    ] {
        let world = World::new(5);
        let (_, output) = world.dataset(1, Class::Output, scheme);
        world.dataset(2, Class::Checkpoint, scheme);
        let (_, newest) = world.dataset(3, Class::Checkpoint, scheme);
        lost.iter().for_each(|&slot| world.lose(slot));
        let outcome = world.scavenge();
        assert!(outcome.is_all_safe(), "{outcome:?}");
        assert_eq!(world.visible(), names(&["d.1", "d.3"]));
        world.check("d.1", &output);
        world.check("d.3", &newest);
        // Nothing is left of it, and nothing to be done.
        let control = world.prefix().paths().control();
        for gone in ["inflight", "scavenge"] {
            let left = fs::read_dir(control.join(gone));
            assert_eq!(left.map_or(0, Iterator::count), 0, "{gone}");
        }
        let again = world.scavenge_with(1_000_001, &mut world.roots()).unwrap();
        assert_eq!((again.saved.len(), again.lost.len()), (0, 0));
        let events = fs::read_to_string(world.prefix().paths().events()).unwrap();
        assert_eq!(
            events.matches("\"event\":\"flushed\"").count(),
            2,
            "{events}"
        );
    }
}

#[test]
fn beyond_the_scheme_nothing_is_shown_and_it_is_said() {
    let world = World::new(4);
    world.dataset(1, Class::Output, Scheme::Xor);
    world.dataset(2, Class::Checkpoint, Scheme::Xor);
    world.lose(1);
    world.lose(2);
    let outcome = world.scavenge();
    assert!(!outcome.is_all_safe());
    assert_eq!(world.visible(), names(&[]));
    let lines = outcome.lines().join("\n");
    assert!(lines.contains("d.1 cannot be saved: "), "{lines}");
}

#[test]
fn what_is_damaged_at_rest_is_rebuilt_and_too_much_of_it_gives_the_one_before() {
    let world = World::new(4);
    let (_, older) = world.dataset(1, Class::Checkpoint, Scheme::Xor);
    let (record, newest) = world.dataset(2, Class::Checkpoint, Scheme::Xor);
    let data = |slot: u32| world.cache(Slot(slot)).tree(record.id, Slot(slot));
    damage(&data(1).join("data.1"));
    let outcome = world.scavenge();
    assert_eq!(outcome.saved.len(), 1, "{outcome:?}");
    assert_eq!(world.visible(), names(&["d.2"]));
    world.check("d.2", &newest);
    world.prefix().delete(&record.name, true).unwrap();
    fs::remove_dir_all(world.prefix().paths().gone()).unwrap();
    // The parity that would be needed is damaged, too.
    damage(&world.cache(Slot(0)).parity(record.id, Slot(0)));
    let outcome = world.scavenge_with(1_000_001, &mut world.roots()).unwrap();
    assert_eq!(outcome.lost.len(), 1, "{outcome:?}");
    assert_eq!(world.visible(), names(&["d.1"]));
    world.check("d.1", &older);
}

#[test]
fn a_restart_that_never_makes_lost_output_again_is_warned_of() {
    let world = World::new(4);
    world.dataset(3, Class::Checkpoint, Scheme::Xor);
    world.scavenge();
    world.dataset(1, Class::Output, Scheme::Xor);
    world.dataset(5, Class::Output, Scheme::Xor);
    world.lose(1);
    world.lose(2);
    let outcome = world.scavenge_with(1_000_001, &mut world.roots()).unwrap();
    assert_eq!(outcome.restart.as_deref(), Some("d.3"));
    assert_eq!(outcome.lost.len(), 2, "{outcome:?}");
    assert_eq!(
        outcome.restart_without,
        ["d.1"],
        "the other one is made again"
    );
    let lines = outcome.lines().join("\n");
    assert!(
        lines.contains("d.3 is newer than output that is lost"),
        "{lines}"
    );
}

/// A crew of which one node is lost while it copies.
struct Dying {
    crew: Roots,
    node: &'static str,
}

impl Crew for Dying {
    fn names(&self) -> Vec<String> {
        self.crew.names()
    }

    fn each(
        &mut self,
        prefix: &Prefix,
        session: Epoch,
        task: Task,
        nodes: &[String],
    ) -> Result<Done> {
        let mut done = self.crew.each(prefix, session, task, nodes)?;
        if task == Task::Copy
            && let Some(result) = done.get_mut(self.node)
        {
            *result = Err("power is gone".into());
        }
        Ok(done)
    }
}

#[test]
fn a_node_that_is_lost_meanwhile_is_one_more_that_is_lost() {
    let world = World::new(4);
    let (_, files) = world.dataset(1, Class::Checkpoint, Scheme::Xor);
    let mut crew = Dying {
        crew: world.roots(),
        node: "root3",
    };
    let outcome = world.scavenge_with(1, &mut crew).unwrap();
    assert!(outcome.is_all_safe(), "{outcome:?}");
    assert_eq!(outcome.absent.len(), 1);
    world.check("d.1", &files);
}

#[test]
fn a_cache_that_a_daemon_has_is_left_alone() {
    let world = World::new(2);
    let lock = File::open(world.cache(Slot(1)).lock()).unwrap();
    let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    world.dataset(1, Class::Checkpoint, Scheme::Partner { copies: 1 });
    let outcome = world.scavenge();
    assert_eq!(outcome.absent.len(), 1, "{outcome:?}");
    // What it has can be made of the other's.
    assert_eq!(world.visible(), names(&["d.1"]));
    drop(lock);
}

#[test]
fn a_rebuild_that_is_interrupted_anywhere_shows_nothing_and_can_be_done_again() {
    let mut stop = 0;
    loop {
        let world = World::new(3);
        let (record, files) = world.dataset(1, Class::Checkpoint, Scheme::Xor);
        world.lose(1);
        let attempt = DatasetRecord {
            epoch: Epoch(500),
            ..record.clone()
        };
        let (prefix, store, count) = (world.prefix(), PosixStore::new(), Cell::new(0));
        let step = |what: &'static str| {
            count.set(count.get() + 1);
            match count.get() > stop {
                true => Err(io::Error::other(what)),
                false => Ok(()),
            }
        };
        prefix.begin_salvage(&attempt).unwrap();
        let (limits, never) = (FlushLimits::default(), AtomicBool::new(false));
        for slot in [0, 2].map(Slot) {
            let part = Part::open(&store, &world.cache(slot), &record, slot).unwrap();
            let part = Arc::new(part);
            let (attempt, part) = (&attempt, &part);
            prefix
                .flush_part(attempt, part, limits, &|_| {}, &never)
                .unwrap();
            prefix
                .keep_parity(attempt, part, limits, &|_| {}, &never)
                .unwrap();
        }
        let (from, id, lost) = (world.cache(Slot(0)), record.id, Slot(1));
        let stored = load_manifest(&store, &from, id, lost, Keep::Copy)
            .unwrap()
            .unwrap();
        let sums = load_sums(&store, &from, id, lost, Stream::Data, Keep::Copy);
        prefix
            .keep_metadata(&attempt, &stored, &sums.unwrap().unwrap())
            .unwrap();
        let cut = prefix
            .rebuild_part_with(&attempt, &[lost], lost, &|_| {}, &never, &step)
            .and_then(|()| prefix.complete_flush_with(&attempt, &step))
            .is_err();
        // With its name it is complete, whatever the index says of it yet.
        if world.prefix().paths().root().join("d.1").exists() {
            world.check("d.1", &files);
        }
        let outcome = world.scavenge();
        assert!(outcome.is_all_safe(), "step {stop}: {outcome:?}");
        world.check("d.1", &files);
        if !cut {
            break;
        }
        stop += 1;
    }
    assert!(stop > 4, "{stop}");
}
