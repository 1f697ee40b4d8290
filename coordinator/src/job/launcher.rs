//! The user's launch command, told which hosts to use.
//!
//! `{hosts} {hostfile} {nnodes} {restart}` are replaced wherever they stand. A launcher that is known
//! and whose command names no hosts gets them inserted behind its own name, and how to reach them unless
//! it says that, too. What the user has written stands behind what is inserted, so that it wins where
//! an option is given twice. (Where the launcher's options end is guessed by which word could be run:
//! an application's own option may be taken for one of the launcher's; then the placeholders help.)
//! One row of `ADAPTERS` a launcher; a new one is a new row. Pure.

use super::hosts::Host;
use std::path::Path;

/// Set for the processes of a launch, so that they can be told from all others.
pub const LAUNCH_VARIABLE: &str = "SCRFS_LAUNCH";

/// A parameter that Open MPI does not know, and therefore gives to its helpers on all hosts as it is. They have not
/// our environment, and some outlive a launcher whose host has lost its power.
pub const MARK_OPTION: &str = "scrfs_launch";

/// What a launch needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// In the order of their positions; never empty.
    pub hosts: &'a [Host],
    /// Hosts of the job that must not be used: lost, excluded, spare.
    pub others: &'a [String],
    /// A file that lists them.
    pub hostfile: &'a Path,
    /// The dataset to restart from.
    pub restart: Option<&'a Path>,
    /// How to run commands on hosts.
    pub rsh: &'a str,
    /// The same, where launchers may call it as `AGENT HOST COMMAND` and would not anyway.
    pub agent: Option<&'a str>,
    /// Value of [`LAUNCH_VARIABLE`].
    pub launch: &'a str,
    /// This program, which starts a command on each host where a launcher does not.
    pub this: &'a Path,
}

/// Options that follow from one word.
type Options = fn(&str) -> Vec<String>;

struct Adapter {
    /// Names it goes by.
    programs: &'static [&'static str],
    /// What its `--version` says, where several go by the same name.
    version: Option<&'static str>,
    /// Words that stand between its name and its options; one of these.
    verbs: &'static [&'static [&'static str]],
    /// Options by which the user has named hosts; with one or two dashes in front.
    named_by: &'static [&'static str],
    /// Whether a short option may have its value attached: `-wnode1`.
    attaches: bool,
    /// Options for the hosts.
    hosts: fn(&Target<'_>) -> Vec<String>,
    /// A word by which the user has said how to reach them, and our options for it.
    rsh: Option<(&'static str, Options)>,
    /// Options that are always wanted; most take the launch's variable to the processes.
    always: fn(&Target<'_>) -> Vec<String>,
    /// It starts processes on its own host only, and must be started on each.
    is_local: bool,
}

impl Adapter {
    /// The words before the program that is launched, whose options are its own affair. Which options
    /// take a word is not known: a word that could be run is the program unless it comes right after an
    /// option; with a slash also then, but for the one that names an agent.
    fn own_words<'a>(
        &self,
        words: &'a [String],
        is_program: impl Fn(&str) -> bool,
    ) -> &'a [String] {
        let names_agent = |option: &str| self.rsh.is_some_and(|(said, _)| option.ends_with(said));
        let has_its_value = |option: &str| {
            let is_short = !option.starts_with("--") && option.len() > 2;
            option.contains('=') || (self.attaches && is_short)
        };
        let may_take = |option: &str| option.starts_with('-') && !has_its_value(option);
        let mut before = "";
        for (at, word) in words.iter().enumerate() {
            let is_taken = names_agent(before) || (may_take(before) && !word.contains('/'));
            if !is_taken && !word.starts_with('-') && is_program(word) {
                return words.split_at(at).0;
            }
            before = word;
        }
        words
    }

    /// Whether it names hosts: `-w a`, `-wa`, `--nodelist=a`.
    fn is_name(&self, word: &str) -> bool {
        let Some(short) = word.strip_prefix('-') else {
            return false;
        };
        let plain = short.strip_prefix('-').unwrap_or(short);
        let option = plain.split('=').next().unwrap_or(plain);
        let attached = |name: &&str| name.len() == 1 && short.starts_with(name);
        self.named_by.contains(&option) || (self.attaches && self.named_by.iter().any(attached))
    }
}

const NO_VERBS: &[&[&str]] = &[&[]];

