//! Live queries: agents that answer them, and viewers on both kinds of streams.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::gateway::Gateway;
use crate::https::{Https, TlsStream};

pub const API: &str = "/api/latest/fleet";
/// What a live query is called toward agents; its number follows.
pub const PREFIX: &str = "fleet_distributed_query_";

/// A request of an operator: the status and the JSON object.
pub fn ask(
    https: &Https,
    token: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Map<String, Value>) {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let raw = format!(
        "{method} {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = https.send(raw.as_bytes()).unwrap();
    (answer.status, answer.object())
}

/// Makes the first account, an admin; its token.
pub fn set_up(gateway: &Gateway) -> String {
    let body = json!({
        "admin": {"admin": true, "name": "Ada", "email": "ada@example.com", "password": "correct-horse-1"},
        "org_info": {"org_name": "Example"}, "server_url": "https://fleet.example.com",
    });
    let (status, answer) = ask(&gateway.https, "", "POST", "/api/v1/setup", &body);
    assert_eq!(status, 200, "{answer:?}");
    answer["token"].as_str().unwrap().to_owned()
}

/// An agent without its pauses: reads, and answers every query that it is given.
#[derive(Debug)]
pub struct LiveAgent {
    pub name: String,
    pub key: String,
    /// How often each live query was handed to it.
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LiveAgent {
    /// Enrolls, and begins to ask for work.
    pub fn start(gateway: &Gateway, name: &str) -> Self {
        let key = gateway.https.enroll(&gateway.secret(), name);
        let asked = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let life = Life {
            https: gateway.https.clone(),
            name: name.to_owned(),
            key: key.clone(),
            asked: Arc::clone(&asked),
            is_over: Arc::clone(&is_over),
        };
        Self {
            name: name.to_owned(),
            key,
            asked,
            is_over,
            thread: Some(std::thread::spawn(move || life.run())),
        }
    }

    /// How often a live query was handed to it.
    pub fn asked(&self, campaign: u64) -> u32 {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .get(&format!("{PREFIX}{campaign}"))
            .copied()
            .unwrap_or_default()
    }
}

impl Drop for LiveAgent {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It ends with its present request.
        drop(self.thread.take());
    }
}

struct Life {
    https: Https,
    name: String,
    key: String,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    is_over: Arc<AtomicBool>,
}

impl Life {
    fn run(&self) {
        while !self.is_over.load(Ordering::SeqCst) {
            let body = json!({"node_key": self.key});
            let answer = self.https.post("/api/osquery/distributed/read", &body);
            let queries = answer.ok().and_then(|answer| {
                let body: Value = serde_json::from_slice(&answer.body).ok()?;
                body.get("queries")?.as_object().cloned()
            });
            match queries {
                Some(queries) => self.answer(&queries),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn answer(&self, queries: &Map<String, Value>) {
        let mut results = Map::new();
        for name in queries.keys() {
            if name.starts_with(PREFIX) {
                let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                *asked.entry(name.clone()).or_default() += 1;
            }
            results.insert(name.clone(), rows_of(&self.name, name));
        }
        let body = write_body(&self.key, &results);
        // As long as the server does not say that it has them.
        while !self.is_over.load(Ordering::SeqCst) {
            let answer = self.https.post("/api/osquery/distributed/write", &body);
            if answer.is_ok_and(|answer| answer.body == b"{}") {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn rows_of(host: &str, query: &str) -> Value {
    if query.starts_with(PREFIX) {
        return json!([{"name": host, "number": "1"}, {"name": host, "number": "2"}]);
    }
    if query == "fleet_detail_query_system_info" {
        let hostname = format!("{host}.example.com");
        return json!([{"hostname": hostname, "computer_name": host, "uuid": format!("uuid-of-{host}")}]);
    }
    json!([])
}

/// What an agent writes.
pub fn write_body(key: &str, results: &Map<String, Value>) -> Value {
    let statuses: Map<String, Value> = results
        .keys()
        .map(|name| (name.clone(), json!(0)))
        .collect();
    json!({"queries": results, "statuses": statuses, "node_key": key})
}

/// A viewer as fleetctl is one.
#[derive(Debug)]
pub struct SocketViewer {
    socket: WebSocket<TlsStream>,
}

impl SocketViewer {
    /// Opens the stream, says who it is and what it wants to see.
    pub fn open(https: &Https, token: &str, campaign: u64) -> Self {
        let mut viewer = Self::connect(https, "").unwrap();
        viewer.say(&json!({"type": "auth", "data": {"token": token}}));
        viewer.say(&json!({"type": "select_campaign", "data": {"campaign_id": campaign}}));
        viewer
    }

    /// The upgrade alone, perhaps from a page of some origin; the status if it is refused.
    pub fn connect(https: &Https, origin: &str) -> Result<Self, u16> {
        let url = format!("ws://{}{API}/results/websocket", https.address);
        let mut request = url.into_client_request().unwrap();
        if !origin.is_empty() {
            request
                .headers_mut()
                .insert("origin", origin.parse().unwrap());
        }
        match tungstenite::client(request, https.connect().unwrap()) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                Err(answer.status().as_u16())
            }
            Err(error) => panic!("no upgrade: {error}"),
        }
    }

    pub fn say(&mut self, message: &Value) {
        self.socket
            .send(Message::text(message.to_string()))
            .unwrap();
    }

    /// The next message; `None` when the server closes.
    pub fn hear(&mut self) -> Option<Value> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_)) => return None,
                Ok(other) => panic!("{other:?}"),
                Err(tungstenite::Error::ConnectionClosed) => return None,
                Err(error) => panic!("the stream broke: {error}"),
            }
        }
    }

    /// Messages up to one of this type that fits, that one included.
    pub fn until(&mut self, kind: &str, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self.hear();
            let message = message.unwrap_or_else(|| panic!("closed after {messages:?}"));
            let is_last = message["type"] == kind && is_it(&message["data"]);
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }
}

/// One Server-Sent Event.
#[derive(Clone, Debug)]
pub struct SentEvent {
    pub kind: String,
    pub id: String,
    pub data: Value,
}

/// A viewer of Server-Sent Events.
#[derive(Debug)]
pub struct EventViewer {
    lines: BufReader<TlsStream>,
    /// Of the last event that had one.
    pub last_id: String,
}

impl EventViewer {
    /// Opens the stream, after an id or from the beginning.
    pub fn open(https: &Https, token: &str, campaign: u64, last_id: &str) -> Self {
        let mut stream = https.connect().unwrap();
        let last = match last_id {
            "" => String::new(),
            id => format!("Last-Event-ID: {id}\r\n"),
        };
        write!(
            stream,
            "GET {API}/gateway/campaigns/{campaign}/events HTTP/1.1\r\nHost: f\r\n\
             Authorization: Bearer {token}\r\nAccept: text/event-stream\r\n{last}\r\n"
        )
        .unwrap();
        stream.flush().unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        lines.read_line(&mut head).unwrap();
        assert!(head.contains(" 200 "), "{head}");
        Self {
            lines,
            last_id: last_id.to_owned(),
        }
    }

    /// The next event; `None` when the stream ends or breaks.
    pub fn hear(&mut self) -> Option<SentEvent> {
        let (mut kind, mut id, mut data) = (String::new(), String::new(), None);
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            // Other lines are the head, and the lengths of chunks.
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut kind),
                Some(("id", text)) => text.clone_into(&mut id),
                Some(("data", text)) => data = Some(serde_json::from_str(text).unwrap()),
                _ => {}
            }
            if line.trim_end().is_empty()
                && let Some(data) = data.take()
            {
                if !id.is_empty() {
                    self.last_id.clone_from(&id);
                }
                return Some(SentEvent { kind, id, data });
            }
        }
    }

    /// Events up to one that fits, that one included; or to the end of the stream.
    pub fn until(&mut self, is_it: impl Fn(&SentEvent) -> bool) -> Vec<SentEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.hear() {
            let is_last = is_it(&event);
            events.push(event);
            if is_last {
                break;
            }
        }
        events
    }
}

/// Names of hosts whose rows these results are, in order; each row must be of the host that it is shown for.
pub fn hosts_in<'v>(results: impl IntoIterator<Item = &'v Value>) -> Vec<String> {
    let names = results.into_iter().map(|data| {
        let name = data["host"]["display_name"].as_str().unwrap().to_owned();
        let rows = data["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2, "{data}");
        for row in rows {
            assert_eq!(row["name"], name.as_str(), "{data}");
            assert_eq!(row["host_display_name"], name.as_str(), "{data}");
        }
        name
    });
    names.collect()
}
