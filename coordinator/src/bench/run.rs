//! One rank of a measurement, over any fabric.

use super::limits::{Bench, cpu_time};
use super::store::FileStore;
use super::{BenchError, Measured, SCHEMES, Sample, Task, Work};
use crate::transfer::{Engine, JobEvent, JobId};
use bytes::Bytes;
use scrfs::buffers;
use scrfs::fabric::{Fabric, Lane};
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::redundancy::{Combination, Scheme, SetGeometry};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const DATASET: DatasetId = DatasetId(1);
const CHUNK_BYTES: u64 = 1 << 20;
/// The slot that is lost in a rebuild, and the rank that makes it again.
const LOST: (Slot, Rank) = (Slot(0), Rank(0));
/// How long a rank waits for the others at the start and the end of a run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages under way when the fabric itself is measured.
const MESSAGES: u64 = 8;

/// The part of one rank; all ranks call it alike. Rank 0 goes on with [`figures`](super::figures).
pub fn measure<F: Fabric>(fabric: &mut F, task: &Task) -> Result<Measured, BenchError> {
    let (me, size) = (fabric.me(), fabric.size());
    let store = FileStore::new(&task.directory, Slot(me.0), task.part_bytes)?;
    let mut run = Run {
        engine: Engine::new(me, task.limits),
        fabric,
        store,
        met: vec![VecDeque::new(); size as usize],
        received: 0,
        acknowledged: 0,
        jobs: 0,
    };
    let mut bench = (me == Rank(0)).then(Bench::new);
    let mut measured = Measured::default();
    let mut between = |run: &mut Run<'_, F>, measured: &mut Measured| {
        measured.speeds.extend(bench.as_mut().map(Bench::speeds));
        run.meet(0.0)
    };
    between(&mut run, &mut measured)?;
    for count in 0..=task.runs {
        let sample = run.timed(|run| run.exchange(task))?;
        if count > 0 {
            measured.fabric.push(sample);
        }
    }
    for scheme in SCHEMES {
        if scheme.parity_count() >= size {
            continue;
        }
        let members = (0..size).map(|rank| (Slot(rank), task.part_bytes));
        let geometry = SetGeometry::new(scheme, members.collect(), CHUNK_BYTES)?;
        let mut samples = Vec::new();
        if task.work == Work::Rebuild {
            run.encode(&geometry, task)?;
            run.meet(0.0)?;
        }
        for count in 0..=task.runs {
            let sample = match task.work {
                Work::Encode => run.timed(|run| run.encode(&geometry, task))?,
                Work::Rebuild => run.rebuild(scheme, &geometry, task)?,
            };
            if count > 0 {
                samples.push(sample);
            }
            between(&mut run, &mut measured)?;
        }
        measured.schemes.push((scheme, samples));
        run.store.drop_parity()?;
    }
    Ok(measured)
}

/// One rank of a measurement.
struct Run<'f, F> {
    fabric: &'f mut F,
    engine: Engine,
    store: FileStore,
    /// What each rank has brought to the meetings that this one has yet to come to.
    met: Vec<VecDeque<f64>>,
    /// Messages of an exchange that came and were not counted there yet.
    received: u64,
    /// Those that this rank sent and the next one has.
    acknowledged: u64,
    jobs: u64,
}

