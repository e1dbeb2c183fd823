//! Spellings that scripts use.

use super::*;

fn parsed(line: &str) -> Invocation {
    parse(line.split(' ').map(OsString::from)).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn flags(line: &str) -> Vec<(String, String)> {
    let flags = parsed(line).sources.flags;
    flags
        .into_iter()
        .map(|(key, text)| (key.dotted(), text))
        .collect()
}

fn pair(key: &str, text: &str) -> (String, String) {
    (key.to_owned(), text.to_owned())
}

#[test]
fn clap_finds_no_fault() {
    with_options(CommandLine::command()).debug_assert();
    client().debug_assert();
}

#[test]
fn options_are_taken_in_every_spelling_and_place() {
    for line in [
        "fleet-supervisor start --server_address=1.2.3.4:5",
        "fleet-supervisor start --server-address 1.2.3.4:5",
        "fleet-supervisor --server_address 1.2.3.4:5 start",
        "fleet-supervisor status --server-address=1.2.3.4:5",
        "fleet-supervisor config check --server_address=1.2.3.4:5",
        "fleet-supervisor --server_address=0.0.0.0:1 start --server_address=1.2.3.4:5",
    ] {
        assert_eq!(flags(line), [pair("server.address", "1.2.3.4:5")], "{line}");
    }
    assert_eq!(
        flags("x start --server_tls=false --logging_debug --workers-count 3"),
        [
            pair("server.tls", "false"),
            pair("workers.count", "3"),
            pair("logging.debug", "true")
        ]
    );
}

#[test]
fn prepare_takes_both_orders() {
    for line in [
        "x prepare db --no-prompt",
        "x prepare --no-prompt=true db",
        "x prepare --no-prompt db",
    ] {
        let command = parsed(line).command;
        assert!(
            matches!(
                command,
                Command::Prepare {
                    no_prompt: true,
                    ..
                }
            ),
            "{line}"
        );
    }
    let command = parsed("x prepare db").command;
    assert!(matches!(
        command,
        Command::Prepare {
            no_prompt: false,
            ..
        }
    ));
}

#[test]
fn fleets_flags_are_noted_and_unknown_ones_refused() {
    let sources = parsed("x start --mysql_max_idle_conns=5").sources;
    assert_eq!(sources.ignored_flags, ["mysql_max_idle_conns"]);
    assert!(parse(["x", "start", "--server_adress=x"].map(OsString::from)).is_err());
}

#[test]
fn children_are_hidden_but_known() {
    assert!(matches!(
        parsed("x worker --slot 3").command,
        Command::Worker { slot: 3 }
    ));
    assert!(matches!(parsed("x control").command, Command::Control));
    let help = parse(["x", "--help"].map(OsString::from))
        .unwrap_err()
        .to_string();
    assert!(
        !help.contains("control process") && !help.contains("server_address"),
        "{help}"
    );
}

#[test]
fn only_start_lists_the_options() {
    let help = |line: &str| {
        let error = parse(line.split(' ').map(OsString::from)).unwrap_err();
        error.to_string()
    };
    let start = help("x start --help");
    for part in [
        "Options in section server:",
        "--server_address <LIST>",
        "FLEET_SERVER_ADDRESS]",
        "Options in section prometheus.basic_auth:",
    ] {
        assert!(start.contains(part), "{part} not in:\n{start}");
    }
    assert!(!start.contains("hunter") && !start.contains("max_idle_conns"));
    assert!(!help("x status --help").contains("server_address"));
}
