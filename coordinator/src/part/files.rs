//! One part, opened: its files, its parity, and the checksums of both.
//!
//! A part is read as two streams, the part log and the parity; offsets and lengths are bytes of one
//! of them. Everything takes `&self` and may be used by several threads at once: reads and writes at
//! offsets share no position, the rest is behind locks that are never held over I/O but for opening
//! the parity. Lock order: none is taken while another is held.
//!
//! - What is read is not checked by reading: [`Part::check_unit`] does that, for whole units.
//! - Data is written only into a part that is being restored (see `restore`), into `tree.new`.
//! - Parity is written into `parity.new`, which becomes the parity by [`Part::commit_parity`]: a
//!   parity file of the right length is a whole one, also after a crash.

use super::error::{PartError, PartId};
use super::log::{Log, check_range, lock};
use super::records::{SealedPart, load_manifest, load_sums, store_manifest, store_sums};
use super::tree::Tree;
use super::units::{Units, check_unit};
use crate::ahead::identity;
use bytes::Bytes;
use scrfs::buffers;
use scrfs::id::Slot;
use scrfs::layout::manifest::{Manifest, Sums};
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::Stream;
use scrfs::store::Store;
use scrfs::store::posix::sync_directory;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// How long a room for parity may stay as it is before it is computed without.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// How often a room is looked at.
const ROOM_LOOK: Duration = Duration::from_millis(2);

/// The parity file, as far as it is open.
#[derive(Debug)]
pub(super) enum Parity {
    Closed,
    /// The committed one.
    Reading(Arc<File>),
    /// The one that is being computed.
    Writing(Arc<File>),
}

/// An opened part of one slot.
#[derive(Debug)]
pub struct Part {
    pub(super) log: Arc<Log>,
    pub(super) cache: CachePaths,
    pub(super) sealed: SealedPart,
    pub(super) restoring: AtomicBool,
    parity: Mutex<Parity>,
    data_sums: Arc<Mutex<Sums>>,
    parity_sums: Mutex<Sums>,
}

impl Part {
    /// Opens the part of `slot` of a sealed dataset. Its manifest must be the one that was sealed;
    /// checksums that are missing, damaged or of something else are reported and unknown.
    pub fn open(
        store: &dyn Store,
        cache: &CachePaths,
        record: &DatasetRecord,
        slot: Slot,
    ) -> Result<Self, PartError> {
        let sealed = SealedPart::of(record, slot)?;
        let part = sealed.part;
        let path = cache.manifest(record.id, slot, Keep::Own);
        let stored = load_manifest(store, cache, record.id, slot, Keep::Own)?.ok_or_else(|| {
            PartError::Missing {
                part,
                path: path.clone(),
            }
        })?;
        sealed.check_manifest(&path, &stored)?;
        let tree = Tree::open(&cache.tree(record.id, slot)).map_err(|error| part.store(error))?;
        let log = Log::new(Arc::new(stored.manifest), tree, false);
        let data = own_sums(store, cache, &sealed, Stream::Data);
        let parity = own_sums(store, cache, &sealed, Stream::Parity);
        Ok(Self::assemble(log, cache, sealed, false, data, parity))
    }

    pub(super) fn assemble(
        log: Log,
        cache: &CachePaths,
        sealed: SealedPart,
        restoring: bool,
        data: Option<Sums>,
        parity: Option<Sums>,
    ) -> Self {
        let data = data.unwrap_or_else(|| sealed.unknown_sums(Stream::Data));
        let parity = parity.unwrap_or_else(|| sealed.unknown_sums(Stream::Parity));
        Self {
            log: Arc::new(log),
            cache: cache.clone(),
            sealed,
            restoring: AtomicBool::new(restoring),
            parity: Mutex::new(Parity::Closed),
            data_sums: Arc::new(Mutex::new(data)),
            parity_sums: Mutex::new(parity),
        }
    }

    /// To know when nobody reads its files any more.
    pub(crate) fn readers(&self) -> Weak<Log> {
        Arc::downgrade(&self.log)
    }

    /// Whose part it is.
    pub fn id(&self) -> PartId {
        self.sealed.part
    }

