//! A cluster with `scrfs run` on its first node, and the application that it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use scrfs_tests::{Cluster, binary, wait_until};
use tempfile::TempDir;
/// For what takes seconds, on a machine with much else to do.
pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const RANKS: usize = 3;
pub(crate) const LAST: u64 = 5;
/// The step in the middle of which the first launch waits to lose a node.
pub(crate) const GATE: u64 = 4;

/// One rank a host. Its own process group would outlive it, its mark in the environment does not.
pub(crate) const LAUNCH: &str = r#"#!/bin/sh
# launch.sh SHARED RSH HOSTS
shared=$1 rsh=$2 rank=0 pids=
size=$(echo "$3" | tr , '\n' | wc -l)
for host in $(echo "$3" | tr , ' '); do
    $rsh "$host" env SCRFS_LAUNCH=$SCRFS_LAUNCH sh "$shared/rank.sh" "$shared" $rank $size &
    pids="$pids $!"
    rank=$((rank + 1))
done
code=0
for pid in $pids; do wait $pid || code=$?; done
exit $code
"#;

/// Checks what it restarts from, then writes a file a step, whose every byte follows from step and rank.
pub(crate) const RANK: &str = r#"#!/bin/sh
# rank.sh SHARED RANK SIZE
shared=$1 rank=$2 size=$3
content() { yes "step $1 of rank $2" | head -c 700000; }
meet() {
    touch "$shared/$SCRFS_LAUNCH.$1.$rank"
    while [ "$(ls "$shared" | grep -c "^$SCRFS_LAUNCH\.$1\.")" -lt "$size" ]; do sleep 0.02; done
}
step=0
if target=$(readlink /scr/.scr/restart); then
    step=${target##*.}
    if content $step $rank | cmp - /scr/.scr/restart/rank.$rank; then
        echo "restart $step $(uname -n)" >> "$shared/log.$rank"
    else
        echo "WRONG BYTES $step" >> "$shared/log.$rank"
        exit 9
    fi
fi
while [ $step -lt LAST ]; do
    step=$((step + 1))
    open=/scr/ckpt.$step.tmp
    if [ $rank = 0 ]; then mkdir $open || exit 1; fi
    while [ ! -d $open ]; do sleep 0.02; done
    meet $step.begin
    if [ $step = GATE ]; then
        content $step $rank | head -c 300000 > $open/rank.$rank
        touch "$shared/gate.$rank"
        while [ ! -e "$shared/go" ]; do sleep 0.02; done
    fi
    content $step $rank > $open/rank.$rank || exit 1
    meet $step.written
    if [ $rank = 0 ]; then mv $open /scr/ckpt.$step || exit 1; fi
    meet $step.committed
done
"#;

pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) directory: TempDir,
}

