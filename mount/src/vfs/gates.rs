//! A [`Gate`] with its lock, the operations parked at it, and the way its notices go.
//!
//! Lock: one per dataset. Notices are queued to the coordinator *under* it, so that they arrive in
//! the order things happened; queueing never blocks. Parked operations run on a thread of their own,
//! never on one that reads the kernel's requests or the coordinator's messages.

use super::{FsError, FsResult};
use crate::gate::{Admission, Gate, Notice};
use scrfs::id::DatasetId;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Parked = Box<dyn FnOnce() + Send>;
/// Where notices go.
pub type Herald = Arc<dyn Fn(DatasetId, Notice) + Send + Sync>;

struct Inner {
    gate: Gate,
    parked: Vec<Parked>,
}

/// The gate of one dataset, shared by all who use it.
pub struct GateCell {
    dataset: DatasetId,
    inner: Mutex<Inner>,
    herald: Herald,
}

impl fmt::Debug for GateCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateCell")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

/// Permission to change a dataset; given back when dropped. It must be dropped *before* the program
/// is answered: its next step may be the release of what this one opened.
#[derive(Debug)]
pub struct PassGuard {
    cell: Arc<GateCell>,
    /// Whether a writable handle stays behind.
    pub opened_writable: bool,
}

impl PassGuard {
    /// The gate it was given at.
    pub fn cell(&self) -> &Arc<GateCell> {
        &self.cell
    }
}

impl Drop for PassGuard {
    fn drop(&mut self) {
        let mut inner = self.cell.lock();
        let notice = inner.gate.leave(self.opened_writable);
        self.cell.tell(notice);
    }
}

impl GateCell {
    /// A gate around `gate`.
    pub fn new(dataset: DatasetId, gate: Gate, herald: Herald) -> Arc<Self> {
        let inner = Mutex::new(Inner {
            gate,
            parked: Vec::new(),
        });
        Arc::new(Self {
            dataset,
            inner,
            herald,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, notice: Option<Notice>) {
        if let Some(notice) = notice {
            (self.herald)(self.dataset, notice);
        }
    }

    /// Runs `work` with a pass: at once, or after a thaw, or with an error once sealed.
    pub fn enter(self: &Arc<Self>, work: impl FnOnce(FsResult<PassGuard>) + Send + 'static) {
        let mut inner = self.lock();
        let (admission, notice) = inner.gate.enter();
        self.tell(notice);
        match admission {
            Admission::Admitted => {
                drop(inner);
                let cell = Arc::clone(self);
                work(Ok(PassGuard {
                    cell,
                    opened_writable: false,
                }));
            }
            Admission::Park => {
                let cell = Arc::clone(self);
                inner.parked.push(Box::new(move || cell.enter(work)));
            }
            Admission::Sealed => {
                drop(inner);
                work(Err(FsError::Sealed));
            }
        }
    }

    /// A pass for the coordinator's own changes: refused where a program would have to wait.
    pub fn try_enter(self: &Arc<Self>) -> FsResult<PassGuard> {
        let mut inner = self.lock();
        let (admission, notice) = inner.gate.enter();
        self.tell(notice);
        match admission {
            Admission::Admitted => Ok(PassGuard {
                cell: Arc::clone(self),
                opened_writable: false,
            }),
            Admission::Park => Err(FsError::Busy),
            Admission::Sealed => Err(FsError::Sealed),
        }
    }

    /// A writable handle is gone.
    pub fn release_writer(&self) {
        let mut inner = self.lock();
        let notice = inner.gate.release_writer();
        self.tell(notice);
    }

    /// See [`Gate::quiesce`].
    pub fn quiesce(&self) {
        let mut inner = self.lock();
        let notice = inner.gate.quiesce();
        self.tell(notice);
    }

    /// Runs `tell` if quiet at `generation` is still to be told; `false` when it is no longer.
    pub fn if_quiet_at(&self, generation: u64, tell: impl FnOnce()) -> bool {
        let inner = self.lock();
        let quiet = inner.gate.is_quiet_at(generation);
        if quiet {
            tell();
        }
        quiet
    }

    /// See [`Gate::freeze`].
    pub fn freeze(&self, generation: u64) -> bool {
        self.lock().gate.freeze(generation)
    }

    /// See [`Gate::thaw`].
    pub fn thaw(&self) {
        let mut inner = self.lock();
        inner.gate.thaw();
        Self::resume(inner);
    }

    /// See [`Gate::seal`].
    pub fn seal(&self) {
        let mut inner = self.lock();
        inner.gate.seal();
        Self::resume(inner);
    }

    /// See [`Gate::coordinator_gone`].
    pub fn coordinator_gone(&self) {
        self.lock().gate.coordinator_gone();
    }

    /// Writable handles open now.
    pub fn writers(&self) -> u64 {
        self.lock().gate.writers()
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.lock().gate.is_frozen()
    }

    fn resume(mut inner: MutexGuard<'_, Inner>) {
        let parked = std::mem::take(&mut inner.parked);
        drop(inner);
        if parked.is_empty() {
            return;
        }
        let run = move || parked.into_iter().for_each(|work| work());
        if let Err(error) = std::thread::Builder::new().name("resume".into()).spawn(run) {
            // The operations are dropped with the closure; their replies answer EIO.
            tracing::error!(%error, "no thread for parked operations");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn parked_operations_go_on_after_a_thaw_and_fail_after_a_seal() {
        let (said, heard) = mpsc::channel();
        let herald: Herald = Arc::new(move |_, notice| {
            let _ = said.send(notice);
        });
        let cell = GateCell::new(DatasetId(1), Gate::new_open(), herald);
        let (done, results) = mpsc::channel();
        let work = |done: mpsc::Sender<bool>| {
            move |pass: FsResult<PassGuard>| {
                let _ = done.send(pass.is_ok());
            }
        };
        cell.quiesce();
        assert_eq!(heard.recv(), Ok(Notice::Quiet(0)));
        assert!(cell.freeze(0));
        cell.enter(work(done.clone()));
        assert!(results.try_recv().is_err(), "parked");
        assert!(matches!(cell.try_enter(), Err(FsError::Busy)));
        cell.thaw();
        assert_eq!(results.recv(), Ok(true));
        // The pass is given back before the generation is used.
        while cell.try_enter().is_err() {}
        cell.quiesce();
        let Ok(Notice::Quiet(generation)) = heard.recv() else {
            panic!("quiet expected")
        };
        assert!(cell.freeze(generation));
        cell.enter(work(done));
        cell.seal();
        assert_eq!(results.recv(), Ok(false));
    }
}
