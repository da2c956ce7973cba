//! The executable at work on a machine without Xen: what an administrator types, what it prints,
//! and what it leaves in XenStore.

mod attach;
mod disks;
mod doctor;
mod list;
mod rig;
mod rng;
mod stat;
mod terminal;
