//! Resource managers: which nodes we have, until when, and which of them are down.
//!
//! One row of `ADAPTERS` a manager, and what it prints is read in [`parse`]. A row lists sources; the
//! first that is there counts. Nothing here is needed: without a manager hosts are named by the
//! user, there is no end, and a dead node is found by its silence. So an answer that cannot be had is
//! said and gone without, never a reason to stop.

mod here;
pub mod parse;

pub use here::Here;

use super::hosts::Host;
use jiff::Zoned;
use parse::{Down, Read};
use std::io;
use std::time::{Duration, Instant};

/// Where a fact is.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// In an environment variable.
    Variable(&'static str),
    /// In the file that a variable names.
    FileOf(&'static str),
    /// In what a command prints; `{job}` and `{nodes}` are replaced.
    Command(&'static [&'static str]),
}

use Source::{Command, FileOf, Variable};

/// How a text is read, where it stands.
type Reader<T> = (Source, fn(&str) -> Read<T>);
/// The same, of what depends on the time.
type TimedReader<T> = (Source, fn(&str, &Zoned) -> Read<T>);

/// One resource manager.
#[derive(Debug)]
pub struct Adapter {
    /// Its name, for people.
    pub name: &'static str,
    /// Variables that are set in its jobs, the first that is there counts: the job's id.
    job: &'static [&'static str],
    nodes: &'static [Reader<Vec<Host>>],
    /// Processes of each node, where the nodes' source does not say.
    counts: Option<Reader<Vec<u32>>>,
    left: &'static [TimedReader<Option<Duration>>],
    down: Option<Reader<Vec<Down>>>,
    /// Set where the first host is one that only launches.
    launch_host: Option<&'static str>,
    /// How to run commands on its nodes, where it can do that itself.
    pub shell: Option<&'static str>,
}

/// In the order in which the configuration looks for a job's id.
const ADAPTERS: [Adapter; 4] = [
    Adapter {
        name: "Slurm",
        job: &["SLURM_JOB_ID"],
        nodes: &[
            (Variable("SLURM_JOB_NODELIST"), parse::host_list),
            (Variable("SLURM_NODELIST"), parse::host_list),
        ],
        counts: Some((Variable("SLURM_TASKS_PER_NODE"), parse::slurm_counts)),
        left: &[
            (
                Command(&["squeue", "-h", "-j", "{job}", "-o", "%L"]),
                parse::slurm_left,
            ),
            (Variable("SLURM_JOB_END_TIME"), parse::end_time),
        ],
        down: Some((
            Command(&["sinfo", "-h", "-N", "-n", "{nodes}", "-o", "%N|%T|%E"]),
            parse::slurm_down,
        )),
        launch_host: None,
        shell: Some("srun"),
    },
    Adapter {
        name: "Flux",
        // The first in what `flux batch` and `flux alloc` run, and in what is launched from there.
        job: &["FLUX_ENCLOSING_ID", "FLUX_JOB_ID"],
        nodes: &[
            (
                Command(&[
                    "flux",
                    "resource",
                    "list",
                    "-s",
                    "all",
                    "-n",
                    "-o",
                    "{nodelist}",
                ]),
                parse::host_list,
            ),
            (Command(&["flux", "getattr", "hostlist"]), parse::host_list),
        ],
        counts: None,
        left: &[(Command(&["flux", "job", "timeleft"]), parse::flux_left)],
        down: Some((
            Command(&[
                "flux",
                "resource",
                "list",
                "-s",
                "down",
                "-n",
                "-o",
                "{nodelist}",
            ]),
            parse::flux_down,
        )),
        launch_host: None,
        shell: None,
    },
    Adapter {
        name: "PBS",
        job: &["PBS_JOBID"],
        nodes: &[(FileOf("PBS_NODEFILE"), parse::repeated_hosts)],
        counts: None,
        left: &[(Command(&["qstat", "-f", "{job}"]), parse::pbs_left)],
        down: Some((Command(&["pbsnodes", "-l"]), parse::pbs_down)),
        launch_host: None,
        shell: None,
    },
    Adapter {
        name: "LSF",
        job: &["LSB_JOBID"],
        nodes: &[
            (FileOf("LSB_DJOB_HOSTFILE"), parse::repeated_hosts),
            (Variable("LSB_MCPU_HOSTS"), parse::counted_hosts),
            (Variable("LSB_HOSTS"), parse::repeated_hosts),
        ],
        counts: None,
        left: &[(
            Command(&["bjobs", "-noheader", "-o", "time_left", "{job}"]),
            parse::lsf_left,
        )],
        down: Some((Command(&["bhosts", "-w"]), parse::lsf_down)),
        launch_host: Some("CSM_ALLOCATION_ID"),
        shell: None,
    },
];

