//! What the leader sends to the prefix and when, on a few nodes whose work ends when a test says so.
#![allow(clippy::unwrap_used)]

mod failing;
mod restart;

use scrfs::config::{Class, Config, Sources};
use scrfs::control::{FromDaemon, Pressure, Refusal, Request, StorePressure, ToDaemon};
use scrfs::id::{DatasetId, DatasetKey, Epoch, Rank, Slot};
use scrfs::layout::record::{DatasetRecord, EpochRecord, PartSummary, Phase, Seal, State};
use scrfs::name::Name;
use scrfs::protocol::Now;
use scrfs::protocol::message::{
    Failure, Inventory, InventoryEntry, Message, Order, PartState, PrefixView,
};
use scrfs::protocol::node::{Node, Start};
use scrfs::protocol::step::{Effect, Outcome, Presence, Step};
use scrfs::redundancy::Scheme;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A few coordinators with daemons that say yes.
struct Nodes {
    nodes: Vec<Node>,
    wires: VecDeque<(Rank, Rank, Message)>,
    /// Work that has begun: by whom, to be answered with, what.
    works: Vec<(Rank, u64, Order)>,
    completing: Vec<DatasetRecord>,
    /// What the daemon of rank 0 was last told that only the prefix has.
    shelf: Vec<String>,
    /// How often it was told.
    shelves: usize,
    /// What the prefix is asked for.
    asked: Vec<u64>,
    /// What the daemon of rank 0 was last told.
    shown: BTreeMap<DatasetId, DatasetRecord>,
    due: Vec<u64>,
    /// Programs may start, and from what.
    ready: Option<Option<u64>>,
    replies: Vec<(u64, Result<(), Refusal>)>,
    looks: usize,
    tick: u64,
}

fn sealed(id: u64, class: Class, nodes: u32) -> DatasetRecord {
    let scheme = if nodes == 1 {
        Scheme::Single
    } else {
        Scheme::Xor
    };
    let part = PartSummary {
        log_bytes: 100,
        files: 1,
        manifest_crc: 7,
    };
    DatasetRecord {
        id: DatasetId(id),
        name: Name::new(format!("ckpt.{id}").as_bytes()).unwrap(),
        committed_from: None,
        class,
        checkpoint: class.is_checkpoint().then_some(id),
        phase: Phase::Sealed,
        epoch: Epoch(1),
        created: id,
        sealed: Some(id),
        protected: Some(id),
        flushing: false,
        flushed: None,
        seal: Some(Seal {
            epoch: Epoch(1),
            scheme,
            chunk_bytes: 4096,
            unit_bytes: 4096,
            sets: vec![(0..nodes).map(Slot).collect()],
            parts: vec![part; nodes as usize],
        }),
        error: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    }
}

fn checkpoint(id: u64) -> DatasetRecord {
    sealed(id, Class::Checkpoint, 1)
}

fn flushed(id: u64, phase: Phase) -> DatasetRecord {
    DatasetRecord {
        flushed: Some(9),
        phase,
        ..checkpoint(id)
    }
}

fn key(record: &DatasetRecord) -> DatasetKey {
    record.key()
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let sources = Sources {
        env: &|_| None,
        user: None,
        system: None,
        cli: vec![("prefix".into(), "/p".into()), ("job".into(), "1".into())],
    };
    let mut config = Config::load(&sources).unwrap().0;
    change(&mut config);
    config
}

impl Nodes {
    fn start(
        size: u32,
        config: &Config,
        view: Option<PrefixView>,
        records: &[DatasetRecord],
    ) -> Self {
        Self::start_with(size, config, view, records, &|_| true)
    }

    /// The same, with the parity of some.
    fn start_with(
        size: u32,
        config: &Config,
        view: Option<PrefixView>,
        records: &[DatasetRecord],
        has_parity: &dyn Fn(&DatasetRecord) -> bool,
    ) -> Self {
        Self::start_where(size, config, view, records, has_parity, &|_| true)
    }

