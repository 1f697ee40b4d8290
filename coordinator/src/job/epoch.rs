//! Beginning and ending epochs: coordinators, one a node, under an MPI launcher of their own.
//!
//! Invariants: a new epoch begins only when no living node that takes part reports an older one any
//! more, or that took too long; its number is above every number any living node has seen; the
//! launcher of an old one is dead by SIGKILL, because after a loss of power it would never end
//! otherwise.

use super::child;
use super::launcher::{LAUNCH_VARIABLE, MARK_OPTION, host_names, open_mpi_agent};
use super::remote::last_lines;
use super::supervisor::{Supervisor, milliseconds};
use super::words;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use scrfs::event::JobWhat;
use scrfs::id::Epoch;
use scrfs::name::Name;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Epochs that may fail one after the other, with no node lost.
const ATTEMPTS: u32 = 4;
/// For daemons to see their old coordinators dead.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// From the launch until every coordinator is connected; what comes after depends on the data.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Lines shown of what a failed epoch said.
const LINES_SHOWN: usize = 12;

/// The launcher of an epoch's coordinators.
pub(super) struct Coordinators {
    child: Child,
    log: PathBuf,
}

impl Coordinators {
    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn kill(&mut self) {
        // Its group first, while it is not reaped and the number therefore nobody else's.
        if self.ended().is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        child::kill_child(&mut self.child);
    }
}

/// What a restart should read.
pub(super) struct Restart {
    pub(super) name: Name,
    /// At the mount, or in the prefix.
    pub(super) path: PathBuf,
}

/// How the wish for an epoch ended.
pub(super) enum Held {
    /// Recovered; what a restart should read.
    Ready(Option<Restart>),
    /// A node with a position is lost.
    Lost,
    /// It does not work, and no node is lost.
    Failed,
    /// We were asked to end.
    Stopped,
}

enum Attempt {
    Ready(Option<Restart>),
    Lost,
    Stopped,
    Failed(String),
}

