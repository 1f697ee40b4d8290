//! One directory for a dataset of SCR's whose files lie in several places, or among those of others.
//!
//! It gets the dataset's name, and a hard link to each file, or a copy where the filesystem refuses links:
//! at its path below the deepest directory that all of them lie in. SCR's names stay, and nothing at them
//! is changed; but a link shares its bytes, so who writes to SCR's file later writes to the dataset, which
//! its checksums tell, as of any adopted directory.
//!
//! Order, as in a flush: claim a key -> note whose it is -> links in `inflight/<key>/0` -> directories get
//! the attributes of those that SCR wrote to, deepest first, durable -> files are as many and as long as SCR
//! noted -> read all of it (see `adopt`) -> checksums, manifests -> entry `Flushing` -> the rest is `publish`.
//! Up to the entry nothing is visible, and what a crash leaves is removed by [`Prefix::reconcile`], as every
//! attempt; from then on either that or adding it again finishes it.

use super::adopt::{Added, adopted};
use super::error::{Cause, PrefixError};
use super::outgoing::refused;
use super::publish::Step;
use super::{Prefix, StepHook};
use crate::part::{Tree, attributes, extents, file_type, mtime, report, xattr};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};
use nix::unistd::{Gid, Uid};
use scrfs::config::Class;
use scrfs::id::{DatasetKey, Epoch};
use scrfs::layout::index::{EntryState, IndexEntry};
use scrfs::layout::manifest::{Entry, EntryKind};
use scrfs::layout::scr::ScrDataset;
use scrfs::name::{Name, RelPath};
use scrfs::store::Store;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::iter::successors;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

/// The only attempt: nobody else has its key.
const ATTEMPT: Epoch = Epoch(0);
/// How often others are told that somebody is at work: well before they take it for abandoned.
const ALIVE_EVERY: Duration = Duration::from_secs(300);
/// Bytes that are copied in a row.
const COPY_BYTES: u64 = 64 << 20;

/// Where everything comes from and goes to: below the new directory -> below the prefix.
#[derive(PartialEq, Eq, Debug)]
struct Plan {
    /// The deepest directory that all files lie in; `None`: the prefix itself.
    base: Option<RelPath>,
    files: BTreeMap<RelPath, RelPath>,
    directories: BTreeMap<RelPath, RelPath>,
}

impl Plan {
    fn of(files: &BTreeSet<RelPath>) -> Self {
        let base = common_directory(files);
        let mut plan = Self {
            base: None,
            files: BTreeMap::new(),
            directories: BTreeMap::new(),
        };
        for file in files {
            let place = match &base {
                Some(base) => file.below(base),
                None => Some(file.clone()),
            };
            let Some(place) = place else { continue };
            let above = successors(place.parent(), RelPath::parent);
            let from = successors(file.parent(), RelPath::parent);
            plan.directories.extend(above.zip(from));
            plan.files.insert(place, file.clone());
        }
        plan.base = base;
        plan
    }
}

/// Tells other jobs now and then that somebody is at work.
struct Alive<'a> {
    prefix: &'a Prefix,
    key: DatasetKey,
    told: Cell<Instant>,
}

impl Alive<'_> {
    fn tell(&self) {
        self.tell_every(ALIVE_EVERY);
    }

    fn tell_every(&self, every: Duration) {
        if self.told.get().elapsed() < every {
            return;
        }
        self.told.set(Instant::now());
        if let Err(error) = self.prefix.claim_attempt(self.key) {
            report("other jobs may take this for abandoned", &error);
        }
    }
}

impl Prefix {
    /// Makes a directory of a dataset's files, and a dataset of that.
    ///
    /// # Errors
    ///
    /// Its name is taken, or a file is not as SCR noted, or changes; nothing is left then.
    pub(super) fn gather(
        &self,
        dataset: &ScrDataset,
        files: &BTreeSet<RelPath>,
        class: Class,
        progress: &dyn Fn(u64, u64),
        step: StepHook<'_>,
    ) -> Result<Added, PrefixError> {
        let name = &dataset.name;
        let path = self.paths.dataset(name);
        let hook = step;
        let step = |at| hook(at).map_err(PrefixError::io_at(at, &path));
        if let Some(added) = self.gathered_before(name, hook)? {
            return Ok(added);
        }
        // Their directories were removed by hand, else there would be something of that name.
        let mut stale = self.all_entries()?;
        stale.retain(|entry| entry.adopted && entry.record.name == *name);
        step("claim a number")?;
        let key = self.claim_key()?;
        let built = self.build(key, dataset, files, progress, &step);
        let built = built.and_then(|(mut entry, root_mtime)| {
            entry.record.class = class;
            step("write the flushing entry")?;
            self.store.put(&self.paths.entry(key), &entry.encode())?;
            Ok((entry, root_mtime))
        });
        let (entry, root_mtime) = built.inspect_err(|_| {
            if step("remove what is left").is_ok() {
                self.forget(key);
            }
        })?;
        let published = self.publish(entry.clone(), root_mtime, &step);
        self.or_taken(&entry, published)?;
        stale.iter().for_each(|entry| self.forget(entry.key()));
        Ok(Added::Gathered)
    }

