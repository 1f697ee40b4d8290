//! Names: at the top, where they are datasets, and inside datasets, where they are the cache's own.
//!
//! At the top nothing happens here: making, renaming and removing datasets is asked of the
//! coordinators. Inside a dataset directories are changed by the coordinators too, on every node at
//! once ([`super::changes`]); all else is local and behind the gate. No symbolic link is ever followed.

use super::attr::{self, Attr};
use super::control_dir::ControlNode;
use super::gates::PassGuard;
use super::inode::{Inode, ROOT};
use super::{Caller, Entry, FsError, FsResult, Node, TTL, Vfs};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::{DirectoryChange, Level, Request};
use scrfs::id::DatasetId;
use scrfs::layout::pointer::Content;
use scrfs::layout::record::Phase;
use scrfs::name::{CONTROL_DIRECTORY, Name, RelPath};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

impl Vfs {
    /// What stands behind `name`; counts one reference by the kernel.
    pub fn lookup(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        answer: impl FnOnce(FsResult<Entry>) + Send + 'static,
    ) {
        let name = name.to_owned();
        match self.node(parent) {
            Ok(Node::Pointer(_)) => answer(Err(FsError::NotDirectory)),
            Ok(Node::File(parent)) if self.is_merged(parent.dataset) => {
                let vfs = Arc::clone(self);
                self.with_view(parent.dataset, move |view| {
                    answer(view.and_then(|view| match view {
                        Some(view) => {
                            let place = vfs.place_of(&view, &parent)?;
                            vfs.lookup_for(caller, &view, place, &name)
                        }
                        None => vfs.lookup_listed(&parent, &name),
                    }));
                });
            }
            Ok(Node::Remote(parent)) => {
                self.with_remote(parent, answer, move |vfs, view, place| {
                    vfs.lookup_for(caller, view, place, &name)
                });
            }
            Ok(Node::File(parent)) => answer(self.lookup_listed(&parent, &name)),
            Ok(Node::Root | Node::Control(_)) => answer(self.lookup_virtual(caller, parent, &name)),
            Err(error) => answer(Err(error)),
        }
    }

    /// What stands behind `name` at the top or in `.scr`.
    pub(super) fn lookup_virtual(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
    ) -> FsResult<Entry> {
        match self.node(parent)? {
            Node::Root => self.lookup_top(caller, name),
            Node::Control(control) => self.lookup_control(control, name),
            Node::Pointer(_) => Err(FsError::NotDirectory),
            Node::File(_) | Node::Remote(_) => Err(FsError::Invalid),
        }
    }

    fn lookup_top(&self, caller: Caller, name: &OsStr) -> FsResult<Entry> {
        if name.as_bytes() == CONTROL_DIRECTORY {
            return self.control_top();
        }
        let name = Name::new(name.as_bytes())?;
        let found = self
            .read_names()
            .find(&name)
            .map(|dataset| match &dataset.tree {
                Some(tree) => Ok(Arc::clone(tree)),
                None => Err(super::view::top_attr(&dataset.record)),
            });
        let tree = match found {
            Some(Ok(tree)) => tree,
            Some(Err(remote)) => {
                let attr = remote?;
                let remote = super::view::Remote::of(attr.ino).ok_or(FsError::Broken)?;
                return Ok(Entry {
                    attr,
                    generation: self.returns(remote.dataset),
                    entry_ttl: Duration::ZERO,
                    attr_ttl: Duration::ZERO,
                });
            }
            None => match self.pointers.find(&name) {
                Some(file) => return Ok(self.pointer_entry(&file)),
                None => match self.late_rename(caller, &name) {
                    Some(tree) => tree,
                    None => return self.shelved_entry(caller, &name),
                },
            },
        };
        self.entry_of_tree(tree)
    }

    /// The dataset that was committed from `name` a moment ago, for a caller that renames.
    fn late_rename(&self, caller: Caller, name: &Name) -> Option<Arc<Inode>> {
        let tree = self.committed_from(name)?;
        // `None`: it cannot be found out, and the rename of another process is the likelier one.
        ((self.settings().is_renaming)(caller.pid) != Some(false)).then_some(tree)
    }

