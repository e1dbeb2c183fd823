//! Enrolments.

use std::os::unix::fs::PermissionsExt as _;

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use serde_json::json;

use super::{Bed, changes, enroll_one, enrollment, unseen};
use crate::clones::ALIVE_UNKNOWN_S;
use crate::model::change::ChangeKind;
use crate::model::enrollment::Identity;
use crate::model::host::HostState;
use crate::model::label::{LabelId, LabelResult};
use crate::store::Error;

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
    assert_eq!(store.hosts_after(HostId(0), 10).await.unwrap(), stored);
    let unnamed = |host: &HostState| HostState {
        names: None,
        ..host.clone()
    };
    let named = stored[0].names.as_ref().unwrap();
    assert_eq!(named.hostname, "a.example.com");
    assert_eq!(stored.iter().map(unnamed).collect::<Vec<_>>(), [third.host]);
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
