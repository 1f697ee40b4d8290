//! Addresses of the nodes, the bridge that joins them, and the cables.
//!
//! The bridge lives in the warden's network namespace and each node is plugged into it with a
//! veth pair: `eth0` in the node, `port<i>` at the bridge. So every cluster can use the same
//! addresses, none of which exists in the machine's own namespace.
//!
//! Everything is done by `ip`, in batches: one process for a whole cluster.
//! Does not do: loss, delay, rates (`tc` inside a node can), IPv6 (switched off in the nodes).

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Largest cluster whose addresses fit; two processes a node would stop it long before.
pub(crate) const NODES_MAX: usize = 200;

pub(crate) fn name(node: usize) -> String {
    format!("node{node}")
}

pub(crate) fn address(node: usize) -> Ipv4Addr {
    let last = u8::try_from(node + 1).expect("a node's number is below NODES_MAX");
    Ipv4Addr::new(10, 77, 0, last)
}

/// What each node has at /etc/hosts.
pub(crate) fn hosts(nodes: usize) -> String {
    let mut hosts = String::from("127.0.0.1 localhost\n");
    for node in 0..nodes {
        let _ = writeln!(hosts, "{} {}", address(node), name(node));
    }
    hosts
}

/// In the warden's namespace, once.
pub(crate) fn make_bridge() -> Result<()> {
    ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n")
}

/// In the warden's namespace: cables to new nodes, each a number and a process in it.
pub(crate) fn plug(nodes: &[(usize, u32)]) -> Result<()> {
    let mut batch = String::new();
    for (node, pid) in nodes {
        // A node that comes back keeps its hardware address: its peers' tables stay right.
        let _ = writeln!(
            batch,
            "link add port{node} type veth peer name eth0 address 02:73:63:72:00:{node:02x} \
             netns {pid}\n\
             link set port{node} master br0 up"
        );
    }
    ip(&batch)
}

/// In the warden's namespace: takes the cable away for good.
pub(crate) fn unplug(node: usize) -> Result<()> {
    ip(&format!("link del port{node}\n"))
}

/// In the warden's namespace. Down at the bridge, not in the node: there it is a cable pulled, and
/// the node keeps its address and its routes and hears nothing.
pub(crate) fn set_link(node: usize, up: bool) -> Result<()> {
    ip(&format!(
        "link set port{node} {}\n",
        if up { "up" } else { "down" }
    ))
}

/// In a node, before it is plugged in.
pub(crate) fn disable_ipv6() -> Result<()> {
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        match std::fs::write(&path, "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.with_context(|| format!("writing {path}"))?,
        }
    }
    Ok(())
}

/// In a node, when it is plugged in.
pub(crate) fn configure(node: usize) -> Result<()> {
    let address = address(node);
    ip(&format!(
        "link set lo up\naddr add {address}/24 brd + dev eth0\nlink set eth0 up\n"
    ))
}

fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .env("PATH", super::search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip (of iproute2)")?;
    child
        .stdin
        .take()
        .context("the pipe was asked for")?
        .write_all(batch.as_bytes())
        .context("writing to ip")?;
    let output = child.wait_with_output().context("waiting for ip")?;
    ensure!(
        output.status.success(),
        "ip failed with {}on:\n{batch}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
