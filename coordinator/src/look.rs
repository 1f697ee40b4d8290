//! Looking at the prefix: once before the epoch begins, then now and then, for what people did there.
//!
//! Every look is on a thread of its own, one at a time: a prefix that hangs holds nothing up. The first
//! is waited for, but not for long: when the caches have something to restart from, what a prefix that
//! does not answer says can come later. The first look that succeeds also tidies up after crashes, and
//! nothing is flushed before it. Later ones read nothing while the directories of records have not changed.

use crate::effects::{self, chain, fetch_failure};
use crate::prefix::PrefixError;
use crate::target::Target;
use crate::tasks::{Event, Tasks};
use scrfs::config::Config;
use scrfs::control::Refusal;
use scrfs::id::{DatasetKey, Epoch};
use scrfs::protocol::message::{Failure, Inventory, PrefixView};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After one that failed; doubles.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the first one is waited for when there is something else to restart from.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long when there is not.
const PATIENCE_WITHOUT: Duration = Duration::from_secs(20);
/// The same records must be read so often before they are believed to be what they were: a change in
/// the moment that they were read in may not show in times.
const READS: u32 = 2;

/// What a look gives; `None` when nothing has changed.
pub(crate) type Seen = Result<Option<Box<PrefixView>>, Failure>;

/// Inode and times of a directory or file, where there is one.
type Stamp = Vec<Option<(u64, i64, i64, i64, i64)>>;

/// What looks know of each other.
#[derive(Debug)]
struct Memory {
    /// Attempts of these datasets are left for their next flush.
    keep: BTreeSet<DatasetKey>,
    /// When it was last read, and how often it was so.
    last: Option<(Stamp, u32)>,
}

/// Looks at the prefix for rank 0.
#[derive(Debug)]
pub(crate) struct Looker {
    prefix: Arc<Target>,
    config: Arc<Config>,
    epoch: Epoch,
    memory: Arc<Mutex<Memory>>,
    /// Since when there has been no answer, and whether that was said.
    busy: Option<(Instant, bool)>,
    next: Instant,
    failures: u32,
}

impl Looker {
    /// One that has not looked.
    pub(crate) fn new(
        prefix: Arc<Target>,
        config: Arc<Config>,
        epoch: Epoch,
        inventory: &Inventory,
    ) -> Self {
        let known = inventory.datasets.iter();
        let memory = Memory {
            keep: known.map(|entry| entry.record.key()).collect(),
            last: None,
        };
        Self {
            prefix,
            config,
            epoch,
            memory: Arc::new(Mutex::new(memory)),
            busy: None,
            next: Instant::now(),
            failures: 0,
        }
    }

    /// A look, which is tried again for so long when it may help.
    fn task(&self, insist: Duration) -> impl FnOnce() -> Seen + Send + 'static {
        let (prefix, config) = (Arc::clone(&self.prefix), Arc::clone(&self.config));
        let (memory, epoch) = (Arc::clone(&self.memory), self.epoch);
        move || {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = Instant::now();
            let mut look = || look(&prefix, &config, epoch, &mut memory);
            let mut seen = look();
            while let Err(error) = &seen
                && error.is_retryable()
                && begun.elapsed() < insist
            {
                std::thread::park_timeout(RETRY_AFTER);
                seen = look();
            }
            seen.map(|view| view.map(Box::new))
                .map_err(|error| fetch_failure(&error))
        }
    }

    /// The first look: what the epoch is to begin with, or `None` when that is not known yet.
    pub(crate) fn first(&mut self, tasks: &Tasks, inventory: &Inventory) -> Option<PrefixView> {
        let mut cached = inventory.datasets.iter().map(|entry| &entry.record);
        let patience = match cached.any(|record| record.is_restartable()) {
            true => PATIENCE,
            false => PATIENCE_WITHOUT,
        };
        // Without a place in between: what is not taken here comes as an event.
        let (sender, receiver) = sync_channel::<Seen>(0);
        let look = self.task(patience);
        self.busy = Some((Instant::now(), false));
        tasks.run(move |report| {
            if let Err(late) = sender.send(look()) {
                report(Event::Seen(late.0));
            }
        });
        let root = self.config.prefix.display().to_string();
        match receiver.recv_timeout(patience) {
            Ok(seen) => self.ended(seen).unwrap_or_else(|failure| {
                tracing::error!(prefix = %root, %failure, "nothing is flushed until it can be used");
                None
            }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                tracing::error!(prefix = %root, "does not answer: nothing is flushed until it does");
                None
            }
        }
        .map(|view| *view)
    }

    /// Looks if it is time to.
    pub(crate) fn tick(&mut self, tasks: &Tasks) {
        if self.busy.is_some() || Instant::now() < self.next {
            return;
        }
        self.busy = Some((Instant::now(), false));
        let look = self.task(Duration::ZERO);
        tasks.run(move |report| report(Event::Seen(look())));
    }

    /// Once, when a look has not been answered for long.
    pub(crate) fn silent(&mut self) -> Option<Failure> {
        let (since, is_said) = self.busy.as_mut()?;
        let is_long = since.elapsed() >= PATIENCE_WITHOUT;
        let is_news = is_long && !std::mem::replace(is_said, true);
        let root = self.config.prefix.display();
        is_news.then(|| Failure::new(Refusal::Unavailable, format!("{root} does not answer")))
    }

    /// Looks as soon as can be.
    pub(crate) fn hurry(&mut self) {
        self.next = Instant::now();
    }

    /// A look has ended.
    pub(crate) fn ended(&mut self, seen: Seen) -> Seen {
        self.busy = None;
        self.failures = match &seen {
            Ok(_) => 0,
            Err(_) => self.failures.saturating_add(1),
        };
        let pause = match self.failures {
            0 => LOOK_EVERY,
            failures => LOOK_EVERY.min(RETRY_AFTER * (1 << failures.min(8))),
        };
        self.next = Instant::now() + pause;
        seen
    }
}

fn look(
    prefix: &Target,
    config: &Config,
    epoch: Epoch,
    memory: &mut Memory,
) -> Result<Option<PrefixView>, PrefixError> {
    prefix.check_usable()?;
    if memory.last.is_none() {
        if let Err(error) = prefix.reconcile(&memory.keep) {
            tracing::error!(prefix = %config.prefix.display(), error = %chain(&error), "cannot tidy the prefix");
        }
        effects::choose_current(prefix, config, epoch);
    }
    let stamp = stamp(prefix);
    let reads = match &memory.last {
        // An object store tells of no changes.
        Some((last, reads)) if *last == stamp && prefix.paths().is_some() => *reads,
        _ => 0,
    };
    if reads >= READS {
        return Ok(None);
    }
    let view = effects::prefix_view(prefix)?;
    memory.last = Some((stamp, reads + 1));
    Ok(Some(view))
}

fn stamp(prefix: &Target) -> Stamp {
    let Some(paths) = prefix.paths() else {
        return Stamp::new();
    };
    let all = [
        // Datasets that somebody has removed.
        paths.root().to_owned(),
        paths.index(),
        paths.dropped(),
        paths.gone(),
        paths.failed(),
        paths.choice(),
    ];
    let of = |found: fs::Metadata| {
        let (mtime, ctime) = (found.mtime(), found.ctime());
        (
            found.ino(),
            mtime,
            found.mtime_nsec(),
            ctime,
            found.ctime_nsec(),
        )
    };
    all.iter()
        .map(|path| fs::metadata(path).ok().map(of))
        .collect()
}
