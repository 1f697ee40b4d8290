//! The power goes, at every moment, and what was not synced is there or not, in any combination.
//!
//! A child does what is done to a prefix, one step after the other, and is traced: every change with its
//! inode, name and bytes, and every sync (see [`log`]). For each moment the states are built that a file server may
//! come up with: what was synced is there; of the rest all, nothing, all but one, one alone, or a random
//! choice. Each is made as a directory and opened. Then
//!
//! - what is listed is whole, what a step before had made so is so, and what it removed is gone;
//! - what was under way is as before or as after, once the next start of a job has looked at it;
//! - the same step, done again, comes to its end and leaves nothing behind.
//!
//! In some of the states the power goes again, while what comes after is done.
//!
//! A rename is one change, and a sync of the directory it comes to takes it along. Links and pipes are synced with
//! their directory. Everything else is not ordered: names may come without what they lead to, bytes without length.
//!
//! Some of the states are tried; `SCRFS_POWER_STATES=n` tries so many of each scenario, `SCRFS_SEED=n` the same ones again.

mod log;
mod model;
mod scenarios;

use super::tracer::{trace, traced_world};
use super::*;
use log::{Event, Log, Recorder};
use model::Model;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use scenarios::{SCENARIOS, Scenario, Shown, Stage, Step};
use scrfs::layout::envelope::{Kind, open, seal};
use std::collections::{BTreeMap, BTreeSet};

const CHILD: &str = "prefix::tests::power::the_child";
/// States of a scenario that are tried, unless somebody asks for more.
const STATES: usize = 240;
/// Of so many states one is used as a prefix is, until the power goes again.
const AGAIN: u32 = 60;

/// What there is to be seen.
#[derive(Clone, Debug, Default, PartialEq)]
struct Expected {
    names: BTreeMap<&'static str, Shown>,
    failed: BTreeSet<u64>,
    chosen: Option<u64>,
    /// Deleted or dropped: no job flushes them again.
    gone: BTreeSet<u64>,
}

/// How much of what was not synced is there.
#[derive(Clone, Copy, Debug)]
enum Luck {
    All,
    Nothing,
    AllBut(usize),
    Only(usize),
    /// Each with this probability, in percent.
    Some(u32, u64),
}

/// A moment at which the power goes.
#[derive(Debug)]
struct Moment {
    /// Steps that have said they are done.
    acknowledged: usize,
    /// The next one has changed something.
    begun: bool,
    durable: BTreeSet<usize>,
    /// Done, and not durable.
    volatile: Vec<usize>,
}

#[test]
fn the_child() {
    let Some(root) = traced_world() else { return };
    let task = fs::read_to_string(root.join("task")).unwrap();
    let [name, path, done, again] = task.lines().collect::<Vec<_>>().try_into().unwrap();
    let (done, again): (usize, bool) = (done.parse().unwrap(), again.parse().unwrap());
    let scenario = SCENARIOS.iter().find(|it| it.name == name).unwrap();
    let prefix = Prefix::at(Path::new(path)).of_job("job");
    let cache = CachePaths::at(&root.join("cache"));
    let record = |id: u64| {
        let record = fs::read(root.join(format!("record.{id}"))).unwrap();
        open(Kind::Dataset, &record).unwrap()
    };
    if again {
        prefix.reconcile(&BTreeSet::new()).unwrap();
    }
    for (step, _) in &scenario.steps[done..] {
        step.perform(&prefix, &cache, &record, again.into())
            .unwrap();
        println!("acknowledged");
    }
}

fn moments(log: &Log, life: &Life) -> Vec<Moment> {
    let (mut acknowledged, mut begun, mut done) = (life.acknowledged, life.again, 0);
    let mut durable = BTreeSet::new();
    let mut moments = Vec::new();
    for event in std::iter::once(None).chain(log.events.iter().map(Some)) {
        match event {
            Some(Event::Done(at)) => (done, begun) = (at + 1, true),
            Some(Event::Synced(these)) => {
                durable.extend(log.closed(these.iter().copied()));
            }
            Some(Event::Said(words)) if words.contains("acknowledged") => {
                (acknowledged, begun) = (acknowledged + 1, false);
            }
            None | Some(Event::Said(_)) => {}
        }
        moments.push(Moment {
            acknowledged,
            begun,
            durable: durable.clone(),
            volatile: (0..done).filter(|at| !durable.contains(at)).collect(),
        });
    }
    moments
}

