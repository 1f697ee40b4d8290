//! What crosses nodes: the fabric over MPI, the transfer engine, flush and fetch, and the driver that
//! runs the core's protocols on them. The supervisor of jobs is here too; it needs none of these.

mod ahead;
pub mod args;
pub mod bench;
mod completing;
pub mod driver;
mod effects;
mod inventory;
pub mod job;
mod journal;
mod link;
mod look;
pub mod manual;
mod moves;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "objects")]
mod objects;
pub mod part;
mod parts;
mod pieces;
mod placing;
mod pointing;
pub mod prefix;
pub mod scavenge;
pub mod target;
mod tasks;
pub mod track;
pub mod transfer;
mod works;
