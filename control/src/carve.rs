//! Carves: archives that agents upload in blocks, kept as files in `STATE/carves` until they expire.
//!
//! Owner of the state: the row in the store says how far a carve is, `ID.part` holds its bytes; a complete one is
//! `ID.tar`, or `ID.tar.zst` when the agent compressed it. Blocks of one carve go one after another.
//!
//! Invariants: a block is acknowledged after `fdatasync` of its bytes and the row's update, in this order; so a file may
//! be longer than its row says, and is cut to it before the next block, but never shorter. Blocks come strictly in
//! order; the last one may come again, because its answer may have been lost. The session id is the only credential of
//! older agents: 32 random bytes, of which the store keeps the hash. A carve that was refused once stays refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use fleet_protocol::agent::{Answer, CarveBegin, CarveBlock};
use fleet_protocol::config::Carver;
use fleet_protocol::ids::UnixSeconds;
use fleet_protocol::reject::Reject;
use fleet_protocol::secret::Secret;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::carve_file;
use crate::model::carve::{Carve, CarveId, NewCarve};
use crate::store::{self, Store};

const SESSION_BYTES: usize = 32;
/// Agents send UUIDs; columns and answers are bounded by this.
const ID_BYTES_MAX: usize = 128;
/// Carves are spread over so many locks; two that share one wait for each other, which only costs time.
const TURNS: usize = 64;
/// Room on the disk that a new carve must leave to the journal.
const RESERVED_BYTES: u64 = 256 << 20;
/// Files whose row is gone are removed this long after the expiry; another node may have deleted the row.
const ORPHAN_GRACE: Duration = Duration::from_secs(3600);
const EXPIRY_INTERVAL_MAX: Duration = Duration::from_secs(600);

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CarveStatistics {
    pub(crate) begun: u64,
    pub(crate) completed: u64,
    pub(crate) blocks: u64,
    /// Of stored blocks.
    pub(crate) bytes: u64,
    /// Starts and blocks that broke a rule.
    pub(crate) refused: u64,
    /// Starts and blocks that the disk or the store failed.
    pub(crate) failed: u64,
    /// Carves deleted for their age.
    pub(crate) expired: u64,
}

/// All carves of this node.
pub(crate) struct Carves {
    store: Arc<Store>,
    directory: PathBuf,
    options: Carver,
    turns: [Arc<AsyncMutex<()>>; TURNS],
    statistics: Mutex<CarveStatistics>,
}

