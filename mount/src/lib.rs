//! The FUSE daemon and the `scrfs` command.
//!
//! The daemon owns the namespace of one node's mount, the kernel's side of it and the count of writers;
//! it outlives coordinators and programs. The coordinator, another process, owns every record on disk
//! and decides with its peers; they meet at the control socket ([`scrfs::control`]).
//!
//! - [`vfs`] the filesystem, callable without a kernel; [`gate`] when a dataset may change
//! - [`fuse`] the kernel's side; [`errno`] what programs see of an error; [`sys`] system calls
//! - [`control`] the socket; [`daemon`] the process; [`mountpoint`] what lies under it
//! - [`store`] where the cache lies; [`space`] how much of it may be used
//! - [`heartbeat`] signs of life; [`halt`] when programs are to end; [`cli`] commands
//!
//! Absent on purpose: MPI, redundancy, the prefix.

pub mod cli;
pub mod control;
pub mod daemon;
pub mod errno;
pub mod fuse;
pub mod gate;
pub mod halt;
pub mod heartbeat;
pub mod mountpoint;
mod patience;
pub mod space;
pub mod store;
pub mod sys;
pub mod vfs;
