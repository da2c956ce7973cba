//! The benchmark suite: the bus and its peers, measured by turns in one process.
//!
//! [`run`] gives a [`Row`] for each figure. A figure is a ratio between this bus and a peer that
//! did the same work beside it, in rounds A B A B, or a count that the platform kept; what stands
//! alone in nanoseconds is said as detail only. docs/performance.md says what the figures mean.
//!
//! Our side is the product as it is: a [`backend::Service`], a [`frontend_shim::Frontend`] and the
//! hosted platform. From the outside in: `suite` (what is measured), `rounds` (how), `machine`,
//! `guest` and `bare` (our side), `mmio` and `peers` (the others), `blk_queue` (one driver for all of them).
//!
//! What is not measured: anything of a real Xen. The hosted platform is threads and eventfds. [`xen`]
//! is what the laboratory (tests/xen) takes from here to measure there.

mod bare;
mod blk_queue;
mod cpu;
mod end;
mod guest;
mod machine;
mod mmio;
mod peers;
mod random;
mod report;
mod rounds;
mod suite;
pub mod xen;

pub use cpu::Conditions;
pub use report::{Row, Target, Unit, markdown};
pub use rounds::Interrupted;
pub use suite::{NAMES, Options, Progress, run};
