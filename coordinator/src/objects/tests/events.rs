//! Events in objects: what is put when, what readers get, and what there is at most.

use super::super::events::{Pages, page_key};
use super::*;
use crate::effects::learn;
use crate::journal::{Journal, Place, Places};
use crate::target::Target;
use scrfs::event::{JobEvent, JobWhat};
use std::time::{Duration, Instant};

impl World {
    fn events(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut each = |line: &[u8]| lines.push(String::from_utf8(line.to_vec()).unwrap());
        self.prefix.events(&mut each).unwrap();
        lines
    }

    fn pages(&self) -> Vec<store::Meta> {
        self.prefix.objects.list(".scrfs/events").unwrap()
    }

    /// Changes since the store was mended.
    fn changes(&self) -> i64 {
        i64::MAX - self.store.left.load(Ordering::SeqCst)
    }
}

fn event(job: &str, seconds: u64) -> JobEvent {
    JobEvent::new(JobWhat::Launched, job, 1_700_000_000_000 + seconds * 1000)
}

fn add(pages: &mut Pages, job: &str, seconds: u64) {
    let line = event(job, seconds).line();
    pages.add(&line, Instant::now()).unwrap();
}

/// `job` and seconds of lines, in their order.
fn told(lines: &[String]) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for line in lines {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let time: jiff::Timestamp = value["time"].as_str().unwrap().parse().unwrap();
        let job = value["job"].as_str().unwrap().to_owned();
        all.push((job, time.as_second() as u64 - 1_700_000_000));
    }
    all
}

#[test]
fn each_writer_has_its_pages_and_readers_get_the_lines_by_time() {
    let world = World::new();
    let (mut one, mut two) = (world.prefix.event_pages(), world.prefix.event_pages());
    assert_eq!(world.events(), [""; 0]);
    for second in [1, 3] {
        add(&mut one, "one", second);
    }
    one.put(Instant::now()).unwrap();
    assert_eq!(world.events().len(), 2);
    for second in [2, 9] {
        add(&mut two, "two", second);
    }
    two.put(Instant::now()).unwrap();
    // A clock that was set back: a writer's lines stay in their order.
    for second in [12, 4, 13] {
        add(&mut one, "one", second);
    }
    one.put(Instant::now()).unwrap();
    let wanted = [
        ("one", 1),
        ("two", 2),
        ("one", 3),
        ("two", 9),
        ("one", 12),
        ("one", 4),
        ("one", 13),
    ];
    let wanted = wanted.map(|(job, second)| (job.to_owned(), second));
    assert_eq!(told(&world.events()), wanted);
    assert_eq!(world.pages().len(), 2, "a page was put again");
}

#[test]
fn pages_that_are_begun_in_one_millisecond_are_two() {
    let world = World::new();
    let mut pages = world.prefix.event_pages();
    (0..4000).for_each(|_| add(&mut pages, "j", 7));
    pages.put(Instant::now()).unwrap();
    assert!(world.pages().len() > 2);
    assert_eq!(world.events().len(), 4000);
}

#[test]
fn lines_gather_until_they_are_due_or_a_page_is_full() {
    let world = World::new();
    let mut pages = world.prefix.event_pages();
    let now = Instant::now();
    assert_eq!(pages.wait(now), None);
    let lines: Vec<_> = (0..4000).map(|second| event("j", second).line()).collect();
    let length: usize = lines.iter().map(Vec::len).sum();
    pages.add(&lines[0], now).unwrap();
    let wait = pages.wait(now).unwrap();
    assert_eq!(wait, Duration::from_secs(5));
    for line in &lines[1..] {
        pages.add(line, now + wait / 2).unwrap();
    }
    let full = length / (64 << 10);
    assert!(full > 2);
    assert_eq!(world.changes(), full as i64, "only full pages were put");
    pages.put(now + wait).unwrap();
    assert_eq!(pages.wait(now), None, "nothing is left");
    assert_eq!(world.pages().len(), full + 1);
    assert!(world.pages().iter().all(|page| page.size <= 64 << 10));
    let seconds = told(&world.events()).into_iter().map(|(_, second)| second);
    assert!(seconds.eq(0..4000));
    pages.put(now).unwrap();
    assert_eq!(world.changes(), full as i64 + 1, "and nothing is put");
}

