//! The cluster: machines, one coordinator on each that takes part, and what is on its way.
//!
//! One event at a time, drawn from everything that could happen next: a message of any pair of
//! ranks (in order for each pair), a word between a daemon and its coordinator, the end of a job, a
//! program's move, time passing. Everything follows from the seed.

use crate::checker::Checker;
use crate::daemon::{Daemon, Seen};
use crate::disk::{Disk, Prefix};
use crate::jobs::{Job, Kind};
use crate::people::People;
use crate::pointers::setback;
use crate::programs::Programs;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs::config::Config;
use scrfs::id::{DatasetId, Epoch, Rank, Slot};
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::protocol::Now;
use scrfs::protocol::message::Message;
use scrfs::protocol::node::Node;
use scrfs::protocol::step::{Effect, Step, Write};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One physical node.
#[derive(Debug)]
pub struct Machine {
    pub name: String,
    pub disk: Disk,
    pub daemon: Daemon,
}

/// One coordinator; no node when it has died.
#[derive(Debug)]
pub struct Coord {
    pub node: Option<Node>,
    pub machine: usize,
    /// What the leader has said is lost of datasets, and who has the rest.
    pub losses: BTreeMap<DatasetId, Losses>,
}

/// Who holds which slot, and which slots nobody holds.
pub type Losses = (BTreeMap<Slot, Rank>, BTreeSet<Slot>);

/// Everything.
pub struct World {
    pub rng: StdRng,
    pub now: Now,
    pub config: Config,
    /// Children of a rank; with few, also small clusters have members between others and the leader.
    pub fan: u32,
    pub machines: Vec<Machine>,
    /// Machines that were taken out with their disks, and may come back.
    pub away: Vec<usize>,
    pub coords: Vec<Coord>,
    pub wires: BTreeMap<(usize, usize), VecDeque<Message>>,
    pub jobs: Vec<Job>,
    pub epoch: Epoch,
    /// Programs were let in.
    pub ready: bool,
    pub new_run: bool,
    pub prefix: Option<Prefix>,
    /// It does not answer when the epoch begins.
    pub is_late: bool,
    pub people: People,
    pub programs: Programs,
    pub checker: Checker,
    /// How many of a hundred jobs fail.
    pub failing: u32,
    /// How many of a hundred times a job is passed over: how slow work is.
    pub lazy: u32,
    /// Records put down and effects carried out so far.
    pub operations: u64,
    /// The coordinator that comes to this operation dies before it.
    pub fuse: Option<u64>,
    /// Where the fuse blew.
    pub blown: Option<usize>,
    pub log: Option<Vec<String>>,
    pub violation: Option<String>,
}

