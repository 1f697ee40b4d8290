//! Two ranks by hand: what is asked, who answers, and what never gets out.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::part::testing::sealed;
use crate::transfer::TransferError;
use scrfs::layout::path::Keep;
use scrfs::redundancy::Extent;
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
        let mut parts = Parts::new(me, paths.clone(), 50);
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

/// Of a dataset of two slots, the second is lost; this node keeps its metadata, or not.
fn losing(world: &mut World, keeps_sums: bool) -> Todo {
    let slot = world.cache(1).slot(ID, Slot(1), Keep::Own);
    let part = world.there.parts.open(ID, Slot(1)).unwrap();
    part.fill_missing_sums(Stream::Data).unwrap();
    if keeps_sums {
        let mut sums = part.sums(Stream::Data);
        assert!(sums.is_complete());
        sums.slot = Slot(1);
        records::store_sums(&PosixStore::new(), &world.cache(0), &sums, Keep::Copy).unwrap();
    }
    drop(part);
    fs::remove_dir_all(slot.join("tree")).unwrap();
    told(&mut world.here, &[(Slot(0), HERE)], &[Slot(1)])
}

fn told(node: &mut Node, holders: &[(Slot, Rank)], lost: &[Slot]) -> Todo {
    let mut todo = Todo::default();
    let (parts, tasks) = (&node.parts, &node.tasks);
    let pieces = &mut node.pieces;
    pieces.learn_losses(ID, holders, lost, parts, tasks, &mut todo);
    todo
}

fn event(node: &mut Node, event: JobEvent) -> Todo {
    assert!(Pieces::owns(&event));
    let mut todo = Todo::default();
    let (parts, tasks) = (&node.parts, &node.tasks);
    node.pieces.job_event(event, parts, tasks, &mut todo);
    todo
}

/// Carries out a read as the engine would, from the bytes that were lost, each unit through `damage`;
/// everything that was said meanwhile.
fn carry_out(
    world: &mut World,
    read: lost::Read,
    damage: impl Fn(usize, Vec<u8>) -> Vec<u8>,
) -> Vec<Todo> {
    let mut all = Vec::new();
    let units: Vec<_> = read
        .plan
        .map(|combination| combination.destination)
        .collect();
    for (number, extent) in units.into_iter().enumerate() {
        assert_eq!((extent.slot, extent.stream), (Slot(1), Stream::Data));
        let from = extent.offset as usize;
        let bytes = world.bytes[from..from + extent.len as usize].to_vec();
        let made = JobEvent::Made {
            job: read.job,
            extent,
            bytes: damage(number, bytes).into(),
        };
        all.push(event(&mut world.here, made));
    }
    let bytes = 0;
    let done = JobEvent::Done {
        job: read.job,
        bytes,
    };
    all.push(event(&mut world.here, done));
    all
}

fn answers(all: Vec<Todo>) -> Vec<(u64, Result<Bytes>)> {
    all.into_iter().flat_map(|todo| todo.answers).collect()
}

#[test]
fn pieces_of_a_lost_slot_are_made_and_nobody_is_asked_for_them() {
    let mut world = world();
    assert!(losing(&mut world, true).answers.is_empty());
    let whole = BYTES as u32;
    for (offset, len) in [(0, whole), (1, 1), (8191, 2), (8192, 8192), (100, 10_000)] {
        let mut todo = world.here.fetch(5, log(1, offset, len), true);
        assert!(
            todo.messages.is_empty() && todo.answers.is_empty(),
            "{todo:?}"
        );
        let read = todo.reads.pop().expect("the engine is to read");
        assert_eq!(read.holders, BTreeMap::from([(Slot(0), HERE)]));
        let answers = answers(carry_out(&mut world, read, |_, bytes| bytes));
        let (from, to) = (offset as usize, offset as usize + len as usize);
        assert_eq!(answers, [(5, Ok(world.bytes[from..to].to_vec().into()))]);
        assert_eq!(world.here.pieces.lost.bytes(), 0);
    }
    // Rebuilt, it is asked for again.
    assert!(
        told(&mut world.here, &[(Slot(0), HERE), (Slot(1), THERE)], &[])
            .answers
            .is_empty()
    );
    let todo = world.here.fetch(6, log(1, 0, 1), true);
    assert!(matches!(
        todo.messages[..],
        [(THERE, Message::WantPiece { .. })]
    ));
}

#[test]
fn what_was_made_wrong_is_an_error_and_never_an_answer() {
    for unit in 0..4 {
        let mut world = world();
        losing(&mut world, true);
        let mut todo = world.here.fetch(5, log(1, 0, BYTES as u32), true);
        let read = todo.reads.pop().unwrap();
        let job = read.job;
        let all = carry_out(&mut world, read, |number, mut bytes| {
            if number == unit {
                bytes[3] ^= 1;
            }
            bytes
        });
        let cancelled: Vec<_> = all.iter().flat_map(|todo| todo.cancelled.clone()).collect();
        assert_eq!(cancelled, [job]);
        assert_eq!(answers(all), [(5, Err(Refusal::Failed))], "unit {unit}");
        assert_eq!(world.here.pieces.lost.bytes(), 0);
        assert!(world.here.pieces.asked.is_empty());
    }
}