#[test]
fn what_cannot_be_put_goes_with_the_next_and_what_is_lost_is_counted() {
    let world = World::new();
    let mut pages = world.prefix.event_pages();
    world.cut_after(0);
    let now = Instant::now();
    add(&mut pages, "j", 1);
    let error = pages.put(now).unwrap_err();
    assert!(matches!(error, PrefixError::Object { .. }), "{error}");
    assert_eq!(pages.wait(now), Some(Duration::from_secs(5)), "tried again");
    add(&mut pages, "j", 2);
    world.mend();
    pages.put(now).unwrap();
    assert_eq!(told(&world.events()).len(), 2);
    // More than one page while nothing can be put.
    world.cut_after(0);
    let mut failed = 0;
    for second in 3..1503 {
        let added = pages.add(&event("j", second).line(), now);
        failed += i32::from(added.is_err());
    }
    assert_eq!(failed, 1);
    world.mend();
    pages.put(now).unwrap();
    let events = world.events();
    let dropped: Vec<_> = (events.iter())
        .filter(|line| line.contains("dropped"))
        .collect();
    assert_eq!(dropped.len(), 1);
    let count: serde_json::Value = serde_json::from_str(dropped[0]).unwrap();
    let count = count["count"].as_u64().unwrap();
    assert!(count > 100);
    assert_eq!(events.len() as u64 - 1 + count, 1502, "none is forgotten");
}

#[test]
fn the_oldest_pages_go_and_nothing_else() {
    let world = World::new();
    let objects = &world.prefix.objects;
    objects
        .put(".scrfs/events/0notes.txt", b"mine\n".to_vec())
        .unwrap();
    for second in 0..1030 {
        let line = event("old", second).line();
        let key = page_key(1_700_000_000_000 + second * 1000, second);
        objects.put(&key, line).unwrap();
    }
    // A reader does not wait for a writer to remove them.
    assert_eq!(told(&world.events())[0], ("old".to_owned(), 6));
    assert_eq!(world.events().len(), 1024);
    let mut pages = world.prefix.event_pages();
    add(&mut pages, "new", 5000);
    pages.put(Instant::now()).unwrap();
    let events = told(&world.events());
    assert_eq!(events[0], ("old".to_owned(), 7));
    assert_eq!(events[1023], ("new".to_owned(), 5000));
    let left = world.pages();
    assert_eq!(left.len(), 1025);
    assert_eq!(left[0].key, ".scrfs/events/0notes.txt");
    // One that is put again is no new one.
    objects.put(&page_key(1, 1), Vec::new()).unwrap();
    add(&mut pages, "new", 5001);
    pages.put(Instant::now()).unwrap();
    assert_eq!(world.pages().len(), 1026);
}

#[test]
fn pages_are_not_believed() {
    let world = World::new();
    let put = |second: u64, text: &[u8]| {
        let key = page_key(1_700_000_000_000 + second * 1000, 7);
        world.prefix.objects.put(&key, text.to_vec()).unwrap();
    };
    put(
        1,
        b"\xff\0\n\n{\"time\":\"never\"}\n{\"time\":\"-009999-01-01T00:00:00Z\"}",
    );
    put(2, &b"x\n".repeat(1 << 20));
    put(3, &event("j", 0).line());
    let mut count = 0;
    world.prefix.events(&mut |_| count += 1).unwrap();
    assert_eq!(count, 4);
    let learnt = learn(&Target::Bucket(world.prefix)).open().0;
    assert_eq!(learnt.process.failures, 0);
}

#[test]
fn what_datasets_and_jobs_tell_lands_in_objects_and_is_learnt_from() {
    let world = World::new();
    let journal = || {
        let place = Place::Pages(world.prefix.event_pages());
        Journal::begin(Places {
            prefix: Some(place),
            syslog: None,
        })
        .unwrap()
    };
    let (mut supervisor, mut leader) = (journal(), journal());
    let mut say = |what, second, cause| {
        let event = JobEvent {
            event: what,
            cause,
            ..event("j", second)
        };
        supervisor.job(&event);
    };
    say(JobWhat::Launched, 0, None);
    let failed = Some(scrfs::event::EndCause::Failed);
    say(JobWhat::LaunchEnded, 100, failed);
    let record = DatasetRecord {
        flushed: Some(1),
        ..world.dataset(1, "ckpt.1", 1)
    };
    leader.changed(None, &record, 1_700_000_110_000);
    say(JobWhat::Launched, 120, None);
    let finished = Some(scrfs::event::EndCause::Finished);
    say(JobWhat::LaunchEnded, 170, finished);
    say(JobWhat::JobEnded, 171, None);
    assert_eq!(world.pages(), [], "they gather");
    drop((supervisor, leader));
    let events = world.events();
    assert!(events[2].contains("\"event\":\"fetched\""), "{events:?}");
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!(world.pages().len(), 2);
    let (seen, recoveries) = learn(&Target::Bucket(world.prefix)).open();
    assert_eq!((seen.beyond.failures, seen.process.failures), (1, 0));
    assert_eq!(seen.process.seconds, 150.0);
    assert_eq!(recoveries.prefix_seconds, Some(20.0));
}
