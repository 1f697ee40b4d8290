//! The open parts of this node, as the transfer engine sees them.
//!
//! Parts open on demand, for peers may ask before this node has got the order itself. Checksums of
//! other slots come from the copies kept here. A unit written is held against the checksum on record,
//! so that a rebuild can never put wrong bytes down.

use crate::ahead::Ahead;
use crate::part::{Log, Part, PartError, PartId, SealedPart, sums_that_fit};
use crate::transfer::{PartStore, TransferError};
use bytes::Bytes;
use scrfs::id::{DatasetId, Rank, Slot};
use scrfs::layout::manifest::Sums;
use scrfs::layout::path::{CachePaths, Keep};
use scrfs::layout::record::DatasetRecord;
use scrfs::redundancy::{Extent, Stream};
use scrfs::store::Store;
use scrfs::store::posix::PosixStore;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

/// An open part, and how many units of its log have no checksum yet.
#[derive(Clone, Debug)]
struct Opened {
    part: Arc<Part>,
    unsummed: usize,
}

/// Checksums kept for other slots; `None` when there are none to be believed.
type Copies = HashMap<(DatasetId, Slot, Stream), Option<Arc<Sums>>>;

/// All parts of this node.
#[derive(Debug)]
pub(crate) struct Parts {
    me: Rank,
    paths: CachePaths,
    store: PosixStore,
    records: BTreeMap<DatasetId, DatasetRecord>,
    opened: RefCell<HashMap<(DatasetId, Slot), Opened>>,
    copies: RefCell<Copies>,
    summed: bool,
    /// Parts that are being written.
    pub(crate) ahead: Ahead,
}

impl Parts {
    /// Nothing open yet.
    pub(crate) fn new(me: Rank, paths: CachePaths, ahead_percent: u64) -> Self {
        Self {
            ahead: Ahead::new(me, paths.clone(), ahead_percent),
            me,
            paths,
            store: PosixStore::new(),
            records: BTreeMap::new(),
            opened: RefCell::default(),
            copies: RefCell::default(),
            summed: false,
        }
    }

    /// Where everything lies.
    pub(crate) fn paths(&self) -> &CachePaths {
        &self.paths
    }

    /// Learns what a dataset is.
    pub(crate) fn learn(&mut self, record: &DatasetRecord) {
        self.records.insert(record.id, record.clone());
    }

    /// What is known of a dataset.
    pub(crate) fn record(&self, dataset: DatasetId) -> Option<&DatasetRecord> {
        self.records.get(&dataset)
    }

    /// Who may be reading the files of a dataset.
    pub(crate) fn readers(&self, dataset: DatasetId) -> Vec<Weak<Log>> {
        let opened = self.opened.borrow();
        let of = opened.iter().filter(|((id, _), _)| *id == dataset);
        of.map(|(_, opened)| opened.part.readers()).collect()
    }

    /// Closes slots of a dataset, all when none are named.
    pub(crate) fn forget(&mut self, dataset: DatasetId, slots: &[Slot]) {
        let gone = |id: DatasetId, slot: Slot| {
            id == dataset && (slots.is_empty() || slots.contains(&slot))
        };
        self.opened
            .borrow_mut()
            .retain(|&(id, slot), _| !gone(id, slot));
        self.copies
            .borrow_mut()
            .retain(|&(id, slot, _), _| !gone(id, slot));
    }

    /// Forgets what was read of copies, after new ones came.
    pub(crate) fn forget_copies(&mut self, dataset: DatasetId) {
        self.copies
            .borrow_mut()
            .retain(|&(id, ..), _| id != dataset);
    }

    /// Puts an open part in, in place of what was there.
    pub(crate) fn insert(&mut self, part: Arc<Part>) {
        let id = part.id();
        let unsummed = unsummed(&part);
        self.opened
            .borrow_mut()
            .insert((id.dataset, id.slot), Opened { part, unsummed });
    }

