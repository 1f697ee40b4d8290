//! The supervisor's socket for heartbeats: beats in, orders out.
//!
//! Invariants: a datagram with another run's token is dropped; every beat of a member is answered with
//! the oldest epoch that may live. A node that was given up is told that none may.

use super::membership::{Death, Heard, Membership};
use scrfs::control::{Beat, Order};
use scrfs::id::Epoch;
use scrfs::layout::envelope::{self, Kind};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Any port does: nothing is sent while the address to be reached by is looked for.
const ANY_PORT: u16 = 9;

/// Socket, secret and what was heard.
pub struct Heart {
    socket: UdpSocket,
    address: SocketAddr,
    token: u64,
    epoch_min: Epoch,
    halt: bool,
    /// Who lives.
    pub members: Membership,
}

impl Heart {
    /// Listens at `listen`, or where the nodes reach this host.
    pub fn new(
        listen: Option<SocketAddr>,
        nodes: &[&str],
        dead_after: Duration,
    ) -> io::Result<Self> {
        let wanted = match listen {
            Some(address) => address,
            None => SocketAddr::new(address_towards(nodes), 0),
        };
        // Everywhere, but to be reached by that address: a node may come by another way.
        let any: IpAddr = match wanted {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let bind = if listen.is_some() {
            wanted
        } else {
            SocketAddr::new(any, 0)
        };
        let socket = UdpSocket::bind(bind)?;
        socket.set_nonblocking(true)?;
        let address = SocketAddr::new(wanted.ip(), socket.local_addr()?.port());
        let members = Membership::new(dead_after);
        Ok(Self {
            socket,
            address,
            token: random()?,
            epoch_min: Epoch(0),
            halt: false,
            members,
        })
    }

    /// Where daemons send their beats.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The secret they show.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Coordinators of epochs below this one are to be killed, from now on.
    pub fn require(&mut self, epoch_min: Epoch) {
        self.epoch_min = epoch_min;
        // At once, not only with the next beat.
        let lives: Vec<_> = self
            .members
            .lives()
            .map(|life| (life.from, life.beat.sequence))
            .collect();
        for (to, sequence) in lives {
            self.order(to, sequence, epoch_min);
        }
    }

    /// What programs find in `.scr/should_exit`, from the next beats on.
    pub fn halt(&mut self, halt: bool) {
        self.halt = halt;
    }

    /// Takes in everything that has come.
    pub fn listen(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => self.handle(&buffer[..length], from),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // An order bounced off a node that is gone; and signals.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted
                            | ErrorKind::ConnectionRefused
                            | ErrorKind::HostUnreachable
                            | ErrorKind::NetworkUnreachable
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in everything that has come, then gives up who has fallen silent. In this order: after a
    /// standstill of the supervisor itself, beats that wait here prove that their senders live.
    pub fn watch(&mut self) -> io::Result<Vec<Death>> {
        self.listen()?;
        Ok(self.members.expire(Instant::now()))
    }

    fn handle(&mut self, bytes: &[u8], from: SocketAddr) {
        let beat: Beat = match envelope::open(Kind::Heartbeat, bytes) {
            Ok(beat) => beat,
            Err(error) => {
                tracing::debug!(%from, %error, "not a heartbeat");
                return;
            }
        };
        if beat.token != self.token {
            tracing::debug!(%from, node = beat.node, "a heartbeat of another run");
            return;
        }
        let (node, sequence) = (beat.node.clone(), beat.sequence);
        match self.members.hear(beat, from, Instant::now()) {
            Heard::Member => self.order(from, sequence, self.epoch_min),
            Heard::Outcast => self.order(from, sequence, Epoch(u64::MAX)),
            Heard::Stranger => tracing::warn!(%from, node, "heartbeat of a node nobody asked"),
        }
    }

    fn order(&self, to: SocketAddr, sequence: u64, epoch_min: Epoch) {
        let order = Order {
            token: self.token,
            sequence,
            epoch_min,
            halt: self.halt,
        };
        // Lost or refused: the next beat is answered as well.
        let _ = self
            .socket
            .send_to(&envelope::seal(Kind::Heartbeat, &order), to);
    }
}

impl AsFd for Heart {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The address of this host that the nodes see: the one it would send from to the first of them that is
/// another host.
fn address_towards(nodes: &[&str]) -> IpAddr {
    let towards = |node: &str| -> Option<IpAddr> {
        let to = (node, ANY_PORT).to_socket_addrs().ok()?.next()?;
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Chooses a route, and sends nothing.
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let found: Vec<IpAddr> = nodes.iter().filter_map(|node| towards(node)).collect();
    let outside = found.iter().find(|address| !address.is_loopback());
    outside
        .or(found.first())
        .copied()
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// A number nobody guesses.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node of which only the heartbeat exists.
    struct Fake {
        socket: UdpSocket,
        beat: Beat,
    }

    impl Fake {
        fn new(heart: &Heart, node: &str) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
            socket.connect(heart.address()).expect("it is ours");
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("not zero");
            let beat = Beat {
                token: heart.token(),
                node: node.into(),
                sequence: 0,
                epoch: None,
                epoch_last: Epoch(0),
                ready: false,
                restart: None,
                restart_at: None,
                newest_sealed: None,
                pending: 0,
                lost: None,
                checkpoint: 0,
                activity: 0,
                flushing: false,
                end_ms: None,
                clock: 0,
            };
            Self { socket, beat }
        }

        fn beat(&mut self) {
            self.beat.sequence += 1;
            let bytes = envelope::seal(Kind::Heartbeat, &self.beat);
            self.socket.send(&bytes).expect("the supervisor listens");
        }

        fn order(&self) -> Order {
            let mut buffer = [0; 1024];
            let length = self.socket.recv(&mut buffer).expect("an order");
            envelope::open(Kind::Heartbeat, &buffer[..length]).expect("ours")
        }
    }

    fn heart(dead_after: Duration) -> Heart {
        let mut heart = Heart::new(None, &["localhost"], dead_after).expect("a port is free");
        heart.members.expect("a");
        heart
    }

    fn listen_until(heart: &mut Heart, done: impl Fn(&Heart, &[Death]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let deaths = heart.watch().expect("the socket works");
            if done(heart, &deaths) {
                return;
            }
            assert!(Instant::now() < deadline, "in vain");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    #[test]
    fn beats_are_answered_and_silence_is_noticed() {
        let mut heart = heart(Duration::from_millis(200));
        let mut node = Fake::new(&heart, "a");
        node.beat();
        listen_until(&mut heart, |heart, _| heart.members.life("a").is_some());
        assert_eq!(node.order().epoch_min, Epoch(0));
        heart.require(Epoch(3));
        assert_eq!(node.order().epoch_min, Epoch(3));
        listen_until(&mut heart, |_, deaths| {
            deaths.iter().any(|death| death.node == "a")
        });
        // It was not dead after all, but its place is taken.
        node.beat();
        let deadline = Instant::now() + Duration::from_secs(10);
        node.socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("not zero");
        let mut buffer = [0; 1024];
        let length = loop {
            assert!(heart.watch().expect("the socket works").is_empty());
            match node.socket.recv(&mut buffer) {
                Ok(length) => break length,
                Err(_) => assert!(Instant::now() < deadline, "no order came"),
            }
        };
        let order: Order = envelope::open(Kind::Heartbeat, &buffer[..length]).expect("ours");
        assert_eq!(order.epoch_min, Epoch(u64::MAX));
    }

    #[test]
    fn a_halt_goes_out_with_every_order() {
        let mut heart = heart(Duration::from_secs(5));
        let mut node = Fake::new(&heart, "a");
        node.beat();
        listen_until(&mut heart, |heart, _| heart.members.life("a").is_some());
        assert!(!node.order().halt);
        heart.halt(true);
        node.beat();
        listen_until(&mut heart, |heart, _| {
            heart
                .members
                .life("a")
                .is_some_and(|life| life.beat.sequence == 2)
        });
        assert!(node.order().halt);
    }

    #[test]
    fn another_runs_secret_is_not_heard() {
        let mut heart = heart(Duration::from_secs(1));
        let mut stranger = Fake::new(&heart, "a");
        stranger.beat.token ^= 1;
        stranger.beat();
        stranger
            .socket
            .send(b"noise")
            .expect("the supervisor listens");
        let mut member = Fake::new(&heart, "a");
        member.beat();
        listen_until(&mut heart, |heart, _| heart.members.life("a").is_some());
        let life = heart.members.life("a").expect("just seen");
        assert_eq!(life.from, member.socket.local_addr().expect("bound"));
    }
}