    /// The same, on some of the nodes.
    fn start_where(
        size: u32,
        config: &Config,
        view: Option<PrefixView>,
        records: &[DatasetRecord],
        has_parity: &dyn Fn(&DatasetRecord) -> bool,
        has_parts: &dyn Fn(Rank) -> bool,
    ) -> Self {
        let mut all = Self {
            nodes: Vec::new(),
            wires: VecDeque::new(),
            works: Vec::new(),
            completing: Vec::new(),
            shelf: Vec::new(),
            shelves: 0,
            asked: Vec::new(),
            shown: BTreeMap::new(),
            due: Vec::new(),
            ready: None,
            replies: Vec::new(),
            looks: 0,
            tick: 0,
        };
        let mut steps = Vec::new();
        for rank in (0..size).map(Rank) {
            let part = |record: &DatasetRecord| PartState {
                slot: Slot(rank.0),
                manifest_crc: 7,
                intact: true,
                sums: true,
                parity: has_parity(record),
            };
            let records = records.iter().filter(|_| has_parts(rank));
            let datasets = records.map(|record| InventoryEntry {
                record: record.clone().into(),
                parts: vec![part(record)],
                copies: (0..size)
                    .filter(|rank| !has_parts(Rank(*rank)))
                    .map(Slot)
                    .collect(),
            });
            let inventory = Inventory {
                node: rank.to_string(),
                group: rank.to_string(),
                free_bytes: 1 << 30,
                epoch: EpochRecord {
                    epoch: Epoch(1),
                    slot: Some(Slot(rank.0)),
                    ..EpochRecord::default()
                },
                datasets: datasets.collect(),
                ..Inventory::default()
            };
            let start = Start {
                epoch: Epoch(2),
                me: rank,
                size,
                fan: 2,
                new_run: false,
                config: config.clone(),
                prefix: view.clone().filter(|_| rank == Rank(0)),
            };
            let (node, step) = Node::start(start, inventory);
            all.nodes.push(node);
            steps.push((rank, step));
        }
        for (rank, step) in steps {
            all.carry_out(rank, step);
        }
        all.settle();
        all
    }

    fn carry_out(&mut self, at: Rank, mut step: Step) {
        for (to, message) in step.take_handed_on() {
            self.wires.push_back((at, to, message));
        }
        for effect in step.persisted_by(|_| Ok::<_, ()>(())).unwrap() {
            match effect {
                Effect::Send { to, message } => self.wires.push_back((at, to, message)),
                Effect::Daemon(word) => self.tell(at, word),
                Effect::Work { ticket, order } => self.works.push((at, ticket, order)),
                Effect::CompleteFlush { record } => self.completing.push(*record),
                Effect::LookAtPrefix => self.looks += 1,
                Effect::AskPrefix { record } => self.asked.push(record.id.0),
                _ => {}
            }
        }
    }

    fn tell(&mut self, at: Rank, word: ToDaemon) {
        let done = match word {
            ToDaemon::Dataset { sequence, record } => {
                self.shown.insert(record.id, *record);
                Some(sequence)
            }
            ToDaemon::Forget { sequence, dataset } => {
                self.shown.remove(&dataset);
                Some(sequence)
            }
            ToDaemon::Pointers { sequence, .. } | ToDaemon::Change { sequence, .. } => {
                Some(sequence)
            }
            ToDaemon::Due(due) if at == Rank(0) => {
                self.due = due.iter().map(|id| id.0).collect();
                None
            }
            ToDaemon::Shelf(shelf) if at == Rank(0) => {
                self.shelf = shelf.iter().map(|it| it.name.to_string()).collect();
                self.shelves += 1;
                None
            }
            ToDaemon::Ready { restart, .. } if at == Rank(0) => {
                self.ready = Some(restart.map(|id| id.0));
                None
            }
            ToDaemon::Reply { request, result } => {
                self.replies.push((request, result));
                None
            }
            _ => None,
        };
        if let Some(sequence) = done {
            let result = Ok(());
            let node = &mut self.nodes[at.0 as usize];
            let step = node.handle_daemon(FromDaemon::Done { sequence, result });
            self.carry_out(at, step);
        }
    }

