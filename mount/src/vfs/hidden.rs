//! Removing names where nothing may change: in sealed datasets, and in what earlier runs left behind.
//!
//! `unlink` and `rmdir` there only hide a name, on this node, in memory. When all names of a
//! dataset are hidden, `rmdir` of its top asks the coordinators to remove it, on every node; then all
//! of it is hidden from those who are still inside. What was begun and not ended changes nothing: the
//! names come back with a new run, and with a new daemon.
//!
//! Programs remove on each node what they wrote there, and the directories on one. So a `rmdir` of what is not
//! empty here first has all nodes tell each other what they hide, and looks again. Until then a
//! dataset is less than what was sealed only to those who removed a part of it themselves.
//!
//! Invariants: only names that exist are hidden, so that a directory is empty when as many names of it
//! are hidden as it has. What is below a hidden directory is not kept by name: memory is bounded by
//! the largest directories of one path.

use super::changes::exists;
use super::dir::open_child;
use super::inode::Inode;
use super::namespace::Names;
use super::requests::Answer;
use super::view::{Remote, View, path_below};
use super::{FsError, FsResult, Node, Vfs};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::{DirectoryChange, HIDDEN_BYTES_MAX, Refusal, Request};
use scrfs::id::DatasetId;
use scrfs::layout::record::Phase;
use scrfs::name::RelPath;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hidden names of one dataset, by the path of their directory; that of the top is empty. A leaf in the
/// lock order.
#[derive(Debug, Default)]
pub struct Hidden {
    names: Mutex<HashMap<Vec<u8>, HashSet<Vec<u8>>>>,
    /// Something was hidden on this node that the others have not been told.
    is_news: AtomicBool,
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

impl Hidden {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, HashSet<Vec<u8>>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether a name is hidden, or a directory above it.
    fn has(&self, directory: &[u8], name: &[u8]) -> bool {
        let names = self.lock();
        let is_in = |directory: &[u8], name: &[u8]| {
            let found = names.get(directory);
            found.is_some_and(|found| found.contains(name))
        };
        let mut above = directory;
        let mut inside = name;
        loop {
            if is_in(above, inside) {
                return true;
            }
            let Some(last) = above
                .rsplit(|&byte| byte == b'/')
                .next()
                .filter(|it| !it.is_empty())
            else {
                return false;
            };
            inside = last;
            above = &above[..(above.len() - last.len()).saturating_sub(1)];
        }
    }

    /// How many names of a directory are hidden.
    fn count(&self, directory: &[u8]) -> usize {
        self.lock().get(directory).map_or(0, HashSet::len)
    }

