//! A guest that breaks every rule, against a real backend: it harms itself at most. Its instance
//! ends or its device needs a reset, as the binding says; `error` says why; other guests go on;
//! nothing of it stays held.

mod keys;
mod message_ring;
mod queues;
mod stage;
