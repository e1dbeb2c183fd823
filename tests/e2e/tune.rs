//! `tune`: kernel settings are shown, changed, kept and put back. Running values are changed in network namespaces of
//! the tests' own, and only keys that belong to the namespace.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fleet_tests::gateway::{read, texts};
use fleet_tests::namespace::{inside, make_read_only};
use fleet_tests::process::{binary, run};
use fleet_tests::terminal::Terminal;
use serde_json::Value;
use tempfile::TempDir;

/// Keys of a network namespace, what the tests begin with, and what 30,000 hosts on two workers want.
const KEYS: [(&str, &str, &str); 6] = [
    ("net.core.somaxconn", "128", "16384"),
    ("net.ipv4.tcp_max_syn_backlog", "256", "16384"),
    ("net.ipv4.tcp_migrate_req", "0", "1"),
    ("net.ipv4.tcp_tw_reuse", "2", "1"),
    ("net.ipv4.tcp_slow_start_after_idle", "1", "0"),
    ("net.ipv4.ip_local_port_range", "40000 62000", "32768 62000"),
];
const SYSCTL_FILE: &str = "etc/sysctl.d/90-fleet.conf";
const LIMITS_FILE: &str = "etc/security/limits.d/90-fleet.conf";
const DROP_IN_FILE: &str = "etc/systemd/system/fleet-supervisor.service.d/90-fleet.conf";
const RECORD_FILE: &str = "var/lib/fleet-supervisor/tune.json";

pub(crate) fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

/// A value of this thread's namespace.
fn running(key: &str) -> String {
    let text = fs::read_to_string(sysctl_path(key)).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn set_all() {
    for (key, first, _) in KEYS {
        fs::write(sysctl_path(key), first).unwrap();
    }
}

pub(crate) fn all_running() -> Vec<String> {
    KEYS.map(|(key, ..)| running(key)).to_vec()
}

pub(crate) fn firsts() -> Vec<String> {
    KEYS.map(|(_, first, _)| first.to_owned()).to_vec()
}

pub(crate) fn wanted() -> Vec<String> {
    KEYS.map(|(.., wanted)| wanted.to_owned()).to_vec()
}

struct Root(TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Only the keys of the namespace, for 30,000 hosts on two workers.
    fn command(&self, args: &[&str]) -> Command {
        let only = KEYS.map(|(key, ..)| key).join(",");
        let mut command = self.bare(args);
        if !args.contains(&"--revert") {
            command.args(["--hosts=30000", "--only", &only]);
        }
        command
    }

    fn bare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("fleet-supervisor"));
        command
            .arg("tune")
            .args(args)
            .arg("--workers_count=2")
            .arg("--root")
            .arg(self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn tune(&self, args: &[&str]) -> (i32, String) {
        said(&run(&mut self.command(args)))
    }
}

/// Exit code, and both outputs.
pub(crate) fn said(output: &Output) -> (i32, String) {
    let (out, error) = texts(output);
    (output.status.code().unwrap(), out + &error)
}

#[test]
fn it_is_applied_kept_and_put_back_in_a_namespace() {
    inside(|| {
        set_all();
        let root = Root::new();
        let own = "# by hand\nvm.swappiness = 10\n";
        root.write(SYSCTL_FILE, own);

        let (code, text) = root.tune(&[]);
        assert_eq!(code, 1, "{text}");
        for (key, first, wanted) in KEYS {
            let row = text.lines().find(|line| line.trim_start().starts_with(key));
            let row = row.unwrap_or_else(|| panic!("{key} is not in:\n{text}"));
            assert!(row.contains("change"), "{row}");
            let shown: Vec<&str> = first.split(' ').chain(wanted.split(' ').take(1)).collect();
            assert!(
                shown.iter().all(|part| row.contains(part)),
                "{shown:?} not in {row}"
            );
        }
        assert_eq!(all_running(), firsts(), "looking changes nothing");

        let (code, text) = root.tune(&["--apply", "--dry-run"]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("would be changed"), "{text}");
        assert_eq!(all_running(), firsts(), "a dry run changes nothing");
        assert!(!root.path(RECORD_FILE).exists());

        let (code, text) = root.tune(&["--apply"]);
        assert_eq!(code, 0, "{text}");
        for (key, first, wanted) in KEYS {
            let line = format!("{key}: {first} -> {wanted}");
            assert!(
                text.lines().any(|have| have == line),
                "{line} not in:\n{text}"
            );
        }
        assert_eq!(all_running(), wanted());
        let kept = read(&root.path(SYSCTL_FILE));
        for line in ["net.core.somaxconn = 16384", "vm.swappiness = 10"] {
            assert!(
                kept.lines().any(|have| have == line),
                "{line} not in:\n{kept}"
            );
        }

        let record = read(&root.path(RECORD_FILE));
        let (code, text) = root.tune(&["--apply"]);
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with("Nothing to do"), "{text}");
        assert_eq!(read(&root.path(RECORD_FILE)), record);
        assert_eq!(read(&root.path(SYSCTL_FILE)), kept);
        assert_eq!(root.tune(&[]).0, 0);

        let (code, text) = root.tune(&["--revert"]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(all_running(), firsts());
        assert_eq!(read(&root.path(SYSCTL_FILE)), own);
        assert!(!root.path(RECORD_FILE).exists());
        let (code, text) = root.tune(&["--revert"]);
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with("Nothing to revert"), "{text}");
    });
}

