//! `ctl debug connection`: each step from a name to an agent's answer, so that the first that fails is seen.

use std::fmt::Write as _;
use std::path::PathBuf;

use hyper::Method;
use serde_json::json;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::client::Client;
use super::contexts::Context;
use super::dial::{Network, Secured};
use super::{Failure, Output, World};

/// Where agents ask for their configuration.
const AGENT_PATH: &str = "/api/osquery/config";

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// The server [default: that of the context]
    address: Option<String>,
    /// File of certificates to trust, as agents are given with --tls_server_certs.
    #[arg(long, value_name = "FILE")]
    fleet_certificate: Option<PathBuf>,
}

impl Connection {
    /// The server that is meant; no session is needed.
    pub(super) fn client(&self, world: &World<'_>) -> Result<Client, Failure> {
        let mut context = match &self.address {
            None => world.known_context()?,
            Some(address) => Context {
                address: address.clone(),
                ..Context::default()
            },
        };
        if let Some(path) = &self.fleet_certificate {
            context.rootca = path.display().to_string();
            context.tls_skip_verify = false;
        }
        Client::remote(&context, world.command("login"))
            .map_err(|reason| Failure::Usage(format!("the server {reason}")))
    }

    /// Goes step by step; the output ends with the step that failed.
    pub(super) async fn look(&self, client: &Client) -> Result<Output, Failure> {
        let mut output = Output::default();
        if let Some(network) = client.network() {
            let outcome = steps(network, client, &mut output.text).await;
            output.failure = outcome.err();
        }
        Ok(output)
    }
}

async fn steps(network: &Network, client: &Client, text: &mut String) -> Result<(), Failure> {
    let mut say = |step: &str, what: &str| {
        let _ = writeln!(text, "[+] {step:<12} {what}");
    };
    say("address", &network.endpoint().url());
    let addresses = network.resolve().await?;
    let shown: Vec<_> = addresses
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    let of = if network.is_proxied() {
        " (of the proxy)"
    } else {
        ""
    };
    say("name", &format!("{}{of}", shown.join(", ")));
    let stream = network.connect(&addresses).await?;
    say("TCP", &network.peer().unwrap_or_default());
    if let Secured::Tls(stream) = network.secure(stream).await? {
        let (_, session) = stream.get_ref();
        let version = session
            .protocol_version()
            .and_then(|version| version.as_str().map(str::to_owned));
        let suite = session
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite()));
        say(
            "TLS",
            &format!(
                "{}, {}",
                version.unwrap_or_default(),
                suite.unwrap_or_default()
            ),
        );
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        say(
            "certificate",
            &shown.map(|der| certificate(der)).unwrap_or_default(),
        );
    }
    let health = client.answer(Method::GET, "/healthz", None).await?;
    let verdict = if health.status.is_success() {
        "good"
    } else {
        "something fails; see `status`, or the server's log"
    };
    say("health", &format!("{}: {verdict}", health.status.as_u16()));
    // No host has this key: a server of Fleet's kind says so in osquery's words.
    let body = json!({"node_key": ""});
    let answer = client.answer(Method::POST, AGENT_PATH, Some(&body)).await?;
    let value = answer.value();
    let is_agents = value.get("node_invalid").is_some() || value.get("error").is_some();
    if !is_agents {
        return Err(Failure::Unavailable(format!(
            "{AGENT_PATH} answered {} with something that agents do not understand; is something else at this address?",
            answer.status
        )));
    }
    say(
        "agents",
        &format!("{AGENT_PATH} answers as osquery expects"),
    );
    Ok(())
}

fn certificate(der: &[u8]) -> String {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else {
        return "cannot be read".into();
    };
    let validity = parsed.validity();
    format!("{}, until {}", parsed.subject(), validity.not_after)
}