    fn now(&self) -> Now {
        Now {
            tick: self.tick,
            wall: 1000 + self.tick,
        }
    }

    /// Until nothing is on its way.
    fn settle(&mut self) {
        while let Some((from, to, message)) = self.wires.pop_front() {
            let now = self.now();
            let step = self.nodes[to.0 as usize].handle_message(now, from, message);
            self.carry_out(to, step);
        }
    }

    fn outcome(&mut self, at: Rank, outcome: Outcome) {
        let now = self.now();
        let step = self.nodes[at.0 as usize].handle_outcome(now, outcome);
        self.carry_out(at, step);
        self.settle();
    }

    fn ask(&mut self, request: u64, what: Request) {
        let step = self.nodes[0].handle_daemon(FromDaemon::Request { request, what });
        self.carry_out(Rank(0), step);
        self.settle();
    }

    fn see(&mut self, view: PrefixView) {
        let result = Ok(Some(Box::new(view)));
        self.outcome(Rank(0), Outcome::PrefixSeen { result });
    }

    /// The prefix answers all that it was asked; gives what that was.
    fn answer(&mut self, result: Result<Presence, Failure>) -> Vec<u64> {
        let asked = std::mem::take(&mut self.asked);
        for &id in &asked {
            let (dataset, result) = (DatasetId(id), result.clone());
            self.outcome(Rank(0), Outcome::PrefixHolds { dataset, result });
        }
        asked
    }

    /// The node of rank 0 is short of so many bytes, each of the datasets being 100.
    fn press(&mut self, wanted_bytes: u64) {
        let store = StorePressure {
            wanted_bytes,
            urgent: false,
            holds: self.shown.keys().copied().collect(),
        };
        let pressure = Pressure {
            stores: vec![store],
            in_use: Vec::new(),
        };
        let step = self.nodes[0].handle_daemon(FromDaemon::Pressure(pressure));
        self.carry_out(Rank(0), step);
        self.settle();
    }

    fn pass(&mut self, milliseconds: u64) {
        self.tick += milliseconds;
        let now = self.now();
        let step = self.nodes[0].handle_tick(now);
        self.carry_out(Rank(0), step);
        self.settle();
    }

    fn end(&mut self) {
        let now = self.now();
        let step = self.nodes[0].end(now);
        self.carry_out(Rank(0), step);
        self.settle();
    }

    /// What is being flushed, and by which ranks.
    fn flushing(&self) -> Option<(u64, Vec<u32>)> {
        let mut found = None;
        for (_, _, order) in &self.works {
            if let Order::Flush { dataset, holders } = order {
                let ranks = holders.iter().map(|(_, rank)| rank.0).collect();
                found = Some((dataset.0, ranks));
            }
        }
        found
    }

    /// All work that has begun ends well.
    fn finish(&mut self) {
        self.finish_work();
        for record in std::mem::take(&mut self.completing) {
            let (dataset, result) = (record.id, Ok(()));
            self.outcome(Rank(0), Outcome::FlushCompleted { dataset, result });
        }
    }

    /// The work of one rank fails.
    fn fail(&mut self, rank: Rank, refusal: Refusal, text: &str) {
        let at = self.works.iter().position(|(at, ..)| *at == rank);
        let (at, ticket, _) = self.works.remove(at.expect("it has work"));
        let result = Err(Failure::new(refusal, text));
        self.outcome(at, Outcome::Worked { ticket, result });
    }

    /// Flushes until none is left; gives the order they went in.
    fn flush_all(&mut self) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some((dataset, _)) = self.flushing() {
            if order.last() != Some(&dataset) {
                order.push(dataset);
            }
            self.finish();
        }
        order
    }

    fn state(&self, id: u64) -> Option<State> {
        self.shown.get(&DatasetId(id)).map(DatasetRecord::state)
    }
}

