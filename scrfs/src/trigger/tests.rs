//! Triggers: every profile's signs in the order its framework makes them, and what must never happen.

use super::*;
use crate::config::{Config, PROFILES, Sources};
use proptest::prelude::*;

fn commit(text: &str) -> CommitConfig {
    let (config, _) = Config::load(&Sources {
        env: &|name| (name == "PWD").then(|| "/p".to_owned()),
        user: Some(("scrfs.toml".into(), text.to_owned())),
        system: None,
        cli: Vec::new(),
    })
    .expect("valid");
    config.commit
}

fn profile(name: &str) -> Triggers {
    Triggers::new(commit(&format!("[commit]\nprofiles = [{name:?}]")))
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).expect("a path")
}

const A: DatasetId = DatasetId(1);
const B: DatasetId = DatasetId(2);

/// Proposals now, as names and settle times.
fn proposed(triggers: &mut Triggers, now_ms: u64) -> Vec<(String, u64)> {
    let all = triggers.poll(now_ms).into_iter();
    all.map(|it| (it.name.to_string(), it.settle_ms)).collect()
}

fn one(name: &str, settle_ms: u64) -> Vec<(String, u64)> {
    vec![(name.to_owned(), settle_ms)]
}

#[test]
fn every_profile_can_be_chosen_and_is_consistent() {
    for known in PROFILES {
        let config = commit(&format!("[commit]\nprofiles = [{:?}]", known.name));
        for temporary in known.temporary {
            let name = temporary.replace('*', "x");
            assert!(config.is_temporary(name.as_bytes()), "{}", known.name);
        }
    }
}

#[test]
fn orbax_commits_a_step_by_its_marker_and_no_item() {
    let mut triggers = profile("orbax");
    triggers.dataset(0, A, &name("7.orbax-checkpoint-tmp-9"), true);
    triggers.written(0, A, &path("commit_success.txt"));
    assert_eq!(proposed(&mut triggers, 1 << 30), [], "a rename is to come");
    triggers.dataset(0, B, &name("8"), true);
    triggers.written(0, B, &path("state/commit_success.txt"));
    triggers.written(0, B, &path("state.orbax-checkpoint-tmp/array"));
    assert_eq!(proposed(&mut triggers, 1 << 30), []);
    triggers.written(0, B, &path("commit_success.txt"));
    assert_eq!(proposed(&mut triggers, 0), one("8", 0));
    assert_eq!(proposed(&mut triggers, 1 << 30), [], "not twice");
}

#[test]
fn hf_trainer_settles_after_its_marker() {
    let mut triggers = profile("hf-trainer");
    triggers.dataset(0, A, &name("checkpoint-500"), true);
    for file in [
        "model.safetensors",
        "rng_state_0.pth",
        "sub/trainer_state.json",
    ] {
        triggers.written(0, A, &path(file));
    }
    assert_eq!(proposed(&mut triggers, 1 << 30), []);
    triggers.written(5, A, &path("trainer_state.json"));
    assert_eq!(proposed(&mut triggers, 5), one("checkpoint-500", 10_000));
}

#[test]
fn deepspeed_and_megatron_name_the_dataset_in_a_pointer() {
    let mut triggers = profile("deepspeed");
    triggers.dataset(0, A, &name("global_step10"), true);
    triggers.dataset(0, B, &name("global_step20"), true);
    triggers.pointer_written(0, &name("other"), b"global_step10");
    triggers.pointer_written(0, &name("latest"), b"global_step30");
    assert_eq!(proposed(&mut triggers, 0), []);
    triggers.pointer_written(0, &name("latest"), b"global_step10\n");
    assert_eq!(proposed(&mut triggers, 0), one("global_step10", 10_000));

    let mut triggers = profile("megatron");
    let tracker = name("latest_checkpointed_iteration.txt");
    triggers.dataset(0, A, &name("iter_0000010"), true);
    triggers.dataset(0, B, &name("release"), true);
    triggers.written(0, A, &path(".metadata"));
    for content in [
        "1",
        "10x",
        "",
        "99999999999999999999999",
        "release/../iter_0000010",
    ] {
        triggers.pointer_written(0, &tracker, content.as_bytes());
    }
    assert_eq!(proposed(&mut triggers, 0), []);
    triggers.pointer_written(0, &tracker, b"10");
    assert_eq!(proposed(&mut triggers, 0), one("iter_0000010", 0));
    triggers.pointer_written(0, &tracker, b"release");
    assert_eq!(proposed(&mut triggers, 0), one("release", 0));
}

