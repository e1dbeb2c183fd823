//! Specs, settings, carves.

use fleet_protocol::ids::{FeedSeq, HostId, UnixSeconds};
use fleet_protocol::secret::Secret;
use serde_json::{Map, json};

use super::{Bed, enroll_many};
use crate::model::carve::{CarveFilter, NewCarve};
use crate::model::change::ChangeKind;
use crate::model::label::{LabelMembership, LabelSpec, LabelType};
use crate::model::pack::{PackQuery, PackSpec, PackTargets};
use crate::model::query::QuerySpec;
use crate::store::{Error, Store};

fn query(name: &str, sql: &str) -> QuerySpec {
    QuerySpec {
        name: name.into(),
        query: sql.into(),
        interval: 60,
        ..QuerySpec::default()
    }
}

async fn kinds_after(store: &Store, after: FeedSeq) -> Vec<ChangeKind> {
    let changes = store.changes_after(after, 100).await.unwrap();
    changes.iter().map(|change| change.kind).collect()
}

pub(super) async fn queries_are_kept_by_name(bed: &Bed) {
    let store = &bed.store;
    store
        .apply_queries(&[query("b", "SELECT 2"), query("a", "SELECT 1")])
        .await
        .unwrap();
    let first = store.queries().await.unwrap();
    let names: Vec<&str> = first.iter().map(|query| query.spec.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    store
        .apply_queries(&[query("a", "SELECT 3"), query("c", "SELECT 4")])
        .await
        .unwrap();
    let second = store.queries().await.unwrap();
    assert_eq!(second.len(), 3);
    assert_eq!(second[0].id, first[0].id);
    assert_eq!(second[0].spec.query, "SELECT 3");
    assert_eq!(second[1], first[1]);
    for bad in [
        query("", "SELECT 1"),
        query("x", " "),
        query(" x", "SELECT 1"),
    ] {
        let refused = store.apply_queries(&[query("d", "SELECT 1"), bad]).await;
        assert!(matches!(refused, Err(Error::Invalid(_))));
    }
    assert_eq!(store.queries().await.unwrap(), second);
    assert_eq!(store.delete_query("a").await, Ok(true));
    assert_eq!(store.delete_query("a").await, Ok(false));
    let kinds = kinds_after(store, FeedSeq(0)).await;
    assert_eq!(kinds, [ChangeKind::Specs; 3]);
}

pub(super) async fn packs_refer_to_labels_and_queries(bed: &Bed) {
    let store = &bed.store;
    store
        .apply_queries(&[query("q", "SELECT 1")])
        .await
        .unwrap();
    let pack = PackSpec {
        name: "p".into(),
        platform: "linux".into(),
        discovery: vec!["SELECT 1".into()],
        targets: PackTargets {
            labels: vec!["All Hosts".into()],
        },
        queries: vec![
            PackQuery {
                query: "q".into(),
                name: "z".into(),
                interval: 10,
                snapshot: Some(true),
                ..PackQuery::default()
            },
            PackQuery {
                name: "own".into(),
                sql: Some("SELECT 2".into()),
                interval: 20,
                ..PackQuery::default()
            },
        ],
        ..PackSpec::default()
    };
    store
        .apply_packs(std::slice::from_ref(&pack))
        .await
        .unwrap();
    store
        .apply_packs(std::slice::from_ref(&pack))
        .await
        .unwrap();
    let stored = store.packs().await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].spec, pack);
    assert_eq!(stored[0].labels, [crate::model::label::LabelId::ALL_HOSTS]);

    let mut unknown = pack.clone();
    unknown.targets.labels.push("nowhere".into());
    let refused = store.apply_packs(&[unknown]).await;
    assert_eq!(
        refused,
        Err(Error::Invalid("pack \"p\": no label \"nowhere\"".into()))
    );
    let mut unknown = pack.clone();
    unknown.queries[0].query = "nothing".into();
    assert!(matches!(
        store.apply_packs(&[unknown]).await,
        Err(Error::Invalid(_))
    ));
    let mut twice = pack.clone();
    twice.queries[1].name = "z".into();
    assert!(matches!(
        store.apply_packs(&[twice]).await,
        Err(Error::Invalid(_))
    ));
    assert_eq!(store.packs().await.unwrap(), stored);

    assert!(store.delete_query("q").await.unwrap());
    let left = &store.packs().await.unwrap()[0].spec.queries;
    assert_eq!(left, &pack.queries[1..]);
    assert!(store.delete_pack("p").await.unwrap());
    assert!(!store.delete_pack("p").await.unwrap());
    assert!(store.packs().await.unwrap().is_empty());
}

