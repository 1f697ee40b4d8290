//! The configuration as users meet it: the page of the interface, precedence, messages, nonsense.

mod trigger;

use super::*;
use crate::redundancy::Scheme;
use proptest::prelude::*;

/// The example of the interface page.
const EXAMPLE: &str = r#"
prefix = "$PWD"
job = "auto"

[[store]]
path = "/dev/shm"
capacity = "50%"
count = 2

[redundancy]
scheme = "xor"
set_size = 8
failures = 2
group = "node"
chunk = "1MiB"

[[checkpoint]]
interval = 10
scheme = "rs"
store = "/ssd"

[commit]
wait = "sealed"
grace_seconds = 30
temporary = ["*.tmp", "*.temp", "*.partial", "tmp-*", ".*"]

[[dataset]]
match = "out.*"
class = "output"

[flush]
every = 1
width = 256
bandwidth = "unlimited"
keep = 0

[restart]
fetch = true
current = ""

[advice]
interval = 0
seconds = 0
overhead = 0.0
mtbf = "auto"

[groups]
switch = { sw1 = "node[0-15]", sw2 = "node[16-31]" }

[log]
events = true
syslog = false
"#;

type Loaded = Result<(Config, Provenance), ConfigError>;

fn load(env: &[(&str, &str)], user: &str, system: &str, cli: &[(&str, &str)]) -> Loaded {
    let env = |name: &str| {
        let found = env.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, v)| (*v).to_owned())
            .or((name == "PWD").then(|| "/p/me".to_owned()))
    };
    let cli = cli
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Config::load(&Sources {
        env: &env,
        user: Some(("/home/me/scrfs.toml".into(), user.into())),
        system: Some(("/etc/scrfs.toml".into(), system.into())),
        cli,
    })
}

fn config(user: &str) -> Config {
    load(&[], user, "", &[]).expect("valid").0
}

fn error(user: &str) -> String {
    load(&[], user, "", &[])
        .expect_err("must be refused")
        .to_string()
}

fn origin(known: &Provenance, key: &str) -> String {
    let known = known
        .get(key)
        .unwrap_or_else(|| panic!("nothing is known of {key}"));
    format!("{} from {}", known.value, known.origin)
}

#[test]
fn without_files_all_is_default() {
    let env = |name: &str| (name == "PWD").then(|| "/p/me".to_owned());
    let sources = Sources {
        env: &env,
        user: None,
        system: None,
        cli: vec![],
    };
    let (config, known) = Config::load(&sources).expect("defaults are valid");
    assert_eq!(config.prefix, Path::new("/p/me"));
    assert_eq!(config.job, "default");
    let store = StoreConfig {
        path: "/dev/shm".into(),
        capacity: Capacity::Percent(50),
        count: 2,
    };
    assert_eq!(config.store, [store]);
    assert_eq!(
        config.redundancy,
        RedundancyConfig {
            scheme: Scheme::Xor,
            set_size: 8,
            group: "node".into(),
            chunk_bytes: 1 << 20
        }
    );
    assert!(config.checkpoint.is_empty() && config.dataset.is_empty() && config.groups.is_empty());
    assert_eq!(
        (config.commit.wait, config.commit.grace_seconds),
        (CommitWait::Sealed, 30)
    );
    assert_eq!(
        (config.flush.every, config.flush.width, config.flush.keep),
        (1, 256, 0)
    );
    assert_eq!(config.flush.bandwidth, Bandwidth::Unlimited);
    assert!(config.restart.fetch && config.restart.current.is_empty());
    assert!(!config.restart.rebuild_first);
    assert_eq!(config.advice.mtbf, Mtbf::Auto);
    assert!(config.log.events && !config.log.syslog);
    assert!(
        known
            .entries
            .iter()
            .all(|known| known.origin == Origin::Default)
    );
}

