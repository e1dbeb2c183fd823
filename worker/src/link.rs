//! The worker's link to control: connect, greet, send batches, take answers and feed, and again from the start when
//! the link breaks.
//!
//! One future owns the socket. It never waits for the socket to take bytes while bytes could be read: it asks for both
//! and does what is possible. What it may send is bounded by credit and by [`OUT_BYTES_MAX`].
//!
//! It runs beside the worker's tasks, not among them (see [`beside`]): in a storm thousands of connections are ready at any
//! time, and a task that waits its turn behind them answers no ping for seconds.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::frame::{self, Decoder, Message, VERSION, VERSION_MIN};
use fleet_protocol::hello::{Hello, HelloReply, is_uid_allowed};
use fleet_protocol::ids::{BatchId, RequestId};
use fleet_protocol::limits::{HELLO_DEADLINE, PING_INTERVAL};
use fleet_protocol::link::{BatchKind, BatchReply, FromControl, FromWorker};
use fleet_protocol::reject::Reject;
use fleet_protocol::stats::BUCKET_BOUNDS_COUNT;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};

use crate::state::State;
use crate::waiting::Completed;

/// No batch is added to the out buffer while it holds this much.
const OUT_BYTES_MAX: usize = 4 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;
/// Reads before other tasks get their turn.
const READS_PER_TURN: usize = 16;
/// Pings without a sign of life after which a link is dead. Each is sent in a turn of its own, after everything that was
/// there was read, so a worker that stalls does not blame control.
const PINGS_UNANSWERED_MAX: u32 = 3;
/// Wait after the first failure, and the longest wait.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Between two looks whether a drain is complete, and between two tries to send marks that control refuses.
const FINISH_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(250));

/// Why a link ended or did not come to stand.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("control closed the link")]
    Closed,
    #[error("no sign of life for {PINGS_UNANSWERED_MAX} pings")]
    Dead,
    #[error(transparent)]
    Frame(#[from] frame::Error),
    #[error("no hello within {HELLO_DEADLINE:?}")]
    HelloLate,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("peer has uid {0}")]
    PeerUid(u32),
    #[error("control refused the link: {0}")]
    Refused(String),
}

/// Does `work` beside the link, in one future, which must be the one that the runtime blocks on: the runtime polls that one
/// each time after a few dozen tasks, however many are ready. `lost` is told if the link panics, after which there is none.
pub(crate) async fn beside<T>(state: Rc<State>, lost: &Notify, work: impl Future<Output = T>) -> T {
    let mut link = pin!(run(state));
    let guarded = poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| link.as_mut().poll(context)));
        polled.unwrap_or(Poll::Ready(()))
    });
    let forever = async {
        guarded.await;
        lost.notify_one();
        std::future::pending().await
    };
    tokio::select! {
        done = work => done,
        never = forever => never,
    }
}

/// Keeps the link to control; never returns.
async fn run(state: Rc<State>) {
    tokio::join!(keep_linked(&state), tick(&state));
}

/// For the end of a drain: sends what is left (seen marks too) and returns when nothing waits for control any more.
/// The caller bounds it.
pub(crate) async fn finish(state: &State) {
    let (look, send) = FINISH_INTERVALS;
    let mut send_at = Instant::now();
    while !(state.seen.borrow().is_empty() && state.waiting.borrow().is_idle()) {
        let now = Instant::now();
        if now >= send_at {
            send_seen(state);
            send_at = now + send;
        }
        sleep(look).await;
    }
}

/// What is due each second, linked or not.
async fn tick(state: &State) {
    let mut seen_at = Instant::now();
    loop {
        sleep(Duration::from_secs(1)).await;
        let now = Instant::now();
        state.set_clock();
        state.negative.borrow_mut().expire(now);
        // Without a link the marks gather in their set, which is smaller than a queue of requests.
        let is_linked = state.stats.borrow().is_linked;
        if is_linked && now.saturating_duration_since(seen_at) >= state.seen_interval {
            seen_at = now;
            send_seen(state);
        }
    }
}

fn send_seen(state: &State) {
    let pieces = state.seen.borrow_mut().take();
    for ids in pieces {
        let result = state.waiting.borrow_mut().tell_seen(ids, Instant::now());
        match result {
            Ok(()) => state.wake.notify_one(),
            Err(ids) => state.seen.borrow_mut().merge(ids),
        }
    }
}

async fn keep_linked(state: &State) {
    let mut failures = 0;
    loop {
        let error = match connect(state).await {
            Ok(mut session) => {
                tracing::info!("linked to control");
                let linked_at = Instant::now();
                let error = session.run().await;
                // A control that takes links and drops them at once is no better than one that takes none.
                if linked_at.elapsed() >= BACKOFF.1 {
                    failures = 0;
                }
                state.stats.borrow_mut().is_linked = false;
                state.table.borrow_mut().abort_load();
                tracing::warn!(%error, "link to control lost");
                error
            }
            Err(error) => {
                // Once a series: control's absence is seen in the stats.
                if failures == 0 {
                    tracing::warn!(%error, "no link to control");
                }
                error
            }
        };
        tracing::debug!(%error, failures, "connecting again");
        sleep(backoff(failures, state.boot.0)).await;
        failures = failures.saturating_add(1);
    }
}

