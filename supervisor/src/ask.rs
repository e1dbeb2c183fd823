//! The other end of `run/admin.sock`: what `status` and `stop` ask a running server.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use fleet_protocol::admin::{Reply, Request};
use fleet_protocol::frame::{self, Decoder};

use crate::exit::Failure;
use crate::state_dir::run_path;

/// The loop answers at once or hangs.
const REPLY_LIMIT: Duration = Duration::from_secs(5);

/// Asks, and gives the reply with the connection that it came on.
pub(crate) fn ask(state_dir: &Path, request: &Request) -> Result<(Reply, UnixStream), Failure> {
    ask_within(state_dir, request, REPLY_LIMIT, |_| {})
}

/// Asks something that takes time: waits at most `limit` for each line of progress, which goes to `report`, and for the
/// reply.
pub(crate) fn ask_within(
    state_dir: &Path,
    request: &Request,
    limit: Duration,
    report: impl FnMut(&str),
) -> Result<(Reply, UnixStream), Failure> {
    let path = run_path(state_dir, "admin.sock");
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::unavailable(format!(
                "no server runs on {}; start it with: fleet-supervisor start",
                state_dir.display()
            ))
        }
        io::ErrorKind::PermissionDenied => Failure::unavailable(format!(
            "the server on {} belongs to another user",
            state_dir.display()
        )),
        _ => Failure::unavailable(format!(
            "cannot reach the server at {}: {error}",
            path.display()
        )),
    })?;
    let reply = exchange(&mut stream, request, limit, report).map_err(|error| {
        Failure::unavailable(format!(
            "the server on {} does not answer: {error}",
            state_dir.display()
        ))
    })?;
    if let Reply::Error { reason, code } = reply {
        return Err(Failure::told(reason, code));
    }
    Ok((reply, stream))
}

fn exchange(
    stream: &mut UnixStream,
    request: &Request,
    limit: Duration,
    mut report: impl FnMut(&str),
) -> anyhow::Result<Reply> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(REPLY_LIMIT))?;
    let mut out = BytesMut::new();
    frame::encode(request, &mut out)?;
    stream.write_all(&out)?;
    let (mut decoder, mut input, mut chunk) =
        (Decoder::default(), BytesMut::new(), vec![0; 64 << 10]);
    loop {
        match decoder.decode(&mut input)? {
            Some(Reply::Progress(line)) => {
                report(&line);
                continue;
            }
            Some(reply) => return Ok(reply),
            None => {}
        }
        let bytes = stream.read(&mut chunk)?;
        if bytes == 0 {
            anyhow::bail!("it closed the connection");
        }
        input.extend_from_slice(chunk.get(..bytes).unwrap_or_default());
    }
}
