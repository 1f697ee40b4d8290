//! The fabric over MPI, and the only file that names the `mpi` crate.
//!
//! It uses the raw bindings: the crate's safe layer drops return codes and ties buffers to scopes.
//! Here every code is checked, and a buffer lives beside its request until MPI is done with it.
//!
//! - One thread calls MPI, from [`MpiFabric::init`] to [`MpiFabric::finalize`]; the type is not
//!   `Send`. Only the waker leaves the thread.
//! - Lanes are tags. Messages are matched by probe, so their size is known, and checked, before
//!   memory is taken for them; receptions may complete out of order and are put back in order.
//! - At most [`RECEIVE_BYTES`] of messages are taken in before somebody polls them out.
//!
//! **Waiting.** MPI has nothing to wait on, so a rank yields and looks for [`ACTIVE`] after the
//! last event and then naps in `ppoll` on two sockets: the *doorbell*, a UDP socket at which peers
//! announce a message after a silence, and the waker's. A datagram carries nothing and is trusted
//! with nothing: one too many costs a look, one lost costs a nap. Naps double from 50 us to 50 ms,
//! or to 1 ms where doorbells cannot be relied on.
//!
//! It never calls `MPI_Abort` and never waits for a peer without a deadline except in `init` and
//! `finalize`, which are collective: whoever starts the process bounds those from outside.
//! Detecting a peer's death is not done here: MPI does not tell.
#![allow(unsafe_code)]

use bytes::Bytes;
use mpi::ffi;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::{TimeSpec, TimeValLike};
use scrfs::buffers::{self, Buffer};
use scrfs::fabric::{Envelope, Fabric, FabricError, Lane, Waker};
use scrfs::id::Rank;
use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The largest message, either way; far above anything sent, far below what MPI counts in an int.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Messages taken in and not yet polled out stay below this, but for one message.
const RECEIVE_BYTES: usize = 64 << 20;

/// How long a rank yields and looks after the last event before it naps.
const ACTIVE: Duration = Duration::from_millis(1);
/// The first nap; each further one is twice as long.
const NAP_MIN: Duration = Duration::from_micros(50);
/// The longest nap when a doorbell will end it.
const NAP_MAX_WITH_DOORBELL: Duration = Duration::from_millis(50);
/// The longest nap when it will not, and while requests are young.
const NAP_MAX_WITHOUT: Duration = Duration::from_millis(1);
/// Requests older than this no longer shorten naps: their peer is slow or dead.
const REQUESTS_YOUNG: Duration = Duration::from_secs(1);
/// Looks between two naps: one message may need several calls to make its way through MPI.
const LOOKS_BETWEEN_NAPS: u32 = 16;
/// How long `init` waits for a neighbour's ring before it calls doorbells unreliable.
const DOORBELL_PROOF: Duration = Duration::from_millis(200);
/// How long `finalize` waits for requests to complete.
const FINALIZE_WAIT: Duration = Duration::from_secs(2);

/// The fabric of one MPI process in `MPI_COMM_WORLD`. Dropping it without
/// [`finalize`](Self::finalize) leaks what MPI may still touch.
pub struct MpiFabric {
    comm: ffi::MPI_Comm,
    me: Rank,
    size: u32,
    /// Incomplete requests; `operations` runs parallel to it.
    requests: Vec<ffi::MPI_Request>,
    operations: Vec<Operation>,
    /// Where `MPI_Testsome` writes; as long as `requests`.
    completed: Vec<c_int>,
    streams: HashMap<(Rank, Lane), Stream>,
    /// Complete and in order; waiting to be polled out.
    ready: VecDeque<Envelope>,
    /// Bytes in `ready`, in the streams and in receptions under way.
    held_bytes: usize,
    doorbell: Option<Doorbell>,
    wake: Arc<Wake>,
    /// Where the waker's datagrams arrive.
    woken: UnixDatagram,
    last_event: Instant,
    nap: Duration,
    looks: u32,
    /// A call failed or the fabric was finalized: nothing more is asked of MPI.
    down: bool,
    /// MPI is initialised FUNNELED: this value stays on its thread.
    _not_send: PhantomData<*const ()>,
}

