use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use super::*;
use crate::exit;

/// Where nobody is heard without a certificate.
fn certified() -> Config {
    let mut config = Config::default();
    config.server.client_ca = "ca.pem".into();
    config
}

fn common(gateways: &[&str]) -> Common {
    Common {
        listen: ":443".into(),
        gateway: gateways.iter().map(|text| (*text).to_owned()).collect(),
        connections: Some(1000),
        output: None,
    }
}

fn layout_of(common: &Common, config: &Config) -> Result<Layout, Failure> {
    // Nothing runs on it.
    let state = tempfile::tempdir().unwrap();
    layout(common, config, state.path())
}

fn haproxy_text(layout: &Layout) -> String {
    let extras = haproxy::Extras {
        stats_socket: Path::new("/run/haproxy/admin.sock"),
        ca_file: None,
    };
    haproxy::render(layout, &extras).unwrap()
}

fn line_of<'a>(text: &'a str, beginning: &str) -> &'a str {
    let mut lines = text.lines().map(str::trim);
    let found = lines.find(|line| line.starts_with(beginning));
    found.unwrap_or_else(|| panic!("no {beginning} in\n{text}"))
}

#[test]
fn each_gateway_is_a_server_as_it_wants() {
    let common = common(&[
        "192.0.2.1:8080,agent=192.0.2.1:9707",
        "192.0.2.2:8080,proxy,agent=198.51.100.2:9000",
        "[2001:db8::1]:8080",
    ]);
    let layout = layout_of(&common, &Config::default()).unwrap();
    assert_eq!(layout.connections_max, 3000);
    let text = haproxy_text(&layout);
    assert_eq!(
        line_of(&text, "server gateway1"),
        "server gateway1 192.0.2.1:8080 maxconn 1000 agent-check agent-inter 1s agent-port 9707"
    );
    assert_eq!(
        line_of(&text, "server gateway2"),
        "server gateway2 192.0.2.2:8080 maxconn 1000 send-proxy-v2 check-send-proxy agent-check agent-inter 1s \
         agent-addr 198.51.100.2 agent-port 9000"
    );
    assert_eq!(
        line_of(&text, "server gateway3"),
        "server gateway3 [2001:db8::1]:8080 maxconn 1000"
    );
    assert_eq!(line_of(&text, "bind"), "bind :443");
    assert!(line_of(&text, "default-server").contains("check check-ssl verify none"));
    // nginx has no version 2 of the PROXY protocol.
    let failure = nginx::render(&layout).unwrap_err();
    assert_eq!(failure.code(), exit::CONFIG);
    assert!(failure.to_string().contains("192.0.2.2:8080"), "{failure}");
}

#[test]
fn a_check_that_would_need_a_certificate_only_connects() {
    let common = common(&["192.0.2.1:8080,agent=192.0.2.1:9707"]);
    let mut config = certified();
    let text = haproxy_text(&layout_of(&common, &config).unwrap());
    assert!(line_of(&text, "default-server").starts_with("default-server check inter 2s "));
    for part in ["check-ssl", "httpchk", "http-check"] {
        assert!(!text.contains(part), "{part} in\n{text}");
    }
    assert!(text.contains("    # Gateways want a certificate"));
    assert!(line_of(&text, "server gateway1").contains(" agent-check "));
    let extras = haproxy::Extras {
        stats_socket: Path::new("/run/haproxy/admin.sock"),
        ca_file: Some(Path::new("/etc/ca.pem")),
    };
    let layout = layout_of(&common, &config).unwrap();
    let failure = haproxy::render(&layout, &extras).unwrap_err();
    assert_eq!(failure.code(), exit::USAGE);
    assert!(failure.to_string().contains("--ca-file"), "{failure}");
    config.server.client_auth = ClientAuth::Accept;
    let text = haproxy_text(&layout_of(&common, &config).unwrap());
    assert!(line_of(&text, "default-server").contains("check check-ssl verify none"));
    assert!(text.contains("option httpchk"));
}

#[test]
fn without_a_running_server_the_configuration_tells() {
    let mut config = Config::default();
    config.server.address = vec!["192.0.2.10-192.0.2.12:8080".into()];
    config.server.proxy_protocol = vec!["192.0.2.11:8080".into()];
    config.server.connections_per_worker_max = 100;
    config.server.tls = false;
    config.server.url_prefix = "/fleet".into();
    config.workers.count = 4;
    config.addresses.agent_check.listen = "0.0.0.0:9707".into();
    let layout = layout_of(&common(&[]), &config).unwrap();
    let text = haproxy_text(&layout);
    assert_eq!(
        line_of(&text, "server gateway2"),
        "server gateway2 192.0.2.11:8080 maxconn 134 send-proxy-v2 check-send-proxy agent-check agent-inter 1s \
         agent-port 9707"
    );
    assert_eq!(text.matches("send-proxy-v2").count(), 1);
    assert!(!text.contains("check-ssl"));
    assert!(text.contains("uri /fleet/healthz"));
    config.server.proxy_protocol = vec!["all".into()];
    let layout = layout_of(&common(&[]), &config).unwrap();
    assert_eq!(haproxy_text(&layout).matches("send-proxy-v2").count(), 3);
    // No more than the hosts can open.
    config.tune.hosts = 50;
    assert_eq!(
        layout_of(&common(&[]), &config).unwrap().connections_max,
        200
    );
    // What the server itself refuses is not rendered either.
    config.server.proxy_protocol = vec!["192.0.2.99:8080".into()];
    let failure = layout_of(&common(&[]), &config).unwrap_err();
    assert_eq!(failure.code(), exit::CONFIG);
    assert!(
        failure.to_string().contains("server.proxy_protocol"),
        "{failure}"
    );
    config.server.proxy_protocol.clear();
    // Ports of the balancer are the bound.
    config.tune.hosts = 0;
    config.server.connections_per_worker_max = 1_000_000;
    let layout = layout_of(&common(&[]), &config).unwrap();
    assert_eq!(layout.connections_max, 3 * CONNECTIONS_PER_ADDRESS_MAX);
}

