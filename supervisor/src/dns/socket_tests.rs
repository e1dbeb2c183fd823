use std::io;
use std::net::Ipv4Addr;
use std::time::Instant;

use fleet_protocol::config::Dns;
use hickory_server::proto::op::{Message, MessageType, OpCode, Query};
use hickory_server::proto::rr::{Name, RecordType};
use tokio::net::TcpSocket;

use super::order::tests::view;
use super::*;

fn question() -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("fleet.example.com.").unwrap();
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().unwrap()
}

fn zone() -> Arc<Zone> {
    let dns = Dns {
        name: "fleet.example.com".into(),
        ..Dns::default()
    };
    Arc::new(Zone::new(&dns).unwrap())
}

fn gateway() -> watch::Receiver<Arc<Gateway>> {
    let gateway = Gateway {
        addresses: vec![view(([192, 0, 2, 1], 8080).into(), 0)],
        ..Gateway::default()
    };
    watch::channel(Arc::new(gateway)).1
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), work).await.unwrap()
}

#[tokio::test]
async fn packets_are_answered_whatever_came_before_them() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(serve_udp(socket, zone(), gateway()));
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(address).await.unwrap();
    client.send(&[0xff; 1000]).await.unwrap();
    client.send(&[]).await.unwrap();
    client.send(&question()).await.unwrap();
    let mut answer = [0; 512];
    let bytes = within(client.recv(&mut answer)).await.unwrap();
    let answer = Message::from_vec(&answer[..bytes]).unwrap();
    assert_eq!((answer.metadata.id, answer.answers.len()), (7, 1));
}

/// A connection from 127.0.0.`last`.
async fn connect(last: u8, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

/// How many addresses the answer has.
async fn ask(stream: &mut TcpStream) -> io::Result<usize> {
    let question = question();
    let mut framed = u16::try_from(question.len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    framed.extend_from_slice(&question);
    stream.write_all(&framed).await?;
    let bytes = within(stream.read_u16()).await?;
    let mut answer = vec![0; bytes.into()];
    within(stream.read_exact(&mut answer)).await?;
    Ok(Message::from_vec(&answer).unwrap().answers.len())
}

async fn listening() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_tcp(listener, zone(), gateway()));
    address
}

#[tokio::test]
async fn connections_are_bounded_and_give_way() {
    let address = listening().await;
    // They take every place and say nothing.
    let mut idle = Vec::new();
    for source in 2.. {
        if idle.len() == CONNECTIONS_MAX {
            break;
        }
        for _ in 0..CONNECTIONS_PER_SOURCE_MAX {
            idle.push(connect(source, address).await);
        }
    }
    let mut client = connect(1, address).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut client).await.unwrap(), 1);
    }
    for mut stream in idle {
        assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0);
    }
    // Longer than a question can be.
    client.write_u16(u16::MAX).await.unwrap();
    assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn one_source_leaves_places_for_others() {
    let address = listening().await;
    let mut own = Vec::new();
    for _ in 0..CONNECTIONS_PER_SOURCE_MAX {
        let mut stream = connect(2, address).await;
        assert_eq!(ask(&mut stream).await.unwrap(), 1);
        own.push(stream);
    }
    let started = Instant::now();
    assert!(ask(&mut connect(2, address).await).await.is_err());
    // Not those who were there.
    assert_eq!(ask(own.last_mut().unwrap()).await.unwrap(), 1);
    assert_eq!(ask(&mut connect(3, address).await).await.unwrap(), 1);
    // A place that is given back is there for the next, as soon as the end is seen.
    own.pop();
    let mut found = Err(io::ErrorKind::NotFound.into());
    for _ in 0..50 {
        found = ask(&mut connect(2, address).await).await;
        if found.is_ok() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(found.unwrap(), 1);
    // None of this waited for another connection to be idle too long.
    assert!(started.elapsed() < IDLE_MAX, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_busy_connection_ends_too() {
    let mut client = connect(1, listening().await).await;
    let started = Instant::now();
    let mut asked = 0;
    while asked < 60 && ask(&mut client).await.is_ok() {
        asked += 1;
        sleep(Duration::from_millis(500)).await;
    }
    let took = started.elapsed();
    assert!(
        took > IDLE_MAX && took < 2 * CONNECTION_SPAN_MAX,
        "{took:?}"
    );
    assert!(asked < QUESTIONS_MAX.min(60), "{asked}");
}

#[test]
fn a_network_of_one_host_is_one_source() {
    let of = |text: &str| source(text.parse().unwrap()).to_string();
    assert_eq!(of("192.0.2.1"), "192.0.2.1");
    assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    assert_eq!(of("2001:db8:1:2:ffff::"), "2001:db8:1:2::");
    assert_ne!(of("2001:db8:1:3::"), of("2001:db8:1:2::"));
}

#[test]
fn what_cannot_be_opened_is_said() {
    let named = |listen: &[&str]| Dns {
        name: "fleet.example.com".into(),
        listen: listen.iter().map(|text| (*text).to_owned()).collect(),
        ..Dns::default()
    };
    let served: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    assert!(
        open(&Dns::default(), &[served], &mut Inheritance::default())
            .unwrap()
            .is_none()
    );
    // Nobody has this address.
    let failure = open(
        &named(&["203.0.113.1:5353"]),
        &[served],
        &mut Inheritance::default(),
    )
    .unwrap_err();
    assert!(
        failure.to_string().contains("addresses.dns.listen"),
        "{failure}"
    );
    let taken = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failure = open(&named(&[&address]), &[served], &mut Inheritance::default()).unwrap_err();
    let text = failure.to_string();
    assert!(text.contains(&address), "{text}");
    assert!(text.contains("taken by"), "{text}");
}

#[test]
fn without_a_word_it_listens_where_agents_connect() {
    let addresses = [
        "127.0.0.1:8080",
        "127.0.0.1:8081",
        "[::1]:8080",
        "0.0.0.0:8080",
    ]
    .map(|text| text.parse().unwrap());
    let found = listen_addresses(&Dns::default(), &addresses).unwrap();
    let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["127.0.0.1:53", "[::1]:53"]);
}
