//! Scavenging by the real programs: after the batch node and everything else died, and by `scrfs run` itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scrfs_tests::{Loss, binary, wait_until};

use super::site::{Run, SOON, Site};

/// Nothing is flushed by itself but outputs, and these take for ever: the second piece waits for minutes.
const CONFIG: &str = r#"
[flush]
every = 0
bandwidth = "16KiB"

[[dataset]]
match = "out.*"
class = "output"
"#;

/// Each node's share of an output and of two checkpoints, all protected at the end.
const WRITER: &str = r#"
cd SHARED
for name in ckpt.1 out.1 ckpt.2; do
    RSH node1 mkdir /scr/$name.tmp || exit 1
    for n in 1 2 3 4; do
        RSH node$n "yes '$name of $n' | head -c 6000000 > /scr/$name.tmp/of.$n" || exit 1
    done
    RSH node1 "mv -T /scr/$name.tmp /scr/$name && sync /scr/$name" || exit 2
done
RSH node1 "echo ckpt.2 > /scr/latest"
touch written
while [ ! -e go ]; do sleep 0.05; done
"#;

fn site() -> Site {
    let site = Site::start(4);
    fs::write(site.prefix().join(".scrfs.toml"), CONFIG).unwrap();
    site
}

fn script(site: &Site) -> String {
    WRITER
        .replace("SHARED", site.shared().to_str().unwrap())
        .replace("RSH", site.cluster.rsh().to_str().unwrap())
}

fn wait_until_written(site: &Site, run: &mut Run) {
    let written = site.shared().join("written");
    let waited = wait_until(SOON, "all is written", || {
        anyhow::ensure!(run.child.try_wait()?.is_none(), "it ended");
        Ok(written.exists().then_some(()))
    });
    waited.unwrap_or_else(|error| panic!("{error:#}\n{}", run.output()));
}

/// Kills the batch node's processes, and daemons and coordinators everywhere.
fn end_everything(site: &Site, run: &mut Run) {
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    for node in 0..=site.cluster.nodes() {
        if !site.cluster.is_alive(node).unwrap_or(false) {
            continue;
        }
        let gone = wait_until(SOON, "the end of every process", || {
            let left = site.cluster.processes(node)?;
            for pid in &left {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL);
            }
            Ok(left.is_empty().then_some(()))
        });
        gone.unwrap_or_else(|error| panic!("node{node}: {error:#}"));
    }
}

fn scavenge(site: &Site) -> Command {
    let hosts: Vec<_> = (1..=site.cluster.nodes())
        .map(|node| site.cluster.name(node))
        .collect();
    let mut command = site.cluster.command(0, binary("scrfs").unwrap());
    command
        .args(["scavenge", "--nodes", &hosts.join(","), "--timeout", "60"])
        .arg("--rsh")
        .arg(site.cluster.rsh())
        .arg("--prefix")
        .arg(site.prefix())
        .stdin(Stdio::null());
    command
}

fn check(prefix: &Path, name: &str) {
    for n in 1..=4 {
        let line = format!("{name} of {n}\n");
        let wanted: Vec<u8> = line.bytes().cycle().take(6_000_000).collect();
        let path = prefix.join(name).join(format!("of.{n}"));
        assert!(fs::read(&path).unwrap() == wanted, "{}", path.display());
    }
}

/// Datasets that are to be seen in the prefix.
fn visible(prefix: &Path) -> Vec<String> {
    let names = fs::read_dir(prefix).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn after_everything_died_what_is_left_is_saved_and_the_lost_is_rebuilt() {
    let site = site();
    let mut run = site.run(&[], &["sh", "-c", &script(&site)]);
    wait_until_written(&site, &mut run);
    site.cluster.kill(3, Loss::Power).unwrap();
    end_everything(&site, &mut run);
    assert_eq!(visible(&site.prefix()), [""; 0], "{}", run.output());
    // Killed at any moment, it leaves nothing half visible, and can be begun again.
    for after_ms in [30, 100, 200, 400] {
        let mut child = scavenge(&site).stderr(Stdio::null()).spawn().unwrap();
        let ended = wait_until(Duration::from_millis(after_ms), "its end", || {
            Ok(child.try_wait()?)
        });
        if ended.is_err() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for name in visible(&site.prefix()) {
            if name != "latest" {
                check(&site.prefix(), &name);
            }
        }
    }
    let output = scavenge(&site).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(visible(&site.prefix()), ["ckpt.2", "latest", "out.1"]);
    check(&site.prefix(), "out.1");
    check(&site.prefix(), "ckpt.2");
    let latest = fs::read_to_string(site.prefix().join("latest")).unwrap();
    assert_eq!(latest, "ckpt.2\n");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["restart"], "ckpt.2", "{told}");
    assert_eq!(told["absent"][0]["node"], "node3", "{told}");
    let again = scavenge(&site).output().unwrap();
    assert!(again.status.success(), "{}", words(&again));
    assert!(
        words(&again).contains("nothing is left to be saved"),
        "{}",
        words(&again)
    );
}

#[test]
fn beyond_the_scheme_it_says_so_and_shows_nothing() {
    let site = site();
    let mut run = site.run(&[], &["sh", "-c", &script(&site)]);
    wait_until_written(&site, &mut run);
    site.cluster.kill(2, Loss::Power).unwrap();
    site.cluster.kill(4, Loss::Crash).unwrap();
    end_everything(&site, &mut run);
    let output = scavenge(&site).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(
        words(&output).contains("out.1 cannot be saved"),
        "{}",
        words(&output)
    );
    assert_eq!(visible(&site.prefix()), [""; 0]);
}

/// The coordinators do not start any more when the application has ended.
#[test]
fn a_run_whose_coordinators_fail_scavenges_by_itself() {
    let site = site();
    let mpirun = site.shared().join("mpirun");
    let broken = site.shared().join("broken");
    let text = format!(
        "#!/bin/sh\n[ -e {} ] && exit 1\nexec mpirun \"$@\"\n",
        broken.display()
    );
    fs::write(&mpirun, text).unwrap();
    fs::set_permissions(&mpirun, fs::Permissions::from_mode(0o755)).unwrap();
    let mpirun = mpirun.display().to_string();
    let mut run = site.run(&["--mpirun", &mpirun], &["sh", "-c", &script(&site)]);
    wait_until_written(&site, &mut run);
    fs::write(&broken, "").unwrap();
    site.cluster.kill(1, Loss::Crash).unwrap();
    let output = run.expect(1);
    assert!(output.contains("not everything is flushed"), "{output}");
    assert_eq!(
        visible(&site.prefix()),
        ["ckpt.2", "latest", "out.1"],
        "{output}"
    );
    check(&site.prefix(), "out.1");
    check(&site.prefix(), "ckpt.2");
    // The whole story is there for programs, too.
    let events = fs::read_to_string(site.prefix().join(".scrfs/events.jsonl")).unwrap();
    let events = events.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["event"].as_str().unwrap().to_owned()
    });
    let events: Vec<String> = events.collect();
    let mut seen = events.iter();
    for wanted in [
        "job_began",
        "epoch_ready",
        "launched",
        "committed",
        "node_lost",
        "launch_ended",
        "epoch_failed",
        "flushed",
        "scavenged",
        "job_ended",
    ] {
        assert!(
            seen.any(|event| event == wanted),
            "no {wanted} in its place: {events:?}"
        );
    }
}
