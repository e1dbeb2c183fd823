use fleet_protocol::feed::{Change, Load};
use fleet_protocol::secret::Secret;

use super::*;
use crate::agent_bench::{Bench, answers_of, enroll};
use crate::model::host::MIA_AFTER_S;
use crate::model::label::LabelSpec;
use crate::model::pack::{PackQuery, PackSpec, PackTargets};

#[tokio::test]
async fn enrolment_is_idempotent_for_five_minutes_and_the_old_key_survives_another() {
    let bench = Bench::new().await;
    let start = now();
    let mut feed = bench.agents.subscribe(None);
    let first = feed.try_next().unwrap();
    assert_eq!((first.load, first.changes.len()), (Load::Whole, 0));

    let (key, host) = bench.enroll("web-1", start).await;
    assert_eq!(key.reveal().len(), 32);
    let piece = feed.try_next().expect("the host is fed before the reply");
    assert!(
        piece
            .changes
            .iter()
            .any(|change| matches!(change, Change::Host(told) if told.id == host))
    );
    assert_eq!(bench.enroll("web-1", start).await, (key.clone(), host));
    assert_eq!(
        bench.enroll("web-1", UnixSeconds(start.0 + 299)).await,
        (key.clone(), host)
    );

    let twin = |id| {
        (
            RequestId(id),
            Request::Enroll(Box::new(enroll("s3cret", "web-2"))),
        )
    };
    let both = bench
        .agents
        .run_at(BatchKind::Enroll, vec![twin(1), twin(2)], start)
        .await;
    let (Answer::Enrolled { node_key: one, .. }, Answer::Enrolled { node_key: two, .. }) =
        (&both[0].1, &both[1].1)
    else {
        panic!("{both:?}");
    };
    assert_eq!(one, two);

    let later = UnixSeconds(start.0 + 300);
    let (other, same) = bench.enroll("web-1", later).await;
    assert_ne!(other, key);
    assert_eq!(same, host);
    assert!(
        matches!(bench.lookup(&key, later).await, Answer::Host(Some(found)) if found.id == host)
    );
    lock(&bench.agents.roster).end_grace(UnixSeconds(later.0 + 60));
    assert_eq!(bench.lookup(&key, later).await, Answer::Host(None));
    assert!(matches!(
        bench.lookup(&other, later).await,
        Answer::Host(Some(_))
    ));
    assert_eq!(bench.store.host_count().await.unwrap(), 2);
}

#[tokio::test]
async fn wrong_secrets_and_nameless_agents_are_refused() {
    let bench = Bench::new().await;
    let start = now();
    for secret in ["", "wrong", "s3cret "] {
        let answer = bench
            .one(Request::Enroll(Box::new(enroll(secret, "x"))), start)
            .await;
        assert_eq!(
            answer,
            Answer::Refused(Reject::EnrollSecretInvalid),
            "{secret:?}"
        );
    }
    let mut nameless = enroll("s3cret", "");
    nameless.details.clear();
    let answer = bench.one(Request::Enroll(Box::new(nameless)), start).await;
    assert_eq!(answer, Answer::Refused(Reject::BodyMalformed));
    bench
        .store
        .set_enroll_secrets(&[Secret::new("next")])
        .await
        .unwrap();
    bench.catch_up().await;
    let answer = bench
        .one(Request::Enroll(Box::new(enroll("s3cret", "x"))), start)
        .await;
    assert_eq!(answer, Answer::Refused(Reject::EnrollSecretInvalid));
    let answer = bench
        .one(Request::Enroll(Box::new(enroll("next", "x"))), start)
        .await;
    assert!(matches!(answer, Answer::Enrolled { .. }), "{answer:?}");
}

/// A label that every host comes to hold, and a pack for it.
async fn apply_web_pack(bench: &Bench) {
    let label = LabelSpec {
        name: "web".into(),
        query: "SELECT 1".into(),
        ..LabelSpec::default()
    };
    bench.store.apply_labels(&[label]).await.unwrap();
    let pack = PackSpec {
        name: "p".into(),
        targets: PackTargets {
            labels: vec!["web".into()],
        },
        queries: vec![PackQuery {
            name: "q".into(),
            sql: Some("SELECT 2".into()),
            interval: 60,
            ..PackQuery::default()
        }],
        ..PackSpec::default()
    };
    bench.store.apply_packs(&[pack]).await.unwrap();
    bench.catch_up().await;
}

