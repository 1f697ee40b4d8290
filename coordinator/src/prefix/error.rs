//! Why the prefix cannot be read or written, and whether trying again may help.

use crate::part::PartError;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::envelope::EnvelopeError;
use scrfs::layout::scr::ScrError;
use scrfs::name::{Name, RelPath};
use scrfs::redundancy::{ReadError, Stream};
use scrfs::store::StoreError;
use std::io;
use std::path::{Path, PathBuf};

/// Why the prefix cannot be read or written. Everything names the path.
#[derive(Debug, thiserror::Error)]
pub enum PrefixError {
    /// There is no such directory.
    #[error("the prefix {path:?} does not exist: make it, or name another")]
    Missing {
        /// The prefix.
        path: PathBuf,
    },
    /// There is something else.
    #[error("the prefix {path:?} is not a directory")]
    NotADirectory {
        /// The prefix.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {verb} {path:?}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A part in the cache, or its copy in the prefix.
    #[error(transparent)]
    Part(#[from] PartError),
    /// The name in the prefix is taken by something that scrfs did not put there.
    #[error("{path:?} is there and is not ours: move it away, then `{name}` can be flushed")]
    NotOurs {
        /// What is there.
        path: PathBuf,
        /// The dataset that should be.
        name: Name,
    },
    /// Two slots have the same file: one would overwrite the other.
    #[error("dataset {dataset}: both {first} and {second} have `{path}`")]
    Collision {
        /// Of which dataset.
        dataset: DatasetId,
        /// Which file.
        path: RelPath,
        /// The lower slot.
        first: Slot,
        /// The other.
        second: Slot,
    },
    /// What was flushed is not there as it should be.
    #[error("dataset {dataset}: {path:?} has {what} {found}, {expected} was expected")]
    Incomplete {
        /// Of which dataset.
        dataset: DatasetId,
        /// What.
        path: PathBuf,
        /// In which respect.
        what: &'static str,
        /// As sealed.
        expected: String,
        /// As found.
        found: String,
    },
    /// A record of ours does not decode.
    #[error("{path:?} is damaged")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        source: EnvelopeError,
    },
    /// The prefix does not have it.
    #[error("dataset {dataset}: there is no {path:?}")]
    NotThere {
        /// Which dataset.
        dataset: DatasetId,
        /// What would be there.
        path: PathBuf,
    },
    /// A record of SCR's.
    #[error("{path:?}, which SCR wrote, cannot be used")]
    Scr {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: ScrError,
    },
    /// No dataset of that name.
    #[error(
        "there is no dataset `{name}` in the prefix {prefix:?}; `scrfs list` shows what is there"
    )]
    NoSuch {
        /// What was asked for.
        name: Name,
        /// Where.
        prefix: PathBuf,
    },
    /// What was asked would harm.
    #[error("`{name}` in the prefix {prefix:?} {why}")]
    InUse {
        /// Which dataset.
        name: Name,
        /// Where.
        prefix: PathBuf,
        /// What it is needed for.
        why: &'static str,
    },
    /// Something has the name that a dataset of SCR's needs for a directory of its own.
    #[error(
        "`{name}` of SCR is to be gathered at {path:?}, where something else is: move that away, or put \
         its files into another directory yourself, and add that"
    )]
    Taken {
        /// The dataset.
        name: Name,
        /// What is there.
        path: PathBuf,
    },
    /// Somebody else changed it at the same moment.
    #[error("{path:?} was changed by somebody else just now: look, and try again")]
    Changed {
        /// What.
        path: PathBuf,
    },
    /// The object store refused.
    #[cfg(feature = "objects")]
    #[error("cannot {verb} {path:?}")]
    Object {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: object_store::Error,
    },
    /// No object store, or not so.
    #[error("the prefix {url} cannot be used: {why}")]
    Url {
        /// The prefix, or what in it.
        url: String,
        /// Why not.
        why: String,
    },
    /// More is lost than the scheme tolerates.
    #[error("dataset {dataset} cannot be rebuilt")]
    Beyond {
        /// Which.
        dataset: DatasetId,
        /// Why not.
        source: ReadError,
    },
    /// Something that a lost slot is made from was not copied.
    #[error("{stream:?} of {slot} is needed, and was not copied")]
    Source {
        /// Whose.
        slot: Slot,
        /// What of it.
        stream: Stream,
    },
    /// Only sealed datasets are flushed.
    #[error("dataset {dataset} is not sealed")]
    NotSealed {
        /// Which.
        dataset: DatasetId,
    },
    /// An attempt that was given up has not come back from the file system.
    #[error("dataset {dataset}: the attempt before still hangs at {path:?}")]
    Hanging {
        /// Which.
        dataset: DatasetId,
        /// Where it writes to.
        path: PathBuf,
    },
    /// The caller wanted no more of it.
    #[error("dataset {dataset}: stopped on request")]
    Cancelled {
        /// Which.
        dataset: DatasetId,
    },
}

