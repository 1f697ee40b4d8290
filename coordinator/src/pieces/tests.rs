//! Two ranks by hand: what is asked, who answers, and what never gets out.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::part::testing::sealed;
use scrfs::layout::path::Keep;
use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const ID: DatasetId = DatasetId(7);
const HERE: Rank = Rank(0);
const THERE: Rank = Rank(1);
const BYTES: usize = 3 * 8192 + 777;

struct Node {
    pieces: Pieces,
    parts: Parts,
    tasks: Tasks,
    events: Receiver<Event>,
}

impl Node {
    fn new(
        me: Rank,
        paths: &CachePaths,
        record: &DatasetRecord,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let (sender, events) = channel();
        let mut parts = Parts::new(me, paths.clone());
        parts.learn(record);
        Self {
            pieces: Pieces::new(me, 2),
            parts,
            tasks: Tasks::new(runtime.clone(), sender, Arc::new(|| {})),
            events,
        }
    }

    fn fetch(&mut self, request: u64, wanted: Wanted, is_ready: bool) -> Todo {
        let mut todo = Todo::default();
        self.pieces.fetch(
            request,
            wanted,
            is_ready,
            &self.parts,
            &self.tasks,
            &mut todo,
        );
        todo
    }

    fn want(&mut self, ticket: u64, wanted: Wanted) -> Todo {
        let mut todo = Todo::default();
        self.pieces
            .want(HERE, ticket, wanted, &self.parts, &self.tasks, &mut todo);
        todo
    }

    fn have(&mut self, from: Rank, ticket: u64, result: Result<Bytes>) -> Todo {
        let mut todo = Todo::default();
        self.pieces
            .have(from, ticket, result, &self.parts, &self.tasks, &mut todo);
        todo
    }

    /// The fabric has let go of something.
    fn serve(&mut self) {
        self.pieces.serve(&self.parts, &self.tasks);
    }

    /// Waits for what is read on another thread.
    fn read(&mut self) -> Todo {
        let Ok(Event::Read(read)) = self.events.recv_timeout(Duration::from_secs(20)) else {
            panic!("nothing was read")
        };
        let mut todo = Todo::default();
        self.pieces.read(read, &self.parts, &self.tasks, &mut todo);
        todo
    }
}

/// Slot 0 here, slot 1 there, with the caches.
struct World {
    runtime: tokio::runtime::Runtime,
    root: tempfile::TempDir,
    record: DatasetRecord,
    bytes: Vec<u8>,
    here: Node,
    there: Node,
}

fn world() -> World {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = tempfile::tempdir().unwrap();
    let paths = [0, 1].map(|node| CachePaths::at(&root.path().join(node.to_string())));
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at * 7 % 251) as u8).collect();
    for slot in [Slot(0), Slot(1)] {
        let tree = paths[0].tree(ID, slot);
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), &bytes).unwrap();
    }
    let record = sealed(&paths[0], ID.0, "ckpt.7", 2);
    fs::create_dir_all(paths[1].dataset(ID)).unwrap();
    let of = |node: usize| paths[node].slot(ID, Slot(1), Keep::Own);
    fs::rename(of(0), of(1)).unwrap();
    let here = Node::new(HERE, &paths[0], &record, runtime.handle());
    let there = Node::new(THERE, &paths[1], &record, runtime.handle());
    World {
        runtime,
        root,
        record,
        bytes,
        here,
        there,
    }
}

fn log(slot: u32, offset: u64, len: u32) -> Wanted {
    Wanted {
        dataset: ID,
        slot: Slot(slot),
        piece: Piece::Log { offset, len },
    }
}

fn manifest(slot: u32) -> Wanted {
    Wanted {
        dataset: ID,
        slot: Slot(slot),
        piece: Piece::Manifest,
    }
}

impl World {
    fn cache(&self, node: u32) -> CachePaths {
        CachePaths::at(&self.root.path().join(node.to_string()))
    }

    /// Asks here; whatever is asked of the other rank is answered by it.
    fn fetched(&mut self, wanted: Wanted) -> Result<Bytes> {
        let mut todo = self.here.fetch(5, wanted, true);
        loop {
            if let Some((request, result)) = todo.answers.pop() {
                assert_eq!(request, 5);
                assert!(todo.answers.is_empty() && todo.messages.is_empty());
                assert!(self.here.pieces.asked.is_empty(), "answered and forgotten");
                return result;
            }
            todo = match todo.messages.pop() {
                Some((THERE, message)) => self.there_answers(message),
                Some((rank, message)) => panic!("{rank}: {message:?}"),
                None => self.here.read(),
            };
        }
    }

