//! The store as its clients see it: the server core with requests fed to it directly, and the
//! client against it over sockets.

mod bench;
mod client;
mod device;
mod hostile_clients;
mod hostile_servers;
mod hub;
mod permissions;
mod quotas;
mod requests;
mod slow_readers;
mod transactions;
mod watches;
