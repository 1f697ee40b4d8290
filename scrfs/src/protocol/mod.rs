//! The protocols as state machines: commit, encode, rebuild, flush, and how an epoch begins.
//!
//! [`node::Node`] is one coordinator: it takes inputs (a peer's message, a word of its daemon, the
//! outcome of work, time) and gives back a [`step::Step`]: records to persist, then effects to carry
//! out. It does no I/O, knows no fabric, no store and no clock, and so runs the same in a
//! simulation. Rank 0's node is also the [`leader`].
//!
//! The shape of everything: a member *asks* the leader; the leader gives every member an *order* with a
//! ticket; each answers the ticket when it is done and durable; when all have answered, the leader
//! goes on. Losing a member stops the epoch (see [`crate::fabric`]), so no order is ever repeated
//! within one; the next epoch decides again from what is on disk ([`recover`]).
//!
//! Leader and members speak along a tree of ranks ([`tree`]): what is said to all is handed on, what all
//! say alike is told once a subtree. So nobody has more than a few peers to speak with, and a round takes
//! O(log N) steps. Neither leader nor member knows of it but for who speaks for whom.

pub mod leader;
pub mod member;
pub mod message;
pub mod node;
pub mod recover;
mod relay;
mod runs;
pub mod scavenge;
pub mod step;
pub mod tree;

/// What time it is, given to every input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Milliseconds of a clock that never goes back; deadlines are in it.
    pub tick: u64,
    /// Milliseconds since the Unix epoch, for records that people read.
    pub wall: crate::layout::record::UnixMillis,
}
