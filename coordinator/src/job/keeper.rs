//! Keeps the supervisor's record in the prefix, and looks whether the run is still its own.
//!
//! The prefix may be slow or hang, and nodes must be watched all the time: so a thread of its own writes,
//! and the supervisor waits for it only where something must not happen before it is written, taking
//! heartbeats meanwhile. Once a second it is looked whether somebody has taken the run over.

use super::files::RunFiles;
use scrfs::layout::run::{RunKey, RunRecord};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the thread has to say.
#[derive(Debug)]
pub(super) enum Word {
    /// So many records were written, or could not be.
    Done(u64),
    /// Why not.
    Failed(String),
    /// The run is somebody else's.
    Superseded(String),
}

/// The thread, as the supervisor sees it.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: Sender<RunRecord>,
    words: Receiver<Word>,
    asked: u64,
    done: u64,
}

impl Keeper {
    /// Begins to look, for the supervisor that took `key`.
    pub(super) fn start(files: RunFiles, key: RunKey) -> std::io::Result<Self> {
        let (orders, waiting) = channel();
        let (say, words) = channel();
        std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || keep(&files, key, &waiting, &say))?;
        Ok(Self {
            orders,
            words,
            asked: 0,
            done: 0,
        })
    }

    /// Has this record written.
    pub(super) fn put(&mut self, record: RunRecord) {
        self.asked += 1;
        if self.orders.send(record).is_err() {
            self.done = self.asked; // the thread is gone, and has said why
        }
    }

    /// Whether all that was to be written is.
    pub(super) fn is_done(&self) -> bool {
        self.done >= self.asked
    }

    /// What was said since.
    pub(super) fn words(&mut self) -> Vec<Word> {
        let words: Vec<Word> = self.words.try_iter().collect();
        for word in &words {
            if let Word::Done(count) = word {
                self.done = *count;
            }
        }
        words
    }
}

fn keep(files: &RunFiles, key: RunKey, waiting: &Receiver<RunRecord>, say: &Sender<Word>) {
    let mut count = 0;
    let mut failed = None;
    loop {
        let mut record = match waiting.recv_timeout(LOOK_INTERVAL) {
            Ok(record) => Some(record),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        count += u64::from(record.is_some());
        // Only the newest matters.
        while let Ok(newer) = waiting.try_recv() {
            record = Some(newer);
            count += 1;
        }
        // Before, so that what is somebody else's is not written over; and after, for one that came between.
        let written = files
            .successor(key)
            .and_then(|found| match (found, record) {
                (None, Some(record)) => files.put(key, &record).and_then(|()| files.successor(key)),
                (found, _) => Ok(found),
            });
        let word = match written {
            Ok(None) => {
                failed = None;
                None
            }
            Ok(Some(who)) => Some(Word::Superseded(who)),
            Err(error) => {
                let why = format!("{error:#}");
                let word = (failed.as_ref() != Some(&why)).then(|| Word::Failed(why.clone()));
                failed = Some(why);
                word
            }
        };
        if word.is_some_and(|word| say.send(word).is_err()) || say.send(Word::Done(count)).is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn record(host: &str) -> RunRecord {
        RunRecord {
            host: host.into(),
            arguments: vec!["app".into()],
            ..RunRecord::default()
        }
    }

    fn until(keeper: &mut Keeper, done: impl Fn(&Keeper, &[Word]) -> bool) -> Vec<Word> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut heard = Vec::new();
        loop {
            heard.extend(keeper.words());
            if done(keeper, &heard) {
                return heard;
            }
            assert!(Instant::now() < deadline, "in vain: {heard:?}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    #[test]
    fn records_are_written_until_somebody_else_has_the_run() {
        let prefix = tempfile::tempdir().expect("a directory");
        let files = RunFiles::new(prefix.path());
        let key = files.claim(7, 1, &record("a")).expect("free");
        let mut keeper = Keeper::start(files.clone(), key).expect("a thread");
        keeper.put(record("b"));
        keeper.put(record("c"));
        assert!(!keeper.is_done());
        let heard = until(&mut keeper, |keeper, _| keeper.is_done());
        assert!(
            heard.iter().all(|word| matches!(word, Word::Done(_))),
            "{heard:?}"
        );
        assert_eq!(files.all().expect("read")[0].1.host, "c");
        let later = files.claim(7, 1, &record("d")).expect("free");
        keeper.put(record("e"));
        let is_superseded = |word: &Word| matches!(word, Word::Superseded(_));
        until(&mut keeper, |_, heard| heard.iter().any(is_superseded));
        let all = files.all().expect("read");
        assert_eq!((all[0].0, all[0].1.host.as_str()), (later, "d"));
    }

    #[test]
    fn a_prefix_that_takes_nothing_is_said_once_and_holds_nobody_up() {
        let prefix = tempfile::tempdir().expect("a directory");
        let files = RunFiles::new(prefix.path());
        let key = files.claim(7, 1, &record("a")).expect("free");
        std::fs::remove_dir_all(prefix.path().join(".scrfs")).expect("removable");
        std::fs::write(prefix.path().join(".scrfs"), b"in the way").expect("writable");
        let mut keeper = Keeper::start(files, key).expect("a thread");
        keeper.put(record("b"));
        let mut heard = until(&mut keeper, |keeper, _| keeper.is_done());
        keeper.put(record("c"));
        heard.extend(until(&mut keeper, |keeper, _| keeper.is_done()));
        let failures = heard.iter().filter(|word| matches!(word, Word::Failed(_)));
        assert_eq!(failures.count(), 1, "{heard:?}");
    }
}
