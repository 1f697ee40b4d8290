//! Events of a prefix in a directory, as they are read. Who writes them is elsewhere.

use super::{Prefix, PrefixError};
use scrfs::event::pages;

impl Prefix {
    /// All lines, without their ends, oldest first.
    pub(crate) fn events(&self, each: &mut dyn FnMut(&[u8])) -> Result<(), PrefixError> {
        Ok(pages::read(&self.paths, each)?)
    }
}