fn nothing(_: &Target<'_>) -> Vec<String> {
    Vec::new()
}

const ADAPTERS: [Adapter; 7] = [
    Adapter {
        // The last two are Debian's, where others stand beside it.
        programs: &[
            "mpirun",
            "mpiexec",
            "orterun",
            "mpirun.openmpi",
            "mpiexec.openmpi",
        ],
        version: Some("Open MPI"),
        verbs: NO_VERBS,
        named_by: &["H", "host", "hostfile", "machinefile"],
        attaches: false,
        hosts: |target| vec!["--host".into(), hosts_with_slots(target.hosts)],
        rsh: Some(("plm_rsh_agent", open_mpi_agent)),
        always: |target| {
            let variable = format!("{LAUNCH_VARIABLE}={}", target.launch);
            ["-x", &variable, "--mca", MARK_OPTION, target.launch]
                .map(String::from)
                .into()
        },
        is_local: false,
    },
    Adapter {
        programs: &[
            "mpirun",
            "mpiexec",
            "mpiexec.hydra",
            "mpirun.mpich",
            "mpiexec.mpich",
        ],
        version: Some("HYDRA"),
        verbs: NO_VERBS,
        named_by: &[
            "f",
            "hostfile",
            "machinefile",
            "host",
            "hosts",
            "hostlist",
            "machine",
            "machines",
            "machinelist",
        ],
        attaches: false,
        hosts: |target| vec!["-hosts".into(), hosts_with_slots(target.hosts)],
        rsh: Some(("-launcher-exec", |agent| {
            ["-launcher", "ssh", "-launcher-exec", agent]
                .map(String::from)
                .into()
        })),
        always: |target| vec!["-genv".into(), LAUNCH_VARIABLE.into(), target.launch.into()],
        is_local: false,
    },
    // Its processes have its environment, as those of all that follow.
    Adapter {
        programs: &["srun"],
        version: None,
        verbs: NO_VERBS,
        named_by: &["w", "nodelist", "F", "nodefile"],
        attaches: true,
        hosts: |target| {
            let mut options = vec![
                format!("--nodes={}", target.hosts.len()),
                format!("--nodelist={}", host_names(target.hosts)),
            ];
            if !target.others.is_empty() {
                options.push(format!("--exclude={}", target.others.join(",")));
            }
            options
        },
        rsh: None,
        // A step that lost a node holds its resources until Slurm has noticed.
        always: |_| vec!["--overlap".into()],
        is_local: false,
    },
    Adapter {
        programs: &["flux"],
        version: None,
        verbs: &[&["run"], &["mini", "run"]],
        named_by: &["requires"],
        attaches: false,
        hosts: |target| {
            vec![
                format!("--nodes={}", target.hosts.len()),
                format!("--requires=host:{}", host_names(target.hosts)),
            ]
        },
        rsh: None,
        always: nothing,
        is_local: false,
    },
    Adapter {
        programs: &["jsrun"],
        version: None,
        verbs: NO_VERBS,
        named_by: &["xh", "exclude_hosts", "U", "erf_input"],
        attaches: true,
        hosts: |target| match target.others {
            [] => Vec::new(),
            others => vec![format!("--exclude_hosts={}", others.join(","))],
        },
        rsh: None,
        always: nothing,
        is_local: false,
    },
    Adapter {
        programs: &["aprun"],
        version: None,
        verbs: NO_VERBS,
        named_by: &["L", "node-list", "l", "node-list-file"],
        attaches: true,
        hosts: |target| vec!["-L".into(), node_numbers(target.hosts)],
        rsh: None,
        always: nothing,
        is_local: false,
    },
    Adapter {
        programs: &["torchrun"],
        version: None,
        verbs: NO_VERBS,
        named_by: &[
            "standalone",
            "rdzv-endpoint",
            "rdzv_endpoint",
            "master-addr",
            "master_addr",
            "node-rank",
            "node_rank",
        ],
        attaches: false,
        hosts: |target| {
            let first = target.hosts.first().map_or("localhost", |host| &host.name);
            vec![
                format!("--nnodes={}", target.hosts.len()),
                // Dashes came with PyTorch 2.0; underscores all of them know.
                "--node_rank={rank}".into(),
                format!("--master_addr={first}"),
                format!("--master_port={}", port(target.launch)),
            ]
        },
        rsh: None,
        always: nothing,
        is_local: true,
    },
];

