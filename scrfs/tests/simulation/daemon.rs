//! The daemon of one node, as `scrfs::control` has it: gates, requests, and what programs see.
//!
//! It outlives coordinators. A crash forgets generations, handles and requests, never the disk;
//! what is open is frozen after it, until a coordinator knows better.

use crate::disk::Disk;
use scrfs::control::{DirectoryChange, FromDaemon, Pressure, Refusal, Request, ToDaemon};
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::pointer::PointerRecord;
use scrfs::layout::record::{DatasetRecord, Phase};
use scrfs::name::Name;
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    Open,
    Frozen,
    Sealed,
}

/// Who may change a dataset here.
#[derive(Clone, Debug)]
pub struct Gate {
    pub door: Door,
    pub generation: u64,
    pub writers: u32,
    quiescing: bool,
    told_quiet: bool,
    settle_ms: u64,
    /// It has been quiet since some moment, but not for long enough.
    settling: bool,
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub struct Pending {
    pub what: Request,
    sent: bool,
}

#[derive(Debug, Default)]
pub struct Daemon {
    pub shown: BTreeMap<DatasetId, DatasetRecord>,
    pub gates: BTreeMap<DatasetId, Gate>,
    /// Which slot's tree programs are given.
    pub trees: BTreeMap<DatasetId, Slot>,
    pub pending: BTreeMap<u64, Pending>,
    /// Pointer files that programs see.
    pub pointers: BTreeMap<Name, PointerRecord>,
    next_request: u64,
    slot: Option<Slot>,
    pub connected: bool,
    /// Programs were let in.
    pub ready: bool,
    pub outbox: VecDeque<FromDaemon>,
    pub inbox: VecDeque<ToDaemon>,
}

/// What happened that the checker must hear of.
#[derive(Debug)]
pub enum Seen {
    Frozen(DatasetId),
    Answered {
        what: Request,
        result: Result<(), Refusal>,
    },
    Wrong(String),
}

impl Daemon {
    /// A daemon that has just started on this disk.
    pub fn start(disk: &Disk) -> Self {
        let mut daemon = Self::default();
        for record in disk.records.values() {
            daemon.show(record.clone(), disk);
        }
        daemon.pointers = disk.pointers.all.clone();
        // It cannot know what it had frozen, nor whether it is sealed on other nodes by now.
        for gate in daemon
            .gates
            .values_mut()
            .filter(|gate| gate.door == Door::Open)
        {
            gate.door = Door::Frozen;
        }
        daemon
    }

    fn say(&mut self, word: FromDaemon) {
        if self.connected {
            self.outbox.push_back(word);
        }
    }

    /// How the cache fares.
    pub fn press(&mut self, pressure: Pressure) {
        self.say(FromDaemon::Pressure(pressure));
    }

    fn show(&mut self, record: DatasetRecord, disk: &Disk) {
        let id = record.id;
        if !self
            .trees
            .get(&id)
            .is_some_and(|slot| disk.parts.contains_key(&(id, *slot)))
        {
            let here: Vec<Slot> = disk
                .parts
                .keys()
                .filter(|(of, _)| *of == id)
                .map(|(_, slot)| *slot)
                .collect();
            let own = self.slot.filter(|slot| here.contains(slot));
            match own.or(here.first().copied()) {
                Some(slot) => self.trees.insert(id, slot),
                None => self.trees.remove(&id),
            };
        }
        let sealed = record.phase != Phase::Open;
        let gate = self.gates.entry(id).or_insert(Gate {
            door: Door::Open,
            generation: 0,
            writers: 0,
            quiescing: false,
            told_quiet: false,
            settle_ms: 0,
            settling: false,
        });
        if sealed {
            gate.door = Door::Sealed;
            gate.quiescing = false;
        }
        self.shown.insert(id, record);
    }

    /// A coordinator connects: what is not settled is asked again.
    pub fn connect(&mut self, slot: Slot, disk: &Disk) {
        self.disconnect();
        self.connected = true;
        self.slot = Some(slot);
        let mut again = Vec::new();
        for (request, pending) in std::mem::take(&mut self.pending) {
            if !(pending.sent && self.is_settled(&pending.what, disk)) {
                again.push((request, pending));
            }
        }
        for (request, mut pending) in again {
            pending.sent = true;
            let what = pending.what.clone();
            self.pending.insert(request, pending);
            self.say(FromDaemon::Request { request, what });
        }
    }

