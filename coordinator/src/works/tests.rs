//! Nodes in one thread, with the real engine and real files: what works do together. Messages are carried
//! by hand, so that a test can look at them, and stop anything at any moment.

#![allow(clippy::unwrap_used)]

mod ahead;
mod verify;

use super::*;
use crate::part::testing::{random_tree, sealed};
use crate::transfer::Limits;
use bytes::Bytes;
use scrfs::config::Sources;
use scrfs::findings::Findings;
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::path::CachePaths;
use scrfs::protocol::message::Checking;
use scrfs::redundancy::Scheme;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const ID: DatasetId = DatasetId(7);
/// For what takes milliseconds, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(60);

struct Node {
    paths: CachePaths,
    parts: Parts,
    engine: Engine,
    works: Works,
    tasks: Tasks,
    events: Receiver<Event>,
}

/// What a node has to say to others.
type Post = Vec<(Rank, Message)>;

pub(super) struct World {
    /// Where tasks run, as long as there is anything to do.
    _runtime: tokio::runtime::Runtime,
    pub(super) root: tempfile::TempDir,
    nodes: Vec<Node>,
    /// What becomes of a message on its way.
    pub(super) forge: fn(&mut Message),
    pub(super) record: DatasetRecord,
    prefix: Arc<Target>,
    config: Arc<Config>,
    tickets: u64,
    ended: BTreeMap<(Rank, u64), Result<(), Failure>>,
    findings: BTreeMap<(Rank, u64), Findings>,
}

fn config(prefix: &std::path::Path) -> Config {
    let prefix = prefix.to_str().unwrap().to_owned();
    let sources = Sources {
        env: &|_| None,
        user: None,
        system: None,
        cli: vec![("prefix".into(), prefix), ("job".into(), "1".into())],
    };
    Config::load(&sources).unwrap().0
}

