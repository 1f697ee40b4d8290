//! Slurm itself on a virtual cluster: munge and the controller on node0, a slurmd on each other node.
//!
//! Everything lies in one directory of its own that all nodes see. Every process is in a node of the
//! cluster, so that it goes with the node when that is killed, and with the cluster at the latest.

use crate::{Cluster, wait_until};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// For each daemon to come up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Programs of the Debian packages that `.ci/deps` names.
const PROGRAMS: [&str; 5] = ["munged", "slurmctld", "slurmd", "srun", "salloc"];

/// A running Slurm.
pub struct Slurm {
    directory: TempDir,
    daemons: Vec<Child>,
}

/// Those of its programs that this machine lacks.
pub fn missing() -> Vec<&'static str> {
    let is_there = |name: &&str| {
        let places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
        places
            .iter()
            .any(|place| Path::new(place).join(name).is_file())
    };
    PROGRAMS
        .into_iter()
        .filter(|name| !is_there(name))
        .collect()
}

impl Slurm {
    /// Returns when all nodes can be allocated.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("scrfs-slurm-")
            .tempdir()
            .context("making a directory for Slurm")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let mut slurm = Self {
            directory,
            daemons: Vec::new(),
        };
        let path = |name: &str| slurm.directory.path().join(name);
        for name in ["state", "spool"] {
            fs::create_dir(path(name)).with_context(|| format!("making {name}"))?;
        }
        fs::write(slurm.conf(), configuration(cluster, slurm.directory.path()))
            .context("writing slurm.conf")?;
        let mut key = [0; 1024];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut key)?;
        fs::write(path("munge.key"), key).context("writing the key")?;
        fs::set_permissions(path("munge.key"), fs::Permissions::from_mode(0o400))?;
        let option = |name: &str, file: &str| format!("--{name}={}", path(file).display());
        let munge = [
            "--foreground".to_owned(),
            "--force".into(),
            option("key-file", "munge.key"),
            option("socket", "munge.sock"),
            option("pid-file", "munged.pid"),
            option("log-file", "munged.log"),
            option("seed-file", "munge.seed"),
        ];
        let socket = path("munge.sock");
        slurm.daemon(cluster, 0, "munged", &munge)?;
        wait_until(PATIENCE, "munge's socket", || {
            Ok(socket.exists().then_some(()))
        })?;
        let conf = slurm.conf().display().to_string();
        slurm.daemon(
            cluster,
            0,
            "slurmctld",
            &["-D".into(), "-c".into(), "-f".into(), conf.clone()],
        )?;
        for node in 1..=cluster.nodes() {
            slurm.daemon(
                cluster,
                node,
                "slurmd",
                &["-D".into(), "-f".into(), conf.clone()],
            )?;
        }
        let waited = wait_until(PATIENCE, "all nodes to be idle", || {
            let states = slurm.ask(cluster, &["sinfo", "-h", "-N", "-o", "%T"])?;
            let idle = states.lines().filter(|state| *state == "idle").count();
            Ok((idle == cluster.nodes()).then_some(()))
        });
        waited.map_err(|error| error.context(slurm.logs()))?;
        Ok(slurm)
    }

    fn conf(&self) -> PathBuf {
        self.directory.path().join("slurm.conf")
    }

    /// A command on node0 that knows this Slurm.
    pub fn command(&self, cluster: &Cluster, program: &str) -> Command {
        let mut command = cluster.command(0, program);
        command.env("SLURM_CONF", self.conf());
        command
    }

    /// What a command prints, or nothing when it fails: the controller may not be up.
    pub fn ask(&self, cluster: &Cluster, words: &[&str]) -> Result<String> {
        let [program, options @ ..] = words else {
            bail!("no command");
        };
        let output = self.command(cluster, program).args(options).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn daemon(
        &mut self,
        cluster: &Cluster,
        node: usize,
        program: &str,
        options: &[String],
    ) -> Result<()> {
        let log = self.directory.path().join(format!("{program}.{node}.out"));
        let output = File::create(&log)?;
        let mut command = cluster.command(node, program);
        command
            .args(options)
            .env("SLURM_CONF", self.conf())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        ensure!(
            child.try_wait()?.is_none(),
            "{program} ended at once: {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
        self.daemons.push(child);
        Ok(())
    }

    /// The ends of all logs, for a test that failed.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let entries = fs::read_dir(self.directory.path()).into_iter().flatten();
        for entry in entries.flatten() {
            let path = entry.path();
            let is_log = path
                .extension()
                .is_some_and(|end| end == "log" || end == "out");
            if let (true, Ok(log)) = (is_log, fs::read_to_string(&path)) {
                let lines: Vec<&str> = log.lines().collect();
                text += &format!("--- {}\n", path.display());
                text += &lines[lines.len().saturating_sub(30)..].join("\n");
                text += "\n";
            }
        }
        text
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // Killed with its node, or now.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Node failures are noticed in seconds instead of minutes; nothing of the machine is needed.
fn configuration(cluster: &Cluster, directory: &Path) -> String {
    let nodes = cluster.nodes();
    let directory = directory.display();
    format!(
        "ClusterName=virtual
SlurmctldHost=node0
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmctldTimeout=10
SlurmdTimeout=8
ReturnToService=2
MessageTimeout=5
TCPTimeout=2
KillWait=2
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
SlurmdParameters=config_overrides
NodeName=node[1-{nodes}] CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=node[1-{nodes}] Default=YES MaxTime=INFINITE State=UP
"
    )
}
