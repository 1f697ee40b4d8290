//! The fault campaign: ranks, daemons, coordinators, nodes and supervisors are killed at random moments of
//! real runs, and nothing wrong may come of it.
//!
//! Each round: a virtual cluster, `scrfs run` with spares, a program whose every byte is known. What
//! is killed and when is drawn: while it starts, writes, commits, encodes, flushes, recovers. Checked:
//! a restart never shows wrong bytes (the program looks at each one); a checkpoint seen protected before
//! a loss is not missed after it; the run ends well; the prefix then has the last checkpoint, whole; and no
//! process, mount or file is left behind.
//!
//! In every other round the ranks meet before they rename, and only in those a rank is killed alone: a program
//! that renames while one of its ranks may have died amid its file commits that, on any filesystem.
//!
//! `SCRFS_SEED=n` replays the draws of a seed, `SCRFS_SOAK_SECONDS=n` goes on for so long.

#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs_tests::workload::{file_name, verify};
use scrfs_tests::{Cluster, Loss, binary, wait_until};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
const SPARES: usize = 3;
const STEPS: u64 = 60;
const BYTES: usize = 4 << 20;
const ROUND_MAX: Duration = Duration::from_secs(240);
/// Faults of a round at most.
const FAULTS_MAX: usize = 5;

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    Rank,
    Daemon,
    Coordinator,
    Crash,
    Power,
    Supervisor,
}

impl Fault {
    fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..100) {
            0..20 => Self::Rank,
            20..35 => Self::Daemon,
            35..55 => Self::Coordinator,
            55..70 => Self::Crash,
            70..85 => Self::Power,
            _ => Self::Supervisor,
        }
    }

    /// The job does without the node from then on.
    fn takes_node(self) -> bool {
        matches!(self, Self::Daemon | Self::Crash | Self::Power)
    }

    /// The application begins anew.
    fn relaunches(self) -> bool {
        self != Self::Coordinator
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Ended by its own id; what it started goes with the cluster.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A job under way.
struct Job {
    cluster: Cluster,
    site: tempfile::TempDir,
    run: Running,
    seed: u64,
    /// Nodes in use, by position, and those that wait.
    active: Vec<usize>,
    spares: VecDeque<usize>,
    dead: BTreeSet<usize>,
    /// Where `scrfs run` runs.
    supervisor: usize,
}

#[test]
fn nothing_wrong_comes_of_what_is_killed_at_random() -> Result<()> {
    let seconds = env_number("SCRFS_SOAK_SECONDS").unwrap_or(120);
    let first = env_number("SCRFS_SEED").unwrap_or_else(|| rand::rng().random_range(1..1 << 32));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = first;
    let mut rounds = 0;
    let mut killed: BTreeMap<Fault, usize> = BTreeMap::new();
    while rounds == 0 || Instant::now() < end {
        println!("round with SCRFS_SEED={seed}");
        let faults = round(seed).with_context(|| format!("replay with SCRFS_SEED={seed}"))?;
        for fault in faults {
            *killed.entry(fault).or_default() += 1;
        }
        rounds += 1;
        seed += 1;
    }
    println!("{rounds} rounds, killed {killed:?}, seeds {first}..{seed}");
    ensure!(
        !killed.is_empty(),
        "nothing was killed in {rounds} rounds: the test saw nothing"
    );
    Ok(())
}

fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// One run with faults; which.
fn round(seed: u64) -> Result<Vec<Fault>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut job = Job::start(seed)?;
    let outcome = job.hurt(&mut random).and_then(|hurt| {
        job.finished(hurt.apart)?;
        Ok(hurt.faults)
    });
    if outcome.is_err() {
        println!("--- what scrfs run printed\n{}", job.said());
        for rank in 0..RANKS {
            let log = fs::read_to_string(job.shared().join(format!("log.{rank}")));
            println!("--- rank {rank}\n{}", log.unwrap_or_default());
        }
    }
    let faults = outcome?;
    let directory = job.cluster.directory().to_owned();
    drop(job);
    ensure!(!directory.exists(), "{} is left", directory.display());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let name = directory.display().to_string();
    ensure!(!mounts.contains(&name), "a mount is left: {mounts}");
    Ok(faults)
}

/// Whether ranks meet before they rename.
fn has_barrier(seed: u64) -> bool {
    seed % 2 == 1
}

/// What was done to a run.
struct Hurt {
    faults: Vec<Fault>,
    /// Each fault came when the one before had been recovered from.
    apart: bool,
}

