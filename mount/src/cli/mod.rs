//! The `scrfs` command line.
//!
//! Commands find the daemon by its mount point: `.scr/daemon` there names the socket. Exit codes: 0
//! done, 1 failed, 2 wrong usage or configuration, 3 nothing to do it on, 4 timed out.

mod advise;
mod bench;
mod config;
mod dataset;
mod halt;
mod job;
mod manual;
mod mount;
mod prefix;
mod simulate;
mod status;
mod unmount;
mod watch;

use crate::daemon::DaemonFile;
use clap::{Parser, Subcommand};
use scrfs::control::{Answer, Command, Refusal};
use scrfs::name::Name;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Why a command failed, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// It was tried and failed: 1.
    pub fn failed(error: anyhow::Error) -> Self {
        Self { code: 1, error }
    }

    /// Wrong usage or configuration: 2.
    pub fn usage(words: impl std::fmt::Display) -> Self {
        Self {
            code: 2,
            error: anyhow::anyhow!("{words}"),
        }
    }

    /// No mount, no such dataset: 3.
    pub fn nothing(words: impl std::fmt::Display) -> Self {
        Self {
            code: 3,
            error: anyhow::anyhow!("{words}"),
        }
    }

    /// Timed out: 4.
    pub fn timed_out(words: impl std::fmt::Display) -> Self {
        Self {
            code: 4,
            error: anyhow::anyhow!("{words}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(error)
    }
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 it failed; 2 wrong usage or configuration; 3 nothing to do it on: no \
     mount, no such dataset; 4 timed out";

/// Checkpoints at memory speed, protected across nodes, streamed to the parallel file system.
#[derive(Parser, Debug)]
#[command(name = "scrfs", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Mount this node; returns when the mount is ready
    Mount(mount::MountArgs),
    /// Finish the flushes, stop the coordinator, unmount
    #[command(alias = "umount")]
    Unmount(unmount::UnmountArgs),
    /// Datasets, their state and progress; nodes; how data travels
    Status(status::StatusArgs),
    /// Commit a dataset that was written in place
    Commit(dataset::NameArgs),
    /// Wait until a dataset has come so far
    Wait(dataset::WaitArgs),
    /// Copy datasets to the prefix now, and wait for it
    Flush(dataset::FlushArgs),
    /// Bring datasets of the prefix into the caches, and wait for it
    Fetch(dataset::FetchArgs),
    /// End the job by itself: now, soon, after so many checkpoints, in time
    Halt(halt::HaltArgs),
    /// All datasets in the prefix and in this node's cache, with or without a mount
    List(prefix::ListArgs),
    /// Show or set the checkpoint to restart from
    Current(prefix::CurrentArgs),
    /// Remove a dataset from the prefix: its files, and what is known of it
    Delete(prefix::DeleteArgs),
    /// Forget a dataset of the prefix; its files stay
    Drop(prefix::DropArgs),
    /// Put a dropped dataset back, or take in a directory of the prefix that others wrote
    Add(prefix::AddArgs),
    /// Re-read datasets against their checksums, and repair what can be repaired
    Verify(prefix::VerifyArgs),
    /// What happened to the jobs and datasets of a prefix, a line of JSON each, oldest first
    Events(prefix::EventsArgs),
    /// The effective configuration, and where each value came from
    Config(config::ConfigArgs),
    /// How often to checkpoint and to flush
    Advise(advise::AdviseArgs),
    /// What a job would lose under other settings: a table and a plot
    Simulate(simulate::SimulateArgs),
    /// This machine's figures, each beside its limit, in one run
    Bench(bench::BenchArgs),
    /// The whole life of a job; see `scrfs run --help`
    #[command(disable_help_flag = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Which nodes are fit for use, and why the others are not; see `scrfs nodes --help`
    #[command(disable_help_flag = true)]
    Nodes {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// After a run: save what was not flushed from the nodes that are left; see `scrfs scavenge --help`
    #[command(disable_help_flag = true)]
    Scavenge {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Completions for a shell, on stdout
    Completions(manual::CompletionArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(manual::ManArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // clap's own code for wrong usage is 2; help and version are no failure.
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = match cli.command {
        Verb::Mount(args) => mount::run(args),
        Verb::Unmount(args) => unmount::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Commit(args) => dataset::commit(&args),
        Verb::Wait(args) => dataset::wait(&args),
        Verb::Flush(args) => dataset::flush(&args),
        Verb::Fetch(args) => dataset::fetch(&args),
        Verb::Halt(args) => halt::run(&args),
        Verb::List(args) => prefix::list(&args),
        Verb::Current(args) => prefix::current(&args),
        Verb::Delete(args) => prefix::delete(&args),
        Verb::Drop(args) => prefix::drop_entry(&args),
        Verb::Add(args) => prefix::add(&args),
        Verb::Verify(args) => prefix::verify(&args),
        Verb::Events(args) => prefix::events(&args),
        Verb::Config(args) => config::run(&args),
        Verb::Advise(args) => advise::run(&args),
        Verb::Simulate(args) => simulate::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Run { args } => exec_program("scrfs-coordinator", "run", &args),
        Verb::Nodes { args } => exec_program("scrfs-coordinator", "nodes", &args),
        Verb::Scavenge { args } => exec_program("scrfs-coordinator", "scavenge", &args),
        Verb::Completions(args) => manual::complete(&args),
        Verb::Man(args) => manual::write(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "scrfs: {:#}", failure.error);
            ExitCode::from(failure.code)
        }
    }
}

fn exec_program(name: &str, verb: &str, args: &[std::ffi::OsString]) -> Result<(), Failure> {
    let program = crate::daemon::find_program(name).ok_or_else(|| {
        Failure::failed(anyhow::anyhow!(
            "{name} is neither beside this program nor on the PATH"
        ))
    })?;
    let error = std::process::Command::new(&program)
        .arg(verb)
        .args(args)
        .exec();
    Err(Failure::failed(anyhow::anyhow!(
        "cannot run {}: {error}",
        program.display()
    )))
}

/// Logs to stderr; `SCRFS_LOG` filters as `RUST_LOG` does elsewhere.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SCRFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,fuser=warn"));
    // Set once; a second time is no harm.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Writes to stdout; a reader that has gone is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(error.into()))
        }
        _ => Ok(()),
    }
}

/// Where a command looks for the mount.
#[derive(clap::Args, Debug)]
struct At {
    /// The mount point
    #[arg(long = "mount", value_name = "MOUNTPOINT", default_value = "/scr")]
    mountpoint: PathBuf,
}

/// The daemon that serves a mount point.
fn daemon_at(mountpoint: &Path) -> Result<DaemonFile, Failure> {
    let path = mountpoint.join(".scr/daemon");
    let text = std::fs::read(&path).map_err(|error| {
        Failure::nothing(format!(
            "{} is no scrfs mount ({error}); `scrfs mount` makes one",
            mountpoint.display()
        ))
    })?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::nothing(format!("{}: {error}", path.display())))
}

/// Asks the daemon; what it refuses becomes the failure that fits.
fn ask(
    daemon: &DaemonFile,
    command: &Command,
    patience: Option<Duration>,
) -> Result<String, Failure> {
    match crate::control::ask(&daemon.socket, command, patience) {
        Ok(Answer::Ok(text)) => Ok(text),
        Ok(Answer::Refused(Refusal::Missing, words)) => Err(Failure::nothing(words)),
        Ok(Answer::Refused(_, words)) => Err(Failure::failed(anyhow::anyhow!(words))),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Failure::timed_out("not in time"))
        }
        Err(error) => Err(Failure::nothing(format!(
            "the daemon of {} does not answer: {error}",
            daemon.mountpoint.display()
        ))),
    }
}

fn name(text: &std::ffi::OsStr) -> Result<Name, Failure> {
    Name::new(text.as_bytes()).map_err(Failure::usage)
}
