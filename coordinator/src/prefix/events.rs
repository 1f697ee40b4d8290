//! Events of a prefix in a directory, as they are read. Who writes them is elsewhere.

use super::{Prefix, PrefixError};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};

/// Bytes of one file that are read.
const FILE_BYTES_MAX: u64 = 256 << 20;

impl Prefix {
    /// All lines, without their ends, oldest first.
    pub(crate) fn events(&self, each: &mut dyn FnMut(&[u8])) -> Result<(), PrefixError> {
        for path in [self.paths.events_before(), self.paths.events()] {
            let failed = |source| PrefixError::Io {
                verb: "read",
                path: path.clone(),
                source,
            };
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for line in BufReader::new(file.take(FILE_BYTES_MAX)).split(b'\n') {
                each(&line.map_err(failed)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_older_file_comes_first_and_none_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let prefix = Prefix::at(root.path());
        let events = || {
            let mut lines = Vec::new();
            let read = prefix.events(&mut |line| lines.push(line.to_vec()));
            read.map(|()| lines)
        };
        assert!(events().unwrap().is_empty());
        fs::create_dir(prefix.paths.control()).unwrap();
        fs::write(prefix.paths.events(), "three\ncut of").unwrap();
        fs::write(prefix.paths.events_before(), b"one\n\xff two\n").unwrap();
        let wanted = [&b"one"[..], b"\xff two", b"three", b"cut of"];
        assert_eq!(events().unwrap(), wanted);
        fs::remove_file(prefix.paths.events()).unwrap();
        fs::create_dir(prefix.paths.events()).unwrap();
        let error = events().unwrap_err().to_string();
        assert!(error.contains("events.jsonl\""), "{error}");
    }
}