fn nothing() -> Option<PrefixView> {
    Some(PrefixView::default())
}

#[test]
fn the_latest_goes_at_the_end_though_flush_every_skips_it() {
    let every = |every| config(|config| config.flush.every = every);
    let records = [checkpoint(1), checkpoint(2), checkpoint(3)];
    let mut nodes = Nodes::start(1, &every(10), nothing(), &records);
    assert_eq!((nodes.flushing(), &nodes.due[..]), (None, &[][..]));
    nodes.ask(4, Request::End);
    assert_eq!(nodes.replies, [(4, Ok(()))]);
    assert_eq!(nodes.due, [3]);
    assert_eq!(nodes.flush_all(), [3]);
    assert_eq!((nodes.due.len(), nodes.state(3)), (0, Some(State::Flushed)));
    // None is none.
    let mut nodes = Nodes::start(1, &every(0), nothing(), &records);
    nodes.end();
    assert_eq!((nodes.flushing(), nodes.due.len()), (None, 0));
}

#[test]
fn when_flushes_fall_behind_the_newest_win_and_output_is_not_left_out() {
    let mut records: Vec<_> = (1..=6).map(checkpoint).collect();
    records[1] = sealed(2, Class::Output, 1);
    records[2] = sealed(3, Class::Both, 1);
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &records);
    assert_eq!(nodes.due, [2, 3, 5, 6]);
    assert_eq!(nodes.flush_all(), [2, 3, 5, 6]);
    // What somebody waits for is not left out, nor anything without a limit.
    let mut nodes = Nodes::start(
        1,
        &config(|config| config.flush.backlog = 0),
        nothing(),
        &records,
    );
    assert_eq!(nodes.flush_all(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn nothing_newer_is_in_the_prefix_without_the_output_before_it() {
    let unprotected = |record: DatasetRecord| DatasetRecord {
        protected: None,
        ..record
    };
    let output = || unprotected(sealed(1, Class::Output, 1));
    let encoding = |nodes: &Nodes| {
        let orders = nodes.works.iter().filter_map(|(_, _, order)| match order {
            Order::Encode { dataset, .. } => Some(dataset.0),
            _ => None,
        });
        orders.collect::<Vec<_>>()
    };
    // The newest is protected first, but for output that others wait for.
    let records = [output(), checkpoint(2), unprotected(checkpoint(3))];
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &records);
    assert_eq!((nodes.flushing(), encoding(&nodes)), (None, vec![1]));
    nodes.finish();
    assert_eq!(nodes.flush_all(), [1, 2, 3]);
    // A checkpoint is no output: the newer one wins.
    let records = [unprotected(checkpoint(1)), checkpoint(2)];
    let nodes = Nodes::start(1, &config(|_| {}), nothing(), &records);
    assert_eq!(nodes.flushing().map(|(id, _)| id), Some(2));
    // What fails is passed, for it may fail for ever.
    let records = [sealed(1, Class::Output, 1), checkpoint(2)];
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &records);
    assert_eq!(nodes.flushing().map(|(id, _)| id), Some(1));
    nodes.fail(Rank(0), Refusal::Failed, "is there and is not ours");
    assert_eq!(nodes.flushing().map(|(id, _)| id), Some(2));
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &[output(), checkpoint(2)]);
    assert_eq!((nodes.flushing(), encoding(&nodes)), (None, vec![1]));
    nodes.fail(Rank(0), Refusal::Failed, "no space");
    assert_eq!(
        nodes.flushing().map(|(id, _)| id),
        Some(1),
        "without parity, then"
    );
}

