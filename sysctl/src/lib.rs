//! Kernel limits of a gateway: what they are, what they should be for its size, and how to change and restore them.
//!
//! Pure: [`capacity`], [`size`], [`value`], [`kernel`], [`settings`] (the one table), [`finding`], [`render`], [`record`], [`document`].
//! Shells over files below a root: [`probe`], [`apply`], [`revert`].

pub mod apply;
pub mod capacity;
pub mod disk;
pub mod document;
pub mod finding;
pub mod kernel;
pub mod probe;
pub mod record;
pub mod render;
pub mod revert;
pub mod roots;
pub mod settings;
pub mod size;
pub mod value;

mod text;
