//! The demo, as a person starts it: LAMMPS on four nodes goes on when one of them is lost with its memory, and comes to
//! the same end, to the last byte. `SCRFS_SEED=n` replays one.

#![allow(clippy::unwrap_used)]

use scrfs_tests::binary;
use std::process::Command;

#[test]
fn a_run_of_lammps_that_loses_a_node_comes_to_the_same_end() {
    let given = std::env::var("SCRFS_SEED").ok();
    let seed = given.unwrap_or_else(|| rand::random::<u16>().to_string());
    println!("SCRFS_SEED={seed}");
    let output = Command::new(binary("scrfs-demo").unwrap())
        .args(["--loss", "crash", "--steps", "600", "--seed", &seed])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{output:?}");
    assert!(said.contains("They agree to the last digit"), "{said}");
}
