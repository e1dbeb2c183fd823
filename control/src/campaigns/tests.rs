//! Campaigns through the doors of agents and operators, over the embedded store.

use std::collections::BTreeSet;
use std::time::Duration;

use fleet_protocol::agent::{Answer, QueryResult, Request, Work, Write};
use fleet_protocol::feed::Change;
use tokio::time::timeout;

use super::rounds::Done;
use super::*;
use crate::agent_bench::Bench;
use crate::agents::Agents;

pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn new(targets: impl IntoIterator<Item = HostId>) -> NewCampaign {
    NewCampaign {
        sql: "SELECT 1".into(),
        targets: targets.into_iter().map(|host| host.0).collect(),
        ..NewCampaign::default()
    }
}

pub(super) fn live(work: &Work) -> Vec<&str> {
    let names = work.queries.iter().map(|query| query.name.as_str());
    names
        .filter(|name| name.starts_with(state::CAMPAIGN_PREFIX))
        .collect()
}

pub(super) fn write(host: HostId, id: CampaignId, rows: &str) -> Request {
    let result = QueryResult {
        name: format!("{}{id}", state::CAMPAIGN_PREFIX),
        status: 0,
        message: String::new(),
        rows: rows.into(),
        stats: r#"{"wall_time_ms":3}"#.into(),
    };
    Request::Write(Write {
        host,
        address: [192, 0, 2, 8].into(),
        results: vec![result],
    })
}

pub(super) fn counted(agents: &Agents, name: &str) -> u64 {
    let results = agents.campaigns.statistics().results;
    results.iter().find(|(label, _)| *label == name).unwrap().1
}

pub(super) async fn hosts(bench: &Bench, count: usize) -> Vec<HostId> {
    let mut hosts = Vec::new();
    for index in 0..count {
        let (_, host) = bench.enroll(&format!("host-{index}"), now()).await;
        // Details and labels are out; what follows is about live queries.
        bench.read(host, now()).await;
        hosts.push(host);
    }
    hosts
}

pub(super) async fn next(viewer: &mut Viewer) -> Event {
    timeout(DEADLINE, viewer.next()).await.unwrap().unwrap()
}

pub(super) async fn rows_of(viewer: &mut Viewer, count: usize) -> Vec<(u32, String)> {
    let mut rows = Vec::new();
    while rows.len() < count {
        match next(viewer).await {
            Event::Results(results) => {
                rows.extend(results.into_iter().map(|one| (one.host.0, one.rows)));
            }
            other => panic!("{other:?}"),
        }
    }
    rows
}

#[tokio::test]
async fn hosts_are_called_until_they_come() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 3).await;
    let campaigns = &bench.agents.campaigns;
    let mut feed = bench.agents.subscribe(None);
    while feed.try_next().is_some() {}

    let id = campaigns
        .create(new(hosts[..2].iter().copied()))
        .await
        .unwrap()
        .id;
    assert!(campaigns.call_slice());
    let piece = feed.try_next().expect("hosts are called");
    let [Change::Called { hosts: called, .. }] = piece.changes.as_slice() else {
        panic!("{:?}", piece.changes);
    };
    let called = RoaringBitmap::deserialize_from(called.as_ref()).unwrap();
    assert_eq!(called, hosts[..2].iter().map(|host| host.0).collect());
    let due = |host| {
        lock(&bench.agents.roster)
            .feed_host(host)
            .unwrap()
            .work_due_at
    };
    assert_eq!(due(hosts[0]), UnixSeconds(0));
    assert!(due(hosts[2]) > now());

    let work = bench.read(hosts[0], now()).await;
    let name = format!("fleet_distributed_query_{id}");
    assert_eq!(live(&work), [name.as_str()]);
    assert!(due(hosts[0]) > now(), "it has what it was called for");
    assert!(live(&bench.read(hosts[0], now()).await).is_empty());
    assert!(live(&bench.read(hosts[2], now()).await).is_empty());
}

