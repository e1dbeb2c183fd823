//! Held reads of a whole worker.

use fleet_protocol::stats::{HoldEnd, Outcome};

use super::*;

/// Longer than a test waits for anything, so that a hold that ends was ended.
const HOLD: Duration = Duration::from_secs(12);
const KEY: &str = "Authorization: NodeKey key-7\r\n";
const LOG: &str = r#"{"data":[{"a":1}],"log_type":"result","node_key":"key-7"}"#;
const STATUS_LOG: &str = r#"{"data":[{"a":1}],"log_type":"status","node_key":"key-7"}"#;

/// Host 7 is enrolled, and nothing is due for it.
fn start(change: impl FnOnce(&mut Config)) -> Bench {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    start_on(listener, change)
}

fn start_on(listener: TcpListener, change: impl FnOnce(&mut Config)) -> Bench {
    let bench = Bench::start_on(listener, false, |config| {
        config.osquery.distributed_hold = HOLD;
        change(config);
    });
    assert!(
        bench
            .post("/api/osquery/enroll", "", ENROLL)
            .contains("key-7")
    );
    bench
}

/// Sends a read and leaves it.
fn read(bench: &Bench, fields: &str) -> TcpStream {
    let mut stream = bench.connect();
    send_read(&mut stream, fields);
    stream
}

fn send_read(stream: &mut TcpStream, fields: &str) {
    stream
        .write_all(request(READ, &format!("{KEY}{fields}"), "{}").as_bytes())
        .unwrap();
}

fn ends(stats: &WorkerStats) -> Vec<(HoldEnd, u64)> {
    let counts = HoldEnd::ALL.into_iter().zip(stats.hold_ends);
    counts.filter(|(_, count)| *count > 0).collect()
}

