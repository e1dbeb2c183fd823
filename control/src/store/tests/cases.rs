//! Hosts, changes, seen marks.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use serde_json::{Value, json};

use super::{Bed, enroll_many, enroll_one, enrollment, unseen};
use crate::clones::ALIVE_UNKNOWN_S;
use crate::model::change::{ChangeKind, ChangeRow};
use crate::model::enrollment::Identity;
use crate::model::host::{HostColumns, HostDetails, HostFilter, HostOrder, HostStatus};
use crate::model::label::{LabelId, LabelResult, LabelSpec};
use crate::store::{Error, Store};

async fn changes(store: &Store, after: FeedSeq) -> Vec<ChangeRow> {
    store.changes_after(after, 100_000).await.unwrap()
}

pub(super) async fn enrolling_again_replaces_the_key(bed: &Bed) {
    let store = &bed.store;
    let first = enroll_one(store, enrollment("a", "1", 1000)).await;
    assert_eq!(first.identity, Identity::New);
    assert_eq!(first.previous_key, None);
    assert_eq!(first.host.labels, [LabelId::ALL_HOSTS]);
    assert!(first.host.refetch_requested);

    let result = LabelResult {
        host: first.host.id,
        at: UnixSeconds(1001),
        memberships: vec![(LabelId(7), true)],
    };
    store.update_labels(&[result]).await.unwrap();
    let (_, newest) = store.change_bounds().await.unwrap();
    let again = enrollment("a", "1", 1002);
    let second = enroll_one(store, again.clone()).await;
    assert_eq!(second.identity, Identity::Same);
    assert_eq!(second.host.id, first.host.id);
    assert_eq!(second.previous_key, Some(first.host.key));
    assert_eq!(second.host.labels, [LabelId::ALL_HOSTS, LabelId(7)]);
    assert_eq!(second.host.label_updated_at, UnixSeconds(0));

    let told = changes(store, newest).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind, ChangeKind::Host);
    assert_eq!(told[0].subject, i64::from(first.host.id.0));
    assert_eq!(told[0].key, Some(first.host.key));
    assert!(told[0].is_own);
    assert!(!changes(&bed.node().await, newest).await[0].is_own);

    // The same batch once more, as after a lost answer.
    let third = enroll_one(store, again).await;
    assert_eq!(third.previous_key, None);
    let stored = store
        .hosts_by_keys(&[third.host.key, first.host.key])
        .await
        .unwrap();
    assert_eq!(stored, [third.host]);
    assert_eq!(store.hosts_after(HostId(0), 10).await.unwrap(), stored);
    assert_eq!(store.host_count().await, Ok(1));
}

pub(super) async fn clones_get_rows_of_their_own(bed: &Bed) {
    let store = &bed.store;
    let owner = enroll_one(store, enrollment("a", "1", 1000)).await;
    let clone = enroll_one(store, enrollment("a", "2", 1010)).await;
    assert_eq!(clone.identity, Identity::Clone);
    assert_eq!(clone.previous_key, None);
    assert_ne!(clone.host.id, owner.host.id);
    // Each finds its own row again, whatever the time.
    let later = 1010 + 10 * ALIVE_UNKNOWN_S;
    let owner = enroll_one(store, enrollment("a", "1", later)).await;
    assert_eq!((owner.identity, owner.host.id), (Identity::Same, HostId(1)));
    let clone = enroll_one(store, enrollment("a", "2", later)).await;
    assert_eq!((clone.identity, clone.host.id), (Identity::Same, HostId(2)));

    // A silent row is taken over by a new database of its owner.
    let wiped_at = later + ALIVE_UNKNOWN_S + 1;
    store
        .mark_seen(&[HostId(1)], UnixSeconds(wiped_at - 5))
        .await
        .unwrap();
    let wiped = enroll_one(store, enrollment("a", "3", wiped_at)).await;
    assert_eq!(
        (wiped.identity, wiped.host.id),
        (Identity::TakenOver, HostId(2))
    );
    assert_eq!(wiped.previous_key, Some(clone.host.key));

    // Marks that are only in memory count.
    let much_later = wiped_at + 10 * ALIVE_UNKNOWN_S;
    let seen = |_| Some(UnixSeconds(much_later));
    let outcomes = store
        .enroll(&[enrollment("a", "4", much_later)], &seen)
        .await
        .unwrap();
    assert_eq!(outcomes[0].identity, Identity::Clone);
}

