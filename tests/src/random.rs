//! Random numbers that a failed test can be repeated with.

/// A generator (xorshift64*), good enough to choose moments and sectors.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded from VMSG_SEED, else by `default`; the seed is printed, so that a failure shows it.
    #[must_use]
    pub fn seeded(default: u64) -> Self {
        let seed = match std::env::var("VMSG_SEED") {
            Ok(text) => text.parse().expect("VMSG_SEED is a number"),
            Err(_) => default,
        };
        println!("VMSG_SEED={seed}");
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}
