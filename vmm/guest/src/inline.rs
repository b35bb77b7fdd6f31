//! Inline commands: a line that a person typed, split into words with Redis's quoting. Called by the parser; keeps
//! nothing.

use alloc::vec::Vec;
use core::ops::Range;

/// A quote was left open, or something other than a blank follows a closing one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unbalanced;

/// Splits a line. The words' bytes go to `words`, their places in it to `places`.
pub(crate) fn split(
    line: &[u8],
    words: &mut Vec<u8>,
    places: &mut Vec<Range<u32>>,
) -> Result<(), Unbalanced> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Ok(());
        }
        let begin = words.len() as u32;
        rest = word(rest, words)?;
        places.push(begin..words.len() as u32);
    }
}

/// Takes one word off the front.
fn word<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    while let [first, after @ ..] = rest {
        match first {
            b'"' => return end_of_word(double_quoted(after, words)?),
            b'\'' => return end_of_word(single_quoted(after, words)?),
            byte if byte.is_ascii_whitespace() || *byte == 0 => return Ok(after),
            byte => words.push(*byte),
        }
        rest = after;
    }
    Ok(rest)
}

fn end_of_word(rest: &[u8]) -> Result<&[u8], Unbalanced> {
    match rest.first() {
        Some(byte) if !byte.is_ascii_whitespace() => Err(Unbalanced),
        _ => Ok(rest),
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        rest = match rest {
            [b'\\', b'\'', after @ ..] => {
                words.push(b'\'');
                after
            }
            [b'\'', after @ ..] => return Ok(after),
            [byte, after @ ..] => {
                words.push(*byte);
                after
            }
            [] => return Err(Unbalanced),
        };
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                words.push(hex(*high) << 4 | hex(*low));
                after
            }
            [b'\\', escaped, after @ ..] => {
                words.push(unescaped(*escaped));
                after
            }
            [b'"', after @ ..] => return Ok(after),
            [byte, after @ ..] => {
                words.push(*byte);
                after
            }
            [] => return Err(Unbalanced),
        };
    }
}

fn unescaped(letter: u8) -> u8 {
    match letter {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn words(line: &str) -> Result<Vec<String>, Unbalanced> {
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        split(line.as_bytes(), &mut bytes, &mut places)?;
        let word = |place: Range<u32>| &bytes[place.start as usize..place.end as usize];
        Ok(places
            .into_iter()
            .map(|place| String::from_utf8_lossy(word(place)).into_owned())
            .collect())
    }

    #[test]
    fn blanks_separate_words() {
        assert_eq!(words("  set a  b ").unwrap(), ["set", "a", "b"]);
    }

    #[test]
    fn quotes_keep_blanks_and_escapes_are_undone() {
        assert_eq!(
            words(r#"set "a b\x41\n" 'c\'d' """#).unwrap(),
            ["set", "a bA\n", "c'd", ""]
        );
    }

    #[test]
    fn an_open_quote_is_refused() {
        assert_eq!(words("get \"a"), Err(Unbalanced));
    }

    #[test]
    fn a_quote_must_end_its_word() {
        assert_eq!(words("get \"a\"b"), Err(Unbalanced));
    }
}
