//! What the tests of whole clusters stand on: a virtual cluster on one machine, a way to wait for
//! conditions, and the way to the programs under test.
//!
//! Invariants: nothing here is part of the product; nothing made here outlives its owner.

mod alone;
mod binary;
pub mod cluster;
pub mod demo;
mod foreign;
pub mod slurm;
mod wait;
pub mod workload;

pub use alone::Alone;
pub use binary::binary;
pub use cluster::{Builder, Cluster, Loss};
pub use foreign::{Fault, Foreign, Hanging};
pub use slurm::Slurm;
pub use wait::wait_until;
