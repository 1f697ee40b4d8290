//! Small measurements: that they run, that what they make is right, and that the arithmetic of the
//! bounds is that of the formulas.

use super::store::FileStore;
use super::*;
use scrfs::id::{DatasetId, Slot};
use scrfs::redundancy::{Extent, SetGeometry, Stream};

fn task(work: Work, directory: &std::path::Path) -> Task {
    Task::new(work, directory.to_owned(), 3_000_000, 1)
}

#[test]
fn every_scheme_is_measured_beside_its_bound() {
    let directory = tempfile::tempdir().expect("a test may have a directory");
    for (work, name) in [(Work::Encode, "encode"), (Work::Rebuild, "rebuild")] {
        let figures = bench_local(4, &task(work, directory.path())).expect("it runs");
        let sound = |f: &Figure| f.value > 0.0 && f.value.is_finite() && f.unit == "GB/s";
        assert!(figures.iter().all(sound), "{figures:?}");
        for scheme in ["partner", "xor", "rs 2", "rs 3"] {
            for end in ["", ", a core"] {
                let name = format!("{name} {scheme}, 4 ranks in one process{end}");
                let figure = figures.iter().find(|f| f.name == name);
                let figure = figure.unwrap_or_else(|| panic!("no {name} in {figures:?}"));
                let limit = figure.limit.expect("a scheme has a bound");
                assert_eq!(figure.ratio, Some(figure.value / limit));
            }
        }
    }
    let left = std::fs::read_dir(directory.path())
        .expect("it exists")
        .count();
    assert_eq!(left, 0, "files have no names while they are measured");
}

#[test]
fn a_set_too_small_for_a_scheme_leaves_it_out() {
    let directory = tempfile::tempdir().expect("a test may have a directory");
    let figures = bench_local(2, &task(Work::Encode, directory.path())).expect("it runs");
    assert!(figures.iter().any(|f| f.name.starts_with("encode xor")));
    assert!(figures.iter().all(|f| !f.name.starts_with("encode rs")));
}

/// The plans move as many bytes as the bounds count.
#[test]
fn the_bounds_count_what_the_plans_move() {
    // Whole bands of every scheme, so that nothing is rounded.
    let part = 6_u64 << 20;
    let count = |plan: scrfs::redundancy::Plan| {
        plan.fold((0_u64, 0_u64), |(loaded, stored), combination| {
            let sources = combination.terms.iter().map(|t| u64::from(t.source.len));
            let stored = stored + u64::from(combination.destination.len);
            (loaded + sources.sum::<u64>(), stored)
        })
    };
    for scheme in SCHEMES {
        let members = (0..4).map(|n| (Slot(n), part)).collect();
        let geometry = SetGeometry::new(scheme, members, 1 << 20).expect("a sound set");
        let all = (part * 4) as f64;
        let close = |(loaded, stored): (u64, u64), moved: Moved| {
            let found = (loaded as f64 / all, stored as f64 / all);
            assert!(
                (found.0 - moved.loaded).abs() < 1e-9,
                "{scheme}: {found:?}, {moved:?}"
            );
            assert!(
                (found.1 - moved.stored).abs() < 1e-9,
                "{scheme}: {found:?}, {moved:?}"
            );
        };
        let sum = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0, a.1 + b.1);
        let unit = 128 << 10;
        let encode = (0..4).map(|n| count(geometry.encode(Slot(n), unit)));
        close(encode.fold((0, 0), sum), Moved::by(Work::Encode, scheme, 4));
        let lost = geometry
            .rebuild(&[Slot(0)], Slot(0), unit)
            .expect("one is lost");
        let rebuilt = sum(count(lost), count(geometry.encode(Slot(0), unit)));
        close(rebuilt, Moved::by(Work::Rebuild, scheme, 4));
    }
}

#[test]
fn wrong_bytes_are_not_called_rebuilt() {
    use crate::transfer::PartStore;
    let directory = tempfile::tempdir().expect("a test may have a directory");
    let mut store = FileStore::new(directory.path(), Slot(3), 5000).expect("files can be made");
    let extent = |stream| Extent {
        slot: Slot(3),
        stream,
        offset: 0,
        len: 5000,
    };
    let data = store
        .read(DatasetId(1), extent(Stream::Data))
        .expect("it is there");
    let mut put = |bytes: &[u8]| {
        store
            .write(DatasetId(1), extent(Stream::Data), bytes, 0)
            .expect("it can be written");
        store.is_rebuilt().expect("it can be read")
    };
    assert!(put(&data));
    let mut wrong = data.to_vec();
    wrong[4999] ^= 1;
    assert!(!put(&wrong));
}
