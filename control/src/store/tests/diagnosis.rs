//! What a server tells about itself, without the values that stand in its statements.

use sqlx::Executor as _;

use super::*;

const SECRET: &str = "hunter3-in-a-statement";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_looked_into_without_secrets() {
    let Some(server) = server::Server::start() else {
        eprintln!("skipped: no mariadbd on this machine");
        return;
    };
    let bed = Bed::open(server.database("diagnosis").await).await;
    server
        .run("GRANT PROCESS ON *.* TO fleet@localhost".to_owned())
        .await;
    // The privilege holds for connections that are made from now on.
    let node = bed.node().await;
    let mut other = server.connect().await;
    for sql in [
        "USE diagnosis",
        "START TRANSACTION",
        "INSERT INTO enroll_secrets (secret, created_at) VALUES ('hunter3-in-a-statement', 1)",
    ] {
        other.execute(sql).await.unwrap();
    }
    let busy = tokio::spawn(async move {
        let sql = "SELECT SLEEP(60), 'hunter3-in-a-statement'";
        let _ = other.execute(sql).await;
    });
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    let list = loop {
        let list = node.process_list().await.unwrap().unwrap();
        if list.to_string().contains("SLEEP") {
            break list;
        }
        assert!(tokio::time::Instant::now() < deadline, "{list}");
    };
    let locks = node.lock_list().await.unwrap().unwrap();
    let page = node.innodb_status().await.unwrap().unwrap();
    let condition = node.condition();
    busy.abort();
    assert!(
        list.to_string().contains("SELECT SLEEP(60), ********"),
        "{list}"
    );
    assert!(locks.to_string().contains("SLEEP"), "{locks}");
    assert!(page.contains("ROW OPERATIONS"), "{page}");
    assert_eq!(condition["engine"], "mysql");
    for text in [
        list.to_string(),
        locks.to_string(),
        page,
        condition.to_string(),
    ] {
        assert!(!text.contains(SECRET), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    let embedded = Bed::sqlite().await.store;
    assert_eq!(embedded.process_list().await, Ok(None));
    assert_eq!(embedded.innodb_status().await, Ok(None));
}