impl Supervisor<'_> {
    /// Ends the epoch, by force.
    pub(super) fn end_epoch(&mut self) {
        self.heart.require(self.next_epoch());
        if let Some(mut coordinators) = self.coordinators.take() {
            coordinators.kill();
        }
    }

    /// Ends the epoch, also one of a supervisor before us, and waits until no node that lives reports it any more, or
    /// a moment.
    pub(super) fn fence(&mut self) -> Result<()> {
        self.end_epoch();
        let begun = Instant::now();
        while begun.elapsed() < END_PATIENCE {
            let lives = self.heart.members.lives();
            let names: Vec<&str> = lives.map(|life| life.beat.node.as_str()).collect();
            if !self.heart.members.holds_before(names, self.next_epoch()) {
                break;
            }
            self.turn()?;
        }
        Ok(())
    }

    fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.max(self.heart.members.epoch_last()).0 + 1)
    }

    /// Begins an epoch on the hosts with a position and waits until it is recovered. `new_run`: the
    /// application starts anew with it.
    pub(super) fn hold_epoch(&mut self, new_run: bool) -> Result<Held> {
        for attempt in 1..=ATTEMPTS {
            match self.attempt(new_run)? {
                Attempt::Ready(restart) => return Ok(Held::Ready(restart)),
                Attempt::Lost => return Ok(Held::Lost),
                Attempt::Stopped => return Ok(Held::Stopped),
                Attempt::Failed(why) => {
                    self.report.stage(&format!(
                        "{} failed ({why}), attempt {attempt} of {ATTEMPTS}",
                        self.epoch
                    ));
                    let epoch = self.epoch.0;
                    self.event(JobWhat::EpochFailed, |event| {
                        event.epoch = Some(epoch);
                        event.error = Some(why);
                    });
                    self.show_log();
                }
            }
        }
        Ok(Held::Failed)
    }

    fn show_log(&self) {
        if let Some(coordinators) = &self.coordinators {
            for line in last_lines(&coordinators.log, LINES_SHOWN) {
                self.report.say(&format!("  | {line}"));
            }
        }
    }

    fn attempt(&mut self, new_run: bool) -> Result<Attempt> {
        self.fence()?;
        let placed = self.placed();
        let names = || placed.iter().map(String::as_str);
        if self.is_any_lost() {
            return Ok(Attempt::Lost);
        }
        self.epoch = self.next_epoch();
        self.heart.require(self.epoch);
        // Before anything of it runs: nobody else uses its number, and nobody else has the run.
        self.report.count_epoch();
        self.keep()?;
        if self.stop.is_some() && new_run {
            return Ok(Attempt::Stopped);
        }
        self.coordinators = Some(self.launch_coordinators(new_run)?);
        self.report
            .say(&format!("{} begins on {}", self.epoch, placed.join(",")));
        let launched = Instant::now();
        let mut connected = None;
        loop {
            self.turn()?;
            if self.stop.is_some() && new_run {
                return Ok(Attempt::Stopped);
            }
            if self.is_any_lost() {
                return Ok(Attempt::Lost);
            }
            if self.heart.members.is_ready(names(), self.epoch) {
                let took = launched.elapsed().as_secs_f64();
                self.report
                    .stage(&format!("{} is ready after {took:.2} s", self.epoch));
                let epoch = self.epoch.0;
                self.event(JobWhat::EpochReady, |event| {
                    event.epoch = Some(epoch);
                    event.duration_ms = Some(milliseconds(launched.elapsed()));
                });
                return Ok(Attempt::Ready(self.restart_of(&placed)));
            }
            if connected.is_none() && self.is_connected(&placed) {
                connected = Some(Instant::now());
                let took = launched.elapsed().as_secs_f64();
                self.report
                    .say(&format!("all coordinators are connected after {took:.2} s"));
            }
            if let Some(status) = self.coordinators.as_mut().and_then(Coordinators::ended) {
                self.await_signs()?;
                if self.is_any_lost() {
                    return Ok(Attempt::Lost);
                }
                return Ok(Attempt::Failed(child::describe(status)));
            }
            let (since, patience, what) = match connected {
                None => (launched, CONNECT_PATIENCE, "not all coordinators came"),
                Some(since) => (
                    since,
                    Duration::from_secs(self.args.recovery_timeout),
                    "recovery has not ended",
                ),
            };
            if since.elapsed() >= patience {
                return Ok(Attempt::Failed(format!(
                    "{what} within {} s",
                    patience.as_secs()
                )));
            }
        }
    }

    fn is_connected(&self, placed: &[String]) -> bool {
        placed.iter().all(|host| {
            let life = self.heart.members.life(host);
            life.is_some_and(|life| life.beat.epoch == Some(self.epoch))
        })
    }

    fn restart_of(&self, placed: &[String]) -> Option<Restart> {
        let beat = &self.heart.members.life(placed.first()?)?.beat;
        let name = beat.restart.clone()?;
        let at_mount = || self.args.mount.mountpoint.join(name.as_os_str());
        let path = beat.restart_at.clone().unwrap_or_else(at_mount);
        Some(Restart { name, path })
    }

    fn launch_coordinators(&self, new_run: bool) -> Result<Coordinators> {
        let log = self.shell.logs.join(format!("epoch.{}.log", self.epoch.0));
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let launcher = words::split(&self.args.mpirun).context("--mpirun")?;
        let (program, options) = launcher.split_first().context("--mpirun is empty")?;
        let hosts = self.placement.hosts();
        let mut command = Command::new(program);
        command.args(options);
        // One rank a host, in the order of the positions: the rank is the slot.
        command.args(["-n", &hosts.len().to_string(), "--map-by", "node"]);
        command.args(["--host", &host_names(&hosts)]);
        // Bound, the only rank of each node would share one core with the application's first.
        command.args(["--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]);
        if let Some(agent) = self.shell.agent() {
            command.args(open_mpi_agent(&agent));
        }
        let is_domain_name = |name: &str| name.contains('.') && name.parse::<IpAddr>().is_err();
        if hosts.iter().any(|host| is_domain_name(&host.name)) {
            command.args(["--mca", "orte_keep_fqdn_hostnames", "1"]);
        }
        // What the site or the user has chosen wins.
        for (name, value) in [("pml", "ob1"), ("btl", "self,tcp")] {
            let is_chosen = std::env::var_os(format!("OMPI_MCA_{name}")).is_some()
                || options.iter().any(|option| option == name);
            if !is_chosen {
                command.args(["--mca", name, value]);
            }
        }
        for (name, _) in &self.environment {
            command.args(["-x", name]);
        }
        if nix::unistd::geteuid().is_root() {
            command
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
        // For a supervisor that goes on after us to find.
        let mark = format!("{:016x}.epoch.{}", self.mark, self.epoch.0);
        command.args(["--mca", MARK_OPTION, &mark]);
        command.env(LAUNCH_VARIABLE, mark);
        command
            .arg(&self.programs.scrfs)
            .arg("mount")
            .args(&self.mount_options);
        command.args(["--coordinate", "--epoch", &self.epoch.0.to_string()]);
        command.args(["--run", &self.mark.to_string()]);
        if new_run {
            command.arg("--new-run");
        }
        // A step of Slurm that lost a node holds what it had until Slurm has noticed.
        command.env("SLURM_OVERLAP", "1");
        command.process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = child::spawn(&mut command)
            .with_context(|| format!("cannot run {program}; --mpirun CMD names another"))?;
        Ok(Coordinators { child, log })
    }
}
