//! What may take long runs on other threads, and comes back to the driver as an event.

use crate::ahead::LogOrder;
use crate::look::Seen;
use crate::moves::Copied;
use crate::pieces::Read;
use crate::works::TaskEnd;
use scrfs::control::FromDaemon;
use scrfs::fabric::Waker;
use scrfs::id::DatasetId;
use scrfs::protocol::step::Outcome;
use std::sync::mpsc::Sender;

/// What reaches the driver from other threads.
#[derive(Debug)]
pub(crate) enum Event {
    /// The daemon said something.
    Daemon(FromDaemon),
    /// The daemon is gone; so is this coordinator, then.
    DaemonGone(String),
    /// An effect of the protocol has ended.
    Outcome(Outcome),
    /// A step of encode or rebuild has ended.
    Task(TaskEnd),
    /// A piece of a sealed dataset was read.
    Read(Read),
    /// Somebody looked at the prefix.
    Seen(Seen),
    /// A dataset was copied to another store.
    Copied(Copied),
    /// What was moved away is gone.
    Swept,
    /// Old checkpoints were removed from the prefix.
    Retained,
    /// A scan has placed so many bytes of a part as this order says.
    Placed(DatasetId, LogOrder, u64),
}

/// Threads for what may take long.
#[derive(Clone)]
pub(crate) struct Tasks {
    runtime: tokio::runtime::Handle,
    events: Sender<Event>,
    wake: Waker,
}

impl Tasks {
    /// Threads of `runtime`, whose results go to `events`.
    pub(crate) fn new(runtime: tokio::runtime::Handle, events: Sender<Event>, wake: Waker) -> Self {
        Self {
            runtime,
            events,
            wake,
        }
    }

    /// Runs `task` on another thread; what it returns comes to the driver as an event.
    pub(crate) fn spawn(&self, task: impl FnOnce(&dyn Fn(Event)) -> Event + Send + 'static) {
        self.run(|report| {
            let last = task(report);
            report(last);
        });
    }

    /// Runs `task` on another thread; the driver hears of it what it reports.
    pub(crate) fn run(&self, task: impl FnOnce(&dyn Fn(Event)) + Send + 'static) {
        let (events, wake) = (self.events.clone(), self.wake.clone());
        self.runtime.spawn_blocking(move || {
            let report = |event| {
                // The driver is gone only when the process is about to be.
                let _ = events.send(event);
                wake();
            };
            task(&report);
        });
    }
}
