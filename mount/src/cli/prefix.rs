//! `scrfs list`, `current`, `delete`, `drop`, `add`, `verify` and `events`: finds out which prefix and caches are meant.
//!
//! The work is `scrfs-coordinator`'s, which this process becomes: it has what reads and writes a prefix.
//! A mount is not needed; where there is one, its prefix and its cache are meant when nothing else is
//! said. The caches are those on this node.

use super::config::ConfigOptions;
use super::{Failure, daemon_at, exec_program, name};
use scrfs::config::{Class, Config};
use scrfs::layout::path::CachePaths;
use scrfs::store::posix::PosixStore;
use scrfs::stores::owner::{self, OwnerError};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub(super) struct PrefixOptions {
    /// The mount point, whose prefix is meant if no other is named
    #[arg(long = "mount", value_name = "MOUNTPOINT", default_value = "/scr")]
    mountpoint: PathBuf,
    #[command(flatten)]
    config: ConfigOptions,
}

#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    options: PrefixOptions,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Show those that were dropped, instead
    #[arg(long)]
    dropped: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    options: PrefixOptions,
}

#[derive(clap::Args, Debug)]
pub(super) struct CurrentArgs {
    #[command(flatten)]
    options: PrefixOptions,
    /// The checkpoint to restart from; shown when not given
    name: Option<OsString>,
    /// No restart works from NAME: it is not offered again, and the next older one is
    #[arg(long, requires = "name")]
    failed: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    options: PrefixOptions,
    /// The dataset
    name: OsString,
    /// Also when it is the checkpoint to restart from
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct DropArgs {
    #[command(flatten)]
    options: PrefixOptions,
    /// The dataset
    name: OsString,
}

#[derive(clap::Args, Debug)]
pub(super) struct AddArgs {
    #[command(flatten)]
    options: PrefixOptions,
    /// A dropped dataset, a directory in the prefix, or a dataset of SCR's
    name: OsString,
    /// What it is for: checkpoint, output or both; else what the configuration says of its name
    #[arg(long, value_parser = ["checkpoint", "output", "both"])]
    class: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    options: PrefixOptions,
    /// The datasets; all when none is named
    names: Vec<OsString>,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl PrefixOptions {
    /// The configuration, and the arguments that say which directories.
    fn resolve(&self) -> Result<(Config, Vec<OsString>), Failure> {
        let daemon = daemon_at(&self.mountpoint).ok();
        let mounted = daemon.as_ref().map(|daemon| daemon.prefix.clone());
        let (config, _) = self.config.load_with_prefix(mounted)?;
        let mut args: Vec<OsString> = vec!["--prefix".into(), config.prefix.clone().into()];
        let uid = nix::unistd::Uid::effective().as_raw();
        let stores = config
            .store
            .iter()
            .filter(|store| !store.is_private_tmpfs());
        let mut caches: Vec<PathBuf> = stores
            .map(|store| {
                CachePaths::new(&store.path, uid, &config.job)
                    .root()
                    .to_owned()
            })
            .collect();
        caches.extend(
            daemon
                .filter(|daemon| daemon.prefix == config.prefix)
                .map(|daemon| daemon.cache),
        );
        caches.sort();
        caches.dedup();
        for cache in caches {
            let owned = owner::check(&PosixStore::new(), &CachePaths::at(&cache), &config.prefix);
            match owned {
                Ok(()) => args.extend(["--cache".into(), cache.into()]),
                Err(OwnerError::Other { cache, theirs, .. }) => eprintln!(
                    "scrfs: not looked at: the cache {}, which is of the prefix {}",
                    cache.display(),
                    theirs.display()
                ),
                Err(error) => return Err(Failure::failed(error.into())),
            }
        }
        Ok((config, args))
    }
}

fn exec(verb: &str, mut args: Vec<OsString>, flags: &[(bool, &str)]) -> Result<(), Failure> {
    let set = flags.iter().filter(|(set, _)| *set);
    args.extend(set.map(|(_, flag)| OsString::from(flag)));
    exec_program("scrfs-coordinator", verb, &args)
}

fn with_name(mut args: Vec<OsString>, text: &OsString) -> Result<Vec<OsString>, Failure> {
    name(text)?;
    let mut option = OsString::from("--name=");
    option.push(text);
    args.push(option);
    Ok(args)
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let (_, directories) = args.options.resolve()?;
    let flags = [(args.json, "--json"), (args.dropped, "--dropped")];
    exec("list", directories, &flags)
}

pub(super) fn events(args: &EventsArgs) -> Result<(), Failure> {
    let (_, directories) = args.options.resolve()?;
    exec("events", directories, &[])
}

pub(super) fn current(args: &CurrentArgs) -> Result<(), Failure> {
    let (_, mut directories) = args.options.resolve()?;
    if let Some(name) = &args.name {
        directories = with_name(directories, name)?;
    }
    exec("current", directories, &[(args.failed, "--failed")])
}

pub(super) fn delete(args: &DeleteArgs) -> Result<(), Failure> {
    let (_, directories) = args.options.resolve()?;
    let words = with_name(directories, &args.name)?;
    exec("delete", words, &[(args.force, "--force")])
}

pub(super) fn drop_entry(args: &DropArgs) -> Result<(), Failure> {
    let (_, directories) = args.options.resolve()?;
    exec("drop", with_name(directories, &args.name)?, &[])
}

/// With a mount its coordinators read the caches; a prefix that is named and is not the mount's is read
/// alone.
pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let (config, mut words) = args.options.resolve()?;
    let daemon = daemon_at(&args.options.mountpoint);
    for text in &args.names {
        words = with_name(words, text)?;
    }
    match daemon {
        Ok(daemon) if daemon.prefix == config.prefix => {
            words.extend(["--socket".into(), daemon.socket.into()]);
        }
        Err(failure) if !args.options.config.names_prefix() => return Err(failure),
        Ok(_) | Err(_) => {}
    }
    exec("verify", words, &[(args.json, "--json")])
}

pub(super) fn add(args: &AddArgs) -> Result<(), Failure> {
    let (config, directories) = args.options.resolve()?;
    let mut words = with_name(directories, &args.name)?;
    let default = match config.class_of(name(&args.name)?.as_bytes()) {
        Class::Checkpoint => "checkpoint",
        Class::Output => "output",
        Class::Both => "both",
    };
    words.extend(["--default-class".into(), default.into()]);
    if let Some(class) = &args.class {
        words.extend(["--class".into(), class.into()]);
    }
    exec("add", words, &[])
}
