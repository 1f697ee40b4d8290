//! Whether nodes are fit for use: a probe that runs on each, and a judge, which is pure.
//!
//! ```text
//! excluded by the user -> resource manager says down -> reachable, in time -> cache and prefix can be
//! written, with enough space -> clock -> memory bandwidth, compared with the other nodes
//! ```
//!
//! The first that fails is the reason. All probes run at once, each within a time limit, so that a node that
//! hangs costs no more than that. A probe leaves nothing behind, and changes nothing that lives.

use super::args::MountArgs;
use super::resource::is_same;
use super::resource::parse::Down;
use anyhow::Result;
use nix::sys::statvfs::statvfs;
use scrfs::config::{Config, is_object_url};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes that are written to see whether that works.
const TRIAL_BYTES: usize = 64 << 10;
/// Bytes that are copied to measure memory, several times.
const COPY_BYTES: usize = 64 << 20;
const COPIES: u32 = 4;
/// A node whose memory is slower than this part of the others' is not fit.
const BANDWIDTH_SHARE_MIN: f64 = 0.5;

/// What a node says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Milliseconds since the Unix epoch on its clock.
    pub clock: u64,
    /// What is mounted at the mount point.
    pub daemon: Daemon,
    /// Directories that are needed.
    pub directories: Vec<Directory>,
    /// Bytes a second that one core copies, if that was asked for.
    pub bandwidth: Option<f64>,
}

/// What is mounted at the mount point.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Daemon {
    /// Nothing of ours.
    None,
    /// A daemon that answers.
    Answers,
    /// A mount whose daemon does not answer, and why.
    Dead(String),
}

/// A directory that is needed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Directory {
    /// Which.
    pub path: PathBuf,
    /// What for.
    pub role: Role,
    /// Bytes free there.
    pub free_bytes: u64,
    /// Why it cannot be written.
    pub error: Option<String>,
}

/// What a directory is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Datasets, fast.
    Cache,
    /// Datasets, for good.
    Prefix,
}

/// Look at this node, and say what was found, as JSON
#[derive(clap::Args, Clone, Debug)]
pub struct ProbeArgs {
    #[command(flatten)]
    mount: MountArgs,
    /// Measure memory too
    #[arg(long)]
    bandwidth: bool,
}

impl ProbeArgs {
    /// Prints one line.
    pub fn run(&self) -> Result<()> {
        let config = self.mount.load()?;
        let probe = Probe {
            directories: directories(&config),
            daemon: daemon(&self.mount.mountpoint),
            bandwidth: self.bandwidth.then(copy_bandwidth),
            // Last, so that it is nearest to when it is heard.
            clock: now_millis(),
        };
        println!("{}", serde_json::to_string(&probe)?);
        Ok(())
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn directories(config: &Config) -> Vec<Directory> {
    let caches = config.store.iter().map(|store| {
        // A private one is mounted later; what it would be without is where it takes its space from.
        let path = if store.is_private_tmpfs() {
            Path::new("/dev/shm")
        } else {
            &store.path
        };
        (path.to_owned(), Role::Cache)
    });
    let prefix = Some(config.prefix.clone()).filter(|prefix| !is_object_url(prefix));
    let all = caches.chain(prefix.map(|prefix| (prefix, Role::Prefix)));
    all.map(|(path, role)| directory(path, role)).collect()
}

fn directory(path: PathBuf, role: Role) -> Directory {
    let free = statvfs(&path).map(|found| found.blocks_available() * found.fragment_size());
    let tried = try_to_write(&path);
    let error = tried.err().or(free.err().map(io::Error::from));
    Directory {
        path,
        role,
        free_bytes: free.unwrap_or(0),
        error: error.map(|error| error.to_string()),
    }
}

fn try_to_write(directory: &Path) -> io::Result<()> {
    let node = nix::unistd::gethostname().unwrap_or_default();
    let name = format!(".scrfs-probe.{}.{}", node.display(), std::process::id());
    let path = directory.join(name);
    let written = File::options()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(&[0x5c; TRIAL_BYTES]));
    let removed = match &written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        _ => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    };
    written.and(removed)
}

