//! A way to a server on which packets come late, twice, and behind each other.
//!
//! One tunnel device and two addresses of one network: ours is the device's, theirs is nobody's. What this machine sends to
//! theirs comes out of the device; there the two addresses change places, which keeps every checksum true, and the packet
//! goes back in. So who connects to theirs reaches who listens on ours, sees theirs answer, and every packet of both
//! directions has been here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_tun::Tun;

/// Small, so that an exchange is more packets.
const MTU_BYTES: i32 = 600;
/// Packets under way.
const PACKETS_MAX: usize = 10_000;
const IPV4_HEADER_BYTES: usize = 20;
const SOURCE_AT: usize = 12;
const DESTINATION_AT: usize = 16;

/// What happens to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// Each is so late at least.
    pub delay: Duration,
    /// So many of them are later, by chance, up to this.
    pub late_percent: u8,
    pub late_max: Duration,
    /// So many come twice, each time on their own.
    pub twice_percent: u8,
}

impl Weather {
    /// They pass at once.
    pub const FAIR: Self = Self {
        delay: Duration::ZERO,
        late_percent: 0,
        late_max: Duration::ZERO,
        twice_percent: 0,
    };
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    /// Packets that passed after one that came later.
    pub overtaken: u64,
    /// Second copies.
    pub twice: u64,
    /// For want of room.
    pub dropped: u64,
    /// What is no IPv4 leads nowhere: an interface asks for IPv6 routers by itself.
    pub strays: u64,
}

/// The order in which packets go on. Pure but for its own generator.
#[derive(Debug)]
struct Order {
    weather: Weather,
    random: fastrand::Rng,
    /// By when they go on, and then as they came.
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    came: u64,
    /// The highest number that has passed.
    newest_passed: u64,
    counts: Counts,
}

impl Order {
    fn new(seed: u64) -> Self {
        Self {
            weather: Weather::FAIR,
            random: fastrand::Rng::with_seed(seed),
            waiting: BinaryHeap::new(),
            came: 0,
            newest_passed: 0,
            counts: Counts::default(),
        }
    }

    /// A packet came.
    fn add(&mut self, packet: Vec<u8>, now: Instant) {
        self.came += 1;
        if self.random.u8(0..100) < self.weather.twice_percent {
            self.counts.twice += 1;
            self.queue(packet.clone(), now);
        }
        self.queue(packet, now);
    }

    fn queue(&mut self, packet: Vec<u8>, now: Instant) {
        if self.waiting.len() >= PACKETS_MAX {
            self.counts.dropped += 1;
            return;
        }
        let mut late = self.weather.delay;
        if self.random.u8(0..100) < self.weather.late_percent {
            late += self.weather.late_max.mul_f64(self.random.f64());
        }
        self.waiting.push(Reverse((now + late, self.came, packet)));
    }

    /// A packet whose time has come.
    fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse((_, number, packet)) = self.waiting.pop()?;
        self.counts.passed += 1;
        self.counts.overtaken += u64::from(number < self.newest_passed);
        self.newest_passed = self.newest_passed.max(number);
        Some(packet)
    }

    fn next_at(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((at, ..))| *at)
    }
}

/// Exchanges source and destination; `false` for what has none.
fn turn_round(packet: &mut [u8]) -> bool {
    let is_ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    if !is_ipv4 || packet.len() < IPV4_HEADER_BYTES {
        return false;
    }
    let (before, from) = packet.split_at_mut(DESTINATION_AT);
    before[SOURCE_AT..].swap_with_slice(&mut from[..4]);
    true
}

