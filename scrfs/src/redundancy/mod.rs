//! Redundancy as pure geometry: who keeps which parity of whom, and how lost bytes are made again.
//!
//! [`Scheme`] says what is survived and what it costs; [`SetGeometry`] places data and parity
//! chunks of one redundancy set; its jobs (encode, rebuild, read) are lazy lists of
//! [`Combination`]s, which the transfer engine carries out with [`crate::codec`].
//!
//! Invariants: the same values give the same plan on every node; a plan never reads what is
//! lost; the place of a chunk depends on the scheme, the members and the chunk size alone, never on
//! lengths, so that a part can be encoded while it is still growing. Lengths may come from a
//! damaged disk: they are refused, never trusted. No I/O, no checksums, no node names here.

mod geometry;
mod plan;
mod scheme;

pub use geometry::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, GeometryError, PART_BYTES_MAX, SetGeometry};
pub use plan::{BeyondTolerance, Combination, Extent, Plan, ReadError, Stream, Term};
pub use scheme::Scheme;

#[cfg(test)]
mod tests;
