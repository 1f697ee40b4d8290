//! `scrfs-coordinator`: everything of the coordinator that needs no MPI: a cluster of one, the
//! supervisor behind `scrfs run`, and what people ask of a prefix.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use scrfs::fabric::local;
use scrfs_coordinator::args::{Bench, Serve, init_log, runtime};
use scrfs_coordinator::bench::bench_local;
use scrfs_coordinator::bench::launch::bench_mpi;
use scrfs_coordinator::driver::Driver;
use scrfs_coordinator::job::{self, Each, NodesArgs, ProbeArgs, Reap, RunArgs, Stacks};
use scrfs_coordinator::manual::{self, Man};
use scrfs_coordinator::scavenge::{NodeArgs, ScavengeArgs};
use scrfs_coordinator::track::{self, Track};
use std::process::ExitCode;

/// The coordinator of a cluster of one, and the supervisor of jobs. Started by scrfs.
// Users know it as `scrfs run`.
#[derive(Parser)]
#[command(version, bin_name = "scrfs")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Coordinate this node alone
    Serve(Serve),
    Run(Box<RunArgs>),
    #[command(hide = true)]
    Reap(Reap),
    #[command(hide = true)]
    Each(Each),
    Nodes(Box<NodesArgs>),
    Scavenge(Box<ScavengeArgs>),
    #[command(hide = true)]
    ScavengeNode(Box<NodeArgs>),
    #[command(hide = true)]
    Probe(ProbeArgs),
    #[command(hide = true)]
    Stacks(Stacks),
    #[command(flatten)]
    Track(Track),
    /// What `scrfs bench` cannot measure by itself, as JSON
    Bench(Bench),
    /// Write the manual pages of the commands that users know as scrfs'
    #[command(hide = true)]
    Man(Man),
    /// What options these have, as JSON, for completions
    #[command(hide = true)]
    Options,
}

/// Nodes of the set that is measured.
const BENCH_NODES: u32 = 4;

fn main() -> ExitCode {
    init_log();
    let done = match Cli::parse().command {
        Command::Serve(serve) => serve_alone(serve),
        Command::Run(args) => return ExitCode::from(job::run(&args)),
        Command::Reap(reap) => return ExitCode::from(u8::from(!reap.run())),
        Command::Nodes(args) => return ExitCode::from(args.run()),
        Command::Scavenge(args) => return ExitCode::from(args.run()),
        Command::ScavengeNode(args) => args.run(),
        Command::Probe(args) => args.run(),
        Command::Stacks(args) => {
            args.run();
            Ok(())
        }
        Command::Each(each) => match each.run() {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        Command::Track(track) => return ExitCode::from(track::run(&track)),
        Command::Bench(args) => bench(&args),
        Command::Man(args) => args.write(Cli::command()),
        Command::Options => manual::print_options(&Cli::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve_alone(serve: Serve) -> Result<()> {
    let runtime = runtime()?;
    Driver::start(local::solo(), &serve.options(), runtime.handle())?.run()?;
    runtime.shutdown_background();
    Ok(())
}

fn bench(args: &Bench) -> Result<()> {
    let mut figures = Vec::new();
    for task in args.tasks() {
        figures.extend(bench_local(BENCH_NODES, &task)?);
        match bench_mpi(BENCH_NODES, &task)? {
            Some(found) => figures.extend(found),
            None => tracing::warn!("nothing is measured over MPI: there is no mpirun for it"),
        }
    }
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
