//! Agent options, the rest of the app config, enroll secrets.

use std::collections::BTreeMap;
use std::result::Result as StdResult;

use fleet_protocol::ids::UnixSeconds;
use fleet_protocol::secret::Secret;
use serde_json::{Map, Value};

use super::changes::{NewChange, write_changes};
use super::dialect::{Rule, Upsert};
use super::error::{Error, Fault, Result};
use super::pools::Purpose;
use super::session::{Session, transaction};
use super::specs;
use super::value::{Arg, NAME_CHARS_MAX};
use super::{Store, now};
use crate::model::change::ChangeKind;
use crate::model::enrollment::EnrollSecret;

const AGENT_OPTIONS: &str = "agent_options";
const APP_CONFIG: &str = "app_config";

const SETTINGS: Upsert<'_> = Upsert {
    table: "app_config",
    key: &["name"],
    columns: &[
        ("name", Rule::Keep),
        ("value", Rule::Replace),
        ("updated_at", Rule::Replace),
    ],
};

const SECRETS: Upsert<'_> = Upsert {
    table: "enroll_secrets",
    key: &["secret"],
    columns: &[("secret", Rule::Keep), ("created_at", Rule::Keep)],
};

impl Store {
    /// `{}` when never set.
    pub(crate) async fn agent_options(&self) -> Result<Value> {
        let options = self.setting(AGENT_OPTIONS).await?;
        Ok(options.unwrap_or_else(|| Value::Object(Map::new())))
    }

    pub(crate) async fn set_agent_options(&self, options: &Value) -> Result<()> {
        if !options.is_object() {
            return Err(Error::Invalid("agent options: not an object".into()));
        }
        self.set_setting(AGENT_OPTIONS, options.to_string()).await
    }

    /// Everything else of Fleet's `config`; empty when never set.
    pub(crate) async fn app_config(&self) -> Result<Map<String, Value>> {
        match self.setting(APP_CONFIG).await? {
            Some(Value::Object(members)) => Ok(members),
            _ => Ok(Map::new()),
        }
    }

    pub(crate) async fn set_app_config(&self, config: &Map<String, Value>) -> Result<()> {
        let text = serde_json::to_string(config).map_err(|error| Error::Invalid(error.to_string()));
        self.set_setting(APP_CONFIG, text?).await
    }

    async fn setting(&self, name: &str) -> Result<Option<Value>> {
        let mut session = self.session(Purpose::Read).await?;
        let sql = "SELECT value FROM app_config WHERE name = ?";
        let Some(row) = session.row("setting_read", sql, &[name.into()]).await? else {
            return Ok(None);
        };
        serde_json::from_str(&row.text(0)?)
            .map(Some)
            .map_err(|_| Error::Failed(format!("{name} in the database is not JSON")))
    }

    async fn set_setting(&self, name: &str, text: String) -> Result<()> {
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            let row = vec![name.into(), text.as_str().into(), now().into()];
            session.upsert("setting_write", &SETTINGS, &[row]).await?;
            write_changes(&mut session, &[NewChange::of(ChangeKind::Specs)]).await
        })
    }

    /// Oldest first.
    pub(crate) async fn enroll_secrets(&self) -> Result<Vec<EnrollSecret>> {
        let mut session = self.session(Purpose::Read).await?;
        let secrets = read_secrets(&mut session).await?;
        let mut secrets: Vec<EnrollSecret> = secrets
            .into_iter()
            .map(|(secret, created_at)| EnrollSecret { secret, created_at })
            .collect();
        secrets.sort_by_key(|secret| secret.created_at);
        Ok(secrets)
    }

    /// Replaces all; the times of those that stay are kept. None at all means that nothing can enroll.
    pub(crate) async fn set_enroll_secrets(&self, secrets: &[Secret]) -> Result<()> {
        for secret in secrets {
            check_secret(secret)?;
        }
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            let present = read_secrets(&mut session).await?;
            let gone: Vec<Arg<'_>> = present
                .keys()
                .filter(|secret| !secrets.contains(secret))
                .map(|secret| secret.reveal().into())
                .collect();
            let sql = "DELETE FROM enroll_secrets WHERE secret IN ({})";
            session.execute_in("secrets_write", sql, &gone).await?;
            let mut sorted: Vec<&str> = secrets.iter().map(Secret::reveal).collect();
            sorted.sort_unstable();
            write_secrets(&mut session, &sorted).await
        })
    }

    /// Puts this one in when there is none at all; tells whether it did.
    pub(crate) async fn add_first_enroll_secret(&self, secret: &Secret) -> Result<bool> {
        check_secret(secret)?;
        transaction!(self, session, async {
            specs::lock(&mut session).await?;
            if !read_secrets(&mut session).await?.is_empty() {
                return Ok(false);
            }
            write_secrets(&mut session, &[secret.reveal()]).await?;
            Ok(true)
        })
    }
}

pub(super) fn check_secret(secret: &Secret) -> StdResult<(), Error> {
    let text = secret.reveal();
    let problem = if text.trim().is_empty() {
        "is empty"
    } else if text.trim() != text {
        // Agents trim what they read from a file.
        "has spaces around it"
    } else if text.chars().count() > NAME_CHARS_MAX {
        "has more than 255 characters"
    } else {
        return Ok(());
    };
    Err(Error::Invalid(format!("an enroll secret {problem}")))
}

pub(super) async fn read_secrets(
    session: &mut Session<'_>,
) -> StdResult<BTreeMap<Secret, UnixSeconds>, Fault> {
    let sql = "SELECT secret, created_at FROM enroll_secrets";
    let mut secrets = BTreeMap::new();
    for row in session.rows("secrets_list", sql, &[]).await? {
        secrets.insert(Secret::new(row.text(0)?), row.time(1)?);
    }
    Ok(secrets)
}

pub(super) async fn write_secrets(
    session: &mut Session<'_>,
    secrets: &[&str],
) -> StdResult<(), Fault> {
    let at = now();
    let rows: Vec<Vec<Arg<'_>>> = secrets
        .iter()
        .map(|secret| vec![(*secret).into(), at.into()])
        .collect();
    session.upsert("secrets_write", &SECRETS, &rows).await?;
    write_changes(session, &[NewChange::of(ChangeKind::EnrollSecrets)]).await
}