/// What a request is about, and the memory MPI uses for it.
enum Operation {
    Send {
        _bytes: Bytes,
    },
    Receive {
        from: Rank,
        lane: Lane,
        index: u64,
        buffer: Buffer,
    },
}

/// The receptions of one (peer, lane) in the order in which MPI matched them.
#[derive(Default)]
struct Stream {
    /// Index of the front of `slots`, counted from the first message of the stream.
    first: u64,
    /// `None` while under way.
    slots: VecDeque<Option<Bytes>>,
}

struct Doorbell {
    socket: UdpSocket,
    /// One a rank; `None` for this one and for those that cannot be reached.
    peers: Vec<Option<SocketAddr>>,
    /// When a message last went to the rank.
    last_sent: Vec<Option<Instant>>,
    /// Every peer can ring here, as far as `init` could see.
    reliable: bool,
}

struct Wake {
    /// Set by the waker, taken by `poll`; kept if nobody waits.
    asked: AtomicBool,
    bell: UnixDatagram,
}

impl MpiFabric {
    /// Initialises MPI on this thread and meets the other ranks. Once a process.
    pub fn init() -> Result<Self, FabricError> {
        let mut provided: c_int = 0;
        // SAFETY: null argc and argv are allowed since MPI-2; `provided` outlives the call.
        let (code, funneled) = unsafe {
            let wanted = ffi::RSMPI_THREAD_FUNNELED;
            let (argc, argv) = (ptr::null_mut(), ptr::null_mut());
            (
                ffi::MPI_Init_thread(argc, argv, wanted, &mut provided),
                wanted,
            )
        };
        check("MPI_Init_thread", code)?;
        if provided < funneled {
            return Err(FabricError::Call {
                call: "MPI_Init_thread (level)",
                code: provided,
            });
        }
        // SAFETY: MPI is initialised; the statics are constants of the library; the out-pointers
        // are to locals that outlive the calls.
        let (comm, me, size) = unsafe {
            let world = ffi::RSMPI_COMM_WORLD;
            let code = ffi::MPI_Comm_set_errhandler(world, ffi::RSMPI_ERRORS_RETURN);
            check("MPI_Comm_set_errhandler", code)?;
            let mut comm = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(world, &mut comm))?;
            let code = ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN);
            check("MPI_Comm_set_errhandler", code)?;
            let (mut me, mut size): (c_int, c_int) = (-1, -1);
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut me))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
            (comm, me, size)
        };
        let (Ok(me), Ok(size)) = (u32::try_from(me), u32::try_from(size)) else {
            return Err(FabricError::Call {
                call: "MPI_Comm_rank (value)",
                code: me,
            });
        };
        let local = |call| {
            move |e: io::Error| FabricError::Call {
                call,
                code: e.raw_os_error().unwrap_or(-1),
            }
        };
        let (bell, woken) = UnixDatagram::pair().map_err(local("socketpair"))?;
        bell.set_nonblocking(true).map_err(local("fcntl"))?;
        woken.set_nonblocking(true).map_err(local("fcntl"))?;
        let doorbell = Doorbell::exchange(comm, me, size)?;
        if !doorbell.as_ref().is_some_and(|d| d.reliable) {
            tracing::info!(
                rank = me,
                "no doorbells between coordinators: polling each ms instead"
            );
        }
        Ok(Self {
            comm,
            me: Rank(me),
            size,
            requests: Vec::new(),
            operations: Vec::new(),
            completed: Vec::new(),
            streams: HashMap::new(),
            ready: VecDeque::new(),
            held_bytes: 0,
            doorbell,
            wake: Arc::new(Wake {
                asked: AtomicBool::new(false),
                bell,
            }),
            woken,
            last_event: Instant::now(),
            nap: NAP_MIN,
            looks: 0,
            down: false,
            _not_send: PhantomData,
        })
    }

    /// Whether every peer can end a nap of this rank, as far as `init` could prove.
    pub fn has_doorbells(&self) -> bool {
        self.doorbell.as_ref().is_some_and(|d| d.reliable)
    }

    /// The clean end, collective: completes what is under way and finalizes MPI, which waits for
    /// all ranks. Received messages nobody polled are dropped.
    ///
    /// On an error MPI is left as it is, with its buffers; the process must then end by
    /// [`abandon`](Self::abandon), since an ordinary exit would wait for the others.
    pub fn finalize(mut self) -> Result<(), FabricError> {
        self.up()?;
        let until = Instant::now() + FINALIZE_WAIT;
        loop {
            self.progress()?;
            self.held_bytes -= self.ready.drain(..).map(|e| e.bytes.len()).sum::<usize>();
            if self.requests.is_empty() {
                break;
            }
            if Instant::now() >= until {
                tracing::warn!(
                    requests = self.requests.len(),
                    "MPI requests never completed"
                );
                return Err(FabricError::Down);
            }
            std::thread::yield_now();
        }
        self.down = true;
        // SAFETY: called on the thread of `init`, no request is left, and `down` forbids every
        // later call.
        unsafe {
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut self.comm))?;
            check("MPI_Finalize", ffi::MPI_Finalize())
        }
    }

    /// Ends the process at once, without MPI's consent: the end of an epoch that failed. Nothing
    /// is flushed and no destructor runs, here or in any thread.
    pub fn abandon(code: i32) -> ! {
        // SAFETY: `_exit` has no preconditions.
        unsafe { libc::_exit(code) }
    }

    fn up(&self) -> Result<(), FabricError> {
        if self.down {
            Err(FabricError::Down)
        } else {
            Ok(())
        }
    }

    /// One look at MPI: takes in what has arrived and lets go of what is complete.
    fn progress(&mut self) -> Result<(), FabricError> {
        let result = self.receive().and_then(|()| self.complete());
        self.down |= result.is_err();
        result
    }

    /// Starts receptions of messages that have arrived.
    fn receive(&mut self) -> Result<(), FabricError> {
        while self.held_bytes < RECEIVE_BYTES {
            let mut found: c_int = 0;
            // SAFETY: `comm` is live, called on its thread; the out-pointers are to locals.
            // A zeroed status is plain data for MPI to fill.
            let (mut message, status, size) = unsafe {
                let mut message = ffi::RSMPI_MESSAGE_NULL;
                let mut status: ffi::MPI_Status = std::mem::zeroed();
                let (any, tag) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_ANY_TAG);
                let code =
                    ffi::MPI_Improbe(any, tag, self.comm, &mut found, &mut message, &mut status);
                check("MPI_Improbe", code)?;
                if found == 0 {
                    return Ok(());
                }
                let mut size: c_int = 0;
                let code = ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut size);
                check("MPI_Get_count", code)?;
                (message, status, size)
            };
            let lane = lane_of(status.MPI_TAG).ok_or(FabricError::Call {
                call: "MPI_Improbe (tag)",
                code: status.MPI_TAG,
            })?;
            let from = u32::try_from(status.MPI_SOURCE)
                .ok()
                .filter(|&rank| rank < self.size)
                .map(Rank)
                .ok_or(FabricError::Call {
                    call: "MPI_Improbe (source)",
                    code: status.MPI_SOURCE,
                })?;
            let bytes = usize::try_from(size)
                .ok()
                .filter(|&bytes| bytes <= MESSAGE_BYTES_MAX)
                .ok_or(FabricError::Call {
                    call: "MPI_Get_count (size)",
                    code: size,
                })?;
            let mut buffer = buffers::take(bytes);
            // SAFETY: `buffer` has `size` bytes; its heap block stays in place while the value moves
            // into `operations`, where it stays until the request completes.
            let request = unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let code = ffi::MPI_Imrecv(
                    buffer.as_mut_ptr().cast(),
                    size,
                    ffi::RSMPI_UINT8_T,
                    &mut message,
                    &mut request,
                );
                if code != 0 {
                    std::mem::forget(buffer);
                    return check("MPI_Imrecv", code);
                }
                request
            };
            if bytes > 1024 {
                // The sender of a large message has to take part; it may be napping by now.
                self.ring(from);
            }
            let stream = self.streams.entry((from, lane)).or_default();
            let index = stream.first + stream.slots.len() as u64;
            stream.slots.push_back(None);
            self.held_bytes += bytes;
            self.push(
                request,
                Operation::Receive {
                    from,
                    lane,
                    index,
                    buffer,
                },
            );
        }
        Ok(())
    }

    fn push(&mut self, request: ffi::MPI_Request, operation: Operation) {
        self.requests.push(request);
        self.operations.push(operation);
        self.last_event = Instant::now();
    }

    /// Lets go of completed requests and moves receptions that are next in order to `ready`.
    fn complete(&mut self) -> Result<(), FabricError> {
        if self.requests.is_empty() {
            return Ok(());
        }
        self.completed.resize(self.requests.len(), 0);
        let count = c_int::try_from(self.requests.len()).unwrap_or(c_int::MAX);
        let mut done: c_int = 0;
        // SAFETY: `requests` and `completed` each hold at least `count` elements.
        let code = unsafe {
            ffi::MPI_Testsome(
                count,
                self.requests.as_mut_ptr(),
                &mut done,
                self.completed.as_mut_ptr(),
                ffi::RSMPI_STATUSES_IGNORE,
            )
        };
        check("MPI_Testsome", code)?;
        // MPI_UNDEFINED, negative, would mean that no request is active.
        let done = usize::try_from(done).unwrap_or(0);
        if done == 0 {
            return Ok(());
        }
        self.last_event = Instant::now();
        let mut completed = std::mem::take(&mut self.completed);
        completed[..done].sort_unstable_by(|a, b| b.cmp(a));
        for &index in &completed[..done] {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            if index >= self.requests.len() {
                return Err(FabricError::Call {
                    call: "MPI_Testsome (index)",
                    code: done as i32,
                });
            }
            self.requests.swap_remove(index);
            if let Operation::Receive {
                from,
                lane,
                index,
                buffer,
            } = self.operations.swap_remove(index)
            {
                // As long as what was received: a matched message has the size its probe told.
                self.deliver(from, lane, index, buffer.freeze());
            }
        }
        self.completed = completed;
        Ok(())
    }

    fn deliver(&mut self, from: Rank, lane: Lane, index: u64, bytes: Bytes) {
        let stream = self.streams.entry((from, lane)).or_default();
        if let Some(slot) = stream.slots.get_mut((index - stream.first) as usize) {
            *slot = Some(bytes);
        }
        while let Some(Some(_)) = stream.slots.front() {
            stream.first += 1;
            if let Some(bytes) = stream.slots.pop_front().flatten() {
                self.ready.push_back(Envelope { from, lane, bytes });
            }
        }
    }

    /// Rings at `to` unless a message went there a moment ago, in which case it is awake.
    fn ring(&mut self, to: Rank) {
        let Some(doorbell) = &mut self.doorbell else {
            return;
        };
        let (rank, now) = (to.0 as usize, Instant::now());
        let (Some(&Some(peer)), Some(last)) =
            (doorbell.peers.get(rank), doorbell.last_sent.get_mut(rank))
        else {
            return;
        };
        if last.is_none_or(|last| now.duration_since(last) > ACTIVE / 2) {
            // A datagram that cannot be sent is one that is lost: it costs the peer a nap.
            let _ = doorbell.socket.send_to(&[], peer);
        }
        *last = Some(now);
    }

    /// Sleeps until a doorbell, the waker, or the end of the nap.
    fn nap(&mut self, left: Duration) -> Result<(), FabricError> {
        let young = !self.requests.is_empty() && self.last_event.elapsed() < REQUESTS_YOUNG;
        let longest = match &self.doorbell {
            Some(doorbell) if doorbell.reliable && !young => NAP_MAX_WITH_DOORBELL,
            _ => NAP_MAX_WITHOUT,
        };
        let length = self.nap.min(longest).min(left);
        self.nap = (self.nap * 2).min(NAP_MAX_WITH_DOORBELL);
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        if let Some(doorbell) = &self.doorbell {
            fds.push(PollFd::new(doorbell.socket.as_fd(), PollFlags::POLLIN));
        }
        let timeout = TimeSpec::nanoseconds(length.as_nanos().try_into().unwrap_or(i64::MAX));
        match ppoll(&mut fds, Some(timeout), None) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => {
                let rung = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false));
                if rung && let Some(doorbell) = &self.doorbell {
                    doorbell.hush();
                    self.last_event = Instant::now();
                }
            }
            Err(errno) => {
                return Err(FabricError::Call {
                    call: "ppoll",
                    code: errno as i32,
                });
            }
        }
        Ok(())
    }
}

