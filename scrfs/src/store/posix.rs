//! The store on a POSIX filesystem: write a temporary name, fsync, rename, fsync the directory.
//!
//! A store may have a *home*, a directory that it makes when it is not there. It makes no directory but below
//! that one, reached by its descriptor, and makes it nowhere but where it has been: when the file system that it lies
//! on is unmounted, nothing is made anew in the mount point. Where that is, two numbers tell, of which one may change:
//! the device is another after it was mounted again, as an automounter does; the inode, after somebody has
//! removed it.
//!
//! A reserve file of a few MiB in each store is given up when a record meets a full device, so
//! that a commit is still possible when programs have filled the cache.

use super::{Store, StoreError};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store on real files.
#[derive(Clone, Debug, Default)]
pub struct PosixStore {
    reserves: Vec<PathBuf>,
    home: Option<Arc<Home>>,
}

/// The directory below which a store makes others.
#[derive(Debug)]
struct Home {
    path: PathBuf,
    /// Device and inode, when it was last seen.
    seen: Mutex<Option<(u64, u64)>>,
}

impl Home {
    /// Opens it, if it is the one that it was. Makes it, but nothing above it, where it has been or if none was
    /// seen.
    fn open(&self) -> Result<OwnedFd, StoreError> {
        // Not held: what is asked for here may hang.
        let seen = *self.seen();
        let path = &self.path;
        let is_there =
            |device: u64, inode: u64| seen.is_none_or(|seen| seen.0 == device || seen.1 == inode);
        let another = || StoreError {
            verb: "find again (is it mounted?)",
            path: path.clone(),
            source: io::Error::from_raw_os_error(nix::errno::Errno::ESTALE as i32),
        };
        let opened = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = File::open(parent(path)).map_err(StoreError::of("open", path))?;
                let found = above.metadata().map_err(StoreError::of("open", path))?;
                if seen.is_some_and(|seen| seen.0 != found.dev()) {
                    return Err(another());
                }
                let name = Path::new(path.file_name().unwrap_or_default());
                make_in(&above, name).map_err(StoreError::of("make", path))?;
                open_in(&above, name).map(File::from)
            }
            other => other,
        };
        let home = opened.map_err(StoreError::of("open", path))?;
        let found = home.metadata().map_err(StoreError::of("open", path))?;
        if !is_there(found.dev(), found.ino()) {
            return Err(another());
        }
        *self.seen() = Some((found.dev(), found.ino()));
        Ok(home.into())
    }

    /// Remembers what it is, or where it would be made, if nothing was seen of it yet. May hang, as its file system does.
    fn see(&self) {
        let found = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
        let seen = found(&self.path).or_else(|_| Ok((found(parent(&self.path))?.0, NO_INODE)));
        let seen: io::Result<_> = seen;
        if let Ok(seen) = seen {
            self.seen().get_or_insert(seen);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a directory below it and those above that are missing, durably.
    fn make_directories(&self, below: &Path) -> Result<(), StoreError> {
        let home = self.open()?;
        if below.as_os_str().is_empty() {
            return Ok(());
        }
        let make = || -> io::Result<()> {
            match open_in(&home, below) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map(drop),
            }
            let mut above = home;
            for name in below.components() {
                make_in(&above, name.as_ref())?;
                above = open_in(&above, name.as_ref())?;
            }
            Ok(())
        };
        make().map_err(StoreError::of("make", &self.path.join(below)))
    }
}

fn open_in(above: impl AsFd, below: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(openat(above, below, flags, Mode::empty())?)
}

/// Makes a directory and its name durable. Who was quicker may not have synced it yet.
fn make_in(above: impl AsFd, name: &Path) -> io::Result<()> {
    match mkdirat(&above, name, Mode::from_bits_truncate(0o777)) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(nix::unistd::fsync(above)?),
        Err(error) => Err(error.into()),
    }
}

/// The number of no inode.
const NO_INODE: u64 = u64::MAX;
/// How often a stale file is looked for again.
const STALE_TRIES: usize = 4;
/// Size of the reserve: room for the records of many commits.
const RESERVE_BYTES: i64 = 8 << 20;

impl PosixStore {
    /// A store without a reserve.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that makes directories below this one only, which it makes as well if it is not there.
    pub fn at_home(path: PathBuf) -> Self {
        let seen = Mutex::default();
        Self {
            reserves: Vec::new(),
            home: Some(Arc::new(Home { path, seen })),
        }
    }

