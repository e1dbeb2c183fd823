use super::*;

#[test]
fn memory_is_read() {
    assert!(resident_bytes() > 1 << 20);
}

#[tokio::test]
async fn the_end_of_the_channel_is_an_order_to_drain() {
    let (supervisor, child) = UnixStream::pair().unwrap();
    let (read, _write) = child.into_split();
    let orders = Orders {
        stream: read,
        input: BytesMut::new(),
        decoder: Decoder::default(),
    };
    let (gateway, gateways) = watch::channel(Gateway::default());
    let (drain, mut drains) = watch::channel(None);
    tokio::spawn(orders.obey(gateway, drain));
    let (_, mut to_child) = supervisor.into_split();
    let mut bytes = BytesMut::new();
    let latest = Gateway {
        control_restarts: 3,
        ..Gateway::default()
    };
    frame::encode(&ToChild::Gateway(Box::new(latest.clone())), &mut bytes).unwrap();
    to_child.write_all(&bytes).await.unwrap();
    let mut seen = gateways.clone();
    seen.wait_for(|gateway| *gateway == latest).await.unwrap();
    assert_eq!(*drains.borrow(), None);
    drop(to_child);
    let time = *drains.wait_for(Option::is_some).await.unwrap();
    assert_eq!(time, Some(DRAIN_DEADLINE));
}

#[tokio::test]
async fn an_order_to_drain_keeps_its_time() {
    let (supervisor, child) = UnixStream::pair().unwrap();
    let (read, _write) = child.into_split();
    let orders = Orders {
        stream: read,
        input: BytesMut::new(),
        decoder: Decoder::default(),
    };
    let (gateway, _gateways) = watch::channel(Gateway::default());
    let (drain, mut drains) = watch::channel(None);
    tokio::spawn(orders.obey(gateway, drain));
    let reporter = Reporter(Mutex::new(supervisor.into_split().1));
    let mut bytes = BytesMut::new();
    frame::encode(&ToChild::Drain { deadline_ms: 1500 }, &mut bytes).unwrap();
    reporter.0.lock().await.write_all(&bytes).await.unwrap();
    drains.wait_for(Option::is_some).await.unwrap();
    drop(reporter);
    tokio::task::yield_now().await;
    assert_eq!(*drains.borrow(), Some(Duration::from_millis(1500)));
}