    fn there_answers(&mut self, message: Message) -> Todo {
        let Message::WantPiece {
            ticket,
            dataset,
            slot,
            piece,
        } = message
        else {
            panic!("{message:?}")
        };
        let wanted = Wanted {
            dataset,
            slot,
            piece,
        };
        let mut todo = self.there.want(ticket, wanted);
        if todo.messages.is_empty() {
            todo = self.there.read();
        }
        match todo.messages.pop() {
            Some((HERE, Message::HavePiece { ticket, result })) => {
                self.here.have(THERE, ticket, result)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn manifests_and_any_range_come_from_whoever_has_them() {
    let mut world = world();
    for slot in [0, 1] {
        let path = world.cache(slot).manifest(ID, Slot(slot), Keep::Own);
        assert_eq!(
            world.fetched(manifest(slot)),
            Ok(fs::read(path).unwrap().into())
        );
        let whole = BYTES as u32;
        for (offset, len) in [
            (0, whole),
            (0, 1),
            (8191, 2),
            (8192, 8192),
            (100, whole - 100),
        ] {
            let (from, to) = (offset as usize, offset as usize + len as usize);
            let wanted = log(slot, offset, len);
            assert_eq!(
                world.fetched(wanted),
                Ok(world.bytes[from..to].to_vec().into()),
                "{offset} {len}"
            );
        }
    }
    // A copy of the manifest that a member of the set was given will do.
    let copy = world.cache(0).manifest(ID, Slot(1), Keep::Copy);
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    let own = world.cache(1).manifest(ID, Slot(1), Keep::Own);
    fs::rename(&own, &copy).unwrap();
    assert_eq!(
        world.fetched(manifest(1)),
        Ok(fs::read(copy).unwrap().into())
    );
}

#[test]
fn what_cannot_be_is_refused_before_anybody_is_asked() {
    let mut world = world();
    let end = BYTES as u64;
    let other = Wanted {
        dataset: DatasetId(8),
        ..manifest(0)
    };
    for (wanted, refusal) in [
        (log(1, end, 1), Refusal::Failed),
        (log(1, end - 1, 2), Refusal::Failed),
        (log(1, 0, 0), Refusal::Failed),
        (log(1, u64::MAX, 2), Refusal::Failed),
        (log(1, 0, PIECE_BYTES_MAX + 1), Refusal::Failed),
        (log(2, 0, 1), Refusal::Missing),
        (other, Refusal::Missing),
    ] {
        let todo = world.here.fetch(1, wanted.clone(), true);
        assert_eq!(todo.answers, [(1, Err(refusal))], "{wanted:?}");
        assert!(todo.messages.is_empty());
        let todo = world.here.fetch(2, wanted.clone(), false);
        assert_eq!(
            todo.answers,
            [(2, Err(Refusal::Again))],
            "before recovery has ended"
        );
        // A peer may ask for what has not been heard of here.
        let unheard = wanted.dataset != ID;
        let todo = world.there.want(3, wanted);
        let result = Err(if unheard { Refusal::Again } else { refusal });
        assert_eq!(
            todo.messages,
            [(HERE, Message::HavePiece { ticket: 3, result })]
        );
    }
}

#[test]
fn damage_is_refused_and_never_served() {
    let mut world = world();
    let cache = world.cache(1);
    let store = PosixStore::new();
    let part = Part::open(&store, &cache, &world.record, Slot(1)).unwrap();
    part.fill_missing_sums(Stream::Data).unwrap();
    part.store_sums(&store, Stream::Data).unwrap();
    let file = cache.tree(ID, Slot(1)).join("file");
    let mut bytes = world.bytes.clone();
    bytes[8192 + 5] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert_eq!(
        world.fetched(log(1, 8000, 300)),
        Err(Refusal::Failed),
        "its unit"
    );
    assert_eq!(
        world.fetched(log(1, 16384, 10)),
        Ok(bytes[16384..16394].to_vec().into()),
        "another unit"
    );
    fs::write(&file, &bytes[..8192]).unwrap();
    assert_eq!(
        world.fetched(log(1, 16384, 10)),
        Err(Refusal::Failed),
        "cut short"
    );
    fs::write(cache.manifest(ID, Slot(1), Keep::Own), b"nonsense").unwrap();
    assert_eq!(world.fetched(manifest(1)), Err(Refusal::Failed));
}

#[test]
fn a_slot_that_nobody_has_is_said_once_all_were_asked() {
    let mut world = world();
    fs::remove_dir_all(world.cache(1).slot(ID, Slot(1), Keep::Own)).unwrap();
    assert_eq!(world.fetched(log(1, 0, 10)), Err(Refusal::Failed));
    assert_eq!(world.fetched(manifest(1)), Err(Refusal::Failed));
    // It may come yet: somebody is rebuilding it.
    let todo = world.here.fetch(9, log(1, 0, 10), true);
    let Some((THERE, Message::WantPiece { ticket, .. })) = todo.messages.first() else {
        panic!("{todo:?}")
    };
    let todo = world.here.have(THERE, *ticket, Err(Refusal::Again));
    assert_eq!(todo.answers, [(9, Err(Refusal::Again))]);
}

#[test]
fn only_the_answer_that_is_awaited_counts_and_only_of_that_length() {
    let mut world = world();
    let todo = world.here.fetch(9, log(1, 0, 10), true);
    let Some((THERE, Message::WantPiece { ticket, .. })) = todo.messages.first() else {
        panic!("{todo:?}")
    };
    let ticket = *ticket;
    for (from, ticket) in [(HERE, ticket), (Rank(7), ticket), (THERE, ticket + 1)] {
        let todo = world.here.have(from, ticket, Ok(vec![0; 10].into()));
        assert!(todo.answers.is_empty() && todo.messages.is_empty());
    }
    let todo = world.here.have(THERE, ticket, Ok(vec![0; 9].into()));
    assert_eq!(todo.answers, [(9, Err(Refusal::Failed))]);
    let todo = world.here.have(THERE, ticket, Ok(vec![0; 10].into()));
    assert!(todo.answers.is_empty(), "once");
}

#[test]
fn what_is_read_for_others_is_bounded_by_what_the_fabric_holds() {
    let mut world = world();
    // To four peers, none of whom has all it may.
    let mut lent: Vec<Bytes> = (0..16)
        .map(|piece| {
            let to = Rank(2 + piece % 4);
            world.there.pieces.lend(to, vec![0; 1 << 20])
        })
        .collect();
    for ticket in 0..100 {
        let todo = world.there.want(ticket, log(1, 0, 8192));
        assert!(todo.messages.is_empty());
    }
    assert!(world.there.pieces.is_waiting());
    assert!(world.there.events.try_recv().is_err(), "nothing is read");
    lent.clear();
    world.there.serve();
    for _ in 0..100 {
        let todo = world.there.read();
        assert!(matches!(
            todo.messages.as_slice(),
            [(HERE, Message::HavePiece { result: Ok(_), .. })]
        ));
    }
    assert!(!world.there.pieces.is_waiting());
    assert!(
        world
            .there
            .pieces
            .busy
            .values()
            .all(|busy| busy.bytes() == 0)
    );
    drop(world.runtime);
}

#[test]
fn who_asks_for_much_does_not_hold_up_the_others() {
    let mut world = world();
    // All that one peer may have is on its way to it.
    let lent = world.there.pieces.lend(HERE, vec![0; 4 << 20]);
    world.there.want(1, log(1, 0, 8192));
    world.there.want(2, log(1, 0, 8192));
    assert!(world.there.events.try_recv().is_err(), "nothing is read");
    let other = Rank(5);
    let (parts, tasks) = (&world.there.parts, &world.there.tasks);
    let mut todo = Todo::default();
    let wanted = log(1, 0, 8192);
    world
        .there
        .pieces
        .want(other, 3, wanted, parts, tasks, &mut todo);
    let to = |todo: Todo| todo.messages.iter().map(|(to, _)| *to).collect::<Vec<_>>();
    assert_eq!(to(world.there.read()), [other]);
    assert!(world.there.pieces.is_waiting());
    drop(lent);
    world.there.serve();
    assert_eq!(to(world.there.read()), [HERE]);
    assert_eq!(to(world.there.read()), [HERE]);
    assert!(!world.there.pieces.is_waiting());
    drop(world.runtime);
}

#[test]
fn a_rank_that_has_not_heard_of_the_seal_says_that_it_may_yet_come() {
    let mut world = world();
    let mut open = world.record.clone();
    open.phase = Phase::Open;
    open.seal = None;
    let paths = world.cache(1);
    world.there = Node::new(THERE, &paths, &open, world.runtime.handle());
    assert_eq!(world.fetched(manifest(1)), Err(Refusal::Again));
    world.there.parts.learn(&world.record);
    assert!(world.fetched(manifest(1)).is_ok());
}
