//! `scrfs list`, `current`, `delete`, `drop`, `add`, `verify` and `events`: what people ask of a prefix, with a job running or
//! without.
//!
//! They need no mount, no daemon, no MPI and no lock: they read the records that lie in the prefix and
//! in caches of this node, and change the prefix by operations that others may do at the same time
//! (`prefix::track`). `scrfs` finds out which directories are meant and starts this program, as for
//! `scrfs run`: reading the prefix is the coordinator's, and mount and coordinator never see each
//! other. A running job learns of changes when its next epoch begins.

mod list;
mod verify;

use crate::prefix::{Added, PrefixError};
use crate::target::Target;
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use list::Catalog;
use scrfs::bar::{Bar, Mark};
use scrfs::config::Class;
use scrfs::name::Name;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Which directories.
#[derive(Args, Clone, Debug)]
pub struct Where {
    /// The prefix
    #[arg(long)]
    prefix: PathBuf,
    /// A job's cache on this node; those that are not there are left out
    #[arg(long)]
    cache: Vec<PathBuf>,
}

/// What is asked.
#[derive(Subcommand, Debug)]
pub enum Track {
    /// All datasets
    List {
        #[command(flatten)]
        at: Where,
        /// For programs
        #[arg(long)]
        json: bool,
        /// Those that were dropped, instead
        #[arg(long)]
        dropped: bool,
    },
    /// Show or set the checkpoint to restart from
    Current {
        #[command(flatten)]
        at: Where,
        /// To be set
        #[arg(long)]
        name: Option<OsString>,
        /// No restart works from it
        #[arg(long)]
        failed: bool,
    },
    /// Remove a dataset from the prefix
    Delete {
        #[command(flatten)]
        at: Where,
        /// Which
        #[arg(long)]
        name: OsString,
        /// Also the one to restart from
        #[arg(long)]
        force: bool,
    },
    /// Take a dataset out of the index; its files stay
    Drop {
        #[command(flatten)]
        at: Where,
        /// Which
        #[arg(long)]
        name: OsString,
    },
    /// Hold datasets against their checksums, and repair what can be
    Verify {
        #[command(flatten)]
        at: Where,
        /// Which; all when none is named
        #[arg(long)]
        name: Vec<OsString>,
        /// The daemon's control socket, to have the caches verified
        #[arg(long)]
        socket: Option<PathBuf>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// What happened, a line of JSON each, oldest first
    Events {
        #[command(flatten)]
        at: Where,
    },
    /// Put a dropped dataset back, or take in a directory that somebody else wrote
    Add {
        #[command(flatten)]
        at: Where,
        /// Which
        #[arg(long)]
        name: OsString,
        /// What it is for
        #[arg(long)]
        class: Option<ClassArg>,
        /// What it is for when neither `--class` nor SCR says
        #[arg(long)]
        default_class: ClassArg,
    },
}

/// [`Class`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ClassArg {
    /// One restarts from it.
    Checkpoint,
    /// Somebody wants it.
    Output,
    /// Both.
    Both,
}

impl From<ClassArg> for Class {
    fn from(class: ClassArg) -> Self {
        match class {
            ClassArg::Checkpoint => Self::Checkpoint,
            ClassArg::Output => Self::Output,
            ClassArg::Both => Self::Both,
        }
    }
}

/// It failed.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// Nothing to do it on.
const NOTHING: u8 = 3;

/// Does it, and gives the exit code.
pub fn run(track: &Track) -> u8 {
    match done(track) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scrfs: {error:#}");
            match error.downcast_ref::<PrefixError>() {
                Some(
                    PrefixError::NoSuch { .. }
                    | PrefixError::Missing { .. }
                    | PrefixError::NotADirectory { .. },
                ) => NOTHING,
                _ if error.is::<scrfs::name::NameError>() => USAGE,
                _ => FAILED,
            }
        }
    }
}

