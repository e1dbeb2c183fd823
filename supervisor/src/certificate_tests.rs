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
    assert_eq!((first.tls.names.clone(), first.is_own), (names(), true));
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

#[test]
fn further_pairs_are_checked_and_must_have_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, names: &[&str], pair: &KeyPair| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let cert = CertificateParams::new(names).unwrap();
        let [cert_path, key_path] =
            ["crt", "key"].map(|end| dir.path().join(name).with_extension(end));
        fs::write(&cert_path, cert.self_signed(pair).unwrap().pem()).unwrap();
        fs::write(&key_path, pair.serialize_pem()).unwrap();
        format!("{}={}", cert_path.display(), key_path.display())
    };
    let load = |certificates: Vec<String>| {
        let tls = Tls {
            certificates,
            ..Tls::default()
        };
        load_further(&tls, NOW)
    };
    let pair = KeyPair::generate().unwrap();
    let named = write("named", &["*.example.com", "192.0.2.1"], &pair);
    let address = write("address", &["192.0.2.1"], &pair);
    let found = load(vec![named.clone()]).unwrap();
    assert_eq!(found[0].tls.names, ["*.example.com", "192.0.2.1"]);
    let missing = format!("{}=/nowhere.key", dir.path().join("named.crt").display());
    for (text, part) in [
        (address, "address.crt covers no name"),
        (missing, "cannot read /nowhere.key"),
    ] {
        let failure = load(vec![named.clone(), text]).unwrap_err();
        assert_eq!(failure.code(), exit::CONFIG);
        let text = failure.to_string();
        assert!(
            text.starts_with("tls.certificates: ") && text.contains(part),
            "{text}"
        );
    }
}

#[test]
fn rsa_is_taken_with_what_it_costs() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let params = CertificateParams::new(vec!["gateway.example".to_owned()]).unwrap();
    let cert = params.self_signed(&rsa).unwrap().pem();
    let identity = given(&cert, &rsa.serialize_pem()).unwrap();
    let measured = capacity::measured().unwrap();
    let text = identity.warnings.join("\n");
    for figure in [Figure::ReadRsa, Figure::ReadEcdsa] {
        let rate = 1e6 / measured.value(figure).unwrap();
        assert!(text.contains(&format!("{rate:.0}")), "{text}");
    }
    assert!(text.contains("cert.pem has an RSA key: "), "{text}");
}
