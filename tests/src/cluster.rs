//! A cluster on one machine: nodes as namespaces, which can be killed, hung and cut off.
//!
//! ```text
//! owner (a test) -- warden -- agent of node0, the launcher's node
//!                   bridge |- agent of node1 .. and with it in its namespaces
//!                          |- ..               whatever `command` and `rsh` start
//! ```
//!
//! The owner talks to the warden over a unix socket, and both are this crate's program
//! `scrfs-vnode`. Each node has its own network, host name, IPC and mounts (see `namespace`).
//!
//! Invariants:
//! - Nothing outlives the owner: it, the warden and the agents hang on pipes, which the kernel
//!   closes however a process ends. Not on PR_SET_PDEATHSIG: that tells of the death of the
//!   *thread* that started a child, and tests run in threads.
//! - Only processes in a node's own network namespace are signalled.
//! - Clusters share nothing: any number may be there at once, all with the same addresses.
//!
//! Needs root, Linux 5.8, and `ip`. Does not do: limits of memory or of CPU, clocks, disks.

mod agent;
mod control;
mod namespace;
mod network;
mod process;
mod rsh;
mod warden;

use std::ffi::OsStr;
use std::io::BufReader;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use agent::Agent;
pub use rsh::{EXIT_FAILED as RSH_EXIT_FAILED, client as rsh_client};
pub use warden::Warden;

pub(crate) use process::Process;

use control::{Place, Reply, Request, ask};

/// How a node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Loss {
    /// All processes die; the kernel closes their connections, and refuses new ones.
    Crash,
    /// The cable goes first: peers see nothing but silence.
    Power,
}

/// Settings of a cluster to be.
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: usize,
    shm_bytes: Option<u64>,
}

impl Builder {
    /// How many nodes beside node0, which runs the launcher.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Size of each node's /dev/shm. Half of the machine's memory by default, as on real nodes.
    #[must_use]
    pub fn shm_bytes(mut self, bytes: u64) -> Self {
        self.shm_bytes = Some(bytes);
        self
    }

    /// Returns when every node is up and can be reached.
    pub fn start(&self) -> Result<Cluster> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a virtual cluster needs root"
        );
        let program = crate::binary("scrfs-vnode")?;
        let directory = tempfile::Builder::new()
            .prefix("scrfs-cluster-")
            .tempdir()
            .context("making a directory for the cluster")?;
        symlink(&program, directory.path().join(RSH)).context("making the rsh link")?;
        let mut command = Command::new(&program);
        command
            .arg("warden")
            .args(["--nodes".to_owned(), self.nodes.to_string()]);
        if let Some(bytes) = self.shm_bytes {
            command.args(["--shm-bytes".to_owned(), bytes.to_string()]);
        }
        command.arg("--directory").arg(directory.path());
        // A group of its own: it must outlive a Control-C to clean up.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut warden = command.spawn().context("starting the warden")?;
        let output = warden.stdout.take().context("the pipe was asked for")?;
        let cluster = Cluster {
            program,
            directory,
            warden,
            nodes: self.nodes,
        };
        match control::read_line(BufReader::new(output)).context("hearing of the warden")? {
            Reply::Done => Ok(cluster),
            Reply::Failed(error) => Err(anyhow!(error).context("starting the cluster")),
            other => bail!("the warden said {other:?}"),
        }
    }
}

/// Name of the rsh client in the cluster's directory; the program goes by it.
pub const RSH: &str = "rsh";

/// A running cluster. Dropping it ends every process in it and removes every trace.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    directory: TempDir,
    /// Ends, and cleans up, when its standard input is closed.
    warden: Child,
    nodes: usize,
}

