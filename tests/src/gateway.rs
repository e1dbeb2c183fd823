//! A whole gateway in a temporary directory.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::fault_table;
use crate::https::Https;
use crate::netns::Namespace;
use crate::process::{Process, binary, is_alive, run};
use crate::wait;

const CONFIG_FILE: &str = "config.yml";
/// Flags that every gateway is started with, before those of its options.
const FLAGS_ALWAYS: usize = 4;

/// Options of a gateway that is about to start.
#[derive(Debug, Default)]
pub struct Options {
    flags: Vec<String>,
    file: Option<String>,
    namespace: Option<Arc<Namespace>>,
    environment: Vec<(String, String)>,
    program: Option<PathBuf>,
}

impl Options {
    /// Runs this program instead of the one that was built.
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Sets an option by its dotted name.
    pub fn set(mut self, dotted: &str, value: impl ToString) -> Self {
        self.flags.push(format!(
            "--{}={}",
            dotted.replace('.', "_"),
            value.to_string()
        ));
        self
    }

    /// Serves in a network namespace.
    pub fn within(mut self, namespace: &Arc<Namespace>) -> Self {
        self.namespace = Some(Arc::clone(namespace));
        self
    }

    /// Sets a variable in the environment of all its processes.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Takes this YAML for the configuration file, addresses included: no flag overrides them.
    pub fn file(mut self, yaml: &str) -> Self {
        self.file = Some(yaml.to_owned());
        self
    }

    pub fn start(self) -> Gateway {
        Gateway::start_in(tempfile::tempdir().unwrap(), self)
    }
}

/// A running supervisor with its children.
#[derive(Debug)]
pub struct Gateway {
    pub supervisor: Process,
    pub address: SocketAddr,
    pub https: Https,
    flags: Vec<String>,
    namespace: Option<Arc<Namespace>>,
    dir: Option<TempDir>,
}

impl Gateway {
    /// Two workers on a port of the kernel's choice, embedded store.
    pub fn start() -> Self {
        Options::default().start()
    }

    pub fn options() -> Options {
        Options::default()
    }

