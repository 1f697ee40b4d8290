//! `scrfs bench`: this machine's figures, each beside its limit, taken in the same run.
//!
//! It mounts a filesystem of its own on a temporary directory and takes it down again, so that nothing
//! of a job is touched, twice: as a user would, and with the bytes served by the daemon. Raw and mounted
//! runs alternate, after one of each that does not count; the figure is the median. What crosses nodes
//! is measured by `scrfs-coordinator bench`. Each figure is printed when it is there. SIGINT and SIGTERM
//! end it after the run that is being timed, and take the mount down. `scrfs bench flush` is only made when
//! it is asked for, for it fills a file system.

mod data;
mod flush;
mod names;

use super::Failure;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The job of the mounts here.
const JOB: &str = "bench";
/// Commits that are timed.
const COMMITS: u32 = 20;

#[derive(clap::Args, Debug)]
pub(super) struct BenchArgs {
    /// Only this
    #[arg(value_enum)]
    what: Option<What>,
    /// The store to measure on; `tmpfs` is a private one, beside plain /dev/shm
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    store: PathBuf,
    /// MiB of the files that are written and read, a multiple of 16
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    file: u64,
    /// How many small files, all in one directory
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    files: u32,
    /// MiB a node of encode and rebuild, of four nodes on this machine; a file of four of flush
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    part: u64,
    /// Where to flush to
    #[arg(long, value_name = "DIR", default_value = ".")]
    prefix: PathBuf,
    /// Runs that count; an even number, so that each is first as often
    #[arg(long, value_name = "N", default_value_t = 6)]
    runs: u32,
    /// A JSON array of name, value, unit, limit, ratio, runs
    #[arg(long)]
    json: bool,
}

/// What can be measured by itself.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// Files and names on one node, by both ways that bytes can take
    Mount,
    /// The parity of four nodes, by each scheme
    Encode,
    /// One lost node of four, by each scheme
    Rebuild,
    /// Four files to the prefix, beside cp, and beside a program that writes
    Flush,
}

/// Set by the first signal that asks for the end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on signals that ask for the end only set [`INTERRUPTED`]; what is started has them as usual.
fn watch_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("blocking signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while signals.wait().is_err() {}
            INTERRUPTED.store(true, Ordering::Relaxed);
        })
        .context("starting the thread that waits for signals")?;
    Ok(())
}

fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
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
    fn mount(store: &Path, served: bool) -> Result<Self> {
        Self::mount_with(store, served, None, &[])
    }

    fn mount_with(
        store: &Path,
        served: bool,
        prefix: Option<&Path>,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let private = store == Path::new("tmpfs");
        let beside = if private {
            Path::new("/dev/shm")
        } else {
            store
        };
        let root = beside.join(format!("scrfs-bench.{}", std::process::id()));
        let cache = match private {
            true => store.to_owned(),
            false => root.join("cache"),
        };
        for name in ["mnt", "raw", "cache", "prefix"] {
            let path = root.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let bench = Self { root };
        let prefix = prefix.map_or_else(|| bench.root.join("prefix"), Path::to_owned);
        fs::create_dir_all(&prefix).with_context(|| format!("cannot make {}", prefix.display()))?;
        let status = Command::new(std::env::current_exe().context("finding this program")?)
            .arg("mount")
            .arg(bench.mountpoint())
            .arg("--cache")
            .arg(cache)
            .arg("--prefix")
            .arg(prefix)
            .args(["--job", JOB])
            .args(served.then_some(["-o", "no_passthrough"]).iter().flatten())
            .env("SCR_FLUSH", "0")
            .envs(settings.iter().copied())
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

    /// The private tmpfs that a mount on `tmpfs` has.
    fn private_store(&self) -> Result<PathBuf> {
        let root = crate::store::private_paths(JOB).root().to_owned();
        if crate::mountpoint::mounted_on(&root)?.is_none() {
            bail!("there is no private tmpfs to measure on: `scrfs status` of a mount says why");
        }
        Ok(root)
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
    watch_signals()?;
    let mut report = Report {
        figures: Vec::new(),
        json: args.json,
    };
    measure(args, &mut report)?;
    if args.json {
        let text = serde_json::to_string_pretty(&report.figures).context("figures as JSON")?;
        println!("{text}");
    }
    Ok(())
}

/// The figures so far: a table that grows, or an array at the end.
struct Report {
    figures: Vec<Figure>,
    json: bool,
}

impl Report {
    fn add(&mut self, figure: Figure) {
        progress("");
        if !self.json {
            if self.figures.is_empty() {
                println!(
                    "{:<56} {:>10} {:<6} {:>10} {:>6}",
                    "", "value", "", "limit", "ratio"
                );
            }
            let Figure {
                name, value, unit, ..
            } = &figure;
            let optional = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.2}"));
            let (limit, ratio) = (optional(figure.limit), optional(figure.ratio));
            println!("{name:<56} {value:>10.2} {unit:<6} {limit:>10} {ratio:>6}");
        }
        self.figures.push(figure);
    }
}

/// What a value counts.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Unit {
    GigabytesPerSecond,
    PerSecond,
    /// A call's time; the only one of which less is better.
    Microseconds,
}

