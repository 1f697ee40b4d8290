//! The engine over the in-process fabric: whole clusters in one thread, in a time of their own.
//!
//! Faults are put in where the fabric's messages pass (`World::damage`), never inside the engine.

use super::*;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scrfs::fabric::local::{self, LocalFabric};
use scrfs::fabric::{Fabric, Lane};
use scrfs::redundancy::{Scheme, SetGeometry, Stream};

mod reads;

const DATASET: DatasetId = DatasetId(5);
const CHUNK: u64 = 8192;

/// Streams of slots in memory.
#[derive(Default, Clone)]
struct MemoryStore {
    streams: BTreeMap<(Slot, Stream), Vec<u8>>,
    crcs: HashMap<Extent, u32>,
    served: HashMap<Extent, u32>,
    written: HashMap<Extent, u32>,
    damaged: std::collections::HashSet<Extent>,
}

impl MemoryStore {
    fn range(&self, extent: Extent) -> Option<&[u8]> {
        let stream = self.streams.get(&(extent.slot, extent.stream))?;
        let start = usize::try_from(extent.offset).ok()?;
        stream.get(start..start.checked_add(extent.len as usize)?)
    }
}

impl PartStore for MemoryStore {
    fn read(&self, dataset: DatasetId, extent: Extent) -> Result<Bytes, TransferError> {
        let missing = TransferError::Missing { dataset, extent };
        if dataset != DATASET {
            return Err(missing);
        }
        self.range(extent)
            .map(Bytes::copy_from_slice)
            .ok_or(missing)
    }

    fn write(
        &mut self,
        dataset: DatasetId,
        extent: Extent,
        bytes: &[u8],
        crc: u32,
    ) -> Result<(), TransferError> {
        assert_eq!(
            (dataset, bytes.len(), crc),
            (DATASET, extent.len as usize, crc32c(bytes))
        );
        let stream = self
            .streams
            .entry((extent.slot, extent.stream))
            .or_default();
        let start = extent.offset as usize;
        if stream.len() < start + bytes.len() {
            stream.resize(start + bytes.len(), 0);
        }
        stream[start..start + bytes.len()].copy_from_slice(bytes);
        assert_eq!(
            self.written.insert(extent, crc),
            None,
            "each unit is written once"
        );
        Ok(())
    }

    fn expected_crc(&self, _: DatasetId, extent: Extent) -> Option<u32> {
        self.crcs.get(&extent).copied()
    }

    fn served(&mut self, _: DatasetId, extent: Extent, crc: u32) {
        self.served.insert(extent, crc);
    }

    fn damaged(&mut self, _: DatasetId, extent: Extent) {
        self.damaged.insert(extent);
    }
}

type Damage = Box<dyn FnMut(Rank, Rank, Bytes) -> Option<Bytes>>;

struct World {
    /// The time of the engines; moved by the tests, ahead of the clock.
    now: Instant,
    /// In the past by the clock, so that polling the fabric only looks.
    past: Instant,
    fabrics: Vec<LocalFabric>,
    engines: Vec<Engine>,
    stores: Vec<MemoryStore>,
    events: Vec<(Rank, JobEvent)>,
    /// What arrives instead of what was sent; by sender and receiver.
    damage: Damage,
    window_max: u64,
    lent_max: u64,
}

impl World {
    fn new(size: u32, seed: u64, limits: Limits) -> Self {
        Self {
            now: Instant::now(),
            past: Instant::now(),
            fabrics: local::cluster(size, seed),
            engines: (0..size)
                .map(|rank| Engine::new(Rank(rank), limits))
                .collect(),
            stores: vec![MemoryStore::default(); size as usize],
            events: Vec::new(),
            damage: Box::new(|_, _, bytes| Some(bytes)),
            window_max: 0,
            lent_max: 0,
        }
    }

    /// Random parts of the given lengths, part i on rank i; the geometry of all of them.
    fn fill(&mut self, scheme: Scheme, lengths: &[u64], random: &mut StdRng) -> SetGeometry {
        for (rank, &len) in (0..).zip(lengths) {
            let mut data = vec![0; len as usize];
            random.fill(&mut data[..]);
            self.stores[rank as usize]
                .streams
                .insert((Slot(rank), Stream::Data), data);
        }
        let members = (0..).map(Slot).zip(lengths.iter().copied()).collect();
        SetGeometry::new(scheme, members, CHUNK).expect("the tests ask for sound sets")
    }

