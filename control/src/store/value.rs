//! Parameters and rows, the same for both engines.

use std::net::IpAddr;

use fleet_protocol::ids::{HostId, NodeKeyHash, UnixSeconds};
use sqlx::Row as _;
use sqlx::mysql::MySqlRow;
use sqlx::sqlite::SqliteRow;

use super::error::{Error, Fault};

/// A parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arg<'a> {
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Null,
}

macro_rules! from_int {
    ($($source:ty => |$value:ident| $int:expr;)+) => {
        $(impl From<$source> for Arg<'_> {
            fn from($value: $source) -> Self {
                Self::Int($int)
            }
        })+
    };
}

from_int! {
    i64 => |value| value;
    u32 => |value| i64::from(value);
    bool => |value| i64::from(value);
    HostId => |value| i64::from(value.0);
    UnixSeconds => |value| i64::from(value.0);
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a NodeKeyHash> for Arg<'a> {
    fn from(key: &'a NodeKeyHash) -> Self {
        Self::Bytes(&key.0)
    }
}

impl<'a> From<&'a [u8; 32]> for Arg<'a> {
    fn from(hash: &'a [u8; 32]) -> Self {
        Self::Bytes(hash)
    }
}

impl<'a, T: Into<Arg<'a>>> From<Option<T>> for Arg<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Most characters of a name or other short text.
pub(super) const NAME_CHARS_MAX: usize = 255;

/// The beginning of a text, as much as a short column takes.
pub(super) fn clip(text: &str) -> &str {
    match text.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}

/// An address as it is stored.
pub(super) fn address_text(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

/// A row of a result.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Mysql(MySqlRow),
}

macro_rules! column {
    ($row:expr, $index:expr, $kind:ty) => {
        match $row {
            // Unchecked: the type that the server declares for an expression or a collation is not what matters.
            Row::Sqlite(row) => row.try_get_unchecked::<Option<$kind>, usize>($index),
            Row::Mysql(row) => row.try_get_unchecked::<Option<$kind>, usize>($index),
        }
        .map_err(|error| Fault::of("decode", &error))
    };
}

impl Row {
    pub(super) fn int_or_null(&self, index: usize) -> Result<Option<i64>, Fault> {
        column!(self, index, i64)
    }

    pub(super) fn text_or_null(&self, index: usize) -> Result<Option<String>, Fault> {
        column!(self, index, String)
    }

    pub(super) fn bytes_or_null(&self, index: usize) -> Result<Option<Vec<u8>>, Fault> {
        column!(self, index, Vec<u8>)
    }

    /// Null counts as zero.
    pub(super) fn int(&self, index: usize) -> Result<i64, Fault> {
        Ok(self.int_or_null(index)?.unwrap_or(0))
    }

    /// Null counts as empty.
    pub(super) fn text(&self, index: usize) -> Result<String, Fault> {
        Ok(self.text_or_null(index)?.unwrap_or_default())
    }

    pub(super) fn bool(&self, index: usize) -> Result<bool, Fault> {
        Ok(self.int(index)? != 0)
    }

    pub(super) fn u32(&self, index: usize) -> Result<u32, Fault> {
        u32::try_from(self.int(index)?).map_err(|_| unexpected())
    }

    pub(super) fn u64(&self, index: usize) -> Result<u64, Fault> {
        u64::try_from(self.int(index)?).map_err(|_| unexpected())
    }

    pub(super) fn host(&self, index: usize) -> Result<HostId, Fault> {
        self.u32(index).map(HostId)
    }

    pub(super) fn time(&self, index: usize) -> Result<UnixSeconds, Fault> {
        self.u32(index).map(UnixSeconds)
    }

    pub(super) fn hash_or_null(&self, index: usize) -> Result<Option<[u8; 32]>, Fault> {
        let Some(bytes) = self.bytes_or_null(index)? else {
            return Ok(None);
        };
        bytes.try_into().map(Some).map_err(|_| unexpected())
    }

    pub(super) fn hash(&self, index: usize) -> Result<[u8; 32], Fault> {
        self.hash_or_null(index)?.ok_or_else(unexpected)
    }

    pub(super) fn key(&self, index: usize) -> Result<NodeKeyHash, Fault> {
        self.hash(index).map(NodeKeyHash)
    }
}

/// A value that we never write.
pub(super) fn unexpected() -> Fault {
    Error::Failed("the database holds a value that makes no sense".into()).into()
}
