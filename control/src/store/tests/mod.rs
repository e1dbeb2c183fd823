//! The same cases on every engine that is on the machine: SQLite always, MariaDB when `mariadbd` is there.

mod backfill;
mod campaign_cases;
mod change_cases;
mod diagnosis;
mod enroll_cases;
mod host_cases;
mod outage;
pub(crate) mod server;
mod spec_cases;
mod user_cases;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use fleet_protocol::config::Config;
use fleet_protocol::ids::{FeedSeq, HostId, NodeKeyHash, UnixSeconds};
use serde_json::{Map, Value};

use super::{EngineName, Store, quiet};
use crate::model::change::ChangeRow;
use crate::model::enrollment::{EnrollOutcome, NewEnrollment};
use crate::model::host::{HostColumns, HostDetails};

/// Where a case runs.
struct Bed {
    config: Config,
    dir: tempfile::TempDir,
    store: Store,
}

impl Bed {
    async fn open(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&config, dir.path()).await.unwrap();
        store.prepare(&quiet).await.unwrap();
        Self { config, dir, store }
    }

    async fn sqlite() -> Self {
        Self::open(Config::default()).await
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn is_mysql(&self) -> bool {
        self.store.engine() == EngineName::Mysql
    }

    /// Another node on the same database.
    async fn node(&self) -> Store {
        Store::open(&self.config, self.dir()).await.unwrap()
    }

    /// Statements that have run, those for connections and changes left out.
    fn statements(&self) -> u64 {
        self.store.statistics().statements_total()
    }
}

/// On the heap, and made in a frame of its own: all cases together are more than a thread's stack.
fn boxed<'a, F: Future<Output = ()> + 'a>(
    make: impl FnOnce() -> F,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(make())
}

/// A test for each case on SQLite, and one that runs all of them on one MariaDB.
macro_rules! cases {
    ($($module:ident::$case:ident,)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            $module::$case(&Bed::sqlite().await).await;
        })+

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn every_case_on_mariadb() {
            let Some(mut server) = server::Server::start() else {
                eprintln!("skipped: no mariadbd on this machine");
                return;
            };
            outage::migrations_start_from_nothing(&server).await;
            $(
                eprintln!("case {}", stringify!($case));
                boxed(|| async {
                    let bed = Bed::open(server.database(stringify!($case)).await).await;
                    $module::$case(&bed).await;
                })
                .await;
            )+
            outage::a_statement_ends_on_the_server_too(&server).await;
            outage::tls_is_verified(&server).await;
            outage::who_is_denied_is_told_so(&server).await;
            Box::pin(backfill::a_table_in_use_delays_the_migration_alone(&server)).await;
            Box::pin(backfill::a_locked_row_is_waited_for(&server)).await;
            Box::pin(backfill::a_node_looks_on_while_another_is_at_it(&server)).await;
            outage::a_deadlock_is_tried_again(&server).await;
            outage::a_read_only_server_is_unavailable(&server).await;
            outage::a_server_that_is_slow_to_connect_to_comes_back(&server).await;
            outage::a_lost_server_fails_fast_and_comes_back(&mut server).await;
        }
    };
}

cases! {
    enroll_cases::enrolling_again_replaces_the_key,
    enroll_cases::clones_get_rows_of_their_own,
    enroll_cases::a_batch_may_name_a_host_twice,
    enroll_cases::enrolling_256_takes_few_statements,
    enroll_cases::failed_enrolments_burn_no_ids,
    enroll_cases::long_and_odd_values_are_taken,
    host_cases::details_are_merged,
    host_cases::label_results_are_written_once,
    host_cases::seen_marks_of_20000_hosts_take_10_statements,
    campaign_cases::campaigns_begin_and_end_once,
    campaign_cases::changes_tell_of_campaigns,
    change_cases::numbers_become_visible_in_order,
    change_cases::concurrent_writers_never_fail,
    change_cases::dropped_calls_leave_no_trace,
    host_cases::hosts_are_deleted,
    change_cases::changes_are_pruned,
    host_cases::hosts_are_listed,
    host_cases::hosts_are_found_by_their_names,
    spec_cases::queries_are_kept_by_name,
    spec_cases::packs_refer_to_labels_and_queries,
    spec_cases::manual_labels_have_members,
    spec_cases::settings_and_secrets_are_kept,
    spec_cases::carves_make_progress,
    spec_cases::ping_works,
    user_cases::accounts_are_kept,
    user_cases::an_admin_always_stays,
    user_cases::sessions_are_found_by_their_token_and_end,
    user_cases::activities_are_added_listed_and_pruned,
    backfill::hosts_of_the_old_schema_are_found_by_address,
    backfill::a_backfill_that_was_cut_off_goes_on,
    backfill::two_nodes_do_each_row_once,
    backfill::a_value_that_is_written_meanwhile_stays,
}

/// A fresh key.
fn key() -> NodeKeyHash {
    let mut key = [0; 32];
    for byte in &mut key {
        *byte = fastrand::u8(..);
    }
    NodeKeyHash(key)
}

fn enrollment(identifier: &str, instance_id: &str, at: u32) -> NewEnrollment {
    NewEnrollment {
        key: key(),
        identifier: identifier.into(),
        instance_id: instance_id.into(),
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        at: UnixSeconds(at),
        columns: HostColumns {
            hostname: Some(format!("{identifier}.example.com")),
            platform: Some("ubuntu".into()),
            ..HostColumns::default()
        },
        details: Map::new(),
    }
}

fn unseen(_: HostId) -> Option<UnixSeconds> {
    None
}

async fn enroll_one(store: &Store, enrollment: NewEnrollment) -> EnrollOutcome {
    let mut outcomes = store.enroll(&[enrollment], &unseen).await.unwrap();
    outcomes.remove(0)
}

/// Hosts named `host-0` and so on; their ids in this order.
async fn enroll_many(store: &Store, count: usize) -> Vec<HostId> {
    let batch: Vec<NewEnrollment> = (0..count)
        .map(|index| enrollment(&format!("host-{index}"), "", 1_000_000))
        .collect();
    let mut hosts = Vec::new();
    for part in batch.chunks(512) {
        let outcomes = store.enroll(part, &unseen).await.unwrap();
        hosts.extend(outcomes.iter().map(|outcome| outcome.host.id));
    }
    hosts
}

fn details(host: HostId, at: u32, columns: HostColumns, members: Value) -> HostDetails {
    HostDetails {
        host,
        at: UnixSeconds(at),
        columns,
        details: members.as_object().cloned().unwrap(),
    }
}

async fn changes(store: &Store, after: FeedSeq) -> Vec<ChangeRow> {
    store.changes_after(after, 100_000).await.unwrap()
}
