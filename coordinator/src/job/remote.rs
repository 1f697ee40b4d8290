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

/// A program that runs a command on a host, by its name.
struct Kind {
    program: &'static str,
    /// What stands between its options and the command; `{host}` is replaced.
    before: &'static [&'static str],
    /// It ends what it started when the command ends, also what went into the background.
    holds: bool,
}

/// Others are called as `ssh` is, or as they say with `{host}`.
const KINDS: [Kind; 2] = [
    Kind {
        program: "pdsh",
        before: &["-N", "-S", "-w", "{host}"],
        holds: false,
    },
    Kind {
        program: "srun",
        before: &[
            "--overlap",
            "--quiet",
            "--nodes=1",
            "--ntasks=1",
            "--mpi=none",
            "--cpu-bind=none",
            "--mem=0",
            "--nodelist={host}",
            "sh",
            "-c",
        ],
        holds: true,
    },
];

/// What this machine calls itself.
const HERE: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How to run commands on hosts.
#[derive(Clone, Debug)]
pub struct Shell {
    /// Program and options, such as `ssh -o BatchMode=yes`; `{host}` where the host is to stand, if
    /// not at the end. The command follows as one word, for a shell on the host.
    pub words: Vec<String>,
    /// Where outputs go.
    pub logs: PathBuf,
    /// For one command.
    pub patience: Duration,
}

impl Shell {
    fn kind(&self) -> Option<&'static Kind> {
        let program = Path::new(self.words.first()?).file_name()?.to_str()?;
        KINDS.iter().find(|kind| kind.program == program)
    }

    fn has_place(&self) -> bool {
        self.words.iter().any(|word| word.contains("{host}"))
    }

    /// Whether a command must stay for what it started to stay.
    pub fn holds(&self) -> bool {
        self.kind().is_some_and(|kind| kind.holds)
    }

    /// The words as launchers want an agent, `AGENT HOST COMMAND`; none where it is not that, or
    /// what they use anyway.
    pub fn agent(&self) -> Option<String> {
        let is_plain = self.kind().is_none() && !self.has_place() && self.words != ["ssh"];
        is_plain.then(|| self.words.join(" "))
    }

    /// What runs `command` on `host`. This machine itself is not reached by ssh, which it may not serve; any
    /// other words are taken to mean what they say.
    pub fn command(&self, host: &str, command: &str) -> Vec<String> {
        if self.words == ["ssh"] && HERE.contains(&host) {
            let stays = format!("{}=1", child::STAYS);
            return ["env", &stays, "sh", "-c", command]
                .map(str::to_owned)
                .into();
        }
        let fill = |word: &String| word.replace("{host}", host);
        let mut words: Vec<String> = self.words.iter().map(fill).collect();
        match self.kind() {
            _ if self.has_place() => {}
            Some(kind) => words.extend(kind.before.iter().map(|word| fill(&(*word).to_owned()))),
            None => words.push(host.to_owned()),
        }
        words.push(command.to_owned());
        words
    }
}

/// A command on its way on several hosts.
#[derive(Debug)]
pub struct Fleet {
    shell: Shell,
    name: &'static str,
    waiting: VecDeque<(String, String)>,
    running: Vec<Running>,
    holds: bool,
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
    /// What it printed.
    pub log: PathBuf,
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
            holds: false,
        }
    }

    /// The commands may go on for ever, and are ended with this.
    pub fn held(mut self) -> Self {
        self.holds = true;
        self
    }

    /// All commands were begun.
    pub fn is_begun(&self) -> bool {
        self.waiting.is_empty()
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
        while self.holds || self.running.len() < AT_ONCE {
            let Some((host, command)) = self.waiting.pop_front() else {
                break;
            };
            match self.start(&host, &command) {
                Ok(running) => self.running.push(running),
                Err(error) => {
                    let shell = words::join(self.shell.words.iter().map(String::as_str));
                    let result = Err(format!("cannot run `{shell}`: {error}"));
                    let log = PathBuf::new();
                    ended.push(Ended { host, result, log });
                }
            }
        }
        let mut index = 0;
        while index < self.running.len() {
            match self.running[index].look(self.shell.patience, self.holds) {
                None => index += 1,
                Some(result) => {
                    let running = self.running.swap_remove(index);
                    ended.push(Ended {
                        host: running.host,
                        result,
                        log: running.log,
                    });
                }
            }
        }
        ended
    }

    fn start(&self, host: &str, command: &str) -> io::Result<Running> {
        let log = self.shell.logs.join(format!("{}.{host}.log", self.name));
        let output = File::create(&log)?;
        let words = self.shell.command(host, command);
        let (program, options) = words.split_first().ok_or(io::ErrorKind::NotFound)?;
        let mut shell = Command::new(program);
        shell.args(options);
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
            child::kill_group(&mut running.child);
        }
    }
}

impl Running {
    fn look(&mut self, patience: Duration, holds: bool) -> Option<Result<(), String>> {
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Some(Ok(())),
            Ok(Some(status)) => Some(Err(said(&self.log, &child::describe(status)))),
            Ok(None) if holds || Instant::now() < self.deadline => None,
            Ok(None) => {
                child::kill_group(&mut self.child);
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

    #[test]
    fn each_shell_is_called_in_its_own_way() {
        let shell = |text: &str| Shell {
            words: words::split(text).expect("words"),
            logs: PathBuf::new(),
            patience: Duration::ZERO,
        };
        let here = |host: &str| shell("ssh").command(host, "a && b").join("|");
        assert_eq!(here("localhost"), "env|SCRFS_STAYS=1|sh|-c|a && b");
        assert_eq!(
            here("localhost.example.org"),
            "ssh|localhost.example.org|a && b"
        );
        let elsewhere = shell("ssh -p 22").command("localhost", "a").join("|");
        assert_eq!(elsewhere, "ssh|-p|22|localhost|a");
        let call = |text: &str| shell(text).command("n1", "a && b").join("|");
        assert_eq!(call("ssh -q"), "ssh|-q|n1|a && b");
        assert_eq!(
            call("/usr/bin/pdsh -Rexec"),
            "/usr/bin/pdsh|-Rexec|-N|-S|-w|n1|a && b"
        );
        assert!(call("srun --jobid=7").starts_with("srun|--jobid=7|--overlap|"));
        assert!(call("srun").ends_with("|--nodelist=n1|sh|-c|a && b"));
        assert_eq!(
            call("srun -w {host} -N1 sh -c"),
            "srun|-w|n1|-N1|sh|-c|a && b"
        );
        assert_eq!(call("go --at={host}"), "go|--at=n1|a && b");
        assert!(shell("srun").holds() && !shell("ssh").holds() && !shell("pdsh").holds());
        assert_eq!(shell("rsh -x").agent().as_deref(), Some("rsh -x"));
        for other in ["ssh", "srun", "pdsh", "go {host}"] {
            assert_eq!(shell(other).agent(), None, "{other}");
        }
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