/// Does the work in a directory and says how long what counts took.
type Timed = dyn Fn(&Path) -> Result<Duration>;

/// Something to do in an empty directory, on the raw store and on the mount alike.
struct Workload {
    name: String,
    /// What is done, in 10^9 bytes or in calls.
    amount: f64,
    unit: Unit,
    run: Box<Timed>,
}

impl Workload {
    fn value(&self, seconds: f64) -> f64 {
        match self.unit {
            Unit::GigabytesPerSecond | Unit::PerSecond => self.amount / seconds,
            Unit::Microseconds => seconds * 1e6 / self.amount,
        }
    }

    /// Runs alternately in directories below both, and compares the medians.
    fn compare(&self, raw: &Path, mounted: &Path, path_name: &str, runs: u32) -> Result<Figure> {
        let mut seconds = [Vec::new(), Vec::new()];
        // The first touches the memory for all that follow. Each gets the pages that the one before it
        // freed, in their opposite order, which reads by up to a third faster or slower: so take turns.
        progress(&format!("{path_name}: {}", self.name));
        for run in 0..=runs {
            go_on()?;
            let mut turns: Vec<_> = seconds.iter_mut().zip([raw, mounted]).collect();
            if run % 2 == 1 {
                turns.reverse();
            }
            for (all, below) in turns {
                let dir = below.join("work");
                fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
                let time = (self.run)(&dir)
                    .with_context(|| format!("{:?} in {}", self.name, dir.display()))?;
                fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
                if run > 0 {
                    all.push(time.as_secs_f64());
                }
            }
        }
        let [limit, value] = seconds.map(|all| self.value(median(all)));
        Ok(Figure {
            name: format!("{path_name}: {}", self.name),
            value,
            unit: match self.unit {
                Unit::GigabytesPerSecond => "GB/s",
                Unit::PerSecond => "1/s",
                Unit::Microseconds => "us",
            }
            .into(),
            limit: Some(limit),
            ratio: Some(value / limit),
            runs,
        })
    }
}

fn measure(args: &BenchArgs, report: &mut Report) -> Result<()> {
    if args.file == 0 || !args.file.is_multiple_of(16) {
        bail!("--file {}: must be a multiple of 16 MiB", args.file);
    }
    match args.what {
        Some(What::Mount) => one_node(args, report),
        Some(What::Encode) => redundancy("encode", args, report),
        Some(What::Rebuild) => redundancy("rebuild", args, report),
        Some(What::Flush) => flush::figures(args, report),
        None => {
            one_node(args, report)?;
            redundancy("encode", args, report)?;
            redundancy("rebuild", args, report)
        }
    }
}

/// Files and names in a mount, beside its store.
fn one_node(args: &BenchArgs, report: &mut Report) -> Result<()> {
    for path_name in ["mount", "served"] {
        let mut workloads = data::workloads(args.file << 20);
        // Names cost the same whoever serves the bytes.
        if path_name == "mount" {
            workloads.extend(names::workloads(args.files));
            workloads.extend(names::calls(args.files));
        }
        let bench = Bench::mount(&args.store, path_name == "served")?;
        let dataset = bench.mountpoint().join("bench.tmp");
        fs::create_dir(&dataset).context("mkdir in the mount")?;
        for workload in &workloads {
            report.add(workload.compare(&bench.raw(), &dataset, path_name, args.runs)?);
        }
        fs::remove_dir(&dataset).context("rmdir in the mount")?;
        if path_name == "mount" {
            report.add(commits(&bench.mountpoint())?);
        }
    }
    Ok(())
}

/// What the coordinator measures, on the same store.
fn redundancy(work: &str, args: &BenchArgs, report: &mut Report) -> Result<()> {
    progress(&format!("four nodes: {work}"));
    let figures = if args.store == Path::new("tmpfs") {
        // The private tmpfs is the one of a mount.
        let bench = Bench::mount(&args.store, false)?;
        coordinator(work, &bench.private_store()?, args)?
    } else {
        coordinator(work, &args.store, args)?
    };
    figures.into_iter().for_each(|figure| report.add(figure));
    go_on()
}

/// Says on a terminal what is being measured; nothing clears it.
fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
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
fn coordinator(work: &str, directory: &Path, args: &BenchArgs) -> Result<Vec<Figure>> {
    let program = crate::daemon::find_program("scrfs-coordinator")
        .context("scrfs-coordinator is neither beside this program nor on the PATH")?;
    let output = Command::new(&program)
        .args(["bench", work])
        .arg("--directory")
        .arg(directory)
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
    let middle = [values.len().saturating_sub(1) / 2, values.len() / 2];
    let [low, high] = middle.map(|at| values.get(at).copied().unwrap_or(f64::NAN));
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_outliers() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
