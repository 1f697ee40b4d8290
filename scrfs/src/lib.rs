//! The core of scrfs: what a checkpoint cache is, without MPI, FUSE, threads or a clock.
//!
//! Programs write *datasets* (top-level directories of the mount) and commit them by a rename.
//! This crate holds everything about them that can be decided from values alone: identifiers,
//! configuration, the layout on disk, redundancy geometry, and the commit, encode, rebuild and
//! flush protocols as state machines. Its drivers live in `scrfs-coordinator` (MPI, transfer,
//! prefix) and `scrfs-mount` (FUSE); those two meet only here.
//!
//! Invariants every module keeps:
//!
//! - **I-1** Wrong bytes are never returned. What cannot be verified is reported lost.
//! - **I-2** A sealed dataset never changes; an unsealed one is never offered for restart.
//! - **I-3** Records are durable before anybody is told of them.
//! - **I-4** Every decision about a dataset is taken by rank 0 of one epoch, and can be taken
//!   again by the next epoch from what is on disk.

#[cfg(feature = "bars")]
pub mod bar;
pub mod buffers;
pub mod codec;
pub mod config;
pub mod control;
pub mod event;
pub mod fabric;
pub mod findings;
pub mod halt;
pub mod id;
pub mod interval;
pub mod layout;
pub mod name;
pub mod process;
pub mod protocol;
pub mod redundancy;
pub mod status;
pub mod store;
pub mod stores;
pub mod topology;
pub mod trigger;
