use super::*;
use crate::config::Server;

#[test]
fn defaults_are_valid() {
    assert_eq!(Config::default().validate(), []);
}

#[test]
fn addresses_must_fit_together() {
    let problem = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        let problems = config.validate();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].0.clone()
    };
    let text = problem(|config| {
        config.server.address = vec!["[::]:1".into(), "0.0.0.0:1".into(), "127.0.0.1:1".into()];
    });
    assert!(
        text.contains("0.0.0.0:1 serves 127.0.0.1:1 already"),
        "{text}"
    );
    let text = problem(|config| {
        config.addresses.claim.interface = "eth0".into();
        config.addresses.claim.addresses = vec!["192.0.2.1/24".into()];
    });
    assert!(
        text.contains("192.0.2.1 is claimed but not served"),
        "{text}"
    );
    let text = problem(|config| {
        config.server.address = vec!["192.0.2.1:1".into()];
        config.addresses.claim.addresses = vec!["192.0.2.1/24".into()];
    });
    assert!(text.contains("addresses.claim.interface"), "{text}");
    let text = problem(|config| config.addresses.dns.name = "fleet.example.com".into());
    assert!(text.contains("addresses.dns.name"), "{text}");
    let text = problem(|config| config.server.address = vec!["10.0.0.0/19:8080".into()]);
    assert!(text.contains("more than 1024"), "{text}");
}

#[test]
fn what_balancers_may_say_is_checked() {
    let problems = |change: fn(&mut Server)| {
        let mut config = Config::default();
        change(&mut config.server);
        let problems = config.validate();
        problems.iter().map(ToString::to_string).collect::<String>()
    };
    let networks = |server: &mut Server| {
        server.proxy_protocol_networks = vec!["10.0.0.0/8".into()];
    };
    assert_eq!(problems(networks), "");
    let texts = [
        problems(|server| server.proxy_protocol = vec!["all".into()]),
        problems(|server| {
            server.proxy_protocol = vec!["192.0.2.1:8080".into()];
            server.proxy_protocol_networks = vec!["10.0.0.0/8".into()];
        }),
        problems(|server| server.proxy_protocol_networks = vec!["lb".into()]),
        problems(|server| server.trusted_proxies = "0".into()),
        problems(|server| server.keepalive_idle = std::time::Duration::ZERO),
    ];
    for (text, expected) in texts.iter().zip([
        "server.proxy_protocol_networks: list the balancers' networks",
        "server.proxy_protocol: 192.0.2.1:8080 is not in server.address",
        "server.proxy_protocol_networks: \"lb\" is not a network",
        "server.trusted_proxies: \"0\" is neither",
        "server.keepalive_idle: must be",
    ]) {
        assert!(text.starts_with(expected), "{text}");
    }
    // Whoever may be a proxy cannot be known by a certificate.
    for (trusted_proxies, is_good) in [
        ("", true),
        ("10.0.0.0/8", true),
        ("1", false),
        ("True-Client-IP", false),
    ] {
        let mut config = Config::default();
        config.server.client_ca = "ca.pem".into();
        config.server.trusted_proxies = trusted_proxies.into();
        let problems = config.validate();
        assert_eq!(problems.is_empty(), is_good, "{problems:?}");
        let is_named = |problem: &Problem| problem.0.starts_with("server.client_ca: ");
        assert!(problems.iter().all(is_named), "{problems:?}");
    }
    // A wrong address is told of once.
    let twice = problems(|server| {
        server.address = vec!["nonsense".into()];
        server.proxy_protocol = vec!["nonsense".into()];
        server.proxy_protocol_networks = vec!["::1".into()];
    });
    assert_eq!(twice.matches("nonsense").count(), 1, "{twice}");
}