type Candidate<'a> = (&'a Moment, Luck);

/// What finds most, and the rest in random order.
fn candidates<'a>(
    moments: &'a [Moment],
    rng: &mut StdRng,
) -> (Vec<Candidate<'a>>, Vec<Candidate<'a>>) {
    let nothing = moments.iter().map(|moment| (moment, Luck::Nothing));
    // One is missing for as long as it may, and all else comes to pass.
    let last = moments
        .iter()
        .flat_map(|moment| moment.volatile.iter().map(move |at| (*at, moment)));
    let last: BTreeMap<usize, &Moment> = last.collect();
    let last = last
        .into_iter()
        .map(|(at, moment)| (moment, Luck::AllBut(at)));
    let first = nothing.chain(last).collect();
    let mut more = Vec::new();
    for moment in moments {
        more.extend(moment.lucks(rng).into_iter().map(|luck| (moment, luck)));
    }
    more.shuffle(rng);
    (first, more)
}

impl Moment {
    fn lucks(&self, rng: &mut StdRng) -> Vec<Luck> {
        let one = self.volatile.iter();
        let mut lucks: Vec<_> = one
            .flat_map(|at| [Luck::AllBut(*at), Luck::Only(*at)])
            .collect();
        lucks.push(Luck::All);
        lucks.extend([20, 50, 80, 95].map(|percent| Luck::Some(percent, rng.random())));
        lucks
    }

    fn operations(&self, luck: Luck) -> BTreeSet<usize> {
        let mut rng = StdRng::seed_from_u64(match luck {
            Luck::Some(_, seed) => seed,
            _ => 0,
        });
        let is_there = |at: &usize| match luck {
            Luck::All => true,
            Luck::Nothing => false,
            Luck::AllBut(one) => *at != one,
            Luck::Only(one) => *at == one,
            Luck::Some(percent, _) => rng.random_ratio(percent, 100),
        };
        let lucky = self.volatile.iter().copied().filter(is_there);
        lucky.chain(self.durable.iter().copied()).collect()
    }
}

/// What is seen before the first step, and after each.
fn expectations(scenario: &Scenario) -> Vec<Expected> {
    let mut now = Expected::default();
    now.names.extend(scenario.first.iter().copied());
    let mut all = vec![now.clone()];
    for (step, shown) in scenario.steps {
        for (name, shown) in *shown {
            let was = now.names.insert(name, *shown);
            match (was, shown) {
                (_, Shown::Whole(id)) => drop(now.gone.remove(id)),
                (Some(Shown::Whole(id) | Shown::Dropped(id)), _) => drop(now.gone.insert(id)),
                _ => {}
            }
        }
        match step {
            Step::Fail(id) => drop(now.failed.insert(*id)),
            Step::Choose(name) => {
                let Some(Shown::Whole(id)) = now.names.get(name) else {
                    panic!("{name} cannot be chosen");
                };
                now.chosen = Some(*id);
                now.failed.remove(id);
            }
            _ => {}
        }
        all.push(now.clone());
    }
    all
}

