//! Events in a directory: each writer appends to pages of its own (`scrfs::event::pages`).
//!
//! Nothing is kept open: the prefix can be unmounted whenever nothing is written. A line is one `write()`, so that
//! half of one is not read as one; after one that fails another page is begun. Every line goes to `events.jsonl` as
//! well, as a copy for people; when that is full it begins anew. What it was when all wrote to it is kept as
//! `events.jsonl.old`.

use scrfs::event::pages::{PAGES_MAX, copy_of, is_copy, time_of};
use scrfs::layout::path::{PrefixPaths, parse_event_page};
use scrfs::layout::record::UnixMillis;
use scrfs::store::posix::PosixStore;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Length of a page that is full.
const PAGE_BYTES_MAX: u64 = 128 << 10;
/// Length of a copy that is full.
const COPY_BYTES_MAX: u64 = 64 << 20;
/// Longest line that is looked at to know whose a file is.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// What one writer writes.
#[derive(Debug)]
pub(crate) struct Files {
    paths: PrefixPaths,
    /// Which directory of the prefix it is.
    store: PosixStore,
    writer: u64,
    page: Option<Page>,
    /// Time of the newest line, or above that of the last page.
    newest: UnixMillis,
    /// Whether `events.jsonl` is known to be a copy.
    is_copy: bool,
}

#[derive(Debug)]
struct Page {
    path: PathBuf,
    len: u64,
}

impl Files {
    /// A writer of a prefix.
    pub(crate) fn new(paths: PrefixPaths) -> Self {
        Self {
            store: PosixStore::at_home(paths.control()),
            paths,
            writer: RandomState::new().build_hasher().finish(),
            page: None,
            newest: 0,
            is_copy: false,
        }
    }

    /// Where they are, for people.
    pub(crate) fn place(&self) -> PathBuf {
        self.paths.event_pages()
    }

    /// One more line.
    pub(crate) fn add(&mut self, line: &[u8]) -> io::Result<()> {
        let added = self.add_to_page(line);
        added.and(self.copy(line))
    }

