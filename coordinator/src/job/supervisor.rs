//! What the supervisor holds, and the one place where it waits.
//!
//! [`Supervisor::turn`] is the heart of every waiting loop: it waits a moment for a heartbeat or a signal,
//! takes what came, and notices deaths. So whatever the supervisor waits for, nodes are watched and signals
//! are heard. Nothing else in here blocks.

use super::args::{self, RunArgs};
use super::child;
use super::epoch::Coordinators;
use super::heart::{self, Heart};
use super::placement::Placement;
use super::remote::{Fleet, Shell};
use super::report::Report;
use super::words;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use scrfs::id::Epoch;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time between two looks at children and conditions.
const TURN_MS: u16 = 20;
/// From a daemon's start to its first beat.
const BEAT_PATIENCE: Duration = Duration::from_secs(10);
/// For the survivors to be heard after something ended.
const SIGN_PATIENCE: Duration = Duration::from_secs(10);

/// The programs of this installation, at the same place on all nodes.
#[derive(Debug)]
pub(super) struct Programs {
    /// `scrfs`
    pub(super) scrfs: PathBuf,
    /// This one.
    pub(super) coordinator: PathBuf,
}

/// One `scrfs run`.
pub(super) struct Supervisor<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) programs: Programs,
    /// Options of `scrfs mount` that all nodes share, the mount point first.
    pub(super) mount_options: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) heart: Heart,
    pub(super) placement: Placement,
    pub(super) shell: Shell,
    /// The newest epoch begun by us.
    pub(super) epoch: Epoch,
    pub(super) coordinators: Option<Coordinators>,
    pub(super) report: Report,
    /// Distinguishes this run's launches from all others on the nodes.
    pub(super) mark: u64,
    /// What is left of a launch is being ended.
    pub(super) reaping: Option<Fleet>,
    /// We were asked to end.
    pub(super) stop: Option<Signal>,
    /// Signals the application has not got yet.
    pub(super) pass_on: Vec<Signal>,
    /// Daemons end because we want it.
    pub(super) unmounting: bool,
    signals: SignalFd,
    starting: Option<Starting>,
}

struct Starting {
    fleet: Fleet,
    /// Mounted, but not heard yet, and until when.
    unheard: BTreeMap<String, Instant>,
}

impl<'a> Supervisor<'a> {
    /// Binds the heartbeat socket; nothing is started yet. `logs` is where children's output goes.
    pub(super) fn new(args: &'a RunArgs, logs: PathBuf) -> Result<Self> {
        let hosts = args.hosts()?;
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let heart = Heart::new(args.listen_address()?, &names, args.dead_after()?)
            .context("cannot listen for heartbeats; --listen ADDR names another address")?;
        child::adopt_orphans().context("cannot adopt orphans")?;
        let signals = signals().context("cannot take signals")?;
        let shell = Shell {
            words: words::split(&args.rsh).context("--rsh")?,
            logs,
            patience: Duration::from_secs(args.start_timeout),
        };
        let needed = hosts.len() - args.spares;
        Ok(Self {
            args,
            programs: Programs::find()?,
            mount_options: args.mount_options()?,
            environment: args::environment(),
            heart,
            placement: Placement::new(hosts, needed),
            shell,
            epoch: Epoch(0),
            coordinators: None,
            report: Report::new(),
            mark: heart::random().context("no random numbers")?,
            reaping: None,
            stop: None,
            pass_on: Vec::new(),
            unmounting: false,
            signals,
            starting: None,
        })
    }

