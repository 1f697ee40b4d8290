//! The job of the demo while it runs: what it prints, what is seen of it, and when things happened.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::lammps::{self, STEPS};
use super::watch::{Eye, is_safe, step_of};
use super::{RANKS, chapter};
use crate::{Cluster, wait_until};

/// For the job as a whole.
const PATIENCE: Duration = Duration::from_secs(240);
/// Word of `scrfs run` that begins a line of its.
const SUPERVISOR: &str = "scrfs run: ";

enum Line {
    Application(String),
    Supervisor(String),
}

/// A job under way.
pub(super) struct Story<'a> {
    cluster: &'a Cluster,
    begun: Instant,
    child: Child,
    lines: Receiver<Line>,
    log: fs::File,
    last: Option<String>,
    launches: u32,
    restart: Option<u64>,
    status: Vec<String>,
    stages: Vec<(Duration, String)>,
    code: Option<i32>,
}

/// How it ended.
pub(super) struct Job {
    /// Its last thermo line.
    pub(super) last: String,
    /// The step it was restarted at.
    pub(super) restart: Option<u64>,
}

impl<'a> Story<'a> {
    /// Starts `scrfs run` on node0.
    pub(super) fn begin(
        cluster: &'a Cluster,
        directory: &Path,
        scrfs: &Path,
        last: u64,
    ) -> Result<Self> {
        let prefix = directory.join("prefix");
        fs::create_dir(&prefix).context("making the prefix")?;
        let hosts = directory.join("hosts");
        let names: String = (1..=RANKS + 1)
            .map(|node| cluster.name(node) + "\n")
            .collect();
        fs::write(&hosts, names).context("writing the host file")?;
        let (melt, restart) = lammps::write_inputs(directory)?;

        let mut arguments: Vec<String> = ["run", "--runs", "4", "--spares", "1"]
            .map(String::from)
            .into();
        arguments.extend(["--hostfile".into(), hosts.display().to_string()]);
        arguments.extend(["--prefix".into(), prefix.display().to_string()]);
        arguments.extend(["--rsh".into(), cluster.rsh().display().to_string()]);
        let logs = directory.join("logs");
        arguments.extend(["--log-dir".into(), logs.display().to_string()]);
        let again = lammps::command(&restart, last).join(" ");
        arguments.extend(["--restart-cmd".into(), again, "--".into()]);
        arguments.extend(lammps::command(&melt, last));
        println!("node0$ scrfs {}", arguments.join(" "));
        println!();
        let mut child = cluster
            .command(0, scrfs)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting scrfs run")?;
        let (sender, lines) = channel();
        let output = child.stdout.take().context("the pipe was asked for")?;
        let errors = child.stderr.take().context("the pipe was asked for")?;
        follow(output, sender.clone());
        follow(errors, sender);
        Ok(Self {
            cluster,
            begun: Instant::now(),
            child,
            lines,
            log: fs::File::create(directory.join("output")).context("making a log")?,
            last: None,
            launches: 0,
            restart: None,
            status: Vec::new(),
            stages: Vec::new(),
            code: None,
        })
    }

    /// Until the time to kill has come: a checkpoint is safe that is at least the `after`th, and a later one
    /// is under way.
    pub(super) fn watch_until_due(&mut self, observer: usize, after: u64) -> Result<()> {
        self.watch(
            observer,
            "a checkpoint to be safe and a later one under way",
            |story| {
                ensure!(
                    story.code.is_none(),
                    "the job ended before a node could be lost"
                );
                let safe = story
                    .status
                    .iter()
                    .filter(|name| is_safe(name))
                    .filter_map(|name| step_of(name));
                let Some(safe) = safe.max() else {
                    return Ok(false);
                };
                let later =
                    |name: &String| !is_safe(name) && step_of(name).is_some_and(|step| step > safe);
                Ok(safe >= after * STEPS && story.status.iter().any(later))
            },
        )
    }

    /// Until the application runs again.
    pub(super) fn watch_until_relaunched(&mut self, observer: usize) -> Result<()> {
        self.watch(observer, "the job to be launched again", |story| {
            ensure!(
                story.code.is_none(),
                "the job ended and was not launched again"
            );
            Ok(story.launches >= 2)
        })
    }

