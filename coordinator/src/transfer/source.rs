//! The answering side of the transfer engine: units read, checked and lent to the fabric.
//!
//! Stateless but for a queue: the same request gets the same answer, whatever became of the last
//! one. Nothing is read before the fabric has let go of enough of what was lent to it, so a
//! request costs a queue entry, not memory for its bytes. A peer that never takes what it asked for
//! keeps its share of that memory until the epoch ends.

use super::wire::Message;
use super::{JobId, PartStore, Reason, TransferError, UNIT_BYTES_MAX};
use bytes::Bytes;
use scrfs::id::{DatasetId, Rank};
use scrfs::layout::envelope::crc32c;
use scrfs::redundancy::Extent;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Units of one peer that may wait to be answered; more are refused.
const QUEUE_MAX: usize = 1 << 16;

/// What this node owes to others.
pub(super) struct Source {
    me: Rank,
    limit_bytes: u64,
    /// Oldest first.
    queue: VecDeque<Owed>,
    /// How many of them are each peer's.
    counts: HashMap<Rank, usize>,
    /// Bytes of payloads that the fabric has not let go of.
    lent: Arc<AtomicU64>,
}

/// A unit somebody asked for.
pub(super) struct Owed {
    pub(super) to: Rank,
    pub(super) job: JobId,
    pub(super) dataset: DatasetId,
    pub(super) unit: u64,
    pub(super) extent: Extent,
}

impl Source {
    pub(super) fn new(me: Rank, limit_bytes: u64) -> Self {
        let (queue, counts, lent) = (VecDeque::new(), HashMap::new(), Arc::default());
        Self {
            me,
            limit_bytes,
            queue,
            counts,
            lent,
        }
    }

    pub(super) fn owes(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn lent_bytes(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// Queues a request, or gives the refusal to send.
    pub(super) fn ask(&mut self, owed: Owed) -> Option<(Rank, Bytes)> {
        let count = self.counts.entry(owed.to).or_default();
        if *count >= QUEUE_MAX || owed.extent.len > UNIT_BYTES_MAX {
            return Some(refusal(&owed, Reason::Busy));
        }
        *count += 1;
        self.queue.push_back(owed);
        None
    }

    /// Puts one answer into `outbox`; false when none is owed or too much is lent already.
    pub(super) fn answer(
        &mut self,
        store: &mut dyn PartStore,
        outbox: &mut VecDeque<(Rank, Bytes)>,
    ) -> bool {
        if self.lent_bytes() >= self.limit_bytes {
            return false;
        }
        let Some(owed) = self.queue.pop_front() else {
            return false;
        };
        if let Some(count) = self.counts.get_mut(&owed.to) {
            *count -= 1;
        }
        let Owed {
            to,
            job,
            dataset,
            unit,
            extent,
        } = owed;
        match read_verified(self.me, dataset, extent, store) {
            Ok((payload, crc)) => {
                let head = Message::Unit {
                    job,
                    unit,
                    extent,
                    crc,
                }
                .encode();
                outbox.push_back((to, head.into()));
                let loan = Loan::new(payload, &self.lent);
                outbox.push_back((to, Bytes::from_owner(loan)));
            }
            Err(error) => {
                tracing::warn!(%error, %to, "cannot answer");
                let reason = match error {
                    TransferError::Missing { .. } => Reason::Missing,
                    TransferError::Checksum {
                        expected, found, ..
                    } => Reason::Damaged { expected, found },
                    _ => Reason::Unreadable,
                };
                outbox.push_back(refusal(&owed, reason));
            }
        }
        true
    }
}

fn refusal(owed: &Owed, reason: Reason) -> (Rank, Bytes) {
    let &Owed {
        to,
        job,
        unit,
        extent,
        ..
    } = owed;
    (
        to,
        Message::Refused {
            job,
            unit,
            extent,
            reason,
        }
        .encode()
        .into(),
    )
}

/// The bytes of an extent of this node and their crc32c, verified if there is one on record.
pub(super) fn read_verified(
    me: Rank,
    dataset: DatasetId,
    extent: Extent,
    store: &mut dyn PartStore,
) -> Result<(Bytes, u32), TransferError> {
    let bytes = store.read(dataset, extent)?;
    if bytes.len() != extent.len as usize {
        return Err(TransferError::Length {
            dataset,
            extent,
            from: me,
            found: bytes.len(),
        });
    }
    let found = crc32c(&bytes);
    match store.expected_crc(dataset, extent) {
        Some(expected) if expected != found => {
            store.damaged(dataset, extent);
            return Err(TransferError::Checksum {
                dataset,
                extent,
                from: me,
                expected,
                found,
            });
        }
        Some(_) => {}
        None => store.served(dataset, extent, found),
    }
    Ok((bytes, found))
}

/// A payload that counts as lent until the fabric drops it.
pub(crate) struct Loan {
    bytes: Bytes,
    lent: Arc<AtomicU64>,
}

impl Loan {
    pub(crate) fn new(bytes: Bytes, lent: &Arc<AtomicU64>) -> Self {
        lent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Self {
            bytes,
            lent: lent.clone(),
        }
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.lent
            .fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}
