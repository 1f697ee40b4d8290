//! The supervisor behind `scrfs run`: it starts, watches and restarts everything else of a job.
//!
//! ```text
//! run         the life of a job            supervisor   what it holds, and its one place to wait
//! application launched, watched, ended
//! epoch       coordinators come and go     heart        heartbeats in, orders out
//! membership  who lives (pure)             placement    who is where, and who takes over (pure)
//! launcher    the user's command (pure)    hosts        host lists and files (pure)
//! remote      commands on many hosts       child        processes here          reap   and there
//! each        one command on each host     resource     nodes, end and down nodes, as managers say
//! watchdog    does it move, and its end (pure)  tally      what it was worth (pure)
//! checks      which nodes are fit          nodes        `scrfs nodes`
//! outside     what the prefix and the resource manager say meanwhile
//! suspect     which dataset to blame (pure)   daemons   mounting and unmounting
//! vain        launches that fail at once (pure)
//! resume      going on with a job whose supervisor was lost
//! files       records of supervisors in the prefix   keeper   keeps ours
//! ```
//!
//! No MPI in here, and two threads, `outside` and `keeper`; a third tidies the prefix at the end. Everything
//! that waits does so in `Supervisor::turn`, so that nodes are watched all the time.

mod application;
pub mod args;
pub mod checks;
mod child;
mod daemons;
mod each;
mod epoch;
mod files;
pub mod heart;
pub mod hosts;
mod keeper;
pub mod launcher;
pub mod membership;
pub mod nodes;
mod outside;
pub mod placement;
pub mod reap;
pub mod remote;
pub mod report;
pub mod resource;
mod resume;
mod run;
pub mod stacks;
mod supervisor;
mod suspect;
pub mod tally;
mod vain;
pub mod watchdog;
pub mod words;

pub use args::RunArgs;
pub use checks::ProbeArgs;
pub use each::Each;
pub use nodes::NodesArgs;
pub use reap::Reap;
pub use run::run;
pub use stacks::Stacks;
