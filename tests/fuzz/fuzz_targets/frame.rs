//! What a process on a local socket sends: any bytes, whole and in pieces, read as each message that others send.

#![no_main]

use bytes::BytesMut;
use fleet_protocol::frame::{self, Decoder, FRAME_BODY_BYTES_MAX, Message};
use fleet_protocol::hello::{Hello, HelloReply};
use fleet_protocol::link::{FromControl, FromWorker};
use fleet_protocol::slot::{FromChild, ToChild};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((step, rest)) = input.split_first() else {
        return;
    };
    let step = usize::from(*step).max(1);
    check::<Hello>(rest, step);
    check::<HelloReply>(rest, step);
    check::<FromWorker>(rest, step);
    check::<FromControl>(rest, step);
    check::<ToChild>(rest, step);
    check::<FromChild>(rest, step);
});

fn check<M: Message + PartialEq + std::fmt::Debug>(input: &[u8], step: usize) {
    compare::<M>(input, step);
    // Most of what a fuzzer makes does not begin like a frame of the right kind.
    compare::<M>(&framed::<M>(input), step);
}

/// However the bytes come in, the same messages are read and the same error ends them.
fn compare<M: Message + PartialEq + std::fmt::Debug>(input: &[u8], step: usize) {
    let whole = read::<M>(input, input.len().max(1));
    assert_eq!(whole, read::<M>(input, step));
    for message in whole.0 {
        let mut again = BytesMut::new();
        frame::encode(&message, &mut again).expect("what was read can be sent");
        assert_eq!(read::<M>(&again, step).0, [message]);
    }
}

fn read<M: Message>(input: &[u8], step: usize) -> (Vec<M>, Option<frame::Error>) {
    let (mut decoder, mut buffer, mut messages) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in input.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        // A frame that is not there yet costs no more than its own bound.
        assert!(buffer.capacity() <= 2 * FRAME_BODY_BYTES_MAX + input.len());
    }
    (messages, None)
}

fn framed<M: Message>(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short");
    let header = [&b"FLTG"[..], &frame::VERSION.to_be_bytes(), &[M::KIND as u8, 0]];
    [&header.concat(), &length.to_be_bytes()[..], body].concat()
}