impl World {
    /// A sealed dataset on `size` nodes, with random trees, encoded.
    pub(super) fn new(size: u32, scheme: Scheme) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let root = tempfile::tempdir().unwrap();
        let at = |node: u32| CachePaths::at(&root.path().join(format!("node{node}")));
        for slot in 0..size {
            random_tree(&at(0).tree(ID, Slot(slot)), slot, u64::from(slot) + 40);
            let large: Vec<u8> = (0..200_000u32)
                .map(|at| (at * (slot + 7) % 251) as u8)
                .collect();
            let name = format!("large.{slot}");
            fs::write(at(0).tree(ID, Slot(slot)).join(name), large).unwrap();
        }
        let mut record = sealed(&at(0), ID.0, "ckpt.7", size);
        record.seal.as_mut().unwrap().scheme = scheme;
        let prefix = root.path().join("prefix");
        fs::create_dir(&prefix).unwrap();
        let nodes = (0..size).map(|rank| {
            let (sender, events) = channel();
            let paths = at(rank);
            fs::create_dir_all(paths.dataset(ID)).unwrap();
            let own = |paths: &CachePaths| paths.slot(ID, Slot(rank), Keep::Own);
            if rank > 0 {
                fs::rename(own(&at(0)), own(&paths)).unwrap();
            }
            let mut parts = Parts::new(Rank(rank), paths.clone(), 50);
            parts.learn(&record);
            Node {
                parts,
                engine: Engine::new(Rank(rank), Limits::default()),
                works: Works::new(Rank(rank)),
                tasks: Tasks::new(runtime.handle().clone(), sender, Arc::new(|| {})),
                events,
                paths,
            }
        });
        let nodes = nodes.collect();
        let mut world = Self {
            nodes,
            config: Arc::new(config(&prefix)),
            _runtime: runtime,
            root,
            record,
            prefix: Arc::new(Target::at(&prefix)),
            tickets: 0,
            forge: |_| {},
            ended: BTreeMap::new(),
            findings: BTreeMap::new(),
        };
        let (slots, holders) = (world.slots(), world.holders());
        world.order(Order::Encode {
            dataset: ID,
            slots,
            holders,
        });
        world.record.protected = Some(3);
        world.tell();
        world
    }

    /// Puts the dataset into the prefix.
    pub(super) fn flush(&mut self) {
        let prefix = Target::open(&self.root.path().join("prefix")).unwrap();
        self.prefix = Arc::new(prefix.of_job("1"));
        let holders = self.holders();
        self.order(Order::Flush {
            dataset: ID,
            holders,
        });
        self.prefix.complete_flush(&self.record).unwrap();
        self.record.flushed = Some(4);
        self.tell();
    }

    /// Every node knows the record, and has it on disk.
    fn tell(&mut self) {
        for node in &mut self.nodes {
            node.parts.learn(&self.record);
            let bytes = seal(Kind::Dataset, &self.record);
            PosixStore::new()
                .put(&node.paths.record(ID), &bytes)
                .unwrap();
        }
    }

    fn slots(&self) -> Vec<Slot> {
        (0..u32::try_from(self.nodes.len()).unwrap())
            .map(Slot)
            .collect()
    }

    pub(super) fn holders(&self) -> Vec<(Slot, Rank)> {
        self.slots()
            .into_iter()
            .map(|slot| (slot, Rank(slot.0)))
            .collect()
    }

    pub(super) fn paths(&self, node: usize) -> &CachePaths {
        &self.nodes[node].paths
    }

    pub(super) fn prefix_path(&self) -> PathBuf {
        self.root.path().join("prefix").join("ckpt.7")
    }

    /// All nodes carry out an order, which must go well.
    fn order(&mut self, order: Order) -> Findings {
        let ticket = self.begin(order);
        self.run(ticket);
        self.result(ticket).unwrap()
    }

    /// All nodes have begun with an order; its ticket.
    pub(super) fn begin(&mut self, order: Order) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        for rank in 0..self.nodes.len() {
            let order = order.clone();
            self.act(rank, |works, context| works.begin(ticket, order, context));
        }
        ticket
    }

    /// How an order went that has ended everywhere.
    pub(super) fn result(&mut self, ticket: u64) -> Result<Findings, Failure> {
        let mut all = Findings::default();
        for rank in 0..self.nodes.len() {
            let key = (Rank(u32::try_from(rank).unwrap()), ticket);
            self.ended.remove(&key).expect("it has ended")?;
            all.add(self.findings.remove(&key).unwrap_or_default());
        }
        Ok(all)
    }

    /// Files, parity, and the prefix where it has it.
    pub(super) fn verify(&mut self) -> Findings {
        let mut all = Findings::default();
        let flushed = self.record.flushed.map(|_| Checking::Prefix);
        for what in [Checking::Files, Checking::Parity]
            .into_iter()
            .chain(flushed)
        {
            all.add(self.order(self.verifying(what)));
        }
        all
    }

    pub(super) fn verifying(&self, what: Checking) -> Order {
        Order::Verify {
            dataset: ID,
            holders: self.holders(),
            lost: Vec::new(),
            what,
        }
    }

    /// New coordinators, that remember nothing.
    pub(super) fn restart(&mut self) {
        for (rank, node) in (0u32..).zip(&mut self.nodes) {
            node.parts = Parts::new(Rank(rank), node.paths.clone(), 50);
            node.parts.learn(&self.record);
            node.engine = Engine::new(Rank(rank), Limits::default());
            node.works = Works::new(Rank(rank));
        }
    }

    /// Stops an order on all nodes.
    pub(super) fn abandon(&mut self, ticket: u64) {
        for rank in 0..self.nodes.len() {
            self.act(rank, |works, context| works.abandon(ticket, context));
        }
    }

    fn act(&mut self, rank: usize, act: impl FnOnce(&mut Works, &mut Context<'_>)) {
        let (store, node) = (PosixStore::new(), &mut self.nodes[rank]);
        let mut context = Context {
            engine: &mut node.engine,
            parts: &mut node.parts,
            tasks: &node.tasks,
            prefix: &self.prefix,
            config: &self.config,
            store: &store,
            messages: Vec::new(),
            outcomes: Vec::new(),
        };
        act(&mut node.works, &mut context);
        let (messages, outcomes) = (context.messages, context.outcomes);
        let from = Rank(u32::try_from(rank).unwrap());
        for outcome in outcomes {
            self.outcome(from, outcome);
        }
        self.deliver(from, messages);
    }

    fn outcome(&mut self, from: Rank, outcome: Outcome) {
        match outcome {
            Outcome::Worked { ticket, result } => {
                let again = self.ended.insert((from, ticket), result);
                assert!(again.is_none(), "an order is answered once");
            }
            Outcome::Found { ticket, findings } => {
                assert!(!self.ended.contains_key(&(from, ticket)));
                self.findings.insert((from, ticket), *findings);
            }
            _ => {}
        }
    }

    fn deliver(&mut self, from: Rank, post: Post) {
        for (to, mut message) in post {
            (self.forge)(&mut message);
            self.act(to.0 as usize, |works, context| {
                works.peer_says(from, message, context);
            });
        }
    }

    /// Whether an order has ended everywhere.
    pub(super) fn has_ended(&self, ticket: u64) -> bool {
        let mut ranks = (0u32..).map(Rank).take(self.nodes.len());
        ranks.all(|rank| self.ended.contains_key(&(rank, ticket)))
    }

    /// Goes on until an order has ended everywhere.
    pub(super) fn run(&mut self, ticket: u64) {
        self.run_for(ticket, usize::MAX);
    }

    /// Goes on for so many turns in which something happens, or until an order has ended everywhere.
    pub(super) fn run_for(&mut self, ticket: u64, mut turns: usize) {
        let deadline = Instant::now() + SOON;
        while turns > 0 && !self.has_ended(ticket) {
            assert!(Instant::now() < deadline, "it does not end");
            match self.turn() {
                true => turns -= 1,
                false => std::thread::park_timeout(Duration::from_millis(1)),
            }
        }
    }

    /// One turn of every node; whether anything happened.
    pub(super) fn turn(&mut self) -> bool {
        let mut happened = false;
        for rank in 0..self.nodes.len() {
            let from = Rank(u32::try_from(rank).unwrap());
            while let Ok(event) = self.nodes[rank].events.try_recv() {
                happened = true;
                match event {
                    Event::Task(end) => {
                        self.act(rank, |works, context| works.task_ended(end, context));
                    }
                    Event::Outcome(outcome) => self.outcome(from, outcome),
                    _ => {}
                }
            }
            let sent: Vec<(Rank, Bytes)> = {
                let Node { engine, parts, .. } = &mut self.nodes[rank];
                std::iter::from_fn(|| engine.poll_send(Instant::now(), parts)).collect()
            };
            happened |= !sent.is_empty();
            for (to, bytes) in sent {
                let Node { engine, parts, .. } = &mut self.nodes[to.0 as usize];
                // An answer to what was given up meanwhile is dropped.
                let _ = engine.handle(Instant::now(), from, bytes, parts);
            }
            while let Some(event) = self.nodes[rank].engine.poll_event() {
                happened = true;
                if crate::ahead::Ahead::owns(&event) {
                    let ahead = &mut self.nodes[rank].parts.ahead;
                    ahead.job_event(Instant::now(), &event);
                    continue;
                }
                self.act(rank, |works, context| works.job_event(event, context));
            }
            if self.nodes[rank].parts.take_summed() {
                self.act(rank, |works, context| works.sums_grew(context));
            }
        }
        happened
    }
}
