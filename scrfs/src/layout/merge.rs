//! All parts of a sealed dataset as one tree: what every node lists, and where each name lies.
//!
//! A pure function of the sealed manifests, so that every node gets the same tree whatever it
//! holds itself. The rule is the one a flush goes by:
//!
//! - A directory is one directory however many parts have it; its entries are those of all parts. Its
//!   attributes are those of the part that changed it last; of several, of the lowest slot.
//! - A symbolic link that says the same, a named pipe, a socket or the same device is one thing however
//!   many parts have it.
//! - Anything else that two parts have under one path is a *conflict*: its bytes cannot be told from
//!   what the program meant. It is listed, and cannot be opened. Nothing is chosen and nothing hidden.
//!
//! Entries are numbered: 0 is the top, then the entries of each part, in slot order. A number means the
//! same on every node and for ever, because manifests never change.
//!
//! What it does not do: read, fetch, or decide which copy is near.

use super::manifest::{DataExtent, Entry, EntryKind, Manifest};
use crate::id::Slot;
use crate::name::RelPath;
use std::collections::HashMap;
use std::sync::Arc;

/// One entry of one part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Source {
    /// Whose part.
    pub slot: Slot,
    /// Index in its manifest.
    pub entry: usize,
}

/// What all parts together have under one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A directory.
    Directory,
    /// One thing that is no directory.
    Entry,
    /// Different things, or files whose bytes nobody can choose between.
    Conflict,
}

/// Why manifests that are whole, each by itself, do not make a tree.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MergeError {
    /// A manifest is not of the slot whose place it has.
    #[error("manifest of {found} in the place of {wanted}")]
    Place {
        /// Whose place.
        wanted: Slot,
        /// Whose it is.
        found: Slot,
    },
    /// An entry whose directory does not come before it.
    #[error("`{path}` of {slot} is in no directory of that part")]
    NoParent {
        /// Whose part.
        slot: Slot,
        /// The entry.
        path: RelPath,
    },
    /// One part has one path twice.
    #[error("`{path}` is twice in the part of {slot}")]
    Twice {
        /// Whose part.
        slot: Slot,
        /// The entry.
        path: RelPath,
    },
    /// Another name of something that does not come before it, or that can have but one.
    #[error("`{path}` of {slot} is another name of `{to}`, which is nothing that can have two")]
    Link {
        /// Whose part.
        slot: Slot,
        /// The entry.
        path: RelPath,
        /// What it links to.
        to: RelPath,
    },
    /// Longer than a file can be.
    #[error("`{path}` of {slot} would have {size} bytes")]
    Size {
        /// Whose part.
        slot: Slot,
        /// The entry.
        path: RelPath,
        /// Its length.
        size: u64,
    },
    /// More entries than can be numbered.
    #[error("more than {ENTRIES_MAX} entries")]
    TooMany,
}

/// Most entries all parts of a dataset may have.
pub const ENTRIES_MAX: usize = 1 << 31;

#[derive(Debug)]
struct Place {
    parent: usize,
    found: Found,
    /// Ascending by slot; empty for the top only.
    sources: Vec<Source>,
    /// Places below a directory, by name.
    children: Vec<usize>,
}

/// The tree. Its places are numbered from 0, the top; how depends on nothing but the manifests.
#[derive(Debug)]
pub struct Merged {
    parts: Vec<Arc<Manifest>>,
    /// Entries of the parts before each part.
    before: Vec<usize>,
    places: Vec<Place>,
    /// The place of each entry, by number - 1.
    place_of: Vec<u32>,
    /// What each hard link stands for.
    targets: HashMap<Source, usize>,
    /// Names of what has several.
    names: HashMap<Source, u32>,
}

/// A run of a file's bytes: where in the file, how long, where in the part log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Offset in the file.
    pub offset: u64,
    /// Length.
    pub len: u64,
    /// Offset in the part log.
    pub log: u64,
}

/// Where a file's bytes lie in the log, ascending.
pub fn runs(log_offset: u64, extents: &[DataExtent]) -> Vec<Run> {
    let mut log = log_offset;
    let run = |extent: &DataExtent| {
        let run = Run {
            offset: extent.offset,
            len: extent.len,
            log,
        };
        log = log.saturating_add(extent.len);
        run
    };
    extents.iter().map(run).collect()
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn is_directory(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::Directory)
}

