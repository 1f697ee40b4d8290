//! Pointer files in the prefix: plain files and links beside the datasets they name.
//!
//! What says that a name is ours, who has written it and what, are files of `<prefix>/.scrfs/turns/<name>/`, and
//! how several jobs write there at once is in [`crate::pointing`]. Once it was one file, `.scrfs/pointers`: what
//! that says holds still, and nobody writes it any more. What is there and was not claimed is somebody else's and
//! left alone.

use super::reconcile::is_older;
use super::{Prefix, PrefixError};
use crate::part::report;
use crate::pointing::{self, Pointed};
use nix::unistd::{Gid, Uid};
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::pointer::{Content, Pointer, PointerRecord, Pointers};
use scrfs::layout::turn::{Turn, Turns, job_number};
use scrfs::name::Name;
use scrfs::store::Store;
use scrfs::store::posix::sync_directory;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a record that is on its way from one name to another is looked for.
const LOOKS: usize = 8;

impl Prefix {
    /// The pointer files that were written here.
    pub fn pointers(&self) -> Result<Pointers, PrefixError> {
        let mut here = self.old_pointers()?;
        for name in self.names_with_turns()? {
            self.add_pointer(&mut here, name)?;
        }
        Ok(here)
    }

    /// As it was kept in one file.
    fn old_pointers(&self) -> Result<Pointers, PrefixError> {
        let path = self.paths.pointers();
        match self.store.get(&path)? {
            None => Ok(Pointers::default()),
            Some(bytes) => envelope::open(Kind::Pointers, &bytes)
                .map_err(|source| PrefixError::Damaged { path, source }),
        }
    }

    fn turns(&self, name: &Name) -> Result<Turns, PrefixError> {
        let names = self.store.list(&self.paths.turns(name))?;
        Ok(Turns::read(names.iter().filter_map(|name| name.to_str())))
    }

    pub(super) fn names_with_turns(&self) -> Result<Vec<Name>, PrefixError> {
        let names = self.store.list(&self.paths.all_turns())?;
        let names = names.iter().map(|name| Name::new(name.as_bytes()));
        Ok(names.filter_map(Result::ok).collect())
    }

