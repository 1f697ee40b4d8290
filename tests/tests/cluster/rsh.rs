//! The remote shell is as ssh is, and a launcher can start ranks by it.

use std::env;
use std::fs;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use scrfs_tests::{Loss, wait_until};

use crate::SOON;
use crate::helpers::{RSH_FAILED, rsh, start};

#[test]
fn rsh_passes_exit_codes_and_output_and_joins_arguments() {
    let cluster = start(1);
    let run = |arguments: &[&str]| rsh(&cluster, 0, 1).args(arguments).output().unwrap();
    assert_eq!(run(&["exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["kill -9 $$"]).status.code(), RSH_FAILED);
    assert_eq!(run(&["no-such-program"]).status.code(), Some(127));
    let output = run(&["echo", "a   b;", "echo error >&2; uname -n"]);
    assert_eq!(output.stdout, b"a b\nnode1\n");
    assert_eq!(output.stderr, b"error\n");
    // The caller's environment stays where it is, and so does its directory.
    let mut command = rsh(&cluster, 0, 1);
    let output = command
        .env("MINE", "set")
        .arg("echo $MINE; pwd")
        .output()
        .unwrap();
    let home = env::home_dir().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("\n{}\n", home.display())
    );
}

#[test]
fn rsh_passes_much_input() {
    let cluster = start(1);
    let sent: Vec<u8> = (0_u32..4 << 20).flat_map(u32::to_le_bytes).collect();
    let mut command = rsh(&cluster, 0, 1);
    let mut child = command
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            input.write_all(&sent).unwrap();
            drop(input);
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    assert!(
        output.stdout == sent,
        "{} of {} bytes",
        output.stdout.len(),
        sent.len()
    );
}

#[test]
fn rsh_is_the_callers_process_and_the_command_the_targets() {
    let cluster = start(2);
    let mut client = rsh(&cluster, 1, 2)
        .arg("exec cat")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    wait_until(SOON, "the command to run", || {
        let pids = cluster.processes(2)?;
        Ok((pids.len() == 1 && name(pids[0]) == "cat\n").then_some(()))
    })
    .unwrap();
    assert_eq!(cluster.processes(1).unwrap(), [client.id()]);
    // A command outlives its client, but not its pipes.
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until(SOON, "cat to end", || {
        Ok(cluster.processes(2)?.is_empty().then_some(()))
    })
    .unwrap();
}

#[test]
fn rsh_fails_as_ssh_does_when_the_target_is_lost() {
    let cluster = start(4);
    cluster.kill(1, Loss::Crash).unwrap();
    cluster.kill(2, Loss::Power).unwrap();
    cluster.hang(3).unwrap();
    cluster.link(4, false).unwrap();
    let clients: Vec<_> = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 0)]
        .map(|(from, to)| rsh(&cluster, from, to).arg("true").spawn().unwrap())
        .into();
    for mut client in clients {
        let status = wait_until(2 * SOON, "rsh to fail", || Ok(client.try_wait()?)).unwrap();
        assert_eq!(status.code(), RSH_FAILED);
    }
    let status = cluster
        .command(0, cluster.rsh())
        .args(["node9", "true"])
        .status()
        .unwrap();
    assert_eq!(status.code(), RSH_FAILED);
}

#[test]
fn rsh_ends_when_its_target_crashes() {
    let cluster = start(1);
    let mut client = rsh(&cluster, 0, 1).arg("sleep 1000").spawn().unwrap();
    wait_until(SOON, "sleep", || {
        Ok((!cluster.processes(1)?.is_empty()).then_some(()))
    })
    .unwrap();
    cluster.kill(1, Loss::Crash).unwrap();
    let status = wait_until(SOON, "rsh to end", || Ok(client.try_wait()?)).unwrap();
    assert_eq!(status.code(), RSH_FAILED);
}

#[test]
fn mpirun_starts_ranks_on_all_nodes() {
    let cluster = start(4);
    let run = || -> Result<Vec<String>> {
        let output = cluster
            .command(0, "mpirun")
            .args([
                "--host",
                "node1,node2,node3,node4",
                "-n",
                "4",
                "--map-by",
                "node",
            ])
            .args(["--allow-run-as-root", "--bind-to", "none"])
            .args(["--mca", "plm_rsh_agent"])
            .arg(cluster.rsh())
            .args(["sh", "-c", "uname -n; ls -d $TMPDIR/ompi.$(uname -n).*"])
            .output()
            .context("running mpirun")?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    };
    let names = ["node1", "node2", "node3", "node4"];
    let sessions = names.map(|name| format!("/run/tmp/ompi.{name}.0"));
    let expected: Vec<String> = sessions
        .into_iter()
        .chain(names.map(str::to_owned))
        .collect();
    assert_eq!(run().unwrap(), expected);
    cluster.kill(3, Loss::Power).unwrap();
    cluster.revive(3).unwrap();
    assert_eq!(run().unwrap(), expected);
}
