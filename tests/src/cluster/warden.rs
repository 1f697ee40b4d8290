//! The process that holds a cluster: it has the bridge in its network namespace, starts the
//! agents, and is the one authority on which nodes live. Kills, hangs and cables are its work, so
//! the owner and people on the command line see the same.
//!
//! Its standard input is the owner's life: at the end of it, however it came, the warden kills
//! every node, removes the cluster's directory and ends.
//!
//! Invariant: it holds each node's network namespace open for as long as it may signal in it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, unshare};

use super::control::{Place, Reply, Request, read_line, socket_path, write_line};
use super::process::NetworkNamespace;
use super::{Loss, agent, network};

/// Arguments of the warden, as the owner passes them.
#[derive(Debug, Clone, clap::Args)]
pub struct Warden {
    /// Number of nodes beside node0.
    #[arg(long)]
    nodes: usize,
    /// Size of each node's /dev/shm; half of the memory without.
    #[arg(long)]
    shm_bytes: Option<u64>,
    /// The cluster's directory, made by the owner.
    #[arg(long)]
    directory: PathBuf,
}

impl Warden {
    /// Lives until the owner does not. Says one line, a `Reply`, when all nodes are ready.
    pub fn run(self) -> Result<()> {
        let directory = self.directory.clone();
        let room = match self.start() {
            Ok(room) => room,
            // The agents see their input end, and go.
            Err(error) => return write_line(io::stdout(), &Reply::Failed(format!("{error:#}"))),
        };
        write_line(io::stdout(), &Reply::Done)?;
        // An error is as good an end as the end.
        let _ = io::stdin().read_to_end(&mut Vec::new());

        let mut room = lock(&room);
        let mut result = Ok(());
        for index in 0..room.nodes.len() {
            // One node's failure must not leave the others alive. The cables go with us.
            result = room.kill(index, Loss::Crash).and(result);
        }
        match fs::remove_dir_all(&directory) {
            // The owner, if it lives, removes it too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => result,
            removed => result.and(removed.context("removing the cluster's directory")),
        }
    }

    fn start(self) -> Result<Arc<Mutex<Room>>> {
        ensure!(
            self.nodes < network::NODES_MAX,
            "{} are too many nodes",
            self.nodes
        );
        // While there is one thread still: the namespace is a thread's.
        unshare(CloneFlags::CLONE_NEWNET).context("making a namespace (needs root)")?;
        network::make_bridge()?;
        let mount_point = self.directory.join("root");
        fs::create_dir(&mount_point).context("making the mount point")?;

        let listener = UnixListener::bind(socket_path(&self.directory))
            .with_context(|| format!("listening in {}", self.directory.display()))?;
        let all: Vec<_> = (0..=self.nodes).collect();
        let mut room = Room {
            nodes: Vec::new(),
            warden: self,
        };
        room.nodes.resize_with(all.len(), || Node {
            life: None,
            network: None,
        });
        room.boot(&all)?;
        let room = Arc::new(Mutex::new(room));
        let served = Arc::clone(&room);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let room = Arc::clone(&served);
                // An error is between the warden and one client.
                thread::spawn(move || drop(serve(&room, &stream)));
            }
        });
        Ok(room)
    }
}

fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(room: &Mutex<Room>, stream: &UnixStream) -> Result<()> {
    let request: Request = read_line(BufReader::new(stream))?;
    let reply = lock(room).answer(request);
    let reply = reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
    write_line(stream, &reply)
}

/// The nodes. Behind one lock: a request waits for the one before it.
struct Room {
    warden: Warden,
    nodes: Vec<Node>,
}

struct Node {
    /// None in a dead node.
    life: Option<Life>,
    /// Kept after a crash: the node's kernel, so to speak, lives on and refuses connections.
    network: Option<NetworkNamespace>,
}

struct Life {
    agent: Child,
    /// Closed by our death, whatever its kind.
    _input: ChildStdin,
}

