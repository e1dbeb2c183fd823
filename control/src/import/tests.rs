//! Copies from a real server, into both engines.

use std::sync::Mutex;

use fleet_protocol::ids::{HostId, UnixSeconds};
use fleet_protocol::secret::Secret;
use serde_json::json;

use super::*;
use crate::enroll::hash_key;
use crate::model::host::{HostFilter, HostState};
use crate::model::label::LabelId;
use crate::model::user::Role;
use crate::store::quiet;
use crate::store::tests::server::Server;

const FLEET_4: &str = include_str!("fleet_4.sql");
const KOLIDE_3: &str = include_str!("kolide_3.sql");
/// Of the first host of each.
const KEY_4: &str = "abcdefghijklmnopqrstuvwxyz012+/A";
const KEY_3: &str = "key of old-1";
/// More than one page.
const MANY: u64 = 3_000;

/// A source, as somebody may read it who may do nothing else.
async fn source(server: &Server, name: &str, sql: &str) -> config::Mysql {
    let mut from = server.database(name).await.mysql;
    server.run(format!("USE {name}; {sql}")).await;
    server
        .run(format!(
            "CREATE USER reader_{name}@localhost IDENTIFIED BY 'look-only'; \
             GRANT SELECT ON {name}.* TO reader_{name}@localhost"
        ))
        .await;
    from.username = format!("reader_{name}");
    from.password_path = std::path::PathBuf::new();
    from.password = Secret::new("look-only");
    from
}

/// A store of our own on each engine.
async fn stores(server: &Server, name: &str) -> Vec<(Store, tempfile::TempDir)> {
    let mut stores = Vec::new();
    for config in [Config::default(), server.database(name).await] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&config, dir.path()).await.unwrap();
        store.prepare(&quiet).await.unwrap();
        stores.push((store, dir));
    }
    stores
}

const COPY: ImportOptions = ImportOptions {
    replaces: false,
    is_dry_run: false,
};

async fn copy(store: &Store, from: &config::Mysql) -> ImportReport {
    run(store, from, COPY, &|_| {}).await.unwrap()
}

async fn host(store: &Store, key: &str) -> Option<HostState> {
    let keys = [hash_key(&Secret::new(key))];
    store.hosts_by_keys(&keys).await.unwrap().pop()
}

fn tally(report: &ImportReport, kind: &str) -> ImportTally {
    *report
        .tallies
        .iter()
        .find(|tally| tally.kind == kind)
        .unwrap()
}

/// Found, added, same, replaced, kept, left out.
fn counts(report: &ImportReport, kind: &str) -> [u64; 6] {
    let of = tally(report, kind);
    [
        of.found,
        of.added,
        of.same,
        of.replaced,
        of.kept,
        of.left_out,
    ]
}