#[tokio::test]
async fn answers_are_told_once_to_every_viewer() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 3).await;
    let campaigns = &bench.agents.campaigns;
    let targets = hosts[..2].iter().copied();
    let id = campaigns.create(new(targets)).await.unwrap().id;
    let mut viewer = campaigns.view(id, None).await.unwrap();
    for (host, rows) in [(hosts[0], r#"[{"1":"1"}]"#), (hosts[1], "[]")] {
        assert_eq!(
            bench.one(write(host, id, rows), now()).await,
            Answer::Accepted
        );
        assert_eq!(
            bench.one(write(host, id, "[3]"), now()).await,
            Answer::Accepted
        );
        assert_eq!(
            bench.one(write(hosts[2], id, "[4]"), now()).await,
            Answer::Accepted
        );
    }
    assert_eq!(counted(&bench.agents, "taken"), 2);
    assert_eq!(counted(&bench.agents, "twice"), 2);
    assert_eq!(counted(&bench.agents, "unasked"), 2);
    let expected = [
        (hosts[0].0, r#"[{"1":"1"}]"#.to_owned()),
        (hosts[1].0, "[]".to_owned()),
    ];
    assert_eq!(rows_of(&mut viewer, 2).await, expected);

    campaigns.round(&mut Done::default(), now()).await;
    let Event::Ended(progress) = next(&mut viewer).await else {
        panic!("all have answered");
    };
    assert_eq!(progress.status, Status::Finished);
    assert_eq!((progress.targeted, progress.tally.answered), (2, 2));
    assert_eq!((progress.tally.rows, progress.counts.enrolled), (1, 2));
    assert_eq!(viewer.next().await, None);
    let stored = bench.store.campaign(id).await.unwrap().unwrap();
    assert_eq!(
        (stored.status, stored.tally.answered),
        (Status::Finished, 2)
    );
    // Late viewers see everything.
    let mut late = campaigns.view(id, None).await.unwrap();
    assert_eq!(rows_of(&mut late, 2).await, expected);
    let first = Cursor {
        number: 1,
        ..late.cursor()
    };
    let mut back = campaigns.view(id, Some(first)).await.unwrap();
    assert_eq!(rows_of(&mut back, 1).await, expected[1..]);
    assert_eq!(
        bench.one(write(hosts[0], id, "[]"), now()).await,
        Answer::Accepted
    );
    assert_eq!(counted(&bench.agents, "late"), 1);
    assert_eq!(campaigns.statistics().open, 0);
}

#[tokio::test]
async fn who_is_silent_is_asked_again_and_stop_lets_everybody_go() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 2).await;
    let campaigns = &bench.agents.campaigns;
    let id = campaigns
        .create(new(hosts.iter().copied()))
        .await
        .unwrap()
        .id;
    assert!(campaigns.call_slice());
    assert_eq!(live(&bench.read(hosts[0], now()).await).len(), 1);
    let later = UnixSeconds(now().0 + 125);
    // Somebody looks, or it would end.
    let viewer = campaigns.view(id, None).await.unwrap();
    let mut done = Done::default();
    campaigns.round(&mut done, UnixSeconds(now().0 + 60)).await;
    campaigns.round(&mut done, later).await;
    assert!(campaigns.call_slice());
    assert_eq!(live(&bench.read(hosts[0], later).await).len(), 1);
    assert_eq!(campaigns.statistics().handed_again, 1);
    drop(viewer);

    let called = || lock(&bench.agents.roster).called_count();
    assert_eq!(called(), 1);
    assert!(campaigns.stop(id).await.unwrap());
    assert!(!campaigns.stop(id).await.unwrap());
    assert!(campaigns.uncall_slice());
    assert_eq!(called(), 0);
    let feed_host = lock(&bench.agents.roster).feed_host(hosts[1]).unwrap();
    assert!(feed_host.work_due_at > now());
    assert!(live(&bench.read(hosts[1], now()).await).is_empty());
    assert_eq!(campaigns.get(id).await.unwrap().status, Status::Stopped);
    assert!(matches!(
        campaigns.stop(CampaignId(99)).await,
        Err(Error::NotFound)
    ));
}

#[tokio::test]
async fn nobody_looks_and_it_ends() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 1).await;
    let campaigns = &bench.agents.campaigns;
    let id = campaigns
        .create(new(hosts.iter().copied()))
        .await
        .unwrap()
        .id;
    let linger_s = campaigns.options.linger_s;
    let mut done = Done::default();
    let viewer = campaigns.view(id, None).await.unwrap();
    let at = |seconds| UnixSeconds(now().0 + seconds);
    campaigns.round(&mut done, at(linger_s - 1)).await;
    campaigns.round(&mut done, at(linger_s + 30)).await;
    assert_eq!(campaigns.get(id).await.unwrap().status, Status::Running);
    drop(viewer);
    campaigns.round(&mut done, at(linger_s + 60)).await;
    assert_eq!(campaigns.get(id).await.unwrap().status, Status::Running);
    campaigns.round(&mut done, at(2 * linger_s + 90)).await;
    assert_eq!(campaigns.get(id).await.unwrap().status, Status::Expired);
    // However many look, a day is enough.
    let id = campaigns
        .create(new(hosts.iter().copied()))
        .await
        .unwrap()
        .id;
    let _viewer = campaigns.view(id, None).await.unwrap();
    for hour in [8, 16, 25] {
        campaigns.round(&mut done, at(hour * 3600)).await;
    }
    assert_eq!(campaigns.get(id).await.unwrap().status, Status::Expired);
}

#[tokio::test]
async fn what_is_too_much_is_left_out_and_said() {
    let mut bench = Bench::new().await;
    bench.config.osquery.live_query_rows_max = 3;
    bench.agents = Bench::agents(&bench.store, &bench.config).await;
    let hosts = hosts(&bench, 3).await;
    let campaigns = &bench.agents.campaigns;
    let id = campaigns
        .create(new(hosts.iter().copied()))
        .await
        .unwrap()
        .id;
    for host in &hosts {
        let answer = bench.one(write(*host, id, "[1,2]"), now()).await;
        assert_eq!(answer, Answer::Accepted);
    }
    let progress = campaigns.progress(id).await.unwrap();
    let tally = progress.tally;
    assert!(tally.is_truncated());
    assert_eq!((tally.answered, tally.rows), (3, 2));
    assert_eq!((tally.hosts_cut, tally.rows_cut), (2, 4));
    let mut viewer = campaigns.view(id, None).await.unwrap();
    assert_eq!(rows_of(&mut viewer, 1).await.len(), 1);
}

