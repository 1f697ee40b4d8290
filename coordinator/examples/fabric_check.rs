//! Checks the MPI fabric among the ranks it is started with; `tests/mpi_fabric.rs` runs it:
//!
//! ```text
//! mpirun -n 4 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 fabric_check [SEED]
//! ```
//!
//! 1. Traffic: every rank sends to every rank, itself included, on both lanes, messages of
//!    log-uniform sizes up to 4 MiB; content by checksum, order by a number in each.
//! 2. Waiting: round trips, busy and after silence; CPU used while nothing happens; the waker.
//! 3. The end: `finalize` returns on every rank.
//!
//! Any failure is a panic, hence a non-zero exit. It measures loosely: its limits tell "works"
//! from "spins" or "polls by the second", not good from better.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs::fabric::{Envelope, Fabric, FabricError, Lane};
use scrfs::id::Rank;
use scrfs_coordinator::mpi::MpiFabric;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Messages a stream, sizes from empty to `SIZE_BITS_MAX` bits.
const MESSAGES: u32 = 60;
const SIZE_BITS_MAX: u32 = 22;
/// Header: number (u32), checksum (u64).
const HEADER_BYTES: usize = 12;
/// What ranks send to meet; no other message of these checks is of its length.
const MEET: &[u8] = b"meet";
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let seed = std::env::args().nth(1).map_or(Ok(1), |text| text.parse())?;
    let mut fabric = Ranks {
        fabric: MpiFabric::init()?,
        met: 0,
    };
    let wrong = Rank(fabric.size());
    let refused = fabric.send(wrong, Lane::Control, Bytes::new());
    assert!(matches!(refused, Err(FabricError::NoSuchRank { .. })));

    meet(&mut fabric);
    let start = Instant::now();
    let bytes = traffic(&mut fabric, seed);
    meet(&mut fabric);
    let rate = bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
    if fabric.me() == Rank(0) {
        println!("doorbells {}", fabric.has_doorbells());
        println!("traffic received_gb_per_s {rate:.2}");
    }
    if fabric.size() > 1 {
        let busy = round_trips(&mut fabric, Duration::ZERO, 200);
        meet(&mut fabric);
        let silent = round_trips(&mut fabric, Duration::from_millis(70), 15);
        meet(&mut fabric);
        if fabric.me() == Rank(0) {
            println!("round_trip busy_us p50 {:.0} p95 {:.0}", busy.0, busy.1);
            println!(
                "round_trip after_silence_us p50 {:.0} p95 {:.0}",
                silent.0, silent.1
            );
            assert!(
                silent.0 < 5_000.0,
                "a ring does not end a nap: {silent:?} us"
            );
        }
    }
    let share = idle(&mut fabric);
    println!("{} idle_cpu_percent {:.2}", fabric.me(), share * 100.0);
    assert!(
        share < 0.25,
        "{} uses {share} of a core while idle",
        fabric.me()
    );
    meet(&mut fabric);
    woken(&mut fabric);
    meet(&mut fabric);
    fabric.fabric.finalize()?;
    Ok(())
}

/// The fabric, and the reports for the next [`meet`] that came while something else went on.
struct Ranks {
    fabric: MpiFabric,
    met: u32,
}

impl Ranks {
    /// The next message that is not a report for a meeting.
    fn poll(&mut self, until: Instant) -> Option<Envelope> {
        loop {
            let envelope = self.fabric.poll(until).expect("the fabric works")?;
            if envelope.lane != Lane::Control || envelope.bytes[..] != MEET[..] {
                return Some(envelope);
            }
            self.met += 1;
        }
    }
}

impl std::ops::Deref for Ranks {
    type Target = MpiFabric;

    fn deref(&self) -> &MpiFabric {
        &self.fabric
    }
}

impl std::ops::DerefMut for Ranks {
    fn deref_mut(&mut self) -> &mut MpiFabric {
        &mut self.fabric
    }
}

/// The next message, which must come.
fn next(ranks: &mut Ranks) -> Envelope {
    let envelope = ranks.poll(Instant::now() + DEADLINE);
    envelope.unwrap_or_else(|| panic!("{}: no message came", ranks.me()))
}

/// A barrier over the fabric: all report to rank 0, rank 0 answers all.
fn meet(ranks: &mut Ranks) {
    let send = |ranks: &mut Ranks, to| {
        let word = Bytes::from_static(MEET);
        ranks
            .send(Rank(to), Lane::Control, word)
            .expect("the fabric works");
    };
    let waits = if ranks.me() == Rank(0) {
        ranks.size() - 1
    } else {
        1
    };
    if ranks.me() != Rank(0) {
        send(ranks, 0);
    }
    let until = Instant::now() + DEADLINE;
    while ranks.met < waits {
        let envelope = ranks.fabric.poll(until).expect("the fabric works");
        let envelope = envelope.unwrap_or_else(|| panic!("{}: alone at a meeting", ranks.me()));
        assert_eq!(&envelope.bytes[..], MEET);
        ranks.met += 1;
    }
    ranks.met -= waits;
    if ranks.me() == Rank(0) {
        (1..ranks.size()).for_each(|rank| send(ranks, rank));
    }
}

