//! Which prefix a cache is of: the one that its datasets are flushed to, and come from.
//!
//! A cache outlives its daemon, and outside of a batch system all jobs have one name. Under another prefix a
//! daemon would offer one program the checkpoints of another, and flush them to where they do not belong. So every
//! store has its prefix written down, and while it has datasets it is of no other. A prefix that can be
//! reached by two paths is one.

use crate::layout::path::CachePaths;
use crate::store::{Store, StoreError};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a cache is not taken.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// It has datasets of another prefix.
    #[error(
        "the cache {} has datasets of the prefix {}, not of {}. Give that prefix to go on with them, or this job \
         a name of its own: --job NAME. If nobody needs them, remove the cache; if the prefix has been moved, \
         remove the file {}",
        cache.display(), theirs.display(), asked.display(), file.display()
    )]
    Other {
        /// Its directory.
        cache: PathBuf,
        /// Whose it is.
        theirs: PathBuf,
        /// What was asked for.
        asked: PathBuf,
        /// Where that is written.
        file: PathBuf,
    },
    /// It does not say.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// That a cache, if it has anything, is of this prefix; an older one that does not say is.
///
/// # Errors
///
/// It is of another, or cannot be read.
pub fn check(store: &impl Store, cache: &CachePaths, prefix: &Path) -> Result<(), OwnerError> {
    let file = cache.owner();
    let Some(text) = store.get(&file)? else {
        return Ok(());
    };
    let theirs = Path::new(OsStr::from_bytes(text.strip_suffix(b"\n").unwrap_or(&text)));
    if is_same(theirs, prefix) || store.list(&cache.datasets())?.is_empty() {
        return Ok(());
    }
    Err(OwnerError::Other {
        cache: cache.root().to_owned(),
        theirs: theirs.to_owned(),
        asked: prefix.to_owned(),
        file,
    })
}

/// The same, and writes down that it is from now on. To be called with the lock of the cache.
///
/// # Errors
///
/// As those of [`check`]; it cannot be written.
pub fn claim(store: &impl Store, cache: &CachePaths, prefix: &Path) -> Result<(), OwnerError> {
    check(store, cache, prefix)?;
    let text = [prefix.as_os_str().as_bytes(), b"\n"].concat();
    if store.get(&cache.owner())?.as_ref() != Some(&text) {
        store.put(&cache.owner(), &text)?;
    }
    Ok(())
}

/// Whether two paths lead to one prefix.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    one == other || matches!((place(one), place(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::id::DatasetId;
    use crate::store::posix::PosixStore;

    #[test]
    fn a_cache_that_has_datasets_is_of_one_prefix() {
        let store = PosixStore::new();
        let root = tempfile::tempdir().unwrap();
        let [one, other] = ["one\nline", "other"].map(|name| root.path().join(name));
        fs::create_dir(&one).unwrap();
        let cache = CachePaths::at(&root.path().join("cache"));
        // What an older version left says nothing.
        fs::create_dir_all(cache.dataset(DatasetId(1))).unwrap();
        check(&store, &cache, &other).unwrap();
        fs::remove_dir(cache.dataset(DatasetId(1))).unwrap();
        for prefix in [&other, &one] {
            claim(&store, &cache, prefix).unwrap();
        }
        fs::create_dir(cache.dataset(DatasetId(1))).unwrap();
        claim(&store, &cache, &one).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&one, &link).unwrap();
        claim(&store, &cache, &link).unwrap();
        for refused in [claim, check] {
            let error = refused(&store, &cache, &other).unwrap_err().to_string();
            assert!(error.contains("--job NAME"), "{error}");
            assert!(error.contains(&*cache.root().to_string_lossy()), "{error}");
        }
        check(&store, &cache, &one).unwrap();
        // Object stores have no directory.
        let urls = ["s3://bucket/a", "s3://bucket/b"].map(Path::new);
        assert!(is_same(urls[0], urls[0]) && !is_same(urls[0], urls[1]));
    }
}
