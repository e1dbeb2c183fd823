//! A raw ClientHello as osquery's OpenSSL writes it, for the two things that rustls as a client cannot send: an IP
//! address as server name, and a key share for X25519MLKEM768 beside X25519, which makes the hello as large as a segment.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What the hello offers.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// Sent as it is, also an IP literal; `None` sends no such extension.
    pub server_name: Option<String>,
    /// Offer the hybrid group with a share, as OpenSSL 3.5 and newer.
    pub has_hybrid_share: bool,
}

/// How the server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It goes on with the handshake.
    ServerHello,
    /// It refuses, with this alert description.
    Alert(u8),
    /// It closed the connection, or sent something that is not TLS.
    Closed,
}

/// Sends the hello and reads the first record of the answer.
pub async fn probe(address: SocketAddr, hello: &Hello) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&hello.bytes()).await?;
    let mut record = [0; 7];
    if let Err(error) = stream.read_exact(&mut record).await {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Ok(Answer::Closed),
            _ => Err(error),
        };
    }
    Ok(match record {
        [22, _, _, _, _, 2, _] => Answer::ServerHello,
        [21, _, _, _, _, _, description] => Answer::Alert(description),
        _ => Answer::Closed,
    })
}

const X25519: u16 = 0x001d;
const P256: u16 = 0x0017;
const X25519_MLKEM768: u16 = 0x11ec;
/// ML-KEM-768 encapsulation key and X25519 key.
const HYBRID_SHARE_BYTES: usize = 1184 + 32;

impl Hello {
    /// The record.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend(random(32));
        push_sized::<1>(&mut body, &random(32));
        let suites: [u16; 7] = [0x1302, 0x1303, 0x1301, 0xc02c, 0xc030, 0xc02b, 0xc02f];
        push_sized::<2>(&mut body, &numbers(&suites));
        push_sized::<1>(&mut body, &[0]);
        push_sized::<2>(&mut body, &self.extensions());

        let mut message = vec![1];
        push_sized::<3>(&mut message, &body);
        let mut record = vec![22, 3, 1];
        push_sized::<2>(&mut record, &message);
        record
    }

    fn extensions(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(name) = &self.server_name {
            let mut entry = vec![0];
            push_sized::<2>(&mut entry, name.as_bytes());
            let mut list = Vec::new();
            push_sized::<2>(&mut list, &entry);
            push_extension(&mut extensions, 0, &list);
        }
        push_extension(&mut extensions, 11, &[1, 0]);
        // Session ticket, encrypt-then-MAC and extended master secret: offered by OpenSSL for TLS 1.2.
        for empty in [35, 22, 23] {
            push_extension(&mut extensions, empty, &[]);
        }
        let mut groups = vec![X25519, P256];
        if self.has_hybrid_share {
            groups.insert(0, X25519_MLKEM768);
        }
        push_extension(&mut extensions, 10, &list_of(&groups));
        let schemes = [
            0x0403, 0x0503, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601,
        ];
        push_extension(&mut extensions, 13, &list_of(&schemes));
        push_extension(&mut extensions, 43, &[4, 3, 4, 3, 3]);
        push_extension(&mut extensions, 45, &[1, 1]);

        let mut shares = Vec::new();
        if self.has_hybrid_share {
            shares.extend(X25519_MLKEM768.to_be_bytes());
            push_sized::<2>(&mut shares, &random(HYBRID_SHARE_BYTES));
        }
        shares.extend(X25519.to_be_bytes());
        // Any 32 bytes are a public key of this group.
        push_sized::<2>(&mut shares, &random(32));
        let mut list = Vec::new();
        push_sized::<2>(&mut list, &shares);
        push_extension(&mut extensions, 51, &list);
        extensions
    }
}

fn push_extension(extensions: &mut Vec<u8>, number: u16, content: &[u8]) {
    extensions.extend(number.to_be_bytes());
    push_sized::<2>(extensions, content);
}

fn list_of(values: &[u16]) -> Vec<u8> {
    let mut list = Vec::new();
    push_sized::<2>(&mut list, &numbers(values));
    list
}

fn numbers(values: &[u16]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

/// The length in `N` bytes, then the content.
fn push_sized<const N: usize>(output: &mut Vec<u8>, content: &[u8]) {
    let length = content.len().to_be_bytes();
    output.extend(length.iter().skip(length.len() - N));
    output.extend(content);
}

fn random(count: usize) -> Vec<u8> {
    (0..count).map(|_| fastrand::u8(..)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_add_up() {
        for has_hybrid_share in [false, true] {
            let hello = Hello {
                server_name: Some("192.0.2.7".into()),
                has_hybrid_share,
            };
            let bytes = hello.bytes();
            let record = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            assert_eq!(bytes.len(), record + 5);
            assert_eq!(bytes[5], 1);
            assert_eq!(bytes.len() > 1400, has_hybrid_share);
        }
    }
}
