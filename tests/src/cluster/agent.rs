//! The first process of a node: makes it, serves its remote shell, and holds it.
//!
//! Speaks lines with the warden that started it: "made", then reads "plugged", then "ready", or
//! "error: .." at any point. Its standard input is the warden's life: at the end of it the agent
//! kills all processes of the node and ends, so a node does not outlive its cluster even when the
//! warden cannot clean up any more.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::process::NetworkNamespace;
use super::{namespace, network, rsh};

pub(crate) const MADE: &str = "made";
pub(crate) const PLUGGED: &str = "plugged";
pub(crate) const READY: &str = "ready";

/// Arguments of the agent, as the warden passes them.
#[derive(Debug, clap::Args)]
pub struct Agent {
    /// Number of this node.
    #[arg(long)]
    node: usize,
    /// Number of all nodes, node0 counted.
    #[arg(long)]
    nodes: usize,
    /// Size of /dev/shm; half of the memory without.
    #[arg(long)]
    shm_bytes: Option<u64>,
    /// An empty directory.
    #[arg(long)]
    mount_point: PathBuf,
}

impl Agent {
    /// Lives until the warden does not, or until it is killed.
    pub fn run(&self) -> Result<()> {
        let result = self.serve();
        if let Err(error) = &result {
            say(&format!("error: {error:#}"))?;
        }
        result
    }

    fn serve(&self) -> Result<()> {
        namespace::create(self.node, self.nodes, self.shm_bytes, &self.mount_point)?;
        say(MADE)?;
        let mut input = io::stdin().lock();
        let mut line = String::new();
        input
            .read_line(&mut line)
            .context("reading from the warden")?;
        ensure!(line.trim_end() == PLUGGED, "the warden said {line:?}");
        network::configure(self.node)?;
        let listener = rsh::listen(self.node)?;
        thread::spawn(move || rsh::serve(&listener));
        say(READY)?;

        let network = NetworkNamespace::of(std::process::id())?;
        input
            .read_to_end(&mut Vec::new())
            .context("waiting for the warden's end")?;
        network.kill_all(Some(std::process::id()))
    }
}

fn say(line: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .context("writing to the warden")
}
