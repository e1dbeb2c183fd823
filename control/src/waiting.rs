//! Answers on the operator sockets while the store is away at start: `/healthz` is 500, everything else 503.
//!
//! Load balancers and `status` must see a gateway that waits for its database, not one that hangs.

use std::time::Duration;

use fleet_protocol::limits::{HEAD_BYTES_MAX, HELLO_DEADLINE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const UNHEALTHY: &str =
    "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const MESSAGE: &str = r#"{"message":"starting: the store does not answer"}"#;

/// Serves both sockets until dropped.
pub(crate) async fn serve(tunnels: &UnixListener, operators: &UnixListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = tunnels.accept() => accepted,
            accepted = operators.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(answer(stream));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: UnixStream) {
    let mut head = Vec::with_capacity(1024);
    let whole = async {
        while head.len() < HEAD_BYTES_MAX && !contains(&head, b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    if !matches!(timeout(HELLO_DEADLINE, whole).await, Ok(Ok(()))) {
        return;
    }
    // A tunnel begins with a PROXY header; its binary bytes cannot look like this.
    let text = if contains(&head, b"/healthz") {
        UNHEALTHY.to_owned()
    } else {
        unavailable()
    };
    // The peer may be gone.
    let _ = timeout(HELLO_DEADLINE, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    })
    .await;
}

fn unavailable() -> String {
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{MESSAGE}",
        MESSAGE.len()
    )
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(path: &std::path::Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_is_500_and_the_rest_503() {
        let directory = tempfile::TempDir::new().unwrap();
        let (tunnel, operator) = (directory.path().join("t"), directory.path().join("o"));
        let tunnels = UnixListener::bind(&tunnel).unwrap();
        let operators = UnixListener::bind(&operator).unwrap();
        let asks = async {
            let health = ask(&operator, b"GET /healthz?check=mysql HTTP/1.1\r\n\r\n").await;
            assert!(health.starts_with("HTTP/1.1 500 "), "{health}");
            let other = ask(&tunnel, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(other.starts_with("HTTP/1.1 503 "), "{other}");
            let (head, body) = other.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())));
        };
        tokio::select! {
            () = serve(&tunnels, &operators) => {}
            () = asks => {}
        }
    }
}
