//! Ends of nodes, clusters and owners: nothing is left.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use scrfs_tests::{Loss, wait_until};

use crate::SOON;
use crate::helpers::{
    RSH_FAILED, address, assert_leaves_nothing, processes_in, rsh, sh, sleep_in, start,
    start_helper, text, traces_of,
};

#[test]
fn a_kill_returns_when_no_process_is_left() {
    let cluster = start(1);
    for loss in [Loss::Crash, Loss::Power] {
        let mut sleeper = sleep_in(&cluster, 1);
        // Held open, so that no other test's network can get its number.
        let network = File::open(format!("/proc/{}/ns/net", sleeper.id())).unwrap();
        // Children that are born all the time, and stay.
        let script = "until [ -e /scr/go ]; do :; done; while :; do sleep 1000 & done";
        let mut forkers: Vec<_> = (0..2)
            .map(|_| {
                cluster
                    .command(1, "sh")
                    .args(["-c", script])
                    .spawn()
                    .unwrap()
            })
            .collect();
        wait_until(SOON, "the forkers", || {
            let pids = cluster.processes(1)?;
            let all = forkers.iter().all(|forker| pids.contains(&forker.id()));
            Ok(all.then_some(()))
        })
        .unwrap();
        text(&cluster, 1, "touch /scr/go");
        wait_until(SOON, "children", || {
            Ok((cluster.processes(1)?.len() > 20).then_some(()))
        })
        .unwrap();
        cluster.kill(1, loss).unwrap();
        assert_eq!(processes_in(&network), Vec::<PathBuf>::new());
        assert_eq!(sleeper.try_wait().unwrap().unwrap().code(), None);
        for forker in &mut forkers {
            assert_eq!(forker.try_wait().unwrap().unwrap().code(), None);
        }
        assert!(cluster.processes(1).unwrap().is_empty());
        assert!(!cluster.is_alive(1).unwrap());
        assert_eq!(sh(&cluster, 1, "true").status.code(), RSH_FAILED);
        assert!(cluster.kill(1, loss).is_err());
        cluster.revive(1).unwrap();
        assert!(cluster.is_alive(1).unwrap());
    }
    assert!(cluster.is_alive(0).unwrap());
}

#[test]
fn nothing_is_left_after_drop() {
    let cluster = start(2);
    let directory = cluster.directory().to_str().unwrap().to_owned();
    let mut sleepers: Vec<_> = (0..=2).map(|node| sleep_in(&cluster, node)).collect();
    let pids: Vec<_> = (0..=2)
        .flat_map(|node| cluster.processes(node).unwrap())
        .collect();
    assert!(pids.len() >= 6);
    assert!(traces_of(&directory).unwrap().len() >= 4);
    drop(cluster);
    for sleeper in &mut sleepers {
        assert!(
            sleeper.try_wait().unwrap().is_some(),
            "it was dead when drop returned"
        );
    }
    assert_leaves_nothing(&directory, &pids);
}

#[test]
fn nothing_is_left_after_the_owner_is_killed() {
    let (mut owner, directory) = start_helper(Command::new(env::current_exe().unwrap()), "own");
    assert!(traces_of(&directory).unwrap().len() >= 4);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_leaves_nothing(&directory, &[]);
}

#[test]
fn nothing_is_left_after_the_warden_is_killed() {
    let cluster = start(2);
    let directory = cluster.directory().to_str().unwrap().to_owned();
    let mut sleepers: Vec<_> = (0..=2).map(|node| sleep_in(&cluster, node)).collect();
    let pids: Vec<_> = (0..=2)
        .flat_map(|node| cluster.processes(node).unwrap())
        .collect();
    let warden = traces_of(&directory)
        .unwrap()
        .into_iter()
        .find(|path| {
            String::from_utf8_lossy(&fs::read(path.join("cmdline")).unwrap()).contains("warden\0")
        })
        .unwrap();
    let pid = warden
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    for sleeper in &mut sleepers {
        wait_until(SOON, "the agents to kill their nodes", || {
            Ok(sleeper.try_wait()?)
        })
        .unwrap();
    }
    drop(cluster);
    assert_leaves_nothing(&directory, &pids);
}

#[test]
fn clusters_do_not_touch_each_other() {
    let (one, other) = (start(2), start(2));
    let mut sleeper = sleep_in(&other, 1);
    assert_eq!(address(&one, 1, 0), address(&other, 1, 0));
    text(&one, 1, "echo one > /dev/shm/file");
    assert!(!sh(&other, 1, "test -e /dev/shm/file").status.success());
    one.kill(1, Loss::Power).unwrap();
    one.link(2, false).unwrap();
    let output = rsh(&other, 2, 1).arg("uname -n").output().unwrap();
    assert_eq!(output.stdout, b"node1\n", "{output:?}");
    drop(one);
    assert!(sleeper.try_wait().unwrap().is_none());
    assert_eq!(other.processes(1).unwrap().len(), 2);
    let output = rsh(&other, 1, 2).arg("uname -n").output().unwrap();
    assert_eq!(output.stdout, b"node2\n", "{output:?}");
    drop(other);
    sleeper.wait().unwrap();
}
