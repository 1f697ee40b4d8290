//! `scrfs mount`, and becoming the node's coordinator under an MPI launcher.

use super::Failure;
use super::config::ConfigOptions;
use crate::daemon::{DaemonFile, Plan, Started, find_program, start};
use crate::fuse::MountSettings;
use scrfs::control::Command;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Set by MPI launchers in every rank.
const RANK_VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"];

#[derive(clap::Args, Debug)]
pub(super) struct MountArgs {
    /// Where
    #[arg(default_value = "/scr")]
    mountpoint: PathBuf,
    #[command(flatten)]
    config: ConfigOptions,
    /// This node's name; the host name otherwise
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// Options, as other FUSE filesystems take them; `no_passthrough` serves all bytes here
    #[arg(short = 'o', value_name = "OPT[,OPT]", value_delimiter = ',')]
    options: Vec<String>,
    /// Report to this supervisor
    #[arg(long, value_name = "HOST:PORT", hide = true, requires = "token")]
    supervisor: Option<String>,
    /// The supervisor's secret
    #[arg(long, value_name = "N", hide = true)]
    token: Option<u64>,
    /// Which of several supervisors it is
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    number: u64,
    /// Become this node's coordinator
    #[arg(long, hide = true)]
    coordinate: bool,
    /// Of this epoch
    #[arg(long, value_name = "N", hide = true)]
    epoch: Option<u64>,
    /// The first of its run
    #[arg(long, hide = true)]
    new_run: bool,
    /// The number of the `scrfs run` that it is for
    #[arg(long, value_name = "N", hide = true)]
    run: Option<u64>,
}

pub(super) fn run(args: MountArgs) -> Result<(), Failure> {
    let (config, provenance) = args.config.load()?;
    let launched = RANK_VARIABLES
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let coordinates = args.coordinate || launched;
    let node = match args.node {
        Some(node) => node,
        None => host_name()?,
    };
    let mountpoint = crate::mountpoint::absolute(&args.mountpoint)
        .map_err(|error| Failure::failed(error.into()))?;
    let (no_passthrough, options): (Vec<String>, Vec<String>) = args
        .options
        .into_iter()
        .partition(|option| option == "no_passthrough");
    let switched_off = std::env::var_os("SCRFS_NO_PASSTHROUGH").is_some_and(|value| value == "1");
    let supervisor = args.supervisor.zip(args.token);
    let supervisor = supervisor.map(|(address, token)| (address, token, args.number));
    let plan = Plan {
        mountpoint,
        config,
        provenance,
        node,
        supervisor: supervisor.clone(),
        solo: !coordinates && supervisor.is_none(),
        foreground: args.foreground,
        mount: MountSettings {
            options,
            no_passthrough: !no_passthrough.is_empty() || switched_off,
        },
    };
    let daemon = match start(plan)? {
        Started::Ended => return Ok(()),
        Started::New(daemon) => daemon,
        Started::Already(daemon) => {
            if let Some((supervisor, token, number)) = supervisor {
                let attach = Command::Attach {
                    supervisor,
                    token,
                    number,
                };
                super::ask(&daemon, &attach, Some(Duration::from_secs(10)))?;
            }
            daemon
        }
    };
    if coordinates {
        return Err(coordinate(&daemon, args.epoch, args.new_run, args.run));
    }
    Ok(())
}

/// Becomes this node's coordinator; returns only when that fails.
fn coordinate(daemon: &DaemonFile, epoch: Option<u64>, new_run: bool, run: Option<u64>) -> Failure {
    const PROGRAM: &str = "scrfs-coordinator-mpi";
    let Some(program) = find_program(PROGRAM) else {
        return Failure::failed(anyhow::anyhow!(
            "{PROGRAM} is neither beside this program nor on the PATH; without MPI, mount with no \
             launcher"
        ));
    };
    let mut command = std::process::Command::new(&program);
    command.arg("--socket").arg(&daemon.socket);
    if let Some(epoch) = epoch {
        command.arg("--epoch").arg(epoch.to_string());
    }
    if new_run {
        command.arg("--new-run");
    }
    if let Some(run) = run {
        command.arg("--run").arg(run.to_string());
    }
    let error = command.exec();
    Failure::failed(anyhow::anyhow!(
        "cannot run {}: {error}",
        Path::new(&program).display()
    ))
}

fn host_name() -> Result<String, Failure> {
    let name = nix::unistd::gethostname().map_err(|errno| Failure::failed(errno.into()))?;
    name.into_string().map_err(|name| {
        Failure::usage(format!(
            "the host name {} is not text; give --node",
            name.display()
        ))
    })
}
