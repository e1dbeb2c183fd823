//! `ctl setup`, `login` and `logout`: who we are to a server.

use std::io::{IsTerminal as _, Write as _};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::{Answer, Client};
use super::{API, Failure, Output, World, context_file};

/// Where the first user is made.
const SETUP: &str = "/api/v1/setup";
/// Said when a password can be seen by others.
const EXPOSED: &str = "a password on the command line can be seen by other users of this machine; use the prompt, or PASSWORD";

/// Who signs in.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ctl login --email admin@example.com\n  \
                        PASSWORD=… ctl login --context server-a --email admin@example.com")]
pub(super) struct Login {
    /// E-mail of the user; asked for if it is not told here and not in the context.
    #[arg(long, env = "EMAIL")]
    email: Option<String>,
    #[command(flatten)]
    password: Password,
}

/// The first user of a new server.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ctl setup --email admin@example.com --name Admin --org-name Example"
)]
pub(super) struct Setup {
    /// E-mail of the first user, who is an administrator.
    #[arg(long, env = "EMAIL")]
    email: Option<String>,
    /// Name of that user.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    password: Password,
    /// Name of the organisation.
    #[arg(long, default_value = "")]
    org_name: String,
}

/// A password and where it came from.
#[derive(clap::Args)]
pub(super) struct Password {
    /// The password; a command line can be seen by others: prefer the prompt, or PASSWORD.
    #[arg(long, value_name = "PASSWORD")]
    password: Option<String>,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Password {
    /// From the flag, the environment or the terminal; `is_new` asks twice.
    pub(super) fn read(&self, is_new: bool) -> Result<String, Failure> {
        if let Some(password) = &self.password {
            return Ok(password.clone());
        }
        if let Some(password) = std::env::var_os("PASSWORD").filter(|password| !password.is_empty())
        {
            return password
                .into_string()
                .map_err(|_| Failure::Usage("PASSWORD is no UTF-8".into()));
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "no password: there is no terminal to ask on, and PASSWORD is not set".into(),
            ));
        }
        let ask = |prompt: &str| {
            rpassword::prompt_password(prompt)
                .map_err(|error| Failure::Usage(format!("cannot read the password: {error}")))
        };
        let password = ask("Password: ")?;
        if is_new && ask("Password again: ")? != password {
            return Err(Failure::Usage("the two passwords are not the same".into()));
        }
        Ok(password)
    }

    /// Whether there is one without asking.
    pub(super) fn is_told(&self) -> bool {
        self.password.is_some()
            || std::env::var_os("PASSWORD").is_some_and(|password| !password.is_empty())
    }

    pub(super) fn remarks(&self) -> Vec<String> {
        let is_exposed = self.password.is_some();
        is_exposed.then(|| EXPOSED.to_owned()).into_iter().collect()
    }
}

/// A line from the terminal, if nothing told it.
pub(super) fn told(given: Option<String>, known: &str, what: &str) -> Result<String, Failure> {
    let given = given.filter(|text| !text.is_empty());
    if let Some(text) = given.or_else(|| (!known.is_empty()).then(|| known.to_owned())) {
        return Ok(text);
    }
    if !std::io::stdin().is_terminal() {
        let flag = what.to_lowercase().replace("-", "");
        return Err(Failure::Usage(format!(
            "--{flag} is missing, and there is no terminal to ask on"
        )));
    }
    let mut line = String::new();
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{what}: ").and_then(|()| stderr.flush());
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| Failure::Usage(format!("cannot read it: {error}")))?;
    match line.trim() {
        "" => Err(Failure::Usage("nothing was typed".into())),
        line => Ok(line.to_owned()),
    }
}

impl Login {
    pub(super) async fn run(self, client: &Client, world: &World<'_>) -> Result<Output, Failure> {
        let known = world.context()?.email;
        let email = told(self.email, &known, "E-mail")?;
        let password = self.password.read(false)?;
        let body = json!({"email": email, "password": password});
        let path = format!("{API}/login");
        let answer = client.answer(Method::POST, &path, Some(&body)).await?;
        let token = match answer.status {
            StatusCode::NOT_FOUND => {
                let setup = world.command("setup");
                return Err(Failure::Refused(format!(
                    "the server has no users yet: run `{setup}`"
                )));
            }
            StatusCode::ACCEPTED => {
                return Err(Failure::Refused(
                    "the server wants a second proof by mail, which this program cannot give; use an API-only user".into(),
                ));
            }
            StatusCode::UNAUTHORIZED => {
                return Err(Failure::Refused("e-mail or password is wrong".into()));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(Failure::Refused("too many attempts; wait a minute".into()));
            }
            _ => token(client, &answer)?,
        };
        keep(world, &email, &token)?;
        let text = format!(
            "[+] signed in as {email}; the session is in {}\n",
            world.contexts.display()
        );
        Ok(Output {
            remarks: self.password.remarks(),
            ..Output::of(text)
        })
    }
}

impl Setup {
    pub(super) async fn run(self, client: &Client, world: &World<'_>) -> Result<Output, Failure> {
        let email = told(self.email, "", "E-mail")?;
        let name = self.name.filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| email.split('@').next().unwrap_or_default().to_owned());
        let password = self.password.read(true)?;
        let server_url = client.network().map(|network| network.endpoint().url());
        let body = json!({
            "admin": {"admin": true, "email": email, "name": name, "password": password},
            "org_info": {"org_name": self.org_name},
            "server_url": server_url.unwrap_or_default(),
        });
        let answer = client.answer(Method::POST, SETUP, Some(&body)).await?;
        let is_done = [StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED].contains(&answer.status);
        let login = world.command("login");
        if is_done {
            return Err(Failure::Refused(format!(
                "the server is set up already: run `{login}`, or have an administrator run `user create`"
            )));
        }
        let token = token(client, &answer)?;
        let mut text = format!("[+] {email} is the first administrator\n");
        if client.network().is_some() {
            keep(world, &email, &token)?;
            text += &format!(
                "[+] signed in; the session is in {}\n",
                world.contexts.display()
            );
        }
        Ok(Output {
            remarks: self.password.remarks(),
            ..Output::of(text)
        })
    }
}

/// Ends the session at the server, and forgets its token here.
pub(super) async fn logout(client: &Client, world: &World<'_>) -> Result<Output, Failure> {
    if world.context()?.token.is_empty() {
        return Ok(Output::of("[+] not signed in\n".into()));
    }
    let path = format!("{API}/logout");
    let answer = client.answer(Method::POST, &path, Some(&json!({}))).await?;
    // A session that is over already is as good.
    if answer.status != StatusCode::UNAUTHORIZED {
        client.judge(&answer)?;
    }
    let mut contexts = context_file::load(&world.contexts)?;
    contexts.set(world.context_name(), "token", "".into());
    context_file::save(&world.contexts, &contexts)?;
    Ok(Output::of("[+] signed out\n".into()))
}

fn token(client: &Client, answer: &Answer) -> Result<String, Failure> {
    client.judge(answer)?;
    let value = answer.value();
    let token = value.get("token").and_then(Value::as_str);
    let token = token.filter(|token| !token.is_empty());
    let missing = || {
        Failure::Unavailable("the server's answer has no token; is this the right address?".into())
    };
    Ok(token.ok_or_else(missing)?.to_owned())
}

fn keep(world: &World<'_>, email: &str, token: &str) -> Result<(), Failure> {
    let mut contexts = context_file::load(&world.contexts)?;
    contexts.set(world.context_name(), "email", email.into());
    contexts.set(world.context_name(), "token", token.into());
    context_file::save(&world.contexts, &contexts)
}