pub(super) async fn a_batch_may_name_a_host_twice(bed: &Bed) {
    let batch = [
        enrollment("a", "1", 1000),
        enrollment("b", "1", 1000),
        enrollment("a", "1", 1000),
        enrollment("a", "2", 1000),
    ];
    let outcomes = bed.store.enroll(&batch, &unseen).await.unwrap();
    let ids: Vec<u32> = outcomes.iter().map(|outcome| outcome.host.id.0).collect();
    assert_eq!(ids, [1, 2, 1, 3]);
    assert_eq!(outcomes[2].previous_key, Some(batch[0].key));
    let stored = bed.store.hosts_after(HostId(0), 10).await.unwrap();
    let keys: Vec<_> = stored.iter().map(|host| host.key).collect();
    assert_eq!(keys, [batch[2].key, batch[1].key, batch[3].key]);
    assert_eq!(changes(&bed.store, FeedSeq(0)).await.len(), 4);
}

pub(super) async fn enrolling_256_takes_few_statements(bed: &Bed) {
    let batch = |at| -> Vec<_> {
        (0..256)
            .map(|index| enrollment(&format!("h{index}"), "1", at))
            .collect()
    };
    let before = bed.statements();
    bed.store.enroll(&batch(1000), &unseen).await.unwrap();
    let fresh = bed.statements() - before;
    assert!(fresh <= 8 + 2, "{fresh}");
    bed.store.enroll(&batch(1001), &unseen).await.unwrap();
    let again = bed.statements() - before - fresh;
    assert!(again <= 8 + 2, "{again}");
    assert_eq!(bed.store.host_count().await, Ok(256));
}

