//! A pull scanner for JSON text: finds where values begin and end, and copies nothing that the caller does not ask for.
//!
//! It takes exactly what a strict parser takes, with two additions that agents' bytes need: control characters inside
//! strings and lone surrogate escapes are allowed and mark the value as odd; [`Value::append_line`] writes odd values
//! so that every strict parser takes them. Nesting is bounded, so recursion is too.

use std::borrow::Cow;

use crate::escape::{Escape, append_rewritten, unescape};

/// Levels of nesting inside one scanned value. Below the 128 levels where control's own JSON parser gives up.
pub(crate) const DEPTH_MAX: u32 = 100;

/// The text is not JSON, or nests too deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// One value as it stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value<'a> {
    /// From its first byte to its last.
    pub(crate) raw: &'a str,
    /// Whether it holds line breaks, control characters or lone surrogate escapes.
    is_odd: bool,
}

/// What the first byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Array,
    Literal,
    Null,
    Number,
    Object,
    String,
}

impl<'a> Value<'a> {
    pub(crate) fn kind(&self) -> Kind {
        match self.raw.as_bytes().first() {
            Some(b'[') => Kind::Array,
            Some(b'{') => Kind::Object,
            Some(b'"') => Kind::String,
            Some(b'n') => Kind::Null,
            Some(b't' | b'f') => Kind::Literal,
            _ => Kind::Number,
        }
    }

    /// The content of a string; `None` for every other kind.
    pub(crate) fn as_str(&self) -> Option<Cow<'a, str>> {
        (self.kind() == Kind::String).then(|| unescape(self.raw))
    }

    /// The value as a person would write it: strings without quotes, null as nothing, the rest as it stands.
    pub(crate) fn to_text(self) -> String {
        match self.kind() {
            Kind::String => unescape(self.raw).into_owned(),
            Kind::Null => String::new(),
            _ => self.to_json(),
        }
    }

    /// The value on one line, valid for every parser.
    pub(crate) fn to_json(self) -> String {
        let mut out = Vec::with_capacity(self.raw.len());
        self.append_line(&mut out);
        // What went in was UTF-8, and only ASCII was taken out or added.
        String::from_utf8(out).unwrap_or_default()
    }

    /// Appends the value, without line breaks, valid for every parser.
    pub(crate) fn append_line(&self, out: &mut Vec<u8>) {
        if self.is_odd {
            append_rewritten(self.raw, out);
        } else {
            out.extend_from_slice(self.raw.as_bytes());
        }
    }

    /// Calls `each` with every member of an object, in order, duplicates included; nothing for other kinds.
    pub(crate) fn members(
        &self,
        mut each: impl FnMut(Cow<'a, str>, Value<'a>),
    ) -> Result<(), Malformed> {
        if self.kind() != Kind::Object {
            return Ok(());
        }
        let mut scanner = Scanner::new(self.raw);
        let mut items = scanner.open(b'{')?;
        while scanner.has_next(&mut items)? {
            let key = scanner.key()?;
            each(key, scanner.value()?);
        }
        Ok(())
    }

    /// Calls `each` with every element of an array; nothing for other kinds.
    pub(crate) fn elements(&self, mut each: impl FnMut(Value<'a>)) -> Result<(), Malformed> {
        if self.kind() != Kind::Array {
            return Ok(());
        }
        let mut scanner = Scanner::new(self.raw);
        let mut items = scanner.open(b'[')?;
        while scanner.has_next(&mut items)? {
            each(scanner.value()?);
        }
        Ok(())
    }
}

/// Scans the text of exactly one value.
pub(crate) fn whole(text: &str) -> Result<Value<'_>, Malformed> {
    let mut scanner = Scanner::new(text);
    let value = scanner.value()?;
    scanner.end()?;
    Ok(value)
}

/// Where [`Scanner::has_next`] stands in an object or array.
pub(crate) struct Items {
    close: u8,
    is_first: bool,
}

