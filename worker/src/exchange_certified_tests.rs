//! Tests of requests whose sender is known by a certificate.

use fleet_protocol::agent::IdentityKind;

use super::*;
use crate::client_certificate::{Certified, NamesNobody};

type Certificate = Result<Certified, NamesNobody>;

fn certified() -> Certificate {
    let host = test_host(9, "nine");
    Ok(Certified {
        key: host.key,
        identity: "web-9".into(),
        kind: IdentityKind::Uri,
    })
}

fn certified_head(route: Route, certificate: &Certificate) -> Head<'_> {
    Head {
        certificate: Some(certificate),
        ..head(route, None)
    }
}

const NO_KEYS: [&str; 3] = ["{}", r#"{"node_key":""}"#, r#"{"node_key":" "}"#];

#[test]
fn an_unknown_certificate_is_adopted_once_and_then_served_alone() {
    let certified = certified();
    for body in NO_KEYS {
        let state = state();
        let head = certified_head(Route::Config, &certified);
        let pending = later(send(&state, &head, body.as_bytes()));
        let (id, request) = taken(&state, BatchKind::Enroll);
        let Request::Adopt(adopt) = request else {
            panic!("{request:?}");
        };
        let Ok(expected) = &certified else {
            panic!("{certified:?}");
        };
        assert_eq!(
            (adopt.key, adopt.kind, adopt.identity.as_str()),
            (expected.key, IdentityKind::Uri, "web-9")
        );
        let host = test_host(9, "nine");
        state.complete(id, Answer::Host(Some(host)), Instant::now());
        assert_eq!(wait(pending).body, CONFIG);
        let response = now(send(&state, &head, body.as_bytes()));
        assert_eq!((response.body, response.outcome), (CONFIG, Outcome::Alone));
    }
}

#[test]
fn a_node_key_comes_before_a_certificate() {
    let (state, certified) = (state(), certified());
    let head = certified_head(Route::Config, &certified);
    let response = now(send(&state, &head, br#"{"node_key":"one"}"#));
    assert_eq!(response.body, CONFIG);
    let pending = later(send(&state, &head, br#"{"node_key":"other"}"#));
    let (id, request) = taken(&state, BatchKind::Lookup);
    assert!(matches!(request, Request::Lookup(_)));
    state.complete(id, Answer::Host(None), Instant::now());
    let body = wait(pending).body;
    assert!(body.ends_with(br#""node_invalid":true}"#), "{body:?}");
    // Without a certificate an empty key is none.
    let body = body_of(&state, Route::Config, "{}");
    assert!(body.ends_with(br#""node_invalid":true}"#), "{body:?}");
}

#[test]
fn a_certificate_that_names_nobody_is_an_error_and_no_reason_to_enroll() {
    let (state, nobody) = (state(), Err(NamesNobody::Nameless));
    let expected = Reject::CertificateNamesNobody.answer(None).body;
    for route in [Route::Config, Route::Read, Route::Write] {
        for body in NO_KEYS {
            let head = certified_head(route, &nobody);
            assert_eq!(now(send(&state, &head, body.as_bytes())).body, expected);
        }
    }
    let counts = state.stats.borrow().rejects;
    assert_eq!(counts[Reject::CertificateNamesNobody.index()], 9);
    assert_eq!(counts[Reject::NodeKeyMissing.index()], 0);
    // With a node key it is an agent like any other.
    let head = certified_head(Route::Config, &nobody);
    let response = now(send(&state, &head, br#"{"node_key":"one"}"#));
    assert_eq!(response.body, CONFIG);
}

#[test]
fn a_certificates_host_is_never_told_to_enroll() {
    let certified = certified();
    let refused = Answer::Refused(Reject::NodeKeyUnknown);
    for (route, body, kind) in [
        (Route::Read, "{}", BatchKind::Read),
        (
            Route::Log,
            r#"{"log_type":"result","data":[{"a":1}]}"#,
            BatchKind::Log,
        ),
    ] {
        for is_known in [true, false] {
            let state = state();
            let mut host = test_host(9, "nine");
            host.work_due_at = UnixSeconds(0);
            let head = certified_head(route, &certified);
            if is_known {
                state.table.borrow_mut().insert_host(host);
            }
            let pending = later(send(&state, &head, body.as_bytes()));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            let response = runtime.block_on(async {
                let complete = async {
                    if !is_known {
                        let (id, _) = taken(&state, BatchKind::Enroll);
                        state.complete(id, Answer::Host(Some(host)), Instant::now());
                        while state.waiting.borrow().queued(kind) == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    let (id, _) = taken(&state, kind);
                    state.complete(id, refused.clone(), Instant::now());
                };
                tokio::join!(pending, complete).0
            });
            let text = String::from_utf8(response.body.to_vec()).unwrap();
            assert!(
                text.contains("error") && !text.contains("node_invalid"),
                "{text}"
            );
        }
    }
    // Refused before it is adopted, too.
    let state = state();
    let head = certified_head(Route::Read, &certified);
    let pending = later(send(&state, &head, b"{}"));
    let (id, _) = taken(&state, BatchKind::Enroll);
    let answer = Answer::Refused(Reject::StoreUnavailable);
    state.complete(id, answer, Instant::now());
    let text = String::from_utf8(wait(pending).body.to_vec()).unwrap();
    assert!(text.contains("store unavailable"), "{text}");
}
