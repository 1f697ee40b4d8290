//! Pointer files in the prefix: plain files and links beside the datasets they name.
//!
//! `<prefix>/.scrfs/pointers` says which names are ours, and in which version the files are there. A
//! name is claimed in it before its file is first written, and a version noted after: so a crash in
//! between is made good by writing the file again. What is there and was not claimed is somebody
//! else's and left alone.

use super::{Prefix, PrefixError};
use nix::unistd::{Gid, Uid};
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::pointer::{Content, Pointer, PointerRecord, Pointers, Version};
use scrfs::name::Name;
use scrfs::store::Store;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is claimed for a name of which nothing was written yet.
const CLAIM: PointerRecord = PointerRecord {
    version: Version { term: 0, number: 0 },
    after: None,
    pointer: None,
};

impl Prefix {
    /// The pointer files that were written here.
    pub fn pointers(&self) -> Result<Pointers, PrefixError> {
        let path = self.paths.pointers();
        match self.store.get(&path)? {
            None => Ok(Pointers::default()),
            Some(bytes) => envelope::open(Kind::Pointers, &bytes)
                .map_err(|source| PrefixError::Damaged { path, source }),
        }
    }

    /// Writes those that are newer than what is here. Goes on after one that is refused.
    ///
    /// # Errors
    ///
    /// The first: a name is taken by something that is not ours, or the operating system refused.
    pub fn write_pointers(&self, due: &Pointers) -> Result<(), PrefixError> {
        self.check_usable()?;
        let mut here = self.pointers()?;
        here.term = here.term.max(due.term);
        let mut first = Ok(());
        for (name, record) in &due.all {
            if record.version <= here.version(name) {
                continue;
            }
            let written = self.write_pointer(&mut here, name, record);
            first = first.and(written);
        }
        first
    }

    fn write_pointer(
        &self,
        here: &mut Pointers,
        name: &Name,
        record: &PointerRecord,
    ) -> Result<(), PrefixError> {
        let path = self.paths.dataset(name);
        if !here.all.contains_key(name) {
            if !is_free(&path, record.pointer.as_ref())? {
                let name = name.clone();
                return Err(PrefixError::NotOurs { path, name });
            }
            here.all.insert(name.clone(), CLAIM);
            self.put_pointers(here)?;
        }
        match &record.pointer {
            Some(pointer) => self.replace(&path, pointer)?,
            None => remove(&path)?,
        }
        let root = self.paths.root();
        File::open(root)
            .and_then(|directory| directory.sync_all())
            .map_err(PrefixError::io_at("sync", root))?;
        here.learn(name.clone(), record.clone());
        self.put_pointers(here)
    }

    fn put_pointers(&self, here: &Pointers) -> Result<(), PrefixError> {
        let bytes = envelope::seal(Kind::Pointers, here);
        Ok(self.store.put(&self.paths.pointers(), &bytes)?)
    }

    /// Puts the file in its place, as a whole.
    fn replace(&self, path: &Path, pointer: &Pointer) -> Result<(), PrefixError> {
        let new = self.paths.pointer_new();
        remove(&new)?;
        let make = || -> io::Result<()> {
            match &pointer.content {
                Content::Link(target) => symlink(OsStr::from_bytes(target), &new)?,
                Content::File(bytes) => {
                    let mut file = File::create_new(&new)?;
                    file.write_all(bytes)?;
                    file.set_permissions(Permissions::from_mode(pointer.mode & 0o777))?;
                    let time = system_time(pointer.mtime);
                    file.set_times(FileTimes::new().set_modified(time))?;
                    file.sync_all()?;
                }
            }
            // Who is not root keeps what is theirs, as with `cp`.
            let (uid, gid) = (Uid::from_raw(pointer.uid), Gid::from_raw(pointer.gid));
            match nix::unistd::fchownat(
                nix::fcntl::AT_FDCWD,
                &new,
                Some(uid),
                Some(gid),
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            ) {
                Ok(()) | Err(nix::Error::EPERM) => {}
                Err(error) => return Err(error.into()),
            }
            fs::rename(&new, path)
        };
        make().map_err(PrefixError::io_at("write", path))
    }
}

