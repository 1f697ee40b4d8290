//! `scrfs bench flush`: a dataset of four files to the prefix, beside `cp` with as many processes, and beside
//! a program that writes to the mount meanwhile.
//!
//! Every run has a mount of its own. `cp` reads the very files that are flushed, from where the cache
//! has them, and writes to the same file system; which of both comes first alternates. A flush makes its files
//! durable and holds each unit against its checksum, `cp` does neither: so there are two limits, `cp` alone, and `cp` with a sync
//! after it. The program writes over one file of the mount, in requests of 1 MiB: first alone, then for as
//! long as the flush takes.

use super::{Bench, BenchArgs, Figure, Report, go_on, median, progress};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Files of the dataset, each copied by a process of its own.
const FILES: u64 = 4;
/// Bytes of a request.
const REQUEST_BYTES: usize = 1 << 20;
/// Bytes that the program beside the flush writes over and over.
const PROGRAM_BYTES: u64 = 128 << 20;
/// How long it writes alone.
const ALONE: Duration = Duration::from_secs(2);
/// A flush that is kept below so much a second.
const LIMITED: &str = "64MiB";
/// How long the program is watched beside it.
const WATCHED: Duration = Duration::from_secs(4);

/// Where copies go to; removed with the value.
struct Target(PathBuf);

impl Drop for Target {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("scrfs: cannot remove {}: {error}", self.0.display());
        }
    }
}

#[derive(Default)]
struct Times {
    cp: Vec<f64>,
    cp_and_sync: Vec<f64>,
    flush: Vec<f64>,
    /// The program's speed beside a flush, of its speed alone.
    beside: Vec<f64>,
    beside_limited: Vec<f64>,
}

