//! What programs do to the mount: everything, at any moment, on every node.
//!
//! There is no script: each move is drawn from what the node shows, weighted so that commits
//! mostly succeed. So writers come late, renames come from all nodes or from one, names collide,
//! and programs wait for what may never be.

use crate::world::World;
use rand::Rng;
use scrfs::control::{DirectoryChange, Level, Pressure, Request, StorePressure};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::name::{Name, RelPath};

/// A file open for writing.
#[derive(Clone, Debug)]
struct Handle {
    machine: usize,
    dataset: DatasetId,
    slot: Slot,
    path: String,
}

/// Programs of all nodes.
#[derive(Default, Debug)]
pub struct Programs {
    /// Moves left.
    pub budget: u32,
    pub answered: u64,
    pub granted: u64,
    handles: Vec<Handle>,
    version: u64,
    step: u64,
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

/// Whether a name is one that datasets have before they are committed.
fn temporary(name: &Name) -> bool {
    name.as_bytes().ends_with(b".tmp")
}

impl World {
    /// One move of one program.
    pub fn play(&mut self) {
        let rank = self.rng.random_range(0..self.coords.len());
        let machine = self.coords[rank].machine;
        self.meddle(machine);
        match self.rng.random_range(0..100) {
            0..=9 => self.make_dataset(machine),
            10..=32 => self.open_file(machine),
            33..=34 => self.rotate(machine),
            35..=64 => self.close_file(),
            65..=84 => self.commit(machine),
            85..=86 => self.rename(machine),
            87 => self.remove(machine),
            88..=90 => self.wait(machine),
            91..=92 => self.point(machine),
            93..=94 => self.ask_dataset(machine, |_, dataset| Request::Flush { dataset }),
            95..=96 => self.press(machine),
            97..=98 => self.read_anything(rank),
            _ => self.make_directory(machine),
        }
    }

    /// A fixed life: two datasets are made, written on every node and committed, one by all nodes
    /// at once, the other by one; until everything is at rest or a coordinator has died.
    pub fn work_through(&mut self) {
        for step in 1..3 {
            let first = self.coords[0].machine;
            let name = name(&format!("ckpt.{step}.tmp"));
            self.ask(
                first,
                Request::Create {
                    name: name.clone(),
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                },
            );
            self.rest();
            let machines: Vec<usize> = self.coords.iter().map(|coord| coord.machine).collect();
            for &machine in &machines {
                self.open_file(machine);
            }
            for (turn, &machine) in machines.iter().enumerate() {
                let shown = &self.machines[machine].daemon.shown;
                let open = shown.values().find(|record| record.name == name);
                if let Some(dataset) = open
                    .map(|record| record.id)
                    .filter(|_| turn == 0 || step == 1)
                {
                    let to = crate::programs::name(&format!("ckpt.{step}"));
                    self.ask(
                        machine,
                        Request::Commit {
                            dataset,
                            to,
                            settle_ms: 0,
                        },
                    );
                }
            }
            while self.blown.is_none() && !self.programs.handles.is_empty() {
                self.close_file();
                self.event();
            }
            self.rest();
        }
    }

    /// Goes on until everything is at rest, or a coordinator has died.
    pub fn rest(&mut self) {
        while self.blown.is_none() && self.violation.is_none() && self.event() {}
    }

    pub fn ask(&mut self, machine: usize, what: Request) {
        self.note(|| format!("a program on machine {machine} asks {what:?}"));
        self.machines[machine].daemon.ask(what);
    }

    fn make_dataset(&mut self, machine: usize) {
        if self.percent(70) {
            self.programs.step += 1;
        }
        let kind = if self.percent(20) { "out" } else { "ckpt" };
        let mark = if self.percent(85) { ".tmp" } else { "" };
        // Few numbers, so that names come again.
        let number = self.programs.step % 5;
        let name = name(&format!("{kind}.{number}{mark}"));
        self.ask(
            machine,
            Request::Create {
                name,
                mode: 0o755,
                uid: 0,
                gid: 0,
            },
        );
    }

