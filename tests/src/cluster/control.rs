//! What the owner of a cluster, and people on the command line, say to its warden.
//!
//! One JSON line there, one back, over the unix socket `warden` in the cluster's directory; a
//! connection a request. A unix socket with a path is reached from every network namespace.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::Loss;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Where(usize),
    Kill(usize, Loss),
    Hang(usize),
    Resume(usize),
    Link { node: usize, up: bool },
    Revive(usize),
    Processes(usize),
    IsAlive(usize),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Place(Place),
    Pids(Vec<u32>),
    Alive(bool),
    Failed(String),
}

/// Where a node is entered.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its agent.
    pub(crate) pid: u32,
    /// Inode of its network namespace.
    pub(crate) network: u64,
}

pub(crate) fn socket_path(directory: &Path) -> PathBuf {
    directory.join("warden")
}

pub(crate) fn ask(directory: &Path, request: &Request) -> Result<Reply> {
    let path = socket_path(directory);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("no cluster answers at {}", path.display()))?;
    write_line(&mut stream, request)?;
    match read_line(BufReader::new(stream))? {
        Reply::Failed(error) => Err(anyhow!(error)),
        reply => Ok(reply),
    }
}

pub(crate) fn write_line(mut to: impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("encoding a message")?;
    line.push(b'\n');
    to.write_all(&line)
        .and_then(|()| to.flush())
        .context("writing a message")
}

pub(crate) fn read_line<T: for<'a> Deserialize<'a>>(mut from: impl BufRead) -> Result<T> {
    let mut line = String::new();
    from.read_line(&mut line).context("reading a message")?;
    serde_json::from_str(&line).with_context(|| format!("reading the message {line:?}"))
}
