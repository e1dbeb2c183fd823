//! Campaigns of two nodes over one Redis, when there is one on the machine.

use std::collections::BTreeSet;
use std::time::Duration;

use fleet_protocol::agent::Answer;
use fleet_protocol::config::Config;
use fleet_protocol::reject::Reject;
use tokio::time::Instant;

use super::tests::{DEADLINE, counted, hosts, live, new, next, rows_of, write};
use super::*;
use crate::agent_bench::Bench;
use crate::agents::Agents;
use crate::bus::tests::{Server, until};

/// Two nodes with everything that goes on by itself but the watch of changes.
struct Pair {
    bench: Bench,
    other: Bench,
}

impl Pair {
    async fn new(config: Config) -> Self {
        let bench = Bench::with(config).await;
        let agents = Bench::agents(&bench.store, &bench.config).await;
        let other = Bench {
            agents,
            store: Arc::clone(&bench.store),
            state: tempfile::tempdir().unwrap(),
            config: bench.config.clone(),
        };
        let pair = Self { bench, other };
        for agents in [&pair.bench.agents, &pair.other.agents] {
            until("Redis is there", || agents.bus.is_healthy()).await;
            tokio::spawn(Arc::clone(&agents.campaigns).run());
        }
        pair
    }

    async fn hosts(&self, count: usize) -> Vec<HostId> {
        let hosts = hosts(&self.bench, count).await;
        self.follow().await;
        for host in &hosts {
            self.other.read(*host, now()).await;
        }
        hosts
    }

    /// The other node reads what the store has.
    async fn follow(&self) {
        let mut again = BTreeSet::new();
        self.other.agents.look(&mut again, false).await.unwrap();
    }

    async fn create(&self, hosts: &[HostId]) -> CampaignId {
        let campaigns = &self.bench.agents.campaigns;
        let campaign = campaigns.create(new(hosts.iter().copied())).await.unwrap();
        self.follow().await;
        campaign.id
    }
}

fn redis() -> Option<Server> {
    let server = Server::start(tempfile::tempdir().unwrap());
    if server.is_none() {
        eprintln!("skipped: no redis-server on this machine");
    }
    server
}

