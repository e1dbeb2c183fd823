//! Who may read `/metrics` over the network: Fleet's rule.

use aws_lc_rs::{constant_time, digest};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleet_protocol::config::BasicAuth;

/// What a remote peer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The metrics.
    Granted,
    /// 404: the path does not exist, because nobody asked for it.
    Absent,
    /// 401.
    Refused,
}

/// Decides from the configuration and the request's headers.
pub(super) fn decide(rule: &BasicAuth, headers: &HeaderMap) -> Access {
    if rule.disable {
        return Access::Granted;
    }
    if rule.username.is_empty() || rule.password.is_empty() {
        return Access::Absent;
    }
    let wanted = format!("{}:{}", rule.username, rule.password.reveal());
    match credentials(headers) {
        Some(given) if is_equal(&given, wanted.as_bytes()) => Access::Granted,
        _ => Access::Refused,
    }
}

fn credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    STANDARD.decode(encoded.trim()).ok()
}

/// Compares digests, so that not even the length can be measured.
fn is_equal(given: &[u8], wanted: &[u8]) -> bool {
    let hash = |bytes| digest::digest(&digest::SHA256, bytes);
    constant_time::verify_slices_are_equal(hash(given).as_ref(), hash(wanted).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use fleet_protocol::secret::Secret;

    use super::*;

    fn rule(username: &str, password: &str, disable: bool) -> BasicAuth {
        BasicAuth {
            username: username.into(),
            password: Secret::new(password),
            disable,
        }
    }

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn absent_unless_configured() {
        let none = HeaderMap::new();
        assert_eq!(decide(&rule("", "", false), &none), Access::Absent);
        assert_eq!(decide(&rule("p", "", false), &none), Access::Absent);
        assert_eq!(decide(&rule("", "x", false), &none), Access::Absent);
        assert_eq!(decide(&rule("", "", true), &none), Access::Granted);
    }

    #[test]
    fn only_the_right_credentials_open() {
        let rule = rule("prom", "hunter2", false);
        let basic = |text: &str| headers(&format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(decide(&rule, &basic("prom:hunter2")), Access::Granted);
        for wrong in ["prom:hunter", "prom:hunter22", "p:hunter2", "prom", ""] {
            assert_eq!(decide(&rule, &basic(wrong)), Access::Refused, "{wrong}");
        }
        for header in ["", "Basic", "Basic %%%", "Bearer cHJvbTpodW50ZXIy"] {
            assert_eq!(decide(&rule, &headers(header)), Access::Refused, "{header}");
        }
        assert_eq!(decide(&rule, &HeaderMap::new()), Access::Refused);
    }
}
