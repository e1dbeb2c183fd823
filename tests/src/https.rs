//! A blocking HTTPS client that shows the answer as it came: status, head, body, and how the connection ended.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The peer said close_notify before it ended the connection.
    pub is_cleanly_closed: bool,
}

impl Answer {
    /// The body as a JSON object. Anything else is a broken contract, so this panics.
    pub fn object(&self) -> serde_json::Map<String, Value> {
        let text = String::from_utf8_lossy(&self.body);
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(members)) => members,
            other => panic!("not a JSON object: {other:?} from {text:?}"),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Https {
    pub address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Https {
    /// Trusts exactly the given certificate; nothing, when there is none.
    pub fn new(address: SocketAddr, ca_pem: &std::path::Path) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca_pem).into_iter().flatten() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Self {
            address,
            config: Arc::new(config),
        }
    }

    pub fn connect(&self) -> io::Result<TlsStream> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        self.handshake_later(socket)
    }

    /// TLS over a socket that is connected already; the handshake happens with the first write or read.
    pub fn handshake_later(&self, socket: TcpStream) -> io::Result<TlsStream> {
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let name = ServerName::from(self.address.ip());
        let connection =
            ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, socket))
    }

    /// Sends raw bytes on a new connection and reads one answer.
    pub fn send(&self, raw: &[u8]) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        stream.write_all(raw)?;
        stream.flush()?;
        read_to_close(&mut stream)
    }

    /// POSTs bytes as osquery does.
    pub fn post_bytes(&self, path: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let mut raw = format!(
            "POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nAccept: application/json\r\n\
             User-Agent: osquery/5.23.1\r\n{headers}Host: {}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        )
        .into_bytes();
        raw.extend_from_slice(body);
        self.send(&raw)
    }

    /// POSTs a JSON value.
    pub fn post(&self, path: &str, body: &Value) -> io::Result<Answer> {
        self.post_bytes(path, "", body.to_string().as_bytes())
    }

    pub fn get(&self, path: &str) -> io::Result<Answer> {
        self.send(
            format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.address
            )
            .as_bytes(),
        )
    }

    /// Enrolls a host and gives its node key.
    pub fn enroll(&self, secret: &str, name: &str) -> String {
        let answer = self
            .post("/api/v1/osquery/enroll", &enroll_body(secret, name))
            .unwrap();
        let key = answer
            .object()
            .get("node_key")
            .and_then(Value::as_str)
            .map(str::to_owned);
        key.unwrap_or_else(|| panic!("no node key: {answer:?}"))
    }
}

/// What a Linux host sends to enroll. Hosts of different names are different hosts.
pub fn enroll_body(secret: &str, name: &str) -> Value {
    serde_json::json!({
        "enroll_secret": secret,
        "host_identifier": name,
        "platform_type": "9",
        "host_details": {
            "os_version": {"name": "Ubuntu", "platform": "ubuntu", "platform_like": "debian",
                "major": "22", "minor": "4", "version": "22.04.4 LTS (Jammy Jellyfish)"},
            "osquery_info": {"version": "5.23.1", "instance_id": format!("instance-of-{name}"),
                "uuid": format!("uuid-of-{name}"), "pid": "42"},
            "system_info": {"hostname": format!("{name}.example.com"), "computer_name": name,
                "uuid": format!("uuid-of-{name}"), "hardware_serial": format!("serial-{name}"),
                "cpu_brand": "Some CPU", "physical_memory": "67260948480"},
            "platform_info": {"vendor": "Some Vendor"}
        }
    })
}

/// Reads one answer and then to the end of the connection.
pub fn read_to_close(stream: &mut TlsStream) -> io::Result<Answer> {
    let mut raw = Vec::new();
    let is_cleanly_closed = match stream.read_to_end(&mut raw) {
        Ok(_) => true,
        // What arrived before counts; the caller decides whether a missing close_notify matters.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(_) if !raw.is_empty() => false,
        Err(error) => return Err(error),
    };
    parse(&raw, is_cleanly_closed)
}

fn parse(raw: &[u8], is_cleanly_closed: bool) -> io::Result<Answer> {
    let no_answer = || io::Error::new(io::ErrorKind::UnexpectedEof, "no answer");
    let end = raw
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(no_answer)?;
    let head = String::from_utf8_lossy(&raw[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .ok_or_else(no_answer)?;
    Ok(Answer {
        status,
        head,
        body: raw[end + 4..].to_vec(),
        is_cleanly_closed,
    })
}
