use fleet_protocol::ids::UnixSeconds;
use proptest::prelude::*;

use super::*;
use crate::model::label::LabelSpec;
use crate::model::pack::{PackId, PackSpec, PackTargets};
use crate::model::query::{QueryId, QuerySpec};

fn query(name: &str, interval: u32, logging: QueryLogging) -> Query {
    Query {
        id: QueryId(1),
        spec: QuerySpec {
            name: name.into(),
            query: format!("SELECT '{name}'"),
            interval,
            logging,
            ..QuerySpec::default()
        },
        updated_at: UnixSeconds(1),
    }
}

fn pack(name: &str, labels: &[u32], queries: Vec<PackQuery>) -> Pack {
    Pack {
        id: PackId(1),
        spec: PackSpec {
            name: name.into(),
            targets: PackTargets { labels: vec![] },
            queries,
            ..PackSpec::default()
        },
        labels: labels.iter().copied().map(LabelId).collect(),
        updated_at: UnixSeconds(1),
    }
}

fn pack_query(query: &str, interval: u32) -> PackQuery {
    PackQuery {
        query: query.into(),
        interval,
        ..PackQuery::default()
    }
}

fn label(id: u32, name: &str, platform: &str, label_type: LabelType) -> Label {
    Label {
        id: LabelId(id),
        spec: LabelSpec {
            name: name.into(),
            platform: platform.into(),
            label_type,
            label_membership_type: LabelMembership::Dynamic,
            ..LabelSpec::default()
        },
        host_count: 0,
        updated_at: UnixSeconds(1),
    }
}

fn specs() -> Specs {
    Specs {
        agent_options: json!({
            "config": {"options": {"pack_delimiter": "/", "logger_tls_period": 10}},
            "overrides": {"platforms": {
                "darwin": {"options": {"distributed_interval": 5}},
                "linux": {"views": {"v": "SELECT 1"}},
                "ubuntu": {"options": {"verbose": true}},
            }},
        }),
        packs: vec![
            pack(
                "zeta",
                &[7],
                vec![pack_query("cpu", 60), pack_query("gone", 60)],
            ),
            pack(
                "alpha",
                &[1],
                vec![pack_query("cpu", 0), pack_query("mem", 604_801)],
            ),
            pack("untargeted", &[], vec![pack_query("cpu", 60)]),
        ],
        queries: vec![
            query("mem", 300, QueryLogging::DifferentialIgnoreRemovals),
            query("cpu", 60, QueryLogging::Snapshot),
            query("disk", 60, QueryLogging::Differential),
            query("adhoc", 0, QueryLogging::Snapshot),
        ],
        labels: vec![
            label(1, "All Hosts", "", LabelType::Builtin),
            label(7, "seven", "", LabelType::Regular),
        ],
    }
}

fn config(specs: &Specs, platform: &str, labels: &[u32]) -> Value {
    let composer = Composer::of(specs);
    let labels: Vec<LabelId> = labels.iter().copied().map(LabelId).collect();
    serde_json::from_slice(&composer.compose(&composer.key(platform, &labels))).unwrap()
}

#[test]
fn overrides_replace_and_the_exact_platform_wins() {
    let specs = specs();
    assert_eq!(
        config(&specs, "windows", &[])["options"],
        json!({"pack_delimiter": "/", "logger_tls_period": 10})
    );
    assert_eq!(
        config(&specs, "darwin", &[])["options"],
        json!({"distributed_interval": 5})
    );
    assert_eq!(
        config(&specs, "ubuntu", &[])["options"],
        json!({"verbose": true})
    );
    let centos = config(&specs, "centos", &[]);
    assert_eq!(centos.get("options"), None);
    assert_eq!(centos["views"], json!({"v": "SELECT 1"}));
    assert_eq!(config(&specs, "", &[])["options"]["pack_delimiter"], "/");
}