    /// Starts in a directory that may hold the state of an earlier life.
    pub fn start_in(dir: TempDir, options: Options) -> Self {
        let source = match &options.file {
            Some(yaml) => {
                let path = dir.path().join(CONFIG_FILE);
                fs::write(&path, yaml).unwrap();
                format!("--config={}", path.display())
            }
            None => "--server_address=127.0.0.1:0".into(),
        };
        // Most tests read to see what is due, not to wait for it.
        let hold = "--osquery_distributed_hold=0s";
        // A flag would hold against a reload of a file that says how many.
        let is_counted = options
            .file
            .as_ref()
            .is_some_and(|yaml| yaml.contains("workers:"));
        let mut flags = vec![
            format!("--state_dir={}", dir.path().join("state").display()),
            source,
            if is_counted {
                hold
            } else {
                "--workers_count=2"
            }
            .into(),
            hold.into(),
        ];
        assert_eq!(flags.len(), FLAGS_ALWAYS);
        flags.extend(options.flags.iter().cloned());
        let _ = fs::remove_file(dir.path().join("state/run/addresses"));
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.path().join("log.txt"))
            .unwrap();
        let banner = fs::File::create(dir.path().join("banner.txt")).unwrap();
        let program = options
            .program
            .clone()
            .unwrap_or_else(|| binary("fleet-supervisor"));
        let mut command = match &options.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        };
        let mut supervisor = Process::spawn(
            command
                .arg("start")
                .args(&flags)
                // Not an option of the gateway.
                .env_remove(fault_table::DIRECTORY)
                .envs(options.environment.iter().cloned())
                .stdin(Stdio::null())
                .stdout(banner)
                .stderr(log),
        );
        let addresses = dir.path().join("state/run/addresses");
        let address = wait::until("the gateway writes its addresses", || {
            assert!(
                supervisor.is_running(),
                "{}",
                read(&dir.path().join("log.txt"))
            );
            read(&addresses).lines().next().and_then(address_of)
        });
        let ca = dir.path().join("state/tls/cert.pem");
        let https = Https::new(address, &ca);
        let gateway = Self {
            supervisor,
            address,
            https,
            flags,
            namespace: options.namespace,
            dir: Some(dir),
        };
        wait::until("every slot is ready", || {
            let status = gateway.status()?;
            let slots = status["gateway"]["slots"].as_array()?;
            let is_ready = |part: &Value| part["state"] == "ready";
            (slots.iter().all(is_ready) && is_ready(&status["control"])).then_some(())
        });
        gateway
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub fn state(&self, path: &str) -> PathBuf {
        self.dir().join("state").join(path)
    }

    pub fn secret(&self) -> String {
        read(&self.state("enroll_secret")).trim().to_owned()
    }

    /// What `start` printed.
    pub fn banner(&self) -> String {
        read(&self.dir().join("banner.txt"))
    }

    /// What all processes logged.
    pub fn log(&self) -> String {
        read(&self.dir().join("log.txt"))
    }

    /// `status --json`; `None` while the supervisor does not answer.
    pub fn status(&self) -> Option<Value> {
        let output = self.command(&["status", "--json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Runs `fleet-supervisor ARGS` with this gateway's options.
    pub fn command(&self, args: &[&str]) -> Output {
        run(&mut self.prepared(args))
    }

    /// `fleet-supervisor ARGS` with this gateway's options, to be run.
    pub fn prepared(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("fleet-supervisor"));
        command.args(args).args(&self.flags);
        command
    }

    /// Upgrades, to the built program or another one; the exit code and what was printed.
    pub fn upgrade(&self, program: Option<&Path>) -> (Option<i32>, String) {
        let flag = program.map(|path| format!("--binary={}", path.display()));
        let mut args = vec!["upgrade"];
        args.extend(flag.as_deref());
        let output = self.command(&args);
        let (out, error) = texts(&output);
        (output.status.code(), out + &error)
    }

    /// The supervisor that serves, which after an upgrade is not the one that was started.
    pub fn pid(&self) -> u32 {
        let status = self.status().expect("the supervisor answers");
        status["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Runs `ctl ARGS`, which must succeed, and gives its standard output.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self.ctl_output(args);
        let (out, error) = texts(&output);
        assert!(output.status.success(), "ctl {args:?}: {out}{error}");
        out
    }

    pub fn ctl_output(&self, args: &[&str]) -> Output {
        self.command(&[&["ctl"], args].concat())
    }

    /// Writes `yaml` to a file and applies it.
    pub fn apply(&self, yaml: &str) -> String {
        let path = self.write_spec(yaml);
        self.ctl(&["apply", "-f", path.to_str().unwrap()])
    }

    pub fn write_spec(&self, yaml: &str) -> PathBuf {
        let path = self.dir().join("spec.yml");
        fs::write(&path, yaml).unwrap();
        path
    }

    /// Changes the configuration file; `reload` takes it.
    pub fn write_config(&self, yaml: &str) {
        fs::write(self.dir().join(CONFIG_FILE), yaml).unwrap();
    }

    pub fn worker_pid(&self, slot: usize) -> u32 {
        self.status().unwrap()["gateway"]["slots"][slot]["pid"]
            .as_u64()
            .unwrap()
            .try_into()
            .unwrap()
    }

    pub fn control_pid(&self) -> u32 {
        self.status().unwrap()["control"]["pid"]
            .as_u64()
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// Waits until a restarted control or worker is at work again under another pid.
    pub fn wait_for_successor(&self, pointer: &str, old_pid: u32) {
        wait::until(&format!("a successor at {pointer}"), || {
            let status = self.status()?;
            let part = status.pointer(pointer)?;
            (part["state"] == "ready" && part["pid"] != old_pid).then_some(())
        });
    }

    /// Every line in the journal of one log type, closed segments included (not compressed ones).
    pub fn journal(&self, log_type: &str) -> Vec<String> {
        let dir = self.state(&format!("log/osquery_{log_type}"));
        let mut files: Vec<_> = fs::read_dir(&dir)
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        files.sort();
        files
            .iter()
            .flat_map(|file| read(file).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// Kills the supervisor, waits for the end of what it has started, and starts again on the same state with another
    /// configuration.
    pub fn crash_and_start(mut self, yaml: &str) -> Self {
        let status = self.status().unwrap();
        let slots = status["gateway"]["slots"].as_array().unwrap().iter();
        let children: Vec<u32> = slots
            .chain([&status["control"]])
            .filter_map(|part| u32::try_from(part["pid"].as_u64()?).ok())
            .collect();
        self.supervisor.kill();
        wait::until("the children end", || {
            children.iter().all(|pid| !is_alive(*pid)).then_some(())
        });
        let options = Options {
            flags: self.flags.split_off(FLAGS_ALWAYS),
            file: Some(yaml.to_owned()),
            namespace: self.namespace.take(),
            ..Options::default()
        };
        Self::start_in(self.dir.take().unwrap(), options)
    }

    /// Drains and stops; the exit code.
    pub fn stop(&mut self) -> i32 {
        self.supervisor.signal(Signal::SIGTERM);
        self.supervisor.exit_code()
    }

    /// Stops, and gives the directory with the state for another to start in.
    pub fn stop_and_keep(&mut self) -> TempDir {
        assert_eq!(self.stop(), 0, "{}", self.log());
        self.dir.take().unwrap()
    }

    /// Stops and starts again on the same state.
    pub fn restart(mut self) -> Self {
        assert_eq!(self.stop(), 0, "{}", self.log());
        let dir = self.dir.take().unwrap();
        let file = fs::read_to_string(dir.path().join(CONFIG_FILE)).ok();
        let options = Options {
            flags: self.flags.split_off(FLAGS_ALWAYS),
            file,
            namespace: self.namespace.take(),
            ..Options::default()
        };
        Self::start_in(dir, options)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() && self.dir.is_some() {
            let log = self.log();
            let tail = log.len().saturating_sub(6000);
            eprintln!(
                "--- the gateway's log ---\n{}",
                log.get(tail..).unwrap_or(&log)
            );
        }
    }
}

fn address_of(line: &str) -> Option<SocketAddr> {
    line.trim()
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .parse()
        .ok()
}

/// A file's text; empty when there is none.
pub fn read(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Standard output and standard error as texts.
pub fn texts(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