    /// What gathering it earlier has come to; `None`: its name is free.
    fn gathered_before(
        &self,
        name: &Name,
        step: StepHook<'_>,
    ) -> Result<Option<Added>, PrefixError> {
        let mut entries = self.all_entries()?;
        entries.retain(|entry| entry.record.name == *name);
        for entry in &entries {
            match (entry.is_complete(), entry.adopted) {
                (true, _) => {}
                (false, false) => return Err(self.in_use(name, "is being flushed")),
                (false, true) => match self.finish(entry) {
                    Err(error) if error.cause() == Cause::Damaged && !self.has_its_name(entry) => {
                        self.forget(entry.key());
                    }
                    finished => {
                        self.or_taken(entry, finished)?;
                        return Ok(Some(Added::Gathered));
                    }
                },
            }
        }
        let path = self.paths.dataset(name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(PrefixError::io_at("stat", &path))?,
        };
        let is_it = |entry: &IndexEntry| {
            let own = entry.adopted && entry.record.name == *name;
            own && matches!(self.own_directory(entry), Ok(Some(_)))
        };
        if entries.iter().any(is_it) {
            return Ok(Some(Added::Already));
        }
        if self.dropped()?.iter().any(is_it) && self.put_back(name, step)? {
            return Ok(Some(Added::PutBack));
        }
        Err(self.taken(name))
    }

    /// Everything but the entry, which the caller writes; and the time of its top directory.
    fn build(
        &self,
        key: DatasetKey,
        dataset: &ScrDataset,
        files: &BTreeSet<RelPath>,
        progress: &dyn Fn(u64, u64),
        step: Step<'_>,
    ) -> Result<(IndexEntry, (i64, u32)), PrefixError> {
        let plan = Plan::of(files);
        self.claim_attempt(key)?;
        let alive = Alive {
            prefix: self,
            key,
            told: Cell::new(Instant::now()),
        };
        let attempt = self.paths.attempt(key, ATTEMPT);
        self.store.make_directories(&attempt)?;
        // Until it is known who may look into it.
        fs::set_permissions(&attempt, fs::Permissions::from_mode(0o700))
            .map_err(PrefixError::io_at("close", &attempt))?;
        let (from, to) = (Tree::open(self.paths.root())?, Tree::open(&attempt)?);
        step("link the files")?;
        for directory in plan.directories.keys() {
            to.make_directory(directory, 0o700)?;
        }
        let mut copied = 0u64;
        for (place, file) in &plan.files {
            match to.link_from(&from, file, place) {
                Err(error) if refused(&error) => {
                    copy(&from, file, &to, place, &alive)?;
                    copied += 1;
                }
                other => other?,
            }
            alive.tell();
        }
        if copied > 0 {
            tracing::warn!(name = %dataset.name, copied, "the prefix refuses hard links: copied");
        }
        step("finish directories")?;
        let mode = finish_directories(&plan, &from, &to)?;
        // What was linked may be another file than what was looked at before.
        self.check_scr_files(dataset, &to, plan.files.keys())?;
        let progress = |bytes, all| {
            alive.tell();
            progress(bytes, all);
        };
        let parts = self.read_directory(&attempt, &progress, step)?;
        let found = fs::symlink_metadata(&attempt);
        let found = found.map_err(PrefixError::io_at("stat", &attempt))?;
        let seal = self.write_parts(key, parts, step)?;
        let mut entry = adopted(key, &dataset.name, Class::Checkpoint, &found, seal);
        entry.state = EntryState::Flushing;
        entry.job.clone_from(&self.job);
        entry.record.mode = mode;
        let nanos = u32::try_from(found.mtime_nsec()).unwrap_or(0);
        Ok((entry, (found.mtime(), nanos)))
    }

