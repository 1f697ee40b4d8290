//! Flushes and fetches that fail, and what waits for them.

use super::*;

fn output(id: u64) -> DatasetRecord {
    sealed(id, Class::Output, 1)
}

fn error(nodes: &Nodes, id: u64) -> Option<String> {
    nodes.shown[&DatasetId(id)].error.clone()
}

#[test]
fn nothing_passes_output_that_the_prefix_has_no_place_for() {
    for refusal in [Refusal::NoSpace, Refusal::Unavailable] {
        let records = [output(1), checkpoint(2), output(3)];
        let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &records);
        nodes.fail(Rank(0), refusal, "no place at /p");
        assert_eq!(nodes.flushing(), None, "{refusal:?}");
        let waits = "flush waits for `ckpt.1`, output that comes before it and failed";
        assert_eq!(error(&nodes, 2).as_deref(), Some(waits));
        assert_eq!(error(&nodes, 3).as_deref(), Some(waits));
        assert!(error(&nodes, 1).unwrap().contains("no place at /p"));
        assert!(!nodes.has_work(), "the job's end does not wait for it");
        nodes.pass(1_000);
        nodes.finish();
        assert_eq!(nodes.flushing().map(|(id, _)| id), Some(2));
        assert_eq!(error(&nodes, 3), None, "it waits its turn");
        assert_eq!(nodes.flush_all(), [2, 3]);
        assert_eq!([1, 2, 3].map(|id| error(&nodes, id)), [None, None, None]);
    }
}

#[test]
fn a_failure_when_it_is_to_be_made_visible_counts_as_any_other() {
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &[output(1), checkpoint(2)]);
    nodes.finish_work();
    let record = nodes.completing.pop().unwrap();
    let result = Err(Failure::new(Refusal::NoSpace, "no space for its entry"));
    let dataset = record.id;
    nodes.outcome(Rank(0), Outcome::FlushCompleted { dataset, result });
    assert_eq!(nodes.flushing(), None);
    nodes.pass(1_000);
    nodes.finish_work();
    let result = Err(Failure::new(Refusal::Failed, "is there and is not ours"));
    nodes.completing.clear();
    nodes.outcome(Rank(0), Outcome::FlushCompleted { dataset, result });
    assert_eq!(nodes.flush_all(), [2], "no space would help it");
    nodes.pass(60_000);
    assert_eq!(nodes.flush_all(), [1]);
}

#[test]
fn a_checkpoint_that_fails_is_passed_whatever_it_fails_of() {
    let records = [checkpoint(1), checkpoint(2)];
    let mut nodes = Nodes::start(1, &config(|_| {}), nothing(), &records);
    nodes.fail(Rank(0), Refusal::NoSpace, "no space");
    assert_eq!(nodes.flushing().map(|(id, _)| id), Some(2));
}

