//! Encoding before the commit, with real files that are written, opened again, cut, renamed and removed at any moment,
//! and words that come late. After the seal every byte of parity is compared with one that is made here.

use super::*;
use crate::part::testing::{EPOCH, UNIT_BYTES};
use crate::part::{records::encode_manifest, scan_part_as};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use scrfs::codec::combine;
use scrfs::config::Class;
use scrfs::layout::envelope::crc32c;
use scrfs::layout::record::{Phase, Seal};
use scrfs::name::{Name, RelPath};
use scrfs::redundancy::Extent;
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

/// What a daemon has said and its coordinator has not heard.
#[derive(Debug)]
enum Word {
    Closed(u64, RelPath),
    Reopened(u64),
}

/// A dataset that is being written on all nodes.
struct Writing {
    world: World,
    rng: StdRng,
    words: Vec<VecDeque<Word>>,
    post: VecDeque<(Rank, Rank, Message)>,
    /// Names of files of each node, and which are told to be closed.
    files: Vec<Vec<String>>,
    told: Vec<BTreeSet<u64>>,
    made: u32,
    now: Instant,
    /// Something changes when the scan is about to begin.
    is_late: bool,
}

fn empty_world(size: u32, scheme: Scheme) -> World {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = tempfile::tempdir().unwrap();
    let prefix = root.path().join("prefix");
    fs::create_dir(&prefix).unwrap();
    let slots: Vec<Slot> = (0..size).map(Slot).collect();
    let record = DatasetRecord {
        id: ID,
        name: Name::new(b"ckpt.7").unwrap(),
        committed_from: None,
        class: Class::Checkpoint,
        checkpoint: Some(7),
        phase: Phase::Open,
        epoch: EPOCH,
        created: 1,
        sealed: None,
        protected: None,
        flushing: false,
        flushed: None,
        seal: None,
        error: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let foreseen = Seal {
        epoch: EPOCH,
        scheme,
        chunk_bytes: 2 * u64::from(UNIT_BYTES),
        unit_bytes: UNIT_BYTES,
        sets: vec![slots],
        parts: Vec::new(),
    };
    let nodes = (0..size).map(|rank| {
        let (sender, events) = channel();
        let paths = CachePaths::at(&root.path().join(format!("node{rank}")));
        fs::create_dir_all(paths.tree(ID, Slot(rank))).unwrap();
        fs::write(paths.parity_room(ID, Slot(rank)), vec![0; 4 << 20]).unwrap();
        let mut parts = Parts::new(Rank(rank), paths.clone(), 100);
        parts.learn(&record);
        parts.ahead.foresee(ID, foreseen.clone());
        Node {
            parts,
            engine: Engine::new(Rank(rank), Limits::default()),
            works: Works::new(Rank(rank)),
            tasks: Tasks::new(runtime.handle().clone(), sender, Arc::new(|| {})),
            events,
            paths,
        }
    });
    let nodes = nodes.collect();
    let mut record = record;
    record.seal = Some(foreseen);
    World {
        nodes,
        config: Arc::new(config(&prefix)),
        _runtime: runtime,
        root,
        record,
        prefix: Arc::new(Target::at(&prefix)),
        tickets: 0,
        forge: |_| {},
        ended: BTreeMap::new(),
        findings: BTreeMap::new(),
    }
}

impl Writing {
    fn new(size: u32, scheme: Scheme, seed: u64) -> Self {
        let count = size as usize;
        Self {
            world: empty_world(size, scheme),
            rng: StdRng::seed_from_u64(seed),
            words: (0..count).map(|_| VecDeque::new()).collect(),
            post: VecDeque::new(),
            files: vec![Vec::new(); count],
            told: vec![BTreeSet::new(); count],
            made: 0,
            now: Instant::now(),
            is_late: false,
        }
    }

    fn tree(&self, node: usize) -> PathBuf {
        self.world.nodes[node].paths.tree(ID, Slot(node as u32))
    }

    /// The number of a file that may be written from now on: that is said before.
    fn open(&mut self, node: usize, name: &str) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.tree(node).join(name))
            .unwrap();
        let ino = file.metadata().unwrap().ino();
        if self.told[node].remove(&ino) {
            self.words[node].push_back(Word::Reopened(ino));
        }
        file
    }

    fn write(&mut self, file: &File) {
        let units = self.rng.random_range(1..12u64);
        let len = units * 4096 + self.rng.random_range(0..3u64) * 777;
        let mut bytes = vec![0; len as usize];
        self.rng.fill_bytes(&mut bytes);
        let at = self.rng.random_range(0..3u64) * 8192;
        file.write_all_at(&bytes, at).unwrap();
    }

    fn close(&mut self, node: usize, name: &str, file: &File) {
        // What the daemon does not see to be closed, or finds too small, is not told.
        if self.rng.random_bool(0.9) {
            let ino = file.metadata().unwrap().ino();
            self.told[node].insert(ino);
            let path = RelPath::new(name.as_bytes()).unwrap();
            self.words[node].push_back(Word::Closed(ino, path));
        }
    }

    /// Something that programs do.
    fn change(&mut self, node: usize) {
        let known = self.files[node].choose(&mut self.rng).cloned();
        match (self.rng.random_range(0..12u32), known) {
            (0, Some(name)) => {
                let file = self.open(node, &name);
                self.write(&file);
                self.close(node, &name, &file);
            }
            (1, Some(name)) => {
                let file = self.open(node, &name);
                let len = file.metadata().unwrap().len();
                file.set_len(self.rng.random_range(0..=len)).unwrap();
                self.close(node, &name, &file);
            }
            // Opened, and closed as it was.
            (2, Some(name)) => {
                let file = self.open(node, &name);
                self.close(node, &name, &file);
            }
            (3, Some(name)) => {
                let path = self.tree(node).join(&name);
                let ino = fs::metadata(&path).unwrap().ino();
                fs::remove_file(&path).unwrap();
                // Where the daemon did not see it, the scan does.
                if self.told[node].remove(&ino) && self.rng.random_bool(0.7) {
                    self.words[node].push_back(Word::Reopened(ino));
                }
                self.files[node].retain(|known| *known != name);
            }
            (4, Some(name)) => {
                let new = format!("renamed.{}", self.made);
                self.made += 1;
                let tree = self.tree(node);
                fs::rename(tree.join(&name), tree.join(&new)).unwrap();
                self.files[node].retain(|known| *known != name);
                self.files[node].push(new);
            }
            _ => {
                let name = format!("file.{}", self.made);
                self.made += 1;
                let file = self.open(node, &name);
                self.write(&file);
                self.close(node, &name, &file);
                self.files[node].push(name);
            }
        }
    }

    fn hear(&mut self, node: usize) {
        let ahead = &mut self.world.nodes[node].parts.ahead;
        match self.words[node].pop_front() {
            Some(Word::Closed(ino, path)) => ahead.closed(ID, ino, path),
            Some(Word::Reopened(ino)) => ahead.reopened(ID, ino),
            None => {}
        }
    }

    /// The coordinator of a node takes a turn.
    fn turn(&mut self, node: usize) {
        let Node { parts, engine, .. } = &mut self.world.nodes[node];
        let from = Rank(node as u32);
        // Whatever it waits for has passed.
        self.now += Duration::from_secs(2);
        let messages = parts.ahead.turn(self.now, true, engine);
        self.post.extend(
            messages
                .into_iter()
                .map(|(to, message)| (from, to, message)),
        );
    }

    /// A message arrives; between two nodes in order.
    fn deliver(&mut self) {
        if let Some((from, to, message)) = self.post.pop_front()
            && let Message::Reach {
                dataset,
                slot,
                bytes,
            } = message
        {
            assert_eq!(slot.0, from.0);
            let parts = &mut self.world.nodes[to.0 as usize].parts;
            parts.ahead.reaches(dataset, slot, bytes);
        }
    }

    /// Seals what is there. Everything that was said has been heard, as before a vote.
    fn seal(&mut self) {
        let mut sealed = self.world.record.clone();
        let mut summaries = Vec::new();
        for node in 0..self.words.len() {
            while !self.words[node].is_empty() {
                self.hear(node);
            }
            let slot = Slot(node as u32);
            let tree = self.tree(node);
            let order = self.world.nodes[node].parts.ahead.order(ID);
            if self.is_late && self.rng.random_bool(0.3) {
                // Something is written again while the scan is about to begin.
                self.change(node);
                while !self.words[node].is_empty() {
                    self.hear(node);
                }
                for _ in 0..5 {
                    (0..self.words.len()).for_each(|node| self.turn(node));
                    while !self.post.is_empty() {
                        self.deliver();
                    }
                    self.world.turn();
                }
            }
            let Node { parts, paths, .. } = &mut self.world.nodes[node];
            let (manifest, kept) = scan_part_as(&tree, ID, slot, EPOCH, &order.files).unwrap();
            manifest.check().unwrap();
            parts.ahead.scanned(ID, &order, kept);
            let (bytes, summary) = encode_manifest(&manifest);
            let path = paths.manifest(ID, slot, Keep::Own);
            PosixStore::new().put(&path, &bytes).unwrap();
            summaries.push(summary);
        }
        sealed.phase = Phase::Sealed;
        sealed.sealed = Some(2);
        if let Some(seal) = &mut sealed.seal {
            seal.parts = summaries;
        }
        let seal = sealed.seal.clone().unwrap();
        for (slot, node) in (0u32..).map(Slot).zip(&mut self.world.nodes) {
            if let Some(job) = node.parts.ahead.learn(&sealed) {
                node.engine.cancel(job);
            }
            node.parts.learn(&sealed);
            // As the daemon does.
            let room = File::options()
                .write(true)
                .open(node.paths.parity_room(ID, slot));
            let len = seal.geometry_of(slot).unwrap().parity_len(slot);
            room.unwrap().set_len(len).unwrap();
        }
        self.world.record = sealed;
        self.world.tell();
    }

    /// How many bytes of parity were made before the seal and hold, by what is logged of it.
    fn encode(&mut self) {
        let (slots, holders) = (self.world.slots(), self.world.holders());
        self.world.order(Order::Encode {
            dataset: ID,
            slots,
            holders,
        });
    }

    /// All parity is what the files say, and so are all checksums.
    fn check(&self) {
        let record = &self.world.record;
        let geometry = record.seal.as_ref().unwrap().geometry_of(Slot(0)).unwrap();
        let store = PosixStore::new();
        let parts: Vec<Part> = (0u32..)
            .map(Slot)
            .zip(&self.world.nodes)
            .map(|(slot, node)| Part::open(&store, &node.paths, record, slot).unwrap())
            .collect();
        for part in &parts {
            for stream in [Stream::Data, Stream::Parity] {
                let sums = part.sums(stream);
                assert!(sums.is_complete());
                for (unit, crc) in sums.crcs.iter().enumerate() {
                    let offset = unit as u64 * u64::from(UNIT_BYTES);
                    let bytes = match stream {
                        Stream::Data => part.read_data(offset, UNIT_BYTES).unwrap(),
                        Stream::Parity => part.read_parity(offset, UNIT_BYTES).unwrap(),
                    };
                    assert_eq!(
                        *crc,
                        Some(crc32c(&bytes)),
                        "{:?} {stream:?} {unit}",
                        part.id()
                    );
                }
            }
            let slot = part.id().slot;
            for combination in geometry.encode(slot, UNIT_BYTES) {
                let to = combination.destination;
                let mut made = vec![0; to.len as usize];
                let row: Vec<u8> = combination
                    .terms
                    .iter()
                    .map(|term| term.coefficient)
                    .collect();
                let bytes: Vec<Bytes> = combination
                    .terms
                    .iter()
                    .map(|term| {
                        let source = term.source;
                        let part = &parts[source.slot.0 as usize];
                        part.read_data(source.offset, source.len).unwrap()
                    })
                    .collect();
                let bytes: Vec<&[u8]> = bytes.iter().map(AsRef::as_ref).collect();
                combine(&mut [&mut made], &[&row], &bytes);
                let found = part.read_parity(to.offset, to.len).unwrap();
                assert!(found == made, "parity of {slot} at {}", to.offset);
            }
        }
    }

    /// One life: everything at any moment, then the commit.
    fn live(&mut self, steps: u32) {
        let nodes = self.words.len();
        for _ in 0..steps {
            let node = self.rng.random_range(0..nodes);
            match self.rng.random_range(0..10u32) {
                0 | 1 => self.change(node),
                2 | 3 => self.hear(node),
                4 | 5 => self.deliver(),
                6 => self.turn(node),
                _ => {
                    self.world.turn();
                }
            }
        }
    }

    /// Bytes of parity that were made before and hold, of all.
    fn held(&mut self) -> (u64, u64) {
        self.seal();
        let seal = self.world.record.seal.clone().unwrap();
        let (mut held, mut all) = (0, 0);
        let sums: Vec<Vec<Option<u32>>> = (0u32..)
            .zip(&mut self.world.nodes)
            .map(|(_, node)| node.parts.ahead.peek(ID).sums.clone())
            .collect();
        for (slot, node) in (0u32..).map(Slot).zip(&mut self.world.nodes) {
            let geometry = seal.geometry_of(slot).unwrap();
            let settled = node.parts.ahead.peek(ID);
            for combination in geometry.encode(slot, UNIT_BYTES) {
                let known = |extent: Extent| {
                    let unit = (extent.offset / u64::from(UNIT_BYTES)) as usize;
                    *sums[extent.slot.0 as usize].get(unit)?
                };
                let len = u64::from(combination.destination.len);
                all += len;
                held += settled.holds(&combination, known).map_or(0, |_| len);
            }
        }
        (held, all)
    }
}

