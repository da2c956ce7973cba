//! The block device with a driver on the other side, by the rules of fact sheet section 8.

mod block_device;
mod configuration;
mod endurance;
mod engines;
mod erasing;
mod export;
mod requests;
mod rig;
mod waiting;