/// What an adapter may ask. Tests answer from what real tools printed.
pub trait World {
    /// An environment variable that is not empty.
    fn variable(&self, name: &str) -> Option<String>;
    /// A file's text.
    fn read(&self, path: &str) -> io::Result<String>;
    /// What a command prints.
    fn run(&self, words: &[String]) -> io::Result<String>;
}

/// A job of a resource manager: the one we are in.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// Which manager.
    pub manager: &'static Adapter,
    /// The job's id.
    pub job: String,
}

impl Allocation {
    /// The one we are in, if any.
    pub fn detect(world: &impl World) -> Option<Self> {
        ADAPTERS.iter().find_map(|manager| {
            let job = manager.job.iter().find_map(|name| world.variable(name))?;
            Some(Self { manager, job })
        })
    }

    /// Its nodes, in the manager's order.
    pub fn nodes(&self, world: &impl World) -> Result<Vec<Host>, String> {
        let mut hosts = self.first(world, self.manager.nodes, "nodes", |read, text| read(text))?;
        let is_launch = |name: &&str| world.variable(name).is_some();
        if self.manager.launch_host.as_ref().is_some_and(is_launch) && hosts.len() > 1 {
            hosts.remove(0);
        }
        if let Some((source, read)) = self.manager.counts
            && let Ok(Some(text)) = self.get(world, source, "")
            && let Ok(counts) = read(&text)
            && counts.len() == hosts.len()
        {
            for (host, count) in hosts.iter_mut().zip(counts) {
                host.slots = Some(count);
            }
        }
        Ok(hosts)
    }

    /// When it ends, if it does.
    pub fn end(&self, world: &impl World) -> Result<Option<Instant>, String> {
        let now = Zoned::now();
        let left = self.first(world, self.manager.left, "end", |read, text| {
            read(text, &now)
        })?;
        Ok(left.and_then(|left| Instant::now().checked_add(left)))
    }

    /// Which of `nodes` it knows to be down. It may know others too.
    pub fn down(&self, world: &impl World, nodes: &[&str]) -> Result<Vec<Down>, String> {
        let Some((source, read)) = self.manager.down else {
            return Ok(Vec::new());
        };
        let list = nodes.join(",");
        let text = self.get(world, source, &list)?.unwrap_or_default();
        let mut down = read(&text).map_err(|error| self.say("down nodes", &error))?;
        down.retain(|down| nodes.iter().any(|node| is_same(node, &down.node)));
        Ok(down)
    }

