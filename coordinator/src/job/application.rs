//! The application: launched on the hosts that hold a position, watched until it ends, ended if need be.
//!
//! Invariant: when [`Supervisor::watch`] returns, the launcher has ended and was waited for; what it started
//! on other hosts is reaped by who called.

use super::child;
use super::epoch::{Coordinators, Held, Restart};
use super::launcher::{self, Asking, Target};
use super::remote::Fleet;
use super::supervisor::Supervisor;
use super::tally::Cause;
use super::watchdog::{Act, Ending, Sign, Watchdog, Why};
use super::words;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use scrfs::event::JobWhat;
use scrfs::halt::Kind;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Exit codes of launchers that could not start the application, or broke by themselves: not there, not to
/// be executed, and Open MPI's for a helper that was lost.
const LAUNCHER_CODES: [i32; 3] = [126, 127, 205];
/// The first two as we give them ourselves.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

pub(super) struct Application {
    /// The launcher, or why it could not be started.
    child: Result<Child, NotStarted>,
    /// What its processes are known by.
    pub(super) launch: String,
}

/// A launcher that is not there, or may not be executed.
#[derive(Clone, Debug)]
pub(super) struct NotStarted {
    program: String,
    why: String,
    /// As a shell gives it.
    pub(super) code: u8,
}

/// How a launch ended.
pub(super) enum End {
    /// Before it began.
    NotStarted(NotStarted),
    /// By itself.
    Exit(ExitStatus),
    /// Because we ended it, and how that went where it went when it was asked to.
    Unwanted(Why, Option<ExitStatus>),
    /// A node was lost, and the application was killed.
    Lost,
    /// There is no epoch to be had any more, and the application was killed.
    NoEpoch,
}