#[tokio::test]
async fn details_and_labels_go_round_once() {
    let bench = Bench::new().await;
    apply_web_pack(&bench).await;
    let start = UnixSeconds(now().0 + 2);
    let at = |seconds| UnixSeconds(start.0 + seconds);
    let (_, host) = bench.enroll("web-1", start).await;
    let work = bench.read(host, start).await;
    let is_label = |name: &str| name.starts_with("fleet_label_query_");
    assert!(work.queries.iter().any(|query| is_label(&query.name)));
    assert!(bench.read(host, start).await.queries.is_empty());
    assert_eq!(bench.agents.config_for(host).unwrap(), "{}");

    let write = Request::Write(answers_of(&work, host));
    assert_eq!(bench.one(write.clone(), at(5)).await, Answer::Accepted);
    let detail = bench.store.host_detail("web-1").await.unwrap().unwrap();
    let columns = detail.row.columns;
    assert_eq!(columns.hostname.as_deref(), Some("renamed"));
    assert_eq!(columns.uptime, Some(77));
    // Where the details came from, not where it enrolled.
    assert_eq!(columns.public_ip.as_deref(), Some("192.0.2.8"));
    assert_eq!(columns.os_version.as_deref(), Some("Ubuntu 24.04"));
    assert!(detail.labels.iter().any(|(_, name)| name == "web"));
    let config = bench.agents.config_for(host).unwrap();
    let expected = r#"{"packs":{"p":{"queries":{"q":{"interval":60,"query":"SELECT 2"}}}}}"#;
    assert_eq!(config, expected);

    assert!(bench.read(host, at(3000)).await.queries.is_empty());
    assert_eq!(bench.one(write, at(5)).await, Answer::Accepted);
    let results = bench.agents.statistics().results;
    assert!(
        results
            .iter()
            .any(|(name, count)| *name == "unasked" && *count > 0)
    );
    assert!(!bench.read(host, at(4000)).await.queries.is_empty());
}

#[tokio::test]
async fn own_changes_come_back_without_effect_and_a_refetch_takes_effect() {
    let bench = Bench::new().await;
    apply_web_pack(&bench).await;
    let start = UnixSeconds(now().0 + 2);
    let (_, host) = bench.enroll("web-1", start).await;
    let work = bench.read(host, start).await;
    let write = Request::Write(answers_of(&work, host));
    assert_eq!(bench.one(write, start).await, Answer::Accepted);
    let config = bench.agents.config_for(host).unwrap();
    bench.catch_up().await;
    assert_eq!(bench.agents.config_for(host).unwrap(), config);
    let later = UnixSeconds(start.0 + 10);
    assert!(bench.read(host, later).await.queries.is_empty());
    bench.store.request_refetch(host).await.unwrap();
    bench.catch_up().await;
    assert!(!bench.read(host, later).await.queries.is_empty());
}

#[tokio::test]
async fn seen_marks_are_written_and_counted() {
    let bench = Bench::new().await;
    let start = now();
    let (_, host) = bench.enroll("web-1", start).await;
    let later = UnixSeconds(start.0 + 500);
    assert_eq!(bench.agents.counts(later).online, 0);
    let stranger = HostId(999);
    assert_eq!(
        bench.one(Request::Seen(vec![host, stranger]), later).await,
        Answer::Accepted
    );
    let counts = bench.agents.counts(later);
    assert_eq!((counts.enrolled, counts.online, counts.new), (1, 1, 1));
    assert_eq!(bench.agents.counts(UnixSeconds(later.0 + 121)).offline, 1);
    assert_eq!(
        bench.agents.counts(UnixSeconds(later.0 + MIA_AFTER_S)).mia,
        1
    );
    assert_eq!(bench.agents.statistics().seen_waiting, 1);
    bench.agents.finish().await;
    assert_eq!(bench.agents.statistics().seen_waiting, 0);
    let detail = bench.store.host_detail("web-1").await.unwrap().unwrap();
    assert_eq!(detail.row.seen_at, later);
    let again = Bench::agents(&bench.store, &bench.config).await;
    assert_eq!(again.seen_at(host), Some(later));
}