    /// Until `scrfs run` has ended.
    pub(super) fn watch_until_ended(&mut self, observer: usize) -> Result<()> {
        self.watch(observer, "the end of the job", |story| {
            Ok(story.code.is_some())
        })
    }

    fn watch(
        &mut self,
        observer: usize,
        what: &str,
        mut is_so: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let cluster = self.cluster;
        let mut eye = Eye::new(cluster, observer);
        let left = PATIENCE.saturating_sub(self.begun.elapsed());
        wait_until(left, what, || {
            let seen = eye.status();
            // Not when it is unmounted: the last that was seen is shown.
            if !seen.is_empty() {
                self.status = seen;
            }
            self.take_lines()?;
            if self.code.is_none() {
                self.code = self
                    .child
                    .try_wait()?
                    .map(|status| status.code().unwrap_or(-1));
            }
            Ok(is_so(self)?.then_some(()))
        })
    }

    fn take_lines(&mut self) -> Result<()> {
        loop {
            match self.lines.try_recv() {
                Ok(line) => self.take_line(line)?,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    fn take_line(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Application(line) => {
                writeln!(self.log, "{line}").context("writing the log")?;
                if let Some(step) = lammps::thermo_step(&line) {
                    let line = line.trim().to_owned();
                    println!("  {:>6.2} s  lammps     | {line}", self.now());
                    self.last = Some(line);
                    ensure!(step % STEPS == 0, "a step that is none");
                } else if line.contains("ERROR") || line.contains("WARNING") {
                    println!("  {:>6.2} s  lammps     | {line}", self.now());
                }
            }
            Line::Supervisor(line) => {
                writeln!(self.log, "{line}").context("writing the log")?;
                let words = line.strip_prefix(SUPERVISOR).unwrap_or(&line);
                let words = words.split_once(" s  ").map_or(words, |(_, words)| words);
                println!("  {:>6.2} s  scrfs run  | {words}", self.now());
                if words.starts_with("launch ") {
                    self.launches += 1;
                }
                if let Some(name) = words.strip_prefix("recovered: restart from ") {
                    self.restart = step_of(name);
                }
                let is_stage = line.starts_with(SUPERVISOR) && !words.starts_with("summary");
                if is_stage {
                    self.stages.push((self.begun.elapsed(), words.to_owned()));
                }
            }
        }
        Ok(())
    }

    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Something that the demo itself did.
    pub(super) fn note(&mut self, words: &str) {
        println!("  {:>6.2} s  ** {words}", self.now());
        self.stages
            .push((self.begun.elapsed(), format!("** {words}")));
    }

    /// What was last seen in `/scr/.scr/status`.
    pub(super) fn show_status(&self, when: &str) {
        println!("\n  {when}:\n  $ ls /scr/.scr/status");
        for names in self.status.chunks(4) {
            let names: Vec<String> = names.iter().map(|name| format!("{name:<22}")).collect();
            println!("  {}", names.concat().trim_end());
        }
        println!();
    }

    /// Waits for the rest of its output and judges how it ended.
    pub(super) fn end(&mut self) -> Result<Job> {
        // Both ends are closed: the readers end.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(10)) {
            self.take_line(line)?;
        }
        if self.code != Some(0) {
            bail!("scrfs run ended with {:?}", self.code);
        }
        let last = self.last.clone().context("no thermo line was seen")?;
        Ok(Job {
            last,
            restart: self.restart,
        })
    }

    /// Times of everything from the loss on.
    pub(super) fn show_stages(&self) {
        chapter("Times, from the loss on");
        let Some(lost) = self
            .stages
            .iter()
            .position(|(_, words)| words.starts_with("**"))
        else {
            return;
        };
        let from = self.stages[lost].0;
        for (at, words) in &self.stages[lost..] {
            println!("{:>8.2} s  {words}", (*at - from).as_secs_f64());
            if words.starts_with("launch ") {
                break;
            }
        }
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        // The cluster's end would take it too, but not before its pipes are waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines in a thread of its own, which ends with the pipe. Lines of `scrfs run` are told by how they begin:
/// the application may use standard error as well.
fn follow(from: impl Read + Send + 'static, to: Sender<Line>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { break };
            let line = if line.starts_with(SUPERVISOR) {
                Line::Supervisor(line)
            } else {
                Line::Application(line)
            };
            if to.send(line).is_err() {
                break;
            }
        }
    });
}
