//! `scrfs nodes`: which nodes of the allocation are fit for use, and why the others are not.

use super::args::{self, HostArgs, MountArgs};
use super::checks::{Answer, Daemon, Facts, Limits, now_millis};
use super::remote::{Fleet, Shell};
use super::resource::{Allocation, Here};
use super::words;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Between two looks at the probes.
const PAUSE: Duration = Duration::from_millis(5);
/// Wrong usage.
const USAGE: u8 = 2;

/// Which nodes are fit for use, with the reasons why the others are not
#[derive(clap::Args, Clone, Debug)]
pub struct NodesArgs {
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    mount: MountArgs,
    #[command(flatten)]
    limits: Limits,
    /// Only those that are not
    #[arg(long)]
    down: bool,
    /// Go there and look; otherwise only the user and the resource manager are heard
    #[arg(long)]
    check: bool,
    /// Compare the memory of the nodes as well
    #[arg(long, requires = "check")]
    bandwidth: bool,
    /// A node that has not answered by then is not fit
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    check_timeout: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Asks probes on all `hosts` at once. Waits for the last, or the time limit.
fn ask(shell: &Shell, hosts: &[String], line: &str) -> Vec<(String, Answer)> {
    let asked = now_millis();
    let commands = hosts.iter().map(|host| (host.clone(), line.to_owned()));
    let mut fleet = Fleet::new(shell, "probe", commands);
    let mut answers = Vec::new();
    while !fleet.is_done() {
        for ended in fleet.poll() {
            let answered = now_millis();
            let said = ended.result.and_then(|()| Answer::read(&read(&ended.log)));
            let answer = Answer {
                said,
                asked,
                answered,
            };
            answers.push((ended.host, answer));
        }
        std::thread::park_timeout(PAUSE);
    }
    answers
}

/// What a probe printed; nothing when that cannot be read.
pub(super) fn read(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The command that probes a node.
pub(super) fn probe_line(mount: &MountArgs, bandwidth: bool) -> Result<String> {
    let this = std::env::current_exe().context("where is this program?")?;
    let mut line = vec![this.display().to_string(), "probe".into()];
    let options = mount.options()?;
    let mut options = options.into_iter();
    // The mount point has a name here.
    line.extend(options.next().map(|path| format!("--mountpoint={path}")));
    line.extend(options);
    if bandwidth {
        line.push("--bandwidth".into());
    }
    Ok(args::remote_line(&args::environment(), mount, &line))
}

impl NodesArgs {
    /// Prints the nodes. Returns the exit code.
    pub fn run(&self) -> u8 {
        let here = Here::default();
        let allocation = Allocation::detect(&here);
        let found = match self.hosts.find(allocation.as_ref(), &here) {
            Ok(found) => found,
            Err(error) => {
                eprintln!("scrfs nodes: {error:#}");
                return USAGE;
            }
        };
        let chosen: Vec<String> = found.chosen.into_iter().map(|host| host.name).collect();
        match self.look(allocation.as_ref(), &chosen, found.excluded) {
            Ok(facts) => {
                self.print(&chosen, &facts);
                0
            }
            Err(error) => {
                eprintln!("scrfs nodes: {error:#}");
                1
            }
        }
    }

    fn look(
        &self,
        allocation: Option<&Allocation>,
        chosen: &[String],
        excluded: Vec<String>,
    ) -> Result<Facts> {
        let mut facts = Facts {
            excluded,
            ..Facts::default()
        };
        if let Some(allocation) = allocation {
            let names: Vec<&str> = chosen.iter().map(String::as_str).collect();
            match allocation.down(&Here::default(), &names) {
                Ok(down) => facts.down = down,
                Err(error) => eprintln!("scrfs nodes: {error}"),
            }
        }
        if self.check {
            let logs = std::env::temp_dir().join(format!("scrfs-nodes.{}", std::process::id()));
            std::fs::create_dir_all(&logs)
                .with_context(|| format!("cannot make {}", logs.display()))?;
            let shell = Shell {
                words: words::split(&self.hosts.rsh(allocation)).context("--rsh")?,
                logs: logs.clone(),
                patience: Duration::from_secs(self.check_timeout),
            };
            let fit: Vec<String> = chosen
                .iter()
                .filter(|node| facts.judge(node, &self.limits).is_ok())
                .cloned()
                .collect();
            let line = probe_line(&self.mount, self.bandwidth)?;
            facts.answers.extend(ask(&shell, &fit, &line));
            // Only what was read already.
            let _ = std::fs::remove_dir_all(&logs);
        }
        Ok(facts)
    }

    fn print(&self, chosen: &[String], facts: &Facts) {
        let mut rows = Vec::new();
        for node in chosen.iter().chain(&facts.excluded) {
            let judged = facts.judge(node, &self.limits);
            if self.down && judged.is_ok() {
                continue;
            }
            let answer = facts.answers.get(node);
            let probe = answer.and_then(|answer| answer.said.as_ref().ok());
            if self.json {
                rows.push(serde_json::json!({
                    "node": node,
                    "up": judged.is_ok(),
                    "reason": judged.err(),
                    "clock_skew_ms": probe.and(answer).map(Answer::skew),
                    "daemon": probe.map(|probe| &probe.daemon),
                    "directories": probe.map(|probe| &probe.directories),
                    "bandwidth": probe.and_then(|probe| probe.bandwidth),
                }));
                continue;
            }
            let words = match judged {
                Err(why) => format!("down  {why}"),
                Ok(()) => match probe.map(|probe| &probe.daemon) {
                    None => "up".into(),
                    Some(Daemon::None) => "up    not mounted".into(),
                    Some(Daemon::Answers) => "up    mounted".into(),
                    Some(Daemon::Dead(why)) => format!("up    its daemon does not answer: {why}"),
                },
            };
            println!("{node}  {words}");
        }
        if self.json {
            // Values of ours are always text.
            println!("{}", serde_json::Value::Array(rows));
        }
    }
}