    fn first<F: Copy, T>(
        &self,
        world: &impl World,
        sources: &[(Source, F)],
        what: &str,
        read: impl Fn(F, &str) -> Read<T>,
    ) -> Result<T, String> {
        let mut failed = format!("{} does not say: nothing is set", self.manager.name);
        for (source, reader) in sources {
            match self.get(world, *source, "") {
                Ok(None) => {}
                Ok(Some(text)) => match read(*reader, &text) {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = self.say(what, &error),
                },
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn say(&self, what: &str, error: &dyn std::fmt::Display) -> String {
        format!(
            "{} job {}, its {what}: {error}",
            self.manager.name, self.job
        )
    }

    fn get(
        &self,
        world: &impl World,
        source: Source,
        nodes: &str,
    ) -> Result<Option<String>, String> {
        match source {
            Variable(name) => Ok(world.variable(name)),
            FileOf(name) => match world.variable(name) {
                None => Ok(None),
                Some(path) => match world.read(&path) {
                    Ok(text) => Ok(Some(text)),
                    Err(error) => Err(self.say(name, &format!("cannot read {path}: {error}"))),
                },
            },
            Command(words) => {
                let fill = |word: &&str| word.replace("{job}", &self.job).replace("{nodes}", nodes);
                let words: Vec<String> = words.iter().map(fill).collect();
                match world.run(&words) {
                    Ok(text) => Ok(Some(text)),
                    Err(error) => Err(self.say(&words.join(" "), &error)),
                }
            }
        }
    }
}

/// One node under two names, with and without its domain.
pub fn is_same(one: &str, other: &str) -> bool {
    let host = |name: &str| name.split('.').next().map(str::to_owned);
    one == other || (one.contains('.') != other.contains('.') && host(one) == host(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Recorded {
        variables: HashMap<&'static str, &'static str>,
        answers: HashMap<String, &'static str>,
    }

    impl World for Recorded {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).map(|value| (*value).to_owned())
        }
        fn read(&self, path: &str) -> io::Result<String> {
            let found = self.answers.get(path);
            found
                .map(|text| (*text).to_owned())
                .ok_or(io::ErrorKind::NotFound.into())
        }
        fn run(&self, words: &[String]) -> io::Result<String> {
            self.read(&words.join(" "))
        }
    }

    fn world(
        variables: &[(&'static str, &'static str)],
        answers: &[(&str, &'static str)],
    ) -> Recorded {
        Recorded {
            variables: variables.iter().copied().collect(),
            answers: answers
                .iter()
                .map(|(words, text)| ((*words).to_owned(), *text))
                .collect(),
        }
    }

    fn facts(world: &Recorded) -> (String, Vec<String>, bool, Vec<String>) {
        let found = Allocation::detect(world).expect("a job");
        let hosts = found.nodes(world).expect("known");
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let down = found.down(world, &names).expect("known");
        let slots = |host: &Host| format!("{}:{}", host.name, host.slots.unwrap_or(0));
        (
            format!("{} {}", found.manager.name, found.job),
            hosts.iter().map(slots).collect(),
            found.end(world).expect("known").is_some(),
            down.into_iter().map(|down| down.node).collect(),
        )
    }

    #[test]
    fn each_manager_is_asked_in_its_own_words() {
        let slurm = world(
            &[
                ("SLURM_JOB_ID", "7"),
                ("SLURM_JOB_NODELIST", "node[1-3]"),
                ("SLURM_TASKS_PER_NODE", "2(x2),1"),
            ],
            &[
                ("squeue -h -j 7 -o %L", "59:48\n"),
                (
                    "sinfo -h -N -n node1,node2,node3 -o %N|%T|%E",
                    "node1|mixed|none\nnode2|down*|Not responding\nnode3|mixed|none\n",
                ),
            ],
        );
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(
            facts(&slurm),
            (
                "Slurm 7".into(),
                strings(&["node1:2", "node2:2", "node3:1"]),
                true,
                strings(&["node2"])
            )
        );
        let flux = world(
            &[("FLUX_JOB_ID", "f3"), ("PBS_JOBID", "1.head")],
            &[
                ("flux resource list -s all -n -o {nodelist}", "n[1-2]\n"),
                ("flux job timeleft", "infinity\n"),
                ("flux resource list -s down -n -o {nodelist}", "n2\n"),
            ],
        );
        let expected = (
            "Flux f3".into(),
            strings(&["n1:0", "n2:0"]),
            false,
            strings(&["n2"]),
        );
        assert_eq!(facts(&flux), expected);
        // A batch script has no FLUX_JOB_ID, and its steps have others than it.
        for inside in [&[][..], &[("FLUX_JOB_ID", "f4")]] {
            let variables = [&[("FLUX_ENCLOSING_ID", "f3")][..], inside].concat();
            let found = Allocation::detect(&world(&variables, &[])).expect("a job");
            assert_eq!((found.manager.name, &*found.job), ("Flux", "f3"));
        }
        let pbs = world(
            &[("PBS_JOBID", "1.head"), ("PBS_NODEFILE", "/aux/1")],
            &[
                ("/aux/1", "n1.site\nn1.site\nn2.site\n"),
                (
                    "qstat -f 1.head",
                    "Job Id: 1.head\n  Walltime.Remaining = 60\n",
                ),
                ("pbsnodes -l", "n2     down\nother  down\n"),
            ],
        );
        let expected = (
            "PBS 1.head".into(),
            strings(&["n1.site:2", "n2.site:1"]),
            true,
            strings(&["n2"]),
        );
        assert_eq!(facts(&pbs), expected);
        let lsf = world(
            &[
                ("LSB_JOBID", "9"),
                ("LSB_MCPU_HOSTS", "batch5 1 a 42 b 42"),
                ("CSM_ALLOCATION_ID", "3"),
            ],
            &[
                ("bjobs -noheader -o time_left 9", "1:28 L\n"),
                ("bhosts -w", "HOST_NAME STATUS\na ok\nb unreach\n"),
            ],
        );
        let expected = (
            "LSF 9".into(),
            strings(&["a:42", "b:42"]),
            true,
            strings(&["b"]),
        );
        assert_eq!(facts(&lsf), expected);
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let none = world(&[], &[]);
        assert!(Allocation::detect(&none).is_none());
        let poor = world(
            &[("SLURM_JOB_ID", "7"), ("SLURM_JOB_END_TIME", "99999999999")],
            &[],
        );
        let found = Allocation::detect(&poor).expect("a job");
        let error = found.nodes(&poor).expect_err("not set");
        assert!(error.contains("Slurm does not say"), "{error}");
        // The command fails, the variable is there.
        assert!(found.end(&poor).expect("known").is_some());
        let error = found.down(&poor, &["a"]).expect_err("no sinfo");
        assert!(error.contains("sinfo -h -N -n a"), "{error}");
    }

    #[test]
    fn names_with_and_without_their_domain_are_the_same() {
        assert!(is_same("a", "a") && is_same("a.x", "a") && is_same("a", "a.x"));
        assert!(!is_same("a.x", "a.y") && !is_same("a", "b.x"));
    }
}
