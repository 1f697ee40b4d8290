//! Names as the kernel gives them: bytes, checked once at the edge and trusted afterwards.
//!
//! A [`Name`] is one path component, a [`RelPath`] a path below a dataset's root. Neither can name
//! anything outside: no `/` in a name, no `..`, no empty component, no NUL. Decoding checks it again,
//! so that a record or message from elsewhere cannot smuggle one in.

use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest component the kernel accepts, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path below a dataset that scrfs accepts, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// The virtual directory at the top of every mount; no dataset may have this name.
pub const CONTROL_DIRECTORY: &[u8] = b".scr";

/// Why bytes are not a name or path.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Longer than the kernel or scrfs allows.
    #[error("a name of {bytes} bytes is longer than {max}")]
    TooLong {
        /// Length given.
        bytes: usize,
        /// Length allowed.
        max: usize,
    },
    /// Empty, `.`, `..`, or with a NUL or slash inside a component.
    #[error("`{0}` is not a name inside a dataset")]
    Malformed(String),
    /// `.scr` at the top belongs to scrfs.
    #[error("`.scr` is reserved")]
    Reserved,
}

fn check_component(bytes: &[u8]) -> Result<(), NameError> {
    if bytes.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong {
            bytes: bytes.len(),
            max: NAME_BYTES_MAX,
        });
    }
    let odd = bytes.is_empty()
        || bytes == b"."
        || bytes == b".."
        || bytes.iter().any(|&byte| byte == b'/' || byte == 0);
    if odd {
        return Err(NameError::Malformed(
            String::from_utf8_lossy(bytes).into_owned(),
        ));
    }
    Ok(())
}

/// The name of a dataset: one component, not `.scr`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

impl Name {
    /// Checks `bytes` and takes them as a dataset's name.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        check_component(bytes)?;
        if bytes == CONTROL_DIRECTORY {
            return Err(NameError::Reserved);
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The bytes, as the kernel gave them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As the standard library wants it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = NameError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, NameError> {
        Self::new(&bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A path below a dataset's root, of at least one component.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// Checks `bytes` and takes them as a path below a dataset.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > PATH_BYTES_MAX {
            return Err(NameError::TooLong {
                bytes: bytes.len(),
                max: PATH_BYTES_MAX,
            });
        }
        bytes
            .split(|&byte| byte == b'/')
            .try_for_each(check_component)?;
        Ok(Self(bytes.to_vec()))
    }

    /// This path with one more component.
    pub fn join(&self, component: &[u8]) -> Result<Self, NameError> {
        check_component(component)?;
        let mut bytes = self.0.clone();
        bytes.push(b'/');
        bytes.extend_from_slice(component);
        Self::new(&bytes)
    }

    /// The directory it lies in; `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        let end = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(Self(self.0[..end].to_vec()))
    }

    /// This path as seen from a directory that it lies in; `None` when it does not.
    pub fn below(&self, directory: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(directory.as_bytes())?;
        Some(Self(rest.strip_prefix(b"/")?.to_vec()))
    }

    /// The bytes, components separated by single slashes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As the standard library wants it: relative, without `..`.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = NameError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, NameError> {
        Self::new(&bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_escape_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"/"] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for bad in [
            &b""[..],
            b"/a",
            b"a/",
            b"a//b",
            b"../a",
            b"a/../b",
            b"./a",
            b"a/\0",
        ] {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Name::new(b".scr"), Err(NameError::Reserved));
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert!(Name::new(&[b'x'; 256]).is_err());
        assert!(Name::new(b"a\nb \xff").is_ok());
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_root(bytes: Vec<u8>) {
            if let Ok(path) = RelPath::new(&bytes) {
                prop_assert!(path.as_path().components()
                    .all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }

        #[test]
        fn a_path_is_its_directory_and_what_is_below(text in "[ab]{1,2}(/[ab]{1,2}){0,3}") {
            let path = RelPath::new(text.as_bytes()).unwrap();
            let mut above = path.parent();
            prop_assert_eq!(above.is_some(), text.contains('/'));
            while let Some(directory) = above {
                let below = path.below(&directory).unwrap();
                prop_assert_eq!(format!("{directory}/{below}"), path.to_string());
                prop_assert!(RelPath::new(below.as_bytes()).is_ok());
                prop_assert_eq!(directory.below(&path), None);
                above = directory.parent();
            }
            prop_assert_eq!(path.below(&path), None);
        }
    }
}
