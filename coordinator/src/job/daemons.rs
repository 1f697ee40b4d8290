//! Mounting and unmounting all nodes.

use super::args;
use super::remote::{Fleet, Shell};
use super::supervisor::{Starting, Supervisor};
use super::words;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// From a daemon's start to its first beat.
const BEAT_PATIENCE: Duration = Duration::from_secs(10);
/// For a node that was lost to unmount, if it is still there.
const LOST_PATIENCE: Duration = Duration::from_secs(3);

impl Supervisor<'_> {
    /// Starts the daemons, everywhere at once. Returns when each host without which the job cannot
    /// start as asked is up or down; spares may still be on their way.
    pub(super) fn start_daemons(&mut self, hosts: &[String]) -> Result<()> {
        let commands: Vec<_> = hosts
            .iter()
            .map(|host| (host.clone(), self.mount_command(host)))
            .collect();
        for host in hosts {
            self.heart.members.expect(host);
        }
        self.report.stage(&format!(
            "mounting {} on {} hosts; heartbeats come to {}",
            self.args.mount.mountpoint.display(),
            hosts.len(),
            self.heart.address()
        ));
        let mut fleet = Fleet::new(&self.shell, "mount", commands);
        let mut unheard = BTreeMap::new();
        if self.shell.holds() {
            fleet = fleet.held();
            let until = Instant::now() + self.shell.patience;
            unheard.extend(hosts.iter().map(|host| (host.clone(), until)));
        }
        self.starting = Some(Starting { fleet, unheard });
        let placed = self.placed();
        let begun = Instant::now();
        while self.stop.is_none()
            && placed.iter().any(|host| {
                self.heart.members.life(host).is_none() && !self.heart.members.is_down(host)
            })
        {
            self.turn()?;
        }
        let up = self.heart.members.lives().count();
        let took = begun.elapsed().as_secs_f64();
        self.report.stage(&format!(
            "{up} of {} hosts are up after {took:.2} s",
            hosts.len()
        ));
        Ok(())
    }

    fn mount_command(&self, host: &str) -> String {
        let mut words = Vec::new();
        words.push(self.programs.scrfs.display().to_string());
        words.push("mount".into());
        words.extend(self.mount_options.iter().cloned());
        words.extend(["--node".into(), host.to_owned()]);
        words.extend(["--supervisor".into(), self.heart.address().to_string()]);
        words.extend(["--token".into(), self.heart.token().to_string()]);
        words.extend(["--number".into(), self.begun.number.to_string()]);
        if self.shell.holds() {
            words.push("--foreground".into());
        }
        args::remote_line(&self.environment, &self.args.mount, &words)
    }

    pub(super) fn turn_starting(&mut self) {
        let Some(mut starting) = self.starting.take() else {
            return;
        };
        for ended in starting.fleet.poll() {
            let members = &self.heart.members;
            match ended.result {
                // A mount that was there already, or one that has ended: silence will tell.
                Ok(()) if self.shell.holds() => {}
                Ok(()) => {
                    starting
                        .unheard
                        .insert(ended.host, Instant::now() + BEAT_PATIENCE);
                }
                // It was heard: its heartbeats tell more than the end of what started it.
                Err(_) if members.life(&ended.host).is_some() || members.is_down(&ended.host) => {}
                Err(why) => self.give_up(&ended.host, why),
            }
        }
        let now = Instant::now();
        let members = &self.heart.members;
        starting
            .unheard
            .retain(|host, _| members.life(host).is_none());
        let silent = starting.unheard.iter().filter(|(_, until)| now >= **until);
        let silent: Vec<String> = silent.map(|(host, _)| host.clone()).collect();
        starting.unheard.retain(|_, until| now < *until);
        for host in silent {
            let address = self.heart.address();
            let why = format!(
                "it is mounted, but no heartbeat comes from it to {address}; is there a firewall? \
                 --listen ADDR names another address"
            );
            self.give_up(&host, why);
        }
        if !(starting.fleet.is_done() && starting.unheard.is_empty()) {
            self.starting = Some(starting);
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        self.starting.as_ref().is_some_and(|starting| {
            let running = !self.shell.holds() && !starting.fleet.is_done();
            running || !starting.unheard.is_empty()
        })
    }

    /// Unmounts all hosts that live. `finish`: coordinators end by themselves, with nothing undone.
    pub(super) fn unmount(&mut self, finish: bool) -> Result<()> {
        self.unmounting = true;
        // Daemons that are held end by themselves, or with the end of this.
        if !self.shell.holds() {
            self.starting = None;
        }
        let words = [
            self.programs.scrfs.display().to_string(),
            "unmount".to_owned(),
            self.mount_options[0].clone(),
        ];
        let plain = words::join(words.iter().map(String::as_str));
        let by_force = format!("{plain} --now");
        let command = if finish { plain } else { by_force.clone() };
        let hosts: Vec<String> = self
            .heart
            .members
            .lives()
            .map(|life| life.beat.node.clone())
            .collect();
        // A daemon that died alone has left its mount behind.
        let lost: Vec<String> = self.heart.members.lost().map(str::to_owned).collect();
        let lost_shell = Shell {
            patience: LOST_PATIENCE.min(self.shell.patience),
            ..self.shell.clone()
        };
        let fleet = |shell: &Shell, name, hosts: Vec<String>, command: &String| {
            let commands = hosts.into_iter().map(|host| (host, command.clone()));
            Fleet::new(shell, name, commands)
        };
        let mut abandoned = fleet(&lost_shell, "abandon", lost, &by_force);
        let mut fleet = fleet(&self.shell, "unmount", hosts, &command);
        while !fleet.is_done() || !abandoned.is_done() {
            self.turn()?;
            for ended in fleet.poll() {
                if let Err(why) = ended.result {
                    self.report
                        .say(&format!("{} stays mounted: {why}", ended.host));
                }
            }
            // Most are not there any more, and nothing is to be said of that.
            abandoned.poll();
        }
        Ok(())
    }
}