fn daemon(mountpoint: &Path) -> Daemon {
    match fs::read(mountpoint.join(".scr/daemon")) {
        Ok(_) => Daemon::Answers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Daemon::None,
        Err(error) => Daemon::Dead(error.to_string()),
    }
}

fn copy_bandwidth() -> f64 {
    let from = vec![1u8; COPY_BYTES];
    let mut to = vec![0u8; COPY_BYTES];
    let begun = Instant::now();
    for _ in 0..COPIES {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
    }
    let bytes = COPY_BYTES as f64 * f64::from(COPIES);
    bytes / begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
}

/// How a probe came back.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// What it said, or why it did not.
    pub said: Result<Probe, String>,
    /// By our clock, in milliseconds: when it was asked.
    pub asked: u64,
    /// And when it had answered.
    pub answered: u64,
}

impl Answer {
    /// From what a probe printed.
    pub fn read(text: &str) -> Result<Probe, String> {
        let line = text.lines().rfind(|line| line.starts_with('{'));
        let line = line.ok_or_else(|| format!("the probe said {text:?}"))?;
        serde_json::from_str(line).map_err(|error| format!("the probe said {line:?}: {error}"))
    }

    /// How far its clock is from ours, in milliseconds, at least.
    pub fn skew(&self) -> i64 {
        let Ok(probe) = &self.said else { return 0 };
        let signed = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
        let (clock, asked, answered) = (
            signed(probe.clock),
            signed(self.asked),
            signed(self.answered),
        );
        if clock < asked {
            clock.saturating_sub(asked)
        } else {
            clock.saturating_sub(answered).max(0)
        }
    }
}

/// What nodes must have.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Limits {
    /// Free bytes that each cache directory must have, such as `1GiB`
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub min_free: u64,
    /// Clocks that differ by more are a reason not to use a node
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub max_skew: u32,
}

fn bytes(text: &str) -> Result<u64, String> {
    scrfs::config::parse_size(text).ok_or_else(|| "a size such as 64MiB".to_owned())
}

/// All that is known of the nodes.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Those the user does not want.
    pub excluded: Vec<String>,
    /// Those the resource manager does not want.
    pub down: Vec<Down>,
    /// What probes said, where they were sent.
    pub answers: BTreeMap<String, Answer>,
}

impl Facts {
    /// Why a node is not fit for use.
    pub fn judge(&self, node: &str, limits: &Limits) -> Result<(), String> {
        if self.excluded.iter().any(|name| name == node) {
            return Err("excluded by the user".into());
        }
        if let Some(down) = self.down.iter().find(|down| is_same(&down.node, node)) {
            return Err(down.why.clone());
        }
        let Some(answer) = self.answers.get(node) else {
            return Ok(());
        };
        let probe = answer.said.as_ref().map_err(Clone::clone)?;
        for directory in &probe.directories {
            let path = directory.path.display();
            if let Some(error) = &directory.error {
                return Err(format!("{path} cannot be written: {error}"));
            }
            let free = directory.free_bytes;
            if directory.role == Role::Cache && free < limits.min_free {
                return Err(format!(
                    "{path} has {free} bytes free, fewer than the {} wanted (--min-free)",
                    limits.min_free
                ));
            }
        }
        let skew = answer.skew();
        if skew.unsigned_abs() > u64::from(limits.max_skew) * 1000 {
            return Err(format!(
                "its clock is {:.1} s off, more than the {} s allowed (--max-skew)",
                skew as f64 / 1000.0,
                limits.max_skew
            ));
        }
        match (probe.bandwidth, self.median_bandwidth()) {
            (Some(own), Some(median)) if own < median * BANDWIDTH_SHARE_MIN => Err(format!(
                "its memory copies {:.1} GB/s, half of the nodes at least {:.1}",
                own / 1e9,
                median / 1e9
            )),
            _ => Ok(()),
        }
    }

    fn median_bandwidth(&self) -> Option<f64> {
        let said = self.answers.values();
        let mut all: Vec<f64> = said
            .filter_map(|answer| answer.said.as_ref().ok()?.bandwidth)
            .collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        min_free: 100,
        max_skew: 2,
    };