impl World {
    pub fn new(seed: u64, config: Config, prefix: bool, logging: bool) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Now {
                tick: 0,
                wall: 1_000_000,
            },
            config,
            fan: 1 + (seed % 3) as u32,
            machines: Vec::new(),
            away: Vec::new(),
            coords: Vec::new(),
            wires: BTreeMap::new(),
            jobs: Vec::new(),
            epoch: Epoch(0),
            ready: false,
            new_run: true,
            prefix: prefix.then(Prefix::default),
            is_late: false,
            people: People::of(seed),
            programs: Programs::default(),
            checker: Checker::default(),
            failing: 0,
            lazy: 0,
            operations: 0,
            fuse: None,
            blown: None,
            log: logging.then(Vec::new),
            violation: None,
        }
    }

    /// A new node with an empty disk.
    pub fn add_machine(&mut self) -> usize {
        let number = self.machines.len();
        let disk = Disk::default();
        let daemon = Daemon::start(&disk);
        self.machines.push(Machine {
            name: format!("node{number}"),
            disk,
            daemon,
        });
        number
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    pub fn violate(&mut self, invariant: &str, text: impl Into<String>) {
        let text = text.into();
        self.note(|| format!("VIOLATION {invariant}: {text}"));
        self.violation.get_or_insert(format!("{invariant}: {text}"));
    }

    pub fn disk_of(&self, rank: usize) -> &Disk {
        &self.machines[self.coords[rank].machine].disk
    }

    pub fn percent(&mut self, chance: u32) -> bool {
        self.rng.random_range(0..100) < chance
    }

    fn burns(operations: &mut u64, fuse: &mut Option<u64>) -> bool {
        *operations += 1;
        fuse.take_if(|at| *at <= *operations).is_some()
    }

    fn die(&mut self, at: usize) {
        self.note(|| format!("coordinator {at} dies in the middle of a step"));
        self.coords[at].node = None;
        self.blown = Some(at);
    }

    /// Puts the records of a step down, then does what it says; the fuse may end it anywhere.
    pub fn carry_out(&mut self, at: usize, mut step: Step) {
        for (to, message) in step.take_handed_on() {
            if Self::burns(&mut self.operations, &mut self.fuse) {
                return self.die(at);
            }
            self.effect(at, Effect::Send { to, message });
        }
        let mut written: Vec<(Write, Option<DatasetRecord>)> = Vec::new();
        let mut setbacks = Vec::new();
        let machine = self.coords[at].machine;
        let (operations, fuse) = (&mut self.operations, &mut self.fuse);
        let disk = &mut self.machines[machine].disk;
        let persisted = step.persisted_by(|write| {
            if Self::burns(operations, fuse) {
                return Err(());
            }
            let before = match write {
                Write::Forget(dataset) => disk.records.get(dataset).cloned(),
                Write::Dataset(record) => disk.records.get(&record.id).cloned(),
                Write::Epoch(_) => None,
                Write::Pointers(pointers) => {
                    setbacks.extend(setback(&disk.pointers, pointers));
                    None
                }
            };
            disk.put(write);
            written.push((write.clone(), before));
            Ok(())
        });
        for setback in setbacks {
            self.violate("invariant_pointers_never_go_back", setback);
        }
        for (write, before) in written {
            self.note(|| format!("  {at} persists {write:?}"));
            self.check_write(at, &write, before.as_ref());
        }
        let Ok(effects) = persisted else {
            return self.die(at);
        };
        for effect in effects {
            if Self::burns(&mut self.operations, &mut self.fuse) {
                return self.die(at);
            }
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        let machine = self.coords[at].machine;
        match effect {
            // What is encoded before the commit is no promise.
            Effect::Foresee { .. } => {}
            Effect::Send { to, message } => {
                let to = to.0 as usize;
                self.check_send(at, to, &message);
                self.wires.entry((at, to)).or_default().push_back(message);
            }
            Effect::Daemon(word) => {
                let daemon = &mut self.machines[machine].daemon;
                if daemon.connected {
                    daemon.inbox.push_back(word);
                }
            }
            // The driver makes it on the spot; nobody waits for ticket 0.
            Effect::MakePart { ticket: 0, record } => {
                self.machines[machine]
                    .disk
                    .parts
                    .entry((record.id, Slot(at as u32)))
                    .or_default();
            }
            Effect::MakePart { ticket, record } => {
                self.jobs.push(Job {
                    at,
                    kind: Kind::MakePart { ticket, record },
                });
            }
            Effect::Scan {
                dataset,
                generation,
            } => {
                let slot = Slot(at as u32);
                let part = self.machines[machine].disk.parts.get(&(dataset, slot));
                let before = part.map(|part| part.tree.clone());
                self.jobs.push(Job {
                    at,
                    kind: Kind::Scan {
                        dataset,
                        generation,
                        before,
                    },
                });
            }
            Effect::Work { ticket, order } => {
                self.jobs.push(Job {
                    at,
                    kind: Kind::Work { ticket, order },
                });
            }
            Effect::Abandon { ticket } => self.abandon(at, ticket),
            Effect::CompleteFlush { record } => {
                self.jobs.push(Job {
                    at,
                    kind: Kind::CompleteFlush { record },
                });
            }
            Effect::Losses {
                dataset,
                holders,
                lost,
            } => {
                let told = (holders.into_iter().collect(), lost.into_iter().collect());
                self.coords[at].losses.insert(dataset, told);
            }
            Effect::WritePointers { due } => {
                self.invariant_pointers_reach_the_prefix_in_order(&due);
                self.jobs.push(Job {
                    at,
                    kind: Kind::WritePointers { due },
                });
            }
            Effect::AskPrefix { record } => {
                self.jobs.push(Job {
                    at,
                    kind: Kind::AskPrefix { record },
                });
            }
            Effect::LookAtPrefix => self.look(),
            Effect::DropData { dataset, slots } => {
                self.note(|| format!("  {at} drops {dataset} {slots:?}"));
                self.machines[machine].disk.drop_data(dataset, &slots);
            }
        }
    }

    fn live(&self, at: usize) -> bool {
        self.coords[at].node.is_some()
    }

    /// Lets a node take an input.
    pub fn input(&mut self, at: usize, give: impl FnOnce(&mut Node, Now) -> Step) {
        let now = self.now;
        let Some(node) = &mut self.coords[at].node else {
            return;
        };
        let step = give(node, now);
        self.carry_out(at, step);
    }

    pub fn tick(&mut self, milliseconds: u64) {
        self.now.tick += milliseconds;
        self.now.wall += milliseconds;
        self.note(|| format!("{milliseconds} ms pass"));
        for at in 0..self.coords.len() {
            self.input(at, |node, now| node.handle_tick(now));
        }
        if !self.coords.is_empty() && self.live(0) {
            self.check_deadline();
        }
    }

    /// What can happen now besides time and programs: wires, inboxes, outboxes, jobs.
    fn ready(&self) -> Vec<Event> {
        let mut ready = Vec::new();
        for (&(from, to), wire) in &self.wires {
            if !wire.is_empty() {
                ready.push(Event::Message(from, to));
            }
        }
        for at in 0..self.coords.len() {
            let daemon = &self.machines[self.coords[at].machine].daemon;
            if !daemon.inbox.is_empty() {
                ready.push(Event::ToDaemon(at));
            }
            if !daemon.outbox.is_empty() && self.live(at) {
                ready.push(Event::FromDaemon(at));
            }
            let settling = daemon.settling();
            ready.extend(settling.into_iter().map(|it| Event::Settled(at, it)));
        }
        ready.extend(
            (0..self.jobs.len())
                .filter(|&job| self.live(self.jobs[job].at))
                .map(Event::Job),
        );
        ready
    }

    /// One event, if anything can happen; time and programs are drawn beside it.
    pub fn event(&mut self) -> bool {
        // Every event has a time of its own, so that records can be told apart.
        self.now.wall += 1;
        let ready = self.ready();
        let play = self.programs.budget > 0;
        if ready.is_empty() && !play {
            return false;
        }
        let draw = self.rng.random_range(0..100);
        if play && (ready.is_empty() || draw < 25) {
            self.programs.budget -= 1;
            self.play();
        } else if draw > 97 {
            let milliseconds = self.rng.random_range(1..800);
            self.tick(milliseconds);
        } else {
            let event = ready[self.rng.random_range(0..ready.len())];
            if matches!(event, Event::Job(_)) && self.percent(self.lazy) {
                return true;
            }
            self.happen(event);
        }
        self.read_what_is_lost();
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Message(from, to) => {
                let message = self
                    .wires
                    .get_mut(&(from, to))
                    .and_then(VecDeque::pop_front);
                let Some(message) = message else { return };
                self.note(|| format!("{from} -> {to}: {message:?}"));
                self.input(to, |node, now| {
                    node.handle_message(now, Rank(from as u32), message)
                });
            }
            Event::ToDaemon(at) => {
                let machine = &mut self.machines[self.coords[at].machine];
                let Some(word) = machine.daemon.inbox.pop_front() else {
                    return;
                };
                let text = self
                    .log
                    .is_some()
                    .then(|| format!("to daemon {at}: {word:?}"));
                let seen = machine.daemon.handle(word, &mut machine.disk);
                self.note(|| text.unwrap_or_default());
                self.seen(at, seen);
                self.check_daemon(at);
            }
            Event::FromDaemon(at) => {
                let machine = &mut self.machines[self.coords[at].machine];
                let Some(word) = machine.daemon.outbox.pop_front() else {
                    return;
                };
                self.note(|| format!("from daemon {at}: {word:?}"));
                self.input(at, |node, _| node.handle_daemon(word));
            }
            Event::Settled(at, dataset) => {
                self.note(|| format!("daemon {at}: {dataset} has settled"));
                let machine = self.coords[at].machine;
                self.machines[machine].daemon.settled(dataset);
            }
            Event::Job(job) => {
                let job = self.jobs.swap_remove(job);
                self.end_job(job);
            }
        }
    }

    /// The checker hears what a daemon has done.
    pub fn seen(&mut self, at: usize, seen: Option<Seen>) {
        match seen {
            None => {}
            Some(Seen::Frozen(dataset)) => self.remember_frozen(at, dataset),
            Some(Seen::Answered { what, result }) => {
                self.note(|| format!("  answered {result:?} to {what:?}"));
                self.check_answer(&what, result);
                self.programs.answered += 1;
                if result.is_ok() {
                    self.programs.granted += 1;
                }
            }
            Some(Seen::Wrong(text)) => self.violate("invariant_answered_once", text),
        }
    }

    /// Programs stop, and everything under way comes to its end; how long it took is bounded.
    pub fn settle(&mut self) {
        self.programs.budget = 0;
        self.lazy = 0;
        self.close_all();
        let mut patience = 40_000;
        while self.violation.is_none() {
            patience -= 1;
            if patience == 0 {
                self.violate("invariant_comes_to_rest", "still busy after 40,000 events");
                return;
            }
            // What was parked on a thawed dataset, or opened since, ends too.
            if self.event() {
                continue;
            }
            if self.coords.is_empty() || !self.live(0) {
                return;
            }
            let nodes = self.coords.iter().filter_map(|coord| coord.node.as_ref());
            match nodes.filter_map(Node::deadline).min() {
                Some(at) => {
                    let wait = at.saturating_sub(self.now.tick).clamp(1, 3_600_000);
                    self.tick(wait);
                }
                None => return self.check_rest(),
            }
        }
    }

    /// Datasets that are open or sealed as the leader has decided.
    pub fn live_datasets(&self) -> Vec<DatasetId> {
        let all = self.disk_of(0).records.values();
        all.filter(|record| matches!(record.phase, Phase::Open | Phase::Sealed))
            .map(|record| record.id)
            .collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Message(usize, usize),
    ToDaemon(usize),
    FromDaemon(usize),
    Settled(usize, DatasetId),
    Job(usize),
}
