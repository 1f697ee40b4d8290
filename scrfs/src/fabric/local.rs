//! The fabric inside one process: for tests, for simulation, and for a cluster of one.
//!
//! It gives what [`Fabric`] promises and no more. Messages of one (pair, lane) arrive whole and in
//! order; which pair or lane is served next is drawn from a seed, so that one thread driving all
//! ranks replays exactly. Threads may drive one rank each; then their schedule is not the seed's.
//!
//! [`Killer::kill`] makes a rank silent for ever, as a loss of power does: what is sent to it
//! vanishes, it receives nothing, what it sends goes nowhere, and of what it had sent each stream
//! loses a random tail. Nobody is told. Its own calls go on returning `Ok`.
//!
//! The receiver gets a copy, as it does over a network: a sender's buffer is free once its message
//! was received, whatever the receiver does with it. (Senders count on that to bound memory.)
//!
//! Memory is not bounded here: queues hold what was sent and not yet received. Time enters only as
//! the deadline of a wait; there are no delays and no losses other than a kill's.

use super::{Envelope, Fabric, FabricError, Lane, Waker};
use crate::buffers;
use crate::id::Rank;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// One rank's end of an in-process fabric.
pub struct LocalFabric {
    me: Rank,
    hub: Arc<Hub>,
}

/// Makes ranks of one in-process fabric silent; from any thread.
#[derive(Clone)]
pub struct Killer {
    hub: Arc<Hub>,
}

struct Hub {
    /// The only lock; no call is made while it is held.
    inboxes: Mutex<Inboxes>,
    /// One a rank: signalled when its inbox gains a message or it is woken.
    bells: Vec<Condvar>,
}

struct Inboxes {
    ranks: Vec<Inbox>,
    /// Draws how much of a dead rank's messages is lost.
    random: Random,
}

struct Inbox {
    alive: bool,
    /// A wake nobody has taken yet: kept, so that one just before a wait is not lost.
    woken: bool,
    /// Only streams that hold something are present.
    streams: BTreeMap<(Rank, LaneKey), VecDeque<Bytes>>,
    /// Draws which stream is served next.
    random: Random,
}

/// `Lane` in an order of its own, for the map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LaneKey {
    Control,
    Data,
}

/// SplitMix64: small, seedable, and the same on every platform.
struct Random(u64);

/// A fabric of `size` ranks, in order of rank; `seed` decides how streams interleave.
pub fn cluster(size: u32, seed: u64) -> Vec<LocalFabric> {
    let mut random = Random(seed);
    let ranks = (0..size)
        .map(|_| Inbox {
            alive: true,
            woken: false,
            streams: BTreeMap::new(),
            random: Random(random.next()),
        })
        .collect();
    let hub = Arc::new(Hub {
        inboxes: Mutex::new(Inboxes { ranks, random }),
        bells: (0..size).map(|_| Condvar::new()).collect(),
    });
    (0..size)
        .map(|rank| LocalFabric {
            me: Rank(rank),
            hub: hub.clone(),
        })
        .collect()
}

/// A fabric of one rank: what a laptop uses. Everything sent comes back to the sender.
pub fn solo() -> LocalFabric {
    cluster(1, 0)
        .pop()
        .expect("cluster(1, _) has exactly one rank")
}

impl LocalFabric {
    /// A handle that kills ranks of this fabric.
    pub fn killer(&self) -> Killer {
        Killer {
            hub: self.hub.clone(),
        }
    }
}

impl Killer {
    /// Silences `rank`; again, or for a rank that does not exist, does nothing.
    pub fn kill(&self, rank: Rank) {
        let mut inboxes = self.hub.lock();
        let Inboxes { ranks, random } = &mut *inboxes;
        match ranks.get_mut(rank.0 as usize) {
            Some(inbox) if inbox.alive => {
                inbox.alive = false;
                inbox.streams.clear();
            }
            _ => return,
        }
        for inbox in ranks {
            for lane in [LaneKey::Control, LaneKey::Data] {
                if let Some(stream) = inbox.streams.get_mut(&(rank, lane)) {
                    stream.truncate(random.below(stream.len() + 1));
                    if stream.is_empty() {
                        inbox.streams.remove(&(rank, lane));
                    }
                }
            }
        }
    }

    /// Whether `rank` exists and was not killed.
    pub fn is_alive(&self, rank: Rank) -> bool {
        self.hub
            .lock()
            .ranks
            .get(rank.0 as usize)
            .is_some_and(|inbox| inbox.alive)
    }
}