impl<F: Fabric> Run<'_, F> {
    /// What `work` takes all ranks together.
    fn timed(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), BenchError>,
    ) -> Result<Sample, BenchError> {
        self.meet(0.0)?;
        let (start, cpu_start) = (Instant::now(), cpu_time());
        work(self)?;
        let cpu_seconds = self.meet_with(|| (cpu_time() - cpu_start).as_secs_f64())?;
        Ok(Sample {
            seconds: start.elapsed().as_secs_f64(),
            cpu_seconds,
        })
    }

    fn encode(&mut self, geometry: &SetGeometry, task: &Task) -> Result<(), BenchError> {
        let slot = Slot(self.fabric.me().0);
        self.carry_out(geometry.encode(slot, task.unit_bytes))
    }

    fn rebuild(
        &mut self,
        scheme: Scheme,
        geometry: &SetGeometry,
        task: &Task,
    ) -> Result<Sample, BenchError> {
        let (lost, maker) = LOST;
        let is_maker = self.fabric.me() == maker;
        if is_maker {
            self.store.drop_parity()?;
            self.store.drop_rebuilt()?;
        }
        let sample = self.timed(|run| {
            if !is_maker {
                return Ok(());
            }
            run.carry_out(geometry.rebuild(&[lost], lost, task.unit_bytes)?)?;
            run.carry_out(geometry.encode(lost, task.unit_bytes))
        })?;
        if is_maker && !self.store.is_rebuilt()? {
            let parities = scheme.parity_count();
            return Err(BenchError::Differs { scheme, parities });
        }
        Ok(sample)
    }

    /// Until a plan is done, answering others.
    fn carry_out(
        &mut self,
        plan: impl Iterator<Item = Combination> + Send + 'static,
    ) -> Result<(), BenchError> {
        self.jobs += 1;
        let job = JobId(self.jobs);
        let holders: BTreeMap<Slot, Rank> = (0..self.fabric.size())
            .map(|n| (Slot(n), Rank(n)))
            .collect();
        self.engine.start(job, DATASET, Box::new(plan), holders);
        let until = Instant::now() + PATIENCE;
        loop {
            self.step(until)?;
            match self.engine.poll_event() {
                Some(JobEvent::Done { job: done, .. }) if done == job => return Ok(()),
                Some(JobEvent::Failed { error, .. }) => return Err(error.into()),
                _ => {}
            }
        }
    }

    /// As many bytes as a part has, to the next rank, with nothing done to them. They go beside the words
    /// of the meetings, which are shorter: the engine must not see them.
    fn exchange(&mut self, task: &Task) -> Result<(), BenchError> {
        let next = Rank((self.fabric.me().0 + 1) % self.fabric.size());
        let messages = task.part_bytes / u64::from(task.unit_bytes);
        let mut sent = 0;
        let until = Instant::now() + PATIENCE;
        while self.acknowledged < messages || self.received < messages {
            if sent < messages && sent < self.acknowledged + MESSAGES {
                let payload = buffers::take(task.unit_bytes as usize).freeze();
                self.fabric.send(next, Lane::Control, payload)?;
                sent += 1;
            } else {
                self.step(until)?;
            }
        }
        self.received -= messages;
        self.acknowledged -= messages;
        Ok(())
    }

    /// Until all ranks are here, answering them meanwhile; the sum of what they bring.
    fn meet(&mut self, mine: f64) -> Result<f64, BenchError> {
        self.meet_with(|| mine)
    }

    /// As `meet`. Who has come early goes on answering: what it brings is told when it has no more to do.
    fn meet_with(&mut self, mine: impl Fn() -> f64) -> Result<f64, BenchError> {
        self.come_together(0.0)?;
        self.come_together(mine())
    }

    fn come_together(&mut self, mine: f64) -> Result<f64, BenchError> {
        for rank in 0..self.fabric.size() {
            let word = Bytes::copy_from_slice(&mine.to_le_bytes());
            self.fabric.send(Rank(rank), Lane::Control, word)?;
        }
        let until = Instant::now() + PATIENCE;
        while self.met.iter().any(VecDeque::is_empty) {
            self.step(until)?;
        }
        Ok(self.met.iter_mut().filter_map(VecDeque::pop_front).sum())
    }

    /// Sends what there is, waits for one message and takes it in.
    fn step(&mut self, until: Instant) -> Result<(), BenchError> {
        let now = Instant::now();
        while let Some((to, bytes)) = self.engine.poll_send(now, &mut self.store) {
            self.fabric.send(to, Lane::Data, bytes)?;
        }
        if now > until {
            return Err(BenchError::Alone(self.fabric.me()));
        }
        let soon = now + Duration::from_millis(100);
        let wait = self.engine.next_deadline(now).unwrap_or(soon).min(soon);
        if let Some(envelope) = self.fabric.poll(wait)? {
            let (from, bytes) = (envelope.from, envelope.bytes);
            match envelope.lane {
                Lane::Data => {
                    if let Err(error) = self.engine.handle(now, from, bytes, &mut self.store) {
                        tracing::warn!(%error, %from, "dropped a message");
                    }
                }
                Lane::Control => self.note(from, &bytes)?,
            }
        }
        self.engine.tick(now);
        Ok(())
    }

    /// What a rank brings to a meeting, a message of an exchange, or that it has one.
    fn note(&mut self, from: Rank, bytes: &[u8]) -> Result<(), BenchError> {
        match (bytes.try_into(), self.met.get_mut(from.0 as usize)) {
            (Ok(word), Some(met)) => met.push_back(f64::from_le_bytes(word)),
            _ if bytes.is_empty() => self.acknowledged += 1,
            _ => {
                self.received += 1;
                self.fabric.send(from, Lane::Control, Bytes::new())?;
            }
        }
        Ok(())
    }
}
