//! Addresses come, go, fail and return while time is an argument.

use std::net::TcpStream;

use fleet_protocol::stats::ListenerStats;

use super::*;
use crate::{exit, port_owner, wanted};

const SLOTS: u16 = 2;

fn config(addresses: &[&str]) -> Config {
    let mut config = Config::default();
    config.server.address = addresses.iter().map(|text| (*text).to_owned()).collect();
    config
}

fn open(addresses: &[&str]) -> Result<Addresses, Failure> {
    let config = config(addresses);
    Addresses::open(&config, wanted::wanted(&config).unwrap(), SLOTS, &[])
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn states(addresses: &Addresses) -> Vec<&'static str> {
    let views = addresses.views();
    views.iter().map(|view| view.state.label()).collect()
}

fn given(addresses: &Addresses) -> Given {
    let listeners = addresses.of_slot(0).into_iter();
    listeners.map(|of| (of.address, of.balancers)).collect()
}

fn bare(addresses: &[SocketAddr]) -> Given {
    addresses.iter().map(|address| (*address, None)).collect()
}

fn report(address: SocketAddr, open: u32, accepted: u64) -> WorkerStats {
    WorkerStats {
        listeners: vec![ListenerStats {
            address,
            open,
            accepted,
            refused: 1,
        }],
        ..WorkerStats::default()
    }
}

#[test]
fn one_that_cannot_be_bound_is_degraded_and_tried_again() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    let mut addresses = open(&["127.0.0.1:0", &taken.to_string()]).unwrap();
    assert_eq!(states(&addresses), ["serving", "degraded"]);
    assert!(addresses.views()[1].reason.contains("taken by"));
    let local = LocalAddresses::read();
    let before = given(&addresses);
    drop(held);
    addresses.turn(&local, seconds(1));
    assert_eq!(states(&addresses), ["serving", "degraded"], "too early");
    addresses.turn(&local, seconds(6));
    assert_eq!(states(&addresses), ["serving", "serving"]);
    let change = addresses.change(1, &before).unwrap();
    assert_eq!(change.listen.len(), 1);
    assert_eq!(change.listen[0].0.address, taken);
    TcpStream::connect(taken).unwrap();
}

#[test]
fn when_none_can_be_bound_the_first_reason_is_told() {
    let failure = open(&["203.0.113.1:8080", "203.0.113.2:8080"]).unwrap_err();
    assert_eq!(failure.code(), exit::FATAL);
    let text = failure.to_string();
    assert!(
        text.contains("203.0.113.1:8080: not an address of"),
        "{text}"
    );
}

#[test]
fn a_withdrawn_address_listens_until_all_have_heard() {
    let mut addresses = open(&["127.0.0.1:0", "127.0.0.2:0"]).unwrap();
    let [first, second] = addresses.wanted()[..] else {
        panic!()
    };
    let mut config = config(&["127.0.0.1:0"]);
    config.addresses.dns.name = "fleet.example".into();
    config.addresses.dns.ttl = seconds(10);
    let wanted = wanted::wanted(&config).unwrap();
    let difference = addresses.want(&config, wanted, seconds(100));
    assert!(difference.added.is_empty());
    assert_eq!(difference.withdrawn, [second]);
    assert_eq!(states(&addresses), ["serving", "leaving"]);
    let local = LocalAddresses::read();
    addresses.turn(&local, seconds(111));
    TcpStream::connect(second).unwrap();
    assert!(
        addresses
            .change(0, &bare(&[first, second]))
            .unwrap()
            .withdraw
            .is_empty()
    );

    addresses.turn(&local, seconds(112));
    assert!(TcpStream::connect(second).is_err());
    assert_eq!(
        addresses
            .change(0, &bare(&[first, second]))
            .unwrap()
            .withdraw,
        [second]
    );
    // A connection is still open.
    addresses.count([report(second, 1, 1)].iter(), seconds(116));
    addresses.turn(&local, seconds(116));
    assert_eq!(states(&addresses).len(), 2);
    addresses.count([report(second, 0, 1)].iter(), seconds(117));
    addresses.turn(&local, seconds(117));
    assert_eq!(states(&addresses), ["serving"]);
    TcpStream::connect(first).unwrap();
}

