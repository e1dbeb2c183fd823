//! Claiming over a wire between two network namespaces. Without root there is nothing to test.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fleet_protocol::config::Claim;
use ipnet::IpNet;

use super::link_socket::{Kind, LinkSocket};
use super::namespace::{DEADLINE, THERE_MAC, Wire, enter, wait_for};
use super::netlink::Netlink;
use super::packet::{arp_probe, neighbor_solicitation};
use super::{Claimed, Claims, Outcomes, Refusal};

fn on(interface: &str) -> Claim {
    Claim {
        interface: interface.into(),
        ..Claim::default()
    }
}

fn nets(addresses: &[&str]) -> Vec<IpNet> {
    addresses.iter().map(|text| text.parse().unwrap()).collect()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|text| text.parse().unwrap()).collect()
}

fn results(outcomes: &Outcomes) -> Vec<Result<Claimed, Refusal>> {
    outcomes.iter().map(|(_, result)| result.clone()).collect()
}

/// Opens with a state directory and takes addresses; a crash follows.
fn open_and_take(wire: &Wire, state: &Path, addresses: &[&str]) -> Outcomes {
    let (state, wanted) = (state.to_owned(), nets(addresses));
    wire.run(move || async move {
        let mut claims = Claims::open(&on("in0"), &state).await.unwrap();
        claims.take(&wanted).await
    })
}

/// Opens with a state directory; a crash follows.
fn open(wire: &Wire, state: &Path) {
    open_and_take(wire, state, &[]);
}

const THREE: [&str; 3] = ["192.0.2.10/24", "192.0.2.11/32", "2001:db8::10/64"];

#[test]
fn claimed_addresses_are_there_until_they_are_released() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let outcomes = open_and_take(&wire, state.path(), &THREE);
    assert_eq!(results(&outcomes), vec![Ok(Claimed::Added); 3]);
    let order: Vec<_> = outcomes.iter().map(|(net, _)| net.to_string()).collect();
    assert_eq!(order, THREE);
    assert_eq!(wire.shown_addresses(), THREE);
    for one in wire.shown() {
        let is_v4 = one["family"] == "inet";
        assert!(!is_v4 || one["label"] == "in0:fleet", "{one}");
        assert!(is_v4 || one["tentative"].is_null(), "{one}");
        assert!(is_v4 || one["deprecated"] == true, "{one}");
    }
    // Deprecated or not, a server can listen on it at once.
    let (state, wanted) = (state.path().to_owned(), nets(&THREE));
    let (bound, present, partly, none) = wire.run(move || async move {
        let mut claims = Claims::open(&on("in0"), &state).await.unwrap();
        claims.take(&wanted).await;
        // Again, nothing happens.
        let again = claims.take(&wanted).await;
        assert_eq!(results(&again), vec![Ok(Claimed::Added); 3]);
        let bound = std::net::TcpListener::bind("[2001:db8::10]:0").is_ok();
        let present = claims.present().await.unwrap();
        claims.release(&ips(&["192.0.2.10", "192.0.2.99"])).await;
        let partly = claims.present().await.unwrap();
        claims.release_all().await;
        (bound, present, partly, claims.present().await.unwrap())
    });
    assert!(bound);
    assert_eq!(present, ips(&["192.0.2.10", "192.0.2.11", "2001:db8::10"]));
    assert_eq!(partly, ips(&["192.0.2.11", "2001:db8::10"]));
    assert!(none.is_empty());
    assert!(wire.shown_addresses().is_empty());
}

#[test]
fn what_a_crash_left_is_removed_by_the_next_start() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    open_and_take(&wire, state.path(), &THREE);
    assert_eq!(wire.shown_addresses(), THREE);
    // Another server's state directory knows nothing of them.
    let other = tempfile::tempdir().unwrap();
    open(&wire, other.path());
    assert_eq!(wire.shown_addresses(), THREE);
    // Meanwhile one of them became somebody else's.
    for command in ["del", "add"] {
        wire.ip(&["addr", command, "2001:db8::10/64", "dev", "in0"]);
    }
    open(&wire, state.path());
    assert_eq!(wire.shown_addresses(), ["2001:db8::10/64"]);
    open(&wire, state.path());
    assert_eq!(wire.shown_addresses(), ["2001:db8::10/64"]);
}