    fn holders(&self) -> BTreeMap<Slot, Rank> {
        (0..self.engines.len() as u32)
            .map(|n| (Slot(n), Rank(n)))
            .collect()
    }

    fn encode(&mut self, geometry: &SetGeometry, unit: u32) {
        let holders = self.holders();
        for rank in 0..self.engines.len() {
            let plan = Box::new(geometry.encode(Slot(rank as u32), unit));
            self.engines[rank].start(JobId(1), DATASET, plan, holders.clone());
        }
    }

    /// One round: everybody sends all it has to, then takes in what has arrived.
    fn step(&mut self) -> bool {
        let mut moved = false;
        let (now, mut fresh) = (self.now, Vec::new());
        for rank in 0..self.engines.len() {
            let (engine, store) = (&mut self.engines[rank], &mut self.stores[rank]);
            let fabric = &mut self.fabrics[rank];
            while let Some((to, bytes)) = engine.poll_send(now, store) {
                assert!(bytes.len() <= UNIT_BYTES_MAX as usize);
                fabric
                    .send(to, Lane::Data, bytes)
                    .expect("plans name ranks that exist");
                self.lent_max = self.lent_max.max(engine.lent_bytes());
                moved = true;
            }
            self.window_max = self.window_max.max(engine.window_bytes());
            while let Some(envelope) = fabric.poll(self.past).expect("a local fabric works") {
                moved = true;
                let (from, me) = (envelope.from, Rank(rank as u32));
                if let Some(bytes) = (self.damage)(from, me, envelope.bytes) {
                    // What it drops, it drops: the tests look at the jobs.
                    let _ = engine.handle(now, from, bytes, store);
                }
            }
            engine.tick(now);
            fresh
                .extend(std::iter::from_fn(|| engine.poll_event()).map(|e| (Rank(rank as u32), e)));
        }
        self.events.extend(fresh);
        moved
    }

