//! More nodes than one coordinator speaks with: some are reached by others only.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, binary};
use std::fs;

/// Ranks 9 and 10 are children of rank 1.
const NODES: usize = 11;

const PROGRAM: &str = r#"
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
must "$RSH" node11 mkdir /scr/a.tmp
for node in $(seq 11); do must "$RSH" node$node "head -c 300001 /dev/urandom > /scr/a.tmp/of.$node && \
    cd /scr/a.tmp && md5sum of.$node > sum.$node"; done
must "$RSH" node10 "mv -T /scr/a.tmp /scr/a && sync /scr/a"
for node in 1 2 10 11; do
    must "$RSH" node$node "cd /scr/a && cat sum.* | md5sum --check --quiet && test \$(ls | wc -l) = 22"
    must "$RSH" node$node "test \$(ls /scr/.scr/nodes | wc -l) = 11"
done
must "$RSH" node11 "SCRFS verify a --json | grep -q '\"damaged\": 0'"
must "$RSH" node11 rm -r /scr/a
must "$RSH" node3 "test ! -e /scr/a"
"#;

#[test]
fn nodes_that_the_leader_reaches_by_others_take_part_as_all_do() {
    let cluster = Cluster::builder()
        .nodes(NODES)
        .shm_bytes(96 << 20)
        .start()
        .unwrap();
    let site = tempfile::tempdir().unwrap();
    let prefix = site.path().join("prefix");
    fs::create_dir(&prefix).unwrap();
    let scrfs = binary("scrfs").unwrap();
    let program = PROGRAM.replace("SCRFS", scrfs.to_str().unwrap());
    let output = cluster
        .command(0, scrfs)
        .args(["run", "--nodes", "node[1-11]", "--prefix"])
        .arg(&prefix)
        .arg("--rsh")
        .arg(cluster.rsh())
        .args(["--", "sh", "-c", &program])
        .env("RSH", cluster.rsh())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
}
