//! A cluster, a prefix, and jobs that are shell scripts which reach their nodes by the remote shell.

use anyhow::{Result, ensure};
use scrfs_tests::{Cluster, binary};
use std::fs;
use std::process::{Command, Output};

/// `on N WORDS` runs WORDS on node N; `must` stops the script when a command fails; `commit NAME` makes
/// a checkpoint with a file of each node and appends their sums to a file of that name.
const PRELUDE: &str = r#"
on() { node=$1; shift; "$RSH" "node$node" "$@"; }
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
must_not() { if "$@"; then echo "SUCCEEDED: $*"; exit 7; fi; }
commit() {
    must on 1 mkdir "/scr/$1.tmp"
    for node in $NODES; do
        must on $node "cd /scr/$1.tmp && mkdir -p in && head -c ${node}00001 /dev/urandom > in/of.$node"
        must on $node "cd /scr/$1.tmp && md5sum in/of.$node" >> "$SHARED/$1"
    done
    must on 1 mv -T "/scr/$1.tmp" "/scr/$1"
}
has() { on $1 "ls /scr/.scr/status | grep -qx '$2'"; }
"#;

pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) directory: tempfile::TempDir,
}

impl Site {
    fn cluster(nodes: usize) -> Result<Cluster> {
        Cluster::builder().nodes(nodes).shm_bytes(256 << 20).start()
    }

    pub(crate) fn start(nodes: usize, config: &str) -> Result<Self> {
        let cluster = Self::cluster(nodes)?;
        let directory = tempfile::tempdir()?;
        for name in ["prefix", "shared"] {
            fs::create_dir(directory.path().join(name))?;
        }
        fs::write(directory.path().join("prefix/.scrfs.toml"), config)?;
        Ok(Self { cluster, directory })
    }

    /// The same prefix, and nodes that have nothing of it.
    pub(crate) fn on_other_nodes(self) -> Result<Self> {
        let Self { cluster, directory } = self;
        let nodes = cluster.nodes();
        drop(cluster);
        let cluster = Self::cluster(nodes)?;
        Ok(Self { cluster, directory })
    }

    /// `scrfs run OPTIONS` of a script on three nodes.
    pub(crate) fn job(&self, options: &[&str], script: &str) -> Result<Command> {
        let path = self.directory.path().join("program");
        fs::write(&path, format!("{PRELUDE}{script}"))?;
        let mut command = self.cluster.command(0, binary("scrfs")?);
        command
            .args(["run", "--nodes"])
            .arg(format!("node[1-{}]", self.cluster.nodes()))
            .args(options)
            .arg("--prefix")
            .arg(self.directory.path().join("prefix"))
            .arg("--rsh")
            .arg(self.cluster.rsh())
            .args(["--", "sh"])
            .arg(&path)
            .arg("{hosts}")
            .env("RSH", self.cluster.rsh())
            .env("SHARED", self.directory.path().join("shared"))
            .env("PREFIX", self.directory.path().join("prefix"));
        Ok(command)
    }
}

pub(crate) fn succeeded(output: &Output) -> Result<()> {
    let (out, err) = (&output.stdout, &output.stderr);
    let (out, err) = (String::from_utf8_lossy(out), String::from_utf8_lossy(err));
    ensure!(output.status.success(), "{}\n{out}{err}", output.status);
    Ok(())
}
