//! `scrfs-coordinator-mpi`: one rank of an epoch. Started by an MPI launcher, one a node.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use scrfs::fabric::Fabric;
use scrfs::id::Rank;
use scrfs_coordinator::args::{Bench, Serve, init_log, runtime};
use scrfs_coordinator::bench;
use scrfs_coordinator::driver::Driver;
use scrfs_coordinator::mpi::MpiFabric;

/// One coordinator of an epoch, as an MPI rank. Started by scrfs.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Subcommand)]
enum Command {
    /// One rank of a measurement
    Bench(Bench),
}

fn main() {
    init_log();
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            1
        }
    };
    // Not the ordinary way out: with peers gone, MPI's own end would wait for them for ever.
    MpiFabric::abandon(code);
}

fn run() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Bench(args)) = cli.command {
        return measure(&args);
    }
    let options = cli.serve.context("--socket is missing")?.options();
    let fabric = MpiFabric::init()?;
    let runtime = runtime()?;
    let fabric = Driver::start(fabric, &options, runtime.handle())?.run()?;
    runtime.shutdown_background();
    fabric.finalize()?;
    Ok(())
}

fn measure(args: &Bench) -> Result<()> {
    let mut fabric = MpiFabric::init()?;
    let (me, size) = (fabric.me(), fabric.size());
    let mut figures = Vec::new();
    for task in args.tasks() {
        let measured = bench::measure(&mut fabric, &task)?;
        figures.extend(bench::figures("over MPI", size, &task, &measured));
    }
    fabric.finalize()?;
    if me == Rank(0) {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}
