//! Migrations and backfills beside servers that go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use fleet_protocol::ids::{HostId, UnixSeconds};
use serde_json::Map;
use sqlx::AssertSqlSafe;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::server::Server;
use super::{Bed, enroll_one, enrollment};
use crate::model::host::{HostColumns, HostDetails, HostFilter};
use crate::store::backfill::Company;
use crate::store::migrate::{MIGRATIONS, statements};
use crate::store::pools::Purpose;
use crate::store::progress::Progress;
use crate::store::{Store, quiet};

/// Several chunks.
const HOSTS: u32 = 4_000;
/// Ids have gaps, as after hosts were deleted.
const STEP: u32 = 3;

async fn run(store: &Store, sql: impl Into<String>) {
    let mut session = store.session(Purpose::Write).await.unwrap();
    session.command("test", sql).await.unwrap();
}

/// Where the host of this row enrolled from.
fn address(row: u32) -> String {
    format!("10.1.{}.{}", row / 256, row % 256)
}

/// Makes the tables of hosts what a build of the first migration alone has left, with hosts.
async fn go_back(store: &Store) {
    let (_, first) = MIGRATIONS[0];
    let mut first = statements(&store.dialect.migration(first));
    first.retain(|statement| {
        let is_of = |table: &str| statement.contains(&format!(" {table} "));
        statement.starts_with("CREATE ") && (is_of("hosts") || is_of("host_details"))
    });
    assert!(first.len() >= 6, "{first:?}");
    for table in ["hosts", "host_details"] {
        run(store, format!("DROP TABLE {table}")).await;
    }
    for statement in &first {
        run(store, statement).await;
    }
    run(store, "DELETE FROM counters WHERE name LIKE 'backfill.%'").await;
    run(store, "DELETE FROM migrations WHERE version > 1").await;
    let rows: Vec<u32> = (1..=HOSTS).collect();
    for part in rows.chunks(500) {
        let (mut hosts, mut details) = (Vec::new(), Vec::new());
        for row in part {
            let (id, address) = (row * STEP, address(*row));
            hosts.push(format!(
                "({id}, X'{id:064x}', 'old-{row}', '', '{address}', 1000)"
            ));
            details.push(format!("({id}, 0, 0, 0, 'old-{row}.example.com')"));
        }
        let hosts = hosts.join(", ");
        run(
            store,
            format!(
                "INSERT INTO hosts (id, node_key_hash, identifier, instance_id, address, enrolled_at) \
                 VALUES {hosts}"
            ),
        )
        .await;
        let details = details.join(", ");
        run(
            store,
            format!(
                "INSERT INTO host_details \
                 (host_id, detail_updated_at, label_updated_at, refetch_requested, hostname) \
                 VALUES {details}"
            ),
        )
        .await;
    }
    let newest = HOSTS * STEP;
    run(
        store,
        format!("UPDATE counters SET value = {newest} WHERE name = 'hosts'"),
    )
    .await;
}

/// Old hosts under the tables of now.
async fn old_hosts(store: &Store) {
    go_back(store).await;
    store.prepare(&quiet).await.unwrap();
}

async fn public_ips(store: &Store) -> BTreeMap<u32, Option<String>> {
    let mut session = store.session(Purpose::Read).await.unwrap();
    let sql = "SELECT host_id, public_ip FROM host_details";
    let rows = session.rows("test", sql, &[]).await.unwrap();
    rows.iter()
        .map(|row| (row.u32(0).unwrap(), row.text_or_null(1).unwrap()))
        .collect()
}

/// Each host has the address that it enrolled from, but for those of `others`.
async fn assert_filled(store: &Store, others: &BTreeMap<u32, &str>) {
    let found = public_ips(store).await;
    for row in 1..=HOSTS {
        let id = row * STEP;
        let wanted = others
            .get(&id)
            .map_or_else(|| address(row), |other| (*other).to_owned());
        assert_eq!(found[&id].as_deref(), Some(wanted.as_str()), "host {id}");
    }
}

/// How far the backfill is, by the counter, and where it ends.
async fn cursor(store: &Store) -> (i64, i64) {
    let mut session = store.session(Purpose::Read).await.unwrap();
    let sql =
        "SELECT value FROM counters WHERE name IN ('backfill.4', 'backfill.4.end') ORDER BY name";
    let rows = session.rows("test", sql, &[]).await.unwrap();
    (rows[0].int(0).unwrap(), rows[1].int(0).unwrap())
}

async fn search(store: &Store, text: &str) -> Vec<u32> {
    let filter = HostFilter {
        text: Some(text.to_owned()),
        ..HostFilter::default()
    };
    let found = store.host_list(&filter).await.unwrap();
    found.iter().map(|host| host.id.0).collect()
}

