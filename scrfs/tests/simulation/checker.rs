//! What must hold, whatever happens. Each invariant is named where it is broken.
//!
//! The checker sees everything: every disk, what was frozen, what was ever durable where. It asks
//! nothing of the protocol but what it sends and writes.

use crate::disk::{Content, Disk, crc_of};
use crate::fence::Promise;
use crate::jobs::Kind;
use crate::recovery::Expected;
use crate::world::World;
use scrfs::config::Class;
use scrfs::control::{Level, Refusal, Request};
use scrfs::id::{DatasetId, Epoch, Slot};
use scrfs::layout::pointer::Version;
use scrfs::layout::record::{DatasetRecord, Phase, Seal};
use scrfs::name::Name;
use scrfs::protocol::message::{Message, Order, Word};
use scrfs::protocol::step::Write;
use std::collections::{BTreeMap, BTreeSet};

/// A seal, and the files it stands for.
#[derive(Debug)]
pub struct Truth {
    pub seal: Seal,
    pub contents: Vec<Content>,
}

/// What the checker knows beyond disks and messages.
#[derive(Default, Debug)]
pub struct Checker {
    pub truths: BTreeMap<DatasetId, Truth>,
    /// The same of histories that came to their end with their last node; one may come back.
    pub archive: BTreeMap<(DatasetId, u64), Truth>,
    /// What the last epoch offered for a restart.
    pub restart: Option<DatasetId>,
    /// Records that members brought into this epoch: number and birth.
    pub brought: BTreeSet<(DatasetId, u64)>,
    pub frozen: BTreeMap<(DatasetId, Slot), Content>,
    pub births: BTreeMap<DatasetId, u64>,
    pub born_now: BTreeSet<DatasetId>,
    pub numbers: BTreeSet<(u64, DatasetId, u64)>,
    pub numbered_now: BTreeSet<u64>,
    /// Highest numbers that a member of this epoch had ever seen when it began.
    pub floor: (u64, u64),
    /// Datasets that a rename was answered Ok for.
    pub acked: BTreeSet<DatasetId>,
    pub forgotten: BTreeSet<DatasetId>,
    /// Datasets that the leader has decided to forget; it gives their names away at once.
    pub leaving: BTreeSet<DatasetId>,
    /// Datasets that no member had any more, and since which epoch.
    pub gone: BTreeMap<DatasetId, Epoch>,
    /// The newest epoch that any member had seen when this one began.
    pub newest: Epoch,
    pub stale: BTreeSet<usize>,
    pub new_run: bool,
    /// Members that have begun this epoch.
    pub begun: BTreeSet<usize>,
    /// What the epoch must find again: in the cache, or else in the prefix.
    pub expected: BTreeMap<DatasetId, Expected>,
    pub seals_found: BTreeMap<DatasetId, Seal>,
    pub failed_recovery: BTreeSet<DatasetId>,
    /// Names of directories that could not be made in this epoch: nothing was fetched under them meanwhile.
    pub not_made: BTreeSet<Name>,
    /// Where programs wrote, since a dataset was made.
    pub written: BTreeSet<(DatasetId, usize)>,
    pub promise: Promise,
    /// What each machine last said that programs have open.
    pub in_use: BTreeMap<usize, Vec<DatasetId>>,
    /// A node could not go on without room, in this epoch.
    pub urgent: bool,
    /// Datasets that had to make room, for statistics.
    pub evicted: u64,
    /// The highest term of pointer files that a member brought into this epoch.
    pub term: u64,
    /// The last version of a pointer file that was given out in this epoch.
    pub pointed: Version,
    /// Pointer files that were answered Ok, for statistics.
    pub points: u64,
    /// Slots that were read while nothing of them was lost, or some was, for statistics.
    pub reads: u64,
    /// Slots of which reads had to be made of the rest, for statistics.
    pub degraded_reads: u64,
    /// Commits that were answered Ok, for statistics.
    pub commits: u64,
}

