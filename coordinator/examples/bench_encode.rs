//! Prints `bench::bench_encode` as JSON lines: in one process, or over MPI under `mpirun`.
//!
//! ```text
//! bench_encode [SCHEME xor|partner|rs2|rs3] [MIB a rank] [UNIT KiB] [RANKS, without MPI]
//! ```
//!
//! Files go to /dev/shm. A tool of developers: users have `scrfs bench`.

use scrfs::redundancy::Scheme;
use scrfs_coordinator::bench::{self, Encode, Figure};
use std::path::Path;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| -> anyhow::Result<u64> {
        Ok(arguments
            .get(index)
            .map_or(Ok(default), |text| text.parse())?)
    };
    let scheme = match arguments.first().map_or("xor", String::as_str) {
        "xor" => Scheme::Xor,
        "partner" => Scheme::Partner { copies: 1 },
        "rs2" => Scheme::ReedSolomon { parities: 2 },
        "rs3" => Scheme::ReedSolomon { parities: 3 },
        other => anyhow::bail!("no scheme {other}"),
    };
    let part_bytes = number(1, 256)? << 20;
    let unit_bytes = u32::try_from(number(2, 128)? << 10)?;
    let mut what = Encode {
        scheme,
        part_bytes,
        unit_bytes,
        ..Encode::default()
    };
    what.limits.window_bytes = number(4, what.limits.window_bytes >> 20)? << 20;
    what.limits.serve_bytes = number(5, what.limits.serve_bytes >> 20)? << 20;
    for figure in measure(u32::try_from(number(3, 4)?)?, Path::new("/dev/shm"), what)? {
        println!("{}", serde_json::to_string(&figure)?);
    }
    Ok(())
}

/// Over MPI where this was started by its launcher, else among threads.
fn measure(ranks: u32, directory: &Path, what: Encode) -> anyhow::Result<Vec<Figure>> {
    #[cfg(feature = "mpi")]
    if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some() {
        use scrfs::fabric::Fabric;
        let mut fabric = scrfs_coordinator::mpi::MpiFabric::init()?;
        let (me, size) = (fabric.me().0, fabric.size());
        let seconds = bench::encode_rank(&mut fabric, directory, what)?;
        fabric.finalize()?;
        // The limits use all cores: one rank measures them, when the others have ended.
        return Ok(match me {
            0 => bench::figures("MPI", size, what, seconds),
            _ => Vec::new(),
        });
    }
    Ok(bench::bench_encode(ranks, directory, what)?)
}