    /// The part of a slot, if it is open.
    pub(crate) fn opened(&self, dataset: DatasetId, slot: Slot) -> Option<Arc<Part>> {
        let opened = self.opened.borrow();
        let found = opened.get(&(dataset, slot));
        found.map(|opened| Arc::clone(&opened.part))
    }

    /// The part of a slot, opened if need be.
    pub(crate) fn open(&self, dataset: DatasetId, slot: Slot) -> Result<Arc<Part>, PartError> {
        if let Some(opened) = self.opened.borrow().get(&(dataset, slot)) {
            return Ok(Arc::clone(&opened.part));
        }
        let record = self.records.get(&dataset).ok_or_else(|| {
            let path = self.paths.record(dataset);
            PartError::Missing {
                part: PartId { dataset, slot },
                path,
            }
        })?;
        let part = Arc::new(Part::open(&self.store, &self.paths, record, slot)?);
        let unsummed = unsummed(&part);
        let opened = Opened {
            part: Arc::clone(&part),
            unsummed,
        };
        self.opened.borrow_mut().insert((dataset, slot), opened);
        Ok(part)
    }

    /// Counts anew what has no checksum, after somebody else has computed some.
    pub(crate) fn recount(&mut self, dataset: DatasetId, slot: Slot) {
        if let Some(opened) = self.opened.borrow_mut().get_mut(&(dataset, slot)) {
            opened.unsummed = unsummed(&opened.part);
        }
    }

    /// Whether every unit of the slot's log has its checksum.
    pub(crate) fn is_summed(&self, dataset: DatasetId, slot: Slot) -> bool {
        self.opened
            .borrow()
            .get(&(dataset, slot))
            .is_some_and(|opened| opened.unsummed == 0)
    }

    /// Whether a part became fully summed since this was last asked.
    pub(crate) fn take_summed(&mut self) -> bool {
        std::mem::take(&mut self.summed)
    }

    /// Checksums that are kept here for another slot, if they can be believed.
    pub(crate) fn copy(&self, dataset: DatasetId, slot: Slot, stream: Stream) -> Option<Arc<Sums>> {
        let key = (dataset, slot, stream);
        if let Some(known) = self.copies.borrow().get(&key) {
            return known.clone();
        }
        let sealed = SealedPart::of(self.records.get(&dataset)?, slot).ok()?;
        let sums = sums_that_fit(&self.store, &self.paths, &sealed, stream, Keep::Copy);
        let sums = sums.map(Arc::new);
        self.copies.borrow_mut().insert(key, sums.clone());
        sums
    }

    /// Remembers, also for the next epoch, that a stream that is kept here is not what was stored.
    pub(crate) fn note_damage(&self, dataset: DatasetId, slot: Slot, stream: Stream) {
        let path = self.paths.damage(dataset, slot, stream);
        if path.exists() {
            return;
        }
        match self.store.put(&path, &[]) {
            Ok(()) => tracing::error!(%dataset, %slot, ?stream, "damaged at rest"),
            Err(error) => tracing::error!(?path, %error, "damage cannot be noted"),
        }
    }

    fn opened_for(&self, dataset: DatasetId, extent: Extent) -> Result<Arc<Part>, TransferError> {
        self.open(dataset, extent.slot).map_err(|error| {
            tracing::debug!(%error, "part asked for is not here");
            TransferError::Missing { dataset, extent }
        })
    }
}

/// Units of the part log without a checksum.
fn unsummed(part: &Part) -> usize {
    part.sums(Stream::Data)
        .crcs
        .iter()
        .filter(|crc| crc.is_none())
        .count()
}

fn io(dataset: DatasetId, extent: Extent, error: &PartError) -> TransferError {
    tracing::error!(%dataset, ?extent, %error, "part cannot be read or written");
    let errno = error
        .io()
        .and_then(std::io::Error::raw_os_error)
        .unwrap_or(libc::EIO);
    TransferError::Io {
        dataset,
        extent,
        errno,
    }
}

