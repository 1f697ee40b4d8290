//! What a node has of its own, and what it shares.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use scrfs_tests::{Cluster, Loss, wait_until};

use crate::SOON;
use crate::helpers::{helper_in, rsh, sh, start, text};

#[test]
fn memory_is_a_nodes_own_and_lost_with_it() {
    let cluster = start(2);
    let token = cluster
        .directory()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let own = ["/dev/shm", "/scr", "/run/tmp", "/run", ""];
    for directory in own {
        text(&cluster, 1, &format!("echo mine > {directory}/{token}"));
        assert!(
            !Path::new(directory).join(&token).exists(),
            "{directory} is the machine's"
        );
        assert!(
            !sh(&cluster, 2, &format!("test -e {directory}/{token}"))
                .status
                .success()
        );
    }
    for loss in [Loss::Crash, Loss::Power] {
        cluster.kill(1, loss).unwrap();
        cluster.revive(1).unwrap();
        for directory in own {
            assert!(
                !sh(&cluster, 1, &format!("test -e {directory}/{token}"))
                    .status
                    .success()
            );
            text(&cluster, 1, &format!("echo mine > {directory}/{token}"));
        }
        let output = rsh(&cluster, 0, 1).arg("uname -n").output().unwrap();
        assert_eq!(output.stdout, b"node1\n", "{output:?}");
    }
}

#[test]
fn memory_of_a_killed_node_is_free_again() {
    const FILE_KIB: u64 = 512 << 10;
    let shared_kib = || {
        let info = fs::read_to_string("/proc/meminfo").unwrap();
        let line = info
            .lines()
            .find(|line| line.starts_with("Shmem:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let cluster = start(1);
    text(
        &cluster,
        1,
        &format!("head -c {FILE_KIB}K /dev/zero > /dev/shm/file"),
    );
    let before = shared_kib();
    cluster.kill(1, Loss::Power).unwrap();
    wait_until(SOON, "the memory to be free", || {
        // Other tests use some meanwhile.
        Ok((shared_kib() + FILE_KIB / 2 < before).then_some(()))
    })
    .unwrap();
}

#[test]
fn shared_memory_has_the_size_asked_for() {
    let cluster = Cluster::builder()
        .nodes(1)
        .shm_bytes(1 << 20)
        .start()
        .unwrap();
    assert!(
        sh(&cluster, 1, "head -c 1M /dev/zero > /dev/shm/a")
            .status
            .success()
    );
    let output = sh(&cluster, 1, "head -c 1 /dev/zero > /dev/shm/b");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("No space left"),
        "{output:?}"
    );
}

#[test]
fn temporary_directories_of_tests_are_the_parallel_file_system() {
    let cluster = start(2);
    let prefix = tempfile::tempdir().unwrap();
    let file = prefix.path().join("file");
    text(&cluster, 1, &format!("echo shared > {}", file.display()));
    assert_eq!(
        text(&cluster, 2, &format!("cat {}", file.display())),
        "shared"
    );
    assert_eq!(fs::read_to_string(file).unwrap(), "shared\n");
}

#[test]
fn a_fuse_mount_goes_with_its_node_and_stops_no_kill() {
    let cluster = start(1);
    let mut daemon = helper_in(&cluster, 1, "fuse");
    assert!(text(&cluster, 1, "cat /proc/self/mounts").contains("helper /scr fuse"));
    assert!(
        !fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains("helper /scr")
    );
    let mut reader = cluster.command(1, "ls").arg("/scr").spawn().unwrap();
    let reader_pid = reader.id();
    wait_until(SOON, "the reader to wait for the daemon", || {
        let channel = fs::read_to_string(format!("/proc/{reader_pid}/wchan"))?;
        let syscall = fs::read_to_string(format!("/proc/{reader_pid}/syscall"))?;
        let comm = fs::read_to_string(format!("/proc/{reader_pid}/comm"))?;
        let waits = comm.trim() == "ls" && syscall.trim() != "running" && channel.trim() != "0";
        Ok(waits.then_some(()))
    })
    .unwrap();
    // Who waits for a stopped daemon never stops by himself.
    cluster.hang(1).unwrap();
    let start = Instant::now();
    cluster.kill(1, Loss::Crash).unwrap();
    assert!(start.elapsed() < SOON);
    daemon.wait().unwrap();
    reader.wait().unwrap();
    cluster.revive(1).unwrap();
    assert!(!text(&cluster, 1, "cat /proc/self/mounts").contains("/scr"));
}

#[test]
fn a_command_keeps_its_pipes_its_id_its_directory_and_what_environment_it_is_given() {
    let cluster = start(1);
    let directory = tempfile::tempdir().unwrap();
    let script = "echo $$; pwd; echo $TMPDIR $OMPI_MCA_btl; cat; exit 3";
    let mut child = cluster
        .command(1, "sh")
        .args(["-c", script])
        .current_dir(directory.path())
        .env("OMPI_MCA_btl", "mine")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    child.stdin.take().unwrap().write_all(b"input\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let expected = format!(
        "{id}\n{}\n/run/tmp mine\ninput\n",
        directory.path().display()
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(output.status.code(), Some(3));
    let missing = cluster.command(1, "no-such-program").output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
}
