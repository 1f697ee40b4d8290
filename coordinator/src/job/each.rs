//! A command on each host at once, as one launch: for launchers that start processes on their own host
//! only, and programs that need none.
//!
//! `{rank}` and `{host}` are replaced. The first command that fails ends all others, and its exit code is
//! the launch's. Output comes as it comes; nobody has an input. Remote shells pass neither signals nor
//! environment on: SIGTERM goes by a command of its own, and of the environment what such programs are
//! known to need.

use super::child;
use super::hosts;
use super::launcher::LAUNCH_VARIABLE;
use super::remote::{Fleet, Shell};
use super::words;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Variables that go along, and beginnings of names of such.
const VARIABLES: [&str; 6] = [
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    LAUNCH_VARIABLE,
];
const PREFIXES: [&str; 8] = [
    "SCRFS_", "SCR_", "OMP_", "CUDA_", "NCCL_", "GLOO_", "TORCH_", "HF_",
];
/// Marks the commands, and not this process.
const EACH_VARIABLE: &str = "SCRFS_EACH";
/// Between two looks, when no child ends.
const TURN_MS: u16 = 50;
const PATIENCE: Duration = Duration::from_secs(20);

/// Run a command on each host, and wait for all
#[derive(clap::Args, Clone, Debug)]
pub struct Each {
    /// How to run a command on a host
    #[arg(long)]
    rsh: String,
    /// Where
    #[arg(long)]
    hosts: String,
    /// Further variables that go along
    #[arg(long, value_delimiter = ',', env = "SCRFS_EACH_ENV")]
    env: Vec<String>,
    /// What; `{rank}` and `{host}` are replaced
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

struct Rank {
    host: String,
    child: Child,
}

impl Each {
    /// Returns the exit code: that of the first that failed.
    pub fn run(&self) -> Result<u8> {
        let hosts = hosts::expand(&self.hosts).context("--hosts")?;
        let logs = tempfile_directory()?;
        let shell = Shell {
            words: words::split(&self.rsh).context("--rsh")?,
            logs: logs.clone(),
            patience: PATIENCE,
        };
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        child::adopt_orphans()?;
        let mut ranks = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            let line = self.line(number, host)?;
            let words = shell.command(host, &line);
            let (program, options) = words.split_first().context("--rsh is empty")?;
            let mut command = Command::new(program);
            command.args(options).stdin(Stdio::null());
            let child =
                child::spawn(&mut command).with_context(|| format!("cannot run {program}"))?;
            ranks.push(Rank {
                host: host.clone(),
                child,
            });
        }
        let code = self.wait(&shell, &signals, &mut ranks)?;
        child::kill_orphans(&[]);
        // Empty but for what failed commands said, which was shown.
        let _ = std::fs::remove_dir_all(&logs);
        Ok(code)
    }

    fn line(&self, rank: usize, host: &str) -> Result<String> {
        let here = std::env::current_dir().context("where are we?")?;
        let launch = std::env::var(LAUNCH_VARIABLE).unwrap_or_default();
        let mut line = vec!["env".to_owned(), format!("{EACH_VARIABLE}={launch}")];
        let goes = |name: &str| goes_along(name) || self.env.iter().any(|wanted| wanted == name);
        let all = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        line.extend(
            all.filter(|(name, _)| goes(name))
                .map(|(name, value)| format!("{name}={value}")),
        );
        let fill = |word: &String| {
            word.replace("{rank}", &rank.to_string())
                .replace("{host}", host)
        };
        line.extend(self.command.iter().map(fill));
        let line = words::join(line.iter().map(String::as_str));
        let here = words::quote(&here.display().to_string());
        Ok(format!("cd {here} && exec {line}"))
    }

    fn wait(&self, shell: &Shell, signals: &SignalFd, ranks: &mut Vec<Rank>) -> Result<u8> {
        let mut asking: Option<Fleet> = None;
        let mut code = 0;
        while !ranks.is_empty() {
            let mut fds = [nix::poll::PollFd::new(
                signals.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            match nix::poll::poll(&mut fds, TURN_MS) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait"),
            }
            while let Some(info) = signals.read_signal().context("cannot read signals")? {
                if info.ssi_signo != Signal::SIGCHLD as u32 {
                    asking = Some(end(shell, ranks, true)?);
                }
            }
            if let Some(fleet) = &mut asking {
                fleet.poll();
            }
            let mut index = 0;
            while let Some(rank) = ranks.get_mut(index) {
                match rank.child.try_wait().context("cannot wait")? {
                    None => index += 1,
                    Some(status) => {
                        let ended = ranks.swap_remove(index);
                        if status.success() || code != 0 {
                            continue;
                        }
                        code = child::exit_code(status);
                        // Who was asked to end may take the time for it that it is given.
                        if asking.is_none() {
                            let how = child::describe(status);
                            eprintln!("scrfs: on {}: {how}; ending the others", ended.host);
                            let mut fleet = end(shell, ranks, false)?;
                            while !fleet.is_done() {
                                fleet.poll();
                                std::thread::park_timeout(Duration::from_millis(5));
                            }
                        }
                    }
                }
            }
        }
        Ok(code)
    }
}

/// Whether programs on other hosts are known to need this variable.
pub(super) fn goes_along(name: &str) -> bool {
    VARIABLES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Ends the launch on the hosts of `ranks`, or asks for its end.
fn end(shell: &Shell, ranks: &[Rank], ask: bool) -> Result<Fleet> {
    let this = std::env::current_exe().context("where is this program?")?;
    let launch = std::env::var(LAUNCH_VARIABLE).unwrap_or_default();
    let mut words = vec![this.display().to_string(), "reap".into(), launch];
    // Not by the variable that this process has as well, which may be on one of the hosts.
    words.extend(["--mark".to_owned(), EACH_VARIABLE.to_owned()]);
    if ask {
        words.push("--ask".into());
    }
    let line = words::join(words.iter().map(String::as_str));
    let commands = ranks.iter().map(|rank| (rank.host.clone(), line.clone()));
    Ok(Fleet::new(shell, "end", commands))
}

fn tempfile_directory() -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("scrfs-each.{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
