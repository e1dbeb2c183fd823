//! Why an address is not claimed.

use std::io;

use ipnet::IpNet;
use nix::errno::Errno;

use super::packet::Mac;

/// Each is a sentence about one address that says what to do; it may be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not in this network namespace.
    #[error("there is no interface {interface:?}; addresses.claim.interface may be {}", present.join(", "))]
    MissingInterface {
        /// The one of the configuration.
        interface: String,
        /// Those that there are.
        present: Vec<String>,
    },
    /// Switched off.
    #[error("{0} is down; run: ip link set {0} up")]
    InterfaceDown(String),
    /// Nobody could be asked whether the address is free.
    #[error("{0} has no carrier: no cable, or nothing at the other end")]
    NoCarrier(String),
    /// IPv6 is switched off there.
    #[error("IPv6 is off on {0} (net.ipv6.conf.{0}.disable_ipv6)")]
    NoIpv6(String),
    /// The kernel does not let us.
    #[error(
        "not permitted; claiming needs root, or CAP_NET_ADMIN and CAP_NET_RAW (in a unit also AF_PACKET in \
         RestrictAddressFamilies=)"
    )]
    NotPermitted,
    /// Another machine has it, or is taking it at this moment.
    #[error("in use on the link by {0}; give one of the two machines another address")]
    InUse(Mac),
    /// A network or broadcast address, or the scope is wrong.
    #[error("{0} is not an address that one machine can have; look at its prefix length")]
    NotAHost(IpNet),
    /// No more addresses fit.
    #[error("the kernel has no room for more addresses")]
    Full,
    /// It would stay for ever after a crash.
    #[error("cannot be noted in the state directory before it is added: {0}")]
    Unrecorded(String),
    /// Whether it was added is not known; it stays noted.
    #[error("the kernel does not answer; trying again")]
    NoAnswer,
    /// Anything else.
    #[error("the kernel refuses: {0}")]
    Kernel(String),
}

impl Refusal {
    /// What the kernel's answer means.
    pub(crate) fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            return Self::NoAnswer;
        }
        match error.raw_os_error().map(Errno::from_raw) {
            // RestrictAddressFamilies= of a unit answers with the third.
            Some(Errno::EPERM | Errno::EACCES | Errno::EAFNOSUPPORT) => Self::NotPermitted,
            Some(Errno::ENOSPC | Errno::ENOBUFS | Errno::ENOMEM) => Self::Full,
            _ => Self::Kernel(error.to_string()),
        }
    }

    /// The same for the answer to adding `address`: EACCES is what the kernel says where IPv6 is off.
    pub(crate) fn of_adding(error: &io::Error, address: &IpNet, interface: &str) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)
                if address.addr().is_ipv6() =>
            {
                Self::NoIpv6(interface.to_owned())
            }
            _ => Self::of(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answers_are_put_into_words() {
        let v4: IpNet = "192.0.2.1/24".parse().unwrap();
        let v6: IpNet = "2001:db8::1/64".parse().unwrap();
        let of = |errno: Errno, address| {
            let error = io::Error::from(errno);
            Refusal::of_adding(&error, address, "eth0")
        };
        for address in [&v4, &v6] {
            assert_eq!(of(Errno::EPERM, address), Refusal::NotPermitted);
            assert_eq!(of(Errno::ENOBUFS, address), Refusal::Full);
            let other = of(Errno::ENETDOWN, address).to_string();
            assert!(other.contains("Network is down"), "{other}");
        }
        assert_eq!(of(Errno::EACCES, &v4), Refusal::NotPermitted);
        assert_eq!(of(Errno::EACCES, &v6), Refusal::NoIpv6("eth0".into()));
        let late = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(Refusal::of(&late), Refusal::NoAnswer);
        let text = Refusal::NotPermitted.to_string();
        assert!(text.contains("CAP_NET_ADMIN and CAP_NET_RAW"), "{text}");
    }
}
