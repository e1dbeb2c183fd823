//! Private MariaDB and Redis servers.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::port;
use crate::process::{Process, run};
use crate::wait;

/// A MariaDB on a Unix socket in a temporary directory, with an empty database `fleet`.
#[derive(Debug)]
pub struct MariaDb {
    dir: TempDir,
    server: Option<Process>,
    flags: Vec<String>,
}

impl MariaDb {
    pub fn start() -> Self {
        let flags = ["--skip-networking", "--skip-log-bin"];
        let database = Self::start_with(flags.map(str::to_owned).to_vec());
        database.sql("CREATE DATABASE fleet");
        database
    }

    /// Two of them, the second a replica of the first.
    pub fn start_pair() -> (Self, Self) {
        let port = port::free();
        let flags = |number: u16, port: u16| {
            vec![
                "--bind-address=127.0.0.1".into(),
                format!("--port={port}"),
                format!("--server-id={number}"),
                "--log-bin=binlog".into(),
                "--binlog-format=ROW".into(),
            ]
        };
        let primary = Self::start_with(flags(1, port));
        primary.sql(
            "CREATE USER copy@'127.0.0.1' IDENTIFIED BY 'copy'; \
             GRANT REPLICATION SLAVE ON *.* TO copy@'127.0.0.1'; CREATE DATABASE fleet",
        );
        let replica = Self::start_with(flags(2, port::free()));
        replica.sql(&format!(
            "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={port}, MASTER_USER='copy', \
             MASTER_PASSWORD='copy', MASTER_USE_GTID=slave_pos; START SLAVE"
        ));
        wait::until("the replica has the database", || {
            let names = replica.sql("SHOW DATABASES");
            names.contains("fleet").then_some(())
        });
        (primary, replica)
    }

    fn start_with(flags: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = run(Command::new("mariadb-install-db")
            // At its start a server removes temporary tables from this directory, those of others too.
            .env("TMPDIR", dir.path())
            .arg("--no-defaults")
            .arg(format!("--datadir={}", dir.path().join("data").display()))
            .args([
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--user=root",
            ]));
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut database = Self {
            dir,
            server: None,
            flags,
        };
        database.resume();
        database
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("db.sock")
    }

    /// Starts the server (again) on the same data.
    pub fn resume(&mut self) {
        let path = self.dir.path();
        let log = std::fs::File::create(path.join("db.log")).unwrap();
        self.server = Some(Process::spawn(
            Command::new("mariadbd")
                .env("TMPDIR", path)
                .arg("--no-defaults")
                .arg(format!("--datadir={}", path.join("data").display()))
                .arg(format!("--socket={}", self.socket().display()))
                .arg(format!("--pid-file={}", path.join("db.pid").display()))
                .arg("--user=root")
                .args(&self.flags)
                .stdout(Stdio::null())
                .stderr(log),
        ));
        wait::until("MariaDB answers", || self.try_sql("SELECT 1"));
    }

    /// Stops the server; the data stay.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::SIGTERM);
            server.exit_code();
        }
    }

    /// Runs a statement and gives what it prints, without column names.
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql(statement)
            .unwrap_or_else(|| panic!("failed: {statement}"))
    }

    /// As [`MariaDb::sql`]; `None` when the server says no.
    pub fn try_sql(&self, statement: &str) -> Option<String> {
        let output = run(Command::new("mariadb")
            .arg("--no-defaults")
            .arg(format!("--socket={}", self.socket().display()))
            .args([
                "--user=root",
                "--batch",
                "--skip-column-names",
                "--execute",
                statement,
            ]));
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A Redis on a port of 127.0.0.1, without persistence.
#[derive(Debug)]
pub struct Redis {
    pub address: String,
    server: Option<Process>,
    dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        let mut redis = Self {
            address: format!("127.0.0.1:{}", port::free()),
            server: None,
            dir: tempfile::tempdir().unwrap(),
        };
        redis.resume();
        redis
    }

    pub fn resume(&mut self) {
        let port = self.address.rsplit(':').next().unwrap();
        self.server = Some(Process::spawn(
            Command::new("redis-server")
                .args([
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    port,
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .arg("--dir")
                .arg(self.dir.path())
                .stdout(Stdio::null()),
        ));
        wait::until("Redis answers", || {
            std::net::TcpStream::connect(&self.address).ok()
        });
    }

    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    pub fn signal(&self, signal: Signal) {
        self.server.as_ref().unwrap().signal(signal);
    }
}
