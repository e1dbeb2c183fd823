//! `ctl get`

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::client::{Client, encoded};
use super::table::{Column, age, bytes, render, text};
use super::{API, Failure, Output, address, carve, document, host, user, yaml};

/// Members of specs that say what the server knows, not what an operator wants.
const NOT_SPEC: [&str; 2] = ["id", "host_count"];
/// Members of the configuration that documents hold.
const CONFIG_MEMBERS: [&str; 3] = ["org_info", "server_settings", "agent_options"];
/// Hosts in one request.
const PAGE_HOSTS: u32 = 1000;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    #[command(subcommand)]
    what: What,
    /// Print documents, one JSON object a line; `apply` takes specs back.
    #[arg(long, global = true)]
    json: bool,
    /// Print YAML documents; `apply` takes specs back.
    #[arg(long, global = true, conflicts_with = "json")]
    yaml: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Hosts.
    #[command(visible_alias = "h")]
    Hosts(Hosts),
    /// One host, by identifier, host name, hardware UUID or number.
    Host {
        /// Which.
        name: String,
    },
    /// Queries.
    #[command(visible_alias = "q")]
    Queries,
    /// One query, as YAML.
    Query {
        /// Its name.
        name: String,
    },
    /// Packs.
    #[command(visible_alias = "p")]
    Packs,
    /// One pack, as YAML.
    Pack {
        /// Its name.
        name: String,
    },
    /// Labels.
    #[command(visible_alias = "l")]
    Labels,
    /// One label, as YAML.
    Label {
        /// Its name.
        name: String,
    },
    /// The configuration, as YAML.
    Config,
    /// The enroll secrets, in full.
    #[command(
        name = "enroll_secret",
        visible_aliases = ["enroll-secret", "enroll_secrets", "enroll-secrets"]
    )]
    EnrollSecret,
    /// Carves: files that hosts have uploaded.
    Carves,
    /// One carve, or with --outfile or --stdout its archive.
    Carve(carve::Carve),
    /// Users.
    Users,
    /// Addresses that agents may connect to, with their load.
    Addresses,
}

#[derive(Debug, clap::Args)]
struct Hosts {
    /// Only hosts that are: online, offline, mia (silent for 30 days) or new (enrolled within 24 hours).
    #[arg(long)]
    status: Option<String>,
    /// Only hosts of this platform, such as ubuntu, darwin or windows.
    #[arg(long)]
    platform: Option<String>,
    /// Only hosts whose name, identifier, UUID, serial number or address holds this text.
    #[arg(long, visible_alias = "search")]
    query: Option<String>,
    /// Only hosts that share their identifier with others, such as cloned machines.
    #[arg(long)]
    clones: bool,
    /// Sort by: id, hostname, seen_time, last_enrolled_at, os_version or osquery_version.
    #[arg(long, default_value = "hostname")]
    order: String,
    /// Sort downwards.
    #[arg(long)]
    desc: bool,
    /// Hosts to show; 0 for all.
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    People,
    Json,
    Yaml,
}

impl Get {
    pub(super) async fn run(self, client: &Client, now: SystemTime) -> Result<Output, Failure> {
        let form = match (self.json, self.yaml) {
            (true, _) => Form::Json,
            (_, true) => Form::Yaml,
            _ => Form::People,
        };
        match self.what {
            What::Hosts(filter) => hosts(client, &filter, form, now).await,
            What::Host { name } => {
                let body = client.get(&path("hosts/identifier", &name)).await?;
                let found = body.get("host").cloned().unwrap_or_default();
                Ok(Output::of(match form {
                    Form::People => host::render(&found, now),
                    _ => print(form, vec![document::wrap("host", found)]),
                }))
            }
            What::Queries => specs(client, "query", "queries", form, queries_table).await,
            What::Packs => specs(client, "pack", "packs", form, packs_table).await,
            What::Labels => specs(client, "label", "labels", form, labels_table).await,
            What::Query { name } => spec(client, "query", &path("spec/queries", &name), form).await,
            What::Pack { name } => spec(client, "pack", &path("spec/packs", &name), form).await,
            What::Label { name } => spec(client, "label", &path("spec/labels", &name), form).await,
            What::Config => {
                let body = client.get(&format!("{API}/config")).await?;
                let document = document::tidy("config", config_spec(body));
                Ok(Output::of(print(form, vec![document])))
            }
            What::EnrollSecret => enroll_secret(client, form, now).await,
            What::Carves => carves(client, form, now).await,
            What::Carve(carve) if carve.is_download() => carve.download(client).await,
            What::Carve(carve) => {
                let found = carve.show(client).await?;
                Ok(Output::of(print(
                    form,
                    vec![document::wrap("carve", found)],
                )))
            }
            What::Users => {
                let users = items(&client.get(&format!("{API}/users")).await?, "users");
                Ok(Output::of(match form {
                    Form::People => user::table(&users),
                    _ => {
                        let documents = users.into_iter().map(|user| document::wrap("user", user));
                        print(form, documents.collect())
                    }
                }))
            }
            What::Addresses => addresses(client, form).await,
        }
    }
}

