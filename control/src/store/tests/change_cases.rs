//! Changes: their order, and many writers at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use serde_json::json;

use super::{Bed, changes, details, enroll_many, enroll_one, enrollment, unseen};
use crate::model::host::HostColumns;
use crate::model::label::{LabelId, LabelResult};

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
