//! The store: records put down whole and durably, or not at all.
//!
//! One verb matters: [`Store::put`] replaces a small file atomically and returns when the new one
//! would survive a power loss. Bulk data does not pass here. Paths are inside the cache or prefix
//! that the store was opened on. Errors name the path.

pub mod posix;

use std::io;
use std::path::{Path, PathBuf};

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct StoreError {
    /// What was being done.
    pub verb: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl StoreError {
    /// For `map_err`.
    pub fn of(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { verb, path, source }
    }

    /// Whether there was no space.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Where records live.
pub trait Store {
    /// Replaces the file at `path` by `bytes`, atomically and durably; makes missing directories.
    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError>;

    /// The file's content; `None` when there is none.
    fn get(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError>;

    /// Names in a directory, sorted; empty when there is none.
    fn list(&self, path: &Path) -> Result<Vec<std::ffi::OsString>, StoreError>;

    /// Removes a file or a whole directory, durably; nothing there is no error.
    fn remove(&self, path: &Path) -> Result<(), StoreError>;

    /// Renames, durably. The target must not exist or be an empty directory.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError>;
}
