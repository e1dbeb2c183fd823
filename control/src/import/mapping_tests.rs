use proptest::prelude::*;

use super::*;

fn own() -> BTreeSet<String> {
    ["All Hosts", "macOS"].map(str::to_owned).into()
}

fn label(id: i64, name: &str) -> LabelRow {
    LabelRow {
        id,
        name: name.into(),
        query: "SELECT 1".into(),
        ..LabelRow::default()
    }
}

fn query(id: i64, name: &str) -> QueryRow {
    QueryRow {
        id,
        name: name.into(),
        query: "SELECT 1".into(),
        ..QueryRow::default()
    }
}

fn names(documents: &[Value]) -> Vec<&str> {
    documents
        .iter()
        .filter_map(|document| document["name"].as_str())
        .collect()
}

#[test]
fn a_host_keeps_its_key_and_what_is_known_of_it() {
    let row = HostRow {
        id: 7,
        node_key: "abc+/def".into(),
        identifier: " host-7 ".into(),
        enrolled_at: 1_600_000_000,
        seen_at: 1_500_000_000,
        detail_updated_at: 946_684_800,
        refetch_requested: 1,
        columns: HostColumns {
            hostname: Some("web-7".into()),
            computer_name: Some(String::new()),
            primary_ip: Some("10.0.0.7".into()),
            memory: Some(0),
            distributed_interval: Some(10),
            ..HostColumns::default()
        },
        ..HostRow::default()
    };
    let host = row.clone().host().unwrap();
    let key = fleet_protocol::secret::Secret::new("abc+/def");
    assert_eq!(host.key, crate::enroll::hash_key(&key));
    assert_eq!(host.identifier, "host-7");
    assert_eq!(host.address, "10.0.0.7");
    assert_eq!(host.enrolled_at, UnixSeconds(1_600_000_000));
    assert_eq!(host.seen_at, host.enrolled_at, "not before its enrolment");
    assert_eq!(host.detail_updated_at, UnixSeconds(0), "never");
    assert!(host.refetch_requested);
    assert_eq!(host.columns.computer_name, None);
    assert_eq!(host.columns.memory, None);
    assert_eq!(host.columns.distributed_interval, Some(10));

    let nameless = HostRow {
        identifier: String::new(),
        columns: HostColumns::default(),
        ..row.clone()
    };
    assert_eq!(nameless.host().unwrap().identifier, "imported-7");
    let without_key = HostRow {
        node_key: String::new(),
        ..row
    };
    assert_eq!(without_key.host(), None);
}

#[test]
fn labels_that_are_built_in_here_are_only_known_by_name() {
    let settings = Settings {
        labels: vec![
            LabelRow {
                label_type: 1,
                ..label(1, "All Hosts")
            },
            LabelRow {
                label_type: 1,
                ..label(2, "ChromeOS")
            },
            LabelRow {
                query: String::new(),
                membership_type: 1,
                ..label(3, "hand-picked")
            },
            LabelRow {
                query: String::new(),
                membership_type: 2,
                ..label(4, "vitals")
            },
        ],
        ..Settings::default()
    };
    let drafts = draft(&settings, &own());
    assert_eq!(names(&drafts.labels), ["ChromeOS", "hand-picked"]);
    assert_eq!(drafts.labels[1]["label_membership_type"], "manual");
    let ids: Vec<_> = drafts.label_names.keys().copied().collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(drafts.notes.len(), 1, "{:?}", drafts.notes);
}

