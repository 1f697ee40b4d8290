//! Holding programs to the budget where the daemon sees what they write, and the device does not hold it.
//!
//! What is there already may be written again in a full store; only what must be allocated needs room. A write
//! goes over the budget by its own length at most; what asks for more at once is compared with all of it.

use super::{FsError, FsResult, Vfs};
use crate::sys;
use nix::errno::Errno;
use scrfs::id::DatasetId;
use std::os::fd::BorrowedFd;

/// Bytes of a range that nothing is allocated for, as far as the file tells.
fn holes(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<u64, Errno> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(|_| Errno::EFBIG)?;
        match sys::seek(file, from, whence) {
            Ok(at) => Ok(u64::try_from(at).unwrap_or(0)),
            // Nothing but a hole, or the end.
            Err(Errno::ENXIO) => Ok(u64::MAX),
            Err(errno) => Err(errno),
        }
    };
    let end = offset.saturating_add(length);
    let (mut at, mut bytes) = (offset, 0);
    while at < end {
        let data = seek(at, libc::SEEK_DATA)?.min(end);
        bytes += data.saturating_sub(at);
        if data == end {
            break;
        }
        at = seek(data, libc::SEEK_HOLE)?;
    }
    Ok(bytes)
}

impl Vfs {
    /// That a write may be done.
    pub(super) fn check_write(
        &self,
        dataset: DatasetId,
        file: BorrowedFd<'_>,
        (offset, length): (u64, u64),
    ) -> FsResult<()> {
        match self.settings().space.left(dataset) {
            Some(0) if holes(file, offset, length)? > 0 => Err(FsError::NoSpace),
            _ => Ok(()),
        }
    }

    /// How many of so many bytes may be written; never 0 of more.
    pub(super) fn allowed(
        &self,
        dataset: DatasetId,
        file: BorrowedFd<'_>,
        (offset, length): (u64, u64),
    ) -> FsResult<u64> {
        match self.settings().space.left(dataset) {
            Some(left) if left < length && left < holes(file, offset, length)? => match left {
                0 => Err(FsError::NoSpace),
                _ => Ok(left),
            },
            _ => Ok(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_counted_and_what_is_beyond_the_end() {
        const PAGE: u64 = 4096;
        let file = tempfile::tempfile().expect("a file");
        let holes = |file: &File, at, length| holes(file.as_fd(), at, length).expect("counted");
        assert_eq!(holes(&file, 0, 10), 10);
        file.write_all_at(&[1; 4096], 0).expect("written");
        file.write_all_at(&[1; 4096], 64 * PAGE).expect("written");
        assert_eq!(holes(&file, 0, PAGE), 0);
        assert_eq!(holes(&file, 10, 20), 0);
        assert_eq!(holes(&file, 0, 2 * PAGE), PAGE);
        assert_eq!(holes(&file, 0, 65 * PAGE), 63 * PAGE);
        assert_eq!(holes(&file, 64 * PAGE, 3 * PAGE), 2 * PAGE);
        assert_eq!(holes(&file, 100 * PAGE, PAGE), PAGE);
        assert_eq!(holes(&file, 0, 0), 0);
    }
}
