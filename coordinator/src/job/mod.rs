//! The supervisor behind `scrfs run`: it starts, watches and restarts everything else of a job.
//!
//! ```text
//! run         the life of a job            supervisor   what it holds, and its one place to wait
//! epoch       coordinators come and go     heart        heartbeats in, orders out
//! membership  who lives (pure)             placement    who is where, and who takes over (pure)
//! launcher    the user's command (pure)    hosts        host lists and files (pure)
//! remote      commands on many hosts       child        processes here          reap   and there
//! ```
//!
//! No MPI in here, and no thread. Everything that waits does so in `Supervisor::turn`, so that nodes
//! are watched all the time.

pub mod args;
mod child;
mod epoch;
pub mod heart;
pub mod hosts;
pub mod launcher;
pub mod membership;
pub mod placement;
pub mod reap;
pub mod remote;
pub mod report;
mod run;
mod supervisor;
pub mod words;

pub use args::RunArgs;
pub use reap::Reap;
pub use run::run;