#[test]
fn packs_keep_what_they_refer_to_and_say_what_they_lose() {
    let scheduled = |pack, query: &str, name: &str| ScheduledRow {
        pack,
        query_name: query.into(),
        name: name.into(),
        interval: 60,
        snapshot: Some(1),
        ..ScheduledRow::default()
    };
    let target = |pack, kind, target| TargetRow { pack, kind, target };
    let settings = Settings {
        labels: vec![label(6, "All Hosts"), label(9, "web")],
        queries: vec![
            query(1, "up"),
            QueryRow {
                saved: Some(0),
                ..query(2, "once")
            },
            QueryRow {
                team: Some(4),
                ..query(3, "theirs")
            },
        ],
        packs: vec![
            PackRow {
                id: 1,
                name: "base".into(),
                ..PackRow::default()
            },
            PackRow {
                id: 2,
                name: "Team: a".into(),
                pack_type: "team-1".into(),
                ..PackRow::default()
            },
        ],
        targets: vec![target(1, 0, 9), target(1, 1, 77), target(2, 0, 6)],
        scheduled: vec![
            scheduled(1, "up", "up-often"),
            scheduled(1, "once", "once"),
            ScheduledRow {
                query_name: String::new(),
                query_id: Some(1),
                snapshot: None,
                ..scheduled(1, "", "by id")
            },
        ],
        has_query_schedule: true,
        ..Settings::default()
    };
    let drafts = draft(&settings, &own());
    assert_eq!(names(&drafts.queries), ["up"]);
    assert_eq!(names(&drafts.packs), ["base"]);
    let pack = &drafts.packs[0];
    assert_eq!(pack["targets"], json!({"labels": ["web"]}));
    assert_eq!(
        pack["queries"],
        json!([
            {"query": "up", "name": "up-often", "description": "", "interval": 60, "snapshot": true},
            {"query": "up", "name": "by id", "description": "", "interval": 60},
        ])
    );
    let notes = drafts.notes.join("\n");
    for part in [
        "\"theirs\" is a team's",
        "\"once\" is not there",
        "1 of its targets",
        "\"Team: a\"",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

#[test]
fn a_schedule_that_was_a_pack_is_that_of_its_queries() {
    let mut settings = Settings {
        queries: vec![QueryRow {
            observer_can_run: 1,
            ..query(1, "up")
        }],
        packs: vec![PackRow {
            id: 1,
            name: "Global".into(),
            pack_type: "global".into(),
            ..PackRow::default()
        }],
        scheduled: vec![ScheduledRow {
            pack: 1,
            query_name: "up".into(),
            interval: 300,
            removed: Some(0),
            version: "4.9.0".into(),
            ..ScheduledRow::default()
        }],
        ..Settings::default()
    };
    let drafts = draft(&settings, &own());
    let up = &drafts.queries[0];
    assert_eq!(up["interval"], 300);
    assert_eq!(up["observer_can_run"], true);
    assert_eq!(up["automations_enabled"], true);
    assert_eq!(up["logging"], "differential_ignore_removals");
    assert_eq!(up["min_osquery_version"], "4.9.0");
    assert_eq!(drafts.packs, [json!(null); 0]);
    settings.has_query_schedule = true;
    assert_eq!(draft(&settings, &own()).queries[0]["interval"], 0);
}

#[test]
fn agent_options_of_all_times_become_those_of_today() {
    let settings = Settings {
        agent_options: Some(json!({
            "config": {"options": {"logger_tls_period": 10}},
            "overrides": {},
            "command_line_flags": {"verbose": true},
            "extensions": null,
        })),
        ..Settings::default()
    };
    let drafts = draft(&settings, &own());
    let expected = json!({"agent_options": {
        "config": {"options": {"logger_tls_period": 10}}, "overrides": {},
    }});
    assert_eq!(drafts.config, Some(expected));
    assert_eq!(drafts.notes.len(), 1, "{:?}", drafts.notes);

    let rows = [
        (1, "darwin".to_owned(), json!({"options": {"a": 2}})),
        (0, String::new(), json!({"options": {"a": 1}})),
    ];
    let expected = json!({
        "config": {"options": {"a": 1}},
        "overrides": {"platforms": {"darwin": {"options": {"a": 2}}}},
    });
    assert_eq!(kolide_options(&rows), Some(expected));
    assert_eq!(kolide_options(&[]), None);
}

proptest! {
    #[test]
    fn no_row_is_too_odd(
        id in any::<i64>(),
        key in ".{0,40}",
        texts in proptest::collection::vec(".{0,300}", 4),
        numbers in proptest::collection::vec(any::<i64>(), 8),
    ) {
        let host = HostRow {
            id,
            node_key: key.clone(),
            identifier: texts[0].clone(),
            public_ip: texts[1].clone(),
            enrolled_at: numbers[0],
            seen_at: numbers[1],
            detail_updated_at: numbers[2],
            label_updated_at: numbers[3],
            columns: HostColumns {
                hostname: Some(texts[2].clone()),
                memory: Some(numbers[4]),
                ..HostColumns::default()
            },
            ..HostRow::default()
        };
        match host.host() {
            None => prop_assert!(key.is_empty()),
            Some(host) => {
                prop_assert!(!host.identifier.trim().is_empty());
                prop_assert!(host.seen_at >= host.enrolled_at);
                prop_assert!(host.columns.memory.is_none_or(|bytes| bytes > 0));
            }
        }
        let settings = Settings {
            labels: vec![LabelRow { membership_type: numbers[5], ..label(id, &texts[0]) }],
            queries: vec![QueryRow { interval: numbers[6], ..query(id, &texts[1]) }],
            packs: vec![PackRow { id, name: texts[2].clone(), ..PackRow::default() }],
            targets: vec![TargetRow { pack: id, kind: 0, target: numbers[7] }],
            scheduled: vec![ScheduledRow { pack: id, query_name: texts[3].clone(), ..ScheduledRow::default() }],
            ..Settings::default()
        };
        let drafts = draft(&settings, &own());
        prop_assert_eq!(drafts.packs.len(), 1);
        prop_assert_eq!(drafts.queries.len(), 1);
    }
}