/// A port to meet at: another one each launch, because the last one's may still be taken.
fn port(launch: &str) -> u16 {
    let number = launch.rsplit('.').next();
    let number: u16 = number.and_then(|number| number.parse().ok()).unwrap_or(0);
    29_500 + number % 1000
}

/// Cray's `nid00012` is node 12.
fn node_numbers(hosts: &[Host]) -> String {
    let number = |host: &Host| {
        let digits = host.name.strip_prefix("nid").unwrap_or(&host.name);
        let number: Option<u32> = digits.parse().ok();
        number.map_or_else(|| host.name.clone(), |number| number.to_string())
    };
    hosts.iter().map(number).collect::<Vec<_>>().join(",")
}

/// Options that make Open MPI reach hosts by an agent.
pub fn open_mpi_agent(agent: &str) -> Vec<String> {
    ["--mca", "plm", "rsh", "--mca", "plm_rsh_agent", agent]
        .map(String::from)
        .into()
}

/// `a,b,c`
pub fn host_names(hosts: &[Host]) -> String {
    let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    names.join(",")
}

fn hosts_with_slots(hosts: &[Host]) -> String {
    let with_slots = |host: &Host| match host.slots {
        Some(slots) => format!("{}:{slots}", host.name),
        None => host.name.clone(),
    };
    hosts.iter().map(with_slots).collect::<Vec<_>>().join(",")
}

/// What goes into the host file.
pub fn hostfile(hosts: &[Host]) -> String {
    let line = |host: &Host| match host.slots {
        Some(slots) => format!("{} slots={slots}\n", host.name),
        None => format!("{}\n", host.name),
    };
    hosts.iter().map(line).collect()
}

/// What is asked of the machine about programs.
#[derive(Debug)]
pub struct Asking<V, P> {
    /// What a program's `--version` prints; asked only where that decides.
    pub version: V,
    /// Whether a word could be run.
    pub is_program: P,
}

/// The command to run.
pub fn adapt(
    command: &[String],
    target: &Target<'_>,
    asking: Asking<impl FnOnce(&str) -> String, impl Fn(&str) -> bool>,
) -> Vec<String> {
    let names_hosts = command
        .iter()
        .any(|word| word.contains("{hosts}") || word.contains("{hostfile}"));
    let restart = target
        .restart
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let fill = |word: &String| {
        word.replace("{hosts}", &host_names(target.hosts))
            .replace("{hostfile}", &target.hostfile.display().to_string())
            .replace("{nnodes}", &target.hosts.len().to_string())
            .replace("{restart}", &restart)
    };
    let mut words: Vec<String> = command.iter().map(fill).collect();
    let Some(program) = words.first().cloned() else {
        return words;
    };
    let Some((adapter, verbs)) = adapter_of(&program, &words, asking.version) else {
        return words;
    };
    let mut options = (adapter.always)(target);
    let said = adapter.own_words(
        words.get(1 + verbs..).unwrap_or_default(),
        &asking.is_program,
    );
    let is_named = names_hosts || said.iter().any(|word| adapter.is_name(word));
    if !is_named {
        options.extend((adapter.hosts)(target));
    }
    if let Some((said, rsh)) = adapter.rsh
        && let Some(agent) = target.agent
        && !words.iter().any(|word| word == said)
    {
        options.extend(rsh(agent));
    }
    let place = 1 + verbs;
    words.splice(place..place, options);
    if adapter.is_local && !is_named {
        let this = target.this.display().to_string();
        let hosts = host_names(target.hosts);
        let each = [&this, "each", "--rsh", target.rsh, "--hosts", &hosts, "--"];
        words.splice(0..0, each.map(String::from));
    }
    words
}