fn is_live(record: &DatasetRecord) -> bool {
    matches!(record.phase, Phase::Open | Phase::Sealed)
}

pub fn slots_of(seal: &Seal) -> impl Iterator<Item = Slot> + use<> {
    (0..seal.parts.len() as u32).map(Slot)
}

impl Checker {
    /// The sealed files of a slot.
    pub fn content(&self, dataset: DatasetId, slot: Slot) -> Option<Content> {
        self.truths
            .get(&dataset)?
            .contents
            .get(slot.0 as usize)
            .cloned()
    }

    /// A job was made to fail: recovery may do without what it was for.
    pub fn injected(&mut self, kind: &Kind) {
        if let Kind::MakePart { record, .. } = kind {
            self.not_made.insert(record.name.clone());
        }
        if let Kind::Work { order, .. } = kind {
            match order {
                Order::Rebuild { dataset, .. } | Order::Encode { dataset, .. } => {
                    self.failed_recovery.insert(*dataset);
                }
                Order::Fetch { record, .. } | Order::CheckInPlace { record, .. } => {
                    self.failed_recovery.insert(record.id);
                }
                _ => {}
            }
        }
    }
}

impl World {
    pub fn members(&self) -> impl Iterator<Item = &Disk> {
        self.coords
            .iter()
            .map(|coord| &self.machines[coord.machine].disk)
    }

    pub fn all_alive(&self) -> bool {
        self.coords.iter().all(|coord| coord.node.is_some())
    }

    /// After a record was put down on a member.
    pub fn check_write(&mut self, at: usize, write: &Write, before: Option<&DatasetRecord>) {
        match write {
            Write::Dataset(record) => {
                self.invariant_numbers_are_never_used_twice(record);
                self.invariant_record_makes_sense(record);
                if let Some(before) = before {
                    self.invariant_decisions_stand(at, before, record);
                }
                if let Some(seal) = &record.seal {
                    self.invariant_all_agree_on_the_seal(record, seal);
                }
                if let Some(before) = before {
                    self.invariant_what_goes_is_safe(at, before, record);
                }
                if at == 0 && before.is_some_and(|it| it.is_removed() && !record.is_removed()) {
                    self.checker.promise.returned += 1;
                }
                self.promise(at, record);
                self.invariant_flushed_means_all_of_it(record);
                self.invariant_protected_means_parity(record);
                if self.checker.gone.contains_key(&record.id) {
                    self.violate("invariant_deleted_stays_deleted", format!("{record:?}"));
                }
            }
            Write::Forget(dataset) => {
                if let Some(before) = before {
                    self.invariant_only_what_is_spare_is_forgotten(at, before);
                }
                self.checker.forgotten.insert(*dataset);
                let kept = self
                    .prefix
                    .as_ref()
                    .is_some_and(|it| it.complete.contains_key(dataset));
                if !kept
                    && !self
                        .members()
                        .any(|disk| disk.records.contains_key(dataset))
                {
                    self.checker.gone.insert(*dataset, self.epoch);
                }
            }
            Write::Epoch(_) | Write::Pointers(_) => {}
        }
    }

    fn invariant_numbers_are_never_used_twice(&mut self, record: &DatasetRecord) {
        let name = "invariant_numbers_are_never_used_twice";
        let checker = &mut self.checker;
        let before = checker.births.get(&record.id).copied();
        if before != Some(record.created) {
            let brought = checker.brought.contains(&(record.id, record.created));
            if !brought && (record.id.0 <= checker.floor.0 || !checker.born_now.insert(record.id)) {
                return self.violate(name, format!("dataset {record:?}"));
            }
            // Nobody here had ever heard of one with this number, or of the other one.
            checker.births.insert(record.id, record.created);
            let truth = checker.truths.remove(&record.id);
            if let (Some(truth), Some(before)) = (truth, before) {
                checker.archive.insert((record.id, before), truth);
            }
            if let Some(truth) = checker.archive.remove(&(record.id, record.created)) {
                checker.truths.insert(record.id, truth);
            }
            checker.acked.remove(&record.id);
            checker.gone.remove(&record.id);
            checker.forgotten.remove(&record.id);
            checker.leaving.remove(&record.id);
            if !brought {
                checker.written.retain(|(id, _)| *id != record.id);
            }
        }
        let Some(number) = record.checkpoint else {
            return;
        };
        if checker.numbers.insert((number, record.id, record.created))
            && (number <= checker.floor.1 || !checker.numbered_now.insert(number))
        {
            self.violate(name, format!("checkpoint {record:?}"));
        }
    }