    /// Waits a moment for something to happen, and takes it in.
    pub(super) fn turn(&mut self) -> Result<()> {
        let mut fds = [
            PollFd::new(self.heart.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(TURN_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait"),
        }
        self.take_signals()?;
        // While they end because we want it, silence means nothing.
        let deaths = if self.unmounting {
            self.heart.listen().map(|()| Vec::new())
        } else {
            self.heart.watch()
        };
        for death in deaths.context("the heartbeat socket failed")? {
            let words = format!(
                "{} is lost: no heartbeat for {:.2} s",
                death.node,
                death.silence.as_secs_f64()
            );
            self.report.stage(&words);
        }
        self.turn_starting();
        self.turn_reaping();
        Ok(())
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(info) = self.signals.read_signal().context("cannot read signals")? {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            let Ok(signal) = Signal::try_from(number) else {
                continue;
            };
            // A child ended: reason enough to look around.
            if signal == Signal::SIGCHLD {
                continue;
            }
            self.report.say(&format!("{signal}: no further launch"));
            self.stop = Some(signal);
            // One from the terminal has gone to the application as well, which is in our group.
            if info.ssi_code != libc::SI_KERNEL {
                self.pass_on.push(signal);
            }
        }
        Ok(())
    }

    /// Processes of ours that go on when a launch has ended.
    pub(super) fn children(&self) -> Vec<u32> {
        let coordinators = self.coordinators.iter().map(Coordinators::pid);
        let starting = self
            .starting
            .iter()
            .flat_map(|starting| starting.fleet.pids());
        let reaping = self.reaping.iter().flat_map(Fleet::pids);
        coordinators.chain(starting).chain(reaping).collect()
    }

    /// Names of the hosts with a position, in order.
    pub(super) fn placed(&self) -> Vec<String> {
        self.placement
            .hosts()
            .into_iter()
            .map(|host| host.name)
            .collect()
    }

    /// Whether a host with a position is lost.
    pub(super) fn is_any_lost(&self) -> bool {
        self.placed()
            .iter()
            .any(|host| self.heart.members.is_down(host))
    }

    /// Waits until every host with a position has shown that it lives, or is known to be lost. What a
    /// launcher's end has to do with a node's can be told only then.
    pub(super) fn await_signs(&mut self) -> Result<()> {
        let since = Instant::now();
        let placed = self.placed();
        while since.elapsed() < SIGN_PATIENCE {
            self.turn()?;
            if self
                .heart
                .members
                .heard_since(placed.iter().map(String::as_str), since)
            {
                break;
            }
        }
        Ok(())
    }

    /// Starts the daemons, everywhere at once. Returns when each host without which the job cannot
    /// start as asked is up or down; spares may still be on their way.
    pub(super) fn start_daemons(&mut self, hosts: &[String]) -> Result<()> {
        let commands: Vec<_> = hosts
            .iter()
            .map(|host| (host.clone(), self.mount_command(host)))
            .collect();
        for host in hosts {
            self.heart.members.expect(host);
        }
        self.report.stage(&format!(
            "mounting {} on {} hosts; heartbeats come to {}",
            self.args.mountpoint.display(),
            hosts.len(),
            self.heart.address()
        ));
        let fleet = Fleet::new(&self.shell, "mount", commands);
        self.starting = Some(Starting {
            fleet,
            unheard: BTreeMap::new(),
        });
        let placed = self.placed();
        let begun = Instant::now();
        while self.stop.is_none()
            && placed.iter().any(|host| {
                self.heart.members.life(host).is_none() && !self.heart.members.is_down(host)
            })
        {
            self.turn()?;
        }
        let up = self.heart.members.lives().count();
        let took = begun.elapsed().as_secs_f64();
        self.report.stage(&format!(
            "{up} of {} hosts are up after {took:.2} s",
            hosts.len()
        ));
        Ok(())
    }

    fn mount_command(&self, host: &str) -> String {
        let mut words = vec!["env".to_owned()];
        words.extend(
            self.environment
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        let mut directory = String::new();
        // The prefix is this directory when nobody says otherwise.
        if self.args.prefix.is_none()
            && let Ok(here) = std::env::current_dir()
        {
            let here = here.display().to_string();
            directory = format!("cd {} && ", words::quote(&here));
            words.push(format!("PWD={here}"));
        }
        words.push(self.programs.scrfs.display().to_string());
        words.push("mount".into());
        words.extend(self.mount_options.iter().cloned());
        words.extend(["--node".into(), host.to_owned()]);
        words.extend(["--supervisor".into(), self.heart.address().to_string()]);
        words.extend(["--token".into(), self.heart.token().to_string()]);
        directory + &words::join(words.iter().map(String::as_str))
    }

    fn turn_starting(&mut self) {
        let Some(starting) = &mut self.starting else {
            return;
        };
        let members = &mut self.heart.members;
        for ended in starting.fleet.poll() {
            match ended.result {
                Ok(()) => {
                    starting
                        .unheard
                        .insert(ended.host, Instant::now() + BEAT_PATIENCE);
                }
                Err(why) => {
                    self.report
                        .stage(&format!("{} cannot be used: {why}", ended.host));
                    members.give_up(&ended.host, why);
                }
            }
        }
        let now = Instant::now();
        let address = self.heart.address();
        let members = &mut self.heart.members;
        starting.unheard.retain(|host, until| {
            if members.life(host).is_some() {
                return false;
            }
            if now < *until {
                return true;
            }
            let why = format!(
                "it is mounted, but no heartbeat comes from it to {address}; is there a firewall? \
                 --listen ADDR names another address"
            );
            self.report.stage(&format!("{host} cannot be used: {why}"));
            members.give_up(host, why);
            false
        });
        if starting.fleet.is_done() && starting.unheard.is_empty() {
            self.starting = None;
        }
    }

    /// Puts spares in the places of lost hosts. `false`: too few are left.
    pub(super) fn take_places(&mut self) -> Result<bool> {
        // A spare that is still on its way may yet be needed.
        while self.starting.is_some() && self.is_any_lost() && self.stop.is_none() {
            self.turn()?;
        }
        let wanted = self.placed().len();
        let members = &self.heart.members;
        let changes = self.placement.replace(|host| members.is_down(host));
        for change in changes {
            self.report.stage(&match change.spare {
                Some(spare) => format!("spare {spare} takes the place of {}", change.lost),
                None => format!(
                    "nobody takes the place of {}: no spare is left",
                    change.lost
                ),
            });
        }
        let count = self.placed().len();
        let min = self.args.min_nodes.unwrap_or(wanted).max(1);
        if count < min {
            self.report.stage(&format!(
                "{count} nodes are left, and at least {min} are needed"
            ));
            return Ok(false);
        }
        Ok(true)
    }

    /// Begins to end what is left of a launch on the hosts that live.
    pub(super) fn reap(&mut self, launch: &str) {
        let words = [
            &*self.programs.coordinator.to_string_lossy(),
            "reap",
            launch,
        ];
        let command = words::join(words);
        let members = &self.heart.members;
        let hosts = self
            .placed()
            .into_iter()
            .filter(|host| members.life(host).is_some());
        let commands: Vec<_> = hosts.map(|host| (host, command.clone())).collect();
        self.reaping = Some(Fleet::new(&self.shell, "reap", commands));
    }

    fn turn_reaping(&mut self) {
        let Some(fleet) = &mut self.reaping else {
            return;
        };
        for ended in fleet.poll() {
            if let Err(why) = ended.result {
                let words = format!("processes may be left on {}: {why}", ended.host);
                self.report.say(&words);
            }
        }
        if fleet.is_done() {
            self.reaping = None;
        }
    }

    /// Unmounts all hosts that live. `finish`: coordinators end by themselves, with nothing undone.
    pub(super) fn unmount(&mut self, finish: bool) -> Result<()> {
        self.unmounting = true;
        self.starting = None;
        let mut words = vec![
            self.programs.scrfs.display().to_string(),
            "unmount".to_owned(),
            self.mount_options[0].clone(),
        ];
        if !finish {
            words.push("--now".into());
        }
        let command = words::join(words.iter().map(String::as_str));
        let hosts: Vec<String> = self
            .heart
            .members
            .lives()
            .map(|life| life.beat.node.clone())
            .collect();
        let commands = hosts.into_iter().map(|host| (host, command.clone()));
        let mut fleet = Fleet::new(&self.shell, "unmount", commands);
        while !fleet.is_done() {
            self.turn()?;
            for ended in fleet.poll() {
                if let Err(why) = ended.result {
                    self.report
                        .say(&format!("{} stays mounted: {why}", ended.host));
                }
            }
        }
        Ok(())
    }
}

impl Programs {
    fn find() -> Result<Self> {
        let coordinator = std::env::current_exe().context("where is this program?")?;
        let scrfs = coordinator.with_file_name("scrfs");
        ensure!(
            scrfs.is_file(),
            "{} is missing beside this program",
            scrfs.display()
        );
        Ok(Self { scrfs, coordinator })
    }
}

fn signals() -> Result<SignalFd, Errno> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