pub(super) async fn hosts_of_the_old_schema_are_found_by_address(bed: &Bed) {
    let store = &bed.store;
    go_back(store).await;
    let since_first = MIGRATIONS.len() - 1;
    // The fourth has no tables to change.
    assert_eq!(store.missing_migrations().await, Ok(since_first - 1));
    assert_eq!(store.prepare(&quiet).await, Ok(since_first));
    // A server may serve now.
    assert_eq!(store.require_prepared().await, Ok(()));
    let text = address(1_234);
    assert_eq!(search(store, &text).await, [0; 0]);

    let (told, last_done) = (AtomicU64::new(0), AtomicU64::new(0));
    let tell = |progress| match progress {
        Progress::Filling(filling) => {
            told.fetch_add(1, Relaxed);
            assert_eq!(filling.total, u64::from(HOSTS));
            assert!(filling.done >= last_done.swap(filling.done, Relaxed));
        }
        Progress::Filled(filling) => {
            assert_eq!(filling.rows_left(), 0);
            assert_eq!(filling.changed, u64::from(HOSTS));
        }
        other => panic!("{other:?}"),
    };
    let changed = store.fill(Company::Alone, &tell).await;
    assert_eq!(changed, Ok(u64::from(HOSTS)));
    assert!(told.into_inner() > 2);
    assert!(last_done.into_inner() > 0);
    assert_eq!(search(store, &text).await, [1_234 * STEP]);
    assert_filled(store, &BTreeMap::new()).await;

    // It is over, for new hosts and for other nodes too.
    enroll_one(store, enrollment("new", "", 2_000)).await;
    let node = bed.node().await;
    assert_eq!(node.fill(Company::Alone, &quiet).await, Ok(0));
    assert_eq!(public_ips(store).await[&(HOSTS * STEP + 1)], None);
    assert!(
        node.fillings()
            .iter()
            .all(|filling| filling.rows_left() == 0)
    );
}

pub(super) async fn a_backfill_that_was_cut_off_goes_on(bed: &Bed) {
    let store = &bed.store;
    old_hosts(store).await;
    let is_begun = Notify::new();
    let tell = |progress| {
        if matches!(progress, Progress::Filling(filling) if filling.done > 0) {
            is_begun.notify_one();
        }
    };
    tokio::select! {
        done = store.fill(Company::Shared, &tell) => panic!("it was to be cut off: {done:?}"),
        () = is_begun.notified() => {}
    }
    let (mut at, end) = cursor(store).await;
    assert!(0 < at && at < end, "{at} of {end}");
    let unfilled = |ips: BTreeMap<u32, Option<String>>| -> Vec<u32> {
        let unfilled = ips.into_iter().filter(|(_, ip)| ip.is_none());
        unfilled.map(|(id, _)| id).collect()
    };
    let left = unfilled(public_ips(store).await);
    assert!(
        left.iter().all(|id| i64::from(*id) > at),
        "what is done is whole"
    );

    // Cut off anywhere, within a chunk too, again and again; each time by another process.
    let mut span_ms = 5;
    loop {
        let node = bed.node().await;
        let time = Duration::from_millis(fastrand::u64(0..span_ms));
        span_ms += 5;
        let outcome = tokio::time::timeout(time, node.fill(Company::Shared, &quiet)).await;
        let (now_at, _) = cursor(store).await;
        assert!(now_at >= at, "it went back");
        at = now_at;
        let left = unfilled(public_ips(store).await);
        assert!(
            left.iter().all(|id| i64::from(*id) > at),
            "what is done is whole"
        );
        if let Ok(outcome) = outcome {
            outcome.unwrap();
            break;
        }
    }
    assert_eq!(at, end);
    assert_filled(store, &BTreeMap::new()).await;
}

pub(super) async fn two_nodes_do_each_row_once(bed: &Bed) {
    old_hosts(&bed.store).await;
    let other = bed.node().await;
    let (a, b) = tokio::join!(
        bed.store.fill(Company::Shared, &quiet),
        other.fill(Company::Shared, &quiet)
    );
    assert_eq!(a.unwrap() + b.unwrap(), u64::from(HOSTS));
    assert_filled(&other, &BTreeMap::new()).await;
}