#[test]
fn the_example_of_the_interface_is_valid() {
    let config = config(EXAMPLE);
    // A store that only a checkpoint names is a store.
    let paths: Vec<_> = config
        .store
        .iter()
        .map(|store| store.path.as_path())
        .collect();
    assert_eq!(paths, [Path::new("/dev/shm"), Path::new("/ssd")]);
    let of = |number| config.redundancy_for(Class::Checkpoint, Some(number));
    let place = |number| config.store_for(Class::Checkpoint, Some(number));
    assert_eq!((of(9).scheme, place(9)), (Scheme::Xor, None));
    let tenth = of(20);
    assert_eq!(tenth.scheme, Scheme::ReedSolomon { parities: 2 });
    assert_eq!((place(20), tenth.set_size), (Some(1), 8));
    assert_eq!(config.class_of(b"out.7"), Class::Output);
    assert_eq!(config.class_of(b"ckpt.7"), Class::Checkpoint);
    assert_eq!(
        config.failure_group("switch", "node17").as_deref(),
        Ok("sw2")
    );
    assert_eq!(
        config.failure_group("node", "node17").as_deref(),
        Ok("node17")
    );
    let unlisted = config
        .failure_group("switch", "node99")
        .expect_err("not listed");
    assert!(unlisted.to_string().contains("[groups] switch"));
}

#[test]
fn the_first_source_that_speaks_wins() {
    let user = "[redundancy]\nset_size = 5\n[flush]\nwidth = 3";
    let system =
        "prefix = '/sys'\n[redundancy]\nset_size = 6\nscheme = 'single'\n[flush]\nevery = 9";
    let env = [
        ("SCR_SET_SIZE", "4"),
        ("SCRFS_COMMIT_WAIT", "Protected"),
        ("SCR_FETCH", "0"),
    ];
    let (config, known) = load(&env, user, system, &[]).expect("valid");
    assert_eq!(
        (
            config.redundancy.set_size,
            config.flush.width,
            config.flush.every
        ),
        (4, 3, 9)
    );
    assert_eq!(config.commit.wait, CommitWait::Protected);
    assert_eq!(
        origin(&known, "redundancy.set_size"),
        "4 from environment SCR_SET_SIZE"
    );
    assert_eq!(
        origin(&known, "commit.wait"),
        "protected from environment SCRFS_COMMIT_WAIT"
    );
    assert_eq!(
        origin(&known, "restart.fetch"),
        "false from environment SCR_FETCH"
    );
    assert_eq!(
        origin(&known, "flush.width"),
        "3 from /home/me/scrfs.toml:4"
    );
    assert_eq!(origin(&known, "flush.every"), "9 from /etc/scrfs.toml:6");
    assert_eq!(
        origin(&known, "redundancy.scheme"),
        "single from /etc/scrfs.toml:4"
    );
    assert_eq!(origin(&known, "flush.keep"), "0 from default");
    let (config, known) = load(&env, user, system, &[("prefix", "out/$SCR_FETCH")]).expect("valid");
    assert_eq!(config.prefix, Path::new("/p/me/out/0"));
    assert_eq!(origin(&known, "prefix"), "/p/me/out/0 from command line");
    let shown = known.to_string();
    assert!(
        shown.contains("# /etc/scrfs.toml:6") && shown.contains("flush.every = 9"),
        "{shown}"
    );
}

