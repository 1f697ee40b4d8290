//! What the supervisor holds, and the one place where it waits.
//!
//! [`Supervisor::turn`] is the heart of every waiting loop: it waits a moment for a heartbeat or a signal,
//! takes what came, and notices deaths. So whatever the supervisor waits for, nodes are watched and signals
//! are heard. Nothing else in here blocks.

use super::args::{self, Hosts, RunArgs};
use super::checks::{self, Answer, Facts};
use super::child;
use super::epoch::Coordinators;
use super::heart::{self, Heart};
use super::nodes;
use super::outside::{News, Outside};
use super::placement::Placement;
use super::remote::{Fleet, Shell};
use super::report::Report;
use super::resource::parse::Down;
use super::resource::{Allocation, is_same};
use super::words;
use crate::journal::{Journal, Places};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use scrfs::config::is_object_url;
use scrfs::event::{JobEvent, JobWhat};
use scrfs::halt::{Conditions, Halt, Situation};
use scrfs::id::Epoch;
use scrfs::layout::path::PrefixPaths;
use scrfs::name::Name;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time between two looks at children and conditions.
const TURN_MS: u16 = 20;
/// From a daemon's start to its first beat.
const BEAT_PATIENCE: Duration = Duration::from_secs(10);
/// For prefix and resource manager to be asked once; one that hangs holds nothing up.
const OUTSIDE_PATIENCE: Duration = Duration::from_secs(2);
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
    /// All hosts of the job, in their order, spares last.
    pub(super) all: Vec<String>,
    /// Hosts of the allocation that the user does not want.
    pub(super) excluded: Vec<String>,
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
    /// What happens, for programs.
    pub(super) journal: Journal,
    /// What the configuration calls the job.
    pub(super) job: String,
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
    /// Too few nodes are left for the application: any number is enough to flush from.
    pub(super) salvaging: bool,
    /// Somebody may want to read them.
    pub(super) keep_logs: bool,
    /// Where processes stand is being saved.
    pub(super) saving: Option<Fleet>,
    /// Of a hang.
    pub(super) silence: Duration,
    signals: SignalFd,
    starting: Option<Starting>,
    checking: Option<Checking>,
    outside: Outside,
    conditions: Conditions,
    /// Prefix and resource manager were asked once.
    asked: bool,
    /// When the allocation ends.
    end: Option<Instant>,
    /// What the resource manager does not want used.
    unwanted: Vec<Down>,
    /// The batch system told us to halt.
    batch: Option<Signal>,
    /// What was said of it last.
    halt: Option<Halt>,
}

/// Probes that are under way.
struct Checking {
    fleet: Fleet,
    asked: u64,
    answers: BTreeMap<String, Answer>,
}

struct Starting {
    fleet: Fleet,
    /// Mounted, but not heard yet, and until when.
    unheard: BTreeMap<String, Instant>,
}

