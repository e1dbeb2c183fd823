//! HKDF for TLS 1.3 that keeps what it can use again.
//!
//! A handshake expands some twenty secrets from a handful of keys. rustls' own HKDF over AWS-LC extracts anew for every
//! expansion and hashes each key anew; here a key is hashed once and each expansion starts from a copy of that state, so
//! that a handshake needs about half of the SHA-2 blocks. It stands on rustls' documented extension point,
//! [`rustls::crypto::tls13::Hkdf`]; all arithmetic is AWS-LC's HMAC.

use std::sync::{LazyLock, OnceLock};

use aws_lc_rs::hmac;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

/// Bytes of the longest hash in use.
const HASH_BYTES_MAX: usize = 48;
/// RFC 5869: an expansion has at most this many blocks.
const BLOCKS_MAX: usize = 255;

/// RFC 5869 over one hash.
struct HmacKdf {
    algorithm: hmac::Algorithm,
    /// What is extracted from nothing at all: where every handshake without a pre-shared key begins.
    of_nothing: OnceLock<hmac::Key>,
}

static SHA256: HmacKdf = HmacKdf::new(hmac::HMAC_SHA256);
static SHA384: HmacKdf = HmacKdf::new(hmac::HMAC_SHA384);

/// rustls' TLS 1.3 suites in their order of preference here, with this key schedule. SHA-256 first: it has instructions of
/// its own on most processors, SHA-384 has not.
static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let wanted = [
        (TLS13_AES_128_GCM_SHA256, &SHA256),
        (TLS13_AES_256_GCM_SHA384, &SHA384),
        (TLS13_CHACHA20_POLY1305_SHA256, &SHA256),
    ];
    wanted
        .into_iter()
        .filter_map(|(suite, kdf)| Some(with_key_schedule(suite.tls13()?, kdf)))
        .collect()
});

/// See [`SUITES`].
pub(crate) fn suites() -> impl Iterator<Item = SupportedCipherSuite> {
    SUITES.iter().map(SupportedCipherSuite::Tls13)
}

fn with_key_schedule(suite: &Tls13CipherSuite, kdf: &'static HmacKdf) -> Tls13CipherSuite {
    debug_assert!(suite.common.hash_provider.output_len() <= HASH_BYTES_MAX);
    Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        },
        hkdf_provider: kdf,
        aead_alg: suite.aead_alg,
        quic: suite.quic,
    }
}

impl HmacKdf {
    const fn new(algorithm: hmac::Algorithm) -> Self {
        Self {
            algorithm,
            of_nothing: OnceLock::new(),
        }
    }

    fn extract(&self, salt: Option<&[u8]>, secret: &[u8]) -> hmac::Key {
        let zeros = [0; HASH_BYTES_MAX];
        let salt = salt.unwrap_or_else(|| self.zeros(&zeros));
        let prk = hmac::sign(&hmac::Key::new(self.algorithm, salt), secret);
        hmac::Key::new(self.algorithm, prk.as_ref())
    }

    fn zeros<'a>(&self, zeros: &'a [u8; HASH_BYTES_MAX]) -> &'a [u8] {
        zeros.get(..self.algorithm.tag_len()).unwrap_or(zeros)
    }
}

impl Hkdf for HmacKdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        let zeros = [0; HASH_BYTES_MAX];
        let key = match salt {
            Some(_) => self.extract(salt, self.zeros(&zeros)),
            None => {
                let make = || self.extract(None, self.zeros(&zeros));
                self.of_nothing.get_or_init(make).clone()
            }
        };
        Box::new(Expander(key))
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        Box::new(Expander(self.extract(salt, secret)))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Expander(hmac::Key::new(self.algorithm, okm.as_ref())))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        let key = hmac::Key::new(self.algorithm, key.as_ref());
        Tag::new(hmac::sign(&key, message).as_ref())
    }
}

/// A pseudorandom key, hashed already.
struct Expander(hmac::Key);

