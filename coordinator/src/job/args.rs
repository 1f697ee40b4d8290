//! The command line of `scrfs run`, and what follows from it.

use super::hosts::{self, Host};
use super::words;
use anyhow::{Context, Result, bail, ensure};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Mount everywhere, recover, launch, watch, relaunch when a node is lost, flush at the end
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// Launch at most so many times; -1 for no limit
    #[arg(
        long,
        value_name = "N",
        env = "SCR_RUNS",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    pub runs: i64,
    /// The hosts to use, such as `node[1-4],node7`
    #[arg(long, value_name = "LIST", conflicts_with = "hostfile")]
    pub nodes: Option<String>,
    /// A file with a host a line, `slots=N` behind it where a host gets more than one process
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// So many of the hosts, the last ones, are spares
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub spares: usize,
    /// Go on with as few as these when spares run out; all that are not spares when not given
    #[arg(long, value_name = "N", env = "SCR_MIN_NODES")]
    pub min_nodes: Option<usize>,
    /// Hosts not to use
    #[arg(long, value_name = "LIST", env = "SCR_EXCLUDE_NODES")]
    pub exclude: Option<String>,
    /// Launch this instead when there is a checkpoint to restart from; `{restart}` is its path
    #[arg(long, value_name = "CMD")]
    pub restart_cmd: Option<String>,
    /// Where to mount on each node
    #[arg(long, value_name = "DIR", default_value = "/scr")]
    pub mountpoint: PathBuf,
    /// Cache directory on the nodes, or the word `tmpfs`; several, fastest first
    #[arg(long, value_name = "DIR")]
    pub cache: Vec<PathBuf>,
    /// Directory on the parallel file system; this one when nothing else says
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Job id
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,
    /// How to run a command on a host, as in `ssh HOST COMMAND`
    #[arg(long, value_name = "CMD", env = "SCRFS_RSH", default_value = "ssh")]
    pub rsh: String,
    /// Open MPI's launcher, for the coordinators; options may follow
    #[arg(
        long,
        value_name = "CMD",
        env = "SCRFS_MPIRUN",
        default_value = "mpirun"
    )]
    pub mpirun: String,
    /// Where nodes send their heartbeats: an address of this host, `ADDRESS[:PORT]`
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// A node that is silent for so long is lost
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub dead_after: u64,
    /// A node must be mounted within this time
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub start_timeout: u64,
    /// Recovery, with all copying back it needs, must end within this time
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub recovery_timeout: u64,
    /// Wait so long for flushes at the end; what is not flushed by then stays in the caches
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub flush_timeout: u64,
    /// Keep the outputs of daemons' starts and of coordinators here; otherwise they are in a
    /// temporary directory, and kept there only when the job fails
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Leave the nodes mounted at the end
    #[arg(long)]
    pub keep_mounted: bool,
    /// The launcher and the application. `{hosts}`, `{hostfile}`, `{nnodes}` and `{restart}` are
    /// replaced; mpirun is told the hosts if none of the first two is there
    #[arg(last = true, required = true, value_name = "LAUNCHER")]
    pub launcher: Vec<String>,
}

/// Environment variables that a configuration depends on, beyond those of `SCR_` and `SCRFS_`.
const JOB_VARIABLES: [&str; 4] = ["SLURM_JOB_ID", "FLUX_JOB_ID", "PBS_JOBID", "LSB_JOBID"];
/// Of ours, but meant for one process only.
const OWN_VARIABLES: [&str; 6] = [
    super::launcher::LAUNCH_VARIABLE,
    "SCRFS_RSH",
    "SCRFS_MPIRUN",
    "SCRFS_BIN_DIR",
    "SCR_RUNS",
    "SCR_EXCLUDE_NODES",
];

