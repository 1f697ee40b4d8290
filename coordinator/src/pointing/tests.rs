//! Two that write one name at once: one goes on where the other was stopped, at every operation, and one is killed
//! there.

use super::*;
use scrfs::layout::pointer::{Content, Pointer, Version};
use std::cell::Cell;
use std::sync::{Condvar, Mutex};

/// What `who` writes.
fn record(who: &str, number: u64) -> PointerRecord {
    PointerRecord {
        version: Version { term: 1, number },
        after: None,
        pointer: Some(Pointer {
            content: Content::File(format!("{who} {number}").into_bytes()),
            mode: 0o644,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            mtime: (1_000_000_000, 0),
        }),
    }
}

fn name() -> Name {
    Name::new(b"latest").unwrap()
}

/// Who may do how many operations, one after the other; then each as many as it needs.
type Schedule = Vec<(usize, usize)>;

#[derive(Debug)]
struct State {
    schedule: Schedule,
    /// Who is at an operation.
    busy: Option<usize>,
    ended: [bool; 2],
}

impl State {
    fn next(&mut self) -> Option<usize> {
        let ended = self.ended;
        self.schedule
            .retain(|(who, count)| *count > 0 && !ended[*who]);
        Some(self.schedule.first()?.0)
    }
}

#[derive(Debug)]
struct Baton {
    state: Mutex<State>,
    changed: Condvar,
}

impl Baton {
    fn begin(&self, who: usize) {
        let mut state = self.state.lock().unwrap();
        if state.busy == Some(who) {
            state.busy = None;
            self.changed.notify_all();
        }
        while state.busy.is_some() || state.next().is_some_and(|next| next != who) {
            state = self.changed.wait(state).unwrap();
        }
        state.busy = Some(who);
        if let Some((_, count)) = state.schedule.first_mut() {
            *count -= 1;
        }
    }

    fn end(&self, who: usize) {
        let mut state = self.state.lock().unwrap();
        state.ended[who] = true;
        if state.busy == Some(who) {
            state.busy = None;
        }
        self.changed.notify_all();
    }
}

/// One of the two: waits for its turn at each operation, and is killed after so many.
struct Stopped<'a> {
    at: &'a dyn Pointed,
    baton: &'a Baton,
    who: usize,
    left: Cell<usize>,
}

impl Stopped<'_> {
    fn next(&self) -> Result<&dyn Pointed, PrefixError> {
        self.baton.begin(self.who);
        match self.left.get() {
            0 => Err(PrefixError::Changed {
                path: "killed".into(),
            }),
            left => {
                self.left.set(left - 1);
                Ok(self.at)
            }
        }
    }
}

impl Pointed for Stopped<'_> {
    fn place(&self, name: &Name) -> PathBuf {
        self.at.place(name)
    }
    fn turns(&self, name: &Name) -> Result<Turns, PrefixError> {
        self.next()?.turns(name)
    }
    fn begin(&self, name: &Name, turn: Turn, record: &PointerRecord) -> Result<(), PrefixError> {
        self.next()?.begin(name, turn, record)
    }
    fn record(&self, name: &Name, turn: Turn) -> Result<Option<PointerRecord>, PrefixError> {
        self.next()?.record(name, turn)
    }
    fn write(&self, name: &Name, record: &PointerRecord) -> Result<(), PrefixError> {
        self.next()?.write(name, record)
    }
    fn end(&self, name: &Name, turn: Turn) -> Result<(), PrefixError> {
        self.next()?.end(name, turn)
    }
    fn forget(&self, name: &Name, turn: Turn) -> Result<(), PrefixError> {
        self.next()?.forget(name, turn)
    }
}

/// The jobs of the two, and which version each writes.
const PAIRS: [[(&str, u64); 2]; 2] = [
    // Jobs that do not know of each other give the same versions out.
    [("one", 1), ("two", 1)],
    // The later has a coordinator that was declared dead beside it.
    [("one", 2), ("one", 1)],
];

