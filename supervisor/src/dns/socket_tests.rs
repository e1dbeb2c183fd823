use std::net::Ipv4Addr;

use fleet_protocol::config::Dns;
use hickory_server::proto::op::{Message, MessageType, OpCode, Query};
use hickory_server::proto::rr::{Name, RecordType};

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

#[tokio::test]
async fn connections_are_bounded_and_give_way() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_tcp(listener, zone(), gateway()));
    // They take every place and say nothing.
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    let question = question();
    let length = u16::try_from(question.len()).unwrap();
    for _ in 0..3 {
        client.write_u16(length).await.unwrap();
        client.write_all(&question).await.unwrap();
        let bytes = within(client.read_u16()).await.unwrap();
        let mut answer = vec![0; bytes.into()];
        within(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
    for mut stream in idle {
        assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0);
    }
    // Longer than a question can be.
    client.write_u16(u16::MAX).await.unwrap();
    assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
}

#[test]
fn what_cannot_be_opened_is_said() {
    let named = |listen: &[&str]| Dns {
        name: "fleet.example.com".into(),
        listen: listen.iter().map(|text| (*text).to_owned()).collect(),
        ..Dns::default()
    };
    let served: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    assert!(open(&Dns::default(), &[served]).unwrap().is_none());
    // Nobody has this address.
    let failure = open(&named(&["203.0.113.1:5353"]), &[served]).unwrap_err();
    assert!(
        failure.to_string().contains("addresses.dns.listen"),
        "{failure}"
    );
    let taken = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failure = open(&named(&[&address]), &[served]).unwrap_err();
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
