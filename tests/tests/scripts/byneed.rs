//! Opening what only the prefix has: it comes by itself, on any node, and is in nobody's way before.

use crate::site::{Site, succeeded};
use anyhow::Result;

const CONFIG: &str = "[flush]\nevery = 1\n[restart]\nfetch = false\n\
    [[store]]\npath = \"tmpfs\"\ncount = 2\n";

/// Four checkpoints, of which the caches keep two.
const FOUR: &str = r#"
NODES="1 2 3"
for name in a b c d; do commit $name; done
while ! has 1 a.evicted || ! has 1 b.evicted; do sleep 0.05; done
while ! has 1 d.flushed; do sleep 0.05; done
"#;

#[test]
fn a_file_of_an_evicted_dataset_is_there_for_who_opens_it() -> Result<()> {
    let site = Site::start(3, CONFIG)?;
    let script = r#"
# Its name is free, and it is not listed.
must_not on 2 test -e /scr/a
must_not on 2 "ls /scr | grep -qx a"
# Any file on any node.
must on 2 "md5sum < /scr/a/in/of.3 > /run/tmp/sum"
must test "$(on 2 "cut -c -32 /run/tmp/sum")" = "$(tail -n 1 "$SHARED/a" | cut -c -32)"
for node in $NODES; do must on $node "cd /scr/a && md5sum --check --quiet $SHARED/a"; done
# Also asked for by its path; on all nodes at once.
pids=
for node in $NODES; do on $node "cp /scr/b/in/of.1 /run/tmp/copy" & pids="$pids $!"; done
for pid in $pids; do must wait $pid; done
for node in $NODES; do must on $node "cmp /run/tmp/copy $PREFIX/b/in/of.1"; done
# They stay, though two newer ones are as safe: somebody wanted them.
commit e
while ! has 1 c.evicted; do sleep 0.05; done
must has 1 a.flushed
must has 2 b.flushed
# What is not there is not there.
must_not on 1 "cat /scr/f/g 2>/dev/null"
must_not on 1 "cat /scr/c/in/of.4 2>/dev/null"
must has 1 c.flushed
"#;
    succeeded(&site.job(&[], &format!("{FOUR}{script}"))?.output()?)
}

#[test]
fn what_an_earlier_job_left_is_read_when_opened_and_its_names_are_free() -> Result<()> {
    let site = Site::start(3, CONFIG)?;
    succeeded(&site.job(&[], FOUR)?.output()?)?;
    let site = site.on_other_nodes()?;
    let script = r#"
NODES="1 2 3"
must test -z "$(on 1 "ls /scr")"
must on 3 "cmp /scr/a/in/of.2 $PREFIX/a/in/of.2"
must on 1 "cd /scr/a && md5sum --check --quiet $SHARED/a"
# Made anew under an old name, which nobody has opened: by mkdir, by mv, and by who looks before.
rm "$SHARED/b"
must_not on 2 test -d /scr/b
commit b
must on 3 "cd /scr/b && md5sum --check --quiet $SHARED/b"
must on 1 mkdir /scr/c
must on 1 rmdir /scr/c
# Whoever removes it wants to have it no more.
must on 2 rm -r /scr/a
while on 1 "ls /scr/.scr/status | grep -q '^a\.'"; do sleep 0.05; done
must_not on 2 "cat /scr/a/in/of.2 2>/dev/null"
"#;
    succeeded(&site.job(&[], script)?.output()?)?;
    let directory = site.directory.path();
    let sums = std::fs::read_to_string(directory.join("shared/b"))?;
    anyhow::ensure!(sums.lines().count() == 3, "{sums}");
    Ok(())
}
