//! The driver: one coordinator's life in one epoch.
//!
//! One thread owns the fabric, the protocol node, the transfer engine and the open parts, and turns:
//! events in -> steps -> records down -> effects out. What may take long (scans, flushes, fsyncs of
//! parts) runs on `Tasks` and comes back as an event.
//!
//! Invariants: effects are carried out in order, after their step's records are durable; a record that
//! cannot be written ends this coordinator, and with it the epoch, for it can no longer keep its word;
//! a packet of another epoch is dropped.

use crate::ahead::Ahead;
use crate::completing::Completing;
use crate::effects;
use crate::inventory;
use crate::journal::{Journal, Places};
use crate::link::{Link, NodeFacts};
use crate::look::Looker;
use crate::moves::Moves;
use crate::part::report;
use crate::parts::Parts;
use crate::pieces::{Pieces, Todo, Wanted};
use crate::placing::Placing;
use crate::target::Target;
use crate::tasks::{Event, Tasks};
use crate::transfer::{Engine, Limits};
use crate::works::{Context as WorkContext, Works};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use scrfs::config::{Config, job_in_prefix};
use scrfs::control::{FromDaemon, Role, ToDaemon};
use scrfs::fabric::{Envelope, Fabric, Lane};
use scrfs::id::{DatasetKey, Epoch, Rank, Slot};
use scrfs::layout::path::CachePaths;
use scrfs::layout::record::{DatasetRecord, UnixMillis};
use scrfs::protocol::Now;
use scrfs::protocol::member::LEADER;
use scrfs::protocol::message::{Message, Order, Packet};
use scrfs::protocol::node::{Node, Start};
use scrfs::protocol::step::{Effect, Outcome, Step, Write};
use scrfs::protocol::tree::FAN;
use scrfs::store::StoreError;
use scrfs::store::posix::PosixStore;
use scrfs::stores::Stores;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How this coordinator is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The epoch; one more than the last one here when not given.
    pub epoch: Option<Epoch>,
    /// Programs start anew with this epoch.
    pub new_run: bool,
    /// The number of the `scrfs run` that it is for.
    pub run: Option<u64>,
}

/// Longest time the driver sleeps without looking at the clock.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Shortest time between two looks at a deadline that has passed.
const TICK: Duration = Duration::from_millis(10);
/// While peers wait for pieces, how soon to look whether the fabric let go of some.
const SERVE_AGAIN: Duration = Duration::from_micros(500);
/// How often work that goes on is mentioned in the log.
const MENTION: Duration = Duration::from_secs(10);
/// Messages taken from the fabric before other things get their turn.
const BATCH: usize = 256;

/// One coordinator at work.
pub struct Driver<F: Fabric> {
    fabric: F,
    link: Link,
    node: Node,
    engine: Engine,
    parts: Parts,
    works: Works,
    moves: Moves,
    placing: Placing,
    pieces: Pieces,
    completing: Completing,
    /// What a restart of this epoch has wanted of the prefix. Programs may read it there; and what could not
    /// be had is better than what follows it.
    wanted_back: BTreeSet<DatasetKey>,
    /// Recovery has ended here.
    is_ready: bool,
    /// Something that is lost has been read.
    has_made: bool,
    tasks: Tasks,
    events: Receiver<Event>,
    store: PosixStore,
    stores: Stores,
    prefix: Arc<Target>,
    /// Of rank 0.
    looker: Option<Looker>,
    /// Of rank 0; others write nothing.
    journal: Journal,
    config: Arc<Config>,
    epoch: Epoch,
    born: Instant,
    next_tick: Instant,
    next_mention: Instant,
    stopping: bool,
    /// There are no other ranks.
    is_alone: bool,
}

