//! A prefix that SCR has written: its datasets are listed, taken in and restarted from, wherever their
//! files lie.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, binary};
use std::fs;
use std::path::Path;

/// Each rank has a directory for all its checkpoints; outputs lie at the top; one has its own directory.
const DATASETS: [(u64, &str, bool, &[&str]); 4] = [
    (1, "ckpt.1", true, &["ckpt.1/rank_0", "ckpt.1/rank_1"]),
    (2, "ckpt.2", true, &["rank_0/ckpt.2", "rank_1/ckpt.2"]),
    (3, "ckpt.3", false, &["rank_0/ckpt.3", "rank_1/ckpt.3"]),
    (4, "plot.4", true, &["plot_4_0.dat", "plot_4_1.dat"]),
];

const SCRIPT: &str = r#"
must() { "$@" || { echo "FAILED: $*"; exit 7; }; }
said() { grep -q "$1" /run/tmp/said || { echo "NOT SAID: $1"; cat /run/tmp/said; exit 7; }; }
$SCRFS list --prefix $P > /run/tmp/said
said '1 ckpt[.]1 checkpoint/scr flushed .* yes'
said '2 ckpt[.]2 checkpoint/scr flushed .* yes'
said '3 ckpt[.]3 checkpoint/scr incomplete .* no'
said '4 plot[.]4 output/scr .* yes'
for name in ckpt.1 ckpt.2 plot.4; do
    must $SCRFS add $name --prefix $P 2>> /run/tmp/said
done
said 'ckpt[.]1 has been read and added'
said 'ckpt[.]2 has been gathered in a directory, read and added'
said 'plot[.]4 has been gathered in a directory, read and added'
$SCRFS add ckpt.3 --prefix $P 2> /run/tmp/said && exit 8
said 'ckpt[.]3.* is not complete'
$SCRFS list --prefix $P > /run/tmp/said
said 'ckpt[.]2 checkpoint flushed .* 2 yes'
said 'plot[.]4 output     flushed .* 2 yes'
must test $P/ckpt.2/rank_1/ckpt.2 -ef $P/rank_1/ckpt.2
must $SCRFS current ckpt.2 --prefix $P
must $SCRFS mount /scr --prefix $P
must test "$(readlink /scr/.scr/restart)" = ../ckpt.2
for rank in 0 1; do
    must cmp /scr/.scr/restart/rank_$rank/ckpt.2 $P/rank_$rank/ckpt.2
    must cmp /scr/ckpt.1/rank_$rank $P/ckpt.1/rank_$rank
    must cmp /scr/plot.4/plot_4_$rank.dat $P/plot_4_$rank.dat
done
must $SCRFS verify ckpt.2
must $SCRFS unmount /scr
must $SCRFS delete ckpt.2 --force --prefix $P
must test ! -e $P/ckpt.2
must test -e $P/rank_0/ckpt.2
"#;

/// A tree of keys as SCR packs it: how many, then each with what is below it.
fn tree(below: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = (below.len() as u32).to_be_bytes().to_vec();
    for (key, below) in below {
        bytes.extend([key.as_bytes(), b"\0", below].concat());
    }
    bytes
}

fn value(text: impl ToString) -> Vec<u8> {
    tree(&[(&text.to_string(), tree(&[]))])
}

fn put(path: &Path, tree: &[u8]) {
    let mut bytes = b"\x95\x1f\xc3\xf5\0\x01\0\x01".to_vec();
    bytes.extend((20 + tree.len() as u64).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(tree);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn write_as_scr(prefix: &Path) {
    let mut all = vec![];
    for (id, name, complete, files) in DATASETS {
        let mut ranks = vec![];
        let mut size = 0;
        for (rank, file) in files.iter().enumerate() {
            let path = prefix.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let bytes = format!("{file} of {name}\n").repeat(10_000);
            size += bytes.len();
            fs::write(path, bytes).unwrap();
            ranks.push((rank.to_string(), tree(&[("FILE", value(file))])));
        }
        let ranks: Vec<_> = ranks
            .iter()
            .map(|(rank, it)| (rank.as_str(), it.clone()))
            .collect();
        let map = tree(&[("LEVEL", value(0)), ("RANK", tree(&ranks))]);
        put(
            &prefix.join(format!(".scr/scr.dataset.{id}/rank2file")),
            &map,
        );
        let is_output = name.starts_with("plot");
        let facts = tree(&[
            ("NAME", value(name)),
            ("FLAG_CKPT", value(u8::from(!is_output))),
            ("FLAG_OUTPUT", value(u8::from(is_output))),
            ("FILES", value(files.len())),
            ("SIZE", value(size)),
        ]);
        let dataset = tree(&[("COMPLETE", value(u8::from(complete))), ("DSET", facts)]);
        all.push((id.to_string(), dataset));
    }
    let all: Vec<_> = all
        .iter()
        .map(|(id, it)| (id.as_str(), it.clone()))
        .collect();
    put(
        &prefix.join(".scr/index.scr"),
        &tree(&[("DSET", tree(&all))]),
    );
}

#[test]
fn what_scr_wrote_is_listed_taken_in_and_restarted_from() {
    let cluster = Cluster::builder()
        .nodes(1)
        .shm_bytes(256 << 20)
        .start()
        .unwrap();
    let site = tempfile::tempdir().unwrap();
    let prefix = site.path().join("prefix");
    write_as_scr(&prefix);
    let output = cluster
        .command(1, "sh")
        .args(["-c", SCRIPT])
        .env("SCRFS", binary("scrfs").unwrap())
        .env("P", &prefix)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
}
