//! Taking in what somebody else wrote to the prefix, as it lies there, so that a restart can read it.
//!
//! A directory becomes a dataset, in parts (see `split`), when all of it has been read and summed, and has
//! not changed meanwhile. Nothing in it is touched. Order: read all -> look again -> claim a key by making
//! its directory of manifests -> checksums, manifest -> index entry. What a crash leaves is a directory of
//! manifests without an entry, which [`Prefix::reconcile`] removes some time later.

use super::error::PrefixError;
use super::flush::piece_bytes;
use super::publish::Step;
use super::split::split;
use super::streams::{Job, run};
use super::{FlushLimits, Prefix, StepHook};
use crate::part::records::encode_manifest;
use crate::part::{Log, Tree, Units, scan_part};
use scrfs::config::Class;
use scrfs::id::{DatasetId, DatasetKey, Epoch, Slot};
use scrfs::layout::envelope::{Kind, seal};
use scrfs::layout::index::{EntryState, IndexEntry};
use scrfs::layout::manifest::{Manifest, Sums};
use scrfs::layout::record::{DatasetRecord, Phase, Seal, UNIT_BYTES, millis};
use scrfs::name::Name;
use scrfs::redundancy::{Scheme, Stream};
use scrfs::store::Store;
use scrfs::store::posix::sync_directory;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Parity would be laid out in chunks of this many bytes; there is none.
const CHUNK_BYTES: u64 = 1 << 20;
/// While it is not known which dataset it is.
const NONE: DatasetId = DatasetId(0);

/// How a dataset came into the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Added {
    /// It is there already.
    Already,
    /// It had been dropped.
    PutBack,
    /// Somebody else wrote it.
    Adopted,
    /// SCR wrote it to several places: it has a directory now.
    Gathered,
}

