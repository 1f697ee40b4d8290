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
use std::time::{Duration, Instant};

type Parked = Box<dyn FnOnce() + Send>;
/// Where notices go; `false` when nobody can see to it.
pub type Herald = Arc<dyn Fn(DatasetId, Notice) -> bool + Send + Sync>;

struct Inner {
    gate: Gate,
    parked: Vec<Parked>,
    /// How long the coordinator wants it to be quiet.
    settle: Duration,
    /// Since when it is, counted from when the coordinator asked.
    quiet_since: Instant,
    /// Somebody waits for [`GateCell::settling`] to come to its end.
    watched: bool,
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
        self.cell.tell(&mut inner, notice);
    }
}

impl GateCell {
    /// A gate around `gate`.
    pub fn new(dataset: DatasetId, gate: Gate, herald: Herald) -> Arc<Self> {
        let inner = Mutex::new(Inner {
            gate,
            parked: Vec::new(),
            settle: Duration::ZERO,
            quiet_since: Instant::now(),
            watched: false,
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

    fn tell(&self, inner: &mut Inner, notice: Option<Notice>) {
        let Some(notice) = notice else { return };
        let quiet = matches!(notice, Notice::Quiet(_));
        if quiet {
            inner.quiet_since = Instant::now();
            if inner.watched {
                return;
            }
        }
        let heard = (self.herald)(self.dataset, notice);
        inner.watched |= quiet && heard;
    }

    /// Runs `work` with a pass: at once, or after a thaw, or with an error once sealed.
    pub fn enter(self: &Arc<Self>, work: impl FnOnce(FsResult<PassGuard>) + Send + 'static) {
        let mut inner = self.lock();
        let (admission, notice) = inner.gate.enter();
        self.tell(&mut inner, notice);
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
        self.tell(&mut inner, notice);
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
        self.tell(&mut inner, notice);
    }

    /// See [`Gate::quiesce`]; it is to be told when it has been quiet for so long from now on.
    pub fn quiesce(&self, settle: Duration) {
        let mut inner = self.lock();
        inner.settle = settle;
        let notice = inner.gate.quiesce();
        self.tell(&mut inner, notice);
    }

    /// The generation at which it is quiet, and for how long it must still be; `None` when it is
    /// not, or nobody wants to know. Then whoever watches is to end: another is called when it is.
    pub fn settling(&self) -> Option<(u64, Duration)> {
        let mut inner = self.lock();
        let Some(generation) = inner.gate.told_quiet_at() else {
            inner.watched = false;
            return None;
        };
        let left = inner.settle.saturating_sub(inner.quiet_since.elapsed());
        Some((generation, left))
    }

    /// It is written in a way the gate does not see: the time begins anew.
    pub fn unsettle(&self) {
        self.lock().quiet_since = Instant::now();
    }

    /// Runs `tell` if it is still quiet at `generation` and has settled, and ends the watch; `false`
    /// when the watch must go on.
    pub fn if_settled_at(&self, generation: u64, tell: impl FnOnce()) -> bool {
        let mut inner = self.lock();
        let settled = inner.gate.told_quiet_at() == Some(generation)
            && inner.quiet_since.elapsed() >= inner.settle;
        if settled {
            inner.watched = false;
            tell();
        }
        settled
    }

    /// The watch ends without a result.
    pub fn unwatch(&self) {
        self.lock().watched = false;
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
        let herald: Herald = Arc::new(move |_, notice| said.send(notice).is_ok());
        let cell = GateCell::new(DatasetId(1), Gate::new_open(), herald);
        let (done, results) = mpsc::channel();
        let work = |done: mpsc::Sender<bool>| {
            move |pass: FsResult<PassGuard>| {
                let _ = done.send(pass.is_ok());
            }
        };
        cell.quiesce(Duration::ZERO);
        assert_eq!(heard.recv(), Ok(Notice::Quiet(0)));
        assert!(cell.if_settled_at(0, || {}));
        assert!(cell.freeze(0));
        cell.enter(work(done.clone()));
        assert!(results.try_recv().is_err(), "parked");
        assert!(matches!(cell.try_enter(), Err(FsError::Busy)));
        cell.thaw();
        assert_eq!(results.recv(), Ok(true));
        // The pass is given back before the generation is used.
        while cell.try_enter().is_err() {}
        cell.quiesce(Duration::ZERO);
        let Ok(Notice::Quiet(generation)) = heard.recv() else {
            panic!("quiet expected")
        };
        assert!(cell.freeze(generation));
        cell.enter(work(done));
        cell.seal();
        assert_eq!(results.recv(), Ok(false));
    }

    #[test]
    fn it_settles_from_the_last_change_on_and_one_watches() {
        let (said, heard) = mpsc::channel();
        let herald: Herald = Arc::new(move |_, notice| said.send(notice).is_ok());
        let cell = GateCell::new(DatasetId(1), Gate::new_open(), herald);
        cell.quiesce(Duration::from_secs(3600));
        assert_eq!(heard.recv(), Ok(Notice::Quiet(0)));
        assert!(!cell.if_settled_at(0, || panic!("too early")));
        let (generation, left) = cell.settling().expect("quiet");
        assert_eq!(generation, 0);
        assert!(left > Duration::from_secs(3000), "{left:?}");
        drop(cell.try_enter().expect("open"));
        assert_eq!(heard.recv(), Ok(Notice::Disturbed(1)));
        assert!(heard.try_recv().is_err(), "the first watches still");
        assert_eq!(cell.settling().map(|(generation, _)| generation), Some(1));
        let pass = cell.try_enter().expect("open");
        assert_eq!(cell.settling(), None, "a change is under way");
        drop(pass);
        assert_eq!(heard.recv(), Ok(Notice::Disturbed(2)));
        assert_eq!(heard.recv(), Ok(Notice::Quiet(2)), "another is called");
        cell.quiesce(Duration::ZERO);
        assert!(cell.if_settled_at(2, || {}), "now it need not settle");
    }
}
