//! Tests of request heads and chunked bodies.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Option<RequestHead>, Malformed> {
    parse_head(text.as_bytes(), "", &mut 0)
}

fn head(fields: &str) -> Result<RequestHead, Malformed> {
    parse(&format!(
        "POST /api/v1/osquery/log HTTP/1.1\r\nHost: fleet\r\n{fields}\r\n"
    ))
    .map(|head| head.expect("a whole head"))
}

#[test]
fn reads_what_osquery_sends() {
    let text = "POST /api/v1/osquery/distributed/read?enroll_secret=a/b?c HTTP/1.1\r\n\
        Content-Type: application/json\r\nAccept: application/json\r\nUser-Agent: osquery/5.23.1\r\n\
        Authorization: NodeKey k-1_x\r\nContent-Encoding: gzip\r\nHost: fleet:8080\r\n\
        Content-Length: 21\r\n\r\n";
    let head = parse(text).unwrap().unwrap();
    assert_eq!(&text[head.node_key.clone().unwrap()], "k-1_x");
    assert_eq!(
        head,
        RequestHead {
            head_bytes: text.len(),
            route: Some(Route::Read),
            is_post: true,
            framing: Framing::Length(21),
            node_key: head.node_key.clone(),
            is_gzip: true,
            accepts_gzip: false,
            wants_keep_alive: false,
            is_persistent: true,
            expects_continue: false,
        }
    );
}

#[test]
fn routes_need_the_prefix_and_the_exact_path() {
    let route = |target: &str, prefix: &str| {
        parse_head(
            format!("POST {target} HTTP/1.1\r\n\r\n").as_bytes(),
            prefix,
            &mut 0,
        )
        .unwrap()
        .unwrap()
        .route
    };
    assert_eq!(route("/api/osquery/config", ""), Some(Route::Config));
    assert_eq!(
        route("/fleet/api/osquery/config", "/fleet"),
        Some(Route::Config)
    );
    assert_eq!(route("/api/osquery/config", "/fleet"), None);
    assert_eq!(
        route("https://fleet:8080/api/osquery/log?x=1", ""),
        Some(Route::Log)
    );
    for other in [
        "/",
        "*",
        "/api/osquery/log/",
        "https://fleet",
        "/api/osquery/LOG",
    ] {
        assert_eq!(route(other, ""), None, "{other}");
    }
}

#[test]
fn refuses_what_two_readers_could_understand_differently() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: \r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length : 5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "X-Folded: one\r\n two\r\n",
        "No Colon\r\n",
    ] {
        assert_eq!(head(fields), Err(Malformed), "{fields:?}");
    }
    assert_eq!(
        head("Content-Length: 5\r\nContent-Length: 5\r\n")
            .unwrap()
            .framing,
        Framing::Length(5)
    );
    for text in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST /\r\n\r\n",
        "\x16\x03\x01",
        "POST / HTTP/1.1\nHost: a\n\nx\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert_eq!(parse(text), Err(Malformed), "{text:?}");
    }
}

#[test]
fn fields_are_read_leniently_where_that_is_safe() {
    let head_of = |fields: &str| head(fields).unwrap();
    assert_eq!(
        head_of("transfer-encoding: Chunked\r\n").framing,
        Framing::Chunked
    );
    assert!(head_of("CONNECTION: Upgrade, Keep-Alive\r\n").wants_keep_alive);
    assert!(!head_of("Connection: keep-alive\r\nConnection: close\r\n").wants_keep_alive);
    assert!(head_of("Expect: 100-Continue\r\n").expects_continue);
    assert!(!head_of("Content-Encoding: identity\r\n").is_gzip);
    assert!(head_of("Accept-Encoding: deflate, gzip\r\n").accepts_gzip);
    assert!(!head_of("Accept-Encoding: gzip;q=0\r\n").accepts_gzip);
    for (value, is_key) in [
        ("NodeKey abc", true),
        ("nodekey   abc  ", true),
        ("NodeKey ", false),
        ("NodeKey", false),
        ("Bearer abc", false),
        ("NodeKey a b", false),
        ("", false),
    ] {
        let head = head_of(&format!("Authorization: {value}\r\n"));
        assert_eq!(head.node_key.is_some(), is_key, "{value:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let padded = |bytes: usize| {
        let frame = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(bytes - frame))
    };
    assert!(parse(&padded(HEAD_BYTES_MAX)).unwrap().is_some());
    assert_eq!(parse(&padded(HEAD_BYTES_MAX + 1)), Err(Malformed));
    let endless = "GET /".to_owned() + &"x".repeat(HEAD_BYTES_MAX);
    assert_eq!(parse(&endless), Err(Malformed));
    let fields = "a: b\r\n".repeat(FIELDS_MAX + 1);
    assert_eq!(head(&fields), Err(Malformed));
}

