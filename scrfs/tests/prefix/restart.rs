//! What is taken from the prefix: to restart from, or because somebody wants it.

use super::*;

#[test]
fn a_restart_in_place_is_offered_when_its_files_were_seen_and_nothing_is_fetched_unasked() {
    let view = PrefixView {
        complete: vec![flushed(1, Phase::Sealed), flushed(2, Phase::Sealed)],
        ..PrefixView::default()
    };
    let bypass = config(|config| config.restart.bypass = true);
    let mut nodes = Nodes::start(2, &bypass, Some(view.clone()), &[]);
    let checked = |nodes: &Nodes| {
        let orders = nodes.works.iter().map(|(at, _, order)| (at, order));
        let checked = orders.map(|(at, order)| match order {
            Order::CheckInPlace { record, holders } => (record.id.0, at.0, holders.len()),
            other => panic!("{other:?}"),
        });
        checked.collect::<BTreeSet<_>>()
    };
    assert_eq!(
        (nodes.ready, checked(&nodes)),
        (None, BTreeSet::from([(2, 0, 1), (2, 1, 1)]))
    );
    nodes.finish();
    assert_eq!((nodes.ready, nodes.works.len()), (Some(Some(2)), 0));
    assert_eq!(nodes.state(2), Some(State::Evicted), "everybody knows it");
    // Who wants it in the caches gets it.
    let name = Name::new(b"ckpt.2").unwrap();
    nodes.ask(5, Request::Fetch { name });
    nodes.see(view.clone());
    assert!(matches!(nodes.works[..], [(_, _, Order::Fetch { .. }), ..]));
    // What a person has marked is not offered, here either.
    let marked = PrefixView {
        failed: BTreeSet::from([key(&view.complete[1])]),
        ..view.clone()
    };
    let mut nodes = Nodes::start(2, &bypass, Some(marked), &[]);
    nodes.finish();
    assert_eq!((nodes.ready, nodes.works.len()), (Some(Some(1)), 0));
    // Nor is one of which a node misses a file; the next older one is.
    let mut nodes = Nodes::start(2, &bypass, Some(view.clone()), &[]);
    nodes.fail(Rank(1), Refusal::Failed, "no such file");
    nodes.finish();
    assert_eq!(checked(&nodes), BTreeSet::from([(1, 0, 1), (1, 1, 1)]));
    let error = nodes.shown[&DatasetId(2)].error.clone();
    assert_eq!(
        error.as_deref(),
        Some("not restarted from: rank 1: no such file")
    );
    nodes.finish();
    assert_eq!((nodes.ready, nodes.works.len()), (Some(Some(1)), 0));
    // And nothing, where there is no other.
    let one = PrefixView {
        complete: vec![flushed(2, Phase::Sealed)],
        ..PrefixView::default()
    };
    let mut nodes = Nodes::start(2, &bypass, Some(one), &[]);
    nodes.fail(Rank(0), Refusal::Failed, "no such file");
    nodes.finish();
    assert_eq!((nodes.ready, nodes.works.len()), (Some(None), 0));
    // What the caches have is not read in the prefix.
    let record = sealed(3, Class::Checkpoint, 2);
    let nodes = Nodes::start(2, &bypass, Some(view.clone()), &[record]);
    assert_eq!(nodes.ready, Some(Some(3)));
    // Nobody has asked for it.
    let nodes = Nodes::start(2, &config(|_| {}), Some(view), &[]);
    assert_eq!((nodes.ready, nodes.works.len()), (None, 2));
}

#[test]
fn a_prefix_that_is_away_for_a_moment_does_not_cost_the_newest() {
    let view = PrefixView {
        complete: vec![flushed(1, Phase::Sealed), flushed(2, Phase::Sealed)],
        ..PrefixView::default()
    };
    let wanted = |nodes: &Nodes| {
        let orders = nodes.works.iter().filter_map(|(_, _, order)| match order {
            Order::Fetch { record, .. } | Order::CheckInPlace { record, .. } => Some(record.id.0),
            _ => None,
        });
        orders.collect::<Vec<_>>()
    };
    for bypass in [false, true] {
        let config = config(|config| config.restart.bypass = bypass);
        let mut nodes = Nodes::start(2, &config, Some(view.clone()), &[]);
        let away = |nodes: &mut Nodes| {
            nodes.fail(Rank(1), Refusal::Unavailable, "stale");
            nodes.fail(Rank(0), Refusal::Again, "failed elsewhere");
        };
        for pause in [1_000, 2_000, 4_000, 8_000, 16_000] {
            assert_eq!((wanted(&nodes), nodes.ready), (vec![2, 2], None));
            away(&mut nodes);
            let error = nodes.shown[&DatasetId(2)].error.clone().unwrap();
            assert!(
                error.ends_with("will be tried again: rank 1: stale"),
                "{error}"
            );
            nodes.pass(pause - 1);
            assert_eq!(wanted(&nodes), [0; 0]);
            nodes.pass(1);
        }
        // One more, and the older one is what there is.
        away(&mut nodes);
        assert_eq!((wanted(&nodes), nodes.ready), (vec![1, 1], None));
        // It is there at the second try.
        away(&mut nodes);
        nodes.pass(1_000);
        nodes.finish();
        assert_eq!(nodes.ready, Some(Some(1)));
    }
    // What will not be better is not tried again, though another's may.
    let mut nodes = Nodes::start(2, &config(|_| {}), Some(view), &[]);
    nodes.fail(Rank(0), Refusal::Unavailable, "stale");
    nodes.fail(Rank(1), Refusal::Failed, "damaged");
    assert_eq!(wanted(&nodes), [1, 1]);
}

