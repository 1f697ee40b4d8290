//! What the world outside says while a job runs: halt conditions in the prefix, and the resource manager.
//!
//! Both may take their time, or hang with a file system: so a thread of its own asks, and the supervisor
//! takes what has come. It must never wait for this. Conditions are looked at every second, the resource
//! manager every half minute. What cannot be had is said once, and what was known before stays.

use super::resource::parse::Down;
use super::resource::{Allocation, Here};
use scrfs::halt::{Conditions, HaltFiles};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Between two looks at the conditions.
const HALT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two questions to the resource manager.
const MANAGER_INTERVAL: Duration = Duration::from_secs(30);

/// Something is known.
#[derive(Debug)]
pub(super) enum News {
    /// The halt conditions now.
    Conditions(Conditions),
    /// When the allocation ends.
    End(Option<Instant>),
    /// Nodes the resource manager does not want used.
    Down(Vec<Down>),
    /// Something could not be learnt.
    Failed(String),
    /// Everybody was asked.
    Asked,
}

/// The thread, and what it has to say.
#[derive(Debug)]
pub(super) struct Outside {
    news: Receiver<News>,
    /// The number of the newest checkpoint, to be counted from; the thread ends with this.
    checkpoint: Sender<u64>,
    told: u64,
}

impl Outside {
    /// Begins to ask.
    pub(super) fn start(
        prefix: &Path,
        allocation: Option<Allocation>,
        nodes: Vec<String>,
    ) -> std::io::Result<Self> {
        let (say, news) = channel();
        let (checkpoint, newest) = channel();
        let asking = Asking {
            files: HaltFiles::new(prefix),
            allocation,
            nodes,
            say,
            failed: None,
        };
        std::thread::Builder::new()
            .name("outside".into())
            .spawn(move || asking.run(&newest))?;
        Ok(Self {
            news,
            checkpoint,
            told: u64::MAX,
        })
    }

    /// What has come.
    pub(super) fn news(&self) -> Vec<News> {
        self.news.try_iter().collect()
    }

    /// Counting is from here on.
    pub(super) fn tell(&mut self, checkpoint: u64) {
        if self.told != checkpoint && self.checkpoint.send(checkpoint).is_ok() {
            self.told = checkpoint;
        }
    }
}

struct Asking {
    files: HaltFiles,
    allocation: Option<Allocation>,
    nodes: Vec<String>,
    say: Sender<News>,
    failed: Option<String>,
}

impl Asking {
    fn run(mut self, newest: &Receiver<u64>) {
        let mut manager_next = Instant::now();
        // Nothing is counted before it is known from where.
        let mut checkpoint = None;
        loop {
            let asked = self.ask_conditions(checkpoint);
            let asked = asked.and_then(|()| {
                if Instant::now() < manager_next {
                    return Ok(());
                }
                manager_next = Instant::now() + MANAGER_INTERVAL;
                self.ask_manager()
            });
            let asked = asked.and_then(|()| self.say(News::Asked));
            if asked.is_err() {
                return; // nobody listens
            }
            let until = Instant::now() + HALT_INTERVAL;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                match newest.recv_timeout(left) {
                    Ok(number) => checkpoint = Some(number),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    fn ask_conditions(&mut self, checkpoint: Option<u64>) -> Result<(), ()> {
        let mut read = self.files.read();
        if let (Ok(conditions), Some(checkpoint)) = (&read, checkpoint)
            && let Some(base) = conditions.base_wanted(checkpoint)
        {
            read = self.files.note(&base).and_then(|()| self.files.read());
        }
        match read {
            Ok(conditions) => self.say(News::Conditions(conditions)),
            Err(error) => {
                let why = std::error::Error::source(&error).map(ToString::to_string);
                self.fail(format!("{error}: {}", why.unwrap_or_default()))
            }
        }
    }

    fn ask_manager(&mut self) -> Result<(), ()> {
        let Some(allocation) = self.allocation.clone() else {
            return Ok(());
        };
        let here = Here::default();
        match allocation.end(&here) {
            Ok(end) => self.say(News::End(end))?,
            Err(error) => self.fail(error)?,
        }
        let nodes: Vec<&str> = self.nodes.iter().map(String::as_str).collect();
        match allocation.down(&here, &nodes) {
            Ok(down) => self.say(News::Down(down)),
            Err(error) => self.fail(error),
        }
    }

    fn say(&self, news: News) -> Result<(), ()> {
        self.say.send(news).map_err(drop)
    }

    fn fail(&mut self, why: String) -> Result<(), ()> {
        if self.failed.as_ref() == Some(&why) {
            return Ok(());
        }
        self.failed = Some(why.clone());
        self.say(News::Failed(why))
    }
}
