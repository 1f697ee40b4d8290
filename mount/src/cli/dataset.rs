//! `scrfs commit`, `wait`, `flush` and `fetch`: datasets, by name.

use super::watch::{ask_watched, of_name};
use super::{At, Failure, ask, daemon_at, name};
use scrfs::control::{Command, Level};
use std::ffi::OsString;
use std::time::Duration;

#[derive(clap::Args, Debug)]
pub(super) struct NameArgs {
    #[command(flatten)]
    at: At,
    /// The dataset
    name: OsString,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum For {
    Sealed,
    Protected,
    Flushed,
}

#[derive(clap::Args, Debug)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    at: At,
    /// The dataset
    name: OsString,
    /// For what
    #[arg(long = "for", value_enum, default_value = "sealed")]
    level: For,
    /// Seconds to wait at most
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
}

#[derive(clap::Args, Debug)]
pub(super) struct FlushArgs {
    #[command(flatten)]
    at: At,
    /// The datasets
    #[arg(required_unless_present = "at_end")]
    names: Vec<OsString>,
    /// The job has ended: what is left for the prefix is due. Waits for nothing
    #[arg(long, hide = true)]
    at_end: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct FetchArgs {
    #[command(flatten)]
    at: At,
    /// The datasets, as `scrfs list` shows them
    #[arg(required = true)]
    names: Vec<OsString>,
}

pub(super) fn commit(args: &NameArgs) -> Result<(), Failure> {
    let daemon = daemon_at(&args.at.mountpoint)?;
    ask(
        &daemon,
        &Command::Commit {
            name: name(&args.name)?,
        },
        None,
    )
    .map(drop)
}

pub(super) fn wait(args: &WaitArgs) -> Result<(), Failure> {
    let daemon = daemon_at(&args.at.mountpoint)?;
    let level = match args.level {
        For::Sealed => Level::Sealed,
        For::Protected => Level::Protected,
        For::Flushed => Level::Flushed,
    };
    let patience = args.timeout.map(|seconds| {
        // A read timeout of zero would mean none.
        Duration::try_from_secs_f64(seconds)
            .map(|timeout| timeout.max(Duration::from_millis(1)))
            .map_err(|error| Failure::usage(format!("--timeout {seconds}: {error}")))
    });
    let name = name(&args.name)?;
    let figures = of_name(name.to_string(), move |dataset| match level {
        Level::Sealed => None,
        // What is left then is a rebuild, and that is not told.
        Level::Protected => Some(dataset.protected_bytes).filter(|&done| done < dataset.bytes),
        Level::Flushed => Some(dataset.flushed_bytes),
    });
    let command = Command::Wait { name, level };
    ask_watched(&daemon, &command, patience.transpose()?, figures).map(drop)
}

pub(super) fn flush(args: &FlushArgs) -> Result<(), Failure> {
    let daemon = daemon_at(&args.at.mountpoint)?;
    if args.at_end {
        ask(&daemon, &Command::End, None)?;
    }
    for dataset in &args.names {
        let name = name(dataset)?;
        let figures = of_name(name.to_string(), |dataset| Some(dataset.flushed_bytes));
        ask_watched(&daemon, &Command::Flush { name }, None, figures)?;
    }
    Ok(())
}

pub(super) fn fetch(args: &FetchArgs) -> Result<(), Failure> {
    let daemon = daemon_at(&args.at.mountpoint)?;
    for dataset in &args.names {
        let name = name(dataset)?;
        let figures = of_name(name.to_string(), |dataset| dataset.fetching_bytes);
        ask_watched(&daemon, &Command::Fetch { name }, None, figures)?;
    }
    Ok(())
}
