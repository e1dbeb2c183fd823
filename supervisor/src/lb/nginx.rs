//! nginx's configuration, as text.

use std::fmt::Write as _;

use super::{Layout, Listen};
use crate::exit::Failure;

/// Descriptors of a worker process besides those of connections.
const SPARE_DESCRIPTORS: u64 = 256;

pub(super) fn render(layout: &Layout) -> Result<String, Failure> {
    if let Some(server) = layout.servers.iter().find(|server| server.is_proxied) {
        return Err(Failure::config(format!(
            "{} wants version 2 of the PROXY protocol, and nginx sends version 1 only; leave that address out of \
             server.proxy_protocol, or use HAProxy",
            server.address
        )));
    }
    // Each connection of an agent is two of nginx's.
    let connections = 2 * layout.connections_max;
    let mut out = format!(
        "# Agents over gateways, rendered by `fleet-supervisor lb nginx`. Render it again when addresses change.\n\
         # nginx does not ask gateways for their weight, and learns of a drain by failed connections only; HAProxy does better.\n\
         \n\
         worker_processes auto;\n\
         worker_rlimit_nofile {descriptors};\n\
         pid /run/nginx.pid;\n\
         # The stream module, where it is a file of its own.\n\
         include /etc/nginx/modules-enabled/*.conf;\n\
         \n\
         events {{\n\
         \x20   worker_connections {connections};\n\
         }}\n\
         \n\
         # TLS is the gateways'; it passes through.\n\
         stream {{\n\
         \x20   upstream gateways {{\n\
         \x20       zone gateways 256k;\n\
         \x20       least_conn;\n",
        descriptors = connections + SPARE_DESCRIPTORS,
    );
    for server in &layout.servers {
        let _ = writeln!(
            out,
            "        server {} max_conns={} max_fails=2 fail_timeout=5s;",
            server.address, server.connections_max
        );
    }
    let _ = write!(
        out,
        "    }}\n\
         \n\
         \x20   server {{\n\
         \x20       listen {listen};\n\
         \x20       proxy_pass gateways;\n\
         \x20       # A gateway that does not take the connection is left for another, within the 16 s that agents wait.\n\
         \x20       proxy_connect_timeout 2s;\n\
         \x20       proxy_next_upstream on;\n\
         \x20       proxy_next_upstream_tries 3;\n\
         \x20       proxy_next_upstream_timeout 8s;\n\
         \x20       # Longer than a gateway holds an idle connection (75 s), so that it is the one that ends it.\n\
         \x20       proxy_timeout 90s;\n\
         \x20   }}\n\
         }}\n",
        listen = listen(layout.listen),
    );
    Ok(out)
}

fn listen(listen: Listen) -> String {
    match listen {
        Listen::EveryIpv4(port) => port.to_string(),
        Listen::At(address) if address.ip().is_unspecified() && address.is_ipv6() => {
            format!("{address} ipv6only=off")
        }
        Listen::At(address) => address.to_string(),
    }
}
