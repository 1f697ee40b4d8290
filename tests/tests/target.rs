//! What datasets are flushed to fails: it hangs, goes away, is removed, answers with errors. Real ones, on file
//! systems that others wrote. Programs do not notice, the status says what is wrong and where, and when
//! it is well again the prefix gets every byte.

#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use scrfs_tests::{Alone, Fault, Foreign, wait_until};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is to come comes within this time, on a busy machine too.
const SOON: Duration = Duration::from_secs(60);
/// Programs are not held up: what they do takes less, on a busy machine too.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Slow enough for something to happen in the middle of a copy of [`KIB`].
const SLOWLY: &str = "SCRFS_FLUSH_BANDWIDTH=8MiB $MOUNT $P";
const KIB: u32 = 64 << 10;

/// Where the bytes of what is mounted at the prefix are.
fn below(node: &Alone) -> Result<PathBuf> {
    let below = node.site.path().join("below");
    fs::create_dir(&below)?;
    Ok(below)
}

fn prefix(node: &Alone) -> PathBuf {
    node.site.path().join("prefix")
}

fn bindfs(node: &Alone) -> Result<Foreign> {
    let below = node.site.path().join("below");
    Foreign::bindfs(&node.cluster, 1, &below, &prefix(node))
}

/// What `scrfs status` and the file in `.scr/status` say of a dataset.
fn told(node: &Alone, name: &str) -> Result<[Option<Value>; 2]> {
    let status: Value = serde_json::from_str(&node.sh("$SCRFS status --json")?)?;
    let datasets = status["datasets"].as_array().context("no datasets")?;
    let of_it = datasets.iter().find(|it| it["name"] == name).cloned();
    // Its name changes with the state and the progress: it may go between the two.
    let file = node.try_sh(&format!("cat /scr/.scr/status/{name}.*"))?;
    let file = file.status.success().then_some(file.stdout);
    let file = file.and_then(|text| serde_json::from_slice(&text).ok());
    Ok([of_it, file])
}

/// Waits until both say something of a dataset.
fn wait_told(
    node: &Alone,
    name: &str,
    within: Duration,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Result<()> {
    let mut last = [None, None];
    wait_until(within, &format!("{name} to be told {what}"), || {
        last = told(node, name)?;
        let all = last.iter().all(|it| it.as_ref().is_some_and(&is_so));
        Ok(all.then_some(()))
    })
    .with_context(|| format!("told last: {last:?}"))
}

/// Waits until the error of a dataset says all of this, while it is protected.
fn wait_error(node: &Alone, name: &str, within: Duration, words: &[&str]) -> Result<()> {
    wait_told(node, name, within, &format!("{words:?}"), |it| {
        let said = it["error"].as_str().unwrap_or_default();
        it["protected"].is_string() && words.iter().all(|words| said.contains(words))
    })
}

/// Waits until the prefix has a dataset: no error is told any more, and every byte is right.
fn wait_flushed(node: &Alone, name: &str, sum: &str) -> Result<()> {
    wait_told(node, name, SOON, "to be flushed", |it| {
        it["flushed"].is_string() && it["error"].is_null()
    })?;
    let there = node.sum(&format!("$P/{name}/data"))?;
    ensure!(there == sum, "the prefix has other bytes of {name}");
    Ok(())
}

/// Commits a dataset, and waits until the copy of it has begun.
fn begin_flush(node: &Alone, name: &str) -> Result<String> {
    node.commit(name, KIB)?;
    let sum = node.sum(&format!("/scr/{name}/data"))?;
    wait_told(node, name, SOON, "to be copied", |it| {
        it["state"] == "flushing" && it["flushed_bytes"].as_u64() > Some(0)
    })?;
    Ok(sum)
}

/// Commits a small dataset, which must not be held up by anything, and gives its sum.
fn commit_at_once(node: &Alone, name: &str) -> Result<String> {
    let begun = Instant::now();
    node.commit(name, 1024)?;
    let sum = node.sum(&format!("/scr/{name}/data"))?;
    let took = begun.elapsed();
    ensure!(took < AT_ONCE, "{name} took {took:?}");
    Ok(sum)
}

/// Waits until a flush has failed so many times more.
fn wait_tries(node: &Alone, times: usize) -> Result<()> {
    let count = || -> Result<usize> {
        let log = node.sh("cat $C/daemon.log")?;
        let failed = log.lines().filter(|line| line.contains("work failed"));
        Ok(failed.count())
    };
    let before = count()?;
    wait_until(SOON, &format!("{times} more tries"), || {
        Ok((count()? >= before + times).then_some(()))
    })
}

#[test]
fn a_target_that_hangs_in_a_copy_holds_nobody_up_and_is_told_of() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    below(&node)?;
    let disk = bindfs(&node)?;
    node.sh(SLOWLY)?;
    let first = begin_flush(&node, "ckpt.1")?;
    let hanging = disk.hang()?;
    let begun = Instant::now();
    let second = commit_at_once(&node, "ckpt.2")?;
    node.wait_state("ckpt.2", "protected")?;
    let inflight = prefix(&node).join(".scrfs/inflight").display().to_string();
    let words = ["nothing could be written to", &inflight];
    wait_error(&node, "ckpt.1", Duration::from_secs(90), &words)?;
    let took = begun.elapsed();
    ensure!(took > Duration::from_secs(50), "told after {took:?}");
    let third = commit_at_once(&node, "ckpt.3")?;
    ensure!(node.sum("/scr/ckpt.1/data")? == first, "changed");
    hanging.go_on()?;
    wait_flushed(&node, "ckpt.1", &first)?;
    wait_flushed(&node, "ckpt.2", &second)?;
    wait_flushed(&node, "ckpt.3", &third)?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_target_that_hangs_when_an_epoch_begins_is_flushed_to_when_it_answers() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    below(&node)?;
    let disk = bindfs(&node)?;
    node.mount()?;
    let hanging = disk.hang()?;
    let root = prefix(&node).display().to_string();
    let words = ["flush cannot begin: ", root.as_str(), "does not answer"];
    let mut sums = Vec::new();
    // Without anything to restart from the prefix is waited for, for longer than with it.
    for (name, patience) in [("ckpt.1", 20), ("ckpt.2", 3)] {
        node.kill("scrfs-coordinator serve")?;
        let begun = Instant::now();
        node.commit(name, 1024)?;
        let took = begun.elapsed();
        let limit = Duration::from_secs(patience) + AT_ONCE;
        ensure!(took < limit, "{name} was held up for {took:?}");
        sums.push((name, node.sum(&format!("/scr/{name}/data"))?));
        for (name, _) in &sums {
            wait_error(&node, name, SOON, &words)?;
        }
    }
    hanging.go_on()?;
    for (name, sum) in sums {
        wait_flushed(&node, name, &sum)?;
    }
    node.sh("$SCRFS unmount /scr").map(drop)
}

