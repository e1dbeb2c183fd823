//! The WebSocket on which the server tells how a campaign goes.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::Request;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::client::{Client, refusal};
use super::dial::Stream;
use super::{API, Failure};

/// Bytes of the rows of one host.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// For the handshake, and for the last words.
const STEP_LIMIT: Duration = Duration::from_secs(15);

/// One connection that shows one campaign.
pub(super) struct Viewer {
    socket: WebSocketStream<Stream>,
}

impl Viewer {
    pub(super) async fn open(client: &Client, campaign: u64) -> Result<Self, Failure> {
        let stream = client.dial().await?;
        let opening = async {
            let request = request(client)?;
            let limits = WebSocketConfig::default()
                .max_message_size(Some(MESSAGE_BYTES_MAX))
                .max_frame_size(Some(MESSAGE_BYTES_MAX));
            let opened = client_async_with_config(request, stream, Some(limits)).await;
            let (socket, _) = opened.map_err(|error| refused(client, error))?;
            let mut viewer = Self { socket };
            let token = client.token().reveal();
            viewer
                .send(&json!({"type": "auth", "data": {"token": token}}))
                .await?;
            viewer
                .send(&json!({"type": "select_campaign", "data": {"campaign_id": campaign}}))
                .await?;
            Ok(viewer)
        };
        let late = || Failure::Unavailable("the server did not open the stream of results".into());
        timeout(STEP_LIMIT, opening)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// The next message; empty for one that only shows that the connection lives.
    pub(super) async fn next(&mut self) -> Result<String, Failure> {
        match self.socket.next().await {
            Some(Ok(Message::Text(text))) => Ok(text.as_str().to_owned()),
            Some(Ok(Message::Close(_))) | None => Err(Failure::Unavailable(
                "the server closed the stream of results".into(),
            )),
            Some(Ok(_)) => Ok(String::new()),
            Some(Err(error)) => Err(broken(&error)),
        }
    }

    /// Has the server answer, so that a dead connection is noticed and a living one is not taken for idle.
    pub(super) async fn ping(&mut self) -> Result<(), Failure> {
        let sent = timeout(
            STEP_LIMIT,
            self.socket.send(Message::Ping(Vec::new().into())),
        )
        .await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => Err(Failure::Unavailable("the server does not read".into())),
        }
    }

    /// Says goodbye, so that the server need not wait for us.
    pub(super) async fn close(mut self) {
        let _ = timeout(STEP_LIMIT, self.socket.close(None)).await;
    }

    async fn send(&mut self, message: &Value) -> Result<(), Failure> {
        let sent = self.socket.send(Message::text(message.to_string())).await;
        sent.map_err(|error| broken(&error))
    }
}

fn request(client: &Client) -> Result<Request<()>, Failure> {
    let host = client.headers().get(hyper::header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut request = Request::builder()
        .uri(format!(
            "ws://{host}{}{API}/results/websocket",
            client.prefix()
        ))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, generate_key())
        .body(())
        .map_err(|error| Failure::Usage(error.to_string()))?;
    for (name, value) in client.headers() {
        request.headers_mut().insert(name, value.clone());
    }
    Ok(request)
}

fn refused(client: &Client, error: Error) -> Failure {
    let Error::Http(response) = error else {
        return broken(&error);
    };
    let status = response.status();
    if status == hyper::StatusCode::UNAUTHORIZED && client.network().is_some() {
        return client.signed_out();
    }
    let body = response.body().as_deref().unwrap_or_default();
    refusal(status, &serde_json::from_slice(body).unwrap_or_default())
}

fn broken(error: &Error) -> Failure {
    Failure::Unavailable(format!("the stream of results broke: {error}"))
}