impl Job {
    fn start(seed: u64) -> Result<Self> {
        let cluster = Cluster::builder()
            .nodes(RANKS + SPARES)
            .shm_bytes(512 << 20)
            .start()?;
        let site = tempfile::tempdir()?;
        for name in ["prefix", "shared", "logs"] {
            fs::create_dir(site.path().join(name))?;
        }
        let (prefix, shared) = (site.path().join("prefix"), site.path().join("shared"));
        let hosts: Vec<String> = (1..=RANKS + SPARES)
            .map(|node| cluster.name(node))
            .collect();
        let output = File::create(site.path().join("run.log"))?;
        let mut command = cluster.command(0, binary("scrfs")?);
        command
            .args(["run", "--runs", "20", "--nodes", &hosts.join(",")])
            .args(["--spares", &SPARES.to_string()])
            .arg("--prefix")
            .arg(&prefix)
            .arg("--log-dir")
            .arg(site.path().join("logs"))
            .arg("--rsh")
            .arg(cluster.rsh())
            .args(["--", "mpirun", "-n", &RANKS.to_string(), "--map-by", "node"])
            .arg("--mca")
            .arg("plm_rsh_agent")
            .arg(cluster.rsh())
            .arg(binary("scrfs-workload")?)
            .arg("run")
            .arg("--shared")
            .arg(&shared)
            .args(["--steps", &STEPS.to_string(), "--bytes", &BYTES.to_string()])
            .args(["--seed", &seed.to_string()])
            .args(has_barrier(seed).then_some("--barrier"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let run = Running(command.spawn()?);
        Ok(Self {
            cluster,
            site,
            run,
            seed,
            active: (1..=RANKS).collect(),
            spares: (RANKS + 1..=RANKS + SPARES).collect(),
            dead: BTreeSet::new(),
            supervisor: 0,
        })
    }

    fn shared(&self) -> PathBuf {
        self.site.path().join("shared")
    }

    fn prefix(&self) -> PathBuf {
        self.site.path().join("prefix")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.site.path().join("run.log")).unwrap_or_default()
    }

    /// Kills while the run goes on, and checks each restart.
    fn hurt(&mut self, random: &mut StdRng) -> Result<Hurt> {
        let mut hurt = Hurt {
            faults: Vec::new(),
            apart: true,
        };
        // Restarts there were when the application was last ended.
        let mut before = 0;
        for _ in 0..random.random_range(1..=FAULTS_MAX) {
            let fault = match Fault::draw(random) {
                Fault::Rank if !has_barrier(self.seed) => Fault::Coordinator,
                fault => fault,
            };
            // Sometimes right away, so that recoveries are hit, too.
            let pause = Duration::from_millis(random.random_range(0..4_000));
            let early = random.random_bool(0.25) && fault != Fault::Supervisor;
            let place = random.random_range(0..RANKS);
            if fault.takes_node() && self.spares.is_empty() {
                continue;
            }
            let waited = Instant::now();
            let ended = wait_until(ROUND_MAX, "the moment to kill", || {
                let ended = self.run.0.try_wait()?.is_some();
                let running = early || restarts(&self.shared()).len() > before;
                let due = waited.elapsed() >= pause && running;
                Ok((ended || due).then_some(ended))
            })?;
            if ended {
                break;
            }
            let seen = restarts(&self.shared()).len();
            // A fault during recovery may be one more than parity can bear: then only right bytes count.
            let calm = seen > before;
            let safe = newest_protected(&self.cluster, self.active[(place + 1) % RANKS]);
            if !self.inflict(fault, place, random)? {
                continue; // there was nothing to kill
            }
            let node = self.cluster.name(self.active[place]);
            println!("killed a {fault:?} of {node}, newest protected {safe:?}, calm {calm}");
            hurt.faults.push(fault);
            hurt.apart &= calm;
            if fault.takes_node() {
                self.active[place] = self.spares.pop_front().context("more losses than spares")?;
            }
            if !fault.relaunches() {
                continue;
            }
            before = seen;
            if calm {
                self.check_restart(seen, safe)?;
            }
        }
        Ok(hurt)
    }

    /// The restart after a fault is from what was safe before it, or something newer.
    fn check_restart(&mut self, seen: usize, safe: Option<u64>) -> Result<()> {
        let shared = self.shared();
        let restarted = wait_until(ROUND_MAX, "the restart after a loss", || {
            if self.run.0.try_wait()?.is_some() {
                return Ok(Some(None));
            }
            Ok(restarts(&shared).get(seen).map(|step| Some(*step)))
        })?;
        if let (Some(step), Some(safe)) = (restarted, safe) {
            // A checkpoint that ranks died from twice is not offered a third time.
            let blamed = self.said().contains("is marked failed");
            ensure!(
                step >= safe || blamed,
                "restarted from {step}, but {safe} had been protected"
            );
        }
        Ok(())
    }

    /// `false`: there is no such thing to kill now.
    fn inflict(&mut self, fault: Fault, place: usize, random: &mut StdRng) -> Result<bool> {
        let node = self.active[place];
        let loss = match fault {
            Fault::Crash => Loss::Crash,
            Fault::Power => Loss::Power,
            Fault::Supervisor => {
                // Drawn also when there is nobody to kill, so that seeds replay.
                let places = [0, 1, 2, 3].map(|at| self.active[at]);
                let elsewhere = places[random.random_range(0..places.len())];
                return self.supervise_from(elsewhere).map(|()| true);
            }
            Fault::Rank => return self.kill_process(node, &["scrfs-workload"]),
            Fault::Daemon => return self.kill_process(node, &["scrfs", "mount"]),
            Fault::Coordinator => return self.kill_process(node, &["scrfs-coordinator-mpi"]),
        };
        self.cluster.kill(node, loss)?;
        self.dead.insert(node);
        if self.supervisor == node {
            self.supervise_from(self.active[(place + 1) % RANKS])?;
        }
        Ok(true)
    }

    /// Kills a process of a node whose command line begins with a program of this name, and so on.
    fn kill_process(&self, node: usize, words: &[&str]) -> Result<bool> {
        let is_it = |pid: &&u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut found = line.split('\0');
            let program = found.next().unwrap_or_default();
            Path::new(program).file_name().is_some_and(|name| name == words[0])
                && words.iter().skip(1).all(|word| found.next() == Some(word))
                // Coordinators begin as `scrfs mount`, too.
                && !line.contains("--coordinate")
        };
        let pids = self.cluster.processes(node)?;
        let Some(pid) = pids.iter().find(is_it) else {
            return Ok(false);
        };
        // It may have ended by now.
        let killed = kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL);
        Ok(killed.is_ok())
    }

    /// Kills the supervisor, and has another node go on.
    fn supervise_from(&mut self, node: usize) -> Result<()> {
        self.run.0.kill()?;
        let ended = self.run.0.wait()?;
        if ended.code().is_some() {
            return Ok(()); // it was faster
        }
        let output = File::options()
            .append(true)
            .open(self.site.path().join("run.log"))?;
        let mut command = self.cluster.command(node, binary("scrfs")?);
        command
            .args(["run", "--resume", "--prefix"])
            .arg(self.prefix())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        self.run = Running(command.spawn()?);
        self.supervisor = node;
        Ok(())
    }

    /// The run ends well, and the prefix has the last checkpoint. Only if two losses came at once may it
    /// be lost, and then the run says so.
    fn finished(&mut self, apart: bool) -> Result<()> {
        let status = wait_until(ROUND_MAX, "the end of the run", || {
            Ok(self.run.0.try_wait()?)
        })?;
        if !status.success() {
            let said = self.said().contains(&format!("ckpt.{STEPS} is lost"));
            if said && !apart {
                return self.nothing_is_left();
            }
            bail!("scrfs run ended with {status}");
        }
        let last = self.prefix().join(format!("ckpt.{STEPS}"));
        for rank in 0..RANKS {
            let rank = u32::try_from(rank)?;
            verify(&last.join(file_name(rank)), self.seed, STEPS, rank, BYTES)?;
        }
        self.nothing_is_left()
    }

    /// No process, no mount, no file that only a run needs.
    fn nothing_is_left(&self) -> Result<()> {
        for node in (0..=RANKS + SPARES).filter(|node| !self.dead.contains(node)) {
            let name = self.cluster.name(node);
            // Launchers' helpers end by themselves, after the launcher.
            let gone = wait_until(Duration::from_secs(60), "the end of every process", || {
                Ok(self.cluster.processes(node)?.is_empty().then_some(()))
            });
            let left = self.cluster.processes(node)?;
            let lines: Vec<String> = left
                .iter()
                .map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
                .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
                .collect();
            ensure!(gone.is_ok(), "{name} still runs {lines:?}");
            let mounts = self
                .cluster
                .command(node, "cat")
                .arg("/proc/self/mounts")
                .output()?;
            let mounts = String::from_utf8_lossy(&mounts.stdout).into_owned();
            ensure!(
                !mounts.contains(" /scr fuse"),
                "{name} still mounts {mounts}"
            );
        }
        for name in ["run", "inflight"] {
            let path = self.prefix().join(".scrfs").join(name);
            let left: Vec<_> = fs::read_dir(&path)
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            ensure!(left.is_empty(), "{} has {left:?}", path.display());
        }
        Ok(())
    }
}

/// The steps rank 0 restarted from, in order; fails the test on wrong bytes anywhere.
fn restarts(shared: &Path) -> Vec<u64> {
    for rank in 0..RANKS {
        let log = fs::read_to_string(shared.join(format!("log.{rank}"))).unwrap_or_default();
        assert!(!log.contains("WRONG BYTES"), "rank {rank}:\n{log}");
    }
    let log = fs::read_to_string(shared.join("log.0")).unwrap_or_default();
    log.lines()
        .filter_map(|line| line.split_once(" restart ")?.1.parse().ok())
        .collect()
}

/// The newest step that a node's status shows protected, or further.
fn newest_protected(cluster: &Cluster, node: usize) -> Option<u64> {
    let listed = cluster
        .command(node, "ls")
        .arg("/scr/.scr/status")
        .output()
        .ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed
        .lines()
        .filter_map(|name| {
            let (step, state) = name.strip_prefix("ckpt.")?.split_once('.')?;
            let safe = ["protected", "flushing", "flushed"]
                .iter()
                .any(|s| state.starts_with(s));
            safe.then(|| step.parse().ok()).flatten()
        })
        .max()
}
