//! Going on with a job whose supervisor was lost: `scrfs run --resume`.
//!
//! ```text
//! --resume   finds the record of the run in the prefix, and becomes `scrfs run` with its words, in its
//!            directory and environment, and with --resumed
//! --resumed  takes the next number, attaches the daemons, ends what the other one has launched, and
//!            goes on with the next epoch
//! ```
//!
//! Invariants: there is one supervisor at a time. Taking a number tells the one before, which looks before
//! each epoch and launch and once a second; daemons obey the highest number, and of two that speak to
//! one daemon at once the lower is refused. Epochs of two supervisors never share a number, because one that
//! resumes leaves [`EPOCHS_LEFT_OUT`] out. Nothing of an earlier launch runs when the next begins.
//!
//! What is not known: whether the other one lives. It need not be: if it does, it ends.

use super::args::{Hosts, RunArgs};
use super::each;
use super::files::RunFiles;
use super::hosts::Host;
use super::keeper::{Keeper, Word};
use super::launcher::LAUNCH_VARIABLE;
use super::placement::Placement;
use super::remote::{Fleet, Shell};
use super::supervisor::Supervisor;
use super::suspect::Suspect;
use super::{checks, heart, words};
use anyhow::{Context, Result, bail, ensure};
use scrfs::id::Epoch;
use scrfs::layout::run::{RunKey, RunRecord};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// More epochs than the other supervisor can have begun with no node knowing.
const EPOCHS_LEFT_OUT: u64 = 1000;
/// Between two words about a prefix that does not answer.
const SAY_INTERVAL: Duration = Duration::from_secs(5);
/// For the last record to be written.
const FORGET_PATIENCE: Duration = Duration::from_secs(5);
/// For the other supervisor's host to answer, which may be gone.
const OTHER_PATIENCE: Duration = Duration::from_secs(5);
/// Variables of resource managers and launchers, by their beginnings.
const PREFIXES: [&str; 7] = [
    "SLURM_",
    "PBS_",
    "LSB_",
    "FLUX_",
    "OMPI_MCA_",
    "PMIX_MCA_",
    "MPICH_",
];

/// Nothing there to go on with.
const NOTHING: u8 = 3;

/// Why it cannot be resumed, with the exit code.
fn failed(code: u8, words: &str) -> u8 {
    eprintln!("scrfs run: {words}");
    code
}

/// Becomes the run that is resumed; returns only when that fails, with the exit code.
pub(super) fn become_it(args: &RunArgs, wanted: &str) -> u8 {
    let found = args
        .mount
        .load()
        .context("the configuration")
        .and_then(|config| Ok((RunFiles::new(&config.prefix).all()?, config)));
    let (all, config) = match found {
        Ok(found) => found,
        Err(error) => return failed(1, &format!("{error:#}")),
    };
    let is_it = |(key, record): &&(RunKey, RunRecord)| {
        let is_named = wanted.is_empty() || wanted == key.to_string();
        is_named && record.job == config.job && !record.is_tombstone()
    };
    let candidates: Vec<_> = all.iter().filter(is_it).collect();
    let (key, record) = match candidates.as_slice() {
        [] => {
            let words = format!(
                "there is nothing to resume: no run of job {} in {} was lost",
                config.job,
                config.prefix.display()
            );
            return failed(NOTHING, &words);
        }
        [one] => one,
        several => {
            let mut words = "which one? name it as in --resume=ID:".to_owned();
            for (key, record) in several {
                words += &format!(
                    "\n  {key}  supervised by process {} on {}: {}",
                    record.process,
                    record.host,
                    words::join(record.arguments.iter().map(String::as_str))
                );
            }
            return failed(2, &words);
        }
    };
    if lives_here(record) {
        let words = format!(
            "this run is at work: process {} on this host supervises it",
            record.process
        );
        return failed(2, &words);
    }
    match become_words(args, *key, record) {
        Ok(never) => match never {},
        Err(error) => failed(1, &format!("{error:#}")),
    }
}

fn become_words(
    args: &RunArgs,
    key: RunKey,
    record: &RunRecord,
) -> Result<std::convert::Infallible> {
    let this = std::env::current_exe().context("where is this program?")?;
    let mut command = Command::new(this);
    command.arg("run").arg(format!("--resumed={key}"));
    if let Some(listen) = &args.listen {
        command.arg(format!("--listen={listen}"));
    }
    command.args(&record.arguments);
    ensure!(
        Path::new(&record.directory).is_dir(),
        "the job was begun in {}, which is not there on this host",
        record.directory
    );
    command
        .current_dir(&record.directory)
        .envs(record.environment.iter().map(|(name, value)| (name, value)));
    Err(command.exec()).context("cannot start anew")
}

