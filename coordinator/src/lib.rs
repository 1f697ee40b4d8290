//! Placeholder while the seams are laid.