pub(super) async fn failed_enrolments_burn_no_ids(bed: &Bed) {
    let first = enrollment("a", "1", 1000);
    let mut same_key = enrollment("b", "1", 1000);
    same_key.key = first.key;
    enroll_one(&bed.store, first).await;
    let failed = bed
        .store
        .enroll(&[enrollment("c", "1", 1000), same_key], &unseen)
        .await;
    if bed.is_mysql() {
        // MySQL's upsert updates the other row then; keys are random, so it cannot happen.
        return;
    }
    assert!(matches!(failed, Err(Error::Failed(_))), "{failed:?}");
    assert_eq!(bed.store.host_count().await, Ok(1));
    let next = enroll_one(&bed.store, enrollment("c", "1", 1000)).await;
    assert_eq!(next.host.id, HostId(2));
    let (_, newest) = bed.store.change_bounds().await.unwrap();
    assert_eq!(newest, FeedSeq(2));
    let mode = std::fs::metadata(bed.store.location())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

pub(super) async fn long_and_odd_values_are_taken(bed: &Bed) {
    let store = &bed.store;
    let mut odd = enrollment(&"ü".repeat(400), &"i".repeat(400), 1000);
    odd.columns.hostname = Some("😀\u{0}'\"\\%;--".repeat(100));
    odd.columns.memory = Some(i64::MAX);
    odd.details
        .insert("x".into(), json!([{"y": "😀\u{0}'\"\\"}]));
    let outcome = enroll_one(store, odd.clone()).await;
    let id = outcome.host.id.0.to_string();
    let detail = store.host_detail(&id).await.unwrap().unwrap();
    assert_eq!(detail.details, odd.details);
    assert_eq!(detail.row.columns.memory, Some(i64::MAX));
    let hostname = detail.row.columns.hostname.unwrap();
    assert!(odd.columns.hostname.unwrap().starts_with(&hostname));
    assert_eq!(hostname.chars().count(), 255);
    let again = enroll_one(store, enrollment(&"ü".repeat(400), &"i".repeat(400), 1001)).await;
    assert_eq!(again.host.id, outcome.host.id);
    // By its whole identifier, too.
    assert!(store.host_detail(&"ü".repeat(400)).await.unwrap().is_some());
    // Identifiers that differ in case, trailing space or accents are different.
    for name in ["a", "A", "a ", "á"] {
        enroll_one(store, enrollment(name, "", 1000)).await;
    }
    assert_eq!(store.host_count().await, Ok(5));
}

fn details(host: HostId, at: u32, columns: HostColumns, members: Value) -> HostDetails {
    HostDetails {
        host,
        at: UnixSeconds(at),
        columns,
        details: members.as_object().cloned().unwrap(),
    }
}

pub(super) async fn details_are_merged(bed: &Bed) {
    let store = &bed.store;
    let hosts = enroll_many(store, 70).await;
    let columns = |uptime| HostColumns {
        uptime: Some(uptime),
        public_ip: Some("2001:db8::7".into()),
        ..HostColumns::default()
    };
    let batch: Vec<_> = hosts
        .iter()
        .rev()
        .map(|host| {
            details(
                *host,
                2000,
                columns(5),
                json!({"a": [{"b": "1"}], "c": {"d": "2"}}),
            )
        })
        .collect();
    let before = bed.statements();
    store.update_details(&batch).await.unwrap();
    let statements = bed.statements() - before;
    assert!(statements <= 9, "{statements}");
    let (_, newest) = store.change_bounds().await.unwrap();
    assert_eq!(changes(store, FeedSeq(70)).await.len(), 70);
    // Twice the same is the same.
    store.update_details(&batch).await.unwrap();
    let one = details(
        hosts[3],
        2001,
        HostColumns::default(),
        json!({"c": null, "e": []}),
    );
    store.update_details(&[one]).await.unwrap();
    assert_eq!(changes(store, newest).await.len(), 71);
    let found = store.host_detail("host-3").await.unwrap().unwrap();
    assert_eq!(
        Value::Object(found.details),
        json!({"a": [{"b": "1"}], "e": []})
    );
    assert_eq!(found.row.columns.uptime, Some(5));
    assert_eq!(found.row.columns.public_ip.as_deref(), Some("2001:db8::7"));
    assert_eq!(found.row.columns.platform.as_deref(), Some("ubuntu"));
    assert_eq!(found.row.detail_updated_at, UnixSeconds(2001));
    assert!(!found.row.refetch_requested);
    assert_eq!(found.labels, [(LabelId::ALL_HOSTS, "All Hosts".to_owned())]);

    assert!(store.request_refetch(hosts[3]).await.unwrap());
    assert!(!store.request_refetch(HostId(999)).await.unwrap());
    let state = store.hosts_by_ids(&[hosts[3]]).await.unwrap();
    assert!(state[0].refetch_requested);
    // Somebody who has been deleted meanwhile does not come back.
    store
        .update_details(&[details(HostId(999), 1, columns(1), json!({}))])
        .await
        .unwrap();
    assert!(store.hosts_by_ids(&[HostId(999)]).await.unwrap().is_empty());
}

pub(super) async fn label_results_are_written_once(bed: &Bed) {
    let store = &bed.store;
    let hosts = enroll_many(store, 100).await;
    let specs = ["x", "y"].map(|name| LabelSpec {
        name: name.into(),
        query: "SELECT 1".into(),
        ..LabelSpec::default()
    });
    assert!(store.apply_labels(&specs).await.unwrap().is_empty());
    let labels = store.labels().await.unwrap();
    let id = |name: &str| {
        labels
            .iter()
            .find(|label| label.spec.name == name)
            .unwrap()
            .id
    };
    let (x, y) = (id("x"), id("y"));
    let batch = |in_y: bool| -> Vec<LabelResult> {
        hosts
            .iter()
            .map(|host| LabelResult {
                host: *host,
                at: UnixSeconds(2000),
                memberships: vec![(x, true), (y, in_y), (LabelId::ALL_HOSTS, false)],
            })
            .collect()
    };
    assert_eq!(store.update_labels(&batch(true)).await.unwrap(), hosts);
    assert!(store.update_labels(&batch(true)).await.unwrap().is_empty());
    assert_eq!(store.update_labels(&batch(false)).await.unwrap(), hosts);
    let states = store.hosts_after(HostId(0), 1000).await.unwrap();
    assert_eq!(states.len(), 100);
    assert!(
        states
            .iter()
            .all(|host| host.labels == [LabelId::ALL_HOSTS, x])
    );
    assert!(
        states
            .iter()
            .all(|host| host.label_updated_at == UnixSeconds(2000))
    );
    assert_eq!(store.hosts_by_ids(&hosts).await.unwrap(), states);
    let labels = store.labels().await.unwrap();
    let count = |id: LabelId| {
        labels
            .iter()
            .find(|label| label.id == id)
            .unwrap()
            .host_count
    };
    assert_eq!([LabelId::ALL_HOSTS, x, y].map(count), [100, 100, 0]);
    assert_eq!(store.label_hosts(x, HostId(0), 1000).await.unwrap(), hosts);
    assert!(store.delete_label("x").await.unwrap());
    assert!(!store.delete_label("x").await.unwrap());
    assert!(
        store
            .label_hosts(x, HostId(0), 1000)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(matches!(
        store.delete_label("All Hosts").await,
        Err(Error::Invalid(_))
    ));
}

pub(super) async fn seen_marks_of_20000_hosts_take_10_statements(bed: &Bed) {
    let store = &bed.store;
    let hosts: Vec<HostId> = (1..=20_000).rev().map(HostId).collect();
    let before = bed.statements();
    store.mark_seen(&hosts, UnixSeconds(2000)).await.unwrap();
    assert_eq!(bed.statements() - before, 10);
    // A mark is never moved back.
    store
        .mark_seen(&hosts[..5000], UnixSeconds(1000))
        .await
        .unwrap();
    let seen = store.seen_after(HostId(0), 30_000).await.unwrap();
    assert_eq!(seen.len(), 20_000);
    assert!(seen.iter().all(|(_, at)| *at == UnixSeconds(2000)));
    store
        .mark_seen(&hosts[..3], UnixSeconds(3000))
        .await
        .unwrap();
    let seen = store.seen_after(HostId(19_996), 30_000).await.unwrap();
    let times: Vec<u32> = seen.iter().map(|(_, at)| at.0).collect();
    assert_eq!(times, [2000, 3000, 3000, 3000]);
}

pub(super) async fn numbers_become_visible_in_order(bed: &Bed) {
    let hosts = enroll_many(&bed.store, 40).await;
    let (_, start) = bed.store.change_bounds().await.unwrap();
    let mut writers = Vec::new();
    for part in 0..4_usize {
        let node = bed.node().await;
        let hosts: Vec<HostId> = hosts.iter().copied().skip(part * 10).take(10).collect();
        writers.push(tokio::spawn(async move {
            for at in 0..10 {
                let columns = HostColumns::default();
                let batch: Vec<_> = hosts
                    .iter()
                    .map(|host| details(*host, at, columns.clone(), json!({})))
                    .collect();
                node.update_details(&batch).await.unwrap();
            }
        }));
    }
    // Reading after the last one seen gets every number, none of them late.
    let mut next = start.0 + 1;
    while next <= start.0 + 400 {
        for change in changes(&bed.store, FeedSeq(next - 1)).await {
            assert_eq!(change.seq.0, next);
            next += 1;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(
        bed.store.change_bounds().await.unwrap().1,
        FeedSeq(start.0 + 400)
    );
}

pub(super) async fn concurrent_writers_never_fail(bed: &Bed) {
    let hosts = Arc::new(enroll_many(&bed.store, 300).await);
    let store = Arc::new(bed.node().await);
    let mut writers = Vec::new();
    for writer in 0..6_u32 {
        let (store, hosts) = (store.clone(), hosts.clone());
        writers.push(tokio::spawn(async move {
            let mut mine = hosts.to_vec();
            for round in 0..8_u32 {
                fastrand::shuffle(&mut mine);
                let at = UnixSeconds(round);
                match writer % 3 {
                    0 => store.mark_seen(&mine, at).await.unwrap(),
                    1 => {
                        let batch: Vec<_> = mine
                            .iter()
                            .map(|host| LabelResult {
                                host: *host,
                                at,
                                memberships: vec![(LabelId(50 + writer), round % 2 == 0)],
                            })
                            .collect();
                        store.update_labels(&batch).await.unwrap();
                    }
                    _ => {
                        let batch: Vec<_> = mine
                            .iter()
                            .map(|host| details(*host, round, HostColumns::default(), json!({})))
                            .collect();
                        store.update_details(&batch).await.unwrap();
                        let names = (0..40).map(|index| format!("host-{index}"));
                        let batch: Vec<_> = names.map(|name| enrollment(&name, "", 1)).collect();
                        store.enroll(&batch, &unseen).await.unwrap();
                    }
                }
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.host_count().await, Ok(300));
    let statistics = store.statistics();
    eprintln!("{} retries after deadlocks", statistics.retries);
}

pub(super) async fn dropped_calls_leave_no_trace(bed: &Bed) {
    let store = &bed.store;
    for index in 0..30_u64 {
        let batch = [enrollment(&format!("dropped-{index}"), "", 1000)];
        let call = store.enroll(&batch, &unseen);
        let _ = tokio::time::timeout(Duration::from_micros(100 * index), call).await;
    }
    let (count, states) = tokio::join!(store.host_count(), store.hosts_after(HostId(0), 100));
    assert_eq!(count.unwrap(), states.unwrap().len() as u64);
    let outcome = enroll_one(store, enrollment("kept", "", 1000)).await;
    let all = store.hosts_after(HostId(0), 100).await.unwrap();
    let ids: BTreeSet<HostId> = all.iter().map(|host| host.id).collect();
    assert_eq!(ids.last(), Some(&outcome.host.id));
    // No number is missing: what was not committed left nothing.
    assert_eq!(ids.len(), outcome.host.id.0 as usize);
    assert_eq!(changes(store, FeedSeq(0)).await.len(), ids.len());
}

pub(super) async fn hosts_are_deleted(bed: &Bed) {
    let store = &bed.store;
    let hosts = enroll_many(store, 3).await;
    store.mark_seen(&hosts, UnixSeconds(5)).await.unwrap();
    let (_, newest) = store.change_bounds().await.unwrap();
    let state = store.delete_host(hosts[1]).await.unwrap().unwrap();
    assert_eq!(state.id, hosts[1]);
    assert_eq!(store.delete_host(hosts[1]).await, Ok(None));
    assert!(store.hosts_by_keys(&[state.key]).await.unwrap().is_empty());
    assert_eq!(store.host_count().await, Ok(2));
    let told = changes(store, newest).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind, ChangeKind::HostDeleted);
    assert_eq!(told[0].key, Some(state.key));
    // It comes back as a new row; ids are not given twice.
    let again = enroll_one(store, enrollment("host-1", "", 1_000_001)).await;
    assert_eq!(again.host.id, HostId(4));
    // What late writes leave goes with the change that tells of the deletion.
    store.mark_seen(&[hosts[1]], UnixSeconds(9)).await.unwrap();
    let late = details(hosts[1], 9, HostColumns::default(), json!({}));
    store.update_details(&[late]).await.unwrap();
    assert_eq!(store.prune(UnixSeconds(u32::MAX)).await, Ok(0));
    for round in 0..3 {
        let batch: Vec<_> = (0..200)
            .map(|index| enrollment(&format!("later-{round}-{index}"), "", 1))
            .collect();
        store.enroll(&batch, &unseen).await.unwrap();
    }
    assert!(store.prune(UnixSeconds(u32::MAX)).await.unwrap() > 0);
    let seen = store.seen_after(HostId(0), 10).await.unwrap();
    assert_eq!(
        seen.iter().map(|(host, _)| *host).collect::<Vec<_>>(),
        [hosts[0], hosts[2]]
    );
}

pub(super) async fn changes_are_pruned(bed: &Bed) {
    let store = &bed.store;
    assert_eq!(store.change_bounds().await, Ok((FeedSeq(0), FeedSeq(0))));
    enroll_many(store, 2000).await;
    assert_eq!(store.change_bounds().await, Ok((FeedSeq(1), FeedSeq(2000))));
    assert_eq!(store.prune(UnixSeconds(0)).await, Ok(0));
    let pruned = store.prune(UnixSeconds(u32::MAX)).await.unwrap();
    let (oldest, newest) = store.change_bounds().await.unwrap();
    assert_eq!(newest, FeedSeq(2000));
    assert_eq!(oldest.0, pruned + 1);
    assert!(pruned > 1000 && pruned < 2000, "{pruned}");
}

pub(super) async fn hosts_are_listed(bed: &Bed) {
    let store = &bed.store;
    let hosts = enroll_many(store, 25).await;
    let now = 1_000_000 + 40 * 24 * 3600;
    store
        .mark_seen(&hosts[..5], UnixSeconds(now))
        .await
        .unwrap();
    store
        .mark_seen(&hosts[5..10], UnixSeconds(now - 3600))
        .await
        .unwrap();
    let list = async |filter: HostFilter| -> Vec<u32> {
        let rows = store.host_list(&filter).await.unwrap();
        rows.iter().map(|row| row.id.0).collect()
    };
    let page = HostFilter {
        per_page: 10,
        page: 2,
        ..HostFilter::default()
    };
    assert_eq!(list(page).await, [21, 22, 23, 24, 25]);
    let status = |status| HostFilter {
        status: Some(status),
        now: UnixSeconds(now),
        ..HostFilter::default()
    };
    assert_eq!(list(status(HostStatus::Online)).await, [1, 2, 3, 4, 5]);
    assert_eq!(list(status(HostStatus::Offline)).await, [6, 7, 8, 9, 10]);
    assert_eq!(list(status(HostStatus::Mia)).await.len(), 15);
    assert!(list(status(HostStatus::New)).await.is_empty());
    let text = |text: &str| HostFilter {
        text: Some(text.into()),
        ..HostFilter::default()
    };
    assert_eq!(list(text("HOST-7.EX")).await, [8]);
    assert!(list(text("%")).await.is_empty());
    let sorted = HostFilter {
        order: HostOrder::SeenAt,
        is_descending: true,
        per_page: 2,
        ..HostFilter::default()
    };
    assert_eq!(list(sorted).await, [5, 4]);
    let after = HostFilter {
        after: Some(HostId(23)),
        platform: Some("ubuntu".into()),
        label: Some(LabelId::ALL_HOSTS),
        ..HostFilter::default()
    };
    assert_eq!(list(after).await, [24, 25]);
    let row = &store.host_list(&HostFilter::default()).await.unwrap()[0];
    assert_eq!(row.seen_at, UnixSeconds(now));
    assert_eq!(row.address, "192.0.2.1");
    assert_eq!(row.columns.public_ip, None, "nobody has told another");
    assert_eq!(
        row.status(row.seen_at, UnixSeconds(now)),
        HostStatus::Online
    );
    for name in ["1", "host-0", "host-0.example.com"] {
        let found = store.host_detail(name).await.unwrap().unwrap();
        assert_eq!(found.row, *row, "{name}");
    }
    assert!(store.host_detail("nobody").await.unwrap().is_none());
}
