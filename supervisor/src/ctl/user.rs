//! `ctl user` and `ctl get users`.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::{Value, json};

use super::client::{Client, encoded};
use super::login::{Password, told};
use super::table::{Column, render, text};
use super::{API, Failure, Output};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct User {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make a user; an API-only user's token is printed, and is shown only then.
    #[command(
        after_help = "Examples:\n  ctl user create --email ann@example.com --name Ann --role maintainer\n  \
                            ctl user create --email ci@example.com --name CI --api-only"
    )]
    Create(Create),
    /// Delete a user, with all sessions.
    Delete {
        /// E-mail of the user.
        #[arg(long)]
        email: String,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// E-mail, by which the user signs in.
    #[arg(long)]
    email: String,
    /// Name for people; the e-mail if it is not told.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    password: Password,
    /// What the user may do.
    #[arg(long, visible_alias = "global-role", default_value = "observer", value_parser = ["observer", "maintainer", "admin"])]
    role: String,
    /// A user for programs, with a token that does not end.
    #[arg(long)]
    api_only: bool,
}

impl User {
    pub(super) async fn run(self, client: &Client) -> Result<Output, Failure> {
        match self.what {
            What::Create(create) => create.run(client).await,
            What::Delete { email } => delete(client, &email).await,
        }
    }
}

impl Create {
    async fn run(self, client: &Client) -> Result<Output, Failure> {
        let email = told(Some(self.email), "", "E-mail")?;
        let password = if self.api_only && !self.password.is_told() {
            unguessable()?
        } else {
            self.password.read(true)?
        };
        let body = json!({
            "email": email,
            "name": self.name.unwrap_or_else(|| email.clone()),
            "password": password,
            "global_role": self.role,
            "api_only": self.api_only,
            "admin_forced_password_reset": false,
        });
        let answer = client.post(&format!("{API}/users/admin"), &body).await?;
        let mut made = Output::of(format!("[+] made user {email} as {}\n", self.role));
        let token = answer.get("token").and_then(Value::as_str);
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            made.text += &format!("Token: {token}\n");
            made.remarks.push("the token is not shown again".into());
        }
        made.remarks.extend(self.password.remarks());
        Ok(made)
    }
}

/// A password that nobody will type, in the server's rules: letters, a digit and a symbol.
fn unguessable() -> Result<String, Failure> {
    let mut bytes = [0; 24];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::Usage("no randomness for a password; tell one".into()))?;
    Ok(format!("{}a1!", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
}

async fn delete(client: &Client, email: &str) -> Result<Output, Failure> {
    let body = client
        .get(&format!("{API}/users?query={}", encoded(email)))
        .await?;
    let users = body.get("users").and_then(Value::as_array);
    let is_meant = |user: &&Value| text(user, "email").eq_ignore_ascii_case(email);
    let user = users.into_iter().flatten().find(is_meant);
    let id = user.and_then(|user| user.get("id")).and_then(Value::as_u64);
    let id = id.ok_or_else(|| Failure::Refused(format!("there is no user {email:?}")))?;
    client.delete(&format!("{API}/users/{id}")).await?;
    Ok(Output::of(format!("[-] deleted user {email}\n")))
}

/// All users.
pub(super) fn table(users: &[Value]) -> String {
    let columns = [
        Column::Number("ID"),
        Column::Text("EMAIL"),
        Column::Elastic("NAME"),
        Column::Text("ROLE"),
        Column::Text("API ONLY"),
    ];
    let row = |user: &Value| {
        let is_api_only = user.get("api_only").and_then(Value::as_bool) == Some(true);
        vec![
            text(user, "id"),
            text(user, "email"),
            text(user, "name"),
            text(user, "global_role"),
            if is_api_only { "yes" } else { "no" }.to_owned(),
        ]
    };
    render(&columns, users.iter().map(row).collect())
}
