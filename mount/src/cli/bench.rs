//! `scrfs bench`: this machine's figures, each beside its limit, taken in the same run.
//!
//! It mounts a filesystem of its own on a temporary directory and takes it down again, so that nothing
//! of a job is touched. Raw and mounted runs alternate, after one of each that does not count; the figure
//! is the median. The cross-node figures come from `scrfs-coordinator bench`.

use super::Failure;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Bytes of one request.
const REQUEST_BYTES: usize = 1 << 20;
/// Commits that are timed.
const COMMITS: u32 = 20;

#[derive(clap::Args, Debug)]
pub(super) struct BenchArgs {
    /// The store to measure on
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    store: PathBuf,
    /// MiB of the file that is written and read
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    file: u64,
    /// MiB a node of the encode, of four nodes in one process
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    part: u64,
    /// Runs that count
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: u32,
    /// A JSON array of name, value, unit, limit, ratio, runs
    #[arg(long)]
    json: bool,
}

/// One measured number; the fields are stable.
#[derive(Serialize, Deserialize, Clone, Debug)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    limit: Option<f64>,
    ratio: Option<f64>,
    runs: u32,
}

/// A filesystem mounted for the measurement; goes away with the value.
struct Bench {
    root: PathBuf,
}

impl Bench {
    fn mount(store: &Path) -> Result<Self> {
        let root = store.join(format!("scrfs-bench.{}", std::process::id()));
        for name in ["mnt", "raw", "cache", "prefix"] {
            let path = root.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let bench = Self { root };
        let status = Command::new(std::env::current_exe().context("finding this program")?)
            .arg("mount")
            .arg(bench.mountpoint())
            .arg("--cache")
            .arg(bench.root.join("cache"))
            .arg("--prefix")
            .arg(bench.root.join("prefix"))
            .args(["--job", "bench"])
            .env("SCR_FLUSH", "0")
            .status()
            .context("cannot start the daemon")?;
        if !status.success() {
            bail!("cannot mount for the measurement: {status}");
        }
        Ok(bench)
    }

    fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    fn raw(&self) -> PathBuf {
        self.root.join("raw")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let unmounted = std::env::current_exe().and_then(|me| {
            let mut unmount = Command::new(me);
            unmount
                .arg("unmount")
                .arg(self.mountpoint())
                .args(["--now", "--purge"]);
            unmount.stdout(Stdio::null()).status()
        });
        match unmounted {
            Ok(status) if status.success() => {
                if let Err(error) = fs::remove_dir_all(&self.root) {
                    eprintln!("scrfs: cannot remove {}: {error}", self.root.display());
                }
            }
            _ => eprintln!("scrfs: {} is still mounted", self.mountpoint().display()),
        }
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let figures = measure(args)?;
    if args.json {
        let text = serde_json::to_string_pretty(&figures).context("figures as JSON")?;
        println!("{text}");
        return Ok(());
    }
    println!(
        "{:<44} {:>10} {:<6} {:>10} {:>6}",
        "", "value", "", "limit", "ratio"
    );
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    for Figure {
        name,
        value,
        unit,
        limit,
        ratio,
        ..
    } in figures
    {
        let (limit, ratio) = (optional(limit), optional(ratio));
        println!("{name:<44} {value:>10.2} {unit:<6} {limit:>10} {ratio:>6}");
    }
    Ok(())
}

fn measure(args: &BenchArgs) -> Result<Vec<Figure>> {
    let bench = Bench::mount(&args.store)?;
    let dataset = bench.mountpoint().join("bench.tmp");
    fs::create_dir(&dataset).context("mkdir in the mount")?;
    let mut figures = files(args, &bench.raw().join("file"), &dataset.join("file"))?;
    fs::remove_dir(&dataset).context("rmdir in the mount")?;
    figures.push(commits(&bench.mountpoint())?);
    let store = args.store.to_string_lossy().into_owned();
    figures.extend(coordinator(&["bench", "--directory", &store], args)?);
    Ok(figures)
}

/// Writes and reads through the mount beside the raw store.
fn files(args: &BenchArgs, raw: &Path, mounted: &Path) -> Result<Vec<Figure>> {
    let bytes = args.file << 20;
    let block = vec![0x5a_u8; REQUEST_BYTES];
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for run in 0..=args.runs {
        let times = [
            write(raw, &block, bytes)?,
            write(mounted, &block, bytes)?,
            read(raw, bytes)?,
            read(mounted, bytes)?,
        ];
        for path in [raw, mounted] {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        // The first touches the memory for all that follow.
        if run > 0 {
            seconds
                .iter_mut()
                .zip(times)
                .for_each(|(all, time)| all.push(time));
        }
    }
    let [raw_write, write, raw_read, read] =
        seconds.map(|times| bytes as f64 / 1e9 / median(times));
    let figure = |name: &str, value: f64, limit: f64| Figure {
        name: format!("{name}, {} MiB file, 1 MiB requests", args.file),
        value,
        unit: "GB/s".into(),
        limit: Some(limit),
        ratio: Some(value / limit),
        runs: args.runs,
    };
    Ok(vec![
        figure("write", write, raw_write),
        figure("read", read, raw_read),
    ])
}

fn write(path: &Path, block: &[u8], bytes: u64) -> Result<f64> {
    let start = Instant::now();
    let mut file =
        File::create_new(path).with_context(|| format!("creating {}", path.display()))?;
    for _ in 0..bytes / block.len() as u64 {
        file.write_all(block)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    drop(file);
    Ok(start.elapsed().as_secs_f64())
}

fn read(path: &Path, bytes: u64) -> Result<f64> {
    let mut block = vec![0; REQUEST_BYTES];
    let start = Instant::now();
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    for _ in 0..bytes / block.len() as u64 {
        file.read_exact(&mut block)
            .with_context(|| format!("reading {}", path.display()))?;
    }
    drop(file);
    Ok(start.elapsed().as_secs_f64())
}

/// How long a program waits in the rename that commits.
fn commits(mountpoint: &Path) -> Result<Figure> {
    let mut times = Vec::new();
    for number in 0..COMMITS {
        let (open, done) = (format!("rename.{number}.tmp"), format!("rename.{number}"));
        let open = mountpoint.join(open);
        fs::create_dir(&open).context("mkdir in the mount")?;
        fs::write(open.join("data"), vec![0; 4096]).context("writing in the mount")?;
        let start = Instant::now();
        fs::rename(&open, mountpoint.join(done)).context("the rename that commits")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Figure {
        name: "commit: rename of a directory, one node".into(),
        value: median(times),
        unit: "ms".into(),
        limit: None,
        ratio: None,
        runs: COMMITS,
    })
}

/// Figures that the coordinator takes.
fn coordinator(command: &[&str], args: &BenchArgs) -> Result<Vec<Figure>> {
    let program = crate::daemon::find_program("scrfs-coordinator")
        .context("scrfs-coordinator is neither beside this program nor on the PATH")?;
    let output = Command::new(&program)
        .args(command)
        .args([
            "--part",
            &args.part.to_string(),
            "--runs",
            &args.runs.to_string(),
        ])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} bench ended with {}", program.display(), output.status);
    }
    serde_json::from_slice(&output.stdout).context("the coordinator's figures do not parse")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_outliers() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
