//! `ctl query`: ask hosts now, and print what they say as they say it.

use std::io::{ErrorKind, IsTerminal as _, Write};
use std::time::Duration;

use clap::ArgGroup;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::campaign::{Answer, Campaign, Event};
use super::client::{Client, encoded};
use super::rows::{Format, Printer};
use super::table::{one_line, text};
use super::viewer::Viewer;
use super::{API, Failure, Output};

/// How often the progress is drawn, and how long a table waits for its first rows.
const TICK: Duration = Duration::from_millis(250);
/// Between pings.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Without a word, not even the answer to a ping, the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// An ended campaign that says nothing for so long has nothing more to show.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Before the first attempt to connect again, and between later ones.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Attempts in a row that bring no message.
const RETRIES_MAX: u32 = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    ctl query --labels 'All Hosts' --query 'SELECT version FROM osquery_info' --exit\n  \
    ctl query --hosts web-1,web-2 --query-name processes --timeout 1m --format csv > processes.csv\n\n\
    Ends when all hosts have answered; with --exit when all who are online have, with --timeout at that time. \
    Ctrl-C ends the query for all hosts that have not answered.")]
#[command(group = ArgGroup::new("what").required(true).args(["query", "query_name"]))]
#[command(group = ArgGroup::new("whom").required(true).multiple(true).args(["hosts", "labels"]))]
pub(super) struct Query {
    /// Hosts to ask, by identifier, host name or UUID; several with commas.
    #[arg(long, value_delimiter = ',')]
    hosts: Vec<String>,
    /// Labels whose hosts are asked; several with commas.
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// The SQL.
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    /// A query that is stored under this name.
    #[arg(long, value_name = "NAME")]
    query_name: Option<String>,
    /// End when all hosts that are online have answered.
    #[arg(long)]
    exit: bool,
    /// End after this time, such as 30s or 5m.
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// No progress, no remarks; errors only.
    #[arg(long)]
    quiet: bool,
    /// The same as --format table.
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// How rows are printed.
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Timeout,
    Interrupted,
    /// Nobody reads what is printed.
    Unread,
}

impl Query {
    pub(super) async fn run(self, client: &Client) -> Result<Output, Failure> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let campaign = self.start(client).await?;
        let number = campaign.get("id").and_then(Value::as_u64);
        let number = number.ok_or_else(|| {
            Failure::Unavailable(
                "the server's answer has no campaign; is it of another version?".into(),
            )
        })?;
        let format = if self.pretty {
            Format::Table
        } else {
            self.format
        };
        let terminal = comfy_table::Table::new().width().map(usize::from);
        let mut watch = Watch {
            client,
            number,
            campaign: Campaign::of(&campaign),
            printer: Printer::new(std::io::stdout(), format, terminal),
            only_online: self.exit,
            is_quiet: self.quiet,
            has_progress: !self.quiet && std::io::stderr().is_terminal(),
            heard: Instant::now(),
            told: Instant::now(),
            problem: None,
            has_begun: false,
        };
        let end = watch.run(deadline).await;
        watch.finish(end, self.timeout)
    }

    async fn start(&self, client: &Client) -> Result<Value, Failure> {
        let mut sql = self.query.clone().unwrap_or_default();
        let mut id = None;
        if let Some(name) = &self.query_name {
            let path = format!("{API}/spec/queries/{}", encoded(name));
            let found = client.get(&path).await?;
            let spec = found.get("spec").cloned().unwrap_or_default();
            sql = text(&spec, "query");
            id = spec.get("id").and_then(Value::as_u64);
        }
        let selected = json!({"labels": named(&self.labels), "hosts": named(&self.hosts)});
        let body = match id {
            Some(id) => json!({"query": sql, "query_id": id, "selected": selected}),
            None => json!({"query": sql, "selected": selected}),
        };
        let path = format!("{API}/queries/run_by_identifiers");
        let mut started = client.post(&path, &body).await?;
        Ok(started
            .get_mut("campaign")
            .map(Value::take)
            .unwrap_or_default())
    }
}

fn named(names: &[String]) -> Vec<&str> {
    let names = names.iter().map(|name| name.trim());
    names.filter(|name| !name.is_empty()).collect()
}

/// A campaign that is looked at.
struct Watch<'a, W: Write> {
    client: &'a Client,
    number: u64,
    campaign: Campaign,
    printer: Printer<W>,
    only_online: bool,
    is_quiet: bool,
    has_progress: bool,
    heard: Instant,
    /// The last message, which an answer to a ping is not.
    told: Instant,
    /// What the server said, if it has said nothing on this connection but what is wrong.
    problem: Option<String>,
    has_begun: bool,
}

