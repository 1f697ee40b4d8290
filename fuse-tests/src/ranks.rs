//! Processes that act as the ranks of a program: each a shell that does what the test says, when it
//! says so, and may stop in the middle of a file.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// One process.
pub struct Rank {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Rank {
    /// A process that works in `directory`.
    pub fn new(directory: &Path) -> Self {
        let mut child = Command::new("sh")
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Does it, and gives its exit status.
    pub fn try_run(&mut self, script: &str) -> i32 {
        // A group: its redirections and variables stay, its failure does not end the shell.
        writeln!(
            self.stdin,
            "{{ {script}\n}} 2>&1 >/dev/null; echo \"status $?\""
        )
        .expect("it listens");
        loop {
            let mut line = String::new();
            let length = self.stdout.read_line(&mut line).expect("it speaks");
            assert!(length > 0, "the shell ended at: {script}");
            if let Some(status) = line.trim().strip_prefix("status ") {
                return status.parse().expect("a number");
            }
            eprint!("{script}: {line}");
        }
    }

    /// Does it, which must succeed.
    pub fn run(&mut self, script: &str) {
        let status = self.try_run(script);
        assert_eq!(status, 0, "{script}");
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
