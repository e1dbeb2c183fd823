//! What the tests of agents, enrolment and watching share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use fleet_protocol::agent::{Answer, Enroll, QueryResult, Request, Work, Write};
use fleet_protocol::config::Config;
use fleet_protocol::ids::{HostId, RequestId, UnixSeconds};
use fleet_protocol::link::BatchKind;
use fleet_protocol::secret::Secret;
use tempfile::TempDir;

use crate::agents::Agents;
use crate::bus::Bus;
use crate::enroll::hash_key;
use crate::spool::Spool;
use crate::store::Store;

/// Agents over an embedded store of their own.
pub(crate) struct Bench {
    pub(crate) agents: Arc<Agents>,
    pub(crate) store: Arc<Store>,
    pub(crate) state: TempDir,
    pub(crate) config: Config,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let state = TempDir::new().unwrap();
        let store = Arc::new(Store::open(&config, state.path()).await.unwrap());
        let first = Secret::new("s3cret");
        assert!(store.add_first_enroll_secret(&first).await.unwrap());
        let agents = Self::agents(&store, &config).await;
        Self {
            agents,
            store,
            state,
            config,
        }
    }

    pub(crate) async fn agents(store: &Arc<Store>, config: &Config) -> Arc<Agents> {
        // In a directory that is not there nothing can be kept.
        Self::agents_in(store, config, Path::new("/nonexistent")).await
    }

    pub(crate) async fn agents_in(
        store: &Arc<Store>,
        config: &Config,
        state_dir: &Path,
    ) -> Arc<Agents> {
        let bus = Arc::new(Bus::open(config).unwrap());
        let spool = Arc::new(Spool::open(state_dir));
        Agents::load(Arc::clone(store), bus, spool, config)
            .await
            .unwrap()
    }

    pub(crate) async fn one(&self, request: Request, now: UnixSeconds) -> Answer {
        let kind = BatchKind::of(&request);
        let mut answers = self
            .agents
            .run_at(kind, vec![(RequestId(1), request)], now)
            .await;
        assert_eq!(answers.len(), 1);
        answers.remove(0).1
    }

    pub(crate) async fn enroll(&self, name: &str, now: UnixSeconds) -> (Secret, HostId) {
        match self
            .one(Request::Enroll(Box::new(enroll("s3cret", name))), now)
            .await
        {
            Answer::Enrolled { node_key, host } => (node_key, host.id),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn read(&self, host: HostId, now: UnixSeconds) -> Work {
        match self.one(Request::Read(host), now).await {
            Answer::Work(work) => work,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn lookup(&self, key: &Secret, now: UnixSeconds) -> Answer {
        self.one(Request::Lookup(hash_key(key)), now).await
    }

    /// Applies what the store says until it says nothing new.
    pub(crate) async fn catch_up(&self) {
        let mut again = BTreeSet::new();
        loop {
            self.agents.look(&mut again, false).await.unwrap();
            let (_, newest) = self.store.change_bounds().await.unwrap();
            if again.is_empty() && self.agents.statistics().feed_seq == newest {
                return;
            }
        }
    }
}

pub(crate) fn enroll(secret: &str, name: &str) -> Enroll {
    let table = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(column, text)| ((*column).to_owned(), (*text).to_owned()))
            .collect()
    };
    Enroll {
        secret: Secret::new(secret),
        identifier: name.into(),
        platform_type: "9".into(),
        details: BTreeMap::from([
            (
                "os_version".to_owned(),
                table(&[
                    ("platform", "ubuntu"),
                    ("name", "Ubuntu"),
                    ("version", "24.04"),
                ]),
            ),
            (
                "osquery_info".to_owned(),
                table(&[("instance_id", name), ("version", "5.23.1")]),
            ),
            (
                "system_info".to_owned(),
                table(&[("hostname", name), ("uuid", name)]),
            ),
        ]),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

fn result(name: &str, rows: &str) -> QueryResult {
    QueryResult {
        name: name.into(),
        status: 0,
        message: String::new(),
        rows: rows.into(),
        stats: String::new(),
    }
}

pub(crate) fn answers_of(work: &Work, host: HostId) -> Write {
    let results = work.queries.iter().map(|query| match query.name.as_str() {
        "fleet_detail_query_system_info" => result(
            &query.name,
            r#"[{"hostname":"renamed","physical_memory":"2048"}]"#,
        ),
        "fleet_detail_query_uptime" => result(&query.name, r#"[{"total_seconds":"77"}]"#),
        name if name.starts_with("fleet_label_query_") => result(name, r#"[{"1":"1"}]"#),
        name => result(name, "[]"),
    });
    Write {
        host,
        address: [192, 0, 2, 8].into(),
        results: results.collect(),
    }
}
