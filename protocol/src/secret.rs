//! Text that must never be printed: passwords, enroll secrets, node keys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What stands in place of a secret wherever configuration is shown.
pub const MASK: &str = "********";

/// A secret. `Debug` masks it and there is no `Display`; serialising keeps it, because processes hand it on.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes ownership of the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that must use it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// No text: the option is not set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { MASK })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_masks() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), MASK);
        assert_eq!(format!("{:?}", Secret::default()), "\"\"");
    }
}
