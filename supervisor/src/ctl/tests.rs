//! Commands against a server that answers from a list.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::document::Documents;
use super::*;

#[derive(Debug, clap::Parser)]
struct Arguments {
    #[command(flatten)]
    ctl: Ctl,
}

type Answers = BTreeMap<&'static str, (u16, Value)>;

/// `METHOD path` → status and body; everything else is 404. Remembers what it was asked.
struct Server {
    state: TempDir,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    fn new(answers: Answers) -> Self {
        let state = tempfile::tempdir().unwrap();
        let socket = state.path().join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(accept(listener, Arc::new(answers), Arc::clone(&asked)));
        Self { state, asked }
    }

    async fn run(&self, arguments: &str) -> Result<Output, Failure> {
        let words = std::iter::once("ctl").chain(arguments.split_whitespace());
        execute_on(self.state.path(), words).await
    }

    async fn text(&self, arguments: &str) -> String {
        let output = self.run(arguments).await.unwrap();
        assert_eq!(output.failure, None);
        output.text
    }

    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .map(|(what, _)| what.replace(API, ""))
            .collect()
    }
}

/// As on the server's own machine.
async fn execute_on<'a>(
    state: &std::path::Path,
    words: impl IntoIterator<Item = &'a str>,
) -> Result<Output, Failure> {
    let arguments = Arguments::try_parse_from(words).unwrap();
    let caller = Caller {
        is_fleetctl: false,
        is_state_dir_told: true,
        state_dir: &|| Ok(state.to_owned()),
    };
    let world = World::new(&arguments.ctl, caller);
    execute(arguments.ctl.command, &world).await
}