    /// What it consists of.
    pub fn manifest(&self) -> &Manifest {
        self.log.manifest()
    }

    /// Length of a stream.
    pub fn stream_bytes(&self, stream: Stream) -> u64 {
        self.sealed.stream_bytes(stream)
    }

    /// Bytes a checksum covers.
    pub fn unit_bytes(&self) -> u32 {
        self.sealed.unit_bytes
    }

    /// Whether it is being restored still: its files are in `tree.new`.
    pub fn is_restoring(&self) -> bool {
        self.restoring.load(Ordering::Acquire)
    }

    /// Reads `offset..offset + len` of the part log; shorter only where the log ends.
    pub fn read_data(&self, offset: u64, len: u32) -> Result<Bytes, PartError> {
        let mut buffer = buffers::take(self.within(Stream::Data, offset, len));
        let done = self.log.read_at(offset, &mut buffer)?;
        buffer.truncate(done);
        Ok(buffer.freeze())
    }

    /// As [`Self::read_data`], into a buffer of the caller's; returns how far the log reaches in it.
    pub fn read_data_into(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, PartError> {
        self.log.read_at(offset, buffer)
    }

    /// Bytes of a stream that a range has.
    fn within(&self, stream: Stream, offset: u64, len: u32) -> usize {
        let rest = self.stream_bytes(stream).saturating_sub(offset);
        usize::try_from(rest.min(len.into())).unwrap_or(0)
    }

    /// Writes into a part that is being restored. The bytes must lie in the log.
    pub fn write_data(&self, offset: u64, bytes: &[u8]) -> Result<(), PartError> {
        if !self.is_restoring() {
            let path = self.log.tree().path().to_owned();
            return Err(PartError::NotRestoring {
                part: self.id(),
                path,
            });
        }
        self.log.write_at(offset, bytes)
    }

    pub(super) fn parity_path(&self) -> PathBuf {
        self.cache.parity(self.id().dataset, self.id().slot)
    }

    fn parity_new_path(&self) -> PathBuf {
        self.cache.parity_new(self.id().dataset, self.id().slot)
    }

    fn room_path(&self) -> PathBuf {
        self.cache.parity_room(self.id().dataset, self.id().slot)
    }

    /// Waits until the space that the daemon keeps for the parity is allocated; not when it keeps none,
    /// and no longer than it makes headway.
    pub fn await_room(&self) {
        let mut seen = None;
        let mut patience = Instant::now() + ROOM_PATIENCE;
        while let Ok(found) = fs::symlink_metadata(self.room_path()) {
            let bytes = found.blocks() * 512;
            if bytes >= found.len() || Instant::now() >= patience {
                return;
            }
            if seen.replace(bytes) != Some(bytes) {
                patience = Instant::now() + ROOM_PATIENCE;
            }
            std::thread::park_timeout(ROOM_LOOK);
        }
    }

    /// Whether what is kept for the parity is this file, by device and number.
    pub(crate) fn has_room(&self, room: Option<(u64, u64)>) -> bool {
        room.is_some() && identity(&self.room_path()) == room
    }

    /// The parity file that is there: the one being written before the committed one.
    fn parity_to_read(&self) -> Result<Arc<File>, PartError> {
        let mut parity = lock(&self.parity);
        match &*parity {
            Parity::Reading(file) | Parity::Writing(file) => Ok(Arc::clone(file)),
            Parity::Closed => {
                let path = self.parity_path();
                let file = open_regular(&path, File::options().read(true))
                    .map_err(self.id().io("open", &path))?;
                let file = Arc::new(file);
                *parity = Parity::Reading(Arc::clone(&file));
                Ok(file)
            }
        }
    }

    fn parity_to_write(&self) -> Result<Arc<File>, PartError> {
        let mut parity = lock(&self.parity);
        if let Parity::Writing(file) = &*parity {
            return Ok(Arc::clone(file));
        }
        let path = self.parity_new_path();
        let room = self.room_path();
        let made = remove_if_there(&path).and_then(|()| {
            let mut options = File::options();
            options.read(true).write(true).mode(0o600);
            match fs::rename(&room, &path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    options.create_new(true);
                }
                Err(error) => return Err(error),
            }
            let file = open_regular(&path, &mut options)?;
            file.set_len(self.sealed.parity_bytes)?;
            Ok(file)
        });
        let file = Arc::new(made.map_err(self.id().io("make", &path))?);
        *parity = Parity::Writing(Arc::clone(&file));
        Ok(file)
    }