#[test]
fn every_key_can_come_from_the_environment() {
    let env = [
        ("SCR_PREFIX", "/e"),
        ("SCR_JOB_ID", "77"),
        ("SCR_CACHE_BASE", "/a:/b"),
        ("SCRFS_STORE_CAPACITY", "7GiB"),
        ("SCR_CACHE_SIZE", "5"),
        ("SCR_COPY_TYPE", "RS"),
        ("SCR_SET_SIZE", "9"),
        ("SCR_SET_FAILURES", "3"),
        ("SCR_GROUP", "NODE"),
        ("SCRFS_REDUNDANCY_CHUNK", "64KiB"),
        ("SCRFS_REDUNDANCY_AHEAD", "25"),
        ("SCRFS_COMMIT_WAIT", "flushed"),
        ("SCRFS_COMMIT_GRACE_SECONDS", "1"),
        ("SCRFS_COMMIT_SETTLE_SECONDS", "2"),
        ("SCRFS_COMMIT_QUIET_SECONDS", "3"),
        ("SCRFS_COMMIT_TEMPORARY", "x*, y"),
        ("SCRFS_COMMIT_PROFILES", "hf-trainer, amrex"),
        ("SCR_FLUSH", "10"),
        ("SCR_FLUSH_WIDTH", "2"),
        ("SCRFS_FLUSH_BANDWIDTH", "1GB"),
        ("SCR_PREFIX_SIZE", "4"),
        ("SCRFS_FLUSH_BACKLOG", "7"),
        ("SCR_FETCH", "0"),
        ("SCR_CURRENT", "ckpt.3"),
        ("SCRFS_RESTART_REBUILD_FIRST", "1"),
        ("SCR_FETCH_BYPASS", "1"),
        ("SCR_CHECKPOINT_INTERVAL", "6"),
        ("SCR_CHECKPOINT_SECONDS", "60"),
        ("SCR_CHECKPOINT_OVERHEAD", "2.5"),
        ("SCRFS_ADVICE_MTBF", "3600"),
        ("SCRFS_LOG_EVENTS", "no"),
        ("SCRFS_LOG_SYSLOG", "1"),
    ];
    let (config, known) = load(&env, EXAMPLE, "", &[]).expect("valid");
    for known in &known.entries {
        let outside = ["dataset[0]", "groups.switch.sw1", "groups.switch.sw2"];
        let from_env = matches!(known.origin, Origin::Environment(_));
        assert!(
            from_env || outside.contains(&known.key.as_str()),
            "{known:?}"
        );
    }
    let store = |path: &str| StoreConfig {
        path: path.into(),
        capacity: Capacity::Bytes(7 << 30),
        count: 5,
    };
    assert_eq!(config.store, [store("/a"), store("/b")]);
    let redundancy = &config.redundancy;
    assert_eq!(redundancy.scheme, Scheme::ReedSolomon { parities: 3 });
    assert_eq!(redundancy.chunk_bytes, 64 << 10);
    assert_eq!(config.ahead_percent, 25);
    assert!(
        config.checkpoint.is_empty(),
        "SCR_COPY_TYPE sets descriptors aside"
    );
    assert!(config.commit.is_temporary(b"xyz") && config.commit.is_temporary(b"y"));
    assert!(config.commit.is_temporary(b"chk7.temp"), "of a profile");
    let settle: Vec<u64> = config
        .commit
        .triggers
        .iter()
        .map(Trigger::settle_ms)
        .collect();
    assert_eq!(settle, [2000]);
    assert_eq!(
        config.flush.bandwidth,
        Bandwidth::BytesPerSecond(1_000_000_000)
    );
    assert_eq!(
        (config.prefix.to_str(), config.job.as_str()),
        (Some("/e"), "77")
    );
    assert_eq!(
        (config.advice.mtbf, config.restart.current.as_str()),
        (Mtbf::Seconds(3600.0), "ckpt.3")
    );
    assert!(config.restart.rebuild_first && config.restart.bypass);
    // "FILE" is SCR's word for the descriptors.
    let (config, _) = load(&[("SCR_COPY_TYPE", "FILE")], EXAMPLE, "", &[]).expect("valid");
    assert_eq!(config.checkpoint.len(), 1);
}