#[test]
fn what_is_higher_is_left_and_a_mode_is_not() {
    inside(|| {
        set_all();
        fs::write(sysctl_path("net.core.somaxconn"), "60000").unwrap();
        fs::write(sysctl_path("net.ipv4.ip_local_port_range"), "2000 64000").unwrap();
        let root = Root::new();
        let (code, text) = root.tune(&["--apply"]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(running("net.core.somaxconn"), "60000");
        assert_eq!(running("net.ipv4.ip_local_port_range"), "2000 64000");
        assert_eq!(running("net.ipv4.tcp_tw_reuse"), "1");
    });
}

#[test]
fn a_read_only_proc_is_said_and_the_rest_is_done() {
    inside(|| {
        set_all();
        make_read_only("/proc/sys");
        let root = Root::new();
        let output = run(&mut root.bare(&["--apply", "--only=net.core.somaxconn,LimitNOFILE"]));
        let (code, text) = said(&output);
        assert_eq!(code, 1, "{text}");
        let line = text
            .lines()
            .find(|line| line.starts_with("net.core.somaxconn: 128 -> "));
        assert!(
            line.is_some_and(|line| line.contains("read-only")),
            "{text}"
        );
        assert!(
            read(&root.path(DROP_IN_FILE)).contains("LimitNOFILE="),
            "{text}"
        );
        assert_eq!(running("net.core.somaxconn"), "128");
        assert!(!read(&root.path(RECORD_FILE)).contains("somaxconn"));
    });
}

#[test]
fn what_belongs_to_the_host_is_said_so() {
    inside(|| {
        let root = Root::new();
        let output = run(&mut root.bare(&["--apply", "--only=net.core.rmem_max,net.ipv4.tcp_mem"]));
        let (code, text) = said(&output);
        // By kernel they are missing in a namespace, or there and not to be changed, and then perhaps high enough.
        assert!([0, 1].contains(&code), "{text}");
        if code == 1 {
            assert!(text.contains("change it on the host"), "{text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    });
}

#[test]
fn another_user_is_told_to_be_root() {
    inside(|| {
        set_all();
        let root = Root::new();
        let nobody = nix::unistd::Uid::from_raw(65_534);
        nix::unistd::chown(root.0.path(), Some(nobody), None).unwrap();
        let mut command = root.command(&["--apply"]);
        command.uid(nobody.as_raw());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                eprintln!("left out: another user cannot start the binary here ({error})");
                return;
            }
        };
        let (code, text) = said(&output);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains(
                "net.core.somaxconn: 128 -> 16384 not changed: not permitted; run it as root"
            ),
            "{text}"
        );
        assert_eq!(all_running(), firsts());
        assert!(!root.path(RECORD_FILE).exists());
    });
}

#[test]
fn limits_of_logins_and_the_unit_are_kept_in_files() {
    let root = Root::new();
    let only = "--only=nofile,LimitNOFILE,TasksMax";
    // As if this process were a login's that began before.
    root.write("proc/sys/kernel/pid_max", "1000\n");
    root.write("proc/sys/kernel/threads-max", "1000\n");
    root.write("proc/self/limits", "Max open files  1024  4096  files\n");
    let (code, text) = said(&run(&mut root.bare(&["--apply", only])));
    assert_eq!(code, 0, "{text}");
    let limits = read(&root.path(LIMITS_FILE));
    for line in [
        "* soft nofile 1024000",
        "* hard nofile 1024000",
        "root hard nofile 1024000",
    ] {
        assert!(
            limits.lines().any(|have| have == line),
            "{line} not in:\n{limits}"
        );
    }
    let drop_in = read(&root.path(DROP_IN_FILE));
    for line in ["[Service]", "LimitNOFILE=1024000:1024000", "TasksMax=1056"] {
        assert!(
            drop_in.lines().any(|have| have == line),
            "{line} not in:\n{drop_in}"
        );
    }
    assert!(
        text.contains("next login") && text.contains("daemon-reload"),
        "{text}"
    );

    let (code, text) = said(&run(&mut root.bare(&["--apply", only])));
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("Nothing to do"), "{text}");
    let (_, text) = said(&run(&mut root.bare(&[only])));
    assert!(text.contains("pending"), "{text}");

    let (code, text) = said(&run(&mut root.bare(&["--revert"])));
    assert_eq!(code, 0, "{text}");
    assert!(
        !root.path("etc").exists(),
        "directories that were made are gone"
    );
}

#[test]
fn an_older_kernel_lacks_some_and_json_says_all() {
    let root = Root::new();
    root.write("proc/sys/kernel/osrelease", "5.10.0-9-amd64\n");
    root.write("proc/sys/net/core/somaxconn", "4096\n");
    let (code, text) = said(&run(&mut root.bare(&["--json", "--hosts=300000"])));
    assert_eq!(code, 1, "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let of = |key: &str| {
        let settings = json["settings"].as_array().unwrap();
        settings
            .iter()
            .find(|setting| setting["key"] == key)
            .unwrap()
            .clone()
    };
    assert_eq!(of("net.ipv4.tcp_migrate_req")["verdict"], "absent");
    let note = of("net.ipv4.tcp_migrate_req")["note"].to_string();
    assert!(note.contains("5.14") && note.contains("5.10"), "{note}");
    assert_eq!(of("net.core.somaxconn")["verdict"], "low");
    assert_eq!(of("net.core.somaxconn")["would_be"], "65535");
    assert_eq!(json["holds"], false);
    assert_eq!(json["hosts"], 300_000);
    for setting in json["settings"].as_array().unwrap() {
        assert!(
            setting["why"].as_str().is_some_and(|why| why.len() > 20),
            "{setting}"
        );
    }
}

#[test]
fn a_forged_or_broken_record_is_refused() {
    let root = Root::new();
    for (text, told) in [
        ("{", "not a record"),
        (
            r#"{"version":1,"settings":[{"key":"kernel.core_pattern","former":"|/x","applied":""}],"files":[]}"#,
            "kernel.core_pattern",
        ),
        (
            r#"{"version":1,"settings":[],"files":[{"path":"/etc/shadow","former":null,"made":[]}]}"#,
            "/etc/shadow",
        ),
    ] {
        root.write(RECORD_FILE, text);
        let (code, said) = root.tune(&["--revert"]);
        assert_eq!(code, 70, "{said}");
        assert!(said.contains(told) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn wrong_usage_is_named() {
    let root = Root::new();
    for (args, code, told) in [
        (&["--apply", "--revert"][..], 64, "cannot be used with"),
        (&["--hosts=0"], 64, "--hosts"),
        (&["--hosts=many"], 64, "--hosts"),
        (&["--only=no.such"], 64, "no.such"),
        (&["--only=nosuch", "--apply"], 64, "nosuch"),
        (&["--only=nosuch", "--json"], 64, "nosuch"),
        (&["--walk"], 64, "terminal"),
        (&["--files-only"], 64, "--apply"),
    ] {
        let (found, text) = said(&run(&mut root.bare(args)));
        assert_eq!(found, code, "{args:?}: {text}");
        assert!(text.contains(told), "{args:?}: {text}");
    }
    let output =
        run(Command::new(binary("fleet-supervisor")).args(["tune", "--root=/no/such/dir"]));
    assert_eq!(said(&output).0, 70);
}

const QUESTION: &str = "[q]uit? ";

#[test]
fn a_walk_on_a_terminal_asks_setting_by_setting() {
    inside(|| {
        set_all();
        let root = Root::new();
        let (mut terminal, mut walk) = Terminal::start(&mut root.command(&["--walk"]));
        let first = terminal.expect(QUESTION);
        for part in ["(1/6) net.core.somaxconn", "why:", "cost:", "128", "16384"] {
            assert!(first.contains(part), "{part} not in:\n{first}");
        }
        terminal.press("a");
        terminal.expect("net.core.somaxconn: 128 -> 16384");
        terminal.expect(QUESTION);
        // Applied at once, before the next is answered.
        assert_eq!(running("net.core.somaxconn"), "16384");
        terminal.press("s");
        terminal.expect(QUESTION);
        terminal.press("what?");
        terminal.expect("Please answer");
        terminal.expect(QUESTION);
        terminal.press("q");
        terminal.expect("--revert");
        assert_eq!(walk.exit_code(), 1);
        let mut now = firsts();
        now[0] = "16384".into();
        assert_eq!(all_running(), now);

        let (mut terminal, mut walk) = Terminal::start(&mut root.command(&["--walk"]));
        assert!(
            terminal
                .expect(QUESTION)
                .contains("(1/5) net.ipv4.tcp_max_syn_backlog")
        );
        terminal.press("A");
        terminal.expect("--revert");
        assert_eq!(walk.exit_code(), 0);
        assert_eq!(all_running(), wanted());

        let (mut terminal, mut walk) = Terminal::start(&mut root.command(&["--walk"]));
        terminal.expect("Nothing to do");
        assert_eq!(walk.exit_code(), 0);

        assert_eq!(root.tune(&["--revert"]).0, 0);
        assert_eq!(all_running(), firsts());
    });
}