    /// Until nothing moves and no deadline is left within `limit`.
    fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        loop {
            while self.step() {}
            let deadlines = self
                .engines
                .iter()
                .filter_map(|e| e.next_deadline(self.now))
                .min();
            match deadlines {
                Some(at) if at <= end => self.now = at.max(self.now + Duration::from_micros(1)),
                _ => return,
            }
        }
    }

    fn outcomes(&mut self) -> Vec<(Rank, JobEvent)> {
        let progress = |e: &(Rank, JobEvent)| !matches!(e.1, JobEvent::Progress { .. });
        let mut events: Vec<_> = self.events.drain(..).filter(progress).collect();
        events.sort_by_key(|(rank, _)| *rank);
        events
    }

    fn all_done(&mut self) {
        let engines = self.engines.len();
        let outcomes = self.outcomes();
        let done = outcomes
            .iter()
            .filter(|(_, e)| matches!(e, JobEvent::Done { .. }))
            .count();
        assert_eq!((done, outcomes.len()), (engines, engines), "{outcomes:?}");
        assert!(
            self.engines
                .iter()
                .all(|e| !e.has_work() && e.window_bytes() == 0)
        );
        assert!(self.engines.iter().all(|e| e.lent_bytes() == 0));
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

fn small() -> Limits {
    Limits {
        window_bytes: 64 << 10,
        serve_bytes: 32 << 10,
        ..Limits::default()
    }
}

/// Encode, lose as many as the scheme survives, rebuild data and parity, compare all bytes.
fn encode_lose_rebuild(scheme: Scheme, size: u32, seed: u64, damage: Option<Damage>) {
    let mut random = StdRng::seed_from_u64(seed);
    let attempts = if damage.is_some() { 50 } else { 1 };
    let mut world = World::new(
        size,
        seed,
        Limits {
            attempts,
            ..small()
        },
    );
    if let Some(damage) = damage {
        world.damage = damage;
    }
    let lengths: Vec<u64> = (0..size)
        .map(|_| {
            if random.random_bool(0.1) {
                0
            } else {
                random.random_range(0..20 * CHUNK)
            }
        })
        .collect();
    let geometry = world.fill(scheme, &lengths, &mut random);
    let unit = random.random_range(1000..10_000);
    world.encode(&geometry, unit);
    world.run(PATIENCE);
    world.all_done();
    for (rank, store) in world.stores.iter().enumerate() {
        let parity = store
            .streams
            .get(&(Slot(rank as u32), Stream::Parity))
            .map_or(0, Vec::len);
        assert_eq!(
            parity as u64,
            geometry.parity_len(Slot(rank as u32)),
            "seed {seed}"
        );
        for (&extent, &crc) in store.served.iter().chain(&store.written) {
            let bytes = store
                .range(extent)
                .expect("what was read or written is there");
            assert_eq!(crc32c(bytes), crc, "seed {seed}: {extent:?}");
        }
    }
    let whole = world.stores.clone();
    let count = scheme.tolerates().min(size - 1);
    let mut lost: Vec<Slot> = (0..size).map(Slot).collect();
    while lost.len() > count as usize {
        lost.remove(random.random_range(0..lost.len()));
    }
    for slot in &lost {
        world.stores[slot.0 as usize] = MemoryStore::default();
    }
    for slot in &lost {
        let plan = geometry
            .rebuild(&lost, *slot, unit)
            .expect("within what the scheme survives");
        let holders = world.holders();
        world.engines[slot.0 as usize].start(JobId(2), DATASET, Box::new(plan), holders);
    }
    world.run(PATIENCE);
    assert_eq!(world.outcomes().len(), lost.len());
    for slot in &lost {
        let plan = Box::new(geometry.encode(*slot, unit));
        let holders = world.holders();
        world.engines[slot.0 as usize].start(JobId(3), DATASET, plan, holders);
    }
    world.run(PATIENCE);
    let outcomes = world.outcomes();
    assert!(
        outcomes
            .iter()
            .all(|(_, e)| matches!(e, JobEvent::Done { .. })),
        "{outcomes:?}"
    );
    for (rank, (now, before)) in world.stores.iter().zip(&whole).enumerate() {
        for (key, bytes) in before.streams.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            assert!(
                now.streams.get(key) == Some(bytes),
                "seed {seed} rank {rank} {key:?}"
            );
        }
    }
    assert!(
        world.window_max <= small().window_bytes,
        "{}",
        world.window_max
    );
    let lent_max = small().serve_bytes + u64::from(unit);
    assert!(
        world.lent_max <= lent_max,
        "{} of {lent_max}",
        world.lent_max
    );
}

#[test]
fn rebuilt_bytes_are_the_bytes_that_were_lost() {
    for seed in 0..60 {
        let size = 2 + (seed % 5) as u32;
        encode_lose_rebuild(Scheme::Xor, size, seed, None);
        encode_lose_rebuild(Scheme::Partner { copies: 1 }, size, seed, None);
        let double = Scheme::ReedSolomon { parities: 2 };
        encode_lose_rebuild(double.fitted_to(size), size, seed, None);
    }
}

#[test]
fn bytes_damaged_on_the_way_are_asked_for_again() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let damage = Box::new(move |_: Rank, _: Rank, bytes: Bytes| {
            let mut bytes = bytes.to_vec();
            match random.random_range(0..100) {
                0 => {
                    let index = random.random_range(0..bytes.len());
                    bytes[index] ^= 0x10;
                }
                1 => bytes.truncate(random.random_range(0..bytes.len())),
                2 => return None,
                _ => {}
            }
            Some(bytes.into())
        });
        encode_lose_rebuild(Scheme::Xor, 4, seed, Some(damage));
    }
}