/// Doubles from the first wait to the longest, less up to a half, so that workers do not come in step.
fn backoff(failures: u32, seed: u64) -> Duration {
    let (first, longest) = BACKOFF;
    let wait = first.saturating_mul(1 << failures.min(10)).min(longest);
    let mixed = (seed ^ u64::from(failures)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    // `mixed` has ten bits.
    let part = u32::try_from(mixed).unwrap_or(0);
    wait - wait * part / 2048
}

async fn connect(state: &State) -> Result<Session<'_>, Error> {
    let greeted = timeout(HELLO_DEADLINE, greet(state)).await;
    let (stream, input, reply) = greeted.map_err(|_| Error::HelloLate)??;
    let (version, credit) = match reply {
        HelloReply::Accepted {
            version, credit, ..
        } if (VERSION_MIN..=VERSION).contains(&version) => (version, credit),
        HelloReply::Accepted { version, .. } => return Err(frame::Error::Version(version).into()),
        HelloReply::Refused { reason } => return Err(Error::Refused(reason)),
    };
    let mut waiting = state.waiting.borrow_mut();
    waiting.restart_window();
    for credit in credit {
        waiting.window.set_credit(credit);
    }
    let mut stats = state.stats.borrow_mut();
    stats.is_linked = true;
    stats.links += 1;
    for (kind, batch) in BatchKind::ALL.into_iter().zip(&mut stats.batches) {
        batch.resent += waiting.window.unsent(kind);
    }
    Ok(Session {
        state,
        version,
        stream,
        decoder: Decoder::default(),
        input,
        out: BytesMut::new(),
        ping_at: Instant::now() + PING_INTERVAL,
        pings: 0,
        pings_unanswered: 0,
        is_going_away: false,
    })
}

/// Says hello and hears the reply. Bytes behind it belong to the session.
async fn greet(state: &State) -> Result<(UnixStream, BytesMut, HelloReply), Error> {
    let mut stream = UnixStream::connect(&state.link_path).await?;
    let peer = stream.peer_cred()?.uid();
    if !is_uid_allowed(peer, nix::unistd::geteuid().as_raw()) {
        return Err(Error::PeerUid(peer));
    }
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION,
        build: env!("CARGO_PKG_VERSION").into(),
        slot: state.slot,
        generation: state.generation,
        boot: state.boot,
        feed_after: state.table.borrow().position(),
    };
    let mut out = BytesMut::new();
    frame::encode(&hello, &mut out)?;
    stream.write_all(&out).await?;
    let mut input = BytesMut::new();
    let mut decoder = Decoder::default();
    loop {
        if let Some(reply) = decoder.decode(&mut input)? {
            return Ok((stream, input, reply));
        }
        stream.readable().await?;
        read_some(&stream, &mut input)?;
    }
}