impl Fabric for LocalFabric {
    fn me(&self) -> Rank {
        self.me
    }

    fn size(&self) -> u32 {
        self.hub.size()
    }

    fn send(&mut self, to: Rank, lane: Lane, bytes: Bytes) -> Result<(), FabricError> {
        let size = self.hub.size();
        if to.0 >= size {
            return Err(FabricError::NoSuchRank { rank: to, size });
        }
        let mut inboxes = self.hub.lock();
        if !inboxes.ranks[self.me.0 as usize].alive || !inboxes.ranks[to.0 as usize].alive {
            return Ok(());
        }
        let streams = &mut inboxes.ranks[to.0 as usize].streams;
        streams
            .entry((self.me, lane.into()))
            .or_default()
            .push_back(bytes);
        drop(inboxes);
        self.hub.bells[to.0 as usize].notify_all();
        Ok(())
    }

    fn poll(&mut self, until: Instant) -> Result<Option<Envelope>, FabricError> {
        let mut inboxes = self.hub.lock();
        loop {
            let inbox = &mut inboxes.ranks[self.me.0 as usize];
            if let Some(Envelope { from, lane, bytes }) = inbox.take() {
                drop(inboxes);
                let mut copy = buffers::take(bytes.len());
                copy.copy_from_slice(&bytes);
                let bytes = copy.freeze();
                return Ok(Some(Envelope { from, lane, bytes }));
            }
            if std::mem::take(&mut inbox.woken) {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            inboxes = self.hub.bells[self.me.0 as usize]
                .wait_timeout(inboxes, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn waker(&self) -> Waker {
        let (me, hub) = (self.me, self.hub.clone());
        Arc::new(move || {
            hub.lock().ranks[me.0 as usize].woken = true;
            hub.bells[me.0 as usize].notify_all();
        })
    }
}

impl Hub {
    fn size(&self) -> u32 {
        u32::try_from(self.bells.len()).expect("as many bells as the u32 size asked for")
    }

    /// Queues stay consistent when a holder panics: each change to them is one call.
    fn lock(&self) -> MutexGuard<'_, Inboxes> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    /// The first message of a stream drawn at random.
    fn take(&mut self) -> Option<Envelope> {
        if self.streams.is_empty() {
            return None;
        }
        let drawn = self.random.below(self.streams.len());
        let (&key, stream) = self.streams.iter_mut().nth(drawn)?;
        let bytes = stream.pop_front()?;
        if stream.is_empty() {
            self.streams.remove(&key);
        }
        Some(Envelope {
            from: key.0,
            lane: key.1.into(),
            bytes,
        })
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..limit`; `limit` is small, so the modulo's bias does not matter.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

impl From<Lane> for LaneKey {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Control => LaneKey::Control,
            Lane::Data => LaneKey::Data,
        }
    }
}

impl From<LaneKey> for Lane {
    fn from(key: LaneKey) -> Self {
        match key {
            LaneKey::Control => Lane::Control,
            LaneKey::Data => Lane::Data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::time::Duration;

    fn text(n: u32) -> Bytes {
        Bytes::copy_from_slice(&n.to_le_bytes())
    }

    /// Three ranks send ten messages a lane to rank 3; the order in which they come out.
    fn arrivals(seed: u64) -> Vec<(Rank, Lane, u32)> {
        let mut fabrics = cluster(4, seed);
        for n in 0..10 {
            for fabric in &mut fabrics[..3] {
                for lane in [Lane::Control, Lane::Data] {
                    fabric.send(Rank(3), lane, text(n)).expect("rank 3 exists");
                }
            }
        }
        drain(&mut fabrics[3])
    }

    fn drain(fabric: &mut LocalFabric) -> Vec<(Rank, Lane, u32)> {
        let now = Instant::now();
        std::iter::from_fn(|| fabric.poll(now).expect("a local fabric does not fail"))
            .map(|e| {
                let n = e.bytes[..].try_into().expect("the tests send four bytes");
                (e.from, e.lane, u32::from_le_bytes(n))
            })
            .collect()
    }

    #[test]
    fn each_stream_is_in_order_and_the_interleaving_is_the_seeds() {
        let first = arrivals(7);
        assert_eq!(first.len(), 60);
        let mut next: HashMap<(Rank, Lane), u32> = HashMap::new();
        for &(from, lane, n) in &first {
            let expected = next.entry((from, lane)).or_default();
            assert_eq!(n, *expected, "{from} {lane:?}");
            *expected += 1;
        }
        assert_eq!(first, arrivals(7));
        assert_ne!(first, arrivals(8));
    }

    #[test]
    fn a_killed_rank_is_silent_and_its_streams_lose_only_a_tail() {
        let mut lengths = Vec::new();
        for seed in 0..32 {
            let mut fabrics = cluster(3, seed);
            let killer = fabrics[0].killer();
            for n in 0..8 {
                fabrics[1]
                    .send(Rank(0), Lane::Data, text(n))
                    .expect("rank 0 exists");
                fabrics[0]
                    .send(Rank(1), Lane::Data, text(n))
                    .expect("rank 1 exists");
            }
            killer.kill(Rank(1));
            assert!(!killer.is_alive(Rank(1)) && killer.is_alive(Rank(0)));
            fabrics[0]
                .send(Rank(1), Lane::Control, text(0))
                .expect("the loss is silent");
            fabrics[1]
                .send(Rank(0), Lane::Data, text(99))
                .expect("the dead does not know");
            assert!(drain(&mut fabrics[1]).is_empty());
            let got: Vec<u32> = drain(&mut fabrics[0]).into_iter().map(|m| m.2).collect();
            assert!(got.iter().copied().eq(0..got.len() as u32), "{got:?}");
            lengths.push(got.len());
        }
        assert!(lengths.contains(&0) && lengths.contains(&8), "{lengths:?}");
    }

    #[test]
    fn one_thread_a_rank_all_to_all() {
        let threads: Vec<_> = cluster(4, 1)
            .into_iter()
            .map(|mut fabric| {
                std::thread::spawn(move || {
                    for n in 0..100 {
                        for to in 0..4 {
                            fabric
                                .send(Rank(to), Lane::Control, text(n))
                                .expect("it exists");
                        }
                    }
                    let mut next = [0; 4];
                    let start = Instant::now();
                    let until = start + Duration::from_secs(20);
                    while next != [100; 4] {
                        let envelope = fabric.poll(until).expect("never fails");
                        let envelope = envelope.expect("all of them come before the deadline");
                        let from = envelope.from.0 as usize;
                        assert_eq!(envelope.bytes, text(next[from]));
                        next[from] += 1;
                    }
                    assert!(
                        start.elapsed() < Duration::from_secs(10),
                        "waited despite messages"
                    );
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("the rank's thread panicked");
        }
    }

    #[test]
    fn a_wake_ends_a_wait_also_when_it_comes_first() {
        let mut fabric = solo();
        let (waker, long) = (fabric.waker(), Duration::from_secs(20));
        let start = Instant::now();
        waker();
        assert_eq!(fabric.poll(start + long).expect("never fails"), None);
        let other = std::thread::spawn(move || {
            #[expect(clippy::disallowed_methods, reason = "when it wakes is what is tested")]
            std::thread::sleep(Duration::from_millis(30));
            waker();
        });
        assert_eq!(fabric.poll(start + long).expect("never fails"), None);
        assert!(
            start.elapsed() >= Duration::from_millis(30),
            "the first wake was used up"
        );
        assert!(start.elapsed() < long / 2);
        other.join().expect("the waker's thread panicked");
    }

    #[test]
    fn a_received_message_leaves_its_sender_free() {
        struct Owned {
            _held: Arc<()>,
        }
        impl AsRef<[u8]> for Owned {
            fn as_ref(&self) -> &[u8] {
                b"lent"
            }
        }
        let (mut fabric, lent) = (solo(), Arc::new(()));
        let bytes = Bytes::from_owner(Owned {
            _held: lent.clone(),
        });
        fabric
            .send(Rank(0), Lane::Data, bytes)
            .expect("rank 0 exists");
        let got = fabric
            .poll(Instant::now())
            .expect("never fails")
            .expect("it was sent");
        assert_eq!(
            (&got.bytes[..], Arc::strong_count(&lent)),
            (&b"lent"[..], 1)
        );
    }

    #[test]
    fn solo_sends_to_itself_and_knows_its_size() {
        let mut fabric = solo();
        assert_eq!((fabric.me(), fabric.size()), (Rank(0), 1));
        fabric
            .send(Rank(0), Lane::Data, text(5))
            .expect("rank 0 exists");
        assert_eq!(drain(&mut fabric), [(Rank(0), Lane::Data, 5)]);
        let error = fabric
            .send(Rank(1), Lane::Data, text(5))
            .expect_err("there is no rank 1");
        assert!(matches!(
            error,
            FabricError::NoSuchRank {
                rank: Rank(1),
                size: 1
            }
        ));
    }
}
