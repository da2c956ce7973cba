//! What the binding promises in numbers and in time, measured at a real backend.

mod batches;
mod bring_up;
mod buses;
mod clock;
mod configuration;
mod copies;
mod devices;
mod grant_addresses;
mod memory_contract;
mod scale;
