use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use fleet_protocol::agent::{LogType, Query};
use fleet_protocol::ids::{AnswerId, HostId, RequestId, UnixSeconds};
use fleet_protocol::limits;
use fleet_protocol::secret::Secret;
use proptest::prelude::*;

use super::*;
use crate::hosts::test_host;
use crate::state::hash_node_key;
use crate::state::test_state;

#[path = "exchange_bounds_tests.rs"]
mod bounds_tests;
#[path = "exchange_certified_tests.rs"]
mod certified_tests;

const CONFIG: Bytes = Bytes::from_static(b"{\"schedule\":{}}");

fn head(route: Route, node_key: Option<&str>) -> Head<'_> {
    Head {
        route,
        node_key,
        content_length: 2,
        is_gzip: false,
        accepts_gzip: false,
        client: [127, 0, 0, 1].into(),
        certificate: None,
    }
}

/// Knows host 1 by the key `one`.
fn state() -> Rc<State> {
    let state = test_state("/nowhere".into());
    let seq = fleet_protocol::ids::FeedSeq(1);
    let answer = fleet_protocol::feed::Change::Answer {
        id: AnswerId(1),
        config: CONFIG,
    };
    let host = fleet_protocol::feed::Change::Host(test_host(1, "one"));
    let feed = fleet_protocol::feed::Feed {
        load: fleet_protocol::feed::Load::Whole,
        seq,
        changes: vec![answer, host],
    };
    state.table.borrow_mut().apply(feed, |_| {}).unwrap();
    state
}

fn send(state: &State, head: &Head<'_>, body: &[u8]) -> Reply {
    answer(state, head, &mut body.to_vec(), Instant::now())
}

fn now(reply: Reply) -> Response {
    match reply {
        Reply::Now(response) => response,
        Reply::Idle(_) => nothing_due(),
        Reply::Later(_) => panic!("went to control"),
    }
}

fn later(reply: Reply) -> Pending {
    match reply {
        Reply::Later(pending) => pending,
        Reply::Now(response) => panic!("answered alone: {response:?}"),
        Reply::Idle(read) => panic!("nothing due: {read:?}"),
    }
}

fn body_of(state: &State, route: Route, body: &str) -> Bytes {
    now(send(state, &head(route, None), body.as_bytes())).body
}

