//! What people and machines do with the bus, in separate processes on a hosted machine.

mod attach_detach;
mod bad_input;
mod driver_domain;
mod foreign_drivers;
mod granted_buffers;
mod kills;
mod load;
mod many_guests;
mod per_io;
mod scene;
mod shared_bus;

mod shortage;
mod store_flood;
mod system_calls;
mod xenstore_tools;