    fn invariant_record_makes_sense(&mut self, record: &DatasetRecord) {
        let unsealed = matches!(record.phase, Phase::Open | Phase::Incomplete);
        if unsealed == record.seal.is_some() {
            self.violate("invariant_record_makes_sense", format!("{record:?}"));
        }
    }

    /// A record never goes back behind what was decided, but on a node that was away.
    fn invariant_decisions_stand(
        &mut self,
        at: usize,
        before: &DatasetRecord,
        record: &DatasetRecord,
    ) {
        let unsealed = before.seal.is_some() && record.seal.is_none();
        let reopened = before.phase == Phase::Incomplete && record.phase == Phase::Open;
        let same = before.created == record.created && !self.checker.stale.contains(&at);
        if same && (unsealed || reopened) {
            self.violate(
                "invariant_decisions_stand",
                format!("{before:?}\nnow {record:?}"),
            );
        }
    }

    /// Programs make directories while a commit is tried; they wait for it, and are not refused.
    pub fn check_answer(&mut self, what: &Request, result: Result<(), Refusal>) {
        if matches!(what, Request::Change { .. }) && result == Err(Refusal::Busy) {
            self.violate(
                "invariant_a_try_to_commit_refuses_nothing",
                format!("{what:?}"),
            );
        }
        let Request::Commit { dataset, to, .. } = what else {
            return;
        };
        let known = self.disk_of(0).records.get(dataset);
        let committed = known.is_some_and(|record| record.name == *to && record.seal.is_some());
        if committed && result == Err(Refusal::ReadOnly) {
            self.violate("invariant_identical_renames_succeed", format!("{what:?}"));
        }
    }

    fn invariant_all_agree_on_the_seal(&mut self, record: &DatasetRecord, seal: &Seal) {
        let id = record.id;
        let others = self.members().filter_map(|disk| disk.records.get(&id));
        let same = others.filter(|other| other.created == record.created && other.seal.is_some());
        if same
            .into_iter()
            .any(|other| other.seal.as_ref() != Some(seal))
        {
            return self.violate("invariant_all_agree_on_the_seal", format!("{record:?}"));
        }
        if self
            .checker
            .truths
            .get(&id)
            .is_some_and(|truth| truth.seal == *seal)
        {
            return;
        }
        self.invariant_sealed_is_what_was_frozen(id, seal);
    }

