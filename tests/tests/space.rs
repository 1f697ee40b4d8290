//! Several nodes at the limit of their caches: parity of what was accepted always fits, and what is
//! safe elsewhere makes room. The program is a shell script that reaches the nodes by the remote shell.

#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use scrfs_tests::{Cluster, binary};
use std::fs;

/// `on N WORDS` runs WORDS on node N; `must` stops the script when a command fails; `field NAME` is a
/// number of bytes of `df` on this node.
const PRELUDE: &str = r#"
on() { node=$1; shift; "$RSH" "node$node" "$@"; }
must_not() { if "$@"; then echo "SUCCEEDED: $*"; exit 7; fi; }
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
# Fills the file $2 on node $1 until there is no space.
fill() {
    said=$(on $1 "LC_ALL=C dd if=/dev/urandom of=$2 bs=64k 2>&1") && { echo "no end: $2"; exit 8; }
    case $said in *"No space"*) ;; *) echo "not full: $said"; exit 8;; esac
}
available() { on $1 df --output=avail -B1 /scr | tail -n 1; }
used() { on $1 df --output=used -B1 /scr | tail -n 1; }
"#;

/// Runs a script as the program of a job on three nodes with a private tmpfs of `capacity` each.
fn job(capacity: &str, config: &str, script: &str) -> Result<()> {
    let cluster = Cluster::builder().nodes(3).shm_bytes(256 << 20).start()?;
    let site = tempfile::tempdir()?;
    let prefix = site.path().join("prefix");
    fs::create_dir(&prefix)?;
    fs::write(prefix.join(".scrfs.toml"), config)?;
    let path = site.path().join("program");
    fs::write(&path, format!("{PRELUDE}{script}"))?;
    let output = cluster
        .command(0, binary("scrfs")?)
        .args([
            "run",
            "--nodes",
            "node[1-3]",
            "--cache",
            "tmpfs",
            "--prefix",
        ])
        .arg(&prefix)
        .arg("--rsh")
        .arg(cluster.rsh())
        .args(["--", "sh"])
        .arg(&path)
        .arg("{hosts}")
        .env("RSH", cluster.rsh())
        .env("SCRFS", binary("scrfs")?)
        .env("PREFIX", &prefix)
        .env("SCRFS_STORE_CAPACITY", capacity)
        .output()?;
    ensure!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn filled_to_the_last_byte_it_commits_and_its_parity_fits() -> Result<()> {
    job(
        "96MiB",
        "[flush]\nevery = 0\n",
        r#"
must on 1 mkdir /scr/a.tmp
for node in 1 2 3; do
    must on $node "mount | grep -q '^scrfs-store on /run/'"
    # XOR of three: a byte of parity for two of data.
    room=$(available $node)
    [ $room -gt 50000000 ] && [ $room -lt 67000000 ] || { echo "room $room"; exit 9; }
    fill $node /scr/a.tmp/of.$node
    [ $(available $node) -lt 8192 ] || { echo "left: $(available $node)"; exit 9; }
    size=$(on $node stat -c %s /scr/a.tmp/of.$node)
    [ $size -gt $((room - 100000)) ] || { echo "$size of $room"; exit 9; }
done
must on 2 "sha256sum < /scr/a.tmp/of.2 > /run/tmp/sum"
must on 3 mv -T /scr/a.tmp /scr/a
must on 1 $SCRFS wait a --for protected --timeout 30
for node in 1 2 3; do
    must on $node "ls /scr/.scr/status | grep -q '^a.protected'"
    [ $(used $node) -le $((96 << 20)) ] || { echo "used $(used $node)"; exit 9; }
    must on $node "test -n \"\$(find /run/scrfs.0 -name parity -size +10M)\""
    must on $node "test -z \"\$(find /run/scrfs.0 -name parity.room)\""
done
must on 2 "sha256sum < /scr/a/of.2 | cmp - /run/tmp/sum"
"#,
    )
}

/// A budget for two checkpoints of 20 MB on each node, as many datasets as there are, and what else.
fn two_fit(more: &str) -> String {
    format!("[[store]]\npath = \"tmpfs\"\ncount = 20\n{more}")
}

const WRITE: &str = r#"
write() {
    must on 1 mkdir /scr/$1.tmp
    for node in 1 2 3; do
        must on $node "head -c 20000000 /dev/urandom > /scr/$1.tmp/of.$node"
    done
    must on 3 mv -T /scr/$1.tmp /scr/$1
}
# Until every node has so many bytes; 20 seconds.
await_room() {
    for node in 1 2 3; do
        for try in $(seq 400); do
            [ $(available $node) -ge $1 ] && continue 2
            sleep 0.05
        done
        echo "node $node has $(available $node), not $1"
        on $node ls /scr/.scr/status
        exit 9
    done
}
"#;

#[test]
fn what_is_in_the_prefix_makes_room_before_it_is_needed() -> Result<()> {
    let script = r#"
for step in 1 2 3 4 5 6; do
    await_room 21000000
    write ck.$step
    must on 2 $SCRFS wait ck.$step --for flushed --timeout 60
done
await_room 21000000
for node in 1 2 3; do
    must on $node "ls /scr/.scr/status | grep -q '^ck.6.flushed'"
    must on $node test -e /scr/ck.6/of.$node
    must on $node "ls /scr/.scr/status | grep -q '^ck.1.evicted'"
    must_not on $node test -e /scr/ck.1
    [ $(used $node) -le $((96 << 20)) ] || { echo "used $(used $node)"; exit 9; }
done
for step in 1 2 3 4 5 6; do
    for node in 1 2 3; do
        [ $(stat -c %s $PREFIX/ck.$step/of.$node) = 20000000 ] || { echo "no ck.$step"; exit 9; }
    done
done
"#;
    let config = two_fit("[flush]\nevery = 1\n");
    job("96MiB", &config, &format!("{WRITE}{script}"))
}

#[test]
fn what_programs_have_open_and_what_is_nowhere_else_stays() -> Result<()> {
    let script = r#"
write ck.1
must on 1 $SCRFS flush ck.1
# Somebody reads it on one node, so that it stays on all.
on 2 "exec 3< /scr/ck.1/of.2; touch /run/tmp/reading; \
      while [ ! -e /run/tmp/read ]; do sleep 0.05; done; cat <&3 | wc -c > /run/tmp/bytes" &
reader=$!
while ! on 2 test -e /run/tmp/reading; do sleep 0.05; done
# The nodes say so within a second, and before they are short of space.
must on 1 sleep 2
write ck.2
must on 1 $SCRFS wait ck.2 --for protected --timeout 30
must on 1 sleep 3
for node in 1 2 3; do must on $node test -e /scr/ck.1/of.$node; done
must on 2 touch /run/tmp/read
must wait $reader
must on 2 "test \$(cat /run/tmp/bytes) = 20000000"
await_room 21000000
must_not on 2 test -e /scr/ck.1
# Neither of these is in the prefix: a third one that does not fit is the program's trouble.
write ck.3
must on 1 $SCRFS wait ck.3 --for protected --timeout 30
must on 1 mkdir /scr/ck.4.tmp
fill 1 /scr/ck.4.tmp/of.1
must on 1 sleep 3
for step in 2 3; do
    must on 1 "ls /scr/.scr/status | grep -q '^ck.$step.protected'"
    must on 1 test -e /scr/ck.$step/of.1
done
"#;
    let config = two_fit("[flush]\nevery = 0\n");
    job("96MiB", &config, &format!("{WRITE}{script}"))
}

/// A store in which three and a half fit, and flushes of a second: whoever writes the next at once would find it
/// full.
#[test]
fn who_checkpoints_without_a_pause_waits_for_room_that_is_on_its_way() -> Result<()> {
    let script = r#"
for step in 1 2 3 4 5 6 7 8; do write ck.$step; done
must on 2 $SCRFS wait ck.8 --for flushed --timeout 60
must on 1 "grep -q 'has waited for room' /run/scrfs.0/*/daemon.log"
# What is only there takes its time, and nobody waits for what does not come.
must on 1 mkdir /scr/big.tmp
for node in 1 2 3; do fill $node /scr/big.tmp/of.$node; done
must on 1 "cd /scr && timeout 20 mkdir next.tmp"
"#;
    job(
        "105MiB",
        "[flush]\nbandwidth = \"20MiB\"\n",
        &format!("{WRITE}{script}"),
    )
}
