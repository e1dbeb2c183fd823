//! A comparison as a page.

use super::super::html::{Bar, Curve, Page, Tile, bars, count, curves, number, spread_bar};
use super::super::report::Spread;
use super::result::{Comparison, Contest, Side, shown};

const MEDIANS: &str = "Medians of rounds";
const HELD: [&str; 4] = ["server", "resident bytes", "range", "PSS bytes"];
const LOAD: [&str; 11] = [
    "server",
    "CPU µs",
    "range",
    "per s",
    "p50 ms",
    "p90",
    "p99",
    "p99.9",
    "max",
    "client CPU %",
    "failed",
];

/// The whole page.
pub(super) fn render(comparison: &Comparison) -> String {
    let machine = &comparison.machine;
    let mut page = Page::new(
        "fleet-supervisor and its peers",
        &format!(
            "{} · {}, {} cores · Linux {}",
            machine.date, machine.cpu, machine.cores, machine.kernel
        ),
    );
    let tiles: Vec<Tile> = comparison.contests.iter().filter_map(tile).collect();
    page.tiles(&tiles);
    overview(&mut page, comparison);
    for contest in &comparison.contests {
        section(&mut page, contest);
    }
    page.section("Notes", "");
    page.list(&comparison.notes);
    page.machine(machine);
    page.finish()
}

/// Against the peer that comes closest, so that the top of the page never flatters.
fn tile(contest: &Contest) -> Option<Tile> {
    let (peer, ratio) = contest.hardest()?;
    Some(Tile {
        value: format!("{:.2} × {}", ratio.median, peer.name),
        name: format!("{}: {}, closest peer", contest.name, contest.quantity),
        is_bad: ratio.median > 1.0,
    })
}

fn overview(page: &mut Page, comparison: &Comparison) {
    let Some(first) = comparison.contests.first() else {
        return;
    };
    let names: Vec<&str> = first.sides.iter().skip(1).map(|side| side.name).collect();
    let mut header = vec!["contest"];
    header.extend(&names);
    let rows: Vec<Vec<String>> = comparison
        .contests
        .iter()
        .map(|contest| {
            let ratios = contest.sides.iter().skip(1);
            std::iter::once(contest.name.clone())
                .chain(ratios.map(|side| side.ratio.map_or_else(String::new, shown)))
                .collect()
        })
        .collect();
    page.section(
        "Ratios",
        "What the gateway costs for each unit that the peer costs, below 1 is less: median of the pairs of rounds, \
         smallest and largest in brackets. The gateway answers enrolled hosts on its real path; peers give a static answer.",
    );
    page.table("Gateway / peer", &header, &rows);
}

fn section(page: &mut Page, contest: &Contest) {
    page.section(&format!("{}: {}", contest.name, contest.quantity), "");
    let costs: Vec<Bar> = contest
        .sides
        .iter()
        .enumerate()
        .map(|(index, side)| spread_bar(index, side.name, &side.cost, contest.unit))
        .collect();
    let mut figures = vec![bars(
        &format!("Cost, {}", contest.unit),
        "Median of the rounds; whiskers from the smallest to the largest.",
        &costs,
    )];
    let latencies: Vec<Curve<'_>> = contest
        .sides
        .iter()
        .map(|side| Curve {
            name: side.name,
            values: side.values,
            points: &side.curve,
        })
        .collect();
    figures.extend(curves("Latency by percentile, all rounds", &latencies));
    page.figures(&figures);
    let is_held = contest.sides.iter().any(|side| !side.pss_bytes.is_empty());
    if is_held {
        let rows: Vec<Vec<String>> = contest.sides.iter().map(held_row).collect();
        page.table(MEDIANS, &HELD, &rows);
    } else {
        let rows: Vec<Vec<String>> = contest.sides.iter().map(load_row).collect();
        page.table(MEDIANS, &LOAD, &rows);
    }
}

fn held_row(side: &Side) -> Vec<String> {
    let mut row = cost(side);
    row.push(number(Spread::of(&side.pss_bytes).median));
    row
}

fn load_row(side: &Side) -> Vec<String> {
    let mut row = cost(side);
    let limit = if side.is_limited_by_client() {
        "≥ "
    } else {
        ""
    };
    let rate = Spread::of(&side.per_s).median;
    row.push(format!("{limit}{}", number(rate)));
    let latency = side.latency_ms;
    for part in [
        latency.map(|latency| latency.p50),
        latency.map(|latency| latency.p90),
        latency.map(|latency| latency.p99),
        latency.map(|latency| latency.p999),
        latency.map(|latency| latency.max),
    ] {
        row.push(part.map_or_else(String::new, number));
    }
    row.push(number(Spread::of(&side.generator_percent).median));
    row.push(count(side.failed()));
    row
}

fn cost(side: &Side) -> Vec<String> {
    let cost = Spread::of(&side.cost);
    vec![
        side.name.to_owned(),
        number(cost.median),
        format!("{} – {}", number(cost.min), number(cost.max)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::load::{Memory, Round, Seen};
    use super::*;
    use crate::scenario::machine::Machine;

    fn loaded(name: &'static str, cost_us: f64) -> Side {
        let round = || {
            let mut seen = Seen::default();
            for us in 1..1000 {
                seen.latency_us.record(us * 10).unwrap();
            }
            Round {
                per_s: 4_000.0,
                cost_us,
                generator_percent: 99.0,
                seen,
            }
        };
        Side::of_rounds(name, &[round(), round()])
    }

    fn held(name: &'static str, rss: f64) -> Side {
        Side::of_memory(name, &[Memory { rss, pss: rss }])
    }

    fn comparison() -> Comparison {
        Comparison {
            machine: Machine::read(),
            scenario: "compare",
            notes: vec!["node: not installed, left out".to_owned()],
            contests: vec![
                Contest::new(
                    "Full exchange <1.3>".to_owned(),
                    "server CPU an exchange",
                    "µs",
                    vec![
                        loaded("ours", 120.0),
                        loaded("nginx", 400.0),
                        loaded("hyper", 150.0),
                    ],
                ),
                Contest::new(
                    "10 held connections".to_owned(),
                    "server memory a connection",
                    "bytes",
                    vec![
                        held("ours", 5_000.0),
                        held("nginx", 15_000.0),
                        held("hyper", 4_000.0),
                    ],
                ),
            ],
        }
    }

    #[test]
    fn the_page_is_well_formed_and_does_not_flatter() {
        let text = render(&comparison());
        let options = roxmltree::ParsingOptions {
            allow_dtd: true,
            ..Default::default()
        };
        let page = roxmltree::Document::parse_with_options(&text, options).unwrap();
        let tiles: Vec<&str> = page
            .descendants()
            .filter(|node| node.has_tag_name("b"))
            .filter_map(|node| node.text())
            .collect();
        assert_eq!(tiles, ["0.80 × hyper", "1.25 × hyper"]);
        assert_eq!(text.matches("tile bad").count(), 1);
        assert!(text.contains("0.30 (0.30 – 0.30)") && text.contains("≥ 4,000"));
        let drawings = page.descendants().filter(|node| node.has_tag_name("svg"));
        assert_eq!(drawings.count(), 3);
    }

    #[test]
    fn tables_hold_the_same_figures() {
        let text = super::super::tables::render(&comparison());
        for part in ["0.80 (0.80 – 0.80)", "5000.0", "PSS bytes", "left out"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
