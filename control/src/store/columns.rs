//! The columns of `host_details` that [`HostColumns`] mirrors: their order, as parameters and from rows.

use super::dialect::{Rule, Upsert};
use super::error::Fault;
use super::value::{Arg, Row, clip};
use crate::model::host::HostColumns;

/// Declares the columns once: names, parameters and reading in the same order.
macro_rules! columns {
    ($($column:ident: $kind:ident,)+) => {
        /// Names, in the order of [`args`] and [`read`].
        pub(super) const NAMES: [&str; COUNT] = [$(stringify!($column)),+];

        /// How many.
        pub(super) const COUNT: usize = [$(stringify!($column)),+].len();

        /// As parameters.
        pub(super) fn args(columns: &HostColumns) -> [Arg<'_>; COUNT] {
            [$(columns!(@arg $kind, columns.$column)),+]
        }

        /// From a row in which they stand from `start` on.
        pub(super) fn read(row: &Row, start: usize) -> Result<HostColumns, Fault> {
            let mut index = start..;
            let mut next = || index.next().unwrap_or(start);
            Ok(HostColumns { $($column: columns!(@read $kind, row, next()),)+ })
        }
    };
    (@arg text, $value:expr) => { $value.as_deref().map(clip).into() };
    (@arg int, $value:expr) => { $value.into() };
    (@read text, $row:expr, $index:expr) => { $row.text_or_null($index)? };
    (@read int, $row:expr, $index:expr) => { $row.int_or_null($index)? };
}

columns! {
    platform: text,
    platform_like: text,
    os_version: text,
    osquery_version: text,
    hostname: text,
    computer_name: text,
    hardware_uuid: text,
    hardware_serial: text,
    hardware_model: text,
    hardware_vendor: text,
    cpu_brand: text,
    cpu_type: text,
    cpu_physical_cores: int,
    cpu_logical_cores: int,
    memory: int,
    primary_ip: text,
    primary_mac: text,
    disk_total: int,
    disk_free: int,
    uptime: int,
    distributed_interval: int,
    config_refresh: int,
    logger_tls_period: int,
    public_ip: text,
}

/// Columns of `host_details` that are not in [`NAMES`], before and after them.
const BEFORE: [(&str, Rule); 4] = [
    ("host_id", Rule::Keep),
    ("detail_updated_at", Rule::Replace),
    ("label_updated_at", Rule::Coalesce),
    ("refetch_requested", Rule::Replace),
];

/// Every column of `host_details`, for writes that bring details.
const ALL: [(&str, Rule); COUNT + 5] = {
    let mut all = [("details", Rule::Merge); COUNT + 5];
    let mut index = 0;
    while index < COUNT + 4 {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            all[index] = if index < 4 {
                BEFORE[index]
            } else {
                (NAMES[index - 4], Rule::Coalesce)
            };
        }
        index += 1;
    }
    all
};

/// A write that brings details.
pub(super) const DETAILS: Upsert<'_> = Upsert {
    table: "host_details",
    key: &["host_id"],
    columns: &ALL,
};

/// `d.platform, d.platform_like, …`.
pub(super) fn select_list() -> String {
    NAMES.map(|name| format!("d.{name}")).join(", ")
}
