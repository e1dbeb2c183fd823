//! Precedence, and what each kind of mistake is answered with.

use std::collections::HashMap;
use std::io::Write as _;

use fleet_protocol::secret::Secret;

use super::*;
use crate::exit;

fn key(dotted: &str) -> Key {
    let mut keys = Config::keys().into_iter();
    keys.find(|key| key.dotted() == dotted).unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn settings(
    yaml: &str,
    variables: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Settings, Failure> {
    let file = file(yaml);
    let sources = Sources {
        file: Some(file.path().to_owned()),
        flags: flags
            .iter()
            .map(|(name, text)| (key(name), (*text).to_owned()))
            .collect(),
        ignored_flags: Vec::new(),
    };
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let names: Vec<String> = variables.keys().map(|name| (*name).to_owned()).collect();
    read(
        &sources,
        &|name| variables.get(name).map(OsString::from),
        &names,
    )
}

#[test]
fn flag_over_variable_over_file_over_default() {
    let yaml = "osquery: {node_key_size: 31, max_jitter_percent: 31}\nserver: {backlog: 31}\n";
    let variables = [
        ("FLEET_OSQUERY_NODE_KEY_SIZE", "32"),
        ("FLEET_OSQUERY_MAX_JITTER_PERCENT", "32"),
        ("FLEET_REDIS_ADDRESS", ""),
    ];
    let flags = [("osquery.node_key_size", "33")];
    let config = settings(yaml, &variables, &flags).unwrap().config;
    assert_eq!(config.osquery.node_key_size, 33);
    assert_eq!(config.osquery.max_jitter_percent, 32);
    assert_eq!(config.server.backlog, 31);
    assert_eq!(config.carver, Config::default().carver);
}

#[test]
fn an_address_may_lack_its_host() {
    let config = settings("server: {address: ':8080, [::1]:2'}", &[], &[]);
    assert_eq!(
        config.unwrap().config.server.address,
        ["0.0.0.0:8080", "[::1]:2"]
    );
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let failure = settings(
        "server: {adress: x, backlog: many}\n",
        &[("FLEET_SERVER_TLS", "maybe")],
        &[
            ("osquery.host_identifier", "mac"),
            ("mysql.password_path", "/nonexistent"),
            ("osquery.seen_interval", "soon"),
        ],
    )
    .unwrap_err();
    assert_eq!(failure.code(), exit::CONFIG);
    let text = failure.to_string();
    for part in [
        "server.adress is not an option; did you mean server.address?",
        "server.backlog: not a whole number",
        "FLEET_SERVER_TLS: not true or false",
        "--osquery_host_identifier: unknown variant `mac`",
        "mysql.password_path: cannot read /nonexistent: No such file",
        "--osquery_seen_interval: \"soon\" is not a duration",
    ] {
        assert!(text.contains(part), "{part:?} not in:\n{text}");
    }
}

#[test]
fn fleets_options_and_near_misses_are_warnings() {
    let warnings = settings(
        "vulnerabilities: {databases_path: /x}\n",
        &[
            ("FLEET_MYSQL_MAX_IDLE_CONNS", "1"),
            ("FLEET_MYSQL_ADRESS", "x"),
            ("FLEET_PORT_8080_TCP", "x"),
        ],
        &[],
    )
    .unwrap()
    .warnings
    .join("\n");
    for part in [
        "vulnerabilities is",
        "mysql.max_idle_conns",
        "FLEET_MYSQL_ADDRESS?",
    ] {
        assert!(warnings.contains(part), "{part:?} not in:\n{warnings}");
    }
    assert!(!warnings.contains("8080"), "{warnings}");
}

#[test]
fn fleets_variable_for_the_rest_period_is_taken_and_ours_wins() {
    let period = |variables: &[(&str, &str)]| {
        let taken = settings("", variables, &[]).unwrap();
        assert_eq!(taken.warnings, [""; 0]);
        taken.config.osquery.live_query_rest_period.as_secs()
    };
    let fleets = ("FLEET_LIVE_QUERY_REST_PERIOD", "90s");
    assert_eq!(period(&[fleets]), 90);
    let ours = ("FLEET_OSQUERY_LIVE_QUERY_REST_PERIOD", "40s");
    assert_eq!(period(&[fleets, ours]), 40);
}

#[test]
fn a_dump_is_taken_back() {
    let mut config = Config::default();
    config.server.address = vec!["127.0.0.1:1".into(), "[::1]:2".into()];
    config.osquery.host_identifier = fleet_protocol::config::HostIdentifier::Instance;
    config.state.dir = "/a \"b\" # c".into();
    config.prometheus.basic_auth.disable = true;
    let again = settings(&dump(&config), &[], &[]).unwrap();
    assert_eq!((again.config, again.warnings), (config.clone(), vec![]));

    config.mysql.password = Secret::new("hunter2");
    let text = dump(&config);
    assert!(!text.contains("hunter2") && text.contains(MASK), "{text}");
    let again = settings(&text, &[], &[]).unwrap();
    assert!(again.config.mysql.password.is_empty());
    assert_eq!(again.warnings.len(), 1);
}

#[test]
fn a_missing_file_is_a_configuration_failure() {
    let sources = Sources {
        file: Some("/nonexistent.yml".into()),
        ..Sources::default()
    };
    let failure = read(&sources, &|_| None, &[]).unwrap_err();
    assert_eq!(failure.code(), exit::CONFIG);
    assert!(
        failure.to_string().contains("/nonexistent.yml"),
        "{failure}"
    );
}

#[test]
fn the_example_in_deploy_is_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.example.yml");
    let text = std::fs::read_to_string(path).unwrap();
    let contents = config_file::parse(&text).unwrap();
    assert_eq!((contents.ignored, contents.unknown), (vec![], vec![]));
    // The values that stand in comments must be good, too.
    let is_option = |line: &&str| {
        let word = line.trim_start().split(' ').next().unwrap_or_default();
        word.strip_suffix(':')
            .is_some_and(|word| !word.contains(|c: char| !c.is_ascii_lowercase() && c != '_'))
    };
    let uncommented: String = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(is_option)
                .unwrap_or(line)
                .to_owned()
                + "\n"
        })
        .collect();
    assert!(uncommented.contains("\nmysql:\n"), "{uncommented}");
    let contents = config_file::parse(&uncommented).unwrap();
    assert_eq!((contents.ignored, contents.unknown), (vec![], vec![]));
}
