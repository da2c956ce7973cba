//! Numbers as the binding writes them into XenStore.

/// Parses a decimal number without sign, blanks or leading zeros (binding section 2).
///
/// `None` for anything else, also for what does not fit into 32 bits.
#[must_use]
pub fn parse_decimal(text: &[u8]) -> Option<u32> {
    match text {
        [] | [b'0', _, ..] => None,
        digits => digits.iter().try_fold(0u32, |value, digit| {
            let digit = digit.checked_sub(b'0').filter(|d| *d <= 9)?;
            value.checked_mul(10)?.checked_add(u32::from(digit))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_decimal;

    #[test]
    fn only_the_canonical_form_is_a_number() {
        assert_eq!(parse_decimal(b"0"), Some(0));
        assert_eq!(parse_decimal(b"4294967295"), Some(u32::MAX));
        for bad in [
            &b""[..],
            b"00",
            b"07",
            b"+1",
            b"-1",
            b" 1",
            b"1 ",
            b"4294967296",
            b"1a",
            b"0x1",
            b"\xff",
        ] {
            assert_eq!(parse_decimal(bad), None, "{bad:?}");
        }
    }
}
