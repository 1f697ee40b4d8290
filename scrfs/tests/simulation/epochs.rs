//! How epochs end, and how the next one begins: what dies, what is lost, who takes part.

use crate::daemon::Daemon;
use crate::world::{Coord, World};
use rand::Rng;
use rand::seq::SliceRandom;
use scrfs::id::{Epoch, Rank, Slot};
use scrfs::protocol::node::{Node, Start};
use std::collections::BTreeMap;

/// Epochs that begin while the prefix does not answer.
const LATE_PERCENT: u32 = 8;

impl World {
    /// A new epoch on these machines, in the order of ranks.
    pub fn begin_epoch(&mut self, members: &[usize], new_run: bool) {
        // A run that was to begin with an epoch that never let it in is to begin with this one.
        let new_run = new_run || (self.new_run && !self.ready);
        (self.new_run, self.ready) = (new_run, false);
        self.epoch = Epoch(self.epoch.0 + 1);
        self.now.wall += 1;
        let epoch = self.epoch;
        self.note(|| format!("=== {epoch} on {members:?}, new run: {new_run}"));
        self.blown = None;
        if new_run {
            self.close_all();
            for &machine in members {
                self.machines[machine].daemon.pending.clear();
            }
        }
        self.keep_wanted();
        self.coords = members
            .iter()
            .map(|&machine| Coord {
                node: None,
                machine,
                losses: BTreeMap::new(),
            })
            .collect();
        self.is_late = self.prefix.is_some() && self.percent(LATE_PERCENT);
        self.expect_of_epoch(new_run);
        for at in 0..members.len() {
            let machine = &mut self.machines[self.coords[at].machine];
            let slot = Slot(at as u32);
            machine.daemon.connect(slot, &machine.disk);
            let inventory = machine.disk.inventory(&machine.name);
            let view = self.view().filter(|_| at == 0 && !self.is_late);
            let start = Start {
                epoch: self.epoch,
                me: Rank(at as u32),
                size: members.len() as u32,
                fan: self.fan,
                new_run,
                config: self.config.clone(),
                prefix: view,
            };
            let (node, step) = Node::start(start, inventory);
            self.coords[at].node = Some(node);
            self.carry_out(at, step);
        }
        if self.is_late {
            self.look();
        }
    }

    /// All coordinators die at once; what they had begun may have left its traces.
    pub fn end_epoch(&mut self) {
        self.fuse = None;
        for job in std::mem::take(&mut self.jobs) {
            if self.coords[job.at].node.is_some() && self.percent(30) {
                self.note(|| format!("{} had done {:?}", job.at, job.kind));
                let _ = self.perform(job.at, &job.kind);
            }
        }
        self.wires.clear();
        for at in 0..self.coords.len() {
            self.coords[at].node = None;
            let number = self.coords[at].machine;
            // What is in the socket is still read.
            while self.percent(50) {
                let machine = &mut self.machines[number];
                let Some(word) = machine.daemon.inbox.pop_front() else {
                    break;
                };
                let seen = machine.daemon.handle(word, &mut machine.disk);
                self.seen(at, seen);
            }
            self.machines[number].daemon.disconnect();
        }
    }

    fn crash_daemon(&mut self, machine: usize) {
        self.note(|| format!("the daemon of machine {machine} crashes"));
        self.drop_handles(machine);
        let found = &mut self.machines[machine];
        found.daemon = Daemon::start(&found.disk);
    }

    /// Something dies, the epoch ends, and the next one begins with what there is.
    pub fn fault(&mut self) {
        let size = self.coords.len();
        let victim = self.blown.unwrap_or_else(|| self.rng.random_range(0..size));
        self.coords[victim].node = None;
        // The others hear nothing of it for a while.
        let unaware = if self.percent(50) {
            0
        } else {
            self.rng.random_range(0..80)
        };
        for _ in 0..unaware {
            if !self.event() {
                break;
            }
        }
        self.end_epoch();
        self.keep_promise();
        let mut members: Vec<usize> = self.coords.iter().map(|coord| coord.machine).collect();
        let mut new_run = self.percent(50);
        match self.rng.random_range(0..100) {
            0..=34 => {}
            35..=49 => self.crash_daemon(members[victim]),
            50..=84 => {
                // Its disk goes with it, and sometimes another's.
                let mut gone = vec![victim];
                if self.percent(25) && size > 1 {
                    gone.push((victim + 1) % size);
                }
                gone.sort_unstable();
                for at in gone.into_iter().rev() {
                    self.note(|| format!("machine {} is lost", members[at]));
                    self.drop_handles(members[at]);
                    new_run |= self.take_out(&mut members, at);
                }
            }
            _ => {
                self.crash_daemon(members[victim]);
                let machine = members[victim];
                self.note(|| format!("machine {machine} goes away with its disk"));
                new_run |= self.take_out(&mut members, victim);
                self.away.push(machine);
            }
        }
        // Programs go on only where some of them are left.
        new_run |= !self
            .coords
            .iter()
            .any(|coord| members.contains(&coord.machine));
        if self.percent(5) {
            members.shuffle(&mut self.rng);
        }
        self.coords = members
            .iter()
            .map(|&machine| Coord {
                node: None,
                machine,
                losses: BTreeMap::new(),
            })
            .collect();
        // Programs write on without coordinators.
        let moves = self.rng.random_range(0..10);
        for _ in 0..moves {
            if self.programs.budget > 0 {
                self.play();
            }
        }
        self.begin_epoch(&members, new_run);
    }

    /// A spare in its place, or one that was away, or nobody. True when there are fewer now: the
    /// programs cannot go on then.
    fn take_out(&mut self, members: &mut Vec<usize>, at: usize) -> bool {
        self.lose_one();
        let draw = self.rng.random_range(0..100);
        if draw < 30 && members.len() > 1 {
            members.remove(at);
            return true;
        }
        members[at] = match self.away.pop() {
            Some(back) if draw < 65 => back,
            other => {
                self.away.extend(other);
                self.add_machine()
            }
        };
        false
    }
}
