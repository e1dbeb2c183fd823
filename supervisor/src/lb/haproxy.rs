//! HAProxy's configuration, as text.

use std::fmt::Write as _;
use std::path::Path;

use super::{Layout, Listen, Server};
use crate::exit::Failure;

/// How each rendering begins, and so how one of ours is known again.
pub(super) const HEAD: &str = "# Agents over gateways, rendered by `fleet-supervisor lb haproxy`.";

/// What only HAProxy is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extras<'a> {
    pub(super) stats_socket: &'a Path,
    pub(super) ca_file: Option<&'a Path>,
}

pub(super) fn render(layout: &Layout, extras: &Extras<'_>) -> Result<String, Failure> {
    let stats_socket = word(extras.stats_socket)?;
    let check = check(layout, extras)?;
    let mut out = format!(
        "{HEAD} Render it again when addresses change.\n\
         \n\
         global\n\
         \x20   user haproxy\n\
         \x20   group haproxy\n\
         \x20   log /dev/log local0\n\
         \x20   stats socket {stats_socket} mode 660 level admin\n\
         \x20   # What the gateways' workers hold in all; each connection here costs two descriptors.\n\
         \x20   maxconn {connections}\n\
         \n\
         defaults\n\
         \x20   # TLS is the gateways'; it passes through.\n\
         \x20   mode tcp\n\
         \x20   log global\n\
         \x20   # A line a connection would be a line a request: only failures.\n\
         \x20   option dontlog-normal\n\
         \x20   maxconn {connections}\n\
         \x20   # A gateway that does not take the connection is left for another, within the 16 s that agents wait.\n\
         \x20   timeout connect 2s\n\
         \x20   timeout queue 8s\n\
         \x20   retries 3\n\
         \x20   option redispatch 1\n\
         \x20   # Longer than a gateway holds an idle connection (75 s), so that it is the one that ends it.\n\
         \x20   timeout client 90s\n\
         \x20   timeout server 90s\n\
         \x20   timeout tunnel 1h\n\
         \x20   timeout client-fin 5s\n\
         \x20   timeout server-fin 5s\n\
         \x20   timeout check 5s\n\
         \n\
         frontend agents\n\
         \x20   bind {bind}\n\
         \x20   default_backend gateways\n\
         \n\
         backend gateways\n\
         \x20   balance leastconn\n\
         {check} inter 2s downinter 2s fastinter 1s fall 3 rise 2 weight 100\n",
        connections = layout.connections_max,
        bind = bind(layout.listen),
    );
    if layout.servers.iter().any(|server| server.agent.is_some()) {
        out.push_str(
            "    # Each gateway says itself how much of its share it wants, and when it drains.\n",
        );
    }
    for (index, server) in layout.servers.iter().enumerate() {
        let _ = writeln!(out, "{}", server_line(index + 1, server));
    }
    Ok(out)
}

/// How gateways are checked, up to the times between checks.
fn check(layout: &Layout, extras: &Extras<'_>) -> Result<String, Failure> {
    if layout.needs_certificate {
        if let Some(file) = extras.ca_file {
            return Err(Failure::usage(format!(
                "--ca-file {}: of no use with server.client_auth: require; health checks then only connect",
                file.display()
            )));
        }
        return Ok(
            "\x20   # Gateways want a certificate of whoever speaks TLS with them, and there is none here: so a check only connects.\n\
             \x20   # Whether a gateway is well it says itself, by agent-check.\n\
             \x20   default-server check"
                .to_owned(),
        );
    }
    let verify = match extras.ca_file {
        Some(file) => format!("verify required ca-file {}", word(file)?),
        None => "verify none".to_owned(),
    };
    let over = if layout.is_tls {
        format!(" check-ssl {verify}")
    } else {
        String::new()
    };
    Ok(format!(
        "\x20   # What a gateway has for itself. Store and bus are shared by all: when they fail, none is better than another,\n\
         \x20   # and each still answers what it can alone.\n\
         \x20   option httpchk\n\
         \x20   http-check send meth GET uri {prefix}/healthz?check=journal ver HTTP/1.1 hdr Host gateway hdr Connection close\n\
         \x20   http-check expect status 200\n\
         \x20   default-server check{over}",
        prefix = layout.path_prefix,
    ))
}

fn server_line(number: usize, server: &Server) -> String {
    let mut line = format!(
        "    server gateway{number} {} maxconn {}",
        server.address, server.connections_max
    );
    if server.is_proxied {
        line.push_str(" send-proxy-v2 check-send-proxy");
    }
    if let Some(agent) = server.agent {
        let _ = write!(line, " agent-check agent-inter 1s");
        if agent.ip() != server.address.ip() {
            let _ = write!(line, " agent-addr {}", agent.ip());
        }
        let _ = write!(line, " agent-port {}", agent.port());
    }
    line
}

fn bind(listen: Listen) -> String {
    match listen {
        Listen::EveryIpv4(port) => format!(":{port}"),
        Listen::At(address) if address.ip().is_unspecified() && address.is_ipv6() => {
            format!(":::{} v4v6", address.port())
        }
        Listen::At(address) => address.to_string(),
    }
}

/// A path as one word of the configuration.
fn word(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c);
    if text.is_empty() || !text.chars().all(is_plain) {
        return Err(Failure::usage(format!(
            "{}: a path in a configuration of HAProxy may hold letters, digits and /._-+@:,= only",
            path.display()
        )));
    }
    Ok(text.to_owned())
}
