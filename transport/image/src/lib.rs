//! A host's own image of a mirrored disk, as a file, and the map beside it that tells what changed since which moment.
//!
//! The disk process keeps the map while it changes the image; the VMM reads both when it copies the disk to a spare, and
//! writes both where it takes a disk in. Read in this order: [`blocks`] (the unit), [`account`] (what a map knows, and what
//! two maps say together), [`map`] (how it is kept, so that no crash makes it lie), [`image`] (bytes of the image).
//! Nothing here knows virtio, connections or terms.
#![forbid(unsafe_code)]

pub mod account;
pub mod blocks;
pub mod image;
pub mod map;

pub use account::{Account, PairingId};
pub use blocks::{Block, Grid};
pub use image::ImageFile;
pub use map::ChangeMap;