impl<F: Fabric> Driver<F> {
    /// Connects to the daemon, takes the inventory, and greets the leader.
    pub fn start(fabric: F, options: &Options, runtime: &tokio::runtime::Handle) -> Result<Self> {
        let (me, size) = (fabric.me(), fabric.size());
        let NodeFacts {
            node,
            stores,
            config,
        } = Link::ask_facts(&options.socket)?;
        let last = stores
            .last_epoch()
            .context("cannot read the epoch record; remove the cache if it is damaged")?;
        let epoch = options.epoch.unwrap_or(Epoch(last.0 + 1));
        if epoch <= last {
            bail!("this is {epoch}, but {last} has already begun on this node");
        }
        let pid = std::process::id();
        let role = Role::Coordinator {
            epoch,
            rank: me,
            size,
            slot: Slot(me.0),
            pid,
        };
        let link = Link::open(&options.socket, role)?;
        let config: Config =
            serde_json::from_str(&config).context("the daemon's configuration does not parse")?;
        let config = Arc::new(config);
        let store = PosixStore::with_reserves(stores.iter().map(CachePaths::reserve));
        let group = config.failure_group(&config.redundancy.group, &node)?;
        let inventory = inventory::take(&stores, node, group)?;
        let job = job_in_prefix(&config.job, options.run);
        let prefix = Arc::new(Target::at(&config.prefix).of_job(&job));
        prefix.see().context("no thread for the prefix")?;
        let places = match me {
            LEADER => Places::wanted(&config.log, prefix.event_place()),
            _ => Places::default(),
        };
        let journal = Journal::begin(places).context("no thread for events")?;
        let (sender, events) = channel();
        link.listen(sender.clone(), fabric.waker())?;
        let tasks = Tasks::new(runtime.clone(), sender, fabric.waker());
        let mut parts = Parts::new(me, stores.home().clone(), config.ahead_percent);
        for entry in &inventory.datasets {
            parts.learn(&entry.record);
        }
        let placing = Placing::new(
            options.socket.clone(),
            Arc::clone(&config),
            stores.clone(),
            &inventory.epoch,
        );
        let mut looker = (me == LEADER)
            .then(|| Looker::new(Arc::clone(&prefix), Arc::clone(&config), epoch, &inventory));
        let view = looker
            .as_mut()
            .and_then(|looker| looker.first(&tasks, &inventory));
        let start = Start {
            epoch,
            me,
            size,
            fan: FAN,
            new_run: options.new_run,
            config: (*config).clone(),
            prefix: view,
        };
        let (node, step) = Node::start(start, inventory);
        let mut driver = Self {
            fabric,
            link,
            node,
            engine: Engine::new(me, Limits::default()),
            parts,
            works: Works::new(me),
            moves: Moves::default(),
            placing,
            pieces: Pieces::new(me, size),
            completing: Completing::default(),
            wanted_back: BTreeSet::new(),
            is_ready: false,
            has_made: false,
            tasks,
            events,
            store,
            stores,
            prefix,
            looker,
            journal,
            config,
            epoch,
            born: Instant::now(),
            next_tick: Instant::now(),
            next_mention: Instant::now() + MENTION,
            stopping: false,
            is_alone: size == 1,
        };
        tracing::info!(%me, size, %epoch, "coordinator started");
        driver.carry_out(step)?;
        Ok(driver)
    }