    /// What others have not been told, and all else that is hidden: in batches of paths.
    fn take_news(&self) -> Vec<Vec<RelPath>> {
        let names = self.lock();
        let mut batches = Vec::new();
        if !self.is_news.swap(false, Ordering::Relaxed) {
            return batches;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (directory, names) in names.iter() {
            for name in names {
                let Ok(path) = RelPath::new(&join(directory, name)) else {
                    continue;
                };
                bytes += path.as_bytes().len();
                batch.push(path);
                if bytes >= HIDDEN_BYTES_MAX {
                    batches.push(std::mem::take(&mut batch));
                    bytes = 0;
                }
            }
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// A program of this node removes a name; `false` when it was hidden.
    fn hide_here(&self, directory: &[u8], name: &[u8]) -> bool {
        let hidden = self.hide(directory, name);
        if hidden {
            self.is_news.store(true, Ordering::Relaxed);
        }
        hidden
    }

    /// Hides a name; `false` when it was.
    fn hide(&self, directory: &[u8], name: &[u8]) -> bool {
        let mut names = self.lock();
        // All that is in it is hidden with it.
        names.remove(&join(directory, name));
        names
            .entry(directory.to_vec())
            .or_default()
            .insert(name.to_vec())
    }
}

/// What programs are not shown of a dataset.
#[derive(Clone, Debug)]
pub enum Hiding {
    /// It is removed.
    All,
    /// Some names.
    Names(Arc<Hidden>),
}

impl Hiding {
    /// Whether a name of a directory is not shown.
    pub fn has(&self, directory: &[u8], name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Names(hidden) => hidden.has(directory, name),
        }
    }
}

impl Names {
    fn hiding(&self, dataset: DatasetId) -> Option<Hiding> {
        match self.get(dataset) {
            Some(found) if found.record.is_removed() => Some(Hiding::All),
            Some(found) if found.hidden.is_empty() => None,
            Some(found) => Some(Hiding::Names(Arc::clone(&found.hidden))),
            None => Some(Hiding::All),
        }
    }
}

/// Attributes of a view's directory path.
fn path_in(view: &View, place: usize) -> &[u8] {
    view.merged.path(place).map_or(&[], |path| path.as_bytes())
}

fn is_directory_at(view: &View, place: usize) -> bool {
    let shown = view.merged.shown(place);
    shown.is_some_and(|shown| {
        let kind = &view.merged.entry(shown).kind;
        matches!(kind, scrfs::layout::manifest::EntryKind::Directory)
    })
}

impl Vfs {
    /// What programs are not shown of a dataset; `None` when that is nothing.
    pub(super) fn hiding(&self, dataset: DatasetId) -> Option<Hiding> {
        self.read_names().hiding(dataset)
    }

    /// What tells the directories of a dataset apart from what they were before they were removed.
    pub(super) fn returns(&self, dataset: DatasetId) -> u64 {
        self.read_names()
            .get(dataset)
            .map_or(0, |found| found.returns)
    }

    /// Whether a dataset is removed.
    pub(super) fn is_gone(&self, dataset: DatasetId) -> bool {
        matches!(self.hiding(dataset), Some(Hiding::All))
    }

    /// That a name in a directory of a view is shown.
    pub(super) fn check_shown(&self, view: &View, place: usize, name: &OsStr) -> FsResult<()> {
        match self.hiding(view.dataset) {
            Some(hiding) if hiding.has(path_in(view, place), name.as_bytes()) => {
                Err(FsError::Missing)
            }
            _ => Ok(()),
        }
    }

    /// That a name in a directory of the cache is shown.
    pub(super) fn check_listed(&self, parent: &Inode, name: &OsStr) -> FsResult<()> {
        let Some(hiding) = self.hiding(parent.dataset) else {
            return Ok(());
        };
        match hiding.has(&self.path_of(parent)?, name.as_bytes()) {
            true => Err(FsError::Missing),
            false => Ok(()),
        }
    }

    /// The path of a directory of the cache below its dataset's top.
    pub(super) fn path_of(&self, directory: &Inode) -> FsResult<Vec<u8>> {
        let trees = {
            let names = self.read_names();
            let found = names.get(directory.dataset).ok_or(FsError::Missing)?;
            found.trees.clone()
        };
        if trees.iter().any(|(_, tree)| tree.ino == directory.ino) {
            return Ok(Vec::new());
        }
        let mut below = trees
            .iter()
            .filter_map(|(_, tree)| path_below(tree, directory).ok());
        let path = below.next().ok_or(FsError::Missing)?;
        Ok(path.as_os_str().as_bytes().to_vec())
    }

    /// Whether names of a dataset are hidden, where those of an open one would be removed.
    pub(super) fn is_fixed(&self, dataset: DatasetId) -> bool {
        let names = self.read_names();
        let found = names.get(dataset);
        found.is_none_or(|found| found.record.phase != Phase::Open)
    }

    /// Removes a name of what may not change: a directory that is empty, or anything else.
    pub(super) fn hide(
        self: &Arc<Self>,
        parent: Node,
        name: &OsStr,
        directory: bool,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let dataset = match &parent {
            Node::File(inode) => inode.dataset,
            Node::Remote(Remote { dataset, .. }) => *dataset,
            Node::Root | Node::Control(_) | Node::Pointer(_) => {
                return answer(Err(FsError::NotPermitted));
            }
        };
        let (vfs, name) = (Arc::clone(self), name.to_owned());
        self.when_told(
            dataset,
            move |view| vfs.hide_in(view, &parent, &name, directory),
            answer,
        );
    }

    /// Tries something; when it fails for what is in a directory, once more after other nodes have told
    /// what they hide.
    fn when_told(
        self: &Arc<Self>,
        dataset: DatasetId,
        attempt: impl Fn(Option<&View>) -> FsResult<()> + Send + 'static,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let vfs = Arc::clone(self);
        self.with_view(dataset, move |view| {
            match view.and_then(|view| attempt(view.as_deref())) {
                Err(FsError::NotEmpty) if vfs.has_peers() => {
                    let again = Arc::clone(&vfs);
                    let told = move |result| {
                        if let Err(refusal) = result {
                            tracing::debug!(%dataset, ?refusal, "nodes do not tell what they hide");
                            return answer(Err(FsError::NotEmpty));
                        }
                        again.with_view(dataset, move |view| {
                            answer(view.and_then(|view| attempt(view.as_deref())));
                        });
                    };
                    let change = DirectoryChange::TellHidden;
                    let what = Request::Change { dataset, change };
                    vfs.requests.ask(what, Box::new(told));
                }
                result => answer(result),
            }
        });
    }

    fn has_peers(&self) -> bool {
        self.requests.is_connected() && self.read_names().nodes.len() > 1
    }

    /// Tells all nodes what is hidden on this one, and answers when they know.
    pub fn tell_hidden(
        self: &Arc<Self>,
        dataset: DatasetId,
        answer: impl FnOnce(Result<(), Refusal>) + Send + 'static,
    ) {
        let hidden = {
            let names = self.read_names();
            names.get(dataset).map(|found| Arc::clone(&found.hidden))
        };
        match hidden {
            Some(hidden) => {
                let batches = hidden.take_news();
                self.tell_batches(dataset, hidden, batches, Box::new(answer));
            }
            None => answer(Ok(())),
        }
    }

    fn tell_batches(
        self: &Arc<Self>,
        dataset: DatasetId,
        hidden: Arc<Hidden>,
        mut batches: Vec<Vec<RelPath>>,
        answer: Answer,
    ) {
        let Some(names) = batches.pop() else {
            return answer(Ok(()));
        };
        let vfs = Arc::clone(self);
        let change = DirectoryChange::Hide { names };
        let told = move |result| match result {
            Ok(()) => vfs.tell_batches(dataset, hidden, batches, answer),
            Err(refusal) => {
                hidden.is_news.store(true, Ordering::Relaxed);
                answer(Err(refusal));
            }
        };
        let what = Request::Change { dataset, change };
        self.requests.ask(what, Box::new(told));
    }

    /// Shows names no longer that other nodes hide; answers when it is done.
    pub fn hide_all(
        self: &Arc<Self>,
        dataset: DatasetId,
        names: Vec<RelPath>,
        answer: impl FnOnce(Result<(), Refusal>) + Send + 'static,
    ) {
        let vfs = Arc::clone(self);
        self.with_view(dataset, move |view| {
            let result = view.and_then(|view| vfs.hide_told(dataset, view.as_deref(), &names));
            answer(result.map_err(|error| crate::errno::refusal_of(&error)));
        });
    }

    fn hide_told(
        &self,
        dataset: DatasetId,
        view: Option<&View>,
        names: &[RelPath],
    ) -> FsResult<()> {
        let (hidden, tree) = {
            let names = self.read_names();
            let found = names
                .get(dataset)
                .filter(|found| found.record.phase == Phase::Sealed);
            let found = found.ok_or(FsError::Missing)?;
            (Arc::clone(&found.hidden), found.tree.clone())
        };
        for path in names {
            let is_there = match (view, &tree) {
                (Some(view), _) => view.merged.find(path.as_bytes()).is_some(),
                (None, Some(tree)) => exists(tree, path),
                (None, None) => false,
            };
            let whole = path.as_bytes();
            let cut = whole.iter().rposition(|byte| *byte == b'/');
            let (above, name) = match cut {
                Some(cut) => (&whole[..cut], &whole[cut + 1..]),
                None => (&[][..], whole),
            };
            if is_there && !hidden.has(above, name) {
                hidden.hide(above, name);
            }
        }
        Ok(())
    }

    fn hide_in(
        &self,
        view: Option<&View>,
        parent: &Node,
        name: &OsStr,
        directory: bool,
    ) -> FsResult<()> {
        let (dataset, above) = match (parent, view) {
            (Node::File(inode), _) => (inode.dataset, self.path_of(inode)?),
            (Node::Remote(remote), Some(view)) => {
                let place = view.place(*remote)?;
                (remote.dataset, path_in(view, place).to_vec())
            }
            _ => return Err(FsError::Missing),
        };
        let hidden = {
            let names = self.read_names();
            let found = names
                .get(dataset)
                .filter(|found| !found.record.is_removed());
            Arc::clone(&found.ok_or(FsError::Missing)?.hidden)
        };
        if hidden.has(&above, name.as_bytes()) {
            return Err(FsError::Missing);
        }
        let path = join(&above, name.as_bytes());
        let (is_directory, entries) = match (view, parent) {
            (Some(view), _) => {
                let place = view.merged.find(&path).ok_or(FsError::Missing)?;
                let entries = view.merged.children(place).len();
                (is_directory_at(view, place), entries)
            }
            (None, Node::File(inode)) => {
                let child = open_child(inode, name)?;
                let is_directory = child.is_directory();
                let entries = match directory && is_directory {
                    true => count_entries(&child)?,
                    false => 0,
                };
                (is_directory, entries)
            }
            _ => return Err(FsError::Missing),
        };
        match (directory, is_directory) {
            (false, true) => return Err(Errno::EISDIR.into()),
            (true, false) => return Err(FsError::NotDirectory),
            (true, true) if hidden.count(&path) < entries => return Err(FsError::NotEmpty),
            _ => {}
        }
        // Of two who remove it one comes too late.
        match hidden.hide_here(&above, name.as_bytes()) {
            true => Ok(()),
            false => Err(FsError::Missing),
        }
    }

    /// Removes a dataset of which everything is hidden, on every node.
    pub(super) fn remove_hidden(
        self: &Arc<Self>,
        dataset: DatasetId,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let (vfs, asking) = (Arc::clone(self), Arc::clone(self));
        self.when_told(
            dataset,
            move |view| vfs.check_cleared(dataset, view),
            move |cleared| match cleared {
                Ok(()) => asking.ask(Request::Remove { dataset }, answer),
                Err(error) => answer(Err(error)),
            },
        );
    }

    fn check_cleared(&self, dataset: DatasetId, view: Option<&View>) -> FsResult<()> {
        let (hidden, tree) = {
            let names = self.read_names();
            let found = names.get(dataset).ok_or(FsError::Missing)?;
            (Arc::clone(&found.hidden), found.tree.clone())
        };
        let entries = match (view, tree) {
            (Some(view), _) => view.merged.children(0).len(),
            (None, Some(tree)) => count_entries(&tree)?,
            (None, None) => 0,
        };
        match hidden.count(b"") >= entries {
            true => Ok(()),
            false => Err(FsError::NotEmpty),
        }
    }
}

/// How many names a directory of the cache has.
fn count_entries(directory: &Inode) -> FsResult<usize> {
    let fd = sys::reopen(directory.fd()?.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
    let (mut count, mut offset) = (0, 0);
    loop {
        let entries = sys::read_directory(fd.as_fd(), offset)?;
        let Some(last) = entries.last() else {
            return Ok(count);
        };
        offset = last.next;
        let names = entries.iter().map(|entry| entry.name.as_slice());
        count += names.filter(|name| !matches!(*name, b"." | b"..")).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_hidden_directory_is_hidden_with_it() {
        let hidden = Hidden::default();
        assert!(hidden.hide(b"a/b", b"c") && hidden.hide(b"a/b", b"d"));
        assert!(!hidden.hide(b"a/b", b"c"));
        assert!(hidden.has(b"a/b", b"c") && !hidden.has(b"a/b", b"e") && !hidden.has(b"a", b"b"));
        assert!(!hidden.has(b"", b"a") && !hidden.has(b"", b"c") && !hidden.has(b"a", b"c"));
        assert_eq!(
            (hidden.count(b"a/b"), hidden.count(b"a"), hidden.count(b"")),
            (2, 0, 0)
        );
        assert!(hidden.hide(b"a", b"b"));
        assert_eq!((hidden.count(b"a/b"), hidden.count(b"a")), (0, 1));
        assert!(hidden.has(b"a/b", b"c") && hidden.has(b"a/b/x/y", b"z"));
        assert!(!hidden.has(b"a/bb", b"c") && !hidden.has(b"b", b"c"));
    }
}
