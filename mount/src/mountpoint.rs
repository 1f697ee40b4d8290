//! What is mounted where, and what may be mounted over.
//!
//! Only `/proc/self/mountinfo` is believed; a dead mount is one that the kernel says is ours and that
//! answers ENOTCONN.

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What lies at a mount point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// A directory on which nothing is mounted.
    Free,
    /// A scrfs whose daemon is gone.
    DeadScrfs,
    /// A scrfs whose daemon lives.
    LiveScrfs,
    /// Another filesystem, of this type.
    Other(String),
    /// Not a directory.
    NotDirectory,
    /// Nothing.
    Missing,
}

/// Takes the octal escapes out of a field of mountinfo.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Type and source of what was mounted last at `path`, in a mountinfo text.
fn mounted_in(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let line = mountinfo.lines().rfind(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|field| unescape(field) == path)
    });
    let (_, rest) = line?.split_once(" - ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
}

/// Type and source of the mount on `path`, which is absolute; `None` when nothing is mounted there.
pub fn mounted_on(path: &Path) -> io::Result<Option<(String, String)>> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounted_in(&mountinfo, path))
}

/// Absolute, with links resolved as far as the last component, which may be a dead mount.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(_) => path,
        }),
        _ => Ok(path),
    }
}

/// What lies at `path`, which is absolute.
pub fn look(path: &Path) -> io::Result<Found> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = mounted_in(&mountinfo, path);
    let ours = |kind: &str, source: &str| kind.starts_with("fuse") && source == "scrfs";
    match (nix::sys::stat::stat(path), mounted) {
        (Err(Errno::ENOTCONN), Some((kind, source))) if ours(&kind, &source) => {
            Ok(Found::DeadScrfs)
        }
        (Ok(_), Some((kind, source))) if ours(&kind, &source) => Ok(Found::LiveScrfs),
        (_, Some((kind, _))) => Ok(Found::Other(kind)),
        (Ok(found), None) if found.st_mode & libc::S_IFMT == libc::S_IFDIR => Ok(Found::Free),
        (Ok(_), None) => Ok(Found::NotDirectory),
        (Err(Errno::ENOENT), None) => Ok(Found::Missing),
        (Err(errno), None) => Err(errno.into()),
    }
}

/// Takes a mount away; `lazy` also while it is in use.
pub fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::empty()
    };
    match umount2(path, flags) {
        Ok(()) => Ok(()),
        // Not root: the set-user-id helper may.
        Err(Errno::EPERM) => {
            let mut helper = Command::new("fusermount3");
            helper
                .arg("-u")
                .args(lazy.then_some("-z"))
                .arg("--")
                .arg(path);
            let output = helper.output()?;
            if output.status.success() {
                return Ok(());
            }
            let words = String::from_utf8_lossy(&output.stderr);
            if words.contains("busy") {
                return Err(Errno::EBUSY.into());
            }
            Err(io::Error::other(words.trim().to_owned()))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Has the kernel read 1 MiB ahead of who reads in order: of a FUSE mount it is 128 KiB otherwise.
pub fn raise_readahead(mountpoint: &Path) {
    let Ok(found) = nix::sys::stat::stat(mountpoint) else {
        return;
    };
    let (major, minor) = (
        nix::sys::stat::major(found.st_dev),
        nix::sys::stat::minor(found.st_dev),
    );
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, "1024") {
        tracing::debug!(%error, path, "readahead stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
40 22 0:35 / /mnt/a\\040b rw,nosuid,nodev - fuse scrfs rw,user_id=0
41 22 0:36 / /mnt/c rw - tmpfs tmpfs rw
42 41 0:37 / /mnt/c rw shared:1 - fuse scrfs rw
";

    #[test]
    fn the_last_mount_counts_and_spaces_are_escaped() {
        let fuse = Some(("fuse".to_owned(), "scrfs".to_owned()));
        assert_eq!(mounted_in(INFO, Path::new("/mnt/a b")), fuse);
        assert_eq!(mounted_in(INFO, Path::new("/mnt/c")), fuse);
        assert_eq!(mounted_in(INFO, Path::new("/mnt")), None);
    }

    #[test]
    fn an_ordinary_directory_is_free() {
        let root = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(look(root.path()).expect("look"), Found::Free);
        assert_eq!(look(&root.path().join("x")).expect("look"), Found::Missing);
        std::fs::write(root.path().join("f"), b"").expect("write");
        assert_eq!(
            look(&root.path().join("f")).expect("look"),
            Found::NotDirectory
        );
    }
}
