//! Which listeners begin each connection with a PROXY header. Pure.

use std::net::SocketAddr;

use crate::address_list;
use crate::config::Server;

/// Why `server.proxy_protocol` cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither addresses nor `all`.
    #[error(transparent)]
    Address(#[from] address_list::Error),
    /// Not one that is served.
    #[error("{0} is not in server.address; list it there too, or remove it here")]
    NotServed(SocketAddr),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxied {
    /// None of them.
    #[default]
    None,
    /// Every one.
    All,
    /// These, as they are configured: with port 0 where the system chooses one.
    Some(Vec<SocketAddr>),
}

impl Proxied {
    /// As `server.proxy_protocol` says.
    pub fn of(server: &Server) -> Result<Self, Error> {
        let entries = &server.proxy_protocol;
        if entries.is_empty() {
            return Ok(Self::None);
        }
        if entries.iter().any(|entry| entry.trim() == "all") {
            return Ok(Self::All);
        }
        let served = address_list::sockets(&server.address)?;
        let proxied = address_list::sockets(entries)?;
        match proxied.iter().find(|address| !served.contains(address)) {
            Some(address) => Err(Error::NotServed(*address)),
            None => Ok(Self::Some(proxied)),
        }
    }

    /// Whether the listener that `server.address` calls `wanted` is one.
    pub fn contains(&self, wanted: SocketAddr) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(addresses) => addresses.contains(&wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(address: &[&str], entries: &[&str]) -> Result<Proxied, Error> {
        let list = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect();
        Proxied::of(&Server {
            address: list(address),
            proxy_protocol: list(entries),
            ..Server::default()
        })
    }

    #[test]
    fn entries_are_among_the_addresses() {
        let served = ["192.0.2.0/29:8080", "[2001:db8::1]:443", "127.0.0.1:0"];
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let of = |entries: &[&str]| proxied(&served, entries);
        assert_eq!(of(&[]), Ok(Proxied::None));
        assert_eq!(of(&["all"]), Ok(Proxied::All));
        assert!(Proxied::All.contains(at("127.0.0.1:0")));
        let some = of(&["192.0.2.2-192.0.2.3:8080", "[2001:db8::1]:443"]).unwrap();
        for (address, is_in) in [
            ("192.0.2.2:8080", true),
            ("192.0.2.3:8080", true),
            ("192.0.2.4:8080", false),
            ("192.0.2.2:8081", false),
            ("[2001:db8::1]:443", true),
            ("127.0.0.1:0", false),
        ] {
            assert_eq!(some.contains(at(address)), is_in, "{address}");
        }
        assert!(of(&["127.0.0.1:0"]).unwrap().contains(at("127.0.0.1:0")));
        let other = of(&["192.0.2.9:8080"]);
        assert_eq!(other, Err(Error::NotServed(at("192.0.2.9:8080"))));
        assert!(matches!(of(&["everything"]), Err(Error::Address(_))));
    }
}
