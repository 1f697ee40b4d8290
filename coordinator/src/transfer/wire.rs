//! The transfer engine's messages as bytes. All numbers little-endian, nothing aligned:
//!
//! ```text
//! every message   magic "scT" (3)  version (1)  kind (1)  job (8)  body  crc32c of all before (4)
//! request  1      dataset (8)  count (2)  count x { unit (8)  extent (17) }
//! unit     2      unit (8)  extent (17)  crc32c of the payload (4)
//! refused  3      unit (8)  extent (17)  reason (1)  expected (4)  found (4)
//! extent          slot (4)  stream (1)  offset (8)  len (4)
//! ```
//!
//! A `unit` message announces that the **next** message from the same rank on the same lane is the
//! payload: `len` raw bytes. So a payload goes out and comes in without being copied. The check at
//! the end keeps a payload from ever passing for a message, should the two get out of step.
//!
//! Decoding takes any bytes and never panics; what it returns is well formed but not yet believed:
//! whether a unit was asked for is the engine's question.

use super::JobId;
use scrfs::id::{DatasetId, Slot};
use scrfs::layout::envelope::crc32c;
use scrfs::redundancy::{Extent, Stream};

const MAGIC: &[u8; 3] = b"scT";
/// Raised when the meaning of any byte changes; coordinators of one epoch are of one version.
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;

/// Units one request can ask for.
pub(super) const REQUEST_UNITS_MAX: usize = 256;

/// A message of the transfer engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Message {
    Request {
        job: JobId,
        dataset: DatasetId,
        units: Vec<(u64, Extent)>,
    },
    Unit {
        job: JobId,
        unit: u64,
        extent: Extent,
        crc: u32,
    },
    Refused {
        job: JobId,
        unit: u64,
        extent: Extent,
        reason: Reason,
    },
}

/// Why a source does not send a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason {
    /// It has no such bytes.
    #[error("it does not have them")]
    Missing,
    /// It has them and could not read them.
    #[error("it could not read them")]
    Unreadable,
    /// They are not the bytes that were stored.
    #[error("they are damaged: crc32c {found:08x} instead of {expected:08x}")]
    Damaged {
        /// The checksum on record.
        expected: u32,
        /// The checksum of what was read.
        found: u32,
    },
    /// Too many requests wait there, or one is too large.
    #[error("too much was asked of it at once")]
    Busy,
}

