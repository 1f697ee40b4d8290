//! The test workload as a program, started by `mpirun`: rank and size come from the launcher.

use anyhow::{Context, Result};
use clap::Parser;
use scrfs_tests::workload::Workload;
use std::env;
use std::path::PathBuf;

/// Writes checkpoints that can be told right from wrong
#[derive(Parser)]
struct Cli {
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
}

fn number(name: &str) -> Result<u32> {
    let text = env::var(name).with_context(|| format!("{name} is not set: use mpirun"))?;
    text.parse().with_context(|| format!("{name}={text}"))
}

fn main() -> Result<()> {
    let Cli {
        mount,
        shared,
        steps,
        bytes,
        seed,
    } = Cli::parse();
    Workload {
        mount,
        shared,
        launch: env::var("PMIX_NAMESPACE").context("PMIX_NAMESPACE is not set: use mpirun")?,
        rank: number("OMPI_COMM_WORLD_RANK")?,
        size: number("OMPI_COMM_WORLD_SIZE")?,
        steps,
        bytes,
        seed,
    }
    .run()
}
