//! What SCR writes into a prefix: enough of it to list its datasets, and to find the files of one.
//!
//! SCR keeps trees of keys in *kvtree* files. All integers are big endian:
//!
//! ```text
//! offset 0   magic   4 bytes  951fc3f5
//!        4   type    2 bytes  1
//!        6   version 2 bytes  1
//!        8   size    8 bytes  of the whole file
//!       16   flags   4 bytes  bit 0: a checksum follows the tree
//!       20   tree    count (4 bytes), then as many times: a key that ends with a NUL, and its tree
//!   size-4   CRC-32  4 bytes  of everything before it
//! ```
//!
//! A value is a key without anything below it. Decoding is bounded by the bytes at hand and never
//! panics. Nothing here is ever written.

use crate::name::{Name, RelPath};
use crc_fast::{CrcAlgorithm, checksum};
use std::collections::BTreeMap;

const MAGIC: u32 = 0x951f_c3f5;
const HEADER_BYTES: usize = 20;
const CHECKSUM_BYTES: usize = 4;
/// Deeper than anything SCR writes.
const DEPTH_MAX: usize = 16;

/// Why bytes are not what SCR writes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScrError {
    /// Something else.
    #[error("not a file of SCR")]
    Foreign,
    /// Shorter or longer than it says.
    #[error("{found} bytes where the file says {said}")]
    Length {
        /// At hand.
        found: u64,
        /// In the header.
        said: u64,
    },
    /// The bytes changed since they were written.
    #[error("checksum {found:08x} does not match its {stored:08x}")]
    Checksum {
        /// Of the bytes at hand.
        found: u32,
        /// Written with them.
        stored: u32,
    },
    /// The tree does not fit its bytes.
    #[error("broken at byte {0}")]
    Broken(usize),
    /// Decodes, and lacks what must be there.
    #[error("it has no {0}")]
    Lacks(&'static str),
    /// A path that leads elsewhere.
    #[error("it names the file {0:?}, which does not lie in the prefix")]
    Outside(String),
    /// A path that leads to where SCR or scrfs keep theirs.
    #[error("it names {0:?}, which is no file of a dataset")]
    Reserved(String),
}

/// A tree of keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree(BTreeMap<Vec<u8>, Tree>);

impl Tree {
    /// From the bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, ScrError> {
        let number = |at: usize, len: usize| {
            let field = bytes.get(at..at + len).ok_or(ScrError::Foreign)?;
            Ok(field
                .iter()
                .fold(0u64, |sum, &byte| sum << 8 | u64::from(byte)))
        };
        if number(0, 4)? != u64::from(MAGIC) || number(4, 2)? != 1 || number(6, 2)? != 1 {
            return Err(ScrError::Foreign);
        }
        let (said, found) = (number(8, 8)?, bytes.len() as u64);
        if said != found {
            return Err(ScrError::Length { found, said });
        }
        let mut end = bytes.len();
        if number(16, 4)? & 1 == 1 {
            end = end
                .checked_sub(CHECKSUM_BYTES)
                .filter(|&end| end >= HEADER_BYTES)
                .ok_or(ScrError::Broken(HEADER_BYTES))?;
            // The algorithm's result is 32 bits wide in a 64-bit integer.
            let found = checksum(CrcAlgorithm::Crc32IsoHdlc, &bytes[..end]) as u32;
            let stored = number(end, CHECKSUM_BYTES)? as u32;
            if found != stored {
                return Err(ScrError::Checksum { found, stored });
            }
        }
        let mut at = HEADER_BYTES;
        let tree = Self::unpack(&bytes[..end], &mut at, DEPTH_MAX)?;
        if at == end {
            Ok(tree)
        } else {
            Err(ScrError::Broken(at))
        }
    }

    fn unpack(bytes: &[u8], at: &mut usize, depth: usize) -> Result<Self, ScrError> {
        let broken = ScrError::Broken(*at);
        let count = bytes.get(*at..).and_then(|rest| rest.first_chunk::<4>());
        let count = u32::from_be_bytes(*count.ok_or(broken.clone())?);
        *at += 4;
        let depth = depth.checked_sub(1).ok_or(broken)?;
        let mut tree = Self::default();
        // Each takes bytes, of which there are not more than were given us.
        for _ in 0..count {
            let rest = &bytes[*at..];
            let len = rest.iter().position(|&byte| byte == 0);
            let len = len.ok_or(ScrError::Broken(*at))?;
            let key = rest[..len].to_vec();
            *at += len + 1;
            let below = Self::unpack(bytes, at, depth)?;
            tree.0.insert(key, below);
        }
        Ok(tree)
    }

    fn get(&self, key: &str) -> Option<&Self> {
        self.0.get(key.as_bytes())
    }

    /// The only value below a key.
    fn value(&self, key: &str) -> Option<&[u8]> {
        Some(self.get(key)?.0.first_key_value()?.0)
    }

    fn text(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.value(key)?).ok()
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }

    fn flag(&self, key: &str) -> bool {
        self.number(key) == Some(1)
    }
}

