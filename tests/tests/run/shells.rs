//! Daemons and coordinators started by the remote shells that clusters have: OpenSSH's, and `pdsh` over it.
//!
//! Each node gets an `sshd` beside the virtual cluster's own remote shell, on another port, with keys and a
//! configuration made for the test, in a directory of its own. Debian's `openssh-server`, `openssh-client` and `pdsh`.

use super::*;
use scrfs_tests::cluster::site_environment;
use std::path::PathBuf;
use std::process::{Child, Stdio};

const PORT: u16 = 2222;

/// An `sshd` on each node, and who may come in.
struct Sshd {
    directory: tempfile::TempDir,
    daemons: Vec<Child>,
}

/// Whether this machine has them; CI must.
fn have(programs: &[&str]) -> bool {
    let is_there = |name: &str| {
        let places = ["/usr/bin", "/usr/sbin"];
        places
            .iter()
            .any(|place| Path::new(place).join(name).is_file())
    };
    let missing: Vec<_> = programs.iter().filter(|name| !is_there(name)).collect();
    let required = std::env::var_os("SCRFS_REQUIRE_ALL").is_some();
    assert!(missing.is_empty() || !required, "{missing:?} are missing");
    if !missing.is_empty() {
        eprintln!("left out: this machine has no {missing:?}");
    }
    missing.is_empty()
}

impl Sshd {
    fn start(site: &Site) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
                .arg(path(key))
                .status();
            assert!(made.unwrap().success(), "no key");
        }
        let of = |name: &str| path(name).display().to_string();
        let environment: Vec<String> = site_environment()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let server = format!(
            "Port {PORT}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\nSetEnv {}\n",
            of("host"),
            of("user.pub"),
            environment.join(" ")
        );
        fs::write(path("sshd_config"), server).unwrap();
        let client = format!(
            "Host *\nPort {PORT}\nIdentityFile {}\nIdentitiesOnly yes\nBatchMode yes\nLogLevel ERROR\n\
             StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nConnectTimeout 5\n",
            of("user")
        );
        fs::write(path("ssh_config"), client).unwrap();
        let mut sshd = Self {
            directory,
            daemons: Vec::new(),
        };
        for node in 1..=site.cluster.nodes() {
            let config = sshd.directory.path().join("sshd_config");
            let log = fs::File::create(sshd.directory.path().join(format!("{node}.log"))).unwrap();
            let mut command = site.cluster.command(node, "sh");
            // It wants an empty directory, in the node's own /run.
            let script = "mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e -f \"$0\"";
            command.args(["-c", script]).arg(config);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
            sshd.daemons.push(command.spawn().unwrap());
            let [client, options @ ..] = &sshd.client().map(PathBuf::from);
            let host = site.cluster.name(node);
            let waited = wait_until(SOON, "the node's sshd", || {
                let mut command = site.cluster.command(0, client);
                let output = command.args(options).args([&host, "true"]).output()?;
                Ok(output.status.success().then_some(()))
            });
            waited.unwrap_or_else(|error| panic!("{error:#}\n{}", sshd.log(node)));
        }
        sshd
    }

    /// `ssh` as it finds its way into the nodes.
    fn client(&self) -> [String; 3] {
        let config = self.directory.path().join("ssh_config");
        ["ssh".into(), "-F".into(), config.display().to_string()]
    }

    fn log(&self, node: usize) -> String {
        let log = self.directory.path().join(format!("{node}.log"));
        fs::read_to_string(log).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // Killed with its node, or now.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// A node is lost and replaced while all that is started on other nodes is started by `ssh`, or by `pdsh`.
fn a_node_is_lost_behind(pdsh: bool) {
    let site = Site::start(RANKS + 1);
    let sshd = Sshd::start(&site);
    let client = sshd.client();
    let shared = site.shared().display().to_string();
    let launch = site.shared().join("launch.sh").display().to_string();
    let ssh = client.join(" ");
    let rsh = if pdsh { "pdsh -R ssh" } else { &ssh };
    // As `pdsh` and `mpirun` find `ssh` configured on a real cluster.
    let environment = [
        ("PDSH_SSH_ARGS_APPEND", PathBuf::from(client[1..].join(" "))),
        ("OMPI_MCA_plm_rsh_agent", PathBuf::from(&ssh)),
    ];
    let options = ["--spares", "1", "--runs", "2", "--rsh", rsh];
    let job = [launch.as_str(), &shared, &ssh, "{hosts}"];
    let run = site.run_with(&environment, &options, &job);
    let output = a_node_is_replaced(&site, run, 2, Loss::Crash);
    for node in [1, 3, RANKS + 1] {
        let log = sshd.log(node);
        assert!(
            log.contains("Accepted publickey for root"),
            "node{node}: {log}"
        );
    }
    drop(sshd);
    site.nothing_is_left(&[2], &output);
}

#[test]
fn ssh_starts_daemons_and_coordinators() {
    if have(&["ssh", "sshd", "ssh-keygen"]) {
        a_node_is_lost_behind(false);
    }
}

#[test]
fn pdsh_starts_daemons() {
    if have(&["ssh", "sshd", "ssh-keygen", "pdsh"]) {
        a_node_is_lost_behind(true);
    }
}
