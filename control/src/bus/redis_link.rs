//! One connection to Redis, kept up by a task: commands go out on it and wakes come in.
//!
//! Invariants: everything that waits has a deadline; a connection that fails is replaced after a jittered pause; each
//! connection subscribes before it is given out.

use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::config;
use fleet_protocol::ids::FeedSeq;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, PushInfo, PushKind, RedisError,
    TlsCertificates, Value,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::address::Addresses;
use super::{Error, LinkState, Shared};

/// Pause before the first new attempt; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A quiet connection is asked whether it still lives.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
/// Shortest time between two published wakes.
pub(super) const PUBLISH_INTERVAL: Duration = Duration::from_millis(200);

/// A connection to send on; clones share it.
#[derive(Clone)]
pub(super) enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Where wakes are published. Pub/sub knows no databases, hence the number in the name.
fn channel(redis: &config::Redis) -> String {
    format!("fleet:{}:wake", redis.database)
}

/// Where news of live queries are published.
pub(super) fn news_channel(database: u16) -> String {
    format!("fleet:{database}:live")
}

/// Keeps a connection up.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    target: Target,
    channels: [String; 2],
    connect_timeout: Duration,
    read_timeout: Duration,
}

enum Target {
    Single(Client),
    Cluster {
        nodes: Vec<ConnectionInfo>,
        tls: Option<TlsCertificates>,
    },
}

impl Keeper {
    pub(super) fn new(
        shared: Arc<Shared>,
        addresses: Addresses,
        redis: &config::Redis,
    ) -> Result<Self, Error> {
        let tls = addresses.is_tls.then_some(TlsCertificates {
            client_tls: None,
            root_cert: addresses.tls_ca,
        });
        let mut nodes = addresses.nodes;
        let target = match (nodes.len(), nodes.pop()) {
            (1, Some(node)) => {
                let client = match tls {
                    Some(tls) => Client::build_with_tls(node, tls),
                    None => Client::open(node),
                };
                let text = "redis: the address or the certificate authority cannot be used";
                Target::Single(client.map_err(|_| Error::Invalid(text.into()))?)
            }
            (_, last) => {
                nodes.extend(last);
                Target::Cluster { nodes, tls }
            }
        };
        Ok(Self {
            shared,
            target,
            channels: [channel(redis), news_channel(redis.database)],
            connect_timeout: redis.connect_timeout,
            read_timeout: redis.read_timeout,
        })
    }

    /// Runs until it is aborted.
    pub(super) async fn keep(self) {
        let mut pause = PAUSE_MIN;
        let mut is_first = true;
        let mut was_up = true;
        loop {
            let lost = Arc::new(Notify::new());
            match self.connect(&lost).await {
                Ok(link) => {
                    tracing::info!("connected to Redis");
                    *self.shared.lock_link() = LinkState::Up(link.clone());
                    self.shared.connects.send_modify(|count| *count += 1);
                    if !std::mem::replace(&mut is_first, false) {
                        self.shared.lock_statistics().reconnects += 1;
                        // Wakes may have been missed meanwhile.
                        self.shared.wakes.send_modify(|_| ());
                    }
                    (pause, was_up) = (PAUSE_MIN, true);
                    let reason = self.watch(link, &lost).await;
                    tracing::warn!(reason, "lost Redis; live queries and wakes stop");
                    self.set_down(reason);
                }
                Err(reason) => {
                    if std::mem::replace(&mut was_up, false) {
                        tracing::warn!(reason, "cannot connect to Redis; trying again");
                    }
                    self.set_down(reason);
                }
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn set_down(&self, reason: String) {
        *self.shared.lock_link() = LinkState::Down(reason);
    }

    async fn connect(&self, lost: &Arc<Notify>) -> Result<Link, String> {
        let connecting = tokio::time::timeout(self.connect_timeout, self.open(lost));
        match connecting.await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no connection in time".into()),
        }
    }

    async fn open(&self, lost: &Arc<Notify>) -> Result<Link, RedisError> {
        let push = {
            let (shared, lost) = (self.shared.clone(), lost.clone());
            let [_, news] = self.channels.clone();
            move |push: PushInfo| -> Result<(), redis::aio::SendError> {
                match push.kind {
                    PushKind::Message if bytes_of(push.data.first()) == Some(news.as_bytes()) => {
                        shared.hear_news(push.data.get(1));
                    }
                    PushKind::Message => shared.hear(push.data.get(1)),
                    PushKind::Disconnection => lost.notify_one(),
                    _ => {}
                }
                Ok(())
            }
        };
        match &self.target {
            Target::Single(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.connect_timeout))
                    .set_response_timeout(Some(self.read_timeout))
                    .set_push_sender(push);
                let mut link = client
                    .get_multiplexed_async_connection_with_config(&config)
                    .await?;
                link.subscribe(&self.channels).await?;
                Ok(Link::Single(link))
            }
            Target::Cluster { nodes, tls } => {
                let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
                    .connection_timeout(self.connect_timeout)
                    .response_timeout(self.read_timeout)
                    .push_sender(push);
                if let Some(tls) = tls {
                    builder = builder.certs(tls.clone());
                }
                let mut link = builder.build()?.get_async_connection().await?;
                link.subscribe(&self.channels).await?;
                Ok(Link::Cluster(link))
            }
        }
    }

