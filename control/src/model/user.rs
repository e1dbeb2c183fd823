//! Operators with an account.

use serde::{Deserialize, Serialize};

/// What an operator may do. Each may do all that the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Reads hosts, queries and labels, and asks hosts what others have allowed to be asked.
    Observer,
    /// Also changes queries, packs and labels, and deletes hosts.
    Maintainer,
    /// Also changes the configuration and other operators.
    Admin,
}
