//! HAProxy from its package, with a configuration that the product rendered.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::port;
use crate::process::{Process, binary, run};
use crate::wait;

/// A running HAProxy.
#[derive(Debug)]
pub struct HaProxy {
    /// Where it listens.
    pub address: SocketAddr,
    dir: TempDir,
    process: Process,
}

/// What HAProxy thinks of one server: the fields of `show stat` that tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStat {
    pub status: String,
    pub weight: u32,
    /// Sessions so far.
    pub sessions: u64,
}

impl HaProxy {
    /// In front of gateways, each as `--gateway` takes it.
    pub fn start(gateways: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port::free()));
        let config = dir.path().join("haproxy.cfg");
        let mut command = Command::new(binary("fleet-supervisor"));
        command
            .args(["lb", "haproxy", "--connections=500"])
            .arg(format!("--listen={address}"))
            .arg(format!(
                "--stats-socket={}",
                dir.path().join("stats.sock").display()
            ))
            .arg(format!("--output={}", config.display()));
        for gateway in gateways {
            command.arg(format!("--gateway={gateway}"));
        }
        let output = run(&mut command);
        assert!(output.status.success(), "{output:?}");
        let log = std::fs::File::create(dir.path().join("log.txt")).unwrap();
        let process = Process::spawn(
            Command::new("haproxy")
                .args(["-db", "-f"])
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log),
        );
        let mut balancer = Self {
            address,
            dir,
            process,
        };
        wait::until("HAProxy listens", || {
            assert!(balancer.process.is_running(), "{}", balancer.log());
            TcpStream::connect(address).ok()
        });
        balancer
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log.txt")).unwrap()
    }

    fn stats_socket(&self) -> PathBuf {
        self.dir.path().join("stats.sock")
    }

    /// One command on its socket.
    pub fn command(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.stats_socket()).unwrap();
        writeln!(stream, "{command}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Its view of the gateway that was given at this place, from 0.
    pub fn stat(&self, index: usize) -> ServerStat {
        let name = format!("gateway{}", index + 1);
        let text = self.command("show stat");
        let mut lines = text.lines();
        let names: Vec<&str> = lines
            .next()
            .unwrap()
            .trim_start_matches("# ")
            .split(',')
            .collect();
        let fields: Vec<&str> = lines
            .map(|line| line.split(',').collect::<Vec<_>>())
            .find(|fields| fields[0] == "gateways" && fields[1] == name)
            .unwrap_or_else(|| panic!("no {name} in {text}"));
        let field = |name: &str| {
            let index = names.iter().position(|known| *known == name).unwrap();
            fields[index].to_owned()
        };
        ServerStat {
            status: field("status"),
            weight: field("weight").parse().unwrap(),
            sessions: field("stot").parse().unwrap(),
        }
    }

    /// Waits until it thinks so of a gateway.
    pub fn wait_for(&self, index: usize, what: &str, holds: impl Fn(&ServerStat) -> bool) {
        let mut last = None;
        let found = wait::until_or(std::time::Duration::from_secs(60), || {
            let stat = self.stat(index);
            let is_so = holds(&stat);
            last = Some(stat);
            is_so.then_some(())
        });
        assert!(found.is_some(), "{what}: {last:?}\n{}", self.log());
    }
}