const SCHEMES: [(u32, Scheme); 4] = [
    (4, Scheme::Xor),
    (2, Scheme::Partner { copies: 1 }),
    (5, Scheme::ReedSolomon { parities: 2 }),
    (3, Scheme::Xor),
];

#[test]
fn what_is_made_before_the_commit_is_right_after_it_whatever_happened() {
    let first = std::env::var("SCRFS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let count = std::env::var("SCRFS_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    let seeds = match (first, count) {
        (Some(seed), None) => seed..seed + 1,
        (first, count) => first.unwrap_or(0)..first.unwrap_or(0) + count.unwrap_or(60),
    };
    let (mut held, mut all) = (0, 0);
    for seed in seeds {
        let (size, scheme) = SCHEMES[seed as usize % SCHEMES.len()];
        let mut writing = Writing::new(size, scheme, seed);
        let steps = writing.rng.random_range(20..600);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            writing.live(steps);
            writing.is_late = true;
            let counts = writing.held();
            writing.encode();
            writing.check();
            counts
        }));
        match outcome {
            Ok((some, of)) => (held, all) = (held + some, all + of),
            Err(panic) => {
                eprintln!("SCRFS_SEED={seed} replays it");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{held} of {all} bytes of parity were made before the commit and held");
    if count.is_none() && first.is_none() {
        assert!(held > all / 20, "{held} of {all}");
    }
}

/// Files that nobody touches again, encoded as far as can be.
fn quiet(size: u32, scheme: Scheme) -> Writing {
    let mut writing = Writing::new(size, scheme, 1);
    for node in 0..size as usize {
        for index in 0..10 {
            let name = format!("file.{index}");
            let file = writing.open(node, &name);
            file.write_all_at(&vec![index; 5 * UNIT_BYTES as usize], 0)
                .unwrap();
            let ino = file.metadata().unwrap().ino();
            let path = RelPath::new(name.as_bytes()).unwrap();
            writing.words[node].push_back(Word::Closed(ino, path));
            writing.hear(node);
        }
    }
    writing.go_on();
    writing
}

impl Writing {
    /// Until nothing more can be made.
    fn go_on(&mut self) {
        let deadline = Instant::now() + SOON;
        let mut quiet = 0;
        while quiet < 3 {
            assert!(Instant::now() < deadline);
            (0..self.words.len()).for_each(|node| self.turn(node));
            let is_told = !self.post.is_empty();
            while !self.post.is_empty() {
                self.deliver();
            }
            let has_moved = self.world.turn() || is_told;
            quiet = if has_moved { 0 } else { quiet + 1 };
        }
    }
}

#[test]
fn files_that_nobody_touches_again_are_encoded_before_the_commit() {
    for (size, scheme) in SCHEMES {
        let mut writing = quiet(size, scheme);
        let (held, all) = writing.held();
        // All but what lies in the last stripes, which may grow.
        assert!(held * 10 >= all * 7, "{scheme:?}: {held} of {all}");
        writing.encode();
        writing.check();
    }
}

#[test]
fn what_is_written_again_is_encoded_again_before_the_commit() {
    for (size, scheme) in SCHEMES {
        let mut writing = quiet(size, scheme);
        for node in 0..size as usize {
            let name = format!("file.{node}");
            let file = File::options()
                .write(true)
                .open(writing.tree(node).join(&name))
                .unwrap();
            let ino = file.metadata().unwrap().ino();
            writing.words[node].push_back(Word::Reopened(ino));
            file.write_all_at(b"other", 3).unwrap();
            let path = RelPath::new(name.as_bytes()).unwrap();
            writing.words[node].push_back(Word::Closed(ino, path));
            (0..2).for_each(|_| writing.hear(node));
        }
        writing.go_on();
        let (held, all) = writing.held();
        assert!(held * 10 >= all * 7, "{scheme:?}: {held} of {all}");
        writing.encode();
        writing.check();
    }
}

#[test]
fn a_seal_that_is_another_takes_nothing_over() {
    let mut writing = quiet(4, Scheme::Xor);
    if let Some(seal) = &mut writing.world.record.seal {
        seal.scheme = Scheme::ReedSolomon { parities: 2 };
    }
    let (held, _) = writing.held();
    assert_eq!(held, 0);
    assert!(!writing.world.nodes[0].parts.ahead.was_foreseen(ID));
    writing.encode();
    writing.check();
}

#[test]
fn a_room_that_is_another_file_takes_nothing_over() {
    let mut writing = quiet(4, Scheme::Xor);
    assert!(writing.held().0 > 0);
    for (slot, node) in (0u32..).map(Slot).zip(&writing.world.nodes) {
        let room = node.paths.parity_room(ID, slot);
        let len = fs::metadata(&room).unwrap().len();
        // Its number is not given out again while the old one is held.
        let held = File::open(&room).unwrap();
        fs::remove_file(&room).unwrap();
        File::create(&room).unwrap().set_len(len).unwrap();
        drop(held);
    }
    writing.encode();
    writing.check();
}

#[test]
fn an_encode_that_begins_again_waits_for_nobody() {
    let mut writing = quiet(4, Scheme::Xor);
    assert!(writing.held().0 > 0);
    let (slots, holders) = (writing.world.slots(), writing.world.holders());
    let order = Order::Encode {
        dataset: ID,
        slots,
        holders,
    };
    // One of them has begun, the others have not.
    writing.world.tickets += 1;
    let ticket = writing.world.tickets;
    let own = order.clone();
    writing
        .world
        .act(0, |works, context| works.begin(ticket, own, context));
    writing.world.abandon(ticket);
    writing.encode();
    writing.check();
}
