//! Other ways to the same file: io_uring without a guest, and QEMU's storage daemon with one.

mod qsd;
mod uring;

pub(crate) use qsd::{Aio, QsdDisk};
pub(crate) use uring::Uring;