/// The row of a command, and how many words of it are its verb.
fn adapter_of(
    program: &str,
    words: &[String],
    version: impl FnOnce(&str) -> String,
) -> Option<(&'static Adapter, usize)> {
    let name = Path::new(program).file_name()?.to_str()?;
    let verb = |adapter: &Adapter| {
        let rest = words.get(1..).unwrap_or_default();
        let is_it = |verb: &&&[&str]| {
            rest.len() >= verb.len() && rest.iter().zip(**verb).all(|(a, b)| a == b)
        };
        adapter.verbs.iter().find(is_it).map(|verb| verb.len())
    };
    let candidates = || {
        ADAPTERS
            .iter()
            .filter(|adapter| adapter.programs.contains(&name))
            .filter_map(|adapter| Some((adapter, verb(adapter)?)))
    };
    let first = candidates().next()?;
    if first.0.version.is_none() {
        return Some(first);
    }
    let said = version(program);
    candidates().find(|(adapter, _)| adapter.version.is_none_or(|words| said.contains(words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        let host = |name: &str, slots| Host {
            name: name.into(),
            slots,
        };
        vec![host("node1", None), host("node5", Some(2))]
    }

    fn adapted(command: &[&str], version: &str, rsh: &str) -> Vec<String> {
        let hosts = hosts();
        let others = ["node2".to_owned(), "node3".to_owned()];
        let target = Target {
            hosts: &hosts,
            others: &others,
            hostfile: Path::new("/t/hosts"),
            restart: Some(Path::new("/scr/ckpt.7")),
            rsh,
            agent: (rsh != "ssh").then_some(rsh),
            launch: "9.1",
            this: Path::new("/bin/coordinator"),
        };
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let asking = Asking {
            version: |_: &str| version.to_owned(),
            is_program: |word: &str| ["./app", "app", "ssh", "/usr/bin/ssh"].contains(&word),
        };
        adapt(&command, &target, asking)
    }

    #[test]
    fn placeholders_are_replaced_and_then_no_hosts_inserted() {
        let words = adapted(
            &["go", "-N{nnodes}", "{hosts}", "{hostfile}", "{restart}/x"],
            "",
            "ssh",
        );
        assert_eq!(
            words,
            ["go", "-N2", "node1,node5", "/t/hosts", "/scr/ckpt.7/x"]
        );
        let words = adapted(
            &["mpirun", "--hostfile", "{hostfile}", "a"],
            "Open MPI 4",
            "ssh",
        );
        assert_eq!(
            words,
            [
                "mpirun",
                "-x",
                "SCRFS_LAUNCH=9.1",
                "--mca",
                "scrfs_launch",
                "9.1",
                "--hostfile",
                "/t/hosts",
                "a"
            ]
        );
    }

    #[test]
    fn open_mpi_is_told_hosts_and_agent() {
        let words = adapted(
            &["/usr/bin/mpirun", "-n", "3", "a"],
            "mpirun (Open MPI) 4.1.4",
            "rsh -q",
        );
        let expected = [
            "/usr/bin/mpirun",
            "-x",
            "SCRFS_LAUNCH=9.1",
            "--mca",
            "scrfs_launch",
            "9.1",
            "--host",
            "node1,node5:2",
            "--mca",
            "plm",
            "rsh",
            "--mca",
            "plm_rsh_agent",
            "rsh -q",
            "-n",
            "3",
            "a",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn what_the_user_has_said_is_not_said_again() {
        let command = [
            "mpirun",
            "--host",
            "x",
            "--mca",
            "plm_rsh_agent",
            "other",
            "a",
        ];
        let words = adapted(&command, "Open MPI", "rsh");
        assert_eq!(words[..3], ["mpirun", "-x", "SCRFS_LAUNCH=9.1"]);
        assert_eq!(words[3..6], ["--mca", "scrfs_launch", "9.1"]);
        assert_eq!(words[6..], command[1..]);
    }

    #[test]
    fn hydra_is_told_in_its_own_words() {
        let words = adapted(&["mpiexec", "a"], "HYDRA build details:", "ssh");
        let expected = [
            "mpiexec",
            "-genv",
            "SCRFS_LAUNCH",
            "9.1",
            "-hosts",
            "node1,node5:2",
            "a",
        ];
        assert_eq!(words, expected);
        let debian = adapted(&["mpiexec.mpich", "a"], "HYDRA build details:", "ssh");
        assert_eq!(debian[1..], expected[1..]);
        for said in ["-f", "-hostfile", "-host", "-hosts", "-machinelist"] {
            let named = adapted(&["mpiexec", said, "x", "a"], "HYDRA", "ssh");
            let expected = ["mpiexec", "-genv", "SCRFS_LAUNCH", "9.1", said, "x", "a"];
            assert_eq!(named, expected);
        }
    }

    #[test]
    fn batch_launchers_are_told_in_their_own_words() {
        let line = |command: &[&str]| adapted(command, "", "ssh").join(" ");
        assert_eq!(
            line(&["srun", "-n4", "a"]),
            "srun --overlap --nodes=2 --nodelist=node1,node5 --exclude=node2,node3 -n4 a"
        );
        assert_eq!(
            line(&["srun", "--nodelist=b", "a"]),
            "srun --overlap --nodelist=b a"
        );
        assert_eq!(
            line(&["flux", "run", "-n4", "a"]),
            "flux run --nodes=2 --requires=host:node1,node5 -n4 a"
        );
        assert_eq!(
            line(&["flux", "mini", "run", "a"]),
            "flux mini run --nodes=2 --requires=host:node1,node5 a"
        );
        assert_eq!(line(&["flux", "jobs"]), "flux jobs");
        assert_eq!(
            line(&["jsrun", "-n4", "a"]),
            "jsrun --exclude_hosts=node2,node3 -n4 a"
        );
        assert_eq!(line(&["aprun", "a"]), "aprun -L node1,node5 a");
        let host = |name: &str| Host {
            name: name.into(),
            slots: None,
        };
        assert_eq!(node_numbers(&[host("nid00012"), host("nid1")]), "12,1");
    }

    #[test]
    fn hosts_may_be_attached_to_their_option() {
        let line = |command: &[&str]| adapted(command, "", "ssh").join(" ");
        assert_eq!(line(&["srun", "-wb", "a"]), "srun --overlap -wb a");
        assert_eq!(line(&["srun", "-Ffile", "a"]), "srun --overlap -Ffile a");
        assert_eq!(line(&["aprun", "-L3", "a"]), "aprun -L3 a");
        let waits = line(&["srun", "--wait=0", "a"]);
        assert!(waits.contains("--nodelist"), "{waits}");
        let hydra = adapted(&["mpiexec", "-foreach", "a"], "HYDRA", "ssh").join(" ");
        assert!(hydra.contains("-hosts"), "{hydra}");
    }

    #[test]
    fn an_option_of_the_application_names_no_hosts() {
        let is_named = |command: &[&str], version: &str| {
            let words = adapted(command, version, "ssh");
            !words.iter().any(|word| word.contains("node1"))
        };
        for launcher in [&["-n", "4"][..], &[], &["-l"], &["-env", "A=1"], &["-n=4"]] {
            let command = [&["mpiexec"], launcher, &["./app", "-f", "input"]].concat();
            assert!(!is_named(&command, "HYDRA"), "{command:?}");
            let command = [&["mpiexec", "-f", "hosts"], launcher, &["./app"]].concat();
            assert!(is_named(&command, "HYDRA"), "{command:?}");
        }
        assert!(!is_named(&["srun", "-n4", "app", "-w3"], ""));
        // What an option takes is not the program, though it could be run.
        let agent = ["mpiexec", "-launcher", "ssh", "-f", "hosts", "./app"];
        assert!(is_named(&agent, "HYDRA"));
        let agent = [
            "mpiexec",
            "-launcher-exec",
            "/usr/bin/ssh",
            "-f",
            "hosts",
            "./app",
        ];
        assert!(is_named(&agent, "HYDRA"));
        let agent = [
            "mpirun",
            "--mca",
            "plm_rsh_agent",
            "/usr/bin/ssh",
            "-H",
            "b",
            "./app",
        ];
        assert!(is_named(&agent, "Open MPI"));
    }

    #[test]
    fn a_launcher_of_one_host_is_started_on_each() {
        let line = |command: &[&str]| adapted(command, "", "ssh -q").join(" ");
        assert_eq!(
            line(&["torchrun", "--nproc-per-node=8", "train.py"]),
            "/bin/coordinator each --rsh ssh -q --hosts node1,node5 -- torchrun --nnodes=2 \
             --node_rank={rank} --master_addr=node1 --master_port=29501 --nproc-per-node=8 train.py"
        );
        let own = ["torchrun", "--rdzv-endpoint=a:1", "train.py"];
        assert_eq!(line(&own), own.join(" "));
    }

    #[test]
    fn an_unknown_launcher_is_left_alone() {
        assert_eq!(adapted(&["prun", "a"], "", "ssh"), ["prun", "a"]);
        assert_eq!(
            adapted(&["mpirun", "a"], "something else", "ssh"),
            ["mpirun", "a"]
        );
    }

    #[test]
    fn the_host_file_keeps_slots() {
        assert_eq!(hostfile(&hosts()), "node1\nnode5 slots=2\n");
    }
}
