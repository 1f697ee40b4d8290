//! Shell-like patterns of dataset names: `*`, `?`, `[...]`, `{a,b}`.
//!
//! Names are single path components and need not be text. A pattern is kept with its text, which
//! is also its serialised form. Invariant: whatever the text, making and matching one does not
//! panic; patterns are therefore at most [`PATTERN_BYTES_MAX`] long.

use globset::{Candidate, Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a pattern's text at most.
const PATTERN_BYTES_MAX: usize = 255;

/// A pattern that does not make sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a pattern: {reason}")]
pub struct PatternError {
    /// The text.
    pub text: String,
    /// Why not.
    pub reason: String,
}

/// A compiled pattern.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    set: GlobSet,
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// [`PatternError`] when it is empty, too long, or unbalanced.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let error = |reason: String| PatternError {
            text: text.to_owned(),
            reason,
        };
        if text.is_empty() {
            return Err(error("it is empty".into()));
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err(error(format!(
                "it is longer than {PATTERN_BYTES_MAX} bytes"
            )));
        }
        let glob = Glob::new(text).map_err(|e| error(e.kind().to_string()))?;
        let set = GlobSetBuilder::new().add(glob).build();
        let set = set.map_err(|e| error(e.kind().to_string()))?;
        Ok(Self {
            text: text.to_owned(),
            set,
        })
    }

    /// Whether `name` as a whole is like this.
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        self.set.is_match_candidate(&Candidate::from_bytes(name))
    }

    /// The text it was made from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        Self::new(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}
