//! Every byte and every file name that scrfs puts on disk, and nothing else.
//!
//! Encoding and decoding only: reading and writing are [`crate::store`]'s. Every record is in an
//! [`envelope`] with a checksum over all of it; decoding checks lengths, versions and names, and
//! never panics.

pub mod envelope;
pub mod index;
pub mod manifest;
pub mod merge;
#[cfg(test)]
mod page;
pub mod path;
pub mod pointer;
pub mod record;
pub mod run;
pub mod scr;
pub mod turn;
