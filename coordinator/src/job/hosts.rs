//! Names of hosts: host files, host lists such as `node[1-3,07],login`, and what a name may be.
//!
//! Invariants: order is kept, and the first mention of a host counts; a name never begins with `-`
//! and has no character that a shell or a launcher would read as something else. Pure.

use scrfs::config::{HostlistError, expand_hostlist};
use std::collections::{HashMap, HashSet};

/// A host that may run a part of the job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// As the remote shell and the launcher know it.
    pub name: String,
    /// How many processes the host file gives it.
    pub slots: Option<u32>,
}

/// Why text is no list of hosts.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostsError {
    /// Not a name.
    #[error("`{0}` is not a host name")]
    Name(String),
    /// Its brackets make no sense.
    #[error(transparent)]
    List(#[from] HostlistError),
    /// More than `slots=` behind a host.
    #[error("line {line}: `{word}` is unknown; `slots=N` may follow a host")]
    Word {
        /// Which line, from one.
        line: usize,
        /// What is there.
        word: String,
    },
    /// A name or range in a host file is wrong.
    #[error("line {line}")]
    Line {
        /// Which line, from one.
        line: usize,
        /// What is wrong.
        #[source]
        source: Box<HostsError>,
    },
}

fn check(name: &str) -> Result<(), HostsError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(plain) {
        return Err(HostsError::Name(name.to_owned()));
    }
    Ok(())
}

/// Reads a host file: a host a line, `slots=N` behind it if need be, comments from `#` on.
/// `max_slots=N`, which launchers know too, is read over.
pub fn parse_hostfile(text: &str) -> Result<Vec<Host>, HostsError> {
    let mut hosts = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(names) = words.next() else { continue };
        let mut slots = None;
        for word in words {
            let unknown = || HostsError::Word {
                line: number,
                word: word.to_owned(),
            };
            match word.split_once('=') {
                Some(("slots", count)) => slots = Some(count.parse().map_err(|_| unknown())?),
                Some(("max_slots" | "max-slots", _)) => {}
                _ => return Err(unknown()),
            }
        }
        let names = expand(names).map_err(|error| HostsError::Line {
            line: number,
            source: Box::new(error),
        })?;
        hosts.extend(names.into_iter().map(|name| Host { name, slots }));
    }
    Ok(first_mentions(hosts))
}

/// Hosts named once for each process they get, separated by blanks or line ends.
pub fn parse_repeated(text: &str) -> Result<Vec<Host>, HostsError> {
    let mut hosts: Vec<Host> = Vec::new();
    let mut places = HashMap::new();
    for name in text.split_whitespace() {
        check(name)?;
        let place = *places.entry(name).or_insert(hosts.len());
        match hosts.get_mut(place) {
            Some(host) => host.slots = host.slots.map(|slots| slots + 1),
            None => hosts.push(Host {
                name: name.to_owned(),
                slots: Some(1),
            }),
        }
    }
    Ok(hosts)
}

/// Hosts of a list that gives names only.
pub fn parse_list(text: &str) -> Result<Vec<Host>, HostsError> {
    let hosts = expand(text)?
        .into_iter()
        .map(|name| Host { name, slots: None })
        .collect();
    Ok(first_mentions(hosts))
}

fn first_mentions(hosts: Vec<Host>) -> Vec<Host> {
    let mut seen = HashSet::new();
    hosts
        .into_iter()
        .filter(|host| seen.insert(host.name.clone()))
        .collect()
}

/// The names that a list stands for: `a,b[1-2,07]` is a, b1, b2, b07.
pub fn expand(list: &str) -> Result<Vec<String>, HostsError> {
    let names = expand_hostlist(list)?;
    names.iter().try_for_each(|name| check(name))?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|host| host.name.as_str()).collect()
    }

    #[test]
    fn a_hostfile_may_have_comments_slots_and_repetitions() {
        let text = "# the job\n\nnode1 slots=4\n  node2   # spare\nnode1\nn[08-10] slots=2 \
                    max_slots=3\n";
        let hosts = parse_hostfile(text).expect("valid");
        assert_eq!(names(&hosts), ["node1", "node2", "n08", "n09", "n10"]);
        assert_eq!(hosts[0].slots, Some(4));
        assert_eq!(hosts[1].slots, None);
        assert_eq!(hosts[4].slots, Some(2));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse_hostfile("node1\nnode2 cores=3\n").expect_err("unknown word");
        assert_eq!(
            error,
            HostsError::Word {
                line: 2,
                word: "cores=3".into()
            }
        );
        for bad in [
            "-oProxyCommand=x",
            "a;b",
            "node[1-",
            "node[b]",
            "node[3-1]",
            "a]",
        ] {
            assert!(parse_hostfile(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_expanded_in_order() {
        let list = expand("a,b[1-2,07]-ib,c").expect("valid");
        assert_eq!(list, ["a", "b1-ib", "b2-ib", "b07-ib", "c"]);
        assert!(expand("a,,b").is_err());
        assert!(expand("n[0-99999999999]").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Ok(hosts) = parse_hostfile(&text) {
                for host in hosts {
                    prop_assert!(check(&host.name).is_ok());
                }
            }
        }
    }
}