    fn probe() -> Probe {
        Probe {
            clock: 10_000,
            daemon: Daemon::None,
            directories: vec![Directory {
                path: "/dev/shm".into(),
                role: Role::Cache,
                free_bytes: 100,
                error: None,
            }],
            bandwidth: None,
        }
    }

    fn facts(said: Result<Probe, String>) -> Facts {
        let answer = Answer {
            said,
            asked: 9_900,
            answered: 10_100,
        };
        Facts {
            answers: [("a".to_owned(), answer)].into(),
            ..Facts::default()
        }
    }

    fn reason(facts: &Facts) -> String {
        facts.judge("a", &LIMITS).err().unwrap_or_default()
    }

    #[test]
    fn each_failing_is_a_reason_and_the_first_counts() {
        assert_eq!(reason(&facts(Ok(probe()))), "");
        assert_eq!(reason(&Facts::default()), "");
        assert_eq!(reason(&facts(Err("no answer".into()))), "no answer");
        let mut full = probe();
        full.directories[0].free_bytes = 99;
        assert!(reason(&facts(Ok(full.clone()))).contains("99 bytes free, fewer than the 100"));
        full.directories[0].error = Some("Read-only".into());
        let broken = facts(Ok(full));
        assert_eq!(reason(&broken), "/dev/shm cannot be written: Read-only");
        let mut down = broken.clone();
        down.down.push(Down {
            node: "a.site".into(),
            why: "Slurm says down".into(),
        });
        assert_eq!(reason(&down), "Slurm says down");
        down.excluded.push("a".into());
        assert_eq!(reason(&down), "excluded by the user");
        // A prefix may be nearly full: nothing is lost by that.
        let mut prefix = probe();
        prefix.directories[0].role = Role::Prefix;
        prefix.directories[0].free_bytes = 0;
        assert_eq!(reason(&facts(Ok(prefix))), "");
    }

    #[test]
    fn a_clock_is_off_only_by_what_the_way_cannot_explain() {
        let at = |clock| {
            let mut probe = probe();
            probe.clock = clock;
            facts(Ok(probe))
        };
        assert_eq!(at(9_900).answers["a"].skew(), 0);
        assert_eq!(at(10_100).answers["a"].skew(), 0);
        assert_eq!(at(9_899).answers["a"].skew(), -1);
        assert_eq!(at(12_100).answers["a"].skew(), 2_000);
        assert_eq!(reason(&at(12_100)), "");
        assert!(reason(&at(12_101)).contains("its clock is 2.0 s off"));
        assert!(reason(&at(7_899)).contains("its clock is -2.0 s off"));
    }

    #[test]
    fn memory_is_compared_with_the_other_nodes() {
        let with = |bandwidth| Answer {
            said: Ok(Probe {
                bandwidth: Some(bandwidth),
                ..probe()
            }),
            asked: 9_900,
            answered: 10_100,
        };
        let speeds = [("a", 4.9e9), ("b", 1e10), ("c", 1.1e10)];
        let answers = speeds.map(|(node, speed)| (node.to_owned(), with(speed)));
        let facts = Facts {
            answers: answers.into(),
            ..Facts::default()
        };
        assert!(facts.judge("a", &LIMITS).is_err());
        assert!(facts.judge("b", &LIMITS).is_ok() && facts.judge("c", &LIMITS).is_ok());
    }

    #[test]
    fn a_probe_leaves_nothing_and_says_what_it_cannot_write() {
        let place = tempfile::tempdir().expect("a directory");
        let found = directory(place.path().to_owned(), Role::Cache);
        assert!(found.error.is_none() && found.free_bytes > 0, "{found:?}");
        assert_eq!(fs::read_dir(place.path()).expect("there").count(), 0);
        let missing = directory(place.path().join("none"), Role::Cache);
        assert!(
            missing
                .error
                .is_some_and(|error| error.contains("No such file"))
        );
        assert_eq!(daemon(place.path()), Daemon::None);
        let line = serde_json::to_string(&probe()).expect("plain");
        let text = format!("Warning: a banner\n{line}\n");
        assert_eq!(Answer::read(&text), Ok(probe()));
        assert!(Answer::read("bash: scrfs: not found").is_err());
    }
}
