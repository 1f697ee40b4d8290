//! `scrfs config`, and the options that every command with a configuration takes.

use super::{Failure, print};
use crate::patience::patiently;
use scrfs::config::{Config, Provenance, Sources, is_object_url};
use std::path::{Path, PathBuf};

/// The administrator's file.
const SYSTEM_FILE: &str = "/etc/scrfs.toml";

#[derive(clap::Args, Debug)]
pub(super) struct ConfigOptions {
    /// Cache directory, or the word `tmpfs`; several, fastest first
    #[arg(long, value_name = "DIR")]
    cache: Vec<PathBuf>,
    /// Directory on the parallel file system
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Job id
    #[arg(long, value_name = "ID")]
    job: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    options: ConfigOptions,
    /// Only say whether it is valid
    #[arg(long)]
    check: bool,
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn text(path: &Path) -> Result<String, Failure> {
    let path = match is_object_url(path) {
        true => path.to_owned(),
        false => std::path::absolute(path).map_err(Failure::usage)?,
    };
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("{} is not UTF-8", path.display())))
}

fn read(path: &Path, must_exist: bool) -> Result<Option<(PathBuf, String)>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => Err(Failure::usage(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
    }
}

impl ConfigOptions {
    /// Whether the prefix was named, and is not just the current directory.
    pub(super) fn names_prefix(&self) -> bool {
        let set = |name| environment(name).is_some_and(|value| !value.is_empty());
        self.prefix.is_some() || set("SCR_PREFIX") || set("SCRFS_PREFIX")
    }

    /// The effective configuration. Everything wrong with it is wrong usage.
    pub(super) fn load(&self) -> Result<(Config, Provenance), Failure> {
        self.load_with_prefix(None)
    }

    /// The same, with the prefix of a mount when the command line names none.
    pub(super) fn load_with_prefix(
        &self,
        mounted: Option<PathBuf>,
    ) -> Result<(Config, Provenance), Failure> {
        let prefix = self.prefix.clone().or(mounted);
        let mut cli = Vec::new();
        for cache in &self.cache {
            let path = match cache.to_str() {
                Some(word @ "tmpfs") => word.to_owned(),
                _ => text(cache)?,
            };
            cli.push(("store.path".to_owned(), path));
        }
        if let Some(prefix) = &prefix {
            cli.push(("prefix".to_owned(), text(prefix)?));
        }
        if let Some(job) = &self.job {
            cli.push(("job".to_owned(), job.clone()));
        }
        let named = self.config.as_deref();
        let (user, must_exist) = Config::user_file(named, prefix.as_deref(), &environment);
        let sources = Sources {
            env: &environment,
            user: patiently(&user, || read(&user, must_exist))?,
            system: read(Path::new(SYSTEM_FILE), false)?,
            cli,
        };
        Config::load(&sources).map_err(Failure::usage)
    }
}

pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let (_, provenance) = args.options.load()?;
    if args.check {
        Ok(())
    } else {
        print(&provenance.to_string())
    }
}