pub(super) async fn manual_labels_have_members(bed: &Bed) {
    let store = &bed.store;
    let hosts = enroll_many(store, 10).await;
    let label = |names: &[&str]| LabelSpec {
        name: "m".into(),
        label_membership_type: LabelMembership::Manual,
        hosts: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..LabelSpec::default()
    };
    let (_, newest) = store.change_bounds().await.unwrap();
    let unknown = store
        .apply_labels(&[label(&["host-1", "host-2.example.com", "nobody"])])
        .await
        .unwrap();
    assert_eq!(unknown, ["nobody"]);
    let kinds = kinds_after(store, newest).await;
    assert_eq!(
        kinds,
        [ChangeKind::Specs, ChangeKind::Host, ChangeKind::Host]
    );
    let labels = store.labels().await.unwrap();
    let id = labels
        .iter()
        .find(|label| label.spec.name == "m")
        .unwrap()
        .id;
    let members = async || store.label_hosts(id, HostId(0), 100).await.unwrap();
    assert_eq!(members().await, [hosts[1], hosts[2]]);
    store
        .apply_labels(&[label(&["host-2", "host-3"])])
        .await
        .unwrap();
    assert_eq!(members().await, [hosts[2], hosts[3]]);
    // Without a list the members stay.
    let bare = LabelSpec {
        hosts: None,
        description: "d".into(),
        ..label(&[])
    };
    store
        .apply_labels(std::slice::from_ref(&bare))
        .await
        .unwrap();
    assert_eq!(members().await, [hosts[2], hosts[3]]);
    // Our own are left alone, others cannot be made.
    let mut builtin = labels[0].spec.clone();
    assert_eq!(builtin.label_type, LabelType::Builtin);
    builtin.description = "changed".into();
    store.apply_labels(&[builtin]).await.unwrap();
    assert_ne!(store.labels().await.unwrap()[0].spec.description, "changed");
    let made = LabelSpec {
        name: "n".into(),
        query: "SELECT 1".into(),
        label_type: LabelType::Builtin,
        ..LabelSpec::default()
    };
    assert!(matches!(
        store.apply_labels(&[made]).await,
        Err(Error::Invalid(_))
    ));
    // A label that becomes dynamic starts empty.
    let dynamic = LabelSpec {
        label_membership_type: LabelMembership::Dynamic,
        query: "SELECT 1".into(),
        ..bare
    };
    store.apply_labels(&[dynamic]).await.unwrap();
    assert!(members().await.is_empty());
}

