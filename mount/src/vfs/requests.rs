//! What is asked of the coordinators: decisions for programs, pieces of datasets that lie on
//! other nodes, whether to checkpoint; and who waits for the answer.
//!
//! A question is kept until it is answered, over any number of coordinators: one that was sent to a
//! coordinator that died is sent again to the next; of a decision, after [`Requests::connect`]'s
//! `settled` was asked what has come of it meanwhile ([`Settled`]). Without a coordinator it fails after the
//! grace time. A piece refused with [`Refusal::Again`] is asked for again at each tick, for the grace
//! time of one coordinator.
//!
//! Invariants: each question is answered once; answers run outside the lock. One lock, a leaf.

use scrfs::control::{FromDaemon, Piece, Refusal, Request};
use scrfs::id::{DatasetId, Slot};
use scrfs::interval::{Question, Verdict};
use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Runs when the answer is known.
pub type Answer = Box<dyn FnOnce(Result<(), Refusal>) + Send>;
/// Runs when the piece is there, or not to be had.
pub type PieceAnswer = Box<dyn FnOnce(Result<Vec<u8>, Refusal>) + Send>;

/// Runs when it is known whether to checkpoint.
pub type VerdictAnswer = Box<dyn FnOnce(Result<Verdict, Refusal>) + Send>;

/// A piece of a sealed dataset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Of which slot.
    pub slot: Slot,
    /// What.
    pub piece: Piece,
}

enum What {
    Decision(Request, Answer),
    Piece(Wanted, PieceAnswer),
    Question(Question, VerdictAnswer),
}

impl What {
    fn message(&self, request: u64) -> FromDaemon {
        match self {
            Self::Decision(what, _) => FromDaemon::Request {
                request,
                what: what.clone(),
            },
            Self::Piece(wanted, _) => FromDaemon::Fetch {
                request,
                dataset: wanted.dataset,
                slot: wanted.slot,
                piece: wanted.piece.clone(),
            },
            Self::Question(question, _) => FromDaemon::Question {
                request,
                question: *question,
            },
        }
    }

    fn refuse(self, refusal: Refusal) {
        match self {
            Self::Decision(_, answer) => answer(Err(refusal)),
            Self::Piece(_, answer) => answer(Err(refusal)),
            Self::Question(_, answer) => answer(Err(refusal)),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Decision(what, _) => format!("{what:?}"),
            Self::Piece(wanted, _) => format!("{wanted:?}"),
            Self::Question(question, _) => format!("{question:?}"),
        }
    }
}

/// What is known of a decision that was asked of a coordinator that went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// The answer.
    Answer(Result<(), Refusal>),
    /// This node has carried it out, and others may not have: it is asked again, and this refusal then says
    /// no more than that.
    Here(Refusal),
    /// Nothing: it is asked again.
    Unknown,
}

struct Pending {
    what: What,
    /// Such a refusal means that it is done.
    done_is: Option<Refusal>,
    sent: bool,
    since: Instant,
}

#[derive(Default)]
struct State {
    next: u64,
    outbox: Option<Sender<FromDaemon>>,
    /// When the last coordinator came or went.
    changed: Option<Instant>,
    pending: BTreeMap<u64, Pending>,
}

/// All unanswered questions, and the way to the coordinator.
#[derive(Default)]
pub struct Requests {
    state: Mutex<State>,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the coordinator, now or when there is one.
    pub fn ask(&self, what: Request, answer: Answer) {
        self.put(What::Decision(what, answer));
    }

    /// Wants a piece of a sealed dataset, now or when there is a coordinator.
    pub fn fetch(&self, wanted: Wanted, answer: PieceAnswer) {
        self.put(What::Piece(wanted, answer));
    }

    /// Asks whether to checkpoint, now or when there is a coordinator.
    pub fn question(&self, question: Question, answer: VerdictAnswer) {
        self.put(What::Question(question, answer));
    }

    fn put(&self, what: What) {
        let mut state = self.lock();
        state.next += 1;
        let request = state.next;
        let message = what.message(request);
        let sent = state
            .outbox
            .as_ref()
            .is_some_and(|outbox| outbox.send(message).is_ok());
        if !sent {
            tracing::warn!(what = what.words(), "no coordinator yet; waiting for one");
        }
        let since = Instant::now();
        let pending = Pending {
            what,
            done_is: None,
            sent,
            since,
        };
        state.pending.insert(request, pending);
    }

    /// Tells the coordinator something, if there is one.
    pub fn tell(&self, message: FromDaemon) {
        if let Some(outbox) = &self.lock().outbox {
            // It is going away; whoever reads its connection says so.
            let _ = outbox.send(message);
        }
    }

    /// Whether a coordinator is there.
    pub fn is_connected(&self) -> bool {
        self.lock().outbox.is_some()
    }

