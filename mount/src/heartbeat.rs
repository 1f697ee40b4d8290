//! Signs of life to the supervisor, and obedience to its orders.
//!
//! One datagram every 100 ms; each may be answered by an order, which names the oldest epoch whose
//! coordinator may live. Datagrams with another secret than this run's are ignored. Nothing here waits for
//! anything but the network, so that a beat means that the daemon's process runs, and no more.

use crate::control::Server;
use crate::vfs::Vfs;
use crate::vfs::advice::checkpoint_times;
use crate::vfs::namespace::Names;
use scrfs::control::{Beat, Order};
use scrfs::interval::Measured;
use scrfs::layout::envelope::{self, Kind};
use scrfs::layout::record::{Phase, State, millis};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// One beat each.
const BEAT_INTERVAL: Duration = Duration::from_millis(100);
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// What the beats need to know.
pub struct Pulse {
    /// The filesystem.
    pub vfs: Arc<Vfs>,
    /// Who knows the coordinator.
    pub server: Arc<Server>,
    /// Node name.
    pub node: String,
}

/// A running heartbeat; ends when it is dropped.
pub struct Heartbeat {
    _stop: std::sync::mpsc::Sender<()>,
}

impl Heartbeat {
    /// Beats to `supervisor` (`host:port`) from now on.
    pub fn start(pulse: Arc<Pulse>, supervisor: &str, token: u64) -> io::Result<Self> {
        let address = supervisor
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other(format!("{supervisor} has no address")))?;
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let beat = move || {
            let mut sequence = 0;
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                let next = Instant::now() + BEAT_INTERVAL;
                sequence += 1;
                let beat = pulse.beat(token, sequence);
                // Refused while the supervisor is not there: the next one may be heard.
                let _ = socket.send(&envelope::seal(Kind::Heartbeat, &beat));
                pulse.obey(&socket, token, next);
            }
        };
        std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(beat)?;
        Ok(Self { _stop: stop })
    }
}

impl Pulse {
    fn beat(&self, token: u64, sequence: u64) -> Beat {
        let link = self.server.epoch();
        let ready = link.is_some_and(|(_, ready)| ready);
        let stores = self.vfs.settings().space.stores();
        let names = self.vfs.read_names();
        let sealed = || names.iter().filter(|dataset| dataset.record.is_cached());
        let pending = sealed().filter(|dataset| {
            let record = &dataset.record;
            let flushes = names.due.contains(&record.id);
            dataset.is_unprotected() || (flushes && record.flushed.is_none())
        });
        let end = Measured::of(&checkpoint_times(&names)).end_seconds();
        let lost = names
            .iter()
            .filter(|dataset| dataset.record.phase == Phase::Lost)
            .max_by_key(|dataset| dataset.record.id);
        let restart = names.restart().filter(|_| ready);
        Beat {
            token,
            node: self.node.clone(),
            sequence,
            epoch: link.map(|(epoch, _)| epoch),
            epoch_last: stores.last_epoch().unwrap_or_default(),
            ready,
            restart_at: restart.and_then(|found| self.vfs.place_in_prefix(&names, found)),
            restart: restart.map(|found| found.record.name.clone()),
            newest_sealed: sealed().map(|dataset| dataset.record.id).max(),
            pending: u32::try_from(pending.count()).unwrap_or(u32::MAX),
            lost: lost.map(|dataset| dataset.record.name.clone()),
            checkpoint: names.newest_checkpoint(),
            activity: self.activity(&names),
            flushing: names
                .iter()
                .any(|dataset| dataset.record.state() == State::Flushing),
            end_ms: end.map(|seconds| (seconds * 1000.0) as u64),
            clock: now_millis(),
        }
    }

    /// A number that changes with everything that shows that the job moves on.
    fn activity(&self, names: &Names) -> u64 {
        let mut hasher = DefaultHasher::new();
        for dataset in names.iter() {
            let record = &dataset.record;
            (record.id.0, std::mem::discriminant(&record.state())).hash(&mut hasher);
        }
        self.vfs.settings().space.held_bytes().hash(&mut hasher);
        self.vfs.signs().beats().hash(&mut hasher);
        hasher.finish()
    }

    /// Reads orders until `until`.
    fn obey(&self, socket: &UdpSocket, token: u64, until: Instant) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match socket.recv(&mut buffer) {
                Ok(length) => match envelope::open::<Order>(Kind::Heartbeat, &buffer[..length]) {
                    Ok(order) if order.token == token => {
                        self.vfs.signs().tell_exit(order.halt);
                        self.server.require_epoch(order.epoch_min);
                    }
                    Ok(_) => tracing::debug!("an order of another run"),
                    Err(error) => tracing::debug!(%error, "not an order"),
                },
                Err(error) if is_timeout(&error) => return,
                // The supervisor's port is closed: wait the interval out.
                Err(_) => std::thread::park_timeout(left),
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Milliseconds since the Unix epoch.
pub fn now_millis() -> u64 {
    millis(SystemTime::now())
}
