//! What the tests run in nodes, and short cuts.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::Result;
use scrfs_tests::{Cluster, wait_until};

use crate::{SILENCE, SOON};

const HELPER: &str = "CLUSTER_TEST_HELPER";
const HELPER_READY: &str = "helper ready";
/// ssh's own failure.
pub(crate) const RSH_FAILED: Option<i32> = Some(255);
pub(crate) const ECHO_PORT: u16 = 7000;

/// Not a test but what other tests run as a process of its own; see [`start_helper`].
#[test]
fn helper() {
    let Ok(what) = env::var(HELPER) else { return };
    match what.as_str() {
        "echo" => {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT)).unwrap();
            println!("{HELPER_READY}");
            let (mut stream, _) = listener.accept().unwrap();
            let mut copy = stream.try_clone().unwrap();
            let _ = io::copy(&mut copy, &mut stream);
        }
        "own" => {
            let cluster = Cluster::builder().nodes(2).start().unwrap();
            let _sleepers: Vec<_> = (0..=2).map(|node| sleep_in(&cluster, node)).collect();
            cluster.hang(2).unwrap();
            println!("{HELPER_READY} {}", cluster.directory().display());
            let _ = io::stdin().read_to_end(&mut Vec::new());
        }
        // A FUSE daemon that never answers.
        "fuse" => {
            let device = File::options()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .unwrap();
            let fd = device.as_raw_fd();
            nix::mount::mount(
                Some("helper"),
                "/scr",
                Some("fuse"),
                nix::mount::MsFlags::empty(),
                Some(format!("fd={fd},rootmode=40000,user_id=0,group_id=0").as_str()),
            )
            .unwrap();
            println!("{HELPER_READY}");
            let _ = io::stdin().read_to_end(&mut Vec::new());
        }
        other => panic!("no helper {other}"),
    }
}

/// Starts a helper and gives what it says when it is ready.
pub(crate) fn start_helper(mut command: Command, what: &str) -> (Child, String) {
    command
        .args(["--exact", "helpers::helper", "--nocapture"])
        .env(HELPER, what);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.as_mut().unwrap());
    let said = output
        .lines()
        .map(|line| line.unwrap())
        .find_map(|line| Some(line.split_once(HELPER_READY)?.1.trim().to_owned()))
        .expect("the helper became ready");
    (child, said)
}

pub(crate) fn helper_in(cluster: &Cluster, node: usize, what: &str) -> Child {
    start_helper(cluster.command(node, env::current_exe().unwrap()), what).0
}

/// A process that is found by the cluster's name in its arguments.
pub(crate) fn sleep_in(cluster: &Cluster, node: usize) -> Child {
    let script = format!(": {}; sleep 1000 & wait", cluster.directory().display());
    let mut command = cluster.command(node, "sh");
    // If it is left over after all, it should not keep those waiting who read our output.
    command
        .args(["-c", &script])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().unwrap();
    wait_until(SOON, "two processes in the node", || {
        Ok((cluster.processes(node)?.len() >= 2).then_some(()))
    })
    .unwrap();
    child
}

pub(crate) fn start(nodes: usize) -> Cluster {
    Cluster::builder().nodes(nodes).start().unwrap()
}

pub(crate) fn sh(cluster: &Cluster, node: usize, script: &str) -> Output {
    cluster
        .command(node, "sh")
        .args(["-c", script])
        .output()
        .unwrap()
}

pub(crate) fn text(cluster: &Cluster, node: usize, script: &str) -> String {
    let output = sh(cluster, node, script);
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

/// `rsh` from one node to another.
pub(crate) fn rsh(cluster: &Cluster, from: usize, to: usize) -> Command {
    let mut command = cluster.command(from, cluster.rsh());
    command.arg(cluster.name(to));
    command
}

pub(crate) fn address(cluster: &Cluster, node: usize, port: u16) -> SocketAddr {
    let name = cluster.name(node);
    let line = text(cluster, 0, &format!("getent ahostsv4 {name}"));
    SocketAddr::new(
        line.split_whitespace().next().unwrap().parse().unwrap(),
        port,
    )
}

/// A connection from node1 to the echo on node2, that has carried something both ways.
pub(crate) fn connect_echo(cluster: &Cluster) -> TcpStream {
    let to = address(cluster, 2, ECHO_PORT);
    let mut stream = cluster
        .within_network(1, || Ok(TcpStream::connect(to)?))
        .unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"there").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"there");
    stream
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub(crate) fn hears_nothing(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    matches!(stream.read(&mut [0]), Err(error) if is_timeout(&error))
}

/// Process ids whose arguments tell of a cluster. Zombies have none.
pub(crate) fn traces_of(directory: &str) -> Result<Vec<PathBuf>> {
    let mut traces = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
        let is_of = String::from_utf8_lossy(&arguments).contains(directory);
        if is_of && !path.ends_with(std::process::id().to_string()) {
            traces.push(path);
        }
    }
    Ok(traces)
}

/// What runs in a network namespace, zombies excluded.
pub(crate) fn processes_in(network: &File) -> Vec<PathBuf> {
    let inode = network.metadata().unwrap().ino();
    let is_in =
        |path: &PathBuf| fs::metadata(path.join("ns/net")).is_ok_and(|link| link.ino() == inode);
    let paths = fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths.filter(is_in).collect()
}

pub(crate) fn assert_leaves_nothing(directory: &str, pids: &[u32]) {
    wait_until(SOON, "every trace of the cluster to go", || {
        let alive = |pid: &&u32| {
            Path::new(&format!("/proc/{pid}/ns/net"))
                .read_link()
                .is_ok()
        };
        let gone = traces_of(directory)?.is_empty()
            && !pids.iter().any(|pid| alive(&pid))
            && !Path::new(directory).exists();
        Ok(gone.then_some(()))
    })
    .unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory), "{mounts}");
}