#[test]
fn one_that_is_wanted_back_in_time_never_stops() {
    let mut addresses = open(&["127.0.0.1:0", "127.0.0.2:0"]).unwrap();
    let bound = addresses.wanted();
    for list in [&["127.0.0.1:0"][..], &["127.0.0.1:0", "127.0.0.2:0"]] {
        let config = config(list);
        addresses.want(&config, wanted::wanted(&config).unwrap(), seconds(1));
    }
    addresses.turn(&LocalAddresses::read(), seconds(60));
    assert_eq!(states(&addresses), ["serving", "serving"]);
    assert_eq!(addresses.wanted(), bound);
    let change = addresses.change(0, &bare(&bound)).unwrap();
    assert!(change.listen.is_empty() && change.withdraw.is_empty());
}

#[test]
fn a_parked_slot_gets_no_listener_of_a_new_address() {
    let mut addresses = open(&["127.0.0.1:0"]).unwrap();
    addresses.shut_slot(1);
    let config = config(&["127.0.0.1:0", "127.0.0.2:0"]);
    addresses.want(&config, wanted::wanted(&config).unwrap(), seconds(1));
    addresses.turn(&LocalAddresses::read(), seconds(1));
    assert_eq!(addresses.of_slot(0).len(), 2);
    assert_eq!(addresses.of_slot(1).len(), 0);
    assert!(
        addresses
            .change(1, &Given::new())
            .unwrap()
            .listen
            .is_empty()
    );
}

#[test]
fn claims_are_ordered_until_they_succeed_and_released_once() {
    let mut config = config(&["127.0.0.1:0", "203.0.113.1:8080", "203.0.113.1:8443"]);
    config.addresses.claim.addresses = vec!["203.0.113.1/24".into()];
    let claim: IpNet = "203.0.113.1/24".parse().unwrap();
    let wanted = wanted::wanted(&config).unwrap();
    let refused = [(claim, Some("in use by somebody".to_owned()))];
    let mut addresses = Addresses::open(&config, wanted, SLOTS, &refused).unwrap();
    assert_eq!(states(&addresses), ["serving", "degraded", "degraded"]);
    assert_eq!(addresses.views()[1].reason, "in use by somebody");
    let local = LocalAddresses::read();
    assert_eq!(addresses.turn(&local, seconds(1)), []);
    assert_eq!(
        addresses.turn(&local, seconds(5)),
        [Effect::Claim(claim); 2]
    );
    assert_eq!(addresses.turn(&local, seconds(6)), [], "not again at once");
    // One port is withdrawn: the address stays for the other.
    for (list, now) in [("203.0.113.1:8443", 10), ("127.0.0.1:0", 50)] {
        let mut config = config.clone();
        config.server.address = vec!["127.0.0.1:0".into(), list.into()];
        config.server.address.dedup();
        addresses.want(&config, wanted::wanted(&config).unwrap(), seconds(now));
        addresses.turn(&local, seconds(now + 5));
        let effects = addresses.turn(&local, seconds(now + 30));
        let is_last = list == "127.0.0.1:0";
        assert_eq!(effects.contains(&Effect::Release(claim)), is_last, "{list}");
    }
}

#[test]
fn counts_outlive_workers() {
    let mut addresses = open(&["127.0.0.1:0", "127.0.0.2:0"]).unwrap();
    let [first, second] = addresses.wanted()[..] else {
        panic!()
    };
    let reports = [
        report(first, 3, 300),
        report(first, 1, 0),
        report(second, 0, 0),
    ];
    addresses.count(reports.iter(), seconds(1));
    addresses.keep(&reports[0]);
    addresses.count(
        [report(first, 2, 100), report(second, 0, 100)].iter(),
        seconds(2),
    );
    let views = addresses.views();
    assert_eq!(
        (views[0].open, views[0].accepted, views[0].refused),
        (2, 400, 2)
    );
    assert_eq!(views[0].accepts_per_s, 100.0);
    assert_eq!((views[0].share, views[1].share), (0.5, 0.5));
}