#[test]
fn what_spreads_is_checked() {
    let mut config = Config::default();
    config.server.address = vec!["192.0.2.1:8080".into()];
    config.addresses.dns.name = "fleet.example.com.".into();
    config.addresses.dns.nameservers = vec!["gw1.example.com".into()];
    config.addresses.dns.listen = vec!["192.0.2.1:53".into(), "[2001:db8::1]:53".into()];
    config.addresses.agent_check.listen = "[::]:9707".into();
    assert_eq!(config.validate(), []);
    let too_long = vec!["a".repeat(63); 4].join(".");
    for name in [
        "fleet..example",
        ".",
        "-a.example",
        "a b",
        "ü.example",
        &too_long,
    ] {
        config.addresses.dns.name = name.into();
        let problems = config.validate();
        assert_eq!(problems.len(), 1, "{name}");
        assert!(problems[0].0.contains("addresses.dns.name"), "{name}");
    }
    config.addresses.dns.name = "fleet.example.com".into();
    for name in ["gw1.Fleet.example.com.", "fleet.example.com"] {
        config.addresses.dns.nameservers = vec![name.into()];
        assert_eq!(config.validate().len(), 1, "{name}");
    }
    config.addresses.dns.name = "a b".into();
    config.addresses.dns.nameservers = vec!["https://gw1".into()];
    config.addresses.dns.listen = vec!["192.0.2.1".into()];
    config.addresses.dns.ttl = std::time::Duration::ZERO;
    config.addresses.agent_check.listen = "9707".into();
    assert_eq!(config.validate().len(), 5);
}

#[test]
fn further_certificates_are_pairs() {
    let problems = |certificates: &[&str]| {
        let mut config = Config::default();
        config.tls.certificates = certificates.iter().map(ToString::to_string).collect();
        config.validate()
    };
    assert_eq!(problems(&["a.pem=b.pem", "c=d=e"]), []);
    for text in ["a.pem", "=b.pem", "a.pem="] {
        let problems = problems(&["a=b", text]);
        assert_eq!(problems.len(), 1, "{text}");
        assert!(problems[0].0.starts_with("tls.certificates: "), "{text}");
    }
}

#[test]
fn a_cap_needs_its_deadline() {
    let second = std::time::Duration::from_secs(1);
    let zero = std::time::Duration::ZERO;
    for (deadlines, expected) in [
        ([second, second, second], None),
        (
            [zero, second, second],
            Some("limits.handshake_deadline: must not be 0s"),
        ),
        (
            [second, zero, second],
            Some("limits.head_deadline: must not be 0s"),
        ),
        (
            [second, second, zero],
            Some("limits.queue_age_max: must not be 0s"),
        ),
        (
            [11 * second, second, second],
            Some("limits.handshake_deadline: must be 50ms to 10s"),
        ),
        (
            [second, second / 100, second],
            Some("limits.head_deadline: must be 50ms to 5s"),
        ),
    ] {
        let mut config = Config::default();
        let limits = &mut config.limits;
        [
            limits.handshake_deadline,
            limits.head_deadline,
            limits.queue_age_max,
        ] = deadlines;
        let problems = config.validate();
        assert_eq!(
            problems.len(),
            usize::from(expected.is_some()),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .all(|of| of.0.starts_with(expected.unwrap_or_default()))
        );
    }
    let mut config = Config::default();
    config.limits.handshakes_per_worker_max = 15_001;
    assert_eq!(config.validate().len(), 1);
    config.limits.queue_age_lasting = second / 1000;
    assert_eq!(config.validate().len(), 2);
    config.limits.queue_age_lasting = 2 * second;
    config.limits.queue_age_max = second;
    assert_eq!(config.validate().len(), 2);
    config.limits.queue_burst_max = 11 * second;
    assert_eq!(config.validate().len(), 3);
}

#[test]
fn every_problem_is_reported() {
    let mut config = Config::default();
    config.server.address = vec!["nonsense".into()];
    config.server.cert = "cert.pem".into();
    config.osquery.node_key_size = 0;
    config.osquery.result_log_plugin = "kinesis".into();
    config.osquery.distributed_hold = std::time::Duration::from_secs(13);
    config.osquery.live_query_rest_period = std::time::Duration::from_secs(241);
    assert_eq!(config.validate().len(), 6);
}