/// Reads what is there; nothing is fine, the end of the stream is not.
fn read_some(stream: &UnixStream, input: &mut BytesMut) -> Result<bool, Error> {
    input.reserve(READ_BYTES);
    match stream.try_read_buf(input) {
        Ok(0) => Err(Error::Closed),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A link that stands.
struct Session<'a> {
    state: &'a State,
    /// What control and this worker both speak.
    version: u16,
    stream: UnixStream,
    decoder: Decoder,
    input: BytesMut,
    out: BytesMut,
    ping_at: Instant,
    pings: u64,
    pings_unanswered: u32,
    /// Control takes nothing new.
    is_going_away: bool,
}

impl Session<'_> {
    async fn run(&mut self) -> Error {
        // The hello may have brought more with it.
        if let Err(error) = self.take_messages().await {
            return error;
        }
        loop {
            if let Err(error) = self.turn().await {
                return error;
            }
        }
    }

    /// Does all that is possible now, waits for the next event, and takes what came.
    async fn turn(&mut self) -> Result<(), Error> {
        self.fill_out(Instant::now())?;
        self.flush()?;
        let mut interest = Interest::READABLE;
        if !self.out.is_empty() {
            interest |= Interest::WRITABLE;
        }
        let wake_at = self.wake_at();
        let state = self.state;
        tokio::select! {
            ready = self.stream.ready(interest) => {
                ready?;
            }
            () = state.wake.notified() => {}
            () = sleep_until(wake_at.into()) => {}
        }
        // Whatever woke us: silence is judged only after looking. Without news this is no system call.
        self.read()?;
        self.take_messages().await?;
        self.ping(Instant::now())
    }

    fn read(&mut self) -> Result<(), Error> {
        for _ in 0..READS_PER_TURN {
            if !read_some(&self.stream, &mut self.input)? {
                break;
            }
        }
        Ok(())
    }

    /// When something falls due by itself.
    fn wake_at(&self) -> Instant {
        let is_room = !self.is_going_away && self.out.len() < OUT_BYTES_MAX;
        let due_at = is_room.then(|| self.state.waiting.borrow().due_at());
        due_at
            .flatten()
            .map_or(self.ping_at, |at| at.min(self.ping_at))
    }

    fn ping(&mut self, now: Instant) -> Result<(), Error> {
        if now < self.ping_at {
            return Ok(());
        }
        if self.pings_unanswered >= PINGS_UNANSWERED_MAX {
            return Err(Error::Dead);
        }
        self.ping_at = now + PING_INTERVAL;
        self.pings += 1;
        self.pings_unanswered += 1;
        let ping = FromWorker::Ping(self.pings);
        frame::encode_in(self.version, &ping, &mut self.out)?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(bytes) => self.out.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.out.is_empty() && self.out.capacity() > OUT_BYTES_MAX {
            self.out = BytesMut::new();
        }
        Ok(())
    }

    /// Encodes what is due, as far as credit and room go.
    fn fill_out(&mut self, now: Instant) -> Result<(), Error> {
        if self.is_going_away {
            return Ok(());
        }
        for kind in BatchKind::ALL {
            while self.out.len() < OUT_BYTES_MAX {
                if !self.send_next(kind, now)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Encodes one batch of a kind; whether there was one.
    fn send_next(&mut self, kind: BatchKind, now: Instant) -> Result<bool, Error> {
        let mut waiting = self.state.waiting.borrow_mut();
        if waiting.window.unsent(kind) == 0 {
            let Some(taken) = waiting.take_due(kind, now) else {
                return Ok(false);
            };
            if let Some(stats) = self.state.stats.borrow_mut().batches.get_mut(kind.index()) {
                let requests = u64::try_from(taken.requests.len()).unwrap_or(u64::MAX);
                stats.requests.observe(requests, &BUCKET_BOUNDS_COUNT);
                stats.age_us.observe_us(micros(taken.age));
            }
            waiting.window.open(kind, taken.requests, now);
        }
        let Some((id, message)) = waiting.window.next_to_send(kind, now) else {
            return Ok(false);
        };
        let encoded = frame::encode_in(self.version, message, &mut self.out);
        drop(waiting);
        match encoded {
            Err(error @ frame::Error::TooLong { .. }) => {
                tracing::error!(%error, ?kind, "batch dropped");
                self.give_up(id, now);
            }
            other => other?,
        }
        Ok(true)
    }

    /// A batch that cannot be sent, ever.
    fn give_up(&self, id: BatchId, now: Instant) {
        let closed = self.state.waiting.borrow_mut().window.close(id);
        for (request, _) in closed.iter().flat_map(|in_flight| in_flight.requests()) {
            let answer = Answer::Refused(Reject::BodyTooLarge);
            self.state.complete(*request, answer, now);
        }
    }

    async fn take_messages(&mut self) -> Result<(), Error> {
        while let Some(message) = self.decoder.decode::<FromControl>(&mut self.input)? {
            self.pings_unanswered = 0;
            let is_large = matches!(message, FromControl::Feed(_));
            self.take(message)?;
            if is_large {
                // A full load is long; exchanges go on between its pieces.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: FromControl) -> Result<(), Error> {
        let state = self.state;
        match message {
            FromControl::Reply(reply) => self.take_reply(reply, Instant::now()),
            FromControl::Feed(feed) => state.take_feed(feed),
            FromControl::Credit(credit) => state.waiting.borrow_mut().window.set_credit(credit),
            FromControl::Ping(number) => {
                let pong = FromWorker::Pong(number);
                frame::encode_in(self.version, &pong, &mut self.out)?;
            }
            FromControl::Pong(_) => {}
            FromControl::GoAway => self.is_going_away = true,
        }
        Ok(())
    }

    fn take_reply(&self, reply: BatchReply, now: Instant) {
        let state = self.state;
        let Some(in_flight) = state.waiting.borrow_mut().window.close(reply.id) else {
            state.count_oddity();
            return;
        };
        let kind = in_flight.kind;
        if let Some(stats) = state.stats.borrow_mut().batches.get_mut(kind.index()) {
            let took = now.saturating_duration_since(in_flight.sent_at);
            stats.reply_us.observe_us(micros(took));
        }
        if kind == BatchKind::Seen {
            take_back_seen(state, in_flight.requests(), &reply);
        }
        let answered = reply.answers.len();
        for (id, answer) in reply.answers {
            if state.complete(id, answer, now) == Completed::Unknown {
                state.count_oddity();
            }
        }
        if reply.kind != kind || answered != in_flight.requests().len() {
            state.count_oddity();
        }
        // Whoever control left out hears so. All others are gone by now.
        for (id, _) in in_flight.requests() {
            state.complete(*id, Answer::Refused(Reject::Internal), now);
        }
    }
}

/// Marks that were refused go out again with the next round.
fn take_back_seen(state: &State, requests: &[(RequestId, Request)], reply: &BatchReply) {
    for (id, request) in requests {
        let is_accepted = reply.answers.contains(&(*id, Answer::Accepted));
        if let Request::Seen(ids) = request
            && !is_accepted
        {
            state.seen.borrow_mut().merge(ids.iter().copied());
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

const _: () = assert!(OUT_BYTES_MAX < <FromWorker as Message>::BYTES_MAX);

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "link_storm_tests.rs"]
mod storm_tests;
