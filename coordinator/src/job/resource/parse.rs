//! What resource managers print, read. Pure: text in, facts out; times are arguments.
//!
//! Whatever is not understood is an error that shows it, never a guess: an end of the allocation that
//! is made up would halt a job, a node that is made up would be lost.

use crate::job::hosts::{self, Host};
use jiff::Zoned;
use jiff::civil::DateTime;
use std::time::Duration;

/// Text of a form that is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct Unreadable {
    what: &'static str,
    text: String,
}

/// What a source gives.
pub type Read<T> = Result<T, Unreadable>;

/// Characters of unreadable text that are shown.
const SHOWN_MAX: usize = 200;

fn unreadable(what: &'static str, text: &str) -> Unreadable {
    let text = text.chars().take(SHOWN_MAX).collect();
    Unreadable { what, text }
}

/// A node that is not to be used, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Down {
    /// Its name.
    pub node: String,
    /// In the resource manager's words.
    pub why: String,
}

/// `node[1-3,07]`: Slurm and Flux.
pub fn host_list(text: &str) -> Read<Vec<Host>> {
    hosts::parse_list(text.trim()).map_err(|_| unreadable("list of hosts", text))
}

/// A host for each process it gets: host files of PBS and LSF.
pub fn repeated_hosts(text: &str) -> Read<Vec<Host>> {
    hosts::parse_repeated(text).map_err(|_| unreadable("list of hosts", text))
}

/// `node1 4 node2 4`: LSF.
pub fn counted_hosts(text: &str) -> Read<Vec<Host>> {
    let bad = || unreadable("list of hosts and counts", text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let (pairs, []) = words.as_chunks::<2>() else {
        return Err(bad());
    };
    let read = |[name, slots]: &[&str; 2]| {
        let mut hosts = hosts::parse_list(name).map_err(|_| bad())?;
        let slots = slots.parse().map_err(|_| bad())?;
        match (hosts.pop(), hosts.is_empty()) {
            (Some(host), true) => Ok(Host {
                slots: Some(slots),
                ..host
            }),
            _ => Err(bad()),
        }
    };
    pairs.iter().map(read).collect()
}

/// `[[days-]hours:]minutes:seconds`, or days and hours only, as Slurm prints durations.
fn slurm_duration(text: &str) -> Option<Duration> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse::<u64>().ok()?, rest),
        None => (0, text),
    };
    Some(Duration::from_secs(days.checked_mul(86_400)?) + clock_duration(rest)?)
}

/// `[hours:]minutes:seconds`; the first may be as large as it likes.
fn clock_duration(text: &str) -> Option<Duration> {
    let parts: Vec<u64> = text
        .split(':')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match parts[..] {
        [hours, minutes, seconds] => (hours, minutes, seconds),
        [minutes, seconds] => (0, minutes, seconds),
        _ => return None,
    };
    let minutes = hours.checked_mul(60)?.checked_add(minutes)?;
    Some(Duration::from_secs(
        minutes.checked_mul(60)?.checked_add(seconds)?,
    ))
}

/// `squeue -h -o %L`: the time left. `None`: there is no end.
pub fn slurm_left(text: &str, _now: &Zoned) -> Read<Option<Duration>> {
    match text.trim() {
        "UNLIMITED" | "NOT_SET" => Ok(None),
        left => slurm_duration(left)
            .map(Some)
            .ok_or_else(|| unreadable("time left", text)),
    }
}

/// What `flux job timeleft` prints of a job without an end, at least.
const FLUX_UNLIMITED: f64 = u32::MAX as f64;

/// `flux job timeleft`: seconds.
pub fn flux_left(text: &str, _now: &Zoned) -> Read<Option<Duration>> {
    let bad = || unreadable("time left", text);
    let seconds: f64 = text.trim().parse().map_err(|_| bad())?;
    if seconds >= FLUX_UNLIMITED {
        return Ok(None);
    }
    Duration::try_from_secs_f64(seconds)
        .map(Some)
        .map_err(|_| bad())
}

/// `bjobs -noheader -o time_left`: `hours:minutes` and what the estimate is made of.
pub fn lsf_left(text: &str, _now: &Zoned) -> Read<Option<Duration>> {
    let bad = || unreadable("time left", text);
    let first = text.split_whitespace().next().ok_or_else(bad)?;
    if first == "-" {
        return Ok(None);
    }
    // A second colon only with LSB_HMS_TIME_FORMAT.
    let left = match first.matches(':').count() {
        1 => clock_duration(&format!("{first}:00")),
        _ => clock_duration(first),
    };
    left.map(Some).ok_or_else(bad)
}