impl Fabric for MpiFabric {
    fn me(&self) -> Rank {
        self.me
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn send(&mut self, to: Rank, lane: Lane, bytes: Bytes) -> Result<(), FabricError> {
        self.up()?;
        if to.0 >= self.size {
            return Err(FabricError::NoSuchRank {
                rank: to,
                size: self.size,
            });
        }
        if bytes.len() > MESSAGE_BYTES_MAX {
            let code = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
            return Err(FabricError::Call {
                call: "MPI_Isend (size)",
                code,
            });
        }
        if to == self.me {
            self.held_bytes += bytes.len();
            self.ready.push_back(Envelope {
                from: to,
                lane,
                bytes,
            });
            return Ok(());
        }
        self.ring(to);
        // SAFETY: the bytes neither move nor change while the `Bytes` beside the request lives,
        // and it lives until the request completes. Size and rank fit an int, see above.
        let (code, request) = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let code = ffi::MPI_Isend(
                bytes.as_ptr().cast(),
                bytes.len() as c_int,
                ffi::RSMPI_UINT8_T,
                to.0 as c_int,
                tag_of(lane),
                self.comm,
                &mut request,
            );
            (code, request)
        };
        if code != 0 {
            self.down = true;
            std::mem::forget(bytes);
            return check("MPI_Isend", code);
        }
        self.push(request, Operation::Send { _bytes: bytes });
        Ok(())
    }

