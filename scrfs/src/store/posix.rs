//! The store on a POSIX filesystem: write a temporary name, fsync, rename, fsync the directory.
//!
//! A reserve file of a few MiB in each store is given up when a record meets a full device, so
//! that a commit is still possible when programs have filled the cache.

use super::{Store, StoreError};
use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A store on real files.
#[derive(Clone, Debug, Default)]
pub struct PosixStore {
    reserves: Vec<PathBuf>,
}

/// How often a stale file is looked for again.
const STALE_TRIES: usize = 4;
/// Size of the reserve: room for the records of many commits.
const RESERVE_BYTES: i64 = 8 << 20;

impl PosixStore {
    /// A store without a reserve.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that keeps reserves at these paths. Not being able to make one now is no error: it is
    /// made again by [`Self::refill_reserves`] when there is space.
    pub fn with_reserves(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let store = Self {
            reserves: paths.into_iter().collect(),
        };
        store.refill_reserves();
        store
    }

    /// Makes the reserves whole again where there is space.
    pub fn refill_reserves(&self) {
        for path in &self.reserves {
            let made = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .and_then(|file| {
                    let mode = nix::fcntl::FallocateFlags::empty();
                    nix::fcntl::fallocate(&file, mode, 0, RESERVE_BYTES).map_err(io::Error::from)
                });
            if let Err(error) = made {
                tracing::debug!(path = %path.display(), %error, "no space for the reserve now");
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Gives all of them up: which of them lies where the record does, its path does not say.
    fn spend_reserves(&self) -> bool {
        let spend = |path: &PathBuf| match fs::metadata(path) {
            Ok(found) if found.len() > 0 => fs::remove_file(path).is_ok(),
            _ => false,
        };
        self.reserves.iter().filter(|path| spend(path)).count() > 0
    }

    fn put_once(path: &Path, directory: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        make_directories(directory)?;
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        // Unlike that of any other writer, also one on another machine that has our process's number;
        // the number tells what was left behind.
        let process = std::process::id();
        let unique = RandomState::new().hash_one(process);
        name.push(format!(".{unique:016x}.{process}.new"));
        let temporary = directory.join(name);
        let written = File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(StoreError::of("write", &temporary))
            .and_then(|()| fs::rename(&temporary, path).map_err(StoreError::of("replace", path)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        sync_directory(directory)
    }
}

/// Tries again what failed because another machine replaced the file meanwhile: over NFS the one that
/// was opened is then stale, and a new look finds the new one.
fn unless_stale<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..STALE_TRIES {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::StaleNetworkFileHandle => {}
            other => return other,
        }
    }
    act()
}

/// Makes the names in `directory` durable.
pub fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(StoreError::of("sync", directory))
}

/// Makes a directory and those above it that are missing, and the names of all that it made durable: a file
/// that was synced is lost with the name of a directory above it.
///
/// # Errors
///
/// When one cannot be made or synced.
pub fn make_directories(directory: &Path) -> Result<(), StoreError> {
    match fs::create_dir(directory) {
        Ok(()) => return sync_directory(parent(directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) if directory.is_dir() => return Ok(()),
        Err(error) => return Err(StoreError::of("make", directory)(error)),
    }
    make_directories(parent(directory))?;
    match fs::create_dir(directory) {
        // Somebody else was quicker, and may not have synced it yet.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StoreError::of("make", directory)(error))
        }
        _ => sync_directory(parent(directory)),
    }
}

fn parent(path: &Path) -> &Path {
    let above = path.parent().filter(|path| !path.as_os_str().is_empty());
    above.unwrap_or(Path::new("."))
}

impl Store for PosixStore {
    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let directory = parent(path);
        match Self::put_once(path, directory, bytes) {
            Err(error) if error.is_no_space() && self.spend_reserves() => {
                Self::put_once(path, directory, bytes)
            }
            other => other,
        }
    }

    fn get(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        match unless_stale(|| fs::read(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::of("read", path)(error)),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<OsString>, StoreError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::of("list", path)(error)),
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(StoreError::of("list", path))?;
        names.sort();
        Ok(names)
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => sync_directory(parent(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::of("remove", path)(error)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let directory = parent(to);
        make_directories(directory)?;
        fs::rename(from, to).map_err(StoreError::of("rename", from))?;
        sync_directory(parent(from))?;
        sync_directory(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_once_and_files_are_not_taken_for_them() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let deep = root.path().join("a/b/c");
        for _ in 0..2 {
            make_directories(&deep).expect("made, or there");
            assert!(deep.is_dir());
        }
        let file = root.path().join("a/file");
        File::create(&file).expect("a file");
        for wrong in [file.clone(), file.join("below")] {
            make_directories(&wrong).expect_err("no directory");
        }
        make_directories(Path::new("src")).expect("a relative one");
    }

    #[test]
    fn a_record_is_replaced_whole_and_removed() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let store = PosixStore::new();
        let path = root.path().join("a/b/record");
        assert_eq!(store.get(&path).expect("nothing there"), None);
        store.put(&path, b"one").expect("put");
        store.put(&path, b"two!").expect("put again");
        assert_eq!(
            store.get(&path).expect("get").as_deref(),
            Some(&b"two!"[..])
        );
        assert_eq!(
            store.list(&root.path().join("a/b")).expect("list"),
            ["record"]
        );
        store.remove(&root.path().join("a")).expect("remove");
        store
            .remove(&root.path().join("a"))
            .expect("remove nothing");
        assert_eq!(
            store.list(&root.path().join("a")).expect("list nothing"),
            [""; 0]
        );
    }

    #[test]
    fn what_is_stale_is_looked_for_again_but_not_for_ever() {
        let stale = || io::Error::from(io::ErrorKind::StaleNetworkFileHandle);
        let mut left = 2;
        let found = unless_stale(|| {
            left -= 1;
            if left > 0 { Err(stale()) } else { Ok(left) }
        });
        assert_eq!(found.expect("found"), 0);
        let mut tries = 0;
        let found = unless_stale(|| {
            tries += 1;
            Err::<(), _>(stale())
        });
        assert!(found.is_err() && tries == STALE_TRIES, "{tries}");
    }

    #[test]
    fn errors_name_the_path() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let file = root.path().join("file");
        fs::write(&file, b"").expect("write");
        let error = PosixStore::new()
            .put(&file.join("x"), b"")
            .expect_err("below a file");
        assert!(error.to_string().contains("file"), "{error}");
    }
}