fn path(resource: &str, name: &str) -> String {
    format!("{API}/{resource}/{}", encoded(name))
}

fn print(form: Form, documents: Vec<Value>) -> String {
    let one = |document: &Value| match form {
        Form::Json => format!("{document}\n"),
        Form::Yaml | Form::People => format!("---\n{}", yaml::print(document)),
    };
    documents.iter().map(one).collect()
}

fn items(body: &Value, name: &str) -> Vec<Value> {
    let items = body.get(name).and_then(Value::as_array);
    items.cloned().unwrap_or_default()
}

/// The members that an operator may write.
fn bare(spec: &Value) -> Value {
    let mut members = spec.as_object().cloned().unwrap_or_default();
    for name in NOT_SPEC {
        members.shift_remove(name);
    }
    Value::Object(members)
}

fn config_spec(body: Value) -> Value {
    let Value::Object(mut members) = body else {
        return body;
    };
    let known = CONFIG_MEMBERS
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), members.shift_remove(name)?)));
    Value::Object(known.collect::<Map<_, _>>())
}

async fn spec(client: &Client, kind: &str, path: &str, form: Form) -> Result<Output, Failure> {
    let body = client.get(path).await?;
    let spec = bare(body.get("spec").unwrap_or(&Value::Null));
    Ok(Output::of(print(form, vec![document::tidy(kind, spec)])))
}

async fn specs(
    client: &Client,
    kind: &str,
    plural: &str,
    form: Form,
    table: fn(&[Value]) -> String,
) -> Result<Output, Failure> {
    let body = client.get(&format!("{API}/spec/{plural}")).await?;
    let specs = items(&body, "specs");
    Ok(Output::of(match form {
        Form::People if specs.is_empty() => format!("no {plural}\n"),
        Form::People => table(&specs),
        _ => {
            let documents = specs.iter().map(|spec| document::tidy(kind, bare(spec)));
            print(form, documents.collect())
        }
    }))
}

fn queries_table(specs: &[Value]) -> String {
    let columns = [
        Column::Elastic("NAME"),
        Column::Number("INTERVAL"),
        Column::Text("PLATFORM"),
        Column::Text("LOGGING"),
        Column::Elastic("QUERY"),
    ];
    let row = |spec: &Value| {
        let interval = match spec.get("interval").and_then(Value::as_u64) {
            None | Some(0) => "-".into(),
            Some(seconds) => format!("{seconds} s"),
        };
        let is_scheduled = spec.get("automations_enabled").and_then(Value::as_bool) == Some(true);
        vec![
            text(spec, "name"),
            interval,
            or(text(spec, "platform"), "all"),
            if is_scheduled {
                text(spec, "logging")
            } else {
                "off".into()
            },
            text(spec, "query"),
        ]
    };
    render(&columns, specs.iter().map(row).collect())
}

fn packs_table(specs: &[Value]) -> String {
    let columns = [
        Column::Elastic("NAME"),
        Column::Text("PLATFORM"),
        Column::Text("STATE"),
        Column::Number("QUERIES"),
        Column::Elastic("LABELS"),
        Column::Elastic("DESCRIPTION"),
    ];
    let row = |spec: &Value| {
        let labels = spec.pointer("/targets/labels").and_then(Value::as_array);
        let labels: Vec<_> = labels
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let is_disabled = spec.get("disabled").and_then(Value::as_bool) == Some(true);
        vec![
            text(spec, "name"),
            or(text(spec, "platform"), "all"),
            if is_disabled { "disabled" } else { "enabled" }.to_owned(),
            items(spec, "queries").len().to_string(),
            or(labels.join(", "), "none"),
            text(spec, "description"),
        ]
    };
    render(&columns, specs.iter().map(row).collect())
}

fn labels_table(specs: &[Value]) -> String {
    let columns = [
        Column::Elastic("NAME"),
        Column::Number("HOSTS"),
        Column::Text("TYPE"),
        Column::Text("PLATFORM"),
        Column::Elastic("QUERY"),
    ];
    let row = |spec: &Value| {
        let label_type = match text(spec, "label_type").as_str() {
            "builtin" => "built in".to_owned(),
            _ => text(spec, "label_membership_type"),
        };
        vec![
            text(spec, "name"),
            text(spec, "host_count"),
            label_type,
            or(text(spec, "platform"), "all"),
            or(text(spec, "query"), "-"),
        ]
    };
    render(&columns, specs.iter().map(row).collect())
}

fn or(text: String, other: &str) -> String {
    if text.is_empty() {
        other.to_owned()
    } else {
        text
    }
}