async fn answer_is(bench: &Bench, host: HostId, id: CampaignId, rows: &str, expected: Answer) {
    let deadline = Instant::now() + DEADLINE;
    while bench.one(write(host, id, rows), now()).await != expected {
        assert!(Instant::now() < deadline, "never {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn two_nodes_ask_once_and_show_everything() {
    let Some(server) = redis() else { return };
    let pair = Pair::new(server.config()).await;
    let hosts = pair.hosts(3).await;
    let id = pair.create(&hosts).await;
    let mut viewer = pair.bench.agents.campaigns.view(id, None).await.unwrap();

    assert_eq!(live(&pair.bench.read(hosts[0], now()).await).len(), 1);
    assert!(live(&pair.other.read(hosts[0], now()).await).is_empty());
    assert_eq!(live(&pair.other.read(hosts[1], now()).await).len(), 1);
    // Handed out by one, answered to the other.
    for (bench, host) in [
        (&pair.other, hosts[0]),
        (&pair.bench, hosts[1]),
        (&pair.bench, hosts[2]),
    ] {
        assert_eq!(
            bench.one(write(host, id, r#"[{"a":"1"}]"#), now()).await,
            Answer::Accepted
        );
    }
    assert_eq!(
        pair.bench.one(write(hosts[0], id, "[9]"), now()).await,
        Answer::Accepted
    );
    assert_eq!(counted(&pair.bench.agents, "taken"), 2);
    assert_eq!(counted(&pair.bench.agents, "twice"), 1);
    let rows = rows_of(&mut viewer, 3).await;
    assert_eq!(
        rows.iter().map(|(host, _)| *host).collect::<Vec<_>>(),
        hosts.iter().map(|host| host.0).collect::<Vec<_>>()
    );
    assert!(rows.iter().all(|(_, rows)| rows == r#"[{"a":"1"}]"#));
    let Event::Ended(progress) = next(&mut viewer).await else {
        panic!("all have answered");
    };
    assert_eq!(progress.status, Status::Finished);
    assert_eq!((progress.tally.answered, progress.tally.rows), (3, 3));
    // A late viewer of the other node, and one that comes back.
    pair.follow().await;
    let mut late = pair.other.agents.campaigns.view(id, None).await.unwrap();
    assert_eq!(rows_of(&mut late, 3).await, rows);
    let text = late.cursor().to_string();
    let mut back = pair
        .other
        .agents
        .campaigns
        .view(id, text.parse().ok())
        .await
        .unwrap();
    assert!(matches!(next(&mut back).await, Event::Ended(_)));
}

#[tokio::test]
async fn a_restart_of_redis_asks_again_and_says_so() {
    let Some(server) = redis() else { return };
    let pair = Pair::new(server.config()).await;
    let hosts = pair.hosts(2).await;
    let id = pair.create(&hosts).await;
    let (a, b) = (&pair.bench.agents, &pair.other.agents);
    let mut viewer = b.campaigns.view(id, None).await.unwrap();
    answer_is(&pair.bench, hosts[0], id, "[1]", Answer::Accepted).await;
    assert_eq!(
        rows_of(&mut viewer, 1).await,
        [(hosts[0].0, "[1]".to_owned())]
    );

    let dir = server.stop();
    until("the loss is noticed", || {
        !a.bus.is_healthy() && !b.bus.is_healthy()
    })
    .await;
    assert!(a.campaigns.progress(id).await.unwrap().is_waiting);
    assert!(
        live(&pair.bench.read(hosts[1], now()).await).is_empty(),
        "but it is answered"
    );
    let refused = Answer::Refused(Reject::StoreUnavailable);
    assert_eq!(
        pair.bench.one(write(hosts[1], id, "[2]"), now()).await,
        refused
    );
    let more = a.campaigns.create(new(hosts.iter().copied())).await;
    assert!(matches!(more, Err(Error::Bus(_))), "{more:?}");

    let _server = Server::start(dir).unwrap();
    // Its first try reached nobody; this one is the beginning of what is there now.
    answer_is(&pair.bench, hosts[1], id, "[2]", Answer::Accepted).await;
    let lost = loop {
        match next(&mut viewer).await {
            Event::Lost { reason, .. } => break reason,
            Event::Results(results) => {
                assert!(results.is_empty(), "before it is said: {results:?}")
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(lost.contains("asked again"), "{lost}");
    assert_eq!(
        rows_of(&mut viewer, 1).await,
        [(hosts[1].0, "[2]".to_owned())]
    );
    let is_known = || {
        let state = lock(&a.campaigns.state);
        !state.known[&id].ledger.answered().contains(hosts[0].0)
    };
    until("hosts are asked again", is_known).await;
    let deadline = Instant::now() + DEADLINE;
    while live(&pair.bench.read(hosts[0], now()).await).is_empty() {
        assert!(Instant::now() < deadline, "the host is not asked again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answer_is(&pair.bench, hosts[0], id, "[3]", Answer::Accepted).await;
    assert_eq!(
        rows_of(&mut viewer, 1).await,
        [(hosts[0].0, "[3]".to_owned())]
    );
    assert!(matches!(next(&mut viewer).await, Event::Ended(_)));
}

#[tokio::test]
async fn two_hundred_campaigns_leave_redis_alone() {
    let Some(server) = redis() else { return };
    let pair = Pair::new(server.config()).await;
    let hosts = pair.hosts(2).await;
    let mut viewers = Vec::new();
    for _ in 0..200 {
        let campaigns = &pair.bench.agents.campaigns;
        let id = campaigns
            .create(new(hosts.iter().copied()))
            .await
            .unwrap()
            .id;
        viewers.push(campaigns.view(id, None).await.unwrap());
    }
    pair.follow().await;
    let work = pair.bench.read(hosts[0], now()).await;
    assert_eq!(live(&work).len(), 200, "one read brings all");
    let commands = || {
        let both = [&pair.bench.agents, &pair.other.agents];
        both.map(|agents| agents.bus.statistics().commands)
            .iter()
            .sum::<u64>()
    };
    let looks: Vec<_> = viewers
        .into_iter()
        .map(|mut viewer| tokio::spawn(async move { viewer.next().await }))
        .collect();
    // Viewers look once at the beginning; then there is nothing to ask for.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (before, began) = (commands(), Instant::now());
        for _ in 0..10 {
            // Others that read ask Redis nothing either.
            pair.bench.read(hosts[0], now()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let asked = commands() - before;
        if asked < 50 * began.elapsed().as_secs() {
            break;
        }
        assert!(Instant::now() < deadline, "{asked} commands in a second");
    }
    looks.into_iter().for_each(|look| look.abort());
}

#[tokio::test]
async fn redis_leaves_out_what_is_too_much() {
    let Some(server) = redis() else { return };
    let mut config = server.config();
    config.osquery.live_query_rows_max = 3;
    let pair = Pair::new(config).await;
    let hosts = pair.hosts(3).await;
    let id = pair.create(&hosts).await;
    for host in &hosts {
        answer_is(&pair.bench, *host, id, "[1,2]", Answer::Accepted).await;
    }
    let tally = pair
        .bench
        .agents
        .campaigns
        .progress(id)
        .await
        .unwrap()
        .tally;
    assert_eq!(
        (tally.answered, tally.rows, tally.hosts_cut, tally.rows_cut),
        (3, 2, 2, 4)
    );
    let agents: &Agents = &pair.other.agents;
    let is_heard = || lock(&agents.campaigns.state).known[&id].tally == tally;
    until("the other node hears of it", is_heard).await;
}

#[tokio::test]
async fn a_host_is_claimed_three_times_at_most() {
    let Some(server) = redis() else { return };
    let bus = Bus::open(&server.config()).unwrap();
    until("it connects", || bus.is_healthy()).await;
    let id = CampaignId(5);
    assert_eq!(shared::claim(&bus, id, &[0]).await, Ok(None), "not begun");
    shared::begin(&bus, id, now()).await.unwrap();
    use super::ledger::Claim::{Elsewhere, Exhausted, First};
    let places = [0, 70_000, 0];
    let claims = shared::claim(&bus, id, &places).await.unwrap().unwrap();
    assert_eq!(claims, [First, First, Elsewhere]);
    // Three hand-outs long ago: the third one in the epoch opposite to every one of the next minutes.
    let seconds = redis::cmd("TIME");
    let redis::Value::Array(time) = bus.ask(&seconds).await.unwrap() else {
        panic!("no time");
    };
    let redis::Value::BulkString(text) = &time[0] else {
        panic!("no time");
    };
    let epoch = std::str::from_utf8(text).unwrap().parse::<u64>().unwrap() / 60;
    let byte = 3 * 32 + u8::try_from((epoch + 16) % 32).unwrap();
    let mut set = redis::cmd("SETRANGE");
    set.arg("fleet:0:{c5}:hosts").arg(1).arg(&[byte][..]);
    bus.ask(&set).await.unwrap();
    assert_eq!(
        shared::claim(&bus, id, &[1]).await,
        Ok(Some(vec![Exhausted]))
    );
}

fn result_of(host: u32, bytes: usize) -> HostResult {
    let result = fleet_protocol::agent::QueryResult {
        name: String::new(),
        status: 0,
        message: String::new(),
        rows: format!("[\"{}\"]", "x".repeat(bytes)),
        stats: String::new(),
    };
    HostResult::of(HostId(host), result)
}

#[test]
fn results_go_in_pieces() {
    let sizes = [10, 900 << 10, 200 << 10, 3 << 20, 10, 10];
    let results = (0_u32..).zip(sizes);
    let results = results.map(|(host, bytes)| (u64::from(host), result_of(host, bytes)));
    let pieces = shared::pieces(results.collect());
    let places: Vec<Vec<u64>> = pieces
        .iter()
        .map(|piece| piece.iter().map(|(place, _)| *place).collect())
        .collect();
    assert_eq!(places, [vec![0, 1], vec![2], vec![3], vec![4, 5]]);
}

#[test]
fn reads_are_as_large_as_pieces() {
    let count = |answered, hosts_cut, bytes| {
        shared::count_of(&Tally {
            answered,
            hosts_cut,
            bytes,
            ..Tally::default()
        })
    };
    assert_eq!(count(0, 0, 0), 256);
    assert_eq!(count(1000, 0, 1000 << 10), 256);
    assert_eq!(count(100, 90, 10 << 18), 4);
    assert_eq!(count(1, 0, 8 << 20), 1);
}

#[tokio::test]
async fn results_after_the_end_live_no_longer_than_the_rest() {
    let Some(server) = redis() else { return };
    let bus = Bus::open(&server.config()).unwrap();
    until("it connects", || bus.is_healthy()).await;
    let options = Options::of(&server.config().osquery);
    let id = CampaignId(6);
    shared::begin(&bus, id, now()).await.unwrap();
    shared::end(&bus, id).await.unwrap();
    let results = [(0, result_of(1, 5))];
    let taken = shared::take(&bus, id, &results, &options).await.unwrap();
    assert!(matches!(taken, shared::Taken::Heard(..)), "{taken:?}");
    let mut life = redis::cmd("TTL");
    life.arg("fleet:0:{c6}:rows");
    let redis::Value::Int(life) = bus.ask(&life).await.unwrap() else {
        panic!("no number");
    };
    assert!((1..=600).contains(&life), "{life}");
    // Without the counts the rest is worth nothing.
    let mut delete = redis::cmd("DEL");
    delete.arg("fleet:0:{c6}:tally");
    bus.ask(&delete).await.unwrap();
    let taken = shared::take(&bus, id, &results, &options).await;
    assert_eq!(taken, Ok(shared::Taken::Lost));
}
