//! When certificates expire. Their number is bounded by the configuration.

use std::fmt::Error;

use fleet_protocol::slot::Gateway;
use prometheus_client::registry::Unit;

use super::text::{Name, Page, plain};

/// One series for each file.
pub(super) fn write(page: &mut Page<'_>, gateway: &Gateway) -> Result<(), Error> {
    page.gauge(
        Name {
            name: "fleet_gateway_certificate_not_after",
            help: "When the certificate expires, in seconds since 1970; of several authorities in a file, the first.",
            labels: ["file", "option"],
        },
        Some(Unit::Seconds),
        gateway.certificates.iter().map(|of| {
            let not_after = u64::try_from(of.not_after_s).unwrap_or(0);
            ([of.file.as_str(), of.option.as_str()], not_after)
        }),
    )?;
    page.gauge(
        plain(
            "fleet_gateway_certificate_files_good",
            "0 while the certificates' files on disk cannot be used and the former ones serve on.",
        ),
        None,
        [([], u64::from(gateway.certificate_trouble.is_empty()))],
    )
}
