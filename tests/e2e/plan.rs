//! `plan`, and the `calibrate` run that measures what it counts with.

use std::fs;
use std::process::{Command, Output};

use fleet_protocol::measured::{Figure, Measured};
use fleet_tests::gateway::texts;
use fleet_tests::process::{binary, run};

fn plan(args: &[&str]) -> Output {
    run(Command::new(binary("fleet-supervisor"))
        .arg("plan")
        .args(args))
}

/// What a failed call says, which must be short, and its exit code.
fn refusal(args: &[&str]) -> (i32, String) {
    let output = plan(args);
    let (out, error) = texts(&output);
    assert_eq!(out, "", "{args:?}");
    assert!(error.lines().count() <= 6, "not short:\n{error}");
    (output.status.code().unwrap(), error)
}

#[test]
fn a_plan_fits_a_page_and_its_configuration_is_good() {
    let output = plan(&["--hosts", "300000"]);
    let (page, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    assert!(page.lines().count() <= 60, "{page}");
    assert!(
        page.lines().all(|line| line.chars().count() <= 100),
        "{page}"
    );
    for text in ["5,000/s", "30,000/s", "cores to have", "FROM"] {
        assert!(page.contains(text), "{text} is not in:\n{page}");
    }
    let (_, config) = page.split_once("# Configuration").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yml");
    fs::write(&file, format!("# {config}")).unwrap();
    let check = run(Command::new(binary("fleet-supervisor"))
        .args(["config", "check", "--config"])
        .arg(&file));
    let (_, error) = texts(&check);
    assert!(check.status.success(), "{error}");
}

#[test]
fn the_table_stands_beside_fleets_sizes() {
    let output = plan(&["--table"]);
    let (table, error) = texts(&output);
    assert!(output.status.success(), "{error}");
    assert!(table.contains("300,000") && table.contains("none published"));
}

#[test]
fn what_cannot_be_planned_is_a_usage_error() {
    for (args, word) in [
        (&["--hosts", "0"][..], "100000000"),
        (&["--hosts", "100000001"], "100000000"),
        (&["--hosts", "many"], "--hosts"),
        (&[], "--hosts"),
        (
            &["--hosts", "9", "--interval-profile", "custom"],
            "--config-interval",
        ),
        (&["--hosts", "9", "--cert", "dsa"], "ecdsa"),
    ] {
        let (code, error) = refusal(args);
        assert_eq!(code, 64, "{args:?}: {error}");
        assert!(error.contains(word), "{args:?}: {error}");
    }
}

#[test]
fn calibrate_measures_a_server_that_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("measured.json");
    let output = run(Command::new(binary("fleet-loadtest"))
        .args(["calibrate", "--seconds", "1", "--connections", "2"])
        .args(["--hosts", "20", "--idle-connections", "20"])
        .arg("--server-binary")
        .arg(binary("fleet-supervisor"))
        .arg("--out")
        .arg(&out));
    let (shown, error) = texts(&output);
    assert!(output.status.success(), "{shown}\n{error}");
    let measured: Measured = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(measured.missing(), [""; 0]);
    for figure in Figure::ALL {
        let value = measured.value(*figure).unwrap();
        // What is a part or a difference of small counts may be lost in the ticks that processor time is counted in.
        let may_vanish = matches!(
            figure,
            Figure::LogLine
                | Figure::LogLineControl
                | Figure::LogRequestControl
                | Figure::EnrollControl
                | Figure::DetailsControl
                | Figure::Connection
                | Figure::StoreIdle
        );
        assert!(
            value > 0.0 || may_vanish && value == 0.0,
            "{figure:?} {value}"
        );
    }
    assert!(measured.value(Figure::ReadDownRsa) > measured.value(Figure::ReadDown));
    assert!(!measured.command.contains('/'), "{}", measured.command);
    assert!(shown.contains("read-ecdsa"), "{shown}");
}

#[test]
fn calibrate_says_what_is_no_server() {
    let output = run(Command::new(binary("fleet-loadtest")).args([
        "calibrate",
        "--server-binary",
        "/no/such/program",
    ]));
    let (_, error) = texts(&output);
    assert_eq!(output.status.code(), Some(64));
    assert!(error.contains("/no/such/program"), "{error}");
}
