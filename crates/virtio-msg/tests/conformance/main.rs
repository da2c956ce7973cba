//! Conformance of both protocol sides and both bus ends, one test per clause, named after it.
//!
//! D-xx are clauses for drivers, V-xx for devices, B-xx for buses. The clauses of bytes alone (D-01, V-02, V-03, B-02,
//! B-03, B-10, B-37) are tested beside the wire module. Each file covers one group of clauses; `rig` has the peers.

mod bus_bounds;
mod bus_presence;
mod bus_routing;
mod carriers;
mod device_config;
mod device_features;
mod device_queue;
mod device_restart;
mod device_status;
mod driver_answers;
mod driver_bring_up;
mod driver_config;
mod driver_life;
mod driver_queue;
mod lossy;
mod rig;
mod stock_order;
