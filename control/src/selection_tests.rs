//! Memory and the store choose the same hosts in the same order.

use std::path::Path;
use std::sync::Arc;

use fleet_protocol::config::Config;
use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use serde_json::Map;

use crate::agents::Agents;
use crate::bus::Bus;
use crate::model::enrollment::NewEnrollment;
use crate::model::host::{
    HostColumns, HostDetails, HostFilter, HostOrder, HostStatus, MIA_AFTER_S, SortValue,
};
use crate::model::label::{LabelId, LabelResult};
use crate::spool::Spool;
use crate::store::{Store, quiet};

const HOSTS: u32 = 60;
const NOW: UnixSeconds = UnixSeconds(1_700_000_000);
const HOUR: u32 = 3600;
const PLATFORMS: [&str; 3] = ["ubuntu", "darwin", "windows"];
const NAMES: [&str; 4] = ["Web", "db", "db-%_!", "build"];

fn columns(index: u32) -> HostColumns {
    let pick = |from: &[&str], step: u32| {
        let place = usize::try_from(index / step).unwrap() % from.len();
        Some(from[place].to_owned())
    };
    HostColumns {
        platform: pick(&PLATFORMS, 1),
        // Some have none, some the same.
        hostname: (!index.is_multiple_of(7))
            .then(|| format!("{}-{}", NAMES[(index % 4) as usize], index % 20)),
        computer_name: index.is_multiple_of(5).then(|| format!("Desk {index}")),
        hardware_uuid: Some(format!("UUID-{index:04}")),
        hardware_serial: index.is_multiple_of(3).then(|| format!("C0{index}")),
        primary_ip: Some(format!("10.0.0.{index}")),
        public_ip: Some("192.0.2.1".into()),
        os_version: pick(&["Ubuntu 24.04", "macOS 15.1", "Windows 11"], 2),
        osquery_version: pick(&["5.9.1", "5.12.0"], 3),
        distributed_interval: index.is_multiple_of(2).then_some(10),
        config_refresh: index.is_multiple_of(3).then_some(300),
        ..HostColumns::default()
    }
}

async fn fill(store: &Store) {
    let ages = [0, 2 * HOUR, 30 * HOUR, MIA_AFTER_S + HOUR];
    for index in 0..HOSTS {
        let age_s = ages[(index % 4) as usize];
        let enrollment = NewEnrollment {
            key: NodeKeyHash([u8::try_from(index).unwrap(); 32]),
            identifier: format!("id-{index}"),
            instance_id: String::new(),
            address: [192, 0, 2, 7].into(),
            at: UnixSeconds(NOW.0 - age_s),
            columns: HostColumns::default(),
            details: Map::new(),
        };
        let outcomes = store.enroll(&[enrollment], &|_| None).await.unwrap();
        let host = outcomes[0].host.id;
        let details = HostDetails {
            host,
            at: NOW,
            columns: columns(index),
            details: Map::new(),
        };
        store.update_details(&[details]).await.unwrap();
        let memberships = vec![(LabelId(7), index % 3 == 0), (LabelId(2), index % 4 == 1)];
        let labels = LabelResult {
            host,
            at: NOW,
            memberships,
        };
        store.update_labels(&[labels]).await.unwrap();
        if index % 5 != 0 {
            let seen_at = UnixSeconds(NOW.0 - age_s / 2);
            store.mark_seen(&[host], seen_at).await.unwrap();
        }
    }
}

async fn bench(state_dir: &Path) -> (Arc<Store>, Arc<Agents>) {
    let config = Config::default();
    let store = Arc::new(Store::open(&config, state_dir).await.unwrap());
    store.prepare(&quiet).await.unwrap();
    fill(&store).await;
    let bus = Arc::new(Bus::open(&config).unwrap());
    let spool = Arc::new(Spool::open(state_dir));
    let agents = Agents::load(Arc::clone(&store), bus, spool, &config)
        .await
        .unwrap();
    (store, agents)
}

fn order() -> impl Strategy<Value = HostOrder> {
    select(vec![
        HostOrder::Id,
        HostOrder::Hostname,
        HostOrder::SeenAt,
        HostOrder::EnrolledAt,
        HostOrder::OsVersion,
        HostOrder::OsqueryVersion,
    ])
}

fn beyond(order: HostOrder) -> BoxedStrategy<Option<SortValue>> {
    let texts =
        |texts: Vec<&'static str>| select(texts).prop_map(|text| SortValue::Text(text.into()));
    let value = match order {
        HostOrder::Id => (0..HOSTS).prop_map(SortValue::Number).boxed(),
        HostOrder::SeenAt | HostOrder::EnrolledAt => (0..MIA_AFTER_S)
            .prop_map(|age_s| SortValue::Number(NOW.0 - age_s))
            .boxed(),
        HostOrder::Hostname => texts(vec!["a", "db-1", "Web-9", "zz"]).boxed(),
        HostOrder::OsVersion => texts(vec!["Ubuntu 24.04", "a"]).boxed(),
        HostOrder::OsqueryVersion => texts(vec!["5.12.0", "5.10"]).boxed(),
    };
    prop::option::weighted(0.2, value).boxed()
}

fn filters() -> impl Strategy<Value = HostFilter> {
    let texts = vec![
        "web", "DB", "-1", "%", "_", "!", "uuid-000", "c0", "10.0.0.1", "desk", "x y",
    ];
    let states = vec![
        HostStatus::Online,
        HostStatus::Offline,
        HostStatus::Mia,
        HostStatus::New,
    ];
    let labels = vec![LabelId(1), LabelId(2), LabelId(7), LabelId(99)];
    let chosen = (
        prop::option::of(select(texts)),
        prop::option::weighted(0.3, select(PLATFORMS.to_vec())),
        prop::option::weighted(0.3, select(labels)),
        prop::option::weighted(0.3, select(states)),
    );
    let page = (0_u32..5, 1_u32..40, any::<bool>(), order());
    (chosen, page)
        .prop_flat_map(|(chosen, page)| (Just(chosen), Just(page), beyond(page.3)))
        .prop_map(
            |((text, platform, label, status), (page, per_page, is_descending, order), beyond)| {
                HostFilter {
                    after: None,
                    beyond,
                    page,
                    per_page,
                    order,
                    is_descending,
                    text: text.map(str::to_owned),
                    label,
                    platform: platform.map(str::to_owned),
                    is_clone: false,
                    status,
                    now: NOW,
                }
            },
        )
}

#[test]
fn memory_and_the_store_agree() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (store, agents) = runtime.block_on(bench(dir.path()));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&filters(), |filter| {
        let (selection, rows, count) = runtime.block_on(async {
            let selection = agents.select(&filter).await.unwrap();
            let rows = store.host_list(&filter).await.unwrap();
            let count = store.reports().host_count_of(&filter).await.unwrap();
            (selection, rows, count)
        });
        let stored: Vec<HostId> = rows.iter().map(|row| row.id).collect();
        prop_assert_eq!(&selection.hosts, &stored);
        prop_assert_eq!(selection.count, count);
        let read = runtime.block_on(store.reports().host_rows(&selection.hosts));
        prop_assert_eq!(read.unwrap(), rows);
        Ok(())
    });
    outcome.unwrap();
    let summary = runtime.block_on(agents.summary(NOW)).unwrap();
    assert_eq!(summary.counts.enrolled, u64::from(HOSTS));
    assert_eq!(summary.platforms.values().sum::<u64>(), u64::from(HOSTS));
}
