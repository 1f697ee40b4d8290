//! Events, written down: lines in pages, which are files or objects of the prefix, and to syslog.
//!
//! Rank 0 of an epoch writes those of datasets, from the changes of its records, and the supervisor those of the
//! job and its nodes. A thread of its own writes: nobody ever waits for a prefix that hangs. What it cannot take
//! is counted, and the count is an event.
//!
//! Each writer has pages of its own ([`files`], `objects::events`). In an object store lines gather for some seconds.

mod files;

use crate::effects::chain;
#[cfg(feature = "objects")]
use crate::objects::events::Pages;
use files::Files;
use scrfs::event::{Event, JobEvent, dropped, events};
use scrfs::layout::path::PrefixPaths;
use scrfs::layout::record::{DatasetRecord, UnixMillis};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel,
};
use std::time::Duration;
#[cfg(feature = "objects")]
use std::time::Instant;

/// Lines that wait for the writer.
const WAITING_MAX: usize = 1024;
/// For the last lines to be written when the coordinator ends.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for something to do when nothing waits.
const IDLE: Duration = Duration::from_secs(3600);
/// Where syslog listens.
const SYSLOG: &str = "/dev/log";
/// Facility user, severity informational.
const SYSLOG_PRIORITY: &str = "<14>";

/// Where they are in a prefix.
#[derive(Debug)]
pub(crate) enum Place {
    /// Files of a directory.
    Files(Files),
    /// Objects.
    #[cfg(feature = "objects")]
    Pages(Pages),
}

/// What events are written to.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The prefix.
    pub(crate) prefix: Option<Place>,
    /// Syslog's socket.
    pub(crate) syslog: Option<PathBuf>,
}

impl Place {
    /// Files of this directory.
    pub(crate) fn below(paths: &PrefixPaths) -> Self {
        Self::Files(Files::new(paths.clone()))
    }
}

impl Places {
    /// What the configuration wants.
    pub(crate) fn wanted(log: &scrfs::config::LogConfig, prefix: Option<Place>) -> Self {
        Self {
            prefix: prefix.filter(|_| log.events),
            syslog: log.syslog.then(|| SYSLOG.into()),
        }
    }
}

/// The writer, as the driver sees it.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    lines: Option<SyncSender<Vec<u8>>>,
    ended: Option<Receiver<()>>,
    dropped: u64,
}

impl Journal {
    /// Begins to write; to nowhere when there is no place.
    pub(crate) fn begin(places: Places) -> io::Result<Self> {
        if places.prefix.is_none() && places.syslog.is_none() {
            return Ok(Self::default());
        }
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let (end, ended) = channel();
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || {
                Writer::new(places).run(&waiting);
                // Nobody may wait for it any more.
                let _ = end.send(());
            })?;
        Ok(Self {
            lines: Some(lines),
            ended: Some(ended),
            dropped: 0,
        })
    }

    /// A record has been put down; `before` is what it replaced.
    pub(crate) fn changed(
        &mut self,
        before: Option<&DatasetRecord>,
        after: &DatasetRecord,
        now: UnixMillis,
    ) {
        if self.lines.is_some() {
            for event in events(before, after, now) {
                self.note(event.line());
            }
        }
    }

    /// A record has been removed.
    pub(crate) fn removed(&mut self, record: &DatasetRecord, now: UnixMillis) {
        self.note(Event::removed(record, now).line());
    }

    /// Something happened to the job.
    pub(crate) fn job(&mut self, event: &JobEvent) {
        self.note(event.line());
    }

    fn note(&mut self, line: Vec<u8>) {
        let Some(lines) = &self.lines else { return };
        if self.dropped > 0 {
            match lines.try_send(dropped(self.dropped)) {
                Ok(()) => self.dropped = 0,
                Err(_) => {
                    self.dropped += 1;
                    return;
                }
            }
        }
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            if self.dropped == 0 {
                tracing::error!("events come faster than the prefix takes them; some are left out");
            }
            self.dropped += 1;
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(ended) = &self.ended
            && ended.recv_timeout(END_PATIENCE) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!("the prefix does not take the last events");
        }
    }
}

/// On its own thread.
struct Writer {
    places: Places,
    syslog: Option<UnixDatagram>,
    has_complained: bool,
}

impl Writer {
    fn new(places: Places) -> Self {
        Self {
            places,
            syslog: None,
            has_complained: false,
        }
    }

    fn run(&mut self, lines: &Receiver<Vec<u8>>) {
        loop {
            let line = lines.recv_timeout(self.wait().unwrap_or(IDLE));
            if let Ok(line) = &line {
                self.write(line);
            }
            let is_over = line == Err(RecvTimeoutError::Disconnected);
            if is_over || self.wait().is_some_and(|wait| wait.is_zero()) {
                self.put();
            }
            if is_over {
                return;
            }
        }
    }

    /// How long it may be until [`Self::put`]; `None` when nothing waits for it.
    fn wait(&self) -> Option<Duration> {
        match self.places.prefix.as_ref()? {
            Place::Files(_) => None,
            #[cfg(feature = "objects")]
            Place::Pages(pages) => pages.wait(Instant::now()),
        }
    }

    /// Writes what has gathered.
    fn put(&mut self) {
        #[cfg(feature = "objects")]
        if let Some(Place::Pages(pages)) = &mut self.places.prefix {
            let place = pages.place();
            if let Err(error) = pages.put(Instant::now()) {
                self.complain(&place, &error);
            }
        }
    }

