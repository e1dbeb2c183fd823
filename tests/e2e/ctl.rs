//! The operator's client over the network, called as `fleetctl`.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use fleet_tests::gateway::{Gateway, texts};
use fleet_tests::process::{binary, run};
use tempfile::TempDir;

const PASSWORD: &str = "correct-horse-7-battery";

/// An operator with a home directory on another machine.
struct Operator {
    home: TempDir,
}

impl Operator {
    /// Knows where the gateway is, and whom to trust.
    fn new(gateway: &Gateway) -> Self {
        let home = tempfile::tempdir().unwrap();
        let operator = Self { home };
        let address = format!("https://{}", gateway.address);
        let rootca = gateway.state("tls/cert.pem");
        operator.does(&[
            "config",
            "set",
            "--address",
            &address,
            "--rootca",
            rootca.to_str().unwrap(),
        ]);
        operator
    }

    /// Exit code, standard output and standard error of `fleetctl ARGS`.
    fn fleetctl(&self, args: &[&str]) -> (Option<i32>, String, String) {
        self.fleetctl_with(args, PASSWORD)
    }

    fn fleetctl_with(&self, args: &[&str], password: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(binary("fleet-supervisor"));
        command
            .arg0("fleetctl")
            .args(args)
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("PASSWORD", password);
        let output = run(&mut command);
        let (out, error) = texts(&output);
        for text in [&out, &error] {
            assert!(!text.contains(password), "{args:?} prints a password");
        }
        (output.status.code(), out, error)
    }

    fn does(&self, args: &[&str]) -> String {
        let (code, out, error) = self.fleetctl(args);
        assert_eq!(code, Some(0), "fleetctl {args:?}: {out}{error}");
        out
    }

    /// What the refusal says.
    fn is_refused(&self, args: &[&str]) -> String {
        let (code, out, error) = self.fleetctl(args);
        assert_eq!(code, Some(1), "fleetctl {args:?}: {out}{error}");
        error
    }

    fn file(&self) -> PathBuf {
        self.home.path().join(".fleet/config")
    }
}

#[test]
fn operators_sign_in_from_elsewhere() {
    let gateway = Gateway::start();
    let admin = Operator::new(&gateway);
    let refusal = admin.is_refused(&["get", "hosts"]);
    assert!(refusal.contains("fleetctl login"), "{refusal}");
    let refusal = admin.is_refused(&["login", "--email", "ann@example.com"]);
    assert!(refusal.contains("fleetctl setup"), "{refusal}");
    admin.does(&[
        "setup",
        "--email",
        "ann@example.com",
        "--org-name",
        "Example",
    ]);
    let mode = admin.file().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refusal = admin.is_refused(&["setup", "--email", "bob@example.com", "--org-name", "Other"]);
    assert!(refusal.contains("set up already"), "{refusal}");

    let spec = gateway.write_spec("kind: query\nspec: {name: up, query: SELECT 1}\n");
    admin.does(&["apply", "-f", spec.to_str().unwrap()]);
    assert!(admin.does(&["get", "queries"]).contains("up"));
    assert!(admin.does(&["get", "users"]).contains("ann@example.com"));

    admin.does(&["logout"]);
    admin.is_refused(&["get", "queries"]);
    let (code, _, error) = admin.fleetctl_with(&["login"], "wrong-password-1");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("password is wrong"), "{error}");
    admin.does(&["login"]);
    assert!(admin.does(&["get", "queries"]).contains("up"));
}

#[test]
fn programs_have_a_token_and_the_rights_of_their_role() {
    let gateway = Gateway::start();
    let admin = Operator::new(&gateway);
    admin.does(&[
        "setup",
        "--email",
        "ann@example.com",
        "--org-name",
        "Example",
    ]);
    let made = admin.does(&[
        "user",
        "create",
        "--email",
        "ci@example.com",
        "--name",
        "CI",
        "--api-only",
        "--role",
        "observer",
    ]);
    let token = made.lines().find_map(|line| line.strip_prefix("Token: "));
    let token = token.expect("the token is shown once").to_owned();
    let program = Operator::new(&gateway);
    program.does(&["config", "set", "--token", &token]);
    program.does(&["get", "hosts"]);
    let (code, _, error) = program.fleetctl(&["get", "users"]);
    assert_ne!(code, Some(0));
    assert!(!error.contains(&token), "{error}");
    admin.does(&["user", "delete", "--email", "ci@example.com"]);
    program.is_refused(&["get", "hosts"]);
}

#[test]
fn a_connection_is_shown_step_by_step() {
    let gateway = Gateway::start();
    let operator = Operator::new(&gateway);
    let steps = operator.does(&["debug", "connection"]);
    for step in [
        "address",
        "name",
        "TCP",
        "TLS",
        "certificate",
        "health",
        "agents",
    ] {
        assert!(steps.contains(&format!("[+] {step}")), "{step}: {steps}");
    }
    // The system does not trust what the gateway has made for itself.
    operator.does(&["config", "set", "--rootca", ""]);
    let (code, steps, error) = operator.fleetctl(&["debug", "connection"]);
    assert_eq!(code, Some(69), "{steps}{error}");
    assert!(
        steps.contains("[+] TCP") && !steps.contains("[+] TLS"),
        "{steps}"
    );
    assert!(
        error.contains("--rootca") || error.contains("trusted certificates"),
        "{error}"
    );
}
