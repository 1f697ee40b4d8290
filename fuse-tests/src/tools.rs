//! Programs that others wrote to try filesystems, from crates.io, in versions we know.
//!
//! They are built once, into the target directory, by whichever test needs them first.

use std::path::{Path, PathBuf};
use std::process::Command;

/// pjdfstest, in its Rust form: POSIX, call by call.
pub fn pjdfstest() -> PathBuf {
    tool("pjdfstest", "0.2.2")
}

/// The file system exerciser: random reads, writes, truncations, maps, each read verified.
pub fn fsx() -> PathBuf {
    tool("fsx", "0.3.2")
}

fn tool(name: &str, version: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    let target = test.ancestors().nth(3).expect("target/<profile>/deps");
    let root = target.join("tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        install(name, version, &root);
    }
    program
}

fn install(name: &str, version: &str, root: &Path) {
    // Cargo locks the root: two tests that need the same one wait for each other.
    let output = Command::new(env!("CARGO"))
        .args(["install", "--quiet", "--locked", "--version", version])
        .arg("--root")
        .arg(root)
        .arg(name)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "installing {name}: {said}");
}