impl Site {
    pub(crate) fn start(nodes: usize) -> Self {
        let cluster = Cluster::builder()
            .nodes(nodes)
            .shm_bytes(256 << 20)
            .start()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        for name in ["prefix", "shared"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let site = Self { cluster, directory };
        let rank = RANK
            .replace("LAST", &LAST.to_string())
            .replace("GATE", &GATE.to_string());
        for (name, text) in [("launch.sh", LAUNCH), ("rank.sh", &rank)] {
            let path = site.shared().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        site
    }

    pub(crate) fn prefix(&self) -> PathBuf {
        self.directory.path().join("prefix")
    }

    pub(crate) fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    /// `scrfs run OPTIONS -- LAUNCHER` on node0, with all nodes as hosts.
    pub(crate) fn run(&self, options: &[&str], launcher: &[&str]) -> Run {
        self.run_with(&[], options, launcher)
    }

    /// The same, with more in its environment.
    pub(crate) fn run_with(
        &self,
        environment: &[(&str, PathBuf)],
        options: &[&str],
        launcher: &[&str],
    ) -> Run {
        self.run_on(0, environment, options, launcher)
    }

    /// The same on node0, with something on its standard input.
    pub(crate) fn run_fed(&self, input: &str, options: &[&str], launcher: &[&str]) -> Run {
        let path = self.directory.path().join("input");
        fs::write(&path, input).unwrap();
        let input = fs::File::open(&path).unwrap();
        self.spawn(
            self.run_command(0, options, launcher),
            "output",
            input.into(),
        )
    }

    /// The same, on this node.
    pub(crate) fn run_on(
        &self,
        node: usize,
        environment: &[(&str, PathBuf)],
        options: &[&str],
        launcher: &[&str],
    ) -> Run {
        let mut command = self.run_command(node, options, launcher);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        self.spawn(command, "output", Stdio::null())
    }

    fn run_command(&self, node: usize, options: &[&str], launcher: &[&str]) -> Command {
        let hosts: Vec<_> = (1..=self.cluster.nodes())
            .map(|node| self.cluster.name(node))
            .collect();
        let logs = self.directory.path().join("logs");
        let mut command = self.cluster.command(node, binary("scrfs").unwrap());
        command
            .args(["run", "--nodes", &hosts.join(","), "--prefix"])
            .arg(self.prefix());
        if !options.contains(&"--rsh") {
            command.arg("--rsh").arg(self.cluster.rsh());
        }
        if !options.contains(&"--log-dir") {
            command.arg("--log-dir").arg(logs);
        }
        command.args(options).arg("--").args(launcher);
        command
    }

    /// `scrfs run --resume` on this node.
    pub(crate) fn resume(&self, node: usize) -> Run {
        let mut command = self.cluster.command(node, binary("scrfs").unwrap());
        command
            .args(["run", "--resume", "--prefix"])
            .arg(self.prefix());
        self.spawn(command, "output.resumed", Stdio::null())
    }

    fn spawn(&self, mut command: Command, name: &str, input: Stdio) -> Run {
        let output = self.directory.path().join(name);
        let file = fs::File::create(&output).unwrap();
        command
            .stdin(input)
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let child = command.spawn().unwrap();
        Run { child, output }
    }

    /// No process and no mount on any node but the dead ones, nothing in the prefix that only a run needs.
    pub(crate) fn nothing_is_left(&self, dead: &[usize], output: &str) {
        for node in (0..=self.cluster.nodes()).filter(|node| !dead.contains(node)) {
            let mut mounts = self.cluster.command(node, "cat");
            let mounts = mounts.arg("/proc/self/mounts").output().unwrap();
            let mounts = String::from_utf8_lossy(&mounts.stdout).into_owned();
            assert!(
                !mounts.contains(" /scr fuse"),
                "node{node}: {mounts}\n{output}"
            );
            // The launcher's helpers end by themselves, after the launcher.
            let gone = wait_until(SOON, "the end of every process", || {
                Ok(self.cluster.processes(node)?.is_empty().then_some(()))
            });
            let left = self.cluster.processes(node).unwrap();
            let lines: Vec<String> = left
                .iter()
                .map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
                .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
                .collect();
            assert!(gone.is_ok(), "node{node} still runs {lines:?}\n{output}");
        }
        for name in ["run", "inflight"] {
            let path = self.prefix().join(".scrfs").join(name);
            let left: Vec<_> = fs::read_dir(&path)
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            assert!(left.is_empty(), "{} has {left:?}\n{output}", path.display());
        }
    }

    /// The launcher that starts a rank on each host.
    pub(crate) fn job(&self) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        let shared = self.shared();
        vec![
            path(shared.join("launch.sh")),
            path(shared),
            path(self.cluster.rsh()),
            "{hosts}".into(),
        ]
    }

    pub(crate) fn status(&self, node: usize) -> Vec<String> {
        let output = self
            .cluster
            .command(node, "ls")
            .arg("/scr/.scr/status")
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

pub(crate) struct Run {
    pub(crate) child: Child,
    pub(crate) output: PathBuf,
}

impl Run {
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    pub(crate) fn wait_for(&mut self, words: &str) {
        let output = self.output.clone();
        let waited = wait_until(SOON, words, || {
            let text = fs::read_to_string(&output)?;
            anyhow::ensure!(
                self.child.try_wait()?.is_none() || text.contains(words),
                "it ended"
            );
            Ok(text.contains(words).then_some(()))
        });
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", self.output()));
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        let ended = wait_until(SOON, "the end of scrfs run", || {
            Ok(self.child.try_wait()?)
        });
        ended.unwrap_or_else(|error| panic!("{error:#}\n{}", self.output()))
    }

    /// Waits for the end, which must be with this code.
    pub(crate) fn expect(&mut self, code: i32) -> String {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{}", self.output());
        self.output()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended; then these fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