impl<'a> Supervisor<'a> {
    /// Binds the heartbeat socket; nothing is started yet. `logs` is where children's output goes.
    pub(super) fn new(
        args: &'a RunArgs,
        allocation: Option<Allocation>,
        found: Hosts,
        logs: PathBuf,
    ) -> Result<Self> {
        let Hosts {
            chosen: hosts,
            excluded,
        } = found;
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let heart = Heart::new(args.listen_address()?, &names, args.dead_after()?)
            .context("cannot listen for heartbeats; --listen ADDR names another address")?;
        child::adopt_orphans().context("cannot adopt orphans")?;
        let signals = signals().context("cannot take signals")?;
        let shell = Shell {
            words: words::split(&args.hosts.rsh(allocation.as_ref())).context("--rsh")?,
            logs,
            patience: Duration::from_secs(args.start_timeout),
        };
        let needed = hosts.len() - args.spares;
        let all: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let config = args.mount.load().context("the configuration")?;
        let outside = Outside::start(&config.prefix, allocation, all.clone())
            .context("no thread to ask the prefix and the resource manager")?;
        let prefix = Some(&config.prefix).filter(|prefix| !is_object_url(prefix));
        let prefix = prefix.map(|prefix| PrefixPaths::new(prefix));
        let journal = Journal::begin(Places::wanted(&config.log, prefix))
            .context("no thread to write events")?;
        Ok(Self {
            args,
            all,
            excluded,
            programs: Programs::find()?,
            mount_options: args.mount.options()?,
            environment: args::environment(),
            heart,
            placement: Placement::new(hosts, needed),
            shell,
            epoch: Epoch(0),
            coordinators: None,
            report: Report::new(),
            journal,
            job: config.job,
            mark: heart::random().context("no random numbers")?,
            reaping: None,
            stop: None,
            pass_on: Vec::new(),
            unmounting: false,
            salvaging: false,
            keep_logs: false,
            saving: None,
            silence: Duration::ZERO,
            signals,
            starting: None,
            checking: None,
            outside,
            conditions: Conditions::default(),
            asked: false,
            end: None,
            unwanted: Vec::new(),
            batch: None,
            halt: None,
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
            self.lost(&death.node, &words, Some(death.silence));
        }
        self.turn_starting();
        self.turn_reaping();
        self.turn_checking();
        self.turn_saving();
        self.turn_outside();
        Ok(())
    }

    /// The number of the newest checkpoint any node knows.
    pub(super) fn newest_checkpoint(&self) -> u64 {
        let lives = self.heart.members.lives();
        lives.map(|life| life.beat.checkpoint).max().unwrap_or(0)
    }

    fn turn_outside(&mut self) {
        // Counting begins when it is known what there is.
        let placed = self.placed();
        let names = placed.iter().map(String::as_str);
        if self.coordinators.is_some() && self.heart.members.is_ready(names, self.epoch) {
            self.outside.tell(self.newest_checkpoint());
        }
        for news in self.outside.news() {
            match news {
                News::Conditions(conditions) => self.conditions = conditions,
                News::End(end) => self.end = end,
                News::Down(down) => self.unwanted = down,
                News::Failed(why) => self.report.say(&why),
                News::Asked => self.asked = true,
            }
        }
        let halt = self.halts();
        if halt != self.halt {
            self.heart.halt(halt.is_some());
            self.report.stage(&match &halt {
                Some(halt) => format!("to halt: {}", halt.why),
                None => "not to halt any more".to_owned(),
            });
            self.halt = halt;
        }
    }

    /// Why the job is to end by itself, if it is.
    pub(super) fn halts(&self) -> Option<Halt> {
        if let Some(signal) = self.batch {
            return Some(Halt {
                kind: None,
                why: format!("{signal} came"),
            });
        }
        let now = Instant::now();
        let situation = Situation {
            time: checks::now_millis() / 1000,
            checkpoint: self.newest_checkpoint(),
            left: self.end.map(|end| end.saturating_duration_since(now)),
            lead: Duration::from_secs(self.args.halt_seconds),
        };
        self.conditions.holds(&situation)
    }

    /// Waits until prefix and resource manager were asked once, or a moment.
    pub(super) fn await_outside(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.asked && begun.elapsed() < OUTSIDE_PATIENCE {
            self.turn()?;
        }
        Ok(())
    }

    /// What the resource manager does not want used is not used from the next launch on.
    pub(super) fn heed_manager(&mut self) {
        for host in self.all.clone() {
            let unwanted = self.unwanted.iter();
            let mut unwanted = unwanted.filter(|down| is_same(&down.node, &host));
            if let Some(down) = unwanted.next()
                && !self.heart.members.is_down(&host)
            {
                let why = down.why.clone();
                self.give_up(&host, why);
            }
        }
    }

    /// Looks at all hosts, and gives those that are fit to be used; the others are given up.
    pub(super) fn check_hosts(&mut self) -> Result<Vec<String>> {
        let all = self.all.clone();
        self.begin_checks(&all)?;
        while self.is_checking() && self.stop.is_none() {
            self.turn()?;
        }
        self.heed_manager();
        let members = &self.heart.members;
        Ok(all
            .into_iter()
            .filter(|host| !members.is_down(host))
            .collect())
    }

    /// Begins to look at hosts.
    pub(super) fn begin_checks(&mut self, hosts: &[String]) -> Result<()> {
        if self.args.no_check {
            return Ok(());
        }
        let line = nodes::probe_line(&self.args.mount, false)?;
        let members = &self.heart.members;
        let fit = hosts.iter().filter(|host| !members.is_down(host));
        let commands: Vec<_> = fit.map(|host| (host.clone(), line.clone())).collect();
        self.checking = Some(Checking {
            fleet: Fleet::new(&self.shell, "probe", commands),
            asked: checks::now_millis(),
            answers: BTreeMap::new(),
        });
        Ok(())
    }

    /// Whether hosts are being looked at.
    pub(super) fn is_checking(&self) -> bool {
        self.checking.is_some()
    }

    fn turn_checking(&mut self) {
        let Some(checking) = &mut self.checking else {
            return;
        };
        for ended in checking.fleet.poll() {
            let said = ended
                .result
                .and_then(|()| Answer::read(&nodes::read(&ended.log)));
            let answer = Answer {
                said,
                asked: checking.asked,
                answered: checks::now_millis(),
            };
            checking.answers.insert(ended.host, answer);
        }
        if !checking.fleet.is_done() {
            return;
        }
        let facts = Facts {
            answers: std::mem::take(&mut checking.answers),
            ..Facts::default()
        };
        self.checking = None;
        for host in facts.answers.keys() {
            if let Err(why) = facts.judge(host, &self.args.limits)
                && !self.heart.members.is_down(host)
            {
                self.give_up(host, why);
            }
        }
    }

    fn turn_saving(&mut self) {
        let Some(fleet) = &mut self.saving else {
            return;
        };
        for ended in fleet.poll() {
            if let Err(why) = ended.result {
                self.report
                    .say(&format!("no stacks of {}: {why}", ended.host));
            }
        }
        if fleet.is_done() {
            self.saving = None;
        }
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
            if matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2) {
                self.batch = Some(signal);
                if self.args.forward_usr {
                    self.pass_on.push(signal);
                }
                continue;
            }
            self.report.say(&format!("{signal}: no further launch"));
            self.stop = Some(signal);
            self.batch.get_or_insert(signal);
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
        let checking = self.checking.iter().map(|checking| &checking.fleet);
        let fleets = self.reaping.iter().chain(&self.saving).chain(checking);
        let others = fleets.flat_map(Fleet::pids);
        coordinators.chain(starting).chain(others).collect()
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
            self.args.mount.mountpoint.display(),
            hosts.len(),
            self.heart.address()
        ));
        let mut fleet = Fleet::new(&self.shell, "mount", commands);
        let mut unheard = BTreeMap::new();
        if self.shell.holds() {
            fleet = fleet.held();
            let until = Instant::now() + self.shell.patience;
            unheard.extend(hosts.iter().map(|host| (host.clone(), until)));
        }
        self.starting = Some(Starting { fleet, unheard });
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

    /// Has a dataset marked failed, by a node that knows it; the next epoch does not offer it.
    pub(super) fn mark_failed(&mut self, name: &Name) -> Result<()> {
        self.report.stage(&format!(
            "{name} is marked failed: the application died from it twice before its next commit"
        ));
        let Some(host) = self.placed().into_iter().next() else {
            return Ok(());
        };
        let mut words = vec![self.programs.scrfs.display().to_string()];
        words.extend(["current".to_owned(), "--mount".to_owned()]);
        words.extend(self.mount_options.iter().cloned());
        words.extend(["--failed".to_owned(), "--".to_owned(), name.to_string()]);
        let command = args::remote_line(&self.environment, &self.args.mount, &words);
        let mut fleet = Fleet::new(&self.shell, "failed", vec![(host, command)]);
        while !fleet.is_done() {
            self.turn()?;
            for ended in fleet.poll() {
                if let Err(why) = ended.result {
                    self.report.say(&format!("{name} cannot be marked: {why}"));
                }
            }
        }
        Ok(())
    }

    fn mount_command(&self, host: &str) -> String {
        let mut words = Vec::new();
        words.push(self.programs.scrfs.display().to_string());
        words.push("mount".into());
        words.extend(self.mount_options.iter().cloned());
        words.extend(["--node".into(), host.to_owned()]);
        words.extend(["--supervisor".into(), self.heart.address().to_string()]);
        words.extend(["--token".into(), self.heart.token().to_string()]);
        if self.shell.holds() {
            words.push("--foreground".into());
        }
        args::remote_line(&self.environment, &self.args.mount, &words)
    }

    /// A node is not used any more.
    fn give_up(&mut self, host: &str, why: String) {
        self.report.stage(&format!("{host} cannot be used: {why}"));
        self.lost(host, &why, None);
        self.heart.members.give_up(host, why);
    }

    fn lost(&mut self, node: &str, why: &str, silence: Option<Duration>) {
        self.event(JobWhat::NodeLost, |event| {
            event.node = Some(node.to_owned());
            event.error = Some(why.to_owned());
            event.duration_ms = silence.map(milliseconds);
        });
    }

    /// Notes for programs what happened.
    pub(super) fn event(&mut self, what: JobWhat, fill: impl FnOnce(&mut JobEvent)) {
        let mut event = JobEvent::new(what, &self.job, checks::now_millis());
        fill(&mut event);
        self.journal.job(&event);
    }

    fn turn_starting(&mut self) {
        let Some(mut starting) = self.starting.take() else {
            return;
        };
        for ended in starting.fleet.poll() {
            let members = &self.heart.members;
            match ended.result {
                // A mount that was there already, or one that has ended: silence will tell.
                Ok(()) if self.shell.holds() => {}
                Ok(()) => {
                    starting
                        .unheard
                        .insert(ended.host, Instant::now() + BEAT_PATIENCE);
                }
                // It was heard: its heartbeats tell more than the end of what started it.
                Err(_) if members.life(&ended.host).is_some() || members.is_down(&ended.host) => {}
                Err(why) => self.give_up(&ended.host, why),
            }
        }
        let now = Instant::now();
        let members = &self.heart.members;
        starting
            .unheard
            .retain(|host, _| members.life(host).is_none());
        let silent = starting.unheard.iter().filter(|(_, until)| now >= **until);
        let silent: Vec<String> = silent.map(|(host, _)| host.clone()).collect();
        starting.unheard.retain(|_, until| now < *until);
        for host in silent {
            let address = self.heart.address();
            let why = format!(
                "it is mounted, but no heartbeat comes from it to {address}; is there a firewall? \
                 --listen ADDR names another address"
            );
            self.give_up(&host, why);
        }
        if !(starting.fleet.is_done() && starting.unheard.is_empty()) {
            self.starting = Some(starting);
        }
    }

    fn is_starting(&self) -> bool {
        self.starting.as_ref().is_some_and(|starting| {
            let running = !self.shell.holds() && !starting.fleet.is_done();
            running || !starting.unheard.is_empty()
        })
    }

    /// Puts spares in the places of lost hosts. `false`: too few are left.
    pub(super) fn take_places(&mut self) -> Result<bool> {
        // A spare that is still on its way may yet be needed.
        while self.is_starting() && self.is_any_lost() && self.stop.is_none() {
            self.turn()?;
        }
        let wanted = self.placed().len();
        let members = &self.heart.members;
        let changes = self.placement.replace(|host| members.is_down(host));
        for change in changes {
            self.report.stage(&match &change.spare {
                Some(spare) => format!("spare {spare} takes the place of {}", change.lost),
                None => format!(
                    "nobody takes the place of {}: no spare is left",
                    change.lost
                ),
            });
            if let Some(spare) = change.spare {
                self.event(JobWhat::SpareTaken, |event| {
                    event.node = Some(spare);
                    event.detail = Some(format!("in the place of {}", change.lost));
                });
            }
        }
        let count = self.placed().len();
        let min = if self.salvaging {
            1
        } else {
            self.args.min_nodes.unwrap_or(wanted).max(1)
        };
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
        // Daemons that are held end by themselves, or with the end of this.
        if !self.shell.holds() {
            self.starting = None;
        }
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

/// For events.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCHLD,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