/// Whether two parts' entries are one thing.
fn is_same(one: &EntryKind, other: &EntryKind) -> bool {
    match (one, other) {
        (EntryKind::Symlink { target }, EntryKind::Symlink { target: said }) => target == said,
        (EntryKind::Node(node), EntryKind::Node(said)) => node == said,
        (EntryKind::Directory, EntryKind::Directory) => true,
        _ => false,
    }
}

impl Merged {
    /// The tree of all parts, given in slot order; each manifest checked by itself before.
    ///
    /// # Errors
    ///
    /// A manifest that no scan would have written: then nothing can be said of the dataset.
    pub fn new(parts: Vec<Arc<Manifest>>) -> Result<Self, MergeError> {
        let top = Place {
            parent: 0,
            found: Found::Directory,
            sources: Vec::new(),
            children: Vec::new(),
        };
        let mut merged = Self {
            parts: Vec::new(),
            before: Vec::new(),
            places: vec![top],
            place_of: Vec::new(),
            targets: HashMap::new(),
            names: HashMap::new(),
        };
        let mut by_path: HashMap<&[u8], usize> = HashMap::new();
        by_path.insert(&[], 0);
        for (slot, manifest) in (0u32..).map(Slot).zip(&parts) {
            merged.add(slot, manifest, &mut by_path)?;
        }
        drop(by_path);
        merged.parts = parts;
        for at in 0..merged.places.len() {
            merged.places[at].found = merged.judge(&merged.places[at]);
            let mut children = std::mem::take(&mut merged.places[at].children);
            children.sort_by(|&one, &other| merged.name(one).cmp(merged.name(other)));
            merged.places[at].children = children;
        }
        Ok(merged)
    }