    fn shown(
        &mut self,
        machine: usize,
        which: impl Fn(&DatasetRecord) -> bool,
    ) -> Option<DatasetRecord> {
        let shown = self.machines[machine].daemon.shown.values();
        let all: Vec<DatasetRecord> = shown.filter(|record| which(record)).cloned().collect();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())].clone())
    }

    fn open_file(&mut self, machine: usize) {
        let Some(record) = self.shown(machine, |it| it.phase == Phase::Open) else {
            return;
        };
        let dataset = record.id;
        if !self.machines[machine].daemon.admits(dataset) {
            return;
        }
        let Some(&slot) = self.machines[machine].daemon.trees.get(&dataset) else {
            return;
        };
        let path = format!("file{}", self.rng.random_range(0..3));
        self.note(|| format!("a program on machine {machine} opens {path} of {dataset}"));
        self.machines[machine].daemon.opened(dataset);
        self.programs.handles.push(Handle {
            machine,
            dataset,
            slot,
            path,
        });
        self.write(self.programs.handles.len() - 1);
    }

    /// The daemon does not see this.
    fn write(&mut self, handle: usize) {
        self.programs.version += 1;
        let Handle {
            machine,
            dataset,
            slot,
            path,
        } = self.programs.handles[handle].clone();
        if let Some(part) = self.machines[machine].disk.parts.get_mut(&(dataset, slot)) {
            part.tree.insert(path, self.programs.version);
            self.checker.written.insert((dataset, machine));
        }
    }

    fn close_file(&mut self) {
        if self.programs.handles.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.programs.handles.len());
        if self.percent(50) {
            self.write(at);
        }
        let handle = self.programs.handles.swap_remove(at);
        self.note(|| format!("a program closes {handle:?}"));
        self.machines[handle.machine]
            .daemon
            .released(handle.dataset);
    }

    pub fn close_all(&mut self) {
        for handle in std::mem::take(&mut self.programs.handles) {
            self.machines[handle.machine]
                .daemon
                .released(handle.dataset);
        }
    }

    /// The handles of a machine's programs are gone with its daemon.
    pub fn drop_handles(&mut self, machine: usize) {
        self.programs
            .handles
            .retain(|handle| handle.machine != machine);
    }

    fn commit(&mut self, machine: usize) {
        let late = self.percent(15);
        let Some(record) = self.shown(machine, |it| it.phase == Phase::Open || late) else {
            return;
        };
        let bytes = record.name.as_bytes();
        let bare = bytes.strip_suffix(b".tmp").unwrap_or(bytes);
        let to = match self.percent(5) {
            true => name("ckpt.0"),
            false => Name::new(bare).expect("a name"),
        };
        // What a trigger proposes, under the name it has, is only a guess.
        let guess = self.percent(25);
        let request = Request::Commit {
            dataset: record.id,
            to: if guess { record.name.clone() } else { to },
            settle_ms: if guess { 500 } else { 0 },
        };
        if self.percent(40) {
            // Every node renames for itself.
            for at in 0..self.coords.len() {
                let machine = self.coords[at].machine;
                if self.machines[machine].daemon.shown.contains_key(&record.id) {
                    self.ask(machine, request.clone());
                }
            }
        } else {
            self.ask(machine, request);
        }
    }

    /// A program reads a sealed dataset, some of which may be lost.
    fn read_anything(&mut self, rank: usize) {
        let machine = self.coords[rank].machine;
        if !self.machines[machine].daemon.ready {
            return;
        }
        let sealed = |it: &DatasetRecord| it.phase == Phase::Sealed;
        if let Some(record) = self.shown(machine, sealed) {
            self.note(|| format!("a program on machine {machine} reads {}", record.id));
            self.invariant_what_is_read_is_what_was_sealed(rank, &record);
        }
    }

    fn rename(&mut self, machine: usize) {
        let to = name(&format!("other.{}.tmp", self.rng.random_range(0..2)));
        self.ask_dataset(machine, |_, dataset| Request::Rename { dataset, to });
    }

    fn remove(&mut self, machine: usize) {
        let kept = self.percent(30);
        let Some(record) = self.shown(machine, |it| it.phase == Phase::Open || kept) else {
            return;
        };
        if record.phase != Phase::Open || temporary(&record.name) {
            self.ask(machine, Request::Remove { dataset: record.id });
        }
    }

    /// All but the last are removed, on one node or on every one.
    fn rotate(&mut self, machine: usize) {
        let everywhere = self.percent(30);
        let shown = self.machines[machine].daemon.shown.values();
        let sealed = shown.filter(|record| record.phase == Phase::Sealed);
        let mut old: Vec<DatasetId> = sealed.map(|record| record.id).collect();
        old.pop();
        for dataset in old {
            for at in 0..self.coords.len() {
                let one = self.coords[at].machine;
                if one == machine || everywhere {
                    self.ask(one, Request::Remove { dataset });
                }
            }
        }
    }

    fn wait(&mut self, machine: usize) {
        self.ask_dataset(machine, |draw, dataset| {
            let level = [Level::Sealed, Level::Protected, Level::Flushed][draw % 3];
            Request::Wait { dataset, level }
        });
    }

    /// The cache of a node runs short, or does no longer; programs there have some datasets open.
    fn press(&mut self, machine: usize) {
        let mut in_use = Vec::new();
        let shown: Vec<DatasetId> = self.machines[machine]
            .daemon
            .shown
            .keys()
            .copied()
            .collect();
        for dataset in &shown {
            if self.percent(10) {
                in_use.push(*dataset);
            }
        }
        let wanted_bytes: u64 = [0, 1, 100, 1 << 40][self.rng.random_range(0..4)];
        let urgent = self.percent(30);
        // Each node has put every other dataset elsewhere than its neighbours.
        let count = self.config.store.len();
        let of_store = |store: usize| {
            let lies = |dataset: &&DatasetId| (dataset.0 as usize + machine) % count == store;
            StorePressure {
                wanted_bytes: wanted_bytes >> store,
                urgent,
                holds: shown.iter().filter(lies).copied().collect(),
            }
        };
        let pressure = Pressure {
            stores: (0..count).map(of_store).collect(),
            in_use,
        };
        self.checker.urgent |= urgent;
        self.checker.in_use.insert(machine, pressure.in_use.clone());
        self.note(|| format!("machine {machine} says {pressure:?}"));
        self.machines[machine].daemon.press(pressure);
    }

    fn ask_dataset(&mut self, machine: usize, what: impl FnOnce(usize, DatasetId) -> Request) {
        let draw = self.rng.random_range(0..60);
        if let Some(record) = self.shown(machine, |_| true) {
            self.ask(machine, what(draw, record.id));
        }
    }

    fn make_directory(&mut self, machine: usize) {
        let path = format!("dir{}", self.rng.random_range(0..2));
        let path = RelPath::new(path.as_bytes()).expect("a path");
        let Some(record) = self.shown(machine, |it| it.phase == Phase::Open) else {
            return;
        };
        let change = DirectoryChange::Make {
            path,
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        self.ask(
            machine,
            Request::Change {
                dataset: record.id,
                change,
            },
        );
    }
}
