//! A worker whose connections are ready all the time still hears control.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as BlockingStream;

use super::*;
use crate::fake_control::{FakeControl, PATIENCE};
use crate::state::test_state;

/// Counts how many tasks have their turn between a ping and its answer.
struct Observer {
    socket: BlockingStream,
    decoder: Decoder,
    input: BytesMut,
    ping: u64,
    polls: usize,
    /// Of each answered ping.
    answered: Vec<usize>,
}

impl Observer {
    fn ping(&mut self) {
        self.ping += 1;
        self.polls = 0;
        let mut out = BytesMut::new();
        frame::encode(&FromControl::Ping(self.ping), &mut out).unwrap();
        self.socket.write_all(&out).unwrap();
    }

    /// One turn of one task.
    fn look(&mut self) {
        self.polls += 1;
        let mut chunk = [0; 4096];
        match self.socket.read(&mut chunk) {
            Ok(0) => panic!("the link was cut"),
            Ok(count) => self.input.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        while let Some(message) = self.decoder.decode::<FromWorker>(&mut self.input).unwrap() {
            if message == FromWorker::Pong(self.ping) {
                self.answered.push(self.polls);
                self.ping();
            }
        }
    }
}

#[test]
fn a_storm_of_ready_tasks_does_not_starve_the_link() {
    const TASKS: usize = 3000;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    let control = runtime.block_on(async { FakeControl::listen() });
    let state = test_state(control.path());
    let lost = Notify::new();
    runtime.block_on(beside(state, &lost, async {
        let link = control.link().await;
        let observer = Rc::new(RefCell::new(Observer {
            socket: link.into_std(),
            decoder: Decoder::default(),
            input: BytesMut::new(),
            ping: 0,
            polls: 0,
            answered: Vec::new(),
        }));
        observer.borrow_mut().ping();
        for _ in 0..TASKS {
            let observer = Rc::clone(&observer);
            // Always ready, as a connection whose peer never lets up.
            tokio::task::spawn_local(async move {
                loop {
                    observer.borrow_mut().look();
                    tokio::task::yield_now().await;
                }
            });
        }
        let begin = Instant::now();
        while observer.borrow().answered.len() < 20 {
            assert!(begin.elapsed() < PATIENCE, "pings are not answered");
            sleep(Duration::from_millis(2)).await;
        }
        // A task would wait behind all others, at least once.
        let mut polls = observer.borrow().answered.clone();
        polls.sort_unstable();
        assert!(polls[polls.len() / 2] < TASKS / 4, "{polls:?}");
    }));
}
