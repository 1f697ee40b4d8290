//! The command line of `scrfs run`, and what follows from it.

use super::checks::Limits;
use super::hosts::{self, Host};
use super::resource::{self, Allocation, World};
use super::words;
use anyhow::{Context, Error, Result, bail, ensure};
use scrfs::config::{Config, Sources, is_object_url};
use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which hosts, and how to reach them
#[derive(clap::Args, Clone, Debug)]
pub struct HostArgs {
    /// The hosts to use, such as `node[1-4],node7`; those of the allocation when nothing else says
    #[arg(long, value_name = "LIST", conflicts_with = "hostfile")]
    pub nodes: Option<String>,
    /// A file with a host a line, `slots=N` behind it where a host gets more than one process
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<PathBuf>,
    /// Hosts not to use
    #[arg(long, value_name = "LIST", env = "SCR_EXCLUDE_NODES")]
    pub exclude: Option<String>,
    /// How to run a command on a host: `ssh`, `pdsh`, `srun`, with options, or any command as in `CMD HOST
    /// COMMAND`, or with {host} in it; `srun` in a job of Slurm, otherwise `ssh` when not given
    #[arg(long, value_name = "CMD", env = "SCRFS_RSH")]
    pub rsh: Option<String>,
}

/// Where and with what to mount on each node
#[derive(clap::Args, Clone, Debug)]
pub struct MountArgs {
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
}

const EXIT_CODES: &str = "Exit code: that of the application's last launch, 128 and the signal where one \
     killed it. Otherwise 1 the job failed, or not everything is flushed; 2 wrong usage or configuration; 3 nothing \
     was launched, because the job is to halt, or there is nothing to resume; 126 and 127 the launcher may not be \
     run, or is not there";

/// Mount everywhere, recover, launch, watch, relaunch when a node is lost, flush at the end
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RunArgs {
    /// Launch at most so many times; -1: as often as it takes, but not where ten launches in a row failed within a
    /// minute or stood still, and none ever made a checkpoint. Not given: again when a node was lost or nothing moved, not when the
    /// application failed by itself
    #[arg(
        long,
        value_name = "N",
        env = "SCR_RUNS",
        allow_negative_numbers = true
    )]
    pub runs: Option<i64>,
    #[command(flatten)]
    pub hosts: HostArgs,
    /// So many of the hosts, the last ones, are spares
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub spares: usize,
    /// Go on with as few as these when spares run out; all that are not spares when not given
    #[arg(long, value_name = "N", env = "SCR_MIN_NODES")]
    pub min_nodes: Option<usize>,
    /// Launch this instead when there is a checkpoint to restart from; `{restart}` is its path
    #[arg(long, value_name = "CMD")]
    pub restart_cmd: Option<String>,
    #[command(flatten)]
    pub mount: MountArgs,
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
    /// End and launch again an application of which nothing moves for so long: no state of a dataset
    /// changes, no bytes come into the cache, nobody writes to `.scr/heartbeat`. 0: never
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SCR_WATCHDOG_TIMEOUT",
        default_value_t = 0
    )]
    pub hang_timeout: u64,
    /// The same while something is flushed; three times as long when not given
    #[arg(long, value_name = "SECONDS", env = "SCR_WATCHDOG_TIMEOUT_PFS")]
    pub hang_timeout_flush: Option<u64>,
    /// Halt when no more than so much of the allocation is left, so that there is time for a last checkpoint
    /// and its flush; what these were measured to take when not given. 0: never
    #[arg(long, value_name = "SECONDS", env = "SCR_HALT_SECONDS")]
    pub halt_seconds: Option<u64>,
    /// When the job is to halt, end the application after its next checkpoint: for applications that do not
    /// look at `.scr/should_exit`
    #[arg(long, env = "SCR_HALT_EXIT", value_parser = clap::builder::FalseyValueParser::new())]
    pub halt_exit: bool,
    /// From SIGTERM to SIGKILL, where the application is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub kill_after: u64,
    /// Pass SIGUSR1 and SIGUSR2 on as well, to applications that do not die of them
    #[arg(long)]
    pub forward_usr: bool,
    /// Launch without looking at the nodes before
    #[arg(long)]
    pub no_check: bool,
    #[command(flatten)]
    pub limits: Limits,
    /// Keep the outputs of daemons' starts and of coordinators here; otherwise they are in a
    /// temporary directory, and kept there only when the job fails
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Leave the nodes mounted at the end
    #[arg(long)]
    pub keep_mounted: bool,
    /// Go on with a job whose `scrfs run` was lost, from any of its nodes: with the same command and
    /// options, the nodes that are left, and the launches that are left. Only where to look for it is
    /// said (`--prefix`, `--job`, `--config`), and `--listen`; ID says which, if there are several
    #[arg(
        long,
        value_name = "ID",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "launcher"
    )]
    pub resume: Option<String>,
    /// Go on from this record
    #[arg(long, value_name = "ID", hide = true, require_equals = true)]
    pub resumed: Option<String>,
    /// The launcher and the application. `{hosts}`, `{hostfile}`, `{nnodes}` and `{restart}` are
    /// replaced; mpirun is told the hosts if none of the first two is there
    #[arg(
        last = true,
        required_unless_present = "resume",
        value_name = "LAUNCHER"
    )]
    pub launcher: Vec<String>,
}

