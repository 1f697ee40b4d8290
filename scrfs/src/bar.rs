//! Bars on standard error: what commands show of long work to people who wait for it.
//!
//! The one place that draws them. Where standard error is no terminal, nothing is ever written; where it is
//! one, a bar is gone when its value is, so that what a command prints stays what it was. Only with the
//! feature `bars`: nothing else of the core knows of terminals, threads or clocks.

use crate::status::size;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Between two looks at what others do, and before the first: what ends at once shows nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longest name that is shown whole, in characters.
const NAME_CHARS_MAX: usize = 32;

const STEPS: &str = "{msg} {wide_bar} {pos}/{len} {eta}";
const BYTES: &str = "{msg} {percent}% {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}";
const UNKNOWN: &str = "{msg} {spinner}";

/// How far something has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// What it is called.
    pub what: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while nobody knows.
    pub total_bytes: u64,
}

/// One bar.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Bar {
    /// One that [`Self::show`] and [`Self::during`] bring to light; never, unless `is_wanted`.
    pub fn new(is_wanted: bool) -> Self {
        Self(match is_wanted {
            true => ProgressBar::no_length().with_style(style(UNKNOWN)),
            false => ProgressBar::hidden(),
        })
    }

    /// Of so many steps.
    pub fn steps(is_wanted: bool, what: &str, steps: u64) -> Self {
        let bar = Self::new(is_wanted);
        bar.0.set_length(steps);
        bar.0.set_style(style(STEPS));
        bar.0.set_message(shown(what));
        bar
    }

    /// Of so many bytes, of which none is done.
    pub fn bytes(is_wanted: bool, what: &str, total_bytes: u64) -> Self {
        let bar = Self::new(is_wanted);
        bar.show(&Mark {
            what: what.to_owned(),
            done_bytes: 0,
            total_bytes,
        });
        bar
    }

    /// One step more is done.
    pub fn step(&self) {
        self.0.inc(1);
    }

    /// So many bytes are done.
    pub fn set(&self, done_bytes: u64) {
        self.0.set_position(done_bytes);
    }

    /// Shows this.
    pub fn show(&self, mark: &Mark) {
        if self.0.is_hidden() {
            return;
        }
        let name = shown(&mark.what);
        let total = Some(mark.total_bytes).filter(|&total| total > 0);
        let is_other = self.0.length() != total || self.0.message().is_empty();
        // In this order no name is missing from what is drawn in between.
        match (total, mark.done_bytes) {
            (None, 1..) => self
                .0
                .set_message(format!("{name} {}", size(mark.done_bytes))),
            _ => self.0.set_message(name),
        }
        match total {
            Some(total) if is_other => {
                self.0.set_style(style(BYTES));
                self.0.set_length(total);
            }
            None if is_other => {
                self.0.set_style(style(UNKNOWN));
                self.0.unset_length();
            }
            _ => {}
        }
        self.0
            .set_position(mark.done_bytes.min(total.unwrap_or(u64::MAX)));
        if is_other {
            // What was done before anybody looked says nothing of the speed.
            self.0.reset_eta();
        }
        self.0.tick();
    }

    /// Does `work`, which waits for others, and shows now and then what `look` finds of theirs.
    pub fn during<T>(
        &self,
        mut look: impl FnMut() -> Option<Mark> + Send,
        work: impl FnOnce() -> T,
    ) -> T {
        if self.0.is_hidden() {
            return work();
        }
        let (working, ended) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                    if let Some(mark) = look() {
                        self.show(&mark);
                    }
                }
            });
            // Gone even if the work panics: the thread must end.
            let _working = working;
            work()
        })
    }
}

/// The templates above are right: with one that is not, a bar would look otherwise.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A name as it fits on a line of a terminal.
fn shown(name: &str) -> String {
    let plain = |letter: char| match letter.is_control() {
        true => '?',
        false => letter,
    };
    let mut shown: String = name.chars().take(NAME_CHARS_MAX).map(plain).collect();
    if name.chars().count() > NAME_CHARS_MAX {
        shown.push_str("..");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_right() {
        for template in [STEPS, BYTES, UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn names_neither_fill_the_line_nor_steer_the_terminal() {
        assert_eq!(shown("ckpt.1"), "ckpt.1");
        assert_eq!(shown("a\x1b[2Jb\n"), "a?[2Jb?");
        assert_eq!(shown(&"n".repeat(200)).len(), NAME_CHARS_MAX + 2);
    }
}