    fn add_to_page(&mut self, line: &[u8]) -> io::Result<()> {
        let (len, begun) = (line.len() as u64, time_of(line));
        let has_room = |page: &Page| page.len + len <= PAGE_BYTES_MAX;
        let (page, is_new) = match self.page.take().filter(has_room) {
            Some(page) => (page, false),
            None => {
                // No two have one name.
                self.newest = begun.unwrap_or(0).max(self.newest.saturating_add(1));
                let path = self.paths.event_page(self.newest, self.writer);
                let made = self.store.make_directories(&self.paths.event_pages());
                made.map_err(|error| error.source)?;
                (Page { path, len: 0 }, true)
            }
        };
        append(&page.path, line)?;
        let len = page.len + len;
        self.page = Some(Page { len, ..page });
        match is_new {
            true => self.remove_oldest(),
            false => Ok(()),
        }
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let directory = self.paths.event_pages();
        let mut pages = Vec::new();
        for found in fs::read_dir(&directory)? {
            let name = found?.file_name();
            pages.extend(name.to_str().and_then(parse_event_page).map(|_| name));
        }
        pages.sort_unstable();
        for name in &pages[..pages.len().saturating_sub(PAGES_MAX)] {
            match fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// For people. Two that do this at once take nothing from each other but lines of the copy.
    fn copy(&mut self, line: &[u8]) -> io::Result<()> {
        let path = self.paths.events();
        if !self.is_copy {
            keep_old(&path, &self.paths.events_old())?;
            self.is_copy = true;
        }
        let is_full = fs::metadata(&path).is_ok_and(|found| found.len() >= COPY_BYTES_MAX);
        if is_full {
            fs::remove_file(&path)?;
        }
        append(&path, &copy_of(line))
    }
}

/// Gives the file that all wrote to another name, if it is one and none has that name.
fn keep_old(path: &Path, old: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let file = File::open(path)?;
    let mut first = Vec::new();
    BufReader::new(file.take(LINE_BYTES_MAX)).read_until(b'\n', &mut first)?;
    let first = first.strip_suffix(b"\n").unwrap_or(&first);
    if first.is_empty() || is_copy(first) {
        return Ok(());
    }
    // A link, for a rename would replace what another has just kept.
    match fs::hard_link(path, old) {
        Ok(()) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    match file.write(line)? < line.len() {
        true => Err(io::Error::from(ErrorKind::WriteZero)),
        false => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use scrfs::event::pages;

    fn line(text: &str, second: u64) -> Vec<u8> {
        format!("{{\"time\":\"1970-01-01T00:00:{second:02}Z\",\"event\":\"{text}\"}}\n")
            .into_bytes()
    }

    fn told(paths: &PrefixPaths) -> Vec<String> {
        let mut lines = Vec::new();
        let mut each = |line: &[u8]| lines.push(String::from_utf8(line.to_vec()).unwrap());
        pages::read(paths, &mut each).unwrap();
        let word = |line: &String| line.split('"').nth(7).unwrap_or(line).to_owned();
        lines.iter().map(word).collect()
    }

    #[test]
    fn each_writer_has_pages_of_its_own_and_people_a_copy_of_all() {
        let root = tempfile::tempdir().unwrap();
        let paths = PrefixPaths::new(root.path());
        let (mut one, mut two) = (Files::new(paths.clone()), Files::new(paths.clone()));
        one.add(&line("a", 1)).unwrap();
        two.add(&line("b", 2)).unwrap();
        one.add(&line("d", 4)).unwrap();
        two.add(&line("c", 3)).unwrap();
        assert_eq!(told(&paths), ["a", "b", "c", "d"]);
        assert_eq!(fs::read_dir(paths.event_pages()).unwrap().count(), 2);
        let copy = fs::read_to_string(paths.events()).unwrap();
        let events = copy.lines().map(|line| line.split('"').nth(7).unwrap());
        assert_eq!(events.collect::<String>(), "abdc");
        assert!(copy.lines().all(|line| line.ends_with("} ")), "{copy}");
        // Whatever becomes of the copy, nothing is lost.
        fs::write(paths.events(), "").unwrap();
        one.add(&line("e", 5)).unwrap();
        assert_eq!(told(&paths).concat(), "abcde");
    }

    #[test]
    fn what_all_wrote_to_one_file_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let paths = PrefixPaths::new(root.path());
        fs::create_dir(paths.control()).unwrap();
        fs::write(paths.events(), line("old", 1)).unwrap();
        fs::write(paths.events_before(), line("older", 0)).unwrap();
        let (mut one, mut two) = (Files::new(paths.clone()), Files::new(paths.clone()));
        one.add(&line("new", 2)).unwrap();
        two.add(&line("newer", 3)).unwrap();
        assert_eq!(told(&paths), ["older", "old", "new", "newer"]);
        assert_eq!(fs::read(paths.events_old()).unwrap(), line("old", 1));
        // A scrfs that knows no pages writes there still.
        append(&paths.events(), &line("late", 4)).unwrap();
        Files::new(paths.clone()).add(&line("newest", 5)).unwrap();
        assert_eq!(
            told(&paths),
            ["older", "old", "late", "new", "newer", "newest"]
        );
        // And there it has written first.
        fs::write(paths.events(), line("again", 6)).unwrap();
        Files::new(paths.clone()).add(&line("last", 7)).unwrap();
        assert_eq!(fs::read(paths.events_old()).unwrap(), line("old", 1));
        let wanted = ["older", "old", "again", "new", "newer", "newest", "last"];
        assert_eq!(told(&paths), wanted);
    }

    #[test]
    fn pages_are_bounded_and_so_is_their_number_and_the_copy() {
        let root = tempfile::tempdir().unwrap();
        let paths = PrefixPaths::new(root.path());
        fs::create_dir_all(paths.event_pages()).unwrap();
        for number in 0..PAGES_MAX as u64 + 5 {
            fs::write(paths.event_page(number, 7), line("full", 0)).unwrap();
        }
        let notes = paths.event_pages().join("0notes");
        fs::write(&notes, "mine").unwrap();
        let mut files = Files::new(paths.clone());
        let long = "x".repeat(PAGE_BYTES_MAX as usize / 2);
        for second in 1..=3 {
            files.add(&line(&long, second)).unwrap();
        }
        let pages = fs::read_dir(paths.event_pages()).unwrap();
        let found: Vec<_> = pages.map(|found| found.unwrap().path()).collect();
        assert_eq!(found.len(), PAGES_MAX + 1);
        assert!(found.contains(&notes));
        assert!(!paths.event_page(7, 7).exists() && paths.event_page(8, 7).exists());
        let longest = found.iter().map(|path| fs::metadata(path).unwrap().len());
        assert!(longest.max().unwrap() <= PAGE_BYTES_MAX);
        let copy = OpenOptions::new()
            .append(true)
            .open(paths.events())
            .unwrap();
        copy.set_len(COPY_BYTES_MAX).unwrap();
        files.add(&line("next", 4)).unwrap();
        assert_eq!(fs::read(paths.events()).unwrap(), copy_of(&line("next", 4)));
    }

    #[test]
    fn after_a_line_that_fails_another_page_is_begun() {
        let root = tempfile::tempdir().unwrap();
        let paths = PrefixPaths::new(root.path());
        let mut files = Files::new(paths.clone());
        files.add(&line("a", 1)).unwrap();
        let page = files.page.as_ref().unwrap().path.clone();
        // As half a line would.
        let aside = root.path().join("aside");
        fs::rename(&page, &aside).unwrap();
        fs::create_dir(&page).unwrap();
        files.add(&line("b", 2)).unwrap_err();
        fs::remove_dir(&page).unwrap();
        fs::rename(&aside, &page).unwrap();
        files.add(&line("c", 1)).unwrap();
        assert_ne!(files.page.as_ref().unwrap().path, page);
        assert_eq!(told(&paths), ["a", "c"]);
    }

    #[test]
    fn a_prefix_that_is_not_there_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let gone = root.path().join("gone");
        let mut files = Files::new(PrefixPaths::new(&gone));
        files.add(&line("a", 1)).unwrap_err();
        assert!(!gone.exists());
    }
}
