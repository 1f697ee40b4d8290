//! Looking a stream over, and putting single units of it right where they lie.
//!
//! A unit that is mended is written only when the bytes at hand are those of its checksum, and counts
//! only when they have been read back. A crash in between leaves a unit that fails its checksum, as it
//! did before. The time and mode of a file stay as they were.

use super::attributes;
use super::error::PartError;
use super::files::{Part, open_regular, parent, remove_if_there};
use super::log::Log;
use nix::fcntl::OFlag;
use scrfs::layout::envelope::crc32c;
use scrfs::redundancy::Stream;
use scrfs::store::StoreError;
use scrfs::store::posix::sync_directory;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Damaged units of one stream that are mended one by one; with more of them all of it is as good as lost.
pub(crate) const UNITS_MENDED_MAX: usize = 4096;
/// Bytes read between two rests.
const STRETCH_BYTES: u64 = 4 << 20;
/// Longest rest.
const REST_MAX: Duration = Duration::from_millis(50);

/// Keeps whoever looks over large amounts from taking more than half of a core, and lets it be stopped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leisure {
    stopped: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
}

impl Leisure {
    /// It is not wanted any more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether it is still wanted.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    /// Rests as long as it has taken since `since` to read `bytes`, if that was a stretch; gives what all
    /// who share this have read by now.
    pub(crate) fn rest(&self, since: &mut Instant, bytes: &mut u64) -> Option<u64> {
        if *bytes < STRETCH_BYTES {
            return None;
        }
        let all = self.read.fetch_add(*bytes, Ordering::Relaxed) + *bytes;
        std::thread::park_timeout(since.elapsed().min(REST_MAX));
        (*since, *bytes) = (Instant::now(), 0);
        Some(all)
    }
}

/// What was found when a stream was looked over.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Bytes that were held against a checksum.
    pub(crate) bytes: u64,
    /// In so many units.
    pub(crate) units: u64,
    /// Units without a checksum.
    pub(crate) unknown: u64,
    /// Units that are not what was stored, and in what way, in order.
    pub(crate) bad: Vec<(usize, String)>,
    /// There are more of them than are mended.
    pub(crate) has_more: bool,
}

impl Part {
    /// Reads all of a stream that has checksums. `progress` gets what was read by all who share `leisure`.
    pub(crate) fn look_over(
        &self,
        stream: Stream,
        leisure: &Leisure,
        progress: &dyn Fn(u64),
    ) -> Looked {
        let mut looked = Looked::default();
        let (mut since, mut stretch) = (Instant::now(), 0);
        let crcs = self.sums(stream).crcs;
        for (unit, crc) in crcs.iter().enumerate() {
            if !leisure.goes_on() {
                break;
            }
            if crc.is_none() {
                looked.unknown += 1;
                continue;
            }
            let len = self.unit_len(stream, unit);
            (looked.units, looked.bytes) = (looked.units + 1, looked.bytes + len);
            stretch += len;
            if let Err(error) = self.read_unit(stream, unit) {
                if looked.bad.len() >= UNITS_MENDED_MAX {
                    looked.has_more = true;
                    break;
                }
                looked.bad.push((unit, crate::effects::chain(&error)));
            }
            if let Some(all) = leisure.rest(&mut since, &mut stretch) {
                progress(all);
            }
        }
        looked
    }

    /// Bytes of a unit.
    pub(crate) fn unit_len(&self, stream: Stream, unit: usize) -> u64 {
        let unit_bytes = u64::from(self.unit_bytes());
        let offset = (unit as u64).saturating_mul(unit_bytes);
        let rest = self.stream_bytes(stream).saturating_sub(offset);
        rest.min(unit_bytes)
    }

    /// The file that a unit lies in, or begins in.
    pub(crate) fn path_of_unit(&self, stream: Stream, unit: usize) -> PathBuf {
        let offset = unit as u64 * u64::from(self.unit_bytes());
        match stream {
            Stream::Data => self.log.path_at(offset, self.unit_len(stream, unit)),
            Stream::Parity => self.parity_path(),
        }
    }

    /// Writes a unit where it lies, if `bytes` are what its checksum is of.
    pub(crate) fn mend(&self, stream: Stream, unit: usize, bytes: &[u8]) -> Result<(), PartError> {
        let found = crc32c(bytes);
        let offset = unit as u64 * u64::from(self.unit_bytes());
        let expected = self.sum(stream, unit);
        if expected != Some(found) || bytes.len() as u64 != self.unit_len(stream, unit) {
            return Err(PartError::Checksum {
                part: self.id(),
                stream,
                offset,
                path: self.path_of_unit(stream, unit),
                expected: expected.unwrap_or(0),
                found,
            });
        }
        match stream {
            Stream::Data => mend_log(&self.log, offset, bytes)?,
            Stream::Parity => {
                let path = self.parity_path();
                let file = open_regular(&path, File::options().read(true).write(true));
                file.and_then(|file| {
                    file.write_all_at(bytes, offset)?;
                    file.sync_all()
                })
                .map_err(self.id().io("mend", &path))?;
            }
        }
        self.read_unit(stream, unit).map(drop)
    }

    /// All of a stream is what was stored: that it was not is forgotten.
    pub(crate) fn clear_damage(&self, stream: Stream) -> Result<(), PartError> {
        let path = self.cache.damage(self.id().dataset, self.id().slot, stream);
        if !path.exists() {
            return Ok(());
        }
        remove_if_there(&path).map_err(self.id().io("remove", &path))?;
        sync_directory(parent(&path)).map_err(|error| self.id().store(error))
    }
}

/// Writes bytes of a log where they lie, durably; the files keep their times and modes.
pub(crate) fn mend_log(log: &Log, offset: u64, bytes: &[u8]) -> Result<(), PartError> {
    let part = log.part();
    let mut done = 0;
    for piece in log.pieces(offset, bytes.len() as u64) {
        let path = log.tree().path_of(piece.path);
        let before = log
            .tree()
            .stat(piece.path)
            .map_err(|error| part.store(error))?;
        let open = || log.tree().open_file(piece.path, OFlag::O_RDWR, 0);
        let file = match open() {
            Err(StoreError { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                let writable = before.st_mode & 0o7777 | 0o600;
                log.tree()
                    .set_mode(piece.path, writable)
                    .and_then(|()| open())
            }
            other => other,
        }
        .map_err(|error| part.store(error))?;
        let found = file.metadata().map_err(part.io("stat", &path))?;
        if !found.is_file() || found.ino() != before.st_ino {
            return Err(PartError::Changed { part, path });
        }
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        let written = file.write_all_at(&bytes[done..done + len], piece.file_offset);
        let nanos = u32::try_from(before.st_mtime_nsec).unwrap_or(0);
        attributes::apply_mode_and_time(
            &file,
            before.st_mode & 0o7777,
            (before.st_mtime, nanos),
            &path,
        )
        .map_err(|error| part.store(error))?;
        written
            .and_then(|()| file.sync_all())
            .map_err(part.io("mend", &path))?;
        done += len;
    }
    Ok(())
}
