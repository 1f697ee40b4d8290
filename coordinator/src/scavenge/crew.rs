//! Where the nodes are: at the other end of a remote shell, or directories at hand here.

use super::node::{Node, PROGRESS};
use crate::job::args::{self, MountArgs};
use crate::job::remote::{Fleet, Shell, last_lines};
use crate::job::words;
use crate::prefix::Prefix;
use anyhow::{Context, Result};
use scrfs::bar::{Bar, Mark};
use scrfs::config::Config;
use scrfs::id::Epoch;
use scrfs::status::size;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at what is under way.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two words about it, where no bar can be shown.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What every node does at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Task {
    Look,
    Copy,
}

/// How it went on each node, by name.
pub(super) type Done = BTreeMap<String, Result<(), String>>;

/// The nodes.
pub(super) trait Crew {
    /// Shows from now on how far they have come, where standard error is a terminal.
    fn show_bars(&mut self) {}

    /// What they are called.
    fn names(&self) -> Vec<String>;

    /// Has these nodes do it, and waits for the last. An error ends everything.
    fn each(
        &mut self,
        prefix: &Prefix,
        session: Epoch,
        task: Task,
        nodes: &[String],
    ) -> Result<Done>;
}

/// Says how far all nodes together have come: to a terminal by a bar, elsewhere now and then.
#[derive(Debug)]
struct Teller {
    told: Instant,
    bar: Bar,
}

impl Teller {
    fn new(shows_bars: bool) -> Self {
        Self {
            told: Instant::now(),
            bar: Bar::new(shows_bars),
        }
    }

    fn tell(&mut self, done: u64, total: u64) {
        if total == 0 {
            return;
        }
        if io::stderr().is_terminal() {
            return self.bar.show(&Mark {
                what: "copied".to_owned(),
                done_bytes: done,
                total_bytes: total,
            });
        }
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let percent = done.saturating_mul(100) / total;
        let line = format!("copied {} of {}, {percent}%", size(done), size(total));
        // Nobody there to read it is no reason to stop.
        let _ = writeln!(io::stderr(), "scrfs scavenge: {line}");
    }
}

/// Nodes whose caches are at hand here.
pub(super) struct Roots {
    nodes: BTreeMap<String, Node>,
    shows_bars: bool,
}

impl Roots {
    /// These directories, a node each; this node when there are none.
    pub(super) fn new(roots: Vec<PathBuf>, config: &Config, live: bool) -> Self {
        let mut nodes = BTreeMap::new();
        if roots.is_empty() {
            let name = nix::unistd::gethostname().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            nodes.insert(name.clone(), Node::of(config, &name, live));
        }
        for (number, root) in roots.iter().enumerate() {
            let name = format!("root{number}");
            nodes.insert(name.clone(), Node::at(root, &name, live));
        }
        Self {
            nodes,
            shows_bars: false,
        }
    }
}

impl Crew for Roots {
    fn show_bars(&mut self) {
        self.shows_bars = true;
    }

    fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    fn each(
        &mut self,
        prefix: &Prefix,
        session: Epoch,
        task: Task,
        nodes: &[String],
    ) -> Result<Done> {
        let marks: BTreeMap<&String, [AtomicU64; 2]> = nodes
            .iter()
            .map(|name| (name, Default::default()))
            .collect();
        let act = |name: &String| -> Result<()> {
            let node = self.nodes.get(name).context("no such node")?;
            match task {
                Task::Look => node.look(prefix, session),
                Task::Copy => node.copy(prefix, session, &|done, total| {
                    if let Some([of_done, of_total]) = marks.get(name) {
                        of_done.store(done, Ordering::Relaxed);
                        of_total.store(total, Ordering::Relaxed);
                    }
                }),
            }
        };
        let act = &act;
        let mut teller = Teller::new(self.shows_bars);
        let done = std::thread::scope(|scope| {
            let running: Vec<_> = nodes
                .iter()
                .map(|name| (name, scope.spawn(move || act(name))))
                .collect();
            while running.iter().any(|(_, thread)| !thread.is_finished()) {
                let sum = |at: usize| {
                    let all = marks.values().map(|mark| mark[at].load(Ordering::Relaxed));
                    all.sum()
                };
                teller.tell(sum(0), sum(1));
                std::thread::park_timeout(PAUSE);
            }
            let ended = running.into_iter().map(|(name, thread)| {
                let result = match thread.join() {
                    Ok(result) => result.map_err(|error| format!("{error:#}")),
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                (name.clone(), result)
            });
            ended.collect()
        });
        Ok(done)
    }
}

/// Hosts, reached by a remote shell.
pub(crate) struct Hosts<'a> {
    shell: Shell,
    /// Where the outputs are goes with this.
    own_logs: Option<PathBuf>,
    mount: MountArgs,
    program: String,
    names: Vec<String>,
    live: bool,
    shows_bars: bool,
    turn: Option<&'a mut dyn FnMut() -> Result<()>>,
}

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        if let Some(logs) = &self.own_logs {
            // What was in them was told.
            let _ = std::fs::remove_dir_all(logs);
        }
    }
}

