//! One command on many hosts at once, through the remote shell, each with its own time limit.
//!
//! Does not wait by itself: [`Fleet::poll`] is asked from the supervisor's loop. What a command printed
//! goes to a file a host, and its end is quoted when it fails.

use super::child;
use super::words;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Remote shells at once: each is a process here, and a connection.
const AT_ONCE: usize = 64;
/// Lines of a failed command's output that are shown.
const LINES_SHOWN: usize = 5;

/// How to run commands on hosts.
#[derive(Clone, Debug)]
pub struct Shell {
    /// Program and options, such as `ssh -o BatchMode=yes`.
    pub words: Vec<String>,
    /// Where outputs go.
    pub logs: PathBuf,
    /// For one command.
    pub patience: Duration,
}

/// A command on its way on several hosts.
#[derive(Debug)]
pub struct Fleet {
    shell: Shell,
    name: &'static str,
    waiting: VecDeque<(String, String)>,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    host: String,
    child: Child,
    log: PathBuf,
    deadline: Instant,
}

/// How it went on one host.
#[derive(Debug)]
pub struct Ended {
    /// Which host.
    pub host: String,
    /// Why it failed, for people.
    pub result: Result<(), String>,
}

impl Fleet {
    /// Runs a command line on each host; `name` says what it is for, and names the files.
    pub fn new(
        shell: &Shell,
        name: &'static str,
        commands: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let waiting = commands.into_iter().collect();
        Self {
            shell: shell.clone(),
            name,
            waiting,
            running: Vec::new(),
        }
    }

    /// Nothing left to come.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Process ids of the remote shells.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.running.iter().map(|running| running.child.id())
    }

    /// Starts what may start, and gives what has ended.
    pub fn poll(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while self.running.len() < AT_ONCE {
            let Some((host, command)) = self.waiting.pop_front() else {
                break;
            };
            match self.start(&host, &command) {
                Ok(running) => self.running.push(running),
                Err(error) => {
                    let shell = words::join(self.shell.words.iter().map(String::as_str));
                    let result = Err(format!("cannot run `{shell}`: {error}"));
                    ended.push(Ended { host, result });
                }
            }
        }
        let mut index = 0;
        while index < self.running.len() {
            match self.running[index].look(self.shell.patience) {
                None => index += 1,
                Some(result) => {
                    let running = self.running.swap_remove(index);
                    ended.push(Ended {
                        host: running.host,
                        result,
                    });
                }
            }
        }
        ended
    }

    fn start(&self, host: &str, command: &str) -> io::Result<Running> {
        let log = self.shell.logs.join(format!("{}.{host}.log", self.name));
        let output = File::create(&log)?;
        let (program, options) = self
            .shell
            .words
            .split_first()
            .ok_or(io::ErrorKind::NotFound)?;
        let mut shell = Command::new(program);
        shell.args(options).arg(host).arg(command);
        // A group of its own: a Control-C is for the application.
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        shell
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = child::spawn(&mut shell)?;
        let deadline = Instant::now() + self.shell.patience;
        Ok(Running {
            host: host.to_owned(),
            child,
            log,
            deadline,
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for running in &mut self.running {
            child::kill_child(&mut running.child);
        }
    }
}

impl Running {
    fn look(&mut self, patience: Duration) -> Option<Result<(), String>> {
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Some(Ok(())),
            Ok(Some(status)) => Some(Err(said(&self.log, &child::describe(status)))),
            Ok(None) if Instant::now() < self.deadline => None,
            Ok(None) => {
                child::kill_child(&mut self.child);
                let why = format!("no answer within {} s", patience.as_secs());
                Some(Err(said(&self.log, &why)))
            }
            Err(error) => Some(Err(error.to_string())),
        }
    }
}

fn said(log: &Path, why: &str) -> String {
    let last = last_lines(log, LINES_SHOWN);
    if last.is_empty() {
        why.to_owned()
    } else {
        format!("{} ({why})", last.join("; "))
    }
}

/// The last lines of a file that have something on them.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(count))
        .map(|line| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str], patience: Duration, commands: &[(&str, &str)]) -> Vec<Ended> {
        let logs = tempfile::tempdir().expect("a directory");
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let shell = Shell {
            words,
            logs: logs.path().to_owned(),
            patience,
        };
        let commands = commands
            .iter()
            .map(|(host, line)| ((*host).into(), (*line).into()));
        let mut fleet = Fleet::new(&shell, "test", commands);
        let mut ended = Vec::new();
        while !fleet.is_done() {
            ended.extend(fleet.poll());
            std::thread::park_timeout(Duration::from_millis(1));
        }
        ended.sort_by(|a, b| a.host.cmp(&b.host));
        ended
    }

    /// `sh -c '$1' host command`: a remote shell that stays here.
    const LOCAL: [&str; 3] = ["sh", "-c", "eval \"$1\""];

    #[test]
    fn each_host_has_its_own_end() {
        let commands = [
            ("a", "true"),
            ("b", "echo no such thing >&2; exit 3"),
            ("c", "sleep 1000"),
        ];
        let ended = run(&LOCAL, Duration::from_millis(500), &commands);
        assert_eq!(ended[0].result, Ok(()));
        assert_eq!(ended[1].result, Err("no such thing (exit code 3)".into()));
        assert_eq!(ended[2].result, Err("no answer within 0 s".into()));
    }

    #[test]
    fn a_shell_that_is_not_there_is_an_end_too() {
        let ended = run(
            &["/no/such/shell"],
            Duration::from_secs(5),
            &[("a", "true")],
        );
        assert!(
            ended[0]
                .result
                .as_ref()
                .is_err_and(|why| why.contains("/no/such/shell"))
        );
    }
}