#[test]
fn an_address_is_served_in_another_way_without_a_gap() {
    let mut addresses = open(&["127.0.0.1:0"]).unwrap();
    let [address] = addresses.wanted()[..] else {
        panic!()
    };
    let before = given(&addresses);
    let mut config = config(&["127.0.0.1:0"]);
    config.server.proxy_protocol = vec!["all".into()];
    config.server.proxy_protocol_networks = vec!["10.0.0.0/8".into()];
    let wanted = wanted::wanted(&config).unwrap();
    let difference = addresses.want(&config, wanted, seconds(1));
    assert_eq!(difference.changed, [address]);
    assert!(difference.added.is_empty() && difference.withdrawn.is_empty());
    addresses.turn(&LocalAddresses::read(), seconds(1));
    assert_eq!(states(&addresses), ["serving"]);
    let change = addresses.change(0, &before).unwrap();
    assert_eq!(change.withdraw, [address]);
    assert_eq!(change.listen[0].0.address, address);
    assert!(change.listen[0].0.balancers.is_some());
    TcpStream::connect(address).unwrap();
}

#[test]
fn a_wildcard_waits_for_the_address_that_it_replaces() {
    let mut addresses = open(&["127.0.0.1:0"]).unwrap();
    let [first] = addresses.wanted()[..] else {
        panic!()
    };
    let config = config(&[&format!("0.0.0.0:{}", first.port())]);
    addresses.want(&config, wanted::wanted(&config).unwrap(), seconds(1));
    let local = LocalAddresses::read();
    addresses.turn(&local, seconds(1));
    assert_eq!(states(&addresses), ["degraded", "leaving"]);
    let reason = addresses.views()[0].reason.clone();
    assert!(reason.contains(&format!("waits for {first}")), "{reason}");
    TcpStream::connect(first).unwrap();
    // In the turn in which the one closes, the other is bound.
    addresses.turn(&local, seconds(3));
    assert_eq!(states(&addresses), ["serving", "leaving"]);
    TcpStream::connect(first).unwrap();
}

#[test]
fn claims_may_come_change_and_go() {
    let list = ["127.0.0.1:0", "203.0.113.1:8080"];
    let mut addresses = open(&list).unwrap();
    let local = LocalAddresses::read();
    let mut effects_of = |claims: &[&str], now: u64| {
        let mut config = config(&list);
        config.addresses.claim.addresses = claims.iter().map(|text| (*text).into()).collect();
        let wanted = wanted::wanted(&config).unwrap();
        let difference = addresses.want(&config, wanted, seconds(now));
        assert_eq!(difference.changed.len(), 1, "{claims:?}");
        addresses.turn(&local, seconds(now))
    };
    let [wide, narrow] = ["203.0.113.1/16", "203.0.113.1/24"].map(|text| text.parse().unwrap());
    assert_eq!(effects_of(&["203.0.113.1/16"], 10), [Effect::Claim(wide)]);
    assert_eq!(effects_of(&["203.0.113.1/24"], 20), [Effect::Claim(narrow)]);
    assert_eq!(effects_of(&[], 30), [Effect::Release(narrow)]);
}

#[test]
fn others_on_our_ports_are_told_of_and_degrade_only_what_they_take() {
    use socket2::{Domain, Socket, Type};
    let mut addresses = open(&["0.0.0.0:0", "127.0.0.1:0"]).unwrap();
    addresses.steer(vec![1, 1]);
    let [any, local] = addresses.wanted()[..] else {
        panic!()
    };
    assert_eq!(addresses.meet(&port_owner::listeners()), [""; 0]);
    let one_of_any = SocketAddr::from(([127, 0, 0, 1], any.port()));
    let others: Vec<_> = [one_of_any, local]
        .into_iter()
        .map(|address| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(1).unwrap();
            socket
        })
        .collect();
    let sentences = addresses.meet(&port_owner::listeners());
    assert!(sentences[0].contains("takes agents away"), "{sentences:?}");
    assert!(
        sentences[1].contains("gets no connections"),
        "{sentences:?}"
    );
    // They are told of once.
    assert_eq!(addresses.meet(&port_owner::listeners()), [""; 0]);
    assert_eq!(states(&addresses), ["degraded", "serving"]);
    let of_others = |addresses: &Addresses| {
        let views = addresses.views().into_iter();
        views.map(|view| view.foreign_listeners).collect::<Vec<_>>()
    };
    assert_eq!(of_others(&addresses), [1, 1]);
    drop(others);
    addresses.meet(&port_owner::listeners());
    assert_eq!(of_others(&addresses), [0, 0]);
    assert_eq!(states(&addresses), ["serving", "serving"]);
    assert_eq!(addresses.views()[0].reason, "");
}