    fn write(&mut self, line: &[u8]) {
        match &mut self.places.prefix {
            None => {}
            Some(Place::Files(files)) => {
                let place = files.place();
                if let Err(error) = files.add(line) {
                    self.complain(&place, &error);
                }
            }
            #[cfg(feature = "objects")]
            Some(Place::Pages(pages)) => {
                let place = pages.place();
                if let Err(error) = pages.add(line, Instant::now()) {
                    self.complain(&place, &error);
                }
            }
        }
        if let Some(socket) = self.places.syslog.clone()
            && let Err(error) = self.tell_syslog(&socket, line)
        {
            self.syslog = None;
            self.complain(&socket, &error);
        }
    }

    fn tell_syslog(&mut self, path: &Path, line: &[u8]) -> io::Result<()> {
        let socket = match self.syslog.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(path)?;
                socket
            }
        };
        let head = format!("{SYSLOG_PRIORITY}scrfs[{}]: ", std::process::id());
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        socket.send(&[head.as_bytes(), line].concat())?;
        self.syslog = Some(socket);
        Ok(())
    }

    fn complain(&mut self, path: &Path, error: &(dyn std::error::Error + 'static)) {
        if !std::mem::replace(&mut self.has_complained, true) {
            let error = chain(error);
            tracing::error!(
                ?path,
                error,
                "events cannot be written; the run goes on without"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::part::testing::sealed;
    use scrfs::layout::path::CachePaths;
    use scrfs::layout::record::Phase;
    use std::fs;
    use std::io::{BufRead, BufReader};

    fn records(root: &Path) -> (DatasetRecord, DatasetRecord) {
        let cache = CachePaths::at(&root.join("cache"));
        fs::create_dir_all(cache.tree(scrfs::id::DatasetId(3), scrfs::id::Slot(0))).unwrap();
        let sealed = sealed(&cache, 3, "ckpt.3", 1);
        let open = DatasetRecord {
            phase: Phase::Open,
            seal: None,
            sealed: None,
            ..sealed.clone()
        };
        (open, sealed)
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn the_life_of_a_dataset_is_written_down_and_told_to_syslog() {
        let root = tempfile::tempdir().unwrap();
        let syslog = UnixDatagram::bind(root.path().join("log")).unwrap();
        let paths = PrefixPaths::new(&root.path().join("prefix"));
        fs::create_dir(paths.root()).unwrap();
        let (open, sealed) = records(root.path());
        let mut journal = Journal::begin(Places {
            prefix: Some(Place::below(&paths)),
            syslog: Some(root.path().join("log")),
        })
        .unwrap();
        let mut flushed = sealed.clone();
        flushed.flushed = Some(2500);
        let mut failed = flushed.clone();
        failed.error = Some("flush failed".into());
        journal.changed(None, &open, 1);
        journal.changed(Some(&open), &open, 1);
        journal.changed(Some(&open), &sealed, 1001);
        journal.changed(Some(&sealed), &flushed, 2502);
        journal.changed(Some(&flushed), &failed, 2503);
        journal.removed(&failed, 2504);
        drop(journal);
        let lines = lines(&paths.events());
        let said: Vec<_> = lines
            .iter()
            .map(|line| line["event"].as_str().unwrap())
            .collect();
        assert_eq!(
            said,
            ["created", "committed", "flushed", "error", "removed"]
        );
        assert_eq!(lines[1]["duration_ms"], 1000);
        assert_eq!(lines[1]["bytes"], 0);
        assert_eq!(lines[2]["duration_ms"], 2500);
        assert_eq!(lines[2]["time"], "1970-01-01T00:00:02.502Z");
        assert_eq!(lines[3]["error"], "flush failed");
        assert!(
            lines
                .iter()
                .all(|line| line["id"] == 3 && line["name"] == "ckpt.3")
        );
        let mut buffer = [0; 4096];
        let length = syslog.recv(&mut buffer).unwrap();
        let told = std::str::from_utf8(&buffer[..length]).unwrap();
        assert!(
            told.starts_with("<14>scrfs[") && told.ends_with('}'),
            "{told}"
        );
    }

    #[test]
    fn a_prefix_that_hangs_holds_nobody_up_and_what_it_missed_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let paths = PrefixPaths::new(root.path());
        fs::create_dir(paths.control()).unwrap();
        // Opening it for writing blocks until somebody reads.
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&paths.events(), mode).unwrap();
        let (_, sealed) = records(root.path());
        let mut journal = Journal::begin(Places {
            prefix: Some(Place::below(&paths)),
            syslog: None,
        })
        .unwrap();
        for _ in 0..WAITING_MAX + 10 {
            journal.removed(&sealed, 1);
        }
        assert!(journal.dropped >= 8, "{}", journal.dropped);
        let missed = journal.dropped;
        let (tell, told) = channel();
        // It is a writer itself, so that it never comes to an end, and goes with the process.
        let fifo = fs::File::options()
            .read(true)
            .write(true)
            .open(paths.events())
            .unwrap();
        std::thread::spawn(move || {
            let lines = BufReader::new(fifo).lines().map_while(Result::ok);
            for line in lines.filter(|line| line.contains("\"dropped\"")) {
                let _ = tell.send(line);
            }
        });
        while journal.dropped > 0 {
            journal.removed(&sealed, 1);
            std::thread::yield_now();
        }
        drop(journal);
        let dropped = told.recv_timeout(Duration::from_secs(60)).unwrap();
        let count: serde_json::Value = serde_json::from_str(&dropped).unwrap();
        assert!(count["count"].as_u64().unwrap() >= missed);
    }
}
