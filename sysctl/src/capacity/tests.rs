//! The arithmetic against cases computed by hand, over figures that are round numbers.

use std::collections::BTreeSet;

use fleet_protocol::measured::Measured;
use proptest::prelude::*;

use super::*;

fn demand(hosts: u64, intervals: Intervals) -> Demand {
    Demand {
        hosts,
        intervals,
        certificate: Certificate::Ecdsa,
        lines_per_host_hour: 12.0,
        line_bytes: 500,
        is_holding_reads: false,
    }
}

/// Round numbers in place of measured ones.
fn round_figures() -> Measured {
    let mut measured = Measured::default();
    for figure in Figure::ALL {
        measured.set(*figure, &[100.0]);
    }
    for (figure, value) in [
        (Figure::ReadRsa, 500.0),
        (Figure::ConfigRsa, 500.0),
        (Figure::LogLine, 10.0),
        (Figure::LogRequestControl, 50.0),
        (Figure::LogLineControl, 5.0),
        (Figure::DetailsControl, 20.0),
        (Figure::Segments, 10.0),
        (Figure::ReadUp, 1000.0),
        (Figure::ConfigUp, 1000.0),
        (Figure::LogUp, 1000.0),
        (Figure::DetailsUp, 1000.0),
        (Figure::Connection, 6216.0),
        (Figure::StoreIdle, 3.0),
        (Figure::StoreDetails, 12.0),
        (Figure::BaseWorker, 1e6),
        (Figure::BaseControl, 2e6),
        (Figure::BaseSupervisor, 3e6),
    ] {
        measured.set(figure, &[value]);
    }
    measured
}

fn made(demand: Demand) -> Plan {
    plan(demand, &Figures::new(&round_figures())).unwrap()
}

fn value(plan: &Plan, name: &str) -> f64 {
    plan.line(name)
        .unwrap_or_else(|| panic!("no {name}"))
        .at_once
}

fn assert_near(found: f64, wanted: f64, what: &str) {
    assert!(
        (found - wanted).abs() <= wanted.abs() * 1e-6,
        "{what}: {found} is not {wanted}"
    );
}

#[test]
fn fleet_with_300_000_hosts_makes_35_000_handshakes_for_polling() {
    let plan = made(demand(300_000, Intervals::FLEET));
    let of = |name| value(&plan, name);
    assert_near(of("config requests"), 5_000.0, "configs");
    assert_near(of("read requests"), 30_000.0, "reads");
    assert_near(
        of("config requests") + of("read requests"),
        35_000.0,
        "polls",
    );
    assert_near(of("log requests"), 1_000.0, "300,000 x 12 / 3,600");
    assert_near(of("write requests"), 300_000.0 / 3600.0, "one an hour");
    let all = 36_000.0 + 300_000.0 / 3600.0;
    assert_near(of("all requests = TLS handshakes"), all, "sum");
    // 35,000 polls, 1,000 log requests and 83.3 rounds of details at 100 µs each; no further lines.
    assert_near(of("cores busy"), all * 1e-4, "cores");
    let control = 1_000.0 * 50e-6 + 83.333_333_3 * 20e-6;
    assert_near(of("of these control"), control, "control");
    // 3.608 cores at 50 %.
    assert_near(of("cores to have"), 8.0, "cores to have");
    assert_near(of("workers on each"), 8.0, "workers");
    assert_near(of("machines"), 1.0, "machines");
    assert_near(of("open at a time, mean"), all * 0.4, "Little");
}

#[test]
fn memory_store_logs_and_network_add_up() {
    let plan = made(demand(300_000, Intervals::FLEET));
    let of = |name| value(&plan, name);
    let all = 36_000.0 + 300_000.0 / 3600.0;
    assert_near(of("processes"), 3e6 + 2e6 + 8e6, "rest");
    // 110 B in control, and twice 77 B in each of 8 workers.
    assert_near(of("known hosts"), 300_000.0 * 1342.0, "hosts");
    // 6,216 B of the worker and 3,784 B of the kernel. 8 workers let in 15,000 each, the default: four times the mean
    // of 14,433 would be less.
    let connections = 8.0 * 15_000.0 * 10_000.0;
    assert_near(of("connections"), connections, "connections");
    // With held reads 5 workers let in 120,000 each.
    let held = plan.line("connections").unwrap().held;
    assert_near(held, 5.0 * 120_000.0 * 10_000.0, "held connections");
    // 3 at rest, 10,000 marks a second in statements of 2,048, and 12 for each of 83.3 rounds of details.
    let statements = 3.0 + 10_000.0 / 2048.0 + 1000.0;
    assert_near(of("statements"), statements, "statements");
    assert_near(of("to disk, not compressed"), 500_000.0, "bytes");
    assert_near(of("in a day"), 43.2e9, "a day");
    // 1,000 B of payload and half of 10 segments of 66 B for each, and the lines.
    let up = (all * 1330.0 + 500_000.0) * 8.0;
    assert_near(of("from agents"), up, "up");
    assert_near(of("to agents"), all * 430.0 * 8.0, "down");
    let sum: f64 = [
        "processes",
        "known hosts",
        "connections",
        "queues, all full",
    ]
    .map(of)
    .iter()
    .sum();
    assert_near(of("memory to have"), sum, "sum");
}

