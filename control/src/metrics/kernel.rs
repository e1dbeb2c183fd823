//! The kernel's settings, as the supervisor found them at its start.

use std::fmt::Error;

use fleet_protocol::slot::SettingView;

use super::text::{Page, by};

/// One series for each setting that could be judged; keys come from the supervisor's table.
pub(super) fn settings(page: &mut Page<'_>, settings: &[SettingView]) -> Result<(), Error> {
    page.gauge(
        by(
            "fleet_gateway_kernel_setting_holds",
            "1 when the kernel setting was at least as high as this configuration wants, when the server started.",
            "key",
        ),
        None,
        settings
            .iter()
            .filter_map(|setting| Some(([setting.key.as_str()], u64::from(setting.holds?)))),
    )
}