async fn label_id(store: &Store, name: &str) -> LabelId {
    let labels = store.labels().await.unwrap();
    let found = labels.into_iter().find(|label| label.spec.name == name);
    found.unwrap().id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_moves_over() {
    let Some(server) = Server::start() else {
        eprintln!("skipped: no mariadbd on this machine");
        return;
    };
    let from = source(&server, "fleet4", FLEET_4).await;
    for (store, _dir) in stores(&server, "own4").await {
        Box::pin(fleet_4(&store, &from)).await;
    }
    let from = source(&server, "kolide3", KOLIDE_3).await;
    for (store, _dir) in stores(&server, "own3").await {
        Box::pin(kolide_3(&store, &from)).await;
    }
    for (store, _dir) in stores(&server, "own_conflicts").await {
        Box::pin(conflicts(&server, &store)).await;
    }
    let many = format!(
        "{FLEET_4} DELETE FROM hosts; SET SESSION max_recursive_iterations = 100000; \
         INSERT INTO hosts (id, osquery_host_id, node_key, hostname) \
         WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) \
         SELECT i, CONCAT('many-', i), CONCAT('key-', i), CONCAT('many-', i) FROM n; \
         INSERT IGNORE INTO label_membership (label_id, host_id) SELECT 12, id FROM hosts"
    );
    let from = source(&server, "many", &many).await;
    for (store, _dir) in stores(&server, "own_many").await {
        Box::pin(cut_off(&store, &from)).await;
    }
    wrong_sources(&server).await;
}

async fn fleet_4(store: &Store, from: &config::Mysql) {
    let dry = ImportOptions {
        is_dry_run: true,
        ..COPY
    };
    let expected = run(store, from, dry, &|_| {}).await.unwrap();
    assert_eq!(
        store.queries().await.unwrap().len(),
        0,
        "nothing is written"
    );
    assert_eq!(host(store, KEY_4).await, None);
    let report = copy(store, from).await;
    for (kind, wanted) in [
        ("hosts", [4, 2, 0, 0, 0, 2]),
        ("labels", [2, 2, 0, 0, 0, 0]),
        ("queries", [2, 1, 0, 0, 0, 1]),
        ("packs", [1, 1, 0, 0, 0, 0]),
        ("agent options", [1, 1, 0, 0, 0, 0]),
        ("enroll secrets", [2, 2, 0, 0, 0, 0]),
        ("users", [2, 1, 0, 0, 0, 1]),
    ] {
        assert_eq!(counts(&report, kind), wanted, "{kind}: {:?}", report.notes);
        assert_eq!(counts(&expected, kind), wanted, "a dry run says so, {kind}");
    }
    assert_hosts_of_fleet_4(store).await;
    assert_settings_of_fleet_4(store).await;
    assert_notes_of_fleet_4(&report);

    let again = copy(store, from).await;
    for (kind, wanted) in [
        ("hosts", [4, 0, 2, 0, 0, 2]),
        ("labels", [2, 0, 2, 0, 0, 0]),
        ("queries", [2, 0, 1, 0, 0, 1]),
        ("packs", [1, 0, 1, 0, 0, 0]),
        ("agent options", [1, 0, 1, 0, 0, 0]),
        ("enroll secrets", [2, 0, 2, 0, 0, 0]),
        ("users", [2, 0, 1, 0, 0, 1]),
    ] {
        assert_eq!(counts(&again, kind), wanted, "{kind}");
    }
    assert_eq!(store.host_count().await.unwrap(), 2);
}

async fn assert_hosts_of_fleet_4(store: &Store) {
    let web = host(store, KEY_4).await.unwrap();
    assert_eq!(&*web.platform, "ubuntu");
    assert_eq!(web.enrolled_at, UnixSeconds(1_706_781_600));
    assert_eq!(web.detail_updated_at, UnixSeconds(1_709_287_200));
    assert_eq!(web.interval_s, 10);
    let hand_picked = label_id(store, "hand-picked").await;
    let labels = [
        LabelId::ALL_HOSTS,
        label_id(store, "web servers").await,
        hand_picked,
    ];
    assert_eq!(web.labels, labels);
    let detail = store.host_detail("UUID-1").await.unwrap().unwrap();
    let row = detail.row;
    assert_eq!(
        (row.identifier.as_str(), row.address.as_str()),
        ("UUID-1", "192.0.2.1")
    );
    assert_eq!(row.seen_at, UnixSeconds(1_709_373_600));
    assert_eq!(row.columns.hostname.as_deref(), Some("web-1"));
    assert_eq!(row.columns.memory, Some(4 << 30));
    assert_eq!(row.columns.disk_total, Some(25_000_000_000));
    assert_eq!(row.columns.disk_free, Some(12_500_000_000));
    assert_eq!(row.columns.uptime, None);
    let mac = host(store, "bbcdefghijklmnopqrstuvwxyz012+/A")
        .await
        .unwrap();
    assert_eq!(mac.labels, [LabelId::ALL_HOSTS, LabelId(2)]);
    assert_eq!(mac.detail_updated_at, UnixSeconds(0));
}

async fn assert_settings_of_fleet_4(store: &Store) {
    let packs = store.packs().await.unwrap();
    assert_eq!(packs.len(), 1);
    let pack = &packs[0].spec;
    assert_eq!(pack.targets.labels, ["web servers"]);
    assert_eq!(pack.queries.len(), 1, "{pack:?}");
    assert_eq!(pack.queries[0].snapshot, Some(true));
    let queries = store.queries().await.unwrap();
    assert_eq!(queries[0].spec.interval, 300);
    assert!(queries[0].spec.automations_enabled);
    let options = store.agent_options().await.unwrap();
    let wanted = json!({"config": {"options": {"distributed_interval": 10}}, "overrides": {}});
    assert_eq!(options, wanted);
    assert_eq!(store.enroll_secrets().await.unwrap().len(), 2);
}

fn assert_notes_of_fleet_4(report: &ImportReport) {
    let people: Vec<&str> = report.people.iter().map(|one| one.email.as_str()).collect();
    assert_eq!(people, ["bob@example.com"], "he has roles in teams only");
    let notes = report.notes.join("\n");
    for part in [
        "\"theirs\" is a team's",
        "1 queries were run once",
        "query \"empty\": query must not be empty; left out",
        "pack \"base\": 1 of its targets",
        "there is no query \"empty\"",
        "1 teams are not copied",
        "1 hosts were in teams",
        "2 hosts have no node key",
        "command_line_flags",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert!(!notes.contains("secret of"), "{notes}");
}

async fn kolide_3(store: &Store, from: &config::Mysql) {
    let report = copy(store, from).await;
    assert_eq!(report.product, "Kolide Fleet 3 or older");
    assert_eq!(counts(&report, "hosts"), [1, 1, 0, 0, 0, 0]);
    let old = host(store, KEY_3).await.unwrap();
    assert_eq!(old.enrolled_at, UnixSeconds(1_549_015_200));
    assert_eq!(
        old.labels,
        [LabelId::ALL_HOSTS, label_id(store, "db").await]
    );
    let detail = store.host_detail("old-1").await.unwrap().unwrap();
    assert_eq!(detail.row.columns.memory, Some(1024));
    assert_eq!(detail.row.columns.hostname.as_deref(), Some("old-1.local"));
    assert_eq!(detail.row.seen_at, UnixSeconds(1_580_551_200));
    let pack = store.packs().await.unwrap().pop().unwrap().spec;
    assert_eq!(pack.targets.labels, ["db"]);
    assert_eq!(pack.queries[0].query, "ports");
    assert_eq!(
        (pack.queries[0].interval, pack.queries[0].shard),
        (600, Some(50))
    );
    let options = store.agent_options().await.unwrap();
    let platform = &options["overrides"]["platforms"]["darwin"]["options"];
    assert_eq!(platform["logger_tls_period"], 20);
    let secrets = store.enroll_secrets().await.unwrap();
    assert_eq!(secrets[0].secret.reveal(), "old secret");
    let roles: Vec<_> = report
        .people
        .iter()
        .map(|one| (one.role.as_str(), one.is_disabled))
        .collect();
    assert_eq!(roles, [("maintainer", true)]);
    let ann = store
        .user_by_email("ann@example.com")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ann.role, Role::Admin);
    assert!(ann.password_hash.is_empty() && ann.must_reset);
    let notes = report.notes.join("\n");
    assert!(notes.contains("the source has no"), "{notes}");
    assert!(notes.contains("hosts.public_ip"), "{notes}");
}

/// The other side's state differs from ours: ours stays, unless the agent enrolled there later or we are told otherwise.
async fn conflicts(server: &Server, store: &Store) {
    // The store's engine tells the two runs apart.
    let name = format!("conflicts_{}", store.engine().label());
    let from = source(server, &name, FLEET_4).await;
    copy(store, &from).await;
    let change = |sql: &str| format!("USE {name}; {sql}");
    server
        .run(change(
            "UPDATE hosts SET node_key = 'younger', last_enrolled_at = '2025-01-01 00:00:00' WHERE id = 1; \
             UPDATE hosts SET node_key = 'older', last_enrolled_at = '2023-01-01 00:00:00' WHERE id = 4000000000; \
             UPDATE queries SET query = 'SELECT 2' WHERE id = 1; \
             UPDATE labels SET query = 'SELECT 2' WHERE id = 12; \
             UPDATE app_config_json SET json_value = '{\"agent_options\":{\"config\":{}}}'",
        ))
        .await;
    let report = copy(store, &from).await;
    assert_eq!(counts(&report, "hosts"), [4, 0, 0, 1, 1, 2]);
    assert_eq!(counts(&report, "labels"), [2, 0, 1, 0, 1, 0]);
    assert_eq!(counts(&report, "queries"), [2, 0, 0, 0, 1, 1]);
    assert_eq!(counts(&report, "agent options"), [1, 0, 0, 0, 1, 0]);
    assert_eq!(host(store, KEY_4).await, None);
    assert_eq!(host(store, "younger").await.unwrap().id, HostId(1));
    assert_eq!(host(store, "older").await, None);

    let replacing = ImportOptions {
        replaces: true,
        ..COPY
    };
    let report = run(store, &from, replacing, &|_| {}).await.unwrap();
    assert_eq!(counts(&report, "hosts"), [4, 0, 0, 2, 0, 2]);
    assert_eq!(counts(&report, "labels"), [2, 0, 1, 1, 0, 0]);
    assert_eq!(counts(&report, "queries"), [2, 0, 0, 1, 0, 1]);
    assert_eq!(counts(&report, "agent options"), [1, 0, 0, 1, 0, 0]);
    assert!(host(store, "older").await.is_some());
    assert_eq!(store.queries().await.unwrap()[0].spec.query, "SELECT 2");
    assert_eq!(store.host_count().await.unwrap(), 2);
}

/// The process dies after the first page: the next run goes on there.
async fn cut_off(store: &Store, from: &config::Mysql) {
    let stop = tokio::sync::Notify::new();
    let tell = |_| stop.notify_one();
    tokio::select! {
        _ = run(store, from, COPY, &tell) => panic!("it was to be cut off"),
        () = stop.notified() => {}
    }
    let seen = Mutex::new(Vec::new());
    let tell =
        |progress: ImportProgress| seen.lock().unwrap().push((progress.done, progress.total));
    let report = run(store, from, COPY, &tell).await.unwrap();
    assert!(report.hosts_before >= 1_024, "{}", report.hosts_before);
    let of = tally(&report, "hosts");
    assert_eq!((of.found, of.added), (MANY - report.hosts_before, of.found));
    assert_eq!(seen.lock().unwrap().last(), Some(&(MANY, MANY)));
    assert_eq!(store.host_count().await.unwrap(), MANY);
    let filter = HostFilter {
        label: Some(label_id(store, "web servers").await),
        per_page: 10_000,
        ..HostFilter::default()
    };
    let hosts = store.host_list(&filter).await.unwrap();
    assert_eq!(hosts.len() as u64, MANY, "each is a member");

    let again = copy(store, from).await;
    assert_eq!((again.hosts_before, tally(&again, "hosts").same), (0, MANY));
}

async fn wrong_sources(server: &Server) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Config::default(), dir.path()).await.unwrap();
    let mut from = source(server, "strange", "CREATE TABLE hosts (id INT)").await;
    let trouble = run(&store, &from, COPY, &|_| {}).await.unwrap_err();
    assert!(
        trouble.to_string().contains("no database of Fleet's"),
        "{trouble}"
    );
    from.password = Secret::new("wr0ng-pass");
    let trouble = run(&store, &from, COPY, &|_| {}).await.unwrap_err();
    assert!(trouble.to_string().contains("Access denied"), "{trouble}");
    assert!(!trouble.to_string().contains("wr0ng-pass"), "{trouble}");
}