    /// The moment of the decision.
    fn invariant_sealed_is_what_was_frozen(&mut self, id: DatasetId, seal: &Seal) {
        let name = "invariant_sealed_is_what_was_frozen";
        let mut contents = Vec::new();
        for slot in slots_of(seal) {
            let summary = seal.part(slot).map(|part| part.manifest_crc);
            let Some(frozen) = self.checker.frozen.get(&(id, slot)).cloned() else {
                return self.violate(name, format!("{slot} of {id} was never frozen"));
            };
            if summary != Some(crc_of(id, slot, &frozen)) {
                return self.violate(name, format!("{slot} of {id}: voted for other files"));
            }
            let Some(coord) = self.coords.get(slot.0 as usize) else {
                return self.violate(name, format!("{slot} of {id} has no node"));
            };
            // A node that has died since may have lost anything.
            if coord.node.is_some() {
                let part = self.machines[coord.machine].disk.parts.get(&(id, slot));
                let manifest = part.and_then(|part| part.manifest.clone());
                if manifest.as_ref() != Some(&frozen) {
                    return self.violate(name, format!("{slot} of {id}: the vote is not durable"));
                }
            }
            contents.push(frozen);
        }
        for &(dataset, machine) in &self.checker.written {
            let at = self
                .coords
                .iter()
                .position(|coord| coord.machine == machine);
            let parts = &self.machines[machine].disk.parts;
            let elsewhere = parts.iter().any(|((of, slot), part)| {
                *of == id && Some(slot.0 as usize) != at && !part.tree.is_empty()
            });
            if dataset == id && (at.is_none() || elsewhere) {
                let text = format!("{id} without what was written on machine {machine}");
                return self.violate(name, text);
            }
        }
        self.checker.truths.insert(
            id,
            Truth {
                seal: seal.clone(),
                contents,
            },
        );
    }

    fn invariant_flushed_means_all_of_it(&mut self, record: &DatasetRecord) {
        let Some(_) = record.flushed else { return };
        let prefix = self.prefix.as_ref();
        if !prefix.is_some_and(|prefix| prefix.ever.contains(&record.id)) {
            return self.violate("invariant_flushed_means_all_of_it", format!("{record:?}"));
        }
        let entry = prefix.and_then(|prefix| prefix.complete.get(&record.id));
        // Nodes that were never together again may flush two datasets under one number.
        let Some((_, contents)) = entry.filter(|(it, _)| it.created == record.created) else {
            return;
        };
        if self
            .checker
            .truths
            .get(&record.id)
            .map(|truth| &truth.contents)
            != Some(contents)
        {
            self.violate(
                "invariant_flushed_means_all_of_it",
                format!("{record:?}: other files"),
            );
        }
    }

    /// What is dropped from the caches is whole in the prefix; the newest checkpoint only where a
    /// program could not go on.
    fn invariant_what_goes_is_safe(
        &mut self,
        at: usize,
        before: &DatasetRecord,
        record: &DatasetRecord,
    ) {
        let stays = before.phase != Phase::Sealed || record.phase != Phase::Evicted;
        if at != 0 || stays || before.created != record.created {
            return;
        }
        self.checker.evicted += 1;
        let entry = self
            .prefix
            .as_ref()
            .and_then(|it| it.complete.get(&record.id));
        // What an epoch begins with is decided by what the prefix had before.
        let decided = !self.ready && self.people.has_removed(record.id);
        if entry.is_none_or(|(it, _)| it.created != record.created) && !decided {
            return self.violate("invariant_what_goes_is_safe", format!("{record:?}"));
        }
        let newer = self.disk_of(0).records.range(DatasetId(record.id.0 + 1)..);
        let newest = !newer.into_iter().any(|(_, newer)| newer.is_restartable());
        // What cannot be rebuilt goes, too, and a new epoch finds what the last one left.
        let broken = self.checker.expected.contains_key(&record.id) || !self.ready;
        if newest && before.is_restartable() && !self.checker.urgent && !broken {
            self.violate("invariant_the_newest_stays", format!("{record:?}"));
        }
    }

    fn invariant_protected_means_parity(&mut self, record: &DatasetRecord) {
        let Some(seal) = record.seal.as_ref().filter(|_| self.all_alive()) else {
            return;
        };
        let counts = record.protected.is_some() && record.flushed.is_none();
        if !counts || !record.is_cached() || self.checker.forgotten.contains(&record.id) {
            return;
        }
        let expected = self.checker.expected.contains_key(&record.id);
        let unguarded = slots_of(seal).any(|slot| {
            !self.members().any(|disk| {
                let part = disk.parts.get(&(record.id, slot));
                part.is_some_and(|part| part.sums && part.parity)
            })
        });
        // One that is being rebuilt says so with its parts, not in its record.
        if unguarded && !expected {
            self.violate("invariant_protected_means_parity", format!("{record:?}"));
        }
    }

