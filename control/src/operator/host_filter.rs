//! Which hosts a request means: parameters and filters in Fleet's words. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use fleet_protocol::ids::UnixSeconds;
use serde::Deserialize;
use serde_json::Value;

use super::fault::Fault;
use crate::model::host::{HostFilter, HostOrder, HostStatus, SortValue};
use crate::model::label::LabelId;

/// Hosts in one answer.
pub(super) const PER_PAGE_MAX: u32 = 10_000;
/// Hosts in one answer when the request does not say.
const PER_PAGE: u32 = 100;

/// Parameters of everything that means a set of hosts. Those of Fleet that mean nothing here are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    pub(super) page: Option<String>,
    pub(super) per_page: Option<String>,
    pub(super) order_key: Option<String>,
    pub(super) order_direction: Option<String>,
    /// A value of what the list is sorted by.
    pub(super) after: Option<String>,
    pub(super) status: Option<String>,
    pub(super) platform: Option<String>,
    pub(super) label_id: Option<String>,
    pub(super) query: Option<String>,
    pub(super) clones: Option<String>,
}

impl Parameters {
    /// What they ask for at `now`.
    pub(super) fn filter(&self, now: UnixSeconds) -> Result<HostFilter, Fault> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let per_page = match number("per_page", self.per_page.as_deref())? {
            None | Some(0) => PER_PAGE,
            Some(rows) if rows > PER_PAGE_MAX => {
                let reason = format!("must not be above {PER_PAGE_MAX}");
                return Err(Fault::parameter("per_page", reason));
            }
            Some(rows) => rows,
        };
        let order = order(self.order_key.as_deref().unwrap_or_default())?;
        Ok(HostFilter {
            page: number("page", self.page.as_deref())?.unwrap_or_default(),
            per_page,
            order,
            is_descending: is_descending(self.order_direction.as_deref())?,
            beyond: given(&self.after)
                .map(|value| sort_value(order, value))
                .transpose()?,
            text: given(&self.query),
            platform: given(&self.platform),
            label: number("label_id", self.label_id.as_deref())?.map(LabelId),
            is_clone: match self.clones.as_deref() {
                None | Some("" | "false" | "0") => false,
                Some("true" | "1") => true,
                Some(_) => return Err(Fault::parameter("clones", "must be true or false")),
            },
            status: status(self.status.as_deref().unwrap_or_default())?,
            now,
            after: None,
        })
    }

    /// From a JSON object such as `{"status": "mia", "label_id": 7}`.
    pub(super) fn of_filters(filters: &Value) -> Result<Self, Fault> {
        let mut parameters = Self::default();
        for (name, value) in filters.as_object().into_iter().flatten() {
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let place = match name.as_str() {
                "query" => &mut parameters.query,
                "status" => &mut parameters.status,
                "platform" => &mut parameters.platform,
                "label_id" => &mut parameters.label_id,
                "clones" => &mut parameters.clones,
                _ => return Err(Fault::parameter(name, "is not a filter of this server")),
            };
            *place = Some(text);
        }
        Ok(parameters)
    }
}

/// A whole number in a parameter.
pub(super) fn number(name: &str, text: Option<&str>) -> Result<Option<u32>, Fault> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Fault::parameter(name, "must be a whole number")),
    }
}

/// Which way a list is sorted.
pub(super) fn is_descending(word: Option<&str>) -> Result<bool, Fault> {
    match word {
        None | Some("" | "asc") => Ok(false),
        Some("desc") => Ok(true),
        Some(_) => Err(Fault::parameter("order_direction", "must be asc or desc")),
    }
}

fn order(key: &str) -> Result<HostOrder, Fault> {
    Ok(match key {
        "" | "id" => HostOrder::Id,
        "hostname" | "display_name" | "display_text" => HostOrder::Hostname,
        "seen_time" => HostOrder::SeenAt,
        "created_at" | "last_enrolled_at" => HostOrder::EnrolledAt,
        "os_version" => HostOrder::OsVersion,
        "osquery_version" => HostOrder::OsqueryVersion,
        _ => {
            return Err(Fault::parameter(
                "order_key",
                "must be id, hostname, seen_time, last_enrolled_at, os_version or osquery_version",
            ));
        }
    })
}

fn sort_value(order: HostOrder, text: String) -> Result<SortValue, Fault> {
    match order {
        HostOrder::Id => {
            let id = number("after", Some(&text))?;
            Ok(SortValue::Number(id.unwrap_or_default()))
        }
        HostOrder::SeenAt | HostOrder::EnrolledAt => {
            let time = humantime::parse_rfc3339_weak(&text).unwrap_or(SystemTime::UNIX_EPOCH);
            let seconds = time
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| u32::try_from(since.as_secs()).ok())
                .filter(|seconds| *seconds > 0)
                .ok_or_else(|| {
                    Fault::parameter("after", "must be a time such as those of the list")
                })?;
            Ok(SortValue::Number(seconds))
        }
        HostOrder::Hostname | HostOrder::OsVersion | HostOrder::OsqueryVersion => {
            Ok(SortValue::Text(text))
        }
    }
}

fn status(word: &str) -> Result<Option<HostStatus>, Fault> {
    Ok(Some(match word {
        "" | "all" => return Ok(None),
        "online" => HostStatus::Online,
        "offline" => HostStatus::Offline,
        "mia" | "missing" => HostStatus::Mia,
        "new" => HostStatus::New,
        _ => {
            return Err(Fault::parameter(
                "status",
                "must be online, offline, mia or new",
            ));
        }
    }))
}