#[test]
fn packs_follow_labels_and_scheduled_queries_go_to_all() {
    let specs = specs();
    let all = config(&specs, "windows", &[1]);
    assert_eq!(all["packs"]["alpha"]["queries"], json!({}));
    assert!(all["packs"].get("zeta").is_none() && all["packs"].get("untargeted").is_none());
    let seven = config(&specs, "windows", &[1, 3, 7]);
    let cpu = json!({"cpu": {"interval": 60, "query": "SELECT 'cpu'"}});
    assert_eq!(seven["packs"]["zeta"]["queries"], cpu);
    assert_eq!(
        seven["packs"]["Global"]["queries"],
        json!({
            "cpu": {"interval": 60, "query": "SELECT 'cpu'", "snapshot": true},
            "disk": {"interval": 60, "query": "SELECT 'disk'", "removed": true},
            "mem": {"interval": 300, "query": "SELECT 'mem'", "removed": false},
        })
    );
    assert_eq!(config(&Specs::default(), "ubuntu", &[1]), json!({}));
}

#[test]
fn disabled_packs_decide_nothing() {
    let mut specs = specs();
    specs.packs[0].spec.disabled = true;
    let composer = Composer::of(&specs);
    assert_eq!(
        composer.key("x", &[LabelId(1), LabelId(7)]).labels.as_ref(),
        [LabelId(1)]
    );
}

#[test]
fn pack_members_are_kept_where_set() {
    let mut specs = specs();
    specs.packs = vec![pack(
        "p",
        &[1],
        vec![PackQuery {
            name: "own".into(),
            sql: Some("SELECT 2".into()),
            interval: 5,
            snapshot: Some(false),
            removed: Some(true),
            shard: Some(50),
            platform: Some("linux".into()),
            version: Some("5.0.0".into()),
            denylist: Some(false),
            ..PackQuery::default()
        }],
    )];
    specs.packs[0].spec.platform = "posix".into();
    specs.packs[0].spec.discovery = vec!["SELECT 1".into()];
    let pack = &config(&specs, "ubuntu", &[1])["packs"]["p"];
    assert_eq!(pack["platform"], "posix");
    assert_eq!(pack["discovery"], json!(["SELECT 1"]));
    assert_eq!(
        pack["queries"]["own"],
        json!({"query": "SELECT 2", "interval": 5, "snapshot": false, "removed": true, "shard": 50,
            "platform": "linux", "version": "5.0.0", "denylist": false})
    );
}

#[test]
fn dangerous_members_are_never_sent() {
    let mut specs = specs();
    specs.agent_options = json!({"config": {"node_invalid": true, "error": 1,
        "decorators": {"interval": {"0": ["SELECT 1"], "x": [], "60": ["SELECT 2"]}}}});
    let text = check(&specs).unwrap_err();
    assert!(
        text.contains("decorators.interval") && text.contains("\"0\""),
        "{text}"
    );
    let config = config(&specs, "windows", &[]);
    assert_eq!(
        config["decorators"]["interval"],
        json!({"60": ["SELECT 2"]})
    );
    assert!(config.get("error").is_none() && config.get("node_invalid").is_none());
}

#[test]
fn limits_are_checked_and_named() {
    let mut specs = specs();
    assert_eq!(check(&specs), Ok(()));
    specs.agent_options = json!({"config": []});
    assert!(check(&specs).unwrap_err().contains("must be an object"));
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    specs.agent_options = json!({"overrides": {"platforms": {"darwin": {"x": deep}}}});
    let text = check(&specs).unwrap_err();
    assert!(
        text.contains("darwin") && text.contains("42 nesting levels"),
        "{text}"
    );
    specs.agent_options = json!({});
    let big = |size: usize| PackQuery {
        sql: Some("x".repeat(size)),
        name: "q".into(),
        interval: 1,
        ..PackQuery::default()
    };
    specs.packs = vec![
        pack("small", &[7], vec![big(600_000)]),
        pack("large", &[1], vec![big(700_000)]),
    ];
    let text = check(&specs).unwrap_err();
    assert!(
        text.contains("\"large\"") && text.contains("All Hosts"),
        "{text}"
    );
    // Should it come to that all the same, the config stays one that agents take.
    let composer = Composer::of(&specs);
    let bytes = composer.compose(&composer.key("ubuntu", &[LabelId(1), LabelId(7)]));
    assert!((600_000..CONFIG_BYTES_MAX).contains(&bytes.len()));
}