    /// Returns why the connection is no good any more.
    async fn watch(&self, link: Link, lost: &Notify) -> String {
        // A cluster client mends its own connections; what counts is whether commands work.
        let is_cluster = matches!(link, Link::Cluster(_));
        loop {
            let is_lost = tokio::select! {
                () = lost.notified() => true,
                () = tokio::time::sleep(PROBE_INTERVAL) => false,
            };
            if is_lost && !is_cluster {
                return "the connection was closed".into();
            }
            let ping = redis::cmd("PING");
            if let Err(error) = self
                .shared
                .command(link.clone(), &ping, self.read_timeout)
                .await
            {
                return error.to_string();
            }
        }
    }
}

/// Publishes the newest of the wakes, until it is aborted.
pub(super) fn publish(
    shared: Arc<Shared>,
    mut newest: watch::Receiver<FeedSeq>,
    redis: &config::Redis,
) -> impl Future<Output = ()> + Send + 'static {
    let (channel, deadline) = (channel(redis), redis.read_timeout);
    async move {
        while newest.changed().await.is_ok() {
            let seq = newest.borrow_and_update().0;
            if let Ok(link) = shared.link() {
                let mut command = redis::cmd("PUBLISH");
                command.arg(&channel).arg(seq);
                // Failures are counted; the keeper tells of the connection, and other nodes poll.
                let _ = shared.command(link, &command, deadline).await;
            }
            tokio::time::sleep(PUBLISH_INTERVAL).await;
        }
    }
}

impl Shared {
    /// Sends one command and waits for its answer, which is not looked at.
    pub(super) async fn command(
        &self,
        link: Link,
        command: &Cmd,
        deadline: Duration,
    ) -> Result<(), Error> {
        self.answer(link, command, deadline).await.map(drop)
    }

    /// Sends one command and waits for its answer.
    pub(super) async fn answer(
        &self,
        link: Link,
        command: &Cmd,
        deadline: Duration,
    ) -> Result<Value, Error> {
        let started = Instant::now();
        let sent = async {
            match link {
                Link::Single(mut link) => command.query_async::<Value>(&mut link).await,
                Link::Cluster(mut link) => command.query_async::<Value>(&mut link).await,
            }
        };
        let result = match tokio::time::timeout(deadline, sent).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::Unavailable(error.to_string())),
            Err(_) => Err(Error::Unavailable("no answer in time".into())),
        };
        let mut statistics = self.lock_statistics();
        statistics.commands += 1;
        statistics.errors += u64::from(result.is_err());
        let took_us = u64::try_from(started.elapsed().as_micros());
        statistics
            .latency_us
            .observe_us(took_us.unwrap_or(u64::MAX));
        result
    }

    /// What a node tells of live queries; who takes it judges it.
    fn hear_news(&self, payload: Option<&Value>) {
        if let Some(bytes) = bytes_of(payload) {
            // Nobody may be there to take it.
            let _ = self.news.send(bytes.into());
        }
    }

    /// A message from the channel: the number as text. Anything else was not sent by us.
    fn hear(&self, payload: Option<&Value>) {
        let number = match payload {
            Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).ok(),
            Some(Value::SimpleString(text)) => Some(text.as_str()),
            _ => None,
        };
        if let Some(seq) = number.and_then(|text| text.parse().ok()) {
            self.wake(FeedSeq(seq));
        }
    }
}

fn bytes_of(value: Option<&Value>) -> Option<&[u8]> {
    match value {
        Some(Value::BulkString(bytes)) => Some(bytes),
        Some(Value::SimpleString(text)) => Some(text.as_bytes()),
        _ => None,
    }
}