#[test]
fn no_more_nodes_write_at_once_than_may() {
    let records = [sealed(1, Class::Checkpoint, 5)];
    let narrow = config(|config| config.flush.width = 2);
    let mut nodes = Nodes::start(5, &narrow, nothing(), &records);
    let mut turns = Vec::new();
    while let Some((1, ranks)) = nodes.flushing() {
        turns.push(ranks);
        nodes.finish();
    }
    assert_eq!(turns, [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(nodes.state(1), Some(State::Flushed));
}

#[test]
fn a_prefix_that_is_seen_late_is_flushed_to_then() {
    let mut nodes = Nodes::start(1, &config(|_| {}), None, &[checkpoint(1)]);
    assert_eq!((nodes.flushing(), &nodes.due[..]), (None, &[1][..]));
    nodes.see(PrefixView::default());
    assert_eq!(nodes.flush_all(), [1]);
}

#[test]
fn what_is_marked_failed_while_the_job_runs_is_not_offered_again() {
    let records = [flushed(1, Phase::Sealed), flushed(2, Phase::Sealed)];
    let view = PrefixView {
        complete: records.to_vec(),
        ..PrefixView::default()
    };
    let mut nodes = Nodes::start(1, &config(|_| {}), Some(view.clone()), &records);
    let mut marked = view.clone();
    marked.failed = BTreeSet::from([key(&records[1])]);
    nodes.see(marked);
    assert_eq!(nodes.state(2), Some(State::Failed));
    assert_eq!(nodes.state(1), Some(State::Flushed));
    // Somebody chose it; what is not seen there is not dropped here.
    nodes.see(PrefixView::default());
    assert_eq!(nodes.state(2), Some(State::Failed));
    nodes.see(view);
    assert_eq!(nodes.state(2), Some(State::Evicted), "the prefix has it");
}

#[test]
fn what_is_deleted_while_the_job_runs_is_no_more_when_it_was_only_there() {
    let records = [flushed(1, Phase::Evicted), flushed(2, Phase::Sealed)];
    let view = PrefixView {
        complete: records.to_vec(),
        ..PrefixView::default()
    };
    let mut nodes = Nodes::start(1, &config(|_| {}), Some(view.clone()), &records);
    let gone = PrefixView {
        gone: records.iter().map(key).collect(),
        ..PrefixView::default()
    };
    nodes.see(gone);
    assert_eq!(nodes.state(1), None);
    assert_eq!(nodes.state(2), Some(State::Flushed), "the caches have it");
    assert_eq!((nodes.flushing(), nodes.due.len()), (None, 0));
}

#[test]
fn a_flush_that_makes_no_headway_is_shown_until_it_does() {
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &[checkpoint(1)]);
    let error = |nodes: &Nodes| nodes.shown[&DatasetId(1)].error.clone();
    let stuck = |text: &str| Outcome::Stuck {
        dataset: DatasetId(1),
        text: text.into(),
    };
    nodes.outcome(Rank(0), stuck("nothing could be written to /p"));
    assert_eq!(
        error(&nodes).unwrap(),
        "rank 0: nothing could be written to /p"
    );
    nodes.outcome(Rank(0), stuck(""));
    assert_eq!(error(&nodes), None);
    assert_eq!(nodes.flush_all(), [1]);
}

fn fetch(name: &[u8]) -> Request {
    Request::Fetch {
        name: Name::new(name).unwrap(),
    }
}

#[test]
fn what_somebody_wanted_is_not_evicted_by_count() {
    let config = config(|config| config.store[0].count = 1);
    let records = [flushed(3, Phase::Sealed)];
    let view = PrefixView {
        complete: vec![flushed(2, Phase::Sealed), flushed(3, Phase::Sealed)],
        ..PrefixView::default()
    };
    let mut nodes = Nodes::start(1, &config, Some(view.clone()), &records);
    assert_eq!(nodes.shelf, ["ckpt.2"]);
    nodes.ask(1, fetch(b"ckpt.2"));
    nodes.see(view);
    nodes.finish();
    assert_eq!(nodes.replies, [(1, Ok(()))]);
    // Its parity.
    nodes.finish();
    nodes.pass(10);
    assert!(nodes.asked.is_empty(), "{:?}", nodes.asked);
    assert_eq!(nodes.state(2), Some(State::Flushed));
    assert!(nodes.shelf.is_empty(), "the caches know it");
    // Its space is another matter.
    nodes.press(100);
    assert_eq!(nodes.answer(Ok(Presence::Settled)), [2]);
    assert_eq!(nodes.state(2), Some(State::Evicted));
}

#[test]
fn a_name_that_a_removed_one_is_to_have_is_not_fetched() {
    let mut removed = checkpoint(4);
    removed.phase = Phase::Removed { overtaken: true };
    removed.name = Name::new(b"ckpt.2").unwrap();
    let view = PrefixView {
        complete: vec![flushed(2, Phase::Sealed)],
        ..PrefixView::default()
    };
    let records = [removed, checkpoint(5)];
    let mut nodes = Nodes::start(1, &config(|_| {}), Some(view.clone()), &records);
    nodes.ask(1, fetch(b"ckpt.2"));
    nodes.see(view);
    assert_eq!(nodes.replies, [(1, Err(Refusal::Busy))]);
}

#[test]
fn what_another_job_has_replaced_is_not_flushed_again() {
    let (mut nodes, view) = three_flushed();
    let fewer = PrefixView {
        complete: view.complete[1..].to_vec(),
        ..PrefixView::default()
    };
    nodes.see(fewer);
    assert_eq!(nodes.answer(Ok(Presence::Replaced)), [1]);
    assert_eq!(nodes.state(1), Some(State::Protected), "the last copy");
    assert_eq!((nodes.flushing(), nodes.due.len()), (None, 0));
    nodes.press(300);
    let asked = nodes.answer(Ok(Presence::Settled));
    assert!(!asked.contains(&1), "{asked:?}");
    assert_eq!(nodes.state(1), Some(State::Protected));
}

/// Three flushed checkpoints, and what the prefix shows of them.
fn three_flushed() -> (Nodes, PrefixView) {
    let records: Vec<_> = (1..=3).map(|id| flushed(id, Phase::Sealed)).collect();
    let view = PrefixView {
        complete: records.clone(),
        ..PrefixView::default()
    };
    let config = config(|config| config.store[0].count = 9);
    (Nodes::start(1, &config, Some(view.clone()), &records), view)
}

#[test]
fn caches_let_go_of_what_the_prefix_says_it_has_and_of_nothing_else() {
    let (mut nodes, _) = three_flushed();
    nodes.press(150);
    let states = |nodes: &Nodes| [1, 2, 3].map(|id| nodes.state(id).unwrap());
    assert_eq!(states(&nodes), [State::Flushed; 3], "nobody has asked");
    // As many as are wanted, and not again before there is an answer.
    assert_eq!(nodes.asked, [1, 2]);
    nodes.press(150);
    assert_eq!(nodes.asked, [1, 2]);
    assert_eq!(nodes.answer(Ok(Presence::Settled)), [1, 2]);
    let [evicted, flushed] = [State::Evicted, State::Flushed];
    assert_eq!(states(&nodes), [evicted, evicted, flushed]);
    // The newest stays whatever is wanted.
    nodes.press(150);
    assert!(nodes.answer(Ok(Presence::Settled)).is_empty());
}

#[test]
fn what_nobody_can_restart_from_makes_room_before_anything_else() {
    let mut records: Vec<_> = (1..=4).map(|id| flushed(id, Phase::Sealed)).collect();
    records[0].phase = Phase::Incomplete;
    (records[0].seal, records[0].flushed) = (None, None);
    let view = PrefixView {
        complete: records[1..].to_vec(),
        ..PrefixView::default()
    };
    let config = config(|config| config.store[0].count = 9);
    for view in [Some(view), None] {
        let mut nodes = Nodes::start(1, &config, view, &records);
        assert_eq!(nodes.state(1), Some(State::Incomplete));
        nodes.press(150);
        assert_eq!(nodes.state(1), None);
        assert!(nodes.asked.is_empty(), "it may be enough");
    }
}

#[test]
fn what_only_the_prefix_makes_safe_succeeds_nothing_before_that_is_asked() {
    let removed = DatasetRecord {
        phase: Phase::Removed { overtaken: true },
        ..checkpoint(2)
    };
    let records = [removed, flushed(3, Phase::Sealed)];
    let view = PrefixView {
        complete: records[1..].to_vec(),
        ..PrefixView::default()
    };
    let config = config(|config| config.flush.every = 0);
    for (has_parity, answer, left) in [
        (true, None, vec![3]),
        (false, Some(Presence::Settled), vec![3]),
        (false, Some(Presence::Gone), vec![2, 3]),
    ] {
        let view = Some(view.clone());
        let parity = |record: &DatasetRecord| has_parity || record.flushed.is_none();
        let mut nodes = Nodes::start_with(1, &config, view, &records, &parity);
        nodes.press(0);
        if let Some(answer) = answer {
            assert!(nodes.shown.contains_key(&DatasetId(2)), "nobody has asked");
            assert_eq!(nodes.answer(Ok(answer)), [3]);
        }
        let known: Vec<_> = nodes.shown.keys().map(|id| id.0).collect();
        assert_eq!((known, nodes.asked.len()), (left, 0));
    }
}

#[test]
fn an_answer_of_before_is_not_believed() {
    let (mut nodes, view) = three_flushed();
    let fewer = PrefixView {
        complete: view.complete[1..].to_vec(),
        ..PrefixView::default()
    };
    nodes.see(fewer);
    assert_eq!(
        nodes.answer(Ok(Presence::Settled)),
        [1],
        "the look was wrong"
    );
    assert_eq!(nodes.state(1), Some(State::Flushed));
    nodes.press(100);
    assert_eq!(nodes.asked, [1], "somebody may have removed it since");
}

#[test]
fn what_somebody_removed_from_the_prefix_is_flushed_again() {
    let (mut nodes, view) = three_flushed();
    let fewer = PrefixView {
        complete: view.complete[2..].to_vec(),
        // Deleted on purpose.
        gone: BTreeSet::from([key(&view.complete[1])]),
        ..PrefixView::default()
    };
    nodes.see(fewer);
    assert_eq!(nodes.answer(Ok(Presence::Gone)), [1]);
    assert_eq!(nodes.flush_all(), [1]);
    assert_eq!(nodes.state(1), Some(State::Flushed));
    // Before an eviction, too, and something else goes instead.
    nodes.press(100);
    assert_eq!(nodes.answer(Ok(Presence::Gone)), [1]);
    assert_eq!(nodes.flushing(), Some((1, vec![0])));
    assert_eq!(nodes.answer(Ok(Presence::Settled)), [2]);
    assert_eq!(nodes.state(2), None, "it was deleted on purpose");
}

#[test]
fn a_prefix_that_does_not_answer_is_asked_again_later_and_costs_nothing() {
    let (mut nodes, _) = three_flushed();
    nodes.press(100);
    let failure = Failure::new(Refusal::Failed, "input/output error");
    assert_eq!(nodes.answer(Err(failure.clone())), [1]);
    assert_eq!(nodes.asked, [2], "another one will do");
    assert_eq!(nodes.answer(Err(failure)), [2]);
    for _ in 0..9 {
        nodes.pass(10);
    }
    assert!(nodes.asked.is_empty());
    assert_eq!(nodes.state(1), Some(State::Flushed));
    nodes.pass(1_000);
    nodes.asked.sort_unstable();
    assert_eq!(nodes.answer(Ok(Presence::Settled)), [1, 2]);
    assert_eq!(nodes.state(1), Some(State::Evicted));
    assert_eq!(nodes.state(2), Some(State::Flushed), "one was enough");
}
