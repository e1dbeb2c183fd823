//! One X25519 key share for every handshake of this process, for generators that have no CPU to spare.
//!
//! osquery makes a new key for each connection. A server cannot tell and does the same work; the generator saves the
//! making of the key, about a twelfth of its CPU. Nothing that needs to stay secret may go over such a connection.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::agreement::{PrivateKey, PublicKey, UnparsedPublicKey, X25519, agree};
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The group, for [`rustls::crypto::CryptoProvider::kx_groups`].
#[derive(Debug)]
pub(crate) struct OneKeyShare;

struct Pair {
    private: PrivateKey,
    public: PublicKey,
}

/// Made at the first handshake.
static PAIR: OnceLock<Arc<Pair>> = OnceLock::new();

fn pair() -> Result<Arc<Pair>, Error> {
    if let Some(pair) = PAIR.get() {
        return Ok(pair.clone());
    }
    let failed = |_| Error::General("cannot make a key".to_owned());
    let private = PrivateKey::generate(&X25519).map_err(failed)?;
    let public = private.compute_public_key().map_err(failed)?;
    Ok(PAIR
        .get_or_init(|| Arc::new(Pair { private, public }))
        .clone())
}

impl SupportedKxGroup for OneKeyShare {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Exchange(pair()?)))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Exchange(Arc<Pair>);

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer = UnparsedPublicKey::new(&X25519, peer);
        let refused = Error::from(PeerMisbehaved::InvalidKeyShare);
        agree(&self.0.private, peer, refused, |secret| {
            Ok(SharedSecret::from(secret))
        })
    }

    fn pub_key(&self) -> &[u8] {
        self.0.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::kx_group;

    use super::*;

    #[test]
    fn both_sides_agree_each_time() {
        let mut shares = Vec::new();
        for _ in 0..2 {
            let ours = OneKeyShare.start().unwrap();
            let theirs = kx_group::X25519.start().unwrap();
            shares.push(ours.pub_key().to_vec());
            let their_share = theirs.pub_key().to_vec();
            let secret = theirs.complete(ours.pub_key()).unwrap();
            let ours = ours.complete(&their_share).unwrap();
            assert_eq!(ours.secret_bytes(), secret.secret_bytes());
        }
        assert_eq!(shares[0], shares[1]);
        assert!(OneKeyShare.start().unwrap().complete(&[1; 3]).is_err());
    }
}
