//! Ends what is left of a launch on a node, run there through the remote shell.
//!
//! When a node is lost the launcher's own helpers take seconds to end the ranks on the others. They
//! cannot do anything useful meanwhile, but use the cores, and hold files open.

use super::child;
use super::launcher::LAUNCH_VARIABLE;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Processes that are in the kernel's hands may take a while to go.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// End the processes of a launch on this node
#[derive(clap::Args, Clone, Debug)]
pub struct Reap {
    /// Which launch
    launch: String,
    /// All launches of a run, and its coordinators' launchers
    #[arg(long)]
    all: bool,
    /// Only ask them to end, and do not wait
    #[arg(long)]
    ask: bool,
    /// The variable by which they are known
    #[arg(long, default_value = LAUNCH_VARIABLE)]
    mark: String,
}

impl Reap {
    /// Returns when none is left; `false` when some stay.
    pub fn run(&self) -> bool {
        let signal = |signal| child::signal_marked(&self.mark, &self.launch, self.all, signal);
        if self.ask {
            signal(Signal::SIGTERM);
            return true;
        }
        let deadline = Instant::now() + PATIENCE;
        while signal(Signal::SIGKILL) > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::park_timeout(PAUSE);
        }
        true
    }
}
