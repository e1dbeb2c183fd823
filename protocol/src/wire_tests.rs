//! The encoding of every message that travels between builds, byte by byte. `wire.golden` holds what the last release
//! wrote; it only ever gets new lines. A test that fails here would have broken a running fleet's upgrade.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};

use crate::admin;
use crate::agent::{
    Adopt, Answer, CarveBegin, CarveBlock, Enroll, IdentityKind, Log, LogType, Query, QueryResult,
    Request, Work, Write,
};
use crate::feed::{Change, Feed, Host, Load};
use crate::frame::{Decoder, Message, VERSION_MIN, encode_in};
use crate::hello::{Hello, HelloReply};
use crate::ids::{
    AnswerId, BatchId, BootNonce, FeedSeq, Generation, HostId, NodeKeyHash, RequestId, SlotIndex,
    UnixSeconds,
};
use crate::link::{Batch, BatchKind, BatchReply, Credit, FromControl, FromWorker};
use crate::reject::Reject;
use crate::secret::Secret;
use crate::tickets::{TicketKey, TicketKeys};
use crate::upgrade::{Estate, FromNew, FromOld, Item, ItemKind, Prepared};

const GOLDEN: &str = include_str!("wire.golden");

/// Name and bytes of each message, in order.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn add<M: Message + PartialEq + std::fmt::Debug>(&mut self, name: &str, message: &M) {
        let mut wire = BytesMut::new();
        encode_in(VERSION_MIN, message, &mut wire).unwrap();
        let mut hex = String::new();
        for byte in &wire {
            write!(hex, "{byte:02x}").unwrap();
        }
        let read = Decoder::default().decode::<M>(&mut wire).unwrap();
        assert_eq!(read.as_ref(), Some(message), "{name}");
        self.0.push((name.to_owned(), hex));
    }
}

fn host() -> Host {
    Host {
        id: HostId(70_000),
        key: NodeKeyHash([7; 32]),
        answer: AnswerId(u64::MAX),
        work_due_at: UnixSeconds(1_700_000_000),
    }
}

fn adopt(kind: IdentityKind) -> Request {
    Request::Adopt(Box::new(Adopt {
        key: NodeKeyHash([9; 32]),
        identity: "host.example".into(),
        address: "2001:db8::1".parse().unwrap(),
        kind,
    }))
}

fn log(log_type: LogType) -> Request {
    Request::Log(Log {
        host: HostId(3),
        log_type,
        lines: Bytes::from_static(b"{}\n"),
        line_count: 1,
    })
}

/// One of each variant, in the order of their discriminants; then further shapes.
fn requests() -> Vec<Request> {
    let columns = BTreeMap::from([("hostname".to_owned(), "h1".to_owned())]);
    let mut all = vec![
        Request::Lookup(NodeKeyHash([1; 32])),
        Request::Enroll(Box::new(Enroll {
            secret: Secret::new("secret"),
            identifier: "id".into(),
            platform_type: "9".into(),
            details: BTreeMap::from([("system_info".to_owned(), columns)]),
            address: "192.0.2.1".parse().unwrap(),
        })),
        Request::Read(HostId(251)),
        Request::Write(Write {
            host: HostId(2),
            address: "192.0.2.2".parse().unwrap(),
            results: vec![QueryResult {
                name: "q".into(),
                status: -1,
                message: "no such table".into(),
                rows: "[]".into(),
                stats: "{}".into(),
            }],
        }),
        log(LogType::Result),
        Request::CarveBegin(CarveBegin {
            host: HostId(4),
            block_count: 2,
            block_size: 300_000,
            carve_size: 599_999,
            carve_id: "carve".into(),
            request_id: "request".into(),
        }),
        Request::CarveBlock(CarveBlock {
            block_id: 1,
            session_id: Secret::new("session"),
            request_id: "request".into(),
            data: Bytes::from_static(&[0, 255]),
        }),
        Request::Seen(vec![HostId(1), HostId(1 << 20)]),
        adopt(IdentityKind::DnsName),
    ];
    all.push(adopt(IdentityKind::Uri));
    all.push(adopt(IdentityKind::CommonName));
    all.push(log(LogType::Status));
    all
}

