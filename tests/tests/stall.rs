//! What a program waits for one checkpoint: its own writes and the rename, beside the same writes to a plain tmpfs.
//! A measurement, not a test: `cargo test --test stall -- --ignored --nocapture` prints it.

#![allow(clippy::unwrap_used)]

use scrfs_tests::{Cluster, binary};

/// Each of four nodes writes eight files of 32 MiB: to /dev/shm, then to a dataset that is committed; when that is
/// protected, again. The commit is measured where it is asked for, without what it takes to get there.
const PROGRAM: &str = r#"
ms() { echo $(($(date +%s%N) / 1000000)); }
for n in 1 2 3 4; do RSH node$n "head -c 32M /dev/urandom > /run/tmp/32M"; done
write() {
    begun=$(ms)
    for n in 1 2 3 4; do
        RSH node$n "for f in 1 2 3 4 5 6 7 8; do cp /run/tmp/32M $1/of.$n.\$f; done" &
    done
    wait
    took=$(($(ms) - begun))
}
for step in 1 2 3 4 5 6 7 8 9; do
    for n in 1 2 3 4; do RSH node$n mkdir /dev/shm/raw; done
    write /dev/shm/raw
    raw=$took
    for n in 1 2 3 4; do RSH node$n rm -r /dev/shm/raw; done
    RSH node1 mkdir /scr/ckpt.$step.tmp
    write /scr/ckpt.$step.tmp
    renamed=$(RSH node1 "begun=\$(date +%s%N); mv -T /scr/ckpt.$step.tmp /scr/ckpt.$step; echo \$(((\$(date +%s%N) - begun) / 1000000))")
    RSH node1 SCRFS wait ckpt.$step --for protected --timeout 60
    echo "MEASURED raw $raw written $took renamed $renamed ms"
done
"#;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn what_a_program_waits_for_a_checkpoint() {
    for store in ["/dev/shm", "tmpfs"] {
        let cluster = Cluster::builder()
            .nodes(4)
            .shm_bytes(3 << 30)
            .start()
            .unwrap();
        let site = tempfile::tempdir().unwrap();
        let program = PROGRAM
            .replace("RSH", cluster.rsh().to_str().unwrap())
            .replace("SCRFS", binary("scrfs").unwrap().to_str().unwrap());
        let ran = cluster
            .command(0, binary("scrfs").unwrap())
            .args(["run", "--nodes", "node[1-4]", "--rsh"])
            .arg(cluster.rsh())
            .arg("--prefix")
            .arg(site.path())
            .args(["--cache", store, "--", "sh", "-c", &program])
            .env("SCR_FLUSH", "0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        let mut all: [Vec<f64>; 4] = Default::default();
        for line in said.lines().filter(|line| line.starts_with("MEASURED")) {
            println!("{store}: {line}");
            let numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
            let [raw, written, renamed] = numbers.collect::<Vec<f64>>().try_into().unwrap();
            let figures = [raw, written, renamed, (written + renamed) / raw];
            all.iter_mut()
                .zip(figures)
                .for_each(|(all, it)| all.push(it));
        }
        assert_eq!(
            all[0].len(),
            9,
            "{said}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        let [raw, written, renamed, ratio] = all.map(median);
        println!("{store}: medians {raw} {written} {renamed} ms; stall {ratio:.2} of raw tmpfs");
    }
}
