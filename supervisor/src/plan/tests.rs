//! What people see, and that the advised configuration can be used.

use clap::Parser as _;
use fleet_protocol::config::Config;

use super::*;
use crate::settings::{self, Sources};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(line: &str) -> Options {
    Line::try_parse_from(["plan"].into_iter().chain(line.split_whitespace()))
        .unwrap()
        .options
}

fn printed(line: &str) -> String {
    text(&options(line)).unwrap_or_else(|failure| panic!("{line}: {failure}"))
}

/// The configuration, as `config check --config FILE` reads it.
fn checked(yaml: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yml");
    std::fs::write(&file, yaml).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let settings = settings::read(&sources, &|_| None, &[]).unwrap();
    assert_eq!(settings.warnings, [""; 0], "{yaml}");
    settings.config
}

#[test]
fn a_plan_fits_a_page() {
    for line in [
        "--hosts 300000",
        "--hosts 1 --cert rsa",
        "--hosts 100000000 --interval-profile flagfile --cert rsa --lines-per-host-hour 1000000",
        "--hosts 1000 --interval-profile custom --config-interval 7 --read-interval 11 --log-interval 13 --no-held-reads",
    ] {
        let page = printed(line);
        assert!(page.lines().count() <= 60, "{line}:\n{page}");
        for row in page.lines() {
            assert!(row.chars().count() <= WIDTH, "{line}: {row}");
        }
    }
}

#[test]
fn every_mark_of_a_page_stands_in_its_legend() {
    let page = printed("--hosts 300000 --cert rsa");
    let (values, legend) = page.split_once("\nMeasured ").unwrap();
    let mut marks = Vec::new();
    for line in values.lines().filter(|line| line.ends_with(']')) {
        let (_, list) = line.rsplit_once('[').unwrap();
        marks.extend(list.trim_end_matches(']').split(' ').map(str::to_owned));
    }
    assert!(values.lines().filter(|line| line.ends_with(']')).count() >= 25);
    assert!(marks.len() > 40);
    let items: Vec<&str> = legend
        .lines()
        .filter(|line| line.starts_with("  "))
        .flat_map(|line| line.trim().split(" · "))
        .collect();
    for mark in marks {
        assert!(
            items
                .iter()
                .any(|item| item.split(' ').next() == Some(mark.as_str())),
            "{mark}:\n{page}"
        );
    }
}

/// The page has memory for every connection that the printed configuration lets in.
fn assert_memory_is_enough(config: &Config, plan: &Plan) {
    let permitted = plan.advice.machines
        * u64::from(config.workers.count)
        * u64::from(config.server.connections_per_worker_max);
    let value = |line: &capacity::Line| plan.advised(line);
    let bytes = value(plan.line("connections").unwrap());
    let figure = Figures::new(measured().unwrap())
        .get(capacity::Figure::Connection)
        .unwrap();
    // The second summand is the kernel's part.
    let wanted = permitted as f64 * (figure + 3784.0);
    assert!((bytes / wanted - 1.0).abs() < 1e-9, "{bytes} {wanted}");
    assert!(value(plan.line("memory to have").unwrap()) > bytes);
}

#[test]
fn the_configuration_of_every_size_is_good() {
    for size in capacity::REFERENCE_SIZES {
        for more in [
            "",
            "--cert rsa",
            "--no-held-reads --interval-profile flagfile",
        ] {
            let line = format!("--hosts {} {more}", size.hosts);
            let page = printed(&line);
            let (_, yaml) = page.split_once("# Configuration").unwrap();
            let config = checked(&format!("# {yaml}"));
            let plan = options(&line).plan(size.hosts).unwrap();
            assert_memory_is_enough(&config, &plan);
            assert_eq!(u64::from(config.workers.count), plan.advice.workers);
            assert_eq!(config.tune.hosts, plan.advice.hosts);
            let is_holding = !config.osquery.distributed_hold.is_zero();
            assert_eq!(is_holding, plan.demand.is_holding_reads);
            assert_eq!(
                u64::from(config.server.connections_per_worker_max),
                plan.advice.connections_per_worker
            );
            let addresses = fleet_protocol::address_list::sockets(&config.server.address).unwrap();
            assert_eq!(addresses.len() as u64, plan.advice.addresses);
            assert_eq!(config.mysql.address.is_empty(), size.hosts <= 20_000);
            assert_eq!(config.redis.address.is_empty(), size.hosts <= 20_000);
        }
    }
    // The largest that is planned.
    let page = printed("--hosts 100000000 --interval-profile flagfile");
    let (_, yaml) = page.split_once("# Configuration").unwrap();
    checked(&format!("# {yaml}"));
}

#[test]
fn the_table_shows_every_size() {
    let table = printed("--table");
    for text in [
        "1,000",
        "25,000",
        "150,000",
        "300,000",
        "1,000,000",
        "db.r6g.16xlarge",
    ] {
        assert!(table.contains(text), "{text}:\n{table}");
    }
    assert!(table.contains("none published"), "{table}");
    assert!(
        table.lines().all(|line| line.chars().count() <= WIDTH),
        "{table}"
    );
    let rows: serde_json::Value = serde_json::from_str(&printed("--table --json")).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 5);
}

#[test]
fn json_holds_values_and_sources() {
    let value: serde_json::Value = serde_json::from_str(&printed("--hosts 300000 --json")).unwrap();
    let lines = value["plan"]["lines"].as_array().unwrap();
    let read = lines
        .iter()
        .find(|line| line["name"] == "read requests")
        .unwrap();
    assert_eq!(read["at_once"], 30_000.0);
    assert_eq!(read["held"], 16_000.0);
    for line in lines {
        for source in line["sources"].as_array().unwrap() {
            let id = source.as_str().unwrap();
            let is_known =
                value["facts"].get(id).is_some() || value["measured"]["figures"].get(id).is_some();
            assert!(is_known, "{id}");
        }
    }
    checked(value["config"].as_str().unwrap());
}

#[test]
fn wrong_options_are_usage_errors() {
    for line in [
        "--hosts 0",
        "--hosts 100000001",
        "--hosts 5 --interval-profile custom",
        "--hosts 5 --interval-profile custom --config-interval 60 --read-interval 10",
        "--hosts 5 --interval-profile custom --config-interval 60 --read-interval 0 --log-interval 1",
        "--hosts 5 --config-interval 60",
        "--hosts 5 --lines-per-host-hour NaN",
    ] {
        let failure = text(&options(line)).unwrap_err();
        assert_eq!(failure.code(), crate::exit::USAGE, "{line}");
        assert_eq!(failure.to_string().lines().count(), 1, "{line}: {failure}");
    }
}