#[test]
fn jobs_are_detected() {
    let job = |env: &[(&str, &str)]| load(env, "", "", &[]).expect("valid").0.job;
    assert_eq!(job(&[("PBS_JOBID", "1.h"), ("LSB_JOBID", "3")]), "1.h");
    assert_eq!(job(&[("SLURM_JOB_ID", "12"), ("FLUX_JOB_ID", "f3")]), "12");
    let step = [("FLUX_JOB_ID", "f4"), ("FLUX_ENCLOSING_ID", "f3")];
    assert_eq!(job(&step), "f3");
    assert_eq!(job(&[("SLURM_JOB_ID", "")]), "default");
    assert_eq!(
        job(&[("SLURM_JOB_ID", "12"), ("SCR_JOB_ID", "mine")]),
        "mine"
    );
    let known = load(&[("FLUX_JOB_ID", "f3")], "", "", &[])
        .expect("valid")
        .1;
    assert_eq!(origin(&known, "job"), "f3 from environment FLUX_JOB_ID");
    for id in ["a/b", "..", "."] {
        assert!(load(&[("SLURM_JOB_ID", id)], "", "", &[]).is_err(), "{id}");
    }
}

#[test]
fn stores_of_the_command_line_keep_what_a_file_says_of_them() {
    let user = "[[store]]\npath='/ssd'\ncapacity='unlimited'\n[[store]]\npath='tmpfs'\ncount=1";
    let cli = [
        ("store.path", "tmpfs"),
        ("store.path", "/ssd"),
        ("store.path", "x"),
    ];
    let (config, _) = load(&[], user, "[[store]]\npath='/other'", &cli).expect("valid");
    let store = |path: &str, capacity, count| StoreConfig {
        path: path.into(),
        capacity,
        count,
    };
    assert_eq!(
        config.store,
        [
            store("tmpfs", Capacity::Percent(50), 1),
            store("/ssd", Capacity::Unlimited, 2),
            store("/p/me/x", Capacity::Percent(50), 2),
        ]
    );
    assert!(config.store[0].is_private_tmpfs() && !config.store[1].is_private_tmpfs());
    let (config, known) = load(&[("SCR_CACHE_SIZE", "7")], user, "", &[]).expect("valid");
    assert!(
        config.store.iter().all(|store| store.count == 7),
        "the environment outranks files"
    );
    assert_eq!(
        origin(&known, "store[1].count"),
        "7 from environment SCR_CACHE_SIZE"
    );
    assert!(error("[[store]]\npath='/a'\n[[store]]\npath='/a'").contains("no other store"));
}

#[test]
fn the_largest_interval_that_divides_wins() {
    let config = config(
        "[[checkpoint]]\ninterval = 2\nscheme = 'partner'\nfailures = 1\n\
         [[checkpoint]]\ninterval = 6\nscheme = 'rs'\nfailures = 3\nset_size = 4\n\
         [[checkpoint]]\ninterval = 6\nscheme = 'single'",
    );
    let of = |number| config.redundancy_for(Class::Checkpoint, Some(number));
    let scheme = |number| of(number).scheme;
    assert_eq!(scheme(1), Scheme::Xor);
    assert_eq!(scheme(4), Scheme::Partner { copies: 1 });
    assert_eq!(scheme(12), Scheme::ReedSolomon { parities: 3 });
    assert_eq!(of(6).set_size, 4);
}

