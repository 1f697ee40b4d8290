//! Triggers at work: what programs of this node do is told to [`scrfs::trigger::Triggers`], and what
//! that proposes is asked of the coordinators, as if a program had.
//!
//! Nobody waits for these proposals; what is refused is proposed again by [`Vfs::propose`], which the
//! daemon's clock calls. A file counts as closed when the kernel releases its handle, shortly
//! after the last close.
//!
//! Lock: the state machine, a leaf. It does not survive the daemon.

use super::inode::Inode;
use super::{FsError, FsResult, Vfs};
use scrfs::control::{Refusal, Request};
use scrfs::id::DatasetId;
use scrfs::name::{Name, RelPath};
use scrfs::trigger::{Proposal, Triggers};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Setting it on a dataset's directory proposes to commit it under its own name.
const COMMIT_ATTRIBUTE: &[u8] = b"user.scrfs.commit";

/// The triggers of this node, and their clock.
#[derive(Debug)]
pub struct Watch {
    state: Mutex<Triggers>,
    began: Instant,
}

impl Watch {
    /// Nothing has happened yet.
    pub fn new(triggers: Triggers) -> Self {
        Self {
            state: Mutex::new(triggers),
            began: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Triggers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn answered(&self, proposal: &Proposal, result: Result<(), Refusal>) {
        let Proposal { dataset, name, .. } = proposal;
        match result {
            Ok(()) => tracing::info!(%dataset, %name, "committed by a trigger"),
            Err(refusal) if proposal.refusals == 0 => {
                tracing::info!(
                    %dataset, %name, ?refusal,
                    "what a trigger proposed cannot be committed yet; it is proposed again"
                );
            }
            Err(refusal) => tracing::debug!(%dataset, %name, ?refusal, "still not committed"),
        }
        self.lock().answered(self.now_ms(), proposal, result);
    }
}

impl Vfs {
    /// A dataset has this name now, and is open or not.
    pub(super) fn watch_dataset(&self, dataset: DatasetId, name: &Name, open: bool) {
        let now_ms = self.watch.now_ms();
        self.watch.lock().dataset(now_ms, dataset, name, open);
        self.propose();
    }

    /// A dataset is no more.
    pub(super) fn unwatch_dataset(&self, dataset: DatasetId) {
        self.watch.lock().forget(dataset);
    }

    /// A writable handle of `inode` is about to be released.
    pub(super) fn path_if_watched(&self, inode: &Inode) -> Option<RelPath> {
        if !self.watch.lock().watches(inode.dataset) {
            return None;
        }
        let tree = self.read_names().get(inode.dataset)?.tree.clone()?;
        let path = super::view::path_below(&tree, inode).ok()?;
        RelPath::new(path.as_os_str().as_bytes()).ok()
    }

    /// A file was closed after writing.
    pub(super) fn tell_written(&self, dataset: DatasetId, path: Option<RelPath>) {
        if let Some(path) = path {
            self.watch
                .lock()
                .written(self.watch.now_ms(), dataset, &path);
            self.propose();
        }
    }

    /// A file in the directory `parent` was given this name.
    pub(super) fn tell_named(&self, parent: &Inode, name: &OsStr) {
        if self.watch.lock().watches(parent.dataset) {
            self.tell_written(parent.dataset, self.child_path(parent, name).ok());
        }
    }

    /// A file in the directory `parent` does not have this name any more.
    pub(super) fn tell_unnamed(&self, parent: &Inode, name: &OsStr) {
        if !self.watch.lock().watches(parent.dataset) {
            return;
        }
        if let Ok(path) = self.child_path(parent, name) {
            self.watch
                .lock()
                .removed(self.watch.now_ms(), parent.dataset, &path);
            self.propose();
        }
    }

    /// A plain file at the top became visible, with this content.
    pub fn tell_pointer_written(&self, pointer: &Name, content: &[u8]) {
        let now_ms = self.watch.now_ms();
        self.watch.lock().pointer_written(now_ms, pointer, content);
        self.propose();
    }

    /// A plain file at the top was removed, or renamed away.
    pub fn tell_pointer_removed(&self, pointer: &Name) {
        let now_ms = self.watch.now_ms();
        self.watch.lock().pointer_removed(now_ms, pointer);
        self.propose();
    }

    /// Asks for the commits that are due.
    pub fn propose(&self) {
        let due = self.watch.lock().poll(self.watch.now_ms());
        for proposal in due {
            let request = Request::Commit {
                dataset: proposal.dataset,
                to: proposal.name.clone(),
                settle_ms: proposal.settle_ms,
            };
            tracing::debug!(?proposal, "a trigger proposes");
            let watch = Arc::clone(&self.watch);
            self.requests.ask(
                request,
                Box::new(move |result| watch.answered(&proposal, result)),
            );
        }
    }

    /// What setting an extended attribute asks for, if it is the one that commits. It says `1`, or
    /// nothing, and is set on the dataset's own directory.
    pub fn commit_by_attribute(
        &self,
        ino: u64,
        name: &OsStr,
        value: &[u8],
    ) -> Option<FsResult<Request>> {
        if name.as_bytes() != COMMIT_ATTRIBUTE {
            return None;
        }
        if !matches!(value, b"" | b"1") {
            return Some(Err(FsError::Invalid));
        }
        let names = self.read_names();
        let mut shown = names.shown();
        Some(match shown.find(|dataset| dataset.top_ino() == Some(ino)) {
            Some(dataset) => Ok(Request::Commit {
                dataset: dataset.record.id,
                to: dataset.record.name.clone(),
                settle_ms: 0,
            }),
            None => Err(FsError::Invalid),
        })
    }
}
