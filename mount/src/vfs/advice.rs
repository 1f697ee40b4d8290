//! `.scr/need_checkpoint` and `.scr/interval`: what [`scrfs::interval`] says of this mount.
//!
//! Each opening of `need_checkpoint` is a question, which the leader answers: what is read of one handle does not
//! change. Processes that ask in one round at the same time wait for one answer.
//!
//! Lock: who asks, a leaf; answers run outside of it.

use super::handle::Open;
use super::namespace::Names;
use super::{Caller, FsError, FsResult, Vfs};
use scrfs::control::{FromDaemon, Refusal};
use scrfs::interval::{Asked, Asker, Askers, Situation, Times, Verdict};
use scrfs::layout::record::Phase;
use scrfs::process;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Length of an answer: a digit and the end of the line.
pub(super) const ANSWER_BYTES: usize = 2;

type Waiting = Box<dyn FnOnce(Result<bool, Refusal>) + Send>;

/// Who asks on this node.
#[derive(Default)]
pub(super) struct Questions {
    askers: Askers,
    /// Who waits for the answer of a round.
    waiting: BTreeMap<u64, Vec<Waiting>>,
}

/// When what happened to the checkpoints of programs.
pub(crate) fn checkpoint_times(names: &Names) -> Vec<Times> {
    let records = names.iter().map(|dataset| &dataset.record);
    let of_programs = records.filter(|record| {
        // What an earlier run left behind was never finished, and costs nobody anything now.
        record.class.is_checkpoint() && record.phase != Phase::Incomplete
    });
    of_programs.map(Times::of).collect()
}

/// The process that a thread belongs to.
pub fn asker(thread: u32) -> Asker {
    let seen = || {
        let (process, parent) = process::look(process::of_thread(thread)?)?;
        let parent = process::look(parent).map(|(parent, _)| parent);
        Some(Asker { process, parent })
    };
    match thread {
        0 => None,
        _ => seen(),
    }
    .unwrap_or(Asker::UNSEEN)
}

impl Vfs {
    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A program asks whether it shall checkpoint: `1` or `0`, and an end of line.
    pub(super) fn ask_need_checkpoint(
        self: &Arc<Self>,
        caller: Caller,
        answer: impl FnOnce(FsResult<u64>) + Send + 'static,
    ) {
        let asker = (self.settings().asker)(caller.pid);
        let should_exit = self.signs().should_exit();
        let vfs = Arc::clone(self);
        let open = move |verdict: Result<bool, Refusal>| {
            answer(verdict.map_err(FsError::Refused).map(|is_due| {
                let content: [u8; ANSWER_BYTES] = if is_due { *b"1\n" } else { *b"0\n" };
                vfs.handles.insert(Open::Content(content.to_vec())).0
            }));
        };
        let now_ms = self.now_ms();
        let mut questions = self.questions();
        let asked = questions
            .askers
            .ask(now_ms, asker, process::is_alive, should_exit);
        let question = match asked {
            Asked::Known(is_due) => {
                drop(questions);
                return open(Ok(is_due));
            }
            Asked::Ask(question) => question,
        };
        let waiting = questions.waiting.entry(question.round).or_default();
        waiting.push(Box::new(open));
        let is_first = waiting.len() == 1;
        drop(questions);
        // Who begins anew must say so.
        if is_first || question.after.is_some() {
            let vfs = Arc::downgrade(self);
            let answer = move |verdict| {
                if let Some(vfs) = vfs.upgrade() {
                    vfs.told(question.round, verdict);
                }
            };
            self.requests.question(question, Box::new(answer));
        }
    }

    fn told(&self, round: u64, verdict: Result<Verdict, Refusal>) {
        let now_ms = self.now_ms();
        let mut questions = self.questions();
        if let Ok(verdict) = verdict {
            questions.askers.told(now_ms, round, verdict);
        }
        let waiting = questions.waiting.remove(&round).unwrap_or_default();
        drop(questions);
        let is_due = verdict.map(|verdict| verdict.is_due);
        waiting.into_iter().for_each(|answer| answer(is_due));
    }

    /// What a coordinator must know before it is asked, if there is anything.
    pub(crate) fn verdicts(&self) -> Option<FromDaemon> {
        let verdicts = self.questions().askers.verdicts().clone();
        (verdicts.generation > 0).then_some(FromDaemon::Verdicts(verdicts))
    }

    /// Programs start anew.
    pub(super) fn forget_askers(&self) {
        self.questions().askers.begin_anew();
    }

    /// How often is best.
    pub(super) fn interval_text(&self) -> String {
        let names = self.read_names();
        let checkpoints = checkpoint_times(&names);
        let nodes = u32::try_from(names.nodes.len()).unwrap_or(u32::MAX).max(1);
        let (recovered, learnt) = (names.recovered, names.learnt);
        drop(names);
        let situation = Situation {
            rules: &self.settings().rules,
            checkpoints: &checkpoints,
            nodes,
            recovered,
            learnt,
        };
        situation.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_asks_for_its_process() {
        let thread = || asker(nix::unistd::gettid().as_raw() as u32);
        let me = thread();
        assert_eq!(me.process.pid, std::process::id());
        assert!(me.parent.is_some());
        assert_eq!(std::thread::spawn(thread).join().expect("a thread"), me);
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cat");
        let cat = asker(child.id());
        assert_eq!(cat.parent, Some(me.process));
        drop(child.stdin.take());
        child.wait().expect("waited for");
        assert_eq!(asker(0), Asker::UNSEEN);
    }
}