#[test]
fn addresses_follow_from_ports_and_rest() {
    let plan = made(demand(300_000, Intervals::FLEET));
    let of = |name| value(&plan, name);
    assert_near(of("agents direct: server addresses"), 1.0, "direct");
    // 0.12028 requests a second of a host, each of which takes a port of a NAT for 120.4 s: 14.482 ports.
    let hosts = of("hosts per NAT and server address");
    assert_near(hosts, 4_454.0, "64,512 / 14.482");
    assert_near(of("the same, 28,232 ports"), 1_949.0, "28,232 / 14.482");
    // 36,083 x 1.4 s = 50,517 ports of 32,256.
    assert_near(of("one balancer address: server ones"), 2.0, "tuned");
    // 36,083 x 60.4 s = 2,179,433 ports of 28,232.
    assert_near(of("the same, balancer not tuned"), 78.0, "not tuned");
}

#[test]
fn held_reads_halve_the_reads_and_keep_connections_open() {
    let plan = made(demand(300_000, Intervals::FLEET));
    let held = |name| plan.line(name).unwrap().held;
    assert_near(held("read requests"), 16_000.0, "300,000 / (10 + 8.75)");
    let all = 22_000.0 + 300_000.0 / 3600.0;
    let open = all * 0.4 + 140_000.0;
    assert_near(held("open at a time, mean"), open, "open");
    let advice = made(Demand {
        is_holding_reads: true,
        ..demand(300_000, Intervals::FLEET)
    })
    .advice;
    // 2.208 cores at 50 %: 5 workers, and four times 148,833 connections among them.
    assert_eq!(advice.workers, 5);
    assert_eq!(advice.connections_per_worker, 120_000);
}

#[test]
fn the_text_of_the_hold_is_true() {
    use fleet_protocol::ids::HostId;
    let longest = fleet_protocol::config::Config::default()
        .osquery
        .distributed_hold;
    let holds = (0..1000).map(|id| fleet_protocol::hold::of(longest, HostId(id)).as_secs_f64());
    let (least, most) = holds.fold((f64::MAX, 0.0_f64), |(least, most), hold| {
        (least.min(hold), most.max(hold))
    });
    let text = format!("held for {least:.1} to {most:.0} s");
    assert_eq!(Fact::Hold.text(), text);
}

#[test]
fn other_profiles_and_certificates() {
    let osctrl = made(demand(1_000, Intervals::OSCTRL));
    assert_near(value(&osctrl, "config requests"), 1000.0 / 300.0, "config");
    assert_near(value(&osctrl, "read requests"), 1000.0 / 60.0, "read");
    // 12 lines an hour are 3.33 a second; a turn each 600 s lets at most 2 requests a host go, 3.33 a second too.
    assert_near(value(&osctrl, "log requests"), 1000.0 / 300.0, "log");
    let flagfile = made(demand(1_000, Intervals::FLAGFILE));
    assert_near(value(&flagfile, "config requests"), 100.0, "config");
    let rsa = made(Demand {
        certificate: Certificate::Rsa,
        lines_per_host_hour: 0.0,
        ..demand(360_000, Intervals::FLAGFILE)
    });
    // 72,000 polls at 500 µs; 100 rounds of details at 100 µs and three handshakes that cost 400 µs more.
    let cores = 72_000.0 * 500e-6 + 100.0 * 1300e-6;
    assert_near(value(&rsa, "cores busy"), cores, "RSA");
    assert_near(value(&rsa, "machines"), 2.0, "72.3 cores of 64");
    let advice = rsa.advice;
    assert_eq!((advice.machines, advice.hosts), (2, 180_000));
}

#[test]
fn many_lines_share_requests() {
    let busy = made(Demand {
        lines_per_host_hour: 3600.0,
        ..demand(1_000, Intervals::FLEET)
    });
    assert_near(value(&busy, "log requests"), 200.0, "two a turn");
    let polls = 116.666_666_67 + 200.0 + 1000.0 / 3600.0;
    // 800 further lines at 10 µs.
    let cores = polls * 1e-4 + 800.0 * 1e-5;
    assert_near(value(&busy, "cores busy"), cores, "cores");
}

