//! Who listens on a port, from `/proc`, for a helpful message. Best effort: other users' processes stay unknown.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Its id.
    pub(crate) pid: u32,
    /// Its program and first arguments.
    pub(crate) program: String,
}

/// State of a TCP socket that listens, as the kernel's tables show it.
const LISTENING: &str = "0A";
/// State of a UDP socket that is bound.
const BOUND: &str = "07";

/// Why a port that `owner` has cannot be had, and what to do. `option` is what says which port it is.
pub(crate) fn taken(owner: Option<Owner>, option: &str) -> String {
    let owner = owner.map_or("another program".into(), |owner| {
        format!("pid {} ({})", owner.pid, owner.program)
    });
    format!("taken by {owner}; stop it, or choose another {option}")
}

/// Finds the process that listens on `address` or on a wildcard that covers it.
pub(crate) fn find(address: SocketAddr) -> Option<Owner> {
    find_in(["/proc/net/tcp", "/proc/net/tcp6"], LISTENING, address)
}

/// The same for UDP.
pub(crate) fn find_udp(address: SocketAddr) -> Option<Owner> {
    find_in(["/proc/net/udp", "/proc/net/udp6"], BOUND, address)
}

fn find_in(tables: [&str; 2], state: &str, address: SocketAddr) -> Option<Owner> {
    let inodes: Vec<u64> = tables
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| {
            let listeners = table.lines().filter_map(|line| parse_listener(line, state));
            listeners
                .filter(|(listener, _)| collides(*listener, address))
                .map(|(_, inode)| inode)
                .collect::<Vec<_>>()
        })
        .collect();
    owner(&inodes)
}

/// Every TCP socket of this machine that listens, with its inode.
pub(crate) fn listeners() -> Vec<(SocketAddr, u64)> {
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(table) = fs::File::open(table) else {
            continue;
        };
        // Those that listen stand first. What follows may be a million connections, and is not read.
        let lines = BufReader::new(table).lines().skip(1).map_while(Result::ok);
        found.extend(lines.map_while(|line| parse_listener(&line, LISTENING)));
    }
    found
}

/// Finds a process that has one of these sockets.
pub(crate) fn owner(inodes: &[u64]) -> Option<Owner> {
    if inodes.is_empty() {
        return None;
    }
    let sockets: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut descriptors = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let is_owner = descriptors.any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| {
                sockets
                    .iter()
                    .any(|socket| target.as_os_str() == socket.as_str())
            })
        });
        is_owner.then(|| Owner {
            pid,
            program: program(pid),
        })
    })
}

fn program(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .take(2)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // It is another program's text on its way to a terminal.
    let shown = words.join(" ").replace(char::is_control, "?");
    shown.chars().take(60).collect()
}

/// Address and inode of a line with that state.
fn parse_listener(line: &str, wanted: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if state != wanted {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes, each in the machine's order.
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .filter_map(|index| ip.get(8 * index..8 * index + 8))
        .filter_map(|word| u32::from_str_radix(word, 16).ok())
        .map(u32::to_ne_bytes)
        .collect();
    let ip = match words.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [_, _, _, _] => {
            let bytes: Vec<u8> = words.concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode))
}

fn collides(listener: SocketAddr, wanted: SocketAddr) -> bool {
    if listener.port() != wanted.port() {
        return false;
    }
    match (listener.ip(), wanted.ip()) {
        (a, b) if a.is_ipv4() == b.is_ipv4() => a == b || a.is_unspecified() || b.is_unspecified(),
        // A listener on [::] may take IPv4, too.
        (a, _) => a.is_unspecified() && a.is_ipv6(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn our_own_listeners_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let bound = listener.local_addr().unwrap();
            assert!(listeners().iter().any(|(address, _)| *address == bound));
            let owner = find(bound).unwrap();
            assert_eq!(owner.pid, std::process::id(), "{address}");
            assert!(!owner.program.is_empty());
        }
    }

    #[test]
    fn our_own_datagram_sockets_are_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let owner = find_udp(socket.local_addr().unwrap()).unwrap();
        assert_eq!(owner.pid, std::process::id());
    }

    #[test]
    fn nonsense_is_no_listener() {
        for line in [
            "",
            "sl local_address",
            "0: XX:1 0 0A",
            "0: 0100007F:1F90 00000000:0000 01",
        ] {
            assert_eq!(parse_listener(line, LISTENING), None);
        }
    }
}
