//! A process that does one system call after the other as the test says, on files it keeps open: for
//! what processes do to each other, such as locks.
//!
//! It is the test program itself, started again with `MARK` set, which runs only the test of the name
//! [`ENTRY`]: that one must call [`serve`]. A command is a line, its answer is `ok`, `ok` and a value,
//! or the number of an error.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FlockArg, OFlag};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Set in the environment of such a process.
const MARK: &str = "SCRFS_TEST_PROCESS";

/// The test that such a process runs.
pub const ENTRY: &str = "acts_as_a_process";

/// Precedes answers, so that they are told from what the test harness prints.
const ANSWER: &str = "answer: ";

/// One process.
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts one.
    pub fn start() -> Self {
        let this = std::env::current_exe().expect("this test's own path");
        let mut child = Command::new(this)
            .args(["--exact", ENTRY, "--include-ignored", "--nocapture"])
            .env(MARK, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it begin with something, whose answer comes later.
    pub fn begin(&mut self, command: &str) {
        let stdin = self.stdin.as_mut().expect("not ended");
        writeln!(stdin, "{command}").expect("it listens");
    }

    /// Waits for the answer.
    pub fn answer(&mut self) -> Result<String, Errno> {
        loop {
            let mut line = String::new();
            let length = self.stdout.read_line(&mut line).expect("it speaks");
            assert!(length > 0, "the process ended");
            let Some((_, said)) = line.trim_end().split_once(ANSWER) else {
                continue;
            };
            return match said.strip_prefix("ok") {
                Some(value) => Ok(value.trim().to_owned()),
                None => Err(Errno::from_raw(said.parse().expect("a number"))),
            };
        }
    }

    /// Does it, and gives the answer.
    pub fn run(&mut self, command: &str) -> Result<String, Errno> {
        self.begin(command);
        self.answer()
    }

    /// Has it open a file, under a word of the test's.
    pub fn open(&mut self, word: &str, path: &Path) {
        let path = path.to_str().expect("a plain path");
        self.run(&format!("open {word} {path}")).expect("it opens");
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What such a process does; returns at once in any other.
pub fn serve() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let mut files = HashMap::new();
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        match carry_out(&mut files, &words) {
            Ok(value) => println!("{ANSWER}ok {value}"),
            Err(errno) => println!("{ANSWER}{}", errno as i32),
        }
    }
}

type Files = HashMap<String, OwnedFd>;

fn carry_out(files: &mut Files, words: &[&str]) -> Result<String, Errno> {
    let number = |word: &str| word.parse::<i64>().expect("a number");
    match *words {
        ["open", word, path] => {
            let flags = OFlag::O_RDWR | OFlag::O_CREAT;
            let file = nix::fcntl::open(path, flags, Mode::from_bits_truncate(0o666))?;
            files.insert(word.to_owned(), file);
        }
        ["close", word] => drop(files.remove(word)),
        ["umask", mask] => {
            let mask = u32::from_str_radix(mask, 8).expect("octal");
            nix::sys::stat::umask(Mode::from_bits_truncate(mask));
        }
        ["mkdir", path] => nix::unistd::mkdir(path, Mode::from_bits_truncate(0o777))?,
        ["mkfifo", path] => nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666))?,
        // POSIX locks: kind (r, w, u), where, how long; waiting or not.
        ["lock", word, kind, start, length] => {
            let lock = posix(kind, number(start), number(length));
            nix::fcntl::fcntl(&files[word], FcntlArg::F_SETLKW(&lock))?;
        }
        ["try_lock", word, kind, start, length] => {
            let lock = posix(kind, number(start), number(length));
            nix::fcntl::fcntl(&files[word], FcntlArg::F_SETLK(&lock))?;
        }
        // Who is in the way: a process number, or 0.
        ["get_lock", word, kind, start, length] => {
            let mut lock = posix(kind, number(start), number(length));
            nix::fcntl::fcntl(&files[word], FcntlArg::F_GETLK(&mut lock))?;
            let free = lock.l_type == libc::F_UNLCK as i16;
            return Ok(if free { 0 } else { lock.l_pid }.to_string());
        }
        ["flock", word, kind] => flock(&files[word], kind, false)?,
        ["try_flock", word, kind] => flock(&files[word], kind, true)?,
        _ => panic!("{words:?}"),
    }
    Ok(String::new())
}

fn posix(kind: &str, start: i64, length: i64) -> libc::flock {
    let kind = match kind {
        "r" => libc::F_RDLCK,
        "w" => libc::F_WRLCK,
        "u" => libc::F_UNLCK,
        other => panic!("{other}"),
    };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn flock(file: &OwnedFd, kind: &str, at_once: bool) -> Result<(), Errno> {
    let kind = match (kind, at_once) {
        ("r", false) => FlockArg::LockShared,
        ("w", false) => FlockArg::LockExclusive,
        ("r", true) => FlockArg::LockSharedNonblock,
        ("w", true) => FlockArg::LockExclusiveNonblock,
        ("u", _) => FlockArg::Unlock,
        (other, _) => panic!("{other}"),
    };
    #[expect(deprecated, reason = "its successor unlocks when it is dropped")]
    nix::fcntl::flock(file.as_raw_fd(), kind)
}
