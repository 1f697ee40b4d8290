//! `scrfs scavenge`: what the caches of the nodes that are left have, and the prefix not, is copied there
//! after the run. No daemon, coordinator, application or MPI runs, or is needed.
//!
//! ```text
//! look     every node, at once: what it has, into .scrfs/scavenge/<session>/<node>.catalog
//! plan     here: which datasets, who copies what, what is rebuilt (scrfs::protocol::scavenge)
//! copy     every node, at once: files and parity into the attempt of this session
//! finish   here, one dataset after the other: rebuild what nobody has, verify, publish as a flush does
//! ```
//!
//! What a node finds damaged while it copies is left out of the next plan, until nothing is left to be done.
//! Invariants: caches are only read; nothing is visible in the prefix that is not complete; whoever
//! is killed in the midst leaves what the next session, or the next start of the job, removes. Two sessions
//! at once have attempts of their own.

mod crew;
mod finish;
mod node;
#[cfg(test)]
mod tests;

use crate::job::args::{HostArgs, MountArgs};
use crate::job::resource::{Allocation, Here};
use crate::prefix::Prefix;
use anyhow::{Context, Result};
pub(crate) use crew::Hosts;
use crew::{Crew, Roots};
pub(crate) use finish::Outcome;
use finish::Scavenge;
pub use node::NodeArgs;
use scrfs::id::Epoch;
use scrfs::layout::record::millis;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Done.
const DONE: u8 = 0;
/// It failed.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// Nothing to do it on.
const NOTHING: u8 = 3;

/// After a run: copy what was not flushed from the nodes that are left, and rebuild what is missing from
/// parity. Outputs first, then the newest checkpoint
#[derive(clap::Args, Clone, Debug)]
pub struct ScavengeArgs {
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    mount: MountArgs,
    /// Only this node
    #[arg(long, conflicts_with_all = ["nodes", "hostfile", "root"])]
    here: bool,
    /// The directory of a job in the first store of a node, at hand here, such as
    /// `/dev/shm/scrfs.1000/job`; several, instead of hosts
    #[arg(long, value_name = "DIR", conflicts_with_all = ["nodes", "hostfile"])]
    root: Vec<PathBuf>,
    /// Also where a daemon has the cache; nothing else may flush meanwhile
    #[arg(long)]
    live: bool,
    /// A node that has not ended by then counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl ScavengeArgs {
    /// Does it, and gives the exit code.
    pub fn run(&self) -> u8 {
        let here = Here::default();
        let allocation = Allocation::detect(&here);
        let found = match self.is_local(allocation.as_ref()) {
            true => Ok(Vec::new()),
            false => self.hosts.find(allocation.as_ref(), &here).map(|found| {
                let hosts = found.chosen.into_iter();
                hosts.map(|host| host.name).collect()
            }),
        };
        let hosts: Vec<String> = match found {
            Ok(hosts) => hosts,
            Err(error) => {
                eprintln!("scrfs scavenge: {error:#}");
                return USAGE;
            }
        };
        let done = self.with_hosts(hosts, allocation.as_ref());
        match done {
            Ok(outcome) => self.tell(&outcome),
            Err(error) => {
                eprintln!("scrfs scavenge: {error:#}");
                FAILED
            }
        }
    }

    fn is_local(&self, allocation: Option<&Allocation>) -> bool {
        let named = self.hosts.nodes.is_some() || self.hosts.hostfile.is_some();
        let elsewhere = std::env::var_os("SCR_NODELIST").is_some();
        self.here || !self.root.is_empty() || !(named || elsewhere || allocation.is_some())
    }

    fn with_hosts(&self, hosts: Vec<String>, allocation: Option<&Allocation>) -> Result<Outcome> {
        let config = self.mount.load().context("the configuration")?;
        let prefix = Prefix::open(&config.prefix)?.of_job(&config.job);
        let mut crew: Box<dyn Crew> = if hosts.is_empty() {
            let roots = self.root.clone();
            Box::new(Roots::new(roots, &config, self.live))
        } else {
            let rsh = self.hosts.rsh(allocation);
            let timeout = Duration::from_secs(self.timeout);
            Box::new(Hosts::new(&rsh, &self.mount, hosts, timeout, self.live)?)
        };
        if !self.json {
            crew.show_bars();
        }
        let say = |words: &str| eprintln!("scrfs scavenge: {words}");
        let session = Epoch(millis(SystemTime::now()));
        Scavenge {
            prefix: &prefix,
            log: &config.log,
            session,
            say: &say,
            shows_bars: !self.json,
        }
        .run(&mut *crew)
    }

    fn tell(&self, outcome: &Outcome) -> u8 {
        let code = if outcome.known == 0 && outcome.absent.is_empty() {
            eprintln!(
                "scrfs scavenge: no node has a cache of this job (--job and --cache say which)"
            );
            NOTHING
        } else if outcome.is_all_safe() {
            DONE
        } else {
            FAILED
        };
        if self.json {
            // Values of ours are always text.
            let text = serde_json::to_string_pretty(outcome).unwrap_or_default();
            // A reader that has gone is no failure.
            let _ = writeln!(io::stdout(), "{text}");
        } else {
            for line in outcome.lines() {
                eprintln!("scrfs scavenge: {line}");
            }
        }
        code
    }
}

/// The same for `scrfs run`, whose hosts have a shell already. `turn` is called all the time, and ends it
/// by an error.
pub(crate) fn after_run(
    mut crew: Hosts,
    mount: &MountArgs,
    say: &dyn Fn(&str),
    turn: &mut dyn FnMut() -> Result<()>,
) -> Result<Outcome> {
    let config = mount.load().context("the configuration")?;
    crew.show_bars();
    let prefix = Prefix::open(&config.prefix)?.of_job(&config.job);
    Scavenge {
        prefix: &prefix,
        log: &config.log,
        session: Epoch(millis(SystemTime::now())),
        say,
        shows_bars: true,
    }
    .run(&mut crew.watched(turn))
}