/// What control would be sent.
fn taken(state: &State, kind: BatchKind) -> (RequestId, Request) {
    let taken = state.waiting.borrow_mut().take_due(kind, Instant::now());
    let mut requests = taken.expect("a batch is due").requests;
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

/// Runs a request through control, which answers as told.
fn asked(state: &State, head: &Head<'_>, body: &str, answer: Answer) -> (Request, Response) {
    let pending = later(send(state, head, body.as_bytes()));
    let kind = match head.route {
        Route::Enroll => BatchKind::Enroll,
        Route::Read => BatchKind::Read,
        Route::Write => BatchKind::Write,
        Route::Log => BatchKind::Log,
        Route::CarveBegin | Route::CarveBlock => BatchKind::Carve,
        Route::Config => BatchKind::Lookup,
    };
    let (id, request) = taken(state, kind);
    state.complete(id, answer, Instant::now());
    (request, wait(pending))
}

fn wait(pending: Pending) -> Response {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(pending)
}

fn due(state: &State) {
    let mut host = test_host(1, "one");
    host.work_due_at = UnixSeconds(0);
    state.table.borrow_mut().insert_host(host);
}

#[test]
fn known_hosts_are_answered_alone() {
    let state = state();
    let key = r#"{"node_key":"one"}"#;
    let response = now(send(&state, &head(Route::Config, None), key.as_bytes()));
    assert_eq!(response.body, CONFIG);
    assert_eq!(response.body.as_ptr(), CONFIG.as_ptr(), "shared");
    assert_eq!((response.status, response.outcome), (200, Outcome::Alone));
    assert_eq!(body_of(&state, Route::Read, key), "{}");
    let nothing = r#"{"data":[],"log_type":"status","node_key":"one"}"#;
    assert_eq!(body_of(&state, Route::Log, nothing), "{}");
    assert_eq!(
        body_of(&state, Route::Write, r#"{"queries":{},"node_key":"one"}"#),
        "{}"
    );
    assert_eq!(state.seen.borrow_mut().take(), [[HostId(1)]]);
    assert!(state.waiting.borrow().is_idle());
}

#[test]
fn a_held_read_is_served_as_things_are_by_then() {
    let state = state();
    let Reply::Idle(read) = send(&state, &head(Route::Read, Some("one")), b"{}") else {
        panic!("something is due");
    };
    assert!(matches!(
        resume(&state, read, Instant::now()),
        Reply::Idle(_)
    ));
    due(&state);
    let pending = later(resume(&state, read, Instant::now()));
    assert_eq!(taken(&state, BatchKind::Read).1, Request::Read(HostId(1)));
    drop(pending);
    // Enrolled again: what is due is for the new key.
    let mut host = test_host(1, "two");
    host.work_due_at = UnixSeconds(0);
    state.table.borrow_mut().insert_host(host);
    assert!(matches!(
        resume(&state, read, Instant::now()),
        Reply::Idle(_)
    ));
}

#[test]
fn the_header_key_comes_first() {
    let state = state();
    for (header, body, is_known) in [
        (Some("one"), r#"{"node_key":"other"}"#, true),
        (Some("one"), "{}", true),
        (Some(" "), r#"{"node_key":"one"}"#, true),
        (Some("other"), r#"{"node_key":"one"}"#, false),
        (None, r#"{"x":{"node_key":"no"},"node_key":"one"}"#, true),
    ] {
        let reply = send(&state, &head(Route::Read, header), body.as_bytes());
        assert_eq!(
            matches!(reply, Reply::Idle(_)),
            is_known,
            "{header:?} {body}"
        );
    }
}

#[test]
fn requests_without_a_key_are_told_so() {
    let state = state();
    let expected = Reject::NodeKeyMissing.answer(None).body;
    for route in [Route::Config, Route::Read, Route::Write] {
        for body in ["{}", r#"{"node_key":""}"#, r#"{"node_key":null}"#] {
            assert_eq!(body_of(&state, route, body), expected);
        }
    }
    assert_eq!(
        state.stats.borrow().rejects[Reject::NodeKeyMissing.index()],
        9
    );
    assert!(state.seen.borrow().is_empty());
}

#[test]
fn what_can_never_be_accepted_is_success_and_counted() {
    let state = state();
    for (route, body) in [
        (
            Route::Log,
            r#"{"data":[{}],"log_type":"other","node_key":"one"}"#,
        ),
        (Route::Log, "no json"),
        (Route::Write, "[]"),
    ] {
        let response = now(send(&state, &head(route, None), body.as_bytes()));
        assert_eq!((response.status, &response.body[..]), (200, &b"{}"[..]));
        assert_eq!(response.outcome, Outcome::Refused);
    }
    assert_eq!(state.stats.borrow().lost_requests, 3);
    let config = body_of(&state, Route::Config, "no json");
    assert_eq!(config, Reject::BodyMalformed.answer(None).body);
    assert_eq!(state.stats.borrow().lost_requests, 3);
}

#[test]
fn a_missing_config_is_no_config() {
    let state = state();
    let mut host = test_host(2, "two");
    host.answer = AnswerId(99);
    state.table.borrow_mut().insert_host(host);
    let body = body_of(&state, Route::Config, r#"{"node_key":"two"}"#);
    assert_eq!(body, Reject::ControlUnavailable.answer(None).body);
}

#[test]
fn due_reads_bring_work() {
    let state = state();
    due(&state);
    let query = |name: &str, sql: &str, discovery: &str| Query {
        name: name.into(),
        sql: sql.into(),
        discovery: discovery.into(),
    };
    let read = head(Route::Read, Some("one"));
    let work = |queries, accelerate_s| {
        Answer::Work(Work {
            queries,
            accelerate_s,
        })
    };
    let queries = vec![
        query("a", "SELECT 1", "SELECT 2"),
        query("b", " ", "SELECT 2"),
        query("", "SELECT 1", "SELECT 2"),
        query("c", "SELECT \"3\"", ""),
    ];
    let (request, response) = asked(&state, &read, "{}", work(queries, Some(60)));
    assert_eq!(request, Request::Read(HostId(1)));
    assert_eq!(response.outcome, Outcome::Control);
    assert_eq!(
        response.body,
        r#"{"queries":{"a":"SELECT 1","c":"SELECT \"3\""},"discovery":{"a":"SELECT 2","c":"SELECT 1"},"accelerate":60}"#
    );
    let (_, response) = asked(&state, &read, "{}", work(Vec::new(), None));
    assert_eq!(response.body, "{}");
    let (_, response) = asked(&state, &read, "{}", work(vec![query("a", "x", "")], None));
    assert_eq!(response.body, r#"{"queries":{"a":"x"}}"#);
    let (_, response) = asked(&state, &read, "{}", Answer::Accepted);
    assert_eq!(response.body, Reject::Internal.answer(None).body);
    assert_eq!(state.stats.borrow().link_oddities, 1);
}

#[test]
fn logs_and_writes_reach_control() {
    let state = state();
    let body = r#"{"data":[{"a":1}],"log_type":"result","node_key":"one"}"#;
    let (request, response) = asked(&state, &head(Route::Log, None), body, Answer::Accepted);
    let Request::Log(log) = request else {
        panic!("{request:?}");
    };
    assert_eq!(
        (log.host, log.log_type, log.line_count),
        (HostId(1), LogType::Result, 1)
    );
    assert_eq!(log.lines, "{\"a\":1}\n");
    assert_eq!(response.body, "{}");
    let refused = Answer::Refused(Reject::JournalUnavailable);
    let (_, response) = asked(&state, &head(Route::Log, None), body, refused);
    assert_eq!(response.body, Reject::JournalUnavailable.answer(None).body);
    let body = r#"{"queries":{"q":[]},"node_key":"one"}"#;
    let (request, response) = asked(&state, &head(Route::Write, None), body, Answer::Accepted);
    assert!(matches!(request, Request::Write(write) if write.host == HostId(1)));
    assert_eq!(response.body, "{}");
}

#[test]
fn enrolling_hosts_are_known_at_once() {
    let state = state();
    let enrolled = Answer::Enrolled {
        node_key: Secret::new("new-key"),
        host: test_host(7, "new-key"),
    };
    let body = r#"{"enroll_secret":"s","host_identifier":"h"}"#;
    let (request, response) = asked(&state, &head(Route::Enroll, None), body, enrolled);
    assert!(matches!(request, Request::Enroll(enroll) if enroll.secret.reveal() == "s"));
    assert_eq!(response.body, r#"{"node_key":"new-key"}"#);
    assert_eq!(
        body_of(&state, Route::Config, r#"{"node_key":"new-key"}"#),
        CONFIG
    );
}

#[test]
fn carves_prove_themselves_by_session() {
    let state = state();
    let body = r#"{"block_count":1,"block_size":1,"carve_size":1,"node_key":"one"}"#;
    let started = Answer::CarveStarted {
        session_id: Secret::new("s1"),
    };
    let (request, response) = asked(&state, &head(Route::CarveBegin, None), body, started);
    assert!(matches!(request, Request::CarveBegin(carve) if carve.host == HostId(1)));
    assert_eq!(response.body, r#"{"session_id":"s1"}"#);
    state.seen.borrow_mut().take();
    let block = r#"{"block_id":0,"session_id":"s1","request_id":"r","data":"eA=="}"#;
    for (key, is_marked) in [(None, false), (Some("unknown"), false), (Some("one"), true)] {
        let (request, response) = asked(
            &state,
            &head(Route::CarveBlock, key),
            block,
            Answer::Accepted,
        );
        assert!(matches!(request, Request::CarveBlock(block) if block.data == "x"));
        assert_eq!(response.body, "{}");
        assert_eq!(!state.seen.borrow_mut().take().is_empty(), is_marked);
    }
    let busy = Answer::Refused(Reject::Busy);
    let (_, response) = asked(&state, &head(Route::CarveBlock, None), block, busy);
    assert!(response.must_cut);
}

#[test]
fn a_lookup_goes_on_with_the_same_request() {
    let state = state();
    let body = br#"{"data":[{"a":1}],"log_type":"result","node_key":"two"}"#;
    let pending = later(send(&state, &head(Route::Log, None), body));
    let (id, request) = taken(&state, BatchKind::Lookup);
    assert_eq!(request, Request::Lookup(hash_node_key("two")));
    state.complete(id, Answer::Host(Some(test_host(2, "two"))), Instant::now());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let response = tokio::task::LocalSet::new().block_on(&runtime, async {
        let pending = tokio::task::spawn_local(pending);
        while state.waiting.borrow().queued(BatchKind::Log) == 0 {
            tokio::task::yield_now().await;
        }
        let (id, request) = taken(&state, BatchKind::Log);
        assert!(matches!(request, Request::Log(log) if log.host == HostId(2)));
        state.complete(id, Answer::Accepted, Instant::now());
        pending.await.unwrap()
    });
    assert_eq!(
        (&response.body[..], response.outcome),
        (&b"{}"[..], Outcome::Control)
    );
}

#[test]
fn only_the_store_makes_a_key_invalid() {
    let state = state();
    let body = r#"{"node_key":"two"}"#;
    let config = head(Route::Config, None);
    for reject in [
        Reject::StoreUnavailable,
        Reject::ControlUnavailable,
        Reject::Busy,
    ] {
        let (_, response) = asked(&state, &config, body, Answer::Refused(reject));
        assert_eq!(response.body, reject.answer(None).body);
    }
    let (_, response) = asked(
        &state,
        &config,
        body,
        Answer::Host(Some(test_host(3, "three"))),
    );
    assert_eq!(response.body, Reject::Internal.answer(None).body);
    let (_, response) = asked(&state, &config, body, Answer::Host(None));
    assert_eq!(response.body, Reject::NodeKeyUnknown.answer(None).body);
    assert_eq!(body_of(&state, Route::Config, body), response.body);
    let early = begin(&state, &head(Route::Log, Some("two")), Instant::now());
    assert_eq!(early, Early::Refuse(Reject::NodeKeyUnknown));
    let later = Instant::now() + limits::NEGATIVE_CACHE_TTL + Duration::from_secs(1);
    assert!(matches!(
        begin(&state, &head(Route::Log, Some("two")), later),
        Early::ReadBody { .. }
    ));
    // A key that the feed forgets is looked up, not refused.
    let feed = fleet_protocol::feed::Feed {
        load: fleet_protocol::feed::Load::Changes,
        seq: fleet_protocol::ids::FeedSeq(2),
        changes: vec![fleet_protocol::feed::Change::Forget(hash_node_key("one"))],
    };
    state.table.borrow_mut().apply(feed, |_| {}).unwrap();
    let reply = send(&state, &config, br#"{"node_key":"one"}"#);
    assert!(matches!(reply, Reply::Later(_)));
}

#[test]
fn dropping_a_pending_answer_cancels_it() {
    let state = state();
    due(&state);
    let read = later(send(&state, &head(Route::Read, Some("one")), b"{}"));
    let lookup = later(send(&state, &head(Route::Read, Some("two")), b"{}"));
    assert!(!state.waiting.borrow().is_idle());
    drop((read, lookup));
    assert!(state.waiting.borrow().is_idle());
}

#[test]
fn gzip_bodies_are_taken() {
    let state = state();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder
        .write_all(br#"{"node_key":"one","log_type":"status","data":[]}"#)
        .unwrap();
    let body = encoder.finish().unwrap();
    let mut gzip = head(Route::Log, None);
    gzip.is_gzip = true;
    assert_eq!(now(send(&state, &gzip, &body)).body, "{}");
    assert_eq!(state.stats.borrow().lost_requests, 0);
    now(send(&state, &gzip, b"{}"));
    assert_eq!(state.stats.borrow().lost_requests, 1);
}

proptest! {
    /// Whatever comes, what goes out at once is an object, and `node_invalid` is not said of a known key.
    #[test]
    fn answers_are_objects(
        route in prop::sample::select(Route::ALL.to_vec()),
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            r#"\{"node_key":"one","data":[\[{}\]"a1:,]{0,9},"log_type":"(result|status|x)"\}"#.prop_map(String::into_bytes),
        ],
        is_gzip in any::<bool>(),
    ) {
        let state = state();
        let mut head = head(route, Some("one"));
        head.is_gzip = is_gzip;
        if let Reply::Now(response) = send(&state, &head, &body) {
            let value: Value = serde_json::from_slice(&response.body)?;
            let object = value.as_object().expect("an object");
            prop_assert!(!object.contains_key("node_invalid"));
        }
    }
}