    /// Reads `offset..offset + len` of the parity; shorter only where it ends.
    pub fn read_parity(&self, offset: u64, len: u32) -> Result<Bytes, PartError> {
        let mut buffer = buffers::take(self.within(Stream::Parity, offset, len));
        if buffer.is_empty() {
            return Ok(Bytes::new());
        }
        let file = self.parity_to_read()?;
        match file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(buffer.freeze()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(PartError::Short {
                part: self.id(),
                path: self.parity_path(),
                expected: self.sealed.parity_bytes,
                found: file.metadata().map_or(0, |found| found.len()),
            }),
            Err(error) => Err(self.id().io("read", &self.parity_path())(error)),
        }
    }

    /// Writes parity, which counts from [`Self::commit_parity`] on. The first call begins a new
    /// parity file, all zeros.
    pub fn write_parity(&self, offset: u64, bytes: &[u8]) -> Result<(), PartError> {
        let len = bytes.len() as u64;
        check_range(
            self.id(),
            Stream::Parity,
            offset,
            len,
            self.sealed.parity_bytes,
        )?;
        self.parity_to_write()?
            .write_all_at(bytes, offset)
            .map_err(self.id().io("write", &self.parity_new_path()))
    }

    /// Makes what was written the parity, durably. Without anything written it is a new file of
    /// zeros (or of no length); with the parity committed before, there is nothing to do.
    pub fn commit_parity(&self) -> Result<(), PartError> {
        if matches!(&*lock(&self.parity), Parity::Reading(_)) {
            return Ok(());
        }
        let file = self.parity_to_write()?;
        let (from, to) = (self.parity_new_path(), self.parity_path());
        file.sync_all().map_err(self.id().io("sync", &from))?;
        fs::rename(&from, &to).map_err(self.id().io("replace", &to))?;
        let PartId { dataset, slot } = self.id();
        let damage = self.cache.damage(dataset, slot, Stream::Parity);
        remove_if_there(&damage).map_err(self.id().io("remove", &damage))?;
        sync_directory(parent(&to)).map_err(|error| self.id().store(error))?;
        *lock(&self.parity) = Parity::Reading(file);
        Ok(())
    }

    fn sums_of(&self, stream: Stream) -> &Mutex<Sums> {
        match stream {
            Stream::Data => &self.data_sums,
            Stream::Parity => &self.parity_sums,
        }
    }

    /// The checksums of a stream as they are now.
    pub fn sums(&self, stream: Stream) -> Sums {
        lock(self.sums_of(stream)).clone()
    }

    /// The checksum of a unit, if it is known.
    pub fn sum(&self, stream: Stream, unit: usize) -> Option<u32> {
        lock(self.sums_of(stream)).crcs.get(unit).copied().flatten()
    }

    /// Notes the checksum of a unit; a unit that does not exist is ignored.
    pub fn set_sum(&self, stream: Stream, unit: usize, crc: u32) {
        if let Some(sum) = lock(self.sums_of(stream)).crcs.get_mut(unit) {
            *sum = Some(crc);
        }
    }

    /// Holds the bytes of a unit against its checksum; one that was not known is noted.
    pub fn check_unit(&self, stream: Stream, unit: usize, bytes: &[u8]) -> Result<(), PartError> {
        check_unit(
            self.id(),
            self.sums_of(stream),
            unit,
            bytes,
            |offset| match stream {
                Stream::Data => self.log.path_at(offset, bytes.len() as u64),
                Stream::Parity => self.parity_path(),
            },
        )
    }

    /// The part log as units that are checked when they are read. Shares the checksums.
    pub(crate) fn units(&self) -> Units {
        Units::new(Arc::clone(&self.log), Arc::clone(&self.data_sums))
    }

