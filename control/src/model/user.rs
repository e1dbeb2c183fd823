//! Operators with an account, and their sessions.

use fleet_protocol::ids::UnixSeconds;
use fleet_protocol::secret::Secret;
use serde::{Deserialize, Serialize};

row_id!(
    /// An account's row.
    UserId
);

row_id!(
    /// A session's row.
    SessionId
);

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

impl Role {
    /// Every role.
    pub(crate) const ALL: [Self; 3] = [Self::Observer, Self::Maintainer, Self::Admin];

    /// Its name, here and in Fleet.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Observer => "observer",
            Self::Maintainer => "maintainer",
            Self::Admin => "admin",
        }
    }

    /// The role of that name.
    pub(crate) fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) id: UserId,
    pub(crate) name: String,
    pub(crate) email: String,
    /// As a PHC string; empty for one that cannot sign in with a password.
    pub(crate) password_hash: Secret,
    pub(crate) role: Role,
    /// A program's: its sessions do not expire.
    pub(crate) is_api_only: bool,
    /// May do nothing until the password is another.
    pub(crate) must_reset: bool,
    pub(crate) created_at: UnixSeconds,
    pub(crate) updated_at: UnixSeconds,
}

/// An account to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewUser {
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) password_hash: Secret,
    pub(crate) role: Role,
    pub(crate) is_api_only: bool,
    pub(crate) must_reset: bool,
}

/// What changes of an account; `None` stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserPatch {
    pub(crate) name: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) password_hash: Option<Secret>,
    pub(crate) role: Option<Role>,
    pub(crate) must_reset: Option<bool>,
}

/// Why an account was not made, changed or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserRefusal {
    /// There is no such account.
    Missing,
    /// Another account has this address.
    EmailTaken,
    /// It would leave no admin.
    LastAdmin,
    /// The first account was to be made, and there is one.
    NotFirst,
    /// There are as many as there may be.
    TooMany,
}

/// Which accounts to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserFilter {
    /// In the name or the address, in any case.
    pub(crate) text: Option<String>,
    pub(crate) page: u32,
    /// Zero: all.
    pub(crate) per_page: u32,
    pub(crate) order: UserOrder,
    pub(crate) is_descending: bool,
}

/// By what accounts are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UserOrder {
    #[default]
    Id,
    Name,
    Email,
    CreatedAt,
}

/// An email address as accounts are found by it.
pub(crate) fn email_key(email: &str) -> String {
    email.trim().to_lowercase()
}

/// A session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserSession {
    pub(crate) id: SessionId,
    pub(crate) user: UserId,
    pub(crate) created_at: UnixSeconds,
    /// Written now and then; the truth may be younger.
    pub(crate) used_at: UnixSeconds,
}
