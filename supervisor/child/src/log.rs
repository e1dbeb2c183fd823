//! The process's own log: text or JSON, at a level that changes while it runs.
//!
//! Both forms are always set up and one of them is silent: a span that stands open, such as the one with a worker's slot,
//! has been told to both, so that a change of the form loses nothing of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fleet_protocol::config::Logging;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt as layer, reload};

use crate::recent;

static LOG: OnceLock<Log> = OnceLock::new();

/// How lines look, and which are written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Text is coloured.
    pub is_coloured: bool,
    /// Behind the level, such as `,hyper=info`.
    pub directives: &'static str,
    /// `RUST_LOG`, where it is set, overrides the options' level.
    pub takes_environment: bool,
}

/// The switches of a log.
struct Log {
    style: Style,
    is_json: Arc<AtomicBool>,
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Starts the process's log. It does nothing when there is one: then that one serves.
pub fn init<W>(logging: &Logging, style: Style, writer: W)
where
    W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
{
    let is_json = Arc::new(AtomicBool::new(logging.json));
    let (filter, handle) = reload::Layer::new(style.filter(logging));
    // A log that cannot be written (its disk is full) is no reason to die: the library would tell so on standard error,
    // and panic when that cannot be written either.
    let text = layer::layer()
        .log_internal_errors(false)
        .with_ansi(style.is_coloured)
        .event_format(Form {
            format: format::format()
                .with_target(false)
                .with_ansi(style.is_coloured),
            is_for_json: false,
            is_json: Arc::clone(&is_json),
        })
        .with_writer(writer.clone());
    let json = layer::layer()
        .log_internal_errors(false)
        .fmt_fields(JsonFields::new())
        .event_format(Form {
            format: format::format()
                .with_target(false)
                .json()
                .flatten_event(true),
            is_for_json: true,
            is_json: Arc::clone(&is_json),
        })
        .with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    let registry = registry.with(text).with(json).with(recent::Keeper);
    if registry.try_init().is_ok() {
        let _ = LOG.set(Log {
            style,
            is_json,
            filter: handle,
        });
    }
}

/// Changes the level and the form of the log that [`init`] has started.
pub fn set(logging: &Logging) {
    let Some(log) = LOG.get() else {
        return;
    };
    log.is_json.store(logging.json, Ordering::Relaxed);
    if let Err(error) = log.filter.reload(log.style.filter(logging)) {
        tracing::error!(%error, "the log's level stays as it was");
    }
}

impl Style {
    fn filter(&self, logging: &Logging) -> EnvFilter {
        let level = if logging.debug { "debug" } else { "info" };
        let usual = || EnvFilter::new(format!("{level}{}", self.directives));
        if self.takes_environment {
            EnvFilter::try_from_default_env().unwrap_or_else(|_| usual())
        } else {
            usual()
        }
    }
}

/// Writes events while it is the chosen form.
struct Form<F> {
    format: F,
    is_for_json: bool,
    is_json: Arc<AtomicBool>,
}

impl<S, N, F> FormatEvent<S, N> for Form<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.is_json.load(Ordering::Relaxed) != self.is_for_json {
            return Ok(());
        }
        self.format.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Mutex;

    use super::*;

    /// Keeps what is written, a piece for each call.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Write for Kept {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(line.to_vec()).unwrap();
            self.0.lock().unwrap().push(text);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logging(debug: bool, json: bool) -> Logging {
        Logging {
            debug,
            json,
            ..Logging::default()
        }
    }

    /// The log of a process is one, and so is this test.
    #[test]
    fn level_and_form_change_while_spans_are_open() {
        let kept = Kept::default();
        let writer = kept.clone();
        let style = Style {
            is_coloured: false,
            directives: "",
            takes_environment: false,
        };
        init(&logging(false, false), style, move || writer.clone());
        let _span = tracing::info_span!("worker", slot = 3).entered();
        let say = || {
            tracing::info!(number = 1, "plain");
            tracing::debug!("fine");
            std::mem::take(&mut *kept.0.lock().unwrap())
        };
        let lines = say();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("INFO worker{slot=3}: plain number=1"));

        set(&logging(true, true));
        let lines = say();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains(r#""message":"plain","number":1"#));
        assert!(lines[0].contains(r#""slot":3"#), "{lines:?}");
        assert!(lines[1].contains(r#""level":"DEBUG""#), "{lines:?}");

        set(&logging(false, false));
        let lines = say();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("INFO worker{slot=3}: plain"), "{lines:?}");
    }
}
