//! Several stores on a node: where datasets go, what moves under pressure, what comes back from the slower
//! store when the faster one is gone. With the real daemon and the real coordinator.

#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use scrfs_tests::{Cluster, binary};
use std::fs;
use std::process::Output;

/// `$HOME_STORE` and `$FURTHER` are the job's directories in the two stores.
const PRELUDE: &str = r#"
HOME_STORE=/run/scrfs.0/default
FURTHER=/run/ssd/scrfs.0/default
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
must_not() { if "$@"; then echo "SUCCEEDED: $*"; exit 7; fi; }
until_so() { for try in $(seq 600); do "$@" && return; sleep 0.05; done; echo "NEVER: $*"; ls -lR /run/scrfs.0/default/datasets /run/ssd | head -60; cat /run/scrfs.0/default/daemon.log | tail -40; exit 7; }
# The number of a dataset, and in which store it lies.
number() {
    for try in $(seq 100); do
        # Its file has another name whenever its state changes.
        found=$(cat /scr/.scr/status/$1.* 2>/dev/null | sed -n 's/.*"id": *\([0-9]*\).*/\1/p' | head -n 1)
        [ -n "$found" ] && echo $found && return
    done
}
in_home() { id=$(number $1); test -d $HOME_STORE/datasets/$id && test ! -L $HOME_STORE/datasets/$id && test ! -e $FURTHER/datasets/$id; }
in_further() { id=$(number $1); test "$(readlink $HOME_STORE/datasets/$id)" = $FURTHER/datasets/$id && test -d $FURTHER/datasets/$id; }
commit() { must mkdir /scr/$1.tmp && must sh -c "head -c $2 /dev/urandom > /scr/$1.tmp/data" && must mv -T /scr/$1.tmp /scr/$1; }
shows() { test "$(ls /scr | tr '\n' ' ')" = "$* "; }
is_empty() { test -z "$(ls -A $1 2>/dev/null)"; }
available() { df --output=avail -B1 /scr | tail -n 1; }
total() { df --output=size -B1 /scr | tail -n 1; }
# Fills a file until there is no space.
fill() { said=$(LC_ALL=C dd if=/dev/urandom of=$1 bs=64k 2>&1) && { echo "no end: $1"; exit 8; }; case $said in *"No space"*) ;; *) echo "not full: $said"; exit 8;; esac; }
"#;

const CONFIG: &str = r#"
[[store]]
path = "tmpfs"
capacity = "48MiB"
count = 20
[[store]]
path = "/run/ssd"
capacity = "100%"
count = 20
[flush]
every = 0
"#;

/// A node of its own with a private tmpfs and a slower store of 96 MiB.
struct Node {
    cluster: Cluster,
    site: tempfile::TempDir,
}

impl Node {
    fn new(config: &str) -> Result<Self> {
        let cluster = Cluster::builder().nodes(1).shm_bytes(64 << 20).start()?;
        let site = tempfile::tempdir()?;
        let prefix = site.path().join("prefix");
        fs::create_dir(&prefix)?;
        fs::write(prefix.join(".scrfs.toml"), config)?;
        let node = Self { cluster, site };
        node.sh("mkdir /run/ssd && mount -t tmpfs -o size=96m,inode64,mode=755 none /run/ssd")?;
        Ok(node)
    }

    fn try_sh(&self, script: &str) -> Result<Output> {
        let scrfs = binary("scrfs")?;
        let mut command = self.cluster.command(1, "sh");
        command
            .args(["-c", &format!("{PRELUDE}{script}")])
            .env("SCRFS", &scrfs)
            .env("P", self.site.path().join("prefix"));
        command.env("MOUNT", format!("{} mount /scr --prefix", scrfs.display()));
        command
            .output()
            .with_context(|| format!("running {script}"))
    }

