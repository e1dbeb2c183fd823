//! Claimed addresses when things happen at the wrong moment: nothing hangs, nothing stays behind.

use std::process::{Command, Stdio};
use std::sync::Arc;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::netns::Namespace;
use fleet_tests::process::{Process, binary};
use fleet_tests::{port, wait};
use nix::sys::signal::Signal;

const RANGE: &str = "198.51.100.20-198.51.100.119";

/// An interface with a neighbour, so that claiming takes the time that it takes to ask. The other side is only kept.
fn place() -> Option<(Arc<Namespace>, Namespace)> {
    let (place, neighbour) = (Namespace::new()?, Namespace::new()?);
    place.join(
        ("gw0", "198.51.100.1/24"),
        &neighbour,
        ("nb0", "198.51.100.2/24"),
    );
    Some((Arc::new(place), neighbour))
}

fn yaml(port: u16, range: Option<&str>) -> String {
    let (mut addresses, mut claims) = (format!("\"127.0.0.1:{port}\""), String::new());
    if let Some(range) = range {
        addresses += &format!(", \"{range}:{port}\"");
        claims = format!("\"{range}/24\"");
    }
    format!(
        "server:\n  address: [{addresses}]\naddresses:\n  claim:\n    interface: gw0\n    addresses: [{claims}]\n"
    )
}

#[test]
fn a_stop_while_many_are_claimed_ends_and_leaves_none() {
    let Some((place, _neighbour)) = place() else {
        return;
    };
    let port = port::free();
    let mut gateway = Gateway::options()
        .file(&yaml(port, None))
        .within(&place)
        .start();
    gateway.write_config(&yaml(port, Some(RANGE)));
    let (out, error) = texts(&gateway.command(&["reload"]));
    assert!(out.contains("198.51.100.119"), "{out}{error}");
    assert_eq!(gateway.stop(), 0, "{}", gateway.log());
    assert_eq!(place.addresses("gw0"), ["198.51.100.1"]);
}

#[test]
fn a_signal_while_the_start_claims_leaves_none() {
    let Some((place, _neighbour)) = place() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yml");
    std::fs::write(&config, yaml(port::free(), Some(RANGE))).unwrap();
    let state = dir.path().join("state");
    let mut command: Command = place.command(binary("fleet-supervisor"));
    command
        .arg("start")
        .arg(format!("--config={}", config.display()))
        .arg(format!("--state_dir={}", state.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut supervisor = Process::spawn(&mut command);
    wait::until("the first address is added", || {
        (place.addresses("gw0").len() > 1).then_some(())
    });
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.exit_code(), 0);
    assert_eq!(place.addresses("gw0"), ["198.51.100.1"]);
}

#[test]
fn a_reload_claims_what_is_served_already_and_gives_it_back() {
    let Some((place, _neighbour)) = place() else {
        return;
    };
    let port = port::free();
    let with_claim = yaml(port, Some("198.51.100.20"));
    let without = with_claim.replace("\"198.51.100.20/24\"", "");
    let gateway = Gateway::options().file(&without).within(&place).start();
    assert_eq!(place.addresses("gw0"), ["198.51.100.1"]);
    gateway.write_config(&with_claim);
    let (out, error) = texts(&gateway.command(&["reload"]));
    assert!(out.contains("in another way"), "{out}{error}");
    wait::until("the address is there and serves", || {
        let status = gateway.status()?;
        let view = &status["gateway"]["addresses"][1];
        let is_there = place.addresses("gw0").len() == 2;
        (is_there && view["state"] == "serving" && view["is_claimed"] == true).then_some(())
    });
    gateway.write_config(&without);
    gateway.command(&["reload"]);
    wait::until("the address has left the interface", || {
        (place.addresses("gw0") == ["198.51.100.1"]).then_some(())
    });
}