fn here() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether the supervisor of a record runs on this host.
fn lives_here(record: &RunRecord) -> bool {
    let theirs = std::fs::read_link(format!("/proc/{}/exe", record.process)).ok();
    let mine = std::env::current_exe().ok();
    record.host == here()
        && record.process != std::process::id()
        && theirs.is_some()
        && theirs == mine
}

/// The words behind `scrfs run`, without what belongs to this host alone.
fn own_words(words: impl IntoIterator<Item = std::ffi::OsString>) -> Option<Vec<String>> {
    let mut words = words.into_iter();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        let word = word.into_string().ok()?;
        if word == "--" {
            kept.push(word);
            for word in words.by_ref() {
                kept.push(word.into_string().ok()?);
            }
        } else if word == "--listen" {
            words.next();
        } else if !word.starts_with("--listen=") {
            kept.push(word);
        }
    }
    Some(kept)
}

fn own_environment() -> Vec<(String, String)> {
    let named = std::env::var("SCRFS_EACH_ENV").unwrap_or_default();
    let goes = |name: &str| {
        let is_ours = each::goes_along(name) || named.split(',').any(|wanted| wanted == name);
        let is_managers = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        (is_ours || is_managers) && name != LAUNCH_VARIABLE
    };
    let all = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut found: Vec<_> = all.filter(|(name, _)| goes(name)).collect();
    found.sort();
    found
}

/// This supervisor's place among all that ever had the run.
pub(super) struct Begun {
    files: RunFiles,
    /// What all its launches carry.
    pub(super) mark: u64,
    /// What daemons tell supervisors apart by.
    pub(super) number: u64,
    /// `None`: it cannot be kept, and not be resumed.
    key: Option<RunKey>,
    /// Runs that had our nodes before, ours now.
    taken: Vec<RunKey>,
    /// No epoch up to this one is ours.
    pub(super) epoch: Epoch,
    /// What does not change of the record.
    base: RunRecord,
    /// Where another supervisor was.
    pub(super) resumed: Option<RunRecord>,
    /// To be said when there is somebody to say it.
    pub(super) said: Vec<String>,
}

/// The record that `--resumed` names, or a later one of its run, and the hosts in it.
pub(super) fn resumed(args: &RunArgs, key: &str) -> Result<(u64, RunRecord, Hosts)> {
    let key = RunKey::parse(key).context("--resumed")?;
    let config = args.mount.load().context("the configuration")?;
    let all = RunFiles::new(&config.prefix).all()?;
    let found = all.into_iter().find(|(found, _)| found.mark == key.mark);
    let Some((found, record)) = found.filter(|(_, record)| !record.is_tombstone()) else {
        bail!("the run is over: its record is not in the prefix any more");
    };
    ensure!(
        found == key,
        "process {} on {} was faster, and goes on with this run",
        record.process,
        record.host
    );
    let mut chosen: Vec<Host> = Vec::new();
    let placed = record.positions.iter().flatten().chain(&record.spares);
    let down = record.down.iter().map(|(name, ..)| (name.clone(), None));
    for (name, slots) in placed.cloned().chain(down) {
        if !chosen.iter().any(|host| host.name == name) {
            chosen.push(Host { name, slots });
        }
    }
    ensure!(!chosen.is_empty(), "no hosts are left");
    let excluded = record.excluded.clone();
    Ok((key.mark, record, Hosts { chosen, excluded }))
}

impl Begun {
    /// Takes a place. A prefix that cannot be written is no reason not to run.
    pub(super) fn take(
        (prefix, job): (&Path, &str),
        hosts: &Hosts,
        needed: usize,
        resumed: Option<(u64, RunRecord)>,
    ) -> Result<Self> {
        let files = RunFiles::new(prefix);
        let (mark, resumed) = match resumed {
            Some((mark, record)) => (mark, Some(record)),
            None => (heart::random().context("no random numbers")?, None),
        };
        let (positions, spares) = Placement::new(hosts.chosen.clone(), needed).keep();
        let now = checks::now_millis();
        let words = own_words(std::env::args_os().skip(2));
        let base = match &resumed {
            Some(record) => record.clone(),
            None => RunRecord {
                job: job.to_owned(),
                begun: now,
                positions,
                spares,
                arguments: words.unwrap_or_default(),
                directory: std::env::current_dir()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
                environment: own_environment(),
                excluded: hosts.excluded.clone(),
                ..RunRecord::default()
            },
        };
        let mut begun = Self {
            files,
            mark,
            number: now,
            key: None,
            taken: Vec::new(),
            epoch: Epoch(0),
            base: RunRecord {
                host: here(),
                process: std::process::id(),
                ..base
            },
            resumed,
            said: Vec::new(),
        };
        if let Some(record) = &begun.resumed {
            begun.epoch = Epoch(record.epoch.0.saturating_add(EPOCHS_LEFT_OUT));
        }
        if prefix.is_dir()
            && let Err(error) = begun.claim(hosts)
        {
            begun.said.push(format!(
                "this run cannot be resumed if its supervisor is lost: {error:#}"
            ));
        }
        Ok(begun)
    }