#[test]
fn a_renamed_interface_is_cleaned_up() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    open_and_take(&wire, state.path(), &THREE);
    // Switching an interface off takes its IPv6 addresses away.
    for change in [&["in0", "down"][..], &["in0", "name", "lan0"]] {
        wire.ip(&[&["link", "set"], change].concat());
    }
    let text = wire.ip(&["addr", "show", "dev", "lan0"]);
    assert!(text.contains("lan0:fleet"), "{text}");
    open(&wire, state.path());
    let text = wire.ip(&["addr", "show", "dev", "lan0"]);
    assert!(!text.contains("192.0.2."), "{text}");
}

#[test]
fn neighbours_learn_where_the_addresses_are() {
    let Some(wire) = Wire::new() else { return };
    // One learns from announcements alone, the others had a former owner.
    Wire::set(&wire.there, "ipv4/conf/out0/arp_accept", "1");
    wire.ip_there(&["addr", "add", "192.0.2.1/24", "dev", "out0"]);
    for known in ["192.0.2.11", "2001:db8::10"] {
        let entry = ["neigh", "add", known, "lladdr", "02:00:00:00:00:99"];
        wire.ip_there(&[&entry[..], &["dev", "out0", "nud", "stale"]].concat());
    }
    let state = tempfile::tempdir().unwrap();
    let outcomes = open_and_take(&wire, state.path(), &THREE);
    assert_eq!(results(&outcomes), vec![Ok(Claimed::Added); 3]);
    let own = wire.own_mac();
    for address in ["192.0.2.10", "192.0.2.11", "2001:db8::10"] {
        wait_for(address, || {
            wire.known_there(address).as_deref() == Some(own.as_str())
        });
    }
}

#[test]
fn the_announcement_is_repeated_for_what_is_still_there() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    wire.ip_there(&["addr", "add", "192.0.2.1/24", "dev", "out0"]);
    let addresses = ["192.0.2.11", "192.0.2.10"];
    let (path, own, inside) = (state.path().to_owned(), wire.own_mac(), wire.clone());
    wire.run(move || async move {
        let mut claims = Claims::open(&on("in0"), &path).await.unwrap();
        let wanted = nets(&["192.0.2.11/32", "192.0.2.10/32"]);
        let outcomes = claims.take(&wanted).await;
        assert_eq!(results(&outcomes), vec![Ok(Claimed::Added); 2]);
        // From here to the first sleep nothing of ours runs. The neighbour comes to believe in a former owner.
        for address in addresses {
            let entry = ["neigh", "replace", address, "lladdr", "02:00:00:00:00:99"];
            inside.ip_there(&[&entry[..], &["dev", "out0", "nud", "stale"]].concat());
        }
        inside.ip(&["addr", "del", "192.0.2.11/32", "dev", "in0"]);
        inside.ip(&["addr", "add", "192.0.2.11/32", "dev", "lo"]);
        let deadline = Instant::now() + DEADLINE;
        while inside.known_there("192.0.2.10").as_deref() != Some(own.as_str()) {
            assert!(Instant::now() < deadline, "no second announcement");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let other = inside.known_there("192.0.2.11");
        assert_eq!(other.as_deref(), Some("02:00:00:00:00:99"));
    });
}

#[test]
fn an_address_that_a_neighbour_has_is_refused_with_its_mac() {
    let Some(wire) = Wire::new() else { return };
    wire.ip_there(&["addr", "add", "192.0.2.11/24", "dev", "out0"]);
    wire.ip_there(&["addr", "add", "2001:db8::11/64", "dev", "out0", "nodad"]);
    let state = tempfile::tempdir().unwrap();
    let wanted = [
        "192.0.2.10/24",
        "192.0.2.11/24",
        "2001:db8::10/64",
        "2001:db8::11/64",
    ];
    let outcomes = open_and_take(&wire, state.path(), &wanted);
    let refusal = Err(Refusal::InUse(THERE_MAC));
    let added = Ok(Claimed::Added);
    assert_eq!(
        results(&outcomes),
        [added.clone(), refusal.clone(), added, refusal]
    );
    let text = outcomes[1].1.clone().unwrap_err().to_string();
    assert!(text.contains("02:00:00:00:00:0b"), "{text}");
    assert_eq!(wire.shown_addresses(), ["192.0.2.10/24", "2001:db8::10/64"]);
    // Once it is free, another try takes it.
    wire.ip_there(&["addr", "flush", "dev", "out0"]);
    let outcomes = open_and_take(&wire, state.path(), &wanted);
    assert_eq!(results(&outcomes), vec![Ok(Claimed::Added); 4]);
}

