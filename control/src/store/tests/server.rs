//! A private MariaDB on a Unix socket in a temporary directory.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleet_protocol::config::Config;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, MySqlConnection};
use tokio::time::Instant;

use crate::bus::tests::{free_port, make_certificates};

pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// `None` when there is no MariaDB on the machine.
    pub(crate) fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("mariadb-install-db")
            // At its start a server removes temporary tables from this directory, those of others too.
            .env("TMPDIR", dir.path())
            .args(["--no-defaults", "--user=root", "--skip-test-db"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", dir.path().join("data").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .ok()?;
        assert!(made.success(), "mariadb-install-db");
        let port = free_port();
        let child = Self::spawn(&dir, port)?;
        Some(Self { child, dir, port })
    }

    fn spawn(dir: &tempfile::TempDir, port: u16) -> Option<Child> {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let tls: &[String] = &if make_certificates(dir.path()) {
            vec![
                format!("--port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--ssl-ca={}", path("ca.pem")),
                format!("--ssl-cert={}", path("cert.pem")),
                format!("--ssl-key={}", path("key.pem")),
            ]
        } else {
            vec!["--skip-networking".to_owned()]
        };
        Command::new("mariadbd")
            .env("TMPDIR", dir.path())
            .args(["--no-defaults", "--user=root"])
            .args(tls)
            .args([
                "--innodb-buffer-pool-size=64M",
                "--character-set-server=latin1",
            ])
            .arg(format!("--datadir={}", path("data")))
            .arg(format!("--socket={}", path("socket")))
            .arg(format!("--pid-file={}", path("pid")))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("errors")).unwrap())
            .spawn()
            .ok()
    }

    pub(super) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(super) fn start_again(&mut self) {
        self.child = Self::spawn(&self.dir, self.port).unwrap();
    }

    /// Its address for TLS, and the authority that vouches for it.
    pub(super) fn tls(&self) -> (String, PathBuf) {
        let address = format!("localhost:{}", self.port);
        (address, self.dir.path().join("ca.pem"))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// As root.
    pub(super) async fn connect(&self) -> MySqlConnection {
        let options = MySqlConnectOptions::new()
            .socket(self.socket())
            .username("root");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match options.connect().await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs statements as root.
    pub(crate) async fn run(&self, sql: String) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap();
        drop(connection);
    }

    /// Transactions that wait for a row's lock.
    pub(super) async fn lock_waits(&self) -> i64 {
        let sql =
            "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'";
        sqlx::query_scalar(sql)
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }

    /// A new database, and the configuration of somebody without privileges beyond it.
    pub(crate) async fn database(&self, name: &str) -> Config {
        self.run(format!(
            "CREATE DATABASE {name}; \
             CREATE USER IF NOT EXISTS fleet@localhost IDENTIFIED BY 'hunter2'; \
             GRANT ALL ON {name}.* TO fleet@localhost; \
             CREATE USER IF NOT EXISTS fleet@'127.0.0.1' IDENTIFIED BY 'hunter2' REQUIRE SSL; \
             GRANT ALL ON {name}.* TO fleet@'127.0.0.1'"
        ))
        .await;
        let password = self.dir.path().join("password");
        std::fs::write(&password, "hunter2\n").unwrap();
        let mut config = Config::default();
        config.mysql.address = self.socket().display().to_string();
        config.mysql.username = "fleet".into();
        config.mysql.password_path = password;
        config.mysql.database = name.into();
        config.mysql.acquire_timeout = Duration::from_secs(5);
        config
    }
}