async fn hosts(
    client: &Client,
    filter: &Hosts,
    form: Form,
    now: SystemTime,
) -> Result<Output, Failure> {
    let mut parameters = format!("order_key={}", encoded(&filter.order));
    if filter.desc {
        parameters += "&order_direction=desc";
    }
    if filter.clones {
        parameters += "&clones=true";
    }
    for (name, value) in [
        ("status", &filter.status),
        ("platform", &filter.platform),
        ("query", &filter.query),
    ] {
        if let Some(value) = value {
            parameters += &format!("&{name}={}", encoded(value));
        }
    }
    let wanted = if filter.limit == 0 {
        u32::MAX
    } else {
        filter.limit
    };
    let per_page = wanted.min(PAGE_HOSTS);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut hosts = Vec::new();
    for page in 0.. {
        let path = format!("{API}/hosts?{parameters}&page={page}&per_page={per_page}");
        let found = items(&client.get(&path).await?, "hosts");
        let is_last = found.len() < usize::try_from(per_page).unwrap_or(usize::MAX);
        hosts.extend(found);
        if is_last || hosts.len() >= wanted {
            break;
        }
    }
    hosts.truncate(wanted);
    if form != Form::People {
        let documents = hosts.into_iter().map(|found| document::wrap("host", found));
        return Ok(Output::of(print(form, documents.collect())));
    }
    let body = client
        .get(&format!("{API}/hosts/count?{parameters}"))
        .await?;
    let count = body
        .get("count")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    if hosts.is_empty() {
        return Ok(Output::of("no hosts\n".into()));
    }
    let mut output = Output::of(hosts_table(&hosts, now));
    let shown = u64::try_from(hosts.len()).unwrap_or(u64::MAX);
    if shown < count {
        let note = format!("{shown} of {count} hosts shown; --limit 0 shows all");
        output.remarks.push(note);
    }
    Ok(output)
}

fn hosts_table(hosts: &[Value], now: SystemTime) -> String {
    let columns = [
        Column::Number("ID"),
        Column::Elastic("HOSTNAME"),
        Column::Elastic("OS"),
        Column::Text("OSQUERY"),
        Column::Text("STATUS"),
        Column::Text("LAST SEEN"),
        Column::Text("ADDRESS"),
    ];
    let row = |host: &Value| {
        let address = or(text(host, "primary_ip"), &text(host, "public_ip"));
        let os = text(host, "os_version").replace("Microsoft ", "");
        vec![
            text(host, "id"),
            or(text(host, "hostname"), &text(host, "display_name")),
            or(os, &text(host, "platform")),
            text(host, "osquery_version"),
            text(host, "status"),
            age(host.get("seen_time"), now),
            address,
        ]
    };
    render(&columns, hosts.iter().map(row).collect())
}

async fn enroll_secret(client: &Client, form: Form, now: SystemTime) -> Result<Output, Failure> {
    let body = client.get(&format!("{API}/spec/enroll_secret")).await?;
    let spec = body.get("spec").cloned().unwrap_or_default();
    if form != Form::People {
        return Ok(Output::of(print(
            form,
            vec![document::wrap("enroll_secret", spec)],
        )));
    }
    // Never cut: half a secret is of no use.
    let columns = [Column::Text("SECRET"), Column::Text("CREATED")];
    let row = |secret: &Value| vec![text(secret, "secret"), age(secret.get("created_at"), now)];
    let rows = items(&spec, "secrets").iter().map(row).collect();
    Ok(Output::of(render(&columns, rows)))
}

async fn addresses(client: &Client, form: Form) -> Result<Output, Failure> {
    let body = client.get(&format!("{API}/gateway/addresses")).await?;
    Ok(Output::of(match form {
        Form::People => address::render_list(&body),
        _ => print(form, vec![document::wrap("addresses", body)]),
    }))
}

async fn carves(client: &Client, form: Form, now: SystemTime) -> Result<Output, Failure> {
    let body = client
        .get(&format!("{API}/carves?per_page={PAGE_HOSTS}"))
        .await?;
    let carves = items(&body, "carves");
    if form != Form::People {
        let documents = carves
            .into_iter()
            .map(|carve| document::wrap("carve", carve));
        return Ok(Output::of(print(form, documents.collect())));
    }
    if carves.is_empty() {
        return Ok(Output::of("no carves\n".into()));
    }
    let columns = [
        Column::Number("ID"),
        Column::Number("HOST"),
        Column::Text("STARTED"),
        Column::Number("SIZE"),
        Column::Elastic("STATE"),
        Column::Text("FILE"),
    ];
    let row = |carve: &Value| {
        let number = |name: &str| carve.get(name).and_then(Value::as_u64).unwrap_or_default();
        let is_complete = carve.get("is_complete").and_then(Value::as_bool) == Some(true);
        let (received, size) = (number("received_size"), number("carve_size"));
        let state = match text(carve, "error").as_str() {
            "" if is_complete => "complete".to_owned(),
            "" => format!("{} %", received.saturating_mul(100) / size.max(1)),
            error => format!("failed: {error}"),
        };
        vec![
            text(carve, "id"),
            text(carve, "host_id"),
            age(carve.get("created_at"), now),
            bytes(size),
            state,
            text(carve, "file"),
        ]
    };
    Ok(Output::of(render(
        &columns,
        carves.iter().map(row).collect(),
    )))
}