    fn invariant_only_what_is_spare_is_forgotten(&mut self, at: usize, before: &DatasetRecord) {
        let id = before.id;
        let excused = self.checker.forgotten.contains(&id)
            || self.checker.stale.contains(&at)
            || !before.is_cached();
        if excused || !self.checker.acked.contains(&id) {
            return;
        }
        let newer = self.members().any(|disk| {
            disk.records.range(DatasetId(id.0 + 1)..).any(|(_, newer)| {
                let kept = newer.is_removed() && newer.class != Class::Output;
                let evicted = newer.phase == Phase::Evicted && newer.class != Class::Output;
                // Or the prefix had it when it was asked, just before somebody removed it there.
                let was_flushed = self.people.ever.contains(&newer.id);
                ((newer.is_restartable() || kept) && (newer.protected.is_some() || was_flushed))
                    || ((newer.is_restartable() || evicted) && newer.flushed.is_some())
            })
        });
        let wanted = before.class != Class::Checkpoint && before.flushed.is_none();
        let seal = before.seal.as_ref();
        let protected = before.protected.is_some();
        if seal.is_some_and(|seal| !self.is_recoverable(before, seal, protected)) {
            return;
        }
        if before.is_removed() {
            // By pressure, or an output that has arrived; or another one has its name by now.
            let spare = newer || before.flushed.is_some();
            let named = |it: &DatasetRecord| it.id > before.id && it.name == before.name;
            let succeeded = self.disk_of(0).records.values().any(named);
            if spare && (!wanted || succeeded) {
                return;
            }
        } else if newer && !wanted {
            return;
        }
        {
            self.violate(
                "invariant_only_what_is_spare_is_forgotten",
                format!("{before:?}"),
            );
        }
    }