    fn poll(&mut self, until: Instant) -> Result<Option<Envelope>, FabricError> {
        self.up()?;
        loop {
            // Looks at MPI also while messages wait, so that a busy receiver's sends move on.
            self.progress()?;
            if let Some(envelope) = self.ready.pop_front() {
                self.held_bytes -= envelope.bytes.len();
                (self.nap, self.looks) = (NAP_MIN, 0);
                return Ok(Some(envelope));
            }
            if self.wake.asked.swap(false, Ordering::AcqRel) {
                while self.woken.recv(&mut [0; 1]).is_ok() {}
                return Ok(None);
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            if now.duration_since(self.last_event) < ACTIVE {
                (self.nap, self.looks) = (NAP_MIN, 0);
                std::thread::yield_now();
            } else if self.looks < LOOKS_BETWEEN_NAPS {
                self.looks += 1;
            } else {
                self.looks = 0;
                self.nap(until - now)?;
            }
        }
    }

    fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        Arc::new(move || {
            if !wake.asked.swap(true, Ordering::AcqRel) {
                // Fails only when datagrams wait there already, which wake as well.
                let _ = wake.bell.send(&[1]);
            }
        })
    }
}

impl Drop for MpiFabric {
    fn drop(&mut self) {
        // MPI may still read and write these: they must outlive the process.
        std::mem::forget(std::mem::take(&mut self.operations));
        std::mem::forget(std::mem::take(&mut self.requests));
    }
}

