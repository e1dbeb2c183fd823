//! Which server a command is for, and how it is reached. Pure.

use fleet_protocol::secret::Secret;
use hyper::Uri;

use super::contexts::{Context, DEFAULT};

/// What is known before anything is opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues {
    /// Called under fleetctl's name.
    pub(super) is_fleetctl: bool,
    /// `--context`.
    pub(super) context: Option<String>,
    /// A state directory was named: this machine is meant.
    pub(super) is_state_dir_told: bool,
    /// The socket of a server on this machine is there.
    pub(super) has_socket: bool,
    /// There is a file of contexts.
    pub(super) has_contexts: bool,
}

/// Where to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The operator socket of this machine's server.
    Socket,
    /// The server of a context, over the network.
    Network(String),
}

/// The one rule, as `--help` and the README say it.
pub(super) fn choose(clues: &Clues) -> Door {
    let named = clues.context.clone();
    let is_local = !clues.is_fleetctl && named.is_none();
    if is_local && (clues.is_state_dir_told || clues.has_socket || !clues.has_contexts) {
        return Door::Socket;
    }
    Door::Network(named.unwrap_or_else(|| DEFAULT.to_owned()))
}

/// A server's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) is_tls: bool,
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Begins with a slash and does not end in one, or is empty.
    pub(super) prefix: String,
}

/// This machine by a name or address that never leaves it.
fn is_local(host: &str) -> bool {
    ["localhost", "127.0.0.1", "::1"].contains(&host)
}

impl Endpoint {
    /// Whether it is on this machine.
    pub(super) fn is_local(&self) -> bool {
        is_local(&self.host)
    }

    /// Reads the address of a context, and refuses to send a password or token in the clear to another machine.
    pub(super) fn of(context: &Context) -> Result<Self, String> {
        let address = context.address.trim();
        if address.is_empty() {
            return Err("has no address".into());
        }
        let wrong = |reason: &str| format!("has the address {address:?}, which {reason}");
        let uri: Uri = address
            .parse()
            .map_err(|_| wrong("is not a URL; use one such as https://fleet.example.com:8080"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("does not begin with https://")),
        };
        let authority = uri
            .authority()
            .filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            return Err("has an address with a password in it; use `login`".into());
        }
        let rest = authority.as_str().strip_prefix(authority.host());
        if rest.is_some_and(|port| !port.is_empty()) && authority.port_u16().is_none() {
            return Err(wrong("has a port that is none"));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query (`?`)"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let is_local = is_local(&host);
        if !is_tls && !is_local && !context.tls_skip_verify {
            return Err(wrong(
                "would send passwords and tokens in the clear; use https://, or set tls-skip-verify if you accept that",
            ));
        }
        let default_port = if is_tls { 443 } else { 80 };
        Ok(Self {
            is_tls,
            port: authority.port_u16().unwrap_or(default_port),
            host,
            prefix: joined(uri.path(), &context.url_prefix),
        })
    }

    /// As a `Host` header and in messages: brackets around IPv6, no port that goes without saying.
    pub(super) fn authority(&self) -> String {
        let host = match self.host.as_str() {
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// For people, and for what decides about proxies.
    pub(super) fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.prefix)
    }
}

fn joined(path: &str, prefix: &str) -> String {
    [path, prefix]
        .iter()
        .map(|part| part.trim_matches('/'))
        .filter(|part| !part.is_empty())
        .map(|part| format!("/{part}"))
        .collect()
}

/// A header line with the token, if there is one.
pub(super) fn bearer(token: &Secret) -> Option<String> {
    (!token.is_empty()).then(|| format!("Bearer {}", token.reveal()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(address: &str) -> Context {
        Context {
            address: address.into(),
            ..Context::default()
        }
    }

    #[test]
    fn the_rule_holds_for_every_case() {
        for case in 0..32_u32 {
            let bit = |at: u32| case >> at & 1 == 1;
            let clues = Clues {
                is_fleetctl: bit(0),
                context: bit(1).then(|| "x".to_owned()),
                is_state_dir_told: bit(2),
                has_socket: bit(3),
                has_contexts: bit(4),
            };
            let wanted = match (clues.context.as_deref(), clues.is_fleetctl) {
                (Some(name), _) => Door::Network(name.into()),
                (None, true) => Door::Network(DEFAULT.into()),
                (None, false) if clues.is_state_dir_told || clues.has_socket => Door::Socket,
                (None, false) if clues.has_contexts => Door::Network(DEFAULT.into()),
                (None, false) => Door::Socket,
            };
            assert_eq!(choose(&clues), wanted, "{clues:?}");
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let endpoint = |is_tls, host: &str, port, prefix: &str| Endpoint {
            is_tls,
            host: host.into(),
            port,
            prefix: prefix.into(),
        };
        for (address, wanted, url) in [
            (
                "https://f.example.com",
                endpoint(true, "f.example.com", 443, ""),
                "https://f.example.com",
            ),
            (
                "https://f:8080/",
                endpoint(true, "f", 8080, ""),
                "https://f:8080",
            ),
            (
                "https://[::1]:8080/a/",
                endpoint(true, "::1", 8080, "/a"),
                "https://[::1]:8080/a",
            ),
            (
                "http://localhost:1337",
                endpoint(false, "localhost", 1337, ""),
                "http://localhost:1337",
            ),
            (
                "http://127.0.0.1",
                endpoint(false, "127.0.0.1", 80, ""),
                "http://127.0.0.1",
            ),
        ] {
            let found = Endpoint::of(&context(address)).unwrap();
            assert_eq!(found, wanted);
            assert_eq!(found.url(), url);
        }
        let mut prefixed = context("https://f/a");
        prefixed.url_prefix = "b/".into();
        assert_eq!(Endpoint::of(&prefixed).unwrap().prefix, "/a/b");
    }

    #[test]
    fn nothing_secret_goes_in_the_clear() {
        let mut other = context("http://fleet.example.com");
        let reason = Endpoint::of(&other).unwrap_err();
        assert!(reason.contains("in the clear"), "{reason}");
        other.tls_skip_verify = true;
        assert!(!Endpoint::of(&other).unwrap().is_tls);
        for wrong in [
            "",
            "fleet.example.com",
            "ftp://f",
            "https://",
            "https://u:hunter2@f",
            "https://f/?a=b",
            "https://f:99999",
        ] {
            let reason = Endpoint::of(&context(wrong)).unwrap_err();
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