    /// What is there of one name, if anything was.
    fn add_pointer(&self, here: &mut Pointers, name: Name) -> Result<(), PrefixError> {
        for _ in 0..LOOKS {
            let turns = self.turns(&name)?;
            here.term = here.term.max(turns.term());
            let Some(turn) = turns.newest_ended() else {
                return Ok(());
            };
            match self.stored(&name, turn) {
                Ok(Some(stored)) => {
                    here.term = here.term.max(stored.term);
                    let seen = pointing::seen_by(&self.job, turn, stored);
                    here.all.extend(seen.all);
                    return Ok(());
                }
                // Outdone since.
                Ok(None) => {}
                Err(error @ PrefixError::Damaged { .. }) => {
                    report("what a pointer file is, is not believed", &error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let path = self.paths.turns(&name);
        Err(PrefixError::Changed { path })
    }

    /// What a turn has put down, while there is one.
    fn stored(&self, name: &Name, turn: Turn) -> Result<Option<Pointers>, PrefixError> {
        for path in [
            self.paths.turn(name, turn),
            self.paths.turn_begun(name, turn),
        ] {
            let Some(bytes) = self.store.get(&path)? else {
                continue;
            };
            return match pointing::decode(&bytes, name) {
                Ok(stored) => Ok(Some(stored)),
                Err(source) => Err(PrefixError::Damaged { path, source }),
            };
        }
        Ok(None)
    }

    /// Writes those that this job has not had there. Goes on after one that is refused.
    ///
    /// # Errors
    ///
    /// The first: a name is taken by something that is not ours, or the operating system refused.
    pub fn write_pointers(&self, due: &Pointers) -> Result<(), PrefixError> {
        self.check_usable()?;
        let old = self.old_pointers()?;
        let mut first = Ok(());
        for (name, record) in &due.all {
            if record.version <= old.version(name) {
                continue;
            }
            let at = At {
                prefix: self,
                term: due.term,
            };
            let claimed = match old.all.contains_key(name) {
                true => Ok(()),
                false => self.may_claim(name, record),
            };
            let written = claimed.and_then(|()| pointing::write(&at, &self.job, name, record));
            first = first.and(written);
        }
        first
    }

    fn may_claim(&self, name: &Name, record: &PointerRecord) -> Result<(), PrefixError> {
        let path = self.paths.dataset(name);
        if is_free(&path, record.pointer.as_ref())? || !self.turns(name)?.is_empty() {
            return Ok(());
        }
        let name = name.clone();
        Err(PrefixError::NotOurs { path, name })
    }
    /// Puts the file in its place, as a whole.
    fn replace(&self, name: &Name, pointer: &Pointer) -> Result<(), PrefixError> {
        let path = &self.paths.dataset(name);
        let new = self.new_file(name);
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
        let made = make();
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        made.map_err(PrefixError::io_at("write", path))
    }

    /// A pointer file on its way in: unlike that of any other writer.
    fn new_file(&self, name: &Name) -> PathBuf {
        let process = std::process::id();
        let unique = RandomState::new().hash_one(process);
        let new = format!(".file.{unique:016x}.{process}.new");
        self.paths.turns(name).join(new)
    }

    /// Finishes or removes what jobs have left that were killed while they wrote pointer files.
    pub(super) fn tidy_pointers(&self, abandoned: Option<SystemTime>) -> Result<(), PrefixError> {
        let job = job_number(&self.job);
        for name in self.names_with_turns()? {
            let is_ours = |turn: Turn| {
                let paths = [
                    self.paths.turn(&name, turn),
                    self.paths.turn_begun(&name, turn),
                ];
                turn.job == job || paths.iter().any(|path| is_older(path, abandoned))
            };
            // The term is for turns that begin; here none does.
            let at = At {
                prefix: self,
                term: 0,
            };
            pointing::tidy(&at, &name, &is_ours);
        }
        Ok(())
    }
}

/// A prefix, where a leader of this term writes.
struct At<'a> {
    prefix: &'a Prefix,
    term: u64,
}

impl Pointed for At<'_> {
    fn place(&self, name: &Name) -> PathBuf {
        self.prefix.paths.dataset(name)
    }

    fn turns(&self, name: &Name) -> Result<Turns, PrefixError> {
        self.prefix.turns(name)
    }

    fn begin(&self, name: &Name, turn: Turn, record: &PointerRecord) -> Result<(), PrefixError> {
        let bytes = pointing::encode(self.term, name, record);
        let path = self.prefix.paths.turn_begun(name, turn);
        Ok(self.prefix.store.put(&path, &bytes)?)
    }

    fn record(&self, name: &Name, turn: Turn) -> Result<Option<PointerRecord>, PrefixError> {
        let stored = self.prefix.stored(name, turn)?;
        Ok(stored.and_then(|mut stored| stored.all.remove(name)))
    }

    fn write(&self, name: &Name, record: &PointerRecord) -> Result<(), PrefixError> {
        match &record.pointer {
            Some(pointer) => self.prefix.replace(name, pointer)?,
            None => remove(&self.prefix.paths.dataset(name))?,
        }
        let root = self.prefix.paths.root();
        File::open(root)
            .and_then(|directory| directory.sync_all())
            .map_err(PrefixError::io_at("sync", root))
    }

    fn end(&self, name: &Name, turn: Turn) -> Result<(), PrefixError> {
        let paths = &self.prefix.paths;
        let (begun, ended) = (paths.turn_begun(name, turn), paths.turn(name, turn));
        match fs::rename(&begun, &ended) {
            Ok(()) => Ok(sync_directory(&paths.turns(name))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(PrefixError::io_at("rename", &begun)(error)),
        }
    }

    fn forget(&self, name: &Name, turn: Turn) -> Result<(), PrefixError> {
        let paths = &self.prefix.paths;
        remove(&paths.turn_begun(name, turn))?;
        remove(&paths.turn(name, turn))
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
    use scrfs::layout::pointer::Version;

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
        let claim = PointerRecord {
            version: Version::default(),
            after: None,
            pointer: None,
        };
        in_one_file(&prefix, &[("latest", claim)]);
        fs::write(root.path().join("latest"), "of the attempt").unwrap();
        prefix
            .write_pointers(&due(1, &[("latest", file("ckpt.1\n"))]))
            .unwrap();
        let latest = fs::read(root.path().join("latest")).unwrap();
        assert_eq!(latest, b"ckpt.1\n");
    }

    /// As it was written once.
    fn in_one_file(prefix: &Prefix, all: &[(&str, PointerRecord)]) {
        let all = all
            .iter()
            .map(|(text, record)| (name(text), record.clone()));
        let pointers = Pointers {
            term: 4,
            all: all.collect(),
        };
        let bytes = envelope::seal(Kind::Pointers, &pointers);
        prefix.store.put(&prefix.paths.pointers(), &bytes).unwrap();
    }

    #[test]
    fn what_was_kept_in_one_file_holds() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::open(root.path()).unwrap().of_job("one");
        let old = due(7, &[("kept", file("kept")), ("latest", file("old"))]);
        let old: Vec<_> = ["kept", "latest"]
            .map(|it| (it, old.all[&name(it)].clone()))
            .into();
        in_one_file(&prefix, &old);
        let before = fs::read(prefix.paths.pointers()).unwrap();
        for (it, _) in &old {
            fs::write(root.path().join(it), "there").unwrap();
        }
        // Not newer than what was written then.
        prefix
            .write_pointers(&due(7, &[("latest", file("late"))]))
            .unwrap();
        assert_eq!(fs::read(root.path().join("latest")).unwrap(), b"there");
        prefix
            .write_pointers(&due(8, &[("latest", file("new"))]))
            .unwrap();
        assert_eq!(fs::read(root.path().join("latest")).unwrap(), b"new");
        let here = prefix.pointers().unwrap();
        let number = |it: &str| here.version(&name(it)).number;
        assert_eq!([number("kept"), number("latest")], [7, 8]);
        assert_eq!(here.term, 4);
        // Nobody writes it, and so nobody takes a claim from it.
        assert_eq!(fs::read(prefix.paths.pointers()).unwrap(), before);
        prefix
            .write_pointers(&due(9, &[("kept", file("now"))]))
            .unwrap();
        assert_eq!(fs::read(root.path().join("kept")).unwrap(), b"now");
    }

    #[test]
    fn of_two_jobs_the_one_that_wrote_last_is_there_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let job = |job: &str| Prefix::open(root.path()).unwrap().of_job(job);
        let (one, two) = (job("one"), job("two"));
        let latest = |text: &str| fs::read(root.path().join("latest")).unwrap() == text.as_bytes();
        one.write_pointers(&due(9, &[("latest", file("one 9"))]))
            .unwrap();
        // With a version that the other has had, and one that it has not.
        for number in [2, 9] {
            let text = format!("two {number}");
            two.write_pointers(&due(
                number,
                &[("latest", file(&text)), ("two", file(&text))],
            ))
            .unwrap();
            assert!(latest(&text));
        }
        // What it has written is not written again, as when an epoch begins.
        one.write_pointers(&due(
            9,
            &[("latest", file("one 9")), ("one", file("one 9"))],
        ))
        .unwrap();
        one.reconcile(&std::collections::BTreeSet::new()).unwrap();
        assert!(latest("two 9"));
        let here = one.pointers().unwrap();
        let names: Vec<String> = here.all.keys().map(Name::to_string).collect();
        assert_eq!(names, ["latest", "one", "two"]);
        let said = here.live(&name("latest")).map(|it| it.content.clone());
        assert_eq!(said, file("two 9"));
        // To the other job its version says nothing, so that what that one writes next gets there.
        assert_eq!(here.version(&name("latest")), Version::OF_OTHERS);
        assert!(here.version(&name("one")) > Version::OF_OTHERS);
    }

    #[test]
    fn a_name_that_no_turn_can_be_believed_of_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::open(root.path()).unwrap().of_job("one");
        prefix
            .write_pointers(&due(1, &[("a", file("a")), ("b", file("b"))]))
            .unwrap();
        for turn in fs::read_dir(prefix.paths.turns(&name("a"))).unwrap() {
            fs::write(turn.unwrap().path(), "damaged").unwrap();
        }
        let here = prefix.pointers().unwrap();
        assert_eq!(here.all.keys().collect::<Vec<_>>(), [&name("b")]);
        assert_eq!(here.term, 1);
        prefix
            .write_pointers(&due(2, &[("a", file("again"))]))
            .unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"again");
        assert_eq!(prefix.pointers().unwrap().all.len(), 2);
    }

    #[test]
    fn invariant_of_two_that_write_at_once_what_counts_is_there() {
        let memory = Path::new("/dev/shm");
        pointing::tests::invariant_what_counts_is_what_is_there(&|each| {
            let root = match memory.is_dir() {
                true => tempfile::tempdir_in(memory),
                false => tempfile::tempdir(),
            };
            let root = root.unwrap();
            let at = At {
                prefix: &Prefix::at(root.path()),
                term: 1,
            };
            each(&at, &|| fs::read(root.path().join("latest")).unwrap());
        });
    }
}
