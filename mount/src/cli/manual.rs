//! Manual pages and completions, made from the definitions of the commands, so that none is forgotten.
//!
//! `scrfs run` and `scrfs nodes` are defined in the coordinator's program; it makes their pages itself, and says
//! as JSON what options they have.

use super::{Cli, Failure, print};
use crate::daemon::find_program;
use anyhow::{Context, bail, ensure};
use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::{Shell, generate};
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Has the commands that are not defined here.
const PROGRAM: &str = "scrfs-coordinator";

#[derive(clap::Args, Debug)]
pub(super) struct ManArgs {
    /// Directory for the pages, such as /usr/local/share/man; they go to man1 and man5 in it
    directory: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(super) struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

/// An option of a command that is defined elsewhere.
#[derive(Deserialize, Debug)]
struct Elsewhere {
    command: String,
    long: String,
    help: String,
    takes_value: bool,
}

fn program() -> anyhow::Result<PathBuf> {
    let found = find_program(PROGRAM);
    found.with_context(|| format!("{PROGRAM} is neither beside this program nor on the PATH"))
}

fn elsewhere() -> anyhow::Result<Vec<Elsewhere>> {
    let program = program()?;
    let mut command = std::process::Command::new(&program);
    command.arg("options").stdin(Stdio::null());
    let output = command.output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} options: {}",
        program.display(),
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the options of `scrfs run`")
}

/// All commands, with all their options.
fn commands(elsewhere: Vec<Elsewhere>) -> Command {
    let mut root = Cli::command();
    for option in elsewhere {
        if root.find_subcommand(&option.command).is_none() {
            continue;
        }
        let action = match option.takes_value {
            true => ArgAction::Set,
            false => ArgAction::SetTrue,
        };
        // Kept for good, as clap wants names to be: this process ends in a moment.
        let long: &'static str = option.long.leak();
        let arg = Arg::new(long).long(long).help(option.help).action(action);
        root = root.mut_subcommand(option.command, |command| command.arg(arg));
    }
    root
}

pub(super) fn complete(args: &CompletionArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    generate(args.shell, &mut commands(elsewhere()?), "scrfs", &mut text);
    print(&String::from_utf8_lossy(&text))
}

pub(super) fn write(args: &ManArgs) -> Result<(), Failure> {
    Ok(write_pages(&args.directory)?)
}

fn write_pages(directory: &Path) -> anyhow::Result<()> {
    let (first, fifth) = (directory.join("man1"), directory.join("man5"));
    for path in [&first, &fifth] {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    let pages = clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &first);
    pages.with_context(|| format!("cannot write to {}", first.display()))?;
    let program = program()?;
    let mut command = std::process::Command::new(&program);
    let status = command.arg("man").arg(&first).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("{} man: {status}", program.display());
    }
    let path = fifth.join("scrfs.toml.5");
    std::fs::write(&path, configuration())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The page on the configuration.
fn configuration() -> String {
    let mut page = String::from(
        ".TH scrfs.toml 5\n.SH NAME\nscrfs.toml \\- configuration of scrfs\n.SH SYNOPSIS\n\
         /etc/scrfs.toml\n.br\nPREFIX/.scrfs.toml\n.SH DESCRIPTION\n\
         A TOML file. The user's is named by \\fB--config\\fR or \\fBSCR_CONF_FILE\\fR; the one in the prefix holds when \
         none is named, and /etc/scrfs.toml where neither says anything. A variable of the environment that is \
         named with a key goes before both. \\fBscrfs config\\fR prints what holds, and where each value comes from. Keys that \
         are not known are errors.\n.SH KEYS\n",
    );
    for help in scrfs::config::keys() {
        let text = escape(help.text);
        // Writing to a string cannot fail.
        let _ = write!(page, ".TP\n\\fB{}\\fR\n{text}\n", escape(help.key));
        if !help.variables.is_empty() {
            let _ = writeln!(page, "Environment: {}.", help.variables.join(", "));
        }
    }
    page + ".SH SEE ALSO\n\\fBscrfs\\fR(1), \\fBscrfs-config\\fR(1)\n"
}

/// As troff wants it: backslashes and hyphens stand for themselves, and no line begins with a control.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &Command, check: &mut impl FnMut(&str, &Command)) {
        for inner in command.get_subcommands() {
            let name = format!("{} {}", command.get_name(), inner.get_name());
            check(&name, inner);
            each(inner, check);
        }
    }

    #[test]
    fn every_command_and_every_option_has_its_text() {
        let mut missing = Vec::new();
        each(&Cli::command(), &mut |name, command| {
            if command.get_about().is_none() {
                missing.push(name.to_owned());
            }
            // What these take is told by the other program.
            let passed_on = ["run", "nodes", "scavenge"].contains(&command.get_name());
            for arg in command
                .get_arguments()
                .filter(|arg| !arg.is_hide_set() && !passed_on)
            {
                if arg.get_help().is_none() {
                    missing.push(format!("{name} {}", arg.get_id()));
                }
            }
        });
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_first_page_has_the_exit_codes() {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .expect("in memory");
        let page = String::from_utf8(page).expect("text");
        assert!(page.contains("4 timed out"), "{page}");
    }

    #[test]
    fn the_page_on_the_configuration_has_every_key() {
        let page = configuration();
        for help in scrfs::config::keys() {
            assert!(
                page.contains(&format!("\\fB{}\\fR\n", escape(help.key))),
                "{}",
                help.key
            );
        }
        assert!(page.contains("SCR_FLUSH, SCRFS_FLUSH_EVERY"));
        assert_eq!(escape(".a\\b-c"), "\\&.a\\eb\\-c");
    }

    #[test]
    fn shells_complete_options_that_are_defined_elsewhere() {
        let elsewhere = vec![Elsewhere {
            command: "run".into(),
            long: "spares".into(),
            help: "So many".into(),
            takes_value: true,
        }];
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            generate(
                shell,
                &mut commands(elsewhere_copy(&elsewhere)),
                "scrfs",
                &mut text,
            );
            let text = String::from_utf8(text).expect("text");
            assert!(
                text.contains("spares") && text.contains("simulate"),
                "{shell}"
            );
        }
    }

    fn elsewhere_copy(all: &[Elsewhere]) -> Vec<Elsewhere> {
        let copy = |one: &Elsewhere| Elsewhere {
            command: one.command.clone(),
            long: one.long.clone(),
            help: one.help.clone(),
            takes_value: one.takes_value,
        };
        all.iter().map(copy).collect()
    }
}
