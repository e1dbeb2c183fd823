//! Every line of the table of routes against everybody who may come.

use std::collections::BTreeSet;

use super::*;
use crate::model::user::Role;
use crate::operator::roles::{Denial, Least};

/// The path with something in place of its parameters.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part.strip_prefix('{') {
        Some(_) => "1",
        None => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

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
            let path = format!("{prefix}{}", filled(route.path));
            let (status, body) = bench.remote(route.method.clone(), &path).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{} {path}", route.method);
            assert!(body["error"].is_string(), "{path}: {body}");
        }
    }
}
