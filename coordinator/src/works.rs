//! The long work of this node: encode, rebuild, flush, fetch, verify. Each order is one run of small steps,
//! driven by what the engine, other threads and peers report.
//!
//! Invariants: an order is answered exactly once; a run that fails stops its engine jobs first; what it
//! has put down is found, checked and redone by the next attempt. Bytes are moved by the engine or on
//! other threads, never here.

mod encode;
mod prefix;
mod rebuild;
mod verify;

use crate::effects::{part_failure, store_failure};
use crate::part::{Part, SealedPart, records, sums_that_fit};
use crate::parts::Parts;
use crate::target::Target;
use crate::tasks::{Event, Tasks};
use crate::transfer::{Engine, JobEvent, JobId};
use encode::Encode;
use prefix::Copying;
pub(crate) use prefix::STUCK_AFTER;
use rebuild::Rebuild;
use scrfs::config::Config;
use scrfs::control::{Activity, Refusal};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::path::Keep;
use scrfs::layout::record::{DatasetRecord, Seal};
use scrfs::protocol::message::{Failure, Message, Metadata, Order};
use scrfs::protocol::step::Outcome;
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use verify::Verify;

/// A step that ran on another thread.
#[derive(Debug)]
pub(crate) struct TaskEnd {
    /// Of which order.
    pub(crate) ticket: u64,
    /// For which slot.
    pub(crate) slot: Slot,
    /// How it went, with the part that was made, where one was.
    pub(crate) result: Result<Option<Arc<Part>>, Failure>,
}

/// What works may use, and where they put what they want done.
pub(crate) struct Context<'a> {
    /// The transfer engine.
    pub(crate) engine: &'a mut Engine,
    /// The parts of this node.
    pub(crate) parts: &'a mut Parts,
    /// Other threads.
    pub(crate) tasks: &'a Tasks,
    /// The prefix.
    pub(crate) prefix: &'a Arc<Target>,
    /// The effective configuration.
    pub(crate) config: &'a Arc<Config>,
    /// For records.
    pub(crate) store: &'a PosixStore,
    /// To be sent.
    pub(crate) messages: Vec<(Rank, Message)>,
    /// To be told to the protocol.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Context<'_> {
    fn send(&mut self, to: Rank, message: Message) {
        self.messages.push((to, message));
    }

    fn record(&self, dataset: DatasetId) -> Result<DatasetRecord, Failure> {
        self.parts.record(dataset).cloned().ok_or_else(|| {
            Failure::new(
                Refusal::Missing,
                format!("dataset {dataset} is not known on this node"),
            )
        })
    }

    fn advanced(&mut self, dataset: DatasetId, activity: Activity, bytes: u64) {
        self.outcomes.push(Outcome::Advanced {
            dataset,
            activity,
            bytes,
        });
    }

    /// Runs a step on another thread; its end comes back as [`Works::task_ended`].
    fn spawn(
        &self,
        ticket: u64,
        slot: Slot,
        task: impl FnOnce() -> Result<Option<Arc<Part>>, Failure> + Send + 'static,
    ) {
        self.tasks.spawn(move |_| {
            Event::Task(TaskEnd {
                ticket,
                slot,
                result: task(),
            })
        });
    }
}

/// The seal of a record that must have one.
fn seal_of(record: &DatasetRecord) -> Result<&Seal, Failure> {
    record.seal.as_ref().ok_or_else(|| {
        Failure::new(
            Refusal::Failed,
            format!("dataset {} ({}) is not sealed", record.id, record.name),
        )
    })
}

/// One order under way.
#[derive(Debug)]
enum Run {
    Encode(Encode),
    Rebuild(Box<Rebuild>),
    Copying(Copying),
    Verify(Box<Verify>),
}

/// What a run does next.
#[derive(Debug)]
enum Turn {
    GoesOn,
    Ends(Result<(), Failure>),
}