async fn accept(
    listener: UnixListener,
    answers: Arc<Answers>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
            async move {
                let what = format!("{} {}", request.method(), request.uri());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                asked.lock().unwrap().push((what.clone(), body));
                let missing = || {
                    (
                        404,
                        json!({"errors": [{"name": "base", "reason": "nothing"}]}),
                    )
                };
                let found = answers.get(what.replace(API, "").as_str()).cloned();
                let (status, body) = found.unwrap_or_else(missing);
                let response = Response::builder().status(status);
                let body = Full::new(Bytes::from(body.to_string()));
                Ok::<_, Infallible>(response.body(body).unwrap())
            }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

fn queries() -> Value {
    json!([
        {
            "id": 1, "name": "processes", "description": "", "query": "SELECT *\nFROM processes;\n",
            "interval": 3600, "platform": "darwin,linux", "min_osquery_version": "",
            "automations_enabled": true, "logging": "snapshot",
        },
        {
            "id": 2, "name": "yes", "description": "1.0", "query": "SELECT 'a: b' -- c", "interval": 0,
            "platform": "", "min_osquery_version": "5.10", "automations_enabled": false,
            "logging": "differential",
        },
    ])
}

#[tokio::test]
async fn printed_documents_are_taken_back() {
    let server = Server::new(BTreeMap::from([(
        "GET /spec/queries",
        (200, json!({"specs": queries()})),
    )]));
    for form in ["--yaml", "--json"] {
        let text = server.text(&format!("get queries {form}")).await;
        let mut documents = Documents::default();
        documents.add("text", &text).unwrap();
        let mut wanted = queries();
        for spec in wanted.as_array_mut().unwrap() {
            let members = spec.as_object_mut().unwrap();
            members.retain(|name, value| name != "id" && *value != json!(""));
        }
        assert_eq!(json!(documents.queries), wanted, "{text}");
    }
}

#[tokio::test]
async fn tables_are_for_people() {
    let labels = json!([
        {"id": 1, "name": "All Hosts", "label_type": "builtin", "query": "", "host_count": 2},
        {"id": 2, "name": "web", "label_membership_type": "manual", "host_count": 0},
    ]);
    let secrets =
        json!({"secrets": [{"secret": "x".repeat(90), "created_at": "2000-01-01T00:00:00Z"}]});
    let server = Server::new(BTreeMap::from([
        ("GET /spec/queries", (200, json!({"specs": queries()}))),
        ("GET /spec/labels", (200, json!({"specs": labels}))),
        ("GET /spec/packs", (200, json!({"specs": []}))),
        ("GET /spec/enroll_secret", (200, json!({"spec": secrets}))),
        ("GET /carves?per_page=1000", (200, json!({"carves": []}))),
    ]));
    assert_eq!(
        server.text("get queries").await,
        "NAME       INTERVAL  PLATFORM      LOGGING   QUERY\n\
         processes    3600 s  darwin,linux  snapshot  SELECT * FROM processes;\n\
         yes               -  all           off       SELECT 'a: b' -- c\n"
    );
    assert_eq!(
        server.text("get labels").await,
        "NAME       HOSTS  TYPE      PLATFORM  QUERY\n\
         All Hosts      2  built in  all       -\n\
         web            0  manual    all       -\n"
    );
    assert_eq!(server.text("get packs").await, "no packs\n");
    assert_eq!(server.text("get carves").await, "no carves\n");
    let secrets = server.text("get enroll_secret").await;
    assert!(secrets.contains(&"x".repeat(90)), "never cut: {secrets}");
}

#[tokio::test]
async fn hosts_come_in_pages() {
    let host = |id: u32| {
        json!({
            "id": id, "hostname": format!("web-{id}"), "status": "online", "os_version": "Ubuntu 24.04",
            "osquery_version": "5.23.1", "seen_time": "2000-01-01T00:00:00Z", "primary_ip": "10.0.0.1",
        })
    };
    let server = Server::new(BTreeMap::from([
        (
            "GET /hosts?order_key=hostname&status=online&page=0&per_page=2",
            (200, json!({"hosts": [host(1), host(2)]})),
        ),
        (
            "GET /hosts/count?order_key=hostname&status=online",
            (200, json!({"count": 5})),
        ),
    ]));
    let output = server
        .run("get hosts --status online --limit 2")
        .await
        .unwrap();
    assert_eq!(
        output.text,
        "ID  HOSTNAME  OS            OSQUERY  STATUS  LAST SEEN  ADDRESS\n 1  \
         web-1     Ubuntu 24.04  5.23.1   online  never      10.0.0.1\n 2  \
         web-2     Ubuntu 24.04  5.23.1   online  never      10.0.0.1\n"
    );
    assert_eq!(output.remarks, ["2 of 5 hosts shown; --limit 0 shows all"]);
}

#[tokio::test]
async fn apply_sends_everything_at_once() {
    let changes = json!([
        {"kind": "query", "name": "a", "action": "create", "before": null, "after": {"name": "a"}},
    ]);
    let nothing =
        json!([{"kind": "query", "name": "a", "action": "none", "before": {}, "after": {}}]);
    let server = Server::new(BTreeMap::from([
        (
            "POST /spec?dry_run=true",
            (200, json!({"changes": nothing, "warnings": []})),
        ),
        (
            "POST /spec?dry_run=false",
            (200, json!({"changes": changes, "warnings": ["look"]})),
        ),
    ]));
    let file = server.state.path().join("all.yml");
    std::fs::write(
        &file,
        "kind: query\nspec: {name: a}\n---\nkind: pack\nspec: {name: p}\n",
    )
    .unwrap();
    let file = file.display();
    assert_eq!(
        server.text(&format!("apply -f {file} --dry-run")).await,
        "no changes\n"
    );
    let output = server.run(&format!("apply -f {file}")).await.unwrap();
    assert_eq!(output.text, "[+] applied 1 query\n");
    assert_eq!(output.remarks, ["look"]);
    let asked = server.asked.lock().unwrap();
    assert_eq!(
        asked[1].1,
        json!({"queries": [{"name": "a"}], "labels": [], "packs": [{"name": "p"}]})
    );
}

#[tokio::test]
async fn a_kind_that_is_not_supported_stops_before_anything_is_sent() {
    let server = Server::new(BTreeMap::new());
    let file = server.state.path().join("all.yml");
    std::fs::write(
        &file,
        "kind: query\nspec: {name: a}\n---\nkind: policy\nspec: {name: p}\n",
    )
    .unwrap();
    let failure = server
        .run(&format!("apply -f {}", file.display()))
        .await
        .unwrap_err();
    assert_eq!(failure.code(), 64);
    assert!(
        failure.text().contains("document 2: kind policy"),
        "{}",
        failure.text()
    );
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn deletes_go_on_after_a_refusal() {
    let server = Server::new(BTreeMap::from([
        ("DELETE /packs/p", (200, json!({}))),
        ("DELETE /labels/l%2F1", (200, json!({}))),
        (
            "GET /hosts/identifier/web-1",
            (200, json!({"host": {"id": 7}})),
        ),
        ("DELETE /hosts/7", (200, json!({}))),
    ]));
    let file = server.state.path().join("all.yml");
    let text = "kind: label\nspec: {name: l/1}\n---\nkind: query\nspec: {name: q}\n---\nkind: pack\nspec: {name: p}\n";
    std::fs::write(&file, text).unwrap();
    let output = server
        .run(&format!("delete -f {}", file.display()))
        .await
        .unwrap();
    assert_eq!(
        output.text,
        "[-] deleted pack \"p\"\n[-] deleted label \"l/1\"\n"
    );
    assert_eq!(output.failure, Some(Failure::Refused("nothing".into())));
    assert_eq!(
        server.text("delete host web-1").await,
        "[-] deleted host \"web-1\"\n"
    );
    assert_eq!(
        server.asked(),
        [
            "DELETE /packs/p",
            "DELETE /queries/q",
            "DELETE /labels/l%2F1",
            "GET /hosts/identifier/web-1",
            "DELETE /hosts/7",
        ]
    );
}

#[tokio::test]
async fn an_absent_server_still_tells_the_client_s_version() {
    let state = tempfile::tempdir().unwrap();
    let output = execute_on(state.path(), ["ctl", "version"]).await.unwrap();
    assert!(output.text.starts_with("client  "));
    assert_eq!(output.failure.unwrap().code(), 69);
}

#[test]
fn arguments_hold_together() {
    use clap::CommandFactory as _;
    Arguments::command().debug_assert();
    for wrong in [
        "ctl apply",
        "ctl get",
        "ctl get queries --json --yaml",
        "ctl delete",
        "ctl delete query",
        "ctl get hosts --limit x",
        "ctl query --hosts a",
        "ctl query --query a",
        "ctl query --hosts a --query a --query-name b",
        "ctl query --hosts a --query a --format yaml",
        "ctl query --hosts a --query a --timeout x",
        "ctl config set",
        "ctl config get nothing",
        "ctl user create --role root --email a",
        "ctl completion tcsh",
        "ctl debug archive --seconds 0",
    ] {
        assert!(
            Arguments::try_parse_from(wrong.split(' ')).is_err(),
            "{wrong}"
        );
    }
    for right in [
        "ctl get --yaml queries",
        "ctl get enroll-secret",
        "ctl apply -f a -f b --dry_run",
        "ctl query --hosts a,b --labels c --query d --exit --timeout 1m --pretty",
        "ctl query --labels a --query-name b --format csv --quiet",
        "ctl config set --context a --tls-skip-verify --rootca b --custom-header c:d",
        "ctl user create --global-role admin --email a --api-only",
        "ctl --context a get hosts",
        "ctl get hosts --context a",
    ] {
        assert!(
            Arguments::try_parse_from(right.split(' ')).is_ok(),
            "{right}"
        );
    }
}