#[test]
fn one_descriptor_may_be_kept_for_output() {
    let text = "[[store]]\npath = '/a'\n[[store]]\npath = '/b'\n\
         [[checkpoint]]\noutput = true\nscheme = 'single'\nstore = '/b'\n\
         [[checkpoint]]\ninterval = 3\nscheme = 'partner'\nfailures = 1\nstore = '/a'";
    let reserved = config(text);
    let of = |class, number| {
        let scheme = reserved.redundancy_for(class, number).scheme;
        (scheme, reserved.store_for(class, number))
    };
    assert_eq!(of(Class::Output, None), (Scheme::Single, Some(1)));
    // What is both is output first, whatever its number.
    assert_eq!(of(Class::Both, Some(3)), (Scheme::Single, Some(1)));
    let partner = Scheme::Partner { copies: 1 };
    assert_eq!(of(Class::Checkpoint, Some(3)), (partner, Some(0)));
    assert_eq!(of(Class::Checkpoint, Some(4)), (Scheme::Xor, None));
    // With an interval it is for checkpoints, too.
    let both = config(&text.replace("output = true", "output = true\ninterval = 2"));
    let scheme = |number| both.redundancy_for(Class::Checkpoint, Some(number)).scheme;
    assert_eq!(
        (scheme(4), scheme(3), scheme(5)),
        (Scheme::Single, partner, Scheme::Xor)
    );
    // Without one for it, output has what is left.
    let none = config("[[checkpoint]]\ninterval = 1\nscheme = 'single'");
    assert_eq!(none.redundancy_for(Class::Output, None).scheme, Scheme::Xor);
    assert_eq!(
        none.redundancy_for(Class::Both, Some(1)).scheme,
        Scheme::Single
    );
    let twice = error(&text.replace("interval = 3", "output = 'yes'"));
    assert!(twice.contains("one [[checkpoint]] only"), "{twice}");
    assert!(error("[[checkpoint]]\noutput = 'perhaps'").contains("checkpoint.output"));
}

#[test]
fn temporary_names_of_common_programs_are_known() {
    let config = config("");
    for name in [
        "ckpt.3.tmp",
        "x.temp",
        "x.partial",
        "tmp-checkpoint-500",
        ".hidden",
        "global_step5-tmp3",
        "step.orbax-checkpoint-tmp-17",
    ] {
        assert!(config.commit.is_temporary(name.as_bytes()), "{name}");
    }
    for name in ["ckpt.3", "checkpoint-500", "tmp", "x.tmpl", "latest"] {
        assert!(!config.commit.is_temporary(name.as_bytes()), "{name}");
    }
    assert!(config.commit.is_temporary(b"\xff\xfe.tmp"));
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("1MiB", 1 << 20),
        ("64GiB", 64 << 30),
        ("2k", 2048),
        ("3 TB", 3_000_000_000_000),
        ("7B", 7),
        ("1pib", 1 << 50),
    ] {
        assert_eq!(parse_size(text), Some(bytes), "{text}");
    }
    for text in [
        "",
        "GiB",
        "-1",
        "1.5GiB",
        "1XB",
        "1iB",
        "99999999999999999999",
        "20000PiB",
        "1MiBs",
        "\u{e9}",
    ] {
        assert_eq!(parse_size(text), None, "{text}");
    }
}

