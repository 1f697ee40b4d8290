//! The life of a job: mount, recover, launch, watch, and all of it again when a node is lost.
//!
//! ```text
//! check hosts -> start daemons -> take places -> epoch, recovery -> launch -> watch -> flush -> unmount
//!                                    ^                                         |
//!                                    +----- node lost, failed, hung -----------+   at most --runs launches
//! ```
//!
//! Invariants: the application runs only on an epoch that was recovered on all its nodes; a lost node does
//! not come back in the same job; nothing of an old launch runs when the next one begins.

use super::application::End;
use super::args::{self, Hosts, RunArgs};
use super::child;
use super::epoch::Held;
use super::remote::{Fleet, Shell};
use super::resource::{Allocation, Here};
use super::resume::{self, Begun};
use super::supervisor::{Supervisor, milliseconds};
use super::tally::Cause;
use super::watchdog::Why;
use crate::effects::chain;
use crate::scavenge::{Hosts as Crew, Outcome, after_run};
use crate::target::Target;
use anyhow::{Context, Result, ensure};
use scrfs::config::job_in_prefix;
use scrfs::event::JobWhat;
use scrfs::halt::Halt;
use scrfs::id::Epoch;
use scrfs::layout::run::RunRecord;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// It failed.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// Nothing was launched, because of a halt condition.
const NOTHING_DONE: u8 = 3;
/// Between two words about flushes that are under way.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// For the coordinators' launcher to end when they have.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(5);
/// For the prefix to let go of what nobody needs any more.
const TIDY_PATIENCE: Duration = Duration::from_secs(20);

/// Runs a job to its end and gives the exit code: the application's, where it ended.
pub fn run(args: &RunArgs) -> u8 {
    if let Some(wanted) = &args.resume {
        return resume::become_it(args, wanted);
    }
    let here = Here::default();
    let allocation = Allocation::detect(&here);
    let checked = args
        .launches_max()
        .and_then(|_| args.restart_command())
        .and_then(|_| args.listen_address())
        .and_then(|_| args.dead_after())
        .and_then(|_| match &args.resumed {
            None => Ok((args.find_hosts(allocation.as_ref(), &here)?, None)),
            Some(key) => {
                let (mark, record, hosts) = resume::resumed(args, key)?;
                Ok((hosts, Some((mark, record))))
            }
        });
    let ran = match checked {
        Ok((hosts, resumed)) => supervise(args, allocation, hosts, resumed),
        Err(error) => {
            eprintln!("scrfs run: {error:#}");
            return USAGE;
        }
    };
    match ran {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scrfs run: {error:#}");
            FAILED
        }
    }
}

fn supervise(
    args: &RunArgs,
    allocation: Option<Allocation>,
    hosts: Hosts,
    resumed: Option<(u64, RunRecord)>,
) -> Result<u8> {
    let config = args.mount.load().context("the configuration")?;
    let needed = hosts.chosen.len().saturating_sub(args.spares);
    let job = (config.prefix.as_path(), config.job.as_str());
    let begun = Begun::take(job, &hosts, needed, resumed)?;
    let temporary = std::env::temp_dir().join(format!("scrfs-run.{}", std::process::id()));
    let logs = args.log_dir.clone().unwrap_or(temporary);
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let mut supervisor = Supervisor::new(args, allocation, hosts, begun, logs.clone())?;
    let count = supervisor.all.len();
    supervisor.event(JobWhat::JobBegan, |event| {
        event.detail = Some(format!("{count} nodes"));
    });
    let mut lived = supervisor.live();
    let mut ended = Ok(());
    if !supervisor.is_superseded {
        ended = supervisor.end(lived.as_ref().is_ok_and(|life| life.finished));
    }
    if let Ok(life) = &mut lived
        && !supervisor.is_superseded
    {
        supervisor.scavenge(life);
        if life.finished && ended.is_ok() {
            supervisor.tidy(&config.prefix);
        }
    }
    if supervisor.is_superseded {
        supervisor.stop_ours();
    } else {
        // Last, so that whoever is lost on the way here can be followed.
        ended = ended.and(supervisor.forget());
    }
    let code = lived.as_ref().map_or(FAILED, |life| life.code);
    supervisor.event(JobWhat::JobEnded, |event| {
        event.detail = Some(format!("exit code {code}"));
    });
    supervisor.report.finish(supervisor.heart.members.down());
    let life = lived?;
    ended?;
    if life.code == 0 && args.log_dir.is_none() && !supervisor.keep_logs {
        // Of no use to anybody; and what is left of it does no harm.
        let _ = std::fs::remove_dir_all(&logs);
    } else {
        supervisor
            .report
            .say(&format!("logs are in {}", logs.display()));
    }
    Ok(life.code)
}