    pub(super) fn committed_from(&self, name: &Name) -> Option<Arc<Inode>> {
        let grace = self.settings().grace;
        let names = self.read_names();
        let mut found: Vec<_> = names
            .shown()
            .filter(|dataset| dataset.record.committed_from.as_ref() == Some(name))
            .filter(|dataset| dataset.sealed_here.is_some_and(|at| at.elapsed() < grace))
            .collect();
        found.sort_by_key(|dataset| dataset.sealed_here);
        found.last().and_then(|dataset| dataset.tree.clone())
    }

    pub(super) fn entry(&self, inode: Arc<Inode>) -> FsResult<Entry> {
        let inode = self.inodes.remember(inode);
        let attr = self
            .attr_of(&inode)
            .inspect_err(|_| self.inodes.forget(inode.ino, 1))?;
        // Another node may rename or remove a directory of an open dataset at any time.
        let fixed = !inode.is_directory() || self.is_sealed(inode.dataset);
        let entry_ttl = if fixed { TTL } else { Duration::ZERO };
        let returns = match inode.is_directory() {
            // The kernel looks at the lower 32 bits.
            true => self.returns(inode.dataset).wrapping_mul(0x9e37_79b1),
            false => 0,
        };
        Ok(Entry {
            attr,
            generation: inode.generation().wrapping_add(returns),
            entry_ttl,
            attr_ttl: TTL,
        })
    }

    pub(super) fn entry_of_tree(&self, tree: Arc<Inode>) -> FsResult<Entry> {
        let entry = self.entry(tree)?;
        Ok(Entry {
            entry_ttl: Duration::ZERO,
            ..entry
        })
    }

    /// Attributes of an inode of the cache. The links of a directory that other nodes have entries of
    /// are not counted: 1, which tells programs not to conclude anything.
    fn attr_of(&self, inode: &Inode) -> FsResult<Attr> {
        let mut attr = attr::get(inode)?;
        if inode.is_directory() && self.is_merged(inode.dataset) {
            attr.nlink = 1;
        }
        Ok(attr)
    }

    fn is_sealed(&self, dataset: DatasetId) -> bool {
        self.read_names()
            .get(dataset)
            .is_none_or(|found| found.record.phase != Phase::Open)
    }

    /// `readdirplus` names an inode: counts one reference by the kernel.
    pub fn lookup_listed(&self, parent: &Arc<Inode>, name: &OsStr) -> FsResult<Entry> {
        self.check_listed(parent, name)?;
        let inode = open_child(parent, name)?;
        self.entry(inode)
    }

    /// Makes a dataset, or a directory in one.
    pub fn mkdir(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        answer: impl FnOnce(FsResult<Entry>) + Send + 'static,
    ) {
        let (vfs, name_owned) = (Arc::clone(self), name.to_owned());
        let Caller { uid, gid, .. } = caller;
        let what = match self.node(parent) {
            Ok(Node::Pointer(_)) => Err(FsError::NotDirectory),
            Ok(Node::Root) => Name::new(name.as_bytes())
                .map_err(FsError::from)
                .map(|name| Request::Create {
                    name,
                    mode,
                    uid,
                    gid,
                }),
            Ok(Node::Control(_)) => Err(FsError::NotPermitted),
            Ok(Node::Remote(_)) => Err(FsError::Sealed),
            Ok(Node::File(inode)) => self.child_path(&inode, name).map(|path| Request::Change {
                dataset: inode.dataset,
                change: DirectoryChange::Make {
                    path,
                    mode,
                    uid,
                    gid,
                },
            }),
            Err(error) => Err(error),
        };
        let found = move |result: FsResult<()>| match result {
            Ok(()) => vfs.lookup(caller, parent, &name_owned, answer),
            Err(error) => answer(Err(error)),
        };
        match what {
            Ok(what) => self.ask(what, found),
            Err(error) => found(Err(error)),
        }
    }

