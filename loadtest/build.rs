//! Tells the program what it was built by, for the head of its reports.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let words = Command::new(rustc).arg("--version").output();
    let version = words.map_or_else(
        |_| "an unknown compiler".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    let profile = std::env::var("PROFILE").unwrap_or_default();
    println!("cargo:rustc-env=FLEET_LOADTEST_RUSTC={version}");
    println!("cargo:rustc-env=FLEET_LOADTEST_PROFILE={profile}");
    println!("cargo:rerun-if-changed=build.rs");
}