/// Where a request of it was taken and is not answered, the kernel keeps a process that was killed.
#[test]
fn a_coordinator_that_a_target_holds_is_given_up() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    let (below, control) = (below(&node)?, node.site.path().join("control"));
    fs::create_dir(&control)?;
    let disk = Foreign::loopback(&node.cluster, 1, &below, &prefix(&node), &control)?;
    node.mount()?;
    disk.fail(Fault::Hang)?;
    let first = commit_at_once(&node, "ckpt.1")?;
    disk.wait_held()?;
    let killed = node.kill("scrfs-coordinator serve")?;
    let is_held = format!("grep -q '^State:.Z' /proc/{}/status", killed[0]);
    node.wait_for(&is_held)?;
    let begun = Instant::now();
    node.commit("ckpt.2", 1024)?;
    let took = begun.elapsed();
    let limit = Duration::from_secs(3) + AT_ONCE;
    ensure!(took < limit, "ckpt.2 was held up for {took:?}");
    let second = node.sum("/scr/ckpt.2/data")?;
    let root = prefix(&node).display().to_string();
    let words = ["flush cannot begin: ", root.as_str(), "does not answer"];
    wait_error(&node, "ckpt.1", SOON, &words)?;
    wait_error(&node, "ckpt.2", SOON, &words)?;
    // Nor do those that are held keep the mount.
    let begun = Instant::now();
    node.sh("$SCRFS unmount /scr")?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(30), "unmounted after {took:?}");
    node.sh(&is_held)?;
    disk.mend(Fault::Hang)?;
    node.mount()?;
    wait_flushed(&node, "ckpt.1", &first)?;
    wait_flushed(&node, "ckpt.2", &second)?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_mount_waits_for_a_target_that_hangs_and_says_so() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    below(&node)?;
    let disk = bindfs(&node)?;
    let hanging = disk.hang()?;
    node.sh("$MOUNT $P > /run/tmp/said 2>&1 &")?;
    node.wait_for("grep -q \"waiting for $P.* to answer\" /run/tmp/said")?;
    node.sh("test ! -e /scr/.scr")?;
    hanging.go_on()?;
    node.wait_for("test -e /scr/.scr")?;
    let sum = commit_at_once(&node, "ckpt.1")?;
    wait_flushed(&node, "ckpt.1", &sum)?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_target_whose_server_dies_is_flushed_to_when_it_is_mounted_again() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    below(&node)?;
    let disk = bindfs(&node)?;
    node.sh(SLOWLY)?;
    let first = begin_flush(&node, "ckpt.1")?;
    disk.kill()?;
    let root = prefix(&node).display().to_string();
    let words = [root.as_str(), "Transport endpoint is not connected"];
    wait_error(&node, "ckpt.1", SOON, &words)?;
    let second = commit_at_once(&node, "ckpt.2")?;
    wait_tries(&node, 2)?;
    ensure!(node.sum("/scr/ckpt.1/data")? == first, "changed");
    node.sh("umount -l $P")?;
    let _disk = bindfs(&node)?;
    wait_flushed(&node, "ckpt.1", &first)?;
    wait_flushed(&node, "ckpt.2", &second)?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_target_that_is_removed_in_a_copy_is_not_made_anew_and_gets_all_of_it_later() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    node.sh(SLOWLY)?;
    let first = begin_flush(&node, "ckpt.1")?;
    // Again, as what is being written comes up in between.
    node.sh("while ! rm -rf $P; do :; done")?;
    let root = prefix(&node).display().to_string();
    wait_error(&node, "ckpt.1", SOON, &["failed", &root])?;
    let second = commit_at_once(&node, "ckpt.2")?;
    for _ in 0..3 {
        wait_tries(&node, 1)?;
        node.sh("test ! -e $P")?;
    }
    let words = [root.as_str(), "does not exist"];
    wait_error(&node, "ckpt.1", SOON, &words)?;
    ensure!(node.sum("/scr/ckpt.1/data")? == first, "changed");
    node.sh("mkdir $P")?;
    wait_flushed(&node, "ckpt.1", &first)?;
    wait_flushed(&node, "ckpt.2", &second)?;
    node.sh("$SCRFS unmount /scr").map(drop)
}

