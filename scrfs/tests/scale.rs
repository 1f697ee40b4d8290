//! Sizes beyond any machine of ours: thousands of nodes begin an epoch, make and commit a dataset, protect
//! it, lose one node in a hundred, and recover.
//!
//! Time is counted in rounds: what is sent in one arrives in the next, and what a node does by itself
//! takes none. Messages and bytes are those of the wire. What must hold: the number of rounds grows as
//! the depth of the tree of ranks, that is with the logarithm of the number of nodes; nobody, not even
//! the leader, has more messages to send or to take than its place in the tree asks for, whatever that
//! number is; bytes of a node do not grow but by what a seal says of each part, which comes once.
//!
//! `SCRFS_SCALE=n` measures n nodes instead of 64, 512 and 4,096.
#![allow(clippy::unwrap_used)]

use scrfs::config::{Config, Sources};
use scrfs::control::{FromDaemon, Pressure, Request, StorePressure, ToDaemon};
use scrfs::id::{DatasetId, Epoch, Rank, Slot};
use scrfs::layout::record::{DatasetRecord, EpochRecord, PartSummary, Phase};
use scrfs::name::Name;
use scrfs::protocol::Now;
use scrfs::protocol::message::{Inventory, InventoryEntry, Message, Order, Packet, PartState};
use scrfs::protocol::node::{Node, Start};
use scrfs::protocol::step::{Effect, Outcome, Step, Write};
use scrfs::protocol::tree::{FAN, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What was sent and taken in one phase.
#[derive(Clone, Debug, Default)]
struct Tally {
    rounds: u32,
    /// By rank: messages and bytes, sent and taken.
    of: Vec<Counts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    messages: u64,
    bytes: u64,
}

/// What a phase cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    rounds: u32,
    messages: u64,
    bytes: u64,
    /// Of the rank that had most to do; the leader is one of them.
    messages_max: u64,
    /// Of the rank that had most to do, but the leader.
    bytes_max: u64,
    leader_bytes: u64,
    /// Of a rank without children.
    leaf_bytes: u64,
}

impl Tally {
    fn cost(&self) -> Cost {
        let all = || self.of.iter();
        Cost {
            rounds: self.rounds,
            // Each was counted where it was sent and where it was taken.
            messages: all().map(|it| it.messages).sum::<u64>() / 2,
            bytes: all().map(|it| it.bytes).sum::<u64>() / 2,
            messages_max: all().map(|it| it.messages).max().unwrap_or(0),
            bytes_max: all().skip(1).map(|it| it.bytes).max().unwrap_or(0),
            leader_bytes: self.of[0].bytes,
            leaf_bytes: self.of.last().map_or(0, |it| it.bytes),
        }
    }
}

/// A node, with a daemon and a disk that do at once what they are told.
struct Member {
    node: Node,
    parts: BTreeMap<(DatasetId, Slot), PartState>,
    copies: BTreeSet<(DatasetId, Slot)>,
    epoch: EpochRecord,
    ready: bool,
    replied: u64,
}

struct World {
    size: u32,
    members: Vec<Member>,
    /// On their way: from, to, what.
    wire: Vec<(Rank, Rank, Message)>,
    now: Now,
    tally: Tally,
    /// Bytes that a message takes besides what it hands on.
    overhead: u64,
    made: BTreeMap<DatasetId, u64>,
}

