//! A gateway and its agents in two network namespaces that a cable joins: addresses are claimed, found by name, withdrawn
//! and given back.

use std::io::Read as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::netns::Namespace;
use fleet_tests::process::binary;
use fleet_tests::wait;
use serde_json::Value;

const PORT: u16 = 8443;
/// Connections of each address that its share is judged by.
const ACCEPTED_MIN: u64 = 300;
/// How long agents come until there are so many.
const ROUNDS_MAX: Duration = Duration::from_secs(120);
const CLAIMED: [&str; 3] = ["198.51.100.10", "198.51.100.11", "198.51.100.12"];

/// The gateway's and the agents' side. They are in different networks, as in the field: within one network the C library
/// puts the address first that is most like its own, whatever the responder says.
fn field() -> Option<(Arc<Namespace>, Namespace)> {
    let gateway = Namespace::new()?;
    let agents = Namespace::new()?;
    gateway.join(
        ("gw0", "198.51.100.1/24"),
        &agents,
        ("ag0", "203.0.113.2/24"),
    );
    gateway.ip("route add 203.0.113.0/24 dev gw0");
    agents.ip("route add 198.51.100.0/24 dev ag0");
    agents.set_resolver("nameserver 198.51.100.1\noptions timeout:5 attempts:3\n");
    Some((Arc::new(gateway), agents))
}

fn yaml(served: &[&str]) -> String {
    let sockets: Vec<_> = served.iter().map(|ip| format!("{ip}:{PORT}")).collect();
    let claims: Vec<_> = served.iter().map(|ip| format!("{ip}/24")).collect();
    format!(
        "server:\n  address: [{}]\naddresses:\n  claim:\n    interface: gw0\n    addresses: [{}]\n  \
         dns:\n    name: fleet.test\n    listen: [\"198.51.100.1:53\"]\n    ttl: 1s\n",
        quoted(&sockets),
        quoted(&claims)
    )
}

fn quoted(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| format!("\"{item}\"")).collect();
    items.join(", ")
}

fn views(gateway: &Gateway) -> Option<Vec<Value>> {
    Some(
        gateway.status()?["gateway"]["addresses"]
            .as_array()?
            .clone(),
    )
}

fn wait_until_all_serve(gateway: &Gateway) {
    wait::until("every address serves", || {
        let views = views(gateway)?;
        views
            .iter()
            .all(|view| view["state"] == "serving")
            .then_some(())
    });
}

/// Runs the load generator among the agents and gives its report.
fn run_agents(
    agents: &Namespace,
    gateway: &Gateway,
    scenario: &[&str],
    meanwhile: impl FnOnce(),
) -> Value {
    let mut child = agents
        .command(binary("fleet-loadtest"))
        .args(scenario)
        .args(["--json", "--resolve-each"])
        .arg(format!("--server=https://fleet.test:{PORT}"))
        .arg(format!("--ca={}", gateway.state("tls/cert.pem").display()))
        .arg(format!(
            "--enroll-secret-file={}",
            gateway.state("enroll_secret").display()
        ))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    meanwhile();
    let mut report = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut report)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let (_, error) = texts(&output);
    assert!(output.status.success(), "{report}\n{error}");
    serde_json::from_str(&report).unwrap()
}

/// Lets agents come, in rounds, until each address has been connected to so often that chance is small beside it. A slow
/// machine only needs more rounds. Gives how many connections each address has accepted.
fn exchange_until_it_can_be_judged(agents: &Namespace, gateway: &Gateway) -> Vec<u64> {
    let end = Instant::now() + ROUNDS_MAX;
    loop {
        let scenario = ["exchange", "--connections=8", "--seconds=4"];
        run_agents(agents, gateway, &scenario, || {});
        let accepted = wait::until("nothing is open any more", || {
            let views = views(gateway)?;
            let is_quiet = views.iter().all(|view| view["open"] == 0);
            is_quiet.then(|| {
                let counts = views.iter().map(|view| view["accepted"].as_u64().unwrap());
                counts.collect::<Vec<_>>()
            })
        });
        if accepted.iter().all(|count| *count >= ACCEPTED_MIN) {
            return accepted;
        }
        assert!(
            Instant::now() < end,
            "too few connections to judge after {ROUNDS_MAX:?}: {accepted:?}"
        );
    }
}

