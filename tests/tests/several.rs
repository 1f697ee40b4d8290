//! Several nodes, one dataset: what programs on different nodes see of each other's directories and
//! renames. The program is a shell script that reaches the nodes of its job by the remote shell.

#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use scrfs_tests::{Cluster, binary};
use std::fs;

/// `on N WORDS` runs WORDS on node N; `must` stops the script when a command fails.
const PRELUDE: &str = r#"
on() { node=$1; shift; "$RSH" "node$node" "$@"; }
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
must_not() { if "$@"; then echo "SUCCEEDED: $*"; exit 7; fi; }
"#;

/// Runs a script as the program of a job on three nodes, with a grace time of two seconds.
fn job(script: &str) -> Result<()> {
    let cluster = Cluster::builder().nodes(3).shm_bytes(256 << 20).start()?;
    let site = tempfile::tempdir()?;
    let prefix = site.path().join("prefix");
    fs::create_dir(&prefix)?;
    let path = site.path().join("program");
    fs::write(&path, format!("{PRELUDE}{script}"))?;
    let output = cluster
        .command(0, binary("scrfs")?)
        .args(["run", "--nodes", "node[1-3]", "--prefix"])
        .arg(&prefix)
        .arg("--rsh")
        .arg(cluster.rsh())
        .args(["--", "sh"])
        .arg(&path)
        .arg("{hosts}")
        .env("RSH", cluster.rsh())
        .env("SCRFS_COMMIT_GRACE_SECONDS", "2")
        .env("SCR_CHECKPOINT_INTERVAL", "3")
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
fn a_directory_made_on_one_node_is_there_on_all_and_one_rename_commits_everywhere() -> Result<()> {
    job(r#"
must on 1 mkdir /scr/a.tmp
must on 2 mkdir /scr/a.tmp/sub
for node in 1 2 3; do must on $node "echo $node > /scr/a.tmp/sub/of.$node"; done
must on 3 mv -T /scr/a.tmp /scr/a
for node in 1 2 3; do
    must on $node "test \"\$(cat /scr/a/sub/of.$node)\" = $node"
    must_not on $node "touch /scr/a/more 2>/dev/null"
    must_not on $node test -e /scr/a.tmp
    must on $node "ls /scr/.scr/status | grep -q '^a[.]'"
done
must on 1 "test \"\$(ls /scr/.scr/nodes | wc -l)\" = 3"
"#)
}

#[test]
fn every_node_lists_and_reads_the_files_of_all() -> Result<()> {
    job(r#"
must on 1 mkdir /scr/a.tmp
must on 2 mkdir /scr/a.tmp/sub
for node in 1 2 3; do
    must on $node "cd /scr/a.tmp/sub && head -c ${node}500001 /dev/urandom > of.$node"
    must on $node "cd /scr/a.tmp/sub && md5sum of.$node > sum.$node && ln -s of.$node link.$node"
    must on $node "truncate -s 40M /scr/a.tmp/sub/holes.$node"
    must on $node "echo end >> /scr/a.tmp/sub/holes.$node"
done
# Somebody is inside all the time.
on 1 "cd /scr/a.tmp/sub && touch /run/tmp/inside && while [ ! -e /run/tmp/go ]; do sleep 0.05; done; \
      ls | wc -l > /run/tmp/seen" &
inside=$!
while ! on 1 test -e /run/tmp/inside; do sleep 0.05; done
must on 3 mv -T /scr/a.tmp /scr/a
must on 1 touch /run/tmp/go
must wait $inside
must on 1 "test \"\$(cat /run/tmp/seen)\" = 12"
for node in 1 2 3; do
    must on $node "test \"\$(find /scr/a | wc -l)\" = 14"
    must on $node "cd /scr/a/sub && cat sum.1 sum.2 sum.3 | md5sum --check --quiet"
    must on $node "cd /scr/a/sub && for n in 1 2 3; do cmp of.\$n link.\$n; done"
    must on $node "cd /scr/a/sub && for n in 1 2 3; do test \"\$(tail -n 1 holes.\$n | tr -d '\\0')\" = end; done"
    must on $node "cp -r /scr/a/sub /run/tmp/copy && cd /run/tmp/copy && cat sum.? | md5sum -c --quiet"
    must_not on $node "touch /scr/a/sub/of.1 2>/dev/null"
done
"#)
}

#[test]
fn a_rename_waits_for_writers_elsewhere_and_gives_up_after_the_grace_time() -> Result<()> {
    job(r#"
must on 1 mkdir /scr/a.tmp
# A writer that goes on for longer than the grace time.
on 2 "exec 3> /scr/a.tmp/slow; echo half >&3; echo open > /run/tmp/open; \
      while [ ! -e /run/tmp/go ]; do sleep 0.05; done; echo rest >&3" &
writer=$!
while ! on 2 test -e /run/tmp/open; do sleep 0.05; done
said=$(on 1 mv -T /scr/a.tmp /scr/a 2>&1) && exit 8
case $said in *busy*) ;; *) echo "not busy: $said"; exit 8;; esac
# Nothing is lost by that: the dataset is open as before.
must on 1 "echo more > /scr/a.tmp/other"
must on 3 test -d /scr/a.tmp
# Now it ends while the rename waits.
on 1 mv -T /scr/a.tmp /scr/a &
rename=$!
must on 2 touch /run/tmp/go
must wait $writer
must wait $rename
must on 2 "test \"\$(cat /scr/a/slow)\" = \"\$(printf 'half\nrest')\""
"#)
}

#[test]
fn the_same_rename_on_every_node_succeeds_everywhere_and_another_is_refused() -> Result<()> {
    let program = binary("scrfs-workload")?;
    let rename = format!("{} rename", program.display());
    job(&r#"
must on 1 mkdir /scr/a.tmp
for node in 1 2 3; do must on $node "echo $node > /scr/a.tmp/of.$node"; done
for node in 1 2 3; do on $node RENAME /scr/a.tmp /scr/a & pids="$pids $!"; done
for pid in $pids; do must wait $pid; done
# Also when it comes late.
must on 2 RENAME /scr/a.tmp /scr/a
must_not on 2 "RENAME /scr/a.tmp /scr/b 2>/dev/null"
must on 3 mkdir /scr/b.tmp
must_not on 1 "RENAME /scr/b.tmp /scr/a 2>/dev/null"
must on 2 test -d /scr/b.tmp
must on 1 test -e /scr/a/of.1
"#
    .replace("RENAME", &rename))
}

#[test]
fn a_pointer_file_is_the_same_on_all_nodes_after_close() -> Result<()> {
    job(r#"
must on 1 "echo step_1 > /scr/latest"
for node in 1 2 3; do must on $node "test \"\$(cat /scr/latest)\" = step_1"; done
must on 2 "echo step_2 > /scr/latest.tmp && mv /scr/latest.tmp /scr/latest"
must on 3 "ln -s step_2 /scr/best.tmp && mv -T /scr/best.tmp /scr/best"
for node in 1 2 3; do
    must on $node "test \"\$(cat /scr/latest)\" = step_2"
    must on $node "test \"\$(readlink /scr/best)\" = step_2"
    must_not on $node test -e /scr/latest.tmp
    must_not on $node "mkdir /scr/latest 2>/dev/null"
done
must on 3 rm /scr/latest
for node in 1 2 3; do must_not on $node test -e /scr/latest; done
must on 1 "chmod 600 /scr/best 2>/dev/null; mkdir /scr/latest"
must_not on 2 "echo x > /scr/latest 2>/dev/null"
"#)
}

/// Two processes on each node ask as fast as they can, and not in step; one of them does what it is told.
#[test]
fn all_processes_of_all_nodes_are_told_the_same_in_each_round() -> Result<()> {
    job(r#"
cat > "$0.asker" <<'END'
said=
count=0
while [ $count -lt 120 ]; do
    count=$((count + 1))
    read answer < /scr/.scr/need_checkpoint || exit 9
    said=$said$answer
    if [ "$answer$1" = 1obeys ]; then
        mkdir /scr/c.$count.tmp && mv -T /scr/c.$count.tmp /scr/c.$count || exit 9
    fi
done
echo $said
END
for node in 1 2 3; do
    for who in obeys looks; do
        test $node$who = 3obeys && how=obeys || how=looks
        on $node "sh $0.asker $how" > "$0.$node.$who" & pids="$pids $!"
    done
done
for pid in $pids; do must wait $pid; done
must test "$(cat $0.?.* | wc -l)" = 6
sort -u $0.?.*
must test "$(sort -u $0.?.* | wc -l)" = 1
# Due from the third round on, until one is begun.
must grep -q '^001.*10.*1' $0.1.looks
"#)
}