/// `qstat -f`, of PBS and of Torque.
pub fn pbs_left(text: &str, now: &Zoned) -> Read<Option<Duration>> {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (found, value) = line.split_once('=')?;
            (found.trim() == name).then_some(value.trim())
        })
    };
    let bad = || unreadable("description of a job", text);
    if let Some(left) = value("Walltime.Remaining") {
        // Below zero once it is over.
        let left: i64 = left.parse().map_err(|_| bad())?;
        let left = u64::try_from(left).unwrap_or(0);
        return Ok(Some(Duration::from_secs(left)));
    }
    let Some(limit) = value("Resource_List.walltime") else {
        return if text.contains("Job Id:") {
            Ok(None)
        } else {
            Err(bad())
        };
    };
    let limit = clock_duration(limit).ok_or_else(bad)?;
    // What is used is measured now and then only: the start is exact.
    let used = match value("stime").or(value("start_time")) {
        Some(start) => {
            let start = DateTime::strptime("%a %b %d %H:%M:%S %Y", start).map_err(|_| bad())?;
            let start = start.to_zoned(now.time_zone().clone()).map_err(|_| bad())?;
            Duration::try_from(now.duration_since(&start)).unwrap_or(Duration::ZERO)
        }
        None => match value("resources_used.walltime") {
            Some(used) => clock_duration(used).ok_or_else(bad)?,
            None => Duration::ZERO,
        },
    };
    Ok(Some(limit.saturating_sub(used)))
}

/// A Unix time: `SLURM_JOB_END_TIME`.
pub fn end_time(text: &str, now: &Zoned) -> Read<Option<Duration>> {
    let end: i64 = text
        .trim()
        .parse()
        .map_err(|_| unreadable("time in seconds", text))?;
    let left = end.saturating_sub(now.timestamp().as_second());
    Ok(Some(Duration::from_secs(u64::try_from(left).unwrap_or(0))))
}

/// `sinfo -h -N -o %N|%T|%E`: node, state, reason. A state with a star: the node does not answer.
/// Drained nodes take no new jobs, but go on with those they have.
pub fn slurm_down(text: &str) -> Read<Vec<Down>> {
    let mut found: Vec<Down> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut fields = line.trim().splitn(3, '|').map(str::trim);
        let (Some(node), Some(state)) = (fields.next(), fields.next()) else {
            return Err(unreadable("line of node and state", line));
        };
        let reason = fields.next().unwrap_or_default();
        let gone = ["down", "powered_down", "powering_down", "unknown", "reboot"];
        let is_down = state.ends_with('*') || gone.iter().any(|word| state.starts_with(word));
        // One line a partition.
        if is_down && found.iter().all(|down| down.node != node) {
            let why = match reason {
                "" | "none" => format!("Slurm says {state}"),
                reason => format!("Slurm says {state}: {reason}"),
            };
            found.push(Down {
                node: node.to_owned(),
                why,
            });
        }
    }
    Ok(found)
}

/// `flux resource list -s down -n -o {nodelist}`
pub fn flux_down(text: &str) -> Read<Vec<Down>> {
    let down = |host: Host| Down {
        node: host.name,
        why: "Flux says down".into(),
    };
    Ok(host_list(text)?.into_iter().map(down).collect())
}

/// `pbsnodes -l`: node and states, of those that are not as they should be.
pub fn pbs_down(text: &str) -> Read<Vec<Down>> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (Some(node), Some(states)) = (words.next(), words.next()) else {
            return Err(unreadable("line of node and states", line));
        };
        // Offline takes no new jobs, as drained of Slurm.
        let is_down = |state: &str| state == "down" || state.contains("unknown");
        if states.split(',').any(is_down) {
            let why = format!("PBS says {states}");
            found.push(Down {
                node: node.to_owned(),
                why,
            });
        }
    }
    Ok(found)
}

