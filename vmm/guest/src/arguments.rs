//! The arguments of a command, and what a number among them is. The parser makes them, the commands read them.

use core::ops::Range;

/// The arguments of a command, the first being its name.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    ranges: &'a [Range<u32>],
}

impl<'a> Arguments<'a> {
    /// Arguments that lie in `bytes` at these places.
    pub(crate) fn new(bytes: &'a [u8], ranges: &'a [Range<u32>]) -> Self {
        Arguments { bytes, ranges }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none; a command always has its name.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// One of them; empty if there are not so many.
    pub fn at(&self, index: usize) -> &'a [u8] {
        self.ranges
            .get(index)
            .map_or(&[], |range| &self.bytes[range.start as usize..range.end as usize])
    }

    /// All from one on.
    pub fn from(&self, index: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let Arguments { bytes, ranges } = *self;
        ranges
            .get(index..)
            .unwrap_or(&[])
            .iter()
            .map(|range| &bytes[range.start as usize..range.end as usize])
    }

    /// Bytes of all arguments together.
    pub fn total(&self) -> usize {
        self.ranges
            .iter()
            .map(|range| (range.end - range.start) as usize)
            .sum()
    }
}

/// A whole decimal number, as Redis takes it: no blanks, no plus sign.
pub fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || digits.len() > 19 || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    let mut value: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10)?;
        value = if negative {
            value.checked_sub(digit)?
        } else {
            value.checked_add(digit)?
        };
    }
    (!negative || value != 0).then_some(value)
}