#[test]
fn what_somebody_else_configured_is_used_and_stays() {
    let Some(wire) = Wire::new() else { return };
    let theirs = ["192.0.2.10/24", "2001:db8::10/64"];
    for address in theirs {
        wire.ip(&["addr", "add", address, "dev", "in0", "nodad"]);
    }
    // On another interface, too.
    wire.ip(&["addr", "add", "192.0.2.12/32", "dev", "lo"]);
    let state = tempfile::tempdir().unwrap();
    let wanted = nets(&[
        "192.0.2.10/24",
        "2001:db8::10/64",
        "192.0.2.11/24",
        "192.0.2.12/24",
    ]);
    let path = state.path().to_owned();
    let outcomes = wire.run(move || async move {
        let mut claims = Claims::open(&on("in0"), &path).await.unwrap();
        let outcomes = claims.take(&wanted).await;
        assert_eq!(claims.present().await.unwrap(), ips(&["192.0.2.11"]));
        claims
            .release(&ips(&["192.0.2.10", "2001:db8::10", "192.0.2.12"]))
            .await;
        claims.release_all().await;
        outcomes
    });
    let present = Ok(Claimed::Present);
    assert_eq!(
        results(&outcomes),
        [
            present.clone(),
            present.clone(),
            Ok(Claimed::Added),
            present
        ]
    );
    assert_eq!(wire.shown_addresses(), theirs);
    assert!(
        wire.ip(&["addr", "show", "dev", "lo"])
            .contains("192.0.2.12")
    );
}

#[test]
fn addresses_that_came_later_stay_when_the_first_of_their_network_goes() {
    let Some(wire) = Wire::new() else { return };
    for promotes in ["0", "1"] {
        for interface in ["all", "in0"] {
            let key = format!("ipv4/conf/{interface}/promote_secondaries");
            Wire::set(&wire.here, &key, promotes);
        }
        let state = tempfile::tempdir().unwrap();
        let ours = ["192.0.2.10/24", "192.0.2.11/24", "192.0.2.12/24"];
        open_and_take(&wire, state.path(), &ours);
        let theirs = ["192.0.2.20/24", "192.0.2.21/24", "192.0.2.22/25"];
        for address in theirs {
            wire.ip(&["addr", "add", address, "dev", "in0", "label", "in0:theirs"]);
        }
        let first = wire
            .shown()
            .into_iter()
            .find(|one| one["secondary"].is_null());
        assert_eq!(first.unwrap()["local"], "192.0.2.10");
        let path = state.path().to_owned();
        let theirs_and_two = [&ours[1..], &theirs[..]].concat();
        // A crash and a start remove all of ours: the first, too.
        wire.run(move || async move {
            let mut claims = Claims::open(&on("in0"), &path).await.unwrap();
            assert!(claims.present().await.unwrap().is_empty());
            claims.take(&nets(&ours)).await;
        });
        assert_eq!(wire.shown_addresses().len(), 6);
        assert_eq!(wire.shown_addresses(), [&ours[..], &theirs[..]].concat());
        wire.ip(&["addr", "flush", "dev", "in0"]);

        // The first alone goes, of ours and of theirs nothing else does.
        let path = state.path().to_owned();
        let inside = wire.clone();
        wire.run(move || async move {
            let mut claims = Claims::open(&on("in0"), &path).await.unwrap();
            claims.take(&nets(&ours)).await;
            for address in theirs {
                inside.ip(&["addr", "add", address, "dev", "in0", "label", "in0:theirs"]);
            }
            claims.release(&ips(&["192.0.2.10"])).await;
            assert_eq!(
                claims.present().await.unwrap(),
                ips(&["192.0.2.11", "192.0.2.12"])
            );
        });
        assert_eq!(wire.shown_addresses(), theirs_and_two);
        let labels = wire
            .shown()
            .iter()
            .filter(|one| one["label"] == "in0:theirs")
            .count();
        assert_eq!(labels, 3);
        open(&wire, state.path());
        assert_eq!(wire.shown_addresses(), theirs);
        wire.ip(&["addr", "flush", "dev", "in0"]);
    }
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    let refusals = |interface: &'static str, addresses: &'static [&'static str]| {
        let path = path.clone();
        let outcomes = wire.run(move || async move {
            let mut claims = Claims::open(&on(interface), &path).await.unwrap();
            claims.take(&nets(addresses)).await
        });
        let texts = |(_, result): &(_, Result<_, Refusal>)| result.clone().unwrap_err().to_string();
        outcomes.iter().map(texts).collect::<Vec<_>>()
    };
    let missing = &refusals("eth7", &["192.0.2.10/24"])[0];
    assert!(
        missing.contains("\"eth7\"") && missing.contains("in0"),
        "{missing}"
    );
    let hosts = refusals(
        "in0",
        &[
            "192.0.2.0/24",
            "192.0.2.255/24",
            "192.0.2.1/0",
            "2001:db8::/64",
            "fe80::1/64",
        ],
    );
    assert!(
        hosts.iter().all(|text| text.contains("prefix length")),
        "{hosts:?}"
    );
    Wire::set(&wire.here, "ipv6/conf/in0/disable_ipv6", "1");
    let off = &refusals("in0", &["2001:db8::10/64"])[0];
    assert!(off.contains("disable_ipv6"), "{off}");
    wire.ip_there(&["link", "set", "out0", "down"]);
    let carrier = &refusals("in0", &["192.0.2.10/24"])[0];
    assert!(carrier.contains("carrier"), "{carrier}");
    wire.ip(&["link", "set", "in0", "down"]);
    let down = &refusals("in0", &["192.0.2.10/24"])[0];
    assert!(down.contains("ip link set in0 up"), "{down}");
    assert!(wire.shown_addresses().is_empty());
    open(&wire, state.path());
}