impl<'a> Hosts<'a> {
    /// With a shell of its own, whose outputs are kept for as long as this lives.
    pub(super) fn new(
        rsh: &str,
        mount: &MountArgs,
        names: Vec<String>,
        patience: Duration,
        live: bool,
    ) -> Result<Self> {
        let logs = std::env::temp_dir().join(format!("scrfs-scavenge.{}", std::process::id()));
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot make {}", logs.display()))?;
        let shell = Shell {
            words: words::split(rsh).context("--rsh")?,
            logs: logs.clone(),
            patience,
        };
        let mut hosts = Self::with(shell, mount, names, live)?;
        hosts.own_logs = Some(logs);
        Ok(hosts)
    }

    /// By this shell.
    pub(crate) fn with(
        shell: Shell,
        mount: &MountArgs,
        names: Vec<String>,
        live: bool,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        Ok(Self {
            shell,
            own_logs: None,
            mount: mount.clone(),
            program: program.display().to_string(),
            names,
            live,
            shows_bars: false,
            turn: None,
        })
    }

    /// The same, with something that is called all the time while it is waited.
    pub(super) fn watched<'b>(mut self, turn: &'b mut dyn FnMut() -> Result<()>) -> Hosts<'b> {
        Hosts {
            shell: self.shell.clone(),
            own_logs: self.own_logs.take(),
            mount: self.mount.clone(),
            program: std::mem::take(&mut self.program),
            names: std::mem::take(&mut self.names),
            live: self.live,
            shows_bars: self.shows_bars,
            turn: Some(turn),
        }
    }

    fn line(&self, session: Epoch, task: Task, node: &str) -> Result<String> {
        let mut line = vec![self.program.clone(), "scavenge-node".into()];
        let options = self.mount.options()?;
        let mut options = options.into_iter();
        // The mount point has a name here.
        line.extend(options.next().map(|path| format!("--mountpoint={path}")));
        line.extend(options);
        line.extend([format!("--session={}", session.0), format!("--node={node}")]);
        line.extend((task == Task::Copy).then(|| "--copy".to_owned()));
        line.extend(self.live.then(|| "--live".to_owned()));
        Ok(args::remote_line(&args::environment(), &self.mount, &line))
    }

    /// What all nodes have told of their progress.
    fn progress(&self, name: &str, nodes: &[String]) -> (u64, u64) {
        let told = nodes.iter().filter_map(|node| {
            let log = self.shell.logs.join(format!("{name}.{node}.log"));
            let line = last_lines(&log, 1).pop()?;
            let mut words = line.strip_prefix(PROGRESS)?.split_whitespace();
            let mut number = || words.next()?.parse::<u64>().ok();
            Some((number()?, number()?))
        });
        told.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

impl Crew for Hosts<'_> {
    fn show_bars(&mut self) {
        self.shows_bars = true;
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn each(&mut self, _: &Prefix, session: Epoch, task: Task, nodes: &[String]) -> Result<Done> {
        let name = match task {
            Task::Look => "scavenge-look",
            Task::Copy => "scavenge-copy",
        };
        let lines = nodes
            .iter()
            .map(|node| Ok((node.clone(), self.line(session, task, node)?)));
        let lines = lines.collect::<Result<Vec<_>>>()?;
        let mut fleet = Fleet::new(&self.shell, name, lines);
        let mut done = Done::new();
        let mut teller = Teller::new(self.shows_bars);
        while !fleet.is_done() {
            for ended in fleet.poll() {
                done.insert(ended.host, ended.result);
            }
            match &mut self.turn {
                Some(turn) => turn()?,
                None => std::thread::park_timeout(PAUSE),
            }
            if task == Task::Copy {
                let (copied, total) = self.progress(name, nodes);
                teller.tell(copied, total);
            }
        }
        Ok(done)
    }
}