impl<W: Write> Watch<'_, W> {
    async fn run(&mut self, deadline: Option<Instant>) -> Result<End, Failure> {
        let until = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = until => Ok(End::Timeout),
            _ = tokio::signal::ctrl_c() => Ok(End::Interrupted),
            end = self.follow() => end,
        }
    }

    /// Looks on over as many connections as it takes. The server remembers what was missed between them.
    async fn follow(&mut self) -> Result<End, Failure> {
        let mut failed = 0;
        loop {
            let answered = self.campaign.answered();
            let lost = match self.look().await {
                Ok(end) => return Ok(end),
                Err(failure) => failure,
            };
            if let (Some(problem), false) = (&self.problem, self.has_begun) {
                return Err(Failure::Refused(problem.clone()));
            }
            failed = if self.campaign.answered() == answered {
                failed + 1
            } else {
                0
            };
            if matches!(lost, Failure::Refused(_) | Failure::Usage(_)) || failed > RETRIES_MAX {
                return Err(lost);
            }
            if failed <= 1 {
                self.remark(&format!("{}; connecting again", lost.text()));
            }
            let wait = RETRY_MIN.saturating_mul(1 << failed.min(5)).min(RETRY_MAX);
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection, to the campaign's end or its own.
    async fn look(&mut self) -> Result<End, Failure> {
        (self.problem, self.has_begun) = (None, false);
        let mut viewer = Viewer::open(self.client, self.number).await?;
        (self.heard, self.told) = (Instant::now(), Instant::now());
        let mut tick = tokio::time::interval(TICK);
        let mut ping = tokio::time::interval(PING_INTERVAL);
        loop {
            let is_over = self.campaign.missing().is_some() && self.told.elapsed() > LAST_WORDS;
            if is_over || self.campaign.is_done(self.only_online) {
                viewer.close().await;
                return Ok(End::Done);
            }
            let taken = tokio::select! {
                message = viewer.next() => self.take(&message?),
                _ = tick.tick() => {
                    self.clear();
                    let printed = self.printer.settle();
                    self.draw();
                    printed
                }
                _ = ping.tick() => {
                    if self.heard.elapsed() > SILENCE_MAX {
                        return Err(Failure::Unavailable("the server has gone silent".into()));
                    }
                    viewer.ping().await?;
                    Ok(())
                }
            };
            match taken {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(End::Unread),
                Err(error) => return Err(Failure::Usage(format!("cannot print: {error}"))),
            }
        }
    }

    fn take(&mut self, message: &str) -> std::io::Result<()> {
        self.heard = Instant::now();
        if message.is_empty() {
            return Ok(());
        }
        self.told = self.heard;
        let event = self.campaign.take(message);
        self.has_begun |= !matches!(event, Event::Problem(_));
        match event {
            Event::Nothing => Ok(()),
            Event::Problem(text) => {
                self.clear();
                eprintln!("[!] the server: {}", one_line(&text));
                self.problem = Some(text);
                Ok(())
            }
            Event::Answer(answer) => self.show(answer),
        }
    }

    fn show(&mut self, answer: Answer) -> std::io::Result<()> {
        self.clear();
        if let Some(error) = &answer.error {
            eprintln!("{}: {}", one_line(&answer.host), one_line(error));
        }
        self.printer.print(answer)
    }

    fn remark(&self, text: &str) {
        if !self.is_quiet {
            self.clear();
            eprintln!("[!] {text}");
        }
    }

    fn draw(&self) {
        if self.has_progress {
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "\r\x1b[K{}", self.campaign.progress());
            let _ = stderr.flush();
        }
    }

    fn clear(&self) {
        if self.has_progress {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    /// The last rows and words.
    fn finish(
        mut self,
        end: Result<End, Failure>,
        timeout: Option<Duration>,
    ) -> Result<Output, Failure> {
        self.clear();
        let _ = self.printer.settle();
        let mut output = Output::default();
        let progress = self.campaign.progress();
        match end {
            Ok(End::Done) if self.has_progress => eprintln!("{progress}"),
            Ok(End::Done | End::Unread) => {}
            Ok(End::Timeout) if self.is_quiet => {}
            Ok(End::Timeout) => {
                let after = humantime::format_duration(timeout.unwrap_or_default());
                output
                    .remarks
                    .push(format!("stopped after {after}: {progress}"));
            }
            Ok(End::Interrupted) => output.failure = Some(Failure::Interrupted(progress)),
            Err(failure) => output.failure = Some(failure),
        }
        if let Some(missing @ 1..) = self.campaign.missing() {
            output.remarks.push(format!(
                "the server has counted {missing} answers more than it showed"
            ));
        }
        if self.printer.dropped() > 0 && !self.is_quiet {
            output.remarks.push(format!(
                "{} values have no column in the header, and were left out; --format json has them",
                self.printer.dropped()
            ));
        }
        Ok(output)
    }
}
