//! Where the cache lies: a directory that was named, or a private tmpfs that is mounted here.
//!
//! `store.path = "tmpfs"` asks for a tmpfs of our own: with huge pages, which make it several times faster
//! than `/dev/shm`, and with a size that the daemon sets ([`crate::space`]). It is mounted on
//! `/run/scrfs.<uid>/<job>`, mode 0700, so that nobody gets past the mount, and outlives the daemon: the
//! next one finds it there. Only `--purge` takes it away.
//!
//! Mounting needs `CAP_SYS_ADMIN`. Where it cannot be done the cache is in `/dev/shm`, and the reason is
//! kept for `scrfs status`. So it is when an earlier daemon had to put data there: they are not left behind.
//!
//! Invariant: two daemons that start at once never mount one upon the other (a lock on the directory above).

use crate::cli::Failure;
use crate::{mountpoint, space};
use anyhow::anyhow;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use scrfs::config::{Capacity, Config, StoreConfig};
use scrfs::layout::path::CachePaths;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Above the mount points of private stores.
const PRIVATE_HOME: &str = "/run";
/// Where the cache is instead.
const FALLBACK_HOME: &str = "/dev/shm";
/// Source of the mount: how one of ours is recognized.
const SOURCE: &str = "scrfs-store";
/// Options to try, the best first: older kernels and those without huge pages refuse some.
const OPTIONS: [(&str, &str); 3] = [
    ("huge=within_size,inode64,", "with huge pages"),
    (
        "inode64,",
        "without huge pages: the kernel has none for tmpfs",
    ),
    ("", "without huge pages: the kernel has none for tmpfs"),
];

/// One store of a mount.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where.
    pub cache: CachePaths,
    /// Whether it is a tmpfs of our own.
    pub is_private: bool,
    /// How much of it may be used.
    pub capacity: Capacity,
    /// What kind of store it is, in words.
    pub words: String,
}

/// Finds the stores of a configuration, in its order; a private tmpfs is mounted when it is not there yet.
pub fn places(config: &Config) -> Result<Vec<Place>, Failure> {
    let mut places: Vec<Place> = Vec::new();
    let uid = nix::unistd::geteuid().as_raw();
    let named = config
        .store
        .iter()
        .filter(|store| !store.is_private_tmpfs());
    let named: Vec<&Path> = named.map(|store| store.path.as_path()).collect();
    for store in &config.store {
        let place = match store.is_private_tmpfs() {
            true => private(
                store,
                config,
                uid,
                named.contains(&Path::new(FALLBACK_HOME)),
            ),
            false => Place {
                cache: CachePaths::new(&store.path, uid, &config.job),
                is_private: false,
                capacity: store.capacity,
                words: format!("directory {}", store.path.display()),
            },
        };
        if store.is_private_tmpfs()
            && !place.is_private
            && named.contains(&Path::new(FALLBACK_HOME))
        {
            // It is one of the others already.
            continue;
        }
        places.push(place);
    }
    match places.is_empty() {
        true => Err(Failure::usage("no [[store]] is configured")),
        false => Ok(places),
    }
}

/// `is_taken`: the fallback is another store of this mount.
fn private(store: &StoreConfig, config: &Config, uid: u32, is_taken: bool) -> Place {
    let cache = private_paths(&config.job);
    let fallback = CachePaths::new(Path::new(FALLBACK_HOME), uid, &config.job);
    let mounted = mount_private(cache.root(), || {
        if !is_taken && has_datasets(&fallback) {
            return Err(anyhow!(
                "{} has datasets of this job",
                fallback.root().display()
            ));
        }
        Ok(space::private_bytes(store.capacity, 0))
    });
    let capacity = store.capacity;
    match mounted {
        Ok(how) => Place {
            cache,
            is_private: true,
            capacity,
            words: format!("private tmpfs {how}"),
        },
        Err(error) => {
            tracing::warn!("no private tmpfs, the cache is in {FALLBACK_HOME}: {error:#}");
            Place {
                cache: fallback,
                is_private: false,
                capacity,
                words: format!("directory {FALLBACK_HOME}; no private tmpfs: {error:#}"),
            }
        }
    }
}

/// The cache of a job in its private tmpfs, if it has one.
pub fn private_paths(job: &str) -> CachePaths {
    let uid = nix::unistd::geteuid().as_raw();
    CachePaths::new(Path::new(PRIVATE_HOME), uid, job)
}

fn has_datasets(cache: &CachePaths) -> bool {
    std::fs::read_dir(cache.datasets()).is_ok_and(|mut entries| entries.next().is_some())
}

/// Mounts the tmpfs unless it is there; `size` is asked for its bytes when one is to be mounted.
fn mount_private(
    root: &Path,
    size: impl FnOnce() -> anyhow::Result<u64>,
) -> anyhow::Result<String> {
    let parent = root.parent().unwrap_or(root);
    make_directory(parent)?;
    let above = File::open(parent)?;
    let _lock = Flock::lock(above, FlockArg::LockExclusive)
        .map_err(|(_, errno)| anyhow!("cannot lock {}: {errno}", parent.display()))?;
    match mountpoint::mounted_on(root)? {
        Some((kind, source)) if kind == "tmpfs" && source == SOURCE => {
            return Ok("that was there already".into());
        }
        Some((kind, source)) => {
            return Err(anyhow!(
                "{source} ({kind}) is mounted on {}",
                root.display()
            ));
        }
        None => {}
    }
    let bytes = size()?;
    make_directory(root)?;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut last = None;
    for (options, how) in OPTIONS {
        let data = format!("{options}mode=0700,uid={uid},gid={gid},size={bytes}");
        match mount(
            Some(SOURCE),
            root,
            Some("tmpfs"),
            flags,
            Some(data.as_str()),
        ) {
            Ok(()) => return Ok(how.into()),
            Err(errno) => last = Some(errno),
        }
        if last != Some(nix::errno::Errno::EINVAL) {
            break;
        }
    }
    let errno = last.unwrap_or(nix::errno::Errno::EINVAL);
    let need = match errno {
        nix::errno::Errno::EPERM => " (it needs CAP_SYS_ADMIN)",
        _ => "",
    };
    Err(anyhow!("cannot mount on {}: {errno}{need}", root.display()))
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(anyhow!("cannot make {}: {error}", path.display()))
        }
        _ => crate::daemon::check_owned(path),
    }
}

/// Gives a private tmpfs another size; one below what is used is refused.
pub fn resize(root: &Path, bytes: u64) -> io::Result<()> {
    let data = format!("size={bytes}");
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some(SOURCE),
        root,
        Some("tmpfs"),
        flags,
        Some(data.as_str()),
    )
    .map_err(io::Error::from)
}

/// Takes a private tmpfs away, and all that is in it; its memory is free when the last file is closed.
pub fn unmount_private(root: &Path) -> io::Result<()> {
    umount2(root, MntFlags::MNT_DETACH)?;
    std::fs::remove_dir(root)
}
