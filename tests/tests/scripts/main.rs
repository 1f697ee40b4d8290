//! What programs do with datasets on several nodes, as shell scripts.

#![allow(clippy::unwrap_used)]

mod byneed;
mod reads;
mod removal;
mod site;