    /// A coordinator is there. What `settled` knows the answer of is answered; the rest is sent.
    pub fn connect(&self, outbox: Sender<FromDaemon>, settled: impl Fn(&Request) -> Settled) {
        // Asked outside the lock: the answer needs the names.
        let sent: Vec<(u64, Request)> = {
            let state = self.lock();
            let sent = state.pending.iter().filter(|(_, pending)| pending.sent);
            sent.filter_map(|(request, pending)| match &pending.what {
                What::Decision(what, _) => Some((*request, what.clone())),
                What::Piece(..) | What::Question(..) => None,
            })
            .collect()
        };
        let known: BTreeMap<u64, Settled> = sent
            .into_iter()
            .map(|(request, what)| (request, settled(&what)))
            .collect();
        let mut answers = Vec::new();
        let mut state = self.lock();
        for (request, mut pending) in std::mem::take(&mut state.pending) {
            match (known.get(&request), pending.what) {
                (Some(Settled::Answer(result)), What::Decision(_, answer)) => {
                    answers.push((answer, *result));
                }
                (known, what) => {
                    if let Some(Settled::Here(refusal)) = known {
                        pending.done_is = Some(*refusal);
                    }
                    pending.sent = outbox.send(what.message(request)).is_ok();
                    pending.what = what;
                    state.pending.insert(request, pending);
                }
            }
        }
        state.outbox = Some(outbox);
        state.changed = Some(Instant::now());
        drop(state);
        answers
            .into_iter()
            .for_each(|(answer, result)| answer(result));
    }

    /// The coordinator is gone.
    pub fn disconnect(&self) {
        let mut state = self.lock();
        state.outbox = None;
        state.changed = Some(Instant::now());
    }

    /// The coordinator answered a request.
    pub fn reply(&self, request: u64, result: Result<(), Refusal>) {
        let mut state = self.lock();
        let pending = state.pending.remove(&request);
        drop(state);
        match pending {
            Some(Pending {
                what: What::Decision(_, answer),
                done_is,
                ..
            }) => answer(match result {
                Err(refusal) if done_is == Some(refusal) => Ok(()),
                _ => result,
            }),
            Some(Pending { what, .. }) => {
                tracing::error!(request, "a decision where something else was asked for");
                what.refuse(Refusal::Failed);
            }
            None => tracing::warn!(request, "answer to a request that is not pending"),
        }
    }

    /// The coordinator brought a piece, or says why not.
    pub fn reply_piece(&self, request: u64, result: Result<Vec<u8>, Refusal>) {
        let mut state = self.lock();
        if result == Err(Refusal::Again)
            && let Some(pending) = state.pending.get_mut(&request)
            && matches!(pending.what, What::Piece(..))
        {
            // Asked again at the next tick.
            pending.sent = false;
            return;
        }
        let pending = state.pending.remove(&request);
        drop(state);
        match pending.map(|pending| pending.what) {
            Some(What::Piece(_, answer)) => answer(result),
            Some(what) => {
                tracing::error!(request, "a piece where something else was asked for");
                what.refuse(Refusal::Failed);
            }
            None => tracing::warn!(request, "a piece that nobody asked for"),
        }
    }

    /// The coordinator says whether to checkpoint.
    pub fn reply_verdict(&self, request: u64, verdict: Verdict) {
        let mut state = self.lock();
        if state.outbox.is_none() {
            // Of one that went: the next is asked, and must not say otherwise.
            return;
        }
        let pending = state.pending.remove(&request);
        drop(state);
        match pending.map(|pending| pending.what) {
            Some(What::Question(_, answer)) => answer(Ok(verdict)),
            Some(what) => {
                tracing::error!(request, "a verdict where something else was asked for");
                what.refuse(Refusal::Failed);
            }
            None => tracing::warn!(request, "a verdict that nobody asked for"),
        }
    }