fn answers() -> Vec<Answer> {
    let mut all = vec![
        Answer::Accepted,
        Answer::CarveStarted {
            session_id: Secret::new("session"),
        },
        Answer::Enrolled {
            node_key: Secret::new("key"),
            host: host(),
        },
        Answer::Host(Some(host())),
        Answer::Refused(Reject::Busy),
        Answer::Work(Work {
            queries: vec![Query {
                name: "q".into(),
                sql: "SELECT 1".into(),
                discovery: "SELECT 2".into(),
            }],
            accelerate_s: Some(300),
        }),
    ];
    all.push(Answer::Host(None));
    all.extend(Reject::ALL.map(Answer::Refused));
    all
}

fn feeds() -> Vec<Feed> {
    let changes = vec![
        Change::Host(host()),
        Change::Forget(NodeKeyHash([2; 32])),
        Change::Answer {
            id: AnswerId(5),
            config: Bytes::from_static(b"{}"),
        },
        Change::DropAnswer(AnswerId(6)),
        Change::WorkDue {
            host: HostId(8),
            at: UnixSeconds(9),
        },
    ];
    let loads = [
        Load::Begin,
        Load::Continue,
        Load::End,
        Load::Whole,
        Load::Changes,
    ];
    let feed = |load| Feed {
        load,
        seq: FeedSeq(1_000),
        changes: changes.clone(),
    };
    let mut all: Vec<Feed> = loads.map(feed).into();
    all.push(Feed {
        load: Load::Changes,
        seq: FeedSeq(1_000),
        changes: vec![Change::Called {
            hosts: Bytes::from_static(&[1, 2, 3]),
            at: UnixSeconds(9),
        }],
    });
    all
}

fn lines() -> Lines {
    let mut lines = Lines::default();
    let hello = |feed_after| Hello {
        version_min: 2,
        version_max: 3,
        build: "1.2.3".into(),
        slot: SlotIndex(1),
        generation: Generation(2),
        boot: BootNonce(3),
        feed_after,
    };
    lines.add("hello", &hello(None));
    lines.add("hello after", &hello(Some(FeedSeq(300))));
    let credit = |kind| Credit { kind, batches: 4 };
    lines.add(
        "hello reply accepted",
        &HelloReply::Accepted {
            version: 2,
            build: "1.2.3".into(),
            boot: BootNonce(1 << 40),
            credit: BatchKind::ALL.map(credit).into(),
        },
    );
    let reason = "why".to_owned();
    lines.add("hello reply refused", &HelloReply::Refused { reason });
    for (index, request) in requests().into_iter().enumerate() {
        let batch = Batch {
            id: BatchId(1_000_000),
            kind: BatchKind::of(&request),
            requests: vec![(RequestId(7), request)],
        };
        lines.add(&format!("request {index}"), &FromWorker::Batch(batch));
    }
    lines.add("worker ping", &FromWorker::Ping(1));
    lines.add("worker pong", &FromWorker::Pong(2));
    for (index, answer) in answers().into_iter().enumerate() {
        let reply = BatchReply {
            id: BatchId(1_000_000),
            kind: BatchKind::Read,
            answers: vec![(RequestId(7), answer)],
        };
        lines.add(&format!("answer {index}"), &FromControl::Reply(reply));
    }
    for (index, feed) in feeds().into_iter().enumerate() {
        lines.add(&format!("feed {index}"), &FromControl::Feed(feed));
    }
    lines.add("credit", &FromControl::Credit(credit(BatchKind::Seen)));
    lines.add("control ping", &FromControl::Ping(1));
    lines.add("control pong", &FromControl::Pong(2));
    lines.add("go away", &FromControl::GoAway);
    lines.add("ask status", &admin::Request::Status);
    lines.add("ask stop", &admin::Request::Stop);
    lines.add("ask reload", &admin::Request::Reload);
    lines.add("stopping", &admin::Reply::Stopping { pid: 70_000 });
    let (reason, code) = ("why".to_owned(), 69);
    lines.add("error", &admin::Reply::Error { reason, code });
    add_upgrade(&mut lines);
    lines
}

