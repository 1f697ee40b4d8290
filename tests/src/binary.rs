//! Where the programs under test are.
//!
//! Cargo builds the programs of a test's own package only. Those of the other packages must have
//! been built before, and nothing here can tell a stale one from a fresh one: whoever runs the
//! tests builds first.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Names the directory to take programs from, instead of the one of the running test.
const BIN_DIR_VARIABLE: &str = "SCRFS_BIN_DIR";

/// The path of a built program of this workspace.
///
/// Looks in `SCRFS_BIN_DIR` if that is set, else beside the running program, so that tests of a
/// release build run release programs.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match env::var_os(BIN_DIR_VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => {
            let me = env::current_exe().context("finding the running program")?;
            let mut directory = me
                .parent()
                .context("the running program has no directory")?;
            // Tests lie one below: target/debug/deps.
            if directory.file_name() == Some(OsStr::new("deps")) {
                directory = directory.parent().context("no directory above deps")?;
            }
            directory.to_path_buf()
        }
    };
    let path = directory.join(name);
    if !path.is_file() {
        let how = match name {
            "scrfs" => "cargo build -p scrfs-mount",
            "scrfs-coordinator" => "cargo build -p scrfs-coordinator",
            "scrfs-coordinator-mpi" => "cargo build -p scrfs-coordinator --features mpi",
            _ => "cargo build -p scrfs-tests",
        };
        bail!(
            "{} does not exist: build it with `{how}` (same profile as the tests), or set \
             {BIN_DIR_VARIABLE}",
            path.display()
        );
    }
    Ok(path)
}
