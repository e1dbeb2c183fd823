use fleet_protocol::agent::{Answer, Request};
use fleet_protocol::feed::{Change, Load};
use fleet_protocol::reject::Reject;
use fleet_protocol::secret::Secret;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::agent_bench::{Bench, answers_of, enroll};
use crate::enroll::hash_key;
use crate::feed::{Subscription, Touch};
use crate::model::change::{ChangeKind, ChangeRow};
use crate::model::query::QuerySpec;

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn another_nodes_work_is_seen() {
    let bench = Bench::new().await;
    let other = Bench {
        agents: Bench::agents(&bench.store, &bench.config).await,
        store: Arc::clone(&bench.store),
        state: TempDir::new().unwrap(),
        config: bench.config.clone(),
    };
    let start = now();
    let (key, host) = bench.enroll("web-1", start).await;
    assert!(
        matches!(other.lookup(&key, start).await, Answer::Host(Some(found)) if found.id == host)
    );
    assert_eq!(
        other.lookup(&Secret::new("nobody"), start).await,
        Answer::Host(None)
    );
    let (_, second) = bench.enroll("web-2", start).await;
    assert!(matches!(
        other.one(Request::Read(second), start).await,
        Answer::Work(_)
    ));
    let gone = HostId(4_000_000);
    assert_eq!(
        other.one(Request::Read(gone), start).await,
        Answer::Refused(Reject::NodeKeyUnknown)
    );

    // Results of what the other node handed out are taken here, because the host is due here too.
    let work = bench.read(host, start).await;
    assert_eq!(
        other
            .one(Request::Write(answers_of(&work, host)), start)
            .await,
        Answer::Accepted
    );
    bench.catch_up().await;
    assert!(
        bench
            .read(host, UnixSeconds(start.0 + 1000))
            .await
            .queries
            .is_empty()
    );

    let mut feed = other.agents.subscribe(None);
    while feed.try_next().is_some() {}
    assert!(bench.store.delete_host(host).await.unwrap().is_some());
    other.catch_up().await;
    let forgotten = hash_key(&key);
    let mut is_told = false;
    while let Some(piece) = feed.try_next() {
        is_told |= piece.changes.contains(&Change::Forget(forgotten));
    }
    assert!(is_told);
    assert_eq!(other.lookup(&key, start).await, Answer::Host(None));
}

