//! Profiles and `[[commit.trigger]]` as users meet them.

use super::{Config, error, load};

#[test]
fn messages_about_triggers_name_file_line_and_remedy() {
    for (text, expected) in [
        (
            "[commit]\nprofiles = ['hf-trainr']",
            "scrfs.toml:2: commit.profiles = [\"hf-trainr\"]: expected profiles among amrex, \
             orbax, hf-trainer, deepspeed, megatron, torch-dcp, nemo, lammps; \
             the nearest to \"hf-trainr\" is \"hf-trainer\"",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nmaker='x'",
            "scrfs.toml:3: unknown key \"commit.trigger.maker\"; \
             the nearest valid key is \"commit.trigger.marker\"",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nmarker='x'\nnext=true",
            "scrfs.toml:1: commit.trigger = true: expected exactly one of marker, pointer,",
        ),
        (
            "[[commit.trigger]]\nmarker='x'",
            "commit.trigger.match = (nothing)",
        ),
        (
            "[[commit.trigger]]\nmatch='a'",
            "commit.trigger = (nothing)",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nmarker='../x'",
            "it must be relative",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nremoved='../x'",
            "../{name}-unfinished",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\npointer='a/b'",
            "commit.trigger.pointer",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\npointer='p'\nnames='x'",
            "scrfs.toml:4: commit.trigger.names = \"x\": expected a name with one {content}",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\npointer='p'\nnames='{content:7}'",
            "01 to 020",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nnext=false",
            "true, or another sign",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nquiet_seconds=0",
            "1 or more",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nquiet_seconds=9\nsettle_seconds=1",
            "scrfs.toml:4: commit.trigger.settle_seconds = 1: expected no such key beside quiet",
        ),
        (
            "[[commit.trigger]]\nmatch='a'\nmarker='p'\nnames='{content}'",
            "beside marker",
        ),
        ("[commit]\ntrigger = 3", "[[commit.trigger]]"),
    ] {
        let message = error(text);
        assert!(
            message.contains(expected),
            "{text:?}\n  says {message}\n  not  {expected}"
        );
    }
}

#[test]
fn triggers_are_shown_and_travel_as_json() {
    let text = "[commit]\nprofiles = ['megatron', 'nemo', 'lammps', 'hf-trainer', 'torch-dcp']\n\
                [[commit.trigger]]\nmatch = 'x*'\nremoved = 'in-progress'\n\
                [[commit.trigger]]\nmatch = 'y*'\npointer = 'p'\nnames = 'y{content:03}'";
    let (config, known) = load(&[], text, "", &[]).expect("valid");
    let json = serde_json::to_string(&config).expect("plain values");
    assert_eq!(
        serde_json::from_str::<Config>(&json).expect("its own text"),
        config
    );
    let shown: Vec<(&str, String)> = known
        .entries
        .iter()
        .filter(|it| it.key.starts_with("commit.trigger["))
        .map(|it| (it.value.as_str(), it.origin.to_string()))
        .collect();
    let at = |line: usize| format!("/home/me/scrfs.toml:{line}");
    assert_eq!(shown.len(), config.commit.triggers.len());
    assert_eq!(
        shown[0],
        (
            "\"x*\" when \"in-progress\" in it is removed and then quiet for 10 s",
            at(3)
        )
    );
    assert_eq!(
        shown[1].0,
        "\"y*\" when \"p\" at the top says y{content:03} and then quiet for 10 s"
    );
    let said = |words: &str| shown.iter().any(|it| *it == (words, at(2)));
    assert!(
        said(
            "\"checkpoint-*\" when \"trainer_state.json\" in it is closed and then quiet for 10 s"
        ),
        "{shown:?}"
    );
    assert!(said("\"restart.*\" when quiet for 60 s"), "{shown:?}");
    assert!(said(
        "\"*\" when \"{name}-unfinished\" at the top is removed"
    ));
}
