//! A network that loses packets or mixes them up, and a neighbour who takes connections away.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use fleet_tests::detour::{Detour, Weather};
use fleet_tests::gateway::Gateway;
use fleet_tests::namespace;
use fleet_tests::process::run;
use fleet_tests::steady_load::{Load, Plan, under_load};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

/// How long the network is not itself.
const SPELL: Duration = Duration::from_secs(6);
/// The gateway's address, and the one under which agents find it.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 199, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 199, 0, 2);

/// Runs `program ARGS` in this thread's namespace.
fn command(program: &str, args: &[&str]) {
    let output = run(Command::new(program).args(args));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn lost_packets_cost_time_and_no_line() {
    if run(Command::new("sh").args(["-c", "command -v nft"]))
        .stdout
        .is_empty()
    {
        eprintln!("LEFT OUT: needs nft (package nftables)");
        return;
    }
    namespace::inside(|| {
        command("ip", &["link", "set", "lo", "up"]);
        let gateway = Gateway::start();
        let port = gateway.address.port();
        let rules = format!(
            "table inet faults {{\nchain input {{\ntype filter hook input priority 0\n\
             tcp dport {port} numgen random mod 100 < 3 counter drop\n\
             tcp sport {port} numgen random mod 100 < 3 counter drop\n}}\n}}"
        );
        let verdict = under_load(&gateway, |load| {
            load.fault("network: 3 % of all packets lost for 6 s", |_| {
                command("nft", &[&rules]);
                std::thread::sleep(SPELL);
                let counted = run(Command::new("nft").args(["list", "ruleset"]));
                let counted = String::from_utf8_lossy(&counted.stdout).into_owned();
                assert!(!counted.contains("packets 0 bytes 0"), "{counted}");
                command("nft", &["delete", "table", "inet", "faults"]);
            });
        });
        verdict.assert_none_refused();
    });
}

/// Agents reach the gateway through a tunnel that lets packets overtake each other, and brings some of them twice.
#[test]
fn packets_late_twice_and_out_of_order_cost_no_line() {
    namespace::inside(|| {
        command("ip", &["link", "set", "lo", "up"]);
        let detour = match Detour::open(OURS, THEIRS) {
            Ok(detour) => detour,
            Err(error) => {
                eprintln!("LEFT OUT: needs a tunnel device ({error}); load the module tun");
                return;
            }
        };
        let yaml = format!("server:\n  address: {OURS}:0\n");
        let gateway = Gateway::options().file(&yaml).start();
        let plan = Plan {
            through: Some(THEIRS.into()),
            ..Plan::default()
        };
        let mut load = Load::settled(&gateway, plan);
        let name = "network: 5 ms each way, 20 % of packets up to 60 ms late, 5 % twice, for 6 s";
        load.fault(name, |_| {
            let before = (queued_out_of_order(), detour.counts());
            detour.set(Weather {
                delay: Duration::from_millis(5),
                late_percent: 20,
                late_max: Duration::from_millis(60),
                twice_percent: 5,
            });
            std::thread::sleep(SPELL);
            detour.set(Weather::FAIR);
            let counts = detour.counts();
            println!("{counts:?}, before {before:?}");
            assert!(counts.overtaken > before.1.overtaken + 100, "{counts:?}");
            assert!(counts.twice > before.1.twice + 100, "{counts:?}");
            let queued = queued_out_of_order() - before.0;
            println!("{queued} segments arrived before an earlier one");
            assert!(queued > 0, "the kernel saw no segment out of order");
        });
        assert_eq!(detour.counts().dropped, 0, "{:?}", detour.counts());
        let verdict = load.finish(&gateway);
        verdict.assert_none_refused();
    });
}

/// TCP segments of this thread's namespace that waited for an earlier one.
fn queued_out_of_order() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "TCPOFOQueue").unwrap();
    value.parse().unwrap()
}

/// A program of the same user binds the same port with SO_REUSEPORT, and takes what the kernel gives it: its connections
/// hang and end with it. What agents had to say is said again.
#[test]
fn a_stranger_in_the_port_group_costs_no_line() {
    let gateway = Gateway::start();
    under_load(&gateway, |load| {
        load.fault(
            "network: a foreign process in the port group for 3 s",
            |_| {
                let stranger = socket(
                    AddressFamily::Inet,
                    SockType::Stream,
                    SockFlag::SOCK_CLOEXEC,
                    None,
                )
                .unwrap();
                setsockopt(&stranger, sockopt::ReusePort, &true).unwrap();
                let address = SockaddrStorage::from(gateway.address);
                match bind(std::os::fd::AsRawFd::as_raw_fd(&stranger), &address) {
                    Ok(()) => listen(&stranger, Backlog::new(100).unwrap()).unwrap(),
                    Err(error) => println!("the stranger is kept out: {error}"),
                }
                std::thread::sleep(Duration::from_secs(3));
            },
        );
    });
}
