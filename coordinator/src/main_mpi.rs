//! `scrfs-coordinator-mpi`: one rank of an epoch. Started by an MPI launcher, one a node.

use anyhow::Result;
use clap::Parser;
use scrfs_coordinator::args::{Serve, init_log, runtime};
use scrfs_coordinator::driver::Driver;
use scrfs_coordinator::mpi::MpiFabric;

/// One coordinator of an epoch, as an MPI rank. Started by scrfs.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    serve: Serve,
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
    let options = Cli::parse().serve.options();
    let fabric = MpiFabric::init()?;
    let runtime = runtime()?;
    let fabric = Driver::start(fabric, &options, runtime.handle())?.run()?;
    runtime.shutdown_background();
    fabric.finalize()?;
    Ok(())
}
