//! A training of PyTorch by the real `torchrun`, whose node is lost in the middle.

use super::*;
use std::path::PathBuf;

/// Two processes a host. They add up gradients by gloo, and write their parts of each checkpoint, which the first one
/// commits. The parameter depends on every step, so that one that is left out, done twice or read wrong shows.
const TRAIN: &str = r#"
import os, socket, sys, time
import torch
import torch.distributed as dist

shared, last, gate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
parameter, step = torch.zeros(100_000, dtype=torch.float64), 0
if os.path.lexists("/scr/.scr/restart"):
    saved = torch.load(f"/scr/.scr/restart/rank_{rank}.pt")
    parameter, step = saved["parameter"], saved["step"]
    print("restart", step, rank, socket.gethostname(), file=open(f"{shared}/log.{rank}", "a"))
while step < last:
    step += 1
    gradient = torch.arange(100_000, dtype=torch.float64) * step + rank
    dist.all_reduce(gradient)
    parameter = parameter * 0.5 + gradient
    if rank == 0:
        os.mkdir(f"/scr/ckpt.{step}.tmp")
    dist.barrier()
    torch.save({"parameter": parameter, "step": step}, f"/scr/ckpt.{step}.tmp/rank_{rank}.pt")
    dist.barrier()
    if rank == 0:
        os.rename(f"/scr/ckpt.{step}.tmp", f"/scr/ckpt.{step}")
    dist.barrier()
    if step == gate:
        open(f"{shared}/gate.{rank}", "w")
        while not os.path.exists(f"{shared}/go"):
            time.sleep(0.02)
print("end", rank, size, parameter.sum().item(), file=open(f"{shared}/log.{rank}", "a"))
"#;

/// What the training comes to, step by step, of so many processes.
fn expected(last: u64, size: u64) -> f64 {
    let ranks = (size * (size - 1) / 2) as f64;
    let mut parameter = vec![0f64; 100_000];
    for step in 1..=last {
        for (place, value) in parameter.iter_mut().enumerate() {
            *value = *value * 0.5 + (place as f64 * step as f64 * size as f64 + ranks);
        }
    }
    parameter.iter().sum()
}

#[test]
fn a_training_by_torchrun_goes_on_when_a_node_is_lost() {
    let torchrun = PathBuf::from("/usr/bin/torchrun");
    if !torchrun.exists() {
        let required = std::env::var_os("SCRFS_REQUIRE_ALL").is_some();
        assert!(!required, "this machine has no torchrun (python3-torch)");
        eprintln!("SKIPPED: this machine has no torchrun (python3-torch)");
        return;
    }
    let site = Site::start(3);
    let script = site.shared().join("train.py");
    fs::write(&script, TRAIN).unwrap();
    // Debian's: another Python that comes first has no torch.
    let mut path = std::ffi::OsString::from("/usr/bin:");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let environment = [
        ("PATH", PathBuf::from(path)),
        ("OMP_NUM_THREADS", PathBuf::from("1")),
    ];
    let (script, shared) = (script.display().to_string(), site.shared());
    let shared_text = shared.display().to_string();
    let mut run = site.run_with(
        &environment,
        &["--spares", "1", "--runs", "2"],
        &[
            "torchrun",
            "--nproc_per_node=2",
            // PyTorch 1.13 cannot read its own defaults of these with Python 3.11.
            "--redirects=1",
            "--tee=1",
            &script,
            &shared_text,
            "8",
            "4",
        ],
    );
    let gates = wait_until(SOON, "all to have committed the fourth", || {
        anyhow::ensure!(run.child.try_wait()?.is_none(), "it ended");
        let is_there = |rank: &u64| shared.join(format!("gate.{rank}")).exists();
        Ok((0..4).all(|rank| is_there(&rank)).then_some(()))
    });
    gates.unwrap_or_else(|error| panic!("{error:#}\n{}", run.output()));
    let protected = wait_until(SOON, "it to be protected", || {
        let mut command = site.cluster.command(2, "ls");
        let listed = command.arg("/scr/.scr/status").output()?.stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let safe = ["protected", "flushing", "flushed"];
        let mut states = safe.iter().map(|state| format!("ckpt.4.{state}"));
        Ok(states.any(|state| listed.contains(&state)).then_some(()))
    });
    protected.unwrap_or_else(|error| panic!("{error:#}\n{}", run.output()));
    site.cluster.kill(1, Loss::Crash).unwrap();
    fs::write(shared.join("go"), "").unwrap();
    let output = run.expect(0);
    let log = |rank: u64| fs::read_to_string(shared.join(format!("log.{rank}"))).unwrap();
    for rank in 0..4 {
        let log = log(rank);
        let begun = log.lines().next().unwrap_or_default();
        assert!(
            begun.starts_with(&format!("restart 4 {rank} node")),
            "{log}\n{output}"
        );
        assert!(!begun.ends_with("node1"), "{log}");
        let sum = log.lines().last().and_then(|line| line.rsplit(' ').next());
        let sum: f64 = sum.and_then(|sum| sum.parse().ok()).unwrap_or(f64::NAN);
        let wanted = expected(8, 4);
        assert!(
            (sum - wanted).abs() <= wanted * 1e-12,
            "{sum}, not {wanted}\n{output}"
        );
    }
    assert!(site.prefix().join("ckpt.8/rank_3.pt").exists(), "{output}");
}
