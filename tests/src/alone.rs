//! One node with the real daemon and the real coordinator, its prefix, and a shell in it.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Cluster, binary, wait_until};

/// What is to come comes within this time, on a busy machine too.
const SOON: Duration = Duration::from_secs(60);

/// A node of its own, its prefix, and a shell in it.
#[derive(Debug)]
pub struct Alone {
    /// The cluster, whose node 1 it is.
    pub cluster: Cluster,
    /// Has `prefix`; no node's own.
    pub site: tempfile::TempDir,
    scrfs: PathBuf,
}

impl Alone {
    /// One whose memory for caches has so many bytes.
    pub fn new(shm_bytes: u64) -> Result<Self> {
        let cluster = Cluster::builder().nodes(1).shm_bytes(shm_bytes).start()?;
        let site = tempfile::tempdir()?;
        fs::create_dir(site.path().join("prefix"))?;
        Ok(Self {
            cluster,
            site,
            scrfs: binary("scrfs")?,
        })
    }

    /// Runs a script in the node: `$SCRFS` is the program, `$P` the prefix, `$C` the job's cache.
    pub fn try_sh(&self, script: &str) -> Result<Output> {
        let mut command = self.cluster.command(1, "sh");
        command
            .args(["-c", script])
            .env("SCRFS", &self.scrfs)
            .env("P", self.site.path().join("prefix"))
            .env("C", "/dev/shm/scrfs.0/default")
            .env(
                "MOUNT",
                format!("{} mount /scr --prefix", self.scrfs.display()),
            );
        command
            .output()
            .with_context(|| format!("running {script}"))
    }

    /// As `try_sh`, and it must succeed; gives what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.try_sh(script)?;
        ensure!(
            output.status.success(),
            "{script}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a script that must fail, and gives what it said.
    pub fn refused(&self, script: &str) -> Result<String> {
        let output = self.try_sh(script)?;
        ensure!(!output.status.success(), "{script} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Mounts /scr.
    pub fn mount(&self) -> Result<()> {
        self.sh("$MOUNT $P").map(drop)
    }

    /// Writes a dataset of so many KiB and commits it.
    pub fn commit(&self, name: &str, kib: u32) -> Result<()> {
        self.sh(&format!(
            "mkdir /scr/{name}.tmp && head -c {kib}K /dev/urandom > /scr/{name}.tmp/data \
             && mv -T /scr/{name}.tmp /scr/{name}"
        ))
        .map(drop)
    }

    /// The checksum of a file.
    pub fn sum(&self, path: &str) -> Result<String> {
        self.sh(&format!("md5sum < {path}"))
    }

    /// Kills the node's processes whose command line has these words, of which there must be some, and gives their
    /// numbers.
    pub fn kill(&self, words: &str) -> Result<Vec<u32>> {
        let has_words = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(words)
        };
        let mut those = self.cluster.processes(1)?;
        those.retain(has_words);
        ensure!(!those.is_empty(), "no process of the node is {words}");
        for pid in &those {
            kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL)?;
        }
        Ok(those)
    }

    /// Waits until the status shows a dataset in a state.
    pub fn wait_state(&self, name: &str, state: &str) -> Result<()> {
        wait_until(SOON, &format!("{name} to be {state}"), || {
            let listed = self.try_sh("ls /scr/.scr/status")?;
            let wanted = format!("{name}.{state}");
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            Ok(listed.lines().any(|line| line == wanted).then_some(()))
        })
    }

    /// Waits until a script succeeds.
    pub fn wait_for(&self, script: &str) -> Result<()> {
        wait_until(SOON, script, || {
            Ok(self.try_sh(script)?.status.success().then_some(()))
        })
    }

    /// Waits until the status of a dataset says this.
    pub fn wait_error(&self, name: &str, words: &str) -> Result<()> {
        wait_until(
            SOON,
            &format!("an error of {name} that says {words}"),
            || {
                let status = self.try_sh(&format!("cat /scr/.scr/status/{name}.*"))?;
                Ok(String::from_utf8_lossy(&status.stdout)
                    .contains(words)
                    .then_some(()))
            },
        )
    }
}