pub(super) fn figures(args: &BenchArgs, report: &mut Report) -> Result<()> {
    let target = args
        .prefix
        .join(format!("scrfs-bench-prefix.{}", std::process::id()));
    fs::create_dir(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let target = Target(fs::canonicalize(&target).context("the target")?);
    let mut times = Times::default();
    // The first touches the memory for all that follow.
    for run in 0..=args.runs {
        progress(&format!("flush: run {run} of {}", args.runs));
        go_on()?;
        let mut measured = Times::default();
        one(args, &target.0, run % 2 == 1, &mut measured)?;
        if run > 0 {
            times.cp.append(&mut measured.cp);
            times.cp_and_sync.append(&mut measured.cp_and_sync);
            times.flush.append(&mut measured.flush);
            times.beside.append(&mut measured.beside);
            times.beside_limited.append(&mut measured.beside_limited);
        }
    }
    let gigabytes = (FILES * args.part) as f64 * f64::from(1 << 20) / 1e9;
    let speed = |seconds: &[f64]| gigabytes / median(seconds.to_vec());
    let (flush, cp) = (speed(&times.flush), speed(&times.cp));
    let cp_and_sync = speed(&times.cp_and_sync);
    let figure = |name: String, value: f64, unit: &str, limit: Option<f64>| Figure {
        name,
        value,
        unit: unit.into(),
        limit,
        ratio: limit.map(|limit| value / limit),
        runs: args.runs,
    };
    let one = |name: &str, ratios: &[f64]| {
        figure(name.into(), median(ratios.to_vec()), "of 1", Some(1.0))
    };
    let figures = [
        figure(
            format!("flush: {FILES} files, limit cp"),
            flush,
            "GB/s",
            Some(cp),
        ),
        figure(
            format!("flush: {FILES} files, limit cp and sync"),
            flush,
            "GB/s",
            Some(cp_and_sync),
        ),
        one("flush: a program's writes beside it", &times.beside),
        one(
            &format!("flush: the same, bandwidth = {LIMITED}"),
            &times.beside_limited,
        ),
    ];
    figures.into_iter().for_each(|figure| report.add(figure));
    Ok(())
}

/// One run.
fn one(args: &BenchArgs, target: &Path, flush_first: bool, times: &mut Times) -> Result<()> {
    let prefix = target.join("prefix");
    {
        let bench = prepared(args, &prefix, None)?;
        let tree = bench.tree()?;
        for step in [flush_first, !flush_first] {
            if step {
                times
                    .flush
                    .push(timed(|| finished(bench.flush("ckpt.1")?))?);
            } else {
                let to = target.join("cp");
                fs::create_dir(&to).context("making the directory to copy to")?;
                let begun = Instant::now();
                copy(&tree, &to)?;
                times.cp.push(begun.elapsed().as_secs_f64());
                let root = File::open(&to).context("opening the copy")?;
                nix::unistd::syncfs(&root).context("syncing the copy")?;
                times.cp_and_sync.push(begun.elapsed().as_secs_f64());
                fs::remove_dir_all(&to).context("removing the copy")?;
            }
        }
    }
    fs::remove_dir_all(&prefix).context("removing what was flushed")?;
    for limit in [None, Some(LIMITED)] {
        let ratio = beside(&prepared(args, &prefix, limit)?)?;
        match limit {
            None => times.beside.push(ratio),
            Some(_) => times.beside_limited.push(ratio),
        }
        fs::remove_dir_all(&prefix).context("removing what was flushed")?;
    }
    Ok(())
}

/// A mount with `ckpt.1` in it, protected and not flushed.
fn prepared(args: &BenchArgs, prefix: &Path, bandwidth: Option<&str>) -> Result<Bench> {
    let settings: Vec<_> = bandwidth
        .map(|limit| ("SCRFS_FLUSH_BANDWIDTH", limit))
        .into_iter()
        .collect();
    let bench = Bench::mount_with(&args.store, false, Some(prefix), &settings)?;
    let open = bench.mountpoint().join("ckpt.1.tmp");
    fs::create_dir(&open).context("mkdir in the mount")?;
    let block = vec![0x5a_u8; REQUEST_BYTES];
    for number in 0..FILES {
        let file = File::create_new(open.join(format!("rank.{number}"))).context("creating")?;
        for request in 0..args.part {
            let offset = request * REQUEST_BYTES as u64;
            file.write_all_at(&block, offset).context("writing")?;
        }
    }
    fs::rename(&open, bench.mountpoint().join("ckpt.1")).context("the rename that commits")?;
    finished(bench.command(&["wait", "--for", "protected", "ckpt.1"])?)?;
    Ok(bench)
}

impl Bench {
    fn command(&self, words: &[&str]) -> Result<Child> {
        Command::new(std::env::current_exe().context("finding this program")?)
            .args(words)
            .arg("--mount")
            .arg(self.mountpoint())
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start a command")
    }

    fn flush(&self, name: &str) -> Result<Child> {
        self.command(&["flush", name])
    }

    /// Where the cache has the files.
    fn tree(&self) -> Result<PathBuf> {
        let uid = nix::unistd::Uid::effective().as_raw();
        let jobs = self.root.join("cache").join(format!("scrfs.{uid}"));
        let tree = jobs.join(super::JOB).join("datasets/1/slot.0/tree");
        ensure!(
            tree.is_dir(),
            "no files in {}: a store that is a directory can be measured",
            tree.display()
        );
        Ok(tree)
    }
}

fn finished(mut child: Child) -> Result<()> {
    let status = child.wait().context("waiting for a command")?;
    ensure!(status.success(), "a command ended with {status}");
    Ok(())
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    act()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Copies all files at once, as people do.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut running = Vec::new();
    for entry in fs::read_dir(from).context("listing the files")? {
        let mut cp = Command::new("cp");
        cp.arg(entry.context("listing the files")?.path()).arg(to);
        running.push(cp.spawn().context("cannot start cp")?);
    }
    running.into_iter().try_for_each(finished)
}

/// What is left of the speed of a program that writes to the mount while `ckpt.1` is flushed.
fn beside(bench: &Bench) -> Result<f64> {
    let open = bench.mountpoint().join("program.tmp");
    fs::create_dir(&open).context("mkdir in the mount")?;
    let file = File::create_new(open.join("file")).context("creating")?;
    let mut block = vec![0x5a_u8; REQUEST_BYTES];
    // Once, so that its pages are there.
    write_until(&file, &mut block, |bytes| bytes >= PROGRAM_BYTES)?;
    let alone = rate(&file, &mut block, |took| took >= ALONE)?;
    let mut flush = bench.flush("ckpt.1")?;
    let is_over = AtomicBool::new(false);
    let together = rate(&file, &mut block, |took| {
        let ended = !matches!(flush.try_wait(), Ok(None));
        is_over.store(ended, Ordering::Relaxed);
        ended || took >= WATCHED
    });
    if !is_over.load(Ordering::Relaxed) {
        // Not waited for: it goes on for long, and the mount is about to go.
        flush.kill().context("ending a command")?;
        flush.wait().context("waiting for a command")?;
    }
    let together = together?;
    if alone <= 0.0 {
        bail!("nothing was written");
    }
    Ok(together / alone)
}

/// Bytes a second until it is over; looked at every few milliseconds.
fn rate(file: &File, block: &mut [u8], mut over: impl FnMut(Duration) -> bool) -> Result<f64> {
    let begun = Instant::now();
    let mut looked = begun;
    let bytes = write_until(file, block, |_| {
        let due = looked.elapsed() >= Duration::from_millis(5);
        if due {
            looked = Instant::now();
        }
        due && over(begun.elapsed())
    })?;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}

/// Writes over the file again and again.
fn write_until(file: &File, block: &mut [u8], mut over: impl FnMut(u64) -> bool) -> Result<u64> {
    let mut bytes = 0;
    while !over(bytes) {
        file.write_all_at(block, bytes % PROGRAM_BYTES)
            .context("writing")?;
        bytes += block.len() as u64;
    }
    Ok(bytes)
}
