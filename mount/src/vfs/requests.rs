//! What programs asked that the coordinators must decide, and who waits for the answer.
//!
//! A request is kept until it is answered, over any number of coordinators: one that was sent to a
//! coordinator that died is sent again to the next, after [`Requests::connect`]'s `settled` was asked
//! whether it has come true meanwhile. Without a coordinator it fails after the grace time.
//!
//! Invariants: each request is answered once; answers run outside the lock. One lock, a leaf.

use scrfs::control::{FromDaemon, Refusal, Request};
use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Runs when the answer is known.
pub type Answer = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

struct Pending {
    what: Request,
    answer: Answer,
    sent: bool,
    since: Instant,
}

#[derive(Default)]
struct State {
    next: u64,
    outbox: Option<Sender<FromDaemon>>,
    gone_since: Option<Instant>,
    pending: BTreeMap<u64, Pending>,
}

/// All unanswered requests, and the way to the coordinator.
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
        let mut state = self.lock();
        state.next += 1;
        let request = state.next;
        let message = FromDaemon::Request {
            request,
            what: what.clone(),
        };
        let sent = state
            .outbox
            .as_ref()
            .is_some_and(|outbox| outbox.send(message).is_ok());
        if !sent {
            tracing::warn!(?what, "no coordinator yet; waiting for one");
        }
        let since = Instant::now();
        state.pending.insert(
            request,
            Pending {
                what,
                answer,
                sent,
                since,
            },
        );
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
    pub fn connect(
        &self,
        outbox: Sender<FromDaemon>,
        settled: impl Fn(&Request) -> Option<Result<(), Refusal>>,
    ) {
        // Asked outside the lock: the answer needs the names.
        let sent: Vec<(u64, Request)> = {
            let state = self.lock();
            let sent = state.pending.iter().filter(|(_, pending)| pending.sent);
            sent.map(|(request, pending)| (*request, pending.what.clone()))
                .collect()
        };
        let known: BTreeMap<u64, Result<(), Refusal>> = sent
            .into_iter()
            .filter_map(|(request, what)| Some((request, settled(&what)?)))
            .collect();
        let mut answers = Vec::new();
        let mut state = self.lock();
        for (request, mut pending) in std::mem::take(&mut state.pending) {
            match known.get(&request) {
                Some(result) => answers.push((pending.answer, *result)),
                None => {
                    let what = pending.what.clone();
                    pending.sent = outbox.send(FromDaemon::Request { request, what }).is_ok();
                    state.pending.insert(request, pending);
                }
            }
        }
        state.outbox = Some(outbox);
        state.gone_since = None;
        drop(state);
        answers
            .into_iter()
            .for_each(|(answer, result)| answer(result));
    }

    /// The coordinator is gone.
    pub fn disconnect(&self) {
        let mut state = self.lock();
        state.outbox = None;
        state.gone_since = Some(Instant::now());
    }

    /// The coordinator answered.
    pub fn reply(&self, request: u64, result: Result<(), Refusal>) {
        let pending = self.lock().pending.remove(&request);
        match pending {
            Some(pending) => (pending.answer)(result),
            None => tracing::warn!(request, "answer to a request that is not pending"),
        }
    }

    /// Without a coordinator for `grace`: fails what has waited that long.
    pub fn expire(&self, grace: Duration) {
        let mut state = self.lock();
        if state.outbox.is_some() {
            return;
        }
        let gone = state.gone_since;
        let late: Vec<u64> = state
            .pending
            .iter()
            .filter(|(_, pending)| {
                let since = gone.map_or(pending.since, |gone| gone.max(pending.since));
                since.elapsed() >= grace
            })
            .map(|(request, _)| *request)
            .collect();
        let late: Vec<Pending> = late
            .iter()
            .filter_map(|request| state.pending.remove(request))
            .collect();
        drop(state);
        for pending in late {
            tracing::error!(what = ?pending.what, ?grace, "no coordinator came: giving up");
            (pending.answer)(Err(Refusal::Again));
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
        requests.connect(outbox, |_| None);
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
        requests.connect(outbox, |_| None);
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
        requests.connect(outbox, |_| None);
        requests.ask(
            wait(),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        requests.disconnect();
        let (outbox, second) = mpsc::channel();
        requests.connect(outbox, |_| Some(Ok(())));
        assert_eq!(results.recv(), Ok(Ok(())));
        drop(requests);
        assert!(second.recv().is_err());
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