    /// Asks again what is to be asked again; fails what has waited for `grace` without a coordinator
    /// that answers. To be called several times a second.
    pub fn expire(&self, grace: Duration) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let changed = state.changed;
        let mut late = Vec::new();
        for (request, pending) in &mut state.pending {
            if pending.sent && state.outbox.is_some() {
                continue;
            }
            let since = changed.map_or(pending.since, |at| at.max(pending.since));
            if since.elapsed() >= grace {
                late.push(*request);
            } else if let Some(outbox) = &state.outbox {
                pending.sent = outbox.send(pending.what.message(*request)).is_ok();
            }
        }
        let late: Vec<Pending> = late
            .iter()
            .filter_map(|request| state.pending.remove(request))
            .collect();
        drop(guard);
        for pending in late {
            let what = pending.what.words();
            tracing::error!(what, ?grace, "no coordinator came or answered: giving up");
            pending.what.refuse(Refusal::Again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrfs::control::Level;
    use scrfs::id::DatasetId;
    use std::sync::mpsc;

    fn wait() -> Request {
        Request::Wait {
            dataset: DatasetId(3),
            level: Level::Sealed,
        }
    }

    #[test]
    fn a_request_outlives_its_coordinator_and_is_answered_once() {
        let requests = Requests::default();
        let (done, results) = mpsc::channel();
        let (outbox, first) = mpsc::channel();
        requests.connect(outbox, |_| Settled::Unknown);
        requests.ask(
            wait(),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        let Ok(FromDaemon::Request { request, .. }) = first.recv() else {
            panic!("sent")
        };
        requests.disconnect();
        let (outbox, second) = mpsc::channel();
        requests.connect(outbox, |_| Settled::Unknown);
        assert_eq!(
            second.recv(),
            Ok(FromDaemon::Request {
                request,
                what: wait()
            })
        );
        requests.reply(request, Ok(()));
        requests.reply(request, Ok(()));
        assert_eq!(results.recv(), Ok(Ok(())));
        assert!(results.recv().is_err(), "once");
    }

    #[test]
    fn what_came_true_meanwhile_is_not_asked_again() {
        let requests = Requests::default();
        let (done, results) = mpsc::channel();
        let (outbox, _first) = mpsc::channel();
        requests.connect(outbox, |_| Settled::Unknown);
        requests.ask(
            wait(),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        requests.disconnect();
        let (outbox, second) = mpsc::channel();
        requests.connect(outbox, |_| Settled::Answer(Ok(())));
        assert_eq!(results.recv(), Ok(Ok(())));
        drop(requests);
        assert!(second.recv().is_err());
    }

    #[test]
    fn what_was_done_here_is_asked_for_the_others_and_its_refusal_is_none() {
        for (settled, refusal, expected) in [
            (Settled::Here(Refusal::Exists), Refusal::Exists, Ok(())),
            (
                Settled::Here(Refusal::Exists),
                Refusal::NoSpace,
                Err(Refusal::NoSpace),
            ),
            (Settled::Unknown, Refusal::Exists, Err(Refusal::Exists)),
        ] {
            let requests = Requests::default();
            let (done, results) = mpsc::channel();
            let (outbox, _first) = mpsc::channel();
            requests.connect(outbox, |_| Settled::Unknown);
            requests.ask(
                wait(),
                Box::new(move |result| {
                    let _ = done.send(result);
                }),
            );
            requests.disconnect();
            let (outbox, second) = mpsc::channel();
            requests.connect(outbox, |_| settled);
            let Ok(FromDaemon::Request { request, .. }) = second.try_recv() else {
                panic!("asked again, of {settled:?}")
            };
            requests.reply(request, Err(refusal));
            assert_eq!(results.recv(), Ok(expected), "{settled:?}");
        }
    }

    #[test]
    fn a_piece_is_asked_for_again_until_it_comes() {
        let requests = Requests::default();
        let (done, results) = mpsc::channel();
        let wanted = Wanted {
            dataset: DatasetId(3),
            slot: Slot(1),
            piece: Piece::Manifest,
        };
        let (outbox, first) = mpsc::channel();
        requests.connect(outbox, |_| Settled::Unknown);
        requests.fetch(
            wanted.clone(),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        let asked = |from: &mpsc::Receiver<FromDaemon>| match from.try_recv() {
            Ok(FromDaemon::Fetch {
                request,
                slot: Slot(1),
                ..
            }) => Some(request),
            _ => None,
        };
        let request = asked(&first).expect("asked");
        requests.reply_piece(request, Err(Refusal::Again));
        assert!(asked(&first).is_none());
        requests.expire(Duration::from_secs(600));
        assert_eq!(asked(&first), Some(request), "again at the tick");
        requests.expire(Duration::from_secs(600));
        assert_eq!(asked(&first), None, "once");
        requests.disconnect();
        let (outbox, second) = mpsc::channel();
        requests.connect(outbox, |_| panic!("a piece is never settled"));
        assert_eq!(asked(&second), Some(request), "of the next coordinator");
        requests.reply_piece(request, Ok(vec![7]));
        requests.reply_piece(request, Ok(vec![8]));
        assert_eq!(results.recv(), Ok(Ok(vec![7])));
        assert!(results.recv().is_err(), "once");
    }

    #[test]
    fn without_a_coordinator_it_fails_after_the_grace_time() {
        let requests = Requests::default();
        let (done, results) = mpsc::channel();
        requests.ask(
            wait(),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        requests.expire(Duration::from_secs(600));
        assert!(results.try_recv().is_err());
        requests.expire(Duration::ZERO);
        assert_eq!(results.recv(), Ok(Err(Refusal::Again)));
    }
}
