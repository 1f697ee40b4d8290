//! The command lines of the two coordinator programs. Nobody types them: `scrfs` does.

use crate::bench::{Task, Work};
use crate::driver::Options;
use clap::Args;
use scrfs::id::Epoch;
use std::io::IsTerminal;
use std::path::PathBuf;

/// How a coordinator is started.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// The daemon's control socket
    #[arg(long)]
    pub socket: PathBuf,
    /// The epoch; one more than the last on this node when not given
    #[arg(long)]
    pub epoch: Option<u64>,
    /// Programs start anew with this epoch: what is open now was left behind
    #[arg(long)]
    pub new_run: bool,
    /// The number of the `scrfs run` that it is for
    #[arg(long)]
    pub run: Option<u64>,
}

impl Serve {
    /// As the driver wants it.
    pub fn options(self) -> Options {
        Options {
            socket: self.socket,
            epoch: self.epoch.map(Epoch),
            new_run: self.new_run,
            run: self.run,
        }
    }
}

/// Encode and rebuild of one redundancy set on this machine, beside their limits, as JSON
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// What to measure
    #[arg(required = true)]
    pub works: Vec<Work>,
    /// Directory for the files, in the store that is measured
    #[arg(long)]
    pub directory: PathBuf,
    /// MiB a node
    #[arg(long)]
    pub part: u64,
    /// Runs that count
    #[arg(long)]
    pub runs: u32,
}

impl Bench {
    /// As the measurement wants it.
    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        let task = |work| Task::new(work, self.directory.clone(), self.part << 20, self.runs);
        self.works.iter().copied().map(task)
    }
}

/// Logs go to standard error, which the daemon or the launcher collects; `SCRFS_LOG` sets the level.
pub fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SCRFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// The threads that scans, flushes and fetches run on.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("work")
        .build()
}