    /// Reads one unit and holds it against its checksum.
    pub fn read_unit(&self, stream: Stream, unit: usize) -> Result<Bytes, PartError> {
        let offset = unit as u64 * u64::from(self.unit_bytes());
        let bytes = match stream {
            Stream::Data => self.read_data(offset, self.unit_bytes())?,
            Stream::Parity => self.read_parity(offset, self.unit_bytes())?,
        };
        self.check_unit(stream, unit, &bytes)?;
        Ok(bytes)
    }

    /// Computes the checksums of a stream that are not known, from what is in the files now.
    pub fn fill_missing_sums(&self, stream: Stream) -> Result<(), PartError> {
        let missing: Vec<usize> = lock(self.sums_of(stream))
            .crcs
            .iter()
            .enumerate()
            .filter_map(|(unit, crc)| crc.is_none().then_some(unit))
            .collect();
        missing
            .into_iter()
            .try_for_each(|unit| self.read_unit(stream, unit).map(drop))
    }

    /// Reads all of a stream and holds it against its checksums.
    pub fn verify_stream(&self, stream: Stream) -> Result<(), PartError> {
        let units = lock(self.sums_of(stream)).crcs.len();
        (0..units).try_for_each(|unit| self.read_unit(stream, unit).map(drop))
    }

    /// Puts the manifest into the cache.
    pub fn store_manifest(&self, store: &dyn Store) -> Result<(), PartError> {
        store_manifest(store, &self.cache, self.manifest(), Keep::Own).map(drop)
    }

    /// Puts the checksums of a stream into the cache as they are now; those of the data when the files are
    /// durable: where they are complete, no crash of the machine has taken bytes.
    pub fn store_sums(&self, store: &dyn Store, stream: Stream) -> Result<(), PartError> {
        if stream == Stream::Data {
            self.sync_files()?;
        }
        store_sums(store, &self.cache, &self.sums(stream), Keep::Own)
    }

    fn sync_files(&self) -> Result<(), PartError> {
        let tree = self.log.tree();
        let root = tree
            .open_directory(None)
            .map_err(|error| self.id().store(error))?;
        // All at once: the tree may have a hundred thousand.
        nix::unistd::syncfs(&root)
            .map_err(|errno| self.id().io("sync", tree.path())(io::Error::from(errno)))
    }

    /// That every entry of the manifest is in the tree: its kind, and for files the size, the
    /// modification time and which names share an inode. Reads no content.
    pub fn verify_against_tree(&self) -> Result<(), PartError> {
        self.log.verify_against_tree()
    }

    /// That the parity file is there with its length. A stream of no bytes needs no file.
    pub fn has_parity(&self) -> bool {
        has_parity(&self.cache, &self.sealed)
    }
}

/// That the parity file is there with its length. A stream of no bytes needs no file.
pub(super) fn has_parity(cache: &CachePaths, sealed: &SealedPart) -> bool {
    let path = cache.parity(sealed.part.dataset, sealed.part.slot);
    sealed.parity_bytes == 0
        || fs::symlink_metadata(path)
            .is_ok_and(|found| found.is_file() && found.len() == sealed.parity_bytes)
}

/// Checksums from the cache that may be believed.
pub(super) fn own_sums(
    store: &dyn Store,
    cache: &CachePaths,
    sealed: &SealedPart,
    stream: Stream,
) -> Option<Sums> {
    sums_that_fit(store, cache, sealed, stream, Keep::Own)
}

/// Checksums of a slot, its own or a copy, if they are there, whole, and of what was sealed. What is
/// wrong with them is reported.
pub fn sums_that_fit(
    store: &dyn Store,
    cache: &CachePaths,
    sealed: &SealedPart,
    stream: Stream,
    keep: Keep,
) -> Option<Sums> {
    let PartId { dataset, slot } = sealed.part;
    let path = cache.sums(dataset, slot, stream, keep);
    let sums = load_sums(store, cache, dataset, slot, stream, keep).and_then(|sums| match sums {
        Some(sums) => sealed.check_sums(&path, &sums).map(|()| Some(sums)),
        None => Ok(None),
    });
    sums.unwrap_or_else(|error| {
        super::report("checksums are not believed", &error);
        None
    })
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn open_regular(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    let file = options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}
