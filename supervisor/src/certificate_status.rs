//! Certificates in `status`: a line for each, and why what is on disk is not in use. Pure.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use fleet_protocol::slot::{CertificateView, Gateway};

/// Lines below the tables; none without TLS.
pub(crate) fn text(gateway: &Gateway) -> String {
    let mut out = String::new();
    for view in &gateway.certificates {
        let role = match view.option.as_str() {
            "" => "self-signed",
            option => option,
        };
        let (file, day) = (&view.file, day(view));
        let _ = write!(out, "\ncertificate {file} ({role}) expires on {day}");
    }
    if !gateway.certificate_trouble.is_empty() {
        let _ = write!(
            out,
            "\nthe files have changed and CANNOT BE USED, the former ones serve on: {}",
            gateway.certificate_trouble
        );
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn day(view: &CertificateView) -> String {
    let seconds = u64::try_from(view.not_after_s).unwrap_or(0);
    // Beyond the year 9999 the text has no form; such a certificate has no end that matters.
    let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(seconds.min(253_402_300_799)))
    else {
        return "never".into();
    };
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_has_its_last_day() {
        let mut gateway = Gateway::default();
        assert_eq!(text(&gateway), "");
        let view = |option: &str, not_after_s| CertificateView {
            file: "/a.pem".into(),
            option: option.into(),
            not_after_s,
        };
        gateway.certificates = vec![view("", 1_800_000_000), view("server.client_ca", i64::MAX)];
        gateway.certificate_trouble = "no key".into();
        assert_eq!(
            text(&gateway),
            "\ncertificate /a.pem (self-signed) expires on 2027-01-15\
             \ncertificate /a.pem (server.client_ca) expires on 9999-12-31\
             \nthe files have changed and CANNOT BE USED, the former ones serve on: no key\n"
        );
    }
}