    fn claim(&mut self, hosts: &Hosts) -> Result<()> {
        for (key, record) in self.files.all()? {
            let shares = |host: &str| hosts.chosen.iter().any(|chosen| chosen.name == host);
            let is_ours = key.mark == self.mark;
            if is_ours || record.job != self.base.job || !record.hosts().any(shares) {
                continue;
            }
            if !record.is_tombstone() {
                self.said.push(format!(
                    "process {} on {} had these nodes, and is told to end if it has not",
                    record.process, record.host
                ));
            }
            self.number = self.number.max(key.number + 1);
            self.epoch = self.epoch.max(Epoch(record.epoch.0 + EPOCHS_LEFT_OUT));
            let tombstone = RunRecord {
                arguments: Vec::new(),
                epoch: record.epoch,
                positions: record.positions.clone(),
                ..self.base.clone()
            };
            let taken = self.files.claim(key.mark, self.number, &tombstone)?;
            self.number = self.number.max(taken.number);
            self.taken.push(taken);
        }
        let key = self.files.claim(self.mark, self.number, &self.base)?;
        self.number = key.number;
        self.key = Some(key);
        Ok(())
    }

    /// Who keeps the record from now on.
    pub(super) fn keeper(&self) -> std::io::Result<Option<Keeper>> {
        let start = |key| Keeper::start(self.files.clone(), key);
        self.key.map(start).transpose()
    }

    /// The run is over, or was never more than an attempt.
    pub(super) fn forget(&self) -> Result<()> {
        for key in self.taken.iter().chain(&self.key) {
            self.files.forget(*key)?;
        }
        Ok(())
    }
}