#[test]
fn a_unit_that_keeps_arriving_damaged_fails_its_job_with_both_checksums() {
    let mut world = World::new(3, 1, small());
    let geometry = world.fill(Scheme::Xor, &[50_000; 3], &mut StdRng::seed_from_u64(1));
    world.damage = Box::new(move |from, to, bytes| {
        let payload = (from, to) == (Rank(1), Rank(0)) && Message::decode(&bytes).is_err();
        if !payload {
            return Some(bytes);
        }
        let mut bytes = bytes.to_vec();
        bytes[0] ^= 1;
        Some(bytes.into())
    });
    world.encode(&geometry, 4096);
    world.run(PATIENCE);
    let outcomes = world.outcomes();
    let (Rank(0), JobEvent::Failed { error, .. }) = &outcomes[0] else {
        panic!("rank 0 cannot have parity: {outcomes:?}");
    };
    let TransferError::Checksum {
        from: Rank(1),
        expected,
        found,
        extent,
        ..
    } = *error
    else {
        panic!("{error}");
    };
    let sound = crc32c(world.stores[1].range(extent).expect("the plan is sound"));
    assert_eq!(expected, sound);
    assert_ne!(found, sound);
    assert!(
        outcomes[1..]
            .iter()
            .all(|(_, e)| matches!(e, JobEvent::Done { .. }))
    );
    assert_eq!(world.engines[0].window_bytes(), 0);
}

#[test]
fn a_unit_damaged_at_rest_is_never_sent() {
    let mut world = World::new(3, 1, small());
    let geometry = world.fill(Scheme::Xor, &[50_000; 3], &mut StdRng::seed_from_u64(1));
    world.encode(&geometry, 4096);
    world.run(PATIENCE);
    world.all_done();
    // What was read is on record from now on, and one byte changes.
    for store in &mut world.stores {
        store.crcs = store.served.clone();
        store.written.clear();
    }
    let data = world.stores[2]
        .streams
        .get_mut(&(Slot(2), Stream::Data))
        .expect("filled above");
    data[9999] ^= 1;
    world.encode(&geometry, 4096);
    world.run(PATIENCE);
    let failed: Vec<_> = world
        .outcomes()
        .into_iter()
        .filter_map(|(_, e)| match e {
            JobEvent::Failed { error, .. } => Some(error),
            _ => None,
        })
        .collect();
    let [
        TransferError::Refused {
            extent,
            from: Rank(2),
            reason,
            ..
        },
    ] = failed[..]
    else {
        panic!("one parity unit is made of the damaged one: {failed:?}");
    };
    assert!((extent.offset..extent.offset + u64::from(extent.len)).contains(&9999));
    let store = &world.stores[2];
    let (expected, found) = (
        store.crcs[&extent],
        crc32c(store.range(extent).expect("in range")),
    );
    assert_eq!(reason, Reason::Damaged { expected, found });
    assert!(store.damaged.contains(&extent), "and remembered");
}

#[test]
fn the_owner_compares_with_its_own_record_too() {
    let mut world = World::new(2, 1, small());
    let copies = Scheme::Partner { copies: 1 };
    let geometry = world.fill(copies, &[5000, 5000], &mut StdRng::seed_from_u64(1));
    let extent = Extent {
        slot: Slot(0),
        stream: Stream::Data,
        offset: 0,
        len: 4096,
    };
    world.stores[1].crcs.insert(extent, 42);
    world.encode(&geometry, 4096);
    world.run(PATIENCE);
    let outcomes = world.outcomes();
    let found = crc32c(world.stores[0].range(extent).expect("it is filled"));
    let (dataset, from, expected) = (DATASET, Rank(0), 42);
    let error = TransferError::Checksum {
        dataset,
        extent,
        from,
        expected,
        found,
    };
    assert_eq!(
        outcomes[1],
        (
            Rank(1),
            JobEvent::Failed {
                job: JobId(1),
                error
            }
        )
    );
}

#[test]
fn a_silent_source_fails_the_job_by_its_deadline() {
    let mut world = World::new(3, 1, small());
    let geometry = world.fill(Scheme::Xor, &[500_000; 3], &mut StdRng::seed_from_u64(1));
    world.encode(&geometry, 4096);
    for _ in 0..4 {
        world.step();
    }
    world.fabrics[0].killer().kill(Rank(2));
    let (start, silence) = (world.now, small().silence);
    world.run(silence / 2);
    assert_eq!(world.outcomes(), []);
    world.now = start + silence / 2;
    world.run(silence * 2);
    let outcomes = world.outcomes();
    for rank in [Rank(0), Rank(1)] {
        let silent = outcomes.iter().any(|(at, e)| {
            let error = match e {
                JobEvent::Failed { error, .. } => error,
                _ => return false,
            };
            *at == rank && matches!(error, TransferError::Silent { from: Rank(2), .. })
        });
        assert!(silent, "{outcomes:?}");
    }
    assert!(
        world.now <= start + silence * 2,
        "it did not take much longer than the deadline"
    );
}

