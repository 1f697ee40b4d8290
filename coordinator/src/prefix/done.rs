//! Which files of a slot an attempt to flush has finished, so that the next one need not copy them again.
//!
//! `inflight/<key>/<epoch>.<slot>.done`: a record of 20 bytes for each file, appended *after* its
//! fsync. What has no record is not trusted, whatever it looks like: after a power loss, or a failed
//! write-back, a file may look whole and not be. A record tells the file by its inode number; its checksum
//! covers that of the manifest, so that a record of another part is none. That the record itself may be
//! lost costs a copy, no more.
//!
//! ```text
//! 0   8  entry of the manifest        8   8  inode number
//! 16  4  CRC-32C of the manifest's CRC-32C and of what comes before; all little endian
//! ```
//!
//! What is taken over is read back and held against the checksums.

use super::error::PrefixError;
use crate::part::lock;
use scrfs::layout::envelope::crc32c;
use scrfs::store::posix::PosixStore;
use scrfs::store::{Store, StoreError};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Bytes of one record.
const RECORD_BYTES: usize = 20;

/// The records of one slot and attempt, being written.
#[derive(Debug)]
pub(super) struct Done {
    path: PathBuf,
    manifest_crc: u32,
    /// `None` when it cannot be written any more: then there is more to copy some day, no harm.
    file: Mutex<Option<File>>,
}

fn record(manifest_crc: u32, entry: usize, inode: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&(entry as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&inode.to_le_bytes());
    let sum = check(manifest_crc, &bytes);
    bytes[16..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn check(manifest_crc: u32, record: &[u8; RECORD_BYTES]) -> u32 {
    let mut covered = manifest_crc.to_le_bytes().to_vec();
    covered.extend_from_slice(&record[..16]);
    crc32c(&covered)
}

/// What an attempt before has finished: entry and inode number. Damage ends it early.
pub(super) fn read(
    store: &PosixStore,
    path: &Path,
    manifest_crc: u32,
) -> Result<BTreeMap<usize, u64>, StoreError> {
    let bytes = store.get(path)?.unwrap_or_default();
    let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let believed = records
        .iter()
        .take_while(|record| record[16..] == check(manifest_crc, record).to_le_bytes());
    let found = believed.map(|record| {
        let entry = usize::try_from(number(&record[..8])).unwrap_or(usize::MAX);
        (entry, number(&record[8..16]))
    });
    Ok(found.collect())
}

/// Records of files that have other numbers now, as in a copy of the prefix.
#[cfg(test)]
pub(super) fn renumbered(
    bytes: &[u8],
    manifest_crc: u32,
    number_of: impl Fn(u64) -> u64,
) -> Vec<u8> {
    let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let all = records.iter().flat_map(|old| {
        let is_ours = old[16..] == check(manifest_crc, old).to_le_bytes();
        let entry = usize::try_from(number(&old[..8])).unwrap_or(usize::MAX);
        let new = || record(manifest_crc, entry, number_of(number(&old[8..16])));
        if is_ours { new() } else { *old }
    });
    all.chain(rest.iter().copied()).collect()
}

impl Done {
    /// Begins anew with what was taken over.
    pub(super) fn begin(
        store: &PosixStore,
        path: &Path,
        manifest_crc: u32,
        taken: &BTreeMap<usize, u64>,
    ) -> Result<Self, PrefixError> {
        let records = taken
            .iter()
            .flat_map(|(&entry, &inode)| record(manifest_crc, entry, inode));
        store.put(path, &records.collect::<Vec<u8>>())?;
        let file = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(PrefixError::io_at("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            manifest_crc,
            file: Mutex::new(Some(file)),
        })
    }

    /// A file is whole, and durable.
    pub(super) fn note(&self, entry: usize, inode: u64) {
        let mut file = lock(&self.file);
        let Some(open) = file.as_mut() else { return };
        let bytes = record(self.manifest_crc, entry, inode);
        match open.write(&bytes) {
            Ok(RECORD_BYTES) => {}
            // Half a record makes those behind it unreadable.
            other => {
                let path = self.path.display();
                tracing::warn!(%path, ?other, "what is copied is not noted any more");
                *file = None;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example in `docs/layout.md` was not made by this code.
    #[test]
    fn a_record_is_as_the_page_on_the_layout_has_it() {
        let page = include_str!("../../../docs/layout.md");
        let block = page.split_once("```done\n").unwrap().1;
        let block = block.split_once("```").unwrap().0;
        let byte = |word| u8::from_str_radix(word, 16).unwrap();
        let said: Vec<u8> = block.split_whitespace().map(byte).collect();
        assert_eq!(said, record(0x0102_0304, 1, 99));
    }

    #[test]
    fn records_come_back_and_others_are_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let store = PosixStore::new();
        let path = root.path().join("3.0.done");
        assert!(read(&store, &path, 7).unwrap().is_empty());
        let taken = BTreeMap::from([(4, 44)]);
        let done = Done::begin(&store, &path, 7, &taken).unwrap();
        done.note(5, u64::MAX);
        done.note(4, 45);
        let all = BTreeMap::from([(4, 45), (5, u64::MAX)]);
        assert_eq!(read(&store, &path, 7).unwrap(), all);
        assert!(
            read(&store, &path, 8).unwrap().is_empty(),
            "another manifest"
        );
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..59]).unwrap();
        let most = BTreeMap::from([(4, 44), (5, u64::MAX)]);
        assert_eq!(read(&store, &path, 7).unwrap(), most);
        let mut flipped = bytes.clone();
        flipped[8] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert!(read(&store, &path, 7).unwrap().is_empty());
    }
}
