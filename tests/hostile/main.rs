//! A guest that breaks every rule, against a real backend: it harms itself at most. Its instance
//! ends or its device needs a reset, as the binding says; the log and `error` say why; other guests
//! go on; nothing of it stays held.
//!
//! One file is one row of the table in docs/security.md, which says what [`rig`] finds in the files:
//! Attack, Outcome, Class, and the line that the user sees.

mod addresses;
mod area_under_io;
mod breaking_neighbour;
mod broken_chains;
mod busy_neighbour;
mod double_fetch;
mod dying_domains;
mod foreign_bytes;
mod full_ring;
mod garbage_keys;
mod grant_addresses;
mod indirect_tables;
mod late_writes;
mod malformed_frames;
mod never_reads;
mod odd_requests;
mod reconnect;
mod refusals;
mod rig;
mod ring_indexes;
mod share_unshare;
mod shared_by_two_devices;
mod spoofed_paths;
mod spurious_events;
mod state_keys;
mod unanswered_requests;
mod unmappable_areas;
mod watch_flood;
