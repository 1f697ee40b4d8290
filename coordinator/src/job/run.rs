//! The life of a job: mount, recover, launch, watch, and all of it again when a node is lost.
//!
//! ```text
//! start daemons -> take places -> epoch, recovery -> launch -> watch -> flush -> unmount
//!                      ^                                         |
//!                      +----- node lost, or run failed ----------+   at most --runs launches
//! ```
//!
//! Invariants: the application runs only on an epoch that was recovered on all its nodes; a lost node does
//! not come back in the same job; nothing of an old launch runs when the next one begins.

use super::args::RunArgs;
use super::child;
use super::epoch::{Coordinators, Held};
use super::launcher::{self, Target};
use super::supervisor::Supervisor;
use super::words;
use anyhow::{Context, Result};
use scrfs::name::Name;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// It failed.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// Between two words about flushes that are under way.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// For the coordinators' launcher to end when they have.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(5);

/// Runs a job to its end and gives the exit code: the application's, where it ended.
pub fn run(args: &RunArgs) -> u8 {
    let checked = args
        .hosts()
        .and_then(|_| args.launches_max())
        .and_then(|_| args.restart_command())
        .and_then(|_| args.listen_address())
        .and_then(|_| args.dead_after());
    if let Err(error) = checked {
        eprintln!("scrfs run: {error:#}");
        return USAGE;
    }
    match supervise(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scrfs run: {error:#}");
            FAILED
        }
    }
}

