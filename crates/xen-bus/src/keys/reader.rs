//! The forms of a value: decimal numbers, flags and masks (binding section 2).

use xen_types::parse_decimal;

use super::{Directory, KeyError};

/// Bytes of a bad value that an error repeats; the rest is the peer's to read.
const MAX_QUOTED: usize = 32;

/// Looks keys up and turns them into numbers.
pub(super) struct Reader<'a> {
    pub(super) directory: &'a Directory,
}

impl<'a> Reader<'a> {
    fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.directory.get(key).map(Vec::as_slice)
    }

    fn text(&self, key: &str) -> Result<&'a [u8], KeyError> {
        self.get(key)
            .ok_or_else(|| KeyError::Missing { key: key.into() })
    }

    pub(super) fn decimal(&self, key: &str) -> Result<u32, KeyError> {
        let text = self.text(key)?;
        parse_decimal(text)
            .ok_or_else(|| malformed(key, text, "a decimal number without leading zeros"))
    }

    /// References and ports: Xen hands out neither as 0.
    pub(super) fn nonzero(&self, key: &str) -> Result<u32, KeyError> {
        match self.decimal(key)? {
            0 => Err(malformed(key, b"0", "a number other than 0")),
            number => Ok(number),
        }
    }

    pub(super) fn within(&self, key: &'static str, low: u32, high: u32) -> Result<u32, KeyError> {
        let got = self.decimal(key)?;
        if !(low..=high).contains(&got) {
            let expected = format!("{low} to {high}");
            return Err(KeyError::Refused { key, got, expected });
        }
        Ok(got)
    }

    pub(super) fn exactly(&self, key: &'static str, expected: u32) -> Result<u32, KeyError> {
        let got = self.decimal(key)?;
        if got != expected {
            let expected = expected.to_string();
            return Err(KeyError::Refused { key, got, expected });
        }
        Ok(got)
    }

    /// Absent is 0.
    pub(super) fn flag(&self, key: &str) -> Result<bool, KeyError> {
        match self.get(key) {
            None | Some(b"0") => Ok(false),
            Some(b"1") => Ok(true),
            Some(text) => Err(malformed(key, text, "0 or 1")),
        }
    }

    /// A hexadecimal mask. Absent is 0.
    pub(super) fn features(&self, key: &str) -> Result<u32, KeyError> {
        let Some(text) = self.get(key) else {
            return Ok(0);
        };
        text.strip_prefix(b"0x")
            .and_then(parse_hex)
            .ok_or_else(|| malformed(key, text, "0x and up to 8 hexadecimal digits"))
    }
}

fn parse_hex(digits: &[u8]) -> Option<u32> {
    const DIGITS: usize = 8;
    // from_str_radix would take a sign
    let plain = digits.len() <= DIGITS && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    u32::from_str_radix(text, 16).ok()
}

fn malformed(key: &str, got: &[u8], expected: &'static str) -> KeyError {
    let quoted = got.get(..MAX_QUOTED).unwrap_or(got);
    KeyError::Malformed {
        key: key.into(),
        got: quoted.escape_ascii().to_string(),
        expected,
    }
}

/// Pairs of key and value, to be written.
pub(super) fn pairs<const N: usize>(pairs: [(&str, String); N]) -> Vec<(String, String)> {
    pairs.map(|(key, value)| (key.into(), value)).into()
}
