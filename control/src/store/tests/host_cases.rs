//! What hosts say, and what is told of them.

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use serde_json::{Value, json};

use super::{Bed, changes, details, enroll_many, enroll_one, enrollment, unseen};
use crate::model::change::ChangeKind;
use crate::model::host::{HostColumns, HostFilter, HostOrder, HostStatus};
use crate::model::label::{LabelId, LabelResult, LabelSpec};
use crate::store::Error;

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

    assert_eq!(store.request_refetch(hosts[3]).await.unwrap(), Some(true));
    assert_eq!(store.request_refetch(hosts[3]).await.unwrap(), Some(false));
    assert_eq!(store.request_refetch(HostId(999)).await.unwrap(), None);
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

pub(super) async fn hosts_are_found_by_their_names(bed: &Bed) {
    let store = &bed.store;
    let mut hosts = Vec::new();
    for (identifier, serial) in [("a", "s-1"), ("b", "s-2"), ("c", "s-2")] {
        let mut new = enrollment(identifier, "", 1000);
        new.columns.hardware_serial = Some(serial.into());
        new.columns.hardware_uuid = Some(format!("uuid-{identifier}"));
        if identifier == "b" {
            new.columns.computer_name = Some("Bob's".into());
        }
        hosts.push(enroll_one(store, new).await.host.id);
    }
    let [a, b, c] = hosts[..] else {
        panic!("{hosts:?}")
    };
    let names = ["a", "uuid-b", "c.example.com", "s-2", "x", "A"].map(str::to_owned);
    let found = store.hosts_named(&names.into()).await.unwrap();
    let expected = [
        ("a", vec![a]),
        ("c.example.com", vec![c]),
        ("s-2", vec![b, c]),
        ("uuid-b", vec![b]),
    ];
    let expected = expected.map(|(name, hosts)| (name.to_owned(), hosts.into_iter().collect()));
    assert_eq!(found, expected.into());

    let mut names = store.host_names(&[b, a, HostId(999)]).await.unwrap();
    names.sort_by_key(|(host, _)| *host);
    let texts: Vec<_> = names
        .iter()
        .map(|(host, name)| (*host, &*name.hostname, &*name.display_name))
        .collect();
    assert_eq!(
        texts,
        [
            (a, "a.example.com", "a.example.com"),
            (b, "b.example.com", "Bob's")
        ]
    );
}