impl Cluster {
    /// One node beside node0, if not told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 1,
            shm_bytes: None,
        }
    }

    /// How many nodes there are beside node0, dead ones counted.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// The cluster's directory, the same in all nodes: how `scrfs-vnode` finds the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The name that all nodes know a node by.
    pub fn name(&self, node: usize) -> String {
        network::name(node)
    }

    /// An ssh-like program, `rsh HOST COMMAND [ARG..]`, to be called inside nodes only.
    pub fn rsh(&self) -> PathBuf {
        self.directory().join(RSH)
    }

    /// A command that runs in a node, with its process id, its pipes and its exit code those of
    /// the program. Exits with 255 if the node is dead, 127 if there is no such program.
    ///
    /// The environment is the caller's and [`site_environment`], which may be set otherwise.
    pub fn command(&self, node: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("exec")
            .arg(self.directory())
            .arg(node.to_string())
            .arg(program);
        command.envs(site_environment());
        command
    }

    /// Runs `act` in a thread that is in a node's network, for tests that speak for a node. Its
    /// sockets belong to the node's network, also later, and to our process: a kill of the node
    /// cuts them off but does not close them.
    pub fn within_network<T: Send>(
        &self,
        node: usize,
        act: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let place = place(self.directory(), node)?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespace::enter_network(node, place)?;
                act()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Kills all processes of a node; its memory and mounts go with them. Returns when none is
    /// left. An error if it is dead.
    pub fn kill(&self, node: usize, loss: Loss) -> Result<()> {
        kill(self.directory(), node, loss)
    }

    /// Stops all processes of a node; its kernel still answers. Returns when all stand still.
    pub fn hang(&self, node: usize) -> Result<()> {
        hang(self.directory(), node)
    }

    /// Lets a hung node go on.
    pub fn resume(&self, node: usize) -> Result<()> {
        resume(self.directory(), node)
    }

    /// Pulls a node's cable, or plugs it in again.
    pub fn link(&self, node: usize, up: bool) -> Result<()> {
        link(self.directory(), node, up)
    }

    /// Starts a dead node anew, empty, with its name and address. An error if it lives.
    pub fn revive(&self, node: usize) -> Result<()> {
        revive(self.directory(), node)
    }

    /// Process ids of a node, without its agent's. None in a dead node.
    pub fn processes(&self, node: usize) -> Result<Vec<u32>> {
        match ask(self.directory(), &Request::Processes(node))? {
            Reply::Pids(pids) => Ok(pids),
            other => bail!("the warden said {other:?}"),
        }
    }

    /// False from a kill to a revival. A hung node is alive.
    pub fn is_alive(&self, node: usize) -> Result<bool> {
        match ask(self.directory(), &Request::IsAlive(node))? {
            Reply::Alive(alive) => Ok(alive),
            other => bail!("the warden said {other:?}"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.warden.stdin.take());
        // Nothing better could be done about a failure here, maybe amid a panic.
        match self.warden.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("the cluster was not cleaned up: {other:?}"),
        }
    }
}

/// [`Cluster::kill`], for who knows only the directory, as are the next four.
pub fn kill(directory: &Path, node: usize, loss: Loss) -> Result<()> {
    done(directory, &Request::Kill(node, loss))
}

/// [`Cluster::hang`].
pub fn hang(directory: &Path, node: usize) -> Result<()> {
    done(directory, &Request::Hang(node))
}

/// [`Cluster::resume`].
pub fn resume(directory: &Path, node: usize) -> Result<()> {
    done(directory, &Request::Resume(node))
}

/// [`Cluster::link`].
pub fn link(directory: &Path, node: usize, up: bool) -> Result<()> {
    done(directory, &Request::Link { node, up })
}

/// [`Cluster::revive`].
pub fn revive(directory: &Path, node: usize) -> Result<()> {
    done(directory, &Request::Revive(node))
}

/// Moves the calling process, which must have one thread, into a node.
pub fn enter(directory: &Path, node: usize) -> Result<()> {
    namespace::enter(node, place(directory, node)?)
}

fn place(directory: &Path, node: usize) -> Result<Place> {
    match ask(directory, &Request::Where(node))? {
        Reply::Place(place) => Ok(place),
        other => bail!("the warden said {other:?}"),
    }
}

fn done(directory: &Path, request: &Request) -> Result<()> {
    match ask(directory, request)? {
        Reply::Done => Ok(()),
        other => bail!("the warden said {other:?}"),
    }
}

/// What an administrator would have set on every node, for MPI on few cores: without it each
/// node's only rank is bound to the first core, and ranks that wait spin.
pub fn site_environment() -> [(&'static str, &'static str); 8] {
    [
        ("TMPDIR", namespace::SCRATCH),
        ("OMPI_MCA_orte_tmpdir_base", namespace::SCRATCH),
        ("OMPI_MCA_pml", "ob1"),
        ("OMPI_MCA_btl", "self,tcp"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ]
}

/// The caller's, and where `ip` and the like are when the caller's is a user's.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

fn home() -> PathBuf {
    std::env::home_dir()
        .filter(|home| home.is_dir())
        .unwrap_or_else(|| PathBuf::from("/"))
}
