//! The line to this node's daemon: frames out, events in.
//!
//! A reader thread turns what the daemon says into [`Event`]s and wakes the driver. Writing happens on
//! the driver's thread, with a deadline: a daemon that does not read for that long is as good as
//! dead, and the epoch ends here.

use crate::tasks::Event;
use anyhow::{Context, Result, bail};
use scrfs::control::{
    Answer, Command, FromDaemon, Hello, PROTOCOL_VERSION, Role, Room, ToDaemon, Welcome,
    read_frame, write_frame,
};
use scrfs::fabric::Waker;
use scrfs::layout::path::CachePaths;
use scrfs::stores::Stores;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How long the daemon may leave a frame unread.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);

/// How long it may take to say what room there is: programs wait.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);

/// The open line.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
}

/// What the daemon told about its node.
#[derive(Debug)]
pub(crate) struct NodeFacts {
    /// Its name.
    pub(crate) node: String,
    /// The job's cache directories, of the first store and of the further ones.
    pub(crate) stores: Stores,
    /// The effective configuration, as JSON.
    pub(crate) config: String,
}

impl Link {
    /// Calls the daemon at `socket` and introduces this coordinator.
    pub(crate) fn open(socket: &Path, role: Role) -> Result<Self> {
        Self::greet(socket, role).map(|(link, _)| link)
    }

    /// What the daemon at `socket` tells everybody of its node.
    pub(crate) fn ask_facts(socket: &Path) -> Result<NodeFacts> {
        Self::greet(socket, Role::Command).map(|(_, facts)| facts)
    }

    /// What the daemon at `socket` has for another dataset.
    pub(crate) fn ask_room(socket: &Path) -> Result<Room> {
        let (mut link, _) = Self::greet(socket, Role::Command)?;
        let stream = &mut link.stream;
        stream
            .set_read_timeout(Some(ROOM_PATIENCE))
            .context("cannot set a read deadline")?;
        write_frame(stream, &Command::Room).context("cannot ask the daemon")?;
        match read_frame::<Answer>(stream).context("the daemon did not answer")? {
            Some(Answer::Ok(text)) => {
                serde_json::from_str(&text).context("the daemon spoke nonsense")
            }
            other => bail!("the daemon answered {other:?}"),
        }
    }

    /// Asks the daemon at `socket` what a command asks, however long that takes.
    pub(crate) fn ask(socket: &Path, command: &Command) -> Result<String> {
        let (mut link, _) = Self::greet(socket, Role::Command)?;
        let stream = &mut link.stream;
        write_frame(stream, command).context("cannot ask the daemon")?;
        match read_frame::<Answer>(stream).context("the daemon did not answer")? {
            Some(Answer::Ok(text)) => Ok(text),
            Some(Answer::Refused(_, why)) => bail!("{why}"),
            None => bail!("the daemon hung up"),
        }
    }

    fn greet(socket: &Path, role: Role) -> Result<(Self, NodeFacts)> {
        let mut stream = UnixStream::connect(socket).with_context(|| {
            format!(
                "no daemon answers at {}; is `scrfs mount` running?",
                socket.display()
            )
        })?;
        stream
            .set_write_timeout(Some(WRITE_PATIENCE))
            .context("cannot set a write deadline")?;
        write_frame(
            &mut stream,
            &Hello {
                version: PROTOCOL_VERSION,
                role,
            },
        )
        .context("cannot greet the daemon")?;
        match read_frame::<Welcome>(&mut stream).context("the daemon did not answer")? {
            Some(Welcome::Accepted {
                node,
                cache,
                further,
                config,
                mountpoint: _,
            }) => Ok((
                Self { stream },
                NodeFacts {
                    node,
                    stores: Stores::new(
                        CachePaths::at(&cache),
                        further.iter().map(|root| CachePaths::at(root)).collect(),
                    ),
                    config,
                },
            )),
            Some(Welcome::Refused(reason)) => {
                bail!("the daemon refuses this coordinator: {reason}")
            }
            None => bail!("the daemon hung up"),
        }
    }

    /// Starts the reader: events go to `events`, and `wake` is called for each.
    pub(crate) fn listen(&self, events: Sender<Event>, wake: Waker) -> Result<()> {
        let stream = self
            .stream
            .try_clone()
            .context("cannot share the daemon's socket")?;
        std::thread::Builder::new()
            .name("daemon-link".into())
            .spawn(move || {
                let mut stream = BufReader::new(stream);
                loop {
                    let event = match read_frame::<FromDaemon>(&mut stream) {
                        Ok(Some(word)) => Event::Daemon(word),
                        Ok(None) => Event::DaemonGone("it closed its socket".into()),
                        Err(error) => Event::DaemonGone(error.to_string()),
                    };
                    let last = matches!(event, Event::DaemonGone(_));
                    if events.send(event).is_err() || last {
                        break;
                    }
                    wake();
                }
                wake();
            })
            .context("cannot start the daemon's reader thread")?;
        Ok(())
    }

    /// Tells the daemon something.
    pub(crate) fn tell(&mut self, message: &ToDaemon) -> Result<()> {
        write_frame(&mut self.stream, message).context("the daemon does not listen any more")
    }
}