fn known(sums: &Sums, extent: Extent) -> Option<u32> {
    sums.crcs
        .get(sums.unit_at(extent.offset, extent.len)?)
        .copied()
        .flatten()
}

/// Index of the unit that is exactly this extent.
fn unit_of(part: &Part, extent: Extent) -> Option<usize> {
    let unit = u64::from(part.unit_bytes());
    let rest = part
        .stream_bytes(extent.stream)
        .checked_sub(extent.offset)?;
    (extent.offset.is_multiple_of(unit) && u64::from(extent.len) == unit.min(rest))
        .then(|| usize::try_from(extent.offset / unit).ok())
        .flatten()
}

impl PartStore for Parts {
    fn read(&self, dataset: DatasetId, extent: Extent) -> Result<Bytes, TransferError> {
        if let Some(read) = self.ahead.read(dataset, extent) {
            return read;
        }
        let part = self.opened_for(dataset, extent)?;
        if part.is_restoring() {
            return Err(TransferError::Missing { dataset, extent });
        }
        match extent.stream {
            Stream::Data => part.read_data(extent.offset, extent.len),
            Stream::Parity => part.read_parity(extent.offset, extent.len),
        }
        .map_err(|error| io(dataset, extent, &error))
    }

    fn write(
        &mut self,
        dataset: DatasetId,
        extent: Extent,
        bytes: &[u8],
        crc: u32,
    ) -> Result<(), TransferError> {
        if let Some(written) = self.ahead.write(dataset, extent, bytes, crc) {
            return written;
        }
        let part = self.opened_for(dataset, extent)?;
        let unit = unit_of(&part, extent).ok_or(TransferError::BrokenPlan { dataset, extent })?;
        let expected = part.sum(extent.stream, unit).unwrap_or(crc);
        // Parity that is made for the first time may be made again after a crash, of other data.
        if expected != crc && (extent.stream == Stream::Data || part.has_parity()) {
            let from = self.me;
            let found = crc;
            return Err(TransferError::Checksum {
                dataset,
                extent,
                from,
                expected,
                found,
            });
        }
        match extent.stream {
            Stream::Data => part.write_data(extent.offset, bytes),
            Stream::Parity => part.write_parity(extent.offset, bytes),
        }
        .map_err(|error| io(dataset, extent, &error))?;
        part.set_sum(extent.stream, unit, crc);
        Ok(())
    }

    fn made_of(&mut self, dataset: DatasetId, destination: Extent, sources: &[(Extent, u32)]) {
        self.ahead.made_of(dataset, destination, sources);
    }

    fn expected_crc(&self, dataset: DatasetId, extent: Extent) -> Option<u32> {
        if self.ahead.is_open(dataset) {
            return self.ahead.expected_crc(dataset, extent);
        }
        if let Some(opened) = self.opened.borrow().get(&(dataset, extent.slot)) {
            return opened
                .part
                .sum(extent.stream, unit_of(&opened.part, extent)?);
        }
        known(&*self.copy(dataset, extent.slot, extent.stream)?, extent)
    }

    fn served(&mut self, dataset: DatasetId, extent: Extent, crc: u32) {
        if self.ahead.is_open(dataset) {
            return self.ahead.served(dataset, extent, crc);
        }
        let mut opened = self.opened.borrow_mut();
        let Some(opened) = opened.get_mut(&(dataset, extent.slot)) else {
            return;
        };
        let Some(unit) = unit_of(&opened.part, extent) else {
            return;
        };
        if opened.part.sum(extent.stream, unit).is_some() {
            return;
        }
        opened.part.set_sum(extent.stream, unit, crc);
        if extent.stream == Stream::Data {
            opened.unsummed = opened.unsummed.saturating_sub(1);
            self.summed |= opened.unsummed == 0;
        }
    }

    fn damaged(&mut self, dataset: DatasetId, extent: Extent) {
        if self.ahead.is_open(dataset) {
            return self.ahead.damaged(dataset, extent);
        }
        self.note_damage(dataset, extent.slot, extent.stream);
    }
}