#[tokio::test]
async fn workers_resume_over_a_restart_and_specs_arrive() {
    let bench = Bench::new().await;
    let start = now();
    let (_, first) = bench.enroll("web-1", start).await;
    bench.catch_up().await;
    let held = bench.agents.statistics().feed_seq;
    let (_, second) = bench.enroll("web-2", start).await;

    let agents = Bench::agents(&bench.store, &bench.config).await;
    let told = |feed: &mut Subscription| {
        let mut hosts = Vec::new();
        let mut loads = Vec::new();
        while let Some(piece) = feed.try_next() {
            loads.push(piece.load);
            hosts.extend(piece.changes.iter().filter_map(|change| match change {
                Change::Host(host) => Some(host.id),
                _ => None,
            }));
        }
        (loads, hosts)
    };
    assert_eq!(
        told(&mut agents.subscribe(Some(held))),
        (vec![Load::Changes], vec![second])
    );
    assert_eq!(
        told(&mut agents.subscribe(None)),
        (vec![Load::Whole], vec![first, second])
    );
    let future = FeedSeq(held.0 + 1000);
    assert_eq!(told(&mut agents.subscribe(Some(future))).0, [Load::Whole]);

    let watching = tokio::spawn(Arc::clone(&bench.agents).watch());
    let flushing = tokio::spawn(Arc::clone(&bench.agents).flush_seen());
    let mut feed = bench.agents.subscribe(None);
    while feed.try_next().is_some() {}
    bench
        .store
        .set_agent_options(&json!({"config": {"options": {"verbose": true}}}))
        .await
        .unwrap();
    let query = QuerySpec {
        name: "cpu".into(),
        query: "SELECT 1".into(),
        interval: 10,
        ..QuerySpec::default()
    };
    bench.store.apply_queries(&[query]).await.unwrap();
    bench.agents.poke();
    tokio::time::timeout(DEADLINE, async {
        loop {
            let piece = feed.next().await.expect("subscribed");
            let is_new = |change: &Change| {
                matches!(change, Change::Answer { config, .. }
                if config.starts_with(br#"{"options":{"verbose":true},"packs":{"Global""#))
            };
            if piece.changes.iter().any(is_new) {
                return;
            }
        }
    })
    .await
    .expect("new specs reach the workers");
    bench.agents.finish().await;
    watching.await.unwrap();
    flushing.await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_away_makes_nothing_invalid() {
    let bench = Bench::new().await;
    let start = now();
    let (key, host) = bench.enroll("web-1", start).await;
    let work = bench.read(host, start).await;
    bench.store.close().await;
    let unavailable = Answer::Refused(Reject::StoreUnavailable);
    assert!(matches!(
        bench.lookup(&key, start).await,
        Answer::Host(Some(_))
    ));
    assert_eq!(
        bench.lookup(&Secret::new("other"), start).await,
        unavailable
    );
    assert_eq!(
        bench.one(Request::Read(HostId(77)), start).await,
        unavailable
    );
    assert!(bench.read(host, start).await.queries.is_empty());
    assert_eq!(
        bench
            .one(Request::Write(answers_of(&work, host)), start)
            .await,
        unavailable
    );
    let answer = bench
        .one(Request::Enroll(Box::new(enroll("s3cret", "web-2"))), start)
        .await;
    assert_eq!(answer, unavailable);
    assert_eq!(
        bench.one(Request::Seen(vec![host]), start).await,
        Answer::Accepted
    );
    bench.agents.finish().await;
    assert_eq!(bench.agents.statistics().seen_waiting, 1);

    // A control process that starts now has nothing to feed, so workers keep what they know.
    let agents = Bench::agents(&bench.store, &bench.config).await;
    assert!(!agents.statistics().is_loaded);
    let mut feed = agents.subscribe(None);
    assert!(feed.try_next().is_none());
    let store = Arc::new(
        Store::open(&bench.config, bench.state.path())
            .await
            .unwrap(),
    );
    let loaded = Bench::agents(&store, &bench.config).await;
    let answer = Bench {
        agents: loaded,
        store,
        state: TempDir::new().unwrap(),
        config: bench.config.clone(),
    }
    .one(Request::Write(answers_of(&work, host)), start)
    .await;
    assert_eq!(answer, Answer::Accepted);
}

#[tokio::test]
async fn a_server_that_may_be_behind_makes_nothing_invalid() {
    let bench = Bench::new().await;
    let start = now();
    let (key, host) = bench.enroll("web-1", start).await;
    bench.catch_up().await;
    // A replica that lags behind knows neither the host nor the newest changes.
    bench.store.delete_host(host).await.unwrap();
    bench.store.set_read_only(true);
    let unavailable = Answer::Refused(Reject::StoreUnavailable);
    let others = Secret::new("other");
    assert_eq!(bench.lookup(&others, start).await, unavailable);
    let stranger = Request::Read(HostId(77));
    assert_eq!(bench.one(stranger.clone(), start).await, unavailable);
    let seq = bench.agents.statistics().feed_seq;
    lock(&bench.agents.roster).publish(Some(FeedSeq(seq.0 + 100)));
    let mut again = BTreeSet::from([host]);
    for must_check in [false, true] {
        let looked = bench.agents.look(&mut again, must_check).await;
        assert!(looked.unwrap_err().is_away());
        // Also the whole load must not take it.
        assert!(bench.agents.load_all().await.unwrap_err().is_away());
        assert!(matches!(
            bench.lookup(&key, start).await,
            Answer::Host(Some(found)) if found.id == host
        ));
    }
    // One that starts now serves what there is, and removes nothing either.
    let late = Bench::agents(&bench.store, &bench.config).await;
    assert!(late.statistics().is_loaded);

    bench.store.set_read_only(false);
    bench.agents.look(&mut again, true).await.unwrap();
    assert_eq!(bench.lookup(&key, start).await, Answer::Host(None));
    assert_eq!(bench.lookup(&others, start).await, Answer::Host(None));
    assert_eq!(
        bench.one(stranger, start).await,
        Answer::Refused(Reject::NodeKeyUnknown)
    );
}

#[tokio::test]
async fn results_outlive_an_outage_and_a_restart() {
    let bench = Bench::new().await;
    let start = now();
    let (_, first) = bench.enroll("web-1", start).await;
    let (_, second) = bench.enroll("web-2", start).await;
    let (_, gone) = bench.enroll("web-3", start).await;
    let agents = Bench::agents_in(&bench.store, &bench.config, bench.state.path()).await;
    let before = Bench { agents, ..bench };
    let mut writes = Vec::new();
    for host in [first, second, gone] {
        let work = before.read(host, start).await;
        writes.push(answers_of(&work, host));
    }
    before.store.close().await;
    for write in &writes {
        let answer = before.one(Request::Write(write.clone()), start).await;
        assert_eq!(answer, Answer::Accepted);
    }
    // Acknowledged, so not asked for again.
    assert!(before.read(first, start).await.queries.is_empty());
    before.agents.replay_once().await;
    let spool = before.agents.spool.statistics();
    assert_eq!((spool.kept, spool.waiting, spool.replayed), (3, 3, 0));

    drop(before.agents);
    // The next life finds them. Meanwhile another gateway stored newer results of one host, and one was deleted.
    let store = Store::open(&before.config, before.state.path()).await;
    let store = Arc::new(store.unwrap());
    let other = Bench {
        agents: Bench::agents(&store, &before.config).await,
        store: Arc::clone(&store),
        state: TempDir::new().unwrap(),
        config: before.config.clone(),
    };
    let later = UnixSeconds(start.0 + 60);
    let answer = other.one(Request::Write(writes[1].clone()), later).await;
    assert_eq!(answer, Answer::Accepted);
    store.delete_host(gone).await.unwrap();
    let agents = Bench::agents_in(&store, &before.config, before.state.path()).await;
    let stored = async |host| {
        let state = store.hosts_by_ids(&[host]).await.unwrap().remove(0);
        (state.detail_updated_at, state.label_updated_at)
    };
    assert_eq!(stored(first).await.0, UnixSeconds(0));
    agents.replay_once().await;
    assert_eq!(stored(first).await.0, start);
    assert_eq!(stored(second).await.0, later);
    let spool = agents.spool.statistics();
    assert_eq!((spool.waiting, spool.replayed, spool.bytes), (0, 3, 0));
    assert!(spool.outdated >= 2, "{spool:?}");
    // Nobody reads of the deleted host again.
    assert!(store.hosts_by_ids(&[gone]).await.unwrap().is_empty());
}

#[test]
fn nobody_resumes_over_new_specs() {
    let row = |seq, kind, subject, key| ChangeRow {
        seq: FeedSeq(seq),
        kind,
        subject,
        key,
        at: UnixSeconds(1),
        is_own: false,
    };
    let key = fleet_protocol::ids::NodeKeyHash([7; 32]);
    let rows = [
        row(5, ChangeKind::Host, 1, None),
        row(6, ChangeKind::Specs, 0, None),
        row(7, ChangeKind::Host, 2, Some(key)),
        row(8, ChangeKind::HostDeleted, 3, Some(key)),
        row(9, ChangeKind::EnrollSecrets, 0, None),
        row(10, ChangeKind::Campaign, 2, None),
        row(11, ChangeKind::Unknown(99), 2, None),
    ];
    let recent = recent(FeedSeq(4), rows.iter());
    assert_eq!(recent.since(FeedSeq(5)), None);
    let touched = [
        Touch::Host(HostId(2)),
        Touch::Forget(key),
        Touch::Forget(key),
    ];
    assert_eq!(recent.since(FeedSeq(6)).unwrap(), touched);
    assert_eq!(recent.since(FeedSeq(8)).unwrap(), []);
}
