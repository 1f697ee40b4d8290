//! The files of a measurement: a part, its parity, and what is rebuilt. They have no names while they
//! exist, so that nothing is left behind.

use crate::transfer::{PartStore, TransferError};
use bytes::Bytes;
use scrfs::buffers;
use scrfs::id::{DatasetId, Slot};
use scrfs::redundancy::{Extent, Stream};
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are written, or compared, at once.
const BLOCK_BYTES: usize = 1 << 20;

/// One slot's streams.
pub(super) struct FileStore {
    slot: Slot,
    data: File,
    data_bytes: u64,
    parity: File,
    /// Where data goes that is made again.
    rebuilt: File,
}

impl FileStore {
    /// A part of `data_bytes` that look random, and no parity.
    pub(super) fn new(directory: &Path, slot: Slot, data_bytes: u64) -> io::Result<Self> {
        let file = |name: &str| -> io::Result<File> {
            let path = directory.join(format!("bench.{}.{}.{name}", std::process::id(), slot.0));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        };
        let store = Self {
            slot,
            data: file("data")?,
            data_bytes,
            parity: file("parity")?,
            rebuilt: file("rebuilt")?,
        };
        let mut state = u64::from(slot.0) + 1;
        let mut block = vec![0_u8; BLOCK_BYTES];
        for (offset, length) in store.blocks() {
            for word in block.chunks_exact_mut(8) {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                word.copy_from_slice(&state.to_le_bytes());
            }
            store.data.write_all_at(&block[..length], offset)?;
        }
        Ok(store)
    }

    /// Offsets and lengths of the blocks of the data.
    fn blocks(&self) -> impl Iterator<Item = (u64, usize)> {
        let bytes = self.data_bytes;
        (0..bytes).step_by(BLOCK_BYTES).map(move |offset| {
            let rest = usize::try_from(bytes - offset).unwrap_or(usize::MAX);
            (offset, rest.min(BLOCK_BYTES))
        })
    }

    /// Drops the parity, and lets go of its memory.
    pub(super) fn drop_parity(&self) -> io::Result<()> {
        self.parity.set_len(0)
    }

    /// Drops what was rebuilt, and lets go of its memory.
    pub(super) fn drop_rebuilt(&self) -> io::Result<()> {
        self.rebuilt.set_len(0)
    }

    /// Whether what was rebuilt is the data.
    pub(super) fn is_rebuilt(&self) -> io::Result<bool> {
        let (mut lost, mut made) = (vec![0; BLOCK_BYTES], vec![1; BLOCK_BYTES]);
        for (offset, length) in self.blocks() {
            self.data.read_exact_at(&mut lost[..length], offset)?;
            self.rebuilt.read_exact_at(&mut made[..length], offset)?;
            if lost[..length] != made[..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn failed(dataset: DatasetId, extent: Extent) -> impl FnOnce(io::Error) -> TransferError {
    move |e| TransferError::Io {
        dataset,
        extent,
        errno: e.raw_os_error().unwrap_or(libc::EIO),
    }
}

impl PartStore for FileStore {
    fn read(&self, dataset: DatasetId, extent: Extent) -> Result<Bytes, TransferError> {
        if extent.slot != self.slot {
            return Err(TransferError::Missing { dataset, extent });
        }
        let file = match extent.stream {
            Stream::Data => &self.data,
            Stream::Parity => &self.parity,
        };
        let mut buffer = buffers::take(extent.len as usize);
        file.read_exact_at(&mut buffer, extent.offset)
            .map_err(failed(dataset, extent))?;
        Ok(buffer.freeze())
    }

    fn write(
        &mut self,
        dataset: DatasetId,
        extent: Extent,
        bytes: &[u8],
        _crc: u32,
    ) -> Result<(), TransferError> {
        let file = match extent.stream {
            Stream::Data => &self.rebuilt,
            Stream::Parity => &self.parity,
        };
        file.write_all_at(bytes, extent.offset)
            .map_err(failed(dataset, extent))
    }

    fn expected_crc(&self, _: DatasetId, _: Extent) -> Option<u32> {
        None
    }

    fn served(&mut self, _: DatasetId, _: Extent, crc: u32) {
        black_box(crc);
    }

    fn damaged(&mut self, _: DatasetId, _: Extent) {}
}