impl Supervisor<'_> {
    /// Launches it; `None` when we are asked to end before it has begun.
    pub(super) fn launch(&mut self, restart: Option<&Restart>) -> Result<Option<Application>> {
        let is_at_mount = |path: &Path| path.starts_with(&self.args.mount.mountpoint);
        self.report.stage(&match restart {
            Some(Restart { name, path }) if is_at_mount(path) => {
                format!("recovered: restart from {name}")
            }
            Some(Restart { path, .. }) => format!("restart in place, from {}", path.display()),
            None => "nothing to restart from".to_owned(),
        });
        let number = self.report.count_launch(self.newest_checkpoint());
        let epoch = self.epoch.0;
        self.event(JobWhat::Launched, |event| {
            event.launch = Some(number);
            event.epoch = Some(epoch);
            event.detail = restart.map(|it| format!("from {}", it.name));
        });
        let launch = format!("{:016x}.{number}", self.mark);
        // It counts before it begins.
        self.keep()?;
        if self.stop.is_some() {
            return Ok(None);
        }
        let hosts = self.placement.hosts();
        let hostfile = self.shell.logs.join(format!("hosts.{number}"));
        std::fs::write(&hostfile, launcher::hostfile(&hosts))
            .with_context(|| format!("cannot write {}", hostfile.display()))?;
        let command = match (restart, self.args.restart_command()?) {
            (Some(_), Some(command)) => command,
            _ => self.args.launcher.clone(),
        };
        let is_placed = |name: &String| hosts.iter().any(|host| host.name == *name);
        let others: Vec<String> = self
            .all
            .iter()
            .chain(&self.excluded)
            .filter(|name| !is_placed(name))
            .cloned()
            .collect();
        let agent = self.shell.agent();
        let target = Target {
            hosts: &hosts,
            others: &others,
            hostfile: &hostfile,
            restart: restart.map(|it| it.path.as_path()),
            rsh: &words::join(self.shell.words.iter().map(String::as_str)),
            agent: agent.as_deref(),
            launch: &launch,
            this: &self.programs.coordinator,
        };
        let asking = Asking {
            version: version_of,
            is_program,
        };
        let words = launcher::adapt(&command, &target, asking);
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
        let child = child::spawn(&mut command).map_err(|error| NotStarted {
            program: program.clone(),
            code: match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            },
            why: error.to_string(),
        });
        Ok(Some(Application { child, launch }))
    }

    /// Watches the application until it ends, by itself or by us.
    pub(super) fn watch(&mut self, application: &mut Application) -> Result<End> {
        let child = match &mut application.child {
            Ok(child) => child,
            Err(not_started) => return Ok(End::NotStarted(not_started.clone())),
        };
        let (patience, patience_flush) = self.args.hang_patience();
        let mut dog = Watchdog::new(patience, patience_flush, Instant::now());
        let mut ending: Option<Ending> = None;
        // The newest checkpoint when the wish to halt was first seen.
        let mut halting = None;
        loop {
            self.turn()?;
            let checkpoint = self.newest_checkpoint();
            self.report.see_checkpoint(checkpoint);
            for signal in std::mem::take(&mut self.pass_on) {
                child::signal(child, signal);
            }
            if let Some(status) = child.try_wait().context("cannot wait")? {
                // Launchers notice dead nodes too, and may be faster than we are; and the last checkpoint may
                // not have been told of yet.
                self.await_signs()?;
                self.report.see_checkpoint(self.newest_checkpoint());
                if self.is_any_lost() && !status.success() {
                    self.report.say("the application ended with the node");
                    self.end_epoch();
                    return Ok(End::Lost);
                }
                return Ok(match ending {
                    Some(ending) if !status.success() => End::Unwanted(ending.why, Some(status)),
                    _ => End::Exit(status),
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
                child::kill_child(child);
                self.report.say("coordinators and application are killed");
                return Ok(end);
            }
            let halt = self.halts();
            if halt.is_none() {
                halting = None;
            }
            let silence = dog.look(Instant::now(), self.signs());
            let kill_after = Duration::from_secs(self.args.kill_after);
            if ending.is_none()
                && let Some(halt) = halt
            {
                let begun = *halting.get_or_insert(checkpoint);
                let chance = self.args.halt_exit && checkpoint > begun;
                if halt.kind == Some(Kind::Now) || chance {
                    self.report.stage("the application is asked to end");
                    ending = Some(Ending::new(Why::Halted, kill_after));
                }
            }
            if ending.is_none()
                && let Some(silence) = silence
            {
                self.silence = silence;
                self.report.stage(&format!(
                    "nothing has moved for {} s: saving where processes stand, then ending them",
                    silence.as_secs()
                ));
                ending = Some(Ending::new(Why::Hung, kill_after));
            }
            let saved = self.saving.is_none();
            let act = ending
                .as_mut()
                .and_then(|ending| ending.next(Instant::now(), saved));
            match act {
                None => {}
                Some(Act::Save) => self.save_stacks(&application.launch),
                Some(Act::Ask) => child::signal(child, Signal::SIGTERM),
                Some(Act::Kill) => {
                    child::kill_child(child);
                    self.report
                        .say("the application did not end when asked, and is killed");
                    let why = ending.map_or(Why::Halted, |ending| ending.why);
                    return Ok(End::Unwanted(why, None));
                }
            }
        }
    }

    /// How a launch ended, for people.
    pub(super) fn cause(&self, end: &End) -> Cause {
        let halted = self.halts().map(|halt| halt.why);
        match end {
            End::NotStarted(NotStarted { program, why, .. }) => {
                Cause::Launcher(format!("cannot run {program}: {why}"))
            }
            End::Exit(status) if status.success() => match halted {
                Some(why) => Cause::Halted(why),
                None => Cause::Finished,
            },
            End::Exit(status) => {
                let how = child::describe(*status);
                match status.code() {
                    Some(code) if LAUNCHER_CODES.contains(&code) => Cause::Launcher(how),
                    _ => Cause::Failed(how),
                }
            }
            End::Unwanted(Why::Hung, _) => Cause::Hung(self.silence),
            End::Unwanted(Why::Halted, _) => Cause::Halted(halted.unwrap_or_default()),
            End::Lost => {
                let placed = self.placed();
                let down = self.heart.members.down();
                let lost = down.filter(|(node, _)| placed.iter().any(|placed| placed == node));
                let words: Vec<String> = lost.map(|(node, why)| format!("{node}: {why}")).collect();
                Cause::NodeLost(words.join(", "))
            }
            End::NoEpoch => Cause::NoEpoch,
        }
    }

    fn signs(&self) -> Vec<Sign<'_>> {
        let lives = self.heart.members.lives();
        lives
            .map(|life| Sign {
                node: &life.beat.node,
                activity: life.beat.activity,
                flushing: life.beat.flushing,
            })
            .collect()
    }

    /// Begins to save where the processes of a launch stand, on all its hosts.
    fn save_stacks(&mut self, launch: &str) {
        self.keep_logs = true;
        let this = self.programs.coordinator.to_string_lossy();
        let line = words::join([&*this, "stacks", launch]);
        let commands = self.placed().into_iter().map(|host| (host, line.clone()));
        self.saving = Some(Fleet::new(&self.shell, "stacks", commands));
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
}

/// Whether a shell would run it.
fn is_program(word: &str) -> bool {
    let may_be_run = |path: &Path| {
        path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
    };
    if word.contains('/') {
        return may_be_run(Path::new(word));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    !word.is_empty() && std::env::split_paths(&path).any(|dir| may_be_run(&dir.join(word)))
}

fn version_of(program: &str) -> String {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let bytes = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
