//! The routes over an embedded store: what the tests share.

mod accounts;
mod addresses;
mod audit;
mod debug;
mod documents;
mod doors;
mod hosts;
mod plan;
mod resources;
mod table;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use fleet_protocol::ids::{HostId, NodeKeyHash};
use fleet_protocol::secret::Secret;
use http_body_util::BodyExt as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::listen::Client;
use super::*;
use crate::agents::now;
use crate::model::enrollment::NewEnrollment;
use crate::model::host::HostColumns;
use crate::model::user::{NewUser, Role, User};

const P: &str = "/api/latest/fleet";
/// Where remote requests come from.
const CLIENT: Client = Client(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99)));

/// Everything behind the routes, in a directory of its own.
struct Bench {
    office: Arc<Office>,
    directory: TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(configure: impl FnOnce(&mut Config, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        configure(&mut config, directory.path());
        let deps = deps(config, directory.path()).await;
        let office = Arc::new(Office::new(deps));
        Self { office, directory }
    }

    async fn local(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        call(
            routes::router(Arc::clone(&self.office), Side::Operator),
            method,
            path,
            body,
        )
        .await
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self
            .local(Method::GET, &format!("{P}{path}"), Value::Null)
            .await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// The answer to a request that is right.
    async fn send(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, body) = self.local(method, &format!("{P}{path}"), body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// The status of a request that is wrong, and what is said of it.
    async fn fail(&self, method: Method, path: &str, body: Value) -> (u16, String) {
        let (status, body) = self.local(method, &format!("{P}{path}"), body).await;
        assert!(status.is_client_error(), "{path}: {status} {body}");
        assert!(body["error"].is_string(), "{body}");
        (status.as_u16(), body["errors"].to_string())
    }

    /// Applies documents; the actions by kind and name.
    async fn apply(&self, documents: Value) -> Vec<String> {
        let (status, body) = self
            .local(Method::POST, &format!("{P}/spec"), documents)
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        actions(&body)
    }

    async fn refuse(&self, path: &str, body: Value) -> String {
        let (status, body) = self.local(Method::POST, &format!("{P}{path}"), body).await;
        assert!(status.is_client_error(), "{status} {body}");
        assert!(body["error"].is_string(), "{body}");
        body["errors"].to_string()
    }

    async fn remote(&self, method: Method, path: &str) -> (StatusCode, Value) {
        let router = routes::router(Arc::clone(&self.office), Side::Tunnel);
        call(router, method, path, Value::Null).await
    }

    /// A remote client's request with that token, if any.
    async fn ask(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(CLIENT);
        let router = routes::router(Arc::clone(&self.office), Side::Tunnel);
        let (status, bytes) = send(router, request).await;
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// An account without a password.
    async fn account(&self, role: Role) -> User {
        let new = NewUser {
            name: role.word().into(),
            email: format!("{}-{}@example.com", role.word(), fastrand::u32(..)),
            password_hash: Secret::default(),
            role,
            is_api_only: false,
            must_reset: false,
        };
        let added = self.office.deps.store.add_user(&new, false).await;
        added.unwrap().unwrap()
    }

    /// A token of such an account.
    async fn token(&self, role: Role) -> String {
        let user = self.account(role).await;
        self.session(&user).await
    }

    async fn session(&self, user: &User) -> String {
        let token = self.office.guard.begin(user).await.unwrap();
        token.reveal().to_owned()
    }

    async fn enroll(&self, name: &str) -> HostId {
        let mut key = [0; 32];
        key.iter_mut()
            .zip(name.bytes())
            .for_each(|(to, from)| *to = from);
        let enrollment = NewEnrollment {
            key: NodeKeyHash(key),
            identifier: format!("id-{name}"),
            instance_id: String::new(),
            address: [192, 0, 2, 7].into(),
            at: now(),
            columns: HostColumns {
                hostname: Some(name.into()),
                hardware_uuid: Some(format!("uuid-{name}")),
                platform: Some("ubuntu".into()),
                ..HostColumns::default()
            },
            details: Map::new(),
        };
        let store = &self.office.deps.store;
        let outcomes = store.enroll(&[enrollment], &|_| None).await.unwrap();
        self.look().await;
        outcomes[0].host.id
    }

    /// Follows what the store has, as the process does all the time.
    async fn look(&self) {
        let agents = &self.office.deps.agents;
        agents.look(&mut BTreeSet::new(), false).await.unwrap();
    }
}

async fn deps(config: Config, state_dir: &Path) -> Deps {
    let store = Arc::new(Store::open(&config, state_dir).await.unwrap());
    let bus = Arc::new(Bus::open(&config).unwrap());
    let spool = Arc::new(crate::spool::Spool::open(state_dir));
    let agents = Agents::load(Arc::clone(&store), Arc::clone(&bus), spool, &config)
        .await
        .unwrap();
    Deps {
        carves: Arc::new(Carves::new(Arc::clone(&store), &config.carver, state_dir)),
        journal: Journal::open(&config.filesystem, state_dir).unwrap(),
        metrics: Arc::new(|| "fleet_hosts 0\n".into()),
        config: Arc::new(config),
        gateway: watch::channel(Gateway::default()).1,
        store,
        bus,
        agents,
    }
}

async fn call(router: Router, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(body)
        .unwrap();
    let (status, bytes) = send(router, request).await;
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn send(router: Router, request: Request<Body>) -> (StatusCode, Vec<u8>) {
    let service = TowerToHyperService::new(router);
    let response = hyper::service::Service::call(&service, request)
        .await
        .unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, body.to_vec())
}

fn actions(body: &Value) -> Vec<String> {
    let changes = body["changes"].as_array().unwrap();
    changes
        .iter()
        .map(|change| {
            let text = |name: &str| change[name].as_str().unwrap().to_owned();
            format!("{} {} {}", text("action"), text("kind"), text("name"))
        })
        .collect()
}