/// Open while it lives, in the network namespace of who opened it.
#[derive(Debug)]
pub struct Detour {
    order: Arc<Mutex<Order>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Detour {
    /// Makes the device with address `ours`, and a way to `theirs` through it.
    ///
    /// # Errors
    /// Without the right to, or without tunnel devices.
    pub fn open(ours: Ipv4Addr, theirs: Ipv4Addr) -> io::Result<Self> {
        let seed = fastrand::u64(..);
        println!("seed of the detour: {seed}");
        let order = Arc::new(Mutex::new(Order::new(seed)));
        let (end, ended) = oneshot::channel();
        let (opened, is_open) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn({
            let order = Arc::clone(&order);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    match device(ours, theirs) {
                        Ok(tun) => {
                            opened.send(Ok(())).unwrap();
                            tokio::select! {
                                () = carry(&tun, &order) => {}
                                _ = ended => {}
                            }
                        }
                        Err(error) => opened.send(Err(error)).unwrap(),
                    }
                });
            }
        });
        is_open.recv().unwrap()?;
        Ok(Self {
            order,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Packets that come from now on.
    pub fn set(&self, weather: Weather) {
        lock(&self.order).weather = weather;
    }

    pub fn counts(&self) -> Counts {
        lock(&self.order).counts
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn device(ours: Ipv4Addr, theirs: Ipv4Addr) -> io::Result<Tun> {
    let built = Tun::builder()
        .name("detour")
        .mtu(MTU_BYTES)
        .address(ours)
        .destination(theirs)
        .up()
        .build();
    let mut devices = built.map_err(io::Error::other)?;
    devices.pop().ok_or(io::ErrorKind::NotFound.into())
}

async fn carry(tun: &Tun, order: &Mutex<Order>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let next_at = lock(order).next_at();
        let is_due = async {
            match next_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = tun.recv(&mut buffer) => {
                let packet = &mut buffer[..received.unwrap()];
                let mut order = lock(order);
                if turn_round(packet) {
                    order.add(packet.to_vec(), Instant::now());
                } else {
                    order.counts.strays += 1;
                }
            }
            () = is_due => {}
        }
        while let Some(packet) = { lock(order).next(Instant::now()) } {
            tun.send_all(&packet).await.unwrap();
        }
    }
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(order: &mut Order, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| order.next(now))
            .map(|packet| packet[0])
            .collect()
    }

    #[test]
    fn in_fair_weather_packets_pass_at_once_and_in_order() {
        let (mut order, now) = (Order::new(1), Instant::now());
        for number in 0..100 {
            order.add(vec![number], now);
        }
        assert_eq!(drain(&mut order, now), (0..100).collect::<Vec<u8>>());
        let passed = Counts {
            passed: 100,
            ..Counts::default()
        };
        assert_eq!(order.counts, passed);
    }

    #[test]
    fn in_bad_weather_all_pass_late_twice_and_behind_each_other() {
        let (mut order, now) = (Order::new(7), Instant::now());
        order.weather = Weather {
            delay: Duration::from_millis(5),
            late_percent: 20,
            late_max: Duration::from_millis(60),
            twice_percent: 10,
        };
        for number in 0..200 {
            order.add(vec![number], now);
        }
        assert!(drain(&mut order, now).is_empty());
        let mut packets = drain(&mut order, now + Duration::from_millis(5));
        assert!(packets.len() > 100, "{packets:?}");
        packets.extend(drain(&mut order, now + Duration::from_millis(65)));
        let counts = order.counts;
        assert!(counts.overtaken > 10 && counts.twice > 5, "{counts:?}");
        assert_eq!(counts.passed, 200 + counts.twice);
        packets.sort_unstable();
        packets.dedup();
        assert_eq!(packets, (0..200).collect::<Vec<u8>>());
        assert_eq!(counts.dropped, 0);
    }

    #[test]
    fn addresses_change_places_and_nothing_else() {
        let mut packet: Vec<u8> = (0x45..0x45 + 40).collect();
        let before = packet.clone();
        assert!(turn_round(&mut packet));
        assert_eq!(packet[12..16], before[16..20]);
        assert_eq!(packet[16..20], before[12..16]);
        assert_eq!(
            (&packet[..12], &packet[20..]),
            (&before[..12], &before[20..])
        );
        assert!(!turn_round(&mut [0x60; 40]), "IPv6");
        assert!(!turn_round(&mut [0x45; 19]));
    }
}