/// How the life of the job ended.
struct Life {
    code: u8,
    /// Nothing is left to be flushed.
    finished: bool,
    /// The application ended as it should.
    succeeded: bool,
}

impl Supervisor<'_> {
    fn live(&mut self) -> Result<Life> {
        let launches_max = self.args.launches_max()?;
        self.keep()?;
        let names = self.check_hosts()?;
        self.start_daemons(&names)?;
        self.reap_run()?;
        self.await_outside()?;
        let failed = |code| {
            Ok(Life {
                code,
                finished: false,
                succeeded: false,
            })
        };
        loop {
            let code = self.code;
            if let Some(signal) = self.stop {
                return failed(128 + signal as u8);
            }
            // So it was when the supervisor before us was lost.
            if let Some(code) = code.filter(|_| self.is_over) {
                return self.wind_up(code);
            }
            if let Some(halt) = self.halts() {
                return self.halted(&halt, code);
            }
            self.heed_manager();
            if !self.take_places()? {
                return match code {
                    Some(_) => self.salvage(),
                    None => failed(FAILED),
                };
            }
            if code.is_some() {
                self.begin_checks(&self.placed())?;
            }
            let restart = match self.hold_epoch(true)? {
                Held::Ready(restart) => restart,
                Held::Lost | Held::Stopped => continue,
                Held::Failed => return failed(FAILED),
            };
            while self.reaping.is_some() || self.is_checking() {
                self.turn()?;
            }
            if self.is_any_lost() || self.stop.is_some() || self.halts().is_some() {
                continue;
            }
            if let Some(name) = self.suspect.blame(restart.as_ref().map(|it| &it.name)) {
                self.mark_failed(&name)?;
                continue;
            }
            let (launched, before) = (Instant::now(), self.report.checkpoints());
            let Some(mut application) = self.launch(restart.as_ref())? else {
                continue;
            };
            let end = self.watch(&mut application)?;
            let cause = self.cause(&end);
            if matches!(cause, Cause::Failed(_)) {
                self.suspect.died();
            }
            self.report.end_launch(cause.clone());
            let took = launched.elapsed();
            let made = self.report.checkpoints();
            self.vain.ended(&cause, made.saturating_sub(before), took);
            if matches!(&end, End::Exit(status) if status.success()) {
                // Before anybody is told: whoever goes on after us must not launch it again.
                (self.code, self.is_over) = (Some(0), true);
                self.keep()?;
            }
            let (launch, words) = (self.report.launches(), cause.describe());
            let how = cause.end(self.stop.is_some() || self.halts().is_some());
            self.event(JobWhat::LaunchEnded, |event| {
                event.launch = Some(launch);
                event.duration_ms = Some(milliseconds(took));
                event.cause = how;
                event.detail = Some(words);
            });
            let is_its_own = matches!(cause, Cause::Failed(_) | Cause::Launcher(_));
            self.report.stage(&match cause {
                Cause::Finished => "the application has finished".to_owned(),
                other => other.describe(),
            });
            self.code = Some(match end {
                End::Exit(status) if status.success() => return self.wind_up(0),
                End::NotStarted(launcher) => launcher.code,
                End::Exit(status) => child::exit_code(status),
                End::Unwanted(Why::Halted, Some(status)) => child::exit_code(status),
                End::Lost | End::Unwanted(..) => FAILED,
                End::NoEpoch => return failed(FAILED),
            });
            child::kill_orphans(&self.children());
            self.reap(&application.launch);
            if self.is_wanted() {
                if self.report.launches() >= launches_max {
                    self.report.stage(&format!(
                        "{} of {launches_max} launches are used up; --runs N allows more",
                        self.report.launches()
                    ));
                } else if is_its_own && self.args.runs.is_none() {
                    self.report.stage(
                        "no node was lost: --runs N or --runs -1 launches it again all the same",
                    );
                } else if launches_max == u64::MAX && self.vain.is_hopeless(made) {
                    self.report.stage(&format!(
                        "given up: the last {} launches came to nothing, and none ever made a checkpoint; --runs N \
                         launches N times all the same",
                        self.vain.count()
                    ));
                } else {
                    self.pause()?;
                    continue;
                }
            }
            return self.wind_up(self.code.unwrap_or(FAILED));
        }
    }

    /// Nobody wants the job to end.
    fn is_wanted(&self) -> bool {
        self.stop.is_none() && self.halts().is_none()
    }

    /// Gives what makes launches fail at once the time to pass.
    fn pause(&mut self) -> Result<()> {
        let (since, pause) = (Instant::now(), self.vain.pause());
        if pause > Duration::ZERO {
            self.report.stage(&format!(
                "{} launches in a row came to nothing: the next one in {} s",
                self.vain.count(),
                pause.as_secs()
            ));
        }
        while since.elapsed() < pause && self.is_wanted() {
            self.turn()?;
        }
        Ok(())
    }

    /// There is no further launch. What was committed is worth keeping, whatever became of the application.
    fn wind_up(&mut self, code: u8) -> Result<Life> {
        self.code = Some(code);
        self.is_over = true;
        self.note();
        self.salvaging = true;
        let flushed = self.flush()?;
        Ok(Life {
            code: if code == 0 { flushed.code } else { code },
            finished: flushed.finished,
            succeeded: code == 0,
        })
    }

    /// No launch, because the job is to halt.
    fn halted(&mut self, halt: &Halt, code: Option<u8>) -> Result<Life> {
        self.report.stage(&format!(
            "halted: {}; `scrfs halt --list` shows what was asked for, `--clear` takes it back",
            halt.why
        ));
        let why = halt.why.clone();
        self.event(JobWhat::Halted, |event| event.detail = Some(why));
        match code {
            None => Ok(Life {
                code: NOTHING_DONE,
                finished: false,
                succeeded: false,
            }),
            Some(code) => self.wind_up(code),
        }
    }

    /// Too few nodes are left for the application: what they have, or can rebuild, goes to the prefix.
    fn salvage(&mut self) -> Result<Life> {
        self.salvaging = true;
        let left = self.placed().len();
        if left == 0 {
            self.report
                .stage("no node is left: what was not flushed is lost");
            return Ok(self.unflushed("no node is left"));
        }
        self.report.stage(&format!(
            "the job cannot go on; what the {left} nodes that are left have is flushed"
        ));
        let flushed = self.flush()?;
        Ok(Life {
            code: FAILED,
            finished: flushed.finished,
            succeeded: false,
        })
    }

    /// Waits until all that is committed is as safe as the configuration wants it.
    fn flush(&mut self) -> Result<Life> {
        let begun = Instant::now();
        let patience = Duration::from_secs(self.args.flush_timeout);
        let asked = self.stop.take();
        let mut told = begun;
        // The coordinators of which epoch know that the job ends, and since when.
        let mut ending: Option<(Epoch, Instant)> = None;
        loop {
            self.turn()?;
            if self.is_any_lost() {
                if !self.take_places()? {
                    return Ok(self.unflushed("too few nodes are left"));
                }
                self.end_epoch();
            }
            if self
                .coordinators
                .as_mut()
                .is_none_or(|running| running.ended().is_some())
                && matches!(self.hold_epoch(false)?, Held::Failed)
            {
                return Ok(self.unflushed("the coordinators do not stay"));
            }
            let known = ending.filter(|(epoch, _)| *epoch == self.epoch);
            let since = match known {
                Some((_, since)) => since,
                None => {
                    let epoch = self.epoch;
                    self.tell_end()?;
                    let now = Instant::now();
                    ending = Some((epoch, now));
                    now
                }
            };
            let placed = self.placed();
            let lives: Vec<_> = placed
                .iter()
                .filter_map(|host| self.heart.members.life(host))
                .collect();
            let pending = lives
                .iter()
                .map(|life| life.beat.pending)
                .max()
                .unwrap_or(0);
            let heard = lives.len() == placed.len() && lives.iter().all(|life| life.heard > since);
            if heard && pending == 0 {
                let took = begun.elapsed().as_secs_f64();
                self.report
                    .stage(&format!("everything is flushed, after {took:.2} s"));
                self.stop = self.stop.or(asked);
                let lost = lives.iter().find_map(|life| life.beat.lost.clone());
                if let Some(name) = &lost {
                    self.report.stage(&format!(
                        "{name} is lost: more nodes went than its redundancy tolerates, before the \
                         prefix had it"
                    ));
                }
                return Ok(Life {
                    code: if lost.is_some() { FAILED } else { 0 },
                    finished: true,
                    succeeded: false,
                });
            }
            if self.stop.is_some() {
                return Ok(self.unflushed("stopped"));
            }
            if begun.elapsed() >= patience {
                return Ok(self.unflushed("--flush-timeout is over"));
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                self.report
                    .say(&format!("flushing: {pending} datasets are not safe yet"));
            }
        }
    }

    /// Tells the coordinators, through one node, that the job ends: the latest checkpoint goes to the
    /// prefix, too. Given up when they go; the next ones are told again.
    fn tell_end(&mut self) -> Result<()> {
        let Some(host) = self.placed().into_iter().next() else {
            return Ok(());
        };
        let mut words = vec![self.programs.scrfs.display().to_string()];
        words.extend(["flush", "--at-end", "--mount"].map(str::to_owned));
        words.extend(self.mount_options.first().cloned());
        let command = args::remote_line(&self.environment, &self.args.mount, &words);
        let mut fleet = Fleet::new(&self.shell, "end", vec![(host, command)]);
        while !fleet.is_done() {
            self.turn()?;
            for ended in fleet.poll() {
                if let Err(why) = ended.result {
                    self.report
                        .say(&format!("the coordinators do not know of the end: {why}"));
                }
            }
            let running = self.coordinators.as_mut();
            let gone = running.is_none_or(|running| running.ended().is_some());
            if gone || self.is_any_lost() || self.stop.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn unflushed(&mut self, why: &str) -> Life {
        self.report
            .stage(&format!("not everything is flushed: {why}"));
        Life {
            code: FAILED,
            finished: false,
            succeeded: false,
        }
    }

    /// When the coordinators could not flush all there is, the caches are looked at without them. Not when
    /// somebody wants us to end.
    fn scavenge(&mut self, life: &mut Life) {
        if life.finished || self.stop.is_some() || self.report.launches() == 0 {
            return;
        }
        let members = &self.heart.members;
        let left = self.all.iter().filter(|host| !members.is_down(host));
        let left: Vec<String> = left.cloned().collect();
        if left.is_empty() {
            return;
        }
        self.report
            .stage(&format!("what {} nodes have left is scavenged", left.len()));
        match self.scavenged(left) {
            Ok(outcome) => {
                let lines = outcome.lines();
                self.event(JobWhat::Scavenged, |event| {
                    event.detail = Some(lines.join("; "))
                });
                for line in lines {
                    self.report.stage(&line);
                }
                if outcome.is_all_safe() && life.succeeded {
                    life.code = 0;
                }
            }
            Err(error) => self.report.stage(&format!(
                "not scavenged: {error:#}; `scrfs scavenge` does it again while the nodes are there"
            )),
        }
    }

    /// Removes what flushes that nobody will end have left in the prefix, now that nothing of ours writes
    /// there any more.
    fn tidy(&mut self, prefix: &Path) {
        let job = job_in_prefix(&self.job, Some(self.mark));
        let (target, last) = (Target::at(prefix).of_job(&job), self.epoch);
        let (sender, tidied) = sync_channel(1);
        let spawned = std::thread::Builder::new()
            .name("tidy".into())
            .spawn(move || sender.send(target.end_job(last)));
        let begun = Instant::now();
        let left = loop {
            let why = match (&spawned, tidied.try_recv()) {
                (Err(error), _) => error.to_string(),
                (_, Ok(Ok(()))) => return,
                (_, Ok(Err(error))) => chain(&error),
                (_, Err(_)) if begun.elapsed() >= TIDY_PATIENCE => {
                    "the prefix does not answer".to_owned()
                }
                (_, Err(_)) => match self.turn() {
                    Ok(()) => continue,
                    Err(error) => format!("{error:#}"),
                },
            };
            break why;
        };
        self.report.say(&format!(
            "what flushes that were cut off have left in the prefix stays: {left}"
        ));
    }

    fn scavenged(&mut self, hosts: Vec<String>) -> Result<Outcome> {
        let shell = Shell {
            patience: Duration::from_secs(self.args.flush_timeout),
            ..self.shell.clone()
        };
        let args = self.args;
        let crew = Crew::with(shell, &args.mount, hosts, args.keep_mounted)?;
        // The report is ours, and we are busy.
        let say = |words: &str| eprintln!("scrfs run: {words}");
        after_run(crew, &args.mount, &say, &mut || {
            self.turn()?;
            ensure!(self.stop.is_none(), "stopped");
            Ok(())
        })
    }

    /// Leaves nothing running of what we have started, and everything else to who has the run now.
    fn stop_ours(&mut self) {
        self.end_epoch();
        child::kill_orphans(&[]);
    }

    /// Unmounts, and leaves nothing running.
    fn end(&mut self, finished: bool) -> Result<()> {
        if self.args.keep_mounted {
            self.end_epoch();
        } else {
            self.unmount(finished)?;
            self.report.say("unmounted");
            let begun = Instant::now();
            while finished
                && self
                    .coordinators
                    .as_mut()
                    .is_some_and(|running| running.ended().is_none())
                && begun.elapsed() < LAUNCHER_PATIENCE
            {
                self.turn()?;
            }
            self.end_epoch();
            self.report.stage("all is taken down");
        }
        child::kill_orphans(&[]);
        Ok(())
    }
}
