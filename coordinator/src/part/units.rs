//! The part log in units: nothing is returned that does not match its checksum.
//!
//! Used for whatever has the files of a part: the cache, a copy in the prefix. Offsets are bytes of
//! the log; reads begin at a unit and end at one, or at the end of the log.

use super::error::{PartError, PartId};
use super::log::{Log, lock};
use scrfs::buffers::{self, Buffer};
use scrfs::layout::envelope::crc32c;
use scrfs::layout::manifest::Sums;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Holds the bytes of a unit against its checksum; one that was not known is noted. `path` tells
/// where the unit lies, for the error.
pub(super) fn check_unit(
    part: PartId,
    sums: &Mutex<Sums>,
    unit: usize,
    bytes: &[u8],
    path: impl FnOnce(u64) -> PathBuf,
) -> Result<(), PartError> {
    let found = crc32c(bytes);
    let mut sums = lock(sums);
    let (stream, stream_bytes) = (sums.stream, sums.stream_bytes);
    let offset = unit as u64 * u64::from(sums.unit_bytes);
    match sums.crcs.get_mut(unit) {
        Some(Some(expected)) if *expected != found => {
            let expected = *expected;
            drop(sums);
            let path = path(offset);
            Err(PartError::Checksum {
                part,
                stream,
                offset,
                path,
                expected,
                found,
            })
        }
        Some(known) => {
            *known = Some(found);
            Ok(())
        }
        None => {
            let len = bytes.len() as u64;
            Err(PartError::Range {
                part,
                stream,
                offset,
                len,
                stream_bytes,
            })
        }
    }
}

/// A part log whose units are checked when they are read. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    log: Arc<Log>,
    sums: Arc<Mutex<Sums>>,
}

impl Units {
    /// The units of `log`, whose checksums are `sums`.
    pub(crate) fn new(log: Arc<Log>, sums: Arc<Mutex<Sums>>) -> Self {
        Self { log, sums }
    }

    /// The same checksums over other files: a copy of the same part.
    pub(crate) fn over(&self, log: Log) -> Self {
        Self {
            log: Arc::new(log),
            sums: Arc::clone(&self.sums),
        }
    }

    /// The log.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The checksums as they are now.
    pub(crate) fn sums(&self) -> Sums {
        lock(&self.sums).clone()
    }

    /// Bytes of a unit.
    pub(crate) fn unit_bytes(&self) -> u32 {
        lock(&self.sums).unit_bytes
    }

    /// Whether the checksums of a range are known, so that a copy of it can be held against them.
    pub(crate) fn knows(&self, offset: u64, len: u64) -> bool {
        let sums = lock(&self.sums);
        let unit_bytes = u64::from(sums.unit_bytes.max(1));
        let units = offset / unit_bytes..offset.saturating_add(len).div_ceil(unit_bytes);
        let units = usize::try_from(units.start)
            .ok()
            .zip(usize::try_from(units.end).ok());
        let known = units.and_then(|(first, end)| sums.crcs.get(first..end));
        known.is_some_and(|crcs| crcs.iter().all(Option::is_some))
    }

    /// Reads from the beginning of a unit on. Every unit is checked, a new checksum is noted.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Buffer, PartError> {
        self.read_into(buffers::take(self.len_of(offset, len)), offset)
    }

    /// The same, to where the largest piece lies in its file: whole blocks of it can be written directly.
    pub(crate) fn read_in_place(&self, offset: u64, len: u64) -> Result<Buffer, PartError> {
        let mut from = 0;
        let pieces = self.log.pieces(offset, len).map(|piece| {
            from += piece.len;
            (piece.len, piece.file_offset.wrapping_sub(from - piece.len))
        });
        let place = pieces.max().map_or(0, |(_, place)| place);
        self.read_into(buffers::take_at(place, self.len_of(offset, len)), offset)
    }

    fn len_of(&self, offset: u64, len: u64) -> usize {
        let rest = self.log.manifest().log_bytes.saturating_sub(offset);
        usize::try_from(len.min(rest)).unwrap_or(usize::MAX)
    }

    fn read_into(&self, mut buffer: Buffer, offset: u64) -> Result<Buffer, PartError> {
        let unit_bytes = u64::from(self.unit_bytes());
        let done = self.log.read_at(offset, &mut buffer)?;
        buffer.truncate(done);
        let first = offset / unit_bytes;
        let unit_len = usize::try_from(unit_bytes).unwrap_or(usize::MAX);
        for (unit, bytes) in (first..).zip(buffer.chunks(unit_len)) {
            let index = usize::try_from(unit).unwrap_or(usize::MAX);
            check_unit(self.log.part(), &self.sums, index, bytes, |at| {
                self.log.path_at(at, bytes.len() as u64)
            })?;
        }
        Ok(buffer)
    }
}
