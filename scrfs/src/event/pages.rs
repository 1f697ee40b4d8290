//! Where lines of events lie: each writer has pages of its own, and readers bring the lines of all into order.
//!
//! A page is `<begun>.<writer>.jsonl`: lines of one writer, the first of them of that time. A full page is not
//! changed any more, and who begins one removes the oldest beyond [`PAGES_MAX`]. Writers do not wait for each
//! other, so that pages overlap in time.
//!
//! In a directory every line is appended to `events.jsonl` as well, for people to follow. Several write
//! to that, and over NFS lines that two machines append at once can overwrite each other: so it is a
//! copy, which nothing reads. Lines of a copy end with a space; those that do not are of a scrfs
//! that had no pages, and are told first, with those of `events.jsonl.1` and `events.jsonl.old`.

use crate::layout::path::{PrefixPaths, parse_event_page};
use crate::layout::record::UnixMillis;
use crate::store::posix::PosixStore;
use crate::store::{Store, StoreError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

/// Pages of a prefix.
pub const PAGES_MAX: usize = 1024;
/// Longest page that is read: one line may be longer than a page.
pub const READ_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read of a file that is no page.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What is read of a line, to know its place.
#[derive(Deserialize)]
struct Timed {
    time: Option<jiff::Timestamp>,
}

/// When what a line tells of happened, if it says so.
pub fn time_of(line: &[u8]) -> Option<UnixMillis> {
    let time = serde_json::from_slice::<Timed>(line).ok()?.time?;
    UnixMillis::try_from(time.as_millisecond()).ok()
}

/// A line, with its end, as it is copied to `events.jsonl`.
pub fn copy_of(line: &[u8]) -> Vec<u8> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    [text, b" \n"].concat()
}

/// Whether a line, without its end, is one of a copy.
pub fn is_copy(line: &[u8]) -> bool {
    line.ends_with(b" ")
}

/// Lines of pages on their way to a reader: by time, and those of one page in their own order.
#[derive(Debug, Default)]
pub struct Merge {
    waiting: BTreeMap<(UnixMillis, u64), Vec<u8>>,
    count: u64,
}

impl Merge {
    /// One more page; they come in the order of their beginnings. Tells what nothing that comes can be before.
    pub fn page(&mut self, begun: UnixMillis, text: &[u8], each: &mut dyn FnMut(&[u8])) {
        let later = self.waiting.split_off(&(begun, 0));
        for line in std::mem::replace(&mut self.waiting, later).values() {
            each(line);
        }
        let mut time = begun;
        for line in text.split(|&byte| byte == b'\n') {
            time = time_of(line).map_or(time, |its| its.max(time));
            if !line.is_empty() {
                self.waiting.insert((time, self.count), line.to_vec());
                self.count += 1;
            }
        }
    }

    /// There are no more pages.
    pub fn end(self, each: &mut dyn FnMut(&[u8])) {
        for line in self.waiting.values() {
            each(line);
        }
    }
}

/// All lines of a prefix that is a directory, without their ends, oldest first.
///
/// # Errors
///
/// When something is there and cannot be read.
pub fn read(paths: &PrefixPaths, each: &mut dyn FnMut(&[u8])) -> Result<(), StoreError> {
    for path in [paths.events_before(), paths.events_old(), paths.events()] {
        read_old(&path, each).map_err(StoreError::of("read", &path))?;
    }
    let store = PosixStore::new();
    let names = store.list(&paths.event_pages())?;
    let found = names.iter().filter_map(|name| {
        let begun = parse_event_page(name.to_str()?)?;
        Some((begun, paths.event_pages().join(name)))
    });
    let mut merge = Merge::default();
    for (begun, path) in found {
        // It may have been removed since.
        let text = match File::open(&path) {
            Ok(file) => {
                let mut text = Vec::new();
                let read = file.take(READ_BYTES_MAX).read_to_end(&mut text);
                read.map_err(StoreError::of("read", &path))?;
                text
            }
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::of("read", &path)(error)),
        };
        merge.page(begun, &text, each);
    }
    merge.end(each);
    Ok(())
}

/// The lines of a file that are no copies.
fn read_old(path: &Path, each: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for line in BufReader::new(file.take(FILE_BYTES_MAX)).split(b'\n') {
        let line = line?;
        if !is_copy(&line) {
            each(&line);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn line(second: u64) -> String {
        format!("{{\"time\":\"1970-01-01T00:00:{second:02}Z\"}}")
    }

    fn told(root: &Path) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut lines = Vec::new();
        read(&PrefixPaths::new(root), &mut |line| {
            lines.push(line.to_vec())
        })
        .map(|()| lines)
    }

    #[test]
    fn old_files_come_first_and_copies_and_nothing_are_left_out() {
        let root = tempfile::tempdir().expect("a directory");
        let paths = PrefixPaths::new(root.path());
        assert_eq!(told(root.path()).expect("nothing"), Vec::<Vec<u8>>::new());
        fs::create_dir(paths.control()).expect("a directory");
        let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).expect("written");
        write(&paths.events_before(), b"one\n\xff two\n");
        write(&paths.events_old(), b"three\n");
        let copied = copy_of(b"of a page\n");
        write(&paths.events(), &[&copied[..], b"four\ncut of"].concat());
        let wanted = [&b"one"[..], b"\xff two", b"three", b"four", b"cut of"];
        assert_eq!(told(root.path()).expect("lines"), wanted);
        fs::remove_file(paths.events()).expect("removed");
        fs::create_dir(paths.events()).expect("in its place");
        let error = told(root.path()).expect_err("a directory").to_string();
        assert!(error.ends_with("events.jsonl"), "{error}");
    }

    #[test]
    fn lines_of_writers_come_by_time_and_those_of_one_in_their_order() {
        let root = tempfile::tempdir().expect("a directory");
        let paths = PrefixPaths::new(root.path());
        fs::create_dir_all(paths.event_pages()).expect("a directory");
        let write = |begun: u64, writer: u64, seconds: &[u64]| {
            let lines = seconds.iter().map(|second| line(*second) + "\n");
            let path = paths.event_page(begun * 1000, writer);
            fs::write(path, lines.collect::<String>()).expect("written");
        };
        write(1, 7, &[1, 5, 2, 9]);
        write(3, 8, &[3, 6]);
        write(8, 7, &[8]);
        let path = paths.event_pages();
        fs::write(path.join("notes.jsonl"), "mine\n").expect("written");
        let told = told(root.path()).expect("lines");
        let seconds = [1, 3, 5, 2, 6, 8, 9];
        assert_eq!(told, seconds.map(|second| line(second).into_bytes()));
    }
}
