//! From a node's death to the application running again: how long, and where the time goes.
//!
//! Four nodes with 256 MiB each, as the requirement has it, in stores where two such checkpoints and half of one fit, and a
//! spare for each loss. The nodes are lost one
//! after the other in one job, by crash and by power in turns; each time all ranks must come back from the
//! newest protected checkpoint. Measured from the kill to the moment the last rank has begun; the steps
//! between are those that `scrfs run` tells. Somebody elsewhere wants the lost file at once; when first bytes of it were there
//! is printed, too. `SCRFS_RELAUNCHES=n` loses n nodes; the test asserts no time:
//! it prints them. Run it by itself: `cargo test --test relaunch -- --ignored --nocapture`.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, Loss, binary, wait_until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
const SEED: u64 = 11;
const SOON: Duration = Duration::from_secs(120);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).unwrap_or_default();
    text.parse().unwrap_or(default)
}

/// Times of the steps, since `scrfs run` began, after the `count`-th loss.
fn steps(log: &str, count: usize) -> Option<BTreeMap<&'static str, f64>> {
    let lines = log.lines().filter_map(|line| {
        let (time, words) = line.strip_prefix("scrfs run: +")?.split_once(" s  ")?;
        Some((time.parse::<f64>().ok()?, words))
    });
    let mut lines = lines.skip_while(|(_, words)| !words.contains(" is lost: "));
    let mut found = BTreeMap::new();
    let mut seen = 0;
    for (time, words) in &mut lines {
        seen += usize::from(words.contains(" is lost: "));
        if seen != count {
            continue;
        }
        let name = match words {
            _ if words.contains(" is lost: ") => "noticed",
            _ if words.contains("node lost: ") => "ended",
            _ if words.contains(" begins on ") => "epoch begun",
            _ if words.contains("all coordinators are connected") => "connected",
            _ if words.contains(" is ready after ") => "recovered",
            _ if words.starts_with("launch ") => "launched",
            _ => continue,
        };
        found.entry(name).or_insert(time);
    }
    found.contains_key("launched").then_some(found)
}

fn count(shared: &Path, rank: usize, word: &str) -> usize {
    let log = fs::read_to_string(shared.join(format!("log.{rank}"))).unwrap_or_default();
    log.lines()
        .filter(|line| line.split_whitespace().nth(1) == Some(word))
        .count()
}

