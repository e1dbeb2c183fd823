use fleet_sysctl::finding::Reading;
use fleet_sysctl::size::Size;

use super::*;

fn needs() -> Needs {
    Needs {
        workers: 2,
        addresses: 1,
        connections_per_worker: 15_000,
        backlog: 4096,
        ports: vec![8080],
        outgoing: 300,
    }
}

fn plenty() -> Has {
    Has {
        open_files: 1 << 20,
        somaxconn: Some(4096),
        tcp_bytes: Some(1 << 30),
        memory_bytes: 4 << 30,
        ports: Some((32_768, 60_999)),
        reserved: String::new(),
    }
}

#[test]
fn enough_is_silent() {
    assert_eq!(needs().warnings(&plenty(), 15_000), Vec::<String>::new());
    // What the machine does not say is no reason to warn.
    let silent = Has {
        open_files: 1 << 20,
        ..Has::default()
    };
    assert_eq!(needs().warnings(&silent, 15_000), Vec::<String>::new());
}

#[test]
fn each_want_is_named() {
    let has = Has {
        open_files: 1024,
        somaxconn: Some(128),
        tcp_bytes: Some(1 << 20),
        memory_bytes: 1 << 20,
        ports: Some((8000, 8100)),
        reserved: "9000-9100".into(),
    };
    let warnings = needs().warnings(&has, 700);
    for part in [
        "lowered from 15000 to 700",
        "net.core.somaxconn makes it 128",
        "net.ipv4.tcp_mem gives all TCP sockets 1 MiB",
        "of memory",
        "leaves 101 ports",
        "port 8080 of server.address",
    ] {
        assert!(
            warnings.iter().any(|warning| warning.contains(part)),
            "{part} not in {warnings:?}"
        );
    }
    assert_eq!(warnings.len(), 6);
}

#[test]
fn reserved_ports_are_safe_and_many_are_not_listed() {
    let mut needs = needs();
    needs.ports = (40_000..40_100).collect();
    let warnings = needs.warnings(&plenty(), 15_000);
    assert!(
        warnings[0].contains("port 40000, 40001, 40002, 40003 and 96 more"),
        "{warnings:?}"
    );
    let reserved = Has {
        reserved: "1,40000-40099\n".into(),
        ..plenty()
    };
    assert_eq!(needs.warnings(&reserved, 15_000), Vec::<String>::new());
    assert!(!is_reserved("", 1) && !is_reserved("x-y,5-", 5) && is_reserved("7", 7));
}

#[test]
fn ports_that_the_kernel_chooses_are_no_concern() {
    let mut config = Config::default();
    config.server.address = vec!["127.0.0.1:0".into(), "127.0.0.1-127.0.0.2:443".into()];
    config.workers.count = 3;
    let needs = Needs::of(&config);
    assert_eq!(
        (needs.ports.as_slice(), needs.addresses),
        ([443].as_slice(), 3)
    );
    assert_eq!(needs.workers, 3);
}

#[test]
fn the_line_about_the_table_ends_with_the_command() {
    let size = Size {
        hosts: 7,
        cores: 1,
        memory_bytes: 1 << 30,
        page_bytes: 4096,
        connections: 7,
        listeners: 1,
    };
    let judge = |now: &str| {
        let setting = settings::find(SOMAXCONN).unwrap();
        Finding::judge(setting, &size, Reading::Text(now.into()))
    };
    assert_eq!(advice(&[judge("4096")], 7, ""), None);
    let text = advice(&[judge("128"), judge("4096")], 7, " --config /a.yml").unwrap();
    assert!(
        text.starts_with("1 of 2 kernel settings is not as 7 hosts"),
        "{text}"
    );
    assert!(
        text.ends_with("fleet-supervisor tune --apply --config /a.yml"),
        "{text}"
    );
}

#[test]
fn a_limit_that_holds_no_listeners_cannot_work() {
    assert_eq!(descriptors::least(2, 1), 2 + 12 + 64);
    assert_eq!(descriptors::least(1, 1000), 1000 + 8 + 64);
}