#[test]
fn impossible_demands_are_refused() {
    let figures = round_figures();
    let figures = Figures::new(&figures);
    let refused = |demand| plan(demand, &figures).unwrap_err();
    assert_eq!(refused(demand(0, Intervals::FLEET)), Error::Hosts(0));
    let many = HOSTS_MAX + 1;
    assert_eq!(refused(demand(many, Intervals::FLEET)), Error::Hosts(many));
    assert_eq!(refused(demand(1, Intervals::new(0, 1, 1))), Error::Interval);
    for lines in [-1.0, f64::NAN, 1e7] {
        let wrong = Demand {
            lines_per_host_hour: lines,
            ..demand(1, Intervals::FLEET)
        };
        assert_eq!(refused(wrong), Error::Lines);
    }
    let none = Measured::default();
    let missing = plan(demand(1, Intervals::FLEET), &Figures::new(&none));
    assert!(matches!(missing, Err(Error::Figure(_))));
}

#[test]
fn every_line_names_its_sources() {
    let known: BTreeSet<&str> = measured()
        .unwrap()
        .figures
        .keys()
        .map(String::as_str)
        .chain(Fact::ALL.iter().map(|fact| fact.id()))
        .collect();
    let mut used = BTreeSet::new();
    for certificate in [Certificate::Ecdsa, Certificate::Rsa] {
        let plan = plan(
            Demand {
                certificate,
                ..demand(300_000, Intervals::FLEET)
            },
            &Figures::new(measured().unwrap()),
        )
        .unwrap();
        for line in &plan.lines {
            assert!(!line.sources.is_empty(), "{}", line.name);
            for source in &line.sources {
                assert!(known.contains(source.id()), "{}: {source:?}", line.name);
                used.insert(source.id());
            }
        }
    }
    for fact in Fact::ALL {
        assert!(used.contains(fact.id()), "{fact:?} is used by no line");
    }
    let ids: BTreeSet<&str> = Fact::ALL.iter().map(|fact| fact.id()).collect();
    assert_eq!(ids.len(), Fact::ALL.len());
}

#[test]
fn sizes_of_the_table_rise() {
    let hosts: Vec<u64> = REFERENCE_SIZES.iter().map(|size| size.hosts).collect();
    assert_eq!(hosts, [1_000, 25_000, 150_000, 300_000, 1_000_000]);
}

#[test]
fn memory_is_for_all_connections_that_the_advice_lets_in() {
    for hosts in [1, 1_000, 300_000, 20_000_000] {
        for is_holding_reads in [false, true] {
            let plan = made(Demand {
                is_holding_reads,
                ..demand(hosts, Intervals::FLAGFILE)
            });
            let advice = plan.advice;
            let permitted = advice.machines * advice.workers * advice.connections_per_worker;
            let line = plan.line("connections").unwrap();
            let bytes = plan.advised(line);
            assert_near(bytes, as_f64(permitted) * 10_000.0, "connections");
        }
    }
}

fn line_group_is_rounded(line: &Line) -> bool {
    line.group == "memory"
}

/// The limit of a worker is rounded up to whole thousands, so fewer workers may be let in a little more among them: by
/// a thousand connections each, of 10,000 B in these figures.
fn slack(line: &Line, plan: &Plan) -> f64 {
    if line.name == "connections" || line.name == "memory to have" {
        as_f64(plan.advice.machines * plan.advice.workers) * 1000.0 * 10_000.0
    } else {
        0.0
    }
}

proptest! {
    #[test]
    fn nothing_shrinks_when_hosts_are_added(
        hosts in 1..=HOSTS_MAX / 2,
        more in 0..=HOSTS_MAX / 2,
        (config_s, read_s, log_s) in (1_u32..4000, 1_u32..4000, 1_u32..4000),
        lines in 0_u32..10_000,
        is_rsa: bool,
    ) {
        let of = |hosts| {
            let certificate = if is_rsa { Certificate::Rsa } else { Certificate::Ecdsa };
            made(Demand {
                certificate,
                lines_per_host_hour: f64::from(lines),
                ..demand(hosts, Intervals::new(config_s, read_s, log_s))
            })
        };
        let (few, many) = (of(hosts), of(hosts + more));
        let machines = (few.line("machines").cloned(), many.line("machines").cloned());
        let machines = (machines.0.map(|line| line.at_once), machines.1.map(|line| line.at_once));
        let slack = |line| slack(line, &few);
        for (few, many) in few.lines.iter().zip(&many.lines) {
            prop_assert!(few.at_once.is_finite() && few.at_once >= 0.0 && few.held >= 0.0, "{:?}", few);
            // What one machine holds may fall when another is added.
            let is_of_each = few.name.contains("each worker") || few.name == "workers on each";
            let is_rate = few.name.starts_with("hosts per NAT") || few.name.contains("28,232");
            // Machines are equal, so what is rounded up for each may be a little more for fewer of them.
            let is_shared = line_group_is_rounded(few) && machines.0 != machines.1;
            if !is_of_each && !is_rate && !is_shared {
                let least = few.at_once * (1.0 - 1e-9) - slack(few);
                prop_assert!(many.at_once >= least, "{:?} {:?}", few, many);
            }
        }
    }
}