/// Of ours, but meant for one process only.
const OWN_VARIABLES: [&str; 7] = [
    super::launcher::LAUNCH_VARIABLE,
    "SCRFS_RSH",
    "SCRFS_MPIRUN",
    "SCRFS_BIN_DIR",
    "SCR_RUNS",
    "SCR_EXCLUDE_NODES",
    "SCR_NODELIST",
];

/// The hosts that were found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hosts {
    /// Those to use, in their order.
    pub chosen: Vec<Host>,
    /// Those the user does not want.
    pub excluded: Vec<String>,
}

impl HostArgs {
    /// The hosts to use, and those excluded.
    pub fn find(&self, allocation: Option<&Allocation>, world: &impl World) -> Result<Hosts> {
        let elsewhere = world.variable("SCR_NODELIST");
        let list = self.nodes.as_ref().or(match self.hostfile {
            Some(_) => None,
            None => elsewhere.as_ref(),
        });
        let found = match (list, &self.hostfile, allocation) {
            (Some(list), ..) => hosts::parse_list(list).context("the list of nodes")?,
            (None, Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the host file {}", path.display()))?;
                hosts::parse_hostfile(&text).with_context(|| path.display().to_string())?
            }
            (None, None, Some(allocation)) => allocation.nodes(world).map_err(Error::msg)?,
            (None, None, None) => bail!(
                "which hosts? give --nodes LIST or --hostfile FILE, or run this in a job of Slurm, Flux, PBS \
                 or LSF"
            ),
        };
        let list = self.exclude.as_deref().unwrap_or_default();
        let unwanted = hosts::expand(list).context("--exclude")?;
        let is_excluded = |host: &Host| {
            unwanted
                .iter()
                .any(|name| resource::is_same(name, &host.name))
        };
        let (excluded, chosen): (Vec<Host>, _) = found.into_iter().partition(is_excluded);
        ensure!(!chosen.is_empty(), "no hosts are left");
        let excluded = excluded.into_iter().map(|host| host.name).collect();
        Ok(Hosts { chosen, excluded })
    }

    /// How to run a command on a host, as one line.
    pub fn rsh(&self, allocation: Option<&Allocation>) -> String {
        let managers = || allocation.and_then(|found| found.manager.shell);
        match (&self.rsh, managers()) {
            (Some(rsh), _) => rsh.clone(),
            (None, Some(shell)) => shell.to_owned(),
            (None, None) => "ssh".to_owned(),
        }
    }
}

