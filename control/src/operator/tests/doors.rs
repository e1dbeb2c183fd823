//! What remote clients get, and both sockets.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleet_protocol::proxy_header;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn strangers_have_no_api_and_agents_never_hear_success() {
    let bench = Bench::new().await;
    for (method, path, status) in [
        (
            Method::GET,
            "/api/latest/fleet/hosts",
            StatusCode::UNAUTHORIZED,
        ),
        (
            Method::POST,
            "/api/v1/fleet/spec/queries",
            StatusCode::UNAUTHORIZED,
        ),
        (
            Method::DELETE,
            "/api/latest/fleet/hosts/1",
            StatusCode::UNAUTHORIZED,
        ),
        (Method::POST, "/api/osquery/nonsense", StatusCode::NOT_FOUND),
        (Method::GET, "/debug/pprof/heap", StatusCode::UNAUTHORIZED),
        (Method::POST, "/log", StatusCode::NOT_FOUND),
        (Method::POST, "/", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/healthz", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/version", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/metrics", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/metrics", StatusCode::NOT_FOUND),
    ] {
        let (found, body) = bench.remote(method, path).await;
        assert_eq!(found, status, "{path}");
        assert!(
            body["error"].is_string() && body["message"].is_string(),
            "{path}: {body}"
        );
        assert!(body["errors"][0]["reason"].is_string(), "{path}: {body}");
        assert!(body.get("node_invalid").is_none(), "{path}: {body}");
    }
    let (status, body) = bench.remote(Method::GET, "/version").await;
    assert_eq!(status, StatusCode::OK);
    for member in [
        "version",
        "branch",
        "revision",
        "go_version",
        "build_date",
        "build_user",
    ] {
        assert!(body[member].is_string(), "{body}");
    }
}

#[tokio::test]
async fn metrics_follow_fleet_s_rule() {
    let bench = Bench::with(|config, _| {
        config.prometheus.basic_auth.username = "prom".into();
        config.prometheus.basic_auth.password = Secret::new("hunter2");
    })
    .await;
    let ask = async |credentials: Option<&str>| {
        let mut request = Request::builder().uri("/metrics");
        if let Some(text) = credentials {
            let value = format!("Basic {}", STANDARD.encode(text));
            request = request.header(header::AUTHORIZATION, value);
        }
        let router = routes::router(Arc::clone(&bench.office), Side::Tunnel);
        send(router, request.body(Body::empty()).unwrap()).await
    };
    assert_eq!(ask(None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(Some("prom:wrong")).await.0, StatusCode::UNAUTHORIZED);
    let (status, text) = ask(Some("prom:hunter2")).await;
    assert_eq!(
        (status, text.as_slice()),
        (StatusCode::OK, &b"fleet_hosts 0\n"[..])
    );
    let open = Bench::with(|config, _| config.prometheus.basic_auth.disable = true).await;
    assert_eq!(open.remote(Method::GET, "/metrics").await.0, StatusCode::OK);
    let closed = Bench::new().await;
    let (status, _) = closed.local(Method::GET, "/metrics", Value::Null).await;
    assert_eq!(status, StatusCode::OK, "local operators need no password");
}

#[tokio::test]
async fn health_tells_what_fails_in_a_word() {
    let bench = Bench::new().await;
    let ask = async |bench: &Bench, path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        send(
            routes::router(Arc::clone(&bench.office), Side::Tunnel),
            request,
        )
        .await
    };
    for path in [
        "/healthz",
        "/healthz?check=mysql&check=redis",
        "/healthz?check=journal",
    ] {
        assert_eq!(
            ask(&bench, path).await,
            (StatusCode::OK, Vec::new()),
            "{path}"
        );
    }
    assert_eq!(
        ask(&bench, "/healthz?check=mysq").await.0,
        StatusCode::BAD_REQUEST
    );
    let broken = Bench::with(|config, directory| {
        std::fs::write(directory.join("file"), "").unwrap();
        config.filesystem.result_log_file = directory.join("file").join("result");
    })
    .await;
    let text = b"journal: unavailable\n".to_vec();
    let failed = (StatusCode::INTERNAL_SERVER_ERROR, text);
    // The journal's thread finds out by itself.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while ask(&broken, "/healthz").await != failed {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the journal never fails"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        ask(&broken, "/healthz?check=mysql&check=redis").await.0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn both_sockets_serve_and_drain() {
    let directory = tempfile::tempdir().unwrap();
    let (tunnel, operator) = (
        directory.path().join("t.sock"),
        directory.path().join("o.sock"),
    );
    let mut config = Config::default();
    config.server.url_prefix = "/fleet".into();
    let deps = deps(config, directory.path()).await;
    let (drain, is_draining) = watch::channel(false);
    let served = tokio::spawn(serve(
        UnixListener::bind(&tunnel).unwrap(),
        UnixListener::bind(&operator).unwrap(),
        deps,
        is_draining,
    ));
    let client: SocketAddr = "192.0.2.7:51000".parse().unwrap();
    let header = proxy_header::encode(client, "198.51.100.1:8080".parse().unwrap());
    let through_tunnel = |path: &str| [&header[..], request(path).as_bytes()].concat();
    let answer = exchange(&tunnel, &through_tunnel("/fleet/version")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = exchange(&tunnel, &through_tunnel("/fleet/api/latest/fleet/hosts")).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(
        answer.to_lowercase().contains("www-authenticate: bearer"),
        "{answer}"
    );
    assert_eq!(exchange(&tunnel, request("/version").as_bytes()).await, "");
    let answer = exchange(&operator, request("/api/latest/fleet/hosts").as_bytes()).await;
    assert!(answer.ends_with("{\"hosts\":[]}"), "{answer}");
    drain.send(true).unwrap();
    timeout(Duration::from_secs(10), served)
        .await
        .unwrap()
        .unwrap();
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

async fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A refused peer may see a reset.
    let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8(answer).unwrap()
}