/// `bhosts -w`: a head line, then host and status first. Closed hosts take no new jobs.
pub fn lsf_down(text: &str) -> Read<Vec<Down>> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    match lines.next() {
        Some(head) if head.split_whitespace().take(2).eq(["HOST_NAME", "STATUS"]) => {}
        other => return Err(unreadable("table of hosts", other.unwrap_or_default())),
    }
    let mut found = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let (Some(node), Some(status)) = (words.next(), words.next()) else {
            return Err(unreadable("line of host and status", line));
        };
        if ["unavail", "unreach"].contains(&status) {
            let why = format!("LSF says {status}");
            found.push(Down {
                node: node.to_owned(),
                why,
            });
        }
    }
    Ok(found)
}

/// `2(x3),1`: processes of each node, as Slurm prints them.
pub fn slurm_counts(text: &str) -> Read<Vec<u32>> {
    let bad = || unreadable("list of counts", text);
    let mut counts = Vec::new();
    for part in text.trim().split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => {
                let times = times.strip_suffix(')').ok_or_else(bad)?;
                (count, times.parse().map_err(|_| bad())?)
            }
            None => (part, 1usize),
        };
        if counts.len().saturating_add(times) > scrfs::config::HOSTS_MAX {
            return Err(bad());
        }
        let count: u32 = count.parse().map_err(|_| bad())?;
        counts.extend(std::iter::repeat_n(count, times));
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Zoned {
        "2026-11-25T12:00:00+01:00[Europe/Paris]"
            .parse()
            .expect("a time")
    }

    fn seconds(read: Read<Option<Duration>>) -> Option<u64> {
        read.expect("readable").map(|left| left.as_secs())
    }

    fn names(down: Read<Vec<Down>>) -> Vec<String> {
        let say = |down: Down| format!("{}: {}", down.node, down.why);
        down.expect("readable").into_iter().map(say).collect()
    }

    fn slots(hosts: Read<Vec<Host>>) -> Vec<String> {
        let say = |host: Host| match host.slots {
            Some(slots) => format!("{}:{slots}", host.name),
            None => host.name,
        };
        hosts.expect("readable").into_iter().map(say).collect()
    }

    #[test]
    fn nodes_of_each_manager() {
        assert_eq!(
            slots(host_list("node[1-2,4],login\n")),
            ["node1", "node2", "node4", "login"]
        );
        assert_eq!(
            slots(host_list("r[1-2]n[08-09]")).join(" "),
            "r1n08 r1n09 r2n08 r2n09"
        );
        assert_eq!(slots(host_list("")), [""; 0]);
        assert_eq!(
            slots(repeated_hosts("n1.site\nn1.site\nn2.site\nn1.site\n")),
            ["n1.site:3", "n2.site:1"]
        );
        assert_eq!(slots(repeated_hosts("a a b b")), ["a:2", "b:2"]);
        assert_eq!(
            slots(counted_hosts("batch1 1 a 42 b 42")),
            ["batch1:1", "a:42", "b:42"]
        );
        for bad in ["a", "a 1 b", "1 a", "a[1-2] 3", "a x"] {
            assert!(counted_hosts(bad).is_err(), "{bad}");
        }
        assert_eq!(slurm_counts("2(x3),1").expect("readable"), [2, 2, 2, 1]);
        assert!(slurm_counts("2(x99999999)").is_err() && slurm_counts("2x3").is_err());
    }

    #[test]
    fn time_left_of_each_manager() {
        // squeue -h -j 7 -o %L
        assert_eq!(seconds(slurm_left("59:48\n", &now())), Some(3588));
        assert_eq!(seconds(slurm_left("1:00:00", &now())), Some(3600));
        assert_eq!(seconds(slurm_left("2-03:04:05", &now())), Some(183_845));
        assert_eq!(seconds(slurm_left("UNLIMITED\n", &now())), None);
        assert!(slurm_left("INVALID", &now()).is_err() && slurm_left("", &now()).is_err());
        // flux job timeleft
        assert_eq!(seconds(flux_left("3599\n", &now())), Some(3599));
        assert_eq!(seconds(flux_left("59.25", &now())), Some(59));
        assert_eq!(seconds(flux_left("4294967295\n", &now())), None);
        assert_eq!(seconds(flux_left("infinity\n", &now())), None);
        assert!(flux_left("-1", &now()).is_err() && flux_left("NaN", &now()).is_err());
        // bjobs -noheader -o time_left 7
        assert_eq!(seconds(lsf_left("1:28 L\n", &now())), Some(5280));
        assert_eq!(seconds(lsf_left("0:0 X", &now())), Some(0));
        assert_eq!(seconds(lsf_left("00:05:30 E", &now())), Some(330));
        assert_eq!(seconds(lsf_left("-\n", &now())), None);
        assert!(lsf_left("", &now()).is_err());
        let end = now().timestamp().as_second() + 60;
        assert_eq!(seconds(end_time(&end.to_string(), &now())), Some(60));
        assert_eq!(seconds(end_time("5", &now())), Some(0));
    }

    #[test]
    fn time_left_of_both_kinds_of_pbs() {
        let torque = "Job Id: 4.head\n    Job_Name = run\n    Resource_List.walltime = 04:00:00\n    \
                      start_time = Wed Nov 25 11:00:00 2026\n    Walltime.Remaining = 14266\n";
        assert_eq!(seconds(pbs_left(torque, &now())), Some(14_266));
        let over = torque.replace("14266", "-3");
        assert_eq!(seconds(pbs_left(&over, &now())), Some(0));
        let pro = "Job Id: 12.pbs\n    Job_Name = run\n    resources_used.walltime = 00:28:10\n    \
                   job_state = R\n    Resource_List.walltime = 01:00:00\n    \
                   stime = Wed Nov 25 11:30:30 2026\n    Variable_List = PBS_O_HOME=/home/me,\n\
                   \tPBS_O_LANG=C\n";
        assert_eq!(seconds(pbs_left(pro, &now())), Some(1830));
        let measured: String = pro
            .lines()
            .filter(|line| !line.contains("stime"))
            .fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(seconds(pbs_left(&measured, &now())), Some(1910));
        assert_eq!(
            seconds(pbs_left("Job Id: 12.pbs\n  job_state = R\n", &now())),
            None
        );
        assert!(pbs_left("qstat: Unknown Job Id 12\n", &now()).is_err());
    }

    #[test]
    fn down_nodes_of_each_manager() {
        // sinfo -h -N -n node[1-7] -o '%N|%T|%E'
        let slurm = "node1|idle|none\nnode2|allocated*|none\nnode3|down*|Not responding\n\
                     node3|down*|Not responding\nnode4|drained|disk | full\nnode5|mixed|none\n\
                     node6|down|Kill task failed\nnode7|unknown*|none\n";
        assert_eq!(
            names(slurm_down(slurm)),
            [
                "node2: Slurm says allocated*",
                "node3: Slurm says down*: Not responding",
                "node6: Slurm says down: Kill task failed",
                "node7: Slurm says unknown*",
            ]
        );
        assert!(slurm_down("sinfo failed").is_err());
        assert_eq!(names(slurm_down("")), [""; 0]);
        assert_eq!(
            names(flux_down("n[3,5]\n")),
            ["n3: Flux says down", "n5: Flux says down"]
        );
        assert_eq!(names(flux_down("\n")), [""; 0]);
        // pbsnodes -l
        let pbs = "n3                   down\nn4                   offline\n\
                   n5                   down,offline\nn6   state-unknown,down  no contact\n";
        assert_eq!(
            names(pbs_down(pbs)),
            [
                "n3: PBS says down",
                "n5: PBS says down,offline",
                "n6: PBS says state-unknown,down"
            ]
        );
        // bhosts -w
        let lsf = "HOST_NAME          STATUS          JL/U    MAX  NJOBS    RUN  SSUSP  USUSP    RSV\n\
                   a                  ok              -      42     42     42      0      0      0\n\
                   b                  unavail         -       1      0      0      0      0      0\n\
                   c                  closed_Adm      -      42     42     42      0      0      0\n\
                   d                  unreach         -      42     42     42      0      0      0\n";
        assert_eq!(
            names(lsf_down(lsf)),
            ["b: LSF says unavail", "d: LSF says unreach"]
        );
        assert!(lsf_down("batch system daemon not responding").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9:\\[\\]().,|=* \n-]{0,60}") {
            let _ = (slurm_left(&text, &now()), flux_left(&text, &now()));
            let _ = (lsf_left(&text, &now()), pbs_left(&text, &now()));
            let _ = (slurm_down(&text), flux_down(&text), pbs_down(&text), lsf_down(&text));
            let _ = (host_list(&text), repeated_hosts(&text), counted_hosts(&text));
            let _ = (slurm_counts(&text), end_time(&text, &now()));
        }
    }
}
