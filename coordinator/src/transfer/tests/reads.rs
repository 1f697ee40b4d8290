//! Reads: handed out and not written, and before other work.

use super::*;

/// What reads have handed out, put together; each byte once.
fn handed_out(events: &[(Rank, JobEvent)], job: JobId, from: u64, len: usize) -> Vec<u8> {
    let (mut all, mut seen) = (vec![0; len], 0);
    for (_, event) in events {
        if let JobEvent::Made {
            job: of,
            extent,
            bytes,
        } = event
            && *of == job
        {
            let at = (extent.offset - from) as usize;
            all[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(bytes.len(), extent.len as usize);
            seen += bytes.len();
        }
    }
    assert_eq!(seen, len);
    all
}

#[test]
fn what_is_lost_is_read_out_of_the_rest_and_nothing_is_written() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let schemes = [
            Scheme::Xor,
            Scheme::Partner { copies: 2 },
            Scheme::ReedSolomon { parities: 2 },
        ];
        let scheme = schemes[seed as usize % 3];
        let mut world = World::new(5, seed, small());
        // Unequal parts, one of them empty, none a multiple of anything.
        let mut lengths = [3 * CHUNK + 17, 11 * CHUNK + 1, 0, 7 * CHUNK - 5, 777];
        lengths.rotate_left(random.random_range(0..5));
        let geometry = world.fill(scheme, &lengths, &mut random);
        world.encode(&geometry, 4096);
        world.run(PATIENCE);
        world.all_done();
        let whole = world.stores.clone();
        let mut lost: Vec<Slot> = (0..5).map(Slot).collect();
        while lost.len() > scheme.tolerates() as usize {
            lost.remove(random.random_range(0..lost.len()));
        }
        for slot in &lost {
            world.stores[slot.0 as usize] = MemoryStore::default();
        }
        for (slot, reader) in lost
            .iter()
            .flat_map(|slot| (0..5).map(move |at| (*slot, at)))
        {
            let len = lengths[slot.0 as usize];
            let from = random.random_range(0..len.max(1)) / 4096 * 4096;
            let len = len.saturating_sub(from);
            let plan = geometry
                .read(&lost, slot, from, len, 4096)
                .expect("within what the scheme survives");
            let mut holders = world.holders();
            holders.retain(|slot, _| !lost.contains(slot));
            world.engines[reader].read(JobId(9), DATASET, Box::new(plan), holders);
            world.events.clear();
            world.run(PATIENCE);
            let events = std::mem::take(&mut world.events);
            let done = JobEvent::Done {
                job: JobId(9),
                bytes: len,
            };
            assert!(events.contains(&(Rank(reader as u32), done)), "{events:?}");
            let made = handed_out(&events, JobId(9), from, len as usize);
            let sound = &whole[slot.0 as usize].streams[&(slot, Stream::Data)];
            assert!(made == sound[from as usize..], "seed {seed} {slot}");
        }
        let written = lost.iter().any(|slot| {
            let store = &world.stores[slot.0 as usize];
            !store.streams.is_empty() || !store.written.is_empty()
        });
        assert!(!written, "seed {seed}: a read left something");
        assert!(world.window_max <= small().window_bytes);
    }
}

#[test]
fn a_read_goes_before_a_rebuild_that_has_filled_the_window() {
    let mut world = World::new(4, 3, small());
    let mut random = StdRng::seed_from_u64(3);
    let geometry = world.fill(Scheme::Xor, &[100 * CHUNK; 4], &mut random);
    world.encode(&geometry, 4096);
    world.run(PATIENCE);
    world.all_done();
    let lost = [Slot(3)];
    let sound = world.stores[3].streams[&(Slot(3), Stream::Data)].clone();
    world.stores[3] = MemoryStore::default();
    let holders = world.holders();
    let plan = geometry.rebuild(&lost, Slot(3), 4096).expect("one is lost");
    world.engines[3].start(JobId(2), DATASET, Box::new(plan), holders.clone());
    world.window_max = 0;
    for _ in 0..3 {
        world.step();
    }
    assert!(world.window_max > small().window_bytes / 2, "it is at work");
    let from = 50 * CHUNK;
    let plan = geometry
        .read(&lost, Slot(3), from, 2 * CHUNK, 4096)
        .expect("one is lost");
    world.engines[3].read(JobId(9), DATASET, Box::new(plan), holders);
    let before = world.engines[3].jobs[&JobId(2)].bytes;
    let done = |world: &World| {
        let is_it =
            |(_, event): &(Rank, JobEvent)| matches!(event, JobEvent::Done { job: JobId(9), .. });
        world.events.iter().any(is_it)
    };
    while !done(&world) {
        assert!(world.step(), "it comes to its end");
    }
    // Nothing of the rebuild but what was on its way, and what came while the read's last did.
    let made = world.engines[3].jobs[&JobId(2)].bytes - before;
    assert!(made <= 2 * small().window_bytes, "{made} bytes went before");
    let read = handed_out(&world.events, JobId(9), from, 2 * CHUNK as usize);
    assert!(read == sound[from as usize..][..2 * CHUNK as usize]);
    world.run(PATIENCE);
    assert!(world.stores[3].streams[&(Slot(3), Stream::Data)] == sound);
}