#[test]
fn a_cancelled_job_leaves_nothing() {
    let mut world = World::new(3, 1, small());
    let geometry = world.fill(Scheme::Xor, &[500_000; 3], &mut StdRng::seed_from_u64(1));
    world.encode(&geometry, 4096);
    world.step();
    assert!(world.engines[0].window_bytes() > 0);
    world.engines[0].cancel(JobId(1));
    assert_eq!(world.engines[0].window_bytes(), 0);
    world.run(PATIENCE);
    let outcomes = world.outcomes();
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    assert!(world.engines.iter().all(|e| !e.has_work()));
}

#[test]
fn local_sources_need_no_messages() {
    let mut world = World::new(1, 1, small());
    let geometry = world.fill(Scheme::Single, &[100_000], &mut StdRng::seed_from_u64(1));
    let plan = geometry
        .read(&[], Slot(0), 5, 99_000, 4096)
        .expect("the range lies in the part");
    // A read's destination is its source: let it go elsewhere.
    let moved = plan.map(|mut c| {
        c.destination.slot = Slot(9);
        c
    });
    let holders = world.holders();
    world.engines[0].start(JobId(4), DATASET, Box::new(moved), holders);
    world.run(PATIENCE);
    assert_eq!(
        world.outcomes(),
        [(
            Rank(0),
            JobEvent::Done {
                job: JobId(4),
                bytes: 99_000
            }
        )]
    );
    let streams = &world.stores[0].streams;
    let (from, to) = (
        &streams[&(Slot(0), Stream::Data)],
        &streams[&(Slot(9), Stream::Data)],
    );
    assert!(to[5..] == from[5..99_005]);
}

#[test]
fn broken_plans_and_unknown_holders_fail_their_job_only() {
    let mut world = World::new(2, 1, small());
    world.fill(Scheme::Xor, &[10_000; 2], &mut StdRng::seed_from_u64(1));
    let extent = |slot, len| Extent {
        slot: Slot(slot),
        stream: Stream::Data,
        offset: 0,
        len,
    };
    let plan = |destination, source| {
        let terms = vec![Term {
            coefficient: 1,
            source,
        }];
        Box::new(std::iter::once(Combination { destination, terms }))
    };
    let holders = world.holders();
    let engine = &mut world.engines[0];
    let mut start = |job, plan| engine.start(JobId(job), DATASET, plan, holders.clone());
    start(1, plan(extent(0, 100), extent(1, 200)));
    start(2, plan(extent(0, 0), extent(1, 0)));
    start(3, plan(extent(0, 100), extent(7, 100)));
    start(4, plan(extent(0, 100), extent(1, 20_000)));
    start(5, plan(extent(8, 100), extent(1, 100)));
    start(6, plan(extent(8, 20_000), extent(1, 20_000)));
    world.run(PATIENCE);
    let mut outcomes = world.outcomes();
    outcomes.sort_by_key(|(_, e)| match *e {
        JobEvent::Done { job, .. }
        | JobEvent::Failed { job, .. }
        | JobEvent::Made { job, .. }
        | JobEvent::Progress { job, .. } => job,
    });
    let text: Vec<_> = outcomes
        .iter()
        .map(|(_, e)| match e {
            JobEvent::Failed { error, .. } => error.to_string(),
            _ => "done".to_owned(),
        })
        .collect();
    let expected = [
        "dataset 5: the plan for 100 bytes at 0 of the Data of slot 0 is broken",
        "dataset 5: the plan for 0 bytes at 0 of the Data of slot 0 is broken",
        "dataset 5: no rank holds 100 bytes at 0 of the Data of slot 7",
        "dataset 5: the plan for 100 bytes at 0 of the Data of slot 0 is broken",
        "done",
        "dataset 5: rank 1 refuses 20000 bytes at 0 of the Data of slot 1: it does not have them",
    ];
    assert_eq!(text, expected);
}

