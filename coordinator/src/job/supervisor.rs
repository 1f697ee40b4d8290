//! What the supervisor holds, and the one place where it waits.
//!
//! [`Supervisor::turn`] is the heart of every waiting loop: it waits a moment for a heartbeat or a signal,
//! takes what came, and notices deaths. So whatever the supervisor waits for, nodes are watched and signals
//! are heard. Nothing else in here blocks.

use super::args::{self, Hosts, RunArgs};
use super::checks::{self, Answer, Facts};
use super::child;
use super::epoch::Coordinators;
use super::heart::Heart;
use super::keeper::Keeper;
use super::nodes;
use super::outside::{News, Outside};
use super::placement::Placement;
use super::remote::{Fleet, Shell};
use super::report::Report;
use super::resource::parse::Down;
use super::resource::{Allocation, is_same};
use super::resume::Begun;
use super::suspect::Suspect;
use super::vain::Vain;
use super::words;
use crate::journal::{Journal, Places};
use crate::target::Target;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use scrfs::event::{JobEvent, JobWhat};
use scrfs::halt::{Conditions, Halt, Situation};
use scrfs::id::Epoch;
use scrfs::name::Name;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time between two looks at children and conditions.
const TURN_MS: u16 = 20;
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
    /// Our place among all supervisors of this run.
    pub(super) begun: Begun,
    /// Keeps what the next one would have to know.
    pub(super) keeper: Option<Keeper>,
    /// The run is somebody else's.
    pub(super) is_superseded: bool,
    /// Whom to blame for deaths.
    pub(super) suspect: Suspect,
    /// Launches that were not worth it.
    pub(super) vain: Vain,
    /// Of the last launch.
    pub(super) code: Option<u8>,
    /// There is no further launch.
    pub(super) is_over: bool,
    signals: SignalFd,
    pub(super) starting: Option<Starting>,
    checking: Option<Checking>,
    outside: Outside,
    conditions: Conditions,
    /// Prefix and resource manager were asked once.
    asked: bool,
    /// It was said that a condition waits for an end that is not known.
    wants_end: bool,
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

/// Daemons that are being started.
pub(super) struct Starting {
    pub(super) fleet: Fleet,
    /// Mounted, but not heard yet, and until when.
    pub(super) unheard: BTreeMap<String, Instant>,
}

impl<'a> Supervisor<'a> {
    /// Binds the heartbeat socket; nothing is started yet. `logs` is where children's output goes.
    pub(super) fn new(
        args: &'a RunArgs,
        allocation: Option<Allocation>,
        found: Hosts,
        begun: Begun,
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
        let keeper = begun
            .keeper()
            .context("no thread to keep the run's record")?;
        let outside = Outside::start(&config.prefix, allocation, all.clone())
            .context("no thread to ask the prefix and the resource manager")?;
        let place = Target::at(&config.prefix).event_place();
        let journal = Journal::begin(Places::wanted(&config.log, place))
            .context("no thread to write events")?;
        let mut supervisor = Self {
            args,
            all,
            excluded,
            programs: Programs::find()?,
            mount_options: args.mount.options()?,
            environment: args::environment(),
            heart,
            placement: Placement::new(hosts, needed),
            shell,
            epoch: begun.epoch,
            coordinators: None,
            report: Report::new(),
            journal,
            job: config.job,
            mark: begun.mark,
            reaping: None,
            stop: None,
            pass_on: Vec::new(),
            unmounting: false,
            salvaging: false,
            keep_logs: false,
            saving: None,
            silence: Duration::ZERO,
            begun,
            keeper,
            is_superseded: false,
            suspect: Suspect::default(),
            vain: Vain::default(),
            code: None,
            is_over: false,
            signals,
            starting: None,
            checking: None,
            outside,
            conditions: Conditions::default(),
            asked: false,
            wants_end: false,
            end: None,
            unwanted: Vec::new(),
            batch: None,
            halt: None,
        };
        supervisor.go_on();
        Ok(supervisor)
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
        self.turn_keeper()?;
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
        let wants_end = self.asked && self.conditions.wants_end(self.end.is_some());
        if wants_end && !self.wants_end {
            self.report.say(
                "the condition `seconds` does not hold before the end of the allocation is known, and \
                 it is not: say when it ends with `scrfs halt --before TIME`",
            );
        }
        self.wants_end = wants_end;
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

    /// How much of the allocation is wanted for the end.
    fn lead(&self) -> Duration {
        let measured = || {
            let lives = self.heart.members.lives();
            lives.filter_map(|life| life.beat.end_ms).max().unwrap_or(0)
        };
        let given = self.args.halt_seconds.map(Duration::from_secs);
        given.unwrap_or_else(|| Duration::from_millis(measured()))
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
            lead: self.lead(),
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

    /// A node is not used any more.
    pub(super) fn give_up(&mut self, host: &str, why: String) {
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