impl RunArgs {
    /// The hosts to use, spares last.
    pub fn find_hosts(&self, allocation: Option<&Allocation>, world: &impl World) -> Result<Hosts> {
        let found = self.hosts.find(allocation, world)?;
        let count = found.chosen.len();
        ensure!(
            self.spares < count,
            "{} of {count} hosts cannot be spares: none would be left",
            self.spares,
        );
        let needed = count - self.spares;
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
            None | Some(-1) => Ok(u64::MAX),
            Some(runs) => match u64::try_from(runs) {
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

    /// How long nothing may move, and how long during a flush.
    pub fn hang_patience(&self) -> (Option<Duration>, Duration) {
        let patience = (self.hang_timeout > 0).then(|| Duration::from_secs(self.hang_timeout));
        let flush = self.hang_timeout_flush;
        let flush = flush.unwrap_or_else(|| self.hang_timeout.saturating_mul(3));
        (patience, Duration::from_secs(flush))
    }

    /// Silence that is death.
    pub fn dead_after(&self) -> Result<Duration> {
        ensure!(
            self.dead_after >= 300,
            "--dead-after is at least 300, three heartbeats"
        );
        Ok(Duration::from_millis(self.dead_after))
    }
}

fn absolute(path: &Path) -> Result<String> {
    let path = match is_object_url(path) {
        true => path.to_owned(),
        false => std::path::absolute(path).with_context(|| path.display().to_string())?,
    };
    let text = path.into_os_string().into_string();
    text.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

fn cache_word(cache: &Path) -> Result<String> {
    match cache.to_str() {
        Some(word @ "tmpfs") => Ok(word.to_owned()),
        _ => absolute(cache),
    }
}

/// The administrator's file.
const SYSTEM_FILE: &str = "/etc/scrfs.toml";

impl MountArgs {
    /// The effective configuration on this host, as `scrfs mount` takes it from the same options.
    pub fn load(&self) -> Result<Config> {
        let environment = |name: &str| std::env::var(name).ok();
        let read = |path: &Path, must_exist: bool| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some((path.to_owned(), text))),
            Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut cli = Vec::new();
        for cache in &self.cache {
            cli.push(("store.path".to_owned(), cache_word(cache)?));
        }
        if let Some(prefix) = &self.prefix {
            cli.push(("prefix".to_owned(), absolute(prefix)?));
        }
        if let Some(job) = &self.job {
            cli.push(("job".to_owned(), job.clone()));
        }
        let (user, must_exist) =
            Config::user_file(self.config.as_deref(), self.prefix.as_deref(), &environment);
        let sources = Sources {
            env: &environment,
            user: read(&user, must_exist)?,
            system: read(Path::new(SYSTEM_FILE), false)?,
            cli,
        };
        Ok(Config::load(&sources)?.0)
    }

    /// Options of `scrfs mount` that all nodes share, with nothing relative in them.
    pub fn options(&self) -> Result<Vec<String>> {
        let mut options = vec![absolute(&self.mountpoint)?];
        for cache in &self.cache {
            options.extend(["--cache".into(), cache_word(cache)?]);
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
        (prefixed || scrfs::config::JOB_VARIABLES.contains(&name)) && !OWN_VARIABLES.contains(&name)
    };
    let all = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut found: Vec<_> = all.filter(|(name, _)| of_ours(name)).collect();
    found.sort();
    found
}

/// A command line of ours for another host: with our environment, and in our directory where the prefix
/// follows from that.
pub fn remote_line(
    environment: &[(String, String)],
    mount: &MountArgs,
    command: &[String],
) -> String {
    let mut words = vec!["env".to_owned()];
    let set = |(name, value): &(String, String)| format!("{name}={value}");
    words.extend(environment.iter().map(set));
    let mut directory = String::new();
    // The prefix is this directory when nobody says otherwise.
    if mount.prefix.is_none()
        && let Ok(here) = std::env::current_dir()
    {
        let here = here.display().to_string();
        directory = format!("cd {} && ", words::quote(&here));
        words.push(format!("PWD={here}"));
    }
    words.extend(command.iter().cloned());
    directory + &words::join(words.iter().map(String::as_str))
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

    /// A job of Slurm with two nodes, which is reached by `srun`.
    struct Slurm;

    impl World for Slurm {
        fn variable(&self, name: &str) -> Option<String> {
            let value = match name {
                "SLURM_JOB_ID" => "7",
                "SLURM_JOB_NODELIST" => "s[1-2]",
                _ => return None,
            };
            Some(value.into())
        }
        fn read(&self, _: &str) -> std::io::Result<String> {
            Err(ErrorKind::NotFound.into())
        }
        fn run(&self, _: &[String]) -> std::io::Result<String> {
            Err(ErrorKind::NotFound.into())
        }
    }

    fn hosts_of(options: &[&str], allocation: Option<&Allocation>) -> Result<Vec<String>> {
        let found = parse(options).find_hosts(allocation, &Slurm)?;
        Ok(found.chosen.into_iter().map(|host| host.name).collect())
    }

    #[test]
    fn hosts_come_from_one_place_and_lose_the_excluded() {
        let args = parse(&["--nodes", "n[1-5]", "--spares", "1", "--exclude", "n2,n9"]);
        let found = args.find_hosts(None, &Slurm).expect("valid");
        assert_eq!(found.excluded, ["n2"]);
        let names: Vec<_> = found.chosen.iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, ["n1", "n3", "n4", "n5"]);
        assert_eq!(args.launcher, ["mpirun", "-n", "4", "app", "-x"]);
        assert!(hosts_of(&[], None).is_err());
        assert!(hosts_of(&["--nodes", "a,b", "--spares", "2"], None).is_err());
        assert!(
            hosts_of(
                &["--nodes", "a,b", "--spares", "1", "--min-nodes", "2"],
                None
            )
            .is_err()
        );
        let missing = hosts_of(&["--hostfile", "/no/such/file"], None).expect_err("missing");
        assert!(missing.to_string().contains("/no/such/file"));
    }

    #[test]
    fn an_allocation_gives_its_nodes_and_its_shell_if_nobody_else_does() {
        let found = Allocation::detect(&Slurm);
        assert_eq!(hosts_of(&[], found.as_ref()).expect("known"), ["s1", "s2"]);
        let named = hosts_of(&["--nodes", "a"], found.as_ref()).expect("named");
        assert_eq!(named, ["a"]);
        assert_eq!(parse(&[]).hosts.rsh(found.as_ref()), "srun");
        assert_eq!(parse(&[]).hosts.rsh(None), "ssh");
        assert_eq!(parse(&["--rsh", "x"]).hosts.rsh(found.as_ref()), "x");
    }

    #[test]
    fn runs_are_bounded_or_not() {
        assert_eq!(parse(&[]).launches_max().expect("valid"), u64::MAX);
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