pub(super) async fn a_value_that_is_written_meanwhile_stays(bed: &Bed) {
    let store = &bed.store;
    old_hosts(store).await;
    let mut ids: Vec<u32> = (1..=HOSTS).map(|row| row * STEP).collect();
    fastrand::shuffle(&mut ids);
    let written = &ids[..60];
    let writer = bed.node().await;
    let writing = async {
        for id in written {
            let details = HostDetails {
                host: HostId(*id),
                at: UnixSeconds(2_000_000),
                columns: HostColumns {
                    public_ip: Some("203.0.113.9".into()),
                    ..HostColumns::default()
                },
                details: Map::new(),
            };
            writer.update_details(&[details]).await.unwrap();
            // Servers enroll all the time.
            enroll_one(&writer, enrollment(&format!("new-{id}"), "", 2_000)).await;
        }
    };
    let (filled, ()) = tokio::join!(store.fill(Company::Shared, &quiet), writing);
    filled.unwrap();
    let others = written.iter().map(|id| (*id, "203.0.113.9")).collect();
    assert_filled(store, &others).await;
}

/// A connection of somebody else, in a database.
struct Rival(sqlx::MySqlConnection);

impl Rival {
    async fn of(server: &Server, database: &str) -> Self {
        let mut rival = Self(server.connect().await);
        rival.run(&format!("USE {database}")).await;
        rival
    }

    async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.0)
            .await
            .unwrap();
    }
}

pub(super) async fn a_table_in_use_delays_the_migration_alone(server: &Server) {
    let bed = Bed::open(server.database("table_in_use").await).await;
    let reader = bed.node().await;
    enroll_one(&reader, enrollment("a", "", 1_000)).await;
    let mut rival = Rival::of(server, "table_in_use").await;
    rival
        .run("ALTER TABLE hosts DROP COLUMN previous_address; DELETE FROM migrations WHERE version = 3")
        .await;
    // A backup, or somebody's forgotten session.
    rival.run("START TRANSACTION; SELECT * FROM hosts").await;
    let blocked = AtomicU64::new(0);
    let tell = |progress| {
        if let Progress::Blocked {
            migration,
            statement,
            ..
        } = progress
        {
            assert_eq!(migration, 3);
            assert!(statement.starts_with("ALTER TABLE hosts"), "{statement}");
            blocked.fetch_add(1, Relaxed);
        }
    };
    let (prepared, ()) = tokio::join!(bed.store.prepare(&tell), async {
        let deadline = Instant::now() + Duration::from_secs(60);
        while blocked.load(Relaxed) < 2 {
            assert!(Instant::now() < deadline, "the migration does not wait");
            // Behind the change of the table, and let through.
            assert_eq!(reader.host_count().await, Ok(1));
            let found = reader.hosts_by_ids(&[HostId(1)]).await;
            assert_eq!(found.unwrap().len(), 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rival.run("COMMIT").await;
    });
    assert_eq!(prepared, Ok(1));
    assert!(!reader.statistics().gate.is_open);
    enroll_one(&reader, enrollment("b", "", 1_000)).await;
}

pub(super) async fn a_locked_row_is_waited_for(server: &Server) {
    let bed = Bed::open(server.database("locked_row").await).await;
    old_hosts(&bed.store).await;
    let host = HOSTS / 2 * STEP;
    let mut rival = Rival::of(server, "locked_row").await;
    rival
        .run(&format!(
            "START TRANSACTION; UPDATE host_details SET public_ip = '203.0.113.8' WHERE host_id = {host}"
        ))
        .await;
    let (filled, ()) = tokio::join!(bed.store.fill(Company::Shared, &quiet), async {
        let deadline = Instant::now() + Duration::from_secs(60);
        while bed.store.statistics().retries == 0 {
            assert!(Instant::now() < deadline, "the backfill waits for no lock");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rival.run("COMMIT").await;
    });
    filled.unwrap();
    assert_filled(&bed.store, &BTreeMap::from([(host, "203.0.113.8")])).await;
}

pub(super) async fn a_node_looks_on_while_another_is_at_it(server: &Server) {
    let bed = Bed::open(server.database("looks_on").await).await;
    old_hosts(&bed.store).await;
    let mut rival = Rival::of(server, "looks_on").await;
    rival
        .run("SELECT GET_LOCK(CONCAT('fleet.backfill.', SHA1(DATABASE())), 0)")
        .await;
    let looks = AtomicU64::new(0);
    let tell = |progress| {
        if let Progress::Filling(filling) = progress
            && filling.is_elsewhere
        {
            looks.fetch_add(1, Relaxed);
        }
    };
    let (filled, ()) = tokio::join!(bed.store.fill(Company::Shared, &tell), async {
        let deadline = Instant::now() + Duration::from_secs(60);
        while looks.load(Relaxed) == 0 {
            assert!(Instant::now() < deadline, "it does not look on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(public_ips(&bed.store).await.values().all(Option::is_none));
        // The other node dies.
        drop(rival);
    });
    assert_eq!(filled, Ok(u64::from(HOSTS)));
    assert_filled(&bed.store, &BTreeMap::new()).await;
}