#[test]
fn output_that_is_to_be_rebuilt_is_waited_for_and_comes_first() {
    let two = |id, class| sealed(id, class, 2);
    let records = [two(1, Class::Output), two(2, Class::Checkpoint)];
    // The parts of the second node are gone, and its parity is on the first.
    let mut nodes = Nodes::start_without(Rank(1), &config(|_| {}), nothing(), &records);
    assert_eq!(nodes.flushing(), None);
    let rebuilding = |nodes: &Nodes| {
        let orders = nodes.works.iter().filter_map(|(_, _, order)| match order {
            Order::Rebuild { dataset, .. } => Some(dataset.0),
            _ => None,
        });
        orders
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    // The newest is worth most.
    assert_eq!(rebuilding(&nodes), [2]);
    nodes.finish();
    nodes.finish();
    assert_eq!((rebuilding(&nodes), nodes.flushing()), (vec![1], None));
    nodes.finish();
    assert_eq!(nodes.flushing(), None, "its parity");
    nodes.finish();
    assert_eq!(nodes.flush_all(), [1, 2]);
    // What cannot be rebuilt for want of space holds nothing up.
    let mut nodes = Nodes::start_without(Rank(1), &config(|_| {}), nothing(), &records);
    nodes.finish();
    nodes.finish();
    assert_eq!((rebuilding(&nodes), nodes.flushing()), (vec![1], None));
    nodes.fail(Rank(0), Refusal::NoSpace, "no space");
    nodes.fail(Rank(1), Refusal::Again, "given up");
    assert_eq!(nodes.flushing().map(|(id, _)| id), Some(2));
}

#[test]
fn a_prefix_that_cannot_be_looked_at_is_shown_at_what_is_due() {
    let every = config(|config| {
        config.flush.every = 2;
        config.store[0].count = 9;
    });
    let records = [checkpoint(1), checkpoint(2), checkpoint(4)];
    let mut nodes = Nodes::start(1, &every, None, &records);
    assert_eq!(error(&nodes, 2), None);
    let result = Err(Failure::new(Refusal::Unavailable, "/p does not answer"));
    nodes.outcome(Rank(0), Outcome::PrefixSeen { result });
    let away = "flush cannot begin: /p does not answer";
    assert_eq!(error(&nodes, 2).as_deref(), Some(away));
    assert_eq!(error(&nodes, 1), None, "it is not due");
    nodes.see(PrefixView::default());
    assert_eq!(error(&nodes, 2), None);
    // Once it was seen, only its flush shows what is wrong.
    let result = Err(Failure::new(Refusal::Unavailable, "/p does not answer"));
    nodes.outcome(Rank(0), Outcome::PrefixSeen { result });
    assert_eq!(error(&nodes, 4), None);
    assert_eq!(nodes.flush_all(), [2, 4]);
}

/// A node that has 3, and a prefix that has 2, which somebody wants.
fn wanting() -> Nodes {
    let view = PrefixView {
        complete: vec![flushed(2, Phase::Sealed), flushed(3, Phase::Sealed)],
        ..PrefixView::default()
    };
    let records = [flushed(3, Phase::Sealed)];
    let mut nodes = Nodes::start(1, &config(|_| {}), Some(view.clone()), &records);
    nodes.ask(1, fetch(b"ckpt.2"));
    nodes.see(view);
    assert!(nodes.is_fetching());
    nodes
}

#[test]
fn a_fetch_that_somebody_waits_for_is_tried_again() {
    let mut nodes = wanting();
    nodes.fail(Rank(0), Refusal::Unavailable, "stale file handle");
    assert!(!nodes.is_fetching() && nodes.replies.is_empty());
    // Who asks meanwhile waits as well, and nobody takes the name.
    nodes.ask(2, fetch(b"ckpt.2"));
    nodes.see(PrefixView {
        complete: vec![flushed(2, Phase::Sealed), flushed(3, Phase::Sealed)],
        ..PrefixView::default()
    });
    assert!(!nodes.is_fetching() && nodes.replies.is_empty());
    nodes.pass(1_000);
    assert!(nodes.is_fetching());
    nodes.finish();
    assert_eq!(nodes.replies, [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn who_waits_for_a_fetch_hears_in_the_end() {
    let mut nodes = wanting();
    for _ in 0..5 {
        nodes.fail(Rank(0), Refusal::Unavailable, "stale file handle");
        assert!(nodes.replies.is_empty());
        nodes.pass(60_000);
    }
    nodes.fail(Rank(0), Refusal::Unavailable, "stale file handle");
    assert_eq!(nodes.replies, [(1, Err(Refusal::Failed))]);
    // What no time heals is said at once.
    let mut nodes = wanting();
    nodes.fail(Rank(0), Refusal::Failed, "damaged");
    assert_eq!(nodes.replies, [(1, Err(Refusal::Failed))]);
    // Somebody deletes it, or marks it, while the next try is waited for.
    for (gone, refusal) in [(true, Refusal::Missing), (false, Refusal::Failed)] {
        let mut nodes = wanting();
        nodes.fail(Rank(0), Refusal::Unavailable, "stale file handle");
        let marked = BTreeSet::from([key(&flushed(2, Phase::Sealed))]);
        let (none, rest) = (BTreeSet::new(), vec![flushed(3, Phase::Sealed)]);
        let (gone, failed) = if gone { (marked, none) } else { (none, marked) };
        nodes.see(PrefixView {
            complete: rest,
            gone,
            failed,
            ..PrefixView::default()
        });
        assert_eq!(nodes.replies, [(1, Err(refusal))]);
        nodes.pass(60_000);
        assert!(!nodes.is_fetching());
    }
}

#[test]
fn looks_that_fail_are_repeated_before_who_wants_something_hears_of_it() {
    let view = PrefixView {
        complete: vec![flushed(2, Phase::Sealed)],
        ..PrefixView::default()
    };
    let away = |refusal| Outcome::PrefixSeen {
        result: Err(Failure::new(refusal, "away")),
    };
    let start = || Nodes::start(1, &config(|_| {}), Some(view.clone()), &[checkpoint(3)]);
    let mut nodes = start();
    nodes.ask(1, fetch(b"ckpt.2"));
    for _ in 0..5 {
        nodes.outcome(Rank(0), away(Refusal::Unavailable));
        assert!(nodes.replies.is_empty());
    }
    nodes.outcome(Rank(0), away(Refusal::Unavailable));
    assert_eq!(nodes.replies, [(1, Err(Refusal::Failed))]);
    let mut nodes = start();
    nodes.ask(1, fetch(b"ckpt.2"));
    nodes.outcome(Rank(0), away(Refusal::Failed));
    assert_eq!(nodes.replies, [(1, Err(Refusal::Failed))]);
    let mut nodes = start();
    nodes.ask(1, fetch(b"ckpt.2"));
    nodes.outcome(Rank(0), away(Refusal::Unavailable));
    nodes.see(view.clone());
    assert!(nodes.is_fetching() && nodes.replies.is_empty());
}

impl Nodes {
    /// Two nodes, of which one has lost what it had.
    fn start_without(
        empty: Rank,
        config: &Config,
        view: Option<PrefixView>,
        records: &[DatasetRecord],
    ) -> Self {
        Self::start_where(2, config, view, records, &|_| true, &|rank| rank != empty)
    }

    fn has_work(&self) -> bool {
        !self.nodes[0].is_idle(self.now())
    }

    fn is_fetching(&self) -> bool {
        let fetch = |order: &Order| matches!(order, Order::Fetch { .. });
        self.works.iter().any(|(_, _, order)| fetch(order))
    }

    /// All work that has begun ends well; flushes wait to be made visible.
    pub(super) fn finish_work(&mut self) {
        for (at, ticket, _) in std::mem::take(&mut self.works) {
            let result = Ok(());
            self.outcome(at, Outcome::Worked { ticket, result });
        }
    }
}