#[test]
fn a_source_that_is_damaged_is_done_without_where_the_scheme_allows() {
    let mut world = world();
    losing(&mut world, true);
    let mut todo = world.here.fetch(5, log(1, 0, 100), true);
    let read = todo.reads.pop().unwrap();
    let extent = Extent {
        slot: Slot(0),
        stream: Stream::Parity,
        offset: 0,
        len: 100,
    };
    let error = TransferError::Missing {
        dataset: ID,
        extent,
    };
    let job = read.job;
    let todo = event(&mut world.here, JobEvent::Failed { job, error });
    // Two slots tolerate one loss: there is nothing to do without.
    assert_eq!(todo.answers, [(5, Err(Refusal::Failed))]);
    assert!(todo.reads.is_empty() && world.here.pieces.lost.bytes() == 0);
}

/// What the node of the second slot knows of it.
fn metadata(world: &World) -> Metadata {
    let part = world.there.parts.open(ID, Slot(1)).unwrap();
    part.fill_missing_sums(Stream::Data).unwrap();
    let manifest = fs::read(world.cache(1).manifest(ID, Slot(1), Keep::Own)).unwrap();
    Metadata {
        dataset: ID,
        slot: Slot(1),
        manifest,
        data_sums: encoded(&part.sums(Stream::Data)),
        parity_sums: encoded(&part.sums(Stream::Parity)),
    }
}

fn encoded(sums: &scrfs::layout::manifest::Sums) -> Vec<u8> {
    use scrfs::layout::envelope::{Kind, seal};
    seal(Kind::Sums, sums)
}

type Spoil = fn(&World, Metadata) -> Option<Metadata>;

#[test]
fn checksums_come_from_the_set_and_only_the_true_ones_are_believed() {
    let given: [(Spoil, bool); 6] = [
        (|_, _| None, false),
        (
            |_, good| {
                let slot = Slot(0);
                Some(Metadata { slot, ..good })
            },
            false,
        ),
        (
            |_, mut good| {
                good.data_sums[40] ^= 1;
                Some(good)
            },
            false,
        ),
        (
            |_, mut good| {
                good.manifest[40] ^= 1;
                Some(good)
            },
            false,
        ),
        (
            |world, good| {
                let sealed = SealedPart::of(&world.record, Slot(1)).unwrap();
                let data_sums = encoded(&sealed.unknown_sums(Stream::Data));
                Some(Metadata { data_sums, ..good })
            },
            false,
        ),
        (|_, good| Some(good), true),
    ];
    for (number, (spoil, believed)) in given.into_iter().enumerate() {
        let mut world = world();
        let given = spoil(&world, metadata(&world));
        fs::remove_dir_all(world.cache(1).tree(ID, Slot(1))).unwrap();
        told(&mut world.here, &[(Slot(0), THERE)], &[Slot(1)]);
        let todo = world.here.fetch(5, log(1, 0, 100), true);
        assert!(
            matches!(todo.messages[..], [(THERE, Message::WantMetadata { .. })]),
            "{todo:?}"
        );
        // A second reader asks nobody anew.
        let todo = world.here.fetch(6, log(1, 200, 100), true);
        assert!(todo.messages.is_empty() && todo.reads.is_empty());
        let mut todo = Todo::default();
        let node = &mut world.here;
        let (parts, tasks) = (&node.parts, &node.tasks);
        let (slot, given) = ((ID, Slot(1)), given.as_ref());
        node.pieces.told(HERE, slot, given, parts, tasks, &mut todo);
        assert!(
            todo.answers.is_empty() && todo.reads.is_empty(),
            "not asked"
        );
        node.pieces
            .told(THERE, slot, given, parts, tasks, &mut todo);
        if believed {
            assert_eq!((todo.reads.len(), todo.answers.len()), (2, 0));
        } else {
            todo.answers.sort_by_key(|(request, _)| *request);
            let failed = |request| (request, Err(Refusal::Failed));
            assert_eq!(todo.answers, [failed(5), failed(6)], "{number}");
        }
    }
}

#[test]
fn who_waits_for_room_costs_no_memory_and_is_not_forgotten() {
    let mut world = world();
    losing(&mut world, true);
    world.here.pieces.lost.limit(20_000);
    let mut reads = VecDeque::new();
    for request in 0..20 {
        let todo = world.here.fetch(request, log(1, 0, BYTES as u32), true);
        reads.extend(todo.reads);
    }
    assert_eq!(reads.len(), 1, "the rest waits");
    let mut answered = Vec::new();
    while let Some(read) = reads.pop_front() {
        assert!(world.here.pieces.lost.bytes() <= 20_000 + BYTES as u64);
        for todo in carry_out(&mut world, read, |_, bytes| bytes) {
            reads.extend(todo.reads);
            answered.extend(todo.answers.into_iter().map(|(request, _)| request));
        }
    }
    assert_eq!(answered, (0..20).collect::<Vec<u64>>());
    // Those that wait when it is rebuilt ask again.
    let mut todo = world.here.fetch(1, log(1, 0, BYTES as u32), true);
    let waits = world.here.fetch(2, log(1, 0, 1), true);
    assert!(waits.reads.is_empty() && waits.answers.is_empty());
    let told = told(&mut world.here, &[], &[]);
    assert_eq!(told.answers, [(2, Err(Refusal::Again))]);
    let read = todo.reads.pop().unwrap();
    let bytes = world.bytes.clone();
    let answers = answers(carry_out(&mut world, read, |_, bytes| bytes));
    assert_eq!(answers, [(1, Ok(bytes.into()))]);
}
