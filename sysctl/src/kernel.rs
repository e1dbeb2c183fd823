//! Kernel versions, as `/proc/sys/kernel/osrelease` says them.

use std::fmt;

/// Major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u32, pub u32);

impl Kernel {
    /// From such as `6.18.44-cloud-amd64`; distributions write more behind the numbers.
    pub fn parse(release: &str) -> Option<Self> {
        let mut parts = release.trim().split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?;
        let end = minor
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(minor.len());
        Some(Self(major, minor.get(..end)?.parse().ok()?))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_and_ordered() {
        assert_eq!(Kernel::parse("6.18.44-fc\n"), Some(Kernel(6, 18)));
        assert_eq!(Kernel::parse("5.4-rc1"), Some(Kernel(5, 4)));
        assert_eq!(Kernel::parse("6"), None);
        assert_eq!(Kernel::parse("x.y"), None);
        assert!(Kernel(5, 14) < Kernel(6, 1) && Kernel(5, 4) < Kernel(5, 14));
    }
}
