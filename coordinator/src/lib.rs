//! What crosses nodes: the fabric over MPI, the transfer engine, and their benchmarks.

pub mod bench;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod part;
pub mod transfer;