/// Which job is of which order.
#[derive(Debug, Default)]
struct Jobs {
    next: u64,
    of: BTreeMap<JobId, (u64, Slot)>,
}

impl Jobs {
    fn begin(&mut self, ticket: u64, slot: Slot) -> JobId {
        self.next += 1;
        let job = JobId(self.next);
        self.of.insert(job, (ticket, slot));
        job
    }
}

/// All orders under way on this node.
#[derive(Debug)]
pub(crate) struct Works {
    me: Rank,
    runs: BTreeMap<u64, Run>,
    jobs: Jobs,
}

impl Works {
    /// Nothing to do.
    pub(crate) fn new(me: Rank) -> Self {
        Self {
            me,
            runs: BTreeMap::new(),
            jobs: Jobs::default(),
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// The datasets that are being fetched.
    pub(crate) fn fetching(&self) -> impl Iterator<Item = DatasetId> {
        self.runs.values().filter_map(|run| match run {
            Run::Copying(copying) if copying.what().1 == Activity::Fetch => Some(copying.what().0),
            _ => None,
        })
    }

    /// Flushes that have come to a stop, or go on again.
    pub(crate) fn stuck(&mut self) -> Vec<Outcome> {
        let copying = self.runs.values_mut().filter_map(|run| match run {
            Run::Copying(copying) => copying.stuck(),
            Run::Encode(_) | Run::Rebuild(_) | Run::Verify(_) => None,
        });
        copying.collect()
    }

    /// Whether anything is under way with a dataset.
    pub(crate) fn is_busy_with(&self, dataset: DatasetId) -> bool {
        self.runs.values().any(|run| run.what().0 == dataset)
    }

    /// What is under way, for the log.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.runs
            .iter()
            .map(|(ticket, run)| format!("order {ticket}: {run:?}"))
            .collect()
    }

    /// Begins to carry out an order.
    pub(crate) fn begin(&mut self, ticket: u64, order: Order, context: &mut Context<'_>) {
        let me = self.me;
        let run = match order {
            Order::Encode {
                dataset,
                slots,
                holders,
            } => Encode::begin(me, ticket, dataset, &slots, &holders, context).map(Run::Encode),
            Order::Rebuild {
                dataset,
                holders,
                lost,
            } => Rebuild::begin(me, dataset, &holders, &lost, context)
                .map(|run| Run::Rebuild(Box::new(run))),
            Order::Flush { dataset, holders } => {
                Copying::flush(me, ticket, dataset, &holders, context).map(Run::Copying)
            }
            Order::Fetch { record, holders } => {
                Copying::fetch(me, ticket, &record, &holders, context).map(Run::Copying)
            }
            Order::CheckInPlace { record, holders } => Ok(Run::Copying(Copying::check_in_place(
                me, ticket, &record, &holders, context,
            ))),
            Order::Verify {
                dataset,
                holders,
                lost,
                what,
            } => Verify::begin(me, ticket, dataset, (&holders, &lost), what, context)
                .map(|run| Run::Verify(Box::new(run))),
            other => Err(Failure::new(
                Refusal::Failed,
                format!("{other:?} is not work"),
            )),
        };
        match run {
            Ok(run) => {
                self.runs.insert(ticket, run);
                self.turn(ticket, context, |_, _, _| Turn::GoesOn);
            }
            Err(failure) => self.end(ticket, Err(failure), context),
        }
    }

    /// Lets a run take a turn, ends it when it has ended.
    fn turn(
        &mut self,
        ticket: u64,
        context: &mut Context<'_>,
        act: impl FnOnce(&mut Run, &mut Jobs, &mut Context<'_>) -> Turn,
    ) {
        let Some(run) = self.runs.get_mut(&ticket) else {
            return;
        };
        let mut turn = act(run, &mut self.jobs, context);
        if matches!(turn, Turn::GoesOn) && run.is_done() {
            turn = Turn::Ends(Ok(()));
        }
        if let Turn::Ends(result) = turn {
            match (self.runs.remove(&ticket), &result) {
                (Some(Run::Rebuild(run)), Err(_)) => run.discard(context),
                (Some(Run::Verify(mut run)), _) => {
                    let findings = Box::new(run.take_findings());
                    context.outcomes.push(Outcome::Found { ticket, findings });
                }
                _ => {}
            }
            self.end(ticket, result, context);
        }
    }

    fn end(&mut self, ticket: u64, result: Result<(), Failure>, context: &mut Context<'_>) {
        self.jobs.of.retain(|job, (of, _)| {
            if *of == ticket {
                context.engine.cancel(*job);
            }
            *of != ticket
        });
        if let Err(failure) = &result {
            tracing::error!(ticket, %failure, "work failed");
        }
        context.outcomes.push(Outcome::Worked { ticket, result });
    }

    /// Stops an order that failed elsewhere.
    pub(crate) fn abandon(&mut self, ticket: u64, context: &mut Context<'_>) {
        self.turn(ticket, context, |_, _, _| {
            let text = "given up, for it failed on another node";
            Turn::Ends(Err(Failure::new(Refusal::Again, text)))
        });
    }

    /// A step on another thread has ended.
    pub(crate) fn task_ended(&mut self, end: TaskEnd, context: &mut Context<'_>) {
        let me = self.me;
        self.turn(end.ticket, context, |run, jobs, context| match end.result {
            Err(failure) => Turn::Ends(Err(failure)),
            Ok(made) => match run {
                Run::Encode(run) => run.task_ended(me, end.ticket, end.slot, jobs, context),
                Run::Rebuild(run) => run.task_ended(end.ticket, end.slot, made, jobs, context),
                Run::Copying(run) => run.copied(end.slot),
                Run::Verify(run) => run.task_ended(me, end.ticket, end.slot, jobs, context),
            },
        });
    }

    /// The engine says something of a job.
    pub(crate) fn job_event(&mut self, event: JobEvent, context: &mut Context<'_>) {
        let (JobEvent::Made { job, .. }
        | JobEvent::Progress { job, .. }
        | JobEvent::Done { job, .. }
        | JobEvent::Failed { job, .. }) = &event;
        let Some(&(ticket, slot)) = self.jobs.of.get(job) else {
            return;
        };
        if !matches!(event, JobEvent::Progress { .. } | JobEvent::Made { .. }) {
            self.jobs.of.remove(job);
        }
        self.turn(ticket, context, |run, jobs, context| match (event, run) {
            (JobEvent::Made { job, extent, bytes }, Run::Verify(run)) => {
                run.made(ticket, (job, slot), extent, bytes, context)
            }
            (JobEvent::Failed { error, .. }, Run::Verify(run)) => {
                run.unmade(ticket, slot, &error, jobs, context)
            }
            (_, Run::Verify(_)) => Turn::GoesOn,
            (JobEvent::Failed { error, .. }, run) => {
                if let (Run::Rebuild(run), Some(source)) = (run, error.spoilt())
                    && run
                        .make_without(ticket, (slot, source), jobs, context)
                        .is_ok()
                {
                    tracing::warn!(%slot, %error, "rebuilding it without {source}");
                    return Turn::GoesOn;
                }
                let full = matches!(
                    error,
                    crate::transfer::TransferError::Io { errno, .. } if errno == libc::ENOSPC
                );
                let refusal = if full {
                    Refusal::NoSpace
                } else if error.is_damage() {
                    Refusal::Damaged
                } else {
                    Refusal::Failed
                };
                Turn::Ends(Err(Failure::new(refusal, error.to_string())))
            }
            (JobEvent::Progress { bytes, .. }, run) => {
                let (dataset, activity) = run.what();
                context.advanced(dataset, activity, bytes);
                Turn::GoesOn
            }
            (JobEvent::Done { .. }, Run::Encode(run)) => run.computed(ticket, slot, context),
            (JobEvent::Done { .. }, Run::Rebuild(run)) => run.computed(ticket, slot, context),
            (JobEvent::Done { .. }, Run::Copying(_)) | (JobEvent::Made { .. }, _) => Turn::GoesOn,
        });
    }

    /// Some part of this node has all its checksums now.
    pub(crate) fn sums_grew(&mut self, context: &mut Context<'_>) {
        let tickets: Vec<u64> = self.runs.keys().copied().collect();
        for ticket in tickets {
            self.turn(ticket, context, |run, _, context| match run {
                Run::Encode(run) => run.summed(ticket, context),
                Run::Rebuild(_) | Run::Copying(_) | Run::Verify(_) => Turn::GoesOn,
            });
        }
    }

    /// A peer says something that is about metadata.
    pub(crate) fn peer_says(&mut self, from: Rank, message: Message, context: &mut Context<'_>) {
        match message {
            Message::Keep(metadata) => {
                let (dataset, slot) = (metadata.dataset, metadata.slot);
                let result = keep(&metadata, Keep::Copy, context);
                if let Err(failure) = &result {
                    tracing::error!(%dataset, %slot, %failure, "cannot keep a copy");
                }
                context.send(
                    from,
                    Message::Kept {
                        dataset,
                        slot,
                        result,
                    },
                );
            }
            Message::WantMetadata { dataset, slot } => {
                let metadata = metadata_of(dataset, slot, context).map(Box::new);
                context.send(
                    from,
                    Message::HaveMetadata {
                        dataset,
                        slot,
                        metadata,
                    },
                );
            }
            Message::Kept {
                dataset,
                slot,
                result,
            } => self.each(context, |run, _, _| match run {
                Run::Encode(run) => run.kept(from, dataset, slot, result.clone()),
                Run::Rebuild(_) | Run::Copying(_) | Run::Verify(_) => Turn::GoesOn,
            }),
            Message::Foreknown {
                dataset,
                slot,
                crcs,
            } => {
                if slot.0 == from.0 {
                    context.parts.ahead.hear(dataset, slot, crcs);
                }
                let tickets: Vec<u64> = self.runs.keys().copied().collect();
                for ticket in tickets {
                    self.turn(ticket, context, |run, jobs, context| match run {
                        Run::Encode(run) => run.heard(ticket, jobs, context),
                        Run::Rebuild(_) | Run::Copying(_) | Run::Verify(_) => Turn::GoesOn,
                    });
                }
            }
            Message::HaveMetadata {
                dataset,
                slot,
                metadata,
            } => {
                self.each(context, |run, ticket, context| match run {
                    Run::Rebuild(run) if run.dataset() == dataset => {
                        run.told(ticket, from, slot, metadata.as_deref(), context)
                    }
                    Run::Verify(run) if run.what().0 == dataset => {
                        run.told(ticket, from, slot, metadata.as_deref(), context)
                    }
                    Run::Encode(_) | Run::Rebuild(_) | Run::Copying(_) | Run::Verify(_) => {
                        Turn::GoesOn
                    }
                });
            }
            _ => {}
        }
    }

    fn each(
        &mut self,
        context: &mut Context<'_>,
        act: impl Fn(&mut Run, u64, &mut Context<'_>) -> Turn,
    ) {
        let tickets: Vec<u64> = self.runs.keys().copied().collect();
        for ticket in tickets {
            self.turn(ticket, context, |run, _, context| act(run, ticket, context));
        }
    }
}

impl Run {
    fn is_done(&self) -> bool {
        match self {
            Self::Encode(run) => run.is_done(),
            Self::Rebuild(run) => run.is_done(),
            Self::Copying(run) => run.is_done(),
            Self::Verify(run) => run.is_done(),
        }
    }

    fn what(&self) -> (DatasetId, Activity) {
        match self {
            Self::Encode(run) => (run.dataset(), Activity::Encode),
            Self::Rebuild(run) => (run.dataset(), Activity::Rebuild),
            Self::Copying(run) => run.what(),
            Self::Verify(run) => run.what(),
        }
    }
}

/// Checks metadata of a slot against the seal, and puts it down.
fn keep(metadata: &Metadata, keep: Keep, context: &mut Context<'_>) -> Result<(), Failure> {
    let Metadata {
        dataset,
        slot,
        manifest,
        data_sums,
        parity_sums,
    } = metadata;
    let record = context.record(*dataset)?;
    check(&record, metadata)?;
    let paths = context.parts.paths().clone();
    let files = [
        (paths.manifest(*dataset, *slot, keep), manifest),
        (paths.sums(*dataset, *slot, Stream::Data, keep), data_sums),
        (
            paths.sums(*dataset, *slot, Stream::Parity, keep),
            parity_sums,
        ),
    ];
    for (path, bytes) in files {
        context
            .store
            .put(&path, bytes)
            .map_err(|error| store_failure(&error))?;
    }
    context.parts.forget_copies(*dataset);
    Ok(())
}

/// Metadata of a slot, decoded, as far as the seal bears it out.
struct Checked {
    manifest: records::StoredManifest,
    data_sums: scrfs::layout::manifest::Sums,
    parity_sums: scrfs::layout::manifest::Sums,
}

fn check(record: &DatasetRecord, metadata: &Metadata) -> Result<Checked, Failure> {
    let wrong = |error| part_failure(&error);
    let slot = metadata.slot;
    let sealed = SealedPart::of(record, slot).map_err(wrong)?;
    let path = std::path::Path::new("(metadata from a peer)");
    let part = sealed.part;
    let manifest = records::decode_manifest(part, path, &metadata.manifest).map_err(wrong)?;
    sealed.check_manifest(path, &manifest).map_err(wrong)?;
    let sums = |stream, bytes: &[u8]| {
        let sums = records::decode_sums(part, stream, path, bytes).map_err(wrong)?;
        sealed.check_sums(path, &sums).map_err(wrong)?;
        Ok::<_, Failure>(sums)
    };
    let data_sums = sums(Stream::Data, &metadata.data_sums)?;
    let parity_sums = sums(Stream::Parity, &metadata.parity_sums)?;
    Ok(Checked {
        manifest,
        data_sums,
        parity_sums,
    })
}

/// The checksums of a slot's part log, from metadata that the seal bears out.
pub(crate) fn data_sums(
    record: &DatasetRecord,
    given: &Metadata,
) -> Option<scrfs::layout::manifest::Sums> {
    match check(record, given) {
        Ok(checked) => Some(checked.data_sums),
        Err(failure) => {
            tracing::error!(%failure, "metadata from a peer is not believed");
            None
        }
    }
}

/// What is known here of a slot: its own files before copies of them.
fn metadata_of(dataset: DatasetId, slot: Slot, context: &mut Context<'_>) -> Option<Metadata> {
    let record = context.record(dataset).ok()?;
    let paths = context.parts.paths().clone();
    [Keep::Own, Keep::Copy].into_iter().find_map(|keep| {
        let get = |path| context.store.get(path).ok().flatten();
        let metadata = Metadata {
            dataset,
            slot,
            manifest: get(&paths.manifest(dataset, slot, keep))?,
            data_sums: get(&paths.sums(dataset, slot, Stream::Data, keep))?,
            parity_sums: get(&paths.sums(dataset, slot, Stream::Parity, keep))?,
        };
        // Damaged or of something else: nothing to hand on.
        let sealed = SealedPart::of(&record, slot).ok()?;
        let believed = |stream| sums_that_fit(context.store, &paths, &sealed, stream, keep);
        let complete =
            believed(Stream::Data)?.is_complete() && believed(Stream::Parity)?.is_complete();
        (complete && check(&record, &metadata).is_ok()).then_some(metadata)
    })
}

#[cfg(test)]
mod tests;