/// What a rank tells the others about its doorbell, always this many bytes: host (u64), port
/// (u16, 0 for none), number of addresses (u8), then 16 bytes each, IPv4 mapped into IPv6.
const CARD_BYTES: usize = 11 + 16 * CARD_ADDRESSES_MAX;
const CARD_ADDRESSES_MAX: usize = 8;

/// Where a rank's doorbell can be reached.
#[derive(Default)]
struct Card {
    /// Equal for ranks that share a loopback interface: boot and network namespace.
    host: u64,
    port: u16,
    addresses: Vec<IpAddr>,
}

impl Card {
    fn encode(&self) -> [u8; CARD_BYTES] {
        let mut bytes = [0; CARD_BYTES];
        bytes[..8].copy_from_slice(&self.host.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.port.to_le_bytes());
        bytes[10] = self.addresses.len().min(CARD_ADDRESSES_MAX) as u8;
        for (slot, address) in bytes[11..].chunks_exact_mut(16).zip(&self.addresses) {
            let octets = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            slot.copy_from_slice(&octets);
        }
        bytes
    }

    /// Any bytes decode to some card: a wrong one only makes rings go astray.
    fn decode(bytes: &[u8; CARD_BYTES]) -> Self {
        let (head, rest) = bytes.split_at(11);
        let mut host = [0; 8];
        host.copy_from_slice(&head[..8]);
        let addresses = rest.chunks_exact(16).take(head[10].into()).map(|slot| {
            let mut octets = [0; 16];
            octets.copy_from_slice(slot);
            Ipv6Addr::from(octets).to_canonical()
        });
        Self {
            host: u64::from_le_bytes(host),
            port: u16::from_le_bytes([head[8], head[9]]),
            addresses: addresses.collect(),
        }
    }

