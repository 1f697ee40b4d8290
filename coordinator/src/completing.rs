//! How flushes end, on rank 0: what all nodes have copied is checked and made visible, and then what
//! `flush.keep` has made superfluous goes.
//!
//! Both run on other threads and may hang with the prefix. Nobody waits for the removal of what is old but the
//! end of this coordinator; removals come one after the other, for each spares what is wanted when it begins.
//!
//! That it takes long is said: of the check at the dataset, of the removal in the log.

use crate::effects::{self, flush_failure};
use crate::target::Target;
use crate::tasks::{Event, Tasks};
use crate::works::STUCK_AFTER;
use scrfs::id::{DatasetId, DatasetKey};
use scrfs::layout::record::DatasetRecord;
use scrfs::protocol::step::Outcome;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Something on another thread.
#[derive(Debug)]
struct Task {
    begun: Instant,
    /// That it takes long was said.
    is_said: bool,
}

impl Task {
    fn begin() -> Self {
        Self {
            begun: Instant::now(),
            is_said: false,
        }
    }

    /// Once, when it has taken long.
    fn takes_long(&mut self) -> bool {
        let is_long = self.begun.elapsed() >= STUCK_AFTER;
        is_long && !std::mem::replace(&mut self.is_said, true)
    }
}

/// What goes on of it.
#[derive(Debug, Default)]
pub(crate) struct Completing {
    flush: Option<(DatasetId, PathBuf, Task)>,
    removal: Option<Task>,
    /// Another removal is due after this one.
    again: bool,
}

impl Completing {
    /// Checks what was flushed and makes it visible; answered by [`Outcome::FlushCompleted`].
    pub(crate) fn begin(&mut self, record: DatasetRecord, prefix: &Arc<Target>, tasks: &Tasks) {
        let dataset = record.id;
        self.flush = Some((dataset, prefix.place_of(&record), Task::begin()));
        let prefix = Arc::clone(prefix);
        tasks.spawn(move |_| {
            let result = prefix.complete_flush(&record);
            let result = result.map_err(|error| flush_failure(&error));
            Event::Outcome(Outcome::FlushCompleted { dataset, result })
        });
    }

    /// That has ended.
    pub(crate) fn ended(&mut self, dataset: DatasetId) {
        self.flush.take_if(|(of, ..)| *of == dataset);
    }

    /// Removes what is superfluous but for `spare`, or will when [`Self::removed`] says so.
    pub(crate) fn retain(
        &mut self,
        keep: u64,
        spare: impl FnOnce() -> BTreeSet<DatasetKey>,
        prefix: &Arc<Target>,
        tasks: &Tasks,
    ) {
        if keep == 0 {
            return;
        }
        if self.removal.is_some() {
            self.again = true;
            return;
        }
        self.removal = Some(Task::begin());
        let (prefix, spare) = (Arc::clone(prefix), spare());
        tasks.spawn(move |_| {
            effects::retain(&prefix, keep, &spare);
            Event::Retained
        });
    }

    /// A removal has ended; whether another is due.
    pub(crate) fn removed(&mut self) -> bool {
        self.removal = None;
        std::mem::take(&mut self.again)
    }

    /// Whether nothing goes on.
    pub(crate) fn is_idle(&self) -> bool {
        self.flush.is_none() && self.removal.is_none()
    }

    /// What takes long and was not said to.
    pub(crate) fn stuck(&mut self) -> Option<Outcome> {
        if self.removal.as_mut().is_some_and(Task::takes_long) {
            tracing::warn!("removing old checkpoints from the prefix takes long, or hangs");
        }
        let (dataset, place, task) = self.flush.as_mut()?;
        let text =
            || format!("flush: checked and made durable at {place:?}, which takes long or hangs");
        task.takes_long().then(|| Outcome::Stuck {
            dataset: *dataset,
            text: text(),
        })
    }
}