    /// Runs until the daemon says stop, or goes; or something fails that ends the epoch here.
    pub fn run(mut self) -> Result<F> {
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.handle_event(event)?;
            }
            self.move_bytes()?;
            let is_idle = self.works.is_idle() && self.completing.is_idle();
            if self.stopping && is_idle && self.node.is_idle(self.now()) {
                tracing::info!("coordinator ends as asked");
                return Ok(self.fabric);
            }
            let mut until = self.wait_until();
            for _ in 0..BATCH {
                let Some(envelope) = self.fabric.poll(until)? else {
                    break;
                };
                self.receive(envelope)?;
                until = Instant::now();
            }
            if Instant::now() >= self.next_tick {
                let step = self.node.handle_tick(self.now());
                self.carry_out(step)?;
                self.next_tick = Instant::now() + self.to_next_tick();
                self.engine.tick(Instant::now());
                self.mention_works();
                self.moves.sweep(&self.tasks);
                if let Some(looker) = &mut self.looker {
                    looker.tick(&self.tasks);
                    if let Some(failure) = looker.silent() {
                        let result = Err(failure);
                        self.outcome(Outcome::PrefixSeen { result })?;
                    }
                }
                let stuck = self.works.stuck();
                for outcome in stuck.into_iter().chain(self.completing.stuck()) {
                    self.outcome(outcome)?;
                }
            }
        }
    }

    /// Says what has been going on, so that a wait can be understood from the log.
    fn mention_works(&mut self) {
        if Instant::now() < self.next_mention {
            return;
        }
        self.next_mention = Instant::now() + MENTION;
        for work in self.works.describe() {
            let (window, lent) = (self.engine.window_bytes(), self.engine.lent_bytes());
            tracing::debug!(me = %self.fabric.me(), window, lent, "{work}");
        }
    }

    fn to_next_tick(&self) -> Duration {
        let deadline = self
            .node
            .deadline()
            .map(|tick| self.born + Duration::from_millis(tick));
        let wait = deadline.map_or(LOOK_AGAIN, |at| {
            at.saturating_duration_since(Instant::now())
        });
        wait.clamp(TICK, LOOK_AGAIN)
    }

    fn wait_until(&self) -> Instant {
        let now = Instant::now();
        let engine = self.engine.next_deadline(now).unwrap_or(self.next_tick);
        let ahead = self.parts.ahead.deadline().unwrap_or(self.next_tick);
        let engine = engine.min(ahead);
        let engine = match self.pieces.is_waiting() {
            true => engine.min(now + SERVE_AGAIN),
            false => engine,
        };
        self.next_tick.min(engine).min(now + self.to_next_tick())
    }

    fn now(&self) -> Now {
        let tick = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now {
            tick,
            wall: wall_clock(),
        }
    }

    fn handle_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Daemon(FromDaemon::Stop { finish_flushes }) => {
                self.stopping = true;
                if !finish_flushes {
                    bail!("stopped without finishing, as asked");
                }
                if self.is_alone {
                    // Others may be gone already: `scrfs run` asks before it unmounts.
                    let step = self.node.end(self.now());
                    self.carry_out(step)?;
                }
                Ok(())
            }
            Event::Daemon(FromDaemon::Fetch {
                request,
                dataset,
                slot,
                piece,
            }) => {
                let wanted = Wanted {
                    dataset,
                    slot,
                    piece,
                };
                let is_ready = self.is_ready;
                self.with_pieces(|pieces, parts, tasks, todo| {
                    pieces.fetch(request, wanted, is_ready, parts, tasks, todo);
                })
            }
            Event::Read(read) => {
                self.with_pieces(|pieces, parts, tasks, todo| pieces.read(read, parts, tasks, todo))
            }
            Event::Daemon(FromDaemon::Move { dataset, to }) => {
                if self.is_ready && !self.works.is_busy_with(dataset) {
                    let to = usize::try_from(to).unwrap_or(usize::MAX);
                    let (parts, stores) = (&self.parts, &self.stores);
                    self.moves.begin((dataset, to), parts, stores, &self.tasks);
                }
                Ok(())
            }
            Event::Copied(copied) => {
                let dataset = copied.dataset;
                let (parts, stores) = (&mut self.parts, &self.stores);
                match self.moves.copied(copied, parts, stores, &self.store) {
                    true => self.link.tell(&ToDaemon::Moved { dataset }),
                    false => Ok(()),
                }
            }
            Event::Seen(seen) => match &mut self.looker {
                Some(looker) => {
                    let result = looker.ended(seen);
                    self.outcome(Outcome::PrefixSeen { result })
                }
                None => Ok(()),
            },
            Event::Placed(dataset, order, kept) => {
                self.parts.ahead.scanned(dataset, &order, kept);
                Ok(())
            }
            Event::Daemon(FromDaemon::Closed { dataset, ino, path }) => {
                self.parts.ahead.closed(dataset, ino, path);
                Ok(())
            }
            Event::Daemon(FromDaemon::Reopened { dataset, ino }) => {
                self.parts.ahead.reopened(dataset, ino);
                Ok(())
            }
            Event::Swept => Ok(()),
            Event::Retained => {
                if self.completing.removed() {
                    self.retain();
                }
                Ok(())
            }
            Event::Daemon(word) => {
                let step = self.node.handle_daemon(word);
                self.carry_out(step)
            }
            Event::DaemonGone(why) => bail!("the daemon is gone: {why}"),
            Event::Outcome(outcome) => {
                if let Outcome::FlushCompleted { dataset, result } = &outcome {
                    self.completing.ended(*dataset);
                    if result.is_ok() {
                        self.retain();
                    }
                }
                self.outcome(outcome)
            }
            Event::Task(end) => self.with_works(|works, context| works.task_ended(end, context)),
        }
    }

    /// Removes old checkpoints from the prefix, but for what is being fetched, and what the restart wanted.
    fn retain(&mut self) {
        let (works, parts, wanted) = (&self.works, &self.parts, &self.wanted_back);
        let spare = || {
            let fetching = works.fetching();
            let fetching = fetching.filter_map(|id| Some(parts.record(id)?.key()));
            fetching.chain(wanted.iter().copied()).collect()
        };
        let keep = self.config.flush.keep;
        self.completing
            .retain(keep, spare, &self.prefix, &self.tasks);
    }

    fn outcome(&mut self, outcome: Outcome) -> Result<()> {
        let step = self.node.handle_outcome(self.now(), outcome);
        self.carry_out(step)
    }

    fn receive(&mut self, envelope: Envelope) -> Result<()> {
        let Envelope { from, lane, bytes } = envelope;
        if lane == Lane::Data {
            let now = Instant::now();
            if let Err(error) = self.engine.handle(now, from, bytes, &mut self.parts) {
                tracing::warn!(%from, %error, "dropped a data message");
            }
            return self.move_bytes();
        }
        let packet = match Packet::decode(&bytes) {
            Ok(packet) if packet.epoch == self.epoch => packet,
            Ok(packet) => {
                tracing::warn!(%from, theirs = %packet.epoch, ours = %self.epoch, "late-comer");
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%from, %error, "dropped a message that does not decode");
                return Ok(());
            }
        };
        match packet.message {
            Message::HaveMetadata {
                dataset,
                slot,
                metadata,
            } => {
                let given = metadata.as_deref();
                self.with_pieces(|pieces, parts, tasks, todo| {
                    pieces.told(from, (dataset, slot), given, parts, tasks, todo);
                })?;
                let message = Message::HaveMetadata {
                    dataset,
                    slot,
                    metadata,
                };
                self.with_works(|works, context| works.peer_says(from, message, context))
            }
            Message::Reach {
                dataset,
                slot,
                bytes,
            } => {
                if slot.0 == from.0 {
                    self.parts.ahead.reaches(dataset, slot, bytes);
                }
                Ok(())
            }
            message @ (Message::Keep(_)
            | Message::Kept { .. }
            | Message::Foreknown { .. }
            | Message::WantMetadata { .. }) => {
                if let Message::Keep(metadata) = &message {
                    self.moves.disturb(metadata.dataset);
                }
                self.with_works(|works, context| works.peer_says(from, message, context))
            }
            Message::WantPiece {
                ticket,
                dataset,
                slot,
                piece,
            } => {
                let wanted = Wanted {
                    dataset,
                    slot,
                    piece,
                };
                self.with_pieces(|pieces, parts, tasks, todo| {
                    pieces.want(from, ticket, wanted, parts, tasks, todo);
                })
            }
            Message::HavePiece { ticket, result } => {
                self.with_pieces(|pieces, parts, tasks, todo| {
                    pieces.have(from, ticket, result, parts, tasks, todo);
                })
            }
            message => {
                let step = self.node.handle_message(self.now(), from, message);
                self.carry_out(step)
            }
        }
    }

    /// Lets the engine send and tell, until it has nothing to say.
    fn move_bytes(&mut self) -> Result<()> {
        let now = Instant::now();
        let is_idle = self.works.is_idle();
        let reached = self.parts.ahead.turn(now, is_idle, &mut self.engine);
        for (to, message) in reached {
            self.send(to, message)?;
        }
        while let Some((to, bytes)) = self.engine.poll_send(now, &mut self.parts) {
            self.fabric.send(to, Lane::Data, bytes)?;
        }
        while let Some(event) = self.engine.poll_event() {
            if Ahead::owns(&event) {
                self.parts.ahead.job_event(now, &event);
                continue;
            }
            if Pieces::owns(&event) {
                if !std::mem::replace(&mut self.has_made, true) {
                    let after_ms = self.born.elapsed().as_millis();
                    tracing::info!(after_ms, "the first bytes of what is lost are made");
                }
                self.with_pieces(|pieces, parts, tasks, todo| {
                    pieces.job_event(event, parts, tasks, todo);
                })?;
                continue;
            }
            self.with_works(|works, context| works.job_event(event, context))?;
        }
        if self.pieces.is_waiting() {
            self.pieces.serve(&self.parts, &self.tasks);
        }
        if self.parts.take_summed() {
            self.with_works(|works, context| works.sums_grew(context))?;
        }
        Ok(())
    }

    /// Runs `act` on the works, then carries out what it asks for.
    fn with_works(&mut self, act: impl FnOnce(&mut Works, &mut WorkContext<'_>)) -> Result<()> {
        let mut context = WorkContext {
            engine: &mut self.engine,
            parts: &mut self.parts,
            tasks: &self.tasks,
            prefix: &self.prefix,
            config: &self.config,
            store: &self.store,
            messages: Vec::new(),
            outcomes: Vec::new(),
        };
        act(&mut self.works, &mut context);
        let (messages, outcomes) = (context.messages, context.outcomes);
        for (to, message) in messages {
            self.send(to, message)?;
        }
        for outcome in outcomes {
            self.outcome(outcome)?;
        }
        Ok(())
    }

    /// Runs `act` on the pieces, then sends and answers what it asks for.
    fn with_pieces(
        &mut self,
        act: impl FnOnce(&mut Pieces, &Parts, &Tasks, &mut Todo),
    ) -> Result<()> {
        let mut todo = Todo::default();
        act(&mut self.pieces, &self.parts, &self.tasks, &mut todo);
        self.pieces.serve(&self.parts, &self.tasks);
        for job in todo.cancelled {
            self.engine.cancel(job);
        }
        for read in todo.reads {
            let plan = Box::new(read.plan);
            self.engine.read(read.job, read.dataset, plan, read.holders);
        }
        for (to, message) in todo.messages {
            self.send(to, message)?;
        }
        for (request, result) in todo.answers {
            self.link.tell(&ToDaemon::Piece { request, result })?;
        }
        Ok(())
    }

    fn send(&mut self, to: Rank, message: Message) -> Result<()> {
        let is_piece = matches!(message, Message::HavePiece { .. });
        let packet = Packet {
            epoch: self.epoch,
            message,
        };
        let bytes = match is_piece {
            true => self.pieces.lend(to, packet.encode()),
            false => Bytes::from(packet.encode()),
        };
        self.fabric.send(to, Lane::Control, bytes)?;
        Ok(())
    }

    /// Puts the records of a step down, then does what it says.
    fn carry_out(&mut self, mut step: Step) -> Result<()> {
        for (to, message) in step.take_handed_on() {
            self.send(to, message)?;
        }
        let (store, stores, parts) = (&self.store, &self.stores, &mut self.parts);
        let (placing, engine) = (&mut self.placing, &mut self.engine);
        let (journal, now) = (&mut self.journal, wall_clock());
        let effects = step
            .persisted_by(|write| {
                let before = match write {
                    Write::Dataset(record) => parts.record(record.id).cloned(),
                    Write::Forget(dataset) => parts.record(*dataset).cloned(),
                    Write::Pointers(_) | Write::Epoch(_) => None,
                };
                placing.before(write)?;
                effects::put(store, stores, parts, write)?;
                let ended = match write {
                    Write::Dataset(record) => parts.ahead.learn(record),
                    Write::Forget(dataset) => parts.ahead.forget(*dataset),
                    Write::Pointers(_) | Write::Epoch(_) => None,
                };
                if let Some(job) = ended {
                    engine.cancel(job);
                }
                match (write, before) {
                    (Write::Dataset(record), before) => {
                        journal.changed(before.as_ref(), record, now);
                    }
                    (Write::Forget(_), Some(record)) => journal.removed(&record, now),
                    _ => {}
                }
                Ok::<_, StoreError>(())
            })
            .context("cannot keep a record, so this coordinator cannot keep its word")?;
        for effect in effects {
            self.run_effect(effect)?;
        }
        Ok(())
    }

    /// Before work on a dataset begins here: no copy of it is made, and what comes back has its place.
    fn make_way(&mut self, order: &Order) {
        let me = self.fabric.me();
        let place = |record: &DatasetRecord, parts: &[(Slot, Rank)]| {
            let placed = self
                .placing
                .before_restore(record, parts.iter().copied(), me);
            if let Err(error) = placed {
                report("what is brought back stays where its record is", &error);
            }
        };
        if let Order::Fetch { record, .. } | Order::CheckInPlace { record, .. } = order
            && !self.is_ready
        {
            self.wanted_back.insert(record.key());
        }
        match order {
            Order::Encode { dataset, .. } | Order::Verify { dataset, .. } => {
                self.moves.disturb(*dataset);
            }
            Order::Rebuild { dataset, lost, .. } => {
                self.moves.disturb(*dataset);
                if let Some(record) = self.parts.record(*dataset) {
                    place(record, lost);
                }
            }
            Order::Fetch { record, holders } => {
                self.moves.disturb(record.id);
                place(record, holders);
            }
            _ => {}
        }
    }

    /// On rank 0: reads what the runs before have written down of their failures. A prefix that hangs holds nothing up.
    fn learn(&self) {
        if self.looker.is_some() {
            let prefix = Arc::clone(&self.prefix);
            self.tasks.spawn(move |_| {
                let learnt = effects::learn(&prefix);
                Event::Outcome(Outcome::Learnt(learnt))
            });
        }
    }

    fn run_effect(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Send { to, message } => self.send(to, message),
            Effect::Daemon(message) => {
                if matches!(message, ToDaemon::Ready { .. }) {
                    self.is_ready = true;
                    self.learn();
                }
                self.link.tell(&message)
            }
            Effect::MakePart { ticket, record } => {
                let slot = Slot(self.fabric.me().0);
                let result = effects::make_part(self.stores.home(), &record, slot);
                self.outcome(Outcome::Worked { ticket, result })
            }
            Effect::Scan {
                dataset,
                generation,
            } => {
                let (paths, epoch) = (self.stores.home().clone(), self.epoch);
                let store = self.store.clone();
                let slot = Slot(self.fabric.me().0);
                let order = self.parts.ahead.order(dataset);
                self.tasks.run(move |report| {
                    let scanned = effects::scan(&paths, &store, dataset, slot, epoch, &order.files);
                    let kept = scanned.as_ref().map_or(0, |(_, kept)| *kept);
                    report(Event::Placed(dataset, order, kept));
                    let result = scanned.map(|(summary, _)| summary);
                    report(Event::Outcome(Outcome::Scanned {
                        dataset,
                        generation,
                        result,
                    }));
                });
                Ok(())
            }
            Effect::Foresee { dataset, seal } => {
                self.parts.ahead.foresee(dataset, *seal);
                Ok(())
            }
            Effect::Work { ticket, order } => {
                self.make_way(&order);
                self.with_works(|works, context| works.begin(ticket, order, context))
            }
            Effect::Abandon { ticket } => {
                self.with_works(|works, context| works.abandon(ticket, context))
            }
            Effect::Losses {
                dataset,
                holders,
                lost,
            } => self.with_pieces(|pieces, parts, tasks, todo| {
                pieces.learn_losses(dataset, &holders, &lost, parts, tasks, todo);
            }),
            Effect::WritePointers { due } => {
                let prefix = self.prefix.clone();
                self.tasks.spawn(move |_| {
                    let result = effects::write_pointers(&prefix, &due);
                    Event::Outcome(Outcome::PointersWritten { due, result })
                });
                Ok(())
            }
            Effect::CompleteFlush { record } => {
                self.completing.begin(*record, &self.prefix, &self.tasks);
                Ok(())
            }
            Effect::AskPrefix { record } => {
                let prefix = self.prefix.clone();
                self.tasks.spawn(move |_| {
                    let result = effects::prefix_holds(&prefix, &record);
                    let dataset = record.id;
                    Event::Outcome(Outcome::PrefixHolds { dataset, result })
                });
                Ok(())
            }
            Effect::LookAtPrefix => {
                if let Some(looker) = &mut self.looker {
                    looker.hurry();
                    looker.tick(&self.tasks);
                }
                Ok(())
            }
            Effect::DropData { dataset, slots } => {
                self.moves.disturb(dataset);
                self.parts.forget(dataset, &slots);
                match effects::set_aside(&self.stores, dataset, &slots) {
                    Ok(aside) => self.tasks.spawn(move |_| {
                        effects::remove_aside(&aside);
                        Event::Outcome(Outcome::Worked {
                            ticket: 0,
                            result: Ok(()),
                        })
                    }),
                    Err(error) => tracing::error!(%dataset, %error, "cannot free its space"),
                }
                self.store.refill_reserves();
                Ok(())
            }
        }
    }
}

/// Milliseconds since the Unix epoch.
fn wall_clock() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