    fn sh(&self, script: &str) -> Result<String> {
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
}

#[test]
fn what_the_fast_store_is_short_of_goes_to_the_next_and_readers_keep_what_they_have() -> Result<()>
{
    let node = Node::new(CONFIG)?;
    node.sh("must $MOUNT $P")?;
    node.sh(
        r#"
# Both together.
all=$(( (48 + 96) << 20 ))
[ $(total) -le $all ] && [ $(total) -gt $((all - 100000)) ] || { echo "total $(total)"; exit 9; }
must test "$($SCRFS status | grep -c '^store: ')" = 2
commit ck.1 12000000
must in_home ck.1
sum=$(sha256sum < /scr/ck.1/data)
# Somebody reads it all the time, and has it mapped nowhere else.
exec 3< /scr/ck.1/data
commit ck.2 12000000
exec 4< /scr/ck.2/data
exec 5< /scr/ck.2
# Another one like these would not fit with something to spare, and nothing is in the prefix. All are being
# read: then it is the oldest that moves.
must mkdir /scr/ck.3.tmp && must sh -c "head -c 12000000 /dev/urandom > /scr/ck.3.tmp/data"
exec 6< /scr/ck.3.tmp/data
must mv -T /scr/ck.3.tmp /scr/ck.3
until_so in_further ck.1
must in_home ck.3
test "$(sha256sum <&3)" = "$sum" || { echo "the reader sees other bytes"; exit 9; }
test "$(sha256sum < /scr/ck.1/data)" = "$sum" || { echo "moved wrong"; exit 9; }
# One device, and no number twice.
must test "$(stat -c %d /scr/ck.1/data)" = "$(stat -c %d /scr/ck.3/data)"
must test "$(stat -c %i /scr/ck.*/data /scr/ck.* | sort | uniq -d)" = ""
must test "$(ls -i /scr/ck.1 | sed 's/ .*//')" = "$(stat -c %i /scr/ck.1/data)"
must test "$(ls /scr/ck.1)" = data
until_so is_empty $HOME_STORE/trash
exec 3<&- 4<&- 5<&- 6<&-
# As a restart finds it.
must $SCRFS unmount /scr
must $MOUNT $P
must in_further ck.1
test "$(sha256sum < /scr/ck.1/data)" = "$sum" || { echo "other bytes after a restart"; exit 9; }
must test "$(readlink /scr/.scr/restart)" = ../ck.3
must $SCRFS unmount /scr --now --purge
must test ! -e $HOME_STORE
must test "$(ls -A $FURTHER)" = daemon.lock
"#,
    )?;
    Ok(())
}

#[test]
fn there_is_no_space_at_the_sum_of_both() -> Result<()> {
    let node = Node::new(CONFIG)?;
    node.sh("must $MOUNT $P")?;
    node.sh(r#"
must mkdir /scr/a.tmp
until_so sh -c "[ \$(df --output=avail -B1 /scr | tail -n 1) -lt $(( (48 + 96) << 20 )) ]"
must in_home a
room=$(available)
fill /scr/a.tmp/data
a=$(stat -c %s /scr/a.tmp/data)
# Exactly what the first store had for programs.
[ $a -gt $((38 << 20)) ] && [ $a -le $((48 << 20)) ] || { echo "a has $a"; exit 9; }
must mkdir /scr/b.tmp
must in_further b
fill /scr/b.tmp/data
b=$(stat -c %s /scr/b.tmp/data)
left=$((room - a - b))
[ $left -gt -100000 ] && [ $left -lt $((1 << 20)) ] || { echo "$room, a has $a, b has $b"; exit 9; }
[ $(available) -lt 70000 ] || { echo "left: $(available)"; exit 9; }
sums=$(cat /scr/a.tmp/data /scr/b.tmp/data | sha256sum)
# What was accepted is committed, in either store.
must mv -T /scr/a.tmp /scr/a
must mv -T /scr/b.tmp /scr/b
must test "$(cat /scr/a/data /scr/b/data | sha256sum)" = "$sums"
"#)?;
    Ok(())
}

#[test]
fn a_node_that_lost_its_memory_has_what_lies_on_its_disk() -> Result<()> {
    let rules = "[[checkpoint]]\ninterval = 2\nstore = '/run/ssd'\n\
                 [[checkpoint]]\noutput = true\nstore = '/run/ssd'\n\
                 [[dataset]]\nmatch = 'out*'\nclass = 'output'\n";
    let node = Node::new(&format!("{CONFIG}{rules}"))?;
    node.sh("must $MOUNT $P")?;
    node.sh(r#"
for step in 1 2 3; do commit ck.$step 3000000; done
commit out.1 1000000
must in_home ck.1
must in_further ck.2
must in_home ck.3
must in_further out.1
must mkdir /scr/ck.4.tmp
must in_further ck.4
echo half > /scr/ck.4.tmp/data
must $SCRFS wait ck.2 --for protected --timeout 30
must $SCRFS wait out.1 --for flushed --timeout 30
sha256sum < /scr/ck.2/data > /run/tmp/sum
must $SCRFS unmount /scr --now
# The machine was started anew: what was in memory is gone.
must umount $HOME_STORE
must test ! -e $HOME_STORE/epoch
must $MOUNT $P
must test "$(sha256sum < /scr/ck.2/data)" = "$(cat /run/tmp/sum)"
must test "$(readlink /scr/.scr/restart)" = ../ck.2
must_not test -e /scr/ck.1
must_not test -e /scr/ck.3
must test "$(ls /scr/.scr/incomplete)" = ck.4.tmp
# No number comes twice, and the next is expected where it belongs.
commit ck.5 3000000
[ $(number ck.5) -gt 5 ] || { echo "number $(number ck.5)"; exit 9; }
must test "$(readlink /scr/.scr/restart)" = ../ck.5
"#)?;
    Ok(())
}

/// At every attempt the coordinator that moves is killed amid the copy; the next one begins anew.
#[test]
fn a_coordinator_killed_while_a_dataset_moves_leaves_one_that_counts() -> Result<()> {
    let node = Node::new(CONFIG)?;
    node.sh("must mount -o remount,size=320m /run/ssd && must $MOUNT $P")?;
    node.sh(
        r#"
coordinator() {
    daemon=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' $HOME_STORE/daemon.json)
    for pid in $(cat /proc/$daemon/task/*/children); do
        tr '\0' ' ' < /proc/$pid/cmdline | grep -q 'scrfs-coordinator' && echo $pid && return
    done
}
same() { for each in $(seq $1); do test "$(sha256sum < /scr/ck.$each/data)" = "$(cat /run/tmp/sum.$each)" || return 1; done; }
# Of this size each one has to move as soon as it is sealed; its number is that of the step. On a busy machine
# some are moved before anybody sees it.
caught() { ls /run/tmp/caught.* 2>/dev/null | wc -l; }
step=0
while [ $(caught) -lt 2 ] && [ $step -lt 12 ]; do
    step=$((step + 1))
    until_so test -n "$(coordinator)"
    pid=$(coordinator)
    ( until [ -e $FURTHER/moving/datasets/$step ] || [ -e $FURTHER/datasets/$step ]; do :; done
      kill -9 $pid
      while [ -n "$(tr -d '\0' 2>/dev/null < /proc/$pid/cmdline)" ]; do :; done
      # The next one takes it away.
      if [ -e $FURTHER/moving/datasets/$step ]; then touch /run/tmp/caught.$step; fi ) 2>/dev/null &
    commit ck.$step 20000000
    sha256sum < /scr/ck.$step/data > /run/tmp/sum.$step
    until_so in_further ck.$step
    wait $!
    until_so in_further ck.$step
    must same $step
    must test "$(readlink /scr/.scr/restart)" = ../ck.$step
done
must test $(caught) -ge 2
until_so is_empty $HOME_STORE/trash
must is_empty $FURTHER/moving/datasets
must $SCRFS unmount /scr
must $MOUNT $P
must same $step
must in_further ck.1
must in_further ck.$step
"#,
    )?;
    Ok(())
}

/// `on N WORDS` runs WORDS on node N, with the prelude above; `write NAME` makes a checkpoint with a file of
/// each node.
const JOB: &str = r#"
HOME_STORE=/run/scrfs.0/default
FURTHER=/run/ssd/scrfs.0/default
on() { node=$1; shift; "$RSH" "node$node" ". $LIB; $*"; }
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
must_not() { if "$@"; then echo "SUCCEEDED: $*"; exit 7; fi; }
write() {
    must on 1 mkdir /scr/$1.tmp
    for node in $NODES; do must on $node "head -c 4000000 /dev/urandom > /scr/$1.tmp/of.$node"; done
    must on 2 mv -T /scr/$1.tmp /scr/$1
    must on 1 $SCRFS wait $1 --for protected --timeout 60
}
"#;

/// A job on several nodes, each with a private tmpfs and a slower store; a directory that all nodes share.
struct Job {
    cluster: Cluster,
    site: tempfile::TempDir,
}

impl Job {
    fn new(nodes: usize, config: &str) -> Result<Self> {
        let cluster = Cluster::builder()
            .nodes(nodes)
            .shm_bytes(64 << 20)
            .start()?;
        let site = tempfile::tempdir()?;
        fs::create_dir(site.path().join("prefix"))?;
        fs::write(site.path().join("prefix/.scrfs.toml"), config)?;
        fs::write(site.path().join("library"), PRELUDE)?;
        let job = Self { cluster, site };
        for node in 1..=nodes {
            job.sh(node, "mkdir /run/ssd")?;
        }
        Ok(job)
    }

    fn sh(&self, node: usize, script: &str) -> Result<()> {
        let mut command = self.cluster.command(node, "sh");
        let status = command.args(["-c", script]).status()?;
        ensure!(status.success(), "node {node}: {script}: {status}");
        Ok(())
    }

    /// `scrfs run` of a script.
    fn run(&self, script: &str) -> Result<()> {
        let nodes = self.cluster.nodes();
        let all: Vec<_> = (1..=nodes).map(|node| node.to_string()).collect();
        let path = self.site.path().join("program");
        let all = all.join(" ");
        fs::write(&path, format!("NODES='{all}'\n{JOB}{script}"))?;
        let prefix = self.site.path().join("prefix");
        let output = self
            .cluster
            .command(0, binary("scrfs")?)
            .args(["run", "--nodes", &format!("node[1-{nodes}]"), "--prefix"])
            .arg(&prefix)
            .args(["--job", "default"])
            .arg("--rsh")
            .arg(self.cluster.rsh())
            .args(["--", "sh"])
            .arg(&path)
            .arg("{hosts}")
            .env("RSH", self.cluster.rsh())
            .env("LIB", self.site.path().join("library"))
            .env("SHARED", self.site.path())
            .env("PREFIX", &prefix)
            .env("SCRFS", binary("scrfs")?)
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
}

#[test]
fn two_nodes_keep_a_count_in_each_of_two_stores_by_rule() -> Result<()> {
    let job = Job::new(
        2,
        "[[store]]\npath = 'tmpfs'\ncapacity = '64MiB'\ncount = 1\n\
         [[store]]\npath = '/run/ssd'\ncapacity = '64MiB'\ncount = 2\n\
         [[checkpoint]]\ninterval = 3\nstore = '/run/ssd'\n\
         [flush]\nevery = 0\n",
    )?;
    job.run(
        r#"
for step in 1 2 3 4 5 6 7 8; do write ck.$step; done
# Of the first store the newest, of the second the newest two.
for node in 1 2; do
    must on $node until_so shows ck.3 ck.6 ck.8
    must on $node in_further ck.3
    must on $node in_further ck.6
    must on $node in_home ck.8
    must on $node "test -s $FURTHER/datasets/\$(number ck.6)/slot.$((node - 1))/parity"
    must on $node "test \$(stat -c %s /scr/ck.6/of.2) = 4000000"
    must on $node "test \"\$(stat -c %i /scr/ck.*/of.* | sort | uniq -d)\" = ''"
done
must test "$(on 1 'sha256sum < /scr/ck.6/of.2')" = "$(on 2 'sha256sum < /scr/ck.6/of.2')"
# What is in the second store is flushed from there.
must on 2 $SCRFS flush ck.6
must test "$(sha256sum < $PREFIX/ck.6/of.2)" = "$(on 2 'sha256sum < /scr/ck.6/of.2')"
"#,
    )
}

/// Each job finds another store of one node gone, as after a restart of that node, or with a new disk. What
/// was in it is made of what the others have: also by the next job, of what was made by the one before.
#[test]
fn a_store_that_one_node_of_several_has_lost_is_filled_again() -> Result<()> {
    let job = Job::new(
        3,
        "[[store]]\npath = 'tmpfs'\ncapacity = '64MiB'\ncount = 20\n\
         [[store]]\npath = '/run/ssd'\ncapacity = '64MiB'\ncount = 20\n\
         [[checkpoint]]\ninterval = 2\nstore = '/run/ssd'\n\
         [flush]\nevery = 0\n",
    )?;
    job.run(
        r#"
for step in 1 2 3; do
    write ck.$step
    for node in $NODES; do
        on $node "cd /scr && sha256sum ck.$step/of.$node" >> $SHARED/sums
    done
done
"#,
    )?;
    let home = "umount /run/scrfs.0/default && test ! -e /run/scrfs.0/default/epoch";
    for (turn, (node, lost)) in [(2, home), (1, "rm -r /run/ssd/scrfs.0"), (3, home)]
        .into_iter()
        .enumerate()
    {
        let step = turn + 4;
        job.sh(node, lost)?;
        let script = r#"
must test "$(on LOST readlink /scr/.scr/restart)" = ../ck.$((STEP - 1))
must test "$(wc -l < $SHARED/sums)" = $(((STEP - 1) * 3))
for node in $NODES; do
    must on $node "cd /scr && sha256sum --check --quiet $SHARED/sums"
done
for step in $(seq $((STEP - 1))); do
    must on LOST $SCRFS wait ck.$step --for protected --timeout 60
    in_store=in_home
    [ $((step % 2)) = 0 ] && in_store=in_further
    for node in $NODES; do
        must on $node $in_store ck.$step
        must on $node "test -s $HOME_STORE/datasets/\$(number ck.$step)/slot.$((node - 1))/parity"
    done
done
# No number is given twice.
write ck.STEP
must on 1 "test \$(number ck.STEP) -gt \$(number ck.$((STEP - 1)))"
for node in $NODES; do
    on $node "cd /scr && sha256sum ck.STEP/of.$node" >> $SHARED/sums
done
"#;
        let script = script.replace("LOST", &node.to_string());
        job.run(&script.replace("STEP", &step.to_string()))?;
    }
    Ok(())
}