/// All to all; returns the bytes this rank received.
fn traffic(fabric: &mut Ranks, seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed << 32 | u64::from(fabric.me().0));
    let mut noise = vec![0; 1 << SIZE_BITS_MAX];
    random.fill(&mut noise[..]);
    let mut expected: HashMap<(Rank, Lane), u32> = HashMap::new();
    let (mut received, mut bytes) = (0, 0);
    let streams = 2 * fabric.size();
    let mut check = |envelope: Envelope| {
        let (header, body) = envelope.bytes.split_at(HEADER_BYTES);
        let number = expected.entry((envelope.from, envelope.lane)).or_default();
        let (from, lane) = (envelope.from, envelope.lane);
        assert_eq!(
            header[..4],
            number.to_le_bytes(),
            "{from} {lane:?} out of order"
        );
        let sum = checksum(CrcAlgorithm::Crc64Nvme, body).to_le_bytes();
        assert_eq!(
            header[4..],
            sum,
            "{from} {lane:?} {number} has wrong content"
        );
        *number += 1;
        bytes += envelope.bytes.len();
    };
    for number in 0..MESSAGES {
        for stream in 0..streams {
            let lane = if stream % 2 == 0 {
                Lane::Control
            } else {
                Lane::Data
            };
            let bits = random.random_range(0..=SIZE_BITS_MAX);
            let size = random.random_range(0..=(1_usize << bits) - 1);
            let start = random.random_range(0..=noise.len() - size);
            let body = &noise[start..start + size];
            let mut message = Vec::with_capacity(HEADER_BYTES + size);
            message.extend_from_slice(&number.to_le_bytes());
            message.extend_from_slice(&checksum(CrcAlgorithm::Crc64Nvme, body).to_le_bytes());
            message.extend_from_slice(body);
            let to = Rank(stream / 2);
            fabric
                .send(to, lane, message.into())
                .expect("the fabric works");
        }
        // Looks only now and then, so that messages pile up and complete out of order.
        if number % 8 == 7 {
            let now = Instant::now();
            while let Some(envelope) = fabric.poll(now) {
                check(envelope);
                received += 1;
            }
        }
    }
    while received < MESSAGES * streams {
        check(next(fabric));
        received += 1;
    }
    bytes
}

/// Rank 0 and 1 play ping-pong; microseconds, median and 95th percentile, at rank 0.
fn round_trips(fabric: &mut Ranks, silence: Duration, count: usize) -> (f64, f64) {
    let ball = Bytes::from_static(&[7; 64]);
    let mut times = Vec::new();
    for _ in 0..count {
        match fabric.me().0 {
            0 => {
                let rest = Instant::now() + silence;
                while Instant::now() < rest {
                    assert_eq!(fabric.poll(rest), None);
                }
                let start = Instant::now();
                fabric
                    .send(Rank(1), Lane::Control, ball.clone())
                    .expect("the fabric works");
                assert_eq!(next(fabric).bytes, ball);
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            1 => {
                assert_eq!(next(fabric).bytes, ball);
                fabric
                    .send(Rank(0), Lane::Control, ball.clone())
                    .expect("the fabric works");
            }
            _ => {}
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .unwrap_or_default()
    };
    (at(50), at(95))
}

/// The share of a core this process uses while it waits for nothing.
fn idle(fabric: &mut Ranks) -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask about itself");
        [usage.user_time(), usage.system_time()]
            .map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6)
            .iter()
            .sum::<f64>()
    };
    let (start, before) = (Instant::now(), used());
    let until = start + Duration::from_millis(1500);
    assert_eq!(fabric.poll(until), None);
    (used() - before) / start.elapsed().as_secs_f64()
}

/// A wake from another thread ends a long wait, and one given before is not lost.
fn woken(fabric: &mut Ranks) {
    let (waker, start) = (fabric.waker(), Instant::now());
    let until = start + Duration::from_secs(20);
    waker();
    assert_eq!(fabric.poll(until), None);
    // By now naps are long: this falls into the middle of one of about 50 ms.
    let thread = std::thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "when it wakes is what is tested")]
        std::thread::sleep(Duration::from_millis(70));
        waker();
        Instant::now()
    });
    assert_eq!(fabric.poll(until), None);
    let awake = Instant::now();
    let rung = thread.join().expect("the waker's thread does not panic");
    assert!(
        start.elapsed() >= Duration::from_millis(70),
        "the first wake was counted twice"
    );
    assert!(
        awake < rung + Duration::from_millis(15),
        "woken late: {:?}",
        awake - rung
    );
}