#[test]
fn workers_are_counted_as_the_server_counts_them() {
    let mut config = Config::default();
    config.server.connections_per_worker_max = 3;
    let mut common = common(&["192.0.2.1:8080"]);
    common.connections = None;
    for count in [0, 7] {
        config.workers.count = count;
        let held = 3 * u64::from(crate::sizing::workers(&config));
        let layout = layout_of(&common, &config).unwrap();
        assert_eq!(layout.servers[0].connections_max, held);
    }
}

#[test]
fn a_wildcard_becomes_an_address_to_connect_to() {
    let layout = layout_of(&common(&[]), &Config::default()).unwrap();
    let [server] = layout.servers.as_slice() else {
        panic!("{layout:?}");
    };
    assert!(!server.address.ip().is_unspecified());
}

#[test]
fn nonsense_is_said_with_the_right_code() {
    let config = Config::default();
    for text in [
        "",
        "gw1:8080",
        "192.0.2.1",
        "192.0.2.1:0",
        "0.0.0.0:8080",
        "192.0.2.1:8080,agent",
        "192.0.2.1:8080,agent=9707",
        "192.0.2.1:8080,prox",
    ] {
        let failure = layout_of(&common(&[text]), &config).unwrap_err();
        assert_eq!(failure.code(), exit::USAGE, "{text}");
        assert!(failure.to_string().contains("--gateway"), "{failure}");
    }
    for listen in [
        "443",
        "",
        ":",
        ":0",
        ":70000",
        "192.0.2.1",
        "192.0.2.1:0",
        "x:1",
    ] {
        let mut common = common(&["192.0.2.1:8080"]);
        common.listen = listen.into();
        let failure = layout_of(&common, &config).unwrap_err();
        assert_eq!(failure.code(), exit::USAGE, "{listen}");
    }
    let mut own_address = common(&["127.0.0.1:8080"]);
    for listen in [":8080", "127.0.0.1:8080"] {
        own_address.listen = listen.into();
        let failure = layout_of(&own_address, &config).unwrap_err();
        assert_eq!(failure.code(), exit::CONFIG, "{listen}");
    }
    let mut floating = config;
    floating.server.address = vec!["127.0.0.1:0".into()];
    let failure = layout_of(&common(&[]), &floating).unwrap_err();
    assert!(failure.to_string().contains("start it"), "{failure}");
    let extras = haproxy::Extras {
        stats_socket: Path::new("/run/a b\nglobal"),
        ca_file: None,
    };
    let layout = layout_of(&common(&["192.0.2.1:8080"]), &Config::default()).unwrap();
    assert_eq!(
        haproxy::render(&layout, &extras).unwrap_err().code(),
        exit::USAGE
    );
}

#[test]
fn the_balancer_may_listen_anywhere() {
    for (listen, bind, nginx_listen) in [
        (":443", "bind :443", "listen 443;"),
        (
            "192.0.2.9:443",
            "bind 192.0.2.9:443",
            "listen 192.0.2.9:443;",
        ),
        (
            "[::]:443",
            "bind :::443 v4v6",
            "listen [::]:443 ipv6only=off;",
        ),
        ("[::1]:443", "bind [::1]:443", "listen [::1]:443;"),
    ] {
        let mut common = common(&["192.0.2.1:8080"]);
        common.listen = listen.into();
        let layout = layout_of(&common, &Config::default()).unwrap();
        assert_eq!(line_of(&haproxy_text(&layout), "bind"), bind);
        assert_eq!(
            line_of(&nginx::render(&layout).unwrap(), "listen"),
            nginx_listen
        );
    }
}

#[test]
fn an_output_file_is_written_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("haproxy.cfg");
    deliver("first\n", Some(&path)).unwrap();
    deliver("second\n", Some(&path)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "second\n");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    // A link that lies in wait is not followed, at its place nor beside it.
    let target = directory.path().join("target");
    fs::write(&target, "untouched").unwrap();
    fs::remove_file(&path).unwrap();
    for trap in ["haproxy.cfg", "haproxy.cfg.new"] {
        symlink(&target, directory.path().join(trap)).unwrap();
    }
    deliver("third\n", Some(&path)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "third\n");
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    let nowhere = directory.path().join("none/haproxy.cfg");
    assert_eq!(deliver("", Some(&nowhere)).unwrap_err().code(), exit::FATAL);
}