#[test]
fn chunked_framing_is_strict() {
    for (wire, content) in [
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("0005;ext=\"1\"\r\nhello\r\n0\r\nA: b\r\n\r\n", "hello"),
        ("2\r\nhe\r\n3 \r\nllo\r\n0\r\n\r\nPOST", "hello"),
        ("0\r\n\r\n", ""),
    ] {
        let mut buffer = format!("HEAD{wire}").into_bytes();
        let mut chunked = Chunked::new(4);
        assert_eq!(chunked.decode(&mut buffer), Ok(true), "{wire:?}");
        assert_eq!(&buffer[4..chunked.end()], content.as_bytes());
        assert_eq!(
            &buffer[chunked.end()..],
            if wire.ends_with('T') {
                b"POST" as &[u8]
            } else {
                b""
            }
        );
    }
    for wire in [
        "\r\nhello",
        "g\r\n",
        "-1\r\n",
        "5\r\nhelloX\r\n",
        "1000000000000000\r\n",
        " 5\r\nhello\r\n",
        &"x".repeat(CHUNK_LINE_BYTES_MAX + 1),
        &format!("0\r\n{}", "a: b\r\n".repeat(2000)),
    ] {
        let mut buffer = wire.as_bytes().to_vec();
        assert_eq!(
            Chunked::new(0).decode(&mut buffer),
            Err(Malformed),
            "{wire:?}"
        );
    }
}

#[test]
fn answers_say_close_in_lower_case() {
    let mut out = Vec::new();
    write_answer_head(&mut out, 405, 2, false, false);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: application/json\r\nAllow: POST\r\n\
         Content-Length: 2\r\nConnection: close\r\n\r\n"
    );
}

#[test]
fn answers_say_that_they_are_compressed() {
    let mut out = Vec::new();
    write_answer_head(&mut out, 200, 65_536, true, true);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\
         Content-Length: 65536\r\nConnection: keep-alive\r\n\r\n"
    );
}

proptest! {
    #[test]
    fn any_split_of_a_head_gives_the_same_result(
        path in "/[a-z/?=]{0,40}",
        fields in prop::collection::vec(("[A-Za-z-]{1,16}", "[ -~]{0,40}"), 0..8),
        body in "[ -~\r\n]{0,40}",
        step in 1_usize..40,
    ) {
        let mut text = format!("POST {path} HTTP/1.1\r\n");
        for (name, value) in &fields {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("\r\n{body}");
        let whole = parse(&text);
        let mut scanned = 0;
        let mut seen = Ok(None);
        for end in (step..text.len()).step_by(step).chain([text.len()]) {
            seen = parse_head(&text.as_bytes()[..end], "", &mut scanned);
            if seen != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(seen, whole);
    }

    #[test]
    fn any_split_of_a_chunked_body_gives_the_same_content(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..6),
        rest in prop::collection::vec(any::<u8>(), 0..9),
        step in 1_usize..50,
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        let body_bytes = wire.len();
        wire.extend_from_slice(&rest);
        let (mut buffer, mut chunked, mut is_done, mut fed) = (Vec::new(), Chunked::new(0), false, 0);
        for piece in wire.chunks(step) {
            buffer.extend_from_slice(piece);
            fed += piece.len();
            is_done = chunked.decode(&mut buffer).unwrap();
            prop_assert_eq!(is_done, fed >= body_bytes);
            if is_done {
                break;
            }
        }
        prop_assert!(is_done);
        prop_assert_eq!(&buffer[..chunked.end()], chunks.concat());
        prop_assert_eq!(&buffer[chunked.end()..], &wire[body_bytes..fed]);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_head(&bytes, "/x", &mut 0);
        let mut head = b"POST /api/osquery/log HTTP/1.1\r\n".to_vec();
        head.extend_from_slice(&bytes);
        head.extend_from_slice(b"\r\n\r\n");
        let _ = parse_head(&head, "", &mut 0);
        let _ = Chunked::new(bytes.len() / 2).decode(&mut bytes.clone());
    }
}
