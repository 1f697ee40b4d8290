//! Events in an object store, which has no appends: lines in pages, each an object.
//!
//! ```text
//! .scrfs/events/<begun>.<writer>.jsonl     begun: milliseconds, 13 digits, of its first line; writer: a random number
//! ```
//!
//! Invariants: a page is its writer's alone, who puts it again, whole, whenever it has more lines: readers see only
//! whole lines, few objects hold many lines, and what could not be put goes with the next try. A page that is full
//! is not changed any more. Who begins one removes the oldest beyond [`PAGES_MAX`], so that all are together
//! bounded.
//!
//! Writers put when they like, so that pages overlap in time. Readers get the lines of all in the order of
//! their times, and those of one page in their own order.

use super::store::{Meta, Objects};
use super::{CONTROL, ObjectPrefix};
use crate::prefix::PrefixError;
use scrfs::event::dropped;
use scrfs::event::pages::{Merge, PAGES_MAX, READ_BYTES_MAX, time_of};
use scrfs::layout::path::{event_page_name, parse_event_page};
use scrfs::layout::record::UnixMillis;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Length of a page that is full.
const PAGE_BYTES_MAX: usize = 64 << 10;
/// Pages that are read at once.
const READ_PAGES_MAX: usize = 32;
/// How long a line may wait for others to go with it.
const GATHER: Duration = Duration::from_secs(5);

/// What one writer writes.
#[derive(Debug)]
pub(crate) struct Pages {
    objects: Arc<Objects>,
    writer: u64,
    page: Page,
    /// Time of the newest line.
    newest: UnixMillis,
    /// When the next put is due, if one is.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct Page {
    /// Does not change, for it is in the name.
    begun: UnixMillis,
    text: Vec<u8>,
    /// What of it the store has.
    put: usize,
}

pub(super) fn page_key(begun: UnixMillis, writer: u64) -> String {
    format!("{CONTROL}/events/{}", event_page_name(begun, writer))
}

/// When a page was begun; `None` of what is no page.
fn begun(key: &str) -> Option<UnixMillis> {
    parse_event_page(key.rsplit('/').next()?)
}

/// All pages, oldest first.
fn pages(objects: &Objects) -> Result<Vec<(UnixMillis, Meta)>, PrefixError> {
    let listed = objects.list(&format!("{CONTROL}/events"))?;
    let pages = listed
        .into_iter()
        .filter_map(|found| Some((begun(&found.key)?, found)));
    Ok(pages.collect())
}

impl Pages {
    fn new(objects: Arc<Objects>) -> Self {
        Self {
            objects,
            writer: RandomState::new().build_hasher().finish(),
            page: Page::default(),
            newest: 0,
            due: None,
        }
    }

    /// Where they are, for people.
    pub(crate) fn place(&self) -> PathBuf {
        self.objects.name_of(&format!("{CONTROL}/events"))
    }

    /// How long it may be until [`Self::put`]; `None` when nothing waits for it.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// One more line, to be put later. The page that it does not fit into is put before.
    pub(crate) fn add(&mut self, line: &[u8], now: Instant) -> Result<(), PrefixError> {
        self.newest = time_of(line).unwrap_or(self.newest);
        let mut done = Ok(());
        let len = self.page.text.len();
        if len == 0 || len + line.len() > PAGE_BYTES_MAX {
            done = self.put(now);
            let lost = self.page.text.iter().skip(self.page.put);
            let lost = lost.filter(|&&byte| byte == b'\n').count() as u64;
            self.page = Page {
                // No two have one name.
                begun: self.newest.max(self.page.begun.saturating_add(1)),
                text: if lost > 0 { dropped(lost) } else { Vec::new() },
                put: 0,
            };
        }
        self.page.text.extend(line);
        self.due.get_or_insert(now + GATHER);
        done
    }

    /// Puts what the store does not have. What fails is due again.
    pub(crate) fn put(&mut self, now: Instant) -> Result<(), PrefixError> {
        if self.page.put == self.page.text.len() {
            self.due = None;
            return Ok(());
        }
        self.due = Some(now + GATHER);
        let key = page_key(self.page.begun, self.writer);
        self.objects.put(&key, self.page.text.clone())?;
        self.due = None;
        let is_first = self.page.put == 0;
        self.page.put = self.page.text.len();
        match is_first {
            true => self.remove_oldest(),
            false => Ok(()),
        }
    }

    fn remove_oldest(&self) -> Result<(), PrefixError> {
        let pages = pages(&self.objects)?;
        let beyond = pages.len().saturating_sub(PAGES_MAX);
        for (_, page) in &pages[..beyond] {
            self.objects.remove(&page.key)?;
        }
        Ok(())
    }
}

impl ObjectPrefix {
    /// A writer of events.
    pub(crate) fn event_pages(&self) -> Pages {
        Pages::new(Arc::clone(&self.objects))
    }

    /// All lines, without their ends, oldest first.
    pub(crate) fn events(&self, each: &mut dyn FnMut(&[u8])) -> Result<(), PrefixError> {
        let mut pages = pages(&self.objects)?;
        // Who has not removed the oldest yet makes nobody read more.
        pages.drain(..pages.len().saturating_sub(PAGES_MAX));
        pages.retain(|(_, page)| {
            let is_one = page.size <= READ_BYTES_MAX;
            if !is_one {
                let path = self.objects.name_of(&page.key);
                tracing::warn!(
                    ?path,
                    bytes = page.size,
                    "too long for a page of events; not read"
                );
            }
            is_one
        });
        let mut merge = Merge::default();
        for some in pages.chunks(READ_PAGES_MAX) {
            let read = self
                .objects
                .get_all(some.iter().map(|(_, page)| page.key.clone()))?;
            for ((begun, _), text) in some.iter().zip(read) {
                // It may have been removed since.
                merge.page(*begun, &text.unwrap_or_default(), each);
            }
        }
        merge.end(each);
        Ok(())
    }
}