/// One dataset that SCR wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrDataset {
    /// Its number there.
    pub id: u64,
    /// Its name.
    pub name: Name,
    /// All of it was flushed.
    pub complete: bool,
    /// A restart from it did not work.
    pub failed: bool,
    /// One can restart from it.
    pub checkpoint: bool,
    /// Somebody wants it.
    pub output: bool,
    /// When it was begun, in microseconds since the Unix epoch.
    pub created_us: Option<u64>,
    /// When it was flushed: a date and a time of the machine that wrote it, without a zone.
    pub flushed: Option<String>,
    /// Regular files.
    pub files: Option<u64>,
    /// Bytes of all files.
    pub bytes: Option<u64>,
}

/// `.scr/index.scr`: all datasets of a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrIndex {
    /// By number; those without a name are left out.
    pub datasets: Vec<ScrDataset>,
    /// The one to restart from.
    pub current: Option<Name>,
}

impl ScrIndex {
    /// From the bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, ScrError> {
        let tree = Tree::decode(bytes)?;
        let all = tree.get("DSET").into_iter().flat_map(|all| &all.0);
        let mut datasets: Vec<_> = all
            .filter_map(|(id, found)| dataset(std::str::from_utf8(id).ok()?.parse().ok()?, found))
            .collect();
        datasets.sort_by_key(|dataset| dataset.id);
        let current = tree.value("CURRENT");
        Ok(Self {
            datasets,
            current: current.and_then(|name| Name::new(name).ok()),
        })
    }
}

fn dataset(id: u64, entry: &Tree) -> Option<ScrDataset> {
    let facts = entry.get("DSET")?;
    Some(ScrDataset {
        id,
        name: Name::new(facts.value("NAME")?).ok()?,
        complete: entry.flag("COMPLETE"),
        failed: entry.get("FAILED").is_some(),
        checkpoint: facts.flag("FLAG_CKPT"),
        output: facts.flag("FLAG_OUTPUT"),
        created_us: facts.number("CREATED"),
        flushed: entry.text("FLUSHED").map(str::to_owned),
        files: facts.number("FILES"),
        bytes: facts.number("SIZE"),
    })
}

/// A file of `rank2file`, which says which rank has which files: itself, or in others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rank2File {
    /// What to add to the name of this one, for those that say it.
    Below(Vec<String>),
    /// Files of some ranks, below the prefix.
    Files(Vec<RelPath>),
}

impl Rank2File {
    /// From the bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, ScrError> {
        let tree = Tree::decode(bytes)?;
        let level = tree.number("LEVEL").ok_or(ScrError::Lacks("level"))?;
        let ranks = tree.get("RANK").into_iter().flat_map(|all| all.0.values());
        let named = ranks.flat_map(|rank| rank.get("FILE").into_iter().flat_map(|it| it.0.keys()));
        let lossy = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        if level > 0 {
            // A suffix, so that it stays in the directory of this one.
            let suffix = |name: &Vec<u8>| match name.contains(&b'/') {
                true => Err(ScrError::Outside(lossy(name))),
                false => Ok(lossy(name)),
            };
            let mut below = named.map(suffix).collect::<Result<Vec<_>, _>>()?;
            below.sort();
            below.dedup();
            return Ok(Self::Below(below));
        }
        let path = |name: &Vec<u8>| RelPath::new(name).map_err(|_| ScrError::Outside(lossy(name)));
        Ok(Self::Files(named.map(path).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests;
