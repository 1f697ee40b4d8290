//! The user's launch command, told which hosts to use.
//!
//! `{hosts} {hostfile} {nnodes} {restart}` are replaced wherever they stand. A launcher that is known
//! and whose command names no hosts gets them inserted behind its own name, and how to reach them unless
//! it says that, too. (An application's own option may be taken for one of the launcher's; then the
//! placeholders help.) One row of `ADAPTERS` a
//! launcher; a new one is a new row. Pure.

use super::hosts::Host;
use std::path::Path;

/// Set for the processes of a launch, so that they can be told from all others.
pub const LAUNCH_VARIABLE: &str = "SCRFS_LAUNCH";

/// What a launch needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// In the order of their positions; never empty.
    pub hosts: &'a [Host],
    /// A file that lists them.
    pub hostfile: &'a Path,
    /// The dataset to restart from.
    pub restart: Option<&'a Path>,
    /// How to run commands on other hosts.
    pub rsh: &'a str,
    /// Value of [`LAUNCH_VARIABLE`].
    pub launch: &'a str,
}

struct Adapter {
    /// Names it goes by.
    programs: &'static [&'static str],
    /// What its `--version` says, where several go by the same name.
    version: Option<&'static str>,
    /// Options by which the user has named hosts; with one or two dashes in front.
    named_by: &'static [&'static str],
    /// Options for the hosts.
    hosts: fn(&Target<'_>) -> Vec<String>,
    /// A word by which the user has said how to reach them, and our options for it.
    rsh: (&'static str, fn(&str) -> Vec<String>),
    /// Options that take the launch's variable to the processes.
    environment: fn(&Target<'_>) -> Vec<String>,
}

const ADAPTERS: [Adapter; 2] = [
    Adapter {
        programs: &["mpirun", "mpiexec", "orterun"],
        version: Some("Open MPI"),
        named_by: &["H", "host", "hostfile", "machinefile"],
        hosts: |target| vec!["--host".into(), hosts_with_slots(target.hosts)],
        rsh: ("plm_rsh_agent", open_mpi_rsh),
        environment: |target| vec!["-x".into(), format!("{LAUNCH_VARIABLE}={}", target.launch)],
    },
    Adapter {
        programs: &["mpirun", "mpiexec", "mpiexec.hydra"],
        version: Some("HYDRA"),
        named_by: &["f", "hosts", "hostlist", "machine", "machinefile"],
        hosts: |target| vec!["-hosts".into(), hosts_with_slots(target.hosts)],
        rsh: ("-launcher-exec", hydra_rsh),
        environment: |target| vec!["-genv".into(), LAUNCH_VARIABLE.into(), target.launch.into()],
    },
];

/// Options that tell Open MPI how to reach hosts, if it is not its default.
pub fn open_mpi_rsh(rsh: &str) -> Vec<String> {
    if rsh == "ssh" {
        return Vec::new();
    }
    ["--mca", "plm_rsh_agent", rsh].map(String::from).into()
}

fn hydra_rsh(rsh: &str) -> Vec<String> {
    if rsh == "ssh" {
        return Vec::new();
    }
    ["-launcher", "ssh", "-launcher-exec", rsh]
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

/// The command to run. `version` gives what a program's `--version` prints; it is asked only where
/// that decides.
pub fn adapt(
    command: &[String],
    target: &Target<'_>,
    version: impl FnOnce(&str) -> String,
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
    if let Some(adapter) = adapter_of(&program, version) {
        let mut options = (adapter.environment)(target);
        let is_name = |word: &String| {
            let plain = word
                .strip_prefix('-')
                .map(|word| word.strip_prefix('-').unwrap_or(word));
            plain.is_some_and(|plain| adapter.named_by.contains(&plain))
        };
        if !names_hosts && !words.iter().any(is_name) {
            options.extend((adapter.hosts)(target));
        }
        let (said, rsh) = adapter.rsh;
        if !words.iter().any(|word| word == said) {
            options.extend(rsh(target.rsh));
        }
        words.splice(1..1, options);
    }
    words
}

fn adapter_of(program: &str, version: impl FnOnce(&str) -> String) -> Option<&'static Adapter> {
    let name = Path::new(program).file_name()?.to_str()?;
    let candidates = || {
        ADAPTERS
            .iter()
            .filter(|adapter| adapter.programs.contains(&name))
    };
    candidates().next()?;
    let said = version(program);
    candidates().find(|adapter| adapter.version.is_none_or(|words| said.contains(words)))
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
        let target = Target {
            hosts: &hosts,
            hostfile: Path::new("/t/hosts"),
            restart: Some(Path::new("/scr/ckpt.7")),
            rsh,
            launch: "9.1",
        };
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        adapt(&command, &target, |_| version.to_owned())
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
            "--host",
            "node1,node5:2",
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
        assert_eq!(words[3..], command[1..]);
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
    }

    #[test]
    fn an_unknown_launcher_is_left_alone() {
        assert_eq!(adapted(&["srun", "a"], "", "ssh"), ["srun", "a"]);
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