    /// Before a message goes out.
    pub fn check_send(&mut self, at: usize, to: usize, message: &Message) {
        match message {
            // What only passes was looked at where it was said.
            Message::Down {
                to: Some(to),
                bytes,
            } if at == 0 => {
                let message = Message::unpack(bytes).expect("it was packed");
                self.check_send(at, to.0 as usize, &message);
            }
            Message::Up(words) => {
                let begun = |word: &&Word| word.message == Message::Begun;
                let begun = words.iter().filter(begun).map(|word| word.from.0 as usize);
                self.checker.begun.extend(begun);
            }
            Message::Begin { records, .. } if at == 0 && to == 0 => self.check_begin(records),
            Message::Order {
                order: Order::Forget(dataset),
                ..
            } => {
                // Programs may remove by the next moment what it is let go for.
                let before = self.disk_of(0).records.get(dataset).cloned();
                if let Some(before) = before.filter(|_| to == 0) {
                    self.invariant_what_is_promised_stays(&before);
                }
                self.checker.leaving.insert(*dataset);
            }
            Message::Order {
                order: Order::Point(records),
                ..
            } if to == 0 => self.invariant_versions_are_given_out_once(records),
            Message::Begun => drop(self.checker.begun.insert(at)),
            Message::Ready { restart, .. } if to == 0 => {
                self.ready = true;
                self.checker.restart = *restart;
                self.invariant_restart_is_the_newest(*restart);
                self.invariant_deletion_fence(*restart);
            }
            Message::Reply {
                request,
                result: Ok(()),
            } => {
                let daemon = &self.machines[self.coords[to].machine].daemon;
                let pending = daemon
                    .pending
                    .get(request)
                    .map(|pending| pending.what.clone());
                match pending {
                    Some(Request::Commit { dataset, .. }) => {
                        self.checker.commits += 1;
                        self.checker.acked.insert(dataset);
                        self.invariant_answered_means_durable(dataset, Level::Sealed);
                    }
                    Some(Request::Remove { dataset }) => self.invariant_removed_is_gone(dataset),
                    Some(Request::Point { changes, .. }) => {
                        self.invariant_pointers_are_everywhere(&changes);
                    }
                    Some(Request::Fetch { name }) => {
                        self.people.granted += 1;
                        self.invariant_fetched_is_there(at, &name);
                    }
                    Some(Request::Wait { dataset, level }) => {
                        self.invariant_answered_means_durable(dataset, level);
                    }
                    Some(Request::Flush { dataset }) => {
                        self.invariant_answered_means_durable(dataset, Level::Flushed);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn invariant_answered_means_durable(&mut self, dataset: DatasetId, level: Level) {
        if self.checker.forgotten.contains(&dataset) {
            return;
        }
        let reached = |record: &DatasetRecord| match level {
            Level::Sealed => record.seal.is_some(),
            Level::Protected => record.protected.is_some() || record.flushed.is_some(),
            Level::Flushed => record.flushed.is_some(),
        };
        if !self
            .members()
            .all(|disk| disk.records.get(&dataset).is_some_and(reached))
            || (level == Level::Protected && self.has_losses(dataset))
        {
            let text = format!("{dataset} is not {level:?} everywhere");
            self.violate("invariant_answered_means_durable", text);
        }
    }

    fn invariant_fetched_is_there(&mut self, at: usize, name: &Name) {
        let disk = self.disk_of(at);
        let sealed = |it: &&DatasetRecord| it.name == *name && it.phase == Phase::Sealed;
        if !disk.records.values().any(|it| sealed(&it)) {
            self.violate("invariant_fetched_is_there", format!("{name} on {at}"));
        }
    }

    /// After a daemon has taken a word.
    pub fn check_daemon(&mut self, at: usize) {
        let machine = &self.machines[self.coords[at].machine];
        let shown: Vec<DatasetRecord> = machine
            .daemon
            .shown
            .values()
            .filter(|record| is_live(record))
            .cloned()
            .collect();
        for record in &shown {
            let Some(truth) = self.checker.truths.get(&record.id) else {
                continue;
            };
            for (slot, content) in truth.contents.iter().enumerate() {
                let part = machine.disk.parts.get(&(record.id, Slot(slot as u32)));
                let counts = part.is_some_and(|part| part.manifest.as_ref() == Some(content));
                if record.seal.is_some() && counts && part.map(|part| &part.tree) != Some(content) {
                    let text = format!("slot {slot} of {} on {at}", record.id);
                    return self.violate("invariant_sealed_never_changes", text);
                }
            }
        }
        // Before it has begun, a daemon that was restarted may show what was being removed.
        if self.checker.begun.contains(&at) {
            self.invariant_names_are_unique(shown);
        }
    }

    pub fn invariant_names_are_unique(&mut self, records: Vec<DatasetRecord>) {
        let mut names = BTreeMap::new();
        for record in records.into_iter().filter(is_live) {
            if let Some(other) = names.insert(record.name.clone(), record.id) {
                let text = format!("{other} and {} are both {}", record.id, record.name);
                return self.violate("invariant_names_are_unique", text);
            }
        }
    }

    /// A dataset was frozen on a member: this is what its files are.
    pub fn remember_frozen(&mut self, at: usize, dataset: DatasetId) {
        let slot = Slot(at as u32);
        let part = self.disk_of(at).parts.get(&(dataset, slot));
        let content = part.map(|part| part.tree.clone()).unwrap_or_default();
        self.checker.frozen.insert((dataset, slot), content);
    }

    /// After the clock was looked at.
    pub fn check_deadline(&mut self) {
        let node = self.coords[0].node.as_ref();
        let deadline = node.and_then(|node| node.deadline());
        if deadline.is_some_and(|at| at <= self.now.tick) {
            let text = format!("deadline {deadline:?} at {}", self.now.tick);
            self.violate("invariant_no_spinning", text);
        }
    }
}
