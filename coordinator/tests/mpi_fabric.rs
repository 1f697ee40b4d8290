//! Runs `examples/fabric_check.rs` under a real `mpirun` on this machine, over shared memory and
//! over TCP, and looks at its exit code. Needs the feature `mpi` and an MPI installed.
#![cfg(feature = "mpi")]

use std::path::PathBuf;
use std::process::Command;

/// Cargo builds examples with tests, beside the directory of the test's own program.
fn fabric_check() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(|deps| deps.parent());
    let program = profile
        .expect("tests lie two levels deep")
        .join("examples/fabric_check");
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-p", "scrfs-coordinator", "--features", "mpi"]);
        cargo.args(["--example", "fabric_check"]);
        assert!(
            cargo.status().expect("cargo runs").success(),
            "the example does not build"
        );
    }
    program
}

/// The output of the check's ranks; fails the test with it when one of them failed.
fn check(ranks: u32, seed: u64, settings: &[&str]) -> String {
    let mut mpirun = Command::new("mpirun");
    mpirun.args([
        "--allow-run-as-root",
        "--oversubscribe",
        "--bind-to",
        "none",
    ]);
    mpirun
        .args(["--mca", "mpi_yield_when_idle", "1", "--timeout", "120"])
        .args(settings);
    mpirun
        .args(["-n", &ranks.to_string()])
        .arg(fabric_check())
        .arg(seed.to_string());
    let output = mpirun
        .output()
        .expect("mpirun is installed where the feature mpi is built");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "seed {seed}: {}\n{text}\n{errors}",
        output.status
    );
    assert_eq!(
        text.matches("idle_cpu_percent").count(),
        ranks as usize,
        "{text}"
    );
    println!("{text}");
    text
}

/// One test, because the check measures time: two at once would disturb each other.
#[test]
fn the_fabric_works_over_shared_memory_over_tcp_and_alone() {
    let text = check(4, 1, &[]);
    assert!(text.contains("doorbells true"), "{text}");
    check(3, 2, &["--mca", "pml", "ob1", "--mca", "btl", "self,tcp"]);
    check(1, 3, &[]);
}