impl Stage {
    /// What there is of a name; an error when it is not whole.
    fn shown(&self, name: &str) -> Result<Shown, String> {
        let path = self.world.published(name);
        let is_ours = |entry: &&IndexEntry| entry.record.name.as_bytes() == name.as_bytes();
        let entries = self.world.prefix.list().unwrap();
        if let Some(entry) = entries.iter().filter(|it| it.is_complete()).rfind(is_ours) {
            let id = entry.record.id.0;
            let is_whole = match self.records.iter().find(|it| it.id.0 == id) {
                Some(record) => self.world.has_all_of(record),
                None => path.is_dir() && self.theirs == Some(describe(&path)),
            };
            for slot in 0..entry.record.seal.as_ref().unwrap().parts.len() as u32 {
                self.world
                    .prefix
                    .verify_part(&entry.record, Slot(slot), &|_| {}, &GO)
                    .map_err(|error| format!("{name}: {error}"))?;
            }
            let words = || format!("{name} is listed and not whole");
            return is_whole.then_some(Shown::Whole(id)).ok_or_else(words);
        }
        match fs::symlink_metadata(&path) {
            Err(_) => return Ok(Shown::Not),
            Ok(found) if found.is_dir() => {}
            Ok(found) => {
                let says = match found.is_symlink() {
                    true => fs::read_link(&path).unwrap().into_os_string().into_string(),
                    false => Ok(fs::read_to_string(&path).unwrap()),
                };
                let says = says.unwrap();
                let number = says.strip_prefix("ckpt.").and_then(|it| it.parse().ok());
                return number
                    .map(Shown::Pointer)
                    .ok_or(format!("{name} says {says}"));
            }
        }
        if self.theirs == Some(describe(&path)) {
            return Ok(Shown::Theirs);
        }
        let mut ours = self
            .records
            .iter()
            .filter(|it| it.name.as_bytes() == name.as_bytes());
        let found = ours.find(|record| self.world.has_all_of(record));
        let id = found.map(|it| it.id.0);
        let id = id.ok_or_else(|| format!("half of {name} is there"))?;
        let dropped = self.world.prefix.dropped().unwrap();
        Ok(match dropped.iter().any(|it| it.record.id.0 == id) {
            true => Shown::Dropped(id),
            false => Shown::Loose(id),
        })
    }

    /// That everything is as before or as after; `settled`: a start of a job has looked at it.
    fn check(&self, before: &Expected, after: &Expected, settled: bool) -> Result<(), String> {
        for (name, then) in &after.names {
            let first = before.names.get(name).unwrap_or(&Shown::Not);
            let shown = self.shown(name)?;
            let is_under_way = !settled && first != then;
            let fits = shown == *first
                || shown == *then
                || is_under_way
                    && match (&shown, then) {
                        (Shown::Loose(found), Shown::Whole(id)) => found == id,
                        // Gathered, and not complete yet; or about to be deleted.
                        (Shown::Theirs, _) => true,
                        // Between two renames.
                        (Shown::Not, Shown::Whole(_)) => self.plain,
                        _ => false,
                    };
            if !fits {
                return Err(format!("{name}: {shown:?}, not {first:?} or {then:?}"));
            }
        }
        let entries = self.world.prefix.list().unwrap();
        let names = entries
            .iter()
            .map(|it| String::from_utf8_lossy(it.record.name.as_bytes()));
        for name in names {
            if !after.names.contains_key(name.as_ref()) {
                return Err(format!("{name} is listed"));
            }
        }
        let gone = self.world.prefix.gone().unwrap();
        let gone: BTreeSet<u64> = gone.iter().map(|key| key.id.0).collect();
        let surely: BTreeSet<u64> = before.gone.intersection(&after.gone).copied().collect();
        if !gone.is_superset(&surely) {
            return Err(format!("gone: {gone:?}, not {surely:?}"));
        }
        let failed = self.world.prefix.failed().unwrap();
        let failed: BTreeSet<u64> = failed.iter().map(|key| key.id.0).collect();
        if failed != before.failed && failed != after.failed {
            return Err(format!("failed: {failed:?}"));
        }
        let chosen = self.world.prefix.choice().unwrap();
        let chosen = chosen.map(|choice| choice.key.id.0);
        if chosen != before.chosen && chosen != after.chosen {
            return Err(format!("chosen: {chosen:?}"));
        }
        Ok(())
    }