/// Milliseconds that the coordinators tell, which log below `directory`; one number a node and epoch in which something was
/// made of the other slots.
fn first_bytes(directory: &Path) -> Vec<u64> {
    let told = Command::new("grep")
        .args([
            "-rhoE",
            "the first bytes of what is lost .* after_ms=[0-9]+",
        ])
        .arg(directory)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let number = |line: &str| line.rsplit('=').next()?.parse().ok();
    let mut found: Vec<u64> = told.lines().filter_map(number).collect();
    found.sort_unstable();
    found
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement: it wants the machine for itself"]
fn time_from_a_nodes_death_to_the_application_running_again() {
    let losses = number("SCRFS_RELAUNCHES", 5);
    let bytes = number("SCRFS_BYTES", 256 << 20);
    let cluster = Cluster::builder()
        .nodes(RANKS + losses)
        .shm_bytes(1536 << 20)
        .start()
        .unwrap();
    let site = tempfile::tempdir().unwrap();
    let (prefix, shared) = (site.path().join("prefix"), site.path().join("shared"));
    for path in [&prefix, &shared] {
        fs::create_dir(path).unwrap();
    }
    let hosts: Vec<String> = (1..=RANKS + losses)
        .map(|node| cluster.name(node))
        .collect();
    let log = site.path().join("log");
    let output = File::create(&log).unwrap();
    let mut command = cluster.command(0, binary("scrfs").unwrap());
    command
        .args(["run", "--runs", "-1", "--nodes", &hosts.join(",")])
        .args(["--spares", &losses.to_string(), "--rsh"])
        .arg(cluster.rsh())
        .arg("--prefix")
        .arg(&prefix)
        .arg("--log-dir")
        .arg(site.path())
        // Only what a restart needs is measured: nothing is copied out meanwhile.
        .env("SCRFS_FLUSH_EVERY", "0")
        .args(["--", "mpirun", "-n", &RANKS.to_string(), "--map-by", "node"])
        .arg("--mca")
        .arg("plm_rsh_agent")
        .arg(cluster.rsh())
        .arg(binary("scrfs-workload").unwrap())
        .args([
            "run",
            "--steps",
            "1000",
            "--bytes",
            &bytes.to_string(),
            "--shared",
        ])
        .arg(&shared)
        .args(["--seed", &SEED.to_string()])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    let mut run = Running(command.spawn().unwrap());
    let said = || fs::read_to_string(&log).unwrap_or_default();
    // The newest step that is protected. One of before a loss may look so while it is rebuilt.
    let protected = |node: usize| {
        let mut listing = cluster.command(node, "ls");
        let listed = listing.arg("/scr/.scr/status").output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let step = |name: &str| {
            let name = name.strip_suffix(".protected")?;
            name.strip_prefix("ckpt.")?.parse::<u64>().ok()
        };
        listed.lines().filter_map(step).max().unwrap_or(0)
    };
    let restarted_from = || {
        let log = fs::read_to_string(shared.join("log.0")).unwrap_or_default();
        let steps = log
            .lines()
            .filter_map(|line| line.split_once(" restart ")?.1.parse::<u64>().ok());
        steps.collect::<Vec<u64>>()
    };
    let mut totals = Vec::new();
    let mut readers = Vec::new();
    let mut table: Vec<Vec<f64>> = Vec::new();
    const STEPS: [(&str, &str); 6] = [
        ("noticed", "no heartbeat for a second: the node is lost"),
        ("ended", "application and coordinators killed everywhere"),
        (
            "epoch begun",
            "old epoch gone from all daemons; record written",
        ),
        ("connected", "coordinators of the next epoch connected"),
        (
            "recovered",
            "what there is found and agreed; programs may start",
        ),
        ("launched", "record written; launcher called"),
    ];
    for loss in 0..losses {
        let (victim, witness) = (loss + 1, loss + 2);
        let waited = wait_until(SOON, "a protected checkpoint of this launch", || {
            anyhow::ensure!(run.0.try_wait()?.is_none(), "it ended");
            let restarts = restarted_from();
            let from = restarts.last().copied().unwrap_or(0);
            let running = restarts.len() > loss;
            Ok((running && protected(witness) > from).then_some(()))
        });
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
        let begun: Vec<usize> = (0..RANKS)
            .map(|rank| count(&shared, rank, "begun"))
            .collect();
        let kind = if loss % 2 == 0 {
            Loss::Crash
        } else {
            Loss::Power
        };
        let killed = Instant::now();
        cluster.kill(victim, kind).unwrap();
        // Somebody elsewhere wants of the lost file at once; the coordinators tell when they had something to give.
        let step = protected(witness);
        let file = format!("/scr/ckpt.{step}/rank.{}", loss % RANKS);
        let script = format!("until head -c 1 {file} >/dev/null; do sleep 0.02; done");
        let mut reader = cluster.command(witness, "timeout");
        reader.args(["30", "sh", "-c", &script]);
        let reader = Running(reader.stderr(Stdio::null()).spawn().unwrap());
        readers.push(reader);
        let again = wait_until(SOON, "all ranks to begin", || {
            anyhow::ensure!(run.0.try_wait()?.is_none(), "it ended");
            let all = (0..RANKS).all(|rank| count(&shared, rank, "begun") > begun[rank]);
            Ok(all.then(|| killed.elapsed().as_secs_f64()))
        });
        let total = again.unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
        let times = wait_until(SOON, "the words on it", || Ok(steps(&said(), loss + 1))).unwrap();
        // From the first word on; what is before it is what is left of the total.
        // Coordinators that are connected may be ready before that is told.
        let told = |name: &str| times.get(name).or(times.get("recovered"));
        let at = |name: &str| told(name).copied().unwrap_or(f64::NAN);
        let mut row: Vec<f64> = STEPS
            .windows(2)
            .map(|pair| at(pair[1].0) - at(pair[0].0))
            .collect();
        let between = at("launched") - at("noticed");
        // What launchers and ranks take is not told by anybody; a second of silence is before the first word.
        let silence = said()
            .lines()
            .filter(|line| line.contains(" is lost: "))
            .nth(loss)
            .and_then(|line| {
                line.split("no heartbeat for ")
                    .nth(1)?
                    .split(' ')
                    .next()?
                    .parse::<f64>()
                    .ok()
            });
        let silence = silence.unwrap_or(f64::NAN);
        row.insert(0, silence);
        row.push(total - between - silence);
        table.push(row);
        totals.push(total);
        println!("{kind:?} of node{victim}: running again after {total:.2} s");
    }
    println!("\n| median | from .. to | step |\n| --- | --- | --- |");
    let names: Vec<&str> = STEPS.iter().map(|(_, words)| *words).collect();
    for (at, name) in names
        .iter()
        .copied()
        .chain(["launcher to the last rank's begin"])
        .enumerate()
    {
        let mut values: Vec<f64> = table.iter().map(|row| row[at]).collect();
        let middle = median(&mut values);
        println!(
            "| {middle:.2} s | {:.2} .. {:.2} s | {name} |",
            values[0],
            values[values.len() - 1]
        );
    }
    println!("| {:.2} s | | all |", median(&mut totals));
    let made = first_bytes(site.path());
    println!(
        "first bytes of what was lost, after the coordinators of the epoch began: {made:?} ms"
    );
    // Right bytes at each restart: the program looks at all of them, and says so.
    for rank in 0..RANKS {
        let text = fs::read_to_string(shared.join(format!("log.{rank}"))).unwrap();
        assert!(!text.contains("WRONG BYTES"), "{text}");
    }
}
