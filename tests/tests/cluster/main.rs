//! The virtual cluster does what the tests of the product take for granted.
//!
//! Needs root, and for one test Open MPI's `mpirun`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod death;
mod helpers;
mod inside;
mod network;
mod rsh;

use std::time::Duration;

/// For what takes milliseconds, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(10);
/// How long a peer must hear nothing before we call it silence.
const SILENCE: Duration = Duration::from_secs(1);
