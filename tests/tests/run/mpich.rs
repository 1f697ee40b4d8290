//! A program under MPICH's own launcher. `scrfs` itself runs under Open MPI all the same.
//!
//! The ranks are shells, so that nothing needs to be compiled against MPICH. Debian's `mpich` stands beside Open MPI
//! without taking its names.

use super::*;

const PROGRAM: &str = "mpiexec.mpich";

#[test]
fn mpich_launches_again_on_a_spare() {
    let version = Command::new(PROGRAM).arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        let required = std::env::var_os("SCRFS_REQUIRE_ALL").is_some();
        assert!(!required, "this machine has no {PROGRAM}");
        eprintln!("left out: this machine has no {PROGRAM}");
        return;
    }
    let site = Site::start(RANKS + 1);
    let shared = site.shared().display().to_string();
    let rank = format!("exec sh {shared}/rank.sh {shared} $PMI_RANK {RANKS}");
    let count = RANKS.to_string();
    let job = [PROGRAM, "-ppn", "1", "-n", &count, "sh", "-c", &rank];
    a_node_is_lost_from(&site, &job, 2, Loss::Crash);
}
