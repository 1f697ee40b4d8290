//! The fabric: how coordinators of one epoch reach each other.
//!
//! It gives what MPI gives and no more: messages arrive whole, in order for each pair of ranks and
//! lane, in any order across pairs, and **nothing is said about a peer's death**: a message to a
//! dead rank is silently lost, and waiting for one never ends. Deadlines are the caller's.
//!
//! Point-to-point verbs only; agreement is a protocol over them. Implementations:
//! `coordinator/src/mpi.rs`, and [`local`], in-process and seeded.

pub mod local;

use crate::id::Rank;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// What a message is about; each lane is ordered by itself, so bulk data never delays control.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Protocol messages: small, decoded by `protocol`.
    Control,
    /// Units of the transfer engine.
    Data,
}

/// One message as it arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Who sent it; the fabric vouches for this.
    pub from: Rank,
    /// The lane it came on.
    pub lane: Lane,
    /// The message, exactly as sent.
    pub bytes: Bytes,
}

/// Ends a wait in [`Fabric::poll`] from any thread; cheap, and harmless when nobody waits.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Why the fabric can no longer be used. All of them end the epoch for this node.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The message layer returned an error code.
    #[error("{call} failed with code {code}")]
    Call {
        /// The call that failed, as its own library names it.
        call: &'static str,
        /// The code it returned.
        code: i32,
    },
    /// A message was addressed to a rank that does not exist.
    #[error("{rank} is not among the {size} ranks of this epoch")]
    NoSuchRank {
        /// The address asked for.
        rank: Rank,
        /// How many ranks there are.
        size: u32,
    },
    /// The fabric was shut down.
    #[error("the fabric is shut down")]
    Down,
}

/// Reach the other coordinators of this epoch. One thread owns a fabric.
pub trait Fabric {
    /// This coordinator's rank.
    fn me(&self) -> Rank;

    /// How many coordinators there are.
    fn size(&self) -> u32;

    /// Hands a message over; it is on its way when this returns, and the buffer is kept alive as
    /// long as the fabric needs it. Sending to oneself works.
    fn send(&mut self, to: Rank, lane: Lane, bytes: Bytes) -> Result<(), FabricError>;

    /// The next message, waiting until `until` or the waker at most; `None` when it waited in
    /// vain. With `until` in the past it only looks.
    fn poll(&mut self, until: Instant) -> Result<Option<Envelope>, FabricError>;

    /// Ends a wait of `poll` early, from another thread.
    fn waker(&self) -> Waker;
}