fn is_silent(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn work_that_comes_is_the_answer() {
    // Told of the host alone, and of many at once.
    for log in [LOG, STATUS_LOG] {
        let mut bench = start(|_| ());
        let mut held = read(&bench, "");
        let stats = bench.stats_until(|stats| stats.held_reads == 1);
        assert_eq!(ends(&stats), []);
        assert!(is_silent(&held));
        bench.post("/api/osquery/log", "", log);
        let heard = answer(&mut held);
        assert!(
            heard.ends_with(r#"{"queries":{"uptime":"SELECT 1"}}"#),
            "{heard}"
        );
        let stats = bench.stats_until(|stats| stats.held_reads == 0);
        assert_eq!(ends(&stats), [(HoldEnd::Work, 1)]);
        let reads = stats.exchanges[Route::Read.index()];
        assert_eq!(reads[Outcome::Control as usize], 1, "{reads:?}");
        // Work is due now: nothing is held.
        assert!(bench.post(READ, KEY, "{}").contains("uptime"));
    }
}

#[test]
fn a_hold_ends_by_itself_and_the_connection_stays() {
    let mut bench = start(|config| {
        config.osquery.distributed_hold = Duration::from_millis(400);
    });
    let mut stream = read(&bench, "Connection: keep-alive\r\n");
    for _ in 0..2 {
        let heard = answer(&mut stream);
        assert!(heard.contains("Connection: keep-alive"), "{heard}");
        assert!(heard.ends_with("\r\n\r\n{}"), "{heard}");
        let text = request(READ, &format!("{KEY}Connection: keep-alive\r\n"), "{}");
        stream.write_all(text.as_bytes()).unwrap();
    }
    assert!(answer(&mut stream).ends_with("{}"));
    let stats = bench.stats_until(|stats| stats.held_reads == 0 && stats.hold_ends[0] == 3);
    let reads = stats.exchanges[Route::Read.index()];
    assert_eq!(reads, [3, 0, 0, 0, 0]);
    // The hold is no part of the time that an answer took.
    let answers = &stats.exchange_us[Route::Read.index()];
    assert!(answers.sum < 900_000, "{answers:?}");
}

#[test]
fn who_goes_away_lost_nothing_and_who_asks_again_is_held_anew() {
    let mut bench = start(|_| ());
    let mut first = read(&bench, "");
    bench.stats_until(|stats| stats.held_reads == 1);
    let second = read(&bench, "");
    assert!(answer(&mut first).ends_with("{}"));
    let stats = bench.stats_until(|stats| stats.hold_ends[HoldEnd::Superseded as usize] == 1);
    assert_eq!(stats.held_reads, 1);
    assert!(is_silent(&second));
    drop(second);
    let stats = bench.stats_until(|stats| stats.held_reads == 0);
    assert_eq!(ends(&stats), [(HoldEnd::Gone, 1), (HoldEnd::Superseded, 1)]);
    let reads = stats.exchanges[Route::Read.index()];
    assert_eq!(reads, [1, 0, 0, 0, 1]);
    // Only an answer has a latency.
    assert_eq!(stats.exchange_us[Route::Read.index()].count(), 1);
}

#[test]
fn a_drain_answers_held_reads() {
    let mut bench = start(|_| ());
    let mut held = read(&bench, "Connection: keep-alive\r\n");
    bench.stats_until(|stats| stats.held_reads == 1);
    bench.drain(PATIENCE);
    let heard = answer(&mut held);
    assert!(heard.ends_with("\r\n\r\n{}"), "{heard}");
    assert!(heard.contains("Connection: close"), "{heard}");
    drop(held);
    bench.join();
}

#[test]
fn a_withdrawn_address_answers_held_reads() {
    let mut bench = start(|_| ());
    let mut held = read(&bench, "");
    bench.stats_until(|stats| stats.held_reads == 1);
    let address = bench.address;
    bench.say(&ToChild::Withdraw(vec![address]));
    assert!(answer(&mut held).ends_with("{}"));
    let stats = bench.stats_until(|stats| stats.held_reads == 0);
    assert_eq!(ends(&stats), [(HoldEnd::Drained, 1)]);
}

#[test]
fn a_hold_keeps_nobody_out() {
    let mut bench = start(|config| config.server.connections_per_worker_max = 2);
    bench.stats_until(|stats| stats.exchanges_total() == 1 && stats.open_connections == 0);
    let mut held = read(&bench, "");
    bench.stats_until(|stats| stats.held_reads == 1);
    // The second shuts the door, which ends the hold; itself it is not held.
    let mut second = read(&bench, "");
    assert!(answer(&mut held).ends_with("{}"));
    assert!(answer(&mut second).ends_with("{}"));
    let stats = bench.stats_until(|stats| stats.held_reads == 0);
    assert_eq!(ends(&stats), [(HoldEnd::Crowded, 2)]);
}

/// Both the one who waited and those who come soon after: they may have tried before, with the queue full.
fn none_is_held(bench: &mut Bench, mut waited: TcpStream) {
    send_read(&mut waited, "");
    assert!(answer(&mut waited).ends_with("\r\n\r\n{}"));
    drop(waited);
    bench.stats_until(|stats| stats.open_connections == 0);
    assert!(answer(&mut read(bench, "")).ends_with("\r\n\r\n{}"));
    let stats = bench.stats_until(|stats| stats.exchanges[Route::Read.index()][0] == 2);
    assert_eq!((stats.held_reads, ends(&stats)), (0, vec![]));
}

#[test]
fn who_waited_for_a_worker_is_not_held() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let waited = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut bench = start_on(listener, |_| ());
    none_is_held(&mut bench, waited);
}

#[test]
fn who_waited_for_room_is_not_held() {
    let mut bench = start(|config| config.server.connections_per_worker_max = 2);
    bench.stats_until(|stats| stats.exchanges_total() == 1 && stats.open_connections == 0);
    let others = [bench.connect(), bench.connect()];
    bench.stats_until(|stats| stats.open_connections == 2);
    let waited = bench.connect();
    drop(others);
    bench.stats_until(|stats| stats.open_connections == 1 && stats.accepted == 4);
    none_is_held(&mut bench, waited);
}