    /// The address at which `self`'s owner should ring `peer`.
    fn route(&self, peer: &Card, masks: &[(IpAddr, IpAddr)], v4: bool) -> Option<SocketAddr> {
        if peer.port == 0 {
            return None;
        }
        if self.host != 0 && self.host == peer.host {
            let loopback: IpAddr = if v4 {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            return Some((loopback, peer.port).into());
        }
        // An address that is also ours (a bridge of containers, the same on every host) would
        // lead back here.
        let usable = |a: &&IpAddr| a.is_ipv4() == v4 && !self.addresses.contains(a);
        let near = |a: &&IpAddr| masks.iter().any(|(own, mask)| same_net(**a, *own, *mask));
        let mut candidates = peer.addresses.iter().filter(usable);
        let first = candidates.clone().next();
        candidates
            .find(near)
            .or(first)
            .map(|&address| (address, peer.port).into())
    }
}

/// Whether two addresses are equal under a mask; false across families.
fn same_net(a: IpAddr, b: IpAddr, mask: IpAddr) -> bool {
    match (a, b, mask) {
        (IpAddr::V4(a), IpAddr::V4(b), IpAddr::V4(m)) => (a & m) == (b & m),
        (IpAddr::V6(a), IpAddr::V6(b), IpAddr::V6(m)) => (a & m) == (b & m),
        _ => false,
    }
}

impl Doorbell {
    /// Binds, tells the others where, and tries whether a ring gets through. Collective, also
    /// where there is no network; `None` then.
    fn exchange(comm: ffi::MPI_Comm, me: u32, size: u32) -> Result<Option<Self>, FabricError> {
        let bound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))
            .and_then(|socket| {
                socket.set_nonblocking(true)?;
                let address = socket.local_addr()?;
                Ok((socket, address))
            });
        let (masks, mut card) = (interfaces(), Card::default());
        if let Ok((_, address)) = &bound {
            card.host = host_identity();
            card.port = address.port();
            let family = masks
                .iter()
                .map(|m| m.0)
                .filter(|a| a.is_ipv4() == address.is_ipv4());
            card.addresses = family.take(CARD_ADDRESSES_MAX).collect();
        }
        let own = card.encode();
        let mut all = vec![0_u8; CARD_BYTES * size as usize];
        // SAFETY: `own` holds, and `all` has room for `size` times, CARD_BYTES bytes.
        let code = unsafe {
            ffi::MPI_Allgather(
                own.as_ptr().cast(),
                CARD_BYTES as c_int,
                ffi::RSMPI_UINT8_T,
                all.as_mut_ptr().cast(),
                CARD_BYTES as c_int,
                ffi::RSMPI_UINT8_T,
                comm,
            )
        };
        check("MPI_Allgather", code)?;
        let Ok((socket, address)) = bound else {
            return Ok(None);
        };
        let (cards, _) = all.as_chunks::<CARD_BYTES>();
        let peers: Vec<_> = (0..)
            .zip(cards)
            .map(|(rank, bytes)| {
                let peer = Card::decode(bytes);
                let route = card.route(&peer, &masks, address.is_ipv4());
                route.filter(|_| rank != me)
            })
            .collect();
        let mut doorbell = Self {
            socket,
            last_sent: vec![None; peers.len()],
            // Routes are alike both ways: who cannot be rung from here cannot ring here.
            reliable: peers.iter().flatten().count() + 1 == size as usize,
            peers,
        };
        doorbell.reliable = doorbell.reliable && doorbell.prove(me, size);
        Ok(Some(doorbell))
    }

    /// Rings the right neighbour and waits for the left one: a firewall shows itself here.
    fn prove(&self, me: u32, size: u32) -> bool {
        if size == 1 {
            return true;
        }
        let right = (me as usize + 1) % size as usize;
        if let Some(Some(peer)) = self.peers.get(right) {
            let _ = self.socket.send_to(&[], peer);
        }
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = TimeSpec::milliseconds(DOORBELL_PROOF.as_millis() as i64);
        let heard = matches!(ppoll(&mut fds, Some(timeout), None), Ok(1..));
        self.hush();
        heard
    }

    /// Takes up what rang, but no more than a stranger could keep sending.
    fn hush(&self) {
        for _ in 0..64 {
            if self.socket.recv(&mut [0; 1]).is_err() {
                break;
            }
        }
    }
}