#[test]
fn nemo_commits_when_the_marker_beside_goes() {
    let mut triggers = profile("nemo");
    triggers.dataset(0, A, &name("gpt-step=10"), true);
    triggers.written(0, A, &path("gpt-step=10-unfinished"));
    triggers.removed(0, A, &path("gpt-step=10-unfinished"));
    triggers.pointer_removed(0, &name("gpt-step=1-unfinished"));
    assert_eq!(proposed(&mut triggers, 1 << 30), []);
    triggers.pointer_removed(0, &name("gpt-step=10-unfinished"));
    assert_eq!(proposed(&mut triggers, 0), one("gpt-step=10", 0));
}

#[test]
fn lammps_commits_when_the_next_is_begun_and_the_last_when_quiet() {
    let mut triggers = profile("lammps");
    triggers.dataset(0, A, &name("restart.100"), true);
    triggers.dataset(0, B, &name("restart.200"), true);
    assert_eq!(proposed(&mut triggers, 1 << 30), [], "nothing is in it");
    triggers.written(0, A, &path("base"));
    triggers.written(0, B, &path("base"));
    triggers.dataset(0, DatasetId(3), &name("other"), true);
    assert_eq!(proposed(&mut triggers, CALM_MS - 1), []);
    triggers.dataset(10, DatasetId(4), &name("restart.300"), true);
    let both = [("restart.100".to_owned(), 0), ("restart.200".to_owned(), 0)];
    assert_eq!(proposed(&mut triggers, 10), both);
    triggers.written(20, DatasetId(4), &path("base"));
    assert_eq!(proposed(&mut triggers, 20), []);
    assert_eq!(
        proposed(&mut triggers, 20 + CALM_MS),
        one("restart.300", 60_000)
    );
    // What knows better does not wait for the answer.
    triggers.dataset(2000, DatasetId(5), &name("restart.400"), true);
    assert_eq!(proposed(&mut triggers, 2000), one("restart.300", 0));
}

#[test]
fn a_profile_of_certain_names_goes_before_one_of_all_names() {
    let text = "[commit]\nprofiles = ['torch-dcp', 'megatron']\n\
                [[commit.trigger]]\nmatch = 'mine*'\nmarker = 'done/*'\nsettle_seconds = 3";
    let mut triggers = Triggers::new(commit(text));
    triggers.dataset(0, A, &name("iter_0000010"), true);
    triggers.written(0, A, &path(".metadata"));
    assert_eq!(proposed(&mut triggers, 0), [], "metadata.json is to come");
    triggers.dataset(0, B, &name("step-10"), true);
    triggers.written(0, B, &path("model/.metadata"));
    assert_eq!(proposed(&mut triggers, 0), []);
    triggers.written(0, B, &path(".metadata"));
    assert_eq!(proposed(&mut triggers, 0), one("step-10", 0));
    triggers.dataset(0, DatasetId(3), &name("mine1"), true);
    triggers.written(0, DatasetId(3), &path(".metadata"));
    triggers.written(0, DatasetId(3), &path("done/a/b"));
    assert_eq!(proposed(&mut triggers, 0), []);
    triggers.written(0, DatasetId(3), &path("done/a"));
    assert_eq!(proposed(&mut triggers, 0), one("mine1", 3000));
}

#[test]
fn a_refused_proposal_comes_again_ever_less_often_until_it_is_sealed() {
    let mut triggers = profile("torch-dcp");
    triggers.dataset(0, A, &name("step-1"), true);
    triggers.written(0, A, &path(".metadata"));
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let all = triggers.poll(now);
        let [proposal] = &all[..] else {
            panic!("one proposal at {now}: {all:?}")
        };
        triggers.answered(now, proposal, Err(Refusal::Busy));
        let began = now;
        while triggers.watched[&A]
            .wanted
            .as_ref()
            .is_some_and(|it| it.due_ms > now)
        {
            assert_eq!(triggers.poll(now), []);
            now += 500;
        }
        pauses.push((now - began) / 1000);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    triggers.dataset(now, A, &name("step-1"), false);
    assert_eq!(triggers.poll(u64::MAX), []);
}

/// One thing that may happen.
#[derive(Clone, Debug)]
enum Event {
    Dataset {
        id: u64,
        temporary: bool,
        open: bool,
    },
    Written {
        id: u64,
        marker: bool,
    },
    Pointer {
        id: u64,
    },
    Removed {
        id: u64,
    },
    Answer {
        which: usize,
        refusal: Option<Refusal>,
    },
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let id = 1..5_u64;
    let refusal = prop::option::of(prop::sample::select(vec![
        Refusal::Busy,
        Refusal::Again,
        Refusal::Failed,
        Refusal::Missing,
        Refusal::ReadOnly,
    ]));
    let event = prop_oneof![
        (id.clone(), any::<bool>(), prop::bool::weighted(0.8)).prop_map(|(id, temporary, open)| {
            Event::Dataset {
                id,
                temporary,
                open,
            }
        }),
        (id.clone(), any::<bool>()).prop_map(|(id, marker)| Event::Written { id, marker }),
        id.clone().prop_map(|id| Event::Pointer { id }),
        id.prop_map(|id| Event::Removed { id }),
        (0..4_usize, refusal).prop_map(|(which, refusal)| Event::Answer { which, refusal }),
        (0..100_000_u64).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 0..60)
}

