//! What crosses nodes: the fabric over MPI, the transfer engine, flush and fetch, and the driver that
//! runs the core's protocols on them. The supervisor of jobs is here too; it needs none of these.

pub mod bench;
pub mod job;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod part;
pub mod transfer;
