//! The virtual cluster's program: for people (`up`, `exec`, `kill`, ..), and the processes that a
//! cluster consists of. Called by the name `rsh` it is the remote shell's client.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use scrfs_tests::cluster::{self, Agent, Cluster, Loss, Warden};

/// Exit codes of a shell for a program that is not there, and for one that cannot be run.
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_RUN: u8 = 126;

/// A cluster on this machine.
#[derive(Debug, Parser)]
#[command(version)]
enum Arguments {
    /// Starts node0 to nodeN, runs a command outside of them, and ends them with it.
    Up {
        nodes: usize,
        /// Size of each node's /dev/shm.
        #[arg(long)]
        shm_bytes: Option<u64>,
        /// What to run; finds $SCRFS_CLUSTER_DIR and $SCRFS_CLUSTER_RSH set.
        #[arg(long, required = true, num_args = 1.., allow_hyphen_values = true)]
        run: Vec<OsString>,
    },
    /// Runs a command in a node.
    Exec {
        directory: PathBuf,
        node: usize,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Kills a node.
    Kill {
        directory: PathBuf,
        node: usize,
        loss: Loss,
    },
    /// Starts a killed node anew.
    Revive { directory: PathBuf, node: usize },
    /// Stops a node's processes.
    Hang { directory: PathBuf, node: usize },
    /// Lets a hung node go on.
    Resume { directory: PathBuf, node: usize },
    /// Pulls a node's cable, or plugs it in again.
    Link {
        directory: PathBuf,
        node: usize,
        #[arg(value_parser = ["up", "down"])]
        state: String,
    },
    #[command(hide = true)]
    Warden(Warden),
    #[command(hide = true)]
    Agent(Agent),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let me = arguments.next().unwrap_or_default();
    let is_rsh = Path::new(&me).file_name() == Some(OsStr::new(cluster::RSH));
    let result = if is_rsh {
        cluster::rsh_client(arguments).map(ExitCode::from)
    } else {
        run(Arguments::parse())
    };
    result.unwrap_or_else(|error| {
        eprintln!("{}: {error:#}", if is_rsh { "rsh" } else { "scrfs-vnode" });
        ExitCode::from(cluster::RSH_EXIT_FAILED)
    })
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments {
        Arguments::Up {
            nodes,
            shm_bytes,
            run,
        } => return up(nodes, shm_bytes, &run),
        Arguments::Exec {
            directory,
            node,
            command,
        } => {
            cluster::enter(&directory, node)?;
            return execute(&command);
        }
        Arguments::Kill {
            directory,
            node,
            loss,
        } => cluster::kill(&directory, node, loss),
        Arguments::Revive { directory, node } => cluster::revive(&directory, node),
        Arguments::Hang { directory, node } => cluster::hang(&directory, node),
        Arguments::Resume { directory, node } => cluster::resume(&directory, node),
        Arguments::Link {
            directory,
            node,
            state,
        } => cluster::link(&directory, node, state == "up"),
        Arguments::Warden(warden) => warden.run(),
        Arguments::Agent(agent) => agent.run(),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn up(nodes: usize, shm_bytes: Option<u64>, run: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = run.split_first().context("nothing to run")?;
    let mut builder = Cluster::builder().nodes(nodes);
    if let Some(bytes) = shm_bytes {
        builder = builder.shm_bytes(bytes);
    }
    let cluster = builder.start()?;
    let status = Command::new(program)
        .args(arguments)
        .env("SCRFS_CLUSTER_DIR", cluster.directory())
        .env("SCRFS_CLUSTER_RSH", cluster.rsh())
        .status()
        .with_context(|| format!("running {}", program.display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(cluster::RSH_EXIT_FAILED)))
}

/// Turns this process into the command.
fn execute(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("nothing to run")?;
    ensure!(!program.is_empty(), "nothing to run");
    // What the caller has set stays.
    let site = cluster::site_environment();
    let unset = site
        .into_iter()
        .filter(|(name, _)| std::env::var_os(name).is_none());
    let error = Command::new(program).args(arguments).envs(unset).exec();
    eprintln!("scrfs-vnode: {}: {error}", program.display());
    Ok(ExitCode::from(match error.kind() {
        ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_NOT_RUN,
    }))
}
