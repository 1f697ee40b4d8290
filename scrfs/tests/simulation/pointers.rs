//! Pointer files: what programs do with them, and what must hold.

use crate::programs::name;
use crate::world::World;
use rand::Rng;
use scrfs::control::{PointerChange, Request};
use scrfs::layout::pointer::{Content, Pointer, PointerRecord, Pointers};
use scrfs::name::Name;

/// How `after` is behind `before`, if it is.
pub fn setback(before: &Pointers, after: &Pointers) -> Option<String> {
    let mut all = before.all.keys();
    let lost = all.find(|name| after.version(name) < before.version(name));
    lost.map(|name| {
        format!(
            "{name}: {:?} then {:?}",
            before.all[name],
            after.all.get(name)
        )
    })
    .or_else(|| (after.term < before.term).then(|| "the term".to_owned()))
}

impl World {
    /// A program replaces, renames or removes one.
    pub fn point(&mut self, machine: usize) {
        let names = ["latest", "latest.tmp", "ckpt.1"].map(name);
        let which = self.rng.random_range(0..names.len());
        let pointer = Pointer {
            content: Content::File(vec![self.rng.random(); 3]),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (self.now.wall as i64, 0),
        };
        let set = |name: &Name| PointerChange {
            name: name.clone(),
            pointer: Some(pointer.clone()),
        };
        let remove = |name: &Name| PointerChange {
            name: name.clone(),
            pointer: None,
        };
        let absent = self.percent(20).then(|| names[which].clone());
        let changes = match self.rng.random_range(0..4) {
            0 => vec![remove(&names[which])],
            1 => vec![set(&names[which]), remove(&names[(which + 1) % 3])],
            _ => vec![set(&names[which])],
        };
        self.note(|| format!("a program on machine {machine} points {changes:?}"));
        let what = Request::Point { changes, absent };
        self.machines[machine].daemon.ask(what);
    }

    /// What is given out is above everything that was there; what the prefix has may be told again.
    pub fn invariant_versions_are_given_out_once(&mut self, records: &[(Name, PointerRecord)]) {
        let there = self.prefix.as_ref().map(|prefix| prefix.pointers.clone());
        let is_there = |name: &Name, record| {
            let there = there.as_ref().and_then(|there| there.all.get(name));
            there == Some(record)
        };
        for (name, record) in records {
            if self.is_late && is_there(name, record) {
                continue;
            }
            let version = record.version;
            if version.term <= self.checker.term || version <= self.checker.pointed {
                let text = format!("{name}: {version:?} after {:?}", self.checker.pointed);
                self.violate("invariant_versions_are_given_out_once", text);
            }
            self.checker.pointed = version;
        }
    }

    /// When a program is told that it is done.
    pub fn invariant_pointers_are_everywhere(&mut self, changes: &[PointerChange]) {
        self.checker.points += 1;
        for PointerChange { name, .. } in changes {
            // Which version it was is not known here: a later one may be on its way already.
            let missing = self
                .members()
                .any(|disk| !disk.pointers.all.contains_key(name));
            if missing {
                let text = format!("{name} is not on every node");
                self.violate("invariant_pointers_are_everywhere", text);
            }
        }
    }

    /// Nothing is named there that is not there.
    pub fn invariant_pointers_reach_the_prefix_in_order(&mut self, due: &Pointers) {
        let prefix = self.prefix.as_ref();
        for (name, record) in &due.all {
            let arrived = record
                .after
                .is_none_or(|after| prefix.is_some_and(|it| it.ever.contains(&after)));
            if !arrived {
                let text = format!("{name}: {record:?}");
                self.violate("invariant_pointers_reach_the_prefix_in_order", text);
                return;
            }
        }
    }

    pub fn check_pointers_at_rest(&mut self) {
        let first = self.disk_of(0).pointers.clone();
        for at in 0..self.coords.len() {
            let machine = &self.machines[self.coords[at].machine];
            let same = machine.disk.pointers == first && machine.daemon.pointers == first.all;
            if !same {
                let text = format!("{at}: {:?}\nnot {first:?}", machine.daemon.pointers);
                return self.violate("invariant_all_agree_on_pointers_at_rest", text);
            }
        }
        let Some(prefix) = &self.prefix else { return };
        let late = first.all.iter().find(|(name, record)| {
            record.after.is_none() && prefix.pointers.version(name) < record.version
        });
        let mut there = prefix.pointers.all.iter();
        let unknown = there.find(|(name, record)| {
            // A name that a dataset has taken since stays as it was there.
            first.version(name) < record.version && first.all.contains_key(name)
        });
        if let Some((name, record)) = unknown {
            let text = format!("{name}: {record:?} is newer than what the nodes have");
            self.violate("invariant_all_agree_on_pointers_at_rest", text);
        } else if let Some((name, record)) = late {
            let text = format!("{name}: {record:?} is not in the prefix");
            self.violate("invariant_pointers_come_to_the_prefix", text);
        }
    }
}
