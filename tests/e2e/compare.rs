//! The gateway beside a peer, as `fleet-loadtest compare` measures them.

use std::fs;
use std::process::Command;

use fleet_tests::process::binary;
use serde_json::Value;

#[test]
fn a_gateway_is_compared_with_hyper() {
    let dir = tempfile::tempdir().unwrap();
    let (json, html) = (dir.path().join("r.json"), dir.path().join("r.html"));
    let output = Command::new(binary("fleet-loadtest"))
        .arg("compare")
        .arg(format!(
            "--server-binary={}",
            binary("fleet-supervisor").display()
        ))
        .arg(format!("--hyper-binary={}", binary("peer-hyper").display()))
        .args(["--peers=hyper", "--rounds=2", "--idle-rounds=1"])
        .args([
            "--seconds=1",
            "--connections=8",
            "--idle-connections=200",
            "--no-pin",
        ])
        .arg(format!("--json={}", json.display()))
        .arg(format!("--html={}", html.display()))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let tables = String::from_utf8_lossy(&output.stdout);
    assert!(tables.contains("200 held connections"), "{tables}");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let contests = report["contests"].as_array().unwrap();
    assert_eq!(contests.len(), 4, "{report}");
    for contest in contests {
        let sides = contest["sides"].as_array().unwrap();
        assert_eq!(sides.len(), 2, "{contest}");
        assert!(sides[1]["cost"][0].as_f64() > Some(0.0), "{contest}");
        assert!(sides[1]["ratio"]["median"].is_number(), "{contest}");
        if contest["unit"] == "µs" {
            assert!(sides[0]["per_s"][1].as_f64() > Some(0.0), "{contest}");
        }
    }
    for name in ["fleet-supervisor", "peer-hyper"] {
        assert!(report["machine"]["versions"][name].is_string(), "{report}");
    }
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("</html>") && page.contains("hyper"));
}
