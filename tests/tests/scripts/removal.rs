//! Removing sealed datasets on several nodes: gone everywhere at once, kept as long as they may be
//! needed.

use crate::site::{Site, succeeded};
use anyhow::{Context, Result, ensure};
use scrfs_tests::{Loss, wait_until};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn what_one_node_removes_is_gone_on_all_and_what_is_open_stays_readable() -> Result<()> {
    let site = Site::start(3, "[flush]\nevery = 0\n")?;
    let script = r#"
NODES="1 2 3"
commit a
# A part of it is hidden where it was removed, and nowhere else.
must on 2 rm /scr/a/in/of.1
must_not on 2 test -e /scr/a/in/of.1
must on 1 test -e /scr/a/in/of.1
must on 3 "cd /scr/a && md5sum --check --quiet $SHARED/a"
must_not on 2 "rmdir /scr/a/in 2>/dev/null"
# Who reads goes on, also what lies on another node.
on 3 "exec 3< /scr/a/in/of.1; touch /run/tmp/open; while [ ! -e /run/tmp/go ]; do sleep 0.05; done; \
      md5sum <&3 > /run/tmp/read" &
reader=$!
while ! on 3 test -e /run/tmp/open; do sleep 0.05; done
must on 2 rm -r /scr/a
for node in $NODES; do
    must_not on $node test -e /scr/a
    must has $node a.removed
done
# The name is free at once, for another one, too; and the one before has nothing to do with it.
commit a
for node in $NODES; do
    must on $node "cd /scr/a && tail -n 3 $SHARED/a | md5sum --check --quiet"
done
must on 1 sync /scr/a
must has 1 a.removed
must on 3 touch /run/tmp/go
must wait $reader
must test "$(on 3 "cut -c -32 /run/tmp/read")" = "$(head -n 1 $SHARED/a | cut -c -32)"
# Closed, and a newer one is as safe: nobody will need it.
while has 1 a.removed; do sleep 0.05; done
must on 2 test -d /scr/a
"#;
    succeeded(&site.job(&[], script)?.output()?)
}

#[test]
fn several_nodes_remove_one_dataset_at_once() -> Result<()> {
    let site = Site::start(3, "[flush]\nevery = 0\n")?;
    let script = r#"
NODES="1 2 3"
for turn in 1 2 3 4 5; do
    commit a
    must on 2 "ls -R /scr/a > /dev/null"
    pids=
    for node in $NODES; do on $node rm -rf /scr/a & pids="$pids $!"; done
    for pid in $pids; do must wait $pid; done
    for node in $NODES; do must_not on $node test -e /scr/a; done
done
# Each removes its own file, as it wrote it, and one the directories.
for turn in 1 2 3; do
    commit b
    must on $turn "ls -R /scr/b > /dev/null"
    must on 1 rm /scr/b/in/of.1
    must_not on 1 "rmdir /scr/b/in 2>/dev/null"
    must_not on 1 "rmdir /scr/b 2>/dev/null"
    must on 2 test -e /scr/b/in/of.3
    pids2=
    for node in 2 3; do on $node rm /scr/b/in/of.$node & pids2="$pids2 $!"; done
    for pid in $pids2; do must wait $pid; done
    must on $turn rmdir /scr/b/in
    must on $turn rmdir /scr/b
    for node in $NODES; do must_not on $node test -e /scr/b; done
done
"#;
    succeeded(&site.job(&[], script)?.output()?)
}

/// The second checkpoint does not survive a loss, the first does.
#[test]
fn what_was_removed_comes_back_when_what_was_newer_is_lost() -> Result<()> {
    let config = "[flush]\nevery = 0\n[[checkpoint]]\ninterval = 2\nscheme = \"single\"\n";
    let site = Site::start(4, config)?;
    let script = r#"
if [ ! -e $SHARED/removed ]; then
    NODES="1 2 3"
    commit ckpt.1
    must on 1 sync /scr/ckpt.1
    commit ckpt.2
    must on 1 sync /scr/ckpt.2
    must on 2 rm -r /scr/ckpt.1
    for node in $NODES; do must_not on $node test -e /scr/ckpt.1; done
    must test "$(on 1 readlink /scr/.scr/restart)" = ../ckpt.2
    touch $SHARED/removed
    while [ ! -e $SHARED/go ]; do sleep 0.05; done
    exit 1
fi
NODES="1 2 4"
for node in $NODES; do
    must test "$(on $node readlink /scr/.scr/restart)" = ../ckpt.1
    must on $node "cd /scr/ckpt.1 && md5sum --check --quiet $SHARED/ckpt.1"
    must_not on $node test -e /scr/ckpt.2
done
must_not has 1 ckpt.1.removed
# Rotated again, with one that is as safe: then it goes.
commit ckpt.3
must on 4 rm -r /scr/ckpt.1
must on 1 sync /scr/ckpt.3
while has 1 ckpt.1.removed; do sleep 0.05; done
echo ROTATED
"#;
    let mut job = site.job(&["--spares", "1", "--runs", "2"], script)?;
    let log = site.directory.path().join("log");
    let file = fs::File::create(&log)?;
    let mut child = job
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    let shared = site.directory.path().join("shared");
    let removed = wait_until(Duration::from_secs(60), "the removal", || {
        ensure!(child.try_wait()?.is_none(), "it ended");
        Ok(shared.join("removed").exists().then_some(()))
    });
    let result = removed.and_then(|()| {
        site.cluster.kill(3, Loss::Crash)?;
        fs::write(shared.join("go"), "")?;
        let ended = wait_until(Duration::from_secs(90), "the end", || Ok(child.try_wait()?))?;
        ensure!(ended.success(), "{ended}");
        ensure!(fs::read_to_string(&log)?.contains("ROTATED"), "not rotated");
        Ok(())
    });
    // It may have ended; then these fail.
    let _ = child.kill();
    let _ = child.wait();
    result.with_context(|| fs::read_to_string(&log).unwrap_or_default())
}

/// A record says that it was flushed; the caches have the last copy.
#[test]
fn what_somebody_removes_from_the_prefix_is_flushed_again_before_it_may_go() -> Result<()> {
    let config = "[flush]\nevery = 1\n[[store]]\npath = \"tmpfs\"\ncount = 1\n";
    let site = Site::start(3, config)?;
    let script = r#"
NODES="1 2 3"
whole() { (cd "$PREFIX/$1" && md5sum --check --quiet "$SHARED/$1"); }
commit a
while ! has 1 a.flushed; do sleep 0.05; done
must whole a
# It is the newest: somebody has to notice.
rm -r "$PREFIX/a"
while ! test -e "$PREFIX/a"; do sleep 0.05; done
must whole a
while ! has 1 a.flushed; do sleep 0.05; done
# It is beyond the count as soon as a newer one is as safe, which comes before anybody looks.
rm -r "$PREFIX/a"
commit b
while ! has 1 a.evicted; do must_not has 1 a.lost; sleep 0.05; done
must whole a
must whole b
"#;
    succeeded(&site.job(&[], script)?.output()?)
}
