//! A network that loses packets, and a neighbour who takes connections away.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use fleet_tests::gateway::Gateway;
use fleet_tests::namespace;
use fleet_tests::process::run;
use fleet_tests::steady_load::{Load, Plan};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

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
        let mut load = Load::start(&gateway, Plan::default());
        load.settle();
        let fault = load.fault("network: 3 % of all packets lost for 6 s");
        let port = gateway.address.port();
        let rules = format!(
            "table inet faults {{\nchain input {{\ntype filter hook input priority 0\n\
             tcp dport {port} numgen random mod 100 < 3 counter drop\n\
             tcp sport {port} numgen random mod 100 < 3 counter drop\n}}\n}}"
        );
        command("nft", &[&rules]);
        std::thread::sleep(Duration::from_secs(6));
        let counted = run(Command::new("nft").args(["list", "ruleset"]));
        let counted = String::from_utf8_lossy(&counted.stdout).into_owned();
        assert!(!counted.contains("packets 0 bytes 0"), "{counted}");
        command("nft", &["delete", "table", "inet", "faults"]);
        fault.healed();
        let verdict = load.finish(&gateway);
        verdict.assert_nothing_lost();
        verdict.assert_no_surplus();
        verdict.assert_all_delivered();
        assert_eq!(verdict.refused, 0, "{verdict}");
    });
}

/// A program of the same user binds the same port with SO_REUSEPORT, and takes what the kernel gives it: its connections
/// hang and end with it. What agents had to say is said again.
#[test]
fn a_stranger_in_the_port_group_costs_no_line() {
    let gateway = Gateway::start();
    let mut load = Load::start(&gateway, Plan::default());
    load.settle();
    let fault = load.fault("network: a foreign process in the port group for 3 s");
    let stranger = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&stranger, sockopt::ReusePort, &true).unwrap();
    let address: SocketAddr = gateway.address;
    let joined = bind(
        std::os::fd::AsRawFd::as_raw_fd(&stranger),
        &SockaddrStorage::from(address),
    );
    match joined {
        Ok(()) => listen(&stranger, Backlog::new(100).unwrap()).unwrap(),
        Err(error) => println!("the stranger is kept out: {error}"),
    }
    std::thread::sleep(Duration::from_secs(3));
    drop(stranger);
    fault.healed();
    let verdict = load.finish(&gateway);
    verdict.assert_nothing_lost();
    verdict.assert_no_surplus();
    verdict.assert_all_delivered();
}
