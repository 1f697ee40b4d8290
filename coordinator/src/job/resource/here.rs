//! The world as it is: this process's environment, files, and commands with a time limit.

use super::World;
use crate::job::child;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A resource manager that does not answer within this time does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// This machine.
#[derive(Clone, Copy, Debug)]
pub struct Here {
    /// For each command.
    pub patience: Duration,
}

impl Default for Here {
    fn default() -> Self {
        Self { patience: PATIENCE }
    }
}

impl World for Here {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?
            .take(ANSWER_BYTES_MAX)
            .read_to_string(&mut text)?;
        Ok(text)
    }

    fn run(&self, words: &[String]) -> io::Result<String> {
        let (program, options) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        // Files, not pipes: nobody has to read them while the command runs.
        let [mut output, mut errors] = [memory()?, memory()?];
        let mut command = Command::new(program);
        command
            .args(options)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(errors.try_clone()?);
        let mut child = child::spawn(&mut command)?;
        let deadline = Instant::now() + self.patience;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                child::kill_group(&mut child);
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} s", self.patience.as_secs()),
                ));
            }
            std::thread::park_timeout(PAUSE);
        };
        if status.success() {
            return said(&mut output);
        }
        let why = said(&mut errors)?;
        let why = why.lines().last().unwrap_or_default().trim();
        Err(io::Error::other(format!(
            "{why} ({})",
            child::describe(status)
        )))
    }
}

fn memory() -> io::Result<File> {
    Ok(memfd_create(c"answer", MFdFlags::MFD_CLOEXEC)?.into())
}

fn said(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut text = String::new();
    file.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(patience: Duration, script: &str) -> io::Result<String> {
        let words = ["sh", "-c", script].map(String::from);
        Here { patience }.run(&words)
    }

    #[test]
    fn answers_errors_and_silence_are_told_apart() {
        let long = Duration::from_secs(20);
        assert_eq!(run(long, "echo yes; echo no >&2").expect("said"), "yes\n");
        let failed = run(long, "echo yes; echo not here >&2; exit 3").expect_err("failed");
        assert_eq!(failed.to_string(), "not here (exit code 3)");
        let silent = run(Duration::from_millis(100), "sleep 1000").expect_err("silent");
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        let words = ["/no/such/squeue".to_owned()];
        assert!(Here::default().run(&words).is_err());
    }
}
