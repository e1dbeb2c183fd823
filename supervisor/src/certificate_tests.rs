//! Own pairs are made, kept and renewed; given ones are checked.

use super::*;
use crate::exit;

const DAY: Duration = Duration::from_secs(24 * 3600);
const NOW: Duration = Duration::from_secs(1_800_000_000);

fn names() -> Vec<String> {
    ["gateway.example", "localhost", "127.0.0.1", "::1"]
        .map(String::from)
        .to_vec()
}

fn own(state_dir: &Path, now: Duration) -> Identity {
    fs::create_dir_all(state_dir.join("tls")).unwrap();
    load(&Server::default(), state_dir, &names(), now).unwrap()
}

fn given(cert: &str, key: &str) -> Result<Identity, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let server = Server {
        cert: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
        ..Server::default()
    };
    fs::write(&server.cert, cert).unwrap();
    fs::write(&server.key, key).unwrap();
    load(&server, dir.path(), &names(), NOW)
}

#[test]
fn an_own_pair_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = own(dir.path(), NOW);
    assert_eq!((first.names.clone(), first.is_own), (names(), true));
    assert!(first.notes[0].contains("gateway.example"));
    let mode = fs::metadata(dir.path().join("tls/key.pem")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = own(dir.path(), NOW + DAY);
    assert_eq!(second.tls, first.tls);
    assert!(second.notes.is_empty() && second.warnings.is_empty());
    for name in ["localhost", "::1", "GATEWAY.example"] {
        assert!(second.covers(name), "{name}");
    }
    assert!(!second.covers("10.0.0.1"));
}

#[test]
fn it_is_valid_for_two_years_and_no_more_than_825_days() {
    let dir = tempfile::tempdir().unwrap();
    own(dir.path(), NOW);
    let near = own(dir.path(), NOW + 800 * DAY);
    assert!(near.warnings[0].contains("expires in 19 days"), "{near:?}");
    let old = near.tls;
    let renewed = own(dir.path(), NOW + 820 * DAY);
    assert_ne!(renewed.tls, old);
    assert!(renewed.warnings[0].contains("made anew"), "{renewed:?}");
}

#[test]
fn given_pairs_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let tls = own(dir.path(), NOW).tls;
    let (cert, key) = (tls.cert_chain_pem.as_str(), tls.key_pem.reveal());
    let other = KeyPair::generate().unwrap().serialize_pem();
    let good = given(cert, key).unwrap();
    assert!(!good.is_own);
    for (cert, key, part) in [
        ("", key, "cert.pem holds no certificate"),
        (cert, "", "key.pem holds no private key"),
        (cert, cert, "key.pem holds no private key"),
        (key, key, "cert.pem holds no certificate"),
        (
            cert,
            other.as_str(),
            "does not belong to the certificate in",
        ),
    ] {
        let failure = given(cert, key).unwrap_err();
        assert_eq!(failure.code(), exit::CONFIG);
        let text = failure.to_string();
        assert!(text.starts_with("server.") && text.contains(part), "{text}");
    }
}

#[test]
fn a_given_pair_that_has_expired_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tls = own(dir.path(), NOW - 900 * DAY).tls;
    let failure = given(&tls.cert_chain_pem, tls.key_pem.reveal()).unwrap_err();
    assert!(failure.to_string().contains("has expired"), "{failure}");
}