/// Bytes that are not a message, or not one to be believed. Each is dropped; none ends a job.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Wrong magic, check, kind or length.
    #[error("{len} bytes are no transfer message: {problem}")]
    Malformed {
        /// Bytes received.
        len: usize,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// A sound message of another version.
    #[error("a transfer message of version {found}, this is version {expected}")]
    Version {
        /// The version understood here.
        expected: u8,
        /// The version received.
        found: u8,
    },
    /// A unit that is not awaited from this rank; harmless after a job was cancelled or failed.
    #[error("unit {unit} of {job} is not awaited from its sender")]
    NotAwaited {
        /// The job it names.
        job: JobId,
        /// The unit it names.
        unit: u64,
    },
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        match self {
            Self::Request {
                job,
                dataset,
                units,
            } => {
                out.push(1);
                out.extend_from_slice(&job.0.to_le_bytes());
                out.extend_from_slice(&dataset.0.to_le_bytes());
                let count = u16::try_from(units.len()).expect("no more than REQUEST_UNITS_MAX");
                out.extend_from_slice(&count.to_le_bytes());
                for (unit, extent) in units {
                    put_unit(&mut out, *unit, extent);
                }
            }
            Self::Unit {
                job,
                unit,
                extent,
                crc,
            } => {
                out.push(2);
                out.extend_from_slice(&job.0.to_le_bytes());
                put_unit(&mut out, *unit, extent);
                out.extend_from_slice(&crc.to_le_bytes());
            }
            Self::Refused {
                job,
                unit,
                extent,
                reason,
            } => {
                out.push(3);
                out.extend_from_slice(&job.0.to_le_bytes());
                put_unit(&mut out, *unit, extent);
                let (code, expected, found) = match *reason {
                    Reason::Missing => (1, 0, 0),
                    Reason::Unreadable => (2, 0, 0),
                    Reason::Damaged { expected, found } => (3, expected, found),
                    Reason::Busy => (4, 0, 0),
                };
                out.push(code);
                out.extend_from_slice(&u32::to_le_bytes(expected));
                out.extend_from_slice(&u32::to_le_bytes(found));
            }
        }
        let check = crc32c(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let malformed = |problem| WireError::Malformed {
            len: bytes.len(),
            problem,
        };
        let (body, check) = bytes
            .len()
            .checked_sub(CHECK_BYTES)
            .and_then(|split| bytes.split_at_checked(split))
            .ok_or(malformed("too short"))?;
        let mut body = body.strip_prefix(MAGIC).ok_or(malformed("wrong magic"))?;
        if crc32c(&bytes[..bytes.len() - CHECK_BYTES]).to_le_bytes() != check {
            return Err(malformed("wrong checksum"));
        }
        let [found] = take(&mut body).ok_or(malformed("cut off"))?;
        if found != VERSION {
            return Err(WireError::Version {
                expected: VERSION,
                found,
            });
        }
        let message = Self::decode_body(&mut body).ok_or(malformed("a value out of range"))?;
        if body.is_empty() {
            Ok(message)
        } else {
            Err(malformed("bytes left over"))
        }
    }

    fn decode_body(body: &mut &[u8]) -> Option<Self> {
        let [kind] = take(body)?;
        let job = JobId(u64::from_le_bytes(take(body)?));
        Some(match kind {
            1 => {
                let dataset = DatasetId(u64::from_le_bytes(take(body)?));
                let count = usize::from(u16::from_le_bytes(take(body)?));
                if count > REQUEST_UNITS_MAX {
                    return None;
                }
                let units = (0..count).map(|_| take_unit(body)).collect::<Option<_>>()?;
                Self::Request {
                    job,
                    dataset,
                    units,
                }
            }
            2 => {
                let (unit, extent) = take_unit(body)?;
                Self::Unit {
                    job,
                    unit,
                    extent,
                    crc: u32::from_le_bytes(take(body)?),
                }
            }
            3 => {
                let (unit, extent) = take_unit(body)?;
                let [code] = take(body)?;
                let expected = u32::from_le_bytes(take(body)?);
                let found = u32::from_le_bytes(take(body)?);
                let reason = match code {
                    1 => Reason::Missing,
                    2 => Reason::Unreadable,
                    3 => Reason::Damaged { expected, found },
                    4 => Reason::Busy,
                    _ => return None,
                };
                Self::Refused {
                    job,
                    unit,
                    extent,
                    reason,
                }
            }
            _ => return None,
        })
    }
}

fn put_unit(out: &mut Vec<u8>, unit: u64, extent: &Extent) {
    out.extend_from_slice(&unit.to_le_bytes());
    out.extend_from_slice(&extent.slot.0.to_le_bytes());
    out.push(match extent.stream {
        Stream::Data => 0,
        Stream::Parity => 1,
    });
    out.extend_from_slice(&extent.offset.to_le_bytes());
    out.extend_from_slice(&extent.len.to_le_bytes());
}

