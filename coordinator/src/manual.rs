//! Manual pages of commands that are defined here and that users know as scrfs', and what options they have.

use anyhow::{Context, Result};
use clap::Command;
use serde::Serialize;
use std::path::PathBuf;

/// Commands that `scrfs` passes on as they are, and how their pages call them.
const PASSED_ON: [[&str; 3]; 3] = [
    ["run", "scrfs-run", "scrfs run"],
    ["nodes", "scrfs-nodes", "scrfs nodes"],
    ["scavenge", "scrfs-scavenge", "scrfs scavenge"],
];

/// Write manual pages
#[derive(clap::Args, Clone, Debug)]
pub struct Man {
    /// Directory for them
    directory: PathBuf,
}

/// An option.
#[derive(Serialize)]
struct Told {
    command: String,
    long: String,
    help: String,
    takes_value: bool,
}

fn passed_on(root: &Command) -> impl Iterator<Item = ([&'static str; 3], &Command)> {
    let find = |names: [&'static str; 3]| Some((names, root.find_subcommand(names[0])?));
    PASSED_ON.into_iter().filter_map(find)
}

impl Man {
    /// Writes the pages of `root`'s commands.
    pub fn write(&self, root: Command) -> Result<()> {
        for ([_, name, called], command) in passed_on(&root) {
            let page = command
                .clone()
                .name(name)
                .bin_name(called)
                .display_name(name)
                .version(env!("CARGO_PKG_VERSION"));
            let mut text = Vec::new();
            let made = clap_mangen::Man::new(page).render(&mut text);
            let path = self.directory.join(format!("{name}.1"));
            made.and_then(|()| std::fs::write(&path, &text))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn told(root: &Command) -> Vec<Told> {
    let mut all = Vec::new();
    for (_, command) in passed_on(root) {
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let Some(long) = arg.get_long() else { continue };
            all.push(Told {
                command: command.get_name().to_owned(),
                long: long.to_owned(),
                help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
                takes_value: arg.get_action().takes_values(),
            });
        }
    }
    all
}

/// Prints the options of `root`'s commands.
pub fn print_options(root: &Command) -> Result<()> {
    println!("{}", serde_json::to_string(&told(root))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{NodesArgs, RunArgs};
    use clap::Args;

    fn root() -> Command {
        let run = RunArgs::augment_args(Command::new("run").about("a"));
        let nodes = NodesArgs::augment_args(Command::new("nodes").about("a"));
        Command::new("scrfs").subcommand(run).subcommand(nodes)
    }

    #[test]
    fn every_option_has_its_text_and_every_command_its_page() {
        let options = told(&root());
        for option in &options {
            assert!(
                !option.help.is_empty(),
                "{} --{}",
                option.command,
                option.long
            );
        }
        let is = |long: &str| options.iter().any(|option| option.long == long);
        assert!(is("spares") && is("check") && !is("resumed"));
        let directory = tempfile::tempdir().expect("a directory");
        let man = Man {
            directory: directory.path().to_owned(),
        };
        man.write(root()).expect("writable");
        let page = std::fs::read_to_string(directory.path().join("scrfs-run.1")).expect("a page");
        assert!(
            page.contains("spares") && page.contains("scrfs run") && page.contains("Exit code"),
            "{page}"
        );
    }
}