#[test]
fn agents_spread_over_claimed_addresses_and_leave_one_that_is_withdrawn() {
    let Some((place, agents)) = field() else {
        return;
    };
    let gateway = Gateway::options()
        // The generator asks as one host as often as it can.
        .set("limits.host_rate", 1_000_000)
        .set("limits.host_burst", 1_000_000)
        .file(&yaml(&CLAIMED))
        .within(&place)
        .start();
    wait_until_all_serve(&gateway);
    for ip in CLAIMED {
        assert!(place.addresses("gw0").contains(&ip.to_owned()), "{ip}");
    }
    let accepted = exchange_until_it_can_be_judged(&agents, &gateway);
    let even = accepted.iter().sum::<u64>() as f64 / accepted.len() as f64;
    for count in &accepted {
        let share = *count as f64 / even;
        assert!((0.9..=1.1).contains(&share), "not even: {accepted:?}");
    }

    let last = format!("{}:{PORT}", CLAIMED[2]);
    let scenario = ["steady", "--hosts=40", "--seconds=25", "--profile=flagfile"];
    run_agents(&agents, &gateway, &scenario, || {
        gateway.write_config(&yaml(&CLAIMED[..2]));
        let (out, error) = texts(&gateway.command(&["reload"]));
        assert!(out.contains(&format!("Withdraws {last}")), "{out}{error}");
        wait::until("the address is forgotten", || {
            let views = views(&gateway)?;
            views
                .iter()
                .all(|view| view["address"] != last.as_str())
                .then_some(())
        });
        wait::until("the address has left the interface", || {
            let addresses = place.addresses("gw0");
            (!addresses.contains(&CLAIMED[2].to_owned())).then_some(())
        });
    });
}

#[test]
fn claimed_addresses_are_given_back_at_stop_and_after_a_crash() {
    let Some((place, _agents)) = field() else {
        return;
    };
    let mut gateway = Gateway::options()
        .file(&yaml(&CLAIMED))
        .within(&place)
        .start();
    assert_eq!(place.addresses("gw0").len(), 4);
    assert_eq!(gateway.stop(), 0, "{}", gateway.log());
    assert_eq!(place.addresses("gw0"), ["198.51.100.1"]);

    let gateway = Gateway::options()
        .file(&yaml(&CLAIMED))
        .within(&place)
        .start();
    let gateway = gateway.crash_and_start("server:\n  address: \"127.0.0.1:0\"\n");
    assert_eq!(place.addresses("gw0"), ["198.51.100.1"]);
    drop(gateway);
}

#[test]
fn an_address_that_somebody_has_is_refused_and_the_others_serve() {
    let Some((place, agents)) = field() else {
        return;
    };
    agents.ip("addr add 198.51.100.12/24 dev ag0");
    let gateway = Gateway::options()
        .file(&yaml(&CLAIMED))
        .within(&place)
        .start();
    let taken = wait::until("the address is degraded", || {
        let views = views(&gateway)?;
        views.into_iter().find(|view| view["state"] == "degraded")
    });
    let link = agents.ip("-json link show dev ag0");
    let link: Value = serde_json::from_str(&link).unwrap();
    let mac = link[0]["address"].as_str().unwrap();
    let reason = taken["reason"].as_str().unwrap();
    assert!(taken["address"].as_str().unwrap().starts_with(CLAIMED[2]));
    assert!(reason.contains(mac), "{reason} does not name {mac}");
    assert_eq!(place.addresses("gw0").len(), 3);

    // It is free now: ours at the next try.
    agents.ip("addr del 198.51.100.12/24 dev ag0");
    wait_until_all_serve(&gateway);
    assert_eq!(place.addresses("gw0").len(), 4);
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let Some((place, _agents)) = field() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = place
        .command(binary("fleet-supervisor"))
        .arg("start")
        .arg(format!(
            "--state_dir={}",
            dir.path().join("state").display()
        ))
        .args(["--server_address=198.51.100.10:8443"])
        .args(["--addresses_claim_interface=eth7"])
        .args(["--addresses_claim_addresses=198.51.100.10/24"])
        .output()
        .unwrap();
    let (_, error) = texts(&output);
    assert_eq!(output.status.code(), Some(70), "{error}");
    assert!(error.contains("eth7") && error.contains("gw0"), "{error}");
}