#[test]
fn a_target_that_answers_with_errors_gets_every_output_before_what_is_newer() -> Result<()> {
    let node = Alone::new(512 << 20)?;
    let (below, control) = (below(&node)?, node.site.path().join("control"));
    fs::create_dir(&control)?;
    fs::write(
        below.join(".scrfs.toml"),
        "[[dataset]]\nmatch = \"out.*\"\nclass = \"output\"\n",
    )?;
    let disk = Foreign::loopback(&node.cluster, 1, &below, &prefix(&node), &control)?;
    node.mount()?;
    let root = prefix(&node).display().to_string();
    let mut earlier: Vec<(String, String)> = Vec::new();
    for (step, fault, words) in [
        (1, Fault::Write, "Input/output error"),
        (2, Fault::Sync, "Input/output error"),
        (3, Fault::Stale, "Stale file handle"),
    ] {
        let (output, newer) = (format!("out.{step}"), format!("ckpt.{step}"));
        disk.fail(fault)?;
        let sums = [
            commit_at_once(&node, &output)?,
            commit_at_once(&node, &newer)?,
        ];
        wait_error(&node, &output, SOON, &[&root, words])?;
        wait_error(&node, &newer, SOON, &["waits for", &output])?;
        wait_tries(&node, 2)?;
        for (name, sum) in &earlier {
            ensure!(node.sum(&format!("/scr/{name}/data"))? == *sum, "changed");
        }
        let there: Vec<_> = fs::read_dir(&below)?.flatten().collect();
        let is_new = |name: &str| there.iter().any(|it| it.file_name() == name);
        ensure!(!is_new(&newer) && !is_new(&output), "{there:?}");
        disk.mend(fault)?;
        for (name, sum) in [output.clone(), newer.clone()].into_iter().zip(sums) {
            wait_flushed(&node, &name, &sum)?;
            earlier.push((name, sum));
        }
        wait_until(SOON, "both to be in the events", || {
            let events = node.sh("cat /scr/.scr/events")?;
            let flushed = |name: &str| {
                let words = ["\"event\":\"flushed\"", &format!("\"name\":\"{name}\"")];
                let is_it = |line: &str| words.iter().all(|words| line.contains(words));
                events.lines().position(is_it)
            };
            let times = flushed(&output).zip(flushed(&newer));
            ensure!(
                times.is_none_or(|(output, newer)| output < newer),
                "{events}"
            );
            Ok(times.map(drop))
        })?;
    }
    node.sh("$SCRFS unmount /scr")?;
    for (name, sum) in earlier {
        let there = fs::read(below.join(&name).join("data"))?;
        ensure!(there.len() == 1 << 20, "{name} has {}", there.len());
        ensure!(node.sum(&format!("$P/{name}/data"))? == sum, "{name}");
    }
    Ok(())
}