impl RunArgs {
    /// The hosts to use, spares last.
    pub fn hosts(&self) -> Result<Vec<Host>> {
        let mut found = match (&self.nodes, &self.hostfile) {
            (Some(list), _) => hosts::parse_list(list).context("--nodes")?,
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the host file {}", path.display()))?;
                hosts::parse_hostfile(&text).with_context(|| path.display().to_string())?
            }
            (None, None) => bail!("which hosts? give --nodes LIST or --hostfile FILE"),
        };
        if let Some(list) = self.exclude.as_deref().filter(|list| !list.is_empty()) {
            let excluded = hosts::expand(list).context("--exclude")?;
            found.retain(|host| !excluded.contains(&host.name));
        }
        ensure!(!found.is_empty(), "no hosts are left");
        ensure!(
            self.spares < found.len(),
            "{} of {} hosts cannot be spares: none would be left",
            self.spares,
            found.len()
        );
        let needed = found.len() - self.spares;
        if let Some(min) = self.min_nodes {
            ensure!(
                (1..=needed).contains(&min),
                "--min-nodes {min} is not between 1 and {needed}, the hosts that are not spares"
            );
        }
        Ok(found)
    }

    /// Launches that are allowed.
    pub fn launches_max(&self) -> Result<u64> {
        match self.runs {
            -1 => Ok(u64::MAX),
            runs => match u64::try_from(runs) {
                Ok(runs @ 1..) => Ok(runs),
                _ => bail!("--runs {runs}: give a number from 1 on, or -1 for no limit"),
            },
        }
    }

    /// The restart command's words.
    pub fn restart_command(&self) -> Result<Option<Vec<String>>> {
        self.restart_cmd
            .as_deref()
            .map(|text| words::split(text).context("--restart-cmd"))
            .transpose()
    }

    /// The address to listen at, if one was asked for.
    pub fn listen_address(&self) -> Result<Option<SocketAddr>> {
        let Some(text) = &self.listen else {
            return Ok(None);
        };
        let found = text
            .to_socket_addrs()
            .or_else(|_| (text.as_str(), 0).to_socket_addrs())
            .with_context(|| format!("--listen {text}"))?
            .next();
        Ok(Some(found.with_context(|| {
            format!("--listen {text} has no address")
        })?))
    }

    /// Silence that is death.
    pub fn dead_after(&self) -> Result<Duration> {
        ensure!(
            self.dead_after >= 300,
            "--dead-after is at least 300, three heartbeats"
        );
        Ok(Duration::from_millis(self.dead_after))
    }

    /// Options of `scrfs mount` that all nodes share, with nothing relative in them.
    pub fn mount_options(&self) -> Result<Vec<String>> {
        let absolute = |path: &Path| -> Result<String> {
            let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
            let text = path.into_os_string().into_string();
            text.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
        };
        let mut options = vec![absolute(&self.mountpoint)?];
        for cache in &self.cache {
            let path = match cache.to_str() {
                Some(word @ "tmpfs") => word.to_owned(),
                _ => absolute(cache)?,
            };
            options.extend(["--cache".into(), path]);
        }
        if let Some(prefix) = &self.prefix {
            options.extend(["--prefix".into(), absolute(prefix)?]);
        }
        if let Some(config) = &self.config {
            options.extend(["--config".into(), absolute(config)?]);
        }
        if let Some(job) = &self.job {
            options.extend(["--job".into(), job.clone()]);
        }
        Ok(options)
    }
}

/// The part of our environment that nodes need for the same configuration.
pub fn environment() -> Vec<(String, String)> {
    let of_ours = |name: &str| {
        let prefixed = name.starts_with("SCR_") || name.starts_with("SCRFS_");
        (prefixed || JOB_VARIABLES.contains(&name)) && !OWN_VARIABLES.contains(&name)
    };
    let all = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut found: Vec<_> = all.filter(|(name, _)| of_ours(name)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(options: &[&str]) -> RunArgs {
        let words = ["run"]
            .iter()
            .chain(options)
            .chain(&["--", "mpirun", "-n", "4", "app", "-x"]);
        Cli::try_parse_from(words).expect("valid").run
    }

    #[test]
    fn hosts_come_from_one_place_and_lose_the_excluded() {
        let args = parse(&["--nodes", "n[1-5]", "--spares", "1", "--exclude", "n2"]);
        let hosts = args.hosts().expect("valid");
        let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, ["n1", "n3", "n4", "n5"]);
        assert_eq!(args.launcher, ["mpirun", "-n", "4", "app", "-x"]);
        assert!(parse(&[]).hosts().is_err());
        assert!(parse(&["--nodes", "a,b", "--spares", "2"]).hosts().is_err());
        assert!(
            parse(&["--nodes", "a,b", "--spares", "1", "--min-nodes", "2"])
                .hosts()
                .is_err()
        );
        let missing = parse(&["--hostfile", "/no/such/file"])
            .hosts()
            .expect_err("missing");
        assert!(missing.to_string().contains("/no/such/file"));
    }

    #[test]
    fn runs_are_bounded_or_not() {
        assert_eq!(parse(&[]).launches_max().expect("valid"), 1);
        assert_eq!(
            parse(&["--runs", "-1"]).launches_max().expect("valid"),
            u64::MAX
        );
        assert!(parse(&["--runs", "0"]).launches_max().is_err());
        assert!(parse(&["--runs", "-2"]).launches_max().is_err());
    }

    #[test]
    fn addresses_may_leave_the_port_out() {
        let address = |text: &str| parse(&["--listen", text]).listen_address();
        let expected: SocketAddr = ([127, 0, 0, 1], 0).into();
        assert_eq!(address("127.0.0.1").expect("valid"), Some(expected));
        assert_eq!(
            address("127.0.0.1:70")
                .expect("valid")
                .map(|found| found.port()),
            Some(70)
        );
        assert!(address("no such host").is_err());
    }
}