    /// No coordinator listens. What is frozen stays so.
    pub fn disconnect(&mut self) {
        (self.connected, self.ready) = (false, false);
        self.outbox.clear();
        self.inbox.clear();
        for gate in self.gates.values_mut() {
            gate.quiescing = false;
            gate.told_quiet = false;
            gate.settling = false;
        }
    }

    fn is_settled(&self, what: &Request, disk: &Disk) -> bool {
        let shown = |id: &DatasetId| self.shown.get(id);
        match what {
            Request::Create { name, .. } => {
                let mut all = self.shown.values();
                all.any(|record| record.phase == Phase::Open && record.name == *name)
            }
            Request::Rename { dataset, to } => shown(dataset).is_some_and(|it| it.name == *to),
            Request::Commit { dataset, to, .. } => {
                shown(dataset).is_some_and(|it| it.phase == Phase::Sealed && it.name == *to)
            }
            Request::Remove { dataset } => shown(dataset).is_none_or(DatasetRecord::is_removed),
            Request::Change {
                dataset,
                change: DirectoryChange::Make { path, .. },
            } => {
                let part = self
                    .trees
                    .get(dataset)
                    .and_then(|slot| disk.parts.get(&(*dataset, *slot)));
                part.is_some_and(|part| part.tree.contains_key(&format!("{path}/")))
            }
            Request::Change { .. }
            | Request::Wait { .. }
            | Request::Flush { .. }
            | Request::Fetch { .. }
            | Request::End
            | Request::Verify { .. }
            | Request::Point { .. } => false,
        }
    }

    /// A program asks.
    pub fn ask(&mut self, what: Request) {
        self.next_request += 1;
        let request = self.next_request;
        self.pending.insert(
            request,
            Pending {
                what: what.clone(),
                sent: self.connected,
            },
        );
        self.say(FromDaemon::Request { request, what });
    }

    fn quiet(&mut self, dataset: DatasetId) {
        let Some(gate) = self.gates.get_mut(&dataset) else {
            return;
        };
        if gate.quiescing && !gate.told_quiet && gate.writers == 0 && gate.door != Door::Sealed {
            if gate.settle_ms > 0 && !gate.settling {
                gate.settling = true;
                return;
            }
            gate.settling = false;
            gate.told_quiet = true;
            let generation = gate.generation;
            self.say(FromDaemon::Quiet {
                dataset,
                generation,
            });
        }
    }

    /// Datasets of which it may be said any time now that they have been quiet for long enough.
    pub fn settling(&self) -> Vec<DatasetId> {
        let settling = self.gates.iter().filter(|(_, gate)| gate.settling);
        settling.map(|(dataset, _)| *dataset).collect()
    }

    /// Long enough has passed.
    pub fn settled(&mut self, dataset: DatasetId) {
        self.quiet(dataset);
        let gate = self.gates.get_mut(&dataset);
        // It may have been sealed meanwhile by a vote of before.
        if let Some(gate) = gate.filter(|gate| gate.door == Door::Sealed) {
            gate.settling = false;
        }
    }

    fn changed(&mut self, dataset: DatasetId) {
        let Some(gate) = self.gates.get_mut(&dataset) else {
            return;
        };
        gate.generation += 1;
        gate.settling = false;
        let generation = gate.generation;
        if std::mem::take(&mut gate.told_quiet) {
            self.say(FromDaemon::Disturbed {
                dataset,
                generation,
            });
        }
    }

    /// Whether programs may change the dataset now; a frozen one makes them wait.
    pub fn admits(&self, dataset: DatasetId) -> bool {
        self.trees.contains_key(&dataset)
            && self
                .gates
                .get(&dataset)
                .is_some_and(|gate| gate.door == Door::Open)
    }

    /// A file was opened for writing.
    pub fn opened(&mut self, dataset: DatasetId) {
        self.changed(dataset);
        if let Some(gate) = self.gates.get_mut(&dataset) {
            gate.writers += 1;
        }
    }

    /// A writable handle was released.
    pub fn released(&mut self, dataset: DatasetId) {
        if let Some(gate) = self.gates.get_mut(&dataset) {
            gate.writers = gate.writers.saturating_sub(1);
        }
        self.changed(dataset);
        self.quiet(dataset);
    }

