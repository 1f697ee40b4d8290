//! Tests of the mounted filesystem from outside: real mounts, real programs' system calls.
//!
//! - [`process`] processes that do single system calls, to each other
//! - [`ranks`] processes that act as the ranks of a program
//! - [`tools`] programs that others wrote to try filesystems
//! - [`mounted`] a mount of its own for each test, taken down whatever happens
//! - [`coordinator`] a coordinator of a cluster of one, just good enough to commit
//! - [`group`] a memory control group of a test's own
//! - [`elsewhere`] what lies on other nodes, as a test says
//!
//! They need `/dev/fuse`; as root the cache is a tmpfs of its own. Nothing here waits for a fixed
//! time: [`until`] waits for a condition.

pub mod coordinator;
pub mod elsewhere;
pub mod group;
pub mod mounted;
pub mod process;
pub mod ranks;
pub mod tools;

use std::time::{Duration, Instant};

/// Leaves a test out, or a part of one, that this machine cannot do: says so, and fails where nothing
/// may be left out (`SCRFS_REQUIRE_ALL`).
pub fn leave_out(why: &str) {
    assert!(
        std::env::var_os("SCRFS_REQUIRE_ALL").is_none(),
        "SCRFS_REQUIRE_ALL is set, but {why}"
    );
    eprintln!("left out: {why}");
}

/// Longest wait for a condition.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds; panics with `what` when it does not come true.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
