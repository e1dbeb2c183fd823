//! Who may use a route: one rule for all of them.

use crate::model::user::Role;

/// The least that a route asks of whoever calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Least {
    /// Nothing: anybody on the network.
    Nobody,
    /// An account, with any role.
    Anyone,
    Observer,
    Maintainer,
    Admin,
}

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// 401: nobody is signed in.
    SignedOut,
    /// 403: the role is too low; this is the one it takes.
    TooLow(Role),
}

impl Least {
    /// Decides about a caller by its role, `None` for one who is not signed in.
    pub(super) fn admit(self, role: Option<Role>) -> Result<(), Denial> {
        let wanted = match self {
            Self::Nobody => return Ok(()),
            Self::Anyone | Self::Observer => Role::Observer,
            Self::Maintainer => Role::Maintainer,
            Self::Admin => Role::Admin,
        };
        match role {
            None => Err(Denial::SignedOut),
            Some(role) if role < wanted => Err(Denial::TooLow(wanted)),
            Some(_) => Ok(()),
        }
    }
}