impl Prefix {
    /// Puts a dropped dataset back, or takes in a directory that somebody else wrote, as `class`.
    /// `progress` gets the bytes read, and all that are to be. Blocks; not to be called from async code.
    ///
    /// # Errors
    ///
    /// There is no such directory, it changes, or has what cannot be brought back.
    pub fn add(
        &self,
        name: &Name,
        class: Class,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Added, PrefixError> {
        self.add_with(name, class, progress, &|_| Ok(()))
    }

    pub(super) fn add_with(
        &self,
        name: &Name,
        class: Class,
        progress: &dyn Fn(u64, u64),
        step: StepHook<'_>,
    ) -> Result<Added, PrefixError> {
        for entry in self.all_entries()? {
            let is_it = entry.record.name == *name
                && self
                    .own_directory(&entry)
                    .is_ok_and(|found| found.is_some());
            if is_it {
                return Ok(Added::Already);
            }
        }
        if self.put_back(name, step)? {
            return Ok(Added::PutBack);
        }
        self.adopt(name, class, progress, step)?;
        Ok(Added::Adopted)
    }

    fn adopt(
        &self,
        name: &Name,
        class: Class,
        progress: &dyn Fn(u64, u64),
        step: StepHook<'_>,
    ) -> Result<(), PrefixError> {
        let path = self.paths.dataset(name);
        let found = fs::symlink_metadata(&path).ok();
        let found = found.filter(|found| found.is_dir() && path != self.paths.control());
        let found = found.ok_or_else(|| PrefixError::NoSuch {
            name: name.clone(),
            prefix: self.paths.root().to_owned(),
        })?;
        let step = |name| step(name).map_err(PrefixError::io_at(name, &path));
        let parts = self.read_directory(&path, progress, &step)?;
        step("claim a number")?;
        let key = self.claim_key()?;
        let seal = self.write_parts(key, parts, &step)?;
        let entry = adopted(key, name, class, &found, seal);
        step("write the entry")?;
        self.store.put(&self.paths.entry(key), &entry.encode())?;
        Ok(())
    }

    /// Reads all of a directory, in parts, each with its checksums.
    pub(super) fn read_directory(
        &self,
        path: &Path,
        progress: &dyn Fn(u64, u64),
        step: Step<'_>,
    ) -> Result<Vec<(Manifest, Sums)>, PrefixError> {
        let manifest = scan_part(path, NONE, Slot(0), Epoch(0))?;
        step("read the files")?;
        let mut parts = Vec::new();
        let (mut read, all) = (0, manifest.log_bytes);
        for part in split(manifest.clone()) {
            let sums = self.sum_up(path, &part, &|bytes| progress(read + bytes, all))?;
            read += part.log_bytes;
            parts.push((part, sums));
        }
        if scan_part(path, NONE, Slot(0), Epoch(0))? != manifest {
            return Err(PrefixError::Changed {
                path: path.to_owned(),
            });
        }
        Ok(parts)
    }

    /// Writes checksums and manifests of what was read.
    pub(super) fn write_parts(
        &self,
        key: DatasetKey,
        parts: Vec<(Manifest, Sums)>,
        step: Step<'_>,
    ) -> Result<Seal, PrefixError> {
        let sets = parts.iter().map(|(part, _)| vec![part.slot]).collect();
        let mut summaries = Vec::new();
        for (mut part, mut sums) in parts {
            (part.dataset, sums.dataset) = (key.id, key.id);
            let (bytes, summary) = encode_manifest(&part);
            step("write the checksums")?;
            let sums_path = self.paths.sums(key, part.slot);
            self.store.put(&sums_path, &seal(Kind::Sums, &sums))?;
            step("write the manifest")?;
            self.store
                .put(&self.paths.manifest(key, part.slot), &bytes)?;
            summaries.push(summary);
        }
        Ok(Seal {
            epoch: Epoch(0),
            scheme: Scheme::Single,
            chunk_bytes: CHUNK_BYTES,
            unit_bytes: UNIT_BYTES,
            sets,
            parts: summaries,
        })
    }

    /// Reads everything, makes sure that it is durable, and gives the checksums.
    fn sum_up(
        &self,
        path: &Path,
        manifest: &Manifest,
        progress: &dyn Fn(u64),
    ) -> Result<Sums, PrefixError> {
        let tree = Tree::open(path)?;
        let root = tree.open_directory(None)?;
        nix::unistd::syncfs(&root)
            .map_err(io::Error::from)
            .map_err(PrefixError::io_at("sync", path))?;
        let total = manifest.log_bytes;
        let sums = Sums::unknown(NONE, manifest.slot, Stream::Data, UNIT_BYTES, total);
        let log = Log::new(Arc::new(manifest.clone()), tree, false);
        let units = Units::new(Arc::new(log), Arc::new(Mutex::new(sums)));
        let reader = units.clone();
        let job = Job {
            dataset: NONE,
            total,
            piece: piece_bytes(UNIT_BYTES),
            streams: FlushLimits::default().streams,
            pace: None,
            skip: None,
            files: Some(&|offset, len| units.log().files(offset, len)),
            gentle: false,
            cancel: &AtomicBool::new(false),
        };
        run(&job, progress, move |offset, len| {
            Ok(reader.read(offset, len).map(drop)?)
        })?;
        Ok(units.sums())
    }

    /// A key that nobody else has: who makes its directory has it.
    pub(super) fn claim_key(&self) -> Result<DatasetKey, PrefixError> {
        let all = self.paths.all_manifests();
        self.store.make_directories(&all)?;
        let mut key = DatasetKey {
            id: DatasetId(self.highest_number()?.saturating_add(1)),
            created: millis(SystemTime::now()),
        };
        loop {
            let path = self.paths.manifests(key);
            match fs::create_dir(&path) {
                Ok(()) => break,
                // Another's; or ours, made by a request that an NFS server answered twice.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => key.created += 1,
                Err(error) => return Err(PrefixError::io_at("make the directory", &path)(error)),
            }
        }
        sync_directory(&all)?;
        Ok(key)
    }
}

/// The entry of a dataset that somebody else wrote: all of it is there, in the directory that was `found`.
pub(super) fn adopted(
    key: DatasetKey,
    name: &Name,
    class: Class,
    found: &Metadata,
    seal: Seal,
) -> IndexEntry {
    let (bytes, files) = (seal.bytes(), seal.files());
    let record = DatasetRecord {
        id: key.id,
        name: name.clone(),
        committed_from: None,
        class,
        checkpoint: None,
        phase: Phase::Sealed,
        epoch: Epoch(0),
        created: key.created,
        sealed: Some(key.created),
        protected: None,
        flushing: false,
        flushed: Some(key.created),
        seal: Some(seal),
        error: None,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
    };
    IndexEntry {
        record,
        state: EntryState::Complete,
        attempt: Epoch(0),
        inode: found.ino(),
        replaces: None,
        flushed: key.created,
        bytes,
        files,
        job: String::new(),
        adopted: true,
    }
}