    /// Remembers what its home is, so that nothing is made where that is mounted when it is not any more. May hang, as its
    /// file system does.
    pub fn see_home(&self) {
        if let Some(home) = &self.home {
            home.see();
        }
    }

    /// As [`make_directories`], but not beyond the store's home, if it has one.
    pub fn make_directories(&self, directory: &Path) -> Result<(), StoreError> {
        let Some(home) = &self.home else {
            return make_directories(directory);
        };
        match directory.strip_prefix(&home.path) {
            Ok(below) => home.make_directories(below),
            // Beside it, where nothing is made.
            Err(_) => Ok(()),
        }
    }

    /// A store that keeps reserves at these paths. Not being able to make one now is no error: it is
    /// made again by [`Self::refill_reserves`] when there is space.
    pub fn with_reserves(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let store = Self {
            reserves: paths.into_iter().collect(),
            home: None,
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

    fn put_once(&self, path: &Path, directory: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.make_directories(directory)?;
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
        match self.put_once(path, directory, bytes) {
            Err(error) if error.is_no_space() && self.spend_reserves() => {
                self.put_once(path, directory, bytes)
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
        self.make_directories(directory)?;
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
    fn a_home_is_made_where_it_was_and_nowhere_else() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mount = root.path().join("mount");
        let home = mount.join("home");
        let store = PosixStore::at_home(home.clone());
        let put = |below: &str| store.put(&home.join(below), b"one");
        put("a/record").expect_err("no directory above it");
        assert!(!mount.exists());
        store.see_home();
        fs::create_dir(&mount).expect("a directory");
        store.see_home();
        let seen = *store.home.as_ref().expect("a home").seen();
        assert_eq!(seen.expect("seen").1, NO_INODE);
        put("a/b/record").expect("put");
        put("record").expect("put");
        // Removed and made anew by somebody, on the same device.
        fs::remove_dir_all(&mount).expect("removed");
        fs::create_dir(&mount).expect("made");
        put("a/b/record").expect("put");
        put("record").expect("put");
        // A file in the way is not made a directory.
        put("record/below").expect_err("a file");
        // Unmounted, as if it had been on another device.
        let away = root.path().join("away");
        fs::rename(&mount, &away).expect("renamed");
        let of_another = || {
            let home = store.home.as_ref().expect("a home");
            let mut seen = home.seen.lock().expect("whole");
            *seen = seen.map(|(device, inode)| (device + 1, inode));
        };
        of_another();
        fs::create_dir(&mount).expect("the mount point");
        for _ in 0..2 {
            let error = put("a/b/record").expect_err("away").to_string();
            assert!(error.contains("mounted"), "{error}");
            store.make_directories(&home.join("c")).expect_err("away");
            let to = home.join("d/record");
            store.rename(&root.path().join("x"), &to).expect_err("away");
            assert_eq!(fs::read_dir(&mount).expect("there").count(), 0);
        }
        // Nor is what lies there by mistake taken for it.
        fs::create_dir(&home).expect("another");
        put("a/record").expect_err("another");
        store
            .clone()
            .put(&home.join("record"), b"")
            .expect_err("another");
        assert_eq!(fs::read_dir(&home).expect("there").count(), 0);
        fs::remove_dir_all(&mount).expect("removed");
        // Mounted again, the device is another.
        fs::rename(&away, &mount).expect("mounted again");
        put("a/b/record").expect("put");
        put("c/d/record").expect("put");
        of_another();
        put("record").expect("put");
        // Who has only looked knows as well, whether or not it was there then.
        for is_there in [true, false] {
            let store = PosixStore::at_home(home.clone());
            if !is_there {
                fs::remove_dir_all(&home).expect("removed");
            }
            store.see_home();
            let seen = &store.home.as_ref().expect("a home").seen;
            let device = fs::metadata("/proc").expect("another device").dev();
            let inode = seen.lock().expect("whole").expect("seen").1;
            *seen.lock().expect("whole") = Some((device, inode.wrapping_add(1)));
            store.put(&home.join("e"), b"").expect_err("another");
            fs::create_dir_all(home.join("c/d")).expect("there");
            fs::write(home.join("c/d/record"), b"one").expect("written");
        }
        let read = store.get(&home.join("c/d/record")).expect("read");
        assert_eq!(read.as_deref(), Some(&b"one"[..]));
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