pub(super) async fn settings_and_secrets_are_kept(bed: &Bed) {
    let store = &bed.store;
    assert_eq!(store.agent_options().await, Ok(json!({})));
    let options = json!({"config": {"options": {"b": 1, "a": [true, null]}}});
    store.set_agent_options(&options).await.unwrap();
    assert_eq!(store.agent_options().await, Ok(options.clone()));
    // Order of members is kept: the config that is made from it is the same bytes each time.
    let text = store.agent_options().await.unwrap().to_string();
    assert_eq!(text, options.to_string());
    assert!(store.set_agent_options(&json!([])).await.is_err());
    assert_eq!(store.app_config().await, Ok(Map::new()));
    let config = json!({"org_info": {"org_name": "x"}})
        .as_object()
        .cloned()
        .unwrap();
    store.set_app_config(&config).await.unwrap();
    assert_eq!(store.app_config().await, Ok(config));

    let (_, newest) = store.change_bounds().await.unwrap();
    let secret = |text: &str| Secret::new(text);
    assert_eq!(
        store.add_first_enroll_secret(&secret("one")).await,
        Ok(true)
    );
    assert_eq!(
        store.add_first_enroll_secret(&secret("two")).await,
        Ok(false)
    );
    store
        .set_enroll_secrets(&[secret("three"), secret("one"), secret("three")])
        .await
        .unwrap();
    let stored = store.enroll_secrets().await.unwrap();
    let mut texts: Vec<&str> = stored.iter().map(|stored| stored.secret.reveal()).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["one", "three"]);
    assert_eq!(
        kinds_after(store, newest).await,
        [ChangeKind::EnrollSecrets; 2]
    );
    for bad in ["", " x", &"x".repeat(256)] {
        let error = store.set_enroll_secrets(&[secret(bad)]).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)));
        assert!(bad.trim().is_empty() || !error.to_string().contains(bad));
    }
    store.set_enroll_secrets(&[]).await.unwrap();
    assert!(store.enroll_secrets().await.unwrap().is_empty());
}

pub(super) async fn carves_make_progress(bed: &Bed) {
    let store = &bed.store;
    let carve = |number: u8, at| NewCarve {
        host: HostId(u32::from(number)),
        session_hash: [number; 32],
        carve_id: "c".into(),
        request_id: "r".into(),
        block_count: 3,
        block_size: 10,
        carve_size: 25,
        at: UnixSeconds(at),
    };
    let first = store.carve_begin(&carve(1, 100)).await.unwrap();
    let second = store.carve_begin(&carve(2, 200)).await.unwrap();
    assert!(first < second);
    let at = UnixSeconds(300);
    store.carve_progress(first, 1, 10, None, at).await.unwrap();
    store.carve_progress(first, 3, 25, None, at).await.unwrap();
    // A repeated block changes nothing.
    store.carve_progress(first, 1, 10, None, at).await.unwrap();
    let stored = store.carve_by_session(&[1; 32]).await.unwrap().unwrap();
    assert_eq!((stored.next_block, stored.bytes), (3, 25));
    assert!(stored.is_complete());
    assert_eq!(stored.updated_at, at);
    assert_eq!(store.carve(first).await, Ok(Some(stored)));
    store
        .carve_progress(second, 0, 0, Some("out of order"), at)
        .await
        .unwrap();
    let failed = store.carve(second).await.unwrap().unwrap();
    assert_eq!(failed.error.as_deref(), Some("out of order"));
    assert_eq!(store.carve_by_session(&[9; 32]).await, Ok(None));
    assert_eq!(
        store.carves(&CarveFilter::default()).await.unwrap().len(),
        2
    );
    let of_host = CarveFilter {
        host: Some(HostId(2)),
        ..CarveFilter::default()
    };
    assert_eq!(store.carves(&of_host).await.unwrap(), [failed]);
    let expired = store.carves_expired(UnixSeconds(150)).await.unwrap();
    assert_eq!(expired.len(), 1);
    assert_eq!(store.carve_delete(expired[0].id).await, Ok(true));
    assert_eq!(store.carve_delete(expired[0].id).await, Ok(false));
    let mut huge = carve(3, 1);
    huge.carve_size = u64::MAX;
    assert!(matches!(
        store.carve_begin(&huge).await,
        Err(Error::Invalid(_))
    ));
}

pub(super) async fn ping_works(bed: &Bed) {
    assert_eq!(bed.store.ping().await, Ok(()));
    let before = bed.statements();
    // Shared with the one just before.
    assert_eq!(bed.store.ping().await, Ok(()));
    assert_eq!(bed.statements(), before);
    assert_eq!(bed.store.missing_migrations().await, Ok(0));
    let statistics = bed.store.statistics();
    assert!(statistics.connections >= 1);
    assert!(statistics.acquire_us.count() >= 1);
    bed.store.close().await;
    assert!(matches!(
        bed.store.host_count().await,
        Err(Error::Unavailable(_))
    ));
}