/// Forged units with sound checksums, each wrong in one respect: none becomes parity.
#[test]
fn nothing_is_believed_that_was_not_asked_in_these_words_of_that_rank() {
    for forgery in 0..4 {
        let mut world = World::new(3, 1, small());
        let geometry = world.fill(Scheme::Xor, &[60_000; 3], &mut StdRng::seed_from_u64(1));
        world.encode(&geometry, 4096);
        let (now, store) = (world.now, &mut world.stores[0]);
        let engine = &mut world.engines[0];
        while let Some((to, bytes)) = engine.poll_send(now, store) {
            world.fabrics[0]
                .send(to, Lane::Data, bytes)
                .expect("plans name ranks that exist");
        }
        let asked = engine.pending.iter().find(|(_, p)| p.from == Rank(2));
        let (&unit, pending) = asked.expect("rank 0 waits for units of both others");
        let (mut job, mut extent, mut from) = (pending.job, pending.extent, pending.from);
        let mut payload = vec![0xee; extent.len as usize];
        match forgery {
            0 => from = Rank(1),
            1 => extent.offset += u64::from(extent.len),
            2 => job = JobId(77),
            _ => payload.truncate(100),
        }
        let message = Message::Unit {
            job,
            unit,
            extent,
            crc: crc32c(&payload),
        };
        let announced = engine.handle(now, from, message.encode().into(), store);
        assert_eq!(
            announced.is_ok(),
            forgery == 3,
            "only its payload can show that it is short"
        );
        let _ = engine.handle(now, from, payload.into(), store);
        assert!(
            engine.pending.contains_key(&unit),
            "forgery {forgery} was taken for the unit"
        );
        world.run(PATIENCE);
        world.all_done();
        let streams = |n: usize, stream| &world.stores[n].streams[&(Slot(n as u32), stream)];
        let parity = streams(0, Stream::Parity);
        let (one, two) = (streams(1, Stream::Data), streams(2, Stream::Data));
        // Slot 0 keeps the parity of the first stripe: the first chunks of both others.
        assert!(
            (0..CHUNK as usize).all(|i| parity[i] == one[i] ^ two[i]),
            "forgery {forgery}"
        );
    }
}

/// What a hostile rank 1 may send to rank 0, which waits for units of ranks 1 and 2.
fn hostile() -> impl Strategy<Value = Bytes> {
    let raw = proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    let extent =
        (0..3_u32, any::<bool>(), 0..100_000_u64, 1..9000_u32).prop_map(|(s, p, o, len)| {
            let stream = if p { Stream::Parity } else { Stream::Data };
            Extent {
                slot: Slot(s),
                stream,
                offset: o & !0xfff,
                len: len & 0x1fff | 1,
            }
        });
    let kind = (0..3, 0..3_u64, 0..40_u64, extent, any::<u32>());
    let sound = kind.prop_map(|(kind, job, unit, extent, crc)| {
        let job = JobId(job);
        let message = match kind {
            0 => Message::Unit {
                job,
                unit,
                extent,
                crc,
            },
            1 => Message::Refused {
                job,
                unit,
                extent,
                reason: Reason::Busy,
            },
            _ => Message::Request {
                job,
                dataset: DATASET,
                units: vec![(unit, extent); 3],
            },
        };
        message.encode().into()
    });
    prop_oneof![raw, sound]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_messages_never_panic_and_never_become_parity(
        messages in proptest::collection::vec(hostile(), 0..60),
    ) {
        let mut world = World::new(3, 3, small());
        let mut random = StdRng::seed_from_u64(3);
        let geometry = world.fill(Scheme::Xor, &[60_000; 3], &mut random);
        let mut good = World::new(3, 3, small());
        good.stores = world.stores.clone();
        good.encode(&geometry, 4096);
        good.run(PATIENCE);
        good.all_done();
        world.encode(&geometry, 4096);
        for message in messages {
            let (now, store) = (world.now, &mut world.stores[0]);
            let _ = world.engines[0].handle(now, Rank(1), message, store);
            world.step();
        }
        world.run(PATIENCE);
        let key = (Slot(0), Stream::Parity);
        let sound = &good.stores[0].streams[&key];
        let written = world.stores[0].written.keys().copied().collect::<Vec<_>>();
        for extent in written {
            let start = extent.offset as usize;
            let expected = &sound[start..start + extent.len as usize];
            prop_assert_eq!(world.stores[0].range(extent), Some(expected));
        }
    }
}
