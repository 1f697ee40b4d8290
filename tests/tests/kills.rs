//! Nodes are killed at random moments of real runs, and nothing wrong may come of it.
//!
//! Each round: a virtual cluster, `scrfs run` with spares, a program whose every byte is known. Nodes
//! in use are lost, by crash or by power, at drawn moments: while it starts, writes, commits,
//! encodes, flushes, recovers. Checked: a restart never shows wrong bytes (the program looks at each
//! one); a checkpoint seen protected before a loss is not missed after it; the run ends well; and the
//! prefix then has the last checkpoint, whole.
//!
//! `SCRFS_SEED=n` replays the draws of a seed, `SCRFS_SOAK_SECONDS=n` goes on for so long.

#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs_tests::workload::{file_name, verify};
use scrfs_tests::{Cluster, Loss, binary, wait_until};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
const SPARES: usize = 3;
const STEPS: u64 = 60;
const BYTES: usize = 4 << 20;
const ROUND_MAX: Duration = Duration::from_secs(240);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Ended by its own id; what it started goes with the cluster.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_wrong_comes_of_nodes_killed_at_random() -> Result<()> {
    let seconds = env_number("SCRFS_SOAK_SECONDS").unwrap_or(120);
    let first = env_number("SCRFS_SEED").unwrap_or_else(|| rand::rng().random_range(1..1 << 32));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = first;
    let (mut rounds, mut kills) = (0, 0);
    while rounds == 0 || Instant::now() < end {
        println!("round with SCRFS_SEED={seed}");
        kills += round(seed).with_context(|| format!("replay with SCRFS_SEED={seed}"))?;
        rounds += 1;
        seed += 1;
    }
    println!("{rounds} rounds, {kills} nodes killed, seeds {first}..{seed}");
    ensure!(
        kills > 0,
        "no node was killed in {rounds} rounds: the test saw nothing"
    );
    Ok(())
}

fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// One run with losses; how many nodes were killed.
fn round(seed: u64) -> Result<usize> {
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::builder()
        .nodes(RANKS + SPARES)
        .shm_bytes(512 << 20)
        .start()?;
    let site = tempfile::tempdir()?;
    let (prefix, shared) = (site.path().join("prefix"), site.path().join("shared"));
    fs::create_dir(&prefix)?;
    fs::create_dir(&shared)?;
    let hosts: Vec<String> = (1..=RANKS + SPARES)
        .map(|node| cluster.name(node))
        .collect();
    let output = File::create(site.path().join("run.log"))?;
    let workload = binary("scrfs-workload")?;
    let mut command = cluster.command(0, binary("scrfs")?);
    command
        .args(["run", "--runs", "20", "--nodes", &hosts.join(",")])
        .args(["--spares", &SPARES.to_string()])
        .arg("--prefix")
        .arg(&prefix)
        .arg("--rsh")
        .arg(cluster.rsh())
        .args(["--", "mpirun", "-n", &RANKS.to_string(), "--map-by", "node"])
        .arg("--mca")
        .arg("plm_rsh_agent")
        .arg(cluster.rsh())
        .arg(workload)
        .arg("run")
        .arg("--shared")
        .arg(&shared)
        .args(["--steps", &STEPS.to_string(), "--bytes", &BYTES.to_string()])
        .args(["--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let mut run = Running(command.spawn()?);
    let log = site.path().join("run.log");
    let outcome = lose_nodes(&cluster, &mut run, &shared, &mut random).and_then(|losses| {
        finished(&mut run, &prefix, seed, &log, losses.apart).map(|()| losses.killed)
    });
    if outcome.is_err() {
        let log = fs::read_to_string(site.path().join("run.log")).unwrap_or_default();
        println!("--- what scrfs run printed\n{log}");
        for rank in 0..RANKS {
            let log = fs::read_to_string(shared.join(format!("log.{rank}"))).unwrap_or_default();
            println!("--- rank {rank}\n{log}");
        }
    }
    outcome
}

/// What was done to a run.
struct Losses {
    killed: usize,
    /// Each loss came when the one before had been recovered from.
    apart: bool,
}

/// Kills nodes while the run goes on, and checks each restart.
fn lose_nodes(
    cluster: &Cluster,
    run: &mut Running,
    shared: &Path,
    random: &mut StdRng,
) -> Result<Losses> {
    let mut apart = true;
    let mut active: Vec<usize> = (1..=RANKS).collect();
    let mut spares: VecDeque<usize> = (RANKS + 1..=RANKS + SPARES).collect();
    let mut killed = 0;
    let losses = random.random_range(1..=SPARES);
    while killed < losses {
        // Sometimes right away, so that recoveries are hit, too.
        let pause = Duration::from_millis(random.random_range(0..4_000));
        let early = random.random_bool(0.25);
        let restarts_before = restarts(shared);
        let waited = Instant::now();
        let ended = wait_until(ROUND_MAX, "the moment to kill a node", || {
            let ended = run.0.try_wait()?.is_some();
            let running = early || restarts(shared).len() > killed;
            let due = waited.elapsed() >= pause && running;
            Ok((ended || due).then_some(ended))
        })?;
        if ended {
            break;
        }
        let place = random.random_range(0..RANKS);
        let loss = if random.random_bool(0.5) {
            Loss::Crash
        } else {
            Loss::Power
        };
        let witness = active[(place + 1) % RANKS];
        let safe = newest_protected(cluster, witness);
        // A loss during recovery may be one more than parity can bear: then only right bytes count.
        let calm = restarts_before.len() > killed;
        cluster.kill(active[place], loss)?;
        killed += 1;
        println!(
            "killed {} by {loss:?}, newest protected {safe:?}",
            cluster.name(active[place])
        );
        active[place] = spares.pop_front().context("more losses than spares")?;
        apart &= calm;
        if !calm {
            continue;
        }
        let seen = restarts_before.len();
        let restarted = wait_until(ROUND_MAX, "the restart after a loss", || {
            if run.0.try_wait()?.is_some() {
                return Ok(Some(None));
            }
            Ok(restarts(shared).get(seen).map(|step| Some(*step)))
        })?;
        if let (Some(step), Some(safe)) = (restarted, safe) {
            ensure!(
                step >= safe,
                "restarted from {step}, but {safe} had been protected"
            );
        }
    }
    Ok(Losses { killed, apart })
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

/// The run ends well, and the prefix has the last checkpoint. Only if two losses came at once may it
/// be lost, and then the run says so.
fn finished(run: &mut Running, prefix: &Path, seed: u64, log: &Path, apart: bool) -> Result<()> {
    let status = wait_until(ROUND_MAX, "the end of the run", || Ok(run.0.try_wait()?))?;
    if !status.success() {
        let said = fs::read_to_string(log)?.contains(&format!("ckpt.{STEPS} is lost"));
        if said && !apart {
            return Ok(());
        }
        bail!("scrfs run ended with {status}");
    }
    let last = prefix.join(format!("ckpt.{STEPS}"));
    for rank in 0..RANKS {
        let rank = u32::try_from(rank)?;
        verify(&last.join(file_name(rank)), seed, STEPS, rank, BYTES)?;
    }
    Ok(())
}