impl Room {
    fn answer(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::Where(index) => {
                let (life, network) = self.living(index)?;
                Ok(Reply::Place(Place {
                    pid: life.agent.id(),
                    network: network.inode(),
                }))
            }
            Request::Kill(index, loss) => {
                self.living(index)?;
                self.kill(index, loss).map(|()| Reply::Done)
            }
            Request::Hang(index) => self.living(index)?.1.stop_all().map(|()| Reply::Done),
            Request::Resume(index) => self.living(index)?.1.continue_all().map(|()| Reply::Done),
            Request::Link { node, up } => {
                self.living(node)?;
                network::set_link(node, up).map(|()| Reply::Done)
            }
            Request::Revive(index) => {
                let node = self.node(index)?;
                ensure!(node.life.is_none(), "{} lives", network::name(index));
                if node.network.is_some() {
                    // In this order: a cable may vanish at any time after its network.
                    network::unplug(index)?;
                    node.network = None;
                }
                self.boot(&[index]).map(|()| Reply::Done)
            }
            Request::Processes(index) => {
                let node = self.node(index)?;
                let (Some(life), Some(network)) = (&node.life, &node.network) else {
                    return Ok(Reply::Pids(Vec::new()));
                };
                let mut pids = network.pids()?;
                pids.retain(|&pid| pid != life.agent.id());
                Ok(Reply::Pids(pids))
            }
            Request::IsAlive(index) => Ok(Reply::Alive(self.node(index)?.life.is_some())),
        }
    }

    fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes
            .get_mut(index)
            .ok_or_else(|| anyhow!("there is no {}", network::name(index)))
    }

    fn living(&mut self, index: usize) -> Result<(&mut Life, &NetworkNamespace)> {
        let node = self.node(index)?;
        match (&mut node.life, &node.network) {
            (Some(life), Some(network)) => Ok((life, network)),
            _ => bail!("{} is dead", network::name(index)),
        }
    }

    /// Does nothing to a dead node but to take its cable, if the power goes.
    fn kill(&mut self, index: usize, loss: Loss) -> Result<()> {
        let node = self.node(index)?;
        let Some(network) = &node.network else {
            return Ok(());
        };
        if loss == Loss::Power {
            network::set_link(index, false)?;
        }
        if let Some(mut life) = node.life.take() {
            // The agent first: who enters the node looks for it last.
            life.agent.kill().context("killing the agent")?;
            life.agent.wait().context("waiting for the agent's end")?;
        }
        network.kill_all(None)?;
        if loss == Loss::Power {
            // Sockets with data in flight keep their namespace for minutes; so take its cable.
            network::unplug(index)?;
            node.network = None;
        }
        Ok(())
    }

    /// Starts nodes that are not there, all at once.
    fn boot(&mut self, indices: &[usize]) -> Result<()> {
        let mut starting = Vec::new();
        for &index in indices {
            starting.push((
                index,
                Starting::spawn(&self.warden, self.nodes.len(), index)?,
            ));
        }
        let mut cables = Vec::new();
        for (index, node) in &mut starting {
            node.expect(agent::MADE)
                .with_context(|| network::name(*index))?;
            cables.push((*index, node.agent.id()));
        }
        network::plug(&cables)?;
        for (_, node) in &mut starting {
            writeln!(node.input, "{}", agent::PLUGGED).context("writing to an agent")?;
        }
        for (index, mut node) in starting {
            node.expect(agent::READY)
                .with_context(|| network::name(index))?;
            let network = NetworkNamespace::of(node.agent.id())?;
            let life = Life {
                agent: node.agent,
                _input: node.input,
            };
            *self.node(index)? = Node {
                life: Some(life),
                network: Some(network),
            };
        }
        Ok(())
    }
}

/// An agent that is not ready yet.
struct Starting {
    agent: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Starting {
    fn spawn(warden: &Warden, nodes: usize, index: usize) -> Result<Self> {
        let me = std::env::current_exe().context("finding the running program")?;
        let mut command = Command::new(me);
        command.arg("agent");
        command.args(["--node".to_owned(), index.to_string()]);
        command.args(["--nodes".to_owned(), nodes.to_string()]);
        if let Some(bytes) = warden.shm_bytes {
            command.args(["--shm-bytes".to_owned(), bytes.to_string()]);
        }
        command
            .arg("--mount-point")
            .arg(warden.directory.join("root"));
        // A group of its own, so that nobody's Control-C ends it.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut agent = command.spawn().context("starting an agent")?;
        let input = agent.stdin.take().context("the pipe was asked for")?;
        let output = agent.stdout.take().context("the pipe was asked for")?;
        Ok(Self {
            agent,
            input,
            output: BufReader::new(output),
        })
    }

    fn expect(&mut self, what: &str) -> Result<()> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("reading from an agent")?;
        ensure!(
            line.trim_end() == what,
            "instead of {what:?} the agent said {line:?}"
        );
        Ok(())
    }
}