impl Expander {
    /// T(n) of RFC 5869, from T(n-1).
    fn block(&self, previous: &[u8], info: &[&[u8]], number: u8) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(previous);
        for part in info {
            context.update(part);
        }
        context.update(&[number]);
        context.sign()
    }
}

impl HkdfExpander for Expander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        let block_bytes = self.hash_len();
        if output.len() > BLOCKS_MAX * block_bytes {
            return Err(OutputLengthError);
        }
        let mut previous: Option<hmac::Tag> = None;
        for (chunk, number) in output.chunks_mut(block_bytes).zip(1..=u8::MAX) {
            let before = previous.as_ref().map_or(&[][..], AsRef::as_ref);
            let block = self.block(before, info, number);
            let bytes = block.as_ref().get(..chunk.len());
            chunk.copy_from_slice(bytes.ok_or(OutputLengthError)?);
            previous = Some(block);
        }
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        OkmBlock::new(self.block(&[], info, 1).as_ref())
    }

    fn hash_len(&self) -> usize {
        self.0.algorithm().tag_len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(expander: &dyn HkdfExpander, info: &[&[u8]], bytes: usize) -> Vec<u8> {
        let mut output = vec![0; bytes];
        expander.expand_slice(info, &mut output).unwrap();
        output
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// RFC 5869, appendix A.1 and A.3.
    #[test]
    fn test_vectors() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let key = SHA256.extract_from_secret(Some(&salt), &[0x0b; 22]);
        assert_eq!(
            expanded(key.as_ref(), &[&info[..4], &info[4..]], 42),
            hex(concat!(
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c",
                "5db02d56ecc4c5bf34007208d5b887185865"
            ))
        );
        let key = SHA256.extract_from_secret(None, &[0x0b; 22]);
        assert_eq!(
            expanded(key.as_ref(), &[], 42),
            hex(concat!(
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879e",
                "c3454e5f3c738d2d9d201395faa4b61a96c8"
            ))
        );
    }

    #[test]
    fn an_expansion_has_its_bound() {
        let key = SHA384.extract_from_zero_ikm(None);
        let mut output = vec![0; 255 * 48 + 1];
        assert!(key.expand_slice(&[], &mut output).is_err());
        assert!(key.expand_slice(&[], &mut output[1..]).is_ok());
    }

    proptest! {
        /// Whatever rustls' own schedule makes, this one makes, in every suite.
        #[test]
        fn agrees_with_rustls(
            salt in prop::option::of(prop::collection::vec(any::<u8>(), 0..64)),
            secret in prop::collection::vec(any::<u8>(), 1..64),
            info in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4),
            bytes in 0_usize..200,
        ) {
            let info: Vec<&[u8]> = info.iter().map(Vec::as_slice).collect();
            let theirs = [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
            for (ours, theirs) in suites().zip(theirs) {
                prop_assert_eq!(ours.suite(), theirs.suite());
                let (ours, theirs) = (ours.tls13().unwrap().hkdf_provider, theirs.tls13().unwrap().hkdf_provider);
                let salt = salt.as_deref();
                let pairs = [
                    (ours.extract_from_secret(salt, &secret), theirs.extract_from_secret(salt, &secret)),
                    (ours.extract_from_zero_ikm(salt), theirs.extract_from_zero_ikm(salt)),
                    (ours.extract_from_zero_ikm(None), theirs.extract_from_zero_ikm(None)),
                ];
                for (mine, other) in pairs {
                    prop_assert_eq!(expanded(mine.as_ref(), &info, bytes), expanded(other.as_ref(), &info, bytes));
                    let block = mine.expand_block(&info);
                    let again = other.expand_block(&info);
                    prop_assert_eq!(block.as_ref(), again.as_ref());
                    let (mine, other) = (ours.expander_for_okm(&block), theirs.expander_for_okm(&block));
                    prop_assert_eq!(expanded(mine.as_ref(), &info, bytes), expanded(other.as_ref(), &info, bytes));
                    let (mine, other) = (ours.hmac_sign(&block, &secret), theirs.hmac_sign(&block, &secret));
                    prop_assert_eq!(mine.as_ref(), other.as_ref());
                }
            }
        }
    }
}
