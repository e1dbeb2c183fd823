//! What the store keeps, as plain data: no SQL, no wire format of agents, no behaviour beyond conversions.
//!
//! Owner of state: nobody; these are values. Times are [`UnixSeconds`](fleet_protocol::ids::UnixSeconds), zero meaning "never".

macro_rules! row_id {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub(crate) struct $name(pub(crate) u32);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

pub(crate) mod activity;
pub(crate) mod campaign;
pub(crate) mod carve;
pub(crate) mod change;
pub(crate) mod enrollment;
pub(crate) mod host;
pub(crate) mod host_name;
pub(crate) mod label;
pub(crate) mod pack;
pub(crate) mod query;
pub(crate) mod user;