#[test]
fn labels_of_different_systems_do_not_add_up() {
    let mut specs = Specs::default();
    let big = |name: &str, labels: &[u32]| {
        let query = PackQuery {
            sql: Some("x".repeat(600_000)),
            name: "q".into(),
            interval: 1,
            ..PackQuery::default()
        };
        pack(name, labels, vec![query])
    };
    specs.labels = vec![
        label(2, "macOS", "", LabelType::Builtin),
        label(3, "MS Windows", "", LabelType::Builtin),
        label(4, "web", "linux", LabelType::Regular),
        label(5, "db", "ubuntu", LabelType::Regular),
    ];
    specs.packs = vec![big("m", &[2]), big("w", &[3]), big("l", &[4])];
    assert_eq!(check(&specs), Ok(()));
    specs.packs.push(big("d", &[5]));
    assert!(check(&specs).unwrap_err().contains("platform linux"));
}

#[test]
fn a_pack_may_not_take_the_scheduled_queries_name() {
    let mut specs = specs();
    specs.packs.push(pack("Global", &[1], vec![]));
    assert!(check(&specs).unwrap_err().contains("Global"));
}

#[test]
fn answer_ids_depend_on_class_and_labels_alone() {
    let key = |class: &str, labels: &[u32]| ConfigKey {
        class: class.into(),
        labels: labels.iter().copied().map(LabelId).collect(),
    };
    let keys = [
        key("", &[]),
        key("a", &[]),
        key("", &[1]),
        key("", &[1, 2]),
        key("a", &[1]),
    ];
    let ids: BTreeSet<AnswerId> = keys.iter().map(ConfigKey::answer_id).collect();
    assert_eq!(ids.len(), keys.len());
    // Fixed for ever: nodes of different builds must agree. First bytes of the SHA-256 of one zero byte.
    assert_eq!(key("", &[]).answer_id(), AnswerId(0x6e34_0b9c_ffb3_7a98));
}

fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for index in (1..items.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        items.swap(index, usize::try_from(seed >> 33).unwrap() % (index + 1));
    }
}

fn reversed(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .rev()
            .map(|(name, value)| (name.clone(), reversed(value)))
            .collect(),
        Value::Array(elements) => elements.iter().map(reversed).collect(),
        scalar => scalar.clone(),
    }
}

proptest! {
    #[test]
    fn bytes_do_not_depend_on_order(
        names in prop::collection::btree_set("[a-z]{1,6}", 1..8),
        labels in prop::collection::btree_set(1_u32..6, 1..5),
        seed in any::<u64>(),
    ) {
        let names: Vec<&String> = names.iter().collect();
        let labels: Vec<u32> = labels.into_iter().collect();
        let mut specs = specs();
        specs.queries = names.iter().map(|name| query(name, 60, QueryLogging::Differential)).collect();
        specs.packs = names.iter().enumerate().map(|(index, name)| {
            let queries = names.iter().map(|name| pack_query(name, 30)).collect();
            pack(name, &labels[..=index % labels.len()], queries)
        }).collect();
        let mut other = specs.clone();
        other.agent_options = reversed(&specs.agent_options);
        shuffle(&mut other.queries, seed);
        shuffle(&mut other.packs, seed ^ 1);
        for pack in &mut other.packs {
            shuffle(&mut pack.spec.queries, seed ^ 2);
            shuffle(&mut pack.labels, seed ^ 3);
        }
        let (left, right) = (Composer::of(&specs), Composer::of(&other));
        let held: Vec<LabelId> = labels.iter().copied().map(LabelId).collect();
        for platform in ["", "ubuntu", "darwin", "windows"] {
            let key = left.key(platform, &held);
            prop_assert_eq!(&key, &right.key(platform, &held));
            prop_assert!(left.is_current(&key));
            prop_assert_eq!(left.compose(&key), right.compose(&key));
        }
    }
}