fn config() -> Config {
    let sources = Sources {
        env: &|_| None,
        user: None,
        system: None,
        cli: vec![
            ("prefix".into(), "/p".into()),
            ("job".into(), "1".into()),
            ("redundancy.scheme".into(), "xor".into()),
        ],
    };
    Config::load(&sources).unwrap().0
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl World {
    fn begin(size: u32, epoch: u64, inventories: Vec<Inventory>) -> Self {
        let empty = Message::Down {
            to: None,
            bytes: bytes::Bytes::new(),
        };
        let mut world = Self {
            size,
            members: Vec::new(),
            wire: Vec::new(),
            now: Now {
                tick: 0,
                wall: 1_000 * epoch,
            },
            tally: Tally {
                rounds: 0,
                of: vec![Counts::default(); size as usize],
            },
            overhead: 0,
            made: BTreeMap::new(),
        };
        world.overhead = size_of_message(&empty);
        for (rank, inventory) in (0..size).map(Rank).zip(inventories) {
            let entries = || inventory.datasets.iter();
            let parts = entries().flat_map(|it| {
                it.parts
                    .iter()
                    .map(|part| ((it.record.id, part.slot), part.clone()))
            });
            let copies =
                entries().flat_map(|it| it.copies.iter().map(|slot| (it.record.id, *slot)));
            let (parts, copies) = (parts.collect(), copies.collect());
            let start = Start {
                epoch: Epoch(epoch),
                me: rank,
                size,
                fan: FAN,
                new_run: true,
                config: config(),
                prefix: None,
            };
            let (node, step) = Node::start(start, inventory);
            world.members.push(Member {
                node,
                parts,
                copies,
                epoch: EpochRecord::default(),
                ready: false,
                replied: 0,
            });
            world.carry_out(rank, step);
        }
        world
    }

    fn member(&mut self, rank: Rank) -> &mut Member {
        &mut self.members[rank.0 as usize]
    }

    fn carry_out(&mut self, at: Rank, mut step: Step) {
        for (to, message) in step.take_handed_on() {
            self.wire.push((at, to, message));
        }
        let member = self.member(at);
        let effects = step.persisted_by(|write| {
            if let Write::Epoch(record) = write {
                member.epoch = record.clone();
            }
            Ok::<_, ()>(())
        });
        for effect in effects.unwrap() {
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: Rank, effect: Effect) {
        match effect {
            Effect::Foresee { .. } => {}
            Effect::Send { to, message } => self.wire.push((at, to, message)),
            Effect::Daemon(word) => {
                for answer in self.daemon(at, word) {
                    let step = self.member(at).node.handle_daemon(answer);
                    self.carry_out(at, step);
                }
            }
            Effect::MakePart { ticket, .. } => self.worked(at, ticket),
            Effect::Scan {
                dataset,
                generation,
            } => {
                let part = PartState {
                    slot: Slot(at.0),
                    manifest_crc: at.0.wrapping_mul(2_654_435_761),
                    intact: true,
                    sums: false,
                    parity: false,
                };
                let result = Ok(PartSummary {
                    log_bytes: (1 << 30) + u64::from(at.0),
                    files: 4,
                    manifest_crc: part.manifest_crc,
                });
                self.member(at).parts.insert((dataset, part.slot), part);
                self.outcome(
                    at,
                    Outcome::Scanned {
                        dataset,
                        generation,
                        result,
                    },
                );
            }
            Effect::Work { ticket, order } => {
                self.work(at, &order);
                self.worked(at, ticket);
            }
            Effect::DropData { dataset, slots } => {
                let keeps = |id: DatasetId, slot: &Slot| {
                    id != dataset || !(slots.is_empty() || slots.contains(slot))
                };
                let member = self.member(at);
                member.parts.retain(|(id, slot), _| keeps(*id, slot));
            }
            Effect::Abandon { .. } => panic!("nothing fails here"),
            Effect::LookAtPrefix
            | Effect::AskPrefix { .. }
            | Effect::Losses { .. }
            | Effect::CompleteFlush { .. }
            | Effect::WritePointers { .. } => {}
        }
    }

    fn worked(&mut self, at: Rank, ticket: u64) {
        let result = Ok(());
        self.outcome(at, Outcome::Worked { ticket, result });
    }

    fn outcome(&mut self, at: Rank, outcome: Outcome) {
        let now = self.now;
        let step = self.member(at).node.handle_outcome(now, outcome);
        self.carry_out(at, step);
    }

    /// What the engine would leave on the disk of one node.
    fn work(&mut self, at: Rank, order: &Order) {
        match order {
            Order::Encode { dataset, slots, .. } => {
                let record = self.record(at, *dataset);
                let of = |(id, slot): &(DatasetId, Slot)| id == dataset && slots.contains(slot);
                let member = self.member(at);
                for (key, part) in &mut member.parts {
                    if of(key) {
                        (part.sums, part.parity) = (true, true);
                    }
                }
                let set = record.seal.as_ref().unwrap().set_of(Slot(at.0)).unwrap();
                let others = set.iter().filter(|slot| **slot != Slot(at.0));
                member.copies.extend(others.map(|slot| (*dataset, *slot)));
            }
            Order::Rebuild { dataset, lost, .. } => {
                let mine = lost.iter().filter(|(_, rank)| *rank == at);
                for &(slot, _) in mine {
                    *self.made.entry(*dataset).or_default() += 1;
                    let part = PartState {
                        slot,
                        manifest_crc: slot.0.wrapping_mul(2_654_435_761),
                        intact: true,
                        sums: true,
                        parity: false,
                    };
                    self.member(at).parts.insert((*dataset, slot), part);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn record(&self, at: Rank, dataset: DatasetId) -> DatasetRecord {
        self.members[at.0 as usize].node.catalog()[&dataset].clone()
    }

    fn daemon(&mut self, at: Rank, word: ToDaemon) -> Vec<FromDaemon> {
        let done = |sequence| FromDaemon::Done {
            sequence,
            result: Ok(()),
        };
        match word {
            ToDaemon::Dataset { sequence, record } => {
                let sealed = record.phase == Phase::Sealed;
                let holds = vec![record.id];
                let store = StorePressure {
                    holds,
                    ..StorePressure::default()
                };
                let pressure = Pressure {
                    stores: vec![store],
                    in_use: Vec::new(),
                };
                let said = sealed.then_some(FromDaemon::Pressure(pressure));
                said.into_iter().chain([done(sequence)]).collect()
            }
            ToDaemon::Forget { sequence, .. }
            | ToDaemon::Pointers { sequence, .. }
            | ToDaemon::Change { sequence, .. }
            | ToDaemon::Freeze { sequence, .. } => vec![done(sequence)],
            ToDaemon::Quiesce { dataset, .. } => vec![FromDaemon::Quiet {
                dataset,
                generation: 1,
            }],
            ToDaemon::Ready { .. } => {
                self.member(at).ready = true;
                Vec::new()
            }
            ToDaemon::Reply { request, result } => {
                assert_eq!(result, Ok(()), "request {request}");
                self.member(at).replied = request;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// One round: everything on its way arrives. What is not urgent goes with the tick of the round.
    fn round(&mut self) -> bool {
        if self.wire.is_empty() {
            self.now.tick += 10;
            for rank in (0..self.size).map(Rank) {
                let now = self.now;
                let step = self.member(rank).node.handle_tick(now);
                self.carry_out(rank, step);
            }
        }
        if self.wire.is_empty() {
            return false;
        }
        self.tally.rounds += 1;
        for (from, to, message) in std::mem::take(&mut self.wire) {
            if from != to {
                let bytes = match &message {
                    Message::Down { bytes, .. } => self.overhead + bytes.len() as u64,
                    other => size_of_message(other),
                };
                for rank in [from, to] {
                    let of = &mut self.tally.of[rank.0 as usize];
                    *of = Counts {
                        messages: of.messages + 1,
                        bytes: of.bytes + bytes,
                    };
                }
            }
            let now = self.now;
            let step = self.member(to).node.handle_message(now, from, message);
            self.carry_out(to, step);
        }
        true
    }

    /// Goes on until `done`; what that cost.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Cost {
        while !done(self) {
            assert!(self.round(), "it has come to rest before: {what}");
        }
        let rounds = 0;
        let of = vec![Counts::default(); self.size as usize];
        std::mem::replace(&mut self.tally, Tally { rounds, of }).cost()
    }

    fn ask(&mut self, at: Rank, request: u64, what: Request) {
        let word = FromDaemon::Request { request, what };
        let step = self.member(at).node.handle_daemon(word);
        self.carry_out(at, step);
    }

    fn is_replied(&self, at: Rank, request: u64) -> bool {
        self.members[at.0 as usize].replied == request
    }

    fn is_everywhere(&self, dataset: DatasetId, is_so: impl Fn(&DatasetRecord) -> bool) -> bool {
        let mut members = self.members.iter();
        members.all(|it| it.node.catalog().get(&dataset).is_some_and(&is_so))
    }

    /// What the nodes would find when the next epoch begins.
    fn inventories(self, lost: impl Fn(Rank) -> bool) -> Vec<Inventory> {
        let shared: BTreeMap<DatasetId, Arc<DatasetRecord>> = self.members[0]
            .node
            .catalog()
            .iter()
            .map(|(id, record)| (*id, Arc::new(record.clone())))
            .collect();
        let of = |(rank, member): (Rank, Member)| {
            let node = format!("node{}", rank.0);
            let bare = Inventory {
                group: node.clone(),
                node,
                free_bytes: 1 << 40,
                ..Inventory::default()
            };
            if lost(rank) {
                return bare;
            }
            let entry = |(id, record): (&DatasetId, &Arc<DatasetRecord>)| {
                let parts = member.parts.iter().filter(|((of, _), _)| of == id);
                let copies = member.copies.iter().filter(|(of, _)| of == id);
                InventoryEntry {
                    record: Arc::clone(record),
                    parts: parts.map(|(_, part)| part.clone()).collect(),
                    copies: copies.map(|(_, slot)| *slot).collect(),
                }
            };
            let datasets = shared.iter().map(entry).collect();
            Inventory {
                epoch: member.epoch,
                datasets,
                ..bare
            }
        };
        (0..self.size).map(Rank).zip(self.members).map(of).collect()
    }
}

fn size_of_message(message: &Message) -> u64 {
    let packet = Packet {
        epoch: Epoch(1),
        message: message.clone(),
    };
    packet.encode().len() as u64
}

/// What every phase costs on so many nodes.
fn measure(size: u32) -> Vec<(&'static str, Cost)> {
    let bare = |rank: u32| Inventory {
        node: format!("node{rank}"),
        group: format!("node{rank}"),
        free_bytes: 1 << 40,
        ..Inventory::default()
    };
    let mut costs = Vec::new();
    let mut world = World::begin(size, 1, (0..size).map(bare).collect());
    let all_ready = |world: &World| world.members.iter().all(|it| it.ready);
    costs.push(("begin", world.until("ready", all_ready)));
    world.until("rest", |world| world.wire.is_empty());
    let (last, id) = (Rank(size - 1), DatasetId(1));
    let create = Request::Create {
        name: name("ckpt.1.tmp"),
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    world.ask(last, 1, create);
    costs.push((
        "create",
        world.until("made", |world| world.is_replied(last, 1)),
    ));
    let commit = Request::Commit {
        dataset: id,
        to: name("ckpt.1"),
        settle_ms: 0,
    };
    world.ask(last, 2, commit);
    costs.push((
        "commit",
        world.until("committed", |world| world.is_replied(last, 2)),
    ));
    let protected = |world: &World| world.is_everywhere(id, |it| it.protected.is_some());
    costs.push(("protect", world.until("protected", protected)));
    let rest = |world: &World| world.wire.is_empty();
    world.until("rest", rest);
    // One in a hundred, each in another set.
    let lost = |rank: Rank| rank.0 % 100 == 7;
    let count = u64::from((0..size).filter(|rank| lost(Rank(*rank))).count() as u32);
    let inventories = world.inventories(lost);
    let mut world = World::begin(size, 2, inventories);
    costs.push(("recover", world.until("ready", all_ready)));
    let restored = |world: &World| {
        let whole = |member: &Member| member.parts.values().all(|part| part.parity && part.sums);
        let all: usize = world.members.iter().map(|it| it.parts.len()).sum();
        all == world.size as usize && world.members.iter().all(whole)
    };
    costs.push(("rebuild", world.until("rebuilt", restored)));
    while world.round() {}
    assert_eq!(world.made[&id], count);
    assert!(world.is_everywhere(id, |it| it.phase == Phase::Sealed && it.error.is_none()));
    costs
}

fn print(size: u32, costs: &[(&str, Cost)]) {
    let depth = Tree::new(size, FAN).depth();
    println!("{size} nodes, depth {depth}");
    println!(
        "  {:<8} {:>6} {:>9} {:>12} {:>12} {:>12} {:>12} {:>10}",
        "phase", "rounds", "messages", "bytes", "most msgs", "most bytes", "leader", "leaf"
    );
    for (phase, cost) in costs {
        println!(
            "  {phase:<8} {:>6} {:>9} {:>12} {:>12} {:>12} {:>12} {:>10}",
            cost.rounds,
            cost.messages,
            cost.bytes,
            cost.messages_max,
            cost.bytes_max,
            cost.leader_bytes,
            cost.leaf_bytes
        );
    }
}

#[test]
fn rounds_grow_as_the_logarithm_and_work_of_a_node_does_not() {
    if let Some(size) = std::env::var("SCRFS_SCALE")
        .ok()
        .and_then(|it| it.parse().ok())
    {
        return print(size, &measure(size));
    }
    let sizes = [64u32, 512, 4096];
    let measured: Vec<_> = sizes.iter().map(|size| measure(*size)).collect();
    for (size, costs) in sizes.iter().zip(&measured) {
        print(*size, costs);
    }
    let [small, .., large] = &measured[..] else {
        panic!("several sizes")
    };
    let depth = |size| Tree::new(size, FAN).depth();
    let (shallow, deep) = (depth(sizes[0]), depth(sizes[2]));
    let more = u64::from(sizes[2] - sizes[0]);
    for ((phase, few), (_, many)) in small.iter().zip(large) {
        // As many steps down and up as on few nodes, each as many rounds as the tree is deep.
        assert!(
            many.rounds * shallow <= few.rounds * deep + 2 * shallow,
            "{phase}: {} rounds on {} nodes, {} on {}",
            few.rounds,
            sizes[0],
            many.rounds,
            sizes[2]
        );
        assert!(
            many.messages_max <= few.messages_max * 2,
            "{phase}: {} messages of one node, {} on few",
            many.messages_max,
            few.messages_max
        );
        // What comes once: a seal, who takes part; of an epoch that begins, both, and the records.
        let grows = matches!(*phase, "begin" | "commit" | "recover");
        let bytes_a_node = if grows { 48 } else { 0 };
        assert!(
            many.leaf_bytes <= few.leaf_bytes + more * bytes_a_node + 512,
            "{phase}: {} bytes of a leaf, {} on few nodes",
            many.leaf_bytes,
            few.leaf_bytes
        );
    }
}