impl Supervisor<'_> {
    /// Goes on from where another supervisor was, if there was one.
    pub(super) fn go_on(&mut self) {
        for words in std::mem::take(&mut self.begun.said) {
            self.report.stage(&words);
        }
        let Some(record) = self.begun.resumed.clone() else {
            return;
        };
        let ago = checks::now_millis().saturating_sub(record.begun);
        self.report.resume(&record, Duration::from_millis(ago));
        self.report.stage(&format!(
            "this job is resumed: process {} on {} was lost, or ends now",
            record.process, record.host
        ));
        self.placement = Placement::restore(&record.positions, &record.spares);
        for (node, why, was_heard) in record.down {
            self.heart.members.restore(&node, why, was_heard);
        }
        self.suspect = Suspect(record.suspect);
        self.code = record.code;
        self.is_over = record.is_over;
    }

    fn record(&self) -> RunRecord {
        let (positions, spares) = self.placement.keep();
        let members = &self.heart.members;
        let was_heard = |node: &str| members.lost().any(|lost| lost == node);
        let down = members.down();
        let down = down.map(|(node, why)| (node.into(), why.into(), was_heard(node)));
        RunRecord {
            epoch: self.epoch,
            epochs: self.report.epochs(),
            positions,
            spares,
            down: down.collect(),
            launches: self.report.kept().to_vec(),
            newest: self.newest_checkpoint(),
            suspect: self.suspect.0.clone(),
            code: self.code,
            is_over: self.is_over,
            ..self.begun.base.clone()
        }
    }

    /// Has what is known now kept, some time.
    pub(super) fn note(&mut self) {
        let record = self.record();
        if let Some(keeper) = &mut self.keeper {
            keeper.put(record);
        }
    }

    /// Has what is known now kept, and waits for it: nobody else goes on with this run, and whoever
    /// does later knows it. However long the prefix takes, but for a wish to end.
    pub(super) fn keep(&mut self) -> Result<()> {
        self.note();
        let mut said = Instant::now();
        while self.keeper.as_ref().is_some_and(|keeper| !keeper.is_done()) && self.stop.is_none() {
            self.turn()?;
            if said.elapsed() >= SAY_INTERVAL {
                said = Instant::now();
                self.report.say("waiting for the prefix to answer");
            }
        }
        Ok(())
    }

    /// Removes the record, so that nobody goes on with what has ended.
    pub(super) fn forget(&mut self) -> Result<()> {
        let begun = Instant::now();
        let is_busy = |keeper: &Option<Keeper>| keeper.as_ref().is_some_and(|it| !it.is_done());
        while is_busy(&self.keeper) && begun.elapsed() < FORGET_PATIENCE {
            self.turn()?;
        }
        let forgotten = match is_busy(&self.keeper) {
            true => Err(anyhow::anyhow!("the prefix does not answer")),
            false => self.begun.forget(),
        };
        self.keeper = None;
        if let Err(error) = forgotten {
            self.report
                .say(&format!("the run's record stays: {error:#}"));
        }
        Ok(())
    }

    /// An error when the run is somebody else's.
    pub(super) fn turn_keeper(&mut self) -> Result<()> {
        let words = self.keeper.as_mut().map(Keeper::words).unwrap_or_default();
        for word in words {
            match word {
                Word::Done(_) => {}
                Word::Failed(why) => self.report.say(&format!("the run's record: {why}")),
                Word::Superseded(who) => {
                    self.is_superseded = true;
                    bail!("{who}: this one ends, and leaves everything as it is");
                }
            }
        }
        Ok(())
    }

    /// Ends what the supervisor before us has launched, wherever it is.
    pub(super) fn reap_run(&mut self) -> Result<()> {
        let Some(record) = self.begun.resumed.clone() else {
            return Ok(());
        };
        // First: of ranks that are killed one after the other, the last must not commit what the first have left
        // half written.
        self.fence()?;
        let mark = format!("{:016x}", self.mark);
        let line = words::join([
            &*self.programs.coordinator.to_string_lossy(),
            "reap",
            "--all",
            &mark,
        ]);
        let lives = self.heart.members.lives();
        let hosts: Vec<String> = lives.map(|life| life.beat.node.clone()).collect();
        // Its launchers were where it was; that host may be gone.
        let is_else = !hosts.contains(&record.host) && record.host != here();
        let other = Some(record.host).filter(|host| is_else && !self.heart.members.is_down(host));
        let other_shell = Shell {
            patience: OTHER_PATIENCE.min(self.shell.patience),
            ..self.shell.clone()
        };
        let fleet = |shell: &Shell, hosts: Vec<String>| {
            let commands = hosts.into_iter().map(|host| (host, line.clone()));
            Fleet::new(shell, "reap", commands)
        };
        let mut fleets = [
            fleet(&self.shell, hosts),
            fleet(&other_shell, other.into_iter().collect()),
        ];
        while fleets.iter().any(|fleet| !fleet.is_done()) {
            self.turn()?;
            for ended in fleets.iter_mut().flat_map(Fleet::poll) {
                if let Err(why) = ended.result {
                    let words = format!("processes may be left on {}: {why}", ended.host);
                    self.report.say(&words);
                }
            }
        }
        self.report.stage("what was launched before is ended");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(words: &[&str]) -> Option<Vec<String>> {
        own_words(words.iter().map(Into::into))
    }

    #[test]
    fn what_belongs_to_one_host_is_not_kept() {
        let words = [
            "--runs",
            "3",
            "--listen",
            "a:1",
            "--listen=b",
            "--",
            "app",
            "--listen",
            "c",
        ];
        let kept = own(&words).expect("text");
        assert_eq!(kept, ["--runs", "3", "--", "app", "--listen", "c"]);
        use std::os::unix::ffi::OsStringExt;
        let word = std::ffi::OsString::from_vec(vec![0xff]);
        assert_eq!(own_words(["--".into(), word]), None);
    }

    #[test]
    fn a_run_on_the_same_nodes_ends_the_one_before_and_others_go_on() {
        let prefix = tempfile::tempdir().expect("a directory");
        let begin = |names: &[&str]| {
            let host = |name: &&str| Host {
                name: (*name).into(),
                slots: None,
            };
            let hosts = Hosts {
                chosen: names.iter().map(host).collect(),
                excluded: Vec::new(),
            };
            let job = (prefix.path(), "job");
            let begun = Begun::take(job, &hosts, names.len(), None).expect("writable");
            let record = RunRecord {
                epoch: Epoch(5),
                arguments: vec!["--".into(), "app".into()],
                ..begun.base.clone()
            };
            let key = begun.key.expect("claimed");
            begun.files.put(key, &record).expect("writable");
            begun
        };
        let is_over = |begun: &Begun| {
            let key = begun.key.expect("claimed");
            begun.files.successor(key).expect("readable").is_some()
        };
        let (one, other) = (begin(&["a", "b"]), begin(&["c"]));
        let next = begin(&["b"]);
        assert!(is_over(&one) && !is_over(&other) && !is_over(&next));
        assert!(next.number > one.number && next.epoch > Epoch(5) && other.epoch == Epoch(0));
        next.forget().expect("removable");
        other.forget().expect("removable");
        let left = std::fs::read_dir(prefix.path().join(".scrfs/run")).expect("there");
        assert_eq!(left.count(), 0);
    }
}