/// What kind of trouble it is: what to tell people, and what to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// No space or no quota: when somebody has made room, it goes on.
    NoSpace,
    /// Mounted read-only.
    ReadOnly,
    /// Not permitted to this user.
    Denied,
    /// The server or the network is away, or busy.
    Unavailable,
    /// Bytes or records are wrong, or not there.
    Damaged,
    /// Something of somebody else's, or of another slot, is in the way.
    Conflict,
    /// Stopped on request.
    Cancelled,
    /// Anything else.
    Other,
}

impl PrefixError {
    /// The operating system's error, when that is what it was.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Part(error) => error.io(),
            _ => None,
        }
    }

    /// What kind of trouble it is.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Missing { .. }
            | Self::NotADirectory { .. }
            | Self::NotSealed { .. }
            | Self::NoSuch { .. } => Cause::Other,
            Self::Io { source, .. } => cause_of(source),
            #[cfg(feature = "objects")]
            Self::Object { source, .. } => cause_of_object(source),
            Self::Url { .. } => Cause::Other,
            Self::Part(error) => match error.io() {
                Some(source) => cause_of(source),
                None if error.is_damage() => Cause::Damaged,
                None => Cause::Other,
            },
            Self::NotOurs { .. }
            | Self::Collision { .. }
            | Self::InUse { .. }
            | Self::Taken { .. }
            | Self::Changed { .. } => Cause::Conflict,
            Self::Incomplete { .. }
            | Self::Damaged { .. }
            | Self::NotThere { .. }
            | Self::Beyond { .. }
            | Self::Source { .. }
            | Self::Scr { .. } => Cause::Damaged,
            Self::Hanging { .. } => Cause::Unavailable,
            Self::Cancelled { .. } => Cause::Cancelled,
        }
    }

    /// Whether the same may work later without anybody changing permissions, mounts or data.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.cause(),
            Cause::NoSpace | Cause::Unavailable | Cause::Cancelled
        )
    }

    /// For `map_err` on what the operating system answers.
    pub(super) fn io_at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

#[cfg(feature = "objects")]
fn cause_of_object(error: &object_store::Error) -> Cause {
    use object_store::Error;
    match error {
        Error::NotFound { .. } => Cause::Damaged,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Cause::Denied,
        // The network, a server that is busy, one that does not answer.
        Error::Generic { .. } => Cause::Unavailable,
        _ => Cause::Other,
    }
}

fn cause_of(error: &io::Error) -> Cause {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Cause::NoSpace,
        Some(libc::EROFS) => Cause::ReadOnly,
        Some(libc::EACCES | libc::EPERM) => Cause::Denied,
        Some(
            libc::EIO
            | libc::EAGAIN
            | libc::EBUSY
            | libc::EINTR
            | libc::ESTALE
            | libc::ENOTCONN
            | libc::ESHUTDOWN
            | libc::ETIMEDOUT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENOMEM
            | libc::EMFILE
            | libc::ENFILE,
        ) => Cause::Unavailable,
        Some(libc::ENOENT) => Cause::Damaged,
        _ => Cause::Other,
    }
}

impl From<StoreError> for PrefixError {
    fn from(error: StoreError) -> Self {
        Self::Io {
            verb: error.verb,
            path: error.path,
            source: error.source,
        }
    }
}