    /// Removes a dataset that is empty, or an empty directory in one.
    pub fn rmdir(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let what = match self.node(parent) {
            Ok(Node::Pointer(_)) => Err(FsError::NotDirectory),
            Ok(Node::Root) => return self.remove_at_top(name, answer),
            Ok(Node::Control(ControlNode::Incomplete)) => {
                return match self.incomplete_of(name) {
                    Some(dataset) => self.remove_hidden(dataset, answer),
                    None => answer(Err(FsError::Missing)),
                };
            }
            Ok(Node::Control(_)) => Err(FsError::NotPermitted),
            Ok(parent @ Node::Remote(_)) => return self.hide(parent, name, true, answer),
            Ok(Node::File(inode)) if self.is_fixed(inode.dataset) => {
                return self.hide(Node::File(inode), name, true, answer);
            }
            Ok(Node::File(inode)) => self.directory_at(&inode, name).and_then(|child| {
                if !is_empty(&child)? {
                    return Err(FsError::NotEmpty);
                }
                let path = self.child_path(&inode, name)?;
                let change = DirectoryChange::Remove { path };
                Ok(Request::Change {
                    dataset: inode.dataset,
                    change,
                })
            }),
            Err(error) => Err(error),
        };
        match what {
            Ok(what) => self.ask(what, answer),
            Err(error) => answer(Err(error)),
        }
    }

    fn remove_at_top(
        self: &Arc<Self>,
        name: &OsStr,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let found = Name::new(name.as_bytes()).map_err(FsError::from);
        let found = found.and_then(|name| {
            let names = self.read_names();
            let dataset = names.find(&name).ok_or(FsError::Missing)?;
            let is_open = dataset.record.phase == Phase::Open;
            match dataset.tree.as_ref().filter(|_| is_open) {
                Some(tree) if !is_empty(tree)? => Err(FsError::NotEmpty),
                _ => Ok((dataset.record.id, is_open)),
            }
        });
        match found {
            Ok((dataset, true)) => self.ask(Request::Remove { dataset }, answer),
            Ok((dataset, false)) => self.remove_hidden(dataset, answer),
            Err(error) => answer(Err(error)),
        }
    }

    /// Asks the coordinators. A change inside a dataset waits at its gate first, so that nobody is
    /// asked to change what is frozen.
    pub fn ask(
        self: &Arc<Self>,
        what: Request,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let answer: super::requests::Answer =
            Box::new(move |result| answer(result.map_err(FsError::Refused)));
        let Request::Change { dataset, .. } = what else {
            return self.requests.ask(what, answer);
        };
        let requests = Arc::clone(&self.requests);
        let Some(gate) = self.gate(dataset) else {
            return answer(Err(scrfs::control::Refusal::Missing));
        };
        gate.enter(move |pass| match pass {
            Ok(pass) => {
                // Given back before it is carried out, which enters anew.
                drop(pass);
                requests.ask(what, answer);
            }
            Err(error) => answer(Err(crate::errno::refusal_of(&error))),
        });
    }

    /// Removes a name that is not a directory.
    pub fn unlink(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        if parent == ROOT {
            return self.unlink_at_top(name, answer);
        }
        match self.node(parent) {
            Ok(parent @ Node::Remote(_)) => return self.hide(parent, name, false, answer),
            Ok(Node::File(inode)) if self.is_fixed(inode.dataset) => {
                return self.hide(Node::File(inode), name, false, answer);
            }
            _ => {}
        }
        let (name, vfs) = (name.to_owned(), Arc::clone(self));
        self.change_in(parent, answer, move |parent, _| {
            vfs.removing(parent, &name);
            sys::unlink_at(parent.fd()?.as_fd(), &name, false)?;
            vfs.tell_unnamed(parent, &name);
            Ok(())
        });
    }