const ALL: &str = r#"
[[commit.trigger]]
match = "d.*"
marker = "done"
settle_seconds = 5
[[commit.trigger]]
match = "d.*"
pointer = "latest"
names = "d.{content:03}"
settle_seconds = 2
[[commit.trigger]]
match = "d.*"
removed = "../{name}-unfinished"
settle_seconds = 0
[[commit.trigger]]
match = "d.*"
next = true
settle_seconds = 1
[[commit.trigger]]
match = "d.*"
quiet_seconds = 30
"#;

/// What a dataset's signs so far ask for, kept without the machine.
#[derive(Clone, Default)]
struct Model {
    name: String,
    open: bool,
    touched: bool,
    settle_ms: Option<u64>,
    /// Settle time of the proposal that is not answered.
    asked: Option<u64>,
}

impl Model {
    fn sign(&mut self, settle_ms: u64) {
        if self.open && !self.name.ends_with(".tmp") {
            let least = self.settle_ms.map_or(settle_ms, |held| held.min(settle_ms));
            self.settle_ms = Some(least);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Only what is open, final and signed for is proposed, with the least settling its signs ask for;
    /// one proposal at a time, unless a stronger sign came; and what is not sealed is never forgotten.
    #[test]
    fn invariant_proposals_follow_signs(events in events()) {
        let mut triggers = Triggers::new(commit(ALL));
        let mut models = vec![Model::default(); 5];
        let mut asked: Vec<Proposal> = Vec::new();
        let mut newest = 0;
        let mut now = 0;
        for event in events {
            match event {
                Event::Dataset { id, temporary, open } => {
                    let text = format!("d.{id:03}{}", if temporary { ".tmp" } else { "" });
                    triggers.dataset(now, DatasetId(id), &name(&text), open);
                    if open && id > newest && !temporary {
                        for older in models.iter_mut().filter(|it| it.open && it.touched) {
                            older.sign(1000);
                        }
                    }
                    newest = newest.max(id);
                    let model = &mut models[id as usize];
                    if !open || model.name != text || !model.open {
                        let touched = open && model.open && model.touched
                            && !model.name.ends_with(".tmp");
                        *model = Model { name: text, open, touched, ..Model::default() };
                    }
                }
                Event::Written { id, marker } => {
                    let file = path(if marker { "done" } else { "data" });
                    triggers.written(now, DatasetId(id), &file);
                    let model = &mut models[id as usize];
                    model.touched = model.open;
                    if marker {
                        model.sign(5000);
                    }
                    if model.settle_ms.is_none() {
                        model.sign(30_000);
                    }
                }
                Event::Pointer { id } => {
                    triggers.pointer_written(now, &name("latest"), format!("{id}\n").as_bytes());
                    models[id as usize].sign(2000);
                }
                Event::Removed { id } => {
                    triggers.pointer_removed(now, &name(&format!("d.{id:03}-unfinished")));
                    models[id as usize].sign(0);
                }
                Event::Answer { which, refusal } if which < asked.len() => {
                    let proposal = asked.remove(which);
                    triggers.answered(now, &proposal, refusal.map_or(Ok(()), Err));
                    let model = &mut models[proposal.dataset.0 as usize];
                    let last = triggers.watched.get(&proposal.dataset)
                        .and_then(|it| it.wanted.as_ref()).is_some_and(|it| it.asked.is_some());
                    if !last {
                        model.asked = None;
                    }
                    let ended = !triggers.watches(proposal.dataset);
                    if ended && model.open {
                        // The next record says so.
                        *model = Model::default();
                    }
                }
                Event::Answer { .. } => {}
                Event::Pass(milliseconds) => now += milliseconds,
            }
            for proposal in triggers.poll(now) {
                let model = &mut models[proposal.dataset.0 as usize];
                prop_assert!(model.open, "{:?} is not open", proposal);
                prop_assert_eq!(&model.name, &proposal.name.to_string());
                prop_assert!(!model.name.ends_with(".tmp"));
                prop_assert_eq!(model.settle_ms, Some(proposal.settle_ms));
                prop_assert!(model.asked.is_none_or(|held| proposal.settle_ms < held));
                model.asked = Some(proposal.settle_ms);
                asked.push(proposal);
            }
        }
        // Whoever is refused for good here asks again.
        for proposal in asked {
            triggers.answered(now, &proposal, Err(Refusal::Busy));
        }
        let again: Vec<String> = triggers.poll(u64::MAX).iter().map(|it| it.name.to_string()).collect();
        for model in models.iter().filter(|it| it.open && it.settle_ms.is_some()) {
            prop_assert!(again.contains(&model.name), "{} is forgotten", model.name);
        }
    }
}