    fn add<'a>(
        &mut self,
        slot: Slot,
        manifest: &'a Manifest,
        by_path: &mut HashMap<&'a [u8], usize>,
    ) -> Result<(), MergeError> {
        if manifest.slot != slot {
            return Err(MergeError::Place {
                wanted: slot,
                found: manifest.slot,
            });
        }
        self.before.push(self.place_of.len());
        if manifest.entries.len() > ENTRIES_MAX - self.place_of.len() {
            return Err(MergeError::TooMany);
        }
        // Of this part alone.
        let mut own: HashMap<usize, usize> = HashMap::new();
        for (index, entry) in manifest.entries.iter().enumerate() {
            let path = || entry.path.clone();
            let source = Source { slot, entry: index };
            let no_parent = || MergeError::NoParent { slot, path: path() };
            let (parent, _) = split(entry.path.as_bytes());
            let parent = *by_path.get(parent).ok_or_else(no_parent)?;
            let in_directory = parent == 0
                || own
                    .get(&parent)
                    .is_some_and(|&at| is_directory(&manifest.entries[at]));
            if !in_directory {
                return Err(no_parent());
            }
            let known = by_path.get(entry.path.as_bytes()).copied();
            let at = known.unwrap_or(self.places.len());
            if own.insert(at, index).is_some() {
                return Err(MergeError::Twice { slot, path: path() });
            }
            if known.is_none() {
                by_path.insert(entry.path.as_bytes(), at);
                self.places.push(Place {
                    parent,
                    found: Found::Entry,
                    sources: Vec::new(),
                    children: Vec::new(),
                });
                self.places[parent].children.push(at);
            }
            self.places[at].sources.push(source);
            // It fits: there are at most ENTRIES_MAX places.
            self.place_of.push(at as u32);
            match &entry.kind {
                EntryKind::File { size, .. } if i64::try_from(*size).is_err() => {
                    return Err(MergeError::Size {
                        slot,
                        path: path(),
                        size: *size,
                    });
                }
                EntryKind::HardLink { to } => {
                    let target = by_path.get(to.as_bytes()).and_then(|at| own.get(at));
                    let target = target.copied().filter(|&target| {
                        target != index
                            && !matches!(
                                manifest.entries[target].kind,
                                EntryKind::Directory | EntryKind::HardLink { .. }
                            )
                    });
                    let target = target.ok_or_else(|| MergeError::Link {
                        slot,
                        path: path(),
                        to: to.clone(),
                    })?;
                    self.targets.insert(source, target);
                    let first = Source {
                        slot,
                        entry: target,
                    };
                    *self.names.entry(first).or_insert(1) += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn judge(&self, place: &Place) -> Found {
        let Some((first, others)) = place.sources.split_first() else {
            return Found::Directory;
        };
        let first = &self.entry(*first).kind;
        let same = |other: &Source| is_same(first, &self.entry(*other).kind);
        match (others.iter().all(same), first) {
            (false, _) => Found::Conflict,
            (true, EntryKind::Directory) => Found::Directory,
            (true, _) => Found::Entry,
        }
    }

    /// What a part says of an entry of this tree.
    pub fn entry(&self, source: Source) -> &Entry {
        &self.parts[source.slot.0 as usize].entries[source.entry]
    }

    /// The manifests, in slot order.
    pub fn parts(&self) -> &[Arc<Manifest>] {
        &self.parts
    }

    /// How many places there are, the top included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is nothing but the top.
    pub fn is_empty(&self) -> bool {
        self.places.len() == 1
    }

    /// What is there.
    pub fn found(&self, place: usize) -> Found {
        self.places[place].found
    }

    /// The directory it is in; of the top, the top.
    pub fn parent(&self, place: usize) -> usize {
        self.places[place].parent
    }

    /// Who has it, ascending by slot; empty for the top, which all have.
    pub fn sources(&self, place: usize) -> &[Source] {
        &self.places[place].sources
    }

    /// What is in a directory, by name; nothing, in a conflict.
    pub fn children(&self, place: usize) -> &[usize] {
        match self.found(place) {
            Found::Directory => &self.places[place].children,
            Found::Entry | Found::Conflict => &[],
        }
    }

    /// Its path; `None` for the top.
    pub fn path(&self, place: usize) -> Option<&RelPath> {
        let source = self.places[place].sources.first()?;
        Some(&self.entry(*source).path)
    }

    /// The last component of its path; empty for the top.
    pub fn name(&self, place: usize) -> &[u8] {
        self.path(place)
            .map_or(&[], |path| split(path.as_bytes()).1)
    }

    /// What `name` is in a directory.
    pub fn child(&self, place: usize, name: &[u8]) -> Option<usize> {
        let children = self.children(place);
        let at = children.binary_search_by(|&child| self.name(child).cmp(name));
        at.ok().map(|at| children[at])
    }

    /// What lies at a path below the top, given as components with single slashes; empty: the top.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        if path.is_empty() {
            return Some(0);
        }
        path.split(|&byte| byte == b'/')
            .try_fold(0, |place, name| self.child(place, name))
    }

    /// The entry whose attributes a place has: of a directory, that of the part that changed it
    /// last; of a hard link, what it stands for. `None` for the top and in a conflict.
    pub fn shown(&self, place: usize) -> Option<Source> {
        let place = &self.places[place];
        let first = *place.sources.first()?;
        match place.found {
            Found::Conflict => None,
            Found::Entry => Some(self.target(first)),
            Found::Directory => place.sources.iter().copied().reduce(|best, other| {
                if self.entry(best).mtime < self.entry(other).mtime {
                    other
                } else {
                    best
                }
            }),
        }
    }

    fn target(&self, source: Source) -> Source {
        let entry = self.targets.get(&source).copied();
        Source {
            entry: entry.unwrap_or(source.entry),
            ..source
        }
    }

    /// How many names an entry has.
    pub fn links(&self, source: Source) -> u32 {
        self.names.get(&source).copied().unwrap_or(1)
    }

    /// The number of what lies at a place: all names of one file have one number.
    pub fn number(&self, place: usize) -> u64 {
        match self.places[place].sources.first() {
            Some(first) => {
                let Source { slot, entry } = self.target(*first);
                (self.before[slot.0 as usize] + entry + 1) as u64
            }
            None => 0,
        }
    }

    /// A place of that number.
    pub fn place(&self, number: u64) -> Option<usize> {
        let Some(index) = number.checked_sub(1) else {
            return Some(0);
        };
        let at = self.place_of.get(usize::try_from(index).ok()?)?;
        usize::try_from(*at).ok()
    }

    /// All conflicts: a place, and who has it.
    pub fn conflicts(&self) -> impl Iterator<Item = (&RelPath, &[Source])> {
        (0..self.len())
            .filter(|&place| self.found(place) == Found::Conflict)
            .filter_map(|place| Some((self.path(place)?, self.sources(place))))
    }

    /// The newest time any part has of the top directory.
    pub fn root_mtime(&self) -> (i64, u32) {
        let times = self.parts.iter().map(|part| part.root_mtime);
        times.max().unwrap_or((0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DatasetId, Epoch};
    use crate::layout::manifest::Node;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: RelPath::new(path.as_bytes()).expect("a path"),
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: (5, 6),
            xattrs: Vec::new(),
        }
    }

    fn file(path: &str, log_offset: u64, len: u64) -> Entry {
        let extents = Vec::from_iter((len > 0).then_some(DataExtent { offset: 0, len }));
        let kind = EntryKind::File {
            size: len,
            log_offset,
            extents,
        };
        entry(path, kind)
    }

    fn part(slot: u32, entries: Vec<Entry>) -> Arc<Manifest> {
        Arc::new(Manifest {
            dataset: DatasetId(1),
            slot: Slot(slot),
            epoch: Epoch(1),
            root_mtime: (i64::from(slot), 0),
            entries,
            log_bytes: 0,
        })
    }

    fn at(merged: &Merged, path: &str) -> usize {
        merged.find(path.as_bytes()).expect("it is there")
    }

    #[test]
    fn directories_merge_and_files_keep_their_slot() {
        let dir = |path| entry(path, EntryKind::Directory);
        let newer = Entry {
            mtime: (9, 0),
            mode: 0o700,
            ..dir("d")
        };
        let merged = Merged::new(vec![
            part(0, vec![dir("d"), file("d/0", 0, 3)]),
            part(1, vec![newer, file("d/1", 0, 4), file("x", 4, 0)]),
        ])
        .expect("a tree");
        let names = |place| -> Vec<&[u8]> {
            let children = merged.children(place).iter();
            children.map(|&child| merged.name(child)).collect()
        };
        assert_eq!(names(0), [b"d", b"x"]);
        assert_eq!(names(at(&merged, "d")), [b"0", b"1"]);
        let shown = merged.shown(at(&merged, "d")).expect("a directory");
        assert_eq!(merged.entry(shown).mode, 0o700, "changed last");
        let one = merged.shown(at(&merged, "d/1")).expect("a file");
        assert_eq!(one.slot, Slot(1));
        assert_eq!(merged.root_mtime(), (1, 0));
        assert_eq!(merged.find(b"d/2"), None);
        assert_eq!(merged.find(b"d/0/x"), None);
    }

    #[test]
    fn what_cannot_be_one_thing_is_a_conflict_and_the_rest_is_shared() {
        let link = |path, target: &[u8]| {
            let target = target.to_vec();
            entry(path, EntryKind::Symlink { target })
        };
        let common = |slot, odd: Entry| {
            let entries = vec![
                entry("p", EntryKind::Node(Node::Fifo)),
                link("same", b"there"),
                link("other", if slot == 0 { b"a" } else { b"b" }),
                file("empty", 0, 0),
                odd,
            ];
            part(slot, entries)
        };
        let merged = Merged::new(vec![
            common(0, file("kind", 0, 0)),
            common(1, entry("kind", EntryKind::Directory)),
        ])
        .expect("a tree");
        for path in ["other", "empty", "kind"] {
            assert_eq!(merged.found(at(&merged, path)), Found::Conflict, "{path}");
            assert_eq!(merged.shown(at(&merged, path)), None);
        }
        for path in ["p", "same"] {
            assert_eq!(merged.found(at(&merged, path)), Found::Entry, "{path}");
        }
        assert_eq!(merged.conflicts().count(), 3);
    }

    #[test]
    fn names_of_one_file_have_one_number() {
        let to = RelPath::new(b"a").expect("a path");
        let merged = Merged::new(vec![
            part(0, vec![file("z", 0, 1)]),
            part(
                1,
                vec![file("a", 0, 1), entry("b", EntryKind::HardLink { to })],
            ),
        ])
        .expect("a tree");
        let (a, b) = (at(&merged, "a"), at(&merged, "b"));
        assert_eq!(merged.number(a), 2);
        assert_eq!(merged.number(b), 2);
        assert_eq!(merged.links(merged.shown(b).expect("a file")), 2);
        assert_eq!(merged.place(2), Some(a));
    }

    #[test]
    fn manifests_that_no_scan_writes_are_refused() {
        let link = |path, to: &str| {
            let to = RelPath::new(to.as_bytes()).expect("a path");
            entry(path, EntryKind::HardLink { to })
        };
        let dir = |path| entry(path, EntryKind::Directory);
        let bad: [(Vec<Entry>, &str); 7] = [
            (vec![file("d/f", 0, 1)], "no parent"),
            (vec![file("d/f", 0, 1), dir("d")], "parent comes later"),
            (vec![file("d", 0, 1), file("d/f", 1, 1)], "a file as parent"),
            (vec![file("f", 0, 1), file("f", 1, 1)], "twice"),
            (
                vec![link("b", "a"), file("a", 0, 1)],
                "link before its file",
            ),
            (vec![dir("a"), link("b", "a")], "link to a directory"),
            (vec![link("b", "b")], "link to itself"),
        ];
        for (entries, why) in bad {
            // The other part has the directory: that does not make it right.
            let parts = vec![part(0, vec![dir("d")]), part(1, entries)];
            assert!(Merged::new(parts).is_err(), "{why}");
        }
        assert!(Merged::new(vec![part(1, Vec::new())]).is_err(), "place");
    }

    /// A part as some node could write it: directories on the way are made.
    fn tree(slot: u32, wanted: &BTreeMap<Vec<u8>, u8>) -> Arc<Manifest> {
        let mut entries: BTreeMap<Vec<u8>, EntryKind> = BTreeMap::new();
        for (path, kind) in wanted {
            let mut fits = true;
            for cut in (1..path.len()).filter(|&at| path[at] == b'/') {
                let above = entries.entry(path[..cut].to_vec());
                fits = *above.or_insert(EntryKind::Directory) == EntryKind::Directory;
                if !fits {
                    break;
                }
            }
            let kind = match kind % 4 {
                0 => EntryKind::Directory,
                1 => EntryKind::Symlink {
                    target: vec![*kind],
                },
                2 => EntryKind::Node(Node::Fifo),
                _ => file("x", 0, u64::from(*kind)).kind,
            };
            if fits {
                entries.entry(path.clone()).or_insert(kind);
            }
        }
        let entries = entries.into_iter().map(|(path, kind)| Entry {
            path: RelPath::new(&path).expect("a path"),
            ..entry("x", kind)
        });
        part(slot, entries.collect())
    }

    fn paths() -> impl Strategy<Value = BTreeMap<Vec<u8>, u8>> {
        let path = proptest::collection::vec(0u8..3, 1..4).prop_map(|names| {
            let names: Vec<Vec<u8>> = names.into_iter().map(|n| vec![b'a' + n]).collect();
            names.join(&b'/')
        });
        proptest::collection::btree_map(path, any::<u8>(), 0..12)
    }

    proptest! {
        /// Every path of every part is there, with all who have it; nothing else is; and what is
        /// below a conflict is exactly what cannot be reached.
        #[test]
        fn the_tree_is_the_union_of_its_parts(trees in proptest::collection::vec(paths(), 1..5)) {
            let parts: Vec<_> = (0u32..).zip(&trees).map(|(slot, t)| tree(slot, t)).collect();
            let merged = Merged::new(parts.clone()).expect("scans wrote them");
            let mut union: BTreeMap<&RelPath, Vec<Source>> = BTreeMap::new();
            for part in &parts {
                for (index, entry) in part.entries.iter().enumerate() {
                    let source = Source { slot: part.slot, entry: index };
                    union.entry(&entry.path).or_default().push(source);
                }
            }
            let mut seen = BTreeSet::new();
            let mut todo = vec![0];
            while let Some(place) = todo.pop() {
                for &child in merged.children(place) {
                    let path = merged.path(child).expect("below the top");
                    prop_assert!(seen.insert(path.clone()), "{} twice", path);
                    prop_assert_eq!(merged.sources(child), union[path].as_slice());
                    prop_assert_eq!(merged.parent(child), place);
                    prop_assert_eq!(merged.find(path.as_bytes()), Some(child));
                    prop_assert_eq!(merged.place(merged.number(child)), Some(child));
                    todo.push(child);
                }
            }
            for (path, sources) in &union {
                let conflict_above = (1..path.as_bytes().len())
                    .filter(|&at| path.as_bytes()[at] == b'/')
                    .filter_map(|at| merged.find(&path.as_bytes()[..at]))
                    .any(|place| merged.found(place) == Found::Conflict);
                prop_assert_eq!(seen.contains(*path), !conflict_above, "{}", path);
                let kinds: Vec<_> = sources.iter().map(|s| &merged.entry(*s).kind).collect();
                if let Some(place) = merged.find(path.as_bytes()) {
                    let same = kinds.windows(2).all(|two| two[0] == two[1]);
                    let bytes = matches!(kinds[0], EntryKind::File { .. });
                    let one = sources.len() == 1 || (same && !bytes);
                    prop_assert_eq!(merged.found(place) != Found::Conflict, one, "{}", path);
                }
            }
        }
    }
}