#[test]
fn an_interface_without_neighbours_takes_addresses_at_once() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    let outcomes = wire.run(move || async move {
        let mut claims = Claims::open(&on("lo"), &path).await.unwrap();
        let outcomes = claims
            .take(&nets(&["192.0.2.10/32", "2001:db8::10/128"]))
            .await;
        claims.release_all().await;
        outcomes
    });
    assert_eq!(results(&outcomes), vec![Ok(Claimed::Added); 2]);
    let text = wire.ip(&["addr", "show", "dev", "lo"]);
    assert!(
        !text.contains("192.0.2.10") && !text.contains("2001:db8"),
        "{text}"
    );
}

#[test]
fn a_vanished_address_is_taken_again_and_a_changed_prefix_is_adopted() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let (path, inside) = (state.path().to_owned(), wire.clone());
    wire.run(move || async move {
        let mut claims = Claims::open(&on("in0"), &path).await.unwrap();
        claims.take(&nets(&["192.0.2.10/24"])).await;
        inside.ip(&["addr", "flush", "dev", "in0"]);
        assert!(claims.present().await.unwrap().is_empty());
        let again = claims.take(&nets(&["192.0.2.10/24"])).await;
        assert_eq!(results(&again), [Ok(Claimed::Added)]);
        let changed = claims.take(&nets(&["192.0.2.10/25"])).await;
        assert_eq!(results(&changed), [Ok(Claimed::Added)]);
    });
    assert_eq!(wire.shown_addresses(), ["192.0.2.10/25"]);
}

#[test]
fn an_address_that_a_neighbour_is_about_to_take_is_refused() {
    let Some(wire) = Wire::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (there, seen) = (wire.there.clone(), is_over.clone());
    let neighbor = thread::spawn(move || {
        enter(&there);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(ask_until(seen))
    });
    let outcomes = open_and_take(&wire, state.path(), &["192.0.2.10/24", "2001:db8::10/64"]);
    is_over.store(true, Ordering::Relaxed);
    neighbor.join().unwrap();
    assert_eq!(results(&outcomes), vec![Err(Refusal::InUse(THERE_MAC)); 2]);
    assert!(wire.shown_addresses().is_empty());
}

/// Probes for two addresses as another machine does before it takes them.
async fn ask_until(is_over: Arc<AtomicBool>) {
    let links = Netlink::open(DEADLINE).unwrap().links().await.unwrap();
    let link = links.iter().find(|link| link.name == "out0").unwrap();
    let arp = LinkSocket::open(link, Kind::Arp).unwrap();
    let discovery = LinkSocket::open(link, Kind::NeighborDiscovery).unwrap();
    let v4 = arp_probe(THERE_MAC, "192.0.2.10".parse().unwrap());
    let v6 = neighbor_solicitation(THERE_MAC, "2001:db8::10".parse().unwrap());
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !is_over.load(Ordering::Relaxed) {
        arp.send(&v4, deadline).await.unwrap();
        discovery.send(&v6, deadline).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