    /// Says whose the attempt is, so that other jobs leave it alone for an hour from now.
    fn claim_attempt(&self, key: DatasetKey) -> Result<(), PrefixError> {
        let path = self.paths.inflight_job(key);
        Ok(self.store.put(&path, self.job.as_bytes())?)
    }

    /// When another has come to the name first, ours is not to wait for it.
    fn or_taken(
        &self,
        entry: &IndexEntry,
        result: Result<(), PrefixError>,
    ) -> Result<(), PrefixError> {
        match result {
            // Another has just given it its name.
            Err(PrefixError::NotOurs { path, .. }) if self.has_its_name(entry) => {
                Err(PrefixError::Changed { path })
            }
            Err(PrefixError::NotOurs { name, .. }) => {
                self.forget(entry.key());
                Err(self.taken(&name))
            }
            other => other,
        }
    }

    fn taken(&self, name: &Name) -> PrefixError {
        PrefixError::Taken {
            name: name.clone(),
            path: self.paths.dataset(name),
        }
    }

    /// Removes an entry that leads to no directory, and all that came with it.
    fn forget(&self, key: DatasetKey) {
        self.tidy(&self.paths.entry(key));
        self.tidy(&self.paths.inflight(key));
        self.tidy(&self.paths.manifests(key));
    }
}

/// The deepest directory that all files lie in.
fn common_directory(files: &BTreeSet<RelPath>) -> Option<RelPath> {
    // They are sorted: what the first and the last begin with, all begin with.
    let (first, last) = (files.first()?.as_bytes(), files.last()?.as_bytes());
    let same = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let end = first[..same].iter().rposition(|&byte| byte == b'/')?;
    RelPath::new(&first[..end]).ok()
}

/// Gives directories owner, mode and time of those that SCR wrote to, deepest first, and makes them durable.
/// The top one stays writable until it has its name; returns the mode that it gets then: what all
/// directories above the files allow, for these are not above them any more.
fn finish_directories(plan: &Plan, from: &Tree, to: &Tree) -> Result<u32, PrefixError> {
    let finish = |place: Option<&RelPath>, found: &FileStat, mode: u32| {
        let open = to.open_directory(place)?;
        let path = place.map_or_else(|| to.path().to_owned(), |place| to.path_of(place));
        let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
        attributes::apply_owner(&open, uid, gid, &path)?;
        attributes::apply_mode_and_time(&open, mode, mtime(found), &path)?;
        open.sync_all().map_err(PrefixError::io_at("sync", &path))
    };
    for (place, directory) in plan.directories.iter().rev() {
        let found = from.stat(directory)?;
        finish(Some(place), &found, found.st_mode & 0o7777)?;
    }
    let mut top = None;
    let mut mode = 0o7777;
    for directory in successors(plan.base.clone(), RelPath::parent) {
        let found = from.stat(&directory)?;
        mode &= found.st_mode;
        top.get_or_insert(found);
    }
    let top = match top {
        Some(found) => found,
        None => from.stat_root()?,
    };
    mode &= top.st_mode;
    finish(None, &top, mode | 0o700)?;
    Ok(mode)
}

