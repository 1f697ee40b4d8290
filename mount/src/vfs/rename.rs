//! Renames: of datasets and pointer files at the top, and of names inside datasets.
//!
//! What may not move: nothing between datasets (EXDEV, so that `mv` copies), no dataset into
//! another and no directory out to the top (EINVAL: a copy would be no dataset of the program's).
//! Directories in open datasets are renamed by the coordinators, on every node at once.

use super::dir::open_path;
use super::gates::PassGuard;
use super::inode::Inode;
use super::{FsError, FsResult, Node, Vfs};
use crate::sys;
use nix::errno::Errno;
use scrfs::control::{DirectoryChange, Request};
use scrfs::layout::record::Phase;
use scrfs::name::Name;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::SystemTime;

impl Vfs {
    /// Renames a dataset (which may commit it), or a name inside one.
    pub fn rename(
        self: &Arc<Self>,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: u32,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        let nodes = self
            .node(from.0)
            .and_then(|source| Ok((source, self.node(to.0)?)));
        let (source, target) = match nodes {
            Ok((Node::Root, Node::Root)) => return self.rename_top(from.1, to.1, flags, answer),
            Ok((Node::File(source), Node::File(target))) => (source, target),
            Ok((Node::Remote(_), _) | (_, Node::Remote(_))) => {
                return answer(Err(FsError::Sealed));
            }
            // A pointer file into a dataset, or a file to the top: `mv` copies.
            Ok((Node::Root, Node::File(_))) if self.is_pointer_name(from.1) => {
                return answer(Err(FsError::OtherDataset));
            }
            Ok((Node::File(source), Node::Root)) if !is_directory_in(&source, from.1) => {
                return answer(Err(FsError::OtherDataset));
            }
            // A dataset into another, or a directory to the top.
            Ok((Node::Root, Node::File(_)) | (Node::File(_), Node::Root)) => {
                return answer(Err(FsError::Invalid));
            }
            Ok((Node::Pointer(_), _) | (_, Node::Pointer(_))) => {
                return answer(Err(FsError::NotDirectory));
            }
            Ok((Node::Control(_), _) | (_, Node::Control(_))) => {
                return answer(Err(FsError::NotPermitted));
            }
            Err(error) => return answer(Err(error)),
        };
        if source.dataset != target.dataset {
            return answer(Err(FsError::OtherDataset));
        }
        if self.is_merged(source.dataset) {
            return answer(Err(FsError::Sealed));
        }
        match self.rename_directories(&source, from.1, &target, to.1, flags) {
            Ok(Some(change)) => {
                return self.ask(
                    Request::Change {
                        dataset: source.dataset,
                        change,
                    },
                    answer,
                );
            }
            Ok(None) => {}
            Err(error) => return answer(Err(error)),
        }
        let dataset = source.dataset;
        let (name, new_name) = (from.1.to_owned(), to.1.to_owned());
        let operation = move |vfs: &Arc<Self>, _: &mut PassGuard| {
            let (old, new) = (source.fd()?, target.fd()?);
            if flags & libc::RENAME_EXCHANGE == 0 {
                vfs.removing(&target, &new_name);
            }
            sys::rename_at(old.as_fd(), &name, new.as_fd(), &new_name, flags)?;
            vfs.tell_unnamed(&source, &name);
            vfs.tell_named(&target, &new_name);
            Ok(())
        };
        self.change(dataset, operation, answer);
    }

    /// The change to ask for when directories are renamed; `None` for everything else.
    fn rename_directories(
        &self,
        source: &Inode,
        name: &OsStr,
        target: &Inode,
        new_name: &OsStr,
        flags: u32,
    ) -> FsResult<Option<DirectoryChange>> {
        let is_directory = |inode: &Inode, name: &OsStr| match open_path(inode.fd()?.as_fd(), name)
        {
            Ok(fd) => Ok(Some(
                sys::stat(fd.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR,
            )),
            Err(FsError::System(Errno::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        };
        let from = is_directory(source, name)?.ok_or(FsError::Missing)?;
        let to = is_directory(target, new_name)?;
        if !from && to != Some(true) {
            return Ok(None);
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            return match (from, to) {
                (_, None) => Err(FsError::Missing),
                (true, Some(true)) => Ok(Some(DirectoryChange::Exchange {
                    one: self.child_path(source, name)?,
                    other: self.child_path(target, new_name)?,
                    token: new_token(),
                })),
                // The other nodes have the directory and not the file.
                _ => Err(FsError::Invalid),
            };
        }
        if !from {
            return Ok(None);
        }
        if flags & libc::RENAME_NOREPLACE != 0 && to.is_some() {
            return Err(FsError::Exists);
        }
        Ok(Some(DirectoryChange::Rename {
            from: self.child_path(source, name)?,
            to: self.child_path(target, new_name)?,
            token: new_token(),
        }))
    }

    fn rename_top(
        self: &Arc<Self>,
        name: &OsStr,
        new_name: &OsStr,
        flags: u32,
        answer: impl FnOnce(FsResult<()>) + Send + 'static,
    ) {
        match self.rename_request(name, new_name, flags) {
            Ok(Some(what)) => self.ask(what, answer),
            Ok(None) => answer(Ok(())),
            Err(error) => answer(Err(error)),
        }
    }

    fn is_pointer_name(&self, name: &OsStr) -> bool {
        Name::new(name.as_bytes()).is_ok_and(|name| self.pointers.find(&name).is_some())
    }

    /// What a rename at the top asks for; `None` when it has happened already.
    fn rename_request(
        &self,
        name: &OsStr,
        new_name: &OsStr,
        flags: u32,
    ) -> FsResult<Option<Request>> {
        let name = Name::new(name.as_bytes())?;
        let to = Name::new(new_name.as_bytes())?;
        if let Some(what) = self.rename_pointer(&name, &to, flags)? {
            return Ok(Some(what));
        }
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(FsError::Invalid);
        }
        let late = self.committed_from(&name);
        let names = self.read_names();
        let Some(dataset) = names.find(&name) else {
            // The kernel answers the identical late rename itself; this is one to another name.
            let same = names
                .find(&to)
                .and_then(|found| found.tree.as_ref())
                .map(|tree| tree.ino);
            let is_late = late.is_some_and(|tree| Some(tree.ino) == same);
            return if is_late {
                Ok(None)
            } else {
                Err(FsError::Missing)
            };
        };
        if dataset.record.phase != Phase::Open {
            return Err(FsError::Sealed);
        }
        let dataset = dataset.record.id;
        Ok(Some(
            if self.settings().commit.is_temporary(to.as_bytes()) {
                Request::Rename { dataset, to }
            } else {
                Request::Commit {
                    dataset,
                    to,
                    settle_ms: 0,
                }
            },
        ))
    }
}

/// Tells one change of directories from all others.
fn new_token() -> u64 {
    RandomState::new().hash_one(SystemTime::now())
}

/// Whether a name there is a directory's.
fn is_directory_in(parent: &Inode, name: &OsStr) -> bool {
    let found = parent
        .fd()
        .map_err(FsError::from)
        .and_then(|fd| open_path(fd.as_fd(), name))
        .and_then(|fd| Ok(sys::stat(fd.as_fd())?));
    found.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