#[test]
fn times() {
    for (text, seconds) in [
        ("0", 0.0),
        ("90", 90.0),
        ("1.5", 1.5),
        ("30s", 30.0),
        ("11min", 660.0),
        ("1h 30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        (" 2 days ", 172_800.0),
        ("1w", 604_800.0),
        ("2y", 63_115_200.0),
    ] {
        let read = parse_seconds(text).unwrap_or(f64::NAN);
        assert!((read - seconds).abs() < 1e-9, "{text}: {read}");
    }
    for text in [
        "", "min", "-1", "-5min", "5 parsec", "nan", "inf", "1h ago", "\u{e9}",
    ] {
        assert_eq!(parse_seconds(text), None, "{text}");
    }
}

#[test]
fn variables() {
    let env = |name: &str| match name {
        "A" => Some("a".to_owned()),
        "LONG_1" => Some("$A".to_owned()),
        _ => None,
    };
    let expand = |text| expand_variables(text, &env);
    assert_eq!(expand("/$A/${A}b/$LONG_1").as_deref(), Ok("/a/ab/$A"));
    assert_eq!(expand("$$A $ $1 \u{e9}$").as_deref(), Ok("$A $ $1 \u{e9}$"));
    assert!(expand("$B").is_err_and(|e| e.contains("$B, which is not set")));
    assert!(expand("${A").is_err() && expand("${}").is_err());
}

#[test]
fn messages_name_file_line_and_remedy() {
    for (text, expected) in [
        (
            "\n\n[redundnacy]\n",
            "/home/me/scrfs.toml:3: unknown key \"redundnacy\"; \
             the nearest valid key is \"redundancy.",
        ),
        (
            "[redundancy]\nset_sise = 3",
            "scrfs.toml:2: unknown key \"redundancy.set_sise\"; \
             the nearest valid key is \"redundancy.set_size\"",
        ),
        (
            "[[store]]\npath='/a'\n[[store]]\nsize=3",
            "scrfs.toml:4: unknown key \"store.size\"",
        ),
        (
            "\nset_size = 3",
            "scrfs.toml:2: unknown key \"set_size\"; \
             the nearest valid key is \"redundancy.set_size\"",
        ),
        (
            "[redundancy]\n\nscheme = 'xro'",
            "scrfs.toml:3: redundancy.scheme = \"xro\": \
             expected one of single, partner, xor, rs",
        ),
        ("a = 1\nb = = 2", "scrfs.toml:2: not valid TOML"),
        ("[redundancy]\nset_size = 1", "2 or more"),
        ("[redundancy]\nset_size = -1", "set_size = -1"),
        ("[redundancy]\nchunk = '3MiB'", "a power of two"),
        (
            "[redundancy]\nscheme='rs'\nset_size=3\nfailures = 3",
            "scrfs.toml:4: redundancy.failures = 3: \
             expected fewer failures than the set_size of 3",
        ),
        (
            "[redundancy]\nscheme='rs'\nset_size=2",
            "scrfs.toml:3: redundancy.set_size = 2: \
             expected at least 3",
        ),
        ("[redundancy]\nscheme='rs'\nset_size=200", "at most 128"),
        (
            "[redundancy]\nfailures=12\n[[checkpoint]]\nscheme='rs'",
            "scrfs.toml:2: redundancy.failures = 12: \
             expected fewer failures than the set_size of 8",
        ),
        (
            "[redundancy]\nfailures=3\n[[checkpoint]]\nscheme='rs'\nset_size=3",
            "scrfs.toml:5: checkpoint.set_size = 3: expected at least 4",
        ),
        (
            "[redundancy]\ngroup = 'switch'",
            "expected one of node, or a table for it in [groups]",
        ),
        (
            "[[checkpoint]]\ngroup = 'rack'",
            "checkpoint.group = \"rack\"",
        ),
        (
            "[[checkpoint]]\ninterval = 0",
            "checkpoint.interval = 0: expected a whole number, 1",
        ),
        ("store = 3", "[[store]]"),
        ("flush = 3", "expected a table"),
        (
            "prefix = \"s3://a/b\"\n[restart]\nbypass = true",
            "expected false, as nothing",
        ),
        ("[[dataset]]\nmatch = '['\nclass = 'output'", "a pattern"),
        ("[[dataset]]\nmatch = 'a'", "dataset.class = (nothing)"),
        ("[commit]\ntemporary = [3]", "commit.temporary = [3]"),
        (
            "[groups]\nswitch = { a = 'n[0-3]', b = 'n3' }",
            "n3 in one switch only, it is in a too",
        ),
        ("[groups.switch]\na = 'n['", "brackets do not match"),
        ("[groups.node]\na = 'n'", "each node by itself"),
        ("prefix = '$NOWHERE/x'", "which is not set"),
        ("prefix = 99999999999999999999", "too large"),
        ("[[store]]\ncapacity = '101%'\npath='/a'", "a share"),
        ("[[store]]\ncapacity = '10%'", "store.path = (nothing)"),
        ("[advice]\noverhead = nan", "advice.overhead"),
        ("[log]\nevents = 'maybe'", "true or false"),
    ] {
        let message = error(text);
        assert!(
            message.contains(expected),
            "{text:?}\n  says {message}\n  not  {expected}"
        );
    }
}

/// The user's list replaces the system's; an empty variable says nothing.
#[test]
fn lists_are_taken_whole_from_one_file() {
    let table = |name: &str| {
        format!(
            "[[checkpoint]]\ninterval = 2\n[[dataset]]\nmatch = '{name}'\nclass = 'both'\n\
             [[store]]\npath = '/{name}'\n[groups.{name}]\nx = '{name}1'\n[groups.k]\n{name} = 'n'"
        )
    };
    let env = [("SCR_FLUSH", ""), ("SCR_CACHE_BASE", "")];
    let (config, known) = load(&env, &table("u"), &table("s"), &[]).expect("valid");
    assert_eq!(
        (
            config.checkpoint.len(),
            config.dataset.len(),
            config.store.len()
        ),
        (1, 1, 1)
    );
    assert_eq!(config.dataset[0].pattern.as_str(), "u");
    assert_eq!(config.store[0].path, Path::new("/u"));
    assert_eq!(config.groups.keys().collect::<Vec<_>>(), ["k", "s", "u"]);
    assert_eq!(config.groups["k"].keys().collect::<Vec<_>>(), ["u"]);
    assert_eq!(origin(&known, "flush.every"), "1 from default");
    let (config, _) = load(&[], "", &table("s"), &[]).expect("valid");
    assert_eq!(
        (config.checkpoint.len(), config.dataset[0].pattern.as_str()),
        (1, "s")
    );
}

#[test]
fn overridden_values_are_checked_too() {
    for bad in [
        "[flush]\nevery = 'x'",
        "[[store]]\ncount = 0\npath = '/a'",
        "[[checkpoint]]\nscheme = 'x'",
        "[[dataset]]\nmatch = 'a'\nclass = 'x'",
    ] {
        let good = "[flush]\nevery = 1\n[[store]]\npath = '/a'\n[[checkpoint]]\ninterval = 2\n\
                    [[dataset]]\nmatch = 'a'\nclass = 'both'";
        let refused = load(&[], good, bad, &[]).expect_err("bad is bad");
        assert!(
            refused.to_string().starts_with("/etc/scrfs.toml:"),
            "{refused}"
        );
    }
    let refused = load(&[], "", "", &[("dataset.match", "a")]);
    assert!(matches!(
        refused,
        Err(ConfigError::UnknownKey {
            origin: Origin::CommandLine,
            ..
        })
    ));
}

#[test]
fn the_users_file_is_found() {
    let env = |set: &'static [(&str, &str)]| {
        move |name: &str| {
            set.iter()
                .find(|(k, _)| *k == name)
                .map(|(_, v)| (*v).to_owned())
        }
    };
    let file = |option: Option<&str>, prefix: Option<&str>, set| {
        let (path, named) =
            Config::user_file(option.map(Path::new), prefix.map(Path::new), &env(set));
        (path.display().to_string(), named)
    };
    let set: &[_] = &[
        ("SCR_CONF_FILE", "$PWD/c"),
        ("PWD", "/w"),
        ("SCR_PREFIX", "/p"),
    ];
    assert_eq!(file(Some("/x"), None, set), ("/x".into(), true));
    assert_eq!(file(None, Some("/q"), set), ("/w/c".into(), true));
    assert_eq!(
        file(None, Some("/q"), &[("PWD", "/w")]),
        ("/q/.scrfs.toml".into(), false)
    );
    assert_eq!(
        file(None, None, &[("SCR_PREFIX", "/p")]),
        ("/p/.scrfs.toml".into(), false)
    );
    assert_eq!(
        file(None, None, &[("PWD", "/w")]),
        ("/w/.scrfs.toml".into(), false)
    );
}

