//! [`Faulty`]: a bus that drops, repeats, delays and reorders what is sent, by a seed.

use super::{Bus, BusInfo, Full};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// How often each fault happens, in frames of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// The frame never arrives.
    pub drop: u16,
    /// The frame arrives twice.
    pub duplicate: u16,
    /// The frame is held back until a later frame has passed it, or a flush.
    pub reorder: u16,
    /// The frame is held back until the second flush from now.
    pub delay: u16,
}

/// A bus with faults on its sending side.
#[derive(Debug)]
pub struct Faulty<B> {
    inner: B,
    rates: FaultRates,
    random: u64,
    /// Frames held back, each with the flushes that it still waits for.
    held: VecDeque<(u8, Vec<u8>)>,
}

impl<B: Bus> Faulty<B> {
    /// The same seed gives the same faults.
    pub fn new(inner: B, rates: FaultRates, seed: u64) -> Self {
        Faulty {
            inner,
            rates,
            random: seed,
            held: VecDeque::new(),
        }
    }

    /// Changes the rates from the next frame on.
    pub fn set_rates(&mut self, rates: FaultRates) {
        self.rates = rates;
    }

    fn strikes(&mut self, rate: u16) -> bool {
        // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1000 < u64::from(rate)
    }

    /// Sends what waits for no flush any more; what finds no room waits for the next.
    fn release(&mut self) {
        for _ in 0..self.held.len() {
            let Some((flushes, frame)) = self.held.pop_front() else {
                return;
            };
            if flushes > 0 || self.inner.try_send(&frame).is_err() {
                self.held.push_back((flushes, frame));
            }
        }
    }
}

impl<B: Bus> Bus for Faulty<B> {
    fn info(&self) -> BusInfo {
        self.inner.info()
    }

    fn try_send(&mut self, frame: &[u8]) -> Result<(), Full> {
        if self.strikes(self.rates.drop) {
            return Ok(());
        }
        if self.strikes(self.rates.delay) {
            self.held.push_back((2, frame.to_vec()));
            return Ok(());
        }
        if self.strikes(self.rates.reorder) {
            self.held.push_back((0, frame.to_vec()));
            return Ok(());
        }
        self.inner.try_send(frame)?;
        if self.strikes(self.rates.duplicate) {
            // No room for the copy is a duplicate that was lost.
            let _ = self.inner.try_send(frame);
        }
        self.release();
        Ok(())
    }

    fn try_recv(&mut self, buf: &mut [u8]) -> Option<usize> {
        self.inner.try_recv(buf)
    }

    fn flush(&mut self) {
        for (flushes, _) in &mut self.held {
            *flushes = flushes.saturating_sub(1);
        }
        self.release();
        self.inner.flush();
    }
}
