//! How often the prefix is read: whatever wants a dataset of it, each byte comes from there once.

use crate::site::{Site, succeeded};
use anyhow::{Result, ensure};
use scrfs_tests::Foreign;
use std::fs;

const CONFIG: &str = "[flush]\nevery = 1\n[[store]]\npath = \"tmpfs\"\ncount = 3\n";
/// A large file of each node, and small ones.
const TWO: &str = r#"
NODES="1 2 3"
for name in a b; do
    must on 1 "mkdir /scr/$name.tmp && mkdir /scr/$name.tmp/in"
    for node in $NODES; do
        must on $node "cd /scr/$name.tmp/in && head -c ${node}1000001 /dev/urandom > of.$node &&
            for n in 1 2 3 4 5 6 7 8; do head -c 70001 /dev/urandom > of.$node.\$n; done"
        must on $node "cd /scr/$name.tmp && md5sum in/of.$node in/of.$node.*" >> "$SHARED/$name"
    done
    must on 1 mv -T "/scr/$name.tmp" "/scr/$name"
done
while ! has 1 a.flushed || ! has 1 b.flushed; do sleep 0.05; done
"#;
/// `b` was fetched for a restart, `a` is fetched for who opens it: all nodes at once.
const ALL_READ_ALL: &str = r#"
NODES="1 2 3"
must test "$(on 1 readlink /scr/.scr/restart)" = ../b
must_not on 1 test -e /scr/a
for name in a b; do
    pids=
    for node in $NODES; do
        on $node "cat /scr/$name/in/of.1.1 > /run/tmp/first && cd /scr/$name && md5sum --check --quiet $SHARED/$name" &
        pids="$pids $!"
    done
    for pid in $pids; do must wait $pid; done
done
"#;

#[test]
fn each_byte_of_a_fetch_is_read_once_from_the_prefix_whoever_wants_it() -> Result<()> {
    let site = Site::start(3, CONFIG)?;
    succeeded(&site.job(&[], TWO)?.output()?)?;
    // The same prefix, on a file system that counts, on nodes that have nothing.
    let directory = site.directory.path();
    let names = ["below", "prefix", "control"];
    let [below, prefix, control] = names.map(|name| directory.join(name));
    fs::rename(&prefix, &below)?;
    fs::create_dir(&prefix)?;
    fs::create_dir(&control)?;
    Foreign::count_reads(&control)?;
    let site = site.on_other_nodes()?;
    let mount = |node| Foreign::loopback(&site.cluster, node, &below, &prefix, &control);
    let counting: Vec<Foreign> = (0..=3).map(mount).collect::<Result<_>>()?;
    succeeded(&site.job(&[], ALL_READ_ALL)?.output()?)?;
    drop(counting);
    let reads = Foreign::reads(&control)?;
    for name in ["a", "b"] {
        let files = fs::read_dir(below.join(name).join("in"))?;
        let lengths = files.map(|file| Ok(file?.metadata()?.len()));
        let bytes: u64 = lengths.sum::<Result<u64>>()?;
        let of_it = below.join(name).display().to_string() + "/";
        let of_it = reads.iter().filter(|(_, path)| path.starts_with(&of_it));
        let read: u64 = of_it.map(|(bytes, _)| bytes).sum();
        println!("{name}: {read} bytes were read of {bytes}");
        ensure!(read >= bytes, "{name}: {read} of {bytes} were seen");
        let most = bytes + bytes / 20;
        ensure!(read <= most, "{name}: {read} bytes were read of {bytes}");
    }
    Ok(())
}