#[test]
fn it_travels_as_json() {
    let (config, known) = load(&[], EXAMPLE, "", &[]).expect("valid");
    let text = serde_json::to_string(&config).expect("plain values");
    assert_eq!(
        serde_json::from_str::<Config>(&text).expect("its own text"),
        config
    );
    let shown = config.to_json(&known);
    assert_eq!(shown["config"]["redundancy"]["set_size"], 8);
    assert_eq!(shown["config"]["dataset"][0]["match"], "out.*");
    assert_eq!(shown["sources"][0]["key"], "prefix");
    assert!(serde_json::from_str::<Config>(&text.replace("out.*", "[")).is_err());
}

/// Whatever came out is complete and consistent.
fn invariant_config_is_consistent((config, known): &(Config, Provenance)) {
    assert!(config.prefix.is_absolute() && !config.job.is_empty() && !config.store.is_empty());
    assert!(
        config
            .store
            .iter()
            .all(|s| s.count > 0 && (s.path.is_absolute() || s.is_private_tmpfs()))
    );
    for number in 0..20 {
        let redundancy = config.redundancy_for(Class::Both, Some(number));
        let store_index = config.store_for(Class::Both, Some(number)).unwrap_or(0);
        assert!(redundancy.set_size > redundancy.scheme.tolerates() && redundancy.set_size > 1);
        assert!(store_index < config.store.len());
        assert!(redundancy.group == "node" || config.groups.contains_key(&redundancy.group));
    }
    assert!(known.get("prefix").is_some() && known.get("log.syslog").is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_first_of_any_sources_wins(given in proptest::collection::vec(any::<bool>(), 5)) {
        let file = |on: bool, width: u32| {
            if on { format!("[flush]\nwidth = {width}") } else { String::new() }
        };
        let env: Vec<(&str, &str)> = [("SCRFS_FLUSH_WIDTH", "2"), ("SCR_FLUSH_WIDTH", "3")]
            .into_iter()
            .zip(&given[1..3])
            .filter_map(|(variable, on)| on.then_some(variable))
            .collect();
        let cli: &[(&str, &str)] = if given[0] { &[("flush.width", "1")] } else { &[] };
        let (config, _) = load(&env, &file(given[3], 4), &file(given[4], 5), cli).expect("valid");
        let first = given.iter().position(|on| *on).map_or(256, |at| at as u32 + 1);
        prop_assert_eq!(config.flush.width, first);
    }

    #[test]
    fn no_text_panics(user in any::<String>(), system in "[a-z\\[\\]=\"'.{}0-9\n ]{0,60}") {
        if let Ok(loaded) = load(&[], &user, &system, &[]) {
            invariant_config_is_consistent(&loaded);
        }
    }

    #[test]
    fn no_damage_to_a_valid_file_panics(
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0..4_usize,
                "[a-z0-9\\[\\]=\"'.{}#$\u{e9}%\n -]{0,6}"), 1..4),
    ) {
        let mut chars: Vec<char> = EXAMPLE.chars().collect();
        for (at, cut, put) in edits {
            let at = at.index(chars.len() + 1);
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, put.chars());
        }
        let text: String = chars.into_iter().collect();
        match load(&[], &text, "", &[]) {
            Ok(loaded) => invariant_config_is_consistent(&loaded),
            Err(e) => prop_assert!(e.to_string().starts_with("/home/me/scrfs.toml:"), "{}", e),
        }
    }

    #[test]
    fn no_environment_panics(
        name in prop::sample::select(vec!["SCR_PREFIX", "SCR_CACHE_BASE", "SCRFS_STORE_CAPACITY",
            "SCR_SET_SIZE", "SCR_COPY_TYPE", "SCRFS_COMMIT_TEMPORARY", "SCRFS_REDUNDANCY_CHUNK",
            "SCR_CHECKPOINT_OVERHEAD", "SCR_JOB_ID", "PWD", "SCR_SET_FAILURES", "SCR_GROUP"]),
        value in prop_oneof![any::<String>(), "[0-9a-zKMGiB%.:/$*{}\\[\\],-]{0,12}"],
    ) {
        if let Ok(loaded) = load(&[(name, &value)], EXAMPLE, "", &[]) {
            invariant_config_is_consistent(&loaded);
        }
    }

    #[test]
    fn no_pattern_panics(text in any::<String>(), name in any::<Vec<u8>>()) {
        if let Ok(pattern) = Pattern::new(&text) {
            let _ = pattern.matches(&name);
        }
    }
}
