//! Ready-made config bytes by their id. Shared, never copied.

use std::cell::OnceCell;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use fleet_protocol::ids::AnswerId;
use hashbrown::HashMap;

/// A config below this length fits into the segment that carries it anyway.
const GZIP_FROM_BYTES: usize = 1024;

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    /// Whether the bytes are compressed, which the answer's head must say.
    pub(crate) is_gzip: bool,
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            is_gzip: false,
        }
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Answers {
    configs: HashMap<AnswerId, Config>,
}

/// One config, and its compressed twin once an agent has asked for it; `None` where that would be no shorter.
struct Config {
    plain: Bytes,
    gzip: OnceCell<Option<Bytes>>,
}

impl Config {
    fn content(&self, accepts_gzip: bool) -> Content {
        if accepts_gzip && let Some(gzip) = self.gzip.get_or_init(|| compress(&self.plain)) {
            return Content {
                bytes: gzip.clone(),
                is_gzip: true,
            };
        }
        self.plain.clone().into()
    }
}

fn compress(plain: &[u8]) -> Option<Bytes> {
    if plain.len() < GZIP_FROM_BYTES {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).ok()?;
    let bytes = encoder.finish().ok()?;
    (bytes.len() < plain.len()).then(|| bytes.into())
}

impl Answers {
    pub(crate) fn len(&self) -> usize {
        self.configs.len()
    }

    pub(crate) fn get(&self, id: AnswerId, accepts_gzip: bool) -> Option<Content> {
        let config = self.configs.get(&id)?;
        Some(config.content(accepts_gzip))
    }

    /// Adds or replaces; exchanges that are being written keep the old bytes.
    pub(crate) fn insert(&mut self, id: AnswerId, plain: Bytes) {
        let gzip = OnceCell::new();
        self.configs.insert(id, Config { plain, gzip });
    }

    pub(crate) fn remove(&mut self, id: AnswerId) {
        self.configs.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn a_long_config_has_a_shorter_twin_that_is_made_once() {
        let mut answers = Answers::default();
        let config = Bytes::from(format!(r#"{{"a":"{}"}}"#, "x".repeat(2000)));
        answers.insert(AnswerId(1), config.clone());
        assert_eq!(answers.get(AnswerId(1), false), Some(config.clone().into()));
        let twin = answers.get(AnswerId(1), true).unwrap();
        assert!(twin.is_gzip && twin.bytes.len() < config.len());
        let mut inflated = Vec::new();
        GzDecoder::new(&twin.bytes[..])
            .read_to_end(&mut inflated)
            .unwrap();
        assert_eq!(inflated, config);
        let again = answers.get(AnswerId(1), true).unwrap();
        assert_eq!(again.bytes.as_ptr(), twin.bytes.as_ptr());
        // A change makes another twin.
        answers.insert(AnswerId(1), Bytes::from_static(b"{}"));
        assert!(!answers.get(AnswerId(1), true).unwrap().is_gzip);
        assert_eq!(answers.get(AnswerId(2), true), None);
    }
}