fn done(track: &Track) -> anyhow::Result<u8> {
    match track {
        Track::List { at, json, dropped } => list(at, *json, *dropped),
        Track::Current { at, name, failed } => match name {
            None => show_current(at),
            Some(text) if *failed => fail(at, &name_of(text)?),
            Some(text) => choose(at, &name_of(text)?),
        },
        Track::Delete { at, name, force } => delete(at, &name_of(name)?, *force),
        Track::Drop { at, name } => drop_entry(at, &name_of(name)?),
        Track::Verify {
            at,
            name,
            socket,
            json,
        } => verify::verify(at, socket.as_deref(), name, *json),
        Track::Events { at } => events(at),
        Track::Add {
            at,
            name,
            class,
            default_class,
        } => add(
            at,
            &name_of(name)?,
            class.map(Class::from),
            (*default_class).into(),
        ),
    }
}

fn name_of(text: &OsString) -> anyhow::Result<Name> {
    Ok(Name::new(text.as_bytes())?)
}

fn list(at: &Where, json: bool, dropped: bool) -> anyhow::Result<u8> {
    let prefix = Target::open_to_read(&at.prefix)?;
    let shown = if dropped {
        list::dropped(&prefix)?
    } else {
        Catalog::read(&prefix, &at.cache)?.shown()
    };
    print(&if json {
        serde_json::to_string_pretty(&shown)? + "\n"
    } else {
        list::table(&shown)
    })?;
    Ok(0)
}

fn show_current(at: &Where) -> anyhow::Result<u8> {
    let prefix = Target::open_to_read(&at.prefix)?;
    let shown = Catalog::read(&prefix, &at.cache)?.shown();
    match shown.iter().find(|shown| shown.status.current) {
        Some(current) => print(&format!("{}\n", current.status.name)).map(|()| 0),
        None => {
            eprintln!("scrfs: there is no checkpoint to restart from");
            Ok(NOTHING)
        }
    }
}

fn choose(at: &Where, name: &Name) -> anyhow::Result<u8> {
    let prefix = Target::open(&at.prefix)?;
    let key = prefix.choose(name, None)?;
    let catalog = Catalog::read(&prefix, &at.cache)?;
    for newer in catalog.cached_newer_than(key) {
        eprintln!(
            "scrfs: the cache on this node has `{newer}`, which is newer and comes first; \
             `scrfs current --failed {newer}` rules it out"
        );
    }
    Ok(0)
}

fn fail(at: &Where, name: &Name) -> anyhow::Result<u8> {
    let prefix = Target::open(&at.prefix)?;
    let catalog = Catalog::read(&prefix, &at.cache)?;
    let key = catalog.find(name).ok_or_else(|| PrefixError::NoSuch {
        name: name.clone(),
        prefix: at.prefix.clone(),
    })?;
    prefix.fail(key)?;
    Ok(0)
}

fn delete(at: &Where, name: &Name, force: bool) -> anyhow::Result<u8> {
    Target::open(&at.prefix)?.delete(name, force)?;
    Ok(0)
}

fn drop_entry(at: &Where, name: &Name) -> anyhow::Result<u8> {
    Target::open(&at.prefix)?.drop_entry(name)?;
    Ok(0)
}

fn add(at: &Where, name: &Name, class: Option<Class>, default: Class) -> anyhow::Result<u8> {
    let prefix = Target::open(&at.prefix)?;
    let bar = Bar::new(true);
    let progress = |done_bytes, total_bytes| {
        bar.show(&Mark {
            what: name.to_string(),
            done_bytes,
            total_bytes,
        });
    };
    let (name, added) = match prefix.add_scr(name, class, &progress)? {
        Some(of_scr) => of_scr,
        None => {
            let added = prefix.add(name, class.unwrap_or(default), &progress)?;
            (name.clone(), added)
        }
    };
    drop(bar);
    eprintln!(
        "scrfs: {name} {}",
        match added {
            Added::Already => "is there already",
            Added::PutBack => "is back",
            Added::Adopted => "has been read and added",
            Added::Gathered => "has been gathered in a directory, read and added",
        }
    );
    Ok(0)
}

fn events(at: &Where) -> anyhow::Result<u8> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    Target::open_to_read(&at.prefix)?.events(&mut |line| {
        if written.is_ok() {
            written = out.write_all(line).and_then(|()| out.write_all(b"\n"));
        }
    })?;
    is_written(written.and_then(|()| out.flush())).map(|()| 0)
}

/// Writes to stdout.
fn print(text: &str) -> anyhow::Result<()> {
    is_written(io::stdout().write_all(text.as_bytes()))
}

/// A reader that has gone is no failure.
fn is_written(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}
