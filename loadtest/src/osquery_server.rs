//! Answers as osquery's own test server gives them, to certify the simulator against upstream's idea of a server.
//!
//! Known from the description in the project's reference: one secret, one key for all, every third config call says
//! `node_invalid`, reads always hand out the same two queries with a text for `accelerate`, and a carve block gets no
//! answer at all.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::listener::{Received, Reply};

/// The only enroll secret that it takes.
pub const SECRET: &str = "this_is_a_deployment_secret";
/// The only key that it gives.
pub const NODE_KEY: &str = "this_is_a_node_secret";

/// The answers; give it to [`crate::listener::Listener::start`].
pub fn respond() -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    let configs = AtomicUsize::new(0);
    move |received| {
        let Ok(body) = serde_json::from_slice::<Value>(&received.body) else {
            // It ignores gzip bodies: nothing can be read out of them.
            return Reply::ok("{}");
        };
        let is_known = body.get("node_key").and_then(Value::as_str) == Some(NODE_KEY);
        match received.path.as_str() {
            "/enroll" => enroll(&body),
            "/config" => {
                let count = configs.fetch_add(1, Ordering::SeqCst) + 1;
                if is_known && !count.is_multiple_of(3) {
                    Reply::ok(config().to_string())
                } else {
                    invalid()
                }
            }
            "/carve_block" => Reply::Torn(Vec::new()),
            "/carve_init" => Reply::ok(json!({"session_id": "session"}).to_string()),
            _ if !is_known => invalid(),
            "/log" | "/distributed_write" => Reply::ok("{}"),
            "/distributed_read" => Reply::ok(work().to_string()),
            _ => Reply::status(404, ""),
        }
    }
}

fn enroll(body: &Value) -> Reply {
    if body.get("enroll_secret").and_then(Value::as_str) == Some(SECRET) {
        Reply::ok(json!({"node_key": NODE_KEY}).to_string())
    } else {
        invalid()
    }
}

fn invalid() -> Reply {
    Reply::ok(json!({"node_invalid": true}).to_string())
}

fn config() -> Value {
    json!({
        "schedule": {"tls_proc": {"query": "select * from processes", "interval": 0}},
        "node_invalid": false
    })
}

fn work() -> Value {
    json!({
        "queries": {
            "id1": "SELECT * FROM osquery_info",
            "id2": "SELECT * FROM osquery_schedule"
        },
        "accelerate": "60",
        "node_invalid": false
    })
}