    /// Makes a file, pipe, socket or device without opening it. The kernel lets only root make
    /// devices.
    pub fn mknod(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        (mode, rdev): (u32, u32),
        answer: impl FnOnce(FsResult<Entry>) + Send + 'static,
    ) {
        if parent == ROOT && matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            let content = Content::File(Vec::new());
            return self.make_at_top(caller, name, content, mode, answer);
        }
        let name = name.to_owned();
        let vfs = Arc::clone(self);
        self.change_in(parent, answer, move |parent, _| {
            sys::mknod_at(parent.fd()?.as_fd(), &name, mode, rdev)?;
            vfs.made(parent, &name, caller, Some(mode & 0o7777))
        });
    }

    /// Makes a symbolic link.
    pub fn symlink(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        target: &OsStr,
        answer: impl FnOnce(FsResult<Entry>) + Send + 'static,
    ) {
        if parent == ROOT {
            let content = Content::Link(target.as_bytes().to_vec());
            return self.make_at_top(caller, name, content, 0o777, answer);
        }
        let (name, target) = (name.to_owned(), target.to_owned());
        let vfs = Arc::clone(self);
        self.change_in(parent, answer, move |parent, _| {
            sys::symlink_at(&target, parent.fd()?.as_fd(), &name)?;
            vfs.made(parent, &name, caller, None)
        });
    }

    /// Gives a file another name in its dataset.
    pub fn link(
        self: &Arc<Self>,
        ino: u64,
        parent: u64,
        name: &OsStr,
        answer: impl FnOnce(FsResult<Entry>) + Send + 'static,
    ) {
        let name = name.to_owned();
        let vfs = Arc::clone(self);
        self.change_in(parent, answer, move |parent, _| {
            let inode = match vfs.node(ino)? {
                Node::Remote(remote) if remote.dataset != parent.dataset => {
                    return Err(FsError::OtherDataset);
                }
                _ => vfs.inode(ino)?,
            };
            if inode.dataset != parent.dataset {
                return Err(FsError::OtherDataset);
            }
            sys::link_at(inode.fd()?.as_fd(), parent.fd()?.as_fd(), &name)?;
            vfs.tell_named(parent, &name);
            vfs.entry(inode)
        });
    }

    /// Hands a new inode to its maker and tells the kernel of it. What cannot be handed over is
    /// taken back.
    pub(super) fn made(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        caller: Caller,
        mode: Option<u32>,
    ) -> FsResult<Entry> {
        let made = open_child(parent, name).and_then(|inode| {
            attr::give(
                inode.fd()?.as_fd(),
                parent.fd()?.as_fd(),
                caller.uid,
                caller.gid,
                mode,
            )?;
            self.entry(inode)
        });
        if made.is_err() {
            let _ = sys::unlink_at(parent.fd()?.as_fd(), name, false);
        }
        made
    }

    /// Changes something in a directory of a dataset, behind its gate.
    pub(super) fn change_in<T: 'static>(
        self: &Arc<Self>,
        parent: u64,
        answer: impl FnOnce(FsResult<T>) + Send + 'static,
        operation: impl FnOnce(&Arc<Inode>, &mut PassGuard) -> FsResult<T> + Send + 'static,
    ) {
        match self.inode(parent) {
            Ok(parent) => self.change(
                parent.dataset,
                move |_, pass| operation(&parent, pass),
                answer,
            ),
            Err(error) => answer(Err(error)),
        }
    }

    /// What a symbolic link says.
    pub fn readlink(&self, ino: u64) -> FsResult<Vec<u8>> {
        match self.node(ino)? {
            Node::Remote(remote) => {
                // The kernel has its number from there.
                let view = self.ready_view(remote.dataset).ok_or(FsError::Missing)?;
                view.link_target(view.place(remote)?)
            }
            Node::File(inode) => Ok(sys::read_link(inode.fd()?.as_fd())?),
            Node::Control(control) => self.control_link(control),
            Node::Pointer(file) => Self::read_pointer_link(&file),
            Node::Root => Err(FsError::Invalid),
        }
    }

    /// Waits until what the directory holds survives the loss of a node.
    pub fn sync_directory(
        self: &Arc<Self>,
        ino: u64,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let wanted: Vec<DatasetId> = match self.node(ino) {
            Ok(Node::Pointer(_)) => Vec::new(),
            Ok(Node::Root) => {
                let names = self.read_names();
                names
                    .shown()
                    .filter(|found| found.is_unprotected())
                    .map(|d| d.record.id)
                    .collect()
            }
            Ok(Node::File(inode)) => {
                let opened = inode
                    .fd()
                    .and_then(|fd| sys::reopen(fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY));
                if let Ok(fd) = opened
                    && let Err(error) = std::fs::File::from(fd).sync_all()
                {
                    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                    return answer(Err(errno.into()));
                }
                let names = self.read_names();
                let found = names.get(inode.dataset).filter(|found| {
                    found.is_unprotected()
                        && found
                            .tree
                            .as_ref()
                            .is_some_and(|tree| tree.ino == inode.ino)
                });
                found.map(|found| found.record.id).into_iter().collect()
            }
            Ok(Node::Remote(remote)) => {
                let names = self.read_names();
                let found = names.get(remote.dataset);
                let found = found.filter(|found| remote.number == 0 && found.is_unprotected());
                found.map(|found| found.record.id).into_iter().collect()
            }
            Ok(Node::Control(_)) => Vec::new(),
            Err(error) => return answer(Err(error)),
        };
        if wanted.is_empty() || !self.requests.is_connected() {
            if !wanted.is_empty() {
                tracing::warn!(
                    ?wanted,
                    "no coordinator: a directory is synced on this node only"
                );
            }
            return answer(Ok(()));
        }
        let left = Arc::new(Mutex::new((wanted.len(), Ok(()), Some(answer))));
        for dataset in wanted {
            let left = Arc::clone(&left);
            let one = move |result: FsResult<()>| {
                let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                left.0 -= 1;
                left.1 = left.1.and(result);
                if left.0 == 0
                    && let Some(answer) = left.2.take()
                {
                    answer(left.1);
                }
            };
            self.ask(
                Request::Wait {
                    dataset,
                    level: Level::Protected,
                },
                one,
            );
        }
    }

    fn directory_at(&self, parent: &Arc<Inode>, name: &OsStr) -> FsResult<Arc<Inode>> {
        let child = open_child(parent, name)?;
        if child.is_directory() {
            Ok(child)
        } else {
            Err(FsError::NotDirectory)
        }
    }

    /// The path of `name` in `parent`, below the dataset's top.
    pub(super) fn child_path(&self, parent: &Inode, name: &OsStr) -> FsResult<RelPath> {
        let tree = self
            .read_names()
            .get(parent.dataset)
            .and_then(|found| found.tree.clone());
        let tree = tree.ok_or(FsError::Missing)?;
        if tree.ino == parent.ino {
            return Ok(RelPath::new(name.as_bytes())?);
        }
        let below = super::view::path_below(&tree, parent)?;
        Ok(RelPath::new(below.as_os_str().as_bytes())?.join(name.as_bytes())?)
    }

    /// Attributes of anything.
    pub fn getattr(&self, ino: u64) -> FsResult<(Attr, Duration)> {
        match self.node(ino)? {
            Node::Root => Ok((self.top_attr(), Duration::ZERO)),
            Node::Control(control) => Ok((self.control_attr(control)?, Duration::ZERO)),
            Node::Pointer(file) => Ok((Self::pointer_attr(&file), Duration::ZERO)),
            Node::File(inode) => Ok((self.attr_of(&inode)?, TTL)),
            Node::Remote(remote) => self.remote_attr(remote),
        }
    }

    fn top_attr(&self) -> Attr {
        let (uid, gid, mode) = self.settings().top;
        let names = self.read_names();
        let newest = names
            .shown()
            .map(|d| d.record.sealed.unwrap_or(d.record.created))
            .max();
        let directories = names.shown().count() as u32;
        let time = newest.map_or((0, 0), super::control_dir::to_timespec);
        Attr {
            ino: ROOT,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            mode: libc::S_IFDIR | mode,
            nlink: directories + 3,
            uid,
            gid,
            blksize: 4096,
        }
    }
}

pub(super) fn open_path(dir: BorrowedFd<'_>, name: &OsStr) -> FsResult<OwnedFd> {
    Ok(sys::open_at(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?)
}

/// The inode behind a name in a directory of a dataset.
pub(super) fn open_child(parent: &Arc<Inode>, name: &OsStr) -> FsResult<Arc<Inode>> {
    if matches!(name.as_bytes(), b"." | b"..") {
        return Err(FsError::Invalid);
    }
    let fd = open_path(parent.fd()?.as_fd(), name)?;
    Ok(Arc::new(parent.sibling(fd)?))
}

fn is_empty(directory: &Inode) -> FsResult<bool> {
    let fd = sys::reopen(directory.fd()?.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
    let entries = sys::read_directory(fd.as_fd(), 0)?;
    Ok(entries
        .iter()
        .all(|entry| matches!(entry.name.as_slice(), b"." | b"..")))
}
