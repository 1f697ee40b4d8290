//! The test workload as a program, started by `mpirun`: rank and size come from the launcher. And
//! the one system call that a shell has no plain command for.

use anyhow::{Context, Result};
use clap::{Args, Parser};
use scrfs_tests::workload::Workload;
use std::env;
use std::path::PathBuf;

/// Programs that tests run on a mount
#[derive(Parser)]
enum Cli {
    /// Write checkpoints that can be told right from wrong, as a rank under `mpirun`
    Run(Run),
    /// Rename a directory as `rename(2)` does; `mv` looks before it renames
    Rename {
        /// From
        from: PathBuf,
        /// To
        to: PathBuf,
    },
}

#[derive(Args)]
struct Run {
    /// The mount
    #[arg(long, default_value = "/scr")]
    mount: PathBuf,
    /// A directory all ranks share
    #[arg(long)]
    shared: PathBuf,
    /// The last step
    #[arg(long)]
    steps: u64,
    /// Bytes a rank and step
    #[arg(long)]
    bytes: usize,
    /// Of the contents
    #[arg(long)]
    seed: u64,
    /// Nobody renames before all have written
    #[arg(long)]
    barrier: bool,
}

fn number(name: &str) -> Result<u32> {
    let text = env::var(name).with_context(|| format!("{name} is not set: use mpirun"))?;
    text.parse().with_context(|| format!("{name}={text}"))
}

fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Run(run) => work(run),
        Cli::Rename { from, to } => std::fs::rename(&from, &to)
            .with_context(|| format!("renaming {} to {}", from.display(), to.display())),
    }
}

fn work(run: Run) -> Result<()> {
    let Run {
        mount,
        shared,
        steps,
        bytes,
        seed,
        barrier,
    } = run;
    Workload {
        mount,
        shared,
        launch: env::var("PMIX_NAMESPACE").context("PMIX_NAMESPACE is not set: use mpirun")?,
        rank: number("OMPI_COMM_WORLD_RANK")?,
        size: number("OMPI_COMM_WORLD_SIZE")?,
        steps,
        bytes,
        seed,
        barrier,
    }
    .run()
}