/// A unit's number and extent; the extent is not empty and its end does not overflow.
fn take_unit(body: &mut &[u8]) -> Option<(u64, Extent)> {
    let unit = u64::from_le_bytes(take(body)?);
    let slot = Slot(u32::from_le_bytes(take(body)?));
    let stream = match take(body)? {
        [0] => Stream::Data,
        [1] => Stream::Parity,
        _ => return None,
    };
    let offset = u64::from_le_bytes(take(body)?);
    let len = u32::from_le_bytes(take(body)?);
    let end = offset.checked_add(len.into())?;
    (len > 0 && i64::try_from(end).is_ok()).then_some((
        unit,
        Extent {
            slot,
            stream,
            offset,
            len,
        },
    ))
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = body.split_first_chunk::<N>()?;
    *body = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unit() -> impl Strategy<Value = (u64, Extent)> {
        let offset = 0..1_u64 << 60;
        (
            any::<u64>(),
            any::<u32>(),
            any::<bool>(),
            offset,
            1..u32::MAX,
        )
            .prop_map(|(unit, slot, parity, offset, len)| {
                let stream = if parity { Stream::Parity } else { Stream::Data };
                (
                    unit,
                    Extent {
                        slot: Slot(slot),
                        stream,
                        offset,
                        len,
                    },
                )
            })
    }

    fn message() -> impl Strategy<Value = Message> {
        let reason = prop_oneof![
            Just(Reason::Missing),
            Just(Reason::Unreadable),
            Just(Reason::Busy),
            any::<(u32, u32)>().prop_map(|(expected, found)| Reason::Damaged { expected, found }),
        ];
        let units = proptest::collection::vec(unit(), 0..8);
        prop_oneof![
            (any::<(u64, u64)>(), units).prop_map(|((job, dataset), units)| Message::Request {
                job: JobId(job),
                dataset: DatasetId(dataset),
                units
            }),
            (any::<u64>(), unit(), any::<u32>()).prop_map(|(job, (unit, extent), crc)| {
                Message::Unit {
                    job: JobId(job),
                    unit,
                    extent,
                    crc,
                }
            }),
            (any::<u64>(), unit(), reason).prop_map(|(job, (unit, extent), reason)| {
                Message::Refused {
                    job: JobId(job),
                    unit,
                    extent,
                    reason,
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            prop_assert!(Message::decode(&bytes).is_err());
        }

        /// As before, behind a sound head and check, where the values themselves are tried.
        #[test]
        fn any_body_decodes_or_is_refused(
            kind in 0_u8..5,
            body in proptest::collection::vec(any::<u8>(), 0..99),
        ) {
            let mut bytes = [&b"scT\x01"[..], &[kind], &body[..]].concat();
            let check = crc32c(&bytes);
            bytes.extend_from_slice(&check.to_le_bytes());
            if let Ok(message) = Message::decode(&bytes) {
                let ours = message.encode();
                prop_assert_eq!(Message::decode(&ours), Ok(message));
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(message in message(), bit in any::<prop::sample::Index>()) {
            let mut bytes = message.encode();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Message::decode(&bytes).is_err());
        }
    }

    #[test]
    fn extents_that_cannot_be_are_refused() {
        let job = JobId(1);
        let decoded = |offset, len, count| {
            let extent = Extent {
                slot: Slot(0),
                stream: Stream::Data,
                offset,
                len,
            };
            let units = vec![(1, extent); count];
            let bytes = Message::Request {
                job,
                dataset: DatasetId(1),
                units,
            }
            .encode();
            Message::decode(&bytes).is_ok()
        };
        assert!(decoded(0, 1, REQUEST_UNITS_MAX));
        assert!(!decoded(0, 1, REQUEST_UNITS_MAX + 1));
        assert!(!decoded(0, 0, 1));
        assert!(decoded(i64::MAX as u64 - 1, 1, 1));
        assert!(!decoded(i64::MAX as u64, 1, 1));
        assert!(!decoded(u64::MAX, 1, 1));
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let extent = Extent {
            slot: Slot(3),
            stream: Stream::Parity,
            offset: 4096,
            len: 512,
        };
        let message = Message::Unit {
            job: JobId(7),
            unit: 9,
            extent,
            crc: 0x1234_5678,
        };
        let bytes = message.encode();
        let head = [
            &b"scT\x01\x02"[..],
            &7_u64.to_le_bytes(),
            &9_u64.to_le_bytes(),
        ]
        .concat();
        let body = [
            3, 0, 0, 0, 1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0x78, 0x56, 0x34, 0x12,
        ];
        let bare = [&head[..], &body[..]].concat();
        assert_eq!(bytes, [&bare[..], &crc32c(&bare).to_le_bytes()].concat());
    }
}
