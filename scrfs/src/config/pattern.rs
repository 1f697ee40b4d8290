//! Shell-like patterns of dataset names, and of paths in datasets: `*`, `?`, `[...]`, `{a,b}`.
//!
//! Names are single path components and need not be text. A pattern is kept with its text, which
//! is also its serialised form. Invariant: whatever the text, making and matching one does not
//! panic; patterns are therefore at most [`PATTERN_BYTES_MAX`] long.

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
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
        Self::compile(text, false)
    }

    fn compile(text: &str, of_paths: bool) -> Result<Self, PatternError> {
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
        let mut glob = GlobBuilder::new(text);
        let glob = glob
            .literal_separator(of_paths)
            .build()
            .map_err(|e| error(e.kind().to_string()))?;
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

/// A pattern of paths in a dataset: as [`Pattern`], but only `**` reaches over a `/`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern(Pattern);

impl PathPattern {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// As [`Pattern::new`]; also when no path could ever match.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let strange = |part: &str| matches!(part, "" | "." | "..");
        if !text.is_empty() && text.split('/').any(strange) {
            return Err(PatternError {
                text: text.to_owned(),
                reason: "it must be relative, without empty components, \".\" or \"..\"".into(),
            });
        }
        Pattern::compile(text, true).map(Self)
    }

    /// Whether `path` as a whole is like this.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        self.0.matches(path)
    }

    /// The text it was made from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for PathPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        Self::new(&text)
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.0.text
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