/// Why a start or a block is not accepted.
#[derive(Debug)]
enum Trouble {
    /// It breaks a rule; the text is stored with the carve, if there is one.
    Rule(String),
    /// Disk.
    Disk(std::io::Error),
    /// Store.
    Store(store::Error),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<store::Error> for Trouble {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Carves {
    /// Touches no file yet: a disk that fails must not keep control from starting.
    pub(crate) fn new(store: Arc<Store>, options: &Carver, state_dir: &Path) -> Self {
        Self {
            store,
            directory: state_dir.join("carves"),
            options: options.clone(),
            turns: std::array::from_fn(|_| Arc::default()),
            statistics: Mutex::default(),
        }
    }

    /// Opens a session for a carve that keeps to the bounds.
    pub(crate) async fn begin(&self, request: CarveBegin, now: UnixSeconds) -> Answer {
        match self.try_begin(request, now).await {
            Ok(session_id) => {
                self.statistics().begun += 1;
                Answer::CarveStarted { session_id }
            }
            Err(trouble) => Answer::Refused(self.note(trouble)),
        }
    }

    /// Stores one block.
    pub(crate) async fn block(&self, request: CarveBlock, now: UnixSeconds) -> Answer {
        match self.try_block(request, now).await {
            Ok(()) => Answer::Accepted,
            Err(trouble) => Answer::Refused(self.note(trouble)),
        }
    }

    /// The finished archive of a carve on this node.
    pub(crate) fn file(&self, id: CarveId) -> Option<PathBuf> {
        carve_file::finished(&self.directory, id)
    }

    /// A block that has come, if this node has it. Blocking.
    pub(crate) fn stored_block(&self, carve: &Carve, number: u64) -> std::io::Result<Vec<u8>> {
        let offset = number.saturating_mul(carve.block_size);
        carve_file::read_block(&self.directory, carve.id, offset, carve.block_size)
    }

    /// Counters since start.
    pub(crate) fn statistics_now(&self) -> CarveStatistics {
        *self.statistics()
    }

    /// Deletes old carves, for ever.
    pub(crate) async fn expire_forever(self: Arc<Self>) {
        let interval = (self.options.expiry / 4).clamp(Duration::from_secs(1), EXPIRY_INTERVAL_MAX);
        loop {
            if let Err(error) = self.expire(SystemTime::now()).await {
                tracing::warn!(?error, "cannot delete expired carves; trying again later");
            }
            tokio::time::sleep(interval).await;
        }
    }

    async fn expire(&self, now: SystemTime) -> Result<(), Trouble> {
        let Some(before) = now.checked_sub(self.options.expiry) else {
            return Ok(());
        };
        // The store gives a part at a time.
        loop {
            let expired = self.store.carves_expired(unix_seconds(before)).await?;
            if expired.is_empty() {
                break;
            }
            for carve in expired {
                self.delete(carve.id).await?;
                self.statistics().expired += 1;
            }
        }
        let directory = self.directory.clone();
        let Some(before) = before.checked_sub(ORPHAN_GRACE) else {
            return Ok(());
        };
        for id in blocking(move || carve_file::ids_older(&directory, before)).await? {
            if self.store.carve(id).await?.is_none() {
                self.delete(id).await?;
            }
        }
        Ok(())
    }

    /// The files on this node first, so that none is left without a row; false when there was no row.
    async fn delete(&self, id: CarveId) -> Result<bool, Trouble> {
        let directory = self.directory.clone();
        blocking(move || carve_file::remove(&directory, id)).await?;
        Ok(self.store.carve_delete(id).await?)
    }

    async fn try_begin(&self, request: CarveBegin, now: UnixSeconds) -> Result<Secret, Trouble> {
        check_begin(&request, &self.options).map_err(Trouble::Rule)?;
        let (directory, wanted) = (self.directory.clone(), request.carve_size);
        let free = blocking(move || carve_file::free_bytes(&directory)).await?;
        if free < wanted.saturating_add(RESERVED_BYTES) {
            return Err(Trouble::Disk(std::io::ErrorKind::StorageFull.into()));
        }
        let mut random = [0; SESSION_BYTES];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Trouble::Disk(std::io::Error::other("no random bytes")))?;
        let session_id = URL_SAFE_NO_PAD.encode(random);
        let carve = NewCarve {
            host: request.host,
            session_hash: session_hash(&session_id),
            carve_id: request.carve_id,
            request_id: request.request_id,
            block_count: request.block_count,
            block_size: request.block_size,
            carve_size: request.carve_size,
            at: now,
        };
        self.store.carve_begin(&carve).await?;
        Ok(Secret::new(session_id))
    }

    async fn try_block(&self, request: CarveBlock, now: UnixSeconds) -> Result<(), Trouble> {
        let hash = session_hash(request.session_id.reveal());
        let turn = self.turn(&hash).await;
        let Some(carve) = self.store.carve_by_session(&hash).await? else {
            return Err(Trouble::Rule("unknown session".into()));
        };
        let size = match check_block(&carve, &request) {
            Ok(Step::Repeated) => return Ok(()),
            Ok(Step::Next { bytes }) => bytes,
            Err(Fault::Refused(text)) => return Err(Trouble::Rule(text)),
            Err(Fault::Broken(text)) => {
                self.store
                    .carve_progress(carve.id, carve.next_block, carve.bytes, Some(&text), now)
                    .await?;
                return Err(Trouble::Rule(text));
            }
        };
        let _turn = self.store_block(&carve, request.data, turn).await?;
        let bytes = carve.bytes + size;
        self.store
            .carve_progress(carve.id, carve.next_block + 1, bytes, None, now)
            .await?;
        let is_complete = carve.next_block + 1 == carve.block_count;
        let mut statistics = self.statistics();
        statistics.blocks += 1;
        statistics.bytes += size;
        statistics.completed += u64::from(is_complete);
        Ok(())
    }

    async fn turn(&self, session_hash: &[u8; 32]) -> Option<OwnedMutexGuard<()>> {
        let [first, ..] = session_hash;
        let turn = self.turns.get(usize::from(*first) % TURNS)?;
        Some(Arc::clone(turn).lock_owned().await)
    }

    /// The turn goes with the work: a caller that gives up must not let the next block in while this one is written.
    async fn store_block(
        &self,
        carve: &Carve,
        data: Bytes,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Option<OwnedMutexGuard<()>>, Trouble> {
        let (directory, id, offset) = (self.directory.clone(), carve.id, carve.bytes);
        let is_last = carve.next_block + 1 == carve.block_count;
        blocking(move || {
            carve_file::write_block(&directory, id, offset, &data)?;
            if is_last {
                carve_file::finish(&directory, id)?;
            }
            Ok(turn)
        })
        .await
    }

    /// Counts and logs; agents cannot be told more than that it failed.
    fn note(&self, trouble: Trouble) -> Reject {
        match trouble {
            Trouble::Rule(reason) => {
                self.statistics().refused += 1;
                tracing::info!(reason, "carve refused");
                Reject::CarveRefused
            }
            Trouble::Disk(error) => {
                self.statistics().failed += 1;
                tracing::warn!(%error, "cannot store a carve");
                Reject::JournalUnavailable
            }
            Trouble::Store(error) => {
                self.statistics().failed += 1;
                tracing::debug!(%error, "cannot record a carve");
                Reject::StoreUnavailable
            }
        }
    }

    fn statistics(&self) -> MutexGuard<'_, CarveStatistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Trouble> {
    let result = tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)?;
    Ok(result?)
}

fn session_hash(session_id: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    for (to, from) in hash
        .iter_mut()
        .zip(digest(&SHA256, session_id.as_bytes()).as_ref())
    {
        *to = *from;
    }
    hash
}

fn unix_seconds(at: SystemTime) -> UnixSeconds {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    UnixSeconds(u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// The rules of a start.
fn check_begin(request: &CarveBegin, options: &Carver) -> Result<(), String> {
    if request.carve_size > options.max_size {
        return Err(format!(
            "carve of {} bytes exceeds carver.max_size {}",
            request.carve_size, options.max_size
        ));
    }
    if request.block_size > options.max_block_size {
        return Err(format!(
            "block of {} bytes exceeds carver.max_block_size {}",
            request.block_size, options.max_block_size
        ));
    }
    let is_consistent = request.block_size > 0
        && request.block_count > 0
        && request.carve_size.div_ceil(request.block_size) == request.block_count;
    if !is_consistent {
        return Err(format!(
            "{} blocks of {} bytes do not make {} bytes",
            request.block_count, request.block_size, request.carve_size
        ));
    }
    if request.carve_id.len() > ID_BYTES_MAX || request.request_id.len() > ID_BYTES_MAX {
        return Err(format!("an id is longer than {ID_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// What a block is to its carve.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Stored already.
    Repeated,
    /// The one that must come now.
    Next { bytes: u64 },
}

/// Why it is none.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing changes.
    Refused(String),
    /// The carve can never become whole.
    Broken(String),
}

/// The rules of a block.
fn check_block(carve: &Carve, block: &CarveBlock) -> Result<Step, Fault> {
    if let Some(error) = &carve.error {
        return Err(Fault::Refused(format!("failed before: {error}")));
    }
    if block.request_id != carve.request_id {
        return Err(Fault::Refused("request_id is not the carve's".into()));
    }
    let bytes = block.data.len() as u64;
    let is_repeated = block.block_id.checked_add(1) == Some(carve.next_block);
    if is_repeated && bytes == block_bytes(carve, block.block_id) {
        return Ok(Step::Repeated);
    }
    if block.block_id != carve.next_block || carve.next_block >= carve.block_count {
        return Err(Fault::Broken(format!(
            "block {} came where block {} of {} had to come",
            block.block_id, carve.next_block, carve.block_count
        )));
    }
    let wanted = block_bytes(carve, block.block_id);
    if bytes != wanted {
        return Err(Fault::Broken(format!(
            "block {} has {bytes} bytes, not {wanted}",
            block.block_id
        )));
    }
    Ok(Step::Next { bytes })
}

/// Bytes that a block must have; the last may be short.
fn block_bytes(carve: &Carve, block_id: u64) -> u64 {
    let offset = block_id.saturating_mul(carve.block_size);
    carve
        .carve_size
        .saturating_sub(offset)
        .min(carve.block_size)
}

#[cfg(test)]
mod tests;