#[test]
fn a_fetch_looks_first_and_is_answered_when_it_is_there() {
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &[checkpoint(4)]);
    nodes.flush_all();
    let ask = |name: &[u8]| Request::Fetch {
        name: Name::new(name).unwrap(),
    };
    nodes.ask(1, ask(b"ckpt.2"));
    nodes.ask(2, ask(b"ckpt.3"));
    nodes.ask(3, ask(b"ckpt.4"));
    assert_eq!((nodes.looks, nodes.replies.len()), (3, 0));
    let view = PrefixView {
        complete: vec![flushed(2, Phase::Sealed)],
        ..PrefixView::default()
    };
    nodes.see(view.clone());
    let replies = [(2, Err(Refusal::Missing)), (3, Ok(()))];
    assert_eq!(nodes.replies, replies);
    let orders: Vec<_> = nodes.works.iter().map(|(_, _, order)| order).collect();
    assert!(
        matches!(orders[..], [Order::Fetch { record, .. }] if record.id == DatasetId(2)),
        "{orders:?}"
    );
    nodes.finish();
    assert_eq!(nodes.replies[2..], [(1, Ok(()))]);
    assert_eq!(nodes.state(2), Some(State::Flushed));
    // It is there now.
    nodes.ask(9, ask(b"ckpt.2"));
    nodes.see(view);
    assert_eq!(nodes.replies[3..], [(9, Ok(()))]);
    let fetches = |(_, _, order): &(_, _, Order)| matches!(order, Order::Fetch { .. });
    assert!(!nodes.works.iter().any(fetches));
}

#[test]
fn a_fetch_that_is_asked_before_programs_may_start_waits() {
    let wanted = config(|config| config.restart.fetch = true);
    let view = PrefixView {
        complete: vec![flushed(2, Phase::Sealed), flushed(5, Phase::Sealed)],
        ..PrefixView::default()
    };
    let mut nodes = Nodes::start(1, &wanted, Some(view.clone()), &[]);
    let fetches = |nodes: &Nodes| {
        let orders = nodes.works.iter().map(|(_, _, order)| order);
        let fetched = orders.filter_map(|order| match order {
            Order::Fetch { record, .. } => Some(record.id.0),
            _ => None,
        });
        fetched.collect::<Vec<_>>()
    };
    assert_eq!(fetches(&nodes), [5], "what to restart from");
    nodes.ask(1, fetch(b"ckpt.2"));
    nodes.see(view.clone());
    assert_eq!((fetches(&nodes), nodes.replies.len()), (vec![5], 0));
    let looks = nodes.looks;
    while !nodes.works.is_empty() && fetches(&nodes) != [2] {
        nodes.finish();
    }
    assert_eq!(
        (nodes.looks, nodes.replies.len()),
        (looks + 1, 0),
        "now it may look"
    );
    nodes.see(view);
    assert_eq!(fetches(&nodes), [2]);
    nodes.finish();
    assert_eq!(nodes.replies, [(1, Ok(()))]);
}

#[test]
fn what_only_the_prefix_has_is_told_when_it_changes() {
    let view = |ids: &[u64]| PrefixView {
        complete: ids.iter().map(|&id| flushed(id, Phase::Sealed)).collect(),
        ..PrefixView::default()
    };
    let cached = [flushed(9, Phase::Sealed)];
    let mut nodes = Nodes::start(1, &config(|_| {}), Some(view(&[2])), &cached);
    assert_eq!(
        (nodes.shelves, &nodes.shelf[..]),
        (1, &["ckpt.2".into()][..])
    );
    for _ in 0..3 {
        nodes.see(view(&[2]));
    }
    assert_eq!(nodes.shelves, 1);
    nodes.see(view(&[2, 3]));
    assert_eq!((nodes.shelves, nodes.shelf.len()), (2, 2));
    nodes.see(view(&[]));
    assert_eq!((nodes.shelves, nodes.shelf.len()), (3, 0));
}
