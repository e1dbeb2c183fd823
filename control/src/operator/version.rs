//! `GET /version`, in Fleet's shape. What the build did not know is empty.

use axum::Json;
use serde::Serialize;

/// Which build this is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Version {
    version: &'static str,
    branch: &'static str,
    revision: &'static str,
    /// Fleet's clients read it; there is no Go here.
    go_version: &'static str,
    build_date: &'static str,
    build_user: &'static str,
}

/// This build. The builder sets `FLEET_BUILD_…` in its environment.
const VERSION: Version = Version {
    version: env!("CARGO_PKG_VERSION"),
    branch: known(option_env!("FLEET_BUILD_BRANCH")),
    revision: known(option_env!("FLEET_BUILD_REVISION")),
    go_version: "",
    build_date: known(option_env!("FLEET_BUILD_DATE")),
    build_user: known(option_env!("FLEET_BUILD_USER")),
};

const fn known(value: Option<&'static str>) -> &'static str {
    match value {
        Some(text) => text,
        None => "",
    }
}

/// The handler.
pub(super) async fn show() -> Json<Version> {
    Json(VERSION)
}
