//! Every line of the table of routes against everybody who may come.

use std::collections::BTreeSet;

use super::*;
use fleet_protocol::ids::UnixSeconds;

use crate::operator::guard::digest_of;
use crate::operator::roles::{Denial, Least};

/// The path with a number in place of its parameters.
fn filled(path: &str, number: u32) -> String {
    let parts = path.split('/').map(|part| match part.strip_prefix('{') {
        Some(_) => number.to_string(),
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Of nothing that there is.
const NOTHING: u32 = 999_999;

#[test]
fn roles_contain_each_other() {
    use Role::{Admin, Maintainer, Observer};
    let roles = [None, Some(Observer), Some(Maintainer), Some(Admin)];
    for (least, first) in [
        (Least::Nobody, 0),
        (Least::Anyone, 1),
        (Least::Observer, 1),
        (Least::Maintainer, 2),
        (Least::Admin, 3),
    ] {
        for (at, role) in roles.into_iter().enumerate() {
            assert_eq!(least.admit(role).is_ok(), at >= first, "{least:?} {role:?}");
        }
    }
    assert_eq!(Least::Admin.admit(None), Err(Denial::SignedOut));
    assert_eq!(
        Least::Admin.admit(Some(Maintainer)),
        Err(Denial::TooLow(Admin))
    );
}

#[test]
fn a_route_stands_in_the_table_once() {
    let mut seen = BTreeSet::new();
    for route in routes::api() {
        assert!(
            seen.insert((route.method.to_string(), route.path)),
            "{} {} stands there twice",
            route.method,
            route.path
        );
    }
}

#[tokio::test]
async fn nobody_gets_past_a_route_that_wants_somebody() {
    let bench = Bench::new().await;
    for route in routes::api() {
        if route.least == Least::Nobody {
            continue;
        }
        for prefix in [
            "/api/latest/fleet",
            "/api/v1/fleet",
            "/api/2022-04/fleet",
            "/api/v1/kolide",
        ] {
            let path = format!("{prefix}{}", filled(route.path, NOTHING));
            let (status, body) = bench.remote(route.method.clone(), &path).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{} {path}", route.method);
            assert!(body["error"].is_string(), "{path}: {body}");
        }
    }
}

#[tokio::test]
async fn each_route_takes_each_role_as_the_table_says() {
    let bench = Bench::new().await;
    let mut allowed = 0;
    for role in Role::ALL {
        let user = bench.account(role).await;
        for route in routes::api() {
            // Some routes end the session that they are asked with.
            let token = bench.session(&user).await;
            let number = match route.least {
                // Where the table lets anybody in, an account is its owner's.
                Least::Anyone => user.id.0,
                _ => NOTHING,
            };
            let path = format!("{P}{}", filled(route.path, number));
            let method = route.method.clone();
            let (status, body) = bench.ask(Some(&token), method, &path, Value::Null).await;
            let what = format!("{} {path} as {role:?}: {status} {body}", route.method);
            match route.least.admit(Some(role)) {
                Ok(()) => {
                    allowed += 1;
                    let is_denied =
                        status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN;
                    assert!(!is_denied, "{what}");
                    assert!(!status.is_server_error(), "{what}");
                }
                Err(_) => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
                    assert!(body["error"].is_string(), "{what}");
                }
            }
        }
    }
    assert!(allowed > routes::api().len(), "hardly anything was let in");
}

#[tokio::test]
async fn no_route_takes_a_session_that_is_over_or_never_was() {
    let bench = Bench::new().await;
    let admin = bench.account(Role::Admin).await;
    let store = &bench.office.deps.store;
    let long_ago = UnixSeconds(1_000_000);
    store
        .add_session(admin.id, &digest_of("an old token"), long_ago)
        .await
        .unwrap();
    let ended = bench.session(&admin).await;
    let session = store.sessions_of(admin.id).await.unwrap();
    store.end_session(session[1].id).await.unwrap();
    let long = "x".repeat(5000);
    for token in ["an old token", &ended, "garbage", "", "a b", &long] {
        for route in routes::api() {
            if route.least == Least::Nobody {
                continue;
            }
            let path = format!("{P}{}", filled(route.path, NOTHING));
            let method = route.method.clone();
            let (status, body) = bench.ask(Some(token), method, &path, Value::Null).await;
            let what = format!("{} {path}", route.method);
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {body}");
            assert!(body["error"].is_string(), "{what}: {body}");
        }
    }
}