fn add_upgrade(lines: &mut Lines) {
    let binary = Some("/usr/bin/new".into());
    lines.add("ask upgrade", &admin::Request::Upgrade { binary });
    lines.add("progress", &admin::Reply::Progress("line".into()));
    let upgraded = admin::Upgraded {
        pid: 2,
        build: "1.2.3".into(),
        old_pid: 1,
    };
    lines.add("upgraded", &admin::Reply::Upgraded(upgraded));
    let prepared = Prepared {
        version_min: 2,
        version_max: 3,
        build: "1.2.3".into(),
        state_dir: "/var/lib/x".into(),
    };
    let (reason, code) = ("why".to_owned(), 78);
    let from_new = [
        FromNew::Prepared(prepared),
        FromNew::Refused { reason, code },
        FromNew::Took { count: 64 },
        FromNew::Holds { count: 300 },
        FromNew::ControlStarted { pid: 70_000 },
        FromNew::ControlReady,
        FromNew::SlotReady { slot: 1 },
        FromNew::Serves,
    ];
    for (index, message) in from_new.into_iter().enumerate() {
        lines.add(&format!("new {index}"), &message);
    }
    let kinds = [
        ItemKind::Lock,
        ItemKind::Link,
        ItemKind::Tunnel,
        ItemKind::Operator,
        ItemKind::Admin,
        ItemKind::Agents,
        ItemKind::DnsUdp,
        ItemKind::DnsTcp,
        ItemKind::AgentCheck,
    ];
    let item = |kind| Item {
        kind,
        address: (kind == ItemKind::Agents).then(|| "192.0.2.1:0".parse().unwrap()),
        slot: (kind == ItemKind::Agents).then_some(3),
    };
    let key = |byte: u8| TicketKey::new([byte; 16], [byte; 32]);
    let estate = Estate {
        count: 9,
        generation: Generation(1),
        slots: 4,
        control_pid: Some(70_001),
        tickets: TicketKeys {
            previous: key(1),
            current: key(2),
            next: key(3),
        },
        tickets_age_s: 60,
        tls_digest: [5; 32],
    };
    let from_old = [
        FromOld::Hand(kinds.map(item).into()),
        FromOld::Estate(Box::new(estate)),
        FromOld::StartControl,
        FromOld::StartSlot { slot: 1 },
        FromOld::Commit,
    ];
    for (index, message) in from_old.into_iter().enumerate() {
        lines.add(&format!("old {index}"), &message);
    }
}

#[test]
fn what_a_release_wrote_is_written_and_read_for_ever() {
    let golden: BTreeMap<&str, &str> = GOLDEN
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let lines = lines();
    let mut missing = String::new();
    for (name, hex) in &lines.0 {
        match golden.get(name.as_str()) {
            Some(golden) => assert_eq!(
                golden, hex,
                "{name} is encoded in another way than released builds do"
            ),
            None => writeln!(missing, "{name} {hex}").unwrap(),
        }
    }
    assert!(missing.is_empty(), "append to wire.golden:\n{missing}");
    assert_eq!(lines.0.len(), golden.len(), "a message is gone");
}

#[test]
fn every_variant_is_among_them() {
    // Whoever adds a variant comes by here: add it to the samples, in its place, and count it.
    let request = |request: &Request| match request {
        Request::Lookup(_) => 0,
        Request::Enroll(_) => 1,
        Request::Read(_) => 2,
        Request::Write(_) => 3,
        Request::Log(_) => 4,
        Request::CarveBegin(_) => 5,
        Request::CarveBlock(_) => 6,
        Request::Seen(_) => 7,
        Request::Adopt(_) => 8,
    };
    let answer = |answer: &Answer| match answer {
        Answer::Accepted => 0,
        Answer::CarveStarted { .. } => 1,
        Answer::Enrolled { .. } => 2,
        Answer::Host(_) => 3,
        Answer::Refused(_) => 4,
        Answer::Work(_) => 5,
    };
    let change = |change: &Change| match change {
        Change::Host(_) => 0,
        Change::Forget(_) => 1,
        Change::Answer { .. } => 2,
        Change::DropAnswer(_) => 3,
        Change::WorkDue { .. } => 4,
        Change::Called { .. } => 5,
    };
    let message = |message: &FromControl| match message {
        FromControl::Reply(_) => 0,
        FromControl::Feed(_) => 1,
        FromControl::Credit(_) => 2,
        FromControl::Ping(_) => 3,
        FromControl::Pong(_) => 4,
        FromControl::GoAway => 5,
    };
    assert_eq!(message(&FromControl::GoAway), 5);
    let first = |indices: Vec<usize>, count: usize| {
        assert_eq!(indices[..count], (0..count).collect::<Vec<_>>());
    };
    first(requests().iter().map(request).collect(), 9);
    first(answers().iter().map(answer).collect(), 6);
    let changes = feeds()[0]
        .changes
        .clone()
        .into_iter()
        .chain(feeds()[5].changes.clone());
    first(changes.map(|one| change(&one)).collect(), 6);
}