    fn freeze(&mut self, dataset: DatasetId, generation: u64) -> Result<(), Refusal> {
        let gate = self.gates.get_mut(&dataset).ok_or(Refusal::Missing)?;
        let unchanged = gate.generation == generation && gate.writers == 0;
        match gate.door {
            Door::Frozen if gate.generation == generation => Ok(()),
            Door::Open if unchanged => {
                gate.door = Door::Frozen;
                Ok(())
            }
            _ => Err(Refusal::Busy),
        }
    }

    fn change(
        &mut self,
        dataset: DatasetId,
        change: &DirectoryChange,
        disk: &mut Disk,
    ) -> Result<(), Refusal> {
        let gate = self.gates.get(&dataset).ok_or(Refusal::Missing)?;
        match gate.door {
            Door::Frozen => return Err(Refusal::Busy),
            Door::Sealed => return Err(Refusal::ReadOnly),
            Door::Open => {}
        }
        let slot = *self.trees.get(&dataset).ok_or(Refusal::Missing)?;
        let part = disk
            .parts
            .get_mut(&(dataset, slot))
            .ok_or(Refusal::Missing)?;
        if let DirectoryChange::Make { path, .. } = change {
            part.tree.insert(format!("{path}/"), 0);
        }
        self.changed(dataset);
        self.quiet(dataset);
        Ok(())
    }

    /// Takes the next word of the coordinator.
    pub fn handle(&mut self, word: ToDaemon, disk: &mut Disk) -> Option<Seen> {
        match word {
            ToDaemon::Dataset { sequence, record } => {
                self.show(*record, disk);
                self.say(FromDaemon::Done {
                    sequence,
                    result: Ok(()),
                });
            }
            ToDaemon::Forget { sequence, dataset } => {
                self.shown.remove(&dataset);
                self.gates.remove(&dataset);
                self.trees.remove(&dataset);
                self.say(FromDaemon::Done {
                    sequence,
                    result: Ok(()),
                });
            }
            ToDaemon::Pointers {
                sequence,
                all,
                records,
            } => {
                if all {
                    self.pointers.clear();
                }
                self.pointers.extend(records);
                self.say(FromDaemon::Done {
                    sequence,
                    result: Ok(()),
                });
            }
            ToDaemon::Change {
                sequence,
                dataset,
                change,
            } => {
                let result = self.change(dataset, &change, disk);
                self.say(FromDaemon::Done { sequence, result });
            }
            ToDaemon::Quiesce { dataset, settle_ms } => {
                if let Some(gate) = self.gates.get_mut(&dataset) {
                    gate.quiescing = true;
                    gate.told_quiet = false;
                    gate.settling = false;
                    gate.settle_ms = settle_ms;
                }
                self.quiet(dataset);
            }
            ToDaemon::Freeze {
                sequence,
                dataset,
                generation,
            } => {
                let result = self.freeze(dataset, generation);
                self.say(FromDaemon::Done { sequence, result });
                return result.is_ok().then_some(Seen::Frozen(dataset));
            }
            ToDaemon::Thaw { dataset } => {
                if let Some(gate) = self.gates.get_mut(&dataset) {
                    gate.quiescing = false;
                    gate.told_quiet = false;
                    gate.settling = false;
                    if gate.door == Door::Frozen {
                        gate.door = Door::Open;
                    }
                }
            }
            ToDaemon::Reply { request, result } => {
                return Some(match self.pending.remove(&request) {
                    Some(pending) => Seen::Answered {
                        what: pending.what,
                        result,
                    },
                    None => Seen::Wrong(format!("request {request} was answered twice")),
                });
            }
            ToDaemon::Ready { .. } => {
                self.ready = true;
                self.press(Pressure::default());
            }
            ToDaemon::Piece { .. }
            | ToDaemon::Progress(_)
            | ToDaemon::Due(_)
            | ToDaemon::Shelf(_)
            | ToDaemon::Learnt(_)
            | ToDaemon::Verified { .. }
            | ToDaemon::Moved { .. }
            | ToDaemon::Missing { .. }
            | ToDaemon::Verdict { .. }
            | ToDaemon::Nodes(_) => {}
        }
        None
    }
}
