//! How much mapping work one instance may cause per turn of its loop (binding sections 6 and 10).
//!
//! A guest that shares and unshares without end gets its turn, and so do the others. Turns are the
//! caller's: it knows when the loop has come round.

/// Pages that one instance may have mapped or unmapped per turn.
pub const PAGES_PER_TURN: u32 = 256;

/// Pages as which a smaller call counts: mapping and unmapping one page costs about six times as
/// much as one page among 256.
const CALL_COST: u32 = 8;

/// What is left of the present turn. What cannot be split, such as unmapping a whole area, may
/// overdraw it and is paid off by the turns that follow.
#[derive(Clone, Debug)]
pub struct WorkBudget {
    credit: i64,
}

impl WorkBudget {
    /// A full turn.
    #[must_use]
    pub fn new() -> Self {
        Self {
            credit: PAGES_PER_TURN.into(),
        }
    }

    /// The loop has come round. Unused pages are not saved up.
    pub fn next_turn(&mut self) {
        let turn = i64::from(PAGES_PER_TURN);
        self.credit = (self.credit + turn).min(turn);
    }

    /// Takes up to `pages` pages for one call; 0: wait for the next turn.
    pub fn take(&mut self, pages: u32) -> u32 {
        let left = u32::try_from(self.credit.max(0)).unwrap_or(PAGES_PER_TURN);
        let taken = pages.min(left);
        self.pay(taken);
        taken
    }

    /// Takes all of `pages` for one call that cannot be split; false: wait for the next turn.
    #[must_use]
    pub fn take_whole(&mut self, pages: u32) -> bool {
        let ready = self.credit > 0;
        if ready {
            self.pay(pages);
        }
        ready
    }

    /// Pays for one call that cannot wait, overdrawing what is left if need be.
    pub fn overdraw(&mut self, pages: u32) {
        self.pay(pages);
    }

    /// Whether nothing is left for this turn.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.credit <= 0
    }

    fn pay(&mut self, pages: u32) {
        if pages > 0 {
            self.credit -= i64::from(pages.max(CALL_COST));
        }
    }
}

impl Default for WorkBudget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_gives_out_its_pages_once() {
        let mut budget = WorkBudget::new();
        assert_eq!(budget.take(200), 200);
        assert_eq!(budget.take(200), 56);
        assert_eq!(budget.take(1), 0);
        budget.next_turn();
        budget.next_turn();
        assert_eq!(budget.take(1000), PAGES_PER_TURN);
    }

    #[test]
    fn small_calls_are_bounded_too() {
        let mut budget = WorkBudget::new();
        let calls = std::iter::from_fn(|| (budget.take(1) == 1).then_some(())).count();
        assert_eq!(calls, 32);
    }

    #[test]
    fn what_was_overdrawn_is_paid_off() {
        let mut budget = WorkBudget::new();
        assert!(budget.take_whole(4096));
        for _ in 0..15 {
            assert!(!budget.take_whole(1));
            assert_eq!(budget.take(1), 0);
            budget.next_turn();
        }
        assert_eq!(budget.take(1), 0);
        budget.next_turn();
        assert_eq!(budget.take(256), 256);
    }
}