/// Copies a file with its attributes and holes, and makes it durable.
fn copy(
    from: &Tree,
    file: &RelPath,
    to: &Tree,
    place: &RelPath,
    alive: &Alive<'_>,
) -> Result<(), PrefixError> {
    let (from_path, to_path) = (from.path_of(file), to.path_of(place));
    let source = from.open_file(file, OFlag::O_RDONLY, 0)?;
    let stat = |file: &File| {
        let found = nix::sys::stat::fstat(file).map_err(io::Error::from);
        found.map_err(PrefixError::io_at("stat", &from_path))
    };
    let found = stat(&source)?;
    let changed = || PrefixError::Changed {
        path: from_path.clone(),
    };
    if file_type(&found) != SFlag::S_IFREG {
        return Err(changed());
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let copy = to.open_file(place, flags, 0o600)?;
    let size = u64::try_from(found.st_size).unwrap_or(0);
    let extents = extents(&source, size);
    for extent in extents.map_err(PrefixError::io_at("find the data of", &from_path))? {
        let end = extent.offset + extent.len;
        for offset in (extent.offset..end).step_by(COPY_BYTES as usize) {
            let len = COPY_BYTES.min(end - offset);
            let done = copy_range(&source, &copy, offset, len);
            if done.map_err(PrefixError::io_at("copy to", &to_path))? != len {
                return Err(changed());
            }
            alive.tell();
        }
    }
    copy.set_len(size)
        .map_err(PrefixError::io_at("set the length of", &to_path))?;
    let xattrs = xattr::read_all(&source);
    let entry = Entry {
        path: place.clone(),
        kind: EntryKind::File {
            size,
            log_offset: 0,
            extents: Vec::new(),
        },
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
        mtime: mtime(&found),
        xattrs: xattrs.map_err(PrefixError::io_at("read the attributes of", &from_path))?,
    };
    let now = stat(&source)?;
    if (now.st_size, mtime(&now)) != (found.st_size, mtime(&found)) {
        return Err(changed());
    }
    attributes::apply(&copy, &entry, &to_path)?;
    copy.sync_all()
        .map_err(PrefixError::io_at("sync", &to_path))
}

fn copy_range(mut source: &File, mut copy: &File, offset: u64, len: u64) -> io::Result<u64> {
    source.seek(SeekFrom::Start(offset))?;
    copy.seek(SeekFrom::Start(offset))?;
    io::copy(&mut source.take(len), &mut copy)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paths(all: &[&str]) -> BTreeSet<RelPath> {
        let path = |text: &&str| RelPath::new(text.as_bytes()).unwrap();
        all.iter().map(path).collect()
    }

    #[test]
    fn all_files_lie_in_the_common_directory() {
        let common = |all: &[&str]| {
            let found = common_directory(&paths(all));
            found.map(|path| path.to_string())
        };
        assert_eq!(common(&["rank_0/ckpt.5", "rank_1/ckpt.5"]), None);
        assert_eq!(common(&["ckpt_5_0", "ckpt_5_1"]), None);
        assert_eq!(common(&["one"]), None);
        assert_eq!(common(&["a/b", "a"]), None);
        assert_eq!(common(&["run/5/a", "run/5/b"]).as_deref(), Some("run/5"));
        assert_eq!(common(&["run/5/a", "run/55/a"]).as_deref(), Some("run"));
        assert_eq!(common(&["run/5/a/x", "run/5/ab"]).as_deref(), Some("run/5"));
        assert_eq!(common(&["run/5/only"]).as_deref(), Some("run/5"));
    }

    proptest! {
        #[test]
        fn each_file_has_one_place_and_directories_above_it(
            all in prop::collection::btree_set("(d/)?(r/|s/t/){0,2}[ab]{1,2}", 1..8)
        ) {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let files = paths(&all);
            let plan = Plan::of(&files);
            let from: BTreeSet<_> = plan.files.values().cloned().collect();
            prop_assert_eq!(&from, &files);
            let whole = |place: &RelPath| match &plan.base {
                Some(base) => format!("{base}/{place}"),
                None => place.to_string(),
            };
            let mut above = BTreeSet::new();
            for (place, file) in &plan.files {
                prop_assert_eq!(whole(place), file.to_string());
                above.extend(successors(place.parent(), RelPath::parent));
            }
            let directories: BTreeSet<_> = plan.directories.keys().cloned().collect();
            prop_assert_eq!(directories, above);
            for (place, directory) in &plan.directories {
                prop_assert_eq!(whole(place), directory.to_string());
            }
            // No deeper directory has them all.
            let firsts: BTreeSet<_> = plan.files.keys().map(|place| {
                let first = place.as_bytes().split(|&byte| byte == b'/').next().unwrap();
                first.to_vec()
            }).collect();
            prop_assert!(firsts.len() > 1 || plan.files.keys().all(|it| it.parent().is_none()));
        }
    }

    #[test]
    fn others_are_told_that_somebody_is_at_work() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::open(root.path()).unwrap();
        let key = prefix.claim_key().unwrap();
        prefix.claim_attempt(key).unwrap();
        let job = prefix.paths.inflight_job(key);
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let is_old = || fs::metadata(&job).unwrap().modified().unwrap() == long_ago;
        File::open(&job).unwrap().set_modified(long_ago).unwrap();
        let alive = Alive {
            prefix: &prefix,
            key,
            told: Cell::new(Instant::now()),
        };
        alive.tell();
        assert!(is_old(), "too often");
        alive.tell_every(Duration::ZERO);
        assert!(!is_old());
    }
}