fn supervise(args: &RunArgs) -> Result<u8> {
    let temporary = std::env::temp_dir().join(format!("scrfs-run.{}", std::process::id()));
    let logs = args.log_dir.clone().unwrap_or(temporary);
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let mut supervisor = Supervisor::new(args, logs.clone())?;
    let lived = supervisor.live();
    let ended = supervisor.end(lived.as_ref().is_ok_and(|life| life.finished));
    supervisor.report.finish(supervisor.heart.members.down());
    let life = lived?;
    ended?;
    if life.code == 0 && args.log_dir.is_none() {
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
}

struct Application {
    child: Child,
    /// Its mark on the nodes.
    launch: String,
}

enum End {
    /// By itself.
    Exit(ExitStatus),
    /// A node was lost, and the application was killed.
    Lost,
    /// There is no epoch to be had any more, and the application was killed.
    NoEpoch,
}

impl Supervisor<'_> {
    fn live(&mut self) -> Result<Life> {
        let hosts = self.args.hosts()?;
        let names: Vec<String> = hosts.into_iter().map(|host| host.name).collect();
        let launches_max = self.args.launches_max()?;
        self.start_daemons(&names)?;
        let failed = |code| {
            Ok(Life {
                code,
                finished: false,
            })
        };
        loop {
            if let Some(signal) = self.stop {
                return failed(128 + signal as u8);
            }
            if !self.take_places()? {
                return failed(FAILED);
            }
            let restart = match self.hold_epoch(true)? {
                Held::Ready(restart) => restart,
                Held::Lost | Held::Stopped => continue,
                Held::Failed => return failed(FAILED),
            };
            while self.reaping.is_some() {
                self.turn()?;
            }
            if self.is_any_lost() || self.stop.is_some() {
                continue;
            }
            let mut application = self.launch(restart.as_ref())?;
            let end = self.watch(&mut application)?;
            let code = match end {
                End::Exit(status) if status.success() => {
                    self.report.stage("the application has finished");
                    return self.flush();
                }
                End::Exit(status) => {
                    let how = child::describe(status);
                    self.report.stage(&format!("the application failed: {how}"));
                    child::exit_code(status)
                }
                End::Lost => FAILED,
                End::NoEpoch => return failed(FAILED),
            };
            child::kill_orphans(&self.children());
            if self.stop.is_some() || self.report.launches() >= launches_max {
                if self.stop.is_none() {
                    self.report.stage(&format!(
                        "{} of {launches_max} launches are used up; --runs N allows more",
                        self.report.launches()
                    ));
                }
                // What was committed is worth keeping, whatever became of the application.
                if !self.is_any_lost() {
                    let flushed = self.flush()?;
                    return Ok(Life {
                        code,
                        finished: flushed.finished,
                    });
                }
                return failed(code);
            }
            self.reap(&application.launch);
        }
    }

    fn launch(&mut self, restart: Option<&Name>) -> Result<Application> {
        let path = restart.map(|name| self.args.mountpoint.join(name.as_os_str()));
        self.report.stage(&match restart {
            Some(name) => format!("recovered: restart from {name}"),
            None => "nothing to restart from".to_owned(),
        });
        let number = self.report.count_launch();
        let launch = format!("{:016x}.{number}", self.mark);
        let hosts = self.placement.hosts();
        let hostfile = self.shell.logs.join(format!("hosts.{number}"));
        std::fs::write(&hostfile, launcher::hostfile(&hosts))
            .with_context(|| format!("cannot write {}", hostfile.display()))?;
        let command = match (restart, self.args.restart_command()?) {
            (Some(_), Some(command)) => command,
            _ => self.args.launcher.clone(),
        };
        let target = Target {
            hosts: &hosts,
            hostfile: &hostfile,
            restart: path.as_deref(),
            rsh: &self.args.rsh,
            launch: &launch,
        };
        let words = launcher::adapt(&command, &target, version_of);
        let (program, arguments) = words.split_first().context("nothing to launch")?;
        self.report.stage(&format!(
            "launch {number} on {}: {}",
            launcher::host_names(&hosts),
            words::join(words.iter().map(String::as_str))
        ));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env(launcher::LAUNCH_VARIABLE, &launch);
        let child = child::spawn(&mut command).with_context(|| format!("cannot run {program}"))?;
        Ok(Application { child, launch })
    }

    /// Watches the application until it ends, by itself or by us.
    fn watch(&mut self, application: &mut Application) -> Result<End> {
        loop {
            self.turn()?;
            for signal in std::mem::take(&mut self.pass_on) {
                child::signal(&mut application.child, signal);
            }
            if let Some(status) = application.child.try_wait().context("cannot wait")? {
                // Launchers notice dead nodes too, and may be faster than we are.
                if !status.success() {
                    self.await_signs()?;
                }
                return Ok(if self.is_any_lost() && !status.success() {
                    self.report.say("the application ended with the node");
                    self.end_epoch();
                    End::Lost
                } else {
                    End::Exit(status)
                });
            }
            let end = if self.is_any_lost() {
                Some(End::Lost)
            } else if self.has_epoch_ended()? {
                self.renew_epoch()?
            } else {
                None
            };
            if let Some(end) = end {
                // In this order: nothing of the epoch may answer a program any more.
                self.end_epoch();
                child::kill_child(&mut application.child);
                self.report.say("coordinators and application are killed");
                return Ok(end);
            }
        }
    }

    fn has_epoch_ended(&mut self) -> Result<bool> {
        let Some(status) = self.coordinators.as_mut().and_then(Coordinators::ended) else {
            return Ok(false);
        };
        let words = format!("{} has ended: {}", self.epoch, child::describe(status));
        self.report.stage(&words);
        self.await_signs()?;
        Ok(true)
    }

    /// A new epoch for an application that goes on; or the reason why it cannot.
    fn renew_epoch(&mut self) -> Result<Option<End>> {
        if self.is_any_lost() {
            return Ok(Some(End::Lost));
        }
        Ok(match self.hold_epoch(false)? {
            Held::Ready(_) | Held::Stopped => None,
            Held::Lost => Some(End::Lost),
            Held::Failed => Some(End::NoEpoch),
        })
    }

    /// Waits until all that is committed is as safe as the configuration wants it.
    fn flush(&mut self) -> Result<Life> {
        let begun = Instant::now();
        let patience = Duration::from_secs(self.args.flush_timeout);
        let asked = self.stop.take();
        let mut told = begun;
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
            let heard = lives.len() == placed.len() && lives.iter().all(|life| life.heard > begun);
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

    fn unflushed(&mut self, why: &str) -> Life {
        self.report
            .stage(&format!("not everything is flushed: {why}"));
        Life {
            code: FAILED,
            finished: false,
        }
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

fn version_of(program: &str) -> String {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let bytes = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