/// Needs the package, as the end-to-end tests do.
#[test]
fn haproxy_and_nginx_take_what_is_rendered() {
    let directory = tempfile::tempdir().unwrap();
    let of = |gateways: &[&str]| layout_of(&common(gateways), &Config::default()).unwrap();
    let gateways = [
        "192.0.2.1:8080,agent=192.0.2.1:9707",
        "192.0.2.2:8080,proxy,agent=198.51.100.2:9000",
        "[2001:db8::1]:8080,agent=[2001:db8::2]:9707",
    ];
    let all = [
        of(&gateways),
        layout_of(&common(&gateways), &certified()).unwrap(),
    ];
    let accepts = |program: &str, arguments: &[&str], text: &str| {
        let path = directory.path().join(program);
        fs::write(&path, text).unwrap();
        let output = Command::new(program)
            .args(arguments)
            .arg(&path)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}\n{text}");
        said
    };
    for layout in &all {
        let said = accepts("haproxy", &["-c", "-f"], &haproxy_text(layout));
        assert!(!said.contains("WARNING"), "{said}");
    }
    let plain = of(&["192.0.2.1:8080", "[2001:db8::1]:8080"]);
    // A test of nginx's writes its pid file, too.
    let pid = format!("pid {}/nginx.pid;", directory.path().display());
    let text = nginx::render(&plain)
        .unwrap()
        .replace("pid /run/nginx.pid;", &pid);
    accepts("nginx", &["-t", "-c"], &text);
}

#[test]
fn installing_checks_first_and_keeps_the_former_file() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("etc/haproxy/haproxy.cfg");
    let former = root.path().join("etc/haproxy/haproxy.cfg.former");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let layout = layout_of(&common(&["192.0.2.1:8080"]), &Config::default()).unwrap();
    let text = haproxy_text(&layout);
    let failure = install::install("nonsense\n", root.path()).unwrap_err();
    assert_eq!(failure.code(), exit::CONFIG);
    assert!(failure.to_string().contains("nonsense"), "{failure}");
    assert!(!file.exists());
    install::install(&text, root.path()).unwrap();
    assert_eq!(read(&file), text);
    assert!(!former.exists());
    fs::write(&file, "# somebody's own\n").unwrap();
    let failure = install::install("nonsense\n", root.path()).unwrap_err();
    assert_eq!(failure.code(), exit::CONFIG);
    assert_eq!(read(&file), "# somebody's own\n");
    let other = text.replace("192.0.2.1", "192.0.2.2");
    // The second time there is nothing to do; the third time it is a rendering of ours that goes. What is kept stays.
    for text in [&text, &text, &other] {
        install::install(text, root.path()).unwrap();
        assert_eq!(read(&file), *text);
        assert_eq!(read(&former), "# somebody's own\n");
    }
    let names = fs::read_dir(file.parent().unwrap()).unwrap();
    assert_eq!(names.count(), 2);
    // Somebody's again, so it is the one to keep.
    fs::write(&file, "# somebody's next\n").unwrap();
    install::install(&text, root.path()).unwrap();
    assert_eq!(read(&former), "# somebody's next\n");
    // With nothing kept, even ours is worth it.
    fs::remove_file(&former).unwrap();
    install::install(&other, root.path()).unwrap();
    assert_eq!(read(&former), text);
}

#[test]
fn what_is_kept_is_the_same_file_and_no_link_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("etc/haproxy");
    fs::create_dir_all(&directory).unwrap();
    let (file, former) = (
        directory.join("haproxy.cfg"),
        directory.join("haproxy.cfg.former"),
    );
    let secret = "listen stats\n    stats auth admin:secret\n";
    fs::write(&file, secret).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::metadata(&file).unwrap();
    let target = root.path().join("target");
    fs::write(&target, "untouched").unwrap();
    let ours = format!("haproxy.cfg.former.{}.new", std::process::id());
    for trap in ["haproxy.cfg.new", "haproxy.cfg.former", &ours] {
        symlink(&target, directory.join(trap)).unwrap();
    }
    let layout = layout_of(&common(&["192.0.2.1:8080"]), &Config::default()).unwrap();
    let text = haproxy_text(&layout);
    install::install(&text, root.path()).unwrap();
    let kept = fs::symlink_metadata(&former).unwrap();
    assert_eq!((kept.ino(), kept.mode()), (before.ino(), before.mode()));
    assert_eq!(fs::read_to_string(&former).unwrap(), secret);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
    // A run that ended between keeping and replacing left two names of one file.
    fs::remove_file(&file).unwrap();
    fs::hard_link(&former, &file).unwrap();
    install::install(&text, root.path()).unwrap();
    assert_eq!(fs::read_to_string(&former).unwrap(), secret);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
}
