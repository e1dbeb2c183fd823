//! Escape sequences in JSON strings: read, resolved, and made fit for strict parsers. Tested through `scan`.

use std::borrow::Cow;

/// One escape sequence.
pub(crate) struct Escape {
    /// `None` for a surrogate without its other half.
    pub(crate) character: Option<char>,
    /// Bytes of it, the backslash included.
    pub(crate) length: usize,
}

impl Escape {
    /// Reads the sequence at the front of `bytes`; `None` when there is no such sequence.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let character = match bytes.get(1)? {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return Self::read_unicode(bytes),
            _ => return None,
        };
        Some(Self {
            character: Some(character),
            length: 2,
        })
    }

    fn read_unicode(bytes: &[u8]) -> Option<Self> {
        let first = hex4(bytes.get(2..6)?)?;
        if let 0xd800..=0xdbff = first
            && let Some([b'\\', b'u', digits @ ..]) = bytes.get(6..12)
            && let Some(second @ 0xdc00..=0xdfff) = hex4(digits)
        {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            return Some(Self {
                character: char::from_u32(code),
                length: 12,
            });
        }
        Some(Self {
            character: char::from_u32(first),
            length: 6,
        })
    }

    pub(crate) fn is_lone_surrogate(&self) -> bool {
        self.character.is_none()
    }
}

fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |code, digit| {
        Some(code << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// The content of a scanned string, quotes included in `raw`.
pub(crate) fn unescape(raw: &str) -> Cow<'_, str> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    let Some(first) = memchr::memchr(b'\\', inner.as_bytes()) else {
        return Cow::Borrowed(inner);
    };
    let mut out = String::with_capacity(inner.len());
    let (plain, mut rest) = inner.split_at_checked(first).unwrap_or((inner, ""));
    out.push_str(plain);
    while let Some(escape) = Escape::read(rest.as_bytes()) {
        out.push(escape.character.unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = rest.get(escape.length..).unwrap_or_default();
        let plain = memchr::memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        out.push_str(rest.get(..plain).unwrap_or_default());
        rest = rest.get(plain..).unwrap_or_default();
    }
    Cow::Owned(out)
}

/// Copies a scanned value: line breaks between tokens go, control characters in strings and lone surrogates are
/// written as escapes that mean the same to every parser.
pub(crate) fn append_rewritten(raw: &str, out: &mut Vec<u8>) {
    let bytes = raw.as_bytes();
    let mut is_in_string = false;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let mut length = 1;
        match byte {
            b'"' => {
                is_in_string = !is_in_string;
                out.push(byte);
            }
            b'\\' if is_in_string => {
                let rest = bytes.get(at..).unwrap_or_default();
                match Escape::read(rest) {
                    Some(escape) if escape.is_lone_surrogate() => {
                        length = escape.length;
                        out.extend_from_slice(b"\\ufffd");
                    }
                    Some(escape) => {
                        length = escape.length;
                        out.extend_from_slice(rest.get(..length).unwrap_or_default());
                    }
                    None => {}
                }
            }
            0..0x20 if is_in_string => {
                out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
            }
            b'\n' | b'\r' => {}
            _ => out.push(byte),
        }
        at += length;
    }
}
