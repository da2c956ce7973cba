//! A backend that breaks every rule, against our frontend and against foreign drivers: the guest's
//! user gets one line that names bus, domain or device; nothing panics, nothing waits for ever,
//! nothing grows.

mod keys;
mod messages;
mod queues;
mod ring;
mod stage;
mod states;