/// This node's addresses that others may reach, with their masks.
fn interfaces() -> Vec<(IpAddr, IpAddr)> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |storage: Option<nix::sys::socket::SockaddrStorage>| -> Option<IpAddr> {
        let storage = storage?;
        let v4 = storage.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    let reachable = |a: &IpAddr| match a {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    interfaces
        .filter(|i| i.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP))
        .filter_map(|i| Some((address(i.address)?, address(i.netmask)?)))
        .filter(|(a, _)| reachable(a))
        .collect()
}

/// Equal for processes that share a loopback interface; 0 where that cannot be told.
fn host_identity() -> u64 {
    let Ok(boot) = std::fs::read("/proc/sys/kernel/random/boot_id") else {
        return 0;
    };
    let Ok(namespace) = std::fs::read_link("/proc/self/ns/net") else {
        return 0;
    };
    let namespace = namespace.into_os_string().into_encoded_bytes();
    crc_fast::checksum(
        crc_fast::CrcAlgorithm::Crc64Nvme,
        &[boot, namespace].concat(),
    )
}

fn check(call: &'static str, code: c_int) -> Result<(), FabricError> {
    // MPI_SUCCESS is 0 by the standard.
    if code == 0 {
        Ok(())
    } else {
        Err(FabricError::Call { call, code })
    }
}

fn tag_of(lane: Lane) -> c_int {
    match lane {
        Lane::Control => 1,
        Lane::Data => 2,
    }
}

fn lane_of(tag: c_int) -> Option<Lane> {
    [Lane::Control, Lane::Data]
        .into_iter()
        .find(|&lane| tag_of(lane) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(host: u64, addresses: &[&str]) -> Card {
        let parse = |a: &&str| a.parse().expect("the test's addresses are well formed");
        Card {
            host,
            port: 7,
            addresses: addresses.iter().map(parse).collect(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("the test's addresses are well formed")
    }

    #[test]
    fn a_card_survives_the_wire() {
        let one = card(0x1234, &["10.0.0.1", "fd00::2"]);
        let back = Card::decode(&one.encode());
        assert_eq!(
            (back.host, back.port, back.addresses),
            (one.host, one.port, one.addresses)
        );
        assert!(Card::decode(&[0xff; CARD_BYTES]).addresses.len() <= CARD_ADDRESSES_MAX);
    }

    #[test]
    fn a_route_prefers_the_shared_network_and_never_leads_back() {
        let own = card(1, &["172.17.0.1", "10.1.0.5"]);
        let masks = [
            (ip("172.17.0.1"), ip("255.255.0.0")),
            (ip("10.1.0.5"), ip("255.255.255.0")),
        ];
        let route = |peer: &Card| own.route(peer, &masks, true).map(|a| a.ip());
        let peer = card(2, &["172.17.0.1", "192.168.9.9", "10.1.0.6"]);
        assert_eq!(route(&peer), Some(ip("10.1.0.6")));
        assert_eq!(
            route(&card(2, &["172.17.0.1", "192.168.9.9"])),
            Some(ip("192.168.9.9"))
        );
        assert_eq!(route(&card(2, &["172.17.0.1"])), None);
        assert_eq!(route(&card(1, &["10.1.0.5"])), Some(ip("127.0.0.1")));
        assert_eq!(
            route(&Card {
                port: 0,
                ..card(2, &["10.1.0.6"])
            }),
            None
        );
    }
}