    /// Numbers of inodes that records tell of become those that the copy has.
    fn renumber(&self, numbers: &BTreeMap<u64, u64>) {
        let new = |old: u64| numbers.get(&old).copied().unwrap_or(u64::MAX - old);
        let paths = self.world.prefix.paths();
        let all = |path: &Path| {
            let found = fs::read_dir(path).into_iter().flatten();
            found.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
        };
        for path in [all(&paths.index()), all(&paths.dropped())].concat() {
            if let Ok(mut entry) = IndexEntry::decode(&fs::read(&path).unwrap()) {
                entry.inode = new(entry.inode);
                if let Some(replaced) = &mut entry.replaces {
                    replaced.inode = new(replaced.inode);
                }
                fs::write(&path, entry.encode()).unwrap();
            }
        }
        for path in all(&paths.inflights()).iter().flat_map(|path| all(path)) {
            if path.extension().is_none_or(|ending| ending != "done") {
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            for part in self
                .records
                .iter()
                .flat_map(|it| &it.seal.as_ref().unwrap().parts)
            {
                bytes = done::renumbered(&bytes, part.manifest_crc, new);
            }
            fs::write(&path, bytes).unwrap();
        }
        for path in all(&paths.trash()) {
            let number = path.extension().and_then(|it| it.to_str()?.parse().ok());
            if let Some(number) = number {
                let number: u64 = new(number);
                fs::rename(&path, path.with_extension(number.to_string())).unwrap();
            }
        }
    }

    /// What comes after the power is back.
    fn goes_on(
        &self,
        scenario: &Scenario,
        moment: &Moment,
        rng: &mut StdRng,
    ) -> Result<(), String> {
        let (all, acknowledged) = (expectations(scenario), moment.acknowledged);
        let (before, last) = (&all[acknowledged], &all[all.len() - 1]);
        let under_way = scenario.steps.get(acknowledged).map(|(step, _)| *step);
        // To settle what is there is that step itself.
        let begun = moment.begun || matches!(under_way, Some(Step::Reconcile));
        let after = all.get(acknowledged + usize::from(begun)).unwrap_or(before);
        self.check(before, after, false)?;
        let (prefix, cache) = (&self.world.prefix, &self.world.cache);
        let record = |id: u64| self.record(id);
        let mut keep = BTreeSet::new();
        if let Some(Step::Flush(id, _)) = under_way {
            // It is in this job's caches still, or not.
            keep.extend(rng.random::<bool>().then(|| record(id).key()));
        }
        prefix.reconcile(&keep).map_err(|error| error.to_string())?;
        self.check(before, after, true)?;
        let later = rng.random_range(0..2);
        for (step, _) in &scenario.steps[acknowledged..] {
            step.perform(prefix, cache, &record, later)
                .map_err(|error| format!("again: {step:?}: {error:?}"))?;
        }
        prefix
            .reconcile(&BTreeSet::new())
            .map_err(|error| error.to_string())?;
        self.check(last, last, true)?;
        let left = self.world.leftovers();
        if !left.is_empty() {
            return Err(format!("{left:?} are left"));
        }
        Ok(())
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The operations of a log, with marks.
fn told(log: &Log, moment: &Moment, there: &BTreeSet<usize>) -> String {
    let words = log.operations.iter().enumerate().map(|(at, operation)| {
        let mark = match (moment.durable.contains(&at), there.contains(&at)) {
            (true, _) => "synced ",
            (_, true) => "there  ",
            _ if moment.volatile.contains(&at) => "MISSING",
            _ => return String::new(),
        };
        format!("{mark} {at}: {}\n", operation.words)
    });
    words.collect()
}

/// How a prefix is used: what was done before, and whether the power went then.
struct Life {
    path: PathBuf,
    acknowledged: usize,
    again: bool,
}

impl Stage {
    /// The scenario from there on, in a child; `None` when this user may not trace.
    fn log(&self, scenario: &Scenario, life: &Life) -> Option<Log> {
        let root = self.world.root.path();
        let path = life.path.to_str().unwrap();
        let task = [
            scenario.name,
            path,
            &life.acknowledged.to_string(),
            &life.again.to_string(),
        ];
        fs::write(root.join("task"), task.join("\n")).unwrap();
        let mut recorder = Recorder::new(&life.path, scenario.plain);
        let said = trace(CHILD, root, &mut recorder)?;
        assert!(said.contains("test result: ok"), "{said}");
        let log = recorder.log();
        if let Some(differs) = log.all().differs_from(&Model::read(&life.path)) {
            panic!("the log does not tell all: {differs}");
        }
        Some(log)
    }

    /// Tries so many states; some of them, with what was acknowledged then.
    fn try_states(
        &mut self,
        scenario: &Scenario,
        life: &Life,
        (seed, states): (u64, usize),
    ) -> Option<Vec<(Model, usize)>> {
        let log = self.log(scenario, life)?;
        let moments = moments(&log, life);
        let steps = moments.last().map(|moment| moment.acknowledged);
        assert_eq!(steps, Some(scenario.steps.len()));
        let mut rng = StdRng::seed_from_u64(seed);
        let (first, more) = candidates(&moments, &mut rng);
        let (surely, all) = (first.len(), first.len() + more.len());
        let surely = if life.again { 0 } else { surely };
        let mut seen = BTreeSet::new();
        let mut some = Vec::new();
        for (at, (moment, luck)) in first.into_iter().chain(more).enumerate() {
            if at >= surely && seen.len() >= states {
                break;
            }
            let there = log.closed(moment.operations(luck));
            let model = log.after(there.iter().copied());
            if !seen.insert((moment.acknowledged, moment.begun, model.hash())) {
                continue;
            }
            let number = seen.len();
            let place = self.world.root.path().join(format!("state.{number}"));
            self.make(&model, &place);
            let mut rng = StdRng::seed_from_u64(seed ^ number as u64);
            if let Err(words) = self.goes_on(scenario, moment, &mut rng) {
                let done = moment.acknowledged;
                let told = told(&log, moment, &there);
                panic!("state {number}, {luck:?}, {done} acknowledged:\n{told}{words}");
            }
            crate::part::remove_tree(&place).unwrap();
            if rng.random_ratio(1, AGAIN) {
                some.push((model, moment.acknowledged));
            }
        }
        let (tried, moments) = (seen.len(), moments.len());
        println!("{tried} states, {moments} moments, {surely} of {all} candidates");
        Some(some)
    }

    /// Opens a prefix that looks like this.
    fn make(&mut self, model: &Model, place: &Path) {
        let numbers = model.make(place);
        self.world.prefix = Prefix::at(place).of_job("job");
        self.renumber(&numbers);
    }
}

fn loses_power(name: &str) {
    let scenario = SCENARIOS.iter().find(|it| it.name == name).unwrap();
    let seed = number_of("SCRFS_SEED").unwrap_or_else(|| rand::rng().random_range(1..1 << 32));
    let states = number_of("SCRFS_POWER_STATES").map_or(STATES, |it| it as usize);
    println!("{name}: SCRFS_SEED={seed} SCRFS_POWER_STATES={states}");
    let mut stage = scenario.stage();
    let root = stage.world.root.path().to_owned();
    for record in &stage.records {
        let path = root.join(format!("record.{}", record.id.0));
        fs::write(path, seal(Kind::Dataset, record)).unwrap();
    }
    let first = Life {
        path: stage.world.prefix.paths().root().to_owned(),
        acknowledged: 0,
        again: false,
    };
    let some = stage.try_states(scenario, &first, (seed, states));
    for (number, (model, acknowledged)) in some.into_iter().flatten().enumerate() {
        let path = root.join(format!("again.{number}"));
        stage.make(&model, &path);
        println!("again, {acknowledged} acknowledged");
        let again = Life {
            path,
            acknowledged,
            again: true,
        };
        let bounds = (seed ^ number as u64, states / 10);
        stage.try_states(scenario, &again, bounds);
    }
}