/// Whether a name that was never claimed may be: nothing is there, or the very same.
fn is_free(path: &Path, wanted: Option<&Pointer>) -> Result<bool, PrefixError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(PrefixError::io_at("look at", path)(error)),
    };
    let same = match wanted.map(|pointer| &pointer.content) {
        Some(Content::Link(target)) => {
            found.is_symlink()
                && fs::read_link(path).is_ok_and(|said| said.as_os_str().as_bytes() == target)
        }
        Some(Content::File(bytes)) => {
            found.is_file()
                && found.len() == bytes.len() as u64
                && fs::read(path).is_ok_and(|read| read == *bytes)
        }
        None => false,
    };
    Ok(same)
}

fn remove(path: &Path) -> Result<(), PrefixError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PrefixError::io_at("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn system_time((seconds, nanos): (i64, u32)) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(nanos));
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    time.and_then(|time| time.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn due(number: u64, all: &[(&str, Option<Content>)]) -> Pointers {
        let mut due = Pointers::default();
        for (text, content) in all {
            let version = Version { term: 1, number };
            let pointer = content.clone().map(|content| Pointer {
                content,
                mode: 0o640,
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                mtime: (1_000_000_000, 5),
            });
            let record = PointerRecord {
                version,
                after: None,
                pointer,
            };
            due.learn(name(text), record);
        }
        due
    }

    fn file(text: &str) -> Option<Content> {
        Some(Content::File(text.into()))
    }

    #[test]
    fn they_are_written_replaced_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::open(root.path()).unwrap();
        let link = Some(Content::Link(b"ckpt.1".to_vec()));
        prefix
            .write_pointers(&due(1, &[("latest", file("ckpt.1\n")), ("link", link)]))
            .unwrap();
        let latest = root.path().join("latest");
        assert_eq!(fs::read(&latest).unwrap(), b"ckpt.1\n");
        let found = fs::metadata(&latest).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
        let modified = found.modified().unwrap();
        assert_eq!(modified, system_time((1_000_000_000, 5)));
        let said = fs::read_link(root.path().join("link")).unwrap();
        assert_eq!(said, Path::new("ckpt.1"));
        prefix
            .write_pointers(&due(3, &[("latest", file("ckpt.2\n")), ("link", None)]))
            .unwrap();
        // Too late.
        prefix
            .write_pointers(&due(2, &[("latest", file("ckpt.0\n"))]))
            .unwrap();
        assert_eq!(fs::read(&latest).unwrap(), b"ckpt.2\n");
        assert!(fs::symlink_metadata(root.path().join("link")).is_err());
        let again = Prefix::open(root.path()).unwrap().pointers().unwrap();
        let version = Version { term: 1, number: 3 };
        assert_eq!(again.version(&name("latest")), version);
        assert_eq!(again.version(&name("link")), version);
    }

    #[test]
    fn what_is_not_ours_is_left_alone_and_does_not_hold_up_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::open(root.path()).unwrap();
        fs::write(root.path().join("a"), "theirs").unwrap();
        fs::create_dir(root.path().join("ckpt.1")).unwrap();
        let all = [
            ("a", file("ours")),
            ("ckpt.1", file("ours")),
            ("z", file("ours")),
        ];
        let error = prefix.write_pointers(&due(1, &all)).unwrap_err();
        assert!(matches!(error, PrefixError::NotOurs { .. }), "{error}");
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"theirs");
        assert!(root.path().join("ckpt.1").is_dir());
        assert_eq!(fs::read(root.path().join("z")).unwrap(), b"ours");
        // Moved away, it is tried again.
        fs::remove_file(root.path().join("a")).unwrap();
        fs::remove_dir(root.path().join("ckpt.1")).unwrap();
        prefix.write_pointers(&due(1, &all)).unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"ours");
        assert!(root.path().join("ckpt.1").is_file());
    }

    #[test]
    fn a_crash_after_the_claim_or_after_the_file_is_made_good() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::open(root.path()).unwrap();
        let mut claimed = Pointers::default();
        claimed.all.insert(name("latest"), CLAIM);
        prefix.put_pointers(&claimed).unwrap();
        fs::write(root.path().join("latest"), "of the attempt").unwrap();
        prefix
            .write_pointers(&due(1, &[("latest", file("ckpt.1\n"))]))
            .unwrap();
        let latest = fs::read(root.path().join("latest")).unwrap();
        assert_eq!(latest, b"ckpt.1\n");
    }
}
