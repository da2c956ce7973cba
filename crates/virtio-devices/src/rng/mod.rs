//! virtio-rng (device id 4): random bytes of the host (fact sheet section 5.1).
//!
//! One queue, no features of its own, no configuration space. `device` fills buffers, `rate`
//! bounds how much a guest can make the host draw. Nothing here waits for long: the host's
//! generator answers at once after its first time, which is when the device is made.

mod device;
mod rate;
#[cfg(test)]
mod tests;

pub use device::{Rng, RngError};