#[tokio::test]
async fn a_restart_loses_results_aloud_and_asks_again() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 1).await;
    let id = bench
        .agents
        .campaigns
        .create(new(hosts.iter().copied()))
        .await
        .unwrap()
        .id;
    assert_eq!(live(&bench.read(hosts[0], now()).await).len(), 1);
    assert_eq!(
        bench.one(write(hosts[0], id, "[1]"), now()).await,
        Answer::Accepted
    );

    let agents = Bench::agents(&bench.store, &bench.config).await;
    let mut viewer = agents.campaigns.view(id, None).await.unwrap();
    assert!(matches!(next(&mut viewer).await, Event::Lost { .. }));
    assert!(agents.campaigns.call_slice());
    let granted = agents.campaigns.hand_out(&hosts, &HashMap::new()).await;
    assert_eq!(granted.len(), 1);
}

#[tokio::test]
async fn bad_campaigns_are_refused() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 1).await;
    let campaigns = &bench.agents.campaigns;
    assert_eq!(campaigns.create(new([])).await, Err(Error::NoTargets));
    let empty = NewCampaign {
        sql: " \n".into(),
        ..new(hosts.iter().copied())
    };
    assert_eq!(campaigns.create(empty).await, Err(Error::NoQuery));
    let open = new(hosts.iter().copied());
    let refused = bench.store.campaign_begin(&open, now(), now(), 0).await;
    assert_eq!(refused.unwrap(), None);
    assert!(matches!(
        campaigns.view(CampaignId(7), None).await,
        Err(Error::NotFound)
    ));
}

#[tokio::test]
async fn targets_are_resolved_from_memory() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 3).await;
    let campaigns = &bench.agents.campaigns;
    let resolve = |hosts: &[HostId], labels: &[LabelId]| {
        let targets = Targets {
            hosts: hosts.iter().map(|host| host.0).collect(),
            labels: labels.iter().copied().collect(),
        };
        async move { campaigns.resolve(&targets).await }
    };
    let all: RoaringBitmap = hosts.iter().map(|host| host.0).collect();
    assert_eq!(resolve(&[], &[LabelId::ALL_HOSTS]).await, Ok(all));
    let named = resolve(&[hosts[1], HostId(999)], &[]).await.unwrap();
    assert_eq!(named, [hosts[1].0].into());
    let unknown = LabelId(4711);
    assert_eq!(
        resolve(&[], &[unknown]).await,
        Err(Error::UnknownLabels(vec![unknown]))
    );
}

#[tokio::test]
async fn other_nodes_hear_of_campaigns_through_the_store() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 1).await;
    let other = Bench::agents(&bench.store, &bench.config).await;
    let id = bench
        .agents
        .campaigns
        .create(new(hosts.iter().copied()))
        .await
        .unwrap()
        .id;
    let mut again = BTreeSet::new();
    other.look(&mut again, false).await.unwrap();
    assert_eq!(other.campaigns.statistics().open, 1);
    assert!(bench.agents.campaigns.stop(id).await.unwrap());
    other.look(&mut again, false).await.unwrap();
    assert_eq!(other.campaigns.statistics().open, 0);
}

#[tokio::test]
async fn results_of_campaigns_that_others_began_are_not_dropped() {
    let bench = Bench::new().await;
    let hosts = hosts(&bench, 20).await;
    let (campaigns, store) = (&bench.agents.campaigns, &bench.store);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let campaign = new(hosts.iter().copied());
        let until = UnixSeconds(now().0 + 60);
        let begun = store.campaign_begin(&campaign, now(), until, 9).await;
        ids.push(begun.unwrap().unwrap());
    }
    let incoming = |id: CampaignId, host: HostId| {
        let Request::Write(mut write) = write(host, id, "[1]") else {
            panic!("no write");
        };
        state::Incoming {
            campaign: id,
            host,
            result: write.results.remove(0),
        }
    };
    let all = ids
        .iter()
        .flat_map(|id| hosts.iter().map(|host| incoming(*id, *host)));
    assert!(campaigns.take(all.collect()).await.is_empty());
    assert_eq!(counted(&bench.agents, "taken"), 40);
    // Names that somebody made up: some of them are looked up, the others have to wait.
    let made_up = |ids: std::ops::Range<u32>| {
        ids.map(|id| incoming(CampaignId(id), hosts[id as usize % 20]))
            .collect::<Vec<_>>()
    };
    let again = campaigns.take(made_up(1000..1020)).await;
    assert_eq!(again.len(), 4);
    assert_eq!(counted(&bench.agents, "unasked"), 16);
    assert_eq!(counted(&bench.agents, "deferred"), 4);
}