/// A place in a text.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    is_odd: bool,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            is_odd: false,
        }
    }

    /// The first byte of the next value.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.byte()
    }

    /// Steps into an object (`{`) or array (`[`).
    pub(crate) fn open(&mut self, bracket: u8) -> Result<Items, Malformed> {
        self.skip_space();
        self.expect(bracket)?;
        let close = if bracket == b'{' { b'}' } else { b']' };
        Ok(Items {
            close,
            is_first: true,
        })
    }

    /// Whether another item follows; steps over the comma, or out of the object or array.
    pub(crate) fn has_next(&mut self, items: &mut Items) -> Result<bool, Malformed> {
        self.skip_space();
        let is_first = std::mem::take(&mut items.is_first);
        if self.byte() == Some(items.close) {
            self.at += 1;
            return Ok(false);
        }
        if !is_first {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// A member's name and the colon behind it.
    pub(crate) fn key(&mut self) -> Result<Cow<'a, str>, Malformed> {
        self.skip_space();
        let begin = self.at;
        self.skip_string()?;
        let key = unescape(self.since(begin));
        self.skip_space();
        self.expect(b':')?;
        Ok(key)
    }

    /// The next value, whatever it is.
    pub(crate) fn value(&mut self) -> Result<Value<'a>, Malformed> {
        self.skip_space();
        let begin = self.at;
        self.is_odd = false;
        self.skip_value(0)?;
        Ok(Value {
            raw: self.since(begin),
            is_odd: self.is_odd,
        })
    }

    /// Nothing but white space follows.
    pub(crate) fn end(&mut self) -> Result<(), Malformed> {
        self.skip_space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn since(&self, begin: usize) -> &'a str {
        // Both ends stand beside ASCII bytes.
        self.text.get(begin..self.at).unwrap_or_default()
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.byte() != Some(byte) {
            return Err(Malformed);
        }
        self.at += 1;
        Ok(())
    }

    fn skip_space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) = self.byte() {
            self.is_odd |= matches!(byte, b'\n' | b'\r');
            self.at += 1;
        }
    }

    fn skip_value(&mut self, depth: u32) -> Result<(), Malformed> {
        match self.byte() {
            Some(b'"') => self.skip_string(),
            Some(b'{') => self.skip_items(b'{', depth),
            Some(b'[') => self.skip_items(b'[', depth),
            Some(b't') => self.skip_word("true"),
            Some(b'f') => self.skip_word("false"),
            Some(b'n') => self.skip_word("null"),
            _ => self.skip_number(),
        }
    }

    fn skip_items(&mut self, bracket: u8, depth: u32) -> Result<(), Malformed> {
        if depth >= DEPTH_MAX {
            return Err(Malformed);
        }
        let mut items = self.open(bracket)?;
        while self.has_next(&mut items)? {
            self.skip_space();
            if bracket == b'{' {
                self.skip_string()?;
                self.skip_space();
                self.expect(b':')?;
                self.skip_space();
            }
            self.skip_value(depth + 1)?;
        }
        Ok(())
    }

    fn skip_word(&mut self, word: &str) -> Result<(), Malformed> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(Malformed);
        }
        self.at += word.len();
        Ok(())
    }

    fn skip_number(&mut self) -> Result<(), Malformed> {
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            _ => self.skip_digits()?,
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.skip_digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<(), Malformed> {
        let begin = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == begin {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    fn skip_string(&mut self) -> Result<(), Malformed> {
        self.expect(b'"')?;
        let bytes = self.text.as_bytes();
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let plain = rest.iter().position(|byte| is_special(*byte));
            self.at += plain.ok_or(Malformed)?;
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    let escape = Escape::read(bytes.get(self.at..).unwrap_or_default());
                    let escape = escape.ok_or(Malformed)?;
                    self.is_odd |= escape.is_lone_surrogate();
                    self.at += escape.length;
                }
                _ => {
                    self.is_odd = true;
                    self.at += 1;
                }
            }
        }
    }
}

/// Bytes that end the plain part of a string: quote, backslash, control characters.
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::vec((".{0,6}", inner), 0..6).prop_map(|members| {
                    serde_json::Value::Object(members.into_iter().collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_text_scans_and_keeps_its_meaning(value in json(), is_pretty in any::<bool>()) {
            let text = if is_pretty {
                serde_json::to_string_pretty(&value)?
            } else {
                value.to_string()
            };
            let scanned = whole(&text).unwrap();
            let line = scanned.to_json();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&line)?, serde_json::from_str::<serde_json::Value>(&text)?);
            if let Some(string) = value.as_str() {
                prop_assert_eq!(scanned.as_str().unwrap(), string);
            }
        }

        /// Broken text: what a strict parser takes we take, and what only we take comes out strict.
        #[test]
        fn damaged_text_never_comes_out_damaged(value in json(), cut in any::<prop::sample::Index>(), byte in 0_u8..0x80) {
            let mut bytes = value.to_string().into_bytes();
            let at = cut.index(bytes.len());
            bytes[at] = byte;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let strict = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            match whole(&text) {
                Ok(scanned) => {
                    let line = scanned.to_json();
                    prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&line).is_ok(), "{text:?} → {line:?}");
                }
                Err(Malformed) => prop_assert!(!strict, "{text:?}"),
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(value) = whole(&text) {
                let _ = value.to_text();
            }
        }
    }

    #[test]
    fn odd_values_are_made_strict() {
        for (text, line) in [
            ("{\n \"a\":\r\n1}", r#"{ "a":1}"#),
            ("\"a\nb\"", r#""a\u000ab""#),
            ("\"\0\"", r#""\u0000""#),
            (r#""\ud800x""#, r#""\ufffdx""#),
            (r#""\udc00\ud800""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
        ] {
            let value = whole(text).unwrap();
            assert_eq!(value.to_json(), line, "{text:?}");
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn strings_are_unescaped() {
        for (text, content) in [
            (r#""""#, ""),
            (r#""a\/b\\\"\t""#, "a/b\\\"\t"),
            (r#""\u00e9\ud83d\ude00é""#, "é😀é"),
            (r#""\ud83dz""#, "\u{fffd}z"),
        ] {
            assert_eq!(whole(text).unwrap().as_str().unwrap(), content, "{text}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        let texts = r#"| |{|}|[1,]|[,1]|{"a"}|{"a":}|{a:1}|{"a":1,}|01|1.|-|+1|1e|nul|truefalse|"|"\x"|"\u12"
            |"\u12g4"|1 2|[1]]|NaN|{"a":1 "b":2}"#;
        for text in texts.split('|') {
            assert_eq!(whole(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(whole(&nested(DEPTH_MAX as usize)).is_ok());
        assert!(whole(&nested(DEPTH_MAX as usize + 1)).is_err());
        assert!(whole(&"[".repeat(5_000_000)).is_err());
        assert!(whole(&"{\"a\":".repeat(1_000_000)).is_err());
    }
}