type Place<'a> = &'a (dyn Pointed + Sync);
/// What is done with a new place; what it is given then says what the file has.
type Each<'a> = dyn Fn(Place<'_>, &dyn Fn() -> Vec<u8>) + 'a;

/// More operations than a writing has.
const ALL: usize = 99;
/// So many operations at least has one that meets nobody.
const ALONE: usize = 9;

/// Tries all ways in which one goes on for a while where the other was stopped, twice; and kills the first
/// where it was stopped the second time. `with` makes a new place each time.
pub(crate) fn invariant_what_counts_is_what_is_there(with: &dyn Fn(&Each<'_>)) {
    let stops = (0..ALONE + 3).flat_map(|at| (1..ALONE + 3).map(move |then| (at, then)));
    for (at, then) in stops {
        for more in [0, 1, 2, 4, 7] {
            for (pair, is_killed) in [(0, false), (0, true), (1, false), (1, true)] {
                let schedule = vec![(0, at), (1, then), (0, more), (1, ALL)];
                let words = format!("{:?} {schedule:?} {is_killed}", PAIRS[pair]);
                let lives = match is_killed {
                    true => at + more,
                    false => ALL,
                };
                with(&|place, read| {
                    write(place, "before", &name(), &record("before", 9)).unwrap();
                    run(place, PAIRS[pair], schedule.clone(), lives);
                    check(place, PAIRS[pair], is_killed, read, &words);
                });
            }
        }
    }
}

fn run(place: Place<'_>, pair: [(&str, u64); 2], schedule: Schedule, lives: usize) {
    let baton = Baton {
        state: Mutex::new(State {
            schedule,
            busy: None,
            ended: [false; 2],
        }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for (who, lives) in [(0, lives), (1, ALL)] {
            let baton = &baton;
            scope.spawn(move || {
                let at = Stopped {
                    at: place,
                    baton,
                    who,
                    left: Cell::new(lives),
                };
                let (job, version) = pair[who];
                let written = write(&at, job, &name(), &record(job, version));
                baton.end(who);
                assert!(written.is_ok() || lives < ALL, "{written:?}");
            });
        }
    });
}

fn check(
    place: Place<'_>,
    pair: [(&str, u64); 2],
    is_killed: bool,
    read: &dyn Fn() -> Vec<u8>,
    words: &str,
) {
    let said = |turn: Turn| {
        let record = place.record(&name(), turn).unwrap().unwrap();
        let Some(Pointer {
            content: Content::File(bytes),
            ..
        }) = record.pointer
        else {
            panic!("no file");
        };
        String::from_utf8(bytes).unwrap()
    };
    let there = || String::from_utf8(read()).unwrap();
    let first = job_number(pair[0].0);
    if is_killed {
        tidy(place, &name(), &|turn| turn.job == first);
    }
    let turns = place.turns(&name()).unwrap();
    let counts = turns.newest().unwrap();
    assert_eq!(turns.newest_ended(), Some(counts), "{words}: {turns:?}");
    assert_eq!(there(), said(counts), "{words}: {turns:?}");
    assert!(turns.begun().is_empty(), "{words}: {turns:?}");
    let (job, version) = pair[1];
    assert!(
        turns.has_written(
            job_number(job),
            Version {
                term: 1,
                number: version
            }
        ),
        "{words}: {turns:?}"
    );
    if !is_killed {
        let (job, number) = pair[0];
        assert!(turns.has_written(first, Version { term: 1, number }));
        let same = pair[1].0 == job;
        assert!(!same || there() == format!("{job} {number}"), "{words}");
        assert!(there() != "before 9", "{words}");
    }
    // Done again, nothing changes; and of a newer one nothing is left but it.
    let was = there();
    for (job, number) in &pair[1..] {
        write(place, job, &name(), &record(job, *number)).unwrap();
    }
    assert_eq!(there(), was, "{words}");
    write(place, "one", &name(), &record("one", 3)).unwrap();
    assert_eq!(there(), "one 3", "{words}");
    tidy(place, &name(), &|_| true);
    let turns = place.turns(&name()).unwrap();
    assert_eq!(turns.outdone(), [], "{words}");
}
