//! The envelope around every record scrfs writes, and around every message it sends.
//!
//! ```text
//! offset 0   magic     6 bytes  "SCRFS\n"
//!        6   kind      1 byte   what the payload is
//!        7   version   1 byte   of the payload's encoding
//!        8   length    8 bytes  of the payload, little endian
//!       16   payload   length bytes, postcard
//!   16+len   checksum  4 bytes  CRC-32C of everything before it, little endian
//! ```
//!
//! Invariant: what [`open`] returns is what [`seal`] was given, or an error that says why not. It
//! never panics and never allocates more than the bytes it was handed.

use crc_fast::{CrcAlgorithm, checksum};
use serde::{Serialize, de::DeserializeOwned};

const MAGIC: &[u8; 6] = b"SCRFS\n";
const HEADER_BYTES: usize = 16;
/// Length of the checksum that an envelope ends with.
pub const CHECKSUM_BYTES: usize = 4;
/// The encoding this build writes and the newest it reads. What version 1 wrote is read as it is;
/// in version 2 a dataset may be removed.
pub const VERSION: u8 = 2;

/// What a payload is; a record read back as another kind is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A [`super::record::DatasetRecord`].
    Dataset = 1,
    /// A [`super::manifest::Manifest`].
    Manifest = 2,
    /// A [`super::manifest::Sums`].
    Sums = 3,
    /// A [`super::record::EpochRecord`].
    Epoch = 4,
    /// A protocol message between coordinators.
    Message = 5,
    /// A heartbeat or its answer.
    Heartbeat = 6,
    /// An [`super::index::IndexEntry`].
    IndexEntry = 7,
    /// All [`super::pointer::Pointers`].
    Pointers = 8,
    /// A [`super::index::Choice`].
    Choice = 9,
    /// The [`crate::protocol::message::Inventory`] of a node that is scavenged.
    Catalog = 10,
    /// A [`crate::protocol::scavenge::Plan`].
    ScavengePlan = 11,
    /// A [`crate::protocol::scavenge::Report`].
    ScavengeReport = 12,
    /// A [`super::run::RunRecord`].
    Run = 13,
}

/// Why bytes are not the record that was asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Shorter than its own header says, or longer.
    #[error("{found} bytes where the record needs {needed}")]
    Length {
        /// Bytes at hand.
        found: u64,
        /// Bytes the header asks for.
        needed: u64,
    },
    /// Does not begin with the magic.
    #[error("not a scrfs record")]
    Magic,
    /// Another kind of record.
    #[error("record of kind {found} where {wanted:?} was expected")]
    Kind {
        /// Kind in the header.
        found: u8,
        /// Kind asked for.
        wanted: Kind,
    },
    /// Written by a newer scrfs.
    #[error("record version {found}, this scrfs reads up to {VERSION}")]
    Version {
        /// Version in the header.
        found: u8,
    },
    /// The bytes changed since they were written.
    #[error("checksum {found:08x} of the record does not match its {stored:08x}")]
    Checksum {
        /// Checksum of the bytes at hand.
        found: u32,
        /// Checksum written with them.
        stored: u32,
    },
    /// Checksummed, and yet not decodable.
    #[error("record does not decode: {0}")]
    Decode(String),
}

/// CRC-32C, the one checksum scrfs uses.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm's result is 32 bits wide in a 64-bit integer.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Encodes `value` into an envelope.
pub fn seal<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(MAGIC);
    bytes.push(kind as u8);
    bytes.push(VERSION);
    bytes.extend_from_slice(&[0; 8]);
    let mut bytes = postcard::to_extend(value, bytes)
        .expect("our records have known lengths, the only thing postcard can refuse in a Vec");
    let length = (bytes.len() - HEADER_BYTES) as u64;
    bytes[8..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Checks an envelope and decodes what is in it.
pub fn open<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, EnvelopeError> {
    let found = bytes.len() as u64;
    let overhead = (HEADER_BYTES + CHECKSUM_BYTES) as u64;
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return Err(EnvelopeError::Length {
            found,
            needed: overhead,
        });
    };
    if &header[..6] != MAGIC {
        return Err(EnvelopeError::Magic);
    }
    if header[6] != kind as u8 {
        return Err(EnvelopeError::Kind {
            found: header[6],
            wanted: kind,
        });
    }
    if header[7] == 0 || header[7] > VERSION {
        return Err(EnvelopeError::Version { found: header[7] });
    }
    let mut length = [0; 8];
    length.copy_from_slice(&header[8..]);
    let needed = u64::from_le_bytes(length).saturating_add(overhead);
    if needed != found {
        return Err(EnvelopeError::Length { found, needed });
    }
    let (body, tail) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    let stored = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let computed = crc32c(body);
    if computed != stored {
        return Err(EnvelopeError::Checksum {
            found: computed,
            stored,
        });
    }
    match postcard::take_from_bytes(&body[HEADER_BYTES..]) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(EnvelopeError::Decode(format!(
            "{} bytes left over",
            rest.len()
        ))),
        Err(error) => Err(EnvelopeError::Decode(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_sealed_comes_back(value: (u64, Vec<u8>, Option<String>)) {
            let bytes = seal(Kind::Sums, &value);
            prop_assert_eq!(open::<(u64, Vec<u8>, Option<String>)>(Kind::Sums, &bytes), Ok(value));
        }

        #[test]
        fn any_flipped_bit_is_found(value: Vec<u8>, at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = seal(Kind::Dataset, &value);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(open::<Vec<u8>>(Kind::Dataset, &bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(open::<Vec<u8>>(Kind::Dataset, &bytes).is_err());
        }

        #[test]
        fn a_cut_record_is_refused(value: Vec<u8>, at: prop::sample::Index) {
            let bytes = seal(Kind::Dataset, &value);
            prop_assert!(open::<Vec<u8>>(Kind::Dataset, &bytes[..at.index(bytes.len())]).is_err());
        }
    }
}
